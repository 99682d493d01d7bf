"""The mean and deviation that images were normalized with, and the way back to what can be shown.
It knows tensors; it must not know where images come from, nor what is done with them.
"""

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
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ValueError(f"Give both mean and std, or neither, but got {mean!r} and {std!r}.")
    return (
        _of_channels("mean", mean, "finite numbers", math.isfinite),
        _of_channels("std", std, "positive numbers", lambda value: 0 < value < math.inf),
    )


def _of_channels(
    name: str, given: Any, kind: str, fits: Callable[[float], bool]
) -> tuple[float, ...]:
    message = f"{name} must be {kind}, one or one for each channel, but got {given!r}."
    values = given.tolist() if isinstance(given, Tensor | np.ndarray) else given
    values = [values] if isinstance(values, Real) else values
    if not isinstance(values, Sequence) or not all(
        isinstance(value, Real) and not isinstance(value, bool) for value in values
    ):
        raise TypeError(message)
    numbers = tuple(map(float, values))
    if not numbers or not all(map(fits, numbers)):
        raise ValueError(message)
    return numbers


def in_unit_range(
    image: Tensor, statistics: Statistics | None, *, name: str, clip: bool = False
) -> Tensor:
    """An image (C, H, W) as float32 in [0, 1].

    Args:
        image: Integers from 0 to 255, or floating-point numbers in [0, 1] once the normalization
            is undone.
        statistics: Mean and standard deviation that it was normalized with; None for none.
        name: What errors call it.
        clip: Whether to cut values off at the ends of the range, whatever they are.
    """
    if not image.is_floating_point():
        return image.float() / 255
    values = image.float()
    if statistics is not None:
        if any(len(numbers) not in (1, len(values)) for numbers in statistics):
            raise ValueError(
                f"{name} has {len(values)} channels, but mean and std have {len(statistics[0])} "
                f"and {len(statistics[1])} values."
            )
        mean, std = (torch.tensor(numbers).view(-1, 1, 1) for numbers in statistics)
        values = values * std + mean
    low, high = float(values.min()), float(values.max())
    # a resize may overshoot a little
    if not clip and not (low >= -0.05 and high <= 1.05):
        raise ValueError(
            f"{name} has values from {low:.2f} to {high:.2f}; to be shown they must lie in [0, 1] "
            "or be uint8. Pass the mean and std that the images were normalized with, such as "
            "mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)."
        )
    return values.clamp(0, 1)
