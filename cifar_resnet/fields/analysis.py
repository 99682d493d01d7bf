"""Exact receptive fields: the rules of all operations applied along a trace of the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from cifar_resnet.arguments import choice
from cifar_resnet.fields.arguments import (
    as_inputs,
    check_batch,
    check_rules,
    checked_dims,
    ignored_names,
    rejection,
)
from cifar_resnet.fields.following import Analysis
from cifar_resnet.fields.result import ReceptiveFields
from cifar_resnet.fields.rules.registry import as_rule
from cifar_resnet.fields.trace import TraceError, ValuesNeededError, trace
from cifar_resnet.model_state import unwrap_compiled

__all__ = ["receptive_field"]


def receptive_field(
    model: nn.Module,
    input_size: Sequence[int] | None = None,
    *,
    inputs: Sequence[Any] | None = None,
    source: int = 0,
    spatial_dims: Sequence[int] | None = None,
    ignore: str | Iterable[str] = (),
    unknown: str = "raise",
    rules: Mapping[str, Any] | None = None,
) -> ReceptiveFields:
    """The receptive field of every layer of a network, exact for any network that PyTorch can run.

    The model is run once, in evaluation mode and on tensors without values, and each operation that
    PyTorch carries out is followed by its rule: functional calls, slices, branches and reused
    modules count like any other. The values of weights and images do not matter, except that a
    weight of zero counts as read. The model stays as it is. `check_receptive_field` proves the
    answer by experiment.

    The mathematics are those of Araujo, Norris and Sim, "Computing Receptive Fields of
    Convolutional Neural Networks" (Distill 2019), with unions instead of sizes, so that branches
    may be misaligned, units may differ and borders count.

    Args:
        model: Any module. Compiled ones are followed uncompiled.
        input_size: Shape of the input with the batch, such as `(1, 3, 32, 32)`.
        inputs: In place of `input_size` the arguments that the model is called with, for models
            with several inputs or ones that are not floating point.
        source: Which of `inputs` is followed.
        spatial_dims: The dimensions of the input to follow; None for all from the third on.
        ignore: Names or classes of submodules, or patterns such as `"*.se"` and `"GroupNorm"`, to
            look through: gates and normalizations see the whole image, which hides what
            convolutions see. A layer left out passes on what it gets, at the same place.
        unknown: "raise" for an error at an operation without a rule, and where values leave the
            tensors (`item`, `numpy`); "skip" to take the operation for pointwise, leave that way
            out, and list both in `.skipped`.
        rules: Rules for further operations, by name (`"mylib::blur"`): "pointwise", "global", a
            mapping with `kernel_size` (and `stride`, `padding`, `dilation`) for one that slides, or
            a function of the operation.

    Returns:
        A mapping from layer names to records; printed, it is a table.

    Raises:
        TypeError: If `model` is no module, or another argument has the wrong type.
        ValueError: If the model fails on this input, has parameters without a shape yet, or an
            argument is not valid.
        NotImplementedError: If an operation has no rule, or values leave the tensors.

    Examples:
        >>> from cifar_resnet import CustomResNet, receptive_field
        >>> fields = receptive_field(CustomResNet(), (1, 3, 32, 32))
        >>> fields["residual1"].size, fields["residual1"].stride
        ((14, 14), (Fraction(2, 1), Fraction(2, 1)))
        >>> fields["residual1"].region((0, 0))
        ((0, 7), (0, 7))
        >>> fields["residual1"].region((0, 0), clip=False)
        ((-6, 7), (-6, 7))
        >>> fields.output.size
        (88, 88)
    """
    model = unwrap_compiled(model)
    arguments = as_inputs(model, input_size, inputs, source)
    choice("unknown", unknown, ("raise", "skip"))
    check_rules(rules)
    shape = tuple(arguments[source].shape)
    dims = checked_dims(shape, spatial_dims)
    own = {name: as_rule(rule) for name, rule in (rules or {}).items()}
    ignored = ignored_names(model, ignore)

    def analysed(on_values: bool | None) -> ReceptiveFields:
        run = trace(model, arguments, on_values=on_values)
        if spatial_dims is None:
            check_batch(run, source)
        return Analysis(run, source, dims, ignored, unknown, own).result()

    try:
        try:
            return analysed(None)
        except ValuesNeededError:
            return analysed(True)
    except TraceError as error:
        raise ValueError(rejection(error, shape, inputs)) from error.__cause__
