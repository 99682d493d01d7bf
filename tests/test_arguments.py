"""Pass wrong arguments to every public function: wrong types, values out of range, and values that
do not fit the others. Check the error type and a message with the value and what was expected.
"""

import contextlib
import inspect
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    Row,
    choices,
    flags,
    functions,
    integers,
    numbers,
    paths,
    row,
    state,
    types_and_values,
)
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import cifar_resnet
from cifar_resnet import (
    Arm,
    CIFAR10DataModule,
    CIFAR100DataModule,
    Comparison,
    CustomResNet,
    ImageClassifier,
    ImageDataModule,
    ImageHistory,
    LastCheckpoint,
    LogMisclassified,
    Recipe,
    TrainingHistory,
    check_receptive_field,
    compare,
    compare_errors,
    compute_cams,
    compute_features,
    effective_receptive_field,
    evaluate_robustness,
    find_label_issues,
    find_misclassified,
    find_nearest,
    load_cifar10,
    make_optimizer,
    make_scheduler,
    predict,
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
    show_samples,
    show_training_curves,
)
from cifar_resnet.training.muon import Muon

# --- valid arguments -----------------------------------------------------------------------------


class Small(nn.Module):
    """A network with two classes for images with one channel; it predicts class 0 for all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3, padding=1)
        self.norm = nn.BatchNorm2d(2)
        self.unused = nn.Identity()
        for weights, value in ((self.conv.weight[0], 1.0), (self.conv.weight[1], -0.5)):
            nn.init.constant_(weights, value)
        nn.init.zeros_(self.conv.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)).mean((2, 3))


def images(number: int = 4) -> Tensor:
    return torch.linspace(0, 1, number * 16).view(number, 1, 4, 4)


def data() -> TensorDataset:
    return TensorDataset(images(), torch.tensor([0, 1, 0, 1]))


def color_pictures() -> tuple[Any, Any]:
    return np.zeros((4, 8, 8, 3), dtype=np.uint8), [0, 1, 0, 1]


@cache
def picture_folder() -> Path:
    folder = Path(tempfile.mkdtemp())
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        Image.new("RGB", (8, 8), (9, 200, len(name))).save(folder / name / "0.png")
    return folder


@cache
def people_folder() -> Path:
    folder = Path(tempfile.mkdtemp())
    np.save(folder / "cifar10h-probs.npy", np.full((10_000, 10), 0.1))
    return folder


def picture_table() -> Any:
    class Table(list):  # type: ignore[type-arg]
        column_names = ["image", "label"]  # noqa: RUF012
        features: dict[str, Any] = {}  # noqa: RUF012

    return Table({"image": Image.effect_noise((8, 8), 9), "label": i} for i in (0, 1))


def color_data() -> TensorDataset:
    return TensorDataset(images().expand(4, 3, 4, 4), torch.tensor([0, 1, 0, 1]))


def with_state(module: nn.Module) -> Any:
    """Give a module gradients, hooks and mixed modes, which a call might disturb."""
    first = next(iter(module.parameters()))
    first.grad = torch.ones_like(first)
    # The normalizations stay in training mode: each pass through them would be seen.
    next(part for part in module.modules() if isinstance(part, nn.Conv2d)).eval()
    norm = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)][-1]
    norm.bias.requires_grad_(False)
    norm.register_forward_hook(lambda *args: None)
    norm.register_forward_pre_hook(lambda *args: None)
    norm.register_full_backward_hook(lambda *args: None)
    return module


@cache
def model() -> Small:
    return with_state(Small())


@cache
def network() -> CustomResNet:
    return with_state(CustomResNet(width=1))


@cache
def found() -> Any:
    return find_misclassified(model(), data())


@cache
def comparison() -> Any:
    return compare_errors(model(), model(), data())


class Linear(nn.Module):
    """A network with a head for two classes, for images with one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(images)).mean((2, 3)))


@cache
def with_head() -> Linear:
    return with_state(Linear())


@cache
def nearest() -> Any:
    return find_nearest(with_head(), images(2), data(), k=2)


@cache
def fields() -> Any:
    return receptive_field(model(), (1, 1, 4, 4))


@cache
def effective() -> Any:
    return effective_receptive_field(model(), images(), layer="conv")


def kernel() -> nn.Parameter:
    return nn.Parameter(torch.ones(2, 2))


def bias() -> nn.Parameter:
    return nn.Parameter(torch.ones(3))


def muon(**options: Any) -> Muon:
    if "orthogonal" in options:  # of a group
        options["params"] = [{name: options.pop(name) for name in ("params", "orthogonal")}]
    return Muon(**options)


# --- arguments that several functions take -------------------------------------------------------

DEVICE = types_and_values(
    "a device or its name, such as 'cpu' or 'cuda:0'", [1.5, True, ["cpu"]], ["gpu", "", "cuda:x"]
)
MODEL = [
    row(value, TypeError, f"model must be a torch.nn.Module, but got {kind}")
    for value, kind in ((None, "NoneType"), ("resnet", "str"), (Small, "type"))
] + [row(nn.LazyLinear(2), ValueError, "Parameter 'weight' has no shape yet (a lazy module)")]
DATA = [
    row(3, TypeError, "data must be a Dataset, a DataLoader, a LightningDataModule"),
    row(
        "data", TypeError, "data must be a Dataset, a DataLoader or a LightningDataModule, but got"
    ),
    row(
        {"train": [], "test": []}, TypeError, "but got a dictionary with the keys ['train', 'test']"
    ),
    row((images(), torch.arange(3)), ValueError, "Labels must be class numbers (N,) for 4 images"),
    row((images()[:, 0], torch.arange(4)), ValueError, "images (N, C, H, W), but they have shape"),
    row(TensorDataset(images()), ValueError, "without labels"),
    row(TensorDataset(images().flatten(1), torch.arange(4)), ValueError, "(N, C, H, W)"),
]
FIGSIZE = types_and_values(
    "a width and a height in inches",
    [6, "ab", (6, "4"), {6, 4}, (True, 4)],
    [(6,), (6, 4, 2), (0, 4), (6, -4), (math.nan, 4), (6, math.inf)],
)
FIG = [
    row(value, TypeError, f"fig must be a Matplotlib figure or subfigure, or None, {got}")
    for value, got in (
        (3, "but got 3"),
        ("errors.png", "but got 'errors.png'"),
        ((6, 4), "but got (6, 4)"),
        (Figure().subplots(), "but got <Axes"),
    )
]
FIGURE: dict[str, list[Row]] = {
    "fig": FIG,
    "figsize": [*FIGSIZE, row((6, 4), ValueError, "Give fig or figsize, not both", fig=Figure())],
}
COLORMAP = [  # Matplotlib's own messages
    *(
        row(value, TypeError, f"a str or Colormap . you passed {value!r} of type")
        for value in (3, ["viridis"], True)
    ),
    *(
        row(value, ValueError, f"{value!r} is not a valid value for cmap")
        for value in ("rainbows", "", "Viridis")
    ),
]
STATISTICS = {
    name: [
        *(
            Row(wrong.value, wrong.error, wrong.message, {other: 0.5})
            for wrong in types_and_values(
                f"{kind} numbers, one or one for each channel",
                ["0.5", True, ("0.5",), {0.5}, {"red": 0.5}, np.ones((1, 1))],
                [math.nan, (math.inf,), (), *outside],
            )
        ),
        row(0.5, ValueError, "Give both mean and std, or neither, but got "),
    ]
    for name, other, kind, outside in (
        ("mean", "std", "finite", []),
        ("std", "mean", "positive", [0, -0.5, (0.0,)]),
    )
}
METHODS = (
    "gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "gradcamelementwise", "eigencam",
    "eigengradcam",
)  # fmt: skip
LAYER = "the name of a submodule or the submodule, or several of them"

