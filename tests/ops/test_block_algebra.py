"""Gram and update passes of block Gram-Schmidt: every implementation against exact sums, and the theorems they serve."""

import numpy as np
import pytest
import torch

from fastscape.ops import _native
from fastscape.ops.block_gram import block_gram
from fastscape.ops.block_gram.reference import block_gram as gram_reference
from fastscape.ops.block_gram.triton import block_gram as gram_triton
from fastscape.ops.block_update import block_update
from fastscape.ops.block_update.reference import block_update as update_reference
from fastscape.ops.block_update.triton import block_update as update_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GRAMS = {"reference": gram_reference, "op": block_gram, "triton": gram_triton}
UPDATES = {"reference": update_reference, "op": block_update, "triton": update_triton}
BOTH = pytest.mark.parametrize("name", GRAMS)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
LENGTHS = [1, 7, 8, 1023, 1032, 16384, 33001]  # about a vector, a slice, a block; two blocks and a rest
SHAPES = [(1, 1), (4, 1), (1, 5), (5, 3), (9, 8), (6, 11)]  # tiles of rows and of columns, with rests
EPS64 = 2.0**-53
native = pytest.mark.skipif(not _native.library.available, reason=_native.library.reason)


def blocks(k, m, length, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(rows, length, generator=generator, dtype=torch.float64) for rows in (k, m))
    coefficients = torch.randn(k, m, generator=generator, dtype=torch.float64)
    return left.to(DEVICE, dtype), right.to(DEVICE, dtype), coefficients.to(DEVICE)


def wide(tensor):
    """With 64 bits of mantissa."""
    return tensor.cpu().double().numpy().astype(np.longdouble)


def gram_error(found, left, right):
    """Largest error of an entry, in units of the sum of its products' magnitudes."""
    left, right = wide(left), wide(right)
    return float(np.max(np.abs(wide(found) - left @ right.T) / (np.abs(left) @ np.abs(right).T)))


@pytest.fixture
def restored_isa():
    if not _native.library.available:
        pytest.skip(_native.library.reason)
    isa = _native.library.isa
    yield
    _native.library.set_isa(isa)


@pytest.fixture
def restored_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@BOTH
@DTYPES
@pytest.mark.parametrize(("k", "m", "length"), [(5, 3, n) for n in LENGTHS] + [(k, m, 1032) for k, m in SHAPES])
def test_gram_is_as_accurate_as_a_float64_product(name, dtype, k, m, length):
    left, right, _ = blocks(k, m, length, dtype)
    found = GRAMS[name](left, right)
    assert (found.dtype, tuple(found.shape)) == (torch.float64, (k, m))
    assert gram_error(found, left, right) <= max(2 * gram_error(gram_reference(left, right), left, right), 4 * EPS64)


@BOTH
@DTYPES
@pytest.mark.parametrize(("k", "m", "length"), [(5, 3, n) for n in LENGTHS] + [(k, m, 1032) for k, m in SHAPES])
def test_update_rounds_once_and_measures_what_it_rounded(name, dtype, k, m, length):
    left, right, coefficients = blocks(k, m, length, dtype)
    kept = [tensor.clone() for tensor in (left, right, coefficients)]
    out, squares = UPDATES[name](right, left, coefficients)
    assert (out.dtype, tuple(out.shape), squares.dtype, tuple(squares.shape)) == (dtype, (m, length), torch.float64, (m,))
    exact = wide(right) - wide(coefficients).T @ wide(left)
    magnitude = np.abs(wide(right)) + np.abs(wide(coefficients)).T @ np.abs(wide(left))
    rounding = 2.0**-24 * np.abs(exact) if dtype == torch.float32 else 0.0  # half a unit in the last place
    assert (np.abs(wide(out) - exact) <= rounding + (k + 1) * EPS64 * magnitude).all()
    norms = (wide(out) ** 2).sum(1)
    np.testing.assert_allclose(wide(squares), norms, rtol=1e-14, atol=0)
    assert all(torch.equal(a, b) for a, b in zip((left, right, coefficients), kept, strict=True))


