"""Run a model over a data set and collect its errors."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.data.class_names import as_class_names, check_class, class_index, distinct_names
from cifar_resnet.data.reading import Source, as_source
from cifar_resnet.misclassified.execution import run_on_device
from cifar_resnet.misclassified.image_range import warn_if_not_normalized
from cifar_resnet.misclassified.records import (
    Calibration,
    MisclassifiedSample,
    MisclassifiedSamples,
)
from cifar_resnet.misclassified.scores import check_finite, class_scores
from cifar_resnet.model_state import preserve_state, unwrap_compiled
from cifar_resnet.normalization import Statistics, as_statistics, in_unit_range

__all__ = ["find_misclassified"]

SORTS = ("loss", "confidence", "margin", "index", "random")
_BINS = 15  # of the calibration, as in Guo et al.


def find_misclassified(
    model: nn.Module,
    data: Any = None,
    *,
    n: int | None = None,
    sort_by: str = "loss",
    true_class: int | str | None = None,
    pred_class: int | str | None = None,
    batch_size: int = 500,
    device: torch.device | str | None = None,
    class_names: Sequence[str] | Mapping[Any, Any] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    seed: int = 0,
) -> MisclassifiedSamples:
    """Find the images that a classifier gets wrong, and count its predictions for all images.

    Each image passes through the model once, in evaluation mode and without gradients. The model is
    left unchanged. Only the errors that are kept take memory. An active autocast context is
    respected. A warning is issued if weights of the package get images that are not normalized.

    Args:
        model: Any module from images to class scores (N, classes): logits, log-probabilities, or
            probabilities, which are rows that are not negative and sum to 1. The output of a
            sigmoid is not a distribution over the classes; the softmax of the values before it is
            taken, as for a model that returns those values.
        data: A `Dataset` of (image, label), a `DataLoader` (each of its samples once, in the order
            of the dataset) or a `LightningDataModule` (its test data). If None, use the CIFAR-10
            test set.
        n: Maximum number of errors to keep. If None, keep all.
        sort_by: "loss", "confidence" (probability of the predicted class) or "margin" (how far that
            probability exceeds the one of the true class) in descending order, "index" in ascending
            order, or "random".
        true_class: Keep only errors on images of this class, given by number or name.
        pred_class: Keep only errors predicted as this class.
        batch_size: Number of images processed at once, unless `data` determines it.
        device: Device to compute on. If None, the model's device. The model is not moved.
        class_names: Names of the classes: a sequence or an array, a dictionary between numbers and
            names in either direction, or the `ClassLabel` or `Features` of a Hugging Face dataset.
            If None, use those of the data, or numbers. The class number is added to a name that
            several classes share.
        mean: Mean of each channel that was subtracted from the images. If None, use that of the
            data.
        std: Standard deviation of each channel that the images were divided by.
        seed: Random seed for the random order.

    Returns:
        An immutable sequence of the errors, with totals, confusion matrix and calibration.

    Raises:
        TypeError: If `model` or `data` is none of the above, or another argument has the wrong
            type.
        ValueError: If an argument is out of its range, a score is not finite, the model does not
            return (N, classes) or applies a softmax over the images, the data have no labels, or
            the images cannot be displayed because their normalization is unknown.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from cifar_resnet import CustomResNet, find_misclassified
        >>> images, labels = torch.rand(20, 3, 32, 32), torch.arange(20) % 10
        >>> found = find_misclassified(CustomResNet(width=4), TensorDataset(images, labels), n=3)
        >>> len(found), found.total, found[0].image.shape
        (3, 20, torch.Size([3, 32, 32]))
    """
    if n is not None:
        n = arguments.integer("n", n, minimum=1, instead=", or None for all")
    options = ScanOptions(
        sort_by=sort_by,
        true_class=true_class,
        pred_class=pred_class,
        batch_size=batch_size,
        device=device,
        class_names=class_names,
        mean=mean,
        std=std,
        seed=seed,
    )
    return scan(model, data, n, options)


@dataclass(frozen=True)
class ScanOptions:
    """How to read the data and which errors to keep: checked arguments of `find_misclassified`."""

    sort_by: str = "loss"
    true_class: int | str | None = None
    pred_class: int | str | None = None
    batch_size: int = 500
    device: Any = None  # converted to torch.device | None
    class_names: Any = None  # converted to tuple[str, ...] | None
    mean: Any = None  # converted to tuple[float, ...] | None, as is std
    std: Any = None
    seed: int = 0

    def __post_init__(self) -> None:
        arguments.choice("sort_by", self.sort_by, SORTS)
        check_class("true_class", self.true_class)
        check_class("pred_class", self.pred_class)
        mean, std = as_statistics(self.mean, self.std) or (None, None)
        converted = {
            "batch_size": arguments.integer("batch_size", self.batch_size, minimum=1),
            "device": None if self.device is None else arguments.device("device", self.device),
            "class_names": as_class_names(self.class_names),
            "mean": mean,
            "std": std,
            "seed": arguments.integer("seed", self.seed, minimum=0),
        }
        for name, value in converted.items():
            object.__setattr__(self, name, value)

    @property
    def statistics(self) -> Statistics | None:
        return None if self.mean is None else (self.mean, self.std)

    def changed(self) -> list[str]:
        """Return the names of the options that differ from their defaults."""
        return [each.name for each in fields(self) if getattr(self, each.name) != each.default]


def scan(model: nn.Module, data: Any, n: int | None, options: ScanOptions) -> MisclassifiedSamples:
    """Find the misclassified images with options that are already checked."""
    model = unwrap_compiled(model)
    source = as_source(data, options.batch_size)
    with (
        preserve_state(model),
        torch.inference_mode(False),  # the errors should hold ordinary tensors
        torch.no_grad(),
        run_on_device(model, options.device) as (runner, move_inputs),
    ):
        collector = _ErrorCollector(n, options, source)
        for number, (indices, inputs, labels) in enumerate(source.batches()):
            check = contextlib.nullcontext() if number else warn_if_not_normalized(model)
            with check:
                scores = class_scores(runner, move_inputs(inputs)).float()
            collector.add(indices, inputs, labels.to(scores.device), scores)
        return collector.result()


class _Error(NamedTuple):
    """The part of a misclassified sample that is copied from its batch."""

    inputs: Tensor
    probabilities: Tensor
    true: int
    predicted: int
    loss: float


class _ErrorCollector:
    """Count the predictions of all batches, and keep the `n` errors that come first."""

    def __init__(self, n: int | None, options: ScanOptions, source: Source) -> None:
        self.n, self.options, self.source = n, options, source
        given = options.class_names
        self.names: tuple[str, ...] | None = source.class_names if given is None else given
        self.true_class: int | None = None
        self.pred_class: int | None = None
        self.errors: list[tuple[float, int, _Error]] = []  # sort key, index, error
        self.matching = 0
        self.confusion: Tensor | None = None
        # sums over the samples in each bin: their number, confidence, correct predictions
        self.bins = torch.zeros(3, _BINS, dtype=torch.float64)

    def add(self, indices: Tensor, inputs: Tensor, labels: Tensor, scores: Tensor) -> None:
        classes = scores.shape[1]
        if self.confusion is None:
            self._check_classes(classes)
            self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        check_finite(scores, indices, "sample")
        outside = (labels < 0) | (labels >= classes)
        if bool(outside.any()):
            first = int(outside.nonzero()[0])
            raise ValueError(
                f"Sample {int(indices[first])} has label {int(labels[first])}, but the model has "
                f"the classes 0 to {classes - 1}."
            )
        probabilities = scores.softmax(1)
        confidence, predicted = probabilities.max(1)
        pairs = labels * classes + predicted
        self.confusion += torch.bincount(pairs, minlength=classes**2).view(classes, -1).cpu()
        self._add_to_bins(confidence, predicted == labels)

        wrong = predicted != labels
        if self.true_class is not None:
            wrong &= labels == self.true_class
        if self.pred_class is not None:
            wrong &= predicted == self.pred_class
        rows = wrong.nonzero().flatten()
        self.matching += len(rows)
        if len(rows) == 0:
            return
        true_probability = probabilities[rows].gather(1, labels[rows, None])[:, 0]
        loss = F.cross_entropy(scores[rows], labels[rows], reduction="none")
        margin = confidence[rows] - true_probability
        numbers = indices.to(rows.device)[rows].tolist()
        keys = self._sort_keys(
            {"loss": loss, "confidence": confidence[rows], "margin": margin}, numbers
        )
        new: list[tuple[float, int, int | _Error]] = list(
            zip(keys, numbers, range(len(rows)), strict=True)
        )
        first_errors = sorted([*self.errors, *new], key=lambda entry: entry[:2])[: self.n]

        row_numbers = rows.tolist()

        def copied(number: int) -> _Error:
            row = row_numbers[number]
            return _Error(
                inputs[row].detach().cpu().clone(),
                probabilities[row].cpu(),
                int(labels[row]),
                int(predicted[row]),
                float(loss[number]),
            )

        self.errors = [
            (key, index, copied(error) if isinstance(error, int) else error)
            for key, index, error in first_errors
        ]

    def _check_classes(self, classes: int) -> None:
        """Compare the class names with the number of scores, and look up the requested classes."""
        given = tuple(map(str, range(classes))) if self.names is None else self.names
        names = distinct_names(given)
        if len(names) != classes:
            raise ValueError(
                f"The model has {classes} classes, but there are {len(names)} class names: "
                f"{', '.join(names[:12])}. Pass class_names with one name for each class."
            )
        self.names = names
        self.true_class = class_index(self.options.true_class, given, "true_class")
        self.pred_class = class_index(self.options.pred_class, given, "pred_class")
        if self.true_class is not None and self.true_class == self.pred_class:
            raise ValueError(
                f"true_class and pred_class are both {names[self.true_class]!r}; an error has two "
                "different classes."
            )

    def _sort_keys(self, values: dict[str, Tensor], indices: list[int]) -> list[float]:
        """Return a key of each sample for ascending order, which does not depend on its batch."""
        if self.options.sort_by == "index":
            return [float(index) for index in indices]
        if self.options.sort_by == "random":
            return [random.Random(f"{self.options.seed} {index}").random() for index in indices]
        keys: list[float] = (-values[self.options.sort_by]).tolist()
        return keys

    def _add_to_bins(self, confidence: Tensor, correct: Tensor) -> None:
        confidence = confidence.cpu().double()  # MPS has no float64
        bins = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1
        for row, values in enumerate(
            (torch.ones_like(confidence), confidence, correct.cpu().double())
        ):
            self.bins[row] += torch.bincount(bins, values, minlength=_BINS)

    def result(self) -> MisclassifiedSamples:
        if self.confusion is None or self.names is None:
            raise ValueError("The data contain no samples.")
        names = self.names
        statistics = self.options.statistics
        samples = [
            MisclassifiedSample(
                index,
                in_unit_range(
                    error.inputs,
                    statistics or self.source.statistics,
                    name=f"Image {index}",
                    clip=statistics is not None,
                ),
                true_name=names[error.true],
                predicted_name=names[error.predicted],
                suspect=index in self.source.suspects,
                **error._asdict(),
            )
            for _, index, error in self.errors
        ]
        counts, confidence, correct = self.bins
        return MisclassifiedSamples(
            samples,
            confusion=self.confusion,
            class_names=names,
            calibration=Calibration(counts.long(), confidence / counts, correct / counts),
            sort_by=self.options.sort_by,
            matching=self.matching,
            true_class=None if self.true_class is None else names[self.true_class],
            pred_class=None if self.pred_class is None else names[self.pred_class],
        )
