"""Optimisation difficulty along real and closed-form training."""

import copy
import itertools

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.probes.tracking.result import DifficultyResult

mpl.use("agg")


class Quadratic(nn.Module):
    """Loss ``sum h w^2 / 2``; the data are not used."""

    def __init__(self, curvatures, start):
        super().__init__()
        self.register_buffer("curvatures", torch.tensor(curvatures, dtype=torch.float64))
        self.weight = nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, _inputs):
        return 0.5 * (self.curvatures * self.weight.square()).sum()


def quadratic(curvatures=(4.0, 1.0, -0.5), start=(1.0, -2.0, 0.1)):
    model = Quadratic(curvatures, start)
    return model, fs.Objective(model, [torch.zeros(1, 1)], loss=lambda model, batch: model(batch))


def descend(model, objective, steps, rate=0.1, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    sum_ = fs.Difficulty(objective, **settings)
    sum_.step(0)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        model(None).backward()
        optimizer.step()
        sum_.step(step, optimizer=optimizer)
    return sum_.finish()


def test_gradient_descent_on_a_quadratic_has_the_closed_form():
    model, objective = quadratic()
    found = descend(model, objective, 20, every=5, tolerance=1e-6)
    h, w0 = np.array([4.0, 1.0, -0.5]), np.array([1.0, -2.0, 0.1])
    factors = (1 - 0.1 * h) ** 2
    squares = np.sum((h * w0) ** 2 * (1 - factors**20) / (1 - factors))
    descent = 0.5 * np.sum(h * w0**2 * (1 - factors**20))
    assert found.value == pytest.approx(0.1 * 4.0 * squares, rel=1e-6)
    assert found.dimensionless == pytest.approx(0.5 * 0.1**2 * 4.0 * squares / descent, rel=1e-6)
    assert found.sharpness == pytest.approx(np.full(5, 4.0))
    assert (found.discretisation, found.step) == (pytest.approx(0, abs=1e-6), 20)


def test_by_the_descent_lemma_the_dimensionless_difficulty_of_an_isotropic_bowl_is_known():
    model, objective = quadratic((2.0, 2.0), (1.0, 3.0))
    found = descend(model, objective, 30, rate=0.25, every=10)
    share = 0.25 * 2.0  # eta h: cost eta^2 h g^2 / 2 over descent g^2 (eta - eta^2 h / 2)
    assert found.dimensionless == pytest.approx(share / 2 / (1 - share / 2), rel=1e-6)


def test_the_spectral_norm_counts_negative_curvature():
    model, objective = quadratic((1.0, -6.0), (1.0, 0.01))
    assert descend(model, objective, 2, every=1).sharpness == pytest.approx(np.full(3, 6.0))


def linear_regression():
    torch.manual_seed(0)
    inputs, targets = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 1, dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False).double()
    return model, inputs, targets, fs.Objective(model, [(inputs, targets)], criterion=nn.functional.mse_loss)


def test_minibatch_gradients_exceed_the_full_one_by_the_noise_over_the_batch():
    model, inputs, targets, objective = linear_regression()
    start = copy.deepcopy(model.state_dict())

    def one_step(rows, gradient):
        model.load_state_dict(start)
        sum_ = fs.Difficulty(objective, gradient=gradient, every=1)
        sum_.step(0)
        model.zero_grad()
        F.mse_loss(model(inputs[rows]), targets[rows]).backward()
        sum_.step(1, lr=1.0)
        return sum_.result

    single = [one_step([row], "minibatch").gradient_squares[0] for row in range(6)]
    per_sample = []
    for row in range(6):
        model.load_state_dict(start)
        model.zero_grad()
        F.mse_loss(model(inputs[[row]]), targets[[row]]).backward()
        per_sample.append(model.weight.grad.flatten().numpy().copy())
    mean = np.mean(per_sample, axis=0)
    noise = np.mean(np.sum((np.array(per_sample) - mean) ** 2, axis=1))
    assert np.mean(single) == pytest.approx(np.sum(mean**2) + noise, rel=1e-12)
    pairs = [one_step(list(rows), "minibatch").gradient_squares[0] for rows in itertools.product(range(6), repeat=2)]
    assert np.mean(pairs) == pytest.approx(np.sum(mean**2) + noise / 2, rel=1e-12)
    full = one_step([0], "full")
    assert full.gradient_squares[0] == pytest.approx(np.sum(mean**2), rel=1e-12)
    assert (full.gradient, one_step([0], "minibatch").gradient) == ("full", "minibatch")
    assert "tr Sigma / B" in " ".join(one_step([0], "minibatch").notes)


