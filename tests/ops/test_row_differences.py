"""Softmax, layer norm and cross-entropy in difference lanes: against 100 digits, exact symmetries, every kernel."""

import mpmath as mp
import pytest
import torch
import torch.nn.functional as F
from ops.difference_lanes import BOTH, DTYPES, HALVES, INF, NAN, PAIRS, normal, radii

from fastscape import ops
from fastscape.ops import _native
from fastscape.ops.cross_entropy_difference.reference import cross_entropy_difference as cross_entropy_reference
from fastscape.ops.layer_norm_difference.reference import layer_norm_difference as layer_norm_reference
from fastscape.ops.max_pool2d_difference.reference import max_pool2d_difference as max_pool_reference
from fastscape.ops.softmax_difference.reference import softmax_difference as softmax_reference

EPSILONS = [0.0, *(10.0**k for k in range(-9, 1))]
SOFTMAX = {"op": ops.softmax_difference, "reference": softmax_reference}


def _layer_norm_reference(x, lanes, radii, weight=None, move=None, shift=None, eps=1e-5, centred=True):
    return layer_norm_reference(x, lanes, radii, weight, move, shift, eps, centred)


NORM = {"op": ops.layer_norm_difference, "reference": _layer_norm_reference}
ENTROPY = {"op": ops.cross_entropy_difference, "reference": cross_entropy_reference}
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


def exact(tensor):
    return [mp.mpf(float(value)) for value in tensor]


def softmax(x):
    terms = [mp.exp(value - max(x)) if value > -mp.inf else mp.mpf(0) for value in x]
    return [term / sum(terms) for term in terms]


def layer_norm(x, eps, centred=True):
    mean = sum(x) / len(x) if centred else mp.mpf(0)
    deviation = mp.sqrt(sum((value - mean) ** 2 for value in x) / len(x) + mp.mpf(eps))
    return [(value - mean) / deviation for value in x]


def cross_entropy(x, target):
    return [mp.log(sum(mp.exp(value - x[target]) for value in x))]


def differences(function, x, a, b, epsilon):
    """First and second difference of a function of lists; at radius 0 with a step whose own error is below 1e-20."""
    step = mp.mpf(epsilon) or mp.mpf(10) ** -20
    base = function(x)
    plus, minus = (function([v + sign * step * p + step**2 * q / 2 for v, p, q in zip(x, a, b, strict=True)]) for sign in (1, -1))
    first = [(p - m) / (2 * step) for p, m in zip(plus, minus, strict=True)]
    return first, [(p - 2 * v + m) / step**2 for p, v, m in zip(plus, base, minus, strict=True)]


def sensitivity(function, x, a, b):
    """Sums of magnitudes that a backward stable rule may lose a rounding of: of |a f'| and of |b f'| + a² |f''|, by element."""
    step, base = mp.mpf(10) ** -15, function(x)
    first = [mp.mpf(0)] * len(base)
    second = [mp.mpf(0)] * len(base)
    for i in range(len(x)):
        plus, minus = (function([v + sign * step * (j == i) for j, v in enumerate(x)]) for sign in (1, -1))
        for k, value in enumerate(base):
            slope, bend = abs(plus[k] - minus[k]) / (2 * step), abs(plus[k] - 2 * value + minus[k]) / step**2
            first[k] += abs(a[i]) * slope
            second[k] += abs(b[i]) * slope + a[i] ** 2 * bend
    return first, second


def errors(found, function, x, lanes, epsilons):
    """Largest errors of a and of b, ``[S, 2]``, in roundings of the lanes' dtype of what a stable rule may lose."""
    unit = torch.finfo(lanes.dtype).eps / 2
    with mp.workdps(100):
        x, a, b = exact(x), exact(lanes[0]), exact(lanes[1])
        allowed = sensitivity(function, x, a, b)
        rows = []
        for s, epsilon in enumerate(epsilons):
            truth = differences(function, x, a, b, epsilon)
            rows.append(
                [
                    max(
                        float(abs(mp.mpf(float(value)) - right) / (unit * (scale + abs(right))))
                        for value, right, scale in zip(found[kind, s], truth[kind], allowed[kind], strict=True)
                    )
                    for kind in (0, 1)
                ]
            )
    return rows


def within(rows, epsilons, low, high):
    for epsilon, (first, second) in zip(epsilons, rows, strict=True):
        limit = low if epsilon <= 1e-3 else high
        assert first <= limit, (epsilon, first)
        assert second <= limit, (epsilon, second)


