"""The benchmark compares numbers before it times them, keeps what is known, and leaves no trace."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from timed import Timed
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.probes.bench.result import BenchResult, BenchUnit
from fastscape.probes.bench.view import time_words
from fastscape.runs.budget import BudgetError

ALL = (
    "forward",
    "gradient",
    "even response: float64, loop",
    "even response: float64, vmap",
    "even response: float32, loop",
    "even response: float32, vmap",
    "even response: difference",
    "even response: difference-bf16",
    "quadratic form: exact",
    "quadratic form: two forwards",
    "Hessian product: torch double backward",
    "Hessian product: one vector",
    "Hessian product: block of 4",
    "GGN product: one vector",
    "weights perturbed",
    "weights copied",
)


@pytest.fixture
def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    return fs.Objective(model, [(torch.randn(5, 4), torch.randint(3, (5,))) for _ in range(2)], criterion=F.cross_entropy)


def quick(objective, **settings):
    return fs.bench(objective, **({"budget": None, "count": 4, "repeats": 2} | settings))


@pytest.fixture(scope="module")
def result():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    data = [(torch.randn(5, 4), torch.randint(3, (5,))), (torch.randn(3, 4), torch.randint(3, (3,)))]
    return quick(fs.Objective(model, data, criterion=F.cross_entropy), seed=5)


def test_every_unit_computes_the_same_loss_and_numbers_and_is_timed(result):
    assert tuple(unit.name for unit in result.units) == ALL
    assert [unit.reason for unit in result.units if unit.name != "even response: difference-bf16"] == [""] * 15
    assert all(len(unit.seconds) == 2 for unit in result.timed)
    assert len(result.timed) >= 15
    for unit in result.timed:
        assert math.isnan(unit.loss) or unit.loss == pytest.approx(result.loss, rel=1e-5)
        assert unit.name in ("forward", "gradient", "weights copied") or unit.deviation < 0.2 or math.isnan(unit.deviation)
    assert result["Hessian product: one vector"].deviation < 1e-4
    assert result["GGN product: one vector"].deviation < 1e-4
    assert result["weights perturbed"].deviation < 1e-4
    assert result["even response: difference"].deviation < 1e-3


def test_results_say_where_and_with_what_they_were_had(result):
    assert {"device", "dtype", "threads", "versions", "machine", "cores", "kernels", "weight_fingerprint"} <= set(result.meta)
    assert result.meta["seed"] == 5
    assert result.meta["stop_reason"] == "all repeats done"
    for words in ("threads", "torch.float32", "torch ", "device"):
        assert words in str(result)


def test_memory_is_counted_where_it_can_be(result):
    assert result["gradient"].peak > result["forward"].peak > 0
    assert result["Hessian product: one vector"].peak > 0


def test_a_result_is_saved_and_read_back(result, tmp_path):
    again = fs.load(result.save(tmp_path / "bench"))
    assert isinstance(again, BenchResult)
    assert str(again) == str(result)
    np.testing.assert_array_equal(again["gradient"].seconds, result["gradient"].seconds)
    json.dumps(result.to_dict(), allow_nan=False)


def made(**seconds):
    units = tuple(BenchUnit(name, "", np.array(values), moved=8 if name == "copied" else 0) for name, values in seconds.items())
    return BenchResult("m", None, 1.0, units, {"parameters": 1, "samples": 1.0, "batches": 1})


def test_a_ratio_is_the_median_over_rounds_of_ratios_within_a_round():
    found = made(forward=[1.0, 10.0, 2.0], gradient=[3.0, 30.0, 8.0], copied=[2e-9, 4e-9])
    assert found.ratio("gradient") == 3.0
    assert found.ratio("copied", "gradient") == pytest.approx(np.median([2e-9 / 3, 4e-9 / 30]))
    assert found["copied"].bandwidth == pytest.approx(8 / 3e-9)
    assert math.isnan(made(forward=[1.0], gradient=[]).ratio("gradient"))
    with pytest.raises(KeyError, match="unknown unit 'other'; expected one of forward"):
        found["other"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1.5, "1.5 s"), (0.0123, "12.3 ms"), (1e-3, "1 ms"), (4.56e-6, "4.56 us"), (2e-9, "2 ns"), (math.nan, "n/a")],
)
def test_times_are_written_in_the_unit_that_suits(seconds, words):
    assert time_words(seconds) == words


def test_the_user_sees_no_trace(small, bn_objective, untouched):
    for objective in (small, bn_objective):
        with untouched(objective.model):
            quick(objective, repeats=1)


# ---------------------------------------------------------------------- what disagrees or fails


def test_a_wrong_double_backward_is_not_timed():
    """Torch's fused weight norm has a wrong one on CPUs; fastscape's products take another way."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, 3)).double()
    data = [(torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,)))]
    found = quick(fs.Objective(model, data, criterion=F.cross_entropy))
    plain = found["Hessian product: torch double backward"]
    assert len(plain.seconds) == 0
    assert "differ from the reference" in plain.reason
    assert len(found["Hessian product: one vector"].seconds) == 2
    assert any("wrong numbers" in note and "double backward" in note for note in found.notes)
    assert "Left out" in str(found)


def test_a_unit_whose_loss_is_another_is_not_timed(small, monkeypatch):
    monkeypatch.setattr("fastscape.objective.replica.Replica.loss_and_gradient", lambda _self: (1e3, []))
    found = quick(small)
    assert "its loss 1000 is not L(w)" in found["gradient"].reason
    assert len(found["gradient"].seconds) == 0
    assert math.isnan(found.ratio("forward", "gradient"))
    str(found)


