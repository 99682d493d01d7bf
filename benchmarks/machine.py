"""Describe the machine of a measurement, and append its result to a file."""

from __future__ import annotations

import fcntl
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def machine(device: torch.device | str = "cpu", threads: int | None = None) -> dict[str, Any]:
    """Return hardware, versions and date, for a line of results."""
    import torch

    from cifar_resnet.cli.hardware import device_name

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
    """Append a line of results; several processes may write to one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(line) + "\n")
