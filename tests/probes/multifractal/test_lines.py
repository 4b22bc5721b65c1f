"""The slope operator, its fit quality and local slopes, against numpy and scipy."""

import numpy as np
import pytest
from scipy.stats import linregress

from fastscape.probes.multifractal.lines import fit_line, local_slopes, slope

EXACT = {"rtol": 1e-12, "atol": 1e-13}

X = np.sort(np.random.default_rng(0).uniform(-9, 0, 11))
Y = np.random.default_rng(1).normal(2, 1, (11, 4)) + 1.5 * X[:, None]
WEIGHTS = np.random.default_rng(2).uniform(0.2, 5, 11)


def test_unweighted_line_is_scipy_linregress():
    line = fit_line(X, Y)
    for column in range(4):
        expected = linregress(X, Y[:, column])
        for name, value in (
            ("slope", expected.slope),
            ("intercept", expected.intercept),
            ("stderr", expected.stderr),
            ("r2", expected.rvalue**2),
        ):
            np.testing.assert_allclose(getattr(line, name)[column], value, **EXACT)


def test_weighted_line_is_weighted_least_squares():
    line = fit_line(X, Y, WEIGHTS)
    root = np.sqrt(WEIGHTS)
    for column in range(4):
        (b, a), covariance = np.polyfit(X, Y[:, column], 1, w=root, cov=True)
        np.testing.assert_allclose([line.slope[column], line.intercept[column]], [b, a], **EXACT)
        np.testing.assert_allclose(line.stderr[column], np.sqrt(covariance[0, 0]), **EXACT)
        residual = np.sum(WEIGHTS * (Y[:, column] - a - b * X) ** 2)
        total = np.sum(WEIGHTS * (Y[:, column] - np.average(Y[:, column], weights=WEIGHTS)) ** 2)
        np.testing.assert_allclose(line.r2[column], 1 - residual / total, **EXACT)


def test_common_factor_of_the_weights_cancels():
    heavy, light = fit_line(X, Y, 1e3 * WEIGHTS), fit_line(X, Y, WEIGHTS)
    for name in ("slope", "intercept", "stderr", "r2"):
        np.testing.assert_allclose(getattr(heavy, name), getattr(light, name), **EXACT)


def test_equal_weights_are_no_weights():
    np.testing.assert_allclose(slope(X, Y, np.full(11, 3.0)), slope(X, Y), **EXACT)


def test_slope_is_linear_and_blind_to_constants():
    np.testing.assert_allclose(slope(X, 3 * Y + 1e3), 3 * slope(X, Y), rtol=0, atol=1e-11)
    np.testing.assert_allclose(slope(X, X), 1, **EXACT)


def test_line_acts_on_axis_0_for_every_trailing_index():
    cube = np.stack([Y, -2 * Y], axis=2)  # [K, 4, 2]
    line = fit_line(X, cube)
    for name in ("slope", "intercept", "stderr"):
        np.testing.assert_allclose(getattr(line, name)[:, 0], getattr(fit_line(X, Y), name), **EXACT)
    np.testing.assert_allclose(line.slope[:, 1], -2 * line.slope[:, 0], **EXACT)
    np.testing.assert_allclose(line.stderr[:, 1], 2 * line.stderr[:, 0], **EXACT)


@pytest.mark.parametrize("value", [0.0, 3.0, -1e6])
def test_constant_data_have_no_r2(value):
    line = fit_line(X, np.full((11, 2), value))
    assert np.isnan(line.r2).all()
    np.testing.assert_array_equal(line.slope, 0)
    np.testing.assert_allclose(line.stderr, 0, rtol=0, atol=1e-9)


def test_r2_is_undefined_below_rounding_and_defined_above_it():
    rounding = fit_line(X, 5 + 1e-13 * X[:, None])
    assert np.isnan(rounding.r2).all()
    small = fit_line(X, 5 + 1e-9 * X[:, None])
    np.testing.assert_allclose(small.r2, 1, rtol=0, atol=1e-6)


def test_exact_line_has_r2_of_1_and_no_error():
    line = fit_line(X, 2 * X[:, None] + 1)
    np.testing.assert_allclose(line.r2, 1, **EXACT)
    np.testing.assert_allclose(line.stderr, 0, rtol=0, atol=1e-14)
    np.testing.assert_allclose(line.intercept, 1, **EXACT)


def test_two_points_have_no_standard_error():
    line = fit_line(X[:2], Y[:2])
    assert np.isnan(line.stderr).all()
    np.testing.assert_allclose(line.slope, (Y[1] - Y[0]) / (X[1] - X[0]), **EXACT)


def test_nan_column_does_not_reach_its_neighbours():
    damaged = Y.copy()
    damaged[3, 1] = np.nan
    line, intact = fit_line(X, damaged), fit_line(X, Y)
    assert np.isnan(line.slope[1])
    np.testing.assert_array_equal(np.delete(line.slope, 1), np.delete(intact.slope, 1))


def test_local_slopes_are_difference_quotients():
    expected = [[(Y[k + 1, j] - Y[k, j]) / (X[k + 1] - X[k]) for j in range(4)] for k in range(10)]
    np.testing.assert_allclose(local_slopes(X, Y), expected, **EXACT)


def test_local_slopes_of_a_power_law_are_its_exponent():
    np.testing.assert_allclose(local_slopes(X, np.outer(X, [0.5, 2.0]) + 7), np.tile([0.5, 2.0], (10, 1)), rtol=1e-11)


def test_local_slopes_average_to_the_slope_between_the_ends():
    steps = np.diff(X)[:, None]
    mean = np.sum(local_slopes(X, Y) * steps, axis=0) / (X[-1] - X[0])
    np.testing.assert_allclose(mean, (Y[-1] - Y[0]) / (X[-1] - X[0]), **EXACT)
