"""What was found for each layer call. It knows units and pixels; it must not know how they were
found, and draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import torch
from torch import Tensor

from cifar_resnet import arguments
from cifar_resnet.fields.positions.support import Support
from cifar_resnet.fields.positions.terms import NOTHING
from cifar_resnet.fields.rules.operation import Geometry

__all__ = ["AxisField", "LayerField"]


@dataclass(frozen=True)
class AxisField:
    """The receptive field of a layer's units along one axis of the input.

    Positions are pixel indices; the center of pixel 0 is 0.0. With r the size, S the stride and P
    the padding, unit u sees the pixels -P + u * S to -P + u * S + r - 1 of an input that goes on
    beyond its borders (Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural
    Networks", Distill 2019).

    Attributes:
        size: Extent in pixels of the largest field, holes included.
        stride: Pixels from one unit to the next ("jump"), a fraction after upsampling; None where
            that varies from unit to unit or no unit is left to step to.
        start: Center of unit 0 in pixels, with halves for even sizes; NaN if it sees nothing.
        padding: Pixels by which the field of unit 0 begins before the input; negative if it begins
            inside.
        coverage: Share of the pixels between the first and the last one that the middle unit reads
            which it really reads, in (0, 1]; below 1 there are holes (stride over kernel,
            dilation). None for an axis longer than 4,096.
        uniform: Whether all units, away from the borders, have fields of one size.
        is_global: Whether every unit sees, through a pooling, a gate, an attention or a linear
            layer, all that there was along the axis at some layer before.
        merged_at: Names of the operations that merged branches of different centers or strides.
        sees_all: Whether the middle unit really reads from the first to the last pixel.
    """

    size: int
    stride: Fraction | None
    start: float
    padding: int
    coverage: float | None
    uniform: bool
    is_global: bool
    merged_at: tuple[str, ...]
    sees_all: bool

    @property
    def aligned(self) -> bool:
        """Whether all branches that were merged had the same centers and strides."""
        return not self.merged_at


@dataclass(frozen=True, eq=False)
class LayerField:
    """The output of one layer call, and what its units see.

    A unit is an element of the output without regard to batch and channel: `(row, column)` of a
    feature map, `(token,)` of a sequence, `()` of a vector.

    Attributes:
        name: Name of the submodule, or of the function in it; `#2` marks the second call.
        kind: Class of the module or name of the function.
        shape: Shape of the output, with the batch.
        geometry: Kernel size, stride, padding and dilation of a layer that slides; else None.
        source: File and line of a function's call; empty for a module.
        unit_dims: The dimensions of the output that number the units.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    geometry: Geometry | None
    source: str
    unit_dims: tuple[int, ...]
    input_lengths: tuple[int, ...]
    _supports: tuple[Support, ...] = field(repr=False)

    @property
    def unit_shape(self) -> tuple[int, ...]:
        """Number of units in each direction."""
        return tuple(self.shape[dim] for dim in self.unit_dims)

    @property
    def is_module(self) -> bool:
        """Whether this is a submodule's output, not a function's."""
        return not self.source

    @property
    def channels(self) -> int | None:
        """Elements for each unit; None if the output has no or several dimensions for that."""
        others = [dim for dim in range(1, len(self.shape)) if dim not in self.unit_dims]
        return self.shape[others[0]] if len(others) == 1 else None

    @cached_property
    def axes(self) -> tuple[AxisField, ...]:
        """One for each axis of the input."""
        return tuple(self._axis(axis) for axis in range(len(self._supports)))

    @property
    def size(self) -> tuple[int, ...]:
        """Extent in pixels along each axis."""
        return tuple(axis.size for axis in self.axes)

    @property
    def stride(self) -> tuple[Fraction | None, ...]:
        """Pixels from unit to unit along each axis."""
        return tuple(axis.stride for axis in self.axes)

    @property
    def start(self) -> tuple[float, ...]:
        """Center of unit 0 along each axis."""
        return tuple(axis.start for axis in self.axes)

    @property
    def padding(self) -> tuple[int, ...]:
        """Pixels before the input along each axis."""
        return tuple(axis.padding for axis in self.axes)

    @property
    def coverage(self) -> tuple[float | None, ...]:
        """Share of pixels read along each axis."""
        return tuple(axis.coverage for axis in self.axes)

    @property
    def aligned(self) -> bool:
        """Whether all branches merged so far had the same centers and strides."""
        return all(axis.aligned for axis in self.axes)

    @property
    def uniform(self) -> bool:
        """Whether all units have fields of one size."""
        return all(axis.uniform for axis in self.axes)

    @property
    def is_global(self) -> tuple[bool, ...]:
        """Along which axes every unit sees all that there was at some layer before."""
        return tuple(axis.is_global for axis in self.axes)

    @property
    def sees_all(self) -> bool:
        """Whether the middle unit reads from border to border along each axis."""
        return all(axis.sees_all for axis in self.axes)

    @property
    def middle(self) -> tuple[int, ...]:
        """The unit in the middle, after it where their number is even."""
        return tuple(size // 2 for size in self.unit_shape)

    def center(self, unit: Sequence[int] | None = None) -> tuple[float, ...]:
        """Center of a unit's field as if the input had no borders, in pixels.

        Args:
            unit: One index for each of `unit_shape`; None for the middle one.

        Raises:
            IndexError: If there is no such unit.
            ValueError: If the unit sees nothing.
        """
        return tuple((first + last) / 2 for first, last in self.region(unit, clip=False))

    def region(
        self, unit: Sequence[int] | None = None, *, clip: bool = True
    ) -> tuple[tuple[int, int], ...]:
        """First and last pixel of a unit's field along each axis, both inclusive.

        Args:
            unit: One index for each of `unit_shape`; None for the middle one.
            clip: True for the pixels of the input that the unit really reads. False for the field
                as if the input went on beyond its borders, which may begin below 0.

        Raises:
            TypeError: If `clip` is neither True nor False.
            IndexError: If there is no such unit.
            ValueError: If the unit sees nothing.
        """
        arguments.boolean("clip", clip)
        place = self._place(unit)
        regions = []
        for support in self._supports:
            if clip:
                first, last = _extent(_at(support, place, "seen"))
            else:
                low, high = _at(support, place, "bounds").tolist()
                first, last = -low, high
            if last == NOTHING:
                given = tuple(self.middle if unit is None else unit)
                raise ValueError(
                    f"Unit {given} of {self.name!r} depends on no pixel: it is made of padding "
                    "only."
                )
            regions.append((first, last))
        return tuple(regions)

    def pixels(self, unit: Sequence[int] | None = None) -> tuple[Tensor, ...]:
        """The pixels that a unit really reads: a sorted int64 tensor for each axis.

        Raises:
            IndexError: If there is no such unit.
            ValueError: If the axis is longer than 4,096, where only first and last are known.
        """
        place = self._place(unit)
        found = []
        for support, length in zip(self._supports, self.input_lengths, strict=True):
            seen = _at(support, place, "seen")
            if seen.dtype != torch.uint8:
                raise ValueError(
                    f"The single pixels are known for axes up to 4,096 only, but this one has "
                    f"{length}. Use region()."
                )
            found.append(seen.nonzero().flatten())
        return tuple(found)

    def seen(self, axis: int) -> Tensor:
        """All units at once: bool (length of the axis, *unit_shape), True where a pixel is read.

        Raises:
            TypeError: If `axis` is no integer.
            IndexError: If there is no such axis.
        """
        message = f"axis must be an integer from 0 to {len(self._supports) - 1}, but got {axis!r}."
        if not arguments.is_integer(axis):
            raise TypeError(message)
        if not 0 <= axis < len(self._supports):
            raise IndexError(message)
        term = self._supports[axis].collapsed(self.unit_dims)
        shape = [size if dim in self.unit_dims else 1 for dim, size in enumerate(self.shape)]
        seen = term.seen.expand(-1, *shape).reshape(-1, *self.unit_shape)
        if seen.dtype == torch.uint8:
            return seen.bool()
        positions = torch.arange(self.input_lengths[axis]).view(-1, *[1] * len(self.unit_shape))
        return (positions >= -seen[0]) & (positions <= seen[1])

    def _place(self, unit: Sequence[int] | None) -> dict[int, int]:
        if unit is None:
            return dict(zip(self.unit_dims, self.middle, strict=True))
        indices = tuple(unit) if isinstance(unit, Iterable) else (None,)
        if len(indices) != len(self.unit_dims) or not all(
            arguments.is_integer(index) and 0 <= index < size
            for index, size in zip(indices, self.unit_shape, strict=False)
        ):
            raise IndexError(
                f"Layer {self.name!r} has units of shape {self.unit_shape}, so a unit has "
                f"{len(self.unit_dims)} indices, each from 0 and below that size, "
                f"but got {unit!r}."
            )
        return dict(zip(self.unit_dims, map(int, indices), strict=True))

    def _axis(self, axis: int) -> AxisField:
        support = self._supports[axis]
        bounds = support.extent()
        lows, highs = -bounds[0], bounds[1]
        known = highs != NOTHING
        sizes = (highs - lows + 1)[known]
        middle = _at(support, self._place(None), "seen")
        first, last = _extent(middle)
        low, high = int(lows.flatten()[0]), int(highs.flatten()[0])
        is_set = middle.dtype == torch.uint8 and last != NOTHING
        return AxisField(
            size=int(sizes.max()) if sizes.numel() else 0,
            stride=support.stride,
            start=math.nan if high == NOTHING else (low + high) / 2,
            padding=0 if high == NOTHING else -low,
            coverage=int(middle.sum()) / (last - first + 1) if is_set else None,
            uniform=bool(known.all()) and bool((sizes == sizes.max()).all()),
            is_global=support.shared,
            merged_at=support.misaligned,
            sees_all=(first, last) == (0, self.input_lengths[axis] - 1),
        )


def _at(support: Support, place: Mapping[int, int], what: str) -> Tensor:
    """The union of the terms at one unit: (L,) or (2,)."""
    found = []
    for term in support.terms:
        values: Tensor = getattr(term, what)
        for dim in reversed(range(len(term.dims))):
            values = values.select(dim + 1, place.get(dim, 0) if term.dims[dim] > 1 else 0)
        found.append(values)
    return torch.stack(found).amax(0)


def _extent(seen: Tensor) -> tuple[int, int]:
    if seen.dtype != torch.uint8:
        return -int(seen[0]), int(seen[1])
    positions = seen.nonzero()
    if not len(positions):
        return NOTHING, NOTHING
    return int(positions[0]), int(positions[-1])
