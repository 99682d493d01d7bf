"""Record what a network does, operation by operation.

The model is run once under a `TorchDispatchMode`, which sees every operation that PyTorch carries
out, whatever Python code calls it: functional calls, reused modules, branches. The run is made on
fake tensors, which have shapes but no values. If the model asks for values, it is run again on real
tensors.
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
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from cifar_resnet.fields.leftovers import Caches
from cifar_resnet.fields.steps import Call, LayerCall, LayerExit, Ref, Step, Trace, ValueRead
from cifar_resnet.model_state import in_this_thread, preserve_state, process_settings


class TraceError(Exception):
    """The model raised an error, which is the cause of this one."""

    def __init__(self, layer: str) -> None:
        super().__init__(f"The model fails in {layer or 'its own forward'}.")
        self.layer = layer


def trace(model: nn.Module, inputs: Sequence[Any], *, on_values: bool | None = None) -> Trace:
    """Run the model once in evaluation mode, and leave it unchanged.

    Args:
        model: The network.
        inputs: The arguments to call it with.
        on_values: Whether to run on real tensors. If None, use fake ones unless the model needs
            values.
    """
    if on_values:
        return _trace(_Recorder(model, True), inputs)
    recorder = _Recorder(model, False)
    caches = Caches(model)
    run = None
    try:
        run = _trace(recorder, inputs)
    except TraceError:  # the model may need values; if it is broken, it fails again
        if on_values is False:
            raise
    finally:
        caches.remove(recorder.fakes)
    return run or _trace(_Recorder(model, True), inputs)


def _trace(recorder: _Recorder, inputs: Sequence[Any]) -> Trace:
    model, on_values = recorder.root.module, recorder.on_values
    fake = contextlib.nullcontext() if on_values else FakeTensorMode(allow_non_fake_inputs=True)
    with preserve_state(model), _without_fused_kernels(), torch.no_grad(), fake as mode:
        # copies, as the model may write to them
        copy = Tensor.clone if mode is None else mode.from_tensor
        inputs = tree_map_only(Tensor, copy, list(inputs))
        refs = tuple(recorder.ref(x) if isinstance(x, Tensor) else None for x in inputs)
        with recorder, _KeepWhole(recorder), recorder.watch_layers():
            try:
                outputs = recorder.refs(model(*inputs))
            except Exception as error:
                raise TraceError(recorder.layer_of(error)) from error
        recorder.steps.append(LayerExit(recorder.root, outputs))
        return Trace(recorder.steps, refs, outputs, on_values)


@contextlib.contextmanager
def _without_fused_kernels() -> Iterator[None]:
    """Switch off fused kernels, which would appear as one operation without a rule, and warnings
    of PyTorch about them."""
    with process_settings, warnings.catch_warnings(), torch.inference_mode(False):
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        log = logging.getLogger("torch._subclasses.fake_tensor")  # logs errors that we report
        disabled, log.disabled = log.disabled, True
        try:
            warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")
            with torch.backends.mkldnn.flags(enabled=False):  # would fuse recurrent layers
                yield
        finally:
            log.disabled = disabled
            torch.backends.mha.set_fastpath_enabled(fast_path)


class _Recorder(TorchDispatchMode):
    """Collects the steps of one run."""

    def __init__(self, model: nn.Module, on_values: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.root = LayerCall("", model, 1)
        self.on_values = on_values
        self._names = {module: name for name, module in model.named_modules() if name}
        self._numbers: Counter[nn.Module] = Counter()
        self._stack = [self.root]
        self._failed: tuple[BaseException, str] | None = None  # the last error, and its layer
        self._indices = WeakTensorKeyDictionary()
        self._count = 0
        self._silent = False

    def layer_of(self, error: BaseException) -> str:
        """Return the name of the layer that raised an error; "" for the model itself."""
        return self._failed[1] if self._failed and self._failed[0] is error else ""

    def fakes(self) -> list[Tensor]:
        """Return the tensors without values that are still alive after the run."""
        self._failed = None  # the error refers to the frames of the run
        return [tensor for tensor in self._indices if isinstance(tensor, FakeTensor)]

    def ref(self, tensor: Tensor, *, with_values: bool = False) -> Ref:
        index = self._indices.get(tensor)
        if index is None:
            index = self._indices[tensor] = self._count
            self._count += 1  # not len(_indices): entries of tensors that are freed disappear
        values = None
        if with_values and self.on_values and not tensor.is_floating_point():
            values = tensor.detach().cpu().clone()  # the model may write to it later
        shape = tuple(int(size) for size in tensor.shape)
        strides = tensor.stride() if tensor.layout == torch.strided else ()
        return Ref(index, shape, strides, values)

    def refs(self, values: Any, *, with_values: bool = False) -> Any:
        """Return the same lists, tuples and dictionaries, with a `Ref` in place of each tensor."""
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
        if func.namespace == "prim":  # asks for a property and computes nothing
            return func(*args, **kwargs)
        if _dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            # In inference mode, composite operations arrive here before PyTorch decomposes them.
            # Decompose them now, and record their parts.
            with self:
                return func._op_dk(DispatchKey.CompositeImplicitAutograd, *args, **kwargs)
        # arguments first: an in-place operation would change the shape that they had
        reads_indices = func._schema.name.removesuffix("_") in _READS_INDICES
        given = [self.refs(arg, with_values=reads_indices) for arg in args]
        named = self.refs(kwargs, with_values=reads_indices)
        outputs = func(*args, **kwargs)
        if not self._silent:
            if func in _IN_PLACE_VIEWS:
                # `y.t_()` writes nothing. It makes y a view of what y was, which other views of the
                # same memory still refer to: record `t`, with a new number for y.
                func = _IN_PLACE_VIEWS[func]
                del self._indices[args[0]]
            call = Call(
                func, tuple(given), named, self.refs(outputs), tuple(self._stack), _source()
            )
            self.steps.append(call)
        return outputs

    def record_as(
        self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[[], Any]
    ) -> Any:
        """Call `run`, but record it as one operation in place of its parts."""
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
        self.steps.append(ValueRead(self.ref(tensor), by, _source()))

    @contextlib.contextmanager
    def watch_layers(self) -> Iterator[None]:
        """Follow the calls of submodules, with global hooks so that the model gets none."""

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
            if outputs is None and error is not None:  # the model may catch it and continue
                if self._failed is None or self._failed[0] is not error:
                    self._failed = error, layer.name
                return
            self.steps.append(LayerExit(layer, self.refs(outputs)))

        handles = [
            register_module_forward_pre_hook(in_this_thread(enter)),
            register_module_forward_hook(in_this_thread(leave), always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _KeepWhole(TorchFunctionMode):
    """Records some functions as a whole, because their parts hide what they do.

    Circular padding is made of copies, so the pattern of units would end at the border. Causal
    attention depends on the values of a mask. The views that shuffle pixels leave open which
    dimensions of size 1 are rows and columns. `item` and similar methods extract values.
    """

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        op = None
        given = kwargs
        if func in _EXTRACTS_VALUES and isinstance(args[0], Tensor):
            self._recorder.record_reading(args[0], func.__name__)
        if func is torch.nn.functional.scaled_dot_product_attention:
            op = _aten.scaled_dot_product_attention.default
        elif func in _SHUFFLES:
            op = _SHUFFLES[func]
        elif func is torch.nn.functional.pad:
            named = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
            if named.get("mode") == "circular":
                op = _aten._pad_circular.default
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

_aten = torch.ops.aten
_IN_PLACE_VIEWS = {
    _aten.as_strided_.default: _aten.as_strided.default,
    _aten.squeeze_.default: _aten.squeeze.default,
    _aten.squeeze_.dim: _aten.squeeze.dim,
    _aten.squeeze_.dims: _aten.squeeze.dims,
    _aten.t_.default: _aten.t.default,
    _aten.transpose_.default: _aten.transpose.int,
    _aten.unsqueeze_.default: _aten.unsqueeze.default,
}

_SHUFFLES = {
    torch.channel_shuffle: _aten.channel_shuffle.default,
    torch.pixel_shuffle: _aten.pixel_shuffle.default,
    torch.pixel_unshuffle: _aten.pixel_unshuffle.default,
}

# `bool` is missing on purpose: it chooses a branch, and the branch taken is followed.
_EXTRACTS_VALUES = {
    Tensor.__array__, Tensor.__complex__, Tensor.__dlpack__, Tensor.__float__, Tensor.__index__,
    Tensor.__int__, Tensor.item, Tensor.numpy, Tensor.tolist,
}  # fmt: skip

_TORCH = str(Path(torch.__file__).parent)
_HERE = str(Path(__file__).parent)


def _source() -> str:
    """Return the innermost `file:line` that belongs neither to PyTorch nor to this package."""
    frame = sys._getframe(2)
    inside = (_TORCH, _HERE, "<frozen")
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
