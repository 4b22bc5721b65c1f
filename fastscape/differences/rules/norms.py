"""Normalisations by mean, variance and length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastscape.differences.algebra import (
    aligned,
    each,
    fitted,
    narrow_points,
    product,
    reciprocal,
    root_between,
    scaled,
    square,
    total,
)
from fastscape.differences.layout import flat, unflat
from fastscape.differences.rules.functions import Lanes, pointwise
from fastscape.differences.rules.table import aten, first_of, negatives, rule, triple
from fastscape.differences.triple import LEAD, Frame, Triple
from fastscape.ops import affine_difference, layer_norm_difference


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
        return None
    base, lanes = _rows(x, width)
    flat = None if weight is None else weight.base.narrow(lanes.dtype).flatten()
    out = layer_norm_difference(base, lanes, frame.radii, flat, _direction(weight), _direction(bias), eps, centred)
    return out.reshape(*out.shape[:LEAD], *x.shape)


@rule(aten.layer_norm.default)
def _layer_norm(
    frame: Frame, y: Tensor, x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
) -> Any:
    x, weight, bias = triple(x, y), _parameter(weight, y), _parameter(bias, y)

    def normal() -> Tensor:
        return torch.nn.functional.layer_norm(x.x, list(shape), eps=eps)

    if x.lanes is None:
        return _still_norm(y, weight, bias, normal)
    if not (_is_parameter(weight) and _is_parameter(bias)):
        whole = Triple(normal(), _normalised(frame, x, None, None, math.prod(shape), eps, True))
        return _transformed(frame, y, whole, weight, bias)
    return _normalised(frame, x, weight, bias, math.prod(shape), eps, True)


@rule(aten.native_layer_norm.default)
def _native_layer_norm(frame: Frame, y: Any, x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> Any:
    out = _layer_norm(frame, y[0], x, shape, weight, bias, eps)
    return NotImplemented if out is NotImplemented else (out, None, None)


@rule(aten.rms_norm.default)
def _rms_norm(frame: Frame, y: Tensor, x: Any, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> Any:
    x, weight = triple(x, y), _parameter(weight, y)
    small = torch.finfo(y.dtype).eps if eps is None else eps

    def normal() -> Tensor:
        return torch.nn.functional.rms_norm(x.x, list(shape), eps=small)

    if x.lanes is None:
        return _still_norm(y, weight, None, normal)
    if not _is_parameter(weight):
        whole = Triple(normal(), _normalised(frame, x, None, None, math.prod(shape), small, False))
        return _transformed(frame, y, whole, weight, None)
    return _normalised(frame, x, weight, None, math.prod(shape), small, False)


def _transformed(frame: Frame, y: Tensor, normal: Triple, weight: Triple | None, bias: Triple | None) -> Lanes:
    """Scale and shift that are themselves computed."""
    out = normal.lanes if weight is None else product(frame, normal, weight)
    return total(out, None if bias is None else fitted(bias.lanes, y.shape))


def _still_norm(y: Tensor, weight: Triple | None, bias: Triple | None, normal: Callable[[], Tensor]) -> Lanes:
    """Normalisation of an input that does not move: linear in weight and bias."""
    out = None
    if weight is not None and weight.lanes is not None:
        out = fitted(aligned(weight.lanes, y.ndim) * normal().to(weight.lanes.dtype), y.shape)
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
    channels = Triple(swapped.flatten(1), lanes)
    out = _normalised(frame, channels, None, None, channels.shape[1], eps, True)
    back = each(lambda rows: rows.reshape(len(rows), *swapped.shape).transpose(1, 2), out)
    var, mean = torch.var_mean(channels.x, 1, unbiased=False, keepdim=True)
    return Triple(((channels.x - mean) * (var + eps).rsqrt()).reshape(swapped.shape).transpose(0, 1), back)


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
        tail = [1] * (y.ndim - 2)
        shift = None if bias is None else each(lambda rows: rows.reshape(*rows.shape, *tail), bias.lanes)
        return total(centred.lanes, fitted(shift, y.shape))
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
    return first_of(y, _batch_norm(frame, y[0], x, weight, bias, mean, var, training, eps))


@rule(aten._native_batch_norm_legit_no_training.default)
def _native_batch_norm_running(
    frame: Frame, y: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any, _momentum: Any, eps: float
) -> Any:
    return first_of(y, _batch_norm(frame, y[0], x, weight, bias, mean, var, False, eps))


@rule(aten._native_batch_norm_legit.no_stats)
def _native_batch_norm_batch(frame: Frame, y: Any, x: Any, weight: Any, bias: Any, training: bool, _m: Any, eps: float) -> Any:
    return first_of(y, _batch_norm(frame, y[0], x, weight, bias, None, None, True, eps))


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
    return first_of(y, _group_norm(frame, y[0], x, groups, weight, bias, eps))


@rule(aten.instance_norm.default)
def _instance_norm(
    frame: Frame,
    y: Tensor,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    use_input: bool,
    _momentum: Any,
    eps: float,
    *_: Any,
) -> Any:
    if not use_input:
        return _batch_norm(frame, y, x, weight, bias, mean, var, False, eps)
    return _group_norm(frame, y, x, triple(x, y).shape[1], weight, bias, eps)


# ---------------------------------------------------------------- moments and lengths
def _summed(value: Triple, dims: tuple[int, ...], keepdim: bool) -> Triple:
    return Triple(value.x.sum(dims, keepdim), each(lambda rows: rows.sum(dims, keepdim), value.lanes))


def _variance(frame: Frame, x: Triple, dims: Any, correction: float, keepdim: bool) -> Triple:
    """Sum of squared distances from the mean, over their number less ``correction``."""
    every = negatives(dims, x.ndim)
    centred, count = _centred(x, every), _count(x, every, correction)
    summed = _summed(Triple(centred.x.square(), square(frame, centred)), every, keepdim)
    return Triple(summed.x / count, None if summed.lanes is None else summed.lanes / count)


def _centred(x: Triple, dims: tuple[int, ...]) -> Triple:
    return Triple(x.x - x.x.mean(dims, True), each(lambda rows: rows - rows.mean(dims, True), x.lanes))


def _count(x: Triple, dims: tuple[int, ...], correction: float) -> float:
    return max(0.0, math.prod(x.shape[dim] for dim in dims) - correction)


def _degrees(correction: float | None) -> float:
    return 1.0 if correction is None else float(correction)


@rule(aten.var.correction)
def _var(frame: Frame, y: Tensor, x: Triple, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> Lanes:
    return _variance(frame, x, dims, _degrees(correction), keepdim).lanes


@rule(aten.std.correction, piecewise=True)
def _std(frame: Frame, y: Tensor, x: Triple, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> Lanes:
    every, degrees = negatives(dims, x.ndim), _degrees(correction)
    count = _count(x, every, degrees)
    spread = _variance(frame, x, dims, degrees, keepdim)
    return _rooted(frame, spread, _centred(x, every), every, keepdim, count**-0.5 if count else math.nan)


@rule(aten.var_mean.correction)
def _var_mean(frame: Frame, y: Any, x: Triple, dims: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
    mean = each(lambda rows: rows.mean(negatives(dims, x.ndim), keepdim), x.lanes)
    return _variance(frame, x, dims, _degrees(correction), keepdim).lanes, mean


def _length(frame: Frame, x: Triple, dims: Any, keepdim: bool) -> Triple:
    """Euclidean norm."""
    every = negatives(dims, x.ndim)
    squared = _summed(Triple(x.x.square(), square(frame, x)), every, keepdim)
    return Triple(squared.x.sqrt(), _rooted(frame, squared, x, every, keepdim))


def _rooted(frame: Frame, squared: Triple, x: Triple, dims: tuple[int, ...], keepdim: bool, factor: float = 1.0) -> Lanes:
    """Root of a multiple of a sum of squares, with the lengths of x, x+ and x- themselves."""
    if squared.lanes is None or x.lanes is None:
        return None
    ends = narrow_points(frame, x, x.lanes.dtype)
    return root_between(frame, squared, *(torch.linalg.vector_norm(end, 2, dims, keepdim) * factor for end in ends))


@rule(aten.linalg_vector_norm.default, piecewise=True)
def _vector_norm(frame: Frame, y: Tensor, x: Triple, order: float = 2, dims: Any = None, keepdim: bool = False, **_: Any) -> Any:
    if order == 1:
        return _summed(Triple(x.x.abs(), pointwise(frame, x, "abs")), negatives(dims, x.ndim), keepdim).lanes
    return _length(frame, x, dims, keepdim).lanes if order == 2 else NotImplemented


@rule(aten.norm.Scalar, aten.norm.ScalarOpt_dim, piecewise=True)
def _norm(frame: Frame, y: Tensor, x: Triple, order: Any = 2, dims: Any = None, keepdim: bool = False) -> Any:
    return _vector_norm(frame, y, x, 2 if order is None else order, dims, keepdim)


@rule(aten._weight_norm_interface.default, aten._weight_norm.default)
def _weight_norm(frame: Frame, y: Any, direction: Any, magnitude: Any, dim: int = 0) -> Any:
    """v g / ||v||, lengths over all axes but one."""
    out = y[0] if isinstance(y, (tuple, list)) else y
    v, g = triple(direction, out), triple(magnitude, out)
    others = [axis for axis in range(v.ndim) if axis != dim] if dim >= 0 else None
    length = _length(frame, v, others, True)
    rate = product(frame, g, Triple(length.x.reciprocal(), reciprocal(frame, length)))
    lanes = product(frame, v, Triple(g.x / length.x, rate))
    return (lanes, length.lanes) if isinstance(y, (tuple, list)) else lanes
