"""Augment and normalize whole batches of uint8 images, with different randomness per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_resnet import arguments

__all__ = ["Augmentation", "ImageBank", "Parameters"]

Integers = NDArray[np.intp] | Tensor
Booleans = NDArray[np.bool_] | Tensor

_FLIPS = ("random", "alternating", "none")
_PADDING_MODES = ("reflect", "constant")

# Streams of random numbers. Each is seeded with (seed, stream, epoch), so a change in how one is
# used does not affect the others.
_CROP_STREAM, _FLIP_STREAM, _CUTOUT_STREAM = 1, 2, 3


@dataclass(frozen=True)
class Parameters:
    """Augmentation parameters of each image in one epoch; every array is indexed by the sample.

    The arrays are NumPy arrays when drawn, and tensors after `ImageBank.place` has moved them to a
    device.
    """

    offset_y: Integers  # top row of the crop in the padded image
    offset_x: Integers  # its left column
    flip: Booleans  # whether it is mirrored left to right after the crop
    cutout_y: Integers  # top row of the cutout square, after the flip
    cutout_x: Integers  # its left column

    def take(self, samples: NDArray[np.intp] | slice) -> Parameters:
        """Return the parameters of these samples."""
        return Parameters(*(array[samples] for array in self.arrays()))

    def arrays(self) -> tuple[Any, ...]:
        """Return the five arrays in the order of the fields."""
        return tuple(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Augmentation:
    """Random crop, flip and cutout of images.

    Args:
        crop_padding: Pixels added on each side before a random crop back to the image's size;
            0 means no crop.
        flip: `"random"` mirrors each image with probability 1/2 in each epoch; `"alternating"`
            does so in the first epoch and then flips every image in every other epoch (Jordan,
            "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", 2024); `"none"` never mirrors.
        cutout: Side in pixels of a square inside the image that is set to the mean color (DeVries
            and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
            2017); 0 means no cutout.
        padding_mode: `"reflect"` mirrors the border pixels, `"constant"` pads with black.
    """

    crop_padding: int = 4
    flip: str = "random"
    cutout: int = 0
    padding_mode: str = "reflect"

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout"):
            pixels = arguments.integer(name, getattr(self, name), minimum=0)
            object.__setattr__(self, name, pixels)
        arguments.choice("flip", self.flip, _FLIPS)
        arguments.choice("padding_mode", self.padding_mode, _PADDING_MODES)

    def check_size(self, height: int, width: int) -> None:
        """Raise a ValueError if the augmentation does not fit images of this size in pixels."""
        side, which = min(height, width), "" if height == width else "shorter "
        if self.cutout > side:
            raise ValueError(
                f"cutout must be at most {side} pixels (the image's {which}side), "
                f"but got {self.cutout}."
            )
        if self.crop_padding >= side:
            raise ValueError(
                f"crop_padding must be less than {side} pixels (the image's {which}side), "
                f"but got {self.crop_padding}."
            )

    def stored_bytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes that an `ImageBank` needs for images of shape (N, H, W, C)."""
        count, height, width, channels = shape
        padded = (height + 2 * self.crop_padding) * (width + 2 * self.crop_padding)
        return count * padded * channels * (1 if self.flip == "none" else 2)

    def draw(self, samples: int, size: tuple[int, int], *, seed: int, epoch: int) -> Parameters:
        """Draw the parameters of all samples in one epoch; they depend only on the arguments.

        `size` is the height and width of the images in pixels.
        """
        crop = np.random.default_rng([seed, _CROP_STREAM, epoch])
        cutout = np.random.default_rng([seed, _CUTOUT_STREAM, epoch])
        offsets = crop.integers(0, 2 * self.crop_padding + 1, size=(2, samples))
        corners = [cutout.integers(0, side - self.cutout + 1, size=samples) for side in size]
        if self.flip == "none":
            flip = np.zeros(samples, dtype=np.bool_)
        else:
            alternating = self.flip == "alternating"
            key = [seed, _FLIP_STREAM, 0 if alternating else epoch]
            flip = np.random.default_rng(key).random(samples) < 0.5
            if alternating and epoch % 2 == 1:
                flip = ~flip
        return Parameters(offsets[0], offsets[1], flip, corners[0], corners[1])


