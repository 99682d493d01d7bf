"""Which input positions each element of a tensor depends on, along one axis of the input.

It knows sets and tensor dimensions; it must not know networks, layers or operations.

Every rule for an operation is made of these few moves, and all of them commute with the union of
sets; that is why following one axis at a time is exact, whatever the branches do.

Shapes in this file: L is the length of the input axis, s1, s2, ... the shape of the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from cifar_resnet.fields.taps import NOWHERE, Taps, moved

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


@dataclass(frozen=True)
class Support:
    """A tensor's sets: the union of its terms.

    Terms of different dims stay apart (the query's and the key's part of attention scores, say), so
    that their product is never stored.

    Attributes:
        shape: Shape of the tensor.
        terms: At least one.
        misaligned: Where branches with different centres or steps were merged.
        shared: Whether a union over all that there was along the axis is part of every set.
    """

    shape: tuple[int, ...]
    terms: tuple[Term, ...]
    misaligned: tuple[str, ...] = ()
    shared: bool = False

    @classmethod
    def of_input(cls, shape: Sequence[int], dim: int) -> Support:
        """Element i along `dim` is position i."""
        length = shape[dim]
        dims = [1] * len(shape)
        dims[dim] = length
        positions = torch.arange(length)
        bounds = torch.stack([-positions, positions]).view(2, *dims)
        seen = bounds
        if length <= LONGEST_SET:
            seen = torch.eye(length, dtype=torch.uint8).view(length, *dims)
        pitch: list[Pitch | None] = [None] * len(shape)
        pitch[dim] = Pitch(Fraction(1))
        return cls(tuple(shape), (Term(seen, bounds, tuple(pitch)),))

    @classmethod
    def of_nothing_like(cls, other: Support, shape: Sequence[int]) -> Support:
        """Empty sets, along the axis of another support."""
        ones = [1] * len(shape)
        term = other.terms[0]
        seen = term.seen.new_full((term.seen.shape[0], *ones), term.empty)
        bounds = term.bounds.new_full((2, *ones), NOTHING)
        return cls(tuple(shape), (Term(seen, bounds, (None,) * len(shape)),))

    # -- the moves ----------------------------------------------------------------------------

    def reduce(self, dims: Iterable[int], *, keepdim: bool = True) -> Support:
        """The union over dimensions, as a sum has."""
        dims = sorted({dim % len(self.shape) for dim in dims})
        shape = [1 if dim in dims else size for dim, size in enumerate(self.shape)]
        reduced = self._with(self._union_over(dims), tuple(shape))
        return reduced if keepdim else reduced.drop(dims)

    def blend(self, dims: Iterable[int]) -> Support:
        """Each element gets the union over dimensions, as softmax or a normalisation does."""
        dims = sorted({dim % len(self.shape) for dim in dims})
        return self._with(_merged(self._union_over(dims)))

    def _with(self, terms: tuple[Term, ...], shape: tuple[int, ...] | None = None) -> Support:
        """After a union over dimensions: is anything left by which units differ?"""
        before = any(math.prod(term.dims) > 1 for term in self.terms)
        now = any(math.prod(term.dims) == 1 for term in terms)
        return replace(
            self, terms=terms, shape=shape or self.shape, shared=self.shared or (before and now)
        )

    def _union_over(self, dims: Sequence[int]) -> tuple[Term, ...]:
        if not dims:
            return self.terms
        axes = [dim + 1 for dim in dims]
        terms = []
        for term in self.terms:
            wide = any(term.dims[dim] > 1 for dim in dims)
            seen, bounds = term.each(
                lambda x, wide=wide: x.amax(axes, keepdim=True) if wide else x  # type: ignore[misc]
            )
            pitch = [
                IRREGULAR if dim in dims and old is not None else old
                for dim, old in enumerate(term.pitch)
            ]
            terms.append(Term(seen, bounds, tuple(pitch)))
        return tuple(terms)

    def groups(self, dim: int, number: int) -> Support:
        """Elements of one of `number` equal groups along a dimension get their union; shape kept
        as (..., number, ...)."""
        size = self.shape[dim]
        split = self.reshape((*self.shape[:dim], number, size // number, *self.shape[dim + 1 :]))
        return split.reduce([dim + 1], keepdim=False)

    def window(self, dim: int, taps: Taps) -> Support:
        """New element u along a dimension is the union of the elements that u taps."""
        shape = list(self.shape)
        shape[dim] = taps.size
        terms = tuple(_windowed(term, dim, self.shape[dim], taps) for term in self.terms)
        moved = replace(self, shape=tuple(shape), terms=terms)
        if taps.takes_all and any(term.pitch[dim] for term in self.terms):
            return replace(moved, shared=True)
        return moved

    def cumulate(self, dim: int) -> Support:
        """Each element gets the union of those before it and itself, as cumsum does."""
        dim %= len(self.shape)
        terms = []
        for term in self.terms:
            wide = term.dims[dim] > 1
            seen, bounds = term.each(
                lambda x, wide=wide: x.cummax(dim + 1).values if wide else x  # type: ignore[misc]
            )
            pitch = list(term.pitch)
            pitch[dim] = pitch[dim] and IRREGULAR
            terms.append(Term(seen, bounds, tuple(pitch)))
        return replace(self, terms=tuple(terms))

    def gather(self, dim: int, index: Tensor) -> Support:
        """Element (i, j) is element (index[i, j], j), as `torch.gather` along dimension 0 does."""
        dim %= len(self.shape)
        terms = []
        for term in self.terms:
            wide = [
                own if axis == dim else size
                for axis, (own, size) in enumerate(zip(self.shape, index.shape, strict=True))
            ]
            narrow = [
                slice(0, size if own > 1 else 1) for own, size in zip(term.dims, wide, strict=True)
            ]
            seen, bounds = term.each(
                lambda x, narrow=narrow, wide=wide: (
                    x[:, *narrow]  # type: ignore[misc]
                    .expand(-1, *wide)
                    .gather(dim + 1, index.expand(x.shape[0], *index.shape))
                )
            )
            pitch = tuple(p and IRREGULAR for p in term.pitch)
            terms.append(Term(seen, bounds, pitch))
        return replace(self, shape=tuple(index.shape), terms=tuple(terms))

    def permute(self, order: Sequence[int]) -> Support:
        order = [dim % len(self.shape) for dim in order]
        terms = []
        for term in self.terms:
            seen, bounds = term.each(lambda x: x.permute(0, *(dim + 1 for dim in order)))
            terms.append(Term(seen, bounds, tuple(term.pitch[dim] for dim in order)))
        return replace(self, shape=tuple(self.shape[dim] for dim in order), terms=tuple(terms))

    def insert(self, dim: int) -> Support:
        """A new dimension of size 1 before `dim`."""
        dim %= len(self.shape) + 1
        terms = []
        for term in self.terms:
            seen, bounds = term.each(lambda x: x.unsqueeze(dim + 1))
            terms.append(Term(seen, bounds, (*term.pitch[:dim], None, *term.pitch[dim:])))
        return replace(self, shape=(*self.shape[:dim], 1, *self.shape[dim:]), terms=tuple(terms))

    def drop(self, dims: Iterable[int]) -> Support:
        """Without dimensions of size 1."""
        gone = {dim % len(self.shape) for dim in dims}
        kept = [dim for dim in range(len(self.shape)) if dim not in gone]
        terms = []
        for term in self.terms:
            shape = [term.dims[dim] for dim in kept]
            seen, bounds = term.each(lambda x, shape=shape: x.reshape(-1, *shape))  # type: ignore[misc]
            terms.append(Term(seen, bounds, tuple(term.pitch[dim] for dim in kept)))
        return replace(self, shape=tuple(self.shape[dim] for dim in kept), terms=tuple(terms))

    def expand(self, shape: Sequence[int]) -> Support:
        """Broadcast to a shape, with new dimensions in front."""
        missing = len(shape) - len(self.shape)
        support = self
        for _ in range(missing):
            support = support.insert(0)
        terms = tuple(
            replace(
                term,
                pitch=tuple(
                    pitch if old == new else pitch and IRREGULAR
                    for pitch, old, new in zip(term.pitch, support.shape, shape, strict=True)
                ),
            )
            for term in support.terms
        )
        return replace(support, shape=tuple(shape), terms=terms)

    def reshape(self, shape: Sequence[int]) -> Support:
        """The same elements, in the same order, in another shape; one size may be -1."""
        known = math.prod(size for size in shape if size != -1)
        shape = tuple(size if size != -1 else math.prod(self.shape) // known for size in shape)
        if shape == self.shape:
            return self
        terms = tuple(_reshaped(term, self.shape, shape) for term in self.terms)
        return replace(self, shape=shape, terms=terms)

    # -- questions ----------------------------------------------------------------------------

    @property
    def unit_dims(self) -> tuple[int, ...]:
        """The tensor dimensions that run along the axis."""
        return tuple(
            dim
            for dim in range(len(self.shape))
            if any(term.pitch[dim] is not None for term in self.terms)
        )

    @property
    def stride(self) -> Fraction | None:
        """Positions per unit, if the axis runs along one dimension and is regular there."""
        pitches = {term.pitch[dim] for term in self.terms for dim in self.unit_dims}
        steps = {pitch.step for pitch in pitches - {None} if pitch is not None}
        return steps.pop() if len(self.unit_dims) == len(steps) == len(pitches) == 1 else None

    def extent(self) -> Tensor:
        """The bounds of all terms together."""
        bounds = self.terms[0].bounds
        for term in self.terms[1:]:
            bounds = torch.maximum(bounds, term.bounds)
        return bounds

    def only(self, kept: Sequence[int]) -> Support:
        """With the union over all dimensions but `kept`; the shape stays."""
        others = [dim for dim in range(len(self.shape)) if dim not in kept]
        return replace(self, terms=_merged(self._union_over(others)))

    def collapsed(self, kept: Sequence[int]) -> Term:
        """One term, with the union over all dimensions but `kept`."""
        others = [dim for dim in range(len(self.shape)) if dim not in kept]
        terms = self._union_over(others)
        dims = [max(term.dims[dim] for term in terms) for dim in range(len(self.shape))]
        return _union(terms, dims)


def union(
    shape: Sequence[int], supports: Sequence[Support], where: str = "", *, compare: bool = True
) -> Support:
    """The union of tensors that are broadcast to one shape, as a sum's or a product's operands.

    Args:
        shape: Shape of the result.
        supports: One for each operand that depends on the input.
        where: Name of the merging operation.
        compare: Whether different centres of the operands count as misaligned.
    """
    supports = [support.expand(shape) for support in supports]
    misaligned = [name for support in supports for name in support.misaligned]
    if compare and any(not _aligned(supports[0], other) for other in supports[1:]):
        misaligned.append(where)
    terms = _merged([term for support in supports for term in support.terms])
    shared = any(support.shared for support in supports)
    return Support(tuple(shape), terms, tuple(dict.fromkeys(misaligned)), shared)


def concatenate(
    supports: Sequence[Support | None],
    sizes: Sequence[int],
    dim: int,
    where: str = "",
    *,
    compare: bool = True,
) -> Support:
    """Tensors side by side along a dimension; None for one that depends on nothing."""
    known = [support for support in supports if support is not None]
    shape = list(known[0].shape)
    dim %= len(shape)
    total = shape[dim] = sum(sizes)
    aligned = all(
        _aligned(known[0].reduce([dim]), other.reduce([dim])) for other in known[1:]
    ) or any(term.pitch[dim] for support in known for term in support.terms)
    if len(known) == len(supports) and all(len(support.terms) == 1 for support in known):
        # the common case, without a detour: branches side by side in the channels
        terms = [support.terms[0] for support in known]
        others = [max(sizes) for sizes in zip(*(term.dims for term in terms), strict=True)]
        alike = all(term.dims[dim] == 1 for term in terms) and all(
            term.dims == terms[0].dims and torch.equal(term.seen, terms[0].seen)
            and torch.equal(term.bounds, terms[0].bounds)
            for term in terms[1:]
        )  # fmt: skip
        if alike and total > 1 and terms[0].pitch[dim] is None:
            joined = replace(known[0], shape=tuple(shape), terms=(terms[0],))
        else:
            dims = [
                [*others[:dim], size, *others[dim + 1 :]] for size in sizes
            ]  # of each operand, filled out
            seen = torch.cat(
                [t.seen.expand(-1, *d) for t, d in zip(terms, dims, strict=True)], dim + 1
            )
            bounds = torch.cat(
                [t.bounds.expand(-1, *d) for t, d in zip(terms, dims, strict=True)], dim + 1
            )
            pitch = [
                _common_pitch(pitches) for pitches in zip(*(t.pitch for t in terms), strict=True)
            ]
            pitch[dim] = pitch[dim] and IRREGULAR
            joined = Support(tuple(shape), (Term(seen, bounds, tuple(pitch)),))
    else:
        placed = []
        start = 0
        for support, size in zip(supports, sizes, strict=True):
            if support is not None:
                placed.append(support.window(dim, moved(size, range(-start, total - start))))
            start += size
        joined = union(shape, placed, compare=False)
    misaligned = [name for support in known for name in support.misaligned]
    if compare and not aligned:
        misaligned.append(where)
    shared = any(support.shared for support in known)
    return replace(joined, misaligned=tuple(dict.fromkeys(misaligned)), shared=shared)


# -- terms ------------------------------------------------------------------------------------


def _union(terms: Sequence[Term], dims: Sequence[int]) -> Term:
    if len(terms) == 1:
        return terms[0]
    # the axis's own dimension in front is the same for all
    seen = terms[0].seen.expand(-1, *dims)
    bounds = terms[0].bounds.expand(-1, *dims)
    for term in terms[1:]:
        seen = torch.maximum(seen, term.seen)
        bounds = torch.maximum(bounds, term.bounds)
    pitch = tuple(_common_pitch(ps) for ps in zip(*(term.pitch for term in terms), strict=True))
    return Term(seen, bounds, pitch)


def _merged(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Fewer terms where that costs nothing: one is merged into another that has all its dims."""
    merged: list[Term] = []
    for term in sorted(terms, key=lambda term: math.prod(term.dims), reverse=True):
        for place, other in enumerate(merged):
            if all(mine in (1, theirs) for mine, theirs in zip(term.dims, other.dims, strict=True)):
                if term is not other:
                    merged[place] = _union([other, term], other.dims)
                break
        else:
            merged.append(term)
    return tuple(merged)


