"""A loss that is not a function is refused, with its cause."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models import FlatLinear
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.evaluation import determinism


def probe(model, digits, **arguments):
    objective = fs.Objective(model, digits, **({"criterion": F.cross_entropy} | arguments))
    return fs.losses(objective, fs.Directions(objective, 1), [0.1])


class FunctionalDropout(FlatLinear):
    def forward(self, x):
        return F.dropout(super().forward(x), 0.5)


class StubbornDropout(FlatLinear):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def train(self, mode=True):
        return super().train(True)

    def forward(self, x):
        return self.drop(super().forward(x))


class StubbornBatchNorm(FlatLinear):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(10)

    def train(self, mode=True):
        super().train(mode)
        return self

    def forward(self, x):
        statistics = self.norm.running_mean.sum()
        self.norm.running_mean += 0.1
        return super().forward(x) * (1 + statistics)


class Counter(FlatLinear):
    calls = 0

    def forward(self, x):
        Counter.calls += 1
        return super().forward(x) + Counter.calls * torch.arange(10)


@pytest.mark.parametrize(
    ("model", "cause"),
    [
        (FunctionalDropout, r"draws random numbers \(F.dropout without training=self.training"),
        (StubbornDropout, "dropout is active in 'drop'"),
        (StubbornBatchNorm, "changes the buffer 'norm.running_mean'"),
        (Counter, "keeps state between calls"),
    ],
)
def test_the_cause_of_a_nondeterministic_loss_is_named(model, cause, digits, untouched):
    network = model()
    with untouched(network), pytest.raises(fs.NondeterministicLossError, match=cause):
        probe(network, digits)


def test_shuffling_inside_the_loss_is_found(digits):
    def loss(model, batch):
        rows = torch.randperm(len(batch[0]))[:32]
        return F.cross_entropy(model(batch[0][rows]), batch[1][rows])

    with pytest.raises(fs.NondeterministicLossError, match="shuffling inside loss="):
        probe(FlatLinear(), digits, criterion=None, loss=loss)


class Detector(FlatLinear):
    """Keeps a random sample of its rows in training mode; all of them, where there are no more than ``kept``."""

    def __init__(self, kept=1000):
        super().__init__()
        self.kept = kept

    def forward(self, x):
        out = super().forward(x)
        if self.training:
            chosen = torch.randperm(len(x))[: self.kept].sort().values
            out = out[chosen]
        return out.square()


def _trained(model, batch):
    model.train()
    return model(batch[0]).mean()


def test_random_numbers_in_a_training_mode_of_the_losss_own_are_refused_though_two_evaluations_agree(digits, untouched):
    model = Detector()
    with untouched(model), pytest.raises(fs.NondeterministicLossError, match="puts the model into training mode, where it draws"):
        probe(model, digits, criterion=None, loss=_trained)


@pytest.mark.parametrize("part", ["backbone", "heads.1"])
def test_a_part_that_the_loss_puts_into_training_mode_is_named(digits, part):
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.heads = Detector(), nn.ModuleList([nn.Linear(10, 3), Detector()])

        def forward(self, x):
            return self.backbone(x) + self.heads[1](x)

    def loss(model, batch):
        model.get_submodule(part).train()
        return model(batch[0]).mean()

    with pytest.raises(fs.NondeterministicLossError, match=f"puts '{part}' into training mode"):
        probe(Parts(), digits, criterion=None, loss=loss)


def test_seeded_and_ineffective_random_numbers_pass(digits):
    """A seed inside the loss makes it a function; layers that draw in evaluation mode and drop nothing leave it one."""

    def seeded(model, batch):
        torch.manual_seed(0)
        return _trained(model, batch)

    assert torch.isfinite(probe(Detector(16), [*digits, *digits], criterion=None, loss=seeded)).all()

    class Skipping(FlatLinear):
        def forward(self, x):
            draw = torch.rand([])
            return super().forward(x) if not self.training or draw > 0 else x

    assert torch.isfinite(probe(Skipping(), digits)).all()


def test_random_numbers_that_matter_away_from_the_weights_alone_are_named(digits):
    class Gated(FlatLinear):
        def forward(self, x):
            out = super().forward(x)
            return torch.where((out.detach() - self.known).abs() < 1e-4, out, out + torch.randn(10))

    model = Gated()
    model.known = None
    with torch.no_grad():
        model.known = FlatLinear.forward(model, digits[0][0])
    with pytest.raises(fs.NondeterministicLossError, match="random numbers that have no effect at the weights themselves"):
        probe(model, digits[:1])


def gated(digits, effect):
    """A loss that adds noise of a share of what the loss has moved from the weights, none at them."""
    model = FlatLinear().to(digits[0][0].dtype)
    with torch.no_grad():
        known = F.cross_entropy(model(digits[0][0]), digits[0][1]).double()

    def loss(net, batch):
        found = F.cross_entropy(net(batch[0]), batch[1])
        return found + effect * torch.rand([]) * (found.detach().double() - known).to(found.dtype)

    return fs.Objective(model, digits[:1], loss=loss)


PROBES = {
    "responses": lambda o: fs.responses(o, fs.Directions(o, 2), [1e-2]),
    "two forwards": lambda o: fs.quadratic_forms(o, fs.Directions(o, 2), method="forwards"),
    "hessian": lambda o: fs.hessian(o) @ torch.ones(o.size),
    "slice": lambda o: fs.slice1d(o, points=3, count=1),
    "temperature": lambda o: fs.temperature(o, batch_size=4, learning_rate=0.1),
    "sharpness": lambda o: fs.sharpness(o, restarts=1, steps=2, samples=4),
    "barrier": lambda o: fs.barrier(o, None, {name: 1.1 * tensor for name, tensor in o.model.state_dict().items()}),
}


def test_random_numbers_of_little_effect_away_from_the_weights_are_refused(digits):
    objective = gated([(digits[0][0].double(), digits[0][1])], 1e-3)
    for _ in range(2):
        with pytest.raises(fs.NondeterministicLossError, match="random numbers that have no effect at the weights themselves"):
            PROBES["responses"](objective)


@pytest.mark.parametrize("name", PROBES)
def test_random_numbers_without_effect_at_the_weights_are_refused_by_every_probe_and_every_time(digits, name):
    """Also after other weights were refused."""
    objective = gated(digits, 1.0)
    away = objective.at({key: 2 * tensor for key, tensor in objective.model.state_dict().items()})
    for point in (away, objective):
        with pytest.raises(fs.NondeterministicLossError):
            PROBES[name](point)


def test_draws_that_round_alike_twice_do_not_hide_random_numbers(monkeypatch):
    """An effect of a few roundings is the same number twice now and then."""
    found = iter([2.5, 2.5, 2.5000002, 2.5])
    monkeypatch.setattr(determinism, "_displaced_loss", lambda *_: next(found))
    replica = SimpleNamespace(evaluations=0, dtype=torch.float32, reset=lambda: None)
    with pytest.raises(fs.NondeterministicLossError, match=r"got 2.5 and then 2.5000002 at the same displaced weights"):
        determinism._check_draws(replica)


def test_ordinary_dropout_and_batch_norm_pass(bn_net, digits):
    assert torch.isfinite(probe(bn_net, digits)).all()
    assert torch.isfinite(probe(bn_net, digits, batch_norm="batch")).all()


def test_the_callers_determinism_setting_survives_a_refusal(digits, untouched):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        model = Counter()
        with untouched(model), pytest.raises(fs.NondeterministicLossError):
            probe(model, digits)
    finally:
        torch.use_deterministic_algorithms(False)


class Scaled(nn.Module):
    """A Gaussian whose scale is a parameter: weights near 1e-3 must not fall below zero."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 1.0, 0.5, 0.5, 2e-3, 2e-3, 1.0, 1.0], dtype=torch.float64))

    def forward(self, x):
        return torch.distributions.Normal(torch.zeros((), dtype=x.dtype), self.scale).log_prob(x)


