"""Add finished runs of `cifar-resnet train` to a result file, and summarize them.

python benchmarks/collect.py runs/* --to benchmarks/results/train_24_cpu.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

from machine import append


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--to", required=True, type=Path, help="JSON-lines file to append to")
    args = parser.parse_args()
    runs = [json.loads((run / "metrics.json").read_text()) for run in args.runs]
    excluded = [
        str(run) for run, m in zip(args.runs, runs, strict=True) if m["smoke"] or m["resumed"]
    ]
    if excluded:
        parser.error(f"smoke runs and resumed runs cannot be collected: {', '.join(excluded)}")
    for run in runs:
        append(args.to, run)
    print(f"{len(runs)} runs, seeds {[run['seed'] for run in runs]}")
    for name, scale in (
        ("accuracy", 100),
        ("accuracy_mirror", 100),
        ("accuracy_six", 100),
        ("train_seconds", 1),
        ("total_seconds", 1),
        ("images_per_second", 1),
        ("peak_memory_mb", 1),
    ):
        values = [scale * run[name] for run in runs if run[name] is not None]
        if not values:
            continue
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        print(
            f"{name:18} mean {statistics.mean(values):9.2f}  sd {spread:6.2f}  "
            f"se {spread / math.sqrt(len(values)):6.2f}  min {min(values):9.2f}  "
            f"max {max(values):9.2f}"
        )


if __name__ == "__main__":
    main()
