"""Draw the images of each class equally often."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.data.order import BatchOrder

__all__ = ["BalancedOrder"]

_SAMPLING_STREAM = 6


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
