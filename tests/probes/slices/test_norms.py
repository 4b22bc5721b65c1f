"""Slices through networks with batch norm: the statistics of w fit no other network on them, and can be recomputed."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from norms import data, net, objective
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.cli import main
from fastscape.evaluation.surface.families import Affine
from fastscape.evaluation.surface.surface import Surface


def solution(seed, steps=60):
    """Trained on one batch, with the statistics of its end."""
    model = net()
    torch.manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(data()[0][0]), data()[0][1]).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def two():
    return solution(1), solution(2)


def between(two, **arguments):
    made = objective(two[0], data()[:1])
    axes = fs.Axes.difference(made, two[0].state_dict(), two[1].state_dict())
    return made, axes, objective(two[1], data()[:1]).loss(), arguments


def recomputed(model):
    """The loss with the statistics of the data: unbiased variances in the buffers, as torch's momentum leaves them."""
    own = copy.deepcopy(model)
    inputs, targets = data()[0]
    hidden = own[0](inputs)
    own[1].running_mean.copy_(hidden.mean(0).detach())
    own[1].running_var.copy_(hidden.var(0).detach())
    return float(F.cross_entropy(own(inputs), targets).detach())


def norm_flags(result):
    return [flag for flag in result.flags if "running statistics are those of w" in flag]


def test_the_end_of_a_difference_is_another_network_with_other_statistics_and_says_so(two, untouched):
    made, axes, own, _ = between(two)
    with untouched(two[0]):
        found = fs.slice1d(made, axes, radius=1.0, points=5)
    end = found.losses[0, -1]
    assert abs(end / own - 1) > 0.05, "by the statistics of the first"
    (flag,) = norm_flags(found)
    kept = found.meta["moved_statistics"]
    assert f"{kept['running']:.3g}" in flag
    assert f"{kept['recalibrated']:.3g}" in flag
    assert "bn='recalibrate'" in flag


def test_with_statistics_recomputed_both_ends_are_the_networks_themselves(two, untouched):
    made, axes, _, _ = between(two)
    with untouched(two[0]):
        found = fs.slice1d(made, axes, radius=1.0, points=5, bn="recalibrate")
    assert found.losses[0, 2] == pytest.approx(recomputed(two[0]), rel=1e-12)
    assert found.losses[0, -1] == pytest.approx(recomputed(two[1]), rel=1e-9)
    assert found.meta["batch_norm"] == "recalibrate"
    assert not norm_flags(found)
    line = fs.barrier(made, None, two[1], points=5, start=5)
    assert found.losses[0, [2, 3, 4]] == pytest.approx(line.losses[[0, 2, 4]], rel=1e-9)


def test_by_the_batch_there_is_nothing_to_recompute(two):
    made, axes, _, _ = between(two)
    found = fs.slice1d(made, axes, radius=1.0, points=5, bn="batch")
    assert found.losses[0, -1] == pytest.approx(objective(two[1], data()[:1], batch_norm="batch").loss(), rel=1e-9)
    assert (found.meta["batch_norm"], norm_flags(found)) == ("batch", [])
    asked = fs.slice1d(made.normalised("batch"), axes, radius=1.0, points=5)
    np.testing.assert_array_equal(asked.losses, found.losses)


def test_near_the_weights_the_statistics_fit(two):
    made, axes, _, _ = between(two)
    assert not norm_flags(fs.slice1d(made, axes, radius=1e-4, points=5))


def test_random_directions_far_from_the_weights_are_held_against_recomputed_statistics_too(two):
    made, _, _, _ = between(two)
    found = fs.slice1d(made, radius=2.0, points=5, count=3)
    (flag,) = norm_flags(found)
    assert "of random 0" in flag


def test_planes_flag_their_ends_and_checkpoints(two, untouched):
    made, _, own, _ = between(two)
    states = [solution(1, 5).state_dict(), two[1].state_dict()]
    with untouched(two[0]):
        plane = fs.slice2d(made, "pca", trajectory=states, points=5)
        again = fs.slice2d(made, "pca", trajectory=states, points=5, bn="recalibrate")
    assert len(norm_flags(plane)) == 1
    assert norm_flags(again) == []
    assert again.loss == pytest.approx(recomputed(two[0]), rel=1e-12)
    saved = plane.to_dict()
    assert saved["meta"]["moved_statistics"]["recalibrated"] > 0
    assert own > 0


def test_models_without_running_statistics_have_no_flag(tanh_objective):
    found = fs.slice1d(tanh_objective, count=1, points=5)
    assert norm_flags(found) == []
    assert "moved_statistics" not in found.meta
    same = fs.slice1d(tanh_objective, count=1, points=5, bn="recalibrate")
    np.testing.assert_array_equal(found.losses, same.losses)


def test_single_samples_cannot_be_recomputed_and_the_slice_stands(two):
    single = [(x[None], y[None]) for x, y in zip(*data()[0], strict=True)]
    made = objective(two[0], single)
    found = fs.slice1d(made, count=1, points=5, radius=2.0)
    assert np.isfinite(found.losses).all()
    assert any("could not be recomputed" in flag for flag in found.flags)
    with pytest.raises(ValueError, match="bn='recalibrate' needs more than one value per channel"):
        fs.slice1d(made, count=1, points=5, bn="recalibrate")


def test_recalibration_leaves_the_statistics_of_the_replica(two):
    made, axes, _, _ = between(two)
    with Surface(made, Affine(list(made.base.values()), axes.tensors)) as surface:
        before = surface.at([[0.5]]).losses
        surface.recalibrated([[1.0], [-1.0]])
        np.testing.assert_array_equal(surface.at([[0.5]]).losses, before)


@pytest.mark.parametrize("call", [fs.slice1d, fs.slice2d])
def test_bad_settings_are_named(two, call):
    made, _, _, _ = between(two)
    with pytest.raises(ValueError, match="bn must be 'recalibrate', 'running', 'batch' or None, got 'reset'"):
        call(made, bn="reset")


def test_the_command_recomputes_statistics(two, tmp_path, monkeypatch):
    text = f"import sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\nfrom norms import net as model\nimport norms\n"
    (tmp_path / "slice_norms_net.py").write_text(text + "def data():\n    return norms.data()[:1]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, model in (("step1", two[1]), ("step2", two[0])):
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    files = [part for name in ("step1", "step2") for part in ("--checkpoint", str(tmp_path / f"{name}.pt"))]
    arguments = ["slice", "slice_norms_net:model", "--data", "slice_norms_net:data", *files, "--direction", "difference"]
    done = CliRunner().invoke(main, [*arguments, "--points", "3", "--bn", "recalibrate", "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["losses"][0][-1] == pytest.approx(recomputed(two[1]), rel=1e-9)


def test_a_curve_by_interpolated_statistics_says_so_as_a_line_does(two):
    made, _, _, _ = between(two)
    found = fs.connect(made, None, two[1], bn="running", start=3, points=3, steps=2)
    for part in (found.line, found.curve):
        assert any("interpolated running statistics fit no network" in flag for flag in part.flags)
