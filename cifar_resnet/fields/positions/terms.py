"""How sets of input positions are stored: one term holds the sets of all elements of a tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from cifar_resnet.fields.positions.taps import NO_TAP, Taps

EMPTY = -(2**40)  # both bounds of the empty set; every real bound is far larger
MAX_TERM_BYTES = 2**31
MAX_SET_LENGTH = 4096  # on longer axes only the first and the last position of a set are stored


@dataclass(frozen=True)
class Pitch:
    """How the positions advance along a tensor dimension that runs along the input axis.

    Upsampling by 2 makes the units 0, 1, 2, 3, ... read the positions 0, 0, 1, 1, ...: they advance
    by half a position per unit (`step`), and the pattern repeats after 2 units (`period`). In
    general, unit u + period reads what unit u reads, moved by period * step positions, which is a
    whole number. A convolution or a pooling of the input has the period 1.

    The pitch says where a unit outside the tensor would read. Here unit -1 repeats unit 1, which
    lies one period later and reads position 0; so unit -1 reads 0 - 2 * 1/2 = -1.

    Attributes:
        step: Input positions per unit, a fraction after upsampling. None if it is irregular.
        period: Number of units after which the pattern repeats.
        parts: The dimensions that a reshape has merged into this one, each with its size, its
            pitch, and whether elements differ along it. A later reshape may split them again.
        hidden: Whether the dimension runs along the axis only by way of dimensions of size 1 in
            `parts`, as the channels of a map of 1 by 1 do after `flatten(1)`. Such a pitch is false
            in a condition, as None is, and serves only to split the dimension again.
    """

    step: Fraction | None
    period: int = 1
    parts: tuple[Part, ...] = ()
    hidden: bool = False

    def __bool__(self) -> bool:
        return not self.hidden


Part = tuple[int, Pitch | None, bool]
IRREGULAR = Pitch(None)


@dataclass(frozen=True)
class Term:
    """The sets of all elements of a tensor, stored only for the dimensions along which they differ.

    Along the height of an image, all elements of a row have the same set, in each channel. So a
    feature map (1, 64, 32, 32) takes `dims` (1, 1, 32, 1): 32 sets rather than 65,536.

    Attributes:
        seen: The positions that are really read, as 0 and 1: uint8 (L, *dims) for an axis of length
            L. If L is above `MAX_SET_LENGTH`, the bounds of these positions: int64 (2, *dims).
        bounds: Extent of each set as if the input had no borders: int64 (2, *dims), minus the first
            position and the last one. `EMPTY` twice for the empty set.
        pitch: One for each tensor dimension. None if the dimension does not run along the axis.

    Each of `dims` is the size of the tensor dimension, or 1 if all elements along it are alike.
    """

    seen: Tensor
    bounds: Tensor
    pitch: tuple[Pitch | None, ...]

    # The first position is stored with a minus sign so that the union of two sets is the maximum of
    # the two tensors, for `bounds` as for `seen`: {2, 3} | {3, ..., 7} is max((-2, 3), (-3, 7)) =
    # (-2, 7).

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.bounds.shape[1:])

    @property
    def empty_value(self) -> int:
        """Value of `seen` for the empty set."""
        return 0 if self.seen.dtype == torch.uint8 else EMPTY

    def apply(self, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Apply a function to `seen` and to `bounds`, which have the same dims."""
        return change(self.seen), change(self.bounds)


def unite_terms(terms: Sequence[Term], dims: Sequence[int]) -> Term:
    """Return the union of terms as one term with the given dims."""
    if len(terms) == 1:
        return terms[0]
    # -1 keeps the leading dimension (L or 2), which is the same for all
    seen = terms[0].seen.expand(-1, *dims)
    bounds = terms[0].bounds.expand(-1, *dims)
    for term in terms[1:]:
        seen = torch.maximum(seen, term.seen)
        bounds = torch.maximum(bounds, term.bounds)
    pitch = tuple(common_pitch(ps) for ps in zip(*(term.pitch for term in terms), strict=True))
    return Term(seen, bounds, pitch)


