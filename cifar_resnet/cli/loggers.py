"""Create the logger that `--logger` names."""

from __future__ import annotations

import csv
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import (
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)

from cifar_resnet.cli.options import CommandError

_MLFLOW_RUN = "mlflow_run_id"


def check_installed(name: str) -> None:
    """Raise if the package of a logger is not installed."""
    if name in ("wandb", "mlflow") and find_spec(name) is None:
        raise CommandError(
            f"--logger {name} needs the package {name}, which is not installed. Install it with: "
            f"pip install {name}"
        )


def make_loggers(name: str, folder: Path, resume_step: int | None) -> list[Logger]:
    """Create the logger called `name`, and one that keeps the curves in the run's folder.

    Args:
        name: `"tensorboard"`, `"csv"`, `"wandb"` or `"mlflow"`.
        folder: Folder of the run; its name is that of the run in W&B and MLflow.
        resume_step: Step from which the run resumes: TensorBoard drops the values logged at it or
            later, which will be logged again. If None, the run is new.

    Returns:
        The loggers; the last one writes to `folder / "tensorboard"` or `folder / "csv"`.
    """
    if name == "tensorboard":
        return [
            TensorBoardLogger(
                str(folder), name="", version="tensorboard", default_hp_metric=False,
                purge_step=resume_step,
            )
        ]  # fmt: skip
    local = CSVLogger(str(folder), name="", version="csv")
    if name == "wandb":
        # W&B resumes the run that has the same id.
        online = WandbLogger(
            project="cifar-resnet", name=folder.name, id=folder.name, save_dir=str(folder),
            resume="allow",
        )  # fmt: skip
        return [online, local]
    if name == "mlflow":
        return [_mlflow_logger(folder), local]
    return [local]


def start(loggers: list[Logger], folder: Path, resume_step: int | None) -> None:
    """Connect the loggers to their files or servers, before the training.

    Only the main process calls this, since it changes files. The arguments are those of
    `make_loggers`.

    Raises:
        CommandError: If one of them fails, for example because it needs a login.
    """
    for logger in loggers:
        rows = _earlier_rows(folder, resume_step) if isinstance(logger, CSVLogger) else []
        try:
            experiment: Any = logger.experiment  # type: ignore[attr-defined]
        except Exception as error:  # loggers raise errors of their own packages
            name = type(logger).__name__
            raise CommandError(f"{name} cannot start: {type(error).__name__}: {error}") from error
        if isinstance(logger, MLFlowLogger):  # a resumed run needs it
            (folder / _MLFLOW_RUN).write_text(f"{logger.run_id}\n")
        for step, values in rows:
            experiment.log_metrics(values, step)
        if rows:
            experiment.save()


def curves_folder(loggers: list[Logger]) -> str:
    """Return the folder of the logger that keeps the curves on disk."""
    local: Any = loggers[-1]
    return str(local.log_dir)


def log_hyperparameters(
    loggers: list[Logger], values: dict[str, Any], metrics: dict[str, float]
) -> None:
    """Log the hyperparameters; in TensorBoard together with the final metrics (tab HPARAMS)."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(values, {f"hp/{name}": v for name, v in metrics.items()})
        else:
            logger.log_hyperparams(values)


def _earlier_rows(folder: Path, resume_step: int | None) -> list[tuple[int, dict[str, float]]]:
    """Take the rows of a resumed run out of its CSV files, which Lightning would delete.

    Rows at the step from which the run resumes or later are left out: they will be logged again.
    """
    path = folder / "csv" / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = [(int(row.pop("step")), row) for row in csv.DictReader(file)]
    path.unlink()
    (folder / "csv" / "hparams.yaml").unlink(missing_ok=True)
    return [
        (step, {name: float(value) for name, value in row.items() if value != ""})
        for step, row in rows
        if step < (resume_step or 0)
    ]


def _mlflow_logger(folder: Path) -> MLFlowLogger:
    """Create an MLflow logger; a resumed run continues the MLflow run that it started."""
    path = folder / _MLFLOW_RUN
    return MLFlowLogger(
        experiment_name="cifar-resnet",
        run_name=folder.name,
        run_id=path.read_text().strip() if path.is_file() else None,
        # Lightning's default, a folder of files, is refused by MLflow 3.
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder.parent}/mlflow.db"),
    )
