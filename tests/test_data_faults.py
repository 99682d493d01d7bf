"""Damage every source of the data, and share, protect and fill its folder: the result is the
official images or a clear error.

The files are cut to their first images, with checksums to match; what reads them is the same.
"""

import hashlib
import io
import json
import os
import random
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from helpers import python_2_pickle
from numpy.typing import NDArray
from PIL import Image

from cifar_resnet import DatasetError
from cifar_resnet.data import cifar10, formats, local, npm, sources, storing
from cifar_resnet.data.download import DownloadError, Source, download

ARCHIVES = {
    "binary archive": "BINARY_ARCHIVE",
    "pickle archive": "PICKLE_ARCHIVE",
    "npm archive": "NPM_ARCHIVE",
}
SOURCES = ("binary folder", "pickle folder", "loose files", "loose pickles", *ARCHIVES)
REMEDY = re.compile("Delete |Move |put one of ")
FOLDER = cifar10.BINARY_FOLDER

not_as_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root has all permissions"
)


class Dataset:
    """The first images of each of the six files, in each format."""

    def __init__(self, data_dir: Path, size: int) -> None:
        records = local.read_local(data_dir)
        assert records is not None
        self.size = size
        self.records = {name: batch[:size].copy() for name, batch in records.items()}

    def files(self, source: str) -> dict[str, bytes]:
        """Return the files of a source by their names in the data folder."""
        binary = {f"{name}.bin": batch.tobytes() for name, batch in self.records.items()}
        if source in ("loose files", "binary folder", "binary archive"):
            files, folder = binary, cifar10.BINARY_FOLDER
        elif source == "npm archive":
            files, folder = self._npm_package(), "package"
        else:
            files = {name: python_2_pickle(batch) for name, batch in self.records.items()}
            folder = cifar10.PICKLE_FOLDER
        if source.startswith("loose"):
            return files
        files = {f"{folder}/{name}": content for name, content in files.items()}
        if source in ARCHIVES:
            return {getattr(cifar10, ARCHIVES[source]).name: tar_gz(files)}
        return files

    def _npm_package(self) -> dict[str, bytes]:
        labels = [self.records[name][:, 0].tolist() for name in cifar10.BATCHES]
        files = {f"{name}.png": png(batch) for name, batch in self.records.items()}
        files["test_lables.json"] = json.dumps(labels[5]).encode()
        files["train_lables.json"] = json.dumps([x for part in labels[:5] for x in part]).encode()
        return files

    def settings(self, files: dict[str, bytes]) -> dict[str, Any]:
        """Return the facts in `cifar10` that make the library take these files as official."""
        digests = {n: hashlib.sha256(b.tobytes()).hexdigest() for n, b in self.records.items()}
        settings = {"BATCH_SIZE": self.size, "RECORDS_SHA256": digests}
        settings["PICKLE_MD5"] = {
            Path(name).name: hashlib.md5(content).hexdigest() for name, content in files.items()
        }
        for field in ARCHIVES.values():
            archive = getattr(cifar10, field)
            if content := files.get(archive.name):
                digest = hashlib.sha256(content).hexdigest()
                settings[field] = archive._replace(size=len(content), sha256=digest)
        return settings

    @contextmanager
    def official(self, files: dict[str, bytes]) -> Iterator[None]:
        size = self.size * cifar10.RECORD_BYTES
        with (
            mock.patch.multiple(cifar10, **self.settings(files)),
            mock.patch.object(formats, "RECORDS_BYTES", size),
        ):
            yield

    def is_loaded_from(self, data_dir: Path) -> bool:
        arrays = sources.load(data_dir)
        images = np.concatenate([arrays.train_images, arrays.test_images])
        labels = np.concatenate([arrays.train_labels, arrays.test_labels])
        records = np.concatenate([self.records[name] for name in cifar10.BATCHES])
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        return bool((planes == records[:, 1:]).all() and (labels == records[:, 0]).all())


def png(batch: NDArray[np.uint8]) -> bytes:
    """Return a PNG file with one image per row."""
    pixels = batch[:, 1:].reshape(len(batch), 3, 32 * 32).transpose(0, 2, 1)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def tar_gz(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def listing(folder: Path) -> list[str]:
    """Return the names in a folder, without the lock and what is remembered."""
    hidden = (".cifar10.lock", ".cifar10.verified.json")
    return sorted(path.name for path in folder.iterdir() if path.name not in hidden)


@pytest.fixture(scope="module")
def dataset(data_dir: Path) -> Dataset:
    return Dataset(data_dir, 20)


# --- damage --------------------------------------------------------------------------------------


def flip_bits(content: bytes, rng: random.Random, count: int) -> bytes:
    damaged = bytearray(content)
    for where in rng.sample(range(len(content)), count):
        damaged[where] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def zero_block(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) - 100)
    damaged = content[:start] + bytes(100) + content[start + 100 :]
    return damaged if damaged != content else flip_bits(content, rng, 1)


