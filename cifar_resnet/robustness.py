"""Evaluate a classifier on further evaluation sets of CIFAR-10."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.data import cifar10, evaluation_sets
from cifar_resnet.data.augment import ImageBank
from cifar_resnet.data.sources import load_cifar10
from cifar_resnet.misclassified.execution import run_on_device
from cifar_resnet.misclassified.proportions import wilson_interval
from cifar_resnet.misclassified.scores import check_finite, class_scores
from cifar_resnet.model_state import preserve_state, unwrap_compiled
from cifar_resnet.normalization import Statistics, as_statistics

__all__ = ["Robustness", "RobustnessRow", "evaluate_robustness"]


@dataclass(frozen=True)
class RobustnessRow:
    """The accuracy on one set of images.

    Attributes:
        name: Name of the set, such as `"CIFAR-10.1 v6"` or `"CIFAR-10-C fog, severity 3"`.
        images: Number of images.
        accuracy: Fraction of them that are classified correctly.
        low: Lower end of the 95 % Wilson interval of the accuracy.
        high: Upper end.
    """

    name: str
    images: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Robustness:
    """The accuracies of a classifier on further evaluation sets; `str` gives a table.

    Attributes:
        rows: Accuracy on each set; for CIFAR-10-C on each corruption and severity.
        corruption_errors: Error on each corruption, the mean over its five severities.
        mean_corruption_error: Mean of these errors, or of their ratios to those of a baseline, over
            the corruptions of the benchmark that were found. None without CIFAR-10-C.
        corruptions: Number of corruptions in this mean, at most 15.
        relative: Whether the mean is relative to a baseline.
        human_cross_entropy: Mean cross-entropy between the choices of people in CIFAR-10H and the
            probabilities of the classifier, in nats. None without CIFAR-10H.
    """

    rows: tuple[RobustnessRow, ...]
    corruption_errors: Mapping[str, float]
    mean_corruption_error: float | None = None
    corruptions: int = 0
    relative: bool = False
    human_cross_entropy: float | None = None

    def to_records(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries, for a data frame or JSON."""
        return [asdict(row) for row in self.rows]

    def to_markdown(self) -> str:
        """Return the table in Markdown."""
        header = ["set", "images", "accuracy", "95 % interval"]
        lines = [header, ["---", "---:", "---:", "---"], *self._cells()]
        return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)

    def __str__(self) -> str:
        cells = [["set", "images", "accuracy", "95 % interval"], *self._cells()]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        aligned = ("<", ">", ">", "<")
        return "\n".join(
            "  ".join(
                f"{cell:{side}{width}}"
                for cell, side, width in zip(row, aligned, widths, strict=True)
            ).rstrip()
            for row in cells
        )

    def _cells(self) -> Iterator[list[str]]:
        """Yield the rows of the table, with one for each corruption."""
        for row in self.rows:
            if not row.name.startswith(_CORRUPTED):
                interval = f"{row.low:.2%} to {row.high:.2%}"
                yield [row.name, f"{row.images:,}", f"{row.accuracy:.2%}", interval]
        for name, error in self.corruption_errors.items():
            images = evaluation_sets.SEVERITIES * cifar10.TEST_SIZE
            yield [f"{_CORRUPTED}{name}", f"{images:,}", f"{1 - error:.2%}", ""]
        if self.mean_corruption_error is not None:
            what = "relative to the baseline" if self.relative else "unnormalized"
            name = f"mean corruption error of {self.corruptions} corruptions, {what}"
            yield [name, "", f"{self.mean_corruption_error:.2%}", ""]
        if self.human_cross_entropy is not None:
            yield ["CIFAR-10H cross-entropy in nats", "", f"{self.human_cross_entropy:.4f}", ""]


_CORRUPTED = "CIFAR-10-C "


