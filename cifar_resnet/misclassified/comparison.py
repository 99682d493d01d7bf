"""Compare the errors of two classifiers on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.misclassified.collector import ScanOptions
from cifar_resnet.misclassified.compared import ComparedSample, ErrorComparison
from cifar_resnet.misclassified.outcomes import Outcomes
from cifar_resnet.misclassified.records import MisclassifiedSample, MisclassifiedSamples
from cifar_resnet.misclassified.scan import scan_all
from cifar_resnet.model_state import unwrap_compiled

__all__ = ["compare_errors"]

_SAME_SIZE, _OTHER_SIZE = 0.02, 0.3  # by how much the brightness of the same image may differ


def compare_errors(
    a: nn.Module | MisclassifiedSamples,
    b: nn.Module | MisclassifiedSamples,
    data: Any = None,
    *,
    names: Sequence[str] = ("a", "b"),
    n: int | None = None,
    batch_size: int | None = None,
    max_samples: int | None = None,
    device: torch.device | str | None = None,
    class_names: Sequence[str] | Mapping[Any, Any] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> ErrorComparison:
    """Count the images that two classifiers get wrong, together and separately, with a test.

    Two models get the same batches, so that the data are read once. Networks that need different
    preprocessing are compared by the results of `find_misclassified` for each of them, whose
    samples are matched by their index in the dataset.

    The test and the intervals take the two networks as they are, and the images as a random sample.
    They do not know how much the accuracy of a network varies with the random seed of its training,
    so they say which of these two networks is better, not which way of training is (Dietterich,
    "Approximate Statistical Tests for Comparing Supervised Classification Learning Algorithms",
    Neural Computation 10, 1998).

    Args:
        a: A model, as for `find_misclassified`, or its result.
        b: The same for the other classifier.
        data: As for `find_misclassified`. If None, use the CIFAR-10 test set. Not for results.
        names: Two names for tables and figures.
        n: Maximum number of errors of each model whose images are kept for a figure: those with
            the highest loss. If None, keep all. The counts are always those of all images.
        batch_size: As for `find_misclassified`.
        max_samples: As for `find_misclassified`.
        device: As for `find_misclassified`.
        class_names: As for `find_misclassified`.
        mean: As for `find_misclassified`.
        std: As for `find_misclassified`.

    Returns:
        Counts, McNemar's exact test, and the difference of the accuracies with an interval; `str`
        gives a table.

    Raises:
        TypeError: If `a` and `b` are not two models or two results, or another argument has the
            wrong type.
        ValueError: If the classifiers have different classes, or the results belong to different
            images, or their indices are unknown; if options are given for results; or as for
            `find_misclassified`.

    Examples:
        >>> import torch
        >>> from cifar_resnet import CustomResNet, compare_errors
        >>> data = torch.rand(20, 3, 32, 32), torch.arange(20) % 10
        >>> one, other = CustomResNet(width=4), CustomResNet(width=4)
        >>> comparison = compare_errors(one, other, data)
        >>> comparison.total == comparison.both_right + comparison.only_a + comparison.only_b + (
        ...     comparison.both_wrong
        ... )
        True
    """
    pair = _as_names(names)
    if n is not None:
        n = arguments.integer("n", n, minimum=1, instead=", or None for all")
    options = ScanOptions(
        batch_size=batch_size,
        max_samples=max_samples,
        device=device,
        class_names=class_names,
        mean=mean,
        std=std,
    )
    if isinstance(a, MisclassifiedSamples) and isinstance(b, MisclassifiedSamples):
        given = [*(["data"] if data is not None else []), *(["n"] if n is not None else [])]
        given += options.changed()
        if given:
            raise ValueError(
                f"{' and '.join(given)} cannot be given for results. Pass "
                f"{'it' if len(given) == 1 else 'them'} to find_misclassified, or pass the models "
                "in place of its results."
            )
        return _comparison(a, b, *_matched(a, b), pair, None)
    if isinstance(a, MisclassifiedSamples) or isinstance(b, MisclassifiedSamples):
        raise TypeError(
            "a and b must be two models, or two results of find_misclassified, but got "
            f"{type(a).__name__} and {type(b).__name__}. Call find_misclassified for the model, "
            "too, or pass both models."
        )
    models = unwrap_compiled(a), unwrap_compiled(b)
    first, second = scan_all(models, data, n, options, show_progress=True)
    _check_classes(first, second)
    rows = torch.arange(first.total, device="cpu")
    return _comparison(first, second, rows, rows, pair, models)


def _as_names(names: Any) -> tuple[str, str]:
    expected = "two different names for the classifiers"
    message = f"names must be {expected}, but got {names!r}."
    if isinstance(names, str):
        raise TypeError(message)
    pair = arguments.sequence("names", names, expected)
    if not all(isinstance(name, str) for name in pair):
        raise TypeError(message)
    if len(pair) != 2 or pair[0] == pair[1] or not all(pair):
        raise ValueError(message)
    return pair[0], pair[1]


# --- whether two results belong to the same images -----------------------------------------------


def _check_classes(a: MisclassifiedSamples, b: MisclassifiedSamples) -> None:
    if a.class_names != b.class_names:
        raise ValueError(
            f"a has the {len(a.class_names)} classes {', '.join(a.class_names[:12])}, but b has "
            f"the {len(b.class_names)} classes {', '.join(b.class_names[:12])}. Compare "
            "classifiers of the same classes, and pass the same class_names for both."
        )


def _matched(a: MisclassifiedSamples, b: MisclassifiedSamples) -> tuple[Tensor, Tensor]:
    """Return the rows of the outcomes of both results that belong to the same images.

    Raises:
        ValueError: If the results belong to different images, or it is not known to which.
    """
    _check_classes(a, b)
    if a.total != b.total:
        raise ValueError(
            f"a is a result for {a.total:,} images, and b for {b.total:,}. {_SAME_DATA}"
        )
    for name, found in (("a", a), ("b", b)):
        unknown = int((found.outcomes.indices < 0).sum())
        if unknown:
            raise ValueError(
                f"The indices of {unknown:,} images of {name} are not known, so they cannot be "
                "matched. Pass the models and the data in place of the results."
            )
    rows = [found.outcomes.indices.argsort(stable=True) for found in (a, b)]
    first, second = a.outcomes.taken(rows[0]), b.outcomes.taken(rows[1])
    differ = first.indices != second.indices
    if bool(differ.any()):
        row = int(differ.nonzero()[0])
        raise ValueError(
            f"a and b have images with different indices, such as {int(first.indices[row])} and "
            f"{int(second.indices[row])}. {_SAME_DATA}"
        )
    differ = first.labels != second.labels
    if bool(differ.any()):
        index = int(first.indices[differ.nonzero()[0]])
        raise ValueError(
            f"Image {index} has different labels in a and b, as {int(differ.sum()):,} images have. "
            f"{_SAME_DATA}"
        )
    _check_images(a, b, first, second)
    return rows[0], rows[1]


_SAME_DATA = "Call find_misclassified with the same data for both models."


def _check_images(
    a: MisclassifiedSamples, b: MisclassifiedSamples, first: Outcomes, second: Outcomes
) -> None:
    """Raise if the images differ, as far as is known: all brightnesses, and the shared errors."""
    limit = torch.where(first.sizes == second.sizes, _SAME_SIZE, _OTHER_SIZE)
    differ = ~((first.brightness - second.brightness).abs() <= limit)
    if bool(differ.any()):
        row = int(differ.nonzero()[0])
        raise ValueError(
            f"Image {int(first.indices[row])} has a mean brightness of "
            f"{float(first.brightness[row]):.2f} in a and {float(second.brightness[row]):.2f} in b "
            f"(0 is black, 1 is white), so the images are not the same. {_SAME_DATA}"
        )
    images = {sample.index: sample.image for sample in a}
    for sample in b:
        other = images.get(sample.index)
        if other is None or other.shape != sample.image.shape:
            continue
        change = float((other - sample.image).abs().max())
        if change > _SAME_SIZE:
            raise ValueError(
                f"Image {sample.index} is not the same in a and b: a pixel differs by "
                f"{change:.2f}, where 1 is the difference between black and white. {_SAME_DATA}"
            )


# --- the samples that are shown ------------------------------------------------------------------


def _comparison(
    a: MisclassifiedSamples,
    b: MisclassifiedSamples,
    rows_a: Tensor,
    rows_b: Tensor,
    names: tuple[str, str],
    models: tuple[nn.Module, nn.Module] | None,
) -> ErrorComparison:
    outcomes = a.outcomes.taken(rows_a), b.outcomes.taken(rows_b)
    kept: dict[int, tuple[MisclassifiedSample, MisclassifiedSample]] = {}
    for found, rows in ((a, rows_a), (b, rows_b)):
        row_of = rows.argsort()  # row of each position in the order of reading
        for sample in found:
            row = int(row_of[sample.position])
            kept[row] = kept.get(row, (sample, sample))[0], sample
    samples = []
    for row, (one, other) in kept.items():
        predicted = int(outcomes[0].predicted[row]), int(outcomes[1].predicted[row])
        samples.append(
            ComparedSample(
                index=one.index,
                image=one.image,
                inputs=(one.inputs, other.inputs),
                true=one.true,
                true_name=one.true_name,
                predicted=predicted,
                predicted_names=(a.class_names[predicted[0]], a.class_names[predicted[1]]),
                confidence=(float(outcomes[0].confidence[row]), float(outcomes[1].confidence[row])),
                suspect=one.suspect,
                position=row,
            )
        )
    samples.sort(key=_order)
    return ErrorComparison(samples, names, a.class_names, outcomes, models)


def _order(sample: ComparedSample) -> tuple[float, int]:
    """Return a key that puts the errors with the highest confidence first."""
    wrong = [
        c for c, p in zip(sample.confidence, sample.predicted, strict=True) if p != sample.true
    ]
    return -math.fsum(wrong) / len(wrong), sample.position
