"""The sum of eta ||g||^2 ||H|| with norms known at some steps."""

import numpy as np
import pytest

from fastscape.probes.tracking.difficulty_sum import RICHARDSON, difficulty, dimensionless, over_seeds


def exact(rates, squares, norms):
    return float(np.sum(rates * squares * norms))


def test_norms_that_are_linear_in_time_are_summed_exactly():
    steps = np.arange(41)
    rates, squares = np.full(41, 0.1), np.random.default_rng(0).random(41)
    norms = 3.0 + 0.25 * steps
    found = difficulty(rates, squares, steps[::10], norms[::10])
    assert found.value == pytest.approx(exact(rates, squares, norms), rel=1e-14)
    assert found.discretisation == pytest.approx(0, abs=1e-13)


def test_the_difference_of_k_and_2k_bounds_the_error_and_is_three_times_it_where_norms_are_smooth():
    steps = np.arange(321)
    rates, squares = np.full(321, 0.1), np.exp(-steps / 150)
    norms = 20 * (1 - np.exp(-steps / 90))
    for spacing in (4, 8, 16):
        found = difficulty(rates, squares, steps[::spacing], norms[::spacing])
        error = abs(found.value - exact(rates, squares, norms))
        assert error < found.discretisation
        assert found.discretisation / error == pytest.approx(RICHARDSON, rel=0.15)


def test_learning_rates_that_change_enter_the_cost_squared():
    rates, squares = np.array([0.1, 0.2, 0.4]), np.array([1.0, 2.0, 3.0])
    found = difficulty(rates, squares, np.array([0, 2]), np.array([5.0, 5.0]))
    assert found.value == pytest.approx(5 * (0.1 + 0.4 + 1.2))
    assert found.cost == pytest.approx(5 * (0.01 + 0.08 + 0.48) / 2)


def test_the_last_norm_is_never_left_out_of_the_coarse_sum():
    found = difficulty(np.ones(10), np.ones(10), np.array([0, 3, 6, 9]), np.array([0.0, 0.0, 0.0, 9.0]))
    assert found.coarse == found.value == 9.0 * (0 + 1 / 3 + 2 / 3 + 1)


def test_one_norm_is_constant_and_nan_stays():
    assert difficulty(np.ones(3), np.ones(3), np.array([0]), np.array([2.0])).value == 6
    assert np.isnan(difficulty(np.ones(3), np.array([1.0, np.nan, 1.0]), np.array([0]), np.array([2.0])).value)


def test_the_dimensionless_number_is_cost_over_descent_and_needs_a_descent():
    assert dimensionless(0.3, 2.0, 1.4) == pytest.approx(0.5)
    assert np.isnan(dimensionless(0.3, 1.0, 1.0))
    assert np.isnan(dimensionless(0.3, 1.0, np.nan))


def test_intervals_over_seeds_cover_the_mean_95_times_in_100():
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(2000):
        low, high = over_seeds(list(5 + rng.standard_normal(4))).interval
        hits += low <= 5 <= high
    assert 0.935 <= hits / 2000 <= 0.965


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((np.ones(3), np.ones(4), np.array([0]), np.ones(1)), "one value per step"),
        ((np.ones(3), np.ones(3), np.array([]), np.array([])), "at least one"),
        ((np.ones(3), np.ones(3), np.array([2, 1]), np.ones(2)), "ascend"),
    ],
)
def test_bad_input_is_named(arguments, words):
    with pytest.raises(ValueError, match=words):
        difficulty(*arguments)


def test_no_seed_is_refused():
    with pytest.raises(ValueError, match="values"):
        over_seeds([])
