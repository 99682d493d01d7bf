"""The rule of every operation: what its result depends on, given what its arguments depend on.

An operation without a rule is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from cifar_resnet.arguments import is_integer
from cifar_resnet.fields.positions.merging import union
from cifar_resnet.fields.positions.support import Support
from cifar_resnet.fields.rules.indexing import INDEXING
from cifar_resnet.fields.rules.movement import MOVEMENT
from cifar_resnet.fields.rules.operation import Geometry, Operation, Rule
from cifar_resnet.fields.rules.windows import WINDOWS, _each, _slide
from cifar_resnet.fields.steps import Ref


def pointwise(op: Operation) -> Support:
    """Each element depends on those at its place, broadcast as PyTorch does."""
    operands = op.operands()
    if len(operands) == 1 and operands[0].shape == op.shape:
        return operands[0]
    return union(op.shape, operands, op.where)


def everywhere(op: Operation) -> Support:
    """Each element depends on all elements of the arguments that belong to its sample."""
    wholes = [s.reduce(range(1, len(s.shape)), keepdim=False) for s in op.operands()]
    ones = (1,) * (len(op.shape) - 1)
    return union(op.shape, [s.reshape((*s.shape, *ones)) for s in wholes], compare=False)


def nothing(op: Operation) -> None:
    """New values, which do not depend on those of the arguments."""
    return


def _filled(op: Operation) -> Support | None:
    """Values drawn or copied from the arguments; what is written over does not count."""
    refs = op.call.operands[op.call.is_in_place :]
    supports = [support for support in map(op.support_of, refs) if support is not None]
    return union(op.shape, supports, op.where) if supports else None


def _dims(op: Operation, support: Support) -> list[int]:
    dims = op["dim"]
    if dims is None or dims == []:
        return list(range(len(support.shape)))
    return [dims] if isinstance(dims, int) else list(dims)


def _reduction(op: Operation) -> Support:
    support = op.first[1]
    return support.reduce(_dims(op, support), keepdim=bool(op["keepdim"]))


def _along(op: Operation) -> Support:
    """Each element depends on all along some dimensions, whose size may change."""
    support = op.first[1]
    dims = _dims(op, support)
    if support.shape == op.shape:
        return support.blend(dims)
    return support.reduce(dims).expand(op.shape)


def _cumulative(op: Operation) -> Support:
    return op.first[1].cumulate(op["dim"])


def _scaled(op: Operation, support: Support, dim: int | None = None) -> Support:
    """With a normalization's own arguments, if they depend on the input: they run along `dim`, or
    along the last dimensions."""
    parts = [support]
    for name in ("weight", "bias", "running_mean", "running_var"):
        own = op.support(name) if op.call.declares(name) else None
        if own is not None:
            shape = own.shape if dim is None else (*own.shape, *[1] * (len(op.shape) - dim - 1))
            parts.append(own.reshape(shape))
    return support if len(parts) == 1 else union(op.shape, parts, compare=False)


def _layer_norm(op: Operation) -> Support:
    support = op.first[1]
    rank = len(support.shape)
    return _scaled(op, support.blend(range(rank - len(op["normalized_shape"]), rank)))


def _group_norm(op: Operation) -> Support:
    ref, support = op.first
    groups = op["group"]
    grouped = support.reshape((ref.shape[0], groups, -1, *ref.shape[2:]))
    return _scaled(op, grouped.blend(range(2, len(grouped.shape))).reshape(ref.shape), 1)


def _batch_norm(op: Operation) -> Support:
    support = op.first[1]
    if not op.call.argument("training", op.call.name == "_native_batch_norm_legit"):
        return _scaled(op, support, 1)
    return _scaled(op, support.blend([dim for dim in range(len(support.shape)) if dim != 1]), 1)


def _product(op: Operation) -> Support:
    """Matrix products, with an addend or without."""
    args = [arg for arg in op.call.args if isinstance(arg, Ref)]
    *addends, a, b = args
    parts = [s for s in map(op.support_of, addends) if s is not None]
    left, right = op.support_of(a), op.support_of(b)
    if left is not None:  # (..., n, m) gives every element of row n
        rows = left.reduce([-1], keepdim=False)
        parts.append(rows if len(b.shape) == 1 else rows.insert(len(rows.shape)))
    if right is not None:  # (..., m, k) gives every element of column k
        columns = right.reduce([len(b.shape) - 2 if len(b.shape) > 1 else 0], keepdim=False)
        parts.append(columns.insert(len(columns.shape) - 1) if len(b.shape) > 1 else columns)
    return union(op.shape, parts, compare=False)


def _attention(op: Operation) -> Support:
    """`scaled_dot_product_attention`: the keys and values of all places, or of the earlier ones."""
    parts = []
    query = op.support("query")
    if query is not None:
        parts.append(query.reduce([-1]))
    for name in ("key", "value"):
        support = op.support(name)
        if support is None:
            continue
        if op["enable_gqa"]:  # several heads share a key
            support = support.reduce([-3])
        if name == "key":
            support = support.reduce([-1])
        if op["is_causal"]:
            parts.append(support.cumulate(-2))
        else:
            parts.append(support.reduce([-2]))
    bias = op.support("attn_mask") or op.support("attn_bias")
    if bias is not None:
        parts.append(bias.reduce([-1]))
    return union(op.shape, parts, compare=False)


def _glu(op: Operation) -> Support:
    ref, support = op.first
    dim = op["dim"] % len(ref.shape)
    halves = (*ref.shape[:dim], 2, ref.shape[dim] // 2, *ref.shape[dim + 1 :])
    return support.reshape(halves).reduce([dim], keepdim=False)


def window(
    kernel_size: int | tuple[int, ...],
    stride: int | tuple[int, ...] = 1,
    padding: int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
) -> Rule:
    """A rule for an operation that slides over (N, C, *spatial) and mixes the channels."""

    def rule(op: Operation) -> Support:
        support = op.first[1].reduce([1], keepdim=False).insert(1)
        number = len(support.shape) - 2
        geometry = Geometry(*(_each(v, number) for v in (kernel_size, stride, padding, dilation)))
        return _slide(
            op, support.expand((support.shape[0], op.shape[1], *support.shape[2:])), geometry
        )

    return rule


# What PyTorch itself marks as pointwise needs no entry; these it does not.
_POINTWISE = (
    "_conj", "_prelu_kernel", "_to_copy", "alias", "detach", "hardswish", "lift_fresh",
    "lift_fresh_copy", "log_sigmoid_forward", "native_dropout", "rrelu_with_noise",
)  # fmt: skip
_NEW = (
    "empty_like", "full_like", "new_empty", "new_empty_strided", "new_full", "new_ones",
    "new_zeros", "ones_like", "rand_like", "randint_like", "randn_like", "zero", "zeros_like",
)  # fmt: skip
_FILLS = ("bernoulli", "cauchy", "exponential", "fill", "log_normal", "normal", "uniform")
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
_ATTENTION = (
    "_scaled_dot_product_cudnn_attention", "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_fused_attention_overrideable", "scaled_dot_product_attention",
)  # fmt: skip
_PRODUCTS = ("addmm", "addmv", "baddbmm", "bmm", "dot", "mm", "mv")

RULES: Mapping[str, Rule] = {
    **WINDOWS,
    **MOVEMENT,
    **INDEXING,
    **dict.fromkeys(_POINTWISE, pointwise),
    **dict.fromkeys(_NEW, nothing),
    **dict.fromkeys(_FILLS, _filled),
    **dict.fromkeys(_REDUCTIONS, _reduction),
    **dict.fromkeys(_ALONG, _along),
    **dict.fromkeys(("cummax", "cummin", "cumprod", "cumsum", "logcumsumexp"), _cumulative),
    **dict.fromkeys(_BATCH_NORMS, _batch_norm),
    **dict.fromkeys(_PRODUCTS, _product),
    **dict.fromkeys(_ATTENTION, _attention),
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "glu": _glu,
}


def rule_for(op: torch._ops.OpOverload, name: str, own: Mapping[str, Rule]) -> Rule | None:
    """The rule of an operation: the caller's own, ours, or PyTorch's word that it is pointwise."""
    for key in (str(op), op._schema.name, name):
        if key in own:
            return own[key]
    if name in RULES:
        return RULES[name]
    tagged = [op]
    if op.namespace == "aten" and hasattr(torch.ops.aten, name):  # what it does out of place
        packet = getattr(torch.ops.aten, name)
        tagged += [getattr(packet, overload) for overload in packet.overloads()]
    return pointwise if any(torch.Tag.pointwise in each.tags for each in tagged) else None


def as_rule(given: Any) -> Rule:
    """A caller's rule: "pointwise", "global", a mapping of window sizes, or a function."""
    if given == "pointwise":
        return pointwise
    if given == "global":
        return everywhere
    if isinstance(given, Mapping) and "kernel_size" in given and _is_window(given):
        return window(**given)
    if callable(given):
        return given  # type: ignore[no-any-return]
    raise (ValueError if isinstance(given, str | Mapping) else TypeError)(
        f"A rule must be 'pointwise', 'global', a mapping with kernel_size (and stride, padding, "
        f"dilation), or a function of the operation, but got {given!r}."
    )


def _is_window(sizes: Mapping[Any, Any]) -> bool:
    """Whether all are sizes that a window can have."""
    least = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    return all(
        name in least
        and all(
            is_integer(each) and each >= least[name]
            for each in (size if isinstance(size, tuple | list) else (size,))
        )
        for name, size in sizes.items()
    )
