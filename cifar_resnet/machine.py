"""Choose device and precision, and describe the machine and the versions of a run."""

from __future__ import annotations

import logging
import os
import platform
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["describe_machine", "device_name", "pick_device", "pick_precision"]

# Rounding to bfloat16 changes the result of a convolution by about 0.3 %; faults of a library
# (pytorch/pytorch#163347, pytorch/pytorch#169688) by as much as its size.
_TOLERANCE = 0.02


def describe_machine(
    device: torch.device | str = "cpu", threads: int | None = None
) -> dict[str, Any]:
    """Return hardware, versions and date, for a line of results."""
    import torch

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
