"""Pointwise functions as pieces: Taylor coefficients of each, jumps between them, asymptotes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal[
    "abs", "clamp", "elu", "exp", "gelu", "gelu_tanh", "hardsigmoid", "hardswish", "leaky_relu", "mish", "relu", "sigmoid",
    "silu", "softplus", "tanh",
]  # fmt: skip
Jump = tuple[float, Callable[[Tensor], Tensor]]
ORDER = 10
SWITCH = 1 / 32  # largest displacement, in units of the function's own scale, that the series takes
_FAR = 40.0  # exp(-FAR^2 / 2) is zero in float64


@dataclass(frozen=True)
class Rule:
    """A function with its options.

    Attributes:
        series: Taylor coefficients t_1, t_2, ... at x of the piece that holds x (the left one at a breakpoint).
        grows: whether f is unbounded to the left and to the right.
        jumps: breakpoints, each with the right piece minus the left one as a function of the distance to the breakpoint.
        rest: f without ``ramp relu(x) + step [x > 0]``; None where the series is finite, hence exact for any displacement.
        ramp: slope of f at infinity.
        step: what the right asymptote is above the left one at 0.
        stretch: 1 / the length on which f changes.
    """

    series: Callable[[Tensor], Sequence[Tensor]]
    grows: tuple[bool, bool]
    jumps: Sequence[Jump] = ()
    rest: Callable[[Tensor], Tensor] | None = None
    ramp: float = 0.0
    step: float = 0.0
    stretch: float = 1.0


def _linear(left: float, corners: Sequence[tuple[float, float]]) -> Rule:
    """A continuous piecewise linear function: slope of the leftmost piece, breakpoints with the slopes to their right."""

    def series(x: Tensor) -> list[Tensor]:
        slope = torch.full_like(x, left)
        for point, right in corners:
            slope = torch.where(x > point, right, slope)
        return [slope]

    def bend(change: float) -> Callable[[Tensor], Tensor]:
        return lambda z: change * z

    slopes = [left, *(right for _, right in corners)]
    jumps = [(point, bend(right - before)) for (point, right), before in zip(corners, slopes, strict=False)]
    return Rule(series, (slopes[0] != 0, slopes[-1] != 0), jumps)


def _clamp(low: float, high: float) -> Rule:
    ends = [(point, slope) for point, slope in ((low, 1.0), (high, 0.0)) if math.isfinite(point)]
    return _linear(0.0 if math.isfinite(low) else 1.0, ends)


def _hardswish() -> Rule:
    def series(x: Tensor) -> list[Tensor]:
        middle = (x > -3) & ~(x > 3)
        return [torch.where(middle, (2 * x + 3) / 6, (x > 3).to(x)), torch.where(middle, 1 / 6, torch.zeros_like(x))]

    return Rule(series, (False, True), ((-3.0, lambda z: z * (z - 3) / 6), (3.0, lambda z: -z * (z + 3) / 6)))


def _elu(alpha: float, scale: float, input_scale: float) -> Rule:
    height, kink = alpha * scale, scale * (1 - alpha * input_scale)

    def series(x: Tensor) -> list[Tensor]:
        right, value = x > 0, height * torch.exp(input_scale * x.clamp(max=0))
        powers = [input_scale**j / math.factorial(j) for j in range(1, ORDER + 1)]
        return [torch.where(right, scale if j == 0 else 0.0, value * power) for j, power in enumerate(powers)]

    def jump(z: Tensor) -> Tensor:
        """``scale z - height expm1(input_scale z)`` for small z."""
        w = (input_scale * z).clamp(-0.5, 0.5)
        beyond = torch.zeros_like(w)
        for j in range(16, 2, -1):
            beyond = (1 + beyond) * w / j
        return kink * z - height * (1 + beyond) * w * w / 2

    def rest(x: Tensor) -> Tensor:
        return height * torch.exp(input_scale * x.clamp(max=0))

    return Rule(series, (False, True), ((0.0, jump),), rest, scale, 0.0, input_scale)


def _with_factor(x: Tensor, factor: Sequence[Tensor]) -> list[Tensor]:
    """Coefficients t_1, ... of x g(x) from those of g, from t_0 on."""
    return [x * factor[j] + factor[j - 1] for j in range(1, len(factor))]


def _tanh_series(value: Tensor, slope: Tensor, inner: Sequence[Tensor | float]) -> list[Tensor]:
    """Coefficients t_0, ... of w = tanh(g) from w, 1 - w^2 and the coefficients of g', by w' = (1 - w^2) g'."""
    series, squares = [value], [slope]
    for j in range(ORDER):
        terms = [inner[i] * squares[j - i] for i in range(min(j + 1, len(inner)))]
        series.append(sum(terms[1:], terms[0]) / (j + 1))
        products = [series[i] * series[j + 1 - i] for i in range(j + 2)]
        squares.append(-sum(products[1:], products[0]))
    return series


