"""Effective receptive fields: how strongly each pixel influences a unit, by its gradient."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.fields.figures import COLORS, draw_box
from cifar_resnet.model_state import preserve_state, unwrap_compiled
from cifar_resnet.plotting.canvas import check_figure, draws, new_figure
from cifar_resnet.plotting.style import IMAGE, LINE, finish, finish_color_bar, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

__all__ = ["EffectiveReceptiveField", "effective_receptive_field"]


@dataclass(frozen=True, eq=False)
class EffectiveReceptiveField:
    """The distribution of a unit's gradient over the input.

    Attributes:
        map: Float64 tensor of the input's spatial shape, such as (H, W): the mean absolute
            gradient, summed over input channels and normalized to a sum of 1, the mass.
        layer: Name of the layer; "" for the model's output.
        unit: The unit that was differentiated.
        images: Number of images averaged.
    """

    map: Tensor
    layer: str
    unit: tuple[int, ...]
    images: int

    @property
    def centroid(self) -> tuple[float, ...]:
        """Center of mass in pixels, along each axis."""
        return tuple(float((p * m).sum()) for p, m in self._marginals())

    @property
    def sigma(self) -> tuple[float, ...]:
        """Standard deviation of the mass in pixels, along each axis."""
        return tuple(
            float((((p - center) ** 2) * m).sum().sqrt())
            for (p, m), center in zip(self._marginals(), self.centroid, strict=True)
        )

    def side(self, mass: float = 0.95) -> int:
        """Return the side in pixels of the smallest square that holds a fraction of the mass.

        The square (or cube) is centered on the pixel of the centroid and clipped at the borders.

        Args:
            mass: Fraction in (0, 1].

        Raises:
            TypeError: If `mass` is not a number.
            ValueError: If `mass` is outside (0, 1].
        """
        mass = arguments.number("mass", mass, (lambda m: 0 < m <= 1, "a fraction in (0, 1]"))
        held = self._mass_by_distance().cumsum(0)
        enough = held >= mass * held[-1] * (1 - 1e-12)  # the sum is rounded
        return 2 * int(enough.nonzero()[0]) + 1

    def radial_profile(self) -> tuple[Tensor, Tensor]:
        """Average the map over rings around the centroid that are one pixel wide.

        Returns:
            Distances from the centroid in pixels, 0, 1, 2, ..., and the mean of the map in each
            ring. Both are float64 tensors of the same length.
        """
        squared = torch.zeros_like(self.map)
        for dim, center in enumerate(self.centroid):
            shape = [1] * self.map.dim()
            shape[dim] = -1
            offset = torch.arange(self.map.shape[dim], dtype=torch.float64) - center
            squared = squared + offset.view(shape) ** 2
        ring = squared.sqrt().round().long().flatten()
        total = torch.zeros(int(ring.max()) + 1, dtype=torch.float64)
        count = total.scatter_add(0, ring, torch.ones_like(self.map).flatten())
        total = total.scatter_add(0, ring, self.map.flatten())
        filled = count > 0
        return torch.arange(len(count), dtype=torch.float64)[filled], (total / count)[filled]

    @draws
    def plot(
        self,
        *,
        log: bool = False,
        fig: Figure | SubFigure | None = None,
        figsize: tuple[float, float] | None = None,
    ) -> Figure:
        """Draw a heat map with the square that holds 95 % of the mass, and the radial profile.

        Args:
            log: Whether to use a logarithmic color scale. The square is the same in either case.
            fig: Figure or subfigure to draw into. If None, create a figure without pyplot.
            figsize: Width and height in inches of a new figure. If None, 9.5 x 3.8.

        Returns:
            The figure.

        Raises:
            TypeError: If `log` is neither True nor False, `fig` is not a figure, or `figsize` is
                not a pair of numbers.
            ValueError: If the input does not have two axes, or `figsize` is out of its range or
                given together with `fig`.
        """
        arguments.boolean("log", log)
        check_figure(fig, figsize)
        if self.map.dim() != 2:
            raise ValueError(
                f"A heat map needs an input with two axes, but this one has {self.map.dim()}. "
                "Use radial_profile()."
            )
        fig = fig or new_figure(9.5, 3.8, figsize)
        left, right = fig.subplots(1, 2)
        self._draw_map(left, log)
        self._draw_profile(right)
        return fig.figure

    def _draw_map(self, axes: Axes, log: bool) -> None:
        from matplotlib import colormaps
        from matplotlib.colors import LogNorm

        values = self.map.numpy()
        top = values.max()
        norm = LogNorm(vmin=max(values[values > 0].min(), top * 1e-5), vmax=top) if log else None
        colors = colormaps["viridis"].with_extremes(bad=colormaps["viridis"](0))  # the log of 0
        picture = axes.imshow(values, cmap=colors, norm=norm, aspect="equal", **IMAGE)
        finish_color_bar(axes.figure.colorbar(picture, ax=axes), "fraction of the gradient")
        side = self.side(0.95)
        middle = [round(center) for center in self.centroid]
        box = tuple(
            (max(m - side // 2, 0), min(m + side // 2, n - 1))
            for m, n in zip(middle, values.shape, strict=True)
        )
        draw_box(axes, box, edgecolor="white", facecolor="none", linewidth=1.5)
        name = f"{self.layer}, " if self.layer else ""
        title(axes, f"{name}unit {self.unit}: 95 % of the mass in {side} x {side}")
        axes.set_xlabel("column (pixels)")
        axes.set_ylabel("row (pixels)")
        finish(axes)

    def _draw_profile(self, axes: Axes) -> None:
        distance, profile = self.radial_profile()
        axes.plot(distance, profile / profile.max(), color=COLORS[1], **LINE)
        axes.set_xlabel("distance from the centroid (pixels)")
        axes.set_ylabel("gradient per pixel, relative")
        sigma = ", ".join(f"{value:.1f}" for value in self.sigma)
        title(axes, f"sigma {sigma} pixels ({self.images} images)")
        axes.set_ylim(bottom=0)
        finish(axes, grid=True)

    def _marginals(self) -> list[tuple[Tensor, Tensor]]:
        """Return the positions along each axis, and the mass at each of them."""
        marginals = []
        for dim, length in enumerate(self.map.shape):
            others = [d for d in range(self.map.dim()) if d != dim]
            mass = self.map.sum(others) if others else self.map
            marginals.append((torch.arange(length, dtype=torch.float64), mass))
        return marginals

    def _mass_by_distance(self) -> Tensor:
        """Return the mass at each distance 0, 1, 2, ... from the pixel of the centroid.

        The distance is the largest one along any axis, so equal distances form a square.
        """
        distance = torch.zeros(self.map.shape, dtype=torch.int64)
        for dim, center in enumerate(self.centroid):
            shape = [1] * self.map.dim()
            shape[dim] = -1
            offset = (torch.arange(self.map.shape[dim]) - round(center)).abs()
            distance = torch.maximum(distance, offset.view(shape))
        mass = torch.zeros(int(distance.max()) + 1, dtype=torch.float64)
        return mass.scatter_add(0, distance.flatten(), self.map.flatten())


def effective_receptive_field(
    model: nn.Module,
    images: Tensor,
    *,
    layer: str | None = None,
    unit: Sequence[int] | None = None,
    channel: int | None = None,
    batch_size: int = 32,
) -> EffectiveReceptiveField:
    """Compute how strongly each pixel influences a unit: the mean absolute gradient over images.

    The theoretical field contains all pixels that can influence the unit. The effective field says
    how much they do; it is far smaller, and grows during training (Luo, Li, Urtasun and Zemel,
    "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS
    2016). The model runs in evaluation mode and is left unchanged.

    Args:
        model: The network.
        images: Float tensor (N, C, *spatial), as the model expects them: real images, normalized.
            Noise gives the field on noise.
        layer: Name of a submodule with spatial output (N, C, *units). If None, the model's output.
        unit: Index of the unit along each of `units`. If None, the middle unit.
        channel: Channel to differentiate. If None, the sum over channels.
        batch_size: Number of images to differentiate at once.

    Returns:
        The map, with methods for its measures.

    Raises:
        TypeError: If `images` is not a floating-point tensor, or another argument has the wrong
            type.
        KeyError: If there is no such layer, or the model does not call it.
        IndexError: If there is no such unit or channel.
        ValueError: If the model fails on the images, the gradient is zero everywhere or not finite,
            there are no images, or `batch_size` is less than 1.

    Examples:
        >>> import torch
        >>> from cifar_resnet import CustomResNet, effective_receptive_field
        >>> model = CustomResNet(width=4)
        >>> field = effective_receptive_field(model, torch.randn(8, 3, 32, 32), layer="layer1")
        >>> field.map.shape, field.side(1.0) <= 7
        (torch.Size([32, 32]), True)
    """
    model = unwrap_compiled(model)
    if not isinstance(images, Tensor) or not images.is_floating_point():
        got = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a floating-point tensor (N, C, *spatial), but got {got}.")
    if images.dim() < 3 or not len(images):
        raise ValueError(
            f"images must have the shape (N, C, *spatial) with at least one image, "
            f"but got {tuple(images.shape)}."
        )
    batch_size = arguments.integer("batch_size", batch_size, minimum=1)
    if unit is not None:
        indices = arguments.sequence("unit", unit, "an index for each dimension")
        if not all(map(arguments.is_integer, indices)):
            raise TypeError(f"unit must be integers, one for each dimension, but got {unit!r}.")
        unit = [int(index) for index in indices]
    if channel is not None and not arguments.is_integer(channel):
        raise TypeError(f"channel must be an integer, or None for all, but got {channel!r}.")
    module = _submodule(model, layer)
    total = torch.zeros(images.shape[2:], dtype=torch.float64)
    index: tuple[int, ...] = ()
    with preserve_state(model), torch.inference_mode(False), torch.enable_grad():
        for part in images.split(batch_size):
            batch = part.detach().clone().requires_grad_()
            output = _output(model, module, batch, layer)
            index = _checked_unit(output, unit, channel)
            values = output if channel is None else output[:, channel : channel + 1]
            for position in index:
                values = values.select(2, position)
            (gradient,) = torch.autograd.grad(values.float().sum(), batch)
            total = total + gradient.double().abs().sum((0, 1)).cpu()
    if not bool(total.sum() > 0) or not bool(total.isfinite().all()):
        raise ValueError(
            "The gradient of this unit is zero or not finite everywhere, so it has no effective "
            "field. Use images that activate the unit, or another channel."
        )
    return EffectiveReceptiveField(total / total.sum(), layer or "", index, len(images))


def _submodule(model: nn.Module, layer: str | None) -> nn.Module:
    if layer is None:
        return model
    if not isinstance(layer, str):
        raise TypeError(f"layer must be the name of a submodule, or None, but got {layer!r}.")
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if layer not in modules:
        close = difflib.get_close_matches(layer, modules, n=5, cutoff=0.5)
        hint = (
            f"Close matches: {', '.join(close)}." if close else f"There are: {', '.join(modules)}."
        )
        raise KeyError(f"The model has no submodule {layer!r}. {hint}")
    return modules[layer]


def _output(model: nn.Module, module: nn.Module, batch: Tensor, layer: str | None) -> Tensor:
    """Run the model, and return the output of one submodule's first call."""
    kept: list[Any] = []
    # a copy, because an in-place activation may follow
    handle = module.register_forward_hook(
        lambda _, args, out: kept.append(out.clone() if isinstance(out, Tensor) else out)
    )
    try:
        model(batch)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(
            f"The model fails on images of shape {tuple(batch.shape)}, {batch.dtype}: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        handle.remove()
    if not kept:
        raise KeyError(f"The model does not call {layer!r} for these images.")
    output = kept[0]
    if not isinstance(output, Tensor) or output.dim() < 2:
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        name = f"layer {layer!r}" if layer else "the model"
        raise ValueError(f"The output of {name} must be a tensor (N, C, *units), but got {got}.")
    return output


def _checked_unit(
    output: Tensor, unit: Sequence[int] | None, channel: int | None
) -> tuple[int, ...]:
    """Return the unit to differentiate, after checking that it and the channel exist."""
    units = tuple(output.shape[2:])
    index = tuple(size // 2 for size in units) if unit is None else tuple(unit)
    if len(index) != len(units) or not all(0 <= i < n for i, n in zip(index, units, strict=False)):
        raise IndexError(f"The output has units of shape {units}, but got the unit {index}.")
    if channel is not None and not 0 <= channel < output.shape[1]:
        raise IndexError(f"The output has {output.shape[1]} channels, but got channel {channel}.")
    return index
