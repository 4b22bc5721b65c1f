"""An error of the model or of the analysis, and Ctrl-C, leave every long call with what was evaluated before."""

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.runs.anytime import Anytime


class Boom(Exception):  # noqa: N818
    """Raised by the model."""


class Failing(nn.Module):
    """Raises at one of its forwards and after it, counted over all copies."""

    calls, at, error = 0, math.inf, Boom

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x):
        Failing.calls += 1
        if Failing.calls >= Failing.at:
            Failing.at = math.inf if Failing.error is KeyboardInterrupt else Failing.at
            raise Failing.error("midway")
        return self.layers(x)


@pytest.fixture(autouse=True)
def _never():
    yield
    Failing.at = math.inf


def objective():
    torch.manual_seed(0)
    data = [(torch.randn(4, 4), torch.randint(0, 3, (4,))) for _ in range(3)]
    return fs.Objective(Failing(), data, criterion=F.cross_entropy)


def state(seed):
    torch.manual_seed(seed)
    return Failing().state_dict()


A, B = state(1), state(2)
TRAINING = {"batch_size": 2, "learning_rate": 0.1}
CALLS = {
    "slice1d": lambda of: fs.slice1d(of, points=5, count=9, method="loop"),
    "slice2d": lambda of: fs.slice2d(of, points=5, method="loop"),
    "barrier": lambda of: fs.barrier(of, A, B),
    "barriers": lambda of: fs.barriers(of, [A, B, None], points=5, start=5),
    "connect": lambda of: fs.connect(of, A, B, steps=20, points=5, start=5),
    "sharpness": lambda of: fs.sharpness(of, products=0, samples=8, steps=5),
    "critical_sharpness": lambda of: fs.critical_sharpness(of, tolerance=1e-6, curvature=False),
    "diagonal": lambda of: fs.diagonal(of, 32, estimator="xdiag", method="reverse"),
    "temperature": lambda of: fs.temperature(of, products=0, **TRAINING),
    "responses": lambda of: fs.responses(of, fs.Directions(of, 40), [1e-2], precision="float64", method="loop"),
    "multifractal": lambda of: fs.multifractal(of, fs.ProbeSettings(count=4, precision="float64"), QUICK, method="loop"),
    "probe": lambda of: fs.probe(of, what=("slice", "barrier"), other=A, options=PARTS),
}
QUICK = fs.AnalysisSettings(bootstrap=2, permutations=1)
PARTS = {"slice": {"method": "loop", "points": 5, "count": 4}}


def forwards(name):
    """That a call makes when nothing disturbs it."""
    Failing.calls, Failing.at = 0, math.inf
    CALLS[name](objective())
    return Failing.calls


def evaluations(result):
    """Numbers that the model gave, of whatever result."""
    if isinstance(result, fs.MultifractalResult):
        return result.directions
    if isinstance(result, fs.TrajectoryResult):
        return sum(point.directions for point in result.points)
    if isinstance(result, fs.ProbeResult):
        return sum(evaluations(found) for found in result.results.values())
    if isinstance(result, fs.BarrierMatrix):
        return len(result.pairs)
    if isinstance(result, fs.CurveResult):
        return evaluations(result.line) + len(result.training) + evaluations(result.curve)
    kinds = {fs.SliceResult: "losses", fs.PlaneResult: "losses", fs.BarrierResult: "losses", fs.TemperatureResult: "norms"}
    kinds |= {
        fs.Responses: "even",
        fs.SharpnessResult: "random_rises",
        fs.CriticalSharpnessResult: "steps",
        fs.DiagonalResult: "values",
    }
    return int(np.isfinite(getattr(result, kinds[type(result)])).sum())


FORWARDS = functools.cache(forwards)


