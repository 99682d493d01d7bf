"""`receptive_field`: the public function, which traces a network and applies the rules."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from cifar_resnet.arguments import choice
from cifar_resnet.fields.arguments import (
    check_batch,
    check_rules,
    failure_message,
    followed_dims,
    matching_layers,
    model_inputs,
)
from cifar_resnet.fields.propagation import Propagation
from cifar_resnet.fields.result import ReceptiveFields
from cifar_resnet.fields.rules.operation import ValuesNeededError
from cifar_resnet.fields.rules.registry import as_rule
from cifar_resnet.fields.trace import TraceError, trace
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
    """Compute the receptive field of every layer of a network.

    The model is run once, in evaluation mode and on tensors without values, and a rule is applied
    to each operation that PyTorch carries out, including functional calls, slices, branches and
    reused modules. The result is exact; an operation that cannot be followed raises an error. The
    values of weights and images do not matter: a weight of zero counts as read. The model is left
    unchanged. `check_receptive_field` verifies the result by an experiment.

    The method is that of Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional
    Neural Networks" (Distill 2019), with sets of pixels instead of sizes, so that branches may be
    misaligned, units may differ and borders count.

    Args:
        model: Any module. A compiled model is followed uncompiled.
        input_size: Shape of the input, including the batch, such as `(1, 3, 32, 32)`.
        inputs: The arguments to call the model with, in place of `input_size`, for models with
            several inputs or with inputs that are not floating-point.
        source: Index of the input to follow among `inputs`.
        spatial_dims: The dimensions of the input to follow. If None, all from the third on.
        ignore: Names or classes of submodules to look through, or patterns such as `"*.se"` and
            `"GroupNorm"`. Such layers use the whole image, which hides what the
            convolutions see. Each unit of an ignored layer's output depends on the same unit of its
            input.
        unknown: "raise" to raise an error for an operation without a rule, and if values are
            extracted from a tensor (`item`, `numpy`). "skip" to treat the operation as pointwise,
            ignore paths through extracted values, and list both in `.skipped`.
        rules: Rules for further operations, by name (`"mylib::blur"`): "pointwise", "global", a
            mapping with `kernel_size` (and `stride`, `padding`, `dilation`) for an operation that
            slides, or a function of the operation.

    Returns:
        A mapping from the names of layers to records, which prints as a table.

    Raises:
        TypeError: If `model` is not a module, or another argument has the wrong type.
        ValueError: If the model fails on this input or has lazy parameters without a shape, or an
            argument is not valid.
        NotImplementedError: If an operation has no rule, or values are extracted from a tensor.

    Examples:
        >>> from cifar_resnet import CustomResNet, receptive_field
        >>> fields = receptive_field(CustomResNet(), (1, 3, 32, 32))
        >>> fields["residual1"].size, fields["residual1"].jump
        ((14, 14), (Fraction(2, 1), Fraction(2, 1)))
        >>> fields["residual1"].region((0, 0))
        ((0, 7), (0, 7))
        >>> fields["residual1"].region((0, 0), clip=False)
        ((-6, 7), (-6, 7))
        >>> fields.output.size
        (88, 88)
    """
    model = unwrap_compiled(model)
    arguments = model_inputs(model, input_size, inputs, source)
    choice("unknown", unknown, ("raise", "skip"))
    check_rules(rules)
    shape = tuple(arguments[source].shape)
    dims = followed_dims(shape, spatial_dims)
    own = {name: as_rule(rule) for name, rule in (rules or {}).items()}
    ignored = matching_layers(model, ignore)

    def analyze(on_values: bool | None) -> ReceptiveFields:
        run = trace(model, arguments, on_values=on_values)
        if spatial_dims is None:
            check_batch(run, source)
        # a device context slows each operation down: enter it only if another device is the default
        on_cpu = torch.get_default_device().type == "cpu"
        with contextlib.nullcontext() if on_cpu else torch.device("cpu"):
            return Propagation(run, source, dims, ignored, unknown, own).run()

    try:
        try:
            return analyze(None)
        except ValuesNeededError:  # a rule needs the values of an index: run on real tensors
            return analyze(True)
    except TraceError as error:
        raise ValueError(failure_message(error, shape, inputs)) from error.__cause__
