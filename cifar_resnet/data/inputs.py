"""Convert images and labels of any kind to arrays, or refuse what is not clear."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cifar_resnet import arguments
from cifar_resnet.data.batches import image_and_label, is_picture
from cifar_resnet.data.memory import check_memory

__all__ = ["Labeled", "as_labeled"]

_log = logging.getLogger(__name__)

_MOST_CHANNELS = 4
_MODES = ("L", "LA", "RGB", "RGBA")
_CHECKED = 8  # images of a dataset that are read twice
_EXPECTED = (
    "(images, labels), a pair of arrays or tensors, or a dataset whose items are (image, label)"
)


class Labeled(NamedTuple):
    """Images of one size with their labels."""

    images: NDArray[np.uint8]  # (N, H, W, C)
    labels: NDArray[np.int64]  # (N,)


def as_labeled(name: str, data: Any) -> Labeled:
    """Convert images and labels to arrays.

    Args:
        name: What error messages call the data, `"train"` or `"test"`.
        data: Images and labels in two arrays or tensors; or a map-style dataset of (image, label).
            The images are uint8, or floating-point in [0, 1]: arrays (N, H, W, C) or (N, H, W),
            tensors (N, C, H, W) or (N, H, W), with 1 to 4 channels, or PIL images.

    Raises:
        TypeError: If the data are none of these, or have another dtype.
        ValueError: If shapes, lengths or values do not fit, or the layout is not clear.
        MemoryError: If the images of a dataset need more memory than there is.
    """
    if isinstance(data, Labeled):
        return data
    if isinstance(data, str | bytes) or data is None:
        raise TypeError(f"{name} must be {_EXPECTED}, but got {data!r}.")
    if isinstance(data, list | tuple) and len(data) == 2 and _is_array(data[0]):
        images = _as_images(name, data[0])
        return Labeled(images, _as_labels(name, data[1], len(images)))
    is_dataset = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if not is_dataset or isinstance(data, Mapping) or _is_array(data):
        raise TypeError(f"{name} must be {_EXPECTED}, but got {type(data).__name__}.")
    if not len(data):
        raise ValueError(f"{name} is empty: it has no images.")
    return _vectorized(name, data) or _read(name, data)


# --- arrays ---------------------------------------------------------------------------------------


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | Tensor)


def _as_images(name: str, images: NDArray[Any] | Tensor) -> NDArray[np.uint8]:
    """Return a batch of images as uint8 (N, H, W, C)."""
    shape = tuple(images.shape)
    if len(shape) not in (3, 4) or 0 in shape:
        raise ValueError(
            f"The images of {name} must be an array (N, H, W, C) or (N, H, W), or a tensor "
            f"(N, C, H, W), and not be empty, but have the shape {shape}."
        )
    if len(shape) == 4:
        _check_layout(name, shape, is_tensor=isinstance(images, Tensor))
    if isinstance(images, Tensor):
        images = images.detach().cpu()
        if images.dtype == torch.bfloat16:  # which NumPy does not have
            images = images.float()
        images = (images.permute(0, 2, 3, 1) if len(shape) == 4 else images).numpy()
    images = _as_bytes(f"The images of {name}", images)
    return np.ascontiguousarray(images if len(shape) == 4 else images[..., None])


def _check_layout(name: str, shape: tuple[int, ...], *, is_tensor: bool) -> None:
    """Refuse four dimensions that may be in another order than that of their type."""
    first, last = (0 < size <= _MOST_CHANNELS for size in (shape[1], shape[3]))
    kind, layout = ("a tensor", "(N, C, H, W)") if is_tensor else ("an array", "(N, H, W, C)")
    if first and last:
        raise ValueError(
            f"It is not clear whether the channels of {name} come first or last in the shape "
            f"{shape}. Images must be larger than {_MOST_CHANNELS} pixels: resize them."
        )
    if first if is_tensor else last:
        return
    remedy = ""
    if first or last:
        order = (
            "last: use images.permute(0, 3, 1, 2)"
            if is_tensor
            else ("first: use images.transpose(0, 2, 3, 1)")
        )
        remedy = f" The channels seem to come {order}."
    raise ValueError(
        f"The images of {name} are {kind} of shape {shape}; expected {layout} with 1 to "
        f"{_MOST_CHANNELS} channels.{remedy}"
    )


def _as_bytes(what: str, images: NDArray[Any], *, log: bool = True) -> NDArray[np.uint8]:
    """Return pixels as uint8; floating-point numbers in [0, 1] are scaled and rounded."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind != "f":
        raise TypeError(
            f"{what} must be uint8, or floating-point numbers in [0, 1], but are {images.dtype}. "
            "Convert values from 0 to 255 with images.astype(numpy.uint8)."
        )
    low, high = float(images.min()), float(images.max())
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"{what} are {images.dtype} with values from {low:.4g} to {high:.4g}, but "
            "floating-point numbers must be in [0, 1]. Divide them by the value of white, and "
            "leave out any normalization: mean and std are arguments."
        )
    if log:
        _log.warning("%s were converted from %s in [0, 1] to uint8.", what, images.dtype)
    scaled: NDArray[np.uint8] = np.rint(images * 255).astype(np.uint8)
    return scaled


