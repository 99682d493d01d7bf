"""Train and evaluate one run of a comparison."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from cifar_resnet.comparison.arms import Arm
from cifar_resnet.comparison.initial import build, seeded
from cifar_resnet.data.cifar_modules import CIFAR10DataModule
from cifar_resnet.machine import describe_machine, pick_device
from cifar_resnet.misclassified.counts import PredictionCounts
from cifar_resnet.misclassified.records import Calibration
from cifar_resnet.misclassified.scores import check_finite
from cifar_resnet.training.checkpoints import AtomicCheckpointIO, LastCheckpoint
from cifar_resnet.training.classifier import ImageClassifier

__all__ = ["HELD_OUT", "Setting", "train_run"]

HELD_OUT = 5000  # images
_EVERY = 30.0  # seconds between two checkpoints


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison have in common.

    Attributes:
        width: Width of the networks.
        epochs: Number of epochs.
        held_out: Whether to train on 45,000 images and evaluate on the 5,000 others; otherwise
            train on all 50,000 and evaluate on the test set.
        precision: Precision of Lightning's `Trainer`.
    """

    width: int
    epochs: int
    held_out: bool
    precision: str


def train_run(
    arm: Arm,
    seed: int,
    setting: Setting,
    *,
    data_dir: str | Path | None = None,
    checkpoints: Path | None = None,
) -> dict[str, Any]:
    """Train and evaluate one run, and return its line of results.

    Args:
        arm: What to train.
        seed: Seed of the initial weights, the order of the images and the augmentation.
        setting: What it has in common with the other runs.
        data_dir: Folder of CIFAR-10, as for `CIFAR10DataModule`.
        checkpoints: Folder of the run's checkpoints, from which it resumes. If None, there are
            none.

    Raises:
        KeyboardInterrupt: After Ctrl-C, with a checkpoint; `SystemExit` after SIGTERM.
        FloatingPointError: If the loss is not finite.
    """
    device = pick_device()
    data = CIFAR10DataModule(
        data_dir,
        **{
            "val_split": HELD_OUT if setting.held_out else 0,
            "seed": seed,
            **arm.data_options(),
        },
    )
    network = build(arm, setting.width, seed).to(memory_format=torch.channels_last)
    classes = None if arm.network is None else data.num_classes
    model = ImageClassifier(network, arm.recipe, num_classes=classes)
    clock = _Clock()
    last = LastCheckpoint(checkpoints, every_seconds=_EVERY) if checkpoints else None
    checkpoint = last.newest() if last else None
    with _quiet(), seeded(seed):
        trainer = pl.Trainer(
            callbacks=[clock, last] if last else [clock],
            plugins=[AtomicCheckpointIO()] if last else [],
            max_epochs=setting.epochs,
            accelerator="gpu" if device.type in ("cuda", "mps") else "cpu",
            devices=1,
            precision=setting.precision,  # type: ignore[arg-type]
            limit_val_batches=0,  # the held-out images are looked at once, at the end
            logger=False,
            enable_checkpointing=last is not None,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        clock.start()
        with _stops_as_interrupt(last):
            trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
            train_seconds = clock.seconds()
            data.setup()
            loader = data.val_dataloader() if setting.held_out else data.test_dataloader()
            scores = trainer.test(model, loader, verbose=False)[0]
            calibration = _calibration(trainer, model, loader, data.num_classes)
    return {
        **{name.removeprefix("test_"): value for name, value in scores.items()},
        "ece": calibration.expected_error,
        "train_acc": clock.train_acc,
        "train_seconds": train_seconds,
        "resumed": checkpoint is not None,
        "total_seconds": clock.seconds(),
        "evaluated_images": int(calibration.counts.sum()),
        "parameters": sum(p.numel() for p in network.parameters()),
        "initial_weights": "by layer" if arm.network is None else "seeded",
        **describe_machine(device),
    }


class _Clock(pl.Callback):
    """Keep the time and the training accuracy of a run, also over interruptions."""

    def __init__(self) -> None:
        self.train_acc = math.nan  # in the last epoch
        self._before = 0.0  # of the parts before the checkpoint
        self._started = time.perf_counter()

    def start(self) -> None:
        self._started = time.perf_counter()

    def seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.train_acc = float(trainer.callback_metrics.get("train_acc_epoch", self.train_acc))

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds(), "train_acc": self.train_acc}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before, self.train_acc = state_dict["seconds"], state_dict["train_acc"]


def _calibration(trainer: pl.Trainer, model: Any, loader: Any, classes: int) -> Calibration:
    """Compute the calibration, in the precision of the training."""
    counts = PredictionCounts(classes)
    batches = trainer.predict(model, loader)
    assert batches is not None
    start = 0
    for batch, (_, labels) in zip(batches, loader, strict=True):
        scores: Any = batch
        check_finite(scores, range(start, start + len(scores)), "image")
        start += len(scores)
        confidence, predicted = scores.float().softmax(1).max(1)
        counts.add(labels.cpu(), predicted.cpu(), confidence)
    return counts.calibration()


@contextmanager
def _stops_as_interrupt(last: LastCheckpoint | None) -> Iterator[None]:
    """Raise what a signal raises without Lightning, which raises `SystemExit` for all of them."""
    try:
        yield
    except SystemExit as stop:
        number = last.stopped_by if last else None
        if number == signal.SIGINT or isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise SystemExit(128 + (number or signal.SIGTERM)) from stop


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide advice of Lightning's that does not concern these runs; change nothing that stays."""
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    level, environment = logger.level, os.environ.copy()
    is_main = threading.current_thread() is threading.main_thread()
    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in ("Checkpoint directory", "Total length of `list`", "`isinstance"):
                warnings.filterwarnings("ignore", f".*{message}")
            warnings.filterwarnings("ignore", module="pytorch_lightning")
            yield
    finally:
        logger.setLevel(level)
        for number, handler in handlers.items() if is_main else ():
            signal.signal(number, handler)
        for name in os.environ.keys() - environment.keys():
            if name.startswith("PL_"):
                del os.environ[name]
