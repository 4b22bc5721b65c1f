"""Responses against autograd, closed forms and float64; the gate rejects what is rounding noise."""

import copy
import math
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.evaluation.evaluator import Evaluator
from fastscape.evaluation.noise import measured_floor, noise_float64, passes_gate
from fastscape.evaluation.rounding import rounding_model

PATHS = ("loop", "vmap")


def quadratic_form(objective, direction):
    """d'Hd and g'd by double backward in float64."""
    model = copy.deepcopy(objective.model).double()
    named = [dict(model.named_parameters())[name] for name in objective.names]
    batches = [(x.double() if x.is_floating_point() else x, y) for x, y in objective.batches]
    model.eval()
    loss = sum(weight * F.cross_entropy(model(x), y) for (x, y), weight in zip(batches, objective.batch_weights, strict=True))
    gradient = torch.autograd.grad(loss / objective.samples, named, create_graph=True)
    steps = [direction[name].double() for name in objective.names]
    slope = sum((g * d).sum() for g, d in zip(gradient, steps, strict=True))
    product = torch.autograd.grad(slope, named)
    return float(sum((h * d).sum() for h, d in zip(product, steps, strict=True))), float(slope.detach())


@pytest.mark.parametrize("path", PATHS)
def test_even_response_reaches_the_quadratic_form_of_autograd(tmp_path, digits, path):
    """T10: 1e-5 at eps = 1e-4 and 1e-6 at 1e-3, unit directions, plain float64, smooth network."""
    torch.manual_seed(0)
    model = zoo.mlp(hidden=(32,), activation="tanh")
    zoo.train(model, digits, tmp_path, steps=100, checkpoints=2)
    objective = fs.Objective(model, digits, criterion=F.cross_entropy)
    directions = fs.Directions(objective, 6, scale="unit")
    found = fs.responses(objective, directions, [1e-4, 1e-3], precision="float64", method=path)
    for index, direction in enumerate(directions):
        curvature, slope = quadratic_form(objective, direction)
        assert found.even[0, index] / 1e-8 == pytest.approx(curvature, rel=1e-5)
        assert found.even[1, index] / 1e-6 == pytest.approx(curvature, rel=1e-6)
        assert found.odd[0, index] / 1e-4 == pytest.approx(slope, rel=1e-4)


