"""The two ways of feeding: resident images in whole batches, or a DataLoader over samples.

Both follow the same `BatchOrder` and `EpochPosition`. They know arrays and epochs; they must not
know CIFAR-10, files or Lightning.
"""

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
from cifar_resnet.data.order import BatchOrder

__all__ = ["EpochCounter", "EpochPosition", "PerSampleImages", "PerSampleLoader", "ResidentLoader"]

_TRANSFORM_STREAM = 4

SampleKey = tuple[int, int]  # epoch, position in the subset


@dataclass
class EpochCounter:
    """The epoch that comes next, over all loaders that are made one after the other."""

    next: int = 0


class EpochPosition:
    """Which epoch an iteration shows and how much of it has been served.

    Each iteration is a new epoch unless `set_epoch` says which one. The saved state means "what
    comes next", so that it is right in the middle and at the end of an epoch alike. It goes on from
    the counter, if one is given.
    """

    def __init__(self, batches: int, counter: EpochCounter | None = None) -> None:
        self._batches = batches
        self._counter = counter or EpochCounter()
        self._next_epoch = self._counter.next
        self._resume_at: tuple[int, int] | None = None  # epoch, first batch
        self._epoch, self._served = self._next_epoch, 0

    def begin(self) -> tuple[int, int]:
        """Start an iteration: its epoch and its first batch."""
        self._epoch, self._served = self._next_epoch, 0
        if self._resume_at is not None and self._resume_at[0] == self._epoch:
            self._served = self._resume_at[1]
        self._resume_at = None
        self._next_epoch = self._counter.next = self._epoch + 1
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
    """Batches (images, labels) made on the device where the images stay.

    Iterating yields float32 images (B, C, S, S) in channels_last memory and int64 labels (B,).
    Iteration is lazy: making an iterator changes nothing until its first batch is taken.

    Args:
        bank: The images of this subset.
        labels: Their labels (N,).
        samples: The position of each of them in the whole dataset (N,); it keys the augmentation,
            so an image gets the same one whatever the split.
        dataset_size: Size of the whole dataset.
        order: The batches.
        seed: Key of the augmentation.
        counter: Where the epochs of all loaders of these images are counted; None for this one's.
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
    ) -> None:
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
        order = np.concatenate(batches)
        if parameters is not None:
            parameters = parameters.take(self._samples[order])
        rows, parameters = self._bank.place(order, parameters)
        labels = self._labels[torch.as_tensor(rows, device=self._bank.device)]
        stops = np.cumsum([len(batch) for batch in batches]).tolist()
        for start, stop in itertools.pairwise([0, *stops]):
            part = slice(start, stop)
            chosen = parameters.take(part) if parameters is not None else None
            images = self._bank.batch(rows[part], chosen)
            self._position.advance()
            yield images, labels[part]

    def in_order(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """All samples of the subset once, as they are: positions in the whole dataset, int64 (B,),
        images and labels. Neither the rank nor the epoch matters, and the epoch goes on after it.
        """
        size = self._order.batch_size
        for start in range(0, len(self._samples), size):
            rows = np.arange(start, min(start + size, len(self._samples)))
            samples = torch.from_numpy(self._samples[rows].astype(np.int64))
            yield samples, self._bank.batch(rows), self._labels[start : start + size].clone()

    @property
    def dataset(self) -> NDArray[np.intp]:
        """The positions of the images in the whole dataset: what loops, and Lightning's search for
        a batch size, ask for the number of images.
        """
        return self._samples

    @property
    def batch_sampler(self) -> Any:
        # Lightning calls `loader.batch_sampler.sampler.set_epoch`, and nothing on the loader
        # itself. A `sampler` attribute would make it treat this as a DataLoader.
        return SimpleNamespace(sampler=self)

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration show `epoch`, counted from 0."""
        self._position.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        return self._position.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._position.load_state_dict(state)


class PerSampleImages(Dataset[Any]):
    """Images as PIL pictures through a transform, one by one, or a batch of keys at a time.

    `dataset[3]` is the fourth image with whatever randomness the transform draws. A list of
    (epoch, position) keys gives a stacked batch in which the global random generators are
    seeded for each sample, and left as they were.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        samples: NDArray[np.intp],
        transform: Callable[[Any], Any],
        *,
        seed: int,
    ) -> None:
        self._images = images
        self._labels = labels
        self._samples = samples
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
        with _on_cpu():
            try:
                items = [self._seeded_item(epoch, position) for epoch, position in keys]
            finally:
                torch.set_rng_state(states[0])
                random.setstate(states[1])
                np.random.set_state(states[2])
            return torch.utils.data.default_collate(items)

    def _seeded_item(self, epoch: int, position: int) -> tuple[Any, int]:
        key = [self._seed, _TRANSFORM_STREAM, epoch, int(self._samples[position])]
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        # not torch.manual_seed: without a GPU in use it queues a call for each of them
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        return self._item(position)


class _KeySampler(DistributedSampler[Any]):
    """Yields whole batches of sample keys.

    A DistributedSampler by type alone: Lightning then leaves it in place, because it shards by
    rank itself.
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
    """A DataLoader over `PerSampleImages` that can be saved and continued within an epoch."""

    def __init__(
        self,
        dataset: Dataset[Any],
        order: BatchOrder,
        counter: EpochCounter | None = None,
        **options: Any,
    ) -> None:
        # Lightning makes some loaders again from their public attributes.
        self.order = order
        self.counter = counter
        self._position = EpochPosition(len(order), counter)
        options |= {
            "batch_size": None,
            "sampler": _KeySampler(order, self._position),
            # else each epoch would draw from the global one, and a resumed training drop out
            # other units than one that was not interrupted
            "generator": torch.Generator(),
        }
        super().__init__(dataset, **options)

    def __iter__(self) -> Any:
        with _on_cpu():
            batches = super().__iter__()
        for batch in batches:
            self._position.advance()
            yield batch

    def set_epoch(self, epoch: int) -> None:
        """Make the next iteration show `epoch`, counted from 0."""
        self._position.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        return self._position.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._position.load_state_dict(state)


def _on_cpu() -> AbstractContextManager[Any]:
    """Tensors and random numbers of the CPU, whatever default device the user has set."""
    # Only where it is needed: it slows every call of torch.
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
