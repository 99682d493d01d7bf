"""Build the optimizer and the learning rate schedule of a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cifar_resnet import arguments
from cifar_resnet.training.muon import Muon
from cifar_resnet.training.recipe import Recipe, as_recipe, one_cycle

__all__ = ["RecipeLR", "make_optimizer", "make_scheduler", "scale_rates", "schedule_values"]

# Fraction of the peak learning rate, and the momentum, or None to leave it.
Values = tuple[float, float | None]

_NORM_LAYERS = (_BatchNorm, nn.GroupNorm, nn.LayerNorm)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def make_optimizer(
    network: nn.Module, recipe: Recipe | str, *, fused: bool | None = None
) -> Optimizer:
    """Build the optimizer of a recipe for a network, as `ImageClassifier` does.

    Parameters that do not require a gradient are left out. The parameters form one group, or
    several named groups if the recipe treats biases of normalization layers or convolutions
    differently.

    Args:
        network: The network to train, on its device.
        recipe: A `Recipe`, or the name of a preset.
        fused: Whether Adam and SGD use their fused implementation. If None, they do on a CPU and
            on CUDA devices. Muon has none.

    Returns:
        `torch.optim.Adam`, `torch.optim.SGD` or `Muon`, with the peak learning rates of the
        recipe.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no such preset, or all parameters are frozen.

    Examples:
        >>> from cifar_resnet import CustomResNet, make_optimizer
        >>> optimizer = make_optimizer(CustomResNet(width=4), "muon")
        >>> [(group["name"], group["lr"]) for group in optimizer.param_groups]
        [('others', 0.4), ('convolutions', 0.05)]
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, but got {network!r}.")
    recipe = as_recipe(recipe)
    groups = _parameter_groups(network, recipe)
    if fused is None:
        fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    arguments.boolean("fused", fused)
    if recipe.optimizer == "muon":
        return Muon(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=recipe.learning_rate, fused=fused)
    return torch.optim.SGD(
        groups,
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        fused=fused,
    )


class RecipeLR(LambdaLR):
    """The learning rates, and with one-cycle the momenta, of a recipe.

    Groups of parameters that are added to the optimizer during the run, as Lightning's
    `BackboneFinetuning` does, keep their ratio to the schedule.

    Args:
        optimizer: An optimizer at its peak learning rates.
        values: Function from a step, counted from 0, to the values of the schedule.
    """

    def __init__(self, optimizer: Optimizer, values: Callable[[int], Values]) -> None:
        self._values = values
        super().__init__(optimizer, partial(_factor, values))

    def get_lr(self) -> list[Any]:
        rates = super().get_lr()
        self._set_momentum()
        now, before = (
            self._values(max(step, 0))[0] for step in (self.last_epoch, self.last_epoch - 1)
        )
        added = self.optimizer.param_groups[len(rates) :]
        return rates + [group["lr"] * (now / before if before else 1.0) for group in added]

    def refresh(self) -> None:
        """Set the values of the current step again, now that the length of the run is known."""
        factor, _ = self._values(self.last_epoch)
        for group, peak in zip(self.optimizer.param_groups, self.base_lrs, strict=False):
            group["lr"] = peak * factor
        self._set_momentum()

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = super().state_dict()
        del state["_values"]
        return state

    def _set_momentum(self) -> None:
        _, momentum = self._values(self.last_epoch)
        if momentum is None:
            return
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum


def make_scheduler(optimizer: Optimizer, recipe: Recipe | str, total_steps: int) -> LambdaLR:
    """Build the learning rate schedule of a recipe, to be stepped after every optimizer step.

    Args:
        optimizer: An optimizer at its peak learning rates, such as one from `make_optimizer`.
        recipe: A `Recipe`, or the name of a preset.
        total_steps: Number of optimizer steps of the whole run, at least 1.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no such preset, or `total_steps` is less than 1.

    Examples:
        >>> from cifar_resnet import CustomResNet, make_optimizer, make_scheduler
        >>> optimizer = make_optimizer(CustomResNet(width=4), "sgd")
        >>> scheduler = make_scheduler(optimizer, "sgd", total_steps=5)
        >>> rates = []
        >>> for _ in range(5):
        ...     rates.append(round(optimizer.param_groups[0]["lr"], 2))
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.2, 0.35, 0.25, 0.15, 0.05]
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, but got {optimizer!r}.")
    total_steps = arguments.integer("total_steps", total_steps, minimum=1)
    return RecipeLR(optimizer, partial(schedule_values, as_recipe(recipe), total_steps=total_steps))


def _factor(values: Callable[[int], Values], step: int) -> float:
    return values(step)[0]


def schedule_values(recipe: Recipe, step: int, total_steps: float) -> Values:
    """Compute the fraction of the peak learning rate, and the momentum, of a step from 0 on."""
    if recipe.schedule == "onecycle":
        rise = recipe.warmup * total_steps
        factor, momentum = one_cycle(recipe, step, (rise - 1, 2 * rise - 2, total_steps - 1))
        return factor, momentum if recipe.cycle_momentum else None
    # The middle of the step: at its ends the first or the last step would have a rate of 0.
    return recipe.learning_rate_factor((step + 0.5) / total_steps), None


def scale_rates(
    optimizers: Sequence[Optimizer], schedulers: Sequence[Any], ratio: float
) -> list[list[Any]]:
    """Multiply the learning rates that optimizers and schedulers start from by a factor.

    The orthogonal groups of Muon keep theirs.

    Returns:
        The learning rate that each group of each optimizer must now have.
    """

    def scaled(group: dict[str, Any], rate: Any) -> Any:
        return rate if group.get("orthogonal") else rate * ratio

    pending = list(schedulers)
    while pending:
        scheduler = pending.pop()
        pending += getattr(scheduler, "_schedulers", ())  # of SequentialLR and ChainedScheduler
        for name in ("base_lrs", "max_lrs"):  # the latter of CyclicLR
            if hasattr(scheduler, name):
                groups = scheduler.optimizer.param_groups
                rates = map(scaled, groups, getattr(scheduler, name))
                setattr(scheduler, name, list(rates))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name in ("initial_lr", "max_lr", "min_lr"):  # the last two of OneCycleLR
                if name in group:
                    group[name] = scaled(group, group[name])
    return [[scaled(group, group["lr"]) for group in o.param_groups] for o in optimizers]


def _parameter_groups(network: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    trained = [p for p in network.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("The network has no trainable parameters: all are frozen.")
    modules = list(network.modules())
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
        del groups[0]["name"]  # Lightning would append it to the logged name of the learning rate
    return groups


def _ids(parameters: Iterable[Tensor | None]) -> set[int]:
    return {id(parameter) for parameter in parameters if parameter is not None}
