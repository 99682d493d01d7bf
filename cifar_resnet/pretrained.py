"""Read and write files of trained weights: constructor arguments, tensors and metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifar_resnet import arguments
from cifar_resnet.files import atomic_write

__all__ = [
    "CHECKPOINT_KEY",
    "PretrainedWeights",
    "name_of_weights",
    "pretrained_weights",
    "read",
    "shape_differences",
    "uncompiled",
    "write",
]

CHECKPOINT_KEY = "cifar_resnet.network"  # of the constructor arguments in a Lightning checkpoint

_FOLDER = Path(__file__).parent / "weights"
_ARGUMENTS = "cifar_resnet.arguments"  # keys in the header of a safetensors file
_TRAINING = "cifar_resnet.training"


@dataclass(frozen=True)
class PretrainedWeights:
    """A file of trained weights: the arguments of its network and how it was trained.

    Attributes:
        name: Name of the weights in `CustomResNet.from_pretrained`.
        path: Path of the file.
        arguments: Constructor arguments of the `CustomResNet`.
        training: Origin and accuracy, as stored in the file. For the weights that come with the
            package: the test accuracies, as fractions in [0, 1], without test-time augmentation
            (`accuracy`), with the mirror image (`accuracy_mirror`) and with six views
            (`accuracy_six`), measured with the weights in the file; and `recipe`, `epochs`,
            `seed`, `batch_size`, `precision`, `versions`, `hardware` and the `command` that repeats
            the training.
    """

    name: str
    path: Path
    arguments: Mapping[str, Any]
    training: Mapping[str, Any] = field(repr=False)


def pretrained_weights() -> tuple[PretrainedWeights, ...]:
    """List the trained weights that come with the package, ordered by width and then by name.

    Only the header of each file is read.

    Examples:
        >>> from cifar_resnet import pretrained_weights
        >>> for weights in pretrained_weights():
        ...     print(weights.name, weights.arguments["width"], weights.training["recipe"])
        quarter 16 muon
        quarter-best 16 best
        full 64 muon
    """
    listed = map(_describe, _FOLDER.glob("*.safetensors"))
    return tuple(sorted(listed, key=lambda weights: (weights.arguments["width"], weights.name)))


def name_of_weights(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of the packaged weights that a network has, None if it has others."""
    from safetensors import safe_open

    key = "head.weight"  # training changes every weight
    if key not in state:
        return None
    own = state[key].detach().cpu()
    for weights in pretrained_weights():
        with safe_open(weights.path, framework="pt") as file:
            stored = file.get_tensor(key)
        # bfloat16 rounds by up to 0.4 %
        if own.shape == stored.shape and own.float().allclose(stored.float(), rtol=5e-3, atol=0):
            return weights.name
    return None


def read(source: str | Path) -> tuple[Path, Mapping[str, Any], dict[str, Tensor]]:
    """Return the path of a file, the constructor arguments in it, and its tensors in float32.

    The tensors are copies: changing the file later does not change them.
    `CustomResNet.from_pretrained` documents the sources and the errors.
    """
    path = _find(source)
    config, tensors = (_read_checkpoint if path.suffix == ".ckpt" else _read_safetensors)(path)
    return path, config, {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}


