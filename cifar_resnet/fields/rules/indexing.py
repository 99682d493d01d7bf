"""Rules for operations that index with tensors.

The values of an index decide what is read, so the model has to run on real tensors. If an index
depends on the input itself, every element may be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from cifar_resnet.fields.positions import taps
from cifar_resnet.fields.positions.merging import overwrite, union
from cifar_resnet.fields.positions.sets import PositionSets
from cifar_resnet.fields.rules.operation import Operation, Rule, values_of
from cifar_resnet.fields.steps import Ref, refs_in


def _any_element(op: Operation) -> PositionSets:
    """Let each element depend on everything, as the input decides which element is read."""
    first = op.operands()[0]
    if first.shape == op.shape:  # `blend` keeps the dimensions that run along the axis
        blended = [sets.blend(range(len(sets.shape))) for sets in op.operands()]
        return union(op.shape, blended, compare=False)
    wholes = [sets.reduce(range(len(sets.shape)), keepdim=False) for sets in op.operands()]
    return union(op.shape, wholes, compare=False)


@dataclass(frozen=True)
class _Selection:
    """The elements that index tensors name.

    `x[:, [0, 1], :, [5, 7]]` of a tensor (N, 4, H, 8) names two elements of the dimensions 1 and 3
    together. If these are moved next to each other and merged, giving (4 * 8, N, H), the elements
    named are 0 * 8 + 5 = 5 and 1 * 8 + 7 = 15 of dimension 0.

    Attributes:
        order: The dimensions with the indexed ones next to each other: (1, 3, 0, 2).
        shape: Shape with these dimensions merged: (32, N, H).
        dim: The merged dimension: 0.
        index_shape: Shape of the index tensors, broadcast: (2,).
        elements: Elements of the merged dimension: [5, 15].
    """

    order: tuple[int, ...]
    shape: tuple[int, ...]
    dim: int
    index_shape: tuple[int, ...]
    elements: list[int]


def _selection(ref: Ref, indices: Sequence[Ref | None]) -> _Selection:
    by_dim: dict[int, torch.Tensor] = {}
    dim = 0
    for index in indices:
        if index is None:
            dim += 1
            continue
        values = values_of(index)
        if values.dtype in (torch.bool, torch.uint8):  # a mask stands for one index per dimension
            for along in values.nonzero(as_tuple=True):
                by_dim[dim] = along
                dim += 1
        else:
            by_dim[dim] = values
            dim += 1
    dims = list(by_dim)
    shape = torch.broadcast_shapes(*(values.shape for values in by_dim.values()))
    flat = torch.zeros(shape, dtype=torch.int64)
    for dim, values in by_dim.items():
        size = ref.shape[dim]
        flat = flat * size + torch.where(values < 0, values + size, values)
    # NumPy's rule: the result has the indexed dimensions where they were if they are adjacent, and
    # in front if they are not.
    adjacent = dims == list(range(dims[0], dims[-1] + 1))
    merged_dim = dims[0] if adjacent else 0
    kept = [dim for dim in range(len(ref.shape)) if dim not in dims]
    before, after = kept[:merged_dim], kept[merged_dim:]
    total = math.prod(ref.shape[dim] for dim in dims)
    merged = (*(ref.shape[dim] for dim in before), total, *(ref.shape[dim] for dim in after))
    elements = flat.flatten().tolist()
    return _Selection((*before, *dims, *after), merged, merged_dim, tuple(shape), elements)


def _index(op: Operation) -> PositionSets:
    ref, sets = op.first
    indices: Sequence[Ref | None] = op["indices"]
    if any(op.sets_of(index) is not None for index in refs_in(indices)):
        return _index_from_input(op, indices)
    chosen = _selection(ref, indices)
    sets = sets.permute(chosen.order).reshape(chosen.shape)
    window = taps.selected(chosen.shape[chosen.dim], chosen.elements)
    return sets.window(chosen.dim, window).reshape(op.shape)


def _index_from_input(op: Operation, indices: Sequence[Ref | None]) -> PositionSets:
    """Let each element depend on its index, and on all elements that the index may select."""
    ref, sets = op.first
    dims: list[int] = []
    at = 0
    for index in indices:
        width = len(index.shape) if index is not None and index.is_mask else 1
        dims += range(at, at + width) if index is not None else ()
        at += width
    adjacent = dims == list(range(dims[0], dims[-1] + 1))
    start = dims[0] if adjacent else 0
    rank = len(op.shape) - (len(ref.shape) - len(dims))  # of the indices, broadcast
    kept = [size for dim, size in enumerate(ref.shape) if dim not in dims]
    before, after = kept[:start], kept[start:]
    read = sets.reduce(dims, keepdim=False).reshape((*before, *[1] * rank, *after))
    parts = [read]
    for index in refs_in(indices):
        own = op.sets_of(index)
        if own is None:
            continue
        if index.is_mask:  # the order of the elements depends on all of the mask
            own = own.reduce(range(len(index.shape)), keepdim=False)
        parts.append(own.reshape((*own.shape, *[1] * len(after))))
    return union(op.shape, parts, compare=False)


def _index_select(op: Operation) -> PositionSets:
    ref, sets = op.first
    dim = op["dim"] % max(len(ref.shape), 1)
    own = op.sets("index")
    if own is not None:
        if not ref.shape:
            return _any_element(op)
        along = own.reshape((-1, *[1] * (len(ref.shape) - dim - 1)))
        return union(op.shape, [sets.reduce([dim]), along], compare=False)
    elements = values_of(op["index"]).flatten().tolist()
    return sets.window(dim, taps.selected(ref.shape[dim], elements))


def _gather(op: Operation) -> PositionSets:
    sets = op.sets("self")
    index = op.sets("index")
    if index is not None:
        if sets is None:
            return index
        dim = op["dim"] % max(len(index.shape), 1)
        for other, size in enumerate(op.shape):  # a corner of the other dimensions is read
            if other != dim and sets.shape[other] != size:
                sets = sets.window(other, taps.sliced(sets.shape[other], 0, 1, size))
        return union(op.shape, [sets.reduce([dim]) if sets.shape else sets, index], compare=False)
    assert sets is not None
    values = values_of(op["index"])
    return sets.gather(op["dim"], values)


def _index_put(op: Operation) -> PositionSets:
    """Follow `x[indices] = values`, or `+=` if the argument `accumulate` is True."""
    indices: Sequence[Ref | None] = op["indices"]
    if any(op.sets_of(index) is not None for index in refs_in(indices)):
        return _masked_put(op, indices) or _any_element(op)
    ref, old = op.first
    new = op.sets("values")
    chosen = _selection(ref, indices)
    outer, inner = chosen.shape[: chosen.dim], chosen.shape[chosen.dim + 1 :]
    shape = (*outer, len(chosen.elements), *inner)
    written = PositionSets.empty_like(old, shape)
    if new is not None:
        written = new.expand((*outer, *chosen.index_shape, *inner)).reshape(shape)
    before = old.permute(chosen.order).reshape(chosen.shape)
    result = overwrite(before, written, chosen.dim, chosen.elements)
    if op["accumulate"]:
        result = union(chosen.shape, [before, result], compare=False)
    # back to the shape and the order of dimensions that x has
    split = tuple(ref.shape[dim] for dim in chosen.order)
    back = [chosen.order.index(dim) for dim in range(len(ref.shape))]
    return result.reshape(split).permute(back)


def _masked_put(op: Operation, indices: Sequence[Ref | None]) -> PositionSets | None:
    """Follow `x[mask] = number`: each element depends on its place in the mask, too."""
    ref, old = op.first
    masks = list(refs_in(indices))
    if len(masks) > 1 or not masks[0].is_mask or math.prod(op["values"].shape) != 1:
        return None
    mask, new = op.sets_of(masks[0]), op.sets("values")
    assert mask is not None
    trailing = len(ref.shape) - indices.index(masks[0]) - len(mask.shape)
    parts = [old, mask.reshape((*mask.shape, *[1] * trailing))]
    if new is not None:
        parts.append(new.reshape(()))
    return union(op.shape, parts, compare=False)


def _index_fill(op: Operation) -> PositionSets:
    """Follow `index_fill`, and `index_copy`, which writes a tensor in place of one value."""
    ref, old = op.first
    if op.sets("index") is not None:
        return _any_element(op)
    dim = op["dim"] % len(ref.shape)
    elements = [element % ref.shape[dim] for element in values_of(op["index"]).flatten().tolist()]
    shape = (*ref.shape[:dim], len(elements), *ref.shape[dim + 1 :])
    new = op.sets("source" if op.call.name == "index_copy" else "value")
    written = PositionSets.empty_like(old, shape) if new is None else new.expand(shape)
    return overwrite(old, written, dim, elements)


def _embedding(op: Operation) -> PositionSets:
    """Return a row of the table for each index."""
    table, index = op.sets("weight"), op.sets("indices")
    if table is None and index is not None:  # tokens are the input, as in language models
        return index.unsqueeze(len(index.shape)).expand(op.shape)
    if index is not None:
        return _any_element(op)
    ref, table = op.first
    rows = values_of(op["indices"]).flatten().tolist()
    return table.window(0, taps.selected(ref.shape[0], rows)).reshape(op.shape)


INDEXING: dict[str, Rule] = {
    **dict.fromkeys(("index", "_unsafe_index"), _index),
    "index_select": _index_select,
    "gather": _gather,
    **dict.fromkeys(("index_put", "_unsafe_index_put"), _index_put),
    **dict.fromkeys(("index_copy", "index_fill"), _index_fill),
    "embedding": _embedding,
}
