"""The accuracy benchmark trains, sweeps and continues; all arms of the speed benchmark run."""

import argparse
import json
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from cifar_resnet import Recipe
from cifar_resnet.comparison.arms import recipe_name

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import accuracy  # noqa: E402
import gpu  # noqa: E402
import speed  # noqa: E402


def harness(*arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "accuracy.py"), *arguments],
        capture_output=True, text=True, timeout=600, check=True,
    )  # fmt: skip
    return result.stdout


@pytest.mark.slow
def test_runs_are_kept_continued_and_summarized(data_dir: Path, tmp_path: Path) -> None:
    results = tmp_path / "tuning.jsonl"
    results.write_text('{"a line of another": "script"}\n')
    common = ["--held-out", "--width", "1", "--epochs", "1", "--results", str(results)]
    common += [
        "--data-dir",
        str(data_dir),
        "--precision",
        "32-true",
        "--set",
        "batch_size=5000",
        "tta=six",
    ]
    assert "stopped here" in harness(*common, "--minutes", "0")
    assert len(results.read_text().splitlines()) == 1
    harness(*common)
    (run,) = [json.loads(line) for line in results.read_text().splitlines()[1:]]
    assert run["recipe"] == Recipe.preset("sgd").to_dict() | {
        "batch_size": 5000,
        "tta": "six",
    }
    assert (run["seed"], run["width"], run["epochs"], run["held_out"]) == (0, 1, 1, True)
    assert run["precision"] == "32-true"
    # of 5,000 held-out images
    for name in ("acc", "acc_mirror", "acc_six"):
        assert 0 < run[name] < 1
        assert run[name] * 5000 == pytest.approx(round(run[name] * 5000), abs=1e-2)
    assert set(run["versions"]) >= {"python", "torch", "pytorch_lightning"}
    output = harness(*common, "--seeds", "0-1")
    seeds = [json.loads(line)["seed"] for line in results.read_text().splitlines()[1:]]
    assert seeds == [0, 1]  # the first was not repeated
    assert re.search(r"accuracy in %, TTA of six views +sgd tta=six batch_size=5000 +2 ", output)


def test_a_sweep_is_the_product_of_its_values() -> None:
    found = list(accuracy.chosen_recipes(["adam", "sgd"], ["learning_rate=0.1,0.2", "cutout=0,8"]))
    values = [(r.name, r.learning_rate, r.cutout) for r in found]
    assert values == [(n, lr, c) for n in ("adam", "sgd") for lr in (0.1, 0.2) for c in (0, 8)]
    assert recipe_name(found[-1]) == "sgd learning_rate=0.2 cutout=8"
    assert list(accuracy.chosen_recipes(["sgd"], [])) == [Recipe.preset("sgd")]


def test_seeds_are_a_number_or_a_range() -> None:
    assert accuracy.seeds("3") == [3]
    assert accuracy.seeds("2-4") == [2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "cutout"], "--set takes FIELD=VALUE with a field of .* not 'cutout'"),
        (["--set", "lr=0.1"], "--set takes FIELD=VALUE with a field of .* not 'lr=0.1'"),
        (["--set", "activation=relu,tanh"], "activation must be one of .* but got 'tanh'"),
        (["--recipes", "best of all"], "There is no recipe 'best of all'"),
        (["--seeds", "4-0"], "must be a range that goes up, but got 4-0"),
    ],
)
def test_mistakes_are_found_before_the_first_run(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "argv", ["accuracy.py", *arguments])
    monkeypatch.setattr(accuracy, "train", None)
    with pytest.raises(SystemExit):
        accuracy.main()
    assert re.search(message, capsys.readouterr().err)


