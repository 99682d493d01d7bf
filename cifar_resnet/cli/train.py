"""Train the custom ResNet on CIFAR-10 or other small images, and report its accuracy.

  cifar-resnet train                  # full width with an NVIDIA GPU, otherwise a quarter of it
  cifar-resnet train --width 64       # full width, even without a GPU
  cifar-resnet train --data FOLDER    # your own images, in a folder for each class
  cifar-resnet train --resume RUN     # continue a run that was stopped or killed

Each run writes its metrics, figures, checkpoints and log to its own folder. Ctrl-C saves a
checkpoint and stops.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import shutil
import signal
import sys
import time
import warnings
from concurrent.futures import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_resnet.cli import hardware, run_folder
from cifar_resnet.cli.datasets import add_data, load_data, network_options, read_ahead
from cifar_resnet.cli.options import (
    CommandError,
    local_path,
    non_negative,
    positive,
)
from cifar_resnet.cli.processes import Processes, communication, find_processes
from cifar_resnet.cli.recipes import build_recipe
from cifar_resnet.machine import device_name, pick_device, pick_precision

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

    from cifar_resnet import ImageDataModule

_LOGGERS = ("tensorboard", "csv", "wandb", "mlflow")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `cifar-resnet train`."""
    add = parser.add_argument
    add("--epochs", type=positive, default=24, help="number of epochs (default: 24)")
    add("--seed", type=non_negative, default=0, help="random seed (default: 0)")
    add(
        "--recipe", default="muon",
        help="hyperparameters: muon, best, sgd, adam or onecycle (default: muon)",
    )  # fmt: skip
    add(
        "--set", action="append", default=[], metavar="FIELD=VALUE",
        help="change a field of the recipe, such as learning_rate=0.2; may be repeated",
    )  # fmt: skip
    add(
        "--batch-size", type=positive,
        help="images per optimizer step, over all processes (default: that of the recipe)",
    )  # fmt: skip
    add(
        "--width", type=positive,
        help="channels of the first block (default: 64 with an NVIDIA GPU, otherwise 16)",
    )  # fmt: skip
    add(
        "--precision", choices=("32-true", "bf16-mixed", "16-mixed"),
        help="precision (default: bf16-mixed if a measurement is faster with it, else 32-true)",
    )  # fmt: skip
    add(
        "--val-split", type=non_negative, default=0,
        help="training images to hold out for validation (default: 0)",
    )  # fmt: skip
    add_data(parser)
    add(
        "--output-dir", type=local_path, default=Path("runs"),
        help="folder of all runs (default: runs)",
    )  # fmt: skip
    add("--resume", type=local_path, metavar="RUN", help="folder of an interrupted run to continue")
    add(
        "--save-every", type=non_negative, default=30, metavar="SECONDS",
        help="time between two checkpoints; 0 saves after every step (default: 30)",
    )  # fmt: skip
    add("--logger", choices=_LOGGERS, default="tensorboard", help="log to (default: tensorboard)")
    add(
        "--compile", nargs="?", const="default",
        choices=("default", "reduce-overhead", "max-autotune"),
        help="compile the network with torch.compile, for a GPU; reduce-overhead uses CUDA graphs "
        "(default: not compiled)",
    )  # fmt: skip
    add(
        "--history", action="store_true",
        help="record loss, margin and prediction of each training image in history.npz",
    )  # fmt: skip
    add("--smoke", action="store_true", help="train only two epochs of two batches, as a check")
    add("--quiet", action="store_true", help="do not show the progress bar")
    group = parser.add_argument_group(
        "several processes", "passed to Lightning; the batch size is divided among the processes"
    )
    group.add_argument(
        "--devices", type=_devices, metavar="N",
        help="processes per machine, or GPU numbers such as 0,2 (default: 1, or as in torchrun)",
    )  # fmt: skip
    group.add_argument(
        "--num-nodes", type=positive, metavar="N", help="machines (default: 1, or as in torchrun)"
    )
    group.add_argument("--strategy", metavar="NAME", help="such as ddp (default: auto)")
    parser.set_defaults(started=time.perf_counter(), default=parser.get_default)


