"""Records of layers as text tables, Markdown and dictionaries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from cifar_resnet.fields.records import LayerField

_HEADER = ("layer", "kind", "kernel", "stride", "padding", "output", "channels", "jump", "RF")
_LEFT = 2  # the first columns are left-aligned text, the others numbers

Row = tuple[str, ...]


def text_table(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Return aligned columns under a header, with notes below."""
    rows = [_HEADER, *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADER))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, *notes])


def markdown_table(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Return a Markdown table, with notes as paragraphs below."""
    rows = [_HEADER, *rows]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    alignment = ["---"] * _LEFT + ["---:"] * (len(_HEADER) - _LEFT)
    lines.insert(1, "| " + " | ".join(alignment) + " |")
    return "\n".join([*lines, *(f"\n{note}" for note in notes)])


def table_rows(layers: Sequence[LayerField], every_layer: bool) -> list[Row]:
    """Return a row for each layer, or only for those that change something."""
    shown: list[LayerField] = []
    for layer in layers:
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


def as_dict(layer: LayerField) -> dict[str, Any]:
    """Return a record as plain numbers, strings and lists."""
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
        "jump": [None if jump is None else _number(jump) for jump in layer.jump],
        "start": [None if math.isnan(start) else start for start in layer.start],
        "padding": list(layer.padding),
        "coverage": list(layer.coverage),
        "uniform": layer.uniform,
        "is_global": list(layer.is_global),
        "aligned": layer.aligned,
        "merged_at": sorted({name for axis in layer.axes for name in axis.merged_at}),
    }


def first_few(names: Sequence[str]) -> str:
    """Return the first five names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _row(layer: LayerField) -> Row:
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
        _sizes([None if jump is None else _number(jump) for jump in layer.jump]),
        field,
    )


def _sizes(values: Sequence[Any]) -> str:
    """Return "3" for (3, 3), "1 x 3" for (1, 3)."""
    cells = ["-" if value is None else str(value) for value in values]
    return cells[0] if len(set(cells)) == 1 else " x ".join(cells)


def _number(value: Fraction) -> int | str:
    return value.numerator if value.denominator == 1 else str(value)
