"""Convert images of any kind to pixels that can be drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_resnet.normalization import Statistics, in_unit_range

Pixels = NDArray[np.uint8]


def as_pixels(
    image: Tensor, statistics: Statistics | None, *, name: str, clip: bool = False
) -> Pixels:
    """Convert an image (C, H, W) to uint8 (H, W, 3); see `as_rgb` for the arguments."""
    rgb = as_rgb(image, statistics, name=name, clip=clip)
    return np.rint(rgb * 255).astype(np.uint8)


def as_rgb(
    image: Tensor, statistics: Statistics | None = None, *, name: str, clip: bool = False
) -> NDArray[np.float32]:
    """Convert an image (C, H, W) to float32 (H, W, 3) in [0, 1], without changing its brightness.

    Args:
        image: Integers from 0 to 255, or floating-point numbers in [0, 1] after the normalization
            is undone. One channel is drawn in gray; of four channels, the first three are drawn.
        statistics: Mean and standard deviation that the image was normalized with. If None, it was
            not normalized.
        name: What error messages call the image.
        clip: If True, clip values outside the range instead of raising.
    """
    if image.dim() != 3 or image.shape[0] not in (1, 3, 4):
        raise ValueError(
            f"{name} must have the shape (C, H, W) with 1 (gray), 3 or 4 channels, but has "
            f"{tuple(image.shape)}."
        )
    values = in_unit_range(image.detach().cpu(), statistics, name=name, clip=clip)
    values = values[:3] if len(values) > 1 else values.expand(3, -1, -1)
    rgb: NDArray[np.float32] = values.permute(1, 2, 0).contiguous().numpy()
    return rgb


def as_tensor(image: Any) -> Tensor:
    """Convert a tensor (3, H, W), an array (H, W, 3) or (3, H, W), or a PIL image to a tensor
    (3, H, W).
    """
    if _is_pil(image):
        return _from_pil(image)
    if isinstance(image, np.ndarray):
        if image.ndim == 3 and image.shape[2] == 3:
            image = np.moveaxis(image, 2, 0)
        tensor = torch.from_numpy(np.ascontiguousarray(image))
    elif isinstance(image, Tensor):
        tensor = image
    else:
        raise TypeError(
            "image must be an index, a tensor (3, H, W), an array (H, W, 3) or a PIL image, but "
            f"got {type(image).__name__}."
        )
    if tensor.dim() != 3 or tensor.shape[0] != 3:
        raise ValueError(
            "image must be one image of three channels, (3, H, W) or an array (H, W, 3), but has "
            f"the shape {tuple(image.shape)}."
        )
    return tensor


def pil_to_tensors(item: Any) -> Any:
    """Convert the PIL images in a sample of a dataset to uint8 tensors (3, H, W)."""
    if _is_pil(item):
        return _from_pil(item)
    if isinstance(item, Mapping):
        return {key: pil_to_tensors(value) for key, value in item.items()}
    if isinstance(item, tuple | list):
        return tuple(map(pil_to_tensors, item))
    return item


def _is_pil(image: Any) -> bool:
    from PIL import Image

    return isinstance(image, Image.Image)


def _from_pil(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
