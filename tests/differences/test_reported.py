"""Operations at the edges of their arguments: each against float64 subtraction and against double backward."""

import math

import numpy as np
import pytest
import torch
from differences.harness import F64, problem, relative
from torch import nn
from torch.nn import functional as F

INF = math.inf
CLASS = torch.tensor([0, 2, 255])
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.2])
BELOW = torch.tensor([-INF, 0.1, -0.8, -INF])
WHOLE = torch.tensor([2.0, 3.0, -1.0, 0.0])
PLACES = torch.tensor([[0, 1, 1, 0], [2, 2, 0, 1]])


class Signed(nn.Module):
    """Three rows of four numbers of both signs, none near zero, that bend with the parameters."""

    def __init__(self):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.w = nn.Parameter(torch.randn(3, 4, generator=draw) * 0.5)
        self.v = nn.Parameter(torch.randn(4, generator=draw) * 0.5)

    def forward(self, x):
        return x + 0.2 * torch.tanh(self.w) + 0.1 * (self.w * self.v).sin()


SIGNED = torch.tensor([[1.1, -0.9, 0.7, -1.2], [-1.3, 0.8, -0.8, 1.2], [0.9, 1.4, -1.0, -0.7]])


CASES = {
    "cross-entropy, weights, ignored 255": lambda h: F.cross_entropy(h, CLASS, WEIGHT.to(h), ignore_index=255),
    "cross-entropy, weights, smoothed": lambda h: F.cross_entropy(h, CLASS, WEIGHT.to(h), ignore_index=255, label_smoothing=0.2),
    "nll, weights, ignored 255": lambda h: F.nll_loss(h.square(), CLASS, WEIGHT.to(h), ignore_index=255),
    "cross-entropy of one row": lambda h: F.cross_entropy(h[0], torch.tensor(2)),
    "cross-entropy of one row, weights": lambda h: F.cross_entropy(h[0], torch.tensor(2), WEIGHT.to(h), label_smoothing=0.1),
    "cross-entropy of one row, probabilities": lambda h: F.cross_entropy(h[0], WEIGHT.to(h) / 4),
    "nll of one row": lambda h: F.nll_loss(h[0].square(), torch.tensor(2)),
    "clamp upside down": lambda h: h.clamp(1.0, -1.0) + h.square(),
    "hardtanh": lambda h: F.hardtanh(h, -0.5, 0.25) + h.square(),
    "zero to a power": lambda h: 0.0 ** h.abs() + h.square(),
    "negative number to a power": lambda h: torch.where(torch.zeros(3, 4, dtype=torch.bool), (-2.0) ** h, h.square()),
    "softplus, low threshold": lambda h: F.softplus(h, threshold=0.5),
    "softplus, steep, low threshold": lambda h: F.softplus(h, beta=4.0, threshold=2.0),
    "softplus": lambda h: F.softplus(h, beta=3.0),
    "power 17": lambda h: h**17,
    "power 0": lambda h: h**0 + h.square(),
    "power -19": lambda h: h**-19,
    "powers of a tensor": lambda h: h**WHOLE,
    "power 0 of a tensor": lambda h: h ** torch.tensor(0.0) + h.square(),
    "power of a positive number": lambda h: 2.5**h,
    "scatter, multiply": lambda h: h.square().scatter(0, PLACES, h[1:], reduce="multiply"),
    "scatter, add": lambda h: h.square().scatter(0, PLACES, h[1:], reduce="add"),
    "scatter a number, multiply": lambda h: h.square().scatter(0, PLACES, 3.0, reduce="multiply"),
    "scatter": lambda h: h.square().scatter(0, torch.tensor([[0, 1, 2, 0]]), h[1:2]),
    "index_add": lambda h: h.square().index_add(0, torch.tensor([2, 0, 2]), h, alpha=0.5),
    "batch norm, bias only": lambda h: F.batch_norm(h.square(), None, None, None, h[0], True).exp(),
    "batch norm, weight only": lambda h: F.batch_norm(h.square(), None, None, h[0], None, True).exp(),
    "batch norm of a constant, bias only": lambda h: F.batch_norm(SIGNED.to(h), None, None, None, h[0], True).exp(),
    "T of three axes": lambda h: (h.reshape(3, 2, 2).T * torch.arange(12.0).reshape(2, 2, 3)).exp(),
    "binary cross-entropy": lambda h: F.binary_cross_entropy(h.sigmoid(), torch.tensor([0.0, 1.0, 0.3, 1.0]).expand(3, 4)),
    "binary cross-entropy, saturated": lambda h: F.binary_cross_entropy(
        torch.where(h > 0, h * 0 + 1, h.sigmoid()), torch.tensor([0.0, 1.0, 0.3, 1.0]).expand(3, 4)
    ),
}
UNDERIVED = {  # torch has no second derivative, or a wrong one, or none that is a number
    "zero to a power",
    "negative number to a power",
    "scatter, multiply",
    "scatter, add",
    "scatter a number, multiply",
    "batch norm, bias only",
    "batch norm of a constant, bias only",
}
INFINITE = {
    "maximum with minus infinity": lambda h: torch.maximum(h, BELOW).exp(),
    "minimum with infinity": lambda h: torch.minimum(h, -BELOW).exp(),
    "maximum, all minus infinity": lambda h: torch.maximum(h, torch.tensor(-INF)).exp(),
    "minimum, all infinity": lambda h: torch.minimum(h, torch.tensor(INF)).exp(),
}


