"""Test that every figure is drawn alike and legibly with any `rcParams`, and displays itself."""

import functools
import inspect
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.style
import numpy as np
import pytest
import torch
from cycler import cycler
from matplotlib import rc_context
from matplotlib.axis import Tick
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import cifar_resnet
from cifar_resnet import (
    CIFAR10DataModule,
    Comparison,
    CustomResNet,
    ImageDataModule,
    ImageHistory,
    compare_errors,
    effective_receptive_field,
    find_label_issues,
    find_misclassified,
    find_nearest,
    receptive_field,
    show_augmentations,
    show_calibration,
    show_class_samples,
    show_comparison,
    show_confusion_matrix,
    show_dataset_map,
    show_error_comparison,
    show_features,
    show_filters,
    show_history,
    show_label_issues,
    show_misclassified,
    show_nearest,
    show_rgb_channels,
    show_samples,
    show_training_curves,
)

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
NAMES = ["a $x_$ b", "50 % & #1", r"\frac{1}"]  # neither mathematics nor LaTeX


def _classifier() -> nn.Module:
    layer = nn.Conv2d(3, 3, 1, bias=False)
    layer.weight.data = 10 * torch.eye(3)[:, :, None, None]
    return nn.Sequential(layer, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _data(number: int = 12) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.rand(number, 3, 8, 8, generator=generator), torch.arange(number) % 3)


def _curves() -> dict[str, Any]:
    return {
        "train_loss_step": ([0.5, 1, 1.5, 2], [2.0, 1.5, 1.2, 1.1]),
        "train_loss_epoch": ([1, 2], [1.7, 1.1]),
        "val_acc": ([1, 2], [0.5, 0.7]),
        "lr-Adam": ([1, 2], [0.1, 0.2]),
        "lr-Adam/pg2": ([1, 2], [0.2, 0.4]),
    }


@functools.cache
def _found() -> Any:
    return find_misclassified(_classifier(), _data(), class_names=NAMES)


@functools.cache
def _fields() -> Any:
    return receptive_field(CustomResNet(width=2), (1, 3, 32, 32))


@functools.cache
def _field() -> Any:
    model, images = CustomResNet(width=2), torch.randn(2, 3, 32, 32)
    return effective_receptive_field(model, images, layer="layer1")


@functools.cache
def _comparison() -> Any:
    other = _classifier()
    other[0].weight.data = other[0].weight.data.roll(1, 0)  # type: ignore[operator,union-attr]
    return compare_errors(_classifier(), other, _data(), names=NAMES[:2], class_names=NAMES)


@functools.cache
def _nearest() -> Any:
    head = nn.Linear(3, 3)
    head.weight.data = torch.eye(3)
    model = nn.Sequential(*_classifier(), head)
    return find_nearest(model, _found()[:2], _data(), k=2, class_names=NAMES)


@functools.cache
def _history() -> ImageHistory:
    loss, margin = np.random.default_rng(0).random((2, 9, 4))
    prediction, labels = np.arange(36).reshape(9, 4) % 3, np.arange(9) % 3
    return ImageHistory(loss, margin, prediction, np.arange(9), labels, class_names=tuple(NAMES))


@functools.cache
def _images() -> ImageDataModule:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    return ImageDataModule((pixels, np.arange(9) % 3), classes=NAMES, val_split=0)


