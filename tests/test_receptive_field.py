"""Receptive fields: expected values, edge cases, errors, and a model left unchanged.

Expected values are written as arithmetic, and compared with the NaN probe. Random networks have a
file of their own.
"""

import copy
import json
import math
import random
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from helpers import Net
from torch import Tensor, nn

from cifar_resnet import CustomResNet, check_receptive_field, receptive_field
from cifar_resnet.fields.mismatch import ReceptiveFieldMismatchError

HALF = Fraction(1, 2)


def conv(kernel=3, stride=1, padding=0, dilation=1, **options) -> nn.Conv1d:
    return nn.Conv1d(2, 2, kernel, stride, padding, dilation, **options)


def output_of(network: nn.Module, length: int = 16):
    """Return the record of a 1D network's output, verified by the probe."""
    size = (1, 2, length)
    check_receptive_field(network, size)
    return receptive_field(network, size).output


# -- CustomResNet -------------------------------------------------------------------------------


def test_custom_resnet_has_the_specified_fields() -> None:
    fields = receptive_field(CustomResNet(), (1, 3, 32, 32))
    # size += (kernel - 1) * jump; jump *= stride
    expected = {
        "prep.0": (1 + 2 * 1, 1),
        "layer1.0": (3 + 2 * 1, 1),
        "layer1.1": (5 + 1 * 1, 2),
        "residual1.block1.0": (6 + 2 * 2, 2),
        "residual1.block2.0": (10 + 2 * 2, 2),
        "layer2.0": (14 + 2 * 2, 2),
        "layer2.1": (18 + 1 * 2, 4),
        "layer3.0": (20 + 2 * 4, 4),
        "layer3.1": (28 + 1 * 4, 8),
        "residual3.block1.0": (32 + 2 * 8, 8),
        "residual3.block2.0": (48 + 2 * 8, 8),
        "pool": (64 + 3 * 8, 32),
    }
    for name, (size, jump) in expected.items():
        assert fields[name].size == (size, size), name
        assert fields[name].jump == (jump, jump), name
    assert [size for size, _ in expected.values()] == [3, 5, 6, 10, 14, 18, 20, 28, 32, 48, 64, 88]
    assert fields.output.size == (88, 88)
    assert fields.output.shape == (1, 10)
    assert fields.output.is_global == (True, True)
    assert fields["pool"].padding == (28, 28)  # 4 convs before the strides 1, 2, 4: 1+1+2+2+2+4+8+8
    assert 1 + 1 + 2 + 2 + 2 + 4 + 8 + 8 == 28


def test_custom_resnet_agrees_with_the_probe_in_every_pixel() -> None:
    report = check_receptive_field(CustomResNet(width=4), (1, 3, 32, 32))
    assert report.positions == report.lengths == (32, 32)
    assert {"prep.0", "residual1", "residual3", "pool", "head", "output"} <= set(report.compared)


def test_units_of_residual1() -> None:
    layer = receptive_field(CustomResNet(width=4), (1, 3, 32, 32))["residual1"]
    assert layer.unit_shape == (16, 16)
    assert layer.channels == 8
    # unit u sees -P + u * S to -P + u * S + r - 1, with P = 1 + 1 + 2 + 2, S = 2, r = 14
    assert layer.region((3, 0), clip=False) == ((0, 13), (-6, 7))
    assert layer.region((3, 0)) == ((0, 13), (0, 7))
    assert layer.center((3, 0)) == (6.5, 0.5)
    assert layer.start == (0.5, 0.5)
    assert [p.tolist() for p in layer.pixels((3, 0))] == [list(range(14)), list(range(8))]


# -- edge cases ---------------------------------------------------------------------------------


def test_branches_of_different_fields_give_the_union() -> None:
    network = Net(
        lambda m, x: m.a(x) + m.b(m.c(x)), a=conv(1), b=conv(3, padding=1), c=conv(5, padding=2)
    )
    output = output_of(network)
    assert output.size == (max(1, 1 + (5 - 1) + (3 - 1)),)
    assert output.aligned


def test_resnet50_has_427_before_its_pooling() -> None:
    from torchvision.models import resnet50

    with torch.device("meta"):  # no weights are needed at all
        model = resnet50()
    fields = receptive_field(model, (1, 3, 224, 224))
    assert fields["layer4"].size == (427, 427)
    assert fields["layer4"].jump == (32, 32)
    assert fields.output.size == (427 + (7 - 1) * 32,) * 2


