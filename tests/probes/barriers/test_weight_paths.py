"""Paths between states, and running statistics at their points."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape._state import exact_arithmetic
from fastscape.evaluation.batch_statistics import recalibrate
from fastscape.probes.barriers.weight_paths import Bezier, Segment, between


def cnn(seed):
    torch.manual_seed(seed)
    model = zoo.cnn()
    model(torch.randn(32, 1, 8, 8))  # statistics that are not those of a new layer
    return model.eval()


@pytest.fixture
def objective(digits):
    return fs.Objective(cnn(0), digits, criterion=F.cross_entropy)


def test_both_ends_are_written_bit_for_bit_in_every_dtype():
    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        first, second, out = (torch.randn(1000).to(dtype) for _ in range(3))
        for share, end in ((0.0, first), (1.0, second)):
            between(first, second, share, out)
            assert torch.equal(out, end)
        between(first, first, 0.3, out)
        assert torch.equal(out, first)
        between(first, second, 0.3, out)
        exact = first.double() + 0.3 * (second.double() - first.double())
        torch.testing.assert_close(out.double(), exact, rtol=2 * torch.finfo(dtype).eps, atol=2 * torch.finfo(dtype).eps)


def test_bezier_starts_straight_and_its_length_is_that_of_a_fine_polygon(objective):
    other = cnn(1).state_dict()
    state = objective.model.state_dict()
    path, line = (Bezier(objective, state, other, torch.float64), Segment(objective, state, other))
    one, two = ([torch.empty_like(tensor, dtype=torch.float64) for tensor in path.a] for _ in range(2))
    path.write((0.3,), one)
    line.write((0.3,), two)
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
    assert path.length() == pytest.approx(line.distance(), rel=1e-6)
    torch.manual_seed(2)
    for bend in path.theta:
        bend.add_(torch.randn_like(bend), alpha=0.3)
    corners = []
    for index in range(401):
        path.write((index / 400,), one)
        corners.append(torch.cat([tensor.flatten() for tensor in one]))
    polygon = sum(float((b - a).norm()) for a, b in pairwise(corners))
    assert path.length() == pytest.approx(polygon, rel=1e-4)
    assert path.length() > 1.1 * line.distance()
    for t, end in ((0.0, state), (1.0, other)):
        path.write((t,), one)
        assert all(torch.equal(tensor.float(), end[name]) for name, tensor in zip(objective.names, one, strict=True))


def by_hand(model, batches):
    """Running statistics by torch's own cumulative average."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
            module.train()
    with torch.no_grad():
        for inputs, _ in batches:
            other(inputs)
    return dict(other.named_buffers())


def test_recalibration_is_torchs_cumulative_average(objective):
    inputs, targets = zoo.digits(samples=256)[0]
    batches = list(zip(inputs.split(64), targets.split(64), strict=True))
    model = objective.model
    replica = fs.Objective(model, batches, criterion=F.cross_entropy).replica(torch.float32)
    with exact_arithmetic(torch.float32):
        replica.reset()
        for _ in range(2):  # nothing of earlier statistics is left
            recalibrate(replica)
            for name, value in by_hand(model, batches).items():
                torch.testing.assert_close(replica.buffers()[name], value, rtol=1e-6, atol=1e-7)
    layers = [module for module in replica.module.model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [(layer.training, layer.momentum) for layer in layers] == [(False, 0.1)] * 2


def test_unequal_batches_count_by_their_samples():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    torch.manual_seed(0)
    inputs, targets = torch.randn(10, 3, dtype=torch.float64), torch.arange(10) % 2
    parts = list(zip(inputs.split([7, 3]), targets.split([7, 3]), strict=True))
    replica = fs.Objective(model, parts, criterion=F.cross_entropy).replica(torch.float64)
    with exact_arithmetic(torch.float64):
        replica.reset()
        recalibrate(replica)
    torch.testing.assert_close(replica.module.model[0].running_mean, inputs.mean(0), rtol=1e-12, atol=1e-14)
    expected = (7 * inputs[:7].var(0) + 3 * inputs[7:].var(0)) / 10
    torch.testing.assert_close(replica.module.model[0].running_var, expected, rtol=1e-12, atol=1e-14)


def test_single_values_per_channel_are_refused():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    replica = fs.Objective(model, [(torch.randn(1, 3), torch.tensor([0]))], criterion=F.cross_entropy).replica(torch.float32)
    with exact_arithmetic(torch.float32), pytest.raises(ValueError, match="more than one value per channel"):
        recalibrate(replica)
    assert not replica.module.model[0].training


def test_integers_that_differ_have_no_path(objective):
    state, other = (dict(cnn(seed).state_dict()) for seed in (0, 1))
    other["1.num_batches_tracked"] = torch.tensor(99)
    Segment(objective, state, other)

    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(3, 2)
            self.register_buffer("mask", torch.ones(3, dtype=torch.int64))

    masked = fs.Objective(Masked(), [(torch.ones(4, 3), torch.tensor([0, 1, 0, 1]))], criterion=F.cross_entropy)
    state = masked.model.state_dict()
    with pytest.raises(ValueError, match=r"'mask', which is of torch\.int64"):
        Segment(masked, state, {**state, "mask": torch.zeros(3, dtype=torch.int64)})


def test_distance_is_the_norm_of_the_difference(objective):
    state, other = objective.model.state_dict(), cnn(1).state_dict()
    squares = [float((state[name].double() - other[name].double()).square().sum()) for name in objective.names]
    assert Segment(objective, state, other).distance() == pytest.approx(math.sqrt(sum(squares)), rel=1e-14)
