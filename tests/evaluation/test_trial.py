"""A trial takes the fastest of the ways that work, and says of every other one why not."""

import math

import numpy as np
import pytest
import torch

from fastscape import _clock
from fastscape.evaluation.trial import PathError, Refusal, Trial, asked_for, same_losses, timed


def raising(error):
    def run():
        raise error

    return run


def test_what_raises_or_is_refused_has_its_reason_and_is_not_taken():
    trial = Trial[int]()
    trial.seconds.update(first=2.0, second=1.0, third=3.0)
    assert trial.best("none") == "second"
    assert trial.attempt("second", raising(Refusal("it gives other losses"))) is None
    assert trial.attempt("third", raising(RuntimeError("no batching rule\nsecond line"))) is None
    assert trial.attempt("fourth", lambda: 4) == 4
    assert trial.best("none") == "first"
    assert trial.refused == {
        "second": "it gives other losses",
        "third": "third cannot run this model: RuntimeError: no batching rule",
    }
    assert trial.attempt("first", raising(Refusal("late"))) is None
    assert trial.best("none") == "none"


def test_equals_go_by_the_order_of_trying():
    trial = Trial[int]()
    trial.seconds.update(late=1.0, early=1.0)
    assert trial.best("") == "late"
    assert trial.lead("late") == 1.0


def test_the_lead_is_over_the_next():
    trial = Trial[int]()
    trial.seconds["one"] = 2.0
    assert math.isinf(trial.lead("one"))
    trial.seconds.update(two=3.0, three=5.0)
    assert trial.lead("one") == 1.5


def test_what_speaks_of_the_model_ends_a_trial_and_stops_are_no_refusals():
    trial = Trial[int](through=ArithmeticError)
    for error in (ZeroDivisionError("the same in every way"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            trial.attempt("way", raising(error))
    assert not trial.refused


def test_a_path_that_was_asked_for_is_refused_as_an_argument():
    assert asked_for("vmap", lambda: 3) == 3
    with pytest.raises(ValueError, match="method must be 'loop' for this model, got 'vmap': other losses"):
        asked_for("vmap", raising(Refusal("other losses")))
    with pytest.raises(PathError, match="'vmap', which cannot run it .TypeError: no."):
        asked_for("vmap", raising(TypeError("no")))


def test_runs_are_as_many_as_asked_for_and_the_least_counts(monkeypatch):
    lasting = [8.0, 2.0, 4.0, 1.0]
    readings = iter(np.cumsum([[0.0, seconds] for seconds in lasting]).tolist())
    monkeypatch.setattr(_clock, "read", lambda: next(readings))
    assert timed(lambda: "found", 1) == (8.0, "found")
    calls = []
    seconds, _ = timed(lambda: calls.append(0), most=8, more=lambda times: len(times) < 3)
    assert (seconds, len(calls)) == (1.0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_are_the_same_up_to_the_rounding_of_the_largest(dtype):
    unit = torch.finfo(dtype).eps
    losses = np.array([1e-9, 1.0, np.nan, np.inf])
    assert same_losses(np.add(losses, [100 * unit, 100 * unit, 0, 0]), losses, dtype)
    assert not same_losses(np.add(losses, [0, 1e4 * unit, 0, 0]), losses, dtype)
    assert not same_losses([1e-9, 1.0, 0.0, np.inf], losses, dtype)
    assert not same_losses([1e-9, 1.0, np.nan, -np.inf], losses, dtype)
