"""Rank training images by how doubtful their labels are."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnet import arguments
from cifar_resnet.files import atomic_write
from cifar_resnet.history.history import UNSEEN, ImageHistory
from cifar_resnet.history.scores import as_history, last_epochs, score_images

__all__ = ["LabelIssues", "find_label_issues"]

MEAN_RANK = "mean_rank"
_SCORES = ("area_under_margin", "confidence", "loss", "forgetting", "learned", "last_confidence")
_BY = (MEAN_RANK, *_SCORES)
_LAST = 4  # the last quarter of the epochs


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """Training images in descending order of the doubt about their labels.

    All arrays have this order. Images that no epoch contains are left out.

    Attributes:
        indices: Indices of the images in the dataset, int64 (N,).
        given: Labels that the network was trained on, int64 (N,).
        suggested: Most frequent prediction over the last quarter of the epochs that contain the
            image, int64 (N,). It may be the given label. Of several equally frequent ones, the
            latest.
        scores: Values by the name of the score, each (N,). `find_label_issues` defines them.
        ranks: Ranks by the name of the score, each float64 (N,) from 1, the most doubtful image;
            images with equal scores have the mean of their ranks. `mean_rank` is the mean over all
            scores.
        class_names: Names of the classes.
        by: The score that determines the order.
        data: What the images depend on, as in `ImageHistory.data`.
    """

    indices: NDArray[np.int64] = field(repr=False)
    given: NDArray[np.int64] = field(repr=False)
    suggested: NDArray[np.int64] = field(repr=False)
    scores: Mapping[str, NDArray[np.float64]] = field(repr=False)
    ranks: Mapping[str, NDArray[np.float64]] = field(repr=False)
    class_names: tuple[str, ...]
    by: str
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def top(self, k: int) -> LabelIssues:
        """Return the `k` most doubtful images, or all if there are fewer.

        Raises:
            TypeError: If `k` is not an integer.
            ValueError: If it is smaller than 1.
        """
        return self._take(np.arange(min(arguments.integer("k", k, minimum=1), len(self))))

    def sorted_by(self, by: str) -> LabelIssues:
        """Return the images in descending order of the doubt according to a score.

        Args:
            by: Name of a score, or `"mean_rank"`. Images of equal rank have the order of their mean
                ranks.

        Raises:
            TypeError: If `by` is not a string.
            ValueError: If there is no such score.
        """
        by = arguments.choice("by", by, _BY)
        order = np.lexsort((self.indices, self.ranks[MEAN_RANK], self.ranks[by]))
        return replace(self._take(order), by=by)

    def to_records(self) -> list[dict[str, Any]]:
        """Return the images as plain numbers and strings, for `json.dumps` or a data frame."""
        return [
            {
                "index": int(self.indices[row]),
                "given": self.class_names[self.given[row]],
                "suggested": self.class_names[self.suggested[row]],
                "mean_rank": float(self.ranks[MEAN_RANK][row]),
                **{name: float(values[row]) for name, values in self.scores.items()},
            }
            for row in range(len(self))
        ]

    def to_csv(self, path: str | Path) -> None:
        """Write the rows of `to_records` to a file with comma-separated values, atomically.

        Raises:
            TypeError: If `path` is not path-like.
            OSError: If the file cannot be written.
        """
        target = arguments.path("path", path)
        names = ["index", "given", "suggested", "mean_rank", *self.scores]
        with (
            atomic_write(target) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.to_records())

    def _take(self, rows: NDArray[np.intp]) -> LabelIssues:
        return replace(
            self,
            indices=self.indices[rows],
            given=self.given[rows],
            suggested=self.suggested[rows],
            scores={name: values[rows] for name, values in self.scores.items()},
            ranks={name: values[rows] for name, values in self.ranks.items()},
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        differ = int((self.given != self.suggested).sum())
        return (
            f"<LabelIssues: {len(self):,} images by {self.by}, {differ:,} with another suggested "
            "label>"
        )


def find_label_issues(history: ImageHistory, *, by: str = MEAN_RANK) -> LabelIssues:
    """Rank the training images by how doubtful their labels are.

    A network learns wrong labels later than correct ones, or not at all. These are the scores:

    - `area_under_margin`: mean margin (Pleiss et al., NeurIPS 2020); doubtful if small.
    - `confidence`: mean probability of the label (Swayamdipta et al., EMNLP 2020); if small.
    - `loss`: mean cross-entropy of the label; if large.
    - `forgetting`: number of forgetting events (Toneva et al., ICLR 2019), or the number of epochs
      if no prediction is correct; if large.
    - `learned`: first epoch from which on all predictions are correct; if large.
    - `last_confidence`: mean probability of the label in the last quarter of the epochs that
      contain the image; if small.

    A high rank does not mean that a label is wrong: rare and ambiguous images have such scores,
    too. Look at the images before excluding them.

    Args:
        history: The values of a run, such as `TrainingHistory.history`.
        by: The score that determines the order, or `"mean_rank"`, the mean of all ranks.

    Returns:
        All images that an epoch contains, the most doubtful first.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `history` contains no epoch, or there is no such score.

    Examples:
        >>> import numpy as np
        >>> from cifar_resnet import ImageHistory, find_label_issues
        >>> history = ImageHistory(
        ...     loss=np.array([[0.5, 0.1], [2.0, 3.0]]),
        ...     margin=np.array([[1.0, 2.0], [-1.0, -2.0]]),
        ...     prediction=np.array([[0, 0], [1, 1]]), indices=[4, 8], labels=[0, 0],
        ...     class_names=("cat", "dog"),
        ... )
        >>> issues = find_label_issues(history)
        >>> issues
        <LabelIssues: 2 images by mean_rank, 1 with another suggested label>
        >>> record = issues.top(1).to_records()[0]
        >>> record["index"], record["given"], record["suggested"]
        (8, 'cat', 'dog')
    """
    history = as_history(history)
    arguments.choice("by", by, _BY)
    scores = score_images(history)
    last = last_epochs(history, _quarter(history.epochs))
    probability = np.where(last, history.probability, 0).sum(1, dtype=np.float64)
    rows = np.flatnonzero(scores.observations)
    # More than there can be events; Toneva et al. count infinitely many.
    forgetting = np.where(scores.never_learned, float(history.epochs), scores.forgetting)
    values = {
        "area_under_margin": scores.area_under_margin,
        "confidence": scores.confidence,
        "loss": scores.loss,
        "forgetting": forgetting,
        "learned": scores.learned.astype(np.float64),
        "last_confidence": probability / last.sum(1).clip(min=1),
    }
    values = {name: array[rows] for name, array in values.items()}
    signs = {"loss": -1, "forgetting": -1, "learned": -1}
    ranks = {name: average_ranks(signs.get(name, 1) * array) for name, array in values.items()}
    ranks[MEAN_RANK] = np.mean([*ranks.values()], axis=0)
    classes = max(int(history.prediction.max()), int(history.labels.max())) + 1
    names = history.class_names or tuple(map(str, range(classes)))
    issues = LabelIssues(
        history.indices[rows], history.labels[rows], _suggested(history, last)[rows],
        values, ranks, names, by, history.data,
    )  # fmt: skip
    return issues.sorted_by(by)


def average_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank of each value from 1 in ascending order; equal values share the mean rank.

    Examples:
        >>> average_ranks(np.array([0.3, 0.1, 0.3])).tolist()
        [2.5, 1.0, 2.5]
    """
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum()
    ranks: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return ranks


def _quarter(epochs: int) -> int:
    return max(1, epochs // _LAST)


def _suggested(history: ImageHistory, last: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the most frequent prediction of each image in some epochs; of several, the latest."""
    columns = np.flatnonzero(last.any(0))
    predictions = np.where(last, history.prediction, UNSEEN)[:, columns]
    suggested = np.zeros(len(history), dtype=np.int64)
    most = np.ones(len(history), dtype=np.int64)
    for predicted in predictions.T:
        votes = (predictions == predicted[:, None]).sum(1)
        frequent = (predicted != UNSEEN) & (votes >= most)
        suggested[frequent], most[frequent] = predicted[frequent], votes[frequent]
    return suggested
