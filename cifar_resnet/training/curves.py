"""Read the log of a training run and draw its curves."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnet import arguments
from cifar_resnet.plotting.canvas import check_figure, draws, new_figure
from cifar_resnet.plotting.palette import BLUE, CYCLE, VERMILION
from cifar_resnet.plotting.style import LABEL_POINTS, LINE, finish, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["show_training_curves"]

Curve = tuple[Sequence[float], Sequence[float]]  # epochs, values
Scalars = dict[str, tuple[list[float], list[float]]]  # name -> steps, values
Floats = NDArray[np.float64]


@draws
def show_training_curves(
    log: str | Path | Mapping[str, Curve],
    *,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw loss, accuracy and learning rate against epochs.

    Args:
        log: A folder with a TensorBoard event file or Lightning's `metrics.csv`, or the curves
            themselves: a mapping from names to (epochs, values), with the names that
            `ImageClassifier` logs (`train_loss_step`, `val_acc`, ...). Missing curves are left out.
        fig: Figure or subfigure to draw into. If None, create a figure without pyplot.
        figsize: Width and height in inches of a new figure. If None, chosen automatically.

    Returns:
        The figure; save it with `fig.savefig(path)`.

    Raises:
        TypeError: If `log` is neither a path nor a mapping to curves, `fig` is not a figure, or
            `figsize` is not a pair of numbers.
        FileNotFoundError: If the folder does not contain a log.
        ValueError: If the log contains none of the curves, a curve has different numbers of
            epochs and values, or `figsize` is out of its range or given together with `fig`.

    Examples:
        >>> from cifar_resnet import show_training_curves
        >>> curves = {"train_loss_epoch": ([1, 2, 3], [1.6, 1.1, 0.9]), "val_acc": ([3], [0.7])}
        >>> [axes.get_title() for axes in show_training_curves(curves).axes]
        ['Loss', 'Accuracy']
    """
    check_figure(fig, figsize)
    if isinstance(log, Mapping):
        curves = {_name(name): _checked(name, curve) for name, curve in log.items()}
    else:
        curves = read_curves(arguments.path("log", log, "a run's folder, or curves by their names"))
    # one curve for each group of parameters
    rates = tuple(name for name in curves if name.startswith(("lr-", "learning_rate")))
    panels = [
        (title, names)
        for title, names in (
            ("Loss", ("train_loss_step", "train_loss_epoch", "val_loss")),
            ("Accuracy", ("train_acc_step", "train_acc_epoch", "val_acc")),
            ("Learning rate", rates),
        )
        if any(len(curves.get(name, ((), ()))[0]) for name in names)
    ]
    if not panels:
        raise ValueError(
            f"The log contains no training curves, only {sorted(curves)}. Expected the names that "
            "ImageClassifier logs, such as train_loss_epoch."
        )
    if fig is None:
        fig = new_figure(4.5 * len(panels), 3.5, figsize)
    all_axes = fig.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name_of_panel, names) in zip(all_axes, panels, strict=True):
        title(axes, name_of_panel, points=12)
        axes.set_xlabel("epoch")
        for name in names:
            if name in curves:
                _draw(axes, name, curves[name])
        if name_of_panel != "Learning rate" or len(rates) > 1:
            axes.legend(loc="best", fontsize=LABEL_POINTS, frameon=True)
        if name_of_panel == "Accuracy":
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        finish(axes, grid=True)
    return fig.figure


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"log must map names to curves, but one of its names is {name!r}.")
    return name


def _checked(name: str, curve: Any) -> Curve:
    message = (
        f"log must map names to (epochs, values), sequences of numbers of the same length, but "
        f"{name!r} is {curve!r}."
    )
    try:
        parts = [np.asarray(part, dtype=np.float64) for part in curve]
    except (TypeError, ValueError) as error:
        raise TypeError(message) from error
    if len(parts) != 2 or parts[0].ndim != 1 or parts[0].shape != parts[1].shape:
        raise ValueError(message)
    return parts[0].tolist(), parts[1].tolist()


