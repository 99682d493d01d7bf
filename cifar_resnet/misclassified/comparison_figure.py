"""Draw the errors that two classifiers make together and separately."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.misclassified.cams import METHODS, CamOptions, check_visible
from cifar_resnet.misclassified.cells import enlarged, overlay, percent
from cifar_resnet.misclassified.compared import WRONG, ComparedSample, ErrorComparison
from cifar_resnet.misclassified.execution import run_on_device
from cifar_resnet.misclassified.figures import draw_color_scale, wrapped
from cifar_resnet.misclassified.maps import maps_of_errors
from cifar_resnet.misclassified.scores import class_scores
from cifar_resnet.model_state import preserve_state, unwrap_compiled
from cifar_resnet.plotting.canvas import Canvas, check_figure, draws, shorten
from cifar_resnet.plotting.pictures import as_rgb
from cifar_resnet.plotting.style import IMAGE, NAME

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure

__all__ = ["show_error_comparison"]

CAMS = ("predicted", "true", None)
_SAME = 0.05  # by how much a probability that is computed again may differ, for example on a GPU

# Inches: side of a panel, between panels, height of a line, between cells and groups, above the
# cells, below them; letters of the small text in an inch.
_PANEL, _GAP, _LINE, _SPACE, _BETWEEN, _TOP, _BOTTOM = 1.1, 0.06, 0.13, 0.1, 0.35, 1.0, 0.45
_LETTERS = 19


@draws
def show_error_comparison(
    comparison: ErrorComparison,
    *,
    n: int = 3,
    models: Sequence[nn.Module] | None = None,
    cam: str | None = "predicted",
    method: str = "gradcam",
    target_layers: Sequence[Any] | None = None,
    alpha: float = 0.5,
    cmap: str | Colormap = "viridis",
    device: torch.device | str | None = None,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw the images that only one of two classifiers gets wrong, and those that both do.

    There are three groups. Each image comes with its label, both predictions with their
    probabilities, and a class activation map of each classifier, scaled to its own maximum. In each
    group, the errors with the highest confidence come first; if both are wrong, with the highest
    mean.

    Args:
        comparison: Result of `compare_errors`.
        n: Maximum number of images in each group.
        models: The two models, for the maps. If None, those that were compared; required if results
            of `find_misclassified` were.
        cam: Maps to draw: "predicted" for the class that each model predicts, or "true". If None,
            draw none.
        method: As for `compute_cams`.
        target_layers: A pair with the target layers of each model, as for `compute_cams`. If None,
            they are chosen automatically.
        alpha: Opacity of the maps in [0, 1].
        cmap: Matplotlib color map of the maps. The default is safe for color-blind readers.
        device: Device to compute the maps on. If None, that of each model.
        fig: Figure or subfigure to draw into. If None, create a figure.
        figsize: Width and height in inches of a new figure. If None, the size that the cells need.

    Returns:
        The figure; save it with `fig.savefig(path)`.

    Raises:
        TypeError: If `comparison` is not the result of `compare_errors`, or another argument has
            the wrong type.
        ValueError: If an argument is out of its range, models are needed, or a model does not
            predict what it predicted in the comparison; or as for `compute_cams`.

    Examples:
        >>> import torch
        >>> from cifar_resnet import CustomResNet, compare_errors, show_error_comparison
        >>> data = torch.rand(20, 3, 32, 32), torch.arange(20) % 10
        >>> comparison = compare_errors(CustomResNet(width=4), CustomResNet(width=4), data)
        >>> fig = show_error_comparison(comparison, n=2)
    """
    if not isinstance(comparison, ErrorComparison):
        raise TypeError(
            "comparison must be the result of compare_errors(a, b, data), but got "
            f"{type(comparison).__name__}."
        )
    n = arguments.integer("n", n, minimum=1)
    cam = arguments.choice("cam", cam, CAMS)
    options = [CamOptions(method, layers) for layers in _pair("target_layers", target_layers)]
    alpha = arguments.number("alpha", alpha, within=arguments.FRACTION)
    from matplotlib import colormaps

    style = _Style(colormaps.get_cmap(cmap), alpha)
    place = None if device is None else arguments.device("device", device)
    check_figure(fig, figsize)
    groups = [comparison.group(wrong)[:n] for wrong in WRONG]
    samples = [sample for group in groups for sample in group]
    maps: list[list[Tensor]] = [[] for _ in samples]
    note = ""
    if cam is not None:
        layers = []
        for which, model in enumerate(_models(comparison, models)):
            check_visible(model)
            if not samples:
                continue
            views = [_View(each, which) for each in samples]
            _check_predictions(model, views, comparison.names[which], place)
            found, names = maps_of_errors(model, views, cam, options[which], place)
            layers.append(names)
            for row, by_kind in zip(maps, found, strict=True):
                row.append(by_kind[cam])
        if samples:
            of = layers[0] if layers[0] == layers[1] else " and ".join(layers)
            what = "the predicted class" if cam == "predicted" else "the class of the label"
            note = f"{METHODS[method][1]} for {what}, of {of}, each map scaled to its own maximum"
    return _draw(comparison, groups, iter(maps), note, style, fig, figsize)


