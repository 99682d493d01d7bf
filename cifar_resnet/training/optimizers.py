"""Build the optimizer and the learning rate schedule of a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cifar_resnet import arguments
from cifar_resnet.training.muon import Muon
from cifar_resnet.training.recipe import Recipe, as_recipe

__all__ = ["make_optimizer", "make_scheduler", "schedule_factor"]

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
    factor = partial(schedule_factor, as_recipe(recipe), total_steps=total_steps)
    return LambdaLR(optimizer, factor)


def schedule_factor(recipe: Recipe, step: int, total_steps: float) -> float:
    """Compute the fraction of the peak learning rate to use in a step, counted from 0."""
    # The middle of the step: at its ends the first or the last step would have a rate of 0.
    return recipe.learning_rate_factor((step + 0.5) / total_steps)


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