def _draw(axes: Axes, name: str, curve: Curve) -> None:
    epochs, values = curve
    mean = LINE | {"markersize": 3}
    if name.endswith("_step"):
        thin = LINE | {"alpha": 0.3, "linewidth": 0.8}
        axes.plot(epochs, values, color=BLUE, label="train, one batch", **thin)
    elif name.startswith("val"):
        style = mean | {"marker": "s"}
        axes.plot(epochs, values, color=VERMILION, label="validation", **style)
    elif name.startswith("train"):
        style = mean | {"marker": "o"}
        axes.plot(epochs, values, color=BLUE, label="train, mean of epoch", **style)
    else:
        group = name.rpartition("/")[2].replace("_", " ")
        color = CYCLE[len(axes.lines) % len(CYCLE)]
        axes.plot(epochs, values, color=color, label=group, **LINE)


def read_curves(folder: Path) -> dict[str, Curve]:
    """Read all scalars of a log as a mapping from names to (epochs, values).

    Within an epoch, epochs are fractional.
    """
    if any(folder.glob("events.out.tfevents.*")):
        scalars = _read_tensorboard(folder)
    elif (folder / "metrics.csv").is_file():
        scalars = _read_csv(folder / "metrics.csv")
    elif folder.is_file():
        raise NotADirectoryError(
            f"{folder} is a file. Pass the folder of the run that contains it, such as "
            "trainer.logger.log_dir."
        )
    else:
        raise FileNotFoundError(
            f"{folder} contains neither a TensorBoard event file nor a metrics.csv. "
            "Pass the folder of one run, such as trainer.logger.log_dir."
        )
    if "epoch" not in scalars:  # not written by Lightning
        return {}
    to_epochs = _epochs_of_steps(scalars)
    return {
        name: (to_epochs(np.asarray(steps)).tolist(), values)
        for name, (steps, values) in scalars.items()
        if name != "epoch"
    }


def _epochs_of_steps(scalars: Scalars) -> Callable[[Floats], Floats]:
    """Return a function from steps to the number of completed epochs, interpolated between them.

    Lightning logs the epoch, counted from 0, with every value, and the values of an epoch at its
    last step. The highest epoch in the log may not have been trained: a test after the last epoch
    is logged as the following epoch.
    """
    epoch_at = dict(zip(*scalars["epoch"], strict=True))
    ends = sorted(
        {
            (step + 1, epoch_at[step] + 1)
            for name, (steps, _) in scalars.items()
            if name.startswith("train_") and name.endswith("_epoch")
            for step in steps
            if step in epoch_at
        }
    )
    if not ends:  # no epoch has ended yet
        return lambda steps: np.interp(steps, list(epoch_at), list(epoch_at.values()))
    known_steps, known_epochs = np.array([(0.0, 0.0), *ends]).T
    rate = known_epochs[-1] / known_steps[-1]

    def convert(steps: Floats) -> Floats:
        beyond = np.maximum(steps + 1 - known_steps[-1], 0) * rate
        return np.asarray(np.interp(steps + 1, known_steps, known_epochs) + beyond)

    return convert


def _read_tensorboard(folder: Path) -> Scalars:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    scalars = {}
    for name in events.Tags()["scalars"]:
        # A resumed run logs some steps a second time; the later values replace the earlier ones.
        latest = {event.step: event.value for event in events.Scalars(name)}
        steps = sorted(latest)
        scalars[name] = ([float(step) for step in steps], [latest[step] for step in steps])
    return scalars


def _read_csv(path: Path) -> Scalars:
    scalars: Scalars = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name != "step" and value:
                    steps, values = scalars.setdefault(name, ([], []))
                    steps.append(float(row["step"]))
                    values.append(float(value))
    return scalars
