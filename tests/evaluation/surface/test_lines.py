"""Planes through perceptrons, a line at a time: what the loop over points finds, for every model of the form, and no other."""

import functools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.evaluation.surface import lines
from fastscape.evaluation.surface.families import Affine
from fastscape.evaluation.surface.sample_losses import SampleLosses
from fastscape.evaluation.surface.surface import Surface

NETS = {
    "two hidden layers": lambda: zoo.mlp(hidden=(24, 20)),
    "one hidden layer": lambda: zoo.mlp(hidden=(24,)),
    "three hidden layers": lambda: zoo.mlp(hidden=(24, 20, 12)),
    "gelu behind": lambda: nn.Sequential(
        nn.Identity(), nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 20), nn.GELU(), nn.Linear(20, 10)
    ),
    "batch norm behind": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10)
    ),
    "no biases": lambda: nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(64, 24, bias=False), nn.ReLU(), nn.Linear(24, 20, bias=False), nn.ReLU(), nn.Linear(20, 10, bias=False)),
    ),
}


def objective_of(net, digits, criterion=F.cross_entropy, **options):
    torch.manual_seed(0)
    inputs, targets = digits[0]
    model = net() if callable(net) and not isinstance(net, nn.Module) else net
    return fs.Objective(model, list(zip(inputs.split(100), targets.split(100), strict=True)), criterion=criterion, **options)


def plane(objective, count=2):
    directions = fs.Directions(objective, count=count, seed=3)
    return Affine(list(objective.base.values()), [directions.tensors(index)[0] for index in range(count)])


def grid(first=5, second=7, reach=1.5):
    axes = np.meshgrid(np.linspace(-reach, reach, first), np.linspace(-reach, reach, second), indexing="ij")
    return np.stack(axes, axis=-1).reshape(-1, 2)


def both(objective, points, family=None, **options):
    found = []
    for path in ("loop", "lines"):
        with Surface(objective, family or plane(objective), method=path, keep_samples=True, **options) as surface:
            found.append(surface.at(points))
    return found


def assert_same(first, second, rtol=1e-5, scale=1.0):
    np.testing.assert_allclose(second.losses, first.losses, rtol=rtol)
    np.testing.assert_allclose(second.samples, first.samples, rtol=100 * rtol, atol=rtol * scale)
    np.testing.assert_allclose(second.stderr, first.stderr, rtol=100 * rtol)
    if first.accuracy is None:
        assert second.accuracy is None
    else:
        np.testing.assert_array_equal(second.accuracy, first.accuracy)


@pytest.mark.parametrize("name", NETS)
def test_lines_find_what_the_loop_finds(name, digits):
    assert_same(*both(objective_of(NETS[name], digits), grid()))


@pytest.mark.parametrize("name", ["two hidden layers", "batch norm behind"])
def test_in_float64_they_agree_to_rounding(name, digits):
    assert_same(*both(objective_of(NETS[name], digits), grid(), dtype=torch.float64), rtol=1e-13)


def test_batch_statistics_are_those_of_whole_batches(digits):
    assert_same(*both(objective_of(NETS["batch norm behind"], digits, batch_norm="batch"), grid()))


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.linspace(0.5, 2, 10)),
        functools.partial(F.cross_entropy, ignore_index=3),
        lambda outputs, targets, reduction="mean": F.multi_margin_loss(outputs, targets, reduction=reduction),
    ],
    ids=["smoothed", "weighted", "ignoring", "margin"],
)
def test_any_criterion_that_splits_is_split(criterion, digits):
    assert_same(*both(objective_of(NETS["two hidden layers"], digits, criterion), grid(3, 4)))


def test_regressions_have_no_accuracy(digits):
    inputs, _ = digits[0]
    batch = [(inputs, torch.randn(256, 10, generator=torch.Generator().manual_seed(1)))]
    assert_same(*both(fs.Objective(zoo.mlp(hidden=(24,)), batch, criterion=nn.MSELoss()), grid(3, 4)))


def test_lines_have_less_rounding_than_the_loop(digits):
    """Means over samples are taken in float64, and the base of a row is not rounded for each point."""
    objective, points = objective_of(NETS["two hidden layers"], digits), grid(9, 9)
    first, second = both(objective, points)
    with Surface(objective, plane(objective), method="loop", dtype=torch.float64) as surface:
        exact = surface.at(points).losses
    errors = [np.sqrt(np.mean((found.losses / exact - 1) ** 2)) for found in (first, second)]
    assert errors[1] <= errors[0]
    assert errors[1] < 1e-7


@pytest.mark.parametrize("params", ["1.*", "3.*", ["1.bias", "5.weight"]])
def test_layers_that_do_not_move_are_kept(params, digits):
    assert_same(*both(objective_of(NETS["two hidden layers"], digits, params=params), grid(3, 4)))


