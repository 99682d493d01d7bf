"""What a run of a network consists of: operations, exits of layers, values taken out.

It knows tensors by number, shape and strides; it must not know how they were recorded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Ref:
    """A tensor of the run: which one, its shape and strides, and of an index tensor its values."""

    index: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] = ()
    values: Tensor | None = field(default=None, compare=False, repr=False)


def refs_in(values: Any) -> Iterator[Ref]:
    """Every `Ref` in a structure of lists, tuples and dictionaries."""
    if isinstance(values, Ref):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from refs_in(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from refs_in(value)


@dataclass(eq=False)
class LayerCall:
    """One call of a submodule. `inner` counts the calls of modules inside; 0 makes it a leaf."""

    name: str
    module: nn.Module
    number: int  # 1 for the first call of this module
    inner: int = 0
    inputs: Any = None


@dataclass(frozen=True, eq=False)
class Call:
    """One operation: `args` and `outputs` hold a `Ref` wherever there was a tensor."""

    op: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any
    layers: tuple[LayerCall, ...]  # outermost first; the model itself is the first
    source: str

    @property
    def name(self) -> str:
        """`add` for `aten.add_.Tensor`, `mylib::roll` for an operation from elsewhere."""
        namespace, name = self.op._schema.name.split("::")
        return name.removesuffix("_") if namespace == "aten" else f"{namespace}::{name}"

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the operation's schema."""
        for position, declared in enumerate(self.op._schema.arguments):
            if declared.name == name:
                if position < len(self.args) and not declared.kwarg_only:
                    return self.args[position]
                return self.kwargs.get(name, declared.default_value)
        return default

    @property
    def operands(self) -> list[Ref]:
        """The tensors that it reads; one given as out= is only written to."""
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
        """Whether the outputs share memory with the first argument, without writing to it."""
        return bool(self.op.is_view) and bool(self.args) and isinstance(self.args[0], Ref)

    def declares(self, name: str) -> bool:
        """Whether the operation has an argument of this name."""
        return any(declared.name == name for declared in self.op._schema.arguments)


@dataclass(frozen=True, eq=False)
class LayerExit:
    """A submodule's call has returned `outputs`."""

    layer: LayerCall
    outputs: Any


@dataclass(frozen=True, eq=False)
class Reading:
    """Python has taken values out of a tensor, by `item` or `numpy`, say: their way ends here."""

    tensor: Ref
    by: str
    source: str


Step = Call | LayerExit | Reading


@dataclass(frozen=True, eq=False)
class Trace:
    steps: list[Step]
    inputs: tuple[Ref | None, ...]
    outputs: Any
    on_values: bool  # made on real tensors
