"""Find CIFAR-100 in a folder, or download it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.data import cifar100
from cifar_resnet.data.download import DownloadError, download
from cifar_resnet.data.formats import (
    DatasetError,
    contents,
    copy_planes,
    open_archive,
    open_file,
    unpickled,
)
from cifar_resnet.data.local import file_mode, is_file
from cifar_resnet.data.storing import (
    check_free,
    check_space,
    check_writable,
    exclusive,
    store_files,
)
from cifar_resnet.data.transfer import Source

__all__ = ["LabeledTwice", "load", "prepare"]

_NAME = "CIFAR-100"
_SPACE_NEEDED = cifar100.ARCHIVE.size + 187_000_000  # for a download and its unpacked files
_LOCK_TIMEOUT = 3600  # seconds


class LabeledTwice(NamedTuple):
    """The verified dataset, with the label of the class and of the superclass of each image."""

    train_images: NDArray[np.uint8]  # (50000, 32, 32, 3), RGB
    train_fine: NDArray[np.int64]  # (50000,), 0 to 99
    train_coarse: NDArray[np.int64]  # (50000,), 0 to 19
    test_images: NDArray[np.uint8]
    test_fine: NDArray[np.int64]
    test_coarse: NDArray[np.int64]


def prepare(data_dir: Path, *, allow_download: bool = True) -> None:
    """Make sure that the three files are in the folder, from an archive there or the network.

    The archive comes from the fastest source: `$CIFAR100_URL`, the official site or Zenodo. Only
    one process works at a time; the others wait and then find the files.

    Raises:
        DatasetError: If no source worked; the message gives the reason for each.
    """
    if _folder(data_dir) is not None:
        return
    check_writable(data_dir, _NAME)
    with exclusive(data_dir, _SPACE_NEEDED, _LOCK_TIMEOUT, _NAME):
        if _folder(data_dir) is None:
            _obtain(data_dir, allow_download=allow_download)


def load(data_dir: Path) -> LabeledTwice:
    """Read CIFAR-100 and verify its checksums.

    Raises:
        DatasetError: If nothing usable is there, or a file is not the official one.
    """
    folder = _folder(data_dir)
    if folder is None:
        raise DatasetError(
            f"CIFAR-100 was not found in {data_dir}. Call prepare_data() to download it, or "
            + _by_hand(data_dir)
        )
    files = {}
    for name in cifar100.PICKLE_MD5:
        remedy = f"Delete {folder} to download CIFAR-100 again."
        with open_file(folder / name, remedy) as file:
            files[name] = _verified(file.read(), name, folder / name, remedy)
    meta = unpickled(files["meta"])
    for key, expected in (
        (b"fine_label_names", cifar100.CLASSES),
        (b"coarse_label_names", cifar100.SUPERCLASSES),
    ):
        names = tuple(name.decode() for name in meta[key])
        if names != expected:
            raise DatasetError(
                f"{folder / 'meta'} has other class names than this library: {names} instead of "
                f"{expected}. Report it."
            )
    return LabeledTwice(*_arrays(files["train"]), *_arrays(files["test"]))


def _arrays(content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    batch = unpickled(content)
    planes = batch[b"data"].reshape(-1, 3, 32, 32)
    images = np.empty((len(planes), 32, 32, 3), dtype=np.uint8)
    copy_planes(planes, images)
    fine, coarse = (np.array(batch[key], np.int64) for key in (b"fine_labels", b"coarse_labels"))
    return images, fine, coarse


def _folder(data_dir: Path) -> Path | None:
    """Return the folder with the three files."""
    for folder in (data_dir / cifar100.FOLDER, data_dir):
        if all(is_file(folder / name) for name in cifar100.PICKLE_MD5):
            return folder
    return None


def _obtain(data_dir: Path, *, allow_download: bool) -> None:
    final = data_dir / cifar100.FOLDER
    check_free(final, _NAME)
    path = data_dir / cifar100.ARCHIVE.name
    if file_mode(path, follow=False):
        store_files(_unpacked(path), final)
        return
    if not allow_download:
        raise DatasetError(
            f"CIFAR-100 is not in {data_dir} and downloading is switched off; " + _by_hand(data_dir)
        )
    check_space(data_dir, _SPACE_NEEDED, _NAME)
    try:
        _, archive = download(_sources(), data_dir)
    except DownloadError as error:
        raise DatasetError(
            f"CIFAR-100 could not be downloaded.\n{error}\nTo place it by hand, "
            + _by_hand(data_dir)
        ) from error
    try:
        store_files(_unpacked(archive), final)
    finally:
        archive.unlink()


def _sources() -> list[Source]:
    """Return all sources, in order of preference."""
    listed = [Source(name, url, cifar100.ARCHIVE) for name, url in cifar100.MIRRORS.items()]
    if own := os.environ.get("CIFAR100_URL"):
        if not own.lower().startswith(("https://", "http://")):
            raise DatasetError(
                f"$CIFAR100_URL must be the address of {cifar100.ARCHIVE.name} and start with "
                f"https:// or http://, but it is {own!r}. For files on disk, use data_dir or "
                "$CIFAR100_DIR."
            )
        listed.insert(0, Source("$CIFAR100_URL", own, cifar100.ARCHIVE))
    return listed


def _unpacked(path: Path) -> dict[str, bytes]:
    """Return the verified files in an archive."""
    members = {f"{cifar100.FOLDER}/{name}": name for name in cifar100.PICKLE_MD5}
    with open_archive(path, cifar100.ARCHIVE, _NAME) as file:
        return {
            members[member]: _verified(content, members[member], path, f"Delete {path}.")
            for member, content in contents(file, members)
        }


def _verified(content: bytes, name: str, origin: Path, remedy: str) -> bytes:
    """Return a file if it is the official one. Another one could contain code."""
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != cifar100.PICKLE_MD5[name]:
        raise DatasetError(
            f"{origin} is not the official CIFAR-100 file {name!r} (MD5 {digest}, expected "
            f"{cifar100.PICKLE_MD5[name]}), so it was not unpickled. {remedy}"
        )
    return content


def _by_hand(data_dir: Path) -> str:
    return (
        f"put {cifar100.ARCHIVE.name} into {data_dir} (it is at "
        f"{' and '.join(cifar100.MIRRORS.values())}), or point data_dir or $CIFAR100_DIR to a "
        f"folder that contains {cifar100.FOLDER}."
    )
