"""Keep the images, indices and labels of each split of CIFAR-10."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from cifar_resnet import arguments
from cifar_resnet.data import cifar10
from cifar_resnet.data.corruption import LabelNoise
from cifar_resnet.data.datasets import Images, Rows
from cifar_resnet.data.formats import Arrays
from cifar_resnet.data.lifecycle import ResumableDataModule, load_shared
from cifar_resnet.data.selection import Selection

__all__ = ["SplitDataModule"]

_SPLITS = ("train", "val", "test")


class SplitDataModule(ResumableDataModule):
    """Read CIFAR-10 and divide it into splits; `CIFAR10DataModule` adds the loaders.

    Args:
        data_dir: Folder of the dataset.
        selection: The images of training and validation.
        noise: Label noise of the training images.
    """

    classes: tuple[str, ...] = cifar10.CLASSES
    num_classes = len(cifar10.CLASSES)
    mean = cifar10.MEAN
    std = cifar10.STD

    def __init__(self, data_dir: Path, selection: Selection, noise: LabelNoise) -> None:
        super().__init__()
        self.data_dir = data_dir
        self._selection = selection
        self._noise = noise
        noise.check_classes(selection.names)
        if selection.class_subset is not None:
            self.classes = selection.names
            self.num_classes = len(selection.names)
        self._arrays: Arrays | None = None
        self._split: dict[str, NDArray[np.intp]] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read the images and split them, once for all stages.

        Raises:
            DatasetError: If CIFAR-10 is not in `data_dir`, or a file is damaged.
            ValueError: If `train_indices` does not fit the other arguments.
        """
        if self._arrays is None:
            arrays = load_shared(self.data_dir)
            train, val = self._selection.split(arrays.train_labels)
            test = np.flatnonzero(np.isin(arrays.test_labels, self._selection.classes))
            self._split = {"train": train, "val": val, "test": test}
            self._arrays = arrays

    @property
    def num_samples(self) -> int:
        """Number of training images, without those held out for validation."""
        return self._selection.sizes[0]

    def indices(self, split: str = "train") -> NDArray[np.intp]:
        """Return the indices of the images of a split in the dataset, in the order of the split.

        Args:
            split: `"train"` or `"val"`, whose indices are those of the 50,000 training images, or
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
        arrays, samples = self._loaded(), self._split[split]
        given = arrays.test_labels if split == "test" else arrays.train_labels
        labels = self._selection.renumber(given[samples])
        if split != "train" or clean:
            return labels
        return self._noise.apply(labels, samples, self.classes)

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

    # --- checkpoints ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the training loader, and what determines images and labels."""
        return super().state_dict() | self._selection.state() | self._noise.state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to resume a run with other training or validation images, or other labels.

        Raises:
            ValueError: If an option differs from that of the saved run.
        """
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            return  # a model may be tested on other images
        own = self._selection.state() | self._noise.state()
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

    def _loaded(self) -> Arrays:
        if self._arrays is None:
            raise RuntimeError(
                "The data are not loaded yet: call prepare_data() and setup() first "
                "(a Trainer does both)."
            )
        return self._arrays

    def _images(self, split: str) -> Images:
        arrays, samples = self._loaded(), self._split[split]
        images = arrays.test_images if split == "test" else arrays.train_images
        return images if np.array_equal(samples, np.arange(len(images))) else Rows(images, samples)
