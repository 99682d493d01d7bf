"""Draw and list the test images that a network misclassifies.

Writes misclassified.png, confusion_matrix.png, calibration.png and errors.json, and with --compare
also comparison.png and comparison.json.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_resnet.cli import run_folder
from cifar_resnet.cli.networks import WEIGHTS_HELP, load_network
from cifar_resnet.cli.options import CommandError, add_data_dir, local_path, positive

if TYPE_CHECKING:
    from torch import nn


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cifar-resnet misclassified`."""
    add = parser.add_argument
    add("network", metavar="RUN|WEIGHTS", help=WEIGHTS_HELP)
    add("--n", type=positive, default=25, help="maximum number of errors to draw (default: 25)")
    add(
        "--sort", default="loss", choices=("loss", "confidence", "margin", "index", "random"),
        help="order of the errors (default: loss)",
    )  # fmt: skip
    add("--true", metavar="CLASS", help="only images of this class (default: all)")
    add("--pred", metavar="CLASS", help="only images predicted as this class (default: all)")
    add(
        "--cam", default="both", choices=("both", "predicted", "true", "contrast", "none"),
        help="class that the class activation maps explain; contrast: evidence for the predicted "
        "and against the true class (default: both)",
    )  # fmt: skip
    add("--method", default="gradcam", help="method of the maps (default: gradcam)")
    add(
        "--layer", action="append",
        help="layer of the maps; may be repeated (default: chosen automatically)",
    )  # fmt: skip
    add(
        "--compare", metavar="RUN|WEIGHTS",
        help="another network, whose errors on all classes are compared (default: none)",
    )  # fmt: skip
    add(
        "--output-dir", type=local_path,
        help="folder to write to (default: the folder of the run or file; for pretrained weights, "
        "the current folder)",
    )  # fmt: skip
    add_data_dir(parser)


def run(args: argparse.Namespace) -> int:
    """Find the errors, draw and list them."""
    from cifar_resnet import CIFAR10DataModule, DatasetError, compare_errors, show_error_comparison
    from cifar_resnet.data.cifar10 import CLASSES
    from cifar_resnet.data.class_names import class_index
    from cifar_resnet.misclassified.cams import CamOptions
    from cifar_resnet.misclassified.collector import ScanOptions
    from cifar_resnet.misclassified.figures import FigureOptions, draw_all
    from cifar_resnet.misclassified.scan import scan
    from cifar_resnet.plotting.saving import save_figures

    network = load_network(args.network)
    other = None if args.compare is None else load_network(args.compare)
    names = _names(args.network, args.compare)
    folder = args.output_dir or _folder_of(Path(args.network).expanduser())
    try:  # everything is checked before the network runs over the test set
        options = FigureOptions(
            n=args.n,
            scan=ScanOptions(sort_by=args.sort, true_class=args.true, pred_class=args.pred),
            cam=None if args.cam == "none" else args.cam,
            cams=CamOptions(args.method, args.layer),
        )
        all_classes = replace(options.scan, true_class=None, pred_class=None)
        draw_comparison = partial(
            show_error_comparison,
            cam=args.cam if args.cam == "true" else options.cam and "predicted",
            method=args.method,
            target_layers=[args.layer] * 2,
        )
        class_index(args.true, CLASSES, "true_class")
        class_index(args.pred, CLASSES, "pred_class")
        for each in (network, other):
            if each is not None:
                _check_layers(args.layer or [], each)
    except ValueError as error:
        raise CommandError(str(error), code=2) from error
    try:
        data = CIFAR10DataModule(args.data_dir, batch_size=500)
        # All errors are found, so that all of them can be listed; the figure draws the first n.
        everything = scan(network, data, None, all_classes, show_progress=True)
        found = everything.where(true_class=args.true, pred_class=args.pred)
        figures = draw_all(network, found, options)
        save_figures(figures, folder)
        run_folder.write_json(folder / "errors.json", found.to_records())
        if other is not None:
            others = scan(other, data, None, all_classes, show_progress=True)
            comparison = compare_errors(everything, others, names=names)
            compared = draw_comparison(comparison, models=(network, other))
            save_figures({"comparison": compared}, folder)
            content = comparison.to_dict() | {"errors": comparison.to_records()}
            run_folder.write_json(folder / "comparison.json", content)
    except (ValueError, DatasetError, OSError) as error:
        raise CommandError(str(error)) from error

    accuracy = f"{100 * found.accuracy:.2f} %"
    print(f"{found.errors:,} errors in {found.total:,} images, accuracy {accuracy}")
    print(f"expected calibration error {100 * found.calibration.expected_error:.2f} %\n")
    print("true class        predicted   errors  of its images")
    for pair in found.most_confused(5):
        print(
            f"{pair.true:<17} {pair.predicted:<11} {pair.errors:>6}  {100 * pair.fraction:>12.1f} %"
        )
    print(
        f"\nIn {folder}: {', '.join(f'{name}.png' for name in figures)}, and errors.json with "
        f"{len(found):,} errors"
    )
    if other is not None:
        print(f"\n{comparison}\n\nIn {folder}: comparison.png and comparison.json")
    return 0


def _names(network: str, other: str | None) -> tuple[str, str]:
    """Return two different names for the networks to compare, as short as possible."""
    if other is None:
        return "", ""
    if network == other:
        raise CommandError(f"--compare must name another network, but got {other!r}, too.", code=2)
    first, second = (Path(source).expanduser().resolve().name for source in (network, other))
    return (first, second) if first != second else (network, other)


def _check_layers(layers: list[str], network: nn.Module) -> None:
    """Raise for a layer that the network does not have."""
    names = [name for name, _ in network.named_modules() if name]
    for layer in layers:
        if layer not in names:
            raise ValueError(f"--layer must be one of {', '.join(names)}, but got {layer!r}.")


def _folder_of(network: Path) -> Path:
    """Return the folder of the run or file, or the current folder for pretrained weights."""
    if network.is_dir():
        return network
    return network.parent if network.is_file() else Path()
