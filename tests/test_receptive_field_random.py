"""Random networks, each compared with the NaN probe in every unit of every layer."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import Function
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cifar_resnet import check_receptive_field, receptive_field

CHANNELS = 4
LENGTHS = {1: (17, 24), 2: (9, 13), 3: (5, 8)}
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
MAX = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
AVG = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
ADAPTIVE = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveAvgPool3d}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}

STEPS = (
    *["conv"] * 3, *["branches"] * 2, "same", "circular", "transposed", "max", "avg", "adaptive",
    "nearest", "linear", "slice", "flip", "roll", "pad", "reflect", "permute", "flatten",
    "linear_layer", "group_norm", "inplace", "softmax", "unfold", "shuffle", "select", "index",
)  # fmt: skip


class Branches(nn.Module):
    """Two branches from one tensor, cropped to a common size and merged."""

    def __init__(self, left: nn.Module, right: nn.Module, concatenate: bool) -> None:
        super().__init__()
        self.left, self.right, self.concatenate = left, right, concatenate

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.left(x), self.right(x)
        keep = tuple(slice(0, min(m, n)) for m, n in zip(a.shape[2:], b.shape[2:], strict=True))
        a, b = a[(..., *keep)], b[(..., *keep)]
        if self.concatenate:
            return torch.cat([a, b], dim=1)[:, ::2]
        return a + b


def a_step(draw: Callable[..., object], rank: int, depth: int) -> nn.Module:
    def number(low: int, high: int) -> int:
        value = draw(st.integers(low, high))
        assert isinstance(value, int)
        return value

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(number(low, high) for _ in range(rank))

    kind = draw(st.sampled_from(STEPS))
    if kind == "conv":
        mode = draw(st.sampled_from(["zeros", "zeros", "reflect", "replicate"]))
        return CONV[rank](
            CHANNELS, CHANNELS, each(1, 4), each(1, 3), each(0, 2), each(1, 2),
            groups=[1, 2, CHANNELS][number(0, 2)], padding_mode=str(mode),
        )  # fmt: skip
    if kind == "same":
        return CONV[rank](CHANNELS, CHANNELS, each(1, 4), padding="same", dilation=each(1, 2))
    if kind == "circular":
        size = number(1, 2)
        return CONV[rank](
            CHANNELS, CHANNELS, 2 * size + 1, padding=size, padding_mode="circular"
        )  # fmt: skip
    if kind == "transposed":
        stride = each(1, 3)
        return TRANSPOSED[rank](
            CHANNELS, CHANNELS, each(1, 4), stride, each(0, 1),
            tuple(number(0, s - 1) for s in stride), dilation=each(1, 2),
        )  # fmt: skip
    if kind == "max":
        return MAX[rank](
            number(2, 3), number(1, 3), padding=number(0, 1), ceil_mode=number(0, 1) == 1
        )
    if kind == "avg":
        return AVG[rank](
            number(2, 3), number(1, 3), padding=number(0, 1), ceil_mode=number(0, 1) == 1
        )
    if kind == "adaptive":
        return ADAPTIVE[rank](number(1, 7))
    if kind == "nearest":
        return nn.Upsample(scale_factor=number(1, 3))
    if kind == "linear":
        align = number(0, 1) == 1
        return nn.Upsample(size=each(2, 12), mode=LINEAR[rank], align_corners=align)
    if kind == "slice":
        step, start = number(1, 3), number(0, 2)
        return Function(lambda x: x[..., start::step])
    if kind == "flip":
        return Function(lambda x: x.flip(-1))
    if kind == "roll":
        shift = number(-3, 3)
        return Function(lambda x: x.roll(shift, dims=-1))
    if kind == "pad":
        pads = [number(-1, 3) for _ in range(2 * rank)]
        return Function(lambda x: F.pad(x, pads))
    if kind == "reflect":
        pads = [number(0, 2) for _ in range(2 * rank)]
        mode = str(draw(st.sampled_from(["reflect", "replicate", "circular"])))
        return Function(lambda x: F.pad(x, pads, mode=mode))
    if kind == "permute":
        return Function(lambda x: x.transpose(-1, 2).contiguous())
    if kind == "flatten":
        return Function(lambda x: F.relu(x.flatten(1)).view(x.shape))
    if kind == "linear_layer":
        layer = nn.Linear(CHANNELS, CHANNELS)
        return Function(lambda x: layer(x.movedim(1, -1)).movedim(-1, 1))
    if kind == "group_norm":
        return nn.GroupNorm(2, CHANNELS)
    if kind == "softmax":
        return nn.Softmax(dim=-1)
    if kind == "inplace":

        def shifted(x: Tensor) -> Tensor:  # as temporal shift modules do
            out = torch.zeros_like(x)
            out[:, :1, ..., :-1] = x[:, :1, ..., 1:]
            out[:, 1:] += x[:, 1:]
            return out

        return Function(shifted)
    if kind == "unfold":
        size, step = number(1, 3), number(1, 2)
        return Function(lambda x: x.unfold(-1, size, step).mean(-1))
    if kind == "shuffle":
        return Function(lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2))
    if kind == "select":
        return Function(lambda x: x + x[..., :1] * 0.5)
    if kind == "index":
        return Function(lambda x: x[..., torch.arange(x.shape[-1] - 1, -1, -2)])
    return Branches(
        a_network(draw, rank, depth + 1), a_network(draw, rank, depth + 1), number(0, 1) == 1
    )


def a_network(draw: Callable[..., object], rank: int, depth: int = 0) -> nn.Module:
    number = draw(st.integers(0 if depth else 1, 2 if depth else 5))
    assert isinstance(number, int)
    if depth > 2:
        return nn.Identity()
    return nn.Sequential(*(a_step(draw, rank, depth) for _ in range(number)))


def runs(step: nn.Module, x: Tensor) -> Tensor | None:
    """Return the output of a step. None if it does not fit, is too large, empty or not finite."""
    try:
        with torch.no_grad():
            y: Tensor = step(x)
    except (RuntimeError, ValueError, IndexError):
        return None
    return y if 0 < y.numel() <= 20_000 and y.isfinite().all() else None


def compare(rank: int, draw: Callable[..., Any]) -> None:
    """Compare the fields of a random network with the NaN probe."""
    low, high = LENGTHS[rank]
    size = (1, CHANNELS, *(draw(st.integers(low, high)) for _ in range(rank)))
    x = torch.zeros(size).uniform_()
    network = nn.Sequential()
    for step in a_network(draw, rank).children():
        y = runs(step.eval(), x)
        if y is not None:  # a step that does not fit is left out
            network.append(step)
            x = y
    if not len(network):
        return
    report = check_receptive_field(network, size, batch_size=32)
    assert report.compared


def examples(number: int) -> settings:
    return settings(
        max_examples=number,
        derandomize=True,
        deadline=None,
        suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("rank", [1, 2, 3])
@examples(40)
@given(data=st.data())
def test_random_networks_agree_with_the_probe(rank: int, data: st.DataObject) -> None:
    compare(rank, data.draw)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("rank", [1, 2, 3])
@examples(200)
@given(data=st.data())
def test_more_random_networks_agree_with_the_probe(rank: int, data: st.DataObject) -> None:
    compare(rank, data.draw)


SLIDING = {
    "conv": lambda n: nn.Conv1d(2, 2, n(1, 4), n(1, 2), n(0, 3), n(1, 2)),
    "same": lambda n: nn.Conv1d(2, 2, n(1, 4), padding="same"),
    "circular": lambda n: nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular"),
    "reflect": lambda n: nn.Conv1d(2, 2, 3, padding=n(1, 2), padding_mode="reflect"),
    "transposed": lambda n: nn.ConvTranspose1d(2, 2, n(2, 4), n(1, 2), n(0, 1)),
    "pool": lambda n: nn.MaxPool1d(n(2, 3), n(1, 2), padding=1),
    "nearest": lambda n: nn.Upsample(scale_factor=n(2, 3)),
    "linear": lambda n: nn.Upsample(scale_factor=2, mode="linear"),
    "pad": lambda n: nn.ConstantPad1d((n(-2, 2), n(0, 2)), 0.0),
    "slice": lambda n: Function(lambda x: x[..., ::2]),
    "residual": lambda n: Branches(nn.Conv1d(2, 2, 3, padding=1), nn.Identity(), False),
    "misaligned": lambda n: Branches(nn.Conv1d(2, 2, 3), nn.Conv1d(2, 2, 2), False),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data())
def test_fields_beyond_the_borders_equal_those_of_a_larger_input(data: st.DataObject) -> None:
    """The field as if there were no borders equals what units far from the borders of a large input
    really see, and does not depend on the length of the input."""
    kinds = data.draw(st.lists(st.sampled_from(sorted(SLIDING)), min_size=1, max_size=4))
    network = nn.Sequential(
        *(SLIDING[k](lambda low, high: data.draw(st.integers(low, high))) for k in kinds)
    )
    small = receptive_field(network, (1, 2, 32))
    large = receptive_field(network, (1, 2, 512))
    for name, layer in small.items():
        other = large[name]
        assert (layer.size, layer.jump, layer.start) == (other.size, other.jump, other.start)
        for unit in range(layer.unit_shape[0]):
            assert layer.region((unit,), clip=False) == other.region((unit,), clip=False)
        sizes = set()
        middle = other.middle[0]
        for unit in range(middle - 12, middle + 12):  # several periods of any upsampling here
            assert other.region((unit,)) == other.region((unit,), clip=False)
            ((first, last),) = other.region((unit,))
            sizes.add(last - first + 1)
        assert other.size == (max(sizes),)
        assert other.uniform == (len(sizes) == 1)
