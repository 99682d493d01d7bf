"""Test batches and splits: no sample is lost or repeated, and every process agrees."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cifar_resnet.data.order import BatchOrder, stratified_split


@settings(max_examples=200, deadline=None)
@given(
    samples=st.integers(1, 300),
    batch_size=st.integers(1, 40),
    world_size=st.integers(1, 5),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_the_ranks_divide_the_epoch(
    samples: int, batch_size: int, world_size: int, shuffle: bool, epoch: int
) -> None:
    if samples < world_size:
        with pytest.raises(ValueError, match="cannot be divided among"):
            BatchOrder(
                samples,
                batch_size,
                shuffle=shuffle,
                drop_last=False,
                seed=0,
                rank=0,
                world_size=world_size,
            )
        return
    ranks = [
        BatchOrder(
            samples,
            batch_size,
            shuffle=shuffle,
            drop_last=False,
            seed=5,
            rank=r,
            world_size=world_size,
        )
        for r in range(world_size)
    ]
    batches = [rank.batches(epoch) for rank in ranks]
    assert {len(b) for b in batches} == {len(ranks[0])}
    assert all(len(rows) for b in batches for rows in b)
    seen = np.concatenate([rows for b in batches for rows in b])
    assert sorted(seen) == list(range(samples))
    # step by step, the ranks together see what one process with the whole batch sees
    one = BatchOrder(samples, batch_size * world_size, shuffle=shuffle, drop_last=False, seed=5)
    together = [np.concatenate(step) for step in zip(*batches, strict=True)]
    for step, whole in zip(together[:-1], one.batches(epoch), strict=False):
        assert (step == whole).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    samples=st.integers(1, 300),
    batch_size=st.integers(1, 40),
    world_size=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_without_the_incomplete_batch_all_are_full(
    samples: int, batch_size: int, world_size: int, epoch: int
) -> None:
    step = batch_size * world_size
    assume(samples >= step)
    ranks = [
        BatchOrder(
            samples, batch_size, shuffle=True, drop_last=True, seed=5, rank=r, world_size=world_size
        )
        for r in range(world_size)
    ]
    batches = [rank.batches(epoch) for rank in ranks]
    assert {len(rows) for b in batches for rows in b} == {batch_size}
    assert {len(b) for b in batches} == {len(ranks[0])} == {samples // step}
    seen = np.concatenate([rows for b in batches for rows in b])
    assert len(set(seen)) == len(seen) == samples - samples % step
    assert set(seen) <= set(range(samples))


def test_batches_on_one_process() -> None:
    order = BatchOrder(10, 4, shuffle=False, drop_last=False, seed=0)
    assert [list(rows) for rows in order.batches(0)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    dropping = BatchOrder(10, 4, shuffle=False, drop_last=True, seed=0)
    assert [len(rows) for rows in dropping.batches(0)] == [4, 4]
    assert len(dropping) == 2


def test_the_order_depends_on_epoch_and_seed() -> None:
    def first(seed: int, epoch: int) -> list[int]:
        return list(
            BatchOrder(100, 100, shuffle=True, drop_last=False, seed=seed).batches(epoch)[0]
        )

    assert first(1, 2) == first(1, 2)
    assert first(1, 2) != first(1, 3)
    assert first(1, 2) != first(2, 2)


def test_drop_last_that_leaves_nothing() -> None:
    with pytest.raises(ValueError, match=r"no batch: 3 samples .*\(batch_size 4 on 1"):
        BatchOrder(3, 4, shuffle=False, drop_last=True, seed=0)


@settings(max_examples=100, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=2, max_size=200), fraction=st.floats(0, 0.99))
def test_split_is_stratified_and_complete(labels: list[int], fraction: float) -> None:
    array = np.array(labels)
    held_out = int(fraction * len(labels))
    train, held = stratified_split(array, held_out)
    assert len(held) == held_out
    assert sorted([*train, *held]) == list(range(len(labels)))
    for label in set(labels):
        exact = labels.count(label) * held_out / len(labels)
        assert abs((array[held] == label).sum() - exact) < 1
    again = stratified_split(array, held_out)
    assert (again[0] == train).all()
