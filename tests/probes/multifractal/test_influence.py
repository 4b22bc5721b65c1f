"""Influence functions are derivatives by the weight of a direction, and replicates are literal resamples."""

import numpy as np
import pytest

from fastscape.probes.multifractal import influence
from fastscape.probes.multifractal.bootstrap import (
    Replicated,
    hull,
    mean_of,
    multiplicities,
    resampled_quantiles,
    standard_errors,
    strata,
)
from fastscape.probes.multifractal.exponents import cumulants, exponents, holder_exponents, spread_ratio
from fastscape.probes.multifractal.moments import log_measure, moments
from fastscape.probes.multifractal.scalars import m_tau

EXACT = {"rtol": 1e-11, "atol": 1e-11}
Q = np.array([-1.0, 0.0, 0.5, 1.0, 2.0, 4.0])
STATISTICS = {
    "c1": influence.c1,
    "c2": influence.c2,
    "log_spread_ratio": influence.log_spread_ratio,
    "h_mean": influence.h_mean,
    "h_std": influence.h_std,
    "m_tau": influence.m_tau_on(Q != 0),
    "m_tau_pos": influence.m_tau_on(Q > 0),
    "alpha_width": influence.alpha_between(0, 4),
    **{f"tau({q:g})": influence.tau_at(k) for k, q in enumerate(Q)},
    **{f"alpha({q:g})": influence.alpha_at(k) for k, q in enumerate(Q)},
    **{f"f({q:g})": influence.f_at(k) for k, q in enumerate(Q)},
}
FLOOR = 0.01  # of the sum: several of 40 directions lie below


def responses(kind="plain"):
    """ln r [9, 40] at ln eps [9]; one direction without response at one scale where that is asked for."""
    rng = np.random.default_rng(11)
    x = np.log(np.sort(10 ** rng.uniform(-3, -1, 9)))
    log_r = -200 + rng.normal(0, 0.5, 40) + x[:, None] * rng.normal(1.5, 0.2, 40) + rng.normal(0, 0.1, (9, 40))
    if kind == "zero":
        log_r[3, 7] = -np.inf
    return log_r, x


def sample(kind):
    log_r, x = responses(kind)
    q = Q[Q > 0] if kind == "zero" else Q
    return influence.Sample(log_r, x, q, FLOOR if kind == "floor" else None)


def defined(name, kind):
    return kind != "zero" or name in ("c1", "c2", "log_spread_ratio", "h_mean", "h_std")


def literal(name, log_r, x, floor_below=None):
    """The statistic of directions side by side, by the definitions."""
    if name in ("h_mean", "h_std"):
        return getattr(holder_exponents(log_r, x), name[2:])
    if name in ("c1", "c2"):
        return getattr(cumulants(log_r, x), name)
    if name == "log_spread_ratio":
        return np.log(spread_ratio(cumulants(log_r, x), x))
    found = exponents(moments(log_measure(log_r), Q), x, Q)
    if name.startswith("m_tau"):
        orders = Q > 0 if name == "m_tau_pos" else Q != 0
        return float(m_tau(found.tau[orders], Q[orders]))
    if name == "alpha_width":
        return found.alpha[0] - found.alpha[4]
    curve, _, order = name.partition("(")
    return getattr(found, curve)[float(order[:-1]) == Q][0]


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for kind in ("plain", "zero", "floor") for name in STATISTICS if defined(name, kind)]
)
def test_influence_is_the_derivative_by_the_weight_of_a_direction(name, kind):
    prepared, step, size = sample(kind), 1e-5, 40
    resample = np.bincount(np.random.default_rng(1).integers(0, size, size), minlength=size)
    for counts in (np.ones(size), resample):
        # all weights times (1 - step), and step n more on direction i: multiplicities that are no whole numbers
        towards = (1 - step) * counts + step * size * np.eye(size)
        away = (1 + step) * counts - step * size * np.eye(size)
        with np.errstate(all="ignore"):
            _, psi = STATISTICS[name](prepared.under(counts[None]))
            upper, lower = (STATISTICS[name](prepared.under(weights))[0] for weights in (towards, away))
        scale = np.abs(psi).max()
        np.testing.assert_allclose(psi[0], (upper - lower) / (2 * step), rtol=0, atol=1e-5 * scale + 1e-9)
        assert abs(np.mean(counts * psi[0])) <= 1e-9 * max(scale, 1.0)


