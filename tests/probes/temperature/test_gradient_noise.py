"""Estimators of gradient noise: unbiased, covering, exact for finite populations, and the law they are meant for."""

import itertools
import math

import numpy as np
import pytest
import torch

import fastscape as fs
from fastscape.numerics.estimate import Estimate
from fastscape.numerics.positive import scaled
from fastscape.probes.temperature.gradient_noise import (
    Units,
    batch_factor,
    effective_rate,
    gibbs_factor,
    mean_square,
    noise_scale,
    noise_trace,
    ratio,
)
from fastscape.probes.temperature.learning_rates import effective_rates


def units_of(gradients, population=math.inf):
    mean = gradients.mean(axis=0)
    steps = gradients - mean
    squares = (steps**2).sum(axis=1)
    return Units(squares, squares, steps @ mean, float(mean @ mean), len(gradients), population)


def jackknife(function, gradients):
    """Leave-one-out values by leaving one out."""
    return np.array([function(np.delete(gradients, index, axis=0)) for index in range(len(gradients))])


def test_leave_one_out_values_need_no_gradients():
    gradients = np.random.default_rng(0).normal(size=(9, 4)) + 0.3
    spread = math.sqrt(8 / 9 * np.sum((loo := jackknife(lambda g: np.trace(np.cov(g.T)), gradients)) ** 2 - loo.mean() ** 2))
    of_mean = noise_trace(units_of(gradients).spread).stderr  # of a mean of K values; those of K - 1 spread by 8 / 7 as much
    assert 8 / 7 * of_mean == pytest.approx(spread, rel=1e-10)

    def unbiased(g):
        return g.mean(axis=0) @ g.mean(axis=0) - np.trace(np.cov(g.T)) / len(g)

    values = jackknife(unbiased, gradients)
    found = mean_square(units_of(gradients))
    assert found.value == pytest.approx(unbiased(gradients))
    assert found.stderr == pytest.approx(math.sqrt(8 / 9 * np.sum((values - values.mean()) ** 2)), rel=1e-10)


@pytest.mark.parametrize("skew", [False, True])
def test_intervals_cover(skew):
    rng, covered, runs = np.random.default_rng(1), np.zeros(3), 400
    sizes = np.array([1.0, 2.0, 0.5, 1.5, 1.0])
    mean = np.array([0.4, 0.0, -0.3, 0.1, 0.2])
    for _ in range(runs):
        noise = rng.normal(size=(80, 5)) * sizes
        if skew:
            noise *= np.exp(0.4 * rng.normal(size=(80, 1)) - 0.16)  # E of the squared factor is 1
        units = units_of(mean + noise)
        trace, square = float(sizes @ sizes), float(mean @ mean)
        for place, (estimate, truth) in enumerate(
            ((noise_trace(units.spread), trace), (mean_square(units), square), (noise_scale(units), trace / square))
        ):
            covered[place] += estimate.interval[0] <= truth <= estimate.interval[1]
    assert np.all(covered / runs > 0.9), covered / runs
    assert np.all(covered / runs < 0.995), covered / runs


def test_the_squared_gradient_is_unbiased_where_the_plain_one_is_not():
    rng, truth = np.random.default_rng(2), 0.05
    values, plain = [], []
    for _ in range(2000):
        units = units_of(rng.normal(size=(10, 5)) + math.sqrt(truth / 5))
        values.append(mean_square(units).value)
        plain.append(units.mean_square)
    error = np.std(values) / math.sqrt(2000)
    assert abs(np.mean(values) - truth) < 3 * error
    assert np.mean(plain) > truth + 20 * error


def test_the_mean_over_groups_of_the_two_batch_estimator_is_the_mean_square_between_them():
    gradients = np.random.default_rng(4).normal(size=(6, 5, 3)).mean(axis=1)  # six groups of five
    large = gradients.mean(axis=0)
    traces = [(small @ small - large @ large) / (1 / 5 - 1 / 30) for small in gradients]  # of two batch sizes
    spread = 5 * ((gradients - large) ** 2).sum(axis=1)
    assert noise_trace(spread).value == pytest.approx(np.mean(traces), rel=1e-12)


def test_the_finite_population_factor_is_that_of_all_batches():
    population = np.random.default_rng(5).normal(size=(7, 3))
    for size in (1, 2, 5, 7):
        means = np.array([population[list(batch)].mean(axis=0) for batch in itertools.combinations(range(7), size)])
        covariance = np.trace(np.cov(means.T, bias=True)) if len(means) > 1 else 0.0
        expected = batch_factor(size, 7) * noise_trace(units_of(population, 7).spread).value
        assert covariance == pytest.approx(expected, abs=1e-14)


def test_a_whole_population_has_no_sampling_error():
    gradients = np.random.default_rng(6).normal(size=(12, 3)) + 0.5
    units = units_of(gradients, 12)
    for estimate in (noise_trace(units.spread, units.unsampled), mean_square(units), noise_scale(units)):
        assert estimate.stderr == 0
        assert estimate.interval == (estimate.value, estimate.value)
    assert mean_square(units).value == pytest.approx(units.mean_square)


