"""Test the statistics of comparisons against SciPy, statsmodels, integration and simulation."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import integrate, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import CompareMeans, DescrStatsW

from cifar_resnet.comparison import sequential, statistics

SIMULATIONS = 1000


def binomial(rate: float) -> tuple[float, float]:
    """The counts that 99.9 % of the simulations of an event with this rate have."""
    low, high = stats.binom.interval(0.999, SIMULATIONS, rate)
    return float(low), float(high)


def pairs(
    generator: np.random.Generator, seeds: int, effect: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Accuracies of two arms over seeds, with a common part: correlation 0.5."""
    common, first, second = generator.normal(size=(3, seeds)) * 0.0015 / math.sqrt(2)
    return 0.92 + common + first, 0.92 + effect + common + second


# --- a fixed number of seeds ---------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_intervals_and_p_values_are_those_of_statsmodels(seeds: int, confidence: float) -> None:
    first, second = pairs(np.random.default_rng(seeds), seeds, 0.002)
    differences = DescrStatsW(second - first)
    interval = statistics.paired(second - first, confidence)
    assert interval is not None
    expected = differences.tconfint_mean(1 - confidence)
    assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-9)
    assert interval.mean == pytest.approx(differences.mean)
    assert statistics.p_value(second - first) == pytest.approx(differences.ttest_mean()[1])
    assert statistics.p_value(second - first) == pytest.approx(stats.ttest_rel(first, second)[1])

    unpaired = statistics.welch(first, second, confidence)
    assert unpaired is not None
    means = CompareMeans(DescrStatsW(second), DescrStatsW(first))
    expected = means.tconfint_diff(1 - confidence, usevar="unequal")
    assert (unpaired.low, unpaired.high) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("alpha", [0.05, 0.0125])
@pytest.mark.parametrize("seeds", [2, 3, 5, 20, 100])
def test_power_is_that_of_statsmodels(seeds: int, alpha: float) -> None:
    for effect in (0.0, 0.1, 0.5, 1.0, -1.0):
        expected = TTestPower().power(effect, seeds, alpha)
        if math.isfinite(expected):  # statsmodels has NaN for large effects
            assert statistics.power(effect, seeds, alpha) == pytest.approx(expected, abs=1e-6)
    if seeds > 3:
        smallest = statistics.detectable(0.002, seeds, alpha, 0.8)
        expected = 0.002 * TTestPower().solve_power(nobs=seeds, alpha=alpha, power=0.8)
        assert smallest == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("difference", [0.0005, 0.001, 0.003, -0.001])
def test_the_number_of_seeds_is_the_first_with_enough_power(difference: float) -> None:
    needed = statistics.seeds_needed(0.0015, difference, 0.05, 0.8)
    assert needed is not None
    effect = abs(difference) / 0.0015
    exact = TTestPower().solve_power(effect, alpha=0.05, power=0.8)
    assert needed == math.ceil(exact)
    # what is needed for the smallest detectable difference is what there is
    smallest = statistics.detectable(0.0015, needed, 0.05, 0.8)
    assert smallest is not None
    assert statistics.seeds_needed(0.0015, smallest * 1.0001, 0.05, 0.8) == needed


def test_corrected_p_values_are_those_of_statsmodels() -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 3, 8):
        values = (generator.random(count) ** 3).tolist()
        expected = multipletests(values, method="holm")[1]
        assert statistics.corrected(values) == pytest.approx(expected)
    assert statistics.corrected([]) == []
    assert statistics.corrected([None, 0.01]) == [None, 0.02]


def test_the_correlation_explains_the_gain_of_pairing() -> None:
    first, second = pairs(np.random.default_rng(1), 2000)
    correlation = statistics.correlation(first, second)
    assert correlation == pytest.approx(0.5, abs=0.05)
    variance = (second - first).var(ddof=1)
    expected = first.var(ddof=1) + second.var(ddof=1)
    expected -= 2 * correlation * first.std(ddof=1) * second.std(ddof=1)
    assert variance == pytest.approx(expected)


