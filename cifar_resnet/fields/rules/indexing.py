"""Rules for the operations that index with tensors.

Their values are needed, unless they depend on the input themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cifar_resnet.fields.positions import taps
from cifar_resnet.fields.positions.merging import overwritten, union
from cifar_resnet.fields.positions.support import Support
from cifar_resnet.fields.rules.operation import Operation, Rule
from cifar_resnet.fields.steps import Ref, refs_in
from cifar_resnet.fields.trace import ValuesNeededError


def _values(index: Ref) -> torch.Tensor:
    if index.values is None:
        raise ValuesNeededError
    return index.values


def _anything(op: Operation) -> Support:
    """Which element is read depends on the input, so every one may be."""
    first = op.operands()[0]
    if first.shape == op.shape:
        return union(op.shape, [s.blend(range(len(s.shape))) for s in op.operands()], compare=False)
    wholes = [s.reduce(range(len(s.shape)), keepdim=False) for s in op.operands()]
    return union(op.shape, wholes, compare=False)


@dataclass(frozen=True)
class _Places:
    """The places that index tensors name: with the indexed dimensions moved next to each other in
    the order `permuted`, and made one, elements `flat` of dimension `dim` of `shape`."""

    permuted: tuple[int, ...]
    shape: tuple[int, ...]
    dim: int
    index_shape: tuple[int, ...]
    flat: list[int]


def _places(ref: Ref, indices: Sequence[Ref | None]) -> _Places:
    positions: dict[int, torch.Tensor] = {}
    dim = 0
    for index in indices:
        if index is None:
            dim += 1
            continue
        values = _values(index)
        if values.dtype in (torch.bool, torch.uint8):
            for along in values.nonzero(as_tuple=True):
                positions[dim] = along
                dim += 1
        else:
            positions[dim] = values
            dim += 1
    dims = list(positions)
    shape = torch.broadcast_shapes(*(values.shape for values in positions.values()))
    flat = torch.zeros(shape, dtype=torch.int64)
    for dim, values in positions.items():
        size = ref.shape[dim]
        flat = flat * size + torch.where(values < 0, values + size, values)
    together = dims == list(range(dims[0], dims[-1] + 1))
    place = dims[0] if together else 0  # where NumPy's rules put the indexed dimensions
    kept = [dim for dim in range(len(ref.shape)) if dim not in dims]
    before, after = kept[:place], kept[place:]
    total = math.prod(ref.shape[dim] for dim in dims)
    merged = (*(ref.shape[dim] for dim in before), total, *(ref.shape[dim] for dim in after))
    elements = flat.flatten().tolist()
    return _Places((*before, *dims, *after), merged, place, tuple(shape), elements)


def _index(op: Operation) -> Support:
    ref, support = op.first
    indices: Sequence[Ref | None] = op["indices"]
    if any(op.support_of(index) is not None for index in refs_in(indices)):
        return _anything(op)
    places = _places(ref, indices)
    support = support.permute(places.permuted).reshape(places.shape)
    window = taps.moved(places.shape[places.dim], places.flat)
    return support.window(places.dim, window).reshape(op.shape)


def _index_select(op: Operation) -> Support:
    ref, support = op.first
    if op.support("index") is not None:
        return _anything(op)
    dim = op["dim"]
    elements = _values(op["index"]).flatten().tolist()
    return support.window(dim, taps.moved(ref.shape[dim], elements))


def _gather(op: Operation) -> Support:
    support = op.support("self")
    index = op.support("index")
    if support is None or index is not None:
        return _anything(op)
    values = _values(op["index"])
    return support.gather(op["dim"], values)


def _index_put(op: Operation) -> Support:
    indices: Sequence[Ref | None] = op["indices"]
    if any(op.support_of(index) is not None for index in refs_in(indices)):
        return _anything(op)
    ref, old = op.first
    new = op.support("values")
    places = _places(ref, indices)
    shape = (*places.shape[: places.dim], len(places.flat), *places.shape[places.dim + 1 :])
    by_index = (*shape[: places.dim], *places.index_shape, *shape[places.dim + 1 :])
    after = Support.of_nothing_like(old, shape)
    if new is not None:
        after = new.expand(by_index).reshape(shape)
    before = old.permute(places.permuted).reshape(places.shape)
    result = overwritten(before, after, places.dim, places.flat)
    if op["accumulate"]:
        result = union(places.shape, [before, result], compare=False)
    split = tuple(ref.shape[dim] for dim in places.permuted)
    back = [places.permuted.index(dim) for dim in range(len(ref.shape))]
    return result.reshape(split).permute(back)


def _index_fill(op: Operation) -> Support:
    """Also `index_copy`."""
    ref, old = op.first
    if op.support("index") is not None:
        return _anything(op)
    dim = op["dim"] % len(ref.shape)
    elements = [element % ref.shape[dim] for element in _values(op["index"]).flatten().tolist()]
    shape = (*ref.shape[:dim], len(elements), *ref.shape[dim + 1 :])
    new = op.support("source" if op.call.name == "index_copy" else "value")
    after = Support.of_nothing_like(old, shape) if new is None else new.expand(shape)
    return overwritten(old, after, dim, elements)


def _embedding(op: Operation) -> Support:
    """A row of the table for each index."""
    table, index = op.support("weight"), op.support("indices")
    if table is None and index is not None:
        return index.insert(len(index.shape)).expand(op.shape)
    if index is not None:
        return _anything(op)
    ref, table = op.first
    rows = _values(op["indices"]).flatten().tolist()
    return table.window(0, taps.moved(ref.shape[0], rows)).reshape(op.shape)


INDEXING: dict[str, Rule] = {
    **dict.fromkeys(("index", "_unsafe_index"), _index),
    "index_select": _index_select,
    "gather": _gather,
    "index_put": _index_put,
    **dict.fromkeys(("index_copy", "index_fill"), _index_fill),
    "embedding": _embedding,
}
