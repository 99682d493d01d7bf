"""Accuracy of recipes over seeds: a JSON line a run, then their comparison with the first recipe.

    python benchmarks/accuracy.py --recipes adam sgd --seeds 0-4 --width 16
    python benchmarks/accuracy.py --held-out --recipes sgd --set learning_rate=0.2,0.4 --seeds 0-1

The runs are those of `cifar_resnet.compare`; this script keeps them in one file, with a time limit.
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
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import RESULTS, append

from cifar_resnet import Arm, Comparison, Recipe
from cifar_resnet.comparison.arms import recipe_name
from cifar_resnet.comparison.lines import known_lines
from cifar_resnet.comparison.storing import read_file

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
        seconds = f"{line['train_seconds']:.0f} s"
        print(f"{recipe_name(recipe)}  seed {seed}  {shown}  {seconds}", flush=True)
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

    args.precision = args.precision or pick_precision(pick_device())
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
    (known,) = known_lines([line])
    same = known["recipe"] | {"name": ""} == key["recipe"] | {"name": ""}  # whatever it is called
    return same and all(line[k] == key[k] for k in key if k != "recipe")


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of this script in a result file; lines of another format are passed over."""
    return known_lines(read_file(path)) if path.exists() else []


def train(recipe: Recipe, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    from cifar_resnet.comparison.running import Setting, train_run

    folder = None
    if args.checkpoints is not None:
        key = json.dumps(run_key(recipe, seed, args), sort_keys=True)
        folder = args.checkpoints / hashlib.sha256(key.encode()).hexdigest()[:16]
    setting = Setting(args.width, args.epochs, args.held_out, args.precision)
    return train_run(Arm(recipe), seed, setting, data_dir=args.data_dir, checkpoints=folder)


def summarize(args: argparse.Namespace) -> None:
    """Print the means of the recipes that have runs, and their differences from the first."""
    lines = read(args.results)
    done = [
        recipe
        for recipe in args.recipes
        if any(matches(line, run_key(recipe, line["seed"], args)) for line in lines)
    ]
    if done:
        setting = {name: getattr(args, name) for name in ("width", "epochs", "held_out")}
        arms = [Arm(recipe) for recipe in done]
        print(Comparison.from_results(args.results, *arms, precision=args.precision, **setting))


if __name__ == "__main__":
    main()
