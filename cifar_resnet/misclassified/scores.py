"""Compute the class scores of a model before any softmax."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def class_scores(model: nn.Module, inputs: Tensor) -> Tensor:
    """Run a model and return its scores (N, classes), before a softmax or log-softmax at its end.

    Raises:
        ValueError: If the model fails on these inputs, or does not return scores (N, classes).
    """
    with _SoftmaxInputs() as softmax:
        try:
            outputs = model(inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"The model fails on a batch of shape {tuple(inputs.shape)}, {inputs.dtype}: "
                f"{type(error).__name__}: {error}"
            ) from error
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(inputs):
        returned = (
            f"a tensor of shape {tuple(outputs.shape)}"
            if isinstance(outputs, Tensor)
            else type(outputs).__name__
        )
        raise ValueError(
            f"The model must return scores (N, classes) for N = {len(inputs)} images, but returns "
            f"{returned}. Wrap it in a module that returns the scores."
        )
    if outputs.shape[1] < 2:
        raise ValueError(
            f"The model returns one score for each image, shape {tuple(outputs.shape)}; at least "
            "two classes are expected. Wrap it in a module that returns one score for each class."
        )
    scores: Tensor = softmax.inputs.get(id(outputs), outputs)
    return scores


def check_finite(scores: Tensor, indices: Tensor | range, kind: str) -> None:
    """Raise if the scores (N, classes) of a sample are not finite; `indices` are the samples'."""
    finite = scores.isfinite().all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(
            f"The scores of {kind} {int(indices[row])} are not finite: "
            f"{scores[row].tolist()[:10]}. Check the model's weights and the images' range."
        )


_SOFTMAX = {  # a mode sees only the outermost call
    F.softmax,
    F.log_softmax,
    torch.softmax,
    torch.log_softmax,
    Tensor.softmax,
    Tensor.log_softmax,
}


class _SoftmaxInputs(TorchFunctionMode):
    """Record the input of each softmax by the identity of its output."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[int, Tensor] = {}
        self._outputs: list[Tensor] = []  # kept alive, so that no identity is used twice

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _SOFTMAX and args and isinstance(result, Tensor) and result.dim() == 2:
            self.inputs[id(result)] = args[0]
            self._outputs.append(result)
        return result
