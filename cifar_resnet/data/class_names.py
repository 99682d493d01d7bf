"""Convert class names and class numbers that a caller passes, and look one up by the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cifar_resnet import arguments


def class_index(requested: int | str | None, names: Sequence[str], argument: str) -> int | None:
    """A class given by name or number, as a number."""
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
    """Raise for what cannot be a class, whatever classes there are."""
    if requested is None or isinstance(requested, str):
        return
    message = f"{argument} must be the number or the name of a class, but got {requested!r}."
    if not arguments.is_integer(requested):
        raise TypeError(message)
    if requested < 0:
        raise ValueError(message)


def as_class_names(class_names: Any) -> tuple[str, ...] | None:
    if class_names is None:
        return None
    return tuple(map(str, arguments.sequence("class_names", class_names, "a sequence of names")))
