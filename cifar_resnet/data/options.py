"""Name the options that `ImageDataModule` and the data modules of single datasets share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

import torch

__all__ = ["Options", "with_options_of"]

_Class = TypeVar("_Class", bound=type)


class Options(TypedDict, total=False):
    """Keyword arguments of `ImageDataModule`, which documents them."""

    num_workers: int
    seed: int
    shuffle: bool
    pin_memory: bool
    persistent_workers: bool
    drop_last: bool
    crop_padding: int | None
    flip: str
    cutout: int
    padding_mode: str
    train_transforms: Callable[[Any], Any] | None
    val_transforms: Callable[[Any], Any] | None
    test_transforms: Callable[[Any], Any] | None
    device: torch.device | str
    train_indices: Sequence[int] | None
    subset: int | float | None
    class_subset: Sequence[int | str] | None
    folds: tuple[int, int] | None
    imbalance: float
    exclude: Sequence[int] | None
    sampling: str
    sample_weights: Sequence[float] | None
    label_noise: float
    label_noise_kind: str
    label_noise_seed: int
    label_noise_pairs: Mapping[str, str] | None
    mix: str | None
    mix_alpha: float
    mix_probability: float


def with_options_of(base: type) -> Callable[[_Class], _Class]:
    """Show the options of `base` in the signature of a class that passes them on.

    `help` and editors then list them; their values are checked by `base`.
    """

    def decorate(cls: _Class) -> _Class:
        own = inspect.signature(cls.__init__).parameters  # type: ignore[misc]
        inherited = inspect.signature(base.__init__).parameters  # type: ignore[misc]
        options = [inherited[name] for name in Options.__annotations__ if name not in own]
        kept = [each for each in own.values() if each.kind is not each.VAR_KEYWORD]
        signature = inspect.Signature([*kept, *options])
        cls.__init__.__signature__ = signature  # type: ignore[misc]
        return cls

    return decorate
