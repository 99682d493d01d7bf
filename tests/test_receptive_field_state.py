"""An analysis leaves the model's caches and the inputs as they were."""

import collections
import functools
import gc
import types

import pytest
import torch
from helpers import Net
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from cifar_resnet import check_receptive_field, receptive_field

SIZE = (1, 2, 8)

GLOBAL: dict[int, Tensor] = {}
LATEST: Tensor | None = None


@functools.lru_cache
def cached(length: int) -> Tensor:
    return torch.ones(length)


@functools.lru_cache
def cached_pair(length: int) -> tuple[int, list[Tensor]]:
    return length, [torch.ones(length)]


def memoized(function):
    store = {}

    def call(length: int) -> Tensor:
        if length not in store:
            store[length] = function(length)
        return store[length]

    return call


@memoized
def decorated(length: int) -> Tensor:
    return torch.ones(length)


def default_argument(length: int, store: dict[int, Tensor] = {}) -> Tensor:  # noqa: B006
    return store.setdefault(length, torch.ones(length))


def closure():
    kept = None

    def call(length: int) -> Tensor:
        nonlocal kept
        kept = torch.ones(length) if kept is None else kept
        return kept

    return call


in_closure = closure()


def latest(length: int) -> Tensor:
    global LATEST
    LATEST = torch.ones(length) if LATEST is None else LATEST
    return LATEST


class Caching(nn.Module):
    """Multiplies by ones from a cache, which a subclass has in some place."""

    shared: dict[int, Tensor] = {}  # noqa: RUF012
    on_class: Tensor | None = None

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.nested = {"masks": {"ready": None}, "list": [], "queue": collections.deque()}
        self.config = types.SimpleNamespace(mask=None)

    @functools.lru_cache  # noqa: B019
    def method(self, length: int) -> Tensor:
        return torch.ones(length)

    def ones(self, length: int) -> Tensor:
        masks = self.nested["masks"]
        if self.place == "nested":
            if masks["ready"] is None:  # overwritten rather than added
                masks["ready"] = {"ones": (torch.ones(length),)}
            return masks["ready"]["ones"][0]
        if self.place in self.nested:
            items = self.nested[self.place]
            if not items:
                items.append([torch.ones(length)])
            return items[0][0]
        if self.place == "config":
            if self.config.mask is None:
                self.config.mask = torch.ones(length)
            return self.config.mask
        if self.place == "class":
            if Caching.on_class is None:
                Caching.on_class = torch.ones(length)
            return Caching.on_class
        stores = {"global": GLOBAL, "shared": self.shared}
        return stores[self.place].setdefault(length, torch.ones(length))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[-1]
        calls = {
            "lru_cache": cached,
            "lru_cache of a pair": lambda n: cached_pair(n)[1][0],
            "lru_cache of a method": self.method,
            "decorator": decorated,
            "default": default_argument,
            "closure": in_closure,
            "variable": latest,
        }
        return x * calls.get(self.place, self.ones)(length)


@pytest.mark.parametrize(
    "place",
    [
        "lru_cache", "lru_cache of a pair", "lru_cache of a method", "decorator", "default",
        "closure", "variable", "nested", "list", "queue", "config", "class", "global", "shared",
    ],
)  # fmt: skip
def test_no_cache_keeps_a_tensor_without_values(place: str) -> None:
    model = Caching(place)
    assert receptive_field(model, SIZE).output.size == (1,)
    x = torch.randn(SIZE)
    for used in (model, Caching(place)):
        y = used(x)
        assert not isinstance(y, FakeTensor)
        torch.testing.assert_close(y, x)
    assert receptive_field(model, SIZE).output.size == (1,)  # also with a full cache
    torch.testing.assert_close(model(x), x)


def test_a_cache_of_another_file_is_emptied_and_one_of_values_kept() -> None:
    source = """
import functools, torch
STORE = {}
@functools.lru_cache
def index(length): return torch.ones(length)
def stored(length): return STORE.setdefault(length, (torch.ones(length), 1))[0]
"""
    other = types.ModuleType("other")
    exec(source, vars(other))
    other.STORE[3] = kept = (torch.ones(3), 1)
    network = Net(lambda net, x: x * other.index(x.shape[-1]) * other.stored(x.shape[-1]))
    receptive_field(network, SIZE)
    assert list(other.STORE) == [3]
    assert other.STORE[3] is kept
    x = torch.randn(SIZE)
    torch.testing.assert_close(network(x), x)


def test_a_run_that_needs_values_keeps_no_tensor_without_them() -> None:
    def run(net: nn.Module, x: Tensor) -> Tensor:
        ones = net.store.setdefault("ones", torch.ones(x.shape[-1]))
        return x * ones if ones.sum() > 0 else -x  # values choose the branch

    network = Net(run)
    network.store = {}
    before = {id(found) for found in gc.get_objects() if type(found) is FakeTensor}
    receptive_field(network, SIZE)
    gc.collect()
    after = {id(found) for found in gc.get_objects() if type(found) is FakeTensor}
    assert after <= before
    assert type(network(torch.zeros(SIZE))) is Tensor


def test_a_tensor_that_cannot_be_removed_is_reported() -> None:
    class Holder:
        __slots__ = ("kept",)

    holder = Holder()

    def run(net: nn.Module, x: Tensor) -> Tensor:
        object.__setattr__(holder, "kept", torch.ones(8))
        return x * 1

    with pytest.warns(RuntimeWarning, match="cannot be removed .*Holder"):
        receptive_field(Net(run), SIZE)


@pytest.mark.parametrize("analyze", [receptive_field, check_receptive_field])
@pytest.mark.parametrize("needs_values", [False, True])
def test_inputs_are_not_modified(analyze, needs_values: bool) -> None:
    def run(net: nn.Module, x: Tensor, more: dict[str, list[Tensor]]) -> Tensor:
        x.mul_(2)
        more["scale"][0].add_(1)
        more["scale"].append(x)
        if needs_values and more["scale"][0].sum() < 0:
            return x
        return x * more["scale"][0]

    x, scale = torch.ones(SIZE), torch.ones(8)
    more = {"scale": [scale]}
    analyze(Net(run), inputs=(x, more))
    torch.testing.assert_close(x, torch.ones(SIZE))
    torch.testing.assert_close(scale, torch.ones(8))
    assert len(more["scale"]) == 1
