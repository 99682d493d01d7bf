"""Classify image files, PIL images, arrays and tensors with any classifier."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.data import cifar10
from cifar_resnet.data.class_names import as_class_names, distinct_names
from cifar_resnet.data.image_files import as_color, central_box, central_part, read_color
from cifar_resnet.misclassified.execution import run_on_device
from cifar_resnet.misclassified.scores import check_finite, class_scores
from cifar_resnet.model_state import preserve_state, unwrap_compiled
from cifar_resnet.network import CustomResNet
from cifar_resnet.normalization import Statistics, as_statistics

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Predictions", "predict"]

_CHANNELS = (1, 3, 4)  # gray, RGB, RGB and alpha


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predicted classes of images, in the order of the images.

    Attributes:
        probabilities: Probability of each class, float32 (N, classes) on the CPU.
        class_names: Name of each class.
    """

    probabilities: Tensor = field(repr=False)
    class_names: tuple[str, ...]

    @property
    def classes(self) -> Tensor:
        """Number of the most probable class of each image, int64 (N,)."""
        return self.probabilities.argmax(1)

    @property
    def names(self) -> list[str]:
        """Name of the most probable class of each image."""
        return [self.class_names[number] for number in self.classes.tolist()]

    def top(self, k: int = 3) -> list[list[tuple[str, float]]]:
        """Return the `k` most probable classes of each image with their probabilities.

        Raises:
            TypeError: If `k` is not an integer.
            ValueError: If `k` is smaller than 1.
        """
        k = arguments.integer("k", k, minimum=1)
        order = self.probabilities.argsort(dim=1, descending=True, stable=True)[:, :k]
        return [
            [(self.class_names[number], float(row[number])) for number in numbers]
            for row, numbers in zip(self.probabilities, order.tolist(), strict=True)
        ]

    def __len__(self) -> int:
        return len(self.probabilities)

    def __repr__(self) -> str:
        highest = self.probabilities[:5].amax(1).tolist()
        parts = [f"{name} ({p:.0%})" for name, p in zip(self.names, highest, strict=False)]
        parts += ["..."] if len(self) > 5 else []
        return f"<Predictions of {len(self)} images: {', '.join(parts)}>"


def predict(
    model: nn.Module,
    images: Any,
    *,
    size: int | tuple[int, int] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    class_names: Any = None,
    batch_size: int = 64,
    device: torch.device | str | None = None,
) -> Predictions:
    """Classify images of any size, which are not normalized yet.

    The largest central part with the shape of `size` is scaled to that size, with antialiasing,
    and normalized. Files are rotated upright, and transparent areas become white. The model runs in
    evaluation mode and is left unchanged.

    Args:
        model: Any module from images to class scores (N, classes), as for `find_misclassified`.
        images: An image or several: the path of a file, a PIL image, an array (H, W), (H, W, C) or
            (C, H, W), or a tensor (C, H, W), with 1 (gray), 3 or 4 (with transparency) channels.
            Arrays and tensors are integers from 0 to 255, or floating-point numbers in [0, 1].
            Several images are a sequence of these, which may differ in kind and size, or an array
            or tensor with one more dimension.
        size: Height and width of the model's input, or one number for both. If None, that of a
            `CustomResNet` or an `ImageClassifier` of one.
        mean: Mean of each channel to subtract from images in [0, 1]. If None, that of CIFAR-10,
            which requires such a network for images of 32 x 32 pixels.
        std: Standard deviation of each channel to divide by. If None, that of CIFAR-10.
        class_names: As for `find_misclassified`. If None, the classes of CIFAR-10 for a
            `CustomResNet` with ten classes, images of 32x32 pixels and the mean and standard
            deviation of CIFAR-10, and numbers for any other model.
        batch_size: Number of images processed at once.
        device: Device to compute on. If None, the model's device. The model is not moved.

    Returns:
        The probabilities of all classes, with the most probable class of each image.

    Raises:
        TypeError: If `model` is not a module, an image is none of the above, or another argument
            has the wrong type.
        ValueError: If a file cannot be read, an image has another shape or range, an argument is
            out of its range, or `size`, `mean` and `std` are needed; or as for
            `find_misclassified`.

    Examples:
        >>> import torch
        >>> from cifar_resnet import CustomResNet, predict
        >>> result = predict(CustomResNet(width=4), torch.rand(2, 3, 48, 64))
        >>> result.probabilities.shape, len(result.names)
        (torch.Size([2, 10]), 2)
    """
    model = unwrap_compiled(model)
    batch_size = arguments.integer("batch_size", batch_size, minimum=1)
    place = None if device is None else arguments.device("device", device)
    names = as_class_names(class_names)
    expected_size = "a height and a width, or one number for both"
    given_size = None if size is None else arguments.height_and_width("size", size, expected_size)
    prepare = _preparation(model, given_size, as_statistics(mean, std))
    items = _as_items(images)
    rows = []
    with (
        preserve_state(model),
        torch.inference_mode(False),
        torch.no_grad(),
        run_on_device(model, place) as move_inputs,
    ):
        for start in range(0, len(items), batch_size):
            numbers = range(start, min(start + batch_size, len(items)))
            batch = torch.stack([prepare(items[number], number) for number in numbers])
            scores = class_scores(model, move_inputs(batch)).float()
            check_finite(scores, numbers, "image")
            rows.append(scores.softmax(1).cpu())
    probabilities = torch.cat(rows)
    return Predictions(probabilities, _checked_names(model, names, probabilities.shape[1], prepare))


