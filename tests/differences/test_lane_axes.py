"""Lane axes stay lane axes: operands of different rank, several lanes, sums inside a network, rules that fail."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.differences.rules.table import RULES, aten


class Net(nn.Module):
    """Two linear layers with a function of the hidden values, and a vector or scalar of parameters, between them."""

    def __init__(self, between, shape=(4,)):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)
        self.level = nn.Parameter(0.1 * torch.randn(shape))
        self.between = between

    def forward(self, x):
        return self.last(self.between(self.first(x), self.level))


def objective_of(between, batch=6, shape=(4,)):
    torch.manual_seed(2)
    data = [(torch.randn(batch, 5), torch.randint(0, 3, (batch,)))]
    return fs.Objective(Net(between, shape), data, criterion=F.cross_entropy)


@pytest.mark.parametrize(
    "between",
    [
        lambda h, t: h * (h > t),
        lambda h, t: h * (t < h),
        lambda h, t: torch.where(h > t, h, t),
        lambda h, t: torch.where(t > 0.05, h, -h),
        lambda h, t: h * (h > h.mean()),
        lambda h, t: torch.where(h > h.mean(0), h, t.sum()),
    ],
)
@pytest.mark.parametrize("batch", [3, 6])
def test_decisions_between_operands_of_different_rank_are_those_of_the_model(between, batch):
    objective = objective_of(between, batch)
    directions, radii = fs.Directions(objective, 3), [0.1, 0.2, 0.4]
    found = fs.responses(objective, directions, radii, precision="difference")
    exact = fs.responses(objective, directions, radii, precision="float64")
    size = np.abs(exact.even).max()
    np.testing.assert_allclose(found.even, exact.even, atol=1e-5 * size)
    np.testing.assert_allclose(found.odd, exact.odd, atol=1e-5 * size)


@pytest.mark.parametrize(
    ("between", "shape"),
    [
        (lambda h, t: F.linear(h / h.square().mean().sqrt(), t), (4, 4)),
        (lambda h, t: F.layer_norm(h - h.mean(), (4,), weight=t), (4,)),
        (lambda h, t: F.batch_norm(h * h.sum(), None, None, t, t, True), (4,)),
    ],
)
def test_sums_inside_a_network_leave_the_dtype_of_the_lanes(between, shape):
    objective = objective_of(between, shape=shape)
    directions = fs.Directions(objective, 2)
    found, exact = (fs.responses(objective, directions, [0.01, 0.1], precision=p) for p in ("difference", "float64"))
    np.testing.assert_allclose(found.even, exact.even, rtol=1e-4, atol=1e-6 * np.abs(exact.even).max())
    assert not found.fallbacks


def test_equality_of_values_that_move_is_never_trusted():
    objective = objective_of(lambda h, t: h * (h == h.amax(1, keepdim=True)))
    directions = fs.Directions(objective, 2)
    found = fs.responses(objective, directions, [1e-6, 1e-5], precision="difference")
    assert set(found.frozen) == {"aten.eq.Tensor"}
    assert not found.trusted.any()
    assert fs.responses(objective, directions, [1e-3, 1e-2]).precision == "float64"


def test_a_rule_that_fails_is_replaced_by_local_evaluation_and_counted(monkeypatch):
    def failing(*_, **__):
        raise IndexError("not foreseen")

    objective = objective_of(lambda h, t: torch.tanh(h * t))
    monkeypatch.setitem(RULES, aten.tanh.default, failing)
    directions = fs.Directions(objective, 2)
    found, exact = (fs.responses(objective, directions, [0.01, 0.1], precision=p) for p in ("difference", "float64"))
    np.testing.assert_allclose(found.even, exact.even, rtol=1e-4)
    assert set(found.fallbacks) == {"aten.tanh.default"}


def test_a_checkpoint_that_cannot_be_followed_is_subtracted_and_says_so(tmp_path):
    """The arithmetic is chosen at the first checkpoint; the second hands a value that depends on the weights to Python."""

    def between(h, t):
        return h * float(h.abs().mean()) if float(t.detach()[0]) > 1 else torch.tanh(h)

    objective = objective_of(between)
    files = []
    for name, level in (("a", 0.0), ("b", 2.0)):
        state = {key: value.clone() for key, value in objective.model.state_dict().items()}
        state["level"].fill_(level)
        files.append(tmp_path / f"{name}.pt")
        torch.save(state, files[-1])
    radii = tuple(np.logspace(-6, -2, 5))
    settings = fs.AnalysisSettings(bootstrap=2, permutations=1)
    probe = fs.ProbeSettings(count=2, banks=1, radii=radii)
    result = fs.trajectory(objective, files, probe, settings)
    exact = fs.trajectory(objective, files, fs.ProbeSettings(count=2, banks=1, radii=radii, precision="float64"), settings)
    assert [point.directions for point in result.points] == [2, 2]
    assert result.points[1].meta["precision"] == "float64"
    np.testing.assert_array_equal(result.points[1].measured.even, exact.points[1].measured.even)
