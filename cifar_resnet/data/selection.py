"""Choose which images of a dataset to train on and which to hold out for validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cifar_resnet import arguments
from cifar_resnet.data.class_names import class_index
from cifar_resnet.data.corruption import long_tail_counts
from cifar_resnet.data.image_indices import as_indices, digest
from cifar_resnet.data.order import apportion, split_order, stratified_split

__all__ = ["Population", "Selection"]

# Like the validation split, a subset must not depend on the training seed.
_SUBSET_SEED = 20_261
_DEFAULT_VAL_SPLIT = 0.1
_MOST_NAMES = 20  # in a message

Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Population:
    """The classes of a dataset and how many images each has, known before the images are read.

    Attributes:
        names: Names of the classes.
        train: Number of training images of each class, at least 1.
        test: Number of test images of each class.
    """

    names: tuple[str, ...]
    train: tuple[int, ...]
    test: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of training images."""
        return sum(self.train)


@dataclass(frozen=True)
class Selection:
    """The training and validation images; the arguments are those of `ImageDataModule`.

    First the validation images are held out of all training images, then `class_subset` restricts
    both sets, and `imbalance`, `subset` and `exclude`, in this order, only the training images. So
    none of the options moves an image between training and validation, except `folds`, `val_split`
    and `train_indices`.
    """

    population: Population
    val_split: Any = _DEFAULT_VAL_SPLIT
    train_indices: Any = None
    subset: Any = None
    class_subset: Any = None
    folds: Any = None
    imbalance: float = 1
    exclude: Any = None

    def __post_init__(self) -> None:
        def convert(**values: Any) -> None:
            for name, value in values.items():
                object.__setattr__(self, name, value)

        names, counts, size = self.population.names, self.population.train, self.population.size
        convert(val_split=_held_out(self.val_split, size))
        convert(train_indices=_indices(self.train_indices, size))
        if self.exclude is not None:
            convert(exclude=as_indices("exclude", self.exclude, size) or None)
        convert(class_subset=_classes(self.class_subset, names))
        convert(folds=_folds(self.folds, min(counts)))
        within = lambda ratio: 1 <= ratio <= max(counts), f"a number in [1, {max(counts)}]"
        convert(imbalance=arguments.number("imbalance", self.imbalance, within))
        self._check_combination()
        if self.subset is not None:
            available = replace(self, subset=None).sizes[0]
            convert(subset=_count(self.subset, available))
        if self.train_indices is not None and self.val_split > size - len(self.train_indices):
            raise ValueError(
                f"train_indices has {len(self.train_indices)} of the {size} training images, "
                f"which leaves fewer than the {self.val_split} of val_split. Pass a smaller "
                "val_split; 0 means no validation."
            )
        if self.imbalance > 1:
            _ = self.sizes  # raises if it is too large

    def _check_combination(self) -> None:
        default = _held_out(_DEFAULT_VAL_SPLIT, self.population.size)
        if self.folds is not None and self.val_split != default:
            raise ValueError(
                f"folds={self.folds} and val_split={self.val_split} both choose the validation "
                "images. Leave out one of them."
            )
        others = {"subset": self.subset, "folds": self.folds}
        others["exclude"] = digest(self.exclude)
        others["imbalance"] = self.imbalance if self.imbalance > 1 else None
        for name, value in others.items():
            if self.train_indices is not None and value is not None:
                raise ValueError(
                    f"train_indices are exactly the images to train on, so {name}={value!r} "
                    "cannot change them. Leave out one of them."
                )

    # --- result ---------------------------------------------------------------------------------

    def split(self, labels: NDArray[np.int64]) -> tuple[Indices, Indices]:
        """Return the indices to train on and to validate on, given all training labels.

        They are sorted, except that `train_indices` keep their order.

        Raises:
            ValueError: If `train_indices` contains images of other classes than `class_subset`, or
                leaves too few images of a class for validation.
        """
        train, val = self._train_and_val(labels)
        if self.class_subset is not None:
            classes = np.array(self.class_subset)
            if self.train_indices is not None:
                _check_labels(train, labels, self.class_subset, self.population.names)
            train, val = (rows[np.isin(labels[rows], classes)] for rows in (train, val))
        if self.imbalance > 1:
            counts = np.bincount(labels[train], minlength=len(self.population.names))[self.classes]
            tail = long_tail_counts(int(counts.max()), len(counts), self.imbalance)
            if not tail.all():
                raise ValueError(
                    f"imbalance={self.imbalance} leaves no image of the smallest class: the "
                    f"largest has {counts.max()} training images. Pass at most {counts.max()}."
                )
            train = self._first(train, labels, np.minimum(tail, counts))
        if self.subset is not None:
            counts = np.bincount(labels[train], minlength=len(self.population.names))[self.classes]
            train = self._first(train, labels, apportion(counts, self.subset))
        if self.exclude is not None:
            train = train[~np.isin(train, self.exclude)]
            if not len(train):
                raise ValueError(
                    f"exclude contains {len(self.exclude)} images, which leaves none to train on. "
                    "Exclude fewer images, or use a larger subset."
                )
        return train, val

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Number of training and validation images, without regard to `exclude`.

        They depend only on the number of images of each class, so this does not need the labels.
        """
        if self.train_indices is not None:
            return len(self.train_indices), replace(self, train_indices=None).sizes[1]
        if self.exclude is not None:
            return replace(self, exclude=None).sizes
        labels = np.arange(len(self.population.names)).repeat(self.population.train)
        train, val = self.split(labels)
        return len(train), len(val)

    @property
    def test_size(self) -> int:
        """Number of test images."""
        return sum(self.population.test[label] for label in self.classes)

    @property
    def classes(self) -> list[int]:
        """Numbers of the classes, in the order of the labels."""
        return [*(self.class_subset or range(len(self.population.names)))]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the labels."""
        return tuple(self.population.names[label] for label in self.classes)

    def renumber(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return labels in [0, number of classes of `class_subset`)."""
        numbers = np.full(len(self.population.names), -1, dtype=np.int64)
        numbers[self.classes] = np.arange(len(self.classes))
        return numbers[labels]

    def _train_and_val(self, labels: NDArray[np.int64]) -> tuple[Indices, Indices]:
        if self.folds is not None:
            fold, count = self.folds
            numbers = np.empty(len(labels), dtype=np.intp)
            # Class after class, so that neither the folds nor their classes differ by more than 1.
            numbers[np.concatenate(split_order(labels))] = np.arange(len(labels)) % count
            return np.flatnonzero(numbers != fold), np.flatnonzero(numbers == fold)
        if self.train_indices is None:
            return stratified_split(labels, self.val_split)
        held = []
        take = apportion(np.bincount(labels), self.val_split)
        names = self.population.names
        for name, rows, count in zip(names, split_order(labels), take, strict=True):
            others = rows[~np.isin(rows, self.train_indices)]
            if len(others) < count:
                raise ValueError(
                    f"train_indices leaves {len(others)} images of class {name!r}, but "
                    f"val_split={self.val_split} holds out {count}. Pass a smaller val_split; 0 "
                    "means no validation."
                )
            held.append(others[:count])
        return np.array(self.train_indices, dtype=np.intp), np.sort(np.concatenate(held))

    def _first(self, rows: Indices, labels: NDArray[np.int64], counts: Indices) -> Indices:
        """Return the first images of each class in a random order that is always the same."""
        priority = np.random.default_rng(_SUBSET_SEED).permutation(len(labels))
        ordered = rows[priority[rows].argsort()]
        parts = [
            ordered[labels[ordered] == label][:count]
            for label, count in zip(self.classes, counts, strict=True)
        ]
        return np.sort(np.concatenate(parts))

    # --- description ----------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return plain values, to compare with those of another run."""
        return {
            "val_split": self.val_split,
            "train_indices": digest(self.train_indices),
            "subset": self.subset,
            "class_subset": self.names if self.class_subset is not None else None,
            "folds": self.folds,
            "imbalance": self.imbalance,
            "exclude": digest(self.exclude),
        }

    def options(self) -> dict[str, Any]:
        """Return the options that are set, for the representation of the data module."""
        unset = (None, 1)
        return {
            name: value
            for name, value in self.state().items()
            if name != "val_split" and value not in unset
        }


# --- arguments ------------------------------------------------------------------------------------


def _held_out(val_split: Any, size: int) -> int:
    """Return the number of validation images that `val_split` requests."""
    expected = (
        f"val_split must be a count in [0, {size}) or a fraction in [0, 1) of the {size} "
        f"training images, but got {val_split!r}."
    )
    return _as_count(val_split, size, range(size), lambda share: 0 <= share < 1, expected)


def _count(subset: Any, available: int) -> int:
    """Return the number of training images that `subset` requests."""
    expected = (
        f"subset must be a count in [1, {available}] or a fraction in (0, 1] of the {available} "
        f"training images that the other arguments leave, but got {subset!r}."
    )
    counts = range(1, available + 1)
    return _as_count(subset, available, counts, lambda share: 0 < share <= 1, expected)


def _as_count(
    value: Any, total: int, counts: range, is_fraction: Callable[[float], bool], message: str
) -> int:
    """Return a count, or a fraction of a total as a count."""
    if arguments.is_integer(value):
        count = int(value)
    elif isinstance(value, Real) and not isinstance(value, bool):
        if not is_fraction(float(value)):
            raise ValueError(message)
        count = round(float(value) * total)
    else:
        raise TypeError(message)
    if count not in counts:
        raise ValueError(message)
    return count


def _indices(train_indices: Any, size: int) -> tuple[int, ...] | None:
    if train_indices is None:
        return None
    indices = as_indices("train_indices", train_indices, size)
    if not indices:
        raise ValueError(
            f"train_indices must be a sequence of different integers from 0 to {size - 1}, but it "
            "is empty."
        )
    return indices


def _classes(class_subset: Any, names: tuple[str, ...]) -> tuple[int, ...] | None:
    if class_subset is None:
        return None
    listed = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
    expected = f"at least two different classes of {listed}"
    message = f"class_subset must be {expected}, but got {class_subset!r}."
    if isinstance(class_subset, str):
        raise TypeError(message)
    if isinstance(class_subset, Tensor | np.ndarray):
        class_subset = class_subset.tolist()
    requested = arguments.sequence("class_subset", class_subset, expected)
    if any(value is None for value in requested):
        raise TypeError(message)
    classes = [class_index(value, names, "class_subset") for value in requested]
    if len(classes) < 2 or len({*classes}) < len(classes):
        raise ValueError(message)
    return tuple(label for label in classes if label is not None)


def _folds(folds: Any, most: int) -> tuple[int, int] | None:
    if folds is None:
        return None
    expected = f"(k, of) with integers 0 <= k < of and 2 <= of <= {most}"
    message = f"folds must be {expected}, but got {folds!r}."
    values = arguments.sequence("folds", folds, expected)
    if not all(map(arguments.is_integer, values)):
        raise TypeError(message)
    if len(values) != 2 or not 2 <= values[1] <= most or not 0 <= values[0] < values[1]:
        raise ValueError(message)
    return int(values[0]), int(values[1])


def _check_labels(
    train: Indices, labels: NDArray[np.int64], classes: tuple[int, ...], names: tuple[str, ...]
) -> None:
    others = train[~np.isin(labels[train], np.array(classes))]
    if len(others):
        name = names[labels[others[0]]]
        raise ValueError(
            f"{len(others)} of the train_indices are not in class_subset: image {others[0]}, for "
            f"example, is of class {name!r}. Leave them out, or add their classes."
        )
