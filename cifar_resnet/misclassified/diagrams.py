"""Draw the confusion matrix and the calibration of a classifier."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from cifar_resnet import arguments
from cifar_resnet.misclassified.records import MisclassifiedSamples
from cifar_resnet.plotting.canvas import check_figure, draws, new_figure
from cifar_resnet.plotting.palette import BLUE, GRAY, VERMILION
from cifar_resnet.plotting.style import (
    BARS,
    IMAGE,
    LABEL_POINTS,
    LINE,
    NAME,
    SMALL_POINTS,
    finish,
    finish_color_bar,
    ink_on,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage
    from numpy.typing import NDArray

__all__ = ["show_calibration", "show_confusion_matrix"]

_MAX_CLASSES = 25  # for which each cell shows its number
_MAX_NAMES = 200  # that fit at the smallest size of the font


@draws
def show_confusion_matrix(
    found: MisclassifiedSamples,
    *,
    normalize: bool = False,
    cmap: str | Colormap = "cividis",
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw how many images of each class are predicted as which class.

    Colors show the errors. The diagonal is gray, because its numbers are much larger.

    Args:
        found: Result of `find_misclassified`. All samples count, not only those that were kept.
        normalize: If True, show percentages of the label's images in place of counts.
        cmap: Matplotlib color map of the errors.
        fig: Figure or subfigure to draw into. If None, create a figure without pyplot.
        figsize: Width and height in inches of a new figure. If None, chosen automatically.

    Returns:
        The figure; save it with `fig.savefig(path)`.

    Raises:
        TypeError: If `found` is not a `MisclassifiedSamples`, or another argument has the wrong
            type.
        ValueError: If there is no such color map, or `figsize` is out of its range.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from cifar_resnet import CustomResNet, find_misclassified, show_confusion_matrix
        >>> data = TensorDataset(torch.rand(20, 3, 32, 32), torch.arange(20) % 10)
        >>> found = find_misclassified(CustomResNet(width=4), data)
        >>> show_confusion_matrix(found).axes[0].get_xlabel()
        'prediction'
    """
    from matplotlib import colormaps

    _check(found, "show_confusion_matrix")
    arguments.boolean("normalize", normalize)
    colors = colormaps.get_cmap(cmap).with_extremes(bad="#DDDDDD")
    check_figure(fig, figsize)
    classes = len(found.class_names)
    counts = found.confusion.double().numpy()
    totals = counts.sum(1, keepdims=True)
    percentages = 100 * np.divide(counts, totals, where=totals > 0, out=np.zeros_like(counts))
    values = percentages if normalize else counts
    errors = values.copy()
    np.fill_diagonal(errors, np.nan)
    largest = float(np.nanmax(errors)) if classes > 1 else 0.0
    side = max(4.0, 1.8 + 0.5 * min(classes, _MAX_CLASSES))
    fig = fig or new_figure(side + 1.8, side, figsize)
    axes = fig.subplots()
    image = axes.imshow(
        errors, cmap=colors, vmin=0, vmax=max(largest, 1e-9), aspect="equal", **IMAGE
    )
    if classes <= _MAX_CLASSES:
        _write_numbers(axes, image, values, ".1f" if normalize else ".0f")
    axes.set_xlabel("prediction")
    axes.set_ylabel("label (accuracy)")
    title(
        axes,
        f"{found.errors:,} errors in {found.total:,} images "
        f"(accuracy {100 * found.accuracy:.2f} %)",
    )
    points = _write_names(axes, found)
    finish(axes, tick_points=points)
    unit = "% of the label's images" if normalize else "images"
    finish_color_bar(fig.colorbar(image, ax=axes, shrink=0.8), f"errors ({unit})")
    return fig.figure


def _write_names(axes: Axes, found: MisclassifiedSamples) -> float:
    """Write the names of the classes; of more than `_MAX_NAMES`, only every second, third, ...

    Returns:
        Size of the font that fits, in points.
    """
    step = math.ceil(len(found.class_names) / _MAX_NAMES)
    shown = range(0, len(found.class_names), step)
    labels = [
        f"{name}  ({'no images' if np.isnan(accuracy) else f'{100 * accuracy:.1f} %'})"
        for name, accuracy in found.class_accuracy.items()
    ]
    line = 72 * 0.5 * _MAX_CLASSES / len(shown)  # points that a name has
    angle = 45 if len(labels) <= _MAX_CLASSES else 90
    align = "right" if angle == 45 else "center"
    axes.set_xticks(shown, found.class_names[::step], rotation=angle, ha=align, **NAME)
    axes.set_yticks(shown, labels[::step], **NAME)
    return min(LABEL_POINTS, 0.7 * line)


def _write_numbers(
    axes: Axes, image: AxesImage, values: NDArray[np.float64], number_format: str
) -> None:
    colors = image.to_rgba(np.ma.asarray(image.get_array()))
    for (row, column), value in np.ndenumerate(values):
        axes.text(
            column,
            row,
            format(value, number_format),
            ha="center",
            va="center",
            fontsize=8,
            color=ink_on(colors[row, column]),
            weight="bold" if row == column else "normal",
            usetex=False,
        )


@draws
def show_calibration(
    found: MisclassifiedSamples,
    *,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw accuracy against confidence (a reliability diagram), with the number of images below.

    Args:
        found: Result of `find_misclassified`. All samples count, not only those that were kept.
        fig: Figure or subfigure to draw into. If None, create a figure without pyplot.
        figsize: Width and height in inches of a new figure. If None, chosen automatically.

    Returns:
        The figure; save it with `fig.savefig(path)`.

    Raises:
        TypeError: If `found` is not a `MisclassifiedSamples`, `fig` is not a figure, or `figsize`
            is not a pair of numbers.
        ValueError: If `figsize` is out of its range, or given together with `fig`.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from cifar_resnet import CustomResNet, find_misclassified, show_calibration
        >>> data = TensorDataset(torch.rand(20, 3, 32, 32), torch.arange(20) % 10)
        >>> found = find_misclassified(CustomResNet(width=4), data)
        >>> [axes.get_ylabel() for axes in show_calibration(found).axes]
        ['accuracy', 'images']
    """
    _check(found, "show_calibration")
    check_figure(fig, figsize)
    calibration = found.calibration
    bins = len(calibration.counts)
    width = 1 / bins
    centers = (np.arange(bins) + 0.5) * width
    accuracy = calibration.accuracy.nan_to_num(0.0).numpy()
    fig = fig or new_figure(4.5, 4.8, figsize)
    upper, lower = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(centers, accuracy, 0.92 * width, color=BLUE, label="accuracy", **BARS)
    dashed = LINE | {"linestyle": "--"}
    upper.plot([0, 1], [0, 1], color=VERMILION, label="perfect calibration", **dashed)
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    upper.set_ylabel("accuracy")
    upper.legend(loc="upper left", fontsize=SMALL_POINTS, frameon=True)
    title(
        upper,
        f"expected calibration error {100 * calibration.expected_error:.2f} %\n"
        f"{found.total:,} images, {bins} bins",
    )
    lower.bar(centers, calibration.counts.numpy(), 0.92 * width, color=GRAY, **BARS)
    lower.set_yscale("symlog", linthresh=1)
    lower.set_ylim(bottom=0)
    lower.set_ylabel("images")
    lower.set_xlabel("confidence (probability of the predicted class)")
    for axes in (upper, lower):
        finish(axes)
    return fig.figure


def _check(found: object, name: str) -> None:
    if not isinstance(found, MisclassifiedSamples):
        raise TypeError(
            f"{name} expects the result of find_misclassified(model, data), but got "
            f"{type(found).__name__}."
        )
