"""Time that training earns."""

import math

import pytest

from fastscape.probes.tracking.allowance import Allowance


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_time_between_visits_is_training_and_earns_a_share():
    clock = Clock()
    account = Allowance(0.1, clock)
    for _ in range(5):
        clock.now += 2.0
        with account.visit():
            clock.now += 0.05
    assert (account.training, account.step_seconds) == (8.0, 2.0)  # nothing is known of the time before the first
    assert account.spent == pytest.approx(0.25)
    assert account.earned == pytest.approx(0.8)
    assert account.balance == pytest.approx(0.55)


def test_waiting_for_the_training_is_its_own_time_and_settling_counts_once():
    clock = Clock()
    account = Allowance(0.5, clock)
    with account.visit():
        clock.now += 3.0
        account.waited()
        clock.now += 1.0
        account.settle()
        account.settle()
    assert (account.training, account.spent) == (3.0, 1.0)


def test_a_visit_that_raises_is_booked():
    clock = Clock()
    account = Allowance(0.5, clock)

    def interrupted():
        with account.visit():
            clock.now += 1.0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert account.spent == 1.0


@pytest.mark.parametrize("share", [0, -0.1, math.nan, math.inf, "5%"])
def test_a_share_must_be_a_positive_fraction(share):
    with pytest.raises(ValueError, match="share"):
        Allowance(share)
