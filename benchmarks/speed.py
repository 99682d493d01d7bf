"""Measure the speed of data loading and training, each compared with a baseline.

    python benchmarks/speed.py [--data-dir DATA] [--rounds 5] [--only step trainer] [--seconds 8]

Each arm of a comparison runs in a new process. The two arms of a pair alternate and the ratio is
computed for each pair, so that changes in the machine's speed affect both. Uses a GPU if there is
one, otherwise the CPU. Appends a JSON line per pair to benchmarks/results/speed.jsonl. The pair
with airbench needs `pip install airbench==0.1.8`. The data must be on disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from machine import RESULTS, append, machine

if TYPE_CHECKING:
    import torch
    from torch import nn

BATCH = 512
PAIRS = (
    ("data: resident batches / torchvision per sample", "data-ours", "data-torchvision"),
    ("data: resident batches / airbench's loader", "data-ours", "data-airbench"),
    ("step, width 16: ours / plain fp32", "step-16-ours", "step-16-plain"),
    ("step, width 64: ours / plain fp32", "step-64-ours", "step-64-plain"),
    ("step, width 64: ours / the matrix-product peak", "step-64-ours", "step-64-peak"),
    ("trainer, width 16: ours / beginner's Lightning", "trainer-16-ours", "trainer-16-beginner"),
    ("trainer, width 64: ours / beginner's Lightning", "trainer-64-ours", "trainer-64-beginner"),
    ("lightning, width 16: our Trainer / our plain loop", "trainer-16-ours", "loop-16-ours"),
    ("lightning, width 64: our Trainer / our plain loop", "trainer-64-ours", "loop-64-ours"),
    ("muon, width 16: recipe muon / recipe sgd", "muon-16-ours", "trainer-16-ours"),
    ("muon, width 64: recipe muon / recipe sgd", "muon-64-ours", "trainer-64-ours"),
    ("resizing, width 16: images of 24 pixels / of 32", "muon-16-small", "muon-16-ours"),
    ("resizing, width 64: images of 24 pixels / of 32", "muon-64-small", "muon-64-ours"),
    ("small maps, width 64: our weight gradient / PyTorch's", "muon-64-ours", "muon-64-standard"),
    ("small maps, 24 pixels, width 64: the same", "muon-64-small", "muon-64-small-standard"),
    ("best, width 32: ours / the same steps in plain fp32", "best-32-ours", "best-32-plain"),
    ("cuDNN, width 64: algorithms tried out / not", "trainer-64-tried", "trainer-64-ours"),
    ("compile, width 64: compiled / not", "trainer-64-default", "trainer-64-ours"),
    ("compile, width 64: CUDA graphs / not", "trainer-64-reduce-overhead", "trainer-64-ours"),
)


def main() -> None:
    from cifar_resnet.data import sources

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default=str(sources.default_data_dir()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="how long each arm is measured")
    parser.add_argument("--only", nargs="+", default=[""], help="only pairs whose title starts so")
    parser.add_argument("--results", type=Path, default=RESULTS / "speed.jsonl")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        print(measure(args.arm, args.data_dir, args.seconds))
        return

    rows = []
    for title, ours, other in PAIRS:
        if not title.startswith(tuple(args.only)):
            continue
        runs = [(in_process(ours, args), in_process(other, args)) for _ in range(args.rounds)]
        ratios = [a / b for a, b in runs]
        line = {
            "benchmark": title,
            "unit": "images/s",
            "ours": [a for a, _ in runs],
            "other": [b for _, b in runs],
            "ratio_median": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "n": args.rounds,
            "batch_size": BATCH,
            "seconds": args.seconds,
            **machine(picked_device()),
        }
        append(args.results, line)
        medians = [statistics.median(values) for values in zip(*runs, strict=True)]
        rows.append(
            f"{title:50} {medians[0]:>10,.0f} {medians[1]:>10,.0f} "
            f"{statistics.median(ratios):>7.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )
        print(rows[-1], flush=True)
    print(f"\n{'images/s, medians of ' + str(args.rounds):50} {'ours':>10} {'other':>10}   ratio")
    print("\n".join(rows))


def in_process(arm: str, args: argparse.Namespace) -> float:
    """Return images per second of one arm, run in a new process with the allocator it uses."""
    from cifar_resnet.cli.hardware import LARGE_PAGES

    plain = arm.endswith(("plain", "beginner", "torchvision"))
    environment = {name: value for name, value in os.environ.items() if name not in LARGE_PAGES}
    environment |= {} if plain or picked_device().type == "cuda" else LARGE_PAGES
    command = [sys.executable, __file__, "--arm", arm, "--data-dir", args.data_dir]
    command += ["--seconds", str(args.seconds)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{arm} failed:\n{result.stderr}")
    return float(result.stdout.splitlines()[-1])


def measure(arm: str, data_dir: str, seconds: float) -> float:
    kind, *rest = arm.split("-")
    if kind == "data":
        batches: dict[str, Callable[[str], Iterable[Any]]] = {
            "ours": resident_batches,
            "torchvision": torchvision_batches,
            "airbench": airbench_batches,
        }
        return rate((len(images) for images, _ in batches[rest[0]](data_dir)), seconds)
    width, way = int(rest[0]), "-".join(rest[1:])
    if kind == "step":
        return peak(width, seconds) if way == "peak" else rate(steps(width, way), seconds)
    if kind == "loop":
        return rate(loop(width, data_dir), seconds)
    if way == "beginner":
        return under_trainer(*beginner(width, data_dir), seconds, precision="32-true")
    recipe = "sgd" if kind == "trainer" else kind
    if way == "plain":
        return under_trainer(*plain(width, data_dir, recipe), seconds, precision="32-true")
    gradients: Any = nullcontext()
    if way.endswith("standard"):  # PyTorch's weight gradient
        name = "cifar_resnet.training.optimization.small_map_gradients"
        gradients = mock.patch(name, return_value=nullcontext())
        way = way.removesuffix("standard").removesuffix("-") or "ours"
    mode = None if way in ("ours", "small", "tried") else way
    scale = 0.75 if way == "small" else 1.0
    with gradients:
        return under_trainer(
            *ours(width, data_dir, recipe, mode, scale), seconds, benchmark=way == "tried" or None
        )


def rate(sizes: Iterator[int], seconds: float, warm_up: int = 5) -> float:
    """Return images per second of an endless iterator that yields the size of each batch."""
    for _ in range(warm_up):
        next(sizes)
    synchronize()
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        images += next(sizes)
    synchronize()
    return images / (time.perf_counter() - start)


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def picked_device() -> torch.device:
    from cifar_resnet.machine import pick_device

    return pick_device()


# --- data ----------------------------------------------------------------------------------------


def data_module(data_dir: str, **options: Any) -> Any:
    from cifar_resnet import CIFAR10DataModule

    data = CIFAR10DataModule(data_dir, BATCH, val_split=0, device=picked_device(), **options)
    data.setup()
    return data


def resident_batches(data_dir: str) -> Iterator[Any]:
    """Yield batches with the augmentation of the recipe `sgd`: crop by up to 2 pixels and flip."""
    loader = data_module(data_dir, crop_padding=2, flip="alternating").train_dataloader()
    while True:
        yield from loader


def torchvision_loader(data_dir: str, workers: int) -> Any:
    """Return a loader that does the same as torchvision.datasets.CIFAR10 with common transforms."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms

    data = data_module(data_dir)
    transform = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(data.mean, data.std),
        ]
    )
    images, labels = data._arrays.train_images, data._arrays.train_labels

    class PerSample(Dataset[Any]):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> tuple[Any, int]:
            return transform(Image.fromarray(images[index])), int(labels[index])

    return DataLoader(
        PerSample(), batch_size=BATCH, shuffle=True, num_workers=workers, drop_last=True
    )


