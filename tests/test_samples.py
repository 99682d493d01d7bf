"""Test that figures of a data set show its exact bytes and the exact images of training, and test
the script that draws the figures of the documentation.
"""

import copy
import csv
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)
from torch.utils.tensorboard import SummaryWriter
from torchvision.datasets import CIFAR10
from torchvision.transforms import v2

from cifar_resnet import (
    CIFAR10DataModule,
    show_augmentations,
    show_class_samples,
    show_rgb_channels,
    show_samples,
    show_training_curves,
)
from cifar_resnet.data.formats import Arrays
from cifar_resnet.data.order import BatchOrder, stratified_split

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))

import make_figures  # noqa: E402


def pixels(fig: Any) -> list[NDArray[np.uint8]]:
    """Return the images of the axes, row by row."""
    return [np.asarray(axes.images[0].get_array()) for axes in fig.axes]


def texts(fig: Any) -> list[str]:
    return [text.get_text() for text in fig.texts]


def indices(fig: Any) -> list[int]:
    """Return the indices in the captions."""
    return [int(t.rpartition("#")[2]) for t in texts(fig) if "#" in t]


@pytest.fixture(scope="module")
def module(data_dir: Path) -> CIFAR10DataModule:
    data = CIFAR10DataModule(
        data_dir, batch_size=512, seed=3, crop_padding=2, flip="alternating", cutout=8
    )
    data.prepare_data()
    data.setup()
    return data


class Numbered(Dataset[Any]):
    """Gray images of the value of their index, with the label index % 3."""

    def __init__(self, number: int = 30, picture: bool = False) -> None:
        self.number = number
        self.picture = picture
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.read.append(index)
        if self.picture:
            return Image.new("RGB", (4, 4), (index, index, index)), index % 3
        return torch.full((3, 4, 4), index, dtype=torch.uint8), index % 3


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter([Numbered()[index] for index in range(30)])


class Module(LightningDataModule):
    classes = ("one", "two", "three")

    def __init__(self, loaders: int = 1) -> None:
        super().__init__()
        self.loaders = loaders

    def train_dataloader(self) -> Any:
        return [DataLoader(Numbered(), batch_size=7, shuffle=True) for _ in range(self.loaders)]


# --- samples ------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test", "val"])
def test_samples_are_the_bytes_of_the_data_set(
    module: CIFAR10DataModule, arrays: Arrays, split: str
) -> None:
    fig = show_samples(module, n=9, split=split)
    images, labels = arrays.train_images, arrays.train_labels
    if split == "test":
        images, labels = arrays.test_images, arrays.test_labels
    chosen = indices(fig)
    assert len(set(chosen)) == 9
    if split == "val":
        assert set(chosen) <= set(stratified_split(labels, 5000)[1].tolist())
    assert np.array_equal(pixels(fig), images[chosen])
    names = [text for text in texts(fig)[1:] if "#" not in text]
    assert names == [module.classes[label] for label in labels[chosen]]
    assert all(axes.images[0].get_interpolation() == "nearest" for axes in fig.axes)
    total = {"train": "45,000 training", "test": "10,000 test", "val": "5,000 validation"}[split]
    assert texts(fig)[0] == f"9 of {total} images, chosen at random"


def test_no_data_means_all_training_images(arrays: Arrays) -> None:
    fig = show_samples(n=3)
    assert texts(fig)[0] == "3 of 50,000 training images, chosen at random"
    assert np.array_equal(pixels(fig), arrays.train_images[indices(fig)])


def test_transforms_and_augmentation_are_ignored(module: CIFAR10DataModule) -> None:
    def never(image: Any) -> Tensor:
        raise AssertionError("called")

    varied = CIFAR10DataModule(module.data_dir, train_transforms=never, test_transforms=never)
    for split in ("train", "test"):
        one = show_samples(varied, n=4, split=split)
        other = show_samples(module, n=4, split=split)
        assert np.array_equal(pixels(one), pixels(other))


class Single(Module):
    def train_dataloader(self) -> Any:
        return super().train_dataloader()[0]


def collated_by_hand(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*items, strict=True)
    return torch.stack(images), torch.tensor(labels)


