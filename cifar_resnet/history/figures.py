"""Draw the history of the training images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from cifar_resnet import arguments
from cifar_resnet.data.metadata import normalization
from cifar_resnet.history.history import ImageHistory
from cifar_resnet.history.issues import LabelIssues
from cifar_resnet.history.scores import as_history, score_images
from cifar_resnet.normalization import Statistics
from cifar_resnet.plotting.canvas import check_figure, draws, new_figure, shorten
from cifar_resnet.plotting.grid import Panel, draw_grid
from cifar_resnet.plotting.palette import BLUE, VERMILION
from cifar_resnet.plotting.pictures import Pixels, as_pixels
from cifar_resnet.plotting.style import LABEL_POINTS, LINE, finish, finish_color_bar, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from cifar_resnet.data.module import ImageDataModule

__all__ = ["show_dataset_map", "show_history", "show_label_issues"]

_SIDE = 32 * 4 / 150  # inches: 4 dots for a pixel of CIFAR-10 at 150 dots per inch
_COLUMNS = 10
_LETTERS = 13  # in the caption of an image


@draws
def show_dataset_map(
    history: ImageHistory,
    *,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw the dataset map: the confidence of each training image against its variability.

    Images at the top left are easy to learn; those at the bottom left are hard, among them images
    with wrong labels; those at the right are ambiguous (Swayamdipta et al., "Dataset Cartography:
    Mapping and Diagnosing Datasets with Training Dynamics", EMNLP 2020).

    Args:
        history: The values of a run, such as `TrainingHistory.history`.
        fig: Figure or subfigure to draw into. If None, create a figure without pyplot.
        figsize: Width and height in inches of a new figure. If None, chosen automatically.

    Returns:
        The figure.

    Raises:
        TypeError: If `history` is not an `ImageHistory`, or another argument has the wrong type.
        ValueError: If it contains no epoch, or `figsize` is out of its range or given together with
            `fig`.

    Examples:
        >>> import numpy as np
        >>> from cifar_resnet import ImageHistory, show_dataset_map
        >>> rng = np.random.default_rng(0)
        >>> loss, margin = rng.random((2, 100, 5))
        >>> labels = rng.integers(0, 3, 100)
        >>> history = ImageHistory(
        ...     loss, margin, rng.integers(0, 3, (100, 5)), np.arange(100), labels
        ... )
        >>> fig = show_dataset_map(history)
        >>> fig.axes[0].get_xlabel()
        'variability'
    """
    check_figure(fig, figsize)
    scores = score_images(as_history(history))
    fig = fig or new_figure(6.4, 4.6, figsize)
    axes = fig.subplots()
    points = axes.scatter(
        scores.variability, scores.confidence, c=scores.correctness, s=3.0, linewidths=0,
        cmap="viridis", vmin=0, vmax=1, alpha=0.6, rasterized=True,
    )  # fmt: skip
    count = int((scores.observations > 0).sum())
    title(axes, f"Dataset map of {count:,} training images, {history.epochs} epochs", points=12)
    axes.set_xlabel("variability")
    axes.set_ylabel("confidence")
    axes.set_xlim(-0.01, 0.51)
    axes.set_ylim(-0.02, 1.02)
    finish(axes, grid=True)
    bar = fig.colorbar(points, ax=axes)
    bar.solids.set_alpha(1.0)  # type: ignore[union-attr]
    finish_color_bar(bar, "correctness")
    return fig.figure


