"""Load batches of device-resident images, or of images with per-sample transforms."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from cifar_resnet.data.augment import ImageBank
from cifar_resnet.data.metadata import Metadata, normalization
from cifar_resnet.data.mixing import Mixing
from cifar_resnet.data.order import BatchOrder

__all__ = ["EpochCounter", "EpochPosition", "PerSampleImages", "PerSampleLoader", "ResidentLoader"]

_TRANSFORM_STREAM = 4
_NEXT_SAMPLE = 7919  # distance of the samples whose augmentation the repetitions of a sample have

SampleKey = tuple[int, int]  # epoch, position in the subset (see `BalancedOrder` for repetitions)


@dataclass
class EpochCounter:
    """The number of the next epoch, shared by all loaders that are created one after another."""

    next: int = 0


class EpochPosition:
    """Keep track of the epoch of an iteration and of the number of batches already returned.

    Each iteration is a new epoch unless `set_epoch` sets it. The saved state is the position of the
    next batch, so it is correct both within and at the end of an epoch. If a counter is given, the
    first epoch is the counter's next one.
    """

    def __init__(self, batches: int, counter: EpochCounter | None = None) -> None:
        self._batches = batches
        self._counter = counter or EpochCounter()
        self._next_epoch = self._counter.next
        self._resume_at: tuple[int, int] | None = None  # epoch, first batch
        self._epoch, self._served = self._next_epoch, 0

    def begin(self) -> tuple[int, int]:
        """Start an iteration and return its epoch and the number of its first batch."""
        self._epoch, self._served = self._next_epoch, 0
        if self._resume_at is not None and self._resume_at[0] == self._epoch:
            self._served = self._resume_at[1]
        self._resume_at = None
        self._next_epoch = self._counter.next = self._epoch + 1
        return self._epoch, self._served

    @property
    def current(self) -> tuple[int, int]:
        """The epoch, and the number of the next batch."""
        return self._epoch, self._served

    def advance(self) -> None:
        self._served += 1

    def set_epoch(self, epoch: int) -> None:
        self._next_epoch = epoch

    def state_dict(self) -> dict[str, int]:
        if self._served >= self._batches:
            return {"epoch": self._epoch + 1, "batch": 0}
        return {"epoch": self._epoch, "batch": self._served}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if not 0 <= state["batch"] < self._batches:
            raise ValueError(
                f"The saved position is batch {state['batch']}, but an epoch has {self._batches} "
                "batches here. Resume with the batch size and validation split of the saved run."
            )
        self._epoch, self._served = state["epoch"], state["batch"]
        self._next_epoch = state["epoch"]
        self._resume_at = (state["epoch"], state["batch"])


class ResidentLoader:
    """Load batches (images, labels) on the device where the images are stored.

    Iterating yields float32 images (B, C, S, S) in channels_last memory and int64 labels (B,).
    Iteration is lazy: creating an iterator changes nothing until its first batch is taken.

    Args:
        bank: The images of this subset.
        labels: Their labels (N,).
        samples: Their positions in the whole dataset (N,). The augmentation of an image depends on
            this position, so it is the same for every split.
        dataset_size: Number of images in the whole dataset.
        order: The batches.
        seed: Random seed for augmentation.
        counter: Counter of the epochs of all loaders of these images. If None, the loader counts
            only its own.
        metadata: Class names, normalization and label suspects, for the analysis of errors.
        mixing: MixUp or CutMix of each batch. The labels are then probabilities (B, classes).
    """

    def __init__(
        self,
        bank: ImageBank,
        labels: NDArray[np.int64],
        samples: NDArray[np.intp],
        dataset_size: int,
        order: BatchOrder,
        *,
        seed: int,
        counter: EpochCounter | None = None,
        metadata: Metadata | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        self.metadata = metadata or Metadata()
        self.mixing = mixing
        self._bank = bank
        self._labels = torch.from_numpy(labels).to(bank.device)
        self._samples = samples
        self._dataset_size = dataset_size
        self._order = order
        self._seed = seed
        self._position = EpochPosition(len(order), counter)
        self.batch_size = order.batch_size

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch, first = self._position.begin()
        augmentation = self._bank.augmentation
        parameters = (
            augmentation.draw(self._dataset_size, self._bank.side, seed=self._seed, epoch=epoch)
            if augmentation is not None
            else None
        )
        batches = self._order.batches(epoch)[first:]
        # A sample that an epoch repeats is augmented as another one.
        repeats, order = np.divmod(np.concatenate(batches), len(self._samples))
        if parameters is not None:
            keys = (self._samples[order] + repeats * _NEXT_SAMPLE) % self._dataset_size
            parameters = parameters.take(keys)
        rows, parameters = self._bank.place(order, parameters)
        labels = self._labels[torch.as_tensor(rows, device=self._bank.device)]
        stops = np.cumsum([len(batch) for batch in batches]).tolist()
        for start, stop in itertools.pairwise([0, *stops]):
            part = slice(start, stop)
            chosen = parameters.take(part) if parameters is not None else None
            images = self._bank.batch(rows[part], chosen)
            batch = images, labels[part]
            if self.mixing is not None:
                batch = self.mixing(*batch, *self._position.current, self._order.rank)
            self._position.advance()
            yield batch

    def in_order(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield all samples of the subset once, in order and without augmentation.

        Each batch is int64 positions in the whole dataset (B,), images and labels. The rank does
        not matter, and the current epoch is not changed.
        """
        size = self._order.batch_size
        for start in range(0, len(self._samples), size):
            rows = np.arange(start, min(start + size, len(self._samples)))
            samples = torch.from_numpy(self._samples[rows].astype(np.int64))
            yield samples, self._bank.batch(rows), self._labels[start : start + size].clone()

    @property
    def keeps_order(self) -> bool:
        """Whether an iteration yields the same batches as `in_order`."""
        augments = self._bank.augmentation is not None or self.mixing is not None
        return not self._order.shuffle and not augments

    @property
    def dataset(self) -> NDArray[np.intp]:
        """Positions of the images in the whole dataset.

        Training loops and Lightning's `BatchSizeFinder` use its length as the number of images.
        """
        return self._samples

    @property
    def batch_sampler(self) -> Any:
        # Lightning calls `loader.batch_sampler.sampler.set_epoch`, and nothing on the loader
        # itself. A `sampler` attribute would make it treat this as a DataLoader.
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, counted from 0."""
        self._position.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        return self._position.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._position.load_state_dict(state)


class PerSampleImages(Dataset[Any]):
    """Apply a transform to PIL images, one by one or for a list of keys.

    `dataset[3]` is the fourth image, with whatever randomness the transform draws. A list of
    (epoch, position) keys returns a stacked batch; the global random generators are seeded for each
    sample and restored afterwards. `samples` are the positions in the whole dataset.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        samples: NDArray[np.intp],
        transform: Callable[[Any], Any],
        *,
        seed: int,
        metadata: Metadata | None = None,
    ) -> None:
        self.metadata = metadata or Metadata(statistics=normalization(transform))
        self.samples = samples
        self._images = images
        self._labels = labels
        self.transform = transform
        self._seed = seed

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, key: int | list[SampleKey]) -> Any:
        if isinstance(key, list):
            return self._batch(key)
        return self._item(key)

    def _item(self, position: int) -> tuple[Any, int]:
        from PIL import Image

        image = Image.fromarray(self._images[position])
        return self.transform(image), int(self._labels[position])

    def _batch(self, keys: list[SampleKey]) -> Any:
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()
        with on_cpu():
            try:
                items = [self._seeded_item(epoch, position) for epoch, position in keys]
            finally:
                torch.set_rng_state(states[0])
                random.setstate(states[1])
                np.random.set_state(states[2])
            return torch.utils.data.default_collate(items)

    def _seeded_item(self, epoch: int, position: int) -> tuple[Any, int]:
        repeat, position = divmod(position, len(self))
        key = [self._seed, _TRANSFORM_STREAM, epoch, int(self.samples[position])]
        key += [repeat] if repeat else []
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        # not torch.manual_seed: before CUDA is initialized it queues a call for every GPU
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        return self._item(position)


