"""Several supports made one: unions, concatenations, elements overwritten by others.

It knows supports; it must not know operations.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import torch

from cifar_resnet.fields.positions.support import Support
from cifar_resnet.fields.positions.taps import NOWHERE, moved
from cifar_resnet.fields.positions.terms import IRREGULAR, Term, centers, common_pitch, merged


def union(
    shape: Sequence[int], supports: Sequence[Support], where: str = "", *, compare: bool = True
) -> Support:
    """The union of tensors that are broadcast to one shape, as a sum's or a product's operands.

    Args:
        shape: Shape of the result.
        supports: One for each operand that depends on the input.
        where: Name of the merging operation.
        compare: Whether different centers of the operands count as misaligned.
    """
    supports = [support.expand(shape) for support in supports]
    misaligned = [name for support in supports for name in support.misaligned]
    if compare and any(not _aligned(supports[0], other) for other in supports[1:]):
        misaligned.append(where)
    terms = merged([term for support in supports for term in support.terms])
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
                common_pitch(pitches) for pitches in zip(*(t.pitch for t in terms), strict=True)
            ]
            if pitch[dim] or not any(pitch):  # steps in time, say, that have no other places
                pitch[dim] = IRREGULAR
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


def _aligned(a: Support, b: Support) -> bool:
    """Whether two branches have the same step and center wherever both are regular."""
    for one in a.terms:
        for other in b.terms:
            for dim, (p, q) in enumerate(zip(one.pitch, other.pitch, strict=True)):
                if p is None or q is None or p.step is None or q.step is None:
                    continue
                if p.step != q.step or not torch.equal(centers(one, dim), centers(other, dim)):
                    return False
    return True


def overwritten(before: Support, after: Support, dim: int, places: Sequence[int]) -> Support:
    """`before`, whose element places[i] along a dimension is now element i of `after`. Of a place
    that is named twice, either may have been written last."""
    size = before.shape[dim]
    if list(places) == list(range(size)):
        return replace(after, misaligned=(*before.misaligned, *after.misaligned))
    kept = [i if i not in set(places) else NOWHERE for i in range(size)]
    parts = [before.window(dim, moved(size, kept))]
    turns: Counter[int] = Counter()
    layers: list[list[int]] = []
    for i, place in enumerate(places):
        if turns[place] == len(layers):
            layers.append([NOWHERE] * size)
        layers[turns[place]][place] = i
        turns[place] += 1
    parts += [after.window(dim, moved(len(places), layer)) for layer in layers]
    return union(before.shape, parts, compare=False)
