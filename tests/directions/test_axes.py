"""Axes of slices: scaled first, made orthogonal then, principal components exact, parallel ones refused."""

import copy

import numpy as np
import pytest
import torch

import fastscape as fs
from fastscape.directions.axes import Axes


def flat(axis):
    return torch.cat([tensor.double().reshape(-1) for tensor in axis]).numpy()


def states(objective, *steps):
    """State dicts displaced from the objective's weights by rows of numbers."""
    found = []
    for step in steps:
        state = {name: tensor.double().clone() for name, tensor in objective.model.state_dict().items()}
        start = 0
        for name in objective.names:
            size = state[name].numel()
            state[name] += torch.from_numpy(np.asarray(step)[start : start + size]).reshape(state[name].shape)
            start += size
        found.append(state)
    return found


def test_axes_are_the_directions(tanh_objective):
    directions = fs.Directions(tanh_objective, count=3, seed=5, normalize="filter")
    axes = Axes.random(tanh_objective, 3, seed=5)
    for index in range(3):
        np.testing.assert_array_equal(flat(axes.tensors[index]), flat(directions.tensors(index, torch.float64)[0]))
    np.testing.assert_allclose(axes.relative, 1.0)
    assert len(axes[:2]) == 2
    assert axes[:2].labels == ("random 0", "random 1")


def test_filter_scaling_breaks_orthogonality_and_scaling_first_keeps_it(tanh_objective):
    """Two raw directions that are orthogonal are not after each row is scaled; Gram-Schmidt after the scaling is."""
    size = tanh_objective.size
    raw = np.random.default_rng(0).normal(size=(2, size))
    raw[1] -= raw[0] * (raw[0] @ raw[1]) / (raw[0] @ raw[0])
    rows = [
        {name: state[name] - tanh_objective.model.state_dict()[name] for name in tanh_objective.names}
        for state in states(tanh_objective, *raw)
    ]
    scaled = Axes.of(fs.Directions.given(tanh_objective, rows, normalize="filter", scale="relative"))
    assert abs(scaled.cosines[0, 1]) > 1e-4
    repaired = scaled.orthogonal()
    assert abs(repaired.cosines[0, 1]) < 1e-14
    np.testing.assert_allclose([np.linalg.norm(flat(axis)) for axis in repaired.tensors], scaled.lengths, rtol=1e-12)
    np.testing.assert_array_equal(flat(repaired.tensors[0]), flat(scaled.tensors[0]))


def test_orthogonal_axes_span_the_same_plane(tanh_objective):
    axes = Axes.random(tanh_objective, 2, normalize="none")
    made = axes.orthogonal()
    both = np.stack([flat(axis) for axis in (*axes.tensors, *made.tensors)])
    assert np.linalg.matrix_rank(both, tol=1e-9 * np.linalg.norm(both)) == 2


@pytest.mark.parametrize("factor", [1.0, -2.5])
def test_parallel_axes_are_refused_by_name_with_their_cosine(tanh_objective, factor):
    gradient = tanh_objective.gradient()
    axes = Axes.gradient(tanh_objective) + Axes.given(
        tanh_objective, {name: factor * tensor for name, tensor in gradient.items()}, labels=("again",)
    )
    sign = "-?" if factor > 0 else "-"
    with pytest.raises(ValueError, match=rf"must span a plane, got 'gradient' and 'again' with cosine {sign}1\.0000"):
        axes.orthogonal()
    with pytest.raises(ValueError, match="must span a plane"):
        axes.check_independent()


def test_zero_and_non_finite_axes_are_refused(tanh_objective):
    base = tanh_objective.base
    with pytest.raises(ValueError, match=r"tensors\[0\] must not be zero"):
        Axes.given(tanh_objective, {name: torch.zeros_like(tensor) for name, tensor in base.items()})
    with pytest.raises(ValueError, match="must be finite"):
        Axes.given(tanh_objective, {"1.weight": torch.full_like(base["1.weight"], torch.nan)})
    state = tanh_objective.model.state_dict()
    with pytest.raises(ValueError, match="checkpoints must differ"):
        Axes.difference(tanh_objective, state, state)
    with pytest.raises(ValueError, match=r"vectors must have shape \[D = "):
        Axes.eigenvectors(tanh_objective, torch.ones(3, 2))


