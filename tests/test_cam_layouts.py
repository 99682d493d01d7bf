"""Test the maps of layers with tokens or with the channels last against an independent Grad-CAM."""

from collections.abc import Callable

import pytest
import torch
import torchvision.models as tv
from helpers import small_vit
from torch import Tensor, nn

from cifar_resnet import compute_cams


def small_swin() -> nn.Module:
    torch.manual_seed(0)
    return tv.SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4],
        num_classes=10,
    )  # fmt: skip


def gradcam(
    model: nn.Module, layer: nn.Module, images: Tensor, to_map: Callable[[Tensor], Tensor]
) -> Tensor:
    """Compute the raw Grad-CAM (N, height, width) of class 3."""
    outputs = []

    def keep(module: nn.Module, args: object, output: Tensor) -> Tensor:
        outputs.append(output)
        return output.clone()

    handle = layer.register_forward_hook(keep)
    scores = model.eval()(images.clone().requires_grad_())
    handle.remove()
    values = to_map(outputs[-1])
    grad = to_map(torch.autograd.grad(scores[:, 3].sum(), outputs[-1])[0])
    return (grad.mean((2, 3), keepdim=True) * values).sum(1).detach()


def tokens_to_grid(x: Tensor) -> Tensor:
    return x[:, 1:].transpose(1, 2).reshape(x.size(0), x.size(2), 4, 4)


def channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("make", "name", "reshape"),
    [
        (small_vit, "encoder.layers.encoder_layer_1.ln_1", tokens_to_grid),
        (small_swin, "features.3", channels_first),
    ],
    ids=["vit", "swin"],
)
def test_a_reshape_transform_converts_the_target_layers_only(
    make: Callable[[], nn.Module], name: str, reshape: Callable[[Tensor], Tensor]
) -> None:
    model, images = make(), torch.randn(2, 3, 32, 32)
    shapes = []

    def watched(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape)[1:])
        return reshape(x)

    raw = compute_cams(model, images, 3, target_layers=name, reshape_transform=watched, raw=True)
    torch.testing.assert_close(raw, gradcam(model, model.get_submodule(name), images, reshape))
    assert len(set(shapes)) == 1  # of the requested layer
    # without target_layers, the layers that it cannot convert are left out
    assert compute_cams(model, images, 3, reshape_transform=reshape).shape == (2, 32, 32)


@pytest.mark.parametrize(
    ("reshape", "message"),
    [
        (tokens_to_grid, r"fails on the output of layer 'conv_proj', whose shape is \(1, 16, 4, 4"),
        (lambda x: x.flatten(1), r"returns \(1, 256\) for the output \(1, 16, 4, 4\) of layer"),
        (lambda x: x[0][None, None], r"but returns \(1, 1, 16, 4, 4\)"),
    ],
)
def test_a_reshape_transform_that_does_not_fit(
    reshape: Callable[[Tensor], Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compute_cams(
            small_vit(), torch.randn(1, 3, 32, 32), 3, target_layers="conv_proj",
            reshape_transform=reshape,
        )  # fmt: skip