LIMITS = {torch.float32: (10, 300), torch.float64: (100, 500)}


@pytest.mark.parametrize("spread", [0.1, 3.0, 20.0])
@PAIRS
def test_softmax_is_exact_to_roundings_at_every_radius(isa, pair, spread):
    base, dtype = DTYPES[pair]
    x, lanes = spread * normal(1, 7, dtype=base), normal(1, 2, 1, 1, 7, seed=1, dtype=dtype)
    found = ops.softmax_difference(x, lanes, radii(*EPSILONS))[0, :, :, 0]
    within(errors(found, softmax, x[0], lanes[0, :, 0, 0], EPSILONS), EPSILONS, *LIMITS[dtype])


@pytest.mark.parametrize("centred", [True, False])
@PAIRS
def test_layer_norm_is_exact_to_roundings_at_every_radius(isa, pair, centred):
    base, dtype = DTYPES[pair]
    x, lanes = 3 * normal(1, 7, dtype=base) + 0.5, normal(1, 2, 1, 1, 7, seed=1, dtype=dtype)
    found = ops.layer_norm_difference(x, lanes, radii(*EPSILONS), eps=1e-3, centred=centred)[0, :, :, 0]
    within(errors(found, lambda v: layer_norm(v, 1e-3, centred), x[0], lanes[0, :, 0, 0], EPSILONS), EPSILONS, *LIMITS[dtype])


@pytest.mark.parametrize("loss", [1e-6, 0.3, 3.0, 20.0])
@PAIRS
def test_cross_entropy_is_exact_to_roundings_at_every_loss_and_radius(isa, pair, loss):
    base, dtype = DTYPES[pair]
    x, lanes = normal(1, 7, dtype=base), normal(1, 2, 1, 1, 7, seed=1, dtype=dtype)
    others = x[0, [0, 1, 2, 4, 5, 6]].double().logsumexp(0)
    x[0, 3] = others - torch.tensor(loss, dtype=torch.float64).expm1().log()
    assert float(F.cross_entropy(x.double(), torch.tensor([3]))) == pytest.approx(loss, rel=2e-2)
    found = ops.cross_entropy_difference(x, lanes, radii(*EPSILONS), torch.tensor([3]))[0]
    rows = errors(found, lambda v: cross_entropy(v, 3), x[0], lanes[0, :, 0, 0], EPSILONS)
    within(rows, EPSILONS, *LIMITS[dtype])


@BOTH
@PAIRS
def test_a_confident_softmax_keeps_the_relative_accuracy_of_what_is_left(name, pair):
    """The share nearest one moves by what the others have: 1e-9 of it here."""
    base, dtype = DTYPES[pair]
    x = torch.tensor([[20.0, 0.0, -1.0]], dtype=base)
    lanes = normal(1, 2, 1, 1, 3, dtype=dtype)
    for epsilon in (0.0, 1e-6, 1e-2):
        found = SOFTMAX[name](x, lanes, radii(epsilon))[0, :, 0, 0]
        with mp.workdps(100):
            truth = differences(softmax, exact(x[0]), exact(lanes[0, 0, 0, 0]), exact(lanes[0, 1, 0, 0]), epsilon)
            for kind in (0, 1):
                for value, right in zip(found[kind], truth[kind], strict=True):
                    assert abs(float(value) - right) <= 50 * torch.finfo(dtype).eps * abs(right)


@BOTH
@PAIRS
def test_changes_of_shares_sum_to_zero(name, pair):
    base, dtype = DTYPES[pair]
    x, lanes = 3 * normal(4, 33, dtype=base), normal(2, 2, 6, 4, 33, seed=1, dtype=dtype)
    found = SOFTMAX[name](x, lanes, radii(0.0, 1e-9, 1e-4, 0.05, 0.3, 1.0)).double()
    assert (found.sum(-1).abs() <= 16 * torch.finfo(dtype).eps * found.abs().sum(-1) + 1e-30).all()
    assert found.abs().sum() > 1


