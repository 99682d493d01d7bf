"""Choose samples of a dataset, loader or data module, at random or by index."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from cifar_resnet import arguments
from cifar_resnet.data.class_names import as_class_names
from cifar_resnet.data.metadata import names_of
from cifar_resnet.data.reading import Source, as_dataset, as_source, is_indexed
from cifar_resnet.data.unaugmented import unaugmented
from cifar_resnet.normalization import Statistics
from cifar_resnet.plotting.pictures import Pixels, as_pixels, pil_to_tensors

SPLITS = {"train": "training", "val": "validation", "test": "test"}
_BATCH = 500

RawSample = tuple[int, Tensor, int]  # index or -1 if unknown, image (C, H, W), label


@dataclass(frozen=True)
class Sample:
    """One image to draw."""

    index: int
    label: int
    name: str  # of the label's class
    pixels: Pixels  # uint8 (H, W, 3)

    @property
    def number(self) -> str:
        """The index for a caption; empty if it is unknown."""
        return f"#{self.index}" if self.index >= 0 else ""


@dataclass(frozen=True)
class Collection:
    """Images with labels and their metadata.

    Samples are read one by one from `dataset`. If it is None, all samples are read in order.
    """

    source: Source
    what: str = "samples"  # name of the samples in titles and error messages
    dataset: Any = None
    collate: Callable[[list[Any]], Any] = default_collate
    class_names: tuple[str, ...] | None = None
    statistics: Statistics | None = None

    def at_random(self, seed: int, each: int, classes: Sequence[int] | None) -> Selection:
        """Choose up to `each` samples, or up to `each` samples of each of these classes.

        The choice depends on the seed and the order of the data. It is the same for a dataset and
        for any loader that returns its samples.
        """
        groups: dict[int, list[tuple[float, RawSample]]] = {c: [] for c in classes or ()}
        count = 0
        # Iterating over a loader draws a number from torch's generator.
        with torch.random.fork_rng(devices=[]):
            for key, (index, image, label) in self._keyed(seed):
                count += 1
                if classes is not None:
                    self._class_name(index, label)  # raises for an unknown label
                group = groups.setdefault(0, []) if classes is None else groups.get(label)
                if group is None or (len(group) == each and key >= group[-1][0]):
                    continue
                bisect.insort(group, (key, (index, image.clone(), label)), key=lambda pair: pair[0])
                del group[each:]
                if self.dataset is not None and all(len(g) == each for g in groups.values()):
                    break  # the keys of a dataset come in ascending order
        total = len(self.dataset) if self.dataset is not None else count
        return Selection(
            {c: [self._sample(sample) for _, sample in group] for c, group in groups.items()}, total
        )

    def labels(self) -> list[int]:
        """Return the class numbers: those of the names if known, otherwise those of the samples."""
        if self.class_names is not None:
            return list(range(len(self.class_names)))
        with torch.random.fork_rng(devices=[]):
            return sorted({label for _, (_, _, label) in self._keyed(0)})

    def at(self, indices: Sequence[int]) -> list[Sample]:
        """Return the samples with these indices, in this order."""
        samples: dict[int, RawSample] = {}
        count = 0
        with torch.random.fork_rng(devices=[]):
            if self.dataset is not None:
                count = len(self.dataset)
                valid = [index for index in indices if 0 <= index < count]
                samples = {sample[0]: sample for sample in self._read(valid)}
            else:
                for index, image, label in self._all():
                    count += 1
                    if index in indices:
                        samples[index] = index, image.clone(), label
                    if len(samples) == len(set(indices)):
                        break
        for index in indices:
            if index not in samples:
                raise IndexError(
                    f"There is no image {index} among the {count:,} {self.what}. Indices start at "
                    "0 and refer to the complete data set, including held-out images."
                )
        return [self._sample(samples[index]) for index in indices]

    def _keyed(self, seed: int) -> Iterator[tuple[float, RawSample]]:
        """Yield each sample with a random number; the smallest numbers are chosen."""
        rng = np.random.default_rng(seed)
        if self.dataset is None:
            for sample in self._all():
                yield rng.random(), sample
        else:
            keys = rng.random(len(self.dataset))
            order = keys.argsort()
            yield from zip(keys[order].tolist(), self._read(order.tolist()), strict=True)

    def _all(self) -> Iterator[RawSample]:
        for indices, images, labels in self.source.batches():
            yield from zip(indices.tolist(), images, labels.tolist(), strict=True)

    def _read(self, indices: Iterable[int]) -> Iterator[RawSample]:
        """Read samples of the dataset one by one, so that their images may differ in size."""
        indices = list(indices)
        items = (self.dataset[index] for index in indices)
        if self.collate is default_collate:
            items = (pil_to_tensors(item) for item in items)
        batches = as_source((self.collate([item]) for item in items), 1).batches()
        for index, (_, images, labels) in zip(indices, batches, strict=True):
            yield index, images[0], int(labels[0])

    def _sample(self, sample: RawSample) -> Sample:
        index, image, label = sample
        pixels = as_pixels(image, self.statistics, name=f"Image {index}")
        return Sample(index, label, self._class_name(index, label), pixels)

    def _class_name(self, index: int, label: int) -> str:
        names = self.class_names
        if names is None:
            return str(label)
        if not 0 <= label < len(names):
            raise ValueError(
                f"Sample {index} has label {label}, but there are {len(names)} class names: "
                f"{', '.join(names[:12])}. Pass class_names with one name for each class."
            )
        return names[label]


@dataclass(frozen=True)
class Selection:
    """Chosen samples."""

    groups: dict[int, list[Sample]]  # by class, or all under 0 if no classes were requested
    total: int  # number of samples that they were chosen from


def as_collection(
    data: Any,
    split: str,
    class_names: Sequence[str] | None = None,
    statistics: Statistics | None = None,
) -> Collection:
    """Wrap a dataset, a loader, a data module, or CIFAR-10 if `data` is None.

    `split` selects the images of a data module.
    """
    arguments.choice("split", split, (*SPLITS,))
    names = as_class_names(class_names)
    if data is None:
        from cifar_resnet.data.cifar_modules import CIFAR10DataModule

        data = CIFAR10DataModule(val_split=5000 if split == "val" else 0)
    if all(hasattr(data, name) for name in ("prepare_data", "setup", f"{split}_dataloader")):
        collection = _of_module(data, split)
    else:
        collection = _of_data(data)
    return replace(
        collection,
        class_names=names if names is not None else collection.class_names,
        statistics=statistics or collection.statistics,
    )


def _of_module(module: Any, split: str) -> Collection:
    from cifar_resnet.data.module import ImageDataModule

    what = f"{SPLITS[split]} images"
    if isinstance(module, ImageDataModule):
        plain = unaugmented(module)
        loader = getattr(plain, f"{split}_dataloader")()
        if not loader:
            raise ValueError(
                f"The data module has no {SPLITS[split]} images. Pass split='train', or a module "
                "with val_split=0.1 or test images."
            )
        source = as_source(loader, _BATCH)
        return Collection(
            source, what, class_names=plain.classes, statistics=(plain.mean, plain.std)
        )
    module.prepare_data()
    module.setup("test" if split == "test" else "fit")
    loader = getattr(module, f"{split}_dataloader")()
    if isinstance(loader, list | tuple):
        if len(loader) != 1:
            raise ValueError(
                f"The data module has {len(loader)} {split} loaders. Pass one of the loaders."
            )
        loader = loader[0]
    collection = _of_data(loader)
    class_names = collection.class_names or names_of(module)
    return replace(collection, what=what, class_names=class_names)


def _of_data(data: Any) -> Collection:
    data = as_dataset(data)
    source = as_source(data, _BATCH)
    dataset, collate = None, default_collate
    if isinstance(data, DataLoader):
        # With any other sampler, only the loader itself knows which samples there are.
        plain = isinstance(data.sampler, SequentialSampler | RandomSampler)
        if plain and type(data.batch_sampler) is BatchSampler:
            whole = len(data.sampler) == len(data.dataset)  # type: ignore[arg-type]
            dataset, collate = (data.dataset if whole else None), data.collate_fn
    elif is_indexed(data):
        dataset = data
    return Collection(
        source,
        dataset=dataset,
        collate=collate,
        class_names=source.class_names,
        statistics=source.statistics,
    )
