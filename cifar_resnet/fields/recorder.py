"""Record the operations of one run, as PyTorch carries them out."""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey, _dispatch_has_kernel_for_dispatch_key
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from cifar_resnet.fields.escapes import (
    EXTRACTS_VALUES,
    FROM_ELEMENTS,
    flat_elements,
    has_numbers,
    is_followed,
    returns_values,
)
from cifar_resnet.fields.names import ATTENTION
from cifar_resnet.fields.numbering import TensorNumbers, tensors_in, with_arguments, written_by
from cifar_resnet.fields.steps import Call, LayerCall, LayerExit, Ref, Step, ValueRead, refs_in
from cifar_resnet.model_state import watch_modules


class Recorder(TorchDispatchMode):
    """Collects the steps of one run."""

    def __init__(self, model: nn.Module, on_values: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.root = LayerCall("", model, 1)
        self.on_values = on_values
        self._tensors = TensorNumbers(on_values, self._record_view, self._record_foreign)
        self.refs = self._tensors.refs
        self._inputs: list[Ref] = []
        own = [*model.parameters(), *model.buffers()] if on_values else []
        self._own_memory = {x.untyped_storage().data_ptr() for x in own if not x.is_sparse}
        # tensors that no operation has made, and where they were used first
        self.constants: list[tuple[str, str]] = []
        self._function: Any = None  # the function of PyTorch that is running, the outermost one
        self._scalars: list[Ref] = []  # tensors that it has read as numbers
        self._names = {module: name for name, module in model.named_modules() if name}
        self._numbers: Counter[nn.Module] = Counter()
        self._stack = [self.root]
        self._failed: tuple[BaseException, str] | None = None  # the last error, and its layer
        self.silent = False

    def layer_of(self, error: BaseException) -> str:
        """Return the name of the layer that raised an error; "" for the model itself."""
        return self._failed[1] if self._failed and self._failed[0] is error else ""

    def fakes(self) -> list[Tensor]:
        """Return the tensors without values that are still alive after the run."""
        self._failed = None  # the error refers to the frames of the run
        return [tensor for tensor in self._tensors.alive() if isinstance(tensor, FakeTensor)]

    def input(self, tensor: Tensor) -> Ref:
        self._inputs.append(self._tensors.input(tensor))
        return self._inputs[-1]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks for a property and computes nothing
            return func(*args, **kwargs)
        if self.silent:
            return func(*args, **kwargs)
        part_of = _made_of_parts(func)
        if part_of is not None:
            with self:
                return func._op_dk(part_of, *args, **kwargs)
        # arguments first: an in-place operation would change the shape that they had
        reads_indices = func._schema.name.removesuffix("_") in _READS_INDICES
        given = [self.refs(arg, with_values=reads_indices) for arg in args]
        named = self.refs(kwargs, with_values=reads_indices)
        self._add_values(func, args, kwargs, given, named)
        if func in _MOVES_MEMORY:
            self._check_real(args[0])
        if returns_values(func):
            for ref in refs_in((given, named)):
                self._read_number(ref, func)
        with self._silently():
            outputs = func(*args, **kwargs)
        if func in _MOVES_MEMORY:
            self._tensors.forget(args[0])
            return outputs
        if func in _IN_PLACE_VIEWS:
            # `y.t_()` writes nothing. It makes y a view of what y was, which other views of the
            # same memory still refer to: record `t`, with a new number for y.
            func = _IN_PLACE_VIEWS[func]
            self._tensors.forget(args[0])
        elif func is _aten.as_strided.default:  # reads the memory, also beyond its argument
            given[0] = self._tensors.root(args[0])
        written = list(written_by(func, args, kwargs))
        outputs = with_arguments(func, outputs, written)
        results, shares = self._tensors.made(
            outputs,
            (given, named),
            is_view=func.is_view,
            is_random=torch.Tag.nondeterministic_seeded in func.tags,
        )
        changed = self.refs([tensor for _, tensor in written])
        if not any(refs_in(results)) and changed:  # it writes to arguments and returns nothing
            results = changed
        also = [ref for ref in changed if ref not in list(refs_in(results))]
        self._record(func, given, named, results, also, shares and not written)
        return outputs

    @contextlib.contextmanager
    def _silently(self) -> Iterator[None]:
        before, self.silent = self.silent, True
        try:
            yield
        finally:
            self.silent = before

    def _record(
        self,
        op: Any,
        given: Sequence[Any],
        named: dict[str, Any],
        outputs: Any,
        written: Sequence[Ref] = (),
        shares: bool = False,
    ) -> None:
        where = tuple(self._stack), _source()
        scalars = tuple(self._scalars)
        call = Call(op, tuple(given), named, outputs, *where, scalars, tuple(written), shares)
        self.steps.append(call)

    def _add_values(
        self,
        op: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: list[Any],
        named: dict[str, Any],
    ) -> None:
        """Add the values of arguments that decide what is read, in a run on real tensors."""
        names = _READS_VALUES.get(op._schema.name, ()) if self.on_values else ()
        for position, declared in enumerate(op._schema.arguments):
            if declared.name not in names:
                continue
            if position < len(args) and isinstance(args[position], Tensor):
                given[position] = replace(given[position], values=args[position].cpu().clone())
            elif isinstance(kwargs.get(declared.name), Tensor):
                values = kwargs[declared.name].cpu().clone()
                named[declared.name] = replace(named[declared.name], values=values)

    def _record_view(self, root: Ref, ref: Ref) -> None:
        """Record a tensor that shares memory with another, although no operation has made it."""
        self._record(_aten.as_strided.default, (root, ref.shape, ref.strides), {}, ref)

    def _record_foreign(self, tensor: Tensor) -> None:
        if not self.on_values:
            self.steps += self.unseen(_source())
        elif tensor.untyped_storage().data_ptr() not in self._own_memory:
            with self._silently():
                self.constants.append((_checksum(tensor), _source()))

    def unseen(self, source: str) -> list[Step]:
        """Return steps that read all inputs where the recorder does not see it."""
        by = "A computation that is not visible, such as in another thread,"
        return [ValueRead(ref, by, source) for ref in self._inputs]

    def _read_number(self, ref: Ref, op: Any) -> None:
        """Note that a value becomes a number. If a function of PyTorch does it, as `torch.roll(x,
        t)`, the number can be followed: it is an argument of the operations that it calls."""
        if self._function is None or not is_followed(self._function):
            name = "item" if op is _aten._local_scalar_dense.default else op._schema.name
            self.steps.append(ValueRead(ref, f"{name}()", _source()))
        else:
            self._scalars.append(ref)

    def _check_real(self, tensor: Tensor) -> None:
        """Raise an error if a tensor of the model is to take the memory of a fake tensor."""
        if not self.on_values and not isinstance(tensor, FakeTensor):
            raise RuntimeError("This tensor cannot become fake.")  # the model is run again

    def run_function(
        self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[[], Any]
    ) -> Any:
        """Call `run`, and follow the values that the function reads from tensors."""
        if self._function is not None:
            return run()
        if function == _SET_DATA and isinstance(args[1], FakeTensor):
            self._check_real(args[0])
        extracts = function in EXTRACTS_VALUES
        if extracts:
            for tensor in tensors_in(args):
                name = f"{function.__name__}()"
                self.steps.append(ValueRead(self._tensors.ref(tensor), name, _source()))
        self._function = function
        constants = list(self.constants)
        try:
            with self._silently() if extracts else contextlib.nullcontext():
                result = run()
        finally:
            self._function = None
            scalars, self._scalars = self._scalars, []
        if has_numbers(result):
            name = f"{getattr(function, '__name__', str(function)).partition('.')[0]}()"
            self.steps += [ValueRead(ref, name, _source()) for ref in scalars]
        if function in FROM_ELEMENTS:
            self.constants = constants  # its elements are followed
            self._record_elements(result, (args + tuple(kwargs.values()))[-1 if kwargs else 0 :])
        return result

    def _record_elements(self, result: Tensor, args: tuple[Any, ...]) -> None:
        """Record what `torch.tensor([a, b])` does: concatenate its elements."""
        data = next((arg for arg in args if isinstance(arg, list | tuple)), None)
        elements = flat_elements(data)
        if not any(isinstance(element, Tensor) for element in elements):
            return
        refs = []
        for element in elements:
            refs.append(self._tensors.new((1,)))
            if isinstance(element, Tensor):
                given = (self._tensors.ref(element), [1])
                self._record(_aten.view.default, given, {}, refs[-1])
        flat = self._tensors.new((len(refs),))
        self._record(_aten.cat.default, (refs, 0), {}, flat)
        target = self._tensors.ref(result)
        shaped = self._tensors.new(target.shape)
        self._record(_aten.view.default, (flat, target.shape), {}, shaped)
        self._record(_aten.copy_.default, (target, shaped), {}, target)

    def record_as(
        self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[[], Any]
    ) -> Any:
        """Call `run`, but record it as one operation in place of its parts."""
        given, named = [self.refs(arg) for arg in args], self.refs(kwargs)
        self._add_values(op, args, kwargs, given, named)
        with self._silently():
            outputs = run()
        results, _ = self._tensors.made(outputs, (given, named), is_view=False)
        self._record(op, given, named, results)
        return outputs

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

        with watch_modules(enter, leave):
            yield


_READS_INDICES = {
    f"aten::{name}"
    for name in (
        "_embedding_bag", "_embedding_bag_forward_only", "_unsafe_index", "_unsafe_index_put",
        "embedding", "gather", "index", "index_add", "index_copy", "index_fill", "index_put",
        "index_reduce", "index_select", "masked_fill", "masked_scatter", "masked_select",
        "max_unpool2d", "max_unpool3d", "put", "scatter", "scatter_add", "scatter_reduce", "take",
        "where",
    )
}  # fmt: skip
# They read floating-point arguments as positions, or as a mask.
_READS_VALUES = {
    "aten::grid_sampler_2d": ("grid",),
    "aten::grid_sampler_3d": ("grid",),
    "torchvision::deform_conv2d": ("offset",),
    **dict.fromkeys((f"aten::{name}" for name in ATTENTION), ("attn_mask", "attn_bias")),
}

_aten = torch.ops.aten
_SET_DATA = Tensor.data.__set__  # type: ignore[attr-defined]  # of `y.data = x`
_IN_PLACE_VIEWS = {
    _aten.as_strided_.default: _aten.as_strided.default,
    _aten.squeeze_.default: _aten.squeeze.default,
    _aten.squeeze_.dim: _aten.squeeze.dim,
    _aten.squeeze_.dims: _aten.squeeze.dims,
    _aten.t_.default: _aten.t.default,
    _aten.transpose_.default: _aten.transpose.int,
    _aten.unsqueeze_.default: _aten.unsqueeze.default,
}

# They change neither values nor positions in memory, but which memory a tensor shows.
_MOVES_MEMORY = {
    _aten.resize_.default, _aten.resize_as_.default, _aten.set_.default,
    *(getattr(_aten.set_, name) for name in _aten.set_.overloads()),
}  # fmt: skip


def _made_of_parts(op: Any) -> DispatchKey | None:
    """Return the dispatch key of an operation that is made of others, which can be recorded.

    In inference mode, composite operations arrive before PyTorch decomposes them.
    """
    if _dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"):
        return DispatchKey.CompositeImplicitAutograd
    if op._schema.name.startswith("aten::_foreach_"):  # one operation for each tensor of a list
        return DispatchKey.CompositeExplicitAutograd
    return None


def _checksum(tensor: Tensor) -> str:
    """Return numbers that differ if the values differ, as a string, so that NaN equals NaN."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        return ""
    values = tensor.detach().to(torch.complex128)
    return f"{values.sum().item()} {values.abs().square().sum().item()} {tuple(tensor.shape)}"


_TORCH = str(Path(torch.__file__).parent) + os.sep  # not torchvision
_HERE = str(Path(__file__).parent) + os.sep


def _source() -> str:
    """Return the innermost `file:line` that belongs neither to PyTorch nor to this package."""
    frame = sys._getframe(2)
    inside = (_TORCH, _HERE, "<frozen")
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
