"""Intervals of positive numbers: equivariance, coverage on skewed populations, and when none is shown."""

import math

import numpy as np
import pytest
from scipy import stats

from fastscape.numerics.estimate import Estimate
from fastscape.numerics.positive import METHOD, quotient, rounded, scaled, shown_ends, skewed_mean, useful, within
from fastscape.probes.temperature.gradient_noise import noise_trace

RUNS = 2000


def covered(found, truth):
    ends = [shown_ends(estimate) for estimate in found]
    shown = [low <= truth <= high for low, high in ends if not math.isnan(low)]
    return np.mean(shown), len(shown) / len(found)


def draws(seed, n, degrees=1):
    return np.random.default_rng(seed).chisquare(degrees, (RUNS, n))


@pytest.mark.parametrize("factor", [1e-12, 0.3, 7.0, 1e9])
def test_the_interval_of_a_mean_scales_with_the_values(factor):
    values = np.random.default_rng(0).chisquare(2, 9)
    plain, times = skewed_mean(values), skewed_mean(factor * values)
    assert times.interval == pytest.approx([factor * end for end in plain.interval], rel=1e-12)
    assert (times.value, times.stderr) == pytest.approx((factor * plain.value, factor * plain.stderr), rel=1e-12)
    assert useful(times).withheld == useful(plain).withheld


@pytest.mark.parametrize("n", [4, 8, 16])
def test_means_of_few_squares_are_covered_where_students_t_misses_a_quarter(n):
    samples = draws(n, n)
    assert covered([skewed_mean(row) for row in samples], 1.0)[0] >= 0.915
    half = stats.t.ppf(0.975, n - 1) * samples.std(axis=1, ddof=1) / math.sqrt(n)
    assert np.mean(np.abs(samples.mean(axis=1) - 1) <= half) < 0.9


@pytest.mark.parametrize("sigma", [0.5, 1.0])
@pytest.mark.parametrize("n", [4, 8, 32])
def test_means_of_log_normal_values_are_covered(n, sigma):
    rng = np.random.default_rng(n)
    found = [skewed_mean(np.exp(sigma * rng.standard_normal(n))) for _ in range(RUNS)]
    assert covered(found, math.exp(sigma**2 / 2))[0] >= 0.91


def test_the_arms_are_those_of_the_definition():
    values = np.array([1.0, 2.0, 4.0, 9.0, 0.5])
    mean, cv = values.mean(), values.std(ddof=1) / values.mean()
    step = stats.t.ppf(0.975, 4) * cv / math.sqrt(5)
    found = skewed_mean(values, exact=3.0)
    assert found.value == pytest.approx(3 + mean)
    expected = 3 + mean * math.exp(-step), 3 + mean * math.exp(step * math.sqrt(1 + 2 * cv**2))
    assert found.interval == pytest.approx(expected, rel=1e-12)
    assert (found.n, found.method) == (5, METHOD)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fewer_than_four_values_have_no_interval_and_say_how_many_would(count):
    found = skewed_mean(np.arange(1.0, count + 1))
    assert all(map(math.isnan, found.interval))
    assert found.withheld == f"{count} value{'' if count == 1 else 's'}; at least 4"


def test_values_that_are_all_zero_have_a_mean_of_zero():
    assert skewed_mean(np.zeros(6)).interval == (0.0, 0.0)
    assert useful(skewed_mean(np.zeros(6))).withheld == ""


def test_signed_values_keep_students_t_and_are_never_withheld():
    values = np.array([-1.0, 30.0, 0.5, 2.0])
    found = useful(skewed_mean(values))
    assert found.interval == pytest.approx(stats.t.interval(0.95, 3, loc=values.mean(), scale=stats.sem(values)))
    assert found.withheld == ""


def test_values_that_are_not_finite_go_through():
    assert math.isnan(skewed_mean(np.array([1.0, np.nan, 2.0, 3.0])).value)
    assert skewed_mean(np.array([1.0, np.inf, 2.0, 3.0])).value == math.inf


def test_a_whole_population_has_no_error():
    assert skewed_mean(np.array([1.0, 2.0, 3.0, 9.0]), unsampled=0.0).interval == (3.75, 3.75)


def test_the_number_of_values_asked_for_is_that_of_a_factor_of_three():
    """(1.96 cv / ln 3)^2 (1 + 2 cv^2) puts the upper arm at 3 for that many values."""
    values = np.random.default_rng(1).chisquare(1, 9)
    cv = values.std(ddof=1) / values.mean()
    found = useful(skewed_mean(values), "probe")
    enough = (1.96 * cv / math.log(3)) ** 2 * (1 + 2 * cv**2)
    assert found.withheld == f"9 probes; about {rounded(enough)} for a factor of 3"
    assert math.exp(1.96 * cv / math.sqrt(enough) * math.sqrt(1 + 2 * cv**2)) == pytest.approx(3)
    assert found.interval == skewed_mean(values).interval, "the numbers stay for comparisons with thresholds"
    assert all(map(math.isnan, shown_ends(found)))


