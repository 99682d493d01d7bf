"""Test ImageDataModule: images of any kind, size and number of channels, and what it refuses."""

import copy
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import trainer
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from cifar_resnet import (
    CIFAR10DataModule,
    ImageClassifier,
    ImageDataModule,
    find_misclassified,
    show_augmentations,
    show_class_samples,
    show_misclassified,
    show_samples,
)
from cifar_resnet.data import cifar10, memory
from cifar_resnet.data.formats import Arrays

Labeled = tuple[NDArray[np.uint8], NDArray[np.int64]]


def generated(count: int = 60, height: int = 6, width: int = 10, channels: int = 3) -> Labeled:
    rng = np.random.default_rng(count + channels)
    images = rng.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
    return images, np.arange(count) % 3


def ready(train: Any = None, test: Any = None, **options: Any) -> ImageDataModule:
    data = ImageDataModule(train or generated(), test, **{"batch_size": 20} | options)
    data.prepare_data()
    data.setup()
    return data


def stacked(loader: Any) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = (torch.cat(parts) for parts in zip(*loader, strict=True))
    return images, labels


# --- CIFAR-10 ------------------------------------------------------------------------------------


class Pictures:
    """A dataset of PIL images, such as torchvision's."""

    def __init__(self, images: NDArray[np.uint8], labels: Any) -> None:
        self.images, self.labels_ = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = self.images[index]
        gray = pixels.shape[2] == 1
        return Image.fromarray(pixels[..., 0] if gray else pixels), int(self.labels_[index])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seed": 3, "subset": 900, "cutout": 8, "flip": "alternating", "label_noise": 0.3},
        {"folds": (1, 50), "class_subset": ("dog", "cat"), "mix": "both", "drop_last": True},
        {"subset": 600, "sampling": "balanced", "imbalance": 5, "label_noise": 0.5,
         "label_noise_kind": "asymmetric"},
    ],
    ids=["default", "subset", "folds", "imbalance"],
)  # fmt: skip
def test_batches_of_cifar10_are_bit_for_bit_those_of_its_own_module(
    data_dir: Path, arrays: Arrays, options: dict[str, Any]
) -> None:
    expected = CIFAR10DataModule(data_dir, batch_size=1000, **options)
    expected.setup()
    noise = options.get("label_noise_kind") and {"label_noise_pairs": cifar10.ASYMMETRIC_PAIRS}
    given = ready(
        (arrays.train_images, arrays.train_labels), (arrays.test_images, arrays.test_labels),
        classes=cifar10.CLASSES, mean=cifar10.MEAN, std=cifar10.STD, batch_size=1000,
        **options, **(noise or {}),
    )  # fmt: skip
    assert (given.classes, given.num_samples) == (expected.classes, expected.num_samples)
    for name in ("train", "val", "test"):
        loaders = [getattr(data, f"{name}_dataloader")() for data in (given, expected)]
        assert len(loaders[0]) == len(loaders[1])
        for _, (one, other) in zip(range(4), zip(*loaders, strict=True), strict=False):
            assert all(map(torch.equal, one, other))


def test_the_computed_statistics_of_cifar10_are_the_published_ones(arrays: Arrays) -> None:
    data = ImageDataModule((arrays.train_images, arrays.train_labels))
    np.testing.assert_allclose(data.mean, cifar10.MEAN, atol=1e-8)
    np.testing.assert_allclose(data.std, cifar10.STD, atol=1e-8)


# --- layouts, sizes and channels -----------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_every_layout_gives_the_same_batches(channels: int) -> None:
    images, labels = generated(channels=channels)
    planes = torch.from_numpy(images).permute(0, 3, 1, 2)
    layouts: list[Any] = [
        (images, labels),
        (images, labels[:, None].tolist()),
        (np.asfortranarray(images), torch.from_numpy(labels)),
        (planes, labels.astype(np.uint8)),
        (planes.double() / 255, labels),
        (images / 255, labels),
        TensorDataset(planes, torch.from_numpy(labels)),
        [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)],
        Pictures(images, labels),
    ]
    layouts += [(images[..., 0], labels), (planes[:, 0], labels)] if channels == 1 else []
    modules = [ready(each) for each in layouts]
    assert modules[0].dims == (channels, 6, 10)
    expected = stacked(modules[0].train_dataloader())
    assert expected[0].shape == (54, channels, 6, 10)
    for data in modules[1:]:
        assert all(map(torch.equal, expected, stacked(data.train_dataloader())))
        assert data.mean == modules[0].mean
        assert data._set.fingerprint == modules[0]._set.fingerprint


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_evaluation_is_torchvisions_normalization_of_single_images(channels: int) -> None:
    images, labels = generated(channels=channels)
    data = ready((images, labels), (images, labels))
    batch, found = stacked(data.test_dataloader())
    assert (found.numpy() == labels).all()
    flat = images.reshape(-1, channels) / 255
    np.testing.assert_allclose(data.mean, flat.mean(0), rtol=1e-12)
    np.testing.assert_allclose(data.std, flat.std(0), rtol=1e-12)
    np.testing.assert_allclose(
        batch, (images.transpose(0, 3, 1, 2) / 255 - np.reshape(data.mean, (-1, 1, 1)))
        / np.reshape(data.std, (-1, 1, 1)), atol=2e-6,
    )  # fmt: skip
    assert ((data.denormalize(batch) * 255).round().permute(0, 2, 3, 1).numpy() == images).all()
    one_by_one = ready(
        (images, labels), (images, labels), test_transforms=data.default_transforms()
    )
    np.testing.assert_allclose(stacked(one_by_one.test_dataloader())[0], batch, atol=2e-6)


