"""Draw the augmented images that training sees in each epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from cifar_resnet import arguments
from cifar_resnet.data.datasets import PerSampleImages, ResidentImages
from cifar_resnet.data.loaders import ResidentLoader
from cifar_resnet.data.order import BatchOrder
from cifar_resnet.data.reading import as_source
from cifar_resnet.normalization import Statistics
from cifar_resnet.plotting.canvas import check_figure, draws
from cifar_resnet.plotting.grid import Panel, draw_grid
from cifar_resnet.plotting.pictures import Pixels, as_pixels
from cifar_resnet.samples.collection import Sample, as_collection

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

    from cifar_resnet.data.module import ImageDataModule

__all__ = ["show_augmentations"]

_PADDING = {"reflect": "reflected", "constant": "black"}
_SIDE = 32 * 4 / 150  # inches: 4 dots for a pixel of CIFAR-10 at 150 dots per inch


@draws
def show_augmentations(
    data: ImageDataModule | None = None,
    *,
    n: int = 4,
    indices: Sequence[int] | None = None,
    epochs: int = 8,
    seed: int = 0,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw training images and their augmented versions in successive epochs.

    The images come from the loader that the module trains with, with the normalization undone. They
    are pixel by pixel the images that training with this module sees. The module is left unchanged.

    Args:
        data: The `ImageDataModule`, such as a `CIFAR10DataModule`. If None, use CIFAR-10.
        n: Number of randomly chosen images.
        indices: Training images to draw instead, by their indices in the data set.
        epochs: Number of epochs, counted from the first one.
        seed: Random seed for choosing the images. Augmentation uses the seed of the module.
        fig: Figure or subfigure to draw into. If None, create a figure.
        figsize: Width and height in inches of a new figure. If None, the size that the images need.

    Returns:
        The figure: a row for each image, with the original first.

    Raises:
        TypeError: If `data` is not an `ImageDataModule`, or another argument has the wrong type.
        IndexError: If there is no training image with one of the indices.
        ValueError: If an argument is out of its range.

    Examples:
        >>> from cifar_resnet import CIFAR10DataModule, show_augmentations
        >>> data = CIFAR10DataModule(flip="alternating", cutout=8)
        >>> fig = show_augmentations(data, indices=[0, 1], epochs=2)
        >>> len(fig.axes)  # two originals, each with two epochs
        6
    """
    from cifar_resnet.data.cifar_modules import CIFAR10DataModule
    from cifar_resnet.data.module import ImageDataModule

    check_figure(fig, figsize)
    n = arguments.integer("n", n, minimum=1)
    epochs = arguments.integer("epochs", epochs, minimum=1)
    seed = arguments.integer("seed", seed, minimum=0)
    requested = None if indices is None else _as_indices(indices)
    data = CIFAR10DataModule() if data is None else data
    if not isinstance(data, ImageDataModule):
        raise TypeError(
            f"data must be an ImageDataModule, but got {type(data).__name__}. Use show_samples to "
            "draw images of other data."
        )
    collection = as_collection(data, "train")
    if requested is None:
        originals = collection.at_random(seed, n, None).groups[0]
    else:
        originals = collection.at(requested)
    rows = [[Panel(sample.pixels)] for sample in originals]
    for images in _augmented(data, originals, epochs):
        for row, pixels in zip(rows, images, strict=True):
            row.append(Panel(pixels))
    return draw_grid(
        rows,
        side=_SIDE,
        title="Training images and their augmented versions",
        note=_description(data),
        row_names=[f"{sample.name}\n#{sample.index}" for sample in originals],
        column_names=["original", *(f"epoch {epoch}" for epoch in range(1, epochs + 1))],
        fig=fig,
        figsize=figsize,
    )


def _as_indices(indices: Any) -> list[int]:
    values = indices.tolist() if isinstance(indices, Tensor) else indices
    requested = arguments.sequence("indices", values, "a sequence of integers")
    if not all(map(arguments.is_integer, requested)):
        raise TypeError(f"indices must be a sequence of integers, but got {indices!r}.")
    if not requested:
        raise ValueError("indices is empty: give at least one, or None to choose n at random.")
    return [int(index) for index in requested]


def _augmented(
    module: ImageDataModule, originals: Sequence[Sample], epochs: int
) -> Iterator[list[Pixels]]:
    """Yield the augmented images of each epoch.

    Augmentation depends on (seed, epoch, index) alone, so a loader that holds only these images
    returns the same pixels as the loader of all images.
    """
    labels = np.array([sample.label for sample in originals])
    indices = np.array([sample.index for sample in originals])
    arrays = module._loaded()  # the drawn pixels have three channels, the images 1 to 4
    images = arrays.train_images[indices]
    statistics: Statistics | None = module.mean, module.std
    if module.train_transforms is None:
        resident = ResidentImages(
            images, labels, indices, (module.mean, module.std), augmentation=module.augmentation
        )
        count = len(images)
        order = BatchOrder(
            count, count, shuffle=False, drop_last=False, seed=0, rank=0, world_size=1
        )
        loader = ResidentLoader(resident, len(arrays.train_images), order, seed=module.seed)
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
        else:  # one by one, since a transform may return images of any size
            batch = [dataset[[(epoch, row)]][0][0] for row in range(len(images))]
        # Some transforms, such as erasing with noise, exceed the range on purpose.
        yield [
            as_pixels(image, statistics, name=f"Image {index}", clip=True)
            for index, image in zip(indices, batch, strict=True)
        ]


def _description(module: ImageDataModule) -> str:
    if module.train_transforms is not None:
        return ", ".join(_transform_names(module.train_transforms))
    options = module.augmentation
    padding = f"{options.crop_padding} pixels of {_PADDING[options.padding_mode]} padding"
    parts = [
        f"random crop with {padding}" if options.crop_padding else "no crop",
        f"{options.flip} flip" if options.flip != "none" else "no flip",
        f"cutout {options.cutout} x {options.cutout}" if options.cutout else "no cutout",
    ]
    return ", ".join(parts)


def _transform_names(transform: Any) -> list[str]:
    parts = getattr(transform, "transforms", None)
    if isinstance(parts, list | tuple):
        return [name for part in parts for name in _transform_names(part)]
    return [getattr(transform, "__name__", type(transform).__name__)]
