"""Headline intervals: what has one, what is withheld and why, and how often they hold the truth."""

import numpy as np
import pytest

from fastscape import AnalysisSettings, Estimate, analyse

STANDARD_ERRORS = 3
QUICK = {"bootstrap": 100, "permutations": 19}
HEADLINES = ["h_mean", "h_std", "h_median", "h_iqr", "c1", "c2", "spread_ratio", "moved_mass"]
HEADLINES += ["m_tau", "m_tau_supported", "m_tau_pos", "lambda_tau", "alpha_width"]
MOMENTS = ["m_tau", "m_tau_supported", "m_tau_pos", "lambda_tau", "alpha_width"]


def settings(**changes):
    return AnalysisSettings(**(QUICK | changes))


def walked(lognormal_walk, draw, directions, sigma=0.1, **changes):
    eps, r = lognormal_walk(draw, directions, sigma)
    return analyse([r], eps, settings=settings(**changes))


def published(estimate):
    return bool(np.isfinite(estimate.interval).all())


def test_every_headline_has_an_interval_or_the_reason_why_not(lognormal_walk):
    for directions in (4, 16, 40, 64, 300):
        result = walked(lognormal_walk, 0, directions)
        assert list(result.estimates) == HEADLINES
        for name, estimate in result.estimates.items():
            assert published(estimate) is bool(estimate.method) is not bool(estimate.withheld), name
            assert published(estimate) or np.isnan(estimate.interval).all(), name
            assert estimate.n == directions
            if published(estimate):
                assert estimate.interval[0] <= estimate.value <= estimate.interval[1], name
                assert estimate.stderr > 0, name


@pytest.mark.parametrize("directions", [15, 16, 31, 32, 63, 64, 255, 256])
def test_intervals_start_at_the_directions_from_which_they_cover(lognormal_walk, directions):
    estimates = walked(lognormal_walk, 1, directions, sigma=0.05, q="core").estimates
    least = {"h_mean": 32, "h_median": 16, "c1": 32, "c2": 64, "spread_ratio": 64, "h_std": 64, "h_iqr": 64}
    least |= {"m_tau": 64, "m_tau_supported": 64, "m_tau_pos": 64, "lambda_tau": 64, "alpha_width": 256}
    for name, count in least.items():
        assert published(estimates[name]) is (directions >= count), name
        if directions < count:
            assert estimates[name].withheld.startswith(f"{directions} directions"), name
            assert str(count) in estimates[name].withheld or name == "alpha_width", name


def test_moments_beyond_the_supported_orders_keep_their_value_and_lose_their_interval(lognormal_walk):
    result = walked(lognormal_walk, 2, 256, sigma=0.2)
    assert result.supported[0] == -1
    assert 1.25 <= result.supported[-1] <= 2
    window = result.pooled[0][0].scalars
    for name in ("m_tau", "m_tau_pos", "lambda_tau"):
        assert result.estimates[name].value == window[name]
        assert np.isnan(result.estimates[name].interval).all()
    withheld = result.estimates["m_tau"].withheld
    supports = f"256 directions support q -1..{result.supported[-1]:g} (spread of ln r 0."
    assert withheld.startswith(supports)
    assert "q = 4 needs more than 1e7; more directions will not help: report c2" in withheld
    supported = result.estimates["m_tau_supported"]
    assert published(supported)
    assert f"orders -1..{result.supported[-1]:g}" in supported.method


def test_m_tau_of_a_supported_grid_is_that_of_the_supported_orders(lognormal_walk):
    result = walked(lognormal_walk, 3, 300, sigma=0.05, q="core")
    assert result.supported == tuple(order for order in result.settings.q if order)
    whole, supported = result.estimates["m_tau"], result.estimates["m_tau_supported"]
    assert whole.value == pytest.approx(supported.value, rel=1e-12)
    np.testing.assert_allclose(whole.interval, supported.interval, rtol=1e-12)
    scale = result.estimates["lambda_tau"].value / whole.value
    np.testing.assert_allclose(result.estimates["lambda_tau"].interval, np.multiply(scale, whole.interval), rtol=1e-12)
    assert result.tau.withheld == ""
    for curve in (result.tau, result.alpha, result.f):
        assert ((curve.lower <= curve.value) & (curve.value <= curve.upper)).all()


def test_alpha_width_spans_the_supported_orders_from_minus_one_half(lognormal_walk):
    result = walked(lognormal_walk, 2, 256, sigma=0.2)
    width, q = result.estimates["alpha_width"], np.array(result.settings.q)
    last = result.supported[-1]
    alpha = result.pooled[0][0].spectrum.alpha
    assert width.value == alpha[q == -0.5][0] - alpha[q == last][0]
    assert f"orders -0.5..{last:g}" in width.method
    few = walked(lognormal_walk, 2, 255, sigma=0.2)
    assert few.estimates["alpha_width"].value == few.pooled[0][0].scalars["alpha_width"]