def test_crops_flips_and_transforms_keep_the_size(tmp_path: Path) -> None:
    data = ready(crop_padding=5, cutout=4, padding_mode="constant")
    assert stacked(data.train_dataloader())[0].shape == (54, 3, 6, 10)
    transform = v2.Compose([v2.RandomCrop((6, 10), padding=2), ready().default_transforms()])
    assert stacked(ready(train_transforms=transform).train_dataloader())[0].shape[2:] == (6, 10)


def test_names_and_numbers_of_classes() -> None:
    images, labels = generated()
    assert ready().classes == ("0", "1", "2")
    assert ready(classes=["a", "b", "c"]).classes == ("a", "b", "c")
    named = Pictures(images, labels)
    named.classes = ["x", "y", "z"]  # type: ignore[attr-defined]
    assert ready(named).classes == ("x", "y", "z")
    data = ready((images, labels), (images, labels), class_subset=("2", "0"))
    assert {*labels[data.indices("test")].tolist()} == {0, 2}
    assert stacked(data.test_dataloader())[1].unique().tolist() == [0, 1]


def test_the_images_of_a_torchvision_dataset_are_taken_at_once() -> None:
    images, labels = generated()
    read: list[int] = []

    class Vision(Pictures):
        data = images.transpose(0, 3, 1, 2)  # as in SVHN
        targets = labels.tolist()

        def __getitem__(self, index: int) -> tuple[Any, int]:
            read.append(index)
            return super().__getitem__(index)

    assert (ready(Vision(images, labels))._arrays.train_images == images).all()
    assert len(read) == 8
    # A derived class that changes its images is read one by one.
    changed = Vision(images[::-1].copy(), labels)
    assert (ready(changed)._arrays.train_images == images[::-1]).all()


def test_without_test_images(tmp_path: Path) -> None:
    data = ready()
    assert data.test_dataloader() == data.predict_dataloader() == []
    assert "dims=(3, 6, 10), num_classes=3, train=54, val=6, test=0, batch_size=20" in str(data)
    assert len(data.labels("test")) == 0


# --- training ------------------------------------------------------------------------------------


def linear(inputs: int, classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))


def test_digits_are_learned(tmp_path: Path) -> None:
    digits = load_digits()
    x, y = digits.images / 16, digits.target
    data = ImageDataModule(
        (x[:1400], y[:1400]), (x[1400:], y[1400:]), batch_size=50, flip="none",
        crop_padding=0,
    )  # fmt: skip
    model = ImageClassifier(linear(64, 10), "adam", num_classes=10)
    fit = trainer(tmp_path, max_epochs=20)
    fit.fit(model, data)
    assert fit.test(model, data, verbose=False)[0]["test_acc"] > 0.8


