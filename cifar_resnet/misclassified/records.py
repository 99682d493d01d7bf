"""Store the errors of a classifier and the counts over all samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

from torch import Tensor

from cifar_resnet import arguments
from cifar_resnet.data.class_names import check_different, class_index
from cifar_resnet.misclassified.outcomes import Outcomes

__all__ = ["Calibration", "MisclassifiedSample", "MisclassifiedSamples"]


@dataclass(frozen=True, eq=False)
class MisclassifiedSample:
    """One misclassified image.

    Attributes:
        index: Index in the dataset; position in the order of reading for data that cannot be
            indexed, such as an `IterableDataset`. None if unknown, for example if a `collate_fn`
            drops one of several equal samples.
        image: The image for display: float32 (C, H, W) in [0, 1], without the normalization.
        inputs: The same image as the model receives it.
        true: Class number of the label.
        predicted: Class number of the prediction.
        true_name: Name of the label's class.
        predicted_name: Name of the predicted class.
        probabilities: Softmax of the scores, float32 (classes,); the model's own probabilities if
            it returns probabilities.
        loss: Cross-entropy of the label (natural logarithm).
        position: Position in the order of reading, which is known for all data.
        suspect: Whether the label is listed in `label_suspects`.
    """

    index: int | None
    image: Tensor = field(repr=False)
    inputs: Tensor = field(repr=False)
    true: int
    predicted: int
    true_name: str
    predicted_name: str
    probabilities: Tensor = field(repr=False)
    loss: float
    position: int
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
    """Number of samples of one class that were predicted as another.

    Attributes:
        true: Name of the label's class.
        predicted: Name of the predicted class.
        errors: Number of samples.
        fraction: `errors` divided by the number of samples of the label's class.
    """

    true: str
    predicted: str
    errors: int
    fraction: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """Accuracy and mean confidence of all samples, in bins of the confidence of equal width.

    Guo, Pleiss, Sun and Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017),
    equation 5.

    Attributes:
        counts: Samples in each bin, int64 (bins,). Bin i holds confidences in
            (i / bins, (i + 1) / bins].
        confidence: Mean probability of the predicted class in each bin, float64; NaN if empty.
        accuracy: Fraction of correct predictions in each bin, float64; NaN if empty.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def expected_error(self) -> float:
        """Expected calibration error: the mean absolute difference between accuracy and confidence
        over all bins, weighted by their number of samples; in [0, 1]."""
        gaps = (self.accuracy - self.confidence).abs().nan_to_num(0.0)
        return float((gaps * self.counts).sum() / self.counts.sum().clamp(min=1))


