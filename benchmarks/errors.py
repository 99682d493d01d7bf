"""Measure the time and memory of finding and explaining errors, and compare the methods.

    python benchmarks/errors.py [--weights quarter] [--data-dir DATA] [--repeats 5]

Appends a line for each measurement to benchmarks/results/errors.jsonl: the scan of the 10,000 test
images; 100 maps by compute_cams and by the grad-cam library, called image by image; the figures;
the memory of a scan over one and over five times the test set, each in its own process; and the
agreement of the methods on the errors.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import RESULTS, append, machine
from torch.utils.data import ConcatDataset, TensorDataset

from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    MisclassifiedSamples,
    compute_cams,
    find_misclassified,
    show_misclassified,
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", default="quarter", help="argument of CustomResNet.from_pretrained"
    )
    parser.add_argument("--data-dir")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS / "errors.jsonl")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()

    model = CustomResNet.from_pretrained(args.weights)
    if args.memory:
        print(json.dumps(memory_of_a_scan(model, args.data_dir, args.memory)))
        return

    # The first scan includes reading the data and verifying their checksums.
    start = time.perf_counter()
    data = CIFAR10DataModule(args.data_dir, device="cpu")
    found = find_misclassified(model, data, n=100)
    first = time.perf_counter() - start
    lines: list[dict[str, Any]] = [
        {"what": "scan", "images": found.total, "first_with_data": round(first, 3)}
        | timed(lambda: find_misclassified(model, data, n=100), args.repeats)
    ]
    everything = find_misclassified(model, data)
    lines.append(facts(everything))
    lines += maps(model, found, args.repeats)
    for n, cam in ((25, "both"), (100, None)):
        seconds = timed(partial(draw, model, found, n, cam), args.repeats)
        lines.append({"what": "figure", "n": n, "cam": cam, "dpi": 150} | seconds)
    lines.append(agreement(model, everything))
    for times in (1, 5):
        command = [sys.executable, __file__, "--weights", args.weights, "--memory", str(times)]
        command += ["--data-dir", args.data_dir] if args.data_dir else []
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        lines.append(json.loads(output.splitlines()[-1]))

    common = {"weights": args.weights} | machine()
    for line in lines:
        append(args.results, line | common)
        print(line)


def timed(job: Callable[[], object], repeats: int) -> dict[str, Any]:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        job()
        seconds.append(round(time.perf_counter() - start, 4))
    return {"seconds": seconds, "median": statistics.median(seconds), "runs": repeats}


def facts(found: MisclassifiedSamples) -> dict[str, Any]:
    worst = found[:100]
    return {
        "what": "errors",
        "errors": found.errors,
        "accuracy": round(found.accuracy, 4),
        "class_accuracy": {name: round(value, 4) for name, value in found.class_accuracy.items()},
        "expected_calibration_error": round(found.calibration.expected_error, 4),
        "most_confused": [pair[:3] for pair in found.most_confused(5)],
        "suspects_in_errors": sum(sample.suspect for sample in found),
        "suspects_in_100_of_highest_loss": sum(sample.suspect for sample in worst),
        "confidence_above_0.9": sum(sample.confidence > 0.9 for sample in found),
    }


def maps(network: CustomResNet, found: MisclassifiedSamples, repeats: int) -> list[dict[str, Any]]:
    """Time 100 maps of the predicted classes by compute_cams and by the library, for logits."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    images = torch.stack([sample.inputs for sample in found]).float()
    classes = [sample.predicted for sample in found]
    network.eval()

    def image_by_image() -> None:
        with GradCAM(LogitsOf(network), [network.residual3]) as cam:
            for image, number in zip(images, classes, strict=True):
                cam(image[None], [ClassifierOutputTarget(number)])

    compute_cams(network, images, classes)  # warm-up: import the library, choose the kernels
    image_by_image()
    lines = [
        {"what": "maps", "by": "compute_cams", "method": method, "n": len(images)}
        | timed(partial(compute_cams, network, images, classes, method=method), repeats)
        for method in ("gradcam", "hirescam", "layercam", "gradcam++", "eigencam")
    ]
    other = {"what": "maps", "by": "grad-cam, image by image", "method": "gradcam"}
    return [*lines, other | {"n": len(images)} | timed(image_by_image, repeats)]


class LogitsOf(torch.nn.Module):
    def __init__(self, network: CustomResNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.logits(images)


def draw(model: CustomResNet, found: MisclassifiedSamples, n: int, cam: str | None) -> None:
    path = RESULTS / "figure.tmp.png"
    show_misclassified(model, found, n=n, cam=cam).savefig(path)
    path.unlink()


def agreement(network: CustomResNet, found: MisclassifiedSamples) -> dict[str, Any]:
    """Correlate each method's map of the predicted class with HiResCAM's, over the errors."""
    images = torch.stack([sample.inputs for sample in found]).float()
    classes = [sample.predicted for sample in found]
    methods = ("gradcam", "gradcam++", "layercam", "xgradcam", "eigencam")
    raw = {
        method: compute_cams(network, images, classes, method=method, raw=True).flatten(1)
        for method in ("hirescam", *methods)
    }
    with torch.no_grad():
        logits = network.eval().logits(images)[range(len(found)), classes]
    between = {}
    for method in methods:
        pairs = torch.stack([raw["hirescam"], raw[method]], 1).double()
        each = [float(torch.corrcoef(pair)[0, 1]) for pair in pairs]
        each = sorted(value for value in each if value == value)
        between[method] = {
            "median": round(statistics.median(each), 3),
            "quartiles": [round(each[len(each) // 4], 3), round(each[3 * len(each) // 4], 3)],
        }
    return {
        "what": "agreement",
        "layer": "residual3",
        "errors": len(found),
        "with_hirescam": between,
        "hirescam_sum_minus_logit": float((raw["hirescam"].sum(1) - logits).abs().max()),
        "gradcam_sum_minus_logit": float((raw["gradcam"].sum(1) - logits).abs().median()),
    }


def memory_of_a_scan(model: CustomResNet, data_dir: str | None, times: int) -> dict[str, Any]:
    """Measure the peak memory in MB before and after a scan over `times` copies of the test set."""
    data = CIFAR10DataModule(data_dir, device="cpu")
    data.prepare_data()
    data.setup("test")
    batches = list(data.test_dataloader())
    dataset = TensorDataset(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    del batches
    settings: dict[str, Any] = {"n": 25, "mean": data.mean, "std": data.std}
    find_misclassified(model, torch.utils.data.Subset(dataset, range(1000)), **settings)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak (Linux)
    before = peak_mb()
    found = find_misclassified(model, ConcatDataset([dataset] * times), **settings)
    growth = round(peak_mb() - before, 1)
    return {"what": "memory", "images": found.total, "before_mb": before, "growth_mb": growth}


def peak_mb() -> float:
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line
    )
    return round(int(line.split()[1]) * 1024 / 1e6, 1)


if __name__ == "__main__":
    main()
