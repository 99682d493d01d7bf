"""Test comparisons: what is trained and shared, the folder of results, tables, and bad input."""

import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from cifar_resnet import Arm, Comparison, CustomResNet, Recipe, compare, show_comparison
from cifar_resnet.comparison import comparing, initial, running, sequential
from cifar_resnet.comparison.arms import as_arm

ROOT = Path(__file__).parents[1]
TINY: dict[str, Any] = {"width": 1, "epochs": 1, "precision": "32-true"}
ARMS = ("sgd subset=500 tta=none", "sgd subset=500 tta=none learning_rate=0.01")
NAMES = ("sgd tta=none subset=500", "sgd learning_rate=0.01 tta=none subset=500")


def line(recipe: Recipe, seed: int, acc: float, **values: Any) -> dict[str, Any]:
    """A result line like those of the benchmark."""
    return {
        "recipe": recipe.to_dict(), "width": 16, "epochs": 24, "seed": seed, "held_out": True,
        "precision": "bf16-mixed", "acc": acc, "date": f"2026-01-01T00:00:{seed:02}", **values,
    }  # fmt: skip


def made(*accuracies: list[float], **options: Any) -> Comparison:
    """A comparison of arms "A", "B", ... with these accuracies."""
    runs = {
        name: {s: line(Recipe(), s, acc) | {"network": "other"} for s, acc in enumerate(values)}
        for name, values in zip("ABCDEF", accuracies, strict=False)
    }
    return Comparison(tuple(runs), runs, "acc", **options)


def count(folder: Path) -> int:
    return sum(len(file.read_text().splitlines()) for file in folder.glob("runs-*.jsonl"))


class FakeTraining:
    """In place of a training: an accuracy for each arm and seed, and a record of the calls."""

    def __init__(self, accuracy: Callable[[Arm, int], float]) -> None:
        self.accuracy, self.calls = accuracy, list[tuple[str, int]]()

    def __call__(self, arm: Arm, seed: int, setting: Any, **_: Any) -> dict[str, Any]:
        self.calls.append((arm.name, seed))
        return {"acc": self.accuracy(arm, seed), "date": f"2026-01-01T00:00:{len(self.calls):02}"}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTraining:
    noise = np.random.default_rng(0).normal(size=(2, 60)) * 0.0015

    def accuracy(arm: Arm, seed: int) -> float:
        better = arm.recipe.learning_rate == 0.01
        return 0.92 + 0.004 * better + float(noise[int(better), seed])

    training = FakeTraining(accuracy)
    monkeypatch.setattr(running, "train_run", training)
    return training


# --- training ------------------------------------------------------------------------------------


def test_runs_are_trained_once_and_compared(data_dir: Path, tmp_path: Path) -> None:
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    before = (
        list(warnings.filters), logger.level, dict(os.environ),
        signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
    )  # fmt: skip
    found = compare(*ARMS, seeds=2, results=tmp_path, data_dir=data_dir, **TINY)
    after = (
        list(warnings.filters), logger.level, dict(os.environ),
        signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM),
    )  # fmt: skip
    assert after == before
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected

    assert found.arms == NAMES
    assert found.metrics() == ["acc", "loss", "ece", "train_acc", "train_seconds"]
    assert found.equal_weights == {NAMES[1]: 1.0}
    assert list(found.values(NAMES[0])) == [0, 1]
    for runs in found.runs.values():
        for seed, run in runs.items():
            assert run["seed"] == seed
            assert run["acc"] * 5000 == pytest.approx(round(run["acc"] * 5000), abs=1e-2)
            assert 0 <= run["ece"] <= 1
            assert run["train_acc"] * 500 == pytest.approx(round(run["train_acc"] * 500), abs=1e-2)
            assert run["train_seconds"] < run["total_seconds"]
            assert set(run["versions"]) >= {"torch", "pytorch_lightning", "cifar_resnet"}
    assert not list((tmp_path / "checkpoints").glob("*/*"))
    # again: nothing is trained, and both ways to read give the same
    again = compare(*ARMS, seeds=2, results=tmp_path, data_dir=data_dir, **TINY)
    assert again.runs == found.runs
    assert count(tmp_path) == 4
    read = Comparison.from_results(tmp_path)
    assert str(read) == str(found)
    # a run depends only on its arm and seed
    one = running.train_run(
        as_arm(ARMS[1]), 1, running.Setting(1, 1, True, "32-true"), data_dir=data_dir
    )
    for name in ("acc", "loss", "ece", "train_acc"):
        assert one[name] == found.runs[NAMES[1]][1][name]


