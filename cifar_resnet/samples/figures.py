"""The data set as figures: random samples, the classes, one image's channels. They get what holds
the images; they must not know any network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cifar_resnet import arguments
from cifar_resnet.data.class_names import check_class, class_index
from cifar_resnet.misclassified.figures import check_figure
from cifar_resnet.normalization import as_statistics
from cifar_resnet.plotting.grid import Panel, draw_grid, shortened
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


def show_samples(
    data: Any = None,
    *,
    n: int = 25,
    split: str = "train",
    seed: int = 0,
    columns: int | None = None,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
    save_path: str | Path | None = None,
    dpi: float = 150,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> Figure | SubFigure:
    """Draw images chosen at random, with class and index.

    Images are drawn pixel by pixel, with their own brightness; pyplot is not used.

    Args:
        data: A `Dataset` of (image, label), also with PIL images; a `DataLoader` or other batches;
            a `LightningDataModule`; or None for CIFAR-10. Of a `CIFAR10DataModule` the images are
            shown without augmentation and transforms, else as the data give them.
        n: Most images to draw.
        split: Which images of a data module: "train", "val" or "test".
        seed: Key of the choice.
        columns: Number of columns; None for about as many as rows.
        fig: Figure or subfigure to draw into; None for a new one.
        figsize: Width and height in inches of a new figure; None for what the images need.
        save_path: File to save to, by its ending; whole or not at all.
        dpi: Dots per inch of the file and of a new figure.
        class_names: Names of the classes; None to take them from the data, else numbers.
        mean: Mean of each channel that was subtracted from the images; None to take it from the
            data.
        std: Standard deviation of each channel that they were divided by.

    Returns:
        The figure. With fewer images than `n` it shows those.

    Raises:
        TypeError: If `data` is none of the above, or another argument has the wrong type.
        ValueError: If an argument is out of its range, there is no image, or the images cannot be
            shown because their normalization is unknown.
        OSError: If `save_path` cannot be written; before anything is read.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from cifar_resnet import show_samples
        >>> data = TensorDataset(torch.rand(20, 3, 32, 32), torch.arange(20) % 10)
        >>> len(show_samples(data, n=4).axes)
        4
    """
    check_figure(fig, figsize, save_path, n=n, columns=columns, dpi=dpi, seed=seed)
    collection = as_collection(data, split, class_names, as_statistics(mean, std))
    draw = collection.at_random(seed, n, None)
    samples = draw.groups.get(0)
    if not samples:
        raise ValueError("There is no image in the data.")
    columns = min(columns or math.ceil(math.sqrt(len(samples))), len(samples))
    panels = [
        Panel(sample.pixels, f"{shortened(sample.name, _SIDE)}\n#{sample.index}")
        for sample in samples
    ]
    return draw_grid(
        [panels[start : start + columns] for start in range(0, len(panels), columns)],
        side=_SIDE,
        title=f"{len(samples)} of {draw.total:,} {collection.what}, chosen at random",
        fig=fig,
        figsize=figsize,
        dpi=dpi,
        save_path=save_path,
    )


def show_class_samples(
    data: Any = None,
    *,
    per_class: int = 10,
    classes: Sequence[int | str] | None = None,
    split: str = "train",
    seed: int = 0,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
    save_path: str | Path | None = None,
    dpi: float = 150,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> Figure | SubFigure:
    """Draw a row of random images for each class.

    Args:
        data: As for `show_samples`.
        per_class: Most images of a class.
        classes: The classes to draw, by name or number, in this order; None for all.
        split: As for `show_samples`.
        seed: As for `show_samples`.
        fig: As for `show_samples`.
        figsize: As for `show_samples`.
        save_path: As for `show_samples`.
        dpi: As for `show_samples`.
        class_names: As for `show_samples`.
        mean: As for `show_samples`.
        std: As for `show_samples`.

    Returns:
        The figure. A class with fewer images than `per_class` has a shorter row.

    Raises:
        TypeError: If `data` is nothing that `show_samples` takes, or another argument has the
            wrong type.
        ValueError: If there is no such class, or as `show_samples` raises.
        OSError: If `save_path` cannot be written; before anything is read.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from cifar_resnet import show_class_samples
        >>> data = TensorDataset(torch.rand(20, 3, 32, 32), torch.arange(20) % 2)
        >>> fig = show_class_samples(data, per_class=3, class_names=["cat", "dog"])
        >>> len(fig.axes)
        6
    """
    check_figure(fig, figsize, save_path, dpi=dpi, seed=seed)
    per_class = arguments.integer("per_class", per_class, minimum=1)
    wanted = None if classes is None else _wanted(classes)
    collection = as_collection(data, split, class_names, as_statistics(mean, std))
    numbers = collection.labels()
    names = collection.class_names or tuple(map(str, numbers))
    chosen = dict.fromkeys(
        numbers if wanted is None else [_class(each, numbers, names) for each in wanted]
    )
    if not chosen:
        raise ValueError("There is no class to draw: the data or `classes` are empty.")
    draw = collection.at_random(seed, per_class, list(chosen))
    names_of = {number: names[numbers.index(number)] for number in chosen}
    if not any(draw.groups.values()):
        raise ValueError(f"There is no image of {', '.join(names_of.values())} in the data.")
    return draw_grid(
        [[Panel(sample.pixels) for sample in draw.groups[number]] for number in chosen],
        side=_SMALL_SIDE,
        title=f"Images of each class, chosen at random from {draw.total:,} {collection.what}",
        row_names=list(names_of.values()),
        fig=fig,
        figsize=figsize,
        dpi=dpi,
        save_path=save_path,
    )


def show_rgb_channels(
    image: int | Tensor | NDArray[Any] | Image = 0,
    data: Any = None,
    *,
    split: str = "train",
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
    save_path: str | Path | None = None,
    dpi: float = 150,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
) -> Figure | SubFigure:
    """Draw an image beside its red, green and blue channel: what a tensor (3, H, W) holds.

    The upper row shows each channel in its color, the lower one its values as gray. All run from
    0 (black) to 255, whatever the values of the image.

    Args:
        image: Index of an image in `data`; or an image: a tensor (3, H, W), uint8 or
            floating-point in [0, 1], an array of that shape or (H, W, 3), or a PIL image.
        data: As for `show_samples`; what an index belongs to.
        split: As for `show_samples`.
        fig: As for `show_samples`.
        figsize: As for `show_samples`.
        save_path: As for `show_samples`.
        dpi: As for `show_samples`.
        class_names: As for `show_samples`.
        mean: As for `show_samples`.
        std: As for `show_samples`.

    Returns:
        The figure.

    Raises:
        TypeError: If `image` or `data` is none of the above, or another argument has the wrong
            type.
        IndexError: If there is no image of that index.
        ValueError: If the image has not three channels, or as `show_samples` raises.
        OSError: If `save_path` cannot be written; before anything is read.

    Examples:
        >>> import torch
        >>> from cifar_resnet import show_rgb_channels
        >>> fig = show_rgb_channels(torch.rand(3, 32, 32))
        >>> [axes.images[0].get_array().shape for axes in fig.axes][-1]  # the blue values
        (32, 32)
    """
    check_figure(fig, figsize, save_path, dpi=dpi, class_names=class_names)
    arguments.choice("split", split, (*SPLITS,))
    given = as_statistics(mean, std)
    if arguments.is_integer(image):
        sample = as_collection(data, split, class_names, given).at([int(image)])[0]
        pixels, title = sample.pixels, f"{sample.name}, #{sample.index}"
    else:
        pixels, title = as_pixels(as_tensor(image), given, name="image"), "image"
    height, width = pixels.shape[:2]
    channels = [pixels[..., channel] for channel in range(3)]
    colored, gray = [], []
    for number, (name, values) in enumerate(zip(_CHANNELS, channels, strict=True)):
        alone = np.zeros_like(pixels)
        alone[..., number] = values
        colored.append(Panel(alone, f"channel {number}: {name}"))
        gray.append(Panel(values, f"{values.min()} to {values.max()}\nmean {values.mean():.0f}"))
    message = Panel(
        None, f"3 channels of\n{height} x {width} values:\na tensor\n(3, {height}, {width})"
    )
    return draw_grid(
        [[Panel(pixels, "all three"), *colored], [message, *gray]],
        side=_LARGE_SIDE,
        title=title,
        note="in every panel 0 is black and 255 is full brightness",
        fig=fig,
        figsize=figsize,
        dpi=dpi,
        save_path=save_path,
    )


def _wanted(classes: Any) -> list[Any]:
    if isinstance(classes, str) or arguments.is_integer(classes):
        return [classes]
    wanted = arguments.sequence("classes", classes, "names or numbers of classes")
    for each in wanted:
        check_class("classes", each)
    return wanted


def _class(wanted: int | str, numbers: Sequence[int], names: Sequence[str]) -> int:
    """A class by name, or by the number that its labels have."""
    if not isinstance(wanted, str) and wanted in numbers:
        return int(wanted)
    if list(numbers) == list(range(len(names))) or wanted in names:
        place = class_index(wanted, names, "classes")
        assert place is not None
        return numbers[place]
    raise ValueError(
        f"classes must be among the labels {', '.join(names[:20])}, but got {wanted!r}."
    )