def reported(function, **options):
    directions = {"w": torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)), "v": torch.ones(2, 4)}
    return problem(
        Signed(), [(SIGNED, torch.zeros(3))], count=2, loss=lambda model, batch: function(model(batch[0])).mean(),
        directions=directions, **options,
    )  # fmt: skip


def check(function, *, derived=True):
    radii = (0.0, 0.1, 0.3) if derived else (0.1, 0.3)
    case = reported(function)
    truth = [case.points(radius) for radius in radii if radius]
    if derived:
        truth.insert(0, [torch.stack(part) for part in zip(*map(case.derivatives, range(case.count)), strict=True)])
    for dtype, allowed in ((F64, 1e-9), (torch.float32, 2e-5)):
        found = case.lanes(radii, dtype)
        for j, exact in enumerate(truth):
            assert relative(found[0][:, j], exact[0]) < allowed, (dtype, radii[j])
            assert relative(found[1][:, j], exact[1]) < 10 * allowed, (dtype, radii[j])


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_responses_are_those_of_the_plain_function(name):
    check(CASES[name], derived=name not in UNDERIVED)


@pytest.mark.parametrize("name", INFINITE)
def test_an_infinite_bound_is_never_met(name):
    check(INFINITE[name])


@pytest.mark.parametrize(
    "function",
    [
        lambda h: h.square().sqrt(),
        lambda h: h.square() ** torch.tensor(0.5),
        lambda h: torch.hypot(h, h),
        lambda h: h.std(0),
        lambda h: h.norm(),
    ],
)
def test_roots_are_not_analytic(function):
    assert not reported(function).propagation.program.smooth


@pytest.mark.parametrize("function", [lambda h: h**3, lambda h: h**0, lambda h: h.var(0), lambda h: 2.0**h])
def test_polynomials_and_exponentials_are_analytic(function):
    assert reported(function).propagation.program.smooth


