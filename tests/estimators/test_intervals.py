"""Bootstrap over directions: replicates are literal resamples, and intervals cover."""

import numpy as np
import pytest

from fastscape import AnalysisSettings, Estimate, analyse
from fastscape.estimators.exponents import cumulants, exponents, holder_exponents
from fastscape.estimators.intervals import resample, resampled_spectrum
from fastscape.estimators.moments import log_measure, moments
from fastscape.estimators.scalars import spectrum_scalars
from fastscape.estimators.scaling import local_slopes, slope

EXACT, CLOSE = {"rtol": 1e-11, "atol": 1e-11}, {"rel": 1e-11, "abs": 1e-11}  # of numpy's and of pytest's comparison
# B7: coverage of the nominal 95 % interval for tau, q in -3..4, lognormal walk, by number of directions
COVERAGE = {64: (0.68, 0.89), 256: (0.77, 0.96), 1024: (0.88, 0.99)}
STANDARD_ERRORS = 3

Q = np.array([-3.0, -1, 0, 0.5, 1, 2, 4])
HEADLINES = {"m_tau", "m_tau_pos", "lambda_tau", "alpha_width", "c1", "c2", "h_mean", "h_std"}


def literal(log_r, x, q):
    """Spectrum, cumulants and h of an array of directions, without any weights."""
    measured = moments(log_measure(log_r), q)
    spectrum = exponents(measured, x, q)
    return (
        spectrum,
        cumulants(log_r, x),
        holder_exponents(log_r, x, shuffles=0),
        spectrum_scalars(spectrum, local_slopes(x, measured.log_z)),
    )


def drawn(log_r, counts):
    return np.repeat(log_r, counts, axis=1)


def test_replicate_is_the_spectrum_of_the_resampled_directions(random_powers):
    eps, r = random_powers
    log_r, x = np.log(np.abs(r)), np.log(eps)
    draws = resample(log_r, Q, [40], replicates=30, seed=3)
    tau, alpha, f = resampled_spectrum(draws, x, Q, slice(0, len(x)))
    for replicate, counts in enumerate(draws.counts):
        spectrum, first_two, _, _ = literal(drawn(log_r, counts), x, Q)
        np.testing.assert_allclose(tau[replicate], spectrum.tau, **EXACT)
        np.testing.assert_allclose(alpha[replicate], spectrum.alpha, **EXACT)
        np.testing.assert_allclose(f[replicate], spectrum.f, **EXACT)
        assert slope(x, draws.first[replicate]) == pytest.approx(first_two.c1, **CLOSE)
        assert slope(x, draws.second[replicate]) == pytest.approx(first_two.c2, **CLOSE)


def test_replicate_over_a_window_is_the_spectrum_of_that_window(random_powers):
    eps, r = random_powers
    log_r, x = np.log(np.abs(r)), np.log(eps)
    draws = resample(log_r, Q, [40], replicates=5, seed=3)
    tau, alpha, f = resampled_spectrum(draws, x, Q, slice(2, 7))
    for replicate, counts in enumerate(draws.counts):
        spectrum = literal(drawn(log_r, counts)[2:7], x[2:7], Q)[0]
        np.testing.assert_allclose(tau[replicate], spectrum.tau, **EXACT)
        np.testing.assert_allclose(alpha[replicate], spectrum.alpha, **EXACT)
        np.testing.assert_allclose(f[replicate], spectrum.f, **EXACT)


def test_replicates_match_far_from_one_in_the_log_domain():
    rng = np.random.default_rng(6)
    x = np.log(np.logspace(-4, -1, 6))
    log_r = -300 + rng.normal(0, 6, (6, 50)) + 2 * x[:, None]
    q = np.array([-20.0, 1.0, 20.0])
    draws = resample(log_r, q, [50], replicates=10, seed=3)
    tau, alpha, _ = resampled_spectrum(draws, x, q, slice(0, 6))
    for replicate, counts in enumerate(draws.counts):
        spectrum = literal(drawn(log_r, counts), x, q)[0]
        np.testing.assert_allclose(tau[replicate], spectrum.tau, rtol=1e-10, atol=1e-9)
        np.testing.assert_allclose(alpha[replicate], spectrum.alpha, rtol=1e-10, atol=1e-9)


def test_replicates_without_the_dominant_direction_match_too():
    """One direction is 1e10 above the rest; without it every r^40 is 1e-400 of the largest."""
    x = np.log(np.logspace(-4, -1, 6))
    log_r = np.random.default_rng(0).normal(0, 0.3, (6, 20)) + 2 * x[:, None]
    log_r[:, 0] += 10 * np.log(10)
    q = np.array([1.0, 40.0])
    draws = resample(log_r, q, [20], replicates=20, seed=0)
    tau, _, _ = resampled_spectrum(draws, x, q, slice(0, 6))
    assert (draws.counts[:, 0] == 0).any()
    expected = [literal(drawn(log_r, counts), x, q)[0].tau for counts in draws.counts]
    np.testing.assert_allclose(tau, expected, rtol=1e-10, atol=1e-9)


