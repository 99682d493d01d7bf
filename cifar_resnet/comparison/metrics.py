"""Name what a run reports, with units and the direction that is better."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["METRICS", "Metric", "primary_metric"]


@dataclass(frozen=True)
class Metric:
    """A quantity of a run.

    Attributes:
        key: Name in result files.
        label: Name in tables.
        unit: Unit of differences.
        scale: Factor from result files to tables.
        digits: Digits after the point in tables.
        larger_is_better: Whether an increase is an improvement.
    """

    key: str
    label: str
    unit: str = "points"
    scale: float = 100.0
    digits: int = 2
    larger_is_better: bool = True

    def text(self, value: float, *, sign: bool = False) -> str:
        """Format a value, or a difference with its sign."""
        rounded = round(self.scale * value, self.digits) + 0.0  # no negative zero
        return f"{rounded:{'+' if sign else ''}.{self.digits}f}"


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric("acc_six", "accuracy in %, TTA of six views"),
        Metric("acc_mirror", "accuracy in %, TTA of the mirror image"),
        Metric("acc", "accuracy in %, no TTA"),
        Metric("loss", "loss", unit="", scale=1.0, digits=4, larger_is_better=False),
        Metric("ece", "expected calibration error in %", larger_is_better=False),
        Metric("train_acc", "training accuracy in %"),
        Metric(
            "train_seconds", "training time in s", unit="s", scale=1.0, digits=1,
            larger_is_better=False,
        ),
    )
}  # fmt: skip


def primary_metric(lines: Iterable[Mapping[str, Any]]) -> str:
    """Return the accuracy with the most views that all of the runs have."""
    lines = list(lines)
    for key in ("acc_six", "acc_mirror"):
        if lines and all(key in line for line in lines):
            return key
    return "acc"
