"""Collect the values of a run over batches, epochs and processes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

from cifar_resnet.history.history import UNSEEN

__all__ = ["Seen", "ValueStore"]

_Values = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int16]]

_WAITING = 2**20  # scores that are kept before their values are computed, 4 MB


class Seen(NamedTuple):
    """The values of images in the order in which an epoch contained them."""

    batch: NDArray[np.int64]  # number of the batch (n,)
    row: NDArray[np.int64] | None  # row, or what the batch says, (n,)
    label: NDArray[np.int64]
    loss: NDArray[np.float32]
    margin: NDArray[np.float32]
    prediction: NDArray[np.int16]


class ValueStore:
    """Values of images (rows) in epochs (columns), and batches that were not yet entered.

    `add` only queues work on the device of its arguments; `take` waits for it.
    """

    def __init__(self, rows: int) -> None:
        self.values: _Values = _empty(rows, 0)
        self.epoch = 0  # of the batches that were added
        self._scores: list[tuple[Tensor, Tensor]] = []
        self._waiting = 0
        self._measured: list[tuple[Tensor, ...]] = []
        self._batches: list[tuple[int, int]] = []  # number, size
        self._indices: list[Tensor] = []

    @property
    def columns(self) -> int:
        """Number of epochs with values."""
        return int(self.values[0].shape[1])

    def add(self, batch: int, scores: Tensor, labels: Tensor, index: Tensor | None) -> None:
        """Add a batch: scores (B, classes), class indices (B,), and indices (B,) if known."""
        # A copy, because a CUDA graph writes the scores of the next batch to the same memory.
        self._scores.append((scores.detach().clone(), labels))
        self._batches.append((batch, len(labels)))
        if index is not None:
            self._indices.append(index)
        self._waiting += scores.numel()
        if self._waiting >= _WAITING:
            self._measure()

    def take(self) -> Seen | None:
        """Remove and return the values of the batches that were added, or None without any."""
        self._measure()
        if not self._measured:
            return None
        measured, self._measured = self._measured, []
        batch = np.concatenate([np.full(size, number) for number, size in self._batches])
        indices, self._batches, self._indices = self._indices, [], []
        label, loss, margin, prediction = (
            torch.cat(parts).cpu().numpy() for parts in zip(*measured, strict=True)
        )
        index = torch.cat(indices).cpu().numpy().astype(np.int64) if indices else None
        return Seen(batch, index, label, loss, margin, prediction)

    def enter(self, rows: NDArray[np.int64], seen: Seen) -> None:
        """Enter values in the column of the epoch; the last one of a row is kept."""
        if self.epoch >= self.columns:
            self.grow(self.epoch + 1)
        last = len(rows) - 1 - np.unique(rows[::-1], return_index=True)[1]
        known = last[~np.isnan(seen.loss[last])]  # NaN if the training diverged
        loss, margin, prediction = self.values
        where = rows[known], self.epoch
        loss[where] = seen.loss[known]
        margin[where] = seen.margin[known]
        prediction[where] = seen.prediction[known]

    def grow(self, columns: int) -> None:
        """Add epochs without values."""
        more = _empty(len(self.values[0]), columns - self.columns)
        loss, margin, prediction = self.values
        self.values = (
            np.concatenate([loss, more[0]], axis=1),
            np.concatenate([margin, more[1]], axis=1),
            np.concatenate([prediction, more[2]], axis=1),
        )

    def _measure(self) -> None:
        """Compute the values of the batches whose scores are kept."""
        if self._scores:
            scores, labels = (torch.cat(parts) for parts in zip(*self._scores, strict=True))
            self._scores, self._waiting = [], 0
            self._measured.append(measure(scores, labels))


def measure(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return labels, cross-entropy, margin and prediction of images.

    Args:
        scores: Logits or log-probabilities (B, classes).
        labels: Class indices (B,); those out of range count as the nearest class.

    Returns:
        int64, float32, float32 and int16, each (B,).
    """
    scores = scores.float()
    labels = labels.long()
    own = labels.clamp(0, scores.shape[1] - 1)[:, None]
    loss = -scores.log_softmax(1).gather(1, own)[:, 0]
    others = scores.scatter(1, own, -torch.inf).amax(1)
    margin = scores.gather(1, own)[:, 0] - others
    return labels, loss, margin, scores.argmax(1).to(torch.int16)


def gathered(seen: Seen | None) -> Seen | None:
    """Return the values of all processes, in the order of one process with their batches."""
    parts: list[Seen | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, seen)
    given = [part for part in parts if part is not None]
    if not given:
        return None
    joined = [
        None if columns[0] is None else np.concatenate(columns)
        for columns in zip(*given, strict=True)
    ]
    order = joined[0].argsort(kind="stable")  # type: ignore[union-attr]
    return Seen(*(None if column is None else column[order] for column in joined))  # type: ignore[arg-type]


def _empty(rows: int, columns: int) -> _Values:
    shape = rows, columns
    loss, margin = (np.full(shape, np.nan, dtype=np.float32) for _ in range(2))
    return loss, margin, np.full(shape, UNSEEN, dtype=np.int16)