def evaluate_robustness(
    model: nn.Module,
    directory: str | Path,
    *,
    data_dir: str | Path | None = None,
    baseline: Mapping[str, float] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    batch_size: int = 500,
    device: torch.device | str | None = None,
) -> Robustness:
    """Evaluate a classifier of CIFAR-10 on the further evaluation sets in a folder.

    These sets are recognized by their files, in the folder or in folders in it:

    - CIFAR-10.1: `cifar10.1_v6_data.npy` and `cifar10.1_v6_labels.npy`, or v4;
    - CIFAR-10-C: `gaussian_noise.npy` and the others, with `labels.npy`;
    - CIFAR-10H: `cifar10h-probs.npy`. A test image counts as correct if no other class was chosen
      by more people than the predicted one;
    - CIFAR-10N: `CIFAR-10_human.pt`. The predictions for the training images are compared with the
      labels that people gave them, which says how much of their noise a network has learned.

    The mean corruption error is the mean error over the corruptions and their five severities. That
    of Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
    Perturbations" (ICLR 2019), divides the error on each corruption by that of a baseline first;
    pass `baseline` for it. The four additional corruptions are not part of the mean.

    Args:
        model: Any module from images (N, 3, 32, 32) to class scores (N, 10), as for
            `find_misclassified`.
        directory: Folder with the files.
        data_dir: Folder of CIFAR-10, which CIFAR-10H and CIFAR-10N need. If None, as for
            `CIFAR10DataModule`. It is not downloaded.
        baseline: Error of another network on each corruption, as a fraction in (0, 1]. If None, the
            mean corruption error is not normalized.
        mean: Mean of each channel to subtract from images in [0, 1]. If None, that of CIFAR-10.
        std: Standard deviation of each channel to divide by. If None, that of CIFAR-10.
        batch_size: Number of images processed at once.
        device: Device to compute on. If None, the model's device. The model is not moved.

    Returns:
        The accuracies with their 95 % Wilson intervals; `str` and `to_markdown` give a table.

    Raises:
        TypeError: If `model` is not a module, or another argument has the wrong type.
        ValueError: If none of the sets is in the folder, a file has another layout, `baseline` has
            no error for a corruption, or an argument is out of its range.
        DatasetError: If CIFAR-10 is needed and not in `data_dir`.

    Examples:
        >>> import tempfile
        >>> import numpy as np
        >>> from pathlib import Path
        >>> from cifar_resnet import CustomResNet, evaluate_robustness
        >>> folder = Path(tempfile.mkdtemp())  # with images in place of CIFAR-10.1
        >>> np.save(folder / "cifar10.1_v6_data.npy", np.zeros((20, 32, 32, 3), np.uint8))
        >>> np.save(folder / "cifar10.1_v6_labels.npy", np.arange(20) % 10)
        >>> print(evaluate_robustness(CustomResNet(width=2), folder))
        set            images  accuracy  95 % interval
        CIFAR-10.1 v6      20    10.00%  2.79% to 30.10%
    """
    model = unwrap_compiled(model)
    folder = arguments.path("directory", directory)
    batch_size = arguments.integer("batch_size", batch_size, minimum=1)
    place = None if device is None else arguments.device("device", device)
    statistics = as_statistics(mean, std) or (cifar10.MEAN, cifar10.STD)
    if any(len(values) not in (1, 3) for values in statistics):
        raise ValueError(
            f"mean and std must have one value, or three for RGB, but got {statistics}."
        )
    errors = _as_errors(baseline)
    sets = evaluation_sets.find_sets(folder)
    missing = [name for name in sets.corrupted if name in evaluation_sets.CORRUPTIONS]
    missing = [name for name in missing if errors is not None and name not in errors]
    if missing:
        raise ValueError(f"baseline has no error for {', '.join(missing)}. Add it.")
    load = partial(load_cifar10, data_dir=data_dir, download=False)
    train = load("train") if sets.human_labels else None
    test = load("test") if sets.people is not None else None
    if train is not None:
        evaluation_sets.check_clean_labels(sets.human_labels, train[1])
    score = _Scorer(model, _three(statistics), batch_size, place)
    rows, corruption_errors = [], {}
    for version, (images, labels) in sets.new_test.items():
        rows.append(_row(f"CIFAR-10.1 {version}", score(images).argmax(1) == labels))
    entropy = None
    if test is not None and sets.people is not None:
        probabilities = score(test[0])
        chosen = sets.people[np.arange(len(probabilities)), probabilities.argmax(1)]
        rows.append(_row("CIFAR-10H", chosen == sets.people.max(1)))
        smallest = np.finfo(np.float32).tiny
        entropy = float(-(sets.people * np.log(probabilities.clip(smallest))).sum(1).mean())
    if train is not None:
        predicted = score(train[0]).argmax(1)
        for name, labels in sets.human_labels.items():
            rows.append(_row(f"CIFAR-10N {name}", predicted == labels))
    for name, images in sets.corrupted.items():
        assert sets.corrupted_labels is not None
        correct = score(images).argmax(1) == sets.corrupted_labels
        corruption_errors[name] = 1 - float(correct.mean())
        parts = correct.reshape(evaluation_sets.SEVERITIES, -1)
        for severity, part in enumerate(parts, start=1):
            rows.append(_row(f"{_CORRUPTED}{name}, severity {severity}", part))
    counted = [n for n in corruption_errors if n in evaluation_sets.CORRUPTIONS]
    ratios = [corruption_errors[n] / (errors[n] if errors is not None else 1) for n in counted]
    return Robustness(
        tuple(rows),
        corruption_errors,
        float(np.mean(ratios)) if ratios else None,
        len(ratios),
        errors is not None,
        entropy,
    )


