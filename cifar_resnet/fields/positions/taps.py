"""Arithmetic of windows: which elements an operation reads along one dimension for each new one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache

import torch
from torch import Tensor

NO_TAP = -(2**40)  # in place of an element: this tap reads nothing


@dataclass(frozen=True, eq=False)
class Taps:
    """The elements that each of n new units reads, in k taps.

    A window of 3 with stride 2 and padding 1 over 5 elements makes 3 units, which read the elements
    -1 to 1, 1 to 3 and 3 to 5. The elements -1 and 5 are padding:

        >>> taps = windows(5, units=3, kernel=3, stride=2, padding=1)
        >>> taps.virtual.T.tolist()
        [[-1, 0, 1], [1, 2, 3], [3, 4, 5]]
        >>> torch.where(taps.actual == NO_TAP, 99, taps.actual).T.tolist()
        [[99, 0, 1], [1, 2, 3], [3, 4, 99]]
        >>> taps.ratio
        Fraction(2, 1)

    Attributes:
        actual: int64 (k, n), the elements read, from 0 to size - 1, or `NO_TAP`.
        virtual: int64 (k, n), the elements read if the dimension continued beyond its borders. They
            may be negative or above size - 1.
        ratio: Elements from one new unit to the next. None if it is irregular.
        some_empty: Whether some unit reads nothing at all.
        takes_all: Whether there is a single unit, which reads all of several elements.
        is_identity: Whether each unit reads the element at its own place, and no other.
    """

    actual: Tensor
    virtual: Tensor
    ratio: Fraction | None
    some_empty: bool
    takes_all: bool
    is_identity: bool

    @property
    def size(self) -> int:
        return self.actual.shape[1]


def _taps(size: int, virtual: Tensor, ratio: Fraction | None, actual: Tensor | None = None) -> Taps:
    if actual is None:
        actual = torch.where((virtual < 0) | (virtual >= size), NO_TAP, virtual)
    read = actual[actual != NO_TAP]
    takes_all = actual.shape[1] == 1 and size > 1 and len(read.unique()) == size
    is_identity = torch.equal(actual, torch.arange(size)[None])
    some_empty = bool((actual == NO_TAP).all(0).any())
    return Taps(actual, virtual, ratio, some_empty, takes_all, is_identity)


@lru_cache(maxsize=4096)
def windows(
    size: int, units: int, kernel: int, stride: int, padding: int, dilation: int = 1
) -> Taps:
    """Return the taps of a convolution or a pooling.

    Unit u reads the elements u * stride + t * dilation - padding for t from 0 to kernel - 1.
    """
    starts = torch.arange(units) * stride - padding
    virtual = starts + torch.arange(kernel)[:, None] * dilation
    return _taps(size, virtual, Fraction(stride))


@lru_cache(maxsize=4096)
def transposed_windows(
    size: int, units: int, kernel: int, stride: int, padding: int, dilation: int = 1
) -> Taps:
    """Return the taps of a transposed convolution.

    Element i is added to the units i * stride + t * dilation - padding, so unit u reads the
    elements (u + padding - t * dilation) / stride where that is a whole number. With kernel 3 and
    stride 2, even units read two elements and odd units one.
    """
    shifted = torch.arange(units) + padding - torch.arange(kernel)[:, None] * dilation
    hit = shifted % stride == 0
    virtual = torch.where(hit, torch.div(shifted, stride, rounding_mode="floor"), NO_TAP)
    kept = hit.any(1)  # some taps hit no unit at all, if there are few units
    return _taps(size, virtual[kept] if bool(kept.any()) else virtual[:1], Fraction(1, stride))


@lru_cache(maxsize=4096)
def adaptive_windows(size: int, units: int) -> Taps:
    """Return the taps of adaptive pooling.

    Unit u reads the elements from floor(u * size / units) to ceil((u + 1) * size / units) - 1.
    """
    first = torch.arange(units) * size // units
    last = -(-(torch.arange(units) + 1) * size // units)
    taps = first + torch.arange(int((last - first).max()))[:, None]
    taps = torch.where(taps < last, taps, NO_TAP)
    return _taps(size, taps, Fraction(size // units) if size % units == 0 else None)


def selected(size: int, elements: Sequence[int] | Tensor) -> Taps:
    """Return the taps to the given elements, one for each unit or (k, n).

    Elements out of range are read as nothing.
    """
    taps = _taps(size, torch.atleast_2d(torch.as_tensor(elements, dtype=torch.int64)), None)
    return replace(taps, virtual=taps.actual)  # no pattern that could continue beyond the borders


@lru_cache(maxsize=4096)
def sliced(size: int, start: int, step: int, units: int) -> Taps:
    """Return the taps start, start + step, ... A negative step flips; a negative start pads."""
    return _taps(size, (start + torch.arange(units) * step)[None], Fraction(step))


@lru_cache(maxsize=4096)
def padded(size: int, before: int, after: int, mode: str) -> Taps:
    """Return the taps of padding by reflection, replication or wrapping, which repeat elements.

    Two elements of reflection on the left of 5: the units -2, -1, 0, 1, ... read the elements
    2, 1, 0, 1, ...
    """
    virtual = torch.arange(-before, size + after)
    if mode == "reflect":
        period = max(2 * (size - 1), 1)  # 0 1 2 3 4 3 2 1, and from 0 again
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
    """Return the taps of interpolation as PyTorch computes it. Taps of weight 0 count.

    Args:
        size: Number of elements along the dimension.
        units: Number of new units.
        mode: "nearest", "nearest-exact", "linear", "cubic" or "lanczos".
        align_corners: Whether the centers of the outermost units and elements coincide.
        scale: New units per element, if the caller gave a scale factor in place of the size.
        antialias: Whether the kernel is widened when the result is smaller.
    """
    if size == units and (mode == "linear" or antialias):  # PyTorch copies
        return sliced(size, 0, 1, units)
    # `ratio` is a fraction, for the pitch; `factor` is the number that PyTorch multiplies by
    if align_corners:
        ratio = Fraction(size - 1, units - 1) if units > 1 else Fraction(0)
    elif scale is not None and scale > 0:
        ratio = 1 / Fraction(scale).limit_denominator(1 << 20)
    else:
        ratio = Fraction(size, units)
    factor = 1.0 / scale if scale and scale > 0 and not align_corners else float(ratio)
    if mode == "nearest" and units in (size, 2 * size):  # PyTorch ignores the scale here
        ratio = Fraction(size, units)
        factor = float(ratio)
    step: Fraction | None = ratio if ratio > 0 else None
    # In single precision, as PyTorch's kernels compute the positions. A position that should be a
    # whole number may come out slightly smaller, and then the lower tap is the element before.
    scale_down = torch.tensor(factor, dtype=torch.float32)
    unit = torch.arange(units, dtype=torch.float32)
    if antialias:  # unit u reads all elements within half a kernel of its center
        half = {"cubic": 2.0, "lanczos": 3.0}.get(mode, 1.0) * scale_down.clamp(min=1)
        center = scale_down * (unit + 0.5)
        first = (center - half + 0.5).long().clamp(min=0)
        last = (center + half + 0.5).long().clamp(max=size)
        taps = first + torch.arange(int((last - first).max()))[:, None]
        return _taps(size, torch.where(taps < last, taps, NO_TAP), step)
    if mode == "nearest" or align_corners:
        at = scale_down * unit
    elif mode == "nearest-exact":
        at = scale_down * (unit + 0.5)
    else:
        at = scale_down * (unit + 0.5) - 0.5
    offsets = {"linear": [0, 1], "cubic": [-1, 0, 1, 2]}.get(mode, [0])
    virtual = at.floor().long() + torch.tensor(offsets)[:, None]
    actual = virtual.clamp(0, size - 1)
    if mode == "linear":
        # At the first border PyTorch moves the position itself into range: one of -0.25 reads the
        # elements 0 and 1, the second with weight 0, and not -1 and 0 clamped to 0 and 0.
        actual = torch.stack([actual[0], (actual[0] + 1).clamp(max=size - 1)])
    return _taps(size, virtual, step, actual)
