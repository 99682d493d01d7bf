"""Test that an installed package is complete: pretrained networks, a figure and a receptive field.

It needs neither data nor a network connection. Run it from a folder outside the checkout.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

import cifar_resnet
from cifar_resnet import CustomResNet, pretrained_weights, receptive_field, show_misclassified

assert pretrained_weights(), "the package contains no pretrained weights"
images = torch.randn(20, 3, 32, 32, generator=torch.Generator().manual_seed(0))
for weights in pretrained_weights():
    with torch.inference_mode():
        probabilities = CustomResNet.from_pretrained(weights.name)(images).exp()
    assert torch.allclose(probabilities.sum(1), torch.ones(20), atol=1e-5), weights.name
    # a network with random weights is far less confident
    assert probabilities.max() > 0.25, weights.name

model = CustomResNet.from_pretrained("quarter")
assert receptive_field(model, (1, 3, 32, 32)).output.size == (88, 88)
pixels = images.sigmoid()
labels = (model(pixels).argmax(1) + 1) % 10  # so that every prediction is wrong
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "errors.png"
    show_misclassified(model, TensorDataset(pixels, labels), n=4).savefig(path)
    assert path.read_bytes()[:4] == b"\x89PNG"
print(f"cifar-resnet {cifar_resnet.__version__} in {Path(cifar_resnet.__file__).parent} works")
