"""Barriers against closed forms, exact zeros, batch norm, matching, and what may go wrong."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timed import Timed
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.numerics.positive import rounded
from fastscape.probes.barriers.end_points import distinct
from fastscape.probes.barriers.probe import barrier, barriers, connect
from fastscape.probes.barriers.result import BarrierMatrix, BarrierResult, CurveResult
from fastscape.runs.budget import BudgetError


class Point(nn.Module):
    """A model that is its own position; the loss sees it directly."""

    def __init__(self, *position):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(position, dtype=torch.float64))
        self.frozen = nn.Parameter(torch.zeros(1, dtype=torch.float64), requires_grad=False)


def landscape(loss, *position):
    return fs.Objective(Point(*position), [torch.ones(2)], loss=lambda model, _batch: loss(model.w))


def state(*position, frozen=0.0):
    return {"w": torch.tensor(position, dtype=torch.float64), "frozen": torch.tensor([frozen], dtype=torch.float64)}


@pytest.fixture(scope="module")
def batches():
    return zoo.digits(samples=400, batch_size=100)


@pytest.fixture(scope="module")
def mlps(tmp_path_factory):
    """Three digits networks of one hidden layer, trained from different seeds."""
    models = []
    for seed in range(3):
        torch.manual_seed(seed)
        models.append(zoo.mlp(hidden=(48,)))
        zoo.train(models[-1], zoo.digits(), tmp_path_factory.mktemp("mlp"), steps=150, checkpoints=2, seed=seed)
    return [model.eval() for model in models]


@pytest.fixture(scope="module")
def cnns(tmp_path_factory):
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(zoo.cnn())
        zoo.train(models[-1], zoo.digits(), tmp_path_factory.mktemp("cnn"), steps=60, checkpoints=2, seed=seed)
    return [model.eval() for model in models]


def objective_of(model, batches):
    return fs.Objective(model, batches, criterion=F.cross_entropy)


# ---------------------------------------------------------------------- closed forms


def test_a_quadratic_bowl_has_no_linear_barrier_and_its_maximum_at_the_worse_end():
    objective = landscape(lambda w: (torch.tensor([1.0, 9.0], dtype=torch.float64) * w.square()).sum(), 0.0, 0.0)
    found = barrier(objective, state(2.0, -1.0), state(-0.5, 0.5))
    assert (found.linear.value, found.end.value, found.argmax) == (0.0, 0.0, 0.0)
    assert (found.max.value, found.argmax_loss) == (13.0, 0.0)
    assert found.distance == math.sqrt(2.5**2 + 1.5**2)
    np.testing.assert_allclose(found.losses, (2 - 2.5 * found.alphas) ** 2 + 9 * (-1 + 1.5 * found.alphas) ** 2, rtol=1e-14)


def test_an_inverted_bowl_has_its_closed_form():
    """-h/2 x^2 between -r and r: B_lin = h r^2 / 2 in the middle, which the even grid holds."""
    found = barrier(landscape(lambda w: -1.5 * w.square().sum(), 0.0), state(-2.0), state(2.0))
    assert (found.linear.value, found.end.value, found.argmax, found.max.value) == (6.0, 6.0, 0.5, 0.0)


def test_a_tilted_double_well_is_found_to_tolerance():
    """x^4 - 2 x^2 + x/5 from -1 to 1: chord x/5 - 1, so B_lin = 1 at x = 0; L is largest where 4 x^3 - 4 x + 1/5 = 0."""
    well = landscape(lambda w: (w**4 - 2 * w**2 + 0.2 * w).sum(), 0.0)
    found = barrier(well, state(-1.3), state(1.1), tolerance=1e-6, points=60)
    height = lambda x: x**4 - 2 * x**2 + 0.2 * x  # noqa: E731
    x = np.linspace(-1.3, 1.1, 1_000_001)
    rise = height(x) - (height(-1.3) + (x + 1.3) / 2.4 * (height(1.1) - height(-1.3)))
    top = np.roots([4, 0, -4, 0.2])
    inner = float(top[np.argmin(abs(top))].real)
    spread = height(x).max() - height(x).min()
    assert len(found.alphas) < 60
    assert rise.max() - found.linear.value <= 1e-6 * spread
    assert found.argmax == pytest.approx((x[rise.argmax()] + 1.3) / 2.4, abs=2e-3)
    ends = max(height(-1.3), height(1.1))
    assert height(inner) - found.max.value <= 1e-6 * spread
    assert found.end.value == pytest.approx(height(inner) - ends, abs=2e-6)
    assert found.argmax_loss == pytest.approx((inner + 1.3) / 2.4, abs=2e-3)


def test_refinement_ends_where_points_are_used_up_and_says_so():
    spike = landscape(lambda w: torch.exp(-400 * w.square()).sum(), 0.0)
    found = barrier(spike, state(-1.03), state(1.0), points=13)
    assert len(found.alphas) == 13
    assert found.resolution > 0
    assert any("raise points" in flag for flag in found.flags)


def test_frozen_parameters_move_as_well_and_ends_are_exact():
    objective = fs.Objective(Point(1.0), [torch.ones(2)], loss=lambda model, _: model.w.sum() + 10 * model.frozen.sum())
    found = barrier(objective, state(1.0, frozen=0.3), state(2.0, frozen=0.7))
    assert found.losses[0] == 1.0 + 10 * 0.3
    assert found.losses[-1] == 2.0 + 10 * 0.7
    np.testing.assert_allclose(found.losses, 4 + 5 * found.alphas, rtol=1e-14)


def test_a_curve_around_a_hill_has_no_barrier():
    """A narrow hill between (-1, 0) and (1, 0): the straight line goes over it, a bent one beside it."""
    hill = landscape(lambda w: torch.exp(-4 * w.square().sum()) + 0.02 * w[1] ** 2, 0.0, 0.0)
    start = state(-1.0, 0.05), state(1.0, 0.05)
    found = connect(hill, *start, steps=150, learning_rate=0.1)
    assert found.line.linear.value > 0.9
    assert found.curve.linear.value < 0.15
    assert found.curve.losses[0] == found.line.losses[0]
    assert found.curve.losses[-1] == found.line.losses[-1]
    assert found.length > found.distance == 2.0
    assert len(found.training) == 150
    assert connect(hill, *start, steps=150, learning_rate=0.1).curve.linear.value == found.curve.linear.value
    assert connect(hill, *start, steps=0).curve.losses == pytest.approx(found.line.losses, abs=1e-12)


def test_the_bend_over_a_quadratic_bowl_is_that_of_least_mean_loss():
    """Of E_t ||phi(t) - c||^2 with weights s = 2 t (1 - t): theta = (c E[s] - E[s (1 - t)^2] a - E[s t^2] b) / E[s^2]."""
    bowl = landscape(lambda w: (w - torch.tensor([0.0, 1.0], dtype=torch.float64)).square().sum(), 0.0, 0.0)
    found = connect(bowl, state(-1.0, 0.0), state(2.0, 0.0), steps=1500, learning_rate=0.1)
    assert found.bend["w"].tolist() == pytest.approx([-0.75 * (-1 + 2), 2.5], abs=0.1)


def test_parameters_that_are_not_the_objectives_stay_on_the_line(mlps, batches):
    objective = fs.Objective(mlps[0], batches, criterion=F.cross_entropy, params="3.*")
    found = connect(objective, None, mlps[1], steps=3)
    a, b = (dict(model.named_parameters()) for model in mlps[:2])
    middle = torch.lerp(a["1.weight"].detach(), b["1.weight"].detach(), 0.5)
    assert torch.equal(found.bend["1.weight"], middle)
    assert not torch.equal(found.bend["3.weight"], torch.lerp(a["3.weight"].detach(), b["3.weight"].detach(), 0.5))


# ---------------------------------------------------------------------- B(w, w) = 0, batch norm


@pytest.mark.parametrize("bn", ["recalibrate", "running", "batch"])
def test_a_solution_has_no_barrier_to_itself(cnns, batches, bn):
    found = barrier(objective_of(cnns[0], batches), None, copy.deepcopy(cnns[0]), bn=bn)
    zero = (0.0, 0.0, (0.0, 0.0))
    for estimate in (found.linear, found.end, found.accuracy_barrier):
        assert (estimate.value, estimate.stderr, estimate.interval) == zero
    assert found.distance == 0.0
    assert len(set(found.losses)) == 1
    assert len(found.alphas) == 11


@pytest.mark.parametrize("make", [zoo.mlp, zoo.tiny_transformer, lambda: zoo.models.resnet18(channels=1, width=8)])
def test_every_architecture_has_no_barrier_to_itself(make):
    torch.manual_seed(0)
    model = make()
    text = isinstance(model, zoo.models.TinyTransformer)
    data = zoo.pydoc_text(samples=4) if text else zoo.digits(samples=24, batch_size=12)
    found = barrier(objective_of(model, data), model, model.state_dict(), start=5)
    assert (found.linear.value, found.end.value, found.distance) == (0.0, 0.0, 0.0)


def test_recalibrated_losses_are_those_of_a_model_whose_statistics_were_recomputed(cnns, batches):
    found = barrier(objective_of(cnns[0], batches), None, cnns[1], start=5, points=5)
    a, b = (model.state_dict() for model in cnns)
    for alpha, loss, accuracy in zip(found.alphas, found.losses, found.accuracy, strict=True):
        model = copy.deepcopy(cnns[0])
        model.load_state_dict({key: torch.lerp(a[key], b[key], alpha) if a[key].is_floating_point() else a[key] for key in a})
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        with torch.no_grad():
            model.train()
            for inputs, _ in batches:
                model(inputs)
            model.eval()
            exact = sum(float(F.cross_entropy(model(inputs), targets)) for inputs, targets in batches) / len(batches)
            hits = sum(int((model(inputs).argmax(1) == targets).sum()) for inputs, targets in batches) / 400
        assert loss == pytest.approx(exact, rel=2e-5)
        assert accuracy == pytest.approx(hits, abs=0.003)
    assert found.batch_norm == "recalibrate"


def test_running_statistics_leave_the_ends_as_the_checkpoints_are(cnns, batches):
    objective = objective_of(cnns[0], batches)
    found = barrier(objective, None, cnns[1], bn="running", start=3, points=3)
    assert found.losses[0] == objective.loss()
    assert found.losses[-1] == objective_of(cnns[1], batches).loss()
    assert any("interpolated running statistics" in flag for flag in found.flags)
    assert (
        barrier(fs.Objective(cnns[0], batches, criterion=F.cross_entropy, batch_norm="batch"), None, cnns[1], start=3).batch_norm
        == "batch"
    )


def test_interpolated_statistics_are_of_another_network(cnns, batches):
    """The reason for recalibration: halfway, the variance of activations is not halfway."""
    objective = objective_of(cnns[0], batches)
    recalibrated, running = (barrier(objective, None, cnns[1], bn=bn, start=5, points=5) for bn in ("recalibrate", "running"))
    assert not np.allclose(recalibrated.losses[1:-1], running.losses[1:-1], rtol=1e-2)


# ---------------------------------------------------------------------- intervals, matching, matrices


def test_intervals_are_of_paired_differences(mlps, batches):
    """By hand at the maximum: the spread over samples of each one's own rise above its own chord."""
    found = barrier(objective_of(mlps[0], batches), None, mlps[1])
    inputs, targets = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    a, b = (model.state_dict() for model in mlps[:2])
    each = []
    for alpha in (0.0, found.argmax, 1.0):
        model = copy.deepcopy(mlps[0])
        model.load_state_dict({key: torch.lerp(a[key], b[key], alpha) for key in a})
        with torch.no_grad():
            each.append(F.cross_entropy(model(inputs), targets, reduction="none").double().numpy())
    rise = each[1] - (1 - found.argmax) * each[0] - found.argmax * each[2]
    assert found.linear.value == pytest.approx(rise.mean(), rel=1e-5)
    assert found.linear.stderr == pytest.approx(rise.std(ddof=1) / math.sqrt(400), rel=1e-4)
    low, high = found.linear.interval
    assert 1.96 < (high - found.linear.value) / found.linear.stderr < 4
    assert low < found.linear.value
    assert found.end.value <= found.linear.value + 1e-12 <= found.max.value + 1e-12


