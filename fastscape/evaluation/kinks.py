"""Rules of the piecewise operations: what fixes their pieces, and their value on given pieces."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastscape.objective.structures import tensors_in

Encode = Callable[..., Any]  # (arguments of the operation, its result) -> piece of every element
Apply = Callable[..., Any]  # (arguments, pieces) -> result on those pieces


def rule_of(func: Any, args: Any, kwargs: Any) -> tuple[str, bool] | None:
    """Key in :data:`RULES` or :data:`REFUSED` of an operation with kinks for these arguments, and whether it is in place."""
    name = func._schema.name.removeprefix("aten::")
    bare = name.removesuffix("_")
    base = bare.removeprefix("_foreach_")
    if base not in _KINKED or (base in NEEDED and not NEEDED[base](args, kwargs)):
        return None
    if not any(tensor.is_floating_point() for tensor in tensors_in([*args, *kwargs.values()])):
        return None  # of tokens or masks: data
    key = bare if func._overloadname in ("", "default") else f"{bare}.{func._overloadname}"
    return key if key in RULES else bare, name != bare


def decides(func: Any, args: Any, kwargs: Any, out: Any) -> bool:
    """Whether an operation of another library than torch makes integers or masks of numbers, as torchvision's ``nms`` does."""
    if func._schema.name.startswith("aten::"):
        return False  # those are known by name
    found, given = list(tensors_in(out)), tensors_in([*args, *kwargs.values()])
    whole = all(not (tensor.is_floating_point() or tensor.is_complex()) for tensor in found)
    return bool(found) and whole and any(tensor.is_floating_point() for tensor in given)


def guarded(key: str, args: Any, kwargs: Any) -> list[Tensor]:
    """Arguments of an operation without a rule at which it has kinks, as long as they change."""
    values = REFUSED[key](args, kwargs) if key in REFUSED else [*args, *kwargs.values()]
    return [tensor for tensor in tensors_in(values) if tensor.is_floating_point()]


def _argument(args: Any, kwargs: Any, place: int, name: str, default: Any = None) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _negative(args: Any, kwargs: Any, out: Any) -> Tensor:
    return args[0] <= 0  # type: ignore[no-any-return]


def _relu(args: Any, kwargs: Any, dead: Tensor) -> Tensor:
    return args[0].masked_fill(dead, 0.0)  # type: ignore[no-any-return]


def _leaky(args: Any, kwargs: Any, dead: Tensor) -> Tensor:
    return torch.where(dead, args[0] * _argument(args, kwargs, 1, "negative_slope", 0.01), args[0])


def _bounds(args: Any, kwargs: Any, names: tuple[str, str], defaults: tuple[Any, Any]) -> tuple[Any, Any]:
    low, high = (_argument(args, kwargs, 1 + place, names[place], defaults[place]) for place in (0, 1))
    return low, high


def _outside(args: Any, low: Any, high: Any) -> tuple[Tensor | None, Tensor | None]:
    """Below and above the bounds, at them included: the upper one holds where they cross."""
    if high is None:
        return None if low is None else args[0] <= low, None
    return None if low is None else args[0] <= low, (args[0] >= high) | (low is not None and low >= high)


def _inside(args: Any, low: Any, high: Any, pieces: tuple[Tensor | None, Tensor | None]) -> Tensor:
    out: Tensor = args[0]
    for outside, bound in zip(pieces, (low, high), strict=True):
        out = out if outside is None else torch.where(outside, bound, out)
    return out


def _clamping(names: tuple[str, str], defaults: tuple[Any, Any]) -> tuple[Encode, Apply]:
    return (
        lambda args, kwargs, out: _outside(args, *_bounds(args, kwargs, names, defaults)),
        lambda args, kwargs, pieces: _inside(args, *_bounds(args, kwargs, names, defaults), pieces),
    )


def _thresholds(args: Any, kwargs: Any, out: Any) -> tuple[Tensor | None, Tensor | None]:
    return _outside(args, -3.0, 3.0)