# Options of the error figures: wrong for any model and data
OPTIONS = {
    "n": integers(1),
    "sort_by": choices("loss", "confidence", "margin", "index", "random"),
    **{
        name: types_and_values("the number or the name of a class", [1.0, True, [1], b"cat"], [-1])
        for name in ("true_class", "pred_class")
    },
    "cam": choices("both", "predicted", "true", "contrast", None),
    "method": choices(*METHODS),
    "target_layers": [
        *types_and_values(LAYER, [3, True, [3], {"conv"}, ["conv", None], iter(["conv"])], []),
        row([], ValueError, "target_layers is empty"),
    ],
    "reshape_transform": functions("a function from a layer's output to its maps"),
    "alpha": numbers("a number in [0, 1]", -0.01, 1.01),
    "cmap": COLORMAP,
    "top_k": integers(0),
    "columns": integers(1, optional=True),
    "figsize": FIGSIZE,
    "batch_size": integers(1, optional=True),
    "max_samples": integers(1, optional=True),
    "class_names": types_and_values(
        "a sequence of names, or a dictionary of them",
        [3, {"cat"}, b"a", iter(["cat", "dog"])],
        [],
    ),
    **STATISTICS,
    "seed": integers(0),
}
# and wrong for the model and the data that are passed here.
OPTIONS_FOR_THESE = {
    **{
        name: [
            row(2, ValueError, f"{name} must be a number from 0 to 1 or one of 0, 1, but got 2"),
            row("cow", ValueError, f"{name} must be a number from 0 to 1 or one of 0, 1, but got"),
            row(1, ValueError, "true_class and pred_class are both '1'", **{other: "1"}),
        ]
        for name, other in (("true_class", "pred_class"), ("pred_class", "true_class"))
    },
    "target_layers": [
        row("cnv", ValueError, "No layer is called 'cnv'. Close matches: conv."),
        row(nn.ReLU(), ValueError, "The target layer ReLU is not a submodule of the model"),
        row("unused", ValueError, "Layer 'unused' is not called"),
    ],
    "reshape_transform": [
        row(lambda output: [output], ValueError, "must return a tensor (N, C, height, width), but"),
        row(lambda output: output[0], ValueError, "No layer of Small has an output with rows"),
    ],
    "class_names": [
        row(["cat"], ValueError, "class names: cat. Pass class_names with one name for each class")
    ],
    "mean": [row((0.5, 0.5), ValueError, "mean and std have 2 and 1 values", std=1.0)],
    "std": [row((0.5, 0.5), ValueError, "mean and std have 1 and 2 values", mean=0.5)],
}
ALL_OPTIONS = {name: rows + OPTIONS_FOR_THESE.get(name, []) for name, rows in OPTIONS.items()}
OF_FIGURES = (
    "n", "cam", "method", "target_layers", "reshape_transform", "alpha", "cmap", "top_k", "columns",
    "figsize",
)  # fmt: skip
SPLIT = choices("train", "val", "test")

RULE = (
    "A rule must be 'pointwise', 'global', a mapping with kernel_size (and stride, padding, "
    "dilation), or a function of the operation"
)
FIELD = {
    "model": MODEL,
    "input_size": [
        *types_and_values(
            "the shape of the input including the batch, positive integers such as (1, 3, 32, 32)",
            [32, 2.5, "1x1x4x4", (1, 1, 4.0, 4), (1, 1, True, 4), ((1, 1, 4),)],
            [(), (1, 1, 0, 4), (1, 1, -4, 4)],
        ),
        row((1, 1), ValueError, "An input of shape (1, 1) has no spatial dimension"),
        row((1, 2, 4, 4), ValueError, "The model fails on an input of shape (1, 2, 4, 4)"),
        row(None, ValueError, "Pass either input_size, such as (1, 3, 32, 32), or inputs"),
    ],
    "inputs": [
        row((images(1),), ValueError, "Pass either input_size, such as (1, 3, 32, 32), or inputs"),
        *(
            row(value, error, message, input_size=None)
            for value, error, message in (
                (3, TypeError, "inputs must be the arguments to call the model with, but got 3"),
                ({"x": 1}, TypeError, "but got {'x': 1}"),
                ((), ValueError, "the index of a tensor among the 0 inputs, but got 0"),
                (("x",), ValueError, "source must be the index of a tensor among the 1 inputs"),
                ((images(1),) * 2, ValueError, "3 were given. If the model has several inputs,"),
            )
        ),
    ],
    "source": [
        *types_and_values("0 if input_size is given, which describes one input", ["0", None], [1]),
        *(
            row(value, error, "{name} must be the index of a tensor among the 1 inputs, but got "
                f"{value}", inputs=(images(1),), input_size=None)
            for value, error in ((0.0, TypeError), (False, TypeError), (1, ValueError),
                                 (-1, ValueError))
        ),
    ],
    "spatial_dims": types_and_values(
        "dimensions of (1, 1, 4, 4), each once",
        [2, {2, 3}, ("2",), (2.0,), (True,)],
        [(), (4,), (-5,), (2, 2), (2, -2)],
    ),
    "rules": [
        *types_and_values(
            "a mapping from the names of operations to rules",
            [3, "pointwise", {3: "pointwise"}], [],
        ),
        *(
            row({"a::b": rule}, error, f"{RULE}, but got {rule!r}")
            for error, rules in (
                (TypeError, [3, None]),
                (ValueError, ["local", {"stride": 2}, {"kernel_size": 0}, {"kernel_size": "3"},
                              {"kernel_size": 3, "size": 1}]),
            )
            for rule in rules
        ),
    ],
}  # fmt: skip
UNIT = [
    row(value, IndexError, f"Layer 'conv' has units of shape (4, 4), so a unit must be 2 indices, "
        f"each at least 0 and below that size, but got {value!r}")
    for value in (3, "ab", (0.5, 0), (True, 0), (4, 0), (-1, 0), (0,), (0, 0, 0))
]  # fmt: skip
RECIPE = [
    *types_and_values(
        "a Recipe or one of ('adam', 'sgd', 'muon', 'best', 'onecycle')", [3, None], []
    ),
    row("bets", ValueError, "There is no recipe 'bets'; choose one of ('adam', "),
    row({"warmup": 2}, ValueError, "warmup must be a number in [0, 1], but got 2"),
]
RECIPE_OF_DATA = {
    "batch_size": integers(1),
    "crop_padding": integers(0),
    "cutout": integers(0),
    "flip": choices("random", "alternating", "none"),
}
RECIPE_OF_NETWORK = {
    "norm_first": flags(),
    "activation": choices("relu", "gelu"),
    "residual2": flags(),
    "head_scale": numbers("a finite number greater than 0", 0, -1),
}
IMAGES = [
    row([[1.0]], TypeError, "expects a float tensor of shape (N, 3, 32, 32), but got list"),
    row(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), TypeError, "torch.uint8 and shape (2, 3"),
    row(torch.zeros(2, 3, 32, 32).double(), TypeError, "images.to(torch.float32)"),
    row(torch.zeros(3, 32, 32), ValueError, "but got (3, 32, 32). Add the batch dimension"),
    row(torch.zeros(2, 1, 32, 32), ValueError, "(N, 3, 32, 32), but got (2, 1, 32, 32)"),
    row(torch.zeros(2, 32, 32, 3), ValueError, "channels seem to come last"),
    row(torch.zeros(2, 3, 28, 28), ValueError, "but got (2, 3, 28, 28). Resize them"),
]
TRANSFORM = (
    "a callable from a PIL image to a tensor, such as torchvision.transforms.v2.Compose([...])"
)
FOUND = [
    row(value, TypeError, f" expects the result of find_misclassified(model, data), but got {kind}")
    for value, kind in (([1, 2], "list"), (None, "NoneType"), (3, "int"))
]
CLASSES = "a class number, or one for each of the 2 images"
CURVES = "log must map names to (epochs, values), sequences of numbers of the same length"
CLASS = "the number or the name of a class"
SIZES_OF_THE_NETWORK = types_and_values(
    "a multiple of 8, or a height and a width that are",
    ["32", True, 32.0, None, {32}, (32, 8.0)],
    [0, -8, 4, 33, (32,), (8, 8, 8), (16, 12)],
)


# --- one table of wrong arguments for each function ----------------------------------------------

TABLES: dict[str, tuple[Callable[[], Callable[..., Any]], dict[str, list[Row]]]] = {}


def table(call: str, valid: Callable[[], Callable[..., Any]], /, **rows: list[Row]) -> None:
    """Add the wrong values of each argument. `valid` returns the function with valid arguments."""
    TABLES[call] = valid, rows


@cache
def new_test_folder() -> Path:
    folder = Path(tempfile.mkdtemp())
    np.save(folder / "cifar10.1_v6_data.npy", np.zeros((4, 32, 32, 3), dtype=np.uint8))
    np.save(folder / "cifar10.1_v6_labels.npy", np.arange(4))
    return folder


table(
    "evaluate_robustness",
    lambda: partial(evaluate_robustness, model=network(), directory=new_test_folder()),
    model=MODEL,
    directory=[
        *paths(none=True),
        row("nowhere", ValueError, "directory must be a folder, but 'nowhere' is not one"),
    ],
    data_dir=[wrong._replace(others={"directory": people_folder()}) for wrong in paths()],
    baseline=types_and_values(
        "a dictionary from corruptions to errors in (0, 1]", [3, "fog", [0.5]], [{"mist": 0.5}]
    ),
    **STATISTICS,
    batch_size=integers(1),
    device=DEVICE,
)


@cache
def history() -> ImageHistory:
    values = np.ones((3, 2), dtype=np.float32)
    none = np.zeros(3, dtype=np.int64)
    return ImageHistory(values, values, np.zeros((3, 2), np.int16), np.arange(3), none)


