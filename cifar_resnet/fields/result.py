"""A network's records, by name. It knows names and how to present them; the drawing itself and the
tables have files of their own.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cifar_resnet.arguments import boolean
from cifar_resnet.fields.records import LayerField

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

__all__ = ["ReceptiveFields"]


class ReceptiveFields(Mapping[str, LayerField]):
    """The layer calls of a network in order, by name, each with its receptive field.

    A block's name, such as `layer1` of a ResNet, gives the record of its output, though only
    single layers are listed.

    Attributes:
        input_shape: Shape of the input that was followed.
        output: The record of the network's (first) output.
        blocks: The records of the blocks.
        outputs: Records of all outputs: by key if the network returns a dictionary, else by number.
        skipped: Operations without a rule that were taken for pointwise on request.
        ignored: Names of the layers left out on request.
    """

    def __init__(
        self,
        layers: Sequence[LayerField],
        blocks: Mapping[str, LayerField],
        outputs: Mapping[str, LayerField],
        input_shape: tuple[int, ...],
        input_lengths: tuple[int, ...],
        skipped: Sequence[str] = (),
        ignored: Sequence[str] = (),
    ) -> None:
        self._layers = {layer.name: layer for layer in layers}
        self.blocks = dict(blocks)
        self.outputs = dict(outputs)
        self.input_shape = input_shape
        self.input_lengths = input_lengths
        self.skipped = tuple(skipped)
        self.ignored = tuple(ignored)

    @property
    def output(self) -> LayerField:
        return next(iter(self.outputs.values()))

    def __getitem__(self, name: str) -> LayerField:
        if isinstance(name, str):  # whatever else is asked for need not have a hash
            if name in self._layers:
                return self._layers[name]
            if name in self.blocks:
                return self.blocks[name]
        names = [*self._layers, *self.blocks]
        close = difflib.get_close_matches(str(name), names, n=5, cutoff=0.5)
        hint = f"Close ones: {', '.join(close)}." if close else f"There are: {', '.join(names)}."
        raise KeyError(f"No layer of this network is called {name!r}. {hint}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def first_to_see_all(self) -> LayerField | None:
        """The first layer whose middle unit reads from border to border; None if no one does."""
        return next((layer for layer in self.values() if layer.sees_all), None)

    def table(self, *, every_layer: bool = False) -> str:
        """A text table: layer, kind, kernel, stride, padding, output, channels, jump and field.

        Args:
            every_layer: Also the layers that change neither the field, nor its stride, nor the
                number of units, such as ReLU.

        Raises:
            TypeError: If `every_layer` is neither True nor False.
        """
        from cifar_resnet.fields.tables import text_table

        return text_table(self, boolean("every_layer", every_layer))

    def to_markdown(self, *, every_layer: bool = False) -> str:
        """The same table in Markdown."""
        from cifar_resnet.fields.tables import markdown_table

        return markdown_table(self, boolean("every_layer", every_layer))

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """All records as plain numbers, strings and lists, ready for `json.dumps`."""
        from cifar_resnet.fields.tables import as_dict

        return {name: as_dict(layer) for name, layer in self.items()}

    def plot(
        self,
        image: ArrayLike | Tensor | None = None,
        layer: str | None = None,
        units: Sequence[Sequence[int]] | None = None,
        *,
        fig: Figure | None = None,
    ) -> Figure:
        """Draw the fields of units on an image: what each reads, and dashed what it would read if
        the image went on beyond its frame.

        Args:
            image: (C, H, W) or (H, W), float in [0, 1] or uint8, of the analysed height and width;
                None for an empty frame.
            layer: Name of a layer or a block; None for the output, or the last layer with several
                units if the output has one only.
            units: Units of that layer; None for the middle one and two at corners.
            fig: Figure to draw into; None for a new one, made without pyplot.

        Returns:
            The figure.

        Raises:
            TypeError: If `units` is no sequence, or `fig` no figure.
            KeyError: If there is no such layer.
            IndexError: If there is no such unit.
            ValueError: If the network's input is not an image with two axes, the image given has
                another size, or `units` is empty.
        """
        from cifar_resnet.fields.figures import plot_fields

        return plot_fields(self, image, layer, units, fig)

    def plot_growth(self, *, fig: Figure | None = None) -> Figure:
        """Draw the field's size against depth, with the input's size, and name the first layer
        whose middle unit reads from border to border.

        Args:
            fig: Figure to draw into; None for a new one, made without pyplot.

        Raises:
            TypeError: If `fig` is no figure.
        """
        from cifar_resnet.fields.figures import plot_growth

        return plot_growth(self, fig)

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        sizes = " x ".join(map(str, self.output.size))
        return f"<ReceptiveFields of {len(self)} layers; the output sees {sizes}>"
