"""Remember which files were verified, so that unchanged ones are not hashed again.

A file counts as unchanged if its size, times of modification and change, and inode are the same.
What was verified is remembered in the process and in a small file in the data folder.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from cifar_resnet.files import atomic_write

__all__ = ["Verified"]

_NAME = ".cifar10.verified.json"
# A file may change twice within one tick of a file system's clock. A file that changed less than
# this number of seconds ago is therefore not remembered on disk.
_TICK = 2.0

_process: dict[Path, dict[str, list[Any]]] = {}  # data folder -> name -> mark


class Verified:
    """The verified files of a data folder."""

    def __init__(self, data_dir: Path) -> None:
        self._stamp = data_dir / _NAME
        self._marks = _process.setdefault(data_dir.absolute(), {})
        self._stored = _stored(self._stamp)

    @contextmanager
    def reading(self, file: IO[bytes], name: str, digest: str) -> Iterator[bool]:
        """Yield whether `file` needs no check; after one that raises nothing, remember it."""
        mark = _mark(os.fstat(file.fileno()), digest)
        yield self._has(name, mark)
        if mark == _mark(os.fstat(file.fileno()), digest):
            self._marks[name] = mark

    def has_all(self, files: Mapping[Path, str]) -> bool:
        """Return whether these files, given with their digests, need no check."""
        try:
            return all(
                self._has(path.name, _mark(path.stat(), digest)) for path, digest in files.items()
            )
        except OSError:
            return False

    def save(self) -> None:
        """Write what was verified to the data folder, if that is possible."""
        stable = (time.time() - _TICK) * 1e9
        kept = {name: mark for name, mark in self._marks.items() if max(mark[1:3]) < stable}
        if kept and kept != self._stored:
            with suppress(OSError), atomic_write(self._stamp) as path:
                path.write_text(json.dumps(kept))

    def forget(self) -> None:
        """Verify all files again the next time."""
        self._marks.clear()
        self._stored = {}
        with suppress(OSError):
            self._stamp.unlink(missing_ok=True)

    def _has(self, name: str, mark: list[Any]) -> bool:
        return mark in (self._marks.get(name), self._stored.get(name))


def _mark(found: os.stat_result, digest: str) -> list[Any]:
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, digest]


def _stored(stamp: Path) -> dict[str, Any]:
    """Return what the file says; nothing if there is none or it is damaged."""
    try:
        content = json.loads(stamp.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
