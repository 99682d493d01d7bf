"""Record what a network does, operation by operation.

The model is run once under a `TorchDispatchMode`, which sees every operation that PyTorch carries
out, whatever Python code calls it: functional calls, reused modules, branches. The run is made on
fake tensors, which have shapes but no values. If the model asks for values, it is run again on real
tensors.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from cifar_resnet.fields.leftovers import Caches
from cifar_resnet.fields.recorder import Recorder
from cifar_resnet.fields.steps import LayerExit, Trace, ValueRead
from cifar_resnet.model_state import preserve_state, process_settings


class TraceError(Exception):
    """The model raised an error, which is the cause of this one."""

    def __init__(self, layer: str) -> None:
        super().__init__(f"The model fails in {layer or 'its own forward'}.")
        self.layer = layer


def trace(model: nn.Module, inputs: Sequence[Any], *, on_values: bool | None = None) -> Trace:
    """Run the model once in evaluation mode, and leave it unchanged.

    Args:
        model: The network.
        inputs: The arguments to call it with.
        on_values: Whether to run on real tensors. If None, use fake ones unless the model needs
            values.
    """
    if on_values:
        return _trace_on_values(model, inputs)
    recorder = Recorder(model, False)
    caches = Caches(model)
    run = None
    try:
        run = _trace(recorder, inputs)
    except TraceError:  # the model may need values; if it is broken, it fails again
        if on_values is False:
            raise
    finally:
        caches.remove(recorder.fakes)
    return run or _trace_on_values(model, inputs)


def _trace_on_values(model: nn.Module, inputs: Sequence[Any]) -> Trace:
    """Run the model on real tensors, and again if it uses tensors that no operation has made.

    These are constants, unless they were computed where the recorder does not see it, as in another
    thread. In the second run the inputs are different, so the values of such a tensor are, too.
    """
    recorder = Recorder(model, True)
    run = _trace(recorder, inputs)
    if not recorder.constants or any(isinstance(step, ValueRead) for step in run.steps):
        return run  # nothing to find out, or values leave the tensors in view
    other = Recorder(model, True)
    generator = torch.Generator().manual_seed(0)

    def altered(x: Tensor) -> Tensor:
        if not x.is_floating_point():
            return x
        return x + torch.rand(x.shape, generator=generator, device="cpu").to(x)

    with contextlib.suppress(TraceError):  # the model may not accept such inputs
        _trace(other, tree_map_only(Tensor, altered, list(inputs)))
    for (before, source), (after, _) in zip(recorder.constants, other.constants, strict=False):
        if before != after:
            run.steps[:0] = recorder.unseen(source)
            break
    return run


def _trace(recorder: Recorder, inputs: Sequence[Any]) -> Trace:
    model, on_values = recorder.root.module, recorder.on_values
    fake = contextlib.nullcontext() if on_values else FakeTensorMode(allow_non_fake_inputs=True)
    with preserve_state(model), _without_fused_kernels(), torch.no_grad(), fake as mode:
        # copies, as the model may write to them
        copy = Tensor.clone if mode is None else mode.from_tensor
        inputs = tree_map_only(Tensor, copy, list(inputs))
        tree_map_only(Tensor, recorder.input, inputs)  # also those in lists
        refs = tuple(recorder.refs(x) if isinstance(x, Tensor) else None for x in inputs)
        with recorder, _KeepWhole(recorder), recorder.watch_layers():
            try:
                outputs = recorder.refs(model(*inputs))
            except Exception as error:
                raise TraceError(recorder.layer_of(error)) from error
        recorder.steps.append(LayerExit(recorder.root, outputs))
        return Trace(recorder.steps, refs, outputs, on_values)


@contextlib.contextmanager
def _without_fused_kernels() -> Iterator[None]:
    """Switch off fused kernels, which would appear as one operation without a rule, and warnings
    of PyTorch about them."""
    with process_settings, warnings.catch_warnings(), torch.inference_mode(False):
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        log = logging.getLogger("torch._subclasses.fake_tensor")  # logs errors that we report
        disabled, log.disabled = log.disabled, True
        try:
            warnings.filterwarnings("ignore", "TF32 acceleration on top of oneDNN")
            with torch.backends.mkldnn.flags(enabled=False):  # would fuse recurrent layers
                yield
        finally:
            log.disabled = disabled
            torch.backends.mha.set_fastpath_enabled(fast_path)


class _KeepWhole(TorchFunctionMode):
    """Records some functions as a whole, because their parts hide what they do.

    Circular padding is made of copies, so the pattern of units would end at the border. Causal
    attention depends on the values of a mask. The views that shuffle pixels leave open which
    dimensions of size 1 are rows and columns. `item` and similar methods extract values.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._recorder.silent:
            return func(*args, **kwargs)
        op = None
        given = kwargs
        if func is torch.nn.functional.scaled_dot_product_attention:
            op = _aten.scaled_dot_product_attention.default
        elif func in _SHUFFLES:
            op = _SHUFFLES[func]
        elif func is torch.nn.functional.pad:
            named = dict(zip(("input", "pad", "mode", "value"), args, strict=False)) | kwargs
            if named.get("mode") == "circular":
                op = _aten._pad_circular.default
                args, given = (named["input"], list(named["pad"])), {}
                kwargs = {"mode": "circular"}
        function, arguments = func, (args, kwargs)

        def run() -> Any:
            if op is None:
                return func(*args, **kwargs)
            return self._recorder.record_as(op, args, given, lambda: func(*args, **kwargs))

        return self._recorder.run_function(function, *arguments, run)


_aten = torch.ops.aten
_SHUFFLES = {
    torch.channel_shuffle: _aten.channel_shuffle.default,
    torch.pixel_shuffle: _aten.pixel_shuffle.default,
    torch.pixel_unshuffle: _aten.pixel_unshuffle.default,
}