class MisclassifiedSamples(Sequence[MisclassifiedSample]):
    """An immutable sequence of the errors that were kept, with counts over all samples.

    Attributes:
        confusion: Number of samples of class i (row) predicted as class j (column), int64
            (classes, classes). The diagonal counts the correct predictions.
        class_names: Names of the classes.
        calibration: Confidence and accuracy.
        outcomes: Label, prediction, confidence and index of every sample, for `compare_errors`.
        sort_by: Quantity that the samples are sorted by.
        matching: Number of errors that match `true_class` and `pred_class` among all samples,
            according to `confusion`, whether they were kept (`n`) or not.
        true_class: Name of the requested class of the label. If None, any class.
        pred_class: Name of the requested predicted class. If None, any class.
    """

    def __init__(
        self,
        samples: Sequence[MisclassifiedSample],
        *,
        confusion: Tensor,
        class_names: Sequence[str],
        calibration: Calibration,
        outcomes: Outcomes,
        sort_by: str,
        matching: int,
        true_class: str | None = None,
        pred_class: str | None = None,
    ) -> None:
        self._samples = tuple(samples)
        self.confusion = confusion
        self.class_names = tuple(class_names)
        self.calibration = calibration
        self.outcomes = outcomes
        self.sort_by = sort_by
        self.matching = matching
        self.true_class = true_class
        self.pred_class = pred_class

    @property
    def total(self) -> int:
        """Number of samples in the data."""
        return int(self.confusion.sum())

    @property
    def errors(self) -> int:
        """Number of misclassified samples."""
        return self.total - int(self.confusion.diagonal().sum())

    @property
    def accuracy(self) -> float:
        """Fraction of correctly classified samples, in [0, 1]."""
        return 1 - self.errors / self.total

    @property
    def class_accuracy(self) -> dict[str, float]:
        """Accuracy on the samples of each class (recall); NaN for a class without samples."""
        accuracy = self.confusion.diagonal().double() / self.confusion.sum(1)
        return dict(zip(self.class_names, accuracy.tolist(), strict=True))

    def most_confused(self, n: int = 10) -> list[ConfusedPair]:
        """Return the pairs of classes with the most errors, in descending order.

        Pairs with the same number of errors are ordered by class number.

        Args:
            n: Maximum number of pairs.

        Raises:
            TypeError: If `n` is not an integer.
            ValueError: If `n` is smaller than 1.
        """
        n = arguments.integer("n", n, minimum=1)
        errors = self.confusion.clone().fill_diagonal_(0)
        pairs = errors.flatten().argsort(descending=True, stable=True)[:n].tolist()
        classes = len(self.class_names)
        return [
            ConfusedPair(
                self.class_names[true],
                self.class_names[predicted],
                int(errors[true, predicted]),
                float(errors[true, predicted] / self.confusion[true].sum()),
            )
            for true, predicted in (divmod(pair, classes) for pair in pairs)
            if errors[true, predicted]
        ]

    def where(
        self, *, true_class: int | str | None = None, pred_class: int | str | None = None
    ) -> MisclassifiedSamples:
        """Return the errors that were kept of these classes, with the counts over all samples.

        Args:
            true_class: Number or name of the label's class. If None, any class.
            pred_class: Number or name of the predicted class. If None, any class.

        Returns:
            The errors in the same order. `matching` counts all errors of these classes, so it is
            greater than the length of the result if not all errors were kept.

        Raises:
            TypeError: If a class is neither a number nor a name.
            ValueError: If there is no such class, or the errors are already restricted to another
                one.

        Examples:
            >>> import torch
            >>> from cifar_resnet import CustomResNet, find_misclassified
            >>> data = torch.rand(20, 3, 32, 32), torch.arange(20) % 10
            >>> found = find_misclassified(CustomResNet(width=4), data)
            >>> {sample.true for sample in found.where(true_class=3)} <= {3}
            True
        """
        true = self._restricted("true_class", true_class)
        predicted = self._restricted("pred_class", pred_class)
        check_different(true, predicted, self.class_names)
        errors = self.confusion.clone().fill_diagonal_(0)
        rows = slice(None) if true is None else true
        columns = slice(None) if predicted is None else predicted
        samples = [
            sample
            for sample in self
            if true in (None, sample.true) and predicted in (None, sample.predicted)
        ]
        return self._with(
            samples,
            matching=int(errors[rows, columns].sum()),
            true_class=None if true is None else self.class_names[true],
            pred_class=None if predicted is None else self.class_names[predicted],
        )

    def _restricted(self, argument: str, requested: int | str | None) -> int | None:
        """Return the number of the requested class, or of the class that all errors have."""
        number = class_index(requested, self.class_names, argument)
        own = class_index(getattr(self, argument), self.class_names, argument)
        if own is not None and number not in (None, own):
            raise ValueError(
                f"{argument} is {requested!r}, but only errors of {self.class_names[own]!r} were "
                "kept. Filter a result that has errors of all classes."
            )
        return own if number is None else number

    def _with(self, samples: Sequence[MisclassifiedSample], **changes: Any) -> MisclassifiedSamples:
        unchanged = {name: value for name, value in vars(self).items() if name != "_samples"}
        return MisclassifiedSamples(samples, **unchanged | changes)

    def to_records(self) -> list[dict[str, Any]]:
        """Return the samples without their pixels as plain numbers and strings, for `json.dumps`
        or a data frame. An unknown index is None."""
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
    def __getitem__(self, index: int) -> MisclassifiedSample: ...
    @overload
    def __getitem__(self, index: slice) -> MisclassifiedSamples: ...
    def __getitem__(self, index: int | slice) -> MisclassifiedSample | MisclassifiedSamples:
        if isinstance(index, slice):
            return self._with(self._samples[index])
        return self._samples[index]

    def __len__(self) -> int:
        return len(self._samples)

    def __iter__(self) -> Iterator[MisclassifiedSample]:
        return iter(self._samples)

    def __repr__(self) -> str:
        return (
            f"<MisclassifiedSamples: {len(self)} of {self.errors:,} errors in {self.total:,} "
            f"samples, accuracy {self.accuracy:.2%}, sorted by {self.sort_by}>"
        )