def test_a_run_resumes_only_with_the_same_images(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    fit = trainer(tmp_path, max_steps=1)
    images, labels = generated()

    def resume(data: ImageDataModule, steps: int) -> None:
        again = trainer(tmp_path, max_steps=steps, limit_val_batches=0)
        model = ImageClassifier(linear(180, 3), "adam", num_classes=3)
        again.fit(model, data, ckpt_path=path if steps > 1 else None, weights_only=True)
        again.save_checkpoint(path)

    resume(ready((images, labels)), 1)
    del fit
    resume(ready(Pictures(images, labels)), 2)
    other = images.copy()
    other[7, 0, 0, 0] ^= 1
    for changed in ((other, labels), (images, labels[::-1]), (images[:, :, 1:], labels)):
        with pytest.raises(ValueError, match=r"other data: dataset is '60 x 6 x 10 x 3 \(SHA-256"):
            ready(changed).load_state_dict(torch.load(path)["ImageDataModule"])


def test_a_copy_and_every_option(tmp_path: Path) -> None:
    data = ready(copy.deepcopy(ready())._arrays[:2], sampling="balanced", mix="mixup", imbalance=2)
    assert stacked(data.train_dataloader())[1].shape == (data.num_samples, 3)


# --- bad input -----------------------------------------------------------------------------------

IMAGES, LABELS = generated(12)
PLANES = torch.from_numpy(IMAGES).permute(0, 3, 1, 2)


def pictures(*sizes: tuple[int, int], mode: str = "RGB") -> list[Any]:
    return [(Image.new(mode, size), index % 2) for index, size in enumerate(sizes)]


class Noisy(Pictures):
    """A dataset with a random transform."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return torch.rand(3, 8, 8), index % 3


@pytest.mark.parametrize(
    ("train", "error", "message"),
    [
        ("folder", TypeError, "train must be (images, labels), a pair of arrays"),
        (None, TypeError, "but got None"),
        (IMAGES, TypeError, "but got ndarray"),
        ({"train": []}, TypeError, "but got dict"),
        (iter([]), TypeError, "but got list_iterator"),
        ([], ValueError, "train is empty"),
        ((IMAGES[:0], LABELS[:0]), ValueError, "not be empty, but have the shape (0, 6, 10, 3)"),
        ((IMAGES, LABELS[:5]), ValueError, "train has 12 images, but 5 labels"),
        ((IMAGES.reshape(12, -1), LABELS), ValueError, "but have the shape (12, 180)"),
        ((IMAGES.transpose(0, 3, 1, 2), LABELS), ValueError, "use images.transpose(0, 2, 3, 1)"),
        ((torch.from_numpy(IMAGES), LABELS), ValueError, "use images.permute(0, 3, 1, 2)"),
        ((np.zeros((12, 9, 9, 5), np.uint8), LABELS), ValueError, "with 1 to 4 channels."),
        ((IMAGES[:, :4], LABELS), ValueError, "come first or last in the shape (12, 4, 10, 3)"),
        ((PLANES[:, :, :, :4], LABELS), ValueError, "come first or last in the shape (12, 3, 6,"),
        ((IMAGES.astype(int), LABELS), TypeError, "but are int64. Convert values from 0 to 255"),
        ((IMAGES > 9, LABELS), TypeError, "must be uint8, or floating-point numbers in [0, 1]"),
        ((IMAGES * 1.0, LABELS), ValueError, "with values from 0 to 255, but floating-point"),
        ((IMAGES / 255 - 0.5, LABELS), ValueError, "leave out any normalization"),
        ((np.full((12, 9, 9), np.nan), LABELS), ValueError, "from nan to nan"),
        ((IMAGES, np.eye(12)), ValueError, "Convert one-hot labels with labels.argmax(1)"),
        ((IMAGES, LABELS * 1.0), TypeError, "must be integers, but are float64"),
        ((IMAGES, ["cat"] * 12), TypeError, "Number the classes from 0, and pass their names"),
        ((IMAGES, LABELS - 1), ValueError, "image 0 has the label -1"),
        ((IMAGES, LABELS + 1), ValueError, "no images of 1 of the 4 classes: 0 ('0')"),
        ((IMAGES, LABELS * 0), ValueError, "train has images of only one class"),
        ((IMAGES // 255 + 7, LABELS), ValueError, "All pixels of channel 1"),
        (pictures((8, 8), (8, 9)), ValueError, "image 1 of train has the shape (9, 8, 3) and"),
        (pictures((8, 8), (8, 8), mode="P"), ValueError, "PIL image of mode 'P'; expected one of"),
        ([(IMAGES[0], "cat")], TypeError, "label of image 0 of train must be an integer"),
        ([("cat.png", 0)], TypeError, "must be a PIL image, an array or a tensor, but is str"),
        ([(torch.rand(9, 9, 3), 0)], ValueError, "must be a tensor (C, H, W)"),
        ([(np.zeros((3, 9, 9)), 0)], ValueError, "must be an array (H, W) or (H, W, C)"),
        ([IMAGES[0]], ValueError, "A sample or batch must be (images, labels)"),
        (Noisy(IMAGES, LABELS), ValueError, "returns another image 0 when it is read again"),
    ],
)
def test_unclear_or_wrong_images_are_refused(
    train: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        _ = ImageDataModule(train).mean
    assert message in str(caught.value)


def test_training_and_test_images_must_fit() -> None:
    with pytest.raises(ValueError, match=r"shapes \(6, 10, 3\) and \(6, 9, 3\)"):
        ImageDataModule((IMAGES, LABELS), (IMAGES[:, :, 1:], LABELS))
    with pytest.raises(ValueError, match="labels of test must be from 0 to 2, .* the label 3"):
        ImageDataModule((IMAGES, LABELS), (IMAGES, LABELS + 1))
    with pytest.raises(ValueError, match="labels of train must be from 0 to 1"):
        ImageDataModule((IMAGES, LABELS), classes=["a", "b"])


def test_data_that_do_not_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LARGE", 0)
    monkeypatch.setattr(memory, "_available", lambda: 20_000)
    with pytest.raises(MemoryError, match=r"200 images of train need 38,400 bytes .* only 20,000"):
        ImageDataModule([(np.zeros((8, 8, 3), np.uint8), 0)] * 200)
    data = ready(crop_padding=1)  # 54 x 2 x 8 x 12 x 3
    with pytest.raises(MemoryError, match="padding and mirrors need 31,104 bytes"):
        data.train_dataloader()


def test_the_available_memory_is_that_of_the_system_or_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:     50 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory._available() == 50 * 1024
    (tmp_path / "memory.max").write_text("9000\n")
    (tmp_path / "memory.current").write_text("2000\n")
    assert memory._available() == 7000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory._available() == 50 * 1024
    (tmp_path / "meminfo").unlink()
    assert memory._available() is None


def test_what_is_converted_or_left_out_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cifar_resnet"):
        ImageDataModule((IMAGES / 255, LABELS), TensorDataset(PLANES / 255, torch.tensor(LABELS)))
        ready((IMAGES, LABELS), val_split=11)
    assert "images of train were converted from float64 in [0, 1] to uint8" in caplog.text
    assert "images of test were converted from [0, 1] to uint8" in caplog.text
    assert "All images of 0, 1 are held out" in caplog.text


def test_asymmetric_noise_needs_pairs() -> None:
    with pytest.raises(ValueError, match="which are not known for these data. Pass label_noise_p"):
        ready(label_noise=0.5, label_noise_kind="asymmetric")
    pairs = {"0": "2"}
    data = ready(label_noise=1.0, label_noise_kind="asymmetric", label_noise_pairs=pairs)
    clean, noisy = data.labels(clean=True), data.labels()
    assert (noisy == np.where(clean == 0, 2, clean)).all()
    assert SimpleNamespace(**data.state_dict()).label_noise_pairs == pairs


# --- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_figures_of_images_of_any_size(channels: int) -> None:
    images, labels = generated(channels=channels)
    data = ImageDataModule((images, labels), (images, labels), classes=("a", "b", "c"))
    fig = show_samples(data, n=4, split="test", seed=1)
    shown = [np.asarray(ax.images[0].get_array()) for ax in fig.axes if ax.images]
    texts = [text.get_text() for text in fig.texts]
    numbers = [int(text[1:]) for text in texts if text.startswith("#")]
    assert [text for text in texts if text in ("a", "b", "c")] == ["abc"[i % 3] for i in numbers]
    for pixels, index in zip(shown, numbers, strict=True):
        assert np.array_equal(pixels, np.broadcast_to(images[index], (6, 10, 3)))
    assert len(show_class_samples(data, per_class=2).axes) == 6
    assert len(show_augmentations(data, n=2, epochs=2).axes) == 6
    transform = v2.Compose([v2.RandomHorizontalFlip(), data.default_transforms()])
    changed = ImageDataModule((images, labels), train_transforms=transform)
    assert len(show_augmentations(changed, n=2, epochs=2).axes) == 6
    with pytest.raises(ValueError, match="has no test images"):
        show_samples(changed, split="test")
    network = linear(channels * 60, 3).eval()
    errors = find_misclassified(network, data)
    assert errors.class_names == ("a", "b", "c")
    assert errors.total == 60
    assert len(show_misclassified(network, errors, n=2, cam=None).axes) == 2


def test_the_drawn_augmentations_are_those_of_training() -> None:
    images, labels = generated(channels=1)
    data = ready((images, labels), val_split=0, shuffle=False, crop_padding=2, batch_size=60)
    batch, _ = next(iter(data.train_dataloader()))
    expected = (data.denormalize(batch) * 255).round().expand(-1, 3, -1, -1)[7].permute(1, 2, 0)
    fig = show_augmentations(data, indices=[7], epochs=1)
    assert np.array_equal(np.rint(fig.axes[1].images[0].get_array()), expected.numpy())
