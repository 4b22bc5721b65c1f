"""Differences through pointwise functions in Triton: coefficients once for each x, then a loop over the lanes.

The rules of :mod:`fastscape.ops.pointwise_difference.reference` in float32 with six coefficients; what happens at breakpoints is
decided and computed in float64. The rare cases, a breakpoint crossed or a displacement too large for the series, are computed
only by the programs that meet them: a program is one warp, which can ask its threads without a barrier.
"""
# ruff: noqa: ANN001, ANN201, N803, N806
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastscape.ops import _triton
from fastscape.ops.pointwise_difference.reference import pointwise_difference as reference
from fastscape.ops.pointwise_difference.triton_rules import rest, series, sharpness

BLOCK, WARPS = 128, 1
PROGRAMS = 4096  # as many as fill any chip; beyond them a program takes several directions
SWITCH = tl.constexpr(0.125)  # largest displacement that the series takes, in units of the function's own scale
NEAR = tl.constexpr(1.0001)  # float32 misjudges the distance to a breakpoint by less


@dataclass(frozen=True)
class Shape:
    """Compile-time arguments of a kernel, besides the name of the function.

    Attributes:
        corners: number of breakpoints, at most two.
        points, bends: where, and the change of slope there.
        left: slope of the leftmost piece.
        ramp, step: of the asymptotes of functions that have no breakpoints, or of elu.
        grows: whether f is unbounded to the left and to the right.
    """

    corners: int = 0
    points: tuple[float, float] = (0.0, 0.0)
    bends: tuple[float, float] = (0.0, 0.0)
    left: float = 0.0
    ramp: float = 0.0
    step: float = 0.0
    grows: tuple[bool, bool] = (False, False)

    def constants(self) -> dict[str, float | bool]:
        """Arguments of the kernel."""
        (p0, p1), (b0, b1), (g0, g1) = self.points, self.bends, self.grows
        numbers = {"POINT0": p0, "POINT1": p1, "BEND0": b0, "BEND1": b1, "LEFT": self.left, "RAMP": self.ramp, "STEP": self.step}
        return {"CORNERS": self.corners, **numbers, "GROWS_LEFT": g0, "GROWS_RIGHT": g1}


def shape(kind: str, options: Sequence[float]) -> Shape:
    """The breakpoints and asymptotes of a function."""
    if kind == "clamp":
        (low, high), right = options, (False, False)
        if math.isinf(low) or math.isinf(high):
            corners = [(point, bend) for point, bend in ((low, 1.0), (high, -1.0)) if math.isfinite(point)]
            points, bends = [*(p for p, _ in corners), 0.0, 0.0], [*(b for _, b in corners), 0.0, 0.0]
            left = 1.0 if math.isinf(low) else 0.0
            right = (math.isinf(low), math.isinf(high))
            return Shape(len(corners), (points[0], points[1]), (bends[0], bends[1]), left, grows=right)
        return Shape(2, (low, high), (1.0, -1.0))
    if kind == "leaky_relu":
        return Shape(1, bends=(1.0 - options[0], 0.0), left=options[0], grows=(options[0] != 0, True))
    if kind == "elu":
        alpha, scale, input_scale = options
        return Shape(1, bends=(scale * (1 - alpha * input_scale), 0.0), ramp=scale, grows=(False, True))
    return {
        "abs": Shape(1, bends=(2.0, 0.0), left=-1.0, grows=(True, True)),
        "exp": Shape(grows=(False, True)),
        "gelu": Shape(ramp=1.0, grows=(True, True)),
        "gelu_tanh": Shape(ramp=1.0, grows=(True, True)),
        "hardsigmoid": Shape(2, (-3.0, 3.0), (1 / 6, -1 / 6)),
        "hardswish": Shape(2, (-3.0, 3.0), grows=(False, True)),
        "mish": Shape(ramp=1.0, grows=(True, True)),
        "relu": Shape(1, bends=(1.0, 0.0), grows=(False, True)),
        "sigmoid": Shape(step=1.0),
        "silu": Shape(ramp=1.0, grows=(True, True)),
        "softplus": Shape(ramp=1.0, grows=(False, True)),
        "tanh": Shape(step=2.0),
    }[kind]


@triton.jit
def jump(z, KIND: tl.constexpr, FIRST: tl.constexpr, BEND: tl.constexpr, O0: tl.constexpr, O1: tl.constexpr, O2: tl.constexpr):
    """Excess of the piece to the right of a breakpoint over the left one, at a distance z."""
    if KIND == "hardswish":
        value = z * (z - 3.0) * (1.0 / 6.0) if FIRST else z * (z + 3.0) * (-1.0 / 6.0)
    elif KIND == "elu":  # less than SWITCH away: the series beyond takes what is larger
        w = O2 * z
        beyond = 1.0 + w * (1.0 / 3.0 + w * (1.0 / 12.0 + w * (1.0 / 60.0 + w * (1.0 / 360.0 + w * (1.0 / 2520.0)))))
        value = BEND * z - (O0 * O1 / 2) * (w * w * beyond)
    else:
        value = BEND * z
    return value


