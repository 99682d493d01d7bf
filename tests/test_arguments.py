"""Every argument of every public name, given wrongly: by its kind, by its range, and against
another one. The error is of the kind that is documented, and says what was given and what was
expected.
"""

import inspect
import math
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import cifar_resnet
from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    ImageClassifier,
    LastCheckpoint,
    LogMisclassified,
    Recipe,
    check_receptive_field,
    compute_cams,
    effective_receptive_field,
    find_misclassified,
    receptive_field,
    show_augmentations,
    show_calibration,
    show_class_samples,
    show_confusion_matrix,
    show_misclassified,
    show_rgb_channels,
    show_samples,
    show_training_curves,
)
from cifar_resnet.training.muon import Muon

# --- right arguments ----------------------------------------------------------------------------


class Small(nn.Module):
    """A network of two classes for images of one channel, which takes all for the first."""

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


def colors() -> TensorDataset:
    return TensorDataset(images().expand(4, 3, 4, 4), torch.tensor([0, 1, 0, 1]))


@cache
def model() -> Small:
    return Small()


@cache
def network() -> CustomResNet:
    return CustomResNet(width=1)


@cache
def found() -> Any:
    return find_misclassified(model(), data())


@cache
def fields() -> Any:
    return receptive_field(model(), (1, 1, 4, 4))


@cache
def effective() -> Any:
    return effective_receptive_field(model(), images(), layer="conv")


def kernel() -> nn.Parameter:
    return nn.Parameter(torch.ones(2, 2))


def muon(**options: Any) -> Muon:
    if "orthogonal" in options:  # of a group
        options["params"] = [{name: options.pop(name) for name in ("params", "orthogonal")}]
    return Muon(**options)


# Each call by its name: what is called, and right arguments.
Call = tuple[Callable[..., Any], dict[str, Any]]
CALLS: dict[str, Callable[[], Call]] = {
    "CIFAR10DataModule": lambda: (CIFAR10DataModule, {}),
    "CIFAR10DataModule.denormalize": lambda: (CIFAR10DataModule.denormalize, {}),
    "CustomResNet": lambda: (CustomResNet, {"width": 1}),
    "CustomResNet.forward": lambda: (network().forward, {}),
    "CustomResNet.from_pretrained": lambda: (CustomResNet.from_pretrained, {}),
    "CustomResNet.logits": lambda: (network().logits, {}),
    "CustomResNet.save_pretrained": lambda: (
        network().save_pretrained,
        {"path": "nowhere/own.safetensors"},
    ),
    "EffectiveReceptiveField.plot": lambda: (effective().plot, {}),
    "EffectiveReceptiveField.side": lambda: (effective().side, {}),
    "ImageClassifier": lambda: (ImageClassifier, {"network": model(), "num_classes": 2}),
    "LastCheckpoint": lambda: (LastCheckpoint, {"dirpath": "nowhere"}),
    "LayerField.center": lambda: (fields()["conv"].center, {}),
    "LayerField.pixels": lambda: (fields()["conv"].pixels, {}),
    "LayerField.region": lambda: (fields()["conv"].region, {}),
    "LayerField.seen": lambda: (fields()["conv"].seen, {}),
    "LogMisclassified": lambda: (LogMisclassified, {}),
    "MisclassifiedSamples.most_confused": lambda: (found().most_confused, {}),
    "Muon": lambda: (muon, {"params": [kernel()], "lr": 0.1}),
    "Muon.add_param_group": lambda: (Muon([kernel()], 0.1).add_param_group, {}),
    "ReceptiveFields.plot": lambda: (fields().plot, {"layer": "conv"}),
    "ReceptiveFields.plot_growth": lambda: (fields().plot_growth, {}),
    "ReceptiveFields.table": lambda: (fields().table, {}),
    "ReceptiveFields.to_markdown": lambda: (fields().to_markdown, {}),
    "Recipe": lambda: (Recipe, {}),
    "Recipe.learning_rate_factor": lambda: (Recipe.preset("sgd").learning_rate_factor, {}),
    "Recipe.preset": lambda: (Recipe.preset, {}),
    "check_receptive_field": lambda: (
        check_receptive_field,
        {"model": model(), "input_size": (1, 1, 4, 4)},
    ),
    "compute_cams": lambda: (compute_cams, {"model": model(), "images": images(2)}),
    "effective_receptive_field": lambda: (
        effective_receptive_field,
        {"model": model(), "images": images(), "layer": "conv"},
    ),
    "find_misclassified": lambda: (find_misclassified, {"model": model(), "data": data()}),
    "receptive_field": lambda: (receptive_field, {"model": model(), "input_size": (1, 1, 4, 4)}),
    "show_augmentations": lambda: (show_augmentations, {}),
    "show_calibration": lambda: (show_calibration, {"found": found()}),
    "show_class_samples": lambda: (show_class_samples, {"data": data()}),
    "show_confusion_matrix": lambda: (show_confusion_matrix, {"found": found()}),
    "show_misclassified": lambda: (show_misclassified, {"model": model(), "data": data()}),
    "show_rgb_channels": lambda: (show_rgb_channels, {"data": colors()}),
    "show_samples": lambda: (show_samples, {"data": data()}),
    "show_training_curves": lambda: (show_training_curves, {"log": {"val_loss": ([1], [0.5])}}),
}

