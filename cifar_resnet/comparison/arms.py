"""Describe what is compared: recipes, networks and options of the data."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cifar_resnet import arguments
from cifar_resnet.training.recipe import Recipe, as_recipe

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Arm", "as_arm", "recipe_name", "without_effect"]

_OWN = ("data_dir", "val_split", "seed", "download", "device")  # set by the comparison
_NAMES = "a Recipe, an Arm, or a string such as 'muon' or 'muon label_smoothing=0.2'"


@dataclass(frozen=True)
class Arm:
    """One of the things that `compare` compares.

    Args:
        recipe: A `Recipe`, or the name of a preset.
        name: Name in tables and result files. If None, the name of the recipe with the fields that
            differ from the preset of that name.
        network: Function without arguments that builds a network from images (N, 3, 32, 32) to
            scores (N, classes). If None, a `CustomResNet` with the options of the recipe.
        width: Width of the `CustomResNet`. If None, that of the comparison.
        data: Options of `CIFAR10DataModule` that differ from those of the recipe, such as
            `{"mix": "mixup"}` or `{"subset": 0.1}`: numbers, strings, lists and dictionaries.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no such preset or option, an option is one that the comparison sets,
            or `network` and `width` are both given.

    Examples:
        >>> from cifar_resnet import Arm, Recipe
        >>> Arm("muon", data={"mix": "mixup"}).name
        "muon mix='mixup'"
        >>> from torchvision.models import resnet18
        >>> Arm("sgd", name="ResNet-18", network=lambda: resnet18(num_classes=10)).recipe.optimizer
        'sgd'
    """

    recipe: Recipe
    name: str
    network: Callable[[], nn.Module] | None = None
    width: int | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def __init__(
        self,
        recipe: Recipe | str,
        *,
        name: str | None = None,
        network: Callable[[], nn.Module] | None = None,
        width: int | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> None:
        recipe = as_recipe(recipe)
        arguments.function("network", network, "a function that builds a network, or None")
        if width is not None:
            width = arguments.integer("width", width, minimum=1, instead=" or None")
            if network is not None:
                raise ValueError(
                    f"width={width} has no effect, because network builds the network. Leave it "
                    "out, and build the network with that width."
                )
        data = _data_options({} if data is None else data)
        if name is None:
            changes = data if width is None else {"width": width, **data}
            name = " ".join([recipe_name(recipe), *(f"{k}={v!r}" for k, v in changes.items())])
            if network is not None:
                name += f" {getattr(network, '__name__', type(network).__name__)}"
        if not isinstance(name, str):
            raise TypeError(f"name must be a string or None, but got {name!r}.")
        if not name.strip():
            raise ValueError(f"name must not be empty, but got {name!r}.")
        values = {"recipe": recipe, "name": name, "network": network, "width": width, "data": data}
        for key, value in values.items():
            object.__setattr__(self, key, value)

    def data_options(self) -> dict[str, Any]:
        """Return the arguments of `CIFAR10DataModule` that the arm sets."""
        return self.recipe.data_options() | dict(self.data)


def as_arm(value: Any) -> Arm:
    """Return an arm, given itself, a recipe, or a string as on the command line.

    Raises:
        TypeError: If it is none of these.
        ValueError: If the string does not begin with a preset, or is followed by something else
            than FIELD=VALUE with a field of `Recipe`, an option of the data, or `width`.
    """
    if isinstance(value, Arm):
        return value
    if isinstance(value, Recipe):
        return Arm(value)
    if not isinstance(value, str):
        raise TypeError(f"An arm must be {_NAMES}, but got {value!r}.")
    preset, *assignments = value.split() or [""]
    recipe = Recipe.preset(preset)
    fields, options = recipe.to_dict(), _options()
    changes: dict[str, Any] = {}
    data: dict[str, Any] = {}
    width = None
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or name not in {*fields, *options, "width"}:
            raise ValueError(
                f"After the recipe, an arm has FIELD=VALUE with a field of the recipe "
                f"({', '.join(fields)}), an option of the data ({', '.join(options)}), or width, "
                f"but got {assignment!r}."
            )
        if name == "width":
            width = _literal(text)
        else:
            (changes if name in fields else data)[name] = _literal(text)
    return Arm(replace(recipe, **changes), width=width, data=data)


def recipe_name(recipe: Recipe) -> str:
    """Return the name of a recipe, and the fields that differ from the preset of that name.

    Examples:
        >>> from dataclasses import replace
        >>> from cifar_resnet import Recipe
        >>> recipe_name(replace(Recipe.preset("muon"), label_smoothing=0.2))
        'muon label_smoothing=0.2'
    """
    known = recipe.name in Recipe.presets()
    preset = Recipe.preset(recipe.name).to_dict() if known else {}
    changed = {
        field: value
        for field, value in recipe.to_dict().items()
        if known and value != preset[field]
    }
    return " ".join([recipe.name, *(f"{field}={value}" for field, value in changed.items())])


def without_effect(recipe: Recipe) -> set[str]:
    """Return the fields of a recipe that do not change its training.

    Test-time augmentation is one of them: it is a second way to evaluate the same run.
    """
    idle = {"name", "tta"}
    if recipe.optimizer != "muon":
        idle.add("conv_learning_rate")
    if recipe.optimizer == "adam":
        idle.add("momentum")
    if recipe.schedule == "constant":
        idle.add("warmup")
    if recipe.image_scale == 1 or recipe.image_scale_until == 0:
        idle |= {"image_scale", "image_scale_until"}
    one_cycle = {
        "div_factor", "final_div_factor", "anneal_strategy", "three_phase", "cycle_momentum",
        "base_momentum", "max_momentum",
    }  # fmt: skip
    if recipe.schedule != "onecycle":
        return idle | one_cycle
    return idle if recipe.cycle_momentum else idle | {"base_momentum", "max_momentum"}


def _data_options(data: Any) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise TypeError(f"data must be a dictionary of options, but got {data!r}.")
    for name, value in data.items():
        if name not in _options():
            remedy = "the comparison sets it" if name in _OWN else "there is no such option"
            raise ValueError(
                f"data must have options of CIFAR10DataModule, but got {name!r}: {remedy}. The "
                f"options are {', '.join(_options())}."
            )
        try:
            same = json.loads(json.dumps(value)) == (
                list(value) if isinstance(value, tuple) else value
            )
        except TypeError:
            same = False
        if not same:
            raise TypeError(
                f"data[{name!r}] must be a number, a string, or a list or dictionary of these, so "
                f"that the result file can hold it, but got {value!r}."
            )
    return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}


def _options() -> list[str]:
    from cifar_resnet.data.options import Options

    fields = Recipe().to_dict()
    return [name for name in Options.__annotations__ if name not in {*fields, *_OWN}]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
