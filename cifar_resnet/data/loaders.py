"""Load batches of device-resident images, or of images with per-sample transforms."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from cifar_resnet.data.datasets import ResidentImages, on_cpu
from cifar_resnet.data.mixing import Mixing
from cifar_resnet.data.order import BatchOrder

__all__ = [
    "EpochCounter",
    "EpochPosition",
    "PerSampleLoader",
    "ResidentLoader",
    "augmentation_keys",
]

_NEXT_SAMPLE = 7919  # distance of the samples whose augmentation the repetitions of a sample have


def augmentation_keys(
    samples: NDArray[np.intp], repeats: NDArray[np.intp] | int, dataset_size: int
) -> NDArray[np.intp]:
    """Return the samples whose augmentation these samples have in an epoch that repeats some."""
    return (samples + repeats * _NEXT_SAMPLE) % dataset_size


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

    def __init__(self, order: BatchOrder, counter: EpochCounter | None = None) -> None:
        self._order = order
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
        if self._served >= len(self._order):
            return {"epoch": self._epoch + 1, "batch": 0}
        return {"epoch": self._epoch, "batch": self._served}

    def rows(self, epoch: int) -> list[NDArray[np.intp]]:
        """Return the positions in the subset of the images of each batch of an epoch."""
        return [batch % self._order.samples for batch in self._order.batches(epoch)]

    def load_state_dict(self, state: dict[str, int]) -> None:
        batches = len(self._order)
        if not 0 <= state["batch"] < batches:
            raise ValueError(
                f"The saved position is batch {state['batch']}, but an epoch has {batches} "
                "batches here. Resume with the batch size and validation split of the saved run."
            )
        self._epoch, self._served = state["epoch"], state["batch"]
        self._next_epoch = state["epoch"]
        self._resume_at = (state["epoch"], state["batch"])


class _Positioned:
    """A loader whose position can be read, saved and restored."""

    _position: EpochPosition

    @property
    def epoch(self) -> int:
        """Number of the epoch of the current iteration."""
        return self._position.current[0]

    def rows(self, epoch: int) -> list[NDArray[np.intp]]:
        """Return the positions in `dataset` of the images of each batch of an epoch.

        An image that the epoch repeats (`sampling="balanced"`) has the same position each time.
        """
        return self._position.rows(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, counted from 0."""
        self._position.set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        return self._position.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._position.load_state_dict(state)


class ResidentLoader(_Positioned):
    """Load batches (images, labels) on the device where the images are stored.

    Iterating yields float32 images (B, C, H, W) in channels_last memory and int64 labels (B,).
    Iteration is lazy: creating an iterator changes nothing until its first batch is taken.

    Args:
        dataset: The images of this subset.
        dataset_size: Number of images in the whole dataset.
        order: The batches.
        seed: Random seed for augmentation.
        counter: Counter of the epochs of all loaders of these images. If None, the loader counts
            only its own.

    Attributes:
        dataset: The images with their labels, for example for a `DataLoader` or `random_split`.
        metadata: Class names, normalization and label suspects, for the analysis of errors.
        mixing: MixUp or CutMix of each batch. The labels are then probabilities (B, classes).
    """

    def __init__(
        self,
        dataset: ResidentImages,
        dataset_size: int,
        order: BatchOrder,
        *,
        seed: int,
        counter: EpochCounter | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        self.dataset = dataset
        self.metadata = dataset.metadata
        self.mixing = mixing
        self._dataset_size = dataset_size
        self._order = order
        self._seed = seed
        self._position = EpochPosition(order, counter)
        self.batch_size = order.batch_size

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        bank, all_labels = self.dataset.stored()
        epoch, first = self._position.begin()
        augmentation = bank.augmentation
        parameters = (
            augmentation.draw(self._dataset_size, bank.size, seed=self._seed, epoch=epoch)
            if augmentation is not None
            else None
        )
        batches = self._order.batches(epoch)[first:]
        # A sample that an epoch repeats is augmented as another one.
        repeats, order = np.divmod(np.concatenate(batches), len(self.dataset))
        if parameters is not None:
            samples = self.dataset.samples[order]
            parameters = parameters.take(augmentation_keys(samples, repeats, self._dataset_size))
        rows, parameters = bank.place(order, parameters)
        labels = all_labels[torch.as_tensor(rows, device=bank.device)]
        stops = np.cumsum([len(batch) for batch in batches]).tolist()
        for start, stop in itertools.pairwise([0, *stops]):
            part = slice(start, stop)
            chosen = parameters.take(part) if parameters is not None else None
            images = bank.batch(rows[part], chosen)
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
        bank, labels = self.dataset.stored()
        positions, size = self.dataset.samples, self._order.batch_size
        for start in range(0, len(positions), size):
            rows = np.arange(start, min(start + size, len(positions)))
            samples = torch.from_numpy(positions[rows].astype(np.int64))
            yield samples, bank.batch(rows), labels[start : start + size].clone()

    @property
    def keeps_order(self) -> bool:
        """Whether an iteration yields the same batches as `in_order`."""
        augments = self.dataset.augmentation is not None or self.mixing is not None
        return not self._order.shuffle and not augments

    @property
    def batch_sampler(self) -> Any:
        # Lightning calls `loader.batch_sampler.sampler.set_epoch`, and nothing on the loader
        # itself. A `sampler` attribute would make it treat this as a DataLoader.
        return SimpleNamespace(sampler=self)


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


class PerSampleLoader(_Positioned, DataLoader[Any]):
    """Load `PerSampleImages` with a position that can be saved and resumed within an epoch."""

    # `Accelerator.prepare` leaves such loaders as they are. It would replace the sampler, which
    # already divides the samples among the processes.
    _is_accelerate_prepared = True

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
        self._position = EpochPosition(order, counter)
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
