"""Measure downloads from local servers that are slow, slow down, redirect, drop the connection, or
send wrong data.

    python benchmarks/downloads.py [--rounds 1] [--only NAME]

Each case has an archive of the size of CIFAR-10's, with random content, and several servers. The
time is compared with that of the fastest correct server alone. Appends JSON lines to
benchmarks/results/downloads.jsonl and prints the table of docs/data.md.
"""

from __future__ import annotations

import argparse
import hashlib
import http.server
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

from machine import RESULTS, append, machine

from cifar_resnet.data.cifar10 import PICKLE_ARCHIVE, Archive
from cifar_resnet.data.download import Source, download

MB = 1_000_000
BOUND = "1.5 times the best source alone, plus 15 s"


class Server(NamedTuple):
    """How a server behaves; `speed` is in bytes per second."""

    label: str
    speed: float = 0.0
    later: float | None = None  # speed in the second half
    kind: str = "good"  # or "redirects", "drops", "wrong", "silent", "missing", "no ranges"


HEAD = """\
| case | servers, in order | best alone (s) | chosen (s) | ratio | from |
| --- | --- | --- | --- | --- | --- |"""
OFFICIAL = Server("0.05 MB/s", 0.05 * MB)
BEST = Server("10 MB/s", 10 * MB)
CASES: dict[str, list[Server]] = {
    "the first is fast": [Server("20 MB/s", 20 * MB), BEST],
    "the first is slow": [OFFICIAL, BEST],
    "only the last is fast": [OFFICIAL, Server("0.5 MB/s", 0.5 * MB), OFFICIAL, OFFICIAL, BEST],
    "the first is good enough": [Server("5 MB/s", 5 * MB), Server("6 MB/s", 6 * MB)],
    "the first is good, another one twice as fast": [Server("5 MB/s", 5 * MB), BEST],
    "no answer, not found, then fast": [
        Server("no answer", kind="silent"),
        Server("404", kind="missing"),
        BEST,
    ],
    "slows down midway": [Server("10 MB/s, later 0.05", 10 * MB, 0.05 * MB), BEST],
    "stalls midway": [Server("10 MB/s, later 0", 10 * MB, 0.0), BEST],
    "redirects": [OFFICIAL, Server("10 MB/s after a redirect", 10 * MB, kind="redirects")],
    "drops every connection after 30 MB": [
        Server("10 MB/s, drops", 10 * MB, kind="drops"),
        Server("8 MB/s", 8 * MB),
    ],
    "one server, drops every connection after 30 MB": [
        Server("10 MB/s, drops", 10 * MB, kind="drops")
    ],
    "wrong data": [Server("20 MB/s, wrong", 20 * MB, kind="wrong"), BEST],
    "no ranges": [OFFICIAL, Server("10 MB/s, no ranges", 10 * MB, kind="no ranges")],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--size", type=int, default=PICKLE_ARCHIVE.size, help="bytes")
    parser.add_argument("--results", type=Path, default=RESULTS / "downloads.jsonl")
    args = parser.parse_args()
    content = random.Random(0).randbytes(args.size)
    archive = Archive("archive", args.size, hashlib.sha256(content).hexdigest())
    print(HEAD)
    for name in [args.only] if args.only else CASES:
        servers = CASES[name]
        best = best_server(servers)
        for _ in range(args.rounds):
            alone, _ = measure([best], content, archive)
            together, source = measure(servers, content, archive)
            line = {
                "benchmark": "download", "case": name, "unit": "s", "bytes": args.size,
                "servers": [server.label for server in servers],
                "best_alone": alone, "seconds": together, "ratio": together / alone,
                "source": source, "within": together <= 1.5 * alone + 15, "bound": BOUND,
            }  # fmt: skip
            append(args.results, line | machine())
            print(row(line), flush=True)


def row(line: dict[str, Any]) -> str:
    """Return a row of the table."""
    times = f"{line['best_alone']:.1f} | {line['seconds']:.1f} | {line['ratio']:.2f}"
    return f"| {line['case']} | {'; '.join(line['servers'])} | {times} | {line['source']} |"


def best_server(servers: list[Server]) -> Server:
    """Return the server that sends the correct archive in the shortest time."""

    def seconds(server: Server) -> float:
        if server.kind in ("wrong", "silent", "missing"):
            return float("inf")
        later = server.speed if server.later is None else server.later
        return 1 / server.speed + (1 / later if later else float("inf"))

    return min(servers, key=seconds)


def measure(servers: list[Server], content: bytes, archive: Archive) -> tuple[float, str]:
    """Return the seconds of a download from these servers, and the source at its end."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sources = []
        for server in servers:
            web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(server, content))
            web.daemon_threads = True
            stack.callback(web.server_close)
            threading.Thread(target=web.serve_forever, args=(0.05,), daemon=True).start()
            stack.callback(web.shutdown)
            url = f"http://127.0.0.1:{web.server_port}/file"
            sources.append(Source(server.label, url, archive))
        start = time.perf_counter()
        source, path = download(sources, folder, progress=False)
        seconds = time.perf_counter() - start
        assert hashlib.sha256(path.read_bytes()).hexdigest() == archive.sha256
    return seconds, source.name


def handler(server: Server, content: bytes) -> Callable[..., Any]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):  # the client may close the connection
                self.answer()

        def answer(self) -> None:
            if server.kind == "silent":
                time.sleep(3600)
            if server.kind == "missing":
                self.send_error(404)
                return
            if server.kind == "redirects" and self.path == "/file":
                self.send_response(302)
                self.send_header("Location", "/elsewhere")
                self.end_headers()
                return
            asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(asked[1]) if asked and server.kind != "no ranges" else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            if start:
                stated = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", stated)
            self.end_headers()
            self.send_slowly(start)

        def send_slowly(self, start: int) -> None:
            position, due = start, time.monotonic()
            end = start + 30 * MB if server.kind == "drops" else len(content)
            while position < min(end, len(content)):
                second_half = position >= len(content) // 2 and server.later is not None
                speed = server.later if second_half else server.speed
                if not speed:
                    time.sleep(3600)
                    return
                block = content[position : position + max(1, int(speed / 50))]
                if server.kind == "wrong":
                    block = block[::-1]
                self.wfile.write(block)
                position += len(block)
                due = max(due + len(block) / speed, time.monotonic() - 0.1)
                time.sleep(max(0.0, due - time.monotonic()))

        def log_message(self, *_: object) -> None:
            pass

    return Handler


if __name__ == "__main__":
    main()