@pytest.mark.parametrize("precision", ["float64", "float32", "difference", None])
def test_a_model_that_refuses_far_weights_is_measured_near_its_own(precision, untouched):
    model, x = Scaled(), 1e-3 * torch.randn(16, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    objective = fs.Objective(model.to(torch.float32 if precision == "float32" else torch.float64), [x], loss=likelihood)
    with untouched(model):
        directions = fs.Directions(objective, 4, normalize="global", scale="unit")
        radii = [1e-4, 2e-4] if precision == "float32" else [1e-6, 1e-4]
        found = fs.responses(objective, directions, radii, precision=precision)
        assert fs.sharpness(objective, 1e-4, restarts=1, steps=2, products=0).worst > 0
        assert fs.slice1d(objective, count=2, points=5, radius=1e-4, normalize="global").noise_floor >= 0
    second = x.double().square().mean(0) * 3 / model.scale.detach().double() ** 4 - 1 / model.scale.detach().double() ** 2
    forms = [float((directions.block([i], torch.float64)[0][0].square() * second).sum()) / 8 for i in range(4)]
    np.testing.assert_allclose(found.even[0] / radii[0] ** 2, forms, rtol=0.05)  # the fourth order of 1e-4 beside 2e-3


def likelihood(model, x):
    return -model(x).mean()
