"""Check the mean and standard deviation of a normalization, and undo it for display."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std, of each channel or of all


def as_statistics(mean: Any, std: Any) -> Statistics | None:
    """Convert mean and std to tuples of numbers; None if both are None."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ValueError(f"Give both mean and std, or neither, but got {mean!r} and {std!r}.")
    return (
        _per_channel("mean", mean, "finite numbers", math.isfinite),
        _per_channel("std", std, "positive numbers", lambda value: 0 < value < math.inf),
    )


def _per_channel(
    name: str, value: Any, expected: str, is_valid: Callable[[float], bool]
) -> tuple[float, ...]:
    message = f"{name} must be {expected}, one or one for each channel, but got {value!r}."
    values = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    values = [values] if isinstance(values, Real) else values
    if not isinstance(values, Sequence) or not all(
        isinstance(number, Real) and not isinstance(number, bool) for number in values
    ):
        raise TypeError(message)
    numbers = tuple(map(float, values))
    if not numbers or not all(map(is_valid, numbers)):
        raise ValueError(message)
    return numbers


def in_unit_range(
    image: Tensor, statistics: Statistics | None, *, name: str, clip: bool = False
) -> Tensor:
    """Convert an image (C, H, W) to float32 in [0, 1].

    Args:
        image: uint8 or other integers from 0 to 255, booleans, or floating-point numbers in [0, 1]
            after the normalization is undone.
        statistics: Mean and standard deviation that the image was normalized with. If None, it was
            not normalized.
        name: What error messages call the image.
        clip: If True, clip values outside the range instead of raising.
    """
    values = image.float()
    if image.dtype == torch.bool:
        return values
    if not image.is_floating_point():
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 255):
            raise ValueError(
                f"{name} has {image.dtype} values from {low:.0f} to {high:.0f}, but to be "
                "displayed, integers must be from 0 to 255. Convert the images to float in [0, 1], "
                "for example by dividing by 65535 for images of 16 bits."
            )
        return values / 255
    if statistics is not None:
        if any(len(numbers) not in (1, len(values)) for numbers in statistics):
            raise ValueError(
                f"{name} has {len(values)} channels, but mean and std have {len(statistics[0])} "
                f"and {len(statistics[1])} values."
            )
        mean, std = (values.new_tensor(numbers).view(-1, 1, 1) for numbers in statistics)
        values = values * std + mean
    low, high = float(values.min()), float(values.max())
    # interpolation in a resize may exceed the range slightly
    if not clip and not (low >= -0.05 and high <= 1.05):
        raise ValueError(
            f"{name} has values from {low:.2f} to {high:.2f}, but to be displayed they must be in "
            "[0, 1] or uint8. Pass the mean and std that the images were normalized with, such as "
            f"{_example(low, high)}."
        )
    return values.clamp(0, 1)


def _example(low: float, high: float) -> str:
    """Return arguments that fit the values of an image."""
    if low >= 0 and 10 < high <= 255:
        return "mean=0, std=1 / 255"
    return "mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)"
