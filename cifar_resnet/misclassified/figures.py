"""The misclassified images with the maps that explain them, in one figure. It knows samples, maps
and axes; it must not know how samples are found.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.data.class_names import as_class_names, check_class
from cifar_resnet.misclassified.cams import METHODS, check_method, check_reshape, explain
from cifar_resnet.misclassified.cells import GAP, LEAST_WIDTH, LINE, PANEL, bars_of, draw_cell
from cifar_resnet.misclassified.layers import Reshape, check_target_layers
from cifar_resnet.misclassified.records import MisclassifiedSamples
from cifar_resnet.misclassified.scan import SORTS, find_misclassified
from cifar_resnet.normalization import as_statistics
from cifar_resnet.plotting.saving import check_save_path, save_figure

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure

__all__ = ["show_misclassified"]

CAMS = ("both", "predicted", "true", "contrast", None)
_FIRST = {
    "loss": "highest loss first",
    "confidence": "most confident first",
    "margin": "largest margin first",
    "index": "by index",
    "random": "chosen at random",
}

# Inches between columns, between rows, for the title, for the note.
_SPACE, _BETWEEN, _TOP, _BOTTOM = 0.22, 0.1, 0.48, 0.45


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
    save_path: str | Path | None = None,
    dpi: float = 150,
    batch_size: int = 500,
    device: torch.device | str | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    seed: int = 0,
) -> Figure | SubFigure:
    """Draw the images that a classifier gets wrong, with where it saw the classes.

    Each cell holds an image with its index, label and prediction, class activation maps laid over
    it, and the highest probabilities. Images keep their brightness and are never smoothed; maps are
    interpolated from the grid that is named below the figure, each scaled to its own maximum.
    Known label suspects are marked. The model stays as it is, and pyplot is not used.

    Args:
        model: Any module from images to class scores (N, classes).
        data: As for `find_misclassified`, or its result, which saves running the model again; what
            chooses or sorts the errors is then given to `find_misclassified` alone.
        n: Most errors to draw.
        sort_by: As for `find_misclassified`.
        true_class: Only errors on images of this class.
        pred_class: Only errors that name this class.
        cam: Maps to draw: "both" for the predicted and the true class, "predicted", "true",
            "contrast" for what speaks for the predicted class rather than the true one, or None.
        method: As for `compute_cams`.
        target_layers: As for `compute_cams`.
        reshape_transform: As for `compute_cams`.
        alpha: Opacity of the maps in [0, 1].
        cmap: Matplotlib color map of the maps; the default is safe for the color-blind.
        top_k: Number of probabilities to draw; the true class always has its bar. 0 for none.
        columns: Number of columns; None for a figure somewhat wider than high.
        fig: Figure or subfigure to draw into; None for a new one.
        figsize: Width and height in inches of a new figure; None for what the cells need.
        save_path: File to save to, by its ending; whole or not at all.
        dpi: Dots per inch of the file and of a new figure.
        batch_size: As for `find_misclassified`.
        device: As for `find_misclassified`.
        class_names: As for `find_misclassified`.
        mean: As for `find_misclassified`.
        std: As for `find_misclassified`.
        seed: As for `find_misclassified`.

    Returns:
        The figure. With fewer errors than `n` it shows those; without any it says so.

    Raises:
        TypeError: If `model` or `data` is nothing that `find_misclassified` takes, or another
            argument has the wrong type.
        ValueError: If an argument is out of its range, or as `find_misclassified` and
            `compute_cams` raise.
        OSError: If `save_path` cannot be written; before anything is computed.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from cifar_resnet import CustomResNet, show_misclassified
        >>> data = TensorDataset(torch.rand(20, 3, 32, 32), torch.arange(20) % 10)
        >>> fig = show_misclassified(CustomResNet(width=4), data, n=4)
        >>> len(fig.axes)  # four errors and the scale of the maps
        5
    """
    check_figure(
        fig, figsize, save_path, n=n, sort_by=sort_by, true_class=true_class,
        pred_class=pred_class, cam=cam, method=method, target_layers=target_layers,
        reshape_transform=reshape_transform, alpha=alpha, cmap=cmap, top_k=top_k, columns=columns,
        dpi=dpi, batch_size=batch_size, class_names=class_names, mean=mean, std=std, seed=seed,
    )  # fmt: skip
    if device is not None:
        device = arguments.device("device", device)
    if isinstance(data, MisclassifiedSamples):
        _check_found(
            sort_by=sort_by, true_class=true_class, pred_class=pred_class, class_names=class_names,
            mean=mean, std=std, seed=seed,
        )  # fmt: skip
        found = data[:n]
    else:
        found = find_misclassified(
            model,
            data,
            n=n,
            sort_by=sort_by,
            true_class=true_class,
            pred_class=pred_class,
            batch_size=batch_size,
            device=device,
            class_names=class_names,
            mean=mean,
            std=std,
            seed=seed,
        )
    maps: dict[str, Tensor] = {}
    note = ""
    if found and cam is not None:
        inputs = torch.stack([sample.inputs for sample in found])
        true = [sample.true for sample in found]
        predicted = [sample.predicted for sample in found]
        for kind in ("predicted", "true") if cam == "both" else (cam,):
            maps[kind], layers = explain(
                model,
                inputs.float(),
                true if kind == "true" else predicted,
                against=true if kind == "contrast" else None,
                method=method,
                target_layers=target_layers,
                reshape_transform=reshape_transform,
                device=device,
            )
        where = ", ".join(f"{layer.name} ({layer.grid[0]} x {layer.grid[1]})" for layer in layers)
        note = f"{METHODS[method][1]} of {where}, each map scaled to its own maximum"
    fig = _draw(found, maps, note, alpha, cmap, top_k, columns, fig, figsize, dpi)
    if save_path is not None:
        save_figure(fig, save_path, dpi)
    return fig


def _check_found(**options: Any) -> None:
    """Raise for what would change which errors are found, where they are found already."""
    defaults = show_misclassified.__kwdefaults__ or {}
    given = [
        name
        for name, value in options.items()
        if (value is not None if defaults[name] is None else value != defaults[name])
    ]
    if given:
        raise ValueError(
            f"{' and '.join(given)} cannot be given for errors that are found already. Give "
            f"{'it' if len(given) == 1 else 'them'} to find_misclassified, or the data in place of "
            "its result."
        )


def check_figure(
    fig: Figure | SubFigure | None,
    figsize: tuple[float, float] | None,
    save_path: str | Path | None,
    **options: Any,
) -> None:
    """Raise for an argument that is wrong by itself, before anything is read."""
    check_options({"figsize": figsize, **options})
    arguments.figure("fig", fig)
    if fig is not None and figsize is not None:
        raise ValueError("Give fig or figsize, not both: a figure has its size already.")
    if save_path is not None:
        check_save_path(save_path)


def check_options(options: Mapping[str, Any]) -> None:
    """Raise for an argument of `show_misclassified` that is wrong by itself."""
    for name, value in options.items():
        if name not in _CHECKS and name not in ("mean", "std"):
            there_are = ", ".join((*_CHECKS, "mean", "std"))
            raise TypeError(f"There is no option {name!r}; there are {there_are}.")
        if name in _CHECKS and not (value is None and name in _OPTIONAL):
            _CHECKS[name](value)
    as_statistics(options.get("mean"), options.get("std"))


def _check_figsize(figsize: Any) -> None:
    expected = "a width and a height in inches"
    sides = arguments.sequence("figsize", figsize, expected)
    message = f"figsize must be {expected}, but got {figsize!r}."
    if not all(isinstance(side, Real) and not isinstance(side, bool) for side in sides):
        raise TypeError(message)
    if len(sides) != 2 or not all(0 < side < math.inf for side in sides):
        raise ValueError(message)


# The arguments that can be told before the work, each with its check.
_CHECKS: dict[str, Callable[[Any], object]] = {
    "n": partial(arguments.integer, "n", minimum=1),
    "sort_by": partial(arguments.choice, "sort_by", choices=SORTS),
    "true_class": partial(check_class, "true_class"),
    "pred_class": partial(check_class, "pred_class"),
    "cam": partial(arguments.choice, "cam", choices=CAMS),
    "method": check_method,
    "target_layers": check_target_layers,
    "reshape_transform": check_reshape,
    "alpha": partial(arguments.number, "alpha", within=arguments.FRACTION),
    "cmap": partial(arguments.colormap, "cmap"),
    "top_k": partial(arguments.integer, "top_k", minimum=0),
    "columns": partial(arguments.integer, "columns", minimum=1),
    "figsize": _check_figsize,
    "dpi": partial(arguments.number, "dpi", within=arguments.POSITIVE),
    "batch_size": partial(arguments.integer, "batch_size", minimum=1),
    "class_names": as_class_names,
    "seed": partial(arguments.integer, "seed", minimum=0),
}
_OPTIONAL = {
    "true_class", "pred_class", "target_layers", "reshape_transform", "columns", "figsize",
    "class_names",
}  # fmt: skip


def _draw(
    found: MisclassifiedSamples,
    maps: dict[str, Tensor],
    note: str,
    alpha: float,
    cmap: str | Colormap,
    top_k: int,
    columns: int | None,
    fig: Figure | SubFigure | None,
    figsize: tuple[float, float] | None,
    dpi: float,
) -> Figure | SubFigure:
    from matplotlib.figure import Figure

    colors = arguments.colormap("cmap", cmap)
    if not found:
        fig = fig or Figure(figsize=figsize or (6, 2), dpi=dpi)
        fig.text(0.5, 0.5, _no_errors(found), ha="center", va="center", fontsize=11)
        return fig
    height, width = found[0].image.shape[1:]
    panel_height = PANEL * height / width
    rows = [bars_of(sample, top_k) for sample in found]
    lines = 3 if not maps else 2
    bars = max(map(len, rows))
    panels = (1 + len(maps)) * (PANEL + GAP) - GAP
    cell = (
        max(panels, LEAST_WIDTH) if bars else panels,
        (lines + bool(maps) + bars) * LINE + panel_height + 0.08,
    )
    if columns is None:
        columns = _columns(len(found), (cell[1] + _BETWEEN) / (cell[0] + _SPACE))
    columns = min(columns, len(found))
    table = math.ceil(len(found) / columns)
    size = (
        max(columns * (cell[0] + _SPACE) + _SPACE, 4.5),
        table * (cell[1] + _BETWEEN) + _TOP + _BOTTOM,
    )
    fig = fig or Figure(figsize=figsize or size, dpi=dpi)
    box = fig.bbox.transformed(fig.dpi_scale_trans.inverted())
    scale = min(box.width / size[0], box.height / size[1])  # of the text, in a figure of other size
    left = (size[0] - columns * (cell[0] + _SPACE) + _SPACE) / 2
    for place, sample in enumerate(found):
        row, column = divmod(place, columns)
        axes = fig.add_axes((
            (left + column * (cell[0] + _SPACE)) / size[0],
            1 - (_TOP + row * (cell[1] + _BETWEEN) + cell[1]) / size[1],
            cell[0] / size[0],
            cell[1] / size[1],
        ))  # fmt: skip
        axes.set_axis_off()
        axes.set_xlim(0, cell[0])
        axes.set_ylim(0, cell[1])
        axes.set_aspect("equal", adjustable="box")
        mine = {kind: each[place] for kind, each in maps.items()}
        draw_cell(
            axes, found.class_names, sample, mine, rows[place], alpha, colors, scale, panel_height
        )
    fig.text(
        0.5, 1 - 0.1 / size[1], _wrapped(_title(found), size[0] * 13), ha="center", va="top",
        fontsize=9.5 * scale,
    )  # fmt: skip
    suspects = sum(sample.suspect for sample in found)
    if suspects:
        note += ("; " if note else "") + (
            f"{suspects} label suspect{'s' if suspects > 1 else ''}: fewer than 3 of 5 people "
            "chose the label"
        )
    if maps:
        scale_axes = fig.add_axes(
            (1 - 1.15 / size[0], 0.2 / size[1], 0.9 / size[0], 0.09 / size[1])
        )
        scale_axes.imshow(np.linspace(0, 1, 256)[None], cmap=colors, aspect="auto")
        scale_axes.set_xticks([0, 255], ["0", "max."], fontsize=6 * scale)
        scale_axes.set_yticks([])
        scale_axes.tick_params(length=0, pad=1)
    room = size[0] - (1.6 if maps else 0.5)
    fig.text(
        0.25 / size[0], 0.16 / size[1], _wrapped(note, room * 20), ha="left", va="bottom",
        fontsize=6.5 * scale, linespacing=1.1,
    )  # fmt: skip
    return fig


def _title(found: MisclassifiedSamples) -> str:
    of = ""
    if found.true_class is not None or found.pred_class is not None:
        of = f" ({_filter(found)})"
    return (
        f"{len(found)} of {found.matching:,} errors{of} in {found.total:,} images "
        f"({100 * found.accuracy:.2f} % right), {_FIRST[found.sort_by]}"
    )


def _filter(found: MisclassifiedSamples) -> str:
    true, predicted = found.true_class or "any class", found.pred_class or "any other"
    return f"{true} taken for {predicted}"


def _no_errors(found: MisclassifiedSamples) -> str:
    of = ""
    if found.true_class is not None or found.pred_class is not None:
        of = f" of {_filter(found)}"
    return f"No errors{of} in {found.total:,} images ({100 * found.accuracy:.2f} % right)."


def _columns(number: int, ratio: float) -> int:
    """For a figure somewhat wider than high, with few places empty. `ratio` is that of a cell's
    height to its width."""
    ideal = max(1, round(math.sqrt(number * 1.3 * ratio)))
    return min((ideal, ideal + 1), key=lambda columns: -number % columns)


def _wrapped(text: str, letters: float) -> str:
    return "\n".join(textwrap.wrap(text, max(20, int(letters))))
