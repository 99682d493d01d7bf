"""`check_receptive_field`: verify the analysis by experiments.

The experiments are independent: they run the model, and use neither the trace nor the rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from cifar_resnet.arguments import integer
from cifar_resnet.fields.algorithms import plain_algorithms
from cifar_resnet.fields.analysis import receptive_field
from cifar_resnet.fields.arguments import followed_dims, model_inputs
from cifar_resnet.fields.borders import check_beyond_borders, within_borders
from cifar_resnet.fields.experiments import (
    Experiments,
    Found,
    Key,
    Watched,
)
from cifar_resnet.fields.mismatch import ReceptiveFieldMismatchError, listed
from cifar_resnet.fields.numbering import tensors_in
from cifar_resnet.fields.positions.terms import MAX_SET_LENGTH
from cifar_resnet.fields.records import LayerField
from cifar_resnet.model_state import preserve_state, unwrap_compiled

__all__ = ["ProbeReport", "check_receptive_field"]


_SPOT_ROWS = 16  # rows that are changed even if NaN and the analysis agree


@dataclass(frozen=True)
class ProbeReport:
    """The outputs for which the analysis and the experiment agree.

    Attributes:
        compared: Names of the layer calls, blocks and outputs that were compared, unit by unit.
        not_compared: Names of those that could not be compared: results of functions, which no hook
            sees, and layers whose output does not have the batch as its first dimension.
        positions: Number of positions probed along each axis.
        lengths: Length of each axis.
        by_nan: Number of positions, over all units and outputs, for which NaN and the analysis
            agree.
        by_change: Number of positions that finite changes decided, because NaN could not.
        sizes: Names of the outputs whose sizes, jumps, starts and paddings were verified, too: by
            units that read nothing beyond the borders, or on larger inputs. For a model that
            accepts only one input size, the others cannot be verified.
    """

    compared: tuple[str, ...]
    not_compared: tuple[str, ...]
    positions: tuple[int, ...]
    lengths: tuple[int, ...]
    by_nan: int = 0
    by_change: int = 0
    sizes: tuple[str, ...] = ()

    def __str__(self) -> str:
        probed = " x ".join(
            f"{probed} of {length}"
            for probed, length in zip(self.positions, self.lengths, strict=True)
        )
        parts = [
            f"{len(self.compared)} outputs agree in every unit",
            f"rows probed: {probed}",
            f"sizes verified: {len(self.sizes)}",
        ]
        if self.by_change:
            decided = f"{self.by_nan}, by finite changes: {self.by_change}"
            parts.append(f"positions decided by NaN: {decided}")
        return "; ".join(parts)


def check_receptive_field(
    model: nn.Module,
    input_size: Sequence[int] | None = None,
    *,
    inputs: Sequence[Any] | None = None,
    source: int = 0,
    spatial_dims: Sequence[int] | None = None,
    rules: Mapping[str, Any] | None = None,
    positions: int | None = None,
    batch_size: int = 16,
) -> ProbeReport:
    """Verify `receptive_field` for a network by an independent experiment.

    Sample i of a batch has NaN in row i of the image. A unit of an output that is NaN depends on
    that row, whatever the weights are. NaN passes through ReLU, max pooling and normalization,
    where the gradient can be zero although the unit depends on the row. All units of all layer
    outputs are compared with the analysis as sets of rows, not only by their size.

    Where NaN and the analysis disagree, as in causal attention (0 times NaN is NaN), sorting, or
    `nan_to_num`, a second experiment changes rows by finite amounts of several signs and
    magnitudes, in double precision if the model can be copied. Neither experiment is given more
    than one sample at a time where the model mixes samples or allows a batch of 1 only.

    Sizes, jumps, starts and paddings are also compared on larger inputs, where no border
    clips the fields, for all layers that the model reaches there. The experiments have one limit:
    weights of zero count as read.

    Args:
        model: The network.
        input_size: Shape of the input, including the batch, which must be 1: `(1, 3, 32, 32)`.
        inputs: The arguments to call the model with, in place of `input_size`. Tensors with a batch
            of 1 are repeated.
        source: Index of the input to probe among `inputs`.
        spatial_dims: The dimensions to probe. If None, all from the third on.
        rules: As for `receptive_field`.
        positions: Number of rows to probe along each axis, spaced evenly and including the borders.
            If None, probe all of them.
        batch_size: Number of samples to run at once.

    Returns:
        The outputs that were compared.

    Raises:
        ReceptiveFieldMismatchError: If the results for a layer differ. The message names the first
            such layer, a unit, and both results. Both experiments support what it says.
        TypeError: If `model` is not a module, or another argument has the wrong type.
        ValueError: If an argument is out of range, the model fails on this input, or its output is
            NaN without the probe or cannot be read in an experiment.

    Examples:
        >>> from cifar_resnet import CustomResNet, check_receptive_field
        >>> print(check_receptive_field(CustomResNet(width=4), (1, 3, 32, 32)))
        40 outputs agree in every unit; rows probed: 32 of 32 x 32 of 32; sizes verified: 24
    """
    if positions is not None:
        positions = integer("positions", positions, minimum=1, instead=", or None for all")
    batch_size = integer("batch_size", batch_size, minimum=1)
    fields = receptive_field(
        model, input_size, inputs=inputs, source=source, spatial_dims=spatial_dims, rules=rules
    )
    model = unwrap_compiled(model)
    arguments = list(model_inputs(model, input_size, inputs, source))
    probed = arguments[source]
    if probed.shape[0] != 1 or not probed.is_floating_point():
        raise ValueError(
            f"The probe needs a floating-point input with a batch of 1, but got {probed.dtype} of "
            f"shape {tuple(probed.shape)}."
        )
    if inputs is None:  # noise, as zeros could become NaN by a division
        noise = torch.randn(probed.shape, generator=torch.Generator().manual_seed(0), device="cpu")
        arguments[source] = noise.to(probed)
    dims = followed_dims(probed.shape, spatial_dims)
    rows = [_spaced_evenly(probed.shape[dim], positions) for dim in dims]
    records: dict[Key, LayerField] = {
        ("layer", name): record for name, record in fields.items() if record.is_module
    }
    records |= {("layer", name): record for name, record in fields.blocks.items()}
    records |= {("output", name): record for name, record in fields.outputs.items()}
    watched = {key: Watched(record.shape, record.unit_dims) for key, record in records.items()}
    tally = _Tally()
    with preserve_state(model), plain_algorithms(), torch.no_grad():
        _check_finite(model, arguments)
        experiments = Experiments(model, arguments, source, watched)
        for axis, dim in enumerate(dims):
            _check_axis(experiments, records, axis, dim, rows[axis], batch_size, tally)
        compared = [key for key in records if key not in tally.missing]
        if any(kind == "output" for kind, _ in tally.missing):
            raise ValueError(
                f"The output of shape {fields.output.shape} cannot be read in an experiment, even "
                f"with one sample at a time. The last error was: {experiments.error}"
            ) from experiments.error
        sized = {*check_beyond_borders(model, arguments, source, dims, records, batch_size)}
        if all(len(at) == probed.shape[dim] for at, dim in zip(rows, dims, strict=True)):
            sized |= within_borders(records, fields.input_lengths) & {*compared}
    functions = [name for name, record in fields.items() if not record.is_module]
    missing = [name for _, name in tally.missing if name not in fields.blocks]
    return ProbeReport(
        tuple(name for _, name in compared),
        (*functions, *missing),
        tuple(map(len, rows)),
        fields.input_lengths,
        tally.by_nan,
        tally.by_change,
        tuple(name for kind, name in records if (kind, name) in sized),
    )


def _spaced_evenly(length: int, number: int | None) -> Tensor:
    if number is None or number >= length:
        return torch.arange(length, device="cpu")
    rows: Tensor = torch.linspace(0, length - 1, number, device="cpu").round().long().unique()
    return rows


def _check_finite(model: nn.Module, arguments: Sequence[Any]) -> None:
    for output in tensors_in(model(*tree_map_only(Tensor, torch.clone, list(arguments)))):
        if output.is_floating_point() and bool(output.isnan().any()):
            raise ValueError(
                "The model's output is NaN without the probe. Pass inputs= for which it is a "
                "number."
            )


class _Tally:
    """How many positions of how many units each experiment has decided."""

    def __init__(self) -> None:
        self.by_nan = 0
        self.by_change = 0
        self.missing: dict[Key, None] = {}  # outputs that no experiment could read


def _check_axis(
    experiments: Experiments,
    records: Mapping[Key, LayerField],
    axis: int,
    dim: int,
    rows: Tensor,
    batch_size: int,
    tally: _Tally,
) -> None:
    """Compare all records with the experiments along one axis.

    Where NaN and the analysis disagree, finite changes of several signs and magnitudes are tried.
    One is tried everywhere, on a few rows, as NaN and the analysis may miss the same dependency.
    What then disagrees is run again sample by sample, as the model may mix samples.
    """
    results = _experiment(experiments, records, axis, dim, rows, batch_size)
    if batch_size > 1:
        again = [key for key in records if key not in results or results[key][0] is not None]
        if again:
            some = {key: records[key] for key in again}
            results |= _experiment(experiments, some, axis, dim, rows, 1)
    for key in records:
        if key not in results:
            tally.missing[key] = None
            continue
        wrong, by_nan, by_change = results[key]
        if wrong is not None:
            raise wrong
        tally.by_nan += by_nan
        tally.by_change += by_change


_Result = tuple[ReceptiveFieldMismatchError | None, int, int]


def _experiment(
    experiments: Experiments,
    records: Mapping[Key, LayerField],
    axis: int,
    dim: int,
    rows: Tensor,
    batch_size: int,
) -> dict[Key, _Result]:
    """Return for each record the error, if any, and the positions that each experiment decided."""
    nan = experiments.by_nan(dim, rows, batch_size)
    expected = {key: record.seen(axis)[rows] for key, record in records.items()}
    changed: Found = {}

    def change(at: Tensor, trial: int) -> None:
        for key, units in experiments.by_change(dim, rows[at], batch_size, trial).items():
            if key in expected:
                changed.setdefault(key, torch.zeros_like(expected[key]))[at] |= units

    some = _SPOT_ROWS if nan.keys() >= records.keys() else None
    change(_spaced_evenly(len(rows), some), 0)
    for trial in range(experiments.trials):
        doubtful = torch.zeros(len(rows), dtype=torch.bool, device="cpu")
        for key in changed:
            if not _is_long(records[key], axis):
                open_ = (nan[key] != expected[key]) if key in nan else expected[key]
                doubtful |= (open_ & ~changed[key]).reshape(len(rows), -1).any(1)
        if not doubtful.any():
            break
        change(doubtful.nonzero().flatten(), trial)
    return {
        key: _compare(records[key], axis, rows, expected[key], nan.get(key), changed.get(key))
        for key in records
        if key in nan or key in changed
    }


def _is_long(record: LayerField, axis: int) -> bool:
    return record.input_lengths[axis] > MAX_SET_LENGTH


def _compare(
    record: LayerField,
    axis: int,
    rows: Tensor,
    expected: Tensor,
    nan: Tensor | None,
    changed: Tensor | None,
) -> _Result:
    """Compare the analysis with what became NaN and what changed, (rows, *unit_shape) each.

    A change that the analysis excludes refutes it. A row that turns a unit NaN but does not change
    it counts as not read if the analysis says so, as with 0 * NaN.
    """
    if nan is None:
        found = changed
    elif changed is None:
        found = nan
    else:
        found = changed | (nan & expected)
    assert found is not None
    if _is_long(record, axis):  # only the first and the last are known
        if len(rows) == record.input_lengths[axis]:  # fill the holes between them
            after = found.flip(0).int().cummax(0).values.flip(0)
            found = (found.int().cummax(0).values * after).bool()
        else:
            expected = expected & found  # a row that was probed may lie in a hole
    if torch.equal(expected, found):
        agreed = int((nan == expected).sum()) if nan is not None else 0
        return None, agreed, expected.numel() - agreed
    unit = tuple((expected != found).any(0).nonzero()[0].tolist())
    answers = [listed(rows[seen[:, *unit]].tolist()) for seen in (expected, found)]
    error = ReceptiveFieldMismatchError(
        f"Layer {record.name!r}, unit {unit}, axis {axis}: according to the analysis it depends on "
        f"{answers[0]}, according to the experiment on {answers[1]} (of {len(rows)} positions "
        "probed)."
    )
    return error, 0, 0