@BOTH
def test_products_of_integers_are_exact(name):
    k, m, length = 5, 4, 20_000
    left = (torch.arange(k * length).reshape(k, length) % 2003 - 1000).to(DEVICE, torch.float32)
    right = (torch.arange(m * length).reshape(m, length) % 1999 - 900).to(DEVICE, torch.float32)
    whole = left.cpu().long() @ right.cpu().long().T  # below 2^53
    assert torch.equal(GRAMS[name](left, right).cpu(), whole.double())
    coefficients = (torch.arange(k * m).reshape(k, m) - 7).double().to(DEVICE)
    out, squares = UPDATES[name](right, left, coefficients)
    expected = right.cpu().long() - coefficients.cpu().long().T @ left.cpu().long()  # below 2^24
    assert torch.equal(out.cpu(), expected.float())
    assert torch.equal(squares.cpu(), expected.square().sum(1).double())


@BOTH
def test_update_is_adjoint_to_gram(name):
    left, right, coefficients = blocks(6, 3, 5000, torch.float64)
    probe = blocks(6, 3, 5000, torch.float64, seed=1)[1]
    updated = UPDATES[name](right, left, coefficients)[0]
    through_update = GRAMS[name](updated, probe).diagonal().sum()
    through_gram = GRAMS[name](right, probe).diagonal().sum() - (coefficients * GRAMS[name](left, probe)).sum()
    torch.testing.assert_close(through_update, through_gram, rtol=0, atol=1e-10)  # of terms near 1e2 sqrt(5000)
    torch.testing.assert_close(GRAMS[name](probe, left), GRAMS[name](left, probe).T, rtol=0, atol=1e-11)


@BOTH
def test_two_passes_orthogonalise_what_one_does_not(name):
    generator = torch.Generator().manual_seed(3)
    basis = torch.linalg.qr(torch.randn(6000, 12, generator=generator, dtype=torch.float64))[0].T.contiguous().float()
    inside = torch.randn(3, 12, generator=generator) @ basis
    block = (inside + 1e-7 * torch.randn(3, 6000, generator=generator)).to(DEVICE)
    basis = basis.to(DEVICE)
    lost = []
    for _ in range(2):
        block, squares = UPDATES[name](block, basis, GRAMS[name](basis, block))
        lost.append(float((GRAMS[name](basis, block).abs() / squares.sqrt()).max()))
    assert lost[0] > 1e-4  # cancellation leaves rounding errors in the span
    assert lost[1] < 1e-7
    gram = GRAMS[name](block, block)
    torch.testing.assert_close(gram.diagonal(), squares, rtol=1e-13, atol=0)


@BOTH
@DTYPES
def test_strided_rows_give_the_bits_of_contiguous_ones(name, dtype):
    length = 4099
    storage = blocks(7, 1, length + 24, dtype)[0]
    left, right = storage[:5, 3 : 3 + length], storage[5:, 8 : 8 + length]
    coefficients = blocks(5, 2, 1, dtype)[2]
    layouts = {
        "rows of a wider matrix": (left, right),
        "columns": (left.T.contiguous().T, right.T.contiguous().T),
        "every second element": (left.repeat_interleave(2, 1)[:, ::2], right.repeat_interleave(2, 1)[:, ::2]),
        "every second row": (left.repeat_interleave(2, 0)[::2], right.repeat_interleave(2, 0)[::2]),
    }
    dense = left.contiguous(), right.contiguous()
    expected = GRAMS[name](*dense), *UPDATES[name](dense[1], dense[0], coefficients)
    for first, second in layouts.values():
        found = GRAMS[name](first, second), *UPDATES[name](second, first, coefficients.T.contiguous().T)
        for a, b in zip(found, expected, strict=True):
            if name == "reference":  # its products are BLAS's, in an order that may depend on the layout
                torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-10)
            else:
                assert torch.equal(a, b)
    repeated, square = left[:1].expand(3, length), left[0].double() @ left[0].double()
    torch.testing.assert_close(GRAMS[name](repeated, repeated), square.expand(3, 3), rtol=1e-13, atol=0)


@native
def test_rows_with_adjacent_elements_are_not_copied(monkeypatch):
    left = torch.randn(6, 600)[::2, 44:556]
    tasks = []
    monkeypatch.setattr(type(_native.library), "call", lambda self, entry, task: tasks.append((entry, task)))
    block_gram(left, left[:2])
    block_update(left[:2], left, torch.zeros(3, 2, dtype=torch.float64))
    assert [entry for entry, _ in tasks] == ["gram", "update"]
    for _, task in tasks:
        assert (task.left, task.right, task.left_stride, task.right_stride) == (left.data_ptr(), left.data_ptr(), 1200, 1200)


