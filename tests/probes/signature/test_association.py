"""Rank correlation over runs: Spearman's and Kendall's coefficients, exact p-values, intervals that cover."""

import math
from itertools import permutations

import numpy as np
import pytest
from scipy import stats

from fastscape.probes.signature.association import association

RUNS = 200  # of a coverage study: 0.95 has a standard error of 0.015


def pairs(n, correlation, seed):
    a, b = np.random.default_rng(seed).standard_normal((2, n))
    return a, correlation * a + math.sqrt(1 - correlation**2) * b


def population(correlation):
    """Spearman's coefficient of a bivariate normal population."""
    return 6 / math.pi * math.asin(correlation / 2)


@pytest.mark.parametrize("seed", range(4))
def test_one_group_gives_the_coefficients_of_spearman_and_kendall(seed):
    x, y = pairs(11, 0.4, seed)
    if seed % 2:
        x, y = np.round(x), np.round(y)  # ties
    found = association(x, y, replicates=100)
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-14)
    assert found.tau == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-14)
    assert ("tied" in found.reason) == bool(seed % 2)


def test_monotone_transformations_change_nothing():
    x, y = pairs(9, 0.6, 3)
    assert association(np.exp(x), y**3, replicates=100) == association(x, y, replicates=100)


def test_permutation_p_is_the_share_of_all_relabellings():
    x, y = pairs(6, 0.7, 1)
    observed = abs(stats.spearmanr(x, y).statistic)
    count = sum(abs(stats.spearmanr(x, y[list(order)]).statistic) >= observed - 1e-12 for order in permutations(range(6)))
    assert association(x, y, replicates=100).p == count / math.factorial(6)


def test_perfect_order_of_n_runs_has_p_of_two_over_n_factorial():
    for n in (4, 5, 8):
        found = association(np.arange(n), np.arange(n) ** 2, replicates=100)
        assert found.rho == pytest.approx(1, abs=1e-12)
        assert found.p == pytest.approx(2 / math.factorial(n), rel=1e-12)
        assert found.interval[0] < 0.95  # a perfect order of a few runs is no perfect correlation


def test_sampled_p_of_many_runs_agrees_with_the_asymptotic_one():
    x, y = pairs(30, 0.35, 5)
    found = association(x, y, replicates=100)
    reference = stats.spearmanr(x, y).pvalue
    assert "sampled" in found.reason
    assert found.p == pytest.approx(reference, abs=4 * math.sqrt(reference / 9_999) + 0.004)


def test_p_is_uniform_where_nothing_is_associated():
    p = [association(*pairs(7, 0.0, seed), replicates=100).p for seed in range(400)]
    for level in (0.05, 0.2, 0.5):
        assert np.mean(np.array(p) <= level) == pytest.approx(level, abs=3 * math.sqrt(level * (1 - level) / 400))


@pytest.mark.parametrize(("n", "correlation"), [(6, 0.0), (6, 0.8), (6, 0.95), (12, 0.5), (30, 0.8)])
def test_intervals_cover_the_coefficient_of_the_population(n, correlation):
    held = 0
    for seed in range(RUNS):
        low, high = association(*pairs(n, correlation, seed), replicates=300, seed=seed).interval
        held += low <= population(correlation) <= high
    assert held / RUNS >= 0.95 - 3 * 0.0154


def within(per_group, correlation, seed, groups=3):
    """Runs of several architectures: levels that differ a lot, in opposite orders, and a correlation within each."""
    drawn = [pairs(per_group, correlation, 1000 * seed + group) for group in range(groups)]
    x = np.concatenate([a + 100 * group for group, (a, _) in enumerate(drawn)])
    y = np.concatenate([b - 100 * group for group, (_, b) in enumerate(drawn)])
    return x, y, np.repeat(np.arange(groups), per_group)


def test_strata_see_the_association_within_architectures_not_between_them():
    x, y, groups = within(5, 0.98, 0)
    assert association(x, y, replicates=100).rho < -0.7  # Simpson's paradox
    assert association(x, y, groups, replicates=100).rho > 0.7


