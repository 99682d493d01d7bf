"""Training recipes: all hyperparameters of a training run as a frozen dataclass."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from cifar_resnet import arguments

__all__ = ["Recipe", "as_recipe", "one_cycle"]

_Optimizer = Literal["adam", "sgd", "muon"]
_Schedule = Literal["constant", "linear", "onecycle"]
_Anneal = Literal["cos", "linear"]
_TTA = Literal["none", "mirror", "six"]
_Flip = Literal["random", "alternating", "none"]
_Activation = Literal["relu", "gelu"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The hyperparameters of a training run: optimizer, schedule, loss, test-time augmentation, and
    the matching options of data and network.

    `Recipe()` is Adam at a constant learning rate of 0.001. Start from a preset with
    `Recipe.preset` and change single values with `dataclasses.replace`.

    Args:
        name: Name of the recipe in reports and result files.
        optimizer: `"adam"`; `"sgd"` for stochastic gradient descent with Nesterov momentum; or
            `"muon"` for the same with orthogonalized steps for the convolutions (Jordan and others
            2024), each of which should be followed by a normalization.
        learning_rate: Peak learning rate, greater than 0.
        conv_learning_rate: Peak learning rate of the convolutions under `"muon"`, greater than 0:
            roughly the fraction by which a kernel rotates per step.
        momentum: Momentum of `"sgd"` and `"muon"`, in [0, 1); Nesterov momentum if it is not 0.
        weight_decay: L2 penalty added to the gradient of every parameter, at least 0. `"muon"`
            keeps the norm of the convolutions fixed instead.
        schedule: `"constant"`; `"linear"`: from 0 up to the peak during the warm-up, then down
            to 0 at the end of the run, updated after every batch; or `"onecycle"`: step by step the
            values of `torch.optim.lr_scheduler.OneCycleLR`, whose `max_lr` is the peak, and whose
            `pct_start` is `warmup`; its other parameters have the same names here.
        warmup: Fraction of the run in which the schedule rises, in [0, 1].
        norm_bias_lr_scale: Factor on the learning rate of the biases of normalization layers,
            greater than 0. Their weight decay is divided by it, so that its effect stays the same
            (Page 2018, with a factor of 64).
        label_smoothing: Probability mass spread evenly over all classes, in [0, 1).
        tta: Test-time augmentation. `"none"`; `"mirror"` to also report the accuracy of the scores
            averaged over each test image and its mirror image; `"six"` to report this accuracy and
            that over six views, which add both images shifted by one pixel up and left and by one
            pixel down and right (Jordan 2024).
        batch_size: Number of images per optimizer step, at least 1.
        crop_padding: Pixels of padding before the random crop.
        flip: `"random"`, `"alternating"` or `"none"`.
        cutout: Side in pixels of the square that cutout blanks. If 0, there is no cutout.
        image_scale: Factor in (0, 1] on the height and width of the training images in the first
            part of the run (progressive resizing). A training step takes less time in proportion
            to its square. A `CustomResNet` needs multiples of 8 pixels: for images of 32 pixels,
            0.75, 0.5 or 0.25.
        image_scale_until: Fraction of the run at which this part ends, in [0, 1].
        norm_first: Whether the network has BatchNorm before the activation.
        activation: `"relu"` or `"gelu"`.
        residual2: Whether the network also has a residual block after `layer2`.
        head_scale: Factor on the logits of the network, greater than 0.
        div_factor: The one-cycle schedule begins at the peak divided by this, greater than 0.
        final_div_factor: It ends at the first rate divided by this, greater than 0.
        anneal_strategy: It changes by a cosine (`"cos"`) or linearly (`"linear"`).
        three_phase: If True, it falls to its first rate in as many steps as it rose, and then to
            its last one. `warmup` must then be at most 0.5.
        cycle_momentum: If True, the momentum (beta1 of Adam) falls while the rate rises, and rises
            while it falls.
        base_momentum: Momentum at the peak of the rate, in [0, 1).
        max_momentum: Momentum at the start and the end, in [0, 1).

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is outside its range; the message names it.

    Examples:
        >>> from dataclasses import replace
        >>> from cifar_resnet import Recipe
        >>> Recipe.preset("adam").learning_rate
        0.001
        >>> [round(Recipe.preset("sgd").learning_rate_factor(t), 2) for t in (0.1, 0.2, 0.6, 1)]
        [0.5, 1.0, 0.5, 0.0]
        >>> replace(Recipe.preset("sgd"), learning_rate=0.1).learning_rate
        0.1
    """

    name: str = "adam"
    optimizer: _Optimizer = "adam"
    learning_rate: float = 1e-3
    conv_learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: _Schedule = "constant"
    warmup: float = 0.2
    norm_bias_lr_scale: float = 1.0
    label_smoothing: float = 0.0
    tta: _TTA = "none"
    batch_size: int = 512
    crop_padding: int = 4
    flip: _Flip = "random"
    cutout: int = 0
    image_scale: float = 1.0
    image_scale_until: float = 0.5
    norm_first: bool = False
    activation: _Activation = "relu"
    residual2: bool = False
    head_scale: float = 1.0
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal_strategy: _Anneal = "cos"
    three_phase: bool = False
    cycle_momentum: bool = True
    base_momentum: float = 0.85
    max_momentum: float = 0.95

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, but got {self.name!r}.")
        plain: dict[str, Any] = {"name": str(self.name)}
        for field, choices in _CHOICES.items():
            plain[field] = arguments.choice(field, getattr(self, field), choices)
        for field in ("norm_first", "residual2", "three_phase", "cycle_momentum"):
            plain[field] = arguments.boolean(field, getattr(self, field))
        for field, within in _NUMBERS.items():
            plain[field] = arguments.number(field, getattr(self, field), within)
        for field, minimum in _INTEGERS.items():
            plain[field] = arguments.integer(field, getattr(self, field), minimum=minimum)
        if plain["three_phase"] and plain["warmup"] > 0.5:
            raise ValueError(
                "warmup must be at most 0.5 with three_phase=True, because the second phase is as "
                f"long as the first, but got {self.warmup!r}."
            )
        # Checkpoints and reports hold plain Python values, not those of NumPy.
        for field, value in plain.items():
            object.__setattr__(self, field, value)

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """Return the recipe called `name`.

        - `"adam"`, the default, is Adam at a constant learning rate. Its accuracy was not measured.
        - `"sgd"` is SGD with Nesterov momentum and a linear schedule: 91.79 %.
        - `"muon"` is `"sgd"` with orthogonalized steps for the convolutions: 92.60 %.
        - `"best"` is `"muon"` for a network with BatchNorm before GELU and an additional residual
          block: 93.29 %.
        - `"onecycle"` is Adam with the one-cycle schedule, whose peak is at the end of epoch 5 of
          24. Its accuracy was not measured.

        The accuracies are those of six views of 5,000 held-out training images after 24 epochs at
        quarter width, means of three runs (`benchmarks/results/tuning.jsonl`).

        Raises:
            TypeError: If `name` is not a string.
            ValueError: If there is no such preset; the message lists them.
        """
        if not isinstance(name, str):
            raise TypeError(f"name must be one of {cls.presets()}, but got {name!r}.")
        if name not in _PRESETS:
            raise ValueError(f"There is no recipe {name!r}; choose one of {cls.presets()}.")
        return _PRESETS[name]

    @staticmethod
    def presets() -> tuple[str, ...]:
        """List the names that `preset` accepts."""
        return tuple(_PRESETS)

    def learning_rate_factor(self, progress: float) -> float:
        """Compute the fraction of the peak learning rate to use.

        Args:
            progress: Fraction of the run that is done, from 0 (start) to 1 (end). Larger values
                count as 1.

        Raises:
            TypeError: If `progress` is not a number.
            ValueError: If it is negative or not finite.
        """
        progress = arguments.number("progress", progress, arguments.NON_NEGATIVE)
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "onecycle":
            return one_cycle(self, progress, (self.warmup, 2 * self.warmup, 1.0))[0]
        if progress < self.warmup:
            return progress / self.warmup
        return max(0.0, (1 - progress) / (1 - self.warmup)) if self.warmup < 1 else 1.0

    def image_scale_at(self, progress: float) -> float:
        """Return the factor on the height and width of the training images.

        Args:
            progress: Fraction of the run that is done, from 0 (start) to 1 (end).

        Raises:
            TypeError: If `progress` is not a number.
            ValueError: If it is negative or not finite.
        """
        progress = arguments.number("progress", progress, arguments.NON_NEGATIVE)
        return self.image_scale if progress < self.image_scale_until else 1.0

    def data_options(self) -> dict[str, Any]:
        """Return the keyword arguments of the recipe for `ImageDataModule`."""
        return {
            "batch_size": self.batch_size,
            "crop_padding": self.crop_padding,
            "flip": self.flip,
            "cutout": self.cutout,
        }

    def network_options(self) -> dict[str, Any]:
        """Return the keyword arguments of the recipe for `CustomResNet`."""
        return {
            "norm_first": self.norm_first,
            "activation": self.activation,
            "residual2": self.residual2,
            "head_scale": self.head_scale,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return all values, such as for a report; `Recipe(**values)` restores the recipe."""
        return asdict(self)


def as_recipe(recipe: Recipe | str | Mapping[str, Any]) -> Recipe:
    """Return a recipe, given itself, the name of a preset, or its values as in a checkpoint."""
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str):
        return Recipe.preset(recipe)
    if isinstance(recipe, Mapping):
        return Recipe(**recipe)
    raise TypeError(f"recipe must be a Recipe or one of {Recipe.presets()}, but got {recipe!r}.")


def one_cycle(recipe: Recipe, at: float, ends: tuple[float, float, float]) -> tuple[float, float]:
    """Compute the fraction of the peak learning rate, and the momentum, of the one-cycle schedule.

    Args:
        recipe: Parameters of the schedule.
        at: Position in the run, in any unit.
        ends: Positions where the first, the second (with `three_phase`) and the last phase end.
    """
    first, last = 1 / recipe.div_factor, 1 / (recipe.div_factor * recipe.final_div_factor)
    low, high = recipe.base_momentum, recipe.max_momentum
    if recipe.three_phase:
        phases = [(first, 1.0, high, low), (1.0, first, low, high), (first, last, high, high)]
    else:
        phases = [(first, 1.0, high, low), (1.0, last, low, high)]
        ends = (ends[0], ends[2], ends[2])
    # The first phase that has not ended, or else the last one.
    index = next((k for k in range(len(phases)) if at <= ends[k]), len(phases) - 1)
    start, end = (ends[index - 1] if index else 0.0), ends[index]
    part = min(1.0, (at - start) / (end - start)) if end > start else 1.0
    if recipe.anneal_strategy == "cos":
        part = (1 - math.cos(math.pi * part)) / 2
    rate_from, rate_to, momentum_from, momentum_to = phases[index]
    return (
        rate_from + (rate_to - rate_from) * part,
        momentum_from + (momentum_to - momentum_from) * part,
    )


_CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": get_args(_Optimizer),
    "schedule": get_args(_Schedule),
    "anneal_strategy": get_args(_Anneal),
    "tta": get_args(_TTA),
    "flip": get_args(_Flip),
    "activation": get_args(_Activation),
}
_NUMBERS: dict[str, arguments.Range] = {
    "learning_rate": arguments.POSITIVE,
    "conv_learning_rate": arguments.POSITIVE,
    "momentum": arguments.BELOW_ONE,
    "weight_decay": arguments.NON_NEGATIVE,
    "warmup": arguments.FRACTION,
    "image_scale": arguments.POSITIVE_FRACTION,
    "image_scale_until": arguments.FRACTION,
    "div_factor": arguments.POSITIVE,
    "final_div_factor": arguments.POSITIVE,
    "base_momentum": arguments.BELOW_ONE,
    "max_momentum": arguments.BELOW_ONE,
    "norm_bias_lr_scale": arguments.POSITIVE,
    "label_smoothing": arguments.BELOW_ONE,
    "head_scale": arguments.POSITIVE,
}
_INTEGERS = {"batch_size": 1, "crop_padding": 0, "cutout": 0}  # with their minimum

_ADAM = Recipe()
_SGD = replace(
    _ADAM,
    name="sgd",
    optimizer="sgd",
    learning_rate=0.4,
    weight_decay=5e-4,
    schedule="linear",
    label_smoothing=0.1,
    tta="mirror",
    crop_padding=2,
    flip="alternating",
)
_MUON = replace(_SGD, name="muon", optimizer="muon", tta="six")
_BEST = replace(_MUON, name="best", norm_first=True, activation="gelu", residual2=True)
_ONECYCLE = replace(
    _ADAM, name="onecycle", learning_rate=0.01, schedule="onecycle", warmup=5 / 24, cutout=8
)
_PRESETS = {recipe.name: recipe for recipe in (_ADAM, _SGD, _MUON, _BEST, _ONECYCLE)}