HISTORY = [
    row(value, TypeError, f"history must be an ImageHistory, but got {type(value).__name__}.")
    for value in (None, "history.npz", {"loss": 3})
]
HISTORY_FILE = [
    *paths(none=True),
    *(
        row(value, ValueError, f"path must end in .npz, but got {value!r}.")
        for value in ("history", "history.npy", "history.NPZ")
    ),
]
INDEX = [
    *types_and_values("an integer", ["1", 1.0, True, None], []),
    row(3, IndexError, "one of the 3 training images, such as 0, 1, 2, but got 3."),
    row(-1, IndexError, "but got -1. Images that were held out or excluded have no history"),
]
SCORES = choices(
    "mean_rank", "area_under_margin", "confidence", "loss", "forgetting", "learned",
    "last_confidence",
)  # fmt: skip
IMAGE_DATA = [
    row(value, TypeError, f"data must be an ImageDataModule, but got {type(value).__name__}.")
    for value in (3, "data", (1, 2))
]
table("ImageHistory.row", lambda: history().row, index=INDEX)
table("ImageHistory.save", lambda: history().save, path=HISTORY_FILE)
table("ImageHistory.load", lambda: ImageHistory.load, path=HISTORY_FILE)
table(
    "TrainingHistory",
    lambda: TrainingHistory,
    path=[wrong for wrong in HISTORY_FILE if wrong.value is not None],
    scores_from=[
        row(value, TypeError, "scores_from must be the name of a submodule, such as 'model', but")
        for value in (3, nn.Identity(), ["model"])
    ],
)
table("score_images", lambda: score_images, history=HISTORY)
table("find_label_issues", lambda: partial(find_label_issues, history=history()),
      history=HISTORY, by=SCORES)  # fmt: skip
table("LabelIssues.top", lambda: find_label_issues(history()).top, k=integers(1))
table("LabelIssues.sorted_by", lambda: find_label_issues(history()).sorted_by, by=SCORES)
table("LabelIssues.to_csv", lambda: find_label_issues(history()).to_csv, path=paths(none=True))
table("show_dataset_map", lambda: partial(show_dataset_map, history=history()),
      history=HISTORY, **FIGURE)  # fmt: skip
table("show_history", lambda: partial(show_history, history=history(), index=0),
      history=HISTORY, index=INDEX, data=IMAGE_DATA, **FIGURE)  # fmt: skip
table(
    "show_label_issues",
    lambda: partial(
        show_label_issues, issues=find_label_issues(history()), data=CIFAR10DataModule()
    ),
    issues=[
        row(..., TypeError, f"issues must be a LabelIssues, but got {type(value).__name__}.",
            issues=value, data=None)
        for value in (3, None, [1])
    ],
    data=[row(..., wrong.error, wrong.message, issues=find_label_issues(history()),
              data=wrong.value) for wrong in IMAGE_DATA],
    n=integers(1),
    **FIGURE,
)  # fmt: skip

# of ImageDataModule, and of CIFAR10DataModule, which passes them on
DATA_OPTIONS: dict[str, list[Row]] = dict(
    batch_size=integers(1),
    val_split=types_and_values(
        "a count in [0, 50000) or a fraction in [0, 1) of the 50000 training images",
        ["0.1", True, (5000,)],
        [50_000, -1, 1.0, -1e-9, 0.999999, math.nan, math.inf],
    ),
    num_workers=integers(0),
    seed=integers(0),
    **{name: flags() for name in ("shuffle", "pin_memory", "drop_last")},
    persistent_workers=flags(),
    crop_padding=[
        *integers(0, optional=True),
        row(32, ValueError, "crop_padding must be less than 32 pixels"),
    ],
    flip=choices("random", "alternating", "none"),
    cutout=[
        *integers(0),
        row(33, ValueError, "cutout must be at most 32 pixels (the image's side), but got 33"),
    ],
    padding_mode=choices("reflect", "constant"),
    **{
        name: functions(TRANSFORM)
        for name in ("train_transforms", "val_transforms", "test_transforms")
    },
    device=DEVICE,
    train_indices=[
        *(
            row(value, TypeError, "train_indices must be a sequence of different integers from 0")
            for value in (3, {1, 2}, "12", [1.0], np.array([0.5]))
        ),
        row([1, 50_000], ValueError, "but it contains 50000."),
        row([-1], ValueError, "but it contains -1."),
        row([4, 5, 4], ValueError, "but it contains 4 more than once."),
        row([], ValueError, "but it is empty."),
        row([True, False], TypeError, "True. Convert a mask with numpy.flatnonzero(mask)."),
        row(range(46_000), ValueError, "which leaves fewer than the 5000 of val_split"),
        row([1], ValueError, "so subset=0.5 cannot change them", subset=0.5),
        row([1], ValueError, "so folds=(0, 5) cannot change them", folds=(0, 5)),
        row([1], ValueError, "so imbalance=10 cannot change them", imbalance=10),
        row([1], ValueError, "so exclude='1 images (SHA-256", exclude=[3]),
    ],
    exclude=[
        *(
            row(value, TypeError, "exclude must be a sequence of different integers from 0")
            for value in (3, {1, 2}, "12", [1.0], np.array([0.5]))
        ),
        row([1, 50_000], ValueError, "but it contains 50000."),
        row([-1], ValueError, "but it contains -1."),
        row([4, 5, 4], ValueError, "but it contains 4 more than once."),
        row([True, False], TypeError, "True. Convert a mask with numpy.flatnonzero(mask)."),
    ],
    sample_weights=[
        *(
            row(value, TypeError, "sample_weights must be a sequence of 50000 finite numbers of at")
            for value in (1.0, {1.0}, ["1"] * 50_000, [True] * 50_000, [[1.0], [1.0, 2.0]])
        ),
        row([1.0], ValueError, "one for each training image, but got the shape (1,)"),
        row([1.0] * 49_999 + [-1], ValueError, "but sample_weights[49999] is -1.0"),
        row([math.nan] + [1.0] * 49_999, ValueError, "but sample_weights[0] is nan"),
        row([1] * 50_000, ValueError, "both choose the images", sampling="balanced"),
        row([1] * 50_000, ValueError, "sample_weights draw the training images at", shuffle=False),
    ],
    subset=[
        *types_and_values(
            "a count in [1, 45000] or a fraction in (0, 1] of the 45000 training images that the "
            "other arguments leave",
            ["0.1", True, (5000,)],
            [0, 45_001, 0.0, 1.1, -0.5, 1e-9, math.nan],
        ),
        row(9001, ValueError, "a count in [1, 9000]", class_subset=(0, 1)),
    ],
    class_subset=[
        *(
            row(value, TypeError, "class_subset must be at least two different classes of airplane")
            for value in (3, "cat", {"cat", "dog"}, [None, 1])
        ),
        row(["cat"], ValueError, "different classes of airplane, "),
        row(["cat", 3], ValueError, "but got ['cat', 3]"),
        row(["cat", "cow"], ValueError, "but got 'cow'"),
        row([1, 10], ValueError, "but got 10"),
        row([1, True], TypeError, "the number or the name of a class, but got True"),
    ],
    folds=[
        *types_and_values(
            "(k, of) with integers 0 <= k < of and 2 <= of <= 5000",
            [5, (0.0, 5), (True, 5), ("0", 5), {0, 5}],
            [(5, 5), (-1, 5), (0, 1), (0, 5001), (0,), (0, 1, 2)],
        ),
        row((0, 5), ValueError, "folds=(0, 5) and val_split=0 both choose", val_split=0),
    ],
    imbalance=[
        *numbers("a number in [1, 5000]", 0.5, 0, 5001),
        row(4501, ValueError, "the largest has 4500 training images. Pass at most 4500"),
    ],
    sampling=[
        *choices("uniform", "balanced"),
        row("balanced", ValueError, "at random, but shuffle is False", shuffle=False),
    ],
    label_noise=numbers("a number in [0, 1]", -0.1, 1.1),
    label_noise_kind=[
        *choices("symmetric", "asymmetric"),
        row("asymmetric", ValueError, "because label_noise is 0. Pass the fraction of labels"),
        row(
            "asymmetric", ValueError, "changes 'cat' to 'dog', but class_subset is ('cat', 'ship')",
            label_noise=0.1, class_subset=("cat", "ship"),
        ),
    ],
    label_noise_pairs=[
        *types_and_values(
            "a dictionary from names of classes to names of other classes",
            [3, "cat", ["cat", "dog"], {3: 5}], [{}, {"cat": "cat"}],
        ),
        row({"cat": "cow"}, ValueError, "there is no class 'cow'"),
        row({"cat": "dog"}, ValueError, "have no effect, because label_noise_kind is 'symmetric'"),
    ],
    label_noise_seed=[*integers(0), row(3, ValueError, "label_noise_seed=3 have no effect")],
    mix=choices(None, "mixup", "cutmix", "both"),
    mix_alpha=[
        *numbers("a finite number greater than 0", 0, -1),
        row(0.2, ValueError, "mix_alpha=0.2 and mix_probability=1.0 have no effect"),
    ],
    mix_probability=[
        *numbers("a number in [0, 1]", -0.1, 1.1),
        row(0.5, ValueError, "because mix is None. Pass mix='mixup', mix='cutmix' or mix='both'."),
    ],
)  # fmt: skip

