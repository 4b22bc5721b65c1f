"""Trace estimates against dense matrices: unbiased, with intervals that cover."""

import math

import numpy as np
import pytest
import torch
from numerics.matrices import outlier_spectrum, planted
from scipy import stats

from fastscape.numerics.estimate import Estimate
from fastscape.numerics.gram_schmidt import random_rows
from fastscape.numerics.krylov import BlockLanczos
from fastscape.numerics.positive import skewed_mean
from fastscape.numerics.student import mean_estimate
from fastscape.numerics.trace import (
    data_stderr,
    directional_variance,
    effective_rank,
    hutchinson,
    layer_forms,
    probes_needed,
)

RUNS = 200
SIZE = 120


def signs(count, seed, size=SIZE):
    return random_rows(size, range(count), seed, distribution="rademacher").T


def forms_of(matrix, vectors):
    image = matrix @ vectors
    return (vectors * image).sum(0).numpy(), (image**2).sum(0).numpy()


def coverage(intervals, truth):
    return np.mean([low <= truth <= high for low, high in intervals])


@pytest.fixture(scope="module")
def bulk():
    """A Hessian without outliers: eigenvalues of a Marchenko-Pastur law, indefinite by a shift."""
    sample = np.random.default_rng(2).standard_normal((SIZE, 2 * SIZE))
    return torch.from_numpy(sample @ sample.T / (2 * SIZE) - 0.2 * np.eye(SIZE))


def test_intervals_of_the_trace_cover(bulk):
    estimates = [hutchinson(forms_of(bulk, signs(10, seed))[0]) for seed in range(RUNS)]
    assert 0.90 <= coverage([e.interval for e in estimates], float(bulk.trace())) <= 0.99
    assert np.mean([e.value for e in estimates]) == pytest.approx(float(bulk.trace()), abs=0.5)


def test_intervals_of_the_trace_of_the_square_cover(bulk):
    estimates = [mean_estimate(forms_of(bulk, signs(10, seed))[1]) for seed in range(RUNS)]
    assert 0.90 <= coverage([e.interval for e in estimates], float((bulk @ bulk).trace())) <= 0.99


def test_intervals_of_the_effective_rank_cover(bulk):
    truth = float(bulk.trace()) ** 2 / float((bulk @ bulk).trace())
    estimates = [effective_rank(*forms_of(bulk, signs(12, seed)))[0] for seed in range(RUNS)]
    assert 0.90 <= coverage([e.interval for e in estimates], truth) <= 0.99


def test_intervals_of_the_directional_variance_cover(bulk):
    truth = 2 * (float((bulk @ bulk).trace()) - float((torch.diagonal(bulk) ** 2).sum()))
    estimates = [directional_variance(forms_of(bulk, signs(60, seed))[0]) for seed in range(RUNS)]
    assert 0.90 <= coverage([e.interval for e in estimates], truth) <= 0.99
    assert np.mean([e.value for e in estimates]) == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize("probes", [7, 11, 30])
@pytest.mark.parametrize("spectrum", [np.linspace(0.5, 1.5, SIZE), 1 / np.arange(1, SIZE + 1), np.array([40.0] + [0.01] * 119)])
def test_intervals_of_the_variance_of_few_skewed_forms_cover_with_the_kurtosis(spectrum, probes):
    matrix, square = planted(spectrum), np.sum(spectrum**2)
    truth, kurtosis = 2 * (square - float((torch.diagonal(matrix) ** 2).sum())), 3 + 12 * np.sum(spectrum**4) / square**2
    estimates = [directional_variance(forms_of(matrix, signs(probes, seed))[0], kurtosis) for seed in range(RUNS)]
    assert coverage([e.interval for e in estimates], truth) >= 0.92


@pytest.mark.parametrize("n", [10, 25])
def test_the_variance_of_normal_forms_has_its_classical_interval(n):
    """(n - 1) s^2 / chi^2 where the jackknife finds no more than a kurtosis of 3."""
    forms = stats.norm.ppf((np.arange(n) + 0.5) / n)  # flatter tails than a sample has on average
    variance = forms.var(ddof=1)
    expected = [(n - 1) * variance / stats.chi2.ppf(tail, n - 1) for tail in (0.975, 0.025)]
    assert directional_variance(forms, 3.0).interval == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("spectrum", [np.linspace(0.5, 1.5, SIZE), 1 / np.arange(1, SIZE + 1), np.array([40.0] + [0.01] * 119)])