def merge_terms(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Unite terms where that needs no more memory: one is merged into another that is stored for
    all of its dimensions.

    Terms with dims (1, 8, 1) and (1, 8, 4) become one. Terms with dims (1, 8, 1) and (1, 1, 4) stay
    two, 12 sets in all; united they would be 32.
    """
    merged: list[Term] = []
    for term in sorted(terms, key=lambda term: math.prod(term.dims), reverse=True):
        for index, other in enumerate(merged):
            if all(mine in (1, theirs) for mine, theirs in zip(term.dims, other.dims, strict=True)):
                if term is not other:
                    merged[index] = unite_terms([other, term], other.dims)
                break
        else:
            merged.append(term)
    return tuple(merged)


def common_pitch(pitches: Sequence[Pitch | None]) -> Pitch | None:
    """Return the pitch of a union: regular if all operands advance by the same step.

    The patterns then repeat together after the least common multiple of their periods.
    """
    first = pitches[0]
    if all(pitch == first for pitch in pitches):
        return first
    # no `parts` here: they are kept only if all operands agree on them
    if not any(pitches):
        return None
    steps = {pitch.step if pitch else None for pitch in pitches}
    if len(steps) == 1 and None not in steps:
        return Pitch(steps.pop(), math.lcm(*(pitch.period for pitch in pitches if pitch)))
    return IRREGULAR


def doubled_centers(term: Term, dim: int) -> Tensor:
    """Return twice the center of each unit along a dimension, which is a whole number."""
    others = [d + 1 for d in range(len(term.dims)) if d != dim]
    bounds = term.bounds.amax(others) if others else term.bounds
    return bounds[1] - bounds[0]  # first + last, as bounds[0] is minus the first


def window_term(term: Term, dim: int, size: int, taps: Taps) -> Term:
    """Return the sets of new elements, each the union of the elements that it taps.

    Args:
        term: The sets before.
        dim: Dimension along which elements are tapped.
        size: Size of that dimension, which is more than `term.dims[dim]` if all are alike.
        taps: The elements read by each new element.
    """
    pitch = list(term.pitch)
    old = pitch[dim] = pitch[dim] or None
    if old is not None:
        pitch[dim] = IRREGULAR
        if old.step is not None and taps.ratio is not None:
            # The pattern repeats after the first number n of new units for which n * ratio is a
            # multiple of the old period. After upsampling by 2 (step 1/2, period 2), a stride of 3
            # reads the positions 0, 1, 3, 4, 6, ...: step 3/2, and (3 / 2).denominator = 2. A
            # stride of 2 reads 0, 1, 2, ...: step 1, and (2 / 2).denominator = 1.
            period = (taps.ratio / old.period).denominator
            pitch[dim] = Pitch(old.step * taps.ratio, period)
    if term.dims[dim] == 1 and old is None and not taps.some_empty:
        return term  # alike along this dimension before, and so after
    if term.dims[dim] == 1 and old and old.step is not None and 1 < old.period <= size:
        # a map of 1 by 1 after pixel shuffling: alike so far, but not beyond the borders
        wide = [*term.dims[:dim], size, *term.dims[dim + 1 :]]
        seen, bounds = term.apply(lambda x: x.expand(-1, *wide))
        term = Term(seen, bounds, term.pitch)
    # `seen` follows the taps inside the tensor. `bounds` follows those that a tensor without
    # borders would have, but only along the axis: padding of channels adds no input positions.
    seen_at = taps.actual
    if term.dims[dim] == 1 and size > 1:  # alike along it: the stored element stands for all
        pitch[dim] = old and IRREGULAR
        seen_at = torch.where(seen_at == NO_TAP, NO_TAP, 0)
        bounds_at = torch.where(taps.virtual == NO_TAP, NO_TAP, 0)
        if old is None:
            bounds_at = seen_at
        source = term.bounds
    elif old is None:
        bounds_at, source = seen_at, term.bounds
    else:
        bounds_at, source = _extrapolate(term.bounds, dim, old, taps.virtual)
    seen = _union_of_taps(term.seen, dim, seen_at, term.empty_value)
    return Term(seen, _union_of_taps(source, dim, bounds_at, EMPTY), tuple(pitch))


def _union_of_taps(values: Tensor, dim: int, taps: Tensor, empty_value: int) -> Tensor:
    """Return the maximum over taps (k, units) along a dimension of values (L or 2, *dims)."""
    axis = dim + 1
    shape = list(values.shape)
    shape[axis] = taps.shape[1]
    if math.prod(shape) * values.element_size() > MAX_TERM_BYTES:
        raise MemoryError(
            f"The sets of a tensor of shape {tuple(shape[1:])} along this axis would take "
            f"{math.prod(shape) * values.element_size() / 2**30:.0f} GB. Analyze a smaller input."
        )
    if bool((taps == NO_TAP).any()):  # they read one more element at the end, an empty set
        shape[axis] = 1
        taps = torch.where(taps == NO_TAP, values.shape[axis], taps)
        values = torch.cat([values, values.new_full(shape, empty_value)], axis)
    # tap by tap rather than all at once, which would take k times the memory
    result = values.index_select(axis, taps[0])
    for row in taps[1:]:
        torch.maximum(result, values.index_select(axis, row), out=result)
    return result


def _extrapolate(
    bounds: Tensor, dim: int, pitch: Pitch, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Return taps and bounds with the pattern continued to the units outside the tensor.

    A convolution with padding 1 taps unit -1, which does not exist. If the units 0, 1, 2 have the
    sets {0}, {2}, {4} (step 2, period 1), unit -1 would have {-2}: unit 0, moved by -1 * 2.

    Args:
        bounds: (2, *dims) of the units of the tensor.
        dim: Dimension of the units.
        pitch: Their pitch.
        positions: The units tapped, (k, units), some of them outside the tensor.

    Returns:
        The taps counted from the first unit tapped, and the bounds (2, *dims) from that unit on.
    """
    axis = dim + 1
    size = bounds.shape[axis]
    tapped = positions[positions != NO_TAP]
    if not tapped.numel():
        return positions, bounds
    first, last = int(tapped.min()), int(tapped.max())
    if first >= 0 and last < size:
        return positions, bounds
    units = torch.arange(first, last + 1)
    inside = (units >= 0) & (units < size)
    if pitch.step is None or size < pitch.period:  # no pattern, or less than one period of it
        outside = (positions < 0) | (positions >= size)
        return torch.where(outside, NO_TAP, positions), bounds
    # each unit outside repeats the one at the same phase in the first period
    like = torch.where(inside, units, units % pitch.period)
    shift = torch.tensor(
        [
            int(pitch.step * (unit - base))  # a whole number: unit - base is a multiple of period
            for unit, base in zip(units.tolist(), like.tolist(), strict=True)
        ]
    )
    shape = [1] * bounds.dim()
    shape[axis] = len(units)
    values = bounds.index_select(axis, like)
    moved_by = torch.stack([-shift, shift]).view(2, *shape[1:])  # minus the first, and the last
    values = torch.where(values == EMPTY, EMPTY, values + moved_by)
    return torch.where(positions == NO_TAP, NO_TAP, positions - first), values