def test_misaligned_branches_are_reported_with_the_operation_that_merges_them() -> None:
    network = Net(lambda m, x: F.relu(m.a(x) + m.b(x)[..., :-1]), a=conv(3), b=conv(2))
    fields = receptive_field(network, (1, 2, 16))
    assert fields.output.size == (3,)
    assert not fields.output.aligned
    assert fields.output.axes[0].merged_at == ("add",)
    assert fields["a"].aligned
    assert "add" in fields.table().splitlines()[-1]


def test_aligned_branches_of_different_sizes_are_aligned() -> None:
    network = Net(lambda m, x: torch.cat([m.a(x), x[..., 1:-1]], 1), a=conv(3))
    output = output_of(network)
    assert output.aligned
    assert output.uniform
    assert output.size == (3,)


def test_a_slice_is_a_stride_with_kernel_1() -> None:
    output = output_of(Net(lambda m, x: x[:, :, ::2]))
    assert (output.size, output.jump, output.start) == ((1,), (2,), (0.0,))


def test_functional_pooling_counts() -> None:
    output = output_of(Net(lambda m, x: F.max_pool1d(m.a(x), 2), a=conv(3, padding=1)))
    assert (output.size, output.jump) == ((3 + 1,), (2,))


def test_dilation_moves_the_center() -> None:
    k, d, p = 3, 4, 1
    output = output_of(conv(k, padding=p, dilation=d))
    assert output.size == (d * (k - 1) + 1,)
    assert output.start == (d * (k - 1) / 2 - p,)


def test_coverage_shows_holes() -> None:
    dilated = output_of(conv(3, dilation=2))
    assert dilated.size == (2 * (3 - 1) + 1,)
    assert dilated.coverage == (3 / 5,)
    assert [p.tolist() for p in dilated.pixels((0,))] == [[0, 2, 4]]
    strided = output_of(nn.Sequential(conv(1, stride=3), conv(2)))  # reads pixels 0 and 3
    assert strided.size == (1 + 1 * 3,)
    assert strided.coverage == (2 / 4,)
    assert output_of(conv(3)).coverage == (1.0,)


def test_an_even_kernel_has_its_center_between_pixels() -> None:
    assert output_of(conv(2)).start == ((2 - 1) / 2,)
    assert output_of(conv(4, padding=1)).start == ((4 - 1) / 2 - 1,)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_same_padding_of_an_even_kernel_pads_more_on_the_right() -> None:
    output = output_of(conv(4, padding="same"))
    assert output.padding == ((4 - 1) // 2,)
    assert output.region((0,), clip=False) == ((-1, 2),)
    assert output.unit_shape == (16,)


def test_ceil_mode_clips_the_last_window_and_changes_nothing_else() -> None:
    output = output_of(nn.MaxPool1d(3, 3, ceil_mode=True), 16)
    assert output.unit_shape == (6,)
    assert (output.size, output.jump) == ((3,), (3,))
    assert output.region((5,)) == ((15, 15),)
    assert output.region((5,), clip=False) == ((15, 17),)


def test_reflection_folds_and_circular_padding_wraps() -> None:
    reflect = output_of(conv(3, padding=2, padding_mode="reflect"), 8)
    assert reflect.pixels((0,))[0].tolist() == [0, 1, 2]  # -2, -1, 0 fold to 2, 1, 0
    assert reflect.region((0,), clip=False) == ((-2, 0),)
    circular = output_of(conv(3, padding=1, padding_mode="circular"), 8)
    assert circular.pixels((0,))[0].tolist() == [0, 1, 7]  # -1 wraps to 7
    assert circular.region((0,), clip=False) == ((-1, 1),)
    replicate = output_of(conv(3, padding=1, padding_mode="replicate"), 8)
    assert replicate.pixels((0,))[0].tolist() == [0, 1]


def test_global_pooling_gives_the_union_over_the_map() -> None:
    network = nn.Sequential(conv(3, stride=2, padding=1), nn.AdaptiveAvgPool1d(1))
    output = output_of(network, 16)  # 8 units, jump 2, field 3
    assert output.size == (3 + (8 - 1) * 2,)
    assert output.region((0,), clip=False) == ((-1, 15),)
    assert output.region((0,)) == ((0, 15),)
    assert output.is_global == (True,)


def test_adaptive_pooling_to_a_number_that_does_not_divide_varies() -> None:
    output = output_of(nn.AdaptiveAvgPool1d(3), 8)
    # from floor(i * 8 / 3) to ceil((i + 1) * 8 / 3) - 1
    assert [output.region((i,))[0] for i in range(3)] == [(0, 2), (2, 5), (5, 7)]
    assert output.size == (6 - 2,)
    assert not output.uniform
    assert output.jump == (None,)
    assert output_of(nn.AdaptiveAvgPool1d(4), 8).jump == (2,)


def test_flatten_and_linear_is_global_and_linear_on_channels_last_is_pointwise() -> None:
    size = (1, 2, 6, 4)
    flat = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(3 * 6 * 4, 5))
    check_receptive_field(flat, size)
    output = receptive_field(flat, size).output
    assert output.is_global == (True, True)
    assert output.unit_shape == ()
    assert output.region() == ((0, 5), (0, 3))
    assert output.size == (6 + 2, 4 + 2)
    last = Net(lambda m, x: m.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a=nn.Linear(2, 7))
    check_receptive_field(last, size)
    output = receptive_field(last, size).output
    assert (output.size, output.jump, output.channels) == ((1, 1), (1, 1), 7)


