"""Train on smaller images in the first part of a run (progressive resizing)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet.model_state import unwrap_compiled
from cifar_resnet.network import CustomResNet

__all__ = ["scaled_forward"]


def scaled_forward(
    forward: Callable[[Tensor], Tensor], network: nn.Module, images: Tensor, scale: float
) -> Tensor:
    """Compute the scores of scaled images.

    Args:
        forward: Function from images to scores (N, classes) that calls `network`.
        network: The network. A `CustomResNet`, also a compiled one, takes the size of the scaled
            images meanwhile; any other network must accept it.
        images: Images (N, C, H, W).
        scale: Factor on height and width, which are rounded to whole pixels.
    """
    if scale == 1:
        return forward(images)
    size = tuple(round(side * scale) for side in images.shape[2:])
    original = unwrap_compiled(network)
    try:
        # In float32, because PyTorch has no antialiasing in half precision for a CPU.
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        scaled = F.interpolate(wide, size=size, mode="bilinear", antialias=True).to(images.dtype)
        with original.at_size(size) if isinstance(original, CustomResNet) else nullcontext():
            return forward(scaled)
    except Exception as error:  # of any network
        error.add_note(
            f"image_scale={scale} of the recipe has scaled the images to {size[0]}x{size[1]} "
            "pixels. Choose another factor if the network cannot take this size, or 1 to keep the "
            "size of the images."
        )
        raise
