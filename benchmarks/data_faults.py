"""What damaged, hostile and interrupted sources of CIFAR-10 lead to: each fault is really injected.

    python benchmarks/data_faults.py [--count 1000] [--seed 0] [--parts ...] [--data-dir DATA]

Appends a line for each part to benchmarks/results/data_faults.jsonl: how many faults of which kind,
how many were detected, and what went wrong (`wrong`, which has to be empty). Each part is a process
of its own, whose memory is measured. Nothing is written outside of temporary folders.

The parts named after a source damage it at random, COUNT times. The files are the real ones, cut to
their first RECORDS images, with checksums to match: what reads them is the same, and quick. A part
of COUNT is done with the whole files, too. The parts ending in "forged" damage an archive whose own
SHA-256 was then made to agree, so that only what lies behind it can detect anything. Some of these
faults are harmless: what is loaded is right, as they hit what nobody reads. `memory_growth_mb` is
the most memory beyond what the data set of the script itself takes; a good load is in it.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from machine import RESULTS, append, machine
from numpy.typing import NDArray
from PIL import Image

from cifar_resnet import DatasetError
from cifar_resnet.data import cifar10, formats, sources
from cifar_resnet.data.download import DownloadError, download

RECORDS = 40  # of each file
SOURCES = (
    "binary folder",
    "pickle folder",
    "loose files",
    "loose pickles",
    "binary archive",
    "pickle archive",
    "npm archive",
)
FORGED = tuple(f"{name}, forged" for name in SOURCES if name.endswith("archive"))
OTHERS = ("server", "killed downloads", "full disk")
ARCHIVES = {
    "binary archive": "BINARY_ARCHIVE",
    "pickle archive": "PICKLE_ARCHIVE",
    "npm archive": "NPM_ARCHIVE",
}
REMEDY = re.compile(r"Delete |Move |Make room|Choose |choose |put one of ")
SECONDS = 60  # a trial that takes longer hangs


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", nargs="+", default=[*SOURCES, *FORGED, *OTHERS])
    parser.add_argument("--data-dir", type=Path, default=sources.default_data_dir())
    parser.add_argument("--results", type=Path, default=RESULTS / "data_faults.jsonl")
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        line = one(args.one, args)
        print(json.dumps(line | {"seed": args.seed}))
        return
    for part in args.parts:
        for whole in (False, True) if part in SOURCES else (False,):
            command = [sys.executable, __file__, "--one", part, "--count", str(args.count)]
            command += ["--seed", str(args.seed), "--data-dir", str(args.data_dir)]
            command += ["--whole"] if whole else []
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            line = json.loads(output.splitlines()[-1])
            append(args.results, line | machine())
            print({key: value for key, value in line.items() if key != "kinds"})


def one(part: str, args: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    dataset = None
    if part not in OTHERS[:2]:
        dataset = Dataset(args.data_dir, cifar10.BATCH_SIZE if args.whole else RECORDS)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if part == "server":
            line = server_faults(place, max(args.count // 5, 1), args.seed)
        elif dataset is None:
            line = killed_downloads(place, max(args.count // 50, 1), args.seed)
        elif part == "full disk":
            line = full_disks(dataset, place, max(args.count // 50, 1), args.seed)
        else:
            source = part.removesuffix(", forged")
            count = max(args.count // 20, 1) if args.whole else args.count
            line = corruptions(source, dataset, place, count, args.seed, forged=part != source)
    return {"part": part} | line | {"seconds": round(time.perf_counter() - start, 1)}


def memory_growth() -> Callable[[], float | None]:
    """Forgets the most memory so far; the result tells in MB how much more was taken since (Linux;
    None elsewhere).
    """
    forget = Path("/proc/self/clear_refs")
    if not forget.exists():
        return lambda: None
    forget.write_text("5")
    before = peak_mb()
    return lambda: round(peak_mb() - before, 1)


def peak_mb() -> float:
    """The most memory of this process (Linux)."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    return round(int(line.split()[1]) * 1024 / 1e6, 1)


# --- the data set in all its formats -------------------------------------------------------------