def test_a_difference_reaches_the_other_checkpoint_at_one(tanh_objective):
    step = np.random.default_rng(0).normal(size=tanh_objective.size)
    axes = Axes.difference(tanh_objective, tanh_objective.model.state_dict(), *states(tanh_objective, step))
    np.testing.assert_allclose(flat(axes.tensors[0]), step, rtol=1e-12)
    assert axes.lengths[0] == pytest.approx(np.linalg.norm(step))


def test_eigenvectors_become_axes_in_the_order_of_parameters(tanh_objective):
    vectors = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(tanh_objective.size, 2)))[0])
    axes = Axes.eigenvectors(tanh_objective, vectors, values=[3.0, 1.0], scale="unit")
    np.testing.assert_allclose(np.stack([flat(axis) for axis in axes.tensors], axis=1), vectors.numpy(), rtol=1e-12)
    assert axes.labels == ("eigenvector 1 (3)", "eigenvector 2 (1)")


def test_principal_components_are_those_of_a_singular_value_decomposition(tanh_objective):
    rng = np.random.default_rng(3)
    steps = rng.normal(size=(5, 2)) @ rng.normal(size=(2, tanh_objective.size)) + 0.1 * rng.normal(size=(5, tanh_objective.size))
    axes = Axes.pca(tanh_objective, states(tanh_objective, *steps), 2, scale="unit")
    _, values, vectors = np.linalg.svd(steps, full_matrices=False)
    for index in range(2):
        assert abs(flat(axes.tensors[index]) @ vectors[index]) == pytest.approx(1.0, rel=1e-8)
    np.testing.assert_allclose(axes.explained, (values**2 / np.sum(values**2))[:2], rtol=1e-8)
    assert axes.labels[0].startswith("component 1 (")


def test_projections_and_what_they_leave_out_add_up(tanh_objective):
    """|delta|^2 = |inside|^2 + |outside|^2, for axes that are not orthogonal as well."""
    rng = np.random.default_rng(4)
    away = rng.normal(size=tanh_objective.size)
    axes = Axes.random(tanh_objective, 2, normalize="tensor", scale="none", seed=1)
    basis = np.stack([flat(axis) for axis in axes.tensors])
    away -= np.linalg.pinv(basis.T) @ away @ basis
    coordinates = np.array([[0.5, -0.25], [0.0, 2.0], [0.0, 0.0], [0.3, 0.1]])
    shares = np.array([0.0, 0.0, 0.0, 1.0])
    steps = coordinates @ basis + shares[:, None] * away
    found, residual = axes.project(tanh_objective, states(tanh_objective, *steps))
    np.testing.assert_allclose(found, coordinates, atol=1e-9)
    inside, outside = np.linalg.norm(coordinates[3] @ basis), np.linalg.norm(away)
    np.testing.assert_allclose(residual, [0, 0, 0, outside / np.hypot(inside, outside)], atol=1e-9)


def test_a_straight_trajectory_has_no_plane(tanh_objective):
    step = np.random.default_rng(0).normal(size=tanh_objective.size)
    with pytest.raises(ValueError, match="must span 2 dimensions around the objective's weights, got 3 checkpoints that span 1"):
        Axes.pca(tanh_objective, states(tanh_objective, step, 2 * step, -step), 2)


def test_checkpoints_of_another_model_are_refused_with_their_place(tanh_objective):
    good = copy.deepcopy(tanh_objective.model.state_dict())
    bad = {name: tensor for name, tensor in good.items() if name != "1.bias"}
    with pytest.raises(ValueError, match=r"states\[1\]: state must match Sequential, got: missing 1.bias"):
        Axes.pca(tanh_objective, [good, bad])
    broken = copy.deepcopy(good)
    broken["1.bias"][0] = torch.nan
    with pytest.raises(ValueError, match=r"states\[0\] must be finite"):
        Axes.pca(tanh_objective, [broken, good])


def test_making_axes_leaves_the_model_alone(bn_objective, untouched):
    with untouched(bn_objective.model):
        Axes.gradient(bn_objective)
        Axes.random(bn_objective, 2).orthogonal()
