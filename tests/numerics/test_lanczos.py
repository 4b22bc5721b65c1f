"""Block Lanczos against dense eigenvalues, planted spectra and the identities of a Krylov basis."""

import numpy as np
import pytest
import torch
from numerics.matrices import outlier_spectrum, planted

from fastscape.numerics.gram_schmidt import orthonormalise, random_rows
from fastscape.numerics.krylov import BlockLanczos
from fastscape.numerics.lanczos import extreme_pairs
from fastscape.numerics.spectra import Gap

F64, F32 = torch.float64, torch.float32
ONE_HUNDRED = np.concatenate([np.linspace(-1, 1, 299), [100.0]])


def started(matrix, block, *, seed=0, dtype=None, **settings):
    """A run over a dense matrix from random normals."""
    dtype = dtype or matrix.dtype
    start = random_rows(len(matrix), range(block), seed, dtype=dtype).T
    return BlockLanczos(lambda vectors: matrix @ vectors.to(matrix.dtype), start, **settings)


def grown(run, dimension):
    """The same run with at least so many basis vectors."""
    while run.dimension < dimension and run.step():
        pass
    return run


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize(("dtype", "vectors", "accuracy"), [(F64, F64, 1e-13), (F32, F32, 1e-6), (torch.bfloat16, F32, 1e-3)])
def test_one_large_eigenvalue_has_one_copy_at_any_length(block, dtype, vectors, accuracy):
    run = started(planted(ONE_HUNDRED, dtype=dtype), block, dtype=vectors, capacity=300)
    for m in (20, 60, 100, 200):
        values = grown(run, m).pairs(3).values
        assert values[0] == pytest.approx(100, rel=accuracy)
        assert values[1] < 1 + 100 * accuracy


def test_more_steps_never_make_the_answer_worse():
    run = started(planted(outlier_spectrum(200)), 2)
    exact = outlier_spectrum(200)[::-1][:5]
    before = np.full(5, -np.inf)
    for m in range(10, 200, 10):
        values = grown(run, m).pairs(5).values
        assert np.all(values >= before - 1e-12)
        assert np.all(values <= exact + 1e-12)
        before = values
    np.testing.assert_allclose(before, exact, rtol=1e-13)


def test_restarts_never_make_the_answer_worse():
    spectrum = np.sort(np.random.default_rng(3).standard_normal(400) ** 3)
    run = started(planted(spectrum), 3, wanted=4, capacity=30)
    top, bottom = -np.inf, np.inf
    for _ in range(120):
        run.step()
        assert run.dimension + run.next_products <= 30
        assert run.pairs(1).values[0] >= top - 1e-12
        assert run.pairs(1, "smallest").values[0] <= bottom + 1e-12
        top, bottom = run.pairs(1).values[0], run.pairs(1, "smallest").values[0]
    assert run.restarts > 10
    np.testing.assert_allclose(run.pairs(4).values, spectrum[::-1][:4], rtol=1e-12)
    np.testing.assert_allclose(run.pairs(4, "smallest").values, spectrum[:4], rtol=1e-12)
    assert run.krylov.orthogonality_loss() < 1e-12


@pytest.mark.parametrize(("dtype", "accuracy"), [(F64, 1e-13), (F32, 1e-5)])
@pytest.mark.parametrize("capacity", [None, 36])
def test_lanczos_relation_holds(dtype, accuracy, capacity):
    matrix = planted(outlier_spectrum(150), dtype=dtype)
    run = grown(started(matrix, 3, wanted=5, capacity=capacity), 30)
    for _ in range(5):
        run.step()
    basis = run.krylov.basis.double()
    difference = basis @ matrix.double() - torch.from_numpy(run.krylov.projected) @ basis
    coupling = difference @ run.krylov.block.double().T
    left = difference - coupling @ run.krylov.block.double()
    assert float(left.abs().max()) < 40 * accuracy
    assert torch.linalg.norm(basis @ basis.T - torch.eye(run.dimension)) == pytest.approx(
        run.krylov.orthogonality_loss(), abs=accuracy
    )
    assert run.krylov.orthogonality_loss() < accuracy
    assert run.krylov.orthogonality_loss(probes=8) < accuracy


