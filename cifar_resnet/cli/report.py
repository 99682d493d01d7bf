"""Report a finished run: figures, `metrics.json` and a summary."""

from __future__ import annotations

import argparse
import copy
import os
import platform
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.loggers import Logger, TensorBoardLogger
from torch import nn

from cifar_resnet import CustomResNet, ImageDataModule, Recipe, show_training_curves
from cifar_resnet.cli import hardware, loggers, run_folder
from cifar_resnet.cli.progress import Progress, duration
from cifar_resnet.machine import device_name
from cifar_resnet.plotting.loggers import log_figures
from cifar_resnet.plotting.saving import save_figure

# The run's own files, and what they show.
FILES = {
    "metrics.json": "all results, with versions, hardware and seed",
    "curves.png": "loss, accuracy and learning rate",
    "misclassified.png": "the errors with the highest loss, with class activation maps",
    "confusion_matrix.png": "which classes are confused",
    "calibration.png": "accuracy at each confidence",
    "history.npz": "loss, margin and prediction of each training image in each epoch",
    "best.ckpt": "checkpoint of the epoch with the best {monitor}",
    "last.ckpt": "checkpoint of the end of the run, whose network was tested",
}


def save_curves(folder: Path, used: list[Logger], network: CustomResNet) -> None:
    """Draw the training curves and log them; with TensorBoard, log the network's graph as well."""
    figure = show_training_curves(loggers.curves_folder(used))
    save_figure(figure, folder / "curves.png", dpi=150)
    for logger in used:
        log_figures(logger, {"training_curves": figure}, files=False)
        if isinstance(logger, TensorBoardLogger):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the graph writer uses a deprecated tracer
                image = torch.zeros(1, network.in_channels, *network.image_size)
                logger.experiment.add_graph(copy.deepcopy(network).cpu().float().eval(), image)


def collect_metrics(
    args: argparse.Namespace,
    recipe: Recipe,
    network: nn.Module,
    scores: dict[str, float],
    timer: Progress,
    data: ImageDataModule,
    device: torch.device,
) -> dict[str, Any]:
    """Collect what `metrics.json` holds."""
    tested = len(data.indices("test"))
    names = [name for name in run_folder.SAVED if name not in ("data_dir", "set")]
    return {
        "accuracy": scores["test_acc"],
        "accuracy_mirror": scores.get("test_acc_mirror"),
        "accuracy_six": scores.get("test_acc_six"),
        "test_loss": scores["test_loss"],
        "test_images": min(tested, 2 * recipe.batch_size) if args.smoke else tested,
        "val_acc": timer.val_acc,
        "train_images": data.num_samples,
        "train_seconds": timer.seconds,
        "images_per_second": timer.images / timer.seconds,
        "total_seconds": timer.stages.total(),
        "stage_seconds": timer.stages.seconds,
        "resumed": bool(args.resume),
        "peak_memory_mb": hardware.peak_memory_mb(),
        **{name: getattr(args, name) for name in names},
        "batch_size": recipe.batch_size,
        "recipe": recipe.to_dict(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "hardware": {
            "device": device_name(device),
            "cpu_count": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pytorch_lightning": version("pytorch_lightning"),
            "cifar_resnet": version("cifar_resnet"),
        },
    }


def summary(folder: Path, metrics: dict[str, Any], monitor: str) -> str:
    """Return the summary that is printed at the end."""
    views = "".join(
        f", {100 * metrics[name]:.2f} % with {shown}"
        for name, shown in (("accuracy_mirror", "the mirror image"), ("accuracy_six", "six views"))
        if metrics[name] is not None
    )
    files = {name: text for name, text in FILES.items() if (folder / name).exists()}
    width = max(map(len, files))
    lines = [
        "",
        f"Test accuracy   {100 * metrics['accuracy']:.2f} % without TTA{views}",
        f"Training        {duration(metrics['train_seconds'])}, "
        f"{metrics['images_per_second']:,.0f} images/s",
        f"In {folder}:",
        *(f"  {name:<{width}}  {text.format(monitor=monitor)}" for name, text in files.items()),
    ]
    if metrics["logger"] == "tensorboard":
        lines.append(f"Curves in the browser: tensorboard --logdir {folder.parent}")
    return "\n".join(lines)
