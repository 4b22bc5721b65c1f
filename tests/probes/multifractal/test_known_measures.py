"""Measures and losses whose exponents are known in closed form (T1 to T5, T9)."""

from itertools import product

import numpy as np
import pytest

from fastscape import AnalysisSettings, analyse
from fastscape.probes.multifractal.exponents import exponents, holder_exponents, ratio_spectrum
from fastscape.probes.multifractal.moments import log_magnitude, log_measure, moments
from fastscape.probes.multifractal.scalars import m_tau

EXACT = {"rtol": 0, "atol": 1e-12}
PRINTED = {"rtol": 0, "atol": 1e-9}  # T5
# T3 from float64 loss evaluations: M_tau stays below
ROUNDING = {(-2, 0): 1e-12, (-4, -1): 4e-9, (-6.5, -1.9): 3e-3}

AUTHORS_GRID = np.array([-3, -2, -1.5, -1, -0.5, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2, 3, 4])
WIDE_Q = np.array([-5, -3, -2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 5])
FAST = AnalysisSettings(bootstrap=20, permutations=19)


def cascade(weights, level: int) -> np.ndarray:
    """Ln p of the len(weights)^level boxes of a multinomial cascade."""
    log_p = np.zeros(1)
    for _ in range(level):
        log_p = (log_p[:, None] + np.log(weights)).ravel()
    return log_p


def multinomial_theory(weights, q):
    base, m = np.log(len(weights)), np.array(weights)
    powers = m ** q[:, None]
    share = powers / powers.sum(axis=1, keepdims=True)
    tau, alpha = -np.log(powers.sum(axis=1)) / base, -(share * np.log(m)).sum(axis=1) / base
    return tau, alpha, q * alpha - tau


@pytest.mark.parametrize(("weights", "levels"), [((0.3, 0.7), 14), ((0.1, 0.2, 0.3, 0.4), 8), ((0.5, 0.5), 10)])
def test_multinomial_cascade_has_its_closed_form_spectrum(weights, levels):
    levels = np.arange(levels, 0, -1)
    eps = float(len(weights)) ** -levels
    log_p = [cascade(weights, level) for level in levels]  # ragged: the number of boxes changes with the radius
    tau, alpha, f = multinomial_theory(weights, WIDE_Q)
    result = exponents(moments(log_p, WIDE_Q), np.log(eps), WIDE_Q)
    np.testing.assert_allclose(result.tau, tau, **EXACT)
    np.testing.assert_allclose(result.alpha, alpha, **EXACT)
    np.testing.assert_allclose(result.f, f, **EXACT)
    alpha_ratio, f_ratio = ratio_spectrum(log_p, eps, WIDE_Q)  # no prefactor: ratio and slope agree
    np.testing.assert_allclose(alpha_ratio, alpha, **EXACT)
    np.testing.assert_allclose(f_ratio, f, **EXACT)


def test_uniform_measure_has_dimension_one():
    levels = np.arange(10, 0, -1)
    result = exponents(moments([cascade((0.5, 0.5), n) for n in levels], WIDE_Q), -levels * np.log(2.0), WIDE_Q)
    np.testing.assert_allclose(result.tau, WIDE_Q - 1, **EXACT)
    np.testing.assert_allclose(result.alpha, 1, **EXACT)
    np.testing.assert_allclose(result.f, 1, **EXACT)
    np.testing.assert_allclose(result.dimension, 1, **EXACT)


