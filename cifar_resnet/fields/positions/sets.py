"""The input positions that each element of a tensor depends on, along one axis of the input."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from cifar_resnet.fields.positions.reshaping import Group, reshape_term
from cifar_resnet.fields.positions.sliding import cumulate_term, window_term
from cifar_resnet.fields.positions.taps import Taps
from cifar_resnet.fields.positions.terms import (
    EMPTY,
    IRREGULAR,
    MAX_SET_LENGTH,
    Pitch,
    Term,
    merge_terms,
    unite_terms,
)


@dataclass(frozen=True)
class PositionSets:
    """A set of input positions for each element of a tensor.

    The rule of an operation calls these methods to turn the sets of the arguments into those of the
    result. Each method takes unions of sets or moves them, so all of them commute with the union:
    sets.window(...) of a union is the union of the sets.window(...). That is why branches need no
    special treatment.

    The sets are the union of several terms. Terms with different dims stay separate: attention
    scores (queries, keys) depend on one term that differs along the queries and on another that
    differs along the keys. For 196 tokens, 196 + 196 sets are stored rather than 196 * 196.

    Attributes:
        shape: Shape of the tensor.
        terms: At least one.
        merged_at: Names of the operations that merged branches of different centers or steps.
        is_global: Whether each set contains everything that some tensor before depended on, as
            after global pooling.
    """

    shape: tuple[int, ...]
    terms: tuple[Term, ...]
    merged_at: tuple[str, ...] = ()
    is_global: bool = False

    @classmethod
    def of_input(cls, shape: Sequence[int], dim: int) -> PositionSets:
        """Return the sets of the input itself: element i along `dim` depends on position i."""
        length = shape[dim]
        dims = [1] * len(shape)
        dims[dim] = length
        positions = torch.arange(length)
        bounds = torch.stack([-positions, positions]).view(2, *dims)  # minus the first, the last
        seen = bounds
        if length <= MAX_SET_LENGTH:
            seen = torch.eye(length, dtype=torch.uint8).view(length, *dims)  # position i in set i
        pitch: list[Pitch | None] = [None] * len(shape)
        pitch[dim] = Pitch(Fraction(1))
        return cls(tuple(shape), (Term(seen, bounds, tuple(pitch)),))

    @classmethod
    def empty_like(cls, other: PositionSets, shape: Sequence[int]) -> PositionSets:
        """Return empty sets for a tensor of this shape, along the same axis as other sets."""
        ones = [1] * len(shape)
        term = other.terms[0]
        seen = term.seen.new_full((term.seen.shape[0], *ones), term.empty_value)
        bounds = term.bounds.new_full((2, *ones), EMPTY)
        return cls(tuple(shape), (Term(seen, bounds, (None,) * len(shape)),))

    # -- what operations do -------------------------------------------------------------------

    def reduce(self, dims: Iterable[int], *, keepdim: bool = True) -> PositionSets:
        """Take the union over dimensions, as a sum does."""
        dims = sorted({dim % len(self.shape) for dim in dims})
        shape = [1 if dim in dims else size for dim, size in enumerate(self.shape)]
        reduced = self._after_union(self._union_over(dims), tuple(shape))
        return reduced if keepdim else reduced.squeeze(dims)

    def blend(self, dims: Iterable[int]) -> PositionSets:
        """Give each element the union over dimensions, as softmax or a normalization does."""
        dims = sorted({dim % len(self.shape) for dim in dims})
        return self._after_union(merge_terms(self._union_over(dims)))

    def _after_union(
        self, terms: tuple[Term, ...], shape: tuple[int, ...] | None = None
    ) -> PositionSets:
        """Replace the terms after a union over dimensions, and note whether it was a global one."""
        # units differed before, and now there is a term that is the same for all of them
        before = any(math.prod(term.dims) > 1 for term in self.terms)
        now = any(math.prod(term.dims) == 1 for term in terms)
        return replace(
            self,
            terms=terms,
            shape=shape or self.shape,
            is_global=self.is_global or (before and now),
        )

    def _union_over(self, dims: Sequence[int]) -> tuple[Term, ...]:
        if not dims:
            return self.terms
        return tuple(term.unite(dims) for term in self.terms)

    def group(self, dim: int, number: int) -> PositionSets:
        """Divide a dimension into `number` equal groups, each reduced to one element."""
        split = self.split(dim, (number, self.shape[dim] // number))
        return split.reduce([dim + 1], keepdim=False)

    def window(self, dim: int, taps: Taps) -> PositionSets:
        """Replace a dimension by new elements, each the union of the elements that it taps."""
        if taps.is_identity:
            return self
        dim %= len(self.shape)
        shape = list(self.shape)
        shape[dim] = taps.size
        terms = tuple(window_term(term, dim, self.shape[dim], taps) for term in self.terms)
        # a window that covers the whole map is a global pooling by another name
        covers_axis = taps.takes_all and any(term.pitch[dim] for term in self.terms)
        return PositionSets(
            tuple(shape), terms, self.merged_at, is_global=self.is_global or covers_axis
        )

    def cumulate(self, dim: int) -> PositionSets:
        """Give each element the union of itself and those before it, as cumsum does."""
        dim %= len(self.shape)
        return replace(self, terms=tuple(cumulate_term(term, dim) for term in self.terms))

    def gather(self, dim: int, index: Tensor) -> PositionSets:
        """Select elements by an index tensor, as `torch.gather` does.

        Along dimension 0, the new element (i, j) is the old element (index[i, j], j).
        """
        dim %= len(self.shape)
        terms = []
        for term in self.terms:
            # `torch.gather` reads a corner of the other dimensions, of the size of the index. The
            # stored tensor is cut to that corner, and dims of size 1 are expanded to it.
            wide = [
                own if axis == dim else size
                for axis, (own, size) in enumerate(zip(self.shape, index.shape, strict=True))
            ]
            narrow = [
                slice(0, size if own > 1 else 1) for own, size in zip(term.dims, wide, strict=True)
            ]

            def select(x: Tensor, narrow: Any = narrow, wide: Any = wide) -> Tensor:
                corner = x[:, *narrow].expand(-1, *wide)
                return corner.gather(dim + 1, index.expand(len(x), *index.shape))

            pitch = [p and IRREGULAR for p in term.pitch]  # the index may reorder anything
            terms.append(term.rearrange(select, pitch, index.numel()))
        return replace(self, shape=tuple(index.shape), terms=tuple(terms))

    def permute(self, order: Sequence[int]) -> PositionSets:
        order = [dim % len(self.shape) for dim in order]
        terms = []
        for term in self.terms:
            pitch = [term.pitch[dim] for dim in order]
            after = (0, *(dim + 1 for dim in order))
            terms.append(term.rearrange(lambda x, after=after: x.permute(after), pitch))  # type: ignore[misc]
        return replace(self, shape=tuple(self.shape[dim] for dim in order), terms=tuple(terms))

    def unsqueeze(self, dim: int) -> PositionSets:
        """Add a dimension of size 1 before `dim`."""
        dim %= len(self.shape) + 1
        terms = []
        for term in self.terms:
            pitch = (*term.pitch[:dim], None, *term.pitch[dim:])
            terms.append(term.rearrange(lambda x: x.unsqueeze(dim + 1), pitch))
        return replace(self, shape=(*self.shape[:dim], 1, *self.shape[dim:]), terms=tuple(terms))

    def squeeze(self, dims: Iterable[int]) -> PositionSets:
        """Remove dimensions of size 1."""
        gone = {dim % len(self.shape) for dim in dims}
        kept = [dim for dim in range(len(self.shape)) if dim not in gone]
        terms = []
        for term in self.terms:
            shape = [term.dims[dim] for dim in kept]
            pitch = [term.pitch[dim] for dim in kept]
            terms.append(
                term.rearrange(lambda x, shape=shape: x.reshape(len(x), *shape), pitch)  # type: ignore[misc]
            )
        return replace(self, shape=tuple(self.shape[dim] for dim in kept), terms=tuple(terms))

    def expand(self, shape: Sequence[int]) -> PositionSets:
        """Broadcast to a shape, with new dimensions in front.

        Only the shape changes: what is stored with size 1 already stands for all elements.
        """
        missing = len(shape) - len(self.shape)
        sets = self
        for _ in range(missing):
            sets = sets.unsqueeze(0)
        terms = tuple(
            replace(
                term,
                pitch=tuple(
                    pitch if old == new else pitch and IRREGULAR
                    for pitch, old, new in zip(term.pitch, sets.shape, shape, strict=True)
                ),
            )
            for term in sets.terms
        )
        return replace(sets, shape=tuple(shape), terms=terms)

    def reshape(self, shape: Sequence[int]) -> PositionSets:
        """Give the same elements, in the same order, another shape. One size may be -1."""
        known = math.prod(size for size in shape if size != -1)
        shape = tuple(size if size != -1 else math.prod(self.shape) // known for size in shape)
        if shape == self.shape:
            return self
        return self._reshape(shape, None)

    def split(self, dim: int, sizes: Sequence[int]) -> PositionSets:
        """Divide a dimension into several, also one of size 1, which `reshape` cannot identify."""
        dim %= len(self.shape)
        shape = (*self.shape[:dim], *sizes, *self.shape[dim + 1 :])
        groups: list[Group] = [([d], [d]) for d in range(dim)]
        groups.append(([dim], list(range(dim, dim + len(sizes)))))
        groups += [([d], [d + len(sizes) - 1]) for d in range(dim + 1, len(self.shape))]
        return self._reshape(shape, groups)

    def merge(self, dim: int) -> PositionSets:
        """Merge a dimension and the next into one, the inverse of `split`."""
        dim %= len(self.shape)
        size = self.shape[dim] * self.shape[dim + 1]
        shape = (*self.shape[:dim], size, *self.shape[dim + 2 :])
        groups: list[Group] = [([d], [d]) for d in range(dim)]
        groups.append(([dim, dim + 1], [dim]))
        groups += [([d], [d - 1]) for d in range(dim + 2, len(self.shape))]
        return self._reshape(shape, groups)

    def _reshape(self, shape: tuple[int, ...], groups: Sequence[Group] | None) -> PositionSets:
        terms = tuple(reshape_term(term, self.shape, shape, groups) for term in self.terms)
        return replace(self, shape=shape, terms=terms)

    # -- what records ask ---------------------------------------------------------------------

    @property
    def unit_dims(self) -> tuple[int, ...]:
        """The tensor dimensions that run along the axis."""
        return tuple(
            dim for dim in range(len(self.shape)) if any(term.pitch[dim] for term in self.terms)
        )

    @property
    def jump(self) -> Fraction | None:
        """Positions from one unit to the next. None if the axis runs along several dimensions, or
        if the distance varies."""
        pitches = {term.pitch[dim] for term in self.terms for dim in self.unit_dims}
        steps = {pitch.step for pitch in pitches if pitch}
        return steps.pop() if len(self.unit_dims) == len(steps) == len(pitches) == 1 else None

    def extent(self) -> Tensor:
        """Return the bounds of the union of all terms: (2, *dims)."""
        bounds = self.terms[0].extent()
        for term in self.terms[1:]:
            bounds = torch.maximum(bounds, term.extent())
        return bounds

    def reduce_to(self, kept: Sequence[int]) -> PositionSets:
        """Take the union over all dimensions except `kept`, without changing the shape."""
        others = [dim for dim in range(len(self.shape)) if dim not in kept]
        return replace(self, terms=merge_terms(self._union_over(others)))

    def to_single_term(self, kept: Sequence[int]) -> Term:
        """Return the union over all dimensions except `kept`, as one term."""
        others = [dim for dim in range(len(self.shape)) if dim not in kept]
        terms = self._union_over(others)
        dims = [max(term.dims[dim] for term in terms) for dim in range(len(self.shape))]
        return unite_terms(terms, dims)