def test_stratified_rho_is_the_weighted_mean_of_the_groups_coefficients():
    sizes = (4, 6, 3)
    parts = [pairs(size, 0.3, size) for size in sizes]
    rhos = [stats.spearmanr(a, b).statistic for a, b in parts]
    weights = [size * (size - 1) / (size + 1) for size in sizes]
    groups = np.repeat(["mlp", "resnet", "transformer"], sizes)
    found = association(np.concatenate([a for a, _ in parts]), np.concatenate([b for _, b in parts]), groups, replicates=100)
    assert found.rho == pytest.approx(np.average(rhos, weights=weights), abs=1e-14)
    assert found.groups == 3


def test_stratified_p_enumerates_relabellings_within_groups():
    x, y, groups = within(3, 0.5, 2)
    a, b = (np.concatenate([stats.rankdata(values[groups == g]) - 2 for g in range(3)]) for values in (x, y))
    orders = list(permutations(range(3)))
    sums = [
        sum(a[3 * g : 3 * g + 3] @ b[3 * g : 3 * g + 3][list(order)] for g, order in enumerate(three))
        for three in ((i, j, k) for i in orders for j in orders for k in orders)
    ]
    expected = np.mean(np.abs(sums) >= abs(a @ b) - 1e-12)
    assert association(x, y, groups, replicates=100).p == expected


def test_stratified_intervals_cover():
    """Within groups of four the expected coefficient is nearer to zero than that of the population; both are held."""
    r, n = 0.7, 4
    expected = 6 / (math.pi * (n + 1)) * (math.asin(r) + (n - 2) * math.asin(r / 2))
    held = 0
    for seed in range(RUNS):
        x, y, groups = within(n, r, seed)
        low, high = association(x, y, groups, replicates=300, seed=seed).interval
        held += low <= expected <= high
    assert held / RUNS >= 0.95 - 3 * 0.0154


def test_a_perfect_order_has_fishers_interval_with_a_degree_of_freedom_less_per_group():
    """Every resample of a perfect order is one, so that nothing but Fisher's z widens the interval."""
    n, groups = 12, 3
    found = association(np.arange(n), np.arange(n), np.repeat(np.arange(groups), n // groups), replicates=100)
    nearest = 1 - 6 / (n * (n * n - 1))
    half = 1.959964 * math.sqrt((1 + nearest**2 / 2) / (n - groups - 2))
    assert found.interval == pytest.approx((math.tanh(math.atanh(nearest) - half), 1.0), abs=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "groups", "reason"),
    [
        ([1, 2, 3], [1, 2, 3], None, "at least 4 runs are needed, got 3"),
        ([1, 1, 1, 1], [1, 2, 3, 4], None, "early quantity is the same in all runs"),
        ([1, 2, 3, 4], [7, 7, 7, 7], None, "final outcome is the same in all runs"),
        ([1, 1, 2, 2], [1, 2, 3, 4], "aabb", "early quantity is the same in all runs within any group"),
        ([1, 2, 3, 4], [1, 2, 3, 4], "abcd", "at least 4 runs are needed, got 0; 4 left out"),
        ([1, 2, 3, math.nan], [1, 2, 3, 4], None, "got 3; 1 left out"),
    ],
)
def test_degenerate_runs_give_nan_with_the_reason(x, y, groups, reason):
    found = association(x, y, None if groups is None else list(groups))
    assert math.isnan(found.rho)
    assert math.isnan(found.p)
    assert reason in found.reason
    assert reason in str(found)


def test_runs_that_diverged_rank_last_and_nan_is_left_out():
    x = [1.0, 2, 3, 4, 5, 6]
    found = association(x, [0.1, 0.2, math.inf, 0.3, math.nan, math.inf], replicates=100)
    assert found.rho == pytest.approx(association([1, 2, 3, 4, 6], [1, 2, 9, 3, 9], replicates=100).rho)
    assert found.dropped == 1
    assert found.n == 5


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="one entry per run, got 3 and 4"):
        association([1, 2, 3], [1, 2, 3, 4])
    with pytest.raises(ValueError, match="with 2 groups"):
        association([1, 2, 3], [1, 2, 3], ["a", "b"])
    with pytest.raises(ValueError, match="one number per run"):
        association([[1, 2]], [[1, 2]])
    with pytest.raises(ValueError, match="replicates must be at least 100"):
        association([1, 2, 3, 4], [1, 2, 3, 4], replicates=5)
