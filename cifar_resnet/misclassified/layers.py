"""Which layers' outputs a class activation map is made from. It knows modules and their outputs; it
must not know methods or data.
"""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.misclassified.scores import class_scores

Reshape = Callable[[Tensor], Tensor]
_MOST_PREFIX_TOKENS = 8  # class, distillation and register tokens

_POOLS = (
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)


@dataclass(frozen=True, eq=False)
class TargetLayer:
    """A layer, and how its output is brought to (N, C, height, width).

    Attributes:
        name: Name of the submodule.
        module: The submodule.
        grid: Height and width of its output.
        to_map: The change of shape: none for an image-like output, tokens to a grid otherwise.
    """

    name: str
    module: nn.Module
    grid: tuple[int, int]
    to_map: Reshape


@dataclass(frozen=True, eq=False)
class _Seen:
    """One layer's output in the run that looks for candidates."""

    name: str
    module: nn.Module
    output: Tensor
    layer: TargetLayer | None  # None if it has no places
    influence: bool  # whether the scores depend on what it says about places


def find_target_layers(
    model: nn.Module,
    run: nn.Module,
    image: Tensor,
    wanted: Any,
    reshape: Reshape | None,
) -> list[TargetLayer]:
    """The layers asked for, or the last one that has several places and matters to the scores.

    Args:
        model: The module whose submodules are meant.
        run: What to call; it calls `model`.
        image: One input (1, C, H, W) for which gradients are wanted.
        wanted: Names or submodules, one or several; None for the last one.
        reshape: From a layer's output to (N, C, height, width); None to find it.

    Raises:
        ValueError: If there is no such layer, or its output has no places.
    """
    modules = dict(model.named_modules())
    if wanted is None:
        seen = _outputs(model, run, image, reshape)
        suitable = [each for each in seen if each.layer is not None and each.influence]
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
    names = [
        _name(each, modules, lambda: _candidates(_outputs(model, run, image, reshape)))
        for each in ([wanted] if isinstance(wanted, str | nn.Module) else list(wanted))
    ]
    seen = _outputs(model, run, image, reshape)
    last = {each.name: each for each in seen}
    layers = []
    for name in names:
        found = last.get(name)
        if found is None or found.layer is None:
            what = (
                "is not called, or gives no tensor,"
                if found is None
                else f"gives an output of shape {tuple(found.output.shape)}, which has no places,"
            )
            raise ValueError(
                f"Layer {name!r} {what} when the model runs, so it has no map. Take another one, "
                f"or pass reshape_transform= for its output. {_candidates(seen)}"
            )
        layers.append(found.layer)
    return layers


def check_target_layers(wanted: Any) -> None:
    """Raise for what names no layer of any model."""
    if wanted is None or isinstance(wanted, str | nn.Module):
        return
    message = "the name of a submodule or the submodule, or several of them"
    layers = arguments.sequence("target_layers", wanted, message)
    if not all(isinstance(each, str | nn.Module) for each in layers):
        raise TypeError(f"target_layers must be {message}, but got {wanted!r}.")
    if not layers:
        raise ValueError("target_layers is empty; give a name, several, or None for the last one.")


def _name(wanted: Any, modules: Mapping[str, nn.Module], candidates: Callable[[], str]) -> str:
    name = wanted
    if isinstance(wanted, nn.Module):
        name = next((name for name, module in modules.items() if module is wanted), None)
        if name is None:
            raise ValueError(
                f"The target layer {type(wanted).__name__} is no part of the model. Pass a "
                "submodule of the very model that is explained, or its name."
            )
    if isinstance(name, str) and name and name in modules:
        return name
    close = difflib.get_close_matches(str(name), list(modules), n=5, cutoff=0.4)
    hint = f" Close ones: {', '.join(close)}." if close else ""
    raise ValueError(f"No layer is called {name!r}.{hint} {candidates()}")


