"""Programs are traced once per model, and never used for a model that has changed since."""

import copy
import functools
import gc
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.differences import following as engine

RADII = [1e-3, 1e-2]


@pytest.fixture
def traces(monkeypatch):
    """Counts traces."""
    made, trace = [], engine.trace

    def counted(*arguments):
        made.append(1)
        return trace(*arguments)

    monkeypatch.setattr(engine, "trace", counted)
    return made


def deviation(case):
    """How far responses and curvature are from the model's as it is now, in units of what is allowed."""
    directions = fs.Directions(case, 2)
    found = fs.responses(case, directions, RADII, precision="difference").even[1]
    truth = fs.responses(case, directions, RADII, precision="float64", method="loop").even[1]
    forms = fs.quadratic_forms(case, directions).curvature * RADII[1] ** 2
    return max(np.max(np.abs(value - truth) / (allowed * np.abs(truth))) for value, allowed in ((found, 1e-4), (forms, 2e-2)))


def batch(rows=8):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, 6, generator=generator), torch.arange(rows) % 3


def calm(z, _gap):
    return torch.tanh(z)


def wild(z, gap):
    return torch.tanh(z) + 3 * gap.square()


class Calm(nn.Module):
    def forward(self, z, gap):
        return calm(z, gap)


class Wild(nn.Module):
    def forward(self, z, gap):
        return wild(z, gap)


def closure(function):
    return lambda z, gap: function(z, gap)


