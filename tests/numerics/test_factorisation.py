"""The block Lanczos factorisation HQ = QT + FC holds after every way to change it, and its numbers are those of dense algebra."""

import numpy as np
import pytest
import torch
from numerics.matrices import outlier_spectrum, planted

from fastscape.numerics.factorisation import Factorisation
from fastscape.numerics.gram_schmidt import NonFiniteRowsError, orthonormalise, random_rows

SIZE, WIDTH = 60, 3


@pytest.fixture
def matrix():
    return planted(outlier_spectrum(SIZE))


def made(matrix, steps, capacity=40):
    first = orthonormalise(random_rows(SIZE, range(WIDTH), 0), torch.empty((0, SIZE), dtype=torch.float64))
    found = Factorisation(torch.empty((capacity, SIZE), dtype=torch.float64), first.rows, first.within, torch.device("cpu"))
    for _ in range(steps):
        found.extend(found.block @ matrix)
    return found


def left_over(found, matrix):
    """What the basis and the pending block leave of the products."""
    rest = found.basis @ matrix - torch.from_numpy(found.projected) @ found.basis
    return float((rest - rest @ found.block.T @ found.block).abs().max())


def orthonormal(found):
    return torch.allclose(found.whole @ found.whole.T, torch.eye(len(found.whole), dtype=torch.float64), atol=1e-12)


def test_products_lie_in_the_basis_and_the_pending_block(matrix):
    found = made(matrix, 5)
    assert (found.done, found.pending) == (15, 3)
    assert orthonormal(found)
    assert left_over(found, matrix) < 1e-11


def test_rows_that_were_appended_are_multiplied_with_the_pending_ones(matrix):
    found = made(matrix, 3)
    found.append(orthonormalise(random_rows(SIZE, range(90, 92), 0), found.whole).rows)
    assert found.pending == 5
    assert found.extend(found.block @ matrix) == 5
    assert orthonormal(found)
    assert left_over(found, matrix) < 1e-11


def test_what_is_kept_by_a_restart_still_holds_its_products(matrix):
    found = made(matrix, 6)
    theta, _, residuals = (part.copy() for part in found.ritz())
    rule, chosen = found.quadrature(), np.array([0, 1, 14, 15, 16, 17])
    found.compress(chosen)
    assert (found.done, found.pending, found.rotating) == (6, 3, False)
    assert orthonormal(found)
    assert left_over(found, matrix) < 1e-11
    np.testing.assert_allclose(found.ritz()[0], theta[chosen], atol=1e-11)
    np.testing.assert_allclose(found.ritz()[2], residuals[chosen], rtol=1e-6, atol=1e-11)
    assert found.quadrature() is rule or np.array_equal(found.quadrature().nodes, rule.nodes)  # of the last whole basis
    found.extend(found.block @ matrix)
    assert left_over(found, matrix) < 1e-11


def test_vectors_of_a_half_rotated_basis_are_not_given(matrix):
    found = made(matrix, 4)
    assert found.vectors(np.array([11])).shape == (SIZE, 1)
    found.rotating = True  # as an interruption leaves it
    assert found.vectors(np.array([11])) is None


def test_products_that_are_not_finite_change_nothing(matrix):
    found = made(matrix, 4)
    before = found.projected.copy(), found.whole.clone()
    bad = found.block @ matrix
    bad[1, 7] = torch.nan
    with pytest.raises(NonFiniteRowsError):
        found.extend(bad)
    assert np.array_equal(found.projected, before[0])
    assert torch.equal(found.whole, before[1])
