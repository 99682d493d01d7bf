"""The examples as users start them."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnet import CustomResNet, Recipe

ROOT = Path(__file__).parents[1]


def start(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *arguments],
        capture_output=True, text=True, timeout=600, cwd=cwd,
    )  # fmt: skip


@pytest.fixture(scope="module")
def smoke(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("smoke")
    result = start("train_24.py", "--smoke", "--width", "4", "--val-split", "5000", cwd=folder)
    assert result.returncode == 0, result.stderr
    (run,) = (folder / "runs").iterdir()
    return run, result.stdout


def test_the_smoke_run_leaves_everything_that_a_run_leaves(smoke: tuple[Path, str]) -> None:
    run, output = smoke
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["parameters"] == sum(p.numel() for p in CustomResNet(width=4).parameters())
    assert 0 <= metrics["accuracy"] <= 1
    assert 0 <= metrics["accuracy_mirror"] <= 1
    assert 0 <= metrics["accuracy_six"] <= 1
    assert list(metrics["stage_seconds"]) == [
        "import", "data", "set-up", "first step", "train", "test", "report",
    ]  # fmt: skip
    assert sum(metrics["stage_seconds"].values()) == pytest.approx(
        metrics["total_seconds"], rel=0.1
    )
    assert metrics["seed"] == 0
    assert set(metrics["versions"]) == {"python", "torch", "pytorch_lightning", "cifar_resnet"}
    for name in ("curves", "misclassified", "confusion_matrix", "calibration"):
        assert (run / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    events = EventAccumulator(str(run / "tensorboard")).Reload().Tags()
    assert events["graph"]
    assert set(events["images"]) == {
        "calibration", "confusion_matrix", "misclassified", "training_curves",
    }  # fmt: skip
    assert {
        "train_loss_step",
        "val_acc",
        "test_acc_six",
        "learning_rate/others",
        "learning_rate/convolutions",
    } <= set(events["scalars"])
    assert torch.load(run / "best.ckpt", weights_only=True)["epoch"] in (0, 1)
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 4
    assert not list(run.glob(".*"))  # no temporary file
    for part in (
        "Test accuracy",
        "with the mirror view",
        "with six views",
        "images/s",
        "--width 64",
        str(run.name),
    ):
        assert part in output


def test_a_run_is_resumed_with_its_own_arguments(smoke: tuple[Path, str]) -> None:
    run, _ = smoke
    before = json.loads((run / "metrics.json").read_text())
    finished = start("train_24.py", "--resume", str(run), cwd=run.parents[1])
    assert finished.returncode != 0
    assert "is finished: see" in finished.stderr
    # as if the run had been stopped after two of three epochs
    (run / "metrics.json").unlink()
    arguments = json.loads((run / "arguments.json").read_text())
    (run / "arguments.json").write_text(json.dumps(arguments | {"epochs": 3}))
    result = start("train_24.py", "--resume", str(run), cwd=run.parents[1])
    assert result.returncode == 0, result.stderr
    after = json.loads((run / "metrics.json").read_text())
    assert after["resumed"]
    assert after["train_seconds"] > before["train_seconds"]
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 6
    assert (after["width"], after["val_split"], after["smoke"]) == (4, 5000, True)
    assert after["test_images"] == before["test_images"]
    assert len(list(run.parent.iterdir())) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stops_with_a_checkpoint_and_goes_on(
    data_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / "train_24.py"), "--width", "4", "--epochs", "1",
         "--val-split", "5000", "--precision", "32-true", "--save-every", "0", "--quiet"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    early, step = b"", 0
    while process.poll() is None and step < 12:
        time.sleep(0.05)
        with contextlib.suppress(FileNotFoundError):  # for a moment, between two names
            for path in tmp_path.glob("runs/*/last.ckpt"):
                early = early or path.read_bytes()
                step = torch.load(path, weights_only=True)["global_step"]
    process.send_signal(number)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + number, errors
    (run,) = (tmp_path / "runs").iterdir()
    assert f"{number.name}: stopping with a checkpoint after this step" in errors
    assert f"--resume {Path('runs', run.name)}" in errors
    assert "Traceback" not in errors
    stopped_at = torch.load(run / "last.ckpt", weights_only=True)["global_step"]
    assert 12 <= stopped_at < 88
    if number == signal.SIGTERM:
        return
    # a last checkpoint that was cut off; the one before is from before the first logged step
    (run / "previous.ckpt").write_bytes(early)
    before = torch.load(run / "previous.ckpt", weights_only=True)["global_step"]
    assert before < 9
    (run / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes()[:-100])
    result = start("train_24.py", "--resume", str(run), "--quiet", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "last.ckpt is damaged" in result.stderr
    assert "previous.ckpt, the one before." in result.stderr
    assert f"Going on after step {before}." in result.stdout
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["resumed"], metrics["train_images"]) == (True, 45_000)
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 88
    losses = EventAccumulator(str(run / "tensorboard")).Reload().Scalars("train_loss_step")
    assert [event.step for event in losses] == list(range(9, 88, 10))  # each of them once


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(
    smoke: tuple[Path, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(smoke[0] / "arguments.json", run)
    result = start("train_24.py", "--resume", str(run), "--quiet", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "Going on" not in result.stdout
    assert json.loads((run / "metrics.json").read_text())["resumed"]


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "ran")


def test_runs_with_damaged_or_hostile_files(smoke: tuple[Path, str], tmp_path: Path) -> None:
    run, mark = tmp_path / "run", tmp_path / "ran"
    run.mkdir()
    for name in ("arguments.json", "last.ckpt"):
        shutil.copy(smoke[0] / name, run)
    saved = torch.load(run / "last.ckpt", weights_only=True)
    torch.save(saved | {"more": Evil(mark)}, run / "last.ckpt")
    for script, arguments in (("train_24.py", ["--resume", str(run)]), ("misclassified.py", [run])):
        result = start(script, *map(str, arguments), cwd=tmp_path)
        assert result.returncode == 1
        assert "last.ckpt is no checkpoint of train_24.py" in result.stderr
        assert "Traceback" not in result.stderr
    assert not mark.exists()

    (run / "last.ckpt").write_bytes(b"PK")
    result = start("train_24.py", "--resume", str(run), cwd=tmp_path)
    assert "last.ckpt is damaged" in result.stderr
    assert "Delete it to start again from the beginning." in result.stderr
    assert "Traceback" not in result.stderr
    for text in ("{", "{}"):
        (run / "arguments.json").write_text(text)
        result = start("train_24.py", "--resume", str(run), cwd=tmp_path)
        assert "run cannot be resumed: its arguments.json is damaged" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a compiler")
def test_a_compiled_run_with_the_other_network(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_LOGS", "recompiles")
    result = start(
        "train_24.py", "--smoke", "--width", "2", "--recipe", "best", "--compile", "--quiet",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (run,) = (tmp_path / "runs").iterdir()
    metrics = json.loads((run / "metrics.json").read_text())
    network = CustomResNet(2, **Recipe.preset("best").network_options())
    assert metrics["parameters"] == sum(p.numel() for p in network.parameters())
    assert metrics["compile"] == "default"
    assert "Recompiling" not in result.stderr  # neither for the test nor for its last batch
    keys = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert set(keys) == {f"network.{name}" for name in network.state_dict()}
    # another script finds the same network again
    result = start("misclassified.py", str(run), "--n", "2", "--cam", "none", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "bets"], "There is no recipe 'bets'; choose one of"),
        (["--resume", "nowhere"], "nowhere cannot be resumed: it holds no arguments.json"),
        (["--epochs", "0"], "must be at least 1, but got 0"),
        (["--val-split", "50000"], "val_split must be a count in"),
        (["--seed", "-1"], "must be at least 0, but got -1"),
        (["--resume", "run", "--width", "8"], "--resume takes --width from the saved run"),
        (["--output-dir", "/dev/null/runs"], "Is --output-dir right?"),
        (["--data-dir", "/dev/null/data"], "cannot be written"),
    ],
)
def test_mistakes_end_with_one_sentence(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = start("train_24.py", *arguments, cwd=tmp_path)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "runs").glob("*"))


def test_the_plain_loop(data_dir: Path, tmp_path: Path) -> None:
    result = start("plain_pytorch.py", "--epochs", "1", "--width", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    accuracy = float(result.stdout.splitlines()[-1].removeprefix("test accuracy ").rstrip("%"))
    assert accuracy > 25


def test_the_errors_of_a_run(smoke: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = smoke
    result = start(
        "misclassified.py", str(run), "--n", "4", "--method", "hirescam", "--output-dir", "out",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "misclassified.png", "confusion_matrix.png", "calibration.png", "errors.json",
    }  # fmt: skip
    records = json.loads((tmp_path / "out" / "errors.json").read_text())
    assert f"{len(records):,} errors in 10,000 images" in result.stdout
    assert records
    assert all(record["true"] != record["predicted"] for record in records)

    # one class that the first call has found among the errors
    name = records[0]["true"]
    result = start(
        "misclassified.py", str(run), "--n", "1", "--cam", "none", "--true", name, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert json.loads((run / "errors.json").read_text()) == [
        record for record in records if record["true"] == name
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere is no run of train_24.py: it holds no last.ckpt"),
        (["RUN", "--true", "cow"], "true_class must be a number from 0 to 9 or one of"),
        (["RUN", "--n", "0"], "n must be an integer of at least 1"),
        (["RUN", "--layer", "stem"], "network.residual3"),
    ],
)
def test_mistakes_about_errors(
    smoke: tuple[Path, str], tmp_path: Path, arguments: list[str], message: str
) -> None:
    arguments = [str(smoke[0]) if argument == "RUN" else argument for argument in arguments]
    result = start("misclassified.py", *arguments, cwd=tmp_path)
    assert result.returncode != 0
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_receptive_field_tables_and_figures(data_dir: Path, tmp_path: Path) -> None:
    result = start(
        "receptive_field.py", "--model", "squeezenet1_1", "--size", "64", "--figures", "out",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    ours, other = result.stdout.split("squeezenet1_1 of torchvision")
    fields = [line.split()[-1] for line in ours.splitlines()[4:16]]
    assert fields == ["3", "5", "6", "10", "14", "18", "20", "28", "32", "48", "64", "88"]
    assert "features.12.expand3x3" in other
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "fields.png",
        "growth.png",
    ]
