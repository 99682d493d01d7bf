"""Request a file over HTTP from a given byte on, and watch what the server sends."""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

__all__ = [
    "NETWORK_ERRORS",
    "DownloadError",
    "WrongRangeError",
    "explained",
    "is_permanent",
    "request",
    "requested_pause",
]

_OVERHEAD = 1 << 20  # maximum number of other bytes in a response, such as headers

# what a request and reading its response may raise because of the network or the server
NETWORK_ERRORS = (
    TimeoutError,
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    ssl.SSLError,
    ValueError,  # an invalid address or number
)


class DownloadError(RuntimeError):
    """The file could not be downloaded; a later call continues with its `.part` file."""


class WrongRangeError(http.client.HTTPException):
    """The server sent a different range than requested; ranges are then no longer requested."""


@contextmanager
def request(
    url: str, start: int | None, size: int, *, stall_timeout: float, slowest: float
) -> Iterator[tuple[Any, int, int]]:
    """Request a file of `size` bytes, or its rest from byte `start` on.

    Yields:
        The response, and the first byte and the end of what it holds.

    Raises:
        DownloadError: If the response is not the expected file, or redirects to an unsafe address.
        WrongRangeError: If the server sends a different range.
        OSError: If the server cannot be reached or fails; see `NETWORK_ERRORS`.
    """
    opener = _opener(stall_timeout, slowest, size + size // 8 + _OVERHEAD)
    asked = urllib.request.Request(url, headers={"User-Agent": "cifar-resnet"})
    if start:
        asked.add_header("Range", f"bytes={start}-")
    with opener.open(asked, timeout=stall_timeout) as response:
        first, end = _span(response, start or 0, size)
        expected = response.headers.get("Content-Length", "")
        if expected.isdecimal() and not response.chunked and int(expected) != end - first:
            raise DownloadError(
                f"{url} offers {int(expected) + first} bytes, but the file has {size}: "
                "it is not the expected file"
            )
        yield response, first, end


def is_permanent(error: Exception) -> bool:
    """Return whether trying again is pointless."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code not in (408, 416, 425, 429)
    if isinstance(getattr(error, "reason", None), socket.gaierror):
        return True  # the host name cannot be resolved
    return isinstance(error, DownloadError)


def requested_pause(failure: Exception) -> float:
    """Return the number of seconds that a busy server asks to wait."""
    if isinstance(failure, urllib.error.HTTPError):
        seconds = str(failure.headers.get("Retry-After", ""))
        if re.fullmatch("[0-9]{1,9}", seconds):
            return float(seconds)
    return 0.0


def explained(failure: Exception | None, stall_timeout: float) -> str:
    reason = getattr(failure, "reason", failure)
    if isinstance(reason, TimeoutError):
        return str(reason) if "no data" in str(reason) else f"no data for {stall_timeout:g} seconds"
    if isinstance(failure, http.client.IncompleteRead):
        return "the connection ended too early"
    return " ".join(str(reason).split())[:300]  # the server may send a long one


def _span(response: Any, offset: int, size: int) -> tuple[int, int]:
    """Return where the response starts and ends in the file."""
    if response.status != 206:
        return 0, size  # the server sends the whole file
    stated = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", stated)
    if not found or found[3] not in ("*", str(size)):
        raise WrongRangeError(f"requested bytes {offset}-{size - 1}/{size}, got {stated!r}")
    start, last = int(found[1]), int(found[2])
    if start != offset or not start <= last < size:
        raise WrongRangeError(f"requested bytes {offset}-{size - 1}/{size}, got {stated!r}")
    return start, last + 1


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