def test_a_barrier_known_to_its_own_size_is_shown_without_interval_and_asks_for_samples(mlps, batches):
    few = [(inputs[:12], targets[:12]) for inputs, targets in batches[:1]]
    found = barrier(objective_of(mlps[0], few), None, mlps[1], start=11, points=11)
    low, high = found.linear.interval
    span = float(np.ptp(found.losses))
    assert high - low > span
    enough = 12 * (2 * (high - found.linear.value) / found.linear.value) ** 2
    assert found.linear.withheld == f"12 samples; about {rounded(enough)} for a factor of 3"
    assert f"{found.linear.value:.3g}, interval n/a (12 samples; about" in found.summary()
    many = barrier(objective_of(mlps[0], batches), None, mlps[1], start=11, points=11)
    assert many.linear.withheld == ""
    assert many.max.withheld == ""


def test_the_interval_holds_the_barrier_of_the_data_that_samples_come_from(mlps):
    """Subsets of 200 digits against all 1437: the small share of misses that a 95 % interval may have."""
    inputs, targets = (torch.cat([batch[part] for batch in zoo.digits()]) for part in (0, 1))
    whole = barrier(objective_of(mlps[0], [(inputs, targets)]), None, mlps[1], start=11, points=11).linear.value
    rng, hits = np.random.default_rng(0), 0
    for _ in range(60):
        rows = torch.from_numpy(rng.choice(len(inputs), 200, replace=True))
        low, high = barrier(
            objective_of(mlps[0], [(inputs[rows], targets[rows])]), None, mlps[1], start=11, points=11
        ).linear.interval
        hits += low <= whole <= high
    assert hits >= 52


