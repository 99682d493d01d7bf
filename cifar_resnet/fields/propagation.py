"""Apply the rules of all operations along a trace, and make a record of each layer call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cifar_resnet.fields.aliases import AliasedSets, AxisSets
from cifar_resnet.fields.budget import MemoryBudget
from cifar_resnet.fields.masking import MaskedElements
from cifar_resnet.fields.names import FUNCTION_NAMES, UNRECORDED
from cifar_resnet.fields.positions.merging import union
from cifar_resnet.fields.positions.packing import SetsTooLargeError
from cifar_resnet.fields.positions.sets import PositionSets
from cifar_resnet.fields.records import LayerField
from cifar_resnet.fields.refusals import no_rule, not_followed, too_large, values_read
from cifar_resnet.fields.result import ReceptiveFields
from cifar_resnet.fields.rules.operation import Geometry, NotFollowedError, Operation, Rule
from cifar_resnet.fields.rules.registry import new_values, pointwise, rule_for
from cifar_resnet.fields.steps import (
    Call,
    LayerCall,
    LayerExit,
    Ref,
    Trace,
    ValueRead,
    broadcasts,
    last_uses,
    refs_in,
)


class Propagation:
    """One pass over the steps of a trace, in the order in which the network made them.

    Args:
        trace: The run of the network.
        source: Index of the input that is followed.
        dims: The dimensions of that input to follow. Each is an axis.
        ignored: Names of the layers to look through.
        unknown: "raise" or "skip", for operations without a rule and values that leave the tensors.
        rules: The caller's own rules by operation.
    """

    def __init__(
        self,
        trace: Trace,
        source: int,
        dims: Sequence[int],
        ignored: Sequence[str],
        unknown: str,
        rules: Mapping[str, Rule],
    ) -> None:
        start = trace.inputs[source]
        assert start is not None
        self.trace = trace
        self.input_shape = start.shape
        self.dims = dims
        self.input_lengths = tuple(start.shape[dim] for dim in dims)
        self.ignored = set(ignored)
        self.unknown = unknown
        self.rules = rules
        self.sets = AliasedSets(self._apply)
        self.sets[start] = tuple(PositionSets.of_input(start.shape, dim) for dim in dims)
        self.masked = MaskedElements(self.sets)
        self.budget = MemoryBudget(self._all_sets)
        self.recorded: list[PositionSets] = []
        self.layers: list[LayerField] = []
        self.blocks: dict[str, LayerField] = {}
        self.outputs: dict[str, LayerField] = {}
        self.skipped: list[str] = []
        self.pools: dict[int, Call] = {}  # max poolings by their indices
        self.modules = {step.layer.name for step in trace.steps if isinstance(step, LayerExit)}
        self.calls: Counter[str] = Counter()  # of each function
        self.geometry: dict[LayerCall, Geometry] = {}  # the first window in each leaf

    def run(self) -> ReceptiveFields:
        forgotten = last_uses(self.trace.steps)
        for number, step in enumerate(self.trace.steps):
            if isinstance(step, Call):
                self._call(step)
            elif isinstance(step, ValueRead):
                self._read_values(step)
            else:
                self._leave(step)
            for index in forgotten.get(number, ()):
                self.sets.forget(index)
                self.masked.forget(index)
        if not any(refs_in(self.trace.outputs)):
            raise ValueError(
                "The model returns no tensor. Expected a tensor, or a list, tuple, dictionary or "
                "dataclass of tensors. Wrap the model so that it returns one of these."
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
            self.input_shape,
            self.input_lengths,
            list(dict.fromkeys(self.skipped)),
            sorted(self.ignored),
        )

    # -- operations -----------------------------------------------------------------------------

    def _call(self, call: Call) -> None:
        kind = FUNCTION_NAMES.get(call.name, call.name)
        layer = call.layers[-1]  # the innermost
        in_leaf = layer.inner == 0 and layer.name
        if in_leaf:
            name = _numbered(layer.name, layer.number)
        else:
            name = f"{layer.name}.{kind}" if layer.name else kind
        ignored = next((layer for layer in call.layers if layer.name in self.ignored), None)
        if ignored is not None:
            for ref in refs_in(call.outputs):
                self.sets[ref] = self._looked_through(ignored, ref)
            return
        try:
            geometry = self._evaluate(call, name)
            known = [sets for sets in map(self.sets.__getitem__, refs_in(call.outputs)) if sets]
            self.budget.add(sets for axes in known for sets in axes)
        except SetsTooLargeError as error:
            raise MemoryError(too_large(call, error.number)) from error
        except NotFollowedError as error:
            raise NotImplementedError(not_followed(call, str(error))) from error
        # The operations of a leaf are parts of its record, which is made when it returns. One that
        # is called between layers, such as `F.relu(self.conv(x))`, has its own record.
        if in_leaf:
            if geometry is not None:
                self.geometry.setdefault(layer, geometry)
        elif call.name not in UNRECORDED:
            self._record(self.layers, name, kind, call.outputs, geometry, call.source)

    def _evaluate(self, call: Call, where: str) -> Geometry | None:
        """Store what the outputs of an operation depend on, and return its window, if any."""
        if not any(refs_in(call.outputs)):  # it asks for a property and makes no tensor
            return None
        if all(self.sets[ref] is None for ref in (*call.operands, *call.scalars)):
            results: list[AxisSets | None] = [None for _ in refs_in(call.outputs)]
            geometry = None
        else:
            results, geometry = self._apply(call, where)
            if self.masked.watches(call):
                rule = rule_for(call.op, call.name, self.rules)
                results = self.masked.follow(call, results, is_pointwise=rule is pointwise)
        for ref, result in zip(refs_in(call.outputs), results, strict=True):
            if call.is_view:
                self.sets.add_view(ref, call, result)
            else:
                self.sets.write(ref, result)
        if call.name.startswith("max_pool"):
            self.pools.update({ref.index: call for ref in list(refs_in(call.outputs))[1:]})
        for ref in call.written:
            self.sets.write(ref, self._everything(call, ref.shape))
        return geometry

    def _apply(self, call: Call, where: str = "") -> tuple[list[AxisSets | None], Geometry | None]:
        """Apply the rule of an operation once for each axis.

        Return what each output depends on, and the window of the operation, if any.
        """
        rule = rule_for(call.op, call.name, self.rules) or self._without_rule(call)
        outputs = list(refs_in(call.outputs))
        by_axis: list[list[PositionSets | None]] = []
        geometry = None
        only_numbers = all(self.sets[ref] is None for ref in call.operands)
        is_empty = all(0 in ref.shape for ref in outputs)
        keeps_dims = rule is pointwise or call.name in ("slice", "narrow")
        if only_numbers or (is_empty and not keeps_dims):
            return [self._everything(call, ref.shape) for ref in outputs], None
        for axis in range(len(self.dims)):

            def sets_of(ref: Ref, axis: int = axis) -> PositionSets | None:
                sets = self.sets[ref]
                return None if sets is None else sets[axis]

            operation = Operation(call, sets_of, where, pools=self.pools)
            result = rule(operation)
            geometry = operation.geometry
            each = list(result) if isinstance(result, Sequence) else [result] * len(outputs)
            by_axis.append([_fitted(sets, ref) for sets, ref in zip(each, outputs, strict=True)])
        results: list[AxisSets | None] = []
        for by_output in zip(*by_axis, strict=True):
            known = tuple(sets for sets in by_output if sets is not None)
            results.append(known or None)
        if any(self.sets[ref] is not None for ref in call.scalars):
            results = [
                self._with_scalars(call, rule, result, ref.shape)
                for result, ref in zip(results, outputs, strict=True)
            ]
        return results, geometry

    def _with_scalars(
        self, call: Call, rule: Rule, result: AxisSets | None, shape: tuple[int, ...]
    ) -> AxisSets | None:
        """Add what the numbers among the arguments depend on.

        A number may be a position, as in `torch.roll(x, t)`. If the operation does more than to
        compute each element from those at the same place, it may then read any element.
        """
        if result is None or rule not in (pointwise, new_values):
            return self._everything(call, shape)
        numbers = self.sets.whole(call.scalars, shape)
        assert numbers is not None
        return tuple(
            union(shape, pair, compare=False) for pair in zip(result, numbers, strict=True)
        )

    def _everything(self, call: Call, shape: tuple[int, ...]) -> AxisSets | None:
        """Let each element depend on everything that an operation reads."""
        return self.sets.whole((*call.operands, *call.scalars), shape)

    def _without_rule(self, call: Call) -> Rule:
        if self.unknown == "skip":
            shapes = [ref.shape for ref in refs_in(call.args) if self.sets[ref] is not None]
            output = next(refs_in(call.outputs)).shape
            if any(shape == output for shape in shapes):
                layer = call.layers[-1].name or type(call.layers[-1].module).__name__
                self.skipped.append(f"{call.op} in {layer} ({call.source})")
                return pointwise
        message = no_rule(call)
        if self.unknown == "skip":
            raise NotImplementedError(
                f"{message}. It cannot be skipped: its result has another shape than its arguments."
            )
        raise NotImplementedError(f"{message}; or pass unknown='skip' to treat it as pointwise.")

    def _read_values(self, step: ValueRead) -> None:
        if self.sets[step.tensor] is None:
            return
        message = values_read(step)
        if self.unknown != "skip":
            raise NotImplementedError(
                f"{message}, so what depends on them cannot be followed. Keep them in a tensor, or "
                "pass unknown='skip' to ignore paths through extracted values."
            )
        self.skipped.append(message)

    def _all_sets(self) -> Iterator[PositionSets]:
        for sets in self.sets.values():
            yield from sets
        yield from self.recorded

    # -- layers ---------------------------------------------------------------------------------

    def _looked_through(self, layer: LayerCall, ref: Ref) -> AxisSets | None:
        """Return the sets of a tensor inside an ignored layer: those of the layer's input that has
        the same shape. A tensor of another shape, such as the weights of a gate, has none."""
        for given in refs_in(layer.inputs):
            if given.shape == ref.shape and self.sets[given] is not None:
                return self.sets[given]
        return None

    def _leave(self, step: LayerExit) -> None:
        layer = step.layer
        if layer.name in self.ignored:
            self._check_ignored(step)
        if not layer.name:  # the network itself
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
            if self.sets[ref] is None and not any(broadcasts(ref.shape, s) for s in given):
                raise ValueError(
                    f"Layer {step.layer.name!r} cannot be ignored: it turns the shapes {given} "
                    f"into {ref.shape}, so it is unknown which units of its output belong to "
                    "which of its input."
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
                records: list[LayerField] = []
                self._record(records, str(key), "output", ref, None)
                for record in records:
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
        """Append a record of the first output that depends on the input, if there is one.

        If `source` is given, the record is that of a function. Calls of functions are numbered
        here, those of modules in the trace.
        """
        for ref in refs_in(outputs):
            sets = self.sets[ref]
            if sets is None:
                continue
            units = sorted({dim for axis in sets for dim in axis.unit_dims})
            if source:
                if name in self.modules:
                    name = f"{name}()"
                self.calls[name] += 1
                name = _numbered(name, self.calls[name])
            reduced = tuple(axis.reduce_to(units) for axis in sets)
            self.recorded += reduced
            axes = (tuple(units), self.input_lengths, reduced)
            records.append(LayerField(name, kind, ref.shape, geometry, source, *axes))
            return


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}#{number}"


def _fitted(sets: PositionSets | None, ref: Ref) -> PositionSets | None:
    """Let a side output of another shape, such as a normalization's mean, depend on everything."""
    if sets is None or sets.shape == ref.shape:
        return sets
    return sets.reduce(range(len(sets.shape)), keepdim=False).expand(ref.shape)
