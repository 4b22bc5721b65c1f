"""Functions of one tensor: pointwise ones and softmax. The hot ones are kernels of :mod:`fastscape.ops`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscape.differences.algebra import (
    each,
    exponential,
    fitted,
    logarithm,
    narrow_points,
    plus,
    product,
    root_between,
    scaled,
    smooth,
    square,
    total,
)
from fastscape.differences.layout import flat, unflat
from fastscape.differences.rules.table import aten, negative, rule, triple
from fastscape.differences.triple import LEAD, Frame, Triple
from fastscape.ops import pointwise_difference, softmax_difference

Lanes = Tensor | None


# ---------------------------------------------------------------- pointwise
def pointwise(frame: Frame, x: Triple, kind: str, *options: float) -> Lanes:
    """Lanes of a pointwise function by the fused kernel."""
    if x.lanes is None:
        return None
    base, lanes, last = flat(x)
    return unflat(pointwise_difference(base, lanes, frame.radii, kind, list(options)), last)  # type: ignore[arg-type]


def _simple(kind: str, *names: str, piecewise: bool = False) -> None:
    targets = [getattr(aten, name).default for name in names]

    def apply(frame: Frame, y: Tensor, x: Triple) -> Lanes:
        return pointwise(frame, x, kind)

    rule(*targets, piecewise=piecewise)(apply)


for _kind in ("relu", "hardsigmoid", "hardswish"):
    _simple(_kind, _kind, piecewise=True)
for _kind in ("tanh", "sigmoid", "silu", "exp"):
    _simple(_kind, _kind)


@rule(aten.abs.default, piecewise=True)
def _absolute(frame: Frame, y: Tensor, x: Triple) -> Lanes:
    """|x|; of complex numbers the root of the squares of both parts."""
    if not x.x.is_complex():
        return pointwise(frame, x, "abs")
    if x.lanes is None:
        return None
    parts = [Triple(part(x.x), part(x.lanes)) for part in (torch.real, torch.imag)]
    squares = [Triple(part.x.square(), square(frame, part)) for part in parts]
    summed = Triple(squares[0].x + squares[1].x, plus(squares[0], squares[1]))
    ends = zip(*(narrow_points(frame, part, part.lanes.dtype) for part in parts), strict=True)  # type: ignore[union-attr]
    return root_between(frame, summed, *(torch.hypot(left, right) for left, right in ends))


@rule(aten.gelu.default)
def _gelu(frame: Frame, y: Tensor, x: Triple, *, approximate: str = "none") -> Lanes:
    return pointwise(frame, x, "gelu_tanh" if approximate == "tanh" else "gelu")


@rule(aten.leaky_relu.default, piecewise=True)
def _leaky_relu(frame: Frame, y: Tensor, x: Triple, slope: float = 0.01) -> Lanes:
    return pointwise(frame, x, "leaky_relu", slope)


@rule(aten.rrelu.default, piecewise=True)
def _rrelu(frame: Frame, y: Tensor, x: Triple, low: float = 1 / 8, high: float = 1 / 3, train: bool = False, *_: Any) -> Any:
    return NotImplemented if train else pointwise(frame, x, "leaky_relu", (low + high) / 2)


@rule(aten.rrelu_with_noise.default, piecewise=True)
def _rrelu_in_pieces(
    frame: Frame, y: Tensor, x: Triple, _noise: Any, low: float = 1 / 8, high: float = 1 / 3, train: bool = False, *_: Any
) -> Any:
    return _rrelu(frame, y, x, low, high, train)


def _stepwise(name: str) -> None:
    """Functions that are constant between jumps: plain differences, of which nothing is lost."""
    target = getattr(aten, name).default

    @rule(target, piecewise=True)
    def apply(frame: Frame, y: Tensor, x: Triple) -> Lanes:
        if x.lanes is None or frame.jet:
            return None
        here, up, down = (target(side) for side in frame.points(x))
        return frame.from_points(here, up, down, x.lanes.dtype)


for _kind in ("sign", "sgn", "round", "floor", "ceil", "trunc"):
    _stepwise(_kind)


def _clamped(frame: Frame, x: Triple, low: float, high: float) -> Lanes:
    """x between two bounds; the upper one everywhere if the bounds are the wrong way round."""
    return None if low > high else pointwise(frame, x, "clamp", low, high)


@rule(aten.clamp.default, aten.clip.default, piecewise=True)
def _clamp(frame: Frame, y: Tensor, x: Triple, low: float | None = None, high: float | None = None) -> Lanes:
    return _clamped(frame, x, -math.inf if low is None else low, math.inf if high is None else high)


@rule(aten.hardtanh.default, piecewise=True)
def _hardtanh(frame: Frame, y: Tensor, x: Triple, low: float = -1.0, high: float = 1.0) -> Lanes:
    return _clamped(frame, x, low, high)


@rule(aten.clamp_min.default, piecewise=True)
def _clamp_min(frame: Frame, y: Tensor, x: Triple, low: float) -> Lanes:
    return pointwise(frame, x, "clamp", low, math.inf)


@rule(aten.clamp_max.default, piecewise=True)
def _clamp_max(frame: Frame, y: Tensor, x: Triple, high: float) -> Lanes:
    return pointwise(frame, x, "clamp", -math.inf, high)


@rule(aten.relu6.default, piecewise=True)
def _relu6(frame: Frame, y: Tensor, x: Triple) -> Lanes:
    return pointwise(frame, x, "clamp", 0.0, 6.0)


@rule(aten.elu.default, piecewise=True)
def _elu(frame: Frame, y: Tensor, x: Triple, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Lanes:
    return pointwise(frame, x, "elu", alpha, scale, input_scale)


@rule(aten.selu.default, piecewise=True)
def _selu(frame: Frame, y: Tensor, x: Triple) -> Lanes:
    return pointwise(frame, x, "elu", 1.6732632423543772, 1.0507009873554805, 1.0)


@rule(aten.celu.default, piecewise=True)
def _celu(frame: Frame, y: Tensor, x: Triple, alpha: float = 1.0) -> Lanes:
    return pointwise(frame, x, "elu", alpha, 1.0, 1.0 / alpha)


_LINEAR = 20.0  # torch's default, where the difference is 2e-9


@rule(aten.softplus.default)
def _softplus(frame: Frame, y: Tensor, x: Triple, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """log(1 + exp(beta x)) / beta, which torch's line beyond the threshold differs from by exp(-threshold) / beta."""
    return pointwise(frame, x, "softplus", beta) if beta > 0 and threshold >= _LINEAR else NotImplemented


