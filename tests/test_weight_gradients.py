"""Compare the gradients of convolutions on small maps with those of PyTorch."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import small, trainer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import resnet18

from cifar_resnet import CustomResNet, ImageClassifier
from cifar_resnet.training.weight_gradients import SmallMapGradients, small_map_gradients

OURS = "_SmallMapConvolutionBackward"


def results(
    function: Any, conv: nn.Module, images: Tensor, context: AbstractContextManager[Any]
) -> list[Tensor]:
    """Return the output of a function in bfloat16, and the gradients of image and parameters."""
    images = images.clone().requires_grad_()
    conv.zero_grad()
    with torch.autocast("cpu", torch.bfloat16), context:
        maps = function(images)
    maps.backward(torch.linspace(-1, 1, maps.numel()).view_as(maps).to(maps.dtype))
    gradients = [images.grad, *(parameter.grad for parameter in conv.parameters())]
    return [maps.detach(), *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(4, 4), (3, 3), (2, 2), (1, 1), (2, 3), (4, 1)])
def test_gradients(size: tuple[int, int], layout: torch.memory_format, bias: bool) -> None:
    conv = nn.Conv2d(12, 20, 3, padding=1, bias=bias).to(memory_format=layout)
    images = torch.randn(7, 12, *size).to(memory_format=layout)
    standard = results(conv, conv, images, nullcontext())
    output, of_images, of_weight, *of_bias = results(conv, conv, images, SmallMapGradients())
    assert torch.equal(output, standard[0])
    assert torch.equal(of_images, standard[1])
    assert len(of_bias) == bias
    for gradient in of_bias:
        torch.testing.assert_close(gradient, standard[3], rtol=2**-7, atol=0)
    # the same inputs in float64; the result is rounded once, to 8 binary digits
    exact = torch.zeros(20, 12, 3, 3, dtype=torch.float64, requires_grad=True)
    maps = F.conv2d(images.bfloat16().double(), exact, padding=1)
    weighting = torch.linspace(-1, 1, maps.numel()).view_as(maps).bfloat16().double()
    (expected,) = torch.autograd.grad(maps, exact, weighting)
    torch.testing.assert_close(of_weight.double(), expected, rtol=2**-8, atol=1e-4)
    assert of_weight.stride() == conv.weight.stride()


def test_only_what_is_faster_is_changed() -> None:
    def name(conv: nn.Module, *shape: int, autocast: Any = torch.bfloat16) -> str:
        images = torch.randn(shape)
        plain = conv(images)
        with torch.autocast("cpu", autocast, enabled=autocast is not None), SmallMapGradients():
            maps = conv(images)
        assert maps.shape == plain.shape
        torch.testing.assert_close(maps.float(), plain, rtol=0.05, atol=0.05)
        return type(maps.grad_fn).__name__

    def conv(channels: int = 8, size: int = 3, **options: Any) -> nn.Conv2d:
        return nn.Conv2d(8, channels, size, **{"padding": 1} | options)

    assert name(conv(), 2, 8, 4, 4) == OURS
    assert name(conv(padding_mode="reflect"), 2, 8, 2, 2) != OURS
    for other in (
        conv(stride=2),
        conv(dilation=2, padding=2),
        conv(groups=2),
        conv(padding=0),
        conv(padding="same"),
        conv(size=1, padding=0),
        conv(size=5, padding=2),
    ):
        assert name(other, 2, 8, 4, 4) != OURS, other
    assert name(conv(), 2, 8, 5, 4) != OURS
    assert name(conv(), 8, 8, 4) != OURS  # one image, without a batch
    assert name(conv(), 2, 8, 4, 4, autocast=None) != OURS
    frozen = conv()
    frozen.weight.requires_grad_(False)
    assert name(frozen, 2, 8, 4, 4) != OURS
    with torch.no_grad():
        assert name(conv(), 2, 8, 4, 4) == "NoneType"


def test_without_autocast() -> None:
    images = torch.randn(2, 8, 3, 3, dtype=torch.bfloat16)
    weight = torch.randn(4, 8, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    with SmallMapGradients():
        assert F.conv2d(images, weight, None, 1, 1).grad_fn.name() == OURS
        assert F.conv2d(input=images, weight=weight, padding=[1, 1]).grad_fn.name() == OURS
        for wrong in (
            (images, weight.float(), None, 1, 1),
            (images, weight, None, 1, 1, 1, 2),  # two groups of 8 channels
            (images,),
            (images, 3),
        ):
            with pytest.raises((RuntimeError, TypeError), match=r"conv2d\(\)|same|type|groups"):
                F.conv2d(*wrong)


def test_other_kinds_of_gradients() -> None:
    conv = nn.Conv2d(6, 6, 3, padding=1, bias=False)
    images = torch.randn(3, 6, 4, 4)
    standard = results(conv, conv, images, nullcontext())

    def recomputed(x: Tensor) -> Tensor:
        return checkpoint(conv, x, use_reentrant=False)

    for a, b in zip(results(recomputed, conv, images, SmallMapGradients()), standard, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-7, atol=1e-3)

    weight = conv.weight.detach().bfloat16()
    batch = images.bfloat16()

    def loss(kernel: Tensor, image: Tensor) -> Tensor:
        return F.conv2d(image[None], kernel, padding=1).float().square().sum()

    per_image = torch.func.vmap(torch.func.grad(loss), (None, 0))
    expected = per_image(weight, batch)
    with SmallMapGradients():
        torch.testing.assert_close(per_image(weight, batch), expected, rtol=2**-6, atol=0.5)

    def penalty() -> Tensor:
        kernel = weight.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(kernel, batch[0]), kernel, create_graph=True)
        (second,) = torch.autograd.grad(first.float().square().sum(), kernel)
        return second

    expected = penalty()
    with SmallMapGradients():
        found = penalty()
    assert (found - expected).float().norm() < 0.01 * expected.float().norm()


def test_a_compiled_network_is_compiled_as_before() -> None:
    network = CustomResNet(width=4)
    graphs = []

    def keep(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    # A function of its own: other tests run `forward` in ways that keep it from being compiled.
    compiled = torch.compile(lambda x: network(x), backend=keep, fullgraph=True)
    images = torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16), SmallMapGradients():
        inside = compiled(images)
        assert torch.equal(inside, compiled(images))
    (graph,) = graphs
    called = [str(node.target) for node in graph.graph.nodes]
    assert sum("conv2d" in name for name in called) == 8
    assert not any("autograd" in name for name in called)
    inside.sum().backward()


@pytest.mark.parametrize(
    ("build", "is_wide"),
    [
        (lambda: CustomResNet(64), True),
        (lambda: resnet18(num_classes=10), True),
        (lambda: CustomResNet(4), False),
    ],
)
def test_the_training_of_a_wide_network_uses_them(
    data_dir: Path, tmp_path: Path, build: Any, is_wide: bool
) -> None:
    network = build()
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    names: dict[nn.Module, set[str]] = {layer: set() for layer in convolutions}
    sizes = {}

    def note(layer: nn.Module, inputs: Any, output: Tensor) -> None:
        sizes[layer] = tuple(inputs[0].shape[2:])
        names[layer].add(type(output.grad_fn).__name__)

    for layer in convolutions:
        layer.register_forward_hook(note)
    training = trainer(tmp_path, precision="bf16-mixed", limit_train_batches=1, limit_val_batches=1)
    data = small(data_dir, batch_size=4)
    training.fit(ImageClassifier(network, num_classes=10), data)
    # validation has no gradients
    fast = [layer for layer in convolutions if names[layer] == {OURS, "NoneType"}]
    small_maps = [
        layer
        for layer in convolutions
        if max(sizes[layer]) <= 4 and layer.kernel_size == (3, 3) and layer.stride == (1, 1)
    ]
    assert len(small_maps) >= 2
    assert fast == (small_maps if is_wide else [])


def test_other_devices_have_no_context() -> None:
    network = CustomResNet(64)
    assert isinstance(small_map_gradients(network, torch.device("cpu")), SmallMapGradients)
    assert isinstance(small_map_gradients(network, torch.device("cuda")), nullcontext)
