"""Images in rows and columns of a figure. It knows pixels and text; it must not know data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_resnet.plotting.pictures import Pixels
from cifar_resnet.plotting.saving import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

# Inches: between panels, height of a line of text, margin, for the title, for the note.
GAP, LINE, _MARGIN, _TOP, _BOTTOM = 0.06, 0.15, 0.12, 0.42, 0.3
_POINTS, _NAME_POINTS = 8.0, 9.5  # of captions, of the names of rows
_LETTER = 0.093  # width of a letter of a row's name


@dataclass(frozen=True)
class Panel:
    """One picture with the lines below it; without pixels only the lines, in its middle."""

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
    dpi: float,
    save_path: str | Path | None,
) -> Figure | SubFigure:
    """Draw rows of panels that are `side` inches wide, each pixel by pixel, and save the figure."""
    from matplotlib.figure import Figure

    columns = max(map(len, rows))
    shapes = [panel.pixels.shape for row in rows for panel in row if panel.pixels is not None]
    ratio = max(height / width for height, width, *_ in shapes)
    letters = max((len(line) for name in row_names for line in name.split("\n")), default=0)
    left = _MARGIN + (letters * _LETTER + GAP if letters else 0)
    top = _TOP + (LINE + GAP if column_names else 0)
    height = side * ratio
    tops = [top]  # of each row, and of what is below the last
    for panels in rows:
        lines = max((panel.lines for panel in panels), default=0)
        tops.append(tops[-1] + height + lines * LINE + GAP)
    size = (
        left + columns * (side + GAP) - GAP + _MARGIN,
        tops[-1] - GAP + (_BOTTOM if note else _MARGIN),
    )
    fig = fig or Figure(figsize=figsize or size, dpi=dpi)
    box = fig.bbox.transformed(fig.figure.dpi_scale_trans.inverted())
    scale = min(box.width / size[0], box.height / size[1])  # of the text, in a figure of other size
    small: dict[str, Any] = {"fontsize": _POINTS * scale, "linespacing": 1.15}

    def write(x: float, y: float, text: str, **style: Any) -> None:
        fig.text(x / size[0], 1 - y / size[1], text, **style)

    write(
        size[0] / 2, _TOP / 2, title, ha="center", va="center",
        fontsize=_fitting(title, size[0], 10) * scale,
    )  # fmt: skip
    for row, panels in enumerate(rows):
        y = tops[row]
        if row_names:
            name = row_names[row]
            style = small | {"fontsize": _NAME_POINTS * scale}
            write(left - GAP, y + height / 2, name, ha="right", va="center", **style)
        for column, panel in enumerate(panels):
            x = left + column * (side + GAP)
            if row == 0 and column_names:
                name = column_names[column]
                write(x + side / 2, top - GAP, name, ha="center", va="baseline", **small)
            if panel.pixels is None:
                middle = x + side / 2, y + height / 2
                write(*middle, panel.caption, ha="center", va="center", **small)
                continue
            axes = fig.add_axes(
                (x / size[0], 1 - (y + height) / size[1], side / size[0], height / size[1])
            )
            _draw(axes, panel.pixels)
            captions = panel.caption.split("\n") if panel.caption else []
            for number, line in enumerate(captions, 1):
                below = y + height + (number - 0.15) * LINE
                write(x + side / 2, below, line, ha="center", va="baseline", **small)
    if note:
        points = _fitting(note, size[0], _POINTS) * scale
        write(size[0] / 2, size[1] - _BOTTOM / 2, note, ha="center", va="center", fontsize=points)
    if save_path is not None:
        save_figure(fig, save_path, dpi)
    return fig


def _draw(axes: Axes, pixels: Pixels) -> None:
    axes.set_axis_off()
    axes.set_anchor("N")
    gray: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255} if pixels.ndim == 2 else {}
    axes.imshow(pixels, interpolation="nearest", **gray)


def _fitting(text: str, width: float, points: float) -> float:
    """Points of a line that stays within a figure of this width in inches."""
    return min(points, width / max(len(text), 1) * 72 / 0.56)


def shortened(text: str, inches: float) -> str:
    """A name in small text that is no wider than this."""
    room = max(int(inches / 0.066), 4)
    return text if len(text) <= room else text[: room - 3].rstrip() + "..."