class Dataset:
    """The first `records` images of each of the six files, in each format."""

    def __init__(self, data_dir: Path, records: int) -> None:
        found = sources._read_local(data_dir)
        if found is None:
            raise DatasetError(f"CIFAR-10 is not in {data_dir}: name its folder with --data-dir.")
        self.size = records
        self.records = {name: batch[:records].copy() for name, batch in found.items()}

    def files(self, source: str) -> dict[str, bytes]:
        """What lies in the data folder, by its name there."""
        batches = self.records.items()
        match source:
            case "binary folder":
                return {f"{cifar10.BINARY_FOLDER}/{n}.bin": b.tobytes() for n, b in batches}
            case "pickle folder":
                return {f"{cifar10.PICKLE_FOLDER}/{n}": python_2_pickle(b, n) for n, b in batches}
            case "loose files":
                return {f"{n}.bin": b.tobytes() for n, b in batches}
            case "loose pickles":
                return {n: python_2_pickle(b, n) for n, b in batches}
        archive = getattr(cifar10, ARCHIVES[source])
        return {archive.name: tar_gz(self.members(source))}

    def members(self, source: str) -> dict[str, bytes]:
        if source == "binary archive":
            return self.files("binary folder")
        if source == "pickle archive":
            return self.files("pickle folder")
        labels = [self.records[name][:, 0].tolist() for name in cifar10.BATCHES]
        members = {"package/package.json": b"{}"}
        members |= {f"package/{n}.png": png(b) for n, b in self.records.items()}
        members["package/test_lables.json"] = as_json(labels[5])
        members["package/train_lables.json"] = as_json([x for batch in labels[:5] for x in batch])
        return members

    @contextmanager
    def official(self, files: dict[str, bytes]) -> Iterator[None]:
        """The library takes this data set, and these files of it, for the official ones."""
        digests = {n: hashlib.sha256(b.tobytes()).hexdigest() for n, b in self.records.items()}
        changes: dict[str, Any] = {"BATCH_SIZE": self.size, "RECORDS_SHA256": digests}
        md5 = {
            Path(name).name: hashlib.md5(content, usedforsecurity=False).hexdigest()
            for name, content in files.items()
        }
        if set(cifar10.BATCHES) <= set(md5):
            changes["PICKLE_MD5"] = md5
        elif cifar10.PICKLE_ARCHIVE.name in files:
            changes["PICKLE_MD5"] = {
                n: hashlib.md5(python_2_pickle(b, n), usedforsecurity=False).hexdigest()
                for n, b in self.records.items()
            }
        for field in ARCHIVES.values():
            archive = getattr(cifar10, field)
            if archive.name in files:
                changes[field] = described(archive, files[archive.name])
        size = self.size * cifar10.RECORD_BYTES
        with (
            mock.patch.multiple(cifar10, **changes),
            mock.patch.object(formats, "RECORDS_BYTES", size),
            mock.patch.object(sources, "RECORDS_BYTES", size),
        ):
            yield

    def is_loaded_from(self, data_dir: Path) -> bool:
        arrays = sources.load(data_dir)
        images, labels = (
            [*train.reshape(5, self.size, *train.shape[1:]), test]
            for train, test in (
                (arrays.train_images, arrays.test_images),
                (arrays.train_labels, arrays.test_labels),
            )
        )
        return all(
            bool((image.transpose(0, 3, 1, 2).reshape(self.size, -1) == batch[:, 1:]).all())
            and label.tolist() == batch[:, 0].tolist()
            for image, label, batch in zip(images, labels, self.records.values(), strict=True)
        )


def described(archive: cifar10.Archive, content: bytes) -> cifar10.Archive:
    return archive._replace(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def as_json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def png(batch: NDArray[np.uint8]) -> bytes:
    """A sprite: an image a row."""
    pixels = batch[:, 1:].reshape(len(batch), 3, 32 * 32).transpose(0, 2, 1)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def tar_gz(members: dict[str, bytes] | list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    if isinstance(members, dict):
        members = [(tarfile.TarInfo(name), content) for name, content in members.items()]
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
        for info, content in members:
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content) if content else None)
    return file.getvalue()


def python_2_pickle(batch: NDArray[np.uint8], name: str) -> bytes:
    """A batch as Python 2 pickled it (protocol 2), which no newer Python writes."""
    memo = iter(range(1 << 20))

    def put() -> bytes:
        number = next(memo)
        return b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    def text(value: bytes) -> bytes:
        short = b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + pack(len(value))
        return short + value + put()

    def pack(number: int) -> bytes:
        return struct.pack("<i", number)

    def strings(values: list[bytes]) -> bytes:
        return b"]" + put() + b"(" + b"".join(map(text, values)) + b"e"

    pixels = np.ascontiguousarray(batch[:, 1:])
    rows, columns = (b"M" + struct.pack("<H", length) for length in pixels.shape)
    labels = b"]" + put() + b"(" + b"".join(b"K" + bytes([x]) for x in batch[:, 0]) + b"e"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + put() + b"cnumpy\nndarray\n" + put()
        + b"K\x00\x85" + put() + text(b"b") + b"\x87" + put() + b"R" + put()
        + b"(K\x01" + rows + columns + b"\x86" + put()
        + b"cnumpy\ndtype\n" + put() + text(b"u1") + b"K\x00K\x01\x87" + put() + b"R" + put()
        + b"(K\x03" + text(b"|") + b"NNN" + 2 * (b"J" + pack(-1)) + b"K\x00t" + put() + b"b"
        + b"\x89" + text(pixels.tobytes()) + b"t" + put() + b"b"
    )  # fmt: skip
    named = strings([f"{name}_s_{index:06}.png".encode() for index in range(len(batch))])
    return (
        b"\x80\x02}" + put() + b"(" + text(b"batch_label") + text(name.encode())
        + text(b"labels") + labels + text(b"data") + array
        + text(b"filenames") + named + b"u."
    )  # fmt: skip


