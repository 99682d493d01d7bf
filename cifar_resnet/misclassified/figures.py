"""Draw the misclassified images with their class activation maps in one figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from cifar_resnet import arguments
from cifar_resnet.data.reading import Source
from cifar_resnet.misclassified.cams import METHODS, CamOptions, check_visible
from cifar_resnet.misclassified.cells import CellLayout, draw_cell
from cifar_resnet.misclassified.collector import ScanOptions
from cifar_resnet.misclassified.diagrams import show_calibration, show_confusion_matrix
from cifar_resnet.misclassified.layers import Reshape
from cifar_resnet.misclassified.maps import Maps, maps_of_batch, maps_of_errors
from cifar_resnet.misclassified.records import MisclassifiedSamples
from cifar_resnet.misclassified.scan import scan
from cifar_resnet.model_state import unwrap_compiled
from cifar_resnet.plotting.canvas import Canvas, check_figure, draws
from cifar_resnet.plotting.pictures import as_rgb
from cifar_resnet.plotting.style import IMAGE, finish

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure

__all__ = ["show_misclassified"]

CAMS = ("both", "predicted", "true", "contrast", None)
_ORDERS = {
    "loss": "highest loss first",
    "confidence": "most confident first",
    "margin": "largest margin first",
    "index": "by index",
    "random": "chosen at random",
}

# Inches: between columns, between rows, for the title, for the note.
_SPACE, _BETWEEN, _TOP, _BOTTOM = 0.22, 0.1, 0.48, 0.45


@draws
def show_misclassified(
    model: nn.Module,
    data: Any = None,
    *,
    n: int = 25,
    sort_by: str = "loss",
    true_class: int | str | None = None,
    pred_class: int | str | None = None,
    cam: str | None = "both",
    method: str = "gradcam",
    target_layers: str | nn.Module | Sequence[str | nn.Module] | None = None,
    reshape_transform: Reshape | None = None,
    alpha: float = 0.5,
    cmap: str | Colormap = "viridis",
    top_k: int = 3,
    columns: int | None = None,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
    batch_size: int | None = None,
    max_samples: int | None = None,
    device: torch.device | str | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    seed: int = 0,
) -> Figure:
    """Draw the images that a classifier gets wrong, with class activation maps.

    Each cell shows an image with its index, label and prediction, class activation maps laid over
    it, and the highest probabilities. Images keep their brightness and are not smoothed. Maps are
    interpolated from the grid that is given below the figure, each scaled to its own maximum. Known
    label suspects are marked. The model is left unchanged, and pyplot is not used.

    Args:
        model: Any module from images to class scores (N, classes).
        data: As for `find_misclassified`, or its result, which saves running the model again. In
            this case, pass the arguments that select or sort the errors to `find_misclassified`.
        n: Maximum number of errors to draw.
        sort_by: As for `find_misclassified`.
        true_class: Draw only errors on images of this class.
        pred_class: Draw only errors predicted as this class.
        cam: Maps to draw: "both" for the predicted and the true class, "predicted", "true", or
            "contrast" for evidence for the predicted and against the true class. If None, draw
            none.
        method: As for `compute_cams`.
        target_layers: As for `compute_cams`.
        reshape_transform: As for `compute_cams`.
        alpha: Opacity of the maps in [0, 1].
        cmap: Matplotlib color map of the maps. The default is safe for color-blind readers.
        top_k: Number of probabilities to draw; that of the true class is always added. If 0, draw
            none.
        columns: Number of columns. If None, chosen for a figure somewhat wider than high.
        fig: Figure or subfigure to draw into. If None, create a figure.
        figsize: Width and height in inches of a new figure. If None, the size that the cells need.
        batch_size: As for `find_misclassified`.
        max_samples: As for `find_misclassified`.
        device: As for `find_misclassified`.
        class_names: As for `find_misclassified`.
        mean: As for `find_misclassified`.
        std: As for `find_misclassified`.
        seed: As for `find_misclassified`.

    Returns:
        The figure; save it with `fig.savefig(path)`. If there are fewer than `n` errors, it shows
        all of them; if there are none, it says so.

    Raises:
        TypeError: If `find_misclassified` does not accept `model` or `data`, or another argument
            has the wrong type.
        ValueError: If an argument is out of its range, or as for `find_misclassified` and
            `compute_cams`.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from cifar_resnet import CustomResNet, show_misclassified
        >>> data = TensorDataset(torch.rand(20, 3, 32, 32), torch.arange(20) % 10)
        >>> fig = show_misclassified(CustomResNet(width=4), data, n=4)
        >>> len(fig.axes)  # four errors and the color scale of the maps
        5
    """
    options = FigureOptions(
        n=n,
        scan=ScanOptions(
            sort_by=sort_by,
            true_class=true_class,
            pred_class=pred_class,
            batch_size=batch_size,
            max_samples=max_samples,
            device=device,
            class_names=class_names,
            mean=mean,
            std=std,
            seed=seed,
        ),
        cam=cam,
        cams=CamOptions(method, target_layers, reshape_transform),
        alpha=alpha,
        cmap=cmap,
        top_k=top_k,
        columns=columns,
        fig=fig,
        figsize=figsize,
    )
    if isinstance(data, MisclassifiedSamples):
        _check_unused(options.scan)
        found = data[: options.n]
    else:
        if options.cam is not None:
            check_visible(unwrap_compiled(model))
        found = scan(model, data, options.n, options.scan, show_progress=True)
    return draw_misclassified(model, found, options)


@dataclass(frozen=True)
class FigureOptions:
    """Checked arguments of `show_misclassified`, all except model and data."""

    n: int = 25
    scan: ScanOptions = field(default_factory=ScanOptions)
    cam: str | None = "both"
    cams: CamOptions = field(default_factory=CamOptions)
    alpha: float = 0.5
    cmap: Any = "viridis"  # converted to Colormap
    top_k: int = 3
    columns: int | None = None
    fig: Figure | SubFigure | None = None
    figsize: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        from matplotlib import colormaps

        converted: dict[str, Any] = {
            "n": arguments.integer("n", self.n, minimum=1),
            "alpha": arguments.number("alpha", self.alpha, within=arguments.FRACTION),
            "cmap": colormaps.get_cmap(self.cmap),
            "top_k": arguments.integer("top_k", self.top_k, minimum=0),
        }
        arguments.choice("cam", self.cam, CAMS)
        if self.columns is not None:
            converted["columns"] = arguments.integer("columns", self.columns, minimum=1)
        check_figure(self.fig, self.figsize)
        for name, value in converted.items():
            object.__setattr__(self, name, value)


def _check_unused(options: ScanOptions) -> None:
    """Raise for options that would select other errors than those already found."""
    given = [name for name in options.changed() if name not in ("batch_size", "device")]
    if given:
        raise ValueError(
            f"{' and '.join(given)} cannot be given for errors that are already found. Pass "
            f"{'it' if len(given) == 1 else 'them'} to find_misclassified, or pass the data in "
            "place of its result."
        )


def draw_all(
    model: nn.Module, found: MisclassifiedSamples, options: FigureOptions
) -> dict[str, Figure]:
    """Draw the first errors, the confusion matrix and the calibration, by their file names."""
    return {
        "misclassified": draw_misclassified(model, found[: options.n], options),
        "confusion_matrix": show_confusion_matrix(found),
        "calibration": show_calibration(found),
    }


def draw_misclassified(
    model: nn.Module, found: MisclassifiedSamples, options: FigureOptions
) -> Figure:
    """Compute the maps of errors and draw them."""
    maps: list[Maps] = [{} for _ in found]
    notes = []
    if found and options.cam is not None:
        maps, layers = maps_of_errors(model, found, options.cam, options.cams, options.scan.device)
        method = METHODS[options.cams.method][1]
        notes.append(f"{method} of {layers}, each map scaled to its own maximum")
    suspects = sum(sample.suspect for sample in found)
    if suspects:
        plural = "s" if suspects > 1 else ""
        notes.append(f"{suspects} label suspect{plural}: fewer than 3 of 5 people chose the label")
    return _draw(found, maps, "; ".join(notes), options)


def check_drawable(model: nn.Module, source: Source, options: FigureOptions) -> None:
    """Raise if the images in the first batch cannot be displayed, or have no maps."""
    indices, inputs, _ = next(source.batches())
    given = options.scan.statistics
    for index, image in zip(indices.tolist(), inputs, strict=True):
        as_rgb(image, given or source.statistics, name=f"Image {index}", clip=given is not None)
    if options.cam is not None:
        maps_of_batch(model, inputs[:1], [0], [0], options.cam, options.cams, options.scan.device)


def _draw(
    found: MisclassifiedSamples, maps: Sequence[Maps], note: str, options: FigureOptions
) -> Figure:
    if not found:
        canvas = Canvas(6, 2, options.fig, options.figsize)
        canvas.text(3, 1, _no_errors(found), points=11, ha="center", va="center")
        return canvas.figure
    cell = CellLayout.of(found, len(maps[0]), options.top_k, options.cmap, options.alpha)
    across, down = cell.width + _SPACE, cell.height + _BETWEEN  # from one cell to the next
    columns = min(options.columns or _columns(len(found), down / across), len(found))
    rows = math.ceil(len(found) / columns)
    width = max(columns * across + _SPACE, 4.5)
    canvas = Canvas(width, rows * down + _TOP + _BOTTOM, options.fig, options.figsize)
    left = (width - columns * across + _SPACE) / 2
    for number, sample in enumerate(found):
        row, column = divmod(number, columns)
        axes = canvas.axes(left + column * across, _TOP + row * down, cell.width, cell.height)
        draw_cell(axes, sample, maps[number], cell, canvas.scale)
    title = wrapped(_title(found), width * 13)
    canvas.text(width / 2, 0.1, title, points=9.5, ha="center", va="top")
    note = wrapped(note, (width - (1.6 if maps[0] else 0.5)) * 20)
    canvas.text(0.25, canvas.height - 0.16, note, points=6.5, va="bottom", linespacing=1.1)
    if maps[0]:
        draw_color_scale(canvas, options.cmap)
    return canvas.figure


def draw_color_scale(canvas: Canvas, colors: Colormap) -> None:
    axes = canvas.axes(canvas.width - 1.15, canvas.height - 0.29, 0.9, 0.09)
    axes.imshow(np.linspace(0, 1, 256)[None], cmap=colors, aspect="auto", **IMAGE)
    axes.set_xticks([0, 255], ["0", "max."])
    axes.set_yticks([])
    finish(axes, tick_points=6 * canvas.scale)
    axes.tick_params(length=0, pad=1)


def _title(found: MisclassifiedSamples) -> str:
    return (
        f"{len(found)} of {found.matching:,} errors{_filter(found)} in {found.total:,} images "
        f"(accuracy {100 * found.accuracy:.2f} %), {_ORDERS[found.sort_by]}"
    )


def _no_errors(found: MisclassifiedSamples) -> str:
    accuracy = f"accuracy {100 * found.accuracy:.2f} %"
    return f"No errors{_filter(found)} in {found.total:,} images ({accuracy})."


def _filter(found: MisclassifiedSamples) -> str:
    if found.true_class is None and found.pred_class is None:
        return ""
    true, predicted = found.true_class or "any class", found.pred_class or "another class"
    return f" ({true} predicted as {predicted})"


def _columns(number: int, ratio: float) -> int:
    """Choose the number of columns of a figure that is somewhat wider than high, with few empty
    cells. `ratio` is the height of a cell divided by its width.
    """
    ideal = max(1, round(math.sqrt(number * 1.3 * ratio)))
    return min((ideal, ideal + 1), key=lambda columns: -number % columns)


def wrapped(text: str, letters: float) -> str:
    return "\n".join(textwrap.wrap(text, max(20, int(letters))))
