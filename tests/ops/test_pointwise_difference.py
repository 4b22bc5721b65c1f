"""Differences through pointwise functions: every implementation against 60 digits, and the theorems that hold to the bit."""

import functools
import math
import random

import mpmath
import pytest
import torch
import torch.nn.functional as F
from mpmath import mp, mpf
from ops.samples import KINDS

from fastscape.ops import _native, pointwise_difference
from fastscape.ops.pointwise_difference.reference import pointwise_difference as reference
from fastscape.ops.pointwise_difference.rules import RULES

FLOAT, DOUBLE = torch.float32, torch.float64
PAIRS = [(FLOAT, FLOAT), (DOUBLE, FLOAT), (DOUBLE, DOUBLE)]
IMPLEMENTATIONS = {"op": pointwise_difference, "reference": reference}
BOTH = pytest.mark.parametrize("name", IMPLEMENTATIONS)
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
BREAKS = {
    "abs": [0],
    "clamp": [-0.5, 0.75],
    "elu": [0],
    "hardsigmoid": [-3, 3],
    "hardswish": [-3, 3],
    "leaky_relu": [0],
    "relu": [0],
}
BOUNDED = {"clamp": "both", "hardsigmoid": "both", "sigmoid": "both", "tanh": "both"} | dict.fromkeys(
    ("elu", "exp", "hardswish", "relu", "softplus"), "left"
)
PIECE = 1024  # elements of x per block of csrc/cpu/api.h
RADII = [1e-9, 1e-7, 1e-5, 1e-3, 1e-2, 0.05, 0.2, 1.0]


def sigmoid(v):
    return 1 / (1 + mp.exp(-v))


def truth(kind, v):
    """The function to 60 digits."""
    gates = {
        "gelu": lambda: v * mp.ncdf(v),
        "gelu_tanh": lambda: v * sigmoid(2 * mp.sqrt(2 / mp.pi) * (v + mpf(0.044715) * v**3)),
        "silu": lambda: v * sigmoid(v),
        "mish": lambda: v * mp.tanh(mp.log1p(mp.exp(v))),
        "hardswish": lambda: v * min(max(v + 3, 0), 6) / 6,
    }
    others = {
        "abs": lambda: abs(v),
        "clamp": lambda: min(max(v, KINDS["clamp"][0]), KINDS["clamp"][1]),
        "elu": lambda: 1.5 * (v if v > 0 else 1.25 * mp.expm1(0.75 * v)),
        "exp": lambda: mp.exp(v),
        "hardsigmoid": lambda: min(max(v + 3, 0), 6) / 6,
        "leaky_relu": lambda: v if v > 0 else v / 4,
        "relu": lambda: max(v, 0),
        "sigmoid": lambda: sigmoid(v),
        "softplus": lambda: mp.log1p(mp.exp(2 * v)) / 2,
        "tanh": lambda: mp.tanh(v),
    }
    return mpf((gates | others)[kind]())


@functools.cache
def cases(kind, base):
    """Points, lanes that float32 holds, and per radius the true lanes with the scales of their unavoidable errors."""
    rng, count = random.Random(kind), 20
    breaks = BREAKS.get(kind)
    points = [
        rng.choice(breaks) + rng.gauss(0, 1) * 10 ** rng.uniform(-9, 0.3) if breaks and rng.random() < 0.7 else rng.gauss(0, 2.5)
        for _ in range(count)
    ]
    x = torch.tensor(points, dtype=DOUBLE).to(base)
    lanes = torch.tensor([[rng.gauss(0, 1) for _ in range(count)] for _ in range(2)])
    with mpmath.workdps(60):
        rows = [[_row(kind, x[i].item(), *lanes[:, i].tolist(), e) for i in range(count)] for e in RADII]
    return x, lanes[None, :, None], rows


def _row(kind, x, a, b, e):
    x, a, b, e, h = mpf(x), mpf(a), mpf(b), mpf(e), mpf(10) ** -20
    plus, here, minus = (truth(kind, v) for v in (x + e * a + e * e * b / 2, x, x - e * a + e * e * b / 2))
    first, second = (plus - minus) / (2 * e), (plus - 2 * here + minus) / e**2
    slope = abs(truth(kind, x + h) - truth(kind, x - h)) / (2 * h)
    bend = abs(truth(kind, x + h) - 2 * here + truth(kind, x - h)) / h**2
    bend = bend if bend < 1e3 else mpf(0)  # at a breakpoint
    moved = e * (abs(a) + e * abs(b) / 2)
    near = abs(a) * (slope + bend) + abs(first), (abs(b) + abs(a)) * bend + abs(b) * slope + a * a * bend + abs(second)
    return first, second, abs(a) * slope + abs(first), abs(b) * slope + a * a * bend + abs(second), *near, moved


