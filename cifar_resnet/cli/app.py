"""Run the demo in the browser: classify images, show misclassified images and receptive fields.

It runs on the CPU and without a network connection. Uploads are deleted within 70 minutes, and when
the demo ends. It needs Gradio: pip install "cifar-resnet[app]"
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile

from cifar_resnet.cli.networks import WEIGHTS_HELP
from cifar_resnet.cli.options import CommandError, add_data_dir, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cifar-resnet app`."""
    parser.add_argument(
        "--weights", help=f"a network to add to those of the package: {WEIGHTS_HELP}"
    )
    parser.add_argument(
        "--port", type=positive, help="port to listen on (default: the first free one from 7860)"
    )
    parser.add_argument(
        "--share", action="store_true", help="serve at a public address for 72 hours"
    )
    add_data_dir(parser)


def run(args: argparse.Namespace) -> int:
    """Serve the demo until it is stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # runs the cleanup
    with tempfile.TemporaryDirectory() as folder:
        # Gradio reads both: uploads are deleted with the folder, and nothing is reported.
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        try:
            from cifar_resnet.cli.demo import page
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "gradio":
                raise
            raise CommandError(
                "The demo needs Gradio, which is not installed. Install it with: "
                "pip install 'cifar-resnet[app]'"
            ) from error
        from cifar_resnet.cli.demo.views import Demo

        try:
            blocks = page.build(Demo(args.data_dir, args.weights))
            try:
                page.launch(blocks, server_port=args.port, share=args.share)
            finally:
                blocks.close(verbose=False)  # before the files that it serves are deleted
        except (ValueError, OSError) as error:
            raise CommandError(str(error)) from error
    return 0