@pytest.mark.parametrize(
    ("low", "high", "shown"), [(1.0, 9.9, True), (1.0, 10.1, False), (1e-9, 9.9e-9, True), (1e5, 2e6, False)]
)
def test_an_interval_is_shown_up_to_a_factor_of_ten(low, high, shown):
    found = useful(Estimate(2 * low, low, (low, high), 12))
    assert (found.withheld == "") == shown


def test_means_of_fewer_than_eight_are_not_shown_because_the_narrow_ones_are_the_wrong_ones():
    narrow = [estimate for estimate in map(skewed_mean, draws(3, 4)) if estimate.interval[1] < 10 * estimate.interval[0]]
    assert 50 < len(narrow) < 0.2 * RUNS
    assert np.mean([estimate.interval[0] <= 1 <= estimate.interval[1] for estimate in narrow]) < 0.85
    assert useful(skewed_mean(np.array([1.0, 1.1, 1.2, 1.3])), "line").withheld == "4 lines; at least 8"
    shares = [covered([useful(skewed_mean(row)) for row in draws(5, n, 2)], 2.0) for n in (8, 16)]
    assert min(share for share, _ in shares) >= 0.9
    assert min(reported for _, reported in shares) >= 0.6


def test_bounds_and_zeros_are_kept():
    for estimate in (
        Estimate(5.0, 1.0, (2.0, math.inf), 9),
        Estimate(0.5, 0.3, (0.0, 1.1), 9),
        Estimate(-2.0, 1.0, (-4.0, 1.0), 9),
    ):
        assert useful(estimate) is estimate


def test_an_interval_wider_than_what_the_number_can_differ_by_asks_for_more():
    found = within(Estimate(0.5, 0.2, (0.0, 1.05), 64), 0.8, "sample")
    assert found.withheld == f"64 samples; about {rounded(64 * 2.2**2)} for a factor of 3"
    assert within(Estimate(0.5, 0.2, (0.3, 0.7), 64), 0.8).withheld == ""
    assert within(Estimate(1e-4, 0.2, (0.0, 1.0), 64), 0.8, "sample").withheld == "64 samples cannot tell it from 0"
    assert within(Estimate(0.0, 0.0, (0.0, 1.0), 64), 0.5).withheld == ""


def test_scaling_keeps_what_is_said_of_an_interval():
    found = scaled(Estimate(2.0, 0.5, (1.0, 4.0), 9, "a method", "a reason"), 3.0)
    assert found == Estimate(6.0, 1.5, (3.0, 12.0), 9, "a method", "a reason")


def test_the_quotient_of_exact_numbers_is_exact_and_of_one_exact_number_its_interval():
    exact = Estimate(4.0, 0.0, (4.0, 4.0), 9)
    assert quotient(Estimate(2.0, 0.0, (2.0, 2.0), 9), exact) == (0.5, 0.5)
    assert quotient(Estimate(2.0, 0.4, (1.0, 3.5), 9), exact) == pytest.approx((0.25, 0.875))
    assert quotient(exact, Estimate(2.0, 0.2, (1.6, 2.5), 9)) == pytest.approx((1.6, 2.5))


def test_a_denominator_that_may_be_zero_leaves_a_lower_end():
    low, high = quotient(Estimate(2.0, 0.4, (1.5, 2.5), 9), Estimate(0.5, 0.4, (-0.3, 1.3), 9))
    assert 1.5 / 1.3 < low < 2.0 / 0.5
    assert high == math.inf
    assert all(map(math.isnan, quotient(Estimate(2.0, 0.4, (1.5, 2.5), 9), Estimate(-0.5, 0.1, (-0.7, -0.3), 9))))
    assert quotient(Estimate(0.0, 0.0, (0.0, 0.0), 9), Estimate(0.5, 0.1, (0.3, 0.7), 9)) == (0.0, 0.0)
    assert all(map(math.isnan, quotient(Estimate(1.0, 0.0, (math.nan, math.nan), 3), Estimate(0.5, 0.1, (0.3, 0.7), 9))))


def test_quotients_of_skewed_means_and_normal_ones_are_covered():
    rng, hits = np.random.default_rng(4), 0
    for _ in range(500):
        top, bottom = skewed_mean(rng.chisquare(2, 16)), 1 + 0.2 * rng.standard_normal()
        low, high = quotient(top, Estimate(bottom, 0.2, (bottom - 0.392, bottom + 0.392), 16))
        hits += low <= 2 <= high
    assert hits / 500 >= 0.92


@pytest.mark.parametrize("sigma", [0.0, 0.6])
def test_noise_traces_of_few_samples_of_unequal_size_are_covered(sigma):
    rng, found = np.random.default_rng(6), []
    for _ in range(600):
        noise = rng.standard_normal((24, 12)) * np.exp(sigma * rng.standard_normal((24, 1)) - sigma**2)
        found.append(noise_trace(((noise - noise.mean(axis=0)) ** 2).sum(axis=1)))
    assert covered(found, 12.0)[0] >= 0.91


@pytest.mark.parametrize(("count", "words"), [(31.2, "32"), (8, "8"), (99.5, "100"), (1234, "1,300"), (45678, "46,000")])
def test_numbers_of_values_are_rounded_up_to_two_digits(count, words):
    assert rounded(count) == words
