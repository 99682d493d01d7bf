"""Determine which axes of a layer's output are the rows and columns of the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnet.misclassified.execution import tensor_of, watch_outputs

# Each image of the probe has other values than the first one in one of these bands of rows or
# columns.
_BANDS = 4
_IMAGES = 1 + 2 * _BANDS
_MAX_SPECIAL_TOKENS = 16  # class, distillation and register tokens

# What a band changes most is at the place of the band. The place of each index of an axis is given
# in bands, averaged with the change that each band causes as the weight. It is compared with the
# place expected in the image: by the correlation, and by the distance in bands from one end of the
# axis to the other, which is small where the network mixes all places.
_MIN_CORRELATION = 0.75
_MIN_DISTANCE = 0.1
_MIN_OF_LARGEST = 1 / 3  # of the distances along all axes
_MAX_ROUNDS = 4  # of other noise, if the axes are not clear

# Operations on the maps of an image, (N, C, height, width), and operations that keep the axes.
_IMAGE_OPERATIONS = (
    "Convolution", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeGroupNorm",
    "MaxPool2DWithIndices", "AvgPool2D", "AdaptiveAvgPool2D", "AdaptiveMaxPool2D",
    "UpsampleBilinear2D", "UpsampleNearest2D", "UpsampleBicubic2D",
)  # fmt: skip
_ELEMENTWISE = (
    "Add", "Sub", "Mul", "Div", "Relu", "Threshold", "Gelu", "Silu", "Mish", "Hardswish",
    "Hardsigmoid", "Hardtanh", "LeakyRelu", "Elu", "Selu", "Celu", "Softplus", "Sigmoid", "Tanh",
    "Clamp", "ClampMin", "ClampMax", "PreluKernel", "Clone", "Alias", "NativeDropout", "ToCopy",
)  # fmt: skip
_MAX_OPERATIONS = 200


@dataclass(frozen=True)
class Layout:
    """Axes of a layer's output.

    Attributes:
        images: Axis of the images.
        rows: Axis of the rows; of all tokens if `columns` is None.
        columns: Axis of the columns.
        grid: Height and width.
        first: Number of special tokens before those of the image.
    """

    images: int
    rows: int
    columns: int | None
    grid: tuple[int, int]
    first: int = 0

    def to_map(self, values: Tensor) -> Tensor:
        """Convert an output to (N, C, height, width); all other axes become channels."""
        if (self.images, self.rows, self.columns, values.dim()) == (0, 2, 3, 4):
            return values
        last = (self.rows,) if self.columns is None else (self.rows, self.columns)
        values = values.movedim((self.images, *last), (0, *range(-len(last), 0)))
        if self.columns is None:
            values = values[..., self.first : self.first + self.grid[0] * self.grid[1]]
        return values.reshape(len(values), -1, *self.grid)


def layout_of_image_operation(output: Tensor) -> Layout | None:
    """Return the layout (N, C, height, width) if the output is that of a convolution, a pooling or
    a normalization of maps, possibly followed by elementwise operations; None if it is not known.
    """
    if output.dim() != 4:
        return None
    queue = [output.grad_fn]
    for node in queue:  # it grows
        if node is None or len(queue) > _MAX_OPERATIONS:
            continue
        name = node.name().rpartition("Backward")[0]
        if tuple(node._input_metadata[0].shape) != output.shape:
            continue  # a factor or summand that is broadcast
        if name in _IMAGE_OPERATIONS:
            return Layout(0, 2, 3, (output.shape[2], output.shape[3]))
        if name in _ELEMENTWISE:
            queue.extend(following for following, _ in node.next_functions)
    return None


def probe_layouts(
    model: nn.Module,
    image: Tensor,
    outputs: Mapping[str, tuple[nn.Module, Tensor]],
    known: Mapping[torch.Size, set[Layout]],
) -> dict[str, Layout]:
    """Determine the layouts of outputs from the changes that each part of an image causes.

    Args:
        model: The model.
        image: One input (1, C, H, W), whose range of values the probe has.
        outputs: Submodules and their outputs for the one image, by name.
        known: Layouts of other outputs of the model, by shape.

    Returns:
        The layouts that were found: an output depends on the rows and columns of the image, each
        along one axis, or along an axis of tokens in the order of the rows. An output that mixes
        all places, as that of attention does, has the layout of the others of its shape.
    """
    layouts: dict[str, Layout] = {}
    changes = {name: _Changes(values.shape) for name, (_, values) in outputs.items()}
    by_shape = {shape: {*found} for shape, found in known.items()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(_MAX_ROUNDS):
        unclear = [name for name, own in changes.items() if own.may_be_a_map()]
        if not unclear:
            break
        modules = {name: outputs[name][0] for name in unclear}
        with torch.no_grad(), watch_outputs(modules, lambda name, each: changes[name].add(each)):
            model(_probe_images(image, generator))
        for name in unclear:
            layout = changes[name].layout()
            if layout is not None:
                layouts[name] = layout
                by_shape.setdefault(outputs[name][1].shape, set()).add(layout)
        for name in changes:
            alike = by_shape.get(outputs[name][1].shape, set())
            if name not in layouts and len(alike) == 1 and changes[name].allow(*alike):
                layouts[name] = next(iter(alike))
        for name in layouts:
            changes.pop(name, None)
    return layouts


def _probe_images(image: Tensor, generator: torch.Generator) -> Tensor:
    """Return noise in the range of an image, and copies that differ in one band each."""
    values = image.detach()
    low, high = float(values.min()), float(values.max())

    def noise() -> Tensor:
        uniform = torch.rand(values.shape[1:], generator=generator, dtype=torch.float, device="cpu")
        scaled = low + uniform * ((high - low) or 1.0)
        return (scaled if values.is_floating_point() else scaled.round()).to(values)

    images = noise().repeat(_IMAGES, 1, 1, 1)
    for number in range(2 * _BANDS):
        axis, band = divmod(number, _BANDS)
        size = values.shape[2 + axis]
        places = slice(size * band // _BANDS, size * (band + 1) // _BANDS)
        part = (slice(None), places) if axis == 0 else (slice(None), slice(None), places)
        images[1 + number][part] = noise()[part]
    # although no gradient is computed: activation checkpoints warn if there could be none
    return images.requires_grad_(images.is_floating_point())


class _Changes:
    """The changes of one output that the bands of the image cause, summed along each axis.

    Args:
        shape: Shape of the output for one image.
    """

    def __init__(self, shape: torch.Size) -> None:
        self._shape = shape
        self._images: int | None = None  # axis of the images
        self._sums: dict[int, Tensor] = {}  # axis: (2 * bands, size)
        self._is_readable = True

    def add(self, output: Any) -> None:
        """Add the changes in an output for the images of the probe."""
        values = tensor_of(output)
        shape = () if values is None else tuple(values.shape)
        other = [
            axis
            for axis, sizes in enumerate(zip(shape, self._shape, strict=False))
            if len({*sizes}) > 1
        ]
        if len(shape) != len(self._shape) or len(other) != 1 or shape[other[0]] != _IMAGES:
            self._is_readable = False  # such as windows of several images along one axis
            return
        assert values is not None
        self._images = other[0]
        values = values.dequantize() if values.is_quantized else values.detach()
        values = values.movedim(self._images, 0).float()
        squares = (values[1:] - values[0]).square()
        tiny = torch.finfo(torch.double).tiny
        for number, axis in enumerate(self._axes()):
            others = [each for each in range(1, squares.dim()) if each != number + 1]
            sums = (squares.sum(others) if others else squares).cpu().double()
            sums = sums / sums.mean(1, keepdim=True).clamp(min=tiny)
            self._sums[axis] = self._sums.get(axis, torch.zeros(())) + sums

    def may_be_a_map(self) -> bool:
        """Return whether nothing is known yet, or rows and columns are not clear."""
        if not self._is_readable:
            return False
        places = self._places().values()
        return not places or all(
            any(_fit(own[kind], _ramp(own.shape[1]))[0] > 0.5 for own in places) for kind in (0, 1)
        )

    def layout(self) -> Layout | None:
        """Return the layout, or None if the axes are not clear."""
        if self._images is None or not self._is_readable:
            return None
        places = self._places()
        rows, columns = (
            _axes_along({a: own[kind] for a, own in places.items()}) for kind in (0, 1)
        )
        if len(rows) == len(columns) == 1 and rows != columns:
            grid = self._shape[rows[0]], self._shape[columns[0]]
            return Layout(self._images, rows[0], columns[0], grid)
        if len(rows) == 1 and not columns:
            layout = _tokens(self._images, rows[0], places.pop(rows[0]))
            if layout is not None and not any(
                _are_tokens_of(layout, own) for own in places.values()
            ):
                return layout
        return None

    def allow(self, layout: Layout) -> bool:
        """Return whether no axis contradicts a layout, such as one whose places decrease."""
        along = layout.rows, layout.rows if layout.columns is None else layout.columns
        for axis, own in self._places().items():
            ramp = _ramp(own.shape[1])
            for kind in (0, 1):
                if _is_good(_fit(-own[kind], ramp)):
                    return False
                if axis != along[kind] and _is_good(_fit(own[kind], ramp)):
                    return False
        return True

    def _axes(self) -> list[int]:
        return [axis for axis in range(len(self._shape)) if axis != self._images]

    def _places(self) -> dict[int, Tensor]:
        """Return the place of each index of each axis in the image: the mean number of the band of
        rows, and of the band of columns, weighted with the changes; (2, size).
        """
        bands = torch.arange(_BANDS, dtype=torch.double, device="cpu")
        result = {}
        for axis, sums in self._sums.items():
            weights = sums.view(2, _BANDS, -1)
            total = weights.sum(1).clamp(min=torch.finfo(torch.double).tiny)
            result[axis] = torch.einsum("b,abi->ai", bands, weights) / total
        return result


def _axes_along(places: Mapping[int, Tensor]) -> list[int]:
    """Return the axes along which the place in the image increases."""
    fits = {axis: _fit(own, _ramp(len(own))) for axis, own in places.items()}
    largest = max((distance for _, distance in fits.values()), default=0.0)
    return [
        axis for axis, fit in fits.items() if _is_good(fit) and fit[1] >= largest * _MIN_OF_LARGEST
    ]


def _ramp(size: int) -> Tensor:
    return torch.linspace(0, 1, size, dtype=torch.double, device="cpu")


def _places_of_tokens(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the places down and across of tokens in the order of the rows."""
    return _ramp(height).repeat_interleave(width), _ramp(width).repeat(height)


