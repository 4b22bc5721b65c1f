"""One call measures the signature of a real network: shared budget, reasons for what is missing, nothing touched."""

import importlib
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.evaluation.determinism import NondeterministicLossError
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.probes.signature.probe_result import ProbeResult
from fastscape.probes.signature.result import Signature
from fastscape.probes.signature.shared_budget import Stage, run_stages
from fastscape.probes.tracking.difficulty import Difficulty
from fastscape.reports.html import write_html
from fastscape.runs.budget import Budget, BudgetError

module = importlib.import_module("fastscape.probes.signature.probe")  # the name in the package is the function

QUICK = {
    "spectrum": {"nodes": 12, "targets": {"eigenvalues": 1e-2, "trace": None}},
    "slice": {"count": 4, "points": 11},
    "sharpness": {"restarts": 1, "steps": 4, "products": 6, "samples": 4},
    "temperature": {"products": 4},
}
FIELDS = ("lambda_max", "trace", "mean_curvature", "effective_rank", "directional_variance", "roughness", "roughness_detrended")


@pytest.fixture
def objective(trained_mlp, digits):
    return fs.Objective(trained_mlp, [(digits[0][0][:64], digits[0][1][:64])], criterion=F.cross_entropy)


def quick(objective, **settings):
    return fs.signature(objective, **{"batch_size": 16, "learning_rate": 0.05, "k": 2, "options": QUICK, **settings})


def test_a_real_network_has_a_full_signature_and_is_left_untouched(objective, untouched):
    with untouched(objective.model):
        found = quick(objective, seed=3)
    assert isinstance(found, Signature)
    for name in (*FIELDS, "normalized_sharpness", "temperature", "noise_scale", "stability_ratio"):
        low, high = getattr(found, name).interval
        assert low <= getattr(found, name).value <= high, name
    assert found.loss == pytest.approx(objective.loss(), rel=1e-5)
    assert found.mean_curvature.value == pytest.approx(found.trace.value / objective.size)
    assert found.meta["weight_fingerprint"] == objective.weight_fingerprint()
    assert found.meta["sources"]["slice"]["seed"] == 3


def test_single_probes_give_the_same_numbers(objective):
    found = quick(objective, seed=3)
    spectrum = fs.spectrum(objective, 2, seed=3, **QUICK["spectrum"])
    assert found.lambda_max.value == pytest.approx(spectrum.lambda_max, rel=1e-3)
    assert found.trace.value == pytest.approx(spectrum.trace.value, rel=1e-4)
    lines = fs.slice1d(objective, seed=3, **QUICK["slice"])
    assert found.roughness.value == pytest.approx(lines.roughness.value, rel=1e-5)
    sgd = torch.optim.SGD(objective.model.parameters(), lr=0.05)
    critical = fs.critical_sharpness(objective, optimizer=sgd, curvature=False)
    assert (found.lambda_c, found.eta_c) == (critical.lambda_c, critical.eta_c)


@pytest.mark.parametrize(("momentum", "critical"), [(0.0, 2 / 0.05), (0.9, 2 * 1.9 / 0.05)])
def test_the_edge_is_that_of_the_momentum_given(objective, momentum, critical):
    found = quick(objective, momentum=momentum, what=("spectrum",))
    assert found.critical_sharpness == pytest.approx(critical)
    assert found.stability_ratio.value == pytest.approx(found.lambda_max.value / critical, rel=1e-3)
    assert found.warnings()[0].status == "not fired"


def test_the_edge_is_crossed_at_a_large_learning_rate(objective):
    found = quick(objective, learning_rate=100.0, what=("spectrum",))
    assert found.warnings()[0].status == "fired"
    assert found.warnings()[0].threshold == pytest.approx(0.02)


def test_adam_has_its_own_edge_and_no_temperature(objective):
    optimizer = torch.optim.Adam(objective.model.parameters(), lr=1e-3)
    for parameter in objective.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in objective.model.state_dict().items()}
    optimizer.step()
    objective.model.load_state_dict(before)
    objective.model.zero_grad()
    found = quick(objective, learning_rate=None, optimizer=optimizer, what=("spectrum", "temperature"))
    assert found.critical_sharpness == pytest.approx(38 / 1e-3)
    assert found.temperature is None
    assert found.missing["temperature"]
    assert found.noise_scale is not None


