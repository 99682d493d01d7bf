"""Rules for the operations that slide: convolution, pooling, interpolation, padding, unfolding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cifar_resnet.fields.positions import taps
from cifar_resnet.fields.positions.merging import concatenate, union
from cifar_resnet.fields.positions.support import Support
from cifar_resnet.fields.rules.operation import Geometry, Operation, Rule


def _each(value: Any, number: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * number if len(values) == 1 else values


def _slide(op: Operation, support: Support, geometry: Geometry) -> Support:
    """A window over the last dimensions."""
    op.geometry = geometry
    number = len(geometry.kernel_size)
    for axis in range(number):
        dim = len(support.shape) - number + axis
        window = taps.windows(
            support.shape[dim],
            op.shape[len(op.shape) - number + axis],
            geometry.kernel_size[axis],
            geometry.stride[axis],
            geometry.padding[axis],
            geometry.dilation[axis],
        )
        support = support.window(dim, window)
    return support


def _convolution(op: Operation) -> Support:
    ref, support = op.first
    kernel_size = op["weight"].shape[2:]
    number = len(kernel_size)
    geometry = Geometry(
        kernel_size,
        _each(op["stride"], number),
        _each(op["padding"], number),
        _each(op["dilation"], number),
    )
    channels, groups = op.shape[1], op["groups"]
    support = support.groups(1, groups)  # (N, groups, ...)
    repeated = (ref.shape[0], groups, channels // groups, *ref.shape[2:])
    support = support.insert(2).expand(repeated)
    support = support.reshape((ref.shape[0], channels, *ref.shape[2:]))
    if op["transposed"]:
        op.geometry = geometry
        for axis in range(number):
            window = taps.transposed_windows(
                ref.shape[2 + axis],
                op.shape[2 + axis],
                geometry.kernel_size[axis],
                geometry.stride[axis],
                geometry.padding[axis],
                geometry.dilation[axis],
            )
            support = support.window(2 + axis, window)
    else:
        support = _slide(op, support, geometry)
    parts = [support]
    weight, bias = op.support("weight"), op.support("bias")
    if weight is not None:
        parts.append(weight.reduce(range(len(weight.shape)), keepdim=False))
    if bias is not None:
        parts.append(bias.reshape((channels, *[1] * number)))
    return support if len(parts) == 1 else union(op.shape, parts, compare=False)


def _pool(op: Operation) -> Support:
    number = int(op.call.name.partition("pool")[2][0])
    kernel = _each(op["kernel_size"], number)
    geometry = Geometry(
        kernel,
        _each(op["stride"], number) or kernel,
        _each(op["padding"], number),
        _each(op.call.argument("dilation", 1), number),
    )
    return _slide(op, op.first[1], geometry)


def _adaptive_pool(op: Operation) -> Support:
    ref, support = op.first
    number = int(op.call.name.partition("pool")[2][0])
    for dim in range(len(ref.shape) - number, len(ref.shape)):
        support = support.window(dim, taps.adaptive_windows(ref.shape[dim], op.shape[dim]))
    return support


def _interpolate(op: Operation) -> Support:
    ref, support = op.first
    name = op.call.name
    mode = next(
        mode
        for part, mode in {
            "nearest_exact": "nearest-exact",
            "nearest": "nearest",
            "linear": "linear",
            "bicubic": "cubic",
        }.items()
        if part in name
    )
    number = len(ref.shape) - 2
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
        support = support.window(dim, window)
    return support


def _pad(mode: str) -> Rule:
    def rule(op: Operation) -> Support:
        ref, support = op.first
        pad = op["padding"] if op.call.declares("padding") else op["pad"]
        for axis in range(len(pad) // 2):
            dim = len(ref.shape) - 1 - axis
            before, after = pad[2 * axis], pad[2 * axis + 1]
            size = ref.shape[dim]
            if mode == "constant":
                window = taps.sliced(size, -before, 1, size + before + after)
            else:
                window = taps.padded(size, before, after, mode)
            support = support.window(dim, window)
        return support

    return rule


def _unfold_dim(op: Operation) -> Support:
    """`Tensor.unfold`: windows along one dimension become a new last dimension."""
    ref, support = op.first
    dim = op["dimension"] % len(ref.shape)
    return _unfolded(support, dim, op.shape[dim], op["size"], op["step"], 0, 1)


def _unfolded(
    support: Support, dim: int, units: int, kernel: int, stride: int, padding: int, dilation: int
) -> Support:
    """(..., size, ...) to (..., units, ..., kernel)."""
    rank = len(support.shape)
    copies = [
        support.window(
            dim,
            taps.sliced(support.shape[dim], tap * dilation - padding, stride, units),
        ).insert(rank)
        for tap in range(kernel)
    ]
    return concatenate(copies, [1] * kernel, rank, compare=False)


def _im2col(op: Operation) -> Support:
    ref, support = op.first  # (N, C, H, W)
    kernel, stride, padding, dilation = (
        _each(op[name], 2) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    op.geometry = Geometry(kernel, stride, padding, dilation)
    for axis in range(2):
        reach = dilation[axis] * (kernel[axis] - 1) + 1
        units = (ref.shape[2 + axis] + 2 * padding[axis] - reach) // stride[axis] + 1
        support = _unfolded(
            support, 2 + axis, units, kernel[axis], stride[axis], padding[axis], dilation[axis]
        )
    return support.permute((0, 1, 4, 5, 2, 3)).reshape(op.shape)  # (N, C * k * k, units)


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
