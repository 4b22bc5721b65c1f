"""Functions of one tensor: pointwise ones, normalisations, softmax, losses. The hot ones are kernels of :mod:`fastscape.ops`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastscape.evaluation.differences.algebra import (
    each,
    exponential,
    fitted,
    logarithm,
    plus,
    product,
    scaled,
    smooth,
    square,
    total,
)
from fastscape.evaluation.differences.layout import flat, unflat
from fastscape.evaluation.differences.rules.table import aten, negative, rule, triple
from fastscape.evaluation.differences.triple import LEAD, Frame, Triple
from fastscape.ops import (
    affine_difference,
    cross_entropy_difference,
    layer_norm_difference,
    pointwise_difference,
    softmax_difference,
)

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


for _kind in ("relu", "abs", "hardsigmoid", "hardswish"):
    _simple(_kind, _kind, piecewise=True)
for _kind in ("tanh", "sigmoid", "silu", "exp"):
    _simple(_kind, _kind)


@rule(aten.gelu.default)
def _gelu(frame: Frame, y: Tensor, x: Triple, *, approximate: str = "none") -> Lanes:
    return pointwise(frame, x, "gelu_tanh" if approximate == "tanh" else "gelu")


@rule(aten.leaky_relu.default, piecewise=True)
def _leaky_relu(frame: Frame, y: Tensor, x: Triple, slope: float = 0.01) -> Lanes:
    return pointwise(frame, x, "leaky_relu", slope)


@rule(aten.clamp.default, aten.clip.default, piecewise=True)
def _clamp(frame: Frame, y: Tensor, x: Triple, low: float | None = None, high: float | None = None) -> Lanes:
    return pointwise(frame, x, "clamp", -math.inf if low is None else low, math.inf if high is None else high)


@rule(aten.hardtanh.default, piecewise=True)
def _hardtanh(frame: Frame, y: Tensor, x: Triple, low: float = -1.0, high: float = 1.0) -> Lanes:
    return pointwise(frame, x, "clamp", low, high)


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


@rule(aten.softplus.default)
def _softplus(frame: Frame, y: Tensor, x: Triple, beta: float = 1.0, threshold: float = 20.0) -> Lanes:
    return pointwise(frame, x, "softplus", beta)


@rule(aten.log_sigmoid.default, aten.log_sigmoid_forward.default)
def _log_sigmoid(frame: Frame, y: Any, x: Triple) -> Any:
    turned = Triple(-x.x, None if x.lanes is None else -x.lanes)
    lanes = scaled(pointwise(frame, turned, "softplus", 1.0), -1.0)
    return (lanes, None) if isinstance(y, tuple) else lanes


@rule(aten.mish.default)
def _mish(frame: Frame, y: Tensor, x: Triple) -> Lanes:
    return pointwise(frame, x, "mish")


@rule(aten.prelu.default, piecewise=True)
def _prelu(frame: Frame, y: Tensor, x: Triple, slope: Any) -> Lanes:
    slope = triple(slope, y)
    if slope.x.numel() > 1 and x.ndim > 2:
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


@rule(aten.log.default)
def _log(frame: Frame, y: Tensor, x: Triple) -> Lanes:
    return logarithm(frame, x)


@rule(aten.log1p.default)
def _log1p(frame: Frame, y: Tensor, x: Triple) -> Lanes:
    return logarithm(frame, Triple(x.x + 1, x.lanes))


@rule(aten.log2.default)
def _log2(frame: Frame, y: Tensor, x: Triple) -> Lanes:
    return scaled(logarithm(frame, x), 1 / math.log(2))


@rule(aten.expm1.default)
def _expm1(frame: Frame, y: Tensor, x: Triple) -> Lanes:
    return exponential(frame, x)


# ---------------------------------------------------------------- normalisations
def _rows(x: Triple, width: int) -> tuple[Tensor, Tensor]:
    """A value and its lanes as rows of ``width``."""
    assert x.lanes is not None
    return x.x.reshape(-1, width), x.lanes.reshape(*x.lanes.shape[:LEAD], -1, width)


def _direction(value: Triple | None) -> Lanes:
    """The lanes ``[K, ...]`` of a parameter used as it is."""
    return None if value is None or value.lanes is None else value.lanes[:, 0, 0].flatten(1)


def _parameter(value: Any, like: Tensor) -> Triple | None:
    return None if value is None else triple(value, like)


def _is_parameter(value: Triple | None) -> bool:
    return value is None or value.lanes is None or value.lanes.shape[1:LEAD] == (1, 1)


def _normalised(
    frame: Frame, x: Triple, weight: Triple | None, bias: Triple | None, width: int, eps: float, centred: bool
) -> Lanes:
    if x.lanes is None:
        return NotImplemented
    base, lanes = _rows(x, width)
    flat = None if weight is None else weight.base.narrow(lanes.dtype).flatten()
    out = layer_norm_difference(base, lanes, frame.radii, flat, _direction(weight), _direction(bias), eps, centred)
    return out.reshape(*out.shape[:LEAD], *x.shape)


@rule(aten.layer_norm.default)
def _layer_norm(
    frame: Frame, y: Tensor, x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Any:
    x, weight, bias = triple(x, y), _parameter(weight, y), _parameter(bias, y)
    if not (_is_parameter(weight) and _is_parameter(bias)):
        return NotImplemented
    if x.lanes is None:
        return _still_norm(y, x, weight, bias, lambda: torch.nn.functional.layer_norm(x.x, list(shape), eps=eps))
    return _normalised(frame, x, weight, bias, math.prod(shape), eps, True)


@rule(aten.native_layer_norm.default)
def _native_layer_norm(frame: Frame, y: Any, x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    out = _layer_norm(frame, y[0], x, shape, weight, bias, eps)
    return NotImplemented if out is NotImplemented else (out, None, None)


@rule(aten.rms_norm.default)
def _rms_norm(frame: Frame, y: Tensor, x: Any, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Any:
    x, weight = triple(x, y), _parameter(weight, y)
    if not _is_parameter(weight):
        return NotImplemented
    small = torch.finfo(y.dtype).eps if eps is None else eps
    if x.lanes is None:
        return _still_norm(y, x, weight, None, lambda: torch.nn.functional.rms_norm(x.x, list(shape), eps=small))
    return _normalised(frame, x, weight, None, math.prod(shape), small, False)


def _still_norm(y: Tensor, x: Triple, weight: Triple | None, bias: Triple | None, normal: Callable[[], Tensor]) -> Lanes:
    """Normalisation of an input that does not move: linear in weight and bias."""
    out = None
    if weight is not None and weight.lanes is not None:
        out = fitted(weight.lanes * normal().to(weight.lanes.dtype), y.shape)
    return total(out, None if bias is None else fitted(bias.lanes, y.shape))


def _per_channel(frame: Frame, y: Tensor, centred: Triple, scale: Triple, shift: Triple | None) -> Any:
    """scale * x + shift, one number per channel (axis 1), by the fused kernel."""
    if centred.lanes is None or not (_is_parameter(scale) and _is_parameter(shift)):
        tail = [1] * (y.ndim - 2)
        wide = [
            None if value is None else Triple(value.x.reshape(-1, *tail), each(lambda r: r.reshape(*r.shape, *tail), value.lanes))
            for value in (scale, shift)
        ]
        assert wide[0] is not None
        out = product(frame, centred, wide[0])
        return out if wide[1] is None else total(out, fitted(wide[1].lanes, y.shape))
    base, lanes, last = flat(centred)
    shape = (y.numel() // y.shape[1], y.shape[1], 1) if last else (y.shape[0], y.shape[1], math.prod(y.shape[2:]))
    out = affine_difference(
        base.reshape(shape),
        lanes.reshape(*lanes.shape[:LEAD], *shape),
        frame.radii,
        scale.base.narrow(lanes.dtype),
        _direction(scale),
        _direction(shift),
    )
    return unflat(out.reshape(*out.shape[:LEAD], *base.shape), last)


def _batch_statistics(frame: Frame, y: Tensor, x: Triple, eps: float) -> Triple:
    """(x - mean) / sqrt(var + eps) over all axes but the channels: rows of the channels, by the layer norm's rule."""
    if x.lanes is None:
        dims = (0, *range(2, x.ndim))
        var, mean = torch.var_mean(x.x, dims, unbiased=False, keepdim=True)
        return Triple((x.x - mean) * (var + eps).rsqrt())
    swapped = x.x.transpose(0, 1)
    lanes = each(lambda rows: rows.transpose(1, 2).flatten(2), x.lanes)
    flat = Triple(swapped.flatten(1), lanes)
    out = _normalised(frame, flat, None, None, flat.shape[1], eps, True)
    back = each(lambda rows: rows.reshape(len(rows), *swapped.shape).transpose(1, 2), out)
    var, mean = torch.var_mean(flat.x, 1, unbiased=False, keepdim=True)
    return Triple(((flat.x - mean) * (var + eps).rsqrt()).reshape(swapped.shape).transpose(0, 1), back)