# --- random corruptions --------------------------------------------------------------------------


class Place(NamedTuple):
    """A data folder with a source in it, and a folder beside it that must stay as it is."""

    data: Path
    outside: Path
    files: dict[str, bytes]
    others: dict[str, bytes]  # files of other sources, by the names of this one

    def write(self, name: str, content: bytes) -> None:
        remove(self.data / name)
        (self.data / name).write_bytes(content)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


Corruption = Callable[[Place, str, random.Random], set[str]]  # the names that were touched


def flip(count: Callable[[random.Random], int]) -> Corruption:
    def corrupt(place: Place, name: str, rng: random.Random) -> set[str]:
        content = place.files[name]
        with (place.data / name).open("r+b") as file:
            for where in rng.sample(range(len(content)), count(rng)):
                file.seek(where)
                file.write(bytes([content[where] ^ 1 << rng.randrange(8)]))
        return {name}

    return corrupt


def zero_block(place: Place, name: str, rng: random.Random) -> set[str]:
    content = place.files[name]
    length = rng.randint(1, len(content))
    start = rng.randint(0, len(content) - length)
    if not any(content[start : start + length]):
        return flip(lambda rng: 1)(place, name, rng)
    place.write(name, content[:start] + bytes(length) + content[start + length :])
    return {name}


def truncate(place: Place, name: str, rng: random.Random) -> set[str]:
    os.truncate(place.data / name, rng.randrange(len(place.files[name])))
    return {name}


def empty(place: Place, name: str, rng: random.Random) -> set[str]:
    os.truncate(place.data / name, 0)
    return {name}


def lengthen(place: Place, name: str, rng: random.Random) -> set[str]:
    with (place.data / name).open("ab") as file:
        file.write(rng.randbytes(rng.randint(1, 1000)))
    return {name}


def sparse(place: Place, name: str, rng: random.Random) -> set[str]:
    os.truncate(place.data / name, 1 << 42)
    return {name}


def noise(place: Place, name: str, rng: random.Random) -> set[str]:
    place.write(name, rng.randbytes(len(place.files[name])))
    return {name}


def swap(place: Place, name: str, rng: random.Random) -> set[str]:
    other = rng.choice([each for each in place.files if each != name] or [name])
    if other == name:
        return another(place, name, rng)
    place.write(name, place.files[other])
    place.write(other, place.files[name])
    return {name, other}


def another(place: Place, name: str, rng: random.Random) -> set[str]:
    """The file of another source under this name."""
    place.write(name, place.others[name])
    return {name}


def missing(place: Place, name: str, rng: random.Random) -> set[str]:
    remove(place.data / name)
    return {name}


def directory(place: Place, name: str, rng: random.Random) -> set[str]:
    remove(place.data / name)
    (place.data / name).mkdir()
    return {name}


def pipe(place: Place, name: str, rng: random.Random) -> set[str]:
    remove(place.data / name)
    os.mkfifo(place.data / name)
    return {name}


def link(target: Callable[[Place, str], Path]) -> Corruption:
    def corrupt(place: Place, name: str, rng: random.Random) -> set[str]:
        remove(place.data / name)
        (place.data / name).symlink_to(target(place, name))
        return {name}

    return corrupt


