"""Sharpness against closed forms: quadratic and linear losses, random directions, rescaled layers."""

import math

import numpy as np
import pytest
import torch
from quadratics import GENERATOR, Weights, ball_maximum, normal, polynomial, symmetric
from timed import Timed
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import _clock
from fastscape.reports.html import write_html


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    GENERATOR.manual_seed(0)


# ---------------------------------------------------------------------- closed forms


def test_a_minimum_of_a_quadratic_rises_by_half_epsilon_squared_times_the_top_eigenvalue_of_the_scaled_hessian():
    weights, curvatures = normal(12), torch.linspace(0.5, 3, 12, dtype=torch.float64)
    objective = polynomial([weights], torch.zeros(12, dtype=torch.float64), torch.diag(curvatures), constant=2.0)
    result = fs.sharpness(objective, 0.3)
    expected = 0.3**2 / 2 * float((curvatures * weights**2).max())
    assert result.worst == pytest.approx(expected, rel=1e-9)
    assert result.quadratic == pytest.approx(expected, rel=1e-6)
    assert result.first_order == 0


def test_the_maximum_over_a_product_of_balls_is_the_sum_of_those_of_blocks():
    tensors = [normal(4, 3), normal(5)]
    matrix = torch.block_diag(symmetric(12), symmetric(5))
    gradient = 0.3 * normal(17)
    objective = polynomial(tensors, gradient, matrix)
    epsilon, expected = 0.7, 0.0
    for where, tensor in ((slice(0, 12), tensors[0]), (slice(12, 17), tensors[1])):
        scale = epsilon * tensor.reshape(-1).abs().numpy()
        expected += ball_maximum(scale * gradient[where].numpy(), scale[:, None] * matrix[where, where].numpy() * scale)
    result = fs.sharpness(objective, epsilon, steps=60, products=120)
    assert result.worst == pytest.approx(expected, rel=1e-5)
    assert result.worst <= expected * (1 + 1e-12), "a lower bound"
    assert result.quadratic == pytest.approx(expected, rel=1e-5)
    assert result.quadratic_bound >= expected


@pytest.mark.parametrize(("variant", "norm"), [("normalized", "tensors"), ("sam", "one"), ("asam", "offset")])
def test_first_order_is_exact_for_a_linear_loss(variant, norm):
    tensors, gradient = [normal(4, 3), normal(5)], normal(17)
    objective = polynomial(tensors, gradient, torch.zeros(17, 17, dtype=torch.float64))
    weights = torch.cat([tensor.reshape(-1) for tensor in tensors])
    expected = {
        "tensors": (weights * gradient)[:12].norm() + (weights * gradient)[12:].norm(),
        "one": gradient.norm(),
        "offset": ((weights.abs() + 0.5) * gradient).norm(),
    }[norm]
    result = fs.sharpness(objective, 0.1, variant=variant, eta=0.5)
    assert result.first_order == pytest.approx(0.1 * float(expected), rel=1e-12)
    assert result.worst == pytest.approx(result.first_order, rel=1e-9)
    assert result.random.value == pytest.approx(0, abs=1e-15), "u and -u cancel"


def test_sam_at_a_small_radius_is_rho_times_the_gradient_norm(tanh_net, digits):
    objective = fs.Objective(tanh_net.double(), digits, criterion=F.cross_entropy)
    norm = math.sqrt(sum(float(part.square().sum()) for part in objective.gradient().values()))
    assert fs.sharpness(objective, 1e-6, variant="sam").worst == pytest.approx(1e-6 * norm, rel=1e-4)


def test_a_loss_that_only_falls_has_sharpness_zero_because_the_weights_are_in_the_ball():
    weights = normal(6)
    result = fs.sharpness(polynomial([weights], torch.zeros(6, dtype=torch.float64), -torch.eye(6, dtype=torch.float64)), 0.1)
    assert result.worst == 0
    assert result.random.value < 0


def test_the_random_mean_is_that_of_the_scaled_trace():
    weights, matrix = normal(40), symmetric(40)
    result = fs.sharpness(polynomial([weights], normal(40), matrix), 0.5, samples=400, restarts=1, steps=1, products=0)
    expected = 0.5**2 / 2 * float((torch.diagonal(matrix) * weights**2).sum()) / 40  # E[u u'] = I / n on the sphere
    low, high = result.random.interval
    assert low <= expected <= high
    assert result.random.n == 200


