"""Differences through a scale and a shift per channel in Triton: what depends on x alone once, then a loop over the lanes."""
# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscape.ops import _triton
from fastscape.ops.affine_difference.reference import affine_difference as reference

BLOCK, WARPS = 512, 4
PROGRAMS = 1024  # as many as fill any chip; beyond them a program takes several directions


@triton.jit(do_not_specialize=["channels", "stretch", "directions", "times", "each"])
def affine_difference_kernel(
    x,  # [N, C, I]
    lanes,  # [K, ORDERS, S', N, C, I]
    radii,  # float64 [S]
    scale,  # [C]
    scale_direction,  # [K, C]
    shift_direction,  # [K, C]
    y,  # [K, 2, S, N, C, I]
    size,  # N C I
    channels,
    stretch,  # I
    directions,  # K
    times,  # S
    each,  # directions of a program
    SCALE: tl.constexpr,  # whether the scale moves
    SHIFT: tl.constexpr,
    ORDERS: tl.constexpr,
    SHARED: tl.constexpr,  # S' = 1
    BLOCK: tl.constexpr,
):
    """All radii of some directions for BLOCK elements; grid = (blocks, groups of directions)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    start = tl.program_id(0).to(tl.int64) * BLOCK % (channels * stretch)  # all but the first division in 32 bits
    channel = (start.to(tl.int32) + tl.arange(0, BLOCK)) // stretch % channels
    base = tl.load(x + i, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(scale + channel, mask=inside, other=0.0).to(tl.float32)
    b = tl.zeros([BLOCK], tl.float32)
    result = size * times.to(tl.int64)  # elements of a result's a, and of its b
    given = size * tl.cast(1, tl.int64) if SHARED else result
    k = tl.program_id(1).to(tl.int64) * each
    from_a, to_a = lanes + k * ORDERS * given + i, y + k * 2 * result + i
    from_scale, from_shift = scale_direction + k * channels + channel, shift_direction + k * channels + channel
    for _ in range(tl.minimum(each, directions - k)):
        if SCALE:
            ga = tl.load(from_scale, mask=inside, other=0.0).to(tl.float32)
        if SHIFT:
            ha = tl.load(from_shift, mask=inside, other=0.0).to(tl.float32)
        for s in range(times):
            e = tl.load(radii + s)
            a = tl.load(from_a, mask=inside, other=0.0).to(tl.float32)
            if ORDERS == 2:
                b = tl.load(from_a + given, mask=inside, other=0.0).to(tl.float32)
            ya, yb = g * a, g * b
            if SCALE:
                ya += ga * (base + (0.5 * e * e).to(tl.float32) * b)
                yb += 2.0 * ga * a
            if SHIFT:
                ya += ha
            tl.store(to_a, ya.to(y.dtype.element_ty), mask=inside)
            tl.store(to_a + result, yb.to(y.dtype.element_ty), mask=inside)
            to_a += size
            if not SHARED:
                from_a += size
        from_a += ORDERS * given if SHARED else (ORDERS - 1) * given
        to_a += result
        from_scale += channels
        from_shift += channels


def affine_difference(
    x: Tensor, lanes: Tensor, radii: Tensor, scale: Tensor, scale_direction: Tensor | None, shift_direction: Tensor | None
) -> Tensor:
    """See :func:`fastscape.ops.affine_difference.affine_difference`."""
    if lanes.dtype == torch.float64 or x.shape[1] * x.shape[2] >= 2**31 - BLOCK:
        return reference(x, lanes, radii, scale, scale_direction, shift_direction)
    y = lanes.new_empty((lanes.shape[0], 2, len(radii), *x.shape))
    if y.numel() == 0:
        return y
    x, lanes = x.contiguous(), lanes.contiguous()
    directions, orders, kept = lanes.shape[:3]
    blocks = _triton.ceil_div(x.numel(), BLOCK)
    each = max(1, directions * blocks // PROGRAMS)
    with torch.cuda.device_of(x):
        affine_difference_kernel[(blocks, _triton.ceil_div(directions, each))](
            x,
            lanes,
            radii.contiguous(),
            scale.contiguous(),
            y if scale_direction is None else scale_direction.contiguous(),
            y if shift_direction is None else shift_direction.contiguous(),
            y,
            x.numel(),
            *x.shape[1:],
            directions,
            len(radii),
            each,
            SCALE=scale_direction is not None,
            SHIFT=shift_direction is not None,
            ORDERS=orders,
            SHARED=kept == 1,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
    return y
