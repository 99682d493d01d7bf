"""Receptive fields of maps of 1 x 1, as small images give them: equal to those of larger maps."""

from fractions import Fraction

import pytest
import torch
from helpers import Net
from torch import Tensor, nn
from torchvision import models
from torchvision.ops import SqueezeExcitation

from cifar_resnet import check_receptive_field, receptive_field
from cifar_resnet.fields.result import ReceptiveFields


def around(*layers: nn.Module, kernel: int = 3, channels: int = 4) -> nn.Module:
    """Return layers between a pooling to 1 x 1 (of inputs of 8 x 8) and a convolution."""
    last = nn.LazyConv2d(channels, kernel, padding=kernel // 2)
    network = nn.Sequential(nn.MaxPool2d(8), *layers, last)
    network(torch.zeros(1, channels, 16, 16))  # 2 x 2, as group normalization refuses 1 x 1
    return network


def shuffled(groups: int):
    def shuffle(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)

    return Net(lambda net, x: shuffle(x))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 1, groups=4),
        nn.Conv2d(4, 4, 1, groups=1),
        nn.ConvTranspose2d(4, 4, 1, groups=4),
        nn.ChannelShuffle(1),
        nn.ChannelShuffle(4),
        shuffled(1),
        shuffled(2),
        shuffled(4),
        nn.Sequential(nn.Conv2d(4, 8, 1), nn.GLU(1)),
        Net(lambda net, x: net.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
            linear=nn.Linear(4, 4)),
        Net(lambda net, x: net.conv(x.flatten(2)).view(x.shape), conv=nn.Conv1d(4, 4, 1)),
        Net(lambda net, x: x.flatten(2).transpose(1, 2).transpose(1, 2).view(x.shape)),
        Net(lambda net, x: x.flatten(1).view(x.shape)),
        Net(lambda net, x: x.flatten(1).relu().unflatten(1, x.shape[1:])),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [(8, 8), (8, 16), (16, 8), (16, 16)])
def test_a_layer_that_reads_one_position_keeps_the_axes_of_a_small_map(
    layer: nn.Module, size: tuple[int, int]
) -> None:
    network = around(layer)
    output = receptive_field(network, (1, 4, *size)).output
    assert output.unit_dims == (2, 3)
    assert output.size == (8 + 2 * 8, 8 + 2 * 8)
    assert output.jump == (8, 8)
    assert output.padding == (8, 8)


def test_depthwise_convolution_of_one_position_grows_along_both_axes() -> None:
    network = nn.Sequential(nn.MaxPool2d(8), nn.Conv2d(4, 4, 3, padding=1, groups=4))
    assert receptive_field(network, (1, 4, 8, 8)).output.size == (24, 24)
    check_receptive_field(network, (1, 4, 8, 8))


@pytest.mark.parametrize(
    ("pool", "conv", "shape"),
    [
        (nn.MaxPool1d(8), nn.Conv1d(4, 4, 3, padding=1, groups=4), (1, 4, 8)),
        (nn.MaxPool1d(8), nn.Conv1d(1, 1, 3, padding=1), (1, 1, 8)),
        (nn.MaxPool2d(8), nn.Conv2d(1, 1, 3, padding=1), (1, 1, 8, 8)),
        (nn.MaxPool3d(8), nn.Conv3d(1, 1, 3, padding=1), (1, 1, 8, 8, 8)),
        (nn.MaxPool3d(8), nn.Conv3d(2, 2, 3, padding=1, groups=2), (1, 2, 8, 8, 8)),
    ],
)
def test_one_channel_in_any_number_of_dimensions(pool, conv, shape: tuple[int, ...]) -> None:
    output = receptive_field(nn.Sequential(pool, conv), shape).output
    assert output.size == (24,) * (len(shape) - 2)
    assert output.unit_dims == tuple(range(2, len(shape)))


