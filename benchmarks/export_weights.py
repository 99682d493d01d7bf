"""Export the network of a finished run as weights that come with the package.

    python benchmarks/export_weights.py runs/NAME --name quarter

Writes cifar_resnet/weights/NAME.safetensors, or the same file in --folder, in half precision. Loads
it, measures the test accuracies in float32, and stores them in the file. Appends a JSON line to
benchmarks/results/pretrained.jsonl. The data must be on disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any

from machine import RESULTS, ROOT, append, machine

FROM_RUN = ("epochs", "seed", "batch_size", "precision", "hardware", "versions")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run folder of cifar-resnet train")
    parser.add_argument("--name", required=True, help="name of the weights in from_pretrained")
    parser.add_argument("--folder", type=Path, default=ROOT / "cifar_resnet" / "weights")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument("--results", type=Path, default=RESULTS / "pretrained.jsonl")
    args = parser.parse_args()

    from cifar_resnet import CustomResNet, Recipe
    from cifar_resnet.comparison.arms import recipe_name

    run = json.loads((args.run / "metrics.json").read_text())
    if run["smoke"] or run["resumed"] or run["val_split"]:
        parser.error(f"{args.run} is a smoke run, was resumed, or has a validation split")
    recipe = Recipe(**run["recipe"])
    _, *changed = recipe_name(recipe).split()
    changes = "".join(f" --set {change}" for change in changed)
    network = CustomResNet.from_pretrained(args.run / "last.ckpt")
    training: dict[str, Any] = {
        "recipe": recipe.name,
        **{name: run[name] for name in FROM_RUN},
        "command": f"cifar-resnet train --recipe {recipe.name}{changes} --width {run['width']} "
        f"--epochs {run['epochs']} --seed {run['seed']}",
    }
    path = args.folder / f"{args.name}.safetensors"
    args.folder.mkdir(parents=True, exist_ok=True)
    network.save_pretrained(path, half=True, training=training)
    training |= test(CustomResNet.from_pretrained(path), recipe, args.data_dir)
    network.save_pretrained(path, half=True, training=training)
    line = {
        "name": args.name,
        "bytes": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "of_the_run": {k: run[k] for k in ("accuracy", "accuracy_mirror", "accuracy_six")},
        "training": training,
        **machine(),
    }
    append(args.results, line)
    print(f"{path}: {line['bytes']:,} bytes, from a run with {line['of_the_run']}")
    for name in ("accuracy", "accuracy_mirror", "accuracy_six"):
        print(f"{name:16} {100 * training[name]:.2f} %")


def test(network: Any, recipe: Any, data_dir: str | None) -> dict[str, float]:
    """Measure the test accuracies in float32, with and without test-time augmentation."""
    import pytorch_lightning as pl

    from cifar_resnet import CIFAR10DataModule, ImageClassifier

    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", ".*`isinstance")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = CIFAR10DataModule(data_dir, batch_size=500, download=False)
    scores = trainer.test(ImageClassifier(network, recipe), data, verbose=False)[0]
    return {
        "accuracy" + name.removeprefix("test_acc"): value
        for name, value in scores.items()
        if name != "test_loss"
    }


if __name__ == "__main__":
    main()
