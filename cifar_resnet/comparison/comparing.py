"""Train what is missing for a comparison, and compare."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_resnet import arguments
from cifar_resnet.comparison import sequential as e_test
from cifar_resnet.comparison.arms import Arm
from cifar_resnet.comparison.differences import INSIDE, PRECISIONS
from cifar_resnet.comparison.identity import as_arms, describe
from cifar_resnet.comparison.metrics import METRICS, primary_metric
from cifar_resnet.comparison.report import Comparison
from cifar_resnet.comparison.storing import ResultFolder, Run, library_versions
from cifar_resnet.training.recipe import Recipe

if TYPE_CHECKING:
    from cifar_resnet.comparison.running import Setting

__all__ = ["compare", "default_folder"]

_log = logging.getLogger(__name__)

_POLL = 2.0  # seconds between two looks at what other processes have finished
_SEEDS = "an integer of at least 1, or a sequence of different integers of at least 0"


def compare(
    *arms: Recipe | Arm | str,
    seeds: int | Sequence[int] = 5,
    width: int = 16,
    epochs: int = 24,
    results: str | Path | None = None,
    final: bool = False,
    sequential: bool = False,
    metric: str | None = None,
    detect: float | None = None,
    confidence: float = 0.95,
    power: float = 0.8,
    precision: str | None = None,
    data_dir: str | Path | None = None,
) -> Comparison:
    """Train several recipes with the same seeds on CIFAR-10, and compare them.

    Runs with the same seed have the same order of images, the same augmentation as far as the arms
    allow it, and the same initial weights in the layers that they have in common, so that the
    differences between arms are those between pairs of runs.

    Finished runs are stored in the folder `results`, and are not repeated: the same call continues
    after an interruption. Several calls, also on several machines, share the runs of one folder.
    Ctrl-C stops after the current step with a checkpoint.

    Args:
        *arms: At least two: recipes, names of presets with changes such as
            `"muon label_smoothing=0.2"`, or `Arm` for other networks and options of the data. The
            others are compared with the first one.
        seeds: Number of seeds, from 0 on, or the seeds themselves. If `sequential`, the maximum.
        width: Width of the networks.
        epochs: Number of epochs of each run.
        results: Folder of the results. If None, a folder in `comparisons`, named after the arms,
            width and epochs.
        final: If True, train on all 50,000 images and evaluate on the test set. If False, train on
            45,000 of them and evaluate on the others. Make choices with False.
        sequential: If True, look at the result after each seed and stop as soon as it is clear. The
            probability of seeing a difference that is not there is then still at most
            `1 - confidence`, by an e-value of the t-statistic.
        metric: Metric that decides: `"acc"`, `"acc_mirror"`, `"acc_six"`, `"loss"`, `"ece"`,
            `"train_acc"` or `"train_seconds"`. If None, the accuracy with the most views of
            test-time augmentation that all arms have.
        detect: Difference of interest, in points for accuracies; the report says how many seeds
            detect it.
        confidence: Confidence level of the intervals.
        power: Probability of detecting a difference, for the number of seeds that is needed.
        precision: Precision of Lightning's `Trainer`. If None, that of the folder, or else
            `"bf16-mixed"` if it is faster on this device and `"32-true"` otherwise.
        data_dir: Folder of CIFAR-10, as for `CIFAR10DataModule`.

    Returns:
        The comparison. `print` shows the table and what can be concluded.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If two arms do not differ or would be evaluated on different images, an argument
            is out of its range, or the folder belongs to another comparison or is damaged.
        OSError: If the folder cannot be written or locked.
        KeyboardInterrupt: After Ctrl-C; `SystemExit` after SIGTERM.
        FloatingPointError: If the loss of a run is not finite.

    Examples:
        Two very short runs:

        >>> import tempfile
        >>> from cifar_resnet import compare
        >>> tiny = {"width": 1, "epochs": 1, "results": tempfile.mkdtemp()}
        >>> found = compare("adam subset=500", "sgd subset=500 tta=none", seeds=1, **tiny)
        >>> found.arms
        ('adam subset=500', 'sgd tta=none subset=500')
        >>> found.difference("sgd tta=none subset=500").low is None  # one seed gives no interval
        True
    """
    width = arguments.integer("width", width, minimum=1)
    epochs = arguments.integer("epochs", epochs, minimum=1)
    chosen_seeds = _as_seeds(seeds)
    final = arguments.boolean("final", final)
    sequential = arguments.boolean("sequential", sequential)
    if sequential and not arguments.is_integer(seeds):
        raise ValueError(
            f"seeds must be the maximum number of seeds if sequential is True, but got {seeds!r}: "
            "the rule takes the seeds in the order 0, 1, 2, ..."
        )
    arguments.choice("metric", metric, (*METRICS, None))
    arguments.choice("precision", precision, PRECISIONS)
    arguments.number("confidence", confidence, INSIDE)
    arguments.number("power", power, INSIDE)
    if detect is not None:
        arguments.number("detect", detect, arguments.POSITIVE)
    if data_dir is not None:
        data_dir = arguments.path("data_dir", data_dir)
    chosen = as_arms(arms, width)
    metric = _reported(metric, chosen)
    path = (
        default_folder(chosen, width, epochs, final=final)
        if results is None
        else arguments.path("results", results)
    )

    from cifar_resnet.comparison.running import Setting
    from cifar_resnet.machine import pick_device, pick_precision

    folder = ResultFolder(path)
    header = {
        "arms": {arm.name: describe(arm, width) for arm in chosen},
        "width": width,
        "epochs": epochs,
        "held_out": not final,
        "versions": library_versions(),
    }
    measured = precision or (lambda: pick_precision(pick_device()))
    setting = Setting(width, epochs, not final, folder.claim(header, measured))
    alpha = (1 - confidence) / (len(chosen) - 1)
    decided = partial(_decided, metric=metric, alpha=alpha) if sequential else _never
    _train_missing(folder, chosen, chosen_seeds, setting, decided, data_dir)
    found = folder.runs()
    runs = {
        arm.name: {
            seed: found[arm.name, seed] for seed in chosen_seeds if (arm.name, seed) in found
        }
        for arm in chosen
    }
    return Comparison._of_runs(
        runs,
        metric,
        confidence=confidence,
        power=power,
        detect=detect,
        sequential=sequential,
        equal_weights=_equal_weights(chosen, width, chosen_seeds[0]),
    )


def default_folder(arms: Sequence[Arm], width: int, epochs: int, *, final: bool) -> Path:
    """Return the folder of a comparison, named after what is compared."""
    names = "-vs-".join(re.sub(r"[^A-Za-z0-9.]+", "-", arm.name).strip("-") for arm in arms)
    end = f"-width{width}-epochs{epochs}{'-final' if final else ''}"
    return Path("comparisons") / f"{names[: 200 - len(end)]}{end}"


# --- training ------------------------------------------------------------------------------------

Decided = Callable[[Mapping[Run, Mapping[str, Any]], str, str, Sequence[int]], bool]


def _train_missing(
    folder: ResultFolder,
    arms: Sequence[Arm],
    seeds: Sequence[int],
    setting: Setting,
    decided: Decided,
    data_dir: str | Path | None,
) -> None:
    """Train the runs that no process has finished; wait for those that another one is training."""
    waits = False
    while True:
        runs = folder.runs()
        names = [arm.name for arm in arms]
        open_arms = [n for n in names[1:] if not decided(runs, names[0], n, seeds)]
        needed = [arm for arm in arms if open_arms and arm.name in (names[0], *open_arms)]
        missing = [(arm, s) for s in seeds for arm in needed if (arm.name, s) not in runs]
        if not missing:
            return
        if any(_train(folder, arm, seed, setting, data_dir) for arm, seed in missing):
            waits = False
            continue
        if not waits:
            _log.info("Waiting for %d runs of other processes.", len(missing))
            waits = True
        time.sleep(_POLL)


def _train(
    folder: ResultFolder, arm: Arm, seed: int, setting: Setting, data_dir: str | Path | None
) -> bool:
    """Train a run, unless another process is training it; return whether it is finished."""
    from cifar_resnet.comparison.running import train_run

    run = (arm.name, seed)
    with folder.lock(run) as is_ours:
        if not is_ours:
            return False
        if run in folder.runs():  # finished since the folder was read
            return True
        _log.info("Training %s, seed %d.", *run)
        try:
            result = train_run(
                arm, seed, setting, data_dir=data_dir, checkpoints=folder.checkpoints(run)
            )
        except (SystemExit, KeyboardInterrupt):
            _log.warning(
                "Stopped in the run of arm %r, seed %d. The finished runs and its checkpoint are "
                "in %s: the same call or command continues there.", *run, folder.path,
            )  # fmt: skip
            raise
        width = None if arm.network else arm.width or setting.width
        folder.append(
            {
                "arm": arm.name,
                **describe(arm, setting.width),
                "width": width,
                "epochs": setting.epochs,
                "seed": seed,
                "held_out": setting.held_out,
                "precision": setting.precision,
                **result,
            }
        )
    return True


def _never(*_: Any) -> bool:
    return False


def _decided(
    runs: Mapping[Run, Mapping[str, Any]],
    reference: str,
    arm: str,
    seeds: Sequence[int],
    *,
    metric: str,
    alpha: float,
) -> bool:
    """Return whether the sequential rule has decided, on the seeds up to the first open one."""
    differences = []
    for seed in seeds:
        pair = runs.get((reference, seed)), runs.get((arm, seed))
        if pair[0] is None or pair[1] is None:
            break
        differences.append(pair[1][metric] - pair[0][metric])
    return e_test.decided_at(differences, alpha) is not None


# --- arguments -----------------------------------------------------------------------------------


def _as_seeds(seeds: Any) -> list[int]:
    message = f"seeds must be {_SEEDS}, but got {seeds!r}."
    if arguments.is_integer(seeds):
        if seeds < 1:
            raise ValueError(message)
        return list(range(int(seeds)))
    if isinstance(seeds, str):
        raise TypeError(message)
    values = arguments.sequence("seeds", seeds, _SEEDS)
    if not all(map(arguments.is_integer, values)):
        raise TypeError(message)
    if not values or min(values) < 0 or len(set(values)) < len(values):
        raise ValueError(message)
    return sorted(int(value) for value in values)


def _reported(metric: str | None, arms: Sequence[Arm]) -> str:
    """Return the metric that decides; all arms must report it."""
    views = {"none": (), "mirror": ("acc_mirror",), "six": ("acc_mirror", "acc_six")}
    reported = [dict.fromkeys(views[arm.recipe.tta], 0.0) for arm in arms]
    if metric is None:
        return primary_metric(reported)
    for arm, keys in zip(arms, reported, strict=True):
        if metric in ("acc_mirror", "acc_six") and metric not in keys:
            tta = metric.removeprefix("acc_")
            raise ValueError(
                f"metric={metric!r} needs tta={tta!r} in the recipe of every arm, but arm "
                f"{arm.name!r} has tta={arm.recipe.tta!r}. Change the arm, such as "
                f"'{arm.recipe.name} tta={tta}', or choose another metric."
            )
    return metric


def _equal_weights(arms: Sequence[Arm], width: int, seed: int) -> dict[str, float | None]:
    """Compute the fraction of equal initial weights in the first seed; it is that of all."""
    from cifar_resnet.comparison.initial import build, equal_fraction

    first = build(arms[0], width, seed)
    return {arm.name: equal_fraction(first, build(arm, width, seed)) for arm in arms[1:]}