def test_transposed_convolution_reads_by_phase() -> None:
    output = output_of(nn.ConvTranspose1d(2, 2, 3, stride=2), 8)
    assert output.jump == (HALF,)
    # element i is added to the units 2i, 2i + 1, 2i + 2: even units get two, odd ones one
    assert [output.pixels((u,))[0].tolist() for u in range(1, 5)] == [[0], [0, 1], [1], [1, 2]]
    assert output.size == (2,)
    assert not output.uniform


@pytest.mark.parametrize(("mode", "inputs"), [("nearest", 1), ("linear", 2)])
def test_upsampling_by_2_in_1d(mode: str, inputs: int) -> None:
    output = output_of(nn.Upsample(scale_factor=2, mode=mode))
    assert output.size == (inputs,)
    assert output.jump == (HALF,)
    assert output.uniform


@pytest.mark.parametrize(("mode", "inputs"), [("nearest", 1), ("bilinear", 2), ("bicubic", 4)])
def test_upsampling_by_2_in_2d(mode: str, inputs: int) -> None:
    network = nn.Upsample(scale_factor=2, mode=mode)
    check_receptive_field(network, (1, 1, 8, 7))
    output = receptive_field(network, (1, 1, 8, 7)).output
    assert output.size == (inputs, inputs)
    assert output.jump == (HALF, HALF)


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_downsampling_agrees_with_the_probe(mode: str, antialias: bool) -> None:
    network = Net(lambda m, x: F.interpolate(x, size=(5, 4), mode=mode, antialias=antialias))
    check_receptive_field(network, (1, 1, 16, 13))


def test_upsampling_and_a_convolution_vary_by_phase() -> None:
    output = output_of(nn.Sequential(nn.Upsample(scale_factor=2), conv(2)))
    # units 2u and 2u + 1 of the upsampled map read pixel u, so a window of 2 reads 1 or 2 pixels
    assert output.size == (2,)
    assert not output.uniform
    assert output.jump == (HALF,)
    assert [output.pixels((u,))[0].tolist() for u in range(3)] == [[0], [0, 1], [1]]


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc(x.mean(2, keepdim=True)))


def test_a_gate_is_global_and_can_be_ignored_by_name() -> None:
    network = nn.Sequential()
    network.add_module("conv", conv(3, padding=1))
    network.add_module("se", SqueezeExcite(2))
    network.add_module("last", conv(3, padding=1))
    assert output_of(network).is_global == (True,)
    fields = receptive_field(network, (1, 2, 16), ignore="se")
    assert fields.output.is_global == (False,)
    assert fields.output.size == (1 + 2 + 2,)
    assert fields.ignored == ("se",)
    assert receptive_field(network, (1, 2, 16), ignore=["Squeeze*"]).output.size == (5,)
    assert "ignored on request: se" in fields.table()
    many = receptive_field(nn.Sequential(*(nn.ReLU() for _ in range(6))), (1, 2, 16), ignore="ReLU")
    assert many.table().endswith("ignored on request: 0, 1, 2, 3, 4 and 1 more")


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(1, 2), nn.GroupNorm(2, 2), nn.InstanceNorm1d(2), nn.LayerNorm([2, 16])]
)
def test_normalization_over_space_is_global(norm: nn.Module) -> None:
    output = output_of(nn.Sequential(conv(3, padding=1), norm))
    assert output.is_global == (True,)
    assert output.region((0,)) == ((0, 15),)
    network = nn.Sequential(conv(3, padding=1), norm)
    assert receptive_field(network, (1, 2, 16)).table().endswith(" global")
    assert receptive_field(network, (1, 2, 16), ignore=["1"]).output.size == (3,)


