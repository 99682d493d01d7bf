"""Test that the maps and errors of a model do not depend on how it is stored, wrapped or run, and
that a model whose layers cannot be recorded is refused with a remedy.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from helpers import Flat, state
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from cifar_resnet import (
    CustomResNet,
    ImageClassifier,
    compute_cams,
    effective_receptive_field,
    find_misclassified,
    receptive_field,
)

PIXELS = torch.randint(256, (3, 3, 12, 10), generator=torch.Generator().manual_seed(0)).byte()
IMAGES = PIXELS.float() / 255


class Net(nn.Module):
    """Two convolutions and a head: 4 classes, maps of 6 x 5."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.second = nn.Conv2d(8, 8, 3, stride=2, padding=1)
            self.head = nn.Linear(8, 4)

    def features(self, images: Tensor) -> Tensor:
        return self.second(self.first(images).relu())

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).relu().mean((2, 3)))


class Wrapped(Net):
    """The same network with another `forward`."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self._forward = forward

    def forward(self, images: Tensor) -> Tensor:
        return self._forward(self, images)


def maps(model: nn.Module, images: Tensor = IMAGES, **options: Any) -> Tensor:
    return compute_cams(model, images, 1, **{"target_layers": "second", **options})


@pytest.fixture(scope="module")
def expected() -> Tensor:
    return maps(Net())


def confusion(model: nn.Module) -> Tensor:
    return find_misclassified(model, TensorDataset(IMAGES, torch.arange(3))).confusion


# -- what the model accepts -----------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_integer_images(dtype: torch.dtype, frozen: bool, expected: Tensor) -> None:
    model = Wrapped(lambda net, images: Net.forward(net, images.float() / 255))
    model.requires_grad_(not frozen)
    assert torch.allclose(maps(model, PIXELS.to(dtype)), expected, atol=1e-6)
    assert torch.allclose(maps(model, PIXELS.to(dtype), target_layers=None), expected, atol=1e-6)


def test_images_with_the_channels_last(expected: Tensor) -> None:
    model = Wrapped(lambda net, images: Net.forward(net, images.permute(0, 3, 1, 2).float() / 255))
    last = PIXELS.permute(0, 2, 3, 1)
    assert torch.allclose(maps(model, last), expected, atol=1e-6)
    assert maps(model, last[:0]).shape == (0, 12, 10)


@pytest.mark.parametrize("target_layers", [None, "first", "second"])
def test_models_that_write_to_their_input(target_layers: str | None) -> None:
    in_place = Wrapped(lambda net, images: Net.forward(net, images.sub_(0.4).div_(0.2)))
    out_of_place = Wrapped(lambda net, images: Net.forward(net, images.sub(0.4).div(0.2)))
    images = IMAGES.clone()
    found = maps(in_place, images, target_layers=target_layers)
    assert torch.equal(found, maps(out_of_place, target_layers=target_layers))
    assert torch.equal(images, IMAGES)
    of_bytes = Wrapped(lambda net, images: Net.forward(net, images.bitwise_not_().float() / 255))
    assert torch.allclose(
        maps(of_bytes, PIXELS, target_layers=target_layers),
        maps(Net(), (255 - PIXELS).float() / 255, target_layers=target_layers),
        atol=1e-6,
    )


@pytest.mark.parametrize("images", [Image.new("RGB", (32, 32)), "cat.png", PIXELS.numpy()])
def test_pictures_paths_and_arrays_are_named(images: Any) -> None:
    name = type(images).__name__
    for call in (compute_cams, lambda model, images: model(images)):
        for model in (CustomResNet(width=2), ImageClassifier(Flat(), num_classes=10)):
            with pytest.raises(TypeError, match=rf"{name}.*cifar_resnet\.predict\(model, images\)"):
                call(model, images)
    assert torch.fx.symbolic_trace(
        ImageClassifier(Flat(), num_classes=10)
    )  # a proxy is not a tensor


# -- how the model is stored ----------------------------------------------------------------------


class Twice(Net):
    """Every layer and parameter has two names, and `forward` requires parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.ModuleList([self.first, self.second, self.head])
        self.tied = nn.Conv2d(3, 8, 3)
        self.tied.weight = self.first.weight

    def forward(self, images: Tensor) -> Tensor:
        assert all(isinstance(layer.weight, nn.Parameter) for layer in self.again)
        assert self.tied.weight is self.first.weight
        return super().forward(images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_layers_and_parameters_with_two_names(dtype: torch.dtype, expected: Tensor) -> None:
    model = Twice().to(dtype)
    before = copy.deepcopy(state(model))
    tolerance = 0.02 if dtype == torch.bfloat16 else 1e-6
    assert torch.allclose(maps(model), expected, atol=tolerance)
    assert state(model) == before
    assert torch.equal(confusion(model), confusion(Net()))


@pytest.fixture
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_data_parallel_and_compiled_wrappers(process_group: None, expected: Tensor) -> None:
    def compiled(model: nn.Module) -> Any:
        return torch.compile(model, backend="eager")

    distributed = nn.parallel.DistributedDataParallel
    for wrapped in (
        nn.DataParallel(Net()),
        distributed(Net()),
        compiled(nn.DataParallel(Net())),
        nn.DataParallel(compiled(Net())),
        compiled(distributed(compiled(Net()))),
    ):
        assert torch.equal(maps(wrapped), expected)
        assert torch.equal(confusion(wrapped), confusion(Net()))
    assert receptive_field(nn.DataParallel(Net()), (1, 3, 12, 10))["second"].size == (5, 5)


@pytest.mark.parametrize(
    ("made_by", "make"),
    [
        ("torch.jit", lambda: torch.jit.script(Net())),
        ("torch.jit", lambda: torch.jit.trace(Net(), IMAGES)),
        ("torch.jit", lambda: torch.jit.freeze(torch.jit.script(Net().eval()))),
        ("torch.export", lambda: torch.export.export(Net().eval(), (IMAGES,)).module()),
    ],
    ids=["script", "trace", "freeze", "export"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")  # is deprecated
def test_programs(made_by: str, make: Callable[[], nn.Module]) -> None:
    program = make()
    training = getattr(program, "training", None)
    assert torch.equal(confusion(program), confusion(Net()))
    assert getattr(program, "training", None) == training
    with pytest.raises(ValueError, match=rf"made by {made_by}.*Pass the module that it was made"):
        maps(program)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # is deprecated
def test_scripted_programs_are_not_converted() -> None:
    program = torch.jit.script(Net())
    assert torch.equal(maps_before(program), maps_before(Net()))
    with pytest.raises(ValueError, match=r"scripted.* is torch.float64.*model\.to\('cpu', torch"):
        maps_before(program.double())


def maps_before(program: nn.Module) -> Tensor:
    """Compute the maps of a layer that comes before a program."""
    return maps(nn.Sequential(nn.Identity(), program), target_layers="0")


def test_weights_that_are_computed_at_each_call() -> None:
    def changed(old: bool) -> nn.Module:
        model = Net().eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            by = nn.utils if old else nn.utils.parametrizations
            by.weight_norm(model.first)
            by.spectral_norm(model.second)
        model(IMAGES)
        return model

    for model in (changed(old=True), changed(old=False)):
        plain = Net()
        for name in ("first", "second"):
            weight, layer = getattr(model, name).weight, getattr(plain, name)
            layer.weight.data = weight.detach().clone()
        assert torch.allclose(maps(model), maps(plain), atol=1e-5)
        assert torch.allclose(maps(model.double()), maps(plain), atol=1e-5)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.second = nn.Conv2d(3, 8, 3, 2, 1)
        self.lstm = nn.LSTM(8, 4, 2, dropout=0.5, batch_first=True, bidirectional=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.lstm(self.second(images).flatten(2).transpose(1, 2))[0][:, -1]


def test_recurrent_networks() -> None:
    model = Recurrent()
    found = maps(model)
    assert torch.equal(maps(model), found)  # without dropout
    assert torch.allclose(maps(model.double()), found, atol=1e-5)
    assert model(IMAGES.double()).dtype == torch.float64  # works with its own weights again


def test_lazy_and_meta_models() -> None:
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="'0.weight' has no shape yet"):
        compute_cams(lazy, IMAGES)
    lazy(IMAGES)
    assert compute_cams(lazy, IMAGES).shape == (3, 12, 10)
    with pytest.raises(ValueError, match="on the meta device, where they have no values"):
        maps(Net().to("meta"))


# -- how the model runs ---------------------------------------------------------------------------


class Checkpointed(Net):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def features(self, images: Tensor) -> Tensor:
        features = checkpoint(super().features, images, use_reentrant=self.reentrant)
        assert isinstance(features, Tensor)
        return features


def test_activation_checkpoints(expected: Tensor) -> None:
    for layer in (None, "second"):
        assert torch.equal(maps(Checkpointed(reentrant=False), target_layers=layer), expected)
        with pytest.raises(ValueError, match="Use use_reentrant=False"):
            maps(Checkpointed(reentrant=True), target_layers=layer)
        assert torch.equal(
            maps(Checkpointed(reentrant=True), target_layers=layer, method="eigencam"),
            maps(Net(), method="eigencam"),
        )


def frozen_features(net: Net, images: Tensor) -> Tensor:
    with torch.no_grad():
        features = net.features(images)
    return net.head(features.relu().mean((2, 3)))


def test_a_backbone_without_gradients(expected: Tensor) -> None:
    for layer in (None, "second"):
        assert torch.equal(maps(Wrapped(frozen_features), target_layers=layer), expected)


def quantized() -> nn.Module:
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return quantize_dynamic(Net(), {nn.Linear})


@pytest.mark.filterwarnings("ignore:.*quantiz")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Wrapped(torch.no_grad()(Net.forward)), "carry no gradient.*eigencam"),
        (lambda: Wrapped(torch.inference_mode()(Net.forward)), "carry no gradient.*eigencam"),
        (quantized, "int8 weights.*eigencam"),
    ],
    ids=["no_grad", "inference_mode", "int8"],
)
def test_eigencam_needs_no_gradient(make: Callable[[], nn.Module], message: str) -> None:
    expected = maps(Net(), method="eigencam")
    for layer in (None, "second"):
        assert torch.allclose(maps(make(), method="eigencam", target_layers=layer), expected)
    with pytest.raises(ValueError, match=message):
        maps(make(), target_layers=None)


