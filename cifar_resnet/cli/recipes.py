"""Build the recipe that the options of `cifar-resnet train` describe."""

from __future__ import annotations

import argparse
import ast
from typing import TYPE_CHECKING, Any

from cifar_resnet.cli.options import CommandError

if TYPE_CHECKING:
    from cifar_resnet import Recipe


def build_recipe(args: argparse.Namespace) -> Recipe:
    """Build the recipe from `--recipe`, `--set` and `--batch-size`."""
    from dataclasses import replace

    from cifar_resnet import Recipe

    try:
        recipe = Recipe.preset(args.recipe)
        recipe = replace(recipe, **_changes(args.set, tuple(recipe.to_dict())))
        return replace(recipe, batch_size=args.batch_size) if args.batch_size else recipe
    except (TypeError, ValueError) as error:
        raise CommandError(str(error), code=2) from error


def _changes(assignments: list[str], fields: tuple[str, ...]) -> dict[str, Any]:
    """Parse `FIELD=VALUE` strings; values are Python literals, or strings without quotes."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        field, equals, text = assignment.partition("=")
        if field not in fields or not equals:
            raise ValueError(
                f"--set must be FIELD=VALUE with a field of the recipe, but got {assignment!r}. "
                f"The fields are {', '.join(fields)}."
            )
        try:
            changes[field] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            changes[field] = text
    return changes
