"""Cross-entropy of rows in difference lanes in Triton: each lane is read once, rows of any length piece by piece.

The lanes are taken relative to those of the row's largest entry, which needs no sum. A target outside the classes gives NaN: the
host does not wait for the values.
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
from fastscape.ops.cross_entropy_difference.reference import cross_entropy_difference as reference

COLUMNS = 1024  # of a piece of a row


@triton.jit
def largest(x, r, rows, length, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The largest entry of each row, its place, and the sum of e^(x - largest)."""
    c = tl.arange(0, COLUMNS)
    top, place = tl.full([ROWS], float("-inf"), x.dtype.element_ty), tl.zeros([ROWS], tl.int32)
    for start in range(0, length, COLUMNS):
        real = (r < rows)[:, None] & (start + c < length)[None, :]
        base = tl.load(x + r[:, None] * length + (start + c)[None, :], mask=real, other=float("-inf"))
        here, at = tl.max(base, 1), tl.argmax(base, 1) + start
        place, top = tl.where(here > top, at, place), tl.maximum(here, top)
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, length, COLUMNS):
        real = (r < rows)[:, None] & (start + c < length)[None, :]
        base = tl.load(x + r[:, None] * length + (start + c)[None, :], mask=real, other=float("-inf"))
        value, _ = weight(base, top[:, None])
        total += tl.sum(value, 1)
    return top, place, tl.where(total == 0, 1.0, total)


@triton.jit
def lanes_of(x, from_a, given, r, rows, length, start, top, middle_a, middle_b, ORDERS: tl.constexpr, COLUMNS: tl.constexpr):
    """A piece of rows: e^(x - top), x - top, and the lanes relative to the rows' middle; 0 where masked."""
    c = start + tl.arange(0, COLUMNS)
    cell = r[:, None] * length + c[None, :]
    base = tl.load(x + cell, mask=(r < rows)[:, None] & (c < length)[None, :], other=float("-inf"))
    open = base != float("-inf")
    value, z = weight(base, top[:, None])
    a = tl.where(open, tl.load(from_a + cell, mask=open, other=0.0) - middle_a[:, None], 0.0)
    b = tl.zeros_like(a)
    if ORDERS == 2:
        b = tl.where(open, tl.load(from_a + given + cell, mask=open, other=0.0) - middle_b[:, None], 0.0)
    return value, z, a, b


@triton.jit
def added(top, total, z):
    """Running largest number of rows and sum of exponentials relative to it, with another piece."""
    here = tl.maximum(top, tl.max(z, 1))
    here = tl.where(here == float("-inf"), 0.0, here)
    return here, total * exp(top - here) + tl.sum(exp(z - here[:, None]), 1)


@triton.jit
def ratio(value, argument):
    """f(z) / z of a function with f(0) = 0 and f'(0) = 1."""
    small = tl.abs(argument) < 1e-20
    return tl.where(small, 1.0, value / tl.where(small, 1.0, argument))


