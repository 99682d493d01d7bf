"""Rules for operations that write or gather elements one by one: scatter, unpool, fold, sample."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cifar_resnet.fields.positions import taps
from cifar_resnet.fields.positions.merging import union
from cifar_resnet.fields.positions.sets import PositionSets
from cifar_resnet.fields.rules.addresses import NOTHING, read_elements
from cifar_resnet.fields.rules.operation import Operation, Rule, everything, values_of, whole
from cifar_resnet.fields.rules.windows import per_axis
from cifar_resnet.fields.steps import Ref


def moved(op: Operation) -> PositionSets:
    """Follow an operation that only moves elements or sets them to 0, by running it on numbers."""
    ref, sets = op.first
    numbers = torch.arange(1, math.prod(ref.shape) + 1).view(ref.shape)
    args = [arg.values if isinstance(arg, Ref) else arg for arg in op.call.args[1:]]
    result = op.call.op(numbers, *args, **op.call.kwargs)
    return read_elements(sets, result[None] - 1)  # 0, an element without origin, becomes NOTHING


def placed(op: Operation) -> PositionSets:
    """Follow an operation that only places the elements of several tensors, by running it on
    numbers: `select_scatter(y, x, 2, 3)` gives each element one of `y` or one of `x`."""
    names = [declared.name for declared in op.call.op._schema.arguments]
    parts: list[tuple[Ref, int]] = []
    count = 1  # 0 is an element without origin

    def numbers(value: Any) -> Any:
        nonlocal count
        if isinstance(value, list):
            return [numbers(each) for each in value]
        if not isinstance(value, Ref):
            return value
        size = math.prod(value.shape)
        parts.append((value, count))
        count += size
        return torch.arange(count - size, count).view(value.shape)

    args = []
    for name, arg in zip(names, op.call.args, strict=False):
        if name in ("mask", "index") and isinstance(arg, Ref):
            if op.sets_of(arg) is not None:
                return everything(op)
            args.append(values_of(arg))
        else:
            args.append(numbers(arg))
    options = {name: value for name, value in op.call.kwargs.items() if name != "accumulate"}
    if op.call.declares("accumulate"):
        args = args[: names.index("accumulate")]
    result = op.call.op(*args, **options)
    read = []
    for ref, first in parts:
        sets = op.sets_of(ref)
        if sets is not None:
            mine = (result >= first) & (result < first + math.prod(ref.shape))
            read.append(read_elements(sets, torch.where(mine, result - first, NOTHING)[None]))
    if op["accumulate"] and op.sets_of(op.call.args[0]) is not None:
        read.append(op.first[1])
    return union(op.shape, read, compare=False)


def _unfold_backward(op: Operation) -> PositionSets:
    """Follow the inverse of `unfold`: each element is the sum of those of all its windows."""
    _, sets = op.first
    numbers = torch.arange(math.prod(op.shape)).view(op.shape)
    targets = numbers.unfold(op["dim"], op["size"], op["step"]).flatten()
    return read_elements(sets, grouped(torch.arange(len(targets)), targets, op.shape))


def _embedding_bag(op: Operation) -> list[PositionSets | None]:
    """Follow the sum of the rows of a table (rows, features) that each bag of indices names."""
    ref: Ref = op["weight"]
    indices, offsets = op["indices"], op["offsets"]
    table, weights = op.sets("weight"), op.sets("per_sample_weights")
    others: list[PositionSets | None] = [None] * (len(op.call.outputs) - 1)
    if op.sets("indices") is not None or op.sets("offsets") is not None:
        return [everything(op), *others]
    bags = op.shape[0]
    rows, starts = values_of(indices).long(), values_of(offsets).long()
    bag = torch.searchsorted(starts[:bags].contiguous(), torch.arange(len(rows)), right=True) - 1
    parts = []
    if table is not None:
        rows_of_bags = grouped(rows, bag, (bags,))  # (k, bags)
        places = rows_of_bags[..., None] * ref.shape[1] + torch.arange(ref.shape[1])
        places = torch.where(rows_of_bags[..., None] == NOTHING, NOTHING, places)
        parts.append(read_elements(table, places))
    if weights is not None:
        samples = grouped(torch.arange(len(rows)), bag, (bags, 1))
        parts.append(read_elements(weights, samples))
    return [union(op.shape, parts, compare=False), *others]


def grouped(sources: Tensor, targets: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the sources (k, *shape) of each element, given pairs of sources and targets."""
    order = targets.argsort(stable=True)
    sources, targets = sources[order], targets[order]
    counts = torch.bincount(targets, minlength=math.prod(shape))
    first = counts.cumsum(0) - counts
    turn = torch.arange(len(targets)) - first[targets]
    result = torch.full((max(1, int(counts.max())), math.prod(shape)), NOTHING)
    result[turn, targets] = sources
    return result.view(-1, *shape)


