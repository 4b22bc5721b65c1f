"""Sums, products, quotients and powers of tensors and numbers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastscape.differences.algebra import (
    exponential,
    fitted,
    logarithm,
    narrow_points,
    plus,
    powers,
    product,
    reciprocal,
    root,
    root_between,
    scaled,
    square,
    total,
)
from fastscape.differences.rules.table import aten, negative, rule, triple
from fastscape.differences.triple import LEAD, Decision, Frame, Triple

Number = int | float


def _number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _undecided(*values: Any) -> bool:
    return not any(isinstance(value, Decision) for value in values)


@rule(aten.add.Tensor, aten.add.Scalar, structure=True)
def _add(frame: Frame, y: Tensor, x: Any, u: Any, alpha: Number = 1) -> Any:
    if not _undecided(x, u):
        return NotImplemented
    if _number(u):
        return fitted(x.lanes, y.shape)
    if _number(x):
        return scaled(u.lanes, alpha)
    return plus(triple(x, y), triple(u, y), alpha)


@rule(aten.sub.Tensor, aten.sub.Scalar, structure=True)
def _subtract(frame: Frame, y: Tensor, x: Any, u: Any, alpha: Number = 1) -> Any:
    return _add(frame, y, x, u, -alpha)


@rule(aten.rsub.Tensor, aten.rsub.Scalar, structure=True)
def _subtract_from(frame: Frame, y: Tensor, x: Any, u: Any, alpha: Number = 1) -> Any:
    if not _undecided(x, u):
        return NotImplemented
    return scaled(x.lanes, -alpha) if _number(u) else plus(triple(u, y), triple(x, y), -alpha)


@rule(aten.mul.Tensor, aten.mul.Scalar)
def _multiply(frame: Frame, y: Tensor, x: Any, u: Any) -> Any:
    if not _undecided(x, u):
        return NotImplemented
    if _number(u) or _number(x):
        return scaled(x.lanes, u) if _number(u) else scaled(u.lanes, x)
    left, right = triple(x, y), triple(u, y)
    if left.base is right.base and left.lanes is right.lanes:
        return square(frame, left)
    return product(frame, left, right)


@rule(aten.square.default)
def _square(frame: Frame, y: Tensor, x: Triple) -> Tensor | None:
    return square(frame, x)


@rule(aten.reciprocal.default)
def _reciprocal(frame: Frame, y: Tensor, x: Triple) -> Tensor | None:
    return reciprocal(frame, x)


@rule(aten.div.Tensor, aten.div.Scalar, aten.true_divide.Tensor)
def _divide(frame: Frame, y: Tensor, x: Any, u: Any) -> Any:
    if not _undecided(x, u):
        return NotImplemented
    if _number(u):
        return scaled(x.lanes, 1.0 / u) if u else NotImplemented
    left, right = triple(x, y), triple(u, y)
    return product(frame, left, Triple(right.x.reciprocal(), reciprocal(frame, right)))


@rule(aten.sqrt.default, piecewise=True)  # of a square it has a kink
def _sqrt(frame: Frame, y: Tensor, x: Triple) -> Tensor | None:
    return root(frame, x)


@rule(aten.rsqrt.default)
def _rsqrt(frame: Frame, y: Tensor, x: Triple) -> Tensor | None:
    return reciprocal(frame, Triple(x.x.sqrt(), root(frame, x)))


@rule(aten.addcmul.default)
def _addcmul(frame: Frame, y: Tensor, x: Any, u: Any, v: Any, value: Number = 1) -> Any:
    left, right = triple(u, y), triple(v, y)
    both = Triple(left.x * right.x, product(frame, left, right))
    return fitted(plus(triple(x, y), both, value), y.shape)


@rule(aten.addcdiv.default)
def _addcdiv(frame: Frame, y: Tensor, x: Any, u: Any, v: Any, value: Number = 1) -> Any:
    below = triple(v, y)
    return _addcmul(frame, y, x, u, Triple(below.x.reciprocal(), reciprocal(frame, below)), value)


@rule(aten.lerp.Tensor, aten.lerp.Scalar)
def _lerp(frame: Frame, y: Tensor, x: Triple, end: Any, weight: Any) -> Any:
    step = Triple(triple(end, y).x - x.x, plus(triple(end, y), x, -1))
    part = Triple(y - x.x, product(frame, step, triple(weight, y)))
    return fitted(plus(x, part), y.shape)


_HUGE = 2.0**53  # exponents from which on every float64 is whole
_KINDS = 16  # different exponents in one tensor that are taken one by one


@rule(aten.pow.Tensor_Scalar)
def _power(frame: Frame, y: Tensor, x: Triple, exponent: Number) -> Any:
    if exponent == 1:
        return x.lanes
    if exponent == 0.5:
        return root(frame, x)
    if exponent == -0.5:
        return _rsqrt(frame, y, x)
    if exponent == 0:
        return None
    if not abs(exponent) < _HUGE:
        return NotImplemented
    if float(exponent).is_integer():
        # the reciprocal first: of a high power near its pole, value and difference cancel
        base = x if exponent > 0 else Triple(x.x.reciprocal(), reciprocal(frame, x))
        lanes = _whole_power(frame, base, int(abs(exponent))).lanes
    else:
        lanes = _by_logarithm(frame, x, Triple(torch.full_like(x.x, exponent)), y)
    return powers(frame, x, lanes, lambda side: side**exponent)


@rule(aten.pow.Tensor_Tensor, piecewise=True)
def _power_of(frame: Frame, y: Tensor, x: Any, exponent: Any) -> Any:
    x, power = triple(x, y), triple(exponent, y)
    if power.lanes is not None:
        return NotImplemented if bool((x.x < 0).any()) else _by_logarithm(frame, x, power, y)
    if x.lanes is None:
        return None
    kinds = sorted(set(power.x.flatten().tolist()))
    if len(kinds) > _KINDS:
        whole = bool((power.x == power.x.round()).any())  # any base has whole powers, but only positive ones a logarithm
        return NotImplemented if whole else _by_logarithm(frame, x, power, y)
    lanes = None
    for kind in kinds:
        one = _power(frame, y, x, kind)
        if one is NotImplemented:
            return NotImplemented
        one = fitted(one, y.shape)
        if one is not None:
            lanes = total(lanes, torch.where(power.x == kind, one, 0.0))
    return lanes


@rule(aten.pow.Scalar)
def _power_to(frame: Frame, y: Tensor, x: Number, exponent: Triple) -> Any:
    if x == 0:  # a step
        if exponent.lanes is None or frame.jet:
            return None
        here, up, down = (x**side for side in frame.points(exponent))
        return frame.from_points(here, up, down, exponent.lanes.dtype)
    if not 0 < x < math.inf:
        return NotImplemented
    rate = math.log(x)
    return exponential(frame, Triple(exponent.x * rate, scaled(exponent.lanes, rate)))


def _by_logarithm(frame: Frame, x: Triple, power: Triple, y: Tensor) -> Tensor | None:
    """exp(p log x); where x is 0, and its logarithm no number, by plain differences."""
    log = Triple(x.x.log(), logarithm(frame, x))
    lanes = exponential(frame, Triple(log.x * power.x, product(frame, log, power)))
    zero = x.x == 0
    if lanes is None or not bool(zero.any()):
        return lanes
    (base, up, down), (p, p_up, p_down) = (_everywhere(frame, value) for value in (x, power))
    points = torch.broadcast_tensors(base**p, up**p_up, down**p_down)  # type: ignore[no-untyped-call]
    plain = frame.from_points(base**p, points[1], points[2], lanes.dtype)
    return torch.where(zero, plain, lanes)


def _everywhere(frame: Frame, value: Triple) -> tuple[Tensor, Tensor, Tensor]:
    return (value.x.double(),) * 3 if value.lanes is None else frame.points(value)


@rule(aten.hypot.default, piecewise=True)
def _hypot(frame: Frame, y: Tensor, x: Any, u: Any) -> Any:
    """sqrt(x^2 + u^2)."""
    sides = [Triple(side.x.expand(y.shape), fitted(side.lanes, y.shape)) for side in (triple(x, y), triple(u, y))]
    squares = [Triple(value.x.square(), square(frame, value)) for value in sides]
    summed = Triple(squares[0].x + squares[1].x, plus(squares[0], squares[1]))
    if summed.lanes is None:
        return None
    ends = zip(*(narrow_points(frame, value, summed.lanes.dtype) for value in sides), strict=True)
    return root_between(frame, summed, *(torch.hypot(left, right) for left, right in ends))


def _multiplied(frame: Frame, factors: list[Triple]) -> Triple:
    """The product of several values, in pairs."""
    while len(factors) > 1:
        pairs = zip(factors[::2], factors[1::2], strict=False)
        odd = factors[-1:] if len(factors) % 2 else []
        factors = [Triple(x.x * u.x, product(frame, x, u)) for x, u in pairs] + odd
    return factors[0]


@rule(aten.prod.dim_int)
def _prod(frame: Frame, y: Tensor, x: Triple, dim: int, keepdim: bool = False, **_: Any) -> Any:
    if x.lanes is None:
        return None
    at = negative(dim, x.ndim)
    lanes = _multiplied(frame, [Triple(*pair) for pair in zip(x.x.unbind(at), x.lanes.unbind(at), strict=True)]).lanes
    assert lanes is not None
    return lanes.unsqueeze(at) if keepdim else lanes


@rule(aten.prod.default)
def _prod_all(frame: Frame, y: Tensor, x: Triple, **_: Any) -> Any:
    return None if x.lanes is None else _prod(frame, y, Triple(x.x.flatten(), x.lanes.flatten(LEAD)), -1)


def _whole_power(frame: Frame, x: Triple, exponent: int) -> Triple:
    """x ** n by squaring."""
    if exponent == 1:
        return x
    half = _whole_power(frame, x, exponent // 2)
    even = Triple(half.x * half.x, square(frame, half))
    return Triple(even.x * x.x, product(frame, even, x)) if exponent % 2 else even
