"""The loop's scratch holds exactly what the op gives, however the noise is kept, and writing it touches nothing else."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import fastscape as fs
from fastscape.directions.normalise import RULES
from fastscape.evaluation import displacement
from fastscape.evaluation.evaluator import Evaluator
from fastscape.evaluation.paths import VmapPath
from fastscape.ops import _native

RADII = (1e-3, -0.25)


class Operations(TorchDispatchMode):
    """Records every torch operation."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def replica(request, digits):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    return fs.Objective(net, digits, criterion=F.cross_entropy).replica(request.param)


def written(replica, directions, index=2):
    """Copies of the scratch parameters at both radii."""
    move = displacement.Displacement(replica.base, replica.scratch)
    found = []
    with torch.no_grad():
        for other in (0, index):  # the second direction replaces the first
            move.select(directions, other)
        for radius in RADII:
            move.write(radius)
            found.append([tensor.clone() for tensor in replica.scratch])
    return found


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("rule", RULES)
def test_stored_and_regenerated_noise_and_both_paths_give_the_same_bits(replica, rule, distribution, monkeypatch):
    directions = fs.Directions(replica.objective, 3, seed=7, normalize=rule, distribution=distribution)
    stored = written(replica, directions)
    monkeypatch.setattr(displacement, "STORED_BYTES", 0)
    regenerated = written(replica, directions)
    with torch.no_grad():
        points = VmapPath(replica, 1)._points(directions, [2], RADII)
    for row, (first, second) in enumerate(zip(stored, regenerated, strict=True)):
        for one, other, point in zip(first, second, points, strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, point[row])


@pytest.mark.parametrize("rule", RULES)
def test_the_displacement_is_the_direction_times_the_radius(replica, rule):
    directions = fs.Directions(replica.objective, 3, seed=7, normalize=rule)
    eps = torch.finfo(replica.dtype).eps
    for moved, radius in zip(written(replica, directions), RADII, strict=True):
        for tensor, base, step in zip(moved, replica.base, directions.tensors(2, torch.float64)[0], strict=True):
            exact = base.double() + radius * step
            size = base.abs().double() + abs(radius) * step.abs()
            assert bool(((tensor.double() - exact).abs() <= 3 * eps * size).all())


@pytest.mark.skipif(not _native.library.available, reason=_native.library.reason)
def test_writing_runs_no_torch_operation_and_so_allocates_no_tensor(replica):
    move = displacement.Displacement(replica.base, replica.scratch)
    move.select(fs.Directions(replica.objective, 3), 0)
    with Operations() as operations:
        move.write(0.1)
        move.write(-0.1)
    assert operations.seen == []


def test_large_directions_are_not_kept(replica, monkeypatch):
    """Beside the scratch copy nothing of a direction's size stays, for any number of directions."""
    monkeypatch.setattr(displacement, "STORED_BYTES", 0)
    move = displacement.Displacement(replica.base, replica.scratch)
    directions = fs.Directions(replica.objective, 8)
    for index in range(8):
        move.select(directions, index)
        move.write(0.1)
    held = [value for value in vars(move).values() if isinstance(value, list)]
    tensors = [tensor for value in held for tensor in value if isinstance(tensor, torch.Tensor)]
    own = {tensor.data_ptr() for tensor in tensors} - {tensor.data_ptr() for tensor in (*replica.base, *replica.scratch)}
    assert own == set()
    assert move._raw is None


def test_given_directions_move_exactly_as_asked(replica):
    steps = {name: torch.ones_like(tensor) for name, tensor in replica.objective.base.items()}
    directions = fs.Directions.given(replica.objective, steps, scale="none")
    for moved, radius in zip(written(replica, directions, index=0), RADII, strict=True):
        step = torch.tensor(radius, dtype=torch.float64).to(replica.dtype)
        for tensor, base in zip(moved, replica.base, strict=True):
            assert torch.equal(tensor, base.to(replica.dtype) + step)


def test_the_replica_keeps_what_torch_chooses_kernels_by(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 10))
    model[1].bias.requires_grad_(False)
    objective = fs.Objective(model, digits, criterion=F.cross_entropy)
    with Evaluator(objective, torch.float64) as evaluator:
        copy = evaluator.replica.module.model
        objective.gradient()
        assert [p.requires_grad for p in copy.parameters()] == [p.requires_grad for p in model.parameters()]


def test_two_kinds_of_directions_on_one_evaluator(digits):
    torch.manual_seed(0)
    objective = fs.Objective(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), digits, criterion=F.cross_entropy)
    kinds = [fs.Directions(objective, 2, normalize=rule) for rule in ("tensor", "filter")]
    with Evaluator(objective, torch.float64, method="loop") as evaluator:
        found = [evaluator.losses(directions, [0, 1], [0.5]) for directions in kinds]
    for values, directions in zip(found, kinds, strict=True):
        assert torch.equal(values, fs.losses(objective, directions, [0.5], method="loop"))


@pytest.mark.parametrize("as_criterion", [True, False])
def test_a_loss_that_keeps_its_result_and_a_graph_is_evaluated_right(digits, as_criterion):
    torch.manual_seed(0)
    model, kept = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), torch.zeros(())

    def criterion(outputs, targets):
        kept.copy_(F.cross_entropy(outputs, targets))
        return kept

    arguments = {"criterion": criterion} if as_criterion else {"loss": lambda m, batch: criterion(m(batch[0]), batch[1])}
    arguments |= {} if as_criterion else {"weight": lambda batch: len(batch[1])}
    objective = fs.Objective(model, digits, **arguments)
    plain = fs.Objective(model, digits, criterion=F.cross_entropy)
    radii = [-0.5, 0.1, 0.5, 1.0]
    found, expected = (
        fs.losses(each, fs.Directions(each, 2), radii, precision="float32", method="loop") for each in (objective, plain)
    )
    torch.testing.assert_close(found, expected)
