"""Downloads from a local server that misbehaves in the ways of real ones, and in the worst ways:
those of `benchmarks/data_faults.py`, here in small numbers.
"""

import gc
import hashlib
import io
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cifar_resnet.data.download import DownloadError, download

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import data_faults as faults

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()

Behavior = Callable[[BaseHTTPRequestHandler, int], None]


class Server:
    """Answers each request with the next behavior of a list; the last one stays."""

    def __init__(self, *behaviors: Behavior) -> None:
        self.ranges: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                outer.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                behaviors[min(len(outer.ranges), len(behaviors)) - 1](self, start)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/file"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*behaviors: Behavior) -> Server:
        servers.append(Server(*behaviors))
        return servers[-1]

    yield start
    for server in servers:
        server.server.shutdown()
        server.server.server_close()


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | headers).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def good(handler: BaseHTTPRequestHandler, start: int) -> None:
    if start:
        span = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
        answer(handler, 206, CONTENT[start:], Content_Range=span)
    else:
        answer(handler, 200, CONTENT)


def cut_after(count: int) -> Behavior:
    def behavior(handler: BaseHTTPRequestHandler, start: int) -> None:
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(CONTENT) - start))
        handler.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.end_headers()
        handler.wfile.write(CONTENT[start : start + count])

    return behavior


def stall(handler: BaseHTTPRequestHandler, start: int) -> None:
    cut_after(1000)(handler, start)
    handler.wfile.flush()
    time.sleep(3)


def silent(handler: BaseHTTPRequestHandler, start: int) -> None:
    cut_after(0)(handler, start)
    handler.wfile.flush()
    time.sleep(1)


def ignores_range(handler: BaseHTTPRequestHandler, start: int) -> None:
    answer(handler, 200, CONTENT)


def unavailable(handler: BaseHTTPRequestHandler, start: int) -> None:
    answer(handler, 503, b"")


def fetch(server: Server, path: Path, **options: object) -> None:
    settings = {"stall_timeout": 1.0, "pause": 0.01, "progress": False} | options
    download(server.url, path, size=len(CONTENT), sha256=SHA256, **settings)


@pytest.mark.parametrize(
    ("behaviors", "ranges"),
    [
        ([good], [None]),
        ([cut_after(100_000), good], [None, "bytes=100000-"]),
        ([cut_after(100_000), cut_after(50_000), good], [None, "bytes=100000-", "bytes=150000-"]),
        (
            [cut_after(50_000)],
            [None, *(f"bytes={k * 50_000}-" for k in range(1, 6))],
        ),
        ([stall, good], [None, "bytes=1000-"]),
        ([unavailable, good], [None, None]),
        ([cut_after(5000), ignores_range], [None, "bytes=5000-"]),
    ],
    ids=["good", "cut once", "cut twice", "cut again and again", "stalls", "503", "range ignored"],
)
def test_the_file_arrives(
    serve: Callable[..., Server],
    tmp_path: Path,
    behaviors: list[Behavior],
    ranges: list[str | None],
) -> None:
    server = serve(*behaviors)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == ranges
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_download_is_continued_by_the_next_call(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(cut_after(7000), cut_after(7000), cut_after(0))
    with pytest.raises(
        DownloadError, match="connection ended too early; the 14000 of 300000 bytes"
    ):
        fetch(server, tmp_path / "file", attempts=2)
    assert not (tmp_path / "file").exists()
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:14_000]
    again = serve(good)
    fetch(again, tmp_path / "file")
    assert again.ranges == ["bytes=14000-"]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_stays_silent(serve: Callable[..., Server], tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"no data for 0\.2 seconds; the 2000 of 300000"):
        fetch(serve(stall, stall, silent), tmp_path / "file", stall_timeout=0.2, attempts=2)


