"""Work in units on a simulated clock: what ends it, and what is passed on."""

import pytest

import fastscape as fs
from fastscape import _clock
from fastscape.runs.anytime import Anytime, Deadline, PartialResultError
from fastscape.runs.budget import Budget, BudgetError


@pytest.fixture
def clock(monkeypatch):
    """Seconds, which only the test moves."""
    seconds = [0.0]
    monkeypatch.setattr(_clock, "read", lambda: seconds[0])
    return seconds


def limited(seconds, clock, **keywords):
    return Anytime(Budget(seconds, clock=lambda: clock[0]), **keywords)


def test_units_are_done_while_they_are_expected_to_fit(clock):
    run, done = limited(10.0, clock, margin=2.0, reserve=1.0), []
    with run.ends():
        for unit in run.stream(range(9)):
            clock[0] += 2.0
            done.append(unit)
    assert done == [0, 1, 2]  # after 6 s another, with its margin and the reserve, takes 5 s, and 4 s are left
    assert (run.done, run.reason, run.unit, run.error) == (3, "deadline", 2.0, None)


def test_a_first_unit_that_tried_paths_does_not_end_the_work(clock):
    """Trials make the first row slow; the second is expected to take what the gate foretold, the third what the second did."""
    clock[0], took = 0.0, iter([5.0, 0.1, 0.1, 4.0])
    run = limited(10.0, clock)
    with run.ends():
        for _ in run.stream(range(9), 0.1, "row"):
            clock[0] += next(took)
    assert (run.done, run.reason) == (4, "deadline")


def test_what_is_all_done_is_complete_however_late(clock):
    run = limited(1.0, clock)
    with run.ends():
        for _ in run.stream(range(2)):
            clock[0] += 0.5
    assert (run.done, run.reason) == (2, "complete")


def test_a_first_unit_that_does_not_fit_is_refused_by_its_noun(clock):
    run = limited(2.0, clock)
    with (
        pytest.raises(BudgetError, match=r"budget must hold one row, 3 s here, got 2 s; use 3s or more"),
        run.ends(lambda: run.done),
    ):
        list(run.stream(range(9), 3.0, "row"))
    with pytest.raises(Deadline):
        run.need(2.5)
    assert run.fits(1.5)
    assert not run.fits(1.5, 1.0)


def test_a_unit_is_taken_to_need_as_long_as_the_slowest_so_far(clock):
    run = limited(10.0, clock, margin=1.5)
    for took in (1.0, 3.0, 2.0):
        with run.slowest():
            clock[0] += took
    assert run.unit == 3.0
    with pytest.raises(Deadline):
        run.need()  # 4.5 s with the margin, and 4 s are left


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ArithmeticError])
@pytest.mark.parametrize("known", [True, False])
def test_what_is_known_is_kept(raised, known):
    def work(run):
        with run.ends(lambda: known, errors=lambda _: known):
            raise raised

    run = Anytime()
    if not known:
        with pytest.raises(raised):
            work(run)
        assert run.reason == "complete"
        return
    work(run)
    assert run.reason == ("interrupted" if raised is KeyboardInterrupt else "failed: ArithmeticError")
    assert type(run.error) is (type(None) if raised is KeyboardInterrupt else raised)


def test_errors_end_only_work_that_asks_for_it():
    run = Anytime()
    with pytest.raises(ArithmeticError), run.ends():
        raise ArithmeticError
    with run.ends(errors=lambda error: isinstance(error, BudgetError)):
        raise BudgetError("the next part has no time")
    assert run.reason == "deadline"


@pytest.mark.parametrize("error", [fs.ProbeError, fs.SliceError, fs.SpectrumError])
def test_one_error_catches_every_partial_result(error):
    with pytest.raises(fs.PartialResultError, match="midway") as caught:
        raise error("midway", "what is known")
    assert caught.value.partial == "what is known"
    assert fs.PartialResultError is PartialResultError
