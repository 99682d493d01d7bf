"""Name the folder of raw results, describe the machine, and append a result to a file."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

from cifar_resnet.machine import describe_machine as machine

__all__ = ["RESULTS", "ROOT", "append", "machine"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def append(path: Path, line: dict[str, Any]) -> None:
    """Append a line of results; several processes may write to one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(line) + "\n")
