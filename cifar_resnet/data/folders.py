"""Read folders of image files, one folder for each class."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_resnet import arguments
from cifar_resnet.data.image_files import central_part, read_color
from cifar_resnet.data.inputs import Labeled
from cifar_resnet.data.memory import check_memory
from cifar_resnet.data.order import stratified_split

__all__ = ["Folders", "as_size", "read_folders"]

_log = logging.getLogger(__name__)

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_TEST_FOLDERS = ("test", "val")


class Folders(NamedTuple):
    """The images of a folder."""

    train: Labeled
    test: Labeled | None
    classes: tuple[str, ...]


def read_folders(directory: Any, size: Any, test_fraction: Any) -> Folders:
    """Read a folder as `ImageDataModule.from_folder` documents."""
    root = arguments.path("directory", directory)
    height, width = as_size(size)
    if test_fraction is not None:
        test_fraction = arguments.number("test_fraction", test_fraction, arguments.BELOW_ONE)
    if not root.is_dir():
        raise ValueError(f"directory must be a folder, but {str(root)!r} is not one.")
    if not (root / "train").is_dir():
        if test_fraction is None:
            raise ValueError(
                f"{root} has no folder train, so its folders are taken as classes. Pass "
                "test_fraction, such as 0.2, to hold out test images; 0 means none."
            )
        classes = _classes(root)
        images, labels = _read(root, classes, (height, width))
        held_out = round(test_fraction * len(labels))
        rows, held = stratified_split(labels, held_out)
        train = Labeled(images[rows], labels[rows])
        return Folders(train, Labeled(images[held], labels[held]) if held_out else None, classes)
    if test_fraction is not None:
        raise ValueError(
            f"{root} has a folder train, so test_fraction={test_fraction} has no effect. Leave it "
            "out; the test images are those of the folder test or val."
        )
    found = [name for name in _TEST_FOLDERS if (root / name).is_dir()]
    if not found:
        raise ValueError(f"{root} has a folder train, but no folder test or val. Add one of them.")
    if len(found) > 1:
        _log.warning(
            "%s is not used: validation images are held out of train, see val_split.", root / "val"
        )
    classes = _classes(root / "train")
    if others := [name for name in _classes(root / found[0]) if name not in classes]:
        raise ValueError(
            f"{root / found[0]} has a class {others[0]!r}, which {root / 'train'} does not have. "
            "Use the same folders in both."
        )
    train, test = (_read(root / name, classes, (height, width)) for name in ("train", found[0]))
    return Folders(train, test, classes)


def as_size(size: Any) -> tuple[int, int]:
    """Validate a height and a width in pixels, or one number for both."""
    expected = "a height and a width of at least 1 pixel, or one number for both"
    return arguments.height_and_width("size", size, expected)


def _classes(folder: Path) -> tuple[str, ...]:
    """Return the names of the folders of classes, in order."""
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise ValueError(f"{folder} has no folders. Expected one folder of images for each class.")
    return tuple(names)


def _read(folder: Path, classes: tuple[str, ...], size: tuple[int, int]) -> Labeled:
    """Read the images of all classes, scaled to one size."""
    files: list[tuple[Path, int]] = []
    others = 0
    for label, name in enumerate(classes):
        paths = [p for p in sorted((folder / name).rglob("*")) if p.is_file()]
        images = [p for p in paths if p.suffix.lower() in _SUFFIXES and p.name[0] != "."]
        others += len(paths) - len(images)
        files += [(path, label) for path in images]
    if others:
        _log.warning("%d files in %s are not images and are not used.", others, folder)
    if not files:
        raise ValueError(f"{folder} has no image files. Expected {', '.join(_SUFFIXES)}.")
    shape = (len(files), *size, 3)
    check_memory(int(np.prod(shape)), f"The {len(files):,} images in {folder}")
    pixels: NDArray[np.uint8] = np.empty(shape, dtype=np.uint8)
    for row, (path, _) in enumerate(files):
        try:
            pixels[row] = np.asarray(central_part(read_color(path), size))
        except ValueError as error:
            raise ValueError(f"{path} cannot be used: {error}") from error
    return Labeled(pixels, np.array([label for _, label in files], dtype=np.int64))
