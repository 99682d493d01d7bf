"""Download CIFAR-10 and verify it.

Data that are on disk already are verified and not downloaded again.
"""

from __future__ import annotations

import argparse
import logging

from cifar_resnet.cli.options import CommandError, add_data_dir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cifar-resnet data`."""
    add_data_dir(parser)
    parser.add_argument(
        "--no-download", action="store_true", help="verify only, without a network connection"
    )


def run(args: argparse.Namespace) -> int:
    """Download and verify CIFAR-10."""
    from cifar_resnet import CIFAR10DataModule, DatasetError
    from cifar_resnet.data.verified import Verified

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("cifar_resnet").setLevel(logging.INFO)
    try:
        data = CIFAR10DataModule(args.data_dir, val_split=0, download=not args.no_download)
        Verified(data.data_dir).forget()
        data.prepare_data()
        data.setup()
    except (DatasetError, ValueError, OSError) as error:
        raise CommandError(str(error)) from error
    print(
        f"CIFAR-10 in {data.data_dir.absolute()}: 50,000 training images and 10,000 test "
        "images, verified."
    )
    return 0
