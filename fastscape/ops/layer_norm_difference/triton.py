"""Layer norm and RMS norm in difference lanes in Triton: the deviation once for each row, then a loop over the lanes.

Each lane is read once. The rules are those of the reference, in float32 but for the sums of x.
"""
# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscape.ops import _triton
from fastscape.ops._triton_rows import PROGRAMS, tile
from fastscape.ops.layer_norm_difference.reference import layer_norm_difference as reference

LONGEST = 4096  # rows that registers hold; the reference answers for longer ones


@triton.jit
def inverse_root(a, b, plus, minus, e):
    """Lanes of 1 / sqrt(w) at w = 1, from those of w and its values at both ends."""
    plus, minus = tl.sqrt(plus), tl.sqrt(minus)
    both, product = plus + minus, plus * minus
    root_a = a / both
    root_b = (b * (1.0 + plus) - 2.0 * root_a * (a + 0.5 * e * b)) / ((plus + 1.0) * (minus + 1.0))
    return -root_a / product, (2.0 * root_a * root_a - 0.5 * root_b * both) / product


@triton.jit(do_not_specialize=["rows", "directions", "times", "each"])
def layer_norm_difference_kernel(
    x,  # [R, C]
    lanes,  # [K, ORDERS, S', R, C]
    radii,  # float64 [S]
    weight,  # [C]
    weight_direction,  # [K, C]
    bias_direction,  # [K, C]
    y,  # [K, 2, S, R, C]
    rows,
    length,  # C
    directions,  # K
    times,  # S
    each,  # directions of a program
    EPS: tl.constexpr,
    CENTRED: tl.constexpr,
    WEIGHT: tl.constexpr,
    SCALE: tl.constexpr,  # whether the weight moves
    SHIFT: tl.constexpr,  # whether the bias moves
    ORDERS: tl.constexpr,
    SHARED: tl.constexpr,  # S' = 1
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """All radii of some directions for ROWS rows; grid = (blocks of rows, groups of directions)."""
    r, c = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = c < length
    real = (r < rows)[:, None] & inside[None, :]
    cell = r[:, None] * length + c[None, :]
    share = 1.0 / (length * tl.cast(1.0, tl.float64))
    wide = tl.load(x + cell, mask=real, other=0.0).to(tl.float64)
    if CENTRED:
        wide = tl.where(real, wide - (tl.sum(wide, 1) * share)[:, None], 0.0)
    variance = tl.sum(wide * wide, 1) * share + EPS
    deviation = 1.0 / tl.sqrt(variance)
    base, scale = (wide * deviation[:, None]).to(tl.float32), deviation.to(tl.float32)[:, None]
    rest, part = (EPS / variance).to(tl.float32), share.to(tl.float32)
    if WEIGHT:
        g = tl.load(weight + c, mask=inside, other=0.0).to(tl.float32)[None, :]
    size = rows.to(tl.int64) * length
    result = size * times
    given = size if SHARED else result
    k = tl.program_id(1).to(tl.int64) * each
    from_a, to_a = lanes + k * ORDERS * given, y + k * 2 * result
    from_scale, from_shift = weight_direction + k * length + c, bias_direction + k * length + c
    b = tl.zeros([ROWS, COLUMNS], tl.float32)
    for _ in range(tl.minimum(each, directions - k)):
        for s in range(times):
            e = tl.load(radii + s).to(tl.float32)
            bend = 0.5 * e * e
            a = tl.load(from_a + cell, mask=real, other=0.0)
            if ORDERS == 2:
                b = tl.load(from_a + given + cell, mask=real, other=0.0)
            if CENTRED:
                a = tl.where(real, a - (tl.sum(a, 1) * part)[:, None], 0.0)
                if ORDERS == 2:
                    b = tl.where(real, b - (tl.sum(b, 1) * part)[:, None], 0.0)
            a, b = a * scale, b * scale
            middle, step = base + bend * b, e * a
            square_a = 2.0 * (tl.sum(middle * a, 1) * part)
            square_b = tl.sum(b * (base + middle) + 2.0 * a * a, 1) * part
            plus = tl.sum((middle + step) * (middle + step), 1) * part + rest
            minus = tl.sum((middle - step) * (middle - step), 1) * part + rest
            inverse_a, inverse_b = inverse_root(square_a, square_b, plus, minus, e)
            inverse_a, inverse_b = inverse_a[:, None], inverse_b[:, None]
            ya = a * (1.0 + bend * inverse_b) + middle * inverse_a
            yb = b * (1.0 + bend * inverse_b) + base * inverse_b + 2.0 * a * inverse_a
            first, halfway = ya, base + bend * yb
            if WEIGHT:
                ya, yb = ya * g, yb * g
            if SCALE:
                ga = tl.load(from_scale, mask=inside, other=0.0).to(tl.float32)[None, :]
                ya, yb = ya + halfway * ga, yb + 2.0 * first * ga
            if SHIFT:
                ya += tl.load(from_shift, mask=inside, other=0.0).to(tl.float32)[None, :]
            tl.store(to_a + cell, ya, mask=real)
            tl.store(to_a + result + cell, yb, mask=real)
            to_a += size
            if not SHARED:
                from_a += size
        from_a += ORDERS * given if SHARED else (ORDERS - 1) * given
        to_a += result
        from_scale += length
        from_shift += length


def layer_norm_difference(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    weight: Tensor | None,
    weight_direction: Tensor | None,
    bias_direction: Tensor | None,
    eps: float,
    centred: bool,
) -> Tensor:
    """See :func:`fastscape.ops.layer_norm_difference.layer_norm_difference`."""
    if lanes.dtype == torch.float64 or x.shape[1] > LONGEST:
        return reference(x, lanes, radii, weight, weight_direction, bias_direction, eps, centred)
    y = lanes.new_empty((lanes.shape[0], 2, len(radii), *x.shape))
    if y.numel() == 0:
        return y
    x, lanes = x.contiguous(), lanes.contiguous()
    (directions, orders, kept), (rows, length) = lanes.shape[:3], x.shape
    sizes = tile(length, LONGEST, 8)
    blocks = _triton.ceil_div(rows, sizes.rows)
    each = max(1, directions * blocks // PROGRAMS)
    parameters = [y if tensor is None else tensor.contiguous() for tensor in (weight, weight_direction, bias_direction)]
    with torch.cuda.device_of(x):
        layer_norm_difference_kernel[(blocks, _triton.ceil_div(directions, each))](
            x,
            lanes,
            radii.contiguous(),
            *parameters,
            y,
            rows,
            length,
            directions,
            len(radii),
            each,
            EPS=eps,
            CENTRED=centred,
            WEIGHT=weight is not None,
            SCALE=weight_direction is not None,
            SHIFT=bias_direction is not None,
            ORDERS=orders,
            SHARED=kept == 1,
            ROWS=sizes.rows,
            COLUMNS=sizes.columns,
            num_warps=sizes.warps,
        )
    return y