@dataclass(frozen=True)
class _Preparation:
    """Convert an image of any kind to the input of a model, float32 (3, height, width)."""

    size: tuple[int, int]
    statistics: Statistics

    def __call__(self, item: Any, number: int) -> Tensor:
        name = repr(os.fspath(item)) if isinstance(item, str | os.PathLike) else f"Image {number}"
        try:
            image = _as_image(item)
        except (ValueError, TypeError, OSError) as error:  # also of a PIL image, when it is read
            raise ValueError(f"{name} cannot be classified: {error}") from error
        if isinstance(image, Tensor):
            values = _scaled(image, self.size)
        else:
            pixels = np.array(central_part(image, self.size))
            values = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        mean, std = (values.new_tensor(numbers).view(-1, 1, 1) for numbers in self.statistics)
        return (values - mean) / std


def _preparation(
    model: nn.Module, size: tuple[int, int] | None, statistics: Statistics | None
) -> _Preparation:
    if statistics is not None and any(len(numbers) not in (1, 3) for numbers in statistics):
        raise ValueError(
            f"mean and std must have one value, or three for RGB, but got {statistics[0]} and "
            f"{statistics[1]}."
        )
    network = _network(model)
    if network is not None and network.in_channels != 3:
        raise ValueError(
            f"predict converts images to RGB, but the network has {network.in_channels} input "
            "channels. Call it with a tensor of normalized images instead."
        )
    missing = [] if size or network else ["size"]
    like_cifar10 = network is not None and network.image_size == (32, 32)
    missing += [] if statistics or like_cifar10 else ["mean", "std"]
    if missing:
        raise ValueError(
            f"The input of a {type(model).__name__} is not known. Pass {' and '.join(missing)}, "
            "such as size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225) for most "
            "networks trained on ImageNet, or mean=0, std=1 for images in [0, 1]."
        )
    input_size = size or (network.image_size if network is not None else (32, 32))
    return _Preparation(input_size, statistics or (cifar10.MEAN, cifar10.STD))


def _network(model: nn.Module) -> CustomResNet | None:
    """Return a `CustomResNet` that receives the input of the model unchanged, if there is one."""
    if hasattr(model, "network"):
        from cifar_resnet.training.classifier import ImageClassifier  # takes a second to import

        if isinstance(model, ImageClassifier):
            model = unwrap_compiled(model.network)
    return model if isinstance(model, CustomResNet) else None