@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
@pytest.mark.parametrize("share", [0.8, 0.9, 0.97])
@pytest.mark.parametrize("name", CALLS)
def test_what_was_evaluated_before_is_kept(name, share, error, untouched):
    at, of = int(share * FORWARDS(name)), objective()
    Failing.calls, Failing.at, Failing.error = 0, at, error
    result = None
    with untouched(of.model):
        try:
            result = CALLS[name](of)
            stopped = getattr(result, "stop_reason", None) or result.meta["stop_reason"]
        except fs.PartialResultError as failed:
            result = failed.partial
            stopped = "failed: Boom"
    if name == "probe" and error is Boom:
        assert "Boom: midway" in str((result.missing, result.notes))
    elif stopped != "complete" or name != "temperature":  # whose last forwards are of a remark alone
        assert (stopped == "interrupted") == (error is KeyboardInterrupt)
    assert 0 < evaluations(result) < math.inf
    str(result)


def fails(*_arguments, **_keywords):
    raise MemoryError("cannot allocate")


ANALYSES = {
    "slice1d": "fastscape.probes.slices.assembly.mean_estimate",
    "slice2d": "fastscape.probes.slices.assembly.minima",
    "barrier": "fastscape.probes.barriers.run.band",
    "barriers": "fastscape.probes.barriers.run.band",
    "sharpness": "fastscape.probes.sharpness.assembly.skewed_mean",
    "critical_sharpness": "fastscape.probes.critical.run.crossing",
    "diagonal": "fastscape.probes.diagonal.run.xdiag",
    "temperature": "fastscape.probes.temperature.probe.noise_trace",
    "responses": "fastscape.response.responses.with_largest",
}


@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
@pytest.mark.parametrize("name", ANALYSES)
def test_an_analysis_that_fails_leaves_all_evaluations(name, monkeypatch):
    whole = CALLS[name](objective())
    monkeypatch.setattr(ANALYSES[name], fails)
    with pytest.raises(fs.PartialResultError, match="MemoryError: cannot allocate") as caught:
        CALLS[name](objective())
    part = caught.value.partial
    assert isinstance(caught.value.__cause__, MemoryError)
    if name != "barriers":
        assert evaluations(part) == evaluations(whole)
    else:
        np.testing.assert_array_equal(part.losses[:2], whole.losses[:2])
    str(part)


def test_forms_that_are_known_outlive_what_follows():
    of = objective()
    directions = fs.Directions(of, 256)

    def stop(kind, after):
        def progress(done, _count):
            if done >= after:
                raise kind("midway")

        return progress

    whole = fs.quadratic_forms(of, directions, memory=1 << 17)
    with pytest.raises(fs.PartialResultError, match="the quadratic forms failed after") as caught:
        fs.quadratic_forms(of, directions, memory=1 << 17, progress=stop(Boom, 20))
    few = fs.quadratic_forms(of, directions, memory=1 << 17, progress=stop(KeyboardInterrupt, 20))
    for part in (caught.value.partial, few):
        count = len(part)
        assert 20 <= count < 256
        np.testing.assert_array_equal(part.curvature, whole.curvature[:count])
    assert (few.stop_reason, caught.value.partial.stop_reason) == ("interrupted", "failed: Boom")


def test_a_mean_form_of_some_groups_is_one_of_fewer_directions(monkeypatch):
    from fastscape.differences.evaluator import DifferenceEvaluator

    of, calls, true = objective(), [], DifferenceEvaluator.mean_curvature

    def third(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return true(self, *arguments)

    monkeypatch.setattr(DifferenceEvaluator, "mean_curvature", third)
    found = fs.mean_quadratic_form(of, fs.Directions(of, 16), groups=8)
    assert (found.n, found.method) == (6, "3 of 8 groups (interrupted)")
    calls.append(1)
    monkeypatch.undo()
    directions = fs.Directions(of, 6)
    assert found.value == pytest.approx(fs.mean_quadratic_form(of, directions, groups=3).value, rel=1e-6)


def test_the_first_error_is_the_one_that_is_told():
    run = Anytime()
    assert run.analysed(lambda: 1 / 0, 7) == 7
    assert run.analysed(fails, 8) == 8
    with pytest.raises(fs.PartialResultError, match="the work: ZeroDivisionError") as caught:
        run.whole("what is known", "the work")
    assert (caught.value.partial, run.reason) == ("what is known", "failed: ZeroDivisionError")
