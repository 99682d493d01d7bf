"""Read lines of results, also those of older scripts, and group them by arm."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cifar_resnet.comparison.arms import Arm, recipe_name, without_effect
from cifar_resnet.comparison.identity import describe
from cifar_resnet.comparison.metrics import METRICS
from cifar_resnet.comparison.storing import read_file
from cifar_resnet.training.recipe import Recipe

__all__ = ["Line", "group", "known_lines", "read_results", "select", "training_of"]

Line = Mapping[str, Any]

_SETTING = ("width", "epochs", "held_out", "precision")


def read_results(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read the runs of files, and of folders of comparisons.

    Raises:
        FileNotFoundError: If there is no such file, or a folder has no results.
        ValueError: If a line is damaged.
    """
    result = []
    for path in paths:
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files or not path.exists():
            raise FileNotFoundError(
                f"{path} has no results. Expected a file with a JSON line for each run, or the "
                "folder of a comparison."
            )
        for file in files:
            result += known_lines(read_file(file))
    return result


def known_lines(lines: Iterable[Line]) -> list[dict[str, Any]]:
    """Return the runs among lines, with the fields of today; other lines are left out."""
    result = []
    for line in lines:
        if "held_out" in line and isinstance(line.get("recipe"), Mapping):
            recipe = Recipe().to_dict() | _renamed(line["recipe"])
            result.append({"data": {}, "network": None, **line, "recipe": recipe})
    return result


def select(lines: Sequence[Line], **requested: Any) -> list[Line]:
    """Return the runs of one setting.

    Args:
        lines: Runs.
        **requested: Values of `width`, `epochs`, `held_out` and `precision`. If None, the only
            one there is.

    Raises:
        ValueError: If there are no such runs, or several values of one that is None.
    """
    chosen: list[Line] = list(lines)
    for name in _SETTING:
        value = requested.get(name)
        values = list(dict.fromkeys(line.get(name) for line in chosen))
        if value is None and len(values) > 1:
            raise ValueError(
                f"The results have runs with {name} of {', '.join(map(repr, values))}. Choose one "
                f"with {name}=..., because runs that differ in it cannot be compared."
            )
        if value is not None:
            chosen = [line for line in chosen if line.get(name) == value]
            if not chosen:
                known = ", ".join(map(repr, values))
                raise ValueError(
                    f"The results do not have runs with {name}={value!r}, only with {known}."
                )
    if not chosen:
        raise ValueError("The results have no runs to compare. Train some with compare(...).")
    return chosen


def group(lines: Sequence[Line], arms: Sequence[Arm] | None) -> dict[str, dict[int, Line]]:
    """Assign runs to arms, by what was trained and not by name: arm -> seed -> run.

    Args:
        lines: Runs of one setting.
        arms: The arms. If None, everything that was trained, in the order of the runs.

    Raises:
        ValueError: If an arm has no runs, or a run has two different results.
    """
    width = next((line["width"] for line in lines if line["width"] is not None), None)
    if arms is None:
        names: dict[str, str] = {}
        for line in lines:
            name = line.get("arm") or _name(line)
            if (key := _key(training_of(line))) not in names:
                taken = name in names.values()
                names[key] = f"{name} width={line['width']}" if taken else name
        keys = {name: key for key, name in names.items()}
    else:
        keys = {arm.name: _key(_training_of_arm(arm, width)) for arm in arms}
    result: dict[str, dict[int, Line]] = {name: {} for name in keys}
    for name, key in keys.items():
        for line in lines:
            if _key(training_of(line)) == key:
                _add(result[name], name, line)
    if empty := [name for name, runs in result.items() if not runs]:
        known = dict.fromkeys(line.get("arm") or _name(line) for line in lines)
        raise ValueError(
            f"The results have no runs of arm {empty[0]!r}. They have runs of {', '.join(known)}."
        )
    return result


def training_of(line: Line) -> dict[str, Any]:
    """Return what determines the training of a run, apart from setting and seed."""
    return _training(line["recipe"], line["data"], line["network"], line["width"])


def _training_of_arm(arm: Arm, width: Any) -> dict[str, Any]:
    described = describe(arm, width)
    values = (described[name] for name in ("data", "network", "width"))
    return _training(described["recipe"], *values)


def _training(recipe: Line, data: Line, network: Any, width: Any) -> dict[str, Any]:
    idle = without_effect(_recipe(recipe)[0])
    values = {name: value for name, value in recipe.items() if name not in idle}
    return {"recipe": values, "data": dict(data), "network": network, "width": width}


def _key(training: Line) -> str:
    return json.dumps(training, sort_keys=True)


def _name(line: Line) -> str:
    recipe, others = _recipe(line["recipe"])
    return " ".join([recipe_name(recipe), *(f"{k}={v}" for k, v in others.items())])


def _recipe(values: Line) -> tuple[Recipe, dict[str, Any]]:
    """Return a recipe, and the values of fields that it does not have any more."""
    known = Recipe().to_dict()
    others = {name: value for name, value in values.items() if name not in known}
    return Recipe(**{name: value for name, value in values.items() if name in known}), others


def _add(runs: dict[int, Line], name: str, line: Line) -> None:
    """Add a run; the same one may be in several files, or with fewer views of the test images."""
    known = runs.setdefault(line["seed"], line)
    reported = [{key for key in METRICS if key in each} for each in (known, line)]
    common = reported[0] & reported[1] - {"train_seconds"}
    if any(known[key] != line[key] for key in common):
        raise ValueError(
            f"The results have two different runs of arm {name!r} with seed {line['seed']}, from "
            f"{known.get('date')} and {line.get('date')}. Remove one of them."
        )
    if len(reported[1]) > len(reported[0]):
        runs[line["seed"]] = line


def _renamed(recipe: Line) -> dict[str, Any]:
    """Return a recipe with today's field names; older lines have other ones."""
    names = {"norm_bias_lr": "norm_bias_lr_scale", "test_views": "tta"}
    values = {names.get(name, name): value for name, value in recipe.items()}
    return values | ({"tta": "none"} if values.get("tta") == "plain" else {})
