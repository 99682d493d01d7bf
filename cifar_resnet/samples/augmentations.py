"""What training really gets of an image, epoch after epoch, as a figure. It asks the loaders that
data modules train with; it must not know how they augment.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from cifar_resnet import arguments
from cifar_resnet.data import cifar10
from cifar_resnet.data.augment import ImageBank
from cifar_resnet.data.loaders import PerSampleImages, ResidentLoader
from cifar_resnet.data.order import BatchOrder
from cifar_resnet.data.reading import as_source
from cifar_resnet.misclassified.figures import check_figure
from cifar_resnet.normalization import Statistics
from cifar_resnet.plotting.grid import Panel, draw_grid
from cifar_resnet.plotting.pictures import Pixels, as_pixels
from cifar_resnet.samples.collection import Sample, as_collection

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

    from cifar_resnet.data.module import CIFAR10DataModule

__all__ = ["show_augmentations"]

_BORDERS = {"reflect": "reflected", "constant": "black"}
_SIDE = 32 * 4 / 150  # inches: 4 dots for a pixel of CIFAR-10 at 150 dots per inch


def show_augmentations(
    data: CIFAR10DataModule | None = None,
    *,
    n: int = 4,
    indices: Sequence[int] | None = None,
    epochs: int = 8,
    seed: int = 0,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
    save_path: str | Path | None = None,
    dpi: float = 150,
) -> Figure | SubFigure:
    """Draw training images and what training gets of them in successive epochs.

    The images come out of the loader that the module trains with, normalization undone: they are
    those that a training with this module sees, pixel by pixel. The module stays as it is.

    Args:
        data: The data module; None for `CIFAR10DataModule()`.
        n: Number of images, chosen at random.
        indices: The training images to draw instead, by their indices in the data set.
        epochs: Number of epochs, from the first one.
        seed: Key of the choice of images; the augmentation follows the module's own seed.
        fig: Figure or subfigure to draw into; None for a new one.
        figsize: Width and height in inches of a new figure; None for what the images need.
        save_path: File to save to, by its ending; whole or not at all.
        dpi: Dots per inch of the file and of a new figure.

    Returns:
        The figure: a row for each image, the original first.

    Raises:
        TypeError: If `data` is no `CIFAR10DataModule`, or another argument has the wrong type.
        IndexError: If an index is that of no training image.
        ValueError: If an argument is out of its range.
        OSError: If `save_path` cannot be written; before anything is read.

    Examples:
        >>> from cifar_resnet import CIFAR10DataModule, show_augmentations
        >>> data = CIFAR10DataModule(flip="alternating", cutout=8)
        >>> fig = show_augmentations(data, indices=[0, 1], epochs=2)
        >>> len(fig.axes)  # two originals, each with two epochs
        6
    """
    from cifar_resnet.data.module import CIFAR10DataModule

    check_figure(fig, figsize, save_path, n=n, dpi=dpi, seed=seed)
    epochs = arguments.integer("epochs", epochs, minimum=1)
    wanted = None if indices is None else _indices(indices)
    data = CIFAR10DataModule() if data is None else data
    if not isinstance(data, CIFAR10DataModule):
        raise TypeError(
            f"data must be a CIFAR10DataModule, whose loader is asked, but got "
            f"{type(data).__name__}. show_samples draws what other data give."
        )
    collection = as_collection(data, "train")
    if wanted is None:
        originals = collection.at_random(seed, n, None).groups[0]
    else:
        originals = collection.at(wanted)
    rows = [[Panel(sample.pixels)] for sample in originals]
    for images in _epochs(data, originals, epochs):
        for row, pixels in zip(rows, images, strict=True):
            row.append(Panel(pixels))
    return draw_grid(
        rows,
        side=_SIDE,
        title="Training images, and what training gets of them",
        note=_pipeline(data),
        row_names=[f"{sample.name}\n#{sample.index}" for sample in originals],
        column_names=["original", *(f"epoch {epoch}" for epoch in range(1, epochs + 1))],
        fig=fig,
        figsize=figsize,
        dpi=dpi,
        save_path=save_path,
    )


def _indices(indices: Any) -> list[int]:
    values = indices.tolist() if isinstance(indices, Tensor) else indices
    wanted = arguments.sequence("indices", values, "a sequence of integers")
    if not all(map(arguments.is_integer, wanted)):
        raise TypeError(f"indices must be a sequence of integers, but got {indices!r}.")
    if not wanted:
        raise ValueError("indices are empty: give at least one, or None for n random images.")
    return [int(index) for index in wanted]


def _epochs(
    module: CIFAR10DataModule, originals: Sequence[Sample], epochs: int
) -> Iterator[list[Pixels]]:
    """What the module's training loader gives of these images in each epoch.

    It depends on (seed, epoch, image) alone, so a loader of these images gives the same.
    """
    images = np.stack([sample.pixels for sample in originals])
    labels = np.array([sample.label for sample in originals])
    indices = np.array([sample.index for sample in originals])
    statistics: Statistics | None = module.mean, module.std
    if module.train_transforms is None:
        bank = ImageBank(images, module.mean, module.std, augmentation=module.augmentation)
        order = BatchOrder(len(images), len(images), shuffle=False, drop_last=False, seed=0)
        loader = ResidentLoader(bank, labels, indices, cifar10.TRAIN_SIZE, order, seed=module.seed)
    else:
        dataset = PerSampleImages(
            images, labels, indices, module.train_transforms, seed=module.seed
        )
        statistics = as_source(dataset, 1).statistics
    for epoch in range(epochs):
        batch: Iterable[Tensor]
        if module.train_transforms is None:
            loader.set_epoch(epoch)
            batch, _ = next(iter(loader))
        else:  # one by one, since a transform may give any size
            batch = [dataset[[(epoch, place)]][0][0] for place in range(len(images))]
        # Some transforms, such as erasing with noise, leave the range on purpose.
        yield [
            as_pixels(image, statistics, name=f"Image {index}", clip=True)
            for index, image in zip(indices, batch, strict=True)
        ]


def _pipeline(module: CIFAR10DataModule) -> str:
    if module.train_transforms is not None:
        return ", ".join(_names(module.train_transforms))
    how = module.augmentation
    border = f"{how.crop_padding} pixels of {_BORDERS[how.padding_mode]} border"
    parts = [
        f"random crop from {border}" if how.crop_padding else "no crop",
        f"{how.flip} flip" if how.flip != "none" else "no flip",
        f"cutout {how.cutout} x {how.cutout}" if how.cutout else "no cutout",
    ]
    return ", ".join(parts)


def _names(transform: Any) -> list[str]:
    parts = getattr(transform, "transforms", None)
    if isinstance(parts, list | tuple):
        return [name for part in parts for name in _names(part)]
    return [getattr(transform, "__name__", type(transform).__name__)]