def test_what_cannot_be_had_says_what_to_pass(objective):
    found = quick(objective, batch_size=None, learning_rate=None, what=None)
    assert "batch_size=" in found.missing["temperature"]
    assert "other=" in found.missing["barrier"]
    assert "difficulty=" in found.missing["difficulty"]
    assert "what=" in found.missing["m_tau"]
    assert found.trace is not None


def test_the_barrier_to_itself_is_none_and_to_another_is_that_of_the_barrier_probe(objective):
    found = quick(objective, other=objective.model, what=("barrier",))
    assert found.barrier.value == 0.0
    other = {
        name: value + 0.05 * torch.sin(torch.arange(value.numel()).reshape(value.shape)) for name, value in objective.base.items()
    }
    found = quick(objective, other=other, what=("spectrum", "barrier"), options={**QUICK, "barrier": {"points": 5, "start": 5}})
    direct = module.barrier(objective, None, other, points=5, start=5)
    assert found.barrier.value == direct.linear.value
    assert found.barrier_max.value == direct.max.value
    assert found.trace is not None  # the same weights: the objective's are one end


def test_a_budget_is_shared_and_kept(objective):
    found = quick(objective, budget="20s")
    shares = found.meta["shares"]
    assert list(shares) == ["spectrum", "slice", "sharpness", "critical_sharpness", "temperature"]
    assert shares["spectrum"] == pytest.approx(20 * 4 / 9.5, rel=0.01)
    assert shares["temperature"] > 20 * 1.5 / 9.5  # what the others left
    assert found.meta["stop_reason"] == "complete"


def test_a_budget_that_is_too_small_costs_only_what_does_not_fit(objective, monkeypatch):
    def refuses(*_args, **_settings):
        raise BudgetError("budget must be at least 9s, got 1s")

    monkeypatch.setitem(module.PROBES, "slice", refuses)
    monkeypatch.setitem(module.PROBES, "sharpness", refuses)
    found = fs.signature(objective, budget="5s", what=("spectrum", "slice", "sharpness"), options={"spectrum": QUICK["spectrum"]})
    assert found.trace is not None
    assert found.missing["roughness"] == "its share of the budget was too small: budget must be at least 9s, got 1s"
    assert found.meta["stop_reason"] == "deadline"


def interrupted(*_args, **_settings):
    raise KeyboardInterrupt


def test_ctrl_c_keeps_what_was_measured(objective, monkeypatch):
    monkeypatch.setitem(module.PROBES, "slice", interrupted)
    found = fs.signature(objective, what=("spectrum", "slice", "sharpness"), options={"spectrum": QUICK["spectrum"]})
    assert found.trace is not None
    assert found.missing["roughness"] == "the run was interrupted before it"
    assert found.missing["normalized_sharpness"] == "the run was interrupted before it"
    assert found.meta["stop_reason"] == "interrupted"


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_ctrl_c_at_any_forward_gives_a_partial_signature_and_leaves_no_trace(tanh_net, digits, untouched, share):
    calls, last = [0], [math.inf]

    def loss(model, batch):
        calls[0] += 1
        if calls[0] == last[0]:
            raise KeyboardInterrupt
        return F.cross_entropy(model(batch[0]), batch[1])

    def objective():  # a new one, whose first evaluation is among those counted
        return fs.Objective(tanh_net, [(digits[0][0][:32], digits[0][1][:32])], loss=loss)

    settings = {"what": ("spectrum", "slice", "sharpness"), "options": {**QUICK, "spectrum": {"nodes": 12, "method": "rev-rev"}}}
    whole = fs.signature(objective(), **settings)
    assert whole.meta["stop_reason"] == "complete"
    last[0], calls[0] = int(share * calls[0]), 0
    with untouched(tanh_net):
        found = fs.signature(objective(), **settings)
    assert found.meta["stop_reason"] == "interrupted"
    assert any("interrupted" in words for words in (*found.notes, *found.missing.values()))
    assert len(found.missing) >= len(whole.missing)


