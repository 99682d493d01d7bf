"""Arguments checked where a piece begins: the value in its plain Python form, or an error that says
what was given and what was expected. It knows single values; it must not know what they are for.

NumPy's numbers count as the numbers that they are. A value of another kind is a TypeError, one out
of its range a ValueError.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, KeysView, Mapping, Sequence, Set
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    import torch
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure

__all__ = [
    "BELOW_ONE",
    "FRACTION",
    "NON_NEGATIVE",
    "POSITIVE",
    "boolean",
    "choice",
    "colormap",
    "device",
    "figure",
    "function",
    "integer",
    "is_integer",
    "number",
    "path",
    "sequence",
]

Range = tuple[Callable[[float], bool], str]  # whether a number lies in it, and its description

POSITIVE: Range = (lambda value: 0 < value < math.inf, "a finite number greater than 0")
NON_NEGATIVE: Range = (lambda value: 0 <= value < math.inf, "a finite number of at least 0")
FRACTION: Range = (lambda value: 0 <= value <= 1, "a number in [0, 1]")
BELOW_ONE: Range = (lambda value: 0 <= value < 1, "a number in [0, 1)")


def is_integer(value: object) -> TypeGuard[int]:
    """Whether it is an integer of Python's or NumPy's; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def integer(name: str, value: Any, *, minimum: int, instead: str = "") -> int:
    """An integer of at least `minimum`. `instead` names what else the caller accepts."""
    message = f"{name} must be an integer of at least {minimum}{instead}, but got {value!r}."
    if not is_integer(value):
        raise TypeError(message)
    if value < minimum:
        raise ValueError(message)
    return int(value)


def number(name: str, value: Any, within: Range) -> float:
    """A number that lies in a range; an integer stays one."""
    fits, expected = within
    message = f"{name} must be {expected}, but got {value!r}."
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(message)
    plain = int(value) if isinstance(value, Integral) else float(value)
    if not fits(plain):
        raise ValueError(message)
    return plain


def boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, but got {value!r}.")
    return value


def choice(name: str, value: Any, choices: Sequence[str | None]) -> Any:
    """One of several names, of which None may be one."""
    message = f"{name} must be one of {', '.join(map(repr, choices))}, but got {value!r}."
    if not isinstance(value, str) and not (value is None and None in choices):
        raise TypeError(message)
    if value not in choices:
        raise ValueError(message)
    return choices[choices.index(value)]


def path(name: str, value: Any, expected: str = "a path") -> Path:
    message = f"{name} must be {expected}, but got {value!r}."
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise TypeError(message)
    if not text or "\0" in text:
        raise ValueError(message)
    return Path(text).expanduser()


def sequence(name: str, value: Any, expected: str) -> list[Any]:
    """What has an order and may be read again: no set, mapping, iterator or single value."""
    message = f"{name} must be {expected}, but got {value!r}."
    is_set = isinstance(value, Set) and not isinstance(value, KeysView)
    if is_set or isinstance(value, Mapping | Iterator | bytes):
        raise TypeError(message)
    try:
        return list(value)
    except TypeError as error:
        raise TypeError(message) from error


def function(name: str, value: Any, expected: str) -> Any:
    """Something that can be called, or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be {expected}, but got {value!r}.")
    return value


def device(name: str, value: Any) -> torch.device:
    import torch

    message = f"{name} must be a device or its name, such as 'cpu' or 'cuda:0', but got {value!r}."
    if not isinstance(value, torch.device | str) and not is_integer(value):
        raise TypeError(message)
    try:
        return torch.device(value)
    except RuntimeError as error:
        raise ValueError(message) from error


def figure(name: str, value: Any) -> Figure | SubFigure | None:
    from matplotlib.figure import Figure, SubFigure

    if value is not None and not isinstance(value, Figure | SubFigure):
        raise TypeError(
            f"{name} must be a Matplotlib figure or subfigure, or None for a new one, but got "
            f"{value!r}."
        )
    return value


def colormap(name: str, value: Any) -> Colormap:
    from matplotlib import colormaps
    from matplotlib.colors import Colormap

    if isinstance(value, Colormap):
        return value
    message = (
        f"{name} must be the name of a Matplotlib color map, such as 'viridis', 'cividis' or "
        f"'inferno', but got {value!r}."
    )
    if not isinstance(value, str):
        raise TypeError(message)
    if value not in colormaps:
        raise ValueError(message)
    return colormaps[value]
