"""Loss and accuracy of an epoch, kept on the device until somebody asks. It knows tensors; it must
not know Lightning, and it must not make a GPU wait between two questions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Batch", "EpochSums"]


class Batch(NamedTuple):
    """What is known of a batch."""

    loss: Tensor  # mean over its images, ()
    correct: Tensor  # number of right answers, ()
    size: int
    step: int
    learning_rate: float


class EpochSums:
    """Sums over the batches of an epoch.

    `add` only queues work on the device of its arguments. `look` waits until that is done, and
    takes what was added since the last look into the sums.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        # of losses, right answers and images
        self._sums = torch.zeros(3, dtype=torch.float64, device="cpu")
        self._unseen: list[Batch] = []

    def add(
        self, loss: Tensor, scores: Tensor, labels: Tensor, *, step: int, learning_rate: float
    ) -> Batch:
        """Count a batch: its mean loss (), scores (B, classes) and labels, numbers (B,) or shares
        (B, classes), and where in the training it came.
        """
        if labels.dim() > 1:
            labels = labels.argmax(dim=1)
        correct = (scores.detach().argmax(dim=1) == labels).sum()
        batch = Batch(loss.detach(), correct, len(labels), step, learning_rate)
        self._unseen.append(batch)
        return batch

    def look(self) -> list[tuple[float, Batch]]:
        """The losses of the batches since the last look, each with its batch."""
        if not self._unseen:
            return []
        batches, self._unseen = self._unseen, []
        loss = torch.stack([batch.loss for batch in batches]).cpu().double()
        correct = torch.stack([batch.correct for batch in batches]).cpu().double()
        sizes = torch.tensor([batch.size for batch in batches], dtype=torch.float64, device="cpu")
        self._sums += torch.stack([(loss * sizes).sum(), correct.sum(), sizes.sum()])
        return list(zip(loss.tolist(), batches, strict=True))

    def sums(self) -> Tensor:
        """Sum of the losses of all images, number of right answers, and number of images that a
        look has seen: float64 (3,) on the CPU.
        """
        return self._sums.clone()

    def restore(self, sums: Tensor) -> None:
        """Go on from what `sums` once returned."""
        self.reset()
        self._sums += sums
