"""The edge of stability against dense Hessians, and the optimizer's state beside checkpoints."""

import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.cli import main
from fastscape.probes.spectrum import stability as probe
from fastscape.probes.spectrum.stability import edge_of_stability
from fastscape.runs.checkpoints import checkpoints, read_optimizer


class Dense:
    """The Hessian of an objective as a matrix, with the products of the operator."""

    def __init__(self, objective, memory=None, method=None, distributed=False):
        self.names, self.dtype, self.device = objective.names, objective.dtype, objective.device
        self.matrix, self.shape, self.products = dense(objective), (objective.size, objective.size), 0

    def matmat(self, vectors):
        self.products += vectors.shape[1]
        return self.matrix @ vectors


def dense(objective):
    """Hessian ``[D, D]`` of a sample-weighted mean, by torch."""
    base = list(objective.base.values())
    sizes = [tensor.numel() for tensor in base]

    def loss(flat):
        parts = [part.view_as(tensor) for part, tensor in zip(flat.split(sizes), base, strict=True)]
        total = 0.0
        for batch, weight in zip(objective.batches, objective.batch_weights, strict=True):
            outputs = torch.func.functional_call(
                objective.model, dict(zip(objective.names, parts, strict=True)), (batch[0].to(objective.dtype),)
            )
            total = total + weight * objective.criterion(outputs, batch[1])
        return total / objective.samples

    return torch.autograd.functional.hessian(loss, torch.cat([tensor.flatten() for tensor in base]))


@pytest.fixture(autouse=True)
def dense_operators(request, monkeypatch):
    if "real" not in request.node.name:
        monkeypatch.setattr(probe, "hessian", Dense)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()


@pytest.fixture
def objective(model):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(22, 6, generator=generator, dtype=torch.float64)
    targets = torch.randint(3, (22,), generator=generator)
    return fs.Objective(model, list(zip(inputs.split(6), targets.split(6), strict=True)), criterion=F.cross_entropy)


def trained(model, objective, kind, steps=7, **options):
    optimizer = getattr(torch.optim, kind)(model.parameters(), **options)
    for step in range(steps):
        inputs, targets = objective.batches[step % len(objective.batches)]
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return optimizer


def test_momentum_is_judged_by_the_largest_eigenvalue(model, objective, untouched):
    optimizer = trained(model, objective, "SGD", lr=0.05, momentum=0.9)
    with untouched(model):
        found = edge_of_stability(objective, optimizer, tolerance=1e-8)
    expected = float(torch.linalg.eigvalsh(dense(objective))[-1])
    assert found.sharpness == pytest.approx(expected, rel=1e-10)
    assert (found.preconditioned, found.critical) == (None, pytest.approx(3.8 / 0.05))
    assert found.ratio == pytest.approx(expected * 0.05 / 3.8, rel=1e-10)
    assert found.eta_lambda == pytest.approx(0.05 * expected, rel=1e-10)
    assert found.residual < 1e-6 * expected


def test_adam_is_judged_by_its_preconditioned_hessian(model, objective):
    optimizer = trained(model, objective, "Adam", steps=20, lr=0.01, weight_decay=0.1)
    found = edge_of_stability(objective, optimizer, tolerance=1e-8)
    v = torch.cat([optimizer.state[p]["exp_avg_sq"].flatten() for p in model.parameters()])
    p = (1 - 0.9**20) * ((v / (1 - 0.999**20)).sqrt() + 1e-8)
    decayed = dense(objective) + 0.1 * torch.eye(objective.size, dtype=torch.float64)
    expected = float(torch.linalg.eigvals(decayed / p[:, None]).real.max())
    assert found.preconditioned == pytest.approx(expected, rel=1e-9)
    assert found.ratio == pytest.approx(expected * 0.01 / 38, rel=1e-9)
    assert found.sharpness == pytest.approx(float(torch.linalg.eigvalsh(decayed)[-1]), rel=1e-9)


