"""Tests have their size whatever the correlation of the scales, and effect sizes are shown before p."""

import numpy as np
import pytest
from scipy import stats

from fastscape import AnalysisSettings, analyse
from fastscape.probes.multifractal.influence import Sample, c2
from fastscape.probes.multifractal.lines import slope_weights
from fastscape.probes.multifractal.significance import SplitHalf, mean_p, moved_mass, split_half

SCALES = np.log(np.logspace(-4, -1, 12))
OCTAVES = np.log(2.0 ** -np.arange(10, 0, -1))
SIZE = (0.025, 0.08)  # of 600 tests at 5 %: 3.4 standard errors


def autoregressive(rho, directions, rng, spread=0.5):
    """ln r whose distribution is the same at every scale."""
    z = rng.normal(size=(12, directions))
    for k in range(1, 12):
        z[k] = rho * z[k - 1] + np.sqrt(1 - rho**2) * z[k]
    return spread * z + 2 * SCALES[:, None]


def walk(sigma, directions, rng):
    return np.cumsum(rng.normal(0, sigma, (10, directions)), axis=0)[::-1]


def p_of_c2(log_r, x):
    value, psi = c2(Sample(log_r, x, np.empty(0)).under(np.ones((1, log_r.shape[1]))))
    return mean_p([value[0]], [psi[0]])


def halves(log_r, x, rng, permutations=199):
    return split_half([[log_r]], [x], permutations, rng)


def test_p_is_students_t_of_the_slopes_of_squared_deviations():
    log_r = walk(0.1, 40, np.random.default_rng(0))
    g = slope_weights(OCTAVES) @ (log_r - log_r.mean(axis=1, keepdims=True)) ** 2
    assert p_of_c2(log_r, OCTAVES) == pytest.approx(stats.ttest_1samp(g, 0).pvalue, rel=1e-9)
    settings = AnalysisSettings(bootstrap=2, permutations=1)
    assert analyse([np.exp(log_r)], np.exp(OCTAVES), settings=settings).p_value == pytest.approx(
        p_of_c2(log_r, OCTAVES), rel=1e-9
    )


def test_p_of_batches_is_that_of_their_mean():
    rng = np.random.default_rng(1)
    values, influences = [0.1, 0.3], [rng.normal(size=50), 3 * rng.normal(size=20)]
    influences = [part - part.mean() for part in influences]
    found = mean_p(values, influences)
    shifted = [part + value for part, value in zip(influences, values, strict=True)]
    expected = stats.ttest_ind(shifted[0], -shifted[1], equal_var=False).pvalue  # Welch's: 0.1 against -0.3
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rho", [0.0, 0.8, 0.95])
def test_p_of_c2_has_its_size_whatever_the_correlation_of_the_scales(rho):
    rng = np.random.default_rng(3)
    p = np.array([p_of_c2(autoregressive(rho, 64, rng), SCALES) for _ in range(600)])
    assert SIZE[0] <= np.mean(p <= 0.05) <= SIZE[1]


@pytest.mark.parametrize("rho", [0.0, 0.95])
def test_p_of_c2_has_its_size_for_chi_squares(rho):
    rng = np.random.default_rng(4)
    p = []
    for _ in range(600):
        squares = [(autoregressive(rho, 64, rng, 1.0) - 2 * SCALES[:, None]) ** 2 for _ in range(3)]
        p.append(p_of_c2(np.log(sum(squares)), SCALES))
    assert SIZE[0] <= np.mean(np.array(p) <= 0.05) <= SIZE[1]


@pytest.mark.parametrize("rho", [0.0, 0.95])
def test_split_halves_have_at_most_their_size(rho):
    rng = np.random.default_rng(5)
    p = np.array([halves(autoregressive(rho, 64, rng), SCALES, rng, 99).p for _ in range(300)])
    assert np.mean(p <= 0.05) <= 0.085


def test_growing_spread_is_found_by_c2_and_not_by_the_halves():
    rng = np.random.default_rng(6)
    walks = [walk(0.02, 128, rng) for _ in range(50)]
    assert all(p_of_c2(log_r, OCTAVES) <= 0.05 for log_r in walks)
    assert np.mean([halves(log_r, OCTAVES, rng, 99).p <= 0.05 for log_r in walks]) <= 0.2


def test_exponents_of_directions_are_found_by_the_halves():
    rng = np.random.default_rng(7)
    centred = SCALES - SCALES.mean()
    found = [
        halves(autoregressive(0.8, 128, rng, 0.05) + rng.normal(0, 0.03, 128) * centred[:, None], SCALES, rng) for _ in range(50)
    ]
    assert np.mean([half.p <= 0.05 for half in found]) >= 0.96


