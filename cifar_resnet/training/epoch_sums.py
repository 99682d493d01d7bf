"""Loss and accuracy of an epoch, accumulated on the device and synchronized when read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Batch", "EpochSums"]


class Batch(NamedTuple):
    """Results of a training batch."""

    loss: Tensor  # mean over the images, ()
    correct: Tensor  # number of correct predictions, ()
    size: int
    step: int
    learning_rate: float


class EpochSums:
    """Sums over the batches of an epoch.

    `add` only queues work on the device of its arguments. `synchronize` waits for it, and adds the
    results to the sums.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start a new epoch."""
        # of losses, correct predictions and images
        self._sums = torch.zeros(3, dtype=torch.float64, device="cpu")
        self._pending: list[Batch] = []

    def add(
        self, loss: Tensor, scores: Tensor, labels: Tensor, *, step: int, learning_rate: float
    ) -> Batch:
        """Add a batch.

        Args:
            loss: Mean loss, ().
            scores: Class scores, (B, classes).
            labels: Class indices (B,), or class probabilities (B, classes).
            step: Step of the training, for error messages.
            learning_rate: Learning rate of this step, for error messages.
        """
        if labels.dim() > 1:
            labels = labels.argmax(dim=1)
        correct = (scores.detach().argmax(dim=1) == labels).sum()
        batch = Batch(loss.detach(), correct, len(labels), step, learning_rate)
        self._pending.append(batch)
        return batch

    def synchronize(self) -> list[tuple[float, Batch]]:
        """Return the losses of the batches since the last call, each with its batch."""
        if not self._pending:
            return []
        batches, self._pending = self._pending, []
        loss = torch.stack([batch.loss for batch in batches]).cpu().double()
        correct = torch.stack([batch.correct for batch in batches]).cpu().double()
        sizes = torch.tensor([batch.size for batch in batches], dtype=torch.float64, device="cpu")
        self._sums += torch.stack([(loss * sizes).sum(), correct.sum(), sizes.sum()])
        return list(zip(loss.tolist(), batches, strict=True))

    def sums(self) -> Tensor:
        """Return the sum of the losses of all images, the number of correct predictions, and the
        number of images, of all synchronized batches: float64 (3,) on the CPU.
        """
        return self._sums.clone()

    def restore(self, sums: Tensor) -> None:
        """Continue from sums that `sums` returned."""
        self.reset()
        self._sums += sums
