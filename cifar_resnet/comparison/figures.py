"""Draw a comparison: the runs of each seed, and the differences with their intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_resnet import arguments
from cifar_resnet.comparison.differences import is_finite
from cifar_resnet.comparison.metrics import METRICS, Metric
from cifar_resnet.comparison.report import Comparison
from cifar_resnet.plotting.canvas import check_figure, draws, new_figure, shorten
from cifar_resnet.plotting.palette import BLUE, GRAY, VERMILION
from cifar_resnet.plotting.style import LINE, NAME, SMALL_POINTS, finish, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["show_comparison"]

_NAME = 28  # characters


@draws
def show_comparison(
    comparison: Comparison,
    metric: str | None = None,
    *,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw the runs of each seed, and the differences from the first arm with their intervals.

    Left: a point for each run, and a line for each seed: parallel lines mean that pairing helps.
    Right: a point for the difference of each seed, and the mean difference with its paired interval
    and, below it, the unpaired one. An interval that contains 0 shows no difference.

    Args:
        comparison: Result of `compare` or `Comparison.from_results`.
        metric: Metric to draw. If None, the one that decides.
        fig: Figure or subfigure to draw into. If None, create a figure without pyplot.
        figsize: Width and height in inches of a new figure. If None, chosen automatically.

    Returns:
        The figure; save it with `fig.savefig(path)`.

    Raises:
        TypeError: If `comparison` is not a `Comparison`, `fig` is not a figure, or `figsize` is not
            a pair of numbers.
        ValueError: If the runs do not report the metric, or `figsize` is out of its range or given
            together with `fig`.

    Examples:
        >>> from cifar_resnet import Comparison, show_comparison
        >>> runs = {
        ...     name: {seed: {"acc": accuracy, "epochs": 24, "held_out": True, "width": 16,
        ...                   "precision": "32-true", "network": "other"}
        ...            for seed, accuracy in enumerate(accuracies)}
        ...     for name, accuracies in {"A": (0.91, 0.92, 0.9), "B": (0.92, 0.925, 0.915)}.items()
        ... }
        >>> figure = show_comparison(Comparison(("A", "B"), runs, "acc"))
        >>> [axes.get_title() for axes in figure.axes]
        ['Runs', 'Difference from A']
    """
    if not isinstance(comparison, Comparison):
        raise TypeError(
            "comparison must be the result of compare(...) or Comparison.from_results(...), but "
            f"got {type(comparison).__name__}."
        )
    known = comparison.metrics()
    key = comparison.metric if metric is None else arguments.choice("metric", metric, (*known,))
    check_figure(fig, figsize)
    others = len(comparison.arms) - 1
    if fig is None:
        fig = new_figure(9.0, 2.6 + 0.7 * others, figsize)
    left, right = fig.subplots(1, 2, width_ratios=(2, 3))
    _draw_runs(left, comparison, METRICS[key])
    _draw_differences(right, comparison, METRICS[key])
    return fig.figure


def _draw_runs(axes: Axes, comparison: Comparison, metric: Metric) -> None:
    arms = comparison.arms
    values = [comparison.values(arm, metric.key) for arm in arms]
    seeds = dict.fromkeys(seed for each in values for seed in each)
    thin = LINE | {"linewidth": 0.8}
    for seed in seeds:
        at = [index for index, each in enumerate(values) if seed in each]
        heights = [metric.scale * values[index][seed] for index in at]
        axes.plot(at, heights, color=GRAY, **thin)
    for index, each in enumerate(values):
        heights = [metric.scale * value for value in each.values()]
        color = GRAY if index == 0 else BLUE
        axes.plot([index] * len(heights), heights, color=color, **_points(4))
    axes.set_xlim(-0.4, len(arms) - 0.6)
    axes.set_xticks(range(len(arms)), [shorten(arm, _NAME) for arm in arms], **NAME)
    axes.set_ylabel(metric.label)
    title(axes, "Runs")
    finish(axes, grid=True, tick_points=SMALL_POINTS)
    if len(arms) > 2 or max(map(len, arms)) > _NAME // 2:
        axes.tick_params(axis="x", rotation=20)


def _draw_differences(axes: Axes, comparison: Comparison, metric: Metric) -> None:
    found = comparison.differences(metric.key)
    axes.axvline(0, color=GRAY, linewidth=1.0, linestyle="--", marker="None", zorder=0)
    kind = "valid at any time" if comparison.sequential else "paired"
    level = f"{100 * comparison.confidence:g} % interval"
    for row, each in enumerate(found):
        points = np.array([*comparison.paired_differences(each.arm, metric.key).values()])
        once = row == 0
        axes.plot(
            metric.scale * points, np.full(len(points), row - 0.22), color=BLUE, alpha=0.6,
            label="difference of a seed" if once else None, **_points(4),
        )  # fmt: skip
        intervals = (
            (each.low, each.high, VERMILION, 0.0, f"{level}, {kind}"),
            (each.unpaired_low, each.unpaired_high, GRAY, 0.22, f"{level}, unpaired"),
        )
        for low, high, color, offset, label in intervals:
            if is_finite(low, high) and low is not None and high is not None:
                ends = [metric.scale * low, metric.scale * high]
                axes.plot(
                    ends, [row + offset] * 2, color=color, label=label if once else None,
                    **LINE | {"marker": "|", "markersize": 9, "linewidth": 2.0},
                )  # fmt: skip
        if each.mean is not None:
            axes.plot([metric.scale * each.mean], [row], color=VERMILION, **_points(6))
    axes.set_yticks(range(len(found)), [shorten(each.arm, _NAME) for each in found], **NAME)
    axes.set_ylim(len(found) - 0.5, -0.5)
    unit = f" in {metric.unit}" if metric.unit else ""
    name = metric.label.replace(" in %", "").replace(" in s", "")
    axes.set_xlabel(f"difference{unit}: {name}")
    title(axes, f"Difference from {shorten(comparison.arms[0], _NAME)}")
    below = -0.5 / (1.4 + 0.7 * len(found))  # half an inch, in a new figure
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, below), ncols=3, frameon=False,
        fontsize=SMALL_POINTS, handlelength=1.5, columnspacing=1.2,
    )  # fmt: skip
    finish(axes, grid=True, tick_points=SMALL_POINTS)


def _points(size: float) -> dict[str, Any]:
    return LINE | {"linestyle": "none", "marker": "o", "markersize": size}
