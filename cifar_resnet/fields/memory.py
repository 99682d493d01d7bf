"""Which tensors of a run share memory, found by their storages rather than by the operations.

Most tensors share memory because an operation made a view. Others do so without an operation that
PyTorch reports: `z.data = y`, `z.set_(y)`, DLPack, or two buffers that are views of one tensor.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.multiprocessing.reductions import StorageWeakRef

from cifar_resnet.fields.steps import Ref

_FIRST_PAGE = 4096  # no memory has an address below it


@dataclass(frozen=True)
class Place:
    """Where a tensor lies.

    Attributes:
        storage: Identifies the storage.
        address: Bytes from the start of the memory block to the first element.
        room: Number of elements of the tensor's type that the storage has room for.
    """

    storage: int
    address: int
    room: int


@dataclass
class _Block:
    """The memory behind a storage. Two storages may be at the same place, as after DLPack.

    Attributes:
        root: The tensor that stands for the memory: the first that was seen.
        shift: Bytes from the start of the root's storage to the start of this one.
        storage: Keeps the identifier of the storage from being used again, but not its memory.
    """

    root: Ref | None
    shift: int
    storage: StorageWeakRef


class SharedMemory:
    """The storages of a run, each with the tensor that was seen in it first."""

    def __init__(self) -> None:
        self._blocks: dict[int, _Block] = {}
        self._starts: list[int] = []  # addresses of storages with values, sorted
        self._at: dict[int, tuple[int, int]] = {}  # size and storage at each of these addresses

    def place(self, tensor: Tensor) -> Place | None:
        """Return where a tensor lies. None if it has no storage, as sparse tensors."""
        if tensor.layout != torch.strided:
            return None
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # a subclass that wraps other tensors
            return None
        key = storage._cdata
        block = self._blocks.get(key)
        if block is None:
            block = self._blocks[key] = self._new_block(tensor, storage)
        itemsize = tensor.element_size()
        offset = int(tensor.storage_offset()) * itemsize
        return Place(key, offset + block.shift, int(storage.nbytes()) // itemsize)

    def _new_block(self, tensor: Tensor, storage: torch.UntypedStorage) -> _Block:
        weak = StorageWeakRef(storage)
        if isinstance(tensor, FakeTensor) or tensor.is_meta or not storage.nbytes():
            return _Block(None, 0, weak)
        start = storage.data_ptr()
        if start < _FIRST_PAGE:  # DLPack has taken it from a fake tensor, at offset `start`
            raise RuntimeError("This tensor has no values.")  # the model is run on real ones then
        position = bisect.bisect_right(self._starts, start) - 1
        while position >= 0:
            other = self._starts[position]
            size, key = self._at[other]
            block = self._blocks[key]
            if not block.storage.expired():
                if other + size > start:
                    return _Block(block.root, block.shift + start - other, weak)
                break
            del self._starts[position], self._at[other]
            position -= 1
        if start not in self._at:
            bisect.insort(self._starts, start)
        self._at[start] = storage.nbytes(), weak.cdata
        return _Block(None, 0, weak)

    def root(self, place: Place) -> Ref | None:
        """Return the tensor that stands for the memory at a place. None if it is new."""
        return self._blocks[place.storage].root

    def set_root(self, place: Place, root: Ref | None) -> None:
        self._blocks[place.storage].root = root
