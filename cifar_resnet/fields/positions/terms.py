"""How sets of input positions are stored: one term holds the sets of all elements of a tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_resnet.fields.positions.packing import (
    check_bytes,
    distinct,
    distinct_pairs,
    distinct_sets,
)

EMPTY = -(2**40)  # both bounds of the empty set; every real bound is far larger
# A term of more elements and bytes is packed: each different set is stored once.
MAX_DIRECT, MAX_DIRECT_BYTES = 2048, 2**20
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

    A large term is packed, as most of its sets are equal. Branches that are concatenated have
    different sets in different channels; for 1,000 channels of 4 branches and 32 rows, 128 sets
    are stored, and 32,000 numbers that say which of them each element has.

    Attributes:
        seen: The positions that are really read, as 0 and 1: uint8 (L, *dims) for an axis of length
            L. If L is above `MAX_SET_LENGTH`, the bounds of these positions: int64 (2, *dims). If
            the term is packed, (L, number of sets) or (2, number of sets).
        bounds: Extent of each set as if the input had no borders: int64 (2, *dims) or, if packed,
            (2, number of sets): minus the first position and the last one. `EMPTY` twice for the
            empty set.
        pitch: One for each tensor dimension. None if the dimension does not run along the axis.
        index: Number of the set of each element: int64 (*dims). None if the term is not packed.

    Each of `dims` is the size of the tensor dimension, or 1 if all elements along it are alike.
    """

    seen: Tensor
    bounds: Tensor
    pitch: tuple[Pitch | None, ...]
    index: Tensor | None = None

    # The first position is stored with a minus sign so that the union of two sets is the maximum of
    # the two tensors, for `bounds` as for `seen`: {2, 3} | {3, ..., 7} is max((-2, 3), (-3, 7)) =
    # (-2, 7).

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.bounds.shape[1:] if self.index is None else self.index.shape)

    @property
    def empty_value(self) -> int:
        """Value of `seen` for the empty set."""
        return 0 if self.seen.dtype == torch.uint8 else EMPTY

    @property
    def nbytes(self) -> int:
        index = 0 if self.index is None else self.index.nbytes
        return self.seen.nbytes + self.bounds.nbytes + index

    def fits(self, number: int) -> bool:
        """Whether so many sets are few enough to be stored one by one."""
        return number <= MAX_DIRECT or number * self._set_bytes <= MAX_DIRECT_BYTES

    @property
    def _set_bytes(self) -> int:
        return len(self.seen) * self.seen.element_size() + 2 * self.bounds.element_size()

    def packed(self) -> Term:
        """Return the same term with `index`."""
        if self.index is not None:
            return self
        index = torch.arange(math.prod(self.dims)).view(self.dims)
        return Term(self.seen.flatten(1), self.bounds.flatten(1), self.pitch, index)

    def direct(self) -> Term:
        """Return the same term without `index`."""
        if self.index is None:
            return self
        check_bytes(self.index.numel() * self._set_bytes)
        return Term(self.seen[:, self.index], self.bounds[:, self.index], self.pitch)

    def by_size(self) -> Term:
        """Return the same term, packed if it is large."""
        if self.fits(math.prod(self.dims)):
            return self.direct()
        if self.index is not None:
            return self
        flat = self.packed()
        seen, bounds, index = distinct_sets(flat.seen, flat.bounds)
        return Term(seen, bounds, self.pitch, index.view(self.dims))

    def rearrange(
        self,
        change: Callable[[Tensor], Tensor],
        pitch: Sequence[Pitch | None],
        size: int | None = None,
    ) -> Term:
        """Move or repeat elements.

        Args:
            change: A function from (n, *dims) to (n, *new dims).
            pitch: The pitch after it.
            size: Number of elements after it. If None, at most as many as before.
        """
        size = math.prod(self.dims) if size is None else size
        if self.index is None and self.fits(size):
            return Term(change(self.seen), change(self.bounds), tuple(pitch))
        check_bytes(8 * size)
        old = self.packed()
        assert old.index is not None
        index = change(old.index[None])[0]
        return Term(old.seen, old.bounds, tuple(pitch), index).by_size()

    def extent(self) -> Tensor:
        """Return the bounds of each element: (2, *dims)."""
        return self.bounds if self.index is None else self.bounds[:, self.index]

    def along(self, dim: int, change: Callable[[Term], Term]) -> Term:
        """Change a term along one dimension, the same rows of elements only once.

        Args:
            dim: The dimension.
            change: A function of terms with two dims, of which the second is the dimension.
        """
        old = self.packed()
        assert old.index is not None
        others = [*old.dims[:dim], *old.dims[dim + 1 :]]
        rows = old.index.movedim(dim, -1).reshape(math.prod(others), old.dims[dim])
        first, same = distinct(rows)
        rows = rows[first]
        few = Term(old.seen, old.bounds, (None, self.pitch[dim]), rows).direct()
        new = change(few).packed()
        assert new.index is not None
        seen, bounds, number = distinct_sets(new.seen, new.bounds)
        check_bytes(8 * len(same) * new.dims[1])
        index = number[new.index][same].view(*others, new.dims[1]).movedim(-1, dim)
        pitch = (*self.pitch[:dim], new.pitch[1], *self.pitch[dim + 1 :])
        return Term(seen, bounds, pitch, index).by_size()

    def unite(self, dims: Sequence[int]) -> Term:
        """Return the union over some dimensions, which keep the size 1."""
        pitch = tuple(
            IRREGULAR if dim in dims and old else old for dim, old in enumerate(self.pitch)
        )
        if all(self.dims[dim] == 1 for dim in dims):  # alike along them
            return Term(self.seen, self.bounds, pitch, self.index)
        axes = [dim + 1 for dim in dims]
        if 0 in self.dims:  # nothing is read
            after = [1 if dim in dims else size for dim, size in enumerate(self.dims)]
            seen = self.seen.new_full((len(self.seen), *after), self.empty_value)
            return Term(seen, self.bounds.new_full((2, *after), EMPTY), pitch)
        if self.index is None:
            seen, bounds = (x.amax(axes, keepdim=True) for x in (self.seen, self.bounds))
            return Term(seen, bounds, pitch)
        after = [1 if dim in dims else size for dim, size in enumerate(self.dims)]
        kept = [dim for dim in range(len(after)) if dim not in dims]
        rows = self.index.permute(*kept, *dims).reshape(math.prod(after), -1)
        first, same = distinct(rows)  # united alike if they have the same rows ...
        columns = rows[first].T
        columns = columns[distinct(columns)[0]]  # ... and with the same columns only once
        seen, bounds = (_union_of_rows(x, columns) for x in (self.seen, self.bounds))
        seen, bounds, number = distinct_sets(seen, bounds)
        return Term(seen, bounds, pitch, number[same].view(after)).by_size()