@pytest.mark.parametrize("function", [lambda h: h**-19, lambda h: h ** torch.tensor(-12.0), lambda h: h.square() ** -7])
def test_a_negative_power_beside_its_pole_is_as_exact_as_its_condition_allows(function):
    """At x - e d = 0.3 x the power is 1e10 times that at x, whose inverse plus its difference would cancel altogether."""
    steps = {"w": SIGNED.new_full((2, 3, 4), -0.5), "v": torch.zeros(2, 4)}
    steps["w"][1] = 0.7
    case = problem(
        Signed(),
        [(SIGNED, torch.zeros(3))],
        count=2,
        loss=lambda model, _: function(model.w.abs() + 0.5).mean(),
        directions=steps,
    )
    narrow = case.lanes((0.1, 0.3), torch.float32)
    for j, radius in enumerate((0.1, 0.3)):
        for found, exact, condition in zip(
            narrow[:2], case.points(radius), np.transpose([case.conditions(radius, k) for k in (0, 1)]), strict=True
        ):
            assert float(((found[:, j] - exact) / exact).abs().max()) < 4 * torch.finfo(torch.float32).eps * condition.max()


NEAR_ZERO = {  # functions, and the share of a number that the largest displacement is: powers leave float32 beyond
    "power -19": (lambda h: h**-19, 0.9),
    "power -12 of a tensor": (lambda h: h ** torch.tensor(-12.0), 0.9),
    "power 20": (lambda h: h**20, 0.998),
    "power 9.5": (lambda h: h**9.5, 0.998),
    "power 33.3": (lambda h: h**33.3, 0.998),
    "power 1.5": (lambda h: h**1.5, 0.998),
    "a power that moves": (lambda h: h[0] ** (9 * h[1]), 0.998),
    "exponential of a curve": (lambda h: torch.exp2(-12 * h.square()), 0.9),
    "length": (lambda h: torch.linalg.vector_norm(h, dim=-1), 0.998),
    "length of two": (lambda h: torch.hypot(h[0], h[1]), 0.998),
    "modulus": (lambda h: torch.complex(h[0], h[1]).abs(), 0.998),
    "standard deviation": (lambda h: h.std(-1), 0.998),
    "logarithm of summed exponentials": (lambda h: (300 * h).logsumexp(-1), 0.998),
    "logarithm of a softmax": (lambda h: (300 * h).log_softmax(-1)[:, 0], 0.998),
    "softmax": (lambda h: (60 * h).softmax(-1)[:, 0], 0.998),
    "cross-entropy": (lambda h: F.cross_entropy(300 * h, torch.tensor([0, 1, 2])), 0.998),
}
STRAIGHT = {"length", "length of two", "modulus", "standard deviation"}  # along a line through zero: no curvature


class Bare(nn.Module):
    """Numbers between 0.7 and 1.4."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(SIGNED.abs())

    def forward(self, x):
        return self.w


@pytest.mark.parametrize("name", NEAR_ZERO)
def test_where_a_displacement_is_nearly_all_of_a_number_lanes_are_as_exact_as_their_condition_allows(name):
    """Value and difference cancel there: x+ = x / 500 keeps few digits of a sum of powers, squares or exponentials."""
    (function, nearest), narrow = NEAR_ZERO[name], torch.finfo(torch.float32).eps
    steps = {"w": torch.stack([-SIGNED.abs(), torch.tensor([0.69, 0.05, 0.65, 0.1]).expand(3, 4)])}
    case = problem(Bare(), [(SIGNED, torch.zeros(3))], count=2, loss=lambda m, _: function(m.w).mean(), directions=steps)
    radii = (0.3, nearest)
    found, size = case.lanes(radii, torch.float32), float(function(SIGNED.abs().double()).mean().abs())
    for j, radius in enumerate(radii):
        for k in range(2):
            conditions = case.conditions(radius, k)
            for part in range(1 if name in STRAIGHT and k == 0 else 2):
                exact = float(case.points(radius)[part][k])
                subtraction = 16 * torch.finfo(F64).eps * (size + radius * abs(exact)) / radius ** (part + 1)
                allowed = 8 * narrow * max(1.0, conditions[part]) * abs(exact) + subtraction
                assert abs(float(found[part][k, j]) - exact) <= allowed
