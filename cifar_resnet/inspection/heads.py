"""Find the last linear layer of a classifier, whose input are the features of an image."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnet.misclassified.scores import class_scores
from cifar_resnet.model_state import in_this_thread

__all__ = ["find_head", "input_of", "named_layer", "watch_calls"]

_PROBED = 4  # images, each in three versions
_TOLERANCE = (
    1e-3  # of scores that are proportional to the output of a layer, in half precision 0.02
)
_COARSE = 0.02


def find_head(model: nn.Module, layer: str | nn.Module | None, inputs: Tensor) -> str:
    """Return the name of the requested layer, or of the linear layer that computes the scores.

    The outputs of that layer are the scores, up to a factor and a constant for each image, which
    are verified for these inputs and for changed ones.

    Args:
        model: The model, in evaluation mode on its device.
        layer: Name or submodule. If None, find the layer.
        inputs: Images as the model expects them, at least one.

    Raises:
        ValueError: If there is no such layer, or not exactly one.
    """
    if layer is not None:
        return named_layer(model, layer)
    modules = {name: m for name, m in model.named_modules() if name and _is_linear(m)}
    few = inputs[:_PROBED]
    probes = torch.cat([few, few.flip(-1), few // 2 if not few.is_floating_point() else few / 2])
    with watch_calls(modules) as calls:
        scores = class_scores(model, probes)
    heads = [
        name
        for name, found in calls.items()
        if any(_computes(output, scores) for _, output in found)
    ]
    if len(heads) == 1 and len(calls[heads[0]]) == 1:
        return heads[0]
    called = [
        f"{name} ({' and '.join(str(tuple(x.shape[1:])) for x, _ in found)})"
        for name, found in calls.items()
        if found
    ]
    if not called:
        reason = "calls no linear layer"
    elif not heads:
        reason = "has no linear layer whose output are the scores"
    elif len(heads) > 1:
        reason = f"has several linear layers whose outputs are the scores ({', '.join(heads)})"
    else:
        reason = f"calls the layer {heads[0]!r} {len(calls[heads[0]])} times for a batch"
    listed = (
        f" Linear layers that are called, with the shape of their inputs: {', '.join(called[-12:])}"
        f"{' (the last 12)' if len(called) > 12 else ''}."
        if called
        else ""
    )
    raise ValueError(
        f"The features of {type(model).__name__} are the input of its last linear layer, but it "
        f"{reason}. Pass layer=, the name of the layer whose input, a vector for each image, are "
        f"the features.{listed}"
    )


def input_of(calls: list[tuple[Tensor, Any]], name: str, images: int) -> Tensor:
    """Return the input of a layer that was called once, as float32 (N, D) on the CPU."""
    if len(calls) != 1:
        times = f"is called {len(calls)} times" if calls else "is not called"
        raise ValueError(
            f"Layer {name!r} {times} for a batch, or its input is not a tensor, so it does not "
            "have one vector for each image. Pass layer= with a layer that is called once."
        )
    values = calls[0][0]
    vectors = [size for size in values.shape[1:] if size > 1]
    if len(values) != images or len(vectors) > 1:
        raise ValueError(
            f"The input of layer {name!r} has the shape {tuple(values.shape)} for {images} images, "
            "but a vector for each image is expected, (N, D). Pass layer= with a layer after the "
            "pooling."
        )
    values = values.dequantize() if values.is_quantized else values
    return values.detach().float().reshape(images, -1).cpu()


@contextlib.contextmanager
def watch_calls(
    modules: Mapping[str, nn.Module],
) -> Iterator[dict[str, list[tuple[Tensor, Any]]]]:
    """Record a copy of the input and the output of each call of modules by this thread."""
    calls: dict[str, list[tuple[Tensor, Any]]] = {name: [] for name in modules}
    with contextlib.ExitStack() as hooks:
        for name, module in modules.items():
            hook = in_this_thread(_recorder(calls[name]))
            hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            after = in_this_thread(_second_recorder(calls[name]))
            hooks.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        yield calls


def _recorder(calls: list[tuple[Tensor, Any]]) -> Callable[..., None]:
    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(values, Tensor):
            calls.append((values.detach().clone(), None))  # the layer may write to it

    return record


def _second_recorder(calls: list[tuple[Tensor, Any]]) -> Callable[..., None]:
    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if calls and calls[-1][1] is None and isinstance(output, Tensor):
            calls[-1] = calls[-1][0], output.detach().clone()

    return record


def _is_linear(module: nn.Module) -> bool:
    quantized: Any = torch.ao.nn.quantized
    return isinstance(module, nn.Linear | quantized.Linear)


def _computes(output: Any, scores: Tensor) -> bool:
    """Return whether scores are an output times a positive factor, plus a constant in each row."""
    if not isinstance(output, Tensor) or output.numel() != scores.numel():
        return False
    output = output.dequantize() if output.is_quantized else output
    coarse = torch.float16 in (output.dtype, scores.dtype) or torch.bfloat16 in (
        output.dtype,
        scores.dtype,
    )
    a, b = (
        values.detach().double().reshape(scores.shape) for values in (output.cpu(), scores.cpu())
    )
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    size = float(a.square().sum())
    factor = float((a * b).sum()) / size if size else 0.0
    error = float((a * factor - b).norm())
    return factor >= 0 and error <= (_COARSE if coarse else _TOLERANCE) * float(b.norm())


def named_layer(model: nn.Module, layer: str | nn.Module) -> str:
    """Return the name of a submodule that is given by its name or itself."""
    modules: dict[str, nn.Module] = {name: m for name, m in model.named_modules() if name}
    if isinstance(layer, nn.Module):
        for name, module in modules.items():
            if module is layer:
                return name
        raise ValueError(
            f"The layer {type(layer).__name__} is not a submodule of the model. Pass a submodule, "
            "or its name."
        )
    if layer not in modules:
        close = difflib.get_close_matches(layer, modules, 5, 0.4)
        hint = f" Close matches: {', '.join(close)}." if close else ""
        raise ValueError(
            f"No layer is called {layer!r}.{hint} model.named_modules() lists all layers."
        )
    return layer
