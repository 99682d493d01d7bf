"""Rules for operations with a mask. One that does not depend on the input is exact: its values say
which elements are read. One that depends on the input may select any of the two."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from cifar_resnet.fields.positions.merging import union
from cifar_resnet.fields.positions.packing import check_bytes
from cifar_resnet.fields.positions.sets import PositionSets
from cifar_resnet.fields.positions.terms import EMPTY, IRREGULAR, Term
from cifar_resnet.fields.rules.addresses import NOTHING, read_elements
from cifar_resnet.fields.rules.operation import Operation, Rule, values_of
from cifar_resnet.fields.steps import Ref

_NEVER = -1e30  # masks add this or less to a score, so that the weight is exactly 0


def kept(sets: PositionSets | None, mask: Tensor) -> PositionSets | None:
    """Return the sets of a tensor in which only the elements in a mask are kept."""
    if sets is None or bool(mask.all()):
        return sets
    mask = mask.expand(sets.shape)
    elements = torch.arange(mask.numel()).view(sets.shape)
    return read_elements(sets, torch.where(mask, elements, NOTHING)[None])


def _union(op: Operation, parts: list[PositionSets | None]) -> PositionSets | None:
    known = [sets for sets in parts if sets is not None]
    return union(op.shape, known, op.where) if known else None


def _chosen(op: Operation, mask: str, inside: str, outside: str) -> PositionSets | None:
    """Follow `torch.where(mask, inside, outside)`."""
    own, mine, theirs = op.sets(mask), op.sets(inside), op.sets(outside)
    if (own is None and mine is None and theirs is None) or not isinstance(op[mask], Ref):
        return None
    if own is not None or op[mask].is_random:
        return _union(op, [own, mine, theirs])
    chosen = values_of(op[mask]).bool()
    mine, theirs = (None if sets is None else sets.expand(op.shape) for sets in (mine, theirs))
    return _union(op, [kept(mine, chosen), kept(theirs, ~chosen)])


def _where(op: Operation) -> PositionSets | None:
    return _chosen(op, "condition", "self", "other")


def _masked_fill(op: Operation) -> PositionSets | None:
    return _chosen(op, "mask", "value", "self")


def _triangle(op: Operation) -> PositionSets | None:
    ref, sets = op.first
    name = op.call.name  # tril or triu
    ones = torch.ones(ref.shape[-2:], dtype=torch.bool)
    return kept(sets, getattr(torch, name)(ones, op["diagonal"]))


def _masked_select(op: Operation) -> PositionSets | None:
    mask, sets = op.sets("mask"), op.sets("self")
    if mask is not None or sets is None:
        whole = [s.reduce(range(len(s.shape)), keepdim=False) for s in op.operands()]
        return union(op.shape, whole, compare=False)
    chosen = values_of(op["mask"])
    shape = torch.broadcast_shapes(chosen.shape, sets.shape)
    elements = chosen.expand(shape).flatten().nonzero()[:, 0]
    return read_elements(sets.expand(shape), elements[None])


def attention(op: Operation) -> PositionSets:
    """Return the sets of attention: of its query, and of the keys and values that it may attend to.

    Query, key and value are (..., heads, tokens, features), and so is the result.
    """
    parts = []
    query = op.sets("query")
    if query is not None:
        parts.append(query.reduce([-1]))
    allowed = _allowed(op)
    for name in ("key", "value"):
        sets = op.sets(name)
        if sets is None:
            continue
        if op["enable_gqa"]:  # several heads use one key; all of them are united, for simplicity
            sets = sets.reduce([-3])
        if name == "key":  # each feature of the result depends on all features of the key ...
            sets = sets.reduce([-1])  # ... but only on the same feature of the value
        if op["is_causal"]:
            sets = sets.cumulate(-2)
            tokens, keys = op.shape[-2], sets.shape[-2]
            if tokens != keys:  # query i attends to the keys up to i
                last = torch.arange(tokens).clamp(max=keys - 1)
                numbers = torch.arange(math.prod(sets.shape)).view(sets.shape)
                sets = read_elements(sets, numbers.index_select(-2, last)[None])
            parts.append(sets)
        elif allowed is None:
            parts.append(sets.reduce([-2]))
        else:
            parts.append(_attend(sets, allowed))
    bias = op.sets("attn_mask") or op.sets("attn_bias")
    if bias is not None:
        parts.append(bias.reduce([-1]))
    return union(op.shape, parts, compare=False)


def _allowed(op: Operation) -> Tensor | None:
    """Return the pairs of queries and keys that a constant mask allows, or None for all of them."""
    mask = op["attn_mask"] if op.call.declares("attn_mask") else op["attn_bias"]
    if not isinstance(mask, Ref) or op.sets_of(mask) is not None:
        return None
    values = values_of(mask)
    allowed = values if values.dtype == torch.bool else values > _NEVER
    return None if bool(allowed.all()) else allowed


def _attend(sets: PositionSets, allowed: Tensor) -> PositionSets:
    """Unite the keys (..., keys, features) that each query may attend to: (..., queries, ...).

    Args:
        sets: The sets of the keys or the values.
        allowed: bool (..., queries, keys).
    """
    rank = len(sets.shape)
    allowed = allowed.view((*[1] * (rank - allowed.dim()), *allowed.shape))
    shape = (*sets.shape[:-2], allowed.shape[-2], sets.shape[-1])
    terms = []
    for term in sets.terms:
        if math.prod(allowed.shape[:-2]) == 1:  # the same pairs in each sample and head
            pairs = allowed.flatten(0, -2)
            new = term.along(rank - 2, lambda few, pairs=pairs: _unite_keys(few, pairs))  # type: ignore[misc]
        else:
            new = _unite_keys(term.direct(), allowed, features=True)
        irregular = IRREGULAR if any(term.pitch) else None
        pitch = tuple(irregular if size > 1 else None for size in new.dims)
        terms.append(replace(new, pitch=pitch).by_size())
    return PositionSets(shape, tuple(terms), sets.merged_at, sets.is_global)


def _unite_keys(term: Term, allowed: Tensor, *, features: bool = False) -> Term:
    """Unite the keys of a term (..., keys) or (..., keys, features) for each query."""

    def unite(values: Tensor, empty: int) -> Tensor:
        if not features:
            values = values[..., None]
        dims = torch.broadcast_shapes(values.shape[1:-2], allowed.shape[:-2])
        size = (len(values), *dims, allowed.shape[-2], values.shape[-1])
        check_bytes(math.prod(size) * values.element_size())
        if empty == 0:  # a product counts in how many of the keys a position is
            keys = values.expand(*values.shape[:-2], allowed.shape[-1], -1)
            result = (allowed.float() @ keys.float() > 0).to(values.dtype).expand(size)
        else:
            result = values.new_full(size, empty)
            for key in range(allowed.shape[-1]):
                own = values[..., min(key, values.shape[-2] - 1), None, :]
                torch.maximum(result, torch.where(allowed[..., key, None], own, empty), out=result)
        return result if features else result[..., 0]

    return Term(unite(term.seen, term.empty_value), unite(term.bounds, EMPTY), term.pitch)


MASKS: dict[str, Rule] = {
    "masked_fill": _masked_fill,
    "where": _where,
    "tril": _triangle,
    "triu": _triangle,
    "masked_select": _masked_select,
}
