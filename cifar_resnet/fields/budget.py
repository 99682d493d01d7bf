"""Limit the memory that the position sets of all tensors of a network take together."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cifar_resnet.fields.positions.packing import check_bytes, limit
from cifar_resnet.fields.positions.sets import PositionSets


class MemoryBudget:
    """Counts the bytes of sets. They are counted exactly only when they may exceed the limit.

    Args:
        everything: Returns all sets that are kept.
    """

    def __init__(self, everything: Callable[[], Iterable[PositionSets]]) -> None:
        self._everything = everything
        self._at_most = 0  # several sets may share memory, and old ones may be freed

    def add(self, new: Iterable[PositionSets]) -> None:
        """Count new sets.

        Raises:
            SetsTooLargeError: If all sets together are too large.
        """
        self._at_most += sum(term.nbytes for sets in new for term in sets.terms)
        if self._at_most > limit():
            tensors = [
                tensor
                for sets in self._everything()
                for term in sets.terms
                for tensor in (term.seen, term.bounds, term.index)
                if tensor is not None
            ]
            storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in tensors}
            self._at_most = sum(storage.nbytes() for storage in storages.values())
            check_bytes(self._at_most)