# ---------------------------------------------------------------------- known traps


def test_random_directions_are_no_worst_case(trained_mlp, digits):
    result = fs.sharpness(fs.Objective(trained_mlp, digits, criterion=F.cross_entropy), 1e-2)
    assert result.worst > 1000 * abs(result.random.value)
    assert result.worst > 10 * result.random_rises.max(), "nor is the best of them"
    assert result.worst >= 0.99 * result.first_order


@pytest.mark.parametrize("variant", ["normalized", "sam", "asam"])
def test_the_lower_bound_is_never_below_a_point_that_was_evaluated(tanh_objective, variant):
    result = fs.sharpness(tanh_objective, 0.5, variant=variant, restarts=2, steps=4, seed=3)
    assert result.worst >= np.nanmax(result.curves)
    assert result.worst >= result.random_rises.max()
    assert result.worst >= result.random.value
    np.testing.assert_array_equal(np.nanmax(result.curves, axis=1), result.restarts)


def test_more_steps_and_restarts_never_lower_the_bound_much(tanh_objective):
    few = fs.sharpness(tanh_objective, 0.5, restarts=1, steps=2)
    many = fs.sharpness(tanh_objective, 0.5, restarts=3, steps=30)
    assert many.worst >= few.worst
    assert few.quadratic <= few.quadratic_bound


def relu_net(factor=1.0):
    torch.manual_seed(4)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16, bias=False), nn.ReLU(), nn.Linear(16, 10, bias=False)).double()
    with torch.no_grad():
        net[1].weight *= factor
        net[3].weight /= factor
    return net


def test_rescaling_a_relu_layer_leaves_normalised_sharpness_unchanged_and_changes_that_of_sam(digits):
    found = {}
    for factor in (1.0, 7.3):
        objective = fs.Objective(relu_net(factor), digits, criterion=F.cross_entropy)
        for variant in ("normalized", "sam"):
            found[variant, factor] = fs.sharpness(objective, 0.05, variant=variant, restarts=3)
    first, second = found["normalized", 1.0], found["normalized", 7.3]
    for name in ("worst", "first_order", "quadratic"):
        assert getattr(second, name) == pytest.approx(getattr(first, name), rel=1e-6), name
    assert second.random.value == pytest.approx(first.random.value, rel=1e-6)
    assert abs(found["sam", 7.3].worst / found["sam", 1.0].worst - 1) > 0.5


def test_a_tensor_at_zero_never_moves_and_is_named(digits):
    net = relu_net()
    net.append(nn.Linear(10, 10)).double()
    nn.init.zeros_(net[4].bias)
    result = fs.sharpness(fs.Objective(net, digits, criterion=F.cross_entropy), 0.05, restarts=1, steps=2, products=0)
    assert any("1 parameter at zero never moved: 4.bias" in note for note in result.flags)


def test_differences_that_drown_in_rounding_are_taken_in_float64(tanh_net, digits):
    exact = fs.sharpness(fs.Objective(tanh_net.double(), digits, criterion=F.cross_entropy), 1e-7, restarts=1, products=0)
    tanh_net.float()
    objective = fs.Objective(tanh_net, digits, criterion=F.cross_entropy)
    result = fs.sharpness(objective, 1e-7, restarts=1, products=0)
    assert result.meta["precision"] == {"worst": "float64", "random": "float64"}
    assert any("float64" in note for note in result.notes)
    assert result.worst == pytest.approx(exact.worst, rel=1e-6)
    asked = fs.sharpness(objective, 1e-7, restarts=1, products=0, precision="float32")
    assert any("rounding noise" in flag for flag in asked.flags)
    assert fs.sharpness(objective, 0.3, restarts=1, steps=1, products=0).meta["precision"]["worst"] == "float32"


