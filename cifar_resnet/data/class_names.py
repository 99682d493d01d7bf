"""Convert class names and class numbers passed by a caller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cifar_resnet import arguments


def class_index(requested: int | str | None, names: Sequence[str], argument: str) -> int | None:
    """Return the number of a class given by name or number, or None if it is None."""
    check_class(argument, requested)
    if requested is None:
        return None
    if isinstance(requested, str) and requested in names:
        return list(names).index(requested)
    if not isinstance(requested, str) and 0 <= requested < len(names):
        return int(requested)
    raise ValueError(
        f"{argument} must be a number from 0 to {len(names) - 1} or one of {', '.join(names[:20])}"
        f"{', ...' if len(names) > 20 else ''}, but got {requested!r}."
    )


def check_class(argument: str, requested: Any) -> None:
    """Raise an error for a value that cannot be a class name or number in any dataset."""
    if requested is None or isinstance(requested, str):
        return
    message = f"{argument} must be the number or the name of a class, but got {requested!r}."
    if not arguments.is_integer(requested):
        raise TypeError(message)
    if requested < 0:
        raise ValueError(message)


def as_class_names(class_names: Any) -> tuple[str, ...] | None:
    """Return the names as a tuple of strings, or None if there are none."""
    if class_names is None:
        return None
    return tuple(map(str, arguments.sequence("class_names", class_names, "a sequence of names")))
