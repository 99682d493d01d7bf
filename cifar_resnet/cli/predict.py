"""Classify image files.

Each image is cropped to its central square and scaled to 32 x 32 pixels. The network always
predicts one of the ten classes of CIFAR-10, even if the image shows something else.
"""

from __future__ import annotations

import argparse
import json
import sys

from cifar_resnet.cli.networks import WEIGHTS_HELP, load_network
from cifar_resnet.cli.options import positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cifar-resnet predict`."""
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file")
    parser.add_argument("--weights", default="full", help=f"{WEIGHTS_HELP} (default: full)")
    parser.add_argument(
        "--top", type=positive, default=3, metavar="N", help="how many classes to list (default: 3)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def run(args: argparse.Namespace) -> int:
    """Classify the images; 1 if one of them could not be read."""
    import torch

    from cifar_resnet.cli.images import normalized, read_image
    from cifar_resnet.data.cifar10 import CLASSES

    network = load_network(args.weights)
    predictions, failed = [], False
    for path in args.images:
        try:
            image = normalized(read_image(path))
        except (ValueError, OSError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            failed = True
            continue
        with torch.inference_mode():
            probabilities = network(image)[0].exp()
        order = probabilities.argsort(descending=True, stable=True)[: args.top].tolist()
        top = [{"class": CLASSES[i], "probability": float(probabilities[i])} for i in order]
        predictions.append({"image": path, "top": top})
    if args.json:
        print(json.dumps(predictions, indent=1))
    else:
        width = max((len(prediction["image"]) for prediction in predictions), default=0)
        for prediction in predictions:
            columns = [f"{row['class']:<10} {row['probability']:6.1%}" for row in prediction["top"]]
            print(f"{prediction['image']:<{width}}  {'   '.join(columns)}")
    return int(failed)
