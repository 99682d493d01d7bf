"""Draw the figures of the documentation from CIFAR-10 and the pretrained network of the package.

    python docs/make_figures.py                                # all of them
    python docs/make_figures.py --only network rgb_channels
    python docs/make_figures.py --only training_curves --log runs/NAME/tensorboard
    python docs/make_figures.py --history FOLDER/history.npz   # dataset_map and image_history

The training curves are those in benchmarks/results/training_curves.csv. With --log, this file is
first written from the TensorBoard log of the training run that produced the weights. The history is
the one that `benchmarks/label_issues.py --clean` records; it is too large for the repository.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image
from torch import Tensor, nn

from cifar_resnet import (
    CIFAR10DataModule,
    Comparison,
    CustomResNet,
    ImageHistory,
    LabelIssues,
    MisclassifiedSamples,
    Recipe,
    compare_errors,
    effective_receptive_field,
    find_misclassified,
    find_nearest,
    receptive_field,
    score_images,
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
    show_training_curves,
)
from cifar_resnet.plotting.canvas import new_figure

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "figures"
RESULTS = ROOT / "benchmarks" / "results"
CURVES = RESULTS / "training_curves.csv"
DOUBTFUL = RESULTS / "doubtful_labels.csv"

# Training images: a red bird in front of green leaves, whose channels differ clearly; then a dog
# and a cat that look to one side, so that mirroring is visible.
CHANNELS_OF = 28426
AUGMENTED = (28426, 22912, 42411)


class Material:
    """Inputs of the figures, each created once, when a figure first needs it."""

    def __init__(self, data_dir: str | None, weights: str) -> None:
        self.data_dir = data_dir
        self.weights = weights

    @cached_property
    def model(self) -> CustomResNet:
        return CustomResNet.from_pretrained(self.weights)

    @cached_property
    def data(self) -> CIFAR10DataModule:
        """The data of the recipe of the weights, and cutout, which the recipe does not use."""
        options = Recipe.preset("muon").data_options() | {"cutout": 8, "val_split": 0}
        return CIFAR10DataModule(self.data_dir, **options)

    @cached_property
    def test_images(self) -> Tensor:
        """The first 512 test images, normalized float32 (512, 3, 32, 32)."""
        self.test_data.prepare_data()
        self.test_data.setup("test")
        images: Tensor = next(iter(self.test_data.test_dataloader()))[0]
        return images

    @cached_property
    def test_data(self) -> CIFAR10DataModule:
        return CIFAR10DataModule(self.data_dir, batch_size=512)

    @cached_property
    def found(self) -> MisclassifiedSamples:
        return find_misclassified(self.model, self.test_data)


# --- data ---------------------------------------------------------------------------------------


def class_samples(material: Material) -> Figure:
    return show_class_samples(material.data, per_class=8)


def rgb_channels(material: Material) -> Figure:
    return show_rgb_channels(CHANNELS_OF, material.data)


def augmentations(material: Material) -> Figure:
    return show_augmentations(material.data, indices=AUGMENTED, epochs=5)


# --- errors -------------------------------------------------------------------------------------


def misclassified(material: Material) -> Figure:
    return show_misclassified(material.model, material.found, n=4, columns=1)


def misclassified_contrast(material: Material) -> Figure:
    return show_misclassified(
        material.model,
        material.found,
        n=4,
        columns=2,
        cam="contrast",
        method="layercam",
        target_layers=["layer2", "residual3"],
    )


def home(material: Material) -> Figure:
    return show_misclassified(
        material.model, material.test_data, n=4, sort_by="random", columns=2, cam="predicted"
    )


def confusion_matrix(material: Material) -> Figure:
    return show_confusion_matrix(material.found, fig=new_figure(7, 5.8))


def calibration(material: Material) -> Figure:
    return show_calibration(material.found)


def error_comparison(material: Material) -> Figure:
    other = CustomResNet.from_pretrained("quarter-best")
    names = (material.weights, "quarter-best")
    comparison = compare_errors(material.model, other, material.test_data, names=names)
    return show_error_comparison(comparison, n=2)


def nearest(material: Material) -> Figure:
    data = CIFAR10DataModule(material.data_dir, val_split=0, device="cpu")
    return show_nearest(find_nearest(material.model, material.found[:3], data))


def channel_maps(material: Material) -> Figure:
    layers = ["prep", "layer1", "layer2", "residual3"]
    return show_features(material.model, material.found[0], layers, channels=8)


def filters(material: Material) -> Figure:
    return show_filters(material.model, columns=8)


def doubtful_labels(material: Material) -> Figure:
    """Draw the images that `benchmarks/label_issues.py --clean` wrote."""
    with DOUBTFUL.open() as file:
        rows = list(csv.DictReader(file))
    names = CIFAR10DataModule.classes
    given, suggested = (
        np.array([names.index(row[name]) for row in rows]) for name in ("given", "suggested")
    )
    ranks = {"mean_rank": np.array([float(row["mean_rank"]) for row in rows])}
    indices = np.array([int(row["index"]) for row in rows])
    issues = LabelIssues(indices, given, suggested, {}, ranks, names, "mean_rank")
    return show_label_issues(issues, material.data, n=len(rows))


def draw_history(file: Path, output_dir: Path) -> None:
    """Draw the dataset map of a run, and the image that is forgotten most often."""
    history = ImageHistory.load(file)
    data = CIFAR10DataModule(val_split=0, **Recipe.preset("muon").data_options())
    index = int(history.indices[score_images(history).forgetting.argmax()])
    save(show_dataset_map(history), output_dir / "dataset_map.png", palette=True, dpi=110)
    save(
        show_history(history, index, data), output_dir / "image_history.png", palette=True, dpi=110
    )


# --- network ------------------------------------------------------------------------------------


def receptive_fields(material: Material) -> Figure:
    fields = receptive_field(CustomResNet(), (1, 3, 32, 32))
    image = CIFAR10DataModule.denormalize(material.test_images[0])
    return fields.plot(image, "residual1", [(3, 3), (12, 15)], fig=new_figure(5, 5))


def receptive_field_growth(material: Material) -> Figure:
    return receptive_field(CustomResNet(), (1, 3, 32, 32)).plot_growth(fig=new_figure(6.5, 3.8))


def effective_field(material: Material) -> Figure:
    field = effective_receptive_field(material.model, material.test_images, layer="residual1")
    return field.plot(fig=new_figure(8.4, 3.6))


def training_curves(material: Material) -> Figure:
    with tempfile.TemporaryDirectory() as folder, matplotlib.rc_context({"font.size": 12}):
        shutil.copy(CURVES, Path(folder) / "metrics.csv")  # the name that Lightning uses
        return show_training_curves(folder, fig=new_figure(10.5, 3.6))


def comparison(material: Material) -> Figure:
    found = Comparison.from_results(RESULTS / "accuracy.jsonl", "muon", "best")
    return show_comparison(found)


def pairing(material: Material) -> Figure:
    return show_comparison(Comparison.from_results(RESULTS / "pairing.jsonl"))


def network(material: Material) -> Figure:
    """Draw the blocks of `CustomResNet()` from top to bottom, as defined by the network itself."""
    model = CustomResNet().eval()
    blocks = [(name, block) for name, block in model.named_children() if block is not None]
    shapes = _output_shapes(model, [name for name, _ in blocks])
    total = sum(parameter.numel() for parameter in model.parameters())
    # name, layers, shape of the output, parameters
    rows: list[tuple[str, str, tuple[int, ...], int]]
    rows = [("images", "normalized", (model.in_channels, 32, 32), 0)]
    for name, block in blocks:
        count = sum(parameter.numel() for parameter in block.parameters())
        rows.append((name, _layers(block), shapes[name], count))
    rows.append(("log-softmax", "log-probabilities", shapes["head"], 0))

    step, height, width = 0.8, 0.5, 5.25
    fig = Figure(figsize=(width, step * len(rows) + 0.55), dpi=150)
    axes = fig.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(step * len(rows) + 0.45, -0.1)
    axes.set_axis_off()
    for row, (name, layers, shape, count) in enumerate(rows):
        middle = 0.3 + row * step
        residual = name.startswith("residual")
        color = _COLORS[_kind(name)]
        box = (0.62, middle - height / 2)
        axes.add_patch(
            FancyBboxPatch(
                box,
                3.06,
                height,
                boxstyle="round,pad=0,rounding_size=0.06",
                facecolor=color,
                edgecolor="#444444",
                linewidth=0.8,
            )
        )
        axes.text(0.74, middle - 0.1, name, fontsize=10, weight="bold", va="center")
        axes.text(0.74, middle + 0.12, layers, fontsize=8, va="center")
        axes.text(3.78, middle - 0.1, " x ".join(map(str, shape)), fontsize=9, va="center")
        if count:
            text = f"{count:,} parameters"
            axes.text(3.78, middle + 0.12, text, fontsize=8, va="center", color="#444444")
        below, next_box = middle + height / 2, middle + step - height / 2
        if residual:
            before, plus = middle - step / 2, below + 0.09
            _arrow(axes, [(2.15, before), (0.3, before), (0.3, plus), (2.07, plus)])
            axes.text(0.2, middle, "its input", fontsize=8, rotation=90, va="center", ha="center")
            axes.plot([2.15, 2.15], [below, plus], color="#444444", linewidth=1)
            axes.plot(2.15, plus, "o", markersize=11, color="white", markeredgecolor="#444444")
            axes.text(2.15, plus, "+", fontsize=10, va="center_baseline", ha="center")
            below = plus + 0.077
        if row + 1 < len(rows):
            _arrow(axes, [(2.15, below), (2.15, next_box)])
    axes.text(
        width / 2, step * len(rows) + 0.2, f"{total:,} parameters; conv is 3 x 3 without bias",
        fontsize=9, ha="center", va="center",
    )  # fmt: skip
    return fig


# Light tints, for black text on them.
_COLORS = {"conv": "#D6E6F4", "residual": "#FBE3D0", "pool": "#DDEFDD", "other": "#EEEEEE"}


def _kind(name: str) -> str:
    if name.startswith("residual") or name == "pool":
        return name.rstrip("0123456789")
    return "conv" if name == "prep" or name.startswith("layer") else "other"


def _arrow(axes: Axes, points: list[tuple[float, float]]) -> None:
    *path, last = points
    if path[1:]:
        axes.plot(*zip(*path, strict=True), color="#444444", linewidth=1)
    axes.annotate(
        "", last, path[-1], arrowprops={"arrowstyle": "->", "color": "#444444", "shrinkA": 0}
    )


def _output_shapes(model: CustomResNet, names: list[str]) -> dict[str, tuple[int, ...]]:
    """Run the network on one image and return the shape of each block's output."""
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: shapes.update({name: tuple(output.shape[1:])})

    handles = [model.get_submodule(name).register_forward_hook(note(name)) for name in names]
    with torch.no_grad():
        model(torch.zeros(1, model.in_channels, 32, 32))
    for handle in handles:
        handle.remove()
    return shapes


