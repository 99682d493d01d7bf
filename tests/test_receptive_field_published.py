"""Receptive fields equal those that were published for well-known networks.

The values are those of Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural
Networks" (Distill 2019), for the TF-Slim versions of the networks, at the last layer before global
pooling.
"""

from typing import Any

import pytest
from torch import nn
from torchvision import models

from cifar_resnet import receptive_field

SIZE = (1, 3, 224, 224)


def strides_at_the_end(name: str) -> nn.Module:
    """Return a ResNet whose stages reduce the map in their last block, as in TF-Slim.

    In torchvision, they do so in their first block.
    """
    model: Any = models.get_model(name, weights=None)
    for stage in (model.layer2, model.layer3, model.layer4):
        stage[0].conv2.stride = stage[0].downsample[0].stride = (1, 1)
    for stage in (model.layer1, model.layer2, model.layer3):
        stage[-1].conv2.stride = (2, 2)
        stage[-1].downsample = nn.MaxPool2d(1, stride=2)
    return model


@pytest.mark.parametrize(("name", "size"), [("alexnet", 195), ("vgg16", 212)])
def test_plain_networks(name: str, size: int) -> None:
    output = receptive_field(models.get_model(name, weights=None).features, SIZE).output
    assert (output.size, output.jump) == ((size, size), (32, 32))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet50", 483),
        pytest.param("resnet101", 1027, marks=pytest.mark.slow),
        pytest.param("resnet152", 1507, marks=pytest.mark.slow),
    ],
)
def test_resnets(name: str, size: int) -> None:
    last = receptive_field(strides_at_the_end(name), SIZE).blocks["layer4"]
    assert (last.size, last.jump) == ((size, size), (32, 32))


@pytest.mark.slow
def test_inception_v3() -> None:
    model = models.inception_v3(weights=None, init_weights=False)
    assert receptive_field(model, (1, 3, 299, 299)).blocks["Mixed_7c"].size == (1311, 1311)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layer", "size"),
    [
        ("inception_v4", "features", 2071),
        ("inception_resnet_v2", "conv2d_7b", 3039),
        ("mobilenetv1_100", "blocks", 315),
    ],
)
def test_networks_of_timm(name: str, layer: str, size: int) -> None:
    model = pytest.importorskip("timm").create_model(name)
    fields = receptive_field(model, (1, *model.pretrained_cfg["input_size"]))
    assert fields.blocks[layer].size == (size, size)
