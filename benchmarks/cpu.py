"""Data path and training step on a CPU, against the plain way of doing each.

    python benchmarks/cpu.py [--data-dir DATA] [--rounds 5]

Each arm runs in a process of its own, the two of a pair in turn, and the ratio is taken pair by
pair. Appends a JSON line per pair of arms to benchmarks/results/cpu.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from machine import ROOT, machine

RESULTS = ROOT / "benchmarks" / "results" / "cpu.jsonl"
BATCH = 512
PAIRS = (
    ("data path: resident / torchvision per sample", "data-resident", "data-torchvision"),
    ("step, width 16: as train_24.py / plain fp32", "step-16-ours", "step-16-plain"),
    ("step, width 64: as train_24.py / plain fp32", "step-64-ours", "step-64-plain"),
)


def data_path(way: str, data_dir: str) -> float:
    """Images a second of random crop, flip and normalisation, in one process."""
    import torch
    from torchvision import transforms

    from cifar_resnet import CIFAR10DataModule

    data = CIFAR10DataModule(data_dir, BATCH, val_split=0)
    data.setup()
    count = 50_000
    if way == "torchvision":
        from PIL import Image
        from torch.utils.data import DataLoader, Dataset

        count = 10_000
        transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(data.mean, data.std),
            ]
        )
        assert data._arrays is not None
        images, labels = data._arrays.train_images, data._arrays.train_labels

        class PerSample(Dataset[Any]):
            """What torchvision.datasets.CIFAR10 does with an image."""

            def __len__(self) -> int:
                return len(images)

            def __getitem__(self, index: int) -> tuple[Any, int]:
                return transform(Image.fromarray(images[index])), int(labels[index])

        loader: Any = DataLoader(PerSample(), batch_size=BATCH, shuffle=True)
    else:
        loader = data.train_dataloader()
    for _ in range(2):  # the first time warms up
        start, seen = time.perf_counter(), 0
        for batch, _labels in loader:
            seen += len(batch)
            if seen >= count:
                break
    assert isinstance(batch, torch.Tensor)
    return seen / (time.perf_counter() - start)


def step(way: str, width: int) -> float:
    """Training images a second of forward, backward and optimiser step."""
    import torch
    import torch.nn.functional as F
    from train_24 import pick_precision

    from cifar_resnet import CustomResNet

    model, images = CustomResNet(width), torch.randn(BATCH, 3, 32, 32)
    precision = "32-true"
    if way == "ours":
        model = model.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
        precision = pick_precision(torch.device("cpu"))
    labels = torch.randint(0, 10, (BATCH,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    repeats = 10 if width < 64 else 3
    for index in range(repeats + 2):
        if index == 2:
            start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return repeats * BATCH / (time.perf_counter() - start)


def measure(arm: str, data_dir: str) -> float:
    """Images a second of one arm, in a new process with the allocator that the arm uses."""
    from train_24 import LARGE_PAGES

    environment = os.environ | (LARGE_PAGES if arm.endswith("ours") else {})
    command = [sys.executable, __file__, "--arm", arm, "--data-dir", data_dir]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(result.stdout.splitlines()[-1])


def main() -> None:

    from cifar_resnet.data import sources

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default=str(sources.default_data_dir()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.arm:
        kind, *rest = args.arm.split("-")
        print(data_path(rest[0], args.data_dir) if kind == "data" else step(rest[1], int(rest[0])))
        return

    rows = []
    for title, ours, plain in PAIRS:
        runs = [
            (measure(ours, args.data_dir), measure(plain, args.data_dir))
            for _ in range(args.rounds)
        ]
        ratios = [a / b for a, b in runs]
        line = {
            "benchmark": title,
            "unit": "images/s",
            "ours": [a for a, _ in runs],
            "plain": [b for _, b in runs],
            "ratio_median": statistics.median(ratios),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            "n": args.rounds,
            "batch_size": BATCH,
            **machine(),
        }
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")
        medians = [statistics.median(values) for values in zip(*runs, strict=True)]
        rows.append(
            f"{title:48} {medians[0]:>9,.0f} {medians[1]:>8,.0f} {statistics.median(ratios):>6.1f} "
            f"({min(ratios):.1f} to {max(ratios):.1f})"
        )
        print(rows[-1], flush=True)
    print(f"\n{'images/s, medians of ' + str(args.rounds):48} {'ours':>9} {'plain':>8}  ratio")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