@triton.jit
def crossed(
    x,
    plus,
    minus,
    KIND: tl.constexpr,
    FIRST: tl.constexpr,
    POINT: tl.constexpr,
    BEND: tl.constexpr,
    O0: tl.constexpr,
    O1: tl.constexpr,
    O2: tl.constexpr,
):
    """Contribution of a breakpoint at x + plus and at x - minus; the comparisons are exact: neither sum is formed for them."""
    z = x - POINT
    above, up, down = x > POINT, plus > -z, z > minus
    rise, fall = jump(z + plus, KIND, FIRST, BEND, O0, O1, O2), jump(z - minus, KIND, FIRST, BEND, O0, O1, O2)
    rise = tl.where(up == above, 0.0, tl.where(up, rise, -rise))
    fall = tl.where(down == above, 0.0, tl.where(down, fall, -fall))
    return rise, fall


@triton.jit
def asymptotes(x, q, RAMP: tl.constexpr, STEP: tl.constexpr):
    """Excess of ``ramp relu + step`` at q over the continuation of its piece at x."""
    right = RAMP * q + STEP
    return tl.where((q > 0) == (x > 0), 0.0, tl.where(q > 0, right, -right))


@triton.jit(do_not_specialize=["directions", "times", "each"])
def pointwise_difference_kernel(
    x,  # [P]
    lanes,  # [K, ORDERS, S', P]
    radii,  # float64 [S]
    y,  # [K, 2, S, P]
    size,  # P
    directions,  # K
    times,  # S
    each,  # directions of a program
    KIND: tl.constexpr,
    O0: tl.constexpr,
    O1: tl.constexpr,
    O2: tl.constexpr,
    CORNERS: tl.constexpr,
    POINT0: tl.constexpr,
    POINT1: tl.constexpr,
    BEND0: tl.constexpr,
    BEND1: tl.constexpr,
    LEFT: tl.constexpr,
    RAMP: tl.constexpr,
    STEP: tl.constexpr,
    GROWS_LEFT: tl.constexpr,
    GROWS_RIGHT: tl.constexpr,
    ORDERS: tl.constexpr,
    SHARED: tl.constexpr,  # S' = 1
    BLOCK: tl.constexpr,
):
    """All radii of some directions for BLOCK elements; grid = (blocks, groups of directions)."""
    SMOOTH: tl.constexpr = CORNERS == 0 or KIND == "elu"
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    base = tl.load(x + i, mask=inside, other=0.0)
    wide, narrow = base.to(tl.float64), base.to(tl.float32)
    gap = tl.full([BLOCK], float("inf"), tl.float32)
    if CORNERS > 0:
        gap = tl.minimum(gap, tl.abs(wide - POINT0).to(tl.float32))
    if CORNERS > 1:
        gap = tl.minimum(gap, tl.abs(wide - POINT1).to(tl.float32))
    if SMOOTH:
        t1, t2, t3, t4, t5, t6 = series(narrow, KIND, O0, O1, O2)
        lost = tl.where(wide == narrow, 0.0, wide - narrow).to(tl.float32)  # shows where f' or f'' vanishes
        t1, t2, t3 = t1 + 2.0 * t2 * lost, t2 + 3.0 * t3 * lost, t3 + 4.0 * t4 * lost
        sharp, here = sharpness(narrow, KIND, O0, O2), rest(narrow, KIND, O0, O1, O2)
    elif KIND == "hardswish":
        middle = (wide > POINT0) & (wide <= POINT1)
        t1 = tl.where(middle, ((2.0 * wide + 3.0) * (1.0 / 6.0)).to(tl.float32), tl.where(wide > POINT1, 1.0, 0.0))
        t2 = tl.where(middle, 1.0 / 6.0, 0.0)
    else:
        t1 = tl.where(wide > POINT0, LEFT + BEND0, LEFT) if CORNERS > 0 else tl.full([BLOCK], LEFT, tl.float32)
        if CORNERS > 1:
            t1 = tl.where(wide > POINT1, LEFT + BEND0 + BEND1, t1)
    beyond = wide != wide
    if GROWS_LEFT:
        beyond |= wide == float("-inf")
    if GROWS_RIGHT:
        beyond |= wide == float("inf")
    t1 = tl.where(beyond, float("nan"), t1)
    b = tl.zeros([BLOCK], tl.float32)
    result = size * times.to(tl.int64)  # elements of a result's a, and of its b
    given = size * tl.cast(1, tl.int64) if SHARED else result
    k = tl.program_id(1).to(tl.int64) * each
    from_a, to_a = lanes + k * ORDERS * given + i, y + k * 2 * result + i
    for _ in range(tl.minimum(each, directions - k)):
        for s in range(times):
            e64 = tl.load(radii + s)
            e = e64.to(tl.float32)
            a = tl.load(from_a, mask=inside, other=0.0).to(tl.float32)
            if ORDERS == 2:
                b = tl.load(from_a + given, mask=inside, other=0.0).to(tl.float32)
            half = 0.5 * e * b
            up, down = a + half, a - half
            product, plus, minus = up * down, e * up, e * down
            reach = tl.maximum(tl.abs(plus), tl.abs(minus))
            if SMOOTH:
                d, q = e * (e * b), e * (e * product)
                second = t5 + d * t6
                first = t4 + d * second + q * t6
                second, first = first, t3 + d * first + q * second
                second, first = first, t2 + d * first + q * second
                second, first = first, t1 + d * first + q * second
                ya, yb = a * first, b * first + 2.0 * product * second
            elif KIND == "hardswish":
                first = t1 + e * (e * b) * t2
                ya, yb = a * first, b * first + 2.0 * product * t2
            else:
                ya, yb = a * t1, b * t1
            if CORNERS > 0:
                near = reach * NEAR > gap
                if SMOOTH:
                    near &= reach * sharp <= SWITCH
                if tl.max(near.to(tl.int32), 0) > 0:
                    unit = 1.0 / tl.where(e64 == 0, 1.0, e64)
                    wide_a, wide_half = a.to(tl.float64), 0.5 * e64 * b.to(tl.float64)
                    above, below = e64 * (wide_a + wide_half), e64 * (wide_a - wide_half)
                    rise, fall = crossed(wide, above, below, KIND, True, POINT0, BEND0, O0, O1, O2)
                    if CORNERS > 1:
                        more, less = crossed(wide, above, below, KIND, False, POINT1, BEND1, O0, O1, O2)
                        rise, fall = rise + more, fall + less
                    ya += tl.where(near, 0.5 * unit * (rise - fall), 0.0).to(tl.float32)
                    yb += tl.where(near, unit * (unit * (rise + fall)), 0.0).to(tl.float32)
            if SMOOTH:
                large = reach * sharp > SWITCH
                if tl.max(large.to(tl.int32), 0) > 0:
                    unit = 1.0 / tl.where(e == 0, 1.0, e)
                    after, before = narrow + plus, narrow - minus
                    slope = tl.where(narrow > 0, RAMP, 0.0) + (t1 - t1)
                    rise = asymptotes(narrow, after, RAMP, STEP) + (rest(after, KIND, O0, O1, O2) - here)
                    fall = asymptotes(narrow, before, RAMP, STEP) + (rest(before, KIND, O0, O1, O2) - here)
                    ya = tl.where(large, slope * a + 0.5 * unit * (rise - fall), ya)
                    yb = tl.where(large, slope * b + unit * (unit * (rise + fall)), yb)
            tl.store(to_a, ya.to(y.dtype.element_ty), mask=inside)
            tl.store(to_a + result, yb.to(y.dtype.element_ty), mask=inside)
            to_a += size
            if not SHARED:
                from_a += size
        from_a += ORDERS * given if SHARED else (ORDERS - 1) * given
        to_a += result