def loader_with_other_sampler() -> DataLoader[Any]:
    return DataLoader(Numbered(), batch_size=7, sampler=SubsetRandomSampler(range(30)))


@pytest.mark.parametrize(
    "data",
    [
        Numbered(picture=True),
        Subset(Numbered(40), range(30)),
        DataLoader(Numbered(), batch_size=7, shuffle=True),
        loader_with_other_sampler(),
        Streamed(),
        DataLoader(Streamed(), batch_size=7),
        DataLoader(Numbered(), batch_size=7, collate_fn=collated_by_hand),
        Module(),
        Single(),
        [dict(zip(("image", "label"), Numbered(picture=True)[n], strict=True)) for n in range(30)],
    ],
    ids=[
        *("pictures", "subset", "loader", "sampler", "stream", "stream loader", "own batches"),
        *("module", "module with one loader", "dictionaries"),
    ],
)
def test_the_choice_depends_on_seed_and_order_alone(data: Any) -> None:
    expected = indices(show_samples(Numbered(), n=5))
    fig = show_samples(data, n=5)
    assert indices(fig) == expected
    assert [image[0, 0, 0] for image in pixels(fig)] == expected
    assert indices(show_samples(data, n=5, seed=1)) != expected


def test_a_sampler_that_omits_samples_is_respected() -> None:
    loader = DataLoader(Numbered(), sampler=RandomSampler(Numbered(), num_samples=10))
    assert len(show_samples(loader).axes) == 10


def test_only_the_drawn_samples_are_read() -> None:
    data = Numbered()
    assert indices(show_samples(data, n=5)) == data.read[:5]
    assert len(data.read) <= 6


def test_fewer_images_than_requested_and_the_number_of_columns() -> None:
    fig = show_samples(Numbered(7), n=25)
    assert len(fig.axes) == 7
    assert texts(fig)[0].startswith("7 of 7 samples")
    for columns, expected in ((None, 3), (2, 2), (20, 7)):
        fig = show_samples(Numbered(7), columns=columns)
        assert len({round(axes.get_position().x0, 6) for axes in fig.axes}) == expected


def test_normalized_images_need_their_statistics() -> None:
    images, labels = torch.rand(8, 3, 4, 4), torch.arange(8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.4, 0.3)
    normalized = v2.functional.normalize(images, mean, std)
    fig = show_samples(TensorDataset(normalized * 1, labels), mean=mean, std=std, n=8)
    bytes_of = (images[indices(fig)] * 255).round().byte().permute(0, 2, 3, 1)
    assert np.array_equal(pixels(fig), bytes_of)
    with pytest.raises(ValueError, match=r"Image \d+ has values from .* to .*, but to be "):
        show_samples(TensorDataset(normalized * 3, labels))
    with pytest.raises(ValueError, match="has 3 channels, but mean and std have 2 and 2 values"):
        show_samples(TensorDataset(images, labels), mean=(0, 0), std=(1, 1))
    with pytest.raises(ValueError, match="Give both mean and std, or neither"):
        show_samples(TensorDataset(images, labels), mean=0.5)


def test_the_normalization_is_read_from_the_transform(
    module: CIFAR10DataModule, arrays: Arrays
) -> None:
    data = torchvision_like(arrays)
    fig = show_samples(data, n=6)
    assert np.array_equal(pixels(fig), arrays.test_images[:50][indices(fig)])
    assert set(texts(fig)) & set(module.classes)


class torchvision_like(CIFAR10):  # noqa: N801
    """torchvision's data set of the first test images, created without its files."""

    def __init__(self, arrays: Arrays) -> None:
        self.data, self.targets = arrays.test_images[:50], arrays.test_labels[:50].tolist()
        self.classes = list(CIFAR10DataModule.classes)
        self.transform, self.target_transform = CIFAR10DataModule.default_transforms(), None
        self.train = False


