"""Download CIFAR-10 or CIFAR-100 and verify it.

Data that are on disk already are verified and not downloaded again.
"""

from __future__ import annotations

import argparse
import logging

from cifar_resnet.cli.options import CommandError, add_data_dir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cifar-resnet data`."""
    parser.add_argument(
        "dataset", nargs="?", choices=("cifar10", "cifar100"), default="cifar10",
        help="the dataset (default: cifar10)",
    )  # fmt: skip
    add_data_dir(parser)
    parser.add_argument(
        "--no-download", action="store_true", help="verify only, without a network connection"
    )


def run(args: argparse.Namespace) -> int:
    """Download and verify the dataset."""
    from cifar_resnet import CIFAR10DataModule, CIFAR100DataModule, DatasetError
    from cifar_resnet.data.verified import Verified

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("cifar_resnet").setLevel(logging.INFO)
    try:
        kind, name = {
            "cifar10": (CIFAR10DataModule, "CIFAR-10"),
            "cifar100": (CIFAR100DataModule, "CIFAR-100"),
        }[args.dataset]
        data = kind(args.data_dir, val_split=0, download=not args.no_download)
        Verified(data.data_dir).forget()
        data.prepare_data()
        data.setup()
    except (DatasetError, ValueError, OSError) as error:
        raise CommandError(str(error)) from error
    print(
        f"{name} in {data.data_dir.absolute()}: {data.num_samples:,} training images and "
        f"{len(data.indices('test')):,} test images, verified."
    )
    return 0
