"""Provide CIFAR-10 as a Lightning data module."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from cifar_resnet import arguments
from cifar_resnet.data import cifar10, sources
from cifar_resnet.data.augment import Augmentation
from cifar_resnet.data.datasets import Images, PerSampleImages, ResidentImages, Rows
from cifar_resnet.data.formats import Arrays
from cifar_resnet.data.label_suspects import label_suspects
from cifar_resnet.data.lifecycle import ResumableDataModule, load_shared
from cifar_resnet.data.loaders import PerSampleLoader, ResidentLoader
from cifar_resnet.data.metadata import Metadata, normalization
from cifar_resnet.data.order import BatchOrder, stratified_split
from cifar_resnet.data.transforms import TransformChecks

__all__ = ["CIFAR10DataModule"]

Transform = Callable[[Any], Any]


class CIFAR10DataModule(ResumableDataModule):
    """Download, verify, split, augment and load CIFAR-10, with or without a Lightning `Trainer`.

    By default the images are *device-resident*: they are stored as uint8 on the trainer's device,
    and a whole batch is cropped, flipped and normalized at once, with different random parameters
    for each image. Batches are float32 images (B, 3, 32, 32) in channels_last memory, normalized to
    mean 0 and standard deviation 1 over the training set, and int64 labels (B,). If per-sample
    transforms are given, a `DataLoader` transforms the images one by one instead.

    The order and the augmentation of an image depend only on seed, epoch and image: they are the
    same on every device, with any number of processes, and after a resume.

    Args:
        data_dir: Folder of the dataset. If None, `$CIFAR10_DIR` if it is set, else the user's cache
            folder.
        batch_size: Number of images per batch on each device, at least 1.
        val_split: Training images to hold out for validation, as a count or as a fraction in
            [0, 1). The same fraction of each class is held out, and the choice is always the same.
        num_workers: Number of worker processes of the `DataLoader`; ignored for device-resident
            images.
        seed: Random seed for shuffling and augmentation, at least 0.
        shuffle: Whether to shuffle the training images in each epoch.
        pin_memory: Whether the `DataLoader` pins its batches when the trainer uses a GPU.
        persistent_workers: Whether the `DataLoader` keeps its worker processes after an epoch;
            ignored without workers.
        drop_last: Whether to drop the incomplete last batch, in training only.
        crop_padding: Pixels of padding on each side before a random crop to 32x32; 0 means no crop.
        flip: `"random"`, `"alternating"` (mirrored in every other epoch) or `"none"`.
        cutout: Side in pixels of a square set to the mean color; 0 means no cutout.
        padding_mode: `"reflect"` or `"constant"` (black).
        train_transforms: Callable from a PIL image to a tensor, or a transform of Albumentations,
            which replaces augmentation and normalization.
        val_transforms: The same for validation.
        test_transforms: The same for test and predict.
        device: Device of device-resident batches when the module is used without a trainer.
        download: Whether `prepare_data` may use the network.

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
    num_classes = 10
    classes = cifar10.CLASSES
    mean = cifar10.MEAN
    std = cifar10.STD

    def __init__(
        self,
        data_dir: str | Path | None = None,
        batch_size: int = 512,
        val_split: int | float = 5000,
        *,
        num_workers: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        pin_memory: bool = True,
        persistent_workers: bool = False,
        drop_last: bool = False,
        crop_padding: int = 4,
        flip: str = "random",
        cutout: int = 0,
        padding_mode: str = "reflect",
        train_transforms: Transform | None = None,
        val_transforms: Transform | None = None,
        test_transforms: Transform | None = None,
        device: torch.device | str = "cpu",
        download: bool = True,
    ) -> None:
        super().__init__()
        self.data_dir = (
            arguments.path("data_dir", data_dir)
            if data_dir is not None
            else sources.default_data_dir()
        )
        self.batch_size = arguments.integer("batch_size", batch_size, minimum=1)
        self.val_split = val_split
        self._held_out = _held_out(val_split)
        self.num_workers = arguments.integer("num_workers", num_workers, minimum=0)
        self.seed = arguments.integer("seed", seed, minimum=0)
        self.shuffle = arguments.boolean("shuffle", shuffle)
        self.pin_memory = arguments.boolean("pin_memory", pin_memory)
        self.persistent_workers = arguments.boolean("persistent_workers", persistent_workers)
        self.drop_last = arguments.boolean("drop_last", drop_last)
        self.augmentation = Augmentation(crop_padding, flip, cutout, padding_mode)
        self.augmentation.check_side(self.dims[1])
        expected = (
            "a callable from a PIL image to a tensor, such as "
            "torchvision.transforms.v2.Compose([...])"
        )
        for name, transform in (
            ("train_transforms", train_transforms),
            ("val_transforms", val_transforms),
            ("test_transforms", test_transforms),
        ):
            arguments.function(name, transform, expected)
        self.train_transforms = train_transforms
        self.val_transforms = val_transforms
        self.test_transforms = test_transforms
        self.device = arguments.device("device", device)
        self.download = arguments.boolean("download", download)
        self._arrays: Arrays | None = None
        self._split: dict[str, NDArray[np.intp]] = {}
        self._checks = TransformChecks()

    # --- Lightning's hooks ----------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Verify CIFAR-10 in `data_dir`, or download it; safe in several processes at once.

        Raises:
            DatasetError: If no source worked, a file is damaged, or the folder cannot be written.
        """
        if self._arrays is None:  # a Trainer calls this before each stage
            sources.prepare(self.data_dir, allow_download=self.download)

    def setup(self, stage: str | None = None) -> None:
        """Read the images and split them, once for all stages.

        Raises:
            DatasetError: If CIFAR-10 is not in `data_dir`, or a file is damaged.
        """
        if self._arrays is None:
            self._arrays = load_shared(self.data_dir)
            train, val = stratified_split(self._arrays.train_labels, self._held_out)
            self._split = {"train": train, "val": val, "test": np.arange(cifar10.TEST_SIZE)}

    def train_dataloader(self) -> ResidentLoader | PerSampleLoader | DataLoader[Any]:
        """Return the training loader.

        In your own loop each iteration is the next epoch, with a new order and new augmentation.
        This also holds across loaders: a new loader continues with the next epoch. A Trainer sets
        the epoch itself.
        """
        loader = self._loader("train", self.train_transforms)
        self._resume(loader)
        return loader

    def val_dataloader(self) -> Any:
        """Return the validation loader, or an empty list if `val_split` is 0."""
        return self._loader("val", self.val_transforms) if self._held_out else []

    def test_dataloader(self) -> ResidentLoader | PerSampleLoader | DataLoader[Any]:
        """Return the loader of the test images, in their order."""
        return self._loader("test", self.test_transforms)

    def predict_dataloader(self) -> ResidentLoader | PerSampleLoader | DataLoader[Any]:
        """Return the loader of the test images, in their order."""
        return self._loader("test", self.test_transforms)

    # --- for users ------------------------------------------------------------------------------

    @property
    def num_samples(self) -> int:
        """Number of training images, without those held out for validation."""
        return cifar10.TRAIN_SIZE - self._held_out

    @classmethod
    def default_transforms(cls) -> Any:
        """Return a transform from a PIL image to a normalized tensor (3, 32, 32)."""
        from torchvision.transforms import v2

        return v2.Compose(
            [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(cls.mean, cls.std)]
        )

    @classmethod
    def denormalize(cls, images: Tensor) -> Tensor:
        """Undo the normalization: float (..., 3, H, W) back to values in [0, 1].

        Raises:
            TypeError: If `images` is not a floating-point tensor.
            ValueError: If it does not have that shape.
        """
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = images.dtype if isinstance(images, Tensor) else repr(images)
            raise TypeError(f"denormalize expects a floating-point tensor, but got {got}.")
        if images.dim() < 3 or images.shape[-3] != 3:
            raise ValueError(
                "denormalize expects images of shape (..., 3, H, W), "
                f"but got {tuple(images.shape)}."
            )
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=images.device).view(3, 1, 1)
            for values in (cls.mean, cls.std)
        )
        return (images.float() * std + mean).clamp(0, 1)

    def __str__(self) -> str:
        feeding = "resident" if self.train_transforms is None else "DataLoader"
        return (
            f"CIFAR10DataModule(data_dir={str(self.data_dir)!r}, train={self.num_samples}, "
            f"val={self._held_out}, test={cifar10.TEST_SIZE}, batch_size={self.batch_size}, "
            f"seed={self.seed}, {feeding})"
        )

    # --- parts ----------------------------------------------------------------------------------

    def _loader(
        self, subset: str, transform: Transform | None
    ) -> ResidentLoader | PerSampleLoader | DataLoader[Any]:
        if self._arrays is None:
            raise RuntimeError(
                "The data are not loaded yet: call prepare_data() and setup() first "
                "(a Trainer does both)."
            )
        trainer = self.trainer
        overfit = trainer is not None and bool(getattr(trainer, "overfit_batches", 0))
        training = subset == "train"
        samples = self._split[subset]
        labels = (self._arrays.test_labels if subset == "test" else self._arrays.train_labels)[
            samples
        ]
        order = BatchOrder(
            len(samples),
            arguments.integer("batch_size", self.batch_size, minimum=1),
            # `overfit_batches` repeats the same few batches
            shuffle=self.shuffle and training and not overfit,
            drop_last=self.drop_last and training,
            seed=self.seed,
            rank=trainer.global_rank if trainer is not None else None,
            world_size=trainer.world_size if trainer is not None else None,
        )
        counter = self._epochs if training else None
        metadata = Metadata(
            tuple(self.classes),
            (self.mean, self.std) if transform is None else normalization(transform),
            frozenset(label_suspects()) if subset == "test" else frozenset(),
        )
        if transform is None:
            resident = self._resident_images(subset, labels, samples, metadata)
            self._checks.check(subset, None, lambda: [resident[0][0]])
            size = self._dataset_size(subset)
            return ResidentLoader(resident, size, order, seed=self.seed, counter=counter)
        dataset = PerSampleImages(
            self._images(subset), labels, samples, transform, seed=self.seed, metadata=metadata
        )
        self._checks.check(subset, transform, dataset.first)
        on_gpu = trainer is not None and trainer.strategy.root_device.type == "cuda"
        options: dict[str, Any] = {
            "num_workers": self.num_workers,
            "pin_memory": self.pin_memory and on_gpu,
            "persistent_workers": self.persistent_workers and self.num_workers > 0,
        }
        if overfit:
            # Lightning replaces any sampler except a sequential one here
            return DataLoader(dataset, batch_size=self.batch_size, **options)
        return PerSampleLoader(dataset, order, counter, **options)

    def _resident_images(
        self, subset: str, labels: NDArray[np.int64], samples: NDArray[np.intp], metadata: Metadata
    ) -> ResidentImages:
        """Return the subset's images on the trainer's device, cached because loaders are
        re-created often.
        """
        trainer = self.trainer
        device = trainer.strategy.root_device if trainer is not None else self.device
        augmentation = self.augmentation if subset == "train" else None
        key = (subset, device, augmentation)
        if key not in self._resident:
            for other in [other for other in self._resident if other[0] == subset]:
                self._resident.pop(other).release()
            self._resident[key] = ResidentImages(
                self._images(subset), labels, samples, (self.mean, self.std),
                augmentation=augmentation, device=device, metadata=metadata,
            )  # fmt: skip
        self._resident[key].stored()  # rather than when the first batch is taken
        return self._resident[key]

    def _images(self, subset: str) -> Images:
        assert self._arrays is not None
        if subset == "test":
            return self._arrays.test_images
        return Rows(self._arrays.train_images, self._split[subset])

    @staticmethod
    def _dataset_size(subset: str) -> int:
        return cifar10.TEST_SIZE if subset == "test" else cifar10.TRAIN_SIZE


def _held_out(val_split: Any) -> int:
    """Return the number of validation images that `val_split` requests."""
    size = cifar10.TRAIN_SIZE
    expected = (
        f"val_split must be a count in [0, {size}) or a fraction in [0, 1) of the {size} training "
        f"images, but got {val_split!r}."
    )
    if arguments.is_integer(val_split):
        count = int(val_split)
    elif isinstance(val_split, Real) and not isinstance(val_split, bool):
        fraction = float(val_split)
        if not 0 <= fraction < 1:
            raise ValueError(expected)
        count = round(fraction * size)
    else:
        raise TypeError(expected)
    if not 0 <= count < size:
        raise ValueError(expected)
    return count