@pytest.mark.parametrize("dtype", [F64, F32])
def test_residuals_are_those_of_the_products(dtype):
    matrix = planted(outlier_spectrum(200), dtype=dtype)
    run = grown(started(matrix, 2), 24)
    pairs = run.pairs(8, vectors=True)
    vectors = pairs.vectors.double()
    true = torch.linalg.vector_norm(matrix.double() @ vectors - vectors * torch.from_numpy(pairs.values.copy()), dim=0)
    np.testing.assert_allclose(true.numpy(), pairs.residuals, rtol=1e-3, atol=40 * 30 * torch.finfo(dtype).eps)
    exact = torch.linalg.eigvalsh(matrix.double()).numpy()
    for value, residual in zip(pairs.values, pairs.residuals, strict=True):
        assert np.abs(exact - value).min() <= residual


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("copies", [2, 3])
def test_copies_of_an_eigenvalue_are_never_a_resolved_gap(dtype, copies, seed):
    values = torch.cat([torch.ones(copies, dtype=F64), torch.linspace(-1, 0.875, 64, dtype=F64)])[:, None]
    tolerance = 400 * torch.finfo(dtype).eps
    found = extreme_pairs(lambda v: values.to(dtype) * v, len(values), 2, block=3, tolerance=tolerance, dtype=dtype, seed=seed)
    assert found.largest.converged.all()
    assert not found.gap.resolved


@pytest.mark.parametrize("dtype", [F64, F32])
def test_residuals_are_bounds_up_to_the_rounding_of_any_processor(dtype):
    """Powers of two and their sums: the products of a diagonal matrix are exact, and so are its eigenvalues."""
    exact = np.concatenate([[-4.0, 5.0, 5.0, 6.0], np.arange(-64, 64) / 64])
    matrix, unit = torch.from_numpy(exact)[:, None], torch.finfo(dtype).eps
    for seed in range(3):
        run = BlockLanczos(lambda v: (matrix * v.double()).to(dtype), random_rows(132, range(2), seed, dtype=dtype).T)
        while run.step():
            pairs = run.pairs(4, "both")
            off = np.abs(pairs.values[:, None] - exact).min(axis=1)
            assert np.all(off <= pairs.residuals)
            assert pairs.residuals.min() >= 4 * unit * run.norm
        assert run.stop_reason == "complete"
        assert pairs.residuals.max() < 1e3 * unit * run.norm


@pytest.mark.parametrize("products", [torch.bfloat16, F32])
@pytest.mark.parametrize("dtype", [F64, F32])
def test_residuals_are_bounds_for_products_in_narrower_arithmetic(dtype, products):
    exact = np.concatenate([[5.0, 5.0, 5.0, 4.0, 4.0], np.linspace(-1, 1, 123)])
    matrix, within, resolved = torch.from_numpy(exact)[:, None], 0, 0
    for seed in range(8):
        start = random_rows(128, range(3), seed, dtype=dtype).T
        run = grown(BlockLanczos(lambda v: matrix.to(products) * v.to(products), start), 45)
        pairs = run.pairs(5)
        within += int((np.abs(pairs.values[:, None] - exact).min(axis=1) <= pairs.residuals).sum())
        resolved += Gap.between(pairs.values[:2], pairs.residuals[:2]).resolved
    assert within >= 36, "95 % of 40 are 38"
    assert not resolved


def test_multiplicity_up_to_the_block_is_found():
    spectrum = np.concatenate([[5.0, 5.0, 5.0, 4.0, 4.0], np.linspace(-1, 1, 95)])
    found = extreme_pairs(lambda v: planted(spectrum) @ v, 100, 5, block=3, tolerance=1e-9)
    np.testing.assert_allclose(found.largest.values, [5, 5, 5, 4, 4], rtol=1e-12)
    assert not found.gap.resolved


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize("block", [1, 2, 4])
@pytest.mark.parametrize("which", ["both", "largest"])
@pytest.mark.parametrize("copies", [6, 30])
def test_copies_beyond_the_block_are_found_where_few_values_are_distinct(dtype, block, which, copies):
    matrix = torch.kron(torch.eye(copies, dtype=F64), planted([5.0, 3.0, 1.0, 0.0])).to(dtype)
    found = extreme_pairs(lambda v: matrix @ v, len(matrix), 5, block=block, which=which, dtype=dtype)
    np.testing.assert_allclose(found.largest.values, np.full(5, 5.0), rtol=1e-5)
    assert found.largest.converged.all()
    np.testing.assert_allclose(found.smallest.values, np.zeros(len(found.smallest.values)), atol=1e-5)