FIGURES: dict[str, Callable[..., Figure]] = {
    "recipes": lambda **o: show_comparison(
        Comparison.from_results(RESULTS / "accuracy.jsonl", "muon", "best"), **o
    ),
    "dataset map": lambda **o: show_dataset_map(_history(), **o),
    "history": lambda **o: show_history(_history(), 4, **o),
    "label issues": lambda **o: show_label_issues(find_label_issues(_history()), _images(), **o),
    "misclassified": lambda **o: show_misclassified(_classifier(), _found(), n=1, **o),
    "no maps": lambda **o: show_misclassified(
        _classifier(), _data(), n=2, cam=None, true_class=NAMES[0], class_names=NAMES, **o
    ),
    "no errors": lambda **o: show_misclassified(_classifier(), _found()[:0], **o),
    "comparison": lambda **o: show_error_comparison(_comparison(), n=2, **o),
    "comparison without maps": lambda **o: show_error_comparison(_comparison(), cam=None, **o),
    "nearest": lambda **o: show_nearest(_nearest(), **o),
    "channels of layers": lambda **o: show_features(_classifier(), _found()[0], **o),
    "filters": lambda **o: show_filters(_classifier(), **o),
    "confusion matrix": lambda **o: show_confusion_matrix(_found(), **o),
    "calibration": lambda **o: show_calibration(_found(), **o),
    "curves": lambda **o: show_training_curves(_curves(), **o),
    "samples": lambda **o: show_samples(_data(), n=3, class_names=NAMES, **o),
    "class samples": lambda **o: show_class_samples(_data(), per_class=2, class_names=NAMES, **o),
    "channels": lambda **o: show_rgb_channels(0, _data(), class_names=NAMES, **o),
    "fields": lambda **o: _fields().plot(torch.zeros(3, 32, 32), "layer1", **o),
    "growth": lambda **o: _fields().plot_growth(**o),
    "effective": lambda **o: _field().plot(**o),
    "effective, logarithmic": lambda **o: _field().plot(log=True, **o),
}

STYLES: dict[str, Any] = {
    "dark_background": "dark_background",
    "seaborn-v0_8-darkgrid": "seaborn-v0_8-darkgrid",
    "ggplot": "ggplot",
    "classic": "classic",
    "images": {
        "image.origin": "lower", "image.interpolation": "bicubic", "image.cmap": "jet",
        "image.aspect": "auto",
    },
    "layout": {"figure.constrained_layout.use": True, "savefig.bbox": "tight"},
    "automatic layout": {"figure.autolayout": True},
    "fonts": {
        "font.size": 30, "axes.titlesize": 40, "axes.labelsize": "xx-large", "font.weight": "bold",
        "legend.fontsize": 30, "xtick.labelsize": 30, "axes.titleweight": "bold",
    },
    "LaTeX": {"text.usetex": True},
    "lines": {
        "axes.prop_cycle": cycler(linestyle=["--", ":"]) + cycler(marker=["x", "o"]),
        "lines.marker": "x", "lines.linewidth": 9, "lines.linestyle": ":",
        "patch.force_edgecolor": True, "patch.linewidth": 5,
    },
    "axes": {
        "axes.grid": True, "axes.grid.which": "both", "axes.spines.left": False,
        "xtick.top": True, "xtick.minor.visible": True, "ytick.left": False,
        "axes.facecolor": "black", "axes.edgecolor": "red", "legend.frameon": False,
        "text.color": "white", "axes.labelcolor": "white", "xtick.color": "white",
    },
}  # fmt: skip


def _draw(name: str, style: Any) -> Figure:
    torch.manual_seed(0)
    with rc_context(), matplotlib.style.context(style):
        fig = FIGURES[name]()
        fig.draw_without_rendering()
    return fig


