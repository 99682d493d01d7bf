"""Test and estimate proportions: one proportion, and the difference of two paired ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

__all__ = ["mcnemar_test", "tango_interval", "wilson_interval"]

_CONFIDENCE = 0.95
_HALVINGS = 60  # of an interval of length 1, down to less than the rounding of float64


def wilson_interval(
    successes: int, trials: int, confidence: float = _CONFIDENCE
) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson, 1927)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    proportion = successes / trials
    center = proportion + z**2 / (2 * trials)
    half = z * (proportion * (1 - proportion) / trials + z**2 / (4 * trials**2)) ** 0.5
    scale = 1 + z**2 / trials
    return max((center - half) / scale, 0.0), min((center + half) / scale, 1.0)


def mcnemar_test(first_only: int, second_only: int) -> float:
    """Return the p-value of the exact, two-sided test of McNemar.

    If two classifiers are equally accurate, an image that only one of them gets right is as likely
    to be one of the first as of the second, so that the counts are binomial with probability 1/2.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12 (1947), with the binomial distribution in place of its normal
    approximation.

    Args:
        first_only: Number of images that only the first classifier gets right.
        second_only: Number of images that only the second one gets right.
    """
    from scipy.special import bdtr  # the distribution function of the binomial distribution

    return min(1.0, 2 * float(bdtr(min(first_only, second_only), first_only + second_only, 0.5)))


def tango_interval(
    first_only: int, second_only: int, trials: int, confidence: float = _CONFIDENCE
) -> tuple[float, float]:
    """Return the score interval of the difference of two paired proportions.

    It contains the differences that a score test does not reject. Each test estimates the
    probability of `second_only` under its difference by maximum likelihood.

    Source: Tango, "Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design", Statistics in Medicine 17 (1998).

    Args:
        first_only: Number of pairs of which only the first is a success.
        second_only: Number of pairs of which only the second is a success.
        trials: Number of pairs.
        confidence: Probability with which the interval contains the difference.

    Returns:
        Lower and upper end, in [-1, 1].
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    estimate = (first_only - second_only) / trials

    def rejects(difference: float) -> bool:
        excess = first_only - second_only - trials * difference
        a = 2 * trials
        b = (2 * trials - first_only + second_only) * difference - first_only - second_only
        c = -second_only * difference * (1 - difference)
        probability = (math.sqrt(b * b - 4 * a * c) - b) / (2 * a)
        variance = trials * (2 * probability + difference * (1 - difference))
        return excess * excess > z * z * max(variance, 0.0)

    return _boundary(rejects, estimate, -1.0), _boundary(rejects, estimate, 1.0)


def _boundary(rejects: Callable[[float], bool], inside: float, outside: float) -> float:
    """Return where a test begins to reject, between a value that it accepts and an extreme one."""
    if not rejects(outside):
        return outside
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (inside, middle) if rejects(middle) else (middle, outside)
    return inside
