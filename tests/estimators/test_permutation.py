"""Significance of M_tau by permuted scales: exact for few scales, common scalings have none, power."""

import math
from itertools import permutations

import numpy as np
import pytest

from fastscape import AnalysisSettings, analyse
from fastscape.estimators.intervals import is_common, permutation_p
from fastscape.estimators.moments import log_measure, moments

SAMPLED = 4  # standard errors of a sampled p against full enumeration
COMMON = 1e-9  # largest |ln Z_q - mean| of a common scaling

Q = np.array([-2.0, -1, 0.5, 1, 2, 3])


def brute_force_p(tables, x, windows):
    """Share of all orderings of the scales whose summed M_tau is at least the observed one; plain numpy."""

    def statistic(order):
        total = 0.0
        for table in tables:
            for start, stop in windows:
                tau = np.polyfit(x[start:stop], table[list(order)][start:stop], 1)[0]
                line = np.polyval(np.polyfit(Q, tau, 1), Q)
                total += np.sqrt(np.mean((tau - line) ** 2))
        return total

    observed = statistic(range(len(x)))
    values = np.array([statistic(order) for order in permutations(range(len(x)))])
    return np.mean(values >= observed * (1 - 1e-9))


def random_table(seed, scales, trend=0.0):
    rng = np.random.default_rng(seed)
    x = np.sort(rng.uniform(-8, 0, scales))
    return x, rng.normal(size=(scales, 1)) * Q**2 + 0.3 * rng.normal(size=(scales, len(Q))) + trend * np.outer(x, Q**2)


@pytest.mark.parametrize("scales", [4, 5, 6])
@pytest.mark.parametrize("trend", [0.0, 0.3])
def test_p_is_exact_up_to_six_scales(scales, trend):
    x, table = random_table(scales, scales, trend)
    p = permutation_p([table], x, Q, [slice(0, scales)])
    assert p == pytest.approx(brute_force_p([table], x, [(0, scales)]), rel=0, abs=1e-12)
    assert p >= 1 / math.factorial(scales)


def test_p_of_several_measures_and_windows_is_exact():
    x, first = random_table(1, 6)
    _, second = random_table(2, 6)
    windows = [(0, 4), (1, 6)]
    p = permutation_p([first, second], x, Q, [slice(*window) for window in windows])
    assert p == pytest.approx(brute_force_p([first, second], x, windows), rel=0, abs=1e-12)


def test_exact_p_does_not_depend_on_the_seed_or_the_number_of_draws():
    x, table = random_table(3, 5)
    values = {permutation_p([table], x, Q, [slice(0, 5)], permutations_=n, seed=n) for n in (1, 10, 999)}
    assert len(values) == 1


def test_sampled_p_agrees_with_full_enumeration():
    x, table = random_table(7, 7)
    exact = brute_force_p([table], x, [(0, 7)])
    p = permutation_p([table], x, Q, [slice(0, 7)], permutations_=3999, seed=1)
    assert 0.1 < exact < 0.9
    assert abs(p - exact) <= SAMPLED * np.sqrt(exact * (1 - exact) / 3999) + 1 / 4000


def test_smallest_sampled_p_counts_the_observed_order():
    x = np.linspace(-8, 0, 12)
    p = permutation_p([np.outer(x, Q**2)], x, Q, [slice(0, 12)], permutations_=99, seed=0)
    assert p == pytest.approx(1 / 100)


def test_p_ignores_slopes_linear_in_q():
    x, table = random_table(5, 6)
    shifted = table + np.outer(np.sin(3 * x), 2 * Q + 1)
    windows = [slice(0, 6)]
    assert permutation_p([shifted], x, Q, windows) == permutation_p([table], x, Q, windows)


def test_undefined_tau_has_no_p():
    x, table = random_table(6, 5)
    table[2, 0] = np.nan
    assert np.isnan(permutation_p([table], x, Q, [slice(0, 5)]))


@pytest.mark.parametrize(("drift", "common"), [(0.0, True), (0.9 * COMMON, True), (1.1 * COMMON, False)])
def test_common_means_that_no_moment_moves_from_its_mean(drift, common):
    table = np.tile(Q**2, (5, 1))
    table[:, 3] += drift * np.array([-1, 0, 0, 0, 1])
    assert is_common(table) is common


def test_common_scaling_has_no_p_and_is_named():
    amplitude = np.random.default_rng(0).uniform(0.2, 5, 300)
    eps = np.logspace(-4, -1, 9)
    result = analyse([amplitude * eps[:, None] ** 1.3], eps, settings=AnalysisSettings(bootstrap=20))
    assert result.scaling == "common"
    assert math.isnan(result.p_value)


@pytest.mark.parametrize("drift", [0.0, 1e-11, 1e-10, 3e-10, 4e-10, 1e-8, 1e-3])
def test_p_is_missing_exactly_for_common_scaling(drift):
    eps, bump = np.logspace(-4, -1, 9), np.linspace(-1, 1, 9)
    # over the default orders the largest |ln Z_q - mean| is 3.2 drift, and the largest range twice that
    log_r = np.array([0.0, 0.5, 1.0]) + np.outer(drift * bump, [1.0, 0.0, -1.0]) + 2 * np.log(eps)[:, None]
    settings = AnalysisSettings(bootstrap=20, permutations=19)
    result = analyse([np.exp(log_r)], eps, settings=settings)
    q = np.array([order for order in settings.q if order])
    log_z = moments(log_measure(np.log(np.exp(log_r))), q).log_z
    common = bool(np.abs(log_z - log_z.mean(axis=0)).max() < COMMON)
    assert math.isnan(result.p_value) is common
    assert (result.scaling == "common") is common


def test_small_growing_heterogeneity_is_always_found(lognormal_walk):
    for seed in range(25):
        eps, r = lognormal_walk(seed, 128, 0.02, scales=10)
        result = analyse([r], eps, settings=AnalysisSettings(bootstrap=2, permutations=499, seed=seed))
        assert result.scaling == "multiscale"
        assert result.p_value <= 0.05


def test_analysis_p_is_exact_for_six_scales(f2):
    eps, r = f2
    result = analyse([r], eps, settings=AnalysisSettings(q=tuple(Q), bootstrap=20))
    log_z = moments(log_measure(np.log(r)), Q).log_z
    assert result.p_value == pytest.approx(brute_force_p([log_z], np.log(eps), [(0, 6)]), abs=1e-12)


def test_analysis_p_of_two_batches_and_windows_is_exact(f2):
    eps, r = f2
    settings = AnalysisSettings(q=tuple(Q), windows=((0, 4), (1, 5)), bootstrap=20)
    result = analyse([r, r[:, :3] ** 2], eps, batches=[0, 1], settings=settings)
    tables = [moments(log_measure(np.log(part)), Q).log_z[:5] for part in (r, r[:, :3] ** 2)]
    assert result.p_value == pytest.approx(brute_force_p(tables, np.log(eps[:5]), [(0, 4), (1, 5)]), abs=1e-12)
