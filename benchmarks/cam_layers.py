"""Compare the default maps of 38 classifiers with Grad-CAM, and print a table of their layers.

The networks have random weights. `python benchmarks/cam_layers.py` prints the
table of the guide and appends the correlations to results/cam_layers.jsonl. It needs timm.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from machine import RESULTS, append, machine
from torch import Tensor, nn

from cifar_resnet.misclassified.cams import CamOptions, cams_and_layers

Reshape = Callable[[Tensor], Tensor]


def grid(side: int, special: int = 0) -> Reshape:
    """Return the transform of square tokens that the documentation of grad-cam shows."""

    def transform(x: Tensor) -> Tensor:
        return x[:, special:].reshape(len(x), side, side, -1).permute(0, 3, 1, 2)

    return transform


def channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


class Family(NamedTuple):
    """A network, its usual layer for maps, and the conversion of its output to maps."""

    library: str
    name: str
    layer: str
    reshape: Reshape | None = None
    size: int = 224


FAMILIES = [
    Family("torchvision", "alexnet", "features"),
    Family("torchvision", "convnext_tiny", "features"),
    Family("torchvision", "densenet121", "features"),
    Family("torchvision", "efficientnet_b0", "features"),
    Family("torchvision", "googlenet", "inception5b"),
    Family("torchvision", "inception_v3", "Mixed_7c", size=299),
    Family("torchvision", "maxvit_t", "blocks.3"),
    Family("torchvision", "mnasnet0_5", "layers"),
    Family("torchvision", "mobilenet_v2", "features"),
    Family("torchvision", "mobilenet_v3_small", "features"),
    Family("torchvision", "regnet_y_400mf", "trunk_output"),
    Family("torchvision", "resnet18", "layer4"),
    Family("torchvision", "shufflenet_v2_x0_5", "conv5"),
    Family("torchvision", "squeezenet1_0", "classifier.2"),
    Family("torchvision", "swin_t", "norm", channels_last),
    Family("torchvision", "vgg11", "features"),
    Family("torchvision", "vit_b_32", "encoder.layers.encoder_layer_11.ln_1", grid(7, 1)),
    Family("timm", "beit_base_patch16_224", "norm", grid(14, 1)),
    Family("timm", "convnext_atto", "stages"),
    Family("timm", "deit_tiny_distilled_patch16_224", "blocks.11.norm1", grid(14, 2)),
    Family("timm", "efficientformer_l1", "norm", grid(7)),
    Family("timm", "efficientnet_lite0", "bn2"),
    Family("timm", "eva02_tiny_patch14_224", "norm", grid(16, 1)),
    Family("timm", "focalnet_tiny_srf", "norm"),
    Family("timm", "ghostnet_100", "blocks"),
    Family("timm", "hrnet_w18_small", "final_layer"),
    Family("timm", "maxvit_tiny_rw_224", "norm"),
    Family("timm", "mixer_s32_224", "norm", grid(7)),
    Family("timm", "mobilevit_xxs", "final_conv", size=256),
    Family("timm", "mvitv2_tiny", "norm", grid(7)),
    Family("timm", "nfnet_l0", "final_act"),
    Family("timm", "pit_ti_224", "transformers.2.blocks.3.norm1", grid(7, 1)),
    Family("timm", "poolformer_s12", "stages"),
    Family("timm", "pvt_v2_b0", "stages"),
    Family("timm", "resmlp_12_224", "norm", grid(14)),
    Family("timm", "resnet26", "layer4"),
    Family("timm", "swin_tiny_patch4_window7_224", "norm", channels_last),
    Family("timm", "vit_tiny_patch16_224", "blocks.11.norm1", grid(14, 1)),
]


def make(family: Family) -> nn.Module:
    """Return a network with random weights in evaluation mode."""
    torch.manual_seed(0)
    model: nn.Module
    if family.library == "timm":
        import timm

        model = timm.create_model(family.name)
    elif family.name in ("googlenet", "inception_v3"):
        model = torchvision.models.get_model(family.name, init_weights=False)
    else:
        model = torchvision.models.get_model(family.name)
    for parameter in model.parameters():
        if parameter.dim() == 2 and not parameter.any():  # the last layer of vision transformers
            nn.init.trunc_normal_(parameter, std=0.02)
    return model.eval()


class Row(NamedTuple):
    """The layer that is chosen by default, its grid, and the correlation of the map."""

    layer: str
    height: int
    width: int
    correlation: float


def grad_cam(family: Family, model: nn.Module, image: Tensor, number: int) -> Tensor:
    """Compute Grad-CAM (Selvaraju et al., equations 1 and 2) of the usual layer, at the image size.

    The layer's output is copied: a following in-place operation, as in DenseNet, must not change
    it.
    """
    outputs = []

    def keep(module: nn.Module, args: object, output: Tensor) -> Tensor:
        outputs.append(output)
        return output.clone()

    with model.get_submodule(family.layer).register_forward_hook(keep):
        score = model(image.clone().requires_grad_())[0, number]
    (grad,) = torch.autograd.grad(score, outputs)
    to_map = family.reshape or (lambda x: x)
    weights = to_map(grad).mean((2, 3), keepdim=True)
    maps = (weights * to_map(outputs[0])).sum(1, keepdim=True).relu().detach()
    return F.interpolate(maps, image.shape[2:], mode="bilinear")[:, 0]


def compare(family: Family) -> Row:
    """Compare the default map with Grad-CAM of the usual layer, with its `reshape`."""
    model = make(family)
    image = torch.rand(1, 3, family.size, family.size) * 2 - 1
    for number in range(10):
        ours, layers = cams_and_layers(model, image, [number], None, CamOptions(), None)
        if ours.std() > 0:  # there is evidence for the class
            break
    theirs = grad_cam(family, model, image, number)
    correlation = float(np.corrcoef(ours.flatten(), theirs.flatten())[0, 1])
    return Row(layers[0].name, *layers[0].grid, correlation)


def line(family: Family, row: Row) -> str:
    """Return a line of the table."""
    grid = f"{row.height} x {row.width}"
    return f"| `{family.name}` | {family.library} | `{row.layer}` | {grid} |"


if __name__ == "__main__":
    print("| network | library | layer | grid |", "| --- | --- | --- | ---: |", sep="\n")
    for each in FAMILIES:
        row = compare(each)
        print(line(each, row), flush=True)
        result: dict[str, Any] = {
            "benchmark": "default layer",
            "library": each.library,
            "network": each.name,
        }
        result |= {"usual_layer": each.layer, **row._asdict(), "seed": 0, "runs": 1}
        result |= {"library_version": version(each.library), **machine()}
        append(RESULTS / "cam_layers.jsonl", result)