def test_a_wrong_length_is_refused_before_the_download(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(lambda handler, start: answer(handler, 200, CONTENT[:-5]))
    with pytest.raises(DownloadError, match="offers 299995 bytes, but the file has 300000"):
        fetch(server, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_wrong_file_of_the_right_length_is_deleted(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(lambda handler, start: answer(handler, 200, b"x" * len(CONTENT)))
    with pytest.raises(DownloadError, match="sent a wrong file of 300000 bytes: SHA-256"):
        fetch(server, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_part_that_is_too_long_is_dropped(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 400_000)
    fetch(serve(good), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_missing_file_is_not_asked_for_again(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(lambda handler, start: answer(handler, 404, b""))
    with pytest.raises(DownloadError, match="Not Found"):
        fetch(server, tmp_path / "file")
    assert len(server.ranges) == 1


def test_a_redirect_is_followed(serve: Callable[..., Server], tmp_path: Path) -> None:
    target = serve(good)
    server = serve(lambda handler, start: answer(handler, 302, b"", Location=target.url))
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_redirect_to_an_unencrypted_address_is_refused() -> None:
    import urllib.request
    from email.message import Message

    from cifar_resnet.data.download import _NoDowngrade

    request = urllib.request.Request("https://example.org/file")
    with pytest.raises(DownloadError, match="redirects to the unencrypted http://example.org"):
        _NoDowngrade().redirect_request(
            request, io.BytesIO(), 302, "Found", Message(), "http://example.org/file"
        )
    followed = _NoDowngrade().redirect_request(
        request, io.BytesIO(), 302, "Found", Message(), "https://example.org/other"
    )
    assert followed is not None
    assert followed.full_url == "https://example.org/other"


def test_a_server_that_starts_anew_each_time_ends_too(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    def status_200(count: int) -> Behavior:
        def behavior(handler: BaseHTTPRequestHandler, start: int) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(CONTENT)))
            handler.end_headers()
            handler.wfile.write(CONTENT[:count])

        return behavior

    server = serve(*[status_200(count) for count in (9000, 3000, 5000, 4000, 6000, 8000)])
    with pytest.raises(DownloadError, match="connection ended too early"):
        fetch(server, tmp_path / "file")
    assert len(server.ranges) == 4  # the first one brought something, the next three nothing more


def test_an_unknown_host_fails_at_once(tmp_path: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(DownloadError, match="https://host.invalid/file"):
        download("https://host.invalid/file", tmp_path / "file", size=1, sha256="", pause=30)
    assert time.perf_counter() - start < 20


# --- the worst ways ------------------------------------------------------------------------------

FILE = random.Random(0).randbytes(50_000)
# what brings the file by itself, or after another request
ARRIVES = {
    "resets", "resets at once", "closes", "closes at once", "stalls", "stalls in headers", "drips",
    "drips headers", "length nonsense", "no length", "no length cut", "longer than announced",
    "longer than the file", "chunked", "chunked cut", "endless trailers", "another range",
    "another total", "range without header", "a part of the range", "whole file", "redirects",
    "busy", "garbage", "endless headers", "endless continue", "503 or 429",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "part"),
    # half of them when a download is continued, both where that makes the difference
    [(name, 20_000 * (index % 2)) for index, name in enumerate(faults.FAULTS)]
    + [(name, 20_000 * (1 - i % 2)) for i, name in enumerate(faults.FAULTS) if "range" in name],
)
def test_each_fault_before_a_good_answer(tmp_path: Path, name: str, part: int) -> None:
    path = tmp_path / "file"
    if part:
        (tmp_path / "file.part").write_bytes(FILE[:part])
    with faults.Server(FILE, faults.FAULTS[name], faults.good, seed=f"{name} {part}") as server:
        outcome = faults.fetched(server, path, FILE, attempts=6)
    assert outcome in ("arrived", "failed clearly")
    if name in ARRIVES:
        assert outcome == "arrived"
    if outcome != "arrived":
        with faults.Server(FILE, faults.good) as server:
            assert faults.fetched(server, path, FILE, stall_timeout=5.0) == "arrived"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["drips", "drips headers", "endless headers", "endless continue"])
def test_no_fault_goes_on_for_ever(tmp_path: Path, name: str) -> None:
    messages = {"drips": "too slow", "drips headers": "too slow", "endless continue": "not end"}
    with (
        faults.Server(FILE, faults.FAULTS[name]) as server,
        pytest.raises(DownloadError, match=messages.get(name, "more than 100 headers")),
    ):
        download(
            server.url, tmp_path / "file", size=len(FILE), sha256="", progress=False,
            stall_timeout=0.3, pause=0.01,
        )  # fmt: skip
    assert len(server.requests) == 3


def test_sequences_of_faults(tmp_path: Path) -> None:
    line = faults.server_faults(tmp_path, 12, seed=2)
    assert line["wrong"] == {}
    assert line["arrived"] + line["failed_clearly"] == line["trials"] == 12
    assert line["arrived"] > 3


def test_a_download_that_is_killed(tmp_path: Path) -> None:
    line = faults.killed_downloads(tmp_path, 3, seed=1)
    assert line["wrong"] == {}
    assert line["kinds"]["killed"] >= 1


@pytest.mark.parametrize("length", [100_000, 300_000])
def test_a_part_of_another_file_is_fetched_anew(
    serve: Callable[..., Server], tmp_path: Path, length: int
) -> None:
    (tmp_path / "file.part").write_bytes(os.urandom(length))
    server = serve(good)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [*(["bytes=100000-"] if length == 100_000 else []), None]


def test_it_is_fetched_anew_only_once(serve: Callable[..., Server], tmp_path: Path) -> None:
    def wrong(handler: BaseHTTPRequestHandler, start: int) -> None:
        cut_after(150_000)(handler, start) if not start else answer(
            handler, 206, b"x" * 150_000, Content_Range="bytes 150000-299999/300000"
        )

    server = serve(wrong)
    with pytest.raises(DownloadError, match="sent a wrong file of 300000 bytes"):
        fetch(server, tmp_path / "file")
    assert server.ranges == [None, "bytes=150000-"] * 2
    assert not list(tmp_path.iterdir())


def test_a_single_byte_that_is_lacking(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:-1])

    def last(handler: BaseHTTPRequestHandler, start: int) -> None:
        answer(handler, 206, CONTENT[-1:], Content_Range="bytes 299999-299999/300000")

    server = serve(last)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == ["bytes=299999-"]


@pytest.mark.parametrize(
    ("content", "stated"),
    [(CONTENT[5:], "bytes 5-299999/300000"), (CONTENT[1000:] + b"x", "bytes 1000-300000/*")],
)
def test_a_server_that_lies_about_ranges_is_asked_for_the_whole(
    serve: Callable[..., Server], tmp_path: Path, content: bytes, stated: str
) -> None:
    def lies(handler: BaseHTTPRequestHandler, start: int) -> None:
        if start:
            answer(handler, 206, content, Content_Range=stated)
        else:
            good(handler, 0)

    server = serve(cut_after(1000), lies, cut_after(1000), lies)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", None, None]


@pytest.mark.parametrize(("asked", "least", "most"), [("1", 1, 60), ("3600", 2, 60), ("x", 0, 1.9)])
def test_the_pause_that_a_busy_server_asks_for(
    serve: Callable[..., Server], tmp_path: Path, asked: str, least: float, most: float
) -> None:
    server = serve(lambda handler, start: answer(handler, 503, b"", Retry_After=asked), good)
    start = time.perf_counter()
    fetch(server, tmp_path / "file", stall_timeout=2.0)
    assert least <= time.perf_counter() - start < most


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "pipe"])
def test_a_part_that_is_not_ours_is_not_written(
    serve: Callable[..., Server], tmp_path: Path, kind: str
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    part = folder / "file.part"
    if kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("needs POSIX")
        os.mkfifo(part)
    elif kind == "hard link":
        part.hardlink_to(outside)
    else:
        part.symlink_to(outside if kind == "link" else tmp_path / "nothing")
    fetch(serve(good), folder / "file")
    assert (folder / "file").read_bytes() == CONTENT
    assert outside.read_bytes() == b"mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "outside"]


def test_a_folder_in_the_place_of_the_part(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "file.part").mkdir()
    with pytest.raises(OSError, match=r"file\.part"):
        fetch(serve(good), tmp_path / "file")


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/file", "file:///etc/hostname", "data:,x"])
def test_a_redirect_to_another_protocol_is_refused(
    serve: Callable[..., Server], tmp_path: Path, target: str
) -> None:
    server = serve(lambda handler, start: answer(handler, 302, b"", Location=target))
    with pytest.raises(DownloadError, match="is not http|is not allowed"):
        fetch(server, tmp_path / "file")
    assert len(server.ranges) == 1


def test_a_redirect_to_no_address(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(lambda handler, start: answer(handler, 301, b"", Location="http://[bad"))
    with pytest.raises(DownloadError, match="Invalid IPv6 URL"):
        fetch(server, tmp_path / "file")
    gc.collect()  # a connection that was left open would give a warning, which is an error here


def test_a_redirect_in_a_circle_ends(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(lambda handler, start: answer(handler, 302, b"", Location="/file"))
    with pytest.raises(DownloadError, match="infinite loop"):
        fetch(server, tmp_path / "file")


def test_a_network_that_is_gone_is_not_taken_for_the_disk(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise OSError(113, "No route to host")

    server = serve(good)
    monkeypatch.setattr(socket.SocketIO, "readinto", gone)
    with pytest.raises(DownloadError, match="No route to host"):
        fetch(server, tmp_path / "file")


def test_a_disk_that_is_full_is_not_taken_for_the_network(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    server = serve(good)
    monkeypatch.setattr(Path, "open", lambda *_: Full())
    with pytest.raises(OSError, match="No space left on device"):
        fetch(server, tmp_path / "file")
    assert len(server.ranges) == 1