def test_wrong_products_are_not_timed(small, monkeypatch):
    from fastscape.curvature.operator import CurvatureOperator

    real = CurvatureOperator.rows
    monkeypatch.setattr(CurvatureOperator, "rows", lambda self, rows: 1.1 * real(self, rows))
    found = quick(small)
    for name in ("Hessian product: one vector", "Hessian product: block of 4", "GGN product: one vector"):
        assert "not timed" in found[name].reason


def test_wrong_perturbations_are_not_timed(small, monkeypatch):
    from fastscape.evaluation.displacement import Displacement

    real = Displacement.write
    monkeypatch.setattr("fastscape.probes.bench.units.Displacement.write", lambda self, radius: real(self, 2 * radius))
    found = quick(small)
    assert "not timed" in found["weights perturbed"].reason
    assert (
        "not timed" in found["even response: float32, loop"].reason or "not timed" in found["even response: float64, vmap"].reason
    )


def test_whatever_a_unit_raises_is_its_reason_alone(small, monkeypatch):
    def fails(*_arguments, **_settings):
        raise RuntimeError("no such kernel\nsecond line")

    monkeypatch.setattr("fastscape.probes.bench.curvature.hessian", fails)
    found = quick(small)
    assert found["Hessian product: one vector"].reason == "RuntimeError: no such kernel"
    assert len(found.timed) >= 13


def test_a_unit_that_fails_while_timed_ends_alone(small, monkeypatch):
    from fastscape.objective.replica import Replica

    real, calls = Replica.gradient, []

    def fails(self):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("later")
        return real(self)

    monkeypatch.setattr(Replica, "gradient", fails)
    found = quick(small, repeats=3)
    assert found["gradient"].reason == "RuntimeError: later"
    assert len(found["weights copied"].seconds) == 3


def test_an_objective_without_criterion_has_no_gauss_newton_product():
    model = nn.Linear(3, 1)
    objective = fs.Objective(model, [torch.randn(4, 3)], loss=lambda net, batch: net(batch).square().mean())
    names = [unit.name for unit in quick(objective).units]
    assert not any("GGN" in name for name in names)


def test_a_loss_that_is_nan_still_has_costs(small):
    with torch.no_grad():
        small.model[0].weight[0, 0] = math.nan
    found = quick(small)
    assert math.isnan(found.loss)
    assert len(found["gradient"].seconds) == 2
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_random_loss_is_refused():
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) * torch.rand(())

    objective = fs.Objective(Noisy(3, 2), [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))], criterion=F.cross_entropy)
    with pytest.raises(fs.NondeterministicLossError):
        quick(objective)


# ---------------------------------------------------------------------- budgets and interruptions


def slow(small):
    return fs.Objective(Timed(small.model), small.batches, criterion=F.cross_entropy)


def test_units_that_do_not_fit_are_listed_as_left_out(small):
    found = quick(slow(small), budget=60)
    left = [unit for unit in found.units if unit.reason]
    assert left
    assert all("does not fit" in unit.reason for unit in left)
    assert found.meta["stop_reason"] == "deadline"
    assert any("ended early (deadline)" in note for note in found.notes)
    assert "does not fit" in str(found)


def test_a_budget_that_holds_nothing_gives_an_empty_table(small):
    found = quick(slow(small), budget=10)
    assert found.timed == ()
    assert found.verdict().startswith("Nothing was timed")
    str(found)
    with pytest.raises(BudgetError, match="budget must fit one unit, got 2 s"):
        quick(slow(small), budget=2)


@pytest.mark.parametrize(("at", "rounds"), [("preparing quadratic form: exact", 0), ("round 2 of 3: gradient", 1)])
def test_an_interrupted_run_keeps_what_was_timed(small, untouched, at, rounds):
    def stop(state):
        if state.stage == at:
            raise KeyboardInterrupt

    with untouched(small.model):
        found = quick(small, repeats=3, progress=stop)
    assert found.meta["stop_reason"] == "interrupted"
    assert found.meta["rounds"] == rounds
    assert len(found["forward"].seconds) == rounds
    assert tuple(unit.name for unit in found.units) == ALL
    assert all(unit.reason for unit in found.units if not len(unit.seconds))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "count must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"memory": -1}, "memory must be a positive number"),
        ({"budget": "soon"}, "budget must be a positive time"),
        ({"seed": -1}, "seed must be an integer"),
    ],
)
def test_bad_arguments_are_named(small, settings, message):
    with pytest.raises(ValueError, match=message):
        fs.bench(small, **settings)


def test_a_memory_cap_leaves_out_what_does_not_fit(small):
    found = quick(small, memory=3500)
    assert "above the memory given" in found["even response: float64, vmap"].reason
    assert len(found["even response: float64, loop"].seconds) == 2


def test_pytest_benchmark_compares_the_timings(result, tmp_path):
    file = tmp_path / "0001_here.json"
    file.write_text(json.dumps(result.pytest_benchmark(), allow_nan=False))
    command = [sys.executable, "-m", "pytest_benchmark", "compare", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "gradient" in done.stdout


def test_the_figure_has_a_bar_for_every_unit_that_was_timed(result):
    import matplotlib as mpl

    mpl.use("Agg")
    ax = result.plot()
    assert len(ax.patches) == len(result.timed)
    assert made(forward=[]).plot().texts[0].get_text() == "no unit was timed beside a forward"
