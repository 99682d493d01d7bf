"""Checkpoints from which an interrupted training run resumes exactly."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import threading
import time
import zipfile
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from pytorch_lightning.utilities.exceptions import SIGTERMException

from cifar_resnet import arguments
from cifar_resnet.files import atomic_write, sync
from cifar_resnet.training.run_state import (
    generator_states,
    match_precision,
    restore_generators,
    restore_loops,
)

__all__ = ["AtomicCheckpointIO", "LastCheckpoint"]

_log = logging.getLogger(__name__)

_INTERVALS: arguments.Range = (lambda value: value >= 0, "a number of at least 0")
_STOPPING = (signal.SIGINT, signal.SIGTERM)


class LastCheckpoint(Checkpoint):
    """Save checkpoints from which an interrupted run resumes exactly.

    `last.ckpt` is written at regular intervals, also within an epoch, and at the end of the run;
    its predecessor is kept as `previous.ckpt`. Ctrl-C and SIGTERM end the run after the current
    step, with a checkpoint; a second signal ends it at once. In both cases Lightning raises
    `SystemExit`.

    A checkpoint is written under a temporary name, and renamed once it is complete and everything
    logged before it has reached the loggers. Killing the process at any moment therefore loses only
    the work since the last checkpoint: the resumed run repeats those steps, and ends with the same
    weights, optimizer state and logged values as a run that was never interrupted. This needs a
    loader that can resume within an epoch, such as those of `CIFAR10DataModule`. With one process,
    the states of the random number generators of Python, NumPy and PyTorch are saved as well, for
    example for dropout. Several processes agree every `log_every_n_steps` of the Trainer on whether
    to save or to stop. Under Lightning's `AsyncCheckpointIO`, these checkpoints are still written
    before the training continues.

    Args:
        dirpath: Folder of the checkpoints on a local file system; created if it does not exist.
        every_seconds: Seconds between two checkpoints, at least 0. If 0, a checkpoint is written
            after every step; if infinite, only at the end.

    Attributes:
        stopped_by: The signal that ended the run, or None.

    Raises:
        TypeError: If `dirpath` is not path-like, or `every_seconds` is not a number.
        ValueError: If one of them is out of range.

    Examples:
        The same lines start a run and resume it:

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
        self._is_written = False  # under the temporary name
        self._is_ending = False  # at the next commit
        self._is_last_damaged = False
        self._saved_at = 0.0
        self._step = 0
        self._handlers: dict[signal.Signals, Any] = {}
        self._process = os.getpid()
        self._is_alone = True
        self._generators: dict[str, Any] | None = None  # to restore at the first step

    def newest(self) -> Path | None:
        """Return the newest intact checkpoint, or None if there is none yet.

        This is `last.ckpt`; if it is damaged, a warning is logged and `previous.ckpt` is returned.

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
                    _log.warning("%s. Resuming from %s, its predecessor.", damages[0], path)
                return path
            damages.append(f"{path} is damaged ({damage})")
        if damages:
            those = "it" if len(damages) == 1 else "them"
            raise ValueError(f"{'; '.join(damages)}. Delete {those} to start again.")
        return None

    # --- when to save -----------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if not isinstance(trainer, Trainer):
            raise TypeError(
                "LastCheckpoint is a callback of pytorch_lightning, but the trainer is a "
                f"{type(trainer).__module__.partition('.')[0]}.Trainer. Import everything from "
                "pytorch_lightning: `import pytorch_lightning as pl`, then pl.Trainer(...)."
            )
        match_precision(trainer, pl_module)
        # Last in order, so that what the other callbacks do in a hook is saved in the same hook.
        others = [callback for callback in trainer.callbacks if callback is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [*others, self]  # type: ignore[attr-defined]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self.dirpath.mkdir(parents=True, exist_ok=True)
            self._temporary.unlink(missing_ok=True)  # left by a killed process
        self._is_written = self._is_ending = False
        self._saved_at = time.monotonic()
        self._step = trainer.global_step
        self._is_alone = trainer.world_size == 1
        self.stopped_by = None
        resumed_from = Path(trainer.ckpt_path) if trainer.ckpt_path is not None else None
        self._is_last_damaged = resumed_from == self._previous
        if resumed_from is None:
            self._generators = None  # these belong to a different run
            if trainer.is_global_zero and self._last.exists():
                _log.warning(
                    "%s belongs to a different run and will be overwritten. To resume that run, "
                    "pass ckpt_path=last.newest() to trainer.fit; to keep the file, choose another "
                    "dirpath.",
                    self._last,
                )
        restore_loops(trainer)
        self._install_handlers()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._commit(trainer)
        if self._generators is not None:
            restore_generators(self._generators)
            self._generators = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Accumulated gradients are not part of a checkpoint, so save only after optimizer steps.
        stepped, self._step = trainer.global_step != self._step, trainer.global_step
        # After the last batch, wait for the end of the epoch: resuming from a checkpoint saved
        # there does not repeat the validation.
        if stepped and not trainer.is_last_batch:
            every = 1 if self._is_alone else max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
            if self._step % every == 0 and self._is_due(trainer):
                self._write(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._is_due(trainer):
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._restore_handlers()
        self._write(trainer)
        self._commit(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._restore_handlers()
        if self._is_written and trainer.is_global_zero:  # not everything before it was logged
            self._discard()
        self._is_written = False

    def _is_due(self, trainer: Trainer) -> bool:
        stop = self.stopped_by is not None
        due = time.monotonic() - self._saved_at >= self.every_seconds
        if not self._is_alone:  # all processes save, or none
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
            due = trainer.strategy.reduce_boolean_decision(due, all=False)
            if stop and self.stopped_by is None:
                self.stopped_by = signal.SIGTERM  # received by another process
        self._is_ending = stop
        return stop or due

    # --- saving -----------------------------------------------------------------------------------

    def _write(self, trainer: Trainer) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        writer = trainer.strategy.checkpoint_io
        try:
            if isinstance(writer, AsyncCheckpointIO) and writer.checkpoint_io is not None:
                # The file must be complete when it is renamed.
                trainer.strategy.checkpoint_io = writer.checkpoint_io
            trainer.save_checkpoint(self._temporary, weights_only=False)
        except (OSError, RuntimeError) as error:  # PyTorch's writer raises the latter
            if not self._is_alone:
                raise
            self._warn_unsaved(trainer, error)
        else:
            self._is_written = True
        finally:
            trainer.strategy.checkpoint_io = writer
        self._saved_at = time.monotonic()

    def _commit(self, trainer: Trainer) -> None:
        """Rename a written checkpoint, now that everything before it is logged; stop if due."""
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
                    self._warn_unsaved(trainer, error)
            if not self._is_alone:  # a process that ends would end the others
                trainer.strategy.barrier("LastCheckpoint")
        if self._is_ending:
            self._is_ending = False
            raise KeyboardInterrupt if self.stopped_by == signal.SIGINT else SIGTERMException

    def _discard(self) -> None:
        with contextlib.suppress(OSError):  # the folder itself may be gone
            self._temporary.unlink(missing_ok=True)

    def _warn_unsaved(self, trainer: Trainer, error: Exception) -> None:
        self._discard()
        _log.warning(
            "The checkpoint of step %d could not be written to %s: %s. Training continues; the "
            "next attempt follows in %g seconds.",
            trainer.global_step, self.dirpath, error, self.every_seconds,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"generators": generator_states()} if self._is_alone else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._generators = state_dict.get("generators")

    # --- signals ----------------------------------------------------------------------------------

    def _install_handlers(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._process = os.getpid()
            self._handlers = {s: signal.signal(s, self._on_signal) for s in _STOPPING}

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a worker process of a loader, which is needed until the run has stopped
        if self.stopped_by is not None:
            raise KeyboardInterrupt
        self.stopped_by = signal.Signals(number)
        _log.warning(
            "%s: stopping with a checkpoint after this step. A second signal stops at once.",
            self.stopped_by.name,
        )


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write each checkpoint of a `Trainer` atomically, on every file system.

    The file is written under a temporary name in the same folder, synchronized to the disk, and
    renamed. Lightning's own writer uses the system's temporary folder; moving a file from there to
    a different file system is a copy that can be interrupted.

    Examples:
        >>> from pytorch_lightning import Trainer
        >>> from cifar_resnet import AtomicCheckpointIO
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False)
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to `path`; Lightning's writer handles remote paths.

        Raises:
            OSError: If it cannot be written; a file that existed at `path` is unchanged.
            ValueError: If `path` is a `pathlib.Path` of a remote address.
        """
        if arguments.is_remote(path):
            if isinstance(path, Path):
                raise ValueError(
                    f"{str(path)!r} is not a valid address, because pathlib.Path removes a slash "
                    "of `://`. Pass remote paths as strings."
                )
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
    """Describe what is wrong with a checkpoint file, or return None if it is intact."""
    try:
        with zipfile.ZipFile(path) as file:
            if torch.serialization.get_crc32_options() and (part := file.testzip()):
                return f"the checksum of {part} is wrong"
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        return None  # intact; loading it reports the objects that are not allowed
    except Exception as error:  # a damaged file may fail anywhere
        return str(error).partition(". ")[0] or type(error).__name__
    return None
