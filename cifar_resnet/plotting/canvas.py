"""Check where to draw, create figures, and place text and axes in inches."""

from __future__ import annotations

import math
from numbers import Real
from typing import TYPE_CHECKING, Any

from cifar_resnet import arguments

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

DPI = 150  # dots per inch of new figures


def check_figure(fig: object, figsize: object = None) -> None:
    """Raise if `fig` is not a figure, `figsize` is not a size, or both are given."""
    from matplotlib.figure import Figure, SubFigure

    if fig is not None and not isinstance(fig, Figure | SubFigure):
        raise TypeError(f"fig must be a Matplotlib figure or subfigure, or None, but got {fig!r}.")
    if figsize is None:
        return
    expected = "a width and a height in inches"
    sides = arguments.sequence("figsize", figsize, expected)
    message = f"figsize must be {expected}, but got {figsize!r}."
    if not all(isinstance(side, Real) and not isinstance(side, bool) for side in sides):
        raise TypeError(message)
    if len(sides) != 2 or not all(0 < side < math.inf for side in sides):
        raise ValueError(message)
    if fig is not None:
        raise ValueError("Give fig or figsize, not both: a figure has its size already.")


def new_figure(width: float, height: float) -> Figure:
    """Create a figure, without pyplot, whose layout adapts to its content."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", dpi=DPI)


class Canvas:
    """A figure with coordinates in inches from its upper left corner.

    In a figure of another size, positions and text are scaled.

    Args:
        width: Width in inches that the content needs.
        height: Height in inches that the content needs.
        fig: Figure or subfigure to draw into. If None, create one.
        figsize: Width and height in inches of a new figure. If None, those of the content.
    """

    def __init__(
        self,
        width: float,
        height: float,
        fig: Figure | SubFigure | None,
        figsize: tuple[float, float] | None,
    ) -> None:
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.fig = Figure(figsize=figsize or (width, height), dpi=DPI) if fig is None else fig
        box = self.fig.bbox.transformed(self.fig.figure.dpi_scale_trans.inverted())
        self.scale = min(box.width / width, box.height / height)  # of the text

    @property
    def figure(self) -> Figure:
        """The figure, or the one that the subfigure belongs to."""
        return self.fig.figure

    def text(self, x: float, y: float, text: str, *, points: float, **style: Any) -> None:
        """Write text at a position, in a font size given for the unscaled figure."""
        self.fig.text(
            x / self.width, 1 - y / self.height, text, fontsize=points * self.scale, **style
        )

    def axes(self, x: float, y: float, width: float, height: float) -> Axes:
        """Add axes whose upper left corner is at a position."""
        return self.fig.add_axes(
            (
                x / self.width,
                1 - (y + height) / self.height,
                width / self.width,
                height / self.height,
            )
        )


def shorten(text: str, length: int) -> str:
    """Cut text to a number of characters, with an ellipsis at the end."""
    return text if len(text) <= length else text[: max(length - 3, 1)].rstrip() + "..."