def _union_of_rows(values: Tensor, rows: Tensor) -> Tensor:
    """Return the maximum of values (n, sets) over rows of sets (k, *dims): (n, *dims)."""
    step = max(1, 2**25 // max(1, values[:, :1].nbytes * rows[0].numel()))
    result = values[:, rows[0]]
    for start in range(1, len(rows), step):
        torch.maximum(result, values[:, rows[start : start + step]].amax(1), out=result)
    return result


def _combine(a: Term, b: Term, dims: Sequence[int]) -> Term:
    """Return the union of two packed terms."""
    check_bytes(4 * 8 * math.prod(dims))
    assert a.index is not None
    assert b.index is not None
    pairs = a.index.expand(dims), b.index.expand(dims), b.bounds.shape[1]
    mine, theirs, index = distinct_pairs(*pairs)
    seen = torch.maximum(a.seen[:, mine], b.seen[:, theirs])
    bounds = torch.maximum(a.bounds[:, mine], b.bounds[:, theirs])
    seen, bounds, number = distinct_sets(seen, bounds)
    return Term(seen, bounds, a.pitch, number[index])


def unite_terms(terms: Sequence[Term], dims: Sequence[int]) -> Term:
    """Return the union of terms as one term with the given dims."""
    if len(terms) == 1:
        return terms[0]
    pitch = tuple(common_pitch(ps) for ps in zip(*(term.pitch for term in terms), strict=True))
    if not terms[0].fits(math.prod(dims)):
        united = terms[0].packed()
        for term in terms[1:]:
            united = _combine(united, term.packed(), dims)
        return replace(united, pitch=pitch)
    # -1 keeps the leading dimension (L or 2), which is the same for all
    seen = terms[0].seen.expand(-1, *dims)
    bounds = terms[0].bounds.expand(-1, *dims)
    for term in terms[1:]:
        seen = torch.maximum(seen, term.seen)
        bounds = torch.maximum(bounds, term.bounds)
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
    bounds = term.extent().amax(others) if others else term.extent()
    return bounds[1] - bounds[0]  # first + last, as bounds[0] is minus the first


def read_term(term: Term, elements: Tensor, pitch: Sequence[Pitch | None]) -> Term:
    """Return the union of k old elements for each new one.

    Args:
        term: The sets before.
        elements: int64 (k, *new dims), numbers of stored elements in the order of memory. One more
            than the last stands for the empty set.
        pitch: The pitch of the result.
    """
    size = elements[0].numel()
    empty = [(term.seen, term.empty_value), (term.bounds, EMPTY)]
    if term.index is None and term.fits(size):
        flat = [F.pad(x.flatten(1), (0, 1), value=value) for x, value in empty]
        return Term(
            _union_of_rows(flat[0], elements), _union_of_rows(flat[1], elements), tuple(pitch)
        )
    check_bytes(4 * elements.nbytes)
    old = term.packed()
    assert old.index is not None
    seen, bounds = (F.pad(x.flatten(1), (0, 1), value=value) for x, value in empty)
    numbers = F.pad(old.index.flatten(), (0, 1), value=old.bounds.shape[1])[elements]
    result = Term(seen, bounds, tuple(pitch), numbers[0])
    for tap in numbers[1:]:
        result = _combine(result, Term(seen, bounds, tuple(pitch), tap), tap.shape)
    return result.by_size()