def test_fixed_directions_in_a_binomial_cascade_have_their_closed_form_spectrum():
    p, depth = 0.3, 12
    digits = np.array(list(product([p, 1 - p], repeat=depth)))  # [leaves, level]
    levels = np.arange(depth, 0, -1)
    r = np.cumprod(digits, axis=1).T[levels - 1]  # mass of the level-k box that holds the leaf
    eps = 2.0**-levels
    result = analyse([r], eps, settings=AnalysisSettings(q=tuple(WIDE_Q), bootstrap=2, permutations=1))
    box_tau, box_alpha, box_f = multinomial_theory((p, 1 - p), WIDE_Q)
    spectrum = result.pooled[0][0].spectrum
    expected = 1 - WIDE_Q - np.log2(p**WIDE_Q + (1 - p) ** WIDE_Q)
    np.testing.assert_allclose(expected, box_tau + 1 - WIDE_Q, **EXACT)
    np.testing.assert_allclose(spectrum.tau, expected, **EXACT)
    np.testing.assert_allclose(spectrum.alpha, box_alpha - 1, **EXACT)
    np.testing.assert_allclose(spectrum.f, box_f - 1, **EXACT)


def test_fixed_directions_in_a_binomial_cascade_have_the_known_m_tau():
    p, depth = 0.3, 12
    digits = np.array(list(product([p, 1 - p], repeat=depth)))
    r = np.cumprod(digits, axis=1).T
    x = -np.log(2.0) * np.arange(1, depth + 1)
    tau = exponents(moments(log_measure(np.log(r)), AUTHORS_GRID), x, AUTHORS_GRID).tau
    assert m_tau(tau, AUTHORS_GRID) == pytest.approx(0.400287162997058, rel=0, abs=1e-12)


@pytest.fixture(scope="module")
def curvatures():
    """Curvatures d'Hd of 64 unit directions under a positive-definite H in 200 dimensions."""
    rng = np.random.default_rng(3)
    factor, d = rng.standard_normal((200, 200)), rng.standard_normal((64, 200))
    return np.sum((d @ factor) ** 2, axis=1) / np.sum(d**2, axis=1)


def test_quadratic_responses_have_zero_tau(curvatures):
    eps = np.logspace(-5, -1, 12)
    result = analyse([eps[:, None] ** 2 * curvatures], eps, settings=FAST)
    spectrum = result.pooled[0][0].spectrum
    for values in (spectrum.tau, spectrum.alpha, spectrum.f, spectrum.dimension):
        np.testing.assert_allclose(values, 0, **EXACT)
    np.testing.assert_allclose(result.pooled[0][0].holder.h, 2, **EXACT)
    assert result.estimates["m_tau"].value == pytest.approx(0, abs=1e-12)
    assert result.scaling == "common"
    assert result.quadratic
    assert np.isnan(result.p_value)


@pytest.mark.parametrize("decades", ROUNDING)
def test_quadratic_evaluated_in_float64_has_m_tau_at_rounding_level(decades):
    rng = np.random.default_rng(3)
    curvature, w, d = np.linspace(0.1, 2, 200), rng.standard_normal(200), rng.standard_normal((512, 200))
    d /= np.linalg.norm(d, axis=1, keepdims=True)

    def loss(points):  # pairwise sums: a matrix product rounds ten times worse and misses these bounds
        return 0.5 * np.sum(curvature * points**2, axis=1)

    w *= np.sqrt(81 / loss(w[None])[0])
    eps, base = np.logspace(*decades, 12), loss(np.tile(w, (len(d), 1)))
    r = np.stack([loss(w + e * d) - 2 * base + loss(w - e * d) for e in eps])
    tau = exponents(moments(log_measure(log_magnitude(r)), AUTHORS_GRID), np.log(eps), AUTHORS_GRID).tau
    assert m_tau(tau, AUTHORS_GRID) < ROUNDING[decades]


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 2.0, 3.0])
def test_sum_of_powers_has_its_power_as_every_exponent(power):
    d = np.random.default_rng(4).standard_normal((50, 30))
    eps = np.logspace(-4, -1, 12)
    r = np.stack([2 * (np.abs(e * d) ** power).sum(axis=1) for e in eps])
    window = analyse([r], eps, settings=FAST).pooled[0][0]
    np.testing.assert_allclose(window.holder.h, power, **EXACT)
    np.testing.assert_allclose(window.spectrum.tau, 0, **EXACT)
    assert window.scalars["c1"] == pytest.approx(power, abs=1e-12)


