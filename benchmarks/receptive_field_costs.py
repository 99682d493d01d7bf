"""CPU seconds and peak memory of `receptive_field` for the networks that cost most.

    python benchmarks/receptive_field_costs.py --label after [--only swin_t_448]

Analyzes each network without weights in a separate process, on one thread, and appends a JSON line
to benchmarks/results/receptive_field_costs.jsonl. Needs timm and monai, besides torchvision.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from machine import RESULTS, append, machine

# name: library, version of its distribution, function that builds the network, image size
NETWORKS: dict[str, tuple[str, str, int]] = {
    "hovernet": ("monai", "HoVerNet", 270),
    "nasnetalarge": ("timm", "nasnetalarge", 331),
    "pnasnet5large": ("timm", "pnasnet5large", 331),
    "halonet_h1": ("timm", "halonet_h1", 256),
    "swin_t_448": ("torchvision", "swin_t", 448),
    "swin_t_896": ("torchvision", "swin_t", 896),
    "swin_tiny_448": ("timm", "swin_tiny_patch4_window7_224", 448),
    "swin_tiny_896": ("timm", "swin_tiny_patch4_window7_224", 896),
    "gemma4_vit_167m": ("timm", "gemma4_vit_167m", 0),
    "resnet50_448": ("torchvision", "resnet50", 448),
    "resnet50_4000": ("torchvision", "resnet50", 4000),
}


def build(library: str, name: str, size: int) -> Any:
    if library == "monai":
        from monai.networks.nets.hovernet import HoVerNet

        return HoVerNet(mode="original", in_channels=3, out_classes=5)
    if library == "timm":
        import timm

        options: dict[str, Any] = {"img_size": size} if name.startswith("swin") else {}
        return timm.create_model(name, pretrained=False, **options)
    from torchvision import models

    return models.get_model_builder(name)(weights=None)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str) -> dict[str, Any]:
    import torch

    from cifar_resnet import receptive_field

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    library, builder, size = NETWORKS[name]
    model = build(library, builder, size).eval()
    size = size or model.default_cfg["input_size"][-1]
    receptive_field(torch.nn.Conv2d(3, 3, 3), (1, 3, 8, 8))  # the first call takes longer
    row: dict[str, Any] = {"network": name, "library": library, "input_size": (1, 3, size, size)}
    before, start = peak_bytes(), time.process_time()
    try:
        fields = receptive_field(model, (1, 3, size, size))
        row |= {"result": "analyzed", "layers": len(fields), "size": fields.output.size}
    except (ValueError, NotImplementedError, MemoryError) as error:
        row["result"] = f"{type(error).__name__}: {error}"
    seconds = time.process_time() - start
    return row | {
        "cpu_s": round(seconds, 2),
        "peak_mb": round(peak_bytes() / 2**20),
        "before_mb": round(before / 2**20),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--label", required=True, help="what is measured, such as before or after")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--results", type=Path, default=RESULTS / "receptive_field_costs.jsonl")
    arguments = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for name in arguments.only:
        with context.Pool(1) as pool:
            row = {"label": arguments.label} | pool.apply(measure, (name,))
        append(arguments.results, row | machine(threads=1))
        print({key: row[key] for key in row if key != "library"}, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
