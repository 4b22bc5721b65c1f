"""Intervals of maxima hold what they should; refinement finds maxima."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from fastscape.probes.barriers.maxima import band, largest_of_lesser, maximum
from fastscape.probes.barriers.refinement import coarse_to_fine, peaks, refine


def test_the_band_of_one_mean_is_students_interval():
    rng = np.random.default_rng(0)
    parts = rng.standard_normal((1, 12))
    found = band(parts.mean(axis=1), parts, np.ones(12))
    assert found.stderr[0] == pytest.approx(parts.std(ddof=1) / math.sqrt(12))
    assert found.critical == pytest.approx(stats.t.ppf(0.975, 11), rel=0.03)


def test_many_copies_of_one_mean_have_the_band_of_one():
    parts = np.repeat(np.random.default_rng(1).standard_normal((1, 400)), 30, axis=0)
    assert band(parts.mean(axis=1), parts, np.ones(400)).critical == pytest.approx(1.96, rel=0.03)


def test_independent_means_have_the_band_of_their_largest():
    parts = np.random.default_rng(2).standard_normal((8, 5000))
    expected = stats.norm.ppf((1 + 0.95 ** (1 / 8)) / 2)
    assert band(parts.mean(axis=1), parts, np.ones(5000)).critical == pytest.approx(expected, rel=0.02)


def paired(rng, samples, height):
    """Losses along a line with one hump, heavy-tailed over samples and nearly equal at neighbouring points; 0 at both ends."""
    alphas = np.linspace(0, 1, 13)
    shape = np.sin(np.pi * alphas)
    sizes = rng.exponential(1.0, samples)
    tilt = rng.standard_normal(samples) * np.sin(2 * np.pi * alphas)[:, None]
    return height * shape[:, None] * sizes + tilt


@pytest.mark.parametrize("height", [0.0, 0.02, 1.0])
def test_the_interval_of_a_maximum_covers_the_true_one(height):
    """Also where all means are equal, for which the interval of the point alone covers less than 0 in two thirds of cases."""
    rng, hits, single, runs = np.random.default_rng(3), 0, 0, 300
    for _ in range(runs):
        parts = paired(rng, 120, height)
        estimate, _ = maximum(band(parts.mean(axis=1), parts, np.ones(120)), 0.0)
        hits += estimate.interval[0] <= height <= estimate.interval[1]
        single += abs(estimate.value - height) <= 1.96 * estimate.stderr
    assert hits >= stats.binom.ppf(0.001, runs, 0.95)
    if height == 0:
        assert single < hits


def test_the_interval_above_the_worse_end_covers_the_true_one():
    rng, hits, runs = np.random.default_rng(4), 0, 300
    for _ in range(runs):
        parts = paired(rng, 120, 0.5) + 1.0
        parts[-1] += 0.2
        both = np.concatenate([parts - parts[0], parts - parts[-1]])
        found = largest_of_lesser(band(both.mean(axis=1), both, np.ones(120)))
        hits += found.interval[0] <= 0.3 <= found.interval[1]
    assert hits >= stats.binom.ppf(0.001, runs, 0.95)


def test_weights_are_repetitions():
    rng = np.random.default_rng(5)
    parts, weights = rng.standard_normal((3, 50)), rng.integers(0, 3, 50).astype(float)
    share = weights / weights.sum()
    found = band(parts @ share, parts, weights)
    used = weights > 0
    residuals = (share * (parts - (parts @ share)[:, None]))[:, used]
    assert found.n == used.sum()
    np.testing.assert_allclose(found.stderr**2, (residuals**2).sum(axis=1) * found.n / (found.n - 1), rtol=1e-12)


def test_infinite_means_have_no_error_and_nan_ones_do_not_count():
    parts = np.random.default_rng(6).standard_normal((4, 30))
    values = parts.mean(axis=1)
    values[1], parts[1] = np.nan, np.nan
    estimate, place = maximum(band(values, parts, np.ones(30)))
    assert place != 1
    assert np.isfinite(estimate.interval).all()
    values[2], parts[2, 0] = np.inf, np.inf
    estimate, place = maximum(band(values, parts, np.ones(30)))
    assert (place, estimate.value) == (2, math.inf)
    assert math.isnan(estimate.stderr)
    estimate, _ = maximum(band(np.full(3, np.nan), None, np.ones(1)))
    assert math.isnan(estimate.value)


def test_exact_values_have_no_width():
    estimate, _ = maximum(band(np.zeros(5), np.zeros((5, 20)), np.ones(20)), 0.0)
    assert (estimate.value, estimate.stderr, estimate.interval) == (0.0, 0.0, (0.0, 0.0))


# ---------------------------------------------------------------------- refinement


@pytest.mark.parametrize("points", [3, 4, 11, 17])
def test_the_even_grid_comes_coarse_to_fine_and_whole(points):
    order = coarse_to_fine(points)
    assert sorted(order) == [index / (points - 1) for index in range(points)]
    assert order[:2] == [0.0, 1.0]
    gaps = [np.diff(sorted(order[:count])).max() for count in range(2, points + 1)]
    assert all(after <= before for before, after in pairwise(gaps))


def test_peaks_bound_a_parabola_and_are_tight():
    x = np.array([0.0, 0.3, 0.55, 1.0])
    f = 1 - 3 * (x - 0.4) ** 2
    found = peaks(x, f)
    assert found.max() >= 1.0
    assert found.max() - 1.0 <= 3 * 0.25**2 / 2


def test_functions_without_downward_curvature_have_their_maximum_at_an_end():
    x = np.linspace(0, 1, 6)
    assert refine(x, (x**2,)) == (pytest.approx(float("nan"), nan_ok=True), 0.0)
    assert refine(x, (np.zeros(6),))[1] == 0.0


@pytest.mark.parametrize(
    ("function", "slack"),
    [
        (lambda x: np.exp(-300 * (x - 0.4371) ** 2), 1.0),
        (lambda x: np.sin(9 * x), 1.0),
        (lambda x: -abs(x - 0.437), 2.0),  # a kink has no second derivative
    ],
)
def test_refinement_finds_maxima_to_tolerance(function, slack):
    x = list(np.linspace(0, 1, 11))
    exact = function(np.linspace(0, 1, 1_000_001)).max()
    for _ in range(40):
        x.sort()
        found = function(np.array(x))
        place, excess = refine(np.array(x), (found,))
        if excess <= 1e-4:
            break
        x.append(place)
    assert len(x) < 40
    assert exact - found.max() <= slack * 1e-4


def test_values_that_are_not_finite_are_not_divided_between():
    x = np.linspace(0, 1, 5)
    place, excess = refine(x, (np.array([0.0, np.nan, 1.0, 0.9, 0.0]),))
    assert 0.5 <= place <= 1.0
    assert excess > 0
    assert refine(x, (np.array([0.0, np.inf, 1.0, 0.9, 0.0]),))[1] == 0.0
