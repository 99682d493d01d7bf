"""Masks: constant ones are exact, and so are elements that are changed in place by a mask."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from helpers import Function, compare_with_perturbation, seen_by_perturbation
from torch import Tensor, nn

from cifar_resnet import receptive_field

X = torch.randn(1, 2, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


def written(write: Callable[[Tensor, Tensor], object]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        y = x * 2
        write(y, x)
        return y

    return run


def leaky(y: Tensor, x: Tensor) -> None:
    y[y < 0] *= 0.1


def copied(y: Tensor, x: Tensor) -> None:
    mask = x.flip(2) > 0
    y[mask] = x.roll(1, 3)[mask]


def shifted(y: Tensor, x: Tensor) -> None:
    mask = x > 0
    y[mask] = x[mask] * 2 + x.roll(1, 2)[mask]


def of_pixels(y: Tensor, x: Tensor) -> None:
    mask = x[:, 0] > 0
    rows = y.permute(0, 2, 3, 1)
    rows[mask] = rows[mask] * 2


WRITES = {
    "constant": lambda y, x: y.__setitem__(y < 0, 0.0),
    "leaky": leaky,
    "copied": copied,
    "shifted": shifted,
    "of pixels": of_pixels,
    "masked_fill_": lambda y, x: y.masked_fill_(x.flip(2) > 0, 1.0),
    "constant mask": lambda y, x: y[0, 0].__setitem__(torch.arange(30).view(6, 5) % 4 == 0, 0.0),
}


@pytest.mark.parametrize("name", WRITES)
def test_masked_writes_are_exact(name: str) -> None:
    network = Function(written(WRITES[name]))
    output = receptive_field(network, inputs=(X,)).output
    noise = torch.Generator().manual_seed(5)
    # of several images, as an element that is overwritten in one may be kept in another
    images = [torch.randn(X.shape, dtype=X.dtype, generator=noise) for _ in range(12)]
    answers = [seen_by_perturbation(network, x, (2, 3)) for x in images]
    for axis in (0, 1):
        found = torch.stack([answer[axis] for answer in answers]).any(0)
        others = [d + 1 for d in range(4) if d not in output.unit_dims]
        assert torch.equal(output.seen(axis), found.any(dim=others) if others else found)


def test_another_mask_or_a_mask_that_changed_is_not_the_same_place() -> None:
    def another(y: Tensor, x: Tensor) -> None:
        mask = x > 0
        chosen = x[mask]
        mask.copy_(mask.flip(2))
        y[mask] = chosen

    def sliced(y: Tensor, x: Tensor) -> None:
        mask = x > 0
        chosen = x[mask]
        chosen[1:] = chosen[:-1].clone()
        y[mask] = chosen

    for write in (another, sliced):
        complete, _ = compare_with_perturbation(Function(written(write)), X)
        assert complete
        fields = receptive_field(Function(written(write)), inputs=(X,))
        assert fields.output.is_global == (True, True)


CAUSAL = torch.ones(6, 6, dtype=torch.bool).tril()
BANDED = (torch.arange(6)[:, None] - torch.arange(6)).abs() < 2


def attend(mask: Tensor | None, **options: bool) -> nn.Module:
    def run(x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x * 2, x + 1, attn_mask=mask, **options)

    return Function(run)


ALLOWED = {"causal": CAUSAL, "banded": BANDED, "of each head": torch.stack([CAUSAL, BANDED])}


@pytest.mark.parametrize("additive", [False, True])
@pytest.mark.parametrize("name", ALLOWED)
def test_attention_masks_given_as_tensors_are_exact(name: str, additive: bool) -> None:
    mask = ALLOWED[name]
    if additive:
        mask = torch.zeros(mask.shape, dtype=X.dtype).masked_fill(~mask, -torch.inf)
    output = receptive_field(attend(mask), inputs=(X,)).output
    rows = output.seen(0)  # (rows of the input, ..., units)
    if mask.dim() == 2:
        assert torch.equal(rows.any(-1), ALLOWED[name].T)  # each query attends to itself, too
    complete, _ = compare_with_perturbation(attend(mask), X)
    assert complete
    if name == "causal":
        causal = receptive_field(attend(None, is_causal=True), inputs=(X,)).output
        assert torch.equal(causal.seen(0), rows)


def test_indices_from_the_input_are_exact_along_the_other_axis() -> None:
    for run in (
        lambda x: x.take_along_dim(x.argsort(2), 2),
        lambda x: x.quantile(0.4, dim=2, keepdim=True),
    ):
        output = receptive_field(Function(run), inputs=(X,)).output
        assert output.is_global == (True, False)
        assert compare_with_perturbation(Function(run), X)[0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Run over the columns of (N, 2, columns) in both directions."""
        there, back = [torch.zeros(1, 2)], [torch.zeros(1, 2)]
        for step in x.unbind(2):
            there.append(self.cell(step, there[-1]))
        for step in reversed(x.unbind(2)):
            back.insert(0, self.cell(step, back[0]))
        return torch.stack(there[1:], 2) + torch.stack(back[:-1], 2)


def test_a_bidirectional_recurrent_layer_is_global() -> None:
    assert receptive_field(Recurrent(), (1, 2, 5)).output.is_global == (True,)
    assert receptive_field(nn.Conv1d(2, 2, 9, padding=4), (1, 2, 5)).output.is_global == (False,)
    lstm = receptive_field(nn.LSTM(3, 4, bidirectional=True), (6, 1, 3), spatial_dims=(0,))
    assert lstm.outputs["0"].is_global == (True,)
