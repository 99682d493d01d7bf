"""Compute the weight gradients of convolutions on small maps with matrix products."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["SmallMapGradients", "small_map_gradients"]

_LARGEST = 4  # height and width in pixels; on larger maps, the gradient of PyTorch is as fast
# Narrower networks gain less than the context costs (`benchmarks/results/speed.jsonl`).
_CHANNELS = 512
_ONES = (1, (1,), (1, 1), [1], [1, 1])


def small_map_gradients(network: nn.Module, device: torch.device) -> AbstractContextManager[Any]:
    """Return `SmallMapGradients` on a CPU for a network that is wide enough to gain from it."""
    # Not on a GPU, whose host would spend the time of the context in each step.
    is_wide = device.type == "cpu" and any(
        isinstance(layer, nn.Conv2d) and min(layer.in_channels, layer.out_channels) >= _CHANNELS
        for layer in network.modules()
    )
    return SmallMapGradients() if is_wide else nullcontext()


class SmallMapGradients(TorchFunctionMode):
    """Within a `with` statement, use a faster weight gradient for convolutions on small maps.

    On a map of at most 4x4 pixels, much of a 3x3 kernel lies on the padding, and PyTorch's weight
    gradient also multiplies by these zeros. Here, each of the nine positions of the kernel is a
    matrix product over the pixels alone.

    This concerns 3x3 convolutions in bfloat16 on a CPU with stride 1 and padding 1, of any network
    that is not compiled. The outputs and the gradients of the inputs stay exactly the same, those
    of weight and bias up to rounding.

    Examples:
        >>> import torch
        >>> from cifar_resnet.training.weight_gradients import SmallMapGradients
        >>> conv = torch.nn.Conv2d(8, 8, 3, padding=1, dtype=torch.bfloat16)
        >>> with SmallMapGradients():
        ...     maps = conv(torch.randn(2, 8, 4, 4, dtype=torch.bfloat16))
        >>> maps.grad_fn.name()
        '_SmallMapConvolutionBackward'
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.conv2d and not torch.compiler.is_compiling():
            inputs = _inputs(*args, **kwargs)
            if inputs is not None:
                return _SmallMapConvolution.apply(*inputs)
        return func(*args, **kwargs)


def _inputs(
    input: Any = None,  # noqa: A002 (the names are those of PyTorch's function)
    weight: Any = None,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> tuple[Tensor | None, ...] | None:
    """Return input, weight and bias in bfloat16 if the convolution has the faster gradient."""
    given = [tensor for tensor in (input, weight, bias) if isinstance(tensor, Tensor)]
    if torch.is_autocast_enabled("cpu"):
        dtypes = {torch.get_autocast_dtype("cpu")}
    else:
        dtypes = {tensor.dtype for tensor in given}
    if not (
        {tensor.device.type for tensor in given} == {"cpu"}
        and dtypes == {torch.bfloat16}
        and [tensor.dim() for tensor in given[:2]] == [4, 4]
        and max(input.shape[2:]) <= _LARGEST
        and weight.shape[1:] == (input.shape[1], 3, 3)
        and groups == 1
        and all(value in _ONES for value in (stride, padding, dilation))
        and weight.requires_grad
    ):
        return None
    return input.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16()


class _SmallMapConvolution(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(images, weight, bias, padding=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        images, weight, _ = inputs
        ctx.save_for_backward(images, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        of_images, of_weight, of_bias = ctx.needs_input_grad
        return (
            _image_gradient(images, weight, gradient) if of_images else None,
            _weight_gradient(images, gradient) if of_weight else None,
            gradient.sum((0, 2, 3)) if of_bias else None,
        )


def _image_gradient(images: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    one = [1, 1]
    result: Tensor = torch.ops.aten.convolution_backward(
        gradient, images, weight, None, one, one, one, False, [0, 0], 1, [True, False, False]
    )[0]
    return result


def _weight_gradient(images: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient (outputs, inputs, 3, 3), given input and output gradient (N, C, H, W)."""
    height, width = images.shape[2:]
    # Pixels first, so that those below one position of the kernel are few blocks of memory.
    inputs, outputs = (x.permute(2, 3, 0, 1).contiguous() for x in (images, gradient))
    products = []
    for row in (-1, 0, 1):
        for column in (-1, 0, 1):
            # At this position, the output at (y, x) has seen the input at (y + row, x + column).
            seen = inputs[_overlap(row, height), _overlap(column, width)].flatten(0, 2)
            by = outputs[_overlap(-row, height), _overlap(-column, width)].flatten(0, 2)
            products.append(by.T @ seen)
    kernel: Tensor = torch.stack(products, 1).unflatten(1, (3, 3))  # (outputs, 3, 3, inputs)
    return kernel.permute(0, 3, 1, 2)


def _overlap(shift: int, size: int) -> slice:
    """Return which of `size` pixels remain inside after a shift of all by `-shift`."""
    return slice(max(shift, 0), size + min(shift, 0))
