"""Set the style of artists explicitly, so that figures look the same with any `rcParams`.

Only the background, the family of the font and the effects of `plt.xkcd` are those of the active
style. Text and lines contrast with the background.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cifar_resnet.plotting.palette import GRAY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.text import Text

LINE: dict[str, Any] = {
    "linestyle": "-", "linewidth": 1.5, "marker": "None", "markersize": 6, "markeredgewidth": 1,
}  # fmt: skip
IMAGE: dict[str, Any] = {"origin": "upper", "interpolation": "nearest"}
BARS: dict[str, Any] = {"linewidth": 0, "edgecolor": "none"}
# Any character of a name is literal.
NAME: dict[str, Any] = {"parse_math": False, "usetex": False}

TITLE_POINTS, LABEL_POINTS, SMALL_POINTS = 10.0, 10.0, 8.0


def ink_on(color: Any) -> str:
    """Return black or white, whichever contrasts more with a background color."""
    from matplotlib.colors import to_rgba

    *rgb, alpha = to_rgba(color)
    if alpha < 0.5:  # most pages are white
        return "black"
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))  # WCAG 2
    return "black" if luminance > 0.179 else "white"


def ink_of(fig: Figure | SubFigure) -> str:
    """Return black or white, whichever contrasts more with the background of a figure."""
    return ink_on(_background(fig))


def title(axes: Axes, text: str, points: float = TITLE_POINTS) -> None:
    """Set the title of axes."""
    axes.set_title(text, fontsize=points, loc="center", pad=6, **NAME)


def finish(axes: Axes, *, grid: bool = False, tick_points: float = LABEL_POINTS) -> None:
    """Set the colors, sizes and lines of axes, their ticks, labels, title and legend."""
    fig = axes.figure
    assert fig is not None
    background = _background(fig)
    ink = ink_on(background)
    axes.set_facecolor(background)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set(visible=True, color=ink, linewidth=0.8)
    axes.minorticks_off()
    axes.tick_params(
        which="both", direction="out", length=3.5, width=0.8, pad=3.5, color=ink, labelcolor=ink,
        labelsize=tick_points, bottom=True, left=True, top=False, right=False,
        labeltop=False, labelright=False,
    )  # fmt: skip
    axes.grid(False, which="both")
    if grid:
        axes.grid(True, which="major", color=GRAY, alpha=0.3, linewidth=0.8, linestyle="-")
    for text in (axes.title, axes.xaxis.label, axes.yaxis.label):
        _set(text, ink)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_fontsize(LABEL_POINTS)
        _finish_ticks(axis, ink)
    if (legend := axes.get_legend()) is not None:
        legend.get_frame().set(facecolor=background, edgecolor=GRAY, alpha=0.8, linewidth=0.8)
        for text in legend.get_texts():
            _set(text, ink)


def finish_color_bar(bar: Any, label: str) -> None:
    """Set the label, colors and sizes of a color bar."""
    axes = bar.ax
    ink = ink_of(axes.figure)
    bar.set_label(label, fontsize=LABEL_POINTS, color=ink)
    axes.set_facecolor(_background(axes.figure))
    bar.outline.set(edgecolor=ink, linewidth=0.8)
    axes.grid(False, which="both")
    axes.tick_params(which="both", direction="out", length=3.5, width=0.8, pad=3.5, color=ink,
                     labelcolor=ink, labelsize=LABEL_POINTS, left=False, right=True,
                     labelleft=False, labelright=True)  # fmt: skip
    if axes.get_yscale() == "linear":
        axes.minorticks_off()
    _set(axes.yaxis.label, ink)
    _finish_ticks(axes.yaxis, ink)


def _finish_ticks(axis: Axis, ink: str) -> None:
    _set(axis.offsetText, ink)
    axis.offsetText.set_fontsize(SMALL_POINTS)
    for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
        for text in (tick.label1, tick.label2):
            _set(text, ink)


def _set(text: Text, color: str) -> None:
    text.set(color=color, usetex=False, fontweight="normal", fontstyle="normal")


def _background(fig: Figure | SubFigure) -> Any:
    """Return the color behind a figure; a subfigure is transparent unless it has its own."""
    color = fig.get_facecolor()
    transparent = len(color) == 4 and color[3] == 0
    if transparent and fig is not fig.figure:
        return fig.figure.get_facecolor()
    return color
