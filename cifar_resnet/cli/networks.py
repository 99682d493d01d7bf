"""Load the network that a user names: a run, a checkpoint, a weight file or pretrained weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from cifar_resnet.cli.options import CommandError

if TYPE_CHECKING:
    from cifar_resnet import CustomResNet

WEIGHTS_HELP = (
    "folder of a run, .ckpt file of a training run, .safetensors file, or name of pretrained "
    "weights (full, quarter or quarter-best)"
)


def load_network(source: str) -> CustomResNet:
    """Load a network for CIFAR-10 in evaluation mode.

    Args:
        source: Folder of a run, `.ckpt` file, `.safetensors` file, or name of pretrained
            weights.

    Raises:
        CommandError: If there is no such network, or it is not one for ten classes, three channels
            and 32 x 32 pixels.
    """
    from cifar_resnet import CustomResNet, pretrained_weights

    names = [weights.name for weights in pretrained_weights()]
    path: Path | str = source if source in names else Path(source).expanduser()
    if isinstance(path, Path):
        if path.is_dir():
            path /= "last.ckpt"
            if not path.is_file():
                raise CommandError(
                    f"{source} is not a run that can be loaded: it does not contain last.ckpt. "
                    "Pass the folder of a run of `cifar-resnet train`."
                )
            _check_data(path.parent)
        elif not path.is_file():
            raise CommandError(
                f"There is no file or folder {source!r}. Expected the folder of a run, a .ckpt or "
                f".safetensors file, or one of the pretrained weights: {', '.join(names)}."
            )
    try:
        network = CustomResNet.from_pretrained(path)
    except (ValueError, TypeError, OSError) as error:
        raise CommandError(str(error)) from error
    size = " x ".join(map(str, network.image_size))
    if (network.num_classes, network.in_channels, size) != (10, 3, "32 x 32"):
        raise CommandError(
            f"{source} holds a network for {network.num_classes} classes, {network.in_channels} "
            f"channels and {size} pixels. Expected one for CIFAR-10: 10 classes, 3 channels, 32 x "
            "32 pixels."
        )
    return network.eval()


def _check_data(run: Path) -> None:
    """Refuse the network of a run on other data, which may have the same shapes."""
    try:
        data = json.loads((run / "arguments.json").read_text()).get("data", "cifar10")
    except (OSError, ValueError, AttributeError):
        return
    if data != "cifar10":
        raise CommandError(
            f"{run} was trained on {data}, but this command uses CIFAR-10. Use Python: "
            f"CustomResNet.from_pretrained({str(run / 'last.ckpt')!r}) and an ImageDataModule."
        )
