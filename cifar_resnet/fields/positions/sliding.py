"""Windows along a dimension of a term: unions of neighboring elements, and of elements so far."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from cifar_resnet.fields.positions.packing import check_bytes
from cifar_resnet.fields.positions.taps import NO_TAP, Taps
from cifar_resnet.fields.positions.terms import EMPTY, IRREGULAR, Pitch, Term, read_term


def window_term(term: Term, dim: int, size: int, taps: Taps) -> Term:
    """Return the sets of new elements, each the union of the elements that it taps.

    Args:
        term: The sets before.
        dim: Dimension along which elements are tapped.
        size: Size of that dimension, which is more than `term.dims[dim]` if all are alike.
        taps: The elements read by each new element.
    """
    if term.dims[dim] == 1 and not term.pitch[dim] and not taps.some_empty:
        return term  # alike along this dimension before, and so after
    if term.index is None and term.fits(math.prod(term.dims) // term.dims[dim] * taps.size):
        return _slide(term, dim, size, taps)
    if len(taps.actual) == 1 and torch.equal(taps.actual, taps.virtual) and term.dims[dim] > 1:
        return _select(term, dim, taps)
    return term.along(dim, lambda few: _slide(few, 1, size, taps))


def _select(term: Term, dim: int, taps: Taps) -> Term:
    """Move or repeat elements along a dimension."""
    pitch = list(term.pitch)
    pitch[dim] = _new_pitch(term.pitch[dim] or None, taps)
    size, count = term.dims[dim], math.prod(term.dims)
    at = taps.actual[0]
    shape = [*term.dims[:dim], taps.size, *term.dims[dim + 1 :]]
    inner = math.prod(term.dims[dim + 1 :])
    check_bytes(2 * 8 * math.prod(shape))
    elements = torch.arange(count).view(-1, size, inner)
    some = elements.index_select(1, at.clamp(min=0))
    elements = torch.where((at == NO_TAP)[:, None], count, some).view(1, *shape)
    return read_term(term, elements, pitch)


def _slide(term: Term, dim: int, size: int, taps: Taps) -> Term:
    """Follow a window along a dimension of a term that is not packed."""
    pitch = list(term.pitch)
    old = pitch[dim] = pitch[dim] or None
    pitch[dim] = _new_pitch(old, taps)
    if term.dims[dim] == 1 and old and old.step is not None and 1 < old.period <= size:
        # a map of 1 by 1 after pixel shuffling: alike so far, but not beyond the borders
        wide = [*term.dims[:dim], size, *term.dims[dim + 1 :]]
        term = Term(term.seen.expand(-1, *wide), term.bounds.expand(-1, *wide), term.pitch)
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


def _new_pitch(old: Pitch | None, taps: Taps) -> Pitch | None:
    if old is None or old.step is None or taps.ratio is None:
        return old and IRREGULAR
    # The pattern repeats after the first number n of new units for which n * ratio is a multiple of
    # the old period. After upsampling by 2 (step 1/2, period 2), a stride of 3 reads the positions
    # 0, 1, 3, 4, 6, ...: step 3/2, and (3 / 2).denominator = 2. A stride of 2 reads 0, 1, 2, ...:
    # step 1, and (2 / 2).denominator = 1.
    return Pitch(old.step * taps.ratio, (taps.ratio / old.period).denominator)


def _union_of_taps(values: Tensor, dim: int, taps: Tensor, empty_value: int) -> Tensor:
    """Return the maximum over taps (k, units) along a dimension of values (L or 2, *dims)."""
    axis = dim + 1
    shape = list(values.shape)
    shape[axis] = taps.shape[1]
    check_bytes(math.prod(shape) * values.element_size())
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


def cumulate_term(term: Term, dim: int) -> Term:
    """Give each element the union of itself and those before it along a dimension."""

    def cumulate(few: Term, dim: int) -> Term:
        # the maximum so far is the union so far
        seen, bounds = (x.cummax(dim + 1).values for x in (few.seen, few.bounds))
        return Term(seen, bounds, few.pitch)

    pitch = list(term.pitch)
    pitch[dim] = pitch[dim] and IRREGULAR
    if term.dims[dim] > 1 and term.index is None:
        term = cumulate(term, dim)
    elif term.dims[dim] > 1:
        term = term.along(dim, lambda few: cumulate(few, 1))
    return replace(term, pitch=tuple(pitch))