def _pair(name: str, values: Any) -> list[Any]:
    if values is None:
        return [None, None]
    expected = "a pair, with the layers of each of the two models"
    message = f"{name} must be {expected}, but got {values!r}."
    if isinstance(values, str):
        raise TypeError(message)
    pair = arguments.sequence(name, values, expected)
    if len(pair) != 2:
        raise ValueError(message)
    return pair


def _models(comparison: ErrorComparison, models: Any) -> list[nn.Module]:
    if models is None:
        models = comparison._models
        if models is None:
            raise ValueError(
                "The comparison was made from results, which do not hold the models. Pass "
                "models=(a, b), or draw without maps: cam=None."
            )
    expected = "the two models that were compared"
    pair = arguments.sequence("models", models, expected)
    if len(pair) != 2:
        raise ValueError(f"models must be {expected}, but got {len(pair)} of them.")
    return [unwrap_compiled(model) for model in pair]


@dataclass(frozen=True)
class _View:
    """An image as one of the two models receives it, and what this model predicts."""

    sample: ComparedSample
    which: int

    @property
    def inputs(self) -> Tensor:
        return self.sample.inputs[self.which]

    @property
    def true(self) -> int:
        return self.sample.true

    @property
    def predicted(self) -> int:
        return self.sample.predicted[self.which]


def _check_predictions(
    model: nn.Module, views: Sequence[_View], name: str, device: torch.device | None
) -> None:
    """Raise if a model does not give the same probabilities as when it was compared."""
    with (
        preserve_state(model),
        torch.inference_mode(False),
        torch.no_grad(),
        run_on_device(model, device) as move_inputs,
    ):
        for view in views:
            scores = class_scores(model, move_inputs(view.inputs[None].clone())).float()
            before = view.sample.confidence[view.which]
            now = (
                float(scores.softmax(1)[0, view.predicted])
                if view.predicted < scores.shape[1]
                else 0.0
            )
            if not abs(now - before) <= _SAME:
                index = view.sample.index
                image = "An image" if index is None else f"Image {index}"
                predicted = view.sample.predicted_names[view.which]
                raise ValueError(
                    f"{image} was predicted by {name!r} as {predicted!r} with a probability of "
                    f"{before:.2f}, but now has {now:.2f}. Pass the models that were compared, in "
                    "the same order and unchanged. If they need different preprocessing, pass "
                    "cam=None: the images as the other model received them do not fit."
                )


# --- drawing -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Style:
    colors: Colormap
    alpha: float


def _draw(
    comparison: ErrorComparison,
    groups: Sequence[Sequence[ComparedSample]],
    maps: Any,
    note: str,
    style: _Style,
    fig: Figure | SubFigure | None,
    figsize: tuple[float, float] | None,
) -> Figure:
    samples = [sample for group in groups for sample in group]
    aspects = [sample.image.shape[1] / sample.image.shape[2] for sample in samples]
    image_height = _PANEL * max(aspects, default=0.3)
    across = 3 * _PANEL + 2 * _GAP if note else 2.3  # of a cell
    down = image_height + 4 * _LINE
    rows = max(1, *map(len, groups))
    width = 3 * across + 2 * _BETWEEN + 2 * _SPACE
    height = _TOP + rows * (down + _SPACE) + (_BOTTOM if note else _SPACE)
    canvas = Canvas(width, height, fig, figsize)
    _write_title(canvas, comparison)
    counts = (comparison.only_a, comparison.only_b, comparison.both_wrong)
    a, b = (shorten(name, int(across * 14) - 20) for name in comparison.names)
    heads = (f"only {a} is wrong", f"only {b} is wrong", "both are wrong")
    for column, (group, count, head) in enumerate(zip(groups, counts, heads, strict=True)):
        left = _SPACE + column * (across + _BETWEEN)
        canvas.text(left, _TOP - 0.14, f"{head}: {count:,}", points=8.5, va="bottom")
        if not group:
            empty = "none" if count == 0 else "none was kept: compare with a larger n"
            canvas.text(left, _TOP + 0.1, empty, points=7, va="top")
        for row, sample in enumerate(group):
            cell = _Cell(canvas, left, _TOP + row * (down + _SPACE), across, image_height)
            cell.draw(sample, next(maps), comparison.names, style)
    if note:
        text = wrapped(note, (width - 1.6) * 20)
        canvas.text(_SPACE, height - 0.16, text, points=6.5, va="bottom", linespacing=1.1)
        draw_color_scale(canvas, style.colors)
    return canvas.figure


