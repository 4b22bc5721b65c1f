"""The recursion read from an optimizer is the one that torch's own steps follow."""

import copy
import math

import pytest
import torch
from torch import nn

import fastscape as fs
from fastscape.probes.spectrum.recursions import recursion
from fastscape.runs.optimizers import OptimizerState

SIZE = 4
SCALED = ("exp_avg_sq", "square_avg", "grad_avg", "exp_inf")  # decayed by the step that is to keep them


class Bowl(nn.Module):
    """w'Hw / 2 with a dense positive H, over two parameters."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        root = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
        self.register_buffer("hessian", root @ root.T)
        self.first = nn.Parameter(torch.full((1,), 0.5, dtype=torch.float64))
        self.rest = nn.Parameter(torch.tensor([[0.3, -0.7, 0.9]], dtype=torch.float64))

    def forward(self, _batch):
        w = torch.cat([self.first, self.rest.flatten()])
        return 0.5 * w @ self.hessian @ w


@pytest.fixture
def bowl():
    return Bowl()


@pytest.fixture
def objective(bowl):
    return fs.Objective(bowl, [torch.zeros(1, dtype=torch.float64)], loss=lambda model, batch: model(batch))


def advance(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(None).backward()
        optimizer.step()


def ratio(model, found):
    return top(model, found)[0] / found.critical


def top(model, found):
    """Largest eigenvalue of the preconditioned Hessian, and the displacement that it multiplies."""
    scale = torch.ones(SIZE, dtype=torch.float64) if found.preconditioner is None else found.preconditioner.rsqrt()
    decayed = model.hessian + torch.eye(SIZE, dtype=torch.float64) * found.weight_decay
    values, vectors = torch.linalg.eigh(scale[:, None] * decayed * scale)
    return float(values[-1]), scale * vectors[:, -1]


def frozen_growth(model, optimizer, along, steps=400):
    """Log of the growth of a tiny displacement, while the averages of squared gradients and the step count are put back."""
    group = optimizer.param_groups[0]
    keep = group.get("betas", (0, group.get("alpha", group.get("rho", 1.0))))[1]
    frozen = {p: {k: v.clone() if torch.is_tensor(v) else v for k, v in s.items()} for p, s in optimizer.state.items()}
    parameters = list(model.parameters())
    with torch.no_grad():
        for p, part in zip(parameters, (along[:1], along[1:]), strict=True):
            p.copy_(1e-12 * part.view_as(p) / along.norm())
            for name in ("exp_avg", "momentum_buffer"):
                if name in optimizer.state[p]:
                    optimizer.state[p][name].zero_()
    log = 0.0
    for _ in range(steps):
        for p, state in optimizer.state.items():
            for key, value in frozen[p].items():
                if key in SCALED:
                    power = 2 if key == "grad_avg" else 1
                    state[key].copy_(value / (keep if power == 1 else group["alpha"]))
                elif key in ("acc_delta", "sum", "max_exp_avg_sq"):
                    state[key].copy_(value)
                elif key == "step":
                    state[key].copy_(value - 1)
                elif key == "mu_product":
                    t = float(frozen[p]["step"])
                    mu = group["betas"][0] * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"]))
                    state[key].copy_(value / mu)
        advance(model, optimizer, 1)
        with torch.no_grad():
            size = math.sqrt(sum(float(p.square().sum()) for p in parameters))
            factor = 1e-12 / size
            log -= math.log(factor)
            for p in parameters:
                p.mul_(factor)
                for name in ("exp_avg", "momentum_buffer"):
                    if name in optimizer.state[p]:
                        optimizer.state[p][name].mul_(factor)
    return log


CASES = {
    "Adam": {},
    "Adam amsgrad": {"amsgrad": True, "betas": (0.8, 0.95)},
    "Adam coupled": {"weight_decay": 0.7},
    "AdamW": {"weight_decay": 0.2},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
    "RMSprop": {},
    "RMSprop momentum": {"momentum": 0.9},
    "RMSprop centered": {"centered": True},
    "Adagrad": {"lr_decay": 0.1},
    "Adadelta": {},
    "SGD": {"momentum": 0.5, "weight_decay": 0.3},
    "SGD nesterov": {"momentum": 0.5, "nesterov": True},
}


@pytest.mark.parametrize("name", CASES)
def test_frozen_steps_of_torch_contract_below_ratio_one_and_grow_above(bowl, objective, name):
    optimizer = getattr(torch.optim, name.split()[0])(bowl.parameters(), lr=1e-3, **CASES[name])
    advance(bowl, optimizer, 12)
    for _ in range(3):  # decoupled decay makes the ratio not quite linear in the learning rate
        optimizer.param_groups[0]["lr"] /= ratio(bowl, recursion(objective, optimizer))
    edge = optimizer.param_groups[0]["lr"]
    for factor, sign in ((0.95, -1), (1.05, 1)):
        optimizer.param_groups[0]["lr"] = edge * factor
        found = recursion(objective, optimizer)
        assert found.known
        state = {k: v.clone() for k, v in bowl.state_dict().items()}
        assert sign * (ratio(bowl, found) - 1) > 0
        inner = copy.deepcopy(optimizer.state_dict())
        assert sign * frozen_growth(bowl, optimizer, top(bowl, found)[1]) > 0.5
        bowl.load_state_dict(state)
        optimizer.load_state_dict(inner)


def test_learning_rates_by_group_are_exact(bowl, objective):
    rates = {"first": 0.3, "rest": 0.02}
    optimizer = torch.optim.SGD([{"params": [bowl.rest], "lr": rates["rest"]}, {"params": [bowl.first], "lr": rates["first"]}])
    found = recursion(objective, optimizer)
    assert (found.learning_rate, found.critical) == (0.3, pytest.approx(2 / 0.3))
    steps = torch.tensor([rates["first"]] + [rates["rest"]] * 3, dtype=torch.float64)
    largest = float(torch.linalg.eigvals(steps[:, None] * bowl.hessian).real.max())
    assert ratio(bowl, found) == pytest.approx(largest / 2, rel=1e-12)
    assert "2 learning rates" in found.notes[0]


def test_a_group_that_stands_still_takes_no_part(bowl, objective):
    optimizer = torch.optim.SGD([{"params": [bowl.first], "lr": 0.0}, {"params": [bowl.rest], "lr": 0.1}])
    found = recursion(objective, optimizer)
    expected = 0.1 * float(torch.linalg.eigvalsh(bowl.hessian[1:, 1:])[-1]) / 2
    assert ratio(bowl, found) == pytest.approx(expected, rel=1e-12)


def test_without_a_step_an_adaptive_optimizer_has_no_preconditioner(bowl, objective):
    found = recursion(objective, torch.optim.Adam(bowl.parameters(), lr=0.1))
    assert (found.known, found.preconditioner) == (False, None)
    assert found.critical == pytest.approx(380)
    assert "no step yet" in " ".join(found.notes)


@pytest.mark.parametrize("form", ["live", "state dict", "named", "training checkpoint", "of a copy"])
def test_every_form_of_the_state_gives_the_same_preconditioner(bowl, objective, form):
    named = list(reversed(list(bowl.named_parameters()))) if form == "named" else list(bowl.parameters())
    optimizer = torch.optim.AdamW(named, lr=0.1)
    advance(bowl, optimizer, 3)
    given = {
        "live": optimizer,
        "state dict": optimizer.state_dict(),
        "named": optimizer.state_dict(),
        "training checkpoint": {"model": bowl.state_dict(), "optimizer": optimizer.state_dict()},
        "of a copy": optimizer,
    }[form]
    if form == "of a copy":
        objective = fs.Objective(Bowl(), objective.batches, loss=objective.user_loss).at(bowl.state_dict())
    found = recursion(objective, given)
    state = [optimizer.state[p] for p in (bowl.first, bowl.rest)]
    v = torch.cat([s["exp_avg_sq"].flatten() for s in state])
    expected = (1 - 0.9**3) * ((v / (1 - 0.999**3)).sqrt() + 1e-8)
    torch.testing.assert_close(found.preconditioner, expected, rtol=1e-14, atol=0.0)
    assert found.optimizer == "AdamW"


def test_the_class_of_a_state_dict_is_told_by_its_settings(bowl):
    for name in ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta"):
        state = getattr(torch.optim, name)(bowl.parameters(), lr=0.1).state_dict()
        assert OptimizerState.of(state).name == name


def test_some_parameters_of_the_optimizer_give_their_rows(bowl):
    objective = fs.Objective(bowl, [torch.zeros(1)], loss=lambda model, batch: model(batch), params="rest")
    optimizer = torch.optim.Adam(bowl.parameters(), lr=0.1)
    advance(bowl, optimizer, 2)
    found = recursion(objective, optimizer)
    assert found.preconditioner.shape == (3,)
    assert "1 parameter of the optimizer not probed" in found.notes[0]


def test_unfit_optimizers_are_named(bowl, objective):
    def refused(optimizer, message, kind=ValueError):
        with pytest.raises(kind, match=message):
            recursion(objective, optimizer)

    refused(torch.optim.Rprop(bowl.parameters()), "optimizer must be one of SGD, Adam, .*, got Rprop")
    refused(torch.optim.SGD(bowl.parameters(), lr=0.1, maximize=True), "must minimize the loss, got maximize=True")
    refused(torch.optim.SGD([bowl.first], lr=0.1), "hold every probed parameter, got none for 'rest'")
    refused(torch.optim.SGD([torch.zeros(2)], lr=0.1), "hold the parameters of Bowl in order, got 1 parameter")
    refused({"weights": 1}, "must be a state dict with param_groups and state, got keys weights")
    refused(3, "must be a torch.optim.Optimizer", TypeError)
    old = torch.optim.Adam(bowl.parameters(), lr=0.1).state_dict()
    for group in old["param_groups"]:
        group.pop("decoupled_weight_decay")
    refused(old, "cannot tell whether this state dict is Adam's or AdamW's")
    broken = torch.optim.RMSprop(bowl.parameters(), lr=0.1, eps=0.0)
    bowl.first.grad, bowl.rest.grad = torch.zeros_like(bowl.first), torch.ones_like(bowl.rest)
    broken.step()
    refused(broken, "positive preconditioner, got 0.0 in 'first'")


class Wrapped(torch.optim.Optimizer):
    """A sharpness-aware optimizer around another, which keeps the averages; its own state holds the ascent step."""

    def __init__(self, params, base, **settings):
        super().__init__(params, dict(rho=0.05, **settings))
        self.base_optimizer = base(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups

    def step(self, closure=None):
        self.base_optimizer.step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["e_w"] = torch.zeros_like(parameter)


class Derived(torch.optim.SGD):
    """A sharpness-aware optimizer derived from the one that it steps with."""

    def __init__(self, params, **settings):
        super().__init__(params, **settings)
        for group in self.param_groups:
            group["rho"] = 0.05


@pytest.mark.parametrize("base", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.Adagrad])
def test_a_state_without_the_averages_gives_no_preconditioner_and_says_whose_it_wants(bowl, objective, base):
    optimizer = Wrapped(bowl.parameters(), base, lr=0.1)
    advance(bowl, optimizer, 2)
    found = recursion(objective, optimizer.state_dict())
    assert (found.known, found.preconditioner) == (False, None)
    assert "holds e_w and not" in " ".join(found.notes)
    assert "base_optimizer" in " ".join(found.notes)
    assert recursion(objective, optimizer.base_optimizer).known
    stability = fs.edge_of_stability(objective, optimizer.state_dict())
    assert math.isnan(stability.ratio)


def test_an_optimizer_around_another_is_refused_with_the_name_of_the_inner_one(bowl, objective):
    optimizer = Wrapped(bowl.parameters(), torch.optim.SGD, lr=0.1)
    with pytest.raises(ValueError, match="got Wrapped around SGD: .*; pass optimizer.base_optimizer for those"):
        recursion(objective, optimizer)
    with pytest.raises(ValueError, match="got SAM; pass optimizer=None"):
        recursion(objective, {"optimizer_class": "SAM", "optimizer": optimizer.state_dict()})


def test_settings_of_another_optimizer_are_told(bowl, objective):
    derived = Derived(bowl.parameters(), lr=0.1)
    for given in (derived, derived.state_dict(), Wrapped(bowl.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9).state_dict()):
        assert any(
            "the settings hold 'rho', as SAM's do: edge and noise are those of its base optimizer SGD" in note
            for note in recursion(objective, given).notes
        )
    plain = torch.optim.SGD(bowl.parameters(), lr=0.1)
    torch.optim.lr_scheduler.OneCycleLR(plain, max_lr=0.2, total_steps=10)
    assert recursion(objective, plain).notes == ()
    assert recursion(objective, torch.optim.Adadelta(bowl.parameters(), lr=0.1)).notes[0].startswith("Adadelta has made no step")
