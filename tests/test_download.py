"""Downloads from a local server that misbehaves in the ways of real ones."""

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cifar_resnet.data.download import DownloadError, download

CONTENT = os.urandom(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()

Behaviour = Callable[[BaseHTTPRequestHandler, int], None]


class Server:
    """Answers each request with the next behaviour of a list; the last one stays."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.ranges: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                outer.ranges.append(asked)
                start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
                behaviours[min(len(outer.ranges), len(behaviours)) - 1](self, start)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/file"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(*behaviours: Behaviour) -> Server:
        servers.append(Server(*behaviours))
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


def cut_after(count: int) -> Behaviour:
    def behaviour(handler: BaseHTTPRequestHandler, start: int) -> None:
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(CONTENT) - start))
        handler.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        handler.end_headers()
        handler.wfile.write(CONTENT[start : start + count])

    return behaviour


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
    ("behaviours", "ranges"),
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
    behaviours: list[Behaviour],
    ranges: list[str | None],
) -> None:
    server = serve(*behaviours)
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
            request, None, 302, "Found", Message(), "http://example.org/file"
        )


def test_a_server_that_starts_anew_each_time_ends_too(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    def status_200(count: int) -> Behaviour:
        def behaviour(handler: BaseHTTPRequestHandler, start: int) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(CONTENT)))
            handler.end_headers()
            handler.wfile.write(CONTENT[:count])

        return behaviour

    server = serve(*[status_200(count) for count in (9000, 3000, 5000, 4000, 6000, 8000)])
    with pytest.raises(DownloadError, match="connection ended too early"):
        fetch(server, tmp_path / "file")
    assert len(server.ranges) == 4  # the first one brought something, the next three nothing more


def test_an_unknown_host_fails_at_once(tmp_path: Path) -> None:
    start = time.perf_counter()
    with pytest.raises(DownloadError, match="https://host.invalid/file"):
        download("https://host.invalid/file", tmp_path / "file", size=1, sha256="", pause=30)
    assert time.perf_counter() - start < 20
