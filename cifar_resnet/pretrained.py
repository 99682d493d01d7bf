"""Trained weights as files, and those that come with the package. It knows safetensors and the
arguments of the network; it must not know data or training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from cifar_resnet import arguments
from cifar_resnet.files import atomic_write

if TYPE_CHECKING:
    from cifar_resnet.network import CustomResNet

__all__ = ["PretrainedWeights", "load", "pretrained_weights", "save"]

_Network = TypeVar("_Network", bound="CustomResNet")

_FOLDER = Path(__file__).parent / "weights"
_ARGUMENTS = "cifar_resnet.arguments"  # keys in the header of a file
_TRAINING = "cifar_resnet.training"


@dataclass(frozen=True)
class PretrainedWeights:
    """A file of trained weights: of which network, and how it was trained.

    Attributes:
        name: What `CustomResNet.from_pretrained` calls it.
        path: The file.
        arguments: The arguments of its `CustomResNet`.
        training: How it was made and how good it is, as written into the file: for those that come
            with the package the test accuracies, as shares in [0, 1], of one view (`accuracy`),
            with the mirror view (`accuracy_mirror`) and with six views (`accuracy_six`), measured
            from the file itself, and `recipe`, `epochs`, `seed`, `batch_size`, `precision`,
            `versions`, `hardware` and the `command` that repeats the training.
    """

    name: str
    path: Path
    arguments: Mapping[str, Any]
    training: Mapping[str, Any] = field(repr=False)


def pretrained_weights() -> tuple[PretrainedWeights, ...]:
    """The trained weights that come with the package, by width and then by name; only the head of
    each file is read.

    Examples:
        >>> from cifar_resnet import pretrained_weights
        >>> for weights in pretrained_weights():
        ...     print(weights.name, weights.arguments["width"], weights.training["recipe"])
        quarter 16 muon
        quarter-best 16 best
        full 64 muon
    """
    found = map(_describe, _FOLDER.glob("*.safetensors"))
    return tuple(sorted(found, key=lambda weights: (weights.arguments["width"], weights.name)))


def load(name: str | Path, kind: type[_Network]) -> _Network:
    """What `CustomResNet.from_pretrained` says."""
    from safetensors.torch import load_file

    path = _find(name)
    options = _describe(path).arguments
    try:
        # Without memory: a header may claim any size, the tensors of the file cannot.
        with torch.device("meta"):
            network = kind(**options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} has no valid arguments of CustomResNet: {error}") from None
    tensors = load_file(path)
    if misfit := _misfit(tensors, network.state_dict()):
        key, should, has = misfit
        raise ValueError(
            f"{path} does not fit its own description: {key} should be {should}, but is {has}."
        )
    state = {key: t.float() if t.is_floating_point() else t for key, t in tensors.items()}
    network.load_state_dict(state, assign=True)
    return network.eval()


def save(
    network: CustomResNet,
    path: str | Path,
    *,
    half: bool = False,
    training: Mapping[str, Any] | None = None,
) -> None:
    """What `CustomResNet.save_pretrained` says."""
    from safetensors.torch import save as to_bytes

    path = arguments.path("path", path)
    arguments.boolean("half", half)
    if training is not None and not isinstance(training, Mapping):
        raise TypeError(f"training must be a dictionary, but got {training!r}.")
    try:
        origin = json.dumps(dict(training or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"training must hold what JSON can hold: {error}.") from error
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, but got {str(path)!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r}: make it first.")
    options = {name: getattr(network, name) for name in ("width", "num_classes", "in_channels")}
    options |= network.options()
    with torch.device("meta"):
        described = type(network)(**options).state_dict()
    state = network.state_dict()
    if misfit := _misfit(state, described):
        key, _, shape = misfit
        message = (
            f"{key} is missing from" if shape is None else f"{key} with shape {shape} is none of"
        )
        raise ValueError(
            f"{message} a network with num_classes={network.num_classes}. If you have replaced the "
            "last layer, set network.num_classes to what it gives; a network with other parts goes "
            "into a file with torch.save(network.state_dict(), path)."
        )
    tensors = {}
    for key, tensor in state.items():
        value = tensor.detach().cpu()
        if half and value.dim() > 1:
            value = value.half()
            if not value.isfinite().all():
                raise ValueError(f"{key} does not fit into half precision; leave out half=True.")
        # a network in channels_last holds its kernels in another order than files do
        tensors[key] = value.contiguous()
    header = {_ARGUMENTS: json.dumps(options), _TRAINING: origin}
    with atomic_write(path) as temporary:
        temporary.write_bytes(to_bytes(tensors, metadata=header))


def _find(name: str | Path) -> Path:
    if not isinstance(name, str | Path):
        raise TypeError(f"name must be that of trained weights or a path, but got {name!r}.")
    path = Path(name).expanduser()
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {str(path)!r}.")
        return path
    shipped = {weights.name: weights.path for weights in pretrained_weights()}
    if str(name) not in shipped:
        raise ValueError(
            f"There are no weights {str(name)!r}; choose one of {(*shipped,)}, or give the path of "
            "a .safetensors file that save_pretrained wrote."
        )
    return shipped[str(name)]


def _describe(path: Path) -> PretrainedWeights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    if _ARGUMENTS not in header:
        raise ValueError(
            f"{path} does not say of which network it is: it was not written by save_pretrained. "
            "Build the network yourself, and load it with load_state_dict."
        )
    try:
        options, training = (json.loads(header.get(k, "{}")) for k in (_ARGUMENTS, _TRAINING))
    except ValueError as error:
        raise _damaged(path, error) from error
    if not isinstance(options, dict) or not isinstance(training, dict):
        raise _damaged(path, "its description is no dictionary")
    return PretrainedWeights(path.stem, path, options, training)


def _misfit(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[str, tuple[int, ...] | None, tuple[int, ...] | None] | None:
    """The first tensor that is not as expected: its name, the shape that it should have and the one
    it has, None where it should not or does not exist.
    """
    for key in sorted(found.keys() | expected.keys()):
        should, has = (
            tuple(side[key].shape) if key in side else None for side in (expected, found)
        )
        if should != has:
            return key, should, has
    return None


def _damaged(path: Path, reason: object) -> ValueError:
    return ValueError(f"{path} is no readable safetensors file: {reason}.")
