"""The experiments of `check_receptive_field`: where each decides, and that alarms are justified."""

import pytest
import torch
import torch.nn.functional as F
from helpers import Net
from torch import Tensor, nn

from cifar_resnet import check_receptive_field, receptive_field
from cifar_resnet.fields.experiments import Experiments, Watched
from cifar_resnet.fields.mismatch import ReceptiveFieldMismatchError

SIZE = (1, 2, 12)


def after_conv(function) -> nn.Module:
    return Net(lambda net, x: function(net.conv(x)), conv=nn.Conv1d(2, 2, 3, padding=1))


def causal(y: Tensor) -> Tensor:
    tokens = y.transpose(1, 2)
    return F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=True).transpose(1, 2)


def no_nan(y: Tensor) -> Tensor:
    assert not y.isnan().any()
    return y


@pytest.mark.parametrize(
    "function",
    [
        causal,
        lambda y: y.sort(-1).values,
        lambda y: y.topk(3, -1).values,
        lambda y: y.argmax(-1),
        lambda y: y.sign(),
        lambda y: y > 0,
        lambda y: y.int(),
        lambda y: y.nan_to_num(),
        lambda y: y.nanmean(-1),
        lambda y: torch.fmax(y, torch.zeros_like(y)),
        lambda y: torch.where(torch.rand_like(y) > 0.5, y, torch.zeros(())),
        no_nan,
    ],
)
def test_finite_changes_decide_where_nan_cannot(function) -> None:
    report = check_receptive_field(after_conv(function), SIZE)
    assert set(report.compared) == {"conv", "output"}
    assert "by finite changes: " in str(report)
    assert report.by_change > 0
    fields = receptive_field(after_conv(function), SIZE)
    units = 12 + fields.output.seen(0)[0].numel()  # of the convolution and of the output
    assert report.by_nan + report.by_change == 12 * units


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y.mean(),  # () for any batch
        lambda y: y.view(SIZE),  # fails for another batch
        lambda y: y.permute(2, 0, 1),
        lambda y: y - y.mean(0, keepdim=True) + y,  # mixes the samples of a batch
        lambda y: F.dropout(y, training=True),
    ],
)
def test_a_model_that_needs_a_batch_of_1_is_run_sample_by_sample(function) -> None:
    report = check_receptive_field(after_conv(function), SIZE)
    assert set(report.compared) == {"conv", "output"}
    assert report.by_change == 0


def test_a_dependency_that_nan_and_the_analysis_miss_is_found() -> None:
    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y: Tensor) -> Tensor:
            return y * (1 + y[..., -1:].nan_to_num().detach())

    fields = receptive_field(nn.ReLU(), SIZE)
    record = fields.output
    key = ("output", "output")
    experiments = Experiments(
        Net(lambda net, x: Hidden.apply(x)),
        [torch.randn(SIZE)],
        0,
        {key: Watched(record.shape, record.unit_dims)},
    )
    rows = torch.arange(12)
    by_nan = experiments.by_nan(2, rows, 16)[key]
    by_change = experiments.by_change(2, rows, 16, 0)[key]
    own = torch.eye(12, dtype=torch.bool)
    assert torch.equal(by_nan, own)
    last = own.clone()
    last[-1] = True
    assert torch.equal(by_change, last)


def test_an_alarm_is_raised_only_if_neither_experiment_supports_the_analysis() -> None:
    network = after_conv(lambda y: y.nan_to_num())
    check_receptive_field(network, SIZE)
    message = r"unit \(2,\), axis 0: .* depends on 0 to 3, according to the experiment on 1 to 3 "
    with pytest.raises(ReceptiveFieldMismatchError, match=message):
        check_receptive_field(
            network, SIZE, rules={"nan_to_num": lambda op: op.first[1].cumulate(2)}
        )


def test_nan_reaches_no_kernel_that_uses_it_as_an_address() -> None:
    ops = pytest.importorskip("torchvision.ops")

    class Deformable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.offset = nn.Conv2d(2, 18, 3, padding=1)
            self.conv = ops.DeformConv2d(2, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x, self.offset(x))

    model = Deformable()
    rules = {"torchvision::deform_conv2d": "global"}
    with torch.no_grad():
        report = check_receptive_field(model, (1, 2, 5, 5), rules=rules)
    assert report.by_change > 0
    window = {"torchvision::deform_conv2d": {"kernel_size": 3, "padding": 1}}
    with torch.no_grad():
        model.offset.weight.mul_(20)  # a rule that ignores the offsets
    with pytest.raises(ReceptiveFieldMismatchError, match="'conv'"):
        check_receptive_field(model, (1, 2, 9, 9), rules=window)