# --- wrong ones ---------------------------------------------------------------------------------

# A value, the error, what its message says, and other arguments to go with it.
Row = tuple[Any, type[Exception], str, dict[str, Any]]


def row(value: Any, error: type[Exception], message: str, **others: Any) -> Row:
    return value, error, message, others


def all_of(name: str, expected: str, kinds: list[Any], values: list[Any]) -> list[Row]:
    """Values of another kind, and values out of the range."""
    return [
        row(value, error, f"{name} must be {expected}, but got {value!r}")
        for error, group in ((TypeError, kinds), (ValueError, values))
        for value in group
    ]


def integers(name: str, least: int, *, instead: str = "", optional: bool = False) -> list[Row]:
    kinds = ["4", 4.0, True, [4], math.nan, np.float64(4), np.bool_(True)]
    values = [least - 1, np.int64(least - 1), -(10**30)]
    expected = f"an integer of at least {least}{instead}"
    return all_of(name, expected, kinds + ([] if optional else [None]), values)


def numbers(name: str, expected: str, *outside: float) -> list[Row]:
    kinds = ["0.1", True, None, [0.1], 1j, np.bool_(False)]
    return all_of(name, expected, kinds, [math.nan, math.inf, -math.inf, *outside])


def flags(name: str) -> list[Row]:
    return all_of(name, "True or False", ["no", 1, None, np.bool_(True), [True]], [])


def choices(name: str, *given: str | None) -> list[Row]:
    expected = f"one of {', '.join(map(repr, given))}"
    kinds = [3, True, [given[0]], {given[0]}, b"x", *([] if None in given else [None])]
    return all_of(name, expected, kinds, ["", "other", str(given[0]).upper(), f"{given[0]} "])


def paths(name: str, expected: str = "a path", *, none: bool = False) -> list[Row]:
    return all_of(name, expected, [3, b"x", True, *([None] if none else [])], ["", "a\0b"])


def functions(name: str, expected: str) -> list[Row]:
    return all_of(name, expected, ["flip", 3, [len]], [])


DEVICE = all_of(
    "device",
    "a device or its name, such as 'cpu' or 'cuda:0'",
    [1.5, True, ["cpu"]],
    ["gpu", "", "cuda:x"],
)
MODEL = [
    row(value, TypeError, f"model must be a torch.nn.Module, but got {kind}")
    for value, kind in ((None, "NoneType"), ("resnet", "str"), (Small, "type"))
] + [row(nn.LazyLinear(2), ValueError, "Parameter 'weight' has no shape yet (a lazy module)")]
DATA = [
    row(3, TypeError, "data must be a Dataset, a DataLoader, a LightningDataModule"),
    row((images(), torch.arange(4)), TypeError, "but got a pair of tensors: wrap it in"),
    row(TensorDataset(images()), ValueError, "without labels"),
    row(TensorDataset(images().flatten(1), torch.arange(4)), ValueError, "(N, C, H, W)"),
]
FIGSIZE = all_of(
    "figsize",
    "a width and a height in inches",
    [6, "ab", (6, "4"), {6, 4}, (True, 4)],
    [(6,), (6, 4, 2), (0, 4), (6, -4), (math.nan, 4), (6, math.inf)],
)
FIG = [
    row(value, TypeError, f"fig must be a Matplotlib figure or subfigure, or None {message}")
    for value, message in (
        (3, "for a new one, but got 3"),
        ("errors.png", "for a new one, but got 'errors.png'"),
        ((6, 4), "for a new one, but got (6, 4)"),
        (Figure().subplots(), "for a new one, but got <Axes"),
    )
]
DPI = numbers("dpi", "a finite number greater than 0", 0, -150)
SAVED = {
    "fig": FIG,
    "save_path": [
        *paths("save_path"),
        row("errors.docx", ValueError, "save_path must end with a picture format, one of"),
        row("errors", ValueError, "but is 'errors'"),
        row("nowhere/errors.png", FileNotFoundError, "save_path 'nowhere/errors.png' does not"),
    ],
    "dpi": DPI,
}
FIGURE = SAVED | {
    "figsize": [*FIGSIZE, row((6, 4), ValueError, "Give fig or figsize, not both", fig=Figure())]
}
COLOURS = all_of(
    "cmap",
    "the name of a Matplotlib color map, such as 'viridis', 'cividis' or 'inferno'",
    [3, None, ["viridis"], True],
    ["rainbows", "", "Viridis"],
)
STATISTICS = {
    name: [
        *(
            row(value, error, f"{name} must be {kind}, one or one for each channel, but got "
                f"{value!r}", **{other: 0.5})
            for error, group in (
                (TypeError, ["0.5", True, ("0.5",), {0.5}, {"red": 0.5}, np.ones((1, 1))]),
                (ValueError, [math.nan, (math.inf,), (), *outside]),
            )
            for value in group
        ),
        row(0.5, ValueError, "Give both mean and std, or neither, but got "),
    ]
    for name, other, kind, outside in (
        ("mean", "std", "finite numbers", []),
        ("std", "mean", "positive numbers", [0, -0.5, (0.0,)]),
    )
}  # fmt: skip
METHODS = (
    "gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "gradcamelementwise", "eigencam",
    "eigengradcam",
)  # fmt: skip
LAYER = "the name of a submodule or the submodule, or several of them"

