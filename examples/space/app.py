"""Start the demo: the file that a Hugging Face Space runs."""

import sys

from cifar_resnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["app", *sys.argv[1:]]))
