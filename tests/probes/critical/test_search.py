"""The search of a root by signs, on functions whose noise is known."""

import math

import pytest

from fastscape.probes.critical.search import Limits, Tried, bracket, crossing, inverse, next_step, outcome

NAN = math.nan


def searched(function, guess=1.0, tolerance=0.1, noise=0.0, stderr=lambda eta: NAN, largest=1e6, smallest=1e-9):
    """Everything that was tried, what it amounts to, and the root."""
    limits, tried = Limits(guess, smallest, largest, tolerance), []
    while (eta := next_step(tried, limits)) is not None:
        assert smallest <= eta <= largest
        assert eta not in [each.eta for each in tried]
        tried.append(Tried(eta, function(eta), stderr(eta), noise))
        assert len(tried) < 60
    root = crossing(tried, 10)
    return tried, outcome(tried, limits, root), root


@pytest.mark.parametrize("off", [0.501, 0.7, 0.999, 1.0, 1.001, 1.4, 1.999])
def test_five_steps_from_a_guess_within_a_factor_of_two(off):
    tried, found, root = searched(lambda eta: eta * (eta - 3), guess=3 * off)
    assert found == "found"
    assert len(tried) <= 5 + (off == 1)
    assert root.value == pytest.approx(3, rel=1e-12)


def test_a_guess_at_the_root_is_no_rise_at_once():
    """There the difference is rounding; smaller steps show that the loss falls."""
    for sign in (1, -1):
        tried, found, root = searched(lambda eta, sign=sign: eta * (eta - 3) + sign * 1e-12 * (eta == 3), guess=3.0, noise=1e-9)
        assert found == "found"
        assert root.value == pytest.approx(3, rel=1e-6)
        assert any(each.resolved and not each.rises for each in tried)


@pytest.mark.parametrize("guess", [1e-7, 1e-3, 1.0, 500.0])
@pytest.mark.parametrize("tolerance", [0.2, 0.1, 1e-6])
def test_the_bracket_is_as_narrow_as_was_asked_for(guess, tolerance):
    tried, found, _ = searched(lambda eta: math.expm1(eta) - 2 * eta, guess=guess, tolerance=tolerance)
    lower, upper = bracket(tried)
    assert found == "found"
    assert lower.eta <= 1.2564312086261697 <= upper.eta
    assert upper.eta - lower.eta <= tolerance * (upper.eta + lower.eta)


@pytest.mark.parametrize("noise", [1e-12, 1e-6])
def test_a_function_that_rises_from_0_on_is_followed_down_to_its_rounding(noise):
    tried, found, _ = searched(lambda eta: 1e-3 * eta + noise * math.sin(1e12 * eta), noise=noise)
    assert found == "rises at once"
    assert min(each.eta for each in tried if each.resolved) < 1e5 * noise


def test_a_function_that_does_not_rise_is_followed_to_the_end():
    tried, found, root = searched(lambda eta: -eta, largest=500.0)
    assert (found, root) == ("never rises", None)
    assert tried[-1].eta == 500.0
    assert searched(lambda eta: 0.0)[1] == "never rises"  # flat


def test_bisection_ends_where_both_ends_are_rounding():
    tried, found, _ = searched(
        lambda eta: 1e-8 * math.copysign(1, eta - 3) if abs(eta - 3) < 0.4 else eta - 3, noise=1e-7, tolerance=1e-9
    )
    assert found == "found"
    assert len(tried) < 12


def test_slopes_within_their_errors_are_undecided():
    tried, found, _ = searched(lambda eta: 0.1 * eta, stderr=lambda eta: 0.1 * eta)
    assert found == "undecided"
    assert len(tried) == 4


def test_a_root_whose_interval_holds_zero_is_undecided():
    _, found, root = searched(lambda eta: eta * (eta - 1), stderr=lambda eta: 0.6 * eta)
    assert (found, root.value) == ("undecided", pytest.approx(1))
    assert root.stderr == pytest.approx(0.6)
    assert inverse(root).interval[1] == math.inf
    _, found, root = searched(lambda eta: eta * (eta - 1), stderr=lambda eta: 0.2 * eta)
    assert found == "found"
    assert inverse(root).interval == pytest.approx((2 / root.interval[1], 2 / root.interval[0]))


@pytest.mark.parametrize("value", [NAN, math.inf])
def test_what_is_not_finite_is_a_rise(value):
    tried, found, root = searched(lambda eta: -eta if eta < 5 else value)
    lower, upper = bracket(tried)
    assert found == "found"
    assert lower.eta < 5 <= upper.eta
    assert lower.eta < root.value < upper.eta
    assert math.isnan(root.stderr)