def _scatter(op: Operation) -> PositionSets:
    """Follow `scatter` and relatives, which write `src[i]` to the element `index[i]`."""
    ref, old = op.first
    index: Ref = op["index"]
    source = op.sets("src")
    dim = op["dim"] % len(ref.shape) if ref.shape else 0
    own = op.sets("index")
    adds = op.call.name != "scatter" or op["reduce"] is not None
    if own is not None:
        alike = all(
            a == b for d, (a, b) in enumerate(zip(index.shape, ref.shape, strict=True)) if d != dim
        )
        if not alike or (source is not None and source.shape != index.shape):
            return everything(op)
        parts = [old, own.reduce([dim])]
        if source is not None:
            parts.append(source.reduce([dim]))
        return union(op.shape, parts, compare=False)
    values = values_of(index)
    corner = torch.arange(math.prod(ref.shape)).view(ref.shape)
    corner = corner.narrow(dim, 0, 1)[
        tuple(slice(0, 1 if d == dim else n) for d, n in enumerate(values.shape))
    ]
    targets = corner + values * math.prod(ref.shape[dim + 1 :])
    parts = [old]
    if not adds:
        keep = torch.arange(math.prod(ref.shape))
        keep[targets.flatten()] = NOTHING
        parts = [read_elements(old, keep.view(1, *ref.shape))]
    if source is not None:
        numbers = torch.arange(math.prod(source.shape)).view(source.shape)
        numbers = numbers[tuple(map(slice, values.shape))]
        elements = grouped(numbers.flatten(), targets.flatten(), ref.shape)
        parts.append(read_elements(source, elements))
    return union(op.shape, parts, compare=False)


def _index_add(op: Operation) -> PositionSets:
    """Follow `index_add` and `index_reduce`: `y[index[i]] += source[i]` along a dimension."""
    ref, old = op.first
    dim = op["dim"] % len(ref.shape)
    source, own = op.sets("source"), op.sets("index")
    parts = [old]
    if own is not None:
        parts.append(whole(own))
        if source is not None:
            parts.append(source.reduce([dim]))
    elif source is not None:
        values = values_of(op["index"]).flatten()
        sources = grouped(torch.arange(len(values)), values, (ref.shape[dim],))
        tapped = torch.where(sources == NOTHING, taps.NO_TAP, sources)
        parts.append(source.window(dim, taps.selected(len(values), tapped)))
    return union(op.shape, parts, compare=False)


def _take(op: Operation) -> PositionSets:
    sets = op.sets("self")
    if sets is None or op.sets("index") is not None:
        return everything(op)
    return read_elements(sets, (values_of(op["index"]) % math.prod(sets.shape))[None])