@pytest.mark.parametrize("name", ["a custom operation", "grid_sample", "an integer"])
def test_operations_never_see_nan(name: str, monkeypatch) -> None:
    seen: list[bool] = []
    if name == "a custom operation":
        with torch.library._scoped_library("probetest", "FRAGMENT") as library:
            library.define("same(Tensor x) -> Tensor")

            def same(x: Tensor) -> Tensor:
                seen.append(bool(x.isnan().any()))
                return x.clone()

            library.impl("same", same, "CompositeExplicitAutograd")
            network = Net(lambda net, x: torch.ops.probetest.same(x))
            report = check_receptive_field(
                network, (1, 2, 6), rules={"probetest::same": "pointwise"}
            )
        assert seen
        assert not any(seen)
    elif name == "grid_sample":
        network = Net(lambda net, x: F.grid_sample(x, x.permute(0, 2, 3, 1), align_corners=False))
        rules = {"aten::grid_sampler_2d": lambda op: op.sets("input")}  # it ignores the grid
        with pytest.raises(ReceptiveFieldMismatchError, match="according to the experiment on"):
            check_receptive_field(network, (1, 2, 4, 4), rules=rules)
        return
    else:
        network = Net(lambda net, x: net.table(x.clamp(0, 3).long()).squeeze(-1),
                      table=nn.Embedding(4, 1))  # fmt: skip
        report = check_receptive_field(network, (1, 2, 6), rules={"embedding": _index_of_embedding})
    assert report.by_change > 0


def _index_of_embedding(op):
    return op.sets("indices").unsqueeze(-1).expand(op.shape)


# -- beyond the borders ---------------------------------------------------------------------------


def test_measures_are_verified_on_larger_inputs() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1),
        nn.MaxPool2d(2),
        nn.Conv2d(2, 2, 3, padding=2, dilation=2, groups=2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(2, 2, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
    )
    report = check_receptive_field(network, (1, 1, 8, 8))
    assert report.sizes == ("0", "1", "2")  # then phases vary, and pooling is global


@pytest.fixture
def blur():
    """An operation that reads 3 positions, which the rule of a test does not know."""
    with torch.library._scoped_library("probetest", "FRAGMENT") as library:
        library.define("blur(Tensor x) -> Tensor")
        library.impl(
            "blur",
            lambda x: F.avg_pool1d(F.pad(x, (1, 1)), 3, 1),
            "CompositeExplicitAutograd",
        )
        yield lambda x: torch.ops.probetest.blur(x)


@pytest.mark.parametrize("rule", ["pointwise", {"kernel_size": 5, "padding": 2}])
def test_a_wrong_size_is_found_although_the_pixels_agree(blur, rule) -> None:
    """On a single unit all windows read the same pixels."""
    network = nn.Sequential(nn.Conv1d(2, 2, 3, stride=8, padding=1), Net(lambda net, x: blur(x)))
    wrong = receptive_field(network, (1, 2, 8), rules={"probetest::blur": rule})
    message = rf"the size is {wrong.output.size[0]}, the jump 8 and .* on a larger input"
    with pytest.raises(ReceptiveFieldMismatchError, match=message):
        check_receptive_field(network, (1, 2, 8), rules={"probetest::blur": rule})
    right = {"probetest::blur": {"kernel_size": 3, "padding": 1}}
    assert receptive_field(network, (1, 2, 8), rules=right).output.size == (3 + 2 * 8,)
    report = check_receptive_field(network, (1, 2, 8), rules=right)
    assert set(report.sizes) == {"0", "1", "output"}


def test_a_wrong_padding_is_found_although_the_size_is_right(blur) -> None:
    network = nn.Sequential(nn.Conv1d(2, 2, 3, stride=8, padding=1), Net(lambda net, x: blur(x)))
    for padding in (0, 2):
        rules = {"probetest::blur": {"kernel_size": 3, "padding": padding}}
        with pytest.raises(ReceptiveFieldMismatchError, match=f"padding {1 + 8 * padding}, so"):
            check_receptive_field(network, (1, 2, 8), rules=rules)


def test_sizes_of_a_model_with_one_input_size() -> None:
    class Fixed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 16:
                raise ValueError("another size")
            return super().forward(x)

    model = Fixed(nn.Conv1d(2, 2, 5, padding=2), nn.Conv1d(2, 2, 15, padding=7))
    report = check_receptive_field(model, (1, 2, 16))
    assert report.sizes == ("0",)  # 19 pixels do not lie within 16
    assert "sizes verified: 1" in str(report)
    assert check_receptive_field(model, (1, 2, 16), positions=8).sizes == ()


def test_layers_that_depend_on_the_size_of_the_map_raise_no_alarm() -> None:
    network = nn.Sequential(
        nn.Conv1d(2, 2, 3, padding=1),
        nn.AdaptiveAvgPool1d(4),
        nn.Conv1d(2, 2, 3, padding=1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    report = check_receptive_field(network, SIZE)
    assert report.sizes == ("0", "1")  # on this input, each window of the pooling lies inside
    assert len(report.compared) == 6
