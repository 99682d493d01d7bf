"""The table of rules by operation, and the rules that are neither windows, moves nor indexing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cifar_resnet.arguments import is_integer
from cifar_resnet.fields.names import ATTENTION
from cifar_resnet.fields.positions.merging import union
from cifar_resnet.fields.positions.sets import PositionSets
from cifar_resnet.fields.rules.addresses import view_by_address
from cifar_resnet.fields.rules.algebra import ALGEBRA
from cifar_resnet.fields.rules.deformable import DEFORMABLE
from cifar_resnet.fields.rules.indexing import INDEXING
from cifar_resnet.fields.rules.masks import MASKS, attention
from cifar_resnet.fields.rules.movement import MOVEMENT
from cifar_resnet.fields.rules.operation import Geometry, Operation, Rule, everything
from cifar_resnet.fields.rules.scattering import SCATTERING
from cifar_resnet.fields.rules.windows import WINDOWS, per_axis, slide


def pointwise(op: Operation) -> PositionSets:
    """Return the union of the arguments, element by element, broadcast as PyTorch does."""
    operands = op.operands()
    if len(operands) == 1 and operands[0].shape == op.shape:
        return operands[0]
    return union(op.shape, operands, op.where)


def whole_sample(op: Operation) -> PositionSets:
    """Let each element depend on all elements of the arguments that belong to the same sample."""
    wholes = [s.reduce(range(1, len(s.shape)), keepdim=False) for s in op.operands()]
    ones = (1,) * (len(op.shape) - 1)
    return union(op.shape, [s.reshape((*s.shape, *ones)) for s in wholes], compare=False)


def new_values(op: Operation) -> None:
    """Return None: the values of the result do not depend on those of the arguments."""
    return


def _fill(op: Operation) -> PositionSets | None:
    """Return what the new values of a tensor depend on, as in `y.fill_(x.mean())`."""
    # In place, the first operand is the tensor that is written to. Its old values do not count.
    refs = op.call.operands[op.call.is_in_place :]
    operands = [sets for sets in map(op.sets_of, refs) if sets is not None]
    return union(op.shape, operands, op.where) if operands else None


def _dims(op: Operation, sets: PositionSets) -> list[int]:
    dims = op["dim"]
    if dims is None or dims == []:
        return list(range(len(sets.shape)))
    return [dims] if isinstance(dims, int) else list(dims)


def _reduction(op: Operation) -> PositionSets:
    sets = op.first[1]
    return sets.reduce(_dims(op, sets), keepdim=bool(op["keepdim"]))


def _mix_along(op: Operation) -> PositionSets:
    """Let each element depend on all elements along some dimensions, whose size may change."""
    sets = op.first[1]
    dims = _dims(op, sets)
    if sets.shape == op.shape:
        return sets.blend(dims)
    return sets.reduce(dims).expand(op.shape)  # `topk` and real Fourier transforms


def _cumulative(op: Operation) -> PositionSets:
    return op.first[1].cumulate(op["dim"])


def _with_parameters(op: Operation, sets: PositionSets, dim: int | None = None) -> PositionSets:
    """Add what the parameters of a normalization depend on, if they depend on the input.

    They run along `dim`. If None, they run along the last dimensions.
    """
    parts = [sets]
    for name in ("weight", "bias", "running_mean", "running_var"):
        own = op.sets(name) if op.call.declares(name) else None
        if own is not None:
            shape = own.shape if dim is None else (*own.shape, *[1] * (len(op.shape) - dim - 1))
            parts.append(own.reshape(shape))
    return sets if len(parts) == 1 else union(op.shape, parts, compare=False)


def _layer_norm(op: Operation) -> PositionSets:
    sets = op.first[1]
    rank = len(sets.shape)
    return _with_parameters(op, sets.blend(range(rank - len(op["normalized_shape"]), rank)))


def _group_norm(op: Operation) -> PositionSets:
    ref, sets = op.first
    groups = op["group"]
    grouped = sets.split(1, (groups, ref.shape[1] // groups))
    return _with_parameters(op, grouped.blend(range(2, len(grouped.shape))).merge(1), 1)


def _batch_norm(op: Operation) -> PositionSets:
    sets = op.first[1]
    if not op.call.argument("training", op.call.name == "_native_batch_norm_legit"):
        return _with_parameters(op, sets, 1)
    return _with_parameters(op, sets.blend([dim for dim in range(len(sets.shape)) if dim != 1]), 1)


def _renorm(op: Operation) -> PositionSets:
    sets = op.first[1]
    dim = op["dim"] % len(sets.shape)
    return sets.blend([other for other in range(len(sets.shape)) if other != dim])


def _glu(op: Operation) -> PositionSets:
    ref, sets = op.first
    dim = op["dim"] % len(ref.shape)
    return sets.split(dim, (2, ref.shape[dim] // 2)).reduce([dim], keepdim=False)


def window_rule(
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
) -> Rule:
    """Make a rule for an operation that slides over (N, C, *spatial) and mixes the channels.

    The window is that of the first argument. Another argument with the spatial shape of the result,
    such as the offsets of a deformable convolution, is read at the position of the unit; any other
    is read everywhere.
    """

    def rule(op: Operation) -> PositionSets:
        ref, sets = op.first
        sets = sets.reduce([1])
        number = len(ref.shape) - 2
        geometry = Geometry(
            *(per_axis(v, number) for v in (kernel_size, stride, padding, dilation))
        )
        parts = [slide(op, sets.expand((ref.shape[0], op.shape[1], *ref.shape[2:])), geometry)]
        for other in op.call.operands:
            own = op.sets_of(other)
            if own is None or other == ref:
                continue
            at_unit = other.shape[2:] == op.shape[2:] and other.shape[0] == op.shape[0]
            parts.append(own.reduce([1] if at_unit else range(len(other.shape))))
            if not at_unit:
                parts[-1] = parts[-1].reshape((1,) * len(op.shape))
        return parts[0] if len(parts) == 1 else union(op.shape, parts, compare=False)

    return rule


# Operations that PyTorch itself tags as pointwise need no entry here.
_POINTWISE = (
    "_conj", "_prelu_kernel", "_to_copy", "alias", "complex", "dequantize", "detach",
    "floor_divide", "hardswish", "lift_fresh", "lift_fresh_copy", "log_sigmoid_forward",
    "native_dropout", "polar", "quantize_per_tensor", "rrelu_with_noise",
)  # fmt: skip
_NEW = (
    "empty_like", "full_like", "new_empty", "new_empty_strided", "new_full", "new_ones",
    "new_zeros", "ones_like", "rand_like", "randint_like", "randn_like", "zero", "zeros_like",
)  # fmt: skip
_FILLS = (
    "arange", "bernoulli", "cauchy", "exponential", "fill", "full", "linspace", "log_normal",
    "logspace", "normal", "scalar_tensor", "uniform",
)  # fmt: skip
_REDUCTIONS = (
    "all", "amax", "amin", "aminmax", "any", "argmax", "argmin", "count_nonzero", "kthvalue",
    "linalg_vector_norm", "logsumexp", "max", "mean", "median", "min", "mode", "nanmedian",
    "nansum", "norm", "prod", "std", "std_mean", "sum", "var", "var_mean",
)  # fmt: skip
_ALONG = (
    "_fft_c2c", "_fft_c2r", "_fft_r2c", "_log_softmax", "_safe_softmax", "_softmax", "sort", "topk",
)  # fmt: skip
_BATCH_NORMS = (
    "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "miopen_batch_norm", "native_batch_norm",
)  # fmt: skip
_GLOBAL = (
    "_ctc_loss", "_unique2", "bincount", "histc", "histogram", "multi_margin_loss",
    "multilabel_margin_loss_forward", "nonzero", "trace", "unique_consecutive", "unique_dim",
)  # fmt: skip

RULES: Mapping[str, Rule] = {
    **WINDOWS,
    **MOVEMENT,
    **INDEXING,
    **MASKS,
    **SCATTERING,
    **DEFORMABLE,
    **dict.fromkeys(_POINTWISE, pointwise),
    **dict.fromkeys(_NEW, new_values),
    **dict.fromkeys(_FILLS, _fill),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_ALONG, _mix_along),
    **dict.fromkeys(("cummax", "cummin", "cumprod", "cumsum", "logcumsumexp"), _cumulative),
    **dict.fromkeys(_BATCH_NORMS, _batch_norm),
    **ALGEBRA,
    **dict.fromkeys(ATTENTION, attention),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "glu": _glu,
    **dict.fromkeys(_GLOBAL, everything),
    "renorm": _renorm,
}


def rule_for(op: torch._ops.OpOverload, name: str, own: Mapping[str, Rule]) -> Rule | None:
    """Return the rule of an operation, or None if there is none.

    The caller's own rules come first, then the table, then PyTorch's tag for pointwise operations.
    """
    for key in (str(op), op._schema.name, name):
        if key in own:
            return own[key]
    if name in RULES:
        return RULES[name]
    if op.namespace == "aten" and op.is_view:
        return view_by_address
    tagged = [op]
    if op.namespace == "aten" and hasattr(torch.ops.aten, name):
        # Only some overloads have the tag. `abs_` does not, but `abs` does.
        packet = getattr(torch.ops.aten, name)
        tagged += [getattr(packet, overload) for overload in packet.overloads()]
    return pointwise if any(torch.Tag.pointwise in each.tags for each in tagged) else None


def as_rule(given: Any) -> Rule:
    """Return a caller's rule: "pointwise", "global", a mapping of window sizes, or a function."""
    if given == "pointwise":
        return pointwise
    if given == "global":
        return whole_sample
    if isinstance(given, Mapping) and "kernel_size" in given and _is_window(given):
        return window_rule(**given)
    if callable(given):
        return given  # type: ignore[no-any-return]
    raise (ValueError if isinstance(given, str | Mapping) else TypeError)(
        f"A rule must be 'pointwise', 'global', a mapping with kernel_size (and stride, padding, "
        f"dilation), or a function of the operation, but got {given!r}."
    )


def _is_window(sizes: Mapping[Any, Any]) -> bool:
    """Whether all names and sizes are those of a window."""
    minimum = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    return all(
        name in minimum
        and all(
            is_integer(each) and each >= minimum[name]
            for each in (size if isinstance(size, tuple | list) else (size,))
        )
        for name, size in sizes.items()
    )
