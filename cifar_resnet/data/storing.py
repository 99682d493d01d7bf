"""Write the verified records to the data folder, and explain why a folder cannot be written."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from cifar_resnet.data import cifar10, formats
from cifar_resnet.data.formats import DatasetError, Records
from cifar_resnet.data.local import file_mode

__all__ = ["TEMPORARY", "check_free", "check_writable", "store", "write_errors_explained"]

TEMPORARY = ".cifar10.tmp-"  # folders with this prefix, left by a killed process, are deleted


def check_writable(data_dir: Path) -> None:
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
            "Choose another folder with data_dir or $CIFAR10_DIR."
        ) from error


def check_free(folder: Path) -> None:
    """Raise, before anything is fetched, if the folder to be created already exists."""
    mode = file_mode(folder, follow=False)
    if mode and not (stat.S_ISDIR(mode) and not any(folder.iterdir())):
        raise DatasetError(
            f"{folder} is in the way: it is not a folder with the files of CIFAR-10. Move or "
            "delete it, or choose another folder with data_dir or $CIFAR10_DIR."
        )


def store(records: Records, data_dir: Path) -> None:
    """Write the binary version; its folder is renamed to the final name when it is complete."""
    final = data_dir / cifar10.BINARY_FOLDER
    with (
        write_errors_explained(data_dir, 6 * formats.RECORDS_BYTES),
        tempfile.TemporaryDirectory(dir=data_dir, prefix=TEMPORARY) as temporary,
    ):
        folder = Path(temporary) / cifar10.BINARY_FOLDER
        folder.mkdir()
        for name, content in records.items():
            with (folder / f"{name}.bin").open("wb") as file:
                file.write(content.tobytes())
                file.flush()
                os.fsync(file.fileno())
        folder.rename(final)


@contextmanager
def write_errors_explained(data_dir: Path, needed: int) -> Iterator[None]:
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
            f"CIFAR-10 could not be written to {data_dir}: {reason} "
            f"({free}, {needed // 10**6} MB needed). Make room, or choose "
            "another folder with data_dir or $CIFAR10_DIR."
        ) from error