def test_group_norm_keeps_its_groups_apart() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        halves = torch.cat([x[:, :, :8], x[:, :, 8:]], 1)  # channels 0, 1 from the left half
        return F.group_norm(halves, 2)[:, :2]

    assert output_of(Net(run)).region((0,)) == ((0, 7),)


def test_batch_norm_is_pointwise_because_the_model_is_analyzed_in_evaluation_mode() -> None:
    network = nn.Sequential(conv(3), nn.BatchNorm1d(2)).train()
    assert receptive_field(network, (1, 2, 16)).output.size == (3,)
    assert network.training


def test_attention_is_global_and_causal_attention_sees_the_past() -> None:
    def attend(causal: bool) -> Net:
        def run(m: nn.Module, x: Tensor) -> Tensor:
            tokens = x.transpose(1, 2).unsqueeze(1)  # (N, 1, T, C)
            out = F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=causal)
            return out.squeeze(1).transpose(1, 2)

        return Net(run)

    assert output_of(attend(False)).region((3,)) == ((0, 15),)
    causal = receptive_field(attend(True), (1, 2, 16)).output
    assert [causal.region((u,))[0] for u in (0, 3, 15)] == [(0, 0), (0, 3), (0, 15)]


def test_multihead_attention_with_tokens_first_and_a_class_token() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(1, 8, 4, 4)
            self.token = nn.Parameter(torch.zeros(1, 1, 8))
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
            return x + self.attention(x, x, x, need_weights=False)[0]

    size = (1, 1, 8, 12)
    check_receptive_field(Tokens(), size)
    fields = receptive_field(Tokens(), size)
    assert fields["cat"].unit_shape == (1 + 2 * 3,)
    assert fields["cat"].region((1 + 4,)) == ((4, 7), (4, 7))  # patch (1, 1)
    with pytest.raises(ValueError, match=r"Unit \(0,\) of 'cat' depends on no pixel"):
        fields["cat"].region((0,))
    assert fields["attention"].region((0,)) == ((0, 7), (0, 11))


def test_zeros_and_saturated_activations_hide_nothing() -> None:
    network = nn.Sequential(conv(3), nn.ReLU(), nn.MaxPool1d(2))
    nn.init.constant_(network[0].bias, -100.0)  # every ReLU is zero: there is no gradient
    assert output_of(network).size == (3 + 1,)


def test_a_module_called_twice_has_a_record_for_each_call() -> None:
    network = Net(lambda m, x: m.a(m.a(x)), a=conv(3))
    fields = receptive_field(network, (1, 2, 16))
    assert list(fields) == ["a", "a#2"]
    assert (fields["a"].size, fields["a#2"].size) == ((3,), (5,))
    assert "a#2" in check_receptive_field(network, (1, 2, 16)).compared


def test_a_field_larger_than_the_input_is_clipped_on_request() -> None:
    layer = receptive_field(CustomResNet(width=4), (1, 3, 32, 32))["residual3"]
    assert layer.size == (64, 64)
    assert layer.region((2, 2), clip=False) == ((-12, 51), (-12, 51))  # -28 + 2 * 8
    assert layer.region((2, 2)) == ((0, 31), (0, 31))


# -- operations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(4, 8, (1, 5), (1, 2), (0, 3), (1, 2), groups=2), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.Conv2d(4, 6, 1)),
        nn.ConvTranspose2d(4, 4, (3, 2), (2, 3), (1, 0), (1, 2), dilation=(2, 1), groups=2),
        nn.PixelShuffle(2),
        nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(16, 2, 3, padding=1)),
        nn.ChannelShuffle(2),
        nn.LocalResponseNorm(3),
        nn.AvgPool2d((3, 2), ceil_mode=True, padding=1),
        nn.LPPool2d(2, 3, 2),
        nn.AdaptiveMaxPool2d((3, None)),
        nn.Softmax2d(),
        nn.GLU(1),
        nn.Sequential(nn.Unfold(3, padding=1, stride=2), nn.Conv1d(36, 4, 1)),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 3, padding=1), nn.Unflatten(2, (8, 6))),
        Net(lambda m, x: torch.stack([x, x.flip(2)], 1).amax(1)),
        Net(lambda m, x: torch.einsum("nchw,nkhv->nckw", x, x)),
        Net(lambda m, x: x.cumsum(2)),
        Net(lambda m, x: torch.where(x > 0, x, x * 2) + x.std((2, 3), keepdim=True)),
        Net(lambda m, x: x[:, :, [3, 0, 1]][..., torch.tensor([[0, 2], [1, 5]])].flatten(3)),
        Net(lambda m, x: torch.gather(x, 3, torch.arange(6).flip(0).expand(len(x), 4, 8, 6))),
        Net(lambda m, x: x.index_select(2, torch.tensor([7, 1]))),
        Net(lambda m, x: x.repeat(1, 1, 2, 1)[:, :, 3:-2]),
        Net(lambda m, x: x.repeat_interleave(2, 3)),
        Net(lambda m, x: x.unfold(2, 3, 2).amax(-1)),
        Net(lambda m, x: torch.fft.rfft2(x).abs()),
        Net(lambda m, x: x.chunk(2, 2)[1] + x.split([3, 5], 2)[1][:, :, :4]),
        Net(lambda m, x: torch.cat([x.unbind(2)[1], x.select(2, 5)], 1)),
        Net(lambda m, x: x.roll(2, 3).roll((1, 1), (2, 3))),
        Net(lambda m, x: x @ x.transpose(2, 3)),
        Net(lambda m, x: x.mean(1, keepdim=True).expand(-1, 4, 8, 6).clone()),
    ],
    ids=lambda network: str(network).split("(")[0],
)
def test_operations_agree_with_the_probe(network: nn.Module) -> None:
    check_receptive_field(network, (1, 4, 8, 6))