class Model(nn.Module):
    """Its loss at w is the same whatever ``gap``, which is zero there, is used for; its responses are not."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.act = nn.Linear(6, 5), nn.Linear(5, 3), Calm()
        self.register_buffer("home", self.first.bias.detach().clone())
        self.flag, self.function, self.inside = False, closure(calm), functools.partial(calm)
        self.config = types.SimpleNamespace(wild=False, deep={"list": [1, "calm"]})

    def forward(self, x):
        gap = self.first.bias - self.home
        z = self.first(x)
        chosen = wild if self.flag or self.config.wild or "wild" in self.config.deep["list"] or GLOBAL else self.function
        return self.last(self.act(z, gap) + chosen(z, gap) + self.inside(z, gap))


GLOBAL: list = []


def by_global(_model):
    GLOBAL.append(1)


def by_hook(model):
    model.first.register_forward_hook(lambda module, _inputs, out: out + 3 * (module.bias - model.home).square())


def by_method(model):
    model.forward = types.MethodType(lambda self, x: self.last(wild(self.first(x), self.first.bias - self.home) * 3), model)
    with torch.no_grad():
        model.last.bias += 0.1


CHANGES = {
    "flag": lambda model: setattr(model, "flag", True),
    "closure": lambda model: setattr(model, "function", closure(wild)),
    "partial": lambda model: setattr(model, "inside", functools.partial(wild)),
    "configuration": lambda model: setattr(model.config, "wild", True),
    "list in a dictionary in a configuration": lambda model: model.config.deep["list"].append("wild"),
    "submodule": lambda model: setattr(model, "act", Wild()),
    "hook": by_hook,
    "method": by_method,
    "global": by_global,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_has_changed_is_followed_anew(change, traces):
    """Also where the loss at w is the same as before."""
    model = Model()
    case = fs.Objective(model, [batch()], criterion=F.cross_entropy)
    assert deviation(case) <= 1
    assert len(traces) == 1
    try:
        CHANGES[change](model)
        assert deviation(case) <= 1
        assert len(traces) == 2
    finally:
        GLOBAL.clear()


def test_a_forward_that_was_replaced_on_the_class_is_followed_anew(monkeypatch, traces):
    case = fs.Objective(Model(), [batch()], criterion=F.cross_entropy)
    assert deviation(case) <= 1
    monkeypatch.setattr(Calm, "forward", lambda self, z, gap: wild(z, gap))
    assert deviation(case) <= 1
    assert len(traces) == 2


def smooth_cnn():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.AvgPool2d(3), nn.Flatten(), nn.Linear(8, 10))


@pytest.mark.parametrize("change", sorted(set(CHANGES) - {"global"}))
def test_what_changed_is_seen_without_comparing_losses(change):
    """The table of operations compares none; every visible change makes another signature."""
    model = Model()
    case = fs.Objective(model, [batch()], criterion=F.cross_entropy)
    before = fs.operators(case)
    assert "aten.square.default" not in {row.operation for row in before.rows}
    CHANGES[change](model)
    assert "aten.square.default" in {row.operation for row in fs.operators(case).rows}


def test_weights_and_buffers_are_inputs_and_not_traced_again(traces):
    model = smooth_cnn()
    case = fs.Objective(model, zoo.digits(samples=16), criterion=F.cross_entropy)
    assert deviation(case) <= 1
    with torch.no_grad():
        for tensor in [*model.parameters(), model[1].running_var]:
            tensor.mul_(1.5)
    assert deviation(case) <= 1
    with torch.no_grad():
        model[0].weight.data = torch.randn_like(model[0].weight)
    assert deviation(case) <= 1
    other = smooth_cnn().state_dict()
    other["1.running_mean"] += 0.3
    assert deviation(case.at(other)) <= 1
    assert deviation(case.on(0)) <= 1
    assert len(traces) == 1


def test_another_criterion_shape_or_selection_is_another_program(traces):
    model = Model()
    case = functools.partial(fs.Objective, model)
    x, y = batch()
    hot = F.one_hot(y, 3).float()
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    assert deviation(case([(x, y)], criterion=F.cross_entropy)) <= 1
    assert deviation(case([(x, hot)], criterion=F.mse_loss)) <= 1
    assert deviation(case([(x, hot)], criterion=F.cross_entropy)) <= 1
    assert deviation(case([batch(5), batch(3), batch(5)], criterion=F.cross_entropy)) <= 1
    assert deviation(case([(x, y)], criterion=F.cross_entropy, params="last.*")) <= 1
    assert deviation(case([(x, y)], criterion=criterion)) <= 1
    assert len(traces) == 7
    criterion.label_smoothing = 0.4
    assert deviation(case([(x, y)], criterion=criterion)) <= 1
    for power in (2, 4):
        assert deviation(case([(x, y)], loss=lambda model, pair, power=power: model(pair[0]).pow(power).mean())) <= 1
    assert deviation(case([(x, y)], criterion=F.cross_entropy)) <= 1
    assert len(traces) == 10


def test_parameters_that_come_go_or_change_their_shape_are_seen():
    model = Model()
    case = fs.Objective(model, [batch()], criterion=F.cross_entropy, params="first.*")
    assert deviation(case) <= 1
    model.last.bias = None
    assert deviation(case) <= 1
    model.last.weight = nn.Parameter(torch.cat((model.last.weight.detach(), torch.ones(2, 5))))
    assert deviation(case) <= 1
    model.last.bias = nn.Parameter(torch.ones(5))
    assert deviation(case) <= 1


def test_batches_of_one_shape_may_take_different_branches():
    """The host decides by the data: the program of one batch is not that of the other, though both have the same shapes."""

    class Branching(Model):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else self.last(torch.sigmoid(self.first(x)))

    x, y = batch()
    assert deviation(fs.Objective(Branching(), [(x.abs(), y), (-x.abs(), y), (x.abs() + 1, y)], criterion=F.cross_entropy)) <= 1


def test_programs_die_with_their_model():
    def followed(**options):
        model = Model()
        options = {name: make(model) for name, make in options.items()}
        case = fs.Objective(model, [batch()], **options)
        fs.quadratic_forms(case, fs.Directions(case, 1))
        return weakref.ref(model)

    for reference in (
        followed(criterion=lambda _: F.cross_entropy),
        followed(loss=lambda held: lambda model, pair: F.cross_entropy(model(pair[0]), pair[1]) + 0 * len(held.config.deep)),
        followed(loss=lambda held: types.MethodType(lambda self, model, pair: model(pair[0]).square().mean(), held)),
    ):
        gc.collect()
        assert reference() is None


def test_the_number_of_programs_is_bounded(monkeypatch):
    from fastscape.differences import programs

    monkeypatch.setattr(programs, "_MOST", 3)
    model = Model()
    assert deviation(fs.Objective(model, [batch(rows) for rows in (3, 4, 5, 6, 7)], criterion=F.cross_entropy)) <= 1
    assert len(programs._PROGRAMS[model]) == 3


def test_marks_tell_values_apart_and_equal_ones_not():
    from fastscape.differences.programs import mark

    def of(function):
        return lambda z: function(z)

    tensor = torch.zeros(2)
    for one, other in (
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ([1, 2], (1, 2)),
        ({"a": 1}, {"a": 2}),
        ({1, 2}, {1, 3}),
        (of(torch.tanh), of(torch.sin)),
        (functools.partial(calm, 1), functools.partial(calm, 2)),
        (types.SimpleNamespace(a=1), types.SimpleNamespace(a=1)),
        (torch.float32, torch.float64),
        (tensor, tensor.clone()),
    ):
        assert mark(one) != mark(other), (one, other)
        assert mark(one) == mark(one)
        hash(mark(one))
    assert mark(float("nan")) == mark(float("nan"))
    assert mark(of(torch.tanh)) == mark(of(torch.tanh))
    before = mark([tensor])
    tensor.add_(1)
    assert mark([tensor]) != before
    with torch.inference_mode():
        mark(torch.ones(2))  # has no version
    cyclic = types.SimpleNamespace()
    cyclic.own = cyclic
    mark(cyclic)


def test_a_copy_of_a_model_has_programs_of_its_own(traces):
    model = Model()
    for one in (model, copy.deepcopy(model)):
        assert deviation(fs.Objective(one, [batch()], criterion=F.cross_entropy)) <= 1
    assert len(traces) == 2
