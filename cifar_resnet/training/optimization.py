"""Train a network with the optimizer and the schedule of a recipe under Lightning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pytorch_lightning import LightningModule
from pytorch_lightning.utilities import rank_zero_info
from torch import Tensor, nn

from cifar_resnet.training.optimizers import (
    RecipeLR,
    Values,
    make_optimizer,
    scale_rates,
    schedule_values,
)
from cifar_resnet.training.recipe import Recipe
from cifar_resnet.training.resizing import scaled_forward
from cifar_resnet.training.run_state import (
    EpochStart,
    enter_training_mode,
    match_precision,
    restore_loops,
    total_steps,
)
from cifar_resnet.training.weight_gradients import small_map_gradients

__all__ = ["RecipeModule"]


class RecipeModule(LightningModule):
    """Optimize `network` with `recipe`; the steps are those of a subclass."""

    network: nn.Module
    recipe: Recipe

    def __init__(self) -> None:
        super().__init__()
        self._total_steps: float = 0
        self._epoch_start: EpochStart = (0, 0)
        self._found_rates: list[list[Any]] = []  # of the groups of each optimizer
        self._searches_rate = False  # with Lightning's `LearningRateFinder`
        self._scales_images = False  # whether the training step does so

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of the recipe. Lightning's `LearningRateFinder` sets it; the
        convolutions of `"muon"` keep theirs.
        """
        return self.recipe.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        ratio = value / self.recipe.learning_rate
        self.recipe = replace(self.recipe, learning_rate=value)
        self.hparams["recipe"] = self.recipe.to_dict()
        if self._trainer is not None:
            schedulers = [config.scheduler for config in self.trainer.lr_scheduler_configs]
            self._found_rates = scale_rates(self.trainer.optimizers, schedulers, ratio)

    def configure_optimizers(self) -> Any:
        # In mixed precision, Lightning cannot clip the gradients of a fused optimizer.
        clips = bool(self.trainer.gradient_clip_val) and "mixed" in str(self.trainer.precision)
        optimizer = make_optimizer(self.network, self.recipe, fused=False if clips else None)
        # Not `make_scheduler`, because the number of steps is not known yet.
        scheduler = RecipeLR(optimizer, self._schedule_values)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "learning_rate"},
        }

    def _schedule_values(self, step: int) -> Values:
        if not self._total_steps:
            return 1.0, None  # before `on_train_start`
        return schedule_values(self.recipe, step, self._total_steps)

    @property
    def image_scale(self) -> float:
        """Factor on the height and width of the images in this training step."""
        early = not self._total_steps or self._searches_rate
        return self.recipe.image_scale_at(0 if early else self.global_step / self._total_steps)

    def training_scores(self, images: Tensor) -> Tensor:
        """Compute the scores (N, classes) of training images (N, C, H, W), scaled by the recipe's
        `image_scale` in the first part of the run.
        """
        self._scales_images = True
        with small_map_gradients(self.network, images.device):
            return scaled_forward(self, self.network, images, self.image_scale)

    def setup(self, stage: str) -> None:
        match_precision(self.trainer, self)
        if stage != "fit":
            return
        self._epoch_start, self._total_steps, self._found_rates = (0, 0), 0, []
        if not (self.training and self.network.training):
            rank_zero_info(
                "The network is in evaluation mode, as after from_pretrained or eval(): fit puts "
                "it into training mode, except for frozen submodules. To keep more of it in "
                "evaluation mode, call network.train() and then eval() of these submodules."
            )
            enter_training_mode(self)

    def on_train_start(self) -> None:
        restore_loops(self.trainer)
        self._searches_rate = any(
            type(callback).__module__.endswith(".tuner.lr_finder")
            for callback in self.trainer.callbacks  # type: ignore[attr-defined]
        )
        # If `configure_optimizers` computed this, the data would be set up before the position
        # within the epoch is restored from a checkpoint (Lightning issue 20550).
        self._total_steps = total_steps(self.trainer, self._epoch_start)
        if self._total_steps == float("inf") and (part := self._part_that_needs_the_length()):
            raise ValueError(
                f"The {part} of recipe {self.recipe.name!r} needs a run of known length: pass "
                "max_epochs or max_steps to the Trainer (max_steps if the training loader has no "
                "length)."
            )
        for optimizer, rates in zip(self.trainer.optimizers, self._found_rates, strict=False):
            for group, rate in zip(optimizer.param_groups, rates, strict=False):
                group["lr"] = rate  # Lightning has set all groups to that of the first one
        self._found_rates = []
        self._refresh_schedule()

    def _part_that_needs_the_length(self) -> str:
        if self.recipe.schedule != "constant":
            return f"{self.recipe.schedule} schedule"
        return f"image_scale={self.recipe.image_scale}" if self.recipe.image_scale != 1 else ""

    def on_after_backward(self) -> None:
        if self.recipe.image_scale != 1 and not self._scales_images:
            raise ValueError(
                f"image_scale={self.recipe.image_scale} has no effect, because the training_step "
                f"of {type(self).__name__} does not use it. Compute the scores there with "
                "self.training_scores(images), or set image_scale=1."
            )

    def on_train_epoch_start(self) -> None:
        self._epoch_start = self.current_epoch, self.global_step
        total = total_steps(self.trainer, self._epoch_start)
        if total != self._total_steps:  # a callback changed the accumulation
            self._total_steps = total
            self._refresh_schedule()

    def _refresh_schedule(self) -> None:
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, RecipeLR):
                config.scheduler.refresh()