def test_matching_lowers_the_barrier_and_leaves_the_ends(mlps, batches):
    objective = objective_of(mlps[0], batches)
    plain, matched = (barrier(objective, None, mlps[1], match=match) for match in (False, True))
    assert matched.linear.value < 0.5 * plain.linear.value
    assert matched.distance < plain.distance
    assert matched.losses[-1] == pytest.approx(plain.losses[-1], rel=1e-4)
    assert matched.matched


def test_a_network_and_its_permuted_copy_have_a_barrier_that_matching_removes(mlps, batches):
    other = copy.deepcopy(mlps[0])
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        other[1].weight.copy_(other[1].weight[order])
        other[1].bias.copy_(other[1].bias[order])
        other[3].weight.copy_(other[3].weight[:, order])
    objective = objective_of(mlps[0], batches)
    assert barrier(objective, None, other).linear.interval[0] > 0.05
    found = barrier(objective, None, other, match=True)
    assert (found.linear.value, found.distance) == (0.0, 0.0)


@pytest.mark.parametrize("match", [False, True])
def test_the_matrix_is_symmetric_and_holds_the_single_barriers(mlps, batches, match):
    objective = objective_of(mlps[0], batches)
    settings = {"points": 12, "match": match}
    found = barriers(objective, {"x": None, "y": mlps[1], "z": mlps[2]}, **settings)
    for name in ("linear", "end", "max", "low", "high", "accuracy_barrier", "distance"):
        table = getattr(found, name)
        np.testing.assert_array_equal(table, table.T)
    assert not found.linear.diagonal().any()
    assert not found.distance.diagonal().any()
    np.testing.assert_array_equal(found.max.diagonal(), found.losses)
    for i, j in itertools.combinations(range(3), 2):
        single = barrier(objective, mlps[i], mlps[j], tolerance=1e-2, **settings)
        assert found.linear[i, j] == single.linear.value
        assert (found.low[i, j], found.high[i, j]) == single.linear.interval
        assert found.accuracy_barrier[i, j] == single.accuracy_barrier.value
        assert (found.argmax[i, j], found.argmax[j, i]) == (single.argmax, 1 - single.argmax)
    assert found.losses[2] == pytest.approx(objective_of(mlps[2], batches).loss(), rel=1e-5 if match else 1e-15)
    assert found.labels == ("x", "y", "z")


