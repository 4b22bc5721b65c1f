"""Which scales are believed, and which windows of them are analysed (B4)."""

import numpy as np
import pytest

from fastscape import AnalysisSettings, analyse
from fastscape.probes.multifractal.trust import authors_trust, checked_windows, longest_window, trust

SCALES = 10
EPS = np.logspace(-4, -1, SCALES)  # a third of a decade apart
FAST = AnalysisSettings(bootstrap=20, permutations=19)


def power_law(directions=300, seed=0, exponent=1.5):
    amplitude = np.random.default_rng(seed).uniform(0.5, 2, (SCALES, directions))
    return amplitude * EPS[:, None] ** exponent


def mask(text: str) -> np.ndarray:
    return np.array([letter == "x" for letter in text])


def test_clean_responses_are_trusted_at_every_scale():
    result = analyse([power_law()], EPS, settings=FAST)
    assert result.trust.mask.all()
    assert result.windows == ((0, SCALES),)
    assert result.flags == ()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_loss_that_is_not_finite_makes_its_scale_untrusted(value):
    response = power_law()
    response[2, 17] = value
    result = analyse([response], EPS, settings=FAST)
    np.testing.assert_array_equal(result.trust.finite, np.arange(SCALES) != 2)
    np.testing.assert_array_equal(result.trust.mask, np.arange(SCALES) != 2)
    assert result.windows == ((3, SCALES),)
    assert "1 of 10 scales have losses that are not finite" in result.flags


def test_scale_below_the_noise_gate_is_untrusted():
    result = analyse([power_law()], EPS, above_noise=np.arange(SCALES) >= 3, settings=FAST)
    np.testing.assert_array_equal(result.trust.mask, np.arange(SCALES) >= 3)
    assert result.windows == ((3, SCALES),)
    assert "3 of 10 scales are rounding noise" in result.flags


def test_scale_with_zero_responses_is_untrusted():
    response = power_law()
    response[9, :4] = 0
    verdict = trust(response, np.ones(SCALES, dtype=bool))
    np.testing.assert_array_equal(verdict.positive, np.arange(SCALES) != 9)
    np.testing.assert_array_equal(verdict.mask, np.arange(SCALES) != 9)


def test_negative_responses_are_trusted():
    assert trust(-power_law(), np.ones(SCALES, dtype=bool)).mask.all()


def test_scale_needs_all_three_conditions():
    response = power_law()
    response[0, 0] = np.nan
    response[2, :10] = 0
    verdict = trust(response, np.arange(SCALES) != 1)
    np.testing.assert_array_equal(verdict.mask, np.arange(SCALES) > 2)


@pytest.mark.parametrize(
    ("trusted", "window"),
    [
        ("xxxxxxxxxx", (0, 10)),
        ("-xxxx-xxxx", (1, 5)),
        ("xxxx-xxxxx", (5, 10)),
        ("xxxxx-xxxx", (0, 5)),
        ("--xxxxxx--", (2, 8)),
        ("x-x-xxxx-x", (4, 8)),
    ],
)
def test_window_is_the_longest_run_of_trusted_scales(trusted, window):
    assert longest_window(mask(trusted), EPS) == (window, "")


def test_longest_run_is_taken_among_those_of_a_decade():
    eps = np.array([1.0, 1.1, 1.2, 1.3, 1.4, 2, 10, 100, 1000, 10000]) * 1e-6
    assert longest_window(mask("xxxxx-xxxx"), eps) == ((6, 10), "")


def test_exactly_four_scales_over_exactly_one_decade_suffice():
    eps = 1e-3 * 10 ** np.linspace(0, 1, 4)
    assert longest_window(mask("xxxx"), eps) == ((0, 4), "")


@pytest.mark.parametrize(
    ("trusted", "eps", "reason"),
    [
        ("----------", EPS, "no scale is trusted"),
        ("xxx-xxx-xx", EPS, "has 3 scales over 0.7 decades"),
        ("xxxxxxxxxx", np.linspace(1e-3, 8e-3, SCALES), "has 10 scales over 0.9 decades"),
        ("xx-xxxxx--", np.geomspace(1e-3, 5e-3, SCALES), "has 5 scales over 0.3 decades"),
    ],
)
def test_short_run_is_no_window_and_the_reason_says_how_short(trusted, eps, reason):
    window, found = longest_window(mask(trusted), eps)
    assert window is None
    assert reason in found
    assert "4 scales over 1 decade are needed" in found


@pytest.mark.parametrize(("eps", "gate"), [(EPS, mask("xxx-xxx-xx")), (np.geomspace(1e-3, 5e-3, SCALES), mask("xxxxxxxxxx"))])
def test_analysis_without_a_window_gives_the_reason_and_no_numbers(eps, gate):
    result = analyse([power_law()], eps, above_noise=gate, settings=FAST)
    assert not result.valid
    assert "are needed" in result.reason
    assert (result.windows, result.estimates, result.bank_statistics) == ((), {}, {})
    assert (result.pooled, result.banks, result.profiles) == ((), (), ())
    assert (result.tau, result.alpha, result.f) == (None, None, None)
    assert np.isnan([result.p_value, result.m_tau_of_mean_tau]).all()
    assert not result.quadratic


