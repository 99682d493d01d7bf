"""What a reshape does to stored sets and their pitches. It knows dimensions and their products; it
must not know operations.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from cifar_resnet.fields.positions.terms import IRREGULAR, Pitch, Term


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


def reshaped(term: Term, old: Sequence[int], new: Sequence[int]) -> Term:
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
