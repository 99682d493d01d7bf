"""Compare recipes over seeds: is a change better, and how certain is that?

  cifar-resnet compare muon best --seeds 5 --width 16
  cifar-resnet compare muon "muon label_smoothing=0.2" --seeds 20 --sequential
  cifar-resnet compare --from benchmarks/results/accuracy.jsonl

The first arm is the one that the others are compared with. Finished runs are kept in a folder, so
that the same command continues after an interruption; several processes and machines may share it.
"""

from __future__ import annotations

import argparse
import logging
from typing import TYPE_CHECKING, Any

from cifar_resnet.cli.options import (
    CommandError,
    add_data_dir,
    local_path,
    non_negative,
    positive,
)

if TYPE_CHECKING:
    from cifar_resnet import Comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cifar-resnet compare`."""
    add = parser.add_argument
    add(
        "arms", nargs="*", metavar="ARM",
        help="a recipe, optionally with changes in quotes: muon, 'muon label_smoothing=0.2', "
        "'best width=32', 'muon mix=mixup'",
    )  # fmt: skip
    add(
        "--seeds", type=_seeds, metavar="N|A-B",
        help="number of seeds, or the seeds from A to B (default: 5)",
    )  # fmt: skip
    add("--width", type=positive, help="channels of the first block (default: 16)")
    add("--epochs", type=positive, help="number of epochs (default: 24)")
    add(
        "--results", type=local_path, metavar="FOLDER",
        help="folder of the results (default: comparisons/ARMS-widthW-epochsE)",
    )  # fmt: skip
    add(
        "--final", action="store_true",
        help="train on all training images and evaluate on the test set (default: on 5,000 "
        "held-out training images)",
    )  # fmt: skip
    add(
        "--sequential", action="store_true",
        help="look after each seed, and stop when the result is clear; --seeds is the maximum",
    )  # fmt: skip
    add(
        "--metric", help="metric that decides, such as acc, acc_six or loss (default: TTA accuracy)"
    )
    add(
        "--detect", type=float, metavar="POINTS",
        help="say how many seeds detect this difference (default: not said)",
    )  # fmt: skip
    add("--confidence", type=float, default=0.95, help="of the intervals (default: 0.95)")
    add("--precision", help="32-true, bf16-mixed or 16-mixed (default: the faster one)")
    add(
        "--from", dest="files", nargs="+", type=local_path, metavar="FILE",
        help="compare the runs in result files or folders, and train nothing (default: train)",
    )  # fmt: skip
    add("--markdown", action="store_true", help="print the table in Markdown")
    add("--figure", type=local_path, metavar="FILE", help="also write a figure (default: none)")
    add_data_dir(parser)


def run(args: argparse.Namespace) -> int:
    """Train what is missing, and print the comparison."""
    from cifar_resnet import DatasetError, show_comparison

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("cifar_resnet").setLevel(logging.INFO)
    try:
        found = _from_files(args) if args.files else _trained(args)
    except (TypeError, ValueError) as error:
        raise CommandError(str(error), code=2) from error
    except (DatasetError, OSError, FloatingPointError) as error:
        raise CommandError(str(error)) from error
    print(found.to_markdown() if args.markdown else found)
    if args.figure:
        try:
            show_comparison(found).savefig(args.figure)
        except (OSError, ValueError) as error:
            raise CommandError(f"The figure cannot be written: {error}") from error
    return 0


def _trained(args: argparse.Namespace) -> Comparison:
    from cifar_resnet import compare

    names = ("seeds", "width", "epochs", "results", "precision", "data_dir")
    given: dict[str, Any] = {n: v for n in names if (v := getattr(args, n)) is not None}
    return compare(*args.arms, final=args.final, **given, **_reporting(args))


def _from_files(args: argparse.Namespace) -> Comparison:
    from cifar_resnet import Comparison

    ignored = [n for n in ("seeds", "results", "data_dir") if getattr(args, n) is not None]
    if ignored:
        flags = ", ".join("--" + name.replace("_", "-") for name in ignored)
        raise ValueError(f"--from trains nothing, so leave out {flags}.")
    held_out = False if args.final else None
    return Comparison.from_results(
        args.files, *args.arms, width=args.width, epochs=args.epochs, held_out=held_out,
        precision=args.precision, **_reporting(args),
    )  # fmt: skip


def _reporting(args: argparse.Namespace) -> dict[str, Any]:
    names = ("sequential", "metric", "detect", "confidence")
    return {name: getattr(args, name) for name in names}


def _seeds(text: str) -> int | list[int]:
    """Parse a number of seeds, or the first and the last one."""
    first, dash, last = text.partition("-")
    if not dash:
        return positive(text)
    found = list(range(non_negative(first), non_negative(last) + 1))
    if not found:
        raise argparse.ArgumentTypeError(f"must be a range that goes up, but got {text}")
    return found