def test_writing_into_a_view_is_followed() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        view = out.transpose(1, 2)[:, 2:]
        out[..., :-1] = x[..., 1:]  # changes the view, too
        return out + F.pad(view.transpose(1, 2), (0, 2))

    output = output_of(Net(run))
    assert output.pixels((3,))[0].tolist() == [4, 6]


def test_writing_into_a_diagonal_is_followed() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        out = x.clone()
        out.diagonal(dim1=1, dim2=2).copy_(x[..., 5])
        return out

    output = output_of(Net(run))
    assert [output.pixels((0, unit))[0].tolist() for unit in (0, 1)] == [[5], [1]]


def test_recurrent_layers_see_the_past() -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(2, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x.transpose(1, 2))[0].transpose(1, 2)

    output = receptive_field(Reader(), (1, 2, 6)).output
    assert [output.region((u,))[0] for u in range(6)] == [(0, u) for u in range(6)]


def test_long_axes_are_followed_by_their_borders() -> None:
    network = nn.Sequential(conv(3, dilation=2, padding=2), conv(5, stride=2))
    output = receptive_field(network, (1, 2, 16_000)).output
    assert output.size == (1 + 4 + 4,)
    assert output.jump == (2,)
    assert output.coverage == (None,)
    assert output.region((1,)) == ((0, 8),)
    with pytest.raises(ValueError, match="Use region"):
        output.pixels((1,))
    check_receptive_field(network, (1, 2, 5000), positions=40)
    assert check_receptive_field(conv(), (1, 2, 9), positions=1, batch_size=1).positions == (1,)


def test_three_axes() -> None:
    network = nn.Conv3d(1, 1, (1, 2, 3), stride=(1, 2, 1), padding=(0, 1, 1))
    output = receptive_field(network, (1, 1, 4, 6, 8)).output
    assert output.size == (1, 2, 3)
    assert output.jump == (1, 2, 1)
    assert output.padding == (0, 1, 1)


# -- tracing ------------------------------------------------------------------------------------


def test_control_flow_over_values_is_followed_on_real_tensors() -> None:
    network = Net(lambda m, x: m.a(x) if bool(x.sum() >= 0) else x, a=conv(3))
    assert receptive_field(network, (1, 2, 16)).output.size == (3,)
    assert receptive_field(network, inputs=(-torch.ones(1, 2, 16),)).output.size == (1,)


def test_sorting_may_read_anything_along_its_dimension() -> None:
    for network in (Net(lambda m, x: x.sort(2).values), Net(lambda m, x: x.topk(2, 2).values)):
        assert receptive_field(network, (1, 2, 16)).output.region((0,)) == ((0, 15),)


def test_an_index_from_the_input_may_read_anything() -> None:
    network = Net(lambda m, x: x.gather(2, x.argsort(2)))
    assert receptive_field(network, (1, 2, 16)).output.region((0,)) == ((0, 15),)


def test_meta_half_and_double_models_work() -> None:
    with torch.device("meta"):
        model = CustomResNet(width=4)
    assert receptive_field(model, (1, 3, 32, 32)).output.size == (88, 88)
    for dtype in (torch.bfloat16, torch.float64):
        model = CustomResNet(width=4).to(dtype)
        assert receptive_field(model, (1, 3, 32, 32)).output.size == (88, 88)


