"""Compute the differences between arms, with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cifar_resnet import arguments
from cifar_resnet.comparison import sequential, statistics
from cifar_resnet.comparison.lines import Line
from cifar_resnet.comparison.metrics import METRICS

__all__ = ["INSIDE", "PRECISIONS", "Difference", "PairedRuns", "is_finite"]

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "64-true", "bf16-true", "16-true", None)
INSIDE: arguments.Range = (lambda value: 0 < value < 1, "a number between 0 and 1")


@dataclass(frozen=True)
class Difference:
    """The difference of an arm from the first one, in one metric.

    All values are those of the result files: accuracies and calibration errors are fractions.

    Attributes:
        metric: Name of the metric, such as `"acc_six"`.
        arm: Name of the arm.
        reference: Name of the first arm.
        seeds: Number of seeds that both arms have.
        mean: Mean difference over these seeds, arm minus reference. None without a common seed.
        low: Lower end of the interval of the mean difference, from pairs of runs with the same
            seed. None with fewer than two seeds, or if all differences are equal.
        high: Upper end.
        unpaired_low: Lower end of Welch's interval, from all runs of both arms, as if they were
            independent. None if an arm has fewer than two runs.
        unpaired_high: Upper end.
        deviation: Standard deviation of the differences. None with fewer than two seeds.
        correlation: Correlation of the two arms over seeds. Pairing narrows the interval if it is
            positive. None with fewer than three seeds, or if an arm does not vary.
        p_value: Two-sided p-value of no difference, corrected if there are several comparisons.
            None with fewer than two seeds, or if all differences are equal.
        detectable: Smallest true difference that this many seeds detect with the chosen power.
        needed: Number of seeds that detect the observed difference, were it the true one, with the
            chosen power. None if it is 0, or cannot be computed.
    """

    metric: str
    arm: str
    reference: str
    seeds: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None
    unpaired_low: float | None = None
    unpaired_high: float | None = None
    deviation: float | None = None
    correlation: float | None = None
    p_value: float | None = None
    detectable: float | None = None
    needed: int | None = None


@dataclass(frozen=True)
class PairedRuns:
    """The runs of several arms over seeds; see `Comparison`."""

    arms: tuple[str, ...]
    runs: Mapping[str, Mapping[int, Line]] = field(repr=False)
    metric: str
    confidence: float = 0.95
    power: float = 0.8
    detect: float | None = None
    sequential: bool = False
    equal_weights: Mapping[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = self.metrics()
        if self.metric not in known:
            raise ValueError(
                f"metric must be one that the runs of all arms report, {', '.join(known)}, but got "
                f"{self.metric!r}."
            )
        arguments.number("confidence", self.confidence, INSIDE)
        arguments.number("power", self.power, INSIDE)
        if self.power <= 1 - self.confidence:
            raise ValueError(
                f"power must be greater than the error rate of {1 - self.confidence:.3g}, but got "
                f"{self.power!r}."
            )
        if self.detect is not None:
            arguments.number("detect", self.detect, arguments.POSITIVE)

    def metrics(self) -> list[str]:
        """List the metrics that all runs report."""
        lines = [line for runs in self.runs.values() for line in runs.values()]
        return [key for key in METRICS if lines and all(key in line for line in lines)]

    def metrics_in_order(self) -> list[str]:
        """List the metrics, first the one that decides."""
        return [self.metric, *(key for key in self.metrics() if key != self.metric)]

    def values(self, arm: str, metric: str | None = None) -> dict[int, float]:
        """Return the values of an arm in a metric, by seed.

        Raises:
            ValueError: If there is no such arm or metric.
        """
        arguments.choice("arm", arm, self.arms)
        metric = self.metric if metric is None else metric
        arguments.choice("metric", metric, (*self.metrics(),))
        return {seed: float(line[metric]) for seed, line in sorted(self.runs[arm].items())}

    def difference(self, arm: str, metric: str | None = None) -> Difference:
        """Return the difference of an arm from the first one.

        Args:
            arm: Name of the arm.
            metric: Name of the metric. If None, the one that decides.

        Raises:
            TypeError: If an argument is not a string.
            ValueError: If there is no such arm or metric.
        """
        arguments.choice("arm", arm, self.arms[1:])
        return next(each for each in self.differences(metric) if each.arm == arm)

    def differences(self, metric: str | None = None) -> tuple[Difference, ...]:
        """Return the differences of all other arms from the first one, in one metric."""
        metric = self.metric if metric is None else metric
        results = [self._difference(arm, metric) for arm in self.arms[1:]]
        if self.sequential:  # an error rate of alpha / comparisons each
            several = len(results)
            values = [None if r.p_value is None else min(1.0, several * r.p_value) for r in results]
        else:
            values = statistics.corrected([result.p_value for result in results])
        return tuple(
            Difference(**asdict(result) | {"p_value": p})
            for result, p in zip(results, values, strict=True)
        )

    @property
    def alpha(self) -> float:
        """Error rate of each comparison: that of all of them, divided by their number."""
        return (1 - self.confidence) / max(1, len(self.arms) - 1)

    def paired_differences(self, arm: str, metric: str | None = None) -> dict[int, float]:
        """Return the differences of an arm from the first one, by seed."""
        first, other = self.values(self.arms[0], metric), self.values(arm, metric)
        return {seed: other[seed] - first[seed] for seed in first if seed in other}

    def decided_at(self, arm: str) -> int | None:
        """Return after how many seeds the sequential rule decided; None if it has not."""
        return sequential.decided_at([*self.paired_differences(arm).values()], self.alpha)

    def _difference(self, arm: str, metric: str) -> Difference:
        differences = np.array([*self.paired_differences(arm, metric).values()])
        first, other = self.values(self.arms[0], metric), self.values(arm, metric)
        seeds, alpha = len(differences), self.alpha
        unpaired = statistics.welch([*first.values()], [*other.values()], 1 - alpha)
        result: dict[str, Any] = {"metric": metric, "arm": arm, "reference": self.arms[0]}
        if unpaired is not None:
            result |= {"unpaired_low": unpaired.low, "unpaired_high": unpaired.high}
        if not seeds:
            return Difference(seeds=0, **result)
        result["mean"] = float(differences.mean())
        if seeds < 2:
            return Difference(seeds=seeds, **result)
        spread = statistics.deviation(differences)
        if spread == 0:
            return Difference(seeds=seeds, deviation=0.0, **result)
        if self.sequential:
            interval = sequential.anytime(differences, alpha)
            p: float | None = 1 / max(sequential.e_values(differences.tolist()))
        else:
            interval = statistics.paired(differences, 1 - alpha)
            p = statistics.p_value(differences)
        assert interval is not None
        common = [seed for seed in first if seed in other]
        return Difference(
            seeds=seeds,
            low=interval.low,
            high=interval.high,
            deviation=spread,
            correlation=statistics.correlation(
                np.array([first[seed] for seed in common]),
                np.array([other[seed] for seed in common]),
            ),
            p_value=p,
            detectable=statistics.detectable(spread, seeds, alpha, self.power),
            needed=statistics.seeds_needed(spread, result["mean"], alpha, self.power),
            **result,
        )


def is_finite(*values: float | None) -> bool:
    """Return whether all values are finite numbers."""
    return all(value is not None and math.isfinite(value) for value in values)
