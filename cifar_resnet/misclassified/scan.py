"""Every sample through the model once, the errors kept. It knows scores and labels; it must not
know class activation maps or figures.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.data.class_names import as_class_names, check_class, class_index
from cifar_resnet.data.reading import Source, as_source
from cifar_resnet.misclassified.execution import placed
from cifar_resnet.misclassified.records import (
    Calibration,
    MisclassifiedSample,
    MisclassifiedSamples,
)
from cifar_resnet.misclassified.scores import class_scores
from cifar_resnet.model_state import preserve_state, unwrap_compiled
from cifar_resnet.normalization import Statistics, as_statistics, in_unit_range

__all__ = ["find_misclassified"]

SORTS = ("loss", "confidence", "margin", "index", "random")
_BINS = 15  # as in Guo et al.


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
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    seed: int = 0,
) -> MisclassifiedSamples:
    """The images that a classifier gets wrong, and how it does over all images.

    Each image goes through the model once, in evaluation mode and without gradients; the model
    stays as it is. Only the errors that are kept take memory. An autocast that is on stays on.

    Args:
        model: Any module from images to class scores (N, classes): logits, probabilities of a
            softmax, or log-probabilities.
        data: A `Dataset` of (image, label), a `DataLoader` (its samples once each, whatever its
            order), a `LightningDataModule` (its test data), or None for the CIFAR-10 test set.
        n: Most errors to keep; None for all.
        sort_by: Which come first: "loss" and "confidence" (of the wrong class) and "margin" (of its
            probability over the right one's) in descending order, "index" ascending, or "random".
        true_class: Keep only errors on images of this class, a number or a name.
        pred_class: Keep only errors that name this class.
        batch_size: Images at once, where `data` does not say it.
        device: Where to compute; None for where the model is. The model is not moved.
        class_names: Names of the classes; None to take them from the data, else numbers.
        mean: Mean of each channel that was subtracted from the images; None to take it from the
            data.
        std: Standard deviation of each channel that they were divided by.
        seed: Key of the random order.

    Returns:
        An immutable sequence of the errors, with totals, confusion matrix and calibration.

    Raises:
        TypeError: If `model` or `data` is none of the above, or another argument has the wrong
            type.
        ValueError: If an argument is out of its range, a score is not finite, the model does not
            return (N, classes), the data have no labels, or the images cannot be shown because
            their normalization is unknown.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from cifar_resnet import CustomResNet, find_misclassified
        >>> images, labels = torch.rand(20, 3, 32, 32), torch.arange(20) % 10
        >>> found = find_misclassified(CustomResNet(width=4), TensorDataset(images, labels), n=3)
        >>> len(found), found.total, found[0].image.shape
        (3, 20, torch.Size([3, 32, 32]))
    """
    model = unwrap_compiled(model)
    if n is not None:
        n = arguments.integer("n", n, minimum=1, instead=", or None for all")
    sort_by = arguments.choice("sort_by", sort_by, SORTS)
    check_class("true_class", true_class)
    check_class("pred_class", pred_class)
    batch_size = arguments.integer("batch_size", batch_size, minimum=1)
    if device is not None:
        device = arguments.device("device", device)
    names = as_class_names(class_names)
    given = as_statistics(mean, std)
    seed = arguments.integer("seed", seed, minimum=0)
    source = as_source(data, batch_size)
    with (
        preserve_state(model),
        torch.inference_mode(False),  # what is kept should be ordinary tensors
        torch.no_grad(),
        placed(model, device) as (run, place),
    ):
        keep = _Keeper(n, sort_by, true_class, pred_class, seed, names, source)
        for indices, inputs, labels in source.batches():
            scores = class_scores(run, place(inputs)).float()
            keep.add(indices, inputs, labels.to(scores.device), scores)
        return keep.result(given or source.statistics, message=given is not None)


class _Keeper:
    def __init__(
        self,
        n: int | None,
        sort_by: str,
        true_class: int | str | None,
        pred_class: int | str | None,
        seed: int,
        names: tuple[str, ...] | None,
        source: Source,
    ) -> None:
        self.n, self.sort_by, self.seed = n, sort_by, seed
        self.wanted = true_class, pred_class
        self.names = names if names is not None else source.class_names
        self.numbers: tuple[int | None, int | None] = None, None
        self.source = source
        self.kept: list[tuple[float, int, dict[str, Any]]] = []
        self.matching = 0
        self.confusion: Tensor | None = None
        self.bins = torch.zeros(3, _BINS, dtype=torch.float64)  # samples, confidence, right

    def _start(self, classes: int) -> Tensor:
        if self.names is None:
            self.names = tuple(map(str, range(classes)))
        if len(self.names) != classes:
            raise ValueError(
                f"The model has {classes} classes, but there are {len(self.names)} class names: "
                f"{', '.join(self.names[:12])}. Pass class_names with one name for each class."
            )
        self.numbers = (
            class_index(self.wanted[0], self.names, "true_class"),
            class_index(self.wanted[1], self.names, "pred_class"),
        )
        if self.numbers[0] is not None and self.numbers[0] == self.numbers[1]:
            raise ValueError(
                f"true_class and pred_class are both {self.names[self.numbers[0]]!r}; an error "
                "has two different classes."
            )
        return torch.zeros(classes, classes, dtype=torch.int64)

    def add(self, indices: Tensor, inputs: Tensor, labels: Tensor, scores: Tensor) -> None:
        classes = scores.shape[1]
        if self.confusion is None:
            self.confusion = self._start(classes)
        finite = scores.isfinite().all(1)
        if not bool(finite.all()):
            first = int((~finite).nonzero()[0])
            raise ValueError(
                f"The scores of sample {int(indices[first])} are not finite: "
                f"{scores[first].tolist()[:10]}. Check the model's weights and the images' range."
            )
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
        self._calibrate(confidence, predicted == labels)

        wrong = predicted != labels
        for number, of in zip(self.numbers, (labels, predicted), strict=True):
            if number is not None:
                wrong &= of == number
        rows = wrong.nonzero().flatten()
        self.matching += len(rows)
        if len(rows) == 0:
            return
        true_probability = probabilities[rows].gather(1, labels[rows, None])[:, 0]
        loss = F.cross_entropy(scores[rows], labels[rows], reduction="none")
        numbers = indices.to(rows.device)[rows].tolist()
        margin = confidence[rows] - true_probability
        keys = self._keys({"loss": loss, "confidence": confidence[rows], "margin": margin}, numbers)
        new = [
            (key, index, {"row": row, "loss": each})
            for key, index, row, each in zip(
                keys, numbers, rows.tolist(), loss.tolist(), strict=True
            )
        ]
        self.kept = sorted(self.kept + new, key=lambda entry: entry[:2])[: self.n]
        for _, _, facts in self.kept:
            if "row" in facts:  # of this batch, and it stays
                row = facts.pop("row")
                facts["inputs"] = inputs[row].detach().cpu().clone()
                facts["probabilities"] = probabilities[row].cpu()
                facts["true"], facts["predicted"] = int(labels[row]), int(predicted[row])

    def _keys(self, values: dict[str, Tensor], indices: list[int]) -> list[float]:
        """What to sort by, ascending; of a sample it is the same whatever its batch."""
        if self.sort_by == "index":
            return [float(index) for index in indices]
        if self.sort_by == "random":
            return [random.Random(f"{self.seed} {index}").random() for index in indices]
        keys: list[float] = (-values[self.sort_by]).tolist()
        return keys

    def _calibrate(self, confidence: Tensor, right: Tensor) -> None:
        confidence = confidence.double().cpu()
        places = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1
        for row, values in enumerate(
            (torch.ones_like(confidence), confidence, right.double().cpu())
        ):
            self.bins[row] += torch.bincount(places, values, minlength=_BINS)

    def result(self, statistics: Statistics | None, *, message: bool) -> MisclassifiedSamples:
        if self.confusion is None:
            raise ValueError("There is no sample in the data.")
        assert self.names is not None
        images = [
            in_unit_range(facts["inputs"], statistics, name=f"Image {index}", clip=message)
            for _, index, facts in self.kept
        ]
        samples = [
            MisclassifiedSample(
                index,
                image,
                true_name=self.names[facts["true"]],
                predicted_name=self.names[facts["predicted"]],
                suspect=index in self.source.suspects,
                **facts,
            )
            for image, (_, index, facts) in zip(images, self.kept, strict=True)
        ]
        counts, confidence, right = self.bins
        return MisclassifiedSamples(
            samples,
            confusion=self.confusion,
            class_names=self.names,
            calibration=Calibration(counts.long(), confidence / counts, right / counts),
            sort_by=self.sort_by,
            matching=self.matching,
            true_class=None if self.numbers[0] is None else self.names[self.numbers[0]],
            pred_class=None if self.numbers[1] is None else self.names[self.numbers[1]],
        )
