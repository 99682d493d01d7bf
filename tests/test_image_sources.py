"""Test ImageDataModule with folders of files and datasets of torchvision and Hugging Face.

No dataset is downloaded: the files are generated in the layouts of the originals.
"""

import gzip
import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as vision

from cifar_resnet import CIFAR10DataModule, ImageDataModule

CLASSES = ("cat", "dog", "owl")
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (30, 12, 16, 3), dtype=np.uint8)
LABELS = np.arange(30) % 3


def write(folder: Path, rows: range, suffix: str = "png") -> None:
    for row in rows:
        path = folder / CLASSES[LABELS[row]] / f"{row:02}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[row]).save(path)


def by_class(rows: range) -> np.ndarray:
    return PIXELS[sorted(rows, key=lambda row: (LABELS[row], row))]


# --- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("test", ["test", "val"])
def test_folders_of_training_and_test_images(tmp_path: Path, test: str) -> None:
    write(tmp_path / "train", range(24))
    write(tmp_path / test, range(24, 30))
    data = ImageDataModule.from_folder(tmp_path, (12, 16), batch_size=8)
    data.setup()
    assert (data.classes, data.dims) == (CLASSES, (3, 12, 16))
    assert (data._arrays.train_images == by_class(range(24))).all()
    assert (data._arrays.test_images == by_class(range(24, 30))).all()
    assert data.labels("test").tolist() == [0, 0, 1, 1, 2, 2]
    expected = vision.ImageFolder(tmp_path / "train")  # torchvision's own reader
    assert list(data.classes) == expected.classes
    assert data._arrays.train_labels.tolist() == expected.targets
    assert (data._arrays.train_images == np.stack([np.asarray(x) for x, _ in expected])).all()


def test_one_folder_with_test_images_held_out(tmp_path: Path) -> None:
    write(tmp_path, range(30))
    data, again = (
        ImageDataModule.from_folder(tmp_path, (12, 16), test_fraction=0.2, seed=seed)
        for seed in (0, 1)
    )
    for each in (data, again):
        each.setup()
    assert data.labels("test").tolist() == [0, 0, 1, 1, 2, 2]
    assert (data._arrays.test_images == again._arrays.test_images).all()
    held, kept = ({x.tobytes() for x in part} for part in data._arrays[::2])
    assert (len(held), len(kept), held & kept) == (24, 6, set())
    whole = ImageDataModule.from_folder(tmp_path, test_fraction=0)
    assert (whole.dims, whole.test_dataloader()) == ((3, 32, 32), [])


def test_files_are_rotated_cropped_and_scaled_as_predict_does(tmp_path: Path) -> None:
    write(tmp_path, range(6))
    wide = Image.new("RGB", (40, 10), "red")
    wide.paste("blue", (15, 0, 25, 10))  # the central square
    wide.save(tmp_path / "cat/wide.png")
    (tmp_path / "cat/notes.txt").touch()
    (tmp_path / ".cache").mkdir()
    data = ImageDataModule.from_folder(tmp_path, 8, test_fraction=0)
    data.setup()
    assert (data._arrays.train_images[2] == [0, 0, 255]).all()


