"""Find the class names, the normalization and the label suspects that come with data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Subset

from cifar_resnet.data import cifar10
from cifar_resnet.data.class_names import as_class_names
from cifar_resnet.data.label_suspects import label_suspects
from cifar_resnet.normalization import Statistics

IMAGES = ("pixel_values", "image", "images", "img", "inputs", "x")
LABELS = ("label", "labels", "target", "targets", "fine_label", "y")


@dataclass(frozen=True)
class Metadata:
    """What is known about the samples of a dataset.

    Attributes:
        class_names: Names of the classes, if known.
        statistics: Mean and standard deviation of each channel that were used to normalize the
            images, if known.
        suspects: Indices of samples whose label is doubtful.
    """

    class_names: tuple[str, ...] | None = None
    statistics: Statistics | None = None
    suspects: frozenset[int] = frozenset()


def metadata_of(dataset: Any) -> Metadata:
    """Return the metadata that a dataset carries, also through subsets and concatenations."""
    carried = getattr(dataset, "metadata", None)
    if isinstance(carried, Metadata):
        return carried
    transform = getattr(dataset, "transform", None) or getattr(dataset, "transforms", None)
    statistics = normalization(transform)
    if isinstance(dataset, Subset):
        inner = metadata_of(dataset.dataset)
        suspects = {
            row for row, index in enumerate(dataset.indices) if int(index) in inner.suspects
        }
        return replace(
            inner, statistics=statistics or inner.statistics, suspects=frozenset(suspects)
        )
    if isinstance(dataset, ConcatDataset):
        parts = [metadata_of(part) for part in dataset.datasets]
        starts = [0, *dataset.cumulative_sizes]
        suspects = {
            start + index
            for start, part in zip(starts, parts, strict=False)
            for index in part.suspects
        }
        names = _shared(part.class_names for part in parts)
        return Metadata(names, _shared(part.statistics for part in parts), frozenset(suspects))
    return Metadata(names_of(dataset), statistics, _suspects(dataset))


def names_of(owner: Any) -> tuple[str, ...] | None:
    """Return the class names of a dataset or a data module, or None if it has none."""
    for attribute in ("classes", "class_names", "class_to_idx", "features"):
        # These attributes belong to somebody else and may be anything, even a property that fails.
        try:
            value = getattr(owner, attribute, None)
            if isinstance(value, str):
                continue
            if attribute == "features" and isinstance(value, Mapping):
                value = next((value[name] for name in LABELS if name in value), None)
                if not hasattr(value, "names"):
                    continue
            names = as_class_names(value)
        except Exception:
            continue
        if names:
            return names
    return None


def normalization(transform: Any) -> Statistics | None:
    """Return the mean and standard deviation of a transform, if it normalizes."""
    parts = getattr(transform, "transforms", None)
    if isinstance(parts, list | tuple):
        return next(filter(None, map(normalization, reversed(parts))), None)
    if type(transform).__name__ == "StandardTransform":  # torchvision's, of images and labels
        return normalization(transform.transform)
    if type(transform).__name__ == "Normalize":
        mean, std = (torch.as_tensor(v, device="cpu") for v in (transform.mean, transform.std))
        return tuple(mean.flatten().tolist()), tuple(std.flatten().tolist())
    return None


def _suspects(dataset: Any) -> frozenset[int]:
    """Return the label suspects of torchvision's CIFAR-10 test set, also of a derived class.

    A derived class may choose, sort or relabel its samples, so the labels are compared.
    """
    kinds = {(kind.__module__, kind.__name__) for kind in type(dataset).__mro__}
    if ("torchvision.datasets.cifar", "CIFAR10") not in kinds or dataset.train is not False:
        return frozenset()
    suspects = label_suspects()
    try:
        given = [int(dataset.targets[index]) for index in suspects]
        complete = len(dataset) == cifar10.TEST_SIZE == len(dataset.targets)
    except (AttributeError, TypeError, ValueError, IndexError, KeyError):
        return frozenset()
    expected = [cifar10.CLASSES.index(suspect.given) for suspect in suspects.values()]
    return frozenset(suspects) if complete and given == expected else frozenset()


def _shared(values: Iterable[Any]) -> Any:
    """Return the value that all have, or None."""
    different = set(values)
    return different.pop() if len(different) == 1 else None
