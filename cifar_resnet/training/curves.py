"""The training curves of a finished or running training. It knows log files and axes; it must not
know networks, data or how the run was made.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cifar_resnet import arguments

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["show_training_curves"]

Curve = tuple[Sequence[float], Sequence[float]]  # epochs, values
Scalars = dict[str, tuple[list[float], list[float]]]  # name -> steps, values
Floats = NDArray[np.float64]

# Okabe and Ito's palette: told apart by color-blind readers, too
_TRAIN, _VAL = "#0072B2", "#D55E00"
_RATES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def show_training_curves(
    log: str | Path | Mapping[str, Curve], *, fig: Figure | None = None
) -> Figure:
    """Draw loss, accuracy and learning rate against epochs.

    Args:
        log: A folder that holds a TensorBoard event file or Lightning's `metrics.csv`, or the
            curves themselves: name to (epochs, values), with the names that `ImageClassifier`
            logs (`train_loss_step`, `val_acc`, ...). Missing ones are left out.
        fig: Figure to draw into; None for a new one, made without pyplot.

    Returns:
        The figure; save it with `fig.savefig(path)`.

    Raises:
        TypeError: If `log` is neither a path nor a mapping to curves, or `fig` is no figure.
        FileNotFoundError: If the folder holds no log.
        ValueError: If the log holds none of the curves, or the epochs and the values of one differ
            in number.

    Examples:
        >>> from cifar_resnet import show_training_curves
        >>> curves = {"train_loss_epoch": ([1, 2, 3], [1.6, 1.1, 0.9]), "val_acc": ([3], [0.7])}
        >>> [axes.get_title() for axes in show_training_curves(curves).axes]
        ['Loss', 'Accuracy']
    """
    from matplotlib.figure import Figure

    arguments.figure("fig", fig)
    if isinstance(log, Mapping):
        curves = {_name(name): _checked(name, curve) for name, curve in log.items()}
    else:
        curves = read_curves(arguments.path("log", log, "a run's folder, or curves by their names"))
    # one for each group of parameters
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
            f"The log holds no training curves, only {sorted(curves)}. Expected the names that "
            "ImageClassifier logs, such as train_loss_epoch."
        )
    if fig is None:
        fig = Figure(figsize=(4.5 * len(panels), 3.5), layout="constrained")
    all_axes = fig.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, names) in zip(all_axes, panels, strict=True):
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        for name in names:
            if name in curves:
                _draw(axes, name, curves[name])
        if title != "Learning rate" or len(rates) > 1:
            axes.legend()
        if title == "Accuracy":
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    return fig


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"log must hold curves by their names, but got {name!r} for a name.")
    return name


def _checked(name: str, curve: Any) -> Curve:
    message = (
        f"log must hold curves as (epochs, values), sequences of numbers of the same length, but "
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
    if name.endswith("_step"):
        axes.plot(epochs, values, color=_TRAIN, alpha=0.3, linewidth=0.8, label="train, one batch")
    elif name.startswith("val"):
        axes.plot(epochs, values, color=_VAL, marker="s", markersize=3, label="validation")
    elif name.startswith("train"):
        axes.plot(
            epochs, values, color=_TRAIN, marker="o", markersize=3, label="train, mean of epoch"
        )
    else:
        group = name.rpartition("/")[2].replace("_", " ")
        axes.plot(epochs, values, color=_RATES[len(axes.lines) % len(_RATES)], label=group)


def read_curves(folder: Path) -> dict[str, Curve]:
    """All scalars of a log as name to (epochs, values); epochs are fractional within an epoch."""
    if any(folder.glob("events.out.tfevents.*")):
        scalars = _read_tensorboard(folder)
    elif (folder / "metrics.csv").is_file():
        scalars = _read_csv(folder / "metrics.csv")
    elif folder.is_file():
        raise NotADirectoryError(
            f"{folder} is a file. Give the folder of one run that holds it, such as "
            "trainer.logger.log_dir."
        )
    else:
        raise FileNotFoundError(
            f"{folder} holds neither a TensorBoard event file nor a metrics.csv. "
            "Give the folder of one run, such as trainer.logger.log_dir."
        )
    if "epoch" not in scalars:  # not a log of Lightning's
        return {}
    to_epochs = _epochs_of_steps(scalars)
    return {
        name: (to_epochs(np.asarray(steps)).tolist(), values)
        for name, (steps, values) in scalars.items()
        if name != "epoch"
    }


def _epochs_of_steps(scalars: Scalars) -> Callable[[Floats], Floats]:
    """How many epochs were finished after a step, with fractions in between.

    Lightning logs the epoch, counted from 0, beside every value, and the values of an epoch at its
    last step. (A test after the last epoch is logged as one epoch more, at the next step, so the
    highest epoch in the log tells nothing.)
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
        # A resumed run writes some steps again: the later ones count.
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