CONTENTS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "one bit": lambda content, rng: flip_bits(content, rng, 1),
    "several bits": lambda content, rng: flip_bits(content, rng, rng.randint(2, 100)),
    "zeroed block": zero_block,
    "truncated": lambda content, rng: content[: rng.randrange(len(content))],
    "last byte missing": lambda content, rng: content[:-1],
    "empty": lambda content, rng: b"",
    "lengthened": lambda content, rng: content + rng.randbytes(rng.randint(1, 1000)),
    "noise": lambda content, rng: rng.randbytes(len(content)),
}
DAMAGES = (*CONTENTS, "swapped", "of another format", "missing", "folder", "dangling link")


def assert_damage_is_detected(
    dataset: Dataset, source: str, damage: str, folder: Path, seed: object
) -> None:
    """Damage one file of a source; loading and preparing name the file and a remedy."""
    rng = random.Random(f"{source} {damage} {seed}")
    files = dataset.files(source)
    write(folder, files)
    name = rng.choice(list(files))
    path, touched = folder / name, {Path(name).name}
    if damage in CONTENTS:
        path.write_bytes(CONTENTS[damage](files[name], rng))
    elif damage == "swapped" and len(files) > 1:
        other = rng.choice([each for each in files if each != name])
        write(folder, {name: files[other], other: files[name]})
        touched.add(Path(other).name)
    elif damage in ("swapped", "of another format"):
        foreign = "loose files" if "pickle" in source else "loose pickles"
        path.write_bytes(rng.choice(list(dataset.files(foreign).values())))
    else:
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage == "dangling link":
            path.symlink_to(folder / "nothing")
    before = listing(folder)
    with dataset.official(files):
        for use in (sources.load, lambda data: sources.prepare(data, allow_download=False)):
            with pytest.raises(DatasetError, match=REMEDY) as error:
                use(folder)
            assert any(each in str(error.value) for each in touched)
        assert listing(folder) == before
        for each in touched:  # the rest was not changed: with the file repaired, all is well
            path = (folder / name).with_name(each)
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        write(folder, files)
        assert dataset.is_loaded_from(folder)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("source", SOURCES)
def test_damage_is_detected(dataset: Dataset, tmp_path: Path, source: str, damage: str) -> None:
    assert_damage_is_detected(dataset, source, damage, tmp_path, 0)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
def test_random_damage_is_detected(dataset: Dataset, tmp_path: Path, source: str) -> None:
    for damage in DAMAGES:
        for seed in range(1, 25):
            folder = tmp_path / f"{damage} {seed}"
            assert_damage_is_detected(dataset, source, damage, folder, seed)
            shutil.rmtree(folder)


# --- links, leftovers and permissions ------------------------------------------------------------


@pytest.fixture
def archived(dataset: Dataset, tmp_path: Path) -> Iterator[Path]:
    """A data folder with a small archive that counts as the official one."""
    files = dataset.files("binary archive")
    data = tmp_path / "data"
    write(data, files)
    with dataset.official(files):
        yield data


