"""Remove tensors without values that a traced model has put into caches.

A model may keep what it computes: in a dictionary of its own or in a global one, in a configuration
object, or with `functools.lru_cache`. After a run on fake tensors, such a cache would hold a tensor
without values, and every later call of the model would fail.
"""

from __future__ import annotations

import functools
import gc
import sys
import types
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

_MAX_VISITED = 100_000  # objects in which caches are looked for
_MAX_HEIGHT = 5  # containers around a tensor in a cache
_MISSING = object()
_LruCache = type(functools.lru_cache(_MAX_HEIGHT.bit_length))


class Caches:
    """The containers of a model as they were before it ran on fake tensors.

    These are the dictionaries, lists, sets and closures that can be reached from the model, from
    its classes and from the global variables of the files that define them.
    """

    def __init__(self, model: nn.Module) -> None:
        classes = {
            cls
            for kind in {type(module) for module in model.modules()}
            for cls in kind.__mro__
            if not _is_library(cls.__module__)
        }
        files = {cls.__module__ for cls in classes}
        roots = [model, *classes, *(vars(sys.modules[n]) for n in files if n in sys.modules)]
        self._saved: dict[int, tuple[Any, Any]] = {}
        seen: set[int] = set()
        waiting = deque(roots)
        while waiting and len(seen) < _MAX_VISITED:
            value = waiting.popleft()
            if id(value) in seen or (isinstance(value, type) and value not in classes):
                continue
            seen.add(id(value))
            for container in _containers(value):
                self._saved[id(container)] = container, _copied(container)
            waiting.extend(_inside(value))

    def remove(self, fakes: Callable[[], Sequence[Tensor]]) -> None:
        """Restore every container that holds one of the tensors, and empty other caches of them.

        Args:
            fakes: Returns the tensors that are still alive.
        """
        if not fakes():
            return
        for container, saved in self._saved.values():
            self._restore(container, saved)
        if fakes():
            _clear_lru_caches(fakes())
        if fakes():
            gc.collect()  # cycles, such as an error and its traceback
        for tensor in fakes():
            _delete_entries(tensor)
        if not fakes():
            return
        gc.collect()
        holders = [holder for tensor in fakes() for holder in _holders(tensor, set())]
        kinds = {type(holder).__name__ for holder in holders if not isinstance(holder, list)}
        if kinds:
            warnings.warn(
                "The model has stored a tensor of the analysis, which has no values, where it "
                f"cannot be removed ({', '.join(sorted(kinds))}). Create the model again before "
                "you use it.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _restore(self, container: Any, saved: Any) -> None:
        """Restore the entries that hold a fake tensor now."""
        if isinstance(container, dict | type):
            now = dict(vars(container) if isinstance(container, type) else container)
            for key, value in now.items():
                old = saved.get(key, _MISSING)
                if old is not value and (self._holds_fake(value) or self._holds_fake(key)):
                    _set_entry(container, key, old)
            return
        before = set(map(id, saved))
        values = _contents(container) if isinstance(container, types.CellType) else list(container)
        if not any(id(value) not in before and self._holds_fake(value) for value in values):
            return
        if isinstance(container, types.CellType):
            if saved:
                container.cell_contents = saved[0]
            else:
                del container.cell_contents
        elif isinstance(container, list):
            container[:] = saved
        else:
            container.clear()
            (container.extend if isinstance(container, deque) else container.update)(saved)

    def _holds_fake(self, value: Any) -> bool:
        seen: set[int] = set()
        waiting = [value]
        while waiting and len(seen) < _MAX_VISITED:
            value = waiting.pop()
            if isinstance(value, FakeTensor):
                return True
            if id(value) in seen or isinstance(value, type | types.FunctionType | nn.Module):
                continue
            seen.add(id(value))
            if all(id(container) not in self._saved for container in _containers(value)):
                waiting.extend(_inside(value))
        return False


def _is_library(name: str) -> bool:
    top = name.partition(".")[0]
    return top in ("torch", "builtins") or top in sys.stdlib_module_names - {"__main__"}


def _containers(value: Any) -> list[Any]:
    """Return the parts of an object that can be written to: itself, its attributes, its closure."""
    if isinstance(value, dict | list | set | deque | types.CellType):
        return [value]
    if isinstance(value, types.FunctionType):
        return [value.__dict__, *(value.__closure__ or ())]
    if isinstance(value, type):
        return [value]
    return [value.__dict__] if isinstance(getattr(value, "__dict__", None), dict) else []


def _inside(value: Any) -> Iterator[Any]:
    """Yield what an object refers to, as far as it may be or contain a cache."""
    if isinstance(value, Tensor | types.ModuleType | str | bytes | int | float | complex):
        return
    if isinstance(value, dict):
        yield from list(value.values())
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from list(value)
    elif isinstance(value, types.CellType):
        yield from _contents(value)
    elif isinstance(value, types.FunctionType):
        yield from (*(value.__closure__ or ()), *(value.__defaults__ or ()))
        yield from (*(value.__kwdefaults__ or {}).values(), value.__dict__)
    elif isinstance(value, types.MethodType | staticmethod | classmethod):
        yield value.__func__
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, property):
        yield value.fget
    elif isinstance(value, type):
        yield from list(vars(value).values())
    elif not _is_library(type(value).__module__) or isinstance(value, nn.Module):
        yield from list(getattr(value, "__dict__", {}).values())


def _contents(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # it is empty
        return ()


def _copied(container: Any) -> Any:
    if isinstance(container, types.CellType):
        return _contents(container)
    if isinstance(container, type):
        return dict(vars(container))
    return container.copy()


def _set_entry(container: Any, key: Any, value: Any) -> None:
    if isinstance(container, type):
        delattr(container, key) if value is _MISSING else setattr(container, key, value)
    elif value is _MISSING:
        del container[key]
    else:
        container[key] = value


# -- caches that cannot be reached from the model --------------------------------------------------


def _holders(value: Any, known: set[int]) -> list[Any]:
    """Return the containers that refer to an object, except for those of this search itself."""
    return [
        holder
        for holder in gc.get_referrers(value)
        if id(holder) not in known and not isinstance(holder, types.FrameType | types.ModuleType)
    ]


def _clear_lru_caches(fakes: Sequence[Tensor]) -> None:
    level: list[Any] = list(fakes)
    known = {id(fakes), id(level)}
    for _ in range(_MAX_HEIGHT):
        above: list[Any] = []
        known.add(id(above))
        for value in level:
            for holder in _holders(value, known):
                if isinstance(holder, _LruCache):
                    holder.cache_clear()
                elif isinstance(holder, list | tuple | set | deque) or (
                    isinstance(holder, dict) and "__name__" not in holder
                ):
                    above.append(holder)
                    known.add(id(holder))
        level = above
        known.add(id(level))


def _delete_entries(tensor: Tensor) -> None:
    """Delete the entry of each dictionary or list that holds a tensor, itself or in a tuple."""
    level: list[Any] = [tensor]
    known = {id(level)}
    while level:
        above: list[Any] = []
        known.add(id(above))
        for value in level:
            for holder in _holders(value, known):
                if isinstance(holder, tuple):
                    above.append(holder)
                elif isinstance(holder, dict):
                    for key in [key for key, own in holder.items() if own is value]:
                        del holder[key]
                elif isinstance(holder, list | deque):
                    kept = [own for own in holder if own is not value]
                    holder.clear()
                    holder.extend(kept)
        level = above if len(known) < _MAX_HEIGHT else []
        known.add(id(level))
