"""Decide which samples of a loader to read, each once, and in which batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler

from cifar_resnet import arguments
from cifar_resnet.data.batches import UNKNOWN
from cifar_resnet.data.datasets import on_cpu
from cifar_resnet.data.loaders import PerSampleLoader


class Chunk(NamedTuple):
    """A batch to read.

    Attributes:
        keys: What to index the dataset with: a list of keys, or one key of a dataset that returns
            whole batches or is read without batching.
        indices: Index of each sample; -1 for a key that is not an integer.
    """

    keys: Any
    indices: list[int]


def plan(loader: DataLoader[Any], max_samples: int | None) -> list[Chunk]:
    """Return the batches of all samples of a loader, each sample once.

    Samples are in ascending order of their indices, unless a batch sampler determines the batches.
    At most one batch exceeds `max_samples`.
    """
    size = len(loader.dataset)  # type: ignore[arg-type]
    sampler: Any = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    if isinstance(loader, PerSampleLoader):  # indices are those of the whole dataset
        samples = loader.dataset.samples.tolist()  # type: ignore[attr-defined]
        return _in_chunks(list(enumerate(samples)), loader.order.batch_size)
    with on_cpu():
        if type(sampler) is BatchSampler:
            return _in_chunks(
                _chosen(_keys(sampler.sampler, size), size, max_samples), sampler.batch_size
            )
        if loader.batch_sampler is not None:
            return _of_batches(sampler, size, max_samples)
        keys = iter(_keys(sampler, size))
        first = next(keys, None)
        keys = itertools.chain([] if first is None else [first], keys)
        if _is_list(first):
            return _of_batches(keys, size, max_samples)
        return [Chunk(key, [index]) for key, index in _chosen(keys, size, max_samples)]


def _chosen(keys: Iterable[Any], size: int, limit: int | None) -> list[tuple[Any, int]]:
    """Return different keys with their indices, in ascending order of the indices."""
    entries: list[tuple[Any, int]] = []
    seen: set[int] = set()
    for key in keys:
        index = _as_index(key, size)
        if index == UNKNOWN:
            entries.append((key, index))
        elif index not in seen:
            seen.add(index)
            entries.append((index, index))
        if len(seen) == size or len(entries) == limit:
            break  # a sampler may be endless
    return sorted(entries, key=lambda entry: entry[1])


def _in_chunks(entries: list[tuple[Any, int]], length: int) -> list[Chunk]:
    parts = [entries[start : start + length] for start in range(0, len(entries), length)]
    return [Chunk([key for key, _ in part], [index for _, index in part]) for part in parts]


def _of_batches(batches: Iterable[Any], size: int, limit: int | None) -> list[Chunk]:
    """Keep the batches of a batch sampler, whose samples may have to be of the same size."""
    chunks: list[Chunk] = []
    seen: set[int] = set()
    count = 0
    for batch in batches:
        chunk = Chunk([], [])
        for key in batch:
            index = _as_index(key, size)
            if index == UNKNOWN or index not in seen:
                chunk.keys.append(key if index == UNKNOWN else index)
                chunk.indices.append(index)
                seen.update([index] if index != UNKNOWN else [])
        if chunk.keys:
            chunks.append(chunk)
        count += len(chunk.keys)
        if len(seen) == size or (limit is not None and count >= limit):
            break
    return chunks


def _keys(sampler: Any, size: int) -> Iterable[Any]:
    """Return the keys of a sampler; if these are all samples, without drawing their order."""
    if isinstance(sampler, DistributedSampler):  # of one process, but all samples are read
        inner = getattr(sampler.dataset, "_sampler", None)  # Lightning distributes any sampler
        if inner is not None:
            return _keys(inner, size)
        known = type(sampler).__name__ in ("DistributedSampler", "UnrepeatedDistributedSampler")
        whole = known and len(sampler.dataset) == size  # type: ignore[arg-type]
    else:
        whole = (
            type(sampler) is RandomSampler
            and not sampler.replacement
            and sampler.num_samples == len(sampler.data_source) == size
        )
    keys: Iterable[Any] = range(size) if whole else sampler
    return keys


def _as_index(key: Any, size: int) -> int:
    """Return a key as an index of at least 0, or -1 if it is not an integer."""
    if isinstance(key, Tensor | np.ndarray) and key.ndim == 0:
        key = key.item()
    if not arguments.is_integer(key):
        return UNKNOWN
    return int(key) if key >= 0 else int(key) + size


def _is_list(key: Any) -> bool:
    """Return whether a key is a list of indices."""
    if isinstance(key, Tensor | np.ndarray):
        return key.ndim == 1
    return isinstance(key, list | tuple) and all(map(arguments.is_integer, key))