def test_a_branch_that_does_not_see_the_image_is_not_chosen() -> None:
    def with_constant(net: Net, images: Tensor) -> Tensor:
        features = net.features(images)
        constant = net.first(torch.ones_like(images[:, :, ::2, ::2]))
        return net.head((features + constant).relu().mean((2, 3)))

    model = Wrapped(with_constant)
    assert torch.equal(maps(model, target_layers=None), maps(model))


@pytest.mark.filterwarnings("ignore:`torch.jit")  # is deprecated
def test_function_transforms(expected: Tensor) -> None:
    def ensemble(net: Net, images: Tensor) -> Tensor:
        features = net.features(images).relu().mean((2, 3))
        weights = torch.stack([net.head.weight] * 2)
        call = torch.vmap(
            lambda weight: torch.func.functional_call(net.head, {"weight": weight}, features)
        )
        return call(weights).mean(0)

    assert torch.allclose(maps(Wrapped(ensemble), target_layers=None), expected, atol=1e-6)

    def whole(net: Net, images: Tensor) -> Tensor:
        return torch.func.jvp(lambda x: Net.forward(net, x), (images,), (images,))[0]

    with pytest.raises(ValueError, match="No layer of Wrapped"):
        maps(Wrapped(whole), target_layers=None)


def test_buffers_that_change() -> None:
    model = Net()
    model.register_buffer("calls", torch.zeros(()))

    def count(module: Any, args: Any) -> None:
        module.calls += 1
        module.calls = module.calls + 1

    model.register_forward_pre_hook(count)
    for dtype in (torch.float32, torch.float64):
        buffer = model.to(dtype).calls
        maps(model)
        confusion(model)
        assert model.calls is buffer
        assert buffer == 0