table(
    "CIFAR10DataModule", lambda: CIFAR10DataModule, data_dir=paths(), download=flags(),
    **DATA_OPTIONS,
)  # fmt: skip
table(
    "CIFAR100DataModule", lambda: partial(CIFAR100DataModule, val_split=5000),
    data_dir=paths(), download=flags(), labels=choices("fine", "coarse"),
    **{
        name: rows for name, rows in DATA_OPTIONS.items()
        if name not in ("class_subset", "folds", "imbalance", "subset")
        and not name.startswith("label_noise")
    },
    class_subset=[
        row(value, TypeError, "at least two different classes of apple, aquarium_fish, ")
        for value in (3, "fox", [None, 1])
    ],
    folds=[
        row(value, error, "(k, of) with integers 0 <= k < of and 2 <= of <= 500, but got")
        for value, error in ((5, TypeError), ((0, 501), ValueError), ((5, 5), ValueError))
    ],
    imbalance=numbers("a number in [1, 500]", 0.5, 501),
    subset=DATA_OPTIONS["subset"][:9],
    label_noise=DATA_OPTIONS["label_noise"],
    label_noise_kind=[
        *choices("symmetric", "asymmetric"),
        row("asymmetric", ValueError, "Pass label_noise_pairs, a dictionary", label_noise=0.1),
    ],
    label_noise_seed=DATA_OPTIONS["label_noise_seed"],
    label_noise_pairs=[
        *DATA_OPTIONS["label_noise_pairs"][:4],
        row({"fox": "cow"}, ValueError, "there is no class 'cow'"),
    ],
)  # fmt: skip
table(
    "ImageDataModule",
    lambda: partial(ImageDataModule, train=CIFAR10DataModule()._set),
    train=[
        row(value, TypeError, "train must be (images, labels), a pair of arrays or tensors, or")
        for value in (None, "digits", images(), {"train": []})
    ],
    test=[
        row(value, TypeError, "test must be (images, labels)", train=color_pictures())
        for value in (3, "digits", images())
    ],
    classes=[
        row(3, TypeError, "class_names must be a sequence of names", train=color_pictures()),
        row({"cat"}, TypeError, "class_names must be", train=color_pictures()),
        row(["cat"], ValueError, "from 0 to 0", train=color_pictures()),
    ],
    mean=[*STATISTICS["mean"], row([0, 0], ValueError, "each of the 3 channels", std=1)],
    std=STATISTICS["std"],
    **DATA_OPTIONS,
)

SIZES = types_and_values(
    "a height and a width of at least 1 pixel, or one number for both",
    ["32", True, 32.0, (32, 8.0), {32}], [0, -8, (32,), (8, 8, 8)],
)  # fmt: skip
UNKNOWN_OPTION = [
    row(value, TypeError, "unexpected keyword argument 'options'") for value in (1, {}, None)
]
table(
    "ImageDataModule.from_folder",
    lambda: partial(ImageDataModule.from_folder, directory=picture_folder(), test_fraction=0.0),
    directory=paths(none=True),
    size=[*SIZES, row(None, TypeError, "size must be a height and a width")],
    test_fraction=types_and_values("a number in [0, 1)", ["0.1", True], [-0.1, 1.0, math.nan]),
    options=UNKNOWN_OPTION,
)
table(
    "ImageDataModule.from_torchvision",
    lambda: partial(ImageDataModule.from_torchvision, dataset=color_data()),
    dataset=[
        row(value, ValueError, f"but got {value!r}. Create other datasets", root=".")
        for value in ("", "Mnist", "EMNIST")
    ],
    root=[
        wrong._replace(others={"dataset": "MNIST"}) for wrong in paths("the folder of the dataset")
    ],
    test=[
        row(3, TypeError, "test must be (images, labels)"),
        row([], ValueError, "test is empty"),
        row([], ValueError, "test has no effect, because 'MNIST'", dataset="MNIST"),
    ],
    download=flags(),
    size=SIZES,
    options=UNKNOWN_OPTION,
)
table(
    "ImageDataModule.from_huggingface",
    lambda: partial(ImageDataModule.from_huggingface, dataset=picture_table()),
    dataset=[
        row(value, TypeError, "of the library datasets, but got") for value in (None, [], "mnist")
    ],
    test=[row(value, TypeError, "has no len()") for value in (3, 1.5, True)],
    image=[
        row(value, ValueError, "one of the columns 'image', 'label', but got")
        for value in ("img", 3, "")
    ],
    label=[
        row(value, ValueError, "one of the columns 'image', 'label', but got")
        for value in ("target", 3, "")
    ],
    size=SIZES,
    options=UNKNOWN_OPTION,
)

for method in ("indices", "labels"):
    options = {"clean": flags()} if method == "labels" else {}
    table(
        f"CIFAR10DataModule.{method}",
        partial(getattr, CIFAR10DataModule(), method),
        split=choices("train", "val", "test"),
        **options,
    )

table(
    "load_cifar10",
    lambda: load_cifar10,
    split=choices("train", "test"),
    data_dir=paths(),
    download=flags(),
)

table(
    "CIFAR10DataModule.denormalize",
    lambda: CIFAR10DataModule.denormalize,
    images=[
        row([[1.0]], TypeError, "denormalize expects a floating-point tensor, but got [[1.0]]"),
        row(np.zeros((3, 4, 4)), TypeError, "denormalize expects a floating-point tensor"),
        row(torch.zeros(3, 4, 4).byte(), TypeError, "tensor, but got torch.uint8"),
        row(torch.zeros(4, 1, 5, 5), ValueError, "(..., 3, H, W), but got (4, 1, 5, 5)"),
        row(torch.zeros(3, 4), ValueError, "(..., 3, H, W), but got (3, 4)"),
    ],
)

table(
    "CustomResNet",
    lambda: partial(CustomResNet, width=1),
    width=integers(1),
    num_classes=integers(1),
    in_channels=integers(1),
    **RECIPE_OF_NETWORK,
    image_size=SIZES_OF_THE_NETWORK,
)

table(
    "CustomResNet.at_size",
    lambda: lambda **options: network().at_size(**options).__enter__(),
    image_size=SIZES_OF_THE_NETWORK,
)

table("CustomResNet.features", lambda: network().features, images=IMAGES)

table("CustomResNet.forward", lambda: network().forward, images=IMAGES)

table(
    "CustomResNet.from_pretrained",
    lambda: CustomResNet.from_pretrained,
    source=[
        *types_and_values(
            "the name of trained weights or a path", [3, None, b"quarter", True, ["full"]], []
        ),
        row("half", ValueError, "There are no weights 'half'; choose one of ('quarter', "),
        row("", ValueError, "There are no weights ''"),
        row("no.safetensors", FileNotFoundError, "There is no file 'no.safetensors'"),
        row(Path("no.ckpt"), FileNotFoundError, "There is no file 'no.ckpt'"),
    ],
)

table("CustomResNet.logits", lambda: network().logits, images=IMAGES)

table(
    "CustomResNet.save_pretrained",
    lambda: partial(network().save_pretrained, path="nowhere/own.safetensors"),
    path=[
        *paths(none=True),
        row("own.pt", ValueError, "path must end in .safetensors, but got 'own.pt'"),
        row("nowhere/own.safetensors", FileNotFoundError, "There is no folder 'nowhere'"),
    ],
    half=flags(),
    training=[
        *types_and_values("a dictionary", [3, "adam", ["adam"]], []),
        row(
            {"who": {1}},
            TypeError,
            "training must hold only values that JSON allows: Object of type",
        ),
        row(
            {"loss": math.nan},
            ValueError,
            "training must hold only values that JSON allows: Out of",
        ),
    ],
)

table("EffectiveReceptiveField.plot", lambda: effective().plot, log=flags(), **FIGURE)

table(
    "EffectiveReceptiveField.side",
    lambda: effective().side,
    mass=numbers("a fraction in (0, 1]", 0, -0.1, 1.01),
)

table(
    "ImageClassifier",
    lambda: partial(ImageClassifier, network=model(), num_classes=2),
    network=types_and_values("a torch.nn.Module", ["resnet", None, Small], []),
    recipe=RECIPE,
    num_classes=[
        *integers(2, optional=True),
        row(None, ValueError, "must be an integer of at least 2, but got None"),
        row(3, ValueError, "but CustomResNet has 10 classes. Build", network=network()),
    ],
    class_weights=types_and_values(
        "a sequence of 2 numbers of at least 0, one for each class",
        [3, "12", ["1", 2], [True, 1.0], {1.0, 2.0}],
        [[1.0], [1.0, -1.0], [0, 0], [1.0, math.nan], [1, math.inf]],
    ),
    loss=[
        *types_and_values(
            "a function of scores (N, classes) and labels that returns the mean loss",
            [3, "focal", nn.CrossEntropyLoss],
            [],
        ),
        row(nn.Linear(2, 1), ValueError, "loss has trainable parameters, which the optimizer"),
        row(nn.NLLLoss(), ValueError, "label_smoothing=0.1, which a custom loss", recipe="sgd"),
        row(nn.NLLLoss(), ValueError, "pass either loss or class_weights", class_weights=[1, 2]),
    ],
)

table(
    "LastCheckpoint",
    lambda: partial(LastCheckpoint, dirpath="nowhere"),
    dirpath=paths(none=True),
    every_seconds=types_and_values(
        "a number of at least 0", ["30", True, None, [1.0]], [-1, math.nan, -math.inf]
    ),
)

