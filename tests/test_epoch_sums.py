"""EpochSums: the sums of an epoch against NumPy, however often they are synchronized."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cifar_resnet.training.epoch_sums import EpochSums


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(size, 4), torch.randint(0, 4, (size,))) for size in (7, 7, 3)]


def add(epoch_sums: EpochSums, scores: torch.Tensor, labels: torch.Tensor, step: int = 0) -> None:
    loss = F.cross_entropy(scores, labels)
    epoch_sums.add(loss, scores, labels, step=step, learning_rate=step / 10)


@pytest.mark.parametrize("after", [(), (0,), (0, 1, 2)])
def test_sums_do_not_depend_on_when_they_are_synchronized(after: tuple[int, ...]) -> None:
    epoch_sums, batches_seen = EpochSums(), []
    losses, correct, sizes = [], [], []
    for index, (scores, labels) in enumerate(batches()):
        add(epoch_sums, scores, labels, step=index)
        losses.append(F.cross_entropy(scores, labels).item())
        correct.append((scores.numpy().argmax(1) == labels.numpy()).sum())
        sizes.append(len(labels))
        if index in after:
            batches_seen += epoch_sums.synchronize()
            assert epoch_sums.synchronize() == []
    batches_seen += epoch_sums.synchronize()
    assert [loss for loss, _ in batches_seen] == losses
    assert [batch.step for _, batch in batches_seen] == [0, 1, 2]
    assert [batch.learning_rate for _, batch in batches_seen] == [0, 0.1, 0.2]
    assert [batch.correct.item() for _, batch in batches_seen] == correct
    expected = [np.dot(losses, sizes), sum(correct), sum(sizes)]
    np.testing.assert_allclose(epoch_sums.sums(), expected, rtol=1e-12)


def test_sums_can_be_restored_and_reset() -> None:
    data = batches()
    whole, first, second = EpochSums(), EpochSums(), EpochSums()
    for index, (scores, labels) in enumerate(data):
        for sums in (whole, first if index < 2 else second):
            add(sums, scores, labels)
            sums.synchronize()
        if index == 1:
            saved = first.sums()
            second.restore(saved)
    assert torch.equal(whole.sums(), second.sums())
    assert torch.equal(first.sums(), saved)
    whole.reset()
    assert whole.sums().tolist() == [0, 0, 0]


def test_the_graph_of_a_batch_is_not_kept() -> None:
    epoch_sums, scores = EpochSums(), torch.randn(3, 4, requires_grad=True)
    add(epoch_sums, scores, torch.zeros(3, dtype=torch.long))
    ((_, batch),) = epoch_sums.synchronize()
    assert not batch.loss.requires_grad
