"""Download an archive from the fastest of several sources, with resume, retries and a check of its
SHA-256.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path

from cifar_resnet.data.connection import (
    NETWORK_ERRORS,
    DownloadError,
    WrongRangeError,
    explained,
    is_permanent,
    requested_pause,
)
from cifar_resnet.data.progress import DownloadBar
from cifar_resnet.data.transfer import HTTPTransfer, Limits, Part, Source, Transfer

__all__ = ["DownloadError", "Limits", "Source", "download"]

_log = logging.getLogger(__name__)


def download(
    sources: Sequence[Source], folder: Path, limits: Limits | None = None, *, progress: bool = True
) -> tuple[Source, Path]:
    """Download one archive to `folder` from one of `sources`, and return the source and the file.

    The first source is used if it will finish soon. Otherwise the speed of the others is measured
    while it continues, and the fastest one takes over, unless the first one will finish within two
    minutes and is not much slower. The speeds are compared again when the source becomes slower.
    A source that fails is tried again, and others are used meanwhile.

    Bytes received so far are kept in the name of the archive + `.part`: another source of the same
    archive, and a later call, continue there. The file gets its name only when its SHA-256 is
    correct. If it is wrong, it is downloaded again from the start, without mixing sources.

    Args:
        sources: Where to find the archives, in order of preference.
        folder: Existing folder for the archive.
        limits: When a source is too slow, and how long to measure.
        progress: Whether to show a progress bar on standard error.

    Raises:
        DownloadError: If all sources failed; the message gives the reason for each.
        OSError: If the file cannot be written.
    """
    session = _Session(sources, folder, limits or Limits())
    try:
        return session.run(progress)
    finally:
        session.close()


class _Candidate:
    """A source, and what is known about it."""

    def __init__(self, source: Source, part: Part) -> None:
        self.source = source
        self.part = part
        self.usable = True
        self.ranges = True  # whether it honors requests for a range
        self.failed = 0  # number of failed attempts in a row
        self.failure: Exception | None = None
        self.pause, self.retry_at = 0.0, 0.0
        self.speed: float | None = None  # when last measured
        self.before = 0  # bytes in the part when the attempt started

    def start(self, limits: Limits, *, pure: bool) -> Transfer:
        """Start an attempt, which continues the part if its bytes may be mixed with others."""
        self.before = self.part.offset
        if self.source.transfer is not None:
            return self.source.transfer(self.source, self.part, limits)
        mixed = pure and self.part.owner is not self
        start = self.part.offset if self.ranges and not mixed else None
        return HTTPTransfer(self.source, self.part, start or None, limits)


class _Session:
    """One call of `download`."""

    def __init__(self, sources: Sequence[Source], folder: Path, limits: Limits) -> None:
        parts = {
            source.archive: Part(folder / f"{source.archive.name}.part", source.archive.size)
            for source in sources
        }
        self._folder = folder
        self._limits = limits
        self._tick = limits.sample / 20  # seconds between decisions
        self._candidates = [_Candidate(source, parts[source.archive]) for source in sources]
        self._parts = parts
        self._running: dict[_Candidate, Transfer] = {}
        self._current: _Candidate | None = None  # the running one whose bytes are stored
        self._expected: float | None = None  # its speed when it was last compared
        self._compared_at = -math.inf
        self._pure = False  # whether the archive must come from a single source

    def run(self, progress: bool) -> tuple[Source, Path]:
        started = time.monotonic()
        for archive, part in self._parts.items():
            if part.offset == part.size:  # complete, but not verified
                owner = next(c for c in self._candidates if c.source.archive == archive)
                if self._verify(owner, part.path, whole=False):
                    return owner.source, self._folder / archive.name
        with DownloadBar(progress) as bar:
            while True:
                if self._current is None and not self._running:
                    self._start_next()
                candidate = self._current
                if candidate is None:
                    time.sleep(self._tick)
                elif self._step(candidate):
                    bar.end(candidate.source, time.monotonic() - started)
                    return candidate.source, self._folder / candidate.source.archive.name
                if self._current is not None:
                    bar.show(self._current.source, self._running[self._current])
                self._compare()

    def close(self) -> None:
        for transfer in self._running.values():
            transfer.close()
        self._running = {}

    # --- one step ---------------------------------------------------------------------------------

    def _start_next(self) -> None:
        """Start the fastest source that is ready; one that was not measured counts as fast."""
        usable = [candidate for candidate in self._candidates if candidate.usable]
        if not usable:
            raise DownloadError(self._reasons())
        wait = min(candidate.retry_at for candidate in usable) - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        ready = [c for c in usable if c.retry_at <= time.monotonic()] or usable
        best = max(ready, key=lambda c: math.inf if c.speed is None else c.speed)
        self._running[best] = best.start(self._limits, pure=self._pure)
        self._use(best)

    def _use(self, candidate: _Candidate) -> None:
        """Store the bytes of this source from now on."""
        if self._pure and candidate.part.owner is not candidate:
            candidate.part.reset()
            candidate.part.owner = candidate
        candidate.before = candidate.part.offset
        self._current, self._expected = candidate, None

    def _step(self, candidate: _Candidate) -> bool:
        """Store what has arrived from the current source; return True when all is complete."""
        transfer = self._running[candidate]
        try:
            if not transfer.step(self._tick):
                return False
        except (DownloadError, *NETWORK_ERRORS) as error:
            self._fail(candidate, error)
            return False
        # every byte is from this attempt if there was none when it began
        correct = self._verify(candidate, transfer.file(), whole=candidate.before == 0)
        self._stop(candidate)
        return correct

    def _stop(self, candidate: _Candidate) -> None:
        if transfer := self._running.pop(candidate, None):
            transfer.close()
        if candidate is self._current:
            self._current = None

    def _fail(self, candidate: _Candidate, error: Exception) -> None:
        """Note why an attempt failed, and when or whether to try again."""
        limits, transfer = self._limits, self._running[candidate]
        gained = candidate.part.offset - candidate.before if candidate is self._current else 0
        # a server that is slow from attempt to attempt must not keep the loop running forever
        enough = limits.slowest * (transfer.meter.age + candidate.pause)
        self._stop(candidate)
        candidate.failure = error
        candidate.failed = 0 if gained > 0 and gained >= enough else candidate.failed + 1
        candidate.ranges = candidate.ranges and not isinstance(error, WrongRangeError)
        requested = min(requested_pause(error), limits.stall_timeout)
        candidate.pause = max(limits.pause * 2**candidate.failed, requested)
        candidate.retry_at = time.monotonic() + candidate.pause
        if getattr(error, "code", None) == 416:  # the part is longer than the file on the server
            self._restart(candidate.part)
        elif is_permanent(error) or candidate.failed >= limits.attempts:
            candidate.usable = False
            self._log_failure(candidate, logging.INFO)

    def _verify(self, candidate: _Candidate, file: Path, *, whole: bool) -> bool:
        """Give a complete archive its name if it is correct."""
        archive = candidate.source.archive
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
            size = os.fstat(content.fileno()).st_size
            os.fsync(content.fileno())
        if digest == archive.sha256:
            file.replace(self._folder / archive.name)
            return True
        if whole or self._pure:
            candidate.usable = False
            candidate.failure = DownloadError(
                f"{candidate.source.url} sent a wrong file of {size} bytes: "
                f"SHA-256 {digest}, expected {archive.sha256}"
            )
            self._log_failure(candidate, logging.WARNING)
        else:
            self._pure = True  # the first bytes may be those of another file or source
        self._restart(candidate.part)
        candidate.part.owner = candidate
        return False

    def _restart(self, part: Part) -> None:
        """Drop a part, and the transfers that continue it."""
        part.reset()
        for candidate in list(self._running):
            if candidate.part is part:
                self._stop(candidate)

    # --- comparing speeds -------------------------------------------------------------------------

    def _compare(self) -> None:
        """Start or finish the measurement of the other sources, if there is a reason."""
        samples = [candidate for candidate in self._running if candidate is not self._current]
        for candidate in samples:
            failure = self._running[candidate].failure
            if isinstance(failure, (DownloadError, *NETWORK_ERRORS)):
                self._fail(candidate, failure)
        if not samples:
            if self._current is not None and self._is_comparison_due(self._current):
                self._sample_others()
            return
        samples = [candidate for candidate in samples if candidate in self._running]
        if self._is_decided(samples):
            self._choose()

    def _is_comparison_due(self, current: _Candidate) -> bool:
        limits, transfer = self._limits, self._running[current]
        if min(transfer.meter.age, time.monotonic() - self._compared_at) < limits.sample:
            return False
        if self._seconds_left(current) <= limits.soon:
            return False
        return not self._expected or transfer.meter.speed() < self._expected / limits.ratio

    def _sample_others(self) -> None:
        now = self._compared_at = time.monotonic()
        for candidate in self._candidates:
            ready = candidate.usable and candidate.retry_at <= now
            if ready and candidate is not self._current:
                self._running[candidate] = candidate.start(self._limits, pure=self._pure)

    def _is_decided(self, samples: list[_Candidate]) -> bool:
        """Return whether all sources are measured, or a fast one was found, or it takes too long.

        If all are slow, there is more time for a source that takes long to start.
        """
        limits = self._limits
        meters = [self._running[candidate].meter for candidate in samples]
        measured = [meter.is_idle or meter.seconds >= limits.sample for meter in meters]
        if all(measured):
            return True
        for candidate, meter in zip(samples, meters, strict=True):
            short = meter.is_idle or meter.seconds >= limits.sample / 4
            if short and self._seconds_left(candidate) <= limits.soon:
                return True
        least = min(map(self._seconds_left, self._running))
        patience = 2 if least <= limits.enough else 5
        return time.monotonic() - self._compared_at >= patience * limits.sample

    def _choose(self) -> None:
        """Continue with the current source if it is fast enough, otherwise with the fastest."""
        limits, current = self._limits, self._current
        seconds = {candidate: self._seconds_left(candidate) for candidate in self._running}
        fastest = min(seconds, key=lambda c: (seconds[c], c is not current))
        if current is not None:
            ratio = limits.ratio if seconds[current] <= limits.enough else 1.1
            if seconds[current] <= ratio * seconds[fastest]:
                fastest = current
        waited = time.monotonic() - self._compared_at
        for candidate in seconds:
            meter = self._running[candidate].meter
            candidate.speed = meter.speed()
            if meter.first is None and waited >= 2 * limits.sample:
                self._fail(candidate, TimeoutError(f"no data for {meter.age:.2g} seconds"))
            elif candidate is not fastest:
                self._stop(candidate)
        self._compared_at = time.monotonic()
        if fastest not in self._running:
            return
        if fastest is not current:
            _log.info("Downloading from %s, which is faster", fastest.source.name)
            self._use(fastest)
        self._expected = fastest.speed

    def _seconds_left(self, candidate: _Candidate) -> float:
        transfer = self._running[candidate]
        speed = transfer.meter.speed()
        return transfer.left() / speed if speed else math.inf

    # --- messages ---------------------------------------------------------------------------------

    def _reasons(self) -> str:
        lines = [f"- {c.source.name}: {self._reason(c)}" for c in self._candidates]
        for part in self._parts.values():
            if part.offset:
                lines.append(f"The {part.offset} of {part.size} bytes that arrived are kept.")
        return "\n".join(lines)

    def _log_failure(self, candidate: _Candidate, level: int) -> None:
        name, archive = candidate.source.name, candidate.source.archive.name
        _log.log(level, "%s from %s failed: %s", archive, name, self._reason(candidate))

    def _reason(self, candidate: _Candidate) -> str:
        failure = candidate.failure
        if isinstance(failure, DownloadError):
            return str(failure)
        return f"{candidate.source.url}: {explained(failure, self._limits.stall_timeout)}"
