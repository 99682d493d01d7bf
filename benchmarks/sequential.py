"""Simulate the sequential rule of `compare`: how often it decides, and after how many seeds.

    python benchmarks/sequential.py

A look after every seed, up to 50, with an error rate of 5 %. The true difference is given in
standard deviations of the paired differences. For comparison: a t-test after every seed, which is
the mistake that the rule avoids, and one t-test at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, append, machine
from scipy import stats

from cifar_resnet.comparison.sequential import PRIOR, log_e_value
from cifar_resnet.comparison.statistics import power, seeds_needed

EFFECTS = (0.0, 0.5, 1.0, 1.5, 2.0)
SEEDS, ALPHA, SIMULATIONS = 50, 0.05, 10_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--simulations", type=int, default=SIMULATIONS)
    parser.add_argument("--results", type=Path, default=RESULTS / "sequential.jsonl")
    args = parser.parse_args()
    for effect in EFFECTS:
        line = simulate(effect, args.simulations) | machine()
        append(args.results, line)
        print({name: value for name, value in line.items() if not isinstance(value, dict)})


def simulate(effect: float, simulations: int) -> dict[str, Any]:
    """Simulate comparisons with one true difference."""
    values = np.random.default_rng(0).normal(effect, 1.0, size=(simulations, SEEDS))
    counts = np.arange(1, SEEDS + 1)
    means = values.cumsum(1) / counts
    squares = (values**2).cumsum(1) - counts * means**2
    looks = counts[1:]  # a deviation needs two seeds
    spreads = np.sqrt(squares[:, 1:] / (looks - 1))
    t = means[:, 1:] * np.sqrt(looks) / spreads
    logs = np.array(
        [[log_e_value(x, int(n)) for x, n in zip(row, looks, strict=True)] for row in t]
    )
    reached = logs >= -np.log(ALPHA)
    decided = reached.any(1)
    seeds = np.where(decided, looks[reached.argmax(1)], SEEDS)
    critical = stats.t.ppf(1 - ALPHA / 2, looks - 1)
    return {
        "effect": effect,
        "simulations": simulations,
        "maximum": SEEDS,
        "alpha": ALPHA,
        "prior": PRIOR,
        "decided": float(decided.mean()),
        "mean_seeds": float(seeds.mean()),
        "median_seeds": float(np.median(seeds)),
        "t_test_after_every_seed": float((abs(t) > critical).any(1).mean()),
        "t_test_at_the_end": float((abs(t[:, -1]) > critical[-1]).mean()),
        "power_at_the_end": power(effect, SEEDS, ALPHA),
        "seeds_of_a_fixed_test_80": seeds_needed(1.0, effect, ALPHA, 0.8),
        "seeds_of_a_fixed_test_95": seeds_needed(1.0, effect, ALPHA, 0.95),
    }


if __name__ == "__main__":
    main()
