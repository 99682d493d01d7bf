"""What a trained network gets wrong on the CIFAR-10 test set, and where it looked.

python examples/misclassified.py runs/NAME                       # the 25 errors of highest loss
python examples/misclassified.py runs/NAME --true cat --pred dog --method hirescam
python examples/misclassified.py runs/NAME --layer network.layer3 --cam contrast
"""

from __future__ import annotations

import argparse
import json
import pickle
import sys
from pathlib import Path

from cifar_resnet import (
    CustomResNet,
    DatasetError,
    ImageClassifier,
    Recipe,
    find_misclassified,
    show_calibration,
    show_confusion_matrix,
    show_misclassified,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder that train_24.py has left")
    parser.add_argument("--n", type=int, default=25, help="errors to draw; default 25")
    parser.add_argument(
        "--sort", default="loss", help="loss (default), confidence, margin, index or random"
    )
    parser.add_argument("--true", metavar="CLASS", help="only images of this class")
    parser.add_argument("--pred", metavar="CLASS", help="only images taken for this class")
    parser.add_argument(
        "--cam", default="both", help="both (default), predicted, true, contrast or none"
    )
    parser.add_argument("--method", default="gradcam", help="gradcam (default), hirescam, ...")
    parser.add_argument("--layer", action="append", help="layer to look at; may be given again")
    parser.add_argument("--output-dir", type=Path, help="where to save; default: the run's folder")
    args = parser.parse_args()
    folder = args.output_dir or args.run

    for name in ("last.ckpt", "arguments.json"):
        if not (args.run / name).is_file():
            sys.exit(f"{args.run} is no run of train_24.py: it holds no {name}.")
    run = json.loads((args.run / "arguments.json").read_text())
    options = Recipe.preset(run["recipe"]).network_options()
    network = CustomResNet(run["width"], **options)
    try:
        model = ImageClassifier.load_from_checkpoint(
            args.run / "last.ckpt", network=network, map_location="cpu", weights_only=True
        )
    except (pickle.UnpicklingError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        sys.exit(f"{args.run / 'last.ckpt'} is no checkpoint of train_24.py: {reason}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # Every error is found, so that all of them can be listed; the figure draws the first n.
        found = find_misclassified(
            model, sort_by=args.sort, true_class=args.true, pred_class=args.pred
        )
        show_misclassified(
            model,
            found,
            n=args.n,
            cam=None if args.cam == "none" else args.cam,
            method=args.method,
            target_layers=args.layer,
            save_path=folder / "misclassified.png",
        )
    except (ValueError, DatasetError, OSError) as error:
        sys.exit(str(error))
    show_confusion_matrix(found, save_path=folder / "confusion_matrix.png")
    show_calibration(found, save_path=folder / "calibration.png")
    (folder / "errors.json").write_text(json.dumps(found.to_records(), indent=1) + "\n")

    print(f"{found.errors:,} errors in {found.total:,} images, {100 * found.accuracy:.2f} % right")
    print(f"expected calibration error {100 * found.calibration.expected_error:.2f} %\n")
    print("most confused     taken for   errors  of its images")
    for pair in found.most_confused(5):
        print(f"{pair.true:<17} {pair.predicted:<11} {pair.errors:>6}  {100 * pair.share:>12.1f} %")
    print(
        f"\nIn {folder}: misclassified.png, confusion_matrix.png, calibration.png, and errors.json "
        f"with {len(found):,} errors"
    )


if __name__ == "__main__":
    main()
