"""Draw the test images that a network misclassifies, and list them.

Writes misclassified.png, confusion_matrix.png, calibration.png and errors.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cifar_resnet.cli import run_folder
from cifar_resnet.cli.networks import WEIGHTS_HELP, load_network
from cifar_resnet.cli.options import CommandError, add_data_dir, positive


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
        help="class that the maps explain (default: both)",
    )  # fmt: skip
    add("--method", default="gradcam", help="method of the maps (default: gradcam)")
    add(
        "--layer", action="append",
        help="layer of the maps; may be repeated (default: chosen automatically)",
    )  # fmt: skip
    add(
        "--output-dir", type=Path,
        help="folder to write to (default: that of the run or file, else the current folder)",
    )  # fmt: skip
    add_data_dir(parser)


def run(args: argparse.Namespace) -> int:
    """Find the errors, draw and list them."""
    from cifar_resnet import (
        CIFAR10DataModule,
        DatasetError,
        find_misclassified,
        show_calibration,
        show_confusion_matrix,
        show_misclassified,
    )
    from cifar_resnet.plotting.saving import save_figure

    network = load_network(args.network)
    folder = args.output_dir or _folder_of(Path(args.network).expanduser())
    try:
        data = CIFAR10DataModule(args.data_dir, batch_size=500)
        # All errors are found, so that all of them can be listed; the figure draws the first n.
        found = find_misclassified(
            network, data, sort_by=args.sort, true_class=args.true, pred_class=args.pred
        )
        cam = None if args.cam == "none" else args.cam
        figures = {
            "misclassified": show_misclassified(
                network, found, n=args.n, cam=cam, method=args.method, target_layers=args.layer
            ),
            "confusion_matrix": show_confusion_matrix(found),
            "calibration": show_calibration(found),
        }
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            save_figure(figure, folder / f"{name}.png", dpi=150)
        run_folder.write_json(folder / "errors.json", found.to_records())
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
    return 0


def _folder_of(network: Path) -> Path:
    """Return the folder of the run or file, or the current folder for shipped weights."""
    if network.is_dir():
        return network
    return network.parent if network.is_file() else Path()
