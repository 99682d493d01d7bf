"""Collect the samples that a Lightning trainer tests, from the loaders or from its batches."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from pytorch_lightning import LightningDataModule, Trainer
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    default_collate,
)

from cifar_resnet.data.batches import UNKNOWN
from cifar_resnet.data.loaders import PerSampleLoader, ResidentLoader
from cifar_resnet.data.reading import Batch, Source, as_source, with_metadata_of

_TRANSFERS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


class TestedSamples:
    """The samples of one test loader, exactly as the trainer tests them.

    A loader in the order of its dataset is read a second time after the test. The batches of any
    other loader, and batches that are changed on their way to the device, are copied to the CPU
    during the test.

    Attributes:
        recorded: The copied batches. If None, the loader is read again.
        source: The samples with their metadata; complete after the test.
    """

    __test__ = False  # not a class of tests, in spite of its name

    def __init__(self, loader: Any, batches: float, trainer: Trainer) -> None:
        keeps_order = _keeps_order(loader)
        same_again = keeps_order or (_is_whole(loader) and not _is_limited(loader, batches))
        read_again = same_again and not _has_own_batches(loader) and not _changes(trainer)
        self.recorded: list[Any] | None = None if read_again else []
        source = as_source(loader, _batch_size(loader))
        if (module := _data_module(trainer)) is not None:
            source = with_metadata_of(module, source)
        if self.recorded is not None:
            counted = isinstance(getattr(loader, "dataset", None), IterableDataset) or (
                keeps_order and trainer.world_size == 1 and _keeps_samples(loader)
            )
            self.source = replace(
                source,
                batches=lambda: self._batches(counted),
                suspects=source.suspects if counted else frozenset(),
            )
        elif keeps_order and (trainer.world_size == 1 or _is_limited(loader, batches)):
            stop = int(batches) * trainer.world_size  # processes divide the batches
            self.source = replace(source, batches=lambda: itertools.islice(source.batches(), stop))
        else:
            self.source = source

    def record(self, batch: Any) -> None:
        """Keep a copy of a batch on the CPU, before the model can change it."""
        if self.recorded is not None:
            self.recorded.append(apply_to_collection(batch, Tensor, _copied))

    def first_batch(self) -> Source:
        """Return only the first batch, with the metadata."""
        return replace(self.source, batches=lambda: itertools.islice(self.source.batches(), 1))

    def _batches(self, counted: bool) -> Iterator[Batch]:
        for indices, inputs, labels in as_source(_Iterable(self.recorded), 1).batches():
            yield (indices if counted else indices.fill_(UNKNOWN)), inputs, labels


def flattened(loaders: Any) -> list[Any]:
    """Return the loaders in a nested collection in the order in which Lightning numbers them."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, list | tuple):
        return [loader for part in loaders for loader in flattened(part)]
    return [loaders]


class _Iterable:
    """Batches that can only be iterated, since a list would be taken for a dataset."""

    def __init__(self, batches: list[Any] | None) -> None:
        self._recorded = batches or []

    def __iter__(self) -> Iterator[Any]:
        return iter(self._recorded)


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _keeps_order(loader: Any) -> bool:
    """Return whether a loader yields its samples in ascending order of their indices."""
    if isinstance(loader, ResidentLoader):
        return loader.keeps_order
    if isinstance(loader, PerSampleLoader):
        return not loader.order.shuffle
    sampler = _sampler(loader)
    if isinstance(sampler, DistributedSampler):
        return not sampler.shuffle
    return type(sampler) is SequentialSampler


def _is_whole(loader: Any) -> bool:
    """Return whether all iterations of a loader yield the same samples."""
    if isinstance(loader, PerSampleLoader):
        return True
    sampler = _sampler(loader)
    if isinstance(sampler, RandomSampler):
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)
    return type(sampler) in (DistributedSampler, SubsetRandomSampler)


def _is_limited(loader: Any, batches: float) -> bool:
    """Return whether the trainer leaves out samples of a loader."""
    return batches < len(loader) or bool(getattr(loader, "drop_last", False))


def _sampler(loader: Any) -> Any:
    """Return the sampler of a `DataLoader` that makes batches of a fixed size."""
    is_ordinary = (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader.batch_sampler) is BatchSampler
    )
    return loader.batch_sampler.sampler if is_ordinary else None


def _has_own_batches(loader: Any) -> bool:
    """Return whether a `DataLoader` got a batch sampler, whose sampler it does not know."""
    is_other = isinstance(loader, DataLoader) and not isinstance(loader, PerSampleLoader)
    return is_other and loader.batch_size is None


def _keeps_samples(loader: Any) -> bool:
    """Return whether each sample of a dataset is in a batch; another `collate_fn` may drop some."""
    own = isinstance(loader, ResidentLoader | PerSampleLoader)
    return own or loader.collate_fn is default_collate


def _batch_size(loader: Any) -> int:
    """Return the number of samples in a batch of a loader that is read again."""
    if isinstance(loader, PerSampleLoader):
        return loader.order.batch_size
    return getattr(loader, "batch_size", None) or 1


def _changes(trainer: Trainer) -> bool:
    """Return whether the model or the data module changes batches on the way to the device."""
    owners = (trainer.lightning_module, _data_module(trainer))
    return any(is_overridden(name, owner) for name in _TRANSFERS for owner in owners)


def _data_module(trainer: Trainer) -> LightningDataModule | None:
    """Return the data module that the test uses; `trainer.datamodule` may be that of a fit."""
    origin = trainer.test_loop._data_source.instance
    return origin if isinstance(origin, LightningDataModule) else None
