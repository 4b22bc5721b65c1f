"""The stability of an optimizer within a spectral run: its share of time and memory, and nothing lost when it ends early."""

import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numerics.matrices import planted
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.curvature.operator import hessian
from fastscape.curvature.products import Products
from fastscape.probes.spectrum import stability_stage as spectrum_stability
from fastscape.probes.spectrum.probe import measured
from fastscape.probes.spectrum.recursions import recursion
from fastscape.probes.spectrum.run import SpectralRun
from fastscape.probes.spectrum.stability_stage import StabilityStage
from fastscape.probes.spectrum.state import Goals
from fastscape.runs.budget import Budget

SPECTRUM = np.concatenate([np.random.default_rng(3).uniform(-0.3, 1, 146), [30.0, 20.0, 12.0, 8.0]])


class Weights(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64))

    def forward(self):
        return self.weight


def quadratic(batches=1):
    """w'Aw / 2, the same in every batch."""
    data = [(planted(SPECTRUM), index) for index in range(batches)]
    return fs.Objective(
        Weights(len(SPECTRUM)), data, loss=lambda model, batch: model() @ batch[0] @ model() / 2, weight=lambda _: 1.0
    )


def optimizer(objective, kind="Adam", **options):
    """Of a model after a long run of one noise, whose preconditioner is anything but constant; the weights stay."""
    weight = objective.model.weight
    found = getattr(torch.optim, kind)([weight], **({"lr": 0.01} | options))
    before = weight.detach().clone()
    weight.grad = torch.linspace(0.5, 2, len(weight), dtype=weight.dtype)
    found.step()
    for state in found.state.values():
        if "step" in state:
            state["step"] += 999
    weight.grad = None
    with torch.no_grad():
        weight.copy_(before)
    return found


def preconditioned(objective, moves):
    scale = moves.preconditioner.rsqrt().numpy()
    return np.linalg.eigvalsh(scale[:, None] * planted(SPECTRUM).numpy() * scale)[-1]


def timed(seconds, kind="Adam", batches=1, k=4, tolerance=1e-3):
    """Result, simulated seconds and stage of a run in which a call of the operator takes a second."""
    now, objective = SimpleNamespace(seconds=0.0), quadratic(batches)
    moves = recursion(objective, optimizer(objective, kind))

    class Slow:
        def __init__(self, of):
            self.real = hessian(of, method="graph")

        def __getattr__(self, name):
            return getattr(self.real, name)

        def matmat(self, block):
            now.seconds += 1.0
            return self.real.matmat(block)

        def forms(self, block):
            now.seconds += 1.0
            return self.real.forms(block)

        prepare = None

    run = SpectralRun(
        objective,
        Slow(objective),
        k=k,
        goals=Goals(tolerance, 0.001, 40, 4000),
        block=4,
        seed=0,
        budget=Budget(seconds, clock=lambda: now.seconds),
        capacity=150,
        warm=None,
        name="test",
        progress=None,
    )
    stage = StabilityStage(run, moves, lambda of, _path: Slow(of), memory=None)
    return stage.added(measured(run, "hessian", between=stage.measure)), now.seconds, moves


@pytest.mark.parametrize("seconds", [6, 12, 25, 35])
@pytest.mark.parametrize("batches", [1, 3])
def test_the_budget_holds_with_a_preconditioned_eigenvalue(seconds, batches):
    result, took, _ = timed(seconds, batches=batches)
    assert took <= seconds
    assert result.meta["stop_reason"] == "deadline"
    assert result.stability is not None
    if result.residuals[0] <= 0.1 * result.lambda_max:
        assert result.stability.eta_lambda == pytest.approx(0.01 * result.lambda_max, rel=1e-2)
    else:
        assert math.isnan(result.stability.eta_lambda)


def test_the_preconditioned_eigenvalue_has_its_share_of_a_time_too_short_for_the_rest():
    result, _, moves = timed(40, k=60)
    assert not result.converged.all()
    expected = preconditioned(quadratic(), moves)
    assert result.stability.preconditioned == pytest.approx(expected, rel=1e-2)
    assert result.stability.ratio == pytest.approx(expected / moves.critical, rel=1e-2)
    assert len(result.meta["forms"]) > 3, "two blocks remain for the trace"


