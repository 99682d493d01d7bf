"""Receptive fields drawn on an image, and their growth over depth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from cifar_resnet import arguments
from cifar_resnet.fields.records import LayerField
from cifar_resnet.plotting import palette
from cifar_resnet.plotting.canvas import check_figure, new_figure
from cifar_resnet.plotting.style import (
    IMAGE,
    LINE,
    NAME,
    SMALL_POINTS,
    finish,
    ink_of,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import ArrayLike, NDArray

# The palette of Okabe and Ito, whose colors color-blind readers can distinguish
COLORS = (
    palette.VERMILION, palette.BLUE, palette.GREEN,
    palette.PURPLE, palette.ORANGE, palette.SKY_BLUE,
)  # fmt: skip

_POINT = LINE | {"marker": "o", "linestyle": "none"}

Region = tuple[tuple[int, int], ...]  # first and last pixel along each axis, both inclusive


def plot_fields(
    record: LayerField,
    image: ArrayLike | Tensor | None,
    units: Sequence[Sequence[int]] | None,
    fig: Figure | SubFigure | None,
    figsize: tuple[float, float] | None,
) -> Figure:
    """Draw what units of a layer read of an image, and dashed what they would without borders."""
    check_figure(fig, figsize)
    if len(record.input_lengths) != 2:
        raise ValueError(
            f"Fields can be drawn only on images with two axes, but this input has "
            f"{len(record.input_lengths)}. Use plot_growth() or table()."
        )
    if units is None:
        corners = {tuple(0 for _ in record.unit_shape), tuple(n - 1 for n in record.unit_shape)}
        units = [record.middle, *sorted(corners - {record.middle})]
    units = arguments.sequence("units", units, "a sequence of units, such as [(0, 0), (1, 2)]")
    if not units:
        raise ValueError(f"units must be at least one unit, or None, but got {units!r}.")
    height, width = record.input_lengths
    frame = ((0, height - 1), (0, width - 1))
    boxes = [(record.region(unit), record.region(unit, clip=False)) for unit in units]
    picture = None if image is None else _as_picture(image, height, width)
    fig = fig or new_figure(5, 5, figsize)
    axes = fig.subplots()
    if picture is not None:
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1, **IMAGE)
    for number, (unit, (clipped, whole)) in enumerate(zip(units, boxes, strict=True)):
        color = COLORS[number % len(COLORS)]
        draw_box(axes, whole, edgecolor=color, facecolor="none", linestyle="--", linewidth=1)
        draw_box(axes, clipped, edgecolor=color, facecolor=(*_rgb(color), 0.15), linewidth=2)
        row, column = record.center(unit)
        marker: dict[str, Any] = _POINT | {"markersize": 7, "markeredgecolor": "white"}
        axes.plot(column, row, color=color, label=f"unit {tuple(unit)}", **marker)
    draw_box(axes, frame, edgecolor=ink_of(fig), facecolor="none", linewidth=1.5)
    limits = _limits([frame, *(whole for _, whole in boxes)])
    axes.set_xlim(limits[1])
    axes.set_ylim(limits[0][::-1])  # rows go down
    axes.set_aspect("equal")
    axes.set_xlabel("column (pixels)")
    axes.set_ylabel("row (pixels)")
    size = " x ".join(map(str, record.size))
    title(axes, f"{record.name}: field of {size} pixels, input {height} x {width}")
    axes.legend(
        loc="upper left", bbox_to_anchor=(0, -0.12), ncols=3, frameon=False, fontsize=SMALL_POINTS
    )
    finish(axes)
    return fig.figure


def plot_growth(
    layers: Sequence[LayerField],
    fig: Figure | SubFigure | None,
    figsize: tuple[float, float] | None,
) -> Figure:
    """Draw the size of the field against depth, and mark the first layer that sees all."""
    check_figure(fig, figsize)
    fig = fig or new_figure(7.5, 3.8, figsize)
    ink = ink_of(fig)
    axes = fig.subplots()
    depth = range(1, len(layers) + 1)
    lengths = layers[0].input_lengths
    names = _axis_names(len(lengths))
    sizes = np.array([layer.size for layer in layers])
    same = bool((sizes == sizes[:, :1]).all())
    for axis in range(1 if same else sizes.shape[1]):
        axes.step(
            depth,
            sizes[:, axis],
            where="post",
            color=COLORS[1 + axis],
            **LINE,
            label="receptive field" if same else f"receptive field, {names[axis]}",
        )
    for length in sorted(set(lengths)):
        axes.axhline(length, color=ink, **LINE | {"linestyle": "--", "linewidth": 1})
        axes.annotate(
            f"input: {length}",
            (1, length),
            xytext=(0, 3),
            textcoords="offset points",
            fontsize=SMALL_POINTS,
            color=ink,
            fontweight="normal",
            **NAME,
        )
    first = next((index for index, layer in enumerate(layers) if layer.sees_all), None)
    if first is not None:
        point = (first + 1, max(layers[first].size))
        in_left_half = first < len(layers) / 2
        axes.plot(*point, color=COLORS[0], **_POINT)
        axes.annotate(
            f"{layers[first].name} is the first to see it all",
            point,
            xytext=(8, -12) if in_left_half else (-8, 8),
            textcoords="offset points",
            ha="left" if in_left_half else "right",
            color=ink,
            fontsize=9,
            fontweight="normal",
            **NAME,
        )
    else:
        title(axes, "no unit in the middle sees the whole input", points=9)
    axes.set_xlabel("layer calls, in order")
    axes.set_ylabel("size (pixels)")
    axes.set_xlim(1, max(len(layers), 2))
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", fontsize=SMALL_POINTS, frameon=True)
    finish(axes, grid=True)
    return fig.figure


def draw_box(axes: Axes, region: Region, **style: Any) -> None:
    """Draw a rectangle around the pixels of a region of rows and columns."""
    from matplotlib.patches import Rectangle

    (top, bottom), (left, right) = region  # centers of pixels; their edges are half a pixel outside
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), right - left + 1, bottom - top + 1, **style))


def _limits(regions: Sequence[Region]) -> list[tuple[float, float]]:
    """Return the range along each axis that shows all regions, with a margin of 4 %."""
    limits = []
    for spans in zip(*regions, strict=True):
        first, last = min(a for a, _ in spans), max(b for _, b in spans)
        margin = 0.04 * (last - first + 1)
        limits.append((first - 0.5 - margin, last + 0.5 + margin))
    return limits


def _as_picture(image: ArrayLike | Tensor, height: int, width: int) -> NDArray[Any]:
    """Return an image as (H, W, 3) or (H, W), float in [0, 1]."""
    array = image.detach().float().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    scale = 255.0 if array.dtype == np.uint8 or _is_integer_tensor(image) else 1.0
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.shape[:2] != (height, width) or array.ndim not in (2, 3):
        raise ValueError(
            f"image must have the shape (C, {height}, {width}) or ({height}, {width}), like "
            f"the analyzed input, but got {tuple(np.shape(image)) or repr(image)}."
        )
    array = array / scale
    if array.min() < 0 or array.max() > 1:
        raise ValueError(
            f"image must have values in [0, 1] or be uint8, but its values range from "
            f"{array.min():.2f} to {array.max():.2f}. Undo the normalization first: image * std + "
            "mean."
        )
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _is_integer_tensor(image: ArrayLike | Tensor) -> bool:
    return isinstance(image, Tensor) and not image.is_floating_point()


def _axis_names(number: int) -> tuple[str, ...]:
    return {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}.get(
        number, tuple(f"axis {axis}" for axis in range(number))
    )


def _rgb(color: str) -> tuple[float, float, float]:
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue
