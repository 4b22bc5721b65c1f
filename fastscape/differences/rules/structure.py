"""Linear operations: views, copies, sums and gathers act on lanes as on values, with the lane axes in front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastscape.differences.algebra import each, fitted
from fastscape.differences.rules.table import aten, negative, negatives, overloads, rule, shifted, triple
from fastscape.differences.triple import LEAD, FactoredLanes, Frame, Triple


@rule(
    *overloads("view", "_unsafe_view", "reshape", "flatten", "unflatten", "view_copy", "_reshape_copy", "view_as"), structure=True
)
def _reshaped(frame: Frame, y: Tensor, x: Triple, *_: Any, **__: Any) -> Tensor | None:
    return each(lambda rows: rows.reshape(len(rows), *y.shape), x.lanes)


@rule(*overloads("expand", "expand_copy", "expand_as", "broadcast_to"), structure=True)
def _expanded(frame: Frame, y: Tensor, x: Triple, *_: Any, **__: Any) -> Tensor | None:
    return fitted(x.lanes, y.shape)


@rule(
    *overloads("clone", "contiguous", "alias", "alias_copy", "detach", "lift_fresh", "lift_fresh_copy", "positive"),
    structure=True,
)
@rule(
    *overloads("_to_copy", "to", "type_as", "dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
    structure=True,
)
def _same(frame: Frame, y: Tensor, x: Triple, *_: Any, **__: Any) -> Any:
    return x.held if y.is_floating_point() else NotImplemented


@rule(*overloads("native_dropout"), structure=True)
def _dropout(frame: Frame, y: Any, x: Triple, p: float, train: bool | None) -> Any:
    return NotImplemented if train else (x.lanes, None)


def _linear(*names: str, **arguments: Any) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function of rows ``[R, *shape]`` and the operation's further arguments as the rule of linear operations."""

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def apply(frame: Frame, y: Tensor, x: Triple, *options: Any, **keywords: Any) -> Any:
            if isinstance(x.held, FactoredLanes) and x.ndim == 2 and _turns(lambda rows: function(rows, *options, **keywords), x):
                return x.held.transposed
            return each(lambda rows: function(rows, *options, **keywords), x.lanes)

        rule(*overloads(*names), structure=True)(apply)
        return function

    return register


def _turns(function: Callable[[Tensor], Tensor], x: Triple) -> bool:
    """Whether a function of rows transposes a matrix."""
    rows, columns = x.shape
    turned = function(torch.empty(1, rows, columns, device="meta"))
    return turned.shape == (1, columns, rows) and turned.stride()[1:] == (1, columns)


@_linear("t", "t_copy")
def _transposed(rows: Tensor) -> Tensor:
    return rows.transpose(1, 2) if rows.ndim == 3 else rows


@_linear("numpy_T")
def _reversed(rows: Tensor) -> Tensor:
    return rows.permute(0, *range(rows.ndim - 1, 0, -1))


@_linear("transpose", "transpose_copy", "swapaxes", "swapdims")
def _swapped(rows: Tensor, first: int, second: int) -> Tensor:
    return rows.transpose(shifted(first), shifted(second))


@_linear("permute", "permute_copy")
def _permuted(rows: Tensor, dims: Sequence[int]) -> Tensor:
    return rows.permute(0, *(dim % len(dims) + 1 for dim in dims))


@_linear("movedim", "moveaxis")
def _moved(rows: Tensor, source: int | list[int], target: int | list[int]) -> Tensor:
    from_, to = ([dim] if isinstance(dim, int) else dim for dim in (source, target))
    return rows.movedim([shifted(dim) for dim in from_], [shifted(dim) for dim in to])


@_linear("unsqueeze", "unsqueeze_copy")
def _unsqueezed(rows: Tensor, dim: int) -> Tensor:
    return rows.unsqueeze(shifted(dim))


@rule(*overloads("squeeze", "squeeze_copy"), structure=True)
def _squeezed(frame: Frame, y: Tensor, x: Triple, *_: Any) -> Tensor | None:
    return each(lambda rows: rows.reshape(len(rows), *y.shape), x.lanes)


@_linear("select", "select_copy")
def _selected(rows: Tensor, dim: int, index: int) -> Tensor:
    return rows.select(shifted(dim), index)


@_linear("slice", "slice_copy")
def _sliced(rows: Tensor, dim: int = 0, *bounds: Any) -> Tensor:
    return aten.slice(rows, shifted(dim), *bounds)  # type: ignore[no-any-return]


@_linear("narrow", "narrow_copy")
def _narrowed(rows: Tensor, dim: int, start: int, length: int) -> Tensor:
    return rows.narrow(shifted(dim), start, length)


