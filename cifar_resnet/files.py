"""Write files atomically."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ABANDONED = 3600.0  # seconds without a change after which a temporary file has no writer


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`, which is renamed to `path` at the end.

    After an exception the temporary file is deleted and `path` is left unchanged. Each writer has a
    temporary file of its own, so that several threads and processes can write the same `path`: a
    reader sees the whole content of one of them. The temporary file of a process that was killed is
    deleted by a later write of the same `path` if it has not changed for an hour.
    """
    prefix = f".{path.name[:48]}."  # hidden from searches by suffix; a name has 255 bytes at most
    with suppress(OSError):  # no such folder, or another writer has deleted the file
        for other in path.parent.iterdir():
            is_temporary = other.name.startswith(prefix) and other.suffix == ".part"
            if is_temporary and time.time() - other.stat().st_mtime > _ABANDONED:
                other.unlink()
    writer = f"{os.getpid()}-{threading.get_native_id()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f"{prefix}{writer}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