@pytest.mark.parametrize("seeds", [2, 5, 20])
def test_paired_intervals_contain_the_truth_as_often_as_they_say(seeds: int) -> None:
    generator, misses = np.random.default_rng(seeds), 0
    for _ in range(SIMULATIONS):
        first, second = pairs(generator, seeds, 0.001)
        found = statistics.paired(second - first, 0.95)
        assert found is not None
        misses += not found.low <= 0.001 <= found.high
    low, high = binomial(0.05)
    assert low <= misses <= high


@pytest.mark.parametrize("seeds", [5, 20])
def test_unpaired_intervals_do_so_for_independent_arms(seeds: int) -> None:
    generator, misses = np.random.default_rng(seeds), 0
    for _ in range(SIMULATIONS):
        first = generator.normal(0.92, 0.001, size=seeds)
        second = generator.normal(0.921, 0.003, size=seeds)
        found = statistics.welch(first, second, 0.95)
        assert found is not None
        misses += not found.low <= 0.001 <= found.high
    low, high = binomial(0.05)
    assert low <= misses <= high


def test_power_is_how_often_a_difference_is_found() -> None:
    generator, found = np.random.default_rng(2), 0
    for _ in range(SIMULATIONS):
        p = statistics.p_value(generator.normal(0.8, 1.0, size=10))
        found += p is not None and p <= 0.05
    low, high = binomial(statistics.power(0.8, 10, 0.05))
    assert low <= found <= high


def test_few_and_equal_values() -> None:
    assert statistics.paired([0.1], 0.95) is None
    assert statistics.welch([0.1], [0.2, 0.3], 0.95) is None
    assert statistics.p_value([0.1]) is None
    assert statistics.p_value([0.1, 0.1, 0.1]) is None
    assert statistics.detectable(0.1, 1, 0.05, 0.8) is None
    assert statistics.detectable(0.0, 5, 0.05, 0.8) == 0.0
    assert statistics.seeds_needed(0.1, 0.0, 0.05, 0.8) is None
    assert statistics.seeds_needed(1.0, 1e-5, 0.05, 0.8) is None
    assert statistics.seeds_needed(0.0, 0.1, 0.05, 0.8) == 2
    assert statistics.paired([0.1, 0.1], 0.95) == statistics.Interval(0.1, 0.1, 0.1)
    assert statistics.welch([0.25] * 2, [0.5] * 2, 0.95) == statistics.Interval(0.25, 0.25, 0.25)
    flat, varied = np.full(5, 0.1), np.arange(5.0)
    assert statistics.correlation(flat, varied) is None
    assert statistics.correlation(varied[:2], varied[:2]) is None


# --- a look after every seed ---------------------------------------------------------------------


