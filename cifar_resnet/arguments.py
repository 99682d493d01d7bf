"""Validation of arguments: each function returns a plain Python value or raises a clear error.

A value of the wrong type raises a TypeError, and one out of range a ValueError; the message states
the value and what was expected. NumPy scalars are accepted as numbers.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, KeysView, Mapping, Sequence, Set
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    import torch

__all__ = [
    "BELOW_ONE",
    "FRACTION",
    "NON_NEGATIVE",
    "PICTURES",
    "POSITIVE",
    "POSITIVE_FRACTION",
    "boolean",
    "choice",
    "device",
    "function",
    "integer",
    "is_integer",
    "is_remote",
    "number",
    "path",
    "sequence",
]

Range = tuple[Callable[[float], bool], str]  # test of membership, and description

POSITIVE: Range = (lambda value: 0 < value < math.inf, "a finite number greater than 0")
NON_NEGATIVE: Range = (lambda value: 0 <= value < math.inf, "a finite number of at least 0")
FRACTION: Range = (lambda value: 0 <= value <= 1, "a number in [0, 1]")
POSITIVE_FRACTION: Range = (lambda value: 0 < value <= 1, "a number in (0, 1]")
BELOW_ONE: Range = (lambda value: 0 <= value < 1, "a number in [0, 1)")

PICTURES = (  # remedy for what is not a tensor
    "To classify pictures, paths or arrays, call cifar_resnet.predict(model, images), which "
    "resizes and normalizes them."
)


def is_integer(value: object) -> TypeGuard[int]:
    """Return whether a value is an integer of Python or NumPy. True and False do not count."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def integer(name: str, value: Any, *, minimum: int, instead: str = "") -> int:
    """Validate an integer of at least `minimum`. `instead` names what else the caller accepts."""
    message = f"{name} must be an integer of at least {minimum}{instead}, but got {value!r}."
    if not is_integer(value):
        raise TypeError(message)
    if value < minimum:
        raise ValueError(message)
    return int(value)


def number(name: str, value: Any, within: Range) -> float:
    """Validate a number in a range. Integers remain integers."""
    is_inside, expected = within
    message = f"{name} must be {expected}, but got {value!r}."
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(message)
    plain = int(value) if isinstance(value, Integral) else float(value)
    if not is_inside(plain):
        raise ValueError(message)
    return plain


def boolean(name: str, value: Any) -> bool:
    """Validate True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, but got {value!r}.")
    return value


def choice(name: str, value: Any, choices: Sequence[str | None]) -> Any:
    """Validate one of several names, which may include None."""
    message = f"{name} must be one of {', '.join(map(repr, choices))}, but got {value!r}."
    if not isinstance(value, str) and not (value is None and None in choices):
        raise TypeError(message)
    if value not in choices:
        raise ValueError(message)
    return choices[choices.index(value)]


def path(name: str, value: Any, expected: str = "a path") -> Path:
    """Validate a path, and expand a leading `~`."""
    message = f"{name} must be {expected}, but got {value!r}."
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError(message)
    if not text or "\0" in text:
        raise ValueError(message)
    if is_remote(text):
        raise ValueError(
            f"{name} must be a path on a local file system, but got {text!r}. Use a local path, "
            "and copy the files to or from the remote storage."
        )
    return Path(text).expanduser()


def is_remote(path: str | Path) -> bool:
    """Return whether a path is an address such as `s3://bucket/file`.

    `pathlib.Path` removes one of the slashes. A single letter is a drive of Windows.
    """
    return re.match(r"[A-Za-z][A-Za-z0-9+.:-]+:/", str(path)) is not None


def sequence(name: str, value: Any, expected: str) -> list[Any]:
    """Validate an ordered collection, which excludes sets, mappings, iterators and bytes."""
    message = f"{name} must be {expected}, but got {value!r}."
    is_set = isinstance(value, Set) and not isinstance(value, KeysView)
    if is_set or isinstance(value, Mapping | Iterator | bytes):
        raise TypeError(message)
    try:
        return list(value)
    except TypeError as error:
        raise TypeError(message) from error


def height_and_width(name: str, value: Any, expected: str, *, multiple: int = 1) -> tuple[int, int]:
    """Validate a height and a width in pixels, or one number for both, multiples of `multiple`."""
    message = f"{name} must be {expected}, but got {value!r}."
    if isinstance(value, str):
        raise TypeError(message)
    sides = [value] * 2 if is_integer(value) else sequence(name, value, expected)
    if not all(map(is_integer, sides)):
        raise TypeError(message)
    if len(sides) != 2 or any(side < multiple or side % multiple for side in sides):
        raise ValueError(message)
    return int(sides[0]), int(sides[1])


def function(name: str, value: Any, expected: str) -> Any:
    """Validate a callable or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be {expected}, but got {value!r}.")
    return value


def device(name: str, value: Any) -> torch.device:
    """Validate a device, its name or its index."""
    import torch

    message = f"{name} must be a device or its name, such as 'cpu' or 'cuda:0', but got {value!r}."
    if not isinstance(value, torch.device | str) and not is_integer(value):
        raise TypeError(message)
    try:
        return torch.device(value)
    except RuntimeError as error:
        raise ValueError(message) from error
