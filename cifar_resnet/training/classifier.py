"""The Lightning module that trains and evaluates an image classifier."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from cifar_resnet import arguments
from cifar_resnet.network import CustomResNet
from cifar_resnet.pretrained import CHECKPOINT_KEY
from cifar_resnet.training.compatibility import check_network, check_recipe, network_config
from cifar_resnet.training.epoch_sums import Batch, EpochSums
from cifar_resnet.training.optimizers import make_optimizer, schedule_factor
from cifar_resnet.training.recipe import Recipe, as_recipe
from cifar_resnet.training.tta import mirror_scores, six_view_scores

__all__ = ["ImageClassifier"]

_EPOCH_SUMS = "cifar_resnet.epoch_sums"  # key in a checkpoint
# Checkpoints store None for a network that they cannot rebuild.
_NOT_IN_CHECKPOINT = (
    " Only a CustomResNet is rebuilt from a checkpoint; for any other network, use "
    "load_from_checkpoint(path, network=...)."
)


class ImageClassifier(LightningModule):
    """Train a network that maps images to class scores, and evaluate it.

    The network may return logits or log-probabilities: cross-entropy is the same for both.

    Logged values: `train_loss_step`, `train_loss_epoch`, `train_acc_step`, `train_acc_epoch`,
    `val_loss`, `val_acc`, `test_loss`, `test_acc`, and, if the recipe has test-time augmentation,
    `test_acc_mirror` and `test_acc_six`. Losses are mean cross-entropies (with the label smoothing
    of the recipe in training only); accuracies are fractions in [0, 1]. The values of single steps
    are logged every `log_every_n_steps` of the Trainer; between these steps the GPU is not
    synchronized.

    Checkpoints store the arguments of a `CustomResNet`, so that
    `ImageClassifier.load_from_checkpoint(path)` rebuilds it. For any other network, subclasses
    included, use `load_from_checkpoint(path, network=...)`.

    Args:
        network: Any module from images (N, C, H, W) to scores (N, classes); or the arguments of a
            `CustomResNet` as a mapping, which is how checkpoints store it.
        recipe: A `Recipe`, or the name of a preset. Defaults to `Recipe()`: Adam at a learning
            rate of 0.001.
        num_classes: Number of classes. If None, `network.num_classes` is used.

    Raises:
        TypeError: If `network` is not a module, `recipe` is neither a recipe nor a name, or
            `num_classes` is not an integer.
        ValueError: If there is no such preset, or the number of classes is unknown, less than 2
            or different from that of the network.
        FloatingPointError: In training, if the loss is not finite; the message names the step
            and the learning rate.

    Examples:
        >>> import torch
        >>> from cifar_resnet import CustomResNet, ImageClassifier
        >>> model = ImageClassifier(CustomResNet(width=4), recipe="sgd")
        >>> model(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> any_network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
        >>> ImageClassifier(any_network, num_classes=10).recipe.optimizer
        'adam'
    """

    def __init__(
        self,
        network: nn.Module | Mapping[str, Any],
        recipe: Recipe | str | Mapping[str, Any] = "adam",
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(network, Mapping):
            network = CustomResNet(**network)
        if not isinstance(network, nn.Module):
            remedy = "" if network is not None else _NOT_IN_CHECKPOINT
            raise TypeError(f"network must be a torch.nn.Module, but got {network!r}.{remedy}")
        self.recipe = as_recipe(recipe)
        self._check_options(network)
        classes = getattr(network, "num_classes", None)
        if num_classes is not None:
            num_classes = arguments.integer("num_classes", num_classes, minimum=2)
            if arguments.is_integer(classes) and classes != num_classes:
                raise ValueError(
                    f"num_classes is {num_classes} (as an argument, or in the checkpoint), but "
                    f"{type(network).__name__} has {classes} classes. Build the network with "
                    f"num_classes={num_classes}, or leave out this argument; if you have replaced "
                    f"the last layer, set network.num_classes = {num_classes}."
                )
            classes = num_classes
        if not arguments.is_integer(classes) or classes < 2:
            raise ValueError(
                f"The number of classes must be an integer of at least 2, but got {classes!r}. "
                f"Pass num_classes, or set this attribute of the {type(network).__name__}."
            )
        # Plain values only, so that checkpoints load with torch's weights_only=True.
        classes = int(classes)
        is_ours = type(getattr(network, "_orig_mod", network)) is CustomResNet
        self.save_hyperparameters(
            {
                "network": network_config(network) if is_ours else None,
                "recipe": self.recipe.to_dict(),
                "num_classes": classes,
            }
        )
        self.network = network
        self._accuracies = nn.ModuleDict(
            {
                name: MulticlassAccuracy(classes, average="micro", validate_args=False)
                for name in ("val_acc", "test_acc", "test_acc_mirror", "test_acc_six")
            }
        )
        self._total_steps: float = 0
        self._epoch_sums = EpochSums()
        self._last_batch: Batch | None = None

    def _check_options(self, network: nn.Module) -> None:
        """Warn if the recipe was made for options that the network does not have."""
        own, defaults = network_config(network), Recipe().network_options()
        missing = {
            name: value
            for name, value in self.recipe.network_options().items()
            if name in own and value != defaults[name] and own[name] != value
        }
        if missing:
            message = ", ".join(f"{name}={value!r}" for name, value in missing.items())
            warnings.warn(
                f"Recipe {self.recipe.name!r} is for a network with {message}. Build it with "
                f"{type(network).__name__}(..., **recipe.network_options()).",
                stacklevel=3,
            )

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
        for config in self.trainer.lr_scheduler_configs if self._trainer is not None else []:
            scheduler: Any = config.scheduler
            scheduler.base_lrs = [
                rate if group.get("orthogonal") else rate * ratio
                for rate, group in zip(
                    scheduler.base_lrs, scheduler.optimizer.param_groups, strict=True
                )
            ]

    def forward(self, images: Tensor) -> Tensor:
        if not hasattr(images, "dim"):  # tensors and the proxies of torch.fx have it
            raise TypeError(
                f"images must be a tensor (N, C, H, W), but got {type(images).__name__}. "
                f"{arguments.PICTURES}"
            )
        scores: Tensor = self.network(images)
        return scores

    # --- steps ----------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        scores = self(images)
        loss = F.cross_entropy(scores, labels, label_smoothing=self.recipe.label_smoothing)
        self._last_batch = self._epoch_sums.add(
            loss,
            scores,
            labels,
            step=self.global_step,
            learning_rate=self.trainer.optimizers[0].param_groups[0]["lr"],
        )
        if not self._needs_synchronization(loss.device):
            self._check_finite()
        # Not in `on_train_epoch_end`: callbacks read the values there, and a checkpoint saved
        # after this batch must not count the epoch again.
        if self.trainer.is_last_batch:
            self._log_epoch()
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (self.global_step % every == 0 or self.trainer.should_stop):
            self._check_finite()
            assert self._last_batch is not None
            self.log("train_loss_step", self._last_batch.loss)
            self.log("train_acc_step", self._last_batch.correct / self._last_batch.size)

    def on_train_epoch_end(self) -> None:
        self._log_epoch()  # if the run ends within an epoch

    def _log_epoch(self) -> None:
        self._check_finite()
        loss, correct, images = self._over_processes(self._epoch_sums.sums()).tolist()
        self._epoch_sums.reset()
        if images:
            epoch: Any = {"on_step": False, "on_epoch": True, "sync_dist": True}
            self.log("train_loss_epoch", loss / images, **epoch)
            self.log("train_acc_epoch", correct / images, prog_bar=True, **epoch)

    def _over_processes(self, sums: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return sums
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        total = self.trainer.strategy.reduce(sums.to(dtype).to(self.device), reduce_op="sum")
        assert isinstance(total, Tensor)
        return total.cpu()

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        scores = self._evaluate("test", batch)
        if self.recipe.tta == "none":
            return
        images, labels = batch
        mirrored = mirror_scores(self, images, scores)
        self._log_accuracy("test_acc_mirror", mirrored, labels)
        if self.recipe.tta == "six":
            self._log_accuracy("test_acc_six", six_view_scores(self, images, mirrored), labels)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the class scores of a batch of images, with or without labels."""
        images = batch[0] if isinstance(batch, tuple | list) else batch
        scores: Tensor = self(images)
        return scores

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        scores: Tensor = self(images).float()
        loss = F.cross_entropy(scores, labels)
        self.log(f"{stage}_loss", loss, batch_size=len(labels), sync_dist=True)
        self._log_accuracy(f"{stage}_acc", scores, labels, prog_bar=True)
        return scores

    def _log_accuracy(
        self, name: str, scores: Tensor, labels: Tensor, *, prog_bar: bool = False
    ) -> None:
        accuracy = self._accuracies[name]
        assert isinstance(accuracy, MulticlassAccuracy)
        accuracy.update(scores, labels)
        self.log(name, accuracy, batch_size=len(labels), prog_bar=prog_bar)

    # --- optimization ---------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        # In mixed precision, Lightning cannot clip the gradients of a fused optimizer.
        clips = bool(self.trainer.gradient_clip_val) and "mixed" in str(self.trainer.precision)
        optimizer = make_optimizer(self.network, self.recipe, fused=False if clips else None)
        # Not `make_scheduler`, because the number of steps is not known yet.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "learning_rate"},
        }

    def _learning_rate_factor(self, step: int) -> float:
        if not self._total_steps:
            return 1.0  # before `on_train_start`
        return schedule_factor(self.recipe, step, self._total_steps)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._epoch_sums.reset()  # an interrupted run may have left some

    def on_train_start(self) -> None:
        # If `configure_optimizers` read this, the data would be set up before the position within
        # the epoch is restored from a checkpoint, which loses it (Lightning issue 20550).
        self._total_steps = self.trainer.estimated_stepping_batches
        if self._total_steps == float("inf") and self.recipe.schedule != "constant":
            raise ValueError(
                f"The {self.recipe.schedule} schedule of recipe {self.recipe.name!r} needs a run "
                "of known length: pass max_epochs or max_steps to the Trainer."
            )
        for config in self.trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if self._learning_rate_factor in getattr(scheduler, "lr_lambdas", []):
                factor = self._learning_rate_factor(scheduler.last_epoch)
                for group, peak in zip(
                    scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True
                ):
                    group["lr"] = peak * factor

    # --- safety ---------------------------------------------------------------------------------

    @staticmethod
    def _needs_synchronization(device: torch.device) -> bool:
        """Return whether reading a loss waits for the work queued before it."""
        return device.type != "cpu"

    def _check_finite(self) -> None:
        """Raise if a loss since the last synchronization is NaN or infinite."""
        losses = self._epoch_sums.synchronize()
        bad = [(loss, batch) for loss, batch in losses if not math.isfinite(loss)]
        if not bad:
            return
        loss, batch = bad[0]
        raise FloatingPointError(
            f"The training loss became {loss} at step {batch.step} "
            f"(epoch {self.current_epoch}, learning rate {batch.learning_rate:.3g}). "
            "Lower the learning rate, lengthen the warm-up, or use a wider precision "
            '(Trainer(precision="32-true")); also check that the images are finite.'
        )

    # --- checkpoints ----------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_finite()
        checkpoint[_EPOCH_SUMS] = self._over_processes(self._epoch_sums.sums()).tolist()
        if config := network_config(self.network):
            checkpoint[CHECKPOINT_KEY] = config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sums of the epoch; refuse a different network, or to resume with a different
        optimizer.
        """
        check_network(checkpoint, self.state_dict(), network_config(self.network))
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            check_recipe(checkpoint["hyper_parameters"]["recipe"], self.recipe)
        # The sums of all processes are continued by the first one.
        if _EPOCH_SUMS in checkpoint and self.global_rank == 0:
            self._epoch_sums.restore(torch.tensor(checkpoint[_EPOCH_SUMS], dtype=torch.float64))
