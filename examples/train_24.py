"""Train the custom ResNet on CIFAR-10 for 24 epochs and report its accuracy.

    python examples/train_24.py                  # the full network on a GPU, a quarter on a CPU
    python examples/train_24.py --width 64       # the full network wherever you are
    python examples/train_24.py --resume runs/…  # go on with a run that was stopped or killed

Measured on an AMD EPYC without a GPU, width 16, test accuracy with six views: 92.42 % (standard
deviation 0.15, 5 seeds); with `--recipe best` 93.32 % (0.24, 5 seeds); raw results in
benchmarks/results/accuracy.jsonl.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import os
import pickle
import platform
import signal
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

    from cifar_resnet import LastCheckpoint

START = time.perf_counter()
LARGE_PAGES = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 36),
}
# Arguments of a run that `--resume` takes over.
SAVED = (
    "epochs",
    "seed",
    "batch_size",
    "recipe",
    "width",
    "precision",
    "data_dir",
    "val_split",
    "compile",
    "smoke",
)


def main() -> None:
    args = parse_arguments()
    use_large_pages()
    stages = Stages()

    import pytorch_lightning as pl
    import torch
    from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
    from pytorch_lightning.loggers import TensorBoardLogger

    from cifar_resnet import (
        AtomicCheckpointIO,
        CIFAR10DataModule,
        CustomResNet,
        DatasetError,
        ImageClassifier,
        LastCheckpoint,
        LogMisclassified,
        show_training_curves,
    )

    for harmless in (
        "Checkpoint directory",  # it holds arguments.json
        "Total length of `list`",  # no validation images with --val-split 0
        "`isinstance\\(treespec",  # Lightning 2.6 with the newest torch
    ):
        warnings.filterwarnings("ignore", f".*{harmless}")
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("cifar_resnet").setLevel(logging.INFO)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)

    stages.end("import")
    folder, recipe = choose_run(args)
    device = pick_device()
    if args.width is None:
        args.width = 64 if device.type == "cuda" else 16
    if args.precision is None:
        args.precision = pick_precision(device)
    precision = args.precision

    # The pieces.
    pl.seed_everything(args.seed, workers=True, verbose=False)
    try:
        data = CIFAR10DataModule(
            args.data_dir, val_split=args.val_split, seed=args.seed, **recipe.data_options()
        )
        folder.mkdir(parents=True, exist_ok=bool(args.resume))
    except (ValueError, OSError) as error:
        sys.exit(f"{error}. Is --output-dir right?" if isinstance(error, OSError) else str(error))
    try:
        data.prepare_data()
    except DatasetError as error:
        if not args.resume:
            folder.rmdir()
        sys.exit(str(error))
    stages.end("data")
    args.data_dir = str(data.data_dir.absolute())
    network = CustomResNet(width=args.width, **recipe.network_options())
    model = ImageClassifier(network.to(memory_format=torch.channels_last), recipe)
    if not args.resume:
        write_whole(folder / "arguments.json", json.dumps({k: getattr(args, k) for k in SAVED}))
    last = LastCheckpoint(folder, every_seconds=args.save_every)
    checkpoint, first_step = newest_checkpoint(last)

    seconds = expected_seconds(network, recipe.batch_size, precision, device)
    images = (data.num_samples if not args.smoke else 2 * recipe.batch_size) * args.epochs
    print(
        f"{args.epochs} epochs of CustomResNet(width={args.width}) on {device_name(device)}, "
        f"{precision}, recipe {recipe.name!r}: about {minutes(seconds * images)}."
    )
    if args.width < 64:
        print(
            f"This is the network at {args.width}/64 of its width; "
            "--width 64 trains the full one, which takes much longer on a CPU."
        )
    if args.compile:
        network.compile(mode=args.compile)

    # The composition.
    if checkpoint is not None:
        print(f"Going on after step {first_step}.")
    logger = TensorBoardLogger(
        str(folder), name="", version="tensorboard", default_hp_metric=False,
        # what was logged after the checkpoint comes once more
        purge_step=first_step if args.resume else None,
    )  # fmt: skip
    monitor, mode = ("val_acc", "max") if args.val_split else ("train_loss_epoch", "min")
    best = ModelCheckpoint(
        folder, "best", monitor=monitor, mode=mode,
        save_on_train_epoch_end=True, enable_version_counter=False,
    )  # fmt: skip
    timer = RunTimer(stages)
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        accelerator="gpu" if device.type in ("cuda", "mps") else "cpu",
        devices=1,
        precision=precision,
        logger=logger,
        plugins=[AtomicCheckpointIO()],
        callbacks=[
            best,
            last,
            LearningRateMonitor("step"),
            LogMisclassified(save_dir=folder),
            timer.callback(not args.quiet),
            *([compile_once()] if args.compile else []),
        ],
        log_every_n_steps=1 if args.smoke else 10,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_train_batches=2 if args.smoke else None,
        limit_val_batches=2 if args.smoke else None,
        limit_test_batches=2 if args.smoke else None,
    )
    try:
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        stages.end("train")
        scores = trainer.test(model, data, verbose=False)[0]
    except SystemExit:  # how Lightning answers Ctrl-C and SIGTERM
        print(f"Stopped. Go on with: python {sys.argv[0]} --resume {folder}", file=sys.stderr)
        sys.exit(128 + (last.stopped_by or signal.SIGINT))
    except FloatingPointError as error:
        sys.exit(str(error))
    stages.end("test")

    # The report.
    figure = show_training_curves(logger.log_dir)
    figure.savefig(folder / "curves.png", dpi=150)
    logger.experiment.add_figure("training_curves", figure)
    add_graph(logger, network)
    logger.finalize("success")
    stages.end("report")
    report = {
        "accuracy": scores["test_acc"],
        "accuracy_mirror": scores.get("test_acc_mirror"),
        "accuracy_six": scores.get("test_acc_six"),
        "test_loss": scores["test_loss"],
        "test_images": 10_000 if not args.smoke else 2 * recipe.batch_size,
        "val_acc": timer.val_acc,
        "train_images": data.num_samples,
        "train_seconds": timer.seconds,
        "images_per_second": timer.images / timer.seconds,
        "total_seconds": time.perf_counter() - START,
        "stage_seconds": stages.seconds,
        "resumed": bool(args.resume),
        "peak_memory_mb": peak_memory_mb(),
        **{name: getattr(args, name) for name in SAVED if name != "data_dir"},
        "batch_size": recipe.batch_size,
        "recipe": recipe.to_dict(),
        "parameters": sum(p.numel() for p in network.parameters()),
        "hardware": {
            "device": device_name(device),
            "cpu_count": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "pytorch_lightning": version("pytorch_lightning"),
            "cifar_resnet": version("cifar_resnet"),
        },
    }
    write_whole(folder / "metrics.json", json.dumps(report, indent=2) + "\n")

    views = "".join(
        f", {100 * report[name]:.2f} % with {shown}"
        for name, shown in (("accuracy_mirror", "the mirror view"), ("accuracy_six", "six views"))
        if report[name] is not None
    )
    print(
        f"\nTest accuracy   {100 * scores['test_acc']:.2f} % plain{views}"
        f"\nTraining        {minutes(timer.seconds)}, "
        f"{report['images_per_second']:,.0f} images/s"
        f"\nIn {folder}"
        "\n  metrics.json          all figures, with versions, hardware and seed"
        "\n  curves.png            loss, accuracy and learning rate"
        "\n  misclassified.png     the worst errors, and where the network looked"
        "\n  confusion_matrix.png  which class is taken for which"
        "\n  calibration.png       what its confidence is worth"
        f"\n  best.ckpt             the epoch with the best {monitor}"
        "\n  last.ckpt             the end of the training, which was tested here"
        f"\nCurves in the browser: tensorboard --logdir {folder.parent}"
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train the custom ResNet on CIFAR-10 and report its test accuracy."
    )
    parser.add_argument("--epochs", type=positive, default=24)
    parser.add_argument("--seed", type=natural, default=0)
    parser.add_argument("--batch-size", type=positive, help="default: the recipe's")
    parser.add_argument("--recipe", default="muon", help="muon (default), best, sgd or adam")
    parser.add_argument(
        "--width",
        type=positive,
        help="channels of the first block; default 64 on an NVIDIA GPU, else 16",
    )
    parser.add_argument(
        "--precision",
        choices=("32-true", "bf16-mixed", "16-mixed"),
        help="default: bf16-mixed where it is the faster one",
    )
    parser.add_argument("--data-dir", help="default: $CIFAR10_DIR, else the user's cache folder")
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    parser.add_argument(
        "--val-split", type=natural, default=0, help="training images to hold out; default 0"
    )
    parser.add_argument("--resume", type=Path, metavar="RUN", help="folder of an interrupted run")
    parser.add_argument(
        "--save-every", type=natural, default=30, metavar="SECONDS",
        help="time between two checkpoints; default 30, 0 for one after every step",
    )  # fmt: skip
    parser.add_argument(
        "--compile",
        nargs="?",
        const="default",
        choices=("default", "reduce-overhead", "max-autotune"),
        help="torch.compile the network for a GPU; reduce-overhead with CUDA graphs",
    )
    parser.add_argument("--smoke", action="store_true", help="two batches an epoch, in seconds")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    given = [name for name in SAVED if getattr(args, name) != parser.get_default(name)]
    if args.resume and given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        parser.error(f"--resume takes {flags} from the saved run; leave it out")
    return args


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, but got {value}")
    return value


def natural(text: str) -> int:
    if (value := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, but got {value}")
    return value


def choose_run(args: argparse.Namespace) -> tuple[Path, Any]:
    """The run's folder and recipe; with --resume the arguments are those of the saved run."""
    from dataclasses import replace

    from cifar_resnet import Recipe

    if args.resume:
        if not (args.resume / "arguments.json").is_file():
            sys.exit(f"{args.resume} cannot be resumed: it holds no arguments.json.")
        if (args.resume / "metrics.json").is_file():
            sys.exit(f"{args.resume} is finished: see {args.resume / 'metrics.json'}.")
        try:
            saved = json.loads((args.resume / "arguments.json").read_text())
            vars(args).update({name: saved[name] for name in SAVED})
        except (ValueError, KeyError, TypeError) as error:
            sys.exit(
                f"{args.resume} cannot be resumed: its arguments.json is damaged "
                f"({type(error).__name__}: {error})."
            )
        folder = args.resume
    else:
        stamp = time.strftime(f"%Y%m%d-%H%M%S-seed{args.seed}")
        folder, count = args.output_dir / stamp, 1
        while folder.exists():
            folder, count = args.output_dir / f"{stamp}-{count}", count + 1
        if args.smoke:
            args.epochs = min(args.epochs, 2)
    try:
        recipe = Recipe.preset(args.recipe)
    except ValueError as error:
        sys.exit(str(error))
    if args.batch_size:
        recipe = replace(recipe, batch_size=args.batch_size)
    return folder, recipe


