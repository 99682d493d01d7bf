"""Validate indices and weights of images, and describe them in few characters."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cifar_resnet import arguments

__all__ = ["as_indices", "as_weights", "digest"]


def as_indices(name: str, value: Any, size: int) -> tuple[int, ...]:
    """Return different indices from 0 to `size` - 1 as plain integers."""
    expected = f"a sequence of different integers from 0 to {size - 1}"
    if isinstance(value, Tensor | np.ndarray):
        value = value.tolist()
    seen: set[int] = set()
    for each in (values := arguments.sequence(name, value, expected)):
        message = f"{name} must be {expected}, but it contains {each!r}"
        if not arguments.is_integer(each):
            mask = isinstance(each, bool | np.bool_)
            remedy = ". Convert a mask with numpy.flatnonzero(mask)." if mask else "."
            raise TypeError(message + remedy)
        if not 0 <= each < size:
            raise ValueError(f"{message}.")
        if each in seen:
            raise ValueError(f"{message} more than once.")
        seen.add(each)
    return tuple(map(int, values))


def as_weights(name: str, value: Any, size: int) -> NDArray[np.float64] | None:
    """Return one weight of at least 0 for each of `size` images, or None."""
    if value is None:
        return None
    expected = f"a sequence of {size} finite numbers of at least 0, one for each training image"
    if isinstance(value, Tensor):
        value = value.tolist()
    try:
        weights = np.array(arguments.sequence(name, value, expected))
    except ValueError as error:  # of different lengths
        raise TypeError(f"{name} must be {expected}.") from error
    if weights.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be {expected}, but got values of type {weights.dtype}.")
    weights = weights.astype(np.float64)
    if weights.shape != (size,):
        raise ValueError(f"{name} must be {expected}, but got the shape {weights.shape}.")
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if len(wrong):
        raise ValueError(f"{name} must be {expected}, but {name}[{wrong[0]}] is "
                         f"{weights[wrong[0]]}.")  # fmt: skip
    return weights


def digest(values: tuple[int, ...] | NDArray[np.float64] | None) -> str | None:
    """Return the number of images and a checksum, or None without values."""
    if values is None:
        return None
    array = np.asarray(values, dtype="<i8" if isinstance(values, tuple) else "<f8")
    content = hashlib.sha256(array.tobytes()).hexdigest()
    return f"{len(array)} images (SHA-256 {content[:16]})"
