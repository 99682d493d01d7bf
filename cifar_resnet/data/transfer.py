"""Receive one archive from one source in the background, and measure its speed."""

from __future__ import annotations

import http.client
import stat
import threading
import time
import urllib.error
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from cifar_resnet.data.cifar10 import Archive
from cifar_resnet.data.connection import request

__all__ = ["HTTPTransfer", "Limits", "Meter", "Part", "Source", "Transfer"]

_CHUNK = 1 << 18  # bytes
_BATCH = 1 << 20  # bytes to write at once, if they arrive in time
_BUFFER = 1 << 24  # bytes that a transfer receives before somebody asks for them


@dataclass(frozen=True)
class Limits:
    """When a source is too slow, and how long to measure.

    Args:
        stall_timeout: Seconds without a byte after which an attempt ends. If a busy server asks
            for a longer pause than `pause`, it is respected up to this value.
        slowest: Minimum speed in bytes per second. An attempt that is slower over `stall_timeout`
            seconds ends, and one that is slower over its whole time, including the pause before it,
            counts as failed.
        attempts: Number of failed attempts in a row before a source is given up.
        pause: Seconds to wait before another attempt, doubled after each failed one.
        sample: Seconds over which the speed of a source is measured.
        soon: A source that will finish within this number of seconds is not compared with others.
        enough: A source that will finish within this number of seconds is used although another
            one is faster, unless it takes more than `ratio` times as long.
        ratio: See `enough`. A source whose speed falls by this factor is compared again.
    """

    stall_timeout: float = 20.0
    slowest: float = 10_000.0
    attempts: int = 3
    pause: float = 1.0
    sample: float = 2.0
    soon: float = 15.0
    enough: float = 120.0
    ratio: float = 1.5


class Transfer(Protocol):
    """One attempt to receive an archive. It runs in the background, up to a limited buffer."""

    source: Source
    meter: Meter
    failure: Exception | None  # the reason why it has ended, if it failed

    def step(self, seconds: float) -> bool:
        """Store what has arrived, waiting for it up to `seconds`; return True at the end.

        Raises `failure` when everything that arrived before it is stored.
        """

    def left(self) -> int:
        """Return the number of bytes that have not arrived."""

    def file(self) -> Path:
        """Return the file in which the bytes are stored."""

    def close(self) -> None:
        """End the transfer; what is stored is kept."""


class Source(NamedTuple):
    """A place that has an archive."""

    name: str
    url: str
    archive: Archive
    transfer: Callable[..., Transfer] | None = None  # of a source that is not an HTTP server


class Meter:
    """Measure a speed over the last `window` seconds, not counting time in which nobody read."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._lock = threading.Lock()
        self._marks: deque[tuple[float, int]] = deque()  # time, total number of bytes
        self._idle, self._idle_since = 0.0, 0.0
        self.started = time.monotonic()
        self.first: float | None = None  # time of the first bytes
        self.total = 0

    def add(self, count: int) -> None:
        """Record that `count` bytes have arrived."""
        with self._lock:
            now = self._clock()
            self.first = now if self.first is None else self.first
            self.total += count
            self._marks.append((now, self.total))
            self._drop_old(now)

    def _drop_old(self, now: float) -> None:
        # the newest mark before the window is kept as its beginning
        while len(self._marks) > 1 and self._marks[1][0] < now - self._window:
            self._marks.popleft()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Stop the clock, because the buffer is full."""
        self._idle_since = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._idle += time.monotonic() - self._idle_since
                self._idle_since = 0.0

    @property
    def is_idle(self) -> bool:
        return bool(self._idle_since)

    @property
    def seconds(self) -> float:
        """Seconds since the first bytes."""
        with self._lock:
            return 0.0 if self.first is None else self._clock() - self.first

    @property
    def age(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self.started

    def speed(self) -> float:
        """Return bytes per second, 0.0 before anything was measured."""
        with self._lock:
            now = self._clock()
            if self.first is None or now <= self.first:
                return 0.0
            self._drop_old(now)
            begin, total = self._marks[0]
            seconds = now - max(begin, now - self._window)
            return (self.total - total) / seconds if seconds else 0.0

    def _clock(self) -> float:
        return (self._idle_since or time.monotonic()) - self._idle


class Part:
    """The first bytes of an archive, in a file that a later download continues."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.owner: object = None  # the only source of its bytes, if they must not be mixed
        self.offset = self._length()
        if self.offset > size:
            self.reset()

    def _length(self) -> int:
        """Return the size of the file. A link is deleted, because writing to it would change
        another file.
        """
        try:
            found = self.path.lstat()
        except FileNotFoundError:
            return 0
        if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            return found.st_size
        self.path.unlink()
        return 0

    def write(self, position: int, content: bytes) -> None:
        """Append `content`, which begins at `position`, without the bytes that are there."""
        content = content[self.offset - position :]
        if content:
            with self.path.open("ab" if self.offset else "wb") as file:
                file.write(content)
            self.offset += len(content)

    def reset(self) -> None:
        """Delete what has arrived."""
        self.path.unlink(missing_ok=True)
        self.offset, self.owner = 0, None


class HTTPTransfer:
    """Receive an archive from a web server.

    Args:
        source: Where the archive is.
        part: The file to append to.
        start: First byte to request. If None, request the whole file without a range.
        limits: When to end.
    """

    def __init__(self, source: Source, part: Part, start: int | None, limits: Limits) -> None:
        self.source = source
        self.meter = Meter(2 * limits.sample)
        self.failure: Exception | None = None
        self._part, self._start, self._limits = part, start, limits
        self._stored = self._arrived = start or 0  # positions in the archive
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._ended = self._closed = False
        self._changed = threading.Condition()
        threading.Thread(target=self._run, daemon=True).start()

    def step(self, seconds: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._buffered >= _BATCH or self._ended, seconds)
            content, self._chunks, self._buffered = b"".join(self._chunks), [], 0
            position = self._stored
            self._stored += len(content)
            ended = self._ended
            self._changed.notify_all()
        if content:
            self._part.write(position, content)
        if ended and self.failure is not None:
            raise self.failure
        return ended

    def left(self) -> int:
        return self.source.archive.size - self._arrived

    def file(self) -> Path:
        return self._part.path

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._chunks = []
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            self._receive()
        except Exception as error:  # raised again by `step`
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            self.failure = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _receive(self) -> None:
        limits, size = self._limits, self.source.archive.size
        with request(
            self.source.url,
            self._start,
            size,
            stall_timeout=limits.stall_timeout,
            slowest=limits.slowest,
        ) as (response, first, end):
            with self._changed:
                self._stored = self._arrived = first
            while self._arrived < end and not self._closed:
                chunk = response.read1(min(_CHUNK, end - self._arrived))
                if not chunk:
                    break
                self.meter.add(len(chunk))
                self._arrived += len(chunk)
                self._buffer(chunk)
        if self._arrived < size:
            raise http.client.IncompleteRead(b"", size - self._arrived)

    def _buffer(self, chunk: bytes) -> None:
        with self._changed:
            if self._buffered >= _BUFFER and not self._closed:
                with self.meter.idle():
                    self._changed.wait_for(lambda: self._buffered < _BUFFER or self._closed)
            if not self._closed:
                self._chunks.append(chunk)
                self._buffered += len(chunk)
                self._changed.notify_all()
