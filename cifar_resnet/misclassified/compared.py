"""Store the comparison of two classifiers on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, overload

from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.misclassified.outcomes import Outcomes
from cifar_resnet.misclassified.proportions import mcnemar_test, tango_interval, wilson_interval

__all__ = ["ClassComparison", "ComparedSample", "ErrorComparison"]


@dataclass(frozen=True, eq=False)
class ComparedSample:
    """One image that at least one of two classifiers gets wrong.

    Attributes:
        index: Index in the dataset; None if unknown.
        image: The image for display: float32 (C, H, W) in [0, 1], without the normalization.
        inputs: The same image as each of the two models receives it.
        true: Class number of the label.
        true_name: Name of the label's class.
        predicted: Class numbers of the predictions of a and b.
        predicted_names: Names of the predicted classes.
        confidence: Probabilities of the predicted classes.
        suspect: Whether the label is listed in `label_suspects`.
        position: Row of `ErrorComparison.outcomes`.
    """

    index: int | None
    image: Tensor = field(repr=False)
    inputs: tuple[Tensor, Tensor] = field(repr=False)
    true: int
    true_name: str
    predicted: tuple[int, int]
    predicted_names: tuple[str, str]
    confidence: tuple[float, float]
    suspect: bool
    position: int

    @property
    def wrong(self) -> str:
        """Which classifier is wrong: "a", "b" or "both"."""
        return _wrong(self.predicted[0] != self.true, self.predicted[1] != self.true)


@dataclass(frozen=True)
class ClassComparison:
    """The errors of two classifiers on the images of one class.

    Attributes:
        name: Name of the class.
        images: Number of images with this label.
        only_a: Number of them that only a gets wrong.
        only_b: Number of them that only b gets wrong.
        both_wrong: Number of them that both get wrong.
        difference: Accuracy of b on them minus that of a; NaN without images.
        low: Lower end of the 95 % interval of the difference (Tango, 1998); NaN without images.
        high: Upper end.
    """

    name: str
    images: int
    only_a: int
    only_b: int
    both_wrong: int
    difference: float
    low: float
    high: float


class ErrorComparison(Sequence[ComparedSample]):
    """The comparison of two classifiers, and the images that they get wrong; `str` gives a table.

    It is an immutable sequence of the errors that were kept, the most confident ones first.

    Attributes:
        names: Names of the two classifiers.
        class_names: Names of the classes.
        outcomes: Labels, predictions, confidences and indices of a and of b for all images.
    """

    def __init__(
        self,
        samples: Sequence[ComparedSample],
        names: tuple[str, str],
        class_names: tuple[str, ...],
        outcomes: tuple[Outcomes, Outcomes],
        models: tuple[nn.Module, nn.Module] | None = None,
    ) -> None:
        self._samples = tuple(samples)
        self.names = names
        self.class_names = class_names
        self.outcomes = outcomes
        self._models = models
        self._right = outcomes[0].right, outcomes[1].right

    @property
    def total(self) -> int:
        """Number of images."""
        return len(self.outcomes[0])

    @property
    def both_right(self) -> int:
        """Number of images that both classifiers get right."""
        return int((self._right[0] & self._right[1]).sum())

    @property
    def only_a(self) -> int:
        """Number of images that a gets wrong and b gets right."""
        return int((~self._right[0] & self._right[1]).sum())

    @property
    def only_b(self) -> int:
        """Number of images that b gets wrong and a gets right."""
        return int((self._right[0] & ~self._right[1]).sum())

    @property
    def both_wrong(self) -> int:
        """Number of images that both classifiers get wrong."""
        return int((~self._right[0] & ~self._right[1]).sum())

    @property
    def same_wrong(self) -> int:
        """Number of images that both classifiers predict as the same wrong class."""
        same = self.outcomes[0].predicted == self.outcomes[1].predicted
        return int((same & ~self._right[0]).sum())

    @property
    def accuracies(self) -> tuple[float, float]:
        """Fractions of images that a and b get right, in [0, 1]."""
        a, b = (int(right.sum()) / self.total for right in self._right)
        return a, b

    @property
    def intervals(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """95 % Wilson intervals of the two accuracies (Wilson, 1927)."""
        a, b = (wilson_interval(int(right.sum()), self.total) for right in self._right)
        return a, b

    @property
    def difference(self) -> float:
        """Accuracy of b minus that of a, in [-1, 1]."""
        return (self.only_a - self.only_b) / self.total

    @property
    def difference_interval(self) -> tuple[float, float]:
        """95 % score interval of the difference for paired samples (Tango, 1998)."""
        return tango_interval(self.only_a, self.only_b, self.total)

    @property
    def p_value(self) -> float:
        """p-value of McNemar's exact, two-sided test that both are equally accurate."""
        return mcnemar_test(self.only_a, self.only_b)

    @property
    def classes(self) -> tuple[ClassComparison, ...]:
        """The comparison on the images of each class.

        Each interval contains its difference with a probability of 95 %; all of them together do
        so with a smaller one.
        """
        labels = self.outcomes[0].labels
        return tuple(
            self._of_class(name, labels == number) for number, name in enumerate(self.class_names)
        )

    def _of_class(self, name: str, rows: Tensor) -> ClassComparison:
        right_a, right_b = (right[rows] for right in self._right)
        images = len(right_a)
        only_a, only_b = int((~right_a & right_b).sum()), int((right_a & ~right_b).sum())
        both = int((~right_a & ~right_b).sum())
        if not images:
            return ClassComparison(name, 0, 0, 0, 0, math.nan, math.nan, math.nan)
        low, high = tango_interval(only_a, only_b, images)
        difference = (only_a - only_b) / images
        return ClassComparison(name, images, only_a, only_b, both, difference, low, high)

    def to_records(self) -> list[dict[str, Any]]:
        """Return all images that at least one classifier gets wrong, in the order of the indices,
        as plain numbers and strings, for `json.dumps` or a data frame. An unknown index is None."""
        a, b = self.outcomes
        rows = (~(self._right[0] & self._right[1])).nonzero().flatten()
        rows = rows[a.indices[rows].argsort(stable=True)]
        return [
            {
                "index": index if index >= 0 else None,
                "true": self.class_names[true],
                "wrong": _wrong(in_a != true, in_b != true),
                "predicted_a": self.class_names[in_a],
                "confidence_a": confidence_a,
                "predicted_b": self.class_names[in_b],
                "confidence_b": confidence_b,
            }
            for index, true, in_a, confidence_a, in_b, confidence_b in zip(
                *(
                    values[rows].tolist()
                    for values in (
                        a.indices, a.labels, a.predicted, a.confidence, b.predicted, b.confidence
                    )
                ),
                strict=True,
            )
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the counts, the test and the comparison of each class, for `json.dumps`.

        NaN, the difference of a class without images, becomes None.
        """
        counts = ("total", "both_right", "only_a", "only_b", "both_wrong", "same_wrong")
        values = ("accuracies", "intervals", "difference", "difference_interval", "p_value")
        return {
            "names": list(self.names),
            **{name: getattr(self, name) for name in (*counts, *values)},
            "classes": [
                {name: None if value != value else value for name, value in asdict(row).items()}
                for row in self.classes
            ],
        }

    def group(self, wrong: str) -> list[ComparedSample]:
        """Return the kept samples that "a", "b" or "both" get wrong.

        Raises:
            TypeError: If `wrong` is not a string.
            ValueError: If it is another string.
        """
        arguments.choice("wrong", wrong, WRONG)
        return [sample for sample in self if sample.wrong == wrong]

    def __str__(self) -> str:
        a, b = self.names
        rows = [
            (f"accuracy of {name}", f"{accuracy:.2%}", f"95 % interval {low:.2%} to {high:.2%}")
            for name, accuracy, (low, high) in zip(
                self.names, self.accuracies, self.intervals, strict=True
            )
        ]
        low, high = self.difference_interval
        same = f"{self.same_wrong:,} of them predicted as the same class"
        rows += [
            (
                f"{b} minus {a}",
                f"{100 * self.difference:+.2f} points",
                f"95 % interval {100 * low:+.2f} to {100 * high:+.2f}",
            ),
            ("McNemar's exact test", f"p = {self.p_value:.2g}", ""),
            ("both right", f"{self.both_right:,}", f"of {self.total:,} images"),
            (f"only {a} wrong", f"{self.only_a:,}", ""),
            (f"only {b} wrong", f"{self.only_b:,}", ""),
            ("both wrong", f"{self.both_wrong:,}", same),
        ]
        left, middle = (max(len(row[column]) for row in rows) for column in (0, 1))
        return "\n".join(
            f"{name:<{left}}  {value:>{middle}}  {note}".rstrip() for name, value, note in rows
        )

    def __repr__(self) -> str:
        return (
            f"<ErrorComparison of {self.names[0]} and {self.names[1]}: {self.total:,} images, "
            f"{self.only_a:,} and {self.only_b:,} errors of one alone, {self.both_wrong:,} shared>"
        )

    @overload
    def __getitem__(self, index: int) -> ComparedSample: ...
    @overload
    def __getitem__(self, index: slice) -> ErrorComparison: ...
    def __getitem__(self, index: int | slice) -> ComparedSample | ErrorComparison:
        if isinstance(index, slice):
            return ErrorComparison(
                self._samples[index], self.names, self.class_names, self.outcomes, self._models
            )
        return self._samples[index]

    def __len__(self) -> int:
        return len(self._samples)


WRONG = ("a", "b", "both")


def _wrong(a: bool, b: bool) -> str:
    return "both" if a and b else "a" if a else "b"