def test_evaluation_mode_does_not_call_overridden_methods() -> None:
    class Adapter(Net):
        """Merge weights on `eval()`, as adapters for fine-tuning do."""

        def train(self, mode: bool = True) -> "Adapter":
            if not mode:
                self.head.weight.data += 1
            super().train(mode)
            return self

    model = Adapter()
    before = copy.deepcopy(state(model))
    maps(model)
    assert state(model) == before


def test_the_order_of_parameters_is_restored() -> None:
    def again(net: Net, images: Tensor) -> Tensor:
        weight = net.first.weight
        del net.first.weight
        net.first.weight = weight
        return Net.forward(net, images)

    model = Wrapped(again)
    before = list(model.state_dict())
    maps(model)
    assert list(model.state_dict()) == before


# -- settings of the process ----------------------------------------------------------------------


@pytest.fixture
def defaults() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


def test_default_dtype_and_device(defaults: None, expected: Tensor) -> None:
    model, images = Net(), IMAGES
    field = effective_receptive_field(model, images).map
    for set_default in (
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_device("meta"),
    ):
        set_default()
        for method in ("gradcam", "eigencam"):
            found = maps(model, method=method)
            assert (found.dtype, found.device.type) == (torch.float32, "cpu")
        assert torch.equal(maps(model), expected)
        assert torch.equal(effective_receptive_field(model, images).map, field)
        assert receptive_field(model, (1, 3, 12, 10))["second"].size == (5, 5)


def test_autocast_and_inference_mode(expected: Tensor) -> None:
    model = Net()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(maps(model), expected)
    with torch.inference_mode():
        assert torch.equal(maps(model), expected)
        assert torch.equal(maps(Net()), expected)
        assert torch.equal(confusion(Net()), confusion(model))
