"""The effective receptive field: how much each pixel really moves a unit. It knows gradients; it
must not know rules or traces.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cifar_resnet import arguments
from cifar_resnet.model_state import preserve_state, unwrap_compiled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["EffectiveReceptiveField", "effective_receptive_field"]


@dataclass(frozen=True, eq=False)
class EffectiveReceptiveField:
    """How the gradient of a unit spreads over the input.

    Attributes:
        map: Float64 tensor of the input's spatial shape, such as (H, W): mean absolute gradient,
            summed over input channels; it sums to 1. Mass is always this map's, never that of its
            logarithm.
        layer: Name of the layer, "" for the model's output.
        unit: The unit that was differentiated.
        images: Number of images averaged.
    """

    map: Tensor
    layer: str
    unit: tuple[int, ...]
    images: int

    @property
    def centroid(self) -> tuple[float, ...]:
        """Center of mass in pixels, one number for each axis."""
        return tuple(float((p * m).sum()) for p, m in self._marginals())

    @property
    def sigma(self) -> tuple[float, ...]:
        """Standard deviation of the mass in pixels, one number for each axis."""
        return tuple(
            float((((p - center) ** 2) * m).sum().sqrt())
            for (p, m), center in zip(self._marginals(), self.centroid, strict=True)
        )

    def side(self, mass: float = 0.95) -> int:
        """Side in pixels of the smallest square (or cube) around the centroid's pixel, cut off at
        the borders, that holds at least this share of the mass.

        Args:
            mass: Share in (0, 1].

        Raises:
            TypeError: If `mass` is no number.
            ValueError: If it is outside (0, 1].
        """
        mass = arguments.number("mass", mass, (lambda m: 0 < m <= 1, "a share in (0, 1]"))
        held = self._within().cumsum(0)
        enough = held >= mass * held[-1] * (1 - 1e-12)
        return 2 * int(enough.nonzero()[0]) + 1

    def radial_profile(self) -> tuple[Tensor, Tensor]:
        """Mean of the map by distance from the centroid, in rings one pixel wide.

        Returns:
            Distances 0, 1, 2, ... in pixels, and the mean value per pixel of each ring; both
            float64 tensors of the same length.
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

    def plot(self, *, log: bool = False, fig: Figure | None = None) -> Figure:
        """A heat map with the square that holds 95 % of the mass, and the radial profile.

        Args:
            log: Show the map on a logarithmic color scale; the square stays that of the mass.
            fig: Figure to draw into; None for a new one, made without pyplot.

        Raises:
            TypeError: If `log` is neither True nor False, or `fig` no figure.
            ValueError: If the input has not two axes.
        """
        from cifar_resnet.fields.figures import plot_effective

        return plot_effective(self, log, fig)

    def _marginals(self) -> list[tuple[Tensor, Tensor]]:
        found = []
        for dim, length in enumerate(self.map.shape):
            others = [d for d in range(self.map.dim()) if d != dim]
            mass = self.map.sum(others) if others else self.map
            found.append((torch.arange(length, dtype=torch.float64), mass))
        return found

    def _within(self) -> Tensor:
        """Mass at each distance from the centroid's pixel, the largest along any axis counting."""
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
    """How strongly each pixel moves a unit: the mean absolute gradient over images.

    The theoretical field says which pixels can matter, this one how much they do; it is far
    smaller, and grows in training (Luo, Li, Urtasun and Zemel, "Understanding the Effective
    Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016). The model is evaluated in
    evaluation mode and stays as it is.

    Args:
        model: The network.
        images: Float tensor (N, C, *spatial), as the model expects them: normalized real images;
            noise gives the field on noise.
        layer: Name of a submodule with spatial output (N, C, *units); None for the model's output.
        unit: Place of the unit; None for the one in the middle.
        channel: Channel whose value is differentiated; None for the sum over channels.
        batch_size: Images differentiated at once.

    Returns:
        The map and its measures.

    Raises:
        TypeError: If `images` is no floating-point tensor, or another argument has the wrong type.
        KeyError: If there is no such layer, or the model does not call it.
        IndexError: If there is no such unit or channel.
        ValueError: If the model fails on the images, the gradient is zero everywhere, there is no
            image, or `batch_size` is smaller than 1.

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
        given = arguments.sequence("unit", unit, "an index for each direction")
        if not all(map(arguments.is_integer, given)):
            raise TypeError(f"unit must be integers, one for each direction, but got {unit!r}.")
        unit = [int(index) for index in given]
    if channel is not None and not arguments.is_integer(channel):
        raise TypeError(f"channel must be an integer, or None for all, but got {channel!r}.")
    module = _submodule(model, layer)
    total = torch.zeros(images.shape[2:], dtype=torch.float64)
    place: tuple[int, ...] = ()
    with preserve_state(model), torch.inference_mode(False), torch.enable_grad():
        for part in images.split(batch_size):
            batch = part.detach().clone().requires_grad_()
            output = _output(model, module, batch, layer)
            place = _place(output, unit, channel)
            values = output if channel is None else output[:, channel : channel + 1]
            for index in place:
                values = values.select(2, index)
            (gradient,) = torch.autograd.grad(values.float().sum(), batch)
            total = total + gradient.double().abs().sum((0, 1)).cpu()
    if not bool(total.sum() > 0) or not bool(total.isfinite().all()):
        raise ValueError(
            "The gradient of this unit is zero or not finite everywhere, so it has no effective "
            "field. Take images that move it, or another channel."
        )
    return EffectiveReceptiveField(total / total.sum(), layer or "", place, len(images))


def _submodule(model: nn.Module, layer: str | None) -> nn.Module:
    if layer is None:
        return model
    if not isinstance(layer, str):
        raise TypeError(f"layer must be the name of a submodule, or None, but got {layer!r}.")
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if layer not in modules:
        close = difflib.get_close_matches(layer, modules, n=5, cutoff=0.5)
        hint = f"Close ones: {', '.join(close)}." if close else f"There are: {', '.join(modules)}."
        raise KeyError(f"The model has no submodule {layer!r}. {hint}")
    return modules[layer]


def _output(model: nn.Module, module: nn.Module, batch: Tensor, layer: str | None) -> Tensor:
    kept: list[Any] = []
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
    if not isinstance(kept[0], Tensor) or kept[0].dim() < 2:
        raise ValueError(
            f"The output of {layer or 'the model'!r} is no tensor (N, C, *units), but "
            f"{type(kept[0]).__name__}."
        )
    return kept[0]


def _place(output: Tensor, unit: Sequence[int] | None, channel: int | None) -> tuple[int, ...]:
    units = tuple(output.shape[2:])
    place = tuple(size // 2 for size in units) if unit is None else tuple(unit)
    if len(place) != len(units) or not all(0 <= i < n for i, n in zip(place, units, strict=False)):
        raise IndexError(f"The output has units of shape {units}, but got the unit {place}.")
    if channel is not None and not 0 <= channel < output.shape[1]:
        raise IndexError(f"The output has {output.shape[1]} channels, but got channel {channel}.")
    return place
