"""Exact identities and invariances of the exponents (B5, T11)."""

import numpy as np
import pytest

from fastscape import AnalysisSettings, analyse
from fastscape.probes.multifractal.exponents import (
    cumulants,
    exponents,
    holder_exponents,
    ratio_spectrum,
    structure_exponents,
)
from fastscape.probes.multifractal.moments import log_measure, moments

EXACT = {"rtol": 0, "atol": 1e-12}
DERIVATIVE = {"rtol": 0, "atol": 1e-9}

Q = np.array([-5, -3, -2, -1, -0.5, 0, 0.25, 0.5, 1, 1.5, 2, 3, 4, 5])


def spectrum(eps, r, q=Q, weights=None):
    return exponents(moments(log_measure(np.log(np.abs(r))), q), np.log(eps), q, weights)


@pytest.fixture(params=["f2", "random_powers"])
def responses(request):
    return request.getfixturevalue(request.param)


def test_tau_is_zero_at_orders_0_and_1(responses):
    tau = spectrum(*responses).tau
    np.testing.assert_allclose(tau[np.isin(Q, [0, 1])], 0, **EXACT)


def test_alpha_and_f_meet_at_order_1(responses):
    result = spectrum(*responses)
    at = np.flatnonzero(Q == 1)
    np.testing.assert_allclose(result.alpha[at], result.f[at], **EXACT)
    np.testing.assert_allclose(result.dimension[at], result.alpha[at], **EXACT)


def test_f_is_the_legendre_transform_of_tau(responses):
    result = spectrum(*responses)
    np.testing.assert_allclose(result.f, Q * result.alpha - result.tau, **EXACT)


def test_alpha_is_the_derivative_of_tau(responses):
    step = 1e-5
    upper, lower = spectrum(*responses, Q + step).tau, spectrum(*responses, Q - step).tau
    np.testing.assert_allclose(spectrum(*responses).alpha, (upper - lower) / (2 * step), **DERIVATIVE)


def test_dimension_is_tau_over_q_minus_1(responses):
    result = spectrum(*responses)
    other = Q != 1
    np.testing.assert_allclose(result.dimension[other] * (Q[other] - 1), result.tau[other], **EXACT)


def test_tau_is_zeta_minus_q_zeta_1(responses):
    eps, r = responses
    zeta = structure_exponents(np.log(np.abs(r)), np.log(eps), Q)
    np.testing.assert_allclose(zeta - Q * zeta[Q == 1], spectrum(eps, r).tau, **EXACT)


def test_zeta_is_the_slope_of_the_log_of_the_summed_powers(f2):
    eps, r = f2
    expected = [np.polyfit(np.log(eps), np.log((r**q).sum(axis=1)), 1)[0] for q in Q]
    np.testing.assert_allclose(structure_exponents(np.log(r), np.log(eps), Q), expected, **EXACT)


def test_identities_hold_with_weights(random_powers):
    eps, r = random_powers
    weights = np.linspace(1, 3, len(eps))
    result = spectrum(eps, r, weights=weights)
    zeta = structure_exponents(np.log(np.abs(r)), np.log(eps), Q, weights)
    np.testing.assert_allclose(zeta - Q * zeta[Q == 1], result.tau, **EXACT)
    np.testing.assert_allclose(result.f, Q * result.alpha - result.tau, **EXACT)
    assert abs(result.tau - spectrum(eps, r).tau).max() > 1e-3  # the weights are used
    log_r, x = np.log(np.abs(r)), np.log(eps)
    holder, first_two = holder_exponents(log_r, x, weights), cumulants(log_r, x, weights)
    np.testing.assert_allclose(holder.h, np.polyfit(x, log_r, 1, w=np.sqrt(weights))[0], **EXACT)
    assert first_two.c1 == pytest.approx(holder.mean, rel=0, abs=1e-12)
    assert first_two.c2 == pytest.approx(np.polyfit(x, first_two.C2, 1, w=np.sqrt(weights))[0], rel=0, abs=1e-12)


CHANGES = {
    "a factor per radius": lambda eps, r: (eps, r * np.geomspace(1e-6, 10, len(eps))[::-1, None] ** 1.7),
    "the unit of eps": lambda eps, r: (eps * 37.5, r),
    "the order of directions": lambda eps, r: (eps, np.roll(r, 3, axis=1)[:, ::-1]),
    "duplicated directions": lambda eps, r: (eps, np.concatenate([r, r], axis=1)),
    "signs": lambda eps, r: (eps, -r),
}


@pytest.mark.parametrize("change", CHANGES)
def test_spectrum_is_invariant_under(responses, change):
    original, changed = spectrum(*responses), spectrum(*CHANGES[change](*responses))
    np.testing.assert_allclose(changed.tau, original.tau, **EXACT)
    if change != "duplicated directions":
        np.testing.assert_allclose(changed.n_eff, original.n_eff, rtol=1e-12)
    np.testing.assert_allclose(changed.alpha, original.alpha, **EXACT)
    np.testing.assert_allclose(changed.f, original.f, **EXACT)


def test_permuting_directions_differently_at_each_radius_leaves_tau_alone(responses):
    eps, r = responses
    shuffled = np.random.default_rng(0).permuted(r, axis=1)
    np.testing.assert_allclose(spectrum(eps, shuffled).tau, spectrum(eps, r).tau, **EXACT)