def test_end_points_of_a_matrix_are_evaluated_once(mlps, batches):
    found = barriers(objective_of(mlps[0], batches), mlps, start=3, points=3)
    gate_and_samples, rounding = 4 + 1, 1 + 9
    assert found.meta["evaluations"] == gate_and_samples + rounding + 3 + 3
    assert all(len(pair.alphas) == 3 for pair in found.pairs)


# ---------------------------------------------------------------------- inputs


def test_solutions_come_as_files_modules_states_and_objectives(mlps, batches, tmp_path):
    objective = objective_of(mlps[0], batches)
    plain = mlps[1].state_dict()
    save_file(plain, tmp_path / "one.safetensors")
    torch.save({"state_dict": {f"module.{key}": value for key, value in plain.items()}, "epoch": 3}, tmp_path / "two.pt")
    expected = barrier(objective, None, mlps[1], start=3, points=3)
    for solution in (plain, {"model": plain}, tmp_path / "one.safetensors", str(tmp_path / "two.pt"), objective.at(plain)):
        found = barrier(objective, None, solution, start=3, points=3)
        np.testing.assert_array_equal(found.losses, expected.losses)
    assert barrier(objective, tmp_path / "one.safetensors", str(tmp_path / "two.pt"), start=3, points=3).linear.value == 0.0
    same = barrier(objective, tmp_path / "one.safetensors", tmp_path / "one.safetensors", start=3, points=3)
    assert (same.a, same.b, same.end.value) == (f"{tmp_path.name}/one #1", f"{tmp_path.name}/one #2", 0.0)
    assert distinct(["x/step1.pt", "y/step1.pt"], ["step1", "step1"]) == ["x/step1", "y/step1"]


