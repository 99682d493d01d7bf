"""The rules of all operations applied along a trace, and a record made of each layer call.

It knows layers and names; it must not know how a rule works or how the trace was made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cifar_resnet.fields.aliases import Aliases
from cifar_resnet.fields.positions.support import Support
from cifar_resnet.fields.records import LayerField
from cifar_resnet.fields.result import ReceptiveFields
from cifar_resnet.fields.rules.operation import Geometry, Operation, Rule
from cifar_resnet.fields.rules.registry import pointwise, rule_for
from cifar_resnet.fields.steps import (
    Call,
    LayerCall,
    LayerExit,
    Reading,
    Ref,
    Step,
    Trace,
    refs_in,
)

Fields = tuple[Support | None, ...]  # of one tensor, one for each axis of the input


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
        self.modules = {layer.name for layer in _layers_of(run)}
        self.names: Counter[str] = Counter()
        self.geometry: dict[LayerCall, Geometry] = {}  # the first window in each leaf

    def result(self) -> ReceptiveFields:
        last_use = self._last_uses()
        for number, step in enumerate(self.run.steps):
            if isinstance(step, Call):
                self._call(step)
            elif isinstance(step, Reading):
                self._read(step)
            else:
                self._leave(step)
            for index in last_use.get(number, ()):
                self.fields.forget(index)
        if not any(refs_in(self.run.outputs)):
            raise ValueError(
                "There is no tensor in what the model returns. Receptive fields look into tensors, "
                "lists, tuples, dictionaries and dataclasses; wrap the model so that it returns "
                "one of these."
            )
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
            for ref in _refs_of(step):
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
        if not any(refs_in(call.outputs)):  # it asks for a value, and makes no tensor
            return None
        if all(self.fields[ref] is None for ref in call.operands):
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

    def _read(self, step: Reading) -> None:
        if self.fields[step.tensor] is None:
            return
        text = f"{step.by}() takes values out of a tensor that depends on the input ({step.source})"
        if self.unknown != "skip":
            raise NotImplementedError(
                f"{text}, so there is no telling what they do afterwards. Keep them a tensor, or "
                "pass unknown='skip' to leave this way out."
            )
        self.skipped.append(text)

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
            self._record(self.layers, name, kind, step.outputs, self.geometry.get(layer))
        else:
            blocks: list[LayerField] = []
            self._record(blocks, name, kind, step.outputs, None)
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
                self._record(found, str(key), "output", ref, None)
                for record in found:
                    self.outputs.setdefault(str(key), record)

    def _record(
        self,
        records: list[LayerField],
        name: str,
        kind: str,
        outputs: Any,
        geometry: Geometry | None,
        source: str = "",
    ) -> None:
        """A record of the first output that depends on the input, if there is one. With a source
        it is a function's, whose calls are numbered here, apart from those of modules."""
        for ref in refs_in(outputs):
            fields = self.fields[ref]
            if fields is None:
                continue
            supports = [support for support in fields if support is not None]
            units = sorted({dim for support in supports for dim in support.unit_dims})
            if source:
                if name in self.modules:
                    name = f"{name}()"
                self.names[name] += 1
                name = _numbered(name, self.names[name])
            reduced = tuple(support.only(units) for support in supports)
            lengths = tuple(self.start.shape[dim] for dim in self.dims)
            records.append(
                LayerField(name, kind, ref.shape, geometry, source, tuple(units), lengths, reduced)
            )
            return


def _layers_of(run: Trace) -> Iterator[LayerCall]:
    return (step.layer for step in run.steps if isinstance(step, LayerExit))


def _refs_of(step: Step) -> Iterator[Ref]:
    if isinstance(step, Call):
        return refs_in((step.args, step.kwargs, step.outputs))
    if isinstance(step, Reading):
        return refs_in(step.tensor)
    return refs_in((step.layer.inputs, step.outputs))


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}#{number}"


def _same_shape(op: Operation) -> Support:
    return pointwise(op)


def _fitted(support: Support | None, ref: Ref) -> Support | None:
    """A by-product of another shape (a normalization's mean) depends on all of it."""
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
    "view", "_unsafe_view", "_reshape_alias", "permute", "transpose", "t", "squeeze", "unsqueeze",
    "expand", "alias", "detach", "clone", "_to_copy", "lift_fresh", "copy",
}  # fmt: skip