def test_several_inputs_and_outputs() -> None:
    network = Net(lambda m, a, b: {"sum": m.c(a) + b, "b": b.relu()}, c=conv(3, padding=1))
    inputs = (torch.zeros(1, 2, 16), torch.zeros(1, 2, 16))
    first = receptive_field(network, inputs=inputs)
    assert list(first.outputs) == ["sum"]
    assert first.output.size == (3,)
    second = receptive_field(network, inputs=inputs, source=1)
    assert list(second.outputs) == ["sum", "b"]
    assert second.outputs["sum"].size == (1,)
    check_receptive_field(network, inputs=inputs, source=1)
    scaled = Net(lambda m, factor, a: m.c(a) * factor, c=conv(3))
    output = receptive_field(scaled, inputs=(2.5, torch.zeros(1, 2, 16)), source=1).output
    assert output.size == (3,)


def test_channels_last_input() -> None:
    network = Net(lambda m, x: m.a(x.transpose(1, 2)), a=conv(3))
    output = receptive_field(network, (1, 16, 2), spatial_dims=(1,)).output
    assert output.size == (3,)
    check_receptive_field(network, (1, 16, 2), spatial_dims=(-2,))


def test_a_compiled_model_is_followed_uncompiled() -> None:
    model = torch.compile(CustomResNet(width=4))
    assert receptive_field(model, (1, 3, 32, 32))["residual1"].size == (14, 14)


def test_inference_mode_and_a_classifier() -> None:
    from cifar_resnet import ImageClassifier

    with torch.inference_mode():
        fields = receptive_field(ImageClassifier(CustomResNet(width=4)), (1, 3, 32, 32))
    assert fields["network.pool"].size == (88, 88)