def test_headline_intervals_are_percentiles_over_literal_resamples(random_powers):
    eps, r = random_powers
    log_r, x = np.log(np.abs(r)), np.log(eps)
    settings = AnalysisSettings(q=tuple(Q), bootstrap=60, seed=5)
    result = analyse([r], eps, settings=settings)
    draws = resample(log_r, Q, [40], replicates=60, seed=5)
    rows = {name: [] for name in HEADLINES}
    curves = {name: [] for name in ("tau", "alpha", "f")}
    for counts in draws.counts:
        spectrum, first_two, holder, scalars = literal(drawn(log_r, counts), x, Q)
        values = scalars | {"c1": first_two.c1, "c2": first_two.c2, "h_mean": holder.mean, "h_std": holder.std}
        for name, row in rows.items():
            row.append(values[name])
        for name, row in curves.items():
            row.append(getattr(spectrum, name))
    assert set(result.estimates) == HEADLINES
    for name, estimate in result.estimates.items():
        np.testing.assert_allclose(estimate.interval, np.percentile(rows[name], [2.5, 97.5]), **EXACT)
        assert estimate.stderr == pytest.approx(np.std(rows[name], ddof=1), rel=1e-9), name
        assert estimate.value == result.pooled[0][0].scalars[name]
        assert estimate.n == 40
    for name, row in curves.items():
        curve = getattr(result, name)
        np.testing.assert_allclose([curve.lower, curve.upper], np.percentile(row, [2.5, 97.5], axis=0), **EXACT)
        np.testing.assert_array_equal(curve.value, getattr(result.pooled[0][0].spectrum, name))


def test_resampling_stays_within_banks():
    sizes = [5, 1, 14]
    counts = resample(np.zeros((2, 20)), Q, sizes, replicates=200, seed=0).counts
    edges = np.cumsum([0, *sizes])
    for start, stop, size in zip(edges[:-1], edges[1:], sizes, strict=True):
        np.testing.assert_array_equal(counts[:, start:stop].sum(axis=1), size)
    assert (counts[:, 5] == 1).all()
    assert len({tuple(row) for row in counts}) > 190


def test_multiplicities_are_multinomial():
    size, replicates = 25, 4000
    counts = resample(np.zeros((1, size)), Q, [size], replicates=replicates, seed=0).counts
    variance = 1 - 1 / size
    assert (np.abs(counts.mean(axis=0) - 1) <= 4 * np.sqrt(variance / replicates)).all()
    np.testing.assert_allclose(counts.var(axis=0).mean(), variance, rtol=4 * np.sqrt(2 / (replicates * size)) + 0.01)


def test_analysis_resamples_within_banks(random_powers):
    """Banks of one direction each cannot vary: every interval has no width."""
    eps, r = random_powers
    banks = [r[:, i : i + 1] for i in range(40)]
    fixed = analyse(banks, eps, settings=AnalysisSettings(bootstrap=30))
    free = analyse([r], eps, settings=AnalysisSettings(bootstrap=30))
    for name, estimate in fixed.estimates.items():
        assert estimate.value == pytest.approx(free.estimates[name].value, rel=1e-12, abs=1e-12)
        np.testing.assert_allclose(estimate.interval, estimate.value, rtol=1e-9, atol=1e-9)
        assert np.ptp(free.estimates[name].interval) > 1e-3


def test_same_seed_gives_the_same_interval_and_another_seed_another(random_powers):
    eps, r = random_powers
    intervals = [
        analyse([r], eps, settings=AnalysisSettings(bootstrap=50, seed=seed)).estimates["c2"].interval for seed in (1, 1, 2)
    ]
    assert intervals[0] == intervals[1]
    assert intervals[0] != intervals[2]


@pytest.mark.parametrize("directions", COVERAGE)
def test_interval_of_tau_covers_as_often_as_stated(lognormal_walk, directions):
    repeats, sigma = 300 if directions < 1024 else 150, 0.1
    q = np.array([-3.0, -2, -1.5, -1, -0.5, 0.5, 1, 1.5, 2, 3, 4])
    truth = sigma**2 / np.log(2) / 2 * (q - q**2)
    hits = np.zeros((repeats, len(q)), dtype=bool)
    for seed in range(repeats):
        eps, r = lognormal_walk(seed, directions, sigma)
        draws = resample(np.log(r), q, [directions], replicates=300, seed=seed)
        tau, _, _ = resampled_spectrum(draws, np.log(eps), q, slice(0, 8))
        low, high = np.percentile(tau, [2.5, 97.5], axis=0)
        hits[seed] = (low <= truth) & (truth <= high)
    coverage = hits.mean(axis=0)[q != 1]
    least, most = COVERAGE[directions]
    assert (coverage >= least - STANDARD_ERRORS * np.sqrt(least * (1 - least) / repeats)).all()
    assert (coverage <= most + STANDARD_ERRORS * np.sqrt(most * (1 - most) / repeats)).all()
    assert coverage[-1] < np.median(coverage)  # q = 4 is among the worst


