"""Orders that the directions support: invariances, what spread and zeros leave, and how many would help."""

import math

import numpy as np
import pytest

from fastscape import AnalysisSettings, analyse
from fastscape.probes.multifractal.support import semi_deviations, support

Q = np.array(AnalysisSettings().q)
X = np.log(2.0 ** -np.arange(10, 0, -1))


def walk(sigma, directions, seed=0):
    return np.cumsum(np.random.default_rng(seed).normal(0, sigma, (10, directions)), axis=0)[::-1]


def test_load_is_the_order_in_units_of_the_critical_one():
    log_r = walk(0.1, 256)
    above = np.array([row[row > np.median(row)] - np.median(row) for row in log_r])
    below = np.array([row[row < np.median(row)] - np.median(row) for row in log_r])
    upper, lower = (np.sqrt((side**2).mean(axis=1)).max() for side in (above, below))
    assert semi_deviations(log_r) == pytest.approx((upper, lower), rel=1e-12)
    expected = np.abs(Q) * np.where(Q > 0, upper, lower) / np.sqrt(2 * np.log(256))
    np.testing.assert_allclose(support([log_r], Q).load, expected, rtol=1e-12)


def test_support_does_not_depend_on_the_unit_of_the_loss():
    log_r = walk(0.2, 256)
    one, other = support([log_r], Q), support([log_r + 3 - np.arange(10)[:, None]], Q)
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_allclose(one.load, other.load, rtol=1e-12)
    eps = np.exp(X)
    r = np.exp(log_r)
    found = [analyse([unit * r], eps, settings=AnalysisSettings(bootstrap=2, permutations=1)) for unit in (1.0, 1e-30, 1e30)]
    assert found[0].supported == found[1].supported == found[2].supported == one.orders


def test_orders_are_a_run_around_one_and_never_below_minus_one():
    for sigma in (0.01, 0.1, 0.2, 0.3):
        for directions in (64, 1024):
            held = support([walk(sigma, directions)], Q)
            orders = np.array(held.orders)
            assert len(orders) == 0 or (orders[0] >= -1 and orders[0] < 1 < orders[-1] and len(orders) >= 4)
            grid = Q[Q != 0]
            inside = (grid >= orders[0]) & (grid <= orders[-1]) if len(orders) else np.zeros(len(grid), bool)
            np.testing.assert_array_equal(grid[inside], orders)
            assert (held.load[held.mask] <= 1 / 3).all()
    assert support([walk(0.01, 1024)], Q).orders == tuple(q for q in Q if q >= -1 and q)


def test_a_spread_that_the_walk_reaches_ends_the_orders():
    held = support([walk(0.2, 256)], Q).orders
    assert held[0] == -1
    assert held[-1] in (1.25, 1.5, 2.0)


@pytest.mark.parametrize("seed", range(5))
def test_one_squared_normal_has_no_negative_order(seed):
    log_r = np.log(np.random.default_rng(seed).chisquare(1, 256)) + 2 * X[:, None]
    assert not any(order < 0 for order in support([log_r], Q).orders)


def test_zeros_leave_positive_orders_only():
    log_r = walk(0.05, 256)
    log_r[3, 5] = -np.inf
    held = support([log_r], Q)
    assert held.orders[0] == 0.25
    assert np.isinf(held.load[Q < 0]).all()


def test_the_worst_of_several_measures_and_the_smallest_decides():
    narrow, wide = walk(0.05, 400), walk(0.2, 100)
    both = support([narrow, wide], Q)
    np.testing.assert_allclose(both.load, np.maximum(support([narrow], Q).load, support([wide], Q).load))
    assert both.directions == 100
    assert support([narrow, walk(0.05, 63)], Q).orders == ()


def test_a_reason_supports_nothing():
    held = support([walk(0.05, 256)], Q, "signs mix")
    assert held.orders == ()
    assert held.lacking(Q) == "signs mix"


def test_needed_directions_are_where_the_load_is_a_third():
    held = support([walk(0.2, 256)], Q)
    assert held.needed(4.0) > 1e7
    assert held.needed(-2.0) == math.inf
    for order in (0.5, 1.0, 1.25):
        needed = held.needed(order)
        assert order * held.upper / math.sqrt(2 * math.log(needed)) == pytest.approx(1 / 3, rel=1e-12)
    assert all(held.needed(order) <= 256 for order in held.orders)


def test_reasons_name_the_orders_the_spread_and_the_remedy():
    few = support([walk(0.2, 50)], Q)
    assert few.lacking(Q) == "50 directions; moments need 64"
    wide = support([walk(0.2, 256)], Q)
    last = wide.orders[-1]
    expected = f"256 directions support q -1..{last:g} (spread of ln r {wide.upper:.2f}); q = 4 needs more than 1e7"
    assert wide.lacking(Q).startswith(expected)
    assert "report c2" in wide.lacking(Q)
    calm = support([walk(0.05, 256)], Q)
    assert calm.lacking(Q) == "256 directions support q -1..4; no number of them supports q < -1"
    assert calm.holds(np.array([-1.0, 0.5, 4.0]))
    assert not calm.holds(np.array([-2.0, 0.5]))
    near = support([walk(0.2, 64)], np.array([0.25, 0.5, 0.75, 1.0, 1.25, 2.0]))
    needed = near.needed(2.0)
    if 64 < needed <= 1e5:
        assert "report c2" not in near.lacking(near.q)
        assert "q = 2 needs about " in near.lacking(near.q)


def test_core_orders_are_fixed():
    assert AnalysisSettings(q="core").q == tuple(q for q in Q if -1 <= q <= 2)
    with pytest.raises(ValueError, match="q must be 'core' or orders, got 'wide'"):
        AnalysisSettings(q="wide")


def test_orders_of_a_power_are_those_of_the_response():
    """r^(gamma q) exists for q >= -1 / gamma where r^-1 just does."""
    log_r = walk(0.02, 256)
    assert support([2 * log_r], Q, gamma=2.0).orders[0] == -0.5
    assert support([4 * log_r], Q, gamma=4.0).orders[0] == 0.25
    assert support([0.5 * log_r], Q, gamma=0.5).orders[0] == -1
    assert "supports q < -0.5" in support([2 * log_r], Q, gamma=2.0).lacking(Q)
    found = analyse([np.exp(log_r)], np.exp(X), settings=AnalysisSettings(gamma=2.0, bootstrap=20, permutations=1))
    assert found.supported[0] == -0.5
    assert "orders 0.25.." in found.estimates["alpha_width"].method
