"""Compiled kernels give the bits of NumPy, and faults put into them are caught."""

import re
from dataclasses import replace

import numpy as np
import pytest

from ptx.formats import fma, from_bfloat16, to_bfloat16
from ptx.samples import ARCHS
from ptx.simulator import DivergenceError, OutOfBoundsError, Pointers, RaceError, SimulationError, launch

PHILOX = 0xD2511F53
DOT_ERROR = 2e-5  # sums of 128 products of normal numbers: float32, in any order

every_chip = pytest.mark.parametrize("arch", ARCHS)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def without(kernel, text, number=None):
    """The kernel without one (or every) PTX instruction that begins with ``text``."""
    pieces = re.split(rf"(^\s*{re.escape(text)}[^;]*;)", kernel.ptx, flags=re.MULTILINE)
    assert len(pieces) > 1, f"no {text}"
    chosen = range(len(pieces) // 2) if number is None else [number]
    for each in chosen:
        pieces[2 * each + 1] = ""
    return replace(kernel, ptx="".join(pieces))


@every_chip
def test_masked_sum(compiled, arch):
    x, y, before = normal(1000), normal(1000, seed=1), np.full(1000, np.nan, np.float32)
    result = launch(compiled("add", arch), 4, [x, y, before, 1000])
    np.testing.assert_array_equal(result.arrays[2], x + y)
    np.testing.assert_array_equal(result.arrays[0], x)
    assert np.isnan(before).all()  # the arguments are copied
    assert result.steps == sum(result.issued.values()) > 10


@every_chip
def test_an_array_passed_twice_is_one(compiled, arch):
    x = normal(700)
    result = launch(compiled("add", arch), 3, [x, x, x, 700])
    for array in result.arrays:
        np.testing.assert_array_equal(array, x + x)


@every_chip
def test_float64_sums_of_blocks(compiled, arch):
    x = np.ldexp(np.random.default_rng(0).integers(-100, 100, 2500), -5).astype(np.float32)  # their sums are exact
    result = launch(compiled("block_sums", arch), 3, [x, np.full(3, np.nan), 2500])
    np.testing.assert_array_equal(
        result.arrays[1], [x[:1024].sum(dtype=float), x[1024:2048].sum(dtype=float), x[2048:].sum(dtype=float)]
    )
    assert result.issued["bar"] > 0


def hash_reference(count, key):
    product = np.arange(count, dtype=np.uint64) * np.uint64(PHILOX)
    return ((product >> np.uint64(32)) ^ product ^ np.uint64(key % 2**32)).astype(np.uint32)


@every_chip
@pytest.mark.parametrize("key", [5, -5])
def test_integer_hash(compiled, arch, key):
    result = launch(compiled("hashed", arch), 5, [np.zeros(1111, np.uint32), 1111, key])
    np.testing.assert_array_equal(result.arrays[0], hash_reference(1111, key))


@every_chip
def test_pointer_table(compiled, arch):
    sources = [normal(200, seed=seed) for seed in range(3)]
    gathered, out = launch(compiled("gather", arch), 3, [Pointers(sources), np.zeros((3, 200), np.float32), 200]).arrays
    np.testing.assert_array_equal(out, sources)
    np.testing.assert_array_equal(gathered, sources)


def test_null_pointer(compiled):
    with pytest.raises(OutOfBoundsError, match=r"global memory.*ld\.global"):
        launch(compiled("gather", 80), 1, [Pointers([None]), np.zeros((1, 200), np.float32), 200])


@every_chip
def test_square_root_is_correctly_rounded_and_products_fuse_only_where_allowed(compiled, arch):
    x, y, z = (np.abs(normal(1024, seed=seed)) for seed in range(3))
    plain, fused = (launch(compiled(name, arch), 4, [x, y, z, 0 * x]).arrays[3] for name in ("root", "fused root"))
    np.testing.assert_array_equal(plain, np.sqrt(x * y + z))
    np.testing.assert_array_equal(fused, np.sqrt(fma(x, y, z)))
    assert (plain != fused).any()


def truncated(values):
    """float64 with 11 significant bits, as tf32 has."""
    mantissa, exponent = np.frexp(values.astype(float))
    return np.ldexp(np.trunc(mantissa * 2**11), exponent - 11)


@every_chip
@pytest.mark.parametrize("precision", ["tf32", "bf16", "ieee"])
def test_matrix_product(compiled, arch, precision):
    a, b = normal(32, 128), normal(128, 32)
    passed, read = [a, b], [a, b]
    if precision == "bf16":
        passed = [to_bfloat16(a), to_bfloat16(b)]
        read = [from_bfloat16(each) for each in passed]
    elif precision == "tf32":
        read = [truncated(each) for each in passed]
    result = launch(compiled(f"matmul {precision}", arch), 1, [*passed, np.full((32, 32), np.nan, np.float32), 128])
    np.testing.assert_allclose(result.arrays[2], read[0].astype(float) @ read[1], rtol=0, atol=DOT_ERROR)
    assert result.issued["cp"] > 0
    assert (result.issued["mma"] > 0) == (precision != "ieee")


def test_matrix_product_of_float16(compiled):
    a, b = normal(32, 128).astype(np.float16), normal(128, 32).astype(np.float16)
    result = launch(compiled("matmul f16"), 1, [a, b, np.zeros((32, 32), np.float32), 128])
    np.testing.assert_allclose(result.arrays[2], a.astype(float) @ b, rtol=0, atol=DOT_ERROR)


@every_chip
def test_transpose_of_16_bits(compiled, arch):
    x = np.random.default_rng(0).integers(0, 2**16, (64, 64)).astype(np.uint16)
    result = launch(compiled("transpose", arch), 1, [x, 0 * x])
    np.testing.assert_array_equal(result.arrays[1], x.T)


@every_chip
def test_atomic_counts(compiled, arch):
    x = np.random.default_rng(0).integers(0, 7, 1000).astype(np.int32)
    result = launch(compiled("count", arch), 4, [x, np.zeros(7, np.int32), 1000])
    np.testing.assert_array_equal(result.arrays[1], np.bincount(x, minlength=7))


@every_chip
def test_cuda_dot_products(compiled, arch):
    x, sources = normal(500), [normal(500, seed=seed) for seed in range(1, 5)]
    result = launch(compiled("dot", arch), 4, [x, Pointers(sources), np.zeros(4), 500], block=128)
    np.testing.assert_allclose(result.arrays[2], [x.astype(float) @ y for y in sources], rtol=1e-13)


def mixed_reference(values):
    digits = np.zeros((len(values), 10), int)
    each = np.arange(len(values))
    for i in range(10):
        digits[each, (i * 3 + values) % 10] = i * values
    tile = digits[each, values % 10]
    product = np.where(values % 2, tile[::-1], digits[each, (values + 5) % 10]) * -1000000007
    return -(-product // (values + 1))  # C rounds the quotient of a negative number up


@every_chip
def test_cuda_local_memory_generic_addresses_and_structures(compiled, arch):
    shape = np.array((5, 7, 0.3), np.dtype([("rows", "i4"), ("columns", "i4"), ("scale", "f8")]))[()]
    values = np.random.default_rng(0).integers(0, 256, 35).astype(np.uint8)
    args = [values, np.zeros(35, np.int64), np.zeros(35, np.float32), shape]
    result = launch(compiled("mixed", arch), 1, args, block=(7, 5), dynamic_shared=4 * 35)
    np.testing.assert_array_equal(result.arrays[1], mixed_reference(values.astype(int)))
    np.testing.assert_array_equal(result.arrays[2], (0.3 * values).astype(np.float32))
    with pytest.raises(OutOfBoundsError, match=r"shared memory.*st\.shared"):
        launch(compiled("mixed", arch), 1, args, block=(7, 5), dynamic_shared=4 * 34)


@pytest.mark.parametrize(("name", "opcode"), [("unmasked loads", "ld"), ("unmasked store", "st")])
def test_a_removed_mask_leaves_the_arrays(compiled, name, opcode):
    args = [normal(1000), normal(1000), np.zeros(1000, np.float32), 1000]
    with pytest.raises(MemoryError, match=rf"outside every array.*`(@%p\d+ )?{opcode}\.global.*line \d+ of the PTX"):
        launch(compiled(name), 4, args)


def test_a_length_beyond_the_array_is_caught(compiled):
    with pytest.raises(MemoryError, match=r"byte 4000 of array 0, which has 4000.*ld\.global"):
        launch(compiled("add", 80), 4, [normal(1000), normal(1001), normal(1001), 1001])


def test_a_changed_constant_changes_bits(compiled):
    result = launch(compiled("other constant"), 5, [np.zeros(1111, np.uint32), 1111, 5])
    assert (result.arrays[0] != hash_reference(1111, 5)).any()


BARRIERS = {
    "block_sums": lambda: (3, [normal(2500), np.zeros(3), 2500]),
    "transpose": lambda: (1, [np.zeros((64, 64), np.uint16), np.zeros((64, 64), np.uint16)]),
    "matmul tf32": lambda: (1, [normal(32, 128), normal(128, 32), np.zeros((32, 32), np.float32), 128]),
}


@every_chip
@pytest.mark.parametrize("name", BARRIERS)
def test_a_removed_barrier_is_a_race(compiled, arch, name):
    kernel = compiled(name, arch)
    grid, args = BARRIERS[name]()
    launch(kernel, grid, args)
    with pytest.raises(RaceError, match="since the last barrier at `(ld|st|ldmatrix)"):
        launch(without(kernel, "bar.sync"), grid, args)


def test_a_removed_barrier_in_the_source_is_a_race(compiled):
    with pytest.raises(RaceError, match=r"another warp's write.*ld\.shared"):
        launch(compiled("unsynchronised dot"), 1, [normal(500), Pointers([normal(500)]), np.zeros(1), 500], block=128)


@every_chip
def test_a_removed_or_weakened_wait_is_a_race(compiled, arch):
    kernel = compiled("matmul bf16", arch)
    args = [np.zeros((32, 128), np.uint16), np.zeros((128, 32), np.uint16), np.zeros((32, 32), np.float32), 128]
    launch(kernel, 1, args)
    assert "cp.async.wait_group \t2;" in kernel.ptx
    late = replace(kernel, ptx=kernel.ptx.replace("cp.async.wait_group \t2;", "cp.async.wait_group \t3;"))
    for faulty in (without(kernel, "cp.async.wait_group"), late):
        with pytest.raises(RaceError, match="has not delivered at `ldmatrix"):
            launch(faulty, 1, args)


def test_a_barrier_for_some_threads_only_is_caught(compiled):
    with pytest.raises(DivergenceError, match=r"barrier that only some threads of a block reach at `bar\.sync"):
        launch(compiled("one-sided barrier"), 1, [np.zeros(64, np.int32)], block=64)
    with pytest.raises(RaceError):  # two warps, and nothing orders them
        launch(without(compiled("one-sided barrier"), "bar.sync"), 1, [np.zeros(64, np.int32)], block=64)


def test_instructions_that_work_in_the_background_are_refused_by_name(compiled):
    kernel = compiled("wgmma")
    assert "wgmma" in kernel.ptx
    with pytest.raises(NotImplementedError, match=r"PTX instruction `fence\.proxy\.async"):
        launch(kernel, 1, [np.zeros((64, 128), np.float16), np.zeros((128, 64), np.float16), np.zeros((64, 64), np.float32), 128])


def test_an_endless_loop_ends(compiled):
    with pytest.raises(SimulationError, match="more than 100 instructions"):
        launch(compiled("matmul ieee", 80), 1, BARRIERS["matmul tf32"]()[1], limit=100)


def test_arguments_are_checked(compiled):
    kernel, arrays = compiled("add", 80), [normal(8), normal(8), normal(8)]
    with pytest.raises(ValueError, match="args must be 4 for add, got 3"):
        launch(kernel, 1, arrays)
    with pytest.raises(ValueError, match=r"must fit add_param_3 of 4 bytes, got 4294967296"):
        launch(kernel, 1, [*arrays, 2**32])
    with pytest.raises(ValueError, match=r"must fit add_param_3 of 4 bytes, got np.int64\(8\)"):
        launch(kernel, 1, [*arrays, np.int64(8)])
    with pytest.raises(ValueError, match=r"block must be \(128, 1, 1\)"):
        launch(kernel, 1, [*arrays, 8], block=64)
    with pytest.raises(ValueError, match="block must be given"):
        launch(compiled("dot", 80), 1, [normal(8), Pointers([normal(8)]), np.zeros(1), 8])