@pytest.mark.parametrize("dtype", [F64, F32])
@pytest.mark.parametrize(("block", "k"), [(2, 5), (4, 5), (2, 12), (4, 12)])
def test_copies_beyond_the_block_are_found_without_invariance(dtype, block, k):
    values = np.random.default_rng(0).exponential(size=60)
    matrix = torch.kron(planted(values), torch.eye(8, dtype=F64)).to(dtype)
    found = extreme_pairs(lambda v: matrix @ v, 480, k, block=block, which="largest", dtype=dtype, max_products=2000)
    assert found.stop_reason == "converged"
    np.testing.assert_allclose(found.largest.values, np.sort(np.repeat(values, 8))[::-1][:k], rtol=1e-4)


def test_values_after_a_run_of_copies_have_not_converged_while_more_may_be_missing():
    matrix = torch.kron(planted(np.random.default_rng(0).exponential(size=60)), torch.eye(8, dtype=F64))
    run = grown(started(matrix, 3, wanted=5), 60)
    pairs = run.pairs(5, tolerance=1e-3)
    assert pairs.residuals.max() < 1e-3 * run.norm
    assert pairs.converged.tolist() == [True, True, True, False, False]
    assert not run.settle(5)
    assert run.next_products == 5


@pytest.mark.parametrize("block", [2, 4])
def test_distinct_values_cost_no_further_products(block):
    matrix = planted(outlier_spectrum(200))
    run = started(matrix, block, wanted=5)
    while not run.settle(5, "both"):
        run.step()
        assert run.next_products == block
    assert run.products == extreme_pairs(lambda v: matrix @ v, 200, 5, block=block).products


@pytest.mark.parametrize("scale", [1e-300, 1e-160, 1e160, 1e290])
def test_scale_of_the_matrix_does_not_matter(scale):
    matrix = planted(outlier_spectrum(200))
    plain, scaled = (extreme_pairs(lambda v, f=factor: (matrix @ v) * f, 200, 4, max_products=400) for factor in (1.0, scale))
    assert scaled.stop_reason == plain.stop_reason == "converged"
    assert scaled.products == plain.products
    assert scaled.asymmetry == pytest.approx(0, abs=1e-12)
    np.testing.assert_allclose(scaled.largest.values / scale, plain.largest.values, rtol=1e-12)
    np.testing.assert_allclose(scaled.smallest.residuals / scale, plain.smallest.residuals, rtol=1e-3, atol=1e-11)


def test_invariant_subspace_ends_with_exact_values():
    matrix = planted(np.concatenate([[7.0, 3.0, -2.0], np.zeros(97)]))
    run = started(matrix, 2)
    while run.step():
        pass
    assert run.stop_reason == "invariant"
    assert run.dimension == 5
    np.testing.assert_allclose(run.pairs(5).values, [7, 3, 0, 0, -2], atol=1e-13)
    assert run.pairs(5).residuals.max() < 1e-13


@pytest.mark.parametrize("factor", [0.0, 2.0])
def test_multiples_of_the_identity_give_as_many_pairs_as_wanted(factor):
    found = extreme_pairs(lambda v: factor * v, 40, 5, block=2, which="largest", tolerance=1e-10)
    np.testing.assert_allclose(found.largest.values, np.full(5, factor), atol=1e-14)
    assert found.largest.converged.all()
    assert not found.gap.resolved


def test_dependent_starting_vectors_are_dropped():
    column = random_rows(60, range(1), 0).T
    run = BlockLanczos(lambda v: planted(np.arange(60.0)) @ v, torch.cat([column, 2 * column, -column], dim=1))
    assert run.next_products == 1
    assert grown(run, 60).stop_reason == "complete"
    np.testing.assert_allclose(run.pairs(60).values, np.arange(60.0)[::-1], atol=1e-11)


def test_whole_space_gives_every_eigenvalue():
    spectrum = np.sort(np.random.default_rng(0).standard_normal(90))
    found = extreme_pairs(lambda v: planted(spectrum) @ v, 90, 90, block=7, tolerance=0.0)
    assert found.stop_reason == "complete"
    np.testing.assert_allclose(found.largest.values, spectrum[::-1], atol=1e-13)
    np.testing.assert_allclose(found.smallest.values, spectrum, atol=1e-13)


