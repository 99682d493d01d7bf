"""What a network does, operation by operation. It knows how PyTorch runs a model; it must not know
what a receptive field is.

One run of the model under a dispatch mode sees every operation that PyTorch carries out, whatever
Python does in between: functional calls, reused modules, branches. The run is made on fake tensors,
which have shapes and no values; where the model asks for values, it is made again on real ones.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey, _dispatch_has_kernel_for_dispatch_key
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from cifar_resnet.fields.steps import Call, LayerCall, LayerExit, Reading, Ref, Step, Trace
from cifar_resnet.model_state import preserve_state


class TraceError(Exception):
    """The model raised an error, which is the cause of this one."""

    def __init__(self, layer: str) -> None:
        super().__init__(f"The model fails in {layer or 'its own forward'}.")
        self.layer = layer


class ValuesNeededError(Exception):
    """The answer depends on the values of tensors, which a run on fake ones does not have."""


def trace(model: nn.Module, inputs: Sequence[Any], *, on_values: bool | None = None) -> Trace:
    """Run the model once in evaluation mode, and leave it untouched.

    Args:
        model: The network.
        inputs: What it is called with.
        on_values: True for real tensors, False for fake ones, None for fake ones unless the model
            looks at values.
    """
    if on_values is not None:
        return _trace(model, inputs, on_values)
    try:
        return _trace(model, inputs, False)
    except TraceError:  # it looks at values, or at memory; if it is broken, it fails again
        return _trace(model, inputs, True)


def _trace(model: nn.Module, inputs: Sequence[Any], on_values: bool) -> Trace:
    fake = contextlib.nullcontext() if on_values else FakeTensorMode(allow_non_fake_inputs=True)
    recorder = _Recorder(model, on_values)
    with preserve_state(model), _one_path(), torch.no_grad(), fake as mode:
        if mode is not None:
            inputs = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in inputs]
        refs = tuple(recorder.ref(x) if isinstance(x, Tensor) else None for x in inputs)
        with recorder, _AsOne(recorder), recorder.watch_layers():
            try:
                outputs = recorder.refs(model(*inputs))
            except Exception as error:
                raise TraceError(recorder.place_of(error)) from error
        recorder.steps.append(LayerExit(recorder.root, outputs))
        return Trace(recorder.steps, refs, outputs, on_values)


@contextlib.contextmanager
def _one_path() -> Iterator[None]:
    """Without the fused kernels that stand for many operations at once, and without noise."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    log = logging.getLogger("torch._subclasses.fake_tensor")  # tells of errors that we report
    disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings(), torch.inference_mode(False):
            warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")
            with torch.backends.mkldnn.flags(enabled=False):  # takes recurrent layers as a whole
                yield
    finally:
        log.disabled = disabled
        torch.backends.mha.set_fastpath_enabled(fast_path)


