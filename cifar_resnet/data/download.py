"""Download one file over HTTP, with resume, retries and a check of its SHA-256."""

from __future__ import annotations

import hashlib
import http.client
import io
import os
import re
import socket
import ssl
import stat
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any

__all__ = ["DownloadError", "download"]

_CHUNK = 1 << 18  # bytes
_OVERHEAD = 1 << 20  # maximum number of other bytes in a response, such as headers


class DownloadError(RuntimeError):
    """The file could not be downloaded; a later call continues with its `.part` file."""


def download(
    url: str,
    path: Path,
    *,
    size: int,
    sha256: str,
    stall_timeout: float = 20.0,
    slowest: float = 10_000.0,
    attempts: int = 3,
    pause: float = 1.0,
    progress: bool = True,
) -> None:
    """Download `url` to `path`, which is created only when size and SHA-256 are correct.

    Bytes received so far are kept in `path` + `.part`, and a later call continues there. If the
    completed file is wrong, the part may have been from another file: it is downloaded once more
    from the start.

    Args:
        url: Address. Redirects from https to http, or to another protocol, are refused.
        path: File to write, in an existing folder.
        size: Expected size in bytes.
        sha256: Expected SHA-256 as hexadecimal digits.
        stall_timeout: Seconds without a byte after which an attempt ends. If a busy server asks
            for a longer pause than `pause`, it is respected up to this value.
        slowest: Minimum speed in bytes per second. An attempt that is slower over `stall_timeout`
            seconds ends, and one that is slower over its whole time, including the pause before it,
            counts as failed. So every call ends, at the latest after `size / slowest` seconds and
            the failed attempts.
        attempts: Number of failed attempts in a row before giving up; each attempt continues where
            the last one ended.
        pause: Seconds to wait before another attempt, doubled after each failed one.
        progress: Whether to show a progress bar on standard error.

    Raises:
        DownloadError: If no attempt completed the file, or it is not the expected file (then the
            part file is deleted as well).
        OSError: If the file cannot be written.
    """
    part = path.with_name(path.name + ".part")
    opener = _opener(stall_timeout, slowest, size + size // 8 + _OVERHEAD)
    failure: Exception | None = None
    most, failed = _size(part), 0  # bytes, and attempts since they last grew fast enough
    ranges, restarted = True, False
    while failed < attempts:
        begin = time.monotonic()
        if failure is not None:
            time.sleep(max(pause * 2**failed, min(_requested_pause(failure), stall_timeout)))
        failed += 1
        try:
            in_one_response = _continue(opener, url, part, size, stall_timeout, progress, ranges)
        except urllib.error.HTTPError as error:
            error.close()
            failure = error
            if error.code == 416:  # the part is longer than the file on the server
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 425, 429):
                break
        except (
            TimeoutError,
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            ssl.SSLError,
            ValueError,  # an invalid address or number
        ) as error:
            failure = error
            ranges = ranges and not isinstance(error, _WrongRange)
            if _is_offline(error):
                break
        else:
            digest = _sha256(part)
            if digest == sha256:
                part.replace(path)
                return
            part.unlink()
            if in_one_response or restarted:
                raise DownloadError(
                    f"{url} sent a wrong file of {size} bytes: SHA-256 {digest}, expected {sha256}"
                )
            # the part from an earlier response may be wrong
            restarted, failure, most, failed = True, None, 0, 0
            continue
        gained = _size(part) - most
        if gained > 0:  # a server that always starts over must not keep the loop running forever
            most += gained
            if gained >= slowest * (time.monotonic() - begin):
                failed = 0
    received = _size(part)
    kept = f"; the {received} of {size} bytes that arrived are kept" if received else ""
    raise DownloadError(f"{url}: {_reason(failure, stall_timeout)}{kept}") from failure


def _size(part: Path) -> int:
    """Return the size of the part file. A link is deleted, because writing to it would change
    another file.
    """
    try:
        found = part.lstat()
    except FileNotFoundError:
        return 0
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        return found.st_size
    part.unlink()
    return 0


def _continue(
    opener: urllib.request.OpenerDirector,
    url: str,
    part: Path,
    size: int,
    stall_timeout: float,
    progress: bool,
    ranges: bool,
) -> bool:
    """Complete the part file; return whether all of it came in one response."""
    from tqdm import tqdm

    offset = _size(part)
    if offset > size:
        part.unlink()
        offset = 0
    if offset == size:
        return False
    request = urllib.request.Request(url, headers={"User-Agent": "cifar-resnet"})
    if offset and ranges:
        request.add_header("Range", f"bytes={offset}-")
    with opener.open(request, timeout=stall_timeout) as response:
        start, end = _span(response, offset if ranges else 0, size)
        expected = response.headers.get("Content-Length", "")
        if expected.isdecimal() and not response.chunked and int(expected) != end - start:
            raise DownloadError(
                f"{url} offers {int(expected) + start} bytes, but the file has {size}: "
                "it is not the expected file"
            )
        offset = start
        with (
            part.open("ab" if offset else "wb") as file,
            tqdm(
                total=size,
                initial=offset,
                unit="B",
                unit_scale=True,
                unit_divisor=1000,
                desc=part.stem,
                disable=not progress,
            ) as bar,
        ):
            while offset < end and (chunk := response.read1(min(_CHUNK, end - offset))):
                file.write(chunk)
                offset += len(chunk)
                bar.update(len(chunk))
    if offset < size:
        raise http.client.IncompleteRead(b"", size - offset)
    return start == 0