def _common_pitch(pitches: Sequence[Pitch | None]) -> Pitch | None:
    first = pitches[0]
    if all(pitch == first for pitch in pitches):
        return first
    # parts are kept only where all agree
    steps = {pitch.step if pitch is not None else None for pitch in pitches}
    if len(steps) == 1 and None not in steps:
        return Pitch(steps.pop(), math.lcm(*(pitch.period for pitch in pitches if pitch)))
    return IRREGULAR


def _aligned(a: Support, b: Support) -> bool:
    """Whether two branches have the same step and centre wherever both are regular."""
    for one in a.terms:
        for other in b.terms:
            for dim, (p, q) in enumerate(zip(one.pitch, other.pitch, strict=True)):
                if p is None or q is None or p.step is None or q.step is None:
                    continue
                if p.step != q.step or not torch.equal(_centres(one, dim), _centres(other, dim)):
                    return False
    return True


def _centres(term: Term, dim: int) -> Tensor:
    """Twice the centre of each unit along a dimension."""
    others = [d + 1 for d in range(len(term.dims)) if d != dim]
    bounds = term.bounds.amax(others) if others else term.bounds
    return bounds[1] - bounds[0]


def _windowed(term: Term, dim: int, size: int, taps: Taps) -> Term:
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


# -- reshaping --------------------------------------------------------------------------------