def broken(model, key, value):
    changed = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    changed[key].view(-1)[2] = value
    return changed


def test_bad_ends_are_refused_by_name(mlps, batches, tmp_path):
    objective, model = objective_of(mlps[0], batches), mlps[1]
    renamed = {key.replace("1.", "one."): value for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"^b: .*missing 1\.weight; missing 1\.bias; unexpected one\.weight"):
        barrier(objective, None, renamed)
    with pytest.raises(ValueError, match=r"^a: .*1\.weight has shape \(20, 64\), the model \(48, 64\)"):
        barrier(objective, zoo.mlp(hidden=(20,)), None)
    with pytest.raises(ValueError, match=r"^checkpoints\[1\]: state must match Sequential"):
        barriers(objective, [None, zoo.cnn()])
    with pytest.raises(ValueError, match=r"b must be finite, got nan in '3\.bias' \(element 2\)"):
        barrier(objective, None, broken(model, "3.bias", math.nan))
    with pytest.raises(ValueError, match=r"a must be finite, got inf in '1\.weight'"):
        barrier(objective, broken(model, "1.weight", math.inf), None)
    with pytest.raises(ValueError, match="must be a checkpoint file, got 'nowhere"):
        barrier(objective, "nowhere.pt", None)
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"b: checkpoint .*bad\.pt"):
        barrier(objective, None, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="b must hold a state dict"):
        barrier(objective, None, {"epoch": 3})
    with pytest.raises(TypeError, match="b must be a state dict, a checkpoint file, a module"):
        barrier(objective, None, 3)
    with pytest.raises(ValueError, match="at least two solutions, got 1"):
        barriers(objective, [None])
    with pytest.raises(TypeError, match="must be a sequence of solutions"):
        barriers(objective, "step1.pt")
    with pytest.raises(TypeError, match=r"fastscape\.Objective"):
        barrier(mlps[0], None, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points": 5}, "points must be at least start = 11, got 5"),
        ({"start": 2}, "start must be at least 3"),
        ({"tolerance": -1.0}, "tolerance must be finite and not negative, got -1.0"),
        ({"tolerance": math.nan}, "tolerance"),
        ({"bn": "reset"}, "bn must be 'recalibrate', 'running', 'batch' or None, got 'reset'"),
        ({"precision": "int8"}, "int8"),
        ({"budget": "soon"}, "budget"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_settings_are_refused(tanh_objective, settings, message):
    with pytest.raises(ValueError, match=message):
        barrier(tanh_objective, **settings)


def test_connect_refuses_a_rate_of_zero(tanh_objective):
    with pytest.raises(ValueError, match="learning_rate must be positive and finite, got 0"):
        connect(tanh_objective, learning_rate=0)


def test_a_loss_that_is_no_function_is_refused(tanh_net, digits):
    noisy = fs.Objective(tanh_net, digits, loss=lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]) + torch.rand(()))
    with pytest.raises(fs.NondeterministicLossError):
        barrier(noisy)