def run(args: argparse.Namespace) -> int:
    """Train, test and report."""
    _check_resume(args)
    hardware.use_large_pages()
    ahead = read_ahead(args)  # kept, since the data module shares its images

    from cifar_resnet.cli.progress import Progress, Stages, duration

    stages = Stages(args.started)

    import pytorch_lightning as pl
    import torch

    from cifar_resnet import CustomResNet, ImageClassifier, LastCheckpoint
    from cifar_resnet.cli import report
    from cifar_resnet.cli.loggers import check_installed, log_hyperparameters, make_loggers

    _set_up_messages()
    stages.end("import")

    # The run: its options, processes and folder.
    if args.resume:
        run_folder.take_saved_options(args)
    elif args.smoke:
        args.epochs = min(args.epochs, 2)
    recipe = build_recipe(args)
    processes = find_processes(args)
    data_options = recipe.data_options()
    data_options["batch_size"] = _share(recipe.batch_size, processes)
    check_installed(args.logger)
    device = pick_device()
    if args.width is None:
        args.width = 64 if device.type == "cuda" else 16
    if args.precision is None:
        args.precision = pick_precision(device, processes.count)

    # The pieces.
    pl.seed_everything(args.seed, workers=True, verbose=False)
    data_options |= {"val_split": args.val_split, "seed": args.seed}
    wait(ahead)
    data = load_data(args, data_options, download=processes.count == 1)
    network = CustomResNet(args.width, **network_options(data), **recipe.network_options())
    model = ImageClassifier(network.to(memory_format=torch.channels_last), recipe)
    folder = args.resume or run_folder.new_folder(
        args.output_dir,
        f"{recipe.name}-width{args.width}-seed{args.seed}",
        create=processes.is_main,
    )
    last = LastCheckpoint(folder, every_seconds=args.save_every)
    checkpoint, step = run_folder.newest_checkpoint(last) if args.resume else (None, 0)

    # The composition.
    resume_step = step if args.resume else None
    loggers = make_loggers(args.logger, folder, resume_step)
    timer = Progress(stages, show=not args.quiet and processes.is_main)
    callbacks = [timer, last]
    if args.history:
        from cifar_resnet import TrainingHistory

        callbacks.append(TrainingHistory(folder / "history.npz"))
    monitor, mode = ("val_acc", "max") if args.val_split else ("train_loss_epoch", "min")
    try:
        trainer = _trainer(args, processes, device, folder, callbacks, loggers, (monitor, mode))
    except CommandError:
        if not args.resume:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise

    # Nothing has been written so far, except for the empty folder.
    if processes.is_main:
        _prepare(folder, data, loggers, args, resume_step)
    else:
        data.prepare_data()  # waits for the process that downloads
    stages.end("data")
    if processes.is_main:
        seconds = hardware.expected_seconds(network, recipe.batch_size, args.precision, device)
        # Scaled images take time in proportion to their pixels.
        seconds *= 1 - recipe.image_scale_until * (1 - recipe.image_scale**2)
        images = (data.num_samples if not args.smoke else 2 * recipe.batch_size) * args.epochs
        times = f"{processes.count} x " if processes.count > 1 else ""
        print(
            f"{args.epochs} epochs of CustomResNet(width={args.width}) on "
            f"{times}{device_name(device)}, {args.precision}, recipe {recipe.name!r}: "
            f"about {duration(seconds * images / processes.count)}."
        )
        if args.width < 64:
            print(
                f"This network has {args.width}/64 of the full width. --width 64 trains the full "
                "network, which takes much longer on a CPU."
            )
        if checkpoint is not None:
            print(f"Resuming after step {step}.")
        sys.stdout.flush()
    if args.compile:
        network.compile(mode=args.compile)

    try:
        with communication():
            trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
            stages.end("train")
            scores = dict(trainer.test(model, data, verbose=False)[0])
    except SystemExit:  # how Lightning answers Ctrl-C and SIGTERM
        if processes.is_main:
            print(f"Stopped. Resume with: cifar-resnet train --resume {folder}", file=sys.stderr)
        return 128 + (last.stopped_by or signal.SIGINT)
    except FloatingPointError as error:
        raise CommandError(str(error)) from error
    stages.end("test")
    if not processes.is_main:
        return 0

    # The report.
    report.save_curves(folder, loggers, network)
    values = recipe.to_dict() | {
        name: getattr(args, name) for name in ("width", "epochs", "seed", "precision", "val_split")
    }
    log_hyperparameters(loggers, values, scores)
    for logger in loggers:
        logger.finalize("success")
    stages.end("report")
    metrics = report.collect_metrics(args, recipe, network, scores, timer, data, device)
    run_folder.write_json(folder / "metrics.json", metrics)
    print(report.summary(folder, metrics, monitor))
    return 0