def training(sums, steps=80, rate=0.05, seed=0):
    torch.manual_seed(seed)
    model = zoo.mlp()
    objective = fs.Objective(model, zoo.digits(samples=256), criterion=F.cross_entropy)
    inputs, targets = (torch.cat([batch[part] for batch in zoo.digits()]) for part in (0, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(seed)
    found = [make(objective) for make in sums]
    for each in found:
        each.step(0)
    for step in range(1, steps + 1):
        rows = torch.randint(len(inputs), (64,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(inputs[rows]), targets[rows]).backward()
        optimizer.step()
        for each in found:
            each.step(step, optimizer=optimizer)
    return model, [each.finish() for each in found]


def test_warm_starts_need_half_the_products_at_equal_residual():
    _, (warm, cold) = training(
        [
            lambda objective: fs.Difficulty(objective, every=8, method="graph"),
            lambda objective: fs.Difficulty(objective, every=8, method="graph", warm=False),
        ]
    )
    assert np.all(warm.residuals <= 0.01 * warm.sharpness)
    assert 2 * warm.products[1:].sum() <= cold.products[1:].sum()
    assert warm.value == pytest.approx(cold.value, rel=0.01)


def test_the_user_s_model_and_process_are_left_alone(bn_net, bn_objective, untouched):
    with untouched(bn_net):
        sum_ = fs.Difficulty(bn_objective, every=1)
        sum_.step(0)
        sum_.step(1, lr=0.1)
        with pytest.raises(ValueError, match="lr"):
            sum_.step(2)


def test_results_are_saved_shown_and_drawn(tmp_path):
    model, objective = quadratic()
    found = descend(model, objective, 6, every=2)
    again = fs.load(found.save(tmp_path / "difficulty"))
    assert isinstance(again, DifficultyResult)
    assert again.value == found.value
    assert np.array_equal(again.sharpness, found.sharpness)
    assert "O(w0)" in str(found)
    assert found.to_json()
    assert found.plot().get_title()
    figure = found.section().figures[0]
    figure.draw(list(mpl.figure.Figure().subplots(1, 3)))
    estimates = DifficultyResult.over_seeds([found, again])
    assert estimates["value"].interval == (found.value, found.value)


def test_gradients_may_be_given_and_a_diverged_run_has_nan():
    model, objective = quadratic()
    sum_ = fs.Difficulty(objective, every=1)
    sum_.step(0)
    sum_.step(1, lr=0.5, gradient_squared=torch.tensor(3.0))
    assert sum_.result.value == pytest.approx(0.5 * 3 * 4, rel=1e-4)
    with torch.no_grad():
        model.weight.fill_(float("nan"))
    sum_.step(2, lr=0.5, gradient_squared=float("nan"))
    assert np.isnan(sum_.result.value)
    assert "has not fallen" in " ".join(sum_.result.notes)


def test_bad_input_is_named():
    model, objective = quadratic()
    for settings, words in (
        ({"every": 0}, "every"),
        ({"gradient": "whole"}, "gradient"),
        ({"tolerance": 1.0}, "tolerance"),
        ({"operator": "fisher"}, "operator"),
    ):
        with pytest.raises(ValueError, match=words):
            fs.Difficulty(objective, **settings)
    with pytest.raises(TypeError, match="objective"):
        fs.Difficulty(model)
    sum_ = fs.Difficulty(objective)
    with pytest.raises(ValueError, match="no spectral norm"):
        _ = sum_.result
    sum_.step(0)
    with pytest.raises(ValueError, match="zero_grad"):
        sum_.step(1, lr=0.1)
    with pytest.raises(ValueError, match="one more than the last"):
        sum_.step(5, lr=0.1)