@BOTH
@EVERY_KIND
@pytest.mark.parametrize(("base", "narrow"), PAIRS)
def test_lanes_are_right_at_every_radius(name, kind, base, narrow):
    x, lanes, rows = cases(kind, base)
    radii = torch.tensor(RADII, dtype=DOUBLE)
    found = IMPLEMENTATIONS[name](x, lanes.to(narrow), radii, kind, KINDS[kind])
    assert found.dtype == narrow
    for s, row in enumerate(rows):
        for i, (first, second, first_scale, second_scale, first_near, second_near, moved) in enumerate(row):
            errors = abs(mpf(found[0, 0, s, i].item()) - first), abs(mpf(found[0, 1, s, i].item()) - second)
            if narrow == FLOAT:
                assert errors[0] <= 4 * 2.0**-24 * first_scale, (RADII[s], x[i])
                assert errors[1] <= 4 * 2.0**-24 * second_scale, (RADII[s], x[i])
            elif moved < 1 / 128:  # below the switch of every kind for these x
                assert errors[0] <= 100 * 2.0**-53 * first_near, (RADII[s], x[i])
                assert errors[1] <= 100 * 2.0**-53 * second_near, (RADII[s], x[i])
            else:
                assert errors[0] <= 1e-11 * first_scale, (RADII[s], x[i])
                assert errors[1] <= 1e-11 * second_scale, (RADII[s], x[i])


def inputs(size, directions=3, parts=2, radii=2, base=DOUBLE, dtype=FLOAT, seed=0):
    generator = torch.Generator().manual_seed(seed + size)
    x = torch.randn(size, generator=generator, dtype=DOUBLE) * 2.5
    x[::5] = x[::5].round()
    lanes = torch.randn(directions, parts, radii, size, generator=generator)
    return x.to(base), lanes.to(dtype)


def radii(*values):
    return torch.tensor(values, dtype=DOUBLE)


@pytest.fixture(params=_native.ISAS)
def isa(request):
    """Each instruction set that this processor has, forced."""
    if not _native.library.available:
        pytest.skip(_native.library.reason)
    before = _native.library.isa
    if _native.library.set_isa(request.param) != request.param:
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    _native.library.set_isa(before)


@EVERY_KIND
@pytest.mark.parametrize(("base", "narrow"), [*PAIRS, (FLOAT, DOUBLE)])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("shared", [True, False])
def test_kernel_is_the_reference(kind, base, narrow, parts, shared, isa):
    steps = radii(0.0, 1e-9, 1e-3, 0.02, 0.3, 2.0)
    for size in (0, 1, 15, 17, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 16):
        x, lanes = inputs(size, 2, parts, 1 if shared else 6, base, narrow)
        found = pointwise_difference(x, lanes, steps, kind, KINDS[kind])
        exact = reference(x, lanes.double(), steps, kind, KINDS[kind])
        slope, *rest = RULES[kind](*KINDS[kind]).series(x.double())
        bend = rest[0].abs() if rest else torch.zeros_like(slope)
        a, b = lanes[:, 0].double().abs(), lanes[:, parts - 1].double().abs()
        scale = torch.stack((a * (slope.abs() + bend), b * (slope.abs() + bend) + (2 * a * a + a) * bend), 1) + exact.abs()
        unit = torch.full((6, 1), 4 * 2.0**-24 if narrow == FLOAT else 2e-11)
        unit[4:] *= 8  # plain differences
        assert ((found.double() - exact).abs() <= unit * scale).all(), size


DERIVED = {
    "abs": torch.abs,
    "clamp": lambda x: x.clamp(*KINDS["clamp"]),
    "elu": lambda x: torch.ops.aten.elu(x, *KINDS["elu"]),
    "exp": torch.exp,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardsigmoid": lambda x: (x + 3).clamp(0, 6) / 6,  # torch's has no second derivative
    "hardswish": F.hardswish,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.25),
    "mish": F.mish,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "softplus": lambda x: F.softplus(x, 2.0, 1000.0),
    "tanh": torch.tanh,
}


@BOTH
@EVERY_KIND
def test_radius_zero_gives_the_derivatives_of_torch(name, kind):
    x, lanes = inputs(500, 2, radii=1, dtype=DOUBLE)
    x = x + 1e-3  # off the breakpoints
    variable = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(DERIVED[kind](variable).sum(), variable, create_graph=True)
    bend = torch.autograd.grad(slope.sum(), variable)[0] if slope.requires_grad else torch.zeros_like(x)
    a, b = lanes.unbind(1)
    expected = torch.stack((a * slope, b * slope + a * a * bend), 1).detach()
    found = IMPLEMENTATIONS[name](x, lanes, radii(0.0), kind, KINDS[kind])
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    narrow = IMPLEMENTATIONS[name](x, lanes.float(), radii(0.0), kind, KINDS[kind])
    torch.testing.assert_close(narrow.double(), expected, rtol=1e-5, atol=1e-6)