# Options of the error figures: wrong whatever the model and the data are, and wrong for these.
ALONE = {
    "n": integers("n", 1),
    "sort_by": choices("sort_by", "loss", "confidence", "margin", "index", "random"),
    **{
        name: all_of(name, "the number or the name of a class", [1.0, True, [1], b"cat"], [-1])
        for name in ("true_class", "pred_class")
    },
    "cam": choices("cam", "both", "predicted", "true", "contrast", None),
    "method": choices("method", *METHODS),
    "target_layers": [
        *all_of(
            "target_layers", LAYER, [3, True, [3], {"conv"}, ["conv", None], iter(["conv"])], []
        ),
        row([], ValueError, "target_layers is empty"),
    ],
    "reshape_transform": functions(
        "reshape_transform", "a function from a layer's output to its maps"
    ),
    "alpha": numbers("alpha", "a number in [0, 1]", -0.01, 1.01),
    "cmap": COLOURS,
    "top_k": integers("top_k", 0),
    "columns": integers("columns", 1, optional=True),
    "figsize": FIGSIZE,
    "dpi": DPI,
    "batch_size": integers("batch_size", 1),
    "class_names": all_of(
        "class_names",
        "a sequence of names",
        [3, {"cat"}, {"cat": 0}, b"a", iter(["cat", "dog"])],
        [],
    ),
    **STATISTICS,
    "seed": integers("seed", 0),
}
HERE = {
    **{
        name: [
            row(2, ValueError, f"{name} must be a number from 0 to 1 or one of 0, 1, but got 2"),
            row("cow", ValueError, f"{name} must be a number from 0 to 1 or one of 0, 1, but got"),
            row(1, ValueError, "true_class and pred_class are both '1'", **{other: "1"}),
        ]
        for name, other in (("true_class", "pred_class"), ("pred_class", "true_class"))
    },
    "target_layers": [
        row("cnv", ValueError, "No layer is called 'cnv'. Close ones: conv."),
        row(nn.ReLU(), ValueError, "The target layer ReLU is no part of the model"),
        row("unused", ValueError, "Layer 'unused' is not called"),
    ],
    "reshape_transform": [
        row(lambda output: [output], ValueError, "must return a tensor (N, C, height, width), but"),
        row(lambda output: output[0], ValueError, "No layer of Small has an image-like output"),
    ],
    "class_names": [
        row(["cat"], ValueError, "class names: cat. Pass class_names with one name for each class")
    ],
    "mean": [row((0.5, 0.5), ValueError, "mean and std have 2 and 1 values", std=1.0)],
    "std": [row((0.5, 0.5), ValueError, "mean and std have 1 and 2 values", mean=0.5)],
}
BOTH = {name: rows + HERE.get(name, []) for name, rows in ALONE.items()}
SCANNED = (
    "sort_by",
    "true_class",
    "pred_class",
    "batch_size",
    "class_names",
    "mean",
    "std",
    "seed",
)
SPLIT = choices("split", "train", "val", "test")

