"""Compute the mean and standard deviation of images, and normalize with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_resnet.normalization import Statistics

__all__ = ["channel_statistics", "denormalized", "normalizing_transform"]

_CHUNK = 1 << 22  # bytes that are counted at once


def channel_statistics(images: NDArray[np.uint8]) -> Statistics:
    """Return mean and standard deviation of each channel over all pixels, in [0, 1].

    They are computed from the number of pixels with each value, so they are exact up to rounding.

    Args:
        images: uint8 images (N, H, W, C).

    Raises:
        ValueError: If all pixels of a channel are equal, so that it cannot be normalized.
    """
    channels = images.shape[3]
    counts = np.zeros((channels, 256), dtype=np.int64)
    step = max(_CHUNK // images[0].size, 1)
    for start in range(0, len(images), step):
        part = images[start : start + step]
        for channel in range(channels):
            counts[channel] += np.bincount(part[..., channel].reshape(-1), minlength=256)
    values = np.arange(256) / 255
    total = counts.sum(1)
    mean = counts @ values / total
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / total
    for channel, used in enumerate(counts > 0):
        if used.sum() == 1:
            raise ValueError(
                f"All pixels of channel {channel} of the training images are "
                f"{int(used.argmax())}, so its standard deviation is 0. Leave out the channel, or "
                "pass mean and std."
            )
    return tuple(mean.tolist()), tuple(np.sqrt(variance).tolist())


def normalizing_transform(statistics: Statistics) -> Any:
    """Return a transform from a PIL image to a normalized tensor (C, H, W)."""
    from torchvision.transforms import v2

    return v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*statistics)]
    )


def denormalized(images: Tensor, statistics: Statistics) -> Tensor:
    """Undo the normalization: float (..., C, H, W) back to values in [0, 1].

    Raises:
        TypeError: If `images` is not a floating-point tensor.
        ValueError: If it does not have that shape.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else repr(images)
        raise TypeError(f"denormalize expects a floating-point tensor, but got {got}.")
    channels = len(statistics[0])
    if images.dim() < 3 or images.shape[-3] != channels:
        raise ValueError(
            f"denormalize expects images of shape (..., {channels}, H, W), "
            f"but got {tuple(images.shape)}."
        )
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=images.device).view(-1, 1, 1)
        for values in statistics
    )
    return (images.float() * std + mean).clamp(0, 1)