class Restless(nn.Module):
    """Changes everything that a module can change while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3)
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("late", torch.zeros(1))
        self.frozen = nn.BatchNorm1d(2).eval()
        self.cache: object = None

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.late = self.late + 1
        self.cache = x
        self.extra = torch.rand(3)
        random.random()
        self.conv.weight.requires_grad_(False)
        return self.frozen(self.conv(x))


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("call", [receptive_field, check_receptive_field])
def test_the_model_and_the_random_state_are_left_unchanged(call, fails: bool) -> None:
    model = Restless().train()
    model.frozen.eval()
    model.conv.weight.grad = torch.ones_like(model.conv.weight)
    grad = model.conv.weight.grad
    called = []
    model.register_forward_hook(lambda *_: called.append(1))
    if fails:
        model.frozen.register_forward_hook(lambda *_: 1 / 0)
    late, state = model.late, copy.deepcopy(model.state_dict())
    attributes, hooks = set(vars(model)), len(model._forward_hooks)
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    if fails:
        with pytest.raises(ValueError, match="ZeroDivisionError"):
            call(model, (1, 2, 8))
    else:
        call(model, (1, 2, 8))
        assert called
    assert model.training
    assert model.conv.training
    assert not model.frozen.training
    assert model.conv.weight.grad is grad
    assert model.conv.weight.requires_grad
    assert model.late is late
    assert model.cache is None
    assert set(vars(model)) == attributes
    assert len(model._forward_hooks) == hooks
    for name, values in model.state_dict().items():
        assert torch.equal(values, state[name]), name
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state


# -- tables -------------------------------------------------------------------------------------


def test_the_table_shows_what_changes() -> None:
    table = receptive_field(CustomResNet(), (1, 3, 32, 32)).table()
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == [
        "layer",
        "kind",
        "kernel",
        "stride",
        "padding",
        "output",
        "channels",
        "jump",
        "RF",
    ]
    assert lines[2] == ["prep.0", "Conv2d", "3", "1", "1", "32", "x", "32", "64", "1", "3"]
    assert lines[4] == ["layer1.1", "MaxPool2d", "2", "2", "0", "16", "x", "16", "128", "2", "6"]
    assert [line[-1] for line in lines[2:14]] == [
        "3",
        "5",
        "6",
        "10",
        "14",
        "18",
        "20",
        "28",
        "32",
        "48",
        "64",
        "88",
    ]


def test_a_layer_with_an_empty_output_is_listed() -> None:
    network = Net(lambda m, x: (m.a(x), m.none(m.a(x)[..., :0])), a=conv(3), none=nn.ReLU())
    fields = receptive_field(network, (1, 2, 16))
    assert fields["none"].unit_shape == (0,)
    assert fields["none"].size == (0,)
    assert math.isnan(fields["none"].start[0])
    assert "none" in fields.table(every_layer=True)
    assert fields.to_dict()["none"]["size"] == [0]
    assert fields.first_to_see_all is None
    with pytest.raises(IndexError, match=r"'none' has no units: .*\(1, 2, 0\) is empty"):
        fields["none"].region()
    check_receptive_field(network, (1, 2, 16))


def test_the_full_table_markdown_and_dictionary() -> None:
    fields = receptive_field(CustomResNet(width=4), (1, 3, 32, 32))
    assert len(fields.table(every_layer=True).splitlines()) == len(fields) + 2
    assert str(fields) == fields.table()
    assert repr(fields) == f"<ReceptiveFields of {len(fields)} layers; the output sees 88 x 88>"
    markdown = fields.to_markdown().splitlines()
    assert markdown[2] == "| prep.0 | Conv2d | 3 | 1 | 1 | 32 x 32 | 4 | 1 | 3 |"
    assert {line.count("|") for line in markdown} == {10}
    record = json.loads(json.dumps(fields.to_dict()))["layer1.1"]
    assert record["size"] == [6, 6]
    assert record["kernel_size"] == record["kernel_stride"] == [2, 2]
    assert (record["kernel_padding"], record["kernel_dilation"]) == ([0, 0], [1, 1])
    assert record["jump"] == [2, 2]
    up = receptive_field(nn.Upsample(scale_factor=2), (1, 1, 4)).output
    assert up.jump == (HALF,)


def test_asymmetric_sizes_and_fractions_in_the_table() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, (1, 3), dilation=(1, 2)), nn.Upsample(scale_factor=2))
    lines = receptive_field(network, (1, 1, 8, 8)).table().splitlines()
    assert "1 x 3 (dilation 1 x 2)" in lines[2]
    assert lines[2].endswith("1 x 5")
    assert lines[3].split()[-4:] == ["1/2", "1", "x", "5"]


def test_blocks_can_be_looked_up_and_layers_are_listed() -> None:
    fields = receptive_field(CustomResNet(width=4), (1, 3, 32, 32))
    assert fields["layer1"].shape == (1, 8, 16, 16)
    assert "layer1" in fields
    assert "layer1" not in list(fields)
    assert fields.first_to_see_all is fields["residual3.block1.0"]


# -- bad input ----------------------------------------------------------------------------------


def test_rejected_inputs_are_explained() -> None:
    with pytest.raises(ValueError, match=r"fails on an input of shape \(1, 4, 32, 32\)"):
        receptive_field(CustomResNet(width=4), (1, 4, 32, 32))
    network = nn.Sequential(nn.Identity(), conv(9))
    with pytest.raises(ValueError, match="in layer '1'.*smaller than a kernel"):
        receptive_field(network, (1, 2, 4))
    with pytest.raises(TypeError, match="^inputs must be the arguments .*, but got 3"):
        receptive_field(network, inputs=3)  # type: ignore[arg-type]
    two = Net(lambda m, a, b: a + b)
    two.forward = lambda a, b: a + b  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"pass inputs=\(a, b\)"):
        receptive_field(two, (1, 2, 4))


def test_bad_models() -> None:
    with pytest.raises(TypeError, match="must be a torch.nn.Module, but got function"):
        receptive_field(lambda x: x, (1, 2, 8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"'0.weight' has no shape yet \(a lazy module\)"):
        receptive_field(nn.Sequential(nn.LazyConv1d(2, 3)), (1, 2, 8))
    with pytest.raises(ValueError, match="does not depend on the values of its input"):
        receptive_field(Net(lambda m, x: torch.zeros_like(x)), (1, 2, 8))


def test_an_ignored_layer_must_keep_the_shape() -> None:
    with pytest.raises(ValueError, match="Layer '0' cannot be ignored"):
        receptive_field(nn.Sequential(conv(3)), (1, 2, 8), ignore="0")


def test_units_and_names_that_do_not_exist() -> None:
    fields = receptive_field(CustomResNet(width=4), (1, 3, 32, 32))
    with pytest.raises(KeyError, match=r"called 'layer1.9'\. Close matches: .*layer1\.0"):
        fields["layer1.9"]
    with pytest.raises(KeyError, match=r"called 'qqqq'\. There are: prep\.0, .*, residual3"):
        fields["qqqq"]
    for unit in ((16, 0), (-1, 0), (0,), (0, 0, 0), (0.5, 0)):
        with pytest.raises(IndexError, match=r"units of shape \(16, 16\)"):
            fields["residual1"].region(unit)


# -- operations without a rule ------------------------------------------------------------------


@pytest.fixture(scope="module")
def blur():
    """Operations of another library, for which there is no rule."""
    library = torch.library.Library("fieldtest", "DEF")
    library.define("blur(Tensor x) -> Tensor")
    library.define("halve(Tensor x) -> Tensor")
    library.define("detach(Tensor x) -> Tensor")
    library.impl("blur", lambda x: (x + x.roll(1, -1)) / 2, "CompositeExplicitAutograd")
    library.impl("halve", lambda x: x[..., ::2].clone(), "CompositeExplicitAutograd")
    library.impl("detach", lambda x: x.flip(-1), "CompositeExplicitAutograd")
    yield torch.ops.fieldtest
    library._destroy()


def test_an_unknown_operation_is_named_with_layer_line_and_remedy(blur) -> None:
    network = nn.Sequential(conv(3), Net(lambda m, x: torch.ops.fieldtest.blur(x)))
    with pytest.raises(NotImplementedError) as caught:
        receptive_field(network, (1, 2, 16))
    message = str(caught.value)
    assert "fieldtest.blur.default in layer '1'" in message
    assert "test_receptive_field.py:" in message
    assert "rules={'fieldtest::blur': rule}" in message


def test_an_operation_of_another_library_is_not_confused_with_one_of_the_same_name(blur) -> None:
    network = Net(lambda m, x: torch.ops.fieldtest.detach(x))
    with pytest.raises(NotImplementedError, match="no receptive-field rule .* fieldtest.detach"):
        receptive_field(network, (1, 2, 16))


def test_an_unknown_operation_can_be_skipped_and_is_reported(blur) -> None:
    network = nn.Sequential(conv(3), Net(lambda m, x: torch.ops.fieldtest.blur(x)))
    fields = receptive_field(network, (1, 2, 16), unknown="skip")
    assert fields.output.size == (3,)
    assert len(fields.skipped) == 1
    assert "fieldtest.blur" in fields.table()
    halving = Net(lambda m, x: torch.ops.fieldtest.halve(x))
    with pytest.raises(
        NotImplementedError, match="cannot be skipped: its result has another shape"
    ):
        receptive_field(halving, (1, 2, 16), unknown="skip")


def test_own_rules(blur) -> None:
    network = Net(lambda m, x: m.a(torch.ops.fieldtest.blur(x)), a=conv(3))
    for rule, size in (("pointwise", 3), ("global", 16), ({"kernel_size": 2, "padding": 1}, 3 + 1)):
        fields = receptive_field(network, (1, 2, 16), rules={"fieldtest::blur": rule})
        assert fields.output.size == (size,)
    for d in (1, 2):
        window = {"kernel_size": 3, "stride": 1, "padding": d, "dilation": d}
        rules = {"fieldtest::blur": window}
        assert receptive_field(network, (1, 2, 16), rules=rules).output.size == (3 + 2 * d,)
    halving = Net(lambda m, x: torch.ops.fieldtest.halve(x))
    rules = {"fieldtest::halve": {"kernel_size": 1, "stride": 2}}
    output = receptive_field(halving, (1, 2, 16), rules=rules).output
    assert output.jump == (2,)
    check_receptive_field(halving, (1, 2, 16), rules=rules)


def test_the_probe_finds_a_wrong_rule(blur) -> None:
    network = nn.Sequential(conv(3), Net(lambda m, x: torch.ops.fieldtest.blur(x)))
    with pytest.raises(ReceptiveFieldMismatchError) as caught:
        check_receptive_field(network, (1, 2, 16), rules={"fieldtest::blur": "pointwise"})
    assert (
        "Layer '1', unit (0,), axis 0: according to the analysis it depends on 0 to 2, according"
        in (str(caught.value))
    )
    assert "on 0, 1, 2, 13, 14, 15 (of 16 positions" in str(caught.value)
    later = Net(lambda m, x: torch.ops.fieldtest.blur(x)[..., 4:])
    with pytest.raises(
        ReceptiveFieldMismatchError, match="on 4 to 4, according to the experiment on 3 to 4"
    ):
        check_receptive_field(later, (1, 2, 16), rules={"fieldtest::blur": "pointwise"})


def test_the_probe_explains_what_it_cannot_do() -> None:
    network = conv(3)
    with pytest.raises(ValueError, match="with a batch of 1"):
        check_receptive_field(network, (2, 2, 16))
    with pytest.raises(ValueError, match="NaN without the probe"):
        check_receptive_field(Net(lambda m, x: m.a(x / 0.0 - x / 0.0), a=conv(3)), (1, 2, 16))