def test_models_that_cannot_be_matched_are_refused_before_any_work():
    objective = objective_of(zoo.tiny_transformer(), zoo.pydoc_text(samples=2))
    with pytest.raises(ValueError, match="got TinyTransformer"):
        barrier(objective, match=True)


# ---------------------------------------------------------------------- what goes wrong midway


def test_losses_that_are_not_finite_are_counted_and_kept():
    wall = landscape(lambda w: torch.where(w.abs() < 0.1, torch.inf, w.square()).sum(), 0.0)
    found = barrier(wall, state(-1.0), state(1.0))
    assert found.linear.value == found.max.value == math.inf
    assert found.nonfinite == 1
    hole = landscape(lambda w: torch.where(w > 0.5, torch.nan, 2 - w.square()).sum(), 0.0)
    found = barrier(hole, state(-1.0), state(0.5001))
    assert math.isnan(found.losses[-1])
    assert math.isnan(found.linear.value)
    assert found.max.value == pytest.approx(2.0, abs=0.02)
    assert "not finite" in found.verdict()
    assert any("1 point with a NaN" in flag for flag in found.flags)
    assert str(found)


def test_training_ends_at_a_gradient_that_is_not_finite():
    hole = landscape(lambda w: torch.where(w.abs() < 0.5, torch.sqrt(-w.square()), w.square()).sum(), 0.0)
    found = connect(hole, state(-1.0), state(1.0), steps=50)
    assert len(found.training) < 50
    assert any("not finite at t" in flag for flag in found.flags)


class Interrupting:
    """A loss that is interrupted at its n-th evaluation."""

    def __init__(self, at):
        self.left = at

    def __call__(self, model, _batch):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return -model.w.square().sum()


def interrupted(at):
    """An objective that has had its first evaluation, and is interrupted at its n-th from then on."""
    loss = Interrupting(-1)
    objective = fs.Objective(Point(0.0), [torch.ones(2)], loss=loss)
    assert objective.remarks == ()
    loss.left = at
    return objective


def test_an_interrupt_leaves_what_is_known():
    objective = interrupted(23)
    found = barrier(objective, state(-1.0), state(1.0))
    assert found.meta["stop_reason"] == "interrupted"
    assert 3 <= len(found.alphas) < 11
    assert found.linear.value == 1.0
    with pytest.raises(KeyboardInterrupt):
        barrier(interrupted(16), state(-1.0), state(1.0))


class Counted(nn.Module):
    """A weight and a buffer of integers."""

    def __init__(self, count):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.register_buffer("count", torch.tensor(count))


def test_integers_that_differ_are_refused_before_any_pair_is_evaluated():
    done = []
    objective = fs.Objective(Counted(1), [torch.ones(2)], loss=lambda model, _batch: model.w.sum() * model.count)
    with pytest.raises(ValueError, match="must agree in 'count'"):
        barriers(objective, [Counted(1), Counted(1), Counted(2)], progress=lambda *_: done.append(1))
    assert not done


def test_an_interrupted_matrix_keeps_its_pairs():
    objective = interrupted(31)
    found = barriers(objective, [state(-1.0), state(1.0), state(2.0)])
    assert found.meta["stop_reason"] == "interrupted"
    assert found.linear[0, 1] == found.linear[1, 0] == 1.0
    assert np.isnan(found.linear[1, 2])
    assert any("were not evaluated" in flag for flag in found.flags)


def test_a_budget_leaves_three_points_at_least(mlps, batches):
    """A forward takes a second, a point four, and the preparation 60."""
    first, other, third = (Timed(model) for model in mlps)
    with pytest.raises(BudgetError, match="budget must fit one line of three points, got 60 s"):
        barrier(objective_of(first, batches), None, other, budget=60)
    found = barrier(objective_of(first, batches), None, other, budget=70)
    assert list(found.alphas) == [0.0, 0.5, 1.0]
    assert found.meta["stop_reason"] == "deadline"
    assert any("ended early (deadline) after 3 points" in flag for flag in found.flags)
    matrix = barriers(objective_of(first, batches), [first, other, third], budget=70)
    assert len(matrix.pairs) == 1
    assert np.isnan(matrix.linear[0, 2])
    curve = connect(objective_of(first, batches), None, other, budget=70)
    assert (len(curve.training), len(curve.curve.alphas)) == (0, 2)


