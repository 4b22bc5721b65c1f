"""M_tau, its companions and the single-scale measures of anisotropy, against closed forms (B6, B5.7, B5.10)."""

import numpy as np
import pytest

from fastscape import AnalysisSettings, analyse
from fastscape.probes.multifractal.exponents import Exponents, hill_numbers, holder_exponents, participation_ratio
from fastscape.probes.multifractal.moments import log_measure, moments
from fastscape.probes.multifractal.scalars import AUTHORS_Q, kappa, m_tau, spectrum_scalars

EXACT = {"rtol": 0, "atol": 1e-12}

AUTHORS_GRID = np.array([-3, -2, -1.5, -1, -0.5, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4])
GRIDS = {"authors": AUTHORS_GRID, "positive": AUTHORS_GRID[AUTHORS_GRID > 0], "wide": np.linspace(-5, 5, 41)}
KAPPA = {"authors": 4.129068838646812, "positive": 1.2446621424295232, "wide": 7.8192470865167065}
WITH_0 = np.sort(np.append(AUTHORS_GRID, 0.0))


def quadratic_spectrum(c, n_eff=100.0, q=WITH_0):
    """The spectrum tau = c (q^2 - q), alpha = c (2 q - 1), f = c q^2."""
    nothing = np.zeros_like(q)
    tau, alpha, f = c * (q**2 - q), c * (2 * q - 1), c * q**2
    return Exponents(q, tau, nothing, nothing, nothing, alpha, f, c * q, np.broadcast_to(n_eff, q.shape))


def test_default_grid_is_the_authors_grid_with_0():
    np.testing.assert_array_equal(AUTHORS_Q, AUTHORS_GRID)
    np.testing.assert_array_equal(AnalysisSettings().q, WITH_0)


@pytest.mark.parametrize("grid", GRIDS)
def test_kappa_has_its_known_value(grid):
    assert kappa(GRIDS[grid]) == pytest.approx(KAPPA[grid], rel=0, abs=1e-12)


def test_kappa_of_a_dense_grid_is_the_continuum_value():
    assert kappa(np.linspace(-5, 5, 200_001)) == pytest.approx(100 / (6 * np.sqrt(5)), rel=1e-4)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("c", [-2.5, 0.3])
