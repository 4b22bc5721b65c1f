"""What speaks of training is of the function that was trained: ratio, temperature, difficulty, trackers and signatures."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from norms import data, hessian, net, objective, top, written_out
from torch.nn import functional as F

import fastscape as fs
from fastscape.cli import main
from fastscape.probes.signature.rules import above_edge

RATE = 0.1


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **({"lr": RATE} | options))


def test_the_two_functions_have_other_curvature():
    assert abs(top(net(), data(), "running") / top(net(), data(), "batch") - 1) > 0.1


# ---------------------------------------------------------------------------------------- the edge of stability


def test_the_ratio_is_that_of_the_statistics_of_each_batch(untouched):
    model = net()
    with untouched(model):
        found = fs.edge_of_stability(objective(model), sgd(model), tolerance=1e-8)
    assert found.ratio == pytest.approx(top(model, data(), "batch") * RATE / 2, rel=1e-7)
    assert found.reason == ""
    own = []
    for batch in data():  # each with its own statistics
        loss, flat = written_out(model, [batch], "batch")
        g, h = torch.func.grad(loss)(flat), hessian(model, [batch], "batch")
        own.append(float(g @ h @ g / (g @ g)))
    assert found.batch_sharpness.value == pytest.approx(np.mean(own), rel=1e-7)


def test_the_whole_spectrum_beside_an_optimizer_is_of_one_function(untouched):
    model = net()
    with untouched(model):
        result = fs.spectrum(objective(model), 3, optimizer=sgd(model))
    expected = torch.linalg.eigvalsh(hessian(model, data(), "batch")).numpy()
    np.testing.assert_allclose(result.eigenvalues, expected[::-1][:3], rtol=1e-3)
    assert result.stability.ratio == pytest.approx(expected[-1] * RATE / 2, rel=1e-3)
    assert result.trace.value == pytest.approx(expected.sum(), rel=1e-6)
    told = objective(model).statistics()
    assert result.loss == pytest.approx(told.batch)
    assert str(result).splitlines()[0].endswith("those of the batch were probed, as in training.")
    assert (result.meta["batch_norm"], result.meta["batch_norm_asked"]) == ("batch", None)


def test_a_spectrum_without_an_optimizer_is_as_asked_and_named():
    model = net()
    result = fs.spectrum(objective(model), 1)
    assert result.lambda_max == pytest.approx(top(model, data(), "running"), rel=1e-3)
    assert "the running statistics were probed" in result.verdict()


def test_asked_for_running_statistics_there_is_no_ratio(untouched):
    model = net()
    made = objective(model, batch_norm="running")
    with untouched(model):
        alone, whole = fs.edge_of_stability(made, sgd(model)), fs.spectrum(made, 1, optimizer=sgd(model))
    for found in (alone, whole.stability):
        assert math.isnan(found.ratio)
        assert math.isnan(found.eta_lambda)
        assert found.batch_sharpness is None
        assert found.reason == "training used batch statistics; pass batch_norm='batch'"
        assert found.critical == pytest.approx(2 / RATE)
        assert found.sharpness == pytest.approx(top(model, data(), "running"), rel=1e-3)
    assert whole.to_dict()["stability"]["ratio"] is None
    assert "of the edge of stability" not in whole.verdict()
    assert any("training used batch statistics" in flag for flag in whole.flags)


def test_data_without_batch_statistics_leave_no_ratio():
    model = net()
    single = [(x[None], y[None]) for x, y in zip(*data()[0], strict=True)]
    found = fs.edge_of_stability(objective(model, single), sgd(model))
    assert math.isnan(found.ratio)
    assert "which these data do not give" in found.reason


def test_checkpoints_are_of_one_function_where_any_has_an_optimizer(tmp_path):
    model = net()
    torch.save(model.state_dict(), tmp_path / "step1.pt")
    torch.save({"model": model.state_dict(), "optimizer": sgd(model).state_dict()}, tmp_path / "step2.pt")
    files = [tmp_path / "step1.pt", tmp_path / "step2.pt"]
    found = fs.spectra(objective(model), files, 1)
    assert [point.meta["batch_norm"] for point in found.points] == ["batch", "batch"]
    assert found.points[0].lambda_max == pytest.approx(top(model, data(), "batch"), rel=1e-3)
    assert str(found).splitlines()[0].startswith("! step1 (and 1 more): loss ")
    bare = fs.spectra(objective(model), files[:1], 1)
    assert bare.points[0].meta["batch_norm"] == "running"


# ---------------------------------------------------------------------------------------- the other measures of training


def test_the_temperature_is_of_groups_of_the_training_s_size_with_statistics_of_their_own(untouched):
    model, batches = net(), data(count=96, size=8)
    with untouched(model):
        found = fs.temperature(objective(model, batches), batch_size=8, learning_rate=RATE, products=0)
    gradients = []
    for batch in batches:
        loss, flat = written_out(model, [batch], "batch")
        gradients.append(torch.func.grad(loss)(flat))
    assert found.method == "two-batch"
    assert found.trace.value == pytest.approx(8 * float(torch.cov(torch.stack(gradients).T).trace()), rel=1e-9)
    assert not any("groups of" in note for note in found.notes)


def test_few_batches_are_cut_into_groups_that_come_near_the_training_s_size():
    found = fs.temperature(objective(batches=data(count=96, size=96)), batch_size=64, learning_rate=RATE, products=0)
    assert found.units == 8
    assert any("groups of 12 samples, training of 64" in note for note in found.notes)


def test_difficulty_takes_norms_of_the_trained_function(untouched):
    model = net()
    found = fs.Difficulty(objective(model), every=1, tolerance=1e-6)
    with untouched(model):
        found.step(0)
    eigenvalues = torch.linalg.eigvalsh(hessian(model, data(), "batch"))
    found.step(1, lr=RATE, gradient_squared=1.0)
    assert found.result.sharpness[0] == pytest.approx(float(eigenvalues.abs().max()), rel=1e-5)
    assert found.result.meta["batch_norm"] == "batch"


def test_a_tracker_measures_the_trained_function_and_the_running_loss_beside_it():
    model = net().train()
    made = objective(model)
    optimizer = sgd(model, momentum=0.5)
    tracker = fs.Tracker(made, when=(0, 3), share=1e6, what=("loss", "spectrum"))
    tracker.step(0, optimizer=optimizer)
    for step in range(1, 4):
        optimizer.zero_grad()
        F.cross_entropy(model(data()[0][0]), data()[0][1]).backward()
        optimizer.step()
        tracker.step(step, optimizer=optimizer)
    result, told = tracker.finish(), made.statistics()
    last = result.points[-1].values
    assert last["loss"] == pytest.approx(told.batch, rel=1e-12)
    assert last["loss_running"] == pytest.approx(told.running, rel=1e-12)
    expected = top(model, data(), "batch") * RATE / 3
    assert last["stability_ratio"] == pytest.approx(expected, rel=1e-2)
    assert "as in training" in str(result).splitlines()[0]


def test_a_tracker_follows_frozen_batch_norm_with_its_running_statistics():
    model = net().train()
    model[1].eval()
    tracker = fs.Tracker(objective(model), when=(0,), share=1e6, what=("loss",))
    tracker.step(0, optimizer=sgd(model))
    (point,) = tracker.finish().points
    assert point.values["loss"] == pytest.approx(objective(model).normalised("running").loss())
    assert "loss_running" not in point.values


def test_a_signature_and_its_warnings_are_of_the_trained_function():
    model = net()
    found = fs.signature(objective(model), learning_rate=RATE, what=("spectrum", "slice"), k=1)
    expected = top(model, data(), "batch")
    assert found.stability_ratio.value == pytest.approx(expected * RATE / 2, rel=1e-3)
    assert found.lambda_max.value == pytest.approx(expected, rel=1e-3)
    assert found.loss == pytest.approx(objective(model).statistics().batch)
    assert found.meta["batch_norm"] == "batch"
    assert "as in training" in found.verdict()


def test_warnings_refuse_numbers_by_running_statistics():
    model = net()
    parts = fs.spectrum(objective(model), 1), fs.slice1d(objective(model), count=2, points=5)
    verdicts = fs.Signature.of(*parts).warnings((above_edge(0.0),))
    assert [verdict.status for verdict in verdicts] == ["not applicable"]
    assert "running statistics" in verdicts[0].reason
    batch = fs.Signature.of(fs.spectrum(objective(model, batch_norm="batch"), 1))
    assert batch.warnings((above_edge(0.0),))[0].status == "fired"


def test_a_signature_of_mixed_statistics_says_which_is_which():
    model = net()
    parts = fs.spectrum(objective(model), 1, optimizer=sgd(model)), fs.slice1d(objective(model), count=2, points=5)
    notes = fs.Signature.of(*parts).notes
    assert "statistics of batch norm differ between the results (batch: spectrum; running: slice)" in notes


def test_barriers_recompute_statistics_unless_the_batch_s_were_asked_for():
    model = net()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight.add_(0.3)
    found = [
        fs.barrier(made, None, other, start=3, points=3).batch_norm
        for made in (objective(model), objective(model).trained(), objective(model, batch_norm="batch"))
    ]
    assert found == ["recalibrate", "recalibrate", "batch"]


# ---------------------------------------------------------------------------------------- on the command line


MODULE = """
import sys
sys.path.insert(0, {tests!r})
from norms import data, net as model
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    from pathlib import Path

    (tmp_path / "trained_function_net.py").write_text(MODULE.format(tests=str(Path(__file__).parents[1])))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "trained_function_net"