class ImageBank:
    """Store padded uint8 images on one device and return normalized float batches.

    A crop is read from its first pixel to its last, including the padding between its rows: one
    run of bytes per image, so a whole batch is one gather of B long copies. The padding is
    dropped in the conversion to float. If images may be flipped, their mirror images are stored
    as well.

    Args:
        images: uint8 array (N, H, W, C).
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel, in [0, 1].
        augmentation: Augmentation that `batch` applies. If None, images are only normalized.
        device: Device of the images and the batches.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        count: int = images.shape[0]
        height, width, channels = images.shape[1:]
        self.augmentation = augmentation
        self.size = (height, width)
        self.channels = channels
        self.device = torch.device(device)
        padding = augmentation.crop_padding if augmentation is not None else 0
        if augmentation is not None:
            augmentation.check_size(height, width)
            mirrored = augmentation.flip != "none"
            images = _padded(images, padding, augmentation.padding_mode, mirrored=mirrored)
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        self._count = count
        self._padding = padding
        row = (width + 2 * padding) * channels  # bytes in a padded row
        run = (height - 1) * row + width * channels  # bytes from a crop's first pixel to its last
        self._row = row
        # (N or 2N, vertical offset, horizontal offset, run): views of the same bytes
        self._runs = pixels.as_strided(
            (len(images), 2 * padding + 1, 2 * padding + 1, run),
            (row * (height + 2 * padding), row, channels, 1),
        )
        # (x / 255 - mean) / std as one multiplication and one addition per value; repeated along
        # a row so that the innermost dimension is long enough to be vectorized.
        divisor = np.tile(np.asarray(std, dtype=np.float64), width)
        shift = -np.tile(np.asarray(mean, dtype=np.float64), width) / divisor
        self._scale = torch.tensor(1 / (255 * divisor), dtype=torch.float32, device=self.device)
        self._shift = torch.tensor(shift, dtype=torch.float32, device=self.device)

    def __len__(self) -> int:
        return self._count

    def place(
        self, rows: NDArray[np.intp], parameters: Parameters | None = None
    ) -> tuple[Integers, Parameters | None]:
        """Move rows and parameters to the device; slices of both can then be passed to `batch`.

        For a GPU this is one asynchronous transfer. Done for a whole epoch at once, its batches
        need no further transfers.
        """
        if self.device.type == "cpu":
            return rows, parameters
        stacked = _stacked(rows, parameters)
        if self.device.type == "cuda":
            stacked = stacked.pin_memory()
        return _unstacked(stacked.to(self.device, non_blocking=True))

    def batch(self, rows: Integers, parameters: Parameters | None = None) -> Tensor:
        """Return the images at `rows` as float32 (B, C, H, W) in channels_last memory.

        Args:
            rows: Positions (B,) in the bank.
            parameters: Augmentation parameters of these B images. If None, the images are only
                normalized.
        """
        if self.device.type != "cpu" and not isinstance(rows, Tensor):
            rows, parameters = self.place(rows, parameters)
        pixels = self._gather(rows, parameters)  # uint8 (B, H, W * C)
        values = pixels.to(torch.float32)
        torch.addcmul(self._shift, values, self._scale, out=values)
        images = values.view(len(rows), *self.size, self.channels)
        if parameters is not None and self.augmentation is not None and self.augmentation.cutout:
            self._cut_out(images, parameters)
        return images.permute(0, 3, 1, 2)

    def _gather(self, rows: Any, parameters: Parameters | None) -> Tensor:
        image: Any = rows
        y: Any = self._padding
        x: Any = self._padding
        if parameters is not None:
            flip: Any = parameters.flip
            y, x = parameters.offset_y, parameters.offset_x
            if len(self._runs) > self._count:
                # The mirrored crop is in the mirrored image, at the same distance from its right
                # side as the crop from the left side of the image.
                image = image + flip * self._count
                x = x + flip * (2 * (self._padding - x))
        runs = (
            self._runs[image, y, x]
            if isinstance(rows, Tensor)
            # NumPy copies a whole run at once; indexing in torch copies byte by byte.
            else torch.from_numpy(self._runs.numpy()[image, y, x])
        )  # uint8 (B, run)
        height, width = self.size
        shape = (len(runs), height, width * self.channels)
        return runs.as_strided(shape, (runs.shape[1], self._row, 1))

    def _cut_out(self, images: Tensor, parameters: Parameters) -> None:
        assert self.augmentation is not None
        size = self.augmentation.cutout
        span = torch.arange(size, device=self.device)
        batch = torch.arange(len(images), device=self.device)
        y = self._tensor(parameters.cutout_y)[:, None, None] + span[:, None]  # (B, size, 1)
        x = self._tensor(parameters.cutout_x)[:, None, None] + span  # (B, 1, size)
        height, width = self.size
        squares = (batch[:, None, None] * height + y) * width + x  # (B, size, size)
        # The images are already normalized, so zero is the mean color of the dataset.
        images.view(-1, self.channels).index_fill_(0, squares.flatten(), 0.0)

    def _tensor(self, values: Integers | Booleans) -> Tensor:
        return torch.as_tensor(values, device=self.device)


def _padded(
    images: NDArray[np.uint8], padding: int, mode: str, *, mirrored: bool
) -> NDArray[np.uint8]:
    """Return images (N, H, W, C) with `padding` more pixels on each side.

    If `mirrored` is True, their mirror images follow: (2N, ...).
    """
    if not padding and not mirrored:
        return images
    count, height, width, channels = images.shape
    shape = (height + 2 * padding, width + 2 * padding, channels)
    result = np.zeros((count * (2 if mirrored else 1), *shape), dtype=np.uint8)
    upright = result[:count]
    rows, columns = (slice(padding, padding + side) for side in (height, width))
    upright[:, rows, columns] = images
    if mode == "reflect":
        for row, source in _reflected(padding, height):
            upright[:, row, columns] = upright[:, source, columns]
        for column, source in _reflected(padding, width):
            upright[:, :, column] = upright[:, :, source]
    if mirrored:
        for channel in range(images.shape[3]):  # much faster than copying pixels of three bytes
            result[count:, :, :, channel] = upright[:, :, ::-1, channel]
    return result


def _reflected(padding: int, side: int) -> list[tuple[int, int]]:
    """Return each position in the padding of an axis, and the position that it repeats."""
    sources = np.pad(np.arange(padding, padding + side), padding, "reflect").tolist()
    border = (*range(padding), *range(padding + side, side + 2 * padding))
    return [(position, sources[position]) for position in border]


def _stacked(rows: Integers, parameters: Parameters | None) -> Tensor:
    """Return rows and parameters as one int64 tensor (1 or 6, B)."""
    arrays = [rows] if parameters is None else [rows, *parameters.arrays()]
    return torch.stack([torch.as_tensor(array, device="cpu").long() for array in arrays])


def _unstacked(stacked: Tensor) -> tuple[Tensor, Parameters | None]:
    rows, *drawn = stacked
    if not drawn:
        return rows, None
    offset_y, offset_x, flip, cutout_y, cutout_x = drawn
    return rows, Parameters(offset_y, offset_x, flip.bool(), cutout_y, cutout_x)
