"""Write verified files to the data folder, and explain why a folder cannot be written."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from cifar_resnet.data import cifar10, formats
from cifar_resnet.data.formats import DatasetError, Records
from cifar_resnet.data.local import file_mode, is_file

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "TEMPORARY",
    "check_free",
    "check_space",
    "check_writable",
    "exclusive",
    "store",
    "store_files",
    "variable",
]

TEMPORARY = ".cifar10.tmp-"  # folders with this prefix, left by a killed process, are deleted


def variable(dataset: str) -> str:
    """Return the environment variable for the folder of a dataset, such as `$CIFAR10_DIR`."""
    return f"${dataset.replace('-', '')}_DIR"


def check_writable(data_dir: Path, dataset: str = "CIFAR-10") -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        reason = error.strerror or error
        if data_dir.is_symlink() and not file_mode(data_dir):
            reason = f"it is a link to {data_dir.readlink()}, which does not exist"
        raise DatasetError(
            f"The data folder {data_dir} cannot be written: {reason}. "
            f"Choose another folder with data_dir or {variable(dataset)}."
        ) from error


def check_free(folder: Path, dataset: str = "CIFAR-10") -> None:
    """Raise, before anything is fetched, if the folder to be created already exists."""
    mode = file_mode(folder, follow=False)
    if mode and not (stat.S_ISDIR(mode) and not any(folder.iterdir())):
        raise DatasetError(
            f"{folder} is in the way: it is not a folder with the files of {dataset}. Move or "
            f"delete it, or choose another folder with data_dir or {variable(dataset)}."
        )


def store(records: Records, data_dir: Path) -> None:
    """Write the binary version of CIFAR-10."""
    files = {f"{name}.bin": content.data for name, content in records.items()}
    with write_errors_explained(data_dir, 6 * formats.RECORDS_BYTES):
        store_files(files, data_dir / cifar10.BINARY_FOLDER)


def store_files(files: Mapping[str, Buffer], final: Path) -> None:
    """Write files to a folder that is renamed to its final name when it is complete."""
    with tempfile.TemporaryDirectory(dir=final.parent, prefix=TEMPORARY) as temporary:
        folder = Path(temporary) / final.name
        folder.mkdir()
        for name, content in files.items():
            with (folder / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        folder.rename(final)


@contextmanager
def exclusive(
    data_dir: Path, needed: int, timeout: float, dataset: str = "CIFAR-10"
) -> Iterator[None]:
    """Let one process at a time write to a data folder; the others wait.

    Raises:
        DatasetError: If the folder cannot be written, or another process does not finish within
            `timeout` seconds.
    """
    lock = data_dir / f".{dataset.replace('-', '').lower()}.lock"
    if file_mode(lock, follow=False) and not is_file(lock, follow=False):
        raise DatasetError(f"{lock} is not a regular file, so it cannot be locked. Delete it.")
    try:
        with write_errors_explained(data_dir, needed, dataset), FileLock(lock, timeout=timeout):
            for path in data_dir.glob(f"{TEMPORARY}*"):
                if not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
            yield
    except Timeout as error:
        raise DatasetError(
            f"Another process has held {lock} for {timeout} seconds. "
            "Stop that process, or choose another data_dir."
        ) from error


def check_space(data_dir: Path, needed: int, dataset: str = "CIFAR-10") -> None:
    """Raise, before a download, if there is too little space for it."""
    free = shutil.disk_usage(data_dir).free
    if free < needed:
        raise DatasetError(
            f"Downloading {dataset} to {data_dir} needs {needed // 10**6} MB, but only "
            f"{free // 10**6} MB are free. Make room, or choose another folder with data_dir or "
            f"{variable(dataset)}."
        )


@contextmanager
def write_errors_explained(
    data_dir: Path, needed: int, dataset: str = "CIFAR-10"
) -> Iterator[None]:
    try:
        yield
    except Timeout:  # a subclass of OSError, but about the lock
        raise
    except OSError as error:
        reason = f"{error.strerror or error}"
        if error.filename:
            reason += f": {error.filename}"
        try:
            free = f"{shutil.disk_usage(data_dir).free // 10**6} MB free"
        except OSError:  # the folder no longer exists
            free = "free space unknown"
        raise DatasetError(
            f"{dataset} could not be written to {data_dir}: {reason} "
            f"({free}, {needed // 10**6} MB needed). Make room, or choose "
            f"another folder with data_dir or {variable(dataset)}."
        ) from error