table("LayerField.center", lambda: fields()["conv"].center, unit=UNIT)

table("LayerField.pixels", lambda: fields()["conv"].pixels, unit=UNIT)

table("LayerField.region", lambda: fields()["conv"].region, unit=UNIT, clip=flags())

table(
    "LayerField.seen",
    lambda: fields()["conv"].seen,
    axis=[
        *types_and_values("an integer from 0 to 1", ["0", 0.0, True], []),
        row(2, IndexError, "axis must be an integer from 0 to 1, but got 2"),
        row(-1, IndexError, "axis must be an integer from 0 to 1, but got -1"),
    ],
)

table(
    "LogMisclassified",
    lambda: LogMisclassified,
    n=integers(1),
    save_dir=[*paths(), row(__file__, NotADirectoryError, "is a file; give a folder")],
    options=[
        *(
            Row(..., error, message.replace("{name}", name), {name: value, **others})
            for name, rows in OPTIONS.items()
            if name != "n"
            for value, error, message, others in rows
        ),
        *(
            row(..., TypeError, f"There is no option {name!r}; there are n, ", **{name: 3})
            for name in ("layers", "device", "data", "fig", "save_path", "dpi")
        ),
    ],
)

table("MisclassifiedSamples.most_confused", lambda: found().most_confused, n=integers(1))

table("ErrorComparison.group", lambda: comparison().group, wrong=choices("a", "b", "both"))

table(
    "MisclassifiedSamples.where",
    lambda: found().where,
    **{name: ALL_OPTIONS[name] for name in ("true_class", "pred_class")},
)

table(
    "Muon",
    lambda: partial(muon, params=[kernel()], lr=0.1),
    params=[
        row([], ValueError, "empty parameter list"),
        row([3], TypeError, "can only optimize Tensors, but one of the params is int"),
        row([bias()], ValueError, "least 2 dimensions, but one has shape (3,)", orthogonal=True),
    ],
    lr=numbers("a finite number of at least 0", -1e-9),
    momentum=numbers("a number in [0, 1)", -0.01, 1),
    weight_decay=numbers("a finite number of at least 0", -1e-9),
    orthogonal=flags(),
)

table(
    "Muon.add_param_group",
    lambda: Muon([kernel()], 0.1).add_param_group,
    param_group=[
        row([kernel()], TypeError, "A group of parameters must be a dictionary, but got ["),
        row({"params": [kernel()], "lr": "1"}, TypeError, "lr must be a finite number of at"),
        row({"params": [kernel()], "lr": -1}, ValueError, "at least 0, but got -1"),
        row({"params": [bias()], "orthogonal": True}, ValueError, "group with orthogonal=False"),
    ],
)

table(
    "ReceptiveFields.plot",
    lambda: partial(fields().plot, layer="conv"),
    image=[
        row("cat.png", ValueError, "like the analyzed input, but got 'cat.png'"),
        row(torch.zeros(3, 28, 28), ValueError, "but got (3, 28, 28)"),
        row(torch.full((4, 4), 1.5), ValueError, "but its values range from 1.50 to 1.50"),
        row(np.full((4, 4), -0.5), ValueError, "but its values range from -0.50 to -0.50"),
    ],
    layer=[
        row(value, KeyError, f"No layer of this network is called {value!r}")
        for value in (3, "cnv", True)
    ],
    units=[
        *types_and_values("a sequence of units, such as [(0, 0), (1, 2)]", [3, {(0, 0)}], []),
        row([], ValueError, "units must be at least one unit, or None, but got []"),
        *(row([value], error, message) for value, error, message, _ in UNIT),
    ],
    **FIGURE,
)

table("ReceptiveFields.plot_growth", lambda: fields().plot_growth, **FIGURE)

table("ReceptiveFields.table", lambda: fields().table, every_layer=flags())

table("ReceptiveFields.to_markdown", lambda: fields().to_markdown, every_layer=flags())

table(
    "Recipe",
    lambda: Recipe,
    name=types_and_values("a string", [3, None, b"adam"], []),
    optimizer=choices("adam", "sgd", "muon"),
    learning_rate=numbers("a finite number greater than 0", 0, -0.1),
    conv_learning_rate=numbers("a finite number greater than 0", 0, -0.1),
    momentum=numbers("a number in [0, 1)", -0.01, 1),
    weight_decay=numbers("a finite number of at least 0", -1e-9),
    schedule=choices("constant", "linear", "onecycle"),
    warmup=numbers("a number in [0, 1]", -0.01, 1.01),
    image_scale=numbers("a number in (0, 1]", 0, -0.1, 1.01),
    image_scale_until=numbers("a number in [0, 1]", -0.01, 1.01),
    div_factor=numbers("a finite number greater than 0", 0, -1),
    final_div_factor=numbers("a finite number greater than 0", 0, -1),
    anneal_strategy=choices("cos", "linear"),
    three_phase=[
        *flags(),
        row(True, ValueError, "warmup must be at most 0.5 with three_phase=True", warmup=0.6),
    ],
    cycle_momentum=flags(),
    base_momentum=numbers("a number in [0, 1)", -0.01, 1),
    max_momentum=numbers("a number in [0, 1)", -0.01, 1),
    norm_bias_lr_scale=numbers("a finite number greater than 0", 0, -1),
    label_smoothing=numbers("a number in [0, 1)", -0.01, 1),
    tta=choices("none", "mirror", "six"),
    **RECIPE_OF_DATA,
    **RECIPE_OF_NETWORK,
)

table(
    "Recipe.image_scale_at",
    lambda: Recipe.preset("sgd").image_scale_at,
    progress=numbers("a finite number of at least 0", -1e-9),
)

table(
    "Recipe.learning_rate_factor",
    lambda: Recipe.preset("sgd").learning_rate_factor,
    progress=numbers("a finite number of at least 0", -1e-9),
)

table(
    "Recipe.preset",
    lambda: Recipe.preset,
    name=[
        *types_and_values(
            "one of ('adam', 'sgd', 'muon', 'best', 'onecycle')", [3, None, ["adam"]], []
        ),
        row("adma", ValueError, "There is no recipe 'adma'; choose one of ('adam', 'sgd', "),
    ],
)

table(
    "check_receptive_field",
    lambda: partial(check_receptive_field, model=model(), input_size=(1, 1, 4, 4)),
    **FIELD
    | {
        "input_size": [
            *FIELD["input_size"],
            row((2, 1, 4, 4), ValueError, "with a batch of 1, but got torch.float32 of shape (2,"),
        ]
    },
    positions=integers(1, instead=", or None for all", optional=True),
    batch_size=integers(1),
)

table(
    "Predictions.top",
    lambda: predict(network(), images(1)[0]).top,
    k=integers(1),
)


def of_arms(function: Callable[..., Any]) -> Callable[..., Any]:
    """Pass the argument `arms` as positional arguments; the default ones are two recipes."""

    def call(arms: Any = ("adam", "sgd"), **options: Any) -> Any:
        return function(*arms, **options)

    return call


@cache
def compared() -> Comparison:
    recipe, where = Recipe().to_dict(), {"width": 16, "epochs": 1, "precision": "32-true"}
    line = {"recipe": recipe, "seed": 0, "held_out": True, "acc": 0.5, "network": "own", **where}
    return Comparison(("A", "B"), {"A": {0: line}, "B": {0: line}}, "acc")


@cache
def result_file() -> Path:
    file = Path(tempfile.mkdtemp()) / "results.jsonl"
    lines = [
        {
            "recipe": Recipe.preset(name).to_dict(), "width": 16, "epochs": 1, "seed": 0,
            "held_out": True, "precision": "32-true", "acc": 0.5,
        }
        for name in ("adam", "sgd")
    ]  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def from_file(*arms: Any, results: Any = None, **options: Any) -> Comparison:
    file = result_file() if results is None else results
    return Comparison.from_results(file, *arms, **options)


EVERY_METRIC = choices(
    "acc_six", "acc_mirror", "acc", "loss", "ece", "train_acc", "train_seconds", None
)
PRECISION = choices("32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true", None)
WRONG_ARMS = [
    row(("adam", 3), TypeError, "An arm must be a Recipe, an Arm, or a string such as"),
    row(("adam", None), TypeError, "but got None"),
    row(("adam", "none"), ValueError, "There is no recipe 'none'"),
    row(("adam", "sgd lr=1"), ValueError, "but got 'lr=1'"),
]

table(
    "Arm",
    lambda: partial(Arm, recipe="sgd"),
    recipe=[
        row(3, TypeError, "recipe must be a Recipe or one of ('adam', "),
        row(None, TypeError, "but got None"),
        row("none", ValueError, "There is no recipe 'none'"),
    ],
    name=[
        *types_and_values("a string or None", [3, True, b"x", ["sgd"]], []),
        row("  ", ValueError, "name must not be empty, but got '  '"),
    ],
    network=functions("a function that builds a network, or None"),
    width=integers(1, instead=" or None", optional=True),
    data=[
        *types_and_values("a dictionary of options", [3, "mixup", ["mix"]], []),
        row({"val_split": 1}, ValueError, "but got 'val_split': the comparison sets it"),
        row({"none": 1}, ValueError, "but got 'none': there is no such option"),
        row({"subset": np.int64(3)}, TypeError, "data['subset'] must be a number, a string, or"),
    ],
)

