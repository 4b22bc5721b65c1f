"""The study of coverage: cells of published intervals, of which the quick ones must not miss."""

import itertools

import pytest

from benchmarks.coverage import means


def test_cells_of_means_count_what_is_shown_and_cover():
    jobs = dict(means.jobs(200, 1))
    quick = [name for name in jobs if name.startswith(("means of", "gradient noise", "random sharpness"))]
    cells = list(itertools.chain.from_iterable(jobs[name]() for name in quick))
    assert len({(cell.quantity, cell.problem, cell.n) for cell in cells}) == len(cells)
    whole = [cell for cell in cells if "before any is withheld" in cell.quantity]
    assert {cell.n for cell in whole} == {4, 8, 16, 32}
    assert all(cell.reported == cell.repetitions == 200 for cell in whole)
    assert min(cell.share for cell in whole) >= 0.86  # of 44 cells at 200 draws
    shown = [cell for cell in cells if cell.n >= 16 and cell.reported >= 100]
    assert min(cell.share for cell in shown) >= 0.84
    assert all(0 <= cell.covered <= cell.reported <= cell.repetitions for cell in cells)


@pytest.mark.parametrize("name", means.spectra())
def test_a_quadratic_has_the_spectrum_that_is_asked_for(name):
    import numpy as np

    eigenvalues = means.spectra()[name]
    _, hessian = means.quadratic(eigenvalues)
    np.testing.assert_allclose(np.sort(np.linalg.eigvalsh(hessian)), np.sort(eigenvalues), atol=1e-12)
