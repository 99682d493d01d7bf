"""Find out which images are in a training batch, and their scores and labels."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, SequentialSampler

from cifar_resnet.data.datasets import PerSampleImages, ResidentImages
from cifar_resnet.data.loaders import PerSampleLoader, ResidentLoader
from cifar_resnet.history.store import Seen

__all__ = ["Images", "ScoreHook", "find_images", "index_of", "labels_of"]

_LABELS = ("label", "labels", "target", "targets", "y")
_INDEX = "index"
_DICTIONARIES = (
    "Let the dataset return dictionaries such as {'image': image, 'label': label, 'index': index}, "
    "with the position of the sample in the dataset, or use ImageDataModule, whose order is known."
)
_UNCHANGED = (
    "TrainingHistory needs batches as the loader returns them: do not reorder, mix or relabel them "
    "in training_step or in a hook."
)


@dataclass(frozen=True, eq=False)
class Images:
    """The training images of a loader.

    Attributes:
        indices: Their indices in the dataset (N,).
        labels: Their labels (N,); -1 where only the batches contain them.
        clean_labels: Their labels without label noise (N,), if known.
        class_names: Names of the classes, if known.
        data: What the images depend on, as plain values.
        epoch: Function that returns the epoch of the loader.
        rows: Function from an epoch of the loader to the rows of each batch. If None, the batches
            contain their indices.
    """

    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    clean_labels: NDArray[np.int64] | None
    class_names: tuple[str, ...] | None
    data: dict[str, Any]
    epoch: Callable[[], int] = lambda: 0
    rows: Callable[[int], list[NDArray[np.intp]]] | None = None

    def locate(self, seen: Seen, epoch: int) -> NDArray[np.intp]:
        """Return the rows of the images that batches of an epoch of the loader contained.

        Raises:
            IndexError: If a batch contains an index outside the dataset.
            ValueError: If the batches have another number of images than those of the loader.
        """
        if self.rows is None:
            assert seen.row is not None
            rows = seen.row.astype(np.intp)
            outside = rows[(rows < 0) | (rows >= len(self.indices))]
            if len(outside):
                raise IndexError(
                    f"{_INDEX!r} must be the position of a sample in the dataset of the training "
                    f"loader, from 0 to {len(self.indices) - 1}, but a batch contains {outside[0]}."
                )
            return rows
        batches = self.rows(epoch)
        rows = np.concatenate([batches[number] for number in np.unique(seen.batch)])
        if len(rows) != len(seen.label):
            raise ValueError(
                f"The loader returned {len(rows)} images, but the network was trained on "
                f"{len(seen.label)}. {_UNCHANGED}"
            )
        return rows

    def check(self, rows: NDArray[np.intp], labels: NDArray[np.int64]) -> None:
        """Raise a ValueError if the labels of images differ; labels that were unknown are kept."""
        unknown = self.labels[rows] < 0
        self.labels[rows[unknown]] = labels[unknown]
        different = np.flatnonzero(self.labels[rows] != labels)
        if len(different):
            first = different[0]
            raise ValueError(
                f"Image {self.indices[rows[first]]} has the label {self.labels[rows[first]]}, but "
                f"the network was trained on it with the label {labels[first]}. {_UNCHANGED}"
            )


def find_images(trainer: Trainer) -> Images:
    """Return the images of the training loader of a trainer that is about to train.

    Raises:
        TypeError: If there are several training loaders, or the loader has no dataset with a
            length.
        ValueError: If the batches are mixed, or the order of the images cannot be known.
    """
    loader: Any = trainer.train_dataloader
    if isinstance(loader, Mapping | list | tuple):
        raise TypeError(
            f"TrainingHistory records one training loader, but there are {len(loader)}. Combine "
            "the datasets with torch.utils.data.ConcatDataset."
        )
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, ResidentImages | PerSampleImages):
        return _of_data_module(loader, dataset)
    try:
        size = len(dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise TypeError(
            "TrainingHistory needs a training loader whose `dataset` has a length, but got a "
            f"{type(loader).__name__} of a {type(dataset).__name__}. Use a map-style dataset."
        ) from error
    return Images(
        indices=np.arange(size),
        labels=np.full(size, -1),
        clean_labels=None,
        class_names=None,
        data={"dataset": f"{type(dataset).__name__} of {size} samples"},
    )


def _of_data_module(loader: Any, dataset: ResidentImages | PerSampleImages) -> Images:
    size = len(dataset)
    epoch: Callable[[], int] = lambda: 0  # noqa: E731
    if isinstance(loader, ResidentLoader | PerSampleLoader):
        if loader.mixing is not None:
            raise ValueError(
                f"TrainingHistory needs the label of each image, but mix={loader.mixing.kind!r} "
                "trains on mixtures of two images. Use mix=None, or leave out TrainingHistory."
            )
        rows: Callable[[int], list[NDArray[np.intp]]] = loader.rows
        epoch = lambda: loader.epoch  # noqa: E731
    elif isinstance(loader, DataLoader) and type(loader.sampler) is SequentialSampler:
        length = loader.batch_size or 1  # `overfit_batches`
        rows = lambda _: np.split(np.arange(size), range(length, size, length))  # noqa: E731
    else:
        raise ValueError(
            f"TrainingHistory does not know the order in which a {type(loader).__name__} reads the "
            "images. Pass the data module to trainer.fit, or data.train_dataloader()."
        )
    origin = dataset.origin
    data = {"dataset": f"{size} images"} if origin is None else origin.state()
    if not isinstance(loader, ResidentLoader | PerSampleLoader):
        data["augmentation"] = "random in each epoch"  # of transforms that the loader did not seed
    return Images(
        indices=dataset.samples.astype(np.int64),
        labels=np.array(dataset.targets, dtype=np.int64),
        clean_labels=None if origin is None else origin.clean_labels,
        class_names=dataset.metadata.class_names,
        data=data,
        epoch=epoch,
        rows=rows,
    )


def index_of(batch: Any) -> Tensor:
    """Return the indices (B,) that a batch contains.

    Raises:
        ValueError: If the batch is not a mapping with an integer tensor "index".
    """
    index = batch.get(_INDEX) if isinstance(batch, Mapping) else None
    if isinstance(index, Tensor) and index.dim() == 1 and _is_integer(index):
        return index
    got = f"has the keys {', '.join(map(repr, batch))}" if isinstance(batch, Mapping) else ""
    raise ValueError(
        "TrainingHistory must know which images are in a batch: expected a mapping with an integer "
        f"tensor (B,) called {_INDEX!r}, but the batch {got or f'is a {type(batch).__name__}'}. "
        f"{_DICTIONARIES}"
    )


def labels_of(batch: Any) -> Tensor:
    """Return the class indices (B,) of a batch.

    Raises:
        ValueError: If there are none, or if they are not one class for each image.
    """
    labels = None
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        labels = batch[1]
    elif isinstance(batch, Mapping):
        named = [batch[name] for name in _LABELS if isinstance(batch.get(name), Tensor)]
        labels = named[0] if len(named) == 1 else None
    return check_labels(labels)


def check_labels(labels: Any) -> Tensor:
    """Return labels if they are class indices (B,), and raise a ValueError otherwise."""
    if isinstance(labels, Tensor) and labels.dim() == 1 and _is_integer(labels):
        return labels
    got = (
        f"{labels.dtype} of shape {tuple(labels.shape)}"
        if isinstance(labels, Tensor)
        else f"a {type(labels).__name__}"
    )
    raise ValueError(
        "TrainingHistory needs one class index for each image: integers (B,), as the second value "
        f"of a batch or called {', '.join(_LABELS[:-1])} or {_LABELS[-1]}, but found {got}. Class "
        "probabilities, as of MixUp or CutMix, have no single label."
    )


def _is_integer(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


class ScoreHook:
    """Keep the output of a module during a training step.

    Args:
        owner: The module that is trained.
        name: Name of its submodule that returns the scores; "" for itself.

    Raises:
        ValueError: If there is no such submodule.
    """

    def __init__(self, owner: LightningModule, name: str) -> None:
        try:
            self._module: nn.Module = owner.get_submodule(name)
        except AttributeError as error:
            names = ", ".join(repr(child) for child, _ in owner.named_children())
            raise ValueError(
                f"scores_from must be the name of a submodule of {type(owner).__name__}, such as "
                f"{names or 'none, since it has none'}, but got {name!r}."
            ) from error
        self._name = name
        self._handle: Any = None
        self._outputs: list[Any] = []

    def start(self) -> None:
        """Observe the module in this thread until `finish` or `remove`."""
        self.remove()
        outputs: list[Any] = []
        thread = threading.get_ident()

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if threading.get_ident() == thread:
                outputs.append(output)

        self._outputs = outputs
        self._handle = self._module.register_forward_hook(keep)

    def finish(self, size: int) -> Tensor:
        """Return the scores of a batch of `size` images, (size, classes).

        Raises:
            ValueError: If the module was not called once, or did not return such scores.
        """
        outputs, self._outputs = self._outputs, []
        self.remove()
        if len(outputs) != 1:
            raise ValueError(
                f"{self._name!r} must be called once in each training step, so that its output are "
                f"the scores of the batch, but was called {len(outputs)} times. Pass as "
                "scores_from the submodule that returns the class scores; a module compiled with "
                "torch.compile may not call hooks."
            )
        scores = getattr(outputs[0], "logits", outputs[0])
        if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != size or (
            scores.shape[1] < 2
        ):  # fmt: skip
            got = (
                f"shape {tuple(scores.shape)}"
                if isinstance(scores, Tensor)
                else type(scores).__name__
            )
            raise ValueError(
                f"{self._name!r} must return scores of shape ({size}, classes), but returned {got}."
                " Pass as scores_from the submodule that returns the class scores."
            )
        return scores

    def remove(self) -> None:
        """Leave the module as it was."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
