"""Rules for operations that slide: convolution, pooling, interpolation, padding, unfolding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cifar_resnet.fields.positions import taps
from cifar_resnet.fields.positions.merging import concatenate, union
from cifar_resnet.fields.positions.sets import PositionSets
from cifar_resnet.fields.rules.operation import Geometry, Operation, Rule


def per_axis(value: Any, number: int) -> tuple[int, ...]:
    """Return one value for each of a number of axes, as PyTorch reads an int or a list of one."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * number if len(values) == 1 else values


def slide(
    op: Operation,
    sets: PositionSets,
    geometry: Geometry,
    windows: Callable[..., taps.Taps] = taps.windows,
) -> PositionSets:
    """Slide a window over the last dimensions, one after the other."""
    op.geometry = geometry
    number = len(geometry.kernel_size)
    for axis in range(number):
        dim = len(sets.shape) - number + axis
        window = windows(
            sets.shape[dim],
            op.shape[len(op.shape) - number + axis],
            geometry.kernel_size[axis],
            geometry.stride[axis],
            geometry.padding[axis],
            geometry.dilation[axis],
        )
        sets = sets.window(dim, window)
    return sets


def _convolution(op: Operation) -> PositionSets:
    ref, sets = op.first
    kernel_size = op["weight"].shape[2:]
    number = len(kernel_size)
    geometry = Geometry(
        kernel_size,
        per_axis(op["stride"], number),
        per_axis(op["padding"], number),
        per_axis(op["dilation"], number),
    )
    # Each output channel depends on all input channels of its group: the groups' unions are taken,
    # then each is repeated for the output channels of the group.
    channels, groups = op.shape[1], op["groups"]
    sets = sets.group(1, groups)  # (N, groups, *spatial)
    repeated = (ref.shape[0], groups, channels // groups, *ref.shape[2:])
    sets = sets.unsqueeze(2).expand(repeated)
    sets = sets.merge(1)
    windows = taps.transposed_windows if op["transposed"] else taps.windows
    sets = slide(op, sets, geometry, windows)
    # weights that depend on the input themselves, as in dynamic convolutions
    parts = [sets]
    weight, bias = op.sets("weight"), op.sets("bias")
    if weight is not None:
        parts.append(weight.reduce(range(len(weight.shape)), keepdim=False))
    if bias is not None:
        parts.append(bias.reshape((channels, *[1] * number)))
    return sets if len(parts) == 1 else union(op.shape, parts, compare=False)


def _pool(op: Operation) -> PositionSets:
    number = int(op.call.name.partition("pool")[2][0])  # 2 of max_pool2d_with_indices
    kernel = per_axis(op["kernel_size"], number)
    geometry = Geometry(
        kernel,
        per_axis(op["stride"], number) or kernel,  # an empty list is PyTorch's default
        per_axis(op["padding"], number),
        per_axis(op.call.argument("dilation", 1), number),
    )
    return slide(op, op.first[1], geometry)


def _adaptive_pool(op: Operation) -> PositionSets:
    # no geometry: the size of the window varies from unit to unit
    ref, sets = op.first
    number = int(op.call.name.partition("pool")[2][0])
    for dim in range(len(ref.shape) - number, len(ref.shape)):
        sets = sets.window(dim, taps.adaptive_windows(ref.shape[dim], op.shape[dim]))
    return sets


def _interpolate(op: Operation) -> PositionSets:
    ref, sets = op.first
    name = op.call.name
    mode = next(
        mode
        for part, mode in {
            "nearest_exact": "nearest-exact",
            "nearest": "nearest",
            "linear": "linear",
            "bicubic": "cubic",
            "lanczos": "lanczos",
        }.items()
        if part in name
    )
    number = len(ref.shape) - 2
    # the argument is `scales` in one dimension, and `scales_d`, `scales_h`, `scales_w` in others
    scales = [
        op[f"scales_{axis}"] if op.call.declares(f"scales_{axis}") else op["scales"]
        for axis in "dhw"[3 - number :]
    ]
    for axis in range(number):
        dim = 2 + axis
        window = taps.interpolated(
            ref.shape[dim],
            op.shape[dim],
            mode,
            bool(op["align_corners"]),
            scales[axis],
            name.endswith("_aa"),
        )
        sets = sets.window(dim, window)
    return sets


def _pad(mode: str) -> Rule:
    def rule(op: Operation) -> PositionSets:
        ref, sets = op.first
        pad = op["padding"] if op.call.declares("padding") else op["pad"]
        for axis in range(len(pad) // 2):  # pairs of before and after, from the last dimension
            dim = len(ref.shape) - 1 - axis
            before, after = pad[2 * axis], pad[2 * axis + 1]
            size = ref.shape[dim]
            if mode == "constant":  # like a slice that begins before the tensor; may also crop
                window = taps.sliced(size, -before, 1, size + before + after)
            else:
                window = taps.padded(size, before, after, mode)
            sets = sets.window(dim, window)
        return sets

    return rule


def _unfold_dim(op: Operation) -> PositionSets:
    """Follow `Tensor.unfold`: windows along one dimension become a new last dimension."""
    ref, sets = op.first
    dim = op["dimension"] % len(ref.shape)
    return _unfolded(sets, dim, op.shape[dim], op["size"], op["step"], 0, 1)


def _unfolded(
    sets: PositionSets, dim: int, units: int, kernel: int, stride: int, padding: int, dilation: int
) -> PositionSets:
    """Turn (..., size, ...) into (..., units, ..., kernel)."""
    rank = len(sets.shape)
    # copy t holds the element at offset t of each window; the copies are stacked at the end
    copies = [
        sets.window(
            dim,
            taps.sliced(sets.shape[dim], tap * dilation - padding, stride, units),
        ).unsqueeze(rank)
        for tap in range(kernel)
    ]
    return concatenate(copies, [1] * kernel, rank, compare=False)


def _im2col(op: Operation) -> PositionSets:
    ref, sets = op.first  # (N, C, H, W)
    kernel, stride, padding, dilation = (
        per_axis(op[name], 2) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    op.geometry = Geometry(kernel, stride, padding, dilation)
    for axis in range(2):
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        units = (ref.shape[2 + axis] + 2 * padding[axis] - reach) // stride[axis] + 1
        sets = _unfolded(
            sets, 2 + axis, units, kernel[axis], stride[axis], padding[axis], dilation[axis]
        )
    # (N, C, units_h, units_w, k_h, k_w) to (N, C * k_h * k_w, units_h * units_w)
    return sets.permute((0, 1, 4, 5, 2, 3)).reshape(op.shape)


WINDOWS: dict[str, Rule] = {
    "convolution": _convolution,
    "_convolution": _convolution,
    **dict.fromkeys(
        ("max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool2d", "avg_pool3d"), _pool
    ),
    **dict.fromkeys(
        (
            "_adaptive_avg_pool2d",
            "_adaptive_avg_pool3d",
            "adaptive_max_pool2d",
            "adaptive_max_pool3d",
        ),
        _adaptive_pool,
    ),
    **dict.fromkeys(
        (
            *(f"upsample_nearest{n}d" for n in (1, 2, 3)),
            *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)),
            "upsample_linear1d",
            "upsample_bilinear2d",
            "upsample_trilinear3d",
            "upsample_bicubic2d",
            "_upsample_bilinear2d_aa",
            "_upsample_bicubic2d_aa",
            "_upsample_lanczos2d_aa",
        ),
        _interpolate,
    ),
    "constant_pad_nd": _pad("constant"),
    **{f"reflection_pad{n}d": _pad("reflect") for n in (1, 2, 3)},
    **{f"replication_pad{n}d": _pad("replicate") for n in (1, 2, 3)},
    "_pad_circular": _pad("circular"),
    "unfold": _unfold_dim,
    "im2col": _im2col,
}