def torchvision_batches(data_dir: str) -> Iterator[Any]:
    loader = torchvision_loader(data_dir, workers=0)
    while True:
        yield from loader


def airbench_batches(data_dir: str) -> Iterator[Any]:
    """Yield batches of airbench's loader, with the same augmentation, after its first epoch."""
    import torch
    from airbench import CifarLoader

    arrays = data_module(data_dir)._arrays
    with tempfile.TemporaryDirectory() as folder:
        torch.save(
            {
                "images": torch.from_numpy(arrays.train_images),
                "labels": torch.from_numpy(arrays.train_labels),
                "classes": [],
            },
            Path(folder) / "train.pt",
        )
        loader = CifarLoader(
            folder,
            batch_size=BATCH,
            aug={"flip": True, "translate": 2},
            altflip=True,
            gpu=picked_device(),
        )
    for _ in loader:
        pass
    while True:
        yield from loader


# --- the training step, on random images ---------------------------------------------------------


def steps(width: int, way: str) -> Iterator[int]:
    """Repeat forward, backward and optimizer step on one batch; yield its size."""
    import torch
    import torch.nn.functional as F

    from cifar_resnet import CustomResNet
    from cifar_resnet.machine import pick_precision

    device = picked_device()
    model = CustomResNet(width).to(device)
    images = torch.randn(BATCH, 3, 32, 32, device=device)
    labels = torch.randint(0, 10, (BATCH,), device=device)
    mixed = way == "ours" and pick_precision(device) == "bf16-mixed"
    if way == "ours":
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    fused = True if way == "ours" else None
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, fused=fused
    )
    while True:
        with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield BATCH


