"""Number the tensors of a run, so that two names of one tensor get the same number."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.weak import WeakTensorKeyDictionary

from cifar_resnet.fields.memory import Place, SharedMemory
from cifar_resnet.fields.steps import Ref, refs_in


class TensorNumbers:
    """Makes a `Ref` of each tensor.

    Args:
        on_values: Whether the run is made on real tensors.
        found_view: Called with two tensors that share memory although no operation has made the
            second from the first.
        found_foreign: Called with a tensor that no operation has made. On fake tensors it was
            computed where the recorder does not see it; else it may be a constant.
    """

    def __init__(
        self,
        on_values: bool,
        found_view: Callable[[Ref, Ref], None],
        found_foreign: Callable[[Tensor], None],
    ) -> None:
        self._on_values = on_values
        self._found_view = found_view
        self._found_foreign = found_foreign
        self._indices = WeakTensorKeyDictionary()
        self._count = 0
        self._memory = SharedMemory()
        self._random: set[int] = set()
        self._seen: dict[int, tuple[Ref, Place | None]] = {}  # each tensor as it was last

    def alive(self) -> list[Tensor]:
        """Return the tensors that still exist."""
        return list(self._indices)

    def new(self, shape: tuple[int, ...]) -> Ref:
        """Return a number for a tensor that does not exist in the run."""
        self._count += 1  # not len(_indices): entries of tensors that are freed disappear
        return Ref(self._count - 1, shape)

    def input(self, tensor: Tensor) -> Ref:
        """Return the `Ref` of an input. Inputs that share memory are followed separately."""
        ref, place = self._numbered(tensor)
        if place is not None and self._memory.root(place) is None:
            self._memory.set_root(place, ref)
        return ref

    def ref(self, tensor: Tensor, *, with_values: bool = False) -> Ref:
        """Return the `Ref` of an argument, or of a tensor that a layer returns."""
        before = self._indices.get(tensor)
        ref, place = self._numbered(tensor)
        if ref.index != before:
            self._find_origin(tensor, ref, place)
        if with_values and self._on_values and not tensor.is_floating_point():
            # a copy, as the model may write to it later
            ref = replace(ref, values=tensor.detach().cpu().clone())
        return ref

    def refs(self, values: Any, *, with_values: bool = False) -> Any:
        """Return the same lists, tuples and dictionaries, with a `Ref` in place of each tensor."""
        return self._in_structure(values, lambda x: self.ref(x, with_values=with_values))

    def made(
        self, outputs: Any, given: Any, *, is_view: bool, is_random: bool = False
    ) -> tuple[Any, bool]:
        """Return the `Ref`s of the results of an operation.

        Args:
            outputs: What it returned.
            given: The `Ref`s of its arguments.
            is_view: Whether PyTorch declares that they share memory with the first argument.
            is_random: Whether the operation draws random numbers. What is computed from such
                results is random, too.

        Returns:
            The `Ref`s, and whether one of them shares memory with the first argument.
        """
        first = next(refs_in(given), None)
        home = (
            self._seen[first.index][1] if first is not None and first.index in self._seen else None
        )
        shares = False

        is_random = is_random or any(ref.is_random for ref in refs_in(given))

        def make(tensor: Tensor) -> Ref:
            nonlocal shares
            index = self._indices.get(tensor)
            if is_random and index is not None:
                self._random.add(index)
            if index is not None and any(ref.index == index for ref in refs_in(given)):
                return self._placed(index, tensor)[0]  # it was written to, and may have grown
            self._indices.pop(tensor, None)
            if is_random:
                self._random.add(self._count)  # the number that it gets
            ref, place = self._numbered(tensor)
            if place is None:
                return ref
            root = self._memory.root(place)
            if root is not None and home is not None and self._memory.root(home) == root:
                shares = True
            elif is_view and home is not None:  # of a parameter that has become a fake tensor
                self._memory.set_root(place, self._memory.root(home))
            elif root is None:
                self._memory.set_root(place, ref)
            return ref

        return self._in_structure(outputs, make), shares

    def root(self, tensor: Tensor) -> Ref:
        """Return the tensor that stands for the memory in which a tensor lies."""
        ref = self.ref(tensor)
        place = self._seen[ref.index][1]
        return (self._memory.root(place) if place is not None else None) or ref

    def forget(self, tensor: Tensor) -> None:
        """Give a tensor that now shows other memory, or as another shape, a new number."""
        self._indices.pop(tensor, None)

    def _numbered(self, tensor: Tensor) -> tuple[Ref, Place | None]:
        index = self._indices.get(tensor)
        if index is not None:
            before = self._seen[index]
            now = self._placed(index, tensor)
            if now == before:
                return now
        # new, or its memory was exchanged, as by `z.data = y`
        index = self._indices[tensor] = self.new(()).index
        return self._placed(index, tensor)

    def _placed(self, index: int, tensor: Tensor) -> tuple[Ref, Place | None]:
        with torch._C.DisableTorchFunction():
            place = self._memory.place(tensor)
            shape = tuple(map(int, tensor.shape))
            strides = tuple(map(int, tensor.stride())) if tensor.layout == torch.strided else ()
            address = 0 if place is None else place.address
            is_mask = tensor.dtype == torch.bool
            is_random = index in self._random
            ref = Ref(index, shape, strides, address, tensor.element_size(), is_mask, is_random)
        self._seen[index] = ref, place
        return ref, place

    def _find_origin(self, tensor: Tensor, ref: Ref, place: Place | None) -> None:
        """Find out why no operation has made a tensor."""
        if place is None:
            return
        root = self._memory.root(place)
        if root is None and (self._on_values or isinstance(tensor, FakeTensor)):
            self._found_foreign(tensor)
        if root is None and math.prod(ref.shape) == place.room:  # such as a parameter
            self._memory.set_root(place, ref)
            return
        if root is None:  # it shows a part of its memory: let one tensor stand for all of it
            whole = self.new((place.room,))
            root = Ref(whole.index, whole.shape, (1,), 0, ref.itemsize)
            self._memory.set_root(place, root)
        self._found_view(root, ref)

    def _in_structure(self, values: Any, make: Callable[[Tensor], Ref]) -> Any:
        if isinstance(values, Tensor):
            return make(values)
        if is_dataclass(values) and not isinstance(values, type):
            values = {field.name: getattr(values, field.name) for field in fields(values)}
        if isinstance(values, Mapping):
            return {key: self._in_structure(value, make) for key, value in values.items()}
        if isinstance(values, list | tuple):
            return [self._in_structure(value, make) for value in values]
        return values


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yield every tensor in a structure of dataclasses, lists, tuples and dictionaries."""
    if is_dataclass(values):
        values = vars(values)
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors_in(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from tensors_in(value)


def written_by(
    op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[tuple[frozenset[str], Tensor]]:
    """Yield the tensors that an operation writes to, with the names that its schema gives them."""
    for position, declared in enumerate(op._schema.arguments):
        if declared.alias_info is not None and declared.alias_info.is_write:
            given = args[position] if position < len(args) else kwargs.get(declared.name)
            for tensor in tensors_in(given):
                yield frozenset(declared.alias_info.before_set), tensor


def with_arguments(op: Any, outputs: Any, written: Sequence[tuple[frozenset[str], Tensor]]) -> Any:
    """Return the outputs with the tensors that were written to in place of copies of them.

    In a run on fake tensors, `parameter.copy_(x)` returns a fake copy of the parameter.
    """
    if len(op._schema.returns) == 1 and isinstance(outputs, Tensor):
        info = op._schema.returns[0].alias_info
        for names, tensor in written:
            if info is not None and names == frozenset(info.before_set):
                return tensor
    return outputs
