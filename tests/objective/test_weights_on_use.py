"""Parameters made as the forward asks for them give the bits of a copy that holds them all, and leave the user's alone."""

import models
import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import fastscape as fs
from fastscape._state import exact_arithmetic
from fastscape.objective import examination
from fastscape.objective.replica import Replica
from fastscape.objective.streamed import StreamedReplica
from fastscape.runs.peak import PeakMemory


@pytest.fixture(autouse=True)
def everything_is_large(monkeypatch):
    monkeypatch.setattr(examination, "LARGE", 0)


class Returned(nn.Module):
    """A module that returns its parameter, or a part of it, which is used while others are made."""

    def __init__(self):
        super().__init__()
        self.table, self.layer, self.last = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        rows = self.table.weight[1:]
        return self.last(self.layer(self.layer(x)) @ rows.T)


class Remembered(nn.Module):
    """A module that takes the parameter of another as its own in its first forward."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        if not hasattr(self, "kept"):
            self.kept = self.layer.weight
        return self.last(F.linear(self.layer(x), self.kept))


class Listed(nn.Module):
    """Parameters in a list and a dictionary, one in the place of another's, and a checkpointed part."""

    def __init__(self):
        super().__init__()
        self.rows = nn.ParameterList(torch.randn(4, 4) for _ in range(2))
        self.named = nn.ParameterDict({"last": torch.randn(3, 4)})
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        x = functional_call(self.layer, {"weight": self.rows[0]}, (x,))
        x = checkpoint(lambda y: torch.tanh(self.layer(y)), x @ self.rows[1], use_reentrant=False)
        return F.linear(x, self.named["last"])


class Recurrent(nn.Module):
    """Layers that hold their parameters in a list as well."""

    def __init__(self, kind):
        super().__init__()
        self.cells, self.last = kind(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.cells(x[:, None])[0][:, 0])


def parametrised():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3))


def normed_by_hook():
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3))


def penalised(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1]) + sum(p.square().sum() for p in model.parameters())


def plain_loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


MODELS = {
    "returned": (Returned, plain_loss),
    "remembered": (Remembered, plain_loss),
    "listed": (Listed, plain_loss),
    "gru": (lambda: Recurrent(nn.GRU), plain_loss),
    "lstm": (lambda: Recurrent(nn.LSTM), plain_loss),
    "parametrised": (parametrised, plain_loss),
    "normed by a hook": (normed_by_hook, plain_loss),
    "penalty": (Returned, penalised),
    "tied": (models.TiedGPT, plain_loss),
}


def objective_of(name, **options):
    torch.manual_seed(0)
    make, loss = MODELS[name]
    model = make()
    batch = models.tokens() if name == "tied" else (torch.randn(6, 4), torch.arange(6) % 3)
    return fs.Objective(model, [batch], loss=loss, weight=lambda b: b[1].numel(), **options)


def moved(_, slot, base):
    slot.copy_(base.double() * 1.5 + 0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_those_of_a_whole_copy(name, dtype, untouched):
    objective = objective_of(name)
    with untouched(objective.model), exact_arithmetic(dtype):
        found, expected = StreamedReplica(objective, dtype), Replica(objective, dtype, frozenset())
        for replica in (found, expected):
            replica.fill(moved)
        displaced = [replica.loss_and_gradient() for replica in (found, expected)]
        for replica in (found, expected):
            replica.alter(lambda _, slot: slot.mul_(1.5))
        altered = [float(replica.loss()) for replica in (found, expected)]
        for replica in (found, expected):
            replica.reset()
        still = [float(replica.loss()) for replica in (found, expected)]
    assert altered[0] == altered[1]
    assert still[0] == still[1] != displaced[1][0] != altered[1]
    assert displaced[0][0] == displaced[1][0]
    assert all(torch.equal(a, b) for a, b in zip(displaced[0][1], displaced[1][1], strict=True))


@pytest.mark.parametrize("params", [None, "blocks.5.*"])
def test_a_loss_at_w_takes_no_memory_for_weights(params):
    model, batch = models.TiedGPT(width=64, layers=2 if params is None else 6), models.tokens()
    objective = fs.Objective(model, [batch], criterion=F.cross_entropy, params=params)
    with torch.no_grad(), exact_arithmetic(torch.float32), PeakMemory() as plain:
        F.cross_entropy(model(batch[0]), batch[1])
    largest = max(sum(p.nbytes for p in module.parameters(recurse=False)) for module in model.modules())
    weights = sum(p.nbytes for p in model.parameters())
    data = 2 * batch[0].nbytes
    with PeakMemory() as first:
        loss = objective.loss()
    assert first.peak <= 2 * plain.peak + largest + data < weights  # samples are taken twice
    with PeakMemory() as second:
        assert objective.loss() == loss
    assert second.peak <= plain.peak + data + 64
    with exact_arithmetic(torch.float32):
        replica = Replica(objective, torch.float32, frozenset())
        replica.reset()
        assert float(replica.loss()) == loss


class Clipping(nn.Module):
    """A layer that clips its weights above a size, by torch or past it."""

    def __init__(self, write):
        super().__init__()
        self.layer, self.write = nn.Linear(4, 3), write

    def forward(self, x):
        if float(self.layer.weight.detach().abs().max()) > 1:
            self.write(self.layer.weight)
        return self.layer(x)


def by_numpy(weight):
    weight.detach().numpy().clip(-1, 1, out=weight.detach().numpy())


WRITES = {
    "data": lambda weight: weight.data.clamp_(-1, 1),
    "out": lambda weight: torch.clamp(weight.data, -1, 1, out=weight.data),
    "numpy": by_numpy,
}


@pytest.mark.parametrize(
    ("name", "later"),
    [("data", False), ("data", True), ("out", True), ("numpy", False)],  # past torch, at first alone
)
def test_nothing_is_written_into_the_weights_of_the_user(name, later, untouched):
    torch.manual_seed(0)
    model, batch = Clipping(WRITES[name]), (torch.randn(6, 4), torch.arange(6) % 3)
    objective = fs.Objective(model, [batch], criterion=F.cross_entropy)
    if later:
        objective.loss()
    with torch.no_grad():
        model.layer.weight.mul_(9)
        clipped = F.linear(batch[0], model.layer.weight.clamp(-1, 1), model.layer.bias)
    with untouched(model):
        assert objective.loss() == pytest.approx(float(F.cross_entropy(clipped, batch[1])), rel=1e-6)
        assert objective.findings.rewritten == {"layer.weight"}


def test_an_error_in_a_forward_leaves_the_model_as_it_was(untouched):
    class Failing(nn.Linear):
        calls = 0

        def forward(self, inputs):
            Failing.calls += 1
            if Failing.calls > 2:
                raise ZeroDivisionError("in the middle")
            return super().forward(inputs)

    model = nn.Sequential(nn.Linear(4, 4), Failing(4, 4), nn.Linear(4, 3))
    objective = fs.Objective(model, [(torch.randn(6, 4), torch.arange(6) % 3)], criterion=F.cross_entropy)
    with untouched(model):
        objective.loss()
        with pytest.raises(ZeroDivisionError, match="in the middle"):
            objective.loss()
