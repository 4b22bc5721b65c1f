"""Gradient noise and temperature against linear regression in closed form, and what a sample is."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from timed import Timed
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.probes.temperature.noise_curvature import NoiseCurvature
from fastscape.reports.html import write_html

SIZE = 6


def regression(samples, seed=0, splits=None):
    """Inputs, targets, model and objective of L = mean (x'w - y)^2."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(samples, SIZE)) * np.linspace(0.5, 2, SIZE)
    targets = inputs @ np.linspace(-1, 1, SIZE) + 0.5 * rng.normal(size=samples)
    model = nn.Linear(SIZE, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-0.9, 1.1, SIZE, dtype=torch.float64)[None])
    tensors = torch.from_numpy(inputs), torch.from_numpy(targets)[:, None]
    splits = splits or [samples]
    data = list(zip(*(torch.split(tensor, splits) for tensor in tensors), strict=True))
    return inputs, targets, model, fs.Objective(model, data, criterion=F.mse_loss)


def by_hand(inputs, targets, model):
    """Per-sample gradients 2 (x'w - y) x."""
    weights = model.weight.detach().numpy()[0]
    return 2 * (inputs @ weights - targets)[:, None] * inputs


@pytest.mark.parametrize("splits", [None, [20, 20, 7]])
def test_linear_regression_in_closed_form(splits):
    inputs, targets, model, objective = regression(47, splits=splits)
    gradients = by_hand(inputs, targets, model)
    covariance, mean = np.cov(gradients.T), gradients.mean(axis=0)
    hessian = 2 * inputs.T @ inputs / 47
    result = fs.temperature(objective, batch_size=8, learning_rate=0.05, population=47, products=64)
    factor = (1 - 8 / 47) / 8
    assert result.trace.value == pytest.approx(np.trace(covariance), rel=1e-10)
    assert result.gradient_norm_squared.value == pytest.approx(mean @ mean, rel=1e-10)
    assert result.temperature.value == pytest.approx(0.05 / 2 * factor * np.trace(covariance) / SIZE, rel=1e-10)
    assert result.gibbs == pytest.approx(1 / (2 * result.temperature.value))
    assert result.noise_scale.value == pytest.approx(np.trace(covariance) / (mean @ mean), rel=1e-10)
    assert result.noise_scale_h.value == pytest.approx(np.trace(hessian @ covariance) / (mean @ hessian @ mean), rel=1e-10)
    low, high = result.temperature_h.interval
    assert low <= 0.05 / 2 * factor * np.trace(hessian @ covariance) / np.trace(hessian) <= high
    np.testing.assert_allclose(result.norms, np.linalg.norm(gradients, axis=1), rtol=1e-10)
    assert sum(result.layer_traces.values()) == pytest.approx(result.trace.value)


def test_the_trace_of_a_spectrum_is_used_for_t_h():
    inputs, targets, model, objective = regression(47)
    spectrum = fs.spectrum(objective, k=2)
    covariance, hessian = np.cov(by_hand(inputs, targets, model).T), 2 * inputs.T @ inputs / 47
    result = fs.temperature(objective, batch_size=8, learning_rate=0.05, population=47, products=64, spectrum=spectrum)
    expected = 0.05 / 2 * (1 - 8 / 47) / 8 * np.trace(hessian @ covariance) / np.trace(hessian)
    assert result.temperature_h.value == pytest.approx(expected, rel=1e-6)
    with pytest.raises(ValueError, match=f"spectrum must be of the objective's {SIZE} parameters"):
        fs.temperature(objective, batch_size=8, learning_rate=0.05, spectrum=fs.spectrum(objective_of_another(), k=1, nodes=4))


def objective_of_another():
    return fs.Objective(nn.Linear(2, 1), [(torch.ones(3, 2), torch.ones(3, 1))], criterion=F.mse_loss)


def test_intervals_of_subsamples_cover_the_whole_population():
    inputs, targets, model, _ = regression(2000, seed=1)
    gradients = by_hand(inputs, targets, model)
    covariance, mean, hessian = np.cov(gradients.T), gradients.mean(axis=0), 2 * inputs.T @ inputs / 2000
    truths = {
        "temperature": 0.1 / 2 * (1 - 16 / 2000) / 16 * np.trace(covariance) / SIZE,
        "gradient_norm_squared": mean @ mean,
        "noise_scale": np.trace(covariance) / (mean @ mean),
        "noise_scale_h": np.trace(hessian @ covariance) / (mean @ hessian @ mean),
    }
    covered = dict.fromkeys(truths, 0)
    for seed in range(60):
        rows = np.random.default_rng(seed).choice(2000, 120, replace=False)
        data = [(torch.from_numpy(inputs[rows]), torch.from_numpy(targets[rows])[:, None])]
        objective = fs.Objective(model, data, criterion=F.mse_loss)
        result = fs.temperature(objective, batch_size=16, learning_rate=0.1, population=2000, products=20, seed=seed)
        for name, truth in truths.items():
            low, high = getattr(result, name).interval
            covered[name] += low <= truth <= high
    assert min(covered.values()) >= 0.85 * 60, covered  # 51 of 60: below that, 95 % has a chance of 1e-3


