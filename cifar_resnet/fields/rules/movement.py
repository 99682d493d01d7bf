"""Rules for operations that only move elements: views, slices, concatenation."""

from __future__ import annotations

import torch

from cifar_resnet.fields.positions import taps
from cifar_resnet.fields.positions.merging import concatenate
from cifar_resnet.fields.positions.sets import PositionSets
from cifar_resnet.fields.rules.addresses import view_by_address
from cifar_resnet.fields.rules.operation import Operation, Rule


def _reshape(op: Operation) -> PositionSets:
    if op.call.op is torch.ops.aten.view.dtype:
        return view_by_address(op)
    return op.first[1].reshape(op.shape)


def _permute(op: Operation) -> PositionSets:
    ref, sets = op.first
    order = list(range(len(ref.shape)))
    if op.call.name == "permute":
        order = op["dims"]
    elif len(order) > 1:
        a, b = (0, 1) if op.call.name == "t" else (op["dim0"], op["dim1"])
        order[a], order[b] = order[b], order[a]
    return sets.permute(order)


def _squeeze(op: Operation) -> PositionSets:
    ref, sets = op.first
    dims = op["dim"]
    if dims is None:
        dims = range(len(ref.shape))
    elif isinstance(dims, int):
        dims = [dims]
    return sets.squeeze([dim for dim in dims if ref.shape[dim] == 1])


def _unsqueeze(op: Operation) -> PositionSets:
    return op.first[1].unsqueeze(op["dim"])


def _expand(op: Operation) -> PositionSets:
    return op.first[1].expand(op.shape)


def _copy(op: Operation) -> PositionSets | None:
    source = op.sets("src")
    return None if source is None else source.expand(op.shape)


def _slice(op: Operation) -> PositionSets:
    ref, sets = op.first
    dim = op["dim"]
    start, _, step = slice(op["start"], op["end"], op["step"]).indices(ref.shape[dim])
    return sets.window(dim, taps.sliced(ref.shape[dim], start, step, op.shape[dim]))


def _select(op: Operation) -> PositionSets:
    ref, sets = op.first
    dim = op["dim"]
    index = op["index"] % ref.shape[dim]
    # `selected` rather than `sliced`: the dimension is removed, so there is no pattern to continue
    return sets.window(dim, taps.selected(ref.shape[dim], [index])).squeeze([dim])


def _split(op: Operation) -> list[PositionSets]:
    ref, sets = op.first
    dim = op["dim"]
    parts = []
    start = 0
    for out in op.call.outputs:
        parts.append(sets.window(dim, taps.sliced(ref.shape[dim], start, 1, out.shape[dim])))
        start += out.shape[dim]
    return parts


def _unbind(op: Operation) -> list[PositionSets]:
    ref, sets = op.first
    dim = op["dim"]
    size = ref.shape[dim]
    return [sets.window(dim, taps.selected(size, [i])).squeeze([dim]) for i in range(size)]


def _cat(op: Operation) -> PositionSets:
    tensors = [ref for ref in op["tensors"] if ref.shape != (0,)]  # PyTorch ignores these
    dim = op["dim"]
    operands = [op.sets_of(ref) for ref in tensors]
    return concatenate(operands, [ref.shape[dim] for ref in tensors], dim, op.where)


def _stack(op: Operation) -> PositionSets:
    operands = [op.sets_of(ref) for ref in op["tensors"]]
    dim = op["dim"] % len(op.shape)
    parts = [sets and sets.unsqueeze(dim) for sets in operands]
    return concatenate(parts, [1] * len(parts), dim, op.where)


def _flip(op: Operation) -> PositionSets:
    ref, sets = op.first
    for dim in op["dims"]:
        size = ref.shape[dim]
        sets = sets.window(dim, taps.sliced(size, size - 1, -1, size))
    return sets


def _roll(op: Operation) -> PositionSets:
    ref, sets = op.first
    shifts, dims = op["shifts"], op["dims"]
    if not dims:  # the flattened tensor is rolled
        size = sets.reshape((-1,)).shape[0]
        rolled = [(i - shifts[0]) % size for i in range(size)]
        return sets.reshape((size,)).window(0, taps.selected(size, rolled)).reshape(ref.shape)
    for shift, dim in zip(shifts, dims, strict=True):  # unit i is element i - shift
        size = ref.shape[dim]
        rolled = [(i - shift) % size for i in range(size)]
        sets = sets.window(dim, taps.selected(size, rolled))
    return sets


def _repeat(op: Operation) -> PositionSets:
    ref, sets = op.first
    repeats = op["repeats"]
    sets = sets.expand((*[1] * (len(repeats) - len(ref.shape)), *ref.shape))
    for dim, times in enumerate(repeats):
        size = sets.shape[dim]
        if times != 1:
            sets = sets.window(dim, taps.selected(size, list(range(size)) * times))
    return sets


def _pixel_shuffle(op: Operation) -> PositionSets:
    ref, sets = op.first
    # (*batch, C * r * r, H, W) to (*batch, C, H, r, W, r) to (*batch, C, H * r, W * r)
    factor = op["upscale_factor"]
    n = len(ref.shape) - 3
    split = sets.split(n, (ref.shape[n] // factor**2, factor, factor))
    order = (*range(n), n, n + 3, n + 1, n + 4, n + 2)
    return split.permute(order).merge(n + 3).merge(n + 1)


def _pixel_unshuffle(op: Operation) -> PositionSets:
    ref, sets = op.first
    # the inverse: (*batch, C, H, r, W, r) to (*batch, C, r, r, H, W) to (*batch, C * r * r, H, W)
    factor = op["downscale_factor"]
    n = len(ref.shape) - 3
    split = sets.split(n + 2, (ref.shape[n + 2] // factor, factor))
    split = split.split(n + 1, (ref.shape[n + 1] // factor, factor))
    order = (*range(n), n, n + 2, n + 4, n + 1, n + 3)
    return split.permute(order).merge(n).merge(n)


def _channel_shuffle(op: Operation) -> PositionSets:
    ref, sets = op.first
    groups = op["groups"]
    split = sets.split(1, (groups, ref.shape[1] // groups))
    return split.permute((0, 2, 1, *range(3, len(split.shape)))).merge(1)


MOVEMENT: dict[str, Rule] = {
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias"), _reshape),
    "as_strided": view_by_address,
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    "squeeze": _squeeze,
    "unsqueeze": _unsqueeze,
    "expand": _expand,
    "copy": _copy,
    "slice": _slice,
    "select": _select,
    **dict.fromkeys(
        ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"), _split
    ),
    "unbind": _unbind,
    "cat": _cat,
    "stack": _stack,
    "flip": _flip,
    "roll": _roll,
    "repeat": _repeat,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "channel_shuffle": _channel_shuffle,
}
