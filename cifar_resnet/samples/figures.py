"""Draw samples of a data set, and the color channels of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_resnet import arguments
from cifar_resnet.data.class_names import as_class_names, check_class, class_index
from cifar_resnet.normalization import as_statistics
from cifar_resnet.plotting.canvas import check_figure, draws, shorten
from cifar_resnet.plotting.grid import LETTER, Panel, draw_grid
from cifar_resnet.plotting.pictures import as_pixels, as_tensor
from cifar_resnet.samples.collection import SPLITS, as_collection

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

__all__ = ["show_class_samples", "show_rgb_channels", "show_samples"]

# Inches: 5, 3 and 6 dots for a pixel of CIFAR-10 at 150 dots per inch.
_SIDE, _SMALL_SIDE, _LARGE_SIDE = (32 * dots / 150 for dots in (5, 3, 6))
_CHANNELS = ("red", "green", "blue")


@draws
def show_samples(
    data: Any = None,
    *,
    n: int = 25,
    split: str = "train",
    seed: int = 0,
    columns: int | None = None,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> Figure:
    """Draw randomly chosen images with their class and index.

    Images are not smoothed and keep their brightness. Pyplot is not used.

    Args:
        data: A `Dataset` of (image, label), also with PIL images; a `DataLoader` or other batches;
            or a `LightningDataModule`. If None, use CIFAR-10. Images of an `ImageDataModule`
            are shown without augmentation and transforms, all others as the data return them.
        n: Maximum number of images to draw.
        split: Images of a data module to choose from: "train", "val" or "test".
        seed: Random seed for the choice.
        columns: Number of columns. If None, about the number of rows.
        fig: Figure or subfigure to draw into. If None, create a figure.
        figsize: Width and height in inches of a new figure. If None, the size that the images need.
        class_names: Names of the classes. If None, use those of the data, or numbers.
        mean: Mean of each channel that was subtracted from the images. If None, use that of the
            data.
        std: Standard deviation of each channel that the images were divided by.

    Returns:
        The figure; save it with `fig.savefig(path)`. If there are fewer than `n` images, it shows
        all of them.

    Raises:
        TypeError: If `data` is none of the above, or another argument has the wrong type.
        ValueError: If an argument is out of its range, there is no image, or the images cannot be
            drawn because their normalization is unknown.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from cifar_resnet import show_samples
        >>> data = TensorDataset(torch.rand(20, 3, 32, 32), torch.arange(20) % 10)
        >>> len(show_samples(data, n=4).axes)
        4
    """
    check_figure(fig, figsize)
    n = arguments.integer("n", n, minimum=1)
    seed = arguments.integer("seed", seed, minimum=0)
    if columns is not None:
        columns = arguments.integer("columns", columns, minimum=1)
    collection = as_collection(data, split, class_names, as_statistics(mean, std))
    selection = collection.at_random(seed, n, None)
    samples = selection.groups.get(0)
    if not samples:
        raise ValueError("The data contain no images.")
    columns = min(columns or math.ceil(math.sqrt(len(samples))), len(samples))
    letters = int(_SIDE / LETTER)
    panels = [
        Panel(sample.pixels, f"{shorten(sample.name, letters)}\n{sample.number}")
        for sample in samples
    ]
    return draw_grid(
        [panels[start : start + columns] for start in range(0, len(panels), columns)],
        side=_SIDE,
        title=f"{len(samples)} of {selection.total:,} {collection.what}, chosen at random",
        fig=fig,
        figsize=figsize,
    )


@draws
def show_class_samples(
    data: Any = None,
    *,
    per_class: int = 10,
    classes: Sequence[int | str] | None = None,
    split: str = "train",
    seed: int = 0,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> Figure:
    """Draw a row of random images for each class.

    Args:
        data: As for `show_samples`.
        per_class: Maximum number of images of each class.
        classes: Classes to draw, by name or number, in this order. If None, draw all.
        split: As for `show_samples`.
        seed: As for `show_samples`.
        fig: As for `show_samples`.
        figsize: As for `show_samples`.
        class_names: As for `show_samples`.
        mean: As for `show_samples`.
        std: As for `show_samples`.

    Returns:
        The figure. A class with fewer than `per_class` images has a shorter row.

    Raises:
        TypeError: If `show_samples` does not accept `data`, or another argument has the wrong type.
        ValueError: If there is no such class, or as for `show_samples`.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from cifar_resnet import show_class_samples
        >>> data = TensorDataset(torch.rand(20, 3, 32, 32), torch.arange(20) % 2)
        >>> fig = show_class_samples(data, per_class=3, class_names=["cat", "dog"])
        >>> len(fig.axes)
        6
    """
    check_figure(fig, figsize)
    per_class = arguments.integer("per_class", per_class, minimum=1)
    seed = arguments.integer("seed", seed, minimum=0)
    requested = None if classes is None else _as_list(classes)
    collection = as_collection(data, split, class_names, as_statistics(mean, std))
    labels = collection.labels()
    names = collection.class_names or tuple(map(str, labels))
    chosen = dict.fromkeys(
        labels if requested is None else [_label(each, labels, names) for each in requested]
    )
    if not chosen:
        raise ValueError("There is no class to draw, because the data or `classes` are empty.")
    selection = collection.at_random(seed, per_class, list(chosen))
    row_names = [names[labels.index(label)] for label in chosen]
    if not any(selection.groups.values()):
        raise ValueError(f"The data contain no images of {', '.join(row_names)}.")
    return draw_grid(
        [[Panel(sample.pixels) for sample in selection.groups[label]] for label in chosen],
        side=_SMALL_SIDE,
        title=f"Images of each class, chosen at random from {selection.total:,} {collection.what}",
        row_names=row_names,
        fig=fig,
        figsize=figsize,
    )


@draws
def show_rgb_channels(
    image: int | Tensor | NDArray[Any] | Image = 0,
    data: Any = None,
    *,
    split: str = "train",
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> Figure:
    """Draw an image next to its red, green and blue channels, the planes of a tensor (3, H, W).

    The upper row shows each channel in its color, the lower row its values in gray. All panels
    range from 0 (black) to 255, whatever the values of the image.

    Args:
        image: Index of an image in `data`, or an image: a tensor (3, H, W), uint8 or floating-point
            in [0, 1], an array of that shape or (H, W, 3), or a PIL image.
        data: As for `show_samples`; used if `image` is an index.
        split: As for `show_samples`.
        fig: As for `show_samples`.
        figsize: As for `show_samples`.
        class_names: As for `show_samples`.
        mean: As for `show_samples`.
        std: As for `show_samples`.

    Returns:
        The figure.

    Raises:
        TypeError: If `image` or `data` is none of the above, or another argument has the wrong
            type.
        IndexError: If the index is out of range.
        ValueError: If the image does not have three channels, or as for `show_samples`.

    Examples:
        >>> import torch
        >>> from cifar_resnet import show_rgb_channels
        >>> fig = show_rgb_channels(torch.rand(3, 32, 32))
        >>> [axes.images[0].get_array().shape for axes in fig.axes][-1]  # the blue values
        (32, 32)
    """
    check_figure(fig, figsize)
    arguments.choice("split", split, (*SPLITS,))
    class_names = as_class_names(class_names)
    statistics = as_statistics(mean, std)
    if arguments.is_integer(image):
        sample = as_collection(data, split, class_names, statistics).at([int(image)])[0]
        pixels, title = sample.pixels, f"{sample.name}, #{sample.index}"
    else:
        pixels, title = as_pixels(as_tensor(image), statistics, name="image"), "image"
    height, width = pixels.shape[:2]
    channels = [pixels[..., channel] for channel in range(3)]
    colored, gray = [], []
    for number, (name, values) in enumerate(zip(_CHANNELS, channels, strict=True)):
        alone = np.zeros_like(pixels)
        alone[..., number] = values
        colored.append(Panel(alone, f"channel {number}: {name}"))
        gray.append(Panel(values, f"{values.min()} to {values.max()}\nmean {values.mean():.0f}"))
    shape = Panel(
        None, f"3 channels of\n{height} x {width} values:\na tensor\n(3, {height}, {width})"
    )
    return draw_grid(
        [[Panel(pixels, "all three"), *colored], [shape, *gray]],
        side=_LARGE_SIDE,
        title=title,
        note="in every panel 0 is black and 255 is full brightness",
        fig=fig,
        figsize=figsize,
    )


def _as_list(classes: Any) -> list[Any]:
    if isinstance(classes, str) or arguments.is_integer(classes):
        return [classes]
    requested = arguments.sequence("classes", classes, "names or numbers of classes")
    for each in requested:
        check_class("classes", each)
    return requested


def _label(requested: int | str, labels: Sequence[int], names: Sequence[str]) -> int:
    """Return the label of a class given by its name or its label."""
    if not isinstance(requested, str) and requested in labels:
        return int(requested)
    if list(labels) == list(range(len(names))) or requested in names:
        index = class_index(requested, names, "classes")
        assert index is not None
        return labels[index]
    raise ValueError(
        f"classes must be among the labels {', '.join(names[:20])}, but got {requested!r}."
    )
