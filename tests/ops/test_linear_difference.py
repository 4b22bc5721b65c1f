"""Differences of a linear map: the definition exactly, accuracy, what is not stored; all implementations."""

import itertools

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from ops.interpreter import DEVICE, bfloat16_as_on_chips  # noqa: F401

from fastscape.ops import linear_difference
from fastscape.ops.linear_difference import reference as plain
from fastscape.ops.linear_difference import triton as fused

IMPLEMENTATIONS = {"op": linear_difference, "reference": plain.linear_difference, "triton": fused.linear_difference}
EVERY = pytest.mark.parametrize("name", IMPLEMENTATIONS)
RADII = (0.0, 1e-6, 1e-3, 0.3)
# orders of the lanes, radii of the lanes, whether the weight and the bias move
VARIANTS = [
    (orders, kept, *moving)
    for orders, kept in ((0, 1), (1, 1), (1, 4), (2, 1), (2, 4))
    for moving in itertools.product((True, False), repeat=2)
    if orders or any(moving)
]
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16


def problem(orders, kept, weight_moves, bias_moves, draw, dtype=F32, sizes=(2, 5, 37, 19), radii=RADII, wide=F64):
    """Arguments of the op; ``draw`` makes float64 tensors of a shape."""
    count, rows, inputs, outputs = sizes
    x, weight, lanes = draw(rows, inputs).to(wide), draw(outputs, inputs), draw(count, 2, kept, rows, inputs)[:, :orders]
    direction, bias = draw(count, outputs, inputs), draw(count, outputs)
    return tuple(
        tensor if tensor is None or position in (0, 2) else tensor.to(dtype)
        for position, tensor in enumerate(
            (
                x,
                lanes if orders else None,
                torch.tensor(radii, dtype=F64),
                weight,
                direction if weight_moves else None,
                bias if bias_moves else None,
            )
        )
    )


def normal(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)


def run(name, arguments):
    found = IMPLEMENTATIONS[name](*(None if tensor is None else tensor.to(DEVICE) for tensor in arguments))
    return found.cpu()


def expected(arguments, absolute=False):
    """The definition in float64, of the rounded operands; or the sum of the terms' magnitudes."""
    x, lanes, radii, weight, direction, bias = arguments
    low = next(tensor.dtype for tensor in (lanes, direction, bias) if tensor is not None)
    shape = plain.result_shape(*arguments)

    def wide(tensor):
        return tensor.to(low).double().abs() if absolute else tensor.to(low).double()

    out = torch.zeros(shape, dtype=F64)
    d = None if direction is None else wide(direction)[:, None].mT
    if lanes is not None:
        lanes = wide(lanes)
        out[:, : lanes.shape[1]] += lanes @ wide(weight).T
    if d is not None:
        orders = 0 if lanes is None else lanes.shape[1]
        middle = wide(x) + (radii**2 / 2)[:, None, None] * lanes[:, 1] if orders == 2 else wide(x)
        out[:, 0] += middle @ d
        if orders:
            out[:, 1] += 2 * lanes[:, 0] @ d
    if bias is not None:
        out[:, 0] += wide(bias)[:, None, None]
    return out


@EVERY
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_differences_of_the_moved_map_are_exact_on_integers(name, variant, dtype):
    """At powers of two nothing is rounded: a = (y+ - y-) / 2e and b = (y+ - 2y + y-) / e^2, bit by bit."""
    generator = torch.Generator().manual_seed(1)
    whole = lambda *shape: torch.randint(-4, 5, shape, generator=generator).double()  # noqa: E731
    radii = (0.5, 2.0, 1.0, 0.25)
    arguments = problem(*variant, whole, dtype, radii=radii)
    found = run(name, arguments)
    assert (found.dtype, tuple(found.shape)) == (dtype, plain.result_shape(*arguments))
    x, lanes, _, weight, direction, bias = (None if tensor is None else tensor.double() for tensor in arguments)
    nothing = torch.zeros((), dtype=F64)
    a = nothing if lanes is None else lanes[:, 0]
    b = lanes[:, 1] if lanes is not None and lanes.shape[1] == 2 else nothing
    e = torch.tensor(radii, dtype=F64)[:, None, None]
    d = nothing if direction is None else direction[:, None]
    h = nothing if bias is None else bias[:, None, None]

    def moved(sign):
        inputs = (x + sign * e * a + e**2 / 2 * b).expand(2, 4, *x.shape)
        return inputs @ (weight + sign * e * d).expand(2, 4, *weight.shape).mT + sign * e * h

    middle = x @ weight.T
    first, second = (moved(1) - moved(-1)) / (2 * e), (moved(1) - 2 * middle + moved(-1)) / e**2
    assert torch.equal(found[:, 0].double().expand_as(first), first)
    if found.shape[1] == 2:
        assert torch.equal(found[:, 1].double().expand_as(second), second)
    else:
        assert not second.any()


