"""Accuracy of recipes over seeds: a JSON line a run, then mean, deviation and error of each.

    python benchmarks/accuracy.py --recipes adam sgd --seeds 0-4 --width 16
    python benchmarks/accuracy.py --held-out --recipes sgd --set learning_rate=0.2,0.4 --seeds 0-1

The library's own path trains: `ImageClassifier` under Lightning's `Trainer`, with the data module.
With --held-out a run trains on 45,000 images, is measured on the 5,000 others, and never looks at
the test set: that is the mode for tuning. Runs that the result file holds already are not repeated,
so that an interrupted call goes on where it stopped; calls with different seeds may share a file.
No run starts that would not end within --minutes. With --checkpoints FOLDER a run that was
interrupted resumes from its last checkpoint. The data must be on disk.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import itertools
import json
import math
import statistics
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import RESULTS, append, machine

from cifar_resnet import Recipe

METRICS = ("acc", "acc_mirror", "acc_six", "loss")


def main() -> None:
    args = parse_arguments()
    runs = [(recipe, seed) for seed in args.seeds for recipe in args.recipes]
    start, longest = time.perf_counter(), 0.0
    for recipe, seed in runs:
        key = run_key(recipe, seed, args)
        if any(matches(line, key) for line in read(args.results)):
            continue
        left = 60 * args.minutes - (time.perf_counter() - start)
        if left < longest:
            print(f"{left:.0f} s left, and a run takes {longest:.0f} s: stopped here.")
            break
        began = time.perf_counter()
        line = key | train(recipe, seed, args)
        longest = max(longest, time.perf_counter() - began)
        append(args.results, line)
        shown = "  ".join(f"{name} {line[name]:.4f}" for name in METRICS if name in line)
        print(
            f"{describe(recipe)}  seed {seed}  {shown}  {line['train_seconds']:.0f} s", flush=True
        )
    summarize(args)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", nargs="+", default=["sgd"], help="names of presets")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="FIELD=VALUE[,VALUE]",
        help="change fields of each recipe; several values make a sweep over their product",
    )
    parser.add_argument("--seeds", type=seeds, default=[0], help="a number, or a range: 0-4")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--held-out", action="store_true", help="tune; never reads the test set")
    parser.add_argument("--precision", default=None, help="default: the faster one, measured")
    parser.add_argument("--data-dir", default=None)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="start no run that ends later"
    )
    parser.add_argument("--checkpoints", type=Path, help="folder in which runs can resume")
    parser.add_argument("--results", type=Path, default=None)
    args = parser.parse_args()
    try:
        args.recipes = list(chosen_recipes(args.recipes, args.set))
    except (TypeError, ValueError) as error:
        parser.error(str(error))
    from cifar_resnet.machine import pick_device, pick_precision

    args.device = pick_device()
    args.precision = args.precision or pick_precision(args.device)
    if args.results is None:
        args.results = RESULTS / ("tuning.jsonl" if args.held_out else "accuracy.jsonl")
    return args


def seeds(text: str) -> list[int]:
    first, _, last = text.partition("-")
    found = list(range(int(first), int(last or first) + 1))
    if not found:
        raise argparse.ArgumentTypeError(f"must be a range that goes up, but got {text}")
    return found


def chosen_recipes(names: list[str], changes: list[str]) -> Iterator[Recipe]:
    """Each recipe with each combination of the changed values."""
    known = Recipe().to_dict()
    fields, values = [], []
    for change in changes:
        field, equals, choices = change.partition("=")
        if field not in known or not equals:
            raise ValueError(f"--set takes FIELD=VALUE with a field of {(*known,)}, not {change!r}")
        fields.append(field)
        values.append([literal(choice) for choice in choices.split(",")])
    for name in names:
        for combination in itertools.product(*values):
            yield replace(Recipe.preset(name), **dict(zip(fields, combination, strict=True)))


def literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def describe(recipe: Recipe) -> str:
    """Its name, and where it differs from the preset of that name."""
    preset = Recipe.preset(recipe.name).to_dict()
    changed = {k: v for k, v in recipe.to_dict().items() if v != preset[k]}
    return " ".join([recipe.name, *(f"{k}={v}" for k, v in changed.items())])


def run_key(recipe: Recipe, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """What makes a run a run of its own; a second one like it would only repeat the first."""
    return {
        "recipe": recipe.to_dict(),
        "width": args.width,
        "epochs": args.epochs,
        "seed": seed,
        "held_out": args.held_out,
        "precision": args.precision,
    }


def matches(line: dict[str, Any], key: dict[str, Any]) -> bool:
    """Whether a line is of such a run; recipe fields that came later had their defaults then."""
    recipe = Recipe().to_dict() | renamed(line["recipe"])
    same = recipe | {"name": ""} == key["recipe"] | {"name": ""}  # whatever it is called
    return same and all(line[k] == key[k] for k in key if k != "recipe")


def renamed(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe of a result line with today's field names; older lines have other ones."""
    names = {"norm_bias_lr": "norm_bias_lr_scale", "test_views": "tta"}
    values = {names.get(name, name): value for name, value in recipe.items()}
    return values | ({"tta": "none"} if values.get("tta") == "plain" else {})


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of this script in a result file; lines of another format are passed over."""
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "held_out" in line]


def train(recipe: Recipe, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    import logging

    import pytorch_lightning as pl
    import torch

    from cifar_resnet import (
        AtomicCheckpointIO,
        CIFAR10DataModule,
        CustomResNet,
        ImageClassifier,
        LastCheckpoint,
    )

    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", ".*`isinstance")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    pl.seed_everything(seed, verbose=False)
    data = CIFAR10DataModule(
        args.data_dir,
        val_split=5000 if args.held_out else 0,
        seed=seed,
        download=False,
        **recipe.data_options(),
    )
    network = CustomResNet(args.width, **recipe.network_options())
    model = ImageClassifier(network.to(memory_format=torch.channels_last), recipe)
    last = None
    if args.checkpoints is not None:
        key = json.dumps(run_key(recipe, seed, args), sort_keys=True)
        folder = args.checkpoints / hashlib.sha256(key.encode()).hexdigest()[:16]
        last = LastCheckpoint(folder, every_seconds=30)
    checkpoint = last.newest() if last else None
    trainer = pl.Trainer(
        callbacks=[last] if last else [],
        plugins=[AtomicCheckpointIO()] if last else [],
        max_epochs=args.epochs,
        accelerator="gpu" if args.device.type in ("cuda", "mps") else "cpu",
        devices=1,
        precision=args.precision,
        limit_val_batches=0,  # the held-out images are looked at once, at the end
        logger=False,
        enable_checkpointing=last is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    train_seconds = time.perf_counter() - start
    train_acc = trainer.callback_metrics["train_acc_epoch"].item()
    data.setup()
    loader = data.val_dataloader() if args.held_out else data.test_dataloader()
    scores = trainer.test(model, loader, verbose=False)[0]
    return {
        **{name.removeprefix("test_"): value for name, value in scores.items()},
        "train_acc": train_acc,
        "train_seconds": train_seconds,
        "resumed": checkpoint is not None,  # then the seconds are those of the last part alone
        "total_seconds": time.perf_counter() - start,
        "parameters": sum(p.numel() for p in network.parameters()),
        **machine(args.device),
    }


def summarize(args: argparse.Namespace) -> None:
    """Mean, standard deviation and standard error of each recipe, in percent."""
    lines = read(args.results)
    print(
        f"\n{'':52} {'n':>2}  " + "".join(f"{name + ' mean  sd   se':>24}" for name in METRICS[:3])
    )
    for recipe in args.recipes:
        runs = {
            line["seed"]: line
            for line in lines
            if matches(line, run_key(recipe, line["seed"], args))
        }
        values = {
            name: [100 * line[name] for line in runs.values() if name in line]
            for name in METRICS[:3]
        }
        if not runs:
            continue
        row = f"{describe(recipe):52} {len(values['acc']):>2}  "
        for name in METRICS[:3]:
            of = values[name]
            spread = statistics.stdev(of) if len(of) > 1 else math.nan
            error = spread / math.sqrt(len(of)) if of else math.nan
            row += f"{statistics.mean(of):>14.2f} {spread:4.2f} {error:4.2f}" if of else f"{'':24}"
        print(row)


if __name__ == "__main__":
    main()