class _KeySampler(DistributedSampler[Any]):
    """Yield whole batches of sample keys.

    It is a `DistributedSampler` only by type, so that Lightning does not replace it: it already
    divides the samples among the ranks.
    """

    def __init__(self, order: BatchOrder, position: EpochPosition) -> None:
        self._order = order
        self._position = position

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Any]:
        epoch, first = self._position.begin()
        for rows in self._order.batches(epoch)[first:]:
            yield [(epoch, int(row)) for row in rows]

    def set_epoch(self, epoch: int) -> None:
        self._position.set_epoch(epoch)


class PerSampleLoader(DataLoader[Any]):
    """Load `PerSampleImages` with a position that can be saved and resumed within an epoch."""

    def __init__(
        self,
        dataset: Dataset[Any],
        order: BatchOrder,
        counter: EpochCounter | None = None,
        mixing: Mixing | None = None,
        **options: Any,
    ) -> None:
        # Lightning re-creates some loaders from their public attributes.
        self.order = order
        self.counter = counter
        self.mixing = mixing
        self._position = EpochPosition(len(order), counter)
        options |= {
            "batch_size": None,
            "sampler": _KeySampler(order, self._position),
            # Otherwise each epoch would draw from the global generator, and dropout would differ
            # between a resumed and an uninterrupted training.
            "generator": torch.Generator(),
        }
        super().__init__(dataset, **options)

    def __iter__(self) -> Any:
        with on_cpu():
            batches = super().__iter__()
        for batch in batches:
            if self.mixing is not None:
                batch = self.mixing(batch[0], batch[1], *self._position.current, self.order.rank)
            self._position.advance()
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, counted from 0."""
        self._position.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        return self._position.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._position.load_state_dict(state)


def on_cpu() -> AbstractContextManager[Any]:
    """Create tensors and random numbers on the CPU, even if the user set another default device."""
    # Only if needed, because it slows down every call of torch.
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
