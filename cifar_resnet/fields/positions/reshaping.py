"""Sets and their pitches when a reshape merges or splits dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cifar_resnet.fields.positions.terms import IRREGULAR, Pitch, Term


def reshape_term(term: Term, old: Sequence[int], new: Sequence[int]) -> Term:
    """Return the term of a tensor of shape `old` that is reshaped to `new`."""
    # Dimensions that an earlier reshape has merged are split again first, so that `x.flatten(2)`
    # followed by `unflatten(2, (8, 6))` gives back the two pitches that x had.
    term, old = _split_parts(term, old)
    full: list[int] = []  # dims before the reshape, expanded in groups along which elements differ
    after: list[int] = []
    pitch: list[Pitch | None] = []
    for mine, theirs in _matching_groups(old, new):
        if all(term.dims[dim] == 1 for dim in mine):
            full += [1] * len(mine)
            after += [1] * len(theirs)
        else:
            full += [old[dim] for dim in mine]
            after += [new[dim] for dim in theirs]
        pitch += _reshape_pitch(
            [(old[dim], term.pitch[dim], term.dims[dim] > 1) for dim in mine],
            [new[dim] for dim in theirs],
        )
    seen, bounds = term.apply(lambda x: x.expand(-1, *full).reshape(-1, *after))
    return Term(seen, bounds, tuple(pitch))


def _matching_groups(
    old: Sequence[int], new: Sequence[int]
) -> Iterable[tuple[list[int], list[int]]]:
    """Yield the smallest groups of old and new dimensions that hold the same elements.

    A reshape from (2, 3, 4, 5) to (6, 4, 5) merges the first two dimensions and keeps the others:

        >>> list(_matching_groups((2, 3, 4, 5), (6, 4, 5)))
        [([0, 1], [0]), ([2], [1]), ([3], [2])]
        >>> list(_matching_groups((4, 6), (2, 12)))  # no boundary in common
        [([0, 1], [0, 1])]
    """
    i = j = 0
    while i < len(old) or j < len(new):
        mine: list[int] = []
        theirs: list[int] = []
        if i < len(old) and j < len(new) and old[i] == new[j]:
            yield [i], [j]
            i, j = i + 1, j + 1
            continue
        # take dimensions from the side with fewer elements until both have the same number
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


def _split_parts(term: Term, shape: Sequence[int]) -> tuple[Term, list[int]]:
    """Return the term with all merged dimensions split again, and the shape it then has."""
    if not any(pitch and pitch.parts for pitch in term.pitch):
        return term, list(shape)
    apart: list[int] = []
    split: list[int] = []  # dims of the stored values
    kept: list[slice] = [slice(None)]  # the part of them to store, along which elements differ
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
    seen, bounds = term.apply(lambda x: x.reshape(-1, *split)[tuple(kept)])
    return Term(seen, bounds, tuple(pitch)), apart


def _reshape_pitch(
    old: Sequence[tuple[int, Pitch | None, bool]], new: Sequence[int]
) -> list[Pitch | None]:
    """Return the pitches of new dimensions that hold the same elements as old ones.

    8 units that are 1 position apart, split into 4 rows of 2: the rows are 2 positions apart, and
    the units of a row 1. Merged again, they are 8 units that are 1 position apart:

        >>> from fractions import Fraction
        >>> one, two = Pitch(Fraction(1)), Pitch(Fraction(2))
        >>> _reshape_pitch([(8, one, True)], [4, 2]) == [two, one]
        True
        >>> [pitch.step for pitch in _reshape_pitch([(4, two, True), (2, one, True)], [8])]
        [Fraction(1, 1)]

    Args:
        old: Size, pitch, and whether elements differ along it, of each old dimension.
        new: Sizes of the new dimensions.
    """
    if len(old) == len(new) == 1:
        return [old[0][1]]
    mine = [part for part in old if part[0] > 1]
    if not mine:  # sizes of 1 only: the last new dimensions keep the pitches, counted from the end
        pitches = [pitch for _, pitch, _ in old]
        return ([None] * len(new) + pitches)[-len(new) :] if new else []
    if all(pitch is None for _, pitch, _ in mine):
        return [None] * len(new)
    # First the pitch of all old dimensions merged into one, from the innermost outwards ...
    inner, merged, differs = mine[-1]
    for size, pitch, this_differs in reversed(mine[:-1]):
        merged = _merge_pitch(pitch, inner, merged if differs else None, merged is not None)
        inner *= size
        differs = differs or this_differs
    # ... then that one split into the new dimensions. Those of size 1 have no pitch.
    split = [dim for dim, size in enumerate(new) if size > 1]
    result: list[Pitch | None] = [None] * len(new)
    if len(split) == 1:
        assert merged is not None
        result[split[0]] = replace(merged, parts=tuple(mine) if len(mine) > 1 else ())
        return result
    inner = 1
    for dim in reversed(split):
        result[dim] = IRREGULAR
        if merged is not None and merged.step is not None:
            period = merged.period // math.gcd(inner, merged.period)
            result[dim] = Pitch(merged.step * inner, period)
        inner *= new[dim]
    return result


def _merge_pitch(
    outer: Pitch | None, size: int, inner: Pitch | None, was_pitch: bool
) -> Pitch | None:
    """Return the pitch of an outer and an inner dimension that become one.

    Args:
        outer: Pitch of the outer dimension.
        size: Size of the inner dimension.
        inner: Pitch of the inner dimension, or None if the elements are alike along it.
        was_pitch: Whether the inner dimension ran along the axis, even if its elements are alike.
    """
    if outer is None and inner is None:
        return IRREGULAR if was_pitch else None
    if outer is not None and outer.step is not None:
        if inner is None:
            # Each outer unit is repeated `size` times, as in upsampling and pixel shuffling: steps
            # of 1, each repeated twice, are 0, 0, 1, 1, ...: step 1/2, period 2.
            return Pitch(outer.step / size, outer.period * size)
        # The inner units continue from one outer unit to the next if these are as far apart as the
        # inner ones take together: rows of 2 units with step 1, 2 positions apart.
        continues = inner.step is not None and size % inner.period == 0
        if continues and (outer.step, outer.period) == ((inner.step or 0) * size, 1):
            return inner
    return IRREGULAR
