"""Checks of the arguments of `receptive_field` and `check_receptive_field`, and their errors."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnet.arguments import is_integer, sequence
from cifar_resnet.fields.steps import Call, Trace, refs_in
from cifar_resnet.fields.trace import TraceError


def model_inputs(
    model: nn.Module,
    input_size: Sequence[int] | None,
    inputs: Sequence[Any] | None,
    source: int,
) -> tuple[Any, ...]:
    """Return the arguments to call the model with."""
    if (input_size is None) == (inputs is None):
        raise ValueError(
            "Pass either input_size, such as (1, 3, 32, 32), or inputs, a tuple of tensors."
        )
    if inputs is not None:
        arguments = (
            (inputs,)
            if isinstance(inputs, Tensor)
            else tuple(sequence("inputs", inputs, "the arguments to call the model with"))
        )
        message = (
            f"source must be the index of a tensor among the {len(arguments)} inputs, "
            f"but got {source!r}."
        )
        if not is_integer(source):
            raise TypeError(message)
        if not 0 <= source < len(arguments) or not isinstance(arguments[source], Tensor):
            raise ValueError(message)
        return arguments
    assert input_size is not None
    if not is_integer(source) or source != 0:
        raise (ValueError if is_integer(source) else TypeError)(
            f"source must be 0 if input_size is given, which describes one input, but got "
            f"{source!r}."
        )
    message = (
        f"input_size must be the shape of the input including the batch, positive integers such as "
        f"(1, 3, 32, 32), but got {input_size!r}. If the model has several inputs, pass "
        "inputs=(a, b) and source=, the index of the one to follow."
    )
    if isinstance(input_size, str) or not isinstance(input_size, Iterable):
        raise TypeError(message)
    sizes = list(input_size)
    if not all(map(is_integer, sizes)):
        raise TypeError(message)
    if not sizes or min(sizes) < 1:
        raise ValueError(message)
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    image = torch.zeros([int(size) for size in sizes], device="cpu")
    return (image if first is None else image.to(first),)


def followed_dims(shape: Sequence[int], dims: Sequence[int] | None) -> tuple[int, ...]:
    """Return the dimensions to follow, counted from 0."""
    if dims is None:
        if len(shape) < 3:
            raise ValueError(
                f"An input of shape {tuple(shape)} has no spatial dimension: expected "
                "(N, C, length), (N, C, height, width) or (N, C, depth, height, width). If the "
                "dimensions have another order, pass the ones to follow as spatial_dims."
            )
        return tuple(range(2, len(shape)))
    expected = f"dimensions of {tuple(shape)}, each once"
    message = f"spatial_dims must be {expected}, but got {dims!r}."
    given = sequence("spatial_dims", dims, expected)
    if not all(map(is_integer, given)):
        raise TypeError(message)
    followed = {int(dim) % len(shape) for dim in given if -len(shape) <= dim < len(shape)}
    if not given or len(followed) < len(given):
        raise ValueError(message)
    return tuple(int(dim) % len(shape) for dim in given)


def check_batch(run: Trace, source: int) -> None:
    """Raise an error if the model adds the batch dimension itself.

    The spatial dimensions then start at the second one, so the default would miss the first.
    """
    start = run.inputs[source]
    assert start is not None
    for step in run.steps:
        adds = isinstance(step, Call) and step.name == "unsqueeze" and step.argument("dim") == 0
        if adds and next(refs_in(step.args)).index == start.index:  # type: ignore[union-attr]
            spatial = tuple(range(1, len(start.shape)))
            raise ValueError(
                f"The model interprets the input of shape {start.shape} as one sample without a "
                f"batch. Include the batch, {(1, *start.shape)}, or pass the spatial dimensions: "
                f"spatial_dims={spatial}."
            )


def matching_layers(model: nn.Module, ignore: str | Iterable[str]) -> list[str]:
    """Return the submodules whose name or class matches one of the patterns."""
    expected = "names or classes of submodules, or patterns of them, as strings"
    given = list(ignore) if isinstance(ignore, Iterator) else ignore
    patterns = [given] if isinstance(given, str) else sequence("ignore", given, expected)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"ignore must be {expected}, but got {ignore!r}.")
    modules = {name: type(module).__name__ for name, module in model.named_modules() if name}
    names = []
    for pattern in patterns:
        matches = [
            name
            for name, kind in modules.items()
            if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(kind, pattern)
        ]
        if not matches:
            raise ValueError(
                f"ignore={pattern!r} matches no submodule's name or class. There are: "
                f"{', '.join(list(modules)[:20])}{', ...' if len(modules) > 20 else ''}."
            )
        names += matches
    return names


def check_rules(rules: Any) -> None:
    if rules is None:
        return
    if not isinstance(rules, Mapping) or not all(isinstance(name, str) for name in rules):
        raise TypeError(
            f"rules must be a mapping from the names of operations to rules, but got {rules!r}."
        )


_PLAIN_CALL = "Call the function that it would choose or run, in plain PyTorch."
_PLAIN = {
    "cond": "Use a Python `if`, or call the branch that it would choose.",
    "flex_attention": "Use F.scaled_dot_product_attention, with the mask as a tensor.",
}


def failure_message(error: TraceError, shape: Sequence[int], inputs: Any) -> str:
    """Return the message for a model that raises an error of its own, with a remedy."""
    cause = error.__cause__
    layer = f" in layer {error.layer!r}" if error.layer else ""
    remedy = "Check the input's shape: it must be (N, C, *spatial), such as (1, 3, 32, 32)."
    if "HigherOrderOperator" in str(cause):
        operation = str(cause).partition("HigherOrderOperator ")[2].partition(" ")[0]
        return (
            f"The model calls torch's higher-order operation {operation}{layer}, whose parts "
            f"cannot be recorded. {_PLAIN.get(operation, _PLAIN_CALL)}"
        )
    if isinstance(cause, TypeError) and "positional argument but" in str(cause):
        remedy = (
            "If the arguments of forward are keyword-only, wrap the model in a module that passes "
            "them by name."
        )
    elif isinstance(cause, TypeError) and "argument" in str(cause):
        remedy = (
            "If the model has several inputs, pass inputs=(a, b) and source=, the index of the one "
            "to follow."
        )
    elif "ernel size" in str(cause):
        remedy = "The input is smaller than a kernel: use a larger one."
    given = "these inputs" if inputs is not None else f"an input of shape {tuple(shape)}"
    reason = str(cause).rstrip(".")
    return f"The model fails on {given}{layer}: {type(cause).__name__}: {reason}. {remedy}"
