"""Records as text. It knows columns; it must not know tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from cifar_resnet.fields.records import LayerField
from cifar_resnet.fields.result import ReceptiveFields

_HEADER = ("layer", "kind", "kernel", "stride", "padding", "output", "channels", "jump", "RF")
_LEFT = 2  # columns of text, aligned left


def text_table(fields: ReceptiveFields, every_layer: bool) -> str:
    rows = [_HEADER, *_rows(fields, every_layer)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, *_notes(fields)])


def markdown_table(fields: ReceptiveFields, every_layer: bool) -> str:
    rows = [_HEADER, *_rows(fields, every_layer)]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    rule = ["---"] * _LEFT + ["---:"] * (len(_HEADER) - _LEFT)
    lines.insert(1, "| " + " | ".join(rule) + " |")
    notes = [f"\n{note}" for note in _notes(fields)]
    return "\n".join([*lines, *notes])


def as_dict(layer: LayerField) -> dict[str, Any]:
    geometry = layer.geometry
    return {
        "kind": layer.kind,
        "shape": list(layer.shape),
        "channels": layer.channels,
        "kernel_size": list(geometry.kernel_size) if geometry else None,
        "kernel_stride": list(geometry.stride) if geometry else None,
        "kernel_padding": list(geometry.padding) if geometry else None,
        "kernel_dilation": list(geometry.dilation) if geometry else None,
        "size": list(layer.size),
        "stride": [None if s is None else _number(s) for s in layer.stride],
        "start": [None if math.isnan(start) else start for start in layer.start],
        "padding": list(layer.padding),
        "coverage": list(layer.coverage),
        "uniform": layer.uniform,
        "is_global": list(layer.is_global),
        "aligned": layer.aligned,
        "merged_at": sorted({name for axis in layer.axes for name in axis.merged_at}),
    }


def _rows(fields: ReceptiveFields, every_layer: bool) -> list[tuple[str, ...]]:
    shown: list[LayerField] = []
    for layer in fields.values():
        before = shown[-1] if shown else None
        changed = (
            before is None
            or layer.geometry is not None
            or layer.size != before.size
            or (layer.is_module and layer.unit_shape != before.unit_shape)
        )
        if every_layer or changed:
            shown.append(layer)
    return [_row(layer) for layer in shown]


def _row(layer: LayerField) -> tuple[str, ...]:
    geometry = layer.geometry
    kernel = "-"
    if geometry:
        kernel = _sizes(geometry.kernel_size)
        if set(geometry.dilation) != {1}:
            kernel += f" (dilation {_sizes(geometry.dilation)})"
    field = _sizes(layer.size)
    if all(layer.is_global) and layer.unit_shape and max(layer.unit_shape) > 1:
        field += " global"
    if not layer.aligned:
        field += " *"
    return (
        layer.name,
        layer.kind,
        kernel,
        _sizes(geometry.stride) if geometry else "-",
        _sizes(geometry.padding) if geometry else "-",
        " x ".join(map(str, layer.unit_shape)) or "-",
        "-" if layer.channels is None else str(layer.channels),
        _sizes([s if s is None else _number(s) for s in layer.stride]),
        field,
    )


def _notes(fields: ReceptiveFields) -> list[str]:
    notes = []
    merges = {name for layer in fields.values() for axis in layer.axes for name in axis.merged_at}
    if merges:
        notes.append(f"* branches of different centers or strides meet in {_some(sorted(merges))}")
    if fields.ignored:
        notes.append(f"left out on request: {_some(fields.ignored)}")
    if fields.skipped:
        notes.append(f"taken for pointwise, without a rule: {_some(fields.skipped)}")
    return notes


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _sizes(values: Sequence[Any]) -> str:
    """`3` for (3, 3), `1 x 3` for (1, 3)."""
    texts = ["-" if value is None else str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else " x ".join(texts)


def _number(value: Fraction) -> int | str:
    return value.numerator if value.denominator == 1 else str(value)
