"""Moments stay exact where powers overflow, have no floor, and treat zeros as directions without mass."""

from decimal import Decimal, localcontext

import numpy as np
import pytest

from fastscape import AnalysisSettings, analyse
from fastscape.probes.multifractal.exponents import cumulants, exponents, holder_exponents, structure_exponents
from fastscape.probes.multifractal.influence import Sample
from fastscape.probes.multifractal.moments import log_magnitude, log_measure, moments
from fastscape.probes.multifractal.scalars import m_tau

RELATIVE = 1e-12  # of ln Z, against 60-digit decimal arithmetic
EXACT = {"rtol": 0, "atol": 1e-12}

WIDE_Q = np.array([-40.0, -5, -1, 0, 0.5, 1, 2, 5, 40])


@pytest.fixture(scope="module")
def wide():
    """Responses from 1e-150 to 1e100 at four radii."""
    rng = np.random.default_rng(0)
    eps = np.array([1e-4, 1e-3, 1e-2, 1e-1])
    return eps, 10 ** rng.uniform(-150, 100, (4, 12))


def exact_log_z(r, q):
    """Ln sum (r / sum r)^q of one scale in 60-digit decimal arithmetic, which has no overflow here."""
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 60, 10**9, -(10**9)
        values = [Decimal(float(value)) for value in r]
        total = sum(values)
        return float(sum((value / total) ** Decimal(float(q)) for value in values).ln())


def test_naive_powers_would_overflow(wide):
    _, r = wide
    p = r / r.sum(axis=1, keepdims=True)
    with np.errstate(over="ignore"):
        assert np.isinf(p**-40).any()


def test_orders_of_40_match_decimal_arithmetic(wide):
    _, r = wide
    log_z = moments(log_measure(np.log(r)), WIDE_Q).log_z
    expected = [[exact_log_z(row, q) for q in WIDE_Q] for row in r]
    np.testing.assert_allclose(log_z, expected, rtol=RELATIVE, atol=RELATIVE)


