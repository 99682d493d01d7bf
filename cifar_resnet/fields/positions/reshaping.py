"""Sets and their pitches when a reshape merges or splits dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from cifar_resnet.fields.positions.terms import IRREGULAR, Part, Pitch, Term

Group = tuple[list[int], list[int]]  # old dimensions, and the new ones that hold their elements


def reshape_term(
    term: Term, old: Sequence[int], new: Sequence[int], groups: Sequence[Group] | None = None
) -> Term:
    """Return the term of a tensor of shape `old` that is reshaped to `new`.

    Args:
        term: The term before.
        old: Shape before.
        new: Shape after.
        groups: Which old dimensions become which new ones. If None, they are matched by size.
    """
    exact = groups is not None and not any(
        _is_merged(term.pitch[dim])
        for mine, theirs in groups
        if len(mine) + len(theirs) > 2
        for dim in mine
    )
    if groups is None or not exact:
        # Dimensions that an earlier reshape has merged are split again first, so that
        # `x.flatten(2)` followed by `unflatten(2, (8, 6))` gives back the two pitches that x had.
        term, old = _split_parts(term, old)
        groups = matching_groups(old, new)
    full = [1] * len(old)  # dims before the reshape, expanded in groups along which elements differ
    after = [1] * len(new)
    pitch: list[Pitch | None] = [None] * len(new)
    for mine, theirs in groups:
        if any(term.dims[dim] > 1 for dim in mine):
            for dim in mine:
                full[dim] = old[dim]
            for dim in theirs:
                after[dim] = new[dim]
        parts = [(old[dim], term.pitch[dim], term.dims[dim] > 1) for dim in mine]
        pitches = _reshape_pitch(parts, [new[dim] for dim in theirs], exact)
        for dim, own in zip(theirs, pitches, strict=True):
            pitch[dim] = own
    return term.rearrange(
        lambda x: x.expand(-1, *full).reshape(x.shape[0], *after), pitch, math.prod(after)
    )


def matching_groups(old: Sequence[int], new: Sequence[int]) -> list[Group]:
    """Return the smallest groups of old and new dimensions that hold the same elements.

    A reshape from (2, 3, 4, 5) to (6, 4, 5) merges the first two dimensions and keeps the others:

        >>> matching_groups((2, 3, 4, 5), (6, 4, 5))
        [([0, 1], [0]), ([2], [1]), ([3], [2])]
        >>> matching_groups((4, 6), (2, 12))  # no boundary in common
        [([0, 1], [0, 1])]

    The order of elements says nothing about dimensions of size 1, so those between the same larger
    dimensions are paired by convention: from the left at the front, where the batch is, and
    elsewhere from the right. Dividing the channels of a map of 1 by 1 keeps its rows and columns:

        >>> matching_groups((1, 4, 1, 1), (1, 4, 1, 1, 1))
        [([1], [1]), ([0], [0]), ([2], [3]), ([3], [4])]
        >>> matching_groups((1, 4, 1, 1), (1, 4, 1))  # rows and columns become tokens
        [([1], [1]), ([0], [0]), ([2, 3], [2])]

    Where none is left on the new side, they belong to the larger dimensions around them:

        >>> matching_groups((1, 4, 1, 1), (1, 4))
        [([1, 2, 3], [1]), ([0], [0])]
    """
    if 0 in old:
        return [(list(range(len(old))), list(range(len(new))))]
    larger = _larger_groups(old, new)
    after = [(0, 0), *((mine[-1] + 1, theirs[-1] + 1) for mine, theirs in larger)]
    before = [*((mine[0], theirs[0]) for mine, theirs in larger), (len(old), len(new))]
    ones: list[Group] = []
    for gap, (start, stop) in enumerate(zip(after, before, strict=True)):
        mine, theirs = list(range(start[0], stop[0])), list(range(start[1], stop[1]))
        if theirs:
            at_front = gap == 0 and (len(larger) > 0 or len(mine) > len(theirs))
            ones += _pair_ones(mine, theirs, at_front)
            continue
        if gap > 0:
            larger[gap - 1] = (larger[gap - 1][0] + mine, larger[gap - 1][1])
        if gap < len(larger):
            larger[gap] = (mine + larger[gap][0], larger[gap][1])
    return larger + ones


def _larger_groups(old: Sequence[int], new: Sequence[int]) -> list[Group]:
    """Return the groups of the dimensions above 1, and of those of size 1 in the middle of one."""
    mine = [dim for dim, size in enumerate(old) if size > 1]
    theirs = [dim for dim, size in enumerate(new) if size > 1]
    groups: list[Group] = []
    i = j = 0
    while i < len(mine):
        first = i, j
        left, right = old[mine[i]], new[theirs[j]]
        while left != right:  # take dimensions from the side with fewer elements
            if left < right:
                i += 1
                left *= old[mine[i]]
            else:
                j += 1
                right *= new[theirs[j]]
        groups.append(
            (
                list(range(mine[first[0]], mine[i] + 1)),
                list(range(theirs[first[1]], theirs[j] + 1)),
            )
        )
        i, j = i + 1, j + 1
    return groups


def _pair_ones(mine: list[int], theirs: list[int], at_front: bool) -> list[Group]:
    """Pair dimensions of size 1. If there are fewer new ones, the surplus becomes one of them."""
    number = min(len(mine), len(theirs))
    if not number:
        return []
    pairs: list[Group]
    if at_front:
        pairs = [([a], [b]) for a, b in zip(mine[:number], theirs[:number], strict=True)]
        pairs[-1] = (mine[number - 1 :] if len(mine) > number else pairs[-1][0], pairs[-1][1])
    else:
        pairs = [([a], [b]) for a, b in zip(mine[-number:], theirs[-number:], strict=True)]
        pairs[0] = (mine[: len(mine) - number + 1], pairs[0][1])
    return pairs


def _is_merged(pitch: Pitch | None) -> bool:
    return pitch is not None and bool(pitch.parts)


def _split_parts(term: Term, shape: Sequence[int]) -> tuple[Term, list[int]]:
    """Return the term with all merged dimensions split again, and the shape it then has."""
    if not any(map(_is_merged, term.pitch)):
        return term, list(shape)
    apart: list[int] = []
    split: list[int] = []  # dims of the stored values
    kept: list[slice] = [slice(None)]  # the part of them to store, along which elements differ
    pitch: list[Pitch | None] = []
    for size, dim, own in zip(shape, term.dims, term.pitch, strict=True):
        if own is None or math.prod(part for part, _, _ in own.parts) != size or not own.parts:
            apart.append(size)
            split.append(dim)
            kept.append(slice(None))
            pitch.append(own or None)
            continue
        for part, its_pitch, differs in own.parts:
            apart.append(part)
            split.append(part if dim > 1 else 1)
            kept.append(slice(None) if differs else slice(0, 1))
            pitch.append(its_pitch)
    return term.rearrange(lambda x: x.reshape(len(x), *split)[tuple(kept)], pitch), apart


def _reshape_pitch(
    old: Sequence[Part], new: Sequence[int], exact: bool = False
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
        exact: Whether new dimensions of size 1 are known to come from these old ones.
    """
    if len(old) == len(new) == 1:
        return [old[0][1]]
    result: list[Pitch | None] = [None] * len(new)
    pitches = {pitch for _, pitch, _ in old if pitch}
    if not pitches:
        return result
    split = [dim for dim, size in enumerate(new) if size > 1 or exact] or [len(new) - 1]
    inside = any(size == 1 and pitch for size, pitch, _ in old)
    larger = [size > 1 for size, _, _ in old]
    # dimensions of size 1 count where they repeat larger ones inside them, as in pixel shuffling
    mine = [
        part for at, part in enumerate(old) if larger[at] or (part[1] and any(larger[at + 1 :]))
    ]
    parts = tuple(old if inside else mine)
    if not any(larger):
        merged = pitches.pop() if len(pitches) == 1 else IRREGULAR
    elif not any(pitch for _, pitch, _ in mine):
        if len(split) == 1:
            result[split[0]] = Pitch(None, parts=parts, hidden=True)
        return result
    else:
        merged = _merge_pitches(mine)
    if len(split) == 1:
        result[split[0]] = replace(merged, parts=parts if len(parts) > 1 else ())
        return result
    inner = 1
    for dim in reversed(split):
        result[dim] = IRREGULAR
        if merged.step is not None:
            period = merged.period // math.gcd(inner, merged.period)
            result[dim] = Pitch(merged.step * inner, period)
        inner *= new[dim]
    return result


def _merge_pitches(parts: Sequence[Part]) -> Pitch:
    """Return the pitch of dimensions merged into one, from the innermost outward."""
    inner, merged, differs = parts[-1]
    for size, pitch, this_differs in reversed(parts[:-1]):
        merged = _merge_pitch(pitch, inner, merged if differs else None, merged is not None)
        inner *= size
        differs = differs or this_differs
    assert merged is not None
    return merged


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
