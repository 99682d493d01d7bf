"""Training and evaluation of any image classifier under Lightning. It knows recipes, losses and
metrics; it must not know CIFAR-10, files or which network it trains.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from cifar_resnet.recipe import Recipe

__all__ = ["ImageClassifier"]


class ImageClassifier(LightningModule):
    """Trains a network that maps images to class scores, and measures it.

    The network may return logits or log-probabilities: cross-entropy is the same for both.

    Logged, with TensorBoard in mind: `train_loss_step`, `train_loss_epoch`, `train_acc_step`,
    `train_acc_epoch`, `val_loss`, `val_acc`, `test_loss`, `test_acc`, and `test_acc_mirror` where
    the recipe asks for the mirror view. Losses are mean cross-entropies (with the recipe's label
    smoothing in training only); accuracies are shares in [0, 1].

    Args:
        network: Any module from images (N, C, H, W) to scores (N, classes).
        recipe: A `Recipe`, or the name of a preset. The default is the
            specified training: Adam at a learning rate of 0.001.
        num_classes: Number of classes; None to take the network's own `num_classes`.

    Raises:
        TypeError: If `network` is no module or `recipe` is neither a recipe nor a name.
        ValueError: If there is no such preset, or the number of classes is unknown.
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
        network: nn.Module,
        recipe: Recipe | str | Mapping[str, Any] = "adam",
        *,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(f"network must be a torch.nn.Module, but got {network!r}.")
        self.recipe = _recipe(recipe)
        classes = num_classes if num_classes is not None else getattr(network, "num_classes", None)
        if not isinstance(classes, int) or classes < 2:
            raise ValueError(
                f"The number of classes must be an integer of at least 2, but got {classes!r}. "
                f"Pass num_classes: {type(network).__name__} does not tell it."
            )
        # Plain values only, so that checkpoints load with torch's weights_only=True.
        self.save_hyperparameters({"recipe": self.recipe.to_dict(), "num_classes": classes})
        self.network = network
        self._train_acc = _accuracy(classes)
        self._val_acc = _accuracy(classes)
        self._test_acc = _accuracy(classes)
        self._test_acc_mirror = _accuracy(classes)
        self._total_steps: float = 0
        # training losses not yet known to be finite, with their step and learning rate
        self._unchecked: list[tuple[Tensor, int, float]] = []

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.network(images)
        return scores

    # --- steps ----------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        scores = self(images)
        loss = F.cross_entropy(scores, labels, label_smoothing=self.recipe.label_smoothing)
        self._check_finite(loss.detach())
        self._train_acc(scores.detach(), labels)
        size = len(labels)
        self.log("train_loss_step", loss, on_step=True, on_epoch=False, batch_size=size)
        self.log(
            "train_loss_epoch", loss, on_step=False, on_epoch=True, batch_size=size, sync_dist=True
        )
        self.log(
            "train_acc",
            self._train_acc,
            on_step=True,
            on_epoch=True,
            prog_bar=True,
            batch_size=size,
        )
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        scores = self._evaluate("test", batch)
        if self.recipe.test_views == "mirror":
            images, labels = batch
            views = (scores + self(images.flip(-1)).float()) / 2
            self._test_acc_mirror(views, labels)
            self.log("test_acc_mirror", self._test_acc_mirror, batch_size=len(labels))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class scores of a batch of images, or of the images of an (images, labels) batch."""
        images = batch[0] if isinstance(batch, tuple | list) else batch
        scores: Tensor = self(images)
        return scores

    def _evaluate(self, stage: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        scores: Tensor = self(images).float()
        accuracy = self._val_acc if stage == "val" else self._test_acc
        accuracy(scores, labels)
        size = len(labels)
        self.log(f"{stage}_loss", F.cross_entropy(scores, labels), batch_size=size, sync_dist=True)
        self.log(f"{stage}_acc", accuracy, prog_bar=True, batch_size=size)
        return scores

    # --- optimisation ---------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        recipe = self.recipe
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("The network has no trainable parameters: all are frozen.")
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "adam":
            optimizer = torch.optim.Adam(
                parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay
            )
        else:
            optimizer = torch.optim.SGD(
                parameters,
                lr=recipe.learning_rate,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
                nesterov=recipe.momentum > 0,
            )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "learning_rate"},
        }

    def _learning_rate_factor(self, step: int) -> float:
        if not self._total_steps:
            return 1.0  # before `on_train_start`, where the length of the run becomes known
        # The middle of the step, so that neither the first nor the last one is wasted at 0.
        return self.recipe.learning_rate_factor((step + 0.5) / self._total_steps)

    def on_train_start(self) -> None:
        self._unchecked = []  # of a run that was interrupted
        # Reading this in `configure_optimizers` would set up the data before a checkpoint's
        # position within the epoch is restored, and lose it (Lightning issue 20550).
        self._total_steps = self.trainer.estimated_stepping_batches
        if self._total_steps == float("inf") and self.recipe.schedule != "constant":
            raise ValueError(
                f"The {self.recipe.schedule} schedule of recipe {self.recipe.name!r} needs a run "
                "that ends: give the Trainer max_epochs or max_steps."
            )
        for config in self.trainer.lr_scheduler_configs:
            scheduler = config.scheduler
            if isinstance(scheduler, torch.optim.lr_scheduler.LambdaLR):
                factor = self._learning_rate_factor(scheduler.last_epoch)
                for group, peak in zip(
                    scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True
                ):
                    group["lr"] = peak * factor

    # --- safety ---------------------------------------------------------------------------------

    def _check_finite(self, loss: Tensor) -> None:
        """Stop at a loss that is NaN or infinite, without waiting for a GPU at every step."""
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        self._unchecked.append((loss, self.global_step, optimizer.param_groups[0]["lr"]))
        if len(self._unchecked) >= self._check_every(loss.device):
            self._check_collected()

    def _check_every(self, device: torch.device) -> int:
        """Steps between two looks at the losses; on a GPU each look waits for its work."""
        return 1 if device.type == "cpu" else max(1, getattr(self.trainer, "log_every_n_steps", 1))

    def on_train_epoch_end(self) -> None:
        self._check_collected()

    def _check_collected(self) -> None:
        if not self._unchecked:
            return
        losses = torch.stack([loss for loss, _, _ in self._unchecked])
        finite = torch.isfinite(losses).tolist()
        collected, self._unchecked = self._unchecked, []
        if all(finite):
            return
        loss, step, rate = collected[finite.index(False)]
        raise FloatingPointError(
            f"The training loss became {loss.item()} at step {step} "
            f"(epoch {self.current_epoch}, learning rate {rate:.3g}). Lower the learning rate, "
            'lengthen the warm-up, or use a wider precision (Trainer(precision="32-true")); also '
            "check that the images are finite."
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another network with the differences named."""
        saved, own = checkpoint["state_dict"], self.state_dict()
        differences = [
            f"{key} has shape {tuple(saved[key].shape)} in the checkpoint and "
            f"{tuple(own[key].shape)} here"
            for key in own
            if key in saved and saved[key].shape != own[key].shape
        ]
        differences += [f"{key} is missing from the checkpoint" for key in own if key not in saved]
        differences += [f"{key} is only in the checkpoint" for key in saved if key not in own]
        if differences:
            more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise ValueError(
                "The checkpoint belongs to another network: "
                f"{'; '.join(differences[:3])}{more}. Build the network with the arguments of the "
                "saved run (width, number of classes)."
            )


def _accuracy(classes: int) -> MulticlassAccuracy:
    return MulticlassAccuracy(classes, average="micro", validate_args=False)


def _recipe(recipe: Recipe | str | Mapping[str, Any]) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str):
        return Recipe.preset(recipe)
    if isinstance(recipe, Mapping):  # as a checkpoint holds it
        return Recipe(**recipe)
    raise TypeError(f"recipe must be a Recipe or one of {Recipe.presets()}, but got {recipe!r}.")
