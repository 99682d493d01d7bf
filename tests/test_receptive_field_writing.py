"""Receptive fields of models that write in place, extract values, or are unusual in other ways.

All units of all outputs are compared with the NaN probe. Rows named in a test are found by hand.
"""

import random
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from helpers import Net
from torch import Tensor, nn

from cifar_resnet import check_receptive_field, receptive_field

SIZE = (1, 3, 12, 10)


def conv(channels: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, 3, 3, padding=1)


def agrees(network: nn.Module) -> tuple[int, ...]:
    """Return the size of the output's field, verified by the probe."""
    check_receptive_field(network, SIZE)
    return receptive_field(network, SIZE).output.size


def fill_a_row(self, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, :, 0] = x.mean()
    return y + x


def swap_rows(self, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, [0, 2]] = x[:, :, [1, 3]]
    return y


def add_rows(self, x: Tensor) -> Tensor:
    index = torch.tensor([4, 4, 0])
    rows = x.transpose(0, 2)
    return rows.clone().index_put_((index,), rows[:3], accumulate=True).transpose(0, 2)


def put_two_dimensions(self, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    rows, columns = torch.tensor([[0, 3], [5, 5]]), torch.tensor([[1, 2], [3, -1]])
    y[:, :, rows, columns] = x[:, :, 2:4, 6:8]
    return y


def put_apart(self, x: Tensor) -> Tensor:
    y = x.clone()
    y[:, [0, 2], :, [1, 5]] = x[:, :2, :, 0].transpose(0, 1)
    return y


def zero_rows(self, x: Tensor) -> Tensor:
    y = self.conv(x)
    y[:, :, [0, 2]] = 0
    return y


def copy_columns(self, x: Tensor) -> Tensor:
    return x.index_copy(3, torch.tensor([9, 0]), self.conv(x)[..., 4:6])


def relu_of_chunks(self, x: Tensor) -> Tensor:
    y = self.conv(x)
    first, second = y.split([5, 7], 2)
    F.relu_(first)
    second.zero_()
    second += first.mean(2, keepdim=True)
    return y


def scale_of_rows(self, x: Tensor) -> Tensor:
    y = self.conv(x)
    rows = y.unbind(2)
    rows[3].mul_(x.mean())
    return y


@pytest.mark.parametrize(
    "run",
    [
        fill_a_row,
        swap_rows,
        add_rows,
        put_two_dimensions,
        put_apart,
        zero_rows,
        copy_columns,
        relu_of_chunks,
        scale_of_rows,
    ],
)
def test_elements_that_are_overwritten(run) -> None:
    agrees(Net(run, conv=conv()))


def test_rows_swapped_by_index_read_the_other_row() -> None:
    output = receptive_field(Net(swap_rows), SIZE).output
    rows = [output.region((row, 0))[0] for row in range(4)]
    assert rows == [(1, 1), (1, 1), (3, 3), (3, 3)]


def test_channels_and_columns_indexed_together() -> None:
    output = receptive_field(Net(put_apart), SIZE).output
    columns = [output.region((channel, 0, 5))[1] for channel in range(3)]
    assert columns == [(5, 5), (5, 5), (0, 0)]


def test_a_filled_tensor_depends_on_the_values_that_fill_it() -> None:
    assert agrees(Net(lambda self, x: torch.empty_like(x).fill_(x.mean()))) == (12, 10)
    smooth = Net(lambda self, x: torch.normal(F.avg_pool2d(x, 3, 1, 1), 1.0))
    assert agrees(smooth) == (3, 3)
    filled = receptive_field(
        Net(lambda self, x: self.conv(x).fill_(x[0, 0, 5, 6]), conv=conv()), SIZE
    )
    assert filled.output.region(()) == ((5, 5), (6, 6))
    zeroed = Net(lambda self, x: self.conv(x).zero_() + x, conv=conv())
    assert agrees(zeroed) == (1, 1)


def test_a_result_passed_as_out_is_not_read() -> None:
    assert agrees(Net(lambda self, x: torch.mul(x, 2, out=self.conv(x)), conv=conv())) == (1, 1)


@pytest.mark.parametrize(
    "run",
    [
        lambda self, x: F.conv2d(x, self.conv.weight, x.mean((0, 2, 3))),
        lambda self, x: F.layer_norm(x, (10,), weight=x.mean((0, 1, 2))),
        lambda self, x: F.rms_norm(x, (10,), weight=x.mean((0, 1, 2))),
        lambda self, x: F.group_norm(x, 3, bias=x.mean((0, 2, 3))),
        lambda self, x: F.batch_norm(x, torch.zeros(3), torch.ones(3), x.mean((0, 2, 3))),
    ],
)
def test_arguments_of_a_layer_may_depend_on_the_input(run) -> None:
    assert agrees(Net(run, conv=conv())) == (12, 10)


@pytest.mark.parametrize(
    ("by", "take"),
    [
        ("item", lambda x: x.mean().item()),
        ("numpy", lambda x: torch.from_numpy(x.numpy().mean(keepdims=True))),
        ("tolist", lambda x: x.mean((0, 1, 2)).tolist()[0]),
        ("__float__", lambda x: float(x.mean())),
    ],
)
def test_extracted_values_raise_an_error_or_are_reported(by: str, take) -> None:
    network = Net(lambda self, x: self.conv(x) * take(x), conv=conv())
    with pytest.raises(NotImplementedError, match=rf"{by}\(\) extracts values .*writing\.py:\d+"):
        receptive_field(network, SIZE)
    fields = receptive_field(network, SIZE, unknown="skip")
    assert fields.output.size == (3, 3)
    assert by in fields.skipped[0]


def test_a_branch_chosen_by_values_and_values_of_weights_are_allowed() -> None:
    def run(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.conv.bias.sum().item() if x.sum() >= 0 else self.conv(x)

    assert receptive_field(Net(run, conv=conv()), SIZE).output.size == (3, 3)


def test_a_layer_and_an_output_may_have_the_same_name() -> None:
    assert agrees(Net(lambda self, x: F.max_pool2d(self.output(x), 2), output=conv())) == (4, 4)
    network = Net(lambda self, x: {"a": self.b(self.a(x)), 0: self.a(x)}, a=conv(), b=conv())
    fields = receptive_field(network, SIZE)
    assert fields["a"].size == (3, 3)
    assert [output.size for output in fields.outputs.values()] == [(5, 5), (3, 3)]
    assert check_receptive_field(network, SIZE).compared == ("a", "b", "a#2", "a", "0")


def test_functions_and_layers_of_the_same_name_are_distinguished() -> None:
    network = Net(
        lambda self, x: F.relu(self.b(self.relu(self.b(F.relu(self.a(x)))))),
        a=conv(), b=conv(), relu=nn.ReLU(),
    )  # fmt: skip
    fields = receptive_field(network, SIZE)
    assert list(fields) == ["a", "relu()", "b", "relu", "b#2", "relu()#2"]
    assert [fields[name].size[0] for name in fields] == [3, 3, 5, 5, 7, 7]
    agrees(network)


@dataclass
class Prediction:
    features: Tensor
    score: float


def test_tensors_are_found_in_dataclasses_and_not_in_other_objects() -> None:
    network = Net(lambda self, x: Prediction(self.conv(x), 0.5), conv=conv())
    assert list(receptive_field(network, SIZE).outputs) == ["features"]
    assert agrees(network) == (3, 3)
    outer = Net(lambda self, x: self.inner(x).features, inner=network)
    assert "inner" in check_receptive_field(outer, SIZE).compared
    with pytest.raises(ValueError, match="The model returns no tensor"):
        receptive_field(Net(lambda self, x: object()), SIZE)


def test_an_input_without_its_batch_is_explained() -> None:
    with pytest.raises(ValueError, match=r"Include the batch, \(1, 3, 12, 10\), .*=\(1, 2\)"):
        receptive_field(Net(lambda self, x: self.conv(x), conv=conv()), SIZE[1:])
    output = receptive_field(conv(), SIZE[1:], spatial_dims=(1, 2)).output
    assert (output.size, output.unit_shape) == ((3, 3), (12, 10))


def test_tokens_are_followed_through_their_embedding() -> None:
    embed = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 2))
    fields = receptive_field(embed, inputs=torch.arange(8)[None], spatial_dims=(1,))
    assert (fields.output.size, fields.output.unit_shape) == ((1,), (8,))
    table = Net(lambda self, x: F.embedding(torch.tensor([[3, 0], [1, 1]]), x[0, 0]))
    output = receptive_field(table, SIZE).output
    assert output.axes[0].size == 1
    assert output.region((0, 0, 0))[0] == (3, 3)


