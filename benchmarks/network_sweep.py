"""Analyze and verify the networks of public libraries, without their weights.

    pip install --no-deps timm transformers tokenizers regex pytorchcv monai einops \
        segmentation-models-pytorch efficientnet-pytorch torchaudio
    python benchmarks/network_sweep.py [--libraries timm monai] [--only NAME] [--minutes 60]
    python benchmarks/network_sweep.py --table

Each network is analyzed at its default input size, and verified with `check_receptive_field` at the
first of several small sizes that it accepts, in a process of its own with limits on time and
memory. Appends a JSON line per network to benchmarks/results/network_sweep.jsonl, and skips the
networks that are there already. `--again refused failed` repeats those with these results, and the
last line of a network counts. `--table` rewrites the tables of docs/which-networks.md.

Libraries that are not installed are left out. None is needed by the package or its tests.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import re
import resource
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import network_tables
from machine import RESULTS, ROOT, append, machine
from networks import NEEDS, Network, Shape, networks

if TYPE_CHECKING:
    from cifar_resnet.fields.result import ReceptiveFields

Row = dict[str, Any]
PAGE = ROOT / "docs" / "which-networks.md"
IMAGE_SIDES = (32, 64, 128, 224, 256)
WAVE_SIDES = (64, 512, 1024, 4096)
VOLUME_SIDES = (32, 64, 112)


def measure(network: Network, options: argparse.Namespace, sender: Any) -> None:
    """Analyze and verify one network, and send what is known after each stage."""
    import torch

    row: Row = {"result": "failed"}
    with open("/proc/self/statm") as file:  # noqa: PTH123
        used = int(file.read().split()[0]) * resource.getpagesize()
    limit = used + int(options.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (options.seconds, options.seconds + 5))
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    try:
        model, shapes = network.build()
        model.eval()
        row |= {
            "input_size": [list(shape) for shape in shapes],
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        fields = _analyze(model, shapes, row, sender)
        if fields is not None and not options.analyze_only:
            _verify(model, shapes, fields, row, sender)
    except Exception as error:
        row |= {"error": _first_lines(error)}
    sender.send(row)
    sender.close()
    os._exit(0)  # without the destructors of the libraries


def _analyze(model: Any, shapes: tuple[Shape, ...], row: Row, sender: Any) -> Any:
    import torch

    from cifar_resnet import receptive_field

    sender.send(row | {"error": "stopped in the analysis"})
    inputs = [torch.zeros(shape) for shape in shapes]
    before, start = _reset_peak(), time.process_time()
    try:
        fields = receptive_field(model, inputs=inputs, spatial_dims=_spatial(shapes))
    except (ValueError, NotImplementedError, MemoryError) as error:
        row |= {"result": "refused", "error": _first_lines(error)}
        if not isinstance(error, NotImplementedError) and not _runs(model, shapes):
            row["result"] = "failed"
        return None
    row |= {
        "result": "analyzed",
        "analysis_s": round(time.process_time() - start, 2),
        "analysis_mb": round((_memory("VmHWM") - before) / 2**20),
        "layers": len(fields),
        "size": [list(record.size) for record in fields.outputs.values()][:1],
    }
    return fields


def _verify(
    model: Any, shapes: tuple[Shape, ...], fields: ReceptiveFields, row: Row, sender: Any
) -> None:
    import torch

    from cifar_resnet import check_receptive_field, receptive_field
    from cifar_resnet.fields import borders
    from cifar_resnet.fields.mismatch import ReceptiveFieldMismatchError

    borders._MIN_LENGTH = 256  # of 1024, to save time
    row |= {"result": "not verified", "error": "stopped in the verification"}
    sender.send(row)
    small = _smallest_accepted(model, shapes)
    row["checked_size"] = [list(shape) for shape in small]
    sender.send(row)
    inputs = [torch.randn(shape) for shape in small]
    start = time.process_time()
    try:
        if small != shapes:
            there = receptive_field(model, inputs=inputs, spatial_dims=_spatial(shapes))
            row["other_at_checked_size"] = _other_measures(fields, there)[:5]
        report = check_receptive_field(
            model, inputs=inputs, spatial_dims=_spatial(shapes), positions=4, batch_size=4
        )
    except ReceptiveFieldMismatchError as error:
        row |= {"result": "disagrees", "error": _first_lines(error)}
    except Exception as error:
        row |= {"error": _first_lines(error)}
    else:
        del row["error"]
        row |= {
            "result": "verified",
            "compared": len(report.compared),
            "not_compared": len(report.not_compared),
            "beyond_borders": len(report.sizes),
            "rows_probed": list(report.positions),
            "by_change": report.by_change,
        }
    row["check_s"] = round(time.process_time() - start, 2)


def _other_measures(usual: ReceptiveFields, small: ReceptiveFields) -> list[str]:
    """Return the layers whose size, jump or padding depends on the size of the input.

    Layers that depend on the size of the map are left out, as after global or adaptive pooling.
    """
    return [
        name
        for name, record in usual.items()
        if name in small
        for other in [small[name]]
        if record.uniform and other.uniform and not any((*record.is_global, *other.is_global))
        if None not in (*record.jump, *other.jump) and min(record.unit_shape, default=0) > 1
        if (record.size, record.jump, record.padding) != (other.size, other.jump, other.padding)
    ]


def _spatial(shapes: tuple[Shape, ...]) -> list[int] | None:
    """Return the dimensions to follow: time in (1, time), frames and pixels in a video."""
    shape = shapes[0]
    if len(shape) == 2:
        return [1]
    if len(shape) == 5 and shape[2] == 3:  # (1, frames, channels, height, width)
        return [3, 4]
    return None


def _smallest_accepted(model: Any, shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    dims = _spatial(shapes) or list(range(2, len(shapes[0])))
    sides = {1: WAVE_SIDES, 2: IMAGE_SIDES, 3: VOLUME_SIDES}[len(dims)]
    for side in sides:
        if side >= min(shapes[0][dim] for dim in dims):
            break
        small = tuple(
            tuple(side if dim in dims else size for dim, size in enumerate(shape))
            for shape in shapes
        )
        if _runs(model, small):
            return small
    return shapes


def _runs(model: Any, shapes: tuple[Shape, ...]) -> bool:
    import torch

    try:
        with torch.no_grad():
            model(*(torch.randn(shape) for shape in shapes))
    except Exception:
        return False
    return True


def _first_lines(error: Exception) -> str:
    text = " ".join(str(error).split())
    for folder in sorted(filter(None, sys.path), key=len, reverse=True):
        text = text.replace(f"{folder}/", "")  # of the machine
    return f"{type(error).__name__}: {text[:400]}"


def _memory(key: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+)", text)[1]) * 1024  # type: ignore[index]


def _reset_peak() -> int:
    """Set the peak of resident memory to what is in use now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmHWM")


