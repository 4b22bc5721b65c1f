"""Random responses whose expected exponents are known (T6, T7, T8); seeds are fixed, bounds are the specification's."""

import numpy as np
import pytest

from fastscape import AnalysisSettings, analyse
from fastscape.probes.multifractal.exponents import cumulants, exponents, holder_exponents
from fastscape.probes.multifractal.moments import log_measure, moments
from fastscape.probes.multifractal.scalars import m_tau

WALK_M_TAU = {1024: 0.0018, 8192: 0.0007}  # T6, sigma = 0.1
WALK_BIAS = 0.005
NULL_H_STD = 0.03  # T7, relative
FBM_H, FBM_VARIANCE = 0.009, 0.05  # T8, absolute and relative
STANDARD_ERRORS = 4  # for means whose expectation is exact

AUTHORS_GRID = np.array([-3, -2, -1.5, -1, -0.5, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4])
KAPPA = 4.129068838646812


def spectrum(eps, log_r):
    return exponents(moments(log_measure(log_r), AUTHORS_GRID), np.log(eps), AUTHORS_GRID)


def walk_taus(draw, directions, runs, sigma=0.1):
    walks = (draw(seed, directions, sigma) for seed in range(runs))
    return np.array([spectrum(eps, np.log(r)).tau for eps, r in walks])


@pytest.mark.parametrize(("directions", "runs"), [(1024, 16), (8192, 8)])
def test_lognormal_walk_has_the_m_tau_of_its_intermittency(lognormal_walk, directions, runs):
    expected = 0.1**2 / np.log(2) / 2 * KAPPA
    assert expected == pytest.approx(0.0297849, abs=5e-8)
    values = m_tau(walk_taus(lognormal_walk, directions, runs), AUTHORS_GRID)
    assert np.mean(values) == pytest.approx(expected, rel=0, abs=WALK_M_TAU[directions])


def test_lognormal_walk_has_nearly_unbiased_quadratic_tau(lognormal_walk):
    runs, lam = 200, 0.1**2 / np.log(2)
    taus = walk_taus(lognormal_walk, 1024, runs)
    error = taus.std(axis=0, ddof=1) / np.sqrt(runs)
    expected = lam / 2 * (AUTHORS_GRID - AUTHORS_GRID**2)
    assert (np.abs(taus.mean(axis=0) - expected) <= 1e-12 + STANDARD_ERRORS * error + 0.02 * np.abs(expected)).all()
    values = m_tau(taus, AUTHORS_GRID)
    allowed = WALK_BIAS * lam / 2 * KAPPA + STANDARD_ERRORS * values.std(ddof=1) / np.sqrt(runs)
    assert abs(values.mean() - lam / 2 * KAPPA) <= allowed


def test_lognormal_walk_has_log_cumulants_of_its_steps(lognormal_walk):
    runs, sigma, h0 = 100, 0.2, 1.3
    values = []
    for seed in range(runs):
        eps, r = lognormal_walk(seed, 512, sigma, h0=h0)
        result = cumulants(np.log(r), np.log(eps))
        values.append((result.c1, result.c2))
    mean, error = np.mean(values, axis=0), np.std(values, axis=0, ddof=1) / np.sqrt(runs)
    assert (np.abs(mean - [h0, -(sigma**2) / np.log(2)]) <= STANDARD_ERRORS * error).all()
    assert error[1] < 0.02 * sigma**2 / np.log(2)


@pytest.mark.parametrize("directions", [512, 1024])
def test_wide_lognormal_walk_is_flagged_where_it_is_biased(lognormal_walk, directions):
    runs, tau_4 = 40, 0.4**2 / np.log(2) / 2 * (4 - 16)
    bias = walk_taus(lognormal_walk, directions, runs, sigma=0.4)[:, -1].mean() / tau_4 - 1
    assert -0.38 <= bias <= -0.20
    eps, r = lognormal_walk(0, directions, 0.4)
    result = analyse([r], eps, settings=AnalysisSettings(bootstrap=20))
    flagged = next(flag for flag in result.flags if "carried by fewer than 10 directions" in flag)
    orders = [float(word) for word in flagged.split("=")[1].split(" are")[0].split(",")]
    assert 4 in orders
    assert -3 in orders
    assert 1 not in orders
    n_eff = result.pooled[0][0].spectrum.n_eff
    np.testing.assert_array_equal(orders, result.pooled[0][0].spectrum.q[n_eff < 10])


def test_narrow_lognormal_walk_is_not_flagged(lognormal_walk):
    eps, r = lognormal_walk(0, 1024, 0.1)
    result = analyse([r], eps, settings=AnalysisSettings(bootstrap=20))
    assert result.flags == ()
    assert result.scaling == "multiscale"


@pytest.fixture(scope="module")
def null_runs(gaussian_null):
    """The null at N = 512 over 12 radii and 3 decades, 64 runs."""
    runs = []
    for seed in range(64):
        eps, r = gaussian_null(seed, 512)
        runs.append((holder_exponents(np.log(r), np.log(eps)), spectrum(eps, np.log(r)).tau))
    return np.log(eps), runs


def test_null_has_the_spread_of_h_of_its_fit_error(null_runs):
    x, runs = null_runs
    expected = np.pi / (2 * np.sqrt(2)) / np.sqrt(np.sum((x - x.mean()) ** 2))
    assert expected == pytest.approx(0.1479, abs=5e-5)
    assert np.mean([holder.std for holder, _ in runs]) == pytest.approx(expected, rel=NULL_H_STD)


def test_null_has_exponent_2_and_zero_tau_on_average(null_runs):
    _, runs = null_runs
    for values, expected in (([holder.mean for holder, _ in runs], 2), ([tau for _, tau in runs], 0)):
        error = np.std(values, axis=0, ddof=1) / np.sqrt(len(runs))
        assert (np.abs(np.mean(values, axis=0) - expected) <= 1e-12 + STANDARD_ERRORS * error).all()


@pytest.mark.parametrize("hurst", [0.3, 0.5, 0.7])
def test_levy_brownian_loss_has_its_hurst_exponent_and_zero_tau(hurst):
    dimension, directions, scales, runs, spectra = 64, 48, 8, 3000, 150
    rng = np.random.default_rng(8)
    d = rng.standard_normal((directions, dimension))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    eps = 2.0 ** np.arange(-scales, 0)
    points = np.concatenate([eps[:, None, None] * d, -eps[:, None, None] * d]).reshape(-1, dimension)
    size = np.linalg.norm(points, axis=1) ** (2 * hurst)
    squares = np.sum(points**2, axis=1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0)) ** (2 * hurst)
    np.fill_diagonal(distance, 0)
    factor = np.linalg.cholesky((size[:, None] + size - distance) / 2)
    plus, minus = (factor @ rng.standard_normal((len(points), runs))).reshape(2, scales, directions, runs)
    even = plus + minus  # the loss at the centre is 0

    variance = np.mean(even**2, axis=(1, 2)) / eps ** (2 * hurst)
    np.testing.assert_allclose(variance, 4 - 2 ** (2 * hurst), rtol=FBM_VARIANCE)
    log_r = np.log(np.abs(even))
    holder = holder_exponents(log_r.reshape(scales, -1), np.log(eps))
    assert holder.mean == pytest.approx(hurst, rel=0, abs=FBM_H)
    taus = np.array([spectrum(eps, log_r[:, :, run]).tau for run in range(spectra)])
    error = taus.std(axis=0, ddof=1) / np.sqrt(spectra)
    assert (np.abs(taus.mean(axis=0)) <= 1e-12 + STANDARD_ERRORS * error).all()
