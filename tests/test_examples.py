"""Run the examples as users start them."""

import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def start(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *arguments],
        capture_output=True, text=True, timeout=600, cwd=cwd,
    )  # fmt: skip


def test_the_composition_trains_tests_and_draws(data_dir: Path, tmp_path: Path) -> None:
    result = start("train_24.py", "--width", "2", "--epochs", "1", "--seed", "3", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "test_acc_six" in result.stdout
    assert (tmp_path / "misclassified.png").read_bytes()[:4] == b"\x89PNG"
    (checkpoint,) = tmp_path.glob("runs/train_24/version_0/checkpoints/*.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 98
    assert list(tmp_path.glob("runs/train_24/version_0/events*"))


def test_the_composition_fits_on_one_screen() -> None:
    assert len((ROOT / "examples/train_24.py").read_text().splitlines()) <= 60


def test_the_plain_loop(data_dir: Path, tmp_path: Path) -> None:
    result = start("plain_pytorch.py", "--epochs", "1", "--width", "2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    accuracy = float(result.stdout.splitlines()[-1].removeprefix("test accuracy ").rstrip("%"))
    assert accuracy > 25


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
