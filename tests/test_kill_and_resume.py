"""Kill the training program at random moments, resume it, and compare it with a run left alone."""

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import same
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TRAIN = [sys.executable, "-m", "cifar_resnet", "train"]
ARGUMENTS = [
    "--quiet", "--width", "2", "--epochs", "3", "--val-split", "35000", "--precision", "32-true",
]  # fmt: skip
KILLS = 6
# Times and paths differ between any two runs.
OWN = {"seconds", "dirpath", "best_model_path", "kth_best_model_path", "last_model_path",
       "best_k_models"}  # fmt: skip


class Run:
    """A training run in its own folder, started as often as necessary."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def start(self) -> None:
        runs = list(self.folder.glob("runs/*"))
        arguments = ["--resume", str(runs[0])] if runs else ARGUMENTS
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [*TRAIN, *arguments, "--save-every", "1"], cwd=self.folder, stdout=log, stderr=log
            )

    def wait(self, condition: Callable[[], Any]) -> None:
        """Wait until the condition holds; fail if the program ends before."""
        while not condition():
            assert self.process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.0002)

    def end(self) -> None:
        assert self.process.wait() == 0, (self.folder / "log").read_text()

    def saved(self) -> set[int]:
        """Return the times of the checkpoints."""
        return {path.stat().st_mtime_ns for path in self.folder.glob("runs/*/last.ckpt")}

    def is_saving(self) -> bool:
        return any(self.folder.glob("runs/*/.*.part"))

    def result(self) -> dict[str, Any]:
        """Return everything that a finished run has left."""
        (folder,) = self.folder.glob("runs/*")
        log = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
        return {
            **{name: torch.load(folder / f"{name}.ckpt", weights_only=True)
               for name in ("last", "best")},
            "log": {name: [(event.step, event.value) for event in log.Scalars(name)]
                    for name in log.Tags()["scalars"]},
            **{name: value for name, value in json.loads((folder / "metrics.json").read_text())
               .items() if "acc" in name or "loss" in name},
        }  # fmt: skip


def without_own(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: without_own(value) for name, value in tree.items() if name not in OWN}
    return [without_own(value) for value in tree] if isinstance(tree, list | tuple) else tree


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(data_dir: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    undisturbed = Run(tmp_path / "undisturbed")
    undisturbed.start()
    undisturbed.wait(undisturbed.saved)
    started = time.perf_counter()
    undisturbed.end()
    seconds = time.perf_counter() - started

    killed = Run(tmp_path / "killed")
    for kill in range(KILLS):
        before = killed.saved()
        killed.start()
        if kill % 2:  # in an epoch, in the validation, or between them
            killed.wait(lambda before=before: killed.saved() - before)
            time.sleep(rng.uniform(0, seconds / KILLS))
        else:
            killed.wait(killed.is_saving)
            time.sleep(rng.uniform(0, 0.003))
        assert killed.process.poll() is None
        killed.process.kill()
        killed.process.wait()
    killed.start()
    killed.end()

    expected, actual = undisturbed.result(), killed.result()
    assert actual.keys() == expected.keys()
    for name in expected:
        assert same(without_own(actual[name]), without_own(expected[name])), name