@pytest.mark.parametrize("directions", [200, 300])
def test_bands_are_of_supported_orders_and_many_directions(lognormal_walk, directions):
    result = walked(lognormal_walk, 4, directions, sigma=0.2)
    held = np.isin(result.settings.q, [*result.supported, 0.0]) & (directions >= 256)
    for curve in (result.tau, result.alpha, result.f):
        assert np.isfinite(curve.value).all()
        np.testing.assert_array_equal(np.isfinite(curve.lower), held)
        np.testing.assert_array_equal(np.isfinite(curve.upper), held)
        assert ((curve.lower <= curve.value) & (curve.value <= curve.upper))[held].all()
        assert curve.withheld.startswith(
            "200 directions; bands need 256" if directions == 200 else "300 directions support q -1.."
        )


def mixed(directions, seed=0):
    """Indefinite quadratic forms that turn with the scale."""
    rng, eps = np.random.default_rng(seed), np.logspace(-3, -1, 9)
    curvature = np.linspace(-1, 1.2, 30)[:, None] + np.linspace(0, 1, 30)[::-1, None] * np.log(eps / eps[0]) / 20
    return eps, (curvature.T @ rng.standard_normal((30, directions)) ** 2) * eps[:, None] ** 2


def test_responses_of_both_signs_have_no_moments():
    eps, r = mixed(300)
    result = analyse([r], eps, settings=settings())
    for name in MOMENTS:
        assert np.isnan(result.estimates[name].value), name
        assert "responses of both signs at 9 scales (" in result.estimates[name].withheld
        assert "moments of |r| have no population value" in result.estimates[name].withheld
    for curve in (result.tau, result.alpha, result.f):
        assert np.isnan([curve.value, curve.lower, curve.upper]).all()
        assert "both signs" in curve.withheld
    assert result.supported == ()
    for name in ("h_median", "h_iqr", "h_mean", "c1"):
        assert published(result.estimates[name]), name
    for name in ("c2", "h_std", "spread_ratio"):
        assert np.isfinite(result.estimates[name].value)
        assert "300 directions; its interval then needs 1024" in result.estimates[name].withheld, name
        assert "population" not in result.estimates[name].withheld, name
    assert np.isnan(result.p_value)


def test_many_responses_of_both_signs_have_log_moments():
    eps, r = mixed(1024)
    result = analyse([r], eps, settings=settings())
    for name in ("c2", "h_std", "spread_ratio", "h_median", "h_iqr"):
        assert published(result.estimates[name]), name
    assert 0 <= result.p_value <= 1
    for name in MOMENTS:
        assert np.isnan(result.estimates[name].value), name


def test_a_few_negative_responses_are_not_mixed_signs(lognormal_walk):
    eps, r = lognormal_walk(0, 300, 0.05)
    for negative, kept in ((6, True), (7, False)):  # 2 % of 300 is 6
        signed = r * np.where(np.arange(300) < negative, -1, 1)
        result = analyse([signed], eps, settings=settings())
        assert published(result.estimates["m_tau_supported"]) is kept


def test_batches_are_averaged_and_drawn_independently(lognormal_walk):
    eps, first = lognormal_walk(0, 300, 0.05)
    _, second = lognormal_walk(1, 300, 0.05)
    both = analyse([first, second], eps, batches=[0, 1], settings=settings(q="core", bootstrap=300))
    alone = [analyse([r], eps, settings=settings(q="core", bootstrap=300)) for r in (first, second)]
    for name in ("h_mean", "h_std", "c1", "c2", "m_tau", "m_tau_supported", "m_tau_pos", "alpha_width"):
        found, parts = both.estimates[name], [one.estimates[name] for one in alone]
        assert found.value == pytest.approx(np.mean([part.value for part in parts]), rel=1e-12)
        assert found.stderr == pytest.approx(np.hypot(parts[0].stderr, parts[1].stderr) / 2, rel=1e-9)
        assert found.n == 600
        assert np.ptp(found.interval) < 0.85 * np.mean([np.ptp(part.interval) for part in parts])
    twins = analyse([first, first], eps, batches=[0, 1], settings=settings(q="core", bootstrap=300))
    assert np.ptp(twins.estimates["c2"].interval) < 0.85 * np.ptp(alone[0].estimates["c2"].interval)


def test_the_smallest_batch_decides_what_is_supported(lognormal_walk):
    eps, first = lognormal_walk(0, 300, 0.05)
    _, second = lognormal_walk(1, 60, 0.05)
    result = analyse([first, second], eps, batches=[0, 1], settings=settings())
    assert result.supported == ()
    assert result.estimates["m_tau"].withheld == "60 directions; moments need 64"


