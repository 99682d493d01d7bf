"""Find wrong labels by the history of a training run, compared with confident learning.

    python benchmarks/label_issues.py --noise 0.1 --kind symmetric --folder /tmp/issues
    python benchmarks/label_issues.py --clean --folder /tmp/issues

A run trains on all 50,000 training images, of whose labels a seeded fraction is changed, with
`TrainingHistory`, and `find_label_issues` ranks the images. Confident learning (cleanlab) ranks
them by the probabilities of networks that did not see them: --folds trainings with the same recipe.
Every score gets its area under the ROC curve and its precision at k, the number of changed labels.
Appends a line for each of the two methods to benchmarks/results/label_issues.jsonl.

With --clean, the labels are not changed; the 50 most doubtful images are written to
benchmarks/results/doubtful_labels.csv, and nothing is appended.

The folder keeps checkpoints, histories and probabilities: an interrupted call resumes, and finished
trainings are not repeated. cleanlab is needed for its method only. The data must be on disk.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from machine import RESULTS, append, machine
from numpy.typing import NDArray

from cifar_resnet import (
    CIFAR10DataModule,
    CustomResNet,
    ImageClassifier,
    ImageHistory,
    LastCheckpoint,
    Recipe,
    TrainingHistory,
    find_label_issues,
)
from cifar_resnet.machine import pick_device, pick_precision

METHODS = ("history", "cleanlab")
DOUBTFUL = 50  # images in the figure of the site


def main() -> None:
    args = parse_arguments()
    if args.clean:
        history, _ = train_with_history(args)
        find_label_issues(history).top(DOUBTFUL).to_csv(args.doubtful)
        print(f"{args.doubtful}: {DOUBTFUL} images of {history}")
        return
    for method in args.methods:
        key = run_key(args, method)
        if any(line.items() >= key.items() for line in read(args.results)):
            continue
        rank = by_history if method == "history" else by_cleanlab
        scores, changed, more = rank(args)
        measured = {name: evaluated(doubt, changed) for name, doubt in scores.items()}
        line = key | {"changed": int(changed.sum()), "scores": measured, **more}
        append(args.results, line | machine(pick_device()))
        for name, values in measured.items():
            print(f"{method:10}{name:22}" + "  ".join(f"{k} {v:.4f}" for k, v in values.items()))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--noise", type=float, default=0.1, help="fraction of changed labels")
    parser.add_argument("--kind", choices=("symmetric", "asymmetric"), default="symmetric")
    parser.add_argument("--clean", action="store_true", help="rank the images with their labels")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--folds", type=int, default=4, help="trainings for confident learning")
    parser.add_argument("--recipe", default="muon")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0, help="of training and of label noise")
    parser.add_argument("--subset", type=int, help="fewer training images, as a check")
    parser.add_argument("--precision", help="default: the faster one, measured")
    parser.add_argument("--data-dir")
    parser.add_argument("--folder", type=Path, required=True, help="for large files")
    parser.add_argument("--results", type=Path, default=RESULTS / "label_issues.jsonl")
    parser.add_argument("--doubtful", type=Path, default=RESULTS / "doubtful_labels.csv")
    args = parser.parse_args()
    args.precision = args.precision or pick_precision(pick_device())
    return args


def run_key(args: argparse.Namespace, method: str) -> dict[str, Any]:
    names = ("noise", "kind", "recipe", "epochs", "width", "seed", "subset", "precision")
    folds = {"folds": args.folds} if method == "cleanlab" else {}
    return {"method": method, **{name: getattr(args, name) for name in names}, **folds}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# --- the two methods ------------------------------------------------------------------------------

Ranking = tuple[dict[str, NDArray[np.float64]], NDArray[np.bool_], dict[str, Any]]


def by_history(args: argparse.Namespace) -> Ranking:
    """Return how doubtful each image is by each score, whether its label was changed, and more."""
    history, seconds = train_with_history(args)
    assert history.changed is not None
    issues = find_label_issues(history)
    rows = [history.row(index) for index in issues.indices.tolist()]
    doubts = {name: -ranks for name, ranks in issues.ranks.items()}
    wrong = history.changed[rows]
    assert history.clean_labels is not None
    corrected = issues.suggested == history.clean_labels[rows]
    return (
        doubts,
        wrong,
        {"suggested_is_clean": float(corrected[wrong].mean()), "seconds": [seconds]},
    )


def by_cleanlab(args: argparse.Namespace) -> Ranking:
    from cleanlab import filter as flags
    from cleanlab import rank
    from cleanlab.version import __version__ as cleanlab_version

    whole = data_module(args)
    whole.setup()
    given, clean = whole.labels(), whole.labels(clean=True)
    row_of = {index: row for row, index in enumerate(whole.indices().tolist())}
    probabilities = np.full((len(given), whole.num_classes), np.nan)
    seconds = []
    for fold in range(args.folds):
        indices, part, spent = held_out_probabilities(args, fold)
        known = [(row_of[index], k) for k, index in enumerate(indices.tolist()) if index in row_of]
        rows, places = np.array(known).T
        probabilities[rows] = part[places]
        seconds.append(spent)
    assert np.isfinite(probabilities).all()
    doubts = {
        name: 1 - rank.get_label_quality_scores(given, probabilities, method=name)
        for name in ("self_confidence", "normalized_margin")
    }
    flagged = flags.find_label_issues(given, probabilities, filter_by="confident_learning")
    # Confident learning flags images; here the others follow, by the same quality score.
    doubts["confident_learning"] = flagged + doubts["normalized_margin"]
    changed = given != clean
    found = {
        "flagged": int(flagged.sum()),
        "flagged_precision": float(changed[flagged].mean()) if flagged.any() else None,
        "flagged_recall": float(flagged[changed].mean()),
        "cleanlab": cleanlab_version,
        "seconds": seconds,
    }
    return doubts, changed, found


def evaluated(doubt: NDArray[np.float64], wrong: NDArray[np.bool_]) -> dict[str, float]:
    """Return AUROC and precision at k of a score that is larger for more doubtful images."""
    from sklearn.metrics import roc_auc_score

    k = int(wrong.sum())
    first = np.argsort(-doubt, kind="stable")[:k]
    return {
        "auroc": float(roc_auc_score(wrong, doubt)),
        "precision_at_k": float(wrong[first].mean()),
    }


# --- training -------------------------------------------------------------------------------------


def data_module(args: argparse.Namespace, **options: Any) -> CIFAR10DataModule:
    noise: dict[str, Any] = {}
    if not args.clean:
        noise = {"label_noise": args.noise, "label_noise_kind": args.kind}
        noise["label_noise_seed"] = args.seed
    return CIFAR10DataModule(
        args.data_dir,
        seed=args.seed,
        subset=args.subset,
        download=False,
        **(options or {"val_split": 0}),
        **Recipe.preset(args.recipe).data_options(),
        **noise,
    )


def train_with_history(args: argparse.Namespace) -> tuple[ImageHistory, float | None]:
    path = folder(args, "history") / "history.npz"
    if not path.exists():
        recorder = TrainingHistory(path)
        train(args, data_module(args), path.parent, recorder)
    return ImageHistory.load(path), seconds_of(path.parent)


def held_out_probabilities(
    args: argparse.Namespace, fold: int
) -> tuple[NDArray[np.intp], NDArray[np.float64], float | None]:
    """Return indices and class probabilities (N, classes) of the images of a fold."""
    import torch

    path = folder(args, f"fold{fold}of{args.folds}") / "probabilities.npz"
    if not path.exists():
        data = data_module(args, folds=(fold, args.folds))
        model, trainer = train(args, data, path.parent)
        loader = data.val_dataloader()
        parts = trainer.predict(model, loader)
        scores = torch.cat(parts).double().softmax(1).cpu().numpy()
        np.savez(path, indices=data.indices("val"), probabilities=scores)
    with np.load(path) as file:
        return file["indices"], file["probabilities"], seconds_of(path.parent)


def folder(args: argparse.Namespace, name: str) -> Path:
    """Return the folder of one training."""
    labels = "clean" if args.clean else f"{args.kind}{args.noise:g}"
    run = f"{args.recipe}-width{args.width}-epochs{args.epochs}-seed{args.seed}"
    size = f"-subset{args.subset}" if args.subset else ""
    path: Path = args.folder / f"{labels}-{run}{size}" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


def train(
    args: argparse.Namespace, data: CIFAR10DataModule, folder: Path, *callbacks: Any
) -> tuple[Any, Any]:
    """Train, or resume a training, and return the module and the trainer."""
    import pytorch_lightning as pl
    import torch

    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", ".*`isinstance")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    pl.seed_everything(args.seed, verbose=False)
    recipe = Recipe.preset(args.recipe)
    network = CustomResNet(args.width, **recipe.network_options())
    model = ImageClassifier(network.to(memory_format=torch.channels_last), recipe)
    last = LastCheckpoint(folder, every_seconds=30)
    checkpoint = last.newest()
    device = pick_device()
    trainer = pl.Trainer(
        callbacks=[*callbacks, last],
        max_epochs=args.epochs,
        accelerator="gpu" if device.type in ("cuda", "mps") else "cpu",
        devices=1,
        precision=args.precision,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    if checkpoint is None:  # otherwise the seconds would be those of the last part
        (folder / "seconds.txt").write_text(f"{time.perf_counter() - start:.1f}\n")
    return model, trainer


def seconds_of(folder: Path) -> float | None:
    """Return how long a training took, or None if it was interrupted."""
    path = folder / "seconds.txt"
    return float(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    main()