@BOTH
@PAIRS
def test_softmax_and_cross_entropy_ignore_what_a_row_has_in_common(name, pair):
    base, dtype = DTYPES[pair]
    x, lanes = (8 * normal(3, 9)).round().to(base), (64 * normal(2, 2, 1, 3, 9, seed=1)).round().div(64).to(dtype)
    common = torch.tensor([2.0**6, -(2.0**5)]).reshape(1, 2, 1, 1, 1).to(dtype)  # sums stay exact
    points, target = radii(0.0, 1e-7, 1e-3, 0.125, 1.0), torch.tensor([0, 4, 8])
    for call in (SOFTMAX[name], lambda *args: ENTROPY[name](*args, target)):
        one = call(x, lanes, points)
        assert torch.equal(call(x + 16, lanes, points), one)
        moved = call(x, lanes + common, points)
        if call is SOFTMAX[name]:
            torch.testing.assert_close(
                moved, one, rtol=1e-4 if dtype == torch.float32 else 1e-12, atol=1e-5 * float(one.abs().max())
            )
        else:
            scale = one.abs().max() + common.abs().max()
            torch.testing.assert_close(moved, one, rtol=0, atol=float(scale) * 32 * torch.finfo(dtype).eps)


@BOTH
@PAIRS
def test_the_largest_entry_may_change_and_exponents_may_overflow(name, pair):
    base, dtype = DTYPES[pair]
    x = torch.tensor([[2.0, 1.0, 0.0, -300.0]], dtype=base)
    a = torch.tensor([[0.0, 5.0, -400.0, 700.0], [300.0, 300.0, 300.0, 300.0], [-900.0, 0.0, 0.0, 0.0]], dtype=dtype)
    lanes = torch.stack([a, a.flip(-1) / 4], 1)[:, :, None, None]
    target, unit = torch.tensor([1]), 1e-4 if dtype == torch.float32 else 1e-12
    found, losses = SOFTMAX[name](x, lanes, radii(0.5, 1.0)), ENTROPY[name](x, lanes, radii(0.5, 1.0), target)
    with mp.workdps(100):
        for k in range(3):
            for s, epsilon in enumerate((0.5, 1.0)):
                for got, function in ((found[k, :, s, 0], softmax), (losses[k, :, s], lambda v: cross_entropy(v, 1))):
                    truth = differences(function, exact(x[0]), exact(lanes[k, 0, 0, 0]), exact(lanes[k, 1, 0, 0]), epsilon)
                    for kind in (0, 1):
                        scale = max(*(abs(float(right)) for right in truth[kind]), 1.0)
                        for value, right in zip(got[kind], truth[kind], strict=True):
                            assert abs(float(value) - float(right)) <= unit * scale


@BOTH
@PAIRS
def test_masked_entries_are_not_looked_at(name, pair):
    base, dtype = DTYPES[pair]
    x, lanes = normal(3, 20, dtype=base), normal(2, 2, 2, 3, 20, seed=1, dtype=dtype)
    out = torch.zeros(3, 20, dtype=torch.bool)
    out[0, 4:] = out[1, ::2] = out[2] = True
    x[out] = -INF
    lanes[..., out] = NAN
    lanes[:, 1, :, 0, 7] = INF
    points = radii(0.0, 0.2)
    found = SOFTMAX[name](x, lanes, points)
    assert (found[..., out] == 0).all()
    short = SOFTMAX[name](x[:1, :4], lanes[..., :1, :4].contiguous(), points)
    torch.testing.assert_close(found[..., :1, :4], short, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-6)
    assert found[..., 1, :].abs().max() > 0
    losses = ENTROPY[name](x[:2], lanes[..., :2, :].contiguous(), points, torch.tensor([2, 0]))
    short = ENTROPY[name](x[:1, :4], lanes[..., :1, :4].contiguous(), points, torch.tensor([2]))
    torch.testing.assert_close(losses[..., :1], short, rtol=1e-5 if dtype == torch.float32 else 1e-12, atol=1e-6)
    assert losses[..., 1].isnan().all()  # an impossible target