def test_without_time_for_its_eigenvalue_the_ratio_is_missing_and_flagged():
    result, _, _ = timed(2)
    found = result.stability
    assert (found.preconditioned, math.isnan(found.ratio)) == (None, True)
    assert result.residuals[0] > 0.1 * result.lambda_max
    assert math.isnan(found.eta_lambda), "of an eigenvalue that is not known either"
    assert found.reason == "the run ended before the largest eigenvalue was computed"
    assert found.reason in found.notes[0]
    assert any("no stability ratio of the optimizer" in note for note in result.notes)


def test_a_ratio_of_an_eigenvalue_that_has_not_converged_is_a_bound_in_words_and_no_number():
    short, long = timed(4)[0], timed(60)[0]
    assert math.isnan(short.stability.ratio)
    assert math.isnan(short.stability.preconditioned)
    assert short.stability.at_least < long.stability.ratio
    assert math.isnan(long.stability.at_least)
    flags = [[note for note in result.notes if "no stability ratio" in note] for result in (short, long)]
    assert f"at least {short.stability.at_least:.3g}: the residual is" in flags[0][0]
    assert flags[1] == []
    assert short.to_dict()["stability"]["ratio"] is None
    assert "of the edge of stability" not in short.verdict()


@pytest.mark.parametrize("seconds", [1.5, 4])
def test_a_ratio_that_takes_no_products_needs_no_time(seconds):
    result, took, _ = timed(seconds, kind="SGD", batches=3)
    assert took <= seconds
    known = result.residuals[0] <= 0.1 * result.lambda_max
    assert (result.stability.ratio if known else result.stability.at_least) == pytest.approx(result.lambda_max * 0.01 / 2)
    assert math.isnan(result.stability.ratio) is not known
    assert result.stability.batch_sharpness is None
    assert any("ended before the batch sharpness" in note for note in result.stability.notes)
    assert result.meta["stability_products"] == 0


def raising(monkeypatch, error):
    """The second call of products inside the stability raises."""
    real, calls = spectrum_stability._Counted.matmat, []

    def matmat(self, vectors):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return real(self, vectors)

    monkeypatch.setattr(spectrum_stability._Counted, "matmat", matmat)


def test_an_interrupt_inside_the_stability_keeps_the_spectrum(monkeypatch):
    raising(monkeypatch, KeyboardInterrupt())
    objective = quadratic()
    result = fs.spectrum(objective, k=2, nodes=20, optimizer=optimizer(objective))
    assert result.meta["stop_reason"] == "interrupted"
    np.testing.assert_allclose(result.eigenvalues, [30, 20], rtol=1e-4)
    assert result.stability.eta_lambda == pytest.approx(0.3, rel=1e-4)
    assert math.isnan(result.stability.ratio)
    assert result.meta["stability_products"] == 4
    assert any("no stability ratio" in note for note in result.notes)


def test_a_failure_inside_the_stability_keeps_the_spectrum(monkeypatch):
    raising(monkeypatch, RuntimeError("out of memory"))
    objective = quadratic()
    with pytest.raises(fs.SpectrumError, match="RuntimeError: out of memory") as caught:
        fs.spectrum(objective, k=2, nodes=20, optimizer=optimizer(objective))
    partial = caught.value.partial
    np.testing.assert_allclose(partial.eigenvalues, [30, 20], rtol=1e-4)
    assert partial.meta["stop_reason"] == "failed: RuntimeError"
    assert partial.stability.eta_lambda == pytest.approx(0.3, rel=1e-4)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_a_trajectory_keeps_the_checkpoint_whose_stability_ended_early(tmp_path, monkeypatch, kind):
    objective = quadratic()
    state = optimizer(objective)
    torch.save(objective.model.state_dict(), tmp_path / "a.pt")
    torch.save(objective.model.state_dict(), tmp_path / "b.pt")
    raising(monkeypatch, kind("inside"))
    files = [tmp_path / "a.pt", tmp_path / "b.pt"]
    if kind is KeyboardInterrupt:
        found = fs.spectra(objective, files, k=2, nodes=20, optimizer=state)
        assert found.meta["stop_reason"] == "interrupted"
    else:
        with pytest.raises(fs.SpectrumError) as caught:
            fs.spectra(objective, files, k=2, nodes=20, optimizer=state)
        found = caught.value.partial
    assert [point.name for point in found.points] == ["a"]
    assert found.points[0].lambda_max == pytest.approx(30, rel=1e-4)


