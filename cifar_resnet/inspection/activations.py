"""Draw the channels of the outputs of layers for one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.misclassified.cams import check_visible
from cifar_resnet.misclassified.execution import run_in_float32, tensor_of, watch_outputs
from cifar_resnet.misclassified.layers import (
    TargetLayer,
    as_target_layers,
    find_target_layers,
)
from cifar_resnet.misclassified.records import MisclassifiedSample
from cifar_resnet.misclassified.scores import class_scores
from cifar_resnet.model_state import unwrap_compiled
from cifar_resnet.plotting.canvas import check_figure, draws
from cifar_resnet.plotting.grid import Panel, draw_grid
from cifar_resnet.plotting.pictures import as_pixels

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure

__all__ = ["show_features"]

_SIDE = 0.72  # inches
_MOST = 8  # layers that are chosen automatically


@draws
def show_features(
    model: nn.Module,
    image: Tensor | MisclassifiedSample,
    layers: str | nn.Module | Sequence[str | nn.Module] | None = None,
    *,
    channels: int | Sequence[int] = 12,
    cmap: str | Colormap = "RdBu_r",
    device: torch.device | str | None = None,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw the channels of the outputs of layers for one image, a layer in each row.

    All channels of a layer that are drawn have the same color scale, which is symmetric about 0 and
    reaches the largest absolute value among them. The values of each row are given beside it. The
    model runs in evaluation mode and float32, and is left unchanged.

    Args:
        model: Any module from images to class scores (N, classes). Scripted and exported programs
            are refused.
        image: Image (C, H, W) or (1, C, H, W), as the model expects it, or one of the samples of
            `find_misclassified`, whose picture is drawn, too.
        layers: Names or submodules, one or several, whose outputs have rows and columns of the
            image. If None, up to eight of the outermost ones, evenly distributed.
        channels: Number of channels to draw, the first ones, or the channels' numbers, which all
            layers must have.
        cmap: Matplotlib color map. White should be in its middle.
        device: Device to compute on. If None, the model's device. The model is not moved.
        fig: Figure or subfigure to draw into. If None, create a figure.
        figsize: Width and height in inches of a new figure. If None, the size that is needed.

    Returns:
        The figure; save it with `fig.savefig(path)`.

    Raises:
        TypeError: If `model` is not a module, `image` is neither a tensor nor an error, or another
            argument has the wrong type.
        ValueError: If the model fails on the image, a layer does not exist or has no spatial output
            or no such channel, or an argument is out of its range.

    Examples:
        >>> import torch
        >>> from cifar_resnet import CustomResNet, show_features
        >>> model, image = CustomResNet(width=4), torch.randn(3, 32, 32)
        >>> fig = show_features(model, image, ["prep", "layer1"], channels=3)
        >>> len(fig.axes)  # two layers with three channels
        6
    """
    from matplotlib import colormaps

    model = unwrap_compiled(model)
    inputs, picture = _as_inputs(image)
    requested = as_target_layers(layers, "layers")
    chosen = _as_channels(channels)
    colors = colormaps.get_cmap(cmap)
    place = None if device is None else arguments.device("device", device)
    check_figure(fig, figsize)
    found = _maps(model, inputs, requested, place)
    rows = [[Panel(picture)]] if picture is not None else []
    names = ["image"] if picture is not None else []
    for layer, maps in found:
        numbers = _existing(chosen, layer, len(maps))
        shown = maps[numbers]
        limit = float(shown.abs().max())
        panels = [
            Panel(_pixels(each, limit, colors), str(c))
            for each, c in zip(shown, numbers, strict=True)
        ]
        rows.append(panels)
        height, width = layer.grid
        names.append(
            f"{layer.name}\n{len(numbers)} of {len(maps)} channels\n{height} x {width}\n"
            f"{float(shown.min()):.3g} to {float(shown.max()):.3g}"
        )
    return draw_grid(
        rows,
        side=_SIDE,
        title=f"Channels of {type(model).__name__} for one image",
        note="each row has one color scale, symmetric about 0 up to its largest absolute value",
        row_names=names,
        fig=fig,
        figsize=figsize,
    )


