"""Draw images in rows and columns of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cifar_resnet.plotting.canvas import Canvas
from cifar_resnet.plotting.pictures import Pixels
from cifar_resnet.plotting.style import IMAGE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Inches: between panels, height of a line of text, margin, for the title, for the note.
GAP, LINE, _MARGIN, _TOP, _BOTTOM = 0.06, 0.15, 0.12, 0.42, 0.3
LETTER = 0.066  # inches: width of a letter of a caption
_POINTS, _NAME_POINTS, _TITLE_POINTS = 8.0, 9.5, 10.0
_NAME_LETTER = 0.093  # inches: width of a letter of a row's name


@dataclass(frozen=True)
class Panel:
    """One image with a caption below it. Without pixels, the caption is drawn in their place."""

    pixels: Pixels | None  # uint8 (H, W, 3), or (H, W) for gray
    caption: str = ""

    @property
    def lines(self) -> int:
        drawn = self.pixels is not None and self.caption
        return self.caption.count("\n") + 1 if drawn else 0


def draw_grid(
    rows: Sequence[Sequence[Panel]],
    *,
    side: float,
    title: str,
    note: str = "",
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    fig: Figure | SubFigure | None,
    figsize: tuple[float, float] | None,
) -> Figure:
    """Draw rows of panels that are `side` inches wide, without smoothing the images."""
    columns = max(map(len, rows))
    shapes = [panel.pixels.shape for row in rows for panel in row if panel.pixels is not None]
    height = side * max(height / width for height, width, *_ in shapes)
    letters = max((len(line) for name in row_names for line in name.split("\n")), default=0)
    left = _MARGIN + (letters * _NAME_LETTER + GAP if letters else 0)
    top = _TOP + (LINE + GAP if column_names else 0)
    tops = [top]  # of each row, and of what is below the last one
    for panels in rows:
        lines = max((panel.lines for panel in panels), default=0)
        tops.append(tops[-1] + height + lines * LINE + GAP)
    canvas = Canvas(
        left + columns * (side + GAP) - GAP + _MARGIN,
        tops[-1] - GAP + (_BOTTOM if note else _MARGIN),
        fig,
        figsize,
    )
    centered: dict[str, Any] = {"points": _POINTS, "linespacing": 1.15, "ha": "center"}
    _write_line(canvas, _TOP / 2, title, _TITLE_POINTS)
    for row, (y, panels) in enumerate(zip(tops, rows, strict=False)):
        if row_names:
            style = centered | {"points": _NAME_POINTS, "ha": "right"}
            canvas.text(left - GAP, y + height / 2, row_names[row], va="center", **style)
        for column, panel in enumerate(panels):
            x = left + column * (side + GAP)
            middle = x + side / 2
            if row == 0 and column_names:
                name = column_names[column]
                canvas.text(middle, top - GAP, name, va="baseline", **centered)
            if panel.pixels is None:
                canvas.text(middle, y + height / 2, panel.caption, va="center", **centered)
                continue
            _draw(canvas.axes(x, y, side, height), panel.pixels)
            for number, line in enumerate(panel.caption.split("\n") if panel.caption else [], 1):
                baseline = y + height + (number - 0.15) * LINE
                canvas.text(middle, baseline, line, va="baseline", **centered)
    if note:
        _write_line(canvas, canvas.height - _BOTTOM / 2, note, _POINTS)
    return canvas.figure


def _write_line(canvas: Canvas, y: float, text: str, points: float) -> None:
    """Write centered text in one line, smaller if it would be wider than the figure."""
    points = min(points, canvas.width / max(len(text), 1) * 72 / 0.56)
    canvas.text(canvas.width / 2, y, text, points=points, ha="center", va="center")


def _draw(axes: Axes, pixels: Pixels) -> None:
    axes.set_axis_off()
    axes.set_anchor("N")
    gray: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255} if pixels.ndim == 2 else {}
    axes.imshow(pixels, aspect="equal", **IMAGE, **gray)
