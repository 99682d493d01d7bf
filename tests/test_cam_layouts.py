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


class Net(nn.Module):
    """Scores from the mean of an output `layer`, which `arrange` makes of maps (N, 12, 4, 8)."""

    def __init__(self, arrange: Callable[[Tensor], Tensor], channels: int = 12) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 4, 4), nn.Tanh())
        self.arrange = arrange
        self.layer = nn.Identity()
        self.head = nn.LazyLinear(10)
        self(torch.zeros(2, 3, 16, 32))

    def forward(self, x: Tensor) -> Tensor:
        arranged = self.layer(self.arrange(self.stem(x)))
        images = next(axis for axis, size in enumerate(arranged.shape) if size == len(x))
        return self.head(arranged.movedim(images, 0).flatten(1))


def with_special(tokens: Tensor, before: int, after: int = 0) -> Tensor:
    """Add tokens that depend on all others to tokens (N, T, C)."""
    mean = tokens.mean(1, keepdim=True)
    return torch.cat([mean.repeat(1, before, 1), tokens, mean.repeat(1, after, 1)], 1)


def as_tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def from_tokens(x: Tensor) -> Tensor:
    return x.transpose(1, 2).unflatten(2, (4, 8))


LAYOUTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "channels first": (lambda x: x.exp2(), lambda x: x),
    "channels last": (lambda x: x.permute(0, 2, 3, 1), lambda x: x.permute(0, 3, 1, 2)),
    "columns first": (lambda x: x.permute(0, 1, 3, 2), lambda x: x.permute(0, 1, 3, 2)),
    "one channel": (lambda x: x.sum(1).exp2(), lambda x: x[:, None]),
    "heads of maps": (lambda x: x.unflatten(1, (3, 4)), lambda x: x.flatten(1, 2)),
    "tokens": (as_tokens, from_tokens),
    "tokens last": (lambda x: x.flatten(2), lambda x: x.unflatten(2, (4, 8))),
    "class token": (lambda x: with_special(as_tokens(x), 1), lambda x: from_tokens(x[:, 1:])),
    "registers": (lambda x: with_special(as_tokens(x), 5), lambda x: from_tokens(x[:, 5:])),
    "tokens behind": (lambda x: with_special(as_tokens(x), 0, 2), lambda x: from_tokens(x[:, :-2])),
    "images second": (
        lambda x: with_special(as_tokens(x), 1).transpose(0, 1),
        lambda x: from_tokens(x[1:].transpose(0, 1)),
    ),
    "heads": (
        lambda x: with_special(as_tokens(x), 1).unflatten(2, (3, 4)).transpose(1, 2),
        lambda x: from_tokens(x[:, :, 1:].transpose(1, 2).flatten(2)),
    ),
}


@pytest.mark.parametrize(("arrange", "to_map"), LAYOUTS.values(), ids=[*LAYOUTS])
def test_rows_and_columns_are_found_in_any_layout(
    arrange: Callable[[Tensor], Tensor], to_map: Callable[[Tensor], Tensor]
) -> None:
    model, images = Net(arrange), torch.randn(2, 3, 16, 32)
    raw = compute_cams(model, images, 3, target_layers="layer", raw=True)
    torch.testing.assert_close(raw, gradcam(model, model.layer, images, to_map))
    assert torch.equal(compute_cams(model, images, 3, raw=True), raw)  # the last layer


UNCLEAR: dict[str, Callable[[Tensor], Tensor]] = {
    "attention": lambda x: (as_tokens(x) @ x.flatten(2)).softmax(2)[:, None].repeat(1, 2, 1, 1),
    "windows": lambda x: x.unflatten(3, (2, 4)).permute(0, 3, 2, 4, 1).flatten(0, 1),
    "mirrored": lambda x: x.flip(3) + 0,
    "shuffled": lambda x: as_tokens(x)[:, torch.randperm(32, generator=torch.Generator())],
    "without places": lambda x: x.mean((2, 3), keepdim=True) * torch.linspace(1, 2, 8),
}


@pytest.mark.parametrize("arrange", UNCLEAR.values(), ids=[*UNCLEAR])
def test_a_layout_that_is_not_clear_is_refused(arrange: Callable[[Tensor], Tensor]) -> None:
    class Pooled(Net):
        def forward(self, x: Tensor) -> Tensor:
            arranged = self.layer(self.arrange(self.stem(x)))
            return self.head(arranged.reshape(len(x), 8, -1).mean(2))

    model, images = Pooled(arrange), torch.randn(2, 3, 16, 32)
    with pytest.raises(ValueError, match=r"'layer' returns .* no axis of tokens.*stem \(4 x 8\)"):
        compute_cams(model, images, 3, target_layers="layer")
    # the message is a remedy
    compute_cams(model, images, 3, target_layers="stem")


def test_normalization_over_the_channels_last() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 48, 4, 4)
            self.norm = nn.LayerNorm(48)
            self.head = nn.Linear(48, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.conv(x).permute(0, 2, 3, 1)).mean((1, 2)))

    torch.manual_seed(0)
    model, images = Block(), torch.randn(2, 3, 32, 32)
    raw = compute_cams(model, images, 3, target_layers="norm", raw=True)
    assert raw.shape == (2, 8, 8)  # not 8 x 48
    torch.testing.assert_close(raw, gradcam(model, model.norm, images, channels_first))


def test_a_layer_with_several_outputs_has_the_map_of_the_first_one() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, None]:
            return x.sin(), None

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.pair, self.head = nn.Conv2d(3, 8, 4, 4), Pair(), nn.Linear(8, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pair(self.stem(x))[0].mean((2, 3)))

    torch.manual_seed(0)
    model, images = Classifier(), torch.randn(2, 3, 16, 16)
    inputs = model.stem(images).detach().sin()
    expected = (model.head.weight[3][:, None, None] * inputs / 16).sum(1)
    raw = compute_cams(model, images, 3, target_layers="pair", raw=True)
    torch.testing.assert_close(raw, expected.detach())


def test_last_weights_of_zero_leave_no_evidence() -> None:
    vit = small_vit()
    nn.init.zeros_(vit.heads.head.weight)
    with pytest.raises(ValueError, match="one of 0, in every layer.*load trained weights"):
        compute_cams(vit, torch.randn(1, 3, 32, 32), 3)


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