RULE = "A rule must be 'pointwise', 'global', a mapping with kernel_size"
SHAPE = "the shape of the input with the batch, positive integers such as (1, 3, 32, 32)"
FIELD = {
    "model": MODEL,
    "input_size": [
        *all_of(
            "input_size",
            SHAPE,
            [32, 2.5, "1x1x4x4", (1, 1, 4.0, 4), (1, 1, True, 4), ((1, 1, 4),)],
            [(), (1, 1, 0, 4), (1, 1, -4, 4)],
        ),
        row((1, 1), ValueError, "An input of shape (1, 1) has no spatial dimension"),
        row((1, 2, 4, 4), ValueError, "The model fails on an input of shape (1, 2, 4, 4)"),
        row(None, ValueError, "Give either input_size, such as (1, 3, 32, 32), or inputs"),
    ],
    "inputs": [
        row((images(1),), ValueError, "Give either input_size, such as (1, 3, 32, 32), or inputs"),
        *(
            row(value, error, message, input_size=None)
            for value, error, message in (
                (3, TypeError, "the arguments that the model is called with, but got 3"),
                ({"x": 1}, TypeError, "but got {'x': 1}"),
                ((), ValueError, "the place of a tensor among the 0 inputs, but got 0"),
                (("x",), ValueError, "source must be the place of a tensor among the 1 inputs"),
                ((images(1),) * 2, ValueError, "gets them as inputs=(a, b)"),
            )
        ),
    ],
    "source": [
        *(
            (value, error, message, {"inputs": (images(1),), "input_size": None})
            for value, error, message, _ in all_of(
                "source", "the place of a tensor among the 1 inputs", ["0", 0.0, False], [1, -1]
            )
        ),
        *all_of("source", "0 with input_size, which is that of one input", ["0", None], [1]),
    ],
    "spatial_dims": all_of(
        "spatial_dims",
        "dimensions of (1, 1, 4, 4), each once",
        [2, {2, 3}, ("2",), (2.0,), (True,)],
        [(), (4,), (-5,), (2, 2), (2, -2)],
    ),
    "rules": [
        *all_of(
            "rules",
            "a mapping from the names of operations to rules",
            [3, "pointwise", {3: "pointwise"}],
            [],
        ),
        *(
            row({"a::b": rule}, error, f"{RULE} (and stride, padding, dilation), or a function of "
                f"the operation, but got {rule!r}")
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
    row(value, IndexError, f"Layer 'conv' has units of shape (4, 4), so a unit has 2 indices, each "
        f"from 0 and below that size, but got {value!r}")
    for value in (3, "ab", (0.5, 0), (True, 0), (4, 0), (-1, 0), (0,), (0, 0, 0))
]  # fmt: skip
RECIPE_OF_DATA = {
    "batch_size": integers("batch_size", 1),
    "crop_padding": integers("crop_padding", 0),
    "cutout": integers("cutout", 0),
    "flip": choices("flip", "random", "alternating", "none"),
}
RECIPE_OF_NETWORK = {
    "norm_first": flags("norm_first"),
    "activation": choices("activation", "relu", "gelu"),
    "residual2": flags("residual2"),
    "head_scale": numbers("head_scale", "a finite number greater than 0", 0, -1),
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
CLASSES = "a class number, or one for each of the 2 images"
CLASS = "the number or the name of a class"

TABLE: dict[str, dict[str, list[Row]]] = {
    "CIFAR10DataModule": {
        "data_dir": paths("data_dir"),
        "batch_size": integers("batch_size", 1),
        "val_split": all_of(
            "val_split",
            "a count in [0, 50000) or a share in [0, 1) of the 50000 training images",
            ["0.1", True, (5000,)],
            [50_000, -1, 1.0, -1e-9, 0.999999, math.nan, math.inf],
        ),
        "num_workers": integers("num_workers", 0),
        "seed": integers("seed", 0),
        **{name: flags(name) for name in ("shuffle", "pin_memory", "drop_last", "download")},
        "crop_padding": [
            *integers("crop_padding", 0),
            row(32, ValueError, "crop_padding must be less than 32 pixels"),
        ],
        "flip": choices("flip", "random", "alternating", "none"),
        "cutout": [
            *integers("cutout", 0),
            row(33, ValueError, "cutout must be at most 32 pixels (the image's side), but got 33"),
        ],
        "padding_mode": choices("padding_mode", "reflect", "constant"),
        **{
            name: functions(name, TRANSFORM)
            for name in ("train_transforms", "val_transforms", "test_transforms")
        },
        "device": DEVICE,
    },
    "CIFAR10DataModule.denormalize": {
        "images": [
            row([[1.0]], TypeError, "denormalize expects a floating-point tensor, but got [[1.0]]"),
            row(np.zeros((3, 4, 4)), TypeError, "denormalize expects a floating-point tensor"),
            row(torch.zeros(3, 4, 4).byte(), TypeError, "tensor, but got torch.uint8"),
            row(torch.zeros(4, 1, 5, 5), ValueError, "(..., 3, H, W), but got (4, 1, 5, 5)"),
            row(torch.zeros(3, 4), ValueError, "(..., 3, H, W), but got (3, 4)"),
        ],
    },
    "CustomResNet": {
        "width": integers("width", 1),
        "num_classes": integers("num_classes", 1),
        "in_channels": integers("in_channels", 1),
        **RECIPE_OF_NETWORK,
    },
    "CustomResNet.forward": {"images": IMAGES},
    "CustomResNet.from_pretrained": {
        "name": [
            *all_of("name", "that of trained weights or a path", [3, None, b"quarter", True], []),
            row("half", ValueError, "There are no weights 'half'; choose one of ('quarter', "),
            row("", ValueError, "There are no weights ''"),
            row("no.safetensors", FileNotFoundError, "There is no file 'no.safetensors'"),
        ],
    },
    "CustomResNet.logits": {"images": IMAGES},
    "CustomResNet.save_pretrained": {
        "path": [
            *paths("path", none=True),
            row("own.pt", ValueError, "path must end in .safetensors, but got 'own.pt'"),
            row("nowhere/own.safetensors", FileNotFoundError, "There is no folder 'nowhere'"),
        ],
        "half": flags("half"),
        "training": [
            *all_of("training", "a dictionary", [3, "adam", ["adam"]], []),
            row({"who": {1}}, TypeError, "training must hold what JSON can hold: Object of type"),
            row({"loss": math.nan}, ValueError, "training must hold what JSON can hold: Out of"),
        ],
    },
    "EffectiveReceptiveField.plot": {"log": flags("log"), "fig": FIG},
    "EffectiveReceptiveField.side": {"mass": numbers("mass", "a share in (0, 1]", 0, -0.1, 1.01)},
    "ImageClassifier": {
        "network": all_of("network", "a torch.nn.Module", ["resnet", None, Small], []),
        "recipe": [
            row(3, TypeError, "recipe must be a Recipe or one of ('adam', 'sgd', 'muon', 'best')"),
            row(None, TypeError, "but got None"),
            row("bets", ValueError, "There is no recipe 'bets'; choose one of ('adam', "),
            row({"warmup": 2}, ValueError, "warmup must be a number in [0, 1], but got 2"),
        ],
        "num_classes": [
            *integers("num_classes", 2, optional=True),
            row(None, ValueError, "must be an integer of at least 2, but got None"),
            row(3, ValueError, "but CustomResNet has 10 classes. Build", network=network()),
        ],
    },
    "LastCheckpoint": {
        "dirpath": paths("dirpath", none=True),
        "every_seconds": all_of(
            "every_seconds",
            "a number of at least 0",
            ["30", True, None, [1.0]],
            [-1, math.nan, -math.inf],
        ),
    },
    "LayerField.center": {"unit": UNIT},
    "LayerField.pixels": {"unit": UNIT},
    "LayerField.region": {"unit": UNIT, "clip": flags("clip")},
    "LayerField.seen": {
        "axis": [
            *all_of("axis", "an integer from 0 to 1", ["0", 0.0, True], []),
            row(2, IndexError, "axis must be an integer from 0 to 1, but got 2"),
            row(-1, IndexError, "axis must be an integer from 0 to 1, but got -1"),
        ],
    },
    "LogMisclassified": {
        "n": integers("n", 1),
        "save_dir": [
            *paths("save_dir"),
            row(__file__, NotADirectoryError, "is a file; give a folder"),
        ],
        "options": [
            *(
                (..., error, message, {name: value, **others})
                for name, rows in ALONE.items()
                if name != "n"
                for value, error, message, others in rows
            ),
            *(
                row(..., TypeError, f"There is no option {name!r}; there are n, ", **{name: 3})
                for name in ("layers", "device", "data", "fig", "save_path")
            ),
        ],
    },
    "MisclassifiedSamples.most_confused": {"n": integers("n", 1)},
    "Muon": {
        "params": [
            row([], ValueError, "empty parameter list"),
            row([3], TypeError, "can only optimize Tensors, but one of the params is int"),
            row([nn.Parameter(torch.ones(3))], ValueError, "of at least 2 dimensions, but got one "
                "of shape (3,)", orthogonal=True),
        ],
        "lr": numbers("lr", "a finite number of at least 0", -1e-9),
        "momentum": numbers("momentum", "a number in [0, 1)", -0.01, 1),
        "weight_decay": numbers("weight_decay", "a finite number of at least 0", -1e-9),
        "orthogonal": flags("orthogonal"),
    },
    "Muon.add_param_group": {
        "param_group": [
            row([kernel()], TypeError, "A group of parameters must be a dictionary, but got ["),
            row({"params": [kernel()], "lr": "1"}, TypeError, "lr must be a finite number of at"),
            row({"params": [kernel()], "lr": -1}, ValueError, "at least 0, but got -1"),
            row({"params": [nn.Parameter(torch.ones(3))], "orthogonal": True}, ValueError,
                "Put it into a group with orthogonal=False"),
        ],
    },
    "ReceptiveFields.plot": {
        "image": [
            row("cat.png", ValueError, "image must be (C, 4, 4) or (4, 4), as was analysed"),
            row(torch.zeros(3, 28, 28), ValueError, "but got (3, 28, 28)"),
            row(torch.full((4, 4), 1.5), ValueError, "but they go from 1.50 to 1.50"),
            row(np.full((4, 4), -0.5), ValueError, "but they go from -0.50 to -0.50"),
        ],
        "layer": [
            row(value, KeyError, f"No layer of this network is called {value!r}")
            for value in (3, "cnv", True)
        ],
        "units": [
            *all_of("units", "a sequence of units, such as [(0, 0), (1, 2)]", [3, {(0, 0)}], []),
            row([], ValueError, "units must be at least one unit, or None, but got []"),
            *(row([value], error, message) for value, error, message, _ in UNIT),
        ],
        "fig": FIG,
    },
    "ReceptiveFields.plot_growth": {"fig": FIG},
    "ReceptiveFields.table": {"every_layer": flags("every_layer")},
    "ReceptiveFields.to_markdown": {"every_layer": flags("every_layer")},
    "Recipe": {
        "name": all_of("name", "a text", [3, None, b"adam"], []),
        "optimizer": choices("optimizer", "adam", "sgd", "muon"),
        "learning_rate": numbers("learning_rate", "a finite number greater than 0", 0, -0.1),
        "conv_learning_rate": numbers(
            "conv_learning_rate", "a finite number greater than 0", 0, -0.1
        ),
        "momentum": numbers("momentum", "a number in [0, 1)", -0.01, 1),
        "weight_decay": numbers("weight_decay", "a finite number of at least 0", -1e-9),
        "schedule": choices("schedule", "constant", "linear"),
        "warmup": numbers("warmup", "a number in [0, 1]", -0.01, 1.01),
        "norm_bias_lr_scale": numbers(
            "norm_bias_lr_scale", "a finite number greater than 0", 0, -1
        ),
        "label_smoothing": numbers("label_smoothing", "a number in [0, 1)", -0.01, 1),
        "tta": choices("tta", "none", "mirror", "six"),
        **RECIPE_OF_DATA,
        **RECIPE_OF_NETWORK,
    },
    "Recipe.learning_rate_factor": {
        "progress": numbers("progress", "a finite number of at least 0", -1e-9),
    },
    "Recipe.preset": {
        "name": [
            *all_of("name", "one of ('adam', 'sgd', 'muon', 'best')", [3, None, ["adam"]], []),
            row("adma", ValueError, "There is no recipe 'adma'; choose one of ('adam', 'sgd', "),
        ],
    },
    "check_receptive_field": {
        **FIELD,
        "input_size": [
            *FIELD["input_size"],
            row((2, 1, 4, 4), ValueError, "with a batch of 1, but got torch.float32 of shape (2,"),
        ],
        "positions": integers("positions", 1, instead=", or None for all", optional=True),
        "batch_size": integers("batch_size", 1),
    },
    "compute_cams": {
        "model": MODEL,
        "images": [
            row([[1.0]], TypeError, "images must be a tensor (N, C, H, W), but got list"),
            row(images(1)[0], ValueError, "but got torch.float32 of shape (1, 4, 4)"),
            row(images(1).byte(), ValueError, "but got torch.uint8 of shape (1, 1, 4, 4)"),
            row(images(1) * math.nan, ValueError, "The scores of image 0 are not finite: [nan, "),
            row(torch.zeros(2, 3, 4, 4), ValueError, "fails on a batch of shape (1, 3, 4, 4)"),
        ],
        **{
            name: [
                *all_of(name, CLASSES, [1.0, True, "ab", {0, 1}, [0.5, 1], [True, 0]], [[0], []]),
                row(2, ValueError, f"{name} holds 2, but the model has the classes 0 to 1"),
                row([0, -1], ValueError, f"{name} holds -1, but the model has"),
            ]
            for name in ("classes", "against")
        },
        "method": BOTH["method"],
        "target_layers": BOTH["target_layers"],
        "reshape_transform": BOTH["reshape_transform"],
        "raw": [
            *flags("raw"),
            row(True, ValueError, "raw maps are of one layer, but target_layers has 2",
                target_layers=["conv", "norm"]),
        ],
        "batch_size": integers("batch_size", 1),
        "device": DEVICE,
    },
    "effective_receptive_field": {
        "model": MODEL,
        "images": [
            row([1.0], TypeError, "images must be a floating-point tensor (N, C, *spatial), but"),
            row(images().byte(), TypeError, "but got torch.uint8"),
            row(images(0), ValueError, "with at least one image, but got (0, 1, 4, 4)"),
            row(images().flatten(1), ValueError, "but got (4, 16)"),
            row(torch.zeros(2, 3, 4, 4), ValueError, "fails on images of shape (2, 3, 4, 4)"),
            row(images().double(), ValueError, "(4, 1, 4, 4), torch.float64: "),
        ],
        "layer": [
            *all_of("layer", "the name of a submodule, or None", [3, True, ["conv"]], []),
            row("cnv", KeyError, "The model has no submodule 'cnv'. Close ones: conv"),
            row("unused", KeyError, "The model does not call 'unused' for these images"),
        ],
        "unit": [
            row(3, TypeError, "unit must be an index for each direction, but got 3"),
            row((0.5, 0), TypeError, "unit must be integers, one for each direction, but got (0.5"),
            row((True, 0), TypeError, "but got (True, 0)"),
            row((4, 0), IndexError, "has units of shape (4, 4), but got the unit (4, 0)"),
            row((-1, 0), IndexError, "but got the unit (-1, 0)"),
            row((0,), IndexError, "but got the unit (0,)"),
            row((0, 0), IndexError, "units of shape (), but got the unit (0, 0)", layer=None),
        ],
        "channel": [
            *all_of("channel", "an integer, or None for all", ["0", 0.0, True], []),
            row(2, IndexError, "The output has 2 channels, but got channel 2"),
            row(-1, IndexError, "but got channel -1"),
        ],
        "batch_size": integers("batch_size", 1),
    },
    "find_misclassified": {
        "model": MODEL,
        "data": DATA,
        "n": integers("n", 1, instead=", or None for all", optional=True),
        "device": DEVICE,
        **{name: BOTH[name] for name in SCANNED},
    },
    "receptive_field": {
        **FIELD,
        "ignore": [
            *all_of(
                "ignore",
                "names or classes of submodules, or patterns of them, as texts",
                [3, [3], nn.ReLU, {"conv"}],
                [],
            ),
            row("cnv", ValueError, "ignore='cnv' fits no submodule's name or class. There are: "),
        ],
        "unknown": choices("unknown", "raise", "skip"),
    },
    "show_augmentations": {
        **FIGURE,
        "data": [
            row(value, TypeError, f"data must be a CIFAR10DataModule, whose loader is asked, but "
                f"got {kind}")
            for value, kind in ((3, "int"), (data(), "TensorDataset"), ("data", "str"))
        ],
        "n": integers("n", 1),
        "indices": [
            *all_of("indices", "a sequence of integers", [3, "ab", {0}, [1.5], [True], ["0"]], []),
            row([], ValueError, "indices are empty: give at least one, or None"),
        ],
        "epochs": integers("epochs", 1),
        "seed": integers("seed", 0),
    },
    "show_calibration": SAVED,
    "show_class_samples": {
        **FIGURE,
        "mean": BOTH["mean"],
        "std": BOTH["std"],
        "data": DATA,
        "per_class": integers("per_class", 1),
        "classes": [
            *all_of("classes", "names or numbers of classes", [1.5, True, {0}], []),
            row([0.5], TypeError, f"classes must be {CLASS}, but got 0.5"),
            row([-1], ValueError, f"classes must be {CLASS}, but got -1"),
            row([2], ValueError, "classes must be a number from 0 to 1 or one of 0, 1, but got 2"),
            row("cow", ValueError, "0, 1, but got 'cow'"),
            row([], ValueError, "There is no class to draw"),
        ],
        "split": SPLIT,
        "seed": integers("seed", 0),
        "class_names": BOTH["class_names"],
    },
    "show_confusion_matrix": {**SAVED, "normalize": flags("normalize"), "cmap": COLOURS},
    "show_misclassified": {
        **FIGURE,
        "model": MODEL,
        "data": DATA,
        "device": DEVICE,
        **BOTH,
        "figsize": FIGURE["figsize"],
    },
    "show_rgb_channels": {
        **FIGURE,
        "mean": BOTH["mean"],
        "std": BOTH["std"],
        "data": DATA,
        "image": [
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
        "split": SPLIT,
        "class_names": ALONE["class_names"],
    },
    "show_samples": {
        **FIGURE,
        "mean": BOTH["mean"],
        "std": BOTH["std"],
        "data": DATA,
        "n": integers("n", 1),
        "split": SPLIT,
        "seed": integers("seed", 0),
        "columns": integers("columns", 1, optional=True),
        "class_names": BOTH["class_names"],
    },
    "show_training_curves": {
        "log": [
            *paths("log", "a run's folder, or curves by their names", none=True),
            row("nowhere", FileNotFoundError, "nowhere holds neither a TensorBoard event file nor"),
            row({3: ([1], [2])}, TypeError, "curves by their names, but got 3 for a name"),
            row({"loss": ([1], [2])}, ValueError, "no training curves, only ['loss']"),
            *(
                row({"val_loss": value}, error, f"log must hold curves as (epochs, values), "
                    f"sequences of numbers of the same length, but 'val_loss' is {value!r}")
                for error, values in (
                    (TypeError, [3, ("a", "b"), ([1], ["x"])]),
                    (ValueError, [([1, 2], [1]), ([1],), (1, 2)]),
                )
                for value in values
            ),
        ],
        "fig": FIG,
    },
}  # fmt: skip
for _name in ("show_calibration", "show_confusion_matrix"):
    TABLE[_name] = TABLE[_name] | {
        "found": [
            row(
                value, TypeError, f"{_name} draws what find_misclassified(model, data) gives, {got}"
            )
            for value, got in (([1, 2], "but got list"), (None, "but got NoneType"), (3, "but got"))
        ]
    }

CASES = [(call, argument) for call, arguments in TABLE.items() for argument in arguments]


def wrong_calls(call: str, argument: str) -> Iterator[tuple[Callable[[], Any], Row]]:
    """What fails, and how. An argument that is `...` is left out; the others are what is wrong."""
    for value, error, message, others in TABLE[call][argument]:
        function, right = CALLS[call]()
        given = right | others | ({} if value is ... else {argument: value})
        yield partial(function, **given), (value, error, message, others)


@pytest.mark.parametrize(("call", "argument"), CASES, ids=lambda part: part)
def test_the_error_says_what_was_given_and_what_was_expected(
    call: str, argument: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for fails, (value, error, message, others) in wrong_calls(call, argument):
        with pytest.raises(Exception) as caught:  # noqa: PT011
            fails()
        assert caught.type is error, (value, others, caught.value)
        # the text of a KeyError is the representation of its argument
        assert message in str(caught.value.args[0]), (value, others)
    assert not list(tmp_path.iterdir())


# --- completeness -------------------------------------------------------------------------------

MADE_BY_THE_LIBRARY = {
    "AxisField", "Calibration", "EffectiveReceptiveField", "LabelSuspect", "LayerField",
    "MisclassifiedSample", "MisclassifiedSamples", "PretrainedWeights", "ProbeReport",
    "ReceptiveFields",
}  # fmt: skip


def public_arguments() -> Iterator[tuple[str, str]]:
    """Each argument of each public function, of each class and of its own methods.

    Methods that a class of another library declares (hooks of Lightning, say) are called by it.
    """
    for name in (*cifar_resnet.__all__, "Muon"):
        thing = Muon if name == "Muon" else getattr(cifar_resnet, name)
        callables: dict[str, Any] = {name: thing}
        if inspect.isclass(thing):
            if issubclass(thing, Exception) or name in MADE_BY_THE_LIBRARY:
                del callables[name]
            foreign = [base for base in thing.__mro__ if base.__module__.split(".")[0] not in
                       ("cifar_resnet", "builtins")]  # fmt: skip
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
    there = set(public_arguments())
    missing = {
        f"{call}({argument})"
        for call, argument in there
        if len(TABLE.get(call, {}).get(argument, [])) < 3
    }
    assert not missing
    assert len(there) > 150


# --- what counts as a number --------------------------------------------------------------------


def test_numpys_numbers_count_as_what_they_are(tmp_path: Path) -> None:
    two = np.int64(2)
    small = CustomResNet(two, num_classes=two, in_channels=np.uint8(3), head_scale=np.float32(0.5))
    assert [type(v) for v in (small.width, small.num_classes, small.in_channels)] == [int] * 3
    small.save_pretrained(tmp_path / "own.safetensors")  # as JSON
    assert CustomResNet.from_pretrained(tmp_path / "own.safetensors").options() == small.options()

    module = CIFAR10DataModule(
        batch_size=two, val_split=np.float32(0.5), seed=two, crop_padding=np.int8(31)
    )
    assert (module.batch_size, module.num_samples, module.augmentation.crop_padding) == (
        2,
        25000,
        31,
    )
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

    fig = show_samples(
        data(), n=two, columns=two, mean=np.zeros(1), std=np.ones(1), dpi=np.int64(50)
    )
    assert len(fig.axes) == 2
    assert len(show_class_samples(data(), classes=np.arange(2), per_class=two).axes) == 4
    assert len(show_rgb_channels(np.int64(1), colors()).axes) == 7


def test_names_may_come_in_any_order_that_can_be_read_again() -> None:
    for names in ("ab", ["a", "b"], ("a", "b"), {"a": 0, "b": 1}.keys(), np.array(["a", "b"])):
        found = find_misclassified(model(), data(), class_names=names)
        assert found.class_names == ("a", "b")
    looked_through = receptive_field(model(), (1, 1, 4, 4), ignore=iter(["norm"]))
    assert looked_through.ignored == ("norm",)


# --- nothing is left behind ---------------------------------------------------------------------

OF_MODELS = [
    call
    for call, arguments in TABLE.items()
    if "model" in arguments or call.startswith(("CustomResNet.", "ImageClassifier"))
]


def state(module: nn.Module) -> dict[str, Any]:
    """All that a call may leave behind in a module, in values that can be compared."""
    found: dict[str, Any] = {}
    for name, part in module.named_modules():
        found[f"{name} training"] = part.training
        found[f"{name} attributes"] = sorted(vars(part))
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
            found[f"{name} {kind}"] = [id(hook) for hook in getattr(part, kind).values()]
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        grad = None if tensor.grad is None else (id(tensor.grad), tensor.grad.tolist())
        found[name] = (id(tensor), tensor.tolist(), tensor.requires_grad, grad)
    return found


@pytest.mark.parametrize("call", OF_MODELS)
def test_a_call_that_fails_leaves_the_model_as_it_was(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model.cache_clear()
    network.cache_clear()
    watched = [model(), network()]
    for module in watched:
        first = next(iter(module.parameters()))
        first.grad = torch.ones_like(first)
        # The normalizations stay in training: each pass through them would be seen.
        next(part for part in module.modules() if isinstance(part, nn.Conv2d)).eval()
        norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
        norms[-1].bias.requires_grad_(False)
        norms[-1].register_forward_hook(lambda *args: None)
        norms[-1].register_forward_pre_hook(lambda *args: None)
        norms[-1].register_full_backward_hook(lambda *args: None)
    before = [state(module) for module in watched]
    for argument in TABLE[call]:
        for fails, (value, _, _, others) in wrong_calls(call, argument):
            with pytest.raises(Exception):  # noqa: B017, PT011
                fails()
            assert [state(module) for module in watched] == before, (argument, value, others)
    model.cache_clear()
    network.cache_clear()
