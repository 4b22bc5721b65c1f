"""The eigenvalue of largest size, and what recycling saves."""

import numpy as np
import pytest
import torch

from fastscape.probes.tracking.davidson import RitzPairs, leading_pair


def symmetric(values, seed=0):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]
    return torch.from_numpy(turn @ np.diag(values) @ turn.T)


def leading(matrix, **settings):
    return leading_pair(lambda block: matrix @ block, len(matrix), dtype=torch.float64, **settings)


SPECTRUM = np.r_[-9.0, 7.0, 5.0, np.linspace(-1, 1, 117)]


def test_the_eigenvalue_of_largest_size_is_found_with_its_sign():
    found = leading(symmetric(SPECTRUM), tolerance=1e-6)
    assert found.converged
    assert found.value == pytest.approx(-9.0, abs=1e-9)


def test_the_residual_is_that_of_the_vector():
    matrix = symmetric(SPECTRUM)
    found = leading(matrix, tolerance=1e-2)
    vector = found.pairs.vectors[0]
    assert float(torch.linalg.vector_norm(vector)) == pytest.approx(1)
    assert float((matrix @ vector - found.value * vector).norm()) == pytest.approx(found.residual, rel=1e-9)
    assert found.residual <= 1e-2 * abs(found.value)
    assert abs(found.value + 9.0) <= found.residual


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-7)])
def test_the_residual_is_a_bound_up_to_the_rounding_of_any_processor(dtype, tolerance):
    values = torch.cat([torch.tensor([-5.0]), torch.arange(-32, 33) / 64]).double()[:, None]
    for seed in range(6):
        found = leading_pair(lambda v: (values * v.double()).to(dtype), len(values), tolerance=tolerance, dtype=dtype, seed=seed)
        assert abs(found.value + 5.0) <= found.residual
        assert found.residual >= 4 * 5.0 * torch.finfo(dtype).eps
        assert not found.converged


def test_ritz_pairs_of_a_matrix_that_was_nearly_this_one_halve_the_products():
    rng = np.random.default_rng(1)
    bulk = np.r_[10.0, 8.0, 7.0, 6.0, rng.standard_normal(396)]
    matrix, pairs, cold, warm = symmetric(bulk), None, 0, 0
    for draw in range(6):
        noise = torch.from_numpy(rng.standard_normal((400, 400)))
        matrix = matrix + 0.002 * (noise + noise.T)
        found = leading(matrix, recycled=pairs, tolerance=1e-3, draw=draw)
        if pairs is not None:
            warm += found.products
            cold += leading(matrix, tolerance=1e-3, draw=draw).products
        assert abs(found.value - float(torch.linalg.eigvalsh(matrix)[-1])) <= found.residual
        pairs = found.pairs
    assert 2 * warm <= cold


def rising(value, index):
    values = torch.linspace(0, 0.5, 60, dtype=torch.float64)
    values[0], values[index] = 2.0, value
    return torch.diag(values)


def test_an_eigenvalue_that_overtakes_is_found_although_the_old_vector_is_an_eigenvector_still():
    before = leading(rising(1.5, 30), tolerance=1e-3)
    assert before.value == pytest.approx(2.0, rel=1e-3)
    blind = torch.eye(60, dtype=torch.float64)[0]  # a probe that tells nothing new: the second Ritz vector must
    found = leading(rising(3.0, 30), recycled=before.pairs, probe=blind, tolerance=1e-3)
    assert found.value == pytest.approx(3.0, rel=1e-3)


def test_an_eigenvalue_that_no_pair_tells_of_is_found_by_the_gradient():
    alone = RitzPairs(torch.eye(60, dtype=torch.float64)[:1], np.array([2.0]))
    gradient = 7.0 * torch.eye(60, dtype=torch.float64)[41] + torch.ones(60, dtype=torch.float64)
    found = leading(rising(3.0, 41), recycled=alone, probe=gradient, tolerance=1e-2)
    assert found.value == pytest.approx(3.0, rel=1e-2)


def test_a_basis_that_is_shortened_goes_on_converging():
    values = np.linspace(0.0, 1.0, 500)
    found = leading(symmetric(values), tolerance=1e-4, max_products=450)
    assert found.products > 64
    assert found.value == pytest.approx(1.0, abs=1e-4)


def test_at_the_limit_of_products_what_is_known_is_returned():
    found = leading(symmetric(SPECTRUM), tolerance=1e-8, max_products=3)
    assert (found.products, found.converged) == (3, False)
    assert found.residual > 1e-8 * abs(found.value)


def test_the_zero_matrix_and_one_number_have_an_answer():
    assert leading(torch.zeros(5, 5, dtype=torch.float64)).value == 0
    assert leading(torch.tensor([[-3.0]], dtype=torch.float64)).value == -3


def test_products_that_are_not_finite_give_nan_and_keep_the_pairs():
    pairs = RitzPairs(torch.eye(4, dtype=torch.float64)[:2], np.array([2.0, 1.0]))
    found = leading(torch.full((4, 4), np.nan, dtype=torch.float64), recycled=pairs)
    assert np.isnan(found.value)
    assert found.pairs is pairs


@pytest.mark.parametrize("settings", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"max_products": 0}, {"keep": 0}])
def test_bad_settings_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        leading(torch.eye(3, dtype=torch.float64), **settings)


def test_a_negative_eigenvalue_that_overtakes_the_positive_one_is_noticed_at_once():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(200, 200, generator=generator, dtype=torch.float64))[0]
    bulk = torch.cat([torch.linspace(0, 2, 50, dtype=torch.float64), torch.zeros(148, dtype=torch.float64)])

    def found(positive, negative, recycled, seed):
        matrix = vectors @ torch.diag(torch.cat([torch.tensor([positive, negative]).double(), bulk])) @ vectors.T
        return leading_pair(lambda block: matrix @ block, 200, recycled=recycled, dtype=torch.float64, seed=seed)

    for seed in range(5):
        before = found(5.0, -4.9, None, seed)
        assert found(4.7, -5.2, before.pairs, seed).value == pytest.approx(-5.2, rel=1e-3)