@triton.jit(do_not_specialize=["rows", "directions", "times", "each"])
def cross_entropy_difference_kernel(
    x,  # [R, C]
    lanes,  # [K, ORDERS, S', R, C]
    radii,  # float64 [S]
    target,  # int64 [R]
    y,  # [K, 2, S, R]
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
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = r < rows
    top, place, total = largest(x, r, rows, length, ROWS, COLUMNS)
    scale, log_total = 1.0 / total, log1p(total - 1.0)
    chosen = tl.load(target + r, mask=real, other=0)
    there = real & (chosen >= 0) & (chosen < length)
    at_top, at_target = r * length + place, r * length + chosen
    there &= tl.load(x + at_target, mask=there, other=float("-inf")) != float("-inf")
    size = rows.to(tl.int64) * length
    given = size if SHARED else size * times
    k = tl.program_id(1).to(tl.int64) * each
    from_a, to_a = lanes + k * ORDERS * given, y + k * 2 * times * rows + r
    middle_b, own_b = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    for _ in range(tl.minimum(each, directions - k)):
        for s in range(times):
            e = tl.load(radii + s).to(tl.float32)
            unit, bend = 1.0 / tl.where(e == 0, 1.0, e), 0.5 * e * e
            middle_a, own_a = tl.load(from_a + at_top, mask=real, other=0.0), tl.load(from_a + at_target, mask=there, other=0.0)
            if ORDERS == 2:
                from_b = from_a + given
                middle_b, own_b = (
                    tl.load(from_b + at_top, mask=real, other=0.0),
                    tl.load(from_b + at_target, mask=there, other=0.0),
                )
            sum_a, sum_b = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
            for start in range(0, length, COLUMNS):
                value, z, a, b = lanes_of(x, from_a, given, r, rows, length, start, top, middle_a, middle_b, ORDERS, COLUMNS)
                rise_a, rise_b = rises(a, b, e)
                sum_a += tl.sum(value * rise_a, 1)
                sum_b += tl.sum(value * rise_b, 1)
            sum_a, sum_b = sum_a * scale, sum_b * scale
            plus, minus = 1.0 + (bend * sum_b + e * sum_a), 1.0 + (bend * sum_b - e * sum_a)
            slope = sum_a / (0.5 * (plus + minus))
            growth = sum_b + 0.5 * bend * sum_b * sum_b - sum_a * sum_a
            angle, change = e * slope, e * (e * growth)
            ya = slope * ratio(0.5 * log1p(2.0 * angle / (1.0 - angle)), angle)
            yb = growth * ratio(log1p(change), change)
            grown = ((plus <= GROWN) & (minus <= GROWN)) == 0
            if any_true(grown):
                high, low = tl.full([ROWS], float("-inf"), tl.float32), tl.full([ROWS], float("-inf"), tl.float32)
                above, below = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
                for start in range(0, length, COLUMNS):
                    value, z, a, b = lanes_of(x, from_a, given, r, rows, length, start, top, middle_a, middle_b, ORDERS, COLUMNS)
                    high, above = added(high, above, z + (bend * b + e * a))
                    low, below = added(low, below, z + (bend * b - e * a))
                up, down = high - log_total + log1p(above - 1.0), low - log_total + log1p(below - 1.0)
                ya = tl.where(grown, 0.5 * unit * (up - down), ya)
                yb = tl.where(grown, unit * (unit * (up + down)), yb)
            tl.store(to_a, tl.where(there, ya - (own_a - middle_a), float("nan")), mask=real)
            tl.store(to_a + times.to(tl.int64) * rows, tl.where(there, yb - (own_b - middle_b), float("nan")), mask=real)
            to_a += rows
            if not SHARED:
                from_a += size
        from_a += ORDERS * given if SHARED else (ORDERS - 1) * given
        to_a += times.to(tl.int64) * rows


def cross_entropy_difference(x: Tensor, lanes: Tensor, radii: Tensor, target: Tensor) -> Tensor:
    """See :func:`fastscape.ops.cross_entropy_difference.cross_entropy_difference`."""
    if lanes.dtype == torch.float64 or x.shape[1] == 0:
        return reference(x, lanes, radii, target)
    y = lanes.new_empty((lanes.shape[0], 2, len(radii), len(x)))
    if y.numel() == 0:
        return y
    x, lanes = x.contiguous(), lanes.contiguous()
    (directions, orders, kept), (rows, length) = lanes.shape[:3], x.shape
    sizes = tile(length, COLUMNS, 4 if length > SHORT else 2)
    blocks = _triton.ceil_div(rows, sizes.rows)
    each = max(1, directions * blocks // PROGRAMS)
    with torch.cuda.device_of(x):
        cross_entropy_difference_kernel[(blocks, _triton.ceil_div(directions, each))](
            x,
            lanes,
            radii.contiguous(),
            target.contiguous(),
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
            enable_fp_fusion=False,  # fused into a sum of two threads, a product gives each of them other bits
        )
    return y