def _layers(block: nn.Module) -> str:
    """Describe the layers of a block; equal parts are counted."""
    if isinstance(block, nn.Conv2d):
        return f"conv {block.in_channels}-{block.out_channels}"
    if isinstance(block, nn.MaxPool2d):
        return f"MaxPool {block.kernel_size}"
    if isinstance(block, nn.BatchNorm2d):
        return "BatchNorm"
    if isinstance(block, nn.Linear):
        return f"linear {block.in_features}-{block.out_features}, no bias"
    parts = [_layers(part) for part in block.children()]
    if not parts:
        return type(block).__name__
    if len(parts) > 1 and len(set(parts)) == 1:
        return f"{len(parts)} x ({parts[0]})"
    return ", ".join(parts)


# --- files --------------------------------------------------------------------------------------

Draw = Callable[[Material], Figure]

# How to draw each figure, and whether 256 colors are enough for its file (not for photographs).
FIGURES: dict[str, tuple[Draw, bool]] = {
    "augmentations": (augmentations, False),
    "calibration": (calibration, True),
    "channel_maps": (channel_maps, True),
    "class_samples": (class_samples, False),
    "comparison": (comparison, True),
    "confusion_matrix": (confusion_matrix, True),
    "doubtful_labels": (doubtful_labels, False),
    "effective_field": (effective_field, True),
    "error_comparison": (error_comparison, False),
    "filters": (filters, True),
    "home": (home, False),
    "misclassified": (misclassified, False),
    "misclassified_contrast": (misclassified_contrast, False),
    "nearest": (nearest, False),
    "network": (network, True),
    "pairing": (pairing, True),
    "receptive_field_growth": (receptive_field_growth, True),
    "receptive_fields": (receptive_fields, False),
    "rgb_channels": (rgb_channels, False),
    "training_curves": (training_curves, True),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", choices=FIGURES, help="draw only these figures"
    )
    parser.add_argument("--output-dir", type=Path, default=FOLDER)
    parser.add_argument("--data-dir", help="default: $CIFAR10_DIR, else the user's cache folder")
    parser.add_argument(
        "--weights", default="quarter", help="argument of CustomResNet.from_pretrained"
    )
    parser.add_argument(
        "--log", type=Path, help="folder of the TensorBoard log to read the curves from"
    )
    parser.add_argument("--history", type=Path, help="history of a run to draw, and nothing else")
    args = parser.parse_args()

    if args.history:
        draw_history(args.history, args.output_dir)
        return
    if args.log:
        write_curves(args.log, CURVES)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    material = Material(args.data_dir, args.weights)
    for name in args.only or FIGURES:
        draw, palette = FIGURES[name]
        path = args.output_dir / f"{name}.png"
        save(draw(material), path, palette=palette, dpi=220 if name == "home" else 150)
        print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


def save(fig: Figure, path: Path, *, palette: bool, dpi: int) -> None:
    """Write a small PNG without transparency."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=dpi, facecolor="white")
    image: Image.Image = Image.open(buffer).convert("RGB")
    if palette:
        image = image.quantize(256, dither=Image.Dither.NONE)
    image.save(path, optimize=True)


def write_curves(log: Path, path: Path) -> None:
    """Write the scalars of a TensorBoard log in the layout of Lightning's CSVLogger."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log), size_guidance={"scalars": 0})
    events.Reload()
    rows: dict[int, dict[str, Any]] = {}
    names = sorted(
        name
        for name in events.Tags()["scalars"]
        if name.startswith(("train_", "val_", "learning_rate"))
    )
    for name in ("epoch", *names):
        for event in events.Scalars(name):
            value = int(event.value) if name == "epoch" else f"{event.value:.6g}"
            rows.setdefault(event.step, {"step": event.step})[name] = value
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "step", *names], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row for _, row in sorted(rows.items()) if len(row) > 2)


if __name__ == "__main__":
    main()
