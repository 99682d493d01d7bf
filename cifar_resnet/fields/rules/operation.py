"""One operation as a rule sees it: its arguments by name, and what they depend on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cifar_resnet.fields.positions.support import Support
from cifar_resnet.fields.steps import Call, Ref


@dataclass(frozen=True)
class Geometry:
    """An operation's own window, one number for each spatial dimension."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


@dataclass
class Operation:
    """Attributes:
    call: The operation.
    support_of: What a tensor depends on; None for one that does not depend on the input.
    where: Name under which a merge of branches is reported.
    geometry: A rule for a window leaves it here.
    """

    call: Call
    support_of: Callable[[Ref], Support | None]
    where: str
    geometry: Geometry | None = None

    def __getitem__(self, argument: str) -> Any:
        return self.call.argument(argument)

    def support(self, argument: str) -> Support | None:
        ref = self[argument]
        return self.support_of(ref) if isinstance(ref, Ref) else None

    @property
    def first(self) -> tuple[Ref, Support]:
        """The first argument, which depends on the input."""
        ref = self.call.args[0]
        support = self.support_of(ref)
        if support is None:  # its dependence is on another argument, a weight say
            support = Support.of_nothing_like(self.operands()[0], ref.shape)
        return ref, support

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result, or of the first one."""
        ref = self.call.outputs
        while not isinstance(ref, Ref):
            ref = ref[0]
        return ref.shape

    def operands(self) -> list[Support]:
        """All arguments that depend on the input."""
        supports = map(self.support_of, self.call.operands)
        return [support for support in supports if support is not None]


Result = Support | None | Sequence[Support | None]
Rule = Callable[[Operation], Result]
