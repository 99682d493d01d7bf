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
    from cifar_resnet import predict

    network = load_network(args.weights)
    predictions, failed = [], False
    for path in args.images:
        try:
            (top,) = predict(network, path).top(args.top)
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            failed = True
            continue
        rows = [{"class": name, "probability": probability} for name, probability in top]
        predictions.append({"image": path, "top": rows})
    if args.json:
        print(json.dumps(predictions, indent=1))
    else:
        width = max((len(prediction["image"]) for prediction in predictions), default=0)
        for prediction in predictions:
            columns = [f"{row['class']:<10} {row['probability']:6.1%}" for row in prediction["top"]]
            print(f"{prediction['image']:<{width}}  {'   '.join(columns)}")
    return int(failed)