def test_quadratic_tau_has_m_tau_of_kappa(grid, c):
    q = GRIDS[grid]
    assert m_tau(c * (q**2 - q), q) == pytest.approx(abs(c) * KAPPA[grid], rel=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_m_tau_ignores_lines_and_nothing_else(grid):
    q = GRIDS[grid]
    assert m_tau(3.7 * q - 12, q) == pytest.approx(0, abs=1e-12)
    rng = np.random.default_rng(0)
    for _ in range(20):
        bent = rng.normal(size=len(q))
        assert m_tau(bent, q) > 0.1
        assert m_tau(bent + 5 * q - 1, q) == pytest.approx(m_tau(bent, q), rel=1e-11)


def test_m_tau_is_the_rms_residual_of_polyfit():
    tau = np.random.default_rng(1).normal(size=len(AUTHORS_GRID))
    residual = tau - np.polyval(np.polyfit(AUTHORS_GRID, tau, 1), AUTHORS_GRID)
    assert m_tau(tau, AUTHORS_GRID) == pytest.approx(np.sqrt(np.mean(residual**2)), rel=1e-12)


def test_m_tau_acts_on_the_last_axis():
    taus = np.random.default_rng(2).normal(size=(3, 4, len(AUTHORS_GRID)))
    expected = [[m_tau(tau, AUTHORS_GRID) for tau in row] for row in taus]
    np.testing.assert_allclose(m_tau(taus, AUTHORS_GRID), expected, rtol=1e-12)


def test_m_tau_needs_three_orders():
    assert np.isnan(m_tau(np.array([1.0, 2.0]), np.array([1.0, 2.0])))


@pytest.mark.parametrize("c", [-0.4, 1.7])
def test_scalars_of_quadratic_tau_have_their_closed_forms(c):
    tau_local = np.zeros((5, len(WITH_0)))
    scalars = spectrum_scalars(quadratic_spectrum(c), tau_local)
    expected = {
        "m_tau": abs(c) * KAPPA["authors"],
        "m_tau_pos": abs(c) * KAPPA["positive"],
        "lambda_tau": abs(c),
        "m_tau_valid": abs(c) * KAPPA["authors"],
        "lambda_tau_valid": abs(c),
        "alpha_width": -2 * c * (4 - -3),
        "alpha_std_q": 2 * abs(c) * np.std(AUTHORS_GRID),
        "f_width": 16 * abs(c),
        "local_tau_curvature": 0.0,
        "tau_sign_changes": 2.0,  # between q < 0, 0 < q < 1 and q > 1
    }
    assert set(scalars) == set(expected)
    for name, value in expected.items():
        assert scalars[name] == pytest.approx(value, rel=1e-12, abs=1e-12), name
    assert scalars["alpha_std_q"] == pytest.approx(3.71858 * abs(c), rel=2e-6)


def test_valid_m_tau_uses_the_orders_carried_by_ten_directions():
    n_eff = np.where(np.abs(WITH_0) <= 1.5, 10.0, 9.99)
    bent = quadratic_spectrum(0.7, n_eff)
    bent.tau[np.abs(WITH_0) > 1.5] += 5  # orders that are left out may have any value
    scalars = spectrum_scalars(bent, np.zeros((5, len(WITH_0))))
    kept = AUTHORS_GRID[np.abs(AUTHORS_GRID) <= 1.5]
    assert scalars["m_tau_valid"] == pytest.approx(0.7 * kappa(kept), rel=1e-12)
    assert scalars["lambda_tau_valid"] == pytest.approx(0.7, rel=1e-12)


def test_valid_m_tau_of_under_three_orders_is_nan():
    scalars = spectrum_scalars(quadratic_spectrum(0.7, np.where(WITH_0 == 1, 50.0, 2.0)), np.zeros((5, len(WITH_0))))
    assert np.isnan(scalars["m_tau_valid"])
    assert np.isnan(scalars["lambda_tau_valid"])


def test_local_curvature_is_the_mean_second_difference_of_local_slopes():
    k = np.arange(7.0)
    scalars = spectrum_scalars(quadratic_spectrum(1.0), np.outer(3 * k**2 + k, np.ones(len(WITH_0))))
    assert scalars["local_tau_curvature"] == pytest.approx(6, rel=1e-12)
    straight = spectrum_scalars(quadratic_spectrum(1.0), np.outer(3 * k + 1, np.ones(len(WITH_0))))
    assert straight["local_tau_curvature"] == pytest.approx(0, abs=1e-12)


def test_analysis_reports_every_scalar(f2):
    eps, r = f2
    scalars = analyse([r], eps, settings=AnalysisSettings(bootstrap=20)).pooled[0][0].scalars
    names = "m_tau m_tau_pos lambda_tau m_tau_valid alpha_width alpha_std_q c1 c2 h_mean h_std h_median h_iqr h_span"
    names += " spread_ratio moved_mass f_width f_width_ratio local_tau_curvature tau_sign_changes neg_frac"
    assert set(names.split()) <= set(scalars)


def test_f_width_is_the_range_of_f_in_both_variants(f2):
    eps, r = f2
    window = analyse([r], eps, settings=AnalysisSettings(bootstrap=20)).pooled[0][0]
    assert window.scalars["f_width"] == pytest.approx(window.spectrum.f.max() - window.spectrum.f.min(), rel=1e-12)
    assert window.scalars["f_width_ratio"] == pytest.approx(window.f_ratio.max() - window.f_ratio.min(), rel=1e-12)


def test_holder_statistics_are_those_of_numpy(random_powers):
    eps, r = random_powers
    holder = holder_exponents(np.log(np.abs(r)), np.log(eps))
    h = np.polyfit(np.log(eps), np.log(np.abs(r)), 1)[0]
    np.testing.assert_allclose(holder.h, h, **EXACT)
    expected = (h.mean(), h.std(), np.median(h), np.subtract(*np.percentile(h, [75, 25])), h.max() - h.min())
    np.testing.assert_allclose([holder.mean, holder.std, holder.median, holder.iqr, holder.span], expected, **EXACT)


def test_participation_ratio_counts_equal_carriers():
    for carriers in (1, 3, 8):
        log_r = np.where(np.arange(8) < carriers, 0.7, -np.inf)[None]
        np.testing.assert_allclose(participation_ratio(log_r), carriers / 8, rtol=1e-12)


def test_hill_numbers_count_equal_carriers_at_every_order():
    q = np.array([-2.0, 0.0, 0.5, 1.0, 2.0, 5.0])
    log_p = np.full((1, 7), -np.log(7))
    np.testing.assert_allclose(hill_numbers(moments(log_p, q), q), 7, rtol=1e-12)


def test_hill_numbers_have_their_closed_forms():
    p, q = np.array([0.5, 0.25, 0.125, 0.125]), np.array([0.0, 1.0, 2.0, 3.0])
    entropy = 1.75 * np.log(2)
    expected = [4, np.exp(entropy), 1 / np.sum(p**2), np.sum(p**3) ** -0.5]
    np.testing.assert_allclose(hill_numbers(moments(np.log(p)[None], q), q), [expected], rtol=1e-12)


def test_hill_numbers_fall_with_the_order(random_powers):
    _, r = random_powers
    q = np.linspace(-3, 4, 15)
    hill = hill_numbers(moments(log_measure(np.log(np.abs(r))), q), q)
    assert (np.diff(hill, axis=1) < 0).all()


@pytest.mark.parametrize("q", [(-1.0, 0.5, 2.0), (-1.0, 0.5, 3.0)])
def test_reported_participation_is_right_or_missing(f2, q):
    eps, r = f2
    participation = analyse([r], eps, settings=AnalysisSettings(q=q, bootstrap=20)).profiles[0].participation
    expected = r.sum(axis=1) ** 2 / (r**2).sum(axis=1) / 8
    if 2.0 in q:
        np.testing.assert_allclose(participation, expected, rtol=1e-12)
    else:  # without Z_2 the value may be computed apart or be NaN, but not be that of another order
        assert np.isnan(participation).all() or np.allclose(participation, expected, rtol=1e-12)
