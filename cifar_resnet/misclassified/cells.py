"""Draw one misclassified image as a cell of a figure: names, image, maps and probabilities."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cifar_resnet.misclassified.records import MisclassifiedSample, MisclassifiedSamples
from cifar_resnet.plotting.canvas import shorten
from cifar_resnet.plotting.palette import BLUE, GRAY, VERMILION
from cifar_resnet.plotting.pictures import as_rgb
from cifar_resnet.plotting.style import IMAGE, NAME, ink_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

# Inches: side of a panel, between panels, height of a line, minimum width of a cell with bars.
_PANEL, _GAP, _LINE, _MIN_WIDTH = 1.15, 0.06, 0.13, 1.8
_LETTERS = 20  # of the small text in an inch
_NAME_LETTERS = 17  # of the names in an inch

Rgb = NDArray[np.float32]


@dataclass(frozen=True)
class CellLayout:
    """Sizes and style that all cells of a figure share; sizes are in inches."""

    class_names: tuple[str, ...]
    maps: int  # number of maps in each cell
    top_k: int
    bars: int  # maximum number of bars in a cell
    image_height: float
    colors: Colormap
    alpha: float

    @classmethod
    def of(
        cls, found: MisclassifiedSamples, maps: int, top_k: int, colors: Colormap, alpha: float
    ) -> CellLayout:
        aspect = max(height / width for _, height, width in (each.image.shape for each in found))
        bars = max(len(classes_with_bar(sample, top_k)) for sample in found)
        return cls(found.class_names, maps, top_k, bars, _PANEL * aspect, colors, alpha)

    @property
    def width(self) -> float:
        panels = (1 + self.maps) * (_PANEL + _GAP) - _GAP
        return max(panels, _MIN_WIDTH) if self.bars else panels

    @property
    def height(self) -> float:
        lines = self.header_lines + self.caption_lines + self.bars
        return lines * _LINE + self.image_height + 0.08

    @property
    def header_lines(self) -> int:
        return 2 if self.maps else 3  # without maps, the index needs a line of its own

    @property
    def caption_lines(self) -> int:
        return 1 if self.maps else 0

    @property
    def image_bottom(self) -> float:
        return self.height - self.header_lines * _LINE - self.image_height


def draw_cell(
    axes: Axes,
    sample: MisclassifiedSample,
    maps: Mapping[str, Tensor],
    layout: CellLayout,
    scale: float,
) -> None:
    """Draw a sample and its maps (H, W) by kind; `scale` is that of the text."""
    axes.set_axis_off()
    assert axes.figure is not None
    small: dict[str, Any] = {
        "fontsize": 6 * scale, "va": "center", "color": ink_of(axes.figure), "weight": "normal",
        **NAME,
    }  # fmt: skip
    _draw_header(axes, sample, layout, small, name_size=7 * scale)
    _draw_images(axes, sample, maps, layout, small)
    _draw_bars(axes, sample, layout, small)
    axes.set_xlim(0, layout.width)
    axes.set_ylim(0, layout.height)
    axes.set_aspect("equal", adjustable="box")


def _draw_header(
    axes: Axes,
    sample: MisclassifiedSample,
    layout: CellLayout,
    small: dict[str, Any],
    name_size: float,
) -> None:
    top, right = layout.height, layout.width
    length = int((right - (0.6 if layout.maps else 0)) * _NAME_LETTERS) - 6
    for line, (key, name) in enumerate(
        (("true", sample.true_name), ("pred", sample.predicted_name))
    ):
        text = f"{key}: {shorten(name, length)}"
        axes.text(0, top - (line + 0.5) * _LINE, text, **small | {"fontsize": name_size})
    index = f"#{sample.index}" if sample.index is not None and sample.index >= 0 else ""
    suspect = "label suspect" if sample.suspect else ""
    faint = small | {"alpha": 0.7}
    bold = small | {"ha": "right", "weight": "bold"}
    if layout.maps:
        axes.text(right, top - 0.5 * _LINE, index, ha="right", **faint)
        axes.text(right, top - 1.5 * _LINE, suspect, **bold)
    else:
        axes.text(0, top - 2.5 * _LINE, index, **faint)
        axes.text(right, top - 2.5 * _LINE, suspect, **bold)


def _draw_images(
    axes: Axes,
    sample: MisclassifiedSample,
    maps: Mapping[str, Tensor],
    layout: CellLayout,
    small: dict[str, Any],
) -> None:
    image = enlarged(as_rgb(sample.image, name=f"Image {sample.index}"))
    captions = {
        "predicted": f"for {sample.predicted_name}",
        "true": f"for {sample.true_name}",
        "contrast": f"{sample.predicted_name} not {sample.true_name}",
    }
    panels: list[tuple[Rgb, str]] = [(image, "image")]
    for kind, values in maps.items():
        if float(values.max()) == 0:
            panels.append((image, f"no evidence {captions[kind]}"))
        else:
            panels.append((overlay(image, values, layout.colors, layout.alpha), captions[kind]))
    aspect = image.shape[0] / image.shape[1]
    width = min(_PANEL, layout.image_height / aspect)  # other images of the figure may be higher
    bottom = layout.image_bottom
    for column, (pixels, caption) in enumerate(panels):
        middle = column * (_PANEL + _GAP) + _PANEL / 2 if maps else layout.width / 2
        extent = (middle - width / 2, middle + width / 2, bottom, bottom + width * aspect)
        axes.imshow(pixels, extent=extent, aspect="auto", **IMAGE)
        if maps:
            axes.text(middle, bottom - 0.55 * _LINE, shorten(caption, 24), ha="center", **small)


def _draw_bars(
    axes: Axes, sample: MisclassifiedSample, layout: CellLayout, small: dict[str, Any]
) -> None:
    start = min(1.0, 0.5 * layout.width)
    full = layout.width - start - 0.35
    for line, number in enumerate(classes_with_bar(sample, layout.top_k)):
        probability = float(sample.probabilities[number])
        prefix = {sample.true: "true: ", sample.predicted: "pred: "}.get(number, "")
        color = {sample.true: BLUE, sample.predicted: VERMILION}.get(number, GRAY)
        y = layout.image_bottom - (line + 0.6 + layout.caption_lines) * _LINE
        length = int(start * _LETTERS) - len(prefix)
        label = prefix + shorten(layout.class_names[number], length)
        axes.text(start - 0.04, y, label, ha="right", **small)
        axes.barh(y, full * probability, 0.65 * _LINE, left=start, color=color, linewidth=0)
        axes.text(start + full * probability + 0.04, y, percent(probability), **small)


def classes_with_bar(sample: MisclassifiedSample, top_k: int) -> list[int]:
    """Return the `top_k` classes and the true one, in descending order of probability."""
    if top_k == 0:
        return []
    order = sample.probabilities.argsort(descending=True, stable=True)[:top_k].tolist()
    return order if sample.true in order else [*order, sample.true]


def enlarged(image: Rgb) -> Rgb:
    """Repeat the pixels of (H, W, 3) so that the shorter side has at least 128."""
    factor = max(1, math.ceil(128 / min(image.shape[:2])))
    return image.repeat(factor, 0).repeat(factor, 1)


def overlay(image: Rgb, values: Tensor, colors: Colormap, alpha: float) -> Rgb:
    """Blend an image (H, W, 3) with a map, interpolated to its size and colored."""
    smooth = F.interpolate(values[None, None], image.shape[:2], mode="bilinear")[0, 0].clamp(0, 1)
    color = np.asarray(colors(smooth.numpy()), dtype=np.float32)[..., :3]
    return image * (1 - alpha) + color * alpha


def percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %" if fraction >= 0.005 or fraction == 0 else "< 1 %"
