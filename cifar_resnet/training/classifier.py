"""The Lightning module that trains and evaluates an image classifier."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from cifar_resnet import arguments
from cifar_resnet.network import CustomResNet
from cifar_resnet.pretrained import CHECKPOINT_KEY
from cifar_resnet.training.batches import ProbabilityWarning, loss_targets, split_batch
from cifar_resnet.training.compatibility import (
    check_network,
    check_recipe,
    network_config,
    plain_values,
    rename_compiled,
)
from cifar_resnet.training.epoch_sums import Batch, EpochSums
from cifar_resnet.training.losses import Loss, TrainingLoss
from cifar_resnet.training.optimization import RecipeModule
from cifar_resnet.training.recipe import Recipe, as_recipe
from cifar_resnet.training.tta import mirror_scores, six_view_scores

__all__ = ["ImageClassifier"]

# Keys in a checkpoint
_EPOCH_SUMS = "cifar_resnet.epoch_sums"
_EPOCH_START = "cifar_resnet.epoch_start"
_RECIPE = "cifar_resnet.recipe"
# Checkpoints store None for a network that they cannot rebuild.
_NOT_IN_CHECKPOINT = (
    " Only a CustomResNet is rebuilt from a checkpoint; for any other network, use "
    "load_from_checkpoint(path, network=...)."
)


class ImageClassifier(RecipeModule):
    """Train a network that maps images to class scores, and evaluate it.

    The network may return logits or log-probabilities: cross-entropy is the same for both. Labels
    are class indices (N,), or class probabilities or one-hot labels (N, classes), whose largest
    value counts as correct. A batch is (images, labels), or a mapping with one tensor of images
    (N, C, H, W) and one tensor called label, labels, target, targets or y.

    A network in evaluation mode, such as one from `CustomResNet.from_pretrained`, is put into
    training mode when `Trainer.fit` starts, except for submodules whose parameters are all frozen
    (`requires_grad_(False)`). To keep other parts in evaluation mode, call `network.train()` and
    then `eval()` of these parts: a network in training mode is left as it is.

    Logged values: `train_loss_step`, `train_loss_epoch`, `train_acc_step`, `train_acc_epoch`,
    `val_loss`, `val_acc`, `test_loss`, `test_acc`, and, if the recipe has test-time augmentation,
    `test_acc_mirror` and `test_acc_six`. Losses are mean cross-entropies (with the label smoothing
    of the recipe and `class_weights` in training only), or means of `loss`; accuracies are
    fractions in [0, 1]. The values of single steps are logged every `log_every_n_steps` of the
    Trainer; between these steps the GPU is not synchronized.

    Checkpoints store the arguments of a `CustomResNet`, so that
    `ImageClassifier.load_from_checkpoint(path)` rebuilds it. For any other network, subclasses
    included, use `load_from_checkpoint(path, network=...)`.

    Args:
        network: Any module from images (N, C, H, W) to scores (N, classes); or the arguments of a
            `CustomResNet` as a mapping, which is how checkpoints store it.
        recipe: A `Recipe`, or the name of a preset. Defaults to `Recipe()`: Adam at a learning
            rate of 0.001.
        num_classes: Number of classes. If None, `network.num_classes` is used.
        class_weights: Weight of each class in the training loss, as in
            `torch.nn.CrossEntropyLoss(weight=...)`: with class indices, the loss of a batch is
            divided by the sum of the weights of its labels. With label smoothing, the weights also
            apply to the classes that smoothing adds. Stored in checkpoints.
        loss: Function of scores (N, classes) and labels that returns the mean loss of the batch, in
            place of cross-entropy in training, validation and test. The recipe must not have label
            smoothing. Checkpoints store its name; pass it to `load_from_checkpoint(path, loss=...)`
            again.

    Raises:
        TypeError: If an argument has the wrong type, or a batch or the scores do.
        ValueError: If there is no such preset, the number of classes is unknown, less than 2
            or different from that of the network, the weights are not one finite number of at least
            0 for each class, or a loss is combined with class weights or label smoothing. In
            training, if labels or scores do not have the expected shape, or a label is not in
            [0, num_classes) (on a CPU).
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
        network: nn.Module | Mapping[str, Any] | None = None,
        recipe: Recipe | str | Mapping[str, Any] = "adam",
        *,
        num_classes: int | None = None,
        class_weights: Sequence[float] | Tensor | None = None,
        loss: Loss | None = None,
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
        self.network = network
        self._num_classes = classes = int(classes)
        self._loss = TrainingLoss(classes, class_weights, loss, self.recipe.label_smoothing)
        self.save_hyperparameters(self._arguments())
        self._accuracies = nn.ModuleDict(
            {
                name: MulticlassAccuracy(classes, average="micro", validate_args=False)
                for name in ("val_acc", "test_acc", "test_acc_mirror", "test_acc_six")
            }
        )
        self._epoch_sums = EpochSums()
        self._last_batch: Batch | None = None
        # Scores (B, classes) and labels of the last training batch, until its end
        self.step_scores: tuple[Tensor, Tensor] | None = None
        self._loads_checkpoint_of: Mapping[str, Any] | None = None
        self._probabilities = ProbabilityWarning(enabled=loss is None)

    def _arguments(self) -> dict[str, Any]:
        """Return the arguments as plain values, which torch loads with `weights_only=True`."""
        own = {"network": self.network, "recipe": self.recipe, "num_classes": self._num_classes}
        return plain_values(own) | self._loss.hyperparameters()

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

    def forward(self, images: Tensor) -> Tensor:
        if not hasattr(images, "dim"):  # tensors and the proxies of torch.fx have it
            raise TypeError(
                f"images must be a tensor (N, C, H, W), but got {type(images).__name__}. "
                f"{arguments.PICTURES}"
            )
        scores: Tensor = self.network(images)
        return scores

    # --- steps ----------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self._epoch_sums.reset()  # an interrupted run may have left some
            self._last_batch = None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, labels = split_batch(batch)
        scores = self.training_scores(images)
        targets, classes = loss_targets(labels, scores, self._num_classes)
        loss: Tensor = self._loss(scores, targets, self.recipe.label_smoothing)
        self._probabilities.watch(scores)
        self.step_scores = scores.detach(), labels
        self._last_batch = self._epoch_sums.add(
            loss,
            scores,
            classes,
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
        # None if a subclass has its own `training_step`
        last, self._last_batch = self._last_batch, None
        self.step_scores = None
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if last and every and (self.global_step % every == 0 or self.trainer.should_stop):
            self._check_finite()
            self.log("train_loss_step", last.loss, prog_bar=True)
            self.log("train_acc_step", last.correct / last.size)

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

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("val", *split_batch(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        images, labels = split_batch(batch)
        scores, labels = self._evaluate("test", images, labels)
        if self.recipe.tta == "none":
            return
        mirrored = mirror_scores(self, images, scores)
        self._log_accuracy("test_acc_mirror", mirrored, labels)
        if self.recipe.tta == "six":
            self._log_accuracy("test_acc_six", six_view_scores(self, images, mirrored), labels)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the class scores of a batch of images, with or without labels."""
        if isinstance(batch, Mapping):
            batch = split_batch(batch)
        images = batch[0] if isinstance(batch, tuple | list) else batch
        scores: Tensor = self(images)
        return scores

    def _evaluate(self, stage: str, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Log loss and accuracy, and return the scores and the labels as class indices."""
        scores = self(images)
        targets, classes = loss_targets(labels, scores, self._num_classes)
        scores = scores.float()
        self._probabilities.watch(scores)
        loss = self._loss.evaluate(scores, targets)
        self.log(f"{stage}_loss", loss, batch_size=len(labels), sync_dist=True)
        self._log_accuracy(f"{stage}_acc", scores, classes, prog_bar=True)
        return scores, classes

    def _log_accuracy(
        self, name: str, scores: Tensor, labels: Tensor, *, prog_bar: bool = False
    ) -> None:
        accuracy = self._accuracies[name]
        assert isinstance(accuracy, MulticlassAccuracy)
        accuracy.update(scores, labels)
        self.log(name, accuracy, batch_size=len(labels), prog_bar=prog_bar)

    # --- safety ---------------------------------------------------------------------------------

    @staticmethod
    def _needs_synchronization(device: torch.device) -> bool:
        """Return whether reading a loss waits for the work queued before it."""
        return device.type != "cpu"

    def on_validation_epoch_end(self) -> None:
        self._probabilities.warn()

    def on_test_epoch_end(self) -> None:
        self._probabilities.warn()

    def _check_finite(self) -> None:
        """Raise if a loss since the last synchronization is NaN or infinite."""
        self._probabilities.warn()
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
        checkpoint[_EPOCH_START] = list(self._epoch_start)
        checkpoint[_RECIPE] = self.recipe.to_dict()
        # A subclass that calls `save_hyperparameters` may have replaced or left out our values.
        key = self.CHECKPOINT_HYPER_PARAMS_KEY
        values = self._arguments() | plain_values(checkpoint.get(key, {}))
        if "network" not in inspect.signature(type(self).__init__).parameters:
            del values["network"]  # the subclass builds it
        checkpoint[key] = values
        if config := network_config(self.network):
            checkpoint[CHECKPOINT_KEY] = config

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the sums of the epoch; refuse to resume with a different optimizer."""
        rename_compiled(checkpoint["state_dict"], self.state_dict())
        self._loads_checkpoint_of = checkpoint.get(CHECKPOINT_KEY, {})
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            hyperparameters = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
            check_recipe(checkpoint.get(_RECIPE, hyperparameters.get("recipe", {})), self.recipe)
        self._epoch_start = tuple(checkpoint.get(_EPOCH_START, (0, 0)))
        # The sums of all processes are continued by the first one.
        if _EPOCH_SUMS in checkpoint and self.global_rank == 0:
            self._epoch_sums.restore(torch.tensor(checkpoint[_EPOCH_SUMS], dtype=torch.float64))

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Load weights as PyTorch does. Those of a checkpoint must be of the same network, unless
        `strict` is False.
        """
        config, self._loads_checkpoint_of = self._loads_checkpoint_of, None
        strict = kwargs.get("strict", args[0] if args else True)
        if config is not None and strict:
            check_network(state_dict, config, self.state_dict(), network_config(self.network))
        return super().load_state_dict(state_dict, *args, **kwargs)
