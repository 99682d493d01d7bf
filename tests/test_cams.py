"""Test class activation maps: computed by hand for a network of two channels, compared with the
grad-cam library, for networks of torchvision, and with a model that is left unchanged.
"""

import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torch.nn.functional as F
import torchvision.models as tv
from helpers import small_vit
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from cifar_resnet import CustomResNet, ImageClassifier, compute_cams

METHODS = {
    "gradcam": "GradCAM",
    "gradcam++": "GradCAMPlusPlus",
    "hirescam": "HiResCAM",
    "layercam": "LayerCAM",
    "xgradcam": "XGradCAM",
    "gradcamelementwise": "GradCAMElementWise",
    "eigencam": "EigenCAM",
    "eigengradcam": "EigenGradCAM",
}


class TwoChannels(nn.Module):
    """Positive pixels in channel 0, negative ones in channel 1, a linear head on the means."""

    def __init__(self, last: nn.Module | None = None) -> None:
        super().__init__()
        self.split = nn.Conv2d(1, 2, 1, bias=False)
        self.split.weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1)
        self.relu = nn.ReLU()
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 2.0]])
        self.last = last or nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.head(self.relu(self.split(images)).mean((2, 3))))


class Last(nn.Module):
    """Call a method of the scores by its name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, scores: Tensor) -> Tensor:
        return getattr(scores, self.name)(1)


IMAGE = torch.tensor([[[[1.0, 2.0], [3.0, -4.0]]]])
POSITIVE = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
NEGATIVE = torch.tensor([[0.0, 0.0], [0.0, 4.0]])
# The gradient of a mean over 4 positions is weight / 4.
CLASS_0 = 1 / 4 * POSITIVE
CLASS_1 = -1 / 4 * POSITIVE + 2 / 4 * NEGATIVE


@pytest.mark.parametrize("method", ["gradcam", "hirescam"])
@pytest.mark.parametrize(
    "last", [None, nn.LogSoftmax(1), nn.Softmax(1), Last("softmax"), Last("log_softmax")]
)
def test_maps_by_hand(method: str, last: nn.Module | None) -> None:
    model = TwoChannels(last)
    raw = [compute_cams(model, IMAGE, c, method=method, raw=True)[0] for c in (0, 1)]
    assert torch.allclose(raw[0], CLASS_0)
    assert torch.allclose(raw[1], CLASS_1)
    scaled = [compute_cams(model, IMAGE, c, method=method)[0] for c in (0, 1)]
    assert torch.allclose(scaled[0], CLASS_0 / 0.75)
    assert torch.allclose(scaled[1], torch.tensor([[0.0, 0.0], [0.0, 1.0]]))


def test_the_predicted_class_and_the_contrast() -> None:
    model = TwoChannels()
    # scores: 6 / 4 = 1.5 and -6 / 4 + 8 / 4 = 0.5, so class 0 is predicted
    assert torch.allclose(compute_cams(model, IMAGE, raw=True)[0], CLASS_0)
    assert torch.allclose(
        compute_cams(model, -IMAGE, raw=True), compute_cams(model, -IMAGE, 1, raw=True)
    )
    contrast = compute_cams(model, IMAGE, [0], against=torch.tensor([1]), raw=True)[0]
    assert torch.allclose(contrast, CLASS_0 - CLASS_1)


def test_no_evidence_is_all_zero() -> None:
    assert compute_cams(TwoChannels(), IMAGE.abs(), 1).abs().sum() == 0  # the evidence is negative
    raw = compute_cams(TwoChannels(), IMAGE.abs(), 1, raw=True)
    assert torch.allclose(raw[0], -IMAGE.abs()[0, 0] / 4)


def test_hirescam_of_our_network_sums_to_the_logit() -> None:
    model = CustomResNet(width=8)
    images, classes = torch.randn(5, 3, 32, 32), [0, 9, 3, 3, 5]
    raw = compute_cams(model, images, classes, method="hirescam", raw=True, batch_size=2)
    assert raw.shape == (5, 4, 4)
    logits = model.eval().logits(images)[range(5), classes]
    assert torch.allclose(raw.sum((1, 2)), logits, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_methods_agree_with_the_library(method: str) -> None:
    model = tv.resnet18(weights=None, num_classes=10).eval()
    images, classes = torch.randn(3, 3, 64, 64), [0, 4, 9]
    ours = compute_cams(model, images, classes, method=method, target_layers="layer3")
    cam = getattr(pytorch_grad_cam, METHODS[method])(model, [model.layer3])
    theirs = torch.from_numpy(cam(images, [ClassifierOutputTarget(c) for c in classes]))
    smallest = ours.amin((1, 2), keepdim=True)  # the library scales each map's minimum to 0
    ours = (ours - smallest) / (ours.amax((1, 2), keepdim=True) - smallest).clamp(min=1e-7)
    assert theirs.amax() > 0.99
    assert torch.allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
def test_a_map_does_not_depend_on_its_batch(method: str) -> None:
    model = CustomResNet(width=4)
    images = torch.randn(4, 3, 32, 32)
    together = compute_cams(model, images, 2, method=method)
    alone = torch.cat([compute_cams(model, image[None], 2, method=method) for image in images])
    assert torch.allclose(together, alone, atol=1e-4)
    assert torch.allclose(
        compute_cams(model, images, 2, method=method, batch_size=3), together, atol=1e-4
    )


def test_each_image_has_its_own_classes_in_batches_of_any_size() -> None:
    torch.manual_seed(0)
    model, images = CustomResNet(width=4), torch.randn(5, 3, 32, 32)
    classes, against = [0, 1, 2, 3, 4], [9, 8, 7, 6, 5]
    alone = [
        compute_cams(model, images[i : i + 1], classes[i], against=against[i]) for i in range(5)
    ]
    together = compute_cams(model, images, classes, against=against, batch_size=2)
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)


def test_several_layers_are_averaged() -> None:
    model = CustomResNet(width=4)
    images = torch.randn(2, 3, 32, 32)
    parts = [compute_cams(model, images, 1, target_layers=name) for name in ("layer2", "residual3")]
    both = compute_cams(model, images, 1, target_layers=[model.layer2, "residual3"])
    mean = (parts[0] + parts[1]) / 2
    assert torch.allclose(both, mean / mean.amax((1, 2), keepdim=True), atol=1e-5)


def test_shapes_ranges_and_the_empty_batch() -> None:
    maps = compute_cams(CustomResNet(width=4), torch.randn(3, 3, 32, 32))
    assert (maps.shape, maps.dtype, maps.device.type) == ((3, 32, 32), torch.float32, "cpu")
    assert maps.min() >= 0
    assert torch.equal(maps.amax((1, 2)), torch.ones(3))
    assert compute_cams(CustomResNet(width=4), torch.zeros(0, 3, 32, 32)).shape == (0, 32, 32)


# -- other networks ---------------------------------------------------------------------------


class Functional(nn.Module):
    """Call functions without modules; an Identity can give the last map a name."""

    def __init__(self, named: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.head = nn.Linear(4, 10)
        self.maps = nn.Identity() if named else None

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(F.conv2d(images, self.weight))
        x = self.maps(x) if self.maps is not None else x
        return self.head(F.max_pool2d(x, 2).mean((2, 3)))


@pytest.mark.parametrize(
    ("make", "size", "grid"),
    [
        (tv.resnet18, 64, (2, 2)),
        (tv.mobilenet_v3_small, 64, (2, 2)),
        (tv.convnext_tiny, 64, (2, 2)),
        (lambda: tv.vgg11(init_weights=False), 64, (2, 2)),  # not the 7 x 7 pooling layer
        (tv.densenet121, 64, (2, 2)),  # followed by an in-place ReLU
        (small_vit, 32, (4, 4)),  # tokens without the class token
        (lambda: Functional(named=True), 16, (14, 14)),
        (lambda: ImageClassifier(CustomResNet(width=2)), 32, (4, 4)),
    ],
    ids=["resnet18", "mobilenet_v3", "convnext", "vgg", "densenet", "vit", "functional", "ours"],
)
def test_the_last_layer_with_spatial_output_is_chosen(
    make: Callable[[], nn.Module], size: int, grid: tuple[int, int]
) -> None:
    model, images = make(), torch.randn(2, 3, size, size)
    maps = compute_cams(model, images, 3, method="layercam")
    assert maps.shape == (2, size, size)
    assert maps.max() == 1
    assert compute_cams(model, images, 3, method="layercam", raw=True).shape[1:] == grid


def test_vit_uses_the_last_layer_whose_patches_matter() -> None:
    vit = small_vit()
    images = torch.randn(2, 3, 32, 32)
    found = compute_cams(vit, images, 3, raw=True)
    named = compute_cams(
        vit, images, 3, raw=True, target_layers="encoder.layers.encoder_layer_1.ln_1"
    )
    assert torch.equal(found, named)
    reshaped = compute_cams(
        vit, images, 3, raw=True, target_layers="encoder.layers.encoder_layer_1.ln_1",
        reshape_transform=lambda x: x[:, 1:].reshape(len(x), 4, 4, -1).permute(0, 3, 1, 2),
    )  # fmt: skip
    assert torch.equal(found, reshaped)


def test_a_network_without_named_maps_gets_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"put an nn\.Identity\(\) behind the last one"):
        compute_cams(Functional(named=False), torch.randn(1, 3, 16, 16))


def test_a_layer_that_the_scores_do_not_depend_on() -> None:
    class Aside(TwoChannels):
        def __init__(self) -> None:
            super().__init__()
            self.aside = nn.Conv2d(1, 2, 1)

        def forward(self, images: Tensor) -> Tensor:
            self.aside(images)
            return super().forward(images)

    with pytest.raises(ValueError, match="do not depend on the output of layer 'aside'"):
        compute_cams(Aside(), IMAGE, target_layers=["aside"])


def test_an_in_place_operation_does_not_change_the_map() -> None:
    class InPlace(TwoChannels):
        def forward(self, images: Tensor) -> Tensor:
            return self.head(F.relu_(self.split(images)).mean((2, 3)))

    # activations (1, 2, 3, -4) and (-1, -2, -3, 4); gradients 0 where the ReLU is inactive
    raw = compute_cams(InPlace(), IMAGE, 1, method="hirescam", raw=True)
    assert torch.allclose(raw[0], CLASS_1)
    gradcam = compute_cams(InPlace(), IMAGE, 0, target_layers="split", raw=True)
    # the ReLU is active at three of four positions
    assert torch.allclose(gradcam[0], 3 / 16 * IMAGE[0, 0])


# -- models in every state --------------------------------------------------------------------


def test_frozen_low_precision_compiled_and_channels_last_models() -> None:
    model = CustomResNet(width=4)
    images = torch.randn(3, 3, 32, 32)
    plain = compute_cams(model, images, 1)
    assert torch.equal(compute_cams(torch.compile(model), images, 1), plain)
    inner = nn.Sequential(torch.compile(model))
    assert torch.equal(compute_cams(inner, images, 1, target_layers=model.residual3), plain)
    last = model.to(memory_format=torch.channels_last)
    assert torch.allclose(
        compute_cams(last, images.contiguous(memory_format=torch.channels_last), 1),
        plain,
        atol=1e-4,
    )
    assert torch.allclose(compute_cams(model.requires_grad_(False), images, 1), plain, atol=1e-4)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        low = compute_cams(model.to(dtype), images.to(dtype), 1)
        assert low.dtype == torch.float32
        assert next(model.parameters()).dtype == dtype
        assert (low - plain).abs().mean() < 0.05


def test_inference_mode_no_grad_and_autocast_around_it() -> None:
    model = CustomResNet(width=4)
    images = torch.randn(2, 3, 32, 32)
    plain = compute_cams(model, images, 1)
    with torch.inference_mode():
        inside = images * 1
        assert torch.equal(compute_cams(model, inside, 1), plain)
        made_here = CustomResNet(width=4)
        made_here.load_state_dict(model.state_dict())
        assert torch.equal(compute_cams(made_here, inside, 1), plain)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compute_cams(model, images, 1), plain)


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_and_the_random_state_are_left_unchanged(fail: bool) -> None:
    model = CustomResNet(width=4).train()
    model.layer2.eval()
    for number, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(number % 2 == 0)
        parameter.grad = torch.full_like(parameter, number)
    images = torch.randn(2, 3, 32, 32, requires_grad=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    if fail:
        model.register_forward_hook(lambda module, args, output: output.sum(0))
        with pytest.raises(ValueError, match="must return scores"):
            compute_cams(model, images)
    else:
        model.register_forward_hook(lambda module, args, output: output)
        compute_cams(model, images)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for number, parameter in enumerate(model.parameters()):
        assert parameter.requires_grad == (number % 2 == 0)
        assert torch.equal(parameter.grad, torch.full_like(parameter, number))
    assert images.grad is None
    assert sum(len(module._forward_hooks) for module in model.modules()) == 1
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    assert not torch.is_inference_mode_enabled()


# -- mistakes ---------------------------------------------------------------------------------


def test_bad_images_and_models() -> None:
    model = CustomResNet(width=4)
    with pytest.raises(ValueError, match="fails on a batch of shape"):
        compute_cams(model, torch.randn(1, 3, 16, 16))
    for layer, message in (
        ("residual4", r"called 'residual4'.*Close matches: residual3.*\(4 x 4\)"),
        ("head", r"'head' .* has no map.*Suitable ones: prep \(32 x 32\)"),
        ("pool", r"'pool' returns an output of shape \(1, 32, 1, 1\), of which no two axes"),
    ):
        with pytest.raises(ValueError, match=message):
            compute_cams(model, torch.randn(2, 3, 32, 32), target_layers=layer)

    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = CustomResNet(width=2)

        def forward(self, images: Tensor) -> Tensor:
            with torch.no_grad():
                return self.inner(images)

    with pytest.raises(ValueError, match="carry no gradient"):
        compute_cams(Cut(), torch.randn(1, 3, 32, 32))


def test_nothing_is_printed_and_no_warning_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in METHODS:
            compute_cams(CustomResNet(width=2), torch.randn(1, 3, 32, 32), method=method)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
