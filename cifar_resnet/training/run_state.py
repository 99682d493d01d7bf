"""The state of a Lightning run that a resumed run needs, and the number of its steps."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from pytorch_lightning.plugins.precision import DoublePrecision
from torch import nn

__all__ = [
    "EpochStart",
    "enter_training_mode",
    "generator_states",
    "match_precision",
    "restore_generators",
    "restore_loops",
    "total_steps",
]

EpochStart = tuple[int, int]  # epoch, optimizer steps before it


def total_steps(trainer: Trainer, start: EpochStart = (0, 0)) -> float:
    """Compute the number of optimizer steps of the whole run, or infinity if it is not known.

    `trainer.estimated_stepping_batches` does not know accumulation that changes between epochs,
    and is negative if the loader has no length.

    Args:
        trainer: A trainer whose training loader is set up.
        start: An epoch of the run and the optimizer steps before it. The epochs after it accumulate
            as the trainer does now, or as its `GradientAccumulationScheduler` says.
    """
    limit = math.inf if trainer.max_steps == -1 else trainer.max_steps
    epochs, batches = trainer.max_epochs, trainer.num_training_batches
    if epochs is None or epochs == -1 or math.isinf(batches):
        return limit
    epoch, steps = start
    factors = [trainer.accumulate_grad_batches] * max(epochs - epoch, 0)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            factors = [callback.get_accumulate_grad_batches(e) for e in range(epoch, epochs)]
    return min(limit, max(1, steps + sum(math.ceil(batches / factor) for factor in factors)))


def restore_loops(trainer: Trainer) -> None:
    """Restore what Lightning leaves out when it resumes a run within an epoch.

    - The positions of the training loaders, if `configure_optimizers` or an earlier hook read
      `trainer.estimated_stepping_batches`: Lightning then creates the loaders before the positions
      are known, and does not load them later (Lightning issue 20550).
    - The accumulation of a `GradientAccumulationScheduler`, which sets it only at the start of an
      epoch.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            factor = callback.get_accumulate_grad_batches(trainer.current_epoch)
            trainer.accumulate_grad_batches = factor
    loop = trainer.fit_loop
    if getattr(loop, "_combined_loader_states_to_load", None) and loop._data_fetcher is not None:
        loop._load_combined_loader_states()
        iter(loop._data_fetcher)  # create the iterators again, from the restored positions


def match_precision(trainer: Trainer, module: LightningModule) -> None:
    """Convert the weights to double precision if the trainer will do so.

    Lightning restores a checkpoint before that, which would round its weights to float32.
    """
    if isinstance(trainer.precision_plugin, DoublePrecision):
        module.double()


def enter_training_mode(module: nn.Module) -> None:
    """Put a module and its submodules into training mode, except those that are entirely frozen."""
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        return
    module.training = True
    for child in module.children():
        enter_training_mode(child)


def generator_states() -> dict[str, Any]:
    """Return the states of the random number generators as plain values, which torch loads with
    `weights_only=True`.
    """
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Restore what `generator_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