def test_intervals_of_the_log_cumulants_cover(lognormal_walk):
    repeats, sigma, truth = 100, 0.1, {"c1": 1.0, "c2": -(0.1**2) / np.log(2)}
    settings = AnalysisSettings(q=(0.5, 1, 2), bootstrap=300, permutations=1)
    hits = dict.fromkeys(truth, 0)
    for seed in range(repeats):
        eps, r = lognormal_walk(seed, 256, sigma)
        estimates = analyse([r], eps, settings=settings).estimates
        for name, value in truth.items():
            low, high = estimates[name].interval
            hits[name] += low <= value <= high
    for name, count in hits.items():
        assert abs(count / repeats - 0.95) <= STANDARD_ERRORS * np.sqrt(0.95 * 0.05 / repeats), name


def test_fit_error_of_tau_underestimates_its_sampling_deviation(lognormal_walk):
    """Radii share their directions, so the OLS error is 3 to 4 times too small (B7)."""
    q = np.array([-2.0, -1, 0.5, 2])
    fits = []
    for seed in range(150):
        eps, r = lognormal_walk(seed, 256)
        fits.append(literal(np.log(r), np.log(eps), q)[0])
    ratio = np.std([fit.tau for fit in fits], axis=0, ddof=1) / np.mean([fit.tau_stderr for fit in fits], axis=0)
    assert ((ratio > 3) & (ratio < 4)).all()


def test_power_law_responses_have_intervals_without_width():
    amplitude = np.random.default_rng(7).uniform(0.5, 2, 300)
    eps = np.logspace(-4, -1, 10)
    estimates = analyse([amplitude * eps[:, None] ** 2], eps, settings=AnalysisSettings(bootstrap=100)).estimates
    for name, expected in {"h_mean": 2, "c1": 2, "c2": 0, "m_tau": 0, "alpha_width": 0}.items():
        np.testing.assert_allclose(estimates[name].interval, expected, rtol=0, atol=1e-11, err_msg=name)


def test_equal_exponents_have_no_spread_in_any_replicate():
    amplitude = np.random.default_rng(7).uniform(0.5, 2, 300)
    eps = np.logspace(-4, -1, 10)
    spread = analyse([amplitude * eps[:, None] ** 2], eps, settings=AnalysisSettings(bootstrap=100)).estimates["h_std"]
    assert spread.value == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose([*spread.interval, spread.stderr], 0, rtol=0, atol=1e-12)


def test_estimate_leaves_out_replicates_that_are_not_finite():
    estimate = Estimate.from_replicates(2.0, np.array([1.0, np.nan, 3.0, np.inf]), 7)
    assert estimate.interval == pytest.approx((1.05, 2.95))
    assert estimate.stderr == pytest.approx(np.sqrt(2))
    assert (estimate.value, estimate.n) == (2.0, 7)


def test_an_interval_holds_its_value_and_every_percentile():
    """Replicates that all lie on one side, as those of M_tau from few directions can: noise adds to it again."""
    above, below = (Estimate.from_replicates(value, np.array([1.0, 2.0, 3.0]), 7).interval for value in (0.5, 9.0))
    assert above == pytest.approx((0.5, 2.95))
    assert below == pytest.approx((1.05, 9.0))
    unknown = Estimate.from_replicates(np.nan, np.array([1.0, 3.0]), 7).interval
    assert unknown == pytest.approx((1.05, 2.95))


def test_the_intervals_and_bands_of_few_directions_hold_their_values():
    eps, held = np.logspace(-3, -1, 8), 0
    for seed in range(40):
        noise = np.random.default_rng(seed)
        log_r = 2 * np.log(eps)[:, None] * (1 + 0.02 * noise.standard_normal(4)) + noise.standard_normal(4)
        log_r += 0.1 * noise.standard_normal((8, 4))
        result = analyse([np.exp(log_r)], eps, settings=AnalysisSettings(bootstrap=100, permutations=1, seed=seed))
        for name, estimate in result.estimates.items():
            assert estimate.interval[0] <= estimate.value <= estimate.interval[1], (seed, name)
            held += 1
        for curve in (result.tau, result.alpha, result.f):
            assert ((curve.lower <= curve.value) & (curve.value <= curve.upper)).all(), seed
    assert held == 40 * len(HEADLINES)


@pytest.mark.parametrize("replicates", [[np.nan, np.nan], [1.0, np.nan], []])
def test_estimate_of_fewer_than_two_replicates_has_no_interval(replicates):
    estimate = Estimate.from_replicates(2.0, np.array(replicates), 7)
    assert np.isnan([estimate.stderr, *estimate.interval]).all()
