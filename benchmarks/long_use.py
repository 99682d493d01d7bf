"""Whether a process that fits again and again grows: memory, threads, open files, hooks, objects.

    python benchmarks/long_use.py [--fits 500] [--logger tensorboard] [--data-dir DATA]

One process fits, validates, tests and predicts a few batches with a small network, 500 times: in
turn a fresh model and one model that is fitted again and again, on one data module. Every tenth
time there is also a search for errors with maps and a figure, an analysis of receptive fields, and
a data module that has not been used before. Then the process is measured, after a garbage
collection. Appends JSON lines to benchmarks/results/long_use.jsonl: a line for each measurement,
and one with the growth per fit by a straight line through the second half of them.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import gc
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from machine import RESULTS, append, machine
from matplotlib.figure import Figure
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    ImageClassifier,
    find_misclassified,
    receptive_field,
    show_misclassified,
)

Logger = Literal["tensorboard", "csv", "none"]

OBJECTS: dict[str, type] = {
    "tensors": Tensor,
    "modules": nn.Module,
    "classifiers": LightningModule,
    "trainers": Trainer,
    "data_modules": CIFAR10DataModule,
    "hook_handles": RemovableHandle,
    "figures": Figure,
}
GROWING = ("memory_mb", "threads", "files", "hooks", "objects", *OBJECTS, "cpu_seconds")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fits", type=int, default=500)
    parser.add_argument("--every", type=int, default=10, help="fits between two measurements")
    parser.add_argument("--logger", choices=("tensorboard", "csv", "none"), default="tensorboard")
    parser.add_argument("--data-dir")
    parser.add_argument("--results", type=Path, default=RESULTS / "long_use.jsonl")
    args = parser.parse_args()
    if args.fits < 6 * args.every:
        parser.error(f"--fits must be at least {6 * args.every}, six measurements, not {args.fits}")

    torch.set_num_threads(1)
    # Lightning tells of itself in each run
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    common = {"benchmark": "long use", "logger": args.logger} | machine("cpu")
    lines: list[str] = []  # as text, which the garbage collector does not count
    with tempfile.TemporaryDirectory() as folder:
        for line in use(
            args.fits, Path(folder), every=args.every, logger=args.logger, data_dir=args.data_dir
        ):
            lines.append(json.dumps(line))
            append(args.results, line | common)
            print(
                f"{line['fits']:5} fits {line['memory_mb']:8.1f} MB {line['threads']:3} threads "
                f"{line['files']:3} files {line['hooks']:3} hooks {line['objects']:8} objects "
                f"{line['cpu_seconds']:6.2f} s",
                flush=True,
            )
    slopes = growth([json.loads(line) for line in lines])
    append(args.results, {"fits": args.fits, "growth_per_fit": slopes} | common)
    print(f"\n{'growth per fit':16} {'':>12} {'std. error':>12}")
    for name, (slope, error) in slopes.items():
        print(f"{name:16} {slope:12.5f} {error:12.5f}")


def use(
    fits: int,
    folder: Path,
    *,
    every: int = 10,
    logger: Logger = "tensorboard",
    data_dir: str | Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Fit `fits` times, and measure the process after each `every`."""
    raised: collections.Counter[str] = collections.Counter()
    data = data_module(data_dir)
    again = ImageClassifier(CustomResNet(width=2), "sgd")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, category, *_, **__: raised.update(
            [f"{category.__name__}: {message}".replace(str(folder), "FOLDER")[:100]]
        )
        start = time.process_time()
        for done in range(1, fits + 1):
            model = again if done % 2 else ImageClassifier(CustomResNet(width=2), "sgd")
            run(model, data, folder, logger)
            if done % every == 0:
                look(model, data)
                data = data_module(data_dir)
                del model
                seconds = (time.process_time() - start) / every
                yield {
                    "fits": done,
                    **measured(again),
                    "cpu_seconds": round(seconds, 4),
                    "warnings": dict(raised),
                }
                raised.clear()
                start = time.process_time()


def data_module(data_dir: str | Path | None) -> CIFAR10DataModule:
    return CIFAR10DataModule(data_dir, batch_size=32, val_split=49_000)


def run(model: ImageClassifier, data: CIFAR10DataModule, folder: Path, logger: Logger) -> None:
    """All four stages of a Trainer, a few batches each, with a checkpoint."""
    writer: TensorBoardLogger | CSVLogger | bool = False
    if logger != "none":
        writer = TensorBoardLogger(folder) if logger == "tensorboard" else CSVLogger(folder)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_train_batches=4,
        limit_val_batches=2,
        limit_test_batches=2,
        limit_predict_batches=2,
        log_every_n_steps=2,
        logger=writer,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    trainer.validate(model, data, verbose=False)
    trainer.test(model, data, verbose=False)
    trainer.predict(model, data)


def look(model: ImageClassifier, data: CIFAR10DataModule) -> None:
    """Errors with maps and a figure, and receptive fields."""
    images, labels = next(iter(data.test_dataloader()))
    dataset = torch.utils.data.TensorDataset(images, labels)
    found = find_misclassified(model, dataset, n=8, mean=data.mean, std=data.std)
    show_misclassified(model, found, n=4, cam="both").canvas.draw()
    receptive_field(model.network, (1, 3, 32, 32))


def measured(model: nn.Module) -> dict[str, Any]:
    """What the process holds now, once nothing that nobody needs is left."""
    gc.collect()
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # pages that are free, but kept for later
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    kinds = collections.Counter(type(thing) for thing in gc.get_objects())
    return {
        "memory_mb": round(int(status["VmRSS"].split()[0]) * 1024 / 1e6, 3),
        "threads": int(status["Threads"]),
        "files": sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1,  # without that of the listing
        "hooks": hooks(model),
        "objects": kinds.total(),
        **{
            name: sum(count for kind, count in kinds.items() if issubclass(kind, wanted))
            for name, wanted in OBJECTS.items()
        },
    }


def hooks(model: nn.Module) -> int:
    return sum(
        len(value)
        for module in model.modules()
        for name, value in vars(module).items()
        if name.endswith("_hooks") and value
    )


def growth(lines: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Growth per fit and its standard error, by a straight line through the second half."""
    half = lines[len(lines) // 2 :]
    fits = np.array([line["fits"] for line in half], dtype=np.float64)
    fits -= fits.mean()
    slopes = {}
    for name in GROWING:
        values = np.array([line[name] for line in half], dtype=np.float64)
        values -= values.mean()
        slope = (fits @ values) / (fits @ fits)
        rest = values - slope * fits
        error = np.sqrt((rest @ rest) / (len(half) - 2) / (fits @ fits))
        slopes[name] = (round(float(slope), 6), round(float(error), 6))
    return slopes


if __name__ == "__main__":
    main()
