"""What a measurement was made on, and where its result goes."""

from __future__ import annotations

import fcntl
import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "examples"))


def machine(device: torch.device | str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """Hardware, versions and date, for a line of results."""
    import torch
    from train_24 import device_name

    packages = ("torch", "torchvision", "pytorch-lightning", "cifar_resnet")
    return {
        "hardware": {
            "device": device_name(torch.device(device)),
            "threads": threads or torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name.replace("-", "_"): version(name) for name in packages},
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line of results; several processes may write to one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(line) + "\n")
