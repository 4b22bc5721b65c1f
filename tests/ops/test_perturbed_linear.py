"""Linear maps with perturbed weights: the direction's bits, exact cases, accuracy against float64; all implementations."""

import types

import numpy as np
import pytest
import torch
from ops.interpreter import DEVICE, bfloat16_as_on_chips  # noqa: F401

from fastscape.ops import _native
from fastscape.ops.direction import direction
from fastscape.ops.perturbed_linear import one_by_one, perturbed_linear
from fastscape.ops.perturbed_linear import triton as fused
from fastscape.ops.perturbed_linear.reference import materialised
from fastscape.ops.perturbed_linear.reference import perturbed_linear as linear_reference

LINEARS = {"reference": linear_reference, "op": perturbed_linear, "triton": fused.perturbed_linear}
BOTH = pytest.mark.parametrize("name", LINEARS)
SEED, ID, DIRECTIONS = 0x7EDCBA9876543210, 0x9ABCDEF0, [5, 2**32 - 1]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
# outputs, inputs: rests of tiles of outputs and inputs; the last falls back
SHAPES = [("gaussian", 70, 36), ("rademacher", 67, 256), ("gaussian", 5, 4), ("gaussian", 9, 30), ("rademacher", 3, 36)]


def noise(distribution, outputs, inputs, directions=DIRECTIONS):
    ids = torch.tensor([ID], device=DEVICE)
    return direction(ids, SEED, directions, [outputs * inputs], distribution)[0].view(-1, outputs, inputs)


