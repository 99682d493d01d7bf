"""Test downloads from a local server that fails in every way that a server can fail."""

import contextlib
import gc
import gzip
import hashlib
import io
import os
import random
import re
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cifar_resnet.data.cifar10 import Archive
from cifar_resnet.data.download import DownloadError, Limits, Source, download

CONTENT = random.Random(0).randbytes(300_000)
SIZE = len(CONTENT)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Answer(NamedTuple):
    """One request and the means to answer it, correctly or not."""

    connection: socket.socket
    start: int | None  # first byte, if a range was requested
    rng: random.Random

    def send(self, status: str, *headers: str, body: bytes = b"") -> None:
        head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers))
        self.connection.sendall(head.encode("latin1") + b"\r\n" + body)

    def body(self) -> bytes:
        return CONTENT[self.start or 0 :]

    def some(self, body: bytes) -> bytes:
        return body[: self.rng.randint(0, len(body))]

    def begin(self, length: int | None = None) -> bytes:
        """Send the headers of a correct answer and return the body that they announce."""
        body = self.body()
        headers = [f"Content-Length: {len(body) if length is None else length}"]
        if self.start is not None:
            headers.append(f"Content-Range: bytes {self.start}-{SIZE - 1}/{SIZE}")
        self.send("200 OK" if self.start is None else "206 Partial Content", *headers)
        return body

    def wait(self) -> None:
        """Wait until the client gives up."""
        self.connection.settimeout(5)
        self.connection.recv(1)

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()


Behavior = Callable[[Answer], None]


class Server:
    """A server that answers each request with the next behavior of a list, then with the last."""

    def __init__(self, *behaviors: Behavior, seed: object = 0) -> None:
        self.starts: list[int | None] = []
        rng = random.Random(f"{seed}")
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):  # the client may close the connection
                    self.answer()

            def answer(self) -> None:
                path, start = self.rfile.readline(), None
                while (line := self.rfile.readline().strip()) != b"":
                    if match := re.fullmatch(rb"(?i)range: bytes=(\d+)-", line):
                        start = int(match[1])
                behavior = behaviors[min(len(outer.starts), len(behaviors) - 1)]
                outer.starts.append(start)
                (good if b"/good" in path else behavior)(Answer(self.connection, start, rng))

        socketserver.ThreadingTCPServer.daemon_threads = True
        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/file"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    with contextlib.ExitStack() as stack:
        yield lambda *behaviors: stack.enter_context(Server(*behaviors))


def good(a: Answer) -> None:
    a.connection.sendall(a.begin())


def cut_after(count: int) -> Behavior:
    return lambda a: a.connection.sendall(a.begin()[:count])


def stall(a: Answer) -> None:
    cut_after(1000)(a)
    a.wait()


def silent(a: Answer) -> None:
    a.begin()
    a.wait()


def reply(status: str, *headers: str, body: bytes = b"") -> Behavior:
    return lambda a: a.send(status, f"Content-Length: {len(body)}", *headers, body=body)


ignores_range = reply("200 OK", body=CONTENT)


def fetch(server: Server, path: Path, **options: Any) -> None:
    limits = Limits(**{"stall_timeout": 1.0, "pause": 0.01} | options)
    source = Source("the server", server.url, Archive(path.name, SIZE, SHA256))
    assert download([source], path.parent, limits, progress=False) == (source, path)


@pytest.mark.parametrize(
    ("behaviors", "starts"),
    [
        ([good], [None]),
        ([cut_after(100_000), good], [None, 100_000]),
        ([cut_after(100_000), cut_after(50_000), good], [None, 100_000, 150_000]),
        ([cut_after(50_000)], [None, *(k * 50_000 for k in range(1, 6))]),
        ([stall, good], [None, 1000]),
        ([reply("503 Service Unavailable"), good], [None, None]),
        ([cut_after(5000), ignores_range], [None, 5000]),
    ],
    ids=["good", "cut once", "cut twice", "cut again and again", "stalls", "503", "range ignored"],
)
def test_the_file_arrives(
    serve: Callable[..., Server],
    tmp_path: Path,
    behaviors: list[Behavior],
    starts: list[int | None],
) -> None:
    server = serve(*behaviors)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.starts == starts
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_an_interrupted_download_is_continued_by_the_next_call(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(cut_after(7000), cut_after(7000), cut_after(0))
    with pytest.raises(
        DownloadError, match="connection ended too early\nThe 14000 of 300000 bytes"
    ):
        fetch(server, tmp_path / "file", attempts=2)
    assert not (tmp_path / "file").exists()
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:14_000]
    again = serve(good)
    fetch(again, tmp_path / "file")
    assert again.starts == [14_000]
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_server_that_stays_silent(serve: Callable[..., Server], tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"no data for 0\.2 seconds\nThe 2000 of 300000"):
        fetch(serve(stall, stall, silent), tmp_path / "file", stall_timeout=0.2, attempts=2)