@draws
def show_history(
    history: ImageHistory,
    index: int,
    data: ImageDataModule | None = None,
    *,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw a training image as the network saw it in each epoch, and what it made of it.

    Args:
        history: The values of a run, such as `TrainingHistory.history`.
        index: Index of the image in the dataset, one of `history.indices`.
        data: The data module of that run, or one with the same images, seed and augmentation; the
            images are computed again from it. If None, only the curves are drawn.
        fig: Figure or subfigure to draw into. If None, create a figure without pyplot.
        figsize: Width and height in inches of a new figure. If None, chosen automatically.

    Returns:
        The figure: the original image and that of each epoch with the prediction; below, the
        probability of the label and the margin.

    Raises:
        TypeError: If an argument has the wrong type.
        IndexError: If the run did not train on this image.
        ValueError: If `data` has other images, labels, seed or augmentation than the run; if the
            images of the run cannot be computed again; or `figsize` is out of its range or given
            together with `fig`.

    Examples:
        >>> from pytorch_lightning import Trainer
        >>> from cifar_resnet import CIFAR10DataModule, CustomResNet, ImageClassifier
        >>> from cifar_resnet import TrainingHistory, show_history
        >>> recorder = TrainingHistory()
        >>> data = CIFAR10DataModule(subset=100, val_split=0)
        >>> trainer = Trainer(
        ...     max_epochs=2, callbacks=[recorder], logger=False, enable_checkpointing=False,
        ...     enable_progress_bar=False, enable_model_summary=False,
        ... )
        >>> trainer.fit(ImageClassifier(CustomResNet(width=1)), data)
        >>> history = recorder.history
        >>> fig = show_history(history, history.indices[0], data)
        >>> len(fig.axes)  # the original, two epochs, and two curves
        5
    """
    check_figure(fig, figsize)
    history = as_history(history)
    row = history.row(index)
    panels = [] if data is None else _panels(history, row, _matching(history.data, data))
    label = _name(history, int(history.labels[row]))
    lines = math.ceil(len(panels) / _COLUMNS)
    grid = lines * (_SIDE + 0.36) + 0.54 if panels else 0.0
    width = max(min(len(panels), _COLUMNS) * (_SIDE + 0.06) + 0.2, 7.0)
    fig = fig or new_figure(width, grid + 2.9, figsize)
    lower: Figure | SubFigure = fig
    if panels:
        parts = fig.subfigures(2, 1, squeeze=False, height_ratios=[grid, 2.9])
        upper, lower = parts[:, 0]
        rows = [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]
        heading = f"#{index}, label {label}"
        if history.clean_labels is not None and history.clean_labels[row] != history.labels[row]:
            heading += f", changed from {_name(history, int(history.clean_labels[row]))} by noise"
        draw_grid(rows, side=_SIDE, title=heading, fig=upper, figsize=None)
    left, right = lower.subplots(1, 2)
    probability = history.probability[row]
    _draw_curve(left, probability, history.correct[row], f"Probability of {label}")
    left.set_ylim(-0.03, 1.03)
    _draw_curve(right, history.margin[row], history.correct[row], f"Margin of {label}")
    right.axhline(0, color=VERMILION, linewidth=0.8, linestyle="-", marker="None")
    return fig.figure


@draws
def show_label_issues(
    issues: LabelIssues,
    data: ImageDataModule,
    *,
    n: int = 50,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw the training images with the most doubtful labels.

    Args:
        issues: Result of `find_label_issues`.
        data: The data module of the run, or another one of the same dataset.
        n: Maximum number of images.
        fig: Figure or subfigure to draw into. If None, create a figure without pyplot.
        figsize: Width and height in inches of a new figure. If None, the size that the images need.

    Returns:
        The figure. Below each image are its index, the given and the suggested label.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `issues` is empty, `data` is another dataset, or an argument is out of its
            range.

    Examples:
        >>> import numpy as np
        >>> from cifar_resnet import CIFAR10DataModule, ImageHistory, find_label_issues
        >>> from cifar_resnet import show_label_issues
        >>> rng = np.random.default_rng(0)
        >>> loss, margin = rng.random((2, 100, 5))
        >>> predictions, labels = rng.integers(0, 10, (100, 5)), rng.integers(0, 10, 100)
        >>> history = ImageHistory(loss, margin, predictions, np.arange(100), labels)
        >>> fig = show_label_issues(find_label_issues(history), CIFAR10DataModule(), n=4)
        >>> len(fig.axes)
        4
    """
    check_figure(fig, figsize)
    if not isinstance(issues, LabelIssues):
        raise TypeError(
            f"issues must be a LabelIssues, but got {type(issues).__name__}. find_label_issues "
            "returns one."
        )
    n = arguments.integer("n", n, minimum=1)
    if not len(issues):
        raise ValueError("issues contains no images. Pass the result of find_label_issues.")
    arrays = _ready(data)._loaded()
    names = {"dataset"} & issues.data.keys()
    _compare({name: issues.data[name] for name in names}, _state(data), names)
    shown = issues.top(n)
    panels = []
    for index, given, suggested in zip(shown.indices, shown.given, shown.suggested, strict=True):
        image = torch.from_numpy(arrays.train_images[index]).permute(2, 0, 1)
        labels = (shown.class_names[given], shown.class_names[suggested])
        lines = [f"#{index}", *(shorten(label, _LETTERS) for label in labels)]
        panels.append(Panel(as_pixels(image, None, name=f"Image {index}"), "\n".join(lines)))
    of_all = f" of {len(issues):,} training images" if len(issues) > len(panels) else ""
    return draw_grid(
        [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)],
        side=_SIDE,
        title=f"The {len(panels)} most doubtful labels{of_all}",
        note="index, given label, suggested label",
        fig=fig,
        figsize=figsize,
    )


