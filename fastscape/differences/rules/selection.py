"""Operations that choose: maxima, pools, sorted values, comparisons, ``where``. Exact, choices that change included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastscape.differences.algebra import batched, fitted, plus, total
from fastscape.differences.rules.functions import pointwise
from fastscape.differences.rules.table import DECISIVE, RULES, aten, moves, negative, negatives, rule, triple
from fastscape.differences.triple import LEAD, Decision, Frame, Triple
from fastscape.ops import max_pool2d_difference

_FAR = 1e30  # stands for an infinite distance, at which nothing is chosen otherwise


# ---------------------------------------------------------------- pools
def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


@rule(aten.max_pool2d.default, piecewise=True)
def _max_pool2d(
    frame: Frame, y: Tensor, x: Triple, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *_: Any
) -> Any:
    if x.lanes is None:
        return None
    height, width = x.shape[-2:]
    window = _pair(kernel)
    step = window if isinstance(stride, (list, tuple)) and not stride else _pair(stride)
    out = max_pool2d_difference(
        x.x.reshape(-1, height, width),
        x.lanes.reshape(*x.lanes.shape[:LEAD], -1, height, width),
        frame.radii,
        window,
        step,
        _pair(padding),
        _pair(dilation),
        list(y.shape[-2:]),
    )
    return out.reshape(*out.shape[:LEAD], *y.shape)


@rule(aten.max_pool1d.default, piecewise=True)
def _max_pool1d(
    frame: Frame, y: Tensor, x: Triple, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *_: Any
) -> Any:
    def one(value: Any, still: int) -> list[int]:
        return [still, value if isinstance(value, int) else value[0]]

    flat = Triple(x.x.unsqueeze(-2), None if x.lanes is None else x.lanes.unsqueeze(-2))
    step = one(kernel, 1) if isinstance(stride, (list, tuple)) and not stride else one(stride, 1)
    lanes = _max_pool2d(frame, y.unsqueeze(-2), flat, one(kernel, 1), step, one(padding, 0), one(dilation, 1))
    return None if lanes is None else lanes.squeeze(-2)


# ---------------------------------------------------------------- values by changing index
def _values(frame: Frame, x: Triple, dim: int, index: Tensor, at_plus: Tensor, at_minus: Tensor) -> Tensor:
    """Lanes of x gathered along ``dim`` by an index that may differ between x, x+ and x-."""
    assert x.lanes is not None
    lanes = x.lanes
    radii = at_plus.shape[1]
    wide = lanes.expand(-1, -1, radii, *x.shape)
    still = index.expand(*lanes.shape[:2], radii, *index.shape)
    out = wide.gather(dim, still)
    if out.shape[1] == 1:
        out = torch.cat((out, torch.zeros_like(out)), 1)
    changed = (at_plus != index) | (at_minus != index)
    if not bool(changed.any()):
        return out
    base, up, down = frame.points(x)
    up, down = (side.expand(lanes.shape[0], radii, *x.shape) for side in (up, down))
    here = base.gather(dim, index)
    jumped = frame.from_points(here, up.gather(dim, at_plus), down.gather(dim, at_minus), lanes.dtype)
    return torch.where(changed.unsqueeze(1), jumped, out)


def _indices(frame: Frame, x: Triple, find: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """An index at x, and at x+ and x- for all lanes ``[K, S, ...]``; derivatives keep the choice at x."""
    index = find(x.x)
    assert x.lanes is not None
    lead = (x.lanes.shape[0], len(frame.radii))
    if frame.jet:
        return index, index.expand(*lead, *index.shape), index.expand(*lead, *index.shape)
    _, up, down = frame.points(x)
    above, below = (find(side).expand(*lead, *index.shape) for side in (up, down))
    still = (frame.radii == 0).reshape(-1, *[1] * index.ndim)
    return index, torch.where(still, index, above), torch.where(still, index, below)


def _pooled(spatial: int, *names: str) -> None:
    """Maximum pools that tell the places of the maxima, flat over the spatial axes."""
    for name in names:
        target = getattr(aten, name).default

        def apply(frame: Frame, y: Any, x: Triple, *options: Any, _op: Any = target) -> Any:
            if x.lanes is None:
                return (None,) * len(y)
            lead = x.shape[: x.ndim - spatial]

            def places(values: Tensor) -> Tensor:
                plain = values.reshape(-1, *(lead[-1:] or (1,)), *x.shape[x.ndim - spatial :])
                found = _op(plain, *options)[1]
                flat_places: Tensor = found.reshape(*values.shape[: values.ndim - spatial], -1)
                return flat_places

            flat = Triple(x.x.flatten(x.ndim - spatial), x.lanes.flatten(LEAD + x.ndim - spatial))
            index, up, down = _indices(frame, x, places)
            lanes = _values(frame, flat, -1, index, up, down)
            decision = _decided(index, up, down)
            if decision is not None:
                size = y[1].shape[y[1].ndim - spatial :]
                decision = Decision(*(part.reshape(*part.shape[:-1], *size) for part in (index, up, down)))
            return lanes.reshape(*lanes.shape[:LEAD], *y[0].shape), decision

        rule(target, piecewise=True)(apply)


_pooled(3, "max_pool3d_with_indices", "adaptive_max_pool3d")
_pooled(2, "max_pool2d_with_indices", "adaptive_max_pool2d")
_pooled(1, "adaptive_max_pool1d")


@rule(aten.max_pool3d.default, piecewise=True)
def _max_pool3d(frame: Frame, y: Tensor, x: Triple, *options: Any) -> Any:
    indexed = aten.max_pool3d_with_indices.default
    return RULES[indexed](frame, indexed(x.x, *options), x, *options)[0]


def _extreme(name: str) -> None:
    best = getattr(torch, name)

    def lanes_and_index(frame: Frame, x: Triple, dim: int, keepdim: bool) -> tuple[Tensor, Any]:
        at = negative(dim, x.ndim)
        index, up, down = _indices(frame, x, lambda t: best(t, at, keepdim=True)[1])
        lanes = _values(frame, x, at, index, up, down)
        decision = _decided(index, up, down)
        if keepdim:
            return lanes, decision
        if isinstance(decision, Decision):
            decision = Decision(index.squeeze(at), up.squeeze(at), down.squeeze(at))
        return lanes.squeeze(at), decision

    def by_dim(frame: Frame, y: Any, x: Triple, dim: int, keepdim: bool = False) -> Any:
        return (None, None) if x.lanes is None else lanes_and_index(frame, x, dim, keepdim)

    def over_dims(frame: Frame, y: Tensor, x: Triple, dims: Any = (), keepdim: bool = False) -> Any:
        dims = [dims] if isinstance(dims, int) else list(dims)
        if x.lanes is None:
            return None
        if len(dims) == 1:
            return lanes_and_index(frame, x, dims[0], keepdim)[0]
        axes = sorted(negatives(dims, x.ndim))
        ends = tuple(range(-len(axes), 0))
        flat = Triple(x.x.movedim(axes, ends).flatten(-len(axes)), x.lanes.movedim(axes, ends).flatten(-len(axes)))
        lanes = lanes_and_index(frame, flat, -1, False)[0]
        return lanes.reshape(*lanes.shape[:LEAD], *y.shape)

    def over_all(frame: Frame, y: Tensor, x: Triple) -> Any:
        if x.lanes is None:
            return None
        flat = Triple(x.x.flatten(), x.lanes.flatten(LEAD))
        return lanes_and_index(frame, flat, -1, False)[0]

    rule(getattr(aten, name).dim, piecewise=True)(by_dim)
    rule(getattr(aten, f"a{name}").default, piecewise=True)(over_dims)
    rule(getattr(aten, name).default, piecewise=True)(over_all)


_extreme("max")
_extreme("min")


def _ordered(frame: Frame, x: Triple, dim: int, order: Callable[[Tensor, int], Tensor]) -> Any:
    if x.lanes is None:
        return None, None
    at = negative(dim, x.ndim)
    index, up, down = _indices(frame, x, lambda t: order(t, at))
    return _values(frame, x, at, index, up, down), _decided(index, up, down)


@rule(aten.topk.default, piecewise=True)
def _topk(frame: Frame, y: Any, x: Triple, k: int, dim: int = -1, largest: bool = True, sorted_: bool = True) -> Any:
    return _ordered(frame, x, dim, lambda t, at: t.topk(k, at, largest, sorted_)[1])


@rule(aten.sort.default, piecewise=True)
def _sort(frame: Frame, y: Any, x: Triple, dim: int = -1, descending: bool = False) -> Any:
    return _ordered(frame, x, dim, lambda t, at: t.sort(at, descending)[1])


@rule(aten.sort.stable, piecewise=True)
def _stable_sort(frame: Frame, y: Any, x: Triple, *, stable: Any = None, dim: int = -1, descending: bool = False) -> Any:
    return _ordered(frame, x, dim, lambda t, at: t.sort(dim=at, descending=descending, stable=True)[1])


def _chosen(target: Any, before: int = 0) -> None:
    """Operations that give one value along an axis, and where it was: ``(x, ..., dim, keepdim)``."""

    @rule(target, piecewise=True)
    def apply(frame: Frame, y: Any, x: Triple, *arguments: Any, keepdim: bool = False) -> Any:
        options, dim = arguments[:before], arguments[before] if len(arguments) > before else -1
        kept = arguments[before + 1] if len(arguments) > before + 1 else keepdim
        if x.lanes is None:
            return None, None
        at = negative(dim, x.ndim)
        lanes, decision = _ordered(frame, x, at, lambda t, axis: target(t, *options, axis, True)[1])
        if kept:
            return lanes, decision
        if decision is not None:
            decision = Decision(*(part.squeeze(at) for part in (decision.x, decision.plus, decision.minus)))
        return lanes.squeeze(at), decision


_chosen(aten.median.dim)
_chosen(aten.nanmedian.dim)
_chosen(aten.mode.default)
_chosen(aten.kthvalue.default, 1)


@rule(aten.median.default, piecewise=True)
def _median(frame: Frame, y: Tensor, x: Triple) -> Any:
    if x.lanes is None:
        return None
    flat = Triple(x.x.flatten(), x.lanes.flatten(LEAD))
    return _ordered(frame, flat, -1, lambda t, at: t.median(at, True)[1])[0].squeeze(-1)


def _place(target: Any, find: Callable[..., Tensor]) -> None:
    """An index along one axis, or of the flattened tensor."""

    @rule(target, piecewise=True)
    def apply(frame: Frame, y: Tensor, x: Any, *arguments: Any, **keywords: Any) -> Any:
        if x.lanes is None:
            return None
        return _decided(*_indices(frame, x, lambda t: find(t, x.ndim, *arguments, **keywords)))


def _extreme_place(name: str) -> Callable[..., Tensor]:
    def find(values: Tensor, ndim: int, dim: int | None = None, keepdim: bool = False) -> Tensor:
        if dim is None:
            found: Tensor = getattr(values.flatten(values.ndim - ndim), name)(-1)
            return found.reshape(*found.shape, *[1] * ndim) if keepdim else found
        return getattr(values, name)(negative(dim, ndim), keepdim)  # type: ignore[no-any-return]

    return find


_place(aten.argmax.default, _extreme_place("argmax"))
_place(aten.argmin.default, _extreme_place("argmin"))
_place(
    aten.argsort.default,
    lambda values, ndim, dim=-1, descending=False: values.argsort(dim=negative(dim, ndim), descending=descending),
)


@rule(aten.hardshrink.default, piecewise=True)
def _hardshrink(frame: Frame, y: Tensor, x: Triple, bound: float = 0.5) -> Any:
    return _kept_where(frame, y, x, lambda t: t.abs() > bound, 0.0)


@rule(aten.threshold.default, piecewise=True)
def _threshold(frame: Frame, y: Tensor, x: Triple, bound: float, value: float) -> Any:
    return _kept_where(frame, y, x, lambda t: t > bound, value)


def _kept_where(frame: Frame, y: Tensor, x: Triple, keeps: Callable[[Tensor], Tensor], value: float) -> Any:
    """x where a test holds, a number elsewhere."""
    if x.lanes is None:
        return None
    kept, up, down = _indices(frame, x, keeps)
    return _where(frame, y, _decided(kept, up, down) or kept, x, Triple(torch.full_like(x.x, value)))


@rule(aten.maximum.default, aten.max.other, aten.fmax.default, piecewise=True)
def _maximum(frame: Frame, y: Tensor, x: Any, u: Any) -> Any:
    """max(x, u) = u + relu(x - u)."""
    left, right = triple(x, y), triple(u, y)
    gap = Triple((left.x - right.x).clamp(-_FAR, _FAR), plus(left, right, -1))
    return total(fitted(right.lanes, y.shape), pointwise(frame, gap, "relu"))


@rule(aten.minimum.default, aten.min.other, aten.fmin.default, piecewise=True)
def _minimum(frame: Frame, y: Tensor, x: Any, u: Any) -> Any:
    """min(x, u) = x - relu(x - u)."""
    left, right = triple(x, y), triple(u, y)
    gap = Triple((left.x - right.x).clamp(-_FAR, _FAR), plus(left, right, -1))
    relu = pointwise(frame, gap, "relu")
    return total(fitted(left.lanes, y.shape), None if relu is None else -relu)


@rule(aten.clamp.Tensor, aten.clip.Tensor, piecewise=True)
def _clamp(frame: Frame, y: Tensor, x: Any, low: Any = None, high: Any = None) -> Any:
    value = triple(x, y)
    if low is not None:
        least = torch.maximum(value.x, triple(low, y).x)
        value = Triple(least, _maximum(frame, least, value, low))
    return value.lanes if high is None else _minimum(frame, y, value, high)


@rule(aten.clamp_min.Tensor, piecewise=True)
def _clamp_min(frame: Frame, y: Tensor, x: Any, low: Any) -> Any:
    return _maximum(frame, y, x, low)


@rule(aten.clamp_max.Tensor, piecewise=True)
def _clamp_max(frame: Frame, y: Tensor, x: Any, high: Any) -> Any:
    return _minimum(frame, y, x, high)


# ---------------------------------------------------------------- decisions
def _decided(x: Tensor, up: Tensor, down: Tensor) -> Decision | None:
    """A decision, or ``None`` where it is the same for all lanes."""
    same = bool((up == x).all()) and bool((down == x).all())
    return None if same else Decision(x, up, down)


def _sides(frame: Frame, value: Any, ndim: int) -> tuple[Any, Any, Any]:
    """A value at w, w + e d and w - e d, the latter with ``ndim`` axes behind those of the lanes."""
    if isinstance(value, Decision):
        return value.x, batched(value.plus, ndim), batched(value.minus, ndim)
    if isinstance(value, Triple):
        if value.lanes is None:
            return (value.x.double(),) * 3
        here, up, down = frame.points(value)
        return here, batched(up, ndim), batched(down, ndim)
    return value, value, value


def _comparison(name: str, *, exact: bool = False) -> None:
    for overload in ("Tensor", "Scalar"):
        target = getattr(getattr(aten, name), overload)

        def apply(frame: Frame, y: Tensor, x: Any, u: Any, _op: Any = target) -> Any:
            if frame.jet or not any(moves(value) for value in (x, u)):
                return None
            if exact and all(isinstance(value, Triple) and moves(value) for value in (x, u)):
                frame.frozen[str(_op)] = frame.frozen.get(str(_op), 0) + 1  # equal to the last bit: as at w
                return None
            left, right = _sides(frame, x, y.ndim), _sides(frame, u, y.ndim)
            return _decided(y, *(_op(left[side], right[side]) for side in (1, 2)))

        rule(target, piecewise=True)(apply)
        DECISIVE.add(target)


DECISIVE.update((aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf))
for _name in ("gt", "ge", "lt", "le", "eq", "ne"):
    _comparison(_name, exact=_name in ("eq", "ne"))


@rule(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, piecewise=True)
def _where(frame: Frame, y: Tensor, condition: Any, x: Any, u: Any) -> Any:
    left, right = (triple(torch.full_like(y, value) if isinstance(value, (int, float)) else value, y) for value in (x, u))
    known = left.lanes if left.lanes is not None else right.lanes
    if known is None:
        if not isinstance(condition, Decision):
            return None
        picked = [torch.where(side, left.x, right.x).double() for side in _sides(frame, condition, y.ndim)[1:]]
        return frame.from_points(y.double(), picked[0], picked[1], frame.dtype)
    chosen = condition.x if isinstance(condition, Decision) else condition
    lead = [max(v.lanes.shape[axis] for v in (left, right) if v.lanes is not None) for axis in range(LEAD)]
    sides = [_whole(value, lead, y.shape, known) for value in (left, right)]
    out = torch.where(chosen, sides[0], sides[1])
    if not isinstance(condition, Decision):
        return out
    _, above, below = _sides(frame, condition, y.ndim)
    changed = (above != chosen) | (below != chosen)
    near, far = _sides(frame, left, y.ndim), _sides(frame, right, y.ndim)
    picked = [torch.where(above, near[1], far[1]), torch.where(below, near[2], far[2])]
    up, down = (side.expand(*changed.shape[:2], *y.shape) for side in picked)
    jumped = frame.from_points(y.double(), up, down, known.dtype)
    if out.shape[1] == 1:
        out = torch.cat((out, torch.zeros_like(out)), 1)
    return torch.where(changed.unsqueeze(1), jumped, out)


def _whole(value: Triple, lead: Sequence[int], shape: torch.Size, like: Tensor) -> Tensor:
    """Lanes of a value in the shape of a result, zeros where there are none."""
    lanes = fitted(value.lanes, shape)
    if lanes is None:
        return like.new_zeros(()).expand(*lead, *shape)
    if lanes.shape[1] < lead[1]:
        lanes = torch.cat((lanes, torch.zeros_like(lanes)), 1)
    return lanes.expand(*lead, *shape)
