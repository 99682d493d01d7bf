"""Test that several threads can explain and use one model at the same time."""

import copy
import gc
import random
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import pytest
import torch
from helpers import same, state
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cifar_resnet import (
    CustomResNet,
    check_receptive_field,
    compute_cams,
    effective_receptive_field,
    find_misclassified,
    model_state,
    receptive_field,
)

THREADS, CALLS = 4, 6
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def in_threads(call: Callable[[int], Any]) -> list[list[Any]]:
    """Return the results of `call(number)`, `CALLS` of each of `THREADS` threads."""
    ready = threading.Barrier(THREADS)

    def work(thread: int) -> list[Any]:
        ready.wait()
        return [call(thread) for _ in range(CALLS)]

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(work, range(THREADS)))


def left_behind(model: nn.Module) -> list[Any]:
    """Return everything that a call must leave unchanged."""
    modules = list(model.modules())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]
    numpy_state = np.random.get_state()[1].tolist()
    random_states = torch.get_rng_state().clone(), random.getstate(), numpy_state
    attributes = [sorted(vars(m)) for m in modules]
    modes = [m.training for m in modules]
    flags = [p.requires_grad for p in model.parameters()]
    settings = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    return [hooks, *random_states, attributes, modes, flags, settings, copy.deepcopy(state(model))]


def test_maps_of_one_model_from_several_threads() -> None:
    model = CustomResNet(width=4).train()
    before = left_behind(model)
    expected = [compute_cams(model, IMAGES, thread, batch_size=2) for thread in range(THREADS)]
    results = in_threads(lambda thread: compute_cams(model, IMAGES, thread, batch_size=2))
    for thread, maps in enumerate(results):
        assert all(torch.equal(each, expected[thread]) for each in maps)
    assert same(left_behind(model), before)


def test_different_functions_on_one_model_from_several_threads() -> None:
    model = CustomResNet(width=4).train()
    before = left_behind(model)
    data = TensorDataset(IMAGES, torch.arange(3))
    calls: list[Callable[[], Any]] = [
        lambda: compute_cams(model, IMAGES, 1),
        lambda: find_misclassified(model, data).confusion,
        lambda: effective_receptive_field(model, IMAGES, layer="layer1").map,
        lambda: receptive_field(model, (1, 3, 32, 32)).output.size,
    ]
    expected = [call() for call in calls]
    for thread, results in enumerate(in_threads(lambda thread: calls[thread]())):
        assert all(same(result, expected[thread]) for result in results)
    assert same(left_behind(model), before)


def test_different_models_with_a_common_backbone() -> None:
    backbone = CustomResNet(width=4)
    first, second = (
        nn.Sequential(backbone, nn.Linear(10, 3)),
        nn.Sequential(backbone, nn.Softmax(1)),
    )
    models = [first, second, backbone, first]
    before = [left_behind(model) for model in models]
    expected = [compute_cams(model, IMAGES, 1) for model in models]
    results = in_threads(lambda thread: compute_cams(models[thread], IMAGES, 1))
    for thread, maps in enumerate(results):
        assert all(torch.equal(each, expected[thread]) for each in maps)
    assert same([left_behind(model) for model in models], before)


