"""Choose device, precision and allocator settings for a run, and describe the machine."""

from __future__ import annotations

import copy
import itertools
import logging
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cifar_resnet import CustomResNet

# Rounding to bfloat16 changes the result of a convolution by about 0.3 %; faults of a library
# (pytorch/pytorch#163347, pytorch/pytorch#169688) by as much as its size.
_TOLERANCE = 0.02

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


def pick_device() -> torch.device:
    """Return the first CUDA device, else Apple's GPU, else the CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor with its number of cores."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({os.cpu_count()} cores)"
    return platform.processor() or device.type


def pick_precision(device: torch.device, processes: int = 1) -> str:
    """Return `"bf16-mixed"` if bfloat16 convolutions are correct and faster, else `"32-true"`.

    A single process computes a convolution with its gradients in both formats. Several processes
    must choose the same precision, so they do not measure: they use bfloat16 on GPUs that support
    it.
    """
    import torch

    if device.type == "mps":
        return "32-true"
    if processes > 1:
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16-mixed" if has_bf16 else "32-true"
    expected, float32_seconds = _convolution(device, torch.float32)
    result, bfloat16_seconds = _convolution(device, torch.bfloat16)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(result, expected, strict=True)]
    if not max(errors) < _TOLERANCE:  # also if it is NaN
        logging.getLogger(__name__).warning(
            "bfloat16 convolutions are wrong on this machine with PyTorch %s: relative error %.2g, "
            "expected less than %g. Training in float32; another version of PyTorch may be faster.",
            torch.__version__, max(errors), _TOLERANCE,
        )  # fmt: skip
        return "32-true"
    return "bf16-mixed" if bfloat16_seconds < float32_seconds else "32-true"


def _convolution(device: torch.device, dtype: torch.dtype) -> tuple[list[torch.Tensor], float]:
    """Return a convolution with the gradients of image and weight, and the seconds it takes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    images, weight, weighting = (
        torch.randn(shape, generator=generator).to(device, dtype, memory_format=torch.channels_last)
        for shape in ((32, 64, 16, 16), (64, 64, 3, 3), (32, 64, 16, 16))
    )
    images.requires_grad_(), weight.requires_grad_()
    seconds = []
    for _ in range(3):  # the first is slower
        start = time.perf_counter()
        output = torch.nn.functional.conv2d(images, weight, padding=1)
        gradients = torch.autograd.grad(output, (images, weight), weighting)
        result = [tensor.detach().float().cpu() for tensor in (output, *gradients)]
        seconds.append(time.perf_counter() - start)
    return result, min(seconds)


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