def test_duplicating_directions_doubles_the_effective_number(responses):
    eps, r = responses
    doubled = spectrum(eps, np.concatenate([r, r], axis=1)).n_eff
    np.testing.assert_allclose(doubled, 2 * spectrum(eps, r).n_eff, rtol=1e-12)


def test_holder_exponents_shift_by_1_when_responses_are_multiplied_by_eps(responses):
    eps, r = responses
    log_r, x = np.log(np.abs(r)), np.log(eps)
    before, after = holder_exponents(log_r, x), holder_exponents(log_r + x[:, None], x)
    np.testing.assert_allclose(after.h, before.h + 1, **EXACT)
    assert after.std == pytest.approx(before.std, rel=0, abs=1e-12)
    np.testing.assert_allclose(spectrum(eps, r * eps[:, None]).tau, spectrum(eps, r).tau, **EXACT)


def test_first_log_cumulant_is_the_mean_holder_exponent(responses):
    eps, r = responses
    log_r, x = np.log(np.abs(r)), np.log(eps)
    assert cumulants(log_r, x).c1 == pytest.approx(holder_exponents(log_r, x).mean, rel=0, abs=1e-12)


def test_log_cumulants_are_slopes_of_mean_and_population_variance(responses):
    eps, r = responses
    log_r, x = np.log(np.abs(r)), np.log(eps)
    result = cumulants(log_r, x)
    np.testing.assert_allclose(result.C1, [sum(row) / len(row) for row in log_r], **EXACT)
    np.testing.assert_allclose(result.C2, np.mean(log_r**2, axis=1) - np.mean(log_r, axis=1) ** 2, rtol=0, atol=1e-11)
    assert result.c1 == pytest.approx(np.polyfit(x, result.C1, 1)[0], rel=0, abs=1e-12)
    assert result.c2 == pytest.approx(np.polyfit(x, result.C2, 1)[0], rel=0, abs=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 3.0])
def test_gamma_identity_matches_the_measure_of_powered_responses(responses, gamma):
    eps, r = responses
    direct = spectrum(eps, np.abs(r) ** gamma)
    plain, below = spectrum(eps, np.abs(r), gamma * Q), spectrum(eps, np.abs(r), np.array([gamma])).tau[0]
    tau, alpha, f = plain.tau - Q * below, gamma * plain.alpha - below, plain.f
    np.testing.assert_allclose(tau, direct.tau, **EXACT)
    np.testing.assert_allclose(alpha, direct.alpha, **EXACT)
    np.testing.assert_allclose(f, direct.f, **EXACT)


def test_gamma_setting_is_the_analysis_of_powered_responses(random_powers):
    eps, r = random_powers
    results = [
        analyse([np.abs(r) ** 2.5], eps, settings=AnalysisSettings(q=tuple(Q), bootstrap=20)),
        analyse([np.abs(r)], eps, settings=AnalysisSettings(q=tuple(Q), gamma=2.5, bootstrap=20)),
    ]
    powered, setting = (result.pooled[0][0] for result in results)
    for name in ("tau", "alpha", "f"):
        np.testing.assert_allclose(getattr(setting.spectrum, name), getattr(powered.spectrum, name), **EXACT)
    np.testing.assert_allclose(setting.holder.h, powered.holder.h, **EXACT)
    assert setting.scalars["c2"] == pytest.approx(powered.scalars["c2"], rel=1e-12)
    for name, estimate in results[0].estimates.items():
        np.testing.assert_allclose(results[1].estimates[name].interval, estimate.interval, rtol=1e-9)


def test_ratio_variant_depends_on_the_unit_of_eps(f2):
    eps, r = f2
    log_p = log_measure(np.log(r))
    alpha, _ = ratio_spectrum(log_p, eps, Q)
    rescaled, _ = ratio_spectrum(log_p, eps / 100, Q)
    assert abs(rescaled - alpha).min() > 0.1


def test_ratio_variant_is_the_mean_of_single_radius_ratios(f2):
    eps, r = f2
    p = r / r.sum(axis=1, keepdims=True)
    mu = p[:, None] ** Q[:, None] / (p[:, None] ** Q[:, None]).sum(axis=2, keepdims=True)  # [K, Q, N]
    alpha, f = ratio_spectrum(np.log(p), eps, Q)
    log_eps = np.log(eps)[:, None]
    np.testing.assert_allclose(alpha, ((mu * np.log(p)[:, None]).sum(axis=2) / log_eps).mean(axis=0), **EXACT)
    np.testing.assert_allclose(f, ((mu * np.log(mu)).sum(axis=2) / log_eps).mean(axis=0), **EXACT)


@pytest.mark.parametrize("largest", [1.0, 2.0])
def test_ratio_variant_refuses_radii_of_1_or_more(f2, largest):
    eps, r = f2
    with pytest.raises(ValueError, match=f"eps must be below 1.*got {largest}"):
        ratio_spectrum(log_measure(np.log(r)), eps * (largest / eps[-1]), Q)


def test_moments_are_the_sums_over_directions(f2):
    _, r = f2
    p = r / r.sum(axis=1, keepdims=True)
    z = (p[:, None] ** Q[:, None]).sum(axis=2)
    result = moments(log_measure(np.log(r)), Q)
    np.testing.assert_allclose(result.log_z, np.log(z), **EXACT)
    np.testing.assert_allclose(result.n_eff, z**2 / (p[:, None] ** (2 * Q[:, None])).sum(axis=2), rtol=1e-12)
    np.testing.assert_allclose(result.entropy, Q * result.mean_log - result.log_z, **EXACT)