table(
    "compare",
    lambda: of_arms(partial(compare, precision="32-true", width=1, epochs=1, seeds=1)),
    arms=[
        *WRONG_ARMS,
        row((), ValueError, "A comparison needs at least two arms, but got []"),
        row(("adam", "adam"), ValueError, "The arms 'adam' do not differ"),
    ],
    seeds=types_and_values(
        "an integer of at least 1, or a sequence of different integers of at least 0",
        ["3", 2.5, True, None, {0, 1}, [0.5], ["0"]],
        [0, -1, [], [-1], [1, 1]],
    ),
    width=integers(1),
    epochs=integers(1),
    results=paths(),
    final=flags(),
    sequential=flags(),
    metric=[*EVERY_METRIC, row("acc_six", ValueError, "needs tta='six' in the recipe of every")],
    detect=[
        each
        for each in numbers("a finite number greater than 0", 0, -0.1)
        if each.value is not None
    ],
    confidence=numbers("a number between 0 and 1", 0, 1, 95),
    power=numbers("a number between 0 and 1", 0, 1, 80),
    precision=PRECISION,
    data_dir=paths(),
)

table(
    "Comparison.from_results",
    lambda: of_arms(from_file),
    results=[
        row(..., TypeError, "results must be a path or several paths, but got 3", results=3),
        row(..., TypeError, "results must be a path or several paths, but got 3", results=[3]),
        row(..., ValueError, "results must be a path or several paths", results=""),
        row(..., FileNotFoundError, "none.jsonl has no results", results="none.jsonl"),
    ],
    arms=WRONG_ARMS,
    width=[
        *integers(1, instead=" or None", optional=True),
        row(3, ValueError, "The results do not have runs with width=3, only with 16"),
    ],
    epochs=integers(1, instead=" or None", optional=True),
    held_out=[each for each in flags() if each.value is not None],
    precision=PRECISION,
    metric=[*EVERY_METRIC, row("loss", ValueError, "that the runs of all arms report, acc, but")],
    options=[
        row(..., TypeError, "unexpected keyword argument 'none'", none=1),
        row(..., ValueError, "confidence must be a number between 0 and 1", confidence=1),
        row(..., ValueError, "power must be greater than the error rate of 0.05", power=0.01),
        row(..., ValueError, "detect must be a finite number greater than 0", detect=0),
    ],
)

table(
    "show_comparison",
    lambda: partial(show_comparison, comparison=compared()),
    comparison=[
        row(value, TypeError, f"of compare(...) or Comparison.from_results(...), but got {kind}")
        for value, kind in ((3, "int"), (None, "NoneType"), ("muon", "str"))
    ],
    metric=[each for each in choices("acc") if each.value is not None],
    **FIGURE,
)

table(
    "Comparison.to_markdown",
    lambda: compared().to_markdown,
    metrics=[
        *types_and_values("a sequence of names of metrics", [3, {"acc"}, b"acc"], []),
        row("acc", TypeError, "metrics must be a sequence of names of metrics, but got 'acc'"),
        row(["loss"], ValueError, "metrics must be one of 'acc', but got 'loss'"),
        row([], ValueError, "metrics must be a sequence of names of metrics, but got []"),
    ],
)

table(
    "predict",
    lambda: partial(predict, model=network(), images=images(1)[0]),
    model=MODEL,
    images=[
        row(3, TypeError, "images must be an image or a sequence of them: paths, PIL images"),
        row([None], TypeError, "but image 0 is of the type NoneType"),
        row([], ValueError, "images is empty; expected an image or a sequence of them"),
        row("none.png", ValueError, "'none.png' cannot be classified: it is not a file that"),
        row(torch.rand(2, 4, 4), ValueError, "1, 3 or 4 channels, but has (2, 4, 4)"),
    ],
    size=types_and_values(
        "a height and a width, or one number for both",
        [4.0, True, "4", (4, "4"), {4}],
        [0, -1, (4,), (4, 4, 4), (0, 4)],
    ),
    **STATISTICS,
    class_names=ALL_OPTIONS["class_names"],
    batch_size=integers(1),
    device=DEVICE,
)

NAMES = types_and_values(
    "two different names for the classifiers",
    [3, "ab", {"a", "b"}, None, [1, 2], True],
    [("a",), ("a", "a"), ("a", ""), ("a", "b", "c")],
)
BOTH_MODELS = [
    *(
        row(value, TypeError, f"model must be a torch.nn.Module, but got {kind}")
        for value, kind in ((None, "NoneType"), ("resnet", "str"), (Small, "type"))
    ),
    row(nn.LazyLinear(2), ValueError, "Parameter 'weight' has no shape yet (a lazy module)"),
    row(
        ..., TypeError, "or two results of find_misclassified, but got MisclassifiedSamples and Sm",
        a=found(), b=model(),
    ),
]  # fmt: skip

table(
    "compare_errors",
    lambda: partial(compare_errors, a=model(), b=model(), data=data()),
    a=BOTH_MODELS,
    b=BOTH_MODELS,
    data=[
        *DATA,
        row(
            data(), ValueError, "data cannot be given for results. Pass it to", a=found(), b=found()
        ),
    ],
    names=NAMES,
    n=[
        *integers(1, instead=", or None for all", optional=True),
        row(3, ValueError, "n cannot be given for results", a=found(), b=found(), data=None),
    ],
    device=DEVICE,
    **{
        name: ALL_OPTIONS[name]
        for name in ("batch_size", "max_samples", "class_names", "mean", "std")
    },
)

table(
    "compute_cams",
    lambda: partial(compute_cams, model=model(), images=images(2)),
    model=MODEL,
    images=[
        row([[1.0]], TypeError, "images must be a tensor (N, C, H, W), but got list"),
        row(images(1)[0], ValueError, "but got torch.float32 of shape (1, 4, 4)"),
        row(images(1).byte(), ValueError, "Unless the model preprocesses integer images itself"),
        row(images(1) * math.nan, ValueError, "The scores of image 0 are not finite: [nan, "),
        row(torch.zeros(2, 3, 4, 4), ValueError, "fails on a batch of shape (1, 3, 4, 4)"),
    ],
    **{
        name: [
            *types_and_values(CLASSES, [1.0, True, "ab", {0, 1}, [0.5, 1], [True, 0]], [[0], []]),
            row(2, ValueError, f"{name} holds 2, but the model has the classes 0 to 1"),
            row([0, -1], ValueError, f"{name} holds -1, but the model has"),
        ]
        for name in ("classes", "against")
    },
    method=ALL_OPTIONS["method"],
    target_layers=ALL_OPTIONS["target_layers"],
    reshape_transform=ALL_OPTIONS["reshape_transform"],
    raw=[
        *flags(),
        row(True, ValueError, "one layer, but target_layers has 2", target_layers=["conv", "norm"]),
    ],
    batch_size=integers(1),
    device=DEVICE,
)

HEAD = [
    *types_and_values(
        "the name of a submodule or the submodule, or None", [3, True, ["head"], b"head"], []
    ),
    row("hed", ValueError, "No layer is called 'hed'. Close matches: head."),
    row(nn.ReLU(), ValueError, "The layer ReLU is not a submodule of the model"),
    row("conv", ValueError, "The input of layer 'conv' has the shape "),
]

table(
    "compute_features",
    lambda: partial(compute_features, model=with_head(), data=images()),
    model=MODEL,
    data=[
        *DATA,
        row(images()[:, 0], ValueError, "must have the shape (N, C, H, W), as the model expects"),
        row(images().byte(), ValueError, "Unless the model preprocesses integer images itself"),
    ],
    layer=HEAD,
    device=DEVICE,
    **{name: ALL_OPTIONS[name] for name in ("batch_size", "max_samples")},
)

table(
    "effective_receptive_field",
    lambda: partial(effective_receptive_field, model=model(), images=images(), layer="conv"),
    model=MODEL,
    images=[
        row([1.0], TypeError, "images must be a floating-point tensor (N, C, *spatial), but"),
        row(images().byte(), TypeError, "but got torch.uint8"),
        row(images(0), ValueError, "with at least one image, but got (0, 1, 4, 4)"),
        row(images().flatten(1), ValueError, "but got (4, 16)"),
        row(torch.zeros(2, 3, 4, 4), ValueError, "fails on images of shape (2, 3, 4, 4)"),
        row(images().double(), ValueError, "(4, 1, 4, 4), torch.float64: "),
    ],
    layer=[
        *types_and_values("the name of a submodule, or None", [3, True, ["conv"]], []),
        row("cnv", KeyError, "The model has no submodule 'cnv'. Close matches: conv."),
        row("unused", KeyError, "The model does not call 'unused' for these images"),
    ],
    unit=[
        row(3, TypeError, "unit must be an index for each dimension, but got 3"),
        row((0.5, 0), TypeError, "unit must be integers, one for each dimension, but got (0.5"),
        row((True, 0), TypeError, "but got (True, 0)"),
        row((4, 0), IndexError, "has units of shape (4, 4), but got the unit (4, 0)"),
        row((-1, 0), IndexError, "but got the unit (-1, 0)"),
        row((0,), IndexError, "but got the unit (0,)"),
        row((0, 0), IndexError, "units of shape (), but got the unit (0, 0)", layer=None),
    ],
    channel=[
        *types_and_values("an integer, or None for all", ["0", 0.0, True], []),
        row(2, IndexError, "The output has 2 channels, but got channel 2"),
        row(-1, IndexError, "but got channel -1"),
    ],
    batch_size=integers(1),
)

