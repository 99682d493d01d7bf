"""What a measurement was made on."""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))


def machine(threads: int) -> dict[str, Any]:
    """Hardware, versions and date, for a line of results."""
    import torch
    from train_24 import device_name

    return {
        "hardware": {"device": device_name(torch.device("cpu")), "threads": threads},
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "cifar_resnet")},
        },
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
