"""What each tensor of a run depends on, while views share memory and operations write in place.

It knows which tensor is a view of which; the rules themselves are given to it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cifar_resnet.fields.positions.merging import overwritten
from cifar_resnet.fields.positions.support import Support
from cifar_resnet.fields.steps import Call, Ref, refs_in

Fields = tuple[Support | None, ...]
Apply = Callable[[Call], tuple[list[Fields | None], Any]]


class Aliases:
    """Fields by tensor. A tensor that is not there depends on nothing."""

    def __init__(self, apply: Apply) -> None:
        self._apply = apply
        self._fields: dict[int, Fields | None] = {}
        self._made_by: dict[int, tuple[Ref, Call]] = {}  # of a view
        self._views: dict[int, list[int]] = {}
        self._stale: set[int] = set()

    def __setitem__(self, ref: Ref, fields: Fields | None) -> None:
        self._fields[ref.index] = fields

    def __getitem__(self, ref: Ref) -> Fields | None:
        if ref.index in self._stale:
            self._stale.discard(ref.index)
            self._renew(ref.index)
        return self._fields.get(ref.index)

    def forget(self, index: int) -> None:
        self._fields.pop(index, None)
        self._made_by.pop(index, None)
        self._views.pop(index, None)
        self._stale.discard(index)

    def add_view(self, ref: Ref, call: Call, fields: Fields | None) -> None:
        self._fields[ref.index] = fields
        base = call.args[0]
        if base.index != ref.index:
            self._made_by[ref.index] = (ref, call)
            self._views.setdefault(base.index, []).append(ref.index)

    def write(self, ref: Ref, fields: Fields | None) -> None:
        """A tensor is new, or was written to in place; then its base and other views see it."""
        self._fields[ref.index] = fields
        self._stale.discard(ref.index)
        self._outdate_views(ref.index)
        if ref.index in self._made_by:
            _, call = self._made_by[ref.index]
            base = call.args[0]
            written = _written_back(call, base, ref, self[base], fields)
            keep = self._fields[ref.index]
            self.write(base, written)
            self._fields[ref.index] = keep
            self._stale.discard(ref.index)

    def _outdate_views(self, index: int) -> None:
        for view in self._views.get(index, ()):
            if view in self._made_by:
                self._stale.add(view)
                self._outdate_views(view)

    def _renew(self, index: int) -> None:
        ref, call = self._made_by[index]
        base = self[call.args[0]]
        if base is None:
            self._fields[index] = None
            return
        results, _ = self._apply(call)
        outputs = call.outputs if isinstance(call.outputs, list) else [call.outputs]
        for output, result in zip(outputs, results, strict=True):
            if output.index == ref.index:
                self._fields[index] = result


def _written_back(
    call: Call, base: Ref, view: Ref, old: Fields | None, new: Fields | None
) -> Fields | None:
    """What the base depends on after one of its views was written to."""
    if old is None and new is None:
        return None
    like = old or new
    assert like is not None
    result: list[Support] = []
    for axis in range(len(like)):
        before = old[axis] if old else None
        after = new[axis] if new else None
        anything = before or after
        assert anything is not None
        before = before or Support.of_nothing_like(anything, base.shape)
        after = after or Support.of_nothing_like(anything, view.shape)
        result.append(_placed(call, view, base.shape, before, after))
    return tuple(result)


def _placed(
    call: Call, view: Ref, shape: tuple[int, ...], before: Support, after: Support
) -> Support:
    name = call.name
    if name in (
        "view",
        "_unsafe_view",
        "_reshape_alias",
        "alias",
        "detach",
        "unsqueeze",
        "squeeze",
    ):
        return after.reshape(shape)
    if name in ("permute", "transpose", "t"):
        order = list(range(len(shape)))
        if name == "permute":
            order = [dim % len(shape) for dim in call.argument("dims")]
        elif len(order) > 1:
            a, b = (0, 1) if name == "t" else (call.argument("dim0"), call.argument("dim1"))
            order[a], order[b] = order[b], order[a]
        return after.permute([order.index(dim) for dim in range(len(order))])
    if name in ("slice", "select", "split", "split_with_sizes", "unbind"):
        dim = call.argument("dim") % len(shape)
        place = [ref.index for ref in refs_in(call.outputs)].index(view.index)
        if name == "slice":
            span = slice(call.argument("start"), call.argument("end"), call.argument("step"))
            inside = range(*span.indices(shape[dim]))
        elif name in ("select", "unbind"):
            index = place if name == "unbind" else call.argument("index") % shape[dim]
            inside, after = range(index, index + 1), after.insert(dim)
        else:
            start = sum(ref.shape[dim] for ref in list(refs_in(call.outputs))[:place])
            inside = range(start, start + view.shape[dim])
        return overwritten(before, after, dim, inside)
    raise NotImplementedError(
        f"The network writes in place into a view made by {call.op}, called from {call.source}. "
        "Receptive fields follow writes into slices, parts and reshaped or permuted views only; "
        "write out of place there."
    )
