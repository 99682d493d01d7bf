"""One misclassified image as a cell of a figure: names, panels, bars.

It knows a sample, its maps and an area in inches; it must not know other cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cifar_resnet.misclassified.records import MisclassifiedSample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap

# Okabe and Ito's palette: told apart by color-blind readers, too
_PREDICTED, _TRUE, _OTHER = "#D55E00", "#0072B2", "#999999"

# Inches: side of a panel, between panels, height of a line, least width of a cell with bars.
PANEL, GAP, LINE, LEAST_WIDTH = 1.15, 0.06, 0.13, 1.8
_LETTERS = 20  # of the small text in an inch

Picture = NDArray[np.float32]


def draw_cell(
    axes: Axes,
    class_names: Sequence[str],
    sample: MisclassifiedSample,
    maps: dict[str, Tensor],
    bars: Sequence[int],
    alpha: float,
    colors: Colormap,
    scale: float,
    panel_height: float,
) -> None:
    width, top = axes.get_xlim()[1], axes.get_ylim()[1]
    small: dict[str, Any] = {"fontsize": 6 * scale, "va": "center"}
    names = {"predicted": sample.predicted_name, "true": sample.true_name}
    room = int((width - (0.6 if maps else 0)) * 17)
    for line, (key, text) in enumerate((("true", "true"), ("predicted", "pred"))):
        axes.text(
            0, top - (line + 0.5) * LINE, f"{text}: {_short(names[key], room - 6)}",
            fontsize=7 * scale, va="center",
        )  # fmt: skip
    suspect = "label suspect" if sample.suspect else ""
    if maps:
        axes.text(width, top - 0.5 * LINE, f"#{sample.index}", ha="right", color="#555555", **small)
        axes.text(width, top - 1.5 * LINE, suspect, ha="right", weight="bold", **small)
    else:
        axes.text(0, top - 2.5 * LINE, f"#{sample.index}", color="#555555", **small)
        axes.text(width, top - 2.5 * LINE, suspect, ha="right", weight="bold", **small)
    bottom = top - (2 if maps else 3) * LINE - panel_height
    picture = _picture(sample.image)
    captions = {
        "predicted": f"for {sample.predicted_name}",
        "true": f"for {sample.true_name}",
        "contrast": f"{sample.predicted_name} not {sample.true_name}",
    }
    panels: list[tuple[Picture, str]] = [(picture, "image")]
    for kind, values in maps.items():
        if float(values.max()) == 0:
            panels.append((picture, f"no evidence {captions[kind]}"))
        else:
            panels.append((_overlay(picture, values, alpha, colors), captions[kind]))
    for place, (pixels, caption) in enumerate(panels):
        left = place * (PANEL + GAP) if maps else (width - PANEL) / 2
        axes.imshow(
            pixels,
            extent=(left, left + PANEL, bottom, bottom + panel_height),
            interpolation="nearest",
            aspect="auto",
        )
        if maps:
            text = _short(caption, 24)
            axes.text(left + PANEL / 2, bottom - 0.55 * LINE, text, ha="center", **small)
    axes.set_xlim(0, width)
    axes.set_ylim(0, top)
    axes.set_aspect("equal", adjustable="box")
    start = min(1.0, 0.5 * width)
    full = width - start - 0.35
    for line, number in enumerate(bars):
        share = float(sample.probabilities[number])
        kind = {sample.true: "true", sample.predicted: "pred"}.get(number, "")
        color = {"true": _TRUE, "pred": _PREDICTED}.get(kind, _OTHER)
        middle = bottom - (line + 0.6 + bool(maps)) * LINE
        kind = f"{kind}: " if kind else ""
        label = kind + _short(class_names[number], int(start * _LETTERS) - len(kind))
        axes.text(start - 0.04, middle, label, ha="right", **small)
        axes.barh(middle, full * share, 0.65 * LINE, left=start, color=color)
        axes.text(start + full * share + 0.04, middle, _percent(share), **small)
    axes.set_xlim(0, width)
    axes.set_ylim(0, top)


def _picture(image: Tensor) -> Picture:
    """(C, H, W) in [0, 1] as (H, W, 3), enlarged without smoothing to at least 128 pixels."""
    if image.shape[0] not in (1, 3, 4):
        raise ValueError(
            f"Images with {image.shape[0]} channels cannot be drawn; 1 (gray), 3 or 4 are expected."
        )
    color = image[:3] if image.shape[0] > 1 else image.expand(3, -1, -1)
    factor = max(1, math.ceil(128 / min(image.shape[1:])))
    pixels: Picture = color.permute(1, 2, 0).numpy()
    return pixels.repeat(factor, 0).repeat(factor, 1)


def _overlay(picture: Picture, values: Tensor, alpha: float, colors: Colormap) -> Picture:
    size = picture.shape[:2]
    smooth = F.interpolate(values[None, None], size, mode="bilinear")[0, 0].clamp(0, 1)
    color = np.asarray(colors(smooth.numpy()), dtype=np.float32)[..., :3]
    return picture * (1 - alpha) + color * alpha


def bars_of(sample: MisclassifiedSample, top_k: int) -> list[int]:
    """The classes to draw a bar for, in descending order of probability."""
    if top_k == 0:
        return []
    order = sample.probabilities.argsort(descending=True, stable=True)[:top_k].tolist()
    return order if sample.true in order else [*order, sample.true]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.005 or share == 0 else "< 1 %"


def _short(text: str, room: int) -> str:
    return text if len(text) <= room else text[: max(room - 3, 1)].rstrip() + "..."