def pointwise_difference(x: Tensor, lanes: Tensor, radii: Tensor, kind: str, options: Sequence[float]) -> Tensor:
    """See :func:`fastscape.ops.pointwise_difference.pointwise_difference`."""
    if lanes.dtype == torch.float64:
        return reference(x, lanes, radii, kind, options)
    y = lanes.new_empty((lanes.shape[0], 2, len(radii), *x.shape))
    if y.numel() == 0:
        return y
    x, lanes, radii = x.contiguous(), lanes.contiguous(), radii.contiguous()
    directions, orders, kept = lanes.shape[:3]
    blocks = _triton.ceil_div(x.numel(), BLOCK)
    each = max(1, directions * blocks // PROGRAMS)
    with torch.cuda.device_of(x):
        pointwise_difference_kernel[(blocks, _triton.ceil_div(directions, each))](
            x,
            lanes,
            radii,
            y,
            x.numel(),
            directions,
            len(radii),
            each,
            **constants(kind, options, orders, kept == 1),
            num_warps=WARPS,
        )
    return y


def constants(kind: str, options: Sequence[float], orders: int, shared: bool) -> dict[str, object]:
    """Compile-time arguments of the kernel."""
    given = dict(zip(("O0", "O1", "O2"), [*options, 0.0, 0.0, 0.0], strict=False))
    return {"KIND": kind, **given, **shape(kind, options).constants(), "ORDERS": orders, "SHARED": shared, "BLOCK": BLOCK}