def _groups(old: Sequence[int], new: Sequence[int]) -> Iterable[tuple[list[int], list[int]]]:
    """The smallest runs of old and new dimensions that hold the same elements."""
    i = j = 0
    while i < len(old) or j < len(new):
        mine: list[int] = []
        theirs: list[int] = []
        if i < len(old) and j < len(new) and old[i] == new[j]:
            yield [i], [j]
            i, j = i + 1, j + 1
            continue
        left = right = 1
        while left != right or not (mine or theirs):
            if (left <= right and i < len(old)) or j >= len(new):
                left *= old[i]
                mine.append(i)
                i += 1
            else:
                right *= new[j]
                theirs.append(j)
                j += 1
        yield mine, theirs


def _reshaped(term: Term, old: Sequence[int], new: Sequence[int]) -> Term:
    term, old = _with_parts_apart(term, old)
    full: list[int] = []  # dims before the reshape, filled out where a group differs within
    after: list[int] = []
    pitch: list[Pitch | None] = []
    for mine, theirs in _groups(old, new):
        if all(term.dims[dim] == 1 for dim in mine):
            full += [1] * len(mine)
            after += [1] * len(theirs)
        else:
            full += [old[dim] for dim in mine]
            after += [new[dim] for dim in theirs]
        pitch += _reshaped_pitch(
            [(old[dim], term.pitch[dim], term.dims[dim] > 1) for dim in mine],
            [new[dim] for dim in theirs],
        )
    seen, bounds = term.each(lambda x: x.expand(-1, *full).reshape(-1, *after))
    return Term(seen, bounds, tuple(pitch))


