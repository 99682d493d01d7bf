"""Control which kernels run in an experiment, and keep NaN from those that it would crash."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cifar_resnet.model_state import process_settings


class NoKernelGetsNan(TorchDispatchMode):
    """Stops a run before NaN reaches a kernel that may use it as an address.

    Kernels of other libraries are not known, such as the deformable convolution of torchvision,
    which reads at positions that it computes from its input. NaN as an integer is an arbitrary
    number.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        integer = kwargs.get("dtype")
        if (
            func.namespace not in ("aten", "prim", "prims")
            or "grid_sampler" in func.name()
            or (isinstance(integer, torch.dtype) and not _holds_nan(integer))
        ) and any(
            isinstance(x, Tensor) and _holds_nan(x.dtype) and bool(x.isnan().any())
            for x in tree_leaves((args, kwargs))
        ):
            raise FloatingPointError(f"{func} would read NaN.")
        return func(*args, **kwargs)


def _holds_nan(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


@contextlib.contextmanager
def plain_algorithms() -> Iterator[None]:
    """Switch off kernels that would let NaN spread too far or not far enough.

    Winograd and Fourier convolutions mix the elements of a tile. Fused attention skips some: a
    query that is NaN does not reach its output.
    """
    with process_settings, warnings.catch_warnings():
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")
            warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
            with (
                torch.backends.mkldnn.flags(enabled=False),
                torch.backends.nnpack.flags(enabled=False),
                torch.backends.cudnn.flags(enabled=False),
                sdpa_kernel(SDPBackend.MATH),
            ):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
