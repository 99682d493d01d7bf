"""The receptive fields of a network: its records by name, as a mapping, tables and figures."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cifar_resnet.arguments import boolean
from cifar_resnet.fields import figures, tables
from cifar_resnet.fields.records import LayerField
from cifar_resnet.plotting.canvas import draws

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure
    from numpy.typing import ArrayLike

__all__ = ["ReceptiveFields"]


class ReceptiveFields(Mapping[str, LayerField]):
    """The receptive field of every layer call of a network, by name, in the order of the calls.

    The name of a block, such as `layer1` of a ResNet, gives the record of its output, though only
    single layers are listed.

    Attributes:
        input_shape: Shape of the input that was followed.
        input_lengths: Length of each axis of the input that was followed.
        output: The record of the network's (first) output.
        blocks: The records of the blocks.
        outputs: The records of all outputs, by key if the network returns a dictionary, else by
            number.
        skipped: Operations without a rule that were treated as pointwise, and values that were
            extracted, if `unknown="skip"`.
        ignored: Names of the layers that were ignored on request.
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
        if isinstance(name, str):  # anything else may not be hashable
            if name in self._layers:
                return self._layers[name]
            if name in self.blocks:
                return self.blocks[name]
        names = [*self._layers, *self.blocks]
        close = difflib.get_close_matches(str(name), names, n=5, cutoff=0.5)
        hint = f"Close matches: {', '.join(close)}." if close else f"There are: {', '.join(names)}."
        raise KeyError(f"No layer of this network is called {name!r}. {hint}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)

    @property
    def first_to_see_all(self) -> LayerField | None:
        """The first layer whose middle unit sees the input from border to border, or None."""
        return next((layer for layer in self.values() if layer.sees_all), None)

    def table(self, *, every_layer: bool = False) -> str:
        """Return a text table: layer, kind, kernel, stride, padding, output, channels, jump, field.

        Args:
            every_layer: Whether to list layers that change neither the field, nor its jump, nor the
                number of units, such as ReLU.

        Raises:
            TypeError: If `every_layer` is neither True nor False.
        """
        rows = tables.table_rows(list(self.values()), boolean("every_layer", every_layer))
        return tables.text_table(rows, self._notes())

    def to_markdown(self, *, every_layer: bool = False) -> str:
        """Return the same table in Markdown."""
        rows = tables.table_rows(list(self.values()), boolean("every_layer", every_layer))
        return tables.markdown_table(rows, self._notes())

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return all records as plain numbers, strings and lists, ready for `json.dumps`."""
        return {name: tables.as_dict(layer) for name, layer in self.items()}

    @draws
    def plot(
        self,
        image: ArrayLike | Tensor | None = None,
        layer: str | None = None,
        units: Sequence[Sequence[int]] | None = None,
        *,
        fig: Figure | SubFigure | None = None,
        figsize: tuple[float, float] | None = None,
    ) -> Figure:
        """Draw the fields of units on an image.

        A solid box shows what a unit reads of the image, a dashed one what it would read if the
        image had no borders.

        Args:
            image: (C, H, W) or (H, W), float in [0, 1] or uint8, of the height and width analyzed.
                If None, draw an empty frame.
            layer: Name of a layer or a block. If None, the output, or the last layer with several
                units if the output has only one.
            units: Units of that layer. If None, the middle unit and two at corners.
            fig: Figure or subfigure to draw into. If None, create a figure without pyplot.
            figsize: Width and height in inches of a new figure. If None, 5 x 5.

        Returns:
            The figure.

        Raises:
            TypeError: If `units` is not a sequence, `fig` is not a figure, or `figsize` is not a
                pair of numbers.
            KeyError: If there is no such layer.
            IndexError: If there is no such unit.
            ValueError: If the network's input is not an image with two axes, `image` has another
                size, `units` is empty, or `figsize` is out of its range or given together with
                `fig`.
        """
        record = self[layer] if layer is not None else self._default_layer()
        return figures.plot_fields(record, image, units, fig, figsize)

    @draws
    def plot_growth(
        self,
        *,
        fig: Figure | SubFigure | None = None,
        figsize: tuple[float, float] | None = None,
    ) -> Figure:
        """Draw the size of the field against depth, and mark the first layer that sees all.

        Args:
            fig: Figure or subfigure to draw into. If None, create a figure without pyplot.
            figsize: Width and height in inches of a new figure. If None, 7.5 x 3.8.

        Returns:
            The figure.

        Raises:
            TypeError: If `fig` is not a figure, or `figsize` is not a pair of numbers.
            ValueError: If `figsize` is out of its range, or given together with `fig`.
        """
        return figures.plot_growth(list(self.values()), fig, figsize)

    def _default_layer(self) -> LayerField:
        """Return the output, or else the last layer that has a map of several units."""
        records = [*self.values(), self.output]
        maps = [r for r in records if len(r.unit_shape) == 2 and max(r.unit_shape) > 1]
        return maps[-1] if maps else self.output

    def _notes(self) -> list[str]:
        notes = []
        merges = {name for layer in self.values() for axis in layer.axes for name in axis.merged_at}
        if merges:
            some = tables.first_few(sorted(merges))
            notes.append(f"* branches of different centers or jumps meet in {some}")
        if self.ignored:
            notes.append(f"ignored on request: {tables.first_few(self.ignored)}")
        if self.skipped:
            notes.append(f"skipped for lack of a rule: {tables.first_few(self.skipped)}")
        return notes

    def __str__(self) -> str:
        return self.table()

    def __repr__(self) -> str:
        sizes = " x ".join(map(str, self.output.size))
        return f"<ReceptiveFields of {len(self)} layers; the output sees {sizes}>"
