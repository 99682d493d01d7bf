"""The class scores of a model, before any softmax. It must not know data or what they are for."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def class_scores(model: nn.Module, inputs: Tensor) -> Tensor:
    """Run a model and give its scores (N, classes) before a softmax or log-softmax at its end.

    Raises:
        ValueError: If the model fails on these inputs, or returns anything but (N, classes) scores.
    """
    with _SoftmaxCalls() as calls:
        try:
            outputs = model(inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise ValueError(
                f"The model fails on a batch of shape {tuple(inputs.shape)}, {inputs.dtype}: "
                f"{type(error).__name__}: {error}"
            ) from error
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(inputs):
        what = (
            f"a tensor of shape {tuple(outputs.shape)}"
            if isinstance(outputs, Tensor)
            else type(outputs).__name__
        )
        raise ValueError(
            f"The model must return scores (N, classes) for N = {len(inputs)} images, but returns "
            f"{what}. Wrap it in a module that picks them out."
        )
    if outputs.shape[1] < 2:
        raise ValueError(
            f"The model returns one score for each image, shape {tuple(outputs.shape)}; at least "
            "two classes are expected. Wrap it in a module that returns one score for each class."
        )
    scores: Tensor = calls.inputs.get(id(outputs), outputs)
    return scores


_SOFTMAX = {  # a mode sees the outermost call only
    F.softmax,
    F.log_softmax,
    torch.softmax,
    torch.log_softmax,
    Tensor.softmax,
    Tensor.log_softmax,
}


class _SoftmaxCalls(TorchFunctionMode):
    """Remembers what went into each softmax, by the identity of what came out."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[int, Tensor] = {}
        self._outputs: list[Tensor] = []  # kept, so that no identity is used again

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _SOFTMAX and args and isinstance(result, Tensor) and result.dim() == 2:
            self.inputs[id(result)] = args[0]
            self._outputs.append(result)
        return result
