"""Decide which samples are in which batch and which are held out for validation."""

from __future__ import annotations

import itertools

import numpy as np
import torch.distributed
from numpy.typing import NDArray

__all__ = ["BatchOrder", "apportion", "split_order", "stratified_split"]

_ORDER_STREAM = 0
# The split has its own random seed, so that the training seed does not move images between training
# and validation.
_SPLIT_SEED = 20_260


class BatchOrder:
    """Compute the batches of one rank in each epoch, depending only on seed and epoch.

    The permutation of an epoch is divided into global batches of `batch_size * world_size` samples,
    and each rank takes its part of each. So two processes together see the same images in each step
    as one process with twice the batch size. All ranks have the same number of batches. No sample
    is repeated, and none is left out except in the incomplete last batch with `drop_last`.

    If `rank` and `world_size` are None, they are those of the default process group of
    `torch.distributed` whenever batches are computed or counted; without one, a single process.
    """

    def __init__(
        self,
        samples: int,
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.samples = samples
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self._rank = rank
        self._world_size = world_size
        self._bounds()  # raises an error now rather than in the first epoch

    @property
    def rank(self) -> int:
        """Index of this process."""
        if self._rank is not None:
            return self._rank
        return torch.distributed.get_rank() if _has_process_group() else 0

    @property
    def world_size(self) -> int:
        """Number of processes that divide the samples."""
        if self._world_size is not None:
            return self._world_size
        return torch.distributed.get_world_size() if _has_process_group() else 1

    def __len__(self) -> int:
        return len(self._bounds()) - 1

    def _bounds(self) -> list[int]:
        """Return where the global batches start, and the end of the last one."""
        world_size = self.world_size
        if self.samples < world_size:
            raise ValueError(
                f"{self.samples} samples cannot be divided among {world_size} processes: "
                "each needs at least one."
            )
        step = self.batch_size * world_size
        full, rest = divmod(self.samples, step)
        if self.drop_last and full == 0:
            raise ValueError(
                f"drop_last leaves no batch: {self.samples} samples are fewer than one batch of "
                f"{step} (batch_size {self.batch_size} on {world_size} process(es)). "
                "Use a smaller batch_size or drop_last=False."
            )
        bounds = [step * k for k in range(full + 1)]
        if rest and not self.drop_last:
            if rest < world_size:  # fewer than one per rank: add them to the last full batch
                bounds.pop()
            bounds.append(self.samples)
        return bounds

    def permutation(self, epoch: int) -> NDArray[np.intp]:
        """Return the order of all samples in an epoch."""
        if not self.shuffle:
            return np.arange(self.samples)
        return np.random.default_rng([self.seed, _ORDER_STREAM, epoch]).permutation(self.samples)

    def batches(self, epoch: int) -> list[NDArray[np.intp]]:
        """Return the positions of the samples in each of this rank's batches."""
        order, rank, world_size = self.permutation(epoch), self.rank, self.world_size
        result = []
        for start, stop in itertools.pairwise(self._bounds()):
            size, extra = divmod(stop - start, world_size)
            first = start + rank * size + min(rank, extra)
            result.append(order[first : first + size + (rank < extra)])
        return result


def _has_process_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def apportion(counts: NDArray[np.intp], total: int) -> NDArray[np.intp]:
    """Return how many of `total` samples to take from classes with these counts of samples.

    The largest remainder method makes the numbers proportional to the counts, and their sum
    `total`.
    """
    exact = counts * total / counts.sum()
    take: NDArray[np.intp] = np.floor(exact).astype(np.intp)
    take[np.argsort(take - exact, kind="stable")[: total - take.sum()]] += 1
    return take


def split_order(labels: NDArray[np.int64]) -> list[NDArray[np.intp]]:
    """Return the positions of each class in the order in which they are held out."""
    rng = np.random.default_rng(_SPLIT_SEED)
    return [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]


def stratified_split(
    labels: NDArray[np.int64], held_out: int
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the sorted positions to train on and to hold out, stratified by class.

    The split depends only on the labels and the count, so it is the same in every process and for
    every seed.
    """
    take = apportion(np.unique(labels, return_counts=True)[1], held_out)
    held = np.concatenate(
        [rows[:count] for rows, count in zip(split_order(labels), take, strict=True)]
    )
    mask = np.zeros(len(labels), dtype=np.bool_)
    mask[held] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)