def newest_checkpoint(last: LastCheckpoint) -> tuple[Path | None, int]:
    """The checkpoint to go on from, if any, and the steps that it has behind it."""
    import torch

    try:
        checkpoint = last.newest()
        if checkpoint is None:
            return None, 0
        return checkpoint, torch.load(checkpoint, weights_only=True, mmap=True)["global_step"]
    except ValueError as error:
        sys.exit(str(error))
    except (pickle.UnpicklingError, KeyError, TypeError) as error:
        sys.exit(f"{checkpoint} is no checkpoint of train_24.py: {str(error).splitlines()[0]}")


def write_whole(path: Path, text: str) -> None:
    """A file that is there whole or not at all."""
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)


def use_large_pages() -> None:
    """Start again with an allocator set for big tensors (Linux with glibc, no NVIDIA GPU).

    Activations of tens of megabytes otherwise go back to the system after every layer, and the
    system clears their pages again for the next one. The settings are read at start only.
    """
    suitable = platform.libc_ver()[0] == "glibc" and not Path("/dev/nvidiactl").exists()
    if suitable and not any(name in os.environ for name in LARGE_PAGES):
        os.environ.update(LARGE_PAGES)
        os.execv(sys.executable, sys.orig_argv)


def pick_device() -> torch.device:
    import torch

    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()} ({os.cpu_count()} cores)"
    return platform.processor() or device.type


