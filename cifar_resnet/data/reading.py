"""Read any dataset, loader or data module in order, with the indices of its samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from cifar_resnet.data.label_suspects import label_suspects
from cifar_resnet.data.loaders import PerSampleLoader, ResidentLoader
from cifar_resnet.normalization import Statistics

Batch = tuple[Tensor, Tensor, Tensor]  # int64 indices (B,), inputs (B, C, H, W), int64 labels (B,)

_IMAGES = ("image", "images", "pixel_values", "img", "x")
_LABELS = ("label", "labels", "target", "y")


@dataclass(frozen=True)
class Source:
    """Samples with their metadata.

    Attributes:
        batches: Function that returns an iterator over all samples, in ascending order of their
            indices if the data can be indexed.
        class_names: Names of the classes, if known.
        statistics: Mean and standard deviation of each channel that were used to normalize the
            inputs, if known.
        suspects: Indices of samples whose label is doubtful.
    """

    batches: Callable[[], Iterator[Batch]]
    class_names: tuple[str, ...] | None = None
    statistics: Statistics | None = None
    suspects: frozenset[int] = field(default_factory=frozenset)


def as_source(data: Any, batch_size: int) -> Source:
    """Return a dataset, a loader or a data module as a `Source`. If None, the CIFAR-10 test set."""
    if isinstance(data, Source):
        return data
    if data is None:
        from cifar_resnet.data.module import CIFAR10DataModule

        data = CIFAR10DataModule(batch_size=batch_size)
    if all(hasattr(data, name) for name in ("prepare_data", "setup", "test_dataloader")):
        return _of_module(data, batch_size)  # of `lightning` or `pytorch_lightning`
    if isinstance(data, DataLoader):
        return _of_loader(data, batch_size)
    if isinstance(data, IterableDataset):
        return _of_loader(DataLoader(data, batch_size=batch_size), batch_size)
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        if isinstance(data, Sequence) and len(data) == 2 and isinstance(data[0], Tensor):
            raise TypeError(
                "data must be a dataset of (image, label) samples, but got a pair of tensors: wrap "
                "it in torch.utils.data.TensorDataset(images, labels)."
            )
        return _of_loader(DataLoader(data, batch_size=batch_size), batch_size)
    if isinstance(data, ResidentLoader):
        return Source(data.in_order)
    if isinstance(data, Iterable):
        return Source(lambda: _counted(data))
    raise TypeError(
        "data must be a Dataset, a DataLoader, a LightningDataModule, or None for CIFAR-10, "
        f"but got {type(data).__name__}."
    )


def _of_module(module: Any, batch_size: int) -> Source:
    module.prepare_data()
    module.setup("test")
    loader = module.test_dataloader()
    if isinstance(loader, list | tuple):
        if len(loader) != 1:
            raise ValueError(
                f"The data module has {len(loader)} test loaders: pass one of them instead."
            )
        loader = loader[0]
    return with_metadata_of(module, as_source(loader, batch_size))


def with_metadata_of(module: Any, source: Source) -> Source:
    """Add the metadata of a data module to a source of its test samples."""
    from cifar_resnet.data.module import CIFAR10DataModule

    names = source.class_names or _names(getattr(module, "classes", None))
    statistics, suspects = source.statistics, source.suspects
    if isinstance(module, CIFAR10DataModule):
        suspects = frozenset(label_suspects())
        transform = module.test_transforms
        statistics = (module.mean, module.std) if transform is None else _normalization(transform)
    return Source(source.batches, names, statistics, suspects)


def _of_loader(loader: DataLoader[Any], batch_size: int) -> Source:
    dataset = loader.dataset
    base: Any = dataset
    while isinstance(base, Subset):
        base = base.dataset
    transform = getattr(base, "transform", None) or getattr(base, "transforms", None)
    makes_batches = loader.batch_sampler is None and not isinstance(loader, PerSampleLoader)
    if isinstance(dataset, IterableDataset) or makes_batches:
        batches = partial(_counted, loader)
    else:
        batches = partial(_indexed, loader, loader.batch_size or batch_size)
    return Source(
        batches,
        _names(getattr(base, "classes", None)),
        _normalization(transform),
        frozenset(_suspects(dataset)),
    )


def _indexed(loader: DataLoader[Any], batch_size: int) -> Iterator[Batch]:
    """Yield every sample of a loader once, in ascending order of the indices."""
    chosen = _indices(loader)
    one_by_one = isinstance(loader, PerSampleLoader)  # its sampler yields whole batches
    collate = _CollateIndexed(default_collate if one_by_one else loader.collate_fn)
    again: DataLoader[Any] = DataLoader(
        _Indexed(loader.dataset),
        batch_size=batch_size,
        sampler=chosen,
        collate_fn=collate,
        num_workers=loader.num_workers,
        multiprocessing_context=loader.multiprocessing_context,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator(),  # not the global one, which all threads share
    )
    try:
        for indices, batch in again:
            yield (indices, *_inputs_and_labels(batch))
    except TypeError as error:
        if "PIL" in str(error):
            raise TypeError(
                "The dataset gives PIL images, which a network cannot take: give it a transform, "
                "such as CIFAR10DataModule.default_transforms()."
            ) from error
        raise


def _indices(loader: DataLoader[Any]) -> list[int]:
    sampler: Any = loader.batch_sampler
    if type(sampler) is BatchSampler or sampler is None:
        sampler = loader.sampler
    size = len(loader.dataset)  # type: ignore[arg-type]
    whole = isinstance(sampler, SequentialSampler | DistributedSampler) or (
        isinstance(sampler, RandomSampler)
        and not sampler.replacement
        and sampler.num_samples == size
    )
    if whole:
        return list(range(size))
    chosen: set[int] = set()
    for index in sampler:
        chosen.update(index if isinstance(index, list | tuple) else [index])
    return sorted(int(index) for index in chosen)


class _Indexed(Dataset[Any]):
    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, self.dataset[index]


class _CollateIndexed:
    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list[tuple[int, Any]]) -> tuple[Tensor, Any]:
        indices, items = zip(*samples, strict=True)
        return torch.tensor(indices), self.collate(list(items))


def _counted(batches: Iterable[Any]) -> Iterator[Batch]:
    """Yield samples that have no indices, numbered in the order of iteration."""
    start = 0
    for batch in batches:
        inputs, labels = _inputs_and_labels(batch)
        yield torch.arange(start, start + len(labels)), inputs, labels
        start += len(labels)


def _inputs_and_labels(batch: Any) -> tuple[Tensor, Tensor]:
    found: tuple[Any, Any] | None = None
    if isinstance(batch, Mapping):
        image = next((name for name in _IMAGES if name in batch), None)
        label = next((name for name in _LABELS if name in batch), None)
        if image is None or label is None:
            raise ValueError(
                "A batch must hold images and labels, as (images, labels) or under keys such as "
                f"{_IMAGES[0]!r} and {_LABELS[0]!r}, but has the keys {list(batch)}."
            )
        found = batch[image], batch[label]
    elif isinstance(batch, list | tuple) and len(batch) >= 2:
        found = batch[0], batch[1]
    if found is None or not all(isinstance(part, Tensor) for part in found):
        what = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else batch
        raise ValueError(
            f"A batch must be (images, labels), both tensors, but is a {what}. Errors cannot be "
            "found in data without labels."
        )
    images, labels = found
    if images.dim() != 4:
        raise ValueError(
            f"A batch must hold images (N, C, H, W), but they have shape {tuple(images.shape)}."
        )
    if labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dim() != 1 or len(labels) != len(images) or labels.is_floating_point():
        raise ValueError(
            f"Labels must be class numbers (N,) for {len(images)} images, but are {labels.dtype} "
            f"of shape {tuple(labels.shape)}."
        )
    return images, labels.long()


def _names(classes: Any) -> tuple[str, ...] | None:
    return tuple(map(str, classes)) if isinstance(classes, list | tuple) and classes else None


def _normalization(transform: Any) -> Statistics | None:
    """Return the mean and standard deviation of a torchvision transform, if it normalizes."""
    parts = getattr(transform, "transforms", None)
    if isinstance(parts, list | tuple):
        return next(filter(None, map(_normalization, reversed(parts))), None)
    if type(transform).__name__ == "StandardTransform":  # torchvision's, of images and labels
        return _normalization(transform.transform)
    if type(transform).__name__ == "Normalize":
        mean, std = torch.as_tensor(transform.mean), torch.as_tensor(transform.std)
        return tuple(mean.tolist()), tuple(std.tolist())
    return None


def _suspects(dataset: Any) -> set[int]:
    if isinstance(dataset, Subset):
        inner = _suspects(dataset.dataset)
        return {position for position, index in enumerate(dataset.indices) if int(index) in inner}
    kind = type(dataset)
    is_cifar10 = (kind.__module__, kind.__name__) == ("torchvision.datasets.cifar", "CIFAR10")
    return set(label_suspects()) if is_cifar10 and not dataset.train else set()