def problem(dtype, outputs, inputs, rows=11, stacked=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (len(DIRECTIONS), rows, inputs) if stacked else (rows, inputs)
    x, weight = (torch.randn(*size, generator=generator, dtype=torch.float64) for size in (shape, (outputs, inputs)))
    scales = torch.rand(len(DIRECTIONS), generator=generator, dtype=torch.float64)
    eps = torch.randn(len(DIRECTIONS), rows, generator=generator)
    return x.to(DEVICE, dtype), weight.to(DEVICE, dtype), scales.to(DEVICE), eps.to(DEVICE)


def run(name, x, weight, scales, eps, distribution="gaussian", directions=DIRECTIONS):
    return LINEARS[name](x, weight, ID, SEED, directions, scales, eps, distribution)


def exact(x, weight, scales, eps, distribution):
    """In float64, and the sum of the magnitudes of an output's terms."""
    z = noise(distribution, *weight.shape).to(x.dtype).double()
    x, weight, factor = x.double(), weight.double(), (eps.double() * scales[:, None]).unsqueeze(2)
    value = x @ weight.T + factor * (x @ z.mT)
    return value, x.abs() @ weight.abs().T + factor.abs() * (x.abs() @ z.abs().mT)


@BOTH
@DTYPES
@pytest.mark.parametrize(("distribution", "outputs", "inputs"), SHAPES)
def test_unit_inputs_return_the_direction(name, dtype, distribution, outputs, inputs):
    """A single one as x, W = 0: the outputs are the elements of Z themselves, (o, i) being element o I + i."""
    chosen = torch.arange(0, inputs, 1 if inputs < 64 else 7, device=DEVICE)  # in all words of a counter, at all their bits
    x = torch.eye(inputs, dtype=dtype, device=DEVICE)[chosen]
    weight = torch.zeros(outputs, inputs, dtype=dtype, device=DEVICE)
    ones = torch.ones(2, len(chosen), device=DEVICE)
    found = run(name, x, weight, ones[:, 0].double(), ones, distribution)
    assert torch.equal(found, noise(distribution, outputs, inputs).mT[:, chosen].to(dtype))


@BOTH
def test_weights_and_displacement_are_rounded_once_at_the_end(name):
    """With powers of two for eps and s, w + eps s z is one float32 addition."""
    outputs, inputs = 66, 32
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    eps = torch.tensor([0.25, -2.0], device=DEVICE)[:, None].expand(2, inputs)
    scales = torch.tensor([2.0**-9, 2.0**-13], dtype=torch.float64, device=DEVICE)
    found = run(name, torch.eye(inputs, device=DEVICE), weight, scales, eps)
    factors = (eps[:, :1] * scales[:, None]).float().unsqueeze(2)
    assert torch.equal(found, (weight + factors * noise("gaussian", outputs, inputs)).mT)


@BOTH
@DTYPES
@pytest.mark.parametrize(("distribution", "outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("stacked", [True, False])
def test_accuracy_is_that_of_the_arithmetic(name, dtype, distribution, outputs, inputs, stacked):
    arguments = problem(dtype, outputs, inputs, stacked=stacked)
    kept = [tensor.clone() for tensor in arguments]
    found = run(name, *arguments, distribution)
    assert (found.dtype, tuple(found.shape)) == (dtype, (2, 11, outputs))
    value, magnitude = exact(*arguments, distribution)
    unit = torch.finfo(dtype).eps / 2
    storing = unit * value.abs() if dtype.itemsize == 2 else 0.0

    def error(result):
        return float((((result.double() - value).abs() - storing) / magnitude).max())

    floor = 2 * torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert error(found) <= max(2 * error(run("reference", *arguments, distribution)), floor)
    assert all(torch.equal(a, b) for a, b in zip(arguments, kept, strict=True))


@BOTH
@DTYPES
@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("stacked", [True, False])
def test_directions_of_a_rank_are_products_of_two_raw_ones(name, dtype, distribution, stacked):
    x, weight, scales, eps = problem(dtype, 22, 36, stacked=stacked)
    found = LINEARS[name](x, weight, ID, SEED, DIRECTIONS, scales, eps, distribution, 5, 77)
    ids = torch.tensor([ID, 77], device=DEVICE)
    left, right = (part.to(dtype).double().view(2, 5, -1) for part in direction(ids, SEED, DIRECTIONS, [110, 180], distribution))
    factor = (eps.double() * scales[:, None]).unsqueeze(2)
    value = x.double() @ weight.double().T + factor * (x.double() @ (left.mT @ right).mT)
    size = x.abs().double() @ weight.abs().double().T + factor.abs() * (x.abs().double() @ (left.abs().mT @ right.abs()).mT)
    unit = torch.finfo(dtype if dtype == torch.float64 else torch.float32).eps
    storing = torch.finfo(dtype).eps * value.abs() if dtype.itemsize == 2 else 0.0
    assert (found.dtype, tuple(found.shape)) == (dtype, (2, 11, 22))
    assert ((found.double() - value).abs() <= 16 * unit * size + storing).all()


@BOTH
def test_displacements_below_the_spacing_of_the_weights_survive(name):
    """x W vanishes by cancellation between integers, so that the output is the change alone."""
    half, weight, scales, eps = problem(torch.float32, 24, 32)
    half, weight = half.round(), (16 * weight).round()
    x, weight = torch.cat((half, half), -1), torch.cat((weight, -weight), -1)
    eps = 2.0**-20 * eps.sign()
    found = run(name, x, weight, torch.ones_like(scales), eps)
    z = noise("gaussian", 24, 64)
    change = eps.unsqueeze(2).double() * (x.double() @ z.mT.double())
    magnitude = 2.0**-20 * (x.abs().double() @ z.abs().mT.double())
    assert ((found - change).abs() / magnitude).max() <= 2.0**-22
    stored = torch.stack([x[0, m] @ (weight + eps[0, m] * z[0]).T for m in range(11)])
    assert ((stored - change[0]).abs() / magnitude[0]).max() > 0.01  # what rounding W + eps D costs
    assert torch.equal(run(name, x, weight, scales, 0 * eps), torch.zeros_like(found))


@BOTH
def test_every_row_has_its_own_displacement(name):
    x, weight, scales, eps = problem(torch.float64, 8, 16)
    together = run(name, x, weight, scales, eps.double())
    for m in (0, 3, 10):
        alone = run(name, x[:, m : m + 1], weight, scales, eps[:, m : m + 1].double())
        torch.testing.assert_close(alone[:, 0], together[:, m], rtol=0, atol=1e-12)
    for k, index in enumerate(DIRECTIONS):
        alone = run(name, x[k : k + 1], weight, scales[k : k + 1], eps[k : k + 1], directions=[index])
        torch.testing.assert_close(alone[0], together[k], rtol=0, atol=1e-12)


@BOTH
def test_map_is_adjoint_to_itself_with_the_transposed_weight(name):
    """<y(u), v> = <u, W^T v> + eps s <u, Z^T v>."""
    u, weight, scales, _ = problem(torch.float64, 12, 20)
    v = torch.randn(2, 11, 12, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(DEVICE)
    eps = torch.full((2, 11), 0.5, dtype=torch.float64, device=DEVICE)
    forward = (run(name, u, weight, scales, eps) * v).sum()
    back = v @ weight + 0.5 * scales[:, None, None] * (v @ noise("gaussian", 12, 20).double())
    torch.testing.assert_close(forward, (u * back).sum(), rtol=0, atol=1e-10)


@BOTH
def test_layouts_do_not_matter(name):
    x, weight, scales, eps = problem(torch.float32, 70, 36, stacked=False)
    expected = run(name, x, weight, scales, eps)
    wider = torch.nn.functional.pad(x, (3, 5))[:, 3:-5], torch.nn.functional.pad(weight, (1, 2))[:, 1:-2]
    stacks = [x.expand(2, *x.shape), x.T.contiguous().T, wider[0]]
    for other in stacks:
        torch.testing.assert_close(run(name, other, weight, scales, eps), expected, rtol=0, atol=2e-5)
    for other in (weight.T.contiguous().T, wider[1]):
        found = run(name, x, other, scales.expand(2), eps.T.contiguous().T)
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_shared_inputs_are_not_copied(monkeypatch):
    """The fused kernel gets the caller's tensors and a stack stride of zero."""
    launches = []

    class Recorder:
        def __getitem__(self, grid):
            return lambda *arguments, **options: launches.append(arguments)

    monkeypatch.setattr(fused, "perturbed_linear_kernel", Recorder())
    x, weight, scales, eps = problem(torch.float32, 8, 36, stacked=False)
    for shared in (x, x.expand(2, *x.shape)):
        fused.perturbed_linear(shared, weight, ID, SEED, DIRECTIONS, scales, eps, "gaussian")
    for arguments in launches:
        assert (arguments[0].data_ptr(), arguments[1].data_ptr()) == (x.data_ptr(), weight.data_ptr())
        assert arguments[8:11] == (0, 36, 36)
    assert len(launches) == 2


def test_what_the_fused_kernel_cannot_do_is_done_one_direction_at_a_time(monkeypatch):
    monkeypatch.setattr(fused, "perturbed_linear_kernel", None)  # a launch would fail
    for dtype, distribution, inputs in [
        (torch.float32, "gaussian", 30),
        (torch.float32, "rademacher", 132),
        (torch.float64, "gaussian", 32),
    ]:
        arguments = problem(dtype, 6, inputs)
        assert torch.equal(run("triton", *arguments, distribution), run("op", *arguments, distribution))


def test_one_direction_is_stored_at_a_time():
    drawn = []

    def draw(index):
        drawn.append(index)
        return torch.zeros(1, 6 * 4)

    x, weight, scales, eps = (tensor.cpu() for tensor in problem(torch.float32, 6, 4))
    materialised(x, weight, DIRECTIONS, scales, eps, draw)
    assert drawn == DIRECTIONS


@pytest.mark.skipif(not _native.library.available, reason=_native.library.reason)
def test_kernel_and_reference_give_the_same_bits_on_a_cpu():
    arguments = [tensor.cpu() for tensor in problem(torch.float32, 70, 36)]
    expected = linear_reference(arguments[0], arguments[1], ID, SEED, DIRECTIONS, *arguments[2:], "gaussian")
    assert torch.equal(one_by_one(arguments[0], arguments[1], ID, SEED, DIRECTIONS, *arguments[2:], "gaussian"), expected)


@BOTH
def test_autocast_does_not_round_the_operands_again(name):
    arguments = problem(torch.float32, 16, 32)
    expected = run(name, *arguments)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert torch.equal(run(name, *arguments), expected)


@BOTH
@np.errstate(invalid="ignore")  # NumPy interprets the kernels here
def test_not_a_number_stays_in_its_row_or_column(name):
    x, weight, scales, eps = problem(torch.float32, 6, 36)
    x[1, 4, 35] = torch.nan
    eps[0, 2] = torch.nan
    found = run(name, x, weight, scales, eps)
    expected = torch.zeros(2, 11, 6, dtype=torch.bool, device=DEVICE)
    expected[1, 4], expected[0, 2] = True, True
    assert torch.equal(found.isnan(), expected)
    weight[3, 0] = torch.inf
    expected[:, :, 3] = True
    assert torch.equal(run(name, x, weight, scales, eps).isfinite(), ~expected)


@BOTH
@pytest.mark.parametrize(("count", "rows", "outputs", "inputs"), [(0, 3, 4, 8), (2, 0, 4, 8), (2, 3, 0, 8), (2, 3, 4, 0)])
def test_empty_problems(name, count, rows, outputs, inputs):
    x, weight = torch.ones(count, rows, inputs, device=DEVICE), torch.ones(outputs, inputs, device=DEVICE)
    scales = torch.ones(count, dtype=torch.float64, device=DEVICE)
    found = run(name, x, weight, scales, torch.ones(count, rows, device=DEVICE), directions=DIRECTIONS[:count])
    assert torch.equal(found, torch.zeros(count, rows, outputs, device=DEVICE))


X, W, S, E = torch.zeros(2, 3, 4), torch.zeros(5, 4), torch.ones(2, dtype=torch.float64), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": 2**32}, r"id must be an integer in \[0, 2\^32\), got 4294967296"),
        ({"directions": [0, -1]}, r"directions\[1\] must be an integer in \[0, 2\^32\), got -1"),
        ({"distribution": "uniform"}, "distribution must be 'gaussian' or 'rademacher', got 'uniform'"),
        ({"weight": torch.zeros(4)}, r"weight must be float32, .* of shape \[O, I\], got torch.float32 of shape \(4,\)"),
        ({"weight": W.int()}, "weight must be float32, float64, bfloat16 or float16 .* got torch.int32"),
        ({"x": X[..., :3]}, r"x must be of shape \[M, 4\] or \[2, M, 4\] .* got \(2, 3, 3\)"),
        ({"x": torch.zeros(3, 3, 4)}, r"x must be of shape \[M, 4\] or \[2, M, 4\] .* got \(3, 3, 4\)"),
        ({"x": X.double()}, "x must be torch.float32 as weight is, got torch.float64"),
        ({"scales": S.float()}, r"scales must be float64 of shape \(2,\), one per direction, got torch.float32"),
        ({"scales": S[:1]}, r"scales must be float64 of shape \(2,\), one per direction, got torch.float64 of shape \(1,\)"),
        ({"eps": E[:, :1]}, r"eps must be float32 or float64 of shape \(2, 3\), one per row of x, got .* shape \(2, 1\)"),
        ({"eps": E.half()}, "eps must be float32 or float64 .* got torch.float16"),
        ({"eps": E.to("meta")}, "eps is on meta, x is on cpu"),
    ],
)
def test_unfit_arguments_are_named(changes, message):
    arguments = {"x": X, "weight": W, "id": 1, "seed": 0, "directions": [0, 1], "scales": S, "eps": E} | changes
    with pytest.raises(ValueError, match=message):
        perturbed_linear(**arguments)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("rows", [1, 16, 100, 5000])
@pytest.mark.parametrize(("dtype", "how"), [(torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee")])
def test_tiles_fit_the_generator(distribution, rows, dtype, how):
    sizes = fused.tile(rows, dtype, distribution, how)
    assert sizes.BK % 4 == 0
    assert distribution == "gaussian" or sizes.BK in (16, 32, 64)  # columns of one counter
    assert 16 <= sizes.BM <= max(16, 2 * rows - 1)


@pytest.mark.parametrize(("asked", "how"), [("tf32", "tf32"), ("ieee", "ieee"), ("none", "ieee")])
def test_products_use_tf32_only_where_torch_would(monkeypatch, asked, how):
    monkeypatch.setattr(torch.backends.cuda, "matmul", types.SimpleNamespace(fp32_precision=asked))
    assert (fused.precision(torch.float32), fused.precision(torch.bfloat16)) == (how, "ieee")