@rule(aten.log_sigmoid.default, aten.log_sigmoid_forward.default)
def _log_sigmoid(frame: Frame, y: Any, x: Triple) -> Any:
    turned = Triple(-x.x, None if x.lanes is None else -x.lanes)
    lanes = scaled(pointwise(frame, turned, "softplus", 1.0), -1.0)
    return (lanes, None) if isinstance(y, (tuple, list)) else lanes


@rule(aten.mish.default)
def _mish(frame: Frame, y: Tensor, x: Triple) -> Lanes:
    return pointwise(frame, x, "mish")


@rule(aten.prelu.default, aten._prelu_kernel.default, piecewise=True)
def _prelu(frame: Frame, y: Tensor, x: Triple, slope: Any) -> Lanes:
    slope = triple(slope, y)
    if slope.ndim == 1 and slope.x.numel() > 1 and x.ndim > 2:
        tail = [1] * (x.ndim - 2)
        slope = Triple(slope.x.reshape(-1, *tail), each(lambda rows: rows.reshape(*rows.shape, *tail), slope.lanes))
    rising = pointwise(frame, x, "relu")
    falling = Triple(-(-x.x).relu(), plus(x, Triple(x.x, rising), -1))
    return total(rising, product(frame, falling, slope))


def _quadrature(
    name: str, f: Callable[[Tensor], Tensor], first: Callable[[Tensor], Tensor], second: Callable[[Tensor], Tensor]
) -> None:
    def apply(frame: Frame, y: Tensor, x: Triple) -> Lanes:
        return smooth(frame, x, f, first, second)

    rule(getattr(aten, name).default)(apply)


