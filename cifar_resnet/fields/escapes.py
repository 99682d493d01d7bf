"""Values that leave the tensors of a run: which functions extract them, and where they end up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# `bool` is missing on purpose: it chooses a branch, and the branch taken is followed.
EXTRACTS_VALUES = {
    Tensor.__array__, Tensor.__complex__, Tensor.__dlpack__, Tensor.__float__, Tensor.__format__,
    Tensor.__index__, Tensor.__int__, Tensor.apply_, Tensor.data_ptr, Tensor.item, Tensor.map_,
    Tensor.map2_, Tensor.numpy, Tensor.storage, Tensor.tolist, Tensor.untyped_storage,
}  # fmt: skip

# They read numbers inside a list without an operation.
FROM_ELEMENTS = {torch.as_tensor, torch.asarray, torch.tensor, Tensor.new_tensor}


def is_followed(function: Any) -> bool:
    """Whether a number that a function reads from a tensor ends up only in what it returns."""
    module = getattr(function, "__module__", None) or "torch"  # methods of tensors have no module
    return str(module).partition(".")[0] == "torch"


def has_numbers(values: Any) -> bool:
    """Whether a result contains anything that may be a value of a tensor, outside of tensors.

    A bool is expected to choose a branch, and a string to be printed.
    """
    if values is None or isinstance(values, bool | str | Tensor):
        return False
    if isinstance(values, Mapping):
        return any(map(has_numbers, values.values()))
    if isinstance(values, list | tuple):
        return any(map(has_numbers, values))
    return True


def returns_values(op: torch._ops.OpOverload) -> bool:
    """Whether an operation returns values of its arguments as numbers.

    PyTorch's own operations that return integers ask for sizes.
    """
    kinds = {str(each.type) for each in op._schema.returns}
    numbers = {"float", "number", "Scalar", "complex"}
    if op.namespace not in ("aten", "prim", "prims"):
        numbers |= {"int", "SymInt", "SymFloat"}
    return bool(kinds & numbers)


def flat_elements(data: Any) -> list[Any]:
    """Return the elements of nested lists in order."""
    if isinstance(data, list | tuple):
        return [element for inner in data for element in flat_elements(inner)]
    return [data]
