"""Exact receptive fields: the rules of all operations applied along a trace of the network."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cifar_resnet.fields.aliases import Aliases
from cifar_resnet.fields.operation import Geometry, Operation, Rule, refs_in
from cifar_resnet.fields.records import LayerField, ReceptiveFields
from cifar_resnet.fields.rules import as_rule, pointwise, rule_for
from cifar_resnet.fields.support import Support
from cifar_resnet.fields.trace import (
    Call,
    LayerCall,
    LayerExit,
    Ref,
    Trace,
    TraceError,
    ValuesNeededError,
    trace,
)

__all__ = ["receptive_field"]

Fields = tuple[Support | None, ...]  # of one tensor, one for each axis of the input


def receptive_field(
    model: nn.Module,
    input_size: Sequence[int] | None = None,
    *,
    inputs: Sequence[Any] | None = None,
    source: int = 0,
    spatial_dims: Sequence[int] | None = None,
    ignore: str | Iterable[str] = (),
    unknown: str = "raise",
    rules: Mapping[str, Any] | None = None,
) -> ReceptiveFields:
    """The receptive field of every layer of a network, exact for any network that PyTorch can run.

    The model is run once, in evaluation mode and on tensors without values, and each operation that
    PyTorch carries out is followed by its rule: functional calls, slices, branches and reused
    modules count like any other. The values of weights and images do not matter, except that a
    weight of zero counts as read. The model stays as it is. `check_receptive_field` proves the
    answer by experiment.

    The mathematics are those of Araujo, Norris and Sim, "Computing Receptive Fields of
    Convolutional Neural Networks" (Distill 2019), with unions instead of sizes, so that branches
    may be misaligned, units may differ and borders count.

    Args:
        model: Any module. Compiled ones are followed uncompiled.
        input_size: Shape of the input with the batch, such as `(1, 3, 32, 32)`.
        inputs: In place of `input_size` the arguments that the model is called with, for models
            with several inputs or ones that are not floating point.
        source: Which of `inputs` is followed.
        spatial_dims: The dimensions of the input to follow; None for all from the third on.
        ignore: Names of submodules, or patterns such as `"*.se"` and `"layer1.*.norm"`, to look
            through: gates and normalisations see the whole image, which hides what convolutions
            see. A layer left out passes on what it gets, at the same place.
        unknown: "raise" for an error at an operation without a rule; "skip" to take it for
            pointwise and list it in `.skipped`.
        rules: Rules for further operations, by name (`"mylib::blur"`): "pointwise", "global", a
            mapping with `kernel_size` (and `stride`, `padding`, `dilation`) for one that slides, or
            a function of the operation.

    Returns:
        A mapping from layer names to records; printed, it is a table.

    Raises:
        TypeError: If `model` is no module.
        ValueError: If the model fails on this input, has parameters without a shape yet, or an
            argument is not valid.
        NotImplementedError: If an operation has no rule.

    Examples:
        >>> from cifar_resnet import CustomResNet, receptive_field
        >>> fields = receptive_field(CustomResNet(), (1, 3, 32, 32))
        >>> fields["residual1"].size, fields["residual1"].stride
        ((14, 14), (Fraction(2, 1), Fraction(2, 1)))
        >>> fields["residual1"].region((0, 0))
        ((0, 7), (0, 7))
        >>> fields["residual1"].region((0, 0), clip=False)
        ((-6, 7), (-6, 7))
        >>> fields.output.size
        (88, 88)
    """
    model = uncompiled(model)
    arguments = as_inputs(model, input_size, inputs, source)
    if unknown not in ("raise", "skip"):
        raise ValueError(f"unknown must be 'raise' or 'skip', but got {unknown!r}.")
    shape = tuple(arguments[source].shape)
    dims = checked_dims(shape, spatial_dims)
    own = {name: as_rule(rule) for name, rule in (rules or {}).items()}
    patterns = [ignore] if isinstance(ignore, str) else list(ignore)
    ignored = _ignored_names(model, patterns)
    for on_values in (None, True):
        try:
            run = trace(model, arguments, on_values=on_values)
            return Analysis(run, source, dims, ignored, unknown, own).result()
        except ValuesNeededError:
            if on_values:
                raise
        except TraceError as error:
            raise ValueError(_rejection(error, shape, inputs)) from error.__cause__
    raise AssertionError("unreachable")


# -- arguments ----------------------------------------------------------------------------------


def uncompiled(model: nn.Module) -> nn.Module:
    """The module inside a compiled one; the module itself otherwise."""
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
            "Call the model once with an input, then analyse it."
        )
    assert isinstance(original, nn.Module)
    return original


def as_inputs(
    model: nn.Module,
    input_size: Sequence[int] | None,
    inputs: Sequence[Any] | None,
    source: int,
) -> tuple[Any, ...]:
    """What to call the model with."""
    if (input_size is None) == (inputs is None):
        raise ValueError(
            "Give either input_size, such as (1, 3, 32, 32), or inputs, a tuple of tensors."
        )
    if inputs is not None:
        arguments = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
        if not 0 <= source < len(arguments) or not isinstance(arguments[source], Tensor):
            raise ValueError(
                f"source must be the place of a tensor among the {len(arguments)} inputs, "
                f"but got {source}."
            )
        return arguments
    assert input_size is not None
    if isinstance(input_size, int) or not all(
        isinstance(size, int) and size > 0 for size in input_size
    ):
        raise ValueError(
            f"input_size must be the shape of the input with the batch, positive integers such as "
            f"(1, 3, 32, 32), but got {input_size!r}. Several inputs go into inputs=(a, b), with "
            "source= the place of the one to follow."
        )
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    like = {} if first is None else {"dtype": first.dtype, "device": first.device}
    return (torch.zeros(tuple(input_size), **like),)


def checked_dims(shape: Sequence[int], dims: Sequence[int] | None) -> tuple[int, ...]:
    """The dimensions to follow, none negative."""
    if dims is None:
        if len(shape) < 3:
            raise ValueError(
                f"An input of shape {tuple(shape)} has no spatial dimension: expected "
                "(N, C, length), (N, C, height, width) or (N, C, depth, height, width). For another "
                "order name the dimensions to follow with spatial_dims."
            )
        return tuple(range(2, len(shape)))
    if not dims or not all(-len(shape) <= dim < len(shape) for dim in dims):
        raise ValueError(f"spatial_dims must be dimensions of {tuple(shape)}, but got {dims!r}.")
    return tuple(dim % len(shape) for dim in dims)


def _ignored_names(model: nn.Module, patterns: Sequence[str]) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    found = []
    for pattern in patterns:
        matches = fnmatch.filter(names, pattern)
        if not matches:
            raise ValueError(
                f"ignore={pattern!r} fits no submodule. There are: {', '.join(names[:20])}"
                f"{', ...' if len(names) > 20 else ''}."
            )
        found += matches
    return found


def _rejection(error: TraceError, shape: Sequence[int], inputs: Any) -> str:
    cause = error.__cause__
    place = f" in layer {error.layer!r}" if error.layer else ""
    remedy = "Check the input's shape: it is (N, C, *spatial), such as (1, 3, 32, 32)."
    if isinstance(cause, TypeError) and "argument" in str(cause):
        remedy = (
            "A model with several inputs gets them as inputs=(a, b), with source= the place of the "
            "one to follow."
        )
    elif "ernel size" in str(cause):
        remedy = "The input is smaller than a kernel: analyse a larger one."
    what = "these inputs" if inputs is not None else f"an input of shape {tuple(shape)}"
    return f"The model fails on {what}{place}: {type(cause).__name__}: {cause} {remedy}"


# -- the run ------------------------------------------------------------------------------------


class Analysis:
    def __init__(
        self,
        run: Trace,
        source: int,
        dims: Sequence[int],
        ignored: Sequence[str],
        unknown: str,
        rules: Mapping[str, Rule],
    ) -> None:
        start = run.inputs[source]
        assert start is not None
        self.run = run
        self.start = start
        self.dims = dims
        self.ignored = set(ignored)
        self.unknown = unknown
        self.rules = rules
        self.fields = Aliases(self._apply)
        self.fields[start] = tuple(Support.of_input(start.shape, dim) for dim in dims)
        self.layers: list[LayerField] = []
        self.blocks: dict[str, LayerField] = {}
        self.outputs: dict[str, LayerField] = {}
        self.skipped: list[str] = []
        self.names: Counter[str] = Counter()
        self.geometry: dict[LayerCall, Geometry] = {}  # the first window in each leaf

    def result(self) -> ReceptiveFields:
        last_use = self._last_uses()
        for number, step in enumerate(self.run.steps):
            if isinstance(step, Call):
                self._call(step)
            else:
                self._leave(step)
            for index in last_use.get(number, ()):
                self.fields.forget(index)
        if not self.outputs:
            raise ValueError(
                "The model's output does not depend on the values of its input, so there is no "
                "receptive field."
            )
        return ReceptiveFields(
            self.layers,
            self.blocks,
            self.outputs,
            self.start.shape,
            tuple(self.start.shape[dim] for dim in self.dims),
            list(dict.fromkeys(self.skipped)),
            sorted(self.ignored),
        )

    def _last_uses(self) -> dict[int, list[int]]:
        last: dict[int, int] = {}
        for number, step in enumerate(self.run.steps):
            given = (step.args, step.kwargs) if isinstance(step, Call) else step.layer.inputs
            for ref in refs_in((given, step.outputs)):
                last[ref.index] = number
        for step in reversed(self.run.steps):  # a base lives as long as its views, and they as it
            if isinstance(step, Call) and step.is_view:
                views = [ref.index for ref in refs_in(step.outputs)]
                longest = max(last[index] for index in (step.args[0].index, *views))
                last.update(dict.fromkeys((step.args[0].index, *views), longest))
        uses: dict[int, list[int]] = {}
        for index, number in last.items():
            uses.setdefault(number, []).append(index)
        return uses

    def _call(self, call: Call) -> None:
        name = _FUNCTION_NAMES.get(call.name, call.name)
        layer = call.layers[-1]
        in_leaf = layer.inner == 0 and layer.name
        full = name if not layer.name else f"{layer.name}.{name}"
        if in_leaf:
            full = _numbered(layer.name, layer.number)
        left_out = next((layer for layer in call.layers if layer.name in self.ignored), None)
        if left_out is not None:
            for ref in refs_in(call.outputs):
                self.fields[ref] = self._passed_through(left_out, ref)
            return
        geometry = self._evaluate(call, full)
        if in_leaf:
            if geometry is not None:
                self.geometry.setdefault(layer, geometry)
        elif call.name not in _UNRECORDED:
            self._record(self.layers, full, name, call.outputs, geometry, call.source)

    def _evaluate(self, call: Call, where: str) -> Geometry | None:
        given = list(refs_in((call.args, call.kwargs)))
        if all(self.fields[ref] is None for ref in given):
            results: list[Fields | None] = [None for _ in refs_in(call.outputs)]
            geometry = None
        else:
            results, geometry = self._apply(call, where)
        for ref, result in zip(refs_in(call.outputs), results, strict=True):
            if call.is_view:
                self.fields.add_view(ref, call, result)
            else:
                self.fields.write(ref, result)
        return geometry

    def _apply(self, call: Call, where: str = "") -> tuple[list[Fields | None], Geometry | None]:
        """What each output of an operation depends on."""
        rule = rule_for(call.op, call.name, self.rules) or self._without_rule(call)
        outputs = list(refs_in(call.outputs))
        by_axis: list[list[Support | None]] = []
        geometry = None
        for axis in range(len(self.dims)):

            def support_of(ref: Ref, axis: int = axis) -> Support | None:
                fields = self.fields[ref]
                return None if fields is None else fields[axis]

            operation = Operation(call, support_of, where)
            result = rule(operation)
            geometry = operation.geometry
            each = list(result) if isinstance(result, Sequence) else [result] * len(outputs)
            by_axis.append(
                [_fitted(support, ref) for support, ref in zip(each, outputs, strict=True)]
            )
        results: list[Fields | None] = []
        for fields in zip(*by_axis, strict=True):
            results.append(None if fields[0] is None else fields)
        return results, geometry

    def _without_rule(self, call: Call) -> Rule:
        layer = call.layers[-1].name or type(call.layers[-1].module).__name__
        if self.unknown == "skip":
            shapes = [ref.shape for ref in refs_in(call.args) if self.fields[ref] is not None]
            out = next(refs_in(call.outputs)).shape
            if any(shape == out for shape in shapes):
                self.skipped.append(f"{call.op} in {layer} ({call.source})")
                return _same_shape
        text = (
            f"There is no receptive-field rule for the operation {call.op} in layer {layer!r}, "
            f"called from {call.source}. Give one: rules={{{call.op._schema.name!r}: rule}}, where "
            "rule is 'pointwise', 'global', a mapping with kernel_size, stride, padding and "
            "dilation, or a function"
        )
        if self.unknown == "skip":
            raise NotImplementedError(
                f"{text}. It cannot be skipped: its result has another shape than its arguments."
            )
        raise NotImplementedError(f"{text}; or pass unknown='skip' to take it for pointwise.")

    # -- layers ---------------------------------------------------------------------------------

    def _passed_through(self, layer: LayerCall, ref: Ref) -> Fields | None:
        """Of a tensor inside a layer that is left out: what the layer was given, if it has its
        shape; otherwise nothing, as of a gate's inner values."""
        for given in refs_in(layer.inputs):
            if given.shape == ref.shape and self.fields[given] is not None:
                return self.fields[given]
        return None

    def _leave(self, step: LayerExit) -> None:
        layer = step.layer
        if layer.name in self.ignored:
            self._check_ignored(step)
        if not layer.name:
            self._record_outputs(step.outputs)
            return
        name = _numbered(layer.name, layer.number)
        kind = type(layer.module).__name__
        if layer.inner == 0:
            self._record(self.layers, name, kind, step.outputs, self.geometry.get(layer), "")
        else:
            blocks: list[LayerField] = []
            self._record(blocks, name, kind, step.outputs, None, "", numbered=True)
            self.blocks.update((block.name, block) for block in blocks)

    def _check_ignored(self, step: LayerExit) -> None:
        given = [ref.shape for ref in refs_in(step.layer.inputs)]
        for ref in refs_in(step.outputs):
            if self.fields[ref] is None and not any(_broadcasts(ref.shape, s) for s in given):
                raise ValueError(
                    f"Layer {step.layer.name!r} cannot be left out: it makes {ref.shape} of "
                    f"{given}, so there is no telling which place of its output belongs to which "
                    "of its input."
                )

    def _record_outputs(self, outputs: Any) -> None:
        if isinstance(outputs, dict):
            named = list(outputs.items())
        elif isinstance(outputs, list):
            named = list(enumerate(outputs))
        else:
            named = [("output", outputs)]
        for key, value in named:
            for ref in refs_in(value):
                found: list[LayerField] = []
                self._record(found, str(key), "output", ref, None, "", numbered=True)
                for record in found:
                    self.outputs.setdefault(str(key), record)

    def _record(
        self,
        records: list[LayerField],
        name: str,
        kind: str,
        outputs: Any,
        geometry: Geometry | None,
        source: str,
        *,
        numbered: bool = False,
    ) -> None:
        """A record of the first output that depends on the input, if there is one."""
        for ref in refs_in(outputs):
            fields = self.fields[ref]
            if fields is None:
                continue
            supports = [support for support in fields if support is not None]
            units = sorted({dim for support in supports for dim in support.unit_dims})
            if not numbered and "#" not in name:
                self.names[name] += 1
                name = _numbered(name, self.names[name])
            reduced = tuple(support.only(units) for support in supports)
            lengths = tuple(self.start.shape[dim] for dim in self.dims)
            records.append(
                LayerField(name, kind, ref.shape, geometry, source, tuple(units), lengths, reduced)
            )
            return


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}#{number}"


