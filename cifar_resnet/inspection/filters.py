"""Draw the weights of a convolution."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.inspection.heads import named_layer
from cifar_resnet.model_state import unwrap_compiled
from cifar_resnet.plotting.canvas import check_figure, draws
from cifar_resnet.plotting.grid import Panel, draw_grid
from cifar_resnet.plotting.pictures import Pixels

if TYPE_CHECKING:
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure, SubFigure

__all__ = ["show_filters"]

_SIDE = 0.5  # inches


@draws
def show_filters(
    model: nn.Module,
    layer: str | nn.Module | None = None,
    *,
    n: int = 64,
    channel: int | None = None,
    cmap: str | Colormap = "RdBu_r",
    columns: int | None = None,
    fig: Figure | SubFigure | None = None,
    figsize: tuple[float, float] | None = None,
) -> Figure:
    """Draw the filters of a convolution, by default of the first one.

    Filters of three input channels are drawn in color, with red for the first channel, green and
    blue: middle gray is 0, and the scale is symmetric and the same for all filters. Filters of one
    input channel are drawn with a color map. The range is given below the figure. The weights are
    those that multiply the input of the layer, usually normalized images.

    Args:
        model: Any module with a two-dimensional convolution.
        layer: Name or submodule of a convolution. If None, the first one in the order in which the
            model registers its layers.
        n: Maximum number of filters to draw, the first ones.
        channel: Number of the input channel whose weights are drawn. If None, all of them, which
            requires three input channels, or one.
        cmap: Matplotlib color map for filters of one channel. White should be in its middle.
        columns: Number of columns. If None, chosen for a figure somewhat wider than high.
        fig: Figure or subfigure to draw into. If None, create a figure.
        figsize: Width and height in inches of a new figure. If None, the size that is needed.

    Returns:
        The figure; save it with `fig.savefig(path)`.

    Raises:
        TypeError: If `model` is not a module, or another argument has the wrong type.
        ValueError: If there is no such layer, it is not a two-dimensional convolution, its filters
            have another number of input channels and `channel` is not given, or an argument is out
            of its range.

    Examples:
        >>> from cifar_resnet import CustomResNet, show_filters
        >>> fig = show_filters(CustomResNet.from_pretrained("quarter"))
        >>> len(fig.axes)  # of the layer "prep.0"
        16
    """
    from matplotlib import colormaps

    model = unwrap_compiled(model)
    if layer is not None and not isinstance(layer, str | nn.Module):
        raise TypeError(
            f"layer must be the name of a submodule or the submodule, or None, but got {layer!r}."
        )
    n = arguments.integer("n", n, minimum=1)
    if channel is not None:
        channel = arguments.integer("channel", channel, minimum=0)
    colors = colormaps.get_cmap(cmap)
    if columns is not None:
        columns = arguments.integer("columns", columns, minimum=1)
    check_figure(fig, figsize)
    name, module = _convolution(model, layer)
    weights = _weights(name, module)
    inputs = weights.shape[1]
    if channel is not None and channel >= inputs:
        raise ValueError(
            f"channel is {channel}, but the filters of {name!r} have the input channels 0 to "
            f"{inputs - 1}."
        )
    if channel is None and inputs not in (1, 3):
        raise ValueError(
            f"The filters of {name!r} have {inputs} input channels, which are not colors. Pass "
            f"channel=, from 0 to {inputs - 1}, to draw the weights of one input channel."
        )
    shown = weights[:n] if channel is None else weights[:n, channel : channel + 1]
    limit = float(shown.abs().max())
    panels = [Panel(_pixels(each, limit, colors)) for each in shown]
    across = columns or math.ceil(math.sqrt(1.6 * len(panels)))
    height, width = shown.shape[2:]
    count = f"{len(panels)} of {len(weights)}" if len(panels) < len(weights) else f"{len(weights)}"
    of = f", input channel {channel}" if channel is not None else ""
    groups = f", {module.groups} groups" if module.groups > 1 else ""
    scale = (
        f"red, green, blue from {-limit:.3g} (0 %) to {limit:.3g} (100 %); gray is 0"
        if shown.shape[1] == 3
        else f"colors from {-limit:.3g} to {limit:.3g}; the middle color is 0"
    )
    return draw_grid(
        [panels[start : start + across] for start in range(0, len(panels), across)],
        side=_SIDE,
        title=f"{name}: {count} filters of {height} x {width}{groups}{of}",
        note=scale,
        fig=fig,
        figsize=figsize,
    )


def _convolution(model: nn.Module, layer: str | nn.Module | None) -> tuple[str, Any]:
    modules = {name: m for name, m in model.named_modules() if _is_convolution(m)}
    if layer is None:
        if not modules:
            raise ValueError(
                f"{type(model).__name__} has no two-dimensional convolution, so it has no filters "
                "to draw."
            )
        name, module = next(iter(modules.items()))
        return name or type(model).__name__, module
    name = named_layer(model, layer)
    if name not in modules:
        raise ValueError(
            f"Layer {name!r} is a {type(model.get_submodule(name)).__name__}, not a "
            f"two-dimensional convolution. There are: {', '.join(list(modules)[:12]) or 'none'}"
            f"{', ...' if len(modules) > 12 else ''}."
        )
    return name, modules[name]


def _is_convolution(module: nn.Module) -> bool:
    quantized: Any = torch.ao.nn.quantized
    return isinstance(module, nn.Conv2d | quantized.Conv2d)


def _weights(name: str, module: Any) -> Tensor:
    """Return the weights (out, in, height, width), float32 on the CPU."""
    weights: Tensor = module.weight() if callable(module.weight) else module.weight
    if weights.is_meta:
        raise ValueError(
            f"The weights of {name!r} are on the meta device, where they have no values. Load them "
            "first."
        )
    weights = weights.dequantize() if weights.is_quantized else weights
    weights = weights.detach().float().cpu()
    if not bool(weights.isfinite().all()):
        raise ValueError(f"The weights of {name!r} are not finite. Check the training.")
    return weights


def _pixels(weights: Tensor, limit: float, colors: Colormap) -> Pixels:
    """Convert a filter (3, H, W) or (1, H, W) to uint8 (H, W, 3)."""
    values = (0.5 + 0.5 * weights / (limit or 1.0)).permute(1, 2, 0).numpy()
    rgb = values if values.shape[2] == 3 else np.asarray(colors(values[..., 0]))[..., :3]
    pixels: Pixels = np.rint(255 * rgb).astype(np.uint8)
    return pixels
