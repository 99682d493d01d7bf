"""Read any dataset, loader or data module in order, with the indices of its samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    default_convert,
)
from torch.utils.data.dataloader import _BaseDataLoaderIter

from cifar_resnet.data.batches import (
    UNKNOWN,
    CollateNumbered,
    ConvertNumbered,
    image_and_label,
    images_and_labels,
    is_batch,
    refuse_picture,
)
from cifar_resnet.data.datasets import on_cpu
from cifar_resnet.data.loaders import PerSampleLoader, ResidentLoader
from cifar_resnet.data.metadata import LABELS, Metadata, metadata_of, names_of
from cifar_resnet.data.plan import plan
from cifar_resnet.normalization import Statistics

Batch = tuple[Tensor, Tensor, Tensor]  # int64 indices (B,), inputs (B, C, H, W), int64 labels (B,)

_LARGEST_BATCH = 500
_PIXELS = _LARGEST_BATCH * 32 * 32  # of a batch


@dataclass(frozen=True)
class Source:
    """Samples with their metadata.

    Attributes:
        batches: Function that returns an iterator over all samples. Indices are those of the
            dataset, in ascending order if the data determine no batches; positions in the order of
            reading for data that cannot be indexed; and -1 where they are unknown.
        class_names: Names of the classes, if known.
        statistics: Mean and standard deviation of each channel that were used to normalize the
            inputs, if known.
        suspects: Indices of samples whose label is doubtful.
        size: Number of samples, if known.
        endless: Whether the data may never end, as an iterable without a length.
    """

    batches: Callable[[], Iterator[Batch]]
    class_names: tuple[str, ...] | None = None
    statistics: Statistics | None = None
    suspects: frozenset[int] = frozenset()
    size: int | None = None
    endless: bool = False


def as_source(data: Any, batch_size: int | None = None, max_samples: int | None = None) -> Source:
    """Return a dataset, a loader or a data module as a `Source`. If None, the CIFAR-10 test set.

    Args:
        data: The data.
        batch_size: Number of samples in a batch, unless the data determine it. If None, at most
            500, with at most as many pixels as 500 images of 32 x 32.
        max_samples: Number of samples after which the caller stops, so that no more are read than
            the batches of the data require. If None, all.
    """
    if isinstance(data, Source):
        return data
    if data is None:
        from cifar_resnet.data.cifar_modules import CIFAR10DataModule

        data = CIFAR10DataModule(batch_size=batch_size or _LARGEST_BATCH)
    if all(hasattr(data, name) for name in ("prepare_data", "setup", "test_dataloader")):
        return _of_module(data, batch_size, max_samples)  # of `lightning` or `pytorch_lightning`
    if isinstance(data, ResidentLoader):
        return _source(data.in_order, data.metadata, len(data.dataset))
    if isinstance(data, DataLoader):
        return _of_loader(data, batch_size, max_samples)
    data = as_dataset(data)
    metadata = metadata_of(data)
    if is_indexed(data):
        return _source(
            lambda: _from_items(_all_items(data), batch_size, max_samples), metadata, len(data)
        )
    if isinstance(data, Iterable):
        wrapped = getattr(data, "dataset", None)
        if wrapped is not None or isinstance(data, _BaseDataLoaderIter):
            # of a loader that is not a DataLoader, in any order
            return _source(partial(_unnumbered, data), metadata_of(wrapped))
        size = None if isinstance(data, Iterator) else _length(data)
        return _source(
            lambda: _from_items(data, batch_size, max_samples), metadata, size, endless=size is None
        )
    raise TypeError(
        "data must be a Dataset, a DataLoader, a LightningDataModule, or None for CIFAR-10, "
        f"but got {type(data).__name__}."
    )


def _source(
    batches: Callable[[], Iterator[Batch]],
    metadata: Metadata,
    size: int | None = None,
    endless: bool = False,
) -> Source:
    known = metadata.class_names, metadata.statistics, metadata.suspects
    return Source(batches, *known, size, endless)


def as_dataset(data: Any) -> Any:
    """Return images and labels in two arrays or tensors as a dataset, any other data as they are.

    They may be a pair or a dictionary, as a batch is.
    """
    if isinstance(data, str | bytes):
        raise TypeError(
            f"data must be a Dataset, a DataLoader or a LightningDataModule, but got {data!r}. "
            "Read the images first, for example with torchvision.datasets.ImageFolder."
        )
    if isinstance(data, Mapping):
        if not any(name in data for name in LABELS):
            raise TypeError(
                f"data must be one dataset, but got a dictionary with the keys {list(data)}. Pass "
                "one of its values."
            )
        return _Arrays(*images_and_labels(data))
    if isinstance(data, list | tuple) and len(data) == 2:
        images, labels = data
        if isinstance(images, Tensor | np.ndarray) and np.ndim(labels) in (1, 2):
            return _Arrays(*images_and_labels(data))
    return data


def is_indexed(data: Any) -> bool:
    """Return whether a dataset returns samples by index."""
    has_both = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    return has_both and not isinstance(data, IterableDataset)


class _Arrays(Dataset[Any]):
    """Images (N, C, H, W) and labels (N,)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def _of_module(module: Any, batch_size: int | None, max_samples: int | None) -> Source:
    module.prepare_data()
    module.setup("test")
    loader = module.test_dataloader()
    if isinstance(loader, list | tuple):
        if len(loader) != 1:
            raise ValueError(
                f"The data module has {len(loader)} test loaders: pass one of them instead."
            )
        loader = loader[0]
    return with_metadata_of(module, as_source(loader, batch_size, max_samples))