@pytest.mark.parametrize("size", [8, 16, 32])
def test_pixel_shuffling_from_and_to_one_position(size: int) -> None:
    # 4 channels of 1 x 1 become one of 2 x 2, whose units are 8 / 2 pixels apart; the window of 3
    # reads two neighbors of the unit in the middle: one more pooling window of 8
    up = nn.Sequential(nn.MaxPool2d(8), nn.PixelShuffle(2), nn.Conv2d(1, 1, 3, padding=1))
    output = receptive_field(up, (1, 4, size, size)).output
    assert output.size == (8 + 8, 8 + 8)
    assert output.jump == (4, 4)
    down = nn.Sequential(nn.MaxPool2d(4), nn.PixelUnshuffle(2), nn.Conv2d(4, 4, 3, padding=1))
    output = receptive_field(down, (1, 1, size, size)).output
    assert output.size == (8 + 2 * 8, 8 + 2 * 8)
    assert output.jump == (8, 8)


def test_tokens_of_a_map_can_become_a_map_again_after_a_window_of_one_tap() -> None:
    """A window with one tap and stride 1 is the identity, so rows and columns stay known."""
    network = Net(
        lambda net, x: net.last(net.conv(net.first(x).flatten(2)).view(x.shape)),
        first=nn.Conv2d(4, 4, 3, padding=1),
        conv=nn.Conv1d(4, 4, 1),
        last=nn.Conv2d(4, 4, 3, padding=1),
    )
    output = receptive_field(network, (1, 4, 6, 5)).output
    assert output.size == (3 + 2, 3 + 2)
    assert output.jump == (Fraction(1), Fraction(1))
    assert output.padding == (2, 2)


def test_mobilenet_v2_at_32_pixels_has_the_fields_that_it_has_at_224() -> None:
    field = receptive_field(models.mobilenet_v2(weights=None), (1, 3, 32, 32))
    assert field["features.17.conv.1.0"].size == (491, 491)
    assert field["features.17.conv.1.0"].jump == (32, 32)


SMALLEST = {  # of the sizes at which torchvision's networks can run
    "alexnet": 64,
    "inception_v3": 96,
    "maxvit_t": 224,  # its windows of 7 x 7 must divide all maps
    "vit_h_14": 70,  # patches of 14 x 14
}


def compared_with_default_size(name: str, sizes: tuple[int, ...]) -> int:
    """Compare size, jump, and padding of all layers with those at the default input size.

    Layers that depend on the size of the map are left out: global and adaptive pooling, attention,
    and what follows. Returns the number of comparisons.
    """
    usual_size = models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}

    def fields(size: int) -> ReceptiveFields:
        if name.startswith("vit"):  # its number of positions is a part of the model
            options["image_size"] = size
        # without values, to save time; RegNets compute their widths with tensors
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            model = models.get_model(name, weights=None, **options)
        gates = [n for n, m in model.named_modules() if isinstance(m, SqueezeExcitation)]
        return receptive_field(model, (1, 3, size, size), ignore=gates)

    usual = fields(usual_size)
    compared = 0
    for size in sizes:
        small = fields(size)
        assert {layer for layer, record in usual.items() if record.is_module} <= small.keys()
        for layer, expected in usual.items():
            on_a_map = len(expected.unit_shape) == 2 and max(expected.unit_shape) > 1
            if not on_a_map or any(expected.is_global) or None in expected.jump:
                continue
            if layer == "avgpool" or layer not in small:  # adaptive, or a function not called
                continue
            measures = (small[layer].size, small[layer].jump, small[layer].padding)
            assert measures == (expected.size, expected.jump, expected.padding), layer
            compared += 1
    return compared


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5"])
def test_fields_at_32_pixels_are_those_at_the_default_size(name: str) -> None:
    assert compared_with_default_size(name, (32,)) > 50


@pytest.mark.slow
@pytest.mark.parametrize("name", models.list_models(module=models))
def test_every_classifier_has_the_same_fields_at_every_size(name: str) -> None:
    smallest = SMALLEST.get(name, 32)
    sizes = dict.fromkeys(max(smallest, size) for size in (32, 64))
    compared = compared_with_default_size(name, tuple(sizes))
    attends = name.startswith(("maxvit", "swin", "vit"))  # what follows depends on the map
    assert compared >= (1 if attends else 10)