def test_a_file_that_is_replaced_after_its_check(
    dataset: Dataset, archived: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archived / cifar10.BINARY_ARCHIVE.name
    real = hashlib.file_digest

    def and_then_replace(*arguments: Any) -> Any:
        digest = real(*arguments)
        path.with_name("new").write_bytes(b"evil")
        path.with_name("new").replace(path)
        return digest

    monkeypatch.setattr(hashlib, "file_digest", and_then_replace)
    assert dataset.is_loaded_from(archived)
    assert path.read_bytes() == b"evil"


def test_a_link_to_the_data_folder(dataset: Dataset, archived: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(archived)
    sources.prepare(tmp_path / "link", allow_download=False)
    assert dataset.is_loaded_from(tmp_path / "link")
    assert (archived / FOLDER).is_dir()


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_data_folder_that_is_a_dangling_link(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(
        DatasetError, match=rf"link cannot be written: .*/{target}, which does not exist"
    ):
        sources.prepare(tmp_path / "link")
    with pytest.raises(DatasetError, match="was not found in"):
        sources.load(tmp_path / "link")


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder"])
def test_a_lock_that_is_not_a_file(archived: Path, tmp_path: Path, kind: str) -> None:
    lock = archived / ".cifar10.lock"
    outside = tmp_path / "outside"
    outside.write_text("mine")
    if kind == "folder":
        lock.mkdir()
    else:
        lock.symlink_to(outside if kind == "link" else tmp_path / "nothing")
    with pytest.raises(DatasetError, match=r"\.cifar10\.lock is not a regular file.* Delete it"):
        sources.prepare(archived)
    assert outside.read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


def test_leftovers_of_a_killed_process_are_deleted_without_following_links(
    dataset: Dataset, archived: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    write(outside, {"file": b"mine"})
    left = archived / f"{storing.TEMPORARY}abc"
    write(left, {"data_batch_1.bin": b"half"})
    (left / "link").symlink_to(outside)
    (archived / f"{storing.TEMPORARY}link").symlink_to(outside)
    (archived / ".npm-global").mkdir()  # not created by the library
    sources.prepare(archived, allow_download=False)
    assert not left.exists()
    assert (outside / "file").read_text() == "mine"
    assert (archived / ".npm-global").is_dir()
    assert dataset.is_loaded_from(archived)


@pytest.mark.parametrize("kind", ["file", "dangling", "folder with something", "link to a folder"])
def test_something_with_the_name_of_the_finished_folder(
    archived: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be read or fetched in vain")

    monkeypatch.setattr(sources, "download", never)
    monkeypatch.setattr(sources, "read_archive_in", never)
    final = archived / FOLDER
    if kind == "file":
        final.write_text("mine")
    elif kind == "folder with something":
        write(final, {"readme.html": b"mine"})
    else:
        (tmp_path / "outside").mkdir()
        final.symlink_to(tmp_path / ("outside" if kind == "link to a folder" else "nothing"))
    with pytest.raises(DatasetError, match=rf"{FOLDER} is in the way: .* Move or delete"):
        sources.prepare(archived)
    assert final.is_symlink() or final.exists()


def test_an_empty_folder_is_not_in_the_way(dataset: Dataset, archived: Path) -> None:
    (archived / FOLDER).mkdir()
    sources.prepare(archived)
    assert dataset.is_loaded_from(archived)
    assert (archived / FOLDER / "test_batch.bin").is_file()


@not_as_root
def test_files_without_read_permission(archived: Path) -> None:
    path = archived / cifar10.BINARY_ARCHIVE.name
    path.chmod(0)
    with pytest.raises(DatasetError, match=rf"{path.name} cannot be read: Permission denied. Del"):
        sources.load(archived)
    path.chmod(0o600)
    archived.chmod(0)
    try:
        with pytest.raises(DatasetError, match="was not found in"):
            sources.load(archived)
        with pytest.raises(DatasetError, match="cannot be written: Permission denied"):
            sources.prepare(archived)
    finally:
        archived.chmod(0o700)


def test_npm_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: str(tmp_path / "npm"))
    (tmp_path / "npm").write_bytes(b"\x7fELF no program")
    (tmp_path / "npm").chmod(0o755)
    package = Source("npm", "package@1", cifar10.NPM_ARCHIVE, npm.NpmTransfer)
    with pytest.raises(DownloadError, match="npm cannot be started: "):
        download([package], tmp_path, progress=False)
    (tmp_path / "npm").write_bytes(b"#!/bin/sh\nprintf 'ENOSPC \\377' >&2; exit 1\n")
    with pytest.raises(DownloadError, match="`npm pack package@1` failed: ENOSPC \ufffd"):
        download([package], tmp_path, progress=False)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=200_000_000))
    with pytest.raises(DownloadError, match="npm needs 277 MB, but only 200 MB are free"):
        download([package], tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["npm"]


def test_a_partial_download_counts_as_free_space(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested = []

    def fetch(offered: list[Source], folder: Path) -> tuple[Source, Path]:
        requested.append(offered[0].url)
        write(folder, dataset.files("binary archive"))
        return offered[0], folder / cifar10.BINARY_ARCHIVE.name

    monkeypatch.setattr(sources, "download", fetch)
    part = tmp_path / f"{cifar10.PICKLE_ARCHIVE.name}.part"
    part.write_bytes(b"")
    os.truncate(part, 10**8)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=260_000_000))
    with dataset.official({}):
        sources.prepare(tmp_path)
        assert requested == [cifar10.OFFICIAL_URL]
        assert dataset.is_loaded_from(tmp_path)
    assert not part.exists()


# --- many processes ------------------------------------------------------------------------------


@contextmanager
def served(content: bytes, *, stalls: bool = False) -> Iterator[tuple[str, list[str]]]:
    """Serve a file; yield its address and the list of requests. The first one may stall."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if stalls and len(requests) == 1:
                self.wfile.write(content[:1000])
                self.connection.recv(1)  # until the client is killed
            else:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/file", requests
        server.shutdown()


PREPARE = """\
import json, os, sys
from pathlib import Path
from cifar_resnet.data import cifar10, formats, sources

shared = Path(sys.argv[1])
settings = json.loads((shared.parent / "settings.json").read_text())
settings["PICKLE_ARCHIVE"] = cifar10.Archive(*settings["PICKLE_ARCHIVE"])
vars(cifar10).update(settings)
formats.RECORDS_BYTES = cifar10.BATCH_SIZE * cifar10.RECORD_BYTES
real = sources._obtain

def obtain(data_dir, *, allow_download):
    (shared.parent / "holder").write_text(str(os.getpid()))
    real(data_dir, allow_download=allow_download)

sources._obtain = obtain
sources.prepare(shared)
print(int(sources.load(shared).train_images.sum(dtype="int64")))
"""


@pytest.mark.parametrize(
    ("count", "killed"),
    [(3, True), *(pytest.param(10, killed, marks=pytest.mark.slow) for killed in (False, True))],
)
def test_processes_share_one_download(
    dataset: Dataset, tmp_path: Path, count: int, killed: bool
) -> None:
    files = dataset.files("pickle archive")
    (content,) = files.values()
    with served(content, stalls=killed) as (url, requests):
        settings = dataset.settings(files) | {"MIRRORS": {"official": url}}
        (tmp_path / "settings.json").write_text(json.dumps(settings))
        command = [sys.executable, "-c", PREPARE, str(tmp_path / "shared")]
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(count)
        ]
        try:
            if killed:
                end = time.monotonic() + 60
                while not requests and time.monotonic() < end:
                    time.sleep(0.02)
                holder = int((tmp_path / "holder").read_text())
                (victim,) = [process for process in processes if process.pid == holder]
                victim.kill()
                processes.remove(victim)
                victim.communicate()
            outputs = [process.communicate(timeout=120) for process in processes]
        finally:
            for process in processes:
                process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    train = [batch for name, batch in dataset.records.items() if name != "test_batch"]
    expected = sum(int(batch[:, 1:].sum(dtype="int64")) for batch in train)
    assert [out for out, _ in outputs] == [f"{expected}\n"] * len(processes)
    assert len(requests) == 1 + killed
    assert listing(tmp_path / "shared") == [FOLDER]


# --- disks ---------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Mount a file system at `tmp_path / "disk"`; yield a function that changes its options."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder), "-o"]
    try:
        subprocess.run([*mount, "size=100m"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs permission to mount")

    def change(options: str) -> None:
        subprocess.run([*mount, f"remount,{options}"], check=True)

    yield change
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("local", [True, False], ids=["archive", "download"])
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 10))]
)
def test_a_disk_that_gets_full(
    dataset: Dataset, disk: Callable[[str], None], tmp_path: Path, local: bool, seed: int
) -> None:
    """The disk is full at a random point; once there is space again, a later call succeeds.

    The check of the free space is disabled: another program may use the space later.
    """
    files = dataset.files("pickle archive")
    ((name, content),) = files.items()
    data = tmp_path / "disk"
    with (
        served(content) as (url, _),
        dataset.official(files),
        mock.patch.object(cifar10, "MIRRORS", {"official": url}),
        mock.patch.object(sources, "_SPACE_NEEDED", 0),
        mock.patch.object(shutil, "which", return_value=None),
    ):
        # a downloaded archive is deleted before its records are stored
        needed = 6 * formats.RECORDS_BYTES + len(content) * local
        low = len(content) + 50_000 if local else 10_000
        disk(f"size={random.Random(seed).randint(low, needed - 50_000)}")
        if local:
            write(data, files)
        with pytest.raises(DatasetError, match=r"MB needed\)\. Make room"):
            sources.prepare(data)
        assert set(listing(data)) <= {name, f"{name}.part"}
        disk("size=100m")
        sources.prepare(data)
        assert dataset.is_loaded_from(data)


@pytest.mark.parametrize("holds", ["binary folder", "pickle folder", "npm archive", "nothing"])
def test_a_disk_that_cannot_be_written(
    dataset: Dataset, disk: Callable[[str], None], tmp_path: Path, holds: str
) -> None:
    files = {} if holds == "nothing" else dataset.files(holds)
    data = tmp_path / "disk"
    write(data, files)
    disk("ro")
    with dataset.official(files):
        if files:
            sources.prepare(data)
            assert dataset.is_loaded_from(data)
        else:
            for folder in (data, data / "new"):
                with pytest.raises(
                    DatasetError, match=rf"{folder} cannot be written: Read-only file .* Choose"
                ):
                    sources.prepare(folder)


@not_as_root
@pytest.mark.parametrize("holds", ["loose files", "pickle archive", "nothing"])
def test_a_folder_of_another_user(dataset: Dataset, tmp_path: Path, holds: str) -> None:
    files = {} if holds == "nothing" else dataset.files(holds)
    write(tmp_path, files)
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with dataset.official(files):
            if files:
                sources.prepare(tmp_path)
                assert dataset.is_loaded_from(tmp_path)
            else:
                with pytest.raises(DatasetError, match="cannot be written: Permission denied"):
                    sources.prepare(tmp_path)
    finally:
        tmp_path.chmod(0o700)
