"""Build the networks of the arms so that equal layers have equal initial weights."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from cifar_resnet.comparison.arms import Arm
from cifar_resnet.network import CustomResNet
from cifar_resnet.training.run_state import generator_states, restore_generators

__all__ = ["build", "equal_fraction", "fingerprint", "seeded"]


def build(arm: Arm, width: int, seed: int) -> nn.Module:
    """Build the network of an arm with the initial weights of a seed.

    In a `CustomResNet`, the random numbers of each layer depend only on the seed and the name of
    the layer: a layer that two arms have in common starts with the same weights, also if one arm
    has further layers. Each layer keeps its own distribution (`reset_parameters`). For a network of
    the caller, the seed is set before it is built, and nothing is initialized again. The state of
    the global random number generators is restored.

    Args:
        arm: The arm.
        width: Width of a `CustomResNet`, unless the arm has its own.
        seed: Seed of the run.

    Raises:
        TypeError: If the function of the arm does not return a network.
    """
    with seeded(seed):
        if arm.network is None:
            network: nn.Module = CustomResNet(arm.width or width, **arm.recipe.network_options())
            for name, layer in network.named_modules():
                if hasattr(layer, "reset_parameters"):
                    torch.default_generator.manual_seed(_seed_of(seed, name))
                    layer.reset_parameters()
            return network
        network = arm.network()
    if not isinstance(network, nn.Module):
        raise TypeError(
            f"network of arm {arm.name!r} must build a torch.nn.Module, but returned {network!r}."
        )
    return network


def equal_fraction(one: nn.Module, other: nn.Module) -> float:
    """Compute the fraction of the weights of the second network that are equal, by name, in both.

    Constants such as the ones of BatchNorm do not count: they are equal without any seed.
    """
    known, equal, total = dict(one.named_parameters()), 0, 0
    for name, weights in other.named_parameters():
        if bool((weights == weights.flatten()[:1]).all()):
            continue
        total += weights.numel()
        same = name in known and known[name].shape == weights.shape
        if same and torch.equal(known[name], weights):
            equal += weights.numel()
    return equal / total if total else 1.0


def fingerprint(network: nn.Module) -> str:
    """Return a string that identifies the layers of a network and their shapes."""
    shapes = [(name, tuple(t.shape)) for name, t in network.state_dict().items()]
    digest = hashlib.sha256(f"{network!r} {shapes}".encode()).hexdigest()[:16]
    return f"{type(network).__name__} {digest}"


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators of Python, NumPy and PyTorch, and restore their states afterwards."""
    states: dict[str, Any] = generator_states()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        restore_generators(states)


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7])
