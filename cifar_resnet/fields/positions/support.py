"""Which input positions each element of a tensor depends on, along one axis of the input.

It knows sets and tensor dimensions; it must not know networks, layers or operations.

Every rule for an operation is made of these few moves, and all of them commute with the union of
sets; that is why following one axis at a time is exact, whatever the branches do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from cifar_resnet.fields.positions.reshaping import reshaped
from cifar_resnet.fields.positions.taps import Taps
from cifar_resnet.fields.positions.terms import (
    IRREGULAR,
    LONGEST_SET,
    NOTHING,
    Pitch,
    Term,
    merged,
    united,
    windowed,
)


@dataclass(frozen=True)
class Support:
    """A tensor's sets: the union of its terms.

    Terms of different dims stay apart (the query's and the key's part of attention scores, say), so
    that their product is never stored.

    Attributes:
        shape: Shape of the tensor.
        terms: At least one.
        misaligned: Where branches with different centers or steps were merged.
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
        """Each element gets the union over dimensions, as softmax or a normalization does."""
        dims = sorted({dim % len(self.shape) for dim in dims})
        return self._with(merged(self._union_over(dims)))

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
        """One element for each of `number` equal groups along a dimension: its union."""
        size = self.shape[dim]
        split = self.reshape((*self.shape[:dim], number, size // number, *self.shape[dim + 1 :]))
        return split.reduce([dim + 1], keepdim=False)

    def window(self, dim: int, taps: Taps) -> Support:
        """New element u along a dimension is the union of the elements that u taps."""
        dim %= len(self.shape)
        shape = list(self.shape)
        shape[dim] = taps.size
        terms = tuple(windowed(term, dim, self.shape[dim], taps) for term in self.terms)
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
        terms = tuple(reshaped(term, self.shape, shape) for term in self.terms)
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
        return replace(self, terms=merged(self._union_over(others)))

    def collapsed(self, kept: Sequence[int]) -> Term:
        """One term, with the union over all dimensions but `kept`."""
        others = [dim for dim in range(len(self.shape)) if dim not in kept]
        terms = self._union_over(others)
        dims = [max(term.dims[dim] for term in terms) for dim in range(len(self.shape))]
        return united(terms, dims)