def wrong_label(place: Place, name: str, rng: random.Random) -> set[str]:
    """Of one image; only where labels are single bytes."""
    content = bytearray(place.files[name])
    where = rng.randrange(len(content) // cifar10.RECORD_BYTES) * cifar10.RECORD_BYTES
    content[where] = rng.choice([label for label in range(256) if label != content[where]])
    place.write(name, bytes(content))
    return {name}


ANY: dict[str, Corruption] = {
    "one bit": flip(lambda rng: 1),
    "some bits": flip(lambda rng: rng.randint(2, 100)),
    "zeroed block": zero_block,
    "truncated": truncate,
    "empty": empty,
    "lengthened": lengthen,
    "huge": sparse,
    "noise": noise,
    "swapped": swap,
    "of another source": another,
    "missing": missing,
    "directory": directory,
    "pipe": pipe,
    "dangling link": link(lambda place, name: place.outside / "nothing"),
    "link to itself": link(lambda place, name: place.data / name),
    "link to a wrong file": link(lambda place, name: place.outside / "file"),
    "link to a device": link(lambda place, name: Path("/dev/zero")),
}


def corruptions(
    source: str, dataset: Dataset, folder: Path, count: int, seed: int, *, forged: bool = False
) -> dict[str, Any]:
    """Damage a source at random, `count` times, and look at what `load` and `prepare` do."""
    rng = random.Random(f"{seed} {source} {dataset.size} {forged}")
    files = dataset.files(source)
    foreign = "loose files" if "pickle" in source or "archive" in source else "loose pickles"
    other = list(dataset.files(foreign).values())
    others = {name: other[index % len(other)] for index, name in enumerate(files)}
    place = Place(folder / "data", folder / "outside", files, others)
    fill(place)
    growth = memory_growth()
    kinds: dict[str, Corruption] = {**ANY}
    if not forged and ("binary folder" in source or "loose files" in source):
        kinds["wrong label"] = wrong_label
    rebuilt = labels_and_members(source, dataset) if forged else {}
    counts: Counter[str] = Counter()
    epoch_sums: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    with dataset.official(files):
        if not dataset.is_loaded_from(place.data):
            raise AssertionError("the source is wrong before it is damaged")
        before = snapshot(place.outside)
        for trial in range(count):
            name = rng.choice(list(files))
            kind = rng.choice([*FORGEABLE, *rebuilt] if forged else list(kinds))
            counts[kind] += 1
            if kind in rebuilt:
                place.write(name, rebuilt[kind](rng))
                touched = {name}
            else:
                touched = kinds[kind](place, name, rng)
            there = listing(place.data)
            forging = forgery(source, place.data / name) if forged else contextlib.nullcontext()
            with forging:
                use = "load" if forged or trial % 3 else "prepare"
                outcome = tried(dataset, place, touched, use)
            if outcome in ("detected", "harmless") and (forged or outcome == "detected"):
                epoch_sums[outcome] += 1
            else:
                wrong[f"{kind}: {outcome}"] += 1
            if snapshot(place.outside) != before:
                wrong[f"{kind}: something outside was changed"] += 1
                remove(place.outside)
                fill(place)
                before = snapshot(place.outside)
            if listing(place.data) != there:
                wrong[f"{kind}: the data folder was changed"] += 1
            for each in touched:
                place.write(each, files[each])
        if not dataset.is_loaded_from(place.data):
            raise AssertionError("the source is wrong when it is repaired")
    return {
        "records_per_file": dataset.size,
        "trials": count,
        "kinds": dict(sorted(counts.items())),
        "detected": epoch_sums["detected"],
        "harmless": epoch_sums["harmless"],
        "wrong": dict(wrong),
        "memory_growth_mb": growth(),
    }


def fill(place: Place) -> None:
    for name, content in place.files.items():
        (place.data / name).parent.mkdir(parents=True, exist_ok=True)
        place.write(name, content)
    place.outside.mkdir(exist_ok=True)
    (place.outside / "file").write_bytes(b"not to be touched" * 1000)
    (place.outside / "folder").mkdir(exist_ok=True)
    (place.outside / "folder" / "data_batch_1.bin").write_bytes(b"nor this")


def listing(folder: Path) -> list[str]:
    """What lies in a folder, beside the lock."""
    if not folder.exists():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name != ".cifar10.lock")


def snapshot(folder: Path) -> dict[str, tuple[int, int, int, bytes]]:
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, content)
    return found


def tried(dataset: Dataset, place: Place, touched: set[str], use: str) -> str:
    """What came of it, in words; "detected" if the message is as it should be."""
    with time_limit():
        try:
            if use == "prepare":
                sources.prepare(place.data, allow_download=False)
            good = dataset.is_loaded_from(place.data)
        except DatasetError as error:
            message = str(error)
            if not any(Path(name).name in message for name in touched):
                return f"names no file: {message}"
            return "detected" if REMEDY.search(message) else f"names no remedy: {message}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "harmless" if good else "undetected"


@contextmanager
def time_limit() -> Iterator[None]:
    def hang(*_: object) -> None:
        raise AssertionError(f"no end after {SECONDS} seconds")

    signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


# --- archives whose own checksum is no help ------------------------------------------------------

