"""The trace from forms along directions of low rank: its interval holds the trace, and how far the forms scatter."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.directions.low_rank import Factors
from fastscape.numerics.student import quantile


class Kronecker(nn.Module):
    """A linear layer with loss y'By / 2, so that H is the Kronecker product of B and of A = the mean of x x'."""

    def __init__(self, outputs, inputs):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.layer = nn.Linear(inputs, outputs, bias=False)
        root = torch.randn(outputs, outputs, generator=generator) / torch.arange(1.0, outputs + 1)
        self.register_buffer("b", root @ root.T)

    def forward(self, x):
        y = self.layer(x)
        return (y @ self.b * y).sum(1).mean() / 2


@pytest.fixture(scope="module")
def block():
    torch.manual_seed(0)
    x = torch.randn(40, 12) * torch.linspace(0.2, 2, 12)
    return fs.Objective(Kronecker(8, 12), [x], loss=lambda model, batch: model(batch), weight=len, dtype=torch.float64)


def kronecker(objective):
    x = objective.batches[0]
    return x.double().T @ x.double() / len(x), objective.model.b.double()


def effective_rank(matrix):
    return float(matrix.trace() ** 2 / matrix.square().sum())


@pytest.mark.parametrize("rank", [1, 4, 16])
def test_variance_is_that_of_the_formula_on_a_kronecker_block(block, rank):
    r"""var / (2 |A|^2 |B|^2) = 1 + (1 + r_A + r_B) / r for normals, 2 + r_A + r_B at rank 1, within 5 standard errors."""
    a, b = kronecker(block)
    made = fs.Directions(block, 2000, rank=rank, normalize="none", scale="none", seed=rank)
    part = made.factored(range(2000), torch.float64)[0]
    d = part.dense() if isinstance(part, Factors) else part
    forms = ((b @ d @ a) * d).sum((1, 2)).numpy()
    found = fs.quadratic_forms(block, fs.Directions(block, 5, rank=rank, normalize="none", scale="none", seed=rank))
    np.testing.assert_allclose(found.curvature, forms[:5], rtol=1e-5)
    centred = forms - forms.mean()
    variance, error = float(np.mean(centred**2)), float(np.std(centred**2) / math.sqrt(2000))
    dense = 2 * float(a.square().sum() * b.square().sum())
    expected = 1 + (1 + effective_rank(a) + effective_rank(b)) / rank
    assert abs(variance / dense - expected) <= 5 * error / dense
    assert abs(forms.mean() - float(a.trace() * b.trace())) <= 5 * math.sqrt(variance / 2000)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 40), nn.GELU(), nn.LayerNorm(40), nn.Linear(40, 30), nn.GELU(), nn.Linear(30, 6))
    return fs.Objective(model, [(torch.randn(20, 10), torch.randint(0, 6, (20,)))], criterion=F.cross_entropy)


def test_the_estimate_is_the_mean_of_the_forms_with_students_interval(net, untouched):
    with untouched(net.model):
        found = fs.trace(net, 8, rank=2, seed=5)
    directions = fs.Directions(net, 8, rank=2, seed=5, distribution="rademacher", normalize="none", scale="none")
    hessian = fs.hessian(net)
    rows = [torch.cat([part.flatten() for part in direction.values()]).double() for direction in directions]
    forms = np.array([float(row @ (hessian @ row.float()).double()) for row in rows])
    half = quantile(8) * forms.std(ddof=1) / math.sqrt(8)
    assert found.value == pytest.approx(forms.mean(), rel=1e-4)
    assert found.interval == pytest.approx((forms.mean() - half, forms.mean() + half), rel=1e-4)
    assert (found.n, found.forms.law) == (8, "rademacher of rank 2")
    assert isinstance(found, fs.Estimate)
    assert "8 directions, rademacher of rank 2; " in str(found)


def test_more_probes_go_on_with_the_first_ones(net):
    few, many = (fs.trace(net, count, seed=1).forms.curvature for count in (3, 6))
    np.testing.assert_allclose(few, many[:3], rtol=1e-5)


def test_the_cost_is_told_in_forwards(net):
    exact, plain = fs.trace(net, 4).forms, fs.trace(net, 4, method="forwards").forms
    assert 4 < exact.forwards < 100
    assert plain.forwards == int(plain.path.reason.rsplit("; ", 1)[1].split()[0])
    assert math.isnan(fs.trace(net, 2, method="dispatch").forms.forwards)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probes": 1}, "probes must be .*2.*, got 1"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"distribution": "uniform"}, "distribution must be 'gaussian' or 'rademacher', got 'uniform'"),
    ],
)
def test_bad_arguments_are_named(net, settings, message):
    with pytest.raises(ValueError, match=message):
        fs.trace(net, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 16])
def test_intervals_hold_the_trace(net, rank):
    """Of 200 traces of eight probes; 170 is 6 standard deviations below 95 %, and what heavy tails may take."""
    exact = float(torch.trace((fs.hessian(net) @ torch.eye(net.size)).double()))
    made = [fs.trace(net, 8, rank=rank, seed=seed) for seed in range(200)]
    assert sum(found.interval[0] <= exact <= found.interval[1] for found in made) >= 170
    pooled = np.concatenate([found.forms.curvature for found in made])
    assert abs(pooled.mean() - exact) <= 4 * pooled.std() / math.sqrt(len(pooled))
