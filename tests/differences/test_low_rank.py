"""Directions of low rank go through every rule as their product does, at the cost of little more than the lanes' own."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import fastscape as fs
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.differences.rules import low_rank
from fastscape.differences.triple import Triple
from fastscape.directions.low_rank import Factors
from fastscape.ops.linear_difference import reference

COUNT = 3


class Text(nn.Module):
    """Embedding with a tied head, attention, a layer and a product with a bare matrix."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(30, 24), nn.LayerNorm(24)
        self.attend, self.up = nn.MultiheadAttention(24, 2, batch_first=True), nn.Linear(24, 48)
        self.down, self.bias = nn.Parameter(torch.randn(48, 24) / 7), nn.Parameter(torch.randn(24) / 7)

    def forward(self, tokens):
        x = self.embed(tokens)
        y = self.norm(x)
        x = x + self.attend(y, y, y, need_weights=False)[0]
        x = x + torch.addmm(self.bias, F.gelu(self.up(x)).flatten(0, 1), self.down).view_as(x)
        x = torch.tanh(x @ self.up.weight.T @ self.down)
        return F.linear(x, self.embed.weight).mean(1)


def images():
    return nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1), nn.GELU(), nn.Conv2d(32, 32, 3, groups=2, stride=2), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 3), nn.Flatten(1, 2), nn.Conv1d(80, 24, 2), nn.Flatten(), nn.Linear(96, 30),
    )  # fmt: skip


@pytest.fixture(scope="module", params=["text", "images"])
def objective(request):
    torch.manual_seed(0)
    targets = torch.randint(0, 30, (4,))
    net, inputs = (Text(), torch.randint(0, 30, (4, 5))) if request.param == "text" else (images(), torch.randn(4, 4, 8, 8))
    return fs.Objective(net, [(inputs, targets)], criterion=F.cross_entropy, dtype=torch.float64)


@pytest.fixture
def multiplied_out(monkeypatch):
    """Shapes of the factors that were multiplied out."""
    shapes, dense = [], Factors.dense
    monkeypatch.setattr(Factors, "dense", lambda self: (shapes.append(tuple(self.shape)), dense(self))[1])
    return shapes


@pytest.mark.parametrize("front_end", ["graph", "dispatch"])
def test_lanes_are_those_of_the_product_at_all_radii_and_on_average(objective, front_end, multiplied_out):
    made = fs.Directions(objective, COUNT, rank=2, seed=4)
    given = fs.Directions.given(objective, list(made), scale="none")
    found, wanted = (DifferenceEvaluator(objective, lanes=torch.float64, front_end=front_end) for _ in range(2))
    with found, wanted:
        found.choose(made, [0.0, 1e-3, 1e-1])
        multiplied_out.clear()
        for radii in ([0.0], [0.0, 1e-3, 1e-1]):
            one = np.stack(found.derivatives(made, range(COUNT), radii))
            other = np.stack(wanted.derivatives(given, range(COUNT), radii))
            assert np.abs(one - other).max() <= 1e-12 * np.abs(other).max()
        assert found.operations < wanted.operations
        one, other = found.mean_curvature(made, range(COUNT)), wanted.mean_curvature(given, range(COUNT))
        assert one == pytest.approx(other, rel=1e-11)
        assert not found.handling.fallbacks
    if front_end == "graph":
        assert set(multiplied_out) <= {(32, 16, 3, 3)}  # of a transposed convolution


def test_an_operation_without_a_rule_for_factors_takes_the_product():
    factors = Factors(torch.randn(2, 3, 4), torch.randn(2, 3, 5), torch.Size((4, 5)))
    lanes = Triple.along(torch.zeros(4, 5), factors, low_rank.seeded).lanes
    torch.testing.assert_close(lanes[:, 0, 0], factors.left.mT @ factors.right)


def products(*shapes, **_):
    """Operations of a product that is added in place: torch's counter knows those that are not."""
    (*lead, rows, inner), (*_, columns) = shapes[1:3]
    return 2 * math.prod(lead) * rows * inner * columns


def counter():
    """Operations of matrix products."""
    return FlopCounterMode(
        display=False, custom_mapping=dict.fromkeys((torch.ops.aten.addmm_, torch.ops.aten.baddbmm_), products)
    )


class Block(nn.Module):
    """The half of a transformer's layer that holds most of its operations."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        return x + self.down(F.gelu(self.up(self.norm(x))))


def test_a_form_costs_two_forwards_at_rank_16_and_its_mean_less(monkeypatch):
    """Operations of matrix products, counted by torch, of 8 directions at width 512."""
    torch.manual_seed(0)
    net = nn.Sequential(Block(512), Block(512), nn.Linear(512, 100))
    objective = fs.Objective(net, [(torch.randn(4, 512), torch.randint(0, 100, (4,)))], criterion=F.cross_entropy)
    made = fs.Directions(objective, 8, rank=16, distribution="rademacher", normalize="none", scale="none")
    monkeypatch.setattr(low_rank, "linear_difference", lambda *a, right: reference.linear_difference(*a, None, right))
    with torch.no_grad(), counter() as forward:
        net(objective.batches[0][0])
    with DifferenceEvaluator(objective, gate=False) as evaluator:
        evaluator.choose(made, [0.0])
        block = evaluator._lanes.block(made, range(8))
        numbers = [
            part.left.numel() + part.right.numel() if isinstance(part, Factors) else part.numel() for part in block.values()
        ]
        assert sum(numbers) < 8 * 0.05 * objective.size
        evaluator._lanes.at(block, [0.0])  # values at w are kept from now on
        before = evaluator.operations
        with counter() as forms:
            evaluator._lanes.at(block, [0.0])
        counted = evaluator.operations - before
        with counter() as mean:
            evaluator._lanes.curvature(block, 8)
    assert forms.get_total_flops() == counted
    assert forms.get_total_flops() <= 2 * 8 * forward.get_total_flops()
    assert mean.get_total_flops() <= 1.5 * 8 * forward.get_total_flops()