def _hardswish(args: Any, kwargs: Any, pieces: tuple[Tensor, Tensor]) -> Tensor:
    middle = args[0] * (args[0] + 3) / 6
    return torch.where(pieces[1], args[0], middle.masked_fill(pieces[0], 0.0))


def _hardsigmoid(args: Any, kwargs: Any, pieces: tuple[Tensor, Tensor]) -> Tensor:
    return ((args[0] + 3) / 6).masked_fill(pieces[0], 0.0).masked_fill(pieces[1], 1.0)  # type: ignore[no-any-return]


def _pooled(axes: int) -> tuple[Encode, Apply]:
    """Max-pooling over the last axes, whose indices count within a plane."""

    def picked(args: Any, kwargs: Any, indices: Tensor) -> tuple[Tensor, Tensor]:
        return args[0].flatten(-axes).gather(-1, indices.flatten(-axes)).view(indices.shape), indices

    return lambda args, kwargs, out: out[1], picked


def _along(args: Any, kwargs: Any, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Values at recorded indices of one dimension, for max, min, median and their like."""
    dim = _argument(args, kwargs, 1, "dim", -1)
    if _argument(args, kwargs, 2, "keepdim", False):
        return args[0].gather(dim, indices), indices
    return args[0].gather(dim, indices.unsqueeze(dim)).squeeze(dim), indices


def _kth(args: Any, kwargs: Any, indices: Tensor) -> tuple[Tensor, Tensor]:
    return _along((args[0], *args[2:]), kwargs, indices)


def _sorted(args: Any, kwargs: Any, indices: Tensor) -> tuple[Tensor, Tensor]:
    return args[0].gather(_argument(args, kwargs, 1, "dim", -1), indices), indices


def _topk(args: Any, kwargs: Any, indices: Tensor) -> tuple[Tensor, Tensor]:
    return args[0].gather(_argument(args, kwargs, 2, "dim", -1), indices), indices


def _mean(values: Tensor, taken: Tensor, dims: tuple[int, ...], keepdim: bool) -> Tensor:
    """Mean of the elements taken: automatic differentiation shares a gradient among equal ones."""
    return torch.where(taken, values, 0.0).sum(dims, keepdim=keepdim) / taken.sum(dims, keepdim=keepdim)


def _dims(args: Any, kwargs: Any, place: int) -> tuple[int, ...]:
    dims = _argument(args, kwargs, place, "dim", None)
    return (dims,) if isinstance(dims, int) else tuple(dims or range(args[0].ndim))


def _extreme(largest: bool) -> tuple[Encode, Apply]:
    """Largest or smallest elements over dimensions."""

    def encode(args: Any, kwargs: Any, out: Tensor) -> Tensor:
        dims = _dims(args, kwargs, 1)
        taken: Tensor = args[0] == (args[0].amax(dims, keepdim=True) if largest else args[0].amin(dims, keepdim=True))
        return taken

    def apply(args: Any, kwargs: Any, taken: Tensor) -> Tensor:
        return _mean(args[0], taken, _dims(args, kwargs, 1), _argument(args, kwargs, 2, "keepdim", False))

    return encode, apply


def _both_extremes(args: Any, kwargs: Any, out: Any) -> tuple[Tensor, Tensor]:
    smallest, largest = _extreme(largest=False)[0], _extreme(largest=True)[0]
    return smallest(args, kwargs, out), largest(args, kwargs, out)


def _of_both(args: Any, kwargs: Any, pieces: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return tuple(_mean(args[0], taken, _dims(args, kwargs, 1), kwargs.get("keepdim", False)) for taken in pieces)


_OF_ALL: tuple[Encode, Apply] = (  # max(), min(), median(): one element of a whole tensor
    lambda args, kwargs, out: args[0] == out,
    lambda args, kwargs, taken: _mean(args[0], taken, tuple(range(args[0].ndim)), False),
)


def _signs(values: Tensor) -> Tensor:
    """A byte each; 0 at 0, as the derivative of abs has it."""
    return values.sign().to(torch.int8)


def _order(args: Any, kwargs: Any) -> float:
    """The p of a norm."""
    p = args[1] if len(args) > 1 else kwargs.get("ord", kwargs.get("p", 2))
    return 2.0 if p is None else float(p)


def _kinked_order(p: float) -> bool:
    """Whether the second derivative of |x|^p jumps at 0; p = 3 has a continuous one."""
    return p < 2 or math.isinf(p)


def _norm_pieces(args: Any, kwargs: Any, out: Tensor) -> Any:
    p = _order(args, kwargs)
    if p == 0:
        return out
    signs, sizes, dims = _signs(args[0]), args[0].abs(), _dims(args, kwargs, 2)
    if p == 1:
        return signs
    return signs, sizes == (sizes.amax(dims, keepdim=True) if p > 0 else sizes.amin(dims, keepdim=True))


def _norm(args: Any, kwargs: Any, pieces: Any) -> Tensor:
    p = _order(args, kwargs)
    if p == 0:
        return pieces  # type: ignore[no-any-return]
    dims, keepdim = _dims(args, kwargs, 2), _argument(args, kwargs, 3, "keepdim", False)
    values = args[0].to(kwargs.get("dtype") or args[0].dtype)
    if p == 1:
        return (values * pieces).sum(dims, keepdim=keepdim)  # type: ignore[no-any-return]
    return _mean(values * pieces[0], pieces[1], dims, keepdim)


_REDUCED: tuple[Callable[[Tensor], Tensor], ...] = (lambda loss: loss, torch.mean, torch.sum)


def _robust(
    quadratic: Callable[[Tensor, float], Tensor], linear: Callable[[Tensor, float], Tensor], name: str
) -> tuple[Encode, Apply]:
    """Losses quadratic within a distance of the target and linear beyond: of (input, target, reduction, distance)."""

    def encode(args: Any, kwargs: Any, out: Tensor) -> tuple[Tensor, Tensor]:
        difference = args[0] - args[1]
        return difference.abs() < _argument(args, kwargs, 3, name, 1.0), _signs(difference)

    def apply(args: Any, kwargs: Any, pieces: tuple[Tensor, Tensor]) -> Tensor:
        difference, distance = args[0] - args[1], _argument(args, kwargs, 3, name, 1.0)
        loss = torch.where(pieces[0], quadratic(difference, distance), linear(difference * pieces[1], distance))
        return _REDUCED[int(_argument(args, kwargs, 2, "reduction", 1))](loss)

    return encode, apply


def _small(args: Any, kwargs: Any, out: Tensor) -> Tensor:
    return args[0].abs() <= _argument(args, kwargs, 1, "lambd", 0.5)  # type: ignore[no-any-return]


def _softshrink(args: Any, kwargs: Any, pieces: tuple[Tensor, Tensor]) -> Tensor:
    small, signs = pieces
    return (args[0] - _argument(args, kwargs, 1, "lambd", 0.5) * signs).masked_fill(small, 0.0)  # type: ignore[no-any-return]


def _elu(values: Tensor, dead: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    return torch.where(dead, alpha * scale * torch.expm1(values * input_scale), scale * values)


def _celu(values: Tensor, dead: Tensor, alpha: float = 1.0) -> Tensor:
    return _elu(values, dead, alpha, 1.0, 1 / alpha)


def _quotient(args: Any, kwargs: Any, out: Tensor) -> Tensor:
    """The integer q of remainder = x - q y."""
    return torch.round((args[0] - out) / args[1])


def _kept(args: Any, kwargs: Any, out: Tensor) -> Tensor:
    return out


def _again(args: Any, kwargs: Any, kept: Tensor) -> Tensor:
    return kept


def _second(args: Any, kwargs: Any, out: Any) -> Any:
    """Indices of (values, indices)."""
    return out[1]


# By name, and overload where that is not the default.
RULES: dict[str, tuple[Encode, Apply]] = {
    "relu": (_negative, _relu),
    "leaky_relu": (_negative, _leaky),
    "_prelu_kernel": (_negative, lambda args, kwargs, dead: torch.where(dead, args[0] * args[1], args[0])),
    "abs": (lambda args, kwargs, out: _signs(args[0]), lambda args, kwargs, signs: args[0] * signs),
    "threshold": (
        lambda args, kwargs, out: args[0] <= args[1],
        lambda args, kwargs, dead: args[0].masked_fill(dead, args[2]),
    ),
    "hardtanh": _clamping(("min_val", "max_val"), (-1.0, 1.0)),
    "clamp": _clamping(("min", "max"), (None, None)),
    "clamp.Tensor": _clamping(("min", "max"), (None, None)),
    **dict.fromkeys(("clamp_min", "clamp_min.Tensor"), _clamping(("min", "max"), (None, None))),
    **dict.fromkeys(
        ("clamp_max", "clamp_max.Tensor"),
        (
            lambda args, kwargs, out: args[0] >= _argument(args, kwargs, 1, "max"),
            lambda args, kwargs, beyond: torch.where(beyond, _argument(args, kwargs, 1, "max"), args[0]),
        ),
    ),
    "hardswish": (_thresholds, _hardswish),
    "hardsigmoid": (_thresholds, _hardsigmoid),
    "maximum": (
        lambda args, kwargs, out: args[0] >= args[1],
        lambda args, kwargs, first: torch.where(first, args[0], args[1]),
    ),
    "minimum": (
        lambda args, kwargs, out: args[0] <= args[1],
        lambda args, kwargs, first: torch.where(first, args[0], args[1]),
    ),
    "fmax": (
        lambda args, kwargs, out: (args[0] >= args[1]) | args[1].isnan(),
        lambda args, kwargs, first: torch.where(first, args[0], args[1]),
    ),
    "fmin": (
        lambda args, kwargs, out: (args[0] <= args[1]) | args[1].isnan(),
        lambda args, kwargs, first: torch.where(first, args[0], args[1]),
    ),
    "softshrink": (lambda args, kwargs, out: (_small(args, kwargs, out), _signs(args[0])), _softshrink),
    "hardshrink": (_small, lambda args, kwargs, small: args[0].masked_fill(small, 0.0)),
    "elu": (_negative, lambda args, kwargs, dead: _elu(args[0], dead, *args[1:], **kwargs)),
    "celu": (_negative, lambda args, kwargs, dead: _celu(args[0], dead, *args[1:], **kwargs)),
    "rrelu_with_noise": (
        _negative,
        lambda args, kwargs, dead: torch.where(
            dead, args[0] * (_argument(args, kwargs, 2, "lower", 1 / 8) + _argument(args, kwargs, 3, "upper", 1 / 3)) / 2, args[0]
        ),
    ),
    "huber_loss": _robust(lambda d, delta: d * d / 2, lambda size, delta: delta * (size - delta / 2), "delta"),
    "smooth_l1_loss": _robust(lambda d, beta: d * d / (2 * beta), lambda size, beta: size - beta / 2, "beta"),
    "linalg_vector_norm": (_norm_pieces, _norm),
    **dict.fromkeys(
        ("norm.Scalar", "norm.ScalarOpt_dim", "norm.ScalarOpt_dim_dtype", "norm.ScalarOpt_dtype"), (_norm_pieces, _norm)
    ),
    "max_pool2d_with_indices": _pooled(2),
    "max_pool3d_with_indices": _pooled(3),
    "adaptive_max_pool2d": _pooled(2),
    "adaptive_max_pool3d": _pooled(3),
    **dict.fromkeys(("max.dim", "min.dim", "median.dim", "nanmedian.dim", "mode"), (_second, _along)),
    **dict.fromkeys(("max", "min", "median", "nanmedian"), _OF_ALL),
    "kthvalue": (_second, _kth),
    "aminmax": (_both_extremes, _of_both),
    "amax": _extreme(largest=True),
    "amin": _extreme(largest=False),
    **dict.fromkeys(("sort", "sort.stable", "cummax", "cummin"), (_second, _sorted)),
    "topk": (_second, _topk),
    "frac": (lambda args, kwargs, out: args[0].trunc(), lambda args, kwargs, whole: args[0] - whole),
    **dict.fromkeys(
        ("remainder.Scalar", "remainder.Tensor", "remainder.Scalar_Tensor", "fmod.Scalar", "fmod.Tensor"),
        (_quotient, lambda args, kwargs, whole: args[0] - args[1] * whole),
    ),
    **dict.fromkeys(
        (
            *(f"{name}.{kind}" for name in ("gt", "ge", "lt", "le", "eq", "ne") for kind in ("Scalar", "Tensor")),
            *("argmax", "argmin", "sign", "sgn", "signbit", "floor", "ceil", "round", "round.decimals", "trunc", "heaviside"),
            *("div.Tensor_mode", "div.Scalar_mode", "floor_divide", "floor_divide.Scalar", "_to_copy", "nonzero"),
            *("bucketize.Tensor", "searchsorted.Tensor", "count_nonzero", "count_nonzero.dim_IntList"),
        ),
        (_kept, _again),
    ),
}


def _rounds(args: Any, kwargs: Any) -> bool:
    return kwargs.get("rounding_mode") is not None


def _to_integers(args: Any, kwargs: Any) -> bool:
    dtype = kwargs.get("dtype")
    return dtype is not None and not dtype.is_floating_point and not dtype.is_complex


# Bare name -> whether there are kinks for these arguments; without an entry there are.
NEEDED: dict[str, Callable[[Any, Any], bool]] = {
    "div": _rounds,
    "_to_copy": _to_integers,
    "rrelu_with_noise": lambda args, kwargs: not _argument(args, kwargs, 4, "training", False),  # random: refused elsewhere
    **dict.fromkeys(("linalg_vector_norm", "norm"), lambda args, kwargs: _kinked_order(_order(args, kwargs))),
    "_cdist_forward": lambda args, kwargs: _kinked_order(args[2]),
    "dist": lambda args, kwargs: _kinked_order(_argument(args, kwargs, 2, "p", 2)),
    "_pdist_forward": lambda args, kwargs: _kinked_order(_argument(args, kwargs, 1, "p", 2.0)),
    "scatter_reduce": lambda args, kwargs: _argument(args, kwargs, 4, "reduce") in ("amax", "amin"),
    "index_reduce": lambda args, kwargs: _argument(args, kwargs, 4, "reduce") in ("amax", "amin"),
    "segment_reduce": lambda args, kwargs: _argument(args, kwargs, 1, "reduce") in ("max", "min"),
    **dict.fromkeys(
        ("_embedding_bag", "_embedding_bag_forward_only"), lambda args, kwargs: _argument(args, kwargs, 4, "mode", 0) == 2
    ),
    "_addmm_activation": lambda args, kwargs: not kwargs.get("use_gelu", False),
    "_transformer_encoder_layer_fwd": lambda args, kwargs: not args[7],
    "_cudnn_rnn": lambda args, kwargs: args[6] == 0,  # a ReLU cell
    "miopen_rnn": lambda args, kwargs: args[5] == 0,
    "logit": lambda args, kwargs: _argument(args, kwargs, 1, "eps") is not None,
}


def _all_of(args: Any, kwargs: Any) -> list[Any]:
    return [*args, *kwargs.values()]


# Kinks without a rule: name -> arguments at which they lie, harmless as long as these do not depend on the weights.
REFUSED: dict[str, Callable[[Any, Any], list[Any]]] = {
    **dict.fromkeys(("grid_sampler_2d", "grid_sampler_3d"), lambda args, kwargs: [args[1]]),  # linear in the image
    **dict.fromkeys(
        (
            *("multi_margin_loss", "multilabel_margin_loss_forward", "_cdist_forward", "dist", "_pdist_forward", "renorm"),
            *("fractional_max_pool2d", "fractional_max_pool3d", "scatter_reduce", "index_reduce", "segment_reduce"),
            *("_embedding_bag", "_embedding_bag_forward_only", "copysign", "logit", "_cudnn_rnn", "miopen_rnn"),
            *("fake_quantize_per_tensor_affine_cachemask", "fake_quantize_per_channel_affine_cachemask"),
            *("_addmm_activation", "_transformer_encoder_layer_fwd"),
        ),
        _all_of,
    ),
}
_KINKED = frozenset(key.partition(".")[0] for key in (*RULES, *REFUSED))
