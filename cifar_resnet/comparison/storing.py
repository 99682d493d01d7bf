"""Store the runs of a comparison in a folder that several processes and machines share.

| file                   | content                                                       |
| ---------------------- | ------------------------------------------------------------- |
| `comparison.json`      | the arms, the setting and the versions, which must not change |
| `runs-*.jsonl`         | one line for each run, a file for each process                |
| `locks/`               | the runs that a process is training                           |
| `checkpoints/`         | where interrupted runs resume                                 |

Each process appends to a file of its own, so that lines never mix, also on a network file system. A
lock of the operating system ends with its process. Should a file system grant a lock twice, a run
is trained twice, and its first line counts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cifar_resnet.files import atomic_write

__all__ = ["ResultFolder", "Run", "library_versions", "read_file"]

_log = logging.getLogger(__name__)

Run = tuple[str, int]  # name of the arm, seed
_PACKAGES = ("torch", "torchvision", "pytorch-lightning", "cifar-resnet")


def library_versions() -> dict[str, str]:
    """Return the versions on which the result of a run may depend."""
    return {name: version(name) for name in _PACKAGES}


class ResultFolder:
    """The folder of a comparison.

    Args:
        path: The folder; created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        host = "".join(c if c.isalnum() else "-" for c in platform.node())[:40] or "machine"
        self._file = path / f"runs-{host}-{os.getpid()}-{secrets.token_hex(3)}.jsonl"
        self._warned: set[str] = set()

    def claim(self, header: Mapping[str, Any], precision: Any) -> str:
        """Write the description of the comparison, or compare it with the one in the folder.

        Args:
            header: The arms, the setting without the precision, and the versions.
            precision: The precision, or a function that measures which one is faster; it is called
                if the folder is new.

        Returns:
            The precision.

        Raises:
            ValueError: If the folder belongs to another comparison; the message names the
                difference.
            OSError: If the folder cannot be written or locked.
        """
        file = self.path / "comparison.json"
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked(".comparison.lock", timeout=60.0):
            if not file.exists():
                if others := [p.name for p in self.path.iterdir() if p.suffix == ".jsonl"]:
                    raise ValueError(
                        f"{self.path} has result files ({others[0]}), but no comparison.json that "
                        "says what they are. Choose another folder, or read them with "
                        "Comparison.from_results."
                    )
                chosen: str = precision() if callable(precision) else precision
                with atomic_write(file) as temporary:
                    temporary.write_text(json.dumps({**header, "precision": chosen}, indent=1))
                return chosen
            saved = _read_json(file)
        chosen = saved.get("precision", "") if callable(precision) else precision
        requested = json.loads(json.dumps({**header, "precision": chosen}))
        if differences := list(_differences(saved, requested)):
            more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
            raise ValueError(
                f"{self.path} belongs to another comparison: {'; '.join(differences[:3])}{more}. "
                "Choose another folder for this one, or repeat the arms and options of that one."
            )
        return chosen

    def runs(self) -> dict[Run, dict[str, Any]]:
        """Read the finished runs of all processes.

        Raises:
            ValueError: If a line is damaged.
        """
        result: dict[Run, dict[str, Any]] = {}
        lines = [line for file in sorted(self.path.glob("runs-*.jsonl")) for line in self._of(file)]
        for line in sorted(lines, key=lambda line: line["date"]):
            result.setdefault((line["arm"], line["seed"]), line)
        return result

    def append(self, line: dict[str, Any]) -> None:
        """Add a finished run, and delete its checkpoints."""
        line = line | {"check": _checksum(line)}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        shutil.rmtree(self.checkpoints((line["arm"], line["seed"])), ignore_errors=True)

    @contextmanager
    def lock(self, run: Run) -> Iterator[bool]:
        """Yield whether this process may train a run: no other one is training it."""
        (self.path / "locks").mkdir(exist_ok=True)
        try:
            held = self._locked(f"locks/{_short(run)}.lock", timeout=0.0)
            held.__enter__()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            held.__exit__(None, None, None)

    def checkpoints(self, run: Run) -> Path:
        """Return the folder of the checkpoints of a run."""
        return self.path / "checkpoints" / _short(run)

    @contextmanager
    def _locked(self, name: str, timeout: float) -> Iterator[None]:
        lock = FileLock(self.path / name, timeout=timeout)
        try:
            lock.acquire()
        except Timeout:
            raise
        except (OSError, NotImplementedError) as error:
            raise OSError(
                f"{self.path} cannot be locked ({error}), so that processes cannot share it. Give "
                "each machine a local folder and seeds of its own, and read all of their files "
                "with Comparison.from_results."
            ) from error
        try:
            yield
        finally:
            lock.release()

    def _of(self, file: Path) -> Iterator[dict[str, Any]]:
        for line in read_file(file, self._warned):
            if line.get("check") != _checksum({k: v for k, v in line.items() if k != "check"}):
                raise ValueError(
                    f"{file} is damaged: the line of arm {line.get('arm')!r}, seed "
                    f"{line.get('seed')!r} has been changed. Delete the line to train that run "
                    "again."
                )
            yield line


