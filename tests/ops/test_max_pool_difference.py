"""Max-pooling in difference lanes: torch's at three points, ties and kinks, every kernel."""

import pytest
import torch
import torch.nn.functional as F
from ops.difference_lanes import BOTH, DTYPES, HALVES, INF, NAN, PAIRS, normal, radii

from fastscape import ops
from fastscape.ops import _native
from fastscape.ops.max_pool2d_difference.reference import max_pool2d_difference as max_pool_reference

POOL = {"op": ops.max_pool2d_difference, "reference": max_pool_reference}


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


POOLS = {
    "halves": (*HALVES, [6, 17]),
    "overlapping": ([3, 3], [2, 2], [1, 1], [1, 1], [7, 18]),
    "dilated": ([2, 3], [1, 3], [1, 1], [3, 2], [12, 11]),
    "overhanging": ([3, 2], [2, 2], [0, 0], [1, 1], [6, 18]),
    "sliding": ([2, 2], [1, 1], [0, 0], [1, 1], [12, 34]),
    "whole": ([13, 35], [1, 1], [0, 0], [1, 1], [1, 1]),
    "taller than the plane": ([20, 1], [5, 4], [9, 0], [1, 1], [3, 9]),
}


def plain_pool(x, shape):
    kernel, stride, padding, dilation, output = shape
    for ceil_mode in (False, True):
        found = F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)
        if list(found.shape[-2:]) == output:
            return found
    raise AssertionError("the sizes in POOLS are wrong")


@BOTH
@PAIRS
@pytest.mark.parametrize("shape", POOLS.values(), ids=POOLS)
def test_max_pooling_is_that_of_torch_at_three_points(name, pair, shape):
    base, dtype = DTYPES[pair]
    x = normal(3, 13, 35, dtype=base).mul(2).round().div(2)  # ties
    lanes, points = normal(2, 2, 1, 3, 13, 35, seed=1, dtype=dtype), radii(0.01, 0.3, 2.0)
    found = POOL[name](x, lanes, points, *shape).double()
    a, b = lanes[:, :, 0].double().unbind(1)
    middle = plain_pool(x.double(), shape)
    for s, e in enumerate(points.tolist()):
        plus, minus = (torch.stack([plain_pool(v, shape) for v in x.double() + sign * e * a + e**2 / 2 * b]) for sign in (1, -1))
        unit = torch.finfo(dtype).eps
        torch.testing.assert_close(found[:, 0, s], (plus - minus) / (2 * e), rtol=unit, atol=unit + 1e-14 / e)
        torch.testing.assert_close(found[:, 1, s], (plus - 2 * middle + minus) / e**2, rtol=unit, atol=unit + 1e-14 / e**2)


@BOTH
def test_pooling_takes_the_first_of_equals_at_radius_zero_and_the_kink_beyond(name):
    x = torch.zeros(1, 2, 4, dtype=torch.float64)
    x[0, 0, 3] = -1e-12
    lanes = torch.zeros(1, 1, 1, 1, 2, 4)
    lanes[..., 0, :] = torch.tensor([1.0, 3.0, 0.0, 1.0])
    found = POOL[name](x, lanes, radii(0.0, 1e-9, 1e-12, 5e-13), *HALVES, [1, 2])[0, :, :, 0, 0]
    assert torch.equal(found[:, 0], torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    # left: the largest of 0, e and 3 e against that of 0, -e and -3 e
    torch.testing.assert_close(found[0, 1:, 0], torch.full((3,), 1.5))
    torch.testing.assert_close(found[1, 1:, 0], 3 / torch.tensor([1e-9, 1e-12, 5e-13]))
    # right: e - 1e-12 where that is positive
    torch.testing.assert_close(found[0, 1:, 1], torch.tensor([(1e-9 - 1e-12) / 2e-9, 0.0, 0.0]))
    torch.testing.assert_close(found[1, 1:, 1], torch.tensor([(1e-9 - 1e-12) / 1e-18, 0.0, 0.0]))


@PAIRS
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_pooling_spreads_what_is_not_finite_to_its_windows_only(isa, pair, value):
    base, dtype = DTYPES[pair]
    x, lanes, points = normal(2, 6, 70, dtype=base), normal(2, 2, 1, 2, 6, 70, seed=1, dtype=dtype), radii(1e-3)
    shape = (*HALVES, [3, 35])
    for place in ("x", "a", "b"):
        y, moved = x.clone(), lanes.clone()
        if place == "x":
            y[1, 3, 33] = value
        else:
            moved[1, "ab".index(place), 0, 1, 3, 33] = value
        found, expected = ops.max_pool2d_difference(y, moved, points, *shape), max_pool_reference(y, moved, points, *shape)
        before = ops.max_pool2d_difference(x, lanes, points, *shape)
        torch.testing.assert_close(found, expected, equal_nan=True)
        same = torch.ones(2, 3, 35, dtype=torch.bool)
        same[1, 1, 16] = False
        assert torch.equal(found[..., same], before[..., same])
        if value != value and place == "x":
            assert found[..., 1, 1, 16].isnan().all()


@PAIRS
@pytest.mark.parametrize("shape", POOLS.values(), ids=POOLS)
def test_pooling_kernels_are_the_reference(isa, pair, shape):
    base, dtype = DTYPES[pair]
    x = normal(3, 13, 35, dtype=base).mul(8).round().div(8)
    for both, shared in ((True, False), (False, True)):
        lanes = normal(2, 1 + both, 1 if shared else 5, 3, 13, 35, seed=1, dtype=dtype)
        lanes[:, :, :, 1] = 0
        points = radii(0.0, 1e-9, 1e-3, 0.1, 1.0)
        found, expected = (call(x, lanes, points, *shape) for call in (ops.max_pool2d_difference, max_pool_reference))
        torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, [2], "kernel must hold two numbers"),
        (0, [0, 2], r"kernel\[0\] must be an integer in \[1, 2\^31\), got 0"),
        (2, [0, 2], r"padding\[1\] must be an integer in"),
        (4, [1, 3], r"output\[1\] must leave every window a start before 4, x's size, got 3"),
    ],
)
def test_unfit_windows_are_named(place, value, message):
    shape = [*HALVES, [1, 2]]
    shape[place] = value
    with pytest.raises((ValueError, RuntimeError), match=message):
        ops.max_pool2d_difference(torch.zeros(1, 2, 4), torch.zeros(1, 2, 1, 1, 2, 4), radii(0.5), *shape)
