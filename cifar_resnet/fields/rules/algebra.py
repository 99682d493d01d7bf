"""Rules for products, distances, linear algebra, losses, and comparisons with a list of numbers."""

from __future__ import annotations

import torch

from cifar_resnet.fields.positions import taps
from cifar_resnet.fields.positions.merging import union
from cifar_resnet.fields.positions.sets import PositionSets
from cifar_resnet.fields.rules.addresses import read_elements
from cifar_resnet.fields.rules.operation import Operation, Rule, everything, whole
from cifar_resnet.fields.steps import Ref, refs_in


def _matmul(op: Operation) -> PositionSets:
    """Return the sets of a matrix product (..., n, m) @ (..., m, k), with or without an addend."""
    args = [arg for arg in op.call.args if isinstance(arg, Ref)]
    *addends, a, b = args
    parts = [s for s in map(op.sets_of, addends) if s is not None]
    left, right = op.sets_of(a), op.sets_of(b)
    if left is not None:  # element (i, j) depends on all of row i: (..., n, 1)
        rows = left.reduce([-1], keepdim=False)
        parts.append(rows if len(b.shape) == 1 else rows.unsqueeze(len(rows.shape)))
    if right is not None:  # ... and on all of column j: (..., 1, k)
        columns = right.reduce([len(b.shape) - 2 if len(b.shape) > 1 else 0], keepdim=False)
        parts.append(columns.unsqueeze(len(columns.shape) - 1) if len(b.shape) > 1 else columns)
    return union(op.shape, parts, compare=False)


def _distances(op: Operation) -> PositionSets:
    """Return the sets of the distances (..., n, k) between rows of (..., n, m) and (..., k, m)."""
    parts = []
    for name, order in (("x1", -1), ("x2", -2)):
        sets = op.sets(name)
        if sets is not None:
            parts.append(sets.reduce([-1], keepdim=False).unsqueeze(len(op.shape) + order))
    return union(op.shape, parts, compare=False)


def _cross(op: Operation) -> PositionSets:
    """Let each of three coordinates depend on the two others."""
    turned = [
        sets.expand(op.shape).window(op["dim"], taps.selected(3, order))
        for sets in op.operands()
        for order in ([1, 2, 0], [2, 0, 1])
    ]
    return union(op.shape, turned, compare=False)


def _pairs(op: Operation) -> PositionSets:
    """Return the sets of the distances between all pairs of rows of (n, m)."""
    ref, sets = op.first
    rows = sets.reduce([1], keepdim=False)
    return read_elements(rows, torch.triu_indices(ref.shape[0], ref.shape[0], 1))


def _batch_product(op: Operation) -> PositionSets:
    """Follow `addbmm`, the sum of the products of a batch."""
    parts = [op.sets("self")]
    for name, dim in (("batch1", 2), ("batch2", 1)):
        sets = op.sets(name)
        parts.append(sets and sets.reduce([0, dim]).squeeze([0]))
    return union(op.shape, [sets for sets in parts if sets is not None], compare=False)


def _outer(op: Operation) -> PositionSets:
    """Follow `addr`, the outer product of two vectors."""
    column = op.sets("vec1")
    parts = [op.sets("self"), column and column.unsqueeze(1), op.sets("vec2")]
    return union(op.shape, [sets for sets in parts if sets is not None], compare=False)


def _trilinear(op: Operation) -> PositionSets:
    """Follow the product of three tensors with new dimensions, summed over some."""
    parts, shapes = [], []
    for number in ("1", "2", "3"):
        ref, sets = op[f"i{number}"], op.sets(f"i{number}")
        shape = list(ref.shape)
        for dim in sorted(op[f"expand{number}"]):
            shape.insert(dim, 1)
            sets = sets and sets.unsqueeze(dim)
        shapes.append(shape)
        parts += [sets] if sets is not None else []
    product = union(torch.broadcast_shapes(*shapes), parts, compare=False)
    return product.reduce(op["sumdim"], keepdim=False)


def _matrices(op: Operation) -> list[PositionSets]:
    """Let all results depend on all elements of the matrices (..., n, m) of the same sample."""
    refs = list(op.call.operands)
    rank = len(refs[0].shape)
    known = []
    for ref in refs:
        sets = op.sets_of(ref)
        if sets is not None:  # an argument with one dimension less is a vector
            last = 1 if len(ref.shape) == rank - 1 else 2
            dims = range(max(0, len(ref.shape) - last), len(ref.shape))
            known.append(sets.reduce(dims, keepdim=False))
    batch = max(len(ref.shape) for ref in refs) - 2
    results = []
    for out in refs_in(op.call.outputs):
        inner = len(out.shape) - batch
        parts = [s.reshape((*s.shape, *[1] * inner)) if inner >= 0 else whole(s) for s in known]
        results.append(union(out.shape, parts, compare=False))
    return results