@EVERY
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
def test_accuracy_is_that_of_the_sums(name, variant, dtype):
    arguments = problem(*variant, normal(), dtype)
    kept = [None if tensor is None else tensor.clone() for tensor in arguments]
    found, exact = run(name, arguments), expected(arguments)
    assert (found.dtype, found.shape) == (dtype, exact.shape)
    sums = 8 * torch.finfo(F32 if dtype == BF16 else dtype).eps * expected(arguments, absolute=True)
    storing = 2.0**-9 * (exact.abs() + expected(arguments, absolute=True)) if dtype == BF16 else 0.0  # of the result, of x~
    assert ((found.double() - exact).abs() <= sums + storing).all()
    assert all(one is other or torch.equal(one, other) for one, other in zip(arguments, kept, strict=True))


@EVERY
def test_second_differences_below_the_spacing_of_the_values_survive(name):
    """e = 1e-9, where x + e a is x in float32: the lanes are those of e = 0."""
    arguments = problem(2, 1, True, True, normal(2), radii=(0.0, 1e-9))
    found = run(name, arguments)
    size = expected(arguments, absolute=True)
    if name == "triton":  # interpreted by NumPy, whose products may add in another order from one column to the next
        assert ((found[:, :, 0] - found[:, :, 1]).abs() <= 2.0**-20 * size[:, :, 0]).all()
    else:
        assert torch.equal(found[:, :, 0], found[:, :, 1])
    assert ((found.double() - expected(arguments)).abs() <= 2.0**-20 * expected(arguments, absolute=True)).all()


@EVERY
def test_lanes_do_not_know_each_other(name):
    x, lanes, radii, weight, direction, bias = problem(2, 4, True, True, normal(3), F64)
    whole = run(name, (x, lanes, radii, weight, direction, bias))
    for k, s in itertools.product(range(2), range(4)):
        one = (x, lanes[k : k + 1, :, s : s + 1], radii[s : s + 1], weight, direction[k : k + 1], bias[k : k + 1])
        torch.testing.assert_close(run(name, one)[0, :, 0], whole[k, :, s], rtol=0, atol=1e-12)


@EVERY
def test_reversed_directions_turn_first_differences_alone(name):
    x, lanes, radii, weight, direction, bias = problem(2, 4, True, True, normal(4))
    turned = torch.stack((-lanes[:, 0], lanes[:, 1]), 1)
    found = run(name, (x, lanes, radii, weight, direction, bias)), run(name, (x, turned, radii, weight, -direction, -bias))
    torch.testing.assert_close(found[1], torch.stack((-found[0][:, 0], found[0][:, 1]), 1), rtol=0, atol=0)


@EVERY
@pytest.mark.parametrize("rows", [1, 16, 70])
def test_rows_of_several_radii_share_tiles(name, rows):
    arguments = problem(2, 4, True, True, normal(5), sizes=(3, rows, 66, 70))
    difference = (run(name, arguments).double() - expected(arguments)).abs()
    assert (difference <= 2.0**-19 * expected(arguments, absolute=True)).all()


@EVERY
def test_layouts_do_not_matter(name):
    arguments = problem(2, 4, True, True, normal(6))
    strided = [tensor.mT.contiguous().mT if tensor.ndim > 1 else torch.stack((tensor, tensor), 1)[:, 0] for tensor in arguments]
    torch.testing.assert_close(run(name, strided), run(name, arguments), rtol=0, atol=2e-5)


@EVERY
@np.errstate(invalid="ignore")  # NumPy interprets the kernels here
def test_not_a_number_stays_in_its_rows_and_columns(name):
    x, lanes, radii, weight, direction, bias = problem(2, 4, True, True, normal(7))
    lanes[0, 0, 1, 2, 36], lanes[1, 1, 3, 0, 0], direction[1, 3, 5], bias[0, 18] = (torch.nan,) * 4
    found = run(name, (x, lanes, radii, weight, direction, bias))
    wanted = torch.zeros(found.shape, dtype=torch.bool)
    wanted[0, :, 1, 2], wanted[1, :, 3, 0], wanted[1, :, :, :, 3], wanted[0, 0, :, :, 18] = True, True, True, True
    assert torch.equal(found.isnan(), wanted)


@EVERY
@pytest.mark.parametrize("sizes", [(0, 5, 7, 3), (2, 0, 7, 3), (2, 5, 0, 3), (2, 5, 7, 0)])
def test_empty_problems(name, sizes):
    arguments = problem(2, 4, True, True, normal(8), sizes=sizes)
    assert torch.equal(run(name, arguments), expected(arguments).float())


@EVERY
def test_autocast_does_not_round_the_operands(name):
    arguments = problem(2, 4, True, True, normal(9))
    plain_result = run(name, arguments)
    with torch.autocast(DEVICE, dtype=BF16):
        assert torch.equal(run(name, arguments), plain_result)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("stacked", [1, 17, 100, 4096])
def test_tiles_are_no_larger_than_the_rows_need(dtype, precision, stacked):
    sizes = fused.tile(stacked, dtype, precision, aligned=True)
    assert 16 <= sizes.BM <= max(16, 2 * stacked - 1)


MOVING = pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant[2]], ids=str)


