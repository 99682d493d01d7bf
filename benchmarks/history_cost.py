"""Measure what recording the history of the training images costs.

    python benchmarks/history_cost.py [--data-dir DATA] [--rounds 5] [--width 16] [--epochs 2]

Each arm trains in a new process, with and without `TrainingHistory`; the arms of a pair alternate,
and the ratio is computed for each pair. The first epoch is not measured. The seconds of the others
include the end of each epoch, at which the values are copied from the device, and the CPU seconds
are those of all threads. Also measured are the file of 50,000 images and 24 epochs, and how long
writing and reading it takes. Appends a line to benchmarks/results/history_cost.jsonl. The data must
be on disk.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, append, machine

ARMS = ("with", "without")


def main() -> None:
    from cifar_resnet.data import sources
    from cifar_resnet.machine import pick_device, pick_precision

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default=str(sources.default_data_dir()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2, help="that are measured")
    parser.add_argument("--subset", type=int, help="fewer images, as a check")
    parser.add_argument("--precision", help="default: the faster one, measured")
    parser.add_argument("--results", type=Path, default=RESULTS / "history_cost.jsonl")
    parser.add_argument("--arm", choices=ARMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.precision = args.precision or pick_precision(pick_device())
    if args.arm:
        print(json.dumps(measured(args)))
        return
    runs = [{arm: in_process(arm, args) for arm in ARMS} for _ in range(args.rounds)]
    line: dict[str, Any] = {
        name: getattr(args, name) for name in ("width", "epochs", "subset", "precision", "rounds")
    }
    for unit in ("seconds", "cpu_seconds"):
        ratios = [run["with"][unit] / run["without"][unit] for run in runs]
        line[unit] = {arm: [run[arm][unit] for run in runs] for arm in ARMS}
        line[f"{unit}_ratio"] = {
            "median": statistics.median(ratios), "min": min(ratios), "max": max(ratios),
        }  # fmt: skip
        print(f"{unit:12} with / without: {statistics.median(ratios):.4f} {sorted(ratios)}")
    line["file"] = file_cost()
    print(line["file"])
    append(args.results, line | machine(pick_device()))


def in_process(arm: str, args: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of one arm, run in a new process."""
    command = [sys.executable, __file__, "--arm", arm, "--data-dir", args.data_dir]
    command += ["--width", str(args.width), "--epochs", str(args.epochs)]
    command += ["--precision", args.precision]
    command += ["--subset", str(args.subset)] if args.subset else []
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{arm} failed:\n{result.stderr}")
    seconds: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return seconds


def measured(args: argparse.Namespace) -> dict[str, float]:
    """Train, and return the seconds of the epochs after the first one."""
    import pytorch_lightning as pl
    import torch

    from cifar_resnet import (
        CIFAR10DataModule,
        CustomResNet,
        ImageClassifier,
        Recipe,
        TrainingHistory,
    )
    from cifar_resnet.machine import pick_device

    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)

    class Clock(pl.Callback):
        """Read the clocks between the first epoch and the second one, and at the end."""

        def __init__(self) -> None:
            self.times: list[tuple[float, float]] = []

        def read(self) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.times.append((time.perf_counter(), time.process_time()))

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 1:
                self.read()

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.read()

    device, recipe = pick_device(), Recipe.preset("muon")
    network = CustomResNet(args.width, **recipe.network_options())
    model = ImageClassifier(network.to(memory_format=torch.channels_last), recipe)
    data = CIFAR10DataModule(
        args.data_dir, val_split=0, subset=args.subset, **recipe.data_options()
    )
    clock = Clock()
    pl.Trainer(
        max_epochs=1 + args.epochs,
        accelerator="gpu" if device.type in ("cuda", "mps") else "cpu",
        devices=1,
        precision=args.precision,
        callbacks=[*([TrainingHistory()] if args.arm == "with" else []), clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, data)
    (start, cpu_start), (end, cpu_end) = clock.times
    return {"seconds": end - start, "cpu_seconds": cpu_end - cpu_start}


def file_cost(images: int = 50_000, epochs: int = 24) -> dict[str, float]:
    """Return bytes of a file, and the seconds to write and read it; medians of 5."""
    from cifar_resnet import ImageHistory

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