@pytest.mark.parametrize("kind", ["plain", "zero"])
def test_replicates_are_the_statistics_of_the_resampled_directions(kind):
    log_r, x = responses(kind)
    counts = np.concatenate(list(multiplicities(strata([40]), 25, np.random.default_rng(3))))
    weighted = sample(kind).under(counts)
    for name, statistic in STATISTICS.items():
        if defined(name, kind):
            values = statistic(weighted)[0]
            expected = [literal(name, np.repeat(log_r, row, axis=1), x) for row in counts]
            np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-10, err_msg=name)


def test_replicates_of_a_floored_measure_keep_the_floor_of_the_sample():
    log_r, x = responses()
    counts = np.concatenate(list(multiplicities(strata([40]), 10, np.random.default_rng(3))))
    r = np.exp(log_r - log_r.max(axis=1, keepdims=True))
    clipped = np.maximum(r, FLOOR * r.sum(axis=1, keepdims=True))
    assert (clipped > r).any()
    found = influence.tau_at(0)(sample("floor").under(counts))[0]
    zeta = [np.polyfit(x, np.log((row * clipped ** Q[0]).sum(axis=1) / (row * r).sum(axis=1) ** Q[0]), 1)[0] for row in counts]
    scale = Q[0] * np.polyfit(x, log_r.max(axis=1), 1)[0]  # the maxima that were taken out cancel between both sums
    np.testing.assert_allclose(found, np.array(zeta) + scale - Q[0] * scale / Q[0], **EXACT)


@pytest.mark.parametrize("name", ["c2", "h_std", "m_tau", "alpha(2)", "tau(-1)"])
def test_standard_errors_are_those_of_many_samples(name):
    """The standard deviation over 400 samples of 400 directions, which are known to 3.5 %."""
    rng, x = np.random.default_rng(0), np.log(2.0 ** -np.arange(10, 0, -1))
    values, errors = [], []
    for _ in range(400):
        walk = np.cumsum(rng.normal(0, 0.1, (10, 400)), axis=0)[::-1]
        found = influence.Sample(walk, x, Q).under(np.ones((1, 400)))
        value, psi = STATISTICS[name](found)
        values.append(value[0])
        errors.append(standard_errors(found.weights, psi)[0])
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=4 * 0.035)


def test_resampling_stays_within_banks_and_joins_tiny_ones():
    members = strata([9, 3, 0, 20, 1])
    np.testing.assert_array_equal(np.sort(np.concatenate(members)), np.arange(33))
    assert [len(group) for group in members] == [9, 20, 4]
    counts = np.concatenate(list(multiplicities(members, 300, np.random.default_rng(0))))
    np.testing.assert_array_equal(counts[0], 1)
    for group in members:
        np.testing.assert_array_equal(counts[:, group].sum(axis=1), len(group))
    assert len({tuple(row) for row in counts}) > 290


def test_multiplicities_are_multinomial_in_every_piece():
    size, replicates = 25, 4000
    counts = np.concatenate(list(multiplicities(strata([size]), replicates, np.random.default_rng(0))))[1:]
    assert len(counts) == replicates
    variance = 1 - 1 / size
    assert (np.abs(counts.mean(axis=0) - 1) <= 4 * np.sqrt(variance / replicates)).all()
    np.testing.assert_allclose(counts.var(axis=0).mean(), variance, rtol=4 * np.sqrt(2 / (replicates * size)) + 0.01)