@pytest.mark.parametrize("rows", [17, 30, None])
@pytest.mark.parametrize("which", ["both", "largest", "smallest", "magnitude"])
def test_ends_agree_with_dense_eigenvalues_under_a_memory_cap(which, rows):
    spectrum = np.sort(np.random.default_rng(5).standard_normal(200) ** 3)
    found = extreme_pairs(
        lambda v: planted(spectrum) @ v,
        200,
        4,
        block=3,
        which=which,
        tolerance=1e-7,
        memory=None if rows is None else rows * 200 * 8,
        max_products=3000,
        keep_vectors=True,
    )
    assert found.stop_reason == "converged"
    by_size = spectrum[np.argsort(-np.abs(spectrum))]
    first = by_size[:4] if which == "magnitude" else spectrum[::-1][:4]
    if which != "smallest":
        np.testing.assert_allclose(found.largest.values, first, rtol=1e-9)
    if which in ("both", "smallest"):
        np.testing.assert_allclose(found.smallest.values, spectrum[:4], rtol=1e-9)
    if which in ("both", "magnitude"):
        assert found.spectral_norm == pytest.approx(abs(by_size[0]), rel=1e-9)
    pairs = found.smallest if which == "smallest" else found.largest
    image = planted(spectrum) @ pairs.vectors
    np.testing.assert_allclose(image.numpy(), pairs.vectors.numpy() * pairs.values, atol=1e-5)


def test_scipy_finds_the_same_eigenvalues():
    from scipy.sparse.linalg import eigsh

    matrix = planted(outlier_spectrum(200))
    values = eigsh(matrix.numpy(), k=5, which="LA", return_eigenvectors=False)[::-1]
    np.testing.assert_allclose(extreme_pairs(lambda v: matrix @ v, 200, 5, tolerance=1e-8).largest.values, values, rtol=1e-10)


