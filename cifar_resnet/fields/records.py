"""What was found for each layer call. It knows units and pixels; it must not know how they were
found, and draws nothing.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cifar_resnet.fields.operation import Geometry
from cifar_resnet.fields.support import NOTHING, Support

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

__all__ = ["AxisField", "LayerField", "ReceptiveFields"]


@dataclass(frozen=True)
class AxisField:
    """The receptive field of a layer's units along one axis of the input.

    Positions are pixel indices; the centre of pixel 0 is 0.0. With r the size, S the stride and P
    the padding, unit u sees the pixels -P + u * S to -P + u * S + r - 1 of an input that goes on
    beyond its borders (Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural
    Networks", Distill 2019).

    Attributes:
        size: Extent in pixels of the largest field, holes included.
        stride: Pixels from one unit to the next ("jump"), a fraction after upsampling; None where
            that varies from unit to unit or no unit is left to step to.
        start: Centre of unit 0 in pixels, with halves for even sizes; NaN if it sees nothing.
        padding: Pixels by which the field of unit 0 begins before the input; negative if it begins
            inside.
        coverage: Share of the pixels between the first and the last one that the middle unit reads
            which it really reads, in (0, 1]; below 1 there are holes (stride over kernel,
            dilation). None for an axis longer than 4,096.
        uniform: Whether all units, away from the borders, have fields of one size.
        is_global: Whether every unit sees, through a pooling, a gate, an attention or a linear
            layer, all that there was along the axis at some layer before.
        merged_at: Names of the operations that merged branches of different centres or strides.
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
        """Whether all branches that were merged had the same centres and strides."""
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
    _supports: tuple[Support, ...]

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
        """Centre of unit 0 along each axis."""
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
        """Whether all branches merged so far had the same centres and strides."""
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
        """Centre of a unit's field as if the input had no borders, in pixels.

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
            IndexError: If there is no such unit.
            ValueError: If the unit sees nothing.
        """
        place = self._place(unit)
        regions = []
        for support in self._supports:
            if clip:
                first, last = _extent(_at(support, place, "seen"))
            else:
                low, high = _at(support, place, "bounds").tolist()
                first, last = -low, high
            if last == NOTHING:
                raise ValueError(
                    f"Unit {tuple(unit or self.middle)} of {self.name!r} depends on no pixel: "
                    "it is made of padding only."
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
        """All units at once: bool (length of the axis, *unit_shape), True where a pixel is read."""
        term = self._supports[axis].collapsed(self.unit_dims)
        shape = [size if dim in self.unit_dims else 1 for dim, size in enumerate(self.shape)]
        seen = term.seen.expand(-1, *shape).reshape(-1, *self.unit_shape)
        if seen.dtype == torch.uint8:
            return seen.bool()
        positions = torch.arange(self.input_lengths[axis]).view(-1, *[1] * len(self.unit_shape))
        return (positions >= -seen[0]) & (positions <= seen[1])

    def _place(self, unit: Sequence[int] | None) -> dict[int, int]:
        unit = self.middle if unit is None else tuple(unit)
        if len(unit) != len(self.unit_dims) or not all(
            isinstance(index, int) and 0 <= index < size
            for index, size in zip(unit, self.unit_shape, strict=False)
        ):
            raise IndexError(
                f"Layer {self.name!r} has units of shape {self.unit_shape}, so a unit has "
                f"{len(self.unit_dims)} indices, each from 0 and below that size, "
                f"but got {unit!r}."
            )
        return dict(zip(self.unit_dims, unit, strict=True))

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
        index = [place.get(dim, 0) if size > 1 else 0 for dim, size in enumerate(term.dims)]
        found.append(values[(slice(None), *index)])
    return torch.stack(found).amax(0)


def _extent(seen: Tensor) -> tuple[int, int]:
    if seen.dtype != torch.uint8:
        return -int(seen[0]), int(seen[1])
    positions = seen.nonzero()
    if not len(positions):
        return NOTHING, NOTHING
    return int(positions[0]), int(positions[-1])


class ReceptiveFields(Mapping[str, LayerField]):
    """The layer calls of a network in order, by name, each with its receptive field.

    A block's name, such as `layer1` of a ResNet, gives the record of its output, though only
    single layers are listed.

    Attributes:
        input_shape: Shape of the input that was followed.
        output: The record of the network's (first) output.
        blocks: The records of the blocks.
        outputs: Records of all outputs: by key if the network returns a dictionary, else by number.
        skipped: Operations without a rule that were taken for pointwise on request.
        ignored: Names of the layers left out on request.
    """

    def __init__(
        self,
        layers: Sequence[LayerField],
        blocks: Mapping[str, LayerField],
        outputs: Mapping[str, LayerField],
        input_shape: tuple[int, ...],
        input_lengths: tuple[int, ...],
        skipped: Sequence[str] = (),
        ignored: Sequence[str] = (),
    ) -> None:
        self._layers = {layer.name: layer for layer in layers}
        self.blocks = dict(blocks)
        self.outputs = dict(outputs)
        self.input_shape = input_shape
        self.input_lengths = input_lengths
        self.skipped = tuple(skipped)
        self.ignored = tuple(ignored)

    @property
    def output(self) -> LayerField:
        return next(iter(self.outputs.values()))

    def __getitem__(self, name: str) -> LayerField:
        if name in self._layers:
            return self._layers[name]
        if name in self.blocks:
            return self.blocks[name]
        names = [*self._layers, *self.blocks]
        close = difflib.get_close_matches(str(name), names, n=5, cutoff=0.5)
        hint = f"Close ones: {', '.join(close)}." if close else f"There are: {', '.join(names)}."
        raise KeyError(f"No layer of this network is called {name!r}. {hint}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def first_to_see_all(self) -> LayerField | None:
        """The first layer whose middle unit reads from border to border; None if no one does."""
        return next((layer for layer in self.values() if layer.sees_all), None)

    def table(self, *, every_layer: bool = False) -> str:
        """A text table: layer, kind, kernel, stride, padding, output, channels, jump and field.

        Args:
            every_layer: Also the layers that change neither the field, nor its stride, nor the
                number of units, such as ReLU.
        """
        from cifar_resnet.fields.tables import text_table

        return text_table(self, every_layer)

    def to_markdown(self, *, every_layer: bool = False) -> str:
        """The same table in Markdown."""
        from cifar_resnet.fields.tables import markdown_table

        return markdown_table(self, every_layer)

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """All records as plain numbers, strings and lists, ready for `json.dumps`."""
        from cifar_resnet.fields.tables import as_dict

        return {name: as_dict(layer) for name, layer in self.items()}

    def plot(
        self,
        image: ArrayLike | Tensor | None = None,
        layer: str | None = None,
        units: Sequence[Sequence[int]] | None = None,
        *,
        fig: Figure | None = None,
    ) -> Figure:
        """Draw the fields of units on an image: what each reads, and dashed what it would read if
        the image went on beyond its frame.

        Args:
            image: (C, H, W) or (H, W), float in [0, 1] or uint8, of the analysed height and width;
                None for an empty frame.
            layer: Name of a layer or a block; None for the output, or the last layer with several
                units if the output has one only.
            units: Units of that layer; None for the middle one and two at corners.
            fig: Figure to draw into; None for a new one, made without pyplot.

        Returns:
            The figure.

        Raises:
            KeyError: If there is no such layer.
            IndexError: If there is no such unit.
            ValueError: If the network's input is not an image with two axes, or the image given
                has another size.
        """
        from cifar_resnet.fields.figures import plot_fields

        return plot_fields(self, image, layer, units, fig)

    def plot_growth(self, *, fig: Figure | None = None) -> Figure:
        """Draw the field's size against depth, with the input's size, and name the first layer
        whose middle unit reads from border to border.

        Args:
            fig: Figure to draw into; None for a new one, made without pyplot.
        """
        from cifar_resnet.fields.figures import plot_growth

        return plot_growth(self, fig)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        sizes = " x ".join(map(str, self.output.size))
        return f"<ReceptiveFields of {len(self)} layers; the output sees {sizes}>"
