"""Views of any kind: which elements of one tensor lie at the addresses of another's.

Every view is a shape, strides and an offset over the same memory, so one computation serves all:

    >>> from cifar_resnet.fields.steps import Ref
    >>> base = Ref(0, (2, 3), strides=(3, 1), itemsize=4)
    >>> diagonal = Ref(1, (2,), strides=(4,), itemsize=4)
    >>> elements_at(base, diagonal).tolist()  # one element of the base in each of the view's
    [[0, 4]]
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cifar_resnet.fields.positions.merging import union
from cifar_resnet.fields.positions.sets import PositionSets
from cifar_resnet.fields.positions.terms import IRREGULAR, Term, read_term
from cifar_resnet.fields.rules.operation import NotFollowedError, Operation
from cifar_resnet.fields.steps import Ref

NOTHING = -1  # in place of an element: nothing is read


def read_elements(sets: PositionSets, elements: Tensor) -> PositionSets:
    """Return the sets of new elements, each the union of the old elements that it reads.

    Args:
        sets: The sets before.
        elements: int64 (k, *shape), up to k old elements for each new one of a tensor of this
            shape, numbered in the order of memory. `NOTHING` reads nothing.

    Examples:
        >>> x = PositionSets.of_input((2, 3), 1)
        >>> turned = read_elements(x, torch.tensor([[2, 1, 0]]))
        >>> turned.terms[0].seen.T.tolist()
        [[0, 0, 1], [0, 1, 0], [1, 0, 0]]
    """
    shape = tuple(elements.shape[1:])
    terms = tuple(_read_term(term, sets.shape, elements) for term in sets.terms)
    return PositionSets(shape, terms, sets.merged_at, sets.is_global)


def _read_term(term: Term, shape: Sequence[int], elements: Tensor) -> Term:
    # Elements that a term stores once are the same: find the stored element of each.
    stored = torch.zeros_like(elements)
    inner = 1
    for dim in reversed(range(len(shape))):
        if term.dims[dim] > 1:
            coordinate = elements // inner % shape[dim]
            stored += coordinate * math.prod(term.dims[dim + 1 :])
        inner *= shape[dim]
    number = math.prod(term.dims)
    stored = torch.where(elements == NOTHING, number, stored)  # an empty set at the end
    runs_along = any(term.pitch)
    pitch = []
    for dim in range(1, elements.dim()):  # store what is the same along a dimension once
        first = stored.narrow(dim, 0, min(1, stored.shape[dim]))
        same = stored.shape[dim] > 0 and bool((stored == first).all())
        stored = first if same else stored
        pitch.append(None if same or not runs_along else IRREGULAR)
    return read_term(term, stored, pitch)


def elements_at(base: Ref, view: Ref) -> Tensor:
    """Return the elements of one tensor at the addresses of each element of another.

    Returns:
        int64 (k, *shape of the view): k > 1 if the view's elements are larger than those of the
        base. `NOTHING` where the base has no element.
    """
    grain = math.gcd(base.itemsize, view.itemsize, base.address, view.address)
    mine, theirs = _addresses(base) // grain, _addresses(view) // grain
    wide = base.itemsize // grain
    low = int(mine.min()) if mine.numel() else 0
    length = (int(mine.max()) - low if mine.numel() else 0) + wide
    table = torch.full((length + 1,), NOTHING)  # the last is for addresses outside the base
    for part in range(wide):
        table[mine.flatten() - low + part] = torch.arange(mine.numel())
    taps = theirs - low + torch.arange(view.itemsize // grain).view(-1, *[1] * theirs.dim())
    taps = torch.where((taps < 0) | (taps >= length), length, taps)
    found = table[taps]
    return found[:1] if bool((found == found[:1]).all()) else found


def _addresses(ref: Ref) -> Tensor:
    addresses = torch.full((1,) * len(ref.shape), ref.address)
    for dim, (size, stride) in enumerate(zip(ref.shape, ref.strides, strict=True)):
        steps = torch.arange(size) * stride * ref.itemsize
        addresses = addresses + steps.view(-1, *[1] * (len(ref.shape) - dim - 1))
    return addresses


def overlaps(ref: Ref) -> bool:
    """Whether several elements of a tensor are at one address, as after `expand`."""
    addresses = _addresses(ref)
    return len(addresses.unique()) < addresses.numel()


def view_by_address(op: Operation) -> PositionSets:
    """Follow a view of any kind, from one tensor to another in the same memory."""
    base, sets = op.first
    view = op.call.outputs
    assert isinstance(view, Ref)
    if (base.shape, base.strides, base.address) == (view.shape, view.strides, view.address):
        return sets
    elements = elements_at(base, view)
    if bool((elements == NOTHING).any()):
        raise NotFollowedError(
            "It reads memory outside the tensor that it is given. Use slices, unfold or reshape."
        )
    return read_elements(sets, elements)


def write_by_address(
    base: Ref, view: Ref, before: PositionSets, written: PositionSets
) -> PositionSets:
    """Return what a tensor depends on after another in the same memory was written to."""
    covered = elements_at(view, base)
    result = read_elements(written, covered)
    kept = torch.arange(math.prod(base.shape)).view(1, *base.shape)
    if view.itemsize >= base.itemsize:  # else parts of an element may keep their old values
        kept = torch.where((covered == NOTHING).all(0), kept, NOTHING)
    return union(base.shape, [read_elements(before, kept), result], compare=False)
