"""Models and losses that take derivatives themselves: physics-informed losses, forces, gradient penalties."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.differences.tracing_errors import UntraceableError


def network(inputs=2, outputs=1):
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, 4), nn.SiLU(), nn.Linear(4, outputs))


class Forces(nn.Module):
    """Minus the slope of an energy, by autograd in the forward."""

    def __init__(self):
        super().__init__()
        self.energy = network()

    def forward(self, positions):
        positions = positions.clone().requires_grad_()
        return -torch.autograd.grad(self.energy(positions).sum(), positions, create_graph=True)[0]


class FlaggedForces(Forces):
    """The same, where the input itself is flagged."""

    def forward(self, positions):
        positions.requires_grad_()
        return -torch.autograd.grad(self.energy(positions).sum(), positions, create_graph=True)[0]


class TransformedForces(Forces):
    """The same by torch.func, which autograd need not be on for."""

    def forward(self, positions):
        return -torch.func.vmap(torch.func.grad(lambda point: self.energy(point)[0]))(positions)


class RefusesWithoutGradients(Forces):
    """A library's own check in place of torch's."""

    def forward(self, positions):
        if not torch.is_grad_enabled():
            raise AssertionError("forces need gradients")
        return super().forward(positions)


def decay(model, batch):
    """u' + u = 0 with u(0) = 1."""
    t = batch[0].clone().requires_grad_(True)
    u = model(t)
    (slope,) = torch.autograd.grad(u, t, torch.ones_like(u), create_graph=True)
    return (slope + u).square().mean() + (model(torch.zeros_like(t[:1])) - 1).square().mean()


def decay_of_leaf(model, batch):
    """The same of a batch that requires gradients as it is."""
    u = model(batch[0])
    (slope,) = torch.autograd.grad(u.sum(), batch[0], create_graph=True)
    return (slope + u).square().mean()


def penalised(model, batch):
    """Cross-entropy with a penalty on the input gradient, on some batches alone."""
    inputs, targets, penalty = batch
    if not penalty:
        return F.cross_entropy(model(inputs), targets)
    inputs = inputs.clone().requires_grad_()
    loss = F.cross_entropy(model(inputs), targets)
    (slope,) = torch.autograd.grad(loss, inputs, create_graph=True)
    return loss + slope.square().sum()


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(name):
    """Objective, and the user's loss of a model in plain torch."""
    torch.manual_seed(0)
    kinds = {kind.__name__: kind for kind in (Forces, FlaggedForces, TransformedForces, RefusesWithoutGradients)}
    if name in kinds:
        model, data = kinds[name]().double(), [(drawn(6, 2), drawn(6, 2, seed=1)), (drawn(3, 2, seed=2), drawn(3, 2, seed=3))]

        def plain(m):
            return sum(len(x) * F.mse_loss(m(x.clone()), y) for x, y in data) / 9

        return fs.Objective(model, data, criterion=F.mse_loss), plain
    if name == "penalised":
        model, labels = network(2, 3).double(), torch.tensor([0, 2, 1])
        data = [(drawn(3, 2), labels, 0), (drawn(3, 2, seed=1), labels, 1)]
        return fs.Objective(model, data, loss=penalised), lambda m: sum(penalised(m, batch) for batch in data) / 2
    model, times = network(1).double(), torch.linspace(0, 1, 7, dtype=torch.float64)[:, None]
    loss = {"decay": decay, "decay_of_leaf": decay_of_leaf}[name]
    times.requires_grad_(loss is decay_of_leaf)
    return fs.Objective(model, [(times,)], loss=loss), lambda m: loss(m, (times,))


NAMES = ["decay", "decay_of_leaf", "penalised", "Forces", "FlaggedForces", "TransformedForces", "RefusesWithoutGradients"]


def dense(model, loss):
    """Gradient and Hessian by double backward, row by row."""
    model = copy.deepcopy(model)
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(loss(model), parameters, create_graph=True, materialize_grads=True)
    flat = torch.cat([slope.reshape(-1) for slope in slopes])
    rows = [torch.autograd.grad(one, parameters, retain_graph=True, materialize_grads=True) for one in flat]
    return flat.detach(), torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