def test_valid_analysis_has_no_reason():
    result = analyse([power_law()], EPS, settings=FAST)
    assert result.valid
    assert result.reason == ""


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (((0, 4), (3, 6)), r"windows\[1\] must hold at least 4 of the 10 scales .*got \(3, 6\)"),
        (((-1, 5),), r"windows\[0\].*got \(-1, 5\)"),
        (((5, 11),), r"windows\[0\].*got \(5, 11\)"),
        (((8, 2),), r"windows\[0\].*got \(8, 2\)"),
        (((1, 5, 9),), r"windows\[0\] must be a pair \(start, stop\), got \(1, 5, 9\)"),
        ((), "windows must hold at least one"),
    ],
)
def test_bad_windows_are_refused_by_name_and_value(windows, message):
    with pytest.raises(ValueError, match=message):
        checked_windows(windows, SCALES)
    with pytest.raises(ValueError, match=message):
        analyse([power_law()], EPS, settings=AnalysisSettings(windows=windows))


def test_flat_pair_of_windows_is_refused_by_name():
    with pytest.raises(ValueError, match="windows"):
        AnalysisSettings(windows=(2, 8))


def test_good_windows_are_kept_in_their_order():
    assert checked_windows([[5, 9], [0, 4]], SCALES) == ((5, 9), (0, 4))
    result = analyse([power_law()], EPS, settings=AnalysisSettings(windows=[[5, 9], [0, 4]], bootstrap=20))
    assert result.windows == ((5, 9), (0, 4))
    assert [window.window for window in result.pooled[0]] == [(5, 9), (0, 4)]


def test_untrusted_user_windows_are_analysed_and_flagged():
    settings = AnalysisSettings(windows=((0, 5), (5, 10)), bootstrap=20)
    result = analyse([power_law()], EPS, above_noise=np.arange(SCALES) >= 2, settings=settings)
    assert result.valid
    assert np.isfinite(result.estimates["m_tau"].value)
    assert "window (0, 5) includes 2 untrusted scales" in result.flags
    assert not any("window (5, 10)" in flag for flag in result.flags)


def test_short_window_and_few_directions_are_flagged():
    result = analyse([power_law(100)], EPS, settings=AnalysisSettings(windows=((2, 7),), bootstrap=20))
    short = (
        "the analysed window has 5 scales over 1.3 decades, where 8 over 1.5 are recommended; more radii within it and radii over"
    )
    assert any(flag.startswith(short) for flag in result.flags)
    assert "few directions (100; 256 are recommended)" in result.flags


def test_a_short_window_is_flagged_with_what_would_help():
    def help_of(radii, window):
        flags = analyse(
            [power_law()[: len(radii)]], np.array(radii), settings=AnalysisSettings(windows=(window,), bootstrap=20)
        ).flags
        return [flag.partition("; ")[2] for flag in flags if "the analysed window has" in flag]

    assert help_of(EPS, (0, 10)) == []
    assert help_of(np.geomspace(1e-3, 1e-1, 4), (0, 4)) == ["more radii within it would make its exponents steadier"]
    assert help_of(np.geomspace(1e-2, 1e-1, 9), (0, 9)) == ["radii over a wider range would make its exponents steadier"]


def sign_flags(negative_shares):
    """Flags of an analysis whose share of negative responses per scale is given."""
    response = power_law(1000)
    for row, share in zip(response, negative_shares, strict=True):
        row[: round(1000 * share)] *= -1
    result = analyse([response], EPS, settings=FAST)
    return [flag for flag in result.flags if "change sign" in flag]


@pytest.mark.parametrize(
    ("shares", "flagged"),
    [
        ([0.0] * 10, False),
        ([1.0] * 10, False),
        ([0.02] * 10, False),
        ([0.98] * 10, False),
        ([0.03] * 10, True),
        ([0.97] * 10, True),
        ([0.0] * 5 + [1.0] * 5, False),  # the common sign flips with the scale: no zero is crossed
        ([0.0] * 9 + [0.5], True),
        ([0.5] + [1.0] * 9, True),
    ],
)
def test_sign_changes_at_any_scale_are_flagged(shares, flagged):
    assert bool(sign_flags(shares)) is flagged


def test_share_of_negative_responses_is_reported_per_scale():
    response = power_law(200)
    response[3, :50] *= -1
    result = analyse([response], EPS, settings=FAST)
    np.testing.assert_array_equal(result.profiles[0].neg_frac, np.where(np.arange(SCALES) == 3, 0.25, 0))
    assert result.pooled[0][0].scalars["neg_frac"] == 0.25


def test_authors_test_measures_anisotropy():
    rng = np.random.default_rng(0)
    even, heavy = rng.uniform(0.9, 1.1, 500), rng.standard_cauchy(500) ** 4
    np.testing.assert_array_equal(authors_trust(np.stack([even, -even, heavy, np.zeros(500)])), [True, True, False, False])
    r = np.array([[1.0, 3.0]])
    assert authors_trust(r)[0] == (2.0 / 1.0 >= 0.35)


def test_authors_test_is_reported_only_on_demand():
    response = power_law()
    response[4, 0] = 1e6  # one direction dominates: mean/std falls below 0.35
    quiet = analyse([response], EPS, settings=FAST)
    loud = analyse([response], EPS, settings=AnalysisSettings(authors_trust=True, bootstrap=20))
    assert not any("authors" in flag for flag in quiet.flags)
    assert any("rejects 1 of 10 scales" in flag for flag in loud.flags)
    np.testing.assert_array_equal(quiet.trust.mask, loud.trust.mask)
