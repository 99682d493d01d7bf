"""Read image files as input of the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_resnet.data import cifar10
from cifar_resnet.data.image_files import central_part, read_color

Pixels = NDArray[np.uint8]  # (32, 32, 3)
SIDE = 32


def read_image(path: str | Path) -> Pixels:
    """Read an image file, rotate it upright, and scale its central square to 32 x 32 pixels.

    Raises:
        ValueError: As for `read_color`.
    """
    return np.asarray(central_part(read_color(path), (SIDE, SIDE)))


def normalized(pixels: Pixels) -> Tensor:
    """Normalize pixels (32, 32, 3) to the network's input (1, 3, 32, 32)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cifar10.MEAN, cifar10.STD))
    image = torch.tensor(pixels).permute(2, 0, 1).div(255)
    return image.sub(mean).div(std)[None]