def peak(width: int, seconds: float) -> float:
    """Return images per second if a step took only as long as its matrix products at peak speed.

    PyTorch counts the operations of the convolutions and of the linear layer, forward and backward.
    The peak speed is the best of three sizes of square matrices, in the faster of float32 and
    bfloat16: some processors emulate bfloat16, which is many times slower.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from cifar_resnet import CustomResNet
    from cifar_resnet.machine import pick_precision

    device = picked_device()
    dtype = torch.bfloat16 if pick_precision(device) == "bf16-mixed" else torch.float32
    with FlopCounterMode(display=False) as counter:
        CustomResNet(width)(torch.randn(2, 3, 32, 32)).sum().backward()
    work = counter.get_total_flops() / 2

    def products(size: int) -> Iterator[int]:
        a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        while True:
            torch.mm(a, b)
            yield 2 * size**3

    fastest = max(rate(products(size), seconds / 3) for size in (1024, 2048, 4096))
    return fastest / float(work)


# --- the training, on the dataset ----------------------------------------------------------------


def pieces(width: int, data_dir: str, preset: str = "sgd") -> tuple[nn.Module, Any, Any]:
    import torch

    from cifar_resnet import CustomResNet, Recipe

    recipe = Recipe.preset(preset)
    options = recipe.data_options()
    options.pop("batch_size")
    network = CustomResNet(width, **recipe.network_options())
    network = network.to(memory_format=torch.channels_last)
    # batches of one size: a compiled network would be compiled again for a smaller last batch
    return network, recipe, data_module(data_dir, drop_last=True, **options)


def loop(width: int, data_dir: str) -> Iterator[int]:
    """Train with our parts in a plain loop, without Lightning's Trainer."""
    import torch
    import torch.nn.functional as F

    from cifar_resnet.machine import pick_precision

    network, recipe, data = pieces(width, data_dir)
    device = picked_device()
    network.to(device)
    mixed = pick_precision(device) == "bf16-mixed"
    optimizer = torch.optim.SGD(
        network.parameters(),
        lr=0.01,
        momentum=0.9,
        nesterov=True,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    loader = data.train_dataloader()
    while True:
        for images, labels in loader:
            with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                scores = network(images)
            loss = F.cross_entropy(scores, labels, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield len(labels)


def ours(
    width: int, data_dir: str, preset: str, compile_mode: str | None, image_scale: float
) -> tuple[Any, Any]:
    """Return the training with all images scaled by `image_scale`."""
    from cifar_resnet import ImageClassifier

    network, recipe, data = pieces(width, data_dir, preset)
    if compile_mode:
        network.compile(mode=compile_mode)
    recipe = replace(recipe, image_scale=image_scale, image_scale_until=1)
    return ImageClassifier(network, recipe), data


def plain(width: int, data_dir: str, preset: str) -> tuple[Any, Any]:
    """Return the same training in PyTorch's default memory format."""
    import torch

    from cifar_resnet import ImageClassifier

    network, recipe, data = pieces(width, data_dir, preset)
    network = network.to(memory_format=torch.contiguous_format)
    network.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
    return ImageClassifier(network, recipe), data


def beginner(width: int, data_dir: str) -> tuple[Any, Any]:
    """Return a LightningModule like those in tutorials, with torchvision's transforms."""
    import pytorch_lightning as pl
    import torch
    import torch.nn.functional as F
    from torchmetrics.classification import MulticlassAccuracy

    from cifar_resnet import CustomResNet

    class Beginner(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = CustomResNet(width)
            self.accuracy = MulticlassAccuracy(10)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            images, labels = batch
            scores = self.network(images)
            loss = F.cross_entropy(scores, labels)
            self.accuracy(scores, labels)
            self.log("train_loss", loss, on_step=True, on_epoch=True, prog_bar=True)
            self.log("train_acc", self.accuracy, on_step=True, on_epoch=True, prog_bar=True)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=1e-3)

    return Beginner(), torchvision_loader(data_dir, workers=2)


def under_trainer(
    model: Any,
    data: Any,
    seconds: float,
    precision: str | None = None,
    benchmark: bool | None = None,
) -> float:
    """Return images per second of a Trainer with a logger and a checkpoint in each epoch."""
    import logging

    import pytorch_lightning as pl
    from pytorch_lightning.loggers import TensorBoardLogger

    from cifar_resnet.machine import pick_precision

    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", ".*`isinstance")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    device = picked_device()

    class Clock(pl.Callback):
        def __init__(self) -> None:
            self.steps, self.images, self.start, self.result = 0, 0, 0.0, 0.0

        def on_train_batch_end(
            self, trainer: Any, module: Any, out: Any, batch: Any, index: int
        ) -> None:
            self.steps += 1
            if self.steps > 5:
                self.images += len(batch[1])
            elif self.steps == 5:
                synchronize()
                self.start = time.perf_counter()
            if self.start and time.perf_counter() - self.start > seconds and not self.result:
                synchronize()
                self.result = self.images / (time.perf_counter() - self.start)
                trainer.should_stop = True

    clock = Clock()
    chosen: Any = precision or pick_precision(device)
    with tempfile.TemporaryDirectory() as folder:
        pl.Trainer(
            max_epochs=10_000,
            accelerator="gpu" if device.type in ("cuda", "mps") else "cpu",
            devices=1,
            precision=chosen,
            benchmark=benchmark,
            logger=TensorBoardLogger(folder),
            log_every_n_steps=10,
            callbacks=[clock],
            limit_val_batches=0,
            enable_progress_bar=precision is not None,
            enable_model_summary=False,
        ).fit(model, data)
    return float(clock.result)


if __name__ == "__main__":
    main()
