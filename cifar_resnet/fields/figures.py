"""Receptive fields as figures. It knows axes and boxes; it must not know how fields are found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from cifar_resnet import arguments
from cifar_resnet.fields.effective import EffectiveReceptiveField
from cifar_resnet.fields.records import LayerField
from cifar_resnet.fields.result import ReceptiveFields

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike, NDArray

# Okabe and Ito's palette: told apart by color-blind readers, too
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plot_fields(
    fields: ReceptiveFields,
    image: ArrayLike | Tensor | None,
    layer: str | None,
    units: Sequence[Sequence[int]] | None,
    fig: Figure | None,
) -> Figure:
    from matplotlib.figure import Figure

    arguments.figure("fig", fig)
    if len(fields.input_lengths) != 2:
        raise ValueError(
            f"Fields are drawn on images with two axes, but this input has "
            f"{len(fields.input_lengths)}. Use plot_growth() or table()."
        )
    record = fields[layer] if layer is not None else _last_with_units(fields)
    if units is None:
        corners = {tuple(0 for _ in record.unit_shape), tuple(n - 1 for n in record.unit_shape)}
        units = [record.middle, *sorted(corners - {record.middle})]
    units = arguments.sequence("units", units, "a sequence of units, such as [(0, 0), (1, 2)]")
    if not units:
        raise ValueError(f"units must be at least one unit, or None, but got {units!r}.")
    height, width = fields.input_lengths
    boxes = [(record.region(unit), record.region(unit, clip=False)) for unit in units]
    shown = None if image is None else _as_picture(image, height, width)
    fig = Figure(figsize=(5, 5), layout="constrained") if fig is None else fig
    axes = fig.subplots()
    if shown is not None:
        axes.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for number, (unit, (clipped, whole)) in enumerate(zip(units, boxes, strict=True)):
        color = _COLOURS[number % len(_COLOURS)]
        _box(axes, whole, edgecolor=color, facecolor="none", linestyle="--", linewidth=1)
        _box(axes, clipped, edgecolor=color, facecolor=(*_rgb(color), 0.15), linewidth=2)
        row, column = record.center(unit)
        axes.plot(
            column,
            row,
            "o",
            color=color,
            markersize=7,
            markeredgecolor="white",
            label=f"unit {tuple(unit)}",
        )
    _box(
        axes, ((0, height - 1), (0, width - 1)), edgecolor="black", facecolor="none", linewidth=1.5
    )
    everything = [(0, height - 1), (0, width - 1)]
    limits = []
    for axis in range(2):
        spans = [whole[axis] for _, whole in boxes] + [everything[axis]]
        first, last = min(a for a, _ in spans), max(b for _, b in spans)
        margin = 0.04 * (last - first + 1)
        limits.append((first - 0.5 - margin, last + 0.5 + margin))
    axes.set_xlim(limits[1])
    axes.set_ylim(limits[0][::-1])  # rows go down
    axes.set_aspect("equal")
    axes.set_xlabel("column (pixels)")
    axes.set_ylabel("row (pixels)")
    size = " x ".join(map(str, record.size))
    axes.set_title(f"{record.name}: field of {size} pixels, input {height} x {width}", fontsize=10)
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=3, frameon=False, fontsize=8)
    return fig


def plot_growth(fields: ReceptiveFields, fig: Figure | None) -> Figure:
    from matplotlib.figure import Figure

    arguments.figure("fig", fig)
    fig = Figure(figsize=(7.5, 3.8), layout="constrained") if fig is None else fig
    axes = fig.subplots()
    records = list(fields.values())
    depth = range(1, len(records) + 1)
    names = _axis_names(len(fields.input_lengths))
    sizes = np.array([record.size for record in records])
    same = bool((sizes == sizes[:, :1]).all())
    for axis in range(1 if same else sizes.shape[1]):
        axes.step(
            depth,
            sizes[:, axis],
            where="post",
            color=_COLOURS[1 + axis],
            label="receptive field" if same else f"receptive field, {names[axis]}",
        )
    for length in sorted(set(fields.input_lengths)):
        axes.axhline(length, color="black", linestyle="--", linewidth=1)
        axes.annotate(
            f"input: {length}", (1, length), xytext=(0, 3), textcoords="offset points", fontsize=8
        )
    first = fields.first_to_see_all
    if first is not None:
        place = records.index(first)
        axes.plot(place + 1, max(first.size), "o", color=_COLOURS[0])
        axes.annotate(
            f"{first.name} is the first to see it all",
            (place + 1, max(first.size)),
            xytext=(8, -12) if place < len(records) / 2 else (-8, 8),
            textcoords="offset points",
            ha="left" if place < len(records) / 2 else "right",
            color=_COLOURS[0],
            fontsize=9,
        )
    else:
        axes.set_title("no unit in the middle sees the whole input", fontsize=9)
    axes.set_xlabel("layer calls, in order")
    axes.set_ylabel("size (pixels)")
    axes.set_xlim(1, max(len(records), 2))
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=8)
    return fig


def plot_effective(field: EffectiveReceptiveField, log: bool, fig: Figure | None) -> Figure:
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    arguments.boolean("log", log)
    arguments.figure("fig", fig)
    if field.map.dim() != 2:
        raise ValueError(
            f"A heat map needs an input with two axes, but this one has {field.map.dim()}. "
            "Use radial_profile()."
        )
    fig = Figure(figsize=(9.5, 3.8), layout="constrained") if fig is None else fig
    left, right = fig.subplots(1, 2)
    values = field.map.numpy()
    norm = None
    if log:
        norm = LogNorm(vmin=max(values[values > 0].min(), values.max() * 1e-5), vmax=values.max())
    picture = left.imshow(values, cmap="viridis", norm=norm, interpolation="nearest")
    fig.colorbar(picture, ax=left, label="share of the gradient")
    half = field.side(0.95) // 2
    middle = [round(center) for center in field.centroid]
    box = tuple(
        (max(m - half, 0), min(m + half, n - 1)) for m, n in zip(middle, values.shape, strict=True)
    )
    _box(left, box, edgecolor="white", facecolor="none", linewidth=1.5)
    sigma = ", ".join(f"{value:.1f}" for value in field.sigma)
    name = f"{field.layer}, " if field.layer else ""
    left.set_title(
        f"{name}unit {field.unit}: 95 % of the mass in {field.side(0.95)} x {field.side(0.95)}",
        fontsize=10,
    )
    left.set_xlabel("column (pixels)")
    left.set_ylabel("row (pixels)")
    distance, profile = field.radial_profile()
    right.plot(distance, profile / profile.max(), color=_COLOURS[1])
    right.set_xlabel("distance from the centroid (pixels)")
    right.set_ylabel("gradient per pixel, relative")
    right.set_title(f"sigma {sigma} pixels ({field.images} images)", fontsize=10)
    right.set_ylim(bottom=0)
    right.grid(alpha=0.3)
    return fig


def _last_with_units(fields: ReceptiveFields) -> LayerField:
    """The output, or the last layer before it that still has a map of units."""
    if len(fields.output.unit_shape) == 2 and max(fields.output.unit_shape) > 1:
        return fields.output
    maps = [r for r in fields.values() if len(r.unit_shape) == 2 and max(r.unit_shape) > 1]
    return maps[-1] if maps else fields.output


def _as_picture(image: ArrayLike | Tensor, height: int, width: int) -> NDArray[Any]:
    """(H, W, 3) or (H, W), float in [0, 1]."""
    array = image.detach().float().cpu().numpy() if isinstance(image, Tensor) else np.asarray(image)
    scale = 255.0 if array.dtype == np.uint8 or _is_bytes(image) else 1.0
    if array.ndim == 3 and array.shape[0] in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.shape[:2] != (height, width) or array.ndim not in (2, 3):
        raise ValueError(
            f"image must be (C, {height}, {width}) or ({height}, {width}), as was analysed, "
            f"but got {tuple(np.shape(image))}."
        )
    array = array / scale
    if array.min() < 0 or array.max() > 1:
        raise ValueError(
            f"image must have values in [0, 1] or be uint8, but they go from {array.min():.2f} to "
            f"{array.max():.2f}. Undo the normalization first: image * std + mean."
        )
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


def _is_bytes(image: ArrayLike | Tensor) -> bool:
    return isinstance(image, Tensor) and not image.is_floating_point()


def _axis_names(number: int) -> tuple[str, ...]:
    return {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}.get(
        number, tuple(f"axis {axis}" for axis in range(number))
    )


def _rgb(color: str) -> tuple[float, float, float]:
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue


def _box(axes: Axes, region: Sequence[tuple[int, int]], **style: Any) -> None:
    from matplotlib.patches import Rectangle

    (top, bottom), (left, right) = region  # pixels, both inclusive: their edges lie half outside
    axes.add_patch(Rectangle((left - 0.5, top - 0.5), right - left + 1, bottom - top + 1, **style))