@PAIRS
@pytest.mark.parametrize("place", ["x", "a", "b"])
@pytest.mark.parametrize("value", [NAN, INF])
def test_what_is_not_finite_stays_in_its_row_and_lane(isa, pair, place, value):
    base, dtype = DTYPES[pair]
    x, lanes, points = normal(3, 37, dtype=base), normal(2, 2, 2, 3, 37, seed=1, dtype=dtype), radii(1e-3, 0.4)
    calls = {
        "softmax": lambda *args: ops.softmax_difference(*args).flatten(4),
        "norm": lambda *args: ops.layer_norm_difference(*args).flatten(4),
        "entropy": lambda *args: ops.cross_entropy_difference(*args, torch.tensor([1, 2, 3]))[..., None],
    }
    before = {name: call(x, lanes, points) for name, call in calls.items()}
    if place == "x":
        x[1, 20] = value
    else:
        lanes[1, "ab".index(place), 0, 1, 20] = value
    for name, call in calls.items():
        found = call(x, lanes, points)
        hit = torch.zeros(2, 2, 3, dtype=torch.bool)  # direction, radius, row
        hit[(slice(None), slice(None), 1) if place == "x" else (1, 0, 1)] = True
        second = found[:, 1]
        assert second[hit].isnan().all(), name
        assert torch.equal(second[~hit], before[name][:, 1][~hit]), name


