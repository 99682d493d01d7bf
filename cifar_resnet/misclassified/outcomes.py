"""Record the label, the prediction and a fingerprint of each sample that a model has seen."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from cifar_resnet.normalization import Statistics

__all__ = ["Outcomes"]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What a model predicts for each sample, in the order of reading; tensors (N,) on the CPU.

    Attributes:
        indices: Index in the dataset, int64; -1 where unknown.
        labels: Class number of the label, int32.
        predicted: Class number of the prediction, int32.
        confidence: Probability of the predicted class, float32.
        brightness: Mean of all pixels without the normalization, float32: 0 is black, 1 is white.
        sizes: Number of pixels, int32.
    """

    indices: Tensor
    labels: Tensor
    predicted: Tensor
    confidence: Tensor
    brightness: Tensor
    sizes: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> Tensor:
        """Whether the prediction is the label, bool (N,)."""
        return self.predicted == self.labels

    @classmethod
    def of(
        cls,
        indices: Tensor,
        labels: Tensor,
        predicted: Tensor,
        confidence: Tensor,
        inputs: Tensor,
        statistics: Statistics | None,
    ) -> Outcomes:
        """Return the outcomes of a batch of inputs (N, C, H, W) that were normalized like this."""
        size = inputs.shape[2] * inputs.shape[3]
        return cls(
            indices.cpu(),
            labels.to("cpu", torch.int32),
            predicted.to("cpu", torch.int32),
            confidence.cpu(),
            _brightness(inputs.detach(), statistics),
            torch.full((len(labels),), size, dtype=torch.int32, device="cpu"),
        )

    @classmethod
    def joined(cls, parts: list[Outcomes]) -> Outcomes:
        """Join the outcomes of several batches."""
        return cls(*(torch.cat([getattr(p, field.name) for p in parts]) for field in fields(cls)))

    def taken(self, rows: Tensor) -> Outcomes:
        """Return the outcomes of some samples, in this order."""
        return Outcomes(*(getattr(self, field.name)[rows] for field in fields(self)))


def _brightness(inputs: Tensor, statistics: Statistics | None) -> Tensor:
    means = inputs.mean((2, 3), dtype=torch.float32).cpu()  # (N, C)
    if not inputs.is_floating_point():
        return means.mean(1) / (1 if inputs.dtype == torch.bool else 255)
    if statistics is not None:
        mean, std = (means.new_tensor(numbers) for numbers in statistics)
        means = means * std + mean
    return means.mean(1)