def test_the_variance_of_forms_is_at_most_twice_the_trace_of_the_square(spectrum):
    matrix, square = planted(spectrum), float(np.sum(spectrum**2))
    truth, kurtosis = 2 * (square - float((torch.diagonal(matrix) ** 2).sum())), 3 + 12 * np.sum(spectrum**4) / square**2
    known = Estimate(square, 0.0, (square, square), 9)
    found = [directional_variance(forms_of(matrix, signs(11, seed))[0], kurtosis, known) for seed in range(RUNS)]
    assert coverage([e.interval for e in found], truth) >= 0.92
    assert all(e.interval[1] <= max(2 * square, e.value) for e in found)
    alone = [directional_variance(forms_of(matrix, signs(11, seed))[0], kurtosis) for seed in range(RUNS)]
    assert np.mean([e.interval[1] for e in found]) < np.mean([e.interval[1] for e in alone])


@pytest.mark.parametrize("matrix", ["slow", "spiked"])
def test_squares_of_few_probes_are_covered_on_a_logarithmic_scale(matrix):
    spectrum = {"slow": 1 / np.arange(1, SIZE + 1), "spiked": np.array([10.0, 6.0] + [0.05] * (SIZE - 2))}[matrix]
    squares = [forms_of(planted(spectrum), signs(8, seed))[1] for seed in range(RUNS)]
    truth = float(np.sum(spectrum**2))
    assert coverage([skewed_mean(values).interval for values in squares], truth) >= 0.91
    assert coverage([mean_estimate(values).interval for values in squares], truth) < 0.91


def test_the_effective_rank_is_positive_at_both_ends_and_withheld_where_curvature_cancels():
    forms, squares = np.array([1.0, 9.0, 2.0, 4.0]), np.array([1.0, 60.0, 4.0, 12.0])
    found, _ = effective_rank(forms, squares)
    low, high = found.interval
    assert 0 < low < found.value < high
    assert low * high == pytest.approx(found.value**2, rel=1e-9)
    assert "the interval of the trace holds zero" in effective_rank(forms - 4.0, squares)[0].withheld
    assert "of tr |H|" in effective_rank(forms + 20.0, squares + 500.0, absolute=400.0)[0].withheld
    assert effective_rank(forms + 20.0, squares + 500.0)[0].withheld == ""


def test_variance_of_few_forms_has_no_interval_of_its_own():
    forms = np.random.default_rng(0).standard_normal(10)
    assert math.isnan(directional_variance(forms[:9]).interval[0])
    low, high = directional_variance(forms).interval
    assert 0 < low < np.var(forms, ddof=1) < high
    assert directional_variance(np.ones(10)).interval == (0.0, 0.0)


def test_rank_of_a_zero_matrix_has_no_flag():
    assert effective_rank(np.zeros(4), np.zeros(4))[1] is None
    assert effective_rank(np.array([]), np.array([]))[1] is None
    assert "holds zero" in effective_rank(np.array([1.0, -1.0]), np.ones(2))[1]


def deflated(matrix, seed, probes=8):
    run = BlockLanczos(lambda v: matrix @ v, random_rows(len(matrix), range(2), seed + 1000).T)
    for _ in range(10):
        run.step()
    left = run.krylov.complement(signs(probes, seed, len(matrix)))
    image = matrix @ left
    exact, exact_square = run.krylov.span_sums()
    forms, squares = (left * image).sum(0).numpy(), (image**2).sum(0).numpy()
    return exact, exact_square, forms, squares


def test_intervals_of_the_deflated_trace_cover_and_are_narrow():
    spectrum = outlier_spectrum(SIZE)
    matrix, truth = planted(spectrum), spectrum.sum()
    runs = [deflated(matrix, seed) for seed in range(RUNS)]
    estimates = [hutchinson(forms, exact) for exact, _, forms, _ in runs]
    assert 0.90 <= coverage([e.interval for e in estimates], truth) <= 0.99
    plain = np.std([forms_of(matrix, signs(8, seed))[0].mean() for seed in range(RUNS)])
    assert np.std([e.value for e in estimates]) < plain / 10
    ranks = [effective_rank(f, s, exact=e, exact_square=e2)[0] for e, e2, f, s in runs]
    assert 0.90 <= coverage([e.interval for e in ranks], truth**2 / np.sum(spectrum**2)) <= 0.99
    squares = [mean_estimate(s, e2) for _, e2, _, s in runs]
    assert 0.90 <= coverage([e.interval for e in squares], np.sum(spectrum**2)) <= 0.99


def test_a_basis_of_the_whole_space_gives_exact_traces():
    spectrum = outlier_spectrum(40)
    run = BlockLanczos(lambda v: planted(spectrum) @ v, random_rows(40, range(4), 0).T)
    while run.step():
        pass
    assert run.krylov.span_sums() == (pytest.approx(spectrum.sum()), pytest.approx(np.sum(spectrum**2)))


