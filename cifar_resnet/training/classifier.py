"""Training and evaluation of any image classifier under Lightning. It knows recipes, losses and
metrics; it must not know CIFAR-10, files or which network it trains.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from pytorch_lightning import LightningModule
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchmetrics.classification import MulticlassAccuracy

from cifar_resnet import arguments
from cifar_resnet.training.epoch_sums import Batch, EpochSums
from cifar_resnet.training.muon import Muon
from cifar_resnet.training.recipe import Recipe
from cifar_resnet.training.tta import mirror_scores, six_view_scores

__all__ = ["ImageClassifier"]


class ImageClassifier(LightningModule):
    """Trains a network that maps images to class scores, and measures it.

    The network may return logits or log-probabilities: cross-entropy is the same for both.

    Logged, with TensorBoard in mind: `train_loss_step`, `train_loss_epoch`, `train_acc_step`,
    `train_acc_epoch`, `val_loss`, `val_acc`, `test_loss`, `test_acc`, and `test_acc_mirror` and
    `test_acc_six` where the recipe asks for these views. Losses are mean cross-entropies (with the
    recipe's label smoothing in training only); accuracies are shares in [0, 1]. Single steps are
    logged every `log_every_n_steps` of the Trainer; between two of them no GPU is waited for.

    Args:
        network: Any module from images (N, C, H, W) to scores (N, classes).
        recipe: A `Recipe`, or the name of a preset. The default is the
            specified training: Adam at a learning rate of 0.001.
        num_classes: Number of classes; None to take the network's own `num_classes`.

    Raises:
        TypeError: If `network` is no module, `recipe` is neither a recipe nor a name, or
            `num_classes` is no integer.
        ValueError: If there is no such preset, or the number of classes is unknown, less than 2
            or not that of the network.
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
        self._check_options(network)
        classes = getattr(network, "num_classes", None)
        if num_classes is not None:
            num_classes = arguments.integer("num_classes", num_classes, minimum=2)
            if arguments.is_integer(classes) and classes != num_classes:
                raise ValueError(
                    f"num_classes is {num_classes} (given, or from the checkpoint that is loaded), "
                    f"but {type(network).__name__} has {classes} classes. Build the network with "
                    f"num_classes={num_classes}, or leave it out here; if you have replaced its "
                    f"last layer, set network.num_classes = {num_classes}."
                )
            classes = num_classes
        if not arguments.is_integer(classes) or classes < 2:
            raise ValueError(
                f"The number of classes must be an integer of at least 2, but got {classes!r}. "
                f"Pass num_classes: {type(network).__name__} does not tell it."
            )
        # Plain values only, so that checkpoints load with torch's weights_only=True.
        classes = int(classes)
        self.save_hyperparameters({"recipe": self.recipe.to_dict(), "num_classes": classes})
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
        """Warn where the recipe was made for options that the network does not have."""
        own, wanted = _options(network), self.recipe.network_options()
        usual = Recipe().network_options()
        missing = {
            name: value
            for name, value in wanted.items()
            if name in own and value != usual[name] and own[name] != value
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
        """The peak learning rate of the recipe. Lightning's `LearningRateFinder` sets it; the
        convolutions of `"muon"` keep theirs.
        """
        return self.recipe.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        share = value / self.recipe.learning_rate
        self.recipe = replace(self.recipe, learning_rate=value)
        self.hparams["recipe"] = self.recipe.to_dict()
        for config in self.trainer.lr_scheduler_configs if self._trainer is not None else []:
            scheduler: Any = config.scheduler
            scheduler.base_lrs = [
                rate if group.get("orthogonal") else rate * share
                for rate, group in zip(
                    scheduler.base_lrs, scheduler.optimizer.param_groups, strict=True
                )
            ]

    def forward(self, images: Tensor) -> Tensor:
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
        if not self._is_costly_to_ask(loss.device):
            self._check_finite()
        # Here and not at the end of the epoch: callbacks shall find the values there, and a
        # checkpoint that is saved after this batch shall not count the epoch again.
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
        self._log_epoch()  # where the run ends within an epoch

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
        views = self.recipe.tta
        if views == "none":
            return
        images, labels = batch
        mirrored = mirror_scores(self, images, scores)
        self._log_accuracy("test_acc_mirror", mirrored, labels)
        if views == "six":
            self._log_accuracy("test_acc_six", six_view_scores(self, images, mirrored), labels)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class scores of a batch of images, or of the images of an (images, labels) batch."""
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
        recipe = self.recipe
        groups = self._parameter_groups()
        # One kernel for all parameters. In mixed precision Lightning cannot clip their gradients.
        clips = bool(self.trainer.gradient_clip_val) and "mixed" in str(self.trainer.precision)
        fused = self.device.type in ("cpu", "cuda") and not clips
        optimizer: torch.optim.Optimizer
        if recipe.optimizer == "muon":
            optimizer = Muon(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
        elif recipe.optimizer == "adam":
            optimizer = torch.optim.Adam(groups, lr=recipe.learning_rate, fused=fused)
        else:
            optimizer = torch.optim.SGD(
                groups,
                lr=recipe.learning_rate,
                momentum=recipe.momentum,
                nesterov=recipe.momentum > 0,
                fused=fused,
            )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "learning_rate"},
        }

    def _parameter_groups(self) -> list[dict[str, Any]]:
        recipe = self.recipe
        trained = [p for p in self.network.parameters() if p.requires_grad]
        if not trained:
            raise ValueError("The network has no trainable parameters: all are frozen.")
        modules = list(self.network.modules())
        norm_biases = _ids(m.bias for m in modules if isinstance(m, _NORM_LAYERS))
        kernels = _ids(m.weight for m in modules if isinstance(m, _CONVOLUTIONS))
        if recipe.norm_bias_lr_scale == 1:
            norm_biases = set()
        if recipe.optimizer != "muon":
            kernels = set()
        groups = [
            {
                "name": "others",
                "params": [p for p in trained if id(p) not in norm_biases | kernels],
                "weight_decay": recipe.weight_decay,
            },
            {
                "name": "norm_biases",
                "params": [p for p in trained if id(p) in norm_biases],
                "lr": recipe.learning_rate * recipe.norm_bias_lr_scale,
                "weight_decay": recipe.weight_decay / recipe.norm_bias_lr_scale,
            },
            {
                "name": "convolutions",
                "params": [p for p in trained if id(p) in kernels],
                "lr": recipe.conv_learning_rate,
                "orthogonal": True,
            },
        ]
        groups = [group for group in groups if group["params"]]
        if len(groups) == 1:
            del groups[0]["name"]  # it would become part of the logged name of the learning rate
        return groups

    def _learning_rate_factor(self, step: int) -> float:
        if not self._total_steps:
            return 1.0  # before `on_train_start`, where the length of the run becomes known
        # The middle of the step, so that neither the first nor the last one is wasted at 0.
        return self.recipe.learning_rate_factor((step + 0.5) / self._total_steps)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self._epoch_sums.reset()  # what a run that was interrupted has left

    def on_train_start(self) -> None:
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
            if self._learning_rate_factor in getattr(scheduler, "lr_lambdas", []):
                factor = self._learning_rate_factor(scheduler.last_epoch)
                for group, peak in zip(
                    scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True
                ):
                    group["lr"] = peak * factor

    # --- safety ---------------------------------------------------------------------------------

    @staticmethod
    def _is_costly_to_ask(device: torch.device) -> bool:
        """Whether a look at a loss waits for the work queued before it."""
        return device.type != "cpu"

    def _check_finite(self) -> None:
        """Stop at the first loss since the last look that is NaN or infinite."""
        bad = [(loss, batch) for loss, batch in self._epoch_sums.look() if not math.isfinite(loss)]
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
        checkpoint[_OPTIONS] = _options(self.network)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the sums of the epoch; refuse a checkpoint of another network, or a training
        with another optimizer, with the differences named.
        """
        saved, own = checkpoint["state_dict"], self.state_dict()
        differences = [
            f"{key} has shape {tuple(saved[key].shape)} in the checkpoint and "
            f"{tuple(own[key].shape)} here"
            for key in own
            if key in saved and saved[key].shape != own[key].shape
        ]
        differences += [f"{key} is missing from the checkpoint" for key in own if key not in saved]
        differences += [f"{key} is only in the checkpoint" for key in saved if key not in own]
        options = checkpoint.get(_OPTIONS, {})
        differences += _differences(options, _options(self.network), options)
        if differences:
            more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise ValueError(
                "The checkpoint belongs to another network: "
                f"{'; '.join(differences[:3])}{more}. Build the network with the arguments of the "
                "saved run (width, number of classes)."
            )
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._check_recipe(checkpoint["hyper_parameters"]["recipe"])
        if (
            _EPOCH_SUMS in checkpoint and self.global_rank == 0
        ):  # the sums are those of all processes
            self._epoch_sums.restore(torch.tensor(checkpoint[_EPOCH_SUMS], dtype=torch.float64))

    def _check_recipe(self, saved: Mapping[str, Any]) -> None:
        """Refuse to go on with a recipe whose values the saved optimizer would override."""
        differences = _differences(saved, self.recipe.to_dict(), _IN_THE_OPTIMIZER)
        if differences:
            raise ValueError(
                f"The checkpoint belongs to a training with another recipe: "
                f"{'; '.join(differences)}. Go on with the recipe of the saved run, or load the "
                "weights alone with ImageClassifier.load_from_checkpoint and start a new training."
            )


# Their keys in a checkpoint.
_EPOCH_SUMS = "cifar_resnet.epoch_sums"
_OPTIONS = "cifar_resnet.network_options"
_IN_THE_OPTIMIZER = (
    "optimizer", "learning_rate", "conv_learning_rate", "momentum", "weight_decay",
    "norm_bias_lr_scale",
)  # fmt: skip
_NORM_LAYERS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _options(network: nn.Module) -> dict[str, Any]:
    """What the weights do not tell about a network, from its own method `options`, if any."""
    options = getattr(network, "options", None)
    found = options() if callable(options) else None
    if not isinstance(found, dict):
        return {}
    return {
        str(name): value
        for name, value in found.items()
        if isinstance(value, bool | int | float | str)
    }


def _differences(
    saved: Mapping[str, Any], own: Mapping[str, Any], names: Iterable[str]
) -> list[str]:
    """Which values of a checkpoint are others here; one that a side does not know is none."""
    return [
        f"{name} is {saved[name]!r} in the checkpoint and {own[name]!r} here"
        for name in names
        if name in saved and name in own and saved[name] != own[name]
    ]


def _ids(parameters: Iterable[Tensor | None]) -> set[int]:
    return {id(parameter) for parameter in parameters if parameter is not None}


def _recipe(recipe: Recipe | str | Mapping[str, Any]) -> Recipe:
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str):
        return Recipe.preset(recipe)
    if isinstance(recipe, Mapping):  # as a checkpoint holds it
        return Recipe(**recipe)
    raise TypeError(f"recipe must be a Recipe or one of {Recipe.presets()}, but got {recipe!r}.")
