"""Take training and test images out of torchvision's and Hugging Face's datasets."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from cifar_resnet import arguments
from cifar_resnet.data.batches import image_and_label, is_picture
from cifar_resnet.data.folders import as_size
from cifar_resnet.data.image_files import as_color, central_part
from cifar_resnet.data.metadata import IMAGES, LABELS

__all__ = ["huggingface_splits", "resized", "torchvision_splits"]

_LABEL_COLUMNS = (*LABELS, "coarse_label")
_TEST_SPLITS = ("test", "validation", "val")


def torchvision_splits(dataset: Any, root: Any, test: Any, *, download: bool) -> tuple[Any, Any]:
    """Return the training and the test set; see `ImageDataModule.from_torchvision`."""
    arguments.boolean("download", download)
    if not isinstance(dataset, str):
        if root is not None:
            raise ValueError(
                f"root={root!r} has no effect, because the dataset is not given by its name."
            )
        return dataset, test
    from torchvision import datasets

    if test is not None:
        raise ValueError(f"test has no effect, because {dataset!r} has test images of its own.")
    kind: Any = getattr(datasets, dataset, None)
    options = inspect.signature(kind).parameters if inspect.isclass(kind) else {}
    if "train" in options and options["train"].default is True:
        splits: list[dict[str, Any]] = [{"train": True}, {"train": False}]
    elif "split" in options and options["split"].default == "train":
        splits = [{"split": "train"}, {"split": "test"}]
    else:
        raise ValueError(
            "dataset must be the name of a dataset of torchvision with a training and a test set, "
            f"such as 'CIFAR100', 'FashionMNIST', 'SVHN', 'STL10' or 'MNIST', but got {dataset!r}. "
            "Create other datasets yourself and pass them."
        )
    folder = arguments.path("root", root, "the folder of the dataset")
    train, held = (kind(folder, download=download, **split) for split in splits)
    return train, held


def huggingface_splits(
    dataset: Any, test: Any, image: str | None, label: str | None
) -> tuple[Any, Any, tuple[str, ...] | None]:
    """Return the training set, the test set and the class names.

    See `ImageDataModule.from_huggingface`.
    """
    if isinstance(dataset, Mapping):
        if test is not None:
            raise ValueError("test has no effect, because the dataset has splits.")
        if "train" not in dataset:
            raise ValueError(
                f"dataset must have a split 'train', but has {', '.join(map(repr, dataset))}. "
                "Pass two of its splits, from_huggingface(train, test)."
            )
        test = next((dataset[name] for name in _TEST_SPLITS if name in dataset), None)
        dataset = dataset["train"]
    columns = getattr(dataset, "column_names", None)
    if not isinstance(columns, list) or not hasattr(dataset, "features"):
        raise TypeError(
            "dataset must be a Dataset or DatasetDict of the library datasets, but got "
            f"{type(dataset).__name__}."
        )
    image = _column("image", image, columns, IMAGES)
    label = _column("label", label, columns, _LABEL_COLUMNS)
    names = getattr(dataset.features.get(label), "names", None)
    pairs = [None if part is None else _Columns(part, image, label) for part in (dataset, test)]
    return (*pairs, tuple(names) if names else None)  # type: ignore[return-value]


def resized(dataset: Any, size: Any) -> Any:
    """Return a dataset of PIL images of one size, if `size` is not None."""
    return dataset if size is None or dataset is None else _Resized(dataset, as_size(size))


class _Columns:
    """Two columns of a Hugging Face dataset, as (image, label)."""

    def __init__(self, dataset: Any, image: str, label: str) -> None:
        self.dataset, self.image, self.label = dataset, image, label

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        row = self.dataset[index]
        return row[self.image], row[self.label]


class _Resized:
    """The largest central part of each image, scaled to one size; gray images remain gray."""

    def __init__(self, dataset: Any, size: tuple[int, int]) -> None:
        self.dataset, self.size = dataset, size

    @property
    def classes(self) -> Any:
        return getattr(self.dataset, "classes", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        image, label = image_and_label(self.dataset[index])
        if not is_picture(image):
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
                raise TypeError(
                    f"size={self.size} needs PIL images or uint8 arrays (H, W, C), but image "
                    f"{index} is {type(image).__name__}. Resize the images in the dataset."
                )
            image = Image.fromarray(image)
        color = image if image.mode in ("L", "RGB") else as_color(image)
        return central_part(color, self.size), label


def _column(name: str, given: Any, columns: list[str], known: Iterable[str]) -> str:
    """Return the name of a column, given or the only one of the known names."""
    found = [column for column in known if column in columns] if given is None else [given]
    if len(found) != 1 or found[0] not in columns:
        raise ValueError(
            f"{name} must be the name of one of the columns {', '.join(map(repr, columns))}, but "
            + (f"got {given!r}." if given is not None else f"{found or 'none'} could be it.")
            + f" Pass {name}, such as {name}={columns[0]!r}."
        )
    return found[0]
