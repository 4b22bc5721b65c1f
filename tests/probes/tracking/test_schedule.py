"""When something is due along a training run."""

import numpy as np
import pytest

import fastscape as fs
from fastscape.probes.tracking.schedule import checked_schedule


def test_log_spaced_steps_begin_at_zero_end_at_the_last_and_keep_their_ratio():
    steps = np.array(fs.log_spaced(10_000, 10).steps)
    assert (steps[0], steps[1], steps[-1]) == (0, 1, 10_000)
    assert np.log(steps[2:] / steps[1:-1]) == pytest.approx(np.log(10_000) / 8, rel=0.1)
    assert fs.log_spaced(5, 40).steps == (0, 1, 2, 3, 4, 5)
    assert fs.log_spaced(7, 2).steps == (0, 7)


def test_fractions_are_steps_of_the_plan_and_the_default_is_dense_early():
    assert fs.fractions(1000, (0.1, 0.001, 1)).steps == (1, 100, 1000)
    assert fs.fractions(3, (0.0, 0.1, 0.2, 1.0)).steps == (0, 1, 3)
    early = [step for step in fs.fractions(10_000).steps if step <= 1000]
    assert len(early) >= 6
    assert fs.fractions(200).fraction(20) == 0.1


def test_every_n_steps_are_due_also_where_calls_have_gaps():
    schedule = checked_schedule(None, 10)
    assert schedule.between(-1, 0) == (0,)
    assert schedule.between(9, 10) == (10,)
    assert schedule.between(10, 19) == ()
    assert schedule.between(5, 35) == (10, 20, 30)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fs.log_spaced(0, 5), "total_steps"),
        (lambda: fs.log_spaced(5, 1), "count"),
        (lambda: fs.fractions(5, (0.5, 1.5)), r"shares\[1\] = 1.5"),
        (lambda: fs.fractions(5, ()), "shares"),
        (lambda: checked_schedule(None, None), "either"),
        (lambda: checked_schedule((1, 2), 3), "either"),
        (lambda: checked_schedule((2, 2), None), "ascending"),
        (lambda: checked_schedule((), None), "ascending"),
        (lambda: checked_schedule((0, 1.5), None), r"when\[1\]"),
    ],
)
def test_bad_schedules_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
