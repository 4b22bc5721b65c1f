"""Triton kernels of difference lanes against the references in float64: on a chip, or interpreted."""

from importlib import import_module

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from ops.interpreter import DEVICE
from ops.samples import KINDS, SAMPLES, lanes

from fastscape.ops._registry import OPERATORS

OPS = [
    "affine_difference",
    "cross_entropy_difference",
    "layer_norm_difference",
    "max_pool2d_difference",
    "pointwise_difference",
    "softmax_difference",
]
F32, F64 = torch.float32, torch.float64
CORNERED = ["abs", "clamp", "elu", "hardsigmoid", "hardswish", "leaky_relu", "relu"]
UNIT = 2.0**-24
RADII = torch.tensor([0.0, 1e-9, 1e-6, 1e-3, 0.3], dtype=F64)  # mixed in one launch
BASES = pytest.mark.parametrize("base", [F32, F64], ids=str)


@pytest.fixture(autouse=True)
def _numbers_of_masked_elements_may_overflow():
    """NumPy interprets the kernels, and warns."""
    with np.errstate(all="ignore"):
        yield


def triton(op, *arguments):
    """The Triton kernel's result."""
    there = [value.to(DEVICE) if torch.is_tensor(value) else value for value in arguments]
    return getattr(import_module(f"fastscape.ops.{op}.triton"), op)(*there).cpu()


def exact(op, *arguments):
    """The reference's result in float64."""
    wide = [value.double() if torch.is_tensor(value) and value.is_floating_point() else value for value in arguments]
    return OPERATORS[op].reference(*wide)