def test_same_seed_gives_the_same_interval_and_another_seed_another(lognormal_walk):
    intervals = [walked(lognormal_walk, 0, 64, seed=seed).estimates["c2"].interval for seed in (1, 1, 2)]
    assert intervals[0] == intervals[1]
    assert intervals[0] != intervals[2]


def test_power_law_responses_have_intervals_without_width():
    amplitude = np.random.default_rng(7).uniform(0.5, 2, 300)
    eps = np.logspace(-4, -1, 10)
    estimates = analyse([amplitude * eps[:, None] ** 2], eps, settings=AnalysisSettings(bootstrap=100)).estimates
    expected = {"h_mean": 2, "h_median": 2, "h_std": 0, "h_iqr": 0, "c1": 2, "c2": 0, "m_tau_supported": 0, "alpha_width": 0}
    for name, value in expected.items():
        np.testing.assert_allclose(estimates[name].interval, value, rtol=0, atol=1e-11, err_msg=name)
    np.testing.assert_allclose(estimates["spread_ratio"].interval, 1, rtol=1e-10)


def test_m_tau_within_its_error_of_zero_has_the_lower_end_zero(lognormal_walk):
    """Common growth of all directions: tau is straight in the population, and M_tau of a sample is noise."""
    rng, eps = np.random.default_rng(0), np.logspace(-3, -1, 9)
    r = np.exp(0.1 * rng.standard_normal((9, 128))) * eps[:, None] ** 1.5
    found = analyse([r], eps, settings=settings()).estimates["m_tau_supported"]
    assert found.value < 3 * found.stderr
    assert found.interval[0] == 0
    clear = walked(lognormal_walk, 0, 300).estimates["m_tau_supported"]
    assert clear.value > 3 * clear.stderr
    assert clear.interval[0] > 0


def test_responses_that_are_not_finite_withhold_every_interval(lognormal_walk):
    eps, r = lognormal_walk(0, 300, 0.1)
    r[2, 5] = np.inf
    result = analyse([r], eps, settings=settings(windows=((0, 8),)))
    for name in set(HEADLINES) - {"moved_mass"}:
        assert result.estimates[name].withheld == "the window holds responses that are not finite", name


def test_a_zero_response_leaves_the_log_moments_an_interval(lognormal_walk):
    eps, r = lognormal_walk(0, 300, 0.1)
    r[3, 7] = 0
    result = analyse([r], eps, settings=settings())
    assert result.supported[0] == 0.25
    for name in ("c1", "c2", "spread_ratio", "h_mean", "h_std", "h_median", "h_iqr", "m_tau_pos"):
        assert published(result.estimates[name]), name
        assert result.estimates[name].interval[0] <= result.estimates[name].value <= result.estimates[name].interval[1]
    assert np.isnan(result.estimates["m_tau"].value)
    assert result.estimates["m_tau"].withheld


@pytest.mark.parametrize("directions", [64, 256])
def test_intervals_cover_as_often_as_stated(lognormal_walk, directions):
    """c2 = -sigma^2 / ln 2 and tau = (sigma^2 / ln 2) (q - q^2) / 2 of the walk; M_tau on the supported orders follows."""
    repeats, sigma = 60, 0.1
    lam = sigma**2 / np.log(2)
    hits = {"c1": 0, "c2": 0, "h_std": 0, "m_tau_supported": 0}
    level = np.arange(1, 9)[::-1]
    x = -level * np.log(2)
    weights = (x - x.mean()) / np.sum((x - x.mean()) ** 2)
    h_std = sigma * np.sqrt(weights @ np.minimum.outer(level, level) @ weights)
    for seed in range(repeats):
        result = walked(lognormal_walk, seed, directions, bootstrap=150)
        q = np.array(result.supported)
        residual = lam / 2 * (q**2 - np.polyval(np.polyfit(q, q**2, 1), q))
        truth = {"c1": 1.0, "c2": -lam, "h_std": h_std, "m_tau_supported": np.sqrt(np.mean(residual**2))}
        for name, value in truth.items():
            low, high = result.estimates[name].interval
            hits[name] += low <= value <= high
    for name, count in hits.items():
        share = count / repeats
        assert 0.9 - STANDARD_ERRORS * np.sqrt(0.9 * 0.1 / repeats) <= share, (name, share)


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


@pytest.mark.parametrize("replicates", [[np.nan, np.nan], [1.0, np.nan], []])
def test_estimate_of_fewer_than_two_replicates_has_no_interval(replicates):
    estimate = Estimate.from_replicates(2.0, np.array(replicates), 7)
    assert np.isnan([estimate.stderr, *estimate.interval]).all()