def _luminance(color: Any) -> float:
    rgb = np.array(to_rgba(color)[:3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def _drawn(fig: Figure) -> list[Any]:
    """Return the data and the style of everything drawn, except what the background determines."""
    result: list[Any] = []
    for axes in fig.axes:
        for image in axes.images:
            values = np.ma.asarray(image.get_array()).filled(-1).tolist()
            result.append((image.origin, image.get_interpolation(), image.get_extent(), values))
            if image.get_array().ndim == 2:
                result.append((image.cmap.name, image.get_clim()))
        if axes.axison:
            result.append(axes.get_aspect())
            if axes.images:  # otherwise `axes.autolimit_mode` may round the limits
                result.append((axes.get_xlim(), axes.get_ylim()))
            result += [spine.get_visible() for spine in axes.spines.values()]
            for axis in (axes.xaxis, axes.yaxis):
                result.append(len(axis.get_minorticklocs()))
                for tick in axis.get_major_ticks()[:1]:
                    parts = tick.gridline, tick.tick1line, tick.tick2line, tick.label1, tick.label2
                    result.append([part.get_visible() for part in parts])
                    result.append((tick.label1.get_fontsize(), tick.label1.get_usetex()))
        for line in axes.lines:
            style = line.get_linestyle(), line.get_linewidth(), line.get_marker()
            result.append((style, line.get_markersize(), line.get_xydata().tolist()))
        for patch in axes.patches:
            result.append((patch.get_bbox().bounds, patch.get_linewidth(), patch.get_facecolor()))
    ticks = {text for tick in fig.findobj(Tick) for text in (tick.label1, tick.label2)}
    for text in fig.findobj(Text):
        if text.get_text() and text not in ticks:
            style = text.get_fontsize(), text.get_fontweight(), text.get_usetex()
            result.append((text.get_text(), style))
    return result


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_alike_with_any_style(name: str) -> None:
    expected = _drawn(_draw(name, "default"))
    assert len(expected) > 0
    for style, parameters in STYLES.items():
        fig = _draw(name, parameters)
        for one, other in zip(_drawn(fig), expected, strict=True):
            assert one == other, style
        background = _luminance(fig.get_facecolor())
        inside = [text for axes in fig.axes for text in axes.texts if axes.images and axes.axison]
        for text in set(fig.findobj(Text)) - set(inside):
            pair = sorted([background, _luminance(text.get_color())])
            contrast = (pair[1] + 0.05) / (pair[0] + 0.05)
            assert contrast > 3 or not text.get_text(), (style, text)
        for axes in fig.axes:
            if axes.axison and not axes.images:
                assert to_rgba(axes.get_facecolor()) == to_rgba(fig.get_facecolor())


@pytest.mark.parametrize("name", FIGURES)
def test_names_are_literal(name: str) -> None:
    for text in _draw(name, "default").findobj(Text):
        if any(part in text.get_text() for part in NAMES):
            assert not text.get_parse_math()


def test_numbers_contrast_with_their_cell() -> None:
    for cmap in ("cividis", "gray", "gray_r", "Blues"):
        axes = show_confusion_matrix(_found(), cmap=cmap).axes[0]
        colors = axes.images[0].to_rgba(axes.images[0].get_array()).reshape(-1, 4)
        for text, color in zip(axes.texts, colors, strict=True):
            pair = sorted([_luminance(color), _luminance(text.get_color())])
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5


def test_the_global_style_is_left_alone() -> None:
    before = dict(matplotlib.rcParams)
    for draw in FIGURES.values():
        draw()
    assert dict(matplotlib.rcParams) == before


def test_a_subfigure_takes_the_background_of_its_figure() -> None:
    for color, ink in (("black", "white"), ("white", "black"), ("none", "black")):
        fig = Figure(facecolor=color)
        left, right = fig.subfigures(1, 2)
        show_calibration(_found(), fig=left)
        show_samples(_data(), n=1, fig=right)
        assert left.axes[0].title.get_color() == right.texts[0].get_color() == ink


# -- size, axes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIGURES)
def test_the_size_of_every_figure_can_be_chosen(name: str) -> None:
    fig = FIGURES[name](figsize=(7, 5))
    assert fig.get_size_inches().tolist() == [7, 5]
    assert fig.dpi == 150
    with pytest.raises(ValueError, match="figsize must be a width and a height"):
        FIGURES[name](figsize=(7, 0))
    with pytest.raises(ValueError, match="Give fig or figsize, not both"):
        FIGURES[name](figsize=(7, 5), fig=Figure())


@pytest.mark.parametrize("name", FIGURES)
def test_axes_are_not_a_figure(name: str) -> None:
    axes = Figure().subplots()
    for option in ("ax", "axes"):
        message = rf"no argument '{option}', .* pass a subfigure: left, right = figure.subfigures"
        with pytest.raises(TypeError, match=message):
            FIGURES[name](**{option: axes})
    with pytest.raises(TypeError, match="fig must be a Matplotlib figure .* pass a subfigure"):
        FIGURES[name](fig=axes)
    part = Figure().subfigures(1, 2)[0]
    assert FIGURES[name](fig=part) is part.figure
    assert part.axes or part.texts


def test_all_figure_functions_are_tried() -> None:
    functions = {name for name in cifar_resnet.__all__ if name.startswith("show_")}
    source = inspect.getsource(inspect.getmodule(test_all_figure_functions_are_tried))  # type: ignore[arg-type]
    for name in functions:
        assert f"{name}(" in source
        assert "figsize" in inspect.signature(getattr(cifar_resnet, name)).parameters


def test_augmentations(data_dir: Path) -> None:
    data = CIFAR10DataModule(data_dir)
    with rc_context({"image.origin": "lower", "axes.grid": True}):
        fig = show_augmentations(data, indices=[0], epochs=1, figsize=(3, 3))
    assert all(axes.images[0].origin == "upper" for axes in fig.axes)
    with pytest.raises(TypeError, match="no argument 'ax'"):
        show_augmentations(data, ax=None)  # type: ignore[call-arg]


def test_images_of_different_sizes() -> None:
    sizes = [(8, 8), (16, 8), (8, 16), (8, 8)]
    batches = [(torch.rand(1, 3, *size), torch.tensor([0])) for size in sizes]
    for images, _ in batches:
        images[:, 0] *= 0.1  # so that each is misclassified

    class Batches:
        def __iter__(self) -> Any:
            return iter(batches)

    fig = show_misclassified(_classifier(), Batches(), sort_by="index", target_layers="0")
    cells = [axes for axes in fig.axes if axes.texts]
    assert len(cells) == 4
    for cell, (height, width) in zip(cells, sizes, strict=True):
        assert len(cell.images) == 3
        for image in cell.images:
            left, right, bottom, top = image.get_extent()
            assert (top - bottom) / (right - left) == pytest.approx(height / width)
            rows, columns, _ = image.get_array().shape
            assert rows / columns == height / width
    assert len({tuple(np.round(cell.get_position().size, 6)) for cell in cells}) == 1
    note = " ".join(" ".join(text.get_text() for text in fig.texts).split())
    assert "0 (8 x 8), 0 (16 x 8), 0 (8 x 16)" in note
    # the same maps as one by one
    for number, (images, _) in enumerate(batches):
        alone = show_misclassified(_classifier(), [(images[0], 0)], target_layers="0")
        for one, other in zip(cells[number].images, alone.axes[0].images, strict=True):
            assert np.allclose(one.get_array(), other.get_array(), atol=1e-6)


# -- display --------------------------------------------------------------------------------------


def _png(content: bytes) -> Any:
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_displays_itself(name: str) -> None:
    formatters = pytest.importorskip("IPython.core.formatters")
    fig = FIGURES[name]()
    data, _ = formatters.DisplayFormatter().format(fig)
    assert _png(data["image/png"]).size == fig.canvas.get_width_height()
    assert not formatters.DisplayFormatter().format(Figure())[0].get("image/png")


def test_with_the_inline_backend_a_figure_is_displayed_once() -> None:
    tools = pytest.importorskip("IPython.core.pylabtools")
    formatters = pytest.importorskip("IPython.core.formatters")
    shell = SimpleNamespace(display_formatter=formatters.DisplayFormatter())
    tools.select_figure_formats(shell, {"png"})  # as %matplotlib inline does
    plain = Figure(figsize=(1, 1))
    plain.add_subplot()
    for fig in (show_samples(_data(), n=1), plain):
        data, _ = shell.display_formatter.format(fig)
        assert set(data) == {"image/png", "text/plain"}


def test_a_figure_is_recognized_by_libraries_that_compare_names() -> None:
    # Gradio looks for "matplotlib" in the module of a class, Weights & Biases at its beginning.
    assert type(show_samples(_data(), n=1)).__module__.startswith("matplotlib.")


def test_a_figure_can_be_pickled_and_saved(tmp_path: Path) -> None:
    fig = show_samples(_data(), n=2)
    again = pickle.loads(pickle.dumps(fig))
    assert isinstance(again, Figure)
    assert again._repr_png_() == fig._repr_png_()  # type: ignore[attr-defined]
    for suffix in ("png", "pdf", "svg"):
        fig.savefig(tmp_path / f"figure.{suffix}")
        assert (tmp_path / f"figure.{suffix}").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "expected"), [({}, 0), ({"facecolor": "red"}, 255), ({"transparent": True}, None)]
)
def test_the_background_of_a_saved_figure(options: Any, expected: int | None) -> None:
    with rc_context({"figure.facecolor": "black", "savefig.facecolor": "white"}):
        fig, content = show_samples(_data(), n=1), io.BytesIO()
        fig.savefig(content, **options)
        red, _, _, alpha = _png(content.getvalue()).convert("RGBA").getpixel((1, 1))
    assert (red, alpha) == (expected, 255) if expected is not None else alpha == 0