@pytest.mark.parametrize("operator", ["hessian", "ggn"])
def test_real_operators_give_the_dense_values(model, objective, operator, untouched):
    optimizer = trained(model, objective, "Adam", lr=0.01)
    with untouched(model):
        found = edge_of_stability(objective, optimizer, operator=operator, tolerance=1e-8)
    if operator == "hessian":
        scale = probe.recursion(objective, optimizer).preconditioner.rsqrt()
        expected = float(torch.linalg.eigvalsh(scale[:, None] * dense(objective) * scale)[-1])
        assert found.preconditioned == pytest.approx(expected, rel=1e-8)
    assert found.sharpness > 0
    assert found.batch_sharpness.n == 4


def test_weight_decay_of_one_group_adds_to_its_rows(model, objective):
    weights, biases = [model[0].weight, model[2].weight], [model[0].bias, model[2].bias]
    optimizer = torch.optim.SGD([{"params": weights, "weight_decay": 0.3}, {"params": biases}], lr=0.1)
    found = edge_of_stability(objective, optimizer, tolerance=1e-8)
    decay = torch.cat([torch.full((p.numel(),), 0.3 if p.ndim == 2 else 0.0, dtype=torch.float64) for p in model.parameters()])
    expected = float(torch.linalg.eigvalsh(dense(objective) + decay.diag())[-1])
    assert found.sharpness == pytest.approx(expected, rel=1e-9)


def test_batch_sharpness_is_the_mean_over_batches_of_their_own_curvature(model, objective):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.2)
    found = edge_of_stability(objective, optimizer)
    ratios = []
    for index in range(len(objective.batches)):
        one = objective.on(index)
        w = torch.cat([t.flatten() for t in one.base.values()])
        g = torch.cat([t.flatten() for t in one.gradient().values()]) + 0.2 * w
        ratios.append(float(g @ (dense(one) @ g + 0.2 * g) / (g @ g)))
    assert found.batch_sharpness.value == pytest.approx(np.mean(ratios), rel=1e-12)
    assert found.batch_sharpness.stderr == pytest.approx(np.std(ratios, ddof=1) / math.sqrt(len(ratios)), rel=1e-10)
    assert found.batch_sharpness.n == 4
    low, high = found.batch_sharpness.interval
    assert low < found.batch_sharpness.value < high
    assert edge_of_stability(objective.on(0), optimizer).batch_sharpness is None


def test_known_eigenvalues_are_not_computed_again(model, objective):
    whole = Dense(objective)
    moves = probe.recursion(objective, torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.2))
    found = probe.stability(objective, moves, Dense, None, whole=whole, raw=probe.Top(3.0, 0.01))
    assert (found.sharpness, found.residual, whole.products) == (pytest.approx(3.2), 0.01, 0)


def test_without_a_step_only_the_raw_sharpness_is_told(model, objective):
    found = edge_of_stability(objective, torch.optim.Adam(model.parameters(), lr=0.1))
    assert found.preconditioned is None
    assert math.isnan(found.ratio)
    assert math.isfinite(found.sharpness)
    assert "unknown" in found.notes[0]


def test_nothing_is_called_unstable_by_the_full_batch_threshold(model, objective):
    found = edge_of_stability(objective, torch.optim.SGD(model.parameters(), lr=1e4))
    assert found.ratio > 1
    assert "above the full-batch edge" in found.notes[0]
    assert "batch sharpness" in found.notes[0]
    assert "unstable" not in " ".join(found.notes)