@_linear("diagonal", "diagonal_copy")
def _diagonal(rows: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    return rows.diagonal(offset, shifted(dim1), shifted(dim2))


@_linear("unfold", "unfold_copy")
def _unfolded(rows: Tensor, dim: int, size: int, step: int) -> Tensor:
    return rows.unfold(shifted(dim), size, step)


@_linear("neg")
def _negated(rows: Tensor) -> Tensor:
    return -rows


@_linear("tril")
def _lower(rows: Tensor, diagonal: int = 0) -> Tensor:
    return rows.tril(diagonal)


@_linear("triu")
def _upper(rows: Tensor, diagonal: int = 0) -> Tensor:
    return rows.triu(diagonal)


@_linear("flip")
def _flipped(rows: Tensor, dims: Sequence[int]) -> Tensor:
    return rows.flip([shifted(dim) for dim in dims])


@_linear("roll")
def _rolled(rows: Tensor, shifts: Any, dims: Any = ()) -> Tensor:
    if isinstance(dims, int):
        return rows.roll(shifts, shifted(dims))
    if not len(dims):
        return rows.flatten(1).roll(shifts, 1).reshape(rows.shape)
    return rows.roll(shifts, [shifted(dim) for dim in dims])


@_linear("repeat")
def _repeated(rows: Tensor, repeats: Sequence[int]) -> Tensor:
    missing = len(repeats) - (rows.ndim - 1)
    return rows.reshape(len(rows), *[1] * missing, *rows.shape[1:]).repeat(1, *repeats)


@_linear("cumsum")
def _cumulated(rows: Tensor, dim: int, **keywords: Any) -> Tensor:
    return rows.cumsum(shifted(dim))


@rule(*overloads("constant_pad_nd", "pad"), structure=True)
def _padded(frame: Frame, y: Tensor, x: Triple, pad: Sequence[int], mode: Any = "constant", *_: Any, **__: Any) -> Tensor | None:
    """With zeros, whatever the value at w, or with the lanes themselves."""
    if not isinstance(mode, str) or mode == "constant":
        return each(lambda rows: torch.nn.functional.pad(rows, list(pad)), x.lanes)
    return _padded_by(mode, pad, x)


def _padded_by(mode: str, pad: Sequence[int], x: Triple) -> Tensor | None:
    """Padding that copies values takes tensors of a fixed number of axes: lanes are folded into samples and channels."""
    spatial = len(pad) // 2

    def padded(rows: Tensor) -> Tensor:
        flat = rows.reshape(1, -1, *rows.shape[rows.ndim - spatial :])
        out = torch.nn.functional.pad(flat, list(pad), mode)
        return out.reshape(*rows.shape[: rows.ndim - spatial], *out.shape[2:])

    return each(padded, x.lanes)


def _copying(mode: str, *names: str) -> None:
    @rule(*overloads(*names), structure=True)
    def apply(frame: Frame, y: Tensor, x: Triple, pad: Sequence[int], *_: Any) -> Tensor | None:
        return _padded_by(mode, pad, x)


_copying("reflect", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d")
_copying("replicate", "replication_pad1d", "replication_pad2d", "replication_pad3d")
_copying("circular", "_pad_circular")


def _per_sample(axes: int, *names: str) -> None:
    """Linear operations over ``[N, ...]`` of ``axes`` axes whose samples are independent: lanes are folded into samples."""
    for overload in overloads(*names):

        def apply(frame: Frame, y: Tensor, x: Triple, *options: Any, _op: Any = overload, **keywords: Any) -> Any:
            def folded(rows: Tensor) -> Tensor:
                flat = rows.reshape(-1, *rows.shape[rows.ndim - axes + 1 :])
                out = _op(flat, *options, **keywords)
                result: Tensor = out.reshape(*rows.shape[: rows.ndim - axes + 1], *out.shape[1:])
                return result

            return each(folded, x.lanes)

        rule(overload, structure=True)(apply)


_per_sample(
    3, "avg_pool1d", "adaptive_avg_pool1d", "upsample_nearest1d", "upsample_linear1d", "_upsample_nearest_exact1d", "col2im"
)
_per_sample(4, "avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d")
_per_sample(4, "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_nearest_exact2d")
_per_sample(4, "im2col", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle")
_per_sample(5, "avg_pool3d", "adaptive_avg_pool3d", "_adaptive_avg_pool3d", "upsample_nearest3d", "upsample_trilinear3d")


@rule(*overloads("copy"), structure=True)
def _copied(frame: Frame, y: Tensor, _target: Any, source: Any, *__: Any) -> Tensor | None:
    return fitted(source.lanes, y.shape)


# ---------------------------------------------------------------- sums
def _summed(rows: Tensor, dims: tuple[int, ...], keepdim: bool, mean: bool) -> Tensor:
    """Sum or mean; one over everything is the loss, or a term of it, and is accumulated in float64."""
    rows = rows.double() if len(dims) == rows.ndim - 1 else rows
    return rows.mean(dims, keepdim) if mean else rows.sum(dims, keepdim)


def _reduction(name: str) -> None:
    def apply(frame: Frame, y: Tensor, x: Triple, dims: Any = None, keepdim: bool = False, **_: Any) -> Tensor | None:
        every = negatives(dims, x.ndim)
        if not every:
            return x.lanes
        return each(lambda rows: _summed(rows, every, keepdim, name == "mean"), x.lanes)

    rule(*overloads(name), structure=True)(apply)


# ---------------------------------------------------------------- several operands or results
@rule(*overloads("cat", "concat", "concatenate"), structure=True)
def _concatenated(frame: Frame, y: Tensor, tensors: Sequence[Any], dim: int = 0) -> Tensor | None:
    triples = [triple(value, y) for value in tensors]
    triples = [value for value in triples if value.ndim == y.ndim]  # torch skips legacy empty tensors
    known = [value.lanes for value in triples if value.lanes is not None]
    if not known:
        return None
    lead = [max(lanes.shape[axis] for lanes in known) for axis in range(LEAD)]
    parts = [filled(value, lead, known[0]) for value in triples]
    return torch.cat(parts, negative(dim, y.ndim))


def filled(value: Triple, lead: Sequence[int], like: Tensor) -> Tensor:
    """Lanes with the given leading axes, zeros where there are none."""
    if value.lanes is None:
        return like.new_zeros(()).expand(*lead, *value.shape)
    lanes = value.lanes
    if lanes.shape[1] < lead[1]:
        zeros = lanes.new_zeros(()).expand(lanes.shape[0], 1, *lanes.shape[2:])
        lanes = torch.cat((lanes, zeros), 1)
    return lanes.expand(*lead, *value.shape)


@rule(*overloads("stack"), structure=True)
def _stacked(frame: Frame, y: Tensor, tensors: Sequence[Any], dim: int = 0) -> Tensor | None:
    at = negative(dim, y.ndim)
    triples = [triple(value, y) for value in tensors]
    lifted = [Triple(value.x.unsqueeze(at), None if value.lanes is None else value.lanes.unsqueeze(at)) for value in triples]
    return _concatenated(frame, y, lifted, at)  # type: ignore[no-any-return]


def _several(*names: str) -> None:
    """Operations that cut a tensor in pieces: one rule for each name, with the dimension where its schema has it."""
    for overload in overloads(*names):
        arguments = [argument.name for argument in overload._schema.arguments]
        if "dim" not in arguments:
            continue
        place = arguments.index("dim") - 1

        def apply(
            frame: Frame, y: Any, x: Triple, *options: Any, _op: Any = overload, _place: int = place, **keywords: Any
        ) -> Any:
            if x.lanes is None:
                return (None,) * len(y)
            settings = list(options) + [0] * (_place + 1 - len(options))
            settings[_place] = negative(keywords.pop("dim", settings[_place]), x.ndim)
            return tuple(_op(x.lanes, *settings, **keywords))

        rule(overload, structure=True)(apply)


_several("split", "split_with_sizes", "chunk", "unbind", "tensor_split", "split_copy", "split_with_sizes_copy", "unbind_copy")
_several("unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk")
_reduction("sum")
_reduction("mean")


def _copy(row: Tensor) -> Tensor:
    """A row with a memory of its own."""
    return row.clone(memory_format=torch.contiguous_format)


@rule(*overloads("as_strided", "as_strided_copy"), structure=True)
def _strided(frame: Frame, y: Tensor, x: Triple, size: Any, stride: Any, offset: int | None = None) -> Any:
    if not x.x.is_contiguous():
        return NotImplemented
    return each(lambda rows: torch.stack([_copy(row).as_strided(size, stride, offset or 0) for row in rows]), x.lanes)


# ---------------------------------------------------------------- Fourier transforms and complex numbers
def _transform(target: Any) -> None:
    @rule(target, structure=True)
    def apply(frame: Frame, y: Tensor, x: Triple, dims: Sequence[int], *options: Any) -> Tensor | None:
        return each(lambda rows: target(rows, [shifted(dim) for dim in dims], *options), x.lanes)


_transform(aten._fft_r2c.default)
_transform(aten._fft_c2c.default)
_transform(aten._fft_c2r.default)


@_linear("real")
def _real(rows: Tensor) -> Tensor:
    return rows.real if rows.is_complex() else rows


@_linear("imag")
def _imaginary(rows: Tensor) -> Tensor:
    return rows.imag


@_linear("view_as_real", "view_as_real_copy")
def _parted(rows: Tensor) -> Tensor:
    return torch.view_as_real(rows.contiguous())


@_linear("view_as_complex", "view_as_complex_copy")
def _paired(rows: Tensor) -> Tensor:
    return torch.view_as_complex(rows.contiguous())


# ---------------------------------------------------------------- what does not depend on its argument's values
@rule(*overloads("new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like", "zero"))
def _constant(frame: Frame, y: Tensor, *_: Any, **__: Any) -> None:
    return None


@rule(*overloads("fill"))
def _filled_with(frame: Frame, y: Tensor, _x: Any, value: Any) -> Tensor | None:
    return fitted(triple(value, y).lanes, y.shape)
