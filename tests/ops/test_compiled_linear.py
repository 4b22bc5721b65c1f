"""Triton kernels of linear maps and block algebra, compiled for chips that are not here and executed by the PTX simulator."""

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from ptx.aot import ARCHS, CHIPS, CompileFailure, Kernels, TritonJob
from ptx.simulator import launch

from fastscape.ops import _triton
from fastscape.ops.block_gram import triton as gram
from fastscape.ops.block_gram.reference import block_gram as gram_reference
from fastscape.ops.block_update import triton as update
from fastscape.ops.block_update.reference import block_update as update_reference
from fastscape.ops.direction.reference import directions
from fastscape.ops.perturbed_linear import triton as linear
from fastscape.ops.perturbed_linear.reference import perturbed_linear as linear_reference

SMALL_SHARED = 99 * 1024  # what sm_86, 89 and 120 have for a block: one tile for all
NAMES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}
# dtype, precision, distribution
MAPS = [
    (dtype, precision, distribution)
    for dtype, precision in ((torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee"))
    for distribution in ("gaussian", "rademacher")
]
ROWS, OUTPUTS, INPUTS = 40, 70, 384  # rests of tiles of rows and outputs; three counters of signs a row
ODD = (torch.bfloat16, "ieee", "odd")  # 36 inputs: rows that are not aligned to 16 bytes, and a rest of a tile
SEED, ID, DIRECTIONS = 0x8765432112345678 - 2**64, 0xF0000001, [2**32 - 1, 3]
FLOATS = (torch.float32, torch.float64)
BLOCKS = [(80, (dtype, m)) for dtype in FLOATS for m in (1, 4, 8)] + [
    (arch, (dtype, 8)) for dtype in FLOATS for arch in (90, 100)
]


def linear_job(arch, dtype, precision, distribution):
    kind = NAMES[dtype]
    sizes = linear.tile(4096, dtype, distribution, precision)
    pointers = {"x": f"*{kind}", "weight": f"*{kind}", "factors": "*fp32", "indices": "*i64", "y": f"*{kind}"}
    whole = ("rows", "outputs", "inputs", "x_stack", "x_row", "weight_row", "id", "k0", "k1")
    strides = () if distribution == "odd" else ("inputs", "x_stack", "x_row", "weight_row")
    constexprs = {
        "BM": sizes.BM,
        "BN": sizes.BN,
        "BK": sizes.BK,
        "RADEMACHER": distribution == "rademacher",
        "PRECISION": precision,
    }
    options = {"num_warps": sizes.warps, "num_stages": sizes.stages, "enable_fp_fusion": False}
    signature = pointers | dict.fromkeys(whole, "i32")
    kernel = "fastscape.ops.perturbed_linear.triton:perturbed_linear_kernel"
    return TritonJob(kernel, signature, constexprs, arch, (*pointers, *strides), options)


def gram_job(arch, dtype, m):
    kind = NAMES[dtype]
    pointers = {"left": f"*{kind}", "right": f"*{kind}", "partial": "*fp64"}
    whole = ("k", "m", "length", "left_stride", "right_stride", "steps")
    signature, aligned = pointers | dict.fromkeys(whole, "i32"), (*pointers, "left_stride", "right_stride")
    return TritonJob("fastscape.ops.block_gram.triton:gram_kernel", signature, gram.tile(m), arch, aligned)


def update_job(arch, dtype, m):
    kind = NAMES[dtype]
    pointers = {"left": f"*{kind}", "right": f"*{kind}", "coefficients": "*fp64", "out": f"*{kind}", "partial": "*fp64"}
    whole = ("k", "m", "length", "left_stride", "right_stride")
    signature, aligned = pointers | dict.fromkeys(whole, "i32"), (*pointers, "left_stride", "right_stride")
    constexprs = {"COLUMNS": m, "BLOCK": update.BLOCK}
    return TritonJob("fastscape.ops.block_update.triton:update_kernel", signature, constexprs, arch, aligned)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Kernels by (kind, arch, variant)."""
    jobs = {("linear", arch, case): linear_job(arch, *case) for arch in ARCHS for case in MAPS}
    jobs["linear", 80, ODD] = linear_job(80, *ODD)
    jobs |= {("gram", arch, case): gram_job(arch, *case) for arch, case in BLOCKS}
    jobs |= {("update", arch, case): update_job(arch, *case) for arch, case in BLOCKS}
    return Kernels(jobs, tmp_path_factory.mktemp("linear"))


@pytest.mark.parametrize("arch", CHIPS)
def test_kernels_keep_their_numbers_in_registers_and_fit_every_chip(compiled, arch):
    for kind, built, case in compiled.jobs:
        if built == arch:
            kernel = compiled[kind, built, case]
            assert not isinstance(kernel, CompileFailure), kernel.error
            what = f"{kind} {case} sm_{arch}: {kernel}"
            assert kernel.spill_stores == kernel.spill_loads == 0, what
            assert kernel.shared <= SMALL_SHARED, what


@pytest.mark.parametrize("case", MAPS, ids=str)
def test_products_use_the_matrix_units_and_fused_operations(compiled, case):
    """Bits of the direction forbid fusion elsewhere, not in the products."""
    dtype, precision, distribution = case
    ptx = compiled["linear", 80, case].ptx
    sizes = linear.tile(4096, dtype, distribution, precision)
    scalar = dtype == torch.float32 and precision == "ieee"
    assert ("mma.sync" in ptx) != scalar
    assert ptx.count("fma.rn.f32") == (2 * sizes.BM * sizes.BN * sizes.BK // (32 * sizes.warps) if scalar else 0)


def bits(tensor):
    """As the simulator wants it."""
    tensor = tensor.contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def simulate(kernel, x, weight, factors, distribution, precision):
    sizes = linear.tile(4096, x.dtype, distribution, precision)
    rows, (outputs, inputs) = x.shape[-2], weight.shape
    y = torch.full((len(DIRECTIONS), rows, outputs), torch.nan, dtype=x.dtype)
    grid = len(DIRECTIONS) * _triton.ceil_div(rows, sizes.BM) * _triton.ceil_div(outputs, sizes.BN)
    stack = 0 if x.ndim == 2 else x.stride(0)
    whole = (rows, outputs, inputs, stack, x.stride(-2), weight.stride(0), ID - 2**32, *_triton.key(SEED))
    arrays = (bits(x), bits(weight), factors.numpy(), np.array(DIRECTIONS), bits(y))
    done = launch(kernel, grid, [*arrays, *whole])
    result = torch.from_numpy(done.arrays[4])
    return (result.view(torch.bfloat16) if x.dtype == torch.bfloat16 else result), done.steps


@pytest.mark.parametrize("case", [*MAPS, ODD], ids=str)
def test_compiled_map_agrees_with_the_reference(compiled, case):
    """Errors are those of float32 sums, of storing a bfloat16, and of TF32, which truncates both factors to 10 bits."""
    dtype, precision, distribution = case
    inputs, kind = (36, "gaussian") if distribution == "odd" else (INPUTS, distribution)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(*(() if distribution == "rademacher" else (2,)), ROWS, inputs, generator=generator).to(dtype)
    weight = torch.randn(OUTPUTS, inputs, generator=generator).to(dtype)
    factors = torch.randn(2, ROWS, generator=generator)
    found, _ = simulate(compiled["linear", 80, case], x, weight, factors, distribution, precision)
    z = directions(torch.tensor([ID]), SEED, DIRECTIONS, [weight.numel()], kind)[0].view(2, *weight.shape).to(dtype).double()
    x, weight, factors = x.double(), weight.double(), factors.double().unsqueeze(2)
    expected = x @ weight.T + factors * (x @ z.mT)
    terms = x.abs() @ weight.abs().T + factors.abs() * (x.abs() @ z.abs().mT)
    product = 2.0**-9 if precision == "tf32" else 2.0**-21
    storing = torch.finfo(dtype).eps / 2 * expected.abs()
    assert ((found.double() - expected).abs() <= storing + product * terms).all()


@pytest.mark.parametrize("case", [*MAPS, ODD], ids=str)
def test_compiled_directions_have_the_bits_of_the_reference(compiled, case):
    """Unit inputs and no weight return the direction; the products take it in the operands' precision."""
    dtype, precision, distribution = case
    inputs, kind = (36, "gaussian") if distribution == "odd" else (INPUTS, distribution)
    chosen = torch.arange(0, inputs, 11)
    x, weight = torch.eye(inputs, dtype=dtype)[chosen], torch.zeros(OUTPUTS, inputs, dtype=dtype)
    found, _ = simulate(compiled["linear", 80, case], x, weight, torch.ones(2, len(chosen)), distribution, precision)
    ones = torch.ones(2, len(chosen))
    expected = linear_reference(x, weight, ID, SEED, DIRECTIONS, ones[:, 0].double(), ones, kind)
    if precision == "tf32" and kind == "gaussian":
        torch.testing.assert_close(found, expected, rtol=2.0**-10, atol=0)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("case", "limit"), [(MAPS[2], 76), (MAPS[3], 36), (MAPS[4], 74), (MAPS[5], 25)], ids=str)
def test_an_element_of_the_direction_costs_what_is_recorded(compiled, case, limit):
    """Instructions of a thread for each element of Z that it makes, products included: steps that 256 more inputs take."""
    dtype, precision, distribution = case
    sizes = linear.tile(4096, dtype, distribution, precision)
    steps = []
    for inputs in (256, 512):
        x, weight = torch.ones(1, inputs, dtype=dtype), torch.ones(sizes.BN, inputs, dtype=dtype)
        kernel = compiled["linear", 80, case]
        steps.append(simulate(kernel, x, weight, torch.ones(2, 1), distribution, precision)[1])
    assert (steps[1] - steps[0]) / (256 * sizes.BN / (32 * sizes.warps)) < limit


@pytest.mark.parametrize(("arch", "case"), [pytest.param(*b, marks=[pytest.mark.slow] * (b[0] == 90)) for b in BLOCKS], ids=str)
def test_compiled_block_algebra_agrees_with_the_reference(compiled, arch, case):
    dtype, m = case
    generator = torch.Generator().manual_seed(m)
    k, length, stride = 9, 1300, 1312  # rests of tiles of rows and of blocks
    left = torch.randn(k, stride, generator=generator, dtype=torch.float64).to(dtype)[:, :length]
    right = torch.randn(m, stride, generator=generator, dtype=torch.float64).to(dtype)[:, :length]
    coefficients = torch.randn(k, m, generator=generator, dtype=torch.float64)
    storage = [tensor.as_strided((len(tensor), stride), (stride, 1)).numpy() for tensor in (left, right)]

    sizes = gram.tile(m)
    steps, stretches = 2, _triton.ceil_div(length, 2 * sizes["BLOCK"])
    partial = np.full((stretches, k, m), np.nan)
    grid = (_triton.ceil_div(k, sizes["ROWS"]), _triton.ceil_div(m, sizes["COLUMNS"]), stretches)
    arguments = [*storage, partial, k, m, length, stride, stride, steps]
    found = launch(compiled["gram", arch, case], grid, arguments).arrays[2].sum(0)
    np.testing.assert_allclose(found, gram_reference(left, right).numpy(), rtol=0, atol=1e-12)

    blocks = _triton.ceil_div(length, update.BLOCK)
    out, partial = np.full((m, length), np.nan, storage[0].dtype), np.full((blocks, m), np.nan)
    arguments = [*storage, coefficients.numpy(), out, partial, k, m, length, stride, stride]
    found = launch(compiled["update", arch, case], (blocks, 1), arguments).arrays
    expected, squares = update_reference(right, left, coefficients)
    np.testing.assert_allclose(found[3], expected.numpy(), rtol=torch.finfo(dtype).eps, atol=1e-14)
    np.testing.assert_allclose(found[4].sum(0), squares.numpy(), rtol=1e-9 if dtype == torch.float32 else 1e-13)
