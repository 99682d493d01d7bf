"""Images of any kind as bytes to look at. It knows tensors, arrays and pictures; it must not know
where they come from.
"""

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
    """An image (C, H, W) as uint8 (H, W, 3), with its own brightness.

    Args:
        image: Integers from 0 to 255, or floating-point numbers in [0, 1], once the normalization
            is undone. One channel is gray; of four the first three are drawn.
        statistics: Mean and standard deviation that it was normalized with; None for none.
        name: What errors call it.
        clip: Whether to cut values off at the ends of the range, whatever they are.
    """
    if image.dim() != 3 or image.shape[0] not in (1, 3, 4):
        raise ValueError(
            f"{name} must have the shape (C, H, W) with 1 (gray), 3 or 4 channels, but has "
            f"{tuple(image.shape)}."
        )
    values = in_unit_range(image.detach().cpu(), statistics, name=name, clip=clip)
    shown = (values * 255).round().to(torch.uint8)
    shown = shown[:3] if shown.shape[0] > 1 else shown.expand(3, -1, -1)
    pixels: Pixels = shown.permute(1, 2, 0).contiguous().numpy()
    return pixels


def as_tensor(image: Any) -> Tensor:
    """A tensor (3, H, W), an array (H, W, 3) or (3, H, W), or a PIL image as a tensor (3, H, W)."""
    if _is_picture(image):
        return _from_picture(image)
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


def pictures_as_tensors(item: Any) -> Any:
    """A sample of a dataset with its PIL images as uint8 tensors (3, H, W), all else as it is."""
    if _is_picture(item):
        return _from_picture(item)
    if isinstance(item, Mapping):
        return {key: pictures_as_tensors(value) for key, value in item.items()}
    if isinstance(item, tuple | list):
        return tuple(map(pictures_as_tensors, item))
    return item


def _is_picture(image: Any) -> bool:
    from PIL import Image

    return isinstance(image, Image.Image)


def _from_picture(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
