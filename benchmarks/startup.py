"""Measure startup times: importing each part, drawing a first figure of errors with pretrained
weights, and `cifar-resnet train` until the end of its first training step.

    python benchmarks/startup.py [--data-dir DATA] [--rounds 5]

Each measurement runs in a new process. Appends JSON lines to benchmarks/results/startup.jsonl. The
data must be on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import RESULTS, append, machine

PIECES = (
    "Recipe",
    "CustomResNet",
    "receptive_field",
    "find_misclassified",
    "CIFAR10DataModule",
    "ImageClassifier",
)
FIRST_FIGURE = """\
from cifar_resnet import CustomResNet, show_misclassified

model = CustomResNet.from_pretrained("quarter")
show_misclassified(model).savefig("errors.png")
"""
BEFORE_STEP = ("import", "data", "set-up", "first step")


def main() -> None:
    from cifar_resnet.data import sources

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default=str(sources.default_data_dir()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS / "startup.jsonl")
    args = parser.parse_args()

    nothing = [process("pass") for _ in range(args.rounds)]
    record("python alone", {"seconds": nothing}, args)
    for package in ("torch", "pytorch_lightning"):
        seconds = [process(f"import {package}") for _ in range(args.rounds)]
        record(f"import {package}", {"seconds": seconds}, args)
    for name in PIECES:
        seconds = [process(f"from cifar_resnet import {name}") for _ in range(args.rounds)]
        record(f"from cifar_resnet import {name}", {"seconds": seconds}, args)

    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"CIFAR10_DIR": args.data_dir}
        seconds = [process(FIRST_FIGURE, cwd=folder, env=environment) for _ in range(args.rounds)]
    record("the first figure of errors, from the start of Python", {"seconds": seconds}, args)

    runs = [smoke_run(args.data_dir) for _ in range(args.rounds)]
    stages = {
        name: [run["stage_seconds"][name] for run in runs] for name in runs[0]["stage_seconds"]
    }
    stages["seconds"] = [sum(run["stage_seconds"][s] for s in BEFORE_STEP) for run in runs]
    stages["process"] = [run["process"] for run in runs]
    record(
        f"cifar-resnet train, width {runs[0]['width']}, to the end of its first step", stages, args
    )


def process(code: str, **options: Any) -> float:
    """Return the seconds that a new Python process takes to run `code`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, **options)
    return time.perf_counter() - start


def smoke_run(data_dir: str) -> dict[str, Any]:
    """Return the metrics of a run of a few batches, which starts like a complete run."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--smoke", "--quiet", "--data-dir", data_dir, "--output-dir", folder]
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "cifar_resnet", "train", *options],
            check=True,
            capture_output=True,
        )
        seconds = time.perf_counter() - start
        (report,) = Path(folder).glob("*/metrics.json")
        metrics: dict[str, Any] = json.loads(report.read_text())
    return metrics | {"process": seconds}


def record(title: str, values: dict[str, list[float]], args: argparse.Namespace) -> None:
    """Append the measurements to the result file and print their medians."""
    from cifar_resnet.machine import pick_device

    line = {"benchmark": title, "unit": "s", **values, "n": args.rounds}
    append(args.results, line | machine(pick_device()))
    shown = values["seconds"]
    print(
        f"{title:60} {statistics.median(shown):6.2f} s ({min(shown):.2f} to {max(shown):.2f})",
        flush=True,
    )
    for name in values:
        if name != "seconds":
            print(f"    {name:56} {statistics.median(values[name]):6.2f} s")


if __name__ == "__main__":
    main()
