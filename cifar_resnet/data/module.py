"""Provide any small image dataset as a Lightning data module."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch

from cifar_resnet import arguments
from cifar_resnet.data.augment import Augmentation
from cifar_resnet.data.corruption import LabelNoise, as_pairs
from cifar_resnet.data.folders import read_folders
from cifar_resnet.data.image_indices import digest
from cifar_resnet.data.libraries import (
    huggingface_splits,
    resized,
    torchvision_splits,
)
from cifar_resnet.data.loading import LoadingDataModule, Transform
from cifar_resnet.data.mixing import check_mix
from cifar_resnet.data.sampling import check_sampling
from cifar_resnet.data.selection import Selection
from cifar_resnet.data.sets import ImageSet, InMemory
from cifar_resnet.data.transforms import TransformChecks
from cifar_resnet.normalization import Statistics, as_statistics

__all__ = ["ImageDataModule"]

_TRANSFORM = (
    "a callable from a PIL image to a tensor, such as torchvision.transforms.v2.Compose([...])"
)


class ImageDataModule(LoadingDataModule):
    """Split, augment and load small images that fit in memory, with or without a `Trainer`.

    By default the images are *device-resident*: they are stored as uint8 on the trainer's device,
    and a whole batch is cropped, flipped and normalized at once, with different random parameters
    for each image. Batches are float32 images (B, C, H, W) in channels_last memory, normalized to
    mean 0 and standard deviation 1 over the training set, and int64 labels (B,). If per-sample
    transforms are given, a `DataLoader` transforms the images one by one instead.

    The order and the augmentation of an image depend only on seed, epoch and image: they are the
    same on every device, with any number of processes, and after a resume.

    Args:
        train: Training images and labels: a pair of arrays or tensors, or a map-style dataset of
            (image, label). All images have one size, not necessarily square, and 1 to 4 channels.
            Images are uint8 arrays (N, H, W, C) or (N, H, W), tensors (N, C, H, W), or PIL images.
            Floating-point images must be in [0, 1] and are converted to uint8. Labels are integers
            from 0. Arrays of uint8 are not copied, so do not change them.
        test: The same for the test images. If None, there are none.
        classes: Names of the classes, in the order of the labels. If None, those of the dataset, or
            the numbers.
        mean: Mean of each channel to subtract from images in [0, 1], or one for all channels. If
            None, that of all training images, including those held out.
        std: Standard deviation of each channel to divide by, greater than 0.
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
        crop_padding: Pixels of padding on each side before a random crop to the image's size; 0
            means no crop. If None, an eighth of the shorter side: 4 for images of 32 pixels.
        flip: `"random"`, `"alternating"` (mirrored in every other epoch) or `"none"`.
        cutout: Side in pixels of a square set to the mean color; 0 means no cutout.
        padding_mode: `"reflect"` or `"constant"` (black).
        train_transforms: Callable from a PIL image to a tensor, or a transform of Albumentations,
            which replaces augmentation and normalization.
        val_transforms: The same for validation.
        test_transforms: The same for test and predict.
        device: Device of device-resident batches when the module is used without a trainer.
        train_indices: Indices of exactly the images to train on, among all training images.
            `val_split` is then held out of the others. Not with `subset`, `folds`, `imbalance`,
            `exclude`.
        subset: Training images to use, as a count or as a fraction in (0, 1] of those that are
            left by the other arguments; the same fraction of each class. A smaller subset is part
            of a larger one.
        class_subset: Names or numbers of at least two classes, in all splits. Labels are numbered
            from 0 in this order, and `classes` and `num_classes` follow. `val_split` counts the
            images of all classes.
        folds: `(k, of)`: hold out fold `k`, counted from 0, of a stratified `of`-fold
            cross-validation instead of `val_split`.
        imbalance: Ratio between the largest class, the first one, and the smallest, the last one.
            The training images of the classes fall exponentially. 1 means no change.
        exclude: Indices of images not to train on, among all training images. It is applied last,
            so the other training images and the held-out ones stay the same.
        sampling: `"uniform"` returns each training image once in each epoch; `"balanced"` draws as
            many with replacement, each class equally often on average.
        sample_weights: Weights of all training images, at least 0. An epoch draws as many images
            as with `"uniform"`, each in proportion to its weight: the number of times is rounded
            down or up at random. Not with `"balanced"`.
        label_noise: Probability in [0, 1] that a training label is replaced by a wrong one.
        label_noise_kind: `"symmetric"`, any other class; or `"asymmetric"`, a similar class, which
            needs `label_noise_pairs`.
        label_noise_seed: Random seed of the label noise, at least 0.
        label_noise_pairs: Dictionary from names of classes to the names of similar classes.
        mix: `"mixup"`, `"cutmix"`, `"both"` (one of them for each batch) or None. Mixed training
            batches have float32 class probabilities (B, num_classes) instead of labels.
        mix_alpha: Parameter of the beta distribution of the weights in `mix`, greater than 0.
        mix_probability: Probability in [0, 1] that `mix` changes a batch.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range, the layout of the images is not clear, or
            images and labels do not fit each other.
        MemoryError: If the images need more memory than there is.

    Examples:
        >>> from cifar_resnet import ImageDataModule
        >>> from sklearn.datasets import load_digits
        >>> digits = load_digits()
        >>> x, y = digits.images / 16, digits.target  # (1797, 8, 8) in [0, 1], and (1797,)
        >>> train, test = (x[:1500], y[:1500]), (x[1500:], y[1500:])
        >>> data = ImageDataModule(train, test, batch_size=100, flip="none")
        >>> data.setup()
        >>> next(iter(data.train_dataloader()))[0].shape
        torch.Size([100, 1, 8, 8])
    """

    def __init__(
        self,
        train: Any,
        test: Any = None,
        *,
        classes: Any = None,
        mean: Sequence[float] | float | None = None,
        std: Sequence[float] | float | None = None,
        batch_size: int = 512,
        val_split: int | float = 0.1,
        num_workers: int = 0,
        seed: int = 0,
        shuffle: bool = True,
        pin_memory: bool = True,
        persistent_workers: bool = False,
        drop_last: bool = False,
        crop_padding: int | None = None,
        flip: str = "random",
        cutout: int = 0,
        padding_mode: str = "reflect",
        train_transforms: Transform | None = None,
        val_transforms: Transform | None = None,
        test_transforms: Transform | None = None,
        device: torch.device | str = "cpu",
        train_indices: Sequence[int] | None = None,
        subset: int | float | None = None,
        class_subset: Sequence[int | str] | None = None,
        folds: tuple[int, int] | None = None,
        imbalance: float = 1,
        exclude: Sequence[int] | None = None,
        sampling: str = "uniform",
        sample_weights: Sequence[float] | None = None,
        label_noise: float = 0.0,
        label_noise_kind: str = "symmetric",
        label_noise_seed: int = 0,
        label_noise_pairs: Mapping[str, str] | None = None,
        mix: str | None = None,
        mix_alpha: float = 1.0,
        mix_probability: float = 1.0,
    ) -> None:
        statistics = as_statistics(mean, std)
        images = train if isinstance(train, ImageSet) else InMemory(train, test, classes)
        pairs = as_pairs(label_noise_pairs, images.population.names) or images.pairs
        super().__init__(
            images,
            Selection(
                images.population, val_split, train_indices, subset, class_subset, folds,
                imbalance, exclude,
            ),
            LabelNoise(label_noise, label_noise_kind, label_noise_seed, pairs),
            _per_channel(statistics, images.dims[0]),
        )  # fmt: skip
        if label_noise_pairs is not None and label_noise_kind != "asymmetric":
            raise ValueError(
                f"label_noise_pairs={label_noise_pairs!r} have no effect, because label_noise_kind "
                f"is {label_noise_kind!r}. Pass label_noise_kind='asymmetric'."
            )
        self.batch_size = arguments.integer("batch_size", batch_size, minimum=1)
        self.val_split = val_split
        self.num_workers = arguments.integer("num_workers", num_workers, minimum=0)
        self.seed = arguments.integer("seed", seed, minimum=0)
        self.shuffle = arguments.boolean("shuffle", shuffle)
        self.pin_memory = arguments.boolean("pin_memory", pin_memory)
        self.persistent_workers = arguments.boolean("persistent_workers", persistent_workers)
        self.drop_last = arguments.boolean("drop_last", drop_last)
        height, width = images.dims[1:]
        padding = min(height, width) // 8 if crop_padding is None else crop_padding
        self.augmentation = Augmentation(padding, flip, cutout, padding_mode)
        self.augmentation.check_size(height, width)
        self.train_transforms = arguments.function("train_transforms", train_transforms, _TRANSFORM)
        self.val_transforms = arguments.function("val_transforms", val_transforms, _TRANSFORM)
        self.test_transforms = arguments.function("test_transforms", test_transforms, _TRANSFORM)
        self.device = arguments.device("device", device)
        self.sampling = sampling
        size = images.population.size
        self.sample_weights = check_sampling(sampling, sample_weights, shuffle, size)
        check_mix(mix, mix_alpha, mix_probability)
        self.mix, self.mix_alpha, self.mix_probability = mix, mix_alpha, mix_probability
        self._checks = TransformChecks()

    @classmethod
    def from_folder(
        cls, directory: Any, size: Any = 32, *, test_fraction: float | None = None, **options: Any
    ) -> Self:
        """Read image files from folders, one for each class, and scale them to one size.

        Args:
            directory: Folder with the folders `train` and `test` (or `val`), which contain a folder
                of images for each class; or a folder with the folders of the classes.
            size: Height and width in pixels, or one number for both. The largest central part of
                each image with this shape is scaled, with antialiasing, in RGB.
            test_fraction: Fraction in [0, 1) of the images to hold out as test images if there is
                no folder `train`; the same fraction of each class, and always the same images.
            **options: Arguments of `ImageDataModule`.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If the folders do not have this layout, or a file cannot be read.
            MemoryError: If the images need more memory than there is.

        Examples:
            >>> import tempfile
            >>> from pathlib import Path
            >>> from PIL import Image
            >>> from cifar_resnet import ImageDataModule
            >>> folder = Path(tempfile.mkdtemp())
            >>> for name in ("day", "night"):
            ...     (folder / name).mkdir()
            ...     for number in range(5):
            ...         color = (number, 9 * number, 200 if name == "day" else 0)
            ...         Image.new("RGB", (64, 48), color).save(folder / name / f"{number}.png")
            >>> ImageDataModule.from_folder(folder, test_fraction=0.2).classes
            ('day', 'night')
        """
        cls._check_general()
        train, test, classes = read_folders(directory, size, test_fraction)
        return cls(train, test, **{"classes": classes} | options)

    @classmethod
    def from_torchvision(
        cls, dataset: Any, root: Any = None, *, test: Any = None, download: bool = True,
        size: Any = None, **options: Any,
    ) -> Self:  # fmt: skip
        """Take the images of a dataset of torchvision.

        Args:
            dataset: Name of a dataset with a training and a test set, such as `"CIFAR100"`,
                `"FashionMNIST"`, `"SVHN"`, `"STL10"` or `"MNIST"`; or the training set itself.
            root: Folder of a dataset given by its name.
            test: The test set, if the training set is passed.
            download: Whether torchvision may download a dataset given by its name.
            size: As for `from_folder`. If None, the images keep their size.
            **options: Arguments of `ImageDataModule`.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If there is no such dataset, or as for `ImageDataModule`.
            RuntimeError: If the dataset is not in its folder; torchvision raises it.

        Examples:
            >>> from torchvision.datasets import FakeData
            >>> from cifar_resnet import ImageDataModule
            >>> ImageDataModule.from_torchvision(FakeData(40, (3, 24, 24), 2), flip="none").dims
            (3, 24, 24)
        """
        cls._check_general()
        train, test = torchvision_splits(dataset, root, test, download=download)
        return cls(resized(train, size), resized(test, size), **options)

    @classmethod
    def from_huggingface(
        cls, dataset: Any, test: Any = None, *, image: str | None = None, label: str | None = None,
        size: Any = None, **options: Any,
    ) -> Self:  # fmt: skip
        """Take the images of a dataset of the library `datasets`.

        Args:
            dataset: A `DatasetDict` with the split `"train"` and one of `"test"`, `"validation"`
                and `"val"`; or the training set.
            test: The test set, if the training set is passed.
            image: Name of the column of images. If None, a usual name such as `"image"` or `"img"`.
            label: Name of the column of class numbers. If None, a usual name such as `"label"`.
                The names of its `ClassLabel` are the class names.
            size: As for `from_torchvision`.
            **options: Arguments of `ImageDataModule`.

        Raises:
            TypeError: If `dataset` is none of these, or another argument has the wrong type.
            ValueError: If it is not clear which splits or columns to use, or as for
                `ImageDataModule`.
        """
        cls._check_general()
        train, test, names = huggingface_splits(dataset, test, image, label)
        return cls(resized(train, size), resized(test, size), **{"classes": names} | options)

    @classmethod
    def _check_general(cls) -> None:
        if "train" not in inspect.signature(cls).parameters:
            raise TypeError(
                f"{cls.__name__} provides one dataset. Call this method on ImageDataModule."
            )

    def __str__(self) -> str:
        train, val = self._selection.sizes
        train = self.num_samples if self._split else train
        options = self._selection.options() | self._noise.options()
        options |= {"sampling": self.sampling} if self.sampling != "uniform" else {}
        weights = digest(self.sample_weights)
        options |= {"sample_weights": weights} if weights is not None else {}
        options |= {"mix": self.mix} if self.mix is not None else {}
        parts = [
            *self._origin(),
            f"train={train}, val={val}, test={self._selection.test_size}",
            f"batch_size={self.batch_size}, seed={self.seed}",
            "resident" if self.train_transforms is None else "DataLoader",
            *(f"{name}={value!r}" for name, value in options.items()),
        ]
        return f"{type(self).__name__}({', '.join(parts)})"

    __repr__ = __str__

    def _origin(self) -> list[str]:
        """Return the beginning of the representation."""
        return [f"dims={self.dims}", f"num_classes={self.num_classes}"]


def _per_channel(statistics: Statistics | None, channels: int) -> Statistics | None:
    """Return one mean and one standard deviation for each channel."""
    if statistics is None:
        return None
    for name, values in zip(("mean", "std"), statistics, strict=True):
        if len(values) not in (1, channels):
            raise ValueError(
                f"{name} must have one value, or one for each of the {channels} channels, but got "
                f"{values}."
            )
    mean, std = (values * channels if len(values) == 1 else values for values in statistics)
    return mean, std
