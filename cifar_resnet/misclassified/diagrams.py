"""Draw the confusion matrix and the calibration of a classifier."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_resnet import arguments
from cifar_resnet.misclassified.records import MisclassifiedSamples
from cifar_resnet.plotting.canvas import check_figure, new_figure
from cifar_resnet.plotting.palette import BLUE, GRAY, VERMILION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray

__all__ = ["show_calibration", "show_confusion_matrix"]

_MAX_CLASSES = 25  # for which each cell shows its number
_MAX_NAMES = 200  # that fit at the smallest size of the font


def show_confusion_matrix(
    found: MisclassifiedSamples,
    *,
    normalize: bool = False,
    cmap: str | Colormap = "cividis",
    fig: Figure | SubFigure | None = None,
) -> Figure:
    """Draw how many images of each class are predicted as which class.

    Colors show the errors. The diagonal is gray, because its numbers are much larger.

    Args:
        found: Result of `find_misclassified`. All samples count, not only those that were kept.
        normalize: If True, show percentages of the label's images in place of counts.
        cmap: Matplotlib color map of the errors.
        fig: Figure or subfigure to draw into. If None, create a figure without pyplot.

    Returns:
        The figure; save it with `fig.savefig(path)`.

    Raises:
        TypeError: If `found` is not a `MisclassifiedSamples`, or another argument has the wrong
            type.
        ValueError: If there is no such color map.

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
    check_figure(fig)
    classes = len(found.class_names)
    counts = found.confusion.double().numpy()
    totals = counts.sum(1, keepdims=True)
    percentages = 100 * np.divide(counts, totals, where=totals > 0, out=np.zeros_like(counts))
    values = percentages if normalize else counts
    errors = values.copy()
    np.fill_diagonal(errors, np.nan)
    largest = float(np.nanmax(errors)) if classes > 1 else 0.0
    side = max(4.0, 1.8 + 0.5 * min(classes, _MAX_CLASSES))
    fig = fig or new_figure(side + 1.8, side)
    axes = fig.subplots()
    image = axes.imshow(errors, cmap=colors, vmin=0, vmax=max(largest, 1e-9))
    if classes <= _MAX_CLASSES:
        _write_numbers(axes, values, largest, ".1f" if normalize else ".0f")
    _write_names(axes, found)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label (accuracy)")
    axes.set_title(
        f"{found.errors:,} errors in {found.total:,} images "
        f"(accuracy {100 * found.accuracy:.2f} %)",
        fontsize=10,
    )
    unit = "% of the label's images" if normalize else "images"
    fig.colorbar(image, ax=axes, label=f"errors ({unit})", shrink=0.8)
    return fig.figure


def _write_names(axes: Axes, found: MisclassifiedSamples) -> None:
    """Write the names of the classes; of more than `_MAX_NAMES`, only every second, third, ..."""
    step = math.ceil(len(found.class_names) / _MAX_NAMES)
    shown = range(0, len(found.class_names), step)
    labels = [
        f"{name}  ({'no images' if np.isnan(accuracy) else f'{100 * accuracy:.1f} %'})"
        for name, accuracy in found.class_accuracy.items()
    ]
    line = 72 * 0.5 * _MAX_CLASSES / len(shown)  # points that a name has
    # a dollar sign is part of the name
    style: dict[str, Any] = {"fontsize": min(10.0, 0.7 * line), "parse_math": False}
    angle = 45 if len(labels) <= _MAX_CLASSES else 90
    align = "right" if angle == 45 else "center"
    axes.set_xticks(shown, found.class_names[::step], rotation=angle, ha=align, **style)
    axes.set_yticks(shown, labels[::step], **style)


def _write_numbers(
    axes: Axes, values: NDArray[np.float64], largest_error: float, number_format: str
) -> None:
    for (row, column), value in np.ndenumerate(values):
        correct = row == column
        dark = not correct and value < 0.55 * largest_error
        axes.text(
            column,
            row,
            format(value, number_format),
            ha="center",
            va="center",
            fontsize=8,
            color="white" if dark else "black",
            weight="bold" if correct else "normal",
        )


def show_calibration(
    found: MisclassifiedSamples,
    *,
    fig: Figure | SubFigure | None = None,
) -> Figure:
    """Draw accuracy against confidence (a reliability diagram), with the number of images below.

    Args:
        found: Result of `find_misclassified`. All samples count, not only those that were kept.
        fig: Figure or subfigure to draw into. If None, create a figure without pyplot.

    Returns:
        The figure; save it with `fig.savefig(path)`.

    Raises:
        TypeError: If `found` is not a `MisclassifiedSamples`, or `fig` is not a figure.

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
    check_figure(fig)
    calibration = found.calibration
    bins = len(calibration.counts)
    width = 1 / bins
    centers = (np.arange(bins) + 0.5) * width
    accuracy = calibration.accuracy.nan_to_num(0.0).numpy()
    fig = fig or new_figure(4.5, 4.8)
    upper, lower = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(centers, accuracy, 0.92 * width, color=BLUE, label="accuracy")
    upper.plot([0, 1], [0, 1], "--", color=VERMILION, linewidth=1.5, label="perfect calibration")
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    upper.set_ylabel("accuracy")
    upper.legend(loc="upper left", fontsize=8)
    upper.set_title(
        f"expected calibration error {100 * calibration.expected_error:.2f} %\n"
        f"{found.total:,} images, {bins} bins",
        fontsize=10,
    )
    lower.bar(centers, calibration.counts.numpy(), 0.92 * width, color=GRAY)
    lower.set_yscale("symlog", linthresh=1)
    lower.set_ylim(bottom=0)
    lower.set_ylabel("images")
    lower.set_xlabel("confidence (probability of the predicted class)")
    return fig.figure


def _check(found: object, name: str) -> None:
    if not isinstance(found, MisclassifiedSamples):
        raise TypeError(
            f"{name} expects the result of find_misclassified(model, data), but got "
            f"{type(found).__name__}."
        )
