"""Keep the images, indices and labels of each split of a dataset."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from cifar_resnet import arguments
from cifar_resnet.data.corruption import LabelNoise
from cifar_resnet.data.datasets import Images, Rows
from cifar_resnet.data.formats import Arrays
from cifar_resnet.data.lifecycle import ResumableDataModule
from cifar_resnet.data.selection import Selection
from cifar_resnet.data.sets import ImageSet
from cifar_resnet.data.statistics import denormalized, normalizing_transform
from cifar_resnet.normalization import Statistics

__all__ = ["SplitDataModule"]

_log = logging.getLogger(__name__)

_SPLITS = ("train", "val", "test")


class SplitDataModule(ResumableDataModule):
    """Read images and divide them into splits; `LoadingDataModule` adds the loaders.

    Args:
        images: The images.
        selection: The images of training and validation.
        noise: Label noise of the training images.
        statistics: Mean and standard deviation of each channel. If None, those of the images.
    """

    classes: tuple[str, ...]
    num_classes: int
    dims: tuple[int, int, int]

    def __init__(
        self,
        images: ImageSet,
        selection: Selection,
        noise: LabelNoise,
        statistics: Statistics | None = None,
    ) -> None:
        super().__init__()
        self._set = images
        self._selection = selection
        self._noise = noise
        self._statistics = statistics
        noise.check_classes(selection.names)
        self.classes = selection.names
        self.num_classes = len(selection.names)
        self.dims = images.dims
        self._arrays: Arrays | None = None
        self._split: dict[str, NDArray[np.intp]] = {}

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel that is subtracted from images in [0, 1]."""
        return (self._statistics or self._set.statistics)[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel that the images are divided by."""
        return (self._statistics or self._set.statistics)[1]

    def prepare_data(self) -> None:
        """Make sure that the images can be read. This does nothing for images in memory."""
        if self._arrays is None:  # a Trainer calls this before each stage
            self._set.prepare()

    def setup(self, stage: str | None = None) -> None:
        """Read the images and split them, once for all stages.

        Raises:
            DatasetError: If the dataset is not in its folder, or a file is damaged.
            ValueError: If `train_indices` does not fit the other arguments.
        """
        if self._arrays is None:
            arrays = self._set.read()
            train, val = self._selection.split(arrays.train_labels)
            test = np.flatnonzero(np.isin(arrays.test_labels, self._selection.classes))
            self._split = {"train": train, "val": val, "test": test}
            self._arrays = arrays
            present = {*self._selection.renumber(arrays.train_labels[train]).tolist()}
            absent = [name for label, name in enumerate(self.classes) if label not in present]
            if absent and self._selection.train_indices is None:
                _log.warning(
                    "All images of %s are held out or excluded, so there are none to train on. "
                    "Use a smaller val_split, or exclude fewer.", ", ".join(absent[:10]),
                )  # fmt: skip

    @property
    def num_samples(self) -> int:
        """Number of training images, without those held out for validation.

        Raises:
            RuntimeError: If there is `exclude`, and `setup` was not called.
        """
        if self._selection.exclude is not None:
            self._loaded()
        return len(self._split["train"]) if self._split else self._selection.sizes[0]

    def indices(self, split: str = "train") -> NDArray[np.intp]:
        """Return the indices of the images of a split in the dataset, in the order of the split.

        Args:
            split: `"train"` or `"val"`, whose indices are those of all training images, or
                `"test"`.

        Returns:
            Integers (N,).

        Raises:
            RuntimeError: If `setup` was not called.

        Examples:
            >>> from cifar_resnet import CIFAR10DataModule
            >>> data = CIFAR10DataModule(folds=(0, 5))
            >>> data.prepare_data()
            >>> data.setup()
            >>> len(data.indices("train")), len(data.indices("val"))
            (40000, 10000)
        """
        arguments.choice("split", split, _SPLITS)
        self._loaded()
        return self._split[split].copy()

    def labels(self, split: str = "train", *, clean: bool = False) -> NDArray[np.int64]:
        """Return the labels of a split, in the order of `indices(split)`.

        Args:
            split: `"train"`, `"val"` or `"test"`.
            clean: If True, return the training labels without label noise. The other labels never
                have noise.

        Returns:
            Integers (N,), the positions of the class names in `classes`.

        Raises:
            RuntimeError: If `setup` was not called.

        Examples:
            >>> from cifar_resnet import CIFAR10DataModule
            >>> data = CIFAR10DataModule(label_noise=0.2)
            >>> data.prepare_data()
            >>> data.setup()
            >>> changed = data.labels() != data.labels(clean=True)
            >>> print(f"{changed.mean():.2f}")
            0.20
        """
        arguments.choice("split", split, _SPLITS)
        arguments.boolean("clean", clean)
        given, samples = self._given_labels(split), self._split[split]
        labels = self._selection.renumber(given[samples])
        if split != "train" or clean:
            return labels
        return self._noise.apply(labels, samples, self.classes, len(given))

    def default_transforms(self) -> Any:
        """Return a transform from a PIL image to a normalized tensor (C, H, W)."""
        return normalizing_transform((self.mean, self.std))

    def denormalize(self, images: Tensor) -> Tensor:
        """Undo the normalization: float (..., C, H, W) back to values in [0, 1].

        Raises:
            TypeError: If `images` is not a floating-point tensor.
            ValueError: If it does not have that shape.
        """
        return denormalized(images, (self.mean, self.std))

    # --- checkpoints ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the training loader, and what determines images and labels."""
        return super().state_dict() | self._data_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to resume a run with other training or validation images, or other labels.

        Raises:
            ValueError: If the images or an option differ from those of the saved run.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return  # a model may be tested on other images
        own = self._data_state()
        differences = [
            f"{name} is {state_dict[name]!r} instead of {value!r}"
            for name, value in own.items()
            if name in state_dict and state_dict[name] != value
        ]
        if differences:
            raise ValueError(
                f"The checkpoint belongs to a run with other data: {'; '.join(differences)}. "
                "Resume with the data module of the saved run, or load only the weights with "
                "ImageClassifier.load_from_checkpoint and start a new run."
            )
        super().load_state_dict(state_dict)

    # --- parts ------------------------------------------------------------------------------------

    def _data_state(self) -> dict[str, Any]:
        dataset = {"dataset": self._set.fingerprint}
        return dataset | self._selection.state() | self._noise.state()

    def _loaded(self) -> Arrays:
        if self._arrays is None:
            raise RuntimeError(
                "The data are not loaded yet: call prepare_data() and setup() first "
                "(a Trainer does both)."
            )
        return self._arrays

    def _given_labels(self, split: str) -> NDArray[np.int64]:
        """Return the labels of all training images, or of all test images."""
        arrays = self._loaded()
        return arrays.test_labels if split == "test" else arrays.train_labels

    def _images(self, split: str) -> Images:
        arrays, samples = self._loaded(), self._split[split]
        images = arrays.test_images if split == "test" else arrays.train_images
        return images if np.array_equal(samples, np.arange(len(images))) else Rows(images, samples)
