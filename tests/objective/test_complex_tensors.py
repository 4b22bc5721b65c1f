"""Complex constants of a model keep their imaginary parts in every dtype and on every path."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs

PHASES = torch.polar(torch.ones(3), torch.tensor([0.3, 1.1, 2.0]))


class Rotary(nn.Module):
    """Pairs of features turned by complex phases, which are held in one of several places."""

    def __init__(self, place):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.place = nn.Linear(4, 6), place
        if place == "buffer":
            self.register_buffer("phases", PHASES.clone())
        elif place == "frozen parameter":
            self.phases = nn.Parameter(PHASES.clone(), requires_grad=False)
        elif place == "shared buffer":
            self.register_buffer("phases", PHASES.clone())
            self.table = {"phases": self.phases}
        elif place == "object":
            self.table = Table(PHASES.clone())
        elif place == "attribute":
            self.phases = PHASES.clone()

    def forward(self, x, phases=None):
        if self.place in ("object", "shared buffer"):
            phases = self.table["phases"]
        elif self.place != "input":
            phases = self.phases
        turned = torch.view_as_complex(self.linear(x).reshape(-1, 3, 2)) * phases
        return turned.real + turned.imag.square()


class Table:
    """A plain object with a tensor."""

    def __init__(self, phases):
        self.phases = phases

    def __getitem__(self, name):
        return getattr(self, name)


PLACES = ("buffer", "shared buffer", "attribute", "object", "frozen parameter", "input")


def problem(place, **options):
    torch.manual_seed(1)
    x, y = torch.randn(5, 4), torch.randint(0, 3, (5,))
    model = Rotary(place)
    inputs = (x, PHASES.expand(5, 3)) if place == "input" else x
    return fs.Objective(model, [(inputs, y)], criterion=F.cross_entropy, **options), x, y


def exact(x, y, weight, bias):
    """The loss in complex128, from the definition."""
    turned = torch.view_as_complex((x.double() @ weight.T + bias).reshape(-1, 3, 2)) * PHASES.to(torch.complex128)
    return F.cross_entropy(turned.real + turned.imag.square(), y)


@pytest.mark.parametrize("place", PLACES)
def test_loss_and_hessian_are_those_of_complex_arithmetic(place, untouched):
    objective, x, y = problem(place)
    weight, bias = (tensor.detach().double() for tensor in (objective.model.linear.weight, objective.model.linear.bias))
    want = float(exact(x, y, weight, bias))
    with untouched(objective.model):
        assert objective.loss() == pytest.approx(want, rel=1e-5)
        assert problem(place, dtype=torch.float64)[0].loss() == pytest.approx(want, rel=1e-6)
        assert fs.responses(objective, fs.Directions(objective, 1), [0.1]).base == pytest.approx(want, rel=1e-6)
        vector = torch.linspace(-1, 1, objective.size, dtype=torch.float64)
        image = torch.as_tensor(fs.hessian(objective) @ vector).double()

    def gradient(shift):
        moved = [
            (p + shift * v.reshape(p.shape)).requires_grad_() for p, v in zip((weight, bias), vector.split([24, 6]), strict=True)
        ]
        return torch.cat([part.reshape(-1) for part in torch.autograd.grad(exact(x, y, *moved), moved)])

    step = 1e-5
    expected = (gradient(step) - gradient(-step)) / (2 * step)
    assert float((image - expected).norm() / expected.norm()) < 1e-4


def test_half_precision_models_keep_complex64():
    objective, _, _ = problem("buffer", dtype=torch.bfloat16)
    replica = objective.replica(torch.bfloat16)
    assert replica.module.model.phases.dtype == torch.complex64
    assert torch.equal(replica.module.model.phases, PHASES)
    double = objective.replica(torch.float64).module.model
    assert double.phases.dtype == torch.complex128
    assert double.linear.weight.dtype == torch.float64


def test_a_complex128_buffer_meets_float32_weights_as_complex64():
    objective, _, _ = problem("buffer")
    objective.model.double()
    objective.model.phases = PHASES.to(torch.complex128)
    assert objective.replica(torch.float32).module.model.phases.dtype == torch.complex64


def test_complex_constants_of_a_criterion_keep_their_imaginary_part():
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("filter", PHASES.clone())

        def forward(self, outputs, targets):
            return (outputs * self.filter - targets).abs().square().mean()

    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(5, 4), torch.randn(5, 3)
    want = float(Spectral()(model(x), y).detach())
    for dtype in (None, torch.float64):
        found = fs.Objective(model, [(x, y)], criterion=Spectral(), dtype=dtype, weight=len).loss()
        assert found == pytest.approx(want, rel=1e-5)


def test_complex_parameters_are_refused_by_name_with_the_remedy():
    model = Rotary("frozen parameter")
    model.phases.requires_grad_(True)
    data = [(torch.randn(5, 4), torch.arange(5) % 3)]
    with pytest.raises(ValueError, match="the complex parameter 'phases' of torch.complex64; .* params="):
        fs.Objective(model, data, criterion=F.cross_entropy)
    whole = copy.deepcopy(model)
    kept = fs.Objective(model, data, criterion=F.cross_entropy, params=lambda name, tensor: tensor.is_floating_point())
    assert kept.names == ("linear.weight", "linear.bias")
    assert kept.loss() == pytest.approx(float(F.cross_entropy(whole(data[0][0]), data[0][1]).detach()), rel=1e-6)


def test_buffers_that_an_attribute_shares_are_shared_in_the_copy():
    """The list sees the buffer that the forward writes, also in another dtype."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("scale", torch.zeros(1))
            self.held = [self.scale]

        def forward(self, x):
            self.scale.fill_(3.0)
            return self.linear(x) * self.held[0]

    torch.manual_seed(0)
    model, x, y = Shared(), torch.randn(3, 2), torch.randn(3, 2)
    want = float(F.mse_loss(3 * model.linear(x), y).detach())
    for dtype in (None, torch.float64):
        assert fs.Objective(model, [(x, y)], criterion=F.mse_loss, dtype=dtype).loss() == pytest.approx(want, rel=1e-5)
    assert float(model.scale) == 0.0
