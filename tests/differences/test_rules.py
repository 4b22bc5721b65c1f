"""Every rule against 60 digits or against plain differences, with b and without, for one radius and for several."""

import itertools

import mpmath
import pytest
import torch

from fastscape.differences import algebra
from fastscape.differences.propagation import MissingRuleError, as_values, plain, propagated
from fastscape.differences.rules.table import RULES
from fastscape.differences.triple import Decision, Frame, Triple

F32, F64 = torch.float32, torch.float64
aten = torch.ops.aten
RADII = [0.0, 1e-9, 1e-6, 1e-4, 1e-2, 0.1, 0.7]
UNIT = {F32: 2.0**-24, F64: 2.0**-53}


# ---------------------------------------------------------------- closed forms at 60 digits
def positive(draw, shape):
    return 10 ** (2 * torch.rand(shape, generator=draw, dtype=F64) - 1)


def signed(draw, shape):
    return 2 * torch.randn(shape, generator=draw, dtype=F64)


CLOSED = {
    "square": (algebra.square, lambda v: v * v, signed),
    "reciprocal": (algebra.reciprocal, lambda v: 1 / v, positive),
    "root": (algebra.root, mpmath.sqrt, positive),
    "exponential": (algebra.exponential, mpmath.exp, signed),
    "logarithm": (algebra.logarithm, mpmath.log, positive),
    "rsqrt": (lambda frame, x: RULES[aten.rsqrt.default](frame, x.x, x), lambda v: 1 / mpmath.sqrt(v), positive),
    "log1p": (lambda frame, x: RULES[aten.log1p.default](frame, x.x, x), mpmath.log1p, positive),
    "sin": (lambda frame, x: RULES[aten.sin.default](frame, x.x, x), mpmath.sin, signed),
    "cos": (lambda frame, x: RULES[aten.cos.default](frame, x.x, x), mpmath.cos, signed),
    "erf": (lambda frame, x: RULES[aten.erf.default](frame, x.x, x), mpmath.erf, signed),
    "atan": (lambda frame, x: RULES[aten.atan.default](frame, x.x, x), mpmath.atan, signed),
    "asinh": (lambda frame, x: RULES[aten.asinh.default](frame, x.x, x), mpmath.asinh, signed),
    "sinh": (lambda frame, x: RULES[aten.sinh.default](frame, x.x, x), mpmath.sinh, signed),
    "cube": (lambda frame, x: RULES[aten.pow.Tensor_Scalar](frame, x.x, x, 3), lambda v: v**3, signed),
    "power": (lambda frame, x: RULES[aten.pow.Tensor_Scalar](frame, x.x, x, 1.7), lambda v: v ** mpmath.mpf(1.7), positive),
    "inverse square": (lambda frame, x: RULES[aten.pow.Tensor_Scalar](frame, x.x, x, -2), lambda v: v**-2, positive),
    "two to the": (lambda frame, x: RULES[aten.exp2.default](frame, x.x, x), lambda v: mpmath.mpf(2) ** v, signed),
}


