"""One tensor's sets from those of several: union, concatenation, and elements overwritten."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from cifar_resnet.fields.positions.packing import check_bytes, distinct_sets
from cifar_resnet.fields.positions.sets import PositionSets
from cifar_resnet.fields.positions.taps import NO_TAP, selected
from cifar_resnet.fields.positions.terms import (
    IRREGULAR,
    Pitch,
    Term,
    common_pitch,
    doubled_centers,
    merge_terms,
)


def union(
    shape: Sequence[int], operands: Sequence[PositionSets], where: str = "", *, compare: bool = True
) -> PositionSets:
    """Return the union of operands that are broadcast to one shape, as in a sum or a product.

    Args:
        shape: Shape of the result.
        operands: The sets of each operand that depends on the input.
        where: Name of the merging operation.
        compare: Whether operands with different centers count as misaligned branches.
    """
    operands = [sets.expand(shape) for sets in operands]
    merged_at = [name for sets in operands for name in sets.merged_at]
    if compare and any(not _aligned(operands[0], other) for other in operands[1:]):
        merged_at.append(where)
    terms = merge_terms([term for sets in operands for term in sets.terms])
    is_global = any(sets.is_global for sets in operands)
    return PositionSets(tuple(shape), terms, tuple(dict.fromkeys(merged_at)), is_global)


def concatenate(
    parts: Sequence[PositionSets | None],
    sizes: Sequence[int],
    dim: int,
    where: str = "",
    *,
    compare: bool = True,
) -> PositionSets:
    """Return the sets of tensors that are concatenated.

    Args:
        parts: The sets of each tensor, or None if it does not depend on the input.
        sizes: Size of each tensor along the dimension.
        dim: Dimension along which they are concatenated.
        where: Name of the merging operation.
        compare: Whether parts with different centers count as misaligned branches.
    """
    known = [sets for sets in parts if sets is not None]
    shape = list(known[0].shape)
    dim %= len(shape)
    total = shape[dim] = sum(sizes)
    # parts that are concatenated along the axis itself lie at different positions on purpose
    aligned = all(
        _aligned(known[0].reduce([dim]), other.reduce([dim])) for other in known[1:]
    ) or any(term.pitch[dim] for sets in known for term in sets.terms)
    if len(known) == len(parts) and all(len(sets.terms) == 1 for sets in known):
        joined = _concatenate_terms(known, sizes, dim, tuple(shape))
    else:
        # In general each part is moved to its offset, with empty sets around it, and the result is
        # the union: [a, b] is [a, -] | [-, b].
        moved = []
        start = 0
        for sets, size in zip(parts, sizes, strict=True):
            if sets is not None:
                moved.append(sets.window(dim, selected(size, range(-start, total - start))))
            start += size
        joined = union(shape, moved, compare=False)
    merged_at = [name for sets in known for name in sets.merged_at]
    if compare and not aligned:
        merged_at.append(where)
    is_global = any(sets.is_global for sets in known)
    return replace(joined, merged_at=tuple(dict.fromkeys(merged_at)), is_global=is_global)


def _concatenate_terms(
    parts: Sequence[PositionSets], sizes: Sequence[int], dim: int, shape: tuple[int, ...]
) -> PositionSets:
    """Concatenate parts of a single term each, the common case, by concatenating what is stored."""
    terms = [sets.terms[0] for sets in parts]
    alike = all(term.dims[dim] == 1 for term in terms) and all(
        _same_sets(term, terms[0]) for term in terms[1:]
    )
    if alike and shape[dim] > 1 and terms[0].pitch[dim] is None:
        # branches with the same fields, side by side in the channels: stored once
        return replace(parts[0], shape=shape, terms=(terms[0],))
    others = [max(dims) for dims in zip(*(term.dims for term in terms), strict=True)]
    wide = [[*others[:dim], size, *others[dim + 1 :]] for size in sizes]  # dims of each part
    pitch = [common_pitch(pitches) for pitches in zip(*(t.pitch for t in terms), strict=True)]
    # If no dimension runs along the axis, this one does now: its elements differ by position. An
    # example are the hidden states of a recurrent layer, stacked over time.
    if pitch[dim] or not any(pitch):
        pitch[dim] = IRREGULAR
    return PositionSets(shape, (_join(terms, wide, dim, pitch),))


def _join(
    terms: Sequence[Term], dims: Sequence[Sequence[int]], dim: int, pitch: Sequence[Pitch | None]
) -> Term:
    """Concatenate terms that are expanded to the given dims."""
    size = sum(math.prod(wide) for wide in dims)
    if terms[0].fits(size):
        seen, bounds = (
            torch.cat([x.expand(-1, *wide) for x, wide in zip(values, dims, strict=True)], dim + 1)
            for values in ([term.seen for term in terms], [term.bounds for term in terms])
        )
        return Term(seen, bounds, tuple(pitch))
    check_bytes(8 * size)
    parts = [term.packed() for term in terms]
    numbers, first = [], 0
    for part, wide in zip(parts, dims, strict=True):
        assert part.index is not None
        numbers.append(part.index.expand(*wide) + first)
        first += part.bounds.shape[1]
    seen, bounds, number = distinct_sets(
        torch.cat([part.seen for part in parts], 1), torch.cat([part.bounds for part in parts], 1)
    )
    return Term(seen, bounds, tuple(pitch), number[torch.cat(numbers, dim)])


def _same_sets(a: Term, b: Term) -> bool:
    """Whether two terms have the same sets, in the same elements."""
    if a.dims != b.dims:
        return False
    if a.index is None or b.index is None:  # then both are, as they are of the same size
        return torch.equal(a.seen, b.seen) and torch.equal(a.bounds, b.bounds)
    both = torch.cat([a.seen, b.seen], 1), torch.cat([a.bounds, b.bounds], 1)
    mine, theirs = distinct_sets(*both)[2].split([a.bounds.shape[1], b.bounds.shape[1]])
    return torch.equal(mine[a.index], theirs[b.index])


def _aligned(a: PositionSets, b: PositionSets) -> bool:
    """Whether two branches have the same steps and centers, where both are regular.

    Units of a 3x3 convolution with padding 1 have the centers of the units they are added to, and
    those of one without padding do not: unit 0 of `x[..., :-2]` is centered at 0, but unit 0 of the
    convolution, which reads the positions 0 to 2, at 1.
    """
    for one in a.terms:
        for other in b.terms:
            for dim, (p, q) in enumerate(zip(one.pitch, other.pitch, strict=True)):
                if p is None or q is None or p.step is None or q.step is None:
                    continue
                if p.step != q.step or not torch.equal(
                    doubled_centers(one, dim), doubled_centers(other, dim)
                ):
                    return False
    return True


def overwrite(
    before: PositionSets, written: PositionSets, dim: int, indices: Sequence[int]
) -> PositionSets:
    """Return the sets of a tensor after `y[indices] = written` along a dimension.

    Element indices[i] gets the set of element i of `written`; all other elements keep theirs. If an
    index occurs several times, any of the writes may be the last, so the element gets the union:

        >>> from cifar_resnet.fields.positions.taps import windows
        >>> y = PositionSets.of_input((5,), 0)
        >>> written = y.window(0, windows(5, units=3, kernel=2, stride=1, padding=0))
        >>> (seen,) = [term.seen for term in overwrite(y, written, 0, [4, 1, 1]).terms]
        >>> [unit.nonzero().flatten().tolist() for unit in seen.T]
        [[0], [1, 2, 3], [2], [3], [0, 1]]
    """
    size = before.shape[dim]
    if list(indices) == list(range(size)):
        return replace(written, merged_at=(*before.merged_at, *written.merged_at))
    targets = set(indices)
    kept = [NO_TAP if i in targets else i for i in range(size)]
    parts = [before.window(dim, selected(size, kept))]
    # One layer of writes has each index once: [4, 1, 1] makes the layers {4: 0, 1: 1} and {1: 2}.
    turns: Counter[int] = Counter()
    layers: list[list[int]] = []
    for i, index in enumerate(indices):
        if turns[index] == len(layers):
            layers.append([NO_TAP] * size)
        layers[turns[index]][index] = i
        turns[index] += 1
    parts += [written.window(dim, selected(len(indices), layer)) for layer in layers]
    return union(before.shape, parts, compare=False)
