"""Compare a checkpoint with the network and the recipe that it is loaded into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from cifar_resnet.network import CustomResNet
from cifar_resnet.pretrained import shape_differences, uncompiled
from cifar_resnet.training.recipe import Recipe

__all__ = [
    "check_network",
    "check_recipe",
    "network_config",
    "plain_values",
    "rename_compiled",
]

# Values that a checkpoint restores as part of the optimizer's state, whatever the recipe says.
_IN_THE_OPTIMIZER = (
    "optimizer", "learning_rate", "conv_learning_rate", "momentum", "weight_decay",
    "norm_bias_lr_scale",
)  # fmt: skip


def network_config(network: nn.Module) -> dict[str, Any]:
    """Return the arguments of a `CustomResNet`, also a compiled one; for other networks, none."""
    original = getattr(network, "_orig_mod", network)
    return original.config() if isinstance(original, CustomResNet) else {}


def plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace networks and recipes by plain values, which torch loads with `weights_only=True`.

    Only a `CustomResNet` can be built again from its arguments; other networks become None.
    """
    return {
        name: _network_arguments(value)
        if isinstance(value, nn.Module)
        else value.to_dict()
        if isinstance(value, Recipe)
        else value
        for name, value in values.items()
    }


def _network_arguments(network: nn.Module) -> dict[str, Any] | None:
    is_ours = type(getattr(network, "_orig_mod", network)) is CustomResNet
    return network_config(network) if is_ours else None


def rename_compiled(saved: dict[str, Any], own: Iterable[str]) -> None:
    """Change the names of saved tensors to those in `own` where only one of the networks is
    compiled.
    """
    names = {uncompiled(key): key for key in own}
    for key in list(saved):
        name = names.get(uncompiled(key), key)
        if name != key:
            saved[name] = saved.pop(key)


def check_network(
    saved: Mapping[str, Tensor],
    saved_config: Mapping[str, Any],
    own: Mapping[str, Tensor],
    config: Mapping[str, Any],
) -> None:
    """Refuse the weights of a different network, and name the differences."""
    differences = shape_differences(saved, own)
    differences += _differences(saved_config, config, config)
    if differences:
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        remedy = "Build the network with the arguments of the saved run (width, number of classes)."
        if any(f"network.{uncompiled(key)}" in own for key in saved):
            remedy = (
                "If these are the weights of the network alone, load them with "
                "network.load_state_dict"
            )
            is_compiled = any(uncompiled(key) != key for key in saved)
            remedy += " of the compiled network." if is_compiled else "."
        raise ValueError(
            f"The checkpoint belongs to a different network: {'; '.join(differences[:3])}{more}. "
            f"{remedy}"
        )


def check_recipe(saved: Mapping[str, Any], recipe: Recipe) -> None:
    """Refuse to resume with a recipe whose values the saved optimizer would override."""
    if differences := _differences(saved, recipe.to_dict(), _IN_THE_OPTIMIZER):
        raise ValueError(
            f"The checkpoint belongs to a run with a different recipe: {'; '.join(differences)}. "
            "Resume with the recipe of the saved run, or load only the weights with "
            "ImageClassifier.load_from_checkpoint and start a new run."
        )


def _differences(
    saved: Mapping[str, Any], own: Mapping[str, Any], names: Iterable[str]
) -> list[str]:
    """Describe which of the named values, as far as both sides have them, differ."""
    return [
        f"{name} is {saved[name]!r} instead of {own[name]!r}"
        for name in names
        if name in saved and name in own and saved[name] != own[name]
    ]