def test_images_of_one_channel_and_of_many_sizes() -> None:
    gray = TensorDataset(torch.full((2, 1, 4, 6), 0.2), torch.tensor([0, 1]))
    for image in pixels(show_samples(gray)):
        assert image.shape == (4, 6, 3)
        assert (image == 51).all()  # 0.2 * 255
    sizes = [(torch.rand(3, 4 + n, 5), 0) for n in range(3)]
    assert sorted(image.shape for image in pixels(show_samples(sizes))) == [
        (4, 5, 3), (5, 5, 3), (6, 5, 3),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"must have the shape \(C, H, W\) .* but has \(8, 8, 3\)"):
        show_samples(TensorDataset(torch.rand(2, 8, 8, 3), torch.tensor([0, 1])))


# --- classes ------------------------------------------------------------------------------------


def test_a_row_shows_one_class(module: CIFAR10DataModule, arrays: Arrays) -> None:
    fig = show_class_samples(module, per_class=3)
    assert texts(fig)[1:] == list(module.classes)
    assert len(fig.axes) == 30
    known = {image.tobytes(): int(label) for image, label in
             zip(arrays.train_images, arrays.train_labels, strict=True)}  # fmt: skip
    assert [known[image.tobytes()] for image in pixels(fig)] == [
        c for c in range(10) for _ in "123"
    ]
    assert len({image.tobytes() for image in pixels(fig)}) == 30


def test_classes_in_the_requested_order() -> None:
    names = ["one", "two", "three"]
    fig = show_class_samples(Numbered(), classes=["three", 0], per_class=4, class_names=names)
    assert texts(fig)[1:] == ["three", "one"]
    assert [image[0, 0, 0] % 3 for image in pixels(fig)] == [2] * 4 + [0] * 4
    rows = [axes.get_position().y0 for axes in fig.axes]
    assert rows[0] > rows[4]
    short = show_class_samples(Numbered(7), per_class=3)  # labels 0, 1, 2, 0, 1, 2, 0
    assert texts(short)[1:] == ["0", "1", "2"]
    assert [image[0, 0, 0] % 3 for image in pixels(short)] == [0, 0, 0, 1, 1, 2, 2]
    assert len(show_class_samples(Numbered(), classes="two", class_names=names).axes) == 10


def test_a_missing_class() -> None:
    names = ["one", "two", "three"]
    with pytest.raises(ValueError, match="classes must be a number from 0 to 2 or one of one, two"):
        show_class_samples(Numbered(), classes=["four"], class_names=names)
    data = TensorDataset(torch.rand(4, 3, 4, 4), torch.tensor([3, 7, 3, 7]))
    assert len(show_class_samples(data, classes=[7]).axes) == 2
    with pytest.raises(ValueError, match="classes must be among the labels 3, 7, but got 0"):
        show_class_samples(data, classes=[0])
    with pytest.raises(ValueError, match="There is no class to draw"):
        show_class_samples(data, classes=[])
    with pytest.raises(ValueError, match="The data contain no images of three"):
        show_class_samples(Numbered(2), classes=["three"], class_names=names)


# --- channels -----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", ["train", "test"])
def test_channels_are_the_planes_of_the_image(
    module: CIFAR10DataModule, arrays: Arrays, split: str
) -> None:
    images = arrays.train_images if split == "train" else arrays.test_images
    labels = arrays.train_labels if split == "train" else arrays.test_labels
    train = stratified_split(arrays.train_labels, 5000)[0]
    index = int(train[40_000]) if split == "train" else 7_777
    whole, *planes = pixels(fig := show_rgb_channels(index, module, split=split))
    assert np.array_equal(whole, images[index])
    for channel, (colored, gray) in enumerate(zip(planes[:3], planes[3:], strict=True)):
        assert np.array_equal(gray, images[index][..., channel])
        assert np.array_equal(colored[..., channel], gray)
        assert not np.delete(colored, channel, axis=2).any()
    for axes in fig.axes[4:]:  # the same scale for all panels
        assert axes.images[0].get_clim() == (0, 255)
    said = texts(fig)
    assert said[0] == f"{module.classes[labels[index]]}, #{index}"
    assert {"channel 0: red", "channel 1: green", "channel 2: blue"} <= set(said)
    red = images[index][..., 0]
    assert f"{red.min()} to {red.max()}" in said
    assert any("(3, 32, 32)" in text for text in said)


