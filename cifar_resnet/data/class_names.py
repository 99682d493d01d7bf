"""Convert class names and class numbers passed by a caller."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from cifar_resnet import arguments


def class_index(requested: int | str | None, names: Sequence[str], argument: str) -> int | None:
    """Return the number of a class given by name or number, or None if it is None."""
    check_class(argument, requested)
    if requested is None:
        return None
    numbers = [number for number, name in enumerate(names) if name == requested]
    if len(numbers) > 1:
        raise ValueError(
            f"{argument} is {requested!r}, but the classes {', '.join(map(str, numbers))} have "
            "this name. Pass the number of one of them."
        )
    if numbers:
        return numbers[0]
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


def check_different(true_class: int | None, pred_class: int | None, names: Sequence[str]) -> None:
    """Raise an error if an error's label and prediction are requested to be the same class."""
    if true_class is not None and true_class == pred_class:
        raise ValueError(
            f"true_class and pred_class are both {names[true_class]!r}; an error has two "
            "different classes."
        )


def as_class_names(class_names: Any) -> tuple[str, ...] | None:
    """Return the names as a tuple of strings, or None if there are none.

    Args:
        class_names: A sequence or an array of names, a dictionary from numbers to names or from
            names to numbers, or the `ClassLabel` or `Features` of a Hugging Face dataset.
    """
    if class_names is None:
        return None
    if isinstance(class_names, Mapping):
        labels = [each for each in class_names.values() if _is_class_label(each)]
        if len(labels) != 1:
            return _of_dictionary(class_names)
        class_names = labels[0]
    if _is_class_label(class_names):
        class_names = class_names.names
    names = arguments.sequence(
        "class_names",
        class_names.tolist() if isinstance(class_names, Tensor) else class_names,
        "a sequence of names, or a dictionary of them",
    )
    return tuple(map(_text, names))


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """Add the class number to each name that several classes share, as in "crane (134)"."""
    shared = {name for name, count in Counter(names).items() if count > 1}
    return tuple(
        f"{name} ({number})" if name in shared else name for number, name in enumerate(names)
    )


def _is_class_label(value: Any) -> bool:
    """Return whether a value is a `datasets.ClassLabel`."""
    return hasattr(value, "int2str") and hasattr(value, "names")


def _of_dictionary(class_names: Mapping[Any, Any]) -> tuple[str, ...]:
    by_number: dict[int, Any] = {}
    for key, value in class_names.items():
        if arguments.is_integer(key) or (isinstance(key, str) and key.isdecimal()):
            by_number[int(key)] = value
        elif arguments.is_integer(value):
            by_number[int(value)] = key
    if sorted(by_number) != list(range(len(class_names))):
        raise ValueError(
            "class_names must be a dictionary between the numbers from 0 to "
            f"{len(class_names) - 1} and names, but got {class_names!r}."
        )
    return tuple(_text(by_number[number]) for number in range(len(by_number)))


def _text(name: Any) -> str:
    if isinstance(name, tuple | list):
        return ", ".join(map(_text, name))  # synonyms, as in torchvision's ImageNet
    return name.decode() if isinstance(name, bytes) else str(name)
