"""What a training run does, as data. It knows numbers and names; it must not import torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from cifar_resnet import arguments

__all__ = ["Recipe"]

_Optimizer = Literal["adam", "sgd", "muon"]
_Schedule = Literal["constant", "linear"]
_TTA = Literal["none", "mirror", "six"]
_Flip = Literal["random", "alternating", "none"]
_Activation = Literal["relu", "gelu"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training recipe: optimizer, schedule, loss, test-time views, and the options of data
    and network that belong to it.

    The default is the specified training: Adam at a constant learning rate of 0.001. Take a
    preset with `Recipe.preset` and change single values with
    `dataclasses.replace`.

    Args:
        name: What reports and result files call the recipe.
        optimizer: `"adam"`; `"sgd"` for stochastic gradient descent with Nesterov momentum; or
            `"muon"` for the same with orthogonal steps of the convolutions (Jordan and others
            2024), each of which a normalization should follow.
        learning_rate: Peak learning rate, greater than 0.
        conv_learning_rate: Peak learning rate of the convolutions under `"muon"`, greater than 0:
            about the share of itself by which a kernel turns in a step.
        momentum: Momentum of `"sgd"` and `"muon"`, in [0, 1); Nesterov's form where it is not 0.
        weight_decay: L2 penalty added to the gradient of every parameter, at least 0; `"muon"`
            keeps the norm of the convolutions instead.
        schedule: `"constant"`, or `"linear"`: up from 0 to the peak over `warmup`, then down to 0
            at the end of the run, stepped after every batch.
        warmup: Share of the run that the linear schedule spends going up, in [0, 1].
        norm_bias_lr_scale: Factor on the learning rate of the biases of normalization layers,
            greater than 0. Their weight decay is divided by it, so that its effect stays the same
            (Page 2018, with a factor of 64).
        label_smoothing: Probability mass spread evenly over all classes, in [0, 1).
        tta: `"none"`; `"mirror"` to report also the accuracy of the scores averaged over
            each test image and its mirror image; `"six"` for these two, and also both shifted by
            one pixel up and left and by one pixel down and right (Jordan 2024).
        batch_size: Images in an optimizer step, at least 1.
        crop_padding: Pixels of padding before the random crop.
        flip: `"random"`, `"alternating"` or `"none"`.
        cutout: Side in pixels of the square that cutout blanks; 0 for none.
        norm_first: Whether the network has BatchNorm before the activation.
        activation: `"relu"` or `"gelu"`.
        residual2: Whether the network has a residual block after its second stage as well.
        head_scale: Factor on the network's logits, greater than 0.

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
    norm_first: bool = False
    activation: _Activation = "relu"
    residual2: bool = False
    head_scale: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a text, but got {self.name!r}.")
        plain: dict[str, Any] = {"name": str(self.name)}
        for field, choices in _CHOICES.items():
            plain[field] = arguments.choice(field, getattr(self, field), choices)
        for field in ("norm_first", "residual2"):
            plain[field] = arguments.boolean(field, getattr(self, field))
        for field, within in _NUMBERS.items():
            plain[field] = arguments.number(field, getattr(self, field), within)
        for field, least in _INTEGERS.items():
            plain[field] = arguments.integer(field, getattr(self, field), minimum=least)
        # Checkpoints and reports take plain values only, not those of NumPy.
        for field, value in plain.items():
            object.__setattr__(self, field, value)

    @classmethod
    def preset(cls, name: str) -> Recipe:
        """The recipe called `name`.

        `"adam"` trains as specified; `"sgd"` is 24 good epochs of the specified network, `"muon"`
        24 better ones; `"best"` is `"muon"` with a network that has BatchNorm before GELU and a
        residual block more.

        Raises:
            TypeError: If `name` is no text.
            ValueError: If there is no such preset; the message lists them.
        """
        if not isinstance(name, str):
            raise TypeError(f"name must be one of {cls.presets()}, but got {name!r}.")
        if name not in _PRESETS:
            raise ValueError(f"There is no recipe {name!r}; choose one of {cls.presets()}.")
        return _PRESETS[name]

    @staticmethod
    def presets() -> tuple[str, ...]:
        """The names that `preset` takes."""
        return tuple(_PRESETS)

    def learning_rate_factor(self, progress: float) -> float:
        """The share of the peak learning rate to use.

        Args:
            progress: Share of the run that is done, from 0 (start) to 1 (end); beyond that it is
                as at the end.

        Raises:
            TypeError: If `progress` is no number.
            ValueError: If it is negative or not finite.
        """
        progress = arguments.number("progress", progress, arguments.NON_NEGATIVE)
        if self.schedule == "constant":
            return 1.0
        if progress < self.warmup:
            return progress / self.warmup
        return max(0.0, (1 - progress) / (1 - self.warmup)) if self.warmup < 1 else 1.0

    def data_options(self) -> dict[str, Any]:
        """The keyword arguments for `CIFAR10DataModule` that belong to the recipe."""
        return {
            "batch_size": self.batch_size,
            "crop_padding": self.crop_padding,
            "flip": self.flip,
            "cutout": self.cutout,
        }

    def network_options(self) -> dict[str, Any]:
        """The keyword arguments for `CustomResNet` that belong to the recipe."""
        return {
            "norm_first": self.norm_first,
            "activation": self.activation,
            "residual2": self.residual2,
            "head_scale": self.head_scale,
        }

    def to_dict(self) -> dict[str, Any]:
        """All values, for a report or a checkpoint; `Recipe(**values)` is the way back."""
        return asdict(self)


_CHOICES: dict[str, tuple[str, ...]] = {
    "optimizer": get_args(_Optimizer),
    "schedule": get_args(_Schedule),
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
    "norm_bias_lr_scale": arguments.POSITIVE,
    "label_smoothing": arguments.BELOW_ONE,
    "head_scale": arguments.POSITIVE,
}
_INTEGERS = {"batch_size": 1, "crop_padding": 0, "cutout": 0}  # and the least value

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
_PRESETS = {recipe.name: recipe for recipe in (_ADAM, _SGD, _MUON, _BEST)}