def _candidates(seen: Sequence[_Seen]) -> str:
    grids = {each.name: each.layer.grid for each in seen if each.layer and each.influence}
    names = [
        f"{name} ({height} x {width})"
        for name, (height, width) in grids.items()
        if grids.get(name.rpartition(".")[0]) != (height, width)  # not the parts of one listed
    ][-12:]
    return f"Suitable ones: {', '.join(names)}." if names else "No layer here is suitable."


def _outputs(
    model: nn.Module, run: nn.Module, image: Tensor, reshape: Reshape | None
) -> list[_Seen]:
    """The outputs of all submodules in the order in which they are done."""
    found: list[tuple[str, nn.Module, Tensor]] = []
    names = {module: name for name, module in model.named_modules() if name}

    with contextlib.ExitStack() as hooks:
        for module, name in names.items():

            def note(module: nn.Module, args: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and output.dim() > 2 and output.is_floating_point():
                    found.append((name, module, output))

            hooks.enter_context(_removed(module.register_forward_hook(note)))
        scores = class_scores(run, image)
    if not scores.requires_grad:
        raise ValueError(
            "The model's scores carry no gradient, which the maps are made of: it runs under "
            "torch.no_grad() or inference_mode(), or detaches a tensor."
        )
    grads: Sequence[Tensor | None] = []
    if found:
        grads = torch.autograd.grad(
            scores.logsumexp(1).sum() + scores[0, 0],
            [output if output.requires_grad else image for _, _, output in found],
            allow_unused=True,
        )
    seen = []
    grid: tuple[int, int] | None = None
    for (name, module, output), grad in zip(found, grads, strict=True):
        layer = None
        if reshape is not None or output.dim() in (3, 4):
            to_map = reshape or _to_map(output, grid)
            if to_map is not None:
                maps = to_map(output.detach())
                if not isinstance(maps, Tensor):
                    raise ValueError(
                        "reshape_transform must return a tensor (N, C, height, width), but returns "
                        f"{type(maps).__name__} for the output of layer {name!r}."
                    )
                shape = tuple(maps.shape)
                if len(shape) == 4 and shape[2] * shape[3] > 1:
                    layer = TargetLayer(name, module, (shape[2], shape[3]), to_map)
        if output.dim() == 4 and layer is not None:
            grid = layer.grid
        influence = False
        if layer is not None and grad is not None and output.requires_grad:
            influence = grad.shape == output.shape and bool(layer.to_map(grad).any())
        seen.append(_Seen(name, module, output, layer, influence))
    return seen


def _to_map(output: Tensor, grid: tuple[int, int] | None) -> Reshape | None:
    if output.dim() == 4:
        return _as_it_is
    tokens = output.shape[1]
    if grid is None or not 0 <= tokens - grid[0] * grid[1] <= _MOST_PREFIX_TOKENS:
        side = math.isqrt(tokens)
        grid = (side, side)  # of tokens without or with a class token
        if tokens - side * side > 1 or side < 2:
            return None
    height, width = grid

    def tokens_to_grid(values: Tensor) -> Tensor:
        places = values[:, values.shape[1] - height * width :]  # special tokens come first
        return places.transpose(1, 2).reshape(len(values), -1, height, width)

    return tokens_to_grid


def _as_it_is(values: Tensor) -> Tensor:
    return values


@contextlib.contextmanager
def recorded(layers: Sequence[TargetLayer]) -> Iterator[dict[str, Tensor]]:
    """The outputs of layers in the runs inside, by name; of a layer called twice the last.

    What follows gets a copy, so that an operation in place does not write over the record.
    """
    outputs: dict[str, Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for layer in layers:

            def keep(
                module: nn.Module, args: Any, output: Tensor, name: str = layer.name
            ) -> Tensor:
                outputs[name] = output
                return output.clone()

            hooks.enter_context(_removed(layer.module.register_forward_hook(keep)))
        yield outputs


@contextlib.contextmanager
def _removed(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
