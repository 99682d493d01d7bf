"""Count the predictions for all samples."""

from __future__ import annotations

import torch
from torch import Tensor

from cifar_resnet.misclassified.records import Calibration

_BINS = 15  # as in Guo et al.


class PredictionCounts:
    """Confusion matrix and calibration of the batches added so far."""

    def __init__(self, classes: int) -> None:
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64, device="cpu")
        # sums over the samples in each bin: their number, confidence, correct predictions
        self._bins = torch.zeros(3, _BINS, dtype=torch.float64, device="cpu")

    def add(self, labels: Tensor, predicted: Tensor, confidence: Tensor) -> None:
        """Add class numbers and confidences (N,)."""
        classes = len(self.confusion)
        pairs = torch.bincount(labels * classes + predicted, minlength=classes**2)
        self.confusion += pairs.view(classes, -1).cpu()
        confidence = confidence.cpu().double()  # MPS has no float64
        correct = (predicted == labels).cpu().double()
        bins = (confidence * _BINS).ceil().long().clamp(1, _BINS) - 1
        for row, values in enumerate((torch.ones_like(confidence), confidence, correct)):
            self._bins[row] += torch.bincount(bins, values, minlength=_BINS)

    def calibration(self) -> Calibration:
        counts, confidence, correct = self._bins
        return Calibration(counts.long(), confidence / counts, correct / counts)
