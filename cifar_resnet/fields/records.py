"""The receptive field of one layer call: its measures, and the pixels that each unit reads."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from cifar_resnet import arguments
from cifar_resnet.fields.positions.sets import PositionSets
from cifar_resnet.fields.positions.terms import EMPTY
from cifar_resnet.fields.rules.operation import Geometry

__all__ = ["AxisField", "LayerField"]


@dataclass(frozen=True)
class AxisField:
    """The receptive field of a layer's units along one axis of the input.

    Positions are pixel indices; the center of pixel 0 is 0.0. With r the size, S the jump and P the
    padding, unit u sees the pixels -P + u * S to -P + u * S + r - 1 of an input without borders
    (Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill
    2019).

    Attributes:
        size: Extent in pixels of the largest field, holes included.
        jump: Distance in input pixels between neighboring units, a fraction after upsampling. None
            if it varies, or if there is a single unit.
        start: Center of the field of unit 0 in pixels, a half for even sizes. NaN if that unit sees
            nothing.
        padding: Number of pixels by which the field of unit 0 begins before the input. Negative if
            it begins inside the input.
        coverage: Of the pixels from the first to the last one that the middle unit reads, the
            fraction that it reads, in (0, 1]. Below 1 the field has holes, because of dilation or a
            stride larger than the kernel. None for axes longer than 4,096.
        uniform: Whether all units have fields of the same size, apart from the borders.
        is_global: Whether each unit sees everything that some layer before it saw along the axis,
            because of a global pooling, a gate, attention or a linear layer.
        merged_at: Names of the operations that merged branches of different centers or jumps.
        sees_all: Whether the field of the middle unit extends from the first to the last pixel.
    """

    size: int
    jump: Fraction | None
    start: float
    padding: int
    coverage: float | None
    uniform: bool
    is_global: bool
    merged_at: tuple[str, ...]
    sees_all: bool

    @property
    def aligned(self) -> bool:
        """Whether all branches merged so far had the same centers and jumps."""
        return not self.merged_at


@dataclass(frozen=True, eq=False)
class LayerField:
    """The output of one layer call, and what its units see.

    A unit is a spatial position of the output, for all samples and channels together: `(row,
    column)` of a feature map, `(token,)` of a sequence, `()` of a vector.

    Attributes:
        name: Name of the submodule, or of the function in it. A second call is named `name#2`.
        kind: Class of the module or name of the function.
        shape: Shape of the output, including the batch.
        geometry: Kernel size, stride, padding and dilation of a layer that slides, else None.
        source: File and line where a function is called; "" for a module.
        unit_dims: The dimensions of the output that index the units.
        input_lengths: Length of each axis of the input.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    geometry: Geometry | None
    source: str
    unit_dims: tuple[int, ...]
    input_lengths: tuple[int, ...]
    _sets: tuple[PositionSets, ...] = field(repr=False)

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """Number of units along each dimension."""
        return tuple(self.shape[dim] for dim in self.unit_dims)

    @property
    def is_module(self) -> bool:
        """Whether this is the output of a submodule rather than a function."""
        return not self.source

    @property
    def channels(self) -> int | None:
        """Number of channels, or None if no or several dimensions could be the channels."""
        others = [dim for dim in range(1, len(self.shape)) if dim not in self.unit_dims]
        return self.shape[others[0]] if len(others) == 1 else None

    @cached_property
    def axes(self) -> tuple[AxisField, ...]:
        """The receptive field along each axis of the input."""
        return tuple(self._axis(axis) for axis in range(len(self._sets)))

    @property
    def size(self) -> tuple[int, ...]:
        """Extent in pixels of the largest field, along each axis."""
        return tuple(axis.size for axis in self.axes)

    @property
    def jump(self) -> tuple[Fraction | None, ...]:
        """Distance in input pixels between neighboring units, along each axis."""
        return tuple(axis.jump for axis in self.axes)

    @property
    def start(self) -> tuple[float, ...]:
        """Center of the field of unit 0 along each axis."""
        return tuple(axis.start for axis in self.axes)

    @property
    def padding(self) -> tuple[int, ...]:
        """Number of pixels by which the field of unit 0 begins before the input, for each axis."""
        return tuple(axis.padding for axis in self.axes)

    @property
    def coverage(self) -> tuple[float | None, ...]:
        """Fraction of the pixels of the extent that the middle unit reads, along each axis."""
        return tuple(axis.coverage for axis in self.axes)

    @property
    def aligned(self) -> bool:
        """Whether all branches merged so far had the same centers and jumps."""
        return all(axis.aligned for axis in self.axes)

    @property
    def uniform(self) -> bool:
        """Whether all units have fields of the same size."""
        return all(axis.uniform for axis in self.axes)

    @property
    def is_global(self) -> tuple[bool, ...]:
        """Whether each unit sees everything that some layer before it saw, along each axis."""
        return tuple(axis.is_global for axis in self.axes)

    @property
    def sees_all(self) -> bool:
        """Whether the field of the middle unit extends from border to border along all axes."""
        return all(axis.sees_all for axis in self.axes)

    @property
    def middle(self) -> tuple[int, ...]:
        """The middle unit, or the one after the middle if their number is even."""
        return tuple(size // 2 for size in self.unit_shape)

    def center(self, unit: Sequence[int] | None = None) -> tuple[float, ...]:
        """Return the center of a unit's field as if the input had no borders, in pixels.

        Args:
            unit: One index for each of `unit_shape`. If None, the middle unit.

        Raises:
            IndexError: If there is no such unit.
            ValueError: If the unit sees nothing.
        """
        return tuple((first + last) / 2 for first, last in self.region(unit, clip=False))

    def region(
        self, unit: Sequence[int] | None = None, *, clip: bool = True
    ) -> tuple[tuple[int, int], ...]:
        """Return the first and the last pixel of a unit's field along each axis, both inclusive.

        Args:
            unit: One index for each of `unit_shape`. If None, the middle unit.
            clip: If True, return what the unit really reads of the input. If False, return the
                field as if the input had no borders, which may begin below 0.

        Raises:
            TypeError: If `clip` is neither True nor False.
            IndexError: If there is no such unit.
            ValueError: If the unit sees nothing.
        """
        arguments.boolean("clip", clip)
        index = self._index_by_dim(unit)
        regions = []
        for sets in self._sets:
            if clip:
                first, last = _extent(_at(sets, index, "seen"))
            else:
                low, high = _at(sets, index, "bounds").tolist()
                first, last = -low, high
            if last == EMPTY:
                given = tuple(self.middle if unit is None else unit)
                raise ValueError(
                    f"Unit {given} of {self.name!r} depends on no pixel: it is computed from "
                    "padding only."
                )
            regions.append((first, last))
        return tuple(regions)

    def pixels(self, unit: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """Return the pixels that a unit really reads: a sorted int64 tensor for each axis.

        Raises:
            IndexError: If there is no such unit.
            ValueError: If an axis is longer than 4,096. Only the first and the last pixel are known
                then.
        """
        index = self._index_by_dim(unit)
        pixels = []
        for sets, length in zip(self._sets, self.input_lengths, strict=True):
            seen = _at(sets, index, "seen")
            if seen.dtype != torch.uint8:
                raise ValueError(
                    f"Individual pixels are known only for axes of up to 4,096, but this one has "
                    f"{length}. Use region()."
                )
            pixels.append(seen.nonzero().flatten())
        return tuple(pixels)

    def seen(self, axis: int) -> Tensor:
        """Return what all units read: bool (length of the axis, *unit_shape).

        If the axis is longer than 4,096, holes in the fields count as read.

        Raises:
            TypeError: If `axis` is not an integer.
            IndexError: If there is no such axis.
        """
        message = f"axis must be an integer from 0 to {len(self._sets) - 1}, but got {axis!r}."
        if not arguments.is_integer(axis):
            raise TypeError(message)
        if not 0 <= axis < len(self._sets):
            raise IndexError(message)
        term = self._sets[axis].to_single_term(self.unit_dims).direct()
        shape = [size if dim in self.unit_dims else 1 for dim, size in enumerate(self.shape)]
        seen = term.seen.expand(-1, *shape).reshape(len(term.seen), *self.unit_shape)
        if seen.dtype == torch.uint8:
            return seen.bool()
        positions = torch.arange(self.input_lengths[axis], device="cpu")
        positions = positions.view(-1, *[1] * len(self.unit_shape))
        return (positions >= -seen[0]) & (positions <= seen[1])

    @property
    def dims_by_axis(self) -> tuple[tuple[int, ...], ...]:
        """Dimensions of the output that run along each axis of the input."""
        return tuple(sets.unit_dims for sets in self._sets)

    def _index_by_dim(self, unit: Sequence[int] | None) -> dict[int, int]:
        if unit is None and 0 in self.unit_shape:
            raise IndexError(
                f"Layer {self.name!r} has no units: its output of shape {self.shape} is empty."
            )
        if unit is None:
            return dict(zip(self.unit_dims, self.middle, strict=True))
        indices = tuple(unit) if isinstance(unit, Iterable) else (None,)
        if len(indices) != len(self.unit_dims) or not all(
            arguments.is_integer(index) and 0 <= index < size
            for index, size in zip(indices, self.unit_shape, strict=False)
        ):
            raise IndexError(
                f"Layer {self.name!r} has units of shape {self.unit_shape}, so a unit must be "
                f"{len(self.unit_dims)} indices, each at least 0 and below that size, "
                f"but got {unit!r}."
            )
        return dict(zip(self.unit_dims, map(int, indices), strict=True))

    def _axis(self, axis: int) -> AxisField:
        sets = self._sets[axis]
        if 0 in self.unit_shape:  # an empty output, as of a slice that selects nothing
            return AxisField(
                size=0,
                jump=sets.jump,
                start=math.nan,
                padding=0,
                coverage=None,
                uniform=True,
                is_global=sets.is_global,
                merged_at=sets.merged_at,
                sees_all=False,
            )
        # The extent of all units, as if there were no borders. Of the middle unit also what it
        # really reads, because coverage and `sees_all` depend on the borders.
        bounds = sets.extent()
        lows, highs = -bounds[0], bounds[1]
        known = highs != EMPTY
        sizes = (highs - lows + 1)[known]
        middle = _at(sets, self._index_by_dim(None), "seen")
        first, last = _extent(middle)
        low, high = int(lows.flatten()[0]), int(highs.flatten()[0])  # unit 0
        is_set = middle.dtype == torch.uint8 and last != EMPTY
        return AxisField(
            size=int(sizes.max()) if sizes.numel() else 0,
            jump=sets.jump,
            start=math.nan if high == EMPTY else (low + high) / 2,
            padding=0 if high == EMPTY else -low,
            coverage=int(middle.sum()) / (last - first + 1) if is_set else None,
            uniform=bool(known.all()) and bool((sizes == sizes.max()).all()),
            is_global=sets.is_global,
            merged_at=sets.merged_at,
            sees_all=(first, last) == (0, self.input_lengths[axis] - 1),
        )


def _at(sets: PositionSets, index: Mapping[int, int], what: str) -> Tensor:
    """Return `seen` or `bounds` of one unit, given its index by dimension: (L,) or (2,)."""
    found = []
    for term in sets.terms:
        at = [index.get(dim, 0) if size > 1 else 0 for dim, size in enumerate(term.dims)]
        values: Tensor = getattr(term, what)
        if term.index is not None:
            at = [int(term.index[tuple(at)])]
        for dim in reversed(range(len(at))):  # backwards, as `select` removes a dimension
            values = values.select(dim + 1, at[dim])
        found.append(values)
    return torch.stack(found).amax(0)


def _extent(seen: Tensor) -> tuple[int, int]:
    """Return the first and the last position of one set. The last is `EMPTY` for the empty set."""
    if seen.dtype != torch.uint8:  # bounds of a long axis: minus the first, and the last
        return -int(seen[0]), int(seen[1])
    positions = seen.nonzero()
    if not len(positions):
        return EMPTY, EMPTY
    return int(positions[0]), int(positions[-1])
