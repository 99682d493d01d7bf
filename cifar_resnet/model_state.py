"""Use a model and leave it unchanged afterward."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy


def unwrap_compiled(model: nn.Module) -> nn.Module:
    """Return the module inside a compiled module; any other module is returned itself."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, but got {type(model).__name__}. "
            "Wrap a function in a module whose forward calls it."
        )
    original = getattr(model, "_orig_mod", model)
    lazy = [name for name, p in original.named_parameters() if is_lazy(p)]
    if lazy:
        raise ValueError(
            f"Parameter {lazy[0]!r} has no shape yet (a lazy module). "
            "Call the model once with an input first."
        )
    assert isinstance(original, nn.Module)
    return original


@contextlib.contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and restore it on exit, also after an error.

    Restored are the mode of each submodule (they may differ), attributes, hooks, buffers and their
    values, `.grad` and `requires_grad` of each parameter, and the state of the global random number
    generators of Python, NumPy and PyTorch. The values of parameters are expected not to change.
    """
    attributes = [(module, _shallow_copy(module.__dict__)) for module in model.modules()]
    buffers = [(b, b.detach().clone()) for b in model.buffers() if not (is_lazy(b) or b.is_meta)]
    parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
    python_random, numpy_random = random.getstate(), np.random.get_state()
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        try:
            model.eval()
            yield
        finally:
            for module, saved in attributes:
                _restore(module.__dict__, saved)
            with torch.inference_mode():  # tensors created in this mode can be written only in it
                for buffer, values in buffers:
                    if not torch.equal(buffer, values):
                        buffer.copy_(values)
            for parameter, grad, requires_grad in parameters:
                if parameter.grad is not grad:
                    parameter.grad = grad
                if parameter.requires_grad != requires_grad:
                    parameter.requires_grad_(requires_grad)
            random.setstate(python_random)
            np.random.set_state(numpy_random)


def _shallow_copy(attributes: dict[str, Any]) -> dict[str, Any]:
    """Copy the attributes, and the content of each that is a dictionary (parameters, hooks)."""
    return {
        name: (value, dict(value)) if isinstance(value, dict) else (value, None)
        for name, value in attributes.items()
    }


def _restore(attributes: dict[str, Any], saved: dict[str, Any]) -> None:
    attributes.clear()
    for name, (value, content) in saved.items():
        if content is not None:
            value.clear()
            value.update(content)
        attributes[name] = value