@pytest.mark.parametrize("prior", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("seeds", [2, 3, 5, 20])
def test_the_closed_form_is_the_integral(seeds: int, prior: float) -> None:
    freedom = seeds - 1
    for t in (0.0, 0.7, -2.5, 6.0):

        def density(effect: float, t: float = t) -> float:
            value = stats.nct.pdf(abs(t), freedom, math.copysign(1, t) * effect * math.sqrt(seeds))
            return float(value * stats.norm.pdf(effect, scale=math.sqrt(prior)))

        scale = math.sqrt(prior)
        mixture = integrate.quad(density, -8 * scale, 8 * scale, limit=500, points=[0.0])[0]
        expected = mixture / stats.t.pdf(t, freedom)
        found = math.exp(sequential.log_e_value(t, seeds, prior))
        assert found == pytest.approx(expected, rel=1e-4)


def test_rounding_errors_are_no_spread() -> None:
    first = np.array([0.9092, 0.9126, 0.9154], dtype=np.float32).astype(float)
    second = np.array([0.9112, 0.9146, 0.9174], dtype=np.float32).astype(float)
    assert (second - first).std() > 0
    assert statistics.deviation(second - first) == 0
    assert statistics.p_value(second - first) is None
    assert statistics.deviation(second - first + np.array([0, 0, 1e-4])) > 0  # one image


def test_the_statistic_of_equal_differences_is_the_limit() -> None:
    almost = sequential.e_value([0.1, 0.1 + 1e-6, 0.1, 0.1])
    assert sequential.e_value([0.1] * 4) == pytest.approx(almost, rel=1e-4)
    assert sequential.e_value([0.1] * 4) == pytest.approx(5 ** (3 / 2))
    assert sequential.e_value([0.0] * 4) == pytest.approx(5 ** (-1 / 2))
    assert sequential.e_value([0.3]) == sequential.e_value([]) == 1
    assert sequential.e_value([1.0] * 10_000) > 1e300  # no overflow


@pytest.mark.parametrize("alpha", [0.05, 0.0125])
@pytest.mark.parametrize("seeds", [6, 10, 40])
def test_the_interval_ends_where_the_e_value_rejects(seeds: int, alpha: float) -> None:
    differences = np.random.default_rng(seeds).normal(0.3, 1.0, size=seeds)
    interval = sequential.anytime(differences, alpha)
    assert interval is not None
    for end in (interval.low, interval.high):
        assert sequential.e_value(differences - end) == pytest.approx(1 / alpha, rel=1e-6)
    assert sequential.e_value(differences - interval.mean) < 1


def test_few_seeds_bound_nothing() -> None:
    values = [0.1, 0.12, 0.11, 0.09, 0.1]
    assert sequential.anytime([], 0.05) is None
    for count in range(1, 5):
        interval = sequential.anytime(values[:count], 0.05)
        assert interval is not None
        assert (interval.low, interval.high) == (-math.inf, math.inf)
        assert sequential.decided_at(values[:count], 0.05) is None
    interval = sequential.anytime(values, 0.05)
    assert interval is not None
    assert 0 < interval.low < 0.104 < interval.high
    assert sequential.decided_at(values, 0.05) == 5


@pytest.mark.parametrize("alpha", [0.05, 0.2])
def test_the_rule_keeps_its_error_rate_with_a_look_after_every_seed(alpha: float) -> None:
    generator = np.random.default_rng(3)
    decided = repeated = missed = 0
    for _ in range(SIMULATIONS):
        differences = generator.normal(0.0, 0.002, size=50)
        decided += sequential.decided_at(differences.tolist(), alpha) is not None
        for seeds in range(2, 51, 4):  # the intervals hold together
            interval = sequential.anytime(differences[:seeds], alpha)
            assert interval is not None
            if not interval.low <= 0 <= interval.high:
                missed += 1
                break
        spreads = [differences[:seeds].std(ddof=1) for seeds in range(2, 51)]
        means = np.cumsum(differences)[1:] / np.arange(2, 51)
        t = np.abs(means) * np.sqrt(np.arange(2, 51)) / spreads
        repeated += bool((t > stats.t.ppf(1 - alpha / 2, np.arange(1, 50))).any())
    assert missed <= decided <= binomial(alpha)[1]
    assert decided > 0  # the bound is not met by never deciding
    assert repeated > binomial(2 * alpha)[1]  # what a t-test after each seed does


def test_a_clear_difference_is_decided_and_a_look_at_more_seeds_keeps_it() -> None:
    differences = np.random.default_rng(4).normal(0.3, 0.15, size=30).tolist()
    first = sequential.decided_at(differences, 0.05)
    assert first is not None
    assert 5 <= first < 15
    assert sequential.decided_at(differences[:first], 0.05) == first
    assert sequential.decided_at(differences[: first - 1], 0.05) is None
    values = sequential.e_values(differences)
    assert values[first - 1] >= 20 > max(values[: first - 1])
    assert values[-1] == pytest.approx(sequential.e_value(differences))
