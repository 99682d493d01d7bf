"""Draw the pictures of the demo."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from cifar_resnet import LayerField
from cifar_resnet.cli.images import SIDE, Pixels
from cifar_resnet.plotting import palette

ZOOM = 12  # screen pixels per image pixel
MARK = ImageColor.getrgb(palette.VERMILION)
CELL, MARGIN = 46, 92  # pixels of the confusion matrix


def enlarged(pixels: Pixels, cam: Tensor | None = None, opacity: float = 0.5) -> Image.Image:
    """Enlarge an image without smoothing, and blend a map (32, 32) in [0, 1] into it."""
    from matplotlib import colormaps

    picture = pixels.repeat(ZOOM, 0).repeat(ZOOM, 1)
    if cam is not None and cam.max() > 0:
        smooth = F.interpolate(cam[None, None], picture.shape[:2], mode="bilinear")[0, 0]
        colors = np.asarray(colormaps["viridis"](smooth.clamp(0, 1).numpy()))[..., :3] * 255
        picture = (picture * (1 - opacity) + colors * opacity).round().astype(np.uint8)
    return Image.fromarray(picture)


def draw_region(pixels: Pixels, field: LayerField, unit: tuple[int, int]) -> Image.Image:
    """Draw the image with the pixels that the unit reads framed, and the rest faded."""
    picture = enlarged(pixels)
    (top, bottom), (left, right) = field.region(unit)
    box = (left * ZOOM, top * ZOOM, (right + 1) * ZOOM, (bottom + 1) * ZOOM)
    faded = Image.blend(picture, Image.new("RGB", picture.size, "white"), 0.6)
    faded.paste(picture.crop(box), box)
    draw = ImageDraw.Draw(faded)
    draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), outline=MARK, width=3)
    return faded


def draw_units(field: LayerField, unit: tuple[int, int]) -> Image.Image:
    """Draw the layer's units as a grid, with one of them marked."""
    rows, columns = field.unit_shape
    side = SIDE * ZOOM
    grid = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(grid)
    for row in range(rows):
        for column in range(columns):
            box = (
                column * side // columns,
                row * side // rows,
                (column + 1) * side // columns - 1,
                (row + 1) * side // rows - 1,
            )
            draw.rectangle(box, MARK if (row, column) == unit else "white", "#888888")
    return grid


def draw_confusion(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> Image.Image:
    """Draw how often each class (row) is predicted as each other class (column)."""
    side = MARGIN + CELL * len(classes)
    picture = Image.new("RGB", (side, side), "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    largest = max(
        [
            1,
            *(
                n
                for row, line in enumerate(counts)
                for column, n in enumerate(line)
                if row != column
            ),
        ]
    )
    for row, name in enumerate(classes):
        middle = MARGIN + CELL * row + CELL // 2
        draw.text((MARGIN - 6, middle), name, "black", font, "rm")
        label = Image.new("RGB", (MARGIN, CELL), "white")
        ImageDraw.Draw(label).text((6, CELL // 2), name, "black", font, "lm")
        picture.paste(label.rotate(90, expand=True), (MARGIN + CELL * row, 0))
        for column, number in enumerate(counts[row]):
            left, top = MARGIN + CELL * column, MARGIN + CELL * row
            box = (left, top, left + CELL - 1, top + CELL - 1)
            if row == column:
                draw.rectangle(box, "#dddddd")
                continue
            share = number / largest
            color = tuple(round(255 + share * (part - 255)) for part in MARK)
            draw.rectangle(box, color, "#888888")
            if number:
                draw.text((left + CELL // 2, middle), f"{number}", "black", font, "mm")
    return picture


def confused_pair(point: Sequence[float], classes: Sequence[str]) -> tuple[str, str] | None:
    """Return true and predicted class at a point (x, y) of the matrix, or None beside its cells."""
    column, row = (int((position - MARGIN) // CELL) for position in point)
    if row == column or not (0 <= row < len(classes) and 0 <= column < len(classes)):
        return None
    return classes[row], classes[column]
