"""The step made on copies is the one that the optimizer takes; it and the model are as before."""

import copy
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.runs.next_step import next_step
from fastscape.runs.optimizers import OptimizerState

X = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 2, 1, 1, 0, 2, 2, 1])


class Signs(torch.optim.Optimizer):
    """A step of its own, with what it needs outside of its state: its parameters, and a rate of decay."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})
        self.held = [p for group in self.param_groups for p in group["params"]]
        self.velocity = {id(p): torch.zeros_like(p) for p in self.held}

    def step(self, closure=None):
        for index, p in enumerate(self.held):
            state = self.state[p]
            state["seen"] = state.get("seen", torch.zeros_like(p)) * 0.9 + p.grad
            p.data.add_(state["seen"].sign(), alpha=-self.param_groups[0]["lr"] * (1 + index))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.3),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True, weight_decay=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "rate tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.5),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
    "its own": lambda p: Signs(p),
}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def objective(model, **options):
    return fs.Objective(model, [(X, Y)], criterion=F.cross_entropy, **options)


def trained(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def taken(model, optimizer):
    """The step that a deep copy of both takes."""
    copied = copy.deepcopy((model, optimizer))
    before = weights(copied[0])
    trained(*copied, 1)
    return {name: after - before[name] for name, after in weights(copied[0]).items()}


@pytest.mark.parametrize("done", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_step_that_the_optimizer_takes(name, done, untouched):
    model = network()
    optimizer = OPTIMIZERS[name](list(model.parameters()))
    trained(model, optimizer, done)
    of, before = objective(model), copy.deepcopy(optimizer.state_dict())
    with untouched(model):
        found = next_step(optimizer, of, of.gradient())
    for (_, one), (_, other) in zip(before["state"].items(), optimizer.state_dict()["state"].items(), strict=True):
        assert all(torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one if one[key] is not None)
    assert found.rate == pytest.approx(float(optimizer.param_groups[0]["lr"]))
    if name == "its own":  # deepcopy of a torch optimizer leaves attributes out
        start = weights(model)
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        expected = {key: after - start[key] for key, after in weights(model).items()}
    else:
        expected = taken(model, optimizer)
        state = OptimizerState.of(optimizer.state_dict() if name not in ("adafactor", "asgd", "rprop") else optimizer, model)
        again = next_step(state, of, of.gradient())
        assert all(torch.equal(again.update[key], found.update[key]) for key in found.update)
    for key, step in expected.items():
        torch.testing.assert_close(found.rate * found.update[key], step, rtol=1e-9, atol=1e-14)


def test_groups_are_over_the_rate_of_the_first():
    model = network()
    first, last = list(model[0].parameters()), list(model[2].parameters())
    optimizer = torch.optim.SGD([{"params": first, "lr": 0.1}, {"params": last, "lr": 0.4}], momentum=0.9)
    of = objective(model)
    found, gradient = next_step(optimizer, of, of.gradient()), of.gradient()
    assert found.rate == 0.1
    assert found.notes == ("learning rates of the groups lie between 0.1 and 0.4: the step is in units of 0.1",)
    torch.testing.assert_close(found.update["0.bias"], -gradient["0.bias"])
    torch.testing.assert_close(found.update["2.bias"], -4 * gradient["2.bias"])


def test_a_rate_of_zero_has_the_direction_of_a_rate_of_one():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of a scheduler before a step
        torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    of = objective(model)
    found = next_step(optimizer, of, of.gradient())
    assert found.rate == 0
    assert any("rate is 0" in note for note in found.notes)
    plain = next_step(torch.optim.Adam(model.parameters(), lr=1.0), of, of.gradient())
    assert all(torch.equal(part, plain.update[name]) for name, part in found.update.items())


def test_steps_of_schedulers_and_hooks_are_not_taken():
    model, called = network(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.register_step_pre_hook(lambda *_: called.append("pre"))
    optimizer.register_step_post_hook(lambda *_: called.append("post"))
    of, before = objective(model), weights(model)
    next_step(optimizer, of, of.gradient())
    assert not called
    assert scheduler.last_epoch == 0
    assert not optimizer.state
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())


def test_parameters_that_it_does_not_hold_stay():
    model = network()
    of = objective(model)
    found = next_step(torch.optim.SGD(model[2].parameters(), lr=0.1), of, of.gradient())
    assert not found.update["0.weight"].any()
    assert found.update["2.weight"].any()
    assert found.notes == ("2 probed parameters that the optimizer does not hold stay",)


def test_at_other_weights_it_decays_those():
    model = network()
    state = {name: 2 * tensor for name, tensor in model.state_dict().items()}
    of = objective(model).at(state)
    gradient = of.gradient()
    found = next_step(torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5), of, gradient)
    torch.testing.assert_close(found.update["0.bias"], -gradient["0.bias"] - 0.5 * state["0.bias"])


class Twice(torch.optim.Optimizer):
    """Needs the loss at other weights."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    def step(self, closure):
        closure()


class Broken(Signs):
    """Needs a state that there is not."""

    def step(self, closure=None):
        self.state[self.held[0]]["missing"]


def at_rate(rate, parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    optimizer.param_groups[0]["lr"] = rate  # as a schedule does; torch looks at it once
    return optimizer


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1, maximize=True), "optimizer must minimize the loss"),
        (lambda p: torch.optim.LBFGS(p), "from gradients alone, got LBFGS, which needs a closure; pass update="),
        (lambda p: Broken(p), "from gradients alone, got KeyError from that of Broken: 'missing'; pass update="),
        (lambda p: Twice(p), "from gradients alone, got Twice, which needs a closure"),
        (lambda p: torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.1), "optimizer must hold the parameters of"),
        (
            lambda p: {"optimizer_class": "Lion", "optimizer": torch.optim.SGD(p).state_dict()},
            "or a state of a class of torch.optim",
        ),
        (lambda p: 3, "optimizer must be a torch.optim.Optimizer"),
        *((lambda p, rate=rate: at_rate(rate, p), "learning rates of at least 0, got") for rate in (-0.1, math.nan, math.inf)),
    ],
)
def test_what_has_no_step_of_its_own_is_named(make, words):
    model = network()
    of = objective(model)
    with pytest.raises((TypeError, ValueError), match=words):
        next_step(make(list(model.parameters())), of, of.gradient())
