"""The `cifar-resnet` command, started as users start it."""

import contextlib
import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnet import CIFAR10DataModule, CustomResNet, ImageHistory, Recipe
from cifar_resnet.cli import hardware
from cifar_resnet.cli.datasets import read_ahead
from cifar_resnet.cli.main import build_parser, main
from cifar_resnet.cli.networks import load_network
from cifar_resnet.cli.options import CommandError
from cifar_resnet.cli.processes import communication
from cifar_resnet.cli.run_folder import new_folder
from cifar_resnet.cli.train import _devices
from cifar_resnet.data import cifar10, sources
from cifar_resnet.data.sharing import load_shared

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "cifar_resnet"]
IMAGES = sorted((ROOT / "cifar_resnet/cli/demo/images").glob("*.png"))


def start(
    *arguments: object, cwd: Path, command: list[str] = COMMAND
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, timeout=600, cwd=cwd
    )


def csv_steps(run: Path) -> list[int]:
    """Return the steps whose training loss is in the CSV file."""
    with (run / "csv" / "metrics.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["train_loss_step"]]


def metrics_of(run: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return metrics


@pytest.fixture(scope="module")
def smoke(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("smoke")
    result = start("train", "--smoke", "--width", "4", "--val-split", "5000", cwd=folder)
    assert result.returncode == 0, result.stderr
    (run,) = (folder / "runs").iterdir()
    return run, result.stdout


def test_a_run_on_a_folder_of_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for row in range(60):
        path = tmp_path / "pictures" / ("up", "down", "left")[row % 3] / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    command = ["train", "--data", "pictures", "--image-size", "16", "--width", "2", "--smoke"]
    result = start(*command, "--set", "batch_size=16", "--quiet", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (run,) = (tmp_path / "runs").iterdir()
    metrics = metrics_of(run)
    assert (metrics["train_images"], metrics["test_images"]) == (48, 12)
    network = CustomResNet.from_pretrained(run / "last.ckpt")
    assert (network.num_classes, network.image_size) == (3, (16, 16))
    assert json.loads((run / "arguments.json").read_text())["data"] == str(tmp_path / "pictures")
    with pytest.raises(CommandError, match="pictures, but this command uses CIFAR-10. Use Python"):
        load_network(str(run))


# --- train: what a run leaves -------------------------------------------------------------------


def test_the_smoke_run_leaves_everything_that_a_run_leaves(smoke: tuple[Path, str]) -> None:
    run, output = smoke
    metrics = metrics_of(run)
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
    assert run.name.endswith("-muon-width4-seed0")
    for part in (
        "Test accuracy",
        "with the mirror image",
        "with six views",
        "images/s",
        "--width 64",
        str(run.name),
    ):
        assert part in output


def test_hyperparameters_and_final_metrics_reach_tensorboard(smoke: tuple[Path, str]) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run, _ = smoke
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    plugin = events.PluginTagToContent("hparams")
    start_info = HParamsPluginData.FromString(plugin["_hparams_/session_start_info"])
    values = start_info.session_start_info.hparams
    assert values["width"].number_value == 4
    assert values["optimizer"].string_value == "muon"
    assert events.Scalars("hp/test_acc")[0].value == pytest.approx(metrics_of(run)["accuracy"])


def test_a_recipe_is_changed_field_by_field(data_dir: Path, tmp_path: Path) -> None:
    result = start(
        "train", "--smoke", "--quiet", "--width", "2", "--recipe", "sgd", "--logger", "csv",
        "--set", "learning_rate=0.1", "--set", "tta=none", "--batch-size", "100", "--seed", "3",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.endswith("-sgd-width2-seed3")
    recipe = metrics_of(run)["recipe"]
    changed = {k: v for k, v in recipe.items() if v != Recipe.preset("sgd").to_dict()[k]}
    assert changed == {"learning_rate": 0.1, "tta": "none", "batch_size": 100}
    assert csv_steps(run) == [0, 1, 2, 3]
    assert (run / "curves.png").is_file()
    assert not (run / "tensorboard").exists()


# --- train: resuming ----------------------------------------------------------------------------


@pytest.mark.parametrize("logger", ["tensorboard", pytest.param("csv", marks=pytest.mark.slow)])
def test_a_run_is_resumed_with_its_own_options(data_dir: Path, tmp_path: Path, logger: str) -> None:
    arguments = ["--smoke", "--quiet", "--width", "4", "--val-split", "5000", "--logger", logger]
    arguments += ["--history"] if logger == "csv" else []
    assert start("train", *arguments, cwd=tmp_path).returncode == 0
    (run,) = (tmp_path / "runs").iterdir()
    before = metrics_of(run)
    finished = start("train", "--resume", run, cwd=tmp_path)
    assert finished.returncode == 1
    assert "is finished: see" in finished.stderr
    # as if the run had been stopped after two of three epochs
    (run / "metrics.json").unlink()
    options = json.loads((run / "arguments.json").read_text())
    (run / "arguments.json").write_text(json.dumps(options | {"epochs": 3}))
    result = start("train", "--resume", run, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    after = metrics_of(run)
    assert after["resumed"]
    assert after["train_seconds"] > before["train_seconds"]
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 6
    assert (after["width"], after["val_split"], after["smoke"]) == (4, 5000, True)
    assert after["test_images"] == before["test_images"]
    assert len(list(run.parent.iterdir())) == 1
    if logger == "csv":
        assert csv_steps(run) == list(range(6))
        history = ImageHistory.load(run / "history.npz")
        assert len(history) == 45_000
        assert history.seen.sum(0).tolist() == [1024] * 3
        assert "history.npz " in result.stdout
    else:
        assert not (run / "history.npz").exists()
        assert "history.npz" not in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stops_with_a_checkpoint_and_resumes(
    data_dir: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [*COMMAND, "train", "--width", "4", "--epochs", "1", "--val-split", "5000",
         "--precision", "32-true", "--save-every", "0", "--quiet"],
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
    result = start("train", "--resume", run, "--quiet", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "last.ckpt is damaged" in result.stderr
    assert "previous.ckpt, its predecessor." in result.stderr
    assert f"Resuming after step {before}." in result.stdout
    metrics = metrics_of(run)
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
    result = start("train", "--resume", run, "--quiet", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "Resuming" not in result.stdout
    assert metrics_of(run)["resumed"]


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
    for arguments in (("train", "--resume"), ("misclassified",)):
        result = start(*arguments, run, cwd=tmp_path)
        assert result.returncode == 1
        assert "last.ckpt" in result.stderr
        assert "Traceback" not in result.stderr
    assert not mark.exists()

    (run / "last.ckpt").write_bytes(b"PK")
    result = start("train", "--resume", run, cwd=tmp_path)
    assert "last.ckpt is damaged" in result.stderr
    assert "Delete it to start again." in result.stderr
    assert "Traceback" not in result.stderr
    for text in ("{", "{}"):
        (run / "arguments.json").write_text(text)
        result = start("train", "--resume", run, cwd=tmp_path)
        assert result.returncode == 1
        assert "run cannot be resumed: its arguments.json is damaged" in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a compiler")
def test_a_compiled_run_with_the_other_network(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_LOGS", "recompiles")
    result = start(
        "train", "--smoke", "--width", "2", "--recipe", "best", "--compile", "--quiet",
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (run,) = (tmp_path / "runs").iterdir()
    metrics = metrics_of(run)
    network = CustomResNet(2, **Recipe.preset("best").network_options())
    assert metrics["parameters"] == sum(p.numel() for p in network.parameters())
    assert metrics["compile"] == "default"
    assert "Recompiling" not in result.stderr  # neither for the test nor for its last batch
    keys = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    assert set(keys) == {f"network.{name}" for name in network.state_dict()}
    # another command finds the same network again
    result = start("misclassified", run, "--n", "2", "--cam", "none", cwd=tmp_path)
    assert result.returncode == 0, result.stderr


# --- train: several processes -------------------------------------------------------------------


def test_training_closes_only_its_own_process_group() -> None:
    def open_group(error: Exception | None = None) -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        if error is not None:
            raise error

    try:
        with communication():
            open_group()
        assert not dist.is_initialized()
        with pytest.raises(KeyError, match="lost"), communication():
            open_group(KeyError("lost"))
        assert dist.is_initialized()  # other processes may wait
        with communication():
            pass
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_two_processes_train_as_one_run_and_resume(
    data_dir: Path, tmp_path: Path, launcher: str
) -> None:
    command = COMMAND if launcher == "lightning" else [*TORCHRUN, "-m", "cifar_resnet"]
    devices = ["--devices", "2"] if launcher == "lightning" else []
    result = start(
        "train", "--smoke", "--quiet", "--width", "2", "--strategy", "ddp", "--logger", "csv",
        *devices,
        cwd=tmp_path, command=command,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Test accuracy") == 1
    (run,) = (tmp_path / "runs").iterdir()
    metrics = metrics_of(run)
    assert metrics["batch_size"] == 512
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    # as if the run had been stopped after two of three epochs
    (run / "metrics.json").unlink()
    options = json.loads((run / "arguments.json").read_text())
    (run / "arguments.json").write_text(json.dumps(options | {"epochs": 3}))
    result = start("train", "--quiet", "--resume", run, cwd=tmp_path, command=command)
    assert result.returncode == 0, result.stderr
    assert metrics_of(run)["resumed"]
    assert torch.load(run / "last.ckpt", weights_only=True)["global_step"] == 6
    assert csv_steps(run) == list(range(6))  # no process deletes what another one has written
    assert len(list(run.parent.iterdir())) == 1


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--recipe", "bets"], 2, "There is no recipe 'bets'; choose one of"),
        (["--set", "lr=1"], 2, "--set must be FIELD=VALUE with a field of the recipe, but got"),
        (["--set", "learning_rate"], 2, "but got 'learning_rate'. The fields are name, optimizer"),
        (["--set", "learning_rate=-1"], 2, "learning_rate must be"),
        (["--set", "learning_rate=fast"], 2, "learning_rate must be"),
        (["--resume", "nowhere"], 1, "nowhere cannot be resumed: it does not contain arguments.js"),
        (["--epochs", "0"], 2, "must be at least 1, but got 0"),
        (["--epochs", "many"], 2, "must be an integer, but got 'many'"),
        (["--val-split", "50000"], 2, "val_split must be a count in"),
        (["--seed", "-1"], 2, "must be at least 0, but got -1"),
        (["--resume", "run", "--width", "8"], 2, "--resume takes --width from the saved run"),
        (["--output-dir", "/dev/null/runs"], 1, "Choose another --output-dir."),
        (["--data-dir", "/dev/null/data"], 1, "cannot be written"),
        (["--devices", "3"], 2, "The batch size must be divisible by the number of processes, but"),
        (["--devices", "0"], 2, "must be at least 1, but got 0"),
        (["--data", "cifar11"], 2, "must be one of cifar10, cifar100, mnist"),
        (["--data", "empty"], 2, "empty has no folders. Expected one folder of images for each"),
        (["--data", "empty", "--data-dir", "d"], 2, "--data-dir has no effect with --data empty"),
        (["--image-size", "32"], 2, "--image-size has no effect with --data cifar10"),
        (["--test-fraction", "1"], 2, "must be a number in [0, 1), but got '1'"),
        (["--data", "mnist", "--data-dir", "d", "--devices", "2"], 1, "Dataset not found"),
        (["--logger", "mlflow"], 1, "Install it with: pip install mlflow"),
        (["--strategy", "dpp"], 1, "Lightning does not accept these options"),
    ],
)
def test_mistakes_end_with_one_sentence(
    tmp_path: Path, data_dir: Path, arguments: list[str], code: int, message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "0")  # the process is not restarted
    (tmp_path / "empty").mkdir()
    if "mlflow" in arguments:
        monkeypatch.setattr("cifar_resnet.cli.loggers.find_spec", lambda _: None)
    try:
        status: Any = main(["train", *arguments])
    except SystemExit as end:
        status = end.code
    errors = capsys.readouterr().err
    assert message in errors
    assert status == code
    assert not list((tmp_path / "runs").glob("*"))


def test_devices_are_a_number_or_a_list_of_gpus() -> None:
    assert _devices("2") == 2
    assert _devices("0,2") == [0, 2]


# --- the other commands -------------------------------------------------------------------------


def test_a_run_reads_the_images_once_and_ahead(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    arrays = load_shared(data_dir)
    monkeypatch.setattr(sources, "load", lambda folder: read.append(folder) or arrays)
    parse = build_parser().parse_args
    command = ["train", "--data-dir", str(tmp_path)]
    assert read_ahead(parse(command)) == []  # nothing is there yet
    for name in cifar10.BATCHES:
        (tmp_path / f"{name}.bin").touch()
    assert read_ahead(parse([*command, "--data", "cifar100"])) == []
    assert read_ahead(parse([*command, "--resume", str(tmp_path)])) == []
    ahead = read_ahead(parse(command))
    wait(ahead)
    data = CIFAR10DataModule(tmp_path)
    data.setup()
    assert read == [tmp_path]
    assert data._arrays == ahead[0].result()


def test_data_are_verified(data_dir: Path, tmp_path: Path) -> None:
    result = start("data", "--data-dir", data_dir, "--no-download", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"CIFAR-10 in {data_dir}: 50,000 training images and 10,000 test images" in result.stdout
    result = start("data", "--data-dir", tmp_path / "none", "--no-download", cwd=tmp_path)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert str(tmp_path / "none") in result.stderr


def test_the_errors_of_a_run(smoke: tuple[Path, str], tmp_path: Path) -> None:
    run, _ = smoke
    result = start(
        "misclassified", run, "--n", "4", "--method", "hirescam", "--output-dir", "out",
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
    result = start("misclassified", run, "--n", "1", "--cam", "none", "--true", name, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads((run / "errors.json").read_text()) == [
        record for record in records if record["true"] == name
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 1, "There is no file or folder 'nowhere'. Expected the folder of a run"),
        (["empty"], 1, "empty is not a run that can be loaded: it does not contain last.ckpt"),
        (["quarter", "--true", "cow"], 2, "true_class must be a number from 0 to 9 or one of"),
        (["quarter", "--n", "0"], 2, "must be at least 1, but got 0"),
        (["quarter", "--sort", "size"], 2, "invalid choice: 'size'"),
        (["quarter", "--method", "magic"], 2, "magic"),
        (["quarter", "--layer", "stem"], 2, "residual3"),
    ],
)
def test_mistakes_about_errors(
    data_dir: Path, tmp_path: Path, arguments: list[str], code: int, message: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    try:
        status: Any = main(["misclassified", "--data-dir", str(data_dir), *arguments])
    except SystemExit as end:
        status = end.code
    assert message in capsys.readouterr().err
    assert status == code
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_images_are_classified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(path) for path in IMAGES]
    assert main(["predict", *paths, "--json", "--top", "10"]) == 0
    predictions = json.loads(capsys.readouterr().out)
    assert [prediction["image"] for prediction in predictions] == paths
    for prediction in predictions:
        probabilities = [row["probability"] for row in prediction["top"]]
        assert probabilities == sorted(probabilities, reverse=True)
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert {row["class"] for row in prediction["top"]} == set(cifar10.CLASSES)
    correct = [Path(p["image"]).stem.endswith(p["top"][0]["class"]) for p in predictions]
    assert sum(correct) >= 9  # of ten test images; the accuracy is 94 %

    assert main(["predict", paths[0], "--weights", "quarter"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{paths[0]}  {cifar10.CLASSES[3]}")


def test_files_that_are_not_images_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_text("text")
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "b.png")
    assert main(["predict", *(str(tmp_path / n) for n in ("a.png", "none.png", "b.png"))]) == 1
    output = capsys.readouterr()
    assert len(output.out.splitlines()) == 1
    assert output.out.startswith(str(tmp_path / "b.png"))
    first, second = output.err.splitlines()
    start = f"'{tmp_path / 'a.png'}' cannot be classified: This file is not an image"
    assert first.startswith(start)
    expected = f"'{tmp_path / 'none.png'}' cannot be classified: it is not a file that exists."
    assert second == expected
    assert main(["predict", str(tmp_path / "b.png"), "--weights", "huge"]) == 1
    assert "There is no file or folder 'huge'" in capsys.readouterr().err


def test_help_names_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    subparsers: Any = next(a for a in parser._actions if a.choices and "train" in a.choices)
    for name, subparser in subparsers.choices.items():
        for action in subparser._actions:
            is_switch = action.nargs == 0
            if action.option_strings and not is_switch and action.dest not in ("resume", "weights"):
                if name == "train" and action.dest == "set":
                    continue
                assert "default: " in action.help, (name, action.dest)
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "misclassified" in capsys.readouterr().out


def test_help_does_not_import_torch() -> None:
    code = "import sys; from cifar_resnet.cli.main import build_parser; build_parser(); "
    check = "assert not {'torch', 'matplotlib', 'gradio'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code + check], check=True)


def test_the_console_script_is_installed() -> None:
    script = shutil.which("cifar-resnet", path=str(Path(sys.executable).parent))
    assert script is not None
    result = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert result.stdout.startswith("cifar-resnet ")


# --- processes and folders ------------------------------------------------------------------------


def test_runs_that_start_in_the_same_second_get_different_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cifar_resnet.cli.run_folder.time.strftime", lambda name: f"now-{name[14:]}"
    )
    parent = tmp_path / "runs"
    folders = [new_folder(parent, "sgd", create=True) for _ in range(3)]
    assert [folder.name for folder in folders] == ["now-sgd", "now-sgd-1", "now-sgd-2"]
    assert all(folder.is_dir() for folder in folders)
    assert not new_folder(tmp_path / "other", "sgd", create=False).parent.exists()


@pytest.mark.parametrize(
    ("program", "started", "expected"),
    [
        ("/bin/cifar-resnet", ["python", "/bin/cifar-resnet", "train"], True),
        ("/lib/cifar_resnet/__main__.py", ["python", "-u", "-m", "cifar_resnet", "train"], True),
        # a notebook's kernel with %run, a script that calls main(), and another module
        ("/bin/cifar-resnet", ["python", "-m", "ipykernel_launcher", "-f", "a.json"], False),
        ("/lib/cifar_resnet/__main__.py", ["python", "-m", "ipykernel_launcher"], False),
        ("examples/train_24.py", ["python", "examples/train_24.py"], False),
        ("/lib/pytest/__main__.py", ["python", "-m", "pytest"], False),
    ],
)
def test_only_the_command_itself_is_restarted_with_large_pages(
    monkeypatch: pytest.MonkeyPatch, program: str, started: list[str], expected: bool
) -> None:
    restarts = []
    monkeypatch.setattr("cifar_resnet.cli.hardware.os.execv", lambda *_: restarts.append(1))
    monkeypatch.setattr("cifar_resnet.cli.hardware.platform.libc_ver", lambda: ("glibc", "2"))
    monkeypatch.setattr("cifar_resnet.cli.hardware.Path.exists", lambda path: False)
    monkeypatch.setattr("cifar_resnet.cli.hardware.os.environ", {})
    monkeypatch.setattr(sys, "argv", [program, "train"])
    monkeypatch.setattr(sys, "orig_argv", started)
    hardware.use_large_pages()
    assert bool(restarts) == expected


@pytest.mark.parametrize("option", ["--output-dir", "--resume"])
def test_remote_folders_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(["train", option, "s3://bucket/runs"])
    assert "must be a path on a local file system, but got 's3://bucket/runs'" in (
        capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == []
