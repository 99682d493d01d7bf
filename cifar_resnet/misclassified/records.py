"""What was found: single errors, and the counts over all samples. Numbers only; it must not know
how they came about, and draws nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

from torch import Tensor

from cifar_resnet import arguments

__all__ = ["Calibration", "MisclassifiedSample", "MisclassifiedSamples"]


@dataclass(frozen=True, eq=False)
class MisclassifiedSample:
    """One image that the model takes for another class.

    Attributes:
        index: Index in the dataset.
        image: The image for people: float32 (C, H, W) in [0, 1], without the normalization.
        inputs: The same image as the model gets it.
        true: Class number of the label.
        predicted: Class number of the prediction.
        true_name: Name of the label's class.
        predicted_name: Name of the predicted class.
        probabilities: Softmax of the scores, float32 (classes,).
        loss: Cross-entropy of the label, in nats.
        suspect: Whether the label is a known suspect, see `label_suspects`.
    """

    index: int
    image: Tensor = field(repr=False)
    inputs: Tensor = field(repr=False)
    true: int
    predicted: int
    true_name: str
    predicted_name: str
    probabilities: Tensor = field(repr=False)
    loss: float
    suspect: bool = False

    @property
    def confidence(self) -> float:
        """Probability of the predicted class."""
        return float(self.probabilities[self.predicted])

    @property
    def margin(self) -> float:
        """Probability of the predicted class minus that of the label's."""
        return float(self.probabilities[self.predicted] - self.probabilities[self.true])


class ConfusedPair(NamedTuple):
    """How often one class was taken for another.

    Attributes:
        true: Name of the label's class.
        predicted: Name of the predicted class.
        errors: Number of samples.
        share: Of the label's samples, in [0, 1].
    """

    true: str
    predicted: str
    errors: int
    share: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """How confidence and accuracy agree, over bins of equal width in confidence.

    Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017),
    equation 5.

    Attributes:
        counts: Samples in each bin, int64 (bins,). Bin i holds confidences in
            (i / bins, (i + 1) / bins].
        confidence: Mean probability of the predicted class in each bin, float64; NaN if empty.
        accuracy: Share of right predictions in each bin, float64; NaN if empty.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def expected_error(self) -> float:
        """Expected calibration error: the mean distance of accuracy and confidence, weighted by
        the number of samples; in [0, 1]."""
        gaps = (self.accuracy - self.confidence).abs().nan_to_num(0.0)
        return float((gaps * self.counts).sum() / self.counts.sum().clamp(min=1))


class MisclassifiedSamples(Sequence[MisclassifiedSample]):
    """The errors that were kept, in order, and the counts over all samples that were looked at.

    Attributes:
        confusion: How often class i (row) was taken for class j (column), int64
            (classes, classes); its diagonal counts the right predictions.
        class_names: A name for each class.
        calibration: Confidence against accuracy.
        sort_by: What the samples are sorted by.
        matching: Number of errors between the classes that were asked for, kept or not.
        true_class: Name of the label's class that was asked for; None for any.
        pred_class: Name of the predicted class that was asked for; None for any.
    """

    def __init__(
        self,
        samples: Sequence[MisclassifiedSample],
        *,
        confusion: Tensor,
        class_names: Sequence[str],
        calibration: Calibration,
        sort_by: str,
        matching: int,
        true_class: str | None = None,
        pred_class: str | None = None,
    ) -> None:
        self._samples = tuple(samples)
        self.confusion = confusion
        self.class_names = tuple(class_names)
        self.calibration = calibration
        self.sort_by = sort_by
        self.matching = matching
        self.true_class = true_class
        self.pred_class = pred_class

    @property
    def total(self) -> int:
        """Number of samples looked at."""
        return int(self.confusion.sum())

    @property
    def errors(self) -> int:
        """Number of samples misclassified."""
        return self.total - int(self.confusion.diagonal().sum())

    @property
    def accuracy(self) -> float:
        """Share of samples classified right, in [0, 1]."""
        return 1 - self.errors / self.total

    @property
    def class_accuracy(self) -> dict[str, float]:
        """Share of each class's samples classified right (recall); NaN for a class without any."""
        right = self.confusion.diagonal().double() / self.confusion.sum(1)
        return dict(zip(self.class_names, right.tolist(), strict=True))

    def most_confused(self, n: int = 10) -> list[ConfusedPair]:
        """The pairs of classes with the most errors, in descending order; ties by class number.

        Args:
            n: Most pairs to give.

        Raises:
            TypeError: If `n` is no integer.
            ValueError: If it is smaller than 1.
        """
        n = arguments.integer("n", n, minimum=1)
        wrong = self.confusion.clone().fill_diagonal_(0)
        classes = len(self.class_names)
        order = wrong.flatten().argsort(descending=True, stable=True)[:n].tolist()
        return [
            ConfusedPair(
                self.class_names[place // classes],
                self.class_names[place % classes],
                int(wrong.flatten()[place]),
                float(wrong.flatten()[place] / self.confusion[place // classes].sum()),
            )
            for place in order
            if wrong.flatten()[place]
        ]

    def to_records(self) -> list[dict[str, Any]]:
        """The samples without their pixels, as plain numbers and strings, ready for `json.dumps`
        or a data frame."""
        return [
            {
                "index": sample.index,
                "true": sample.true_name,
                "predicted": sample.predicted_name,
                "confidence": sample.confidence,
                "margin": sample.margin,
                "loss": sample.loss,
                "suspect": sample.suspect,
                "probabilities": dict(
                    zip(self.class_names, sample.probabilities.tolist(), strict=True)
                ),
            }
            for sample in self
        ]

    @overload
    def __getitem__(self, place: int) -> MisclassifiedSample: ...
    @overload
    def __getitem__(self, place: slice) -> MisclassifiedSamples: ...
    def __getitem__(self, place: int | slice) -> MisclassifiedSample | MisclassifiedSamples:
        if isinstance(place, slice):
            return MisclassifiedSamples(
                self._samples[place],
                confusion=self.confusion,
                class_names=self.class_names,
                calibration=self.calibration,
                sort_by=self.sort_by,
                matching=self.matching,
                true_class=self.true_class,
                pred_class=self.pred_class,
            )
        return self._samples[place]

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[MisclassifiedSample]:
        return iter(self._samples)

    def __repr__(self) -> str:
        return (
            f"<MisclassifiedSamples: {len(self)} of {self.errors:,} errors in {self.total:,} "
            f"samples, accuracy {self.accuracy:.2%}, by {self.sort_by}>"
        )