def test_an_interrupted_training_gives_its_curve():
    objective = interrupted(51)
    found = connect(objective, state(-1.0), state(1.0), points=11, steps=100)
    assert found.meta["stop_reason"] == "interrupted"
    assert 0 < len(found.training) < 100
    assert len(found.curve.alphas) == 11


def test_an_interrupt_at_any_evaluation_after_the_line_leaves_a_curve():
    whole = interrupted(10**9)
    connect(whole, state(-1.0), state(1.0), start=3, points=3, steps=2)
    for call in range(20, 10**9 - whole.user_loss.left + 1):
        objective = interrupted(call)
        found = connect(objective, state(-1.0), state(1.0), start=3, points=3, steps=2)
        assert found.meta["stop_reason"] == "interrupted"
        assert len(found.line.alphas) == 3
        assert any("interrupted" in flag for flag in found.flags)


# ---------------------------------------------------------------------- traces, files, pages


@pytest.mark.parametrize("bn", ["recalibrate", "running", "batch"])
def test_the_model_is_untouched(bn_net, digits, untouched, bn):
    objective = fs.Objective(bn_net, [(digits[0][0][:20], digits[0][1][:20])], criterion=F.cross_entropy)
    other = copy.deepcopy(bn_net)
    other.load_state_dict({key: value * 1.5 if value.is_floating_point() else value for key, value in other.state_dict().items()})
    with untouched(bn_net), untouched(other):
        barrier(objective, None, other, bn=bn, start=3, points=5)
        barriers(objective, [bn_net, other], bn=bn, start=3, points=3)
        connect(objective, None, other, bn=bn, start=3, points=3, steps=3)


def test_the_model_is_untouched_by_failures(bn_net, digits, untouched):
    with untouched(bn_net):
        objective = fs.Objective(bn_net, [(digits[0][0][:20], digits[0][1][:20])], loss=lambda _model, _batch: torch.zeros(3))
        with pytest.raises(ValueError, match="0-dim"):
            barrier(objective)


def test_results_survive_files_and_make_figures(mlps, cnns, batches, tmp_path):
    import matplotlib.pyplot as plt

    objective = objective_of(mlps[0], batches)
    line = barrier(objective, None, mlps[1], name="digits", step=150)
    curve = connect(objective, None, mlps[1], steps=5)
    matrix = barriers(objective_of(cnns[0], batches), {"first": cnns[0], "second": cnns[1]}, start=3, points=4)
    for result, kind in ((line, BarrierResult), (curve, CurveResult), (matrix, BarrierMatrix)):
        read = fs.load(result.save(tmp_path / kind.kind))
        assert isinstance(read, kind)
        assert read.to_dict() == result.to_dict()
        assert read.summary() == result.summary()
        section = result.section()
        assert all(quantity.meaning for quantity in section.quantities)
        for figure in section.figures:
            drawn, ax = plt.subplots()
            figure.draw(ax)
            assert figure.definition
            assert ax.get_title()
            plt.close(drawn)
    assert line.meta["settings"]["points"] == 41
    assert (line.meta["batch_norm"], matrix.meta["batch_norm"]) == ("running", "recalibrate")
    assert curve.meta["training_evaluations"] == 5
    entry = 2 + 1 + 1  # gate, terms, rounding: the rest was found with the line before
    assert curve.meta["evaluations"] == 2 * entry + len(curve.line.alphas) + len(curve.curve.alphas) - 2  # ends are known
    assert set(line.meta["weight_fingerprints"]) == {"own weights", "b"}
    assert "loss rises" in line.verdict()
    assert curve.bend is not None
    assert fs.load(curve.save(tmp_path / "again")).bend is None


def test_precision_is_that_asked_for(mlps, batches):
    objective = objective_of(mlps[0], batches)
    wide, own = (barrier(objective, None, mlps[1], start=3, points=3, precision=name) for name in ("float64", None))
    assert wide.meta["dtype"] == "torch.float64"
    assert 0 < wide.noise < 1e-12 < own.noise < 1e-4
    np.testing.assert_allclose(own.losses, wide.losses, rtol=1e-5)
    assert own.losses[0] == objective.loss()