@BOTH
@pytest.mark.parametrize("kind", BREAKS)
@pytest.mark.parametrize("distance", [2.0**-50, 2.0**-30, 2.0**-10])
@pytest.mark.parametrize("side", [-1.0, 1.0])
def test_breakpoints_are_crossed_exactly_where_they_are(name, kind, distance, side):
    """Just short of the breakpoint the lanes are those of the piece, just past it they hold the bend (e - d) / e^2."""
    rule = RULES[kind](*KINDS[kind])
    for point, _ in rule.jumps:
        x = torch.tensor([point + side * distance], dtype=DOUBLE)
        lanes = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
        steps = distance * (1 + torch.tensor([-(2.0**-20), 2.0**-20], dtype=DOUBLE))
        short, past = IMPLEMENTATIONS[name](x, lanes, steps, kind, KINDS[kind])[0, 1, :, 0].double()
        bend = {"elu": 1.5 * (1 - 1.25 * 0.75), "abs": 2.0, "leaky_relu": 0.75, "hardsigmoid": 1 / 6}.get(kind, 1.0)
        bend = bend if kind != "hardswish" else 0.5
        smooth = 2 * float(rule.series(x)[1]) if len(rule.series(x)) > 1 else 0.0
        assert abs(float(short) - smooth) <= 1e-6
        kink = bend * float((steps[1] - distance) / steps[1] ** 2)
        assert abs(abs(float(past) - smooth) - kink) <= 1e-6 * (kink + 1)


@BOTH
def test_both_zeros_lie_on_the_left_piece(name):
    lanes = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 1, 2)
    found = IMPLEMENTATIONS[name](torch.tensor([0.0, -0.0]), lanes, radii(0.0, 0.25), "relu", [])
    assert found[0, :, 0].abs().max() == 0.0
    assert torch.equal(found[0, :, 1], torch.tensor([[0.5, 0.5], [4.0, 4.0]]))


@BOTH
@EVERY_KIND
@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE])
def test_what_is_not_finite_stays_in_its_element(name, kind, dtype):
    x, lanes = inputs(40, 1, radii=3, dtype=dtype)
    steps = radii(0.0, 1e-3, 0.5)
    whole = IMPLEMENTATIONS[name](x, lanes, steps, kind, KINDS[kind])
    x[3], x[17], x[18] = torch.nan, torch.inf, -torch.inf
    lanes[0, 0, :, 30] = torch.nan
    lanes[0, 1, :, 31] = torch.nan
    found = IMPLEMENTATIONS[name](x, lanes, steps, kind, KINDS[kind])[0]
    assert found[:, :, [3, 30]].isnan().all()
    assert found[1, :, 31].isnan().all()
    for place, sides in ((17, ("both",)), (18, ("both", "left"))):
        if BOUNDED.get(kind) in sides:
            assert (found[:, :, place] == 0).all()
        else:
            assert found[:, :, place].isnan().all()
    others = [i for i in range(40) if i not in (3, 17, 18, 30, 31)]
    assert torch.equal(found[..., others], whole[0][..., others])


@BOTH
@EVERY_KIND
@pytest.mark.parametrize("dtype", [FLOAT, DOUBLE])
def test_units_of_length_do_not_matter_to_the_bit(name, kind, dtype):
    """Directions four times as long at a quarter of the radius are the same points."""
    x, lanes = inputs(3000, 2, radii=1, dtype=dtype)
    factors = torch.tensor([4.0, 16.0], dtype=dtype).reshape(1, 2, 1, 1)
    for radius in (1e-6, 1e-3, 0.03, 0.4):
        one = IMPLEMENTATIONS[name](x, lanes, radii(radius), kind, KINDS[kind])
        other = IMPLEMENTATIONS[name](x, lanes * factors, radii(radius / 4), kind, KINDS[kind])
        assert torch.equal(one * factors, other)


@BOTH
@EVERY_KIND
def test_the_opposite_direction_flips_the_first_lane_to_the_bit(name, kind):
    x, lanes = inputs(3000, 2)
    signs = torch.tensor([-1.0, 1.0]).reshape(1, 2, 1, 1)
    for steps in (radii(0.0, 1e-6), radii(1e-3, 0.4)):
        one = IMPLEMENTATIONS[name](x, lanes, steps, kind, KINDS[kind])
        other = IMPLEMENTATIONS[name](x, lanes * signs, steps, kind, KINDS[kind])
        assert torch.equal(one * signs, other)