def test_hooks_that_change_outputs_count() -> None:
    network = nn.Sequential(conv(), nn.ReLU())
    network.register_forward_hook(lambda module, args, output: F.avg_pool2d(output, 3, 1, 1))
    assert agrees(network) == (5, 5)


def test_a_failure_that_the_model_catches_itself() -> None:
    def run(self, x: Tensor) -> Tensor:
        try:
            return self.outer(x[:, :2])
        except RuntimeError:
            return self.after(self.outer(x))

    network = Net(run, outer=nn.Sequential(nn.ReLU(), conv()), after=conv())
    assert agrees(network) == (5, 5)
    assert "after" in receptive_field(network, SIZE)


def test_a_failure_is_reported_with_its_layer() -> None:
    network = nn.Sequential(conv(), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 3, 3)))
    with pytest.raises(ValueError, match=r"in layer '1\.1'"):
        receptive_field(network, SIZE)


def test_interpolation_with_scales_that_are_not_binary_fractions() -> None:
    choose = random.Random(0)
    scales = (0.3, 0.5, 0.7, 1.1, 1.05, 1.3, 1.5, 1.7, 2, 2.05, 2.1, 2.2, 3)
    for _ in range(60):
        mode = choose.choice(("nearest", "nearest-exact", "bilinear", "bicubic"))
        options = {"mode": mode, "scale_factor": (choose.choice(scales), choose.choice(scales))}
        options["recompute_scale_factor"] = choose.random() < 0.3
        if mode.startswith("bi"):
            options["antialias"] = choose.random() < 0.5
        size = (1, 2, choose.randint(4, 9), choose.randint(7, 9))
        # at least 7 columns: antialiased to one column on the CPU, PyTorch 2.15 gives every row the
        # value of the first row
        network = Net(lambda self, x, options=options: F.interpolate(x, **options))
        check_receptive_field(network, size)
