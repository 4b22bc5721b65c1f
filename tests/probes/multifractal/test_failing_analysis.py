"""What was evaluated outlives an analysis that fails, and settings that no analysis can hold are refused before any work."""

import numpy as np
import pytest
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape._checks import MOST
from fastscape.probes.multifractal import result as results

PROBE = fs.ProbeSettings(radii=(1e-3, 1e-2, 3e-2, 1e-1), count=4, banks=1)
QUICK = fs.AnalysisSettings(bootstrap=20, permutations=19)


@pytest.fixture
def objective(tanh_net):
    return fs.Objective(tanh_net, zoo.digits(samples=16), criterion=F.cross_entropy)


@pytest.mark.parametrize("error", [MemoryError("no room"), ValueError("odd numbers"), RuntimeError()])
def test_evaluations_are_kept_in_a_partial_result_when_the_analysis_raises(objective, monkeypatch, untouched, error, tmp_path):
    whole = fs.multifractal(objective, PROBE, QUICK)

    def fails(*_, **_named):
        raise error

    with monkeypatch.context() as patch, untouched(objective.model):
        patch.setattr(results, "analyse", fails)
        with pytest.raises(fs.ProbeError, match=f"failed at the analysis.*reanalyse.*{type(error).__name__}") as raised:
            fs.multifractal(objective, PROBE, QUICK)
    assert raised.value.__cause__ is error
    (point,) = raised.value.partial.points
    assert not point.analysed
    np.testing.assert_array_equal(point.measured.even, whole.measured.even)
    again = fs.load(raised.value.partial.save(tmp_path / "kept")).points[0].reanalyse()
    assert again.analysis.estimates["m_tau"] == whole.analysis.estimates["m_tau"]
    assert point.meta["stop_reason"] == f"failed: {type(error).__name__}"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fs.AnalysisSettings(bootstrap=10**9), "bootstrap must be at most 1048576, got 1000000000"),
        (lambda: fs.AnalysisSettings(permutations=10**12), "permutations must be at most"),
        (lambda: fs.AnalysisSettings(q=tuple(np.linspace(-5, 5, 2000))), "q must hold at most 1000 orders, got 20"),
        (lambda: fs.ProbeSettings(count=10**12), "count must be at most 4294967296, got 1000000000000"),
        (lambda: fs.ProbeSettings(banks=10**9), "banks must be at most"),
        (lambda: fs.ProbeSettings(radii=tuple(np.linspace(1e-3, 1, 20_000))), r"len\(radii\) must be at most 10000, got 20000"),
        (lambda: fs.log_spaced(10**9, 10**8), "count must be at most"),
    ],
)
def test_settings_that_no_memory_holds_are_refused_where_they_are_made(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda o: fs.slice1d(o, points=10**9 + 1), "points"),
        (lambda o: fs.slice1d(o, count=10**9), "count"),
        (lambda o: fs.slice2d(o, points=99_999), r"points\[0\] \* points\[1\]"),
        (lambda o: fs.sharpness(o, samples=10**9), "samples"),
        (lambda o: fs.sharpness(o, restarts=10**9), "restarts"),
        (lambda o: fs.sharpness(o, steps=10**9), "steps"),
        (lambda o: fs.spectrum(o, 1, nodes=10**9), "nodes"),
        (lambda o: fs.spectrum(o, 1, block=10**9), "block"),
        (lambda o: fs.barrier(o, None, o.model.state_dict(), points=10**9), "points"),
        (lambda o: fs.bench(o, count=10**9), "count"),
        (lambda o: fs.Tracker(o, every=1, pending=10**9), "pending"),
    ],
)
def test_counts_that_no_memory_holds_are_refused_before_any_evaluation(objective, monkeypatch, call, name):
    monkeypatch.setattr(type(objective), "replica", lambda *_: pytest.fail("the loss was evaluated"))
    with pytest.raises(ValueError, match=rf"{name} must be at most \d+, got \d+: the memory"):
        call(objective)
    assert MOST == 2**20
