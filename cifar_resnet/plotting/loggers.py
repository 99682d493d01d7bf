"""Pass figures to the loggers of Lightning."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_resnet.plotting.saving import save_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def log_figures(
    logger: Any, figures: Mapping[str, Figure], step: int | None = None, *, files: bool = True
) -> None:
    """Log figures by their names, with the logger's own call for images.

    Args:
        logger: Logger of `pytorch_lightning` or `lightning`.
        figures: The figures.
        step: Optimizer step that the figures belong to, if any.
        files: Whether to save the figures in the folder of a logger without such a call, such as
            `CSVLogger`.
    """
    bases = {base.__name__ for base in type(logger).__mro__}  # of either package
    log = next((function for name, function in _CALLS.items() if name in bases), None)
    add_figure = getattr(getattr(logger, "experiment", None), "add_figure", None)
    if log is not None:
        log(logger, figures, step)
    elif callable(add_figure):  # as in TensorBoard
        for name, figure in figures.items():
            add_figure(name, figure, global_step=step)
    elif files:
        _save(logger, figures)


def _log_to_wandb(logger: Any, figures: Mapping[str, Figure], step: int | None) -> None:
    from PIL import Image

    for name, figure in figures.items():
        content = io.BytesIO()
        figure.savefig(content, format="png")
        with Image.open(content) as image:
            logger.log_image(key=name, images=[image], step=step)


def _log_to_mlflow(logger: Any, figures: Mapping[str, Figure], step: int | None) -> None:
    for name, figure in figures.items():
        logger.experiment.log_figure(logger.run_id, figure, f"{name}.png")


def _log_to_comet(logger: Any, figures: Mapping[str, Figure], step: int | None) -> None:
    for name, figure in figures.items():
        logger.experiment.log_figure(figure_name=name, figure=figure, step=step)


def _log_to_neptune(logger: Any, figures: Mapping[str, Figure], step: int | None) -> None:
    for name, figure in figures.items():
        logger.experiment[name].upload(figure)


def _save(logger: Any, figures: Mapping[str, Figure]) -> None:
    folder = getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None)
    if folder is not None:
        save_figures(figures, Path(folder))
    else:
        warnings.warn(
            f"{type(logger).__name__} accepts neither figures nor files, so {', '.join(figures)} "
            "were not logged. Save them in a folder of your own, with save_dir.",
            stacklevel=2,
        )


_CALLS = {
    "WandbLogger": _log_to_wandb,
    "MLFlowLogger": _log_to_mlflow,
    "CometLogger": _log_to_comet,
    "NeptuneLogger": _log_to_neptune,
}