def write(
    path: str | Path,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    *,
    half: bool = False,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write constructor arguments and tensors to a safetensors file.

    `CustomResNet.save_pretrained` documents the arguments and the errors.
    """
    from safetensors.torch import save

    path = arguments.path("path", path)
    arguments.boolean("half", half)
    if training is not None and not isinstance(training, Mapping):
        raise TypeError(f"training must be a dictionary, but got {training!r}.")
    try:
        origin = json.dumps(dict(training or {}), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"training must hold only values that JSON allows: {error}.") from error
    if path.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, but got {str(path)!r}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r}; create it first.")
    tensors = {}
    for key, tensor in state.items():
        value = tensor.detach().cpu()
        if half and value.dim() > 1:
            value = value.half()
            if not value.isfinite().all():
                raise ValueError(f"{key} does not fit into half precision; leave out half=True.")
        tensors[key] = value.contiguous()  # safetensors does not store channels_last
    header = {_ARGUMENTS: json.dumps(config), _TRAINING: origin}
    with atomic_write(path) as temporary:
        temporary.write_bytes(save(tensors, metadata=header))


def shape_differences(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Describe how the names and shapes of tensors differ from the expected ones."""
    return [
        *(
            f"{key} has shape {tuple(tensors[key].shape)} instead of {tuple(tensor.shape)}"
            for key, tensor in expected.items()
            if key in tensors and tensors[key].shape != tensor.shape
        ),
        *(f"{key} is missing" for key in expected if key not in tensors),
        *(f"{key} is unexpected" for key in tensors if key not in expected),
    ]


def uncompiled(key: str) -> str:
    """Return the name of a tensor without the prefixes that `torch.compile` adds."""
    return key.replace("_orig_mod.", "")


def _find(source: str | Path) -> Path:
    if not isinstance(source, str | Path):
        raise TypeError(
            f"source must be the name of trained weights or a path, but got {source!r}."
        )
    path = Path(source).expanduser()
    if path.suffix in (".safetensors", ".ckpt"):
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {str(path)!r}.")
        return path
    shipped = {weights.name: weights.path for weights in pretrained_weights()}
    if str(source) not in shipped:
        raise ValueError(
            f"There are no weights {str(source)!r}; choose one of {(*shipped,)}, or pass the path "
            "of a .safetensors file from save_pretrained or of a .ckpt file of a training run."
        )
    return shipped[str(source)]


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        # Read at once, so that description and tensors are of the same file, and without a memory
        # map, through which the tensors would change with the file.
        content = path.read_bytes()
        tensors = dict(sorted(load(content).items()))  # the first difference is reported
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    size = int.from_bytes(content[:8], "little")  # of the header, which is JSON
    header = json.loads(content[8 : 8 + size]).get("__metadata__", {})
    return _description(path, header).arguments, tensors


def _describe(path: Path) -> PretrainedWeights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    return _description(path, header)


def _description(path: Path, header: Mapping[str, str]) -> PretrainedWeights:
    if _ARGUMENTS not in header:
        raise ValueError(
            f"{path} does not say which network it holds, since save_pretrained did not write it. "
            "Build the network yourself, and load the weights with load_state_dict."
        )
    try:
        config, training = (json.loads(header.get(k, "{}")) for k in (_ARGUMENTS, _TRAINING))
    except ValueError as error:
        raise _unreadable(path, error) from error
    if not isinstance(config, dict) or not isinstance(training, dict):
        raise _unreadable(path, "its description is not a dictionary")
    return PretrainedWeights(path.stem, path, config, training)


def _read_checkpoint(path: Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # a damaged file may fail anywhere
        reason = str(error).partition(". ")[0] or type(error).__name__
        raise ValueError(f"{path} is not a readable checkpoint: {reason}.") from error
    keys = {CHECKPOINT_KEY, "state_dict"}
    if not isinstance(checkpoint, dict) or not keys <= checkpoint.keys():
        raise ValueError(
            f"{path} does not say which network it holds: it is not a checkpoint of an "
            "ImageClassifier that trained a CustomResNet. Build the network yourself, and load the "
            "weights with ImageClassifier.load_from_checkpoint(path, network=...) or "
            "load_state_dict."
        )
    state = {uncompiled(key): tensor for key, tensor in checkpoint["state_dict"].items()}
    prefix = "network."
    tensors = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
    return checkpoint[CHECKPOINT_KEY], tensors


def _unreadable(path: Path, reason: object) -> ValueError:
    return ValueError(f"{path} is not a readable safetensors file: {reason}.")
