"""Test the sweep over other libraries' networks: its page, its list, and a run of one network."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import network_sweep  # noqa: E402
import network_tables  # noqa: E402
import networks  # noqa: E402


def test_the_page_shows_the_raw_results() -> None:
    rows = network_sweep.read(ROOT / "benchmarks" / "results" / "network_sweep.jsonl")
    page = (ROOT / "docs" / "which-networks.md").read_text()
    assert network_tables.updated(page, rows) == page


def test_the_last_line_of_a_network_counts(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    lines = [{"library": "a", "name": "b", "result": result} for result in ("refused", "verified")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert network_sweep.read(path) == [lines[1]]
    assert network_sweep.read(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            "NotImplementedError: There is no receptive-field rule for the operation "
            "aten.col2im.default in layer 'a', called from b.py:3. Pass one: ...",
            "no rule for `aten.col2im`",
        ),
        (
            "NotImplementedError: Tensor.item extracts values from a tensor that depends on the "
            "input (a.py:3), so what depends on them cannot be followed.",
            "values leave the tensors in `Tensor.item`",
        ),
        ("stopped in the analysis after 60 CPU seconds",) * 2,
    ],
)
def test_refusals_are_grouped_by_cause(error: str, cause: str) -> None:
    row: dict[str, Any] = {"result": "refused", "error": error}
    assert network_tables.reason(row) == cause


def test_torchvisions_classifiers_and_one_of_each_timm_module_are_listed() -> None:
    timm = pytest.importorskip("timm")
    from torchvision import models

    names = [network.name for network in networks.networks("torchvision")]
    assert set(models.list_models(module=models)) <= set(names)
    listed = {network.name for network in networks.networks("timm")}
    for module in timm.list_modules():
        assert listed & set(timm.list_models(module=module)), module


@pytest.mark.slow
def test_a_network_is_verified_in_a_process_of_its_own(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks" / "network_sweep.py")]
    command += ["--libraries", "torchvision", "--only", "squeezenet1_1", "--results", str(results)]
    for _ in range(2):  # the second run skips it
        subprocess.run(command, check=True, timeout=600)
        (row,) = network_sweep.read(results)
        assert row["result"] == "verified"
        assert row["other_at_checked_size"] == []
        assert len(results.read_text().splitlines()) == 1
