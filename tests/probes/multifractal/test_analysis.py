"""Aggregation over windows, banks and batches (B8), profiles, and responses that are not finite."""

import numpy as np
import pytest

from fastscape import AnalysisSettings, analyse
from fastscape.probes.multifractal.exponents import exponents, holder_exponents
from fastscape.probes.multifractal.moments import log_measure, moments
from fastscape.probes.multifractal.scalars import m_tau

EXACT = {"rtol": 1e-12, "atol": 1e-12}

Q = (-3.0, -1.0, 0.5, 1.0, 2.0, 4.0)
GRID = np.array(sorted({0.0, *Q}))
EPS = np.logspace(-4, -1, 10)
TWO_WINDOWS = ((0, 6), (3, 10))


def settings(**changes):
    return AnalysisSettings(**{"q": Q, "bootstrap": 30, "permutations": 19, **changes})


def bank(seed, directions, spread=0.3):
    """Power laws with random exponents and noise, negative: the measure is that of the magnitude."""
    rng = np.random.default_rng(seed)
    log_r = np.log(EPS)[:, None] * rng.normal(1.5, spread, directions) + rng.normal(0, 0.5, (10, directions))
    return -np.exp(log_r)


def direct_tau(response, window=(0, 10)):
    part = slice(*window)
    log_p = log_measure(np.log(np.abs(response[part])))
    return exponents(moments(log_p, GRID), np.log(EPS[part]), GRID).tau


def assert_same_numbers(found, expected):
    assert set(found) == set(expected)
    np.testing.assert_array_equal([found[name] for name in expected], list(expected.values()))


def test_pooled_measure_is_that_of_all_directions_side_by_side():
    banks = [bank(0, 30), bank(1, 50)]
    together = np.concatenate(banks, axis=1)
    apart, joined = analyse(banks, EPS, settings=settings()), analyse([together], EPS, settings=settings())
    np.testing.assert_allclose(apart.pooled[0][0].spectrum.tau, direct_tau(together), **EXACT)
    np.testing.assert_array_equal(apart.tau.value, joined.tau.value)
    assert_same_numbers(apart.pooled[0][0].scalars, joined.pooled[0][0].scalars)
    assert apart.p_value == joined.p_value
    for name, estimate in apart.estimates.items():
        np.testing.assert_array_equal(estimate.value, joined.estimates[name].value, name)
    assert apart.estimates["m_tau"].n == 80


def test_each_bank_is_analysed_by_itself():
    banks = [bank(0, 30), bank(1, 50), bank(2, 20)]
    result = analyse(banks, EPS, settings=settings())
    assert len(result.banks) == 3
    for response, analysed in zip(banks, result.banks, strict=True):
        np.testing.assert_allclose(analysed[0].spectrum.tau, direct_tau(response), **EXACT)
        expected = holder_exponents(np.log(np.abs(response)), np.log(EPS)).h
        np.testing.assert_allclose(analysed[0].holder.h, expected, **EXACT)


def test_different_batches_are_never_pooled():
    banks = [bank(0, 30), bank(1, 50, spread=0.6), bank(2, 20), bank(3, 25, spread=0.6)]
    result = analyse(banks, EPS, batches=[7, 3, 7, 3], settings=settings())
    assert len(result.pooled) == len(result.profiles) == 2
    third, seventh = (np.concatenate([banks[a], banks[b]], axis=1) for a, b in ((1, 3), (0, 2)))
    for response, pooled, profile in zip((third, seventh), result.pooled, result.profiles, strict=True):
        np.testing.assert_allclose(pooled[0].spectrum.tau, direct_tau(response), **EXACT)
        np.testing.assert_allclose(profile.log_z, moments(log_measure(np.log(np.abs(response))), GRID).log_z, **EXACT)
    np.testing.assert_allclose(result.tau.value, (direct_tau(third) + direct_tau(seventh)) / 2, **EXACT)
    mean = np.mean([pooled[0].scalars["m_tau"] for pooled in result.pooled])
    assert result.estimates["m_tau"].value == pytest.approx(mean, rel=1e-12)


def test_amplitude_of_a_batch_does_not_reach_the_other():
    banks = [bank(0, 30), bank(1, 50)]
    plain = analyse(banks, EPS, batches=[0, 1], settings=settings())
    scaled = analyse([banks[0], 1e6 * banks[1]], EPS, batches=[0, 1], settings=settings())
    np.testing.assert_allclose(scaled.tau.value, plain.tau.value, **EXACT)
    mixed = analyse([banks[0], 1e6 * banks[1]], EPS, settings=settings())
    assert np.abs(mixed.tau.value - plain.tau.value).max() > 0.01


def test_windows_are_averaged_with_equal_weights():
    response = bank(4, 60)
    result = analyse([response], EPS, settings=settings(windows=TWO_WINDOWS))
    taus = [direct_tau(response, window) for window in TWO_WINDOWS]
    for analysed, tau in zip(result.pooled[0], taus, strict=True):
        np.testing.assert_allclose(analysed.spectrum.tau, tau, **EXACT)
    np.testing.assert_allclose(result.tau.value, (taus[0] + taus[1]) / 2, **EXACT)
    grid = GRID != 0
    values = [m_tau(tau[grid], GRID[grid]) for tau in taus]
    assert result.estimates["m_tau"].value == pytest.approx(np.mean(values), rel=1e-12)
    h = [holder_exponents(np.log(np.abs(response[a:b])), np.log(EPS[a:b])).mean for a, b in TWO_WINDOWS]
    assert result.estimates["h_mean"].value == pytest.approx(np.mean(h), rel=1e-12)


