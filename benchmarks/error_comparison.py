"""Compare the errors of two networks, find the nearest training images, and simulate intervals.

    python benchmarks/error_comparison.py [--weights quarter quarter-best] [--data-dir DATA]

Appends lines to benchmarks/results/error_comparison.jsonl: the comparison of the two networks on
the 10,000 test images; the labels of the five training images that are nearest to each error of the
first network; and how often the 95 % intervals of Tango and of Wald contain the true difference of
two paired proportions, in 10,000 simulations for each number of images and pair of probabilities.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, append, machine

from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    compare_errors,
    find_misclassified,
    find_nearest,
)
from cifar_resnet.misclassified.proportions import tango_interval

K = 5
RUNS = 10_000
# Images, and the probabilities that only the first or only the second classifier is right.
SIMULATED = (
    (30, 0.1, 0.05), (100, 0.03, 0.03), (100, 0.2, 0.1), (1000, 0.04, 0.02), (1000, 0.005, 0.005),
    (10_000, 0.05, 0.02),
)  # fmt: skip


def comparison(names: list[str], data: CIFAR10DataModule) -> dict[str, Any]:
    first, second = (CustomResNet.from_pretrained(name) for name in names)
    return {"what": "comparison", **compare_errors(first, second, data, names=names).to_dict()}


def nearest(name: str, data: CIFAR10DataModule) -> dict[str, Any]:
    """Count the labels of the images that are nearest to the errors of a network."""
    model = CustomResNet.from_pretrained(name)
    found = find_misclassified(model, data)
    rows = find_nearest(model, found, data, k=K)
    total = K * len(rows)
    predicted = [row.same_prediction or 0 for row in rows]
    true = [row.same_label or 0 for row in rows]
    return {
        "what": "nearest",
        "weights": name,
        "errors": len(rows),
        "k": K,
        "label_is_prediction": round(sum(predicted) / total, 4),
        "label_is_true": round(sum(true) / total, 4),
        "all_are_prediction": sum(count == K for count in predicted),
        "all_are_true": sum(count == K for count in true),
    }


def coverage(images: int, first: float, second: float) -> dict[str, Any]:
    """Count how often intervals contain the difference of two paired proportions."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(images, [first, second, 1 - first - second], size=RUNS)
    difference = first - second
    covered = {"tango": 0, "wald": 0}
    for b, c, _ in counts.tolist():
        low, high = tango_interval(b, c, images)
        covered["tango"] += low <= difference <= high
        half = 1.96 * math.sqrt(b + c - (b - c) ** 2 / images) / images
        covered["wald"] += abs((b - c) / images - difference) <= half
    return {
        "what": "coverage",
        "images": images,
        "probabilities": [first, second],
        "runs": RUNS,
        **{name: count / RUNS for name, count in covered.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", nargs=2, default=["quarter", "quarter-best"])
    parser.add_argument("--data-dir")
    parser.add_argument("--results", type=Path, default=RESULTS / "error_comparison.jsonl")
    args = parser.parse_args()

    data = CIFAR10DataModule(args.data_dir, val_split=0, device="cpu")
    lines = [comparison(args.weights, data), nearest(args.weights[0], data)]
    lines += [coverage(*setting) for setting in SIMULATED]
    for line in lines:
        append(args.results, line | machine())
        print(line)


if __name__ == "__main__":
    main()
