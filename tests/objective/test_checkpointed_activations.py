"""Activations checkpointed in the forward: the same numbers, or a refusal where torch's gradient would be dropped in silence."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastscape as fs
from fastscape.runs.anytime import PartialResultError


class Checkpointed(nn.Module):
    """Recomputes its first or its second layer in the backward pass."""

    def __init__(self, where, reentrant):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.where, self.reentrant = where, reentrant

    def part(self, name, x):
        layer = getattr(self, name)
        if name != self.where:
            return torch.tanh(layer(x))
        return checkpoint(lambda value: torch.tanh(layer(value)), x, use_reentrant=self.reentrant)

    def forward(self, x):
        return self.head(self.part("second", self.part("first", x)))


def objective_of(where, reentrant):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(8, 5, generator=generator), torch.randint(0, 3, (8,), generator=generator))]
    return fs.Objective(Checkpointed(where, reentrant).double(), data, criterion=F.cross_entropy)


@pytest.fixture(autouse=True)
def silenced():
    """torch's own warning without gradients, where there is nothing to drop."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
        yield


@pytest.mark.parametrize("where", ["first", "second"])
def test_derivatives_through_checkpoints_are_those_without(where):
    plain, objective = objective_of("", False), objective_of(where, False)
    vector = torch.ones(plain.size, dtype=torch.float64)
    torch.testing.assert_close(fs.hessian(objective) @ vector, fs.hessian(plain) @ vector)


@pytest.mark.parametrize("where", ["first", "second"])
def test_reentrant_ones_are_refused_wherever_a_gradient_is_taken(where, untouched):
    """In the first layer torch would give no gradient at all, with a warning that names neither the layer nor the number."""
    objective = objective_of(where, True)
    vector = torch.ones(objective.size, dtype=torch.float64)
    calls = [
        objective.gradient,
        lambda: fs.hessian(objective) @ vector,
        lambda: fs.ggn(objective) @ vector,
        lambda: fs.spectrum(objective, k=1),
        lambda: fs.sharpness(objective, restarts=1, steps=2, samples=4, products=6),
        lambda: fs.temperature(objective, batch_size=2, learning_rate=0.1),
    ]
    refused = "got torch.utils.checkpoint with use_reentrant=True.*pass use_reentrant=False"
    with untouched(objective.model):
        for call in calls:
            with pytest.raises((ValueError, PartialResultError), match=refused):  # partial where losses were known before
                call()


@pytest.mark.parametrize("where", ["first", "second"])
def test_what_needs_no_gradient_gives_the_same_numbers(where):
    plain, objective = objective_of("", False), objective_of(where, True)
    directions = fs.Directions(plain, count=2), fs.Directions(objective, count=2)
    assert objective.loss() == plain.loss()
    found, expected = (fs.quadratic_forms(o, d) for o, d in zip((objective, plain), directions, strict=True))
    assert found.curvature == pytest.approx(expected.curvature, rel=1e-5)
    assert fs.slice1d(objective, count=2, points=5).losses == pytest.approx(fs.slice1d(plain, count=2, points=5).losses)