def _with_parts_apart(term: Term, shape: Sequence[int]) -> tuple[Term, list[int]]:
    """The term as it was before dimensions were merged, and that shape."""
    if not any(pitch and pitch.parts for pitch in term.pitch):
        return term, list(shape)
    apart: list[int] = []
    split: list[int] = []  # dims of the stored values
    kept: list[slice] = [slice(None)]  # of them, where elements differ
    pitch: list[Pitch | None] = []
    for size, dim, own in zip(shape, term.dims, term.pitch, strict=True):
        if own is None or not own.parts:
            apart.append(size)
            split.append(dim)
            kept.append(slice(None))
            pitch.append(own)
            continue
        for part, its_pitch, differs in own.parts:
            apart.append(part)
            split.append(part if dim > 1 else 1)
            kept.append(slice(None) if differs else slice(0, 1))
            pitch.append(its_pitch)
    seen, bounds = term.each(lambda x: x.reshape(-1, *split)[tuple(kept)])
    return Term(seen, bounds, tuple(pitch)), apart


def _reshaped_pitch(
    old: Sequence[tuple[int, Pitch | None, bool]], new: Sequence[int]
) -> list[Pitch | None]:
    """Of the new dimensions, given size, pitch and whether elements differ of the old ones."""
    if len(old) == len(new) == 1:
        return [old[0][1]]
    mine = [part for part in old if part[0] > 1]
    if not mine:  # ones only: as many as there are places keep their pitch, from the right
        pitches = [pitch for _, pitch, _ in old]
        return ([None] * len(new) + pitches)[-len(new) :] if new else []
    if all(pitch is None for _, pitch, _ in mine):
        return [None] * len(new)
    inner, merged, differs = mine[-1]
    for size, pitch, this_differs in reversed(mine[:-1]):
        merged = _joined_pitch(pitch, inner, merged if differs else None, merged is not None)
        inner *= size
        differs = differs or this_differs
    places = [place for place, size in enumerate(new) if size > 1]
    result: list[Pitch | None] = [None] * len(new)
    if len(places) == 1:
        assert merged is not None
        result[places[0]] = replace(merged, parts=tuple(mine) if len(mine) > 1 else ())
        return result
    inner = 1
    for place in reversed(places):
        result[place] = IRREGULAR
        if merged is not None and merged.step is not None:
            period = merged.period // math.gcd(inner, merged.period)
            result[place] = Pitch(merged.step * inner, period)
        inner *= new[place]
    return result


def _joined_pitch(
    outer: Pitch | None, size: int, inner: Pitch | None, was_pitch: bool
) -> Pitch | None:
    """Of an outer dimension and an inner one of some size that become one dimension. `inner` is
    None where the elements are alike along it, though it may have run along the axis before."""
    if outer is None and inner is None:
        return IRREGULAR if was_pitch else None
    if outer is not None and outer.step is not None:
        if inner is None:  # the outer unit is repeated, as upsampling and pixel shuffling do
            return Pitch(outer.step / size, outer.period * size)
        goes_on = inner.step is not None and size % inner.period == 0
        if goes_on and (outer.step, outer.period) == ((inner.step or 0) * size, 1):
            return inner
    return IRREGULAR
