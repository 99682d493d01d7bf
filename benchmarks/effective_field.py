"""Measure effective receptive fields of CustomResNet, before and after training.

    python benchmarks/effective_field.py [--weights quarter] [--data-dir DATA] [--images 512]

WEIGHTS is an argument of CustomResNet.from_pretrained. Writes sigma, the side of the square that
contains 95 % of the mass, and the theoretical size for the middle unit of some layers to
benchmarks/results/effective_field.jsonl: a line for the trained network, and one for each of three
untrained networks.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, append, machine

from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    effective_receptive_field,
    receptive_field,
)

LAYERS = ("residual1", "layer2", "layer3", "residual3")


def measure(model: CustomResNet, images: torch.Tensor) -> dict[str, Any]:
    theory = receptive_field(model, (1, 3, 32, 32))
    layers = {}
    for layer in LAYERS:
        field = effective_receptive_field(model, images, layer=layer)
        layers[layer] = {
            "unit": field.unit,
            "size": theory[layer].size,
            "sigma": [round(sigma, 3) for sigma in field.sigma],
            "side_95": field.side(0.95),
        }
    return layers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default="quarter", help="name or path of the weights")
    parser.add_argument("--data-dir")
    parser.add_argument("--images", type=int, default=512, help="number of test images")
    parser.add_argument("--results", type=Path, default=RESULTS / "effective_field.jsonl")
    args = parser.parse_args()

    data = CIFAR10DataModule(args.data_dir, batch_size=args.images, device="cpu")
    data.prepare_data()
    data.setup("test")
    images = next(iter(data.test_dataloader()))[0].float()
    trained = CustomResNet.from_pretrained(args.weights)
    models = [(args.weights, trained)]
    for seed in range(3):
        torch.manual_seed(seed)
        models.append((f"seed {seed}", CustomResNet(**trained.config())))
    for name, model in models:
        row = {
            "state": "trained" if model is trained else "untrained",
            "network": name,
            "width": model.width,
            "images": len(images),
            "layers": measure(model, images),
        }
        append(args.results, row | machine())
        for layer, numbers in row["layers"].items():
            print(f"{name:12} {layer:10} {numbers}")


if __name__ == "__main__":
    main()
