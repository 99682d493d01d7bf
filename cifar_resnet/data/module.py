"""Provide CIFAR-10 as a Lightning data module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from cifar_resnet import arguments
from cifar_resnet.data import cifar10, sources
from cifar_resnet.data.augment import Augmentation
from cifar_resnet.data.corruption import LabelNoise
from cifar_resnet.data.datasets import PerSampleImages, ResidentImages
from cifar_resnet.data.label_suspects import label_suspects
from cifar_resnet.data.loaders import PerSampleLoader, ResidentLoader
from cifar_resnet.data.metadata import Metadata, normalization
from cifar_resnet.data.mixing import Mixing, check_mix
from cifar_resnet.data.order import BatchOrder
from cifar_resnet.data.sampling import BalancedOrder
from cifar_resnet.data.selection import Selection
from cifar_resnet.data.splits import SplitDataModule
from cifar_resnet.data.transforms import TransformChecks

__all__ = ["CIFAR10DataModule"]

Transform = Callable[[Any], Any]


class CIFAR10DataModule(SplitDataModule):
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
        train_indices: Indices of exactly the images to train on, of the 50,000 training images.
            `val_split` is then held out of the others. Not with `subset`, `folds`, `imbalance`.
        subset: Training images to use, as a count or as a fraction in (0, 1] of those that are
            left by the other arguments; the same fraction of each class. A smaller subset is part
            of a larger one.
        class_subset: Names or numbers of at least two classes, in all splits. Labels are numbered
            from 0 in this order, and `classes` and `num_classes` follow. `val_split` counts the
            images of all ten classes.
        folds: `(k, of)`: hold out fold `k`, counted from 0, of a stratified `of`-fold
            cross-validation instead of `val_split`.
        imbalance: Ratio between the largest class, the first one, and the smallest, the last one.
            The training images of the classes fall exponentially. 1 means no change.
        sampling: `"uniform"` returns each training image once in each epoch; `"balanced"` draws as
            many with replacement, each class equally often on average.
        label_noise: Probability in [0, 1] that a training label is replaced by a wrong one.
        label_noise_kind: `"symmetric"`, any other class; or `"asymmetric"`, a similar class (truck
            to automobile, bird to airplane, deer to horse, cat to dog, dog to cat).
        label_noise_seed: Random seed of the label noise, at least 0.
        mix: `"mixup"`, `"cutmix"`, `"both"` (one of them for each batch) or None. Mixed training
            batches have float32 class probabilities (B, num_classes) instead of labels.
        mix_alpha: Parameter of the beta distribution of the weights in `mix`, greater than 0.
        mix_probability: Probability in [0, 1] that `mix` changes a batch.

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
        train_indices: Sequence[int] | None = None,
        subset: int | float | None = None,
        class_subset: Sequence[int | str] | None = None,
        folds: tuple[int, int] | None = None,
        imbalance: float = 1,
        sampling: str = "uniform",
        label_noise: float = 0.0,
        label_noise_kind: str = "symmetric",
        label_noise_seed: int = 0,
        mix: str | None = None,
        mix_alpha: float = 1.0,
        mix_probability: float = 1.0,
    ) -> None:
        super().__init__(
            arguments.path("data_dir", data_dir)
            if data_dir is not None
            else sources.default_data_dir(),
            Selection(val_split, train_indices, subset, class_subset, folds, imbalance),
            LabelNoise(label_noise, label_noise_kind, label_noise_seed),
        )
        self.batch_size = arguments.integer("batch_size", batch_size, minimum=1)
        self.val_split = val_split
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
        self.sampling = arguments.choice("sampling", sampling, ("uniform", "balanced"))
        if sampling == "balanced" and not shuffle:
            raise ValueError(
                "sampling='balanced' draws the training images at random, but shuffle is False. "
                "Leave out one of them."
            )
        check_mix(mix, mix_alpha, mix_probability)
        self.mix, self.mix_alpha, self.mix_probability = mix, mix_alpha, mix_probability
        self._checks = TransformChecks()

    # --- Lightning's hooks ----------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Verify CIFAR-10 in `data_dir`, or download it; safe in several processes at once.

        Raises:
            DatasetError: If no source worked, a file is damaged, or the folder cannot be written.
        """
        if self._arrays is None:  # a Trainer calls this before each stage
            sources.prepare(self.data_dir, allow_download=self.download)

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
        """Return the validation loader, or an empty list if no images are held out."""
        return self._loader("val", self.val_transforms) if self._selection.sizes[1] else []

    def test_dataloader(self) -> ResidentLoader | PerSampleLoader | DataLoader[Any]:
        """Return the loader of the test images, in their order."""
        return self._loader("test", self.test_transforms)

    def predict_dataloader(self) -> ResidentLoader | PerSampleLoader | DataLoader[Any]:
        """Return the loader of the test images, in their order."""
        return self._loader("test", self.test_transforms)

    # --- copies and text ------------------------------------------------------------------------

    def __str__(self) -> str:
        train, val = self._selection.sizes
        options = self._selection.options() | self._noise.options()
        options |= {"sampling": self.sampling} if self.sampling != "uniform" else {}
        options |= {"mix": self.mix} if self.mix is not None else {}
        parts = [
            f"data_dir={str(self.data_dir)!r}, train={train}, val={val}, "
            f"test={self._selection.test_size}, batch_size={self.batch_size}, seed={self.seed}",
            "resident" if self.train_transforms is None else "DataLoader",
            *(f"{name}={value!r}" for name, value in options.items()),
        ]
        return f"CIFAR10DataModule({', '.join(parts)})"

    __repr__ = __str__

    # --- parts ----------------------------------------------------------------------------------

    def _loader(
        self, subset: str, transform: Transform | None
    ) -> ResidentLoader | PerSampleLoader | DataLoader[Any]:
        labels, samples = self.labels(subset), self.indices(subset)
        trainer = self.trainer
        overfit = trainer is not None and bool(getattr(trainer, "overfit_batches", 0))
        training = subset == "train"
        varies = training and not overfit  # `overfit_batches` repeats the same few batches
        batches: dict[str, Any] = {
            "batch_size": arguments.integer("batch_size", self.batch_size, minimum=1),
            "shuffle": self.shuffle and varies,
            "drop_last": self.drop_last and training,
            "seed": self.seed,
            "rank": trainer.global_rank if trainer is not None else None,
            "world_size": trainer.world_size if trainer is not None else None,
        }
        order = (
            BalancedOrder(labels, **batches)
            if varies and self.sampling == "balanced"
            else BatchOrder(len(samples), **batches)
        )
        mixing = self._mixing() if varies else None
        counter = self._epochs if training else None
        metadata = Metadata(
            tuple(self.classes),
            (self.mean, self.std) if transform is None else normalization(transform),
            frozenset(label_suspects()) if subset == "test" else frozenset(),
        )
        if transform is None:
            resident = self._resident_images(subset, labels, samples, metadata)
            self._checks.check(subset, None, lambda: [resident[0][0]])
            return ResidentLoader(
                resident,
                self._dataset_size(subset),
                order,
                seed=self.seed,
                counter=counter,
                mixing=mixing,
            )
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
        return PerSampleLoader(dataset, order, counter, mixing, **options)

    def _mixing(self) -> Mixing | None:
        if self.mix is None:
            return None
        options = self.mix, self.mix_alpha, self.mix_probability
        check_mix(*options)  # they may have been changed
        return Mixing(*options, self.num_classes, self.seed)

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

    @staticmethod
    def _dataset_size(subset: str) -> int:
        return cifar10.TEST_SIZE if subset == "test" else cifar10.TRAIN_SIZE
