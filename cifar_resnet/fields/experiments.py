"""Two experiments that find which rows of an image each unit of a network depends on.

The first sets a row to NaN, and the units that become NaN depend on it, whatever the weights are.
It passes ReLU, max pooling and normalization, where a small change may have no effect. But 0 * NaN
is NaN, so a zero in a causal mask counts as read, and a comparison, `nan_to_num` or `sort` hides
NaN. The second experiment changes a row by finite amounts, in double precision, and the units that
change depend on it. It never claims too much, but may miss a row that has no effect by chance.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from cifar_resnet.fields.algorithms import NoKernelGetsNan
from cifar_resnet.fields.numbering import tensors_in
from cifar_resnet.model_state import watch_modules

Key = tuple[str, str]  # "layer" or "output", and its name
Found = dict[Key, Tensor]  # bool (rows, *unit_shape): which units depend on each row

# Sizes of the finite changes, relative to the input's standard deviation.
MAGNITUDES = (1.0, -1.0, 1e3, -1e3, 1e-2, -1e-2, 1e6, -1e6)


@dataclass(frozen=True)
class Watched:
    """An output to observe.

    Attributes:
        shape: Its shape for one sample.
        unit_dims: The dimensions that index the units.
        free: A dimension that may have another size, or None.
    """

    shape: tuple[int, ...]
    unit_dims: tuple[int, ...]
    free: int | None = None

    def by_sample(self, output: Tensor, number: int) -> Tensor | None:
        """Return an output of a batch as (number, *shape), or None if it has another shape."""
        if output.dim() != len(self.shape) or (number > 1 and not self.shape):
            return None
        sizes = [
            size if dim != self.free else output.shape[dim] for dim, size in enumerate(self.shape)
        ]
        expected = [number * sizes[0], *sizes[1:]] if sizes else []
        if list(output.shape) != expected:
            return None
        return output.reshape(number, *sizes)

    def units(self, elements: Tensor) -> Tensor:
        """Return which units have a true element: bool (number, *unit_shape)."""
        others = [d + 1 for d in range(len(self.shape)) if d not in self.unit_dims]
        return (elements.any(dim=others) if others else elements).cpu()


class Experiments:
    """Runs a model on altered copies of its inputs.

    Args:
        model: The network, in evaluation mode.
        arguments: What to call it with.
        source: Index of the argument to alter.
        watched: The outputs to observe.
    """

    def __init__(
        self,
        model: nn.Module,
        arguments: Sequence[Any],
        source: int,
        watched: Mapping[Key, Watched],
    ) -> None:
        self.model = model
        self.arguments = list(arguments)
        self.source = source
        self.watched = watched
        self.error: Exception | None = None  # the last one that the model raised
        self._unstable: dict[int, set[Key]] = {}  # outputs that differ in a batch of a size
        self._exact: tuple[nn.Module, list[Any]] | None = None
        self._befores: dict[int, dict[Key, Tensor]] = {}

    def by_nan(self, dim: int, rows: Tensor, batch_size: int) -> Found:
        """Return the units that are NaN if a row is. Outputs that cannot be read are missing."""

        def set_row(row: Tensor) -> None:
            row.fill_(torch.nan)

        def is_nan(key: Key, samples: Tensor) -> Tensor:
            return samples.isnan()

        with NoKernelGetsNan():
            return self._altered(self.model, self.arguments, dim, rows, batch_size, set_row, is_nan)

    def by_change(self, dim: int, rows: Tensor, batch_size: int, trial: int) -> Found:
        """Return the units that change if a row changes by a finite amount."""
        if self._exact is None:
            self._exact = self._in_double_precision()
        model, arguments = self._exact
        before = self._before(trial)
        image = arguments[self.source]
        scale = float(image.double().std(correction=0)) or 1.0
        generator = torch.Generator().manual_seed(trial)
        size = list(image.shape)
        del size[dim], size[0]
        noise = torch.rand(size, generator=generator, dtype=torch.float64, device="cpu") + 0.5
        amount = (MAGNITUDES[trial % len(MAGNITUDES)] * scale * noise).to(image)

        def set_row(row: Tensor) -> None:
            row.add_(amount)

        def differs(key: Key, samples: Tensor) -> Tensor:
            old = before.get(key)
            if old is None or old.shape != samples.shape[1:]:
                return samples.new_zeros((), dtype=torch.bool)
            if not (samples.is_floating_point() or samples.is_complex()):
                return samples != old
            finite = old[old.isfinite()]
            largest = float(finite.abs().max()) if finite.numel() else 0.0
            tolerance = 1e3 * torch.finfo(samples.dtype).eps * largest
            same = ((samples - old).abs() <= tolerance) | (samples == old)
            return ~(same | (samples.isnan() & old.isnan()))

        unstable = self._unstable.get(batch_size)
        if unstable is None:  # a batch may change what is not altered: noise, mixed samples
            untouched = self._altered(
                model,
                arguments,
                dim,
                rows[:batch_size],
                batch_size,
                torch.Tensor.detach,
                differs,
                trial,
            )
            unstable = {key for key, units in untouched.items() if units.any()}
            self._unstable[batch_size] = unstable
        found = self._altered(model, arguments, dim, rows, batch_size, set_row, differs, trial)
        return {key: v for key, v in found.items() if key not in unstable and key in before}

    @property
    def trials(self) -> int:
        """Number of finite changes to try: more if the model draws random numbers, such as masks,
        which hide a different part of the image each time."""
        first, second = self._before(0), self._before(1)
        same = all(torch.equal(first[key], second[key]) for key in first if key in second)
        return len(MAGNITUDES) if same else 5 * len(MAGNITUDES)

    def _in_double_precision(self) -> tuple[nn.Module, list[Any]]:
        def double(x: Tensor) -> Tensor:
            return x.double() if x.is_floating_point() else x

        with contextlib.suppress(Exception):  # it cannot be copied, or needs its own precision
            model = copy.deepcopy(self.model).double()
            arguments = tree_map_only(Tensor, double, self.arguments)
            model(*tree_map_only(Tensor, torch.clone, arguments))
            return model, arguments
        return self.model, self.arguments

    def _before(self, trial: int) -> dict[Key, Tensor]:
        """Return the outputs for one sample that is not altered."""
        if trial not in self._befores:
            assert self._exact is not None
            model, arguments = self._exact
            before: dict[Key, Tensor] = {}

            def keep(key: Key, samples: Tensor) -> None:
                before.setdefault(key, samples[0].clone())

            try:
                self._run(model, tree_map_only(Tensor, torch.clone, arguments), 1, keep, trial)
            except Exception as error:  # what was seen before counts
                self.error = error
            self._befores = {trial: before, 0: self._befores.get(0, before)}
        return self._befores[trial]

    def _altered(
        self,
        model: nn.Module,
        arguments: list[Any],
        dim: int,
        rows: Tensor,
        batch_size: int,
        set_row: Callable[[Tensor], Any],
        judge: Callable[[Key, Tensor], Tensor],
        seed: int = 0,
    ) -> Found:
        parts: dict[Key, list[Tensor]] = {}
        for chunk in rows.split(batch_size):
            number = len(chunk)
            batch = [
                x.repeat(number, *[1] * (x.dim() - 1)) if isinstance(x, Tensor) and x.dim() else x
                for x in tree_map_only(Tensor, torch.clone, arguments)
            ]
            for sample, row in enumerate(chunk.tolist()):
                set_row(batch[self.source][sample].select(dim - 1, row))
            here: dict[Key, Tensor] = {}

            def note(key: Key, samples: Tensor, here: dict[Key, Tensor] = here) -> None:
                elements = judge(key, samples).expand(samples.shape)
                here.setdefault(key, self.watched[key].units(elements))

            try:
                self._run(model, batch, number, note, seed)
            except Exception as error:  # what was seen before counts
                self.error = error
            for key, units in here.items():
                parts.setdefault(key, []).append(units)
        found = {key: torch.cat(units) for key, units in parts.items()}
        return {key: units for key, units in found.items() if len(units) == len(rows)}

    def _run(
        self,
        model: nn.Module,
        batch: list[Any],
        number: int,
        note: Callable[[Key, Tensor], Any],
        seed: int,
    ) -> None:
        def read(key: Key, value: Any) -> None:
            if key not in self.watched:
                return
            for output in tensors_in(value):  # the first with the expected shape
                samples = self.watched[key].by_sample(output.detach(), number)
                if samples is not None:
                    note(key, samples)
                    return

        if threading.current_thread() is threading.main_thread():
            torch.manual_seed(seed)  # the same noise in each run; the state is restored later
        with _layer_outputs(model, read):
            outputs = model(*batch)
        if is_dataclass(outputs):
            outputs = vars(outputs)
        if isinstance(outputs, list | tuple):
            outputs = dict(enumerate(outputs))
        for name, value in (
            outputs if isinstance(outputs, Mapping) else {"output": outputs}
        ).items():
            read(("output", str(name)), value)


@contextlib.contextmanager
def _layer_outputs(model: nn.Module, note: Callable[[Key, Any], None]) -> Iterator[None]:
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

    with watch_modules(enter, leave):
        yield