class _WrongRange(http.client.HTTPException):
    """The server sent a different range than requested; ranges are then no longer requested."""


def _span(response: Any, offset: int, size: int) -> tuple[int, int]:
    """Return where the response starts and ends in the file."""
    if response.status != 206:
        return 0, size  # the server sends the whole file
    stated = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", stated)
    if not found or found[3] not in ("*", str(size)):
        raise _WrongRange(f"requested bytes {offset}-{size - 1}/{size}, got {stated!r}")
    start, last = int(found[1]), int(found[2])
    if start != offset or not start <= last < size:
        raise _WrongRange(f"requested bytes {offset}-{size - 1}/{size}, got {stated!r}")
    return start, last + 1


def _sha256(part: Path) -> str:
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def _requested_pause(failure: Exception) -> float:
    """Return the number of seconds that a busy server asks to wait."""
    if isinstance(failure, urllib.error.HTTPError):
        seconds = str(failure.headers.get("Retry-After", ""))
        if re.fullmatch("[0-9]{1,9}", seconds):
            return float(seconds)
    return 0.0


def _is_offline(error: Exception) -> bool:
    """Return whether the host name cannot be resolved, so that trying again is pointless."""
    return isinstance(getattr(error, "reason", None), socket.gaierror)


def _reason(failure: Exception | None, stall_timeout: float) -> str:
    reason = getattr(failure, "reason", failure)
    if isinstance(reason, TimeoutError):
        return f"no data for {stall_timeout:g} seconds"
    if isinstance(failure, http.client.IncompleteRead):
        return "the connection ended too early"
    return " ".join(str(reason).split())[:300]  # the server may send a long one


# --- the connection ------------------------------------------------------------------------------


def _opener(stall_timeout: float, slowest: float, limit: int) -> urllib.request.OpenerDirector:
    """Return an opener that monitors its responses from the first byte of their headers."""

    def answer(*args: Any, **options: Any) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(*args, **options)
        raw = _Watched(response.fp.detach(), stall_timeout, slowest, limit)
        response.fp = io.BufferedReader(raw)
        return response

    class Watching(urllib.request.AbstractHTTPHandler):
        def do_open(self, http_class: Any, req: Any, **options: Any) -> Any:
            def connection(host: str, **settings: Any) -> Any:
                made = http_class(host, **settings)
                made.response_class = answer
                return made

            return super().do_open(connection, req, **options)

    class HTTP(Watching, urllib.request.HTTPHandler): ...

    class HTTPS(Watching, urllib.request.HTTPSHandler): ...

    return urllib.request.build_opener(HTTP, HTTPS, _NoDowngrade)


class _Watched(io.RawIOBase):
    """Read the bytes of one response, and stop what the timeout of a socket does not stop: a server
    that sends a byte now and then, and endless headers or trailers.
    """

    def __init__(self, raw: io.RawIOBase, window: float, slowest: float, limit: int) -> None:
        self._raw = raw
        self._window = window
        self._slowest = slowest
        self._left = limit  # bytes
        self._since, self._arrived = time.monotonic(), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        seconds = time.monotonic() - self._since
        if seconds >= self._window:
            if self._arrived < self._slowest * seconds:
                raise http.client.HTTPException(
                    f"{self._arrived} bytes in {seconds:.3g} seconds are too slow"
                )
            self._since, self._arrived = time.monotonic(), 0
        try:
            count = self._raw.readinto(buffer) or 0
        except (TimeoutError, ConnectionError, ssl.SSLError):
            raise
        except OSError as error:  # of the network, not of the disk
            raise ConnectionError(error.errno, error.strerror or str(error)) from error
        self._arrived += count
        self._left -= count
        if self._left < 0:
            raise http.client.HTTPException("the response does not end")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follow redirects, except from https to http or to other protocols."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            fp.close()
            raise DownloadError(f"{req.full_url} redirects to the unencrypted {newurl}")
        if not newurl.startswith(("https:", "http:")):
            fp.close()
            raise DownloadError(f"{req.full_url} redirects to {newurl}, which is not http")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
    ) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except ValueError:  # an invalid address; the response would stay open
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302