def test_exponents_at_orders_of_40_are_those_of_the_dominant_direction():
    eps = np.logspace(-4, -1, 6)
    h = np.array([1.0, 5.0, 40.0])
    log_r = h * np.log(eps)[:, None]  # ln p falls to -300: the smallest exponent carries q > 0, the largest q < 0
    q = np.array([-40.0, 40.0])
    result = exponents(moments(log_measure(log_r), q), np.log(eps), q)
    zeta = structure_exponents(log_r, np.log(eps), np.array([-40.0, 1.0, 40.0]))
    np.testing.assert_allclose(zeta[[0, 2]], [-40 * 40.0, 40 * 1.0], rtol=1e-9)
    np.testing.assert_allclose(result.alpha, [40 - zeta[1], 1 - zeta[1]], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(result.tau, zeta[[0, 2]] - q * zeta[1], rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(result.n_eff, 1, rtol=1e-9)


def test_analysis_at_orders_of_40_is_finite(wide):
    eps, r = wide
    result = analyse([r], eps, settings=AnalysisSettings(q=tuple(WIDE_Q), bootstrap=50))
    window = result.pooled[0][0]
    for values in (window.spectrum.tau, window.spectrum.alpha, window.spectrum.f, window.zeta, result.profiles[0].log_z):
        assert np.isfinite(values).all()
    np.testing.assert_allclose(window.zeta - WIDE_Q * window.zeta[WIDE_Q == 1], window.spectrum.tau, rtol=1e-10, atol=1e-10)


def test_bootstrap_with_a_zero_response_survives_large_orders():
    eps, rng = np.logspace(-4, -1, 8), np.random.default_rng(1)
    r = np.exp(rng.normal(0, 0.3, (8, 400))) * 1e-6 * eps[:, None] ** 2
    r[0, 0] = 0  # one of 400: the scales stay trusted
    result = analyse([r], eps, settings=AnalysisSettings(q=(0.5, 1, 2, 3, 40), bootstrap=50))
    q = np.array(result.settings.q)
    assert result.valid
    assert np.isfinite(result.tau.value[q > 0]).all()
    held = np.isin(q, result.supported)
    assert held.sum() >= 3
    assert np.isfinite(result.tau.lower[held]).all()
    assert np.isfinite(result.tau.upper[held]).all()


def test_smallest_responses_are_not_floored():
    p = np.array([[0.5, 0.5 - 1e-200, 1e-200]])
    result = moments(np.log(p), np.array([-1.0, -2.0]))
    np.testing.assert_allclose(result.log_z[0], [200 * np.log(10), 400 * np.log(10)], rtol=RELATIVE)
    r = np.array([[1.0, 1e-250]])
    np.testing.assert_allclose(log_measure(log_magnitude(r)), [[0, -250 * np.log(10)]], rtol=RELATIVE, atol=RELATIVE)


def test_measure_floor_clips_without_renormalising():
    log_p = log_measure(np.log(np.array([[1.0, 1e-3, 1e-9]])), 1e-6)
    p = np.array([1.0, 1e-3, 1e-9]) / (1 + 1e-3 + 1e-9)
    np.testing.assert_allclose(np.exp(log_p[0]), np.maximum(p, 1e-6), rtol=RELATIVE)
    assert np.exp(log_p).sum() > 1


def test_default_analysis_has_no_floor(wide):
    eps, r = wide
    q = (-3.0, -1.0, 0.0, 1.0, 2.0)
    free = analyse([r], eps, settings=AnalysisSettings(q=q, bootstrap=20)).pooled[0][0].spectrum
    floored = analyse([r], eps, settings=AnalysisSettings(q=q, measure_floor=1e-10, bootstrap=20)).pooled[0][0].spectrum
    exact = [[exact_log_z(row, order) for order in q] for row in r]
    np.testing.assert_allclose(free.tau, np.polyfit(np.log(eps), exact, 1)[0], rtol=1e-10, atol=1e-10)
    p = np.maximum(r / r.sum(axis=1, keepdims=True), 1e-10)
    clipped = np.stack([np.log((p**order).sum(axis=1)) for order in q], axis=1)
    np.testing.assert_allclose(floored.tau, np.polyfit(np.log(eps), clipped, 1)[0], rtol=1e-10, atol=1e-10)


def test_band_of_a_floored_measure_contains_its_value():
    eps, rng = np.logspace(-4, -1, 8), np.random.default_rng(2)
    r = np.exp(rng.normal(0, 0.5, 300)) * eps[:, None] ** rng.normal(1.5, 0.03, 300)
    settings = AnalysisSettings(q=(-3, -2, -1, 0.5, 1, 2), measure_floor=1e-4, bootstrap=200)
    result = analyse([r], eps, settings=settings)
    held = np.isin(result.settings.q, result.supported)
    assert held.sum() >= 3
    assert (result.tau.lower <= result.tau.value + 1e-12)[held].all()
    assert (result.tau.value <= result.tau.upper + 1e-12)[held].all()


@pytest.fixture(scope="module")
def with_zero():
    """Responses of 6 directions, the third of which is 0 at the second radius."""
    rng = np.random.default_rng(3)
    eps = np.logspace(-3, -1, 5)
    r = np.exp(rng.normal(0, 1, (5, 6))) * eps[:, None]
    r[1, 2] = 0
    return eps, r


def test_zero_response_leaves_no_moment_of_order_0_or_less(with_zero):
    eps, r = with_zero
    q = np.array([-2.0, -0.5, 0.0, 0.5, 1.0, 2.0])
    result = moments(log_measure(log_magnitude(r)), q)
    for values in (result.log_z, result.mean_log, result.entropy, result.n_eff):
        assert np.isnan(values[1, q <= 0]).all()
        assert np.isfinite(np.delete(values, 1, axis=0)).all()
    tau = exponents(result, np.log(eps), q).tau
    np.testing.assert_array_equal(np.isnan(tau), q <= 0)
    np.testing.assert_array_equal(np.isnan(structure_exponents(log_magnitude(r), np.log(eps), q)), q <= 0)


def test_zero_response_carries_no_mass_at_positive_orders(with_zero):
    _, r = with_zero
    q = np.array([0.5, 1.0, 2.0, 4.0])
    result, without = moments(log_measure(log_magnitude(r)), q), moments(log_measure(np.log(np.delete(r[1:2], 2, axis=1))), q)
    for name in ("log_z", "mean_log", "entropy", "n_eff"):
        np.testing.assert_allclose(getattr(result, name)[1], getattr(without, name)[0], **EXACT)


def test_zero_response_leaves_its_direction_without_exponent(with_zero):
    eps, r = with_zero
    holder = holder_exponents(log_magnitude(r), np.log(eps))
    np.testing.assert_array_equal(np.isnan(holder.h), np.arange(6) == 2)
    others = np.polyfit(np.log(eps), np.log(np.delete(r, 2, axis=1)), 1)[0]
    np.testing.assert_allclose(np.delete(holder.h, 2), others, **EXACT)
    assert holder.mean == pytest.approx(others.mean(), abs=1e-12)
    assert holder.std == pytest.approx(others.std(), abs=1e-12)


def test_zero_response_is_left_out_of_the_log_cumulants(with_zero):
    eps, r = with_zero
    result = cumulants(log_magnitude(r), np.log(eps))
    kept = np.log(np.delete(r[1], 2))
    assert result.C1[1] == pytest.approx(kept.mean(), abs=1e-12)
    assert result.C2[1] == pytest.approx(kept.var(), abs=1e-12)


def test_bootstrap_treats_zeros_as_the_moments_do(with_zero):
    eps, r = with_zero
    q = np.array([0.5, 1.0, 2.0])
    sample = Sample(log_magnitude(r), np.log(eps), q)
    counts = np.random.default_rng(1).multinomial(6, np.full(6, 1 / 6), size=40)
    found = sample.under(counts)
    for replicate, times in enumerate(counts):
        drawn = np.repeat(r[1], times)
        kept = drawn[drawn > 0]
        sums = np.log(found.moments[replicate, :, 1]) + sample.top[:, 1]
        np.testing.assert_allclose(sums, [np.log((kept**order).sum() / 6) for order in q], **EXACT)
        assert found.mean[replicate, 1] + sample.centre[1] == pytest.approx(np.log(kept).mean(), abs=1e-12)
        assert found.variance[replicate, 1] == pytest.approx(np.log(kept).var(), abs=1e-10)


@pytest.mark.parametrize(("zeros", "trusted"), [(0, True), (1, True), (2, False), (50, False), (100, False)])
def test_scale_with_over_one_percent_zeros_is_untrusted(zeros, trusted):
    eps, rng = np.logspace(-4, -1, 8), np.random.default_rng(4)
    r = np.exp(rng.normal(0, 0.3, (8, 100))) * eps[:, None] ** 2
    r[0, :zeros] = 0
    result = analyse([r], eps, settings=AnalysisSettings(bootstrap=20))
    np.testing.assert_array_equal(result.trust.positive, [trusted] + [True] * 7)
    assert result.windows == ((0, 8) if trusted else (1, 8),)
    assert any("1 of 8 scales have zero responses" in flag for flag in result.flags) is not trusted


def test_zeros_within_one_percent_leave_positive_orders_and_say_so():
    eps, rng = np.logspace(-4, -1, 8), np.random.default_rng(5)
    r = np.exp(rng.normal(0, 0.3, (8, 300))) * eps[:, None] ** 2
    r[3, 7] = 0
    result = analyse([r], eps, settings=AnalysisSettings(bootstrap=50))
    q, window = np.array(result.settings.q), result.pooled[0][0]
    np.testing.assert_array_equal(np.isnan(result.tau.value), q <= 0)
    np.testing.assert_array_equal(np.isnan(result.tau.lower), ~np.isin(q, result.supported))
    assert min(result.supported) > 0
    assert np.isnan(result.estimates["m_tau"].value)
    assert window.scalars["m_tau_pos"] == pytest.approx(float(m_tau(window.spectrum.tau[q > 0], q[q > 0])), rel=1e-12)
    low, high = result.estimates["m_tau_supported"].interval
    assert low < high
    assert any("not defined (zero or infinite responses)" in flag for flag in result.flags)


def test_one_zero_response_does_not_hide_the_local_exponent():
    eps, rng = np.logspace(-4, -1, 8), np.random.default_rng(6)
    r = np.exp(rng.normal(0, 1, 300)) * eps[:, None] ** 2  # every local exponent is 2
    r[3, 7] = 0
    profile = analyse([r], eps, settings=AnalysisSettings(bootstrap=20)).profiles[0]
    np.testing.assert_allclose(profile.h_local, 2, **EXACT)