def test_part_of_a_population_gives_the_unbiased_square_of_all_of_it():
    population = np.random.default_rng(7).normal(size=(8, 2)) + 0.3
    samples = [units_of(population[list(part)], 8) for part in itertools.combinations(range(8), 4)]
    mean = population.mean(axis=0)
    assert np.mean([mean_square(units).value for units in samples]) == pytest.approx(float(mean @ mean), rel=1e-12)


def test_without_a_gradient_the_noise_scale_has_no_upper_bound():
    gradients = np.random.default_rng(8).normal(size=(50, 6))
    found = noise_scale(units_of(gradients))
    assert found.interval[1] == math.inf
    assert 0 < found.interval[0] < math.inf
    assert noise_scale(units_of(gradients - gradients.mean(axis=0))).value == math.inf


def test_noise_that_is_not_finite_is_kept():
    assert math.isnan(noise_trace(np.array([1.0, math.nan, 2.0])).value)
    assert noise_trace(np.array([1.0, math.inf, 2.0])).value == math.inf
    assert math.isnan(noise_trace(np.array([1.0])).value)


def test_fiellers_interval_covers_and_is_unbounded_where_the_denominator_may_be_zero():
    rng, covered = np.random.default_rng(9), 0
    for _ in range(1000):
        a, b = 2 + 0.3 * rng.normal(), 1 + 0.2 * rng.normal()
        low, high = ratio(Estimate(a, 0.3, (0, 0), 1000), Estimate(b, 0.2, (0, 0), 1000)).interval
        covered += low <= 2 <= high
    assert 0.93 < covered / 1000 < 0.97
    assert ratio(Estimate(1, 0.1, (0, 0), 50), Estimate(0.1, 0.2, (0, 0), 50)).interval == (-math.inf, math.inf)
    assert ratio(Estimate(-2, 0.0, (0, 0), 9), Estimate(4, 0.0, (0, 0), 9)).interval == (-0.5, -0.5)


def test_momentum_divides_the_learning_rate():
    assert effective_rate(0.1) == 0.1
    assert effective_rate(0.1, 0.9) == pytest.approx(1.0)
    assert effective_rate(0.1, 0.9, 0.9) == pytest.approx(0.1)
    assert effective_rate(0.1, 0.0, 0.5) == 0.1, "torch dampens only what enters a momentum buffer"
    assert scaled(Estimate(2, 1, (1, 4), 5), 3) == Estimate(6, 3, (3, 12), 5)


def test_rates_may_be_numbers_of_numpy():
    objective = fs.Objective(torch.nn.Linear(2, 1), [torch.ones(1, 2)], loss=lambda model, x: model(x).sum())
    rates, _ = effective_rates(objective, np.float32(0.25), np.float32(0.5), None)
    np.testing.assert_array_equal(rates, [0.5, 0.5])


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_sgd_on_a_quadratic_has_the_gibbs_variance(momentum):
    rate, curvature, noise = 0.02, np.array([0.5, 1.0, 2.0]), 0.7
    heat = effective_rate(rate, momentum) / 2 * noise**2  # tr Sigma_B / D = noise^2
    rng, weights, speed = np.random.default_rng(10), np.zeros((400, 3)), np.zeros((400, 3))
    squares = np.zeros(3)
    for index in range(3000):
        speed = momentum * speed + curvature * weights + noise * rng.normal(size=weights.shape)
        weights = weights - rate * speed
        if index >= 1000:
            squares += (weights**2).mean(axis=0) / 2000
    np.testing.assert_allclose(squares, heat / curvature, rtol=0.06)  # eta h / 2 of bias, 2 % of sampling
    # exp(-x'Hx factor) has the variance 1 / (2 h factor)
    np.testing.assert_allclose(1 / (2 * curvature * gibbs_factor(heat)), heat / curvature)


def test_the_mean_excess_loss_is_that_of_the_temperature_whatever_the_shape_of_the_noise():
    """H S + S H = eta Sigma has tr(H S) = eta tr(Sigma) / 2: D T / 2 = tr(H S) / 2."""
    from scipy.linalg import solve_continuous_lyapunov

    rng = np.random.default_rng(11)
    root, other = rng.normal(size=(2, 5, 5))
    hessian, sigma, rate = root @ root.T + np.eye(5), other @ other.T, 1e-3
    stationary = solve_continuous_lyapunov(hessian, rate * sigma)
    heat = rate / 2 * np.trace(sigma) / 5
    assert np.trace(hessian @ stationary) / 2 == pytest.approx(5 * heat / 2)
    heat_h = rate / 2 * np.trace(hessian @ sigma) / np.trace(hessian)
    assert np.trace(hessian @ hessian @ stationary) == pytest.approx(heat_h * np.trace(hessian)), "mean squared gradient"
