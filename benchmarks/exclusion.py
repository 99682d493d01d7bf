"""Measure whether it helps to leave out the training images with the most doubtful labels.

    python benchmarks/exclusion.py --folder FOLDER [--seeds 3]

A tenth of the labels is replaced by another class. A first run with all 45,000 training images
records its history, by which `find_label_issues` ranks them. Then `compare` trains with all labels,
without the 4,500 most doubtful ones, and without label noise, and evaluates on the 5,000 held-out
images, whose labels are not changed. The folder keeps the history and the runs: an interrupted call
continues, and several calls share the runs. The lines go to benchmarks/results/exclusion.jsonl.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from machine import RESULTS

from cifar_resnet import (
    Arm,
    CIFAR10DataModule,
    CustomResNet,
    ImageClassifier,
    ImageHistory,
    Recipe,
    TrainingHistory,
    compare,
    find_label_issues,
)

NOISE: dict[str, Any] = {"label_noise": 0.1, "label_noise_seed": 0}
LEFT_OUT = 4500


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--results", type=Path, default=RESULTS / "exclusion.jsonl")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("cifar_resnet").setLevel(logging.INFO)

    history = recorded(args)
    doubtful = find_label_issues(history).top(LEFT_OUT).indices.tolist()
    assert history.changed is not None
    wrong = sum(bool(history.changed[history.row(index)]) for index in doubtful)
    print(f"{history.changed.sum()} labels are wrong, {wrong} of the {len(doubtful)} left out")
    found = compare(
        Arm("muon", name="all labels", data=NOISE),
        Arm(
            "muon",
            name="without the 4,500 most doubtful",
            data={**NOISE, "exclude": sorted(doubtful)},
        ),
        Arm("muon", name="without label noise"),
        seeds=args.seeds,
        epochs=args.epochs,
        width=args.width,
        precision=args.precision,
        results=args.folder / "runs",
        data_dir=args.data_dir,
    )
    print(found)
    files = sorted((args.folder / "runs").glob("*.jsonl"))
    args.results.write_text("".join(file.read_text() for file in files))


def recorded(args: argparse.Namespace) -> ImageHistory:
    """Return the history of a run with the wrong labels; train it if there is none."""
    path = args.folder / "history.npz"
    if not path.exists():
        recipe = Recipe.preset("muon")
        pl.seed_everything(0, verbose=False)
        data = CIFAR10DataModule(args.data_dir, seed=0, **recipe.data_options(), **NOISE)
        network = CustomResNet(args.width, **recipe.network_options())
        pl.Trainer(
            max_epochs=args.epochs,
            callbacks=[TrainingHistory(path)],
            precision=args.precision,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(ImageClassifier(network.to(memory_format=torch.channels_last), recipe), data)
    return ImageHistory.load(path)


if __name__ == "__main__":
    main()