def _checked_names(
    model: nn.Module, names: tuple[str, ...] | None, classes: int, prepare: _Preparation
) -> tuple[str, ...]:
    if names is None:
        network = _network(model)
        is_cifar10 = (
            network is not None
            and network.image_size == (32, 32)
            and prepare.statistics == (cifar10.MEAN, cifar10.STD)
            and classes == len(cifar10.CLASSES)
        )
        return cifar10.CLASSES if is_cifar10 else tuple(map(str, range(classes)))
    if len(names) != classes:
        raise ValueError(
            f"The model has {classes} classes, but there are {len(names)} class names: "
            f"{', '.join(names[:12])}. Pass class_names with one name for each class."
        )
    return distinct_names(names)


# --- images of any kind --------------------------------------------------------------------------


def _as_items(images: Any) -> list[Any]:
    """Return one or several images as a list, after checking their types and that files exist."""
    is_several = isinstance(images, Tensor | np.ndarray) and images.ndim in (1, 4)
    items = [images] if _is_image(images) and not is_several else images
    expected = (
        "an image or a sequence of them: paths, PIL images, arrays (H, W, C) or tensors (C, H, W)"
    )
    items = arguments.sequence("images", items, expected)
    if not items:
        raise ValueError(f"images is empty; expected {expected}.")
    for number, item in enumerate(items):
        if not _is_image(item):
            raise TypeError(
                f"images must be {expected}, but image {number} is of the type "
                f"{type(item).__name__}."
            )
        if isinstance(item, str | os.PathLike):
            path = arguments.path("images", item)
            if not path.is_file():
                kind = "a folder, not a file" if path.is_dir() else "not a file that exists"
                raise ValueError(f"{str(path)!r} cannot be classified: it is {kind}.")
    return items


def _is_image(item: Any) -> bool:
    from PIL import Image

    return isinstance(item, str | os.PathLike | Image.Image | Tensor | np.ndarray)


def _as_image(item: Any) -> Image | Tensor:
    """Return an image with 8 bits as a PIL image, and any other as a tensor (3, H, W) in [0, 1]."""
    from PIL import Image

    if isinstance(item, str | os.PathLike):
        return read_color(Path(item).expanduser())
    if isinstance(item, Image.Image):
        return as_color(item)
    values = _channels_first(item)
    numbers = values.double()  # there is no minimum of uint16
    low, high = float(numbers.min()), float(numbers.max())
    limit = 1 if values.is_floating_point() or values.dtype == torch.bool else 255
    if not 0 <= low <= high <= limit:
        raise ValueError(
            f"its values ({values.dtype}) must be from 0 to {limit}, but are from {low:.4g} to "
            f"{high:.4g}. predict normalizes the images itself; call the model for images that are "
            "normalized."
        )
    if limit == 255:
        pixels = values.to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        return as_color(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    values = values.detach().cpu().float()
    if len(values) == 4:
        alpha = values[3]
        return values[:3] * alpha + 1 - alpha  # on white
    return values.expand(3, -1, -1)


def _channels_first(item: Any) -> Tensor:
    """Return an array or a tensor as a tensor (C, H, W)."""
    shape = tuple(item.shape)
    is_array = isinstance(item, np.ndarray)
    values = torch.from_numpy(np.ascontiguousarray(item)) if is_array else item
    if values.dim() == 2:
        values = values[None]
    elif is_array and values.dim() == 3 and shape[2] in _CHANNELS:
        values = values.permute(2, 0, 1)
    if values.dim() != 3 or values.shape[0] not in _CHANNELS or values.numel() == 0:
        layout = "(H, W), (H, W, C) or (C, H, W)" if is_array else "(C, H, W)"
        raise ValueError(
            f"{'an array' if is_array else 'a tensor'} must have the shape {layout} with 1, 3 or 4 "
            f"channels, but has {shape}."
        )
    return values


def _scaled(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop and scale a floating-point image (3, H, W); as `central_part` for PIL images."""
    left, top, width, height = central_box(image.shape[2], image.shape[1], size)
    part = image[:, top : top + height, left : left + width]
    if (height, width) == size:
        return part
    return F.interpolate(part[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)
