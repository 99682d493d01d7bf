"""The position sets of each tensor of a run, while views share memory and operations write to it.

A view and its base share memory, so writing to one changes the other. Shifting one channel by a
column, as temporal shift modules do:

    out = torch.zeros_like(x)                # depends on nothing
    first = out[:, :1]                       # a view of out
    out[:, 1:] = x[:, 1:]                    # writes to another view of out
    first[..., :-1] = x[:, :1, ..., 1:]      # writes to a view of a view

Two things keep the sets right. A write to a view is copied into its base, whose own base is written
to in turn: the last line writes to `first[..., :-1]`, so to `first`, so to `out`. And all other
views of a tensor that was written to become stale: after the third line, the sets of `first` are
computed again from those of `out` the next time they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from cifar_resnet.fields.positions.merging import overwrite, union
from cifar_resnet.fields.positions.sets import PositionSets
from cifar_resnet.fields.rules.addresses import overlaps, write_by_address
from cifar_resnet.fields.rules.operation import NotFollowedError
from cifar_resnet.fields.steps import Call, Ref, refs_in

AxisSets = tuple[PositionSets, ...]  # of one tensor, along each axis of the input
Apply = Callable[[Call], tuple[list[AxisSets | None], Any]]


class AliasedSets:
    """Position sets by tensor. A tensor that is missing, or has None, does not depend on the input.

    Args:
        apply: Returns the sets of the outputs of an operation; used to compute stale views again.
    """

    def __init__(self, apply: Apply) -> None:
        self._apply = apply
        self._sets: dict[int, AxisSets | None] = {}
        self._made_by: dict[int, tuple[Ref, Call]] = {}  # each view, and the operation behind it
        self._views: dict[int, list[int]] = {}  # the views of each base
        self._stale: set[int] = set()

    def __setitem__(self, ref: Ref, sets: AxisSets | None) -> None:
        self._sets[ref.index] = sets

    def __getitem__(self, ref: Ref) -> AxisSets | None:
        if ref.index in self._stale:
            self._stale.discard(ref.index)
            self._recompute(ref.index)
        return self._sets.get(ref.index)

    def values(self) -> list[AxisSets]:
        """Return the sets of all tensors that depend on the input."""
        return [sets for sets in self._sets.values() if sets is not None]

    def forget(self, index: int) -> None:
        """Drop a tensor that is not used any more, to free its memory."""
        self._sets.pop(index, None)
        self._made_by.pop(index, None)
        self._views.pop(index, None)
        self._stale.discard(index)

    def add_view(self, ref: Ref, call: Call, sets: AxisSets | None) -> None:
        """Store a tensor that shares memory with the first argument of the operation."""
        self._sets[ref.index] = sets
        base = call.args[0]
        if base.index != ref.index:  # on real tensors, `lift_fresh` returns its argument
            self._made_by[ref.index] = (ref, call)
            self._views.setdefault(base.index, []).append(ref.index)

    def write(self, ref: Ref, sets: AxisSets | None) -> None:
        """Store a tensor that is new or was written to in place, and update those that share its
        memory."""
        self._sets[ref.index] = sets
        self._stale.discard(ref.index)
        self._mark_views_stale(ref.index)
        if ref.index in self._made_by and 0 not in ref.shape:
            _, call = self._made_by[ref.index]
            base = call.args[0]
            if any(self[scalar] is not None for scalar in call.scalars):
                # At a position that depends on the input, as in `y[t] = z`: any element of the base
                # may have been written to.
                after = self.whole((ref, *call.scalars), base.shape)
                before = self[base]
                if before is not None and after is not None:
                    pairs = zip(before, after, strict=True)
                    after = tuple(union(base.shape, pair, compare=False) for pair in pairs)
            else:
                after = _write_back(call, base, ref, self[base], sets)
            self.write(base, after)
            # The write to the base has marked all its views stale, this one included. Its sets
            # are known, though, and exact: keep them.
            self._sets[ref.index] = sets
            self._stale.discard(ref.index)

    def whole(self, refs: Iterable[Ref], shape: tuple[int, ...]) -> AxisSets | None:
        """Return the sets of a tensor of which each element depends on everything in some tensors.

        None if none of these depends on the input.
        """
        known = [sets for sets in map(self.__getitem__, refs) if sets is not None]
        if not known:
            return None
        return tuple(
            union(
                shape,
                [sets.reduce(range(len(sets.shape)), keepdim=False) for sets in along],
                compare=False,
            )
            for along in zip(*known, strict=True)
        )

    def _mark_views_stale(self, index: int) -> None:
        for view in self._views.get(index, ()):
            if view in self._made_by:  # else it is forgotten
                self._stale.add(view)
                self._mark_views_stale(view)

    def _recompute(self, index: int) -> None:
        """Apply the operation that made a view to what its base depends on now."""
        ref, call = self._made_by[index]
        base = self[call.args[0]]
        if base is None:
            self._sets[index] = None
            return
        results, _ = self._apply(call)
        outputs = call.outputs if isinstance(call.outputs, list) else [call.outputs]
        for output, result in zip(outputs, results, strict=True):
            if output.index == ref.index:
                self._sets[index] = result


def _write_back(
    call: Call, base: Ref, view: Ref, old: AxisSets | None, new: AxisSets | None
) -> AxisSets | None:
    """Return what a base depends on after one of its views was written to.

    Args:
        call: The operation that made the view.
        base: The tensor that the view shows a part of.
        view: The view.
        old: Sets of the base before.
        new: Sets of the view after.
    """
    like = old or new
    if like is None:
        return None
    before = old or [PositionSets.empty_like(sets, base.shape) for sets in like]
    written = new or [PositionSets.empty_like(sets, view.shape) for sets in like]
    return tuple(_into_base(call, base, view, *pair) for pair in zip(before, written, strict=True))


def _into_base(
    call: Call, base: Ref, view: Ref, before: PositionSets, written: PositionSets
) -> PositionSets:
    """Invert the operation that made a view: put what was written to the view into the base.

    A view of the rows 1 to 3 overwrites these rows of the base, and leaves the others as they were:

        y = x * 2                   # row i depends on row i
        y[1:4] += x[:3]             # row i of the view depends on the rows i + 1 and i
        y                           # rows {0}, {0, 1}, {1, 2}, {2, 3}, {4}, ...
    """
    name, shape = call.name, base.shape
    if name in _SAME_ELEMENTS and view.itemsize == base.itemsize:
        return written.reshape(shape)
    if name in ("permute", "transpose", "t"):
        order = list(range(len(shape)))
        if name == "permute":
            order = [dim % len(shape) for dim in call.argument("dims")]
        elif len(order) > 1:
            a, b = (0, 1) if name == "t" else (call.argument("dim0"), call.argument("dim1"))
            order[a], order[b] = order[b], order[a]
        return written.permute([order.index(dim) for dim in range(len(order))])
    if name in ("slice", "select", "split", "split_with_sizes", "unbind"):
        dim = call.argument("dim") % len(shape)
        number = [ref.index for ref in refs_in(call.outputs)].index(view.index)  # among the outputs
        if name == "slice":
            span = slice(call.argument("start"), call.argument("end"), call.argument("step"))
            inside = range(*span.indices(shape[dim]))
        elif name in ("select", "unbind"):
            index = number if name == "unbind" else call.argument("index") % shape[dim]
            inside, written = range(index, index + 1), written.unsqueeze(dim)
        else:
            start = sum(ref.shape[dim] for ref in list(refs_in(call.outputs))[:number])
            inside = range(start, start + view.shape[dim])
        return overwrite(before, written, dim, inside)
    if overlaps(view):
        raise NotFollowedError(
            f"It writes in place into a view made by {call.op}, called from {call.source}, in "
            "which elements overlap. Use an out-of-place operation."
        )
    return write_by_address(base, view, before, written)


_SAME_ELEMENTS = {
    "view", "_unsafe_view", "_reshape_alias", "alias", "detach", "unsqueeze", "squeeze",
}  # fmt: skip
