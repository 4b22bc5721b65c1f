"""Functions of float32 for Triton kernels, of plain arithmetic alone: the same interpreted and compiled.

Right to a few units in the last place of the value, in tails and at small arguments too, which the chips' own instructions are
not. A number that is none stays none.
"""
# ruff: noqa: ANN001, ANN202
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def power_of_two(n):
    """2^n for int32 n in [-126, 127]."""
    return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def reduced(x):
    """The whole n and r with x = n log 2 + r, as n and e^r - 1."""
    n = tl.floor(tl.minimum(tl.maximum(x, -120.0), 120.0) * 1.4426950408889634 + 0.5)
    r = (x - n * 0.693359375) + n * 2.12194440e-4  # the first product is exact
    p = 1.9875691500e-4 * r + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    return n.to(tl.int32), p * (r * r) + r


@triton.jit
def exp(x):
    """e^x, denormal results included."""
    n, tail = reduced(x)
    half = n >> 1
    value = (1.0 + tail) * power_of_two(half) * power_of_two(n - half)
    return tl.where(x < -120.0, 0.0, value)


@triton.jit
def expm1(x):
    """e^x - 1, relative to itself."""
    n, tail = reduced(x)
    half = power_of_two(tl.minimum(tl.maximum(n - 1, -126), 127))  # 2^n overflows before the result does
    value = (half * tail + (half - 0.5)) * 2.0
    return tl.where(x > 88.73, float("inf"), tl.where(x < -30.0, -1.0, value))


@triton.jit
def log1p(x):
    """log(1 + x), relative to itself, for x > -1; what 1 + x loses is added at the end."""
    u = 1.0 + x
    bits = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    n = (bits >> 23).to(tl.float32)
    f = ((bits & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    t = f / (2.0 + f)
    z = t * t
    p = 1.0 / 9.0 * z + 1.0 / 7.0
    p = p * z + 1.0 / 5.0
    p = p * z + 1.0 / 3.0
    value = 2.0 * (t + t * (z * p)) + (n * -2.12194440e-4 + (x - (u - 1.0)) / u)
    return tl.where(u < float("inf"), value + n * 0.693359375, u)


@triton.jit
def tanh(x):
    """The hyperbolic tangent, relative to itself."""
    z = x * x
    p = -5.70498872745e-3 * z + 2.06390887954e-2
    p = p * z - 5.37397155531e-2
    p = p * z + 1.33314422036e-1
    p = p * z - 3.33332819422e-1
    w = tl.abs(x)
    large = 1.0 - 2.0 / (exp(2.0 * w) + 1.0)
    return tl.where(w < 0.625, x + x * (z * p), tl.where(x < 0.0, -large, large))


@triton.jit
def bell(x):
    """exp(-x^2 / 2): the rounding of the square, which the exponential would magnify, is undone."""
    square = x * x
    high = (x.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
    low = x - high
    lost = ((high * high - square) + 2.0 * high * low) + low * low
    return exp(-0.5 * square) * (1.0 - 0.5 * lost)


@triton.jit
def scaled_tail(x):
    """The normal distribution's tail beyond x times exp(x^2 / 2), for 0 <= x < 14: a polynomial in 1 / (1 + x / sqrt 8)."""
    t = 1.0 / (1.0 + 0.35355339059327373 * x)
    p = -0.059124596416950226 * t + 0.2848469913005829
    p = p * t - 0.48776450753211975
    p = p * t + 0.27871477603912354
    p = p * t - 0.027073049917817116
    p = p * t + 0.2028767466545105
    p = p * t + 0.24305561184883118
    p = p * t + 0.28238195180892944
    p = p * t + 0.282086044549942
    return 0.5 * t * p
