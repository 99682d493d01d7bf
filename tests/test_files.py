"""Test that files are written atomically, also by several threads and processes at once."""

import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cifar_resnet.files import atomic_write

SIZE = 200_000  # bytes; each writer fills them with one letter

WRITER = f"""
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from cifar_resnet.files import atomic_write

def write(letter):
    for _ in range(40):
        with atomic_write(Path(sys.argv[1])) as temporary, temporary.open("wb") as file:
            for _ in range(10):
                file.write(letter.encode() * {SIZE // 10})
                file.flush()

with ThreadPoolExecutor() as threads:
    list(threads.map(write, sys.argv[2]))  # raises the error of a thread
"""


def test_several_writers_never_show_a_torn_file(tmp_path: Path) -> None:
    path = tmp_path / "result"
    path.write_bytes(b"z" * SIZE)
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), letters], text=True)
        for letters in ("ab", "cd")
    ]
    seen: set[str] = set()

    def read() -> None:
        while any(process.poll() is None for process in processes):
            content = path.read_bytes()
            assert len(content) == SIZE
            assert content == content[:1] * SIZE
            seen.add(content[:1].decode())

    with ThreadPoolExecutor(2) as readers:
        for reading in [readers.submit(read) for _ in range(2)]:
            reading.result()
    assert [process.wait() for process in processes] == [0, 0]
    assert len(seen - {"z"}) > 1
    assert [item.name for item in tmp_path.iterdir()] == ["result"]


def test_two_writers_in_one_thread_do_not_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "result"
    with atomic_write(path) as outer:
        outer.write_text("outer")
        with atomic_write(path) as inner:
            inner.write_text("inner")
        assert path.read_text() == "inner"
    assert path.read_text() == "outer"


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["result"]


def test_what_a_killed_writer_left_is_deleted_after_an_hour(tmp_path: Path) -> None:
    path = tmp_path / "result"
    code = (
        "import os, pathlib; from cifar_resnet.files import atomic_write\n"
        f"with atomic_write(pathlib.Path({str(path)!r})) as temporary:\n"
        "    temporary.write_text('half'); os._exit(9)"
    )
    for _ in range(2):
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
    old, recent = tmp_path.iterdir()
    os.utime(old, (time.time() - 4000,) * 2)
    for name in ("other.part", ".other.1.part", "result.part"):
        (tmp_path / name).write_text("of others")
        os.utime(tmp_path / name, (0, 0))
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    names = {item.name for item in tmp_path.iterdir()}
    assert names == {"result", recent.name, "other.part", ".other.1.part", "result.part"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.write_text("")
    with atomic_write(tmp_path / "result") as temporary:
        temporary.write_text("")
    assert stat.S_IMODE((tmp_path / "result").stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


@pytest.mark.parametrize("name", ["a" * 255, "\N{GRINNING FACE}" * 63])
def test_the_name_may_have_the_maximum_length(tmp_path: Path, name: str) -> None:
    with atomic_write(tmp_path / name) as temporary:
        temporary.write_text("new")
    assert [item.name for item in tmp_path.iterdir()] == [name]


def test_the_thread_is_part_of_the_name(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "result") as temporary:
        assert temporary.name.startswith(f".result.{os.getpid()}-{threading.get_native_id()}-")
        temporary.write_text("")