def test_many_directions_are_drawn_in_pieces_of_few_replicates():
    pieces = [len(counts) for counts in multiplicities(strata([50_000]), 3, np.random.default_rng(0))]
    assert pieces == [1, 1, 1, 1]


def test_quantiles_of_resamples_are_those_of_numpy():
    rng = np.random.default_rng(0)
    values = np.sort(rng.normal(size=30))
    counts = np.concatenate(list(multiplicities(strata([30]), 40, rng)))
    found = resampled_quantiles(values, counts, (0.25, 0.5, 0.75))
    expected = [np.percentile(np.repeat(values, row), [25, 50, 75]) for row in counts]
    np.testing.assert_allclose(np.transpose(found), expected, **EXACT)


def normal(value, size=4000, spread=1.0, seed=0):
    """A statistic with normal replicates of known standard error."""
    rng = np.random.default_rng(seed)
    return Replicated(value, spread, value + spread * rng.standard_normal(size), np.full(size, spread))


def test_the_hull_of_a_normal_statistic_is_its_normal_interval():
    low, high = hull(normal(3.0))
    assert (low, high) == pytest.approx((3 - 1.96, 3 + 1.96), abs=0.15)


def test_the_hull_holds_the_value_the_percentiles_and_the_studentised_ends():
    found = normal(3.0)
    far = Replicated(10.0, found.stderr, found.values, found.stderrs)
    assert hull(far)[1] >= 10
    assert hull(far)[0] <= np.percentile(found.values, 2.5)
    skewed = Replicated(3.0, 1.0, found.values, np.where(found.values < 3, 0.5, 1.0))
    assert hull(skewed)[1] > 3 + 1.5 * 1.96


def test_a_hull_on_the_log_scale_stays_positive_and_scales():
    rng = np.random.default_rng(0)
    values = np.exp(0.4 * rng.standard_normal(2000))
    found = Replicated(1.0, 0.4, values, 0.4 * values)
    low, high = hull(found, log=True)
    assert 0 < low < 1 < high
    scaled = Replicated(7.0, 2.8, 7 * values, 2.8 * values)
    np.testing.assert_allclose(hull(scaled, log=True), (7 * low, 7 * high), rtol=1e-12)


def test_standard_errors_at_rounding_leave_the_percentiles():
    values = 2 + 1e-16 * np.arange(5)
    assert hull(Replicated(2.0, 1e-17, values, np.full(5, 1e-20)), log=True) == pytest.approx((2, 2), abs=1e-15)


@pytest.mark.parametrize("values", [[], [1.0], [np.nan, np.nan, 1.0]])
def test_fewer_than_two_replicates_have_no_hull(values):
    values = np.array(values)
    assert np.isnan(hull(Replicated(1.0, 0.1, values, values))).all()


def test_independent_statistics_add_their_variances():
    parts = [normal(1.0, spread=3.0, seed=1), normal(5.0, spread=4.0, seed=2)]
    both = mean_of(parts)
    assert (both.value, both.stderr) == (3.0, 2.5)
    np.testing.assert_allclose(both.values, (parts[0].values + parts[1].values) / 2)
    np.testing.assert_allclose(both.stderrs, 2.5)
    assert np.std(both.values) == pytest.approx(2.5, rel=0.05)


def test_a_statistic_that_hangs_on_one_direction_has_no_hull():
    """Every third resample misses it: there the statistic is 0, without any spread."""
    values = np.where(np.arange(300) % 3 == 0, 0.0, 1.0 + 0.001 * np.arange(300))
    stderrs = np.where(values == 0, 1e-18, 0.5)
    assert np.isnan(hull(Replicated(1.0, 0.5, values, stderrs))).all()
    rare = np.where(np.arange(300) % 100 == 0, 0.0, values)
    kept = values != 0
    assert np.isfinite(hull(Replicated(1.0, 0.5, rare[kept], np.where(rare[kept] == 0, 1e-18, 0.5)))).all()
