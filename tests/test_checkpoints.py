"""LastCheckpoint and AtomicCheckpointIO: stopped and killed runs, damaged and hostile files."""

import errno
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from helpers import Send, Training, same, small, trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.plugins.io import AsyncCheckpointIO
from torch import nn
from torchvision.transforms import v2

from cifar_resnet import (
    AtomicCheckpointIO,
    CIFAR10DataModule,
    CustomResNet,
    ImageClassifier,
    LastCheckpoint,
    LogMisclassified,
    Recipe,
)


class Noisy(nn.Module):
    """A network that draws from the random number generators of Python, NumPy and PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3072, 10)
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            x = x * (1 + 0.1 * random.random() + 0.1 * np.random.random())
        return self.linear(self.drop(x.flatten(1)))


PER_SAMPLE = v2.Compose([v2.RandomHorizontalFlip(), CIFAR10DataModule.default_transforms()])


# --- stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGINT, {}),
        (signal.SIGTERM, {}),
        (signal.SIGINT, {"network": Noisy, "recipe": "adam"}),
        (
            signal.SIGTERM,
            {"network": Noisy, "recipe": "sgd", "data": {"train_transforms": PER_SAMPLE}},
        ),
        (signal.SIGINT, {"val_check_interval": 3, "limit_val_batches": 2}),
        (signal.SIGTERM, {"accumulate_grad_batches": 2}),
        (signal.SIGINT, {"callbacks": lambda: [EMAWeightAveraging(decay=0.9)]}),
    ],
    ids=["ctrl-c", "sigterm", "dropout", "per-sample", "validations", "accumulated", "averaged"],
)
def test_a_stopped_run_resumes_exactly(
    data_dir: Path, tmp_path: Path, number: signal.Signals, options: dict[str, Any]
) -> None:
    options = {"limit_val_batches": 1} | options
    alone = Training(tmp_path / "alone", data_dir, **options)
    alone.run()
    assert len(alone.losses) == 30

    stopped = Training(tmp_path / "stopped", data_dir, **options)
    per_step = options.get("accumulate_grad_batches", 1)
    for at in (1, 9, 17, 29):  # within an epoch, in its last step, before a validation, at the end
        before = signal.getsignal(number)
        with pytest.raises(SystemExit):
            stopped.run(Send(number, at // per_step))
        assert signal.getsignal(number) == before
        assert stopped.last.stopped_by == number
        newest = stopped.last.newest()
        assert newest is not None
        step = torch.load(newest, weights_only=True)["global_step"]
        assert step == (at // per_step + 1)
    stopped.run()
    assert stopped.losses == alone.losses
    assert same(stopped.left(), alone.left())
    assert sorted(path.name for path in stopped.folder.glob("*.ckpt")) == [
        "last.ckpt",
        "previous.ckpt",
    ]
    assert not list(stopped.folder.glob(".*"))


def test_a_signal_during_validation_stops_after_it(data_dir: Path, tmp_path: Path) -> None:
    alone = Training(tmp_path / "alone", data_dir, limit_val_batches=3)
    alone.run()
    stopped = Training(tmp_path / "stopped", data_dir, limit_val_batches=3)
    with pytest.raises(SystemExit):
        stopped.run(Send(signal.SIGTERM, 20, validation=True))
    newest = stopped.last.newest()
    assert newest is not None
    assert torch.load(newest, weights_only=True)["global_step"] == 20
    stopped.run()
    assert stopped.losses == alone.losses
    assert same(stopped.left(), alone.left())


def test_a_second_ctrl_c_stops_at_once(data_dir: Path, tmp_path: Path) -> None:
    stopped = Training(tmp_path, data_dir, limit_val_batches=0)
    with pytest.raises(SystemExit):
        stopped.run(Send(signal.SIGINT, 4, times=2))
    assert len(stopped.losses) == 4
    assert stopped.last.newest() is None
    stopped.run()
    assert len(stopped.losses) == 4 + 30


def test_a_stop_is_announced(
    data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        Training(tmp_path, data_dir, limit_val_batches=0).run(Send(signal.SIGTERM, 2))
    assert "SIGTERM: stopping with a checkpoint after this step" in caplog.text


def test_fast_dev_run_saves_nothing(data_dir: Path, tmp_path: Path) -> None:
    last = LastCheckpoint(tmp_path / "none", every_seconds=0)
    t = trainer(tmp_path, callbacks=[last], enable_checkpointing=True, fast_dev_run=True)
    t.fit(ImageClassifier(CustomResNet(width=1), "sgd"), small(data_dir))
    assert t.global_step == 1
    assert last.newest() is None


def test_a_run_in_a_thread_does_not_change_signal_handlers(data_dir: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    training = Training(tmp_path, data_dir, limit_val_batches=0, max_epochs=1, every_seconds=0.0)
    thread = threading.Thread(target=training.run)
    thread.start()
    thread.join()
    assert len(training.losses) == 10
    assert training.last.newest() is not None
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# --- killed at any moment -------------------------------------------------------------------------


@pytest.mark.parametrize("every_seconds", [0.0, 1000.0])
def test_the_time_between_checkpoints(data_dir: Path, tmp_path: Path, every_seconds: float) -> None:
    """With 0, the checkpoint found during step k is that of the state after step k - 1."""
    seen = []

    class Look(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            newest = training.last.newest()
            seen.append(newest and torch.load(newest, weights_only=True)["global_step"])

    training = Training(tmp_path, data_dir, limit_val_batches=0, every_seconds=every_seconds)
    training.run(Look())
    assert seen == ([None, *range(1, 30)] if every_seconds == 0 else [None] * 30)
    newest = training.last.newest()
    assert newest is not None
    assert torch.load(newest, weights_only=True)["global_step"] == 30


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_checkpoint_due_in_the_last_step_of_an_epoch_waits_for_its_end(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only then is the score of the epoch known."""

    def scores(training: Training) -> list[float]:
        saved = torch.load(training.last.newest(), weights_only=True)["callbacks"]
        (best,) = (state for name, state in saved.items() if name.startswith("ModelCheckpoint"))
        return sorted(score.item() for score in best["best_k_models"].values())

    options = {
        "limit_val_batches": 1,
        "callbacks": lambda: [ModelCheckpoint(monitor="val_loss", save_top_k=-1)],
    }
    alone = Training(tmp_path / "alone", data_dir, **options)
    alone.run()
    clock = [0.0]
    monkeypatch.setattr("cifar_resnet.training.checkpoints.time.monotonic", lambda: clock[0])

    class Fail(pl.Callback):
        def on_train_batch_start(self, t: pl.Trainer, *_: Any) -> None:
            if t.global_step == 9:
                clock[0] += 2000
            if t.global_step == 14:
                raise LookupError

    stopped = Training(tmp_path / "stopped", data_dir, **options)
    with pytest.raises(LookupError):
        stopped.run(Fail())
    stopped.run()
    assert stopped.losses == alone.losses[:14] + alone.losses[10:]
    assert same(stopped.left(), alone.left())
    assert scores(stopped) == scores(alone)
    assert len(scores(alone)) == 3


