"""Kills `train_24.py` at random moments and compares what is left with a run that was not killed.

    python benchmarks/kill_and_resume.py               # 20 kills
    python benchmarks/kill_and_resume.py --kills 100 --seed 1

A run is killed with SIGKILL within an epoch, in the validation, and while a checkpoint is written,
in turns, and goes on with `--resume` each time, until it is finished; then the next run begins,
until there were enough kills. Weights, the optimizer's state, the best epoch, the test results and
every logged value must be those of the run that was left alone, bit for bit. The result is appended
to benchmarks/results/kill_and_resume.jsonl.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, ROOT, append, machine
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

KINDS = ("epoch", "validation", "checkpoint")
BEING_WRITTEN = "*/.*.part"  # checkpoints, in the folder of the runs
# The process tells in a file what it does; nothing else about it is changed.
TOLD = """
import pathlib, runpy, sys
from cifar_resnet import ImageClassifier
message = pathlib.Path(sys.argv[1])
def telling(text):
    return lambda self: message.write_text(text) and None
ImageClassifier.on_train_epoch_start = telling("epoch")
ImageClassifier.on_validation_start = telling("validation")
ImageClassifier.on_validation_end = telling("epoch")
del sys.argv[:2]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# Differs between any two runs: times, folders and the process.
OWN = ("seconds", "dirpath", "best_model_path", "kth_best_model_path", "last_model_path",
       "best_k_models")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--width", type=int, default=4)
    args = parser.parse_args()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every resume
    rng = random.Random(args.seed)
    started = time.perf_counter()
    counts: dict[str, int] = dict.fromkeys(KINDS, 0)
    facts = {"runs": 0, "half_written_files": 0, "resumed_within_an_epoch": 0}
    differences: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = Run(folder / "alone", args)
        run.start()
        run.end()
        alone = run.left()
        while sum(counts.values()) < args.kills:
            run = Run(folder / f"run{facts['runs']}", args)
            facts["runs"] += 1
            while not run.is_finished():
                run.start()
                if sum(counts.values()) == args.kills:
                    run.end()
                    break
                kind = KINDS[sum(counts.values()) % len(KINDS)]
                if not run.kill(kind, rng):
                    break
                counts[kind] += 1
                facts["half_written_files"] += run.half_written()
                facts["resumed_within_an_epoch"] += run.is_within_an_epoch()
                print(f"{sum(counts.values()):3}  killed: {kind:<11} step {run.step()}", flush=True)
            differences += compare(alone, run.left())
    result = {
        "what": "train_24.py killed with SIGKILL and resumed",
        "arguments": vars(args),
        "kills": counts,
        **facts,
        "values_compared": count(alone),
        "differences": differences,
        "seconds": time.perf_counter() - started,
    }
    append(RESULTS / "kill_and_resume.jsonl", result | machine())
    print(
        f"\n{sum(counts.values())} kills ({', '.join(f'{n} in {k}' for k, n in counts.items())}) "
        f"in {facts['runs']} runs; {count(alone):,} values compared with the run left alone: "
        f"{len(differences)} differences"
    )
    sys.exit("\n".join(differences) or None)


class Run:
    """One training, started as often as it takes."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder = folder
        folder.mkdir()
        self.message = folder / "told"
        self.arguments = [
            "--quiet", "--precision", "bf16-mixed", "--val-split", "5000",
            "--width", str(args.width), "--epochs", str(args.epochs),
        ]  # fmt: skip

    def start(self) -> None:
        self.message.unlink(missing_ok=True)
        runs = list((self.folder / "runs").glob("*/arguments.json"))
        # killed before it wrote anything: there is nothing to resume
        flags = ["--resume", str(runs[0].parent)] if runs else self.arguments
        self.log = (self.folder / "log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-c", TOLD, str(self.message), str(ROOT / "examples" / "train_24.py"),
             *flags, "--save-every", "1"],
            cwd=self.folder, stdout=self.log, stderr=self.log,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def end(self) -> None:
        if self.process.wait():
            sys.exit((self.folder / "log").read_text())

    def kill(self, kind: str, rng: random.Random) -> bool:
        """Kill it at a moment of that kind; False if it had ended before."""
        if kind == "checkpoint":
            self._wait(lambda: self.half_written() and self._says("epoch"))
            time.sleep(rng.uniform(0, 0.003))
        else:
            self._wait(lambda: self._says(kind))
            time.sleep(rng.uniform(0, 5 if kind == "epoch" else 0.3))
        if self.process.poll() is not None:
            self.end()
            return False
        self.process.kill()
        self.process.wait()
        return True

    def _says(self, text: str) -> bool:
        return self.message.exists() and self.message.read_text() == text

    def _wait(self, condition: Any) -> None:
        while self.process.poll() is None and not condition():
            time.sleep(0.0002)

    def is_finished(self) -> bool:
        return any((self.folder / "runs").glob("*/metrics.json"))

    def half_written(self) -> bool:
        return any((self.folder / "runs").glob(BEING_WRITTEN))

    def step(self) -> int:
        for path in (self.folder / "runs").glob("*/last.ckpt"):
            return int(torch.load(path, weights_only=True)["global_step"])
        return 0

    def is_within_an_epoch(self) -> bool:
        return self.step() % 88 != 0  # batches of 512 in 45,000 images

    def left(self) -> dict[str, Any]:
        """All that a finished run has left."""
        if not self.is_finished():
            sys.exit((self.folder / "log").read_text())
        (folder,) = (self.folder / "runs").iterdir()
        report = json.loads((folder / "metrics.json").read_text())
        log = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        return {
            "last": torch.load(folder / "last.ckpt", weights_only=True),
            "best": torch.load(folder / "best.ckpt", weights_only=True)["state_dict"],
            "report": {
                name: report[name]
                for name in ("accuracy", "accuracy_mirror", "accuracy_six", "test_loss", "val_acc")
            },
            "log": {
                name: [(event.step, event.value) for event in log.Scalars(name)]
                for name in log.Tags()["scalars"]
            },
        }


def compare(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two trees of values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [f"{where}: {sorted(map(str, one.keys() ^ other.keys()))}"]
        names = [name for name in one if name not in OWN]
        return [d for name in names for d in compare(one[name], other[name], f"{where}/{name}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return [f"{where}: {len(one)} and {len(other)} values"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for index, (a, b) in pairs for d in compare(a, b, f"{where}/{index}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [f"{where}: tensors differ"]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]


def count(tree: Any) -> int:
    if isinstance(tree, dict):
        return sum(count(value) for name, value in tree.items() if name not in OWN)
    if isinstance(tree, list | tuple):
        return sum(map(count, tree))
    return tree.numel() if isinstance(tree, torch.Tensor) else 1


if __name__ == "__main__":
    main()