FORGEABLE = (
    "one bit",
    "some bits",
    "zeroed block",
    "truncated",
    "empty",
    "lengthened",
    "noise",
    "of another source",
)  # fmt: skip


def forgery(source: str, path: Path) -> mock._patch[Any]:
    field = ARCHIVES[source]
    archive = described(getattr(cifar10, field), path.read_bytes())
    return mock.patch.object(cifar10, field, archive)


def labels_and_members(
    source: str, dataset: Dataset
) -> dict[str, Callable[[random.Random], bytes]]:
    """Archives in perfect order that hold something else."""
    members = dataset.members(source)
    wanted = [name for name in members if not name.endswith("package.json")]

    def relabeled(rng: random.Random) -> bytes:
        changed = Dataset.__new__(Dataset)
        changed.size = dataset.size
        changed.records = {name: batch.copy() for name, batch in dataset.records.items()}
        labels = changed.records[rng.choice(cifar10.BATCHES)][:, 0]
        where = rng.randrange(len(labels))
        labels[where] = rng.choice([label for label in range(10) if label != labels[where]])
        return tar_gz(changed.members(source))

    def swapped(rng: random.Random) -> bytes:
        one, two = rng.sample(wanted, 2)
        return tar_gz(members | {one: members[two], two: members[one]})

    def damaged(rng: random.Random) -> bytes:
        name = rng.choice(wanted)
        content = bytearray(members[name])
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        return tar_gz(members | {name: bytes(content)})

    def shortened(rng: random.Random) -> bytes:
        name = rng.choice(wanted)
        return tar_gz(members | {name: members[name][: rng.randrange(len(members[name]))]})

    def without(rng: random.Random) -> bytes:
        left_out = rng.choice(wanted)
        return tar_gz({name: members[name] for name in members if name != left_out})

    def twice(rng: random.Random) -> bytes:
        listed = [(tarfile.TarInfo(name), content) for name, content in members.items()]
        return tar_gz([*listed, rng.choice([each for each in listed if each[0].name in wanted])])

    def hostile(rng: random.Random) -> bytes:
        """A member of a name or kind that has no place there, before or after the good ones."""
        listed = [(tarfile.TarInfo(name), content) for name, content in members.items()]
        folder = wanted[0].partition("/")[0]
        info = tarfile.TarInfo(
            rng.choice(("../outside/file", "/tmp/outside", f"{folder}/../../outside/file", "x"))
        )
        content = b"evil"
        if rng.random() < 0.6:
            kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)
            info.type, content = rng.choice(kinds), b""
            info.name = rng.choice([f"{folder}/new", *wanted])
            info.linkname = rng.choice(("../../outside/file", "/etc/hostname", wanted[0]))
        listed.insert(rng.randint(0, len(listed)), (info, content))
        return tar_gz(listed)

    return {
        "wrong label": relabeled,
        "members swapped": swapped,
        "bit of a member": damaged,
        "member cut": shortened,
        "member missing": without,
        "member twice": twice,
        "hostile member": hostile,
    }


# --- a server that misbehaves --------------------------------------------------------------------


class Answer(NamedTuple):
    """One request, the file that it is for, and the means to answer it badly."""

    connection: socket.socket
    content: bytes
    asked: int | None  # first byte, where a range is asked for
    rng: random.Random

    def send(self, status: str, *headers: str, body: bytes = b"") -> None:
        head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *headers))
        self.connection.sendall(head.encode("latin1") + b"\r\n" + body)

    def body(self) -> bytes:
        return self.content[self.asked or 0 :]

    def start(self, length: int | None = None) -> bytes:
        """The headers of a good answer; returns the body that they promise."""
        body = self.body()
        size = len(self.content)
        headers = [f"Content-Length: {len(body) if length is None else length}"]
        if self.asked is not None:
            headers.append(f"Content-Range: bytes {self.asked}-{size - 1}/{size}")
        self.send("200 OK" if self.asked is None else "206 Partial Content", *headers)
        return body

    def some(self, body: bytes) -> bytes:
        return body[: self.rng.randint(0, len(body))]

    def wait(self) -> None:
        """Until the client gives up."""
        self.connection.settimeout(5)
        with contextlib.suppress(OSError):
            self.connection.recv(1)

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()


def good(a: Answer) -> None:
    a.connection.sendall(a.start())


def resets(a: Answer) -> None:
    a.connection.sendall(a.some(a.start()))
    a.reset()


def resets_at_once(a: Answer) -> None:
    a.reset()


def closes(a: Answer) -> None:
    a.connection.sendall(a.some(a.start()))


def closes_at_once(a: Answer) -> None:
    pass


def stalls(a: Answer) -> None:
    a.connection.sendall(a.some(a.start()))
    a.wait()