def test_split_half_correlation_is_spearmans():
    rng = np.random.default_rng(8)
    log_r = walk(0.1, 60, rng) + np.outer(OCTAVES, rng.normal(0, 0.1, 60))
    fine, coarse = (np.polyfit(OCTAVES[part], log_r[part], 1)[0] for part in (slice(0, 5), slice(5, 10)))
    assert halves(log_r, OCTAVES, rng).r == pytest.approx(stats.spearmanr(fine, coarse).statistic, rel=1e-12)
    odd = halves(log_r[:9], OCTAVES[:9], rng)  # the middle scale belongs to neither half
    fine, coarse = (np.polyfit(OCTAVES[part], log_r[part], 1)[0] for part in (slice(0, 4), slice(5, 9)))
    assert odd.r == pytest.approx(stats.spearmanr(fine, coarse).statistic, rel=1e-12)


def test_own_exponents_have_correlation_one_and_the_least_p():
    rng = np.random.default_rng(9)
    found = halves(np.outer(SCALES, rng.normal(2, 0.3, 80)), SCALES, rng)
    assert found == SplitHalf(pytest.approx(1), pytest.approx(1 / 200))


def test_directions_without_a_response_are_left_out_of_the_halves():
    rng = np.random.default_rng(10)
    log_r = walk(0.1, 60, rng)
    holed = np.insert(log_r, 30, log_r[:, 0], axis=1)
    holed[4, 30] = -np.inf
    assert halves(holed, OCTAVES, np.random.default_rng(0)) == halves(log_r, OCTAVES, np.random.default_rng(0))
    assert np.isnan(halves(holed[:, 30:32], OCTAVES, rng).r)


def test_moved_mass_is_the_total_variation_between_the_ends():
    p = np.array([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.1, 0.3, 0.6]])
    assert moved_mass(np.log(7 * p)) == pytest.approx(0.4, rel=1e-12)
    with np.errstate(divide="ignore"):
        assert moved_mass(np.log([[1.0, 0.0], [0.0, 1.0]])) == 1


def test_an_exact_quadratic_moves_nothing():
    curvature = np.random.default_rng(2).chisquare(3, 100)
    log_r = np.log(curvature) + 2 * np.log(np.logspace(-4, -1, 8))[:, None]
    assert moved_mass(log_r) < 1e-13
    result = analyse([np.exp(log_r)], np.logspace(-4, -1, 8), settings=AnalysisSettings(bootstrap=20, permutations=19))
    assert result.scaling == "common"
    assert np.isnan(result.p_value)
    assert result.moved_mass == result.estimates["moved_mass"].value < 1e-13


def test_a_change_of_less_than_one_percent_is_common_scaling_whatever_p_is():
    """A noiseless quartic term: every trend is significant, and none matters."""
    rng, eps = np.random.default_rng(3), np.logspace(-2, 0, 9)
    r = rng.chisquare(5, 128) * eps[:, None] ** 2 + 1e-3 * rng.chisquare(5, 128) * eps[:, None] ** 4
    small = analyse([r], eps, settings=AnalysisSettings(bootstrap=20, permutations=99))
    assert 1e-6 < small.moved_mass < 0.01
    assert small.scaling == "common"
    assert np.isfinite(small.p_value)
    assert small.split_half.r > 0.99
    assert small.split_half.p == 0.01
    large = r + 1.0 * rng.chisquare(5, 128) * eps[:, None] ** 4
    assert analyse([large], eps, settings=AnalysisSettings(bootstrap=20, permutations=9)).scaling == "multiscale"


@pytest.mark.parametrize("directions", [31, 32])
def test_p_needs_directions(directions):
    log_r = walk(0.1, directions, np.random.default_rng(0))
    result = analyse([np.exp(log_r)], np.exp(OCTAVES), settings=AnalysisSettings(bootstrap=2, permutations=1))
    assert np.isfinite(result.p_value) == (directions >= 32)


def test_untrusted_scales_beside_the_window_do_not_reach_the_tests():
    rng = np.random.default_rng(0)
    log_r = autoregressive(0.5, 64, rng)
    settings = AnalysisSettings(windows=((0, 4), (8, 12)), bootstrap=2, permutations=49)
    clean = analyse([np.exp(log_r)], np.exp(SCALES), settings=settings)
    log_r[5, 3] = np.nan
    other = analyse([np.exp(log_r)], np.exp(SCALES), settings=settings)
    assert (clean.p_value, clean.split_half) == (other.p_value, other.split_half)


def test_the_split_half_p_follows_the_number_of_permutations_and_the_seed():
    log_r = walk(0.1, 64, np.random.default_rng(0))

    def run(**changes):
        settings = AnalysisSettings(bootstrap=2, **changes)
        return analyse([np.exp(log_r)], np.exp(OCTAVES), settings=settings).split_half

    assert run(permutations=49).p * 50 == pytest.approx(round(run(permutations=49).p * 50))
    assert run(permutations=99, seed=1).r == run(permutations=99, seed=2).r
    assert run(permutations=99, seed=1) == run(permutations=99, seed=1)