def _as_inputs(image: Any) -> tuple[Tensor, Any]:
    """Return the input (1, C, H, W), and the picture, uint8 (H, W, 3), if it is known."""
    if isinstance(image, MisclassifiedSample):
        return image.inputs[None], as_pixels(image.image, None, name="image")
    if not isinstance(image, Tensor):
        raise TypeError(
            "image must be a tensor (C, H, W) or a sample of find_misclassified, but got "
            f"{type(image).__name__}. {arguments.PICTURES}"
        )
    inputs = image[None] if image.dim() == 3 else image
    if inputs.dim() != 4 or len(inputs) != 1 or inputs.is_complex():
        raise ValueError(
            "image must be one image (C, H, W), as the model expects it, but is "
            f"{image.dtype} of shape {tuple(image.shape)}."
        )
    return inputs, None


def _as_channels(channels: Any) -> int | list[int]:
    if arguments.is_integer(channels):
        return arguments.integer("channels", channels, minimum=1)
    expected = "a number of channels, or a sequence of their numbers"
    if isinstance(channels, str):
        raise TypeError(f"channels must be {expected}, but got {channels!r}.")
    numbers = arguments.sequence("channels", channels, expected)
    for number in numbers:
        arguments.integer("each of channels", number, minimum=0)
    if not numbers:
        raise ValueError(f"channels is empty; it must be {expected}.")
    return numbers


def _existing(chosen: int | list[int], layer: TargetLayer, count: int) -> list[int]:
    """Return the numbers of the channels to draw of a layer that has `count` of them."""
    if isinstance(chosen, int):
        return list(range(min(chosen, count)))
    if max(chosen) >= count:
        raise ValueError(
            f"channels has {max(chosen)}, but layer {layer.name!r} has the channels 0 to "
            f"{count - 1}."
        )
    return chosen


def _maps(
    model: nn.Module,
    image: Tensor,
    requested: Sequence[str | nn.Module] | None,
    device: torch.device | None,
) -> list[tuple[TargetLayer, Tensor]]:
    """Return the layers with their channels (C, height, width) for an image."""
    check_visible(model)
    with run_in_float32(model, device) as move_inputs:

        def inputs() -> Tensor:
            return move_inputs(image.detach().clone())

        if requested is None:
            layers = _outermost(model, inputs)
        else:
            layers = find_target_layers(model, inputs(), requested, None, without_gradient=True)
        outputs: dict[str, Tensor] = {}

        def record(name: str, output: Any) -> None:
            values = tensor_of(output)
            if values is not None:
                outputs[name] = values.detach().clone()  # later layers may write to it

        with torch.no_grad(), watch_outputs({each.name: each.module for each in layers}, record):
            class_scores(model, inputs())
    return [(each, _channels(each, outputs[each.name])) for each in layers]


def _channels(layer: TargetLayer, output: Tensor) -> Tensor:
    output = output.dequantize() if output.is_quantized else output
    maps = layer.to_map(output)[0].float().cpu()
    if not bool(maps.isfinite().all()):
        raise ValueError(
            f"The output of layer {layer.name!r} is not finite. Check the model's weights and the "
            "image's range."
        )
    return maps


def _outermost(model: nn.Module, inputs: Any) -> list[TargetLayer]:
    """Return layers with spatial output that are not inside another one, at most `_MOST`."""
    shapes: dict[str, int] = {}

    def record(name: str, output: Any) -> None:
        values = tensor_of(output)
        shapes[name] = 0 if values is None or not values.is_floating_point() else values.dim()

    modules = {name: module for name, module in model.named_modules() if name}
    with torch.no_grad(), watch_outputs(modules, record):
        class_scores(model, inputs())
    found: list[TargetLayer] = []
    for name in modules:
        inside = any(name.startswith(f"{layer.name}.") for layer in found)
        if inside or shapes.get(name, 0) < 3:
            continue
        try:
            found += find_target_layers(model, inputs(), [name], None, without_gradient=True)
        except ValueError:  # has no rows and columns
            continue
    if not found:
        find_target_layers(model, inputs(), None, None, without_gradient=True)  # explains why
    step = np.linspace(0, len(found) - 1, min(len(found), _MOST)).round().astype(int)
    return [found[number] for number in step.tolist()]


def _pixels(values: Tensor, limit: float, colors: Colormap) -> Any:
    """Convert a map (H, W) to colors, uint8 (H, W, 3)."""
    scaled = 0.5 + 0.5 * (values / (limit or 1.0)).numpy()
    return np.rint(255 * np.asarray(colors(scaled))[..., :3]).astype(np.uint8)
