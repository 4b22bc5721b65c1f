"""Responses that go on where a call ended: the same bytes, and nothing evaluated twice."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.evaluation.evaluator import Evaluator
from fastscape.runs.journal import Journal

RADII = np.logspace(-3, -1, 4)


@pytest.fixture
def objective(digits):
    torch.manual_seed(5)
    return fs.Objective(zoo.cnn(width=2), [(digits[0][0][:32], digits[0][1][:32])], criterion=F.cross_entropy)


def same(first, second):
    for name in ("even", "odd", "noise", "trusted", "eps_abs"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    assert (first.base, first.precision, first.reason) == (second.base, second.precision, second.reason)


class Stop:
    """Ctrl-C when so many directions are done."""

    def __init__(self, done):
        self.done = done

    def __call__(self, done, count):
        if done >= self.done:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("precision", "memory"), [("float64", None), ("difference", 2 << 20)])
@pytest.mark.parametrize("kind", ["random", "given"])
def test_a_call_goes_on_where_it_ended(objective, tmp_path, precision, memory, kind):
    directions = fs.Directions(objective, 5, seed=2)
    if kind == "given":
        directions = fs.Directions.given(objective, [directions[index] for index in range(5)])
    arguments = objective, directions, RADII
    part = fs.responses(*arguments, precision=precision, memory=memory, progress=Stop(2), resume=tmp_path / "run")
    assert (part.stop_reason, part.even.shape[1] < 5) == ("interrupted", part.even.shape[1] < len(directions))
    held = len(Journal(tmp_path / "run").done)
    assert held > 0
    whole = fs.responses(*arguments, precision=precision, resume=tmp_path / "run")
    assert len(Journal(tmp_path / "run").done) > held
    same(whole, fs.responses(*arguments, precision=precision, plan=whole))
    same(fs.responses(*arguments, resume=tmp_path / "run"), whole)


def test_a_complete_journal_needs_one_loss_alone(objective, tmp_path, monkeypatch):
    directions = fs.Directions(objective, 3)
    first = fs.responses(objective, directions, RADII, method="loop", resume=tmp_path)

    def never(*_arguments):
        raise AssertionError("all is there")

    monkeypatch.setattr(Evaluator, "responses", never)
    same(fs.responses(objective, directions, RADII, resume=tmp_path), first)


def test_a_journal_of_another_call_is_refused(objective, tmp_path):
    directions = fs.Directions(objective, 3)
    first = fs.responses(objective, directions, RADII, method="loop", resume=tmp_path)
    x, y = objective.batches[0]
    twice = fs.Objective(objective.model, [(x, y)], criterion=lambda out, y: 2 * F.cross_entropy(out, y))
    other = fs.Objective(objective.model, [(x + 1, y)], criterion=F.cross_entropy)
    for changed, along, radii, words in (
        (other, directions, RADII, "is of other data; use another folder"),
        (objective, fs.Directions(objective, 4), RADII, "is of other count"),
        (objective, fs.Directions(objective, 3, seed=1), RADII, "is of other seed"),
        (objective, directions, RADII[1:], "is of other radii"),
        (twice, directions, RADII, "got other loss function"),
    ):
        with pytest.raises(ValueError, match=words):
            fs.responses(changed, along, radii, resume=tmp_path)
    with pytest.raises(ValueError, match="precision must be that of the plan, 'float64', got 'difference'"):
        fs.responses(objective, directions, RADII, precision="difference", resume=tmp_path)
    with pytest.raises(ValueError, match="plan must be left out with resume="):
        fs.responses(objective, directions, RADII, plan=first, resume=tmp_path)
    with pytest.raises(TypeError, match="unexpected keyword argument 'resum'"):
        fs.responses(objective, directions, RADII, resum=tmp_path)
    with pytest.raises(
        ValueError,
        match=r"folder must be the journal of a multifractal probe, .* of responses, .*call fs.responses\(..., resume=.* again",
    ):
        fs.merge(tmp_path)
