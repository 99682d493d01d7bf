"""Draw the images of each class equally often, or in proportion to weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnet import arguments
from cifar_resnet.data.image_indices import as_weights
from cifar_resnet.data.order import BatchOrder

__all__ = ["BalancedOrder", "WeightedOrder", "check_sampling"]

_SAMPLING_STREAM = 6
_WEIGHT_STREAM = 8


class BalancedOrder(BatchOrder):
    """Draw as many samples as there are, with replacement, each class with the same probability.

    The k-th repetition of a sample in an epoch has the number `sample + k * samples`, so that a
    loader can augment it differently.

    Args:
        labels: Class of each sample (N,).
        batch_size: Number of samples in a batch.
        options: Other arguments of `BatchOrder`.
    """

    def __init__(self, labels: NDArray[np.int64], batch_size: int, **options: Any) -> None:
        super().__init__(len(labels), batch_size, **options)
        weights = 1 / np.bincount(labels)[labels]
        self._probabilities = weights / weights.sum()

    def permutation(self, epoch: int) -> NDArray[np.intp]:
        rng = np.random.default_rng([self.seed, _SAMPLING_STREAM, epoch])
        rows = rng.choice(self.samples, size=self.samples, p=self._probabilities)
        return rows + self.samples * _earlier(rows)


class WeightedOrder(BatchOrder):
    """Draw as many samples as there are, each in proportion to its weight.

    With n samples and weights w, sample i is drawn n w_i / sum(w) times in an epoch, rounded down
    or up at random so that this is its mean over the epochs: systematic sampling of a shuffled list
    (Madow and Madow, "On the Theory of Systematic Sampling", 1944). Equal weights therefore draw
    each sample once, unlike independent draws. Repetitions are numbered as by `BalancedOrder`.

    Args:
        weights: Weight of each sample (N,), at least 0, and not all 0.
        batch_size: Number of samples in a batch.
        options: Other arguments of `BatchOrder`.
    """

    def __init__(self, weights: NDArray[np.float64], batch_size: int, **options: Any) -> None:
        super().__init__(len(weights), batch_size, **options)
        self._expected = len(weights) * weights / weights.sum()

    def permutation(self, epoch: int) -> NDArray[np.intp]:
        rng = np.random.default_rng([self.seed, _WEIGHT_STREAM, epoch])
        listed = rng.permutation(self.samples)
        # The list is a line on which each sample has its expected number as length; the points
        # u, u + 1, u + 2, ... choose the samples on whose parts they are.
        ends = self._expected[listed].cumsum()
        ends[-1] = self.samples
        before = np.ceil(ends - rng.random()).clip(min=0).astype(np.intp)  # points before each end
        rows = rng.permutation(listed.repeat(np.diff(before, prepend=0)))
        return rows + self.samples * _earlier(rows)


def check_sampling(
    sampling: Any, sample_weights: Any, shuffle: bool, size: int
) -> NDArray[np.float64] | None:
    """Validate the arguments of a data module of `size` training images; return the weights."""
    arguments.choice("sampling", sampling, ("uniform", "balanced"))
    weights = as_weights("sample_weights", sample_weights, size)
    if sampling == "uniform" and weights is None:
        return None
    if sampling == "balanced" and weights is not None:
        raise ValueError(
            "sampling='balanced' and sample_weights both choose the images. Leave out one of them."
        )
    if not shuffle:
        drawn = "sample_weights draw" if weights is not None else "sampling='balanced' draws"
        raise ValueError(
            f"{drawn} the training images at random, but shuffle is False. Leave out one of them."
        )
    return weights


def _earlier(rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return how often each value occurs before its position.

    Examples:
        >>> _earlier(np.array([4, 2, 4, 4])).tolist()
        [0, 0, 1, 2]
    """
    order = rows.argsort(kind="stable")
    starts = np.flatnonzero(np.diff(rows[order], prepend=-1))
    lengths = np.diff(starts, append=len(rows))
    result = np.empty(len(rows), dtype=np.intp)
    result[order] = np.arange(len(rows)) - starts.repeat(lengths)
    return result
