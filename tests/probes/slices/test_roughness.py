"""Roughness: exact for polynomials, noise counted once, minima by their depth."""

import math

import numpy as np
import pytest

from fastscape.probes.slices.roughness import Trend, mean_count, mean_estimate, minima, quadrature, second_difference_energy

GRIDS = (5, 6, 11, 41, 101)


@pytest.mark.parametrize("points", GRIDS)
@pytest.mark.parametrize(("h", "reach"), [(10.0, 1.0), (0.3, 2.5)])
def test_a_bowl_has_the_variance_of_its_closed_form(points, h, reach):
    """Var of h a^2 / 2 over [-A, A] is h^2 A^4 / 45: 2.22 for h = 10, A = 1."""
    alphas = np.linspace(-reach, reach, points)
    bowl = (3.0 + h * alphas**2 / 2)[None]
    assert Trend([alphas], 0).variance(bowl)[0] == pytest.approx(h**2 * reach**4 / 45, rel=1e-13)
    assert Trend([alphas], 2).variance(bowl)[0] < 1e-20
    if points > 5:
        assert Trend([alphas], 4).variance(bowl)[0] < 1e-20
    assert second_difference_energy(bowl, alphas)[0] == pytest.approx(h**2, rel=1e-9)


def test_averages_are_exact_for_degree_four_on_any_grid():
    rng = np.random.default_rng(0)
    for points in (5, 8, 30):
        alphas = np.sort(rng.uniform(-1, 2, points))
        weights = quadrature(alphas)
        low, high = alphas[0], alphas[-1]
        for power in range(5):
            exact = (high ** (power + 1) - low ** (power + 1)) / ((power + 1) * (high - low))
            assert weights @ alphas**power == pytest.approx(exact, rel=1e-11, abs=1e-12)
    assert all(quadrature(np.linspace(-1, 1, points)).min() > 0 for points in range(2, 102))


def test_a_large_constant_takes_nothing_away():
    alphas = np.linspace(-1, 1, 41)
    ripple = 1e-6 * np.cos(9 * np.pi * alphas)
    alone, lifted = (Trend([alphas], 2).variance((ripple + shift)[None])[0] for shift in (0.0, 1e3))
    assert lifted == pytest.approx(alone, rel=1e-4)


def test_what_no_polynomial_explains_is_left():
    """cos(k pi a) with k large is orthogonal to all quadratics up to 1 / k^2: its variance 1/2 is left."""
    alphas = np.linspace(-1, 1, 801)
    wave = np.cos(20 * np.pi * alphas)
    bowl = 50 * alphas**2 + 7 * alphas
    assert Trend([alphas], 2).variance((wave + bowl)[None])[0] == pytest.approx(0.5, rel=1e-3)
    assert Trend([alphas], 0).variance((wave + bowl)[None])[0] > 200


@pytest.mark.parametrize("order", [0, 2, 4])
def test_noise_is_counted_with_its_share(order):
    alphas = np.linspace(-1, 1, 21)
    trend = Trend([alphas], order)
    found = trend.variance(np.random.default_rng(1).normal(size=(20000, 21)))
    error = found.std() / math.sqrt(len(found))
    assert abs(found.mean() - trend.noise_share) < 4 * error
    assert 0.7 < trend.noise_share < 1.0


def test_second_differences_of_noise_are_six_times_its_variance():
    alphas = np.linspace(-1, 1, 21)
    found = second_difference_energy(np.random.default_rng(1).normal(size=(20000, 21)), alphas)
    assert found.mean() * 0.1**4 == pytest.approx(6, rel=0.02)


def test_the_trend_of_a_plane_is_of_total_degree():
    first, second = np.linspace(-1, 1, 9), np.linspace(-2, 2, 11)
    x, y = np.meshgrid(first, second, indexing="ij")
    quadratic = (1 + x - 2 * y + 3 * x**2 + x * y - y**2).reshape(1, -1)
    assert Trend([first, second], 2).variance(quadratic)[0] < 1e-20
    saddle = (x**2 * y**2).reshape(1, -1)
    assert Trend([first, second], 2).variance(saddle)[0] > 1e-3
    assert Trend([first, second], 4).variance(saddle)[0] < 1e-20
    anisotropic = (5 * x**2).reshape(1, -1)
    assert Trend([first, second], 0).variance(anisotropic)[0] == pytest.approx(100 / 45, rel=1e-12)


