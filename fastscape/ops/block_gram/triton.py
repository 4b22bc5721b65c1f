"""Products of rows in Triton: float64 sums in registers, one pass over both blocks, no atomics (the same bits every time)."""
# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscape.ops import _triton
from fastscape.ops.block_gram import adjacent

STRETCH = 16384  # elements whose products a program sums
MOST_STRETCHES = 4096  # longer rows have longer stretches: the partial sums stay a small table
WARPS = 4


@triton.jit(do_not_specialize=["k", "m", "steps"])
def gram_kernel(
    left,  # [k, D]
    right,  # [m, D]
    partial,  # float64 [stretches, k, m]
    k,
    m,
    length,
    left_stride,
    right_stride,
    steps,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """ROWS by COLUMNS products over ``steps`` blocks of elements; grid = (row tiles, column tiles, stretches)."""
    stretch = tl.program_id(2).to(tl.int64)
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    from_left = left + i.to(tl.int64)[:, None, None] * left_stride
    from_right = right + j.to(tl.int64)[None, :, None] * right_stride
    sums = tl.zeros([ROWS, COLUMNS, BLOCK], tl.float64)
    for step in range(steps):
        element = ((stretch * steps + step) * BLOCK + tl.arange(0, BLOCK))[None, None, :]
        a = tl.load(from_left + element, mask=(i < k)[:, None, None] & (element < length), other=0.0)
        b = tl.load(from_right + element, mask=(j < m)[None, :, None] & (element < length), other=0.0)
        sums += a.to(tl.float64) * b.to(tl.float64)
    to = partial + (stretch * k + i[:, None]) * m + j[None, :]
    tl.store(to, tl.sum(sums, 2), mask=(i < k)[:, None] & (j < m)[None, :])


def tile(columns: int) -> dict[str, int]:
    """Sizes of a program's tile: 32 float64 sums a thread, as square as ``columns`` right rows let it be."""
    width = min(8, triton.next_power_of_2(columns))
    height = min(8, 32 // width)
    return {"ROWS": height, "COLUMNS": width, "BLOCK": 32 * WARPS * (32 // (height * width))}


def block_gram(left: Tensor, right: Tensor) -> Tensor:
    """See :func:`fastscape.ops.block_gram.block_gram`."""
    (k, length), m = left.shape, right.shape[0]
    if 0 in (k, m, length):
        return left.new_zeros((k, m), dtype=torch.float64)
    left, right, sizes = adjacent(left), adjacent(right), tile(m)
    steps = max(STRETCH // sizes["BLOCK"], _triton.ceil_div(length, MOST_STRETCHES * sizes["BLOCK"]))
    stretches = _triton.ceil_div(length, steps * sizes["BLOCK"])
    partial = left.new_empty((stretches, k, m), dtype=torch.float64)
    grid = (_triton.ceil_div(k, sizes["ROWS"]), _triton.ceil_div(m, sizes["COLUMNS"]), stretches)
    strides = (left.stride(0), right.stride(0))
    with torch.cuda.device_of(left):
        gram_kernel[grid](left, right, partial, k, m, length, *strides, steps, **sizes, num_warps=WARPS)
    return partial.sum(0)