def test_ctrl_c_before_anything_is_ctrl_c(objective, monkeypatch):
    monkeypatch.setitem(module.PROBES, "spectrum", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fs.signature(objective, what=("spectrum", "slice"))


def test_a_probe_that_fails_costs_no_other_its_result(objective, monkeypatch):
    def broken(*_args, **_settings):
        raise RuntimeError("out of memory\nand a long story")

    monkeypatch.setitem(module.PROBES, "sharpness", broken)
    found = fs.signature(objective, what=("spectrum", "sharpness"), options={"spectrum": QUICK["spectrum"]})
    assert found.trace is not None
    assert found.missing["normalized_sharpness"] == "it failed: RuntimeError: out of memory"
    with pytest.raises(RuntimeError, match="out of memory"):
        fs.signature(objective, what=("sharpness",))


def test_a_loss_with_dropout_is_refused_with_the_reason(digits, untouched):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            return self.linear(F.dropout(x.flatten(1), 0.5))

    objective = fs.Objective(Noisy(), digits, criterion=F.cross_entropy)
    with untouched(objective.model), pytest.raises(NondeterministicLossError, match="draws random numbers"):
        quick(objective)


def test_several_probes_share_one_page_and_file(objective, tmp_path):
    found = fs.probe(objective, ("slice", "spectrum"), options={kind: QUICK[kind] for kind in ("slice", "spectrum")})
    assert list(found) == ["spectrum", "slice"]
    assert found["spectrum"].vectors is not None
    again = fs.load(found.save(tmp_path / "probes"))
    assert isinstance(again, ProbeResult)
    assert isinstance(again["spectrum"], fs.SpectrumResult)
    assert again["spectrum"].vectors is None
    assert again["slice"].roughness == found["slice"].roughness
    assert (
        again.signature().as_vector(("trace", "roughness")).tolist()
        == found.signature().as_vector(("trace", "roughness")).tolist()
    )
    page = write_html(found, tmp_path / "page.html").read_text()
    assert "Spectrum of the Hessian" in page
    assert "Losses along lines" in page
    with pytest.raises(KeyError, match="there are spectrum, slice"):
        found["barrier"]


def test_all_that_the_arguments_allow_is_probed(objective):
    found = fs.probe(
        objective,
        batch_size=16,
        learning_rate=0.05,
        options={**QUICK, "multifractal": {"probe": fs.ProbeSettings(count=4, banks=1)}},
        targets={"m_tau": 0.5},
    )
    assert set(found) == {"spectrum", "slice", "sharpness", "critical_sharpness", "temperature", "multifractal"}
    assert found.missing == {"barrier": "no second solution was given: pass other="}
    assert found["temperature"].meta["settings"]["spectrum"] == "model"  # its trace is not estimated again
    signature = found.signature()
    assert signature.h_mean is not None
    assert signature.missing["barrier"].startswith("no second solution")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"what": ("spectra",)}, "what must hold distinct names"),
        ({"what": ()}, "what must hold distinct names"),
        ({"what": ("slice", "slice")}, "what must hold distinct names"),
        ({"what": ("temperature",)}, "must not name 'temperature' here: the training's batch_size="),
        ({"what": ("barrier",)}, "must not name 'barrier' here: no second solution"),
        ({"options": {"slice": {"radios": 1}}}, "keywords of its probe, directions, radius.*got 'radios'"),
        ({"options": {"slices": {}}}, "options must name probes, spectrum.*got 'slices'"),
        ({"targets": {"tau": 1}}, "targets must name eigenvalues, trace or m_tau, got 'tau'"),
        ({"seed": -1}, "seed must be an integer"),
        ({"budget": "0s"}, "budget must be a positive time"),
    ],
)
def test_arguments_are_checked_before_any_work(objective, monkeypatch, settings, message):
    monkeypatch.setattr(module, "run_stages", lambda *_: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=message):
        fs.probe(objective, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0}, "epsilon must be positive and finite, got 0"),
        ({"radius": math.inf}, "radius must be positive and finite, got inf"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"momentum": 0.9, "learning_rate": None}, "momentum must come with learning_rate="),
        ({"learning_rate": -1.0}, "learning_rate must be positive and finite, got -1.0"),
        ({"what": "temperature", "batch_size": None}, "must not name 'temperature'"),
    ],
)
def test_arguments_of_a_signature_are_checked_before_any_work(objective, monkeypatch, settings, message):
    monkeypatch.setattr(module, "run_stages", lambda *_: pytest.fail("work was done"))
    with pytest.raises(ValueError, match=message):
        quick(objective, **settings)