class Casting(nn.Module):
    """Refuses float64 weights, as models do that fix a dtype."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x.flatten(1).float())


def test_a_model_that_cannot_run_in_float64_keeps_its_dtype_and_says_so(digits):
    objective = fs.Objective(Casting(), digits, criterion=F.cross_entropy)
    result = fs.sharpness(objective, 1e-7, restarts=1, products=0)
    assert result.meta["precision"] == {"worst": "float32", "random": "float32"}
    assert any("cannot run in float64: RuntimeError" in note for note in result.notes)


# ---------------------------------------------------------------------- groups of samples


def test_m_of_all_samples_is_the_plain_value(tanh_net, digits):
    data = [(digits[0][0][:20], digits[0][1][:20]), (digits[0][0][20:32], digits[0][1][20:32])]
    objective = fs.Objective(tanh_net.double(), data, criterion=F.cross_entropy)
    plain, grouped = (fs.sharpness(objective, 0.1, m=m, restarts=2, steps=5) for m in (None, 32))
    assert grouped.worst == plain.worst
    assert grouped.quadratic == plain.quadratic


def test_m_sharpness_is_the_weighted_mean_of_the_groups_own_maxima(tanh_net, digits):
    inputs, targets = digits[0][0][:22], digits[0][1][:22]
    objective = fs.Objective(
        tanh_net.double(), [(inputs[:10], targets[:10]), (inputs[10:], targets[10:])], criterion=F.cross_entropy
    )
    result = fs.sharpness(objective, 0.1, m=8, restarts=1, steps=5, products=0)
    own = [
        fs.sharpness(
            fs.Objective(tanh_net, [(inputs[start : start + 8], targets[start : start + 8])], criterion=F.cross_entropy),
            0.1,
            restarts=1,
            steps=5,
            products=0,
        ).worst
        for start in (0, 8, 16)
    ]
    np.testing.assert_allclose(result.group_worst, own, rtol=1e-6)
    assert result.worst == pytest.approx((8 * own[0] + 8 * own[1] + 6 * own[2]) / 22, rel=1e-6)
    assert result.worst > fs.sharpness(objective, 0.1, restarts=1, steps=5, products=0).worst


# ---------------------------------------------------------------------- what goes wrong


def test_points_without_a_finite_loss_are_counted_and_do_not_lose_the_rest():
    weights = torch.tensor([1.0, 1.0], dtype=torch.float64)

    def loss(model, _batch):
        point = model()
        return torch.sqrt(1.05 - point[0]) + point[1] ** 2  # NaN beyond 1.05

    result = fs.sharpness(fs.Objective(Weights(weights), [torch.zeros(1)], loss=loss), 0.3)
    assert result.nonfinite > 0
    assert math.isfinite(result.worst)
    assert result.worst > 0
    assert any("NaN or infinite loss" in flag for flag in result.flags)


def test_a_nan_loss_gives_a_result_that_says_so():
    objective = fs.Objective(Weights(torch.ones(3)), [torch.zeros(1)], loss=lambda model, _: model().sum() * math.nan)
    result = fs.sharpness(objective, 0.1)
    assert math.isnan(result.worst)
    assert math.isnan(result.loss)
    assert "NaN" in result.verdict()
    str(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive and finite, got 0.0"),
        ({"epsilon": math.inf}, "epsilon must be positive and finite, got inf"),
        ({"variant": "max"}, "variant must be 'normalized', 'sam' or 'asam', got 'max'"),
        ({"m": 257}, "m must be at most the number of samples, 256, got 257"),
        ({"m": 0}, "m must be at least 1, got 0"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"samples": 5}, "samples must be even"),
        ({"products": 3}, "products must be 0 or at least 6, got 3"),
        ({"eta": -1.0}, "eta must be finite and not negative"),
        ({"precision": "float16"}, "precision must be 'float64', 'float32' or None"),
    ],
)
def test_bad_settings_are_named(tanh_objective, options, message):
    with pytest.raises(ValueError, match=message):
        fs.sharpness(tanh_objective, **({"epsilon": 0.1} | options))


def test_a_random_loss_is_refused(digits):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    objective = fs.Objective(net, digits, loss=lambda model, batch: F.cross_entropy(F.dropout(model(batch[0]), 0.5), batch[1]))
    with pytest.raises(fs.NondeterministicLossError):
        fs.sharpness(objective, 0.1)


def test_a_model_without_second_derivatives_has_no_quadratic_value_but_the_rest(digits):
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value):
            ctx.save_for_backward(value)
            return value**2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 2 * ctx.saved_tensors[0] * gradient

    objective = fs.Objective(Weights(normal(5)), [torch.zeros(1)], loss=lambda model, _: Once.apply(model()).sum())
    result = fs.sharpness(objective, 0.1, steps=3)
    assert result.worst > 0
    assert math.isfinite(result.quadratic) or any("no quadratic model" in note for note in result.notes)


def test_the_user_sees_no_trace(untouched, bn_net, bn_objective):
    with untouched(bn_net):
        fs.sharpness(bn_objective, 0.05, steps=2, restarts=2)
    calls = []

    def loss(model, batch):
        calls.append(1)
        if len(calls) > 12:
            raise RuntimeError("broken")
        return F.cross_entropy(model(batch[0]), batch[1])

    broken = fs.Objective(bn_net, bn_objective.batches, loss=loss)
    with untouched(bn_net), pytest.raises(RuntimeError, match="broken"):
        fs.sharpness(broken, 0.05)


@pytest.mark.parametrize("after", [12, 40])
def test_an_interrupt_gives_what_is_known(tanh_net, digits, after):
    calls = []

    def loss(model, batch):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return F.cross_entropy(model(batch[0]), batch[1])

    result = fs.sharpness(fs.Objective(tanh_net, digits, loss=loss), 0.1, products=0)
    assert result.meta["stop_reason"] == "interrupted"
    assert result.worst >= 0
    assert any("interrupted" in flag for flag in result.flags)
    str(result)


class Ticking(nn.Module):
    """A model whose forward takes a second of its own clock."""

    now = 0.0

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        type(self).now += 1
        return torch.tanh(self.layer(x.flatten(1)))


@pytest.mark.parametrize(("samples", "products"), [(4, 200), (200, 0)])
def test_products_and_random_points_keep_to_the_budget(digits, monkeypatch, samples, products):
    objective = fs.Objective(Ticking(), digits, criterion=F.cross_entropy)
    Ticking.now = 0.0
    monkeypatch.setattr(_clock, "read", lambda: Ticking.now)
    budget = fs.runs.budget.Budget(60, clock=lambda: Ticking.now)
    result = fs.sharpness(objective, 0.1, samples=samples, products=products, precision="float32", budget=budget)
    assert 40 < Ticking.now < 70
    assert result.meta["stop_reason"] == "deadline"
    assert any("budget" in note or "deadline" in note for note in result.notes)


def test_a_budget_ends_the_ascents(tanh_net, digits):
    objective = fs.Objective(Timed(tanh_net), digits, criterion=F.cross_entropy)
    result = fs.sharpness(objective, 0.1, steps=50, products=0, budget=60)
    assert result.meta["stop_reason"] == "deadline"
    assert np.isnan(result.curves).any()
    assert result.worst > 0


# ---------------------------------------------------------------------- the result


@pytest.fixture(scope="module")
def shown(digits):
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))
    return fs.sharpness(fs.Objective(net, digits, criterion=F.cross_entropy), 0.05, m=64, restarts=3, steps=4, step=7)


def test_the_result_is_saved_and_read_back(shown, tmp_path):
    again = fs.load(shown.save(tmp_path / "sharpness"))
    assert again.worst == shown.worst
    assert again.random == shown.random
    assert again.m == 64
    np.testing.assert_array_equal(again.curves, shown.curves)


def test_tables_and_pages_name_every_number(shown, tmp_path):
    for words in ("worst case", "random mean", "first order", "quadratic model", "over groups", ">="):
        assert words in str(shown)
    page = write_html(shown, tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2
    assert "lower bound" in page


def test_the_same_seed_gives_the_same_result(tanh_objective):
    first, second = (fs.sharpness(tanh_objective, 0.1, restarts=3, steps=3, seed=5) for _ in range(2))
    assert first.worst == second.worst
    np.testing.assert_array_equal(first.curves, second.curves)
    np.testing.assert_array_equal(first.random_rises, second.random_rises)