def test_the_command_takes_the_trained_function_beside_a_learning_rate(module):
    arguments = ["spectrum", f"{module}:model", "--data", f"{module}:data", "--k", "1", "--json", "--quiet"]
    ratio = top(net(), data(), "batch") * RATE / 2
    for more, expected in (([], ratio), (["--batch-norm", "batch"], ratio), (["--batch-norm", "running"], None)):
        done = CliRunner().invoke(main, [*arguments, "--learning-rate", str(RATE), *more])
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)["stability"]["ratio"]
        assert found == (None if expected is None else pytest.approx(expected, rel=1e-3))
    plain = CliRunner().invoke(main, [*arguments[:-2], "--quiet"])
    assert plain.stdout.startswith("! loss ")


def test_the_doctor_says_both_losses():
    model = net()
    told = objective(model).statistics()
    found = fs.doctor(objective(model))["batch norm"]
    assert found.severity == "warning"
    assert f"loss {told.running:.3g}" in found.found
    assert f"{told.batch:.3g}" in found.found
    assert "batch_norm='batch'" in found.remedy
    assert fs.doctor(objective(model, batch_norm="batch"))["batch norm"].severity == "ok"
    single = [(x[None], y[None]) for x, y in zip(*data()[0], strict=True)]
    assert "are undefined" in fs.doctor(objective(model, single))["batch norm"].found


def test_a_trace_of_the_other_function_is_not_taken_for_the_temperature():
    model, batches = net(), data(count=96, size=8)
    made = objective(model, batches)
    options = {"batch_size": 8, "learning_rate": RATE, "products": 4}
    other = fs.temperature(made, spectrum=fs.spectrum(made, 1, nodes=4), **options)
    assert any("tr H is estimated anew" in note for note in other.notes)
    own = fs.temperature(made, spectrum=fs.spectrum(made, 1, nodes=4, optimizer=sgd(model)), **options)
    assert not any("another function" in note for note in own.notes)


def test_a_record_by_other_statistics_is_not_continued(tmp_path):
    made = objective(net().train())
    fs.Tracker(made, when=(0,), path=str(tmp_path / "r.jsonl"), what=("loss",)).finish()
    with pytest.raises(ValueError, match="with other batch_norm"):
        fs.Tracker(made.normalised("running"), when=(0,), path=str(tmp_path / "r.jsonl"), what=("loss",))
    fs.Tracker(made, when=(0,), path=str(tmp_path / "r.jsonl"), what=("loss",))