def test_folders_that_are_not_clear(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def refused(message: str, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            ImageDataModule.from_folder(tmp_path, **options)

    refused("has no folders. Expected one folder of images", test_fraction=0)
    write(tmp_path, range(6))
    refused("taken as classes. Pass test_fraction, such as 0.2")
    refused("test_fraction must be a number in .0, 1., but got 1", test_fraction=1)
    write(tmp_path / "train", range(6))
    refused("but no folder test or val")
    write(tmp_path / "test", range(6, 9))
    refused("test_fraction=0.5 has no effect", test_fraction=0.5)
    (tmp_path / "val").mkdir()
    with caplog.at_level(logging.WARNING, "cifar_resnet"):
        ImageDataModule.from_folder(tmp_path)
    assert "val is not used: validation images are held out of train" in caplog.text
    (tmp_path / "test/fox").mkdir()
    refused("has a class 'fox', which .*train does not have")
    (tmp_path / "test/fox").rmdir()
    (tmp_path / "train/dog/damaged.png").write_bytes(b"PNG")
    refused("damaged.png cannot be used: This file is not an image")
    with pytest.raises(ValueError, match="must be a folder, but .*cats' is not one"):
        ImageDataModule.from_folder(tmp_path / "cats")
    with pytest.raises(TypeError, match="provides one dataset. Call this method on ImageData"):
        CIFAR10DataModule.from_folder(tmp_path / "val", test_fraction=0)


# --- torchvision ---------------------------------------------------------------------------------


def write_mnist(folder: Path) -> None:
    """Write gray images in the format of MNIST."""
    folder.mkdir(parents=True)
    for name, rows in (("train", range(24)), ("t10k", range(24, 30))):
        images = np.zeros((len(rows), 28, 28), np.uint8)
        images[:, :12, :16] = PIXELS[rows, ..., 0]
        header = struct.pack(">iiii", 0x803, *images.shape)
        with gzip.open(folder / f"{name}-images-idx3-ubyte.gz", "wb") as file:
            file.write(header + images.tobytes())
        with gzip.open(folder / f"{name}-labels-idx1-ubyte.gz", "wb") as file:
            file.write(
                struct.pack(">ii", 0x801, len(rows)) + LABELS[rows].astype(np.uint8).tobytes()
            )
        for path in folder.glob("*.gz"):
            path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_a_dataset_of_torchvision_by_its_name(name: str, tmp_path: Path) -> None:
    write_mnist(tmp_path / name / "raw")
    with pytest.raises(ValueError, match="no images of 7 of the 10 classes: 3 "):
        ImageDataModule.from_torchvision(name, tmp_path, download=False)
    kind = getattr(vision, name)
    train, test = (kind(tmp_path, train=part) for part in (True, False))
    data = ImageDataModule.from_torchvision(train, test=test, classes=CLASSES)
    data.setup()
    assert data.dims == (1, 28, 28)
    assert (data._arrays.train_images[..., 0] == train.data.numpy()).all()
    scaled = ImageDataModule.from_torchvision(train, test=test, classes=CLASSES, size=32)
    assert scaled.dims == (1, 32, 32)


def test_datasets_that_hold_channels_first(tmp_path: Path) -> None:
    class SVHN(vision.SVHN):
        def __init__(self) -> None:
            self.data, self.labels = PIXELS.transpose(0, 3, 1, 2), LABELS
            self.transform = self.target_transform = None

    data = ImageDataModule.from_torchvision(SVHN(), test=SVHN(), flip="none")
    data.setup()
    assert (data._arrays.test_images == PIXELS).all()
    square = ImageDataModule.from_torchvision(SVHN(), size=8)
    assert square.dims == (3, 8, 8)


def test_datasets_that_are_not_there(tmp_path: Path) -> None:
    for name in ("EMNIST", "Flowers", "VisionDataset", "utils"):
        with pytest.raises(ValueError, match=f"such as 'CIFAR100', .* but got '{name}'"):
            ImageDataModule.from_torchvision(name, tmp_path)
    with pytest.raises(RuntimeError, match="Dataset not found"):
        ImageDataModule.from_torchvision("CIFAR100", tmp_path, download=False)
    with pytest.raises(ValueError, match="test has no effect, because 'MNIST' has"):
        ImageDataModule.from_torchvision("MNIST", tmp_path, test=[])
    with pytest.raises(ValueError, match="root='x' has no effect"):
        ImageDataModule.from_torchvision([], "x")
    with pytest.raises(TypeError, match="size=.8, 8. needs PIL images or uint8 arrays"):
        ImageDataModule.from_torchvision([(torch.zeros(3, 9, 9), 0)], size=8)


# --- Hugging Face --------------------------------------------------------------------------------


class ClassLabel:
    names = CLASSES


class Table:
    """The parts of a `datasets.Dataset` that are used."""

    def __init__(self, rows: range, image: str = "img", **labels: Any) -> None:
        self.columns = {image: [Image.fromarray(PIXELS[row]) for row in rows]}
        self.columns |= {name: LABELS[rows].tolist() for name in labels}
        self.column_names = list(self.columns)
        self.features = {image: object(), **labels}

    def __len__(self) -> int:
        return len(self.columns[self.column_names[0]])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self.columns.items()}


def made_by_datasets() -> Any:
    datasets = pytest.importorskip("datasets")
    kinds = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))}
    )

    def split(rows: range) -> Any:
        images = [Image.fromarray(PIXELS[row]) for row in rows]
        return datasets.Dataset.from_dict({"img": images, "label": LABELS[rows]}, features=kinds)

    return datasets.DatasetDict({"train": split(range(24)), "test": split(range(24, 30))})


@pytest.mark.parametrize("real", [False, True], ids=["same layout", "datasets"])
def test_a_dataset_of_hugging_face(real: bool) -> None:
    label = ClassLabel()
    splits = {"train": Table(range(24), label=label), "test": Table(range(24, 30), label=label)}
    given = made_by_datasets() if real else splits
    data = ImageDataModule.from_huggingface(given)
    data.setup()
    assert (data.classes, data.dims) == (CLASSES, (3, 12, 16))
    assert (data._arrays.train_images == PIXELS[:24]).all()
    assert (data._arrays.test_labels == LABELS[24:]).all()
    one = ImageDataModule.from_huggingface(given["train"], given["test"], size=8)
    assert one.dims == (3, 8, 8)


def test_splits_and_columns_that_are_not_clear() -> None:
    label = ClassLabel()
    with pytest.raises(ValueError, match="must have a split 'train', but has 'test'"):
        ImageDataModule.from_huggingface({"test": Table(range(3), label=label)})
    with pytest.raises(ValueError, match="test has no effect, because the dataset has splits"):
        ImageDataModule.from_huggingface({"train": 0}, 0)
    with pytest.raises(TypeError, match="of the library datasets, but got list"):
        ImageDataModule.from_huggingface([])
    with pytest.raises(ValueError, match=r"\['fine_label', 'coarse_label'\] could be it. Pass la"):
        ImageDataModule.from_huggingface(Table(range(6), fine_label=label, coarse_label=label))
    with pytest.raises(ValueError, match="columns 'pic', 'label', but none could be it"):
        ImageDataModule.from_huggingface(Table(range(6), "pic", label=label))
    table = Table(range(6), "pic", fine_label=label, coarse_label=label)
    data = ImageDataModule.from_huggingface(table, image="pic", label="coarse_label")
    assert data.num_samples == 5
