"""Read image files as input of the network."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from cifar_resnet.data import cifar10

Pixels = NDArray[np.uint8]  # (32, 32, 3)
SIDE = 32
# Other formats that Pillow opens are rare, or run other programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MOST_PIXELS = 50_000_000


def read_image(path: str | Path) -> Pixels:
    """Read an image file, rotate it upright, and scale its central square to 32 x 32 pixels.

    Transparent areas become white, 16-bit values are scaled to 8 bits, and the first frame of an
    animation is used.

    Raises:
        ValueError: If the file is missing, damaged, not an image of a known format, or larger than
            `MOST_PIXELS`.
    """
    if not Path(path).is_file():
        raise ValueError(f"There is no file {str(path)!r}.")
    Image.init()
    known = [name for name in FORMATS if name in Image.OPEN]  # Pillow may be built without some
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the size is checked below
            image = Image.open(path, formats=known)
    except Image.DecompressionBombError:
        raise ValueError(f"The image has too many pixels; {_most()}") from None
    except Exception:  # Pillow raises whatever the parsers of its formats do
        raise ValueError(
            f"This file is not an image that can be read. Expected one of {', '.join(known)}."
        ) from None
    with image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"The image has {image.width} x {image.height} pixels; {_most()}")
        try:
            image.load()
            color = _on_white(ImageOps.exif_transpose(image))
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise ValueError(
                f"The image is damaged or of a rare kind ({image.format}, mode {image.mode}: "
                f"{reason}). Save it as an ordinary PNG or JPEG and try again."
            ) from None
    side = min(color.size)
    left, top = ((length - side) // 2 for length in color.size)
    square = color.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC))  # antialiased


def _most() -> str:
    return f"expected at most {MOST_PIXELS // 10**6} million. Scale it down and try again."


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; `convert` would clip all values at 255
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("its values do not fit into 16 bits")
        image = Image.fromarray((values / 257).round().astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point values have no known range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def normalized(pixels: Pixels) -> Tensor:
    """Normalize pixels (32, 32, 3) to the network's input (1, 3, 32, 32)."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (cifar10.MEAN, cifar10.STD))
    image = torch.tensor(pixels).permute(2, 0, 1).div(255)
    return image.sub(mean).div(std)[None]
