"""Describe the images of a data module before they are read, and read them."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.data.class_names import as_class_names
from cifar_resnet.data.formats import Arrays
from cifar_resnet.data.inputs import Labeled, as_labeled
from cifar_resnet.data.metadata import metadata_of
from cifar_resnet.data.selection import Population
from cifar_resnet.data.statistics import channel_statistics
from cifar_resnet.normalization import Statistics

__all__ = ["ImageSet", "InMemory"]


class ImageSet(ABC):
    """Training and test images of one size.

    Attributes:
        population: The classes and the number of images of each.
        dims: Channels, height and width of the images.
        pairs: Similar classes, for asymmetric label noise.
        suspects: Indices of test images whose label is doubtful.
    """

    population: Population
    dims: tuple[int, int, int]
    pairs: Mapping[str, str] | None = None
    suspects: frozenset[int] = frozenset()

    def prepare(self) -> None:
        """Make sure that the images can be read; several processes may call this at once."""
        return

    @abstractmethod
    def read(self) -> Arrays:
        """Return the images and labels."""

    @property
    @abstractmethod
    def statistics(self) -> Statistics:
        """Mean and standard deviation of each channel over all training images."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A string that differs for other training images or labels."""


class InMemory(ImageSet):
    """Images that are passed as arrays or datasets; see `ImageDataModule`."""

    def __init__(self, train: Any, test: Any, classes: Any) -> None:
        names = as_class_names(classes)
        if names is None and not isinstance(train, list | tuple):
            names = metadata_of(train).class_names
        images, labels = as_labeled("train", train)
        if test is None:
            held = Labeled(images[:0], labels[:0])
        else:
            held = as_labeled("test", test)
            if held.images.shape[1:] != images.shape[1:]:
                raise ValueError(
                    "The images of train and test must have the same size, but have the shapes "
                    f"{images.shape[1:]} and {held.images.shape[1:]} (height, width, channels)."
                )
        self._arrays = Arrays(images, labels, *held)
        names = names or tuple(map(str, range(max(int(labels.max()) + 1, 1))))
        counts = (_counts("train", labels, names), _counts("test", held.labels, names))
        self.population = Population(names, *counts)
        _check_classes(self.population)
        height, width, channels = images.shape[1:]
        self.dims = (channels, height, width)

    def read(self) -> Arrays:
        return self._arrays

    @cached_property
    def statistics(self) -> Statistics:
        return channel_statistics(self._arrays.train_images)

    @cached_property
    def fingerprint(self) -> str:
        images, labels = self._arrays[:2]
        digest = hashlib.sha256(labels.astype("<i8").tobytes())
        digest.update(images.data)
        shape = " x ".join(map(str, images.shape))
        return f"{shape} (SHA-256 {digest.hexdigest()[:16]})"


def _counts(name: str, labels: NDArray[np.int64], names: tuple[str, ...]) -> tuple[int, ...]:
    """Return the number of images of each class."""
    outside = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(outside):
        raise ValueError(
            f"The labels of {name} must be from 0 to {len(names) - 1}, one for each of the "
            f"{len(names)} classes, but image {outside[0]} has the label {labels[outside[0]]}. "
            "Number the classes from 0, and pass the names of all classes."
        )
    counts: list[int] = np.bincount(labels, minlength=len(names)).tolist()
    return tuple(counts)


def _check_classes(population: Population) -> None:
    missing = [number for number, count in enumerate(population.train) if not count]
    if missing:
        listed = ", ".join(f"{number} ({population.names[number]!r})" for number in missing[:10])
        raise ValueError(
            f"train has no images of {len(missing)} of the {len(population.names)} classes: "
            f"{listed}{', ...' if len(missing) > 10 else ''}. Add images, or leave out these "
            "classes and number the others from 0."
        )
    if len(population.names) < 2:
        raise ValueError("train has images of only one class; expected at least two.")