def test_interval_of_two_windows_is_of_their_mean():
    response = np.abs(bank(4, 300, spread=0.05)) ** 0.2
    both = analyse([response], EPS, settings=settings(q="core", windows=TWO_WINDOWS, bootstrap=400))
    single = [analyse([response], EPS, settings=settings(q="core", windows=(window,), bootstrap=400)) for window in TWO_WINDOWS]
    assert both.supported == single[0].supported == single[1].supported
    for name, estimate in both.estimates.items():
        values, stderrs = ([getattr(one.estimates[name], part) for one in single] for part in ("value", "stderr"))
        mean = np.exp(np.mean(np.log(values))) if name == "spread_ratio" else np.mean(values)
        assert estimate.value == pytest.approx(mean, rel=1e-12), name
        if name not in ("spread_ratio", "moved_mass", "h_median", "h_iqr"):  # a ratio's error is that of its logarithm
            assert estimate.stderr <= np.mean(stderrs) * (1 + 1e-9), name
    assert_same_numbers(both.pooled[0][1].scalars, single[1].pooled[0][0].scalars)


def test_bank_statistics_are_those_of_the_window_means():
    banks = [bank(seed, 40) for seed in range(5)]
    result = analyse(banks, EPS, settings=settings(windows=TWO_WINDOWS))
    for name, statistics in result.bank_statistics.items():
        values = [np.mean([window.scalars[name] for window in windows]) for windows in result.banks]
        expected = [np.mean(values), np.std(values, ddof=1), *np.percentile(values, [50, 25, 75])]
        found = [statistics.mean, statistics.std, statistics.median, statistics.lower_quartile, statistics.upper_quartile]
        np.testing.assert_allclose(found, expected, **EXACT, err_msg=name)
    taus = [direct_tau(response, window) for response in banks for window in TWO_WINDOWS]
    grid = GRID != 0
    expected = [m_tau(tau[grid], GRID[grid]) for tau in taus]
    assert result.bank_statistics["m_tau"].mean == pytest.approx(np.mean(expected), rel=1e-12)
    mean_tau = m_tau(np.mean(taus, axis=0)[grid], GRID[grid])
    assert result.m_tau_of_mean_tau == pytest.approx(mean_tau, rel=1e-12)
    assert result.m_tau_of_mean_tau < result.bank_statistics["m_tau"].mean


def test_single_bank_has_no_standard_deviation():
    statistics = analyse([bank(0, 40)], EPS, settings=settings()).bank_statistics["c2"]
    assert np.isnan(statistics.std)
    assert statistics.mean == statistics.median == statistics.lower_quartile


def test_profile_covers_every_scale_and_its_local_slopes():
    response = bank(5, 40)
    gate = np.arange(10) >= 2
    profile = analyse([response], EPS, above_noise=gate, settings=settings()).profiles[0]
    measured, log_r = moments(log_measure(np.log(np.abs(response))), GRID), np.log(np.abs(response))
    steps = np.diff(np.log(EPS))[:, None]
    np.testing.assert_allclose(profile.log_z, measured.log_z, **EXACT)
    np.testing.assert_allclose(profile.tau_local, np.diff(measured.log_z, axis=0) / steps, **EXACT)
    np.testing.assert_allclose(profile.h_local, np.median(np.diff(log_r, axis=0) / steps, axis=1), **EXACT)
    np.testing.assert_allclose(profile.participation, np.exp(-measured.log_z[:, GRID == 2][:, 0]) / 40, **EXACT)
    np.testing.assert_allclose(profile.C1, log_r.mean(axis=1), **EXACT)
    np.testing.assert_allclose(profile.C2, log_r.var(axis=1), **EXACT)
    np.testing.assert_array_equal(profile.neg_frac, np.mean(response < 0, axis=1))
    np.testing.assert_allclose(profile.hill[:, GRID == 0], 40, **EXACT)


def test_ratio_variant_is_missing_from_radii_of_1():
    response = bank(6, 30)
    below, above = (analyse([response], EPS * factor, settings=settings()).pooled[0][0] for factor in (1, 10))
    assert np.isfinite(below.alpha_ratio).all()
    assert np.isnan([above.alpha_ratio, above.f_ratio]).all()
    np.testing.assert_allclose(above.spectrum.tau, below.spectrum.tau, **EXACT)


BAD = {"nan": np.nan, "inf": np.inf, "minus inf": -np.inf, "zero": 0.0, "tiny": 5e-324, "huge": 1e308}


@pytest.mark.parametrize("windows", [None, ((0, 5), (2, 10))])
@pytest.mark.parametrize("where", ["one response", "one scale", "one direction", "everywhere"])
@pytest.mark.parametrize("value", BAD)
def test_bad_responses_raise_neither_exception_nor_warning(value, where, windows):
    response = bank(7, 300)
    index = {"one response": (3, 5), "one scale": (3,), "one direction": (slice(None), 5), "everywhere": ()}[where]
    response[index] = BAD[value]
    for batches in ([0, 0], [0, 1]):
        result = analyse([response, bank(8, 300)], EPS, batches=batches, settings=settings(windows=windows))
        if not np.isfinite(BAD[value]):
            rows = np.zeros(10, dtype=bool)
            rows[index[0] if index and where != "one direction" else slice(None)] = True
            np.testing.assert_array_equal(result.trust.finite, ~rows)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_untrusted_scale_does_not_reach_the_window(value):
    response = bank(9, 300)
    damaged = response.copy()
    damaged[2, :7] = value
    result = analyse([damaged], EPS, settings=settings())
    assert result.windows == ((3, 10),)
    expected = analyse([response], EPS, settings=settings(windows=((3, 10),)))
    np.testing.assert_array_equal(result.tau.value, expected.tau.value)
    assert result.estimates == expected.estimates
    assert result.p_value == expected.p_value
