"""Read image files of users: photographs, drawings, and files that are not images at all."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

# Other formats that Pillow opens are rare, or run other programs (EPS).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MOST_PIXELS = 50_000_000


def read_color(path: str | Path) -> Image.Image:
    """Read an image file in RGB, rotated upright.

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
            return as_color(image)
        except Exception as error:
            reason = str(error) or type(error).__name__
            raise ValueError(
                f"The image is damaged or of a rare kind ({image.format}, mode {image.mode}: "
                f"{reason}). Save it as an ordinary PNG or JPEG and try again."
            ) from None


def as_color(image: Image.Image) -> Image.Image:
    """Convert an image to RGB, rotated upright; see `read_color`."""
    return _on_white(ImageOps.exif_transpose(image))


def central_part(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Scale the largest central part with the shape of `size`, (height, width), to that size."""
    left, top, width, height = central_box(image.width, image.height, size)
    part = image.crop((left, top, left + width, top + height))
    return part.resize(size[::-1], Image.Resampling.BICUBIC)  # antialiased


def central_box(width: int, height: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, top, width and height of the largest central part with the shape of `size`."""
    scale = min(height / size[0], width / size[1])
    part_height, part_width = (max(1, round(scale * side)) for side in size)
    return (width - part_width) // 2, (height - part_height) // 2, part_width, part_height


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