def _fit(places: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the correlation of places with the expected ones (from 0 to 1), and the distance in
    bands from the first to the last one; (0, 0) if they decrease.
    """
    places, expected = places - places.mean(), expected - expected.mean()
    product, norm = float(places @ expected), float(expected.norm())
    if product <= 0 or norm == 0:
        return 0.0, 0.0
    return product / (norm * float(places.norm())), product / norm**2


def _is_good(fit: tuple[float, float]) -> bool:
    return fit[0] >= _MIN_CORRELATION and fit[1] >= _MIN_DISTANCE


def _tokens(images: int, axis: int, places: Tensor) -> Layout | None:
    """Find the grid and the number of special tokens that explain the places of tokens.

    Tokens of the image that are taken for special ones do not lower the correlation, so that the
    grid with the most tokens counts among those with about the best correlation.
    """
    tokens = places.shape[1]
    fits = []
    for special in range(min(_MAX_SPECIAL_TOKENS, tokens - 4) + 1):
        number = tokens - special
        for first in {special, 0}:  # before or after those of the image
            for height in range(2, number // 2 + 1):
                if number % height:
                    continue
                width = number // height
                expected = _places_of_tokens(height, width)
                own = places[:, first : first + number]
                both = [_fit(own[kind], expected[kind]) for kind in (0, 1)]
                if all(map(_is_good, both)):
                    layout = Layout(images, axis, None, (height, width), first)
                    fits.append((special, -min(both)[0], layout))
    if not fits:
        return None
    best = min(fit for _, fit, _ in fits)
    return min((each for each in fits if each[1] < best + 0.05), key=lambda each: each[:2])[2]


def _are_tokens_of(layout: Layout, places: Tensor) -> bool:
    """Return whether another axis is one of the same tokens, as in a matrix of attention."""
    height, width = layout.grid
    own = places[:, layout.first : layout.first + height * width]
    if own.shape[1] != height * width:
        return False
    down, across = _places_of_tokens(height, width)
    return _fit(own[0], down)[0] > 0.5 and _fit(own[1], across)[0] > 0.5
