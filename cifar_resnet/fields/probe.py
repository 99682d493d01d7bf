"""`check_receptive_field`: verify the analysis by setting rows of an image to NaN.

This check is independent: it runs the model, and uses neither the trace nor the rules.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from cifar_resnet.arguments import integer
from cifar_resnet.fields.analysis import receptive_field
from cifar_resnet.fields.arguments import followed_dims, model_inputs
from cifar_resnet.fields.positions.terms import MAX_SET_LENGTH
from cifar_resnet.fields.records import LayerField
from cifar_resnet.model_state import (
    in_this_thread,
    preserve_state,
    process_settings,
    unwrap_compiled,
)

__all__ = ["ProbeReport", "ReceptiveFieldMismatchError", "check_receptive_field"]


_Key = tuple[str, str]  # "layer" or "output", and its name


class ReceptiveFieldMismatchError(AssertionError):
    """Raised if the analysis and the experiment disagree about a layer."""


@dataclass(frozen=True)
class ProbeReport:
    """The outputs for which the analysis and the experiment agree.

    Attributes:
        compared: Names of the layer calls, blocks and outputs that were compared, unit by unit.
        not_compared: Names of those that could not be compared: results of functions, which no hook
            sees, and layers whose output does not have the batch as its first dimension.
        positions: Number of positions probed along each axis.
        lengths: Length of each axis.
    """

    compared: tuple[str, ...]
    not_compared: tuple[str, ...]
    positions: tuple[int, ...]
    lengths: tuple[int, ...]

    def __str__(self) -> str:
        probed = " x ".join(
            f"{probed} of {length}"
            for probed, length in zip(self.positions, self.lengths, strict=True)
        )
        return f"{len(self.compared)} outputs agree in every unit; rows probed: {probed}"


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

    The experiment has three limits: weights of zero count as read, it does not see through
    `torch.where` and `nan_to_num`, and the model must process samples independently.

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
            such layer, a unit, and both results.
        TypeError: If `model` is not a module, or another argument has the wrong type.
        ValueError: If an argument is out of range, the model fails on this input, or its output is
            NaN without the probe.

    Examples:
        >>> from cifar_resnet import CustomResNet, check_receptive_field
        >>> print(check_receptive_field(CustomResNet(width=4), (1, 3, 32, 32)))
        40 outputs agree in every unit; rows probed: 32 of 32 x 32 of 32
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
    unreadable: set[_Key] = set()  # without a tensor of the record's shape for each sample
    records: dict[_Key, LayerField] = {("layer", name): record for name, record in fields.items()}
    records |= {("layer", name): record for name, record in fields.blocks.items()}
    records |= {("output", name): record for name, record in fields.outputs.items()}
    with preserve_state(model), _plain_algorithms(), torch.no_grad():
        _check_finite(model, arguments)
        for axis, dim in enumerate(dims):
            answers: dict[_Key, list[Tensor]] = {}
            for chunk in rows[axis].split(batch_size):
                _probe(model, arguments, source, dim, chunk, records, answers, unreadable)
            for key, record in records.items():
                if key in answers:
                    _compare(record, axis, rows[axis], torch.cat(answers[key]))
    compared = [key[1] for key in records if key in answers]
    missing = [key for key in records if key not in answers]
    if any(kind == "output" for kind, _ in (*missing, *unreadable)):
        raise ValueError(
            f"The output of shape {fields.output.shape} does not have the batch as its first "
            "dimension, so the probe cannot separate the samples. Wrap the model so that it does."
        )
    not_compared = [name for _, name in missing if name not in fields.blocks]
    return ProbeReport(
        tuple(compared), tuple(not_compared), tuple(map(len, rows)), fields.input_lengths
    )


def _spaced_evenly(length: int, number: int | None) -> Tensor:
    if number is None or number >= length:
        return torch.arange(length, device="cpu")
    rows: Tensor = torch.linspace(0, length - 1, number, device="cpu").round().long().unique()
    return rows


@contextlib.contextmanager
def _plain_algorithms() -> Iterator[None]:
    """Switch off kernels that would let NaN spread too far or not far enough.

    Winograd and Fourier convolutions mix the elements of a tile. Fused attention skips some: a
    query that is NaN does not reach its output.
    """
    with process_settings, warnings.catch_warnings():
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")
            warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
            with (
                torch.backends.mkldnn.flags(enabled=False),
                torch.backends.nnpack.flags(enabled=False),
                torch.backends.cudnn.flags(enabled=False),
                sdpa_kernel(SDPBackend.MATH),
            ):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


def _check_finite(model: nn.Module, arguments: Sequence[Any]) -> None:
    for output in _tensors(model(*arguments)):
        if output.is_floating_point() and bool(output.isnan().any()):
            raise ValueError(
                "The model's output is NaN without the probe. Pass inputs= for which it is a "
                "number."
            )


def _probe(
    model: nn.Module,
    arguments: Sequence[Any],
    source: int,
    dim: int,
    rows: Tensor,
    records: Mapping[_Key, LayerField],
    answers: dict[_Key, list[Tensor]],
    unreadable: set[_Key],
) -> None:
    """Run a batch whose sample i has NaN in rows[i], and note which units are NaN."""
    number = len(rows)
    batch = [
        x.repeat(number, *[1] * (x.dim() - 1)) if isinstance(x, Tensor) and x.dim() else x
        for x in arguments
    ]
    for sample, row in enumerate(rows.tolist()):
        batch[source][sample].select(dim - 1, row).fill_(torch.nan)

    def note(key: _Key, value: Any) -> None:
        if key not in records:
            return
        record = records[key]
        for output in _tensors(value):  # the first with the record's shape for each sample
            if output.shape[1:] == record.shape[1:] and len(output) == number * record.shape[0]:
                samples = output.detach().isnan().reshape(number, *record.shape)
                others = [d + 1 for d in range(len(record.shape)) if d not in record.unit_dims]
                found = samples.any(dim=others) if others else samples
                answers.setdefault(key, []).append(found.cpu())
                return
        unreadable.add(key)

    with _layer_outputs(model, note):
        outputs = model(*batch)
    if is_dataclass(outputs):
        outputs = vars(outputs)
    if isinstance(outputs, list | tuple):
        outputs = dict(enumerate(outputs))
    for name, value in (outputs if isinstance(outputs, Mapping) else {"output": outputs}).items():
        note(("output", str(name)), value)


@contextlib.contextmanager
def _layer_outputs(model: nn.Module, note: Callable[[_Key, Any], None]) -> Iterator[None]:
    """Pass the output of every submodule's call to a function, by its name."""
    names = {module: name for name, module in model.named_modules() if name}
    calls: Counter[nn.Module] = Counter()
    numbers: list[int] = []

    def enter(module: nn.Module, args: Any) -> None:
        if module in names:
            calls[module] += 1
            numbers.append(calls[module])

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if module in names:
            number = numbers.pop()
            name = names[module] if number == 1 else f"{names[module]}#{number}"
            if output is not None:  # else it has raised an error
                note(("layer", name), output)

    handles = [
        register_module_forward_pre_hook(in_this_thread(enter)),
        register_module_forward_hook(in_this_thread(leave), always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    if is_dataclass(value):
        value = vars(value)
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _tensors(inner)


def _compare(record: LayerField, axis: int, rows: Tensor, found: Tensor) -> None:
    expected = record.seen(axis)[rows]
    if record.input_lengths[axis] > MAX_SET_LENGTH:  # only the first and the last are known
        if len(rows) == record.input_lengths[axis]:  # fill the holes between them
            after = found.flip(0).int().cummax(0).values.flip(0)
            found = (found.int().cummax(0).values * after).bool()
        else:
            expected = expected & found  # a row that was probed may lie in a hole
    if torch.equal(expected, found):
        return
    unit = tuple((expected != found).any(0).nonzero()[0].tolist())
    answers = [_listed(rows[seen[:, *unit]].tolist()) for seen in (expected, found)]
    raise ReceptiveFieldMismatchError(
        f"Layer {record.name!r}, unit {unit}, axis {axis}: according to the analysis it depends on "
        f"{answers[0]}, according to the experiment on {answers[1]} (of {len(rows)} positions "
        "probed)."
    )


def _listed(rows: Sequence[int]) -> str:
    if not rows:
        return "nothing"
    if len(rows) == rows[-1] - rows[0] + 1:
        return f"{rows[0]} to {rows[-1]}"
    return ", ".join(map(str, rows[:20])) + (", ..." if len(rows) > 20 else "")
