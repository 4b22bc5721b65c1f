"""The spectral probe on quadratics whose Hessians are known, and on networks with dense Hessians."""

import copy
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numerics.matrices import outlier_spectrum, planted
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.curvature.operator import CurvatureOperator
from fastscape.numerics.positive import useful
from fastscape.numerics.trace import directional_variance
from fastscape.probes.spectrum.probe import measured
from fastscape.probes.spectrum.run import SpectralRun
from fastscape.probes.spectrum.state import Goals
from fastscape.runs.budget import Budget


class Weights(nn.Module):
    """Parameters of a function of themselves, in two tensors."""

    def __init__(self, size, seed=0, scale=1.0):
        super().__init__()
        values = scale * torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.first, self.second = nn.Parameter(values[: size // 3].clone()), nn.Parameter(values[size // 3 :].clone())

    def forward(self):
        return torch.cat([self.first, self.second])


def quadratic(*matrices, weights=None, scale=1.0):
    """Objective w'A_b w / 2 with a batch for every matrix."""
    sizes = weights or [1] * len(matrices)
    model = Weights(len(matrices[0]), scale=scale)
    data = [(matrix, torch.tensor(float(size))) for matrix, size in zip(matrices, sizes, strict=True)]

    def loss(model, batch):
        values = model()
        return values @ batch[0] @ values / 2

    return fs.Objective(model, data, loss=loss, weight=lambda batch: float(batch[1]))


def network(size=6, hidden=7, classes=3, batches=(5, 5, 2)):
    """A float64 network of 73 parameters, with ragged batches."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(size, hidden), nn.Tanh(), nn.Linear(hidden, classes)).double()
    data = [(torch.randn(n, size, dtype=torch.float64), torch.randint(0, classes, (n,))) for n in batches]
    return fs.Objective(model, data, criterion=F.cross_entropy)


def dense(objective):
    """Hessian [D, D] by autograd."""
    parameters = dict(objective.model.named_parameters())
    shapes = [parameter.shape for parameter in parameters.values()]
    samples = [(inputs, targets) for inputs, targets in objective.batches]

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        named = {name: part.view(shape) for name, part, shape in zip(parameters, parts, shapes, strict=True)}
        total = sum(
            len(targets) * F.cross_entropy(torch.func.functional_call(objective.model, named, (inputs,)), targets)
            for inputs, targets in samples
        )
        return total / sum(len(targets) for _, targets in samples)

    flat = torch.cat([parameter.detach().flatten() for parameter in parameters.values()])
    return torch.autograd.functional.hessian(loss, flat).numpy(), torch.autograd.functional.jacobian(loss, flat).numpy()


def test_basis_of_the_whole_space_gives_the_exact_spectrum():
    objective = network()
    hessian, gradient = dense(objective)
    values = np.linalg.eigvalsh(hessian)
    found = fs.spectrum(objective, k=4)
    assert found.meta["stop_reason"] == "targets met"
    np.testing.assert_allclose(found.eigenvalues, values[::-1][:4], rtol=1e-10)
    np.testing.assert_allclose(found.smallest, values[:4], rtol=1e-8)
    assert found.trace.value == pytest.approx(values.sum(), rel=1e-10)
    assert found.trace.stderr < 1e-12
    assert found.trace_square.value == pytest.approx(np.sum(values**2), rel=1e-10)
    assert found.effective_rank.value == pytest.approx(values.sum() ** 2 / np.sum(values**2), rel=1e-10)
    assert found.mean_curvature.value == pytest.approx(values.mean(), rel=1e-10)
    assert found.gradient_norm == pytest.approx(np.linalg.norm(gradient), rel=1e-10)
    assert found.gradient_curvature == pytest.approx(gradient @ hessian @ gradient / (gradient @ gradient), rel=1e-9)
    diagonal, start = np.diag(hessian), 0
    for name, tensor in objective.base.items():
        assert found.layer_traces[name].value == pytest.approx(diagonal[start : start + tensor.numel()].sum(), rel=1e-9)
        start += tensor.numel()
    share = np.array([5, 5, 2]) / 12
    parts = [np.trace(dense(objective.on(index))[0]) for index in range(3)]
    expected = math.sqrt(1.5 * np.sum(share**2 * (np.array(parts) - share @ parts) ** 2))
    assert found.trace_data_stderr == pytest.approx(expected, rel=1e-8)
    np.testing.assert_allclose(found.vectors.T @ torch.from_numpy(hessian) @ found.vectors, np.diag(found.eigenvalues), atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_what_probes_leave_nothing_of_has_the_rounding_of_the_products_as_error(seed):
    """A basis of (nearly) the whole space: the spread of probes is 1e-9, and float32 products are off by 1e-7."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    inputs, targets = torch.randn(16, 4), torch.randint(0, 2, (16,))
    narrow = fs.Objective(model, [(inputs, targets)], criterion=F.cross_entropy)
    found = fs.spectrum(narrow, k=2)
    hessian = dense(fs.Objective(copy.deepcopy(model).double(), [(inputs.double(), targets)], criterion=F.cross_entropy))[0]
    trace, square = np.trace(hessian), np.sum(hessian**2)
    truths = [(found.trace, trace), (found.trace_square, square), (found.effective_rank, trace**2 / square)]
    start = 0
    for name, tensor in narrow.base.items():
        truths.append(
            (found.layer_traces[name], np.trace(hessian[start : start + tensor.numel(), start : start + tensor.numel()]))
        )
        start += tensor.numel()
    for estimate, truth in truths:
        assert estimate.interval[0] <= truth <= estimate.interval[1]
        assert estimate.interval[1] - estimate.interval[0] < 1e-4 * square**0.5 * max(1.0, square**0.5, trace**2 / square)


@pytest.mark.parametrize("trace", [None, 0.05])
def test_forms_that_differ_by_rounding_alone_may_have_no_variance(trace):
    """Signs as probes of a multiple of the identity: every form is the trace."""
    torch.manual_seed(0)
    model = nn.Linear(17, 1, bias=False)
    inputs = torch.rand(16, 1) * 0.1 + 1
    objective = fs.Objective(model, [inputs], loss=lambda net, batch: (0.7 * batch * net.weight.square().sum()).mean())
    found = fs.spectrum(objective, k=1, targets={"trace": trace}).directional_variance
    assert found.interval[0] == 0
    assert found.interval[1] < 1e-9


def test_gauss_newton_matrix_has_no_negative_mass():
    found = fs.spectrum(network(), k=3, operator="ggn")
    assert found.operator == "ggn"
    assert found.smallest[0] > -1e-12
    assert found.density.negative_mass.interval == (0, 0)


def test_partial_basis_gives_every_number_within_its_error():
    spectrum = outlier_spectrum(600)
    objective = quadratic(planted(spectrum))
    found = fs.spectrum(objective, k=5, nodes=40, targets={"trace": 0.05})
    assert found.converged.all()
    assert np.all(np.abs(found.eigenvalues - spectrum[::-1][:5]) <= found.residuals + 1e-12)
    assert found.residuals.max() <= 1e-3 * 40
    for estimate, truth in (
        (found.trace, spectrum.sum()),
        (found.trace_square, np.sum(spectrum**2)),
        (found.effective_rank, spectrum.sum() ** 2 / np.sum(spectrum**2)),
        (found.mean_curvature, spectrum.mean()),
        (found.density.negative_mass, np.mean(spectrum < 0)),
    ):
        assert estimate.interval[0] <= truth <= estimate.interval[1]
    half = (found.trace.interval[1] - found.trace.interval[0]) / 2
    assert half <= 0.05 * found.trace.value
    diagonal = np.diag(planted(spectrum).numpy())
    assert found.layer_traces["second"].value == pytest.approx(diagonal[200:].sum(), abs=4 * found.layer_traces["second"].stderr)
    assert sum(part.value for part in found.layer_traces.values()) == pytest.approx(found.trace.value, rel=0.02)
    assert found.products < 250
    assert found.meta["orthogonality_loss"] < 1e-12
    assert found.meta["asymmetry"] < 1e-12


class Dense:
    """A matrix with the interface of a curvature operator."""

    dtype, device, choice, nan_products = torch.float64, torch.device("cpu"), None, 0

    def __init__(self, matrix, weights=(1.0,)):
        self.matrix, self.shape, self.batch_weights, self.products = matrix, tuple(matrix.shape), weights, 0
        self.layers = {"first": slice(0, len(matrix) // 3), "second": slice(len(matrix) // 3, len(matrix))}

    def matmat(self, block):
        self.products += block.shape[1]
        return self.matrix @ block

    def forms(self, block):
        image = self.matmat(block)
        return image, (block * image).sum(0).numpy()[None].repeat(len(self.batch_weights), 0)


def run_of(operator, objective, *, nodes=16, budget=None, seed=0, k=2, products=400, trace=0.05, progress=None, warm=None):
    return SpectralRun(
        objective,
        operator,
        k=k,
        goals=Goals(1e-3, trace, nodes, products),
        block=4,
        seed=seed,
        budget=budget or Budget(None),
        capacity=80,
        warm=warm,
        name="test",
        progress=progress,
    )


@pytest.fixture(scope="module")
def bulky():
    """A spectrum with outliers over a wide bulk, its matrix and objective."""
    spectrum = np.concatenate([np.random.default_rng(3).uniform(-0.3, 1, 146), [30.0, 20.0, 12.0, 8.0]])
    return spectrum, planted(spectrum), quadratic(planted(spectrum))


def test_intervals_of_a_run_cover(bulky):
    spectrum, matrix, objective = bulky
    runs = [measured(run_of(Dense(matrix), objective, seed=seed), "hessian") for seed in range(200)]
    truths = {
        "trace": spectrum.sum(),
        "trace_square": np.sum(spectrum**2),
        "effective_rank": spectrum.sum() ** 2 / np.sum(spectrum**2),
    }
    for name, truth in truths.items():
        inside = [getattr(run, name).interval[0] <= truth <= getattr(run, name).interval[1] for run in runs]
        assert 0.90 <= np.mean(inside) <= 0.995, name
    layer = float(torch.diagonal(matrix)[:50].sum())
    inside = [run.layer_traces["first"].interval[0] <= layer <= run.layer_traces["first"].interval[1] for run in runs]
    assert 0.90 <= np.mean(inside) <= 0.995


# over 150 seeds: trace 0.91 and 0.92, tr(H^2) 0.89 and 0.93, rank 0.90 and 0.91, directional variance 0.99 and 0.99
@pytest.mark.parametrize(("nodes", "k", "trace", "tolerance"), [(4, 1, 0.05, 0.5), (20, 2, 0.05, 0.1)])
def test_intervals_of_a_run_that_stops_itself_cover_on_a_slow_decay(nodes, k, trace, tolerance):
    spectrum = 1 / np.arange(1, 121)
    matrix, objective, runs = planted(spectrum), quadratic(planted(spectrum)), []
    for seed in range(100):
        run = run_of(Dense(matrix), objective, seed=seed, k=k, nodes=nodes)
        run.goals = Goals(tolerance, trace, nodes, 400)
        runs.append(measured(run, "hessian"))
    square = np.sum(spectrum**2)
    truths = {
        "trace": spectrum.sum(),
        "trace_square": square,
        "effective_rank": spectrum.sum() ** 2 / square,
        "directional_variance": 2 * (square - float((torch.diagonal(matrix) ** 2).sum())),
    }
    for name, truth in truths.items():
        inside = [getattr(run, name).interval[0] <= truth <= getattr(run, name).interval[1] for run in runs]
        assert np.mean(inside) >= 0.86, name
    assert min(run.meta["probes"][1] for run in runs) >= 8


SLOW, SPIKED = 1 / np.arange(1, 81), np.concatenate([[10.0, 6.0], np.abs(np.random.default_rng(0).normal(0, 0.1, 78))])
FLAT = np.linspace(0.8, 1.2, 80)


@pytest.mark.parametrize("spectrum", [FLAT, SLOW, SPIKED], ids=["flat", "slow", "spiked"])
def test_a_run_without_a_target_has_eight_probes_of_what_the_basis_leaves_and_covers(spectrum):
    """Taking the smaller of two errors covered 81 % of the traces, and Student's t of four squares 81 to 95 %."""
    matrix, square = planted(spectrum), float(np.sum(spectrum**2))
    objective = quadratic(matrix)
    runs = [measured(run_of(Dense(matrix), objective, nodes=8, k=1, trace=None, seed=seed), "hessian") for seed in range(80)]
    assert {run.trace.n for run in runs} == {run.trace_square.n for run in runs} == {8}
    assert {run.meta["trace_estimator"] for run in runs} == {"deflated"}, "whatever the probes say"
    for name, truth in (("trace", spectrum.sum()), ("trace_square", square), ("effective_rank", spectrum.sum() ** 2 / square)):
        ends = [getattr(run, name).interval for run in runs if not getattr(run, name).withheld]
        assert len(ends) > 70
        assert np.mean([low <= truth <= high for low, high in ends]) >= 0.87, name  # below that, 95 % has a chance of 5e-3
    assert min(run.trace_square.interval[0] for run in runs) > 0


def test_intervals_that_say_nothing_are_withheld_with_what_would_do():
    mixed = np.concatenate([[10.0, 6.0], np.random.default_rng(0).normal(0.02, 0.05, 78)])
    objective = quadratic(planted(mixed))
    found = fs.spectrum(objective, 1, nodes=8, targets={"trace": None}, seed=3)
    assert np.isnan(found.density.low).all(), "no band below 20 nodes"
    share = found.density.negative_mass
    assert share.withheld.startswith("between ")
    assert "below zero" in found.summary()
    assert "interval n/a (between" in found.summary()
    few = useful(directional_variance(np.array([1.0, 30.0, 2.0, 3.0]), 15.0), "probe", 2)
    assert few.withheld.startswith("4 probes; about ")
    content = found.to_dict()["density"]["negative_mass"]
    assert content["interval"] == [None, None]
    assert content["shown"] == f"{share.value:.3g}, interval n/a ({share.withheld})"
    fine = fs.spectrum(objective, 1, nodes=40, targets={"trace": None}, seed=3)
    assert np.isfinite(fine.density.low).all()


def test_same_seed_gives_the_same_probes_at_every_checkpoint(bulky):
    _, matrix, objective = bulky
    once, twice = (measured(run_of(Dense(factor * matrix), objective), "hessian") for factor in (1.0, 2.0))
    count = min(len(once.meta["forms"]), len(twice.meta["forms"]))
    np.testing.assert_allclose(2 * np.array(once.meta["forms"][:count]), twice.meta["forms"][:count], rtol=1e-8)
    other = measured(run_of(Dense(matrix), objective, seed=1), "hessian")
    assert abs(other.meta["forms"][0] - once.meta["forms"][0]) > 1e-3


def test_seed_decides_everything(bulky):
    _, _, objective = bulky
    first, second = (fs.spectrum(objective, k=3, nodes=20, seed=7) for _ in range(2))
    np.testing.assert_array_equal(first.eigenvalues, second.eigenvalues)
    assert first.trace == second.trace


@pytest.mark.parametrize("size", [60, 300])
def test_basis_is_deepened_where_that_takes_fewer_products_than_probes(size):
    spectrum = np.sign(np.arange(size) % 2 - 0.5) * np.geomspace(100, 0.01, size) + 0.01
    found = fs.spectrum(quadratic(planted(spectrum)), k=1, nodes=8, targets={"trace": 0.3})
    assert found.meta["stop_reason"] == "targets met"
    assert found.products < 220
    assert found.meta["dimension"] > 16
    assert found.trace.value == pytest.approx(spectrum.sum(), abs=max(4 * found.trace.stderr, 1e-9))


def test_deadline_gives_what_is_known(bulky):
    spectrum, matrix, objective = bulky
    now = SimpleNamespace(seconds=0.0)

    class Slow(Dense):
        def matmat(self, block):
            now.seconds += 1.0
            return super().matmat(block)

    def after(seconds):
        now.seconds = 0.0
        budget = Budget(seconds, clock=lambda: now.seconds)
        return measured(run_of(Slow(matrix), objective, nodes=40, budget=budget, k=4), "hessian")

    short, long = after(4), after(1000)
    assert (short.meta["stop_reason"], long.meta["stop_reason"]) == ("deadline", "targets met")
    assert short.products <= 16
    assert short.meta["probes"] == [3, 8]
    assert short.trace.stderr > 2 * long.trace.stderr
    tight = after(1.5)
    assert (tight.meta["stop_reason"], tight.products, tight.trace.n) == ("deadline", 4, 3)
    assert tight.meta["trace_estimator"] == "plain"
    assert short.residuals[0] > long.residuals[0]
    assert short.density is not None
    np.testing.assert_allclose(long.eigenvalues, spectrum[np.argsort(-spectrum)][:4], rtol=1e-4)


@pytest.mark.parametrize("at", [1, 3, 12])
def test_interrupt_and_failure_give_what_is_known(bulky, at):
    _, matrix, objective = bulky

    class Broken(Dense):
        def __init__(self, matrix, error):
            super().__init__(matrix)
            self.error, self.calls = error, 0

        def matmat(self, block):
            self.calls += 1
            if self.calls > at:
                raise self.error
            return super().matmat(block)

    result = measured(run_of(Broken(matrix, KeyboardInterrupt()), objective, trace=1e-6, nodes=32), "hessian")
    assert result.meta["stop_reason"] == "interrupted"
    assert result.products == 4 * at
    assert math.isfinite(result.trace.value)
    with pytest.raises(fs.SpectrumError, match=f"failed after {4 * at} products: RuntimeError: out of memory") as caught:
        measured(run_of(Broken(matrix, RuntimeError("out of memory")), objective, trace=1e-6, nodes=32), "hessian")
    assert caught.value.partial.meta["stop_reason"] == "failed: RuntimeError"
    np.testing.assert_array_equal(caught.value.partial.eigenvalues, result.eigenvalues)


def test_interrupt_before_the_first_product_gives_an_empty_result(bulky):
    class Broken(Dense):
        def matmat(self, block):
            raise KeyboardInterrupt

    result = measured(run_of(Broken(bulky[1]), bulky[2]), "hessian")
    assert len(result.eigenvalues) == 0
    assert math.isnan(result.trace.value)
    assert result.density is None
    assert str(result)


@pytest.mark.parametrize("at", [1, 4])
def test_nan_products_are_counted_and_end_the_run(bulky, at):
    _, matrix, objective = bulky

    class Overflowing(Dense):
        calls = 0

        def matmat(self, block):
            self.calls += 1
            image = super().matmat(block)
            if self.calls >= at:
                image[0, 1] = math.nan
            return image

    result = measured(run_of(Overflowing(matrix), objective), "hessian")
    assert result.meta["stop_reason"] == "nan products"
    assert result.meta["nan_products"] == 1
    assert len(result.eigenvalues) == (0 if at == 1 else 2)
    assert math.isnan(result.trace.value) == (at == 1)


def test_loss_of_nan_gives_a_result():
    objective = quadratic(planted(outlier_spectrum(60)), scale=math.nan)
    result = fs.spectrum(objective, k=2, nodes=8)
    assert math.isnan(result.loss)
    assert math.isnan(result.gradient_norm)
    assert any("gradient is not finite" in note for note in result.notes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("block", [2, 4])
def test_linear_regression_has_a_copy_of_every_eigenvalue_for_each_output(dtype, block):
    torch.manual_seed(0)
    data = [(torch.randn(64, 4, dtype=dtype), torch.randn(64, 30, dtype=dtype))]
    objective = fs.Objective(nn.Linear(4, 30).to(dtype), data, criterion=F.mse_loss)
    result = fs.spectrum(objective, k=5, block=block)
    moments = torch.cat([data[0][0], torch.ones(64, 1, dtype=dtype)], dim=1).double()
    exact = float(torch.linalg.eigvalsh(2 * moments.T @ moments / (64 * 30)).max())
    np.testing.assert_allclose(result.eigenvalues, np.full(5, exact), rtol=1e-5)
    assert result.converged.all()


def test_a_run_that_ends_before_copies_are_sought_says_so():
    matrix = torch.kron(planted(np.random.default_rng(0).exponential(size=60)), torch.eye(8, dtype=torch.float64))
    run = run_of(Dense(matrix), quadratic(matrix), nodes=4, k=6, products=150)
    result = measured(run, "hessian")
    if not result.converged.all():
        assert "repeated" in " ".join(result.notes)
    else:
        np.testing.assert_allclose(result.eigenvalues, np.full(6, result.lambda_max), rtol=1e-4)


def test_zero_gradient_is_noted_and_its_direction_left_out():
    spectrum = outlier_spectrum(90)
    found = fs.spectrum(quadratic(planted(spectrum), scale=0.0), k=3, nodes=20)
    assert (found.gradient_norm, math.isnan(found.gradient_curvature)) == (0.0, True)
    assert any("gradient is zero" in note for note in found.notes)
    np.testing.assert_allclose(found.eigenvalues, spectrum[::-1][:3], rtol=1e-5)


def test_linear_loss_has_no_curvature():
    found = fs.spectrum(quadratic(torch.zeros(50, 50, dtype=torch.float64)), k=2, nodes=10)
    np.testing.assert_array_equal(found.eigenvalues, [0, 0])
    assert found.trace.value == 0
    assert any("all products are zero" in note for note in found.notes)
    assert not any("cancel" in note for note in found.notes)


def test_warm_start_takes_fewer_products():
    spectrum = np.sort(np.random.default_rng(0).standard_normal(500) ** 3)
    matrix, drift = planted(spectrum), planted(np.random.default_rng(1).standard_normal(500), seed=9)
    first = fs.spectrum(quadratic(matrix), k=5, nodes=8)
    later = quadratic(matrix + 1e-3 * drift)
    cold, warm = (fs.spectrum(later, k=5, nodes=8, targets={"trace": None}, warm=start) for start in (None, first))
    assert warm.products < 0.6 * cold.products
    np.testing.assert_allclose(warm.eigenvalues, cold.eigenvalues, rtol=1e-4)
    assert warm.trace.value == pytest.approx(cold.trace.value, abs=3 * (warm.trace.stderr + cold.trace.stderr))


def test_memory_cap_restarts_and_stays_right():
    spectrum = np.sort(np.random.default_rng(0).standard_normal(400) ** 3)
    mirror = torch.from_numpy(np.random.default_rng(1).standard_normal(400) / 20)
    mirror /= mirror.norm()

    def loss(model, batch):
        values = model() - 2 * mirror * (mirror @ model())
        return (batch * values * values).sum() / 2

    objective = fs.Objective(Weights(400), [torch.from_numpy(spectrum)], loss=loss, weight=lambda batch: 1.0)
    with pytest.raises(ValueError, match="a basis of 18 vectors .* bytes are enough, got 54400") as refused:
        fs.spectrum(objective, k=3, memory=17 * 400 * 8)
    memory = int(re.search(r"(\d+) bytes", str(refused.value))[1])
    found = fs.spectrum(objective, k=3, nodes=60, memory=memory, method="graph", targets={"trace": None})
    assert found.meta["restarts"] > 0
    np.testing.assert_allclose(found.eigenvalues, spectrum[::-1][:3], rtol=1e-4)
    turn = np.eye(400) - 2 * np.outer(mirror, mirror)
    diagonal = np.diag(turn @ np.diag(spectrum) @ turn)
    low, high = found.layer_traces["first"].interval
    assert low <= diagonal[:133].sum() <= high


def test_data_error_is_that_of_the_batches():
    common = planted(outlier_spectrum(120))
    shifts = np.random.default_rng(0).standard_normal(12)
    eye = torch.eye(120, dtype=torch.float64)
    objective = quadratic(*(common + shift * eye for shift in shifts))
    found = fs.spectrum(objective, k=3, nodes=30)
    assert found.trace_data_stderr == pytest.approx(120 * np.std(shifts, ddof=1) / math.sqrt(12), rel=0.05)
    assert fs.spectrum(quadratic(common), k=3, nodes=30).trace_data_stderr is None


def test_asymmetric_products_are_an_error_that_names_causes(bulky):
    _, matrix, objective = bulky
    skew = torch.from_numpy(np.random.default_rng(0).standard_normal((150, 150)))
    with pytest.raises(fs.AsymmetricProductError, match="symmetric matrix.*dropout"):
        measured(run_of(Dense(matrix + (skew - skew.T)), objective), "hessian")


def test_stability_is_that_of_the_optimizer():
    objective = quadratic(planted(outlier_spectrum(90)))
    optimizer = torch.optim.SGD(objective.model.parameters(), lr=0.03)
    found = fs.spectrum(objective, k=3, nodes=20, optimizer=optimizer).stability
    assert found.critical == pytest.approx(2 / 0.03)
    assert found.ratio == pytest.approx(40 * 0.03 / 2, rel=1e-5)
    alone = fs.edge_of_stability(objective, optimizer)
    assert found.ratio == pytest.approx(alone.ratio, rel=1e-3)


def test_preconditioned_stability_agrees_with_the_dense_one():
    objective = network()
    optimizer = torch.optim.Adam(objective.model.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(objective.model(objective.batches[0][0]), objective.batches[0][1]).backward()
        optimizer.step()
    found = fs.spectrum(objective, k=3, optimizer=optimizer).stability
    alone = fs.edge_of_stability(objective, optimizer)
    assert found.preconditioned == pytest.approx(alone.preconditioned, rel=1e-3)
    assert found.batch_sharpness.value == pytest.approx(alone.batch_sharpness.value, rel=1e-6)


def test_half_precision_models_are_probed_in_float32(tanh_net, digits):
    reference = fs.spectrum(fs.Objective(tanh_net, digits, criterion=F.cross_entropy), k=2, nodes=12)
    model = copy.deepcopy(tanh_net).bfloat16()
    found = fs.spectrum(fs.Objective(model, digits, criterion=F.cross_entropy), k=2, nodes=12)
    np.testing.assert_allclose(found.eigenvalues, reference.eigenvalues, rtol=0.05)


def test_probe_leaves_no_trace(bn_net, untouched):
    data = [(torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6))]
    objective = fs.Objective(bn_net, data, criterion=F.cross_entropy)
    with untouched(bn_net):
        fs.spectrum(objective, k=2, nodes=12, targets={"trace": 0.5})


def test_result_survives_a_file(tmp_path, bulky):
    found = fs.spectrum(bulky[2], k=3, nodes=20)
    loaded = fs.load(found.save(tmp_path / "spectrum.npz"))
    np.testing.assert_array_equal(loaded.eigenvalues, found.eigenvalues)
    assert loaded.trace == found.trace
    assert loaded.meta["stop_reason"] == "targets met"
    assert "lambda_max" in str(found)


def test_progress_tells_stage_and_counts(bulky):
    seen = []
    found = fs.spectrum(bulky[2], k=3, nodes=20, progress=seen.append)
    assert [state.products for state in seen] == sorted(state.products for state in seen)
    assert seen[-1].products == found.products
    assert {state.stage for state in seen} == {"eigenvalues", "trace"}
    assert seen[-1].lambda_max == pytest.approx(found.lambda_max)


def test_product_limit_ends_a_run_that_cannot_converge(bulky):
    _, matrix, objective = bulky
    found = measured(run_of(Dense(matrix), objective, trace=1e-9, products=40), "hessian")
    assert found.meta["stop_reason"] == "product limit"
    assert found.products <= 44  # and a block for the trace, which would have no interval otherwise


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"k": 61}, ValueError, "k must be at most D = 60, got 61"),
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"operator": "fisher"}, ValueError, "operator must be 'hessian' or 'ggn', got 'fisher'"),
        ({"targets": {"rank": 0.1}}, ValueError, "targets must name 'eigenvalues' or 'trace', got 'rank'"),
        ({"targets": {"trace": 0.0}}, ValueError, r"targets\['trace'\] must lie in \(0, 1\), got 0.0"),
        ({"targets": {"eigenvalues": None}}, ValueError, r"targets\['eigenvalues'\] must lie"),
        ({"block": 1}, ValueError, "block must be at least 2"),
        ({"nodes": 0}, ValueError, "nodes must be at least 1"),
        ({"seed": -1}, ValueError, "seed"),
        ({"memory": 0}, ValueError, "memory"),
        ({"budget": "soon"}, ValueError, "budget must be a positive time"),
        ({"method": "fast"}, ValueError, "method must be one of"),
        ({"warm": 3}, TypeError, "warm must be an earlier result"),
        ({"operator": "ggn"}, ValueError, "objective must have criterion="),
    ],
)
def test_bad_settings_name_the_argument(settings, error, words):
    objective = quadratic(planted(outlier_spectrum(60)))
    with pytest.raises(error, match=words):
        fs.spectrum(objective, **settings)


