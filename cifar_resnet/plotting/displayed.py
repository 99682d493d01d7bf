"""The figure that is created if none is given; it displays itself in a notebook."""

from __future__ import annotations

import io
from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure


class DisplayedFigure(Figure):
    """A figure that a notebook displays without `%matplotlib inline` and without pyplot.

    With `%matplotlib inline`, the printer of that backend comes first, so that the figure is
    displayed once in either case.
    """

    # Gradio and Weights & Biases recognize figures by the module of their class.
    __module__ = Figure.__module__

    def savefig(self, fname: Any, *, transparent: bool | None = None, **options: Any) -> None:
        """Save the figure, by default with its own background, which its text contrasts with."""
        if not (rcParams["savefig.transparent"] if transparent is None else transparent):
            options = {"facecolor": "auto", "edgecolor": "auto"} | options
        super().savefig(fname, transparent=transparent, **options)

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png", dpi="figure", transparent=False)
        return content.getvalue()

    def __reduce__(self) -> Any:
        return _empty, (), self.__getstate__()


def _empty() -> DisplayedFigure:
    """Return a figure that is about to be unpickled."""
    return DisplayedFigure.__new__(DisplayedFigure)
