"""Compute the class activation maps that the figure of errors shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from cifar_resnet.misclassified.cams import CamOptions, cams_and_layers
from cifar_resnet.misclassified.layers import TargetLayer
from cifar_resnet.model_state import unwrap_compiled

Maps = dict[str, Tensor]  # of one image (H, W), or of several (N, H, W), by kind


class Explained(Protocol):
    """An image with its label and prediction, such as a `MisclassifiedSample`."""

    @property
    def inputs(self) -> Tensor: ...
    @property
    def true(self) -> int: ...
    @property
    def predicted(self) -> int: ...


def maps_of_errors(
    model: nn.Module,
    errors: Sequence[Explained],
    cam: str,
    options: CamOptions,
    device: torch.device | None,
) -> tuple[list[Maps], str]:
    """Return the maps of each error, and the names and grids of their layers.

    Args:
        model: As for `compute_cams`.
        errors: At least one error; the images may differ in size.
        cam: As for `show_misclassified`, but not None.
        options: Method and layers.
        device: As for `compute_cams`.
    """
    by_shape: dict[torch.Size, list[int]] = {}
    for number, sample in enumerate(errors):
        by_shape.setdefault(sample.inputs.shape, []).append(number)
    maps: list[Maps] = [{} for _ in errors]
    names: dict[str, None] = {}  # in order
    for numbers in by_shape.values():
        samples = [errors[number] for number in numbers]
        of_size, layers = maps_of_batch(
            model,
            torch.stack([sample.inputs for sample in samples]),
            [sample.true for sample in samples],
            [sample.predicted for sample in samples],
            cam,
            options,
            device,
        )
        names |= dict.fromkeys(f"{each.name} ({each.grid[0]} x {each.grid[1]})" for each in layers)
        for row, number in enumerate(numbers):
            maps[number] = {kind: values[row] for kind, values in of_size.items()}
    return maps, ", ".join(names)


def maps_of_batch(
    model: nn.Module,
    inputs: Tensor,
    true: list[int],
    predicted: list[int],
    cam: str,
    options: CamOptions,
    device: torch.device | None,
) -> tuple[Maps, list[TargetLayer]]:
    """Return the maps of images of the same size by kind, and their layers."""
    model = unwrap_compiled(model)
    maps: Maps = {}
    layers: list[TargetLayer] | None = None
    for kind in ("predicted", "true") if cam == "both" else (cam,):
        maps[kind], layers = cams_and_layers(
            model,
            inputs,
            true if kind == "true" else predicted,
            true if kind == "contrast" else None,
            options,
            device,
            layers,
        )
    return maps, layers or []