def _same_shape(op: Operation) -> Support:
    return pointwise(op)


def _fitted(support: Support | None, ref: Ref) -> Support | None:
    """A by-product of another shape (a normalisation's mean) depends on all of it."""
    if support is None or support.shape == ref.shape:
        return support
    whole = support.reduce(range(len(support.shape)), keepdim=False)
    return whole.expand(ref.shape)


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    return len(shape) <= len(to) and all(
        size in (1, target) for size, target in zip(reversed(shape), reversed(to), strict=False)
    )


# What a reader calls an operation.
_FUNCTION_NAMES = {
    "convolution": "conv",
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
    "_adaptive_avg_pool2d": "adaptive_avg_pool2d",
    "_adaptive_avg_pool3d": "adaptive_avg_pool3d",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "addmm": "linear",
    "mm": "linear",
    "bmm": "matmul",
    "baddbmm": "matmul",
    "constant_pad_nd": "pad",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "native_batch_norm": "batch_norm",
}

# Operations that change neither values nor fields.
_UNRECORDED = {
    "view", "_unsafe_view", "_reshape_alias", "reshape", "permute", "transpose", "t", "squeeze",
    "unsqueeze", "expand", "alias", "detach", "clone", "_to_copy", "lift_fresh", "copy",
}  # fmt: skip
