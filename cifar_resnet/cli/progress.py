"""Measure the stages of a run, and show its progress."""

from __future__ import annotations

import math
import time
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from tqdm import tqdm


class Stages:
    """Seconds of each stage of the process, one after the other.

    Args:
        start: Value of `time.perf_counter()` at which the first stage began.
    """

    def __init__(self, start: float) -> None:
        self.seconds: dict[str, float] = {}
        self.start = self._last = start

    def end(self, name: str) -> None:
        """Record the time since the end of the last stage as that of stage `name`."""
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now

    def total(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.start


class Progress(Callback):
    """Count the seconds and images of a run, and show a progress bar.

    A resumed run continues the counts of its checkpoint.

    Args:
        stages: Receives the stages "set-up" and "first step" (which includes compilation).
        show: If True, show the bar.
    """

    def __init__(self, stages: Stages, *, show: bool) -> None:
        self.stages = stages
        self.show = show
        self.images = 0
        self.seconds = 0.0
        self.val_acc: float | None = None
        self._bar: tqdm[Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "images": self.images, "val_acc": self.val_acc}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stages.end("set-up")
        self._start = time.perf_counter() - self.seconds  # of the part before a resume
        self._bar = tqdm(
            total=int(trainer.estimated_stepping_batches),
            initial=trainer.global_step,
            unit="batch",
            disable=not self.show,
            dynamic_ncols=True,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if "first step" not in self.stages.seconds:
            self.stages.end("first step")
        self.images += len(batch[1]) * trainer.world_size
        self.seconds = time.perf_counter() - self._start
        if self._bar is not None:
            epoch = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"
            self._bar.set_description(epoch, refresh=False)
            self._bar.update()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {
            name: trainer.callback_metrics[name].item()
            for name in ("train_loss_epoch", "train_acc_epoch", "val_acc")
            if name in trainer.callback_metrics
        }
        self.val_acc = metrics.get("val_acc", self.val_acc)
        self.seconds = time.perf_counter() - self._start
        if self._bar is not None:
            self._bar.set_postfix({name: f"{value:.3f}" for name, value in metrics.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.seconds = time.perf_counter() - self._start
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class CompileOnce(Callback):
    """Stop compiling after the first batch of each image size.

    The smaller last batch of an epoch and the test run without compilation: compiling for each of
    them takes longer than it saves.
    """

    def __init__(self) -> None:
        self._scale: float | None = None  # of the last batch

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        import torch

        if pl_module.image_scale != self._scale:
            self._scale = pl_module.image_scale
            torch.compiler.set_stance("default")

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        import torch

        torch.compiler.set_stance("eager_on_recompile")


def duration(seconds: float) -> str:
    """Format a duration: `"12 s"`, `"3.4 min"`, `"1.2 h"`."""
    if seconds < 60:
        return f"{max(1, math.ceil(seconds))} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
