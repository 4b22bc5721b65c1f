"""Settings of an analysis are checked once, by name and value."""

import dataclasses
import math

import numpy as np
import pytest

from fastscape import AnalysisSettings, analyse


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": (2.0,)}, r"q must hold at least three finite orders besides 0, got \(2.0,\)"),
        ({"q": (0.0, 1.0, 2.0)}, "q must hold at least three finite orders"),
        ({"q": ()}, "q must hold at least three finite orders"),
        ({"q": (-1.0, 2.0, math.inf)}, "q must hold at least three finite orders.*inf"),
        ({"q": (-1.0, 2.0, math.nan, 3.0)}, "q must hold at least three finite orders.*nan"),
        ({"variant": "both"}, "variant must be 'even' or 'odd', got 'both'"),
        ({"gamma": 0.0}, "gamma must be positive and finite, got 0.0"),
        ({"gamma": -1.0}, "gamma must be positive and finite, got -1.0"),
        ({"gamma": math.inf}, "gamma must be positive and finite, got inf"),
        ({"gamma": math.nan}, "gamma must be positive and finite, got nan"),
        ({"measure_floor": 0.0}, r"measure_floor must be in \(0, 1\), got 0.0"),
        ({"measure_floor": 1.0}, r"measure_floor must be in \(0, 1\), got 1.0"),
        ({"measure_floor": math.nan}, r"measure_floor must be in \(0, 1\), got nan"),
        ({"bootstrap": 1}, "bootstrap must be at least 2, got 1"),
        ({"permutations": 0}, "permutations must be at least 1, got 0"),
    ],
)
def test_bad_setting_is_refused_by_name_and_value(changes, message):
    with pytest.raises(ValueError, match=message):
        AnalysisSettings(**changes)


def test_orders_are_sorted_unique_and_hold_0_and_1():
    assert AnalysisSettings(q=(4, -2, 4, 0.5)).q == (-2.0, 0.0, 0.5, 1.0, 4.0)
    assert AnalysisSettings(q=np.array([3.0, 2.0])).q == (0.0, 1.0, 2.0, 3.0)


def test_windows_are_kept_as_pairs():
    assert AnalysisSettings(windows=[[0, 5], [2, 9]]).windows == ((0, 5), (2, 9))
    assert AnalysisSettings().windows is None


def test_settings_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        AnalysisSettings().gamma = 2.0


def test_defaults_are_those_of_the_specification():
    settings = AnalysisSettings()
    assert (settings.variant, settings.gamma, settings.measure_floor) == ("even", 1.0, None)
    assert (settings.bootstrap, settings.permutations, settings.authors_trust) == (1000, 999, False)


def test_analysis_keeps_its_settings(f2):
    eps, r = f2
    settings = AnalysisSettings(q=(-1, 2, 3), bootstrap=20, seed=9)
    assert analyse([r], eps, settings=settings).settings is settings


def test_odd_responses_are_never_called_quadratic():
    eps = np.logspace(-4, -1, 8)
    response = np.random.default_rng(0).uniform(0.5, 2, 300) * eps[:, None] ** 2
    assert analyse([response], eps, settings=AnalysisSettings(bootstrap=20)).quadratic
    assert not analyse([response], eps, settings=AnalysisSettings(variant="odd", bootstrap=20)).quadratic


@pytest.mark.parametrize(
    ("response", "message"),
    [
        ([np.ones((5, 3)), np.ones((4, 3))], r"response\[1\] must have shape \[5 scales, directions\], got \(4, 3\)"),
        ([np.ones(5)], r"response\[0\] must have shape .*got \(5,\)"),
        ([np.ones((5, 0))], r"response\[0\] must have shape .*got \(5, 0\)"),
    ],
)
def test_response_of_the_wrong_shape_is_refused(response, message):
    with pytest.raises(ValueError, match=message):
        analyse(response, np.logspace(-4, -1, 5))


@pytest.mark.parametrize("change", ["descending", "repeated", "negative", "zero", "nan", "inf"])
def test_radii_must_ascend_and_be_positive_and_finite(change):
    eps = np.logspace(-4, -1, 8)
    if change == "descending":
        eps = eps[::-1]
    elif change == "repeated":
        eps[3] = eps[2]
    elif change == "inf":
        eps[-1] = np.inf
    else:
        eps[0] = {"negative": -1e-5, "zero": 0.0, "nan": np.nan}[change]
    response = np.random.default_rng(0).uniform(1, 2, (8, 300))
    with pytest.raises(ValueError, match="eps must"):
        analyse([response], eps, settings=AnalysisSettings(bootstrap=20))


def test_analysis_of_no_bank_is_refused_by_name():
    with pytest.raises(ValueError, match="response must"):
        analyse([], np.logspace(-4, -1, 8))


@pytest.mark.parametrize("batches", [[0], [0, 1, 2]])
def test_batches_must_match_the_banks(batches):
    """One batch too few would drop a bank without a word."""
    banks = [np.random.default_rng(seed).uniform(1, 2, (8, 20)) for seed in (0, 1)]
    with pytest.raises(ValueError, match="batches"):
        analyse(banks, np.logspace(-4, -1, 8), batches=batches, settings=AnalysisSettings(bootstrap=20))


@pytest.mark.parametrize("gate", [[True], [True] * 7])
def test_noise_verdict_must_match_the_scales(gate):
    response = np.random.default_rng(0).uniform(1, 2, (8, 20))
    with pytest.raises(ValueError, match="above_noise"):
        analyse([response], np.logspace(-4, -1, 8), above_noise=np.array(gate), settings=AnalysisSettings(bootstrap=20))


def test_arrays_of_any_kind_are_taken_and_what_holds_no_numbers_is_refused_by_name():
    eps = np.logspace(-4, -1, 8)
    response = np.random.default_rng(0).uniform(1, 2, (8, 20)) * eps[:, None]
    quick = AnalysisSettings(bootstrap=2, permutations=1)
    expected = analyse([response], eps, settings=quick)
    for bank, radii in ((response.tolist(), eps.tolist()), (response.astype(object), tuple(eps))):
        assert analyse([bank], radii, settings=quick).estimates == expected.estimates
    with pytest.raises(ValueError, match=r"response\[1\] must be an array of real numbers, got list"):
        analyse([response, [["a"] * 20] * 8], eps)
    with pytest.raises(ValueError, match="eps must be an array of real numbers, got dict"):
        analyse([response], {})