_quadrature("sin", torch.sin, torch.cos, lambda t: -t.sin())
_quadrature("cos", torch.cos, lambda t: -t.sin(), lambda t: -t.cos())
_ROOT = 2 / math.sqrt(math.pi)
_quadrature("erf", torch.erf, lambda t: _ROOT * (-t * t).exp(), lambda t: -2 * _ROOT * t * (-t * t).exp())
_quadrature("atan", torch.atan, lambda t: 1 / (1 + t * t), lambda t: -2 * t / (1 + t * t) ** 2)
_quadrature("sinh", torch.sinh, torch.cosh, torch.sinh)
_quadrature("cosh", torch.cosh, torch.sinh, torch.cosh)
_quadrature("erfc", torch.erfc, lambda t: -_ROOT * (-t * t).exp(), lambda t: 2 * _ROOT * t * (-t * t).exp())
_quadrature("asinh", torch.asinh, lambda t: (t * t + 1).rsqrt(), lambda t: -t * (t * t + 1) ** -1.5)


@rule(aten.log.default)
def _log(frame: Frame, y: Tensor, x: Triple) -> Lanes:
    return logarithm(frame, x)


@rule(aten.log1p.default)
def _log1p(frame: Frame, y: Tensor, x: Triple) -> Lanes:
    return logarithm(frame, Triple(x.x + 1, x.lanes))


@rule(aten.log2.default)
def _log2(frame: Frame, y: Tensor, x: Triple) -> Lanes:
    return scaled(logarithm(frame, x), 1 / math.log(2))


@rule(aten.log10.default)
def _log10(frame: Frame, y: Tensor, x: Triple) -> Lanes:
    return scaled(logarithm(frame, x), 1 / math.log(10))


@rule(aten.logit.default, piecewise=True)
def _logit(frame: Frame, y: Tensor, x: Triple, eps: float | None = None) -> Lanes:
    """log(x / (1 - x)), with x clamped to [eps, 1 - eps] if asked."""
    if eps is not None:
        x = Triple(x.x.clamp(eps, 1 - eps), _clamped(frame, x, eps, 1 - eps))
    other = Triple(1 - x.x, scaled(x.lanes, -1.0))
    return total(logarithm(frame, x), scaled(logarithm(frame, other), -1.0))


@rule(aten.exp2.default)
def _exp2(frame: Frame, y: Tensor, x: Triple) -> Lanes:
    return exponential(frame, Triple(x.x * math.log(2), scaled(x.lanes, math.log(2))))


@rule(aten.glu.default)
def _glu(frame: Frame, y: Tensor, x: Triple, dim: int = -1) -> Lanes:
    """u sigmoid(v) for the halves u and v of x."""
    at = negative(dim, x.ndim)
    lanes = (None, None) if x.lanes is None else x.lanes.chunk(2, at)
    u, v = (Triple(*half) for half in zip(x.x.chunk(2, at), lanes, strict=True))
    return product(frame, u, Triple(v.x.sigmoid(), pointwise(frame, v, "sigmoid")))


def _shifted_kink(frame: Frame, x: Triple, low: float, high: float) -> Lanes:
    """x outside [low, high], zero shifts inside: x - clamp(x, low, high)."""
    return total(x.lanes, scaled(pointwise(frame, x, "clamp", low, high), -1.0))


@rule(aten.softshrink.default, piecewise=True)
def _softshrink(frame: Frame, y: Tensor, x: Triple, bound: float = 0.5) -> Lanes:
    return _shifted_kink(frame, x, -bound, bound)


@rule(aten.expm1.default)
def _expm1(frame: Frame, y: Tensor, x: Triple) -> Lanes:
    return exponential(frame, x)