def read_file(path: Path, warned: set[str] | None = None) -> Iterator[dict[str, Any]]:
    """Read the lines of a result file. A half-written last line is skipped with a warning.

    Args:
        path: The file.
        warned: Files that a warning has named already.

    Raises:
        ValueError: If another line is damaged.
    """
    warned = set() if warned is None else warned
    text = path.read_text(encoding="utf-8")
    rows = text.split("\n")
    for number, row in enumerate(rows, start=1):
        if not row.strip():
            continue
        try:
            line = json.loads(row)
        except ValueError as error:
            if number == len(rows):  # without the end of line that is written with each line
                if str(path) not in warned:
                    warned.add(str(path))
                    _log.warning(
                        "The last line of %s is half-written, so its process was killed. The run "
                        "does not count.", path,
                    )  # fmt: skip
                return
            raise ValueError(
                f"Line {number} of {path} is damaged ({error}). Delete the line to train that run "
                "again."
            ) from error
        if not isinstance(line, dict):
            raise ValueError(f"Line {number} of {path} must be a JSON object, but is {line!r}.")
        yield line


def _read_json(file: Path) -> dict[str, Any]:
    try:
        saved = json.loads(file.read_text())
        if not isinstance(saved, dict):
            raise TypeError(f"it holds {type(saved).__name__}, not an object")
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{file} is damaged ({error}). Choose another folder, and read the results of this one "
            "with Comparison.from_results."
        ) from error
    return saved


def _differences(saved: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """Describe where two descriptions differ."""
    names = list(saved.get("arms", {})), list(own["arms"])
    if names[0] != names[1]:
        yield f"its arms are {names[0]} instead of {names[1]}"
        return
    for arm in names[0]:
        for part in ("recipe", "data"):
            first, second = saved["arms"][arm][part], own["arms"][arm][part]
            for key in dict.fromkeys([*first, *second]):
                if first.get(key) != second.get(key):
                    yield (
                        f"{key} of arm {arm!r} is {first.get(key)!r} instead of {second.get(key)!r}"
                    )
        for key in ("width", "network"):
            first, second = saved["arms"][arm][key], own["arms"][arm][key]
            if first != second:
                yield f"{key} of arm {arm!r} is {first!r} instead of {second!r}"
    for key, value in own.items():
        if key == "versions":
            for package, used in value.items():
                before = saved.get(key, {}).get(package)
                if before != used:
                    yield f"{package} is {before} instead of {used}"
        elif key != "arms" and saved.get(key) != value:
            yield f"{key} is {saved.get(key)!r} instead of {value!r}"


def _short(run: Run) -> str:
    name, seed = run
    return f"{hashlib.sha256(name.encode()).hexdigest()[:12]}-seed{seed}"


def _checksum(line: Mapping[str, Any]) -> str:
    text = json.dumps(json.loads(json.dumps(line)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
