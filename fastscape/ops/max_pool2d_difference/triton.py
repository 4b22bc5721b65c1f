"""Max-pooling of planes in difference lanes in Triton: the largest of each window once, then a loop over the lanes.

Whether any other element can become the largest is asked of bounds in float32; where it can, the window is compared in float64.
A program is one warp, which can ask its threads without a barrier.
"""
# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscape.ops import _triton
from fastscape.ops.max_pool2d_difference.reference import max_pool2d_difference as reference

BLOCK, WARPS = 64, 1
PROGRAMS = 4096  # as many as fill any chip; beyond them a program takes several directions
NAN = tl.constexpr(tl.PropagateNan.ALL)
NEAR = tl.constexpr(1.0001)  # float32 misjudges bounds by less


@triton.jit
def place(i, j, top, left, height, width, DILATION0: tl.constexpr, DILATION1: tl.constexpr):
    """Position in its plane of a window's element (i, j), and whether it lies inside."""
    row, column = top + i * DILATION0, left + j * DILATION1
    return row * width + column, (row >= 0) & (row < height) & (column >= 0) & (column < width)


@triton.jit
def rises(from_a, given, at, inside, e, ORDERS: tl.constexpr):
    """The float32 lanes of an element, and x+ - x and x- - x in the precision of e."""
    a = tl.load(from_a + at, mask=inside, other=0.0)
    b = tl.zeros_like(a)
    if ORDERS == 2:
        b = tl.load(from_a + given + at, mask=inside, other=0.0)
    step, middle = e * a.to(e.dtype), 0.5 * e * e * b.to(e.dtype)
    return a, b, middle + step, middle - step