# ---------------------------------------------------------------- softmax
def softmax_lanes(frame: Frame, x: Triple) -> Lanes:
    """Lanes of the softmax over the last axis; rows that are masked throughout do not move."""
    if x.lanes is None:
        return None
    width = x.shape[-1]
    out = softmax_difference(x.x.reshape(-1, width), x.lanes.reshape(*x.lanes.shape[:LEAD], -1, width), frame.radii)
    return out.reshape(*out.shape[:LEAD], *x.shape)


def last(x: Triple, dim: int) -> Triple:
    """A triple with one axis moved to the end."""
    at = negative(dim, x.ndim)
    return x if at == -1 else Triple(x.x.movedim(at, -1), None if x.lanes is None else x.lanes.movedim(at, -1))


@rule(aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)
def _softmax(frame: Frame, y: Tensor, x: Triple, dim: int, *_: Any, **__: Any) -> Lanes:
    if not x.ndim:
        return None
    lanes = softmax_lanes(frame, last(x, dim))
    return None if lanes is None else lanes.movedim(-1, negative(dim, x.ndim))


_PLAIN = 1.0  # displacements from which on float64 differences of logarithms lose nothing


def _relative(frame: Frame, x: Triple) -> tuple[Tensor, Tensor, Tensor]:
    """Lanes of the last axis relative to its largest entry, of that entry, and of log sum exp relative to it."""
    assert x.lanes is not None
    top = x.x.argmax(-1, keepdim=True)
    best = x.lanes.gather(-1, top.expand(*x.lanes.shape[:LEAD], *top.shape))
    beside = Triple(x.x - x.x.gather(-1, top), x.lanes - best)
    summed = each(lambda rows: rows.sum(-1, keepdim=True), pointwise(frame, beside, "exp"))
    grown = logarithm(frame, Triple(beside.x.exp().sum(-1, keepdim=True), summed))
    assert beside.lanes is not None
    assert grown is not None
    if frame.jet:
        return beside.lanes, best, grown
    up, down = frame.steps(beside)
    far = torch.maximum(up.abs(), down.abs()).amax(-1, keepdim=True) > _PLAIN
    if bool(far.any()):  # another entry may be the largest there, by more than exponentials hold
        here, plus, minus = (point.logsumexp(-1, keepdim=True) for point in frame.points(beside))
        grown = torch.where(far.unsqueeze(1), frame.from_points(here, plus, minus, grown.dtype), grown)
    return beside.lanes, best, grown


@rule(aten.logsumexp.default)
def _logsumexp(frame: Frame, y: Tensor, x: Triple, dim: Any, keepdim: bool = False) -> Any:
    if x.lanes is None:
        return None
    dims = [dim] if isinstance(dim, int) else list(dim)
    if len(dims) != 1:
        return NotImplemented
    _, best, grown = _relative(frame, last(x, dims[0]))
    lanes = total(best, grown)
    assert lanes is not None
    return lanes.movedim(-1, negative(dims[0], x.ndim)) if keepdim else lanes.squeeze(-1)


@rule(aten.logaddexp.default)
def _logaddexp(frame: Frame, y: Tensor, x: Any, u: Any) -> Any:
    """u + softplus(x - u)."""
    left, right = triple(x, y), triple(u, y)
    gap = Triple(left.x - right.x, plus(left, right, -1))
    return total(fitted(right.lanes, y.shape), fitted(pointwise(frame, gap, "softplus", 1.0), y.shape))


def log_softmax_lanes(frame: Frame, x: Triple) -> Lanes:
    """Lanes of the logarithm of the softmax over the last axis.

    Relative to the largest entry: a logarithm near 0, of a class that the model is sure of, keeps all its digits.
    """
    if x.lanes is None:
        return None
    beside, _, grown = _relative(frame, x)
    return total(beside, fitted(scaled(grown, -1.0), x.shape))


@rule(aten.log_softmax.int, aten._log_softmax.default)
def _log_softmax(frame: Frame, y: Tensor, x: Triple, dim: int, *_: Any, **__: Any) -> Lanes:
    lanes = log_softmax_lanes(frame, last(x, dim)) if x.ndim else None
    return None if lanes is None else lanes.movedim(-1, negative(dim, x.ndim))