def test_the_difficulty_of_a_training_joins_the_signature_of_its_end(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    data = [(digits[0][0][:32], digits[0][1][:32])]
    objective = fs.Objective(model, data, criterion=F.cross_entropy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    difficulty = Difficulty(objective, every=2)
    difficulty.step(0, lr=0.1)
    for step in range(1, 7):
        optimizer.zero_grad()
        F.cross_entropy(model(data[0][0]), data[0][1]).backward()
        optimizer.step()
        difficulty.step(step, lr=0.1)
    run = difficulty.finish()
    found = quick(objective, what="spectrum", difficulty=run, step=6)
    assert found.difficulty.value == run.value > 0
    assert found.difficulty.interval == pytest.approx((run.value - run.discretisation, run.value + run.discretisation))
    assert found.difficulty_dimensionless.value == run.dimensionless
    assert (found.name, found.step) == ("model", 6)
    assert Signature.of(fs.spectrum(objective, 1), run).name == "model"


def test_optimizer_and_learning_rate_are_alternatives(objective):
    optimizer = torch.optim.SGD(objective.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="either optimizer= or learning_rate="):
        fs.signature(objective, optimizer=optimizer, learning_rate=0.1, batch_size=4)
    with pytest.raises(TypeError, match=r"must be a fastscape\.Objective"):
        fs.signature(objective.model)


class Result:
    """The least that a stage gives."""

    def __init__(self, reason="complete"):
        self.meta = {"stop_reason": reason}


def test_stages_share_what_is_left_of_the_time():
    now = [0.0]
    clock = Budget(100.0, clock=lambda: now[0])
    limits = []

    def stage(seconds, reason="complete"):
        def run(limit, _results):
            limits.append(limit.seconds)
            now[0] += seconds
            return Result(reason)

        return run

    stages = [
        Stage("a", 1.0, stage(10)),
        Stage("b", 1.0, stage(50, "deadline")),
        Stage("c", 2.0, stage(60)),
        Stage("d", 1.0, stage(1)),
    ]
    done = run_stages(stages, clock)
    assert limits == pytest.approx([100 / 5, 90 / 4, 40 * 2 / 3])
    assert list(done.results) == ["a", "b", "c"]
    assert done.missing == {"d": "no time was left"}
    assert done.stop_reason == "deadline"


def test_an_interrupted_result_ends_the_run_with_what_there_is():
    stages = [Stage("a", 1.0, lambda *_: Result("interrupted")), Stage("b", 1.0, lambda *_: pytest.fail("ran"))]
    done = run_stages(stages, Budget(None))
    assert list(done.results) == ["a"]
    assert done.stop_reason == "interrupted"
    assert math.isinf(Budget(None).seconds)


def test_a_partial_result_of_a_failure_is_kept_with_a_note():
    error = RuntimeError("midway")
    error.partial = Result()

    def fails(*_):
        raise error

    done = run_stages([Stage("a", 1.0, fails)], Budget(None))
    assert done.results["a"] is error.partial
    assert done.notes == ["a: it failed: RuntimeError: midway; what was measured before is kept"]


def test_a_loss_that_turns_out_random_refuses_everything():
    def fails(*_):
        raise NondeterministicLossError("two values")

    with pytest.raises(NondeterministicLossError):
        run_stages([Stage("a", 1.0, lambda *_: Result()), Stage("b", 1.0, fails)], Budget(None))


def test_a_budget_that_is_over_before_the_first_probe_is_an_error_and_no_empty_signature(objective):
    with pytest.raises(BudgetError, match="budget"):
        fs.signature(objective, budget=1e-9)


def test_a_barrier_does_not_bridge_results_of_its_two_ends(objective):
    state = {name: tensor + 0.01 for name, tensor in objective.model.state_dict().items()}
    both = fs.barrier(objective, None, state, points=11)
    here = fs.temperature(objective, batch_size=16, learning_rate=0.05)
    probe = ProbeSettings(count=4, banks=2)
    there = fs.multifractal(objective.at(state), probe)
    Signature.of(both, there)
    with pytest.raises(ValueError, match="same weights"):
        Signature.of(both, here, there)
