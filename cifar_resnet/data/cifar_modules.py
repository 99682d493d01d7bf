"""Provide CIFAR-10 and CIFAR-100 as Lightning data modules."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor

from cifar_resnet import arguments
from cifar_resnet.data import cifar10, cifar100, cifar100_files, sources
from cifar_resnet.data.formats import Arrays
from cifar_resnet.data.label_suspects import label_suspects
from cifar_resnet.data.module import ImageDataModule
from cifar_resnet.data.options import Options, with_options_of
from cifar_resnet.data.selection import Population
from cifar_resnet.data.sets import ImageSet
from cifar_resnet.data.sharing import load_shared, shared
from cifar_resnet.data.statistics import (
    channel_statistics,
    denormalized,
    normalizing_transform,
)
from cifar_resnet.normalization import Statistics

__all__ = ["CIFAR10DataModule", "CIFAR100DataModule"]


@dataclass(frozen=True)
class _Stored(ImageSet):
    """A dataset in a folder, or downloaded to it."""

    data_dir: Path
    download: bool


class _StoredDataModule(ImageDataModule):
    """A data module of one dataset in a folder."""

    _set: _Stored

    def __init__(
        self, images: _Stored, batch_size: int, val_split: int | float, **options: Unpack[Options]
    ) -> None:
        super().__init__(
            images,
            None,
            classes=None,
            mean=None,
            std=None,
            batch_size=batch_size,
            val_split=val_split,
            **options,
        )

    @property
    def data_dir(self) -> Path:
        """Folder of the dataset."""
        return self._set.data_dir

    @property
    def download(self) -> bool:
        """Whether `prepare_data` may use the network."""
        return self._set.download

    def _origin(self) -> list[str]:
        return [f"data_dir={str(self.data_dir)!r}"]


@dataclass(frozen=True)
class _CIFAR10(_Stored):
    population = Population(
        cifar10.CLASSES,
        (cifar10.TRAIN_SIZE // 10,) * 10,
        (cifar10.TEST_SIZE // 10,) * 10,
    )
    dims = (3, 32, 32)
    pairs = cifar10.ASYMMETRIC_PAIRS
    statistics = (cifar10.MEAN, cifar10.STD)
    fingerprint = "CIFAR-10"  # its files are verified
    suspects = frozenset(label_suspects())

    def prepare(self) -> None:
        sources.prepare(self.data_dir, allow_download=self.download)

    def read(self) -> Arrays:
        return load_shared(self.data_dir)


@with_options_of(ImageDataModule)
class CIFAR10DataModule(_StoredDataModule):
    """Download, verify, split, augment and load CIFAR-10, with or without a Lightning `Trainer`.

    An `ImageDataModule` of the 50,000 training and 10,000 test images of CIFAR-10. Batches are
    float32 images (B, 3, 32, 32) and int64 labels (B,).

    Args:
        data_dir: Folder of the dataset. If None, `$CIFAR10_DIR` if it is set, else the user's cache
            folder.
        batch_size: Number of images per batch on each device, at least 1.
        val_split: Training images to hold out for validation, as a count or as a fraction in
            [0, 1). The same fraction of each class is held out, and the choice is always the same.
        download: Whether `prepare_data` may use the network.
        **options: Options of `ImageDataModule`. Asymmetric label noise changes truck to automobile,
            bird to airplane, deer to horse, cat to dog and dog to cat if there are no
            `label_noise_pairs`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range.

    Examples:
        >>> from cifar_resnet import CIFAR10DataModule
        >>> data = CIFAR10DataModule(batch_size=500)
        >>> data.prepare_data()
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, labels.shape
        (torch.Size([500, 3, 32, 32]), torch.Size([500]))
        >>> data.num_samples, len(data.val_dataloader())
        (45000, 10)
        >>> data.classes[3]
        'cat'
    """

    dims = (3, 32, 32)
    classes: tuple[str, ...] = cifar10.CLASSES
    num_classes = len(cifar10.CLASSES)
    mean = cifar10.MEAN
    std = cifar10.STD

    def __init__(
        self,
        data_dir: str | Path | None = None,
        batch_size: int = 512,
        val_split: int | float = 5000,
        *,
        download: bool = True,
        **options: Unpack[Options],
    ) -> None:
        folder = _as_folder(data_dir, "CIFAR-10")
        images = _CIFAR10(folder, arguments.boolean("download", download))
        super().__init__(images, batch_size, val_split, **options)

    def prepare_data(self) -> None:
        """Verify CIFAR-10 in `data_dir`, or download it; safe in several processes at once.

        Raises:
            DatasetError: If no source worked, a file is damaged, or the folder cannot be written.
        """
        super().prepare_data()

    @classmethod
    def default_transforms(cls) -> Any:
        """Return a transform from a PIL image to a normalized tensor (3, 32, 32)."""
        return normalizing_transform((cls.mean, cls.std))

    @classmethod
    def denormalize(cls, images: Tensor) -> Tensor:
        """Undo the normalization: float (..., 3, H, W) back to values in [0, 1].

        Raises:
            TypeError: If `images` is not a floating-point tensor.
            ValueError: If it does not have that shape.
        """
        return denormalized(images, (cls.mean, cls.std))


@dataclass(frozen=True)
class _CIFAR100(_Stored):
    labels: str

    dims = (3, 32, 32)

    @property
    def population(self) -> Population:  # type: ignore[override]
        names = cifar100.CLASSES if self.labels == "fine" else cifar100.SUPERCLASSES
        counts = (size // len(names) for size in (cifar100.TRAIN_SIZE, cifar100.TEST_SIZE))
        train, test = ((count,) * len(names) for count in counts)
        return Population(names, train, test)

    @cached_property
    def statistics(self) -> Statistics:
        return channel_statistics(self.read().train_images)

    @property
    def fingerprint(self) -> str:
        return f"CIFAR-100 ({self.labels} labels)"

    def prepare(self) -> None:
        cifar100_files.prepare(self.data_dir, allow_download=self.download)

    def read(self) -> Arrays:
        return Arrays(*shared((self.fingerprint, self.data_dir.resolve()), self._read))

    def _read(self) -> Arrays:
        train, train_fine, train_coarse, test, test_fine, test_coarse = cifar100_files.load(
            self.data_dir
        )
        if self.labels == "fine":
            return Arrays(train, train_fine, test, test_fine)
        return Arrays(train, train_coarse, test, test_coarse)


@with_options_of(ImageDataModule)
class CIFAR100DataModule(_StoredDataModule):
    """Download, verify, split, augment and load CIFAR-100, with or without a Lightning `Trainer`.

    An `ImageDataModule` of the 50,000 training and 10,000 test images of CIFAR-100, with 100
    classes or their 20 superclasses. The mean and standard deviation are computed from the images.

    Args:
        data_dir: Folder of the dataset. If None, `$CIFAR100_DIR` if it is set, else the user's
            cache folder.
        batch_size: Number of images per batch on each device, at least 1.
        val_split: As for `ImageDataModule`.
        labels: `"fine"`, the 100 classes, or `"coarse"`, the 20 superclasses.
        download: Whether `prepare_data` may use the network.
        **options: Options of `ImageDataModule`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range.

    Examples:
        >>> from cifar_resnet import CIFAR100DataModule
        >>> data = CIFAR100DataModule(labels="coarse")
        >>> data.num_classes, data.classes[14]
        (20, 'people')
    """

    def __init__(
        self,
        data_dir: str | Path | None = None,
        batch_size: int = 512,
        val_split: int | float = 0.1,
        *,
        labels: str = "fine",
        download: bool = True,
        **options: Unpack[Options],
    ) -> None:
        folder = _as_folder(data_dir, "CIFAR-100")
        images = _CIFAR100(
            folder,
            arguments.boolean("download", download),
            arguments.choice("labels", labels, ("fine", "coarse")),
        )
        super().__init__(images, batch_size, val_split, **options)

    def prepare_data(self) -> None:
        """Download CIFAR-100 to `data_dir` if it is not there; safe in several processes at once.

        Raises:
            DatasetError: If no source worked, a file is damaged, or the folder cannot be written.
        """
        super().prepare_data()


def _as_folder(data_dir: str | Path | None, dataset: str) -> Path:
    if data_dir is not None:
        return arguments.path("data_dir", data_dir)
    return sources.default_data_dir(dataset)