def _col2im(op: Operation) -> PositionSets:
    """Follow `fold`: each pixel is the sum of the elements of all windows that contain it."""
    _, sets = op.first
    kernel, stride, padding, dilation = (
        per_axis(op[name], 2) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    units = [
        (size + 2 * padding[a] - dilation[a] * (kernel[a] - 1) - 1) // stride[a] + 1
        for a, size in enumerate(op.shape[-2:])
    ]
    # (N, C * k_h * k_w, units_h * units_w) to (N, C, k_h * k_w, units_h, units_w)
    sets = sets.reshape((*op.shape[:-2], math.prod(kernel), *units))
    parts = []
    for number, offsets in enumerate(itertools.product(*map(range, kernel))):
        dim = len(op.shape) - 2
        part = sets.window(dim, taps.selected(math.prod(kernel), [number])).squeeze([dim])
        for a, size in enumerate(op.shape[-2:]):
            shift = padding[a] - offsets[a] * dilation[a]
            window = taps.transposed_windows(units[a], size, 1, stride[a], shift)
            part = part.window(dim + a, window)
        parts.append(part)
    return union(op.shape, parts, compare=False)


def _unpool(op: Operation) -> PositionSets:
    """Follow `max_unpool`: unit u is written to one of the positions in its pooling window."""
    _, sets = op.first
    number = int(op.call.name[-2])
    if op.sets("indices") is None:
        planes = math.prod(op.shape[:-number])
        values = values_of(op["indices"]).reshape(planes, -1)
        targets = values + torch.arange(planes)[:, None] * math.prod(op.shape[-number:])
        elements = grouped(torch.arange(values.numel()), targets.flatten(), op.shape)
        return read_elements(sets, elements)
    own = union(sets.shape, op.operands(), compare=False)
    pool = op.made_by(op["indices"])
    if pool is None or pool.call.args[0].shape[-number:] != op.shape[-number:]:
        dims = range(len(op.shape) - number, len(op.shape))
        return own.reduce(dims).expand(op.shape)
    kernel = per_axis(pool["kernel_size"], number)
    stride = per_axis(pool["stride"], number) or kernel
    padding, dilation = per_axis(pool["padding"], number), per_axis(pool["dilation"], number)
    for axis in range(number):
        dim = len(op.shape) - number + axis
        sizes = own.shape[dim], op.shape[dim], kernel[axis], stride[axis]
        own = own.window(dim, taps.transposed_windows(*sizes, padding[axis], dilation[axis]))
    return own


def _grid_sample(op: Operation) -> PositionSets:
    """Follow `grid_sample`, which reads the input (N, C, *sizes) at the positions of a grid."""
    sets, grid = op.sets("input"), op.sets("grid")
    number = len(op.shape) - 2
    dims = range(2, 2 + number)
    if grid is not None:
        at_unit = grid.reduce([-1], keepdim=False).unsqueeze(1)
        parts = [at_unit] if sets is None else [at_unit, sets.reduce(dims)]
        return union(op.shape, parts, compare=False)
    assert sets is not None
    modes: dict[int, list[int]] = {0: [0, 1], 1: [0], 2: [-1, 0, 1, 2]}
    mode = op["interpolation_mode"]
    axes = []  # elements read along each axis: (k, N, *units)
    for axis, size in enumerate(sets.shape[2:]):
        at = values_of(op["grid"])[..., number - 1 - axis]
        aligned = op["align_corners"]
        at = (at + 1) / 2 * (size - 1) if aligned else ((at + 1) * size - 1) / 2
        pad = _PADDING[op["padding_mode"]]
        at = at if mode == 2 else pad(at, size, aligned)
        start = at.round() if mode == 1 else at.floor()
        read = torch.stack([start + offset for offset in modes[mode]])
        read = pad(read, size, aligned).round() if mode == 2 else read
        axes.append(torch.where((read < 0) | (read > size - 1), NOTHING, read).long())
    corners = []
    for choice in itertools.product(*axes):
        flat = torch.zeros_like(choice[0])
        for coordinate, size in zip(choice, sets.shape[2:], strict=True):
            flat = torch.where(coordinate < 0, -(10**12), flat * size + coordinate)
        corners.append(flat.clamp(min=NOTHING))
    plane = math.prod(sets.shape[2:])
    inside = torch.stack(corners)[:, :, None]  # (k, N, 1, *units)
    n, channels = sets.shape[:2]
    first = torch.arange(n * channels).view(1, n, channels, *[1] * number) * plane
    return read_elements(sets, torch.where(inside < 0, NOTHING, inside + first))


def _reflected(at: Tensor, size: int, aligned: bool) -> Tensor:
    low, high = (0.0, size - 1.0) if aligned else (-0.5, size - 0.5)
    span = high - low
    if span <= 0:
        return torch.zeros_like(at)
    away = (at - low).abs()
    turns = (away / span).floor()
    rest = away - turns * span
    back = torch.where(turns % 2 == 0, rest + low, span - rest + low)
    return back.clamp(0, size - 1)


_PADDING: dict[int, Callable[[Tensor, int, bool], Tensor]] = {
    0: lambda at, size, aligned: at,
    1: lambda at, size, aligned: at.clamp(0, size - 1),
    2: _reflected,
}

SCATTERING: dict[str, Rule] = {
    **dict.fromkeys(("rot90", "diag_embed"), moved),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), _scatter),
    **dict.fromkeys(("index_add", "index_reduce"), _index_add),
    "take": _take,
    **dict.fromkeys(
        (
            "as_strided_scatter",
            "block_diag",
            "diagonal_scatter",
            "masked_scatter",
            "put",
            "select_scatter",
            "slice_scatter",
        ),
        placed,
    ),
    "unfold_backward": _unfold_backward,
    **dict.fromkeys(("_embedding_bag", "_embedding_bag_forward_only"), _embedding_bag),
    "col2im": _col2im,
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), _unpool),
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d"), _grid_sample),
}
