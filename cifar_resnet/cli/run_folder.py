"""Create the folder of a run, or find what a resumed run needs in it."""

from __future__ import annotations

import argparse
import itertools
import json
import pickle
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_resnet.cli.options import CommandError
from cifar_resnet.files import atomic_write

if TYPE_CHECKING:
    from cifar_resnet import LastCheckpoint

# Options that `--resume` takes from the run. Those in `LAUNCH` may be given again, since a run may
# be resumed on another machine.
SAVED = (
    "epochs", "seed", "batch_size", "recipe", "set", "width", "precision", "data", "data_dir",
    "image_size", "test_fraction", "val_split", "compile", "logger", "history", "smoke",
    "devices", "num_nodes", "strategy",
)  # fmt: skip
_ADDED = {  # not in older runs
    "data": "cifar10", "image_size": None, "test_fraction": None, "history": False,
}  # fmt: skip
LAUNCH = ("devices", "num_nodes", "strategy")


def new_folder(parent: Path, name: str, *, create: bool) -> Path:
    """Return a new folder, called after date, time and `name`, with a number if needed.

    Two runs that start in the same second get different folders, since creating one is atomic.

    Args:
        parent: Folder of all runs.
        name: End of the folder's name.
        create: Whether to create the folder; only one process of a run does.

    Raises:
        CommandError: If it cannot be created.
    """
    stamp = time.strftime(f"%Y%m%d-%H%M%S-{name}")
    for count in itertools.count():
        folder = parent / (f"{stamp}-{count}" if count else stamp)
        if not create:
            break
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise CommandError(f"{error}. Choose another --output-dir.") from error
    return folder


def take_saved_options(args: argparse.Namespace) -> None:
    """Replace options by those of the run that `--resume` names, except launch options given.

    Raises:
        CommandError: If the folder does not belong to a run, or the run is finished or damaged.
    """
    run: Path = args.resume
    if not (run / "arguments.json").is_file():
        raise CommandError(
            f"{run} cannot be resumed: it does not contain arguments.json. Give the folder of a "
            "run of `cifar-resnet train`."
        )
    if (run / "metrics.json").is_file():
        raise CommandError(f"{run} is finished: see {run / 'metrics.json'}.")
    given = {name: value for name in LAUNCH if (value := getattr(args, name)) is not None}
    try:
        saved = _ADDED | json.loads((run / "arguments.json").read_text())
        vars(args).update({name: saved[name] for name in SAVED} | given)
    except (ValueError, KeyError, TypeError) as error:
        raise CommandError(
            f"{run} cannot be resumed: its arguments.json is damaged "
            f"({type(error).__name__}: {error})."
        ) from error


def save_options(folder: Path, args: argparse.Namespace) -> None:
    """Write the options of a new run, so that it can be resumed."""
    write_json(folder / "arguments.json", {name: getattr(args, name) for name in SAVED})


def newest_checkpoint(last: LastCheckpoint) -> tuple[Path | None, int]:
    """Return the checkpoint to resume from, if any, and its number of steps.

    Raises:
        CommandError: If all checkpoints are damaged, or are not of this library.
    """
    import torch

    try:
        checkpoint = last.newest()
        if checkpoint is None:
            return None, 0
        return checkpoint, torch.load(checkpoint, weights_only=True, mmap=True)["global_step"]
    except ValueError as error:
        raise CommandError(str(error)) from error
    except (pickle.UnpicklingError, KeyError, TypeError) as error:
        raise CommandError(
            f"{checkpoint} is not a checkpoint of a training run: {str(error).splitlines()[0]}"
        ) from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")