def test_minima_are_counted_by_their_depth():
    alphas = np.linspace(-1, 1, 201)
    bowl, wave = alphas**2, 0.01 * np.cos(20 * np.pi * alphas)
    assert minima(bowl) == 1
    assert minima(alphas) == 0
    assert minima(-bowl) == 0
    assert minima(wave) == 20
    assert minima(wave, 0.019) == 20
    assert minima(wave, 0.021) == 1
    assert minima(bowl + wave) > 1
    assert minima(bowl + wave, 0.05) == 1
    assert minima(np.array([1.0, np.nan, 0.5, 1.0])) == 1
    noise = 1e-8 * np.random.default_rng(0).normal(size=201)
    assert minima(bowl + noise, 4e-8 * 2) == 1


def test_minima_of_a_plane_look_in_all_eight_directions():
    line = np.linspace(-1, 1, 61)
    x, y = np.meshgrid(line, line, indexing="ij")
    assert minima(x**2 + y**2) == 1
    assert minima(x**2 - y**2) == 0
    assert minima(np.cos(3 * np.pi * x) + np.cos(3 * np.pi * y)) == 4
    assert minima((x - y) ** 2 + 1e-3 * (x + y) ** 2) == 1  # a narrow diagonal valley is one basin


@pytest.mark.parametrize("shape", [(7,), (4, 5)])
def test_minima_do_not_depend_on_the_orientation_where_losses_tie(shape):
    rng = np.random.default_rng(0)
    for _ in range(200):
        losses = rng.integers(0, 4, shape).astype(float)
        assert len({minima(turned) for turned in (losses, losses[::-1], losses.T, losses.T[::-1])}) == 1, losses
    assert minima(np.array([2.0, 1.0, 1.0])) == minima(np.array([1.0, 1.0, 2.0])) == 0, "a plateau that reaches the border"


def test_intervals_of_means_cover_as_often_as_they_say():
    rng = np.random.default_rng(2)
    for draws, truth in ((rng.normal(3.0, 0.5, (3000, 8)), 3.0), (rng.chisquare(1, (3000, 8)), 1.0)):
        hits = [estimate.interval[0] <= truth <= estimate.interval[1] for estimate in map(mean_estimate, draws)]
        assert 0.93 < np.mean(hits) < 0.985


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_intervals_of_counts_that_are_all_the_same_allow_for_the_others(share):
    """Eight lines without a second minimum do not show that there is none: Student's interval of equal counts is a point."""
    rng = np.random.default_rng(3)
    found = [mean_count(1.0 + (rng.random(8) < share)) for _ in range(2000)]
    assert np.mean([estimate.interval[0] <= 1 + share <= estimate.interval[1] for estimate in found]) >= 0.92
    same = mean_count(np.ones(8))
    assert same.interval == pytest.approx((0.025 ** (1 / 8), 2 - 0.025 ** (1 / 8)))
    assert mean_count(np.zeros(20)).interval[0] == 0.0
    assert mean_count(np.ones(3)).withheld == "3 directions; at least 4"


def test_means_leave_out_what_is_not_finite_and_count_the_rest():
    found = mean_estimate(np.array([1.0, np.nan, 3.0, np.inf]))
    assert (found.value, found.n) == (2.0, 2)
    assert found.withheld == "2 values; at least 4"
    assert mean_estimate(np.array([1.0, np.nan, 3.0, 40.0, 0.1])).interval[0] > 0.0  # a variance is positive
    assert math.isnan(mean_estimate(np.array([np.nan])).value)
    assert math.isnan(mean_estimate(np.array([1.0])).stderr)


def test_lines_with_losses_that_are_not_finite_have_no_roughness():
    alphas = np.linspace(-1, 1, 7)
    losses = np.stack([alphas**2, np.where(alphas > 0.9, np.inf, 0.0), np.where(alphas > 0.9, np.nan, 0.0)])
    for values in (Trend([alphas], 2).variance(losses), second_difference_energy(losses, alphas)):
        assert np.isfinite(values).tolist() == [True, False, False]


@pytest.mark.parametrize("alphas", [[0.0], [0.0, 0.0], [1.0, 0.0], [0.0, np.nan]])
def test_grids_that_do_not_ascend_are_refused(alphas):
    with pytest.raises(ValueError, match="alphas must be at least two ascending"):
        quadrature(np.array(alphas))
    with pytest.raises(ValueError, match="more points than order = 4"):
        Trend([np.linspace(0, 1, 4)], 4)
