"""Maps behind a ReLU along a line: closed forms, exact sums of integers, kinks at points, and what is not finite."""

import pytest
import torch
from ops.samples import relu_line_tensors

from fastscape.ops import _native, relu_line
from fastscape.ops.relu_line.reference import relu_line as reference


@pytest.fixture(params=["reference", *_native.ISAS])
def run(request):
    """The reference and the kernel of each instruction set that this processor has."""
    if request.param == "reference":
        yield reference
        return
    if not _native.library.available:
        pytest.skip(_native.library.reason)
    before = _native.library.isa
    if _native.library.set_isa(request.param) != request.param:
        pytest.skip(f"this processor has no {request.param}")
    yield relu_line
    _native.library.set_isa(before)


def exact(inputs, weight, bias, points, head=None, head_bias=None):
    wide = [None if tensor is None else tensor.double() for tensor in (inputs, weight, bias, head, head_bias)]
    return reference(*wide[:3], points, *wide[3:])


def integers(shape, seed, dtype):
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def test_one_unit_in_closed_form(run):
    """relu(1 - 2t) (3 + t) - t, whose kink is at 1/2; and 2 relu of it + 1."""
    inputs, weight, bias = torch.tensor([[[1.0]], [[-2.0]]]), torch.tensor([[[3.0]], [[1.0]]]), torch.tensor([[0.0], [-1.0]])
    points = [-1.0, 0.0, 0.25, 0.5, 1.0]
    assert run(inputs, weight, bias, points, None, None).flatten().tolist() == [7.0, 3.0, 1.375, -0.5, -1.0]
    head, head_bias = torch.tensor([[[2.0]], [[0.0]]]), torch.tensor([[1.0], [0.0]])
    assert run(inputs, weight, bias, points, head, head_bias).flatten().tolist() == [15.0, 7.0, 3.75, 1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "units", "outputs"), [(1, 1, 1), (9, 16, 33), (17, 65, 7), (8, 131, 64)])
def test_sums_of_integers_are_exact_with_kinks_at_points(run, rows, units, outputs, dtype):
    """At integer points all sums are integers below 2^24, and most kinks are at points."""
    shapes = [(2, rows, units), (2, units, outputs), (2, outputs)]
    inputs, weight, bias = (integers(shape, seed, dtype) for seed, shape in enumerate(shapes))
    points = [float(t) for t in range(-4, 5)]
    assert torch.equal(run(inputs, weight, bias, points, None, None), exact(inputs, weight, bias, points).to(dtype))


@pytest.mark.parametrize(("dtype", "heads"), [(torch.float32, True), (torch.float32, False), (torch.float64, True)])
def test_results_are_as_accurate_as_products(run, dtype, heads):
    inputs, weight, bias, head, head_bias = relu_line_tensors(40, 128, 64, dtype, 10)
    rest = (head, head_bias) if heads else (None, None)
    points = torch.linspace(-1, 1, 41, dtype=torch.float64).tolist()
    if dtype == torch.float64:
        torch.testing.assert_close(
            run(inputs, weight, bias, points, *rest), reference(inputs, weight, bias, points, *rest), rtol=1e-11, atol=1e-10
        )
        return
    truth = exact(inputs, weight, bias, points, *rest)
    errors = [(found.double() - truth).square().mean().sqrt() for found in _both(run, inputs, weight, bias, points, rest)]
    assert errors[0] <= 3 * errors[1]


def _both(run, inputs, weight, bias, points, rest):
    return run(inputs, weight, bias, points, *rest), reference(inputs, weight, bias, points, *rest)


def test_a_line_is_cut_in_pieces_anywhere(run):
    inputs, weight, bias, head, head_bias = relu_line_tensors(9, 40, 20, classes=3)
    points = torch.linspace(-3, 3, 200).tolist()
    whole = run(inputs, weight, bias, points, head, head_bias)
    single = torch.cat([run(inputs, weight, bias, [t], head, head_bias) for t in points])
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(whole.double(), exact(inputs, weight, bias, points, head, head_bias), rtol=1e-4, atol=1e-3)


def test_units_that_are_never_active_leave_the_bias(run):
    inputs, weight, bias = relu_line_tensors(5, 20, 6)[:3]
    inputs[0], inputs[1] = -10.0, 1.0
    points = [-2.0, 0.0, 3.0]
    for found, t in zip(run(inputs, weight, bias, points, None, None), points, strict=True):
        torch.testing.assert_close(found, (bias[0] + t * bias[1]).expand(5, 6))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["base", "slope", "weight", "weight slope", "bias", "head"])
def test_what_is_not_finite_comes_out_as_from_products(run, where, value):
    tensors = relu_line_tensors(10, 33, 9, classes=4)
    tensor = dict(zip(["base", "weight", "bias", "head"], [tensors[0], tensors[1], tensors[2], tensors[3]], strict=True)).get(
        where
    )
    tensor = {"slope": tensors[0], "weight slope": tensors[1]}.get(where) if tensor is None else tensor
    tensor.view(2, -1)[int("slope" in where), 5] = value
    arguments = (*tensors[:3], [-1.0, 0.5, 2.0], *tensors[3:])
    torch.testing.assert_close(run(*arguments), reference(*arguments), rtol=1e-3, atol=1e-3, equal_nan=True)


def test_weights_that_overflow_on_the_way_are_infinite_as_in_products(run):
    """At t = 2 a weight is 6e38, infinite in float32; times a unit that is off it is NaN."""
    inputs, weight, bias = relu_line_tensors(6, 20, 5)[:3]
    weight[1, 4, 2] = 3e38
    found = run(inputs, weight, bias, [0.0, 2.0], None, None)
    torch.testing.assert_close(found, reference(inputs, weight, bias, [0.0, 2.0], None, None), equal_nan=True)
    assert not found[1, :, 2].isfinite().any()
    assert found[0].isfinite().all()


def test_wide_layers_are_left_to_the_reference(run):
    tensors = relu_line_tensors(2, 2049, 3)[:3]
    torch.testing.assert_close(run(*tensors, [0.0, 1.0], None, None), reference(*tensors, [0.0, 1.0], None, None))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": torch.ones(2, 3)}, r"inputs must be float32 or float64 of shape \[2, N, H\]"),
        ({"inputs": torch.ones(2, 3, 4).half()}, "inputs must be float32 or float64"),
        ({"weight": torch.ones(2, 5, 4)}, r"weight must be torch.float32 of shape \[2, 4, O\].*transposes"),
        ({"weight": torch.ones(2, 4, 5).double()}, "weight must be torch.float32"),
        ({"bias": torch.ones(5)}, r"bias must be torch.float32 of shape \[2, 5\]"),
        ({"head": torch.ones(2, 5, 3)}, "head and head_bias must be given together"),
        ({"head": torch.ones(2, 4, 3), "head_bias": torch.ones(2, 3)}, r"head must be torch.float32 of shape \[2, 5, O\]"),
        ({"points": [0.0, -1.0]}, r"points must be finite and ascending, got \[0.0, -1.0\]; sort them"),
        ({"points": [0.0, float("nan")]}, "points must be finite and ascending"),
        ({"points": [float("-inf"), 0.0]}, "points must be finite and ascending"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    arguments = {"inputs": torch.ones(2, 3, 4), "weight": torch.ones(2, 4, 5), "bias": torch.ones(2, 5), "points": [0.0, 1.0]}
    with pytest.raises(ValueError, match=message):
        relu_line(**(arguments | change))
