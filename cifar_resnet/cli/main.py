"""Parse the command line and run a subcommand."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from cifar_resnet import __version__
from cifar_resnet.cli import app, compare, data, misclassified, predict, train
from cifar_resnet.cli.options import CommandError

_COMMANDS = {
    "train": train,
    "compare": compare,
    "data": data,
    "misclassified": misclassified,
    "predict": predict,
    "app": app,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name. If None, those of the process.

    Returns:
        Exit status: 0 for success, 1 for a failure, 128 + the signal's number after Ctrl-C or
        SIGTERM. Wrong usage exits with 2.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        return int(_COMMANDS[args.command].run(args))
    except CommandError as error:
        if error.code == 2:
            parser.exit(2, f"{parser.prog} {args.command}: error: {error}\n")
        print(error, file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of the output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of all subcommands."""
    parser = argparse.ArgumentParser(
        prog="cifar-resnet",
        description="Train a custom ResNet on CIFAR-10, draw its errors, and classify images.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module in _COMMANDS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        subparser = commands.add_parser(
            name,
            help=f"{summary[0].lower()}{summary[1:].rstrip('.')}",
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(subparser)
    return parser