def _as_labels(name: str, labels: Any, count: int) -> NDArray[np.int64]:
    """Return labels as int64 (N,)."""
    if isinstance(labels, Tensor):
        labels = labels.detach().cpu()
    values = np.asarray(labels)
    if values.ndim == 2 and values.shape[1] == 1:  # as in Keras and MedMNIST
        values = values[:, 0]
    if values.ndim != 1:
        raise ValueError(
            f"The labels of {name} must be class numbers (N,), but have the shape {values.shape}. "
            "Convert one-hot labels with labels.argmax(1)."
        )
    if len(values) != count:
        raise ValueError(
            f"{name} has {count} images, but {len(values)} labels. Expected one label for each "
            "image."
        )
    if values.dtype.kind not in "iu":
        raise TypeError(
            f"The labels of {name} must be integers, but are {values.dtype}. Number the classes "
            "from 0, and pass their names as classes."
        )
    return values.astype(np.int64)


# --- datasets -------------------------------------------------------------------------------------


def _vectorized(name: str, dataset: Any) -> Labeled | None:
    """Return the arrays that torchvision's datasets hold, None if others are in the way.

    They are used only if images of the dataset, which a transform or a derived class may change,
    are the same.
    """
    images: Any = getattr(dataset, "data", None)
    labels = getattr(dataset, "targets", None)
    labels = getattr(dataset, "labels", None) if labels is None else labels
    if not _is_array(images) or labels is None or len(images) != len(dataset):
        return None
    if images.ndim not in (3, 4) or images.dtype not in (np.dtype(np.uint8), torch.uint8):
        return None
    numbers = np.asarray(labels)
    if numbers.shape != (len(images),) or numbers.dtype.kind not in "iu":
        return None
    rows = sorted({*np.linspace(0, len(images) - 1, _CHECKED).astype(int).tolist()})
    read = [_item(name, dataset, row) for row in rows]
    pixels: NDArray[np.uint8] = images.numpy() if isinstance(images, Tensor) else images
    pixels = pixels[..., None] if pixels.ndim == 3 else pixels
    for ordered in (pixels, pixels.transpose(0, 2, 3, 1)):
        if all(
            np.array_equal(image, ordered[row]) and label == numbers[row]
            for row, (image, label) in zip(rows, read, strict=True)
        ):
            return Labeled(np.ascontiguousarray(ordered), numbers.astype(np.int64))
    return None


def _read(name: str, dataset: Any) -> Labeled:
    """Read the images of a dataset one by one."""
    count = len(dataset)
    first, _ = _item(name, dataset, 0)
    check_memory(count * first.size, f"The {count:,} images of {name}")
    images = np.empty((count, *first.shape), dtype=np.uint8)
    labels = np.empty(count, dtype=np.int64)
    for row in range(count):
        image, labels[row] = _item(name, dataset, row)
        if image.shape != first.shape:
            raise ValueError(
                f"All images must have one size, but image {row} of {name} has the shape "
                f"{image.shape} and image 0 {first.shape} (height, width, channels). Resize them, "
                "for example with ImageDataModule.from_folder(directory, size=32)."
            )
        images[row] = image
    for row in range(min(_CHECKED, count)):
        if not np.array_equal(_item(name, dataset, row)[0], images[row]):
            raise ValueError(
                f"{name} returns another image {row} when it is read again, so its transform is "
                "random, but the images are read only once. Leave the transform out, and pass it "
                "as train_transforms, or use the options of the data module."
            )
    item = image_and_label(dataset[0])[0]
    if isinstance(item, Tensor | np.ndarray) and item.dtype not in (np.uint8, torch.uint8):
        _log.warning("The images of %s were converted from [0, 1] to uint8.", name)
    return Labeled(images, labels)


def _item(name: str, dataset: Any, row: int) -> tuple[NDArray[np.uint8], int]:
    """Return an image of a dataset as uint8 (H, W, C), and its label."""
    image, label = image_and_label(dataset[row])
    what = f"Image {row} of {name}"
    if is_picture(image):
        if image.mode not in _MODES:
            raise ValueError(
                f"{what} is a PIL image of mode {image.mode!r}; expected one of "
                f"{', '.join(_MODES)}. Convert it with image.convert('RGB')."
            )
        pixels = np.asarray(image)
    elif isinstance(image, Tensor):
        values = image.detach().cpu()
        is_color = values.dim() == 3
        if values.dim() not in (2, 3) or (is_color and not 0 < values.shape[0] <= _MOST_CHANNELS):
            raise ValueError(
                f"{what} must be a tensor (C, H, W) with 1 to {_MOST_CHANNELS} channels, but has "
                f"the shape {tuple(values.shape)}."
            )
        pixels = _as_bytes(
            what, (values.permute(1, 2, 0) if is_color else values).numpy(), log=False
        )
    elif isinstance(image, np.ndarray):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] > _MOST_CHANNELS):
            raise ValueError(
                f"{what} must be an array (H, W) or (H, W, C) with 1 to {_MOST_CHANNELS} channels, "
                f"but has the shape {image.shape}."
            )
        pixels = _as_bytes(what, image, log=False)
    else:
        raise TypeError(
            f"{what} must be a PIL image, an array or a tensor, but is {type(image).__name__}."
        )
    number = label.reshape(-1).tolist() if _is_array(label) else [label]
    number = number[0] if len(number) == 1 else label
    if not arguments.is_integer(number):
        raise TypeError(
            f"The label of image {row} of {name} must be an integer, but is {label!r}. Number the "
            "classes from 0, and pass their names as classes."
        )
    return pixels[..., None] if pixels.ndim == 2 else pixels, int(number)
