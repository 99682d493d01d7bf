"""The proof by experiment: make one row of the image not-a-number and see where it arrives.

It knows how to run a model; it must not use the rules or the trace, only compare with the result.
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
from cifar_resnet.fields.arguments import as_inputs, checked_dims
from cifar_resnet.fields.positions.terms import LONGEST_SET
from cifar_resnet.fields.records import LayerField
from cifar_resnet.model_state import preserve_state, unwrap_compiled

__all__ = ["ProbeReport", "ReceptiveFieldMismatchError", "check_receptive_field"]


_Key = tuple[str, str]  # "layer" or "output", and its name


class ReceptiveFieldMismatchError(AssertionError):
    """The analysis and the experiment disagree about a layer."""


@dataclass(frozen=True)
class ProbeReport:
    """What was compared, and found equal.

    Attributes:
        compared: Names of the layer calls, blocks and outputs compared, unit by unit.
        not_compared: Those that could not be: results of functions, which no hook sees, and layers
            whose output does not have the batch in front.
        positions: For each axis, how many of its positions were probed.
        lengths: For each axis, its length.
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
    """Prove `receptive_field` right for a network by an independent experiment.

    Sample i of a batch gets NaN in row i of the image; a unit of the output that is NaN depends on
    that row, whatever the weights. NaN passes ReLU, maximum pooling and normalization, so values
    cannot hide a dependence as they do with gradients. All units of all layer outputs are compared
    with the analysis, as sets of rows, not by their size alone.

    Three things the experiment cannot do: it counts weights of zero; it does not see through
    `torch.where` and `nan_to_num`; and it needs a model that takes samples independently.

    Args:
        model: The network.
        input_size: Shape of the input with the batch, which must be 1: `(1, 3, 32, 32)`.
        inputs: In place of `input_size` what the model is called with; tensors with a batch of 1
            are repeated.
        source: Which of `inputs` is probed.
        spatial_dims: The dimensions to probe; None for all from the third on.
        rules: As for `receptive_field`.
        positions: Rows to probe of each axis, spread evenly, borders included; None for all.
        batch_size: Samples run at once; a multiple of the memory of one.

    Returns:
        What was compared.

    Raises:
        ReceptiveFieldMismatchError: If a layer's answers differ, with the first such layer, a unit
            and both answers.
        TypeError: If `model` is no module, or another argument has the wrong type.
        ValueError: If an argument is out of its range, or the model fails on this input or gives
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
    arguments = list(as_inputs(model, input_size, inputs, source))
    probed = arguments[source]
    if probed.shape[0] != 1 or not probed.is_floating_point():
        raise ValueError(
            f"The probe needs a floating-point input with a batch of 1, but got {probed.dtype} of "
            f"shape {tuple(probed.shape)}."
        )
    if inputs is None:
        noise = torch.randn(probed.shape, generator=torch.Generator().manual_seed(0))
        arguments[source] = noise.to(probed)
    dims = checked_dims(probed.shape, spatial_dims)
    rows = [_spread(probed.shape[dim], positions) for dim in dims]
    compared: list[str] = []
    strange: set[_Key] = set()
    records: dict[_Key, LayerField] = {("layer", name): fields[name] for name in fields}
    records |= {("layer", name): record for name, record in fields.blocks.items()}
    records |= {("output", name): record for name, record in fields.outputs.items()}
    with preserve_state(model), _plain_algorithms(), torch.no_grad():
        _check_finite(model, arguments)
        for axis, dim in enumerate(dims):
            answers: dict[_Key, list[Tensor]] = {}
            for chunk in rows[axis].split(batch_size):
                _probe(model, arguments, source, dim, chunk, records, answers, strange)
            for key, record in records.items():
                if key in answers:
                    _compare(record, axis, rows[axis], torch.cat(answers[key]))
    compared = [key[1] for key in records if key in answers]
    missing = [name for kind, name in records if (kind, name) not in answers]
    missing = [name for name in missing if name not in fields.blocks]
    if any(kind == "output" and (kind, name) not in answers for kind, name in records) or any(
        kind == "output" for kind, _ in strange
    ):
        raise ValueError(
            f"The output of shape {fields.output.shape} does not have the batch in front, so the "
            "probe cannot tell the samples apart. Wrap the model so that its output does."
        )
    return ProbeReport(tuple(compared), tuple(missing), tuple(map(len, rows)), fields.input_lengths)


def _spread(length: int, number: int | None) -> Tensor:
    if number is None or number >= length:
        return torch.arange(length)
    rows: Tensor = torch.linspace(0, length - 1, number).round().long().unique()
    return rows


@contextlib.contextmanager
def _plain_algorithms() -> Iterator[None]:
    """Without Winograd and Fourier convolutions, which mix a tile's elements, and fused attention,
    which skips some: a query that is NaN leaves no trace there."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
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
                "The model's output is NaN already without the probe. Give inputs= for which it is "
                "a number."
            )


def _probe(
    model: nn.Module,
    arguments: Sequence[Any],
    source: int,
    dim: int,
    rows: Tensor,
    records: Mapping[_Key, LayerField],
    answers: dict[_Key, list[Tensor]],
    strange: set[_Key],
) -> None:
    """Run a batch whose sample i has NaN in rows[i]; note which units are NaN."""
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
        for output in _tensors(value):
            if output.shape[1:] == record.shape[1:] and len(output) == number * record.shape[0]:
                samples = output.detach().isnan().reshape(number, *record.shape)
                others = [d + 1 for d in range(len(record.shape)) if d not in record.unit_dims]
                found = samples.any(dim=others) if others else samples
                answers.setdefault(key, []).append(found.cpu())
                return
        strange.add(key)

    with _watched(model, note):
        outputs = model(*batch)
    if is_dataclass(outputs):
        outputs = vars(outputs)
    if isinstance(outputs, list | tuple):
        outputs = dict(enumerate(outputs))
    for name, value in (outputs if isinstance(outputs, Mapping) else {"output": outputs}).items():
        note(("output", str(name)), value)


@contextlib.contextmanager
def _watched(model: nn.Module, note: Callable[[_Key, Any], None]) -> Iterator[None]:
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
            if output is not None:  # it has not failed
                note(("layer", name), output)

    handles = [
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
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
    if record.input_lengths[axis] > LONGEST_SET:  # only first and last are known
        if len(rows) == record.input_lengths[axis]:
            after = found.flip(0).int().cummax(0).values.flip(0)
            found = (found.int().cummax(0).values * after).bool()
        else:
            expected = expected & found  # holes may lie where a few rows are probed
    if torch.equal(expected, found):
        return
    unit = tuple((expected != found).any(0).nonzero()[0].tolist())
    answers = [_listed(rows[seen[:, *unit]].tolist()) for seen in (expected, found)]
    raise ReceptiveFieldMismatchError(
        f"Layer {record.name!r}, unit {unit}, axis {axis}: by the analysis it depends on "
        f"{answers[0]}, by the experiment on {answers[1]} (of {len(rows)} positions probed)."
    )


def _listed(rows: Sequence[int]) -> str:
    if not rows:
        return "nothing"
    if len(rows) == rows[-1] - rows[0] + 1:
        return f"{rows[0]} to {rows[-1]}"
    return ", ".join(map(str, rows[:20])) + (", ..." if len(rows) > 20 else "")
