"""The counts over all samples as figures: who is taken for whom, and what confidence is worth. They
know the counts alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cifar_resnet import arguments
from cifar_resnet.misclassified.figures import check_figure
from cifar_resnet.misclassified.records import MisclassifiedSamples
from cifar_resnet.plotting.saving import save_figure

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

__all__ = ["show_calibration", "show_confusion_matrix"]

_MOST_NUMBERS = 25  # classes up to which each cell has its count


def show_confusion_matrix(
    found: MisclassifiedSamples,
    *,
    normalize: bool = False,
    cmap: str | Colormap = "cividis",
    fig: Figure | None = None,
    save_path: str | Path | None = None,
    dpi: float = 150,
) -> Figure:
    """Draw how often each class is taken for which, with the share of right ones beside it.

    The colors are those of the errors; the diagonal, which would drown them, stays gray.

    Args:
        found: What `find_misclassified` gives; all samples count, not only those kept.
        normalize: Whether to show shares of the label's samples in per cent, not counts.
        cmap: Matplotlib color map of the errors.
        fig: Figure to draw into; None for a new one, made without pyplot.
        save_path: File to save to, by its ending.
        dpi: Dots per inch of the file and of a new figure.

    Returns:
        The figure.

    Raises:
        TypeError: If `found` is something else, or another argument has the wrong type.
        ValueError: If there is no such color map, `dpi` is out of its range, or `save_path` has no
            picture's ending.
        OSError: If `save_path` cannot be written.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from cifar_resnet import CustomResNet, find_misclassified, show_confusion_matrix
        >>> data = TensorDataset(torch.rand(20, 3, 32, 32), torch.arange(20) % 10)
        >>> found = find_misclassified(CustomResNet(width=4), data)
        >>> show_confusion_matrix(found).axes[0].get_ylabel()
        'label'
    """
    from matplotlib.figure import Figure

    _check(found, "show_confusion_matrix")
    arguments.boolean("normalize", normalize)
    check_figure(fig, None, save_path, cmap=cmap, dpi=dpi)
    classes = len(found.class_names)
    counts = found.confusion.double().numpy()
    labels = counts.sum(1, keepdims=True)
    values = 100 * np.divide(counts, labels, where=labels > 0, out=np.zeros_like(counts))
    values = values if normalize else counts
    errors = values.copy()
    np.fill_diagonal(errors, np.nan)
    numbers = classes <= _MOST_NUMBERS
    side = max(4.0, 1.8 + 0.5 * classes) if numbers else 9.0
    fig = fig or Figure(figsize=(side + 1.8, side), layout="constrained", dpi=dpi)
    axes = fig.subplots()
    colors = arguments.colormap("cmap", cmap).with_extremes(bad="#DDDDDD")
    largest = float(np.nanmax(errors)) if classes > 1 else 0.0
    picture = axes.imshow(errors, cmap=colors, vmin=0, vmax=max(largest, 1e-9))
    if numbers:
        for row in range(classes):
            for column in range(classes):
                value = values[row, column]
                text = f"{value:.1f}" if normalize else f"{value:.0f}"
                dark = row != column and value < 0.55 * largest
                axes.text(
                    column, row, text, ha="center", va="center", fontsize=8,
                    color="white" if dark else "black",
                    weight="bold" if row == column else "normal",
                )  # fmt: skip
        axes.set_xticks(range(classes), found.class_names, rotation=45, ha="right")
        right = found.class_accuracy.values()
        axes.set_yticks(
            range(classes),
            [
                f"{name}  ({'no image' if np.isnan(share) else f'{100 * share:.1f} % right'})"
                for name, share in zip(found.class_names, right, strict=True)
            ],
        )
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    axes.set_title(
        f"{found.errors:,} errors in {found.total:,} images ({100 * found.accuracy:.2f} % right)",
        fontsize=10,
    )
    unit = "% of the label's images" if normalize else "images"
    fig.colorbar(picture, ax=axes, label=f"errors ({unit})", shrink=0.8)
    if save_path is not None:
        save_figure(fig, save_path, dpi)
    return fig


def show_calibration(
    found: MisclassifiedSamples,
    *,
    fig: Figure | None = None,
    save_path: str | Path | None = None,
    dpi: float = 150,
) -> Figure:
    """Draw accuracy against confidence (a reliability diagram) with the number of images below.

    Args:
        found: What `find_misclassified` gives; all samples count, not only those kept.
        fig: Figure to draw into; None for a new one, made without pyplot.
        save_path: File to save to, by its ending.
        dpi: Dots per inch of the file and of a new figure.

    Returns:
        The figure.

    Raises:
        TypeError: If `found` is something else, or another argument has the wrong type.
        ValueError: If `dpi` is out of its range, or `save_path` has no picture's ending.
        OSError: If `save_path` cannot be written.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from cifar_resnet import CustomResNet, find_misclassified, show_calibration
        >>> data = TensorDataset(torch.rand(20, 3, 32, 32), torch.arange(20) % 10)
        >>> found = find_misclassified(CustomResNet(width=4), data)
        >>> [axes.get_ylabel() for axes in show_calibration(found).axes]
        ['share right', 'images']
    """
    from matplotlib.figure import Figure

    _check(found, "show_calibration")
    check_figure(fig, None, save_path, dpi=dpi)
    calibration = found.calibration
    bins = len(calibration.counts)
    width = 1 / bins
    middles = (np.arange(bins) + 0.5) * width
    accuracy = calibration.accuracy.nan_to_num(0.0).numpy()
    fig = fig or Figure(figsize=(4.5, 4.8), layout="constrained", dpi=dpi)
    upper, lower = fig.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.bar(middles, accuracy, 0.92 * width, color="#0072B2", label="share right")
    upper.plot([0, 1], [0, 1], "--", color="#D55E00", linewidth=1.5, label="perfectly calibrated")
    upper.set_xlim(0, 1)
    upper.set_ylim(0, 1)
    upper.set_ylabel("share right")
    upper.legend(loc="upper left", fontsize=8)
    upper.set_title(
        f"expected calibration error {100 * calibration.expected_error:.2f} %\n"
        f"{found.total:,} images, {bins} bins",
        fontsize=10,
    )
    lower.bar(middles, calibration.counts.numpy(), 0.92 * width, color="#999999")
    lower.set_yscale("symlog", linthresh=1)
    lower.set_ylim(bottom=0)
    lower.set_ylabel("images")
    lower.set_xlabel("confidence (probability of the predicted class)")
    if save_path is not None:
        save_figure(fig, save_path, dpi)
    return fig


def _check(found: object, name: str) -> None:
    if not isinstance(found, MisclassifiedSamples):
        raise TypeError(
            f"{name} draws what find_misclassified(model, data) gives, but got "
            f"{type(found).__name__}."
        )