def _batch_norm(frame: Frame, y: Tensor, x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, eps: float) -> Any:
    x, weight, bias = triple(x, y), _parameter(weight, y), _parameter(bias, y)
    if training:
        centred, scale = _batch_statistics(frame, y, x, eps), weight
    else:
        mean, var = triple(mean, y), triple(var, y)
        if mean.lanes is not None or var.lanes is not None:
            return NotImplemented
        centred = Triple(x.x - mean.x.reshape(-1, *[1] * (y.ndim - 2)), x.lanes)
        rate = (var.x + eps).rsqrt()
        scale = Triple(rate) if weight is None else Triple(weight.x * rate, scaled(weight.lanes, _like(rate, weight)))
    if scale is None:
        return centred.lanes
    if centred.lanes is None and scale.lanes is None:
        return None if bias is None or bias.lanes is None else _per_channel(frame, y, centred, scale, bias)
    return _per_channel(frame, y, centred, scale, bias)


def _like(value: Tensor, of: Triple) -> Tensor:
    return value if of.lanes is None else value.to(of.lanes.dtype)


@rule(aten.batch_norm.default)
def _batch_norm_whole(
    frame: Frame,
    y: Tensor,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    _momentum: Any,
    eps: float,
    *_: Any,
) -> Any:
    return _batch_norm(frame, y, x, weight, bias, mean, var, training, eps)


