"""Choose and keep the errors of a classifier."""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_resnet import arguments
from cifar_resnet.data.class_names import (
    as_class_names,
    check_class,
    check_different,
    class_index,
    distinct_names,
)
from cifar_resnet.data.reading import Source
from cifar_resnet.misclassified.counts import PredictionCounts
from cifar_resnet.misclassified.outcomes import Outcomes
from cifar_resnet.misclassified.records import MisclassifiedSample, MisclassifiedSamples
from cifar_resnet.misclassified.scores import check_finite
from cifar_resnet.normalization import Statistics, as_statistics, in_unit_range

SORTS = ("loss", "confidence", "margin", "index", "random")

# Sort key, whether the index is unknown, index or else position in the order of reading.
_Order = tuple[float, bool, int]


@dataclass(frozen=True)
class ScanOptions:
    """How to read the data and which errors to keep: checked arguments of `find_misclassified`."""

    sort_by: str = "loss"
    true_class: int | str | None = None
    pred_class: int | str | None = None
    batch_size: int | None = None
    max_samples: int | None = None
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
            **{
                name: arguments.integer(name, value, minimum=1)
                for name in ("batch_size", "max_samples")
                if (value := getattr(self, name)) is not None
            },
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


@dataclass(frozen=True, eq=False)
class _Error:
    """The part of a misclassified sample that is copied from its batch."""

    index: int | None
    image: Tensor
    inputs: Tensor
    probabilities: Tensor
    true: int
    predicted: int
    loss: float
    position: int


class ErrorCollector:
    """Count the predictions of all batches, and keep the `n` errors that come first."""

    def __init__(self, n: int | None, options: ScanOptions, source: Source) -> None:
        self.n, self.options, self.source = n, options, source
        self.names: tuple[str, ...] = ()
        self.true_class: int | None = None
        self.pred_class: int | None = None
        self.errors: list[tuple[_Order, _Error]] = []
        self.matching = 0
        self.read = 0  # number of samples
        self.counts: PredictionCounts | None = None
        self.outcomes: list[Outcomes] = []  # of each batch

    def check_images(self, indices: Tensor, inputs: Tensor) -> None:
        """Raise an error if the images of a batch cannot be displayed."""
        for number, image in zip(self._numbers(indices), inputs, strict=True):
            self._displayed(image, number)

    def _displayed(self, image: Tensor, number: int) -> Tensor:
        clip = self.options.statistics is not None
        return in_unit_range(image, self._statistics, name=f"Image {number}", clip=clip)

    @property
    def _statistics(self) -> Statistics | None:
        return self.options.statistics or self.source.statistics

    def _numbers(self, indices: Tensor) -> list[int]:
        """Return the indices, or the positions in the order of reading where unknown."""
        positions = torch.arange(self.read, self.read + len(indices), device="cpu")
        numbers: list[int] = indices.cpu().where(indices.cpu() >= 0, positions).tolist()
        return numbers

    def add(self, indices: Tensor, inputs: Tensor, labels: Tensor, scores: Tensor) -> None:
        classes = scores.shape[1]
        if self.counts is None:
            self._check_classes(classes)
            self.counts = PredictionCounts(classes)
        numbers = self._numbers(indices)
        start = self.read
        self.read += len(numbers)
        check_finite(scores, torch.tensor(numbers, device="cpu"), "sample")
        outside = (labels < 0) | (labels >= classes)
        if bool(outside.any()):
            first = int(outside.nonzero()[0])
            raise ValueError(
                f"Sample {numbers[first]} has label {int(labels[first])}, but the model has "
                f"the classes 0 to {classes - 1}."
            )
        probabilities = scores.softmax(1)
        confidence, predicted = probabilities.max(1)
        self.counts.add(labels, predicted, confidence)
        self.outcomes.append(
            Outcomes.of(indices, labels, predicted, confidence, inputs, self._statistics)
        )

        wrong = predicted != labels
        if self.true_class is not None:
            wrong &= labels == self.true_class
        if self.pred_class is not None:
            wrong &= predicted == self.pred_class
        rows = wrong.nonzero().flatten()
        self.matching += len(rows)
        if len(rows) == 0:
            return
        loss = F.cross_entropy(scores[rows], labels[rows], reduction="none")
        true_probability = probabilities[rows].gather(1, labels[rows, None])[:, 0]
        values = {
            "loss": loss,
            "confidence": confidence[rows],
            "margin": confidence[rows] - true_probability,
        }
        known = indices.tolist()
        row_numbers = rows.tolist()
        orders = self._orders(values, [(known[row] < 0, numbers[row]) for row in row_numbers])
        new: list[tuple[_Order, int | _Error]] = list(zip(orders, range(len(rows)), strict=True))

        def copied(number: int) -> _Error:
            row = row_numbers[number]
            image = inputs[row].detach().cpu().clone()
            return _Error(
                None if known[row] < 0 else known[row],
                self._displayed(image, numbers[row]),
                image,
                probabilities[row].cpu(),
                int(labels[row]),
                int(predicted[row]),
                float(loss[number]),
                start + row,
            )

        kept = sorted([*self.errors, *new], key=lambda entry: entry[0])[: self.n]
        self.errors = [
            (order, copied(error) if isinstance(error, int) else error) for order, error in kept
        ]

    def _check_classes(self, classes: int) -> None:
        """Compare the class names with the number of scores, and look up the requested classes."""
        given = self.options.class_names or self._names_of_data(classes)
        names = distinct_names(given)
        if len(names) != classes:
            raise ValueError(
                f"The model has {classes} classes, but there are {len(names)} class names: "
                f"{', '.join(names[:12])}. Pass class_names with one name for each class."
            )
        self.names = names
        self.true_class = class_index(self.options.true_class, given, "true_class")
        self.pred_class = class_index(self.options.pred_class, given, "pred_class")
        check_different(self.true_class, self.pred_class, names)

    def _names_of_data(self, classes: int) -> tuple[str, ...]:
        names = self.source.class_names
        if names is not None and len(names) == classes:
            return names
        if names is not None:
            warnings.warn(
                f"The model has {classes} classes, but the data have {len(names)} class names: "
                f"{', '.join(names[:12])}. Class numbers are used instead. Pass class_names with "
                "one name for each class.",
                stacklevel=2,
            )
        return tuple(map(str, range(classes)))

    def _orders(self, values: dict[str, Tensor], numbers: list[tuple[bool, int]]) -> list[_Order]:
        """Return a key of each sample for ascending order, which does not depend on its batch."""
        sort_by = self.options.sort_by
        if sort_by == "index":
            keys = [0.0] * len(numbers)
        elif sort_by == "random":
            seed = self.options.seed
            keys = [random.Random(f"{seed} {number}").random() for _, number in numbers]
        else:
            keys = (-values[sort_by]).tolist()
        return [(key, *number) for key, number in zip(keys, numbers, strict=True)]

    def result(self) -> MisclassifiedSamples:
        if self.counts is None:
            raise ValueError("The data contain no samples.")
        names = self.names
        samples = [
            MisclassifiedSample(
                true_name=names[error.true],
                predicted_name=names[error.predicted],
                suspect=error.index in self.source.suspects,
                **vars(error),
            )
            for _, error in self.errors
        ]
        return MisclassifiedSamples(
            samples,
            confusion=self.counts.confusion,
            class_names=names,
            calibration=self.counts.calibration(),
            outcomes=Outcomes.joined(self.outcomes),
            sort_by=self.options.sort_by,
            matching=self.matching,
            true_class=None if self.true_class is None else names[self.true_class],
            pred_class=None if self.pred_class is None else names[self.pred_class],
        )