@pytest.mark.parametrize(("power", "quadratic"), [(2.0, True), (1.5, False), (3.0, False)])
def test_only_exponent_2_is_called_quadratic(power, quadratic):
    d = np.random.default_rng(4).standard_normal((50, 30))
    eps = np.logspace(-4, -1, 12)
    result = analyse([np.stack([(np.abs(e * d) ** power).sum(axis=1) for e in eps])], eps, settings=FAST)
    assert result.scaling == "common"
    assert result.quadratic is quadratic


def test_one_power_per_axis_has_that_power_as_its_exponent():
    powers, eps = np.linspace(1, 2, 64), np.logspace(-4, -1, 12)
    r = 2 * eps[:, None] ** powers  # L = sum |w_k|^a_k along the axes
    result = analyse([r], eps, settings=FAST)
    window = result.pooled[0][0]
    printed = [-2.3101156655, -1.4770784787, -1.0620664374, -0.6527565177, -0.2698907578, 0.0519435505, 0.0564875011]
    printed += [0.0344938831, 0, -0.0401591636, -0.0829316609, -0.1715654434, -0.3518461125, -0.5325052545]
    np.testing.assert_allclose(window.holder.h, powers, **PRINTED)
    assert window.scalars["h_std"] == pytest.approx(0.29322147939541543, rel=0, abs=1e-9)
    assert window.scalars["m_tau"] == pytest.approx(0.4981283056764636, rel=0, abs=1e-9)
    np.testing.assert_allclose(window.spectrum.tau[window.spectrum.q != 0], printed, **PRINTED)
    np.testing.assert_array_equal(window.spectrum.q[window.spectrum.q != 0], AUTHORS_GRID)


def test_kink_at_the_point_has_exponent_1():
    d = np.random.default_rng(5).standard_normal(100)
    eps = np.logspace(-5, -1, 12)
    points = np.outer(eps, d)
    even = np.abs(points) - 2 * np.abs(0 * points) + np.abs(-points)  # L = |w_1| at w_1 = 0
    result = analyse([even], eps, settings=FAST)
    np.testing.assert_allclose(result.pooled[0][0].holder.h, 1, **EXACT)
    np.testing.assert_allclose(result.tau.value, 0, **EXACT)


def test_kink_beside_the_point_answers_only_beyond_its_distance():
    c, d = 0.03, np.random.default_rng(6).standard_normal(400)
    eps = np.logspace(-3, 0, 13)[:-1]
    points = np.outer(eps, d)
    even = np.maximum(points - c, 0) - 2 * np.maximum(0 * points - c, 0) + np.maximum(-points - c, 0)
    crossed = np.abs(points) > c
    expected = np.where(crossed, np.abs(points) - c, 0.0)
    np.testing.assert_allclose(even, expected, **EXACT)
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(log_magnitude(even), np.log(expected), **EXACT)
    holder = holder_exponents(log_magnitude(even), np.log(eps))
    np.testing.assert_array_equal(np.isnan(holder.h), ~crossed.all(axis=0))
    positive, far = AUTHORS_GRID[AUTHORS_GRID > 0], crossed.any(axis=1)
    p = expected[far] / expected[far].sum(axis=1, keepdims=True)
    z = np.stack([(p**q).sum(axis=1) for q in positive], axis=1)
    np.testing.assert_allclose(moments(log_measure(log_magnitude(even[far])), positive).log_z, np.log(z), **EXACT)


def test_kink_beside_the_point_makes_its_scales_untrusted():
    c, d = 0.03, np.random.default_rng(6).standard_normal(400)
    eps = np.logspace(-3, 0, 13)[:-1]
    even = np.maximum(np.abs(np.outer(eps, d)) - c, 0)
    result = analyse([even], eps, settings=FAST)
    np.testing.assert_array_equal(result.trust.mask, np.mean(np.outer(eps, np.abs(d)) > c, axis=1) >= 0.99)
    assert not result.valid