def factored(arguments, draw, dtype, rank):
    """The same problem along directions of low rank, by factors and by their product."""
    x, lanes, radii, weight, direction, bias = arguments
    left, right = (draw(len(direction), rank, size).to(dtype) for size in weight.shape)
    product = (left.double().mT @ right.double()).to(dtype)
    return (x, lanes, radii, weight, left, bias, right), (x, lanes, radii, weight, product, bias)


@EVERY
@MOVING
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_factors_give_the_product_exactly_on_integers(name, variant, dtype):
    generator = torch.Generator().manual_seed(10)
    whole = lambda *shape: torch.randint(-3, 4, shape, generator=generator).double()  # noqa: E731
    arguments = problem(*variant, whole, dtype, radii=(0.5, 2.0, 1.0, 0.25))
    factors, product = factored(arguments, whole, dtype, 3)
    assert torch.equal(run(name, factors), run("reference", product))


@EVERY
@MOVING
@pytest.mark.parametrize(("dtype", "radii"), [(F32, RADII), (F64, RADII), (BF16, RADII), (F32, (0.0,) * 4)], ids=str)
def test_accuracy_of_factors_is_that_of_the_sums(name, variant, dtype, radii):
    (x, *rest, left, bias, right), _ = factored(problem(*variant, normal(11), dtype, radii=radii), normal(12), dtype, 19)
    found = run(name, (x, *rest, left, bias, right))
    wide = [None if tensor is None else tensor.to(dtype).double() for tensor in (x, rest[0], rest[1].double(), *rest[2:], bias)]
    wide[0], wide[2] = x.to(dtype).double() if rest[0] is None else x.double(), rest[1]
    exact = expected((*wide[:4], left.double().mT @ right.double(), wide[4]))
    size = expected((*wide[:4], left.double().abs().mT @ right.double().abs(), wide[4]), absolute=True)
    sums = 16 * torch.finfo(F32 if dtype == BF16 else dtype).eps * size
    storing = 2.0**-8 * exact.abs() + 2.0**-9 * size if dtype == BF16 else 0.0
    assert (found.dtype, found.shape) == (dtype, exact.shape)
    assert ((found.double() - exact).abs() <= sums + storing).all()


X, L, R = torch.zeros(3, 4), torch.zeros(2, 2, 1, 3, 4), torch.zeros(5, dtype=F64)
W, D, B = torch.zeros(6, 4), torch.zeros(2, 6, 4), torch.zeros(2, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": X[0]}, r"x must be float32 or float64 of shape \[M, I\], got torch.float32 of shape \(4,\)"),
        ({"x": X.bfloat16()}, "x must be float32 or float64 .* got torch.bfloat16"),
        ({"lanes": L[0]}, r"lanes must be .* of shape \[K, 1 or 2, S, 3, 4\] for this x, got .* \(2, 1, 3, 4\)"),
        ({"lanes": L[..., :3]}, r"lanes must be .* for this x, got torch.float32 of shape \(2, 2, 1, 3, 3\)"),
        ({"lanes": L.expand(2, 2, 4, 3, 4)}, r"lanes must hold 1 or 5 radii, as radii does, got shape \(2, 2, 4, 3, 4\)"),
        ({"lanes": torch.zeros(2, 3, 1, 3, 4)}, "lanes must be .* 1 or 2"),
        ({"lanes": L.half()}, "lanes must be float32, float64 or bfloat16 .* got torch.float16"),
        ({"radii": R.float()}, r"radii must be float64 of shape \[S\], got torch.float32"),
        ({"weight": W[:, :3]}, r"weight must be .* of shape \[O, 4\] for this x, got torch.float32 of shape \(6, 3\)"),
        ({"direction": D[:1]}, r"direction must be .* of shape \(2, 6, 4\), got torch.float32 of shape \(1, 6, 4\)"),
        ({"bias_direction": B[:, :5]}, r"bias_direction must be .* of shape \(2, 6\), got torch.float32 of shape \(2, 5\)"),
        ({"direction": D.int()}, "direction must be float32, float64 or bfloat16 .* got torch.int32"),
        ({"lanes": None, "direction": None, "bias_direction": None}, "lanes, direction or bias_direction must be given"),
        ({"direction": None, "right": D}, "direction must be the left factor with right, got None"),
        ({"right": D[:, :3]}, r"direction must be .* of shape \(2, 3, 6\), got torch.float32 of shape \(2, 6, 4\)"),
        ({"direction": D.mT, "right": D[..., :3]}, r"direction must be .* of shape \(2, 6, 6\)"),
        ({"direction": torch.zeros(2, 3, 6), "right": torch.zeros(2, 3, 5)}, r"right must be .* of shape \(2, 3, 4\)"),
        ({"direction": D.to("meta")}, "direction is on meta, x is on cpu; move them to one device"),
    ],
)
def test_unfit_arguments_are_named(changes, message):
    arguments = {"x": X, "lanes": L, "radii": R, "weight": W, "direction": D, "bias_direction": B} | changes
    with pytest.raises(ValueError, match=message):
        linear_difference(**arguments)