def test_channels_of_any_kind_of_image(arrays: Arrays) -> None:
    raw = arrays.test_images[3]
    kinds: list[Any] = [
        raw,
        raw.transpose(2, 0, 1),
        Image.fromarray(raw),
        torch.from_numpy(raw).permute(2, 0, 1),
        torch.from_numpy(raw).permute(2, 0, 1) / 255,
        raw.transpose(2, 0, 1).astype(np.float32) / 255,
    ]
    for image in kinds:
        assert np.array_equal(pixels(show_rgb_channels(image))[0], raw)
    normalized = CIFAR10DataModule.default_transforms()(Image.fromarray(raw))
    fig = show_rgb_channels(normalized, mean=CIFAR10DataModule.mean, std=CIFAR10DataModule.std)
    assert np.array_equal(pixels(fig)[0], raw)
    with pytest.raises(ValueError, match="image has values from -.*Pass the mean and std"):
        show_rgb_channels(normalized)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (10_000, IndexError, "There is no image 10000 among the 10,000 test images"),
        (-1, IndexError, "There is no image -1 among the 10,000 test images"),
    ],
)
def test_an_index_out_of_range(
    image: Any, error: type[Exception], message: str, module: CIFAR10DataModule
) -> None:
    with pytest.raises(error, match=message):
        show_rgb_channels(image, module, split="test")


def test_indices_of_a_dataset_and_of_batches() -> None:
    for data in (Numbered(), Streamed()):
        assert pixels(show_rgb_channels(29, data))[0][0, 0].tolist() == [29, 29, 29]
        with pytest.raises(IndexError, match="There is no image 30 among the 30 samples"):
            show_rgb_channels(30, data)
    with pytest.raises(ValueError, match="three channels|shape"):
        show_rgb_channels(0, TensorDataset(torch.rand(2, 2, 4, 4), torch.tensor([0, 1])))


# --- augmentation -------------------------------------------------------------------------------


def test_augmentations_are_the_images_of_the_training_loader(
    module: CIFAR10DataModule, arrays: Arrays
) -> None:
    train = stratified_split(arrays.train_labels, 5000)[0]
    positions = [0, 17_000, 44_999]
    chosen = [int(train[position]) for position in positions]
    fig = show_augmentations(module, indices=chosen, epochs=3)
    rows = np.reshape(pixels(fig), (3, 4, 32, 32, 3))
    assert np.array_equal(rows[:, 0], arrays.train_images[chosen])
    loader: Any = module.train_dataloader()  # shuffled
    order = BatchOrder(45_000, 512, shuffle=True, drop_last=False, seed=module.seed)
    for epoch in range(3):
        loader.set_epoch(epoch)
        at = np.argsort(order.permutation(epoch))[positions]
        parts = enumerate(images for images, _ in loader)  # not all at once: they need 0.5 GB
        found = {512 * n + r: part[r] for n, part in parts for r in at - 512 * n if 0 <= r < 512}
        batches = torch.stack([found[row] for row in at])
        expected = (module.denormalize(batches) * 255).round().byte().permute(0, 2, 3, 1)
        assert np.array_equal(rows[:, 1 + epoch], expected)
    said = texts(fig)
    assert [t for t in said if t.startswith("epoch")] == ["epoch 1", "epoch 2", "epoch 3"]
    assert (
        said[-1] == "random crop with 2 pixels of reflected padding, alternating flip, cutout 8 x 8"
    )
    assert indices(fig) == chosen


def test_the_alternating_flip_is_visible(data_dir: Path, arrays: Arrays) -> None:
    data = CIFAR10DataModule(data_dir, val_split=0, crop_padding=0, flip="alternating")
    rows = np.reshape(pixels(show_augmentations(data, indices=[5, 8], epochs=4)), (2, 5, 32, 32, 3))
    for original, *shown in rows:
        mirrored = [np.array_equal(image, original[:, ::-1]) for image in shown]
        assert mirrored in ([True, False, True, False], [False, True, False, True])
        assert all(m != np.array_equal(i, original) for m, i in zip(mirrored, shown, strict=True))
    assert texts(show_augmentations(data, n=1, epochs=1))[-1] == (
        "no crop, alternating flip, no cutout"
    )