table(
    "find_misclassified",
    lambda: partial(find_misclassified, model=model(), data=data()),
    model=MODEL,
    data=DATA,
    n=integers(1, instead=", or None for all", optional=True),
    device=DEVICE,
    **{name: rows for name, rows in ALL_OPTIONS.items() if name not in OF_FIGURES},
)

QUERIES = "the result of find_misclassified, some of its samples, or a tensor of images"

table(
    "find_nearest",
    lambda: partial(find_nearest, model=with_head(), errors=images(2), data=data(), k=2),
    model=MODEL,
    errors=[
        *types_and_values(QUERIES, [3, None, {3}], []),
        row([3], TypeError, f"errors must be {QUERIES}, but one of them is int"),
        row([], ValueError, "errors is empty; expected at least one image to start from"),
        row(
            images()[:, 0], ValueError, "errors must be images of shape (N, C, H, W), as the model"
        ),
        row(images(0), ValueError, "errors is empty"),
    ],
    data=[
        *DATA,
        row(images(), ValueError, "data must be images with labels, such as (images, labels)"),
    ],
    k=[*integers(1), row(5, ValueError, "k is 5, but only 4 images are searched")],
    layer=HEAD,
    class_names=OPTIONS["class_names"],
    device=DEVICE,
    **{name: ALL_OPTIONS[name] for name in ("batch_size", "max_samples", "mean", "std")},
)

table(
    "make_optimizer",
    lambda: partial(make_optimizer, network=model(), recipe="sgd"),
    network=[
        *types_and_values("a torch.nn.Module", ["resnet", None, Small], []),
        row(nn.ReLU(), ValueError, "The network has no trainable parameters"),
    ],
    recipe=RECIPE,
    fused=types_and_values("True or False", ["no", 1, np.bool_(True), [True]], []),
)

table(
    "make_scheduler",
    lambda: partial(
        make_scheduler, optimizer=make_optimizer(model(), "sgd"), recipe="sgd", total_steps=5
    ),
    optimizer=types_and_values("a torch.optim.Optimizer", ["sgd", None, torch.optim.SGD], []),
    recipe=RECIPE,
    total_steps=integers(1),
)

table(
    "receptive_field",
    lambda: partial(receptive_field, model=model(), input_size=(1, 1, 4, 4)),
    **FIELD,
    ignore=[
        *types_and_values(
            "names or classes of submodules, or patterns of them, as strings",
            [3, [3], nn.ReLU, {"conv"}],
            [],
        ),
        row("cnv", ValueError, "ignore='cnv' matches no submodule's name or class. There are: "),
    ],
    unknown=choices("raise", "skip"),
)

table(
    "show_augmentations",
    lambda: show_augmentations,
    **FIGURE,
    data=[
        row(value, TypeError, f"data must be an ImageDataModule, but got {kind}")
        for value, kind in ((3, "int"), (data(), "TensorDataset"), ("data", "str"))
    ],
    n=integers(1),
    indices=[
        *types_and_values("a sequence of integers", [3, "ab", {0}, [1.5], [True], ["0"]], []),
        row([], ValueError, "indices is empty: give at least one, or None"),
    ],
    epochs=integers(1),
    seed=integers(0),
)

table(
    "show_calibration",
    lambda: partial(show_calibration, found=found()),
    found=FOUND,
    **FIGURE,
)

table(
    "show_class_samples",
    lambda: partial(show_class_samples, data=data()),
    **FIGURE,
    mean=ALL_OPTIONS["mean"],
    std=ALL_OPTIONS["std"],
    data=DATA,
    per_class=integers(1),
    classes=[
        *types_and_values("names or numbers of classes", [1.5, True, {0}], []),
        row([0.5], TypeError, f"classes must be {CLASS}, but got 0.5"),
        row([-1], ValueError, f"classes must be {CLASS}, but got -1"),
        row([2], ValueError, "classes must be a number from 0 to 1 or one of 0, 1, but got 2"),
        row("cow", ValueError, "0, 1, but got 'cow'"),
        row([], ValueError, "There is no class to draw"),
    ],
    split=SPLIT,
    seed=integers(0),
    class_names=ALL_OPTIONS["class_names"],
)

table(
    "show_confusion_matrix",
    lambda: partial(show_confusion_matrix, found=found()),
    found=FOUND,
    **FIGURE,
    normalize=flags(),
    cmap=COLORMAP,
)

PAIR = "a pair, with the layers of each of the two models"

table(
    "show_error_comparison",
    lambda: partial(show_error_comparison, comparison=comparison()),
    comparison=[
        row(value, TypeError, f"must be the result of compare_errors(a, b, data), but got {kind}")
        for value, kind in ((None, "NoneType"), (3, "int"), ([1, 2], "list"))
    ],
    n=integers(1),
    models=[
        *types_and_values("the two models that were compared", [3, {3}, model()], []),
        row([model()], ValueError, "models must be the two models that were compared, but got 1"),
        row([model(), 3], TypeError, "model must be a torch.nn.Module, but got int"),
    ],
    cam=choices("predicted", "true", None),
    method=ALL_OPTIONS["method"],
    target_layers=[
        *types_and_values(PAIR, [3, "conv", {"conv"}], [["conv"], []]),
        row(["conv", 3], TypeError, "target_layers must be the name of a submodule or the subm"),
        row(["conv", "cnv"], ValueError, "No layer is called 'cnv'. Close matches: conv."),
    ],
    alpha=OPTIONS["alpha"],
    cmap=COLORMAP,
    device=DEVICE,
    **FIGURE,
)

table(
    "show_features",
    lambda: partial(show_features, model=with_head(), image=images()[0]),
    model=MODEL,
    image=[
        row([[1.0]], TypeError, "must be a tensor (C, H, W) or a sample of find_misclassified"),
        row(images(2), ValueError, "image must be one image (C, H, W), as the model expects it"),
        row(images()[0, 0], ValueError, "but is torch.float32 of shape (4, 4)"),
        row(torch.zeros(3, 4, 4), ValueError, "fails on a batch of shape (1, 3, 4, 4)"),
    ],
    layers=[
        *types_and_values(LAYER, [3, True, [3], {"conv"}, ["conv", None]], []),
        row([], ValueError, "layers is empty. Pass at least one layer, or None"),
        row("cnv", ValueError, "No layer is called 'cnv'. Close matches: conv."),
        row(nn.ReLU(), ValueError, "The target layer ReLU is not a submodule of the model"),
    ],
    channels=[
        *types_and_values(
            "a number of channels, or a sequence of their numbers", ["ab", 1.5, {0}, None], []
        ),
        row(0, ValueError, "channels must be an integer of at least 1, but got 0"),
        row([0.5], TypeError, "each of channels must be an integer of at least 0, but got 0.5"),
        row([-1], ValueError, "each of channels must be an integer of at least 0, but got -1"),
        row([], ValueError, "channels is empty; it must be a number of channels"),
        row([3], ValueError, "channels has 3, but layer 'conv' has the channels 0 to 2"),
    ],
    cmap=COLORMAP,
    device=DEVICE,
    **FIGURE,
)

table(
    "show_filters",
    lambda: partial(show_filters, model=with_head()),
    model=MODEL,
    layer=[
        *types_and_values(
            "the name of a submodule or the submodule, or None", [3, True, ["conv"]], []
        ),
        row("cnv", ValueError, "No layer is called 'cnv'. Close matches: conv."),
        row("head", ValueError, "Layer 'head' is a Linear, not a two-dimensional convolution"),
    ],
    n=integers(1),
    channel=[
        *integers(0, optional=True),
        row(
            1, ValueError, "channel is 1, but the filters of 'conv' have the input channels 0 to 0"
        ),
    ],
    cmap=COLORMAP,
    columns=integers(1, optional=True),
    **FIGURE,
)

table(
    "show_nearest",
    lambda: partial(show_nearest, nearest=nearest()),
    nearest=[
        *types_and_values("the result of find_nearest(model, errors, data)", [3, None, {3}], []),
        row([3], TypeError, "of find_nearest(model, errors, data), but one of its rows is int"),
        row([], ValueError, "nearest is empty; expected the result of find_nearest"),
    ],
    n=integers(1),
    **FIGURE,
)

