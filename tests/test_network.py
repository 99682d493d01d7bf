"""CustomResNet: the specified layers, options, precisions, copies and export."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from cifar_resnet import CustomResNet, receptive_field


def parameters_of(width: int, classes: int = 10, channels: int = 3) -> int:
    """Count convolutions without bias, two BatchNorm parameters per channel, and a linear layer."""
    w = width
    convolutions = [(channels, w), (w, 2 * w), (2 * w, 2 * w), (2 * w, 2 * w), (2 * w, 4 * w)]
    convolutions += [(4 * w, 8 * w), (8 * w, 8 * w), (8 * w, 8 * w)]
    return sum(9 * i * o + 2 * o for i, o in convolutions) + 8 * w * classes


def test_the_default_network_has_the_specified_number_of_parameters() -> None:
    assert sum(p.numel() for p in CustomResNet().parameters()) == 6_573_120 == parameters_of(64)


@pytest.mark.parametrize(("width", "classes", "channels"), [(1, 1, 1), (16, 100, 3), (5, 7, 4)])
def test_width_classes_and_channels(width: int, classes: int, channels: int) -> None:
    model = CustomResNet(width=width, num_classes=classes, in_channels=channels)
    assert sum(p.numel() for p in model.parameters()) == parameters_of(width, classes, channels)
    assert model(torch.randn(2, channels, 32, 32)).shape == (2, classes)


def test_shapes_and_order_of_the_layers() -> None:
    model = CustomResNet()
    shapes = {}
    leaves = [(n, m) for n, m in model.named_modules() if not list(m.children())]
    blocks = [
        (n, getattr(model, n))
        for n in ("prep", "layer1", "residual1", "layer2", "layer3", "residual3", "pool", "head")
    ]
    order = []
    for name, module in blocks:
        module.register_forward_hook(
            lambda m, i, o, n=name: shapes.__setitem__(n, tuple(o.shape[1:]))
        )
    for _, module in leaves:
        module.register_forward_hook(lambda m, i, o: order.append(type(m).__name__))
    model(torch.randn(2, 3, 32, 32))
    side = 32
    assert shapes == {
        "prep": (64, side, side),
        "layer1": (2 * 64, side // 2, side // 2),
        "residual1": (2 * 64, side // 2, side // 2),
        "layer2": (4 * 64, side // 4, side // 4),
        "layer3": (8 * 64, side // 8, side // 8),
        "residual3": (8 * 64, side // 8, side // 8),
        "pool": (8 * 64, 1, 1),
        "head": (10,),
    }
    plain = ["Conv2d", "ReLU", "BatchNorm2d"]
    pooled = ["Conv2d", "MaxPool2d", "ReLU", "BatchNorm2d"]
    assert order == plain + pooled + 2 * plain + 2 * pooled + 2 * plain + ["MaxPool2d", "Linear"]


OPTIONS = [
    {},
    {"norm_first": True},
    {"activation": "gelu"},
    {"residual2": True},
    {"head_scale": 0.125},
    {"norm_first": True, "activation": "gelu", "residual2": True, "head_scale": 0.5},
    {"image_size": 8},
    {"image_size": [24, 16], "norm_first": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "specified")
def test_forward_against_the_formula_written_out(options: dict) -> None:
    torch.manual_seed(1)
    model = CustomResNet(width=4, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}

    def activate(x: torch.Tensor) -> torch.Tensor:
        if options.get("activation") == "gelu":  # x times the normal distribution function
            return x * torch.distributions.Normal(0, 1).cdf(x)
        return x.clamp(min=0)

    def block(x: torch.Tensor, name: str, pool: bool = False) -> torch.Tensor:
        x = nn.functional.conv2d(x, w[f"{name}.0.weight"], padding=1)
        norm = 2 + pool - options.get("norm_first", False)
        if pool:
            x = nn.functional.max_pool2d(x, 2)
        mean, var, scale, shift = (
            w[f"{name}.{norm}.{key}"].view(1, -1, 1, 1)
            for key in ("running_mean", "running_var", "weight", "bias")
        )

        def normalize(x: torch.Tensor) -> torch.Tensor:
            return (x - mean) / (var + 1e-5).sqrt() * scale + shift

        return activate(normalize(x)) if options.get("norm_first") else normalize(activate(x))

    def residual(x: torch.Tensor, name: str) -> torch.Tensor:
        return x + block(block(x, f"{name}.block1"), f"{name}.block2")

    images = torch.randn(2, 3, *model.image_size)
    x = block(images.double(), "prep")
    x = residual(block(x, "layer1", pool=True), "residual1")
    x = block(x, "layer2", pool=True)
    if options.get("residual2"):
        x = residual(x, "residual2")
    x = residual(block(x, "layer3", pool=True), "residual3")
    logits = x.amax(dim=(2, 3)) @ w["head.weight"].T * options.get("head_scale", 1)
    torch.testing.assert_close(model.logits(images).double(), logits, rtol=1e-3, atol=1e-3)
    expected = logits - logits.exp().sum(dim=1, keepdim=True).log()
    torch.testing.assert_close(model(images).double(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "specified")
def test_options_are_kept_and_shown(options: dict) -> None:
    model = CustomResNet(width=4, **options)
    sizes = {"width": 4, "num_classes": 10, "in_channels": 3}
    specified = {"norm_first": False, "activation": "relu", "residual2": False, "head_scale": 1.0}
    specified["image_size"] = 32
    assert model.config() == sizes | specified | options
    assert CustomResNet(**model.config()).config() == model.config()
    for name, value in options.items():
        assert f"{name}={value!r}" in model.extra_repr()
    added = 2 * (9 * 16 * 16 + 2 * 16) if options.get("residual2") else 0
    assert sum(p.numel() for p in model.parameters()) == parameters_of(4) + added


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    model = CustomResNet(width=4).to(dtype).eval()
    out = model(torch.randn(2, 3, 32, 32, dtype=dtype))
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_autocast_and_channels_last_agree_with_the_plain_network() -> None:
    model = CustomResNet(width=8).eval()
    images = torch.randn(4, 3, 32, 32)
    plain = model(images)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    torch.testing.assert_close(
        last(images.to(memory_format=torch.channels_last)), plain, rtol=1e-3, atol=1e-3
    )
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(images)
    torch.testing.assert_close(mixed.float(), plain, rtol=0.1, atol=0.2)


def test_deepcopy_and_pickle_keep_the_outputs() -> None:
    model = CustomResNet(width=4).eval()
    images = torch.randn(2, 3, 32, 32)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(images), model(images))


def test_export_with_a_free_batch_size() -> None:
    model = CustomResNet(width=4).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    images = torch.randn(2, 3, 32, 32)
    program = torch.export.export(model, (images,), dynamic_shapes=({0: batch},))
    more = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(more), model(more))


def test_compile_without_a_graph_break() -> None:
    model = CustomResNet(width=4).eval()
    images = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


def test_the_error_for_gray_images_names_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"For gray images use images.expand\(-1, 3, -1, -1\), or"):
        CustomResNet(1)(torch.randn(2, 1, 32, 32))


@pytest.mark.parametrize("size", [8, 16, (8, 40)])
def test_other_sizes_have_the_same_weights(size: int | tuple[int, int], tmp_path: Path) -> None:
    model = CustomResNet(width=2, in_channels=1, image_size=size).eval()
    height, width = model.image_size
    images = torch.randn(3, 1, height, width)
    assert model(images).shape == (3, 10)
    same = CustomResNet(width=2, in_channels=1)
    same.load_state_dict(model.state_dict())
    model.save_pretrained(tmp_path / "own.safetensors")
    again = CustomResNet.from_pretrained(tmp_path / "own.safetensors")
    assert again.image_size == (height, width)
    assert torch.equal(again(images), model(images))
    field = receptive_field(model, (1, 1, height, width)).output
    assert [axis.size for axis in field.axes] == [56 + height, 56 + width]
    with pytest.raises(ValueError, match=rf"images of shape \(N, 1, {height}, {width}\), but got"):
        model(images[..., 1:])


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((4, 1, 8, 8), "in_channels=1, image_size=8."),
        ((4, 2, 16, 24), "in_channels=2, image_size=(16, 24)."),
    ],
)
def test_images_of_another_network_are_named(shape: tuple[int, ...], remedy: str) -> None:
    with pytest.raises(ValueError, match="expects images of shape") as error:
        CustomResNet(width=2)(torch.zeros(shape))
    assert str(error.value).endswith(f"Build the network with {remedy}")