@pytest.mark.parametrize("dtype", [F32, F64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", sorted(CLOSED))
def test_a_function_of_one_number_is_right_to_rounding_at_every_radius(name, dtype):
    r"""Errors in units of rounding of :math:`|a f'| + |a_y|` and of :math:`|b f'| + a^2 |f''| + |b_y|`."""
    rule, function, sample = CLOSED[name]
    draw = torch.Generator().manual_seed(5)
    x = sample(draw, (6,)).to(dtype)
    size = 0.3 * x.abs() if sample is positive else 1.0
    lanes = (torch.randn(1, 2, 1, 6, generator=draw, dtype=F64) * size).to(dtype)
    found = rule(Frame(torch.tensor(RADII, dtype=F64), dtype), Triple(x, lanes)).double().expand(1, 2, len(RADII), 6)
    with mpmath.workdps(60):
        for i, (s, radius) in itertools.product(range(6), enumerate(map(mpmath.mpf, RADII))):
            at, a, b = (mpmath.mpf(v.item()) for v in (x[i], lanes[0, 0, 0, i], lanes[0, 1, 0, i]))
            slope, bend = mpmath.diff(function, at), mpmath.diff(function, at, 2)
            exact = (a * slope, b * slope + a * a * bend)
            if radius:
                up, here, down = (function(at + q * radius * a + radius**2 / 2 * b) if q else function(at) for q in (1, 0, -1))
                exact = ((up - down) / (2 * radius), (up - 2 * here + down) / radius**2)
            units = (
                UNIT[dtype] * (abs(a * slope) + abs(exact[0])),
                UNIT[dtype] * (abs(b * slope) + a * a * abs(bend) + abs(exact[1])),
            )
            for part in (0, 1):
                allowed = 60 * units[part]
                if radius > 0.05:  # beyond the switch functions are subtracted, whose size may be more than their differences'
                    allowed = 4000 * units[part] + UNIT[F64] * abs(function(at)) / radius ** (part + 1)
                assert abs(found[0, part, s, i].item() - exact[part]) < allowed, (float(at), float(radius), part)


def test_a_length_that_is_zero_all_along_does_not_move():
    x = Triple(torch.zeros(2), torch.zeros(1, 2, 3, 2))
    assert torch.equal(algebra.root(Frame(torch.tensor([0.0, 1e-3, 1.0], dtype=F64), F32), x), torch.zeros(1, 2, 3, 2))


# ---------------------------------------------------------------- operations against plain differences
def call(*arguments, **keywords):
    return arguments, keywords


class M:
    """An operand that moves, with a way to make it."""

    def __init__(self, *shape, make=lambda t: t, parameter=False):
        self.shape, self.make, self.parameter = shape, make, parameter


def away(t):
    return t.abs() + 0.5


def inside(t):
    return 0.4 + 0.2 * t.sigmoid()


INDEX = torch.tensor([2, 0, 1])
BOOL = torch.tensor([[True, False, True, False]]).expand(3, 4)
OPERATIONS = {
    "add": (aten.add.Tensor, call(M(3, 4), M(4), alpha=0.5)),
    "add number": (aten.add.Tensor, call(M(3, 4), 2.0)),
    "sub broadcast": (aten.sub.Tensor, call(M(4), M(3, 1))),
    "rsub": (aten.rsub.Scalar, call(M(3, 4), 2.0, 3.0)),
    "mul broadcast": (aten.mul.Tensor, call(M(3, 1), M(2, 1, 4))),
    "div": (aten.div.Tensor, call(M(3, 4), M(4, make=away))),
    "addcmul": (aten.addcmul.default, call(M(3, 4), M(4), M(3, 1), value=0.3)),
    "addcdiv": (aten.addcdiv.default, call(M(3, 4), M(4), M(3, 1, make=away), value=0.3)),
    "lerp": (aten.lerp.Tensor, call(M(3, 4), M(3, 4), M(3, 4))),
    "pow of two": (aten.pow.Tensor_Tensor, call(M(3, 4, make=away), M(4))),
    "pow of a number": (aten.pow.Scalar, call(2.0, M(3, 4))),
    "hypot": (aten.hypot.default, call(M(3, 4, make=away), M(4))),
    "prod": (aten.prod.dim_int, call(M(3, 5), -1)),
    "prod of all": (aten.prod.default, call(M(5))),
    "mm": (aten.mm.default, call(M(3, 4), M(4, 2))),
    "mm with a parameter": (aten.mm.default, call(M(3, 4), M(4, 2, parameter=True))),
    "bmm": (aten.bmm.default, call(M(2, 3, 4), M(2, 4, 5))),
    "matmul broadcast": (aten.matmul.default, call(M(3, 4), M(2, 4, 5))),
    "matmul vector": (aten.matmul.default, call(M(2, 3, 4), M(4))),
    "vector matmul": (aten.matmul.default, call(M(4), M(4, 3))),
    "dot": (aten.dot.default, call(M(4), M(4))),
    "addmm": (aten.addmm.default, call(M(2), M(3, 4), M(4, 2), beta=0.5, alpha=2.0)),
    "linear": (aten.linear.default, call(M(3, 4), M(2, 4, parameter=True), M(2, parameter=True))),
    "linear with a computed weight": (aten.linear.default, call(M(3, 4), M(2, 4), M(2))),
    "linear of a vector": (aten.linear.default, call(M(4), M(2, 4, parameter=True))),
    "bilinear": (aten.bilinear.default, call(M(3, 4), M(3, 2), M(5, 4, 2), M(5))),
    "conv1d": (aten.conv1d.default, call(M(2, 4, 7), M(6, 2, 3, parameter=True), M(6, parameter=True), [2], [1], [1], 2)),
    "conv2d of one image": (aten.conv2d.default, call(M(2, 5, 5), M(3, 2, 3, 3, parameter=True))),
    "conv2d with a computed weight": (aten.conv2d.default, call(M(2, 2, 5, 5), M(3, 2, 3, 3), M(3))),
    "conv_transpose2d": (
        aten.conv_transpose2d.input,
        call(M(2, 4, 3, 3), M(4, 1, 3, 3, parameter=True), None, [2, 2], [1, 1], [1, 1], 2),
    ),
    "attention": (aten.scaled_dot_product_attention.default, call(M(2, 2, 3, 4), M(2, 2, 5, 4), M(2, 2, 5, 4))),
    "attention to nothing": (
        aten.scaled_dot_product_attention.default,
        call(M(1, 1, 2, 4), M(1, 1, 2, 4), M(1, 1, 2, 4), torch.tensor([[True, True], [False, False]])),
    ),
    "attention with a bias": (
        aten.scaled_dot_product_attention.default,
        call(M(1, 2, 3, 4), M(1, 2, 3, 4), M(1, 2, 3, 4), M(3, 3)),
    ),
    "layer_norm": (aten.layer_norm.default, call(M(3, 6), [6], M(6, parameter=True), M(6, parameter=True))),
    "layer_norm over two": (aten.layer_norm.default, call(M(2, 3, 4), [3, 4], M(3, 4, parameter=True))),
    "layer_norm with computed scales": (aten.layer_norm.default, call(M(3, 6), [6], M(6), M(6))),
    "rms_norm with computed scales": (aten.rms_norm.default, call(M(3, 6), [6], M(6))),
    "rms_norm": (aten.rms_norm.default, call(M(3, 6), [6], M(6, parameter=True), 1e-5)),
    "group_norm": (aten.group_norm.default, call(M(2, 4, 3), 2, M(4, parameter=True), M(4, parameter=True))),
    "batch_norm": (
        aten.batch_norm.default,
        call(M(4, 3, 2), M(3, parameter=True), M(3, parameter=True), None, None, True, 0.1, 1e-5, False),
    ),
    "batch_norm with computed scales": (
        aten.batch_norm.default,
        call(M(4, 3, 2), M(3), M(3), torch.ones(3, dtype=F64), torch.ones(3, dtype=F64), False, 0.1, 1e-5, False),
    ),
    "var": (aten.var.correction, call(M(3, 5), [1], correction=1)),
    "std": (aten.std.correction, call(M(3, 5), [0, 1], correction=0)),
    "var_mean": (aten.var_mean.correction, call(M(3, 5), [1], keepdim=True)),
    "vector_norm": (aten.linalg_vector_norm.default, call(M(3, 5), 2, [1], True)),
    "weight_norm": (aten._weight_norm_interface.default, call(M(4, 3), M(4, 1))),
    "softmax": (aten.softmax.int, call(M(3, 4, 2), 1)),
    "log_softmax": (aten.log_softmax.int, call(M(3, 4, 2), 1)),
    "logsumexp": (aten.logsumexp.default, call(M(3, 4), [0], True)),
    "logaddexp": (aten.logaddexp.default, call(M(3, 4), M(4))),
    "glu": (aten.glu.default, call(M(3, 4), 1)),
    "gelu": (aten.gelu.default, call(M(3, 4), approximate="tanh")),
    "logit": (aten.logit.default, call(M(3, 4, make=inside))),
    "sum": (aten.sum.dim_IntList, call(M(3, 4), [0], True)),
    "mean": (aten.mean.default, call(M(3, 4))),
    "cumsum": (aten.cumsum.default, call(M(3, 4), 1)),
    "cat": (aten.cat.default, call([M(3, 2), torch.ones(3, 1, dtype=F64), M(3, 4)], -1)),
    "stack": (aten.stack.default, call([M(3), M(3), torch.ones(3, dtype=F64)], 1)),
    "split": (aten.split.Tensor, call(M(3, 5), 2, 1)),
    "unbind": (aten.unbind.int, call(M(3, 5), 1)),
    "roll": (aten.roll.default, call(M(3, 4), [1])),
    "repeat": (aten.repeat.default, call(M(3), [2, 2])),
    "movedim": (aten.movedim.int, call(M(2, 3, 4), 0, -1)),
    "pad": (aten.constant_pad_nd.default, call(M(3, 4), [1, 2], 7.0)),
    "reflect": (aten.pad.default, call(M(2, 3, 4, 4), [1, 1, 2, 2], "reflect")),
    "circular": (aten.pad.default, call(M(3, 4), [1, 1], "circular")),
    "as_strided": (aten.as_strided.default, call(M(3, 4), [2, 2], [1, 4], 1)),
    "index": (aten.index.Tensor, call(M(3, 4), [INDEX, INDEX])),
    "index apart": (aten.index.Tensor, call(M(3, 4, 5), [INDEX, None, INDEX])),
    "index_put": (aten.index_put.default, call(M(3, 4), [INDEX, INDEX], M(3), True)),
    "index_add": (aten.index_add.default, call(M(3, 4), 0, INDEX, M(3, 4), alpha=2.0)),
    "scatter": (aten.scatter.src, call(M(3, 4), 1, INDEX[:, None], M(3, 4))),
    "scatter_add": (aten.scatter_add.default, call(M(3, 4), 0, INDEX[None].expand(2, 3), M(3, 4))),
    "scatter a number": (aten.scatter.value, call(M(3, 4), 1, INDEX[:, None], 2.0)),
    "masked_fill": (aten.masked_fill.Tensor, call(M(3, 4), BOOL, M())),
    "masked_scatter": (aten.masked_scatter.default, call(M(3, 4), BOOL, M(6))),
    "slice_scatter": (aten.slice_scatter.default, call(M(3, 4), M(3, 2), 1, 0, 4, 2)),
    "select_scatter": (aten.select_scatter.default, call(M(3, 4), M(4), 0, 1)),
    "where": (aten.where.self, call(BOOL, M(3, 4), M(4))),
    "where number": (aten.where.ScalarOther, call(BOOL, M(3, 4), 2.0)),
    "maximum": (aten.maximum.default, call(M(3, 4), M(4))),
    "clamp between": (aten.clamp.Tensor, call(M(3, 4), M(4, make=lambda t: t - 1), M(4, make=lambda t: t.abs()))),
    "topk": (aten.topk.default, call(M(3, 6), 2)),
    "sort": (aten.sort.default, call(M(3, 6), -1, True)),
    "median": (aten.median.dim, call(M(3, 5), 1)),
    "kthvalue": (aten.kthvalue.default, call(M(3, 5), 2, 0, True)),
    "amax": (aten.amax.default, call(M(3, 4, 2), [0, 2], True)),
    "max": (aten.max.default, call(M(3, 4))),
    "argmax": (aten.argmax.default, call(M(3, 4))),
    "argmin": (aten.argmin.default, call(M(3, 4), 1, True)),
    "max_pool1d": (aten.max_pool1d.default, call(M(2, 3, 8), [3], [2], [1])),
    "max_pool2d": (aten.max_pool2d.default, call(M(2, 3, 8, 8), [3, 3], [2, 2], [1, 1])),
    "max_pool3d": (aten.max_pool3d_with_indices.default, call(M(1, 2, 4, 4, 4), [2, 2, 2])),
    "adaptive_max_pool2d": (aten.adaptive_max_pool2d.default, call(M(2, 3, 5, 7), [2, 3])),
    "adaptive_avg_pool2d": (aten._adaptive_avg_pool2d.default, call(M(3, 5, 7), [2, 3])),
    "pixel_shuffle": (aten.pixel_shuffle.default, call(M(4, 3, 3), 2)),
    "upsample": (aten.upsample_bilinear2d.default, call(M(2, 3, 4, 4), [7, 7], False)),
    "sign": (aten.sign.default, call(M(3, 4))),
    "round": (aten.round.default, call(M(3, 4, make=lambda t: 3 * t))),
    "gt": (aten.gt.Tensor, call(M(3, 4), M(3, 4))),
    "prelu": (aten.prelu.default, call(M(3, 4), M(4))),
    "hardshrink": (aten.hardshrink.default, call(M(3, 4), 0.3)),
    "cross_entropy": (aten.cross_entropy_loss.default, call(M(3, 4), INDEX)),
    "soft cross_entropy": (aten.cross_entropy_loss.default, call(M(3, 4), M(3, 4, make=lambda t: t.softmax(-1)))),
    "nll": (aten.nll_loss_nd.default, call(M(3, 4), INDEX, None, 2)),
    "mse": (aten.mse_loss.default, call(M(3, 4), M(3, 4))),
    "huber": (aten.huber_loss.default, call(M(3, 4), M(3, 4), 1, 0.5)),
    "bce": (aten.binary_cross_entropy.default, call(M(3, 4, make=inside), BOOL.double())),
    "bce with logits": (aten.binary_cross_entropy_with_logits.default, call(M(3, 4), torch.rand(3, 4, dtype=F64))),
    "kl": (aten.kl_div.default, call(M(3, 4), torch.rand(3, 4, dtype=F64))),
    "abs of complex": (aten.abs.default, call(M(3, 4, make=lambda t: torch.complex(t, t.flip(0) + 1)))),
    "no rule": (aten.lgamma.default, call(M(3, 4, make=away))),
}


def operands(arguments, seed, count, parts, radii):
    """Values and lanes for the operands that move."""
    draw = torch.Generator().manual_seed(seed)

    def made(leaf):
        if not isinstance(leaf, M):
            return as_values(leaf)
        lead = (count, 1, 1) if leaf.parameter else (count, parts, radii)
        x = leaf.make(torch.randn(leaf.shape, generator=draw, dtype=F64))
        lanes = 0.3 * torch.randn(*lead, *leaf.shape, generator=draw, dtype=F64)
        return Triple(x, torch.complex(lanes, lanes.flip(-1)) if x.is_complex() else lanes)

    return torch.utils._pytree.tree_map(made, arguments, is_leaf=lambda leaf: isinstance(leaf, M))


def at(frame, values, k, s, sign):
    """The operands at one point of one lane."""

    def moved(leaf):
        if not isinstance(leaf, Triple) or leaf.lanes is None:
            return plain(leaf)
        a, b = leaf.parts
        radius = frame.radii[s]
        out = leaf.x + sign * radius * a[k, min(s, a.shape[1] - 1)]
        return out if b is None or not sign else out + radius**2 / 2 * b[k, min(s, b.shape[1] - 1)]

    return torch.utils._pytree.tree_map(moved, values, is_leaf=lambda leaf: isinstance(leaf, Triple))


@pytest.mark.parametrize(("count", "parts", "several"), [(1, 1, False), (3, 2, True), (2, 1, True), (2, 2, False)])
@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_an_operation_equals_plain_differences(name, count, parts, several):
    target, (arguments, keywords) = OPERATIONS[name]
    radii = torch.tensor([0.02, 0.0, 0.3], dtype=F64)
    frame = Frame(radii, F64)
    values, options = operands((arguments, keywords), 11, count, parts, len(radii) if several else 1)
    base = as_values(target(*at(frame, values, 0, 1, 0), **at(frame, options, 0, 1, 0)))
    result = propagated(frame, target, base, values, options)
    assert not frame.fallbacks or name == "no rule"
    results = result if isinstance(result, (list, tuple)) else [result]
    for k, s in itertools.product(range(count), (0, 2)):
        sides = [target(*at(frame, values, k, s, sign), **at(frame, options, k, s, sign)) for sign in (0, 1, -1)]
        for i, found in enumerate(results):
            here, up, down = (side[i] if isinstance(side, (list, tuple)) else side for side in sides)
            if isinstance(found, Decision):
                assert torch.equal(found.plus[k, s], up)
                assert torch.equal(found.minus[k, s], down)
                continue
            lanes = (
                torch.zeros(count, 2, 1, *here.shape, dtype=F64)
                if not isinstance(found, Triple) or found.lanes is None
                else found.lanes
            )
            first = lanes[k, 0, min(s, lanes.shape[2] - 1)]
            second = lanes[k, 1, min(s, lanes.shape[2] - 1)] if lanes.shape[1] == 2 else torch.zeros_like(first)
            if here.is_floating_point() or here.is_complex():
                assert (first - (up - down) / (2 * radii[s])).abs().max() < 1e-11 * (1 + first.abs().max())
                assert (second - ((up - here) + (down - here)) / radii[s] ** 2).abs().max() < 1e-8 * (1 + second.abs().max())
            else:
                assert torch.equal(up, here)
                assert torch.equal(down, here)


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"sign", "round"}))
def test_an_operation_tends_to_its_derivatives(name):
    """Radius zero equals a radius that crosses no kink."""
    target, (arguments, keywords) = OPERATIONS[name]
    radii = torch.tensor([0.0, 1e-7], dtype=F64)
    values, options = operands((arguments, keywords), 12, 2, 2, 1)
    frame = Frame(radii, F64)
    base = as_values(target(*at(frame, values, 0, 0, 0), **at(frame, options, 0, 0, 0)))
    result = propagated(frame, target, base, values, options)
    for found in result if isinstance(result, (list, tuple)) else [result]:
        if isinstance(found, Triple) and found.lanes is not None and found.lanes.shape[2] == 2:
            zero, near = found.lanes[:, :, 0], found.lanes[:, :, 1]
            assert (zero - near).abs().max() < 1e-5 * (1 + zero.abs().max())


def test_an_operation_that_neither_rule_nor_evaluation_can_follow_is_named():
    frame = Frame(torch.tensor([1e-2], dtype=F64), F64)
    x = Triple(torch.eye(3, dtype=F64), torch.full((1, 1, 1, 3, 3), -100.0, dtype=F64))
    with pytest.raises(MissingRuleError, match=r"linalg_cholesky.* in module block\.3 has no difference rule"):
        propagated(frame, aten.linalg_cholesky.default, as_values(x.x), (x,), {}, "block.3")
