"""Share the arrays of a dataset among all that use it in a process."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cifar_resnet.data import sources
from cifar_resnet.data.formats import Arrays

__all__ = ["load_shared", "shared"]

_shared: dict[tuple[str, Path], tuple[weakref.ref[Any], ...]] = {}


def load_shared(data_dir: Path) -> Arrays:
    """Return the verified images of a folder; while they are in use, all callers share them.

    A trainer is a reference cycle and keeps its data module until the garbage collector runs, so
    many runs in one process would otherwise hold a copy each.

    Raises:
        DatasetError: If CIFAR-10 is not in `data_dir`, or a file is damaged.
    """
    return Arrays(*shared(("CIFAR-10", data_dir.resolve()), lambda: sources.load(data_dir)))


def shared(key: tuple[str, Path], read: Callable[[], Sequence[Any]]) -> Sequence[Any]:
    """Return the arrays of a dataset in a folder, which are read only if nobody holds them."""
    parts: list[Any] = [reference() for reference in _shared.get(key, ())]
    if parts and all(part is not None for part in parts):
        return parts
    arrays = read()
    _shared[key] = tuple(map(weakref.ref, arrays))
    return arrays
