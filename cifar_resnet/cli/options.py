"""Argument types that subcommands share, and the error that ends a command."""

from __future__ import annotations

import argparse
from pathlib import Path

from cifar_resnet import arguments


class CommandError(Exception):
    """A failure that the user can act on: the message is printed without a traceback.

    Args:
        message: What went wrong, what was expected and the remedy.
        code: Exit status of the process: 1 for a failure, 2 for wrong usage.
    """

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def positive(text: str) -> int:
    """Parse an integer of at least 1."""
    return _integer(text, minimum=1)


def non_negative(text: str) -> int:
    """Parse an integer of at least 0."""
    return _integer(text, minimum=0)


def local_path(text: str) -> Path:
    """Parse a path on a local file system."""
    try:
        return arguments.path("the path", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _integer(text: str, minimum: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, but got {text!r}") from None
    if value < minimum:
        raise argparse.ArgumentTypeError(f"must be at least {minimum}, but got {value}")
    return value


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Add `--data-dir`, the folder of the dataset."""
    parser.add_argument(
        "--data-dir",
        metavar="FOLDER",
        help="folder of the dataset (default: $CIFAR10_DIR, for CIFAR-100 $CIFAR100_DIR, if set, "
        "else the user's cache folder)",
    )
