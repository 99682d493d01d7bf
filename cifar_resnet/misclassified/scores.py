"""Compute the class scores of a model before any softmax."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_SUM_TOLERANCE = 0.01  # of probabilities, each of which bfloat16 rounds by up to 0.4 %
_TINY = torch.finfo(torch.float32).tiny


def class_scores(model: nn.Module, inputs: Tensor) -> Tensor:
    """Run a model and return its scores (N, classes), whose softmax are the probabilities.

    What the model returns is recognized by its values:

    - Probabilities: no row has a negative value, and each sums to 1. The scores are the logits if
      the model computed the probabilities by a softmax that can be observed, and the logarithms of
      the probabilities otherwise (after a scripted softmax, or for the mean of an ensemble). A
      probability of 0 counts as 1.2e-38, the smallest normal number of float32.
    - Log-probabilities: returned as they are, or the logits, as for probabilities.
    - The output of a sigmoid: independent scores of the classes, which are not a distribution. The
      scores are the values before the sigmoid if it can be observed, so that a model gives the same
      result with and without it.
    - Anything else is taken for logits.

    Raises:
        ValueError: If the model fails on these inputs, does not return scores (N, classes), or
            applies a softmax over the images in place of the classes.
    """
    with _Observer(len(inputs)) as observer:
        try:
            outputs = model(inputs)
        except Exception as error:
            remedy = (
                ""
                if inputs.is_floating_point()
                else " (Unless the model preprocesses integer images itself, pass them normalized.)"
            )
            raise ValueError(
                f"The model fails on a batch of shape {tuple(inputs.shape)}, {inputs.dtype}: "
                f"{type(error).__name__}: {error}{remedy}"
            ) from error
    outputs = getattr(outputs, "logits", outputs)
    if len(inputs) == 1 and isinstance(outputs, Tensor) and outputs.dim() == 1:
        outputs = outputs[None]  # the model squeezes the batch of one image
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(inputs):
        returned = (
            f"a tensor of shape {tuple(outputs.shape)}"
            if isinstance(outputs, Tensor)
            else type(outputs).__name__
        )
        raise ValueError(
            f"The model must return scores (N, classes) for N = {len(inputs)} images, but returns "
            f"{returned}. Wrap it in a module that returns the scores."
        )
    if outputs.shape[1] < 2:
        raise ValueError(
            f"The model returns one score for each image, shape {tuple(outputs.shape)}; at least "
            "two classes are expected. Wrap it in a module that returns one score for each class."
        )
    return _without_softmax(outputs, observer.calls)


def check_finite(scores: Tensor, indices: Tensor | range, kind: str) -> None:
    """Raise if the scores (N, classes) of a sample are not finite; `indices` are the samples'."""
    finite = scores.isfinite().all(1)
    if not bool(finite.all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(
            f"The scores of {kind} {int(indices[row])} are not finite: "
            f"{scores[row].tolist()[:10]}. Check the model's weights and the images' range."
        )


class _Call(NamedTuple):
    """A softmax or log-softmax over the axis `dim`, or a sigmoid, that a model has called."""

    inputs: Tensor
    dim: int | None  # None for a sigmoid

    def values(self) -> Tensor:
        """Compute the probabilities, or the output of the sigmoid."""
        inputs = self.inputs.detach()
        return inputs.sigmoid() if self.dim is None else inputs.softmax(self.dim)


def _without_softmax(outputs: Tensor, calls: list[_Call]) -> Tensor:
    """Return the scores (N, classes) that a softmax, log-softmax or sigmoid at the end received."""
    values = outputs.detach().float()
    if not bool((values < math.inf).all()):  # also for NaN
        return outputs
    non_negative = bool((values > -1e-6).all())  # such as 1 - probabilities.sum()
    if not non_negative and bool((values > 0).any()):
        return outputs  # of both signs: logits
    probabilities = values if non_negative else values.exp()
    sums_to_one = _sums_to_one(probabilities, 1)
    precision = torch.finfo(outputs.dtype).eps if outputs.is_floating_point() else 0.0
    for call in reversed(calls):
        if call.inputs.numel() != outputs.numel():
            continue
        if call.dim is None and (sums_to_one or not non_negative):
            continue  # a sigmoid makes no probabilities
        computed = call.values().reshape(outputs.shape).float()
        if torch.allclose(probabilities, computed, rtol=1e-4 + precision, atol=1e-6):
            if call.dim is not None and not sums_to_one:
                raise _wrong_axis(call.dim, call.inputs.shape)
            return call.inputs.reshape(outputs.shape)
    if sums_to_one:
        if non_negative:
            return outputs.float().clamp(min=_TINY).log()
        return outputs.nan_to_num(neginf=math.log(_TINY))
    if len(outputs) > 1 and _sums_to_one(probabilities, 0):
        raise _wrong_axis(0, outputs.shape)
    return outputs


def _sums_to_one(values: Tensor, dim: int) -> bool:
    return bool(((values.sum(dim) - 1).abs() <= _SUM_TOLERANCE).all())


def _wrong_axis(dim: int, shape: torch.Size) -> ValueError:
    return ValueError(
        f"The model applies a softmax over dimension {dim} of scores of shape {tuple(shape)}, so "
        "the probabilities of an image depend on the other images or do not sum to 1. Use the "
        "dimension of the classes, such as softmax(scores, dim=1), or return the scores."
    )


_SOFTMAX = {  # a mode sees only the outermost call
    F.softmax,
    F.log_softmax,
    torch.softmax,
    torch.log_softmax,
    torch.special.softmax,
    torch.special.log_softmax,
    Tensor.softmax,
    Tensor.log_softmax,
}
_SIGMOID = {torch.sigmoid, torch.special.expit, Tensor.sigmoid}


class _Observer(TorchFunctionMode):
    """Record the calls of softmax and sigmoid whose result may be the scores of `images` images."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images = images
        self.calls: list[_Call] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _SOFTMAX or func in _SIGMOID:
            inputs = args[0] if args else kwargs.get("input")
            if isinstance(inputs, Tensor) and self._may_be_scores(inputs):
                self.calls.append(_Call(inputs, _dim(func, inputs, args, kwargs)))
        return func(*args, **kwargs)

    def _may_be_scores(self, inputs: Tensor) -> bool:
        """Return whether there is one axis of classes; attention would occupy much memory."""
        axes = [size for size in inputs.shape if size > 1]
        return inputs.numel() % self.images == 0 and len(axes) <= 1 + (self.images > 1)


def _dim(func: Any, inputs: Tensor, args: tuple[Any, ...], kwargs: Any) -> int | None:
    if func in _SIGMOID:
        return None
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    if dim is None:  # the choice of torch.nn.functional.softmax
        dim = 0 if inputs.dim() in (0, 1, 3) else 1
    return int(dim) % max(inputs.dim(), 1)
