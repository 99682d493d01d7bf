"""Loss and accuracy of an epoch, kept on the device until somebody asks. It knows tensors; it must
not know Lightning, and it must not make a GPU wait between two questions.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Tally"]


class Tally:
    """Sums over the batches of an epoch.

    `add` only queues work on the device of its arguments; `totals` and `first_bad` look at the
    results, which waits for all that was queued.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)  # loss, right answers, images
        self._recent: list[tuple[Tensor, Tensor, int]] = []

    def __len__(self) -> int:
        """The number of batches since the last look."""
        return len(self._recent)

    def add(self, loss: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Count a batch: its mean loss (), scores (B, classes) and labels (B,).

        Returns:
            The number of right answers, int64 ().
        """
        correct = (scores.detach().argmax(dim=1) == labels).sum()
        self._recent.append((loss.detach(), correct, len(labels)))
        return correct

    def look(self) -> list[float]:
        """Take the batches since the last look into the sums; their mean losses."""
        if not self._recent:
            return []
        losses, correct = (
            torch.stack(values).cpu().double()
            for values in ([r[0] for r in self._recent], [r[1] for r in self._recent])
        )
        sizes = torch.tensor([size for _, _, size in self._recent], dtype=torch.float64)
        self._sums += torch.stack([(losses * sizes).sum(), correct.sum(), sizes.sum()])
        self._recent = []
        return losses.tolist()

    def sums(self) -> Tensor:
        """Sum of the losses of all images, number of right answers, number of images: float64 (3,)
        on the CPU.
        """
        self.look()
        return self._sums.clone()

    def restore(self, sums: Tensor) -> None:
        """Go on from what `sums` once returned."""
        self.reset()
        self._sums += sums