def _loss(op: Operation) -> PositionSets:
    if op["reduction"]:
        return everything(op)
    return union(op.shape, op.operands(), compare=False)


def _nll_loss(op: Operation) -> list[PositionSets | None]:
    """Follow the loss of log-probabilities (N, C, *spatial), and the sum of its weights."""
    target = op.sets("target")
    total = None if target is None else whole(target)
    if op["reduction"]:
        return [everything(op), total]
    ref, sets = op.first
    parts = [sets.reduce([min(1, len(ref.shape) - 1)], keepdim=False)]
    return [union(op.shape, parts if target is None else [*parts, target], compare=False), total]


def _compared(op: Operation) -> PositionSets:
    """Follow `bucketize` and `isin`, which compare each element with all numbers of a list."""
    numbers = "boundaries" if op.call.declares("boundaries") else "test_elements"
    each, given = op.call.args[0], op[numbers]
    own = op.sets_of(each) if isinstance(each, Ref) else None
    parts = [] if own is None else [own]
    if isinstance(given, Ref) and op.sets(numbers) is not None:
        parts.append(whole(op.sets_of(given)))  # type: ignore[arg-type]
    return union(op.shape, parts, compare=False)


def _searched(op: Operation) -> PositionSets:
    """Follow `searchsorted`, which looks each element up in the last dimension of a tensor."""
    parts = [op.sets("self"), op.sets("sorter")]
    numbers = op.sets("sorted_sequence")
    parts[1] = parts[1] and (whole(parts[1]) if len(parts[1].shape) == 1 else parts[1].reduce([-1]))
    if numbers is not None:
        parts.append(whole(numbers) if len(numbers.shape) == 1 else numbers.reduce([-1]))
    return union(op.shape, [sets for sets in parts if sets is not None], compare=False)


def _fake_quantize(op: Operation) -> PositionSets:
    """Follow a rounding of each element, with a scale of its own for each channel or for all."""
    parts = [sets for sets in [op.sets("self")] if sets is not None]
    for name in ("scale", "zero_point", "fake_quant_enabled"):
        own = op.sets(name) if op.call.declares(name) else None
        if own is not None and op.call.declares("axis"):
            parts.append(own.reshape((*own.shape, *[1] * (len(op.shape) - op["axis"] - 1))))
        elif own is not None:
            parts.append(whole(own))
    return union(op.shape, parts, compare=False)


_PRODUCTS = ("addmm", "addmv", "baddbmm", "bmm", "dot", "mm", "mv", "vdot")
_MATRICES = (
    "_linalg_det", "_linalg_eigh", "_linalg_eigvals", "_linalg_slogdet", "_linalg_solve_ex",
    "_linalg_svd", "cholesky_inverse", "geqrf", "linalg_cholesky_ex", "linalg_eig",
    "linalg_householder_product", "linalg_inv_ex", "linalg_lstsq", "linalg_lu",
    "linalg_lu_factor_ex", "linalg_lu_solve", "linalg_matrix_exp", "linalg_pinv", "linalg_qr",
    "linalg_solve_triangular",
)  # fmt: skip
_LOSSES = (
    "binary_cross_entropy", "binary_cross_entropy_with_logits", "huber_loss", "mse_loss",
    "smooth_l1_loss", "soft_margin_loss",
)  # fmt: skip
_FAKE = (
    "_fake_quantize_learnable_per_channel_affine", "_fake_quantize_learnable_per_tensor_affine",
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "fake_quantize_per_channel_affine_cachemask", "fake_quantize_per_tensor_affine_cachemask",
    "quantize_per_channel",
)  # fmt: skip

ALGEBRA: dict[str, Rule] = {
    **dict.fromkeys(_PRODUCTS, _matmul),
    **dict.fromkeys(_MATRICES, _matrices),
    **dict.fromkeys(_LOSSES, _loss),
    **dict.fromkeys(_FAKE, _fake_quantize),
    "linalg_cross": _cross,
    **dict.fromkeys(("_cdist_forward", "_euclidean_dist"), _distances),
    "_pdist_forward": _pairs,
    "addbmm": _batch_product,
    "addr": _outer,
    "_trilinear": _trilinear,
    **dict.fromkeys(("nll_loss_forward", "nll_loss2d_forward"), _nll_loss),
    **dict.fromkeys(("bucketize", "isin"), _compared),
    "searchsorted": _searched,
}
