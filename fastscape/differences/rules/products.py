r"""Matrix products and convolutions: :math:`a_y = W a + D \tilde x`, :math:`b_y = W b + 2 D a`, and the products of activations.

The lanes of all radii share one product with W and, per direction, one with D; the first layer of a network, whose input does not
move, takes one product per direction for any number of radii.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastscape.differences.algebra import count, fitted, matrix_product, plus, product, scaled, total
from fastscape.differences.layout import image_format, stacked, widened
from fastscape.differences.rules.low_rank import factored_linear, in_two, kernels
from fastscape.differences.rules.table import COLLAPSED, THIN, aten, moves, rule, triple
from fastscape.differences.triple import LEAD, FactoredLanes, Frame, Triple, seeded
from fastscape.ops import linear_difference

COLLAPSED.add(aten.linear.default)


@rule(aten.linear.default)
def _linear(frame: Frame, y: Tensor, x: Any, weight: Any, bias: Any = None) -> Any:
    x, weight = triple(x, y), triple(weight, y)
    if weight.factors is not None:
        return factored_linear(frame, y, x, weight, None if bias is None else triple(bias, y))
    if not weight_moves_along(weight) or (bias is not None and not weight_moves_along(triple(bias, y))):
        return _general(frame, y, x, weight, bias)
    return _collapsed_linear(frame, y, x, weight, bias) if frame.collapsed else _fused_linear(frame, y, x, weight, bias)


def _fused_linear(frame: Frame, y: Tensor, x: Triple, weight: Triple, bias: Any) -> Tensor | None:
    """A linear layer whose weight and bias are parameters."""
    known = x.lanes if x.lanes is not None else weight.lanes
    bias_lanes = None if bias is None else triple(bias, y).lanes
    if known is None:
        return fitted(bias_lanes, y.shape)
    width = x.shape[-1]
    lanes = None if x.lanes is None else x.lanes.reshape(*x.lanes.shape[:LEAD], -1, width)
    out = linear_difference(
        x.base.narrow(known.dtype).reshape(-1, width),
        lanes,
        frame.radii,
        weight.base.narrow(known.dtype),
        None if weight.lanes is None else weight.lanes[:, 0, 0],
        None if bias_lanes is None else bias_lanes[:, 0, 0],
    )
    rows = y.numel() // y.shape[-1] if y.shape[-1] else 0
    frame.operations += linear_operations(x.lanes, weight.lanes, out.shape, rows, width)
    return out.reshape(*out.shape[:LEAD], *y.shape)


def _collapsed_linear(frame: Frame, y: Tensor, x: Triple, weight: Triple, bias: Any) -> Tensor | None:
    """a W^T + x D^T per direction, and the mean of b: b W^T + x W_b^T + (2 / K) sum_k a_k D_k^T, with W_b that of the weight."""
    known = x.lanes if x.lanes is not None else weight.lanes
    bias_lanes = None if bias is None else fitted(triple(bias, y).lanes, y.shape)
    if known is None:
        return bias_lanes
    count, width = len(known) - 1, x.shape[-1]
    out = known.new_zeros(count + 1, y.numel() // y.shape[-1], y.shape[-1])
    base = x.base.narrow(known.dtype).reshape(-1, width)
    rows = None if x.lanes is None else x.lanes.reshape(count + 1, -1, width)
    if rows is not None:
        torch.mm(rows.flatten(0, 1), weight.base.narrow(known.dtype).T, out=out.flatten(0, 1))
    if weight.lanes is not None:
        for k, moved in enumerate(weight.lanes[:-1, 0, 0]):
            out[k].addmm_(base, moved.T)
            if rows is not None:
                out[count].addmm_(rows[k], moved.T, alpha=2 / count)
        if not weight.straight:
            out[count].addmm_(base, weight.lanes[count, 0, 0].T)
    products = (count + 1) * (rows is not None) + count * (weight.lanes is not None) * (1 + (rows is not None))
    frame.operations += 2 * products * base.shape[0] * width * y.shape[-1]
    return total(out.reshape(count + 1, 1, 1, *y.shape), bias_lanes)


def linear_operations(lanes: Tensor | None, direction: Tensor | None, out: torch.Size, rows: int, width: int) -> int:
    """Multiplications and additions of the products behind the lanes of a linear layer."""
    each = 2 * rows * width * out[-1]
    count_ = 0 if lanes is None else lanes.shape[0] * lanes.shape[1] * lanes.shape[2]
    if direction is not None:
        count_ += out[0] * (1 if lanes is None else out[2] + lanes.shape[2])
    return each * count_


def weight_moves_along(weight: Triple) -> bool:
    """Whether a weight is still or a parameter as it is: lanes ``[K, 1, 1, ...]``."""
    return weight.lanes is None or weight.lanes.shape[1:LEAD] == (1, 1)


def _general(frame: Frame, y: Tensor, x: Triple, weight: Triple, bias: Any) -> Tensor | None:
    """A linear layer whose weight is itself computed (weight norm, tied transforms)."""
    turned = Triple(weight.x.mT, None if weight.lanes is None else weight.lanes.mT)
    out = _multiplied(frame, x, turned)
    return out if bias is None else total(out, fitted(triple(bias, y).lanes, y.shape))


def _multiplied(frame: Frame, x: Triple, u: Triple) -> Tensor | None:
    """Matrix product of two triples of any number of axes, one of them perhaps a vector."""
    left = Triple(x.x.unsqueeze(0), None if x.lanes is None else x.lanes.unsqueeze(-2)) if x.ndim == 1 else x
    right = Triple(u.x.unsqueeze(1), None if u.lanes is None else u.lanes.unsqueeze(-1)) if u.ndim == 1 else u
    out = matrix_product(frame, left, right)
    if out is None:
        return None
    out = out.squeeze(-2) if x.ndim == 1 else out
    return out.squeeze(-1) if u.ndim == 1 else out


THIN.update((aten.mm.default, aten.matmul.default, aten.addmm.default))


@rule(aten.mm.default, aten.bmm.default, aten.matmul.default, aten.mv.default, aten.dot.default, aten.vdot.default)
def _matmul(frame: Frame, y: Tensor, x: Any, u: Any) -> Any:
    x, u = triple(x, y), triple(u, y)
    if isinstance(u.held, FactoredLanes):
        return factored_linear(frame, y, x, Triple(u.x.mT, u.held.transposed), None)
    if x.ndim == 2 and u.ndim == 2 and u.lanes is not None and weight_moves_along(u):
        return _fused_linear(frame, y, x, Triple(u.x.mT, u.lanes.mT), None)
    return _multiplied(frame, x, u)


@rule(aten.addmm.default, aten.addmv.default, aten.baddbmm.default)
def _added(frame: Frame, y: Tensor, bias: Any, x: Any, u: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    out = scaled(_matmul(frame, y, x, u), alpha) if alpha != 1 else _matmul(frame, y, x, u)
    return total(out, fitted(scaled(triple(bias, y).lanes, beta), y.shape))


@rule(aten.bilinear.default)
def _bilinear_layer(frame: Frame, y: Tensor, x: Any, u: Any, weight: Any, bias: Any = None) -> Any:
    """sum_ij x_i W_oij u_j + b_o as a product with W and one with u."""
    x, u, weight = triple(x, y), triple(u, y), triple(weight, y)
    outputs, left, right = weight.shape

    def turned(rows: Tensor) -> Tensor:
        return rows.transpose(-3, -2).reshape(*rows.shape[:-3], left, outputs * right)

    inner = Triple(turned(weight.x), None if weight.lanes is None else turned(weight.lanes))
    wide = Triple(x.x @ inner.x, _multiplied(frame, x, inner))

    def split(value: Tensor) -> Tensor:
        return value.reshape(*value.shape[:-1], outputs, right)

    parts = Triple(split(wide.x), None if wide.lanes is None else split(wide.lanes))
    other = Triple(u.x.unsqueeze(-2), None if u.lanes is None else u.lanes.unsqueeze(-2))
    lanes = product(frame, parts, other)
    summed = None if lanes is None else lanes.sum(-1)
    return summed if bias is None else total(summed, fitted(triple(bias, y).lanes, y.shape))


@rule(aten._trilinear.default)
def _trilinear(
    frame: Frame, y: Tensor, x: Any, u: Any, v: Any, x_axes: Any, u_axes: Any, v_axes: Any, summed: Any, *_: Any
) -> Any:
    """A product of three, with axes of length one put in, summed over some axes: a bilinear layer in pieces."""

    def lifted(value: Triple, axes: Sequence[int]) -> Triple:
        tensor, lanes = value.x, value.lanes
        for axis in sorted(axes):
            tensor = tensor.unsqueeze(axis)
            lanes = None if lanes is None else lanes.unsqueeze(axis + LEAD)
        return Triple(tensor, lanes)

    x, u, v = (lifted(triple(value, y), axes) for value, axes in ((x, x_axes), (u, u_axes), (v, v_axes)))
    both = Triple(x.x * u.x, product(frame, x, u))
    lanes = product(frame, both, v)
    return None if lanes is None else lanes.sum([axis + LEAD for axis in summed])


# ---------------------------------------------------------------- convolutions
COLLAPSED.add(aten.convolution.default)
_FLAT = {
    aten.conv1d.default: (False, 1),
    aten.conv2d.default: (False, 2),
    aten.conv3d.default: (False, 3),
    aten.conv_transpose1d.default: (True, 1),
    aten.conv_transpose2d.input: (True, 2),
    aten.conv_transpose3d.input: (True, 3),
}


@rule(aten.convolution.default)
def _convolution(
    frame: Frame,
    y: Tensor,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Any:
    x, weight = triple(x, y), triple(weight, y)

    layout = image_format(y)

    def convolve(rows: Tensor, kernel: Tensor) -> Tensor:
        operands = (operand.contiguous(memory_format=layout) for operand in (rows, kernel))
        out = aten.convolution(*operands, None, stride, padding, dilation, transposed, output_padding, groups)
        inner = kernel.numel() // kernel.shape[0]
        return count(frame, out, inner * rows.numel() // max(1, out.numel()) if transposed else inner)

    def mix(rows: Tensor, kernel: Tensor) -> Tensor:
        ones = [1] * len(stride)
        out = aten.convolution(rows, kernel, None, ones, [0] * len(stride), ones, False, [0] * len(stride), groups)
        return count(frame, out, kernel.numel() // kernel.shape[0])

    if weight.factors is not None and not transposed:
        out = _convolved(frame, x, weight, in_two(convolve, mix, groups))
    else:
        weight = Triple(weight.base, weight.lanes, straight=weight.straight)
        out = _convolved(frame, x, weight, convolve) if weight_moves_along(weight) else _bilinear(frame, x, weight, convolve)
    if bias is not None and triple(bias, y).lanes is not None:
        lanes = triple(bias, y).lanes
        out = total(out, fitted(lanes.reshape(*lanes.shape, *[1] * (y.ndim - 2)), y.shape))  # type: ignore[union-attr]
    return out


def _convolved(frame: Frame, x: Triple, weight: Triple, convolve: Any) -> Tensor | None:
    """Lanes of a convolution: rows of lanes are samples for W, and per direction for D, added in place."""
    if x.lanes is None:
        if not weight.moves:
            return None
        still = x.base.narrow(frame.dtype)
        made = stacked([convolve(still, kernel) for kernel in kernels(weight)])
        return weight.held.seed(made) if isinstance(weight.held, FactoredLanes) else seeded(made)
    if frame.collapsed:
        return _collapsed_convolution(x, weight, convolve)
    lead, samples = x.lanes.shape[:LEAD], x.shape[0]
    out = convolve(x.lanes.flatten(0, LEAD), weight.base.narrow(x.lanes.dtype))
    lanes: Tensor = out.unflatten(0, (*lead, samples))
    if not weight.moves:
        return lanes
    a, b = x.parts
    still = x.base.narrow(a.dtype)
    displaced = frame.displaced(x)  # elsewhere x~ is x, and one product serves all radii
    lanes = widened(lanes, max(lead[2], len(frame.radii) if displaced else 1))
    half = 0.5 * frame.power(x.ndim, 2, a.dtype)
    for k, moved in enumerate(kernels(weight)):
        if len(displaced) < lanes.shape[2]:
            shared = [place for place in range(lanes.shape[2]) if place not in displaced]
            lanes[k, 0, _span(shared)] += convolve(still, moved)
        if displaced:
            assert b is not None
            b_k = b[k].expand(lanes.shape[2], *x.shape)[_span(displaced)]
            middle = torch.addcmul(still, half[_span(displaced)], b_k)
            lanes[k, 0, _span(displaced)] += convolve(middle.flatten(0, 1), moved).unflatten(0, (-1, samples))
        second = convolve(a[k].flatten(0, 1), moved)
        lanes[k, 1].add_(second.unflatten(0, (-1, samples)), alpha=2)
    return lanes


def _collapsed_convolution(x: Triple, weight: Triple, convolve: Any) -> Tensor:
    """As for linear layers."""
    assert x.lanes is not None
    count = len(x.lanes) - 1
    out: Tensor = convolve(x.lanes.flatten(0, LEAD), weight.base.narrow(x.lanes.dtype))
    lanes: Tensor = torch.unflatten(out, 0, (count + 1, 1, 1, x.shape[0]))
    if weight.moves:
        still = x.base.narrow(x.lanes.dtype)
        for k, moved in enumerate(kernels(weight)[:count]):
            lanes[k, 0, 0] += convolve(still, moved)
            lanes[count, 0, 0].add_(convolve(x.lanes[k, 0, 0], moved), alpha=2 / count)
        if not weight.straight:
            lanes[count, 0, 0] += convolve(still, kernels(weight)[count])
    return lanes


def _span(places: list[int]) -> slice | list[int]:
    """Places as a slice if they are adjacent: a view instead of a copy."""
    adjacent = places[-1] - places[0] == len(places) - 1
    return slice(places[0], places[-1] + 1) if adjacent else places


def _bilinear(frame: Frame, x: Triple, weight: Triple, convolve: Any) -> Tensor:
    """A convolution with a weight that is itself computed: every lane has a kernel of its own."""
    assert weight.lanes is not None
    zeros = weight.lanes.new_zeros(())
    (g, d), kernel = weight.parts, weight.base.narrow(weight.lanes.dtype)
    moved = frame.middle(weight).expand(*g.shape[:1], -1, *weight.shape) if frame.middle(weight).ndim > weight.ndim else None
    still = x.base.narrow(weight.lanes.dtype)
    sizes = [g.shape[1]] if x.lanes is None else [g.shape[1], x.lanes.shape[2]]
    count_ = max(*sizes, 1 if moved is None else moved.shape[1], 1)
    columns = []
    for k in range(len(g)):
        for s in range(count_):
            here, there = min(s, g.shape[1] - 1), 0 if x.lanes is None else min(s, x.lanes.shape[2] - 1)
            first = convolve(still, g[k, here])
            second = zeros if d is None else convolve(still, d[k, here])
            if x.lanes is not None:
                a, b = x.parts
                kernel_middle = kernel if moved is None else moved[k, min(s, moved.shape[1] - 1)]
                middle = frame.middle(x)
                if middle.ndim > x.ndim:
                    first = convolve(middle[k, min(s, middle.shape[1] - 1)], g[k, here])
                first = first + convolve(a[k, there], kernel_middle)
                second = second + 2 * convolve(a[k, there], g[k, here])
                if b is not None:
                    second = second + convolve(b[k, there], kernel_middle)
            columns.append(torch.stack(torch.broadcast_tensors(first, second)))  # type: ignore[no-untyped-call]
    stacked = torch.stack(columns)
    return stacked.reshape(len(g), count_, *stacked.shape[1:]).transpose(1, 2)


def _unbatched(value: Any) -> Triple:
    return Triple(value.x.unsqueeze(0), None if value.lanes is None else value.lanes.unsqueeze(LEAD))


def _flat(transposed: bool, spatial: int) -> Any:
    """The rule of ``conv{1,2,3}d`` and their transposes in terms of the general convolution."""

    def several(value: Any) -> list[int]:
        values = [value] if isinstance(value, int) else list(value)
        return values * spatial if len(values) == 1 else values

    def normal(frame: Frame, y: Tensor, x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
               groups: int = 1) -> Any:  # fmt: skip
        if isinstance(padding, str):
            return NotImplemented
        if triple(x, y).ndim == spatial + 1:
            out = normal(frame, y.unsqueeze(0), _unbatched(triple(x, y)), w, b, stride, padding, dilation, groups)
            return None if out is None else out.squeeze(LEAD)
        zeros = [0] * spatial
        return _convolution(frame, y, x, w, b, several(stride), several(padding), several(dilation), False, zeros, groups)

    def turned(frame: Frame, y: Tensor, x: Any, w: Any, b: Any = None, stride: Any = 1, padding: Any = 0,
               output_padding: Any = 0, groups: int = 1, dilation: Any = 1) -> Any:  # fmt: skip
        if triple(x, y).ndim == spatial + 1:
            out = turned(frame, y.unsqueeze(0), _unbatched(triple(x, y)), w, b, stride, padding, output_padding, groups, dilation)
            return None if out is None else out.squeeze(LEAD)
        return _convolution(
            frame, y, x, w, b, several(stride), several(padding), several(dilation), True, several(output_padding), groups
        )

    return turned if transposed else normal


COLLAPSED.update(_FLAT)
for _target, _kind in _FLAT.items():
    rule(_target)(_flat(*_kind))


# ---------------------------------------------------------------- attention
@rule(aten.scaled_dot_product_attention.default, aten._scaled_dot_product_attention_math.default)
def _attention(
    frame: Frame,
    y: Any,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    dropout: float = 0.0,
    causal: bool = False,
    *further: Any,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    from fastscape.differences.rules.functions import softmax_lanes

    several = isinstance(y, (tuple, list))
    out = y[0] if several else y
    q, k, v = triple(query, out), triple(key, out), triple(value, out)
    if dropout or any(option is not None for option in further):
        return NotImplemented
    if enable_gqa:
        k, v = _repeated(k, q.shape[-3] // k.shape[-3]), _repeated(v, q.shape[-3] // v.shape[-3])
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    q = Triple(q.x * factor, scaled(q.lanes, factor))
    turned = Triple(k.x.mT, None if k.lanes is None else k.lanes.mT)
    scores = Triple(q.x @ turned.x, matrix_product(frame, q, turned))
    scores = _masked_scores(scores, mask, causal, out)
    weights = Triple(aten._safe_softmax(scores.x, -1), softmax_lanes(frame, scores))
    lanes = matrix_product(frame, weights, v)
    return (lanes, None) if several else lanes


def _repeated(heads: Triple, times: int) -> Triple:
    """Every head several times, for groups of queries."""
    return Triple(heads.x.repeat_interleave(times, -3), None if heads.lanes is None else heads.lanes.repeat_interleave(times, -3))


def _masked_scores(scores: Triple, mask: Any, causal: bool, like: Tensor) -> Triple:
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.x.device).tril()
    if mask is None:
        return scores
    if moves(mask) or isinstance(mask, Triple):
        added = triple(mask, like)
        return Triple(scores.x + added.x, plus(scores, added))
    if mask.dtype == torch.bool:
        return Triple(scores.x.masked_fill(~mask, -torch.inf), scores.lanes)  # what is masked gives nothing
    return Triple(scores.x + mask, scores.lanes)
