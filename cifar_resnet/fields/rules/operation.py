"""One operation as a rule sees it: its arguments by name, and what they depend on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cifar_resnet.fields.positions.merging import union
from cifar_resnet.fields.positions.sets import PositionSets
from cifar_resnet.fields.steps import Call, Ref


class NotFollowedError(NotImplementedError):
    """A rule does not know what an operation reads. The message is the reason, as a sentence."""


class ValuesNeededError(Exception):
    """A rule depends on the values of an index tensor, which a run on fake tensors does not have.

    The model is then run again on real tensors.
    """


def values_of(ref: Ref) -> Tensor:
    """Return the values of an argument. They are known in a run on real tensors.

    Raises:
        NotFollowedError: If they are random.
    """
    if ref.is_random:
        raise NotFollowedError(
            "The values of an index are random, so it selects other elements in each run. Store "
            "one choice in a buffer of the model."
        )
    if ref.values is None:
        raise ValuesNeededError
    return ref.values


@dataclass(frozen=True)
class Geometry:
    """The window of an operation that slides, with one number for each spatial dimension."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]


@dataclass
class Operation:
    """An operation along one axis of the input. `op["dim"]` is its argument named dim.

    Attributes:
        call: The operation as it was recorded.
        sets_of: Returns what a tensor depends on, or None if it does not depend on the input.
        where: Name under which a merge of misaligned branches is reported.
        geometry: Set by the rules of operations that slide.
        pools: The max poolings before, by the number of the indices that they returned.
    """

    call: Call
    sets_of: Callable[[Ref], PositionSets | None]
    where: str
    geometry: Geometry | None = None
    pools: Mapping[int, Call] = field(default_factory=dict)

    def made_by(self, indices: Ref) -> Operation | None:
        """Return the max pooling that returned these indices. None if it is unknown."""
        pool = self.pools.get(indices.index)
        return None if pool is None else Operation(pool, self.sets_of, self.where)

    def __getitem__(self, argument: str) -> Any:
        return self.call.argument(argument)

    def sets(self, argument: str) -> PositionSets | None:
        """Return what an argument depends on. None if it is not a tensor that depends on the
        input."""
        ref = self[argument]
        return self.sets_of(ref) if isinstance(ref, Ref) else None

    @property
    def first(self) -> tuple[Ref, PositionSets]:
        """The first argument, and what it depends on."""
        ref = self.call.args[0]
        sets = self.sets_of(ref)
        if sets is None:  # only another argument depends on the input, such as a weight
            sets = PositionSets.empty_like(self.operands()[0], ref.shape)
        return ref, sets

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result, or of the first result."""
        ref = self.call.outputs
        while not isinstance(ref, Ref):
            ref = ref[0]
        return ref.shape

    def operands(self) -> list[PositionSets]:
        """Return what each argument depends on, without those that do not depend on the input."""
        operands = map(self.sets_of, self.call.operands)
        return [sets for sets in operands if sets is not None]


Result = PositionSets | None | Sequence[PositionSets | None]
Rule = Callable[[Operation], Result]


def whole(sets: PositionSets) -> PositionSets:
    """Return the sets of a number that depends on all elements."""
    return sets.reduce(range(len(sets.shape)), keepdim=False)


def everything(op: Operation) -> PositionSets:
    """Let each element depend on all elements of all arguments."""
    return union(op.shape, [whole(sets) for sets in op.operands()], compare=False)
