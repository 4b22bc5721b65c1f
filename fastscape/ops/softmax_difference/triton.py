"""Softmax in difference lanes in Triton: the shares once for each row, then a loop over the lanes, each read once.

The lanes are taken relative to those of the row's largest entry: any one number serves, and this one needs no sum.
"""
# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscape.ops import _triton
from fastscape.ops._triton_functions import exp, log1p
from fastscape.ops._triton_rows import GROWN, PROGRAMS, SHORT, any_true, rises, tile, weight
from fastscape.ops.softmax_difference.reference import softmax_difference as reference

LONGEST = 2048  # rows that registers hold; the reference answers for longer ones


@triton.jit
def shares(z):
    """Softmax of rows, and 0 in rows that are masked as a whole."""
    top = tl.max(z, 1)
    value = exp(z - tl.where(top == float("-inf"), 0.0, top)[:, None])
    total = tl.sum(value, 1)
    return value / tl.where(total == 0, 1.0, total)[:, None]


@triton.jit(do_not_specialize=["rows", "directions", "times", "each"])
def softmax_difference_kernel(
    x,  # [R, C]
    lanes,  # [K, ORDERS, S', R, C]
    radii,  # float64 [S]
    y,  # [K, 2, S, R, C]
    rows,
    length,  # C
    directions,  # K
    times,  # S
    each,  # directions of a program
    ORDERS: tl.constexpr,
    SHARED: tl.constexpr,  # S' = 1
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """All radii of some directions for ROWS rows; grid = (blocks of rows, groups of directions)."""
    r, c = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    real = (r < rows)[:, None] & (c < length)[None, :]
    cell = r[:, None] * length + c[None, :]
    base = tl.load(x + cell, mask=real, other=float("-inf"))
    top, place = tl.max(base, 1), tl.argmax(base, 1)
    value, z = weight(base, tl.where(top == float("-inf"), 0.0, top)[:, None])
    total = tl.sum(value, 1)
    total = tl.where(total == 0, 1.0, total)
    share, z = value / total[:, None], z - log1p(total - 1.0)[:, None]
    open = base != float("-inf")
    at_top = r * length + place
    size = rows.to(tl.int64) * length
    result = size * times
    given = size if SHARED else result
    k = tl.program_id(1).to(tl.int64) * each
    from_a, to_a = lanes + k * ORDERS * given, y + k * 2 * result
    b = tl.zeros([ROWS, COLUMNS], tl.float32)
    for _ in range(tl.minimum(each, directions - k)):
        for s in range(times):
            e = tl.load(radii + s).to(tl.float32)
            bend = 0.5 * e * e
            a = tl.load(from_a + cell, mask=open, other=0.0) - tl.load(from_a + at_top, mask=r < rows, other=0.0)[:, None]
            a = tl.where(open, a, 0.0)
            if ORDERS == 2:
                from_b = from_a + given
                b = tl.load(from_b + cell, mask=open, other=0.0) - tl.load(from_b + at_top, mask=r < rows, other=0.0)[:, None]
                b = tl.where(open, b, 0.0)
            rise_a, rise_b = rises(a, b, e)
            sum_a, sum_b = tl.sum(share * rise_a, 1), tl.sum(share * rise_b, 1)
            plus, minus = 1.0 + (bend * sum_b + e * sum_a), 1.0 + (bend * sum_b - e * sum_a)
            middle, scaled = 0.5 * (plus + minus), share / (plus * minus)[:, None]
            fixed = 2.0 * sum_a * sum_a - sum_b * middle
            ya = scaled * (rise_a * middle[:, None] - sum_a[:, None] * (1.0 + bend * rise_b))
            yb = scaled * (rise_b * middle[:, None] - 2.0 * rise_a * sum_a[:, None] + fixed[:, None])
            grown = ((plus <= GROWN) & (minus <= GROWN)) == 0
            if any_true(grown):
                unit = 1.0 / tl.where(e == 0, 1.0, e)
                up, down = shares(z + (bend * b + e * a)) - share, shares(z + (bend * b - e * a)) - share
                ya = tl.where(grown[:, None], 0.5 * unit * (up - down), ya)
                yb = tl.where(grown[:, None], unit * (unit * (up + down)), yb)
            tl.store(to_a + cell, tl.where(open, ya, 0.0), mask=real)
            tl.store(to_a + result + cell, tl.where(open, yb, 0.0), mask=real)
            to_a += size
            if not SHARED:
                from_a += size
        from_a += ORDERS * given if SHARED else (ORDERS - 1) * given
        to_a += result


def softmax_difference(x: Tensor, lanes: Tensor, radii: Tensor) -> Tensor:
    """See :func:`fastscape.ops.softmax_difference.softmax_difference`."""
    if lanes.dtype == torch.float64 or x.shape[1] > LONGEST:
        return reference(x, lanes, radii)
    y = lanes.new_empty((lanes.shape[0], 2, len(radii), *x.shape))
    if y.numel() == 0:
        return y
    x, lanes = x.contiguous(), lanes.contiguous()
    (directions, orders, kept), (rows, length) = lanes.shape[:3], x.shape
    sizes = tile(length, LONGEST, 4 if length > SHORT else 2)
    blocks = _triton.ceil_div(rows, sizes.rows)
    each = max(1, directions * blocks // PROGRAMS)
    with torch.cuda.device_of(x):
        softmax_difference_kernel[(blocks, _triton.ceil_div(directions, each))](
            x,
            lanes,
            radii.contiguous(),
            y,
            rows,
            length,
            directions,
            len(radii),
            each,
            ORDERS=orders,
            SHARED=kept == 1,
            ROWS=sizes.rows,
            COLUMNS=sizes.columns,
            num_warps=sizes.warps,
        )
    return y
