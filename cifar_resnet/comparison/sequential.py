"""A test that may look at the result after every seed: e-values of the t-statistic.

Under the null hypothesis, that the mean difference is 0, the e-value is a nonnegative martingale
that starts at 1, in the sequence of t-statistics. By Ville's inequality, the probability that it
ever reaches `1 / alpha` is at most `alpha`, whenever and however often one looks.

- T. L. Lai, "On confidence sequences" (Annals of Statistics, 1976)
- M. Gönen, W. O. Johnson, Y. Lu and P. H. Westfall, "The Bayesian two-sample t test" (The American
  Statistician, 2005): the closed form
- M. F. Pérez-Ortiz, T. Lardy, R. de Heide and P. Grünwald, "E-statistics, group invariance and
  anytime-valid testing" (arXiv 2208.07610)
- H. Wang and A. Ramdas, "Anytime-valid t-tests and confidence sequences for Gaussian means with
  unknown variance" (arXiv 2310.03722)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cifar_resnet.comparison.statistics import Interval, deviation

__all__ = ["PRIOR", "anytime", "decided_at", "e_value", "e_values", "log_e_value"]

PRIOR = 1.0  # variance of the effect, in variances of the differences


def log_e_value(t: float, seeds: int, prior: float = PRIOR) -> float:
    """Compute the natural logarithm of the e-value of a t-statistic.

    It is the ratio of the likelihoods of `t` under an effect with the distribution N(0, prior), in
    standard deviations, and under no effect, with the right Haar prior on the standard deviation:

        e = sqrt(1 / (1 + n g)) ((1 + t^2 / v) / (1 + t^2 / (v (1 + n g))))^((v + 1) / 2)

    where n is the number of seeds, g the prior and v = n - 1.

    Args:
        t: The statistic; it may be infinite, for differences that are all the same.
        seeds: Number of differences. With one, the e-value is 1.
        prior: Variance of the effect.
    """
    if seeds < 2:
        return 0.0
    ratio, freedom = 1 + seeds * prior, seeds - 1
    if math.isinf(t):
        return (seeds - 1) / 2 * math.log(ratio)
    square = t * t / freedom
    return -math.log(ratio) / 2 + seeds / 2 * (math.log1p(square) - math.log1p(square / ratio))


def e_value(differences: Sequence[float] | NDArray[np.float64], prior: float = PRIOR) -> float:
    """Compute the e-value of paired differences: how much more likely an effect has become.

    Examples:
        >>> round(e_value([0.3, 0.1, 0.4, 0.2, 0.3, 0.2]), 1)
        23.5
    """
    return math.exp(min(log_e_value(_statistic(differences), len(differences), prior), 700.0))


def e_values(differences: Sequence[float], prior: float = PRIOR) -> list[float]:
    """Compute the e-values after one, two, ... differences."""
    return [e_value(differences[: count + 1], prior) for count in range(len(differences))]


def decided_at(differences: Sequence[float], alpha: float, prior: float = PRIOR) -> int | None:
    """Return the first number of differences with an e-value of at least `1 / alpha`, or None."""
    reached = (
        count
        for count, value in enumerate(e_values(differences, prior), start=1)
        if value >= 1 / alpha
    )
    return next(reached, None)


def anytime(
    differences: Sequence[float] | NDArray[np.float64], alpha: float, prior: float = PRIOR
) -> Interval | None:
    """Compute the interval of the mean difference that is valid after every seed at once.

    It contains the values that the e-value does not reject: with a probability of at least
    `1 - alpha`, all intervals of a sequence contain the true mean. With the default, it is finite
    from five seeds on for `alpha=0.05`.

    Returns:
        The interval, or None without differences.
    """
    values = np.asarray(differences, dtype=np.float64)
    seeds = len(values)
    if not seeds:
        return None
    mean, ratio = float(values.mean()), 1 + seeds * prior
    # e < 1 / alpha if (1 + x) / (1 + x / ratio) < bound, for x = t^2 / (n - 1)
    bound = math.exp((2 * math.log(1 / alpha) + math.log(ratio)) / seeds)
    if bound >= ratio:
        return Interval(mean, -math.inf, math.inf)
    largest = math.sqrt((bound - 1) / (1 - bound / ratio) * (seeds - 1))
    half = largest * deviation(values) / math.sqrt(seeds)
    return Interval(mean, mean - half, mean + half)


def _statistic(differences: Sequence[float] | NDArray[np.float64]) -> float:
    values = np.asarray(differences, dtype=np.float64)
    if len(values) < 2:
        return 0.0
    mean, spread = float(values.mean()), deviation(values)
    if spread == 0:
        return math.copysign(math.inf, mean) if mean else 0.0
    return mean * math.sqrt(len(values)) / spread
