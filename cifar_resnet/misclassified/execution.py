"""A model computed on another device or in another precision, while it stays where it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Place = Callable[[Tensor], Tensor]


class _Elsewhere(nn.Module):
    """A module called with other values for its parameters and buffers."""

    def __init__(self, model: nn.Module, values: dict[str, Tensor]) -> None:
        super().__init__()
        self._run = partial(functional_call, model, values)

    def forward(self, *inputs: Tensor) -> Any:
        return self._run(inputs)


@contextlib.contextmanager
def placed(
    model: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None = None
) -> Iterator[tuple[nn.Module, Place]]:
    """The model to call on `device` (None: where it is) and in `dtype` (None: its own), and a
    function that brings inputs there. Parts that were compiled run as they were before it.

    With a dtype the parameters are also cut off from their gradients.
    """
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors |= dict(model.named_buffers(remove_duplicate=False))
    first = next(iter(tensors.values()), torch.zeros(()))
    target = first.device if device is None else torch.device(device)
    floats = [tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()]
    own = dtype or next(iter(floats), torch.get_default_dtype())

    def place(inputs: Tensor) -> Tensor:
        inputs = inputs.to(target)
        return inputs.to(own) if inputs.is_floating_point() else inputs

    run = model
    if dtype is not None or any(tensor.device != target for tensor in tensors.values()):
        values = {}
        for name, tensor in tensors.items():
            value = tensor.detach().to(target, dtype if tensor.is_floating_point() else None)
            values[name] = value.clone() if value.is_inference() else value
        run = _Elsewhere(model, values)
    with torch.compiler.set_stance("force_eager"):
        yield run, place
