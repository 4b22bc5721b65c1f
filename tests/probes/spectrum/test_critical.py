"""Critical curvatures: the companion matrix of an update has spectral radius one there, and real optimizers turn there."""

import math

import numpy as np
import pytest
import torch

from fastscape.probes.spectrum import critical as stability

RATES = (1e-3, 0.1, 3.0)
BETAS = (0.0, 0.5, 0.9, 0.99)


def gd(a, rate, beta, extra):
    return np.array([[1 - rate * a]])


def polyak(a, rate, beta, damp):
    return np.array([[beta, (1 - damp) * a], [-rate * beta, 1 - rate * (1 - damp) * a]])


def nesterov(a, rate, beta, extra):
    return np.array([[beta, a], [-rate * beta * beta, 1 - rate * (a + beta * a)]])


def averaged(a, rate, beta, decay):
    return np.array([[beta, (1 - beta) * a], [-rate * beta, 1 - rate * decay - rate * (1 - beta) * a]])


def nadam(a, rate, beta, extra):
    mu, following, product = 0.7 * beta, 0.8 * beta, 0.3 * beta
    p, q = (1 - mu) / (1 - product), following / (1 - product * following)
    return np.array([[beta, (1 - beta) * a], [-rate * q * beta, 1 - rate * (p * a + q * (1 - beta) * a)]])


UPDATES = {
    "gradient descent": (gd, lambda r, b, x: stability.gradient_descent(r), (0.0,)),
    "polyak": (polyak, lambda r, b, x: stability.polyak(r, b, x), (0.0, 0.3, 0.9)),
    "nesterov": (nesterov, lambda r, b, x: stability.nesterov(r, b), (0.0,)),
    "averaged": (averaged, lambda r, b, x: stability.averaged_momentum(r, b, x), (0.0, 0.01, 0.5)),
    "nadam": (nadam, lambda r, b, x: stability.nadam(r, b, 0.7 * b, 0.8 * b, 0.3 * b), (0.0,)),
}


def radius(matrix):
    return float(np.abs(np.linalg.eigvals(matrix)).max())


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("beta", BETAS)
def test_the_spectral_radius_is_one_at_the_critical_curvature_and_crosses_it_there(name, rate, beta):
    update, critical, extras = UPDATES[name]
    for extra in extras:
        a = critical(rate, beta, extra)
        assert radius(update(a, rate, beta, extra)) == pytest.approx(1, abs=1e-12)
        assert radius(update(a * (1 - 1e-3), rate, beta, extra)) < 1
        assert radius(update(a * (1 + 1e-3), rate, beta, extra)) > 1


def test_the_table_of_thresholds():
    eta, b = 0.3, 0.9
    assert stability.gradient_descent(eta) == pytest.approx(2 / eta, rel=1e-15)
    assert stability.polyak(eta, b, 0.4) == pytest.approx((2 + 2 * b) / (eta * 0.6), rel=1e-15)
    assert stability.nesterov(eta, b) == pytest.approx((2 + 2 * b) / (eta * (1 + 2 * b)), rel=1e-15)
    assert stability.averaged_momentum(eta, b) == pytest.approx(38 / eta, rel=1e-14)
    assert stability.gradient_descent(0.0) == math.inf


OPTIMIZERS = {
    "SGD": ({}, lambda r: stability.gradient_descent(r)),
    "SGD momentum": ({"momentum": 0.9}, lambda r: stability.polyak(r, 0.9)),
    "SGD dampening": ({"momentum": 0.9, "dampening": 0.5}, lambda r: stability.polyak(r, 0.9, 0.5)),
    "SGD nesterov": ({"momentum": 0.9, "nesterov": True}, lambda r: stability.nesterov(r, 0.9)),
    "SGD decay": ({"weight_decay": 0.5}, lambda r: stability.gradient_descent(r) - 0.5),
}


def final(kind, options, curvature, steps=4000):
    """|w| after many steps on curvature w^2 / 2, from 1."""
    w = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = getattr(torch.optim, kind)([w], **options)
    for _ in range(steps):
        w.grad = curvature * w.detach()
        optimizer.step()
        if not 1e-30 < abs(float(w.detach())) < 1e30:
            break
    return abs(float(w.detach()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_torch_diverges_just_above_and_converges_just_below(name):
    options, critical = OPTIMIZERS[name]
    a = critical(0.1)
    assert final("SGD", {"lr": 0.1, **options}, a * 1.01) > 10
    assert final("SGD", {"lr": 0.1, **options}, a * 0.99) < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stability.gradient_descent(-0.1), "learning_rate must be finite and not negative, got -0.1"),
        (lambda: stability.gradient_descent(math.nan), "learning_rate must be finite"),
        (lambda: stability.polyak(0.1, 1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda: stability.polyak(0.1, 0.9, 1.0), "dampening must be below 1, got 1.0"),
        (lambda: stability.averaged_momentum(0.1, 0.9, 20.0), "decay must lie in"),
    ],
)
def test_values_outside_their_range_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_relations_never_say_unstable():
    assert [stability.relation(r) for r in (0.5, 1.02, 1.5)] == [
        "below the full-batch edge",
        "at the full-batch edge",
        "above the full-batch edge",
    ]
    assert stability.relation(math.nan).startswith("unknown")
