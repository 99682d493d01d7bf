"""Use a model and leave it unchanged afterward, also while other threads use it."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.nn.parameter import is_lazy

_locks: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()
_locks_guard = threading.Lock()
process_settings = threading.RLock()  # hold it to change settings of the process for a while


def unwrap_compiled(model: nn.Module) -> nn.Module:
    """Return the module inside a compiled module or a data-parallel wrapper, which may be nested.

    Any other module is returned itself.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, but got {type(model).__name__}. "
            "Wrap a function in a module whose forward calls it."
        )
    original: Any = model
    while True:
        if isinstance(original, nn.DataParallel | nn.parallel.DistributedDataParallel):
            original = original.module
        elif hasattr(original, "_orig_mod"):
            original = original._orig_mod
        else:
            break
    assert isinstance(original, nn.Module)
    lazy = [name for name, p in original.named_parameters() if is_lazy(p)]
    if lazy:
        raise ValueError(
            f"Parameter {lazy[0]!r} has no shape yet (a lazy module). "
            "Call the model once with an input first."
        )
    return original


@contextlib.contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and restore it on exit, also after an error.

    Restored are the mode of each submodule (they may differ), attributes, hooks, buffers and their
    values, and `.grad` and `requires_grad` of each parameter. The values of parameters are expected
    not to change.

    In the main thread, the state of the global random number generators of Python, NumPy and
    PyTorch is restored as well. Other threads share these generators and must not rewind them.

    Threads that use models with a common submodule enter one after the other. Other threads may
    call the model meanwhile, with two exceptions: its training mode is off, and `run_on_device` may
    have converted its weights.
    """
    modules = list(model.modules())
    with _exclusive_use(modules), _preserve_random_state(model):
        modes = [(module, getattr(module, "training", False)) for module in modules]
        attributes = [(module, _shallow_copy(module.__dict__)) for module in modules]
        buffers = [
            (b, b.detach().clone()) for b in model.buffers() if not (is_lazy(b) or b.is_meta)
        ]
        parameters = [(p, p.grad, p.requires_grad) for p in model.parameters()]
        try:
            _set_modes((module, False) for module in modules)
            yield
        finally:
            for module, saved in attributes:
                _restore(module.__dict__, saved)
            _set_modes(modes)  # of scripted modules, which do not keep it in their attributes
            with torch.inference_mode():  # tensors created in this mode can be written only in it
                for buffer, values in buffers:
                    if not torch.equal(buffer, values):
                        buffer.copy_(values)
            for parameter, grad, requires_grad in parameters:
                if parameter.grad is not grad:
                    parameter.grad = grad
                if parameter.requires_grad != requires_grad:
                    parameter.requires_grad_(requires_grad)


def in_this_thread(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a hook that does nothing when another thread calls the module."""
    owner = threading.get_ident()

    def guarded(*args: Any) -> Any:
        return hook(*args) if threading.get_ident() == owner else None

    # another thread may be compiling the model
    return torch.compiler.disable(guarded) if "torch._dynamo" in sys.modules else guarded


@contextlib.contextmanager
def watch_modules(
    enter: Callable[[nn.Module, Any], None], leave: Callable[[nn.Module, Any, Any], None]
) -> Iterator[None]:
    """Call functions before and after every module that this thread runs, with global hooks, so
    that no module gets any. `leave` is called after an error, too, with None as the output.
    """
    handles = [
        register_module_forward_pre_hook(in_this_thread(enter)),
        register_module_forward_hook(in_this_thread(leave), always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _exclusive_use(modules: list[nn.Module]) -> Iterator[None]:
    """Hold the locks of modules. All threads acquire them in the same order, so none waits forever.

    A thread may enter again.
    """
    with _locks_guard:
        locks = [_locks.setdefault(m, threading.RLock()) for m in sorted(modules, key=id)]
    with contextlib.ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        yield


@contextlib.contextmanager
def _preserve_random_state(model: nn.Module) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    python_random, numpy_random = random.getstate(), np.random.get_state()
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices, key=str)):
        try:
            yield
        finally:
            random.setstate(python_random)
            np.random.set_state(numpy_random)


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    """Set the mode of each module where it differs.

    Not by `eval()`: exported programs do not have it, and where it is overridden, it may change
    parameters (adapters merge their weights into those of the model).
    """
    for module, training in modes:
        if getattr(module, "training", training) != training:
            module.training = training


def _shallow_copy(attributes: dict[str, Any]) -> dict[str, Any]:
    """Copy the attributes, and the content of each that is a dictionary (parameters, hooks)."""
    return {
        name: (value, dict(value)) if isinstance(value, dict) else (value, None)
        for name, value in attributes.items()
    }


def _restore(attributes: dict[str, Any], saved: dict[str, Any]) -> None:
    for value, content in saved.values():
        if content is not None:
            _update(value, content)
    _update(attributes, {name: value for name, (value, _) in saved.items()})


def _update(current: dict[Any, Any], saved: dict[Any, Any]) -> None:
    """Change only what differs, as other threads may read the dictionary at the same time."""
    for name in [name for name in current if name not in saved]:
        del current[name]
    for name, value in saved.items():
        if name not in current or current[name] is not value:
            current[name] = value
    if list(current) != list(saved):  # an entry was deleted and set again: restore its position
        current.clear()
        current.update(saved)
