"""Write a comparison as a table, with what can be concluded from it and how it was computed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from cifar_resnet.comparison import statistics
from cifar_resnet.comparison.differences import Difference, PairedRuns, is_finite
from cifar_resnet.comparison.metrics import METRICS, Metric

__all__ = ["conclusions", "markdown", "notes", "text"]


def markdown(found: PairedRuns, metrics: Sequence[str]) -> str:
    """Return table, conclusions and notes in Markdown."""
    header, *rows = _cells(found, metrics)
    rule = ["---", "---", *["---:"] * (len(header) - 2)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))
    lines = "\n".join(f"- {line}" for line in (*conclusions(found), *notes(found)))
    return f"{table}\n\n{lines}"


def text(found: PairedRuns, metrics: Sequence[str]) -> str:
    """Return table, conclusions and notes in aligned columns."""
    cells = [*_cells(found, metrics)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = ["<", "<", *[">"] * (len(widths) - 2)]
    rows = (
        "  ".join(
            f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)
        ).rstrip()
        for row in cells
    )
    return "\n".join([*rows, "", *conclusions(found), "", *notes(found)])


def conclusions(found: PairedRuns) -> Iterator[str]:
    """Yield a sentence for each comparison: what its runs show in the metric that decides."""
    metric = METRICS[found.metric]
    for each in found.differences():
        yield _conclusion(found, metric, each)
        if found.detect is not None and each.deviation is not None:
            target = found.detect / metric.scale
            needed = statistics.seeds_needed(each.deviation, target, found.alpha, found.power)
            more = max(0, (needed or 0) - each.seeds)
            size = f"{found.detect:g} {metric.unit}".strip()
            count = "more than a million" if needed is None else f"{needed:,}"
            yield (
                f"Detecting a difference of {size} between {each.reference} and {each.arm} takes "
                f"about {count} seeds, {more:,} more than there are."
            )


def _conclusion(found: PairedRuns, metric: Metric, each: Difference) -> str:
    name = metric.label.partition(" in ")[0]
    kind = metric.label.partition(", ")[2]
    of = f"{name} ({kind})" if kind else name
    pair = f"{each.arm} and {each.reference}"
    if each.mean is None:
        return (
            f"{pair} have no seed in common, so their runs cannot be paired. The unpaired interval "
            "is all there is."
        )
    size = f"{metric.text(each.mean, sign=True)} {metric.unit}".strip()
    if each.seeds < 2:
        return (
            f"{pair} have one seed in common: {size} in {of}. Nothing can be concluded: one "
            "seed does not show how much the result changes from seed to seed. Two seeds give an "
            "interval, five a useful one."
        )
    assert each.deviation is not None
    if each.deviation == 0:
        return (
            f"{pair} differ by the same {size} in {of} with all {each.seeds} seeds, so there is no "
            "spread to compute an interval from. An accuracy is a number of images, and few seeds "
            "may agree by chance: add seeds."
        )
    interval = _interval(metric, each.low, each.high)
    if found.sequential:
        return _sequential(found, each, f"{size} in {of}, {interval}")
    alpha = 1 - found.confidence
    evidence = f"{size} in {of}, {interval}, {each.seeds} seeds"
    if each.p_value is not None and each.p_value <= alpha:
        return f"{_direction(metric, each)}: {evidence}."
    smallest = metric.text(each.detectable or 0.0)
    return (
        f"No difference between {pair} was detected: {evidence}. This does not show that they are "
        f"equal: differences below {smallest} {metric.unit} would be missed more often than "
        f"in {100 * (1 - found.power):g} % of all comparisons."
    ).replace("  ", " ")


def _sequential(found: PairedRuns, each: Difference, evidence: str) -> str:
    decided = found.decided_at(each.arm)
    if decided is None:
        return (
            f"Not decided after {each.seeds} seeds whether {each.arm} and {each.reference} differ: "
            f"{evidence}."
        )
    metric = METRICS[found.metric]
    return f"{_direction(metric, each)}, decided after {decided} seeds: {evidence}."


def _direction(metric: Metric, each: Difference) -> str:
    assert each.mean is not None
    better = (each.mean > 0) == metric.larger_is_better
    return f"{each.arm} is {'better' if better else 'worse'} than {each.reference}"


def notes(found: PairedRuns) -> Iterator[str]:
    """Yield how the numbers were computed, and from what."""
    several, percent = len(found.arms) - 1, f"{100 * found.confidence:g} %"
    yield _evaluated(found)
    if not several:
        return
    if found.sequential:
        yield (
            f"Intervals of {percent} and p-values from e-values, which are valid whenever the runs "
            "stop (Lai 1976; Wang and Ramdas 2024): a true hypothesis of no difference is "
            f"rejected in at most {100 * (1 - found.confidence):g} % of all comparisons."
        )
    else:
        yield (
            f"Intervals of {percent}: Student's t for pairs of runs with the same seed, Welch's t "
            "without pairs. They are valid if the number of seeds was chosen before the first run."
        )
    if several > 1:
        method = "Bonferroni" if found.sequential else "Holm"
        yield (
            f"{several} comparisons with {found.arms[0]}: simultaneous intervals by Bonferroni, "
            f"p-values corrected by {method}, for each metric by itself."
        )
    yield (
        f"Detectable: the smallest true difference that is found with a power of "
        f"{100 * found.power:g} %. Needed: the number of seeds with that power, were the observed "
        "difference the true one."
    )
    correlations = [
        f"{each.correlation:.2f} for {each.arm}"
        for each in found.differences()
        if each.correlation is not None
    ]
    if correlations:
        yield (
            f"Correlation with {found.arms[0]} over seeds, by which pairing narrows an interval if "
            f"it is positive: {'; '.join(correlations)}."
        )
    yield _weights(found)
    yield from _mixed(found)


def _evaluated(found: PairedRuns) -> str:
    line = next(line for runs in found.runs.values() for line in runs.values())
    images = f"{line.get('evaluated_images', 5000):,}"
    where = f"{images} held-out training images" if line["held_out"] else "the test set"
    epochs = "1 epoch" if line["epochs"] == 1 else f"{line['epochs']} epochs"
    width = "" if line.get("width") is None else f", width {line['width']}"
    widths = {line.get("width") for runs in found.runs.values() for line in runs.values()}
    return (
        f"Evaluated on {where}; {epochs}{width if len(widths) == 1 else ''}, {line['precision']}."
    )


def _weights(found: PairedRuns) -> str:
    fractions = [
        f"{'not known' if fraction is None else format(100 * fraction, '.1f') + ' %'} for {arm}"
        for arm in found.arms[1:]
        for fraction in [found.equal_weights.get(arm)]
    ]
    return (
        f"Random initial weights that equal those of {found.arms[0]} with the same seed: "
        f"{'; '.join(fractions)}."
    )


def _mixed(found: PairedRuns) -> Iterator[str]:
    lines = [line for runs in found.runs.values() for line in runs.values()]
    devices = {str(line.get("hardware", {}).get("device")) for line in lines}
    threads = {line.get("hardware", {}).get("threads") for line in lines}
    if len(devices) > 1 or len(threads) > 1:
        yield "The runs used different hardware or numbers of threads: do not compare their times."
    versions = {str(line.get("versions", {}).get("torch")) for line in lines}
    if len(versions) > 1:
        yield f"The runs used different versions of PyTorch: {', '.join(sorted(versions))}."


def _cells(found: PairedRuns, metrics: Sequence[str]) -> Iterator[list[str]]:
    """Yield the rows of the table: in each metric the first arm, and the differences from it."""
    level = f"{100 * found.confidence:g} % interval"
    p = "p" if len(found.arms) <= 2 else f"p ({'Bonferroni' if found.sequential else 'Holm'})"
    yield [
        "metric", "arm", "seeds", "mean ± sd", "difference", level, "unpaired", p, "detectable",
        "needed",
    ]  # fmt: skip
    for key in metrics:
        metric = METRICS[key]
        yield [metric.label, *_arm(found, metric, found.arms[0]), *[""] * 6]  # the reference
        for each in found.differences(key):
            yield [
                "",
                *_arm(found, metric, each.arm),
                "" if each.mean is None else metric.text(each.mean, sign=True),
                _interval(metric, each.low, each.high),
                _interval(metric, each.unpaired_low, each.unpaired_high),
                "" if each.p_value is None else _p(each.p_value),
                "" if each.detectable is None else metric.text(each.detectable),
                "" if each.needed is None else f"{each.needed:,}",
            ]


def _arm(found: PairedRuns, metric: Metric, arm: str) -> list[str]:
    values = [*found.values(arm, metric.key).values()]
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return [arm, "1", metric.text(mean)]
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return [arm, str(len(values)), f"{metric.text(mean)} ± {metric.text(math.sqrt(variance))}"]


def _interval(metric: Metric, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "none"
    if not is_finite(low, high):
        return "unbounded"
    return f"{metric.text(low, sign=True)} to {metric.text(high, sign=True)}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
