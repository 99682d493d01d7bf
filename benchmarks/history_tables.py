"""Write the tables of docs/history.md, from the raw results.

    python benchmarks/history_tables.py

They are those of label_issues.jsonl and history_cost.jsonl in benchmarks/results. The figure of the
most doubtful labels is part of the page if it is drawn.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from generated import filled
from machine import RESULTS, ROOT

from cifar_resnet.comparison.statistics import paired

Row = Mapping[str, Any]
PAGE = ROOT / "docs" / "history.md"
FIGURE = ROOT / "docs" / "figures" / "doubtful_labels.png"
SETTING = ("recipe", "width", "epochs", "subset")
MEASURES = {"auroc": "Area under the ROC curve", "precision_at_k": "Precision at k"}


def main() -> None:
    results = (read(RESULTS / name) for name in ("label_issues.jsonl", "history_cost.jsonl"))
    PAGE.write_text(updated(PAGE.read_text(), *results, figure=FIGURE.exists()))


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def updated(text: str, issues: Iterable[Row], costs: Iterable[Row], *, figure: bool) -> str:
    """Return the text of the page with tables of these results."""
    parts = [*_ranking(list(issues)), *_picture(figure), *_costs(list(costs))]
    return filled(text, parts)


def _table(head: Iterable[str], lines: Iterable[Iterable[Any]], names: int = 1) -> str:
    head = list(head)
    rule = ["---"] * names + ["---:"] * (len(head) - names)
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in (head, rule, *lines))


def _ranking(rows: list[Row]) -> list[str]:
    """Return the tables of label issues: a row for each score, a column for each kind of noise."""
    parts = ["### Measured"] if rows else []
    for setting in dict.fromkeys(tuple(row[name] for name in SETTING) for row in rows):
        chosen = [row for row in rows if tuple(row[name] for name in SETTING) == setting]
        noises = sorted({(row["kind"], row["noise"]) for row in chosen}, reverse=True)
        noises.sort(key=lambda noise: (noise[0] != "symmetric", noise[1]))
        scores = dict.fromkeys((row["method"], name) for row in chosen for name in row["scores"])
        head = ["score", *(f"{kind} {noise:.0%}" for kind, noise in noises)]
        parts.append(_described(chosen))
        for measure, title in MEASURES.items():
            lines = [
                [_named(method, name), *(_mean(chosen, method, name, measure, n) for n in noises)]
                for method, name in scores
            ]
            parts.append(f"{title}:\n\n{_table(head, lines)}")
    return parts


def _described(rows: list[Row]) -> str:
    row = rows[0]
    seeds = ", ".join(map(str, sorted({each["seed"] for each in rows})))
    text = (
        f"Recipe `{row['recipe']}`, width {row['width']}, {row['epochs']} epochs, seed {seeds}, "
        f"{', '.join(sorted({each['hardware']['device'] for each in rows}))}."
    )
    folds = sorted({each["folds"] for each in rows if "folds" in each})
    versions = sorted({each["cleanlab"] for each in rows if "cleanlab" in each})
    if folds:
        text += (
            f" Confident learning of cleanlab {', '.join(versions)} needs "
            f"{', '.join(map(str, folds))} more trainings, whose probabilities of the held-out "
            "images it ranks."
        )
    return text


def _named(method: str, name: str) -> str:
    return f"`{name}`" if method == "history" else f"{method}: {name.replace('_', ' ')}"


def _mean(rows: list[Row], method: str, name: str, measure: str, noise: tuple[str, float]) -> str:
    values = [
        row["scores"][name][measure]
        for row in rows
        if row["method"] == method and (row["kind"], row["noise"]) == noise
    ]
    return f"{statistics.mean(values):.3f}" if values else ""


def _picture(figure: bool) -> list[str]:
    if not figure:
        return []
    return [
        "The most doubtful labels of the 50,000 training images, without label noise "
        "(`benchmarks/label_issues.py --clean`, `benchmarks/results/doubtful_labels.csv`):\n\n"
        "![Fifty training images, each with its index, the given label and the label that the "
        "network suggests](figures/doubtful_labels.png)"
    ]


def _costs(rows: list[Row]) -> list[str]:
    """Return the table of the times: a row for each machine, width and allocator."""
    if not rows:
        return []
    settings = [(row["hardware"]["device"], row["width"], row["allocator"]) for row in rows]
    lines = []
    for setting in dict.fromkeys(settings):
        chosen = [row for row, own in zip(rows, settings, strict=True) if own == setting]
        ratios = [ratio for row in chosen for ratio in row["seconds_ratios"]]
        share = [
            row["own_seconds"] / statistics.median(row["seconds"])
            for row in chosen
            if "own_seconds" in row
        ]
        lines.append(
            [
                *setting,
                len(ratios),
                _with_interval(ratios),
                f"{max(share):.2%}".replace("%", " %") if share else "",
                f"{chosen[-1]['file']['bytes'] / 1e6:.1f}",
            ]
        )
    head = [
        "hardware", "width", "allocator", "pairs", "time with / without", "in the callback",
        "file in MB",
    ]  # fmt: skip
    text = (
        "## What it costs\n\nEpochs with and without `TrainingHistory`, in pairs within one "
        "training (`benchmarks/history_cost.py`): the mean of the ratios with its 95 % interval, "
        "and the share of an epoch that is spent in the callback. The file is that of 50,000 "
        "images and 24 epochs."
    )
    return [f"{text}\n\n{_table(head, lines, 3)}"]


def _with_interval(ratios: list[float]) -> str:
    found = paired(ratios, 0.95)
    assert found is not None
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


if __name__ == "__main__":
    main()