def test_span_sums_are_traces_over_the_basis():
    matrix = planted(outlier_spectrum(90))
    run = BlockLanczos(lambda v: matrix @ v, random_rows(90, range(3), 0).T, wanted=2, capacity=24)
    while run.restarts < 2:
        run.step()
    image = run.krylov.basis @ matrix
    assert run.krylov.span_sums() == (
        pytest.approx(float((image * run.krylov.basis).sum())),
        pytest.approx(float((image**2).sum())),
    )


def test_interval_is_students():
    samples = np.array([1.0, 2.0, 4.0])
    estimate = mean_estimate(samples, 10.0)
    low, high = stats.t.interval(0.95, 2, loc=10 + samples.mean(), scale=stats.sem(samples))
    assert estimate.interval == (pytest.approx(low), pytest.approx(high))
    assert (estimate.value, estimate.n) == (pytest.approx(10 + 7 / 3), 3)


def test_one_or_no_probe_has_no_interval():
    assert math.isnan(mean_estimate(np.array([3.0])).stderr)
    assert mean_estimate(np.array([3.0])).value == 3.0
    assert math.isnan(mean_estimate(np.array([])).value)
    assert math.isnan(effective_rank(np.array([1.0]), np.array([1.0]))[0].stderr)
    assert math.isnan(directional_variance(np.array([1.0])).value)


def test_nan_probes_go_through():
    estimate = hutchinson(np.array([1.0, np.nan, 2.0]))
    assert math.isnan(estimate.value)
    assert math.isnan(estimate.interval[0])


def test_as_many_probes_as_are_needed_reach_the_half_width():
    forms = 10 * np.random.default_rng(0).standard_normal(20)
    for half in (1.0, 5.0, 20.0):
        n = probes_needed(forms, half)
        spread = forms.std(ddof=1)
        assert stats.t.ppf(0.975, n - 1) * spread <= half * math.sqrt(n)
        assert n == 2 or stats.t.ppf(0.975, n - 2) * spread > half * math.sqrt(n - 1)
    with pytest.raises(ValueError, match="forms must hold at least 2"):
        probes_needed(forms[:1], 1.0)


def test_effective_rank_warns_where_curvature_cancels():
    forms = np.array([1.0, 1.2, 0.9, 1.1])
    assert effective_rank(forms, forms**2)[1] is None
    assert effective_rank(forms, forms**2, absolute=1.5)[1] is None
    assert "of tr |H|" in effective_rank(forms, forms**2, absolute=4.0)[1]
    assert "negative" in effective_rank(-forms, forms**2)[1]
    assert "zero" in effective_rank(forms - 0.99, forms**2)[1]


def test_layer_forms_sum_to_the_whole(bulk):
    layers = {"a": slice(0, 50), "b": slice(50, 51), "c": slice(51, SIZE)}
    vectors = signs(4, 0)
    parts = layer_forms(vectors, bulk @ vectors, layers)
    assert parts.shape == (3, 4)
    np.testing.assert_allclose(parts.sum(0), forms_of(bulk, vectors)[0], rtol=1e-12)
    blocks = np.array([[float(v[part] @ (bulk @ v)[part]) for v in vectors.T] for part in layers.values()])
    np.testing.assert_allclose(parts, blocks, rtol=1e-12)


def test_data_error_is_that_of_the_batches_and_not_of_the_probes():
    rng = np.random.default_rng(0)
    estimates, plain = [], []
    for _ in range(RUNS):
        traces = 100 + 2 * rng.standard_normal(20)
        forms = traces[:, None] + 5 * rng.standard_normal((20, 6)) + 30 * rng.standard_normal(6)
        estimates.append(data_stderr(forms, np.full(20, 0.05)) ** 2)
        plain.append(np.var(forms.mean(1), ddof=1) / 20)
    assert np.mean(estimates) == pytest.approx(4 / 20, rel=0.1)
    assert np.mean(plain) > 1.5 * 4 / 20


def test_data_error_with_weights_is_the_ratio_estimators():
    forms, weights = np.array([[1.0], [4.0], [2.0]]), np.array([4, 4, 2])
    share = weights / 10
    mean = share @ forms[:, 0]
    expected = math.sqrt(1.5 * np.sum(share**2 * (forms[:, 0] - mean) ** 2))
    assert data_stderr(forms, weights) == pytest.approx(expected)
    assert data_stderr(forms[:1], weights[:1]) is None
    assert math.isnan(data_stderr(np.array([[1.0], [np.nan]]), np.ones(2)))