@triton.jit(do_not_specialize=["size", "height", "width", "out_height", "out_width", "directions", "times", "each"])
def max_pool2d_difference_kernel(
    x,  # [N, H, W]
    lanes,  # [K, ORDERS, S', N, H, W]
    radii,  # float64 [S]
    y,  # [K, 2, S, N, OH, OW]
    count,  # N H W
    size,  # N OH OW
    height,
    width,
    out_height,
    out_width,
    directions,  # K
    times,  # S
    each,  # directions of a program
    KERNEL0: tl.constexpr,
    KERNEL1: tl.constexpr,
    STRIDE0: tl.constexpr,
    STRIDE1: tl.constexpr,
    PADDING0: tl.constexpr,
    PADDING1: tl.constexpr,
    DILATION0: tl.constexpr,
    DILATION1: tl.constexpr,
    ORDERS: tl.constexpr,
    SHARED: tl.constexpr,  # S' = 1
    BLOCK: tl.constexpr,
):
    """All radii of some directions for BLOCK windows; grid = (blocks, groups of directions)."""
    window = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = window < size
    area = out_height.to(tl.int64) * out_width
    start = window // area * height * width
    within = (window % area).to(tl.int32)
    top, left = within // out_width * STRIDE0 - PADDING0, within % out_width * STRIDE1 - PADDING1
    largest = tl.full([BLOCK], float("-inf"), tl.float64)
    found, best, some = tl.full([BLOCK], -1, tl.int32), tl.zeros([BLOCK], tl.int32), tl.zeros([BLOCK], tl.int1)
    for i in range(KERNEL0):
        for j in range(KERNEL1):
            at, inside = place(i, j, top, left, height, width, DILATION0, DILATION1)
            inside &= real
            value = tl.load(x + start + at, mask=inside, other=float("-inf")).to(tl.float64)
            better = inside & ((found < 0) | (value > largest) | ((value != value) & (largest == largest)))
            largest, best = tl.where(better, value, largest), tl.where(better, at, best)
            found, some = tl.where(better, i * KERNEL1 + j, found), some | inside
    lost = tl.where(largest != largest, float("nan"), 0.0)
    result = size.to(tl.int64) * times
    given = count * tl.cast(1, tl.int64) if SHARED else count * times.to(tl.int64)
    k = tl.program_id(1).to(tl.int64) * each
    from_a, to_a = lanes + k * ORDERS * given + start, y + k * 2 * result + window
    for _ in range(tl.minimum(each, directions - k)):
        for s in range(times):
            wide = tl.load(radii + s)
            e = wide.to(tl.float32)
            ya, yb, own_up, own_down = rises(from_a, given, best, some, e, ORDERS)
            own = tl.maximum(tl.abs(own_up), tl.abs(own_down))
            near = tl.zeros([BLOCK], tl.int1)
            for i in range(KERNEL0):
                for j in range(KERNEL1):
                    at, inside = place(i, j, top, left, height, width, DILATION0, DILATION1)
                    inside &= real & (found != i * KERNEL1 + j)
                    gap = (largest - tl.load(x + start + at, mask=inside, other=0.0).to(tl.float64)).to(tl.float32)
                    _a, _b, up, down = rises(from_a, given, at, inside, e, ORDERS)
                    reach = NEAR * (tl.maximum(tl.abs(up), tl.abs(down)) + own)
                    near |= inside & ((reach <= gap) == 0) & ((reach > 0) | (reach != reach) | (gap != gap))
            if (tl.max(near.to(tl.int32), 0) > 0) & (wide != 0):
                _a, _b, own_high, own_low = rises(from_a, given, best, some, wide, ORDERS)
                high, low = own_high, own_low
                for i in range(KERNEL0):
                    for j in range(KERNEL1):
                        at, inside = place(i, j, top, left, height, width, DILATION0, DILATION1)
                        inside &= real & (found != i * KERNEL1 + j)
                        behind = tl.load(x + start + at, mask=inside, other=0.0).to(tl.float64) - largest
                        _a, _b, rise, fall = rises(from_a, given, at, inside, wide, ORDERS)
                        higher = tl.maximum(high, behind + rise, propagate_nan=NAN)
                        lower = tl.maximum(low, behind + fall, propagate_nan=NAN)
                        high, low = tl.where(inside, higher, high), tl.where(inside, lower, low)
                unit = 1.0 / tl.where(wide == 0, 1.0, wide)
                moved = (high != own_high) | (low != own_low)
                ya = tl.where(moved, (0.5 * unit * (high - low)).to(tl.float32), ya)
                yb = tl.where(moved, (unit * (unit * (high + low))).to(tl.float32), yb)
            tl.store(to_a, tl.where(some, ya + lost, 0.0), mask=real)
            tl.store(to_a + result, tl.where(some, yb + lost, 0.0), mask=real)
            to_a += size
            if not SHARED:
                from_a += count
        from_a += ORDERS * given if SHARED else (ORDERS - 1) * given
        to_a += result


def max_pool2d_difference(
    x: Tensor,
    lanes: Tensor,
    radii: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output: Sequence[int],
) -> Tensor:
    """See :func:`fastscape.ops.max_pool2d_difference.max_pool2d_difference`."""
    if lanes.dtype == torch.float64 or x.shape[1] * x.shape[2] >= 2**31 or output[0] * output[1] >= 2**31:
        return reference(x, lanes, radii, kernel, stride, padding, dilation, output)
    y = lanes.new_empty((lanes.shape[0], 2, len(radii), x.shape[0], *output))
    if y.numel() == 0:
        return y
    x, lanes = x.contiguous(), lanes.contiguous()
    directions, orders, kept = lanes.shape[:3]
    size = y[0, 0, 0].numel()
    blocks = _triton.ceil_div(size, BLOCK)
    each = max(1, directions * blocks // PROGRAMS)
    numbers = {"KERNEL": kernel, "STRIDE": stride, "PADDING": padding, "DILATION": dilation}
    with torch.cuda.device_of(x):
        max_pool2d_difference_kernel[(blocks, _triton.ceil_div(directions, each))](
            x,
            lanes,
            radii.contiguous(),
            y,
            x.numel(),
            size,
            *x.shape[1:],
            *output,
            directions,
            len(radii),
            each,
            **{f"{name}{axis}": values[axis] for name, values in numbers.items() for axis in (0, 1)},
            ORDERS=orders,
            SHARED=kept == 1,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return y