def _trainer(
    args: argparse.Namespace,
    processes: Processes,
    device: Any,
    folder: Path,
    callbacks: list[Any],
    loggers: list[Any],
    monitored: tuple[str, str],
) -> Trainer:
    """Compose Lightning's Trainer."""
    import pytorch_lightning as pl
    from lightning_fabric.utilities.exceptions import MisconfigurationException
    from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint

    from cifar_resnet import AtomicCheckpointIO, LogMisclassified
    from cifar_resnet.cli.progress import CompileOnce

    limit = 2 if args.smoke else None
    monitor, mode = monitored
    best = ModelCheckpoint(
        folder, "best", monitor=monitor, mode=mode,
        save_on_train_epoch_end=True, enable_version_counter=False,
    )  # fmt: skip
    try:
        return pl.Trainer(
            max_epochs=args.epochs,
            accelerator="gpu" if device.type in ("cuda", "mps") else "cpu",
            devices=processes.devices,
            num_nodes=processes.num_nodes,
            strategy=processes.strategy,
            precision=args.precision,
            logger=loggers,
            plugins=[AtomicCheckpointIO()],
            callbacks=[
                best,
                LearningRateMonitor("step"),
                LogMisclassified(save_dir=folder),
                *callbacks,
                *([CompileOnce()] if args.compile else []),
            ],
            log_every_n_steps=1 if args.smoke else 10,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_train_batches=limit,
            limit_val_batches=limit,
            limit_test_batches=limit,
        )
    except (ValueError, MisconfigurationException) as error:
        raise CommandError(f"Lightning does not accept these options: {error}") from error


def _prepare(
    folder: Path,
    data: ImageDataModule,
    loggers: list[Any],
    args: argparse.Namespace,
    resume_step: int | None,
) -> None:
    """Get the data and start the loggers; a failure leaves no folder of a new run."""
    from cifar_resnet import DatasetError
    from cifar_resnet.cli.loggers import start

    try:
        data.prepare_data()
        if not args.resume:
            run_folder.save_options(folder, args)
        start(loggers, folder, resume_step)
    except (DatasetError, OSError, CommandError) as error:
        if not args.resume:
            shutil.rmtree(folder)
        raise CommandError(str(error)) from error


def _share(batch_size: int, processes: Processes) -> int:
    """Return the batch size of each process."""
    if batch_size % processes.count:
        raise CommandError(
            f"The batch size must be divisible by the number of processes, but is {batch_size} "
            f"with {processes.count} processes. Choose another --batch-size.",
            code=2,
        )
    return batch_size // processes.count


def _devices(text: str) -> int | list[int]:
    """Parse `--devices`: a number of processes, or numbers of GPUs."""
    if "," in text:
        return [non_negative(part) for part in text.split(",") if part]
    return positive(text)


def _check_resume(args: argparse.Namespace) -> None:
    """Refuse options that `--resume` takes from the run."""
    names = [name for name in run_folder.SAVED if name not in run_folder.LAUNCH]
    given = [name for name in names if getattr(args, name) != args.default(name)]
    if args.resume and given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise CommandError(f"--resume takes {flags} from the saved run; leave it out.", code=2)


def _set_up_messages() -> None:
    """Show the library's messages, and hide warnings that do not concern this composition."""
    for harmless in (
        "Checkpoint directory",  # it contains arguments.json
        "Total length of `list`",  # no validation images with --val-split 0
        "`isinstance\\(treespec",  # Lightning 2.6 with the newest torch
    ):
        warnings.filterwarnings("ignore", f".*{harmless}")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("cifar_resnet").setLevel(logging.INFO)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