@dataclass(frozen=True)
class _Scorer:
    """Compute the class probabilities (N, 10) of uint8 images (N, 32, 32, 3)."""

    model: nn.Module
    statistics: Statistics
    batch_size: int
    device: torch.device | None

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows: list[Tensor] = []
        with (
            preserve_state(self.model),
            torch.inference_mode(False),
            torch.no_grad(),
            run_on_device(self.model, self.device) as move_inputs,
        ):
            for start in range(0, len(images), self.batch_size):
                part = np.array(images[start : start + self.batch_size])  # also from disk
                batch = ImageBank(part, *self.statistics).batch(np.arange(len(part)))
                scores = class_scores(self.model, move_inputs(batch)).float()
                numbers = range(start, start + len(part))
                check_finite(scores, numbers, "image")
                rows.append(scores.softmax(1).cpu())
        result: NDArray[np.float32] = torch.cat(rows).numpy()
        if result.shape[1] != len(cifar10.CLASSES):
            raise ValueError(
                f"The model has {result.shape[1]} classes, but these sets have the 10 of CIFAR-10."
            )
        return result


def _row(name: str, correct: NDArray[np.bool_]) -> RobustnessRow:
    low, high = wilson_interval(int(correct.sum()), len(correct))
    return RobustnessRow(name, len(correct), float(correct.mean()), low, high)


def _three(statistics: Statistics) -> Statistics:
    mean, std = (values * 3 if len(values) == 1 else values for values in statistics)
    return mean, std


def _as_errors(baseline: Any) -> dict[str, float] | None:
    if baseline is None:
        return None
    message = (
        f"baseline must be a dictionary from corruptions to errors in (0, 1], but got {baseline!r}."
    )
    if not isinstance(baseline, Mapping):
        raise TypeError(message)
    known = (*evaluation_sets.CORRUPTIONS, *evaluation_sets.ADDITIONAL)
    within = (lambda error: 0 < error <= 1), "an error in (0, 1]"
    for name, error in baseline.items():
        if name not in known:
            raise ValueError(f"{message[:-1]}; the corruptions are {', '.join(known)}.")
        arguments.number(f"baseline[{name!r}]", error, within)
    return dict(baseline)