def _logistic(x: Tensor, inner: Sequence[Tensor | float] = (1.0,)) -> list[Tensor]:
    """Coefficients t_0, ... of the sigmoid of x, or of g where x is its value and ``inner`` the coefficients of g'."""
    near = torch.sigmoid(-x.abs())  # the smaller of sigmoid(x) and sigmoid(-x), with all its digits
    far = torch.sigmoid(x.abs())
    half = _tanh_series(torch.tanh(x / 2), 4 * near * far, [0.5 * term for term in inner])
    return [torch.where(x > 0, far, near), *(term / 2 for term in half[1:])]


def _tanh() -> Rule:
    def series(x: Tensor) -> list[Tensor]:
        near = torch.sigmoid(-2 * x.abs())
        return _tanh_series(torch.tanh(x), 4 * near * torch.sigmoid(2 * x.abs()), (1.0,))[1:]

    def rest(x: Tensor) -> Tensor:
        return torch.where(x > 0, -2.0, 2.0) * torch.sigmoid(-2 * x.abs())

    return Rule(series, (False, False), (), rest, 0.0, 2.0)


def _sigmoid() -> Rule:
    def rest(x: Tensor) -> Tensor:
        return torch.where(x > 0, -1.0, 1.0) * torch.sigmoid(-x.abs())

    return Rule(lambda x: _logistic(x)[1:], (False, False), (), rest, 0.0, 1.0)


def _silu() -> Rule:
    def rest(x: Tensor) -> Tensor:
        return -x.abs() * torch.sigmoid(-x.abs())

    return Rule(lambda x: _with_factor(x, _logistic(x)), (True, True), (), rest, 1.0)


def _softplus(beta: float) -> Rule:
    def series(x: Tensor) -> list[Tensor]:
        return [term * (beta**j / (j + 1)) for j, term in enumerate(_logistic(beta * x)[:ORDER])]

    def rest(x: Tensor) -> Tensor:
        small: Tensor = torch.log1p(torch.exp(-(beta * x).abs()))
        return small / beta

    return Rule(series, (False, True), (), rest, 1.0, 0.0, beta)


def _gelu() -> Rule:
    def series(x: Tensor) -> list[Tensor]:
        x = x.clamp(-_FAR, _FAR)
        density = torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        normal, before, here = [torch.special.erfc(-x / math.sqrt(2)) / 2], torch.zeros_like(x), density
        for j in range(1, ORDER + 1):
            normal.append(here / math.factorial(j))
            before, here = here, -x * here - (j - 1) * before
        return _with_factor(x, normal)

    def rest(x: Tensor) -> Tensor:
        tail: Tensor = torch.special.erfc(x.abs() / math.sqrt(2)) / 2
        return -x.abs() * tail

    return Rule(series, (True, True), (), rest, 1.0)


def _gelu_tanh() -> Rule:
    slope, cube = 2 * math.sqrt(2 / math.pi), 0.044715

    def inside(x: Tensor) -> Tensor:
        return slope * x * (1 + cube * x * x)

    def series(x: Tensor) -> list[Tensor]:
        x = x.clamp(-_FAR, _FAR)
        inner = [slope * (1 + 3 * cube * x * x), slope * 6 * cube * x, torch.full_like(x, slope * 3 * cube)]
        return _with_factor(x, _logistic(inside(x), inner))

    def rest(x: Tensor) -> Tensor:
        return -x.abs() * torch.sigmoid(-inside(x.abs()))

    return Rule(series, (True, True), (), rest, 1.0)


def _mish() -> Rule:
    def factor(x: Tensor) -> tuple[Tensor, Tensor]:
        """``tanh(softplus(x))`` and its distance from 1."""
        small, large = torch.exp(x.clamp(max=0)), torch.exp(-x.clamp(min=0))
        left, right = small * (small + 2), 1 + 2 * large
        below = torch.where(x > 0, 2 * large * large, 2.0)
        whole = torch.where(x > 0, right, left)
        return whole / (whole + below), below / (whole + below)

    def series(x: Tensor) -> list[Tensor]:
        x = x.clamp(-800, 800)
        value, distance = factor(x)
        return _with_factor(x, _tanh_series(value, distance * (1 + value), _logistic(x)))

    def rest(x: Tensor) -> Tensor:
        value, distance = factor(x)
        return torch.where(x > 0, -x * distance, x * value)

    return Rule(series, (True, True), (), rest, 1.0)


def _exp() -> Rule:
    def series(x: Tensor) -> list[Tensor]:
        return [torch.exp(x) / math.factorial(j) for j in range(1, ORDER + 1)]

    return Rule(series, (False, True), (), torch.exp)


RULES: Mapping[str, Callable[..., Rule]] = {
    "abs": lambda: _linear(-1.0, [(0.0, 1.0)]),
    "clamp": _clamp,
    "elu": _elu,
    "exp": _exp,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "hardsigmoid": lambda: _linear(0.0, [(-3.0, 1 / 6), (3.0, 0.0)]),
    "hardswish": _hardswish,
    "leaky_relu": lambda slope: _linear(slope, [(0.0, 1.0)]),
    "mish": _mish,
    "relu": lambda: _linear(0.0, [(0.0, 1.0)]),
    "sigmoid": _sigmoid,
    "silu": _silu,
    "softplus": _softplus,
    "tanh": _tanh,
}
