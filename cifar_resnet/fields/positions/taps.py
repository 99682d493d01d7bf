"""Which elements an operation reads along one dimension, for each element that it makes.

It knows the arithmetic of windows; it must not know tensors' contents or operations' names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

NOWHERE = -(2**40)  # a tap that reads nothing


@dataclass(frozen=True, eq=False)
class Taps:
    """For n new units, k taps each.

    Attributes:
        actual: int64 (k, n): elements read, in range, or `NOWHERE`.
        virtual: int64 (k, n): elements read if the dimension had no borders, so also negative ones.
        ratio: Elements per new unit; None where it is irregular.
        some_empty: Whether a unit reads nothing at all.
        takes_all: Whether a single unit reads all of several elements.
    """

    actual: Tensor
    virtual: Tensor
    ratio: Fraction | None
    some_empty: bool
    takes_all: bool

    @property
    def size(self) -> int:
        return self.actual.shape[1]


def _taps(size: int, virtual: Tensor, ratio: Fraction | None, actual: Tensor | None = None) -> Taps:
    if actual is None:
        actual = torch.where((virtual < 0) | (virtual >= size), NOWHERE, virtual)
    read = actual[actual != NOWHERE]
    takes_all = actual.shape[1] == 1 and size > 1 and len(read.unique()) == size
    return Taps(actual, virtual, ratio, bool((actual == NOWHERE).all(0).any()), takes_all)


@lru_cache(maxsize=4096)
def windows(
    size: int, units: int, kernel: int, stride: int, padding: int, dilation: int = 1
) -> Taps:
    """A convolution's or a pooling's: unit u reads u * stride + t * dilation - padding."""
    starts = torch.arange(units) * stride - padding
    virtual = starts + torch.arange(kernel)[:, None] * dilation
    return _taps(size, virtual, Fraction(stride))


@lru_cache(maxsize=4096)
def transposed_windows(
    size: int, units: int, kernel: int, stride: int, padding: int, dilation: int = 1
) -> Taps:
    """A transposed convolution's: element i is spread to i * stride + t * dilation - padding."""
    shifted = torch.arange(units) + padding - torch.arange(kernel)[:, None] * dilation
    hit = shifted % stride == 0
    virtual = torch.where(hit, torch.div(shifted, stride, rounding_mode="floor"), NOWHERE)
    kept = hit.any(1)  # a tap that no unit has
    return _taps(size, virtual[kept] if bool(kept.any()) else virtual[:1], Fraction(1, stride))


@lru_cache(maxsize=4096)
def adaptive_windows(size: int, units: int) -> Taps:
    """Adaptive pooling: unit u reads floor(u * size / units) to ceil((u + 1) * size / units)."""
    first = torch.arange(units) * size // units
    last = -(-(torch.arange(units) + 1) * size // units)
    taps = first + torch.arange(int((last - first).max()))[:, None]
    taps = torch.where(taps < last, taps, NOWHERE)
    return _taps(size, taps, Fraction(size // units) if size % units == 0 else None)


def moved(size: int, elements: Sequence[int]) -> Taps:
    """One tap each, to the elements given; those outside are nothing."""
    virtual = torch.tensor(list(elements), dtype=torch.int64)[None]
    taps = _taps(size, virtual, None)
    return replace(taps, virtual=taps.actual)


@lru_cache(maxsize=4096)
def sliced(size: int, start: int, step: int, units: int) -> Taps:
    """start, start + step, ...; a negative step flips, a negative start pads."""
    return _taps(size, (start + torch.arange(units) * step)[None], Fraction(step))


@lru_cache(maxsize=4096)
def padded(size: int, before: int, after: int, mode: str) -> Taps:
    """Padding by reflection, replication or wrapping: it reads elements again."""
    virtual = torch.arange(-before, size + after)
    if mode == "reflect":
        period = max(2 * (size - 1), 1)
        folded = virtual % period
        actual = torch.minimum(folded, period - folded) if size > 1 else virtual * 0
    elif mode == "replicate":
        actual = virtual.clamp(0, size - 1)
    else:
        actual = virtual % size
    return _taps(size, virtual[None], Fraction(1), actual[None])


@lru_cache(maxsize=4096)
def interpolated(
    size: int,
    units: int,
    mode: str,
    align_corners: bool = False,
    scale: float | None = None,
    antialias: bool = False,
) -> Taps:
    """Interpolation as PyTorch computes it; taps whose weight is 0 count.

    Args:
        size: Elements along the dimension.
        units: New ones.
        mode: "nearest", "nearest-exact", "linear" or "cubic".
        align_corners: Whether the outermost centers coincide.
        scale: New units per element where the caller gave that, not the size.
        antialias: Whether the kernel is widened when the result is smaller.
    """
    if size == units and (mode == "linear" or antialias):  # PyTorch copies
        return sliced(size, 0, 1, units)
    if align_corners:
        ratio = Fraction(size - 1, units - 1) if units > 1 else Fraction(0)
    elif scale is not None and scale > 0:
        ratio = 1 / Fraction(scale).limit_denominator(1 << 20)
    else:
        ratio = Fraction(size, units)
    exact = 1.0 / scale if scale and scale > 0 and not align_corners else float(ratio)
    if mode == "nearest" and units in (size, 2 * size):  # PyTorch does not look at the scale
        ratio = Fraction(size, units)
        exact = float(ratio)
    step: Fraction | None = ratio if ratio > 0 else None
    # Positions in single precision, as PyTorch's kernels compute them: where one is a whole number
    # the lower tap may be the one before.
    scale_down = torch.tensor(exact, dtype=torch.float32)
    unit = torch.arange(units, dtype=torch.float32)
    if antialias:
        half = (2.0 if mode == "cubic" else 1.0) * scale_down.clamp(min=1)
        center = scale_down * (unit + 0.5)
        first = (center - half + 0.5).long().clamp(min=0)
        last = (center + half + 0.5).long().clamp(max=size)
        taps = first + torch.arange(int((last - first).max()))[:, None]
        return _taps(size, torch.where(taps < last, taps, NOWHERE), step)
    if mode == "nearest":
        at = scale_down * unit
    elif mode == "nearest-exact":
        at = scale_down * (unit + 0.5)
    elif align_corners:
        at = scale_down * unit
    else:
        at = scale_down * (unit + 0.5) - 0.5
    offsets = {"linear": [0, 1], "cubic": [-1, 0, 1, 2]}.get(mode, [0])
    virtual = at.floor().long() + torch.tensor(offsets)[:, None]
    actual = virtual.clamp(0, size - 1)
    if mode == "linear":  # at the first border the kernel moves the lower tap, not the upper
        actual = torch.stack([actual[0], (actual[0] + 1).clamp(max=size - 1)])
    return _taps(size, virtual, step, actual)