@pytest.mark.filterwarnings("ignore:invalid value")
def test_products_that_are_not_finite_are_told(model, objective, monkeypatch):
    monkeypatch.setattr(Dense, "matmat", lambda self, vectors: vectors * math.nan)
    found = edge_of_stability(objective, torch.optim.SGD(model.parameters(), lr=0.1))
    assert math.isnan(found.sharpness)
    assert any("not finite" in note for note in found.notes)
    assert found.batch_sharpness.n == 0
    assert any("4 batches without" in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operator": "fisher"}, "operator must be 'hessian' or 'ggn', got 'fisher'"),
        ({"tolerance": 0.0}, r"tolerance must lie in \(0, 1\), got 0.0"),
        ({"max_products": 0}, "max_products must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(model, objective, options, message):
    with pytest.raises(ValueError, match=message):
        edge_of_stability(objective, torch.optim.SGD(model.parameters(), lr=0.1), **options)


def test_one_and_two_parameters_are_enough():
    model = nn.Linear(1, 1).double()
    batch = (torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([[1.0]], dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for params, expected in (("weight", 8.0), (None, 10.0)):
        objective = fs.Objective(model, [batch], criterion=F.mse_loss, params=params)
        assert edge_of_stability(objective, optimizer).sharpness == pytest.approx(expected, rel=1e-12)


# ------------------------------------------------------------------------------------------- beside checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = zoo.mlp(hidden=(4,))
    files = zoo.train(model, zoo.digits(samples=64), folder, steps=20, checkpoints=3)
    return model, files, folder


def test_training_leaves_the_optimizer_beside_every_checkpoint(run):
    model, files, folder = run
    found = [checkpoint.optimizer() for checkpoint in checkpoints(files)]
    assert [state.name for state in found] == ["Adam"] * 3
    assert found[0].state == {}
    assert float(found[-1].state[0]["step"]) == 20
    assert found[-1].names == tuple(name for name, _ in model.named_parameters())
    assert torch.load(folder / "step20.optimizer.pt", weights_only=True)["optimizer_class"] == "Adam"


def test_the_edge_at_a_checkpoint_is_that_of_the_live_run(run):
    _, files, folder = run
    objective = fs.Objective(zoo.mlp(hidden=(4,)), zoo.digits(samples=64), criterion=F.cross_entropy, dtype=torch.float64)
    at = checkpoints(files)[-1].at(objective)
    found = edge_of_stability(at, folder / "step20.optimizer.pt", tolerance=1e-6)
    state = read_optimizer(folder / "step20.optimizer.pt")
    v = torch.cat([state.state[index]["exp_avg_sq"].flatten() for index in range(4)]).double()
    scale = ((1 - 0.9**20) * ((v / (1 - 0.999**20)).sqrt() + 1e-8)).rsqrt()
    expected = float(torch.linalg.eigvalsh(scale[:, None] * dense(at) * scale)[-1])
    assert found.preconditioned == pytest.approx(expected, rel=1e-6)


def test_a_directory_of_checkpoints_is_probed_without_its_optimizer_states(run):
    _, _, folder = run
    arguments = [
        "multifractal",
        "zoo:mlp?hidden=(4,)",
        "--data",
        "zoo:digits?samples=32",
        "--checkpoint",
        str(folder),
        "--count",
        "4",
    ]
    result = CliRunner().invoke(main, [*arguments, "--json", "--quiet"])
    assert result.exit_code == 0, result.output
    assert "optimizer" not in result.stdout.split('"meta"')[0]
    assert all(f"step{step}" in result.stdout for step in (0, 1, 20))


def test_optimizers_inside_a_training_checkpoint_are_found_and_absent_ones_are_none(tmp_path, run):
    model, files, _ = run
    state = torch.optim.SGD(model.parameters(), lr=0.3).state_dict()
    torch.save({"model": model.state_dict(), "optimizer": state}, tmp_path / "both.pt")
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    (tmp_path / "alone.safetensors").write_bytes(files[0].read_bytes())
    both, bare, alone = (checkpoints([tmp_path / name])[0] for name in ("both.pt", "bare.pt", "alone.safetensors"))
    assert both.optimizer().groups[0]["lr"] == 0.3
    assert bare.optimizer() is None
    assert alone.optimizer() is None
    with pytest.raises(ValueError, match=r"bare.pt: optimizer must be a state dict"):
        read_optimizer(tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="optimizer must be a file"):
        read_optimizer(tmp_path / "none.pt")


# ------------------------------------------------------------------------------------------- no ratio that means nothing


def test_an_eigenvalue_that_has_not_converged_gives_a_bound_and_no_ratio(model, objective):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = edge_of_stability(objective, optimizer, max_products=1, seed=4)
    eigenvalues = torch.linalg.eigvalsh(dense(objective))
    assert found.residual > 0.1 * abs(found.at_least * found.critical), "one product is not enough here"
    assert math.isnan(found.ratio)
    assert math.isnan(found.eta_lambda)
    assert found.at_least * found.critical <= float(eigenvalues[-1]) * (1 + 1e-12)
    assert found.notes[0].startswith("unknown: the residual is")
    assert "below the full-batch edge" not in " ".join(found.notes)
    whole = edge_of_stability(objective, optimizer, tolerance=1e-6)
    assert (whole.reason, math.isnan(whole.at_least)) == ("", True)


@pytest.mark.parametrize(
    ("kind", "settled"),
    [
        ("Adam", 20),
        ("AdamW", 20),
        ("NAdam", 20),
        ("RAdam", 20),
        ("Adamax", 20),
        ("RMSprop", 38),
        ("Adagrad", 48),
        ("Adadelta", 10),
    ],
)
def test_first_steps_of_an_adaptive_optimizer_have_no_ratio(model, objective, kind, settled):
    optimizer = trained(model, objective, kind, steps=1, lr=0.01)
    state, names = optimizer.state, list(model.parameters())
    for step, known in ((1, False), (settled - 1, False), (settled, True)):
        for parameter in names:
            state[parameter]["step"] = torch.tensor(float(step))
        found = edge_of_stability(objective, optimizer)
        assert math.isfinite(found.ratio) is known
        assert (found.reason == "") is known
        if not known:
            assert f"step {step} of {kind}" in found.reason
            assert found.notes[0] == f"unknown: {found.reason}"
            assert math.isnan(found.at_least), "the eigenvalue is known; what it is held against is not"


def test_the_start_up_is_over_where_the_preconditioner_settles(model, objective):
    """P with the averages held grows by less than a tenth in the ten steps after, and by more at every step before."""
    optimizer = trained(model, objective, "Adam", steps=1, lr=0.01)

    def scale(step):
        for parameter in model.parameters():
            optimizer.state[parameter]["step"] = torch.tensor(float(step))
            optimizer.state[parameter]["exp_avg_sq"].fill_(1 - 0.999**step)  # of gradients of size 1
        return float(probe.recursion(objective, optimizer).preconditioner.mean())

    growth = {step: scale(step + 10) / scale(step) for step in range(10, 25)}
    assert next(step for step, factor in growth.items() if factor <= 1.1) == 20


def test_a_learning_rate_of_zero_has_no_ratio(model, objective):
    for optimizer in (torch.optim.SGD(model.parameters(), lr=0.0), trained(model, objective, "Adam", steps=25, lr=0.0)):
        found = edge_of_stability(objective, optimizer)
        assert math.isnan(found.ratio)
        assert math.isnan(found.eta_lambda)
        assert found.reason == "the learning rate is 0: no step"
        assert math.isfinite(found.sharpness)


def test_a_rate_below_its_schedule_s_is_remarked(model, objective):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=10)
    assert any("0.01 of its schedule's 0.5" in note for note in edge_of_stability(objective, optimizer).notes)
    for _ in range(10):
        optimizer.step()
        schedule.step()
    assert not any("schedule" in note for note in edge_of_stability(objective, optimizer).notes)


def warmed(model, folder, rates):
    """Checkpoints of one state with optimizers of these rates."""
    files = []
    for step, rate in enumerate(rates):
        file = folder / f"step{step}.pt"
        state = torch.optim.SGD(model.parameters(), lr=rate).state_dict()
        torch.save({"model": model.state_dict(), "optimizer": state}, file)
        files.append(file)
    return files


def test_checkpoints_of_a_warm_up_are_left_out_of_the_headline(model, objective, tmp_path):
    rates = [0.0, 0.01, 0.1, 0.1, 0.05]
    found = fs.spectra(objective, warmed(model, tmp_path, rates), 1, nodes=4)
    ratios = found.series("stability_ratio")[0]
    assert np.isnan(ratios).tolist() == [True, True, False, False, False]
    reasons = [point.stability.reason for point in found.points]
    assert reasons[0] == "the learning rate is 0: no step" or "still rising to 0.1" in reasons[0]
    assert "still rising to 0.1: a warm-up" in reasons[1]
    assert reasons[2:] == ["", "", ""]
    assert f"{ratios[2]:.3g} at most" in found.verdict()
    assert [point.to_dict()["stability"]["ratio"] is None for point in found.points] == [True, True, False, False, False]
    falling = fs.spectra(objective, warmed(model, tmp_path, [0.1, 0.05, 0.02]), 1, nodes=4)
    assert np.isfinite(falling.series("stability_ratio")[0]).all()


def test_the_first_steps_of_adam_are_left_out_of_the_headline(run):
    _, files, _ = run
    objective = fs.Objective(zoo.mlp(hidden=(4,)), zoo.digits(samples=64), criterion=F.cross_entropy)
    found = fs.spectra(objective, files, 1, nodes=4)
    ratios = found.series("stability_ratio")[0]
    assert np.isnan(ratios).tolist() == [True, True, False]
    assert f"{ratios[2]:.3g} at most (step20; 1 = edge)" in found.verdict()


# ------------------------------------------------------------------------------------------- optimizers around others


class Sharpness(torch.optim.Optimizer):
    """SAM as its forks have it: shares the groups of its base optimizer, and keeps its own first step in its state."""

    def __init__(self, params, base, rho=0.05, **settings):
        super().__init__(params, {"rho": rho, **settings})
        self.base_optimizer = base(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def step(self):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["e_w"] = torch.zeros_like(parameter)
        self.base_optimizer.step()


class Derived(torch.optim.SGD):
    """SAM derived from SGD."""

    def __init__(self, params, lr, rho):
        super().__init__(params, lr=lr)
        self.param_groups[0]["rho"] = rho

    def step(self, closure=None):
        return super().step(closure)


class Renamed(torch.optim.SGD):
    pass


def test_sharpness_aware_optimizers_are_not_taken_for_their_base(model, objective):
    sam = Sharpness(model.parameters(), torch.optim.SGD, lr=0.1)
    F.cross_entropy(model(objective.batches[0][0]), objective.batches[0][1]).backward()
    sam.step()
    with pytest.raises(ValueError, match=r"got Sharpness around SGD: .* pass optimizer.base_optimizer"):
        edge_of_stability(objective, sam)
    with pytest.raises(ValueError, match="around SGD"):
        fs.temperature(objective, batch_size=4, optimizer=sam, products=0)
    base = edge_of_stability(objective, sam.base_optimizer)
    assert base.ratio == pytest.approx(base.sharpness / 20.0)
    assert any("not SAM's" in note for note in base.notes)
    own = edge_of_stability(objective, sam.state_dict())
    assert math.isnan(own.ratio)
    assert "SAM's own" in own.reason
    derived = edge_of_stability(objective, Derived(model.parameters(), lr=0.1, rho=0.05))
    assert math.isnan(derived.ratio)
    assert "Derived is SAM" in derived.reason
    temperature = fs.temperature(objective, batch_size=4, optimizer=sam.base_optimizer, products=0)
    assert any("not SAM's" in note for note in temperature.notes)


def test_adam_inside_sam_without_its_averages_has_no_preconditioner(model, objective):
    sam = Sharpness(model.parameters(), torch.optim.Adam, lr=0.01, betas=(0.9, 0.999))
    F.cross_entropy(model(objective.batches[0][0]), objective.batches[0][1]).backward()
    sam.step()
    found = edge_of_stability(objective, sam.state_dict())
    assert found.critical == pytest.approx(3800)
    assert (math.isnan(found.ratio), found.preconditioned) == (True, None)


def test_a_class_of_another_name_is_its_base_s_and_one_with_its_own_step_is_remarked(model, objective):
    plain = edge_of_stability(objective, torch.optim.SGD(model.parameters(), lr=0.1))
    renamed = edge_of_stability(objective, Renamed(model.parameters(), lr=0.1))
    assert renamed.ratio == pytest.approx(plain.ratio)
    assert not any("way of its own" in note for note in renamed.notes)

    class Clipped(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    clipped = edge_of_stability(objective, Clipped(model.parameters(), lr=0.1))
    assert any("Clipped steps in a way of its own; taken for SGD" in note for note in clipped.notes)
