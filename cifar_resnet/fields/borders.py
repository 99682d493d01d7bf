"""Verify sizes, jumps, starts and paddings on larger inputs, where no border clips the fields.

On a small input, many fields reach beyond the borders, and the pixels that units read say nothing
about their size. So the input is extended on both sides by a multiple of all jumps. Unit u then has
its place D / jump units later, where D is the extension before the input, and its field must begin
and end where the analysis says. Only the rows at both ends of the fields and their neighbors are
probed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from cifar_resnet.fields.experiments import MAGNITUDES, Experiments, Found, Key, Watched
from cifar_resnet.fields.mismatch import ReceptiveFieldMismatchError
from cifar_resnet.fields.records import LayerField

_MAX_ROWS = 24  # rows to probe along each axis
_MIN_LENGTH, _MAX_FACTOR = 1024, 4  # an input is extended to 4 times its length, or to 1024


@dataclass(frozen=True)
class _Expected:
    """The field of one unit as if the input had no borders, according to the analysis."""

    key: Key
    record: LayerField
    dim: int  # of the output, along which the units lie
    unit: int
    jump: Fraction
    first: int
    last: int


def check_beyond_borders(
    model: nn.Module,
    arguments: Sequence[Any],
    source: int,
    dims: Sequence[int],
    records: Mapping[Key, LayerField],
    batch_size: int,
) -> list[Key]:
    """Compare fields with those on larger inputs, and return the keys that could be verified.

    Not verified are the smaller fields of deep networks, to save time, fields that depend on the
    size of the map, as after global or adaptive pooling, irregular ones, and layers that the model
    does not reach on a larger input.

    Raises:
        ReceptiveFieldMismatchError: If a field begins or ends elsewhere.
    """
    verified: list[set[Key]] = []
    for axis, dim in enumerate(dims):
        length = arguments[source].shape[dim]
        fields = [
            field
            for key, record in records.items()
            for field in _expected(key, record, axis)
            if max(-_ends(field)[0], _ends(field)[-1] - length) < _room(length)
        ]
        chosen = _within_limit(fields)
        if not chosen:
            return []
        step = math.lcm(*(field.jump.numerator for field in fields))
        before = _multiple(max(-_ends(field)[0] for field in chosen), step)
        after = _multiple(1 + max(_ends(field)[-1] for field in chosen) - length, step)
        at = (torch.arange(-before, length + after) % length).to(arguments[source].device)
        longer = [*arguments]
        longer[source] = arguments[source].index_select(dim, at)
        for size in sorted({batch_size, 1}, reverse=True):
            try:
                done = _check_axis(model, longer, source, dim, axis, chosen, before, after, size)
                break
            except ReceptiveFieldMismatchError:
                if size == 1:  # else the model may mix samples
                    raise
        verified.append(done)
    return [key for key in records if all(key in done for done in verified)]


def within_borders(records: Mapping[Key, LayerField], lengths: Sequence[int]) -> set[Key]:
    """Return the keys whose middle unit reads nothing beyond the borders of this input.

    Where all units agree row by row, their sizes, jumps, starts and paddings are then verified
    without a larger input.
    """
    return {
        key
        for key, record in records.items()
        if all(
            any(
                field.unit == record.middle[record.unit_dims.index(field.dim)]
                and 0 <= field.first <= field.last < length
                for field in _expected(key, record, axis)
            )
            for axis, length in enumerate(lengths)
        )
    }


def _room(length: int) -> int:
    return max(_MAX_FACTOR * length, _MIN_LENGTH) // 2


def _multiple(at_least: int, step: int) -> int:
    return max(0, -(-at_least // step)) * step


def _expected(key: Key, record: LayerField, axis: int) -> list[_Expected]:
    """Return the fields of the middle, the first and the last unit along one axis."""
    measures = record.axes[axis]
    jump = measures.jump
    if jump is None or jump <= 0 or not measures.uniform:
        return []
    dim = record.dims_by_axis[axis][0]
    at = record.unit_dims.index(dim)
    found = []
    for unit in dict.fromkeys((record.middle[at], 0, record.unit_shape[at] - 1)):
        if not 0 <= unit < record.unit_shape[at]:
            continue
        index = [*record.middle[:at], unit, *record.middle[at + 1 :]]
        try:
            first, last = record.region(index, clip=False)[axis]
        except ValueError:  # it sees nothing
            continue
        if jump.denominator == 1 and first != unit * jump - measures.padding:
            return []  # the distances vary, as after interpolation by an odd factor
        found.append(_Expected(key, record, dim, unit, jump, first, last))
    return found


def _within_limit(fields: Sequence[_Expected]) -> list[_Expected]:
    """Choose fields so that few rows need to be probed: one of each output first, beginning
    with the largest, as a wrong size of one layer makes those of the next layers wrong."""
    order: dict[Key, int] = {}
    ranks = []
    fields = sorted(fields, key=lambda field: field.last - field.first, reverse=True)
    for field in fields:
        order[field.key] = order.get(field.key, -1) + 1
        ranks.append(order[field.key])
    rows: set[int] = set()
    chosen = []
    for _, field in sorted(zip(ranks, fields, strict=True), key=lambda pair: pair[0]):
        more = rows | set(_ends(field))
        if len(more) <= _MAX_ROWS:
            rows = more
            chosen.append(field)
    return chosen


def _ends(field: _Expected) -> list[int]:
    """Return the first and the last row of a field, and rows before and after it.

    A field that is in truth larger may have holes, but it then also reads where the neighboring
    units' fields begin and end.
    """
    jump = math.ceil(field.jump)
    before, after = (field.first - jump, field.first - 1), (field.last + 1, field.last + jump)
    return [*before, field.first, field.last, *after]


def _check_axis(
    model: nn.Module,
    arguments: list[Any],
    source: int,
    dim: int,
    axis: int,
    fields: Sequence[_Expected],
    before: int,
    after: int,
    batch_size: int,
) -> set[Key]:
    watched = {field.key: Watched(field.record.shape, (field.dim,), field.dim) for field in fields}
    experiments = Experiments(model, arguments, source, watched)
    positions = sorted({row + before for field in fields for row in _ends(field)})
    rows = torch.tensor(positions, device="cpu")
    nan = experiments.by_nan(dim, rows, batch_size)
    changed: Found = {}
    if not nan.keys() >= watched.keys():  # NaN cannot decide
        changed = experiments.by_change(dim, rows, batch_size, 0)
    readable = [field for field in fields if _is_shifted(field, changed | nan, before + after)]
    for trial in range(len(MAGNITUDES)):
        doubtful = {
            row + before
            for field in readable
            if not _agrees(field, nan, changed, positions, before, finished=False)
            for row in _ends(field)
        }
        if not doubtful:
            break
        at = torch.tensor([positions.index(row) for row in sorted(doubtful)], device="cpu")
        for key, units in experiments.by_change(dim, rows[at], batch_size, trial).items():
            empty = units.new_zeros((len(rows), *units.shape[1:]))
            changed.setdefault(key, empty)[at] |= units
    for field in readable:
        if not _agrees(field, nan, changed, positions, before, finished=True):
            raise ReceptiveFieldMismatchError(
                _message(field, nan, changed, positions, before, axis)
            )
    return {field.key for field in readable}


def _is_shifted(field: _Expected, found: Found, extension: int) -> bool:
    """Whether a larger input gives as many more units as the jump says, so that fields compare.

    Adaptive pooling, for example, keeps the number of units and has larger windows instead.
    """
    number = field.record.shape[field.dim]
    return field.key in found and found[field.key].shape[1] == number + extension / field.jump


def _seen(field: _Expected, found: Found, positions: Sequence[int], before: int) -> list[bool]:
    """Return whether the unit depends on the rows around the ends of its field."""
    unit = field.unit + int(before / field.jump)
    if field.key not in found:
        return [False] * len(_ends(field))
    return [bool(found[field.key][positions.index(r + before), unit]) for r in _ends(field)]


def _agrees(
    field: _Expected,
    nan: Found,
    changed: Found,
    positions: Sequence[int],
    before: int,
    *,
    finished: bool,
) -> bool:
    """Whether both ends are as expected. Rows outside count as read only if a change shows it."""
    by_nan = _seen(field, nan, positions, before)
    by_change = _seen(field, changed, positions, before)
    inside = all(by_nan[i] or by_change[i] for i in (2, 3))
    outside = any(by_change[i] or (by_nan[i] and not finished) for i in (0, 1, 4, 5))
    return inside and not outside


def _message(
    field: _Expected,
    nan: Found,
    changed: Found,
    positions: Sequence[int],
    before: int,
    axis: int,
) -> str:
    measures = field.record.axes[axis]
    by_nan = _seen(field, nan, positions, before)
    by_change = _seen(field, changed, positions, before)
    read = {
        row: change or (value and field.first <= row <= field.last)
        for row, value, change in zip(_ends(field), by_nan, by_change, strict=True)
    }
    rows = ", ".join(
        f"{row} is{'' if was_read else ' not'} read" for row, was_read in sorted(read.items())
    )
    return (
        f"Layer {field.record.name!r}, axis {axis}: according to the analysis, the size is "
        f"{measures.size}, the jump {measures.jump} and the padding {measures.padding}, so without "
        f"borders unit {field.unit} depends on {field.first} to {field.last}. According to the "
        f"experiment on a larger input, {rows}."
    )
