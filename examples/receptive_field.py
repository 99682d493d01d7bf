"""Print the receptive fields of CustomResNet and of a classification network of torchvision.

python examples/receptive_field.py                               # both tables
python examples/receptive_field.py --model resnet50 --size 224 --check
python examples/receptive_field.py --figures receptive_fields    # drawn on a test image
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torchvision import models

from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    ReceptiveFields,
    check_receptive_field,
    receptive_field,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18", choices=models.list_models(module=models))
    parser.add_argument("--size", type=int, default=224, help="height and width of its input")
    parser.add_argument("--all", action="store_true", help="also list ReLU, BatchNorm, ...")
    parser.add_argument("--check", action="store_true", help="verify with the NaN probe")
    parser.add_argument("--figures", type=Path, metavar="DIR", help="also draw figures")
    parser.add_argument("--data-dir", help="folder of CIFAR-10")
    args = parser.parse_args()

    network = CustomResNet()
    fields = receptive_field(network, (1, 3, 32, 32))
    print("CustomResNet, input 32 x 32\n")
    print(fields.table(every_layer=args.all))
    other, shape = models.get_model(args.model, weights=None), (1, 3, args.size, args.size)
    print(f"\n{args.model} of torchvision, input {args.size} x {args.size}\n")
    print(receptive_field(other, shape).table(every_layer=args.all))
    if args.check:
        print("\nCustomResNet:", check_receptive_field(network, (1, 3, 32, 32)))
        print(f"{args.model}:", check_receptive_field(other, shape, positions=9))
    if args.figures:
        draw(fields, args.figures, args.data_dir)
        print(f"\nFigures are in {args.figures}.")


def draw(fields: ReceptiveFields, folder: Path, data_dir: str | None) -> None:
    """Draw the fields of two units on the first test image, and the growth over depth."""
    folder.mkdir(parents=True, exist_ok=True)
    data = CIFAR10DataModule(data_dir, device="cpu")
    data.prepare_data()
    data.setup("test")
    images, _ = next(iter(data.test_dataloader()))
    image = data.denormalize(images[0].float()).clamp(0, 1)
    fields.plot(image, "residual1", [(3, 3), (12, 15)]).savefig(folder / "fields.png", dpi=120)
    fields.plot_growth().savefig(folder / "growth.png", dpi=120)


if __name__ == "__main__":
    with torch.no_grad():
        main()
