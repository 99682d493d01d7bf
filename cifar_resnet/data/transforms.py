"""Call and seed the transforms of single images, also those that have their own generators."""

from __future__ import annotations

import functools
import random
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["TransformChecks", "as_function", "generators", "seeded"]

Seed = Callable[[list[int]], None]

# Their functions draw only from the generators that are passed to them or from the global ones.
_LIBRARIES = ("torch", "torchvision", "numpy", "PIL", "cv2", "scipy", "skimage", "random")
_OWN_METHODS = ("set_random_seed", "set_random_state", "seed_")  # Albumentations, MONAI, imgaug
_MOST_PARTS = 10_000  # of a transform that are searched


def as_function(transform: Callable[..., Any]) -> Callable[[Any], Any]:
    """Return a transform as a function of a PIL image.

    Transforms of Albumentations are called with `image=`, an array (H, W, 3).
    """
    if "albumentations" not in {_library(kind) for kind in type(transform).__mro__}:
        return transform

    def call(image: Any) -> Any:
        result = transform(image=np.array(image))["image"]
        if not isinstance(result, Tensor):
            raise TypeError(
                "A transform of Albumentations must return a tensor (3, H, W), but got "
                f"{type(result).__name__} of shape {np.shape(result)}. End it with "
                "albumentations.pytorch.ToTensorV2(), after A.Normalize(...)."
            )
        return result

    return call


# --- seeds ----------------------------------------------------------------------------------------


def generators(transform: Any) -> list[Any]:
    """Return the parts of a transform that can be seeded, in a fixed order.

    The attributes of objects are searched, what functions refer to, and the methods of classes.
    """
    found: list[Any] = []
    excluded = (torch.default_generator, np.random.mtrand._rand, random._inst)
    seen = {id(part) for part in excluded}
    parts = [transform]
    while parts and len(seen) < _MOST_PARTS:
        part = parts.pop()
        if id(part) in seen or isinstance(part, str | bytes | int | float | Tensor | np.ndarray):
            continue
        seen.add(id(part))
        if _is_seedable(part):
            found.append(part)
        else:
            parts.extend(_parts(part))
    return found


@contextmanager
def seeded(own: list[Any]) -> Iterator[Seed]:
    """Return a function that seeds the global generators and these; restore them at the end."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    restored = [(part, _state(part)) for part in own]

    def seed(key: list[int]) -> None:
        first, *others = np.random.SeedSequence(key).generate_state(1 + len(own)).tolist()
        # not torch.manual_seed: before CUDA is initialized it queues a call for every GPU
        torch.default_generator.manual_seed(first)
        random.seed(first)
        np.random.seed(first)
        for part, value in zip(own, others, strict=True):
            _seed(part, value)

    try:
        yield seed
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
        for part, state in restored:
            if state is not None:
                _restore(part, state)


def _is_seedable(part: Any) -> bool:
    kinds = torch.Generator | random.Random | np.random.RandomState | np.random.Generator
    if isinstance(part, kinds):
        return True
    return not isinstance(part, type) and any(
        callable(getattr(type(part), name, None)) for name in _OWN_METHODS
    )


def _seed(part: Any, value: int) -> None:
    if isinstance(part, torch.Generator):
        part.manual_seed(value)
    elif isinstance(part, random.Random | np.random.RandomState):
        part.seed(value)
    elif isinstance(part, np.random.Generator):
        part.bit_generator.state = type(part.bit_generator)(value).state
    else:
        method = next(name for name in _OWN_METHODS if hasattr(part, name))
        getattr(part, method)(value)


def _state(part: Any) -> Any:
    if isinstance(part, torch.Generator):
        return part.get_state()
    if isinstance(part, random.Random):
        return None if isinstance(part, random.SystemRandom) else part.getstate()
    if isinstance(part, np.random.RandomState):
        return part.get_state()
    return part.bit_generator.state if isinstance(part, np.random.Generator) else None


def _restore(part: Any, state: Any) -> None:
    if isinstance(part, random.Random):
        part.setstate(state)
    elif isinstance(part, np.random.Generator):
        part.bit_generator.state = state
    else:
        part.set_state(state)


def _parts(part: Any) -> list[Any]:
    """Return what a part of a transform refers to."""
    if isinstance(part, Mapping):
        return list(part.values())
    if isinstance(part, list | tuple):
        return list(part)
    if isinstance(part, functools.partial):
        return [part.func, *part.args, *part.keywords.values()]
    if isinstance(part, types.MethodType | types.BuiltinMethodType):
        return [part.__self__, getattr(part, "__func__", None)]
    if isinstance(part, types.FunctionType):
        return _parts_of_function(part)
    if isinstance(part, type | types.ModuleType):
        return []
    kinds = [kind for kind in type(part).__mro__ if _library(kind) not in (*_LIBRARIES, "builtins")]
    members = [member for kind in kinds for member in vars(kind).values()]
    return [*getattr(part, "__dict__", {}).values(), *filter(_is_function_or_generator, members)]


def _is_function_or_generator(member: Any) -> bool:
    return isinstance(member, types.FunctionType) or _is_seedable(member)


def _parts_of_function(function: types.FunctionType) -> list[Any]:
    if _library(function) in _LIBRARIES:
        return []
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(cell.cell_contents)
        except ValueError:  # not assigned yet
            continue
    names = _names(function.__code__)
    known = [function.__globals__[name] for name in names if name in function.__globals__]
    return [*cells, *(function.__defaults__ or ()), *known]


def _names(code: types.CodeType) -> Iterable[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):  # a function within the function
            yield from _names(constant)


def _library(thing: Any) -> str:
    return str(getattr(thing, "__module__", None)).partition(".")[0]


# --- checks ---------------------------------------------------------------------------------------


@dataclass
class TransformChecks:
    """Warn about transforms that cannot be repeated, or whose images differ in size."""

    _checked: dict[str, Any] = field(default_factory=dict)
    _sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def check(self, subset: str, transform: Any, first: Callable[[], list[Any]]) -> None:
        """Check a transform, once.

        Args:
            subset: `"train"`, `"val"` or `"test"`.
            transform: The transform of this subset.
            first: Function that returns the first images of the subset in one epoch.
        """
        if subset in self._checked and self._checked[subset] is transform:
            return
        self._checked[subset] = transform
        images = first()
        if transform is not None and not _is_same(images, first()):
            warnings.warn(
                f"{subset}_transforms give different images for the same seed, epoch and image, so "
                "a run cannot be repeated or resumed exactly. Draw random numbers from torch, "
                "random or numpy.random, or from a generator that the transform has as attribute.",
                stacklevel=4,
            )
        if isinstance(images[0], Tensor):
            self._see(subset, tuple(images[0].shape))

    def _see(self, subset: str, shape: tuple[int, ...]) -> None:
        self._sizes[subset] = shape
        for other in ("val", "test"):
            both = self._sizes.get("train"), self._sizes.get(other)
            if subset in ("train", other) and None not in both and both[0] != both[1]:
                train, different = (" x ".join(map(str, size or ())) for size in both)
                warnings.warn(
                    f"Training images are {train}, but {other} images are {different}. Pass "
                    f"{other}_transforms that return images of the same size as train_transforms.",
                    stacklevel=5,
                )


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two results of a transform are equal; unknown kinds are."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(_is_same(value, other.get(key)) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return all(map(_is_same, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(((one == other) | (one != one)).all())
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return True
