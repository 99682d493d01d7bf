"""Summarize the history of each image: how easy it is, and when it is learned or forgotten."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnet import arguments
from cifar_resnet.history.history import ImageHistory

__all__ = ["ImageScores", "score_images"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ImageScores:
    """Scores of the images of a history, each an array (N,) in the order of `history.indices`.

    They consider only the epochs that contain the image. Without any such epoch, the means are NaN
    and the counts 0.

    Attributes:
        observations: Number of epochs that contain the image, int64.
        confidence: Mean probability of the label over the epochs, float64 in [0, 1] (Swayamdipta et
            al., "Dataset Cartography: Mapping and Diagnosing Datasets with Training Dynamics",
            EMNLP 2020).
        variability: Standard deviation of this probability over the epochs, float64 in [0, 0.5]
            (ibid.).
        correctness: Fraction of the epochs with a correct prediction, float64 in [0, 1] (ibid.).
        loss: Mean cross-entropy of the label in nats, float64.
        area_under_margin: Mean margin over the epochs, float64 (Pleiss et al., "Identifying
            Mislabeled Data using the Area Under the Margin Ranking", NeurIPS 2020).
        forgetting: Number of forgetting events: epochs with a wrong prediction whose predecessor
            has a correct one, int64 (Toneva et al., "An Empirical Study of Example Forgetting
            during Deep Neural Network Learning", ICLR 2019).
        never_learned: Whether no prediction is correct, bool. Toneva et al. count such images as
            forgotten infinitely often.
        learned: First epoch, counted from 0, from which on all predictions are correct, int64. The
            number of epochs if the last prediction is wrong.
    """

    observations: NDArray[np.int64]
    confidence: Floats
    variability: Floats
    correctness: Floats
    loss: Floats
    area_under_margin: Floats
    forgetting: NDArray[np.int64]
    never_learned: NDArray[np.bool_]
    learned: NDArray[np.int64]

    def to_records(self) -> list[dict[str, Any]]:
        """Return the scores of each image as plain numbers, for a data frame or JSON."""
        names = [each.name for each in fields(self)]
        columns = [getattr(self, name).tolist() for name in names]
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def score_images(history: ImageHistory) -> ImageScores:
    """Compute the scores of all images of a history.

    Args:
        history: The values of a run, such as `TrainingHistory.history`.

    Returns:
        The scores; `ImageScores` defines them.

    Raises:
        TypeError: If `history` is not an `ImageHistory`.
        ValueError: If it contains no epoch.

    Examples:
        >>> import numpy as np
        >>> from cifar_resnet import ImageHistory, score_images
        >>> history = ImageHistory(
        ...     loss=np.log([[2.0, 1.0, 4.0, 1.0]]), margin=np.array([[-0.5, 3.0, -1.5, 4.0]]),
        ...     prediction=np.array([[1, 0, 1, 0]]), indices=[0], labels=[0],
        ... )
        >>> scores = score_images(history)
        >>> scores.confidence.tolist(), scores.area_under_margin.tolist()
        ([0.6875], [1.25])
        >>> scores.forgetting.tolist(), scores.learned.tolist()
        ([1], [3])
    """
    history = as_history(history)
    seen, correct = history.seen, history.correct
    observations = seen.sum(1)
    probability = history.probability.astype(np.float64)
    confidence = _mean(probability, seen)
    return ImageScores(
        observations=observations,
        confidence=confidence,
        variability=np.sqrt(_mean((probability - confidence[:, None]) ** 2, seen)),
        correctness=_mean(correct, seen),
        loss=_mean(history.loss, seen),
        area_under_margin=_mean(history.margin, seen),
        forgetting=_forgetting_events(seen, correct),
        never_learned=(observations > 0) & ~correct.any(1),
        learned=_learned(seen, correct),
    )


def as_history(history: Any) -> ImageHistory:
    """Validate a history with at least one epoch."""
    if not isinstance(history, ImageHistory):
        remedy = " Pass its attribute `history`." if hasattr(type(history), "history") else ""
        raise TypeError(
            f"history must be an ImageHistory, but got {type(history).__name__}.{remedy}"
            + (" ImageHistory.load(path) reads one from a file." if not remedy else "")
        )
    if not history.epochs or not len(history):
        raise ValueError(
            f"history contains {history.epochs} epochs of {len(history)} images. Train with "
            "TrainingHistory for at least one epoch."
        )
    return history


def last_epochs(history: ImageHistory, count: int) -> NDArray[np.bool_]:
    """Return which of the epochs (N, epochs) are the last `count` that contain the image."""
    arguments.integer("count", count, minimum=1)
    seen = history.seen
    later = seen[:, ::-1].cumsum(1)[:, ::-1]  # including the epoch itself
    last: NDArray[np.bool_] = seen & (later <= count)
    return last


def _mean(values: NDArray[Any], where: NDArray[np.bool_]) -> Floats:
    """Return the mean of each row over some of its values; NaN without any."""
    count = where.sum(1)
    total = np.where(where, values, 0.0).sum(1, dtype=np.float64)
    mean: Floats = np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
    return mean


def _forgetting_events(seen: NDArray[np.bool_], correct: NDArray[np.bool_]) -> NDArray[np.int64]:
    events = np.zeros(len(seen), dtype=np.int64)
    before = np.zeros(len(seen), dtype=np.bool_)  # correct in the last epoch with the image
    for epoch in range(seen.shape[1]):
        events += seen[:, epoch] & before & ~correct[:, epoch]
        before = np.where(seen[:, epoch], correct[:, epoch], before)
    return events


def _learned(seen: NDArray[np.bool_], correct: NDArray[np.bool_]) -> NDArray[np.int64]:
    epochs = seen.shape[1]
    learned = np.full(len(seen), epochs, dtype=np.int64)
    for_good = np.ones(len(seen), dtype=np.bool_)
    for epoch in reversed(range(epochs)):
        for_good &= correct[:, epoch] | ~seen[:, epoch]
        learned[for_good & seen[:, epoch]] = epoch
    learned[~seen.any(1)] = 0
    return learned