def normal(*shape, seed=0, dtype=F32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


def error(found, expected):
    """Largest error of each order at each radius, in units of its largest value."""
    difference, scale = (
        value.abs().reshape(*value.shape[:3], -1).amax((0, 3)) for value in (found.double() - expected, expected)
    )
    return torch.where(difference == 0, 0.0, difference / (UNIT * scale))


@pytest.mark.parametrize(("op", "index"), [(op, index) for op in OPS for index in range(len(list(SAMPLES[op]())))])
def test_samples(op, index):
    arguments = list(SAMPLES[op]())[index]
    found, expected = triton(op, *arguments), exact(op, *arguments)
    assert (found.shape, found.dtype) == (expected.shape, arguments[1].dtype)
    assert found.numel() == 0 or (error(found, expected) <= 64).all()


def derivatives(kind, x, order):
    """|f'|, |f''| and |x f'''| at x, the last from a difference of f''."""
    a = torch.ones(1, 1, 1, *x.shape, dtype=F64)
    step = 1e-5
    at = [exact("pointwise_difference", x + shift, a, RADII[:1], kind, KINDS[kind])[0, :, 0] for shift in (0.0, step, -step)]
    third = (at[1][1] - at[2][1]) / (2 * step) if order == 3 else 0 * x
    return at[0][0].abs(), at[0][1].abs(), (x * third).abs()


@BASES
@pytest.mark.parametrize("kind", KINDS)
def test_pointwise_lanes_have_ten_units_where_the_series_answers(kind, base):
    """Units: what rounding x, a and b once costs, in the terms of a_y = a f' and b_y = b f' + a^2 f'', and in the result."""
    x, given = lanes((601,), radii=4, base=base, seed=5)
    radii = RADII[:4]
    found = triton("pointwise_difference", x, given, radii, kind, KINDS[kind])
    expected = exact("pointwise_difference", x, given, radii, kind, KINDS[kind])
    first, second, third = derivatives(kind, x.double(), 2 if kind in CORNERED else 3)
    slope, bend = first + (x * second).abs(), second + third
    a, b = given.double().abs().unbind(1)
    units = torch.stack((a * slope + expected[:, 0].abs(), b * slope + a * a * bend + expected[:, 1].abs()), 1)
    assert ((found.double() - expected).abs() <= 10 * UNIT * units).all()


@BASES
@pytest.mark.parametrize("kind", KINDS)
def test_pointwise_lanes_beyond_the_series_have_the_digits_of_plain_differences(kind, base):
    x, given = lanes((601,), radii=2, base=base, seed=6)
    radii = torch.tensor([0.3, 1.0], dtype=F64)
    found = triton("pointwise_difference", x, given, radii, kind, KINDS[kind])
    expected = exact("pointwise_difference", x, given, radii, kind, KINDS[kind])
    e, (a, b) = radii[:, None], given.double().abs().unbind(1)
    moved = a + e / 2 * b
    units = torch.stack((a + moved + 1 / e, b + (a + moved) / e + 1 / e**2), 1)
    assert ((found.double() - expected).abs() <= 8 * UNIT * units * max(1.0, float(expected.abs().max()) / 10)).all()


@BASES
@pytest.mark.parametrize("kind", CORNERED)
@pytest.mark.parametrize("distance", [0.0, 1e-12, 1e-7, 1e-4])
def test_breakpoints_are_crossed_where_the_displacement_says_so(kind, base, distance):
    """From both sides, at the breakpoint itself, and by displacements that hardly reach it."""
    points = {"clamp": KINDS["clamp"], "hardsigmoid": [-3.0, 3.0], "hardswish": [-3.0, 3.0]}.get(kind, [0.0])
    x = torch.tensor([point + sign * distance for point in points for sign in (1, -1)] + [-0.0], dtype=F64).to(base)
    radii = torch.tensor([0.0, distance, 2 * distance + 1e-9], dtype=F64)
    given = normal(3, 2, 3, *x.shape).round(decimals=1)
    found = triton("pointwise_difference", x, given, radii, kind, KINDS[kind])
    expected = exact("pointwise_difference", x, given, radii, kind, KINDS[kind])
    assert ((found.double() - expected).abs() <= 16 * UNIT * (expected.abs() + given.double().abs().amax(1, True) ** 2 + 1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_pointwise_lanes_are_no_number_where_the_references_are(kind):
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 0.5, -0.5, 100.0, -100.0], dtype=F64)
    given = normal(1, 2, 3, len(x))
    given[0, 0, :, 5], given[0, 1, :, 6] = torch.nan, torch.nan
    radii = torch.tensor([0.0, 1e-6, 1e-3], dtype=F64)
    arguments = (x, given, radii, kind, KINDS[kind])
    found, expected = triton("pointwise_difference", *arguments), OPERATORS["pointwise_difference"].reference(*arguments)
    some = expected.abs() < 1e30
    assert torch.equal(found[some].isnan(), expected[some].isnan())
    assert torch.equal(found[..., 0].isnan(), expected[..., 0].isnan())


def arguments(op, orders, kept, seed=0):
    """Arguments of an op at three radii."""
    shapes = {"affine_difference": (3, 2, 9), "max_pool2d_difference": (3, 6, 8)}
    x = normal(*shapes.get(op, (5, 17)), seed=seed, dtype=F64)
    given = normal(2, orders, kept, *x.shape, seed=seed + 1)
    rest = {
        "affine_difference": (normal(2), normal(2, 2), normal(2, 2, seed=3)),
        "cross_entropy_difference": (torch.tensor([0, 16, 3, 3, 8]),),
        "layer_norm_difference": (normal(17), normal(2, 17), None, 1e-5, True),
        "max_pool2d_difference": ([2, 2], [2, 2], [0, 0], [1, 1], [3, 4]),
        "pointwise_difference": ("gelu", []),
        "softmax_difference": (),
    }[op]
    return x, given, torch.tensor([0.0, 1e-3, 0.3], dtype=F64), *rest


@pytest.mark.parametrize("op", OPS)
def test_lanes_that_all_radii_share_and_a_second_lane_of_zeros_need_not_be_stored(op):
    for orders in (1, 2):
        x, given, radii, *rest = arguments(op, orders, 1)
        found = triton(op, x, given, radii, *rest)
        assert torch.equal(found, triton(op, x, given.expand(-1, -1, 3, *x.shape), radii, *rest))
    whole = torch.cat((given[:, :1], 0 * given[:, :1]), 1)
    found = triton(op, x, given[:, :1], radii, *rest)
    torch.testing.assert_close(found, triton(op, x, whole, radii, *rest), rtol=0, atol=0)


@pytest.mark.parametrize("op", OPS)
def test_several_directions_of_a_program_do_not_know_each_other(op, monkeypatch):
    """As where there are more blocks than a chip needs programs."""
    x, given, radii, *rest = arguments(op, 2, 3)
    if op == "affine_difference":
        rest[1:] = [None, None]
    elif op == "layer_norm_difference":
        rest[1:3] = [None, None]
    given = torch.cat((given, -given, 2 * given))[:5]
    alone = torch.cat([triton(op, x, one[None], radii, *rest) for one in given])
    monkeypatch.setattr(import_module(f"fastscape.ops.{op}.triton"), "PROGRAMS", 1)
    assert torch.equal(triton(op, x, given, radii, *rest), alone)


@pytest.mark.parametrize("op", OPS)
def test_layouts_do_not_matter_and_arguments_stay(op):
    x, given, radii, *rest = arguments(op, 2, 3)
    kept = x.clone(), given.clone(), radii.clone()
    expected = triton(op, x, given, radii, *rest)
    assert all(torch.equal(a, b) for a, b in zip((x, given, radii), kept, strict=True))
    strided = [torch.stack((value, value), -1)[..., 0] for value in (x, given, radii)]
    assert torch.equal(triton(op, *strided, *rest), expected)


@pytest.mark.parametrize("op", OPS)
def test_the_reference_answers_for_wide_lanes(op, monkeypatch):
    monkeypatch.setattr(import_module(f"fastscape.ops.{op}.triton"), f"{op}_kernel", None)  # a launch would fail
    x, given, radii, *rest = arguments(op, 2, 3)
    rest = [value.double() if torch.is_tensor(value) and value.is_floating_point() else value for value in rest]
    assert torch.equal(triton(op, x, given.double(), radii, *rest), exact(op, x, given, radii, *rest))


@pytest.mark.parametrize("op", ["softmax_difference", "layer_norm_difference"])
def test_the_reference_answers_for_rows_that_registers_do_not_hold(op, monkeypatch):
    module = import_module(f"fastscape.ops.{op}.triton")
    monkeypatch.setattr(module, f"{op}_kernel", None)
    x = normal(1, module.LONGEST + 1, dtype=F64)
    rest = (None, None, None, 1e-5, True) if op == "layer_norm_difference" else ()
    given = normal(1, 1, 1, *x.shape)
    assert triton(op, x, given, RADII[-1:], *rest).shape == (1, 2, 1, *x.shape)


def test_differences_of_shares_sum_to_zero():
    x, given = 3 * normal(4, 50, dtype=F64), normal(2, 2, 5, 4, 50)
    found = triton("softmax_difference", x, given, RADII).double()
    assert (found.sum(-1).abs() <= 8 * UNIT * found.abs().sum(-1)).all()


@pytest.mark.parametrize("op", ["softmax_difference", "cross_entropy_difference"])
def test_a_number_added_to_a_whole_row_changes_nothing(op):
    """Rounded to eighths, so that nothing is lost by adding it."""
    x, given = normal(4, 50, dtype=F64).mul(8).round().div(8), normal(2, 2, 5, 4, 50).mul(8).round().div(8)
    rest = () if op == "softmax_difference" else (torch.tensor([0, 49, 20, 7]),)
    moved = triton(op, x + 32, given + torch.tensor([64.0, -16.0])[:, None, None, None], RADII, *rest)
    assert torch.equal(moved, triton(op, x, given, RADII, *rest))


@pytest.mark.parametrize("op", ["softmax_difference", "cross_entropy_difference"])
def test_masked_entries_are_not_looked_at(op):
    x, given = normal(4, 20, dtype=F64), normal(2, 2, 5, 4, 20)
    x[:, 15:] = -torch.inf
    rest = () if op == "softmax_difference" else (torch.tensor([0, 14, 3, 16]),)
    poisoned = given.clone()
    poisoned[..., 15:] = torch.nan
    found, clean = triton(op, x, poisoned, RADII, *rest), triton(op, x, given, RADII, *rest)
    torch.testing.assert_close(found, clean, rtol=0, atol=0, equal_nan=True)
    if op == "softmax_difference":
        assert not found[..., 15:].any()
        torch.testing.assert_close(found[..., :15], triton(op, x[:, :15], given[..., :15], RADII), rtol=1e-5, atol=1e-6)
    else:
        assert torch.equal(found.isnan(), torch.tensor([False, False, False, True]).expand(found.shape))


def test_rows_that_are_masked_as_a_whole_give_zeros():
    x, given = normal(3, 20, dtype=F64), normal(1, 2, 5, 3, 20)
    x[1] = -torch.inf
    found = triton("softmax_difference", x, given, RADII)
    assert not found[..., 1, :].any()
    assert found[..., 0, :].any(-1).all()


@pytest.mark.parametrize("loss", [1e-6, 1e-3, 1.0, 20.0])
def test_cross_entropy_keeps_its_digits_at_every_loss(loss):
    x, given = normal(3, 11, dtype=F64), normal(2, 2, 5, 3, 11)
    target = torch.tensor([4, 0, 10])
    x[torch.arange(3), target] = torch.logsumexp(x, 1) - np.log(np.expm1(loss))
    arguments = (x, given, RADII, target)
    found, expected = triton("cross_entropy_difference", *arguments), exact("cross_entropy_difference", *arguments)
    assert ((found.double() - expected).abs() <= 48 * UNIT * expected.abs().amax((0, 3), True)).all()


def test_cross_entropy_of_long_rows_is_that_of_their_pieces_together():
    x, given = 2 * normal(2, 2500, dtype=F64), normal(1, 2, 5, 2, 2500)
    arguments = (x, given, RADII, torch.tensor([2400, 3]))
    assert (error(triton("cross_entropy_difference", *arguments), exact("cross_entropy_difference", *arguments)) <= 16).all()


@pytest.mark.parametrize("op", ["softmax_difference", "cross_entropy_difference"])
@pytest.mark.parametrize("length", [7, 1500])
def test_sums_that_grow_are_subtracted_plainly_and_do_not_overflow(op, length):
    x, given = normal(3, length, dtype=F64), 300 * normal(2, 2, 2, 3, length)
    radii = torch.tensor([0.1, 1.0], dtype=F64)
    rest = () if op == "softmax_difference" else (torch.tensor([0, 6, 3]),)
    assert (error(triton(op, x, given, radii, *rest), exact(op, x, given, radii, *rest)) <= 64).all()


def test_targets_outside_the_classes_give_no_number():
    x, given = normal(3, 5, dtype=F64), normal(1, 2, 5, 3, 5)
    found = triton("cross_entropy_difference", x, given, RADII, torch.tensor([-1, 2, 5]))
    assert torch.equal(found.isnan(), torch.tensor([True, False, True]).expand(found.shape))


@pytest.mark.parametrize("centred", [True, False])
def test_norms_do_not_see_the_scale_of_what_they_norm(centred):
    """A power of two: bit by bit."""
    x, given = normal(3, 33, dtype=F64), normal(2, 2, 5, 3, 33)
    rest = (normal(33), normal(2, 33), normal(2, 33, seed=4), 0.0, centred)
    found = triton("layer_norm_difference", 8 * x, 8 * given, RADII, *rest)
    assert torch.equal(found, triton("layer_norm_difference", x, given, RADII, *rest))


@BASES
@pytest.mark.parametrize("length", [1, 5, 64, 1000])
def test_norms_of_rows_of_any_length(base, length):
    x, given = normal(5, length, dtype=base) + 0.5, normal(2, 2, 5, 5, length)
    rest = (normal(length), normal(2, length), normal(2, length, seed=4), 1e-3, True)
    arguments = (x, given, RADII, *rest)
    assert (error(triton("layer_norm_difference", *arguments), exact("layer_norm_difference", *arguments)) <= 32).all()


@BASES
def test_pools_of_ties_and_of_elements_that_overtake_each_other(base):
    x = normal(2, 9, 11).mul(2).round().div(2).to(base)
    x[0, :3, :3] += 1e-6
    given = normal(2, 2, 5, 2, 9, 11)
    for kernel, padding in ((2, 0), (3, 1), (5, 2)):
        sizes = ([kernel] * 2, [2, 1], [padding] * 2, [1, 1], [4, 7])
        arguments = (x, given, RADII, *sizes)
        expected = OPERATORS["max_pool2d_difference"].reference(*arguments)
        found = triton("max_pool2d_difference", *arguments)
        torch.testing.assert_close(found, expected, rtol=2.0**-22, atol=0)
        assert (found[:, :, 4] != found[:, :, 0]).any()


def test_pools_hand_on_what_is_no_number():
    x, given = normal(2, 6, 6, dtype=F64), normal(1, 2, 3, 2, 6, 6)
    x[0, 0, 1], x[1, 4, 4] = torch.nan, torch.inf
    given[0, 0, :, 1, 0, 0] = torch.nan
    arguments = (x, given, RADII[2:], [2, 2], [2, 2], [0, 0], [1, 1], [3, 3])
    found = triton("max_pool2d_difference", *arguments)
    torch.testing.assert_close(
        found, OPERATORS["max_pool2d_difference"].reference(*arguments), rtol=2.0**-22, atol=0, equal_nan=True
    )