@BOTH
def test_layer_norm_does_not_see_the_scale_or_the_mean_of_a_row(name):
    """Along x - mean and along a constant the result stands still, whatever the radius: w / sqrt(w² + 0) is a sign."""
    x = normal(5, 64)
    along = torch.stack([x, torch.full_like(x, 3.0)])[:, None, None]
    found = NORM[name](x, along, radii(0.0, 1e-8, 1e-2, 0.5), eps=0.0)
    assert found.abs().max() <= 1e-13 * 10
    turned = NORM[name](x, along[:1], radii(2.0), eps=0.0)[0, :, 0]  # to 3 x and to -x
    normalised = F.layer_norm(x, (64,), eps=0.0)
    torch.testing.assert_close(turned[0], normalised / 2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(turned[1], -normalised / 2, rtol=1e-12, atol=1e-12)


@BOTH
@PAIRS
@pytest.mark.parametrize("centred", [True, False])
def test_perturbed_weights_and_biases_enter_exactly(name, pair, centred):
    """Against torch's own layer at x+, x and x- with weights w + e D, w, w - e D, in float64 at radii where it can tell."""
    base, dtype = DTYPES[pair]
    x, lanes = normal(4, 19, dtype=base), normal(3, 2, 1, 4, 19, seed=1, dtype=dtype)
    weight, move, shift = normal(19, seed=2, dtype=base), normal(3, 19, seed=3, dtype=dtype), normal(3, 19, seed=4, dtype=dtype)
    found = NORM[name](x, lanes, radii(0.05, 1.0), weight, move, shift, 1e-5, centred).double()
    wide, (a, b) = x.double(), lanes[:, :, 0].double().unbind(1)

    def layer(value, weight, bias):
        value = value - value.mean(-1, keepdim=True) if centred else value
        return value * (value.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight[:, None] + bias[:, None]

    for s, e in enumerate((0.05, 1.0)):
        plus, middle, minus = (
            layer(wide + sign * e * a + sign**2 * e**2 / 2 * b, weight + sign * e * move.double(), sign * e * shift.double())
            for sign in (1, 0, -1)
        )
        tolerance = {"rtol": 2e-5, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-11, "atol": 1e-11}
        torch.testing.assert_close(found[:, 0, s], (plus - minus) / (2 * e), **tolerance)
        torch.testing.assert_close(found[:, 1, s], (plus - 2 * middle + minus) / e**2, **tolerance)


@BOTH
def test_long_rows_lose_no_more_than_short_ones(name):
    for length in (64, 4096, 5001):
        x, lanes = normal(2, length), normal(1, 2, 1, 2, length, seed=1)
        narrow, points = lanes.float(), radii(1e-6, 1e-2)
        for call in (SOFTMAX[name], NORM[name]):
            found, truth = call(x, narrow, points).double(), call(x, narrow.double(), points)
            assert (found - truth).abs().max() <= 8 * 2.0**-24 * truth.abs().max()
        target = torch.tensor([0, length - 1])
        found, truth = (ENTROPY[name](x, value, points, target).double() for value in (narrow, narrow.double()))
        assert (found - truth).abs().max() <= 8 * 2.0**-24 * truth.abs().max()


@BOTH
@PAIRS
def test_power_of_two_scaling_is_bitwise(name, pair):
    """(4 a, 16 b, e / 4) is the same point; the results are 4 times and 16 times as large to the last bit."""
    base, dtype = DTYPES[pair]
    x, lanes = 2 * normal(6, 18, dtype=base), normal(2, 2, 1, 6, 18, seed=1, dtype=dtype)
    scale = torch.tensor([4.0, 16.0], dtype=dtype).reshape(1, 2, 1, 1, 1)
    pool = (*HALVES, [1, 9])
    calls = [
        lambda v, r: SOFTMAX[name](x, v, r),
        lambda v, r: NORM[name](x, v, r, None, None, None, 1e-5, True),
        lambda v, r: ENTROPY[name](x, v, r, torch.arange(6)).unsqueeze(-1),
        lambda v, r: POOL[name](x.reshape(3, 2, 18), v.reshape(2, 2, 1, 3, 2, 18), r, *pool).flatten(4),
    ]
    for call in calls:
        for e in (2.0**-20, 2.0**-6, 0.25, 2.0):
            one, other = call(lanes, radii(e)), call(lanes * scale, radii(e / 4))
            assert torch.equal(one * scale.reshape(1, 2, 1, *[1] * (one.ndim - 3)), other)


@BOTH
@PAIRS
def test_reversing_a_direction_turns_the_first_difference_only(name, pair):
    base, dtype = DTYPES[pair]
    x, lanes, points = normal(4, 18, dtype=base), normal(2, 2, 1, 4, 18, seed=1, dtype=dtype), radii(0.0, 1e-6, 0.1, 1.0)
    turned = lanes * torch.tensor([-1.0, 1.0], dtype=dtype).reshape(1, 2, 1, 1, 1)
    planes = (2, 2, 18)
    for call in (
        lambda v: SOFTMAX[name](x, v, points),
        lambda v: ENTROPY[name](x, v, points, torch.arange(4)),
        lambda v: NORM[name](x, v, points, None, None, None, 1e-5, True),
        lambda v: POOL[name](x.reshape(planes), v.reshape(2, 2, 1, *planes), points, *HALVES, [1, 9]),
    ):
        one, other = call(lanes), call(turned)
        scale = float(one.abs().max())
        torch.testing.assert_close(other[:, 0], -one[:, 0], rtol=1e-5, atol=1e-6 * scale)
        torch.testing.assert_close(other[:, 1], one[:, 1], rtol=1e-5, atol=1e-5 * scale)


@PAIRS
@pytest.mark.parametrize("length", [1, 2, 7, 15, 16, 17, 63, 64, 65, 257, 1040, 4096, 4097])
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_kernels_are_the_reference_to_roundings_of_the_row(isa, pair, length, both, shared):
    base, dtype = DTYPES[pair]
    x, points = 2 * normal(5, length, dtype=base), radii(0.0, 1e-8, 1e-3, 0.03, 0.2, 1.0)
    lanes = normal(2, 1 + both, 1 if shared else 6, 5, length, seed=1, dtype=dtype)
    weight, move = normal(length, seed=2), normal(2, length, seed=3, dtype=dtype)
    target = torch.arange(5) % length
    unit = torch.finfo(dtype).eps
    for call, reference, rest in (
        (ops.softmax_difference, softmax_reference, ()),
        (ops.layer_norm_difference, layer_norm_reference, (weight, move, None, 1.0, True)),
        (ops.layer_norm_difference, layer_norm_reference, (None, None, move, 0.1, False)),
        (ops.cross_entropy_difference, cross_entropy_reference, (target,)),
    ):
        found, expected = call(x, lanes, points, *rest).double(), reference(x, lanes, points, *rest).double()
        scale = expected.abs().amax(-1, keepdim=True) if expected.ndim == 5 else expected.abs().amax((-1, 0), keepdim=True)
        if length > 2:  # shorter ones are normalised to their signs, which do not move
            assert ((found - expected).abs() <= 64 * unit * scale).all()
        else:
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@PAIRS
def test_underflowing_products_are_zero(isa, pair):
    base, dtype = DTYPES[pair]
    tiny = torch.finfo(dtype).tiny
    x, lanes = normal(2, 40, dtype=base), tiny * normal(1, 2, 1, 2, 40, dtype=dtype)
    found = ops.softmax_difference(x, lanes, radii(1e-9))
    assert found.abs().max() <= 8 * tiny
    assert torch.tensor(tiny, dtype=dtype) / 2 > 0  # the thread's arithmetic is as it was


@BOTH
@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_nothing_gives_nothing(name, shape):
    x, lanes = torch.zeros(shape), torch.zeros(2, 2, 1, *shape)
    assert SOFTMAX[name](x, lanes, radii(0.0, 1.0)).shape == (2, 2, 2, *shape)
    assert NORM[name](x, lanes, radii(0.0, 1.0), None, None, None, 1e-5, True).shape == (2, 2, 2, *shape)
    if shape[1]:
        assert ENTROPY[name](x, lanes, radii(0.0, 1.0), torch.zeros(0, dtype=torch.int64)).shape == (2, 2, 2, 0)
    planes = torch.zeros(*shape, 4)
    assert POOL[name](planes, lanes[..., None].repeat(1, 1, 1, 1, 1, 4), radii(0.5), *HALVES, [0, 2]).shape == (
        2,
        2,
        1,
        shape[0],
        0,
        2,
    )
    assert SOFTMAX[name](torch.zeros(2, 3), torch.zeros(0, 1, 1, 2, 3), radii(0.5)).shape == (0, 2, 1, 2, 3)


def test_float32_values_with_float64_lanes_are_answered():
    x, lanes, points = normal(3, 8, dtype=torch.float32), normal(2, 2, 1, 3, 8, seed=1), radii(0.0, 0.1)
    torch.testing.assert_close(ops.softmax_difference(x, lanes, points), softmax_reference(x, lanes, points), rtol=0, atol=0)
    assert ops.layer_norm_difference(x, lanes, points).dtype == torch.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 3, 4)}, r"x must be float32 or float64 of shape \[R, C\], got torch.float32 of shape \(2, 3, 4\)"),
        ({"x": torch.zeros(2, 3).half()}, "x must be float32 or float64 .* got torch.float16"),
        ({"lanes": torch.zeros(1, 3, 1, 2, 3)}, r"lanes must be of shape \[K, 1 or 2, 1 or 2, 2, 3\] .* got \(1, 3, 1, 2, 3\)"),
        ({"lanes": torch.zeros(1, 2, 3, 2, 3)}, r"lanes must be of shape .* 2 radii, got \(1, 2, 3, 2, 3\)"),
        ({"lanes": torch.zeros(1, 2, 1, 3, 3)}, r"lanes must be of shape .*, got \(1, 2, 1, 3, 3\)"),
        ({"lanes": torch.zeros(1, 2, 1, 2, 3).long()}, "lanes must be float32 or float64, got torch.int64"),
        ({"radii": torch.zeros(2)}, r"radii must be float64 of shape \[S\], got torch.float32"),
        ({"radii": torch.zeros(2).double().to("meta")}, "radii is on meta, x is on cpu; move them to one device"),
    ],
)
def test_unfit_lanes_are_named(change, message):
    given = {"x": torch.zeros(2, 3), "lanes": torch.zeros(1, 2, 1, 2, 3), "radii": radii(0.0, 1.0), **change}
    for call in (ops.softmax_difference, ops.layer_norm_difference):
        with pytest.raises(ValueError, match=message):
            call(*given.values())
    with pytest.raises(ValueError, match=message):
        ops.cross_entropy_difference(*given.values(), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), r"target must be int64 of shape \(2,\), one class per row of x, got .* \(3,\)"),
        (torch.zeros(2), "target must be int64"),
        (torch.tensor([0, 3]), r"target must lie in \[0, 3\), the classes of x, got 3 in row 1"),
        (torch.tensor([-1, 0]), r"target must lie in \[0, 3\), the classes of x, got -1 in row 0"),
    ],
)
@BOTH
def test_unfit_targets_are_named(name, target, message):
    if name == "reference" and "lie in" not in message:
        pytest.skip("shapes are checked before every implementation")
    with pytest.raises(ValueError, match=message):
        ENTROPY[name](torch.zeros(2, 3), torch.zeros(1, 2, 1, 2, 3), radii(0.5), target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4),), r"weight must be float32 or float64 of shape \(3,\), got torch.float32 of shape \(4,\)"),
        ((None, torch.zeros(3)), r"weight_direction must be float32 or float64 of shape \(1, 3\), got .* \(3,\)"),
        ((None, None, torch.zeros(2, 3)), r"bias_direction must be float32 or float64 of shape \(1, 3\), got .* \(2, 3\)"),
        ((None, None, None, -1.0), "eps must be finite and not negative, got -1.0"),
    ],
)
def test_unfit_weights_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ops.layer_norm_difference(torch.zeros(2, 3), torch.zeros(1, 2, 1, 2, 3), radii(0.5), *arguments)