def test_gap_is_unresolved_while_residuals_exceed_it():
    matrix = planted(np.concatenate([[10.0, 9.99], np.linspace(-1, 1, 198)]))
    early, late = (grown(started(matrix, 1), m).pairs(2) for m in (6, 40))
    assert not Gap.between(early.values, early.residuals).resolved
    gap = Gap.between(late.values, late.residuals)
    assert gap.resolved
    assert gap.value == pytest.approx(0.01, rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_in_a_product_ends_with_what_is_known(bad):
    matrix, calls = planted(outlier_spectrum(100)), []

    def product(vectors):
        calls.append(vectors.shape[1])
        image = matrix @ vectors
        if len(calls) == 8:
            image[3, 1] = bad
        return image

    found = extreme_pairs(product, 100, 3, block=2, tolerance=1e-12)
    assert (found.stop_reason, found.nan_products, found.products, found.dimension) == ("nan", 1, 16, 14)
    assert found.largest.values[0] == pytest.approx(40, rel=1e-6)


def test_first_product_may_be_nan():
    found = extreme_pairs(lambda v: v * float("nan"), 100, 3, block=2)
    assert (found.stop_reason, found.nan_products, len(found.largest.values)) == ("nan", 2, 0)


def test_a_known_product_of_the_start_is_not_made_again():
    matrix = planted(outlier_spectrum(80))
    start = random_rows(80, range(3), 2, distribution="rademacher").T
    given = BlockLanczos(lambda v: matrix @ v, start, product=matrix @ start)
    fresh = BlockLanczos(lambda v: matrix @ v, start)
    for run in (given, fresh):
        grown(run, 15)
    assert (given.products, fresh.products) == (12, 15)
    np.testing.assert_allclose(given.pairs(3).values, fresh.pairs(3).values, rtol=1e-12)


def test_stop_and_product_limit_end_a_run_between_products():
    matrix = planted(outlier_spectrum(100))
    asked = []
    found = extreme_pairs(lambda v: matrix @ v, 100, 3, block=2, tolerance=0.0, stop=lambda: asked.append(1) or len(asked) > 3)
    assert (found.stop_reason, found.products) == ("stopped", 6)
    found = extreme_pairs(lambda v: matrix @ v, 100, 3, block=2, tolerance=0.0, max_products=11)
    assert (found.stop_reason, found.products) == ("products", 10)
    assert not found.largest.converged.any() or found.largest.residuals.min() == 0


def test_asymmetric_operators_show():
    matrix = planted(outlier_spectrum(100))
    assert grown(started(matrix, 2), 20).krylov.asymmetry < 1e-14
    skew = torch.from_numpy(np.random.default_rng(0).standard_normal((100, 100)))
    assert grown(started(matrix + 1e-3 * (skew - skew.T), 2), 20).krylov.asymmetry > 1e-5


def test_quadrature_is_exact_on_moments():
    spectrum = np.sort(np.random.default_rng(7).uniform(-1, 1, 120))
    matrix = planted(spectrum)
    start = random_rows(120, range(3), 1, distribution="rademacher").T
    run = BlockLanczos(lambda v: matrix @ v, start)
    for _ in range(4):
        run.step()
    rule = run.krylov.quadrature()
    np.testing.assert_allclose(rule.weights.sum(axis=1), 1, rtol=1e-13)
    power = start.clone()
    for degree in range(8):  # 2 s - 1 = 7
        moments = (start * power).sum(0).numpy() / 120
        np.testing.assert_allclose(rule.weights @ rule.nodes**degree, moments, atol=1e-13)
        power = matrix @ power
    moments = (start * power).sum(0).numpy() / 120
    assert np.abs(rule.weights @ rule.nodes**8 - moments).max() > 1e-6


def test_quadrature_survives_restarts():
    run = started(planted(outlier_spectrum(150)), 2, wanted=3, capacity=20)
    grown(run, 16)
    before = run.krylov.quadrature()
    while run.restarts < 2:
        run.step()
    rule = run.krylov.quadrature()
    assert len(rule.nodes) >= len(before.nodes)
    np.testing.assert_allclose(rule.weights.sum(axis=1), 1, rtol=1e-12)


def test_complement_has_no_part_in_the_basis():
    run = grown(started(planted(outlier_spectrum(150)), 2), 20)
    probes = random_rows(150, range(4), 9, distribution="rademacher").T
    left = run.krylov.complement(probes)
    assert float((run.krylov.basis @ left).abs().max()) < 1e-13
    np.testing.assert_allclose((probes - left).numpy(), (run.krylov.basis.T @ (run.krylov.basis @ probes)).numpy(), atol=1e-12)


def test_basis_on_another_device_gives_the_same(monkeypatch):
    matrix = planted(outlier_spectrum(90))
    start = random_rows(90, range(2), 0).T
    runs = [grown(BlockLanczos(lambda v: matrix @ v, start, basis_device=device), 20) for device in (None, "cpu")]
    np.testing.assert_array_equal(runs[0].pairs(4).values, runs[1].pairs(4).values)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"k": 12}, "k must be at most D = 10, got 12"),
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"k": 2, "which": "top"}, "which must be one of both, largest, smallest, magnitude, got 'top'"),
        ({"k": 2, "tolerance": -1.0}, r"tolerance must be in \[0, 1\)"),
        ({"k": 2, "block": 0}, "block must be at least 1"),
        ({"k": 1, "block": 1, "memory": 3 * 80}, "memory must be at least 400 bytes for a basis of 5 vectors, got 240"),
    ],
)
def test_bad_requests_name_the_argument(settings, words):
    with pytest.raises(ValueError, match=words):
        extreme_pairs(lambda v: v, 10, **settings)


def test_bad_starts_are_refused():
    for start, words in (
        (torch.zeros(5, 2), "start must not be zero"),
        (torch.full((5, 2), float("nan")), "start must be finite"),
        (torch.ones(5), r"start must be float32 or float64 \[D, p\]"),
        (torch.ones(5, 2, dtype=torch.bfloat16), "got torch.bfloat16"),
    ):
        with pytest.raises(ValueError, match=words):
            BlockLanczos(lambda v: v, start)


@pytest.mark.parametrize("dtype", [F64, F32])
def test_orthonormalise_rebuilds_the_block(dtype):
    basis = orthonormalise(random_rows(300, range(20), 0, dtype=dtype), torch.empty(0, 300, dtype=dtype)).rows
    inside = random_rows(20, range(2), 1, dtype=dtype) @ basis
    block = torch.cat([inside, 1e-4 * random_rows(300, range(2), 2, dtype=dtype), inside[:1]])
    split = orthonormalise(block, basis)
    rebuilt = torch.from_numpy(split.against.T) @ basis.double() + torch.from_numpy(split.within.T) @ split.rows.double()
    assert len(split.rows) == 2
    assert float((rebuilt - block.double()).abs().max()) < 30 * torch.finfo(dtype).eps
    both = torch.cat([basis, split.rows]).double()
    assert float((both @ both.T - torch.eye(22)).abs().max()) < 8 * torch.finfo(dtype).eps
