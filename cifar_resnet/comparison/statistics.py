"""Intervals, power and corrections for the differences between two arms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Interval",
    "corrected",
    "correlation",
    "detectable",
    "deviation",
    "p_value",
    "paired",
    "power",
    "seeds_needed",
    "welch",
]

Floats = NDArray[np.float64]

_ROUNDING = 5e-7
_MANY = 1_000_000  # seeds, beyond which the answer is "none"


@dataclass(frozen=True)
class Interval:
    """An estimate with a confidence interval.

    Attributes:
        mean: The estimate.
        low: Lower end; minus infinity if the data do not bound it.
        high: Upper end.
    """

    mean: float
    low: float
    high: float


def paired(differences: Sequence[float] | Floats, confidence: float) -> Interval | None:
    """Compute Student's t interval of the mean of paired differences (Student, 1908).

    It assumes that the differences are independent draws of a normal distribution.

    Returns:
        The interval. If there are fewer than two differences, None.
    """
    from scipy import stats

    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return None
    quantile = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    half = float(quantile) * deviation(values) / math.sqrt(len(values))
    mean = float(values.mean())
    return Interval(mean, mean - half, mean + half)


def welch(
    reference: Sequence[float] | Floats, other: Sequence[float] | Floats, confidence: float
) -> Interval | None:
    """Compute Welch's t interval of the difference of two means, other minus reference.

    B. L. Welch, "The generalization of 'Student's' problem when several different population
    variances are involved" (Biometrika, 1947). It assumes independent runs.

    Returns:
        The interval, or None if one of the arms has fewer than two runs.
    """
    from scipy import stats

    first, second = (np.asarray(each, dtype=np.float64) for each in (reference, other))
    if min(len(first), len(second)) < 2:
        return None
    parts = [deviation(each) ** 2 / len(each) for each in (first, second)]
    mean, variance = float(second.mean() - first.mean()), sum(parts)
    if variance == 0:
        return Interval(mean, mean, mean)
    freedom = variance**2 / sum(
        part**2 / (len(each) - 1) for part, each in zip(parts, (first, second), strict=True)
    )
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def p_value(differences: Sequence[float] | Floats) -> float | None:
    """Compute the two-sided p-value of Student's paired t-test of a mean difference of 0.

    If there are fewer than two differences, or all of them are equal, it is None.
    """
    from scipy import stats

    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2 or (spread := deviation(values)) == 0:
        return None
    t = float(values.mean()) * math.sqrt(len(values)) / spread
    return float(2 * stats.t.sf(abs(t), len(values) - 1))


def deviation(values: Floats) -> float:
    """Compute the standard deviation with n - 1.

    It is exactly 0 if the values differ by no more than the rounding errors of float32 accuracies,
    from which a test would conclude too much.
    """
    if float(np.ptp(values)) <= _ROUNDING * max(1.0, float(np.abs(values).max())):
        return 0.0
    return float(values.std(ddof=1))


def correlation(reference: Floats, other: Floats) -> float | None:
    """Compute the correlation of two arms over seeds, by which pairing reduces the variance.

    With equal variances, the variance of the differences is `2 (1 - correlation)` times that of
    one arm. If there are fewer than three seeds, or an arm does not vary, it is None.
    """
    if len(reference) < 3 or not deviation(reference) or not deviation(other):
        return None
    return float(np.corrcoef(reference, other)[0, 1])


def power(effect: float, seeds: int, alpha: float) -> float:
    """Compute the power of the two-sided paired t-test: the tails of the noncentral t distribution.

    J. Cohen, "Statistical Power Analysis for the Behavioral Sciences" (1988).

    Args:
        effect: True mean difference in standard deviations of the differences.
        seeds: Number of pairs, at least 2.
        alpha: Error rate of the test.

    Examples:
        >>> round(power(0.5, 34, 0.05), 2)
        0.81
    """
    from scipy import special, stats

    freedom, shift = seeds - 1, abs(effect) * math.sqrt(seeds)
    critical = float(stats.t.ppf(1 - alpha / 2, freedom))
    # T = (Z + shift) / S with S^2 = V / freedom, integrated over the quantiles of S:
    # scipy.stats.nct loses its digits for large shifts and few seeds.
    nodes, weights = _quadrature()
    scale = np.sqrt(stats.chi2.ppf((nodes + 1) / 2, freedom) / freedom)
    beyond = special.ndtr(shift - critical * scale) + special.ndtr(-shift - critical * scale)
    return float((weights * beyond).sum() / 2)


@cache
def _quadrature() -> tuple[Floats, Floats]:
    """Return the nodes and weights of Gauss and Legendre in [-1, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(400)
    return nodes, weights


def detectable(spread: float, seeds: int, alpha: float, target: float) -> float | None:
    """Compute the smallest true difference that is detected with a given power.

    Args:
        spread: Standard deviation of the paired differences.
        seeds: Number of pairs.
        alpha: Error rate of the test.
        target: Power, such as 0.8.

    Returns:
        The difference in the unit of `spread`. If there are fewer than two pairs, None.
    """
    from scipy.optimize import brentq

    if seeds < 2:
        return None
    if spread == 0:
        return 0.0
    high = 1.0
    while power(high, seeds, alpha) < target:
        high *= 2
    root = brentq(lambda effect: power(effect, seeds, alpha) - target, 0.0, high, xtol=1e-9)
    return spread * float(root)


def seeds_needed(spread: float, difference: float, alpha: float, target: float) -> int | None:
    """Compute the number of pairs with which a true difference is detected with a given power.

    None if the difference is 0, or a million pairs are not enough.
    """
    if difference == 0:
        return None
    effect = abs(difference) / spread if spread else math.inf
    low, high = 1, 2  # too few, enough
    while power(effect, high, alpha) < target:
        low, high = high, 2 * high
        if low > _MANY:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect, middle, alpha) >= target else (middle, high)
    return high


def corrected(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct the p-values of several comparisons by the step-down method.

    S. Holm, "A simple sequentially rejective multiple test procedure" (Scandinavian Journal of
    Statistics, 1979). A comparison without a p-value counts as one with p = 1.

    Examples:
        >>> corrected([0.01, 0.04, None])
        [0.03, 0.08, None]
    """
    ranked = sorted((1.0 if p is None else p, index) for index, p in enumerate(p_values))
    result: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(ranked):
        largest = max(largest, min(1.0, (len(ranked) - rank) * p))
        result[index] = None if p_values[index] is None else largest
    return result
