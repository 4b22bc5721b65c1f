"""Pointwise functions in Triton, float32: six Taylor coefficients, and what is left of a function without its asymptotes.

The same rules as :mod:`fastscape.ops.pointwise_difference.rules`, with closed forms of the coefficients.
"""
# ruff: noqa: ANN001, ANN201, N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"

from __future__ import annotations

import triton
import triton.language as tl

from fastscape.ops._triton_functions import bell, exp, log1p, scaled_tail, tanh


@triton.jit
def bounded(x, most):
    """The number itself in [-most, most], else the nearer end; NaN stays."""
    return tl.where(x > most, most, tl.where(x < -most, -most, x))


@triton.jit
def shares(w):
    """For w = e^-|x| the smaller and the larger of sigmoid(x) and sigmoid(-x)."""
    larger = 1.0 / (1.0 + w)
    return w * larger, larger


@triton.jit
def logistic(x):
    """Coefficients t_0 .. t_6 of the sigmoid, as polynomials in its slope and tanh(x / 2)."""
    near, far = shares(exp(-tl.abs(x)))
    s, v = near * far, tanh(0.5 * x)
    sv = s * v
    return (
        tl.where(x > 0, far, near),
        s,
        sv * -0.5,
        s * (1.0 - 6.0 * s) * (1.0 / 6.0),
        sv * (1.0 - 12.0 * s) * (-1.0 / 24.0),
        s * (1.0 - 30.0 * s + 120.0 * s * s) * (1.0 / 120.0),
        sv * (1.0 - 60.0 * s + 360.0 * s * s) * (-1.0 / 720.0),
    )


@triton.jit
def tanh_of(w0, s0, g0, g1, g2, g3, g4, g5):
    """Coefficients t_1 .. t_6 of w = tanh(g) from w, 1 - w^2 and the coefficients of g', by w' = (1 - w^2) g'."""
    w1 = s0 * g0
    s1 = -2.0 * w0 * w1
    w2 = (s0 * g1 + s1 * g0) * 0.5
    s2 = -(2.0 * w0 * w2 + w1 * w1)
    w3 = (s0 * g2 + s1 * g1 + s2 * g0) * (1.0 / 3.0)
    s3 = -2.0 * (w0 * w3 + w1 * w2)
    w4 = (s0 * g3 + s1 * g2 + s2 * g1 + s3 * g0) * 0.25
    s4 = -(2.0 * (w0 * w4 + w1 * w3) + w2 * w2)
    w5 = (s0 * g4 + s1 * g3 + s2 * g2 + s3 * g1 + s4 * g0) * 0.2
    s5 = -2.0 * (w0 * w5 + w1 * w4 + w2 * w3)
    w6 = (s0 * g5 + s1 * g4 + s2 * g3 + s3 * g2 + s4 * g1 + s5 * g0) * (1.0 / 6.0)
    return w1, w2, w3, w4, w5, w6


@triton.jit
def with_factor(x, c0, c1, c2, c3, c4, c5, c6):
    """Coefficients t_1 .. t_6 of x g(x) from those of g."""
    return x * c1 + c0, x * c2 + c1, x * c3 + c2, x * c4 + c3, x * c5 + c4, x * c6 + c5


@triton.jit
def gelu_series(x):
    """Coefficients t_1 .. t_6 of x Phi(x), by the Hermite polynomials."""
    x = bounded(x, 40.0)
    curve = bell(x)
    tail = scaled_tail(tl.minimum(tl.abs(x), 14.0)) * curve
    c1 = 0.3989422804014327 * curve
    h2 = x * x - 1.0
    h3 = x * (h2 - 2.0)
    h4 = x * h3 - 3.0 * h2
    h5 = x * h4 - 4.0 * h3
    whole = tl.where(x > 0, 1.0 - tail, tail)
    return with_factor(
        x,
        whole,
        c1,
        x * c1 * -0.5,
        h2 * c1 * (1.0 / 6.0),
        h3 * c1 * (-1.0 / 24.0),
        h4 * c1 * (1.0 / 120.0),
        h5 * c1 * (-1.0 / 720.0),
    )


@triton.jit
def gelu_tanh_series(x):
    """Coefficients t_1 .. t_6; the argument of tanh is formed in float64, as its rounding would show in the tails."""
    x = bounded(x, 40.0)
    wide = x.to(tl.float64)
    wide = wide * (1.5957691216057308 + 0.0713548162726009 * wide * wide)
    inside = wide.to(tl.float32)
    lost = (wide - inside.to(tl.float64)).to(tl.float32)
    near, far = shares(exp(-tl.abs(inside)) * (1.0 - tl.where(x > 0, lost, -lost)))
    g0, g1 = 0.7978845608028654 + 0.10703222440890135 * x * x, 0.2140644488178027 * x
    zero = tl.zeros_like(x)
    g2 = zero + 0.10703222440890135
    w1, w2, w3, w4, w5, w6 = tanh_of(tanh(0.5 * inside), 4.0 * near * far, g0, g1, g2, zero, zero, zero)
    return with_factor(x, tl.where(x > 0, far, near), 0.5 * w1, 0.5 * w2, 0.5 * w3, 0.5 * w4, 0.5 * w5, 0.5 * w6)