def test_lines_of_an_older_recipe_are_known_again() -> None:
    args = argparse.Namespace(width=16, epochs=24, held_out=False, precision="32-true")
    key = accuracy.run_key(Recipe.preset("sgd"), 0, args)
    recipe = dict(key["recipe"])
    del recipe["head_scale"]
    assert accuracy.matches(key | {"recipe": recipe}, key)
    assert accuracy.matches(key | {"recipe": recipe | {"name": "another"}}, key)
    assert not accuracy.matches(key | {"recipe": recipe | {"cutout": 8}}, key)
    assert not accuracy.matches(key | {"recipe": recipe | {"gone": 1}}, key)
    assert not accuracy.matches(key | {"precision": "bf16-mixed"}, key)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arm",
    [
        "data-ours",
        "data-torchvision",
        "step-1-ours",
        "step-1-plain",
        "step-1-peak",
        "loop-1-ours",
        "trainer-1-ours",
        "trainer-1-beginner",
        "trainer-1-tried",
        "muon-1-ours",
        "muon-1-small",
        "muon-1-small-standard",
        "best-1-plain",
    ],
)
def test_every_arm_of_the_speed_benchmark_runs(data_dir: Path, arm: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a beginner would see them
        assert speed.measure(arm, str(data_dir), 0.1) > 0


def test_pairs_name_arms_that_exist() -> None:
    known = re.compile(r"data-(ours|torchvision|airbench)|step-\d+-(ours|plain|peak)|loop-\d+-ours")
    known_trainer = re.compile(
        r"trainer-\d+-(ours|beginner|tried|default|reduce-overhead)|"
        r"(muon|best)-\d+-(ours|plain|standard|small|small-standard)"
    )
    for _, *arms in speed.PAIRS:
        for arm in arms:
            assert known.fullmatch(arm) or known_trainer.fullmatch(arm)


# --- a GPU for some minutes ----------------------------------------------------------------------


def ask(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(
        sys, "argv", ["gpu.py", "--to", str(folder), "--data-dir", "data", *arguments]
    )
    gpu.main()


def test_steps_are_done_once_in_their_order_and_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    count = "-c \"print('did', '{epochs}'); open(r'{to}/count', 'a').write('x')\""
    steps = (
        gpu.Step("works", count, 60),
        gpu.Step("fails", "-c 'raise SystemExit(3)'", 60),
        gpu.Step("hangs", "-c \"import time; print('so far', flush=True); time.sleep(60)\"", 3),
        gpu.Step("stops", "-c \"print('5 s left: stopped here.')\"", 60, goes_on=True),
    )
    monkeypatch.setattr(gpu, "STEPS", steps)
    monkeypatch.setattr(gpu, "SHORTEST", 1)
    ask(tmp_path, monkeypatch)
    assert capsys.readouterr().out.endswith("Left: ['fails', 'hangs', 'stops']\n")
    lines = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [(line["step"], line["done"], line["code"]) for line in lines] == [
        ("works", True, 0), ("fails", False, 3), ("hangs", False, None), ("stops", False, 0),
    ]  # fmt: skip
    log = (tmp_path / "log.txt").read_text()
    assert "did 24\n" in log
    assert "so far\n" in log
    monkeypatch.setattr(gpu, "STEPS", steps[:1])
    ask(tmp_path, monkeypatch)
    assert capsys.readouterr().out == "All is done.\n"
    assert (tmp_path / "count").read_text() == "x"


def test_no_step_begins_without_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask(tmp_path, monkeypatch, "--minutes", "0.1")
    assert capsys.readouterr().out.startswith(f"No time left for {gpu.STEPS[0].name!r}.\nLeft: [")
    assert not (tmp_path / "steps.jsonl").exists()


def test_every_step_names_scripts_and_pairs_that_exist() -> None:
    for step in gpu.STEPS:
        words = dict.fromkeys([*gpu.FULL, "to", "data", "run", "minutes"], "1")
        script, *arguments = [word.format(**words) for word in shlex.split(step.command)]
        paths = [word for word in arguments if word.startswith("tests/")]
        for path in [script, *paths] if script != "-m" else paths:
            assert (ROOT / path).is_file()
        if "--only" in arguments:
            for title in arguments[arguments.index("--only") + 1 :]:
                assert any(pair[0].startswith(title) for pair in speed.PAIRS)
