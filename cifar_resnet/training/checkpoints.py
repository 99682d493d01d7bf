"""Where a training is, on disk, so that it goes on bit for bit after whatever stopped it. It knows
trainers, signals and files; it must not know networks, data or recipes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import random
import signal
import threading
import time
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException

from cifar_resnet import arguments
from cifar_resnet.files import atomic_write, sync

__all__ = ["AtomicCheckpointIO", "LastCheckpoint"]

_log = logging.getLogger(__name__)

_INTERVALS: arguments.Range = (lambda value: value >= 0, "a number of at least 0")
_STOPPING = (signal.SIGINT, signal.SIGTERM)


class LastCheckpoint(Checkpoint):
    """Keeps a checkpoint from which an interrupted training goes on as if nothing had happened.

    `last.ckpt` is written every so many seconds, within an epoch too, and at the end of the
    training; the one before stays as `previous.ckpt`. Ctrl-C and SIGTERM end the training after the
    step that is under way, with a checkpoint; a second one ends it at once. Lightning answers both
    with a `SystemExit`.

    A checkpoint is written under another name, and gets its own when it is whole and when all
    that was logged up to it has reached the loggers. So a kill at any moment costs the work
    since the last checkpoint and nothing else: the resumed training repeats those steps, and ends
    with the weights, the optimizer's state and the logged values of one that was never stopped.
    That needs a loader that can be continued within an epoch, as those of `CIFAR10DataModule` can.
    With one process the states of the random generators of Python, NumPy and PyTorch are kept as
    well (for dropout, say). Several processes agree every `log_every_n_steps` of the Trainer on
    whether to save or to stop.

    Args:
        dirpath: Folder of the checkpoints; made if it does not exist.
        every_seconds: Seconds between two checkpoints, at least 0: 0 for one after every step,
            infinity for one at the end alone.

    Attributes:
        stopped_by: The signal that ended the training; None if none did.

    Raises:
        TypeError: If `dirpath` is no path or `every_seconds` no number.
        ValueError: If one of them is out of its range.

    Examples:
        The same lines start a training and go on with it:

        >>> import tempfile
        >>> from pytorch_lightning import Trainer
        >>> from cifar_resnet import CIFAR10DataModule, CustomResNet, ImageClassifier
        >>> from cifar_resnet import LastCheckpoint
        >>> last = LastCheckpoint(tempfile.mkdtemp(), every_seconds=60)
        >>> trainer = Trainer(
        ...     max_steps=2, callbacks=[last], logger=False,
        ...     enable_progress_bar=False, enable_model_summary=False,
        ... )
        >>> model, data = ImageClassifier(CustomResNet(width=1)), CIFAR10DataModule(val_split=0)
        >>> trainer.fit(model, data, ckpt_path=last.newest(), weights_only=True)
        >>> last.newest().name
        'last.ckpt'
    """

    def __init__(self, dirpath: str | Path, *, every_seconds: float = 30.0) -> None:
        self.dirpath = arguments.path("dirpath", dirpath)
        self.every_seconds = arguments.number("every_seconds", every_seconds, _INTERVALS)
        self.stopped_by: signal.Signals | None = None
        self._last = self.dirpath / "last.ckpt"
        self._previous = self.dirpath / "previous.ckpt"
        self._temporary = self.dirpath / ".last.ckpt.writing"
        self._is_written = False  # under its temporary name
        self._is_ending = False  # at the next commit
        self._is_last_damaged = False
        self._saved_at = 0.0
        self._step = 0
        self._handlers: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        self._is_alone = True
        self._generators: dict[str, Any] | None = None  # to restore at the first step

    def newest(self) -> Path | None:
        """The newest whole checkpoint: `last.ckpt`, or `previous.ckpt` where that is damaged, which
        is logged as a warning. None if there is none yet.

        Raises:
            ValueError: If there are checkpoints, but all of them are damaged.
        """
        damages: list[str] = []
        for path in (self._last, self._previous):
            if not path.exists():
                continue
            damage = _damage(path)
            if damage is None:
                if damages:
                    _log.warning("%s. Going on from %s, the one before.", damages[0], path)
                return path
            damages.append(f"{path} is damaged ({damage})")
        if damages:
            raise ValueError(f"{'; '.join(damages)}. Delete it to start again from the beginning.")
        return None

    # --- when to save -----------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # What the other callbacks learn in a hook belongs to the state that is saved in it.
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.dirpath.mkdir(parents=True, exist_ok=True)
            self._temporary.unlink(missing_ok=True)  # of a training that was killed
        self._is_written = self._is_ending = False
        self._saved_at = time.monotonic()
        self._step = trainer.global_step
        self._is_alone = trainer.world_size == 1
        self.stopped_by = None
        goes_on_from = Path(trainer.ckpt_path) if trainer.ckpt_path is not None else None
        self._is_last_damaged = goes_on_from == self._previous
        if goes_on_from is None:
            self._generators = None  # not of this training
            if trainer.is_global_zero and self._last.exists():
                _log.warning(
                    "%s is of another training, and will be replaced. To go on with that one, pass "
                    "ckpt_path=last.newest() to trainer.fit; to keep it, choose another dirpath.",
                    self._last,
                )
        self._listen()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._commit(trainer)
        if self._generators is not None:
            _restore(self._generators)
            self._generators = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Gradients that wait for more batches are in no checkpoint.
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        # The end of the epoch follows, with a checkpoint that need not repeat a validation.
        if stepped and not trainer.is_last_batch:
            every = 1 if self._is_alone else max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
            if self._step % every == 0 and self._is_due(trainer):
                self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_due(trainer):
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen_no_more()
        self._write(trainer)
        self._commit(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._listen_no_more()
        if self._is_written and trainer.is_global_zero:  # what belongs to it was not logged
            self._discard()
        self._is_written = False

    def _is_due(self, trainer: Trainer) -> bool:
        stop = self.stopped_by is not None
        due = time.monotonic() - self._saved_at >= self.every_seconds
        if not self._is_alone:  # all processes save, or none does
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
            if stop and self.stopped_by is None:
                self.stopped_by = signal.SIGTERM  # it reached another process
        self._is_ending = stop
        return stop or due

    # --- saving -----------------------------------------------------------------------------------

    def _write(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        try:
            trainer.save_checkpoint(self._temporary, weights_only=False)
        except (OSError, RuntimeError) as error:  # the latter from PyTorch's writer
            if not self._is_alone:
                raise
            self._say_unsaved(trainer, error)
        else:
            self._is_written = True
        self._saved_at = time.monotonic()

    def _commit(self, trainer: Trainer) -> None:
        """Give a written checkpoint its name, now that what belongs to it is logged."""
        if self._is_written:
            self._is_written = False
            if trainer.is_global_zero:
                for logger in trainer.loggers:
                    logger.save()
                try:
                    sync(self._temporary)
                    if self._last.exists() and not self._is_last_damaged:
                        self._last.replace(self._previous)
                    self._temporary.replace(self._last)
                    self._is_last_damaged = False
                    sync(self.dirpath)
                except OSError as error:
                    self._say_unsaved(trainer, error)
            if not self._is_alone:  # a process that ends takes the others with it
                trainer.strategy.barrier("LastCheckpoint")
        if self._is_ending:
            self._is_ending = False
            raise KeyboardInterrupt if self.stopped_by == signal.SIGINT else SIGTERMException

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # the folder itself may be gone
            self._temporary.unlink(missing_ok=True)

    def _say_unsaved(self, trainer: Trainer, error: Exception) -> None:
        self._discard()
        _log.warning(
            "The checkpoint of step %d could not be written to %s: %s. The training goes on; the "
            "next attempt follows in %g seconds.",
            trainer.global_step, self.dirpath, error, self.every_seconds,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"generators": _states_of_generators()} if self._is_alone else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._generators = state_dict.get("generators")

    # --- signals ----------------------------------------------------------------------------------

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            self._handlers = {s: signal.signal(s, self._on_signal) for s in _STOPPING}

    def _listen_no_more(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loader's worker, which works on until the training has stopped
        if self.stopped_by is not None:
            raise KeyboardInterrupt
        self.stopped_by = signal.Signals(number)
        _log.warning(
            "%s: stopping with a checkpoint after this step. Once more stops at once.",
            self.stopped_by.name,
        )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes each checkpoint of a `Trainer` under a temporary name in the same folder, waits for
    the disk, and renames it: a file of the final name is always whole, on every file system.

    Lightning's own writer goes through the system's temporary folder, from where a move to another
    file system is a copy that can be interrupted.

    Examples:
        >>> from pytorch_lightning import Trainer
        >>> from cifar_resnet import AtomicCheckpointIO
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False)
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to `path`; paths of other than local files go to Lightning's writer.

        Raises:
            OSError: If it cannot be written; what was at `path` stays as it was.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())


# --- files ----------------------------------------------------------------------------------------


def _damage(path: Path) -> str | None:
    """What is wrong with a checkpoint file; None if it is whole."""
    try:
        with zipfile.ZipFile(path) as file:
            if torch.serialization.get_crc32_options() and (part := file.testzip()):
                return f"the checksum of {part} is wrong"
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        return None  # whole; whoever loads it is told what is wrong
    except Exception as error:  # a damaged file may fail anywhere
        return str(error).partition(". ")[0] or type(error).__name__
    return None


# --- generators -----------------------------------------------------------------------------------


def _states_of_generators() -> dict[str, Any]:
    """In plain values, which torch loads with `weights_only=True`."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def _restore(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