# --- the data -------------------------------------------------------------------------------------


def _ready(data: Any) -> ImageDataModule:
    from cifar_resnet.data.module import ImageDataModule

    if not isinstance(data, ImageDataModule):
        raise TypeError(
            f"data must be an ImageDataModule, but got {type(data).__name__}. Pass the data module "
            "that the network was trained with."
        )
    data.prepare_data()
    data.setup()
    return data


def _state(data: ImageDataModule) -> dict[str, Any]:
    return data._origin_of_images().state()


def _matching(state: Mapping[str, Any], data: Any) -> ImageDataModule:
    """Return the data module if it has the images, seed and augmentation of a run."""
    module = _ready(data)
    if "seed" not in state or "augmentation" in state:
        raise ValueError(
            "The images of this run cannot be computed again, because its loader was not one of "
            f"ImageDataModule, or did not seed the transforms (dataset {state.get('dataset')}). "
            "Pass data=None to draw only the curves."
        )
    own = _state(module)
    _compare(state, own, own.keys())
    return module


def _compare(state: Mapping[str, Any], own: Mapping[str, Any], names: Any) -> None:
    differences = [
        f"{name} is {own[name]!r} instead of {state.get(name)!r}"
        for name in own
        if name in names and state.get(name) != own[name]
    ]
    if differences:
        raise ValueError(
            f"data is not the data module of this run: {'; '.join(differences)}. Pass one with the "
            "same arguments."
        )


# --- parts ----------------------------------------------------------------------------------------


def _panels(history: ImageHistory, row: int, data: ImageDataModule) -> list[Panel]:
    """Return the original image and that of each epoch."""
    index = int(history.indices[row])
    pixels = torch.from_numpy(data._loaded().train_images[index]).permute(2, 0, 1)
    panels = [Panel(as_pixels(pixels, None, name=f"Image {index}"), "original\n")]
    statistics: Statistics | None = data.mean, data.std
    if data.train_transforms is not None:
        statistics = normalization(data.train_transforms)
    for epoch in range(history.epochs):
        if not history.seen[row, epoch]:
            panels.append(Panel(None, f"epoch {epoch + 1}:\nnot seen"))
            continue
        predicted = shorten(_name(history, int(history.prediction[row, epoch])), _LETTERS)
        panels.append(
            Panel(_seen(data, index, epoch, statistics), f"epoch {epoch + 1}\n{predicted}")
        )
    return panels


def _seen(data: ImageDataModule, index: int, epoch: int, statistics: Statistics | None) -> Pixels:
    image = data.augmented(index, epoch)
    # Some transforms, such as erasing with noise, exceed the range on purpose.
    return as_pixels(image, statistics, name=f"Image {index}", clip=True)


def _name(history: ImageHistory, label: int) -> str:
    return history.class_names[label] if label < len(history.class_names) else str(label)


def _draw_curve(
    axes: Axes, values: NDArray[np.float32], correct: NDArray[np.bool_], name: str
) -> None:
    from matplotlib.ticker import MaxNLocator

    epochs = np.arange(1, len(values) + 1)
    axes.plot(epochs, values, color=BLUE, **LINE)
    for chosen, marker, color, label in (
        (correct, "o", BLUE, "correct"), (~correct, "X", VERMILION, "wrong")
    ):  # fmt: skip
        points = {"linestyle": "None", "marker": marker, "markersize": 5, "markeredgewidth": 0}
        axes.plot(epochs[chosen], values[chosen], color=color, label=label, **LINE | points)
    title(axes, name, points=12)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="best", fontsize=LABEL_POINTS, frameon=True)
    finish(axes, grid=True)