table(
    "show_misclassified",
    lambda: partial(show_misclassified, model=model(), data=data()),
    **ALL_OPTIONS | FIGURE,
    model=MODEL,
    data=DATA,
    device=DEVICE,
)

table(
    "show_rgb_channels",
    lambda: partial(show_rgb_channels, data=color_data()),
    **FIGURE,
    mean=ALL_OPTIONS["mean"],
    std=ALL_OPTIONS["std"],
    data=DATA,
    image=[
        row("cat.png", TypeError, "image must be an index, a tensor (3, H, W), an array"),
        row(True, TypeError, "or a PIL image, but got bool"),
        row(None, TypeError, "or a PIL image, but got NoneType"),
        row(1.0, TypeError, "or a PIL image, but got float"),
        row(4, IndexError, "There is no image 4 among the 4 samples"),
        row(-1, IndexError, "There is no image -1 among the 4 samples"),
        row(torch.zeros(1, 8, 8), ValueError, "but has the shape (1, 8, 8)"),
        row(torch.zeros(2, 3, 8, 8), ValueError, "but has the shape (2, 3, 8, 8)"),
        row(np.zeros((8, 8)), ValueError, "but has the shape (8, 8)"),
        row(torch.full((3, 8, 8), 2.0), ValueError, "image has values from 2.00 to 2.00"),
    ],
    split=SPLIT,
    class_names=OPTIONS["class_names"],
)

table(
    "show_samples",
    lambda: partial(show_samples, data=data()),
    **FIGURE,
    mean=ALL_OPTIONS["mean"],
    std=ALL_OPTIONS["std"],
    data=DATA,
    n=integers(1),
    split=SPLIT,
    seed=integers(0),
    columns=integers(1, optional=True),
    class_names=ALL_OPTIONS["class_names"],
)

table(
    "show_training_curves",
    lambda: partial(show_training_curves, log={"val_loss": ([1], [0.5])}),
    log=[
        *paths("a run's folder, or curves by their names", none=True),
        row("nowhere", FileNotFoundError, "nowhere contains neither a TensorBoard event file nor"),
        row({3: ([1], [2])}, TypeError, "log must map names to curves, but one of its names is 3"),
        row({"loss": ([1], [2])}, ValueError, "no training curves, only ['loss']"),
        *(
            row({"val_loss": value}, error, f"{CURVES}, but 'val_loss' is {value!r}")
            for error, values in (
                (TypeError, [3, ("a", "b"), ([1], ["x"])]),
                (ValueError, [([1, 2], [1]), ([1],), (1, 2)]),
            )
            for value in values
        ),
    ],
    **FIGURE,
)


# --- the tests -----------------------------------------------------------------------------------


def short(value: Any) -> str:
    text = " ".join(repr(value).split())
    if isinstance(value, set):  # in one order, so that all processes collect the same names
        text = f"{{{', '.join(sorted(map(repr, value)))}}}"
    return type(value).__name__ if len(text) > 30 or " at 0x" in text else text


def cases() -> Iterator[Any]:
    for call, (_, arguments) in TABLES.items():
        for argument, rows in arguments.items():
            for wrong in rows:
                value = wrong.others if wrong.value is ... else wrong.value
                yield pytest.param(call, argument, wrong, id=f"{call}({argument}={short(value)})")


@pytest.fixture(scope="module")
def empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("empty")
    with contextlib.chdir(folder):
        yield folder


@pytest.mark.parametrize(("call", "argument", "wrong"), [*cases()])
def test_a_wrong_argument_is_named_and_nothing_changes(
    call: str, argument: str, wrong: Row, empty_folder: Path
) -> None:
    function = TABLES[call][0]()
    given = wrong.others if wrong.value is ... else {argument: wrong.value, **wrong.others}
    before = [state(model()), state(network()), state(with_head())]
    with pytest.raises(wrong.error) as caught:
        function(**given)
    assert caught.type is wrong.error
    # the string of a KeyError is the representation of its argument
    assert wrong.message.replace("{name}", argument) in str(caught.value.args[0])
    assert [state(model()), state(network()), state(with_head())] == before
    assert not list(empty_folder.iterdir())


MADE_BY_THE_LIBRARY = {
    "AxisField", "Calibration", "ClassComparison", "ComparedSample", "Comparison", "Difference",
    "EffectiveReceptiveField", "ErrorComparison", "ImageHistory", "ImageScores", "LabelIssues",
    "LabelSuspect", "LayerField", "MisclassifiedSample", "MisclassifiedSamples", "NearestImage",
    "NearestImages", "Predictions", "PretrainedWeights", "ProbeReport", "ReceptiveFields",
    "Robustness", "RobustnessRow",
}  # fmt: skip


def public_arguments() -> Iterator[tuple[str, str]]:
    """Return the arguments of all public functions and classes, and of the methods they define.

    Methods that a base class from another library declares (such as Lightning's hooks) are left
    out: that library calls them.
    """
    for name in (*cifar_resnet.__all__, "Muon"):
        thing = Muon if name == "Muon" else getattr(cifar_resnet, name)
        callables: dict[str, Any] = {name: thing}
        if inspect.isclass(thing):
            if issubclass(thing, Exception) or name in MADE_BY_THE_LIBRARY:
                del callables[name]
            own = ("cifar_resnet", "builtins")
            foreign = [base for base in thing.__mro__ if base.__module__.split(".")[0] not in own]
            callables |= {
                f"{name}.{method}": getattr(thing, method)
                for method, value in vars(thing).items()
                if not method.startswith("_")
                and (inspect.isfunction(value) or isinstance(value, classmethod | staticmethod))
                and not any(hasattr(base, method) for base in foreign)
            }
        for call, function in callables.items():
            for argument in inspect.signature(function).parameters:
                if argument != "self":
                    yield call, argument


def test_every_argument_is_in_the_table_at_least_three_times() -> None:
    public = set(public_arguments())
    tested = {
        (call, argument)
        for call, (_, arguments) in TABLES.items()
        for argument, rows in arguments.items()
        if len(rows) >= 3
    }
    assert not public - tested
    assert len(public) > 150


def test_numpy_numbers_are_accepted(tmp_path: Path) -> None:
    two = np.int64(2)
    small = CustomResNet(two, num_classes=two, in_channels=np.uint8(3), head_scale=np.float32(0.5))
    assert [type(v) for v in (small.width, small.num_classes, small.in_channels)] == [int] * 3
    small.save_pretrained(tmp_path / "own.safetensors")  # as JSON
    assert CustomResNet.from_pretrained(tmp_path / "own.safetensors").config() == small.config()

    module = CIFAR10DataModule(
        batch_size=two, val_split=np.float32(0.5), seed=two, crop_padding=np.int8(31)
    )
    assert (module.batch_size, module.num_samples) == (2, 25_000)
    assert module.augmentation.crop_padding == 31
    groups = Muon([kernel()], lr=np.float64(0.1)).param_groups
    assert type(groups[0]["lr"]) is float

    errors = find_misclassified(
        model(), data(), n=two, true_class=np.int64(1), seed=two, batch_size=two,
        mean=np.zeros(1), std=np.ones(1), class_names=np.array(["no", "yes"]),
    )  # fmt: skip
    assert [sample.index for sample in errors] == [3, 1]
    assert [pair.errors for pair in errors.most_confused(two)] == [2]

    shown = images(2)
    maps = compute_cams(model(), shown, [0, 1], target_layers="conv")
    for classes in (np.array([0, 1]), torch.tensor([0, 1]), (np.int64(0), np.int64(1))):
        assert torch.equal(compute_cams(model(), shown, classes, target_layers="conv"), maps)
    alike = compute_cams(model(), shown, np.int64(1), target_layers="conv")
    assert torch.equal(compute_cams(model(), shown, torch.tensor(1), target_layers="conv"), alike)

    found = receptive_field(model(), np.array([1, 1, 4, 4]), spatial_dims=np.array([-2, -1]))
    assert found["conv"].region(np.array([1, 1])) == fields()["conv"].region((1, 1))
    assert found["conv"].seen(np.int64(1)).equal(fields()["conv"].seen(1))
    assert check_receptive_field(model(), (1, 1, 4, 4), positions=two).positions == (2, 2)
    field = effective_receptive_field(
        model(), images(), layer="conv", unit=np.array([1, 1]), channel=np.int64(1), batch_size=two
    )
    assert (field.unit, field.side(np.float32(1))) == ((1, 1), 3)

    fig = show_samples(data(), n=two, columns=two, mean=np.zeros(1), std=np.ones(1))
    assert len(fig.axes) == 2
    assert len(show_class_samples(data(), classes=np.arange(2), per_class=two).axes) == 4
    assert len(show_rgb_channels(np.int64(1), color_data()).axes) == 7


def test_names_may_be_any_ordered_collection() -> None:
    for names in ("ab", ["a", "b"], ("a", "b"), {"a": 0, "b": 1}.keys(), np.array(["a", "b"])):
        found = find_misclassified(model(), data(), class_names=names)
        assert found.class_names == ("a", "b")
    result = receptive_field(model(), (1, 1, 4, 4), ignore=iter(["norm"]))
    assert result.ignored == ("norm",)
