"""Fill the generated parts of compare.md, contributions.md and history.md from the raw results.

python benchmarks/comparison_tables.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from machine import RESULTS, ROOT
from scipy.stats import pearsonr

from cifar_resnet import Comparison
from cifar_resnet.comparison.metrics import METRICS
from cifar_resnet.comparison.storing import read_file

PAGES = [ROOT / "docs" / f"{name}.md" for name in ("compare", "contributions", "history")]
PART = re.compile(
    r"(<!-- begin of the generated part: (\w+) -->\n).*?(<!-- end of [^\n]*-->)", re.S
)

NORM_FIRST = "norm_first=True activation=gelu"
RESIDUAL = f"{NORM_FIRST} residual2=True"
# Labels in the tables, and names of what was trained as in `Comparison.from_results`.
FROM_SGD = {
    "`sgd`": "sgd tta=six",
    "peak learning rate 0.8, weight decay 0.001": (
        "sgd learning_rate=0.8 weight_decay=0.001 tta=six"
    ),
    "label smoothing 0.2, weights averaged over steps (decay 0.99)": (
        "sgd label_smoothing=0.2 tta=six ema_decay=0.99"
    ),
    "BatchNorm before GELU": f"sgd tta=six {NORM_FIRST}",
    "BatchNorm before GELU, residual block after `layer2`": f"sgd tta=six {RESIDUAL}",
    "`muon`": "sgd optimizer=muon tta=six",
    "`best`": f"sgd optimizer=muon tta=six {RESIDUAL}",
}
RESIDUAL_BLOCK = {
    "`sgd`, BatchNorm before GELU": f"sgd tta=six {NORM_FIRST}",
    "the same, residual block after `layer2`": f"sgd tta=six {RESIDUAL}",
}
LOGITS = {
    "`sgd`, BatchNorm before GELU, residual block after `layer2`": f"sgd tta=six {RESIDUAL}",
    "the same, label smoothing 0.2, logits times 1/8": (
        f"sgd label_smoothing=0.2 tta=six {RESIDUAL} head_scale=0.125"
    ),
}
FROM_MUON = {
    "`muon`": "sgd optimizer=muon tta=six",
    "label smoothing 0.2": "sgd optimizer=muon label_smoothing=0.2 tta=six",
    "`best`": f"sgd optimizer=muon tta=six {RESIDUAL}",
}
MUON_LOGITS = {"`muon`": "sgd optimizer=muon tta=six", "logits times 1/8": "muon head_scale=0.125"}
FROM_BEST = {
    "`best`": f"sgd optimizer=muon tta=six {RESIDUAL}",
    "peak learning rate of the convolutions 0.1": (
        f"sgd optimizer=muon conv_learning_rate=0.1 tta=six {RESIDUAL}"
    ),
    "peak learning rate of the convolutions 0.03": "best conv_learning_rate=0.03",
}
BEST_LOGITS = {
    "`best`": f"sgd optimizer=muon tta=six {RESIDUAL}",
    "logits times 1/8": "best head_scale=0.125",
}
HALF_WIDTH = {
    "`best`": "best",
    "crop padding 4, cutout 8": "best crop_padding=4 cutout=8",
    "label smoothing 0.2": "best label_smoothing=0.2",
    "logits times 1/8": "best head_scale=0.125",
}
HALF_WIDTH_SHORT = {
    "`best`": "best",
    "images of 24 pixels in the first half, logits times 1/8": (
        "best image_scale=0.75 head_scale=0.125"
    ),
    "the same, first convolution frozen at principal components": (
        "best image_scale=0.75 head_scale=0.125 whitening=True"
    ),
}


def main() -> None:
    for page in PAGES:
        page.write_text(updated(page.read_text()))


def updated(text: str) -> str:
    """Return the text of a page with tables of the present results."""
    return PART.sub(lambda m: f"{m[1]}\n{PARTS[m[2]]()}\n\n{m[3]}", text)


# --- what each change contributes ----------------------------------------------------------------


def tuning(arms: Mapping[str, str], width: int = 16, epochs: int = 24) -> str:
    """Compare trials on held-out images: label -> name of what was trained."""
    found = Comparison.from_results(
        RESULTS / "tuning.jsonl", width=width, epochs=epochs, held_out=True, precision="bf16-mixed"
    )
    runs = {label: found.runs[name] for label, name in arms.items()}
    return table(Comparison._of_runs(runs, None))


def final() -> str:
    """Compare the two recipes with five seeds on the test set."""
    return table(Comparison.from_results(RESULTS / "accuracy.jsonl", "muon", "best"), None)


def table(found: Comparison, metrics: Iterable[str] | None = ("acc_six", "acc")) -> str:
    return found.to_markdown(None if metrics is None else [*metrics])


# --- the guide -----------------------------------------------------------------------------------


def pairing() -> str:
    """Compare the runs that measure whether pairing narrows the intervals."""
    found = Comparison.from_results(RESULTS / "pairing.jsonl")
    metrics = "acc_six", "acc", "loss"
    picture = (
        f"![Accuracies of {len(found.arms)} recipes, with a line for each seed, and the "
        "differences from the first recipe with their intervals](figures/pairing.png)"
    )
    head = ["arm", "metric", "seeds", "correlation", "paired interval", "unpaired interval"]
    rows = [head, ["---", "---", *["---:"] * 4]]
    for metric in metrics:
        for each in found.differences(metric):
            pair = (each.low, each.high), (each.unpaired_low, each.unpaired_high)
            widths = [
                f"± {METRICS[metric].text((high - low) / 2)}"
                for low, high in pair
                if low is not None and high is not None
            ]
            shown = correlation(found, each.arm, metric)
            rows.append([each.arm, METRICS[metric].label, str(each.seeds), shown, *widths])
    widths_table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{table(found, metrics)}\n\n{widths_table}\n\n{picture}"


def correlation(found: Comparison, arm: str, metric: str) -> str:
    """Return the correlation of an arm with the first one, and its 95 % interval by Fisher."""
    first, other = found.values(found.arms[0], metric), found.values(arm, metric)
    estimate = pearsonr(*zip(*((first[seed], other[seed]) for seed in first), strict=True))
    low, high = estimate.confidence_interval()
    return f"{estimate.statistic:.2f} ({low:.2f} to {high:.2f})"


def exclusion() -> str:
    """Compare trainings with and without doubtful labels."""
    return table(Comparison.from_results(RESULTS / "exclusion.jsonl"))


def sequential() -> str:
    """Show the simulations of the sequential rule."""
    head = [
        "true difference, in sd", "decided", "seeds, mean", "seeds, median",
        "fixed number for 80 %", "t-test after every seed",
    ]  # fmt: skip
    rows = [head, ["---:"] * len(head)]
    for line in read_file(RESULTS / "sequential.jsonl"):
        fixed = line["seeds_of_a_fixed_test_80"]
        rows.append(
            [
                f"{line['effect']:g}",
                f"{100 * line['decided']:.1f} %",
                f"{line['mean_seeds']:.1f}",
                f"{line['median_seeds']:g}",
                "" if fixed is None else str(fixed),
                f"{100 * line['t_test_after_every_seed']:.1f} %",
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


PARTS: dict[str, Callable[[], str]] = {
    "from_sgd": lambda: tuning(FROM_SGD),
    "residual_block": lambda: tuning(RESIDUAL_BLOCK),
    "logits": lambda: tuning(LOGITS),
    "from_muon": lambda: tuning(FROM_MUON),
    "muon_logits": lambda: tuning(MUON_LOGITS),
    "from_best": lambda: tuning(FROM_BEST),
    "best_logits": lambda: tuning(BEST_LOGITS),
    "half_width": lambda: tuning(HALF_WIDTH, width=32),
    "half_width_short": lambda: tuning(HALF_WIDTH_SHORT, width=32, epochs=12),
    "final": final,
    "exclusion": exclusion,
    "pairing": pairing,
    "sequential": sequential,
}

if __name__ == "__main__":
    main()
