"""Draw images beside the training images that are nearest to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cifar_resnet import arguments
from cifar_resnet.inspection.nearest import NearestImage, NearestImages
from cifar_resnet.plotting.canvas import check_figure, draws, shorten
from cifar_resnet.plotting.grid import LETTER, Panel, draw_grid
from cifar_resnet.plotting.pictures import as_pixels

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

__all__ = ["show_nearest"]

_SIDE = 1.15  # inches


@draws
def show_nearest(
    nearest: Sequence[NearestImages],
    *,
    n: int = 5,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw images, each in a row with the training images that are nearest to it.

    Below an image that was classified wrongly are its label and the prediction. Below the others
    are their label, the cosine distance and the index. Images keep their brightness and are not
    smoothed.

    Args:
        nearest: Result of `find_nearest`, or some of its rows.
        n: Maximum number of rows.
        fig: Figure or subfigure to draw into. If None, create a figure.
        figsize: Width and height in inches of a new figure. If None, the size that is needed.

    Returns:
        The figure; save it with `fig.savefig(path)`.

    Raises:
        TypeError: If `nearest` is not the result of `find_nearest`, or another argument has the
            wrong type.
        ValueError: If `nearest` is empty, or an argument is out of its range.

    Examples:
        >>> import torch
        >>> from cifar_resnet import CustomResNet, find_nearest, show_nearest
        >>> model, data = CustomResNet(width=4), (torch.rand(20, 3, 32, 32), torch.arange(20) % 10)
        >>> fig = show_nearest(find_nearest(model, data[0][:2], data, k=3))
        >>> len(fig.axes)  # two rows of an image and its three neighbors
        8
    """
    expected = "the result of find_nearest(model, errors, data)"
    rows = arguments.sequence("nearest", nearest, expected)
    for row in rows:
        if not isinstance(row, NearestImages):
            raise TypeError(
                f"nearest must be {expected}, but one of its rows is {type(row).__name__}."
            )
    n = arguments.integer("n", n, minimum=1)
    check_figure(fig, figsize)
    if not rows:
        raise ValueError(f"nearest is empty; expected {expected} for at least one image.")
    panels = [[_panel(row), *(_neighbor(each) for each in row.neighbors)] for row in rows[:n]]
    across = max(map(len, panels)) - 1
    count = f"{across} nearest images" if across > 1 else "nearest image"
    return draw_grid(
        panels,
        side=_SIDE,
        title=f"The {count} by the cosine distance of the features",
        column_names=["image", *(str(number) for number in range(1, across + 1))],
        fig=fig,
        figsize=figsize,
    )


def _panel(row: NearestImages) -> Panel:
    number = "" if row.index is None else f"#{row.index}"
    lines = [number]
    if row.true_name is not None:
        lines = [_line("true:", row.true_name)]
        lines.append(number if row.predicted_name is None else _line("pred:", row.predicted_name))
    pixels = as_pixels(row.image, None, name=f"Image {row.index}")
    return Panel(pixels, "\n".join(line for line in lines if line))


def _neighbor(neighbor: NearestImage) -> Panel:
    number = "" if neighbor.index is None else f"  #{neighbor.index}"
    pixels = as_pixels(neighbor.image, None, name=f"Image {neighbor.index}")
    return Panel(pixels, f"{_line('', neighbor.name)}\n{neighbor.distance:.3f}{number}")


def _line(start: str, name: str) -> str:
    room = int(_SIDE / LETTER) - len(start)
    return f"{start} {shorten(name, room)}".strip()