@rule(aten.native_batch_norm.default, aten._native_batch_norm_legit.default, aten._native_batch_norm_legit_functional.default)
def _native_batch_norm(
    frame: Frame, y: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, _momentum: Any, eps: float
) -> Any:
    return _first(y, _batch_norm(frame, y[0], x, weight, bias, mean, var, training, eps))


@rule(aten._native_batch_norm_legit_no_training.default)
def _native_batch_norm_running(
    frame: Frame, y: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, _momentum: Any, eps: float
) -> Any:
    return _first(y, _batch_norm(frame, y[0], x, weight, bias, mean, var, False, eps))


@rule(aten._native_batch_norm_legit.no_stats)
def _native_batch_norm_batch(frame: Frame, y: Any, x: Any, weight: Any, bias: Any, training: bool, _m: Any, eps: float) -> Any:
    return _first(y, _batch_norm(frame, y[0], x, weight, bias, None, None, True, eps))


def _first(y: Any, lanes: Any) -> Any:
    """Lanes of the first of several results; the others do not move as far as the model uses them."""
    return NotImplemented if lanes is NotImplemented else (lanes, *[None] * (len(y) - 1))


@rule(aten.group_norm.default)
def _group_norm(
    frame: Frame, y: Tensor, x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Any:
    x, weight, bias = triple(x, y), _parameter(weight, y), _parameter(bias, y)
    width = x.shape[1] // groups * math.prod(x.shape[2:])
    normal = torch.nn.functional.group_norm(x.x, groups, eps=eps)
    centred = Triple(normal, None if x.lanes is None else _normalised(frame, x, None, None, width, eps, True))
    if weight is None and bias is None:
        return centred.lanes
    scale = Triple(normal.new_ones(x.shape[1])) if weight is None else weight
    return _per_channel(frame, y, centred, scale, bias)


@rule(aten.native_group_norm.default)
def _native_group_norm(
    frame: Frame, y: Any, x: Any, weight: Any, bias: Any, _n: int, _c: int, _size: int, groups: int, eps: float
) -> Any:
    return _first(y, _group_norm(frame, y[0], x, groups, weight, bias, eps))


@rule(aten.instance_norm.default)
def _instance_norm(
    frame: Frame,
    y: Tensor,
    x: Any,
    weight: Any,
    bias: Any,
    _mean: Any,
    _var: Any,
    use_input: bool,
    _momentum: Any,
    eps: float,
    *_: Any,
) -> Any:
    return _group_norm(frame, y, x, triple(x, y).shape[1], weight, bias, eps) if use_input else NotImplemented


# ---------------------------------------------------------------- softmax
def softmax_lanes(frame: Frame, x: Triple) -> Lanes:
    """Lanes of the softmax over the last axis."""
    if x.lanes is None:
        return None
    base, lanes = _rows(x, x.shape[-1])
    out = softmax_difference(base, lanes, frame.radii)
    return out.reshape(*out.shape[:LEAD], *x.shape)


def _last(x: Triple, dim: int) -> Triple:
    """A triple with one axis moved to the end."""
    at = negative(dim, x.ndim)
    return x if at == -1 else Triple(x.x.movedim(at, -1), None if x.lanes is None else x.lanes.movedim(at, -1))


@rule(aten.softmax.int, aten._softmax.default)
def _softmax(frame: Frame, y: Tensor, x: Triple, dim: int, *_: Any, **__: Any) -> Lanes:
    lanes = softmax_lanes(frame, _last(x, dim))
    return None if lanes is None else lanes.movedim(-1, negative(dim, x.ndim))


def _log_sum_exp(frame: Frame, x: Triple) -> Triple:
    """log sum exp over the last axis, kept, relative to its maximum."""
    top = x.x.amax(-1, keepdim=True)
    shifted = Triple(x.x - top, x.lanes)
    summed = each(lambda rows: rows.sum(-1, keepdim=True), pointwise(frame, shifted, "exp"))
    inner = Triple(shifted.x.exp().sum(-1, keepdim=True), summed)
    return Triple(inner.x.log() + top, logarithm(frame, inner))


@rule(aten.logsumexp.default)
def _logsumexp(frame: Frame, y: Tensor, x: Triple, dim: Any, keepdim: bool = False) -> Any:
    dims = [dim] if isinstance(dim, int) else list(dim)
    if len(dims) != 1:
        return NotImplemented
    lanes = _log_sum_exp(frame, _last(x, dims[0])).lanes
    if lanes is None:
        return None
    return lanes.movedim(-1, negative(dims[0], x.ndim)) if keepdim else lanes.squeeze(-1)


@rule(aten.log_softmax.int, aten._log_softmax.default)
def _log_softmax(frame: Frame, y: Tensor, x: Triple, dim: int, *_: Any, **__: Any) -> Lanes:
    last = _last(x, dim)
    lanes = plus(last, _log_sum_exp(frame, last), -1)
    return None if lanes is None else lanes.movedim(-1, negative(dim, x.ndim))


# ---------------------------------------------------------------- losses
def _weighted(rows: Tensor, weight: Tensor | None, kept: Tensor, reduction: int, dims: int) -> Tensor:
    """Reduce per-row lanes, in float64: 0 none, 1 mean over the weights, 2 sum."""
    rows = torch.where(kept, rows, 0.0) if weight is None else torch.where(kept, rows * weight, 0.0)
    if reduction == 0:
        return rows
    summed = rows.double().sum(tuple(range(-dims, 0)))
    return summed / (kept.sum() if weight is None else (weight * kept).double().sum()) if reduction == 1 else summed


@rule(aten.cross_entropy_loss.default)
def _cross_entropy(
    frame: Frame,
    y: Tensor,
    x: Triple,
    target: Any,
    weight: Any = None,
    reduction: int = 1,
    ignore: int = -100,
    smoothing: float = 0.0,
) -> Any:
    if not isinstance(target, Tensor) or x.lanes is None or (weight is not None and triple(weight, y).lanes is not None):
        return _soft_cross_entropy(frame, y, x, triple(target, y), weight, reduction, smoothing)
    logits = _last(x, 1 if x.ndim > 1 else 0)
    kept, picked = target != ignore, target.clamp(min=0)
    base, lanes = _rows(logits, logits.shape[-1])
    out = cross_entropy_difference(base, lanes, frame.radii, torch.where(kept, picked, 0).flatten())
    rows = out.reshape(*out.shape[:LEAD], *target.shape)
    each_weight = None if weight is None else triple(weight, y).x.to(lanes.dtype)[picked]
    result = _weighted(rows, each_weight, kept, reduction, target.ndim)
    if not smoothing:
        return result
    classes = logits.shape[-1]
    spread = total(None, plus(Triple(logits.x, None), _log_sum_exp(frame, logits), -1))
    spread = total(fitted(logits.lanes, logits.shape), spread)
    class_weight = torch.ones(classes, dtype=lanes.dtype) if weight is None else triple(weight, y).x.to(lanes.dtype)
    uniform = -(spread * class_weight.to(lanes.device)).sum(-1)
    flat = _weighted(uniform, None, kept, 2 if reduction else 0, target.ndim)
    if reduction == 1:
        flat = flat / (kept.sum() if each_weight is None else (each_weight * kept).double().sum())
    return result * (1 - smoothing) + flat * (smoothing / classes)


def _soft_cross_entropy(frame: Frame, y: Tensor, x: Triple, target: Triple, weight: Any, reduction: int, smoothing: float) -> Any:
    """Targets that are probabilities: - sum p log softmax(x)."""
    if weight is not None or not target.x.is_floating_point():
        return NotImplemented
    at = 1 if x.ndim > 1 else 0
    logits, chances = _last(x, at), _last(target, at)
    classes = logits.shape[-1]
    mixed = Triple(chances.x * (1 - smoothing) + smoothing / classes, scaled(chances.lanes, 1 - smoothing))
    logs = Triple(logits.x.log_softmax(-1), _log_softmax(frame, logits.x, logits, -1))
    rows = each(lambda r: -r.sum(-1), product(frame, mixed, logs))
    if rows is None or reduction == 0:
        return rows
    summed = each(lambda r: r.double().flatten(1).sum(1), rows)
    assert summed is not None
    return summed / max(1, logits.x[..., 0].numel()) if reduction == 1 else summed


@rule(aten.nll_loss_nd.default, aten.nll_loss.default, aten.nll_loss2d.default)
def _nll(frame: Frame, y: Tensor, x: Triple, target: Any, weight: Any = None, reduction: int = 1, ignore: int = -100) -> Any:
    if not isinstance(target, Tensor) or x.lanes is None or (weight is not None and triple(weight, y).lanes is not None):
        return NotImplemented
    logs = _last(x, 1 if x.ndim > 1 else 0)
    assert logs.lanes is not None
    kept, picked = target != ignore, target.clamp(min=0)
    index = torch.where(kept, picked, 0).unsqueeze(-1)
    rows = -logs.lanes.gather(-1, index.expand(*logs.lanes.shape[:LEAD], *index.shape)).squeeze(-1)
    each_weight = None if weight is None else triple(weight, y).x.to(rows.dtype)[picked]
    return _weighted(rows, each_weight, kept, reduction, target.ndim)


@rule(aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
def _nll_forward(frame: Frame, y: Any, x: Triple, target: Any, weight: Any, reduction: int, ignore: int) -> Any:
    return _first(y, _nll(frame, y[0], x, target, weight, reduction, ignore))


def _reduced(lanes: Lanes, reduction: int, count: int) -> Lanes:
    if reduction == 0 or lanes is None:
        return lanes
    summed = each(lambda rows: rows.double().flatten(1).sum(1), lanes)
    assert summed is not None
    return summed / count if reduction == 1 else summed


def _difference(x: Any, target: Any, y: Tensor) -> Triple:
    left, right = triple(x, y), triple(target, y)
    return Triple(left.x - right.x, plus(left, right, -1))


@rule(aten.mse_loss.default)
def _mse(frame: Frame, y: Tensor, x: Any, target: Any, reduction: int = 1) -> Lanes:
    gap = _difference(x, target, y)
    return _reduced(square(frame, gap), reduction, gap.x.numel())


@rule(aten.l1_loss.default, piecewise=True)
def _l1(frame: Frame, y: Tensor, x: Any, target: Any, reduction: int = 1) -> Lanes:
    gap = _difference(x, target, y)
    return _reduced(pointwise(frame, gap, "abs"), reduction, gap.x.numel())


def _huber_lanes(frame: Frame, gap: Triple, delta: float) -> Lanes:
    r"""Huber's function as :math:`\tfrac12 c^2 + \delta (|g| - |c|)`, with c the gap clamped to plus or minus delta."""
    inner = Triple(gap.x.clamp(-delta, delta), pointwise(frame, gap, "clamp", -delta, delta))
    outer = Triple(gap.x - inner.x, plus(gap, inner, -1))
    return total(scaled(square(frame, inner), 0.5), scaled(pointwise(frame, outer, "abs"), delta))


@rule(aten.huber_loss.default, piecewise=True)
def _huber(frame: Frame, y: Tensor, x: Any, target: Any, reduction: int = 1, delta: float = 1.0) -> Lanes:
    gap = _difference(x, target, y)
    return _reduced(_huber_lanes(frame, gap, delta), reduction, gap.x.numel())


@rule(aten.smooth_l1_loss.default, piecewise=True)
def _smooth_l1(frame: Frame, y: Tensor, x: Any, target: Any, reduction: int = 1, beta: float = 1.0) -> Lanes:
    if beta == 0:
        return _l1(frame, y, x, target, reduction)
    gap = _difference(x, target, y)
    return _reduced(scaled(_huber_lanes(frame, gap, beta), 1 / beta), reduction, gap.x.numel())


@rule(aten.binary_cross_entropy_with_logits.default)
def _bce_with_logits(
    frame: Frame, y: Tensor, x: Any, target: Any, weight: Any = None, pos_weight: Any = None, reduction: int = 1
) -> Any:
    """softplus(x) - t x, relative to the likelier label where targets are 0 or 1: softplus((1 - 2 t) x)."""
    x, target = triple(x, y), triple(target, y)
    if target.lanes is not None or pos_weight is not None or (weight is not None and triple(weight, y).lanes is not None):
        return NotImplemented
    hard = (target.x == 0) | (target.x == 1)
    if bool(hard.all()):
        sign = 1 - 2 * target.x
        turned = Triple(x.x * sign, None if x.lanes is None else x.lanes * sign.to(x.lanes.dtype))
        lanes = pointwise(frame, turned, "softplus", 1.0)
    else:
        drift = product(frame, x, target)
        lanes = total(pointwise(frame, x, "softplus", 1.0), scaled(drift, -1.0))
    if lanes is not None and weight is not None:
        lanes = lanes * triple(weight, y).x.to(lanes.dtype)
    return _reduced(lanes, reduction, x.x.numel())


@rule(aten.kl_div.default)
def _kl_div(frame: Frame, y: Tensor, x: Any, target: Any, reduction: int = 1, *, log_target: bool = False) -> Any:
    x, target = triple(x, y), triple(target, y)
    if target.lanes is not None:
        return NotImplemented
    chances = target.x.exp() if log_target else target.x
    return _reduced(scaled(product(frame, x, Triple(chances)), -1.0), reduction, x.x.numel())
