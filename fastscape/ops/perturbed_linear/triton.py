"""Linear maps with perturbed weights in Triton: the direction is made in the tile, where the weight's tile lies.

The bits of the direction are those of :mod:`fastscape.ops.direction.reference`, hence ``enable_fp_fusion=False``; matrix products
are made of fused operations all the same.
"""
# ruff: noqa: ANN001, ANN201, N803, N806
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscape.ops import _triton
from fastscape.ops.direction.reference import ELEMENTS_PER_COUNTER, Distribution
from fastscape.ops.direction.triton import normals4, philox
from fastscape.ops.perturbed_linear import one_by_one
from fastscape.ops.perturbed_linear.reference import coefficients


@triton.jit
def direction_tile(o, start, inputs, id, index, k0, k1, BN: tl.constexpr, BK: tl.constexpr, RADEMACHER: tl.constexpr):
    """Rows ``o`` and columns start .. start + BK - 1 of a direction ``[O, inputs]``, float32 ``[BN, BK]``.

    Counters are taken modulo 2^32, which no tensor of at most 2^34 elements reaches.
    """
    row = o.to(tl.uint32)
    if RADEMACHER:  # BK columns lie within a counter's 128, up to 32 of them in one word
        tl.static_assert(BK == 16 or BK == 32 or BK == 64)
        HALF: tl.constexpr = BK // 2
        r0, r1, r2, r3 = philox(row * (inputs // 128).to(tl.uint32) + start // 128, index, id, k0, k1)
        late = start // 64 % 2 == 1
        first, second = tl.where(late, r2, r0), tl.where(late, r3, r1)
        if BK < 64:
            first = tl.where(start // 32 % 2 == 1, second, first) >> (start % 32)
            second = first >> HALF
        # joined before they are spread: computed where a bit is used, every lane would compute its row's counters (83
        # instructions a sign instead of 12)
        bits = tl.join(first, second)[:, :, None] >> tl.arange(0, HALF).to(tl.uint32)[None, None, :]
        bits = tl.reshape(bits, [BN, BK])
        tile = ((bits << 31) | 0x3F800000).to(tl.float32, bitcast=True)
    else:
        q = row[:, None] * (inputs // 4).to(tl.uint32) + (start // 4 + tl.arange(0, BK // 4)).to(tl.uint32)[None, :]
        n0, n1, n2, n3 = normals4(q, index, id, k0, k1)
        tile = tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), [BN, BK])
    return tile


@triton.jit(do_not_specialize=["id", "k0", "k1", "rows", "outputs"])
def perturbed_linear_kernel(
    x,  # [K, M, I]
    weight,  # [O, I]
    factors,  # float32 [K, M]
    indices,  # int64 [K]
    y,  # [K, M, O]
    rows,
    outputs,
    inputs,
    x_stack,
    x_row,
    weight_row,
    id,
    k0,
    k1,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    RADEMACHER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of BM rows and BN outputs for one direction; program = (k * row tiles + row tile) * output tiles + output tile."""
    output_tiles, row_tiles = tl.cdiv(outputs, BN), tl.cdiv(rows, BM)
    program = tl.program_id(0)
    k = (program // output_tiles // row_tiles).to(tl.int64)
    m = program // output_tiles % row_tiles * BM + tl.arange(0, BM)
    o = program % output_tiles * BN + tl.arange(0, BN)
    i = tl.arange(0, BK)
    index, id = tl.load(indices + k).to(tl.uint32), id.to(tl.uint32)
    k0, k1 = k0.to(tl.uint32, bitcast=True), k1.to(tl.uint32, bitcast=True)
    from_x = x + k * x_stack + m.to(tl.int64)[:, None] * x_row + i[None, :]
    from_weight = weight + o.to(tl.int64)[:, None] * weight_row + i[None, :]
    base = tl.zeros([BM, BN], tl.float32)
    change = tl.zeros([BM, BN], tl.float32)
    for start in range(0, inputs, BK):
        inside = (start + i < inputs)[None, :]
        a = tl.load(from_x + start, mask=(m < rows)[:, None] & inside, other=0.0)  # zeros silence what z has past the row
        w = tl.load(from_weight + start, mask=(o < outputs)[:, None] & inside, other=0.0)
        z = direction_tile(o, start, inputs, id, index, k0, k1, BN, BK, RADEMACHER)
        base = tl.dot(a, tl.trans(w), base, input_precision=PRECISION)
        change = tl.dot(a, tl.trans(z.to(a.dtype)), change, input_precision=PRECISION)
    factor = tl.load(factors + k * rows + m, mask=m < rows, other=0.0)
    to = y + (k * rows + m[:, None]) * outputs + o[None, :]
    tl.store(to, (base + factor[:, None] * change).to(y.dtype.element_ty), mask=(m < rows)[:, None] & (o < outputs)[None, :])


@dataclass(frozen=True)
class Tile:
    """Rows, outputs and inputs of a program's tile, its warps, and loads in flight."""

    BM: int
    BN: int
    BK: int
    warps: int
    stages: int


def tile(rows: int, dtype: torch.dtype, distribution: str, precision: str) -> Tile:
    """The tile for ``rows`` rows: as many of them as registers allow, for every one shares the cost of the noise."""
    rows = max(16, triton.next_power_of_2(rows))
    if dtype != torch.float32:
        return Tile(min(rows, 128), 64, 64 if distribution == "rademacher" else 32, 8, 2)
    if precision == "tf32":  # 64 outputs by 32 inputs of signs spill on sm_100
        return Tile(min(rows, 128), 32, 64, 8, 2) if distribution == "rademacher" else Tile(min(rows, 128), 64, 32, 8, 2)
    return Tile(min(rows, 64), 64, 16, 8, 2)  # without matrix units: 32 inputs spill registers


def precision(dtype: torch.dtype) -> str:
    """Precision of float32 products, as set for torch's own."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def perturbed_linear(
    x: Tensor,
    weight: Tensor,
    id: int,
    seed: int,
    directions: Sequence[int],
    scales: Tensor,
    eps: Tensor,
    distribution: Distribution,
    rank: int = 0,
    right: int = 0,
) -> Tensor:
    """See :func:`fastscape.ops.perturbed_linear.perturbed_linear`."""
    (outputs, inputs), rows = weight.shape, x.shape[-2]
    if rank or inputs % ELEMENTS_PER_COUNTER[distribution] or x.dtype == torch.float64:
        return one_by_one(x, weight, id, seed, directions, scales, eps, distribution, rank, right)
    y = x.new_empty((len(directions), rows, outputs))
    if y.numel() == 0:
        return y
    x = x if x.stride(-1) == 1 else x.contiguous()
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    factors = coefficients(scales, eps).float()
    how = precision(x.dtype)
    sizes = tile(rows, x.dtype, distribution, how)
    grid = (len(directions) * _triton.ceil_div(rows, sizes.BM) * _triton.ceil_div(outputs, sizes.BN),)
    with torch.cuda.device_of(x):
        perturbed_linear_kernel[grid](
            x,
            weight,
            factors.contiguous(),
            _triton.on_device(directions, x.device),
            y,
            rows,
            outputs,
            inputs,
            0 if x.ndim == 2 else x.stride(0),
            x.stride(-2),
            weight.stride(0),
            id - ((id >> 31) << 32),
            *_triton.key(seed),
            BM=sizes.BM,
            BN=sizes.BN,
            BK=sizes.BK,
            RADEMACHER=distribution == "rademacher",
            PRECISION=how,
            num_warps=sizes.warps,
            num_stages=sizes.stages,
            enable_fp_fusion=False,
        )
    return y