@triton.jit
def mish_factor(x):
    """``tanh(softplus(x))`` and its distance from 1."""
    w = exp(-tl.abs(x))
    whole = tl.where(x > 0, 1.0 + 2.0 * w, w * (w + 2.0))
    below = tl.where(x > 0, 2.0 * w * w, 2.0)
    both = whole + below
    return whole / both, below / both


@triton.jit
def mish_series(x):
    """Coefficients t_1 .. t_6 of x tanh(softplus(x))."""
    x = bounded(x, 800.0)
    value, distance = mish_factor(x)
    c0, c1, c2, c3, c4, c5, _ = logistic(x)
    w1, w2, w3, w4, w5, w6 = tanh_of(value, distance * (1.0 + value), c0, c1, c2, c3, c4, c5)
    return with_factor(x, value, w1, w2, w3, w4, w5, w6)


@triton.jit
def series(x, KIND: tl.constexpr, O0: tl.constexpr, O1: tl.constexpr, O2: tl.constexpr):
    """Taylor coefficients t_1 .. t_6 at x of the piece that holds x."""
    if KIND == "gelu":
        t1, t2, t3, t4, t5, t6 = gelu_series(x)
    elif KIND == "gelu_tanh":
        t1, t2, t3, t4, t5, t6 = gelu_tanh_series(x)
    elif KIND == "mish":
        t1, t2, t3, t4, t5, t6 = mish_series(x)
    elif KIND == "silu":
        c0, c1, c2, c3, c4, c5, c6 = logistic(x)
        t1, t2, t3, t4, t5, t6 = with_factor(x, c0, c1, c2, c3, c4, c5, c6)
    elif KIND == "sigmoid":
        _, t1, t2, t3, t4, t5, t6 = logistic(x)
    elif KIND == "tanh":
        _, c1, c2, c3, c4, c5, c6 = logistic(2.0 * x)
        t1, t2, t3, t4, t5, t6 = 4.0 * c1, 8.0 * c2, 16.0 * c3, 32.0 * c4, 64.0 * c5, 128.0 * c6
    elif KIND == "softplus":
        c0, c1, c2, c3, c4, c5, _ = logistic(O0 * x)
        t1, t2, t3 = c0, c1 * (O0 / 2), c2 * (O0 * O0 / 3)
        t4, t5, t6 = c3 * (O0 * O0 * O0 / 4), c4 * (O0 * O0 * O0 * O0 / 5), c5 * (O0 * O0 * O0 * O0 * O0 / 6)
    elif KIND == "elu":
        c = tl.where(x > 0, 0.0, (O0 * O1) * exp(O2 * tl.where(x > 0, 0.0, x)))
        t1 = tl.where(x > 0, O1, O2 * c)
        c *= O2 * O2 / 2
        t2, t3, t4 = c, c * (O2 / 3), c * (O2 * O2 / 12)
        t5, t6 = c * (O2 * O2 * O2 / 60), c * (O2 * O2 * O2 * O2 / 360)
    else:
        tl.static_assert(KIND == "exp")
        t1 = exp(x)
        t2, t3, t4, t5, t6 = t1 * 0.5, t1 * (1.0 / 6.0), t1 * (1.0 / 24.0), t1 * (1.0 / 120.0), t1 * (1.0 / 720.0)
    return t1, t2, t3, t4, t5, t6


@triton.jit
def rest(x, KIND: tl.constexpr, O0: tl.constexpr, O1: tl.constexpr, O2: tl.constexpr):
    """The function without ``ramp relu(x) + step [x > 0]``."""
    w = tl.abs(x)
    if KIND == "gelu":
        w = tl.minimum(w, 14.0)
        value = -tl.abs(x) * (scaled_tail(w) * bell(w))
    elif KIND == "gelu_tanh":
        near, _ = shares(exp(-w * (1.5957691216057308 + 0.0713548162726009 * w * w)))
        value = -w * near
    elif KIND == "mish":
        whole, distance = mish_factor(x)
        value = tl.where(x > 0, -x * distance, x * whole)
    elif KIND == "silu":
        near, _ = shares(exp(-w))
        value = -w * near
    elif KIND == "sigmoid":
        near, _ = shares(exp(-w))
        value = tl.where(x > 0, -near, near)
    elif KIND == "tanh":
        near, _ = shares(exp(-2.0 * w))
        value = tl.where(x > 0, -2.0, 2.0) * near
    elif KIND == "softplus":
        value = log1p(exp(-O0 * w)) * (1.0 / O0)
    elif KIND == "elu":
        value = (O0 * O1) * exp(O2 * tl.where(x > 0, 0.0, x))
    else:
        tl.static_assert(KIND == "exp")
        value = exp(x)
    return value


@triton.jit
def sharpness(x, KIND: tl.constexpr, O0: tl.constexpr, O2: tl.constexpr):
    """1 / the length on which the function changes, near x: what six coefficients reach is shorter in tails like exp(-x^2)."""
    if KIND == "softplus":
        scale = tl.zeros_like(x) + O0
    elif KIND == "elu":
        scale = tl.zeros_like(x) + O2
    elif KIND == "gelu":
        scale = tl.maximum(1.0, 0.4 * tl.abs(x))
    elif KIND == "gelu_tanh":
        scale = tl.maximum(1.0, 0.5 + 0.05 * x * x)
    else:
        scale = tl.full(x.shape, 1.0, tl.float32)
    return scale
