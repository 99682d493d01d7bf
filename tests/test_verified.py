"""Files that have not changed since they were verified are not hashed again; changed ones are."""

import argparse
import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from test_data_faults import Dataset, write

from cifar_resnet import DatasetError
from cifar_resnet.cli import data as cli_data
from cifar_resnet.data import cifar10, formats, sources, verified

STAMP = ".cifar10.verified.json"


@pytest.fixture(scope="module")
def dataset(data_dir: Path) -> Dataset:
    return Dataset(data_dir, 20)


@pytest.fixture
def folder(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Yield a folder with small official files that have not changed for a while."""
    monkeypatch.setattr(verified, "_TICK", -1.0)
    files = dataset.files("binary folder")
    write(tmp_path, files)
    with dataset.official(files):
        yield tmp_path
    verified.Verified(tmp_path).forget()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the bytes that are hashed."""
    sizes: list[int] = []
    real = hashlib.sha256

    def sha256(content: bytes = b"", **options: Any) -> Any:
        sizes.append(len(content))
        return real(content, **options)

    monkeypatch.setattr(hashlib, "sha256", sha256)
    return sizes


def forget_process() -> None:
    """Do as if a new process had started."""
    verified._process.clear()


def test_each_file_is_hashed_once(folder: Path, hashed: list[int], dataset: Dataset) -> None:
    for _ in range(2):
        sources.prepare(folder)
        assert dataset.is_loaded_from(folder)
    assert len(hashed) == 6
    forget_process()
    sources.prepare(folder)
    assert dataset.is_loaded_from(folder)
    assert len(hashed) == 6


def test_nothing_is_read_to_prepare_unchanged_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources.load(folder)
    forget_process()
    monkeypatch.setattr(sources, "read_local", lambda _: pytest.fail("read"))
    sources.prepare(folder)


@pytest.mark.parametrize("new_process", [False, True])
@pytest.mark.parametrize("change", ["bit", "time kept", "replaced", "swapped", "truncated"])
def test_a_changed_file_is_detected(folder: Path, change: str, new_process: bool) -> None:
    sources.load(folder)
    if new_process:
        forget_process()
    path = folder / cifar10.BINARY_FOLDER / "data_batch_3.bin"
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    time.sleep(0.02)  # more than one tick of the file system's clock
    if change in ("bit", "time kept"):
        with path.open("r+b") as file:
            file.write(content)
    elif change == "replaced":
        path.unlink()
        path.write_bytes(content)
    elif change == "swapped":
        other = path.with_name("data_batch_4.bin")
        path.rename(folder / "x")
        other.rename(path)
        (folder / "x").rename(other)
    else:
        os.truncate(path, len(content) - 1)
    if change in ("time kept", "replaced"):  # as `cp -p` and `rsync -t` do
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    for use in (sources.prepare, sources.load):
        with pytest.raises(
            DatasetError, match=r"data_batch_3\.bin (is not the official|has 61459)"
        ):
            use(folder)


def test_a_file_that_changed_just_now_is_not_remembered_on_disk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[int]
) -> None:
    monkeypatch.setattr(verified, "_TICK", 60.0)
    sources.load(folder)
    assert not (folder / STAMP).exists()
    sources.load(folder)
    assert len(hashed) == 6


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b'{"data_batch_1.bin": 3}', b"[" * 100_000, b"{", None]
)
def test_a_damaged_stamp_is_ignored(
    folder: Path, content: bytes | None, hashed: list[int], dataset: Dataset
) -> None:
    if content is None:
        (folder / STAMP).mkdir()
    else:
        (folder / STAMP).write_bytes(content)
    assert dataset.is_loaded_from(folder)
    assert len(hashed) == 6
    assert (folder / STAMP).is_dir() or len(json.loads((folder / STAMP).read_text())) == 6


def test_a_stamp_of_other_files_or_checksums_is_not_used(
    folder: Path, hashed: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    sources.load(folder)
    copy = tmp_path_factory.mktemp("copy") / "data"
    shutil.copytree(folder, copy)
    forget_process()
    sources.load(copy)
    assert len(hashed) == 12
    marks = json.loads((folder / STAMP).read_text())
    marks["data_batch_1.bin"][-1] = "0" * 64
    (folder / STAMP).write_text(json.dumps(marks))
    forget_process()
    sources.load(folder)
    assert len(hashed) == 13


def test_a_folder_that_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[int], dataset: Dataset
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", refuse)
    for _ in range(2):
        sources.prepare(folder)
        assert dataset.is_loaded_from(folder)
    assert len(hashed) == 6
    assert sorted(path.name for path in folder.iterdir()) == [cifar10.BINARY_FOLDER]


def test_pickled_files_are_checked_before_they_are_unpickled(
    dataset: Dataset, tmp_path: Path, hashed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "_TICK", -1.0)
    files = dataset.files("pickle folder")
    write(tmp_path, files)
    with dataset.official(files):
        hashed.clear()
        sources.load(tmp_path)
        sources.load(tmp_path)
        assert len(hashed) == 6
        monkeypatch.setattr(cifar10, "PICKLE_MD5", dict.fromkeys(cifar10.BATCHES, "0" * 32))
        with pytest.raises(DatasetError, match="was not unpickled"):
            sources.load(tmp_path)


def test_the_data_command_verifies_again(data_dir: Path, hashed: list[int]) -> None:
    sources.prepare(data_dir)
    hashed.clear()
    cli_data.run(argparse.Namespace(dataset="cifar10", data_dir=str(data_dir), no_download=True))
    assert hashed == [formats.RECORDS_BYTES] * 6
