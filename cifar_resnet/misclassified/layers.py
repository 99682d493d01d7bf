"""Find the layers whose outputs class activation maps are computed from."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from cifar_resnet import arguments
from cifar_resnet.misclassified.execution import (
    gradients,
    nodes_between,
    tensor_of,
    watch_outputs,
    with_gradient,
    with_tensor,
)
from cifar_resnet.misclassified.layouts import (
    Layout,
    layout_of_image_operation,
    probe_layouts,
)
from cifar_resnet.misclassified.scores import class_scores

Reshape = Callable[[Tensor], Tensor]
_PROBED_AT_ONCE = 40  # of a few hundred layers

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
        to_map: The conversion.
    """

    name: str
    module: nn.Module
    grid: tuple[int, int]
    to_map: Reshape


@dataclass(frozen=True, eq=False)
class _Output:
    """The output of a layer for one image, and the gradient of the scores with respect to it."""

    name: str
    module: nn.Module
    values: Tensor
    grad: Tensor | None  # None if the scores do not depend on it

    def as_layer(self, to_map: Reshape, maps: Tensor) -> TargetLayer | None:
        """Return the layer, given its maps; None if they have no more than one position."""
        shape = tuple(maps.shape)
        if len(shape) != 4 or shape[2] * shape[3] < 2:
            return None
        return TargetLayer(self.name, self.module, (shape[2], shape[3]), to_map)

    @property
    def has_gradient(self) -> bool:
        return self.grad is not None and bool(self.grad.any())

    def affects(self, layer: TargetLayer) -> bool:
        """Return whether the scores depend on the maps, and not only on special tokens."""
        return self.grad is not None and bool(layer.to_map(self.grad).any())


def find_target_layers(
    model: nn.Module,
    image: Tensor,
    requested: Sequence[str | nn.Module] | None,
    reshape: Reshape | None,
    without_gradient: bool = False,
) -> list[TargetLayer]:
    """Return the requested layers, or the last one with spatial output that affects the scores.

    Args:
        model: The model.
        image: One input (1, C, H, W), which requires gradients if it is floating-point.
        requested: Names or submodules. If None, choose the last suitable layer.
        reshape: Conversion of a layer's output to (N, C, height, width). If None, inferred.
        without_gradient: If True, and no gradient reaches a layer, assume that the scores depend on
            all of them.

    Raises:
        ValueError: If there is no such layer, or it has no spatial output.
    """
    outputs = _layer_outputs(model, image, without_gradient)
    if requested is not None:
        return _requested_layers(model, requested, _Finder(model, image, outputs), reshape)
    if outputs and not without_gradient and not any(each.has_gradient for each in outputs):
        raise ValueError(
            "The scores have no gradient, or one of 0, in every layer, such as "
            f"{outputs[-1].name!r}. If the last layer has weights of 0, load trained weights. If "
            "the model detaches a tensor or has operations without gradients, such as those of "
            'int8 weights, use method="eigencam", which needs none.'
        )
    find = _Finder(model, image, outputs).layer if reshape is None else _by_reshaping(reshape)
    second_choice = None
    for output in reversed(outputs):
        layer = find(output) if output.has_gradient else None
        if layer is not None and output.affects(layer):
            if not isinstance(output.module, _POOLS) and not _is_part_of_attention(output):
                return [layer]
            second_choice = second_choice or layer
    if second_choice is not None:
        return [second_choice]
    raise ValueError(
        f"No layer of {type(model).__name__} has an output with rows and columns of the image "
        "that its scores depend on. If it calls functions without a module, put an nn.Identity() "
        "behind the last one, which gives it a name; if its maps have another shape, pass "
        "target_layers= and reshape_transform=. To show errors without maps, pass cam=None."
    )


def _is_part_of_attention(output: _Output) -> bool:
    """Return whether an output is that of the queries, keys or values of tokens."""
    parents = output.name.split(".")[:-1]
    is_tokens = output.values.dim() == 3 or layout_of_image_operation(output.values) is None
    return is_tokens and any("attn" in part or "attention" in part for part in parents)


def _requested_layers(
    model: nn.Module,
    requested: Sequence[str | nn.Module],
    finder: _Finder,
    reshape: Reshape | None,
) -> list[TargetLayer]:
    by_name = {each.name: each for each in finder.outputs}  # the last of a layer called twice
    layers = []
    for given in requested:
        name = _name(given, model)
        if name is None:
            close = difflib.get_close_matches(str(given), dict(model.named_modules()), 5, 0.4)
            hint = f" Close matches: {', '.join(close)}." if close else ""
            raise ValueError(f"No layer is called {given!r}.{hint} {finder.candidates()}")
        output = by_name.get(name)
        if output is None:
            raise ValueError(
                f"Layer {name!r} is not called, or does not return a float tensor with three axes "
                f"or more, so it has no map. Choose another layer. {finder.candidates()}"
            )
        if reshape is not None:
            layer = output.as_layer(reshape, _reshaped(reshape, output))
        else:
            layer = finder.layer(output)
        if layer is None:
            raise ValueError(
                f"Layer {name!r} returns an output of shape {tuple(output.values.shape)}, of which "
                "no two axes, and no axis of tokens, belong to the rows and columns of the image. "
                "Choose another layer, or pass reshape_transform=, a function from this output to "
                f"(N, C, height, width). {finder.candidates()}"
            )
        layers.append(layer)
    return layers


def _by_reshaping(reshape: Reshape) -> Callable[[_Output], TargetLayer | None]:
    """Return a function that finds the layers whose outputs `reshape` can convert."""

    def layer(output: _Output) -> TargetLayer | None:
        try:
            maps = reshape(output.values.detach())
        except Exception:  # of a layer that was not requested
            return None
        if not isinstance(maps, Tensor):
            maps = _reshaped(reshape, output)  # raises
        return output.as_layer(reshape, maps)

    return layer


