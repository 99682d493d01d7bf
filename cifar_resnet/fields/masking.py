"""Elements that are selected by a mask, changed, and put back, as by `y[mask] *= 0.1`.

The selected elements are a list, whose order depends on all of the mask. Put back by the same mask,
each is at its own place again, and depends on nothing but what it depended on there.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from cifar_resnet.fields.aliases import AliasedSets, AxisSets
from cifar_resnet.fields.positions.merging import union
from cifar_resnet.fields.positions.sets import PositionSets
from cifar_resnet.fields.steps import Call, Ref, refs_in


class _Key(NamedTuple):
    mask: int  # number of the tensor
    before: int  # number of dimensions before those of the mask
    sets: AxisSets  # of the mask: others after it is written to


class _Selected(NamedTuple):
    sets: AxisSets  # of the list of selected elements
    key: _Key
    in_place: AxisSets  # of the tensor that they come from


class MaskedElements:
    """The lists of selected elements in a run, as they would be at their places.

    Args:
        sets: The sets of all tensors.
    """

    def __init__(self, sets: AliasedSets) -> None:
        self._sets = sets
        self._selected: dict[int, _Selected] = {}

    def forget(self, index: int) -> None:
        self._selected.pop(index, None)

    def watches(self, call: Call) -> bool:
        """Whether an operation may concern selected elements."""
        return bool(self._selected) or call.name in ("index", "index_put")

    def follow(
        self, call: Call, results: list[AxisSets | None], *, is_pointwise: bool
    ) -> list[AxisSets | None]:
        """Return the results of an operation, exact if it puts selected elements back."""
        if len(results) != 1 or results[0] is None:
            return results
        output = next(refs_in(call.outputs))
        if call.name == "index":
            key = self._key(call)
            base = self._sets[call.args[0]]
            if key is not None and base is not None:
                self._selected[output.index] = _Selected(results[0], key, base)
        elif call.name == "index_put":
            return [self._put_back(call, output) or results[0]]
        elif is_pointwise and self._selected:
            self._change(call, output, results[0])
        return results

    def _key(self, call: Call) -> _Key | None:
        indices: Any = call.argument("indices")
        masks = list(refs_in(indices))
        if len(masks) != 1 or not masks[0].is_mask:
            return None
        sets = self._sets[masks[0]]
        return None if sets is None else _Key(masks[0].index, indices.index(masks[0]), sets)

    def _valid(self, ref: Ref) -> _Selected | None:
        selected = self._selected.get(ref.index)
        return selected if selected is not None and selected.sets is self._sets[ref] else None

    def _change(self, call: Call, output: Ref, result: AxisSets) -> None:
        """Follow an operation on each of the selected elements."""
        operands = [ref for ref in call.operands if self._sets[ref] is not None]
        lists = [selected for selected in map(self._valid, operands) if selected is not None]
        numbers = [ref for ref in operands if self._valid(ref) is None]
        if not lists or call.scalars or any(math.prod(ref.shape) != 1 for ref in numbers):
            return
        first = lists[0]
        if any(not _same(first.key, other.key) for other in lists):
            return
        in_place = self._union(first.in_place[0].shape, [each.in_place for each in lists], numbers)
        self._selected[output.index] = _Selected(result, first.key, in_place)

    def _put_back(self, call: Call, output: Ref) -> AxisSets | None:
        key = self._key(call)
        values = call.argument("values")
        selected = self._valid(values)
        if key is None or selected is None or not _same(key, selected.key):
            return None
        if selected.in_place[0].shape != output.shape:
            return None
        after = len(output.shape) - key.before - len(key.sets[0].shape)
        mask = tuple(sets.reshape((*sets.shape, *[1] * after)) for sets in key.sets)
        parts = [mask, selected.in_place]
        old = self._sets[call.args[0]]
        return self._union(output.shape, parts if old is None else [old, *parts], [])

    def _union(self, shape: tuple[int, ...], parts: list[AxisSets], numbers: list[Ref]) -> AxisSets:
        known = [sets for sets in map(self._sets.__getitem__, numbers) if sets is not None]
        axes: list[PositionSets] = []
        for axis in range(len(parts[0])):
            single = [sets[axis].reshape(()) for sets in known]
            own = [sets[axis] for sets in parts]
            axes.append(union(shape, [*own, *single], compare=False))
        return tuple(axes)


def _same(a: _Key, b: _Key) -> bool:
    return (a.mask, a.before) == (b.mask, b.before) and a.sets is b.sets
