"""Run a model on another device or in another precision without moving the model itself."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

MoveInputs = Callable[[Tensor], Tensor]


class _WithValues(nn.Module):
    """Call a module with other values for its parameters and buffers."""

    def __init__(self, model: nn.Module, values: dict[str, Tensor]) -> None:
        super().__init__()
        self._call = partial(functional_call, model, values)

    def forward(self, *inputs: Tensor) -> Any:
        return self._call(inputs)


@contextlib.contextmanager
def run_on_device(
    model: nn.Module, device: torch.device | None, dtype: torch.dtype | None = None
) -> Iterator[tuple[nn.Module, MoveInputs]]:
    """Yield a module to call in place of `model`, and a function that moves inputs to its device.

    Compiled parts of the model run uncompiled.

    Args:
        model: The model; it is not moved.
        device: Where to run. If None, where the model is.
        dtype: Precision to run in, with parameters detached from their gradients. If None, that of
            the model.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    first = next(iter(tensors.values()), torch.zeros(()))
    target = first.device if device is None else device
    floats = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    input_dtype = dtype or next(iter(floats), torch.get_default_dtype())

    def move_inputs(inputs: Tensor) -> Tensor:
        # converted before it is moved: MPS has no float64
        inputs = inputs.to(input_dtype) if inputs.is_floating_point() else inputs
        return inputs.to(target)

    runner = model
    if dtype is not None or any(tensor.device != target for tensor in tensors.values()):
        values = {}
        for name, tensor in tensors.items():
            value = tensor.detach().to(target, dtype if tensor.is_floating_point() else None)
            values[name] = value.clone() if value.is_inference() else value
        runner = _WithValues(model, values)
    with torch.compiler.set_stance("force_eager"):
        yield runner, move_inputs
