"""Test the warning about images that are not normalized for the weights of the package."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from cifar_resnet import CIFAR10DataModule, CustomResNet, ImageClassifier, find_misclassified
from cifar_resnet.data import cifar10
from cifar_resnet.data.formats import Arrays


class Normalizing(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (cifar10.MEAN, cifar10.STD))
        return self.network((images - mean) / std)


@pytest.fixture(scope="module")
def pixels(arrays: Arrays) -> Tensor:
    return torch.from_numpy(arrays.test_images[:40]).permute(0, 3, 1, 2).contiguous()


@pytest.fixture
def labels(arrays: Arrays) -> Tensor:
    return torch.from_numpy(arrays.test_labels[:40]).long()


@pytest.mark.parametrize(("scale", "shown"), [(255, "0.00 to 1.00"), (1, "0.00 to 255.00")])
@pytest.mark.parametrize("name", ["quarter", "quarter-best"])
def test_images_that_are_not_normalized_are_noticed(
    pixels: Tensor, labels: Tensor, scale: int, shown: str, name: str
) -> None:
    data = TensorDataset(pixels[:20] / scale, labels[:20])
    model = CustomResNet.from_pretrained(name)
    options = {"mean": 0.0, "std": 1.0}
    with pytest.warns(
        UserWarning, match=rf"weights '{name}' .* {shown}.*\(0\.4914, 0\.4822"
    ) as all_:
        find_misclassified(model, data, batch_size=5, **options)
    assert len(all_) == 1  # for the first batch
    assert not model._forward_pre_hooks
    for wrapped in (ImageClassifier(model), nn.Sequential(copy.deepcopy(model)), model.bfloat16()):
        with pytest.warns(UserWarning, match="trained on normalized images"):
            find_misclassified(wrapped, data, **options)


def test_nothing_is_said_about_other_images_and_networks(pixels: Tensor, labels: Tensor) -> None:
    model = CustomResNet.from_pretrained("quarter")
    in_unit_range = TensorDataset(pixels / 255, labels)
    own = CustomResNet(16)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.head.weight.mul_(1.01)
    normalize = CIFAR10DataModule.default_transforms().transforms[-1]
    normalized = TensorDataset(normalize(pixels / 255), labels)
    with warnings.catch_warnings(action="error"):
        for network in (own, changed, Normalizing(model)):
            find_misclassified(network, in_unit_range)
        for size in (1, 40):  # also for each image on its own
            find_misclassified(
                model, normalized, batch_size=size, mean=cifar10.MEAN, std=cifar10.STD
            )
