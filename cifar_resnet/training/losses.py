"""The loss of a run: cross-entropy, with or without class weights, or a function of the user."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet import arguments

__all__ = ["Loss", "TrainingLoss"]

Loss = Callable[[Tensor, Tensor], Tensor]


class TrainingLoss(nn.Module):
    """Mean loss of a batch, as `ImageClassifier` computes it.

    Args:
        classes: Number of classes.
        class_weights: Weights of the classes, or None.
        loss: Function of scores and labels in place of cross-entropy; a string is its description
            in a checkpoint, and is refused.
        label_smoothing: Label smoothing of the recipe, to refuse what it would not apply to.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or two of them exclude each other.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        classes: int,
        class_weights: Sequence[float] | Tensor | None,
        loss: Loss | str | None,
        label_smoothing: float,
    ) -> None:
        super().__init__()
        weights = None if class_weights is None else _weights(class_weights, classes)
        # Not persistent: a checkpoint holds them as a hyperparameter.
        self.register_buffer("class_weights", weights, persistent=False)
        self.custom = None if loss is None else _custom(loss)
        if loss is None:
            return
        if class_weights is not None:
            raise ValueError(
                "class_weights are those of cross-entropy: pass either loss or class_weights. "
                "torch.nn.CrossEntropyLoss(weight=...) is a loss with class weights."
            )
        if label_smoothing:
            raise ValueError(
                f"The recipe has label_smoothing={label_smoothing}, which a custom loss would not "
                "use. Pass dataclasses.replace(recipe, label_smoothing=0.0), and smooth the labels "
                "in the loss if needed."
            )

    def forward(self, scores: Tensor, labels: Tensor, label_smoothing: float) -> Tensor:
        """Compute the loss of a training batch."""
        if self.custom is None:
            return F.cross_entropy(
                scores, labels, weight=self.class_weights, label_smoothing=label_smoothing
            )
        return self._call(scores, labels)

    def evaluate(self, scores: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of a validation or test batch: without weights and label smoothing."""
        return (
            F.cross_entropy(scores, labels) if self.custom is None else self._call(scores, labels)
        )

    def hyperparameters(self) -> dict[str, Any]:
        """Return what differs from cross-entropy as plain values, for a checkpoint."""
        if self.custom is not None:
            return {"loss": _describe(self.custom)}
        if self.class_weights is None:
            return {}
        return {"class_weights": self.class_weights.tolist()}

    def _call(self, scores: Tensor, labels: Tensor) -> Tensor:
        assert self.custom is not None
        value = self.custom(scores, labels)
        if not isinstance(value, Tensor) or value.dim():
            got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ValueError(
                f"loss must return a scalar tensor, the mean over the batch, but returned {got}. "
                "For a loss of PyTorch, use reduction='mean'."
            )
        return value


def _weights(values: Any, classes: int) -> Tensor:
    expected = f"a sequence of {classes} numbers of at least 0, one for each class"
    message = f"class_weights must be {expected}, but got {values!r}."
    if isinstance(values, Tensor):
        values = values.tolist()
    numbers = arguments.sequence("class_weights", values, expected)
    if not all(isinstance(v, Real) and not isinstance(v, bool) for v in numbers):
        raise TypeError(message)
    plain = [float(value) for value in numbers]
    if len(plain) != classes or not all(0 <= value < math.inf for value in plain) or not any(plain):
        raise ValueError(message)
    return torch.tensor(plain)


def _custom(loss: Any) -> Any:
    expected = "a function of scores (N, classes) and labels that returns the mean loss"
    if isinstance(loss, str):
        raise TypeError(
            f"loss must be {expected}, but got {loss!r}. A checkpoint holds only its name: use "
            "load_from_checkpoint(path, loss=...)."
        )
    if not callable(loss) or isinstance(loss, type):
        raise TypeError(f"loss must be {expected}, but got {loss!r}.")
    if isinstance(loss, nn.Module) and any(p.requires_grad for p in loss.parameters()):
        raise ValueError(
            f"loss has trainable parameters, which the optimizer of the recipe would not train: "
            f"{_describe(loss)}. Freeze them with loss.requires_grad_(False), or override "
            "training_step and configure_optimizers."
        )
    return loss


def _describe(loss: Any) -> str:
    named = loss if hasattr(loss, "__qualname__") else type(loss)
    return f"{named.__module__}.{named.__qualname__}"