def test_all_products_are_counted_once(monkeypatch):
    made, real = [], Products._multiply

    def multiply(self, rows, *arguments):
        made.append(len(rows))
        return real(self, rows, *arguments)

    monkeypatch.setattr(Products, "_multiply", multiply)
    objective = quadratic()
    result = fs.spectrum(objective, k=2, nodes=20, method="graph", optimizer=optimizer(objective))
    assert result.products == sum(made)
    assert 0 < result.meta["stability_products"] < result.products
    plain = fs.spectrum(objective, k=2, nodes=20, method="graph")
    assert result.meta["trial_products"] == plain.meta["trial_products"]


def test_both_bases_fit_in_the_memory(monkeypatch):
    rows, real = [], spectrum_stability.largest

    def largest(matrix, *, memory, **settings):
        rows.append(memory // (8 * len(SPECTRUM)))
        return real(matrix, memory=memory, **settings)

    monkeypatch.setattr(spectrum_stability, "largest", largest)
    objective = quadratic()
    adam = optimizer(objective)
    row = 8 * len(SPECTRUM)
    least = 2 * 2 + 3 * 4 + 1 + 3 * 4  # of k = 2 at both ends, and of one eigenvalue, in blocks of 4
    with pytest.raises(ValueError, match=rf"a basis of {least} vectors .* \d+ bytes are enough") as refused:
        fs.spectrum(objective, k=2, memory=least * row - 1, optimizer=adam)
    memory = int(re.search(r"(\d+) bytes", str(refused.value))[1])
    found = fs.spectrum(objective, k=2, nodes=10, method="graph", memory=memory, targets={"trace": None}, optimizer=adam)
    assert found.stability is not None
    assert rows[0] >= 13
    assert rows[0] * row < memory


@pytest.mark.parametrize("adam", [False, True])
def test_a_memory_in_which_only_the_first_checkpoint_fits_is_refused_before_it(tmp_path, adam):
    objective, files = quadratic(), [tmp_path / "a.pt", tmp_path / "b.pt"]
    for file in files:
        torch.save(objective.model.state_dict(), file)
    if adam:  # only the second has one
        torch.save(optimizer(objective).state_dict(), tmp_path / "b.optimizer.pt")
    with pytest.raises(ValueError, match=r"memory must hold .* \d+ bytes are enough") as refused:
        fs.spectra(objective, files, k=2, nodes=10, memory=1)
    enough = int(re.search(r"(\d+) bytes", str(refused.value))[1])
    found = fs.spectra(objective, files, k=2, nodes=10, method="graph", memory=enough, targets={"trace": None})
    assert [point.stability is not None for point in found.points] == [False, adam]
    with pytest.raises(ValueError, match=f"{enough} bytes are enough"):
        fs.spectra(objective, files, k=2, nodes=10, method="graph", memory=int(0.99 * enough))


def test_memory_of_the_edge_alone_bounds_its_basis():
    objective = quadratic()
    with pytest.raises(ValueError, match="memory must hold products and a basis of 4 vectors .* bytes are enough"):
        fs.edge_of_stability(objective, optimizer(objective), memory=3 * 8 * len(SPECTRUM), method="graph")


def test_the_stability_of_a_network_in_a_run_is_that_alone():
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    data = [(torch.randn(n, 6, dtype=torch.float64), torch.randint(0, 3, (n,))) for n in (5, 5, 2)]
    objective = fs.Objective(model, data, criterion=F.cross_entropy)
    sgd = torch.optim.SGD(
        [{"params": [model[0].weight, model[2].weight], "weight_decay": 0.3}, {"params": [model[0].bias, model[2].bias]}], lr=0.1
    )
    inside = fs.spectrum(objective, k=1, nodes=10, optimizer=sgd, budget="60s").stability
    alone = fs.edge_of_stability(objective, sgd)
    assert inside.sharpness == pytest.approx(alone.sharpness, rel=1e-3)
    assert inside.batch_sharpness.value == pytest.approx(alone.batch_sharpness.value, rel=1e-6)