class Predictions:
    """Call a model in another thread until the end, and require the same scores each time."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.expected = self.predict()
        self.stop = threading.Event()
        self.calls = 0
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self.run)

    @torch.no_grad()
    def predict(self) -> Tensor:
        scores: Tensor = self.model(IMAGES)
        return scores

    def run(self) -> None:
        try:
            while not self.stop.is_set():
                torch.testing.assert_close(self.predict(), self.expected)
                self.calls += 1
        except BaseException as error:
            self.error = error

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def during(self, call: Callable[[], Any]) -> None:
        """Call a function until there were some predictions."""
        call()
        enough = self.calls + 5
        while self.error is None and self.calls < enough:
            call()

    def __exit__(self, *args: object) -> None:
        self.stop.set()
        self.thread.join()
        assert self.error is None, repr(self.error)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: compute_cams(model, IMAGES),
        lambda model: find_misclassified(model, TensorDataset(IMAGES, torch.arange(3))),
        lambda model: effective_receptive_field(model, IMAGES),
        lambda model: receptive_field(model, (1, 3, 32, 32)),
        lambda model: check_receptive_field(model, (1, 3, 32, 32), positions=2),
    ],
    ids=["maps", "errors", "effective", "field", "check"],
)
def test_predictions_at_the_same_time(call: Callable[[nn.Module], Any]) -> None:
    model = CustomResNet(width=4).eval()
    with Predictions(model) as predictions:
        predictions.during(lambda: call(model))


def test_predictions_of_a_compiled_model_at_the_same_time() -> None:
    model = nn.Sequential(torch.compile(CustomResNet(width=2).eval(), backend="eager"))
    expected = compute_cams(model, IMAGES)
    with Predictions(model):
        results = in_threads(lambda _: compute_cams(model, IMAGES))
    assert all(torch.equal(each, expected) for maps in results for each in maps)
    assert torch._dynamo.eval_frame._stance.stance == "default"


class Interrupted(CustomResNet):
    """A network that another thread calls with other images, before and after its layers."""

    interrupted = True

    def logits(self, images: Tensor) -> Tensor:
        self.interrupt()
        scores = super().logits(images)
        self.interrupt()
        return scores

    def interrupt(self) -> None:
        if self.interrupted and threading.current_thread() is threading.main_thread():
            with ThreadPoolExecutor(1) as pool:
                pool.submit(self, IMAGES.flip(0, 2)).result()


def test_hooks_ignore_other_threads() -> None:
    model = Interrupted(width=2)
    alone = copy.deepcopy(model)
    alone.interrupted = False
    for method in ("gradcam", "eigencam"):
        expected = compute_cams(alone, IMAGES, 1, method=method)
        assert torch.equal(compute_cams(model, IMAGES, 1, method=method), expected)
    expected = effective_receptive_field(alone, IMAGES, layer="layer2").map
    assert torch.equal(effective_receptive_field(model, IMAGES, layer="layer2").map, expected)
    report = check_receptive_field(alone, (1, 3, 32, 32), positions=1)
    assert check_receptive_field(model, (1, 3, 32, 32), positions=1) == report


def test_dictionaries_that_other_threads_read_are_not_cleared() -> None:
    class Read(dict[str, int]):
        def clear(self) -> None:
            raise AssertionError("cleared while others read it")

    model = CustomResNet(width=2)
    model.cache = Read(kept=1)
    model.register_forward_pre_hook(lambda module, args: module.cache.update(added=2))
    compute_cams(model, IMAGES)
    assert model.cache == {"kept": 1}


class Drawing(CustomResNet):
    """A network that draws random numbers in evaluation mode, too."""

    def forward(self, images: Tensor) -> Tensor:
        torch.rand(1), random.random(), np.random.rand()
        return super().forward(images)


def test_only_the_main_thread_rewinds_the_random_generators() -> None:
    def draws() -> list[float]:
        return [torch.rand(1).item(), random.random(), float(np.random.rand())]

    def draws_after(call: Callable[[], Any]) -> list[float]:
        torch.manual_seed(0), random.seed(0), np.random.seed(0)
        call()
        return draws()

    model = Drawing(width=2).eval()
    expected = draws_after(lambda: None)
    assert draws_after(lambda: compute_cams(model, IMAGES)) == expected
    with ThreadPoolExecutor(1) as pool:
        other = draws_after(lambda: pool.submit(compute_cams, model, IMAGES).result())
    assert all(one != two for one, two in zip(other, expected, strict=True))


def test_models_are_not_kept_in_memory() -> None:
    model = CustomResNet(width=2)
    compute_cams(model, IMAGES)
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None


def test_an_error_releases_the_model() -> None:
    model = CustomResNet(width=2)
    with ThreadPoolExecutor(1) as pool:
        failed = pool.submit(compute_cams, model, IMAGES[:, :, :16])
        with pytest.raises(ValueError, match="fails on a batch"):
            failed.result()
    assert compute_cams(model, IMAGES).shape == (3, 32, 32)


def test_a_thread_may_enter_again() -> None:
    model = CustomResNet(width=2).train()
    with model_state.preserve_state(model), model_state.preserve_state(model.layer1):
        assert not model.training
    assert model.training