def run(network: Network, options: argparse.Namespace) -> Row:
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(network, options, sender))
    start = time.monotonic()
    process.start()
    sender.close()
    row: Row = {"result": "failed", "error": "stopped while it was built"}
    deadline = start + 60 * options.seconds  # not CPU time, as other programs may run
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            row = receiver.recv()
    except EOFError:
        pass
    process.join(30)
    if process.exitcode != 0:
        process.kill()
        process.join()
        reasons = {-24: f"after {options.seconds} CPU seconds", -9: "as it did not end"}
        reason = reasons.get(process.exitcode or 0, f"with exit code {process.exitcode}")
        row["error"] = f"{row.get('error', 'stopped')} {reason}"
        if row["result"] == "failed" and "input_size" in row:
            row["result"] = "stopped"
    return {"library": network.library, "name": network.name} | row


def read(path: Path) -> list[Row]:
    """Return the last row of each network."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return list({(row["library"], row["name"]): row for row in rows}.values())


def _warm_up() -> None:
    """Run once what all processes need, so that it is loaded before they are forked."""
    import torch
    from torch import nn

    from cifar_resnet import check_receptive_field

    torch.set_num_threads(1)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    check_receptive_field(nn.Sequential(*layers, nn.LazyLinear(2))[:-1], (1, 3, 8, 8))
    gc.collect()
    gc.freeze()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--libraries", nargs="+", choices=list(NEEDS), default=list(NEEDS))
    parser.add_argument("--only", nargs="+", help="names of networks")
    parser.add_argument("--again", nargs="+", default=(), metavar="RESULT")
    parser.add_argument("--analyze-only", action="store_true", help="do not verify yet")
    parser.add_argument("--minutes", type=float, default=600, help="start no network after this")
    parser.add_argument("--seconds", type=int, default=120, help="CPU time for one network")
    parser.add_argument("--memory", type=float, default=4, help="memory for one network in GB")
    parser.add_argument("--results", type=Path, default=RESULTS / "network_sweep.jsonl")
    parser.add_argument("--table", action="store_true", help="rewrite the tables of the page")
    arguments = parser.parse_args()
    if arguments.table:
        PAGE.write_text(network_tables.updated(PAGE.read_text(), read(arguments.results)))
        return 0

    end = time.monotonic() + 60 * arguments.minutes
    done = {
        (row["library"], row["name"])
        for row in read(arguments.results)
        if row["result"] not in arguments.again
    }
    versions, listed = {}, []
    for library in arguments.libraries:
        try:
            versions[library] = {name.replace("-", "_"): version(name) for name in NEEDS[library]}
            listed.append(networks(library))
        except (PackageNotFoundError, ImportError) as error:
            print(f"{library} is left out: {error}")
    _warm_up()
    # the first of each library, then the second of each, so that a stopped run has some of all
    for network in (n for group in zip_longest(*listed) for n in group if n is not None):
        if (network.library, network.name) in done:
            continue
        if arguments.only and network.name not in arguments.only:
            continue
        if time.monotonic() > end:
            break
        row = run(network, arguments) | machine(threads=1)
        row["versions"] |= versions[network.library]
        append(arguments.results, row)
        print(network.library, network.name, row["result"], row.get("error", ""), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