def test_warm_results_must_fit(tmp_path):
    first = fs.spectrum(quadratic(planted(outlier_spectrum(60))), k=2, nodes=8)
    with pytest.raises(ValueError, match="warm must have the objective's 90 parameters, got 60"):
        fs.spectrum(quadratic(planted(outlier_spectrum(90))), k=2, warm=first)
    loaded = fs.load(first.save(tmp_path / "first.npz"))
    with pytest.raises(ValueError, match="warm must hold vectors"):
        fs.spectrum(quadratic(planted(outlier_spectrum(60))), k=2, warm=loaded)


def test_a_budget_that_cannot_hold_a_block_names_one_that_can(bulky, monkeypatch):
    slow = SimpleNamespace(gradients=2.0, gradient_seconds=10.0)
    monkeypatch.setattr(CurvatureOperator, "prepare", lambda self, count: slow)
    with pytest.raises(ValueError, match="budget must fit one block of 4 products, got 5 s; it takes about 80 s"):
        fs.spectrum(bulky[2], k=2, budget=5)


def test_a_spectrum_is_the_same_in_inference_mode(tanh_objective):
    plain = fs.spectrum(tanh_objective, k=2, nodes=20)
    with torch.inference_mode():
        found = fs.spectrum(tanh_objective, k=2, nodes=20)
    assert np.allclose(found.eigenvalues, plain.eigenvalues, rtol=1e-4)