class _Finder:
    """Find the rows and columns in the outputs of layers, running the model only if necessary."""

    def __init__(self, model: nn.Module, image: Tensor, outputs: Sequence[_Output]) -> None:
        self.outputs = outputs
        self._model, self._image = model, image
        self._layouts: dict[str, Layout | None] = {}

    def layer(self, output: _Output) -> TargetLayer | None:
        """Return the layer of an output; None if it has no rows and columns of the image."""
        layout = layout_of_image_operation(output.values)
        if layout is None and output.name not in self._layouts:
            self._probe(output)
        layout = layout or self._layouts[output.name]
        if layout is None:
            return None
        return output.as_layer(layout.to_map, layout.to_map(output.values))

    def candidates(self) -> str:
        """Name the last layers that are suitable, for an error message."""
        last = self.outputs[-_PROBED_AT_ONCE:]
        layers = [(output, self.layer(output)) for output in last]
        grids = {each.name: each.grid for output, each in layers if each and output.affects(each)}
        names = [
            f"{name} ({height} x {width})"
            for name, (height, width) in grids.items()
            if grids.get(name.rpartition(".")[0]) != (height, width)  # not the parts of one listed
        ][-12:]
        return f"Suitable ones: {', '.join(names)}." if names else "No layer here is suitable."

    def _probe(self, output: _Output) -> None:
        """Find the layouts of an output and of those before it, the next ones to be asked for."""
        known: dict[torch.Size, set[Layout]] = {}
        unknown = []
        for each in self.outputs[: self.outputs.index(output) + 1]:
            layout = layout_of_image_operation(each.values)
            if layout is None:
                unknown.append(each)
            else:
                known.setdefault(each.values.shape, set()).add(layout)
        modules = {each.name: (each.module, each.values) for each in unknown[-_PROBED_AT_ONCE:]}
        found = probe_layouts(self._model, self._image, modules, known)
        self._layouts |= {name: found.get(name) for name in modules if name not in self._layouts}


def as_target_layers(layers: Any, name: str = "target_layers") -> tuple[Any, ...] | None:
    """Convert the argument `name`, one or several layers, to a tuple; None stays None."""
    if layers is None:
        return None
    if isinstance(layers, str | nn.Module):
        return (layers,)
    expected = "the name of a submodule or the submodule, or several of them"
    several = arguments.sequence(name, layers, expected)
    if not all(isinstance(each, str | nn.Module) for each in several):
        raise TypeError(f"{name} must be {expected}, but got {layers!r}.")
    if not several:
        raise ValueError(
            f"{name} is empty. Pass at least one layer, or None to choose it automatically."
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


def _layer_outputs(model: nn.Module, image: Tensor, without_gradient: bool) -> list[_Output]:
    """Run the model and return the outputs of all submodules in the order of their completion."""
    outputs: list[tuple[str, Tensor, Node | None]] = []
    modules = {name: module for name, module in model.named_modules() if name}
    starts = [image.grad_fn]

    def record(name: str, output: Any) -> Any:
        values = tensor_of(output)
        if values is None or values.dim() < 3:
            return None
        hidden = not image.requires_grad or not torch.is_grad_enabled() or values.is_quantized
        kept, passed_on = with_gradient(values) if hidden else (values, None)
        node = kept.grad_fn if passed_on is None else passed_on.grad_fn
        if hidden:
            starts.append(node)
        if kept.is_floating_point():
            outputs.append((name, kept, node))
        return None if passed_on is None else with_tensor(output, passed_on)

    with watch_outputs(modules, record):
        scores = class_scores(model, image)
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
    found = [
        _Output(name, modules[name], output, grad if node in after_image else None)
        for (name, output, node), grad in zip(outputs, grads, strict=True)
    ]
    if without_gradient and not any(output.has_gradient for output in found):
        return [replace(output, grad=torch.ones_like(output.values)) for output in found]
    return found


def _reshaped(reshape: Reshape, output: _Output) -> Tensor:
    """Return the result of `reshape_transform` for the output of a requested layer."""
    shape = tuple(output.values.shape)
    expected = "must return a tensor (N, C, height, width)"
    try:
        maps = reshape(output.values.detach())
    except Exception as error:
        raise ValueError(
            f"reshape_transform fails on the output of layer {output.name!r}, whose shape is "
            f"{shape}: {type(error).__name__}: {error}. It {expected}."
        ) from error
    if not isinstance(maps, Tensor):
        raise ValueError(
            f"reshape_transform {expected}, but returns {type(maps).__name__} for the output of "
            f"layer {output.name!r}."
        )
    if maps.dim() != 4 or len(maps) != 1 or maps[0, 0].numel() < 2:
        raise ValueError(
            f"reshape_transform {expected} with more than one position, but returns "
            f"{tuple(maps.shape)} for the output {shape} of layer {output.name!r}."
        )
    return maps


@contextlib.contextmanager
def record_outputs(layers: Sequence[TargetLayer]) -> Iterator[dict[str, Tensor]]:
    """Record the outputs of layers by name; of a layer that is called twice, the last one.

    The following layers receive a copy, so that an in-place operation does not change the record.
    """
    outputs: dict[str, Tensor] = {}

    def record(name: str, output: Any) -> Any:
        values = tensor_of(output)
        if values is None:
            return None
        outputs[name], passed_on = with_gradient(values)
        return with_tensor(output, values.clone() if passed_on is None else passed_on)

    with watch_outputs({layer.name: layer.module for layer in layers}, record):
        yield outputs