@BOTH
@pytest.mark.parametrize(("k", "m", "length"), [(0, 2, 9), (3, 0, 9), (3, 2, 0), (0, 0, 0)])
def test_empty_blocks(name, k, m, length):
    left, right, coefficients = blocks(k, m, length, torch.float32)
    assert torch.equal(GRAMS[name](left, right), torch.zeros(k, m, dtype=torch.float64, device=DEVICE))
    out, squares = UPDATES[name](right, left, coefficients)
    assert torch.equal(out, right)
    torch.testing.assert_close(squares, right.double().square().sum(1))


@BOTH
@np.errstate(invalid="ignore", over="ignore")  # NumPy interprets the kernels here
def test_what_is_not_finite_stays_in_its_row(name):
    length = 13  # not a whole vector: the padding must not turn infinities into NaN
    left, right, coefficients = blocks(5, 3, length, torch.float32)
    left[2, 11], right[1, 12] = torch.nan, torch.inf
    gram = GRAMS[name](left, right)
    assert gram[2].isnan().all()
    others = torch.tensor([0, 1, 3, 4], device=DEVICE)
    assert gram[others][:, 1].isinf().all()
    assert gram[others][:, [0, 2]].isfinite().all()
    left[2, 11] = 1.0
    out, squares = UPDATES[name](right, left, coefficients)
    assert out[1, 12] == torch.inf
    assert squares[1] == torch.inf
    assert out.isfinite().sum() == out.numel() - 1
    assert squares[[0, 2]].isfinite().all()
    coefficients[4, 0] = torch.inf
    out, squares = UPDATES[name](right, left, coefficients)
    assert out[0].isinf().all()
    assert squares[0] == torch.inf
    assert squares[2].isfinite()


@native
@DTYPES
def test_bits_do_not_depend_on_the_number_of_threads(restored_threads, dtype):
    left, right, coefficients = blocks(6, 5, 200_003, dtype)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append((block_gram(left, right), *block_update(right, left, coefficients)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@DTYPES
def test_instruction_sets_agree(restored_isa, dtype):
    left, right, coefficients = blocks(9, 7, 20_003, dtype)
    results = {}
    for isa in _native.ISAS:
        if _native.library.set_isa(isa) == isa:
            results[isa] = block_gram(left, right), *block_update(right, left, coefficients)
    baseline = results.pop("baseline")
    for gram, out, squares in results.values():
        if dtype == torch.float32:  # exact products: fused or not is the same
            assert torch.equal(gram, baseline[0])
        scale = (left.double().norm(dim=1)[:, None] * right.double().norm(dim=1)).max()
        assert (gram - baseline[0]).abs().max() <= 16 * EPS64 * scale
        torch.testing.assert_close(out, baseline[1], rtol=torch.finfo(dtype).eps, atol=1e-14)  # at most a rounding apart
        torch.testing.assert_close(squares, baseline[2], rtol=1e-9 if dtype == torch.float32 else 1e-14, atol=0)


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (torch.zeros(3), torch.zeros(2, 3), r"left must be float32 or float64 rows \[n, D\], got torch.float32 of shape \(3,\)"),
        (torch.zeros(2, 3), torch.zeros(1, 2, 3), r"right must be float32 or float64 rows .* got .* shape \(1, 2, 3\)"),
        (torch.zeros(2, 3).half(), torch.zeros(2, 3), "left must be float32 or float64 rows .* got torch.float16"),
        (torch.zeros(2, 3), torch.zeros(2, 4), "right must have rows of left's length 3, got 4"),
        (
            torch.zeros(2, 3),
            torch.zeros(2, 3).double(),
            "right must be torch.float32 on cpu as left is, got torch.float64",
        ),
        (torch.zeros(2, 3), torch.zeros(2, 3, device="meta"), "right must be torch.float32 on cpu as left is, .* on meta"),
    ],
)
def test_unfit_blocks_are_named(left, right, message):
    with pytest.raises(ValueError, match=message):
        block_gram(left, right)
    with pytest.raises(ValueError, match=message):
        block_update(right, left, torch.zeros(2, 2, dtype=torch.float64))


@pytest.mark.parametrize("coefficients", [torch.zeros(2, 4), torch.zeros(4, 2).double(), torch.zeros(8).double()])
def test_unfit_coefficients_are_named(coefficients):
    with pytest.raises(ValueError, match=r"coefficients must be float64 of shape \(2, 4\), one row per row of left, got"):
        block_update(torch.zeros(4, 3), torch.zeros(2, 3), coefficients)
