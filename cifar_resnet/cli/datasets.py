"""Load the dataset that `cifar-resnet train` trains on."""

from __future__ import annotations

import argparse
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_resnet.cli.options import CommandError, add_data_dir, positive

if TYPE_CHECKING:
    from cifar_resnet import ImageDataModule

# Names that torchvision gives to datasets with a training and a test set of small images.
_TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "svhn": "SVHN",
    "stl10": "STL10",
}
_NAMES = ("cifar10", "cifar100", *_TORCHVISION)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add `--data` and the options that belong to it."""
    parser.add_argument(
        "--data", default="cifar10", metavar="NAME|FOLDER",
        help=f"{', '.join(_NAMES)}, or a folder with a folder of images for each class, or with "
        "such folders in train and test (default: cifar10)",
    )  # fmt: skip
    add_data_dir(parser)
    parser.add_argument(
        "--image-size", type=positive, metavar="PIXELS",
        help="height and width to which images are scaled, a multiple of 8 (default: 32 for a "
        "folder; otherwise their own, rounded up)",
    )  # fmt: skip
    parser.add_argument(
        "--test-fraction", type=_fraction, metavar="FRACTION",
        help="fraction of the images to hold out as test images, for a folder without train "
        "(default: 0.2)",
    )  # fmt: skip


def read_ahead(args: argparse.Namespace) -> list[Future[Any]]:
    """Read the files of CIFAR-10 in a thread, if there are any, while Lightning is imported.

    The data module shares the images while the result is kept. If the thread fails, the data module
    reads them again and raises the error.
    """
    from cifar_resnet.data.local import find_folder
    from cifar_resnet.data.sharing import load_shared
    from cifar_resnet.data.sources import default_data_dir

    folder = Path(args.data_dir).expanduser() if args.data_dir else default_data_dir()
    if args.data != "cifar10" or args.resume or find_folder(folder) is None:
        return []
    return [ThreadPoolExecutor(1).submit(load_shared, folder)]


def load_data(args: argparse.Namespace, options: dict[str, Any], *, download: bool) -> Any:
    """Return the data module that `--data` names.

    Args:
        args: The arguments of the command. `data` and `data_dir` are made absolute, since a run may
            be resumed from another folder.
        options: Options of the data module.
        download: Whether torchvision may download; several processes would disturb each other.

    Raises:
        CommandError: If there is no such dataset, or an option does not fit it.
    """
    from cifar_resnet import CIFAR10DataModule, CIFAR100DataModule, DatasetError

    try:
        if args.data in ("cifar10", "cifar100"):
            _refuse(args, "image_size", "test_fraction")
            kind = CIFAR10DataModule if args.data == "cifar10" else CIFAR100DataModule
            data = kind(args.data_dir, **options)
            args.data_dir = str(data.data_dir.absolute())
            return data
        if args.data in _TORCHVISION:
            _refuse(args, "test_fraction")
            return _of_torchvision(args, options, download=download)
        return _of_folder(args, options)
    except (ValueError, DatasetError, MemoryError, RuntimeError, OSError) as error:
        raise CommandError(str(error), code=2 if isinstance(error, ValueError) else 1) from error


def network_options(data: ImageDataModule) -> dict[str, Any]:
    """Return the arguments of `CustomResNet` that fit the images.

    Raises:
        CommandError: If the network cannot have this size.
    """
    channels, height, width = data.dims
    if height % 8 or width % 8:
        raise CommandError(
            f"The network needs a height and a width that are multiples of 8, but the images have "
            f"{height} x {width} pixels. Pass --image-size {-(-max(height, width) // 8) * 8}.",
            code=2,
        )
    size = height if height == width else (height, width)
    return {"num_classes": data.num_classes, "in_channels": channels, "image_size": size}


def _of_torchvision(
    args: argparse.Namespace, options: dict[str, Any], *, download: bool
) -> ImageDataModule:
    from cifar_resnet import ImageDataModule
    from cifar_resnet.data.sources import default_data_dir

    name = _TORCHVISION[args.data]
    folder = Path(args.data_dir).expanduser() if args.data_dir else default_data_dir(name)
    args.data_dir = str(folder.absolute())
    create = ImageDataModule.from_torchvision
    if args.image_size is None:
        data = create(name, folder, download=download, **options)
        height, width = data.dims[1:]
        if not height % 8 and not width % 8:
            return data
        args.image_size = -(-max(height, width) // 8) * 8
    return create(name, folder, download=download, size=args.image_size, **options)


def _of_folder(args: argparse.Namespace, options: dict[str, Any]) -> ImageDataModule:
    from cifar_resnet import ImageDataModule

    folder = Path(args.data).expanduser()
    if not folder.is_dir():
        raise CommandError(
            f"--data must be one of {', '.join(_NAMES)}, or a folder of images, but got "
            f"{args.data!r}.",
            code=2,
        )
    _refuse(args, "data_dir")
    args.data = str(folder.absolute())
    fraction = args.test_fraction
    if fraction is None and not (folder / "train").is_dir():
        fraction = 0.2
    return ImageDataModule.from_folder(
        folder, args.image_size or 32, test_fraction=fraction, **options
    )


def _refuse(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(args, name) is not None:
            option = "--" + name.replace("_", "-")
            raise CommandError(f"{option} has no effect with --data {args.data}.", code=2)


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a number in [0, 1), but got {text!r}")
    return value
