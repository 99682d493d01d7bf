"""Run the command line with `python -m cifar_resnet`."""

import sys

from cifar_resnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
