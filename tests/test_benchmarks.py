"""The accuracy harness: it trains, goes on where it stopped, sweeps, and stops in time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cifar_resnet import Recipe

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy  # noqa: E402


def harness(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "accuracy.py"), *arguments],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    return result.stdout


def test_runs_are_kept_continued_and_summarised(data_dir: Path, tmp_path: Path) -> None:
    results = tmp_path / "tuning.jsonl"
    results.write_text('{"a line of another": "script"}\n')
    common = ["--held-out", "--width", "1", "--epochs", "1", "--results", str(results)]
    common += ["--data-dir", str(data_dir), "--set", "batch_size=5000", "test_views=six"]
    assert "stopped here" in harness(*common, "--minutes", "0")
    assert len(results.read_text().splitlines()) == 1
    harness(*common)
    (run,) = [json.loads(line) for line in results.read_text().splitlines()[1:]]
    assert run["recipe"] == Recipe.preset("sgd").to_dict() | {
        "batch_size": 5000,
        "test_views": "six",
    }
    assert (run["seed"], run["width"], run["epochs"], run["held_out"]) == (0, 1, 1, True)
    # of 5,000 held-out images
    for name in ("acc", "acc_mirror", "acc_six"):
        assert 0 < run[name] < 1
        assert run[name] * 5000 == pytest.approx(round(run[name] * 5000), abs=1e-2)
    assert set(run["versions"]) >= {"python", "torch", "pytorch_lightning"}
    output = harness(*common, "--seeds", "0-1")
    seeds = [json.loads(line)["seed"] for line in results.read_text().splitlines()[1:]]
    assert seeds == [0, 1]  # the first was not repeated
    assert output.splitlines()[-1].startswith("sgd test_views=six batch_size=5000 ")
    assert output.splitlines()[-1].split()[3] == "2"


def test_a_sweep_is_the_product_of_its_values() -> None:
    found = list(accuracy.chosen_recipes(["adam", "sgd"], ["learning_rate=0.1,0.2", "cutout=0,8"]))
    values = [(r.name, r.learning_rate, r.cutout) for r in found]
    assert values == [(n, lr, c) for n in ("adam", "sgd") for lr in (0.1, 0.2) for c in (0, 8)]
    assert accuracy.describe(found[-1]) == "sgd learning_rate=0.2 cutout=8"
    assert list(accuracy.chosen_recipes(["sgd"], [])) == [Recipe.preset("sgd")]


def test_seeds_are_a_number_or_a_range() -> None:
    assert accuracy.seeds("3") == [3]
    assert accuracy.seeds("2-4") == [2, 3, 4]
