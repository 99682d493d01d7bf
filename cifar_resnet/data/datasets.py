"""Provide the images and labels of a subset as datasets, resident or transformed one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from cifar_resnet.data.augment import Augmentation, ImageBank
from cifar_resnet.data.memory import check_memory
from cifar_resnet.data.metadata import Metadata, normalization
from cifar_resnet.data.origin import Origin
from cifar_resnet.data.transforms import as_function, generators, seeded

__all__ = ["PerSampleImages", "ResidentImages", "Rows", "SampleKey", "on_cpu"]

_TRANSFORM_STREAM = 4
_CHECKED = 8  # images, so that a transform that only flips shows whether it can be repeated

SampleKey = tuple[int, int]  # epoch, position in the subset (see `BalancedOrder` for repetitions)


@dataclass(frozen=True)
class Rows:
    """Rows of an array, which are copied only when they are read."""

    array: NDArray[np.uint8]
    rows: NDArray[np.intp]

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        rows: NDArray[np.uint8] = self.array[self.rows[key]]
        return rows


Images = NDArray[np.uint8] | Rows  # (N, H, W, C)


class _Labeled(Dataset[Any]):
    """Images with labels and metadata.

    Attributes:
        samples: Positions of the images in the whole dataset (N,).
        metadata: Class names, normalization and label suspects, for the analysis of errors.
        origin: The data module of training images, for a record of the training.
    """

    origin: Origin | None = None

    def __init__(
        self,
        images: Images,
        labels: NDArray[np.int64],
        samples: NDArray[np.intp],
        metadata: Metadata,
    ) -> None:
        self.samples = samples
        self.metadata = metadata
        self._images = images
        self._labels = labels

    def __len__(self) -> int:
        return len(self._labels)

    @cached_property
    def targets(self) -> list[int]:
        """The labels, as in torchvision's datasets."""
        labels: list[int] = self._labels.tolist()
        return labels

    @property
    def classes(self) -> list[str]:
        """The names of the classes, as in torchvision's datasets; empty if they are unknown."""
        return list(self.metadata.class_names or ())

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"origin": None}  # worker processes do not need it


class ResidentImages(_Labeled):
    """Images that are stored on one device and augmented in batches.

    `dataset[3]` is the fourth image, float32 (C, H, W), normalized but not augmented, and its label
    as an integer. It is computed on the CPU, so a `DataLoader` with workers can be used as well.

    Args:
        images: uint8 images (N, H, W, C).
        labels: Their labels (N,).
        samples: Their positions in the whole dataset (N,). The augmentation of an image depends on
            this position, so it is the same for every split.
        statistics: Mean and standard deviation of each channel.
        augmentation: Augmentation of the batches. If None, images are only normalized.
        device: Device of the batches.
        metadata: Class names and label suspects. If None, only the normalization is known.
    """

    def __init__(
        self,
        images: Images,
        labels: NDArray[np.int64],
        samples: NDArray[np.intp],
        statistics: tuple[Sequence[float], Sequence[float]],
        *,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
        metadata: Metadata | None = None,
    ) -> None:
        super().__init__(images, labels, samples, metadata or Metadata())
        self.augmentation = augmentation
        self.device = torch.device(device)
        self._statistics = statistics
        self._stored: tuple[ImageBank, Tensor] | None = None

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        image = ImageBank(self._images[position][None], *self._statistics)
        return image.batch(np.zeros(1, dtype=np.intp))[0], int(self._labels[position])

    def stored(self) -> tuple[ImageBank, Tensor]:
        """Return the images and the labels on the device; they are stored there if they are not."""
        if self._stored is None:
            images = self._images[:]
            if self.device.type == "cpu" and self.augmentation is not None:
                needed = self.augmentation.stored_bytes(images.shape)
                check_memory(needed, f"The {len(images):,} images with their padding and mirrors")
            bank = ImageBank(
                images,
                *self._statistics,
                augmentation=self.augmentation,
                device=self.device,
            )
            self._stored = bank, torch.from_numpy(self._labels).to(self.device)
        return self._stored

    def release(self) -> None:
        """Free the memory on the device until the images are needed again."""
        self._stored = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_stored": None}


class PerSampleImages(_Labeled):
    """Apply a transform to PIL images, one by one or for a list of keys.

    `dataset[3]` is the fourth image, with whatever randomness the transform draws, and its label. A
    list of (epoch, position) keys returns a stacked batch: the global random generators and those
    of the transform are seeded for each sample and restored afterwards.

    Args:
        images: uint8 images (N, H, W, C).
        labels: Their labels (N,).
        samples: Their positions in the whole dataset (N,), which determine the seeds.
        transform: Callable from a PIL image to a tensor, or a transform of Albumentations.
        seed: Random seed.
        metadata: Class names, normalization and label suspects. If None, only the normalization by
            the transform is known.
    """

    def __init__(
        self,
        images: Images,
        labels: NDArray[np.int64],
        samples: NDArray[np.intp],
        transform: Callable[..., Any],
        *,
        seed: int,
        metadata: Metadata | None = None,
    ) -> None:
        metadata = metadata or Metadata(statistics=normalization(transform))
        super().__init__(images, labels, samples, metadata)
        self.transform = transform
        self._seed = seed

    def __getitem__(self, key: int | list[SampleKey]) -> Any:
        if isinstance(key, list):
            with on_cpu():
                return torch.utils.data.default_collate(self.items(key))
        return self._item(as_function(self.transform), key)

    def items(self, keys: list[SampleKey]) -> list[tuple[Any, int]]:
        """Return the transformed images and labels of these (epoch, position) keys."""
        function, own = as_function(self.transform), generators(self.transform)
        result = []
        with on_cpu(), seeded(own) as seed:
            for epoch, position in keys:
                repeat, position = divmod(position, len(self))
                own_key = [repeat] if repeat else []
                sample = int(self.samples[position])
                seed([self._seed, _TRANSFORM_STREAM, epoch, sample, *own_key])
                result.append(self._item(function, position))
        return result

    def first(self) -> list[Any]:
        """Return the first images as they are in the first epoch."""
        keys = [(0, position) for position in range(min(_CHECKED, len(self)))]
        return [image for image, _ in self.items(keys)]

    def _item(self, function: Callable[[Any], Any], position: int) -> tuple[Any, int]:
        from PIL import Image

        pixels = self._images[position]
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        return function(image), int(self._labels[position])


def on_cpu() -> AbstractContextManager[Any]:
    """Create tensors and random numbers on the CPU, even if the user set another default device."""
    # Only if needed, because it slows down every call of torch.
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
