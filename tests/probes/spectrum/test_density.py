"""Spectral densities from quadratures: mass, moments, band, outliers."""

import math

import numpy as np
import pytest
from numerics.matrices import outlier_spectrum, planted

from fastscape.numerics.gram_schmidt import random_rows
from fastscape.numerics.krylov import BlockLanczos
from fastscape.probes.spectrum.density import density, negative_mass, outliers


def quadrature(spectrum, probes=6, steps=8, seed=0):
    matrix = planted(spectrum)
    run = BlockLanczos(lambda v: matrix @ v, random_rows(len(spectrum), range(probes), seed, distribution="rademacher").T)
    for _ in range(steps):
        run.step()
    rule = run.krylov.quadrature()
    return rule.nodes, rule.weights


def test_density_integrates_to_one_and_has_the_mean_of_the_quadrature():
    nodes, weights = quadrature(outlier_spectrum(300))
    found = density(nodes, weights)
    assert np.trapezoid(found.values, found.grid) == pytest.approx(1, abs=1e-3)
    assert np.trapezoid(found.values * found.grid, found.grid) == pytest.approx((weights @ nodes).mean(), abs=5e-2)
    assert found.nodes.shape == found.weights.shape == (6, 48)
    assert np.all(found.low <= found.values)
    assert np.all(found.values <= found.high)


def test_density_is_near_that_of_all_eigenvalues():
    spectrum = np.random.default_rng(0).standard_normal(400)
    nodes, weights = quadrature(spectrum, probes=8, steps=10)
    found = density(nodes, weights, width=0.3)
    exact = np.exp(-0.5 * ((found.grid[:, None] - spectrum) / 0.3) ** 2).mean(1) / (0.3 * math.sqrt(2 * math.pi))
    assert np.abs(found.values - exact).max() < 0.03
    inside = (found.low <= exact + 0.005) & (exact - 0.005 <= found.high)
    assert inside.mean() > 0.9


def test_negative_mass_is_the_share_of_negative_eigenvalues():
    spectrum = np.concatenate([-np.linspace(1, 2, 60), np.linspace(1, 3, 140)])
    nodes, weights = quadrature(spectrum)
    low, high = density(nodes, weights).negative_mass.interval
    assert low <= 0.3 <= high
    assert density(nodes, weights).negative_mass.value == pytest.approx(0.3, abs=0.05)


def test_a_null_space_is_not_negative():
    spectrum = np.concatenate([np.zeros(150), np.linspace(1, 3, 50)])
    mass = density(*quadrature(spectrum)).negative_mass
    assert (mass.value, mass.interval) == (0, (0, 0))
    assert negative_mass(np.array([[-1e-9, 1.0]]), np.array([[0.5, 0.5]])).value == 0
    assert negative_mass(np.array([[-1e-9, 1.0]]), np.array([[0.5, 0.5]]), zero=0.0).value == pytest.approx(0.25)
    assert negative_mass(np.array([[-1.0, -1e-9, 1.0]]), np.array([[0.2, 0.5, 0.3]])).value == pytest.approx(0.2)


@pytest.mark.parametrize("probes", [1, 3])
def test_mass_within_one_node_of_zero_has_an_unknown_sign(probes):
    bulk = 1e-4 * np.random.default_rng(0).standard_normal(380) + 5e-5
    spectrum = np.concatenate([bulk, np.linspace(2, 20, 20)])
    low, high = density(*quadrature(spectrum, probes=probes, steps=4)).negative_mass.interval
    assert low <= np.mean(spectrum < 0) <= high
    assert high - low > 0.5


@pytest.mark.parametrize("seed", range(8))
def test_bounds_of_the_negative_mass_hold_for_the_measure_of_a_probe(seed):
    spectrum = np.sort(np.random.default_rng(seed).standard_normal(100) + 0.3)
    matrix, start = planted(spectrum), random_rows(100, range(1), seed)
    run = BlockLanczos(lambda v: matrix @ v, start.T)
    for _ in range(8):
        run.step()
    rule = run.krylov.quadrature()
    mass = negative_mass(rule.nodes[None], rule.weights, 0.0)
    overlaps = (start.numpy() @ np.linalg.eigh(matrix.numpy())[1])[0] ** 2
    exact = overlaps[spectrum < 0].sum() / overlaps.sum()
    assert mass.interval[0] <= exact <= mass.interval[1]
    assert mass.interval[1] - mass.interval[0] < 0.7


@pytest.mark.parametrize("planted_values", [[], [50.0], [50.0, 30.0, -40.0]])
def test_outliers_are_counted_at_both_ends(planted_values):
    bulk = np.random.default_rng(1).uniform(-1, 1, 400)
    found = density(*quadrature(np.concatenate([bulk, planted_values])))
    assert found.outliers == len(planted_values)


def test_close_outliers_are_each_counted_and_the_bulk_never():
    nodes = np.array([[-0.1, 0.0, 0.1, 8.0, 8.01]])
    weights = np.array([[0.3, 0.38, 0.3, 0.01, 0.01]])
    assert outliers(nodes, weights, 0.1) == 2
    assert outliers(nodes, weights, 3.0) == 0
    assert outliers(np.array([[2.0, 2.0]]), np.array([[0.5, 0.5]]), 1.0) == 0
    own = np.array([[0.0, 8.0, np.nan], [0.0, 0.1, 8.0], [0.0, 0.1, 0.2]])
    assert outliers(own, np.array([[0.9, 0.1, 0.0], [0.5, 0.4, 0.1], [0.5, 0.4, 0.1]]), 0.1) == 1


def test_one_probe_has_no_band():
    nodes, weights = quadrature(outlier_spectrum(100), probes=1)
    found = density(nodes, weights)
    assert np.isnan(found.low).all()
    assert np.isnan(found.high).all()
    assert math.isnan(found.negative_mass.stderr)


def test_probes_with_their_own_nodes_and_breakdown():
    nodes = np.array([[0.0, 1.0, 2.0], [0.5, 1.5, np.nan]])
    weights = np.array([[0.2, 0.5, 0.3], [0.6, 0.4, 0.0]])
    found = density(nodes, weights, width=0.1, grid=np.linspace(-1, 3, 2001))
    assert np.trapezoid(found.values, found.grid) == pytest.approx(1, abs=1e-6)


def test_bad_nodes_and_widths_are_refused():
    with pytest.raises(ValueError, match="nodes must hold a finite value"):
        density(np.array([np.nan]), np.array([[1.0]]))
    with pytest.raises(ValueError, match="width must be positive"):
        density(np.array([0.0, 1.0]), np.array([[0.5, 0.5]]), width=0.0)
