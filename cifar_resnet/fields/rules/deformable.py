"""The rule for deformable convolution, which reads at positions that an offset moves."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from cifar_resnet.fields.positions import taps
from cifar_resnet.fields.positions.merging import concatenate, union
from cifar_resnet.fields.positions.sets import PositionSets
from cifar_resnet.fields.rules.addresses import NOTHING, read_elements
from cifar_resnet.fields.rules.operation import Operation, Rule, values_of, whole


def _deformable_convolution(op: Operation) -> PositionSets:
    """Follow torchvision's `deform_conv2d` of an input (N, C, H, W).

    With constant offsets the result is exact. Offsets that depend on the input may move a tap to
    any position, so each unit depends on the whole map and on its own offsets.
    """
    sets, weight = op.sets("input"), op.sets("weight")
    parts = [own.reduce([1]) for own in (op.sets("offset"), op.sets("mask")) if own is not None]
    if weight is not None:
        parts.append(whole(weight))
    bias = op.sets("bias")
    if bias is not None:
        parts.append(bias.reshape((-1, 1, 1)))
    if sets is not None:
        parts.append(_read(op, sets))
    return union(op.shape, parts, compare=False)


def _read(op: Operation, sets: PositionSets) -> PositionSets:
    groups, offset_groups = op["groups"], op["offset_groups"]
    channels, made = sets.shape[1], op.shape[1] // groups
    is_constant = op.sets("offset") is None
    groups_read = []
    for group in range(groups):
        mine = range(group * channels // groups, (group + 1) * channels // groups)
        parts = []
        for number in range(offset_groups):
            moved = range(
                number * channels // offset_groups, (number + 1) * channels // offset_groups
            )
            both = [channel for channel in mine if channel in moved]
            if not both:
                continue
            part = sets.window(1, taps.selected(channels, both)).reduce([1])
            if is_constant:
                part = read_elements(part, _elements(op, sets.shape, number))
            else:
                part = part.reduce([2, 3])
            parts.append(part)
        size = (op.shape[0], made, *op.shape[2:])
        groups_read.append(union(size, parts, compare=False))
    return concatenate(groups_read, [made] * groups, 1, compare=False)


def _elements(op: Operation, shape: tuple[int, ...], group: int) -> Tensor:
    """Return the elements of a map (N, 1, H, W) that each unit reads: (taps, N, 1, units...)."""
    samples, _, *sizes = shape
    kernel = op["weight"].shape[2:]
    number = math.prod(kernel)
    units = op.shape[2:]
    offsets = values_of(op["offset"]).double().view(samples, -1, number, 2, *units)[:, group]
    at = []  # rows and columns, (N, kernel, *units) each
    for axis, name in enumerate("hw"):
        steps = [torch.arange(size).double() for size in (kernel[axis], units[axis])]
        taps_at = steps[0] * op[f"dilation_{name}"] - op[f"pad_{name}"]
        taps_at = taps_at.view(-1, 1) if axis == 0 else taps_at.view(1, -1)
        taps_at = taps_at.expand(*kernel).reshape(number, 1, 1)
        units_at = steps[1] * op[f"stride_{name}"]
        at.append(offsets[:, :, axis] + taps_at + units_at.view((-1, 1) if axis == 0 else (1, -1)))
    corners = []
    first = torch.arange(samples).view(-1, 1, 1, 1) * math.prod(sizes)
    for row, column in itertools.product((0, 1), repeat=2):  # bilinear interpolation
        rows, columns = at[0].floor().long() + row, at[1].floor().long() + column
        inside = (rows >= 0) & (rows < sizes[0]) & (columns >= 0) & (columns < sizes[1])
        corners.append(torch.where(inside, first + rows * sizes[1] + columns, NOTHING))
    return torch.cat(corners, 1).movedim(1, 0).unsqueeze(2)


DEFORMABLE: dict[str, Rule] = {"torchvision::deform_conv2d": _deformable_convolution}
