"""Find the layers whose outputs class activation maps are computed from."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from cifar_resnet import arguments
from cifar_resnet.misclassified.execution import (
    gradients,
    nodes_between,
    watch_outputs,
    with_gradient,
)
from cifar_resnet.misclassified.scores import class_scores

Reshape = Callable[[Tensor], Tensor]
_MAX_PREFIX_TOKENS = 8  # class, distillation and register tokens

_POOLS = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)


@dataclass(frozen=True, eq=False)
class TargetLayer:
    """A layer and the conversion of its output to (N, C, height, width).

    Attributes:
        name: Name of the submodule.
        module: The submodule.
        grid: Height and width of its output.
        to_map: The conversion: none for an image-like output, from tokens to a grid otherwise.
    """

    name: str
    module: nn.Module
    grid: tuple[int, int]
    to_map: Reshape


@dataclass(frozen=True, eq=False)
class _LayerOutput:
    """The output of one layer in the run that looks for candidates."""

    name: str
    module: nn.Module
    output: Tensor
    layer: TargetLayer | None  # None without spatial output
    affects_scores: bool  # whether the scores depend on the spatial output


def find_target_layers(
    model: nn.Module,
    runner: nn.Module,
    image: Tensor,
    requested: Sequence[str | nn.Module] | None,
    reshape: Reshape | None,
    without_gradient: bool = False,
) -> list[TargetLayer]:
    """Return the requested layers, or the last one with spatial output that affects the scores.

    Args:
        model: The module whose submodules are meant.
        runner: What to call; it calls `model`.
        image: One input (1, C, H, W), which requires gradients if it is floating-point.
        requested: Names or submodules. If None, choose the last suitable layer.
        reshape: Conversion of a layer's output to (N, C, height, width). If None, inferred.
        without_gradient: If True, and no gradient reaches a layer, assume that the scores depend on
            all of them.

    Raises:
        ValueError: If there is no such layer, or it has no spatial output.
    """
    if requested is None:
        outputs = _layer_outputs(model, runner, image, reshape, None, without_gradient)
        spatial = [each for each in outputs if each.layer is not None]
        suitable = [each for each in spatial if each.affects_scores]
        if spatial and not suitable:
            if not without_gradient:
                raise ValueError(
                    "The scores have no gradient, or one of 0, in every layer with spatial output, "
                    f"such as {spatial[-1].name!r}. The model may detach a tensor or have "
                    "operations without gradients, such as those of int8 weights: use "
                    'method="eigencam", which needs none.'
                )
            suitable = spatial
        without_pools = [each for each in suitable if not isinstance(each.module, _POOLS)]
        for each in reversed(without_pools or suitable):
            assert each.layer is not None
            return [each.layer]
        raise ValueError(
            f"No layer of {type(model).__name__} has an image-like output (N, C, height, width) "
            "that its scores depend on. If it calls functions without a module, put an "
            "nn.Identity() behind the last one, which gives it a name; if its maps have another "
            "shape, pass target_layers= and reshape_transform=."
        )
    names = [_name(each, model) for each in requested]
    outputs = _layer_outputs(model, runner, image, reshape, names, without_gradient)
    by_name = {each.name: each for each in outputs}  # the last output of a layer called twice
    layers = []
    for given, name in zip(requested, names, strict=True):
        if name is None:
            close = difflib.get_close_matches(str(given), dict(model.named_modules()), 5, 0.4)
            hint = f" Close matches: {', '.join(close)}." if close else ""
            raise ValueError(f"No layer is called {given!r}.{hint} {_candidates(outputs)}")
        output = by_name.get(name)
        if output is None or output.layer is None:
            reason = (
                "is not called, or does not return a tensor"
                if output is None
                else f"returns an output of shape {tuple(output.output.shape)}, which is not "
                "spatial"
            )
            raise ValueError(
                f"Layer {name!r} {reason}, so it has no map. Choose another layer, or pass "
                f"reshape_transform= for its output. {_candidates(outputs)}"
            )
        layers.append(output.layer)
    return layers


def as_target_layers(layers: Any) -> tuple[str | nn.Module, ...] | None:
    """Convert a layer or several layers to a tuple; None stays None."""
    if layers is None:
        return None
    if isinstance(layers, str | nn.Module):
        return (layers,)
    expected = "the name of a submodule or the submodule, or several of them"
    several = arguments.sequence("target_layers", layers, expected)
    if not all(isinstance(each, str | nn.Module) for each in several):
        raise TypeError(f"target_layers must be {expected}, but got {layers!r}.")
    if not several:
        raise ValueError(
            "target_layers is empty. Pass at least one layer, or None to choose it automatically."
        )
    return tuple(several)


def _name(requested: str | nn.Module, model: nn.Module) -> str | None:
    """Return the name of a submodule given by its name or itself; None if there is no such name."""
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if isinstance(requested, nn.Module):
        for name, module in modules.items():
            if module is requested and name:
                return name
        raise ValueError(
            f"The target layer {type(requested).__name__} is not a submodule of the model. Pass a "
            "submodule of the model that is explained, or its name."
        )
    return requested if requested in modules and requested else None


def _candidates(outputs: Sequence[_LayerOutput]) -> str:
    grids = {each.name: each.layer.grid for each in outputs if each.layer and each.affects_scores}
    names = [
        f"{name} ({height} x {width})"
        for name, (height, width) in grids.items()
        if grids.get(name.rpartition(".")[0]) != (height, width)  # not the parts of one listed
    ][-12:]
    return f"Suitable ones: {', '.join(names)}." if names else "No layer here is suitable."


def _layer_outputs(
    model: nn.Module,
    runner: nn.Module,
    image: Tensor,
    reshape: Reshape | None,
    requested: Sequence[str | None] | None,
    without_gradient: bool,
) -> list[_LayerOutput]:
    """Run the model and return the outputs of all submodules in the order of their completion.

    `reshape` converts the outputs of the requested layers. If none are requested, it converts those
    that it can convert.
    """
    outputs: list[tuple[str, Tensor, Node | None]] = []
    modules = {name: module for name, module in model.named_modules() if name}
    starts = [image.grad_fn]

    def record(name: str, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor) or output.dim() < 3:
            return None
        hidden = not image.requires_grad or not torch.is_grad_enabled() or output.is_quantized
        kept, passed_on = with_gradient(output) if hidden else (output, None)
        node = kept.grad_fn if passed_on is None else passed_on.grad_fn
        if hidden:
            starts.append(node)
        if kept.is_floating_point():
            outputs.append((name, kept, node))
        return passed_on

    with watch_outputs(modules, record):
        scores = class_scores(runner, image)
    if not scores.requires_grad and not without_gradient:
        raise ValueError(
            "The model's scores carry no gradient, which the maps are computed from: the model "
            "runs under torch.no_grad() or inference_mode(), or detaches a tensor. "
            'method="eigencam" needs none.'
        )
    score = scores.logsumexp(1).sum() + scores[0, 0]
    try:
        grads = gradients(score, [output for _, output, _ in outputs], all)
    except ValueError:
        if not without_gradient:
            raise
        grads = [None] * len(outputs)
    after_image = nodes_between(starts, score)
    results = []
    grid: tuple[int, int] | None = None  # of the last image-like output
    for (name, output, node), grad in zip(outputs, grads, strict=True):
        to_map: Reshape | None = None
        if reshape is not None and (requested is None or name in requested):
            to_map = reshape
            maps = _reshaped(reshape, output.detach(), name, must_fit=requested is not None)
        else:
            to_map = _to_map(output, grid) if output.dim() in (3, 4) else None
            maps = None if to_map is None else to_map(output.detach())
        layer = None
        if to_map is not None and maps is not None:
            shape = tuple(maps.shape)
            if len(shape) == 4 and shape[2] * shape[3] > 1:
                layer = TargetLayer(name, modules[name], (shape[2], shape[3]), to_map)
        if output.dim() == 4 and layer is not None:
            grid = layer.grid
        affects_scores = False
        if layer is not None and grad is not None and node in after_image:
            affects_scores = grad.shape == output.shape and bool(layer.to_map(grad).any())
        results.append(_LayerOutput(name, modules[name], output, layer, affects_scores))
    return results


def _reshaped(reshape: Reshape, output: Tensor, name: str, must_fit: bool) -> Tensor | None:
    """Return the result of `reshape_transform` for the output of a layer.

    If it raises an exception, the result is None, unless the layer was requested.
    """
    try:
        maps = reshape(output)
    except Exception as error:
        if not must_fit:
            return None
        raise ValueError(
            f"reshape_transform fails on the output of layer {name!r}, whose shape is "
            f"{tuple(output.shape)}: {type(error).__name__}: {error}. It must return a tensor (N, "
            "C, height, width)."
        ) from error
    if not isinstance(maps, Tensor):
        raise ValueError(
            "reshape_transform must return a tensor (N, C, height, width), but returns "
            f"{type(maps).__name__} for the output of layer {name!r}."
        )
    if must_fit and (maps.dim() != 4 or len(maps) != len(output) or maps[0, 0].numel() < 2):
        raise ValueError(
            "reshape_transform must return a tensor (N, C, height, width) with more than one "
            f"position, but returns {tuple(maps.shape)} for the output {tuple(output.shape)} of "
            f"layer {name!r}."
        )
    return maps


def _to_map(output: Tensor, grid: tuple[int, int] | None) -> Reshape | None:
    """Infer the conversion of an output to (N, C, height, width); None if there is none.

    Tokens (N, tokens, C) lie on the grid of the last image-like output if their number fits, for
    example 65 tokens on a patch embedding of 8 x 8 with a class token; otherwise on a square.
    """
    if output.dim() == 4:
        return _unchanged
    tokens = output.shape[1]
    if grid is None or not 0 <= tokens - grid[0] * grid[1] <= _MAX_PREFIX_TOKENS:
        side = math.isqrt(tokens)
        grid = (side, side)  # of tokens without or with a class token
        if tokens - side * side > 1 or side < 2:
            return None
    height, width = grid

    def tokens_to_grid(values: Tensor) -> Tensor:
        patches = values[:, values.shape[1] - height * width :]  # special tokens come first
        return patches.transpose(1, 2).reshape(len(values), -1, height, width)

    return tokens_to_grid


def _unchanged(values: Tensor) -> Tensor:
    return values


@contextlib.contextmanager
def record_outputs(layers: Sequence[TargetLayer]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of layers by name; of a layer that is called twice, the last one.

    The following layers receive a copy, so that an in-place operation does not change the record.
    """
    outputs: dict[str, Tensor] = {}

    def record(name: str, output: Tensor) -> Tensor:
        outputs[name], passed_on = with_gradient(output)
        return output.clone() if passed_on is None else passed_on

    with watch_outputs({layer.name: layer.module for layer in layers}, record):
        yield outputs
