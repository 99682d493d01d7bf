"""Tally: the sums of an epoch against NumPy, however often somebody looks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cifar_resnet.tally import Tally


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(size, 4), torch.randint(0, 4, (size,))) for size in (7, 7, 3)]


def add(tally: Tally, scores: torch.Tensor, labels: torch.Tensor, step: int = 0) -> None:
    loss = F.cross_entropy(scores, labels)
    tally.add(loss, scores, labels, step=step, learning_rate=step / 10)


@pytest.mark.parametrize("look_after", [(), (0,), (0, 1, 2)])
def test_sums_do_not_depend_on_when_somebody_looks(look_after: tuple[int, ...]) -> None:
    tally, told = Tally(), []
    losses, right, sizes = [], [], []
    for index, (scores, labels) in enumerate(batches()):
        add(tally, scores, labels, step=index)
        losses.append(F.cross_entropy(scores, labels).item())
        right.append((scores.numpy().argmax(1) == labels.numpy()).sum())
        sizes.append(len(labels))
        if index in look_after:
            told += tally.look()
            assert tally.look() == []
    told += tally.look()
    assert [loss for loss, _ in told] == losses
    assert [batch.step for _, batch in told] == [0, 1, 2]
    assert [batch.learning_rate for _, batch in told] == [0, 0.1, 0.2]
    assert [batch.correct.item() for _, batch in told] == right
    expected = [np.dot(losses, sizes), sum(right), sum(sizes)]
    np.testing.assert_allclose(tally.sums(), expected, rtol=1e-12)


def test_restored_sums_go_on_and_reset_ones_begin_again() -> None:
    data = batches()
    whole, first, second = Tally(), Tally(), Tally()
    for index, (scores, labels) in enumerate(data):
        for tally in (whole, first if index < 2 else second):
            add(tally, scores, labels)
            tally.look()
        if index == 1:
            saved = first.sums()
            second.restore(saved)
    assert torch.equal(whole.sums(), second.sums())
    assert torch.equal(first.sums(), saved)
    whole.reset()
    assert whole.sums().tolist() == [0, 0, 0]


def test_the_graph_of_a_batch_is_not_kept() -> None:
    tally, scores = Tally(), torch.randn(3, 4, requires_grad=True)
    add(tally, scores, torch.zeros(3, dtype=torch.long))
    ((_, batch),) = tally.look()
    assert not batch.loss.requires_grad