def _write_title(canvas: Canvas, comparison: ErrorComparison) -> None:
    low, high = comparison.difference_interval
    letters = int(canvas.width * 13)
    names = [shorten(name, letters // 3) for name in comparison.names]
    accuracies = " and ".join(
        f"{name} {100 * accuracy:.2f} %"
        for name, accuracy in zip(names, comparison.accuracies, strict=True)
    )
    lines = [
        f"{comparison.total:,} images: accuracy of {accuracies}",
        f"difference {100 * comparison.difference:+.2f} points (95 % interval {100 * low:+.2f} to "
        f"{100 * high:+.2f}), McNemar's exact test p = {comparison.p_value:.2g}",
    ]
    text = "\n".join(wrapped(line, letters) for line in lines)
    canvas.text(canvas.width / 2, 0.1, text, points=9.5, ha="center", va="top", linespacing=1.2)


@dataclass(frozen=True)
class _Cell:
    """A place on the canvas for one image, its maps and its predictions; sizes are in inches."""

    canvas: Canvas
    left: float
    top: float
    width: float
    image_height: float

    def draw(
        self,
        sample: ComparedSample,
        maps: Sequence[Tensor],
        names: tuple[str, str],
        style: _Style,
    ) -> None:
        self._write_header(sample)
        image = enlarged(as_rgb(sample.image, name=f"Image {sample.index}"))
        self._draw_panel(image, 0)
        for which, (name, predicted, confidence) in enumerate(
            zip(names, sample.predicted_names, sample.confidence, strict=True)
        ):
            if not maps:
                room = int(self.width * _LETTERS) - 6
                half = room // 2
                text = f"{shorten(name, half)}: {shorten(predicted, half)} {percent(confidence)}"
                self._write(0, which, text)
                continue
            values = maps[which]
            empty = float(values.max()) == 0
            pixels = image if empty else overlay(image, values, style.colors, style.alpha)
            self._draw_panel(pixels, 1 + which)
            x = (1 + which) * (_PANEL + _GAP)
            letters = int(_PANEL * _LETTERS)
            self._write(x, 0, shorten(name, letters))
            text = percent(confidence) + (", no evidence" if empty else "")
            self._write(x, 1, f"{shorten(predicted, letters - len(text) - 1)} {text}")

    def _write_header(self, sample: ComparedSample) -> None:
        y = self.top + 0.5 * _LINE
        right = "" if sample.index is None else f"#{sample.index}"
        right = f"label suspect {right}".strip() if sample.suspect else right
        room = int(self.width * 16) - len(right) - 7
        true = f"true: {shorten(sample.true_name, room)}"
        style: dict[str, Any] = {"va": "center", **NAME}
        self.canvas.text(self.left, y, true, points=7, **style)
        self.canvas.text(self.left + self.width, y, right, points=6, ha="right", **style)

    def _draw_panel(self, pixels: Any, column: int) -> None:
        aspect = pixels.shape[0] / pixels.shape[1]
        width = min(_PANEL, self.image_height / aspect)
        x = self.left + column * (_PANEL + _GAP) + (_PANEL - width) / 2
        axes = self.canvas.axes(x, self.top + 1.2 * _LINE, width, width * aspect)
        axes.set_axis_off()
        axes.imshow(pixels, aspect="equal", **IMAGE)

    def _write(self, x: float, line: int, text: str) -> None:
        y = self.top + (1.75 + line) * _LINE + self.image_height
        self.canvas.text(self.left + x, y, text, points=6, va="center")