@BOTH
@EVERY_KIND
def test_lanes_do_not_know_each_other(name, kind):
    """A block of directions and radii holds the bits of its lanes alone; what is missing or shared needs no expansion."""
    x, lanes = inputs(1500, 40, radii=1)  # more than a group of lanes
    steps = radii(0.0, 1e-3, 0.02, 0.4)
    block = IMPLEMENTATIONS[name](x, lanes, steps, kind, KINDS[kind])
    expanded = IMPLEMENTATIONS[name](x, lanes.expand(40, 2, 4, 1500), steps, kind, KINDS[kind])
    assert torch.equal(block, expanded)
    for k, s in ((0, 3), (7, 1), (39, 2), (39, 0)):
        alone = IMPLEMENTATIONS[name](x, lanes[k : k + 1], steps[s : s + 1], kind, KINDS[kind])
        assert torch.equal(block[k, :, s], alone[0, :, 0])
    straight = IMPLEMENTATIONS[name](x, lanes[:, :1], steps, kind, KINDS[kind])
    zeros = torch.cat((lanes[:, :1], torch.zeros_like(lanes[:, :1])), 1)
    assert torch.equal(straight, IMPLEMENTATIONS[name](x, zeros, steps, kind, KINDS[kind]))


def test_small_numbers_vanish_in_the_kernel_alone():
    x, lanes = inputs(3000)
    pointwise_difference(x, lanes, radii(0.0, 1e-30), "gelu", [])
    assert (torch.full((4,), 1e-40) * 1.0 > 0).all()


X, LANES, STEPS = torch.zeros(3), torch.zeros(2, 2, 1, 3), torch.zeros(4, dtype=DOUBLE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X.half(), LANES, STEPS, "relu"), "x must be float32 or float64, got torch.float16; convert it"),
        (
            (X, LANES.half(), STEPS, "relu"),
            r"lanes must be float32 or float64 of shape \[K, 1 or 2, 1 or 4, 3\], got torch.float16",
        ),
        ((X, torch.zeros(2, 3, 1, 3), STEPS, "relu"), r"lanes must be .* got torch.float32 of shape \(2, 3, 1, 3\)"),
        ((X, torch.zeros(2, 2, 3, 3), STEPS, "relu"), r"lanes must be .* got torch.float32 of shape \(2, 2, 3, 3\)"),
        ((X, torch.zeros(2, 2, 1, 4), STEPS, "relu"), r"lanes must be .* got torch.float32 of shape \(2, 2, 1, 4\)"),
        ((X, LANES, STEPS.float(), "relu"), r"radii must be float64 of shape \[S\], got torch.float32 of shape \(4,\)"),
        ((X, LANES, STEPS.to("meta"), "relu"), "radii is on meta, x is on cpu; move them to one device"),
        ((X, LANES, STEPS, "sine"), "kind must be one of abs, clamp, .*, got 'sine'"),
        ((X, LANES, STEPS, "clamp", [1.0]), r"options must be \[lo, hi\] for kind 'clamp', got \[1.0\]"),
        ((X, LANES, STEPS, "relu", [1.0]), r"options must be \[\] for kind 'relu', got \[1.0\]"),
        ((X, LANES, STEPS, "clamp", [2.0, 1.0]), r"options must be \[lo, hi\] with lo <= hi, .*, got \[2.0, 1.0\]"),
        ((X, LANES, STEPS, "clamp", [math.nan, 1.0]), r"options must be \[lo, hi\] with lo <= hi, .*, got \[nan, 1.0\]"),
        ((X, LANES, STEPS, "softplus", [0.0]), r"options must hold a finite beta, positive .*, got \[0.0\]"),
        ((X, LANES, STEPS, "leaky_relu", [math.inf]), r"options must hold a finite slope, .*, got \[inf\]"),
    ],
)
def test_unfit_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        pointwise_difference(*arguments)


@BOTH
def test_clamp_without_bounds(name):
    x, lanes = inputs(100, 1, radii=2)
    steps = radii(1e-3, 0.5)
    call = functools.partial(IMPLEMENTATIONS[name], x, lanes, steps)
    assert torch.equal(call("clamp", [-math.inf, math.inf]), lanes)
    assert torch.equal(call("clamp", [0.0, math.inf]), call("relu", []))
    below = IMPLEMENTATIONS[name](-x, lanes * torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1), steps, "clamp", [-math.inf, -0.0])
    assert torch.allclose(below * torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1), call("relu", []), atol=0, rtol=1e-6)
    assert call("clamp", [0.5, 0.5]).abs().max() == 0.0