def pick_precision(device: torch.device) -> str:
    """bf16 where the hardware multiplies it faster than fp32, which is measured, not guessed."""
    import torch

    if device.type == "mps":
        return "32-true"
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(1024, 1024, dtype=dtype, device=device)
        _ = (matrix @ matrix).sum().item()
        start = time.perf_counter()
        for _ in range(3):
            _ = (matrix @ matrix).sum().item()
        seconds[dtype] = time.perf_counter() - start
    return "bf16-mixed" if seconds[torch.bfloat16] < seconds[torch.float32] else "32-true"


def expected_seconds(
    network: nn.Module, batch_size: int, precision: str, device: torch.device
) -> float:
    """Seconds a training image takes here, from a few steps with a copy of the network."""
    import torch

    network = copy.deepcopy(network).to(device)
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    size = min(batch_size, 256)
    images = torch.zeros(size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = network(images).float().mean()
        loss.backward()
        loss.item()
        seconds.append(time.perf_counter() - start)
    return min(seconds) / size


def minutes(seconds: float) -> str:
    if seconds < 60:
        return f"{max(1, math.ceil(seconds))} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def compile_once() -> Any:
    """A callback that ends compiling after the first batch. The smaller last batch of an epoch and
    the test run unwrap_compiled: compiling for each of them takes longer than it saves.
    """
    import torch
    from pytorch_lightning.callbacks import Callback

    class CompileOnce(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            torch.compiler.set_stance("eager_on_recompile")

    return CompileOnce()


def add_graph(logger: Any, network: nn.Module) -> None:
    """The network's graph in TensorBoard."""
    import torch

    network = copy.deepcopy(network).cpu().float().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the graph writer uses a deprecated tracer
        logger.experiment.add_graph(network, torch.zeros(1, 3, 32, 32))


def peak_memory_mb() -> float | None:
    """The most memory the process has had, in MB (10^6 bytes); None where it is not told."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


class Stages:
    """Seconds of each stage of the process, one after the other from its start."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = START

    def end(self, name: str) -> None:
        """What went on since the last stage ended was `name`."""
        now = time.perf_counter()
        self.seconds[name], self.last = now - self.last, now


class RunTimer:
    """Seconds and images of the training, and a bar over the whole run with the time left."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.images = 0
        self.seconds = 0.0
        self.val_acc: float | None = None

    def callback(self, show: bool) -> Any:
        from pytorch_lightning.callbacks import Callback
        from tqdm import tqdm

        timer = self

        class Progress(Callback):
            def state_dict(self) -> dict[str, Any]:
                names = ("seconds", "images", "val_acc")
                return {name: getattr(timer, name) for name in names}

            def load_state_dict(self, state: dict[str, Any]) -> None:
                vars(timer).update(state)

            def on_train_start(self, trainer: Any, module: Any) -> None:
                timer.stages.end("set-up")
                self.start = time.perf_counter() - timer.seconds  # of the part before a resume
                self.bar = tqdm(
                    total=int(trainer.estimated_stepping_batches),
                    initial=trainer.global_step,
                    unit="batch",
                    disable=not show,
                    dynamic_ncols=True,
                )

            def on_train_batch_end(
                self, trainer: Any, module: Any, out: Any, batch: Any, index: int
            ) -> None:
                if "first step" not in timer.stages.seconds:  # compilation included
                    timer.stages.end("first step")
                timer.images += len(batch[1])
                timer.seconds = time.perf_counter() - self.start
                self.bar.set_description(
                    f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False
                )
                self.bar.update()

            def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
                shown = {
                    name: f"{trainer.callback_metrics[name].item():.3f}"
                    for name in ("train_loss_epoch", "train_acc_epoch", "val_acc")
                    if name in trainer.callback_metrics
                }
                self.bar.set_postfix(shown)
                if "val_acc" in trainer.callback_metrics:
                    timer.val_acc = trainer.callback_metrics["val_acc"].item()
                timer.seconds = time.perf_counter() - self.start

            def on_train_end(self, trainer: Any, module: Any) -> None:
                self.bar.close()
                timer.seconds = time.perf_counter() - self.start

            def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
                if hasattr(self, "bar"):
                    self.bar.close()

        return Progress()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