def test_per_sample_transforms_are_those_of_the_loader(data_dir: Path) -> None:
    steps = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    transform = v2.Compose([*steps, CIFAR10DataModule.default_transforms()])
    data = CIFAR10DataModule(data_dir, 500, val_split=49_000, seed=5, train_transforms=transform)
    data.setup()
    loader: Any = data.train_dataloader()
    fig = show_augmentations(data, n=5, epochs=2)
    rows = np.reshape(pixels(fig), (5, 3, 32, 32, 3))
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = torch.cat([images for images, _ in loader])
        seen = (data.denormalize(batches) * 255).round().byte().permute(0, 2, 3, 1)
        every = {image.numpy().tobytes() for image in seen}
        assert all(row[1 + epoch].tobytes() in every for row in rows)
    assert texts(fig)[-1] == "RandomCrop, RandomHorizontalFlip, ToImage, ToDtype, Normalize"


def test_values_outside_the_range_are_clipped(data_dir: Path, arrays: Arrays) -> None:
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    brighter = v2.Compose([to_tensor, v2.Lambda(lambda image: image * 3)])
    data = CIFAR10DataModule(data_dir, val_split=0, train_transforms=brighter)
    original, shown = pixels(show_augmentations(data, indices=[12], epochs=1))
    assert np.array_equal(original, arrays.train_images[12])
    assert np.array_equal(shown, np.minimum(original.astype(int) * 3, 255))
    assert (shown == 255).any()


def test_the_module_is_left_unchanged(module: CIFAR10DataModule) -> None:
    loader: Any = module.train_dataloader()
    state = loader.state_dict()
    before = {name: copy.copy(value) for name, value in vars(module).items()}
    random = torch.get_rng_state()
    show_augmentations(module, n=2, epochs=2)
    show_samples(module, n=2)
    show_samples(DataLoader(Numbered(), shuffle=True), n=2)
    show_samples(loader_with_other_sampler(), n=2)
    after = vars(module)
    assert all(after[name] is before[name] or after[name] == before[name] for name in before)
    assert torch.equal(torch.get_rng_state(), random)
    assert loader.state_dict() == state


def test_an_image_that_is_held_out_is_not_found(module: CIFAR10DataModule, arrays: Arrays) -> None:
    held_out = int(stratified_split(arrays.train_labels, 5000)[1][0])
    with pytest.raises(IndexError, match=f"There is no image {held_out} among the 45,000 training"):
        show_augmentations(module, indices=[held_out])


# --- all of them --------------------------------------------------------------------------------


def test_samples_are_drawn_without_the_class_activation_maps() -> None:
    script = """
import sys, torch
from torch.utils.data import TensorDataset
from cifar_resnet import (
    show_augmentations, show_class_samples, show_rgb_channels, show_samples
)

data = TensorDataset(torch.rand(4, 3, 8, 8), torch.arange(4))
for show in (show_samples, show_class_samples):
    assert len(show(data).axes) == 4
show_rgb_channels(0, data)
unexpected = [name for name in sys.modules if "grad_cam" in name or ".misclassified" in name]
assert not unexpected, unexpected
"""
    subprocess.run([sys.executable, "-c", script], check=True)


ALL = ["show_samples", "show_class_samples", "show_rgb_channels", "show_augmentations"]


@pytest.fixture(params=ALL)
def show(request: pytest.FixtureRequest, module: CIFAR10DataModule) -> Any:
    if request.param == "show_augmentations":
        return partial(show_augmentations, module, n=2, epochs=3)
    if request.param == "show_rgb_channels":
        return partial(show_rgb_channels, 2, Numbered())
    if request.param == "show_class_samples":
        return partial(show_class_samples, Numbered(), per_class=4)
    return partial(show_samples, Numbered(), n=7)


