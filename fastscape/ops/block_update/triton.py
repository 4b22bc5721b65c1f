"""Rows minus combinations of rows in Triton: float64 in registers, one rounding, the norms from what was stored."""
# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscape.ops import _triton
from fastscape.ops.block_gram import adjacent

BLOCK = 512  # elements of a program: 16-byte loads
COLUMNS = 8  # right rows of a program at most: 32 float64 values a thread
WARPS = 4


@triton.jit(do_not_specialize=["k", "m"])
def update_kernel(
    left,  # [k, D]
    right,  # [m, D]
    coefficients,  # float64 [k, m]
    out,  # [m, D]
    partial,  # float64 [blocks, m]
    k,
    m,
    length,
    left_stride,
    right_stride,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A block of elements of COLUMNS rows; grid = (blocks, column tiles)."""
    block = tl.program_id(0).to(tl.int64)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    element = block * BLOCK + tl.arange(0, BLOCK)
    inside = (j < m)[:, None] & (element < length)[None, :]
    value = tl.load(right + j.to(tl.int64)[:, None] * right_stride + element[None, :], mask=inside, other=0.0).to(tl.float64)
    row = left + element
    for i in tl.range(0, k, loop_unroll_factor=4):  # four rows' loads in flight
        a = tl.load(row, mask=element < length, other=0.0).to(tl.float64)
        c = tl.load(coefficients + i * m + j, mask=j < m, other=0.0)
        value -= c[:, None] * a[None, :]
        row += left_stride
    rounded = value.to(out.dtype.element_ty)
    tl.store(out + j.to(tl.int64)[:, None] * length + element[None, :], rounded, mask=inside)
    stored = tl.where(inside, rounded.to(tl.float64), 0.0)  # infinite coefficients make NaN of the padding
    tl.store(partial + block * m + j, tl.sum(stored * stored, 1), mask=j < m)


def block_update(right: Tensor, left: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`fastscape.ops.block_update.block_update`."""
    (m, length), k = right.shape, left.shape[0]
    out = torch.empty(right.shape, dtype=right.dtype, device=right.device)
    if 0 in (m, length):
        return out, right.new_zeros((m,), dtype=torch.float64)
    left, right, coefficients = adjacent(left), adjacent(right), coefficients.contiguous()
    columns = min(COLUMNS, triton.next_power_of_2(m))
    grid = (_triton.ceil_div(length, BLOCK), _triton.ceil_div(m, columns))
    partial = right.new_empty((grid[0], m), dtype=torch.float64)
    strides = (left.stride(0), right.stride(0))
    with torch.cuda.device_of(right):
        update_kernel[grid](
            left, right, coefficients, out, partial, k, m, length, *strides, COLUMNS=columns, BLOCK=BLOCK, num_warps=WARPS
        )
    return out, partial.sum(0)
