"""Tell arms apart by what they train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cifar_resnet.comparison.arms import Arm, as_arm, without_effect

__all__ = ["as_arms", "describe"]


def as_arms(values: Sequence[Any], width: int) -> tuple[Arm, ...]:
    """Validate the arms of a comparison: at least two, which differ in name and in training.

    Raises:
        TypeError: As for `as_arm`.
        ValueError: If there are fewer than two, or two of them do not differ, or
            would be evaluated on different images.
    """
    arms = tuple(map(as_arm, values))
    if len(arms) < 2:
        raise ValueError(
            f"A comparison needs at least two arms, but got {[arm.name for arm in arms]}. The "
            "first is the one that the others are compared with."
        )
    described = [describe(arm, width) for arm in arms]
    for index, arm in enumerate(arms):
        for other in range(index):
            _check_different((arms[other], described[other]), (arm, described[index]))
            _check_evaluation(arms[other], arm)
    return arms


def describe(arm: Arm, width: int) -> dict[str, Any]:
    """Return what identifies the runs of an arm as plain values.

    A network of the caller is described by its printed layers, since code has no other name.

    Args:
        arm: The arm.
        width: Width of the comparison.
    """
    result: dict[str, Any] = {"recipe": arm.recipe.to_dict(), "data": dict(arm.data)}
    if arm.network is None:
        return result | {"width": arm.width or width, "network": None}
    from cifar_resnet.comparison.initial import build, fingerprint

    return result | {"width": None, "network": fingerprint(build(arm, width, seed=0))}


def _check_evaluation(one: Arm, other: Arm) -> None:
    """Raise if two arms would be evaluated on different images."""
    for option in ("class_subset", "folds", "train_indices"):
        values = [arm.data.get(option) for arm in (one, other)]
        if values[0] != values[1]:
            raise ValueError(
                f"The arms {one.name!r} and {other.name!r} would be evaluated on different images, "
                f"because {option} is {values[0]!r} and {values[1]!r}. Give all arms the same "
                f"{option}."
            )


def _check_different(one: tuple[Arm, dict[str, Any]], other: tuple[Arm, dict[str, Any]]) -> None:
    """Raise if two arms have the same name, or train the same."""
    (first, first_values), (second, second_values) = one, other
    if _effective(first, first_values) == _effective(second, second_values):
        names = repr(first.name)
        if second.name != first.name:
            names += f" and {second.name!r}"
        recipes = first.recipe.to_dict(), second.recipe.to_dict()
        idle = [k for k in recipes[0] if k != "name" and recipes[0][k] != recipes[1][k]]
        reason = f" Only {', '.join(idle)} differs, which changes nothing here." if idle else ""
        if idle == ["tta"]:
            reason = (
                " Only tta differs, which does not change the training: a run with tta='six' "
                "reports the accuracy with and without test-time augmentation."
            )
        raise ValueError(
            f"The arms {names} do not differ, so there is nothing to compare.{reason} Change an "
            "arm, such as 'muon label_smoothing=0.2'."
        )
    if first.name == second.name:
        raise ValueError(
            f"Two arms are called {first.name!r}. Give one of them another name with "
            "Arm(..., name=...)."
        )


def _effective(arm: Arm, described: dict[str, Any]) -> dict[str, Any]:
    idle = without_effect(arm.recipe)
    recipe = {k: v for k, v in described["recipe"].items() if k not in idle}
    if arm.network is not None:  # it does not use the options of the recipe
        recipe = {k: v for k, v in recipe.items() if k not in arm.recipe.network_options()}
    data = arm.data_options()
    return described | {"recipe": {k: v for k, v in recipe.items() if k not in data}, "data": data}