def test_a_seed_determines_order_and_augmentation_in_all_arms(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cifar_resnet import CIFAR10DataModule

    first_batches: dict[tuple[str, int], torch.Tensor] = {}

    class Stop(Exception):  # noqa: N818
        pass

    def fit(trainer: Any, model: Any, data: CIFAR10DataModule, **_: Any) -> None:
        data.setup("fit")
        first_batches[run] = next(iter(data.train_dataloader()))[0]
        raise Stop

    monkeypatch.setattr("pytorch_lightning.Trainer.fit", fit)
    setting = running.Setting(1, 1, True, "32-true")
    for run in [(arm, seed) for arm in ("sgd", "muon", "best") for seed in (0, 1)]:
        with pytest.raises(Stop):
            running.train_run(as_arm(run[0]), run[1], setting, data_dir=data_dir)
    for seed in (0, 1):
        for arm in ("muon", "best"):
            assert torch.equal(first_batches["sgd", seed], first_batches[arm, seed])
    assert not torch.equal(first_batches["sgd", 0], first_batches["sgd", 1])


def test_the_calibration_error_is_that_of_find_misclassified(data_dir: Path) -> None:
    from cifar_resnet import CIFAR10DataModule, ImageClassifier, find_misclassified

    kept: list[nn.Module] = []

    def network() -> nn.Module:
        kept.append(CustomResNet(width=1))
        return kept[-1]

    arm = Arm("sgd", network=network, data={"subset": 500})
    setting = running.Setting(1, 1, True, "32-true")
    result = running.train_run(arm, 3, setting, data_dir=data_dir)
    data = CIFAR10DataModule(data_dir)
    data.setup()
    found = find_misclassified(ImageClassifier(kept[-1]).eval(), data.val_dataloader())
    assert result["acc"] == pytest.approx(found.accuracy)
    assert result["ece"] == pytest.approx(found.calibration.expected_error, abs=1e-5)


def test_final_uses_the_test_set_and_says_so(data_dir: Path, tmp_path: Path) -> None:
    found = compare(*ARMS, seeds=1, results=tmp_path, data_dir=data_dir, final=True, **TINY)
    for runs in found.runs.values():
        assert runs[0]["held_out"] is False
        assert runs[0]["acc"] * 10_000 == pytest.approx(round(runs[0]["acc"] * 10_000), abs=1e-2)
    assert "Evaluated on the test set; 1 epoch, width 1" in str(found)
    assert "Nothing can be concluded" in str(found)


def test_ctrl_c_keeps_a_checkpoint_from_which_the_run_resumes(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from cifar_resnet import LastCheckpoint

    hook, steps = LastCheckpoint.on_train_batch_start, list[int]()

    def send(self: LastCheckpoint, trainer: Any, *rest: Any) -> None:
        steps.append(trainer.global_step)
        if len(steps) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        hook(self, trainer, *rest)

    monkeypatch.setattr(LastCheckpoint, "on_train_batch_start", send)
    handler = signal.getsignal(signal.SIGINT)
    options = TINY | {"epochs": 4}
    with pytest.raises(KeyboardInterrupt):
        compare(*ARMS, seeds=1, results=tmp_path, data_dir=data_dir, **options)
    assert signal.getsignal(signal.SIGINT) is handler
    assert "the same call or command continues there" in caplog.text
    assert list((tmp_path / "checkpoints").glob("*/last.ckpt"))
    stopped_at = steps[-1]
    steps[:] = [-1, -1]
    found = compare(*ARMS, seeds=1, results=tmp_path, data_dir=data_dir, **options)
    assert steps[2] == stopped_at > 0
    run = found.runs[NAMES[0]][0]
    assert run["resumed"]
    whole = running.train_run(
        as_arm(ARMS[0]), 0, running.Setting(1, 4, True, "32-true"), data_dir=data_dir
    )
    for name in ("acc", "loss", "ece", "train_acc"):
        assert run[name] == whole[name]


def test_a_run_that_was_interrupted_in_its_evaluation_is_complete(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytorch_lightning import Trainer

    arm, setting = as_arm(ARMS[0]), running.Setting(1, 1, True, "32-true")
    options = {"data_dir": data_dir, "checkpoints": tmp_path}
    whole = running.train_run(arm, 0, setting, data_dir=data_dir)
    with monkeypatch.context() as patch:

        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(Trainer, "test", stop)
        with pytest.raises(KeyboardInterrupt):
            running.train_run(arm, 0, setting, **options)
    resumed = running.train_run(arm, 0, setting, **options)
    for name in ("acc", "loss", "ece", "train_acc"):
        assert resumed[name] == whole[name]
    assert resumed["evaluated_images"] == 5000


@pytest.mark.slow
def test_an_interrupted_run_resumes_exactly(data_dir: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, threading\n"
        "from cifar_resnet import compare\n"
        "from cifar_resnet.training.checkpoints import LastCheckpoint\n"
        "hook = LastCheckpoint.on_train_batch_start\n"
        "def send(self, trainer, *args):\n"
        "    if trainer.global_step == 2 and len(sys.argv) > 2:\n"
        "        os.kill(os.getpid(), getattr(signal, sys.argv[2]))\n"
        "    hook(self, trainer, *args)\n"
        "LastCheckpoint.on_train_batch_start = send\n"
        f"compare(*{ARMS!r}, seeds=1, results=sys.argv[1], width=1, epochs=5, "
        "precision='32-true')\n"
    )
    environment = os.environ | {"CIFAR10_DIR": str(data_dir)}

    def start(folder: Path, *names: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", script, str(folder), *names]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=300, check=False
        )

    stopped = start(tmp_path / "one", "SIGINT")
    assert stopped.returncode == -signal.SIGINT, stopped.stderr
    assert "the same call or command continues there" in stopped.stderr
    assert list((tmp_path / "one/checkpoints").glob("*/last.ckpt"))
    stopped = start(tmp_path / "one", "SIGKILL")
    assert stopped.returncode == -signal.SIGKILL
    assert start(tmp_path / "one").returncode == 0
    assert start(tmp_path / "two").returncode == 0
    one, two = (Comparison.from_results(tmp_path / name) for name in ("one", "two"))
    for arm in NAMES:
        for name in ("acc", "loss", "ece", "train_acc"):
            assert one.values(arm, name) == two.values(arm, name)
    assert one.runs[NAMES[0]][0]["resumed"]


@pytest.mark.slow
def test_two_processes_share_the_runs(data_dir: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cifar_resnet", "compare", *ARMS, "--seeds", "3"]
    command += ["--width", "1", "--epochs", "1", "--precision", "32-true"]
    command += ["--results", str(tmp_path), "--data-dir", str(data_dir)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]  # both report all runs
    files = list(tmp_path.glob("runs-*.jsonl"))
    runs = [json.loads(row) for file in files for row in file.read_text().splitlines()]
    assert len(runs) == len({(run["arm"], run["seed"]) for run in runs}) == 6
    assert len(files) == 2


# --- initial weights -----------------------------------------------------------------------------


def test_common_layers_have_equal_weights_in_networks_that_differ() -> None:
    first, second = (initial.build(Arm(name), 4, seed=3) for name in ("muon", "best"))
    own = dict(first.named_parameters())
    convolutions = [name for name, weights in own.items() if weights.dim() == 4]
    assert len(convolutions) == 8
    assert set(convolutions) < {name for name, _ in second.named_parameters()}
    for name, weights in second.named_parameters():
        if name in own:
            assert torch.equal(own[name], weights), name
    convolution = dict(second.named_parameters())["residual3.block1.0.weight"]
    # He's uniform distribution with a = sqrt(5), PyTorch's own
    assert convolution.abs().max() <= 1 / (32 * 9) ** 0.5
    assert convolution.std().item() == pytest.approx(1 / (3 * 32 * 9) ** 0.5, rel=0.03)

    random_ones = {n: p for n, p in second.named_parameters() if p.unique().numel() > 1}
    equal = sum(p.numel() for n, p in random_ones.items() if n in own)
    total = sum(p.numel() for p in random_ones.values())
    assert initial.equal_fraction(first, second) == equal / total < 1
    others = initial.build(Arm("muon"), 4, seed=4)
    assert initial.equal_fraction(first, others) == 0
    assert initial.equal_fraction(first, initial.build(Arm("muon", width=8), 4, seed=3)) == 0


def test_a_network_of_the_caller_is_seeded_and_left_as_it_is() -> None:
    def network() -> nn.Module:
        built = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
        nn.init.constant_(built[1].bias, 0.5)
        return built

    state = torch.get_rng_state()
    arm = Arm("sgd", name="linear", network=network)
    first, second = (initial.build(arm, 16, seed=7) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    expected = network()
    for found in (first, second):
        for one, other in zip(found.parameters(), expected.parameters(), strict=True):
            assert torch.equal(one, other)


# --- the folder ----------------------------------------------------------------------------------


def test_only_what_is_missing_is_trained(fake: FakeTraining, tmp_path: Path) -> None:
    compare(*ARMS, seeds=[0, 2], results=tmp_path, **TINY)
    assert fake.calls == [(name, seed) for seed in (0, 2) for name in NAMES]
    fake.calls.clear()
    found = compare(*ARMS, seeds=3, results=tmp_path, **TINY)
    assert fake.calls == [(name, 1) for name in NAMES]
    assert list(found.values(NAMES[0])) == [0, 1, 2]


def test_the_default_folder_is_named_after_the_comparison(
    fake: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compare("adam", "muon label_smoothing=0.2", seeds=1, width=8, epochs=3, precision="32-true")
    assert [p.name for p in (tmp_path / "comparisons").iterdir()] == [
        "adam-vs-muon-label-smoothing-0.2-width8-epochs3"
    ]


def test_a_half_written_line_does_not_count(
    fake: FakeTraining, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compare(*ARMS, seeds=2, results=tmp_path, **TINY)
    (file,) = tmp_path.glob("runs-*.jsonl")
    file.write_text(file.read_text()[:-100])
    fake.calls.clear()
    compare(*ARMS, seeds=2, results=tmp_path, **TINY)
    assert fake.calls == [(NAMES[1], 1)]
    assert re.search("The last line of .* is half-written", caplog.text)
    assert len(list(tmp_path.glob("runs-*.jsonl"))) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace('"acc": 0.9', '"acc": 0.8', 1), "has been changed. Delete the"),
        (lambda text: text.replace("{", "", 1), r"Line 1 of .* is damaged \(.*Delete the line"),
        (lambda text: "3\n" + text, "Line 1 of .* must be a JSON object, but is 3"),
    ],
)
def test_damaged_lines_are_refused(
    fake: FakeTraining, tmp_path: Path, change: Callable[[str], str], message: str
) -> None:
    compare(*ARMS, seeds=1, results=tmp_path, **TINY)
    (file,) = tmp_path.glob("runs-*.jsonl")
    file.write_text(change(file.read_text()))
    with pytest.raises(ValueError, match=message):
        compare(*ARMS, seeds=1, results=tmp_path, **TINY)


def test_a_lock_that_was_granted_twice_does_no_harm(fake: FakeTraining, tmp_path: Path) -> None:
    found = compare(*ARMS, seeds=1, results=tmp_path, **TINY)
    (file,) = tmp_path.glob("runs-*.jsonl")
    (tmp_path / "runs-other.jsonl").write_text(file.read_text())
    assert compare(*ARMS, seeds=1, results=tmp_path, **TINY).runs == found.runs


def test_runs_of_another_process_are_waited_for(
    fake: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cifar_resnet.comparison.storing import ResultFolder

    monkeypatch.setattr(comparing, "_POLL", 0.05)
    (tmp_path / "locks").mkdir()
    ended = threading.Event()
    with ResultFolder(tmp_path).lock((NAMES[0], 0)) as is_ours:
        assert is_ours
        thread = threading.Thread(
            target=lambda: (compare(*ARMS, seeds=1, results=tmp_path, **TINY), ended.set())
        )
        thread.start()
        assert not ended.wait(0.5)
        assert fake.calls == [(NAMES[1], 0)]
    assert ended.wait(20)  # as if that process had died: its lock is free
    assert fake.calls[1:] == [(NAMES[0], 0)]


def test_a_run_that_another_process_finishes_meanwhile_is_not_repeated(
    fake: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cifar_resnet.comparison.storing import ResultFolder

    compare(*ARMS, seeds=1, results=tmp_path, **TINY)
    (file,) = tmp_path.glob("runs-*.jsonl")
    text = file.read_text()
    file.unlink()
    fake.calls.clear()
    lock = ResultFolder.lock

    def late(self: ResultFolder, run: Any) -> Any:
        (tmp_path / "runs-other.jsonl").write_text(text)  # after this process has looked
        return lock(self, run)

    monkeypatch.setattr(ResultFolder, "lock", late)
    compare(*ARMS, seeds=1, results=tmp_path, **TINY)
    assert fake.calls == []


DIFFERENT: list[tuple[dict[str, Any], str]] = [
    ({"arms": ("sgd", "adam")}, r"its arms are \['sgd tta=none .* instead of \['sgd', 'adam'\]"),
    ({"arms": ARMS[::-1]}, "its arms are"),
    ({"epochs": 2}, "epochs is 1 instead of 2"),
    ({"width": 2}, "width of arm 'sgd tta=none subset=500' is 1 instead of 2"),
    ({"final": True}, "held_out is True instead of False"),
    ({"precision": "bf16-mixed"}, "precision is '32-true' instead of 'bf16-mixed'"),
    (
        {"arms": (Arm("sgd", name=NAMES[0], data={"subset": 400}), ARMS[1])},
        f"subset of arm '{NAMES[0]}' is 500 instead of 400",
    ),
    (
        {"arms": (Arm("adam", name=NAMES[0], data={"subset": 500}), ARMS[1])},
        f"optimizer of arm '{NAMES[0]}' is 'sgd' instead of 'adam'",
    ),
    (
        {"arms": (Arm("sgd", name=NAMES[0], network=lambda: nn.Linear(3, 2)), ARMS[1])},
        "width of arm .* is 1 instead of None, and 1 more. Choose another folder",
    ),
]


@pytest.mark.parametrize(("changes", "message"), DIFFERENT)
def test_a_folder_of_another_comparison_is_refused(
    fake: FakeTraining, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    compare(*ARMS, seeds=1, results=tmp_path, **TINY)
    options = {"arms": ARMS} | TINY | changes
    arms = options.pop("arms")
    with pytest.raises(ValueError, match=f"belongs to another comparison: .*{message}"):
        compare(*arms, seeds=1, results=tmp_path, **options)
    assert len(fake.calls) == 2


def test_other_versions_are_refused(
    fake: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare(*ARMS, seeds=1, results=tmp_path, **TINY)
    versions = comparing.library_versions() | {"torch": "1.0"}
    monkeypatch.setattr(comparing, "library_versions", lambda: versions)
    with pytest.raises(ValueError, match=f"torch is {torch.__version__[:4]}.* instead of 1.0"):
        compare(*ARMS, seeds=1, results=tmp_path, **TINY)


def test_the_precision_of_a_folder_is_kept(fake: FakeTraining, tmp_path: Path) -> None:
    compare(*ARMS, seeds=1, results=tmp_path, **TINY | {"precision": "bf16-mixed"})
    found = compare(*ARMS, seeds=1, results=tmp_path, **TINY | {"precision": None})
    assert found.runs[NAMES[0]][0]["precision"] == "bf16-mixed"


def test_folders_that_are_no_folders_of_comparisons(fake: FakeTraining, tmp_path: Path) -> None:
    (tmp_path / "others.jsonl").touch()
    with pytest.raises(ValueError, match=r"has result files \(others.jsonl\), but no comparison"):
        compare(*ARMS, seeds=1, results=tmp_path, **TINY)
    for text in ("{", "[]"):
        (tmp_path / "comparison.json").write_text(text)
        with pytest.raises(ValueError, match="comparison.json is damaged"):
            compare(*ARMS, seeds=1, results=tmp_path, **TINY)


def test_a_file_system_without_locks_is_explained(
    fake: FakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise NotImplementedError("no locks")

    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    with pytest.raises(OSError, match=r"cannot be locked \(no locks\).*seeds of its own"):
        compare(*ARMS, seeds=1, results=tmp_path, **TINY)


# --- stopping early ------------------------------------------------------------------------------


def test_a_sequential_comparison_stops_as_soon_as_it_is_clear(
    fake: FakeTraining, tmp_path: Path
) -> None:
    found = compare(*ARMS, seeds=50, sequential=True, results=tmp_path, **TINY)
    seeds = len(found.values(NAMES[0]))
    assert 5 <= seeds < 20
    assert found.decided_at(NAMES[1]) == seeds
    assert len(fake.calls) == 2 * seeds
    difference = found.difference(NAMES[1])
    assert difference.low is not None
    assert difference.low > 0
    assert difference.p_value is not None
    assert difference.p_value <= 0.05
    differences = [*found.paired_differences(NAMES[1]).values()]
    expected = sequential.anytime(differences, 0.05)
    assert expected is not None
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))
    assert f"is better than {NAMES[0]}, decided after {seeds} seeds" in str(found)
    assert "valid whenever the runs stop" in str(found)
    fake.calls.clear()
    compare(*ARMS, seeds=50, sequential=True, results=tmp_path, **TINY)
    assert fake.calls == []


def test_the_rule_takes_the_seeds_in_their_order(fake: FakeTraining, tmp_path: Path) -> None:
    compare(*ARMS, seeds=range(5, 20), results=tmp_path, **TINY)  # enough to decide
    fake.calls.clear()
    found = compare(*ARMS, seeds=50, sequential=True, results=tmp_path, **TINY)
    trained = [seed for name, seed in fake.calls if name == NAMES[0]]
    assert trained == list(range(5))
    assert found.decided_at(NAMES[1]) is not None


def test_without_a_decision_the_maximum_is_reported(fake: FakeTraining, tmp_path: Path) -> None:
    found = compare(*ARMS, seeds=4, sequential=True, results=tmp_path, **TINY)
    assert len(fake.calls) == 8
    assert found.decided_at(NAMES[1]) is None
    assert f"Not decided after 4 seeds whether {NAMES[1]} and {NAMES[0]} differ" in str(found)
    assert "unbounded" in str(found)


def test_arms_that_are_decided_are_not_trained_any_more(fake: FakeTraining, tmp_path: Path) -> None:
    equal = "sgd subset=500 tta=none weight_decay=0.001"
    found = compare(*ARMS, equal, seeds=15, sequential=True, results=tmp_path, **TINY)
    clear, other = found.arms[1:]
    assert found.alpha == pytest.approx(0.025)
    assert len(found.values(clear)) == found.decided_at(clear)
    assert len(found.values(clear)) < len(found.values(other)) == 15
    assert found.difference(clear).p_value == pytest.approx(
        2 / max(sequential.e_values([*found.paired_differences(clear).values()]))
    )


# --- results -------------------------------------------------------------------------------------


def test_differences_are_those_of_the_pairs() -> None:
    found = made([0.9, 0.91, 0.92, 0.93], [0.91, 0.915, 0.935])
    difference = found.difference("B")
    assert difference.seeds == 3
    assert difference.mean == pytest.approx((0.01 + 0.005 + 0.015) / 3)
    assert difference.deviation == pytest.approx(0.005)
    assert found.paired_differences("B") == pytest.approx({0: 0.01, 1: 0.005, 2: 0.015})
    records = found.to_records()
    assert [r["metric"] for r in records] == ["acc"]
    assert records[0]["mean"] == difference.mean


def test_several_arms_are_corrected() -> None:
    generator = np.random.default_rng(0)
    base = generator.normal(0.92, 0.001, size=6)
    arms = [
        (base + shift + generator.normal(0, 0.001, size=6)).tolist() for shift in (0, 1e-3, 4e-3)
    ]
    found = made(base.tolist(), *arms)
    alone = [made(base.tolist(), arm).difference("B") for arm in arms]
    together = found.differences()
    from statsmodels.stats.multitest import multipletests

    expected = multipletests([each.p_value for each in alone], method="holm")[1]
    assert [each.p_value for each in together] == pytest.approx(expected)
    wider = [made(base.tolist(), arm, confidence=1 - 0.05 / 3).difference("B") for arm in arms]
    for one, other in zip(together, wider, strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high))
        assert one.detectable == pytest.approx(other.detectable)
    text = str(found)
    assert "p (Holm)" in text
    assert (
        "3 comparisons with A: simultaneous intervals by Bonferroni, p-values corrected by Holm"
        in text
    )


CONCLUSIONS: list[tuple[list[list[float]], dict[str, Any], str]] = [
    ([[0.9, 0.91, 0.92], [0.95, 0.961, 0.97]], {}, r"B is better than A: \+5.03 points"),
    ([[0.9, 0.91, 0.92], [0.85, 0.861, 0.87]], {}, r"B is worse than A: -4.97 points"),
    (
        [[0.9, 0.91, 0.92], [0.905, 0.90, 0.925]], {},
        "No difference between B and A was detected: .* differences below [0-9.]+ points would",
    ),
    ([[0.9], [0.91]], {}, "B and A have one seed in common: .* Nothing can be concluded"),
    ([[0.9, 0.92], [0.91, 0.93]], {}, "B and A differ by the same .* with all 2 seeds"),
    (
        [[0.9, 0.91, 0.92], [0.905, 0.90, 0.925]], {"detect": 0.1},
        r"Detecting a difference of 0.1 points between A and B takes about [0-9,]+ seeds",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "options", "conclusion"), CONCLUSIONS)
def test_conclusions_say_what_the_runs_show(
    values: list[list[float]], options: dict[str, Any], conclusion: str
) -> None:
    found = made(*values, **options)
    assert re.search(conclusion, str(found))
    assert re.search(conclusion, found.to_markdown())
    rows = found.to_markdown().splitlines()
    assert len({row.count("|") for row in rows if row.startswith("|")}) == 1


def test_seeds_that_no_two_arms_share() -> None:
    runs = {
        "A": {s: line(Recipe(), s, 0.9 + s / 1000) for s in (0, 1)},
        "B": {s: line(Recipe(), s, 0.9 + s / 1000) for s in (2, 3)},
    }
    found = Comparison(("A", "B"), runs, "acc")
    difference = found.difference("B")
    assert (difference.seeds, difference.mean, difference.low) == (0, None, None)
    assert difference.unpaired_low is not None
    assert "no seed in common" in str(found)


def test_other_hardware_and_versions_are_noted() -> None:
    runs = {
        name: {
            s: line(
                Recipe(), s, 0.9 + s / 1000, hardware={"device": name, "threads": 1},
                versions={"torch": name},
            )
            for s in (0, 1)
        }
        for name in ("A", "B")
    }  # fmt: skip
    text = str(Comparison(("A", "B"), runs, "acc"))
    assert "different hardware or numbers of threads" in text
    assert "different versions of PyTorch: A, B" in text


# --- result files --------------------------------------------------------------------------------


def test_the_results_of_the_benchmark_are_read() -> None:
    results = ROOT / "benchmarks" / "results"
    found = Comparison.from_results(results / "accuracy.jsonl", "muon", "best")
    assert found.metric == "acc_six"
    difference = found.difference("best")
    rows = [json.loads(row) for row in (results / "accuracy.jsonl").read_text().splitlines()]
    values = {
        name: {row["seed"]: row["acc_six"] for row in rows if row["recipe"]["name"] == name}
        for name in ("muon", "best")
    }
    expected = np.mean([values["best"][s] - values["muon"][s] for s in values["muon"]])
    assert difference.seeds == 5
    assert difference.mean == pytest.approx(expected)
    assert "Evaluated on the test set; 24 epochs, width 16" in str(found)
    # older names, fields that came later, and fields that are gone
    tuning = Comparison.from_results(
        results / "tuning.jsonl", width=16, epochs=24, precision="bf16-mixed"
    )
    assert "sgd tta=six" in tuning.arms
    assert any("ema_decay" in arm for arm in tuning.arms)
    again = Comparison.from_results(
        [results / "tuning.jsonl"], "sgd", "muon", "best", width=16, epochs=24
    )
    assert [len(runs) for runs in again.runs.values()] == [3, 3, 3]


def test_runs_are_found_by_what_was_trained(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    muon = Recipe.preset("muon")
    lines = [
        line(replace(muon, name="another name", tta="none"), 0, 0.92),
        line(replace(muon, label_smoothing=0.2), 0, 0.93),
        {"another": "script"},
    ]
    rows = [json.dumps(each) for each in lines]
    file.write_text("\n".join([*rows, rows[0]]) + "\n")  # twice the same
    found = Comparison.from_results(file, "muon", "muon label_smoothing=0.2")
    assert [len(runs) for runs in found.runs.values()] == [1, 1]
    with pytest.raises(ValueError, match=r"no runs of arm 'sgd'. They have runs of another name"):
        Comparison.from_results(file, "sgd", "muon")


BAD_FILES: list[tuple[list[dict[str, Any]], dict[str, Any], str]] = [
    ([], {}, "The results have no runs to compare"),
    (
        [line(Recipe(), 0, 0.9), line(Recipe(), 1, 0.9, width=32)], {},
        "runs with width of 16, 32. Choose one with width=",
    ),
    (
        [line(Recipe(), 0, 0.9), line(Recipe(), 0, 0.9, held_out=False)], {},
        "runs with held_out of True, False",
    ),
    ([line(Recipe(), 0, 0.9)], {"epochs": 12}, "do not have runs with epochs=12, only with 24"),
    ([line(Recipe(), 0, 0.9), line(Recipe(), 0, 0.8)], {}, "two different runs of arm 'adam'"),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "options", "message"), BAD_FILES)
def test_result_files_that_cannot_be_compared(
    lines: list[dict[str, Any]], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in lines))
    with pytest.raises(ValueError, match=message):
        Comparison.from_results(file, **options)


def test_files_that_do_not_exist(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(FileNotFoundError, match="has no results. Expected a file with"):
            Comparison.from_results(path)


def test_the_pages_show_the_raw_results() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import comparison_tables

    for page in comparison_tables.PAGES:
        assert comparison_tables.updated(page.read_text()) == page.read_text()


# --- bad input -----------------------------------------------------------------------------------

BAD_ARMS: list[tuple[tuple[Any, ...], type[Exception], str]] = [
    ((), ValueError, "at least two arms, but got \\[\\]"),
    (("muon",), ValueError, "at least two arms, but got \\['muon'\\]"),
    (("muon", "muon"), ValueError, "The arms 'muon' do not differ"),
    (("muon", Recipe.preset("muon")), ValueError, "The arms 'muon' do not differ"),
    (("sgd", "sgd tta=six"), ValueError, "Only tta differs, which does not change the training"),
    (("sgd", "sgd conv_learning_rate=1"), ValueError, "Only conv_learning_rate differs, which"),
    (("sgd", "sgd image_scale_until=0.3"), ValueError, "Only image_scale_until differs, which"),
    (("sgd", "sgd image_scale=0.5 image_scale_until=0"), ValueError, "Only image_scale, image_s"),
    (("adam", "adam momentum=0.5 warmup=0.1"), ValueError, "Only momentum, warmup differs"),
    (
        ("onecycle cycle_momentum=False", "onecycle cycle_momentum=False max_momentum=0.9"),
        ValueError,
        "Only max_momentum differs",
    ),
    (("sgd", Arm("sgd", width=16)), ValueError, "'sgd' and 'sgd width=16' do not differ"),
    (
        ("sgd", Arm("sgd", data={"subset": 0.5}, name="sgd")),
        ValueError,
        "Two arms are called 'sgd'",
    ),
    (
        ("sgd", "sgd class_subset=[1,2]"),
        ValueError,
        "evaluated on different images, because class_subset is None and \\[1, 2\\]. Give all arms",
    ),
    (("sgd", "muon folds=[0,5]"), ValueError, "because folds is None and \\[0, 5\\]"),
    (("sgd", 3), TypeError, "An arm must be a Recipe, an Arm, or a string such as .* but got 3"),
    (("sgd", "best of all"), ValueError, "an arm has FIELD=VALUE .* but got 'of'"),
    (("sgd", "sgd seed=1"), ValueError, "an option of the data .* but got 'seed=1'"),
    (("sgd", ""), ValueError, "There is no recipe ''"),
    (("sgd", "sgd width=0"), ValueError, "width must be an integer of at least 1 or None"),
    (
        ("sgd", Arm("sgd", name="other", network=lambda: 3)),  # type: ignore[arg-type, return-value]
        TypeError,
        "network of arm 'other' must build a torch.nn.Module, but returned 3",
    ),
]


@pytest.mark.parametrize(("arms", "error", "message"), BAD_ARMS)
def test_arms_that_cannot_be_compared(
    arms: tuple[Any, ...], error: type[Exception], message: str, fake: FakeTraining, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        compare(*arms, results=tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": 3}, TypeError, "name must be a string or None, but got 3"),
        ({"name": " "}, ValueError, "name must not be empty"),
        ({"network": 3}, TypeError, "network must be a function that builds a network, or None"),
        ({"network": nn.Module, "width": 3}, ValueError, "width=3 has no effect, because network"),
        ({"data": 3}, TypeError, "data must be a dictionary of options, but got 3"),
        ({"data": {"val_split": 3}}, ValueError, "'val_split': the comparison sets it"),
        ({"data": {"nothing": 3}}, ValueError, "'nothing': there is no such option"),
        ({"data": {"label_noise_pairs": nn.Module}}, TypeError, "must be a number, a string, or a"),
    ],
)
def test_wrong_arguments_of_an_arm(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Arm("sgd", **options)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"seeds": 0}, ValueError, "seeds must be an integer of at least 1, or a sequence"),
    ({"seeds": []}, ValueError, "seeds must be"),
    ({"seeds": [1, 1]}, ValueError, "seeds must be"),
    ({"seeds": [-1]}, ValueError, "seeds must be"),
    ({"seeds": [0.5]}, TypeError, "seeds must be"),
    ({"seeds": "01"}, TypeError, "seeds must be"),
    ({"seeds": 2.5}, TypeError, "seeds must be"),
    ({"seeds": [0, 1], "sequential": True}, ValueError, "seeds must be the maximum number of"),
    ({"metric": "accuracy"}, ValueError, "metric must be one of 'acc_six'"),
    ({"metric": "acc_six"}, ValueError, "needs tta='six' in the recipe of every arm, but arm 'sgd"),
    ({"precision": "float"}, ValueError, "precision must be one of '32-true'"),
    ({"detect": 0}, ValueError, "detect must be a finite number greater than 0"),
    ({"confidence": 1}, ValueError, "confidence must be a number between 0 and 1"),
    ({"power": 0}, ValueError, "power must be a number between 0 and 1"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "message"), BAD)
def test_wrong_arguments(
    options: dict[str, Any],
    error: type[Exception],
    message: str,
    fake: FakeTraining,
    tmp_path: Path,
) -> None:
    with pytest.raises(error, match=message):
        compare(*ARMS, results=tmp_path / "folder", **options)
    assert fake.calls == []
    assert not (tmp_path / "folder").exists()


def test_wrong_options_of_a_comparison() -> None:
    with pytest.raises(
        ValueError, match="metric must be one that the runs of all arms report, acc"
    ):
        Comparison(("A", "B"), made([0.9], [0.9]).runs, "loss")
    with pytest.raises(ValueError, match="power must be greater than the error rate of 0.2"):
        made([0.9], [0.9], confidence=0.8, power=0.1)
    found = made([0.9], [0.9])
    with pytest.raises(ValueError, match="arm must be one of 'B', but got 'A'"):
        found.difference("A")
    with pytest.raises(ValueError, match="metric must be one of 'acc', but got 'loss'"):
        found.values("A", "loss")


# --- figure and command --------------------------------------------------------------------------


@pytest.mark.parametrize("sequential_rule", [False, True])
def test_the_figure_shows_intervals_and_seeds(sequential_rule: bool) -> None:
    found = made([0.9, 0.91, 0.92], [0.95, 0.961, 0.97], sequential=sequential_rule)
    figure = show_comparison(found)
    runs, differences = figure.axes
    assert [label.get_text() for label in runs.get_xticklabels()] == ["A", "B"]
    points = [artist.get_xdata() for artist in differences.lines]
    seeds = next(np.asarray(each) for each in points if len(np.asarray(each)) == 3)
    assert seeds.tolist() == pytest.approx([5.0, 5.1, 5.0])
    difference = found.difference("B")
    ends = [np.asarray(each).tolist() for each in points if len(np.asarray(each)) == 2]
    assert difference.low is not None
    assert difference.high is not None
    paired = [100 * difference.low, 100 * difference.high]
    assert (paired in ends) != sequential_rule  # unbounded with three seeds
    figure.canvas.draw()


def test_the_figure_draws_into_a_figure_and_refuses_others() -> None:
    found = made([0.9, 0.91], [0.95, 0.961], [0.95, 0.93])
    own = Figure()
    assert show_comparison(found, "acc", fig=own) is own
    with pytest.raises(TypeError, match=r"comparison must be the result of compare\(...\) or"):
        show_comparison(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="metric must be one of 'acc', but got 'loss'"):
        show_comparison(found, "loss")


def command(*arguments: str) -> int:
    from cifar_resnet.cli.main import main

    return main(["compare", *arguments])


def test_the_command_trains_and_prints(
    fake: FakeTraining, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = [*ARMS, "--results", str(tmp_path / "runs"), "--precision", "32-true"]
    assert command(*common, "--seeds", "3-5", "--width", "2", "--epochs", "4") == 0
    assert [seed for _, seed in fake.calls] == [3, 3, 4, 4, 5, 5]
    assert "4 epochs, width 2" in capsys.readouterr().out
    figure = tmp_path / "figure.png"
    from_file = ["--from", str(tmp_path / "runs"), "--markdown", "--figure", str(figure)]
    assert command(*from_file) == 0
    assert capsys.readouterr().out.startswith("| metric | arm | seeds |")
    assert figure.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["muon", "muon"], "error: The arms 'muon' do not differ"),
        (["muon", "best", "--seeds", "4-0"], "must be a range that goes up, but got 4-0"),
        (["--from", "x.jsonl", "--seeds", "3"], "trains nothing, so leave out --seeds"),
    ],
)
def test_wrong_usage_ends_the_command(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        command(*arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_files_that_cannot_be_read_or_written_end_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--from", str(tmp_path / "none.jsonl")) == 1
    assert "has no results" in capsys.readouterr().err
    results = str(ROOT / "benchmarks/results/accuracy.jsonl")
    assert command("--from", results, "--figure", str(tmp_path / "none" / "a.png")) == 1
    assert "The figure cannot be written" in capsys.readouterr().err