@pytest.mark.parametrize("name", NAMES)
def test_loss_gradient_and_curvature_are_those_of_plain_torch(name, untouched):
    objective, plain = problem(name)
    gradient, hessian = dense(objective.model, plain)
    with untouched(objective.model):
        assert objective.loss() == pytest.approx(float(plain(objective.model).detach()), rel=1e-12)
        found = torch.cat([part.reshape(-1) for part in objective.gradient().values()])
        torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-12)
        products = fs.hessian(objective) @ torch.eye(objective.size, dtype=torch.float64)[:, :3]
        torch.testing.assert_close(products, hessian[:, :3], rtol=1e-8, atol=1e-9)
        directions = fs.Directions(objective, count=3)
        forms = fs.quadratic_forms(objective, directions)
        for index in range(3):
            flat = torch.cat([part.reshape(-1) for part in directions[index].values()])
            expected = float(flat @ hessian @ flat)
            allowed = 1e-4 * abs(expected) if forms.error is None else 2 * forms.error[index]
            assert abs(forms.curvature[index] - expected) <= allowed


@pytest.mark.parametrize("name", NAMES)
def test_every_probe_runs(name, untouched):
    objective, plain = problem(name)
    model, step = copy.deepcopy(objective.model), 1e-2
    with untouched(objective.model):
        directions = fs.Directions(objective, count=2)
        found = fs.responses(objective, directions, [step / 2, step], precision="float64")
        parameters = dict(model.named_parameters())
        values = []
        for side in (step, 0, -step):
            for parameter, own, part in zip(
                parameters.values(), objective.model.parameters(), directions[0].values(), strict=True
            ):
                parameter.data = own.detach() + side * part
            values.append(float(plain(model).detach()))
        assert found.even[1, 0] == pytest.approx(values[0] - 2 * values[1] + values[2], rel=1e-6)
        assert np.isfinite(fs.slice1d(objective, count=2, points=5).losses).all()
        fs.multifractal(objective, fs.ProbeSettings(count=8))
        fs.spectrum(objective, k=1, budget=None)
        fs.sharpness(objective, restarts=1, steps=2, samples=4, products=6)
        fs.barrier(objective, objective.model, objective.model, points=5, start=3)
        if name != "penalised":  # whose batch ends in a number
            fs.temperature(objective, batch_size=2, learning_rate=0.1)


def test_a_criterion_learns_once_that_the_model_differentiates():
    objective, _ = problem("Forces")
    assert objective.traits.differentiates is None
    objective.loss()
    assert objective.traits.differentiates
    assert objective.cast(torch.float32).traits.differentiates


@pytest.mark.parametrize("name", ["decay", "Forces"])
def test_paths_that_cannot_differentiate_inside_are_refused_by_name(name, untouched):
    objective, _ = problem(name)
    with untouched(objective.model):
        with pytest.raises(ValueError, match="method must be 'loop' for this model, got 'vmap'.*use method='loop'"):
            fs.slice1d(objective, count=2, points=5, method="vmap")
        with pytest.raises(ValueError, match="method must be 'loop' for this model, got 'vmap'.*use method='loop'"):
            fs.losses(objective, fs.Directions(objective, 2), [0.1], method="vmap")
        with pytest.raises(UntraceableError, match="; precision='difference' must follow the model: use precision=None"):
            fs.responses(objective, fs.Directions(objective, 2), [1e-3, 1e-2], precision="difference")
        with pytest.raises(UntraceableError, match="; precision='difference' must follow the model: use precision=None"):
            fs.multifractal(objective, fs.ProbeSettings(count=8, precision="difference"))


def test_a_failure_of_its_own_is_reported_as_it_is():
    def broken(model, batch):
        raise KeyError("labels")

    objective = fs.Objective(network(), [(drawn(3, 2),)], loss=broken)
    with pytest.raises(KeyError, match="labels"):
        objective.loss()
    assert objective.traits.differentiates is None


def test_an_error_behind_the_missing_gradients_is_told():
    def broken(model, batch):
        t = batch[0].clone().requires_grad_()
        torch.autograd.grad(model(t).sum(), t)
        raise KeyError("labels")

    objective = fs.Objective(network(), [(drawn(3, 2).float(),)], loss=broken)
    with pytest.raises(KeyError, match="labels"):
        objective.loss()