def test_draws_by_squared_deviation_estimate_the_form_of_all_samples(trained_mlp, digits):
    objective = fs.Objective(trained_mlp, digits, criterion=F.cross_entropy)
    exact, drawn = (
        fs.temperature(objective, batch_size=16, learning_rate=0.1, population=256, products=products).noise_scale_h
        for products in (256, 24)
    )
    assert exact.stderr == pytest.approx(0, abs=1e-6 * exact.value)
    assert drawn.interval[0] <= exact.value <= drawn.interval[1]
    assert drawn.stderr < 0.25 * exact.value, "uniform draws vary by more than the value"


@pytest.mark.parametrize("method", ["per-sample", "two-batch"])
@pytest.mark.parametrize("seed", range(2))
def test_all_samples_of_a_population_have_the_rounding_of_their_gradients_as_error(method, seed):
    """Nothing is left to sampling, and float32 gradients are off by 1e-8 and more."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    inputs, targets = torch.randn(12, 4), torch.randint(0, 3, (12,))
    narrow, wide = (
        fs.temperature(
            fs.Objective(model, [(data, targets)], criterion=F.cross_entropy),
            batch_size=4,
            learning_rate=0.1,
            population=12,
            method=method,
        )
        for model, data in ((net, inputs), (copy.deepcopy(net).double(), inputs.double()))
    )
    for name in ("trace", "gradient_norm_squared", "noise_scale", "noise_scale_h", "temperature"):
        found, truth = getattr(narrow, name), getattr(wide, name).value
        assert found.interval[0] <= truth <= found.interval[1]
        assert found.interval[1] - found.interval[0] < 1e-5 * truth


def test_the_curvature_along_the_gradient_is_unbiased_over_all_samples_of_a_population():
    rng = np.random.default_rng(0)
    population, root = rng.normal(size=(7, 3)) + 0.3, rng.normal(size=(3, 3))
    hessian, found = root + root.T, []
    for part in itertools.combinations(range(7), 4):
        gradients = population[list(part)]
        mean, steps = gradients.mean(axis=0), gradients - gradients.mean(axis=0)
        curvature = NoiseCurvature(
            forms=np.einsum("ij,jk,ik->i", steps, hessian, steps)[:, None],
            slopes=steps @ hessian @ mean,
            chances=None,
            trace=fs.Estimate(1, 0, (1, 1), 9),
            gradient=mean @ hessian @ mean,
            units=4,
            products=0,
        )
        found.append(curvature.gradient_form(4, 1 - 4 / 7).value)
    mean = population.mean(axis=0)
    assert np.mean(found) == pytest.approx(mean @ hessian @ mean, rel=1e-10)


def test_groups_agree_with_samples_within_their_intervals():
    _, _, _, objective = regression(640, seed=3)
    samples = fs.temperature(objective, batch_size=8, learning_rate=0.1, method="per-sample", products=0)
    groups = fs.temperature(objective, batch_size=8, learning_rate=0.1, method="two-batch", products=0)
    assert groups.units == 32
    assert groups.trace.interval[0] <= samples.trace.value <= groups.trace.interval[1]
    assert groups.gradient_norm_squared.value == pytest.approx(samples.gradient_norm_squared.value, rel=0.2)


# ---------------------------------------------------------------------- learning rates


def heat(objective, **options):
    return fs.temperature(objective, batch_size=4, products=0, **options).temperature


def test_momentum_and_the_rates_of_groups_enter_the_temperature(digits):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    objective = fs.Objective(net, [(digits[0][0][:40], digits[0][1][:40])], criterion=F.cross_entropy)
    plain = heat(objective, learning_rate=0.1)
    assert heat(objective, learning_rate=0.1, momentum=0.9).value == pytest.approx(10 * plain.value)
    nesterov = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    assert heat(objective, optimizer=nesterov).value == pytest.approx(10 * plain.value)
    assert heat(objective, optimizer=torch.optim.SGD(net.parameters(), lr=0.1)).value == pytest.approx(plain.value)
    groups = torch.optim.SGD([{"params": net[1].weight, "lr": 0.3}, {"params": net[1].bias, "lr": 0.2}], lr=0.1)
    result = fs.temperature(objective, batch_size=4, products=0, optimizer=groups)
    expected = (0.3 * result.layer_traces["1.weight"] + 0.2 * result.layer_traces["1.bias"]) / 4 / (2 * objective.size)
    assert result.temperature.value == pytest.approx(expected)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_optimizers_that_precondition_have_no_temperature_but_a_noise_scale(tanh_net, digits, kind):
    objective = fs.Objective(tanh_net, digits, criterion=F.cross_entropy)
    result = fs.temperature(objective, batch_size=4, products=3, optimizer=kind(tanh_net.parameters(), lr=0.1))
    assert result.temperature is None
    assert result.temperature_h is None
    assert result.gibbs is None
    assert any(f"no temperature for {kind.__name__}" in note for note in result.notes)
    assert result.noise_scale.value > 0
    assert result.noise_scale_h is not None
    assert "n/a" in str(result)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 300, "population": 299}, "population must be at least batch_size 300, got 299"),
        ({"population": 255}, "population must be at least the 256 samples of the data, got 255"),
        ({"learning_rate": None}, r"pass learning_rate= \(and momentum=\) or optimizer=, got neither"),
        ({"learning_rate": -1.0}, "learning_rate must be finite and not negative, got -1.0"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"method": "both"}, "method must be 'per-sample', 'two-batch' or None"),
        ({"products": 2}, "products must be 0 or at least 3, got 2"),
        ({"memory": -1}, "memory must be a positive number of bytes"),
    ],
)
def test_bad_settings_are_named(tanh_objective, options, message):
    with pytest.raises(ValueError, match=message):
        fs.temperature(tanh_objective, **({"batch_size": 8, "learning_rate": 0.1} | options))


def test_an_optimizer_of_another_model_or_beside_a_rate_is_refused(tanh_objective):
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer must hold the parameters"):
        fs.temperature(tanh_objective, batch_size=8, optimizer=other)
    with pytest.raises(ValueError, match="got both"):
        fs.temperature(tanh_objective, batch_size=8, optimizer=other, learning_rate=0.1)
    with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer"):
        fs.temperature(tanh_objective, batch_size=8, optimizer=3)


def test_two_samples_are_too_few(tanh_net, digits):
    objective = fs.Objective(tanh_net, [(digits[0][0][:2], digits[0][1][:2])], criterion=F.cross_entropy)
    with pytest.raises(ValueError, match="data must hold at least 3 samples"):
        fs.temperature(objective, batch_size=1, learning_rate=0.1)


# ---------------------------------------------------------------------- what goes wrong


def test_gradients_that_are_not_finite_are_kept_and_flagged():
    inputs = torch.randn(6, 2)
    inputs[3] = math.inf
    objective = fs.Objective(nn.Linear(2, 1), [(inputs, torch.ones(6, 1))], criterion=F.mse_loss)
    result = fs.temperature(objective, batch_size=2, learning_rate=0.1)
    assert math.isnan(result.trace.value)
    assert any("with NaN or inf" in flag for flag in result.flags)
    assert "NaN" in result.verdict()
    str(result)


@pytest.mark.parametrize("after", [9, 14])
def test_an_interrupt_gives_what_is_known(digits, after):
    torch.manual_seed(0)
    net, calls = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), []
    data = [(digits[0][0][i : i + 4], digits[0][1][i : i + 4]) for i in range(0, 64, 4)]

    def loss(model, batch):
        calls.append(1)
        if len(calls) > 2 * 16 + 2 + 16 + after:  # the gate, then the mean over the groups
            raise KeyboardInterrupt
        return F.cross_entropy(model(batch[0]), batch[1])

    objective = fs.Objective(net, data, loss=loss)
    assert objective.remarks == ()  # has evaluated it once
    calls.clear()
    result = fs.temperature(objective, batch_size=4, learning_rate=0.1, method="two-batch", products=0)
    assert result.meta["stop_reason"] == "interrupted"
    assert result.units == after
    assert any("interrupted" in flag for flag in result.flags)
    str(result)


def test_a_budget_ends_with_what_is_known(trained_mlp, digits):
    objective = fs.Objective(Timed(trained_mlp), digits, criterion=F.cross_entropy)
    result = fs.temperature(objective, batch_size=4, learning_rate=0.1, budget=17)
    assert result.meta["stop_reason"] == "deadline"
    assert 3 <= result.units < 256
    assert result.temperature_h is None
    assert any(f"the first {result.units} of 256 units" in flag for flag in result.flags)
    assert result.trace.value > 0


def test_a_gradient_within_its_noise_leaves_a_lower_bound_of_the_noise_scale():
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(40, SIZE, generator=generator), torch.randn(40, 1, generator=generator)
    solution = torch.linalg.lstsq(inputs, targets).solution
    model = nn.Linear(SIZE, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(solution.T)
    result = fs.temperature(
        fs.Objective(model, [(inputs, targets)], criterion=F.mse_loss), batch_size=4, learning_rate=0.1, products=0
    )
    low, high = result.noise_scale.interval
    assert high == math.inf
    assert f"noise scale of at least {low:.3g} samples" in result.verdict().lower()
    rows = {quantity.label: quantity.value for quantity in result.section().quantities}
    assert rows["noise scale"] == f">= {low:.3g}"
    assert result.to_dict()["noise_scale"]["shown"] == f">= {low:.3g}"


def test_the_noise_of_few_samples_is_shown_without_an_interval():
    *_, objective = regression(5)
    result = fs.temperature(objective, batch_size=2, learning_rate=0.1, products=0)
    assert result.trace.withheld == "5 units; at least 8"
    assert "interval n/a (5 units; at least 8)" in result.summary()


def test_samples_more_balanced_than_independent_draws_are_flagged():
    inputs = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    objective = fs.Objective(
        nn.Linear(3, 1, bias=False), [torch.cat([inputs, -inputs])], loss=lambda model, batch: model(batch).mean()
    )
    result = fs.temperature(objective, batch_size=4, learning_rate=0.1, products=0)
    assert result.gradient_norm_squared.value < 0
    assert any("more balanced than independent draws" in flag for flag in result.flags)
    assert result.noise_scale.value == math.inf
    assert all(map(math.isnan, result.noise_scale.interval))
    shown = {quantity.label: quantity.value for quantity in result.section().quantities}["noise scale"]
    assert shown == f"{math.inf}, interval n/a ({result.noise_scale.withheld})"
    assert "||g||^2 is below zero" in shown


def test_the_user_sees_no_trace(untouched, bn_net, bn_objective):
    with untouched(bn_net):
        fs.temperature(bn_objective, batch_size=4, learning_rate=0.1, products=4)
    optimizer = torch.optim.SGD(bn_net.parameters(), lr=0.1, momentum=0.9)
    with untouched(bn_net):
        fs.temperature(bn_objective, batch_size=4, optimizer=optimizer, method="two-batch", products=0)
    assert not optimizer.state


# ---------------------------------------------------------------------- the result


@pytest.fixture(scope="module")
def shown(trained_mlp, digits):
    objective = fs.Objective(trained_mlp, digits, criterion=F.cross_entropy)
    return fs.temperature(objective, batch_size=16, learning_rate=0.1, momentum=0.9, products=6, step=9)


def test_the_result_is_saved_and_read_back(shown, tmp_path):
    again = fs.load(shown.save(tmp_path / "noise"))
    assert again.temperature == shown.temperature
    assert again.noise_scale_h == shown.noise_scale_h
    assert math.isinf(again.population)
    np.testing.assert_array_equal(again.norms, shown.norms)


def test_tables_and_pages_name_every_number(shown, tmp_path):
    for words in ("tr Sigma_1", "||g||^2", "noise scale", "temperature T", "temperature T_H", "Gibbs factor"):
        assert words in str(shown)
    page = write_html(shown, tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2
    assert "leading dimension" in page


def test_a_trained_network_is_dominated_by_noise_at_small_batches(shown):
    assert shown.noise_scale.value > 16
    assert "noise dominates" in shown.verdict()
    assert shown.temperature_h.value > 100 * shown.temperature.value, "the noise lies in the stiff directions"


def test_batches_that_cannot_be_cut_are_taken_whole_and_told():
    """As packed sequences, whose leading dimension is no sample."""

    class Whole(nn.Linear):
        def forward(self, x):
            if len(x) < 4:
                raise IndexError("start (0) + length (4) exceeds dimension size (1)")
            return super().forward(x)

    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(4, 5, generator=generator), torch.randint(0, 3, (4,), generator=generator)) for _ in range(5)]
    objective = fs.Objective(Whole(5, 3), data, criterion=F.cross_entropy)
    result = fs.temperature(objective, batch_size=4, learning_rate=0.1, products=0)
    assert any("from gradients of whole batches: the model does not run on single entries" in note for note in result.notes)
    with pytest.raises(ValueError, match="method must be 'two-batch' for this loss, got 'per-sample'.*IndexError"):
        fs.temperature(objective, batch_size=4, learning_rate=0.1, method="per-sample")