def test_a_wrong_length_is_refused_before_the_download(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(reply("200 OK", body=CONTENT[:-5]))
    with pytest.raises(DownloadError, match="offers 299995 bytes, but the file has 300000"):
        fetch(server, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_wrong_file_of_the_right_length_is_deleted(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(reply("200 OK", body=b"x" * SIZE))
    with pytest.raises(DownloadError, match="sent a wrong file of 300000 bytes: SHA-256"):
        fetch(server, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_a_part_that_is_too_long_is_dropped(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(b"x" * 400_000)
    fetch(serve(good), tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_missing_file_is_requested_only_once(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve(reply("404 Not Found"))
    with pytest.raises(DownloadError, match="Not Found"):
        fetch(server, tmp_path / "file")
    assert len(server.starts) == 1


def test_a_redirect_is_followed(serve: Callable[..., Server], tmp_path: Path) -> None:
    target = serve(good)
    server = serve(reply("302 Found", f"Location: {target.url}"))
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_redirect_to_an_unencrypted_address_is_refused() -> None:
    import urllib.request
    from email.message import Message

    from cifar_resnet.data.connection import _NoDowngrade

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


def test_a_server_that_always_starts_over_is_given_up(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    def status_200(count: int) -> Behavior:
        return lambda a: a.send("200 OK", f"Content-Length: {SIZE}", body=CONTENT[:count])

    server = serve(*[status_200(count) for count in (9000, 3000, 5000, 4000, 6000, 8000)])
    with pytest.raises(DownloadError, match="connection ended too early"):
        fetch(server, tmp_path / "file")
    assert len(server.starts) == 4  # only the first request increased the part; three more did not


def test_an_unknown_host_fails_at_once(tmp_path: Path) -> None:
    start = time.perf_counter()
    source = Source("nowhere", "https://host.invalid/file", Archive("file", 1, ""))
    with pytest.raises(DownloadError, match="https://host.invalid/file"):
        download([source], tmp_path, Limits(pause=30))
    assert time.perf_counter() - start < 20


# --- faults of the server ------------------------------------------------------------------------


def resets(a: Answer) -> None:
    a.connection.sendall(a.some(a.begin()))
    a.reset()


def stalls(a: Answer) -> None:
    a.connection.sendall(a.some(a.begin()))
    a.wait()


def stalls_in_headers(a: Answer) -> None:
    a.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-")
    a.wait()


def drips(a: Answer) -> None:
    for byte in a.begin():
        a.connection.sendall(bytes([byte]))
        time.sleep(0.02)


def endless(start: bytes, again: bytes, pause: float = 0) -> Behavior:
    def behavior(a: Answer) -> None:
        a.connection.sendall(start)
        while True:
            a.connection.sendall(again)
            time.sleep(pause)

    return behavior


def chunked(a: Answer, content: bytes = CONTENT, end: bytes = b"0\r\n\r\n") -> None:
    a.send("200 OK", "Transfer-Encoding: chunked")
    while content:
        count = a.rng.randint(1, 20_000)
        chunk, content = content[:count], content[count:]
        a.connection.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
    a.connection.sendall(end)


def chunked_cut(a: Answer) -> None:
    ends = (b"", b"0\r\n\r\n", b"zz\r\n", b"-5\r\nxx", b"ffffffffff\r\n")
    chunked(a, a.some(CONTENT), a.rng.choice(ends))


def endless_trailers(a: Answer) -> None:
    chunked(a, CONTENT[:1000], b"0\r\n")
    endless(b"", b"X: y\r\n" * 10_000)(a)


def length_nonsense(a: Answer) -> None:
    value = a.rng.choice(("-5", "abc", "", "1e5", "9" * 5000, "\xb2"))
    a.send("200 OK", f"Content-Length: {value}", body=CONTENT)


def another_range(a: Answer) -> None:
    start = a.rng.randrange(SIZE)
    stated = f"Content-Range: bytes {start}-{SIZE - 1}/{SIZE}"
    a.send("206 Partial Content", stated, body=CONTENT[start:])


def another_total(a: Answer) -> None:
    total = SIZE + a.rng.randint(1, 1000)
    stated = f"Content-Range: bytes {a.start or 0}-{total - 1}/{total}"
    a.send("206 Partial Content", stated, f"Content-Length: {len(a.body())}", body=a.body())


def part_of_the_range(a: Answer) -> None:
    start = a.start or 0
    end = a.rng.randint(start + 1, SIZE)
    stated = f"Content-Range: bytes {start}-{end - 1}/{SIZE}"
    a.send("206 Partial Content", stated, body=CONTENT[start:end])


def wrong_byte(a: Answer) -> None:
    body = bytearray(a.begin())
    if body:
        body[a.rng.randrange(len(body))] ^= 1
    a.connection.sendall(body)


def compressed(a: Answer) -> None:
    body = gzip.compress(CONTENT)
    length = [f"Content-Length: {len(body)}"] if a.rng.random() < 0.5 else []
    a.send("200 OK", "Content-Encoding: gzip", *length, body=body)


def redirects_elsewhere(a: Answer) -> None:
    targets = ("file:///etc/hostname", "ftp://127.0.0.1:9/x", "data:,x", "http://[bad", "")
    a.send("302 Found", f"Location: {a.rng.choice(targets)}")


def busy(a: Answer) -> None:
    pause = a.rng.choice(("0", "3600", "soon", "-1", "Wed, 21 Oct 2015 07:28:00 GMT"))
    a.send("503 Service Unavailable", f"Retry-After: {pause}", "Content-Length: 0")


def garbage(a: Answer) -> None:
    answers = (a.rng.randbytes(2000), b"HTTP/1.1 abc OK\r\n\r\n", b"\r\n" * 9)
    a.connection.sendall(a.rng.choice(answers))


OK = b"HTTP/1.1 200 OK\r\n"
# Faults after which the file arrives, because the download continues or tries again.
RECOVERABLE: dict[str, Behavior] = {
    "resets": resets,
    "resets at once": Answer.reset,
    "closes": lambda a: a.connection.sendall(a.some(a.begin())),
    "closes at once": lambda a: None,
    "stalls": stalls,
    "stalls in headers": stalls_in_headers,
    "drips": drips,
    "drips headers": endless(OK + b"X: ", b"x", 0.02),
    "length nonsense": length_nonsense,
    "no length": lambda a: a.send("200 OK", body=CONTENT),
    "no length, cut": lambda a: a.send("200 OK", body=a.some(CONTENT)),
    "longer than announced": lambda a: a.connection.sendall(a.begin() + a.rng.randbytes(1000)),
    "longer than the file": lambda a: a.send("200 OK", body=CONTENT + a.rng.randbytes(1000)),
    "chunked": chunked,
    "chunked, cut": chunked_cut,
    "endless trailers": endless_trailers,
    "another range": another_range,
    "another total of the range": another_total,
    "range without a header": lambda a: a.send("206 Partial Content", body=a.body()),
    "part of the range": part_of_the_range,
    "whole file": ignores_range,
    "redirects": reply("302 Found", "Location: /good"),
    "busy": busy,
    "garbage": garbage,
    "endless headers": endless(OK, b"X: y\r\n" * 10_000),
    "endless continue": endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000),
    "429": reply("429 Too Many Requests"),
}
# Faults that may also end in an error; a later call then fetches the file.
OTHERS: dict[str, Behavior] = {
    "length too long": lambda a: a.connection.sendall(a.begin(len(a.body()) + 10)),
    "length too short": lambda a: a.connection.sendall(a.begin(max(len(a.body()) - 10, 0))),
    "wrong byte": wrong_byte,
    "wrong bytes, cut": lambda a: a.connection.sendall(a.rng.randbytes(len(a.some(a.begin())))),
    "compressed": compressed,
    "redirects forever": lambda a: a.send("302 Found", f"Location: /{a.rng.random()}"),
    "redirects elsewhere": redirects_elsewhere,
    "404": reply("404 Not Found"),
    "416": reply("416 Bad Range"),
    "no content": reply("204 No Content"),
}
FAULTS = RECOVERABLE | OTHERS


@contextlib.contextmanager
def time_limit(seconds: int = 60) -> Iterator[None]:
    def hang(*_: object) -> None:
        raise AssertionError(f"not finished after {seconds} seconds")

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def outcome(server: Server, path: Path, **options: Any) -> str:
    """Download within a time limit; only the right file or a clear error will do."""
    failure = ""
    with time_limit():
        try:
            fetch(server, path, **{"stall_timeout": 0.3} | options)
        except DownloadError as error:
            failure = str(error)
    if failure:
        assert "the server: http" in failure
        assert not path.exists()
        return "failed"
    assert path.read_bytes() == CONTENT
    return "arrived"


def assert_completed_by_a_good_server(path: Path) -> None:
    with Server(good) as server:
        assert outcome(server, path, stall_timeout=5.0) == "arrived"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "part"),
    # half of them continue a download, and those about ranges are tried both ways
    [(name, 20_000 * (index % 2)) for index, name in enumerate(FAULTS)]
    + [(name, 20_000 * (1 - i % 2)) for i, name in enumerate(FAULTS) if "range" in name],
)
def test_each_fault_before_a_good_answer(tmp_path: Path, name: str, part: int) -> None:
    path = tmp_path / "file"
    if part:
        (tmp_path / "file.part").write_bytes(CONTENT[:part])
    with Server(FAULTS[name], good, seed=f"{name} {part}") as server:
        result = outcome(server, path, attempts=6)
    if result == "failed":
        assert name in OTHERS
        assert_completed_by_a_good_server(path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("drips", "too slow"),
        ("drips headers", "too slow"),
        ("endless headers", "more than 100 headers"),
        ("endless continue", "not end"),
    ],
)
def test_no_fault_goes_on_forever(
    serve: Callable[..., Server], tmp_path: Path, name: str, message: str
) -> None:
    server = serve(FAULTS[name])
    with pytest.raises(DownloadError, match=message):
        fetch(server, tmp_path / "file", stall_timeout=0.3)
    assert len(server.starts) == 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_sequences_of_faults(tmp_path: Path, seed: int) -> None:
    """Up to five faults, sometimes after another file's part, and usually a good answer."""
    rng = random.Random(seed)
    faults = [FAULTS[name] for name in rng.choices(list(FAULTS), k=rng.randint(1, 5))]
    path = tmp_path / "file"
    if rng.random() < 0.25:
        (tmp_path / "file.part").write_bytes(rng.randbytes(rng.randint(1, SIZE + 100)))
    with Server(*faults, *[good] * (rng.random() < 2 / 3), seed=seed) as server:
        outcome(server, path)
    path.unlink(missing_ok=True)
    assert_completed_by_a_good_server(path)


CHILD = """\
import sys
from pathlib import Path
from cifar_resnet.data.cifar10 import Archive
from cifar_resnet.data.download import Source, download
print("ready", flush=True)
url, path, size, sha256 = sys.argv[1:]
source = Source("the server", url, Archive(Path(path).name, int(size), sha256))
download([source], Path(path).parent, progress=False)
"""


def slowly(a: Answer) -> None:
    body = a.begin()
    for start in range(0, len(body), 6000):
        a.connection.sendall(body[start : start + 6000])
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_killed_download_is_continued(
    serve: Callable[..., Server], tmp_path: Path, seed: int
) -> None:
    """Kill a download up to three times at random moments, then complete it."""
    rng = random.Random(seed)
    path, part = tmp_path / "file", tmp_path / "file.part"
    killed = 0
    for _ in range(rng.randint(1, 3)):
        command = [sys.executable, "-c", CHILD, serve(slowly).url, str(path), str(SIZE), SHA256]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            time.sleep(rng.uniform(0, 0.4))
            killed += child.poll() is None
            child.kill()
        assert not path.exists() or path.read_bytes() == CONTENT
    assert killed
    if not path.exists():
        kept = part.stat().st_size if part.exists() else 0
        assert part.read_bytes() == CONTENT[:kept] if kept else True
        server = serve(good)
        assert outcome(server, path, stall_timeout=5.0) == "arrived"
        assert server.starts == [kept or None]


# --- parts, ranges and pauses --------------------------------------------------------------------


@pytest.mark.parametrize("length", [100_000, 300_000])
def test_a_part_of_another_file_is_replaced(
    serve: Callable[..., Server], tmp_path: Path, length: int
) -> None:
    (tmp_path / "file.part").write_bytes(os.urandom(length))
    server = serve(good)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.starts == [*([100_000] if length == 100_000 else []), None]


def test_a_wrong_file_is_fetched_again_only_once(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    def wrong(a: Answer) -> None:
        if a.start:
            reply(
                "206 Partial Content",
                "Content-Range: bytes 150000-299999/300000",
                body=b"x" * 150_000,
            )(a)
        else:
            cut_after(150_000)(a)

    server = serve(wrong)
    with pytest.raises(DownloadError, match="sent a wrong file of 300000 bytes"):
        fetch(server, tmp_path / "file")
    assert server.starts == [None, 150_000] * 2
    assert not list(tmp_path.iterdir())


def test_a_single_missing_byte(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "file.part").write_bytes(CONTENT[:-1])
    server = serve(good)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.starts == [299_999]


@pytest.mark.parametrize(
    ("content", "stated"),
    [(CONTENT[5:], "bytes 5-299999/300000"), (CONTENT[1000:] + b"x", "bytes 1000-300000/*")],
)
def test_after_a_wrong_range_the_whole_file_is_requested(
    serve: Callable[..., Server], tmp_path: Path, content: bytes, stated: str
) -> None:
    def wrong(a: Answer) -> None:
        if a.start:
            reply("206 Partial Content", f"Content-Range: {stated}", body=content)(a)
        else:
            good(a)

    server = serve(cut_after(1000), wrong, cut_after(1000), wrong)
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert server.starts == [None, 1000, None, None]


@pytest.mark.parametrize(("asked", "least", "most"), [("1", 1, 60), ("3600", 2, 60), ("x", 0, 1.9)])
def test_the_pause_that_a_busy_server_asks_for(
    serve: Callable[..., Server], tmp_path: Path, asked: str, least: float, most: float
) -> None:
    server = serve(reply("503 Service Unavailable", f"Retry-After: {asked}"), good)
    start = time.perf_counter()
    fetch(server, tmp_path / "file", stall_timeout=2.0)
    assert least <= time.perf_counter() - start < most


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "pipe"])
def test_a_part_that_is_not_a_file_of_its_own_is_not_written(
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


def test_a_folder_with_the_name_of_the_part(serve: Callable[..., Server], tmp_path: Path) -> None:
    (tmp_path / "file.part").mkdir()
    with pytest.raises(OSError, match=r"file\.part"):
        fetch(serve(good), tmp_path / "file")


@pytest.mark.parametrize("target", ["ftp://127.0.0.1/file", "file:///etc/hostname", "data:,x"])
def test_a_redirect_to_another_protocol_is_refused(
    serve: Callable[..., Server], tmp_path: Path, target: str
) -> None:
    server = serve(reply("302 Found", f"Location: {target}"))
    with pytest.raises(DownloadError, match="is not http|is not allowed"):
        fetch(server, tmp_path / "file")
    assert len(server.starts) == 1


def test_a_redirect_to_an_invalid_address(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(reply("301 Moved Permanently", "Location: http://[bad"))
    with pytest.raises(DownloadError, match="Invalid IPv6 URL"):
        fetch(server, tmp_path / "file")
    gc.collect()  # an open connection would give a warning, which is an error here


def test_a_redirect_in_a_circle_ends(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(reply("302 Found", "Location: /file"))
    with pytest.raises(DownloadError, match="infinite loop"):
        fetch(server, tmp_path / "file")


def test_a_lost_network_is_not_reported_as_a_disk_error(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: object) -> None:
        raise OSError(113, "No route to host")

    server = serve(good)
    monkeypatch.setattr(socket.SocketIO, "readinto", gone)
    with pytest.raises(DownloadError, match="No route to host"):
        fetch(server, tmp_path / "file")


def test_a_full_disk_is_not_reported_as_a_network_error(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(28, "No space left on device")

    server = serve(good)
    monkeypatch.setattr(Path, "open", lambda *_: Full())
    with pytest.raises(OSError, match="No space left on device"):
        fetch(server, tmp_path / "file")
    assert len(server.starts) == 1
