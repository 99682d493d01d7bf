"""Warn if trained weights of the package get images that are not normalized."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnet.data import cifar10
from cifar_resnet.model_state import in_this_thread
from cifar_resnet.network import CustomResNet
from cifar_resnet.pretrained import name_of_weights


@contextlib.contextmanager
def warn_if_not_normalized(model: nn.Module) -> Iterator[None]:
    """Check the images that a `CustomResNet` in the model, with weights of the package, receives.

    What reaches the network counts, so that a model that normalizes its images is left in peace.
    """
    with contextlib.ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, CustomResNet) and (name := name_of_weights(module.state_dict())):

                def check(module: nn.Module, args: Any, name: str = name) -> None:
                    if args and isinstance(args[0], Tensor):
                        _check(args[0], name)

                hooks.enter_context(module.register_forward_pre_hook(in_this_thread(check)))
        yield


def _check(images: Tensor, name: str) -> None:
    low, high = (float(value) for value in torch.aminmax(images.detach().float()))
    # Normalized images have values from -2.0 to 2.1. In a batch without a negative value, each
    # pixel would be brighter than the mean of all images.
    if (0 <= low < high <= 1.05) or high > 10:
        warnings.warn(
            f"The weights {name!r} were trained on normalized images, but the first batch has "
            f"values from {low:.2f} to {high:.2f}, with which they are much less accurate. Scale "
            "the images to [0, 1], subtract the mean "
            f"{tuple(round(value, 4) for value in cifar10.MEAN)} and divide by the standard "
            f"deviation {tuple(round(value, 4) for value in cifar10.STD)}, as "
            "CIFAR10DataModule.default_transforms() does.",
            stacklevel=2,
        )