def test_a_given_figure_is_used_and_pyplot_is_not(
    show: Any, tmp_path: Path, data_dir: Path
) -> None:
    given = Figure(figsize=(6, 3))
    left, right = given.subfigures(1, 2)
    assert show(fig=left) is given
    assert left.axes
    assert not right.axes
    sized = show(figsize=(3, 4))
    assert sized.get_size_inches().tolist() == [3, 4]
    sized.savefig(tmp_path / "sized.png")
    with Image.open(tmp_path / "sized.png") as image:
        assert image.size == (450, 600)  # at 150 dots per inch
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


@pytest.mark.parametrize("size", [None, (2.5, 6), (9, 3)])
def test_everything_fits_into_the_figure(show: Any, size: Any) -> None:
    check_inside(show(figsize=size))


def test_a_long_title_fits_into_a_narrow_figure() -> None:
    check_inside(show_class_samples(Numbered(), per_class=1))


def check_inside(fig: Any) -> None:
    canvas = FigureCanvasAgg(fig)
    canvas.draw()
    for text in fig.texts:
        box = text.get_window_extent(canvas.get_renderer())
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= fig.bbox.x1 + 1
        assert box.y1 <= fig.bbox.y1 + 1
    boxes = [axes.get_position() for axes in fig.axes]
    for place, one in enumerate(boxes):
        assert all(not one.overlaps(other) for other in boxes[place + 1 :])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: show_samples([]), ValueError, "The data contain no images"),
        (lambda: show_samples(Module(loaders=2)), ValueError, "has 2 train loaders. Pass one"),
        (
            lambda: show_samples(CIFAR10DataModule(val_split=0), split="val"),
            ValueError, "has no validation images. Pass split='train'",
        ),
        (
            lambda: show_samples(Numbered(), class_names=["one", "two"]),
            ValueError, r"has label 2, but there are 2 class names: one, two\. Pass class_names",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments(call: Any, error: type[Exception], message: str, data_dir: Path) -> None:
    with pytest.raises(error, match=message):
        call()


# --- the script ---------------------------------------------------------------------------------


def test_the_script_draws_the_requested_figures(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    names = ["network", "rgb_channels", "training_curves"]
    for folder, only in (("one", names), ("two", names[:1])):
        command = ["make_figures.py", "--output-dir", str(tmp_path / folder), "--only", *only]
        monkeypatch.setattr(sys, "argv", command)
        make_figures.main()
    one, two = (sorted((tmp_path / folder).iterdir()) for folder in ("one", "two"))
    assert [path.stem for path in one] == names
    assert two[0].read_bytes() == one[0].read_bytes()
    for path in one:
        with Image.open(path) as image:
            assert image.mode in ("P", "RGB")  # not transparent on a dark page
            assert image.width >= 700
    assert "network.png" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["make_figures.py", "--only", "cats"])
    with pytest.raises(SystemExit):
        make_figures.main()


def test_the_site_has_the_figures_of_the_script() -> None:
    made = {f"{name}.png" for name in make_figures.FIGURES}
    there = {path.name for path in (ROOT / "docs" / "figures").glob("*.png")}
    assert made <= there


def test_curves_are_exported_in_the_layout_of_lightning(tmp_path: Path) -> None:
    with SummaryWriter(tmp_path) as writer:
        for epoch, step in enumerate((9, 19)):
            writer.add_scalar("train_loss_epoch", 2 - epoch, step)
            writer.add_scalar("train_loss_step", 1.5 - epoch, step - 4)
            for each in (step, step - 4):
                writer.add_scalar("epoch", epoch, each)
        writer.add_scalar("test_acc", 0.9, 20)
        writer.add_scalar("epoch", 2, 20)
    make_figures.write_curves(tmp_path, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["5", "9", "15", "19"]
    assert [row["train_loss_epoch"] for row in rows] == ["", "2", "", "1"]
    (tmp_path / "csv").mkdir()
    (tmp_path / "out.csv").rename(tmp_path / "csv" / "metrics.csv")
    batch, epochs = show_training_curves(tmp_path / "csv").axes[0].lines
    assert (list(epochs.get_xdata()), list(epochs.get_ydata())) == ([1, 2], [2, 1])
    assert list(batch.get_ydata()) == [1.5, 0.5]