class _Recorder(TorchDispatchMode):
    def __init__(self, model: nn.Module, on_values: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.root = LayerCall("", model, 1)
        self._on_values = on_values
        self._names = {module: name for name, module in model.named_modules() if name}
        self._numbers: Counter[nn.Module] = Counter()
        self._stack = [self.root]
        self._failed: tuple[BaseException, str] | None = None  # the last error, and in which layer
        self._indices = WeakTensorKeyDictionary()
        self._count = 0
        self._silent = False

    def place_of(self, error: BaseException) -> str:
        """Name of the layer that an error comes from; empty for the model itself."""
        return self._failed[1] if self._failed and self._failed[0] is error else ""

    def ref(self, tensor: Tensor, *, with_values: bool = False) -> Ref:
        index = self._indices.get(tensor)
        if index is None:
            index = self._indices[tensor] = self._count
            self._count += 1
        values = None
        if with_values and self._on_values and not tensor.is_floating_point():
            values = tensor.detach().cpu().clone()  # it may be written to later
        shape = tuple(int(size) for size in tensor.shape)
        strides = tensor.stride() if tensor.layout == torch.strided else ()
        return Ref(index, shape, strides, values)

    def refs(self, values: Any, *, with_values: bool = False) -> Any:
        """The same structure of lists, tuples and dictionaries with a `Ref` for each tensor."""
        if isinstance(values, Tensor):
            return self.ref(values, with_values=with_values)
        if is_dataclass(values) and not isinstance(values, type):
            values = {field.name: getattr(values, field.name) for field in fields(values)}
        if isinstance(values, Mapping):
            return {key: self.refs(value, with_values=with_values) for key, value in values.items()}
        if isinstance(values, list | tuple):
            return [self.refs(value, with_values=with_values) for value in values]
        return values

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks for a property, computes nothing
            return func(*args, **kwargs)
        if _dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # tensors of inference mode come here before it is taken apart
                return func._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        reads_indices = func._schema.name.removesuffix("_") in _READS_INDICES
        given = [self.refs(arg, with_values=reads_indices) for arg in args]
        named = self.refs(kwargs, with_values=reads_indices)
        outputs = func(*args, **kwargs)
        if not self._silent:
            call = Call(
                func, tuple(given), named, self.refs(outputs), tuple(self._stack), _source()
            )
            self.steps.append(call)
        return outputs

    def record_as(
        self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[[], Any]
    ) -> Any:
        """Run something that is to appear as one operation."""
        given, named = tuple(self.refs(arg) for arg in args), self.refs(kwargs)
        self._silent = True
        try:
            outputs = run()
        finally:
            self._silent = False
        call = Call(op, given, named, self.refs(outputs), tuple(self._stack), _source())
        self.steps.append(call)
        return outputs

    def record_reading(self, tensor: Tensor, by: str) -> None:
        self.steps.append(Reading(self.ref(tensor), by, _source()))

    @contextlib.contextmanager
    def watch_layers(self) -> Iterator[None]:
        """Follow the calls of submodules with hooks that are PyTorch's own, not the model's."""

        def enter(module: nn.Module, args: Any) -> None:
            if module in self._names:
                for outer in self._stack:
                    outer.inner += 1
                self._numbers[module] += 1
                call = LayerCall(self._names[module], module, self._numbers[module])
                call.inputs = self.refs(args)
                self._stack.append(call)

        def leave(module: nn.Module, args: Any, outputs: Any) -> None:
            if module not in self._names:
                return
            layer = self._stack.pop()
            error = sys.exc_info()[1]
            if outputs is None and error is not None:  # the model may catch it and go on
                if self._failed is None or self._failed[0] is not error:
                    self._failed = error, layer.name
                return
            self.steps.append(LayerExit(layer, self.refs(outputs)))

        handles = [
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _AsOne(TorchFunctionMode):
    """Functions whose parts would hide what they do: circular padding is made of copies, causal
    attention of a mask's values, and `item` takes values out of PyTorch."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        op = None
        given = kwargs
        if func in _TAKES_VALUES and isinstance(args[0], Tensor):
            self._recorder.record_reading(args[0], func.__name__)
        if func is torch.nn.functional.scaled_dot_product_attention:
            op = torch.ops.aten.scaled_dot_product_attention.default
        elif func is torch.nn.functional.pad:
            named = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
            if named.get("mode") == "circular":
                op = torch.ops.aten._pad_circular.default
                args, given = (named["input"], list(named["pad"])), {}
                kwargs = {"mode": "circular"}
        if op is None:
            return func(*args, **kwargs)
        return self._recorder.record_as(op, args, given, lambda: func(*args, **kwargs))


_READS_INDICES = {
    f"aten::{name}"
    for name in (
        "_unsafe_index", "embedding", "gather", "index", "index_copy", "index_fill", "index_put",
        "index_select",
    )
}  # fmt: skip

# bool() is not among them: it chooses a branch, and the branch taken is the one that is followed.
_TAKES_VALUES = {
    Tensor.__array__, Tensor.__complex__, Tensor.__dlpack__, Tensor.__float__, Tensor.__index__,
    Tensor.__int__, Tensor.item, Tensor.numpy, Tensor.tolist,
}  # fmt: skip

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)


def _source() -> str:
    """The innermost line that belongs neither to PyTorch nor to this package: `file:line`."""
    frame = sys._getframe(2)
    inside = (_TORCH, _HERE, "<frozen")
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