def test_responses_of_a_transformer_reach_the_quadratic_form():
    """Attention: the MATH back end and the disabled fast path give second differences that autograd confirms."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    torch.manual_seed(0)
    model = zoo.tiny_transformer(width=16, heads=2, context=16)
    objective = fs.Objective(model, zoo.pydoc_text(samples=4, context=16), criterion=F.cross_entropy)
    directions = fs.Directions(objective, 2)
    found = fs.responses(objective, directions, [1e-4])
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            for index, direction in enumerate(directions):
                assert found.even[0, index] / 1e-8 == pytest.approx(quadratic_form(objective, direction)[0], rel=2e-4)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def quadratic_objective(scale=1.0):
    """L(w) = scale / 2 |w|^2 at w = (1, 2, 3), exactly representable."""

    class Point(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

        def forward(self, x):
            return self.w * x

    data, weight = [(torch.ones(3), torch.zeros(3))], lambda _batch: 1  # a sum is meant
    return fs.Objective(Point(), data, criterion=lambda out, _: scale * out.square().sum() / 2, weight=weight)


@pytest.mark.parametrize("path", PATHS)
def test_a_quadratic_has_exact_responses_at_every_radius(path):
    objective = quadratic_objective()
    directions = fs.Directions.given(objective, {"w": torch.tensor([0.0, 3.0, 4.0])}, scale="unit")
    radii = np.array([0.125, 0.5, 2.0, 8.0])
    found = fs.responses(objective, directions, radii, method=path)
    assert found.base == 7.0
    np.testing.assert_allclose(found.even[:, 0], radii**2, rtol=1e-14, atol=4 * np.spacing(7.0))
    np.testing.assert_allclose(found.odd[:, 0], radii * (2 * 0.6 + 3 * 0.8), rtol=1e-14)
    np.testing.assert_allclose(found.eps_rel, radii / math.sqrt(14), rtol=1e-14)
    np.testing.assert_array_equal(found.eps_abs, radii)


def test_a_kink_is_silent_below_and_linear_above():
    """T9: L = relu(w_1 - c) has response 0 for eps |d_1| < c, then eps |d_1| - c."""

    class Kink(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(2))

        def forward(self, x):
            return torch.relu(self.w * x - 0.25)

    objective = fs.Objective(Kink(), [(torch.tensor([1.0, 0.0]), torch.zeros(2))], criterion=lambda out, _: out[0])
    directions = fs.Directions.given(objective, {"w": torch.tensor([1.0, 0.0])})
    found = fs.responses(objective, directions, [0.125, 0.25, 0.5, 1.0])
    np.testing.assert_allclose(found.even[:, 0], [0, 0, 0.25, 0.75], atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_losses_are_those_of_a_moved_model(bn_objective, bn_net, path, untouched):
    directions = fs.Directions(bn_objective, 3)
    radii = [-0.2, 0.0, 1e-3, 0.7]
    with untouched(bn_net):
        found = fs.losses(bn_objective, directions, radii, method=path)
    assert found.dtype == torch.float64
    for index, direction in enumerate(directions):
        for column, radius in enumerate(radii):
            moved = copy.deepcopy(bn_net).double().eval()
            for name, tensor in moved.named_parameters():
                tensor.data += radius * direction[name].double()
            inputs, targets = bn_objective.batches[0]
            expected = float(F.cross_entropy(moved(inputs.double()), targets).detach())
            assert float(found[index, column]) == pytest.approx(expected, rel=2e-7)


def test_paths_agree_to_rounding_and_any_chunk_gives_the_same_bits(tanh_objective):
    directions = fs.Directions(tanh_objective, 11)
    radii = [1e-3, 1e-2, 1e-1]
    loop, batched = (fs.responses(tanh_objective, directions, radii, method=path) for path in PATHS)
    noise = loop.noise[0]
    assert np.abs(loop.even - batched.even).max() < noise
    few = fs.responses(tanh_objective, fs.Directions(tanh_objective, 4), radii, method="loop")
    np.testing.assert_array_equal(loop.even[:, :4], few.even)


def test_the_chosen_path_is_the_one_measured_faster(tanh_objective):
    found = fs.responses(tanh_objective, fs.Directions(tanh_objective, 8), [1e-2, 1e-1], precision="float64")
    assert set(found.path.seconds) == {"loop", "vmap"}
    assert found.path.name == min(found.path.seconds, key=found.path.seconds.get)
    assert "faster" in found.path.reason


def test_models_that_vmap_cannot_run_fall_back_to_the_loop_and_say_so(digits):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            out = self.linear(x.flatten(1))
            return out if out.sum().item() > -1e9 else -out  # data-dependent control flow

    torch.manual_seed(0)
    objective = fs.Objective(Branch(), digits, criterion=F.cross_entropy)
    found = fs.responses(objective, fs.Directions(objective, 2), [1e-2])
    assert found.path.name == "loop"
    assert "vmap cannot run this model" in found.path.reason


def test_memory_bounds_the_batched_path(tanh_objective):
    directions = fs.Directions(tanh_objective, 2)
    with pytest.raises(ValueError, match="memory must hold an evaluation of the loss, .* bytes are enough, got 1000") as refused:
        fs.responses(tanh_objective, directions, [1e-2], precision="float64", memory=1000)
    memory = int(re.search(r"(\d+) bytes", str(refused.value))[1])
    assert fs.responses(tanh_objective, directions, [1e-2], precision="float64", memory=memory).path.name == "loop"
    with pytest.raises(ValueError, match="memory must hold 3 copies"):
        fs.responses(tanh_objective, directions, [1e-2], memory=memory, method="vmap")


# ---------------------------------------------------------------------- precision


def test_float32_is_rejected_where_it_is_noise_and_float64_is_not(trained_mlp, digits):
    """T13: on the digits MLP, float32 subtraction is refused below about 1e-2 of distance; float64 is trusted."""
    objective = fs.Objective(trained_mlp, digits, criterion=F.cross_entropy)
    directions = fs.Directions(objective, 8, scale="unit")
    radii = np.logspace(-5, 1, 13)
    with pytest.warns(fs.PrecisionWarning, match="rounding noise on this model; use precision='difference', or 'float64'"):
        single = fs.responses(objective, directions, radii, precision="float32")
    double = fs.responses(objective, directions, radii, precision="float64")
    assert not single.trusted[radii < 1e-2].any()
    assert single.trusted[radii > 3].all()
    assert double.trusted[radii > 1e-4].all()
    rejected = np.median(np.abs(single.even - double.even) / np.abs(double.even), axis=1)[radii < 1e-3]
    assert (rejected > 1).all(), "what is rejected is wrong by more than 100 %"
    error = np.abs(single.even - double.even)[single.trusted] / np.abs(double.even)[single.trusted]
    assert np.percentile(error, 90) < 0.1


def test_rounding_model_bounds_measured_noise(trained_mlp, digits):
    """8 u (L0 + G) is within 0.5x to 20x of the noise that is measured (specification B4)."""
    fresh = zoo.mlp()
    for model in (fresh, trained_mlp):
        objective = fs.Objective(model, digits, criterion=F.cross_entropy)
        directions = fs.Directions(objective, 16)
        with Evaluator(objective, torch.float64, method="loop") as evaluator:
            modelled, floor = rounding_model(evaluator.replica), measured_floor(evaluator, directions, range(16))
            noise, narrow = noise_float64(evaluator, directions, range(16), np.array([1e-3, 1e-2]))
            np.testing.assert_array_equal(noise, max(modelled, floor))
            assert narrow == ""
        assert 0.5 < modelled / floor < 60


def test_rounding_model_matches_its_formula(tanh_objective):
    inputs, targets = tanh_objective.batches[0]
    with Evaluator(tanh_objective, torch.float64, method="loop") as evaluator:
        modelled = rounding_model(evaluator.replica)
    with torch.no_grad():
        logits = copy.deepcopy(tanh_objective.model).double()(inputs.double())
        residual = logits.softmax(1) - F.one_hot(targets, 10)
        mean = (residual.norm(dim=1) * logits.norm(dim=1)).mean()
        expected = 8 * 2.0**-53 * float(F.cross_entropy(logits, targets) + mean)
    assert modelled == pytest.approx(expected, rel=1e-12)


def test_a_hidden_float32_step_raises_the_floor(trained_mlp, digits):
    def loss(model, batch):
        return F.cross_entropy(model(batch[0]).float(), batch[1])

    objective = fs.Objective(trained_mlp, digits, loss=loss)
    clean = fs.Objective(trained_mlp, digits, criterion=F.cross_entropy)
    directions = fs.Directions(objective, 4)
    hidden, honest = (fs.responses(o, directions, [1e-2], precision="float64").noise[0] for o in (objective, clean))
    assert hidden > 1e4 * honest


def test_gate_needs_nine_of_ten_directions_ten_times_above_the_noise():
    even = np.full((2, 10), 10.0)
    even[0, :1] = 9.9
    even[1, :2] = 9.9
    np.testing.assert_array_equal(passes_gate(even, np.ones(2)), [True, False])
    np.testing.assert_array_equal(passes_gate(np.full((1, 4), np.nan), np.ones(1)), [False])


def test_half_precision_weights_are_widened_exactly(digits):
    torch.manual_seed(0)
    model = zoo.mlp(hidden=(8,)).bfloat16()
    objective = fs.Objective(model, digits, criterion=F.cross_entropy)
    wide = fs.Objective(copy.deepcopy(model).double(), digits, criterion=F.cross_entropy)
    narrow, exact = (fs.losses(o, fs.Directions(o, 2), [0.0, 1e-3], method="loop") for o in (objective, wide))
    torch.testing.assert_close(narrow, exact, rtol=1e-12, atol=0)


# ---------------------------------------------------------------------- NaN, bad input, no trace


@pytest.mark.filterwarnings("error")
def test_nan_and_inf_losses_are_results(tanh_net, digits):
    with torch.no_grad():
        tanh_net[3].weight[0, 0] = torch.nan
    objective = fs.Objective(tanh_net, digits, criterion=F.cross_entropy)
    found = fs.responses(objective, fs.Directions(objective, 2), [1e-3, 1e-2])
    assert np.isnan(found.even).all()
    assert math.isnan(found.base)
    assert not found.trusted.any()
    big = quadratic_objective(1e308)
    assert torch.isinf(fs.losses(big, fs.Directions(big, 1), [1e10])).all()


@pytest.mark.parametrize(
    ("radii", "message"),
    [
        ([0.1, 0.0], r"positive and finite, got radii\[1\] = 0.0"),
        ([-0.1], r"positive and finite, got radii\[0\] = -0.1"),
        ([0.1, float("nan")], r"positive and finite, got radii\[1\] = nan"),
        ([0.1, 0.1], r"strictly ascending, got radii\[0\] = 0.1 and radii\[1\] = 0.1"),
        ([0.2, 0.1], "strictly ascending"),
        ([], "non-empty vector"),
        ([[0.1]], r"non-empty vector, got shape \(1, 1\)"),
    ],
)
def test_bad_radii_are_named(tanh_objective, radii, message):
    with pytest.raises(ValueError, match=message):
        fs.responses(tanh_objective, fs.Directions(tanh_objective, 1), radii)


def test_bad_options_are_named(tanh_objective):
    directions = fs.Directions(tanh_objective, 1)
    for arguments, message in (
        ({"precision": "bf16"}, "precision must be one of float64, float32, difference, difference-bf16 or None, got 'bf16'"),
        ({"method": "jit"}, "method must be one of loop, vmap, stream, graph, dispatch or None to measure, got 'jit'"),
        ({"method": "graph", "precision": "float64"}, "method must be 'loop', 'vmap', 'stream' or None to measure, got 'graph'"),
        ({"method": "loop", "precision": "difference"}, "method must be 'graph', 'dispatch' or None with precision='difference'"),
        ({"memory": 0}, "memory must be a positive number of bytes, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            fs.responses(tanh_objective, directions, [0.1], **arguments)
    with pytest.raises(ValueError, match="radii must be finite, got inf"):
        fs.losses(tanh_objective, directions, [0.0, float("inf")])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch_norm", ["running", "batch"])
def test_no_public_call_leaves_a_trace(bn_net, digits, untouched, dtype, batch_norm):
    model = bn_net.to(dtype)
    data = [(digits[0][0].to(dtype), digits[0][1])]
    with untouched(model):
        objective = fs.Objective(model, data, criterion=F.cross_entropy, batch_norm=batch_norm)
        objective.loss(), objective.accuracy(), objective.norm, objective.gradient()
        objective.data_fingerprint(), objective.weight_fingerprint()
        for normalize in ("tensor", "filter", "element"):
            directions = fs.Directions(objective, 2, normalize=normalize)
            for path in PATHS:
                fs.losses(objective, directions, [0.0, 0.1], method=path)
        fs.Directions.gradient(objective)
        fs.Directions.given(objective, directions[0])
        fs.Directions.difference(objective, model.state_dict(), model.state_dict() | {"5.bias": model[5].bias + 1})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", fs.PrecisionWarning)
            fs.responses(objective, directions, [1e-3, 1e-2], precision="float32")
        fs.responses(objective, directions, [1e-3, 1e-2])


def test_settings_of_the_caller_survive(bn_net, bn_objective, untouched):
    """Under unusual global settings: TF32 allowed, autocast, inference mode, another default dtype."""
    torch.set_float32_matmul_precision("high")
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with untouched(bn_net), torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
            inside = fs.responses(bn_objective, fs.Directions(bn_objective, 2), [1e-2], method="loop")
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    outside = fs.responses(bn_objective, fs.Directions(bn_objective, 2), [1e-2], method="loop")
    np.testing.assert_array_equal(inside.even, outside.even)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("path", [None, *PATHS])
def test_nothing_is_left_behind_when_the_model_raises_midway(digits, untouched, error, path):
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)
            self.norm = nn.BatchNorm1d(10)

        def forward(self, x):
            calls.append(1)
            if len(calls) == 5:
                raise error("midway")
            return self.norm(self.linear(x.flatten(1)))

    calls = []
    model = Fragile()
    model.linear(torch.ones(1, 64)).sum().backward()
    objective = fs.Objective(model, digits, criterion=F.cross_entropy)
    directions = fs.Directions(objective, 64)
    with untouched(model), pytest.raises(error, match="midway"):
        fs.responses(objective, directions, np.logspace(-3, -1, 8), method=path)
    assert len(calls) >= 5


def test_the_noise_of_a_response_beside_a_pole_is_that_of_its_own_lanes():
    """Of a chain 1 / h^19 lanes lose digits that the two directions of the calibration, far from any pole, do not show."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        model.weight.uniform_(0.75, 1.25)
    objective = fs.Objective(model, [torch.ones(1)], loss=lambda net, _: (1 / net.weight**19).mean())
    directions = fs.Directions(objective, 24, seed=3)
    radii = [0.025, 0.05, 0.1]
    exact = fs.responses(objective, directions, radii, precision="float64").even
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fs.PrecisionWarning)
        found = fs.responses(objective, directions, radii, precision="difference")
    errors = np.sqrt(np.mean((found.even - exact) ** 2, axis=1))
    assert errors[-1] > 1e-4 * np.sqrt(np.mean(exact[-1] ** 2)), "lanes have lost digits"
    assert (errors <= 3 * found.noise).all()


@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
@pytest.mark.parametrize("seed", [2, 4, 5])
def test_float32_is_trusted_beside_a_pole_only_where_its_error_is_below_the_other_responses(seed):
    """Of 256 directions a few come near the pole of h^-19, and none of the four that the noise is measured on does."""
    torch.manual_seed(seed)
    model = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        model.weight.uniform_(0.75, 1.25)
    objective = fs.Objective(model, [torch.ones(1)], loss=lambda net, _: (1 / net.weight**19).mean())
    directions, radii = fs.Directions(objective, 256, seed=seed), [0.01, 0.05, 0.1, 0.2, 0.3]
    exact = fs.responses(objective, directions, radii, precision="float64").even
    found = fs.responses(objective, directions, radii, precision="float32")
    errors = np.sqrt(np.mean((found.even - exact) ** 2, axis=1))
    assert (errors <= 5 * found.noise).all()
    assert ((np.abs(exact) >= errors[:, None]).mean(axis=1)[found.trusted] >= 0.9).all()
    assert found.trusted[0], "far from the pole"
    assert not found.trusted[-1]
    assert any("beside a pole" in note for note in found.notes)
