"""One file over HTTP that survives a bad line. It knows URLs and bytes, nothing of CIFAR-10."""

from __future__ import annotations

import hashlib
import http.client
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import IO, Any

__all__ = ["DownloadError", "download"]

_CHUNK = 1 << 18  # bytes


class DownloadError(RuntimeError):
    """The file could not be fetched; what arrived stays in a `.part` file and is continued."""


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http."""

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
            raise DownloadError(f"{req.full_url} redirects to the unencrypted {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(
    url: str,
    path: Path,
    *,
    size: int,
    sha256: str,
    stall_timeout: float = 20.0,
    attempts: int = 3,
    pause: float = 1.0,
    progress: bool = True,
) -> None:
    """Fetch `url` to `path`, which appears only when size and SHA-256 are right.

    What has arrived is kept in `path` + `.part`, and a later call continues there.

    Args:
        url: Address; a redirect from https to http is refused.
        path: File to write, in an existing folder.
        size: Expected size in bytes.
        sha256: Expected SHA-256 as hexadecimal digits.
        stall_timeout: Seconds without a byte after which an attempt ends.
        attempts: How often to try without receiving anything new before giving up; each attempt
            continues where the last one ended.
        pause: Seconds to wait before another attempt, doubled while nothing new arrives.
        progress: Whether to show a bar with speed and time left on standard error.

    Raises:
        DownloadError: If no attempt completed the file, or the file is not the expected one (then
            the part file is deleted too).
        OSError: If the file cannot be written.
    """
    part = path.with_name(path.name + ".part")
    failure: Exception | None = None
    most, fruitless = _size(part), 0  # bytes, and attempts since they last became more
    while fruitless < attempts:
        if failure is not None:
            time.sleep(pause * 2**fruitless)
        fruitless += 1
        try:
            _continue(url, part, size, stall_timeout, progress)
        except urllib.error.HTTPError as error:
            error.close()
            failure = error
            if error.code == 416:  # our part is longer than their file
                part.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 425, 429):
                break
        except (
            TimeoutError,
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            ssl.SSLError,
        ) as error:
            failure = error
            if _is_offline(error):
                break
        else:
            _finish(url, part, path, size, sha256)
            return
        if _size(part) > most:  # a server that starts anew each time must not go on for ever
            most, fruitless = _size(part), 0
    arrived = _size(part)
    kept = f"; the {arrived} of {size} bytes that arrived are kept" if arrived else ""
    raise DownloadError(f"{url}: {_reason(failure, stall_timeout)}{kept}") from failure


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _continue(url: str, part: Path, size: int, stall_timeout: float, progress: bool) -> None:
    from tqdm import tqdm

    offset = _size(part)
    if offset > size:
        part.unlink()
        offset = 0
    if offset == size:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "cifar-resnet"})
    if offset:
        request.add_header("Range", f"bytes={offset}-")
    opener = urllib.request.build_opener(_NoDowngrade)
    with opener.open(request, timeout=stall_timeout) as response:
        if offset and not _continues_at(response, offset):
            offset = 0  # the server sends the whole file
        expected = response.headers.get("Content-Length")
        if expected is not None and int(expected) != size - offset:
            raise DownloadError(
                f"{url} offers {int(expected) + offset} bytes, but the file has {size}: "
                "it is not the expected one"
            )
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
            while offset < size and (chunk := response.read1(min(_CHUNK, size - offset))):
                file.write(chunk)
                offset += len(chunk)
                bar.update(len(chunk))
    if offset < size:
        raise http.client.IncompleteRead(b"", size - offset)


def _continues_at(response: Any, offset: int) -> bool:
    content_range = str(response.headers.get("Content-Range", ""))
    return bool(response.status == 206) and content_range.startswith(f"bytes {offset}-")


def _finish(url: str, part: Path, path: Path, size: int, sha256: str) -> None:
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    if digest != sha256:
        part.unlink()
        raise DownloadError(
            f"{url} sent a wrong file of {size} bytes: SHA-256 {digest}, expected {sha256}"
        )
    part.replace(path)


def _is_offline(error: Exception) -> bool:
    """Whether trying again at once is pointless: the name is not known here."""
    return isinstance(getattr(error, "reason", None), socket.gaierror)


def _reason(failure: Exception | None, stall_timeout: float) -> str:
    reason = getattr(failure, "reason", failure)
    if isinstance(reason, TimeoutError):
        return f"no data for {stall_timeout:g} seconds"
    if isinstance(failure, http.client.IncompleteRead):
        return "the connection ended too early"
    return str(reason)