def stalls_in_headers(a: Answer) -> None:
    a.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-")
    a.wait()


def drips(a: Answer) -> None:
    for byte in a.start():
        a.connection.sendall(bytes([byte]))
        time.sleep(0.02)


def drips_headers(a: Answer) -> None:
    a.connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        a.connection.sendall(b"x")
        time.sleep(0.02)


def length_too_long(a: Answer) -> None:
    body = a.body()
    a.connection.sendall(a.start(len(body) + a.rng.randint(1, 10_000)))


def length_too_short(a: Answer) -> None:
    body = a.body()
    a.connection.sendall(a.start(a.rng.randrange(max(len(body), 1))))


def length_nonsense(a: Answer) -> None:
    value = a.rng.choice(("-5", "abc", "", "1e5", "9" * 5000, "\xb2"))
    a.send("200 OK", f"Content-Length: {value}", body=a.content)


def no_length(a: Answer) -> None:
    a.send("200 OK", body=a.content)


def no_length_cut(a: Answer) -> None:
    a.send("200 OK", body=a.some(a.content))


def longer_than_announced(a: Answer) -> None:
    a.connection.sendall(a.start() + a.rng.randbytes(1000))


def longer_than_the_file(a: Answer) -> None:
    a.send("200 OK", body=a.content + a.rng.randbytes(1000))


def chunks(a: Answer, content: bytes) -> None:
    a.send("200 OK", "Transfer-Encoding: chunked")
    while content:
        count = a.rng.randint(1, 20_000)
        piece, content = content[:count], content[count:]
        a.connection.sendall(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")


def chunked(a: Answer) -> None:
    chunks(a, a.content)
    a.connection.sendall(b"0\r\n\r\n")


def chunked_cut(a: Answer) -> None:
    chunks(a, a.some(a.content))
    a.connection.sendall(
        a.rng.choice((b"", b"0\r\n\r\n", b"zz\r\n", b"-5\r\nxx", b"ffffffffff\r\n"))
    )


def endless_trailers(a: Answer) -> None:
    chunks(a, a.content[:1000])
    a.connection.sendall(b"0\r\n")
    while True:
        a.connection.sendall(b"X: y\r\n" * 10_000)


def another_range(a: Answer) -> None:
    start = a.rng.randrange(len(a.content))
    size = len(a.content)
    stated = f"Content-Range: bytes {start}-{size - 1}/{size}"
    a.send("206 Partial Content", stated, body=a.content[start:])


def another_total(a: Answer) -> None:
    total = len(a.content) + a.rng.randint(1, 1000)
    start = a.asked or 0
    stated = f"Content-Range: bytes {start}-{total - 1}/{total}"
    a.send("206 Partial Content", stated, f"Content-Length: {len(a.body())}", body=a.body())


def range_without_header(a: Answer) -> None:
    a.send("206 Partial Content", body=a.body())


def a_part_of_the_range(a: Answer) -> None:
    start, size = a.asked or 0, len(a.content)
    end = a.rng.randint(start + 1, size)
    stated = f"Content-Range: bytes {start}-{end - 1}/{size}"
    a.send("206 Partial Content", stated, body=a.content[start:end])


def whole_file(a: Answer) -> None:
    a.send("200 OK", f"Content-Length: {len(a.content)}", body=a.content)


def wrong_bytes(a: Answer) -> None:
    body = bytearray(a.start())
    if body:
        body[a.rng.randrange(len(body))] ^= 1
    a.connection.sendall(body)


def wrong_bytes_cut(a: Answer) -> None:
    body = a.start()
    a.connection.sendall(a.rng.randbytes(a.rng.randint(0, len(body))))


def compressed(a: Answer) -> None:
    body = gzip.compress(a.content)
    length = [f"Content-Length: {len(body)}"] if a.rng.random() < 0.5 else []
    a.send("200 OK", "Content-Encoding: gzip", *length, body=body)


def redirects(a: Answer) -> None:
    """Once, to an address that this server answers well."""
    a.send("302 Found", "Location: /good", "Content-Length: 0")


def redirects_for_ever(a: Answer) -> None:
    a.send("302 Found", f"Location: /{a.rng.choice(('loop', a.rng.random()))}")


def redirects_elsewhere(a: Answer) -> None:
    target = a.rng.choice(
        ("file:///etc/hostname", "ftp://127.0.0.1:9/x", "data:,x", "http://[bad", "http://.a/", "")
    )
    a.send("302 Found", f"Location: {target}")


def status(*lines: str) -> Callable[[Answer], None]:
    def answer(a: Answer) -> None:
        a.send(a.rng.choice(lines), "Content-Length: 0")

    return answer


def busy(a: Answer) -> None:
    asked = a.rng.choice(("0", "3600", "soon", "-1", "Wed, 21 Oct 2015 07:28:00 GMT"))
    a.send("503 Service Unavailable", f"Retry-After: {asked}", "Content-Length: 0")


def garbage(a: Answer) -> None:
    a.connection.sendall(
        a.rng.choice((a.rng.randbytes(2000), b"HTTP/1.1 abc OK\r\n\r\n", b"\r\n" * 9))
    )


def endless_headers(a: Answer) -> None:
    a.connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        a.connection.sendall(b"X: y\r\n" * 10_000)


def endless_continue(a: Answer) -> None:
    while True:
        a.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000)


