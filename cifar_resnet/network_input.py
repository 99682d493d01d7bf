"""Check the input of the network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cifar_resnet import arguments

__all__ = ["as_size", "check_input"]


def as_size(image_size: Any) -> tuple[int, int]:
    """Validate the argument `image_size` of `CustomResNet`, and return height and width."""
    expected = "a multiple of 8, or a height and a width that are"
    return arguments.height_and_width("image_size", image_size, expected, multiple=8)


def check_input(images: Tensor, channels: int, size: tuple[int, int], weight: Tensor) -> None:
    """Raise an error for images that the network cannot take.

    Args:
        images: The input of the network.
        channels: Its number of input channels.
        size: Height and width of its images.
        weight: A weight of the network, which has its dtype.
    """
    if isinstance(images, torch.fx.Proxy):  # symbolic tracing, which has no shapes
        return
    expected = f"(N, {channels}, {size[0]}, {size[1]})"
    if not isinstance(images, Tensor):
        raise TypeError(
            f"CustomResNet expects a float tensor of shape {expected}, "
            f"but got {type(images).__name__}. {arguments.PICTURES}"
        )
    if images.dim() != 4 or tuple(images.shape[1:]) != (channels, *size):
        raise ValueError(
            f"CustomResNet expects images of shape {expected}, "
            f"but got {_shape(images)}.{_remedy(images, channels, size)}"
        )
    if images.dtype != weight.dtype and not (
        images.is_floating_point() and torch.is_autocast_enabled(images.device.type)
    ):
        remedy = (
            f"Convert them with images.to({weight.dtype})"
            if images.is_floating_point()
            else "Scale them to [0, 1] and normalize them first, as CIFAR10DataModule does"
        )
        raise TypeError(
            f"CustomResNet has {weight.dtype} weights, but got images of {images.dtype} "
            f"and shape {_shape(images)}. {remedy}."
        )


def _remedy(images: Tensor, channels: int, size: tuple[int, int]) -> str:
    if images.dim() == 3:
        return " Add the batch dimension with images.unsqueeze(0)."
    if images.dim() == 4 and tuple(images.shape[1:]) == (1, *size):
        return (
            f" For gray images use images.expand(-1, {channels}, -1, -1), or build the "
            "network with in_channels=1."
        )
    if images.dim() == 4 and images.shape[3] == channels:
        return " The channels seem to come last: use images.permute(0, 3, 1, 2)."
    if images.dim() == 4 and images.shape[1] == channels:
        side = size[0] if size[0] == size[1] else size
        return (
            f" Resize them with torch.nn.functional.interpolate(images, size={side}, "
            'mode="bilinear", antialias=True), or build the network for their size with image_size.'
        )
    if images.dim() == 4 and not any(side % 8 for side in images.shape[2:]):
        channels, height, width = images.shape[1:]
        fitting = str(height) if height == width else f"({height}, {width})"
        return f" Build the network with in_channels={channels}, image_size={fitting}."
    return ""


def _shape(images: Tensor) -> str:
    return f"({', '.join(str(int(size)) for size in images.shape)})"
