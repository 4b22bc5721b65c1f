"""Repeated eigenvalues: what power iteration without deflation gives, beside the spectral probe, on a dense Hessian."""

import pytest
import repeated_eigenvalues as example
import torch
from curvature_dense import dense_hessian
from torch.nn import functional as F

from fastscape import zoo


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A float64 network of 418 parameters after ten steps, ragged batches of digits, and the dense Hessian ``[D, D]``."""
    torch.manual_seed(1)
    model = zoo.mlp(hidden=(6,), classes=4, activation="tanh").double()
    data = [(inputs.double(), targets % 4) for inputs, targets in zoo.digits(samples=40, batch_size=16)]
    zoo.train(model, data, tmp_path_factory.mktemp("run"), steps=10, checkpoints=3)
    inputs, targets = (torch.cat([batch[part] for batch in data]) for part in (0, 1))
    hessian = dense_hessian(model, lambda outputs: F.cross_entropy(outputs(inputs), targets))
    return model, data, hessian


@pytest.fixture(scope="module")
def largest(trained):
    return torch.linalg.eigvalsh(trained[2]).flip(0)[: example.COUNT].tolist()


@pytest.fixture(scope="module")
def found(trained):
    return example.measured(*trained[:2])


def test_undeflated_power_iteration_gives_the_largest_eigenvalue_from_every_start(largest, found):
    first, second, _ = largest
    assert second < 0.9 * first
    assert [one["value"] for one in found["power"]] == pytest.approx([first] * 3, rel=1e-4)
    assert len({one["residual"] for one in found["power"]}) == 3


def test_spectral_probe_gives_the_three_eigenvalues_of_the_dense_hessian(largest, found):
    assert [one["value"] for one in found["spectrum"]] == pytest.approx(largest, rel=1e-6)
    assert found["eigsh"] == pytest.approx(largest, rel=1e-9)


def test_plain_double_backward_is_the_dense_hessian(trained):
    model, data, hessian = trained
    inputs, targets = (torch.cat([batch[part] for batch in data]) for part in (0, 1))
    product = example.double_backward(model, inputs, targets)
    torch.testing.assert_close(torch.stack([product(column) for column in torch.eye(len(hessian)).double()]), hessian)


def test_power_iteration_gives_the_second_only_where_the_first_is_projected_out():
    matrix = torch.diag(torch.tensor([4.0, 2.0, 1.0, -3.0], dtype=torch.float64))
    deflated = matrix - torch.diag(torch.tensor([4.0, 0.0, 0.0, -3.0], dtype=torch.float64))
    start = torch.ones(4, dtype=torch.float64)
    assert example.power_iteration(lambda v: matrix @ v, start)["value"] == pytest.approx(4, rel=1e-4)
    assert example.power_iteration(lambda v: deflated @ v, start)["value"] == pytest.approx(2, rel=1e-4)


def test_table_shows_each_number_with_its_residual(found):
    rows = example.markdown(found).splitlines()[2:]
    assert len(rows) == 3
    for row, power, ours in zip(rows, found["power"], found["spectrum"], strict=True):
        assert f"| {power['value']:.4f} | {power['residual']:.0e} |" in row
        assert f"| {ours['value']:.4f} | {ours['residual']:.0e} |" in row