FAULTS: dict[str, Callable[[Answer], None]] = {
    fault.__name__.replace("_", " "): fault
    for fault in (
        resets, resets_at_once, closes, closes_at_once, stalls, stalls_in_headers, drips,
        drips_headers, length_too_long, length_too_short, length_nonsense, no_length,
        no_length_cut, longer_than_announced, longer_than_the_file, chunked, chunked_cut,
        endless_trailers, another_range, another_total, range_without_header,
        a_part_of_the_range, whole_file, wrong_bytes, wrong_bytes_cut, compressed, redirects,
        redirects_for_ever, redirects_elsewhere, busy, garbage, endless_headers,
        endless_continue,
    )
}  # fmt: skip
FAULTS["503 or 429"] = status("503 Service Unavailable", "429 Too Many Requests")
FAULTS["404, 416 or 500"] = status("404 Not Found", "416 Bad Range", "500 Internal Server Error")
FAULTS["no content"] = status("204 No Content", "304 Not Modified")


class Server:
    """Answers each request with the next of a list of answers; the last one stays."""

    def __init__(
        self, content: bytes, *answers: Callable[[Answer], None], seed: object = 0
    ) -> None:
        self.requests: list[int | None] = []
        rng = random.Random(f"{seed}")
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                first = self.rfile.readline().decode("latin1")
                asked = None
                while (line := self.rfile.readline().strip()) != b"":
                    if found := re.fullmatch(rb"(?i)range: bytes=(\d+)-", line):
                        asked = int(found[1])
                answer = answers[min(len(outer.requests), len(answers) - 1)]
                if "/good" in first:
                    answer = good
                outer.requests.append(asked)
                with contextlib.suppress(OSError):
                    answer(Answer(self.connection, content, asked, rng))

        socketserver.ThreadingTCPServer.daemon_threads = True
        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/file"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def fetched(server: Server, path: Path, content: bytes, **options: Any) -> str:
    """What came of a download, in words."""
    settings = {"stall_timeout": 0.3, "pause": 0.01, "progress": False} | options
    digest = hashlib.sha256(content).hexdigest()
    with time_limit():
        try:
            download(server.url, path, size=len(content), sha256=digest, **settings)
        except DownloadError as error:
            if path.exists():
                return "failed, but a file is there"
            return "failed clearly" if str(error).startswith("http") else f"unclear: {error}"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return "arrived" if path.read_bytes() == content else "a wrong file"


