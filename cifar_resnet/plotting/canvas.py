"""Check where to draw, create figures, and place text and axes in inches."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from cifar_resnet import arguments
from cifar_resnet.plotting.style import NAME, ink_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

DPI = 150  # dots per inch of new figures

P = ParamSpec("P")
R = TypeVar("R")


def draws(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that draws into `fig`, to explain why it does not accept `ax`."""

    @functools.wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        for name in ("ax", "axes"):
            if name in options:
                raise TypeError(
                    f"{function.__name__} has no argument {name!r}, because it creates its own "
                    f"axes. {_INSTEAD}"
                )
        return function(*args, **options)

    return checked


_INSTEAD = (
    "To draw beside other plots, pass a subfigure: left, right = figure.subfigures(1, 2); fig=left."
)


def check_figure(fig: object, figsize: object = None) -> None:
    """Raise if `fig` is not a figure, `figsize` is not a size, or both are given."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    if fig is not None and not isinstance(fig, Figure | SubFigure):
        hint = f" {_INSTEAD}" if isinstance(fig, Axes) else ""
        raise TypeError(
            f"fig must be a Matplotlib figure or subfigure, or None, but got {fig!r}.{hint}"
        )
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


def new_figure(
    width: float,
    height: float,
    figsize: tuple[float, float] | None = None,
    *,
    layout: Any = "constrained",
) -> Figure:
    """Create a figure without pyplot, by default with a layout that adapts to its content.

    Args:
        width: Width in inches that the content needs.
        height: Height in inches that the content needs.
        figsize: Requested width and height in inches. If None, those of the content.
        layout: Layout engine of Matplotlib: "constrained" or "none".
    """
    from cifar_resnet.plotting.displayed import DisplayedFigure

    return DisplayedFigure(figsize=figsize or (width, height), layout=layout, dpi=DPI, frameon=True)


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
        self.width, self.height = width, height
        self.fig = fig or new_figure(width, height, figsize, layout="none")
        self.ink = ink_of(self.fig)
        box = self.fig.bbox.transformed(self.fig.figure.dpi_scale_trans.inverted())
        self.scale = min(box.width / width, box.height / height)  # of the text

    @property
    def figure(self) -> Figure:
        """The figure, or the one that the subfigure belongs to."""
        return self.fig.figure

    def text(self, x: float, y: float, text: str, *, points: float, **style: Any) -> None:
        """Write text at a position, in a font size given for the unscaled figure."""
        style = {"color": self.ink, "fontweight": "normal", **NAME} | style
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
