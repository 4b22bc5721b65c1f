"""Losses; what they are small by is kept: cross-entropy relative to the target's logit, logistic losses by softplus."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastscape.differences.algebra import each, logarithm, plus, product, scaled, square, total
from fastscape.differences.rules.functions import Lanes, last, log_softmax_lanes, pointwise
from fastscape.differences.rules.table import aten, first_of, negative, rule, triple
from fastscape.differences.triple import LEAD, Frame, Triple
from fastscape.ops import cross_entropy_difference


def _weighted(rows: Tensor, weight: Tensor | None, kept: Tensor, reduction: int, dims: int) -> Tensor:
    """Reduce per-row lanes, in float64: 0 none, 1 mean over the weights, 2 sum."""
    rows = torch.where(kept, rows, 0.0) if weight is None else torch.where(kept, rows * weight, 0.0)
    if reduction == 0:
        return rows
    summed = rows.double().sum(tuple(range(-dims, 0))) if dims else rows.double()  # no axes would stand for all
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
    if weight is not None and triple(weight, y).lanes is not None:
        return NotImplemented
    if not isinstance(target, Tensor) or x.lanes is None:
        return _soft_cross_entropy(frame, y, x, triple(target, y), weight, reduction, smoothing)
    logits = last(x, 1 if x.ndim > 1 else 0)
    kept = target != ignore
    picked = torch.where(kept, target, 0)
    width = logits.shape[-1]
    assert logits.lanes is not None
    base, lanes = logits.x.reshape(-1, width), logits.lanes.reshape(*logits.lanes.shape[:LEAD], -1, width)
    out = cross_entropy_difference(base, lanes, frame.radii, picked.flatten())
    rows = out.reshape(*out.shape[:LEAD], *target.shape)
    each_weight = None if weight is None else triple(weight, y).x.to(lanes.dtype)[picked]
    result = _weighted(rows, each_weight, kept, reduction, target.ndim)
    if not smoothing:
        return result
    classes = logits.shape[-1]
    spread = log_softmax_lanes(frame, logits)
    assert spread is not None
    class_weight = torch.ones(classes, dtype=lanes.dtype) if weight is None else triple(weight, y).x.to(lanes.dtype)
    uniform = -(spread * class_weight.to(lanes.device)).sum(-1)
    flat = _weighted(uniform, None, kept, 2 if reduction else 0, target.ndim)
    if reduction == 1:
        flat = flat / (kept.sum() if each_weight is None else (each_weight * kept).double().sum())
    return result * (1 - smoothing) + flat * (smoothing / classes)


def _soft_cross_entropy(frame: Frame, y: Tensor, x: Triple, target: Triple, weight: Any, reduction: int, smoothing: float) -> Any:
    """Targets that are probabilities: - sum w p log softmax(x)."""
    if not target.x.is_floating_point():
        return NotImplemented
    at = 1 if x.ndim > 1 else 0
    logits, chances = last(x, at), last(target, at)
    classes = logits.shape[-1]
    factor = 1 - smoothing if weight is None else (1 - smoothing) * triple(weight, y).x
    rest = smoothing / classes if weight is None else smoothing / classes * triple(weight, y).x
    of_lanes = factor.to(chances.lanes.dtype) if isinstance(factor, Tensor) and chances.lanes is not None else factor
    mixed = Triple(chances.x * factor + rest, scaled(chances.lanes, of_lanes))
    logs = Triple(logits.x.log_softmax(-1), log_softmax_lanes(frame, logits))
    rows = each(lambda r: -r.sum(-1), product(frame, mixed, logs))
    if rows is None or reduction == 0:
        return rows
    summed = each(lambda r: r.double().reshape(len(r), -1).sum(1), rows)
    assert summed is not None
    return summed / max(1, logits.x[..., 0].numel()) if reduction == 1 else summed


@rule(aten.nll_loss_nd.default, aten.nll_loss.default, aten.nll_loss2d.default)
def _nll(frame: Frame, y: Tensor, x: Triple, target: Any, weight: Any = None, reduction: int = 1, ignore: int = -100) -> Any:
    if not isinstance(target, Tensor) or x.lanes is None or (weight is not None and triple(weight, y).lanes is not None):
        return NotImplemented
    at = 1 if x.ndim > 1 else 0
    if x.origin is not None and negative(x.origin[1], x.ndim) == negative(at, x.ndim):
        return _cross_entropy(frame, y, x.origin[0], target, weight, reduction, ignore)
    logs = last(x, at)
    assert logs.lanes is not None
    kept = target != ignore
    picked = torch.where(kept, target, 0)
    index = picked.unsqueeze(-1)
    rows = -logs.lanes.gather(-1, index.expand(*logs.lanes.shape[:LEAD], *index.shape)).squeeze(-1)
    each_weight = None if weight is None else triple(weight, y).x.to(rows.dtype)[picked]
    return _weighted(rows, each_weight, kept, reduction, target.ndim)


@rule(aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
def _nll_forward(frame: Frame, y: Any, x: Triple, target: Any, weight: Any, reduction: int, ignore: int) -> Any:
    return first_of(y, _nll(frame, y[0], x, target, weight, reduction, ignore))


def _reduced(lanes: Lanes, reduction: int, count: int) -> Lanes:
    if reduction == 0 or lanes is None:
        return lanes
    summed = each(lambda rows: rows.double().reshape(len(rows), -1).sum(1), lanes)
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
        return _l1(frame, y, x, target, reduction)  # type: ignore[no-any-return]
    gap = _difference(x, target, y)
    return _reduced(scaled(_huber_lanes(frame, gap, beta), 1 / beta), reduction, gap.x.numel())


@rule(aten.binary_cross_entropy_with_logits.default)
def _bce_with_logits(
    frame: Frame, y: Tensor, x: Any, target: Any, weight: Any = None, pos_weight: Any = None, reduction: int = 1
) -> Any:
    """(1 - t) softplus(x) + c t softplus(-x), with c the weight of positives: no cancellation at small losses."""
    x, target = triple(x, y), triple(target, y)
    if any(value is not None and triple(value, y).lanes is not None for value in (target, weight, pos_weight)):
        return NotImplemented
    if x.lanes is None:
        return None
    positive = target.x if pos_weight is None else target.x * triple(pos_weight, y).x
    turned = Triple(-x.x, -x.lanes)
    rising, falling = pointwise(frame, x, "softplus", 1.0), pointwise(frame, turned, "softplus", 1.0)
    lanes = total(scaled(rising, (1 - target.x).to(x.lanes.dtype)), scaled(falling, positive.to(x.lanes.dtype)))
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


_SATURATED = math.exp(-100)  # torch takes logarithms below -100 for -100


@rule(aten.binary_cross_entropy.default)
def _bce(frame: Frame, y: Tensor, x: Any, target: Any, weight: Any = None, reduction: int = 1) -> Any:
    """- t log x - (1 - t) log(1 - x)."""
    x, target = triple(x, y), triple(target, y)
    if target.lanes is not None or (weight is not None and triple(weight, y).lanes is not None):
        return NotImplemented
    if x.lanes is None:
        return None
    other = Triple(1 - x.x, -x.lanes)
    sides = [(x, target.x), (other, 1 - target.x)]
    if any(bool(((side.x <= _SATURATED) & (t != 0)).any()) for side, t in sides):
        return NotImplemented
    parts = [torch.where(t == 0, 0.0, -logarithm(frame, side) * t.to(x.lanes.dtype)) for side, t in sides]  # type: ignore[operator]
    lanes = total(*parts)
    if weight is not None:
        lanes = scaled(lanes, triple(weight, y).x.to(x.lanes.dtype))
    return _reduced(lanes, reduction, x.x.numel())


@rule(aten.soft_margin_loss.default)
def _soft_margin(frame: Frame, y: Tensor, x: Any, target: Any, reduction: int = 1) -> Any:
    """softplus(-t x)."""
    x, target = triple(x, y), triple(target, y)
    turned = Triple(-x.x * target.x, scaled(product(frame, x, target), -1.0))
    return _reduced(pointwise(frame, turned, "softplus", 1.0), reduction, x.x.numel())
