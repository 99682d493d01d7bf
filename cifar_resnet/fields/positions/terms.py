"""Sets of input positions for the elements of a tensor, stored without repetition.

It knows sets, windows and dimensions; it must not know networks or operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from cifar_resnet.fields.positions.taps import NOWHERE, Taps

NOTHING = -(2**40)  # a bound of the empty set; every real one is far larger
LARGEST_TERM = 2**31  # bytes
LONGEST_SET = 4096  # longer axes are followed by first and last position only


@dataclass(frozen=True)
class Pitch:
    """How the positions advance along a tensor dimension that runs along the input axis.

    Attributes:
        step: Input positions per unit, a fraction after upsampling; None where it is irregular.
        period: After so many units the pattern repeats (2 after upsampling by 2).
        parts: The dimensions that a reshape has merged into this one, to be told apart again by the
            next: size, pitch, and whether the elements differ along it.
    """

    step: Fraction | None
    period: int = 1
    parts: tuple[tuple[int, Pitch | None, bool], ...] = ()


IRREGULAR = Pitch(None)


@dataclass(frozen=True)
class Term:
    """Sets for all elements, stored only for the dimensions along which they differ.

    Attributes:
        seen: The positions that are really read: uint8 (L, *dims), or their bounds as below.
        bounds: (2, *dims): minus the first and the last position of the extent as if no border
            existed (Distill's sense); of the empty set, `NOTHING` twice.
        pitch: One for each tensor dimension; None where it does not run along the axis.

    Each of `dims` is the size of the tensor dimension, or 1 where all elements are alike.
    """

    seen: Tensor
    bounds: Tensor
    pitch: tuple[Pitch | None, ...]

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.bounds.shape[1:])

    @property
    def empty(self) -> int:
        """What `seen` holds for the empty set."""
        return 0 if self.seen.dtype == torch.uint8 else NOTHING

    def each(self, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        return change(self.seen), change(self.bounds)


def united(terms: Sequence[Term], dims: Sequence[int]) -> Term:
    if len(terms) == 1:
        return terms[0]
    # the axis's own dimension in front is the same for all
    seen = terms[0].seen.expand(-1, *dims)
    bounds = terms[0].bounds.expand(-1, *dims)
    for term in terms[1:]:
        seen = torch.maximum(seen, term.seen)
        bounds = torch.maximum(bounds, term.bounds)
    pitch = tuple(common_pitch(ps) for ps in zip(*(term.pitch for term in terms), strict=True))
    return Term(seen, bounds, pitch)


def merged(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Fewer terms where that costs nothing: one is merged into another that has all its dims."""
    merged: list[Term] = []
    for term in sorted(terms, key=lambda term: math.prod(term.dims), reverse=True):
        for place, other in enumerate(merged):
            if all(mine in (1, theirs) for mine, theirs in zip(term.dims, other.dims, strict=True)):
                if term is not other:
                    merged[place] = united([other, term], other.dims)
                break
        else:
            merged.append(term)
    return tuple(merged)


def common_pitch(pitches: Sequence[Pitch | None]) -> Pitch | None:
    first = pitches[0]
    if all(pitch == first for pitch in pitches):
        return first
    # parts are kept only where all agree
    steps = {pitch.step if pitch is not None else None for pitch in pitches}
    if len(steps) == 1 and None not in steps:
        return Pitch(steps.pop(), math.lcm(*(pitch.period for pitch in pitches if pitch)))
    return IRREGULAR


def centers(term: Term, dim: int) -> Tensor:
    """Twice the center of each unit along a dimension."""
    others = [d + 1 for d in range(len(term.dims)) if d != dim]
    bounds = term.bounds.amax(others) if others else term.bounds
    return bounds[1] - bounds[0]


def windowed(term: Term, dim: int, size: int, taps: Taps) -> Term:
    pitch = list(term.pitch)
    old = pitch[dim]
    if old is not None:
        pitch[dim] = IRREGULAR
        if old.step is not None and taps.ratio is not None:
            period = (taps.ratio / old.period).denominator
            pitch[dim] = Pitch(old.step * taps.ratio, period)
    if term.dims[dim] == 1 and old is None and not taps.some_empty:
        return term  # alike along this dimension before, and so after
    seen_at = taps.actual
    if term.dims[dim] == 1 and size > 1:  # alike along it: the first stands for all
        pitch[dim] = old and IRREGULAR
        seen_at = torch.where(seen_at == NOWHERE, NOWHERE, 0)
        bounds_at = torch.where(taps.virtual == NOWHERE, NOWHERE, 0)
        if old is None:  # not along the axis: where nothing is tapped, there is nothing
            bounds_at = seen_at
        source = term.bounds
    elif old is None:
        bounds_at, source = seen_at, term.bounds
    else:
        bounds_at, source = _beyond_borders(term.bounds, dim, old, taps.virtual)
    seen = _tapped(term.seen, dim, seen_at, term.empty)
    return Term(seen, _tapped(source, dim, bounds_at, NOTHING), tuple(pitch))


def _tapped(values: Tensor, dim: int, taps: Tensor, empty: int) -> Tensor:
    """The maximum over taps (k, units) along a dimension of values (·, *dims)."""
    axis = dim + 1
    shape = list(values.shape)
    shape[axis] = taps.shape[1]
    if math.prod(shape) * values.element_size() > LARGEST_TERM:
        raise MemoryError(
            f"The sets of a tensor of shape {tuple(shape[1:])} along this axis would take "
            f"{math.prod(shape) * values.element_size() / 2**30:.0f} GB. Analyse a smaller input."
        )
    if bool((taps == NOWHERE).any()):
        shape[axis] = 1
        taps = torch.where(taps == NOWHERE, values.shape[axis], taps)
        values = torch.cat([values, values.new_full(shape, empty)], axis)
    result = values.index_select(axis, taps[0])
    for row in taps[1:]:
        torch.maximum(result, values.index_select(axis, row), out=result)
    return result


def _beyond_borders(
    bounds: Tensor, dim: int, pitch: Pitch, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Bounds of the units from the first to the last position that is tapped, also of those outside
    the tensor, where the pattern goes on; and the positions counted from the first.
    """
    axis = dim + 1
    size = bounds.shape[axis]
    tapped = positions[positions != NOWHERE]
    if not tapped.numel():
        return positions, bounds
    first, last = int(tapped.min()), int(tapped.max())
    if first >= 0 and last < size:
        return positions, bounds
    units = torch.arange(first, last + 1)
    inside = (units >= 0) & (units < size)
    if pitch.step is None or size < pitch.period:  # no pattern: nothing is known out there
        away = torch.where((positions < 0) | (positions >= size), NOWHERE, positions)
        return away, bounds
    like = torch.where(inside, units, units % pitch.period)
    shift = torch.tensor(
        [
            int(pitch.step * (unit - base))
            for unit, base in zip(units.tolist(), like.tolist(), strict=True)
        ]
    )
    shape = [1] * bounds.dim()
    shape[axis] = len(units)
    values = bounds.index_select(axis, like)
    moved_by = torch.stack([-shift, shift]).view(2, *shape[1:])
    values = torch.where(values == NOTHING, NOTHING, values + moved_by)
    return torch.where(positions == NOWHERE, NOWHERE, positions - first), values
