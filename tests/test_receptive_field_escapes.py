"""Dependencies that do not pass through an operation between tensors: values that become numbers,
values that select positions, and memory that changes behind PyTorch's back.

All of them are followed or refused. The oracle changes the input in float64 and compares outputs.
"""

import copy
import io
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Function, Net, compare_with_perturbation
from torch import Tensor, nn
from torch.utils import dlpack

from cifar_resnet import receptive_field

X = torch.randn(1, 2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SIZE = tuple(X.shape)


@torch.library.custom_op("test_escapes::put", mutates_args={"y"})
def put(y: Tensor, x: Tensor) -> None:
    y.copy_(x.flip(2))


@put.register_fake
def _(y: Tensor, x: Tensor) -> None:
    return None


@torch.library.custom_op("test_escapes::total", mutates_args=())
def total(x: Tensor) -> float:
    return float(x.sum())


def with_buffers(run: Callable[..., Tensor]) -> nn.Module:
    network = Net(run)
    network.register_buffer("whole", torch.zeros(SIZE, dtype=torch.float64))
    network.part = network.whole[:, :, 2:]
    return network


def written(write: Callable[[Tensor, Tensor], object]) -> Callable[[Tensor], Tensor]:
    """Write the rows in reverse order to a tensor that depends on the rows as they are."""

    def run(x: Tensor) -> Tensor:
        y = x * 2
        write(y, x.flip(2))
        return y

    return run


def exchanged(exchange: Callable[[Tensor, Tensor], object]) -> Callable[[Tensor], Tensor]:
    """Give a tensor other memory, which is written to afterward."""

    def run(x: Tensor) -> Tensor:
        z, y = torch.zeros_like(x), x * 2
        exchange(z, y)
        y[:, :, :2] = x[:, :, 3:]
        return z.reshape(SIZE) + x

    return run


def to_buffer(self, x: Tensor) -> Tensor:
    self.whole.copy_(x.flip(2))
    return x + self.whole


def to_buffer_behind_a_view(self, x: Tensor) -> Tensor:
    self.whole.copy_(x.flip(2))
    return x[:, :, 2:] + self.part


def experts(x: Tensor) -> Tensor:
    weights = torch.arange(1, 13, dtype=x.dtype).view(3, 2, 2, 1, 1)
    return F.conv2d(x, weights[x.amax((0, 2, 3)).sum().abs().long() % 3])


def by_memory(x: Tensor) -> Tensor:
    rows = (x * 2)[:, :, 2:]
    return rows.as_strided((1, 2, 3, 4), (40, 20, 4, 1), 0)  # the first rows of the tensor behind


def index(x: Tensor) -> Tensor:
    return (x.mean().abs() * 40).long() % 3


NUMBERS = {
    "full_like": lambda x: x + torch.full_like(x, x.mean()),
    "full": lambda x: x + torch.full(SIZE, x.mean()),
    "scalar_tensor": lambda x: x + torch.scalar_tensor(x.mean()),
    "leaky_relu": lambda x: F.leaky_relu(x, x.mean()),
    "hardtanh": lambda x: F.hardtanh(x, -x.mean().abs(), x.mean().abs()),
    "threshold": lambda x: F.threshold(x, x.mean(), 0.0),
    "alpha": lambda x: torch.add(x, x.sign(), alpha=x.mean()),
    "tensor": lambda x: x * torch.tensor([x.mean()]),
    "nested tensor": lambda x: x + torch.tensor([[x.mean(), 1.0], [2.0, x[0, 0, 0, 0]]])[1, 1],
    "as_tensor": lambda x: x * torch.as_tensor([x.mean()]),
    "new_tensor": lambda x: x * x.new_tensor([x.mean()]),
    "select": lambda x: x.roll(1, 2)[:, :, index(x)],
    "experts": experts,
    "slice": lambda x: x[:, :, : index(x) + 1].sum(2),
    "narrow": lambda x: x.narrow(2, index(x), 2),
    "roll": lambda x: x.roll(index(x), 2),
    "written at an index": written(lambda y, x: y[:, :, index(x)].copy_(x[:, :, 0])),
    "filled at an index": written(lambda y, x: y[:, :, index(x)].fill_(1.0)),
}
MEMORY = {
    "foreach": written(lambda y, x: torch._foreach_add_([y], [x])),
    "foreach with results": lambda x: torch._foreach_add([x], [x.flip(2)])[0],
    "foreach copy": written(lambda y, x: torch._foreach_copy_([y[:, :, 1:]], [x[:, :, 1:]])),
    "data": exchanged(lambda z, y: setattr(z, "data", y)),
    "set_": exchanged(lambda z, y: z.set_(y)),
    "data read": lambda x: x + x.data.flip(2),
    "dlpack": lambda x: x + dlpack.from_dlpack(dlpack.to_dlpack(x * 2)).flip(2),
    "dlpack written to": written(
        lambda y, x: dlpack.from_dlpack(dlpack.to_dlpack(y[:, :, 1:])).add_(x[:, :, 1:])
    ),
    "deepcopy": lambda x: x + copy.deepcopy(x * 2).flip(2),
    "parameter": lambda x: x + nn.Parameter((x * 2).flip(2)),
    "subclass": lambda x: x + Tensor._make_subclass(Tensor, (x * 2).flip(2)),
    "resize_": lambda x: (x * 2).resize_(1, 2, 5, 2),
    "as_strided": by_memory,
    "as_strided with other strides": lambda x: (x * 2).as_strided((1, 4, 5), (1, 5, 4), 0),
    "as_strided written to": written(
        lambda y, x: y.as_strided((2, 2, 4), (20, 8, 1), 4).add_(x[0, :, :2])
    ),
    "diagonal written to": written(lambda y, x: y.diagonal(0, 2, 3).mul_(x[..., 0, :])),
    "windows written to": written(lambda y, x: y.unfold(2, 2, 2).add_(x[:, :, :2, :, None])),
    "another type": lambda x: (x * 2).view(torch.int64).view(torch.float64).flip(2),
    "smaller type": lambda x: (x * 2).view(torch.int32).double().nan_to_num(),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_from_tensors_are_followed(name: str) -> None:
    complete, _ = compare_with_perturbation(Function(NUMBERS[name]), X)
    assert complete


@pytest.mark.parametrize("name", MEMORY)
def test_memory_is_followed_exactly(name: str) -> None:
    assert compare_with_perturbation(Function(MEMORY[name]), X) == (True, True)


@pytest.mark.parametrize("run", [to_buffer, to_buffer_behind_a_view])
def test_buffers_that_are_written_to_are_followed(run: Callable[..., Tensor]) -> None:
    assert compare_with_perturbation(with_buffers(run), X) == (True, True)


def test_an_operation_that_changes_its_argument_and_returns_nothing() -> None:
    network = Function(written(put))
    with pytest.raises(NotImplementedError, match=r"no receptive-field rule .*test_escapes\.put"):
        receptive_field(network, SIZE)
    output = receptive_field(network, SIZE, rules={"test_escapes::put": "global"}).output
    assert output.is_global == (True, True)
    own = {"test_escapes::put": lambda op: op.sets("x").blend([2])}
    assert receptive_field(network, SIZE, rules=own).output.size == (5, 1)


def in_a_thread(x: Tensor) -> Tensor:
    results: list[Tensor] = []
    worker = threading.Thread(target=lambda: results.append(x.flip(2)))
    worker.start()
    worker.join()
    return x + results[0]


def saved_and_loaded(x: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save(x * 2, file)
    file.seek(0)
    return x + torch.load(file).flip(2)


def scripted_item(x: Tensor) -> Tensor:
    return x * x.mean().item()


def scripted_float(x: Tensor) -> Tensor:
    return x * float(x.mean())


REFUSED = {
    r"total\(\) extracts": lambda x: x * total(x),
    r"__format__\(\)": lambda x: x * float(f"{x.mean():.3f}"),
    r"map_\(\)": written(lambda y, x: y.map_(x, lambda a, b: a + b)),
    r"untyped_storage\(\)": saved_and_loaded,
    "extracts values": lambda x: x + copy.copy(x * 2),
    r"__dlpack__\(\)": lambda x: x + torch.from_dlpack(x * 2),
    "in another thread": in_a_thread,
    r"_choose_qparams_per_tensor\(\)": lambda x: x * torch._choose_qparams_per_tensor(x)[0],
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_followed_is_refused(message: str) -> None:
    network = Function(REFUSED[message])
    with pytest.raises(NotImplementedError, match=message):
        receptive_field(network, SIZE)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")
@pytest.mark.parametrize("run", [scripted_item, scripted_float])
def test_numbers_inside_scripted_functions_are_refused(run: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotImplementedError, match=r"item\(\) extracts values"):
        receptive_field(Function(torch.jit.script(run)), SIZE)


def test_a_window_rule_includes_the_other_arguments() -> None:
    ops = pytest.importorskip("torchvision.ops")

    def run(x: Tensor) -> Tensor:
        offset = F.avg_pool2d(x.mean(1, keepdim=True), (5, 1), 1, (2, 0)).expand(-1, 18, -1, -1)
        return ops.deform_conv2d(x, offset, torch.ones(3, 2, 3, 3), padding=1)

    rules = {"torchvision::deform_conv2d": {"kernel_size": 3, "padding": 1}}
    output = receptive_field(Function(run), SIZE, rules=rules).output
    assert output.size == (5, 3)  # the offsets of a unit see 5 rows, its window 3 columns
    gate = {"test_escapes::gate": {"kernel_size": 1}}
    assert receptive_field(Function(gated), SIZE, rules=gate).output.is_global == (True, True)


@torch.library.custom_op("test_escapes::gate", mutates_args=())
def gate(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight.view(1, 2, 1, 1)


@gate.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


def gated(x: Tensor) -> Tensor:
    return gate(x, x.mean((0, 2, 3)))


class KeywordOnly(nn.Module):
    def forward(self, *, x: Tensor) -> Tensor:
        return x


def test_models_that_cannot_be_called_or_recorded_are_explained() -> None:
    def either(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x.flip(2), (x,))

    with pytest.raises(ValueError, match=r"higher-order operation cond.* Python `if`"):
        receptive_field(Function(either), SIZE)
    with pytest.raises(ValueError, match="passes them by name"):
        receptive_field(KeywordOnly(), SIZE)


def in_thread(function: Callable[[], Tensor]) -> Tensor:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


def test_work_in_another_thread_is_noticed_in_a_run_on_values() -> None:
    index = torch.tensor([2, 0, 1])  # selects, so the model is run on values

    def forward(x: Tensor) -> Tensor:
        return x.index_select(2, index) + in_thread(lambda: x.mean((2, 3), keepdim=True))

    with pytest.raises(NotImplementedError, match=r"in another thread.*escapes\.py:"):
        receptive_field(Function(forward), (1, 2, 6, 5))


def test_constants_from_numpy_and_other_threads_are_constants() -> None:
    index = torch.tensor([2, 0, 1])

    def forward(x: Tensor) -> Tensor:
        numbers = torch.from_numpy(np.arange(5.0, dtype=np.float32))
        return x.index_select(2, index) * numbers + in_thread(lambda: torch.ones(5))

    assert receptive_field(Function(forward), (1, 2, 6, 5)).output.region((0, 1)) == (
        (2, 2),
        (1, 1),
    )