def with_metadata_of(module: Any, source: Source) -> Source:
    """Add the class names of a data module to a source of its samples that has none."""
    return replace(source, class_names=source.class_names or names_of(module))


def _of_loader(loader: DataLoader[Any], batch_size: int | None, max_samples: int | None) -> Source:
    dataset = loader.dataset
    metadata = metadata_of(dataset)
    if type(loader).__iter__ not in (DataLoader.__iter__, PerSampleLoader.__iter__):
        return _source(partial(_unnumbered, loader), metadata)  # it may do anything
    if isinstance(dataset, IterableDataset):
        read = partial(_streamed, loader, batch_size, max_samples)
        return _source(read, metadata, _length(dataset), endless=_length(dataset) is None)
    whole = type(loader.sampler) in (SequentialSampler, RandomSampler)
    size = len(dataset) if whole else None  # type: ignore[arg-type]
    return _source(partial(_indexed, loader, max_samples), metadata, size)


def _indexed(loader: DataLoader[Any], max_samples: int | None) -> Iterator[Batch]:
    """Yield every sample of a loader once."""
    chunks = plan(loader, max_samples)
    keys = [chunk.keys for chunk in chunks]
    if isinstance(loader, PerSampleLoader):
        again = _again(loader, batch_sampler=keys, collate_fn=CollateNumbered(default_collate))
    elif loader.batch_sampler is None:
        again = _again(
            loader, batch_size=None, sampler=keys, collate_fn=ConvertNumbered(loader.collate_fn)
        )
    else:
        again = _again(loader, batch_sampler=keys, collate_fn=CollateNumbered(loader.collate_fn))
    start = 0
    complete = keys == list(range(len(loader.dataset)))  # type: ignore[arg-type]
    for chunk, (count, groups) in zip(chunks, again, strict=True):
        if len(chunk.indices) == count:
            indices = torch.tensor(chunk.indices, device="cpu")
        elif complete:  # items of the dataset are batches
            indices = torch.arange(start, start + count, device="cpu")
        else:
            indices = torch.full((count,), UNKNOWN, device="cpu")
        start += count
        for positions, batch in groups:
            known = indices[positions] if len(indices) else positions
            yield (known.where(positions >= 0, UNKNOWN), *images_and_labels(batch))


def _streamed(
    loader: DataLoader[Any], batch_size: int | None, max_samples: int | None
) -> Iterator[Batch]:
    """Yield the samples of an iterable dataset, numbered in its order."""
    if loader.batch_size is None:
        batches = _from_items(
            _again(loader, batch_size=None, collate_fn=loader.collate_fn), batch_size, max_samples
        )
        in_order = loader.collate_fn is default_convert
    else:
        collate = CollateNumbered(loader.collate_fn)
        batches = _numbered(_again(loader, batch_size=loader.batch_size, collate_fn=collate))
        in_order = True
    for indices, images, labels in batches:
        if loader.num_workers > 1 or not in_order:
            indices = torch.full_like(indices, UNKNOWN)
        yield indices, images, labels


def _again(loader: DataLoader[Any], **options: Any) -> Iterator[Any]:
    """Iterate over the dataset of a loader as the loader does, except for these options.

    No random number is drawn from a generator that is used elsewhere.
    """
    again: DataLoader[Any] = DataLoader(
        loader.dataset,
        num_workers=loader.num_workers,
        multiprocessing_context=loader.multiprocessing_context,
        worker_init_fn=loader.worker_init_fn,
        timeout=loader.timeout,
        generator=torch.Generator(device="cpu"),
        **options,
    )
    with on_cpu():
        return iter(again)


def _all_items(dataset: Any) -> Iterator[Any]:
    # `map` would end silently at a StopIteration of the dataset.
    for index in range(len(dataset)):
        yield dataset[index]


def _from_items(
    items: Iterable[Any], batch_size: int | None, max_samples: int | None
) -> Iterator[Batch]:
    """Yield samples or batches, numbered in the order of iteration."""
    items = iter(items)
    try:
        first = next(items)
    except StopIteration:
        return
    items = itertools.chain([first], items)
    if is_batch(first):
        yield from _counted(items)
    else:
        size = batch_size or _default_batch_size(image_and_label(first)[0])
        chunks = _in_chunks(itertools.islice(items, max_samples), size)
        yield from _numbered(map(CollateNumbered(default_collate), chunks))


def _in_chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(itertools.islice(items, size)):
        yield chunk


def _default_batch_size(image: Any) -> int:
    refuse_picture(image)
    height, width = np.shape(image)[-2:] if np.ndim(image) >= 2 else (1, 1)
    return min(max(_PIXELS // max(height * width, 1), 1), _LARGEST_BATCH)


def _numbered(collated: Iterable[tuple[int, list[tuple[Tensor, Any]]]]) -> Iterator[Batch]:
    start = 0
    for count, groups in collated:
        for positions, batch in groups:
            indices = (positions + start).where(positions >= 0, UNKNOWN)
            yield (indices, *images_and_labels(batch))
        start += count


def _counted(batches: Iterable[Any]) -> Iterator[Batch]:
    start = 0
    for batch in batches:
        images, labels = images_and_labels(batch)
        yield torch.arange(start, start + len(labels), device="cpu"), images, labels
        start += len(labels)


def _unnumbered(batches: Iterable[Any]) -> Iterator[Batch]:
    for batch in batches:
        images, labels = images_and_labels(batch)
        yield torch.full((len(labels),), UNKNOWN, device="cpu"), images, labels


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None
