"""Choose allocator settings for a run, and measure its time and memory."""

from __future__ import annotations

import copy
import itertools
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cifar_resnet import CustomResNet

LARGE_PAGES = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
}


def use_large_pages() -> None:
    """Restart the process with an allocator set for large tensors (Linux, glibc, no NVIDIA GPU).

    Without these settings, glibc returns activations of tens of megabytes to the kernel after every
    layer, and the kernel clears their pages again for the next one. glibc reads the settings only
    when a process starts. Only a process that was started as this command is restarted: any other
    one, such as a notebook's kernel or a script that calls `main`, would lose what it has done.
    """
    suitable = platform.libc_ver()[0] == "glibc" and not Path("/dev/nvidiactl").exists()
    if suitable and _is_command() and not any(name in os.environ for name in LARGE_PAGES):
        os.environ.update(LARGE_PAGES)
        sys.stdout.flush()
        os.execv(sys.executable, sys.orig_argv)


def _is_command() -> bool:
    """Return whether this process was started as `cifar-resnet` or `python -m cifar_resnet`."""
    program, started = Path(sys.argv[0]), sys.orig_argv
    if program.name == "__main__.py":
        return ("-m", "cifar_resnet") in itertools.pairwise(started)
    return program.name == "cifar-resnet" and sys.argv[0] in started


def expected_seconds(
    network: CustomResNet, batch_size: int, precision: str, device: torch.device
) -> float:
    """Estimate the training time per image in seconds from a few steps of a copy of the network."""
    import torch

    network = copy.deepcopy(network).to(device)
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    size = min(batch_size, 128)
    shape = (size, network.in_channels, *network.image_size)
    images = torch.zeros(shape, device=device).to(memory_format=torch.channels_last)
    seconds = []
    for _ in range(3):  # the first is slower
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = network(images).float().mean()
        loss.backward()
        loss.item()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / size


def peak_memory_mb() -> float | None:
    """Return the peak memory of the process in MB (10^6 bytes); None on Windows."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
