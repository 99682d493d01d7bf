"""All that we want to know of a GPU, most important first, for a machine that is there for minutes.

    python benchmarks/gpu.py --to FOLDER --data-dir DATA --minutes 9

Does the steps of `STEPS` in their order: does it compute what a CPU computes, a training from start
to report with its weights, speed, accuracy over seeds, tuning on held-out images. Whatever a step
has measured is in FOLDER at once, and a later call with the same FOLDER goes on where the last one
ended. With --rehearse everything is done small, on any machine, to see that it runs.

It knows the other scripts' commands; how they measure is theirs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from machine import ROOT, append

FULL = {"width": "64", "epochs": "24", "first": "0-9", "all": "0-19", "seconds": "4"}
REHEARSAL = {"width": "16", "epochs": "1", "first": "0", "all": "0-1", "seconds": "0.2"}
SHORTEST = 20  # seconds that a step should have


@dataclass(frozen=True)
class Step:
    """One command; the words in braces are filled in."""

    name: str
    command: str
    seconds: int  # at most
    goes_on: bool = False  # started again, the command does only what is missing


TRAINING = (
    "-m cifar_resnet train --width {width} --epochs {epochs} --data-dir {data} --quiet "
    "--output-dir {to}/runs"
)
COLLECT = "benchmarks/collect.py {run} --to {to}/train_24.jsonl"
SPEED = (
    "benchmarks/speed.py --rounds 1 --seconds {seconds} --data-dir {data} "
    "--results {to}/speed.jsonl --only"
)
ACCURACY = (
    "benchmarks/accuracy.py --width {width} --epochs {epochs} --data-dir {data} "
    "--minutes {minutes} --results {to}/accuracy.jsonl"
)
HELD_OUT = ACCURACY.replace("accuracy.jsonl", "tuning.jsonl") + " --held-out --seeds 0"
STEPS = (
    Step(
        "same numbers as a CPU",
        "-m pytest -q -p no:cacheprovider tests/test_gpu.py tests/test_augment.py",
        150,
    ),
    Step("a training from start to report", TRAINING, 150),
    Step("its figures", COLLECT, 30),
    Step(
        "its weights",
        "benchmarks/export_weights.py {run} --name full --folder {to} "
        "--results {to}/pretrained.jsonl --data-dir {data}",
        90,
    ),
    Step(
        "speed", f"{SPEED} 'trainer, width 64' 'lightning, width 64' "
        "'step, width 64'", 200,
    ),
    Step("accuracy", f"{ACCURACY} --recipes muon --seeds {{first}}", 300, goes_on=True),
    Step("tuning: recipes", f"{HELD_OUT} --recipes sgd muon best --set tta=six", 150, True),
    Step(
        "speed of other ways", f"{SPEED} 'muon, width 64' 'cuDNN, width 64' "
        "'compile, width 64'", 300,
    ),
    Step("a compiled training, cold", f"{TRAINING} --compile", 200),
    Step("its figures, cold", COLLECT, 30),
    Step("a compiled training, warm", f"{TRAINING} --compile", 150),
    Step("its figures, warm", COLLECT, 30),
    # the full network has learned its training images nearly by heart
    Step(
        "tuning: augmentation",
        f"{HELD_OUT} --recipes muon --set crop_padding=2,4 cutout=0,8,12",
        200,
        True,
    ),
    Step(
        "tuning: learning rates",
        f"{HELD_OUT} --recipes muon --set learning_rate=0.2,0.8 conv_learning_rate=0.03,0.05,0.08",
        200,
        True,
    ),
    Step("accuracy, final", f"{ACCURACY} --recipes muon best --seeds {{all}}", 600, True),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--to", type=Path, required=True, help="folder of results; kept and gone on"
    )
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    args.to.mkdir(parents=True, exist_ok=True)
    words = (REHEARSAL if args.rehearse else FULL) | {
        "to": str(args.to.absolute()),
        "data": str(Path(args.data_dir).absolute()),
    }
    done = finished(args.to)
    for step in STEPS:
        if step.name in done:
            continue
        seconds = min(step.seconds, end - time.monotonic())
        if seconds < SHORTEST:
            print(f"No time left for {step.name!r}.")
            break
        run(step, seconds, words, args.to)
    left = [step.name for step in STEPS if step.name not in finished(args.to)]
    print(f"Left: {left}" if left else "All is done.")


def finished(folder: Path) -> set[str]:
    path = folder / "steps.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {line["step"] for line in lines if line["done"]}


def run(step: Step, seconds: float, words: dict[str, str], folder: Path) -> None:
    """Do a step within a time; what it prints goes to the screen and to FOLDER/log.txt."""
    trainings = sorted((folder / "runs").glob("*/metrics.json"))
    words = words | {
        "run": str(trainings[-1].parent) if trainings else "no-run",
        "minutes": f"{(seconds - 10) / 60:.2f}",  # so that it ends by itself
    }
    arguments = [word.format(**words) for word in shlex.split(step.command)]
    print(f"== {step.name} (at most {seconds:.0f} s): {' '.join(arguments)}", flush=True)
    start = time.monotonic()
    try:
        result = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT, timeout=seconds, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        code, output = result.returncode, result.stdout
    except subprocess.TimeoutExpired as error:
        code, output = None, (error.stdout or b"").decode(errors="replace")
    took = time.monotonic() - start
    with (folder / "log.txt").open("a") as file:
        file.write(f"== {step.name}: {code}, {took:.1f} s\n{output}\n")
    done = code == 0 and not (step.goes_on and "stopped here" in output)
    append(folder / "steps.jsonl", {"step": step.name, "done": done, "code": code, "seconds": took})
    print("\n".join(output.splitlines()[-12:]), f"\n-- {took:.1f} s, exit {code}", flush=True)


if __name__ == "__main__":
    main()
