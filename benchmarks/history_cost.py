"""Measure what recording the history of the training images costs.

    python benchmarks/history_cost.py [--data-dir DATA] [--pairs 10] [--width 16] [--subset IMAGES]

One training alternates between epochs that record and epochs that do not, in the order with,
without, without, with; the first epoch is not measured. Each ratio is that of two epochs that
follow each other. The seconds of an epoch include its end, at which the values are copied from the
device; the CPU seconds are those of all threads. Also measured are the seconds of an epoch that are
spent in the callback, the file of 50,000 images and 24 epochs, and how long writing and reading it
takes. The process is restarted with the allocator settings of the training command, or without them
if --default-allocator is given. Appends a line to benchmarks/results/history_cost.jsonl. The data
must be on disk.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from machine import RESULTS, append, machine

from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    ImageClassifier,
    ImageHistory,
    Recipe,
    TrainingHistory,
)
from cifar_resnet.cli.hardware import LARGE_PAGES
from cifar_resnet.data import sources
from cifar_resnet.machine import pick_device, pick_precision


class RecordsSomeEpochs(TrainingHistory):
    """Record epochs in the order with, without, without, with, after the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0  # in the methods of `TrainingHistory`
        self.epochs: set[int] = set()

    def timed(self, method: Callable[..., None], trainer: Any, *args: Any) -> None:
        if records(trainer.current_epoch):
            start = time.perf_counter()
            method(trainer, *args)
            self.seconds += time.perf_counter() - start
            self.epochs.add(trainer.current_epoch)

    def on_train_batch_start(self, *args: Any) -> None:
        self.timed(super().on_train_batch_start, *args)

    def on_train_batch_end(self, *args: Any) -> None:
        self.timed(super().on_train_batch_end, *args)

    def on_train_epoch_end(self, *args: Any) -> None:
        self.timed(super().on_train_epoch_end, *args)


class Clock(pl.Callback):
    """Read the clocks at the start of each epoch, and at the end of the training."""

    def __init__(self) -> None:
        self.times: list[tuple[float, float]] = []

    def on_train_epoch_start(self, *args: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append((time.perf_counter(), time.process_time()))

    def on_train_end(self, *args: Any) -> None:
        self.on_train_epoch_start()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default=str(sources.default_data_dir()))
    parser.add_argument("--pairs", type=int, default=10, help="of epochs")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--subset", type=int, help="train on fewer images")
    parser.add_argument("--precision", help="default: the faster one, measured")
    parser.add_argument("--default-allocator", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS / "history_cost.jsonl")
    args = parser.parse_args()
    default = args.default_allocator or pick_device().type == "cuda"
    settings = {} if default else LARGE_PAGES
    if {name: os.environ[name] for name in LARGE_PAGES if name in os.environ} != settings:
        others = {name: text for name, text in os.environ.items() if name not in LARGE_PAGES}
        os.execve(sys.executable, sys.orig_argv, others | settings)
    args.precision = args.precision or pick_precision(pick_device())
    line: dict[str, Any] = {
        name: getattr(args, name) for name in ("width", "subset", "precision", "pairs")
    }
    line["allocator"] = "default" if default else "large pages"
    recorder, clock = RecordsSomeEpochs(), Clock()
    train(args, [recorder, clock])
    line["own_seconds"] = recorder.seconds / len(recorder.epochs)
    times = np.diff(clock.times, axis=0)[1:]
    for unit, values in zip(("seconds", "cpu_seconds"), times.T, strict=True):
        ratios = [
            float(a / b if records(epoch) else b / a)
            for epoch, (a, b) in zip(
                range(1, 2 * args.pairs, 2), values.reshape(-1, 2), strict=True
            )
        ]
        line[unit] = values.tolist()
        line[f"{unit}_ratios"] = ratios
        print(f"{unit:12} with / without: {statistics.mean(ratios):.4f} {sorted(ratios)}")
    line["file"] = file_cost()
    print({name: line[name] for name in ("own_seconds", "file")})
    append(args.results, line | machine(pick_device()))


def records(epoch: int) -> bool:
    return epoch % 4 in (0, 1)


def train(args: argparse.Namespace, callbacks: list[pl.Callback]) -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    device, recipe = pick_device(), Recipe.preset("muon")
    network = CustomResNet(args.width, **recipe.network_options())
    model = ImageClassifier(network.to(memory_format=torch.channels_last), recipe)
    data = CIFAR10DataModule(
        args.data_dir, val_split=0, subset=args.subset, **recipe.data_options()
    )
    pl.Trainer(
        max_epochs=1 + 2 * args.pairs,
        accelerator="gpu" if device.type in ("cuda", "mps") else "cpu",
        devices=1,
        precision=args.precision,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, data)


def file_cost(images: int = 50_000, epochs: int = 24) -> dict[str, float]:
    """Return bytes of a file, and the seconds to write and read it; medians of 5."""
    rng = np.random.default_rng(0)
    loss, margin = rng.random((2, images, epochs), dtype=np.float32)
    prediction = rng.integers(10, size=(images, epochs)).astype(np.int16)
    labels = rng.integers(10, size=images)
    history = ImageHistory(loss, margin, prediction, np.arange(images), labels, labels)
    times = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "history.npz"
        for _ in range(5):
            start = time.perf_counter()
            history.save(path)
            middle = time.perf_counter()
            ImageHistory.load(path)
            times.append((middle - start, time.perf_counter() - middle))
        size = path.stat().st_size
    save, load = map(statistics.median, zip(*times, strict=True))
    return {
        "images": images, "epochs": epochs, "bytes": size, "save_seconds": save,
        "load_seconds": load,
    }  # fmt: skip


if __name__ == "__main__":
    main()
