"""Receptive fields of torchvision's networks: time, memory, and agreement with the NaN probe.

    python benchmarks/receptive_fields.py [--only resnet152] [--seconds 8]

Analyzes each classification, segmentation and video network of torchvision on one CPU thread, with
the input size of its pretrained weights, in a separate process. Then probes as many rows as fit
into the given time, spaced evenly and including the borders. Appends a JSON line per network to
benchmarks/results/receptive_fields.jsonl, and skips networks that it contains already.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from machine import RESULTS, append, machine


def input_size(name: str, kind: str, weights: Any) -> tuple[int, ...]:
    """Return batch, channels, frames of a video, height, width."""
    transforms = weights.transforms()
    if kind == "segmentation":
        return (1, 3, 520, 520)
    size = transforms.crop_size
    height, width = (size * 2)[:2] if isinstance(size, list | tuple) else (size, size)
    if kind == "video":
        return (1, 3, 16, height, width)
    return (1, 3, height, width)


def build(name: str, kind: str, size: tuple[int, ...]) -> Any:
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    if kind == "segmentation":
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False  # the default takes a minute
    if name == "vit_h_14":
        options["image_size"] = size[-1]
    return models.get_model_builder(name)(**options)


def measure(name: str, kind: str, seconds: float) -> dict[str, Any]:
    import torch
    from torchvision import models

    from cifar_resnet import check_receptive_field, receptive_field
    from cifar_resnet.fields.propagation import Propagation
    from cifar_resnet.fields.trace import trace

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = input_size(name, kind, models.get_model_weights(name).DEFAULT)
    model = build(name, kind, size).eval()
    row: dict[str, Any] = {"model": name, "kind": kind, "input_size": size}
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    image = torch.zeros(size)
    receptive_field(torch.nn.Conv2d(3, 3, 3), (1, 3, 8, 8))  # the first call takes longer
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    try:
        start = time.perf_counter()
        run = trace(model, (image,))
        traced = time.perf_counter()
        fields = Propagation(run, 0, range(2, len(size)), [], "raise", {}).run()
        done = time.perf_counter()
    except (ValueError, NotImplementedError, MemoryError) as error:
        return row | {"result": f"{type(error).__name__}: {error}"}
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    first = fields.first_to_see_all
    row |= {
        "trace_s": round(traced - start, 3),
        "analysis_s": round(done - traced, 3),
        "operations": len(run.steps),
        "layers": len(fields),
        "weights_mb": round(weights / 2**20, 1),
        "extra_memory_mb": round((after - before) / 2**20, 1),
        "size": fields.output.size,
        "skipped": len(fields.skipped),
        "first_to_see_all": first.name if first else None,
    }
    torch.set_num_threads(2)
    start = time.perf_counter()
    with torch.no_grad():
        model(image)
    forward = 2 * (time.perf_counter() - start)  # the probe switches off fast convolutions
    rows = max(3, min(max(size[2:]), int(seconds / forward / (len(size) - 2))))
    start = time.perf_counter()
    batch = max(1, min(16, rows, int(2e8 / (image.numel() * 64))))
    try:
        report = check_receptive_field(model, size, positions=rows, batch_size=batch)
        row |= {
            "result": "agrees",
            "compared": len(report.compared),
            "not_compared": len(report.not_compared),
            "rows_probed": report.positions,
        }
    except (AssertionError, ValueError, RuntimeError) as error:
        row["result"] = f"{type(error).__name__}: {error}"
    return row | {"probe_s": round(time.perf_counter() - start, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=None, help="names of networks")
    parser.add_argument("--seconds", type=float, default=8, help="time to probe one network")
    parser.add_argument("--results", type=Path, default=RESULTS / "receptive_fields.jsonl")
    arguments = parser.parse_args()

    from torchvision import models

    kinds = {
        "classification": models.list_models(module=models),
        "segmentation": models.list_models(module=models.segmentation),
        "video": models.list_models(module=models.video),
    }
    rows = []
    if arguments.results.exists():
        rows = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    known = {row["model"] for row in rows}
    context = multiprocessing.get_context("spawn")
    for kind, names in kinds.items():
        for name in names:
            if name in known or (arguments.only and name not in arguments.only):
                continue
            with context.Pool(1) as pool:
                row = pool.apply(measure, (name, kind, arguments.seconds))
            row |= machine(threads=1)
            append(arguments.results, row)
            rows.append(row)
            print(name, row["result"], row.get("trace_s"), row.get("analysis_s"), flush=True)
    for kind in kinds:
        mine = [row for row in rows if row["kind"] == kind]
        agreeing = [row for row in mine if row["result"] == "agrees"]
        print(f"{kind}: {len(agreeing)} of {len(mine)} agree with the probe")
    return 0


if __name__ == "__main__":
    sys.exit(main())