def test_tied_layers_move_together(digits):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10), nn.Tanh())
    net[5].weight = net[3].weight
    assert_same(*both(objective_of(net, digits), grid(3, 4)))


def test_points_come_back_in_their_order(digits):
    objective = objective_of(NETS["two hidden layers"], digits)
    points = np.concatenate([grid(4, 9), np.random.default_rng(0).uniform(-1, 1, (5, 2)), grid(9, 2)])
    points = points[np.random.default_rng(1).permutation(len(points))]
    assert_same(*both(objective, points))


@pytest.mark.parametrize("count", [1, 3])
def test_any_number_of_axes(count, digits):
    objective = objective_of(NETS["three hidden layers"], digits)
    assert_same(*both(objective, np.random.default_rng(0).normal(size=(6, count)), plane(objective, count)))


def test_lines_go_along_the_longer_side():
    assert lines._line_axis(grid(3, 9)) == 1
    assert lines._line_axis(grid(9, 3)) == 0
    assert [len(places) for places in lines._lines(grid(9, 3), 0)] == [9, 9, 9]


def test_small_blocks_change_nothing(digits, monkeypatch):
    for name in ("two hidden layers", "gelu behind"):
        objective = objective_of(NETS[name], digits)
        with Surface(objective, plane(objective), method="lines") as surface:
            whole = surface.at(grid())
        with monkeypatch.context() as patch, Surface(objective, plane(objective), method="lines") as surface:
            patch.setattr(lines, "_BLOCK_BYTES", 4000)
            cut = surface.at(grid())
        np.testing.assert_allclose(cut.losses, whole.losses, rtol=1e-6)


def test_ties_and_infinite_outputs_are_counted_as_the_loop_counts_them(digits):
    equal = NETS["two hidden layers"]()
    nn.init.zeros_(equal[5].weight)
    nn.init.zeros_(equal[5].bias)
    first, second = both(objective_of(equal, digits, params="1.*"), grid(3, 4))
    assert_same(first, second)
    assert second.accuracy[0] == float((digits[0][1] == 0).double().mean()) > 0  # the first of ten equal classes
    objective = objective_of(NETS["two hidden layers"], digits)
    wild = np.array([[1e30, 0.0], [0.0, 1e38], [1.0, 1.0]])
    first, second = both(objective, wild)
    np.testing.assert_array_equal(np.isfinite(second.losses), np.isfinite(first.losses))
    assert second.losses[2] == pytest.approx(first.losses[2], rel=1e-6)


def _hooked():
    net = zoo.mlp()
    net[2].register_forward_hook(lambda module, inputs, output: output)
    return net


def _shared():
    net = zoo.mlp(hidden=(64, 64))
    return nn.Sequential(net[0], net[1], net[2], net[1], net[2], net[5])


@pytest.mark.parametrize(
    "net",
    [lambda: zoo.mlp(activation="tanh"), lambda: zoo.cnn(), _hooked, _shared, lambda: nn.Sequential(zoo.mlp())],
    ids=["tanh", "convolutions", "hooked", "shared", "nested"],
)
def test_other_models_are_left_to_other_paths(net, digits):
    objective = objective_of(net(), digits)
    with (
        Surface(objective, plane(objective), method="lines") as surface,
        pytest.raises(ValueError, match="method must be one that"),
    ):
        surface.at(grid())


def test_the_path_competes_with_the_others(digits):
    objective = objective_of(NETS["two hidden layers"], digits)
    with Surface(objective, plane(objective)) as surface:
        surface.at(grid())
        assert {"loop", "lines"} <= set(surface.choice.seconds)


@torch.no_grad()
def test_the_path_is_not_taken_where_samples_are_not_known_or_memory_is_short(digits, monkeypatch):
    objective = objective_of(NETS["two hidden layers"], digits)
    plain = fs.Objective(objective.model, objective.batches, loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]))
    for each in (objective, plain):
        replica = each.replica(torch.float32)
        assert (lines.line_path(replica, plane(each), SampleLosses(replica)) is None) == (each is plain)
    monkeypatch.setattr(lines, "available_memory", lambda device: 1000)
    replica = objective.replica(torch.float32)
    assert lines.line_path(replica, plane(objective), SampleLosses(replica)) is None


def test_evaluations_are_counted_and_nothing_is_left_behind(digits, untouched):
    objective = objective_of(NETS["batch norm behind"], digits)
    with untouched(objective.model), Surface(objective, plane(objective), method="lines") as surface:
        before = surface.evaluations
        surface.at(grid())
        assert surface.evaluations - before >= 35
