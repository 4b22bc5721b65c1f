"""Differences of a linear map in Triton: four products in one pass over a tile, the displaced input made in registers.

All radii of a direction are rows of one matrix, so that tiles are full where a batch is small, and W and D are read once for many
rows.
"""
# ruff: noqa: ANN001, ANN201, N803, N806
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscape.ops import _triton
from fastscape.ops.linear_difference.reference import linear_difference as reference
from fastscape.ops.linear_difference.reference import result_dtype, result_shape, thin_products
from fastscape.ops.perturbed_linear.triton import precision


@triton.jit(do_not_specialize=["stacked", "rows", "outputs"])
def linear_difference_kernel(
    x,  # float32 [M, I]
    lanes,  # [K, ORDERS, S', M, I]
    halves,  # float32 [S]: e^2 / 2
    weight,  # [O, I]
    direction,  # [K, O, I]
    bias_direction,  # [K, O]
    factor,  # [K, rank, O]: U
    thin,  # float32 [K, 2, S M, rank]: x~ V^T and 2 a V^T
    y,  # [K, c, S, M, O]
    stacked,  # S M: rows of a direction's results
    rows,  # M
    outputs,
    inputs,
    lane,  # elements of a, and of b, of one direction: S' M I
    rank,
    ORDERS: tl.constexpr,  # 0: no lanes, 1: a alone, 2: a and b
    SHARED: tl.constexpr,  # S' = 1: lanes of all radii
    DIRECTION: tl.constexpr,
    BIAS: tl.constexpr,
    THIN: tl.constexpr,  # whether the weight moves by factors
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of BM rows (of all radii) and BN outputs; program = (k * row tiles + row tile) * output tiles + output tile."""
    SECOND: tl.constexpr = ORDERS == 2 or (ORDERS == 1 and (DIRECTION or THIN))
    LOW: tl.constexpr = y.dtype.element_ty
    output_tiles, row_tiles = tl.cdiv(outputs, BN), tl.cdiv(stacked, BM)
    program = tl.program_id(0)
    k = (program // output_tiles // row_tiles).to(tl.int64)
    r = program // output_tiles % row_tiles * BM + tl.arange(0, BM)
    o = program % output_tiles * BN + tl.arange(0, BN)
    i = tl.arange(0, BK)
    m, real = (r % rows).to(tl.int64), r < stacked
    from_x = x + m[:, None] * inputs + i[None, :]
    from_a = lanes + k * ORDERS * lane + (m if SHARED else r.to(tl.int64))[:, None] * inputs + i[None, :]
    from_weight = weight + o.to(tl.int64)[:, None] * inputs + i[None, :]
    from_direction = direction + (k * outputs + o)[:, None] * inputs + i[None, :]
    half = tl.zeros([BM], tl.float32)
    if ORDERS == 2 and DIRECTION:
        half = tl.load(halves + r // rows, mask=real, other=0.0)
    first = tl.zeros([BM, BN], tl.float32)
    second = tl.zeros([BM, BN], tl.float32)
    for start in range(0, inputs, BK):
        inside = (start + i < inputs)[None, :]
        left, right = real[:, None] & inside, (o < outputs)[:, None] & inside
        if ORDERS > 0:
            w = tl.trans(tl.load(from_weight + start, mask=right, other=0.0).to(LOW))
            a = tl.load(from_a + start, mask=left, other=0.0)
            first = tl.dot(a, w, first, input_precision=PRECISION)
        if ORDERS == 2:
            b = tl.load(from_a + lane + start, mask=left, other=0.0)
            second = tl.dot(b, w, second, input_precision=PRECISION)
        if DIRECTION:
            d = tl.trans(tl.load(from_direction + start, mask=right, other=0.0).to(LOW))
            middle = tl.load(from_x + start, mask=left, other=0.0)
            if ORDERS == 2:
                middle += half[:, None] * b.to(tl.float32)
            first = tl.dot(middle.to(LOW), d, first, input_precision=PRECISION)
            if ORDERS > 0:
                double = (2.0 * a.to(tl.float32)).to(LOW)
                second = tl.dot(double, d, second, input_precision=PRECISION)
    inside = real[:, None] & (o < outputs)[None, :]
    if THIN:
        c = tl.arange(0, 16)
        for start in range(0, rank, 16):
            known = start + c < rank
            at = factor + (k * rank + start + c)[:, None] * outputs + o[None, :]
            u = tl.load(at, mask=known[:, None] & (o < outputs)[None, :], other=0.0).to(tl.float32)
            at = thin + (k * 2 * stacked + r)[:, None] * rank + (start + c)[None, :]
            filled = real[:, None] & known[None, :]
            first = tl.dot(tl.load(at, mask=filled, other=0.0), u, first, input_precision=PRECISION)
            second = tl.dot(
                tl.load(at + stacked.to(tl.int64) * rank, mask=filled, other=0.0), u, second, input_precision=PRECISION
            )
    if BIAS:
        first += tl.load(bias_direction + k * outputs + o, mask=o < outputs, other=0.0).to(tl.float32)[None, :]
    to = y + (k * (2 if SECOND else 1) * stacked + r[:, None]) * outputs + o[None, :]
    tl.store(to, first.to(LOW), mask=inside)
    if SECOND:
        tl.store(to + stacked.to(tl.int64) * outputs, second.to(LOW), mask=inside)


@dataclass(frozen=True)
class Tile:
    """Rows, outputs and inputs of a program's tile, its warps, and loads in flight."""

    BM: int
    BN: int
    BK: int
    warps: int
    stages: int


def tile(stacked: int, dtype: torch.dtype, precision: str, aligned: bool) -> Tile:
    """The tile for the rows of a direction: two float32 sums an output, as many as registers hold without spilling.

    Rows that do not begin at multiples of 16 bytes are read element by element, which takes registers too, and so do the factors
    of a direction in float32, of which 64 outputs spill on sm_80.
    """
    most = max(16, triton.next_power_of_2(stacked))
    if dtype == torch.bfloat16:  # 64 inputs spill on sm_90; twice the outputs spill or fit no chip
        return Tile(min(most, 128), 64, 32 if aligned else 16, 8, 2)
    if precision == "tf32":  # 32 inputs spill on sm_80
        return Tile(min(most, 128 if aligned else 64), 64, 16, 8, 2)
    return Tile(min(most, 64), 64 if aligned else 32, 16, 8, 2)  # without matrix units: 32 inputs take every register


def linear_difference(
    x: Tensor,
    lanes: Tensor | None,
    radii: Tensor,
    weight: Tensor,
    direction: Tensor | None,
    bias_direction: Tensor | None,
    right: Tensor | None = None,
) -> Tensor:
    """See :func:`fastscape.ops.linear_difference.linear_difference`."""
    dtype = result_dtype(lanes, direction, bias_direction)
    if dtype == torch.float64 or (lanes is None and (direction is None or right is not None)):
        return reference(x, lanes, radii, weight, direction, bias_direction, right)
    shape = result_shape(x, lanes, radii, weight, direction, bias_direction)
    y = x.new_empty(shape, dtype=dtype)
    if y.numel() == 0:
        return y
    count, _, times, rows, outputs = shape
    how = precision(dtype)
    stacked = times * rows
    sizes = tile(stacked, dtype, how, x.shape[1] % 16 == 0 and (right is None or dtype != torch.float32))
    grid = (count * _triton.ceil_div(stacked, sizes.BM) * _triton.ceil_div(outputs, sizes.BN),)
    x = x.to(torch.float32).contiguous()  # a copy of one lane at most
    thin = None if right is None or lanes is None else _thin(x, lanes, radii, right.to(dtype), shape)
    lanes = y if lanes is None else lanes.contiguous()
    with torch.cuda.device_of(x):
        linear_difference_kernel[grid](
            x,
            lanes,
            (0.5 * radii * radii).float(),
            weight.contiguous(),
            y if direction is None or thin is not None else direction.contiguous(),
            y if bias_direction is None else bias_direction.contiguous(),
            y if direction is None or thin is None else direction.to(dtype).contiguous(),
            y if thin is None else thin,
            y,
            stacked,
            rows,
            outputs,
            x.shape[1],
            0 if lanes is y else lanes.shape[2] * rows * x.shape[1],
            0 if thin is None else thin.shape[-1],
            ORDERS=0 if lanes is y else lanes.shape[1],
            SHARED=lanes is not y and lanes.shape[2] == 1,
            DIRECTION=direction is not None and thin is None,
            BIAS=bias_direction is not None,
            THIN=thin is not None,
            BM=sizes.BM,
            BN=sizes.BN,
            BK=sizes.BK,
            PRECISION=how,
            num_warps=sizes.warps,
            num_stages=sizes.stages,
        )
    return y


def _thin(x: Tensor, lanes: Tensor, radii: Tensor, right: Tensor, shape: tuple[int, ...]) -> Tensor:
    """X~ V^T and 2 a V^T of all rows, float32 ``[K, 2, S M, r]``; the host does not ask the device whether a radius is zero."""
    half = (0.5 * radii * radii).float()
    with torch.autocast(x.device.type, enabled=False):
        middle, a = thin_products(x, lanes.float(), half, right.float(), True)
    assert a is not None
    rows = (shape[0], shape[2], *a.shape[2:])
    return torch.stack((middle.expand(rows), 2 * a.expand(rows)), 1).flatten(2, 3)
