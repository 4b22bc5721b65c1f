"""The diagonal against exact ones of torch.func; what ends a run; the same bits from a journal."""

import math

import matplotlib as mpl
import numpy as np
import pytest
import torch
from quadratics import Weights, polynomial
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F

import fastscape as fs
from fastscape.curvature.products import Products
from fastscape.numerics.student import quantile
from fastscape.ops import direction, tensor_ids
from fastscape.probes.diagonal import run
from fastscape.reports.html import write_html

mpl.use("agg")
X = torch.randn(24, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 3, (24,), generator=torch.Generator().manual_seed(1))


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def objective(model=None, batches=((0, 10), (10, 24)), **options):
    data = [(X[start:end], Y[start:end]) for start, end in batches]
    return fs.Objective(network() if model is None else model, data, criterion=F.cross_entropy, **options)


def flat_hessian(model):
    """By torch.func, all parameters as one vector."""
    named = dict(model.named_parameters())
    shapes = {name: tensor.shape for name, tensor in named.items()}

    def unflattened(vector):
        parts = torch.split(vector, [math.prod(shape) for shape in shapes.values()])
        return {name: part.reshape(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}

    start = torch.cat([tensor.detach().reshape(-1) for tensor in named.values()])

    def loss(vector):
        return F.cross_entropy(functional_call(model, unflattened(vector), (X,)), Y)

    def outputs(vector):
        return functional_call(model, unflattened(vector), (X,))

    return jacrev(jacrev(loss))(start), jacrev(outputs)(start), functional_call(model, unflattened(start), (X,))


def quadratic(matrix):
    zeros = torch.zeros(len(matrix), dtype=torch.float64)
    return polynomial([zeros], zeros, matrix)


def low_rank(size=80, rank=10):
    """A Hessian of that rank, with eigenvalues of both signs."""
    generator = torch.Generator().manual_seed(2)
    turn = torch.linalg.qr(torch.randn(size, rank, dtype=torch.float64, generator=generator))[0]
    return (turn * torch.linspace(-1, 2.5, rank, dtype=torch.float64)) @ turn.T


# ---------------------------------------------------------------------- what is estimated


def test_all_columns_are_the_diagonal_of_torch_func():
    model = network()
    expected = flat_hessian(model)[0].diagonal().numpy()
    found = fs.diagonal(objective(model), estimator="exact")
    assert (found.estimator, found.products, found.probes) == ("exact", len(expected), 0)
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    start = 0
    for name, tensor in model.named_parameters():
        part = slice(start, start + tensor.numel())
        assert found.layers[name].value == pytest.approx(expected[part].sum(), abs=1e-12)
        torch.testing.assert_close(found.tensors()[name], torch.from_numpy(expected[part]).reshape(tensor.shape))
        assert found.errors()[name].max() < 1e-12
        start = part.stop
    assert found.trace.value == pytest.approx(expected.sum())
    low, high = found.trace.interval
    assert high - low < 1e-12


@pytest.mark.parametrize("estimator", ["xdiag", "hutchinson", "exact"])
@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_estimates_hold_the_exact_diagonal(operator, estimator):
    model = network()
    dense, jacobian, outputs = flat_hessian(model)
    if operator == "ggn":
        p = torch.softmax(outputs.detach(), 1)
        curve = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        dense = torch.einsum("ncd,nce,nef->df", jacobian, curve, jacobian) / len(X)
    expected = dense.diagonal().numpy()
    found = fs.diagonal(objective(model), len(dense) if estimator == "exact" else 48, operator=operator, estimator=estimator)
    assert (found.operator, found.estimator) == (operator, estimator)
    off = np.abs(found.values - expected)
    assert (off <= 6 * found.stderr + 1e-12).all()
    assert np.linalg.norm(off) <= 3 * found.error + 1e-12
    low, high = found.trace.interval
    width = (high - low) / 2
    assert abs(found.trace.value - expected.sum()) <= 3 * width
    if estimator != "exact":
        assert 0 < found.relative_error < 1
        assert found.probes == (24 if estimator == "xdiag" else 48)


def test_hutchinson_is_the_mean_over_the_signs_of_the_seed():
    matrix = low_rank(12) + torch.eye(12, dtype=torch.float64)
    found = fs.diagonal(quadratic(matrix), 7, estimator="hutchinson", seed=5)
    ids = torch.tensor([tensor_ids(["parts.0"])["parts.0"]])
    signs = direction(ids, 5, list(range(7)), [12], "rademacher")[0].double()
    each = (signs * (signs @ matrix)).numpy()
    np.testing.assert_allclose(found.values, each.mean(0), atol=1e-12)
    np.testing.assert_allclose(found.stderr, each.std(0, ddof=1) / math.sqrt(7), atol=1e-12)
    assert found.trace.stderr == pytest.approx(each.sum(1).std(ddof=1) / math.sqrt(7))


def test_a_range_that_is_captured_leaves_rounding_and_ends_the_run():
    matrix = low_rank()
    found = fs.diagonal(quadratic(matrix), 70, estimator="xdiag")
    np.testing.assert_allclose(found.values, matrix.diagonal(), atol=1e-12)
    assert found.error < 1e-12
    assert found.dimension == 10
    assert found.products < 70
    assert found.meta["range"] == "complete"
    plain = fs.diagonal(quadratic(matrix), 70, estimator="hutchinson")
    assert np.linalg.norm(plain.values - matrix.diagonal().numpy()) > 1e6 * found.error


def test_a_basis_of_the_whole_space_ends_the_run():
    matrix = low_rank() + 3 * torch.eye(80, dtype=torch.float64)
    found = fs.diagonal(quadratic(matrix), 400, estimator="xdiag")
    np.testing.assert_allclose(found.values, matrix.diagonal(), atol=1e-11)
    assert (found.dimension, found.products) == (80, 160 + 8)
    assert found.meta["stop_reason"] == "complete"


def test_a_basis_that_memory_bounds_is_kept_and_others_are_of_what_it_leaves():
    matrix = low_rank(80, 30) + 0.01 * torch.eye(80, dtype=torch.float64)
    row = 80 * 8
    found = fs.diagonal(quadratic(matrix), 60, estimator="xdiag", memory=2 * (4 + 3 * 8) * row)
    assert (found.dimension, found.products, found.probes) == (8, 60, 8 + 44)
    off = found.values - matrix.diagonal().numpy()
    assert np.linalg.norm(off) <= 2 * found.error
    assert abs(off.sum()) <= 2 * np.subtract(*found.trace.interval[::-1])


def test_memory_for_no_basis_leaves_hutchinson(monkeypatch):
    monkeypatch.setattr(run, "available_memory", lambda _device: 4 * (4 + 3) * 80 * 8)
    found = fs.diagonal(quadratic(torch.eye(80, dtype=torch.float64)), 8)
    assert (found.estimator, found.dimension, found.probes) == ("hutchinson", 0, 8)
    np.testing.assert_allclose(found.values, 1.0)
    assert any("memory holds 1 vector of a basis" in note for note in found.notes)


def test_a_loss_without_curvature_has_a_diagonal_of_zeros():
    found = fs.diagonal(quadratic(torch.zeros(80, 80, dtype=torch.float64)))
    assert not found.values.any()
    assert (found.error, found.trace.value) == (0.0, 0.0)
    assert found.verdict().startswith("The diagonal is zero")


def test_products_that_are_not_finite_end_the_run():
    def loss(model, _):
        return model().sqrt().sum()  # infinite second derivative at 0

    of = fs.Objective(Weights(torch.zeros(70, dtype=torch.float64)), [torch.zeros(1)], loss=loss)
    found = fs.diagonal(of)
    assert found.meta["stop_reason"] == "nan products"
    assert np.isnan(found.values).all()
    assert "Not finished" in found.verdict()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_models(dtype):
    model = network()
    narrow = network().to(dtype)
    data = [(X.to(dtype), Y)]
    found = fs.diagonal(fs.Objective(narrow, data, criterion=F.cross_entropy), estimator="exact")
    expected = flat_hessian(model)[0].diagonal().numpy()
    assert np.linalg.norm(found.values - expected) < (1e-4 if dtype == torch.float32 else 0.1) * np.linalg.norm(expected)


# ---------------------------------------------------------------------- what ends it


class Stopped:
    """Products that fail at a block."""

    def __init__(self, monkeypatch):
        self.blocks, self.vectors, self.fails, self.error = 0, 0, math.inf, None
        real = Products.multiply

        def multiply(products, rows):
            if self.blocks >= self.fails:
                raise self.error
            self.blocks += 1
            self.vectors += len(rows)
            return real(products, rows)

        monkeypatch.setattr(Products, "multiply", multiply)


@pytest.fixture
def stopped(monkeypatch):
    return Stopped(monkeypatch)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ArithmeticError("broken")])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_what_was_multiplied_before_is_kept(blocks, error, stopped, untouched):
    of = quadratic(low_rank(80, 60))
    stopped.fails, stopped.error = blocks, error
    with untouched(of.model):
        if isinstance(error, KeyboardInterrupt):
            found = fs.diagonal(of, 40, estimator="xdiag", method="reverse")
            assert found.meta["stop_reason"] == "interrupted"
        else:
            with pytest.raises(fs.PartialResultError, match=r"failed after \d+ products: ArithmeticError: broken") as caught:
                fs.diagonal(of, 40, estimator="xdiag", method="reverse")
            found = caught.value.partial
    assert found.products == 4 * blocks
    assert found.dimension == 4 * (blocks // 2)
    assert found.probes == 4 * ((blocks + 1) // 2)  # also those whose basis was not multiplied any more
    off = found.values - low_rank(80, 60).diagonal().numpy()
    assert np.linalg.norm(off) < 3 * found.error
    str(found)


def bits(found):
    layers = [(each.value.hex(), each.stderr.hex()) for each in found.layers.values()]
    return found.values.tobytes(), found.stderr.tobytes(), layers, found.products, found.loss


@pytest.mark.parametrize("fails", [1, 4, 7])
def test_a_run_goes_on_to_the_same_bits(fails, stopped, tmp_path):
    of = objective()
    expected = fs.diagonal(of, 32, estimator="xdiag", method="reverse")
    stopped.blocks, stopped.vectors = 0, 0
    stopped.fails, stopped.error = fails, RuntimeError("killed")
    with pytest.raises(RuntimeError):
        fs.diagonal(of, 32, estimator="xdiag", method="reverse", resume=tmp_path)
    stopped.fails, before = math.inf, stopped.vectors
    again = fs.diagonal(of, 32, estimator="xdiag", method="reverse", resume=tmp_path)
    assert bits(again) == bits(expected)
    assert stopped.vectors - before == 32 - 4 * fails
    before = stopped.vectors
    more = fs.diagonal(of, 40, estimator="xdiag", method="reverse", resume=tmp_path)
    assert (more.products, stopped.vectors - before) == (40, 8)  # the first ones are the same
    with pytest.raises(ValueError, match="is of other method, seed; use another folder"):
        fs.diagonal(of, 32, estimator="xdiag", seed=1, resume=tmp_path)


def test_a_budget_leaves_time_for_the_errors(clock, monkeypatch):
    """Products in no time, and 1 s for each vector that a block is made orthogonal to: the errors of n probes take n^2 / 4."""
    real, ends = run.orthonormalise, run.xdiag

    def slow(block, basis, **options):
        clock.now += len(basis) + len(block)
        return real(block, basis, **options)

    def errors(basis, *rest):
        clock.now += len(basis) ** 2 / 4
        return ends(basis, *rest)

    monkeypatch.setattr(run, "orthonormalise", slow)
    monkeypatch.setattr(run, "xdiag", errors)
    began = clock.now
    found = fs.diagonal(quadratic(low_rank(80, 60)), budget=200, method="reverse")
    assert found.meta["stop_reason"] == "deadline"
    assert 8 <= found.dimension < 40
    assert clock.now - began <= 200


def test_the_user_sees_no_trace(untouched, bn_net, bn_objective):
    with untouched(bn_net):
        fs.diagonal(bn_objective, 8)


# ---------------------------------------------------------------------- arguments and result


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"products": 3}, "products must be at least 4, got 3"),
        ({"products": 8.0}, "products must be an integer, got 8.0"),
        ({"estimator": "xtrace"}, "estimator must be 'xdiag', 'hutchinson', 'exact' or None, got 'xtrace'"),
        ({"estimator": "exact", "products": 10}, r"products must be at least D = 83 for estimator='exact', got 10; leave it out"),
        ({"operator": "fisher"}, "operator must be 'hessian' or 'ggn', got 'fisher'"),
        ({"memory": -1}, "memory must be a positive number of bytes, got -1"),
        ({"method": "magic"}, "method must be"),
        ({"budget": "1parsec"}, "budget must be a positive time"),
    ],
)
def test_bad_arguments_are_named(options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        fs.diagonal(objective(), **options)


def test_the_result_is_saved_read_back_printed_and_shown(tmp_path):
    states = []
    found = fs.diagonal(objective(params=["0.*", "2.weight"]), 24, name="net", step=7, progress=states.append)
    again = fs.load(found.save(tmp_path / "diagonal"))
    assert isinstance(again, fs.DiagonalResult)
    np.testing.assert_array_equal(again.values, found.values)
    assert (again.layers, again.parameters, again.step) == (found.layers, found.parameters, 7)
    assert list(again.tensors()) == ["0.weight", "0.bias", "2.weight"]
    assert [state.done for state in states] == [8, 16, 24]
    assert states[-1].fraction == 1
    assert found.norm**2 == pytest.approx(np.sum(found.values**2) - found.error**2)
    for words in ("trace", "||d||", "XDiag", "12 probes", "0.weight", "By parameter"):
        assert words in str(found)
    page = write_html(found, tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2
    assert "Sizes of the elements by rank" in page
    found.plot()


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["xdiag", "hutchinson"])
@pytest.mark.parametrize("products", [12, 32])
def test_coverage_on_a_network(products, estimator):
    model = network()
    expected = torch.split(flat_hessian(model)[0].diagonal(), [tensor.numel() for tensor in model.parameters()])
    sums, of, repeats = [float(part.sum()) for part in expected], objective(model), 120
    whole, held, inside, square, claimed = torch.cat(expected).numpy(), np.zeros(len(sums) + 1), 0.0, 0.0, 0.0
    for seed in range(repeats):
        found = fs.diagonal(of, products, estimator=estimator, seed=seed, method="graph")
        estimates = [*found.layers.values(), found.trace]
        held += [
            low <= value <= high for (low, high), value in zip((e.interval for e in estimates), [*sums, sum(sums)], strict=True)
        ]
        off = np.abs(found.values - whole)
        inside += np.mean(off <= quantile(found.probes) * found.stderr) / repeats
        square += np.sum(off**2)
        claimed += found.error**2
    assert (held / repeats >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / repeats)).all(), held / repeats
    assert inside > 0.9
    assert 0.3 < square / claimed < 1.4
