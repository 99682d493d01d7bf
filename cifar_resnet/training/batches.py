"""Read images, labels and class scores of a batch, and reject what a loss cannot use."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["ProbabilityWarning", "loss_targets", "split_batch"]

_LABELS = ("label", "labels", "target", "targets", "y")
_REMEDY = (
    "Let the dataset return (images, labels), or override training_step, validation_step and "
    "test_step."
)


def split_batch(batch: Any) -> tuple[Tensor, Tensor]:
    """Return the images and the labels of a batch.

    Args:
        batch: (images, labels); or a mapping with one four-dimensional tensor, the images, and one
            tensor called label, labels, target, targets or y.

    Raises:
        TypeError: If the batch is something else.
    """
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    if isinstance(batch, Mapping):
        images = [v for v in batch.values() if isinstance(v, Tensor) and v.dim() == 4]
        labels = [batch[name] for name in _LABELS if isinstance(batch.get(name), Tensor)]
        if len(images) == len(labels) == 1:
            return images[0], labels[0]
        raise TypeError(
            "A batch that is a mapping must have one tensor of images (N, C, H, W) and one tensor "
            f"called {', '.join(_LABELS[:-1])} or {_LABELS[-1]}, but has the keys "
            f"{', '.join(map(repr, batch))}. {_REMEDY}"
        )
    size = f" of {len(batch)} values" if isinstance(batch, tuple | list) else ""
    raise TypeError(
        f"A batch must be (images, labels), but is a {type(batch).__name__}{size}. {_REMEDY}"
    )


def loss_targets(labels: Tensor, scores: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Return the labels in the form that losses expect, and as class indices.

    Labels on a GPU are not compared with the number of classes, because that would wait for it.

    Args:
        labels: Class indices (B,), or class probabilities or one-hot labels (B, classes).
        scores: Class scores (B, classes).
        classes: Expected number of classes.

    Returns:
        Class indices (B,) or probabilities (B, classes), and class indices (B,).

    Raises:
        TypeError: If the scores are not a tensor, or labels of one dimension are not integers.
        ValueError: If a shape differs, or a label is not in [0, classes).
    """
    if not isinstance(scores, Tensor):
        raise TypeError(
            f"The network must return a tensor of class scores, but returned a "
            f"{type(scores).__name__}. Wrap it in a module that returns only the scores."
        )
    if scores.dim() != 2 or scores.shape[1] != classes:
        raise ValueError(
            f"The network must return scores of shape (N, {classes}), but returned "
            f"{tuple(scores.shape)}. Pass the number of its outputs as num_classes, or change its "
            "last layer."
        )
    if labels.dim() == 2 and labels.shape == scores.shape:
        mixed = torch.is_autocast_enabled(scores.device.type)
        return labels.float() if mixed else labels.to(scores.dtype), labels.argmax(dim=1)
    if labels.shape != scores.shape[:1]:
        raise ValueError(
            f"Labels must be class indices of shape ({len(scores)},) or class probabilities of "
            f"shape {tuple(scores.shape)}, but have shape {tuple(labels.shape)}."
        )
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"Class indices must be integers, but are {labels.dtype}.")
    if labels.device.type == "cpu" and len(labels):
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise ValueError(
                f"Labels must be in [0, {classes}) for num_classes={classes}, but one is "
                f"{low if low < 0 else high}. Number the classes from 0, or build the network with "
                "as many classes as the data have."
            )
    return labels.long(), labels


class ProbabilityWarning:
    """Warn once if the network ends with a softmax, which cross-entropy would apply again.

    Args:
        enabled: If False, do nothing.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._watches = enabled
        self._result: Tensor | None = None

    def watch(self, scores: Tensor) -> None:
        """Compare the scores (B, classes) of the first batch, without waiting for a GPU."""
        if self._watches and len(scores):
            self._watches = False
            scores = scores.detach().float()
            sums_to_one = (scores.sum(dim=1) - 1).abs().max() < 1e-3
            self._result = (scores.min() >= 0) & sums_to_one

    def warn(self) -> None:
        """Read the result, if there is one, and warn."""
        result, self._result = self._result, None
        if result is not None and bool(result):
            warnings.warn(
                "The network returns probabilities: the scores of each image are in [0, 1] and sum "
                "to 1. Cross-entropy applies log-softmax to them, which makes the loss too flat. "
                "Remove the softmax at the end of the network, or replace it by "
                "torch.nn.LogSoftmax(dim=1).",
                stacklevel=2,
            )
