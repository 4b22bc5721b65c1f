"""Sums, products, quotients and powers of tensors and numbers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastscape.evaluation.differences.algebra import (
    fitted,
    plus,
    product,
    reciprocal,
    root,
    scaled,
    smooth,
    square,
)
from fastscape.evaluation.differences.rules.table import aten, rule, triple
from fastscape.evaluation.differences.triple import Decision, Frame, Triple

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


@rule(aten.sqrt.default)
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


@rule(aten.pow.Tensor_Scalar)
def _power(frame: Frame, y: Tensor, x: Triple, exponent: Number) -> Any:
    if exponent == 1:
        return x.lanes
    if exponent == 0.5:
        return root(frame, x)
    if exponent == -0.5:
        return _rsqrt(frame, y, x)
    if float(exponent).is_integer() and 2 <= exponent <= 16:
        return _whole_power(frame, x, int(exponent)).lanes
    if float(exponent).is_integer() and -16 <= exponent < 0:
        up = _whole_power(frame, x, int(-exponent))
        return reciprocal(frame, up)
    return smooth(
        frame,
        x,
        lambda t: t**exponent,
        lambda t: exponent * t ** (exponent - 1),
        lambda t: exponent * (exponent - 1) * t ** (exponent - 2),
    )


def _whole_power(frame: Frame, x: Triple, exponent: int) -> Triple:
    """x ** n by squaring."""
    if exponent == 1:
        return x
    half = _whole_power(frame, x, exponent // 2)
    even = Triple(half.x * half.x, square(frame, half))
    return Triple(even.x * x.x, product(frame, even, x)) if exponent % 2 else even
