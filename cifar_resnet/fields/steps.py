"""The steps of a trace: operations, returns of layers, and values extracted from tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Ref:
    """A tensor of a run, without its values.

    Attributes:
        index: Number of the tensor. A tensor that is written to in place keeps it; a view has its
            own, although it shares the memory.
        shape: Shape of the tensor.
        strides: Strides of the tensor.
        address: Bytes from the start of the memory that it shares with others to its first element.
        itemsize: Bytes of an element.
        is_mask: Whether the elements are bool.
        is_random: Whether the values come from a random number generator.
        values: A copy of the values of an index tensor, in a run on real tensors.
    """

    index: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    address: int = 0
    itemsize: int = 1
    is_mask: bool = False
    is_random: bool = False
    values: Tensor | None = field(default=None, compare=False, repr=False)


def refs_in(values: Any) -> Iterator[Ref]:
    """Yield every `Ref` in a structure of lists, tuples and dictionaries."""
    if isinstance(values, Ref):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from refs_in(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from refs_in(value)


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Whether a tensor of one shape can be expanded to another."""
    return len(shape) <= len(to) and all(
        size in (1, target) for size, target in zip(reversed(shape), reversed(to), strict=False)
    )


@dataclass(eq=False)
class LayerCall:
    """One call of a submodule.

    Attributes:
        name: Name of the submodule; "" for the model itself.
        module: The submodule.
        number: 1 for the first call of this submodule, 2 for the second, ...
        inner: Number of calls of other submodules inside. A call without any is a leaf.
        inputs: Its arguments, with a `Ref` in place of each tensor.
    """

    name: str
    module: nn.Module
    number: int
    inner: int = 0
    inputs: Any = None


@dataclass(frozen=True, eq=False)
class Call:
    """One operation that PyTorch carried out.

    Attributes:
        op: The operation, such as `aten.convolution.default`.
        args: Its arguments, with a `Ref` in place of each tensor.
        kwargs: The same for keyword arguments.
        outputs: The same for its outputs.
        layers: The layer calls in which it happened, from the model itself to the innermost.
        source: File and line of the caller's code.
        scalars: Tensors whose value was passed as a number, such as t in `torch.roll(x, t)`.
        written: Tensors that it writes to and that are not among its outputs.
        shares_memory: Whether the output shares memory with the first argument.
    """

    op: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any
    layers: tuple[LayerCall, ...]
    source: str
    scalars: tuple[Ref, ...] = ()
    written: tuple[Ref, ...] = ()
    shares_memory: bool = False

    @property
    def name(self) -> str:
        """`add` for `aten.add_.Tensor`; `mylib::roll` for an operation of another library."""
        namespace, name = self.op._schema.name.split("::")
        return name.removesuffix("_") if namespace == "aten" else f"{namespace}::{name}"

    def argument(self, name: str, default: Any = None) -> Any:
        """Return an argument by its name in the operation's schema."""
        for position, declared in enumerate(self.op._schema.arguments):
            if declared.name == name:
                if position < len(self.args) and not declared.kwarg_only:
                    return self.args[position]
                return self.kwargs.get(name, declared.default_value)
        return default

    @property
    def operands(self) -> list[Ref]:
        """The tensors that it reads. One passed as out= is only written to."""
        written = {
            declared.name
            for declared in self.op._schema.arguments
            if declared.kwarg_only and declared.alias_info and declared.alias_info.is_write
        }
        named = {name: value for name, value in self.kwargs.items() if name not in written}
        return list(refs_in((self.args, named)))

    @property
    def is_in_place(self) -> bool:
        """Whether the first argument is written to."""
        return self.op._schema.name.endswith("_")

    @property
    def is_view(self) -> bool:
        """Whether the outputs share memory with the first argument, which is not written to."""
        shares = bool(self.op.is_view) or self.shares_memory
        return shares and bool(self.args) and isinstance(self.args[0], Ref)

    def declares(self, name: str) -> bool:
        """Whether the operation has an argument of this name."""
        return any(declared.name == name for declared in self.op._schema.arguments)


@dataclass(frozen=True, eq=False)
class LayerExit:
    """The return of a layer call."""

    layer: LayerCall
    outputs: Any


@dataclass(frozen=True, eq=False)
class ValueRead:
    """An extraction of values from a tensor by Python code, which cannot be followed further.

    Attributes:
        tensor: The tensor.
        by: Name of the method, such as `item` or `numpy`.
        source: File and line of the caller's code.
    """

    tensor: Ref
    by: str
    source: str


Step = Call | LayerExit | ValueRead


def refs_of(step: Step) -> Iterator[Ref]:
    """Yield the tensors that a step uses."""
    if isinstance(step, Call):
        return refs_in((step.args, step.kwargs, step.outputs, step.scalars, step.written))
    if isinstance(step, ValueRead):
        return refs_in(step.tensor)
    return refs_in((step.layer.inputs, step.outputs))


def last_uses(steps: Sequence[Step]) -> dict[int, list[int]]:
    """Return the tensors that are used for the last time by each step, so that their sets can
    be dropped: those of a large network would not fit into memory together."""
    last: dict[int, int] = {}
    for number, step in enumerate(steps):
        for ref in refs_of(step):
            last[ref.index] = number
    # A base lives as long as its views and they as long as it, because a write to one changes
    # the others. Going backwards, a view of a view has extended its base before it is reached.
    for step in reversed(steps):
        if isinstance(step, Call) and step.is_view:
            scalars = [ref.index for ref in step.scalars]
            together = [*(ref.index for ref in refs_in((step.args[0], step.outputs))), *scalars]
            last.update(dict.fromkeys(together, max(last[index] for index in together)))
    uses: dict[int, list[int]] = {}
    for index, number in last.items():
        uses.setdefault(number, []).append(index)
    return uses


@dataclass(frozen=True, eq=False)
class Trace:
    """One run of a network.

    Attributes:
        steps: What happened, in order.
        inputs: A `Ref` for each input that is a tensor, else None.
        outputs: What the network returned, with a `Ref` in place of each tensor.
        on_values: Whether the run was made on real tensors rather than fake ones.
    """

    steps: list[Step]
    inputs: tuple[Ref | None, ...]
    outputs: Any
    on_values: bool