def test_killed_runs_end_like_uninterrupted_ones(data_dir: Path, tmp_path: Path) -> None:
    """Killed twice in the middle of a step; then the last checkpoint is truncated."""
    alone = Training(tmp_path / "alone", data_dir, limit_val_batches=2)
    alone.run()
    for step in (10, 19):
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from pathlib import Path; from helpers import killed\n"
            f"killed(Path({str(tmp_path / 'killed')!r}), {step})"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.returncode == -signal.SIGKILL, result.stderr
        if step == 19:
            path = tmp_path / "killed" / "last.ckpt"
            assert torch.load(path, weights_only=True)["global_step"] == 19
            path.write_bytes(path.read_bytes()[:-1000])
    training = Training(tmp_path / "killed", data_dir, limit_val_batches=2)
    training.run()
    assert training.losses == alone.losses[18:]
    assert same(training.left(), alone.left())


def test_a_checkpoint_is_committed_only_when_everything_before_it_is_logged(
    data_dir: Path, tmp_path: Path
) -> None:
    """If a logger fails in a step, the checkpoint of this step is discarded."""

    class Failing(CSVLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            if step == 6:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().log_metrics(metrics, step)

    last = LastCheckpoint(tmp_path, every_seconds=0)
    t = trainer(
        tmp_path, callbacks=[last], logger=Failing(tmp_path), log_every_n_steps=1,
        limit_val_batches=0, enable_checkpointing=True,
    )  # fmt: skip
    with pytest.raises(OSError, match="No space left"):
        t.fit(ImageClassifier(CustomResNet(width=1), "sgd"), small(data_dir))
    newest = last.newest()
    assert newest is not None
    assert torch.load(newest, weights_only=True)["global_step"] == 6
    assert not list(tmp_path.glob(".*"))


# --- damaged files --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """Return the content of `last.ckpt` and of `previous.ckpt`."""
    training = Training(
        tmp_path_factory.mktemp("pair"), data_dir, limit_val_batches=0, max_epochs=1,
        every_seconds=0,
    )  # fmt: skip
    training.run()
    return (training.folder / "last.ckpt").read_bytes(), (
        training.folder / "previous.ckpt"
    ).read_bytes()


def damaged(content: bytes, rng: random.Random) -> tuple[str, bytes]:
    kind = rng.choice(("bit", "cut", "zeros", "empty", "garbage", "appended"))
    where = rng.randrange(len(content))
    changed = bytearray(content)
    if kind == "bit":
        changed[where] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[where:]
    elif kind == "zeros":  # what some file systems leave after a power failure
        changed[where:] = bytes(len(changed) - where)
    elif kind == "empty":
        changed.clear()
    elif kind == "garbage":
        size = min(rng.randrange(1, 5000), len(changed) - where)
        changed[where : where + size] = rng.randbytes(size)
    else:
        changed += rng.randbytes(rng.randrange(70_000, 80_000))
    return kind, bytes(changed)


def test_300_damaged_checkpoints(
    pair: tuple[bytes, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each file is either refused or loads exactly what was saved."""
    rng = random.Random(0)
    last = LastCheckpoint(tmp_path)
    path = tmp_path / "last.ckpt"
    path.write_bytes(pair[0])
    (tmp_path / "previous.ckpt").write_bytes(pair[1])
    assert last.newest() == path
    saved = torch.load(path, weights_only=True)
    refused = 0
    for _ in range(300):
        kind, content = damaged(pair[0], rng)
        path.write_bytes(content)
        caplog.clear()
        newest = last.newest()
        if newest == path:
            assert kind in ("bit", "garbage"), kind
            assert same(torch.load(path, weights_only=True), saved)
        else:
            refused += 1
            assert newest == tmp_path / "previous.ckpt"
            assert f"{path} is damaged (" in caplog.text
            assert f"Resuming from {newest}" in caplog.text
    assert refused > 250


def test_a_damaged_checkpoint_never_replaces_an_intact_one(data_dir: Path, tmp_path: Path) -> None:
    first = Training(tmp_path, data_dir, limit_val_batches=0, every_seconds=0)
    with pytest.raises(SystemExit):
        first.run(Send(signal.SIGTERM, 5))
    (tmp_path / "last.ckpt").write_bytes(b"PK")
    steps = []

    class Look(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            saved = torch.load(tmp_path / "previous.ckpt", weights_only=True)
            steps.append(saved["global_step"])

    second = Training(tmp_path, data_dir, limit_val_batches=0, every_seconds=0, max_epochs=1)
    second.run(Look())
    assert steps == [5, 5, 6, 7, 8]


def test_overwriting_a_different_run_is_announced(
    pair: tuple[bytes, bytes], data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "last.ckpt").write_bytes(pair[0])
    t = trainer(
        tmp_path, callbacks=[LastCheckpoint(tmp_path)], enable_checkpointing=True,
        limit_val_batches=0, limit_train_batches=1,
    )  # fmt: skip
    t.fit(ImageClassifier(CustomResNet(width=1), "muon"), small(data_dir))
    assert "last.ckpt belongs to a different run and will be overwritten. To resume" in caplog.text
    caplog.clear()
    last = LastCheckpoint(tmp_path)
    t = trainer(
        tmp_path, callbacks=[last], enable_checkpointing=True, max_epochs=2,
        limit_val_batches=0, limit_train_batches=1,
    )  # fmt: skip
    model = ImageClassifier(CustomResNet(width=1), "muon")
    t.fit(model, small(data_dir), ckpt_path=last.newest(), weights_only=True)
    assert "different run" not in caplog.text


def test_two_damaged_checkpoints_are_an_error(pair: tuple[bytes, bytes], tmp_path: Path) -> None:
    last = LastCheckpoint(tmp_path)
    assert last.newest() is None
    (tmp_path / "last.ckpt").write_bytes(pair[0][:-1])
    (tmp_path / "previous.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged .*previous\.ckpt is damaged .*De"):
        last.newest()
    (tmp_path / "last.ckpt").unlink()
    (tmp_path / "previous.ckpt").write_bytes(pair[1])  # killed between two renamings
    assert last.newest() == tmp_path / "previous.ckpt"


def test_files_without_checksums(pair: tuple[bytes, bytes], tmp_path: Path) -> None:
    """PyTorch writes such files with `set_crc32_options(False)`."""
    (tmp_path / "last.ckpt").write_bytes(pair[0])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(saved, tmp_path / "last.ckpt")
        assert LastCheckpoint(tmp_path).newest() == tmp_path / "last.ckpt"
    finally:
        torch.serialization.set_crc32_options(True)


def test_a_run_survives_a_full_disk(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    save, attempts = torch.save, []

    def full(value: Any, file: Any) -> None:
        attempts.append(value["global_step"])
        save(value, file)
        if 3 <= attempts[-1] < 6:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    training = Training(
        tmp_path, data_dir, limit_val_batches=0, max_epochs=1, every_seconds=0,
        plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    seen = []

    class Look(pl.Callback):
        def on_train_batch_end(self, t: pl.Trainer, *_: Any) -> None:
            newest = training.last.newest()
            seen.append(newest and torch.load(newest, weights_only=True)["global_step"])

    training.run(Look())
    assert seen == [None, 1, 2, 2, 2, 2, 6, 7, 8, 9]
    assert "The checkpoint of step 3 could not be written" in caplog.text
    assert "No space left on device" in caplog.text
    assert not list(tmp_path.glob(".*"))


def test_checkpoint_files_are_written_atomically(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, path = AtomicCheckpointIO(), tmp_path / "new" / "a.ckpt"
    writer.save_checkpoint({"value": torch.arange(3)}, path)
    before = path.read_bytes()
    assert torch.load(path, weights_only=True)["value"].tolist() == [0, 1, 2]

    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append(path.read_bytes()))
    with pytest.raises((AttributeError, pickle.PicklingError)):
        writer.save_checkpoint({"value": torch.arange(9), "bad": lambda: None}, path)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == ["a.ckpt"]
    writer.save_checkpoint({"value": torch.arange(9)}, path)
    assert seen == [before]  # until the new one was on the disk
    assert torch.load(path, weights_only=True)["value"].shape == (9,)
    assert [item.name for item in path.parent.iterdir()] == ["a.ckpt"]


# --- several processes ----------------------------------------------------------------------------


def test_two_processes_stop_together_and_resume(data_dir: Path, tmp_path: Path) -> None:
    """SIGTERM reaches one of them; the resumed run ends like an uninterrupted one."""
    script = tmp_path / "ddp.py"
    script.write_text(
        f"""
import sys, json
sys.path.insert(0, {str(Path(__file__).parent)!r})
import signal
from helpers import *

class Last(Send):
    def _send(self):
        if int(__import__("os").environ.get("LOCAL_RANK", 0)) == 1:
            super()._send()

def run(folder, *callbacks):
    t = Training(
        Path({str(tmp_path)!r}) / folder, Path({str(data_dir)!r}), devices=2, strategy="ddp",
        log_every_n_steps=2, data={{"batch_size": 50}}, limit_val_batches=1,
    )
    try:
        trainer = t.run(*callbacks)
    except SystemExit:
        assert t.last.stopped_by == signal.SIGTERM
        return
    if trainer.global_rank == 0:
        return t

alone = run("alone")
run("stopped", Last(signal.SIGTERM, 12))
step = torch.load(Path({str(tmp_path)!r}) / "stopped" / "last.ckpt")["global_step"]
resumed = run("stopped")
if resumed:
    alone, resumed = alone.left(), resumed.left()
    Path({str(tmp_path)!r}, "result.json").write_text(json.dumps([
        step, same(alone["weights"], resumed["weights"]),
        same(alone["optimizer"], resumed["optimizer"]), same(alone["log"], resumed["log"]),
    ]))
""".replace('"generators": saved', "")
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert (tmp_path / "result.json").is_file(), result.stderr[-3000:]
    assert json.loads((tmp_path / "result.json").read_text()) == [14, True, True, True]


# --- hostile and foreign checkpoints --------------------------------------------------------------


class Evil:
    """Pickled, it writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "ran")


@pytest.fixture
def hostile(pair: tuple[bytes, bytes], tmp_path: Path) -> tuple[Path, Path]:
    """Return a checkpoint with an object that would run code, and the file this would write."""
    path, mark = tmp_path / "last.ckpt", tmp_path / "ran"
    path.write_bytes(pair[0])
    saved = torch.load(path, weights_only=True)
    saved["hyper_parameters"]["more"] = Evil(mark)
    torch.save(saved, path)
    return path, mark


def test_a_checkpoint_runs_no_code(hostile: tuple[Path, Path], data_dir: Path) -> None:
    path, mark = hostile
    network = CustomResNet(width=1)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    model = ImageClassifier(network, "muon")
    assert LastCheckpoint(path.parent).newest() == path
    for load in (
        lambda: ImageClassifier.load_from_checkpoint(path, network=network),
        lambda: trainer(path.parent).fit(model, small(data_dir), ckpt_path=path),
        lambda: trainer(path.parent).test(model, small(data_dir), ckpt_path=path),
        lambda: trainer(path.parent).predict(model, small(data_dir), ckpt_path=path),
    ):
        with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
            load()
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        CustomResNet.from_pretrained(path.rename(path.with_suffix(".safetensors")))
    assert not mark.exists()
    assert same(before, network.state_dict())
    # unsafe loading does run it
    torch.load(path.with_suffix(".safetensors").rename(path), weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize(
    ("network", "difference"),
    [
        (
            lambda: CustomResNet(2),
            r"network\.prep\.0\.weight has shape \(1, 3, 3, 3\) instead of \(2, ",
        ),
        (lambda: CustomResNet(1, 100), r"head\.weight has shape \(10, 8\) instead of \(100, 8\)"),
        (lambda: CustomResNet(1, residual2=True), "residual2.* is missing"),
        (lambda: CustomResNet(1, activation="gelu"), "activation is 'relu' instead of 'gelu'"),
        (lambda: CustomResNet(1, head_scale=0.125), "head_scale is 1.0 instead of 0.125"),
        (Noisy, r"linear\.weight is missing; .*, and \d+ more\. Build the"),
    ],
    ids=["width", "classes", "architecture", "activation", "scale", "foreign"],
)
def test_a_checkpoint_of_another_network_is_refused(
    pair: tuple[bytes, bytes], tmp_path: Path, data_dir: Path,
    network: Callable[[], nn.Module], difference: str,
) -> None:  # fmt: skip
    path = tmp_path / "last.ckpt"
    path.write_bytes(pair[0])
    own = network()
    before = {name: tensor.clone() for name, tensor in own.state_dict().items()}
    message = f"The checkpoint belongs to a different network: .*{difference}"
    with pytest.raises(ValueError, match=f"{message}|num_classes is 10 .* has 100 classes"):
        ImageClassifier.load_from_checkpoint(path, network=own)
    model = ImageClassifier(own, "muon", num_classes=getattr(own, "num_classes", 10))
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path).fit(model, small(data_dir), ckpt_path=path)
    assert same(before, own.state_dict())


def test_a_run_resumes_only_with_its_own_recipe(
    pair: tuple[bytes, bytes], tmp_path: Path, data_dir: Path
) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(pair[0])
    muon = Recipe.preset("muon")
    for recipe, difference in (
        (Recipe.preset("adam"), "optimizer is 'muon' instead of 'adam'"),
        (replace(muon, learning_rate=0.1), "learning_rate is 0.4 instead of 0.1"),
    ):
        model = ImageClassifier(CustomResNet(1), recipe)
        with pytest.raises(
            ValueError, match=f"different recipe: {difference}.*Resume with the rec"
        ):
            trainer(tmp_path).fit(model, small(data_dir), ckpt_path=path)
        # only the weights are loaded, so that the recipe may differ
        loaded = ImageClassifier.load_from_checkpoint(path, network=model.network, recipe=recipe)
        assert loaded.recipe == recipe


# --- other writers and file systems ---------------------------------------------------------------


@pytest.mark.parametrize("inner", [None, AtomicCheckpointIO])
def test_checkpoints_with_an_asynchronous_writer(
    data_dir: Path, tmp_path: Path, inner: Callable[[], AtomicCheckpointIO] | None
) -> None:
    writer = AsyncCheckpointIO(inner() if inner else None)
    last = LastCheckpoint(tmp_path / "last", every_seconds=0)
    seen: list[int] = []

    class Look(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            if newest := last.newest():
                seen.append(torch.load(newest, weights_only=True)["global_step"])

    t = trainer(
        tmp_path, plugins=[writer], callbacks=[last, ModelCheckpoint(tmp_path / "best"), Look()],
        enable_checkpointing=True, limit_val_batches=0, limit_train_batches=4,
    )  # fmt: skip
    t.fit(ImageClassifier(CustomResNet(1), "sgd"), small(data_dir))
    assert seen == [1, 2, 3]
    assert t.strategy.checkpoint_io is writer
    for path in (tmp_path / "last" / "last.ckpt", next((tmp_path / "best").glob("*.ckpt"))):
        assert torch.load(path, weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://bucket", "memory://run"])
def test_last_checkpoint_refuses_remote_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for dirpath in (address, Path(address)):
        with pytest.raises(ValueError, match="dirpath must be a path on a local file system, but"):
            LastCheckpoint(dirpath)
    with pytest.raises(ValueError, match=r"save_dir must be a path on a local .*Use a local path"):
        LogMisclassified(save_dir=address)
    with pytest.raises(ValueError, match=r"is not a valid address.*Pass remote paths as strings"):
        AtomicCheckpointIO().save_checkpoint({}, Path(address))
    assert list(tmp_path.iterdir()) == []


def test_the_atomic_writer_takes_remote_paths(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    best, model = ModelCheckpoint("memory://test_checkpoints"), ImageClassifier(CustomResNet(1))
    t = trainer(
        tmp_path / "root", plugins=[AtomicCheckpointIO()], callbacks=[best],
        enable_checkpointing=True, limit_val_batches=0, limit_train_batches=2,
    )  # fmt: skip
    t.fit(model, small(data_dir))
    assert best.best_model_path.startswith("memory://test_checkpoints/")
    loaded = ImageClassifier.load_from_checkpoint(best.best_model_path, weights_only=True)
    assert same(loaded.state_dict(), model.state_dict())
    assert list(tmp_path.iterdir()) == []


def test_the_trainer_of_another_lightning_is_refused(tmp_path: Path) -> None:
    other = type("Trainer", (), {"__module__": "lightning.pytorch.trainer.trainer"})()
    with pytest.raises(TypeError, match="the trainer is a lightning.Trainer. Import everything fr"):
        LastCheckpoint(tmp_path).setup(other, pl.LightningModule(), "fit")


class AsksForItsLength(pl.LightningModule):
    """A module of somebody else, which reads the number of steps in `configure_optimizers`."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3072, 10)
        self.labels: list[list[int]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.labels.append(batch[1].tolist())
        return nn.functional.cross_entropy(self.linear(batch[0].flatten(1)), batch[1])

    def configure_optimizers(self) -> Any:
        steps = int(self.trainer.estimated_stepping_batches)
        optimizer = torch.optim.Adam(self.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=steps)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


@pytest.mark.parametrize("precision", ["32-true", "64-true"])
def test_a_module_of_somebody_else_resumes_exactly(
    data_dir: Path, tmp_path: Path, precision: Any
) -> None:
    """Lightning creates its loaders before it knows the position, and rounds double precision."""

    def run(last: LastCheckpoint, *callbacks: pl.Callback) -> AsksForItsLength:
        torch.manual_seed(2)
        model = AsksForItsLength()
        t = trainer(
            tmp_path, callbacks=[last, *callbacks], enable_checkpointing=True, max_epochs=2,
            precision=precision,
        )  # fmt: skip
        data = small(data_dir)
        data.setup()
        t.fit(model, data.train_dataloader(), ckpt_path=last.newest(), weights_only=True)
        return model

    alone = run(LastCheckpoint(tmp_path / "alone"))
    last = LastCheckpoint(tmp_path / "stopped")
    with pytest.raises(SystemExit):
        run(last, Send(signal.SIGTERM, 12))
    resumed = run(last)
    assert resumed.labels == alone.labels[13:]
    assert same(resumed.state_dict(), alone.state_dict())