def server_faults(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Sequences of one to five faults, with a good answer at the end of two in three; each file is
    then asked for again, of a good server.
    """
    rng = random.Random(seed)
    content = rng.randbytes(100_000)
    growth = memory_growth()
    counts: Counter[str] = Counter()
    epoch_sums: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    for trial in range(count):
        names = rng.choices(list(FAULTS), k=rng.randint(1, 5))
        answers = [FAULTS[name] for name in names] + [good] * (rng.random() < 2 / 3)
        path = folder / f"file{trial}"
        if rng.random() < 0.25:  # the beginning of something else
            path.with_name(f"{path.name}.part").write_bytes(rng.randbytes(rng.randint(1, 100_100)))
            names.append("wrong part")
        counts.update(names)
        with Server(content, *answers, seed=f"{seed} {trial}") as server:
            outcome = fetched(server, path, content)
        if outcome in ("arrived", "failed clearly"):
            epoch_sums[outcome] += 1
        else:
            wrong[f"{names}: {outcome}"] += 1
        path.unlink(missing_ok=True)
        with Server(content, good) as server:
            later = fetched(server, path, content, stall_timeout=5.0)
        if later != "arrived" or listing(folder) != [path.name]:
            wrong[f"{names}: later {later}, {listing(folder)}"] += 1
        for left in folder.iterdir():
            left.unlink()
    return {
        "trials": count,
        "kinds": dict(sorted(counts.items())),
        "arrived": epoch_sums["arrived"],
        "failed_clearly": epoch_sums["failed clearly"],
        "wrong": dict(wrong),
        "memory_growth_mb": growth(),
    }


# --- processes that are killed -------------------------------------------------------------------

CHILD = """\
import sys
from pathlib import Path
from cifar_resnet.data.download import download
import tqdm
print("go", flush=True)
url, path, size, sha256 = sys.argv[1:]
download(url, Path(path), size=int(size), sha256=sha256, progress=False)
"""


def slowly(a: Answer) -> None:
    body = a.start()
    for start in range(0, len(body), 2000):
        a.connection.sendall(body[start : start + 2000])
        time.sleep(0.01)


def killed_downloads(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """A download is killed at a random moment, up to three times, and then done well."""
    rng = random.Random(seed)
    content = rng.randbytes(100_000)
    arguments = [str(len(content)), hashlib.sha256(content).hexdigest()]
    epoch_sums: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    kept = []
    for trial in range(count):
        path = folder / f"file{trial}"
        for _ in range(rng.randint(1, 3)):
            with Server(content, slowly) as server:
                command = [sys.executable, "-c", CHILD, server.url, str(path), *arguments]
                with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
                    assert child.stdout is not None
                    child.stdout.readline()
                    time.sleep(rng.uniform(0, 0.6))
                    epoch_sums["killed" if child.poll() is None else "done before"] += 1
                    child.kill()
            if path.exists() and path.read_bytes() != content:
                wrong["a wrong file is trusted"] += 1
        part = path.with_name(f"{path.name}.part")
        kept.append(part.stat().st_size if part.exists() else 0)
        if not path.exists():
            with Server(content, good) as server:
                outcome = fetched(server, path, content, stall_timeout=5.0)
            if outcome != "arrived" or server.requests != [kept[-1] or None]:
                wrong[f"then {outcome} after {server.requests}"] += 1
    return {"trials": count, "kinds": dict(epoch_sums), "kept_bytes": kept, "wrong": dict(wrong)}


# --- a disk that gets full -----------------------------------------------------------------------


def can_mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        if subprocess.run(command, capture_output=True).returncode:
            return False
    except OSError:
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[str], None]]:
    """A file system of `size` bytes; gives the means to change its options."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(folder), "-o"]

    def change(options: str) -> None:
        subprocess.run([*mount, f"remount,{options}"], check=True)

    subprocess.run([*mount, f"size={size}"], check=True)
    try:
        yield change
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disks(dataset: Dataset, folder: Path, count: int, seed: int) -> dict[str, Any]:
    """The disk gets full at a random point of fetching or storing; after there is room again, a
    later call succeeds. Sizes are those of the small data set, and nothing is fetched ahead of
    the check of the free space, which is switched off: another program may take the room later.
    """
    if not can_mount(folder):
        return {"trials": 0, "kinds": {}, "wrong": {}, "skipped": "mount is not allowed"}
    rng = random.Random(seed)
    files = dataset.files("binary archive")
    ((name, content),) = files.items()
    counts: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    disk = folder / "disk"
    with (
        Server(content, good) as server,
        dataset.official(files),
        mock.patch.object(cifar10, "OFFICIAL_URL", server.url),
        mock.patch.object(sources, "_SPACE_NEEDED", 0),
        mock.patch.object(shutil, "which", return_value=None),
    ):
        for _ in range(count):
            local = rng.random() < 0.5
            # a downloaded archive is deleted before its records are stored
            need = 6 * formats.RECORDS_BYTES + len(content) * local
            low = len(content) + 50_000 if local else 10_000
            with small_disk(disk, rng.randint(low, need - 50_000)) as change:
                if local:
                    (disk / name).write_bytes(content)
                data = disk / "data" if not local else disk
                counts["an archive is there" if local else "download"] += 1
                try:
                    sources.prepare(data)
                    wrong["no error"] += 1
                except DatasetError as error:
                    message = str(error)
                    if not ("MB needed" in message and REMEDY.search(message)):
                        wrong[message] += 1
                except Exception as error:
                    wrong[f"{type(error).__name__}: {error}"] += 1
                expected = {name, f"{name}.part"}
                if left := set(listing(data)) - expected:
                    wrong[f"left: {sorted(left)}"] += 1
                change("size=100m")
                try:
                    sources.prepare(data)
                    if not dataset.is_loaded_from(data):
                        wrong["later wrong data"] += 1
                except Exception as error:
                    wrong[f"later {type(error).__name__}: {error}"] += 1
    return {"trials": count, "kinds": dict(counts), "wrong": dict(wrong)}


if __name__ == "__main__":
    main()
