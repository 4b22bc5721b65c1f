"""Differences through a scale and a shift per channel: every implementation against exact points, for every layout."""

import pytest
import torch

from fastscape.ops import _native, affine_difference
from fastscape.ops.affine_difference.reference import affine_difference as reference

FLOAT, DOUBLE = torch.float32, torch.float64
IMPLEMENTATIONS = {"op": affine_difference, "reference": reference}
BOTH = pytest.mark.parametrize("name", IMPLEMENTATIONS)
SHAPES = [
    (2, 3, 5),
    (4, 64, 49),
    (700, 3, 1),
    (30, 64, 1),
    (33, 100, 1),
    (1, 1, 3000),
    (2, 1025, 1),
    (3, 2, 1031),
    (5, 7, 16),
    (1, 1, 1),
]
MOVES = [(True, True), (True, False), (False, True), (False, False)]


def arguments(shape, base=DOUBLE, dtype=FLOAT, parts=2, radii=2, moves=(True, True)):
    """Numbers with few bits: sums and products of them are exact in float64."""
    generator = torch.Generator().manual_seed(shape[1])

    def draw(*size):
        return torch.randint(-64, 65, size, generator=generator).double() / 16

    x, lanes, scale = draw(*shape).to(base), draw(3, parts, radii, *shape).to(dtype), draw(shape[1])
    scale_direction, shift_direction = draw(3, shape[1]).to(dtype), draw(3, shape[1]).to(dtype)
    steps = torch.tensor([0.0, 0.25], dtype=DOUBLE)
    return x, lanes, steps, scale, scale_direction if moves[0] else None, shift_direction if moves[1] else None


@BOTH
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("moves", MOVES)
@pytest.mark.parametrize("parts", [1, 2])
def test_lanes_are_differences_of_the_displaced_points(name, shape, moves, parts):
    x, lanes, steps, scale, scale_direction, shift_direction = arguments(shape, moves=moves, parts=parts)
    found = IMPLEMENTATIONS[name](x, lanes, steps, scale, scale_direction, shift_direction)
    e, a = 0.25, lanes[:, 0, 1].double()
    b = lanes[:, 1, 1].double() if parts == 2 else 0 * a
    g, zero = scale[:, None], torch.zeros(3, shape[1])
    ga, ha = (zero if t is None else t for t in (scale_direction, shift_direction))
    ga, ha = ga.double()[:, None, :, None], ha.double()[:, None, :, None]
    plus = (g + e * ga) * (x + e * a + e * e / 2 * b) + e * ha
    minus = (g - e * ga) * (x - e * a + e * e / 2 * b) - e * ha
    expected = torch.stack(((plus - minus) / (2 * e), (plus - 2 * g * x + minus) / e**2), 1)
    assert torch.equal(found[:, :, 1], expected.float())
    a, b = lanes[:, 0, 0].double(), lanes[:, 1, 0].double() if parts == 2 else 0 * a
    assert torch.equal(found[:, :, 0], torch.stack((g * a + ga * x + ha, g * b + 2 * ga * a), 1).float())


@pytest.mark.parametrize("isa", _native.ISAS)
@pytest.mark.parametrize(("base", "dtype"), [(FLOAT, FLOAT), (DOUBLE, FLOAT), (DOUBLE, DOUBLE), (FLOAT, DOUBLE)])
@pytest.mark.parametrize("shape", [*SHAPES, (0, 3, 4), (2, 0, 4), (2, 3, 0)])
def test_kernel_is_the_reference_on_every_instruction_set(isa, base, dtype, shape):
    if not _native.library.available:
        pytest.skip(_native.library.reason)
    before = _native.library.isa
    try:
        if _native.library.set_isa(isa) != isa:
            pytest.skip(f"this processor has no {isa}")
        for radii in (1, 2):
            values = arguments(shape, base, dtype, radii=radii)
            assert torch.equal(affine_difference(*values), reference(*values))
    finally:
        _native.library.set_isa(before)


@BOTH
def test_parameters_that_do_not_move_spread_nothing(name):
    """An infinite x is multiplied by directions alone; NaN stays in its element."""
    x, lanes, steps, scale, _, shift_direction = arguments((2, 3, 5), moves=(False, True))
    whole = IMPLEMENTATIONS[name](x, lanes, steps, scale, None, shift_direction)
    x[0, 1, 2] = torch.inf
    lanes[0, 0, :, 0, 0, 0] = torch.nan
    found = IMPLEMENTATIONS[name](x, lanes, steps, scale, None, shift_direction)
    assert found[0, 0, :, 0, 0, 0].isnan().all()
    found[0, 0, :, 0, 0, 0] = whole[0, 0, :, 0, 0, 0]
    assert torch.equal(found, whole)


X, LANES, STEPS = torch.zeros(2, 3, 4), torch.zeros(5, 2, 1, 2, 3, 4), torch.zeros(1, dtype=DOUBLE)
SCALE = torch.ones(3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            (X[0], LANES[:, :, :, 0], STEPS, SCALE),
            r"x must be \[N, C, I\], got shape \(3, 4\); reshape it around the channel axis",
        ),
        ((X, LANES, STEPS, torch.ones(4)), r"scale must be real of shape \(3,\), .*, got torch.float32 of shape \(4,\)"),
        ((X, LANES, STEPS, SCALE.long()), r"scale must be real of shape \(3,\), .*, got torch.int64"),
        ((X, LANES, STEPS, SCALE, torch.ones(3)), r"scale_direction must be torch.float32 .* \(5, 3\), got .* shape \(3,\)"),
        ((X, LANES, STEPS, SCALE, None, torch.ones(5, 3).double()), "shift_direction must be torch.float32 .* got torch.float64"),
        ((X, LANES, STEPS, SCALE.to("meta")), "scale is on meta, x is on cpu; move them to one device"),
        ((X, LANES.half(), STEPS, SCALE), "lanes must be float32 or float64 of shape"),
    ],
)
def test_unfit_arguments_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        affine_difference(*values)
