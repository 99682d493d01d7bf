"""The page shows the raw results, and the benchmark ranks, resumes and evaluates."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import generated  # noqa: E402
import history_tables  # noqa: E402
import label_issues  # noqa: E402


def test_the_page_shows_the_raw_results() -> None:
    page = (ROOT / "docs" / "history.md").read_text()
    results = ROOT / "benchmarks" / "results"
    rows = (history_tables.read(results / f"{n}.jsonl") for n in ("label_issues", "history_cost"))
    assert history_tables.updated(page, *rows, figure=history_tables.FIGURE.exists()) == page


def line(method: str, kind: str, noise: float, seed: int, value: float) -> dict[str, Any]:
    more = {"folds": 4, "cleanlab": "2.9.0"} if method == "cleanlab" else {}
    score = "loss" if method == "history" else "confident_learning"
    return {
        "method": method, "kind": kind, "noise": noise, "seed": seed, "recipe": "muon",
        "width": 16, "epochs": 24, "subset": None, "hardware": {"device": "a processor"},
        "scores": {score: {"auroc": value, "precision_at_k": value / 2}}, **more,
    }  # fmt: skip


def test_tables_hold_means_over_seeds() -> None:
    rows = [
        line("history", "symmetric", 0.2, 0, 0.9), line("history", "symmetric", 0.2, 1, 0.8),
        line("history", "asymmetric", 0.1, 0, 0.7), line("cleanlab", "symmetric", 0.05, 0, 0.6),
    ]  # fmt: skip
    cost = {
        "hardware": {"device": "a GPU"}, "width": 64, "allocator": "default",
        "seconds_ratios": [1.0, 1.02], "seconds": [2.0, 2.0, 2.04, 2.0], "own_seconds": 0.01,
        "file": {"bytes": 13_200_000},
    }  # fmt: skip
    costs = [cost, {**cost, "seconds_ratios": [1.04]}]
    empty = f"a\n{generated.BEGIN}old\n{generated.END}b\n"
    page = history_tables.updated(empty, rows, costs, figure=True)
    assert "old" not in page
    assert "| score | symmetric 5% | symmetric 20% | asymmetric 10% |" in page
    assert "| `loss` |  | 0.850 | 0.700 |" in page
    assert "| `loss` |  | 0.425 | 0.350 |" in page
    assert "| cleanlab: confident learning | 0.600 |  |  |" in page
    assert "seed 0, 1, a processor. Confident learning of cleanlab 2.9.0 needs 4 more" in page
    # the mean plus and minus 4.303 (Student's t with 2 degrees of freedom) times 0.02 / sqrt(3)
    assert "| a GPU | 64 | default | 3 | 1.020 (0.970 to 1.070) | 0.50 % | 13.2 |" in page
    assert "(figures/doubtful_labels.png)" in page
    assert history_tables.updated(page, rows, costs, figure=True) == page
    without = history_tables.updated(page, [], [], figure=False)
    assert without == f"a\n{generated.BEGIN}\n{generated.END}b\n"


def test_measures_are_those_of_definitions() -> None:
    rng = np.random.default_rng(0)
    doubt, wrong = rng.integers(0, 20, 60).astype(float), rng.random(60) < 0.3
    found = label_issues.evaluated(doubt, wrong)
    pairs = [(a > b) + (a == b) / 2 for a in doubt[wrong] for b in doubt[~wrong]]
    assert found["auroc"] == pytest.approx(np.mean(pairs))
    first = sorted(range(60), key=lambda row: (-doubt[row], row))[: wrong.sum()]
    assert found["precision_at_k"] == pytest.approx(wrong[first].mean())


@pytest.mark.slow
def test_a_small_run_is_ranked_once(data_dir: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    command = [
        sys.executable, str(ROOT / "benchmarks" / "label_issues.py"), "--noise", "0.2",
        "--subset", "600", "--width", "2", "--epochs", "2", "--recipe", "adam", "--folder",
        str(tmp_path), "--results", str(results), "--precision", "32-true", "--data-dir",
        str(data_dir), "--doubtful", str(tmp_path / "doubtful.csv"),
    ]  # fmt: skip
    for more in (["--methods", "history"], ["--methods", "history"], ["--clean"]):
        subprocess.run([*command, *more], check=True, timeout=300, capture_output=True)
    (found,) = [json.loads(text) for text in results.read_text().splitlines()]
    assert found["scores"].keys() >= {"mean_rank", "area_under_margin"}
    assert 80 <= found["changed"] <= 160
    assert len((tmp_path / "doubtful.csv").read_text().splitlines()) == 51
