"""A loss that is another function in another dtype, keeps earlier weights, or has not moved at all is not believed."""

import numpy as np
import pytest
import torch
from mixed_precision import network
from torch import nn
from torch.nn import functional as F

import fastscape as fs


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(24, 8, generator=generator).to(dtype), torch.randint(0, 3, (24,), generator=generator))]


def seeded(model, batch):
    """Noise in the dtype of the data, of one seed: other numbers in float64."""
    torch.manual_seed(0)
    x, y = batch
    return F.cross_entropy(model(x + torch.randn(x.shape, dtype=x.dtype)), y)


def seeded_once(model, batch):
    torch.manual_seed(0)
    x, y = batch
    return F.cross_entropy(model(x + torch.randn(x.shape, dtype=torch.float32).to(x.dtype)), y)


def branching(model, batch):
    outputs = model(batch[0])
    return F.cross_entropy(outputs * 1.5 if outputs.dtype == torch.float64 else outputs, batch[1])


def with_constants(model, batch):
    """Logarithms of numbers that are often zero, kept finite by the dtype's own unit."""
    outputs = model(batch[0]).relu()
    return F.cross_entropy(torch.log(outputs + torch.finfo(outputs.dtype).eps), batch[1])


OTHER = {"seeded": seeded, "branching": branching, "constants": with_constants}


def objective_of(loss):
    return fs.Objective(network("nowhere"), data(), loss=loss)


@pytest.mark.parametrize("name", OTHER)
def test_another_function_in_float64_is_refused_there_and_measured_in_float32(name, untouched):
    objective = objective_of(OTHER[name])
    directions = fs.Directions(objective, 4)
    words = r"same function in float64 as in the model's float32.*noise as data.*precision='float32' measures"
    with untouched(objective.model):
        for work in (
            lambda: fs.responses(objective, directions, [1e-2], precision="float64"),
            lambda: fs.responses(objective, directions, [1e-2], precision="difference"),
            lambda: fs.losses(objective, directions, [0.1]),
            lambda: fs.slice1d(objective, count=1, points=3, precision="float64"),
            lambda: fs.sharpness(objective, 0.1, precision="float64"),
        ):
            with pytest.raises(fs.DtypeDependentLossError, match=words):
                work()
        found = fs.responses(objective, directions, [0.3, 1.0])
    assert found.precision == "float32"
    assert "same function" in found.reason
    assert found.base == pytest.approx(objective.loss(), rel=1e-6)
    assert found.trusted.all()


@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
def test_float32_responses_of_such_a_loss_state_their_own_rounding():
    """The same noise, drawn in float32 and passed on, is the same function in both: its responses are the truth."""
    own, same = objective_of(seeded), objective_of(seeded_once)
    radii = [1e-4, 1e-3, 1e-2, 0.1, 1.0]
    found = fs.responses(own, fs.Directions(own, 8), radii, precision="float32", method="loop")
    truth = fs.responses(same, fs.Directions(same, 8), radii, precision="float64").even
    assert not found.trusted[0]
    assert found.trusted[-1]
    assert (np.abs(found.even - truth) <= found.noise[:, None]).mean() >= 0.9
    forms = fs.quadratic_forms(own, fs.Directions(own, 4))
    assert forms.path.name == "forwards"
    exact = fs.quadratic_forms(same, fs.Directions(same, 4), lanes=torch.float64).curvature
    assert (np.abs(forms.curvature - exact) <= 3 * forms.error).all()
    assert fs.sharpness(own, 0.3, restarts=1, steps=2, samples=4, products=0).meta["arithmetic"] == "float32"
    assert np.isfinite(fs.slice1d(own, count=1, points=5).noise_floor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_models_that_only_round_are_not_refused(dtype):
    torch.manual_seed(0)
    deep = nn.Sequential(*[part for _ in range(8) for part in (nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU())], nn.Linear(8, 3))
    objective = fs.Objective(deep.to(dtype), data(dtype), criterion=F.cross_entropy)
    assert np.isfinite(fs.responses(objective, fs.Directions(objective, 2), [1e-2], precision="float64").base)
    assert np.isfinite(fs.responses(objective, fs.Directions(objective, 2), [1e-2], precision="float32", method="loop").base)


# ---------------------------------------------------------------------- earlier weights


class Once(nn.Module):
    """Computes a weight on first use, and keeps it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.kept = None

    def forward(self, x):
        if self.kept is None:
            self.kept = self.first.weight.detach() * 1.0
        return self.last(F.linear(x, self.kept, self.first.bias).tanh())


class ByVersion(Once):
    """Casts a weight again only where its address or version has changed, which writing through ``.data`` does not show."""

    def __init__(self):
        super().__init__()
        self.kept = {}

    def forward(self, x):
        weight = self.first.weight
        key = weight.data_ptr(), weight._version
        if key not in self.kept:
            self.kept[key] = weight.detach().bfloat16()
        return self.last(F.linear(x, self.kept[key].to(x.dtype), self.first.bias).tanh())


@pytest.mark.parametrize("model", [Once, ByVersion])
def test_a_model_that_keeps_earlier_weights_is_refused(model, untouched):
    torch.manual_seed(0)
    objective = fs.Objective(model(), data(), criterion=F.cross_entropy)
    with untouched(objective.model):
        for work in (
            lambda: fs.slice1d(objective, count=1, points=3),
            lambda: fs.responses(objective, fs.Directions(objective, 2), [1e-2], precision="float64"),
            lambda: fs.hessian(objective),
            lambda: fs.barrier(objective, objective.model, objective.model),
        ):
            with pytest.raises(fs.NondeterministicLossError, match="keeps state from an evaluation at earlier weights"):
                work()


def test_normalised_weights_follow():
    torch.manual_seed(0)
    model = network("nowhere")
    nn.utils.parametrizations.weight_norm(model.first)
    nn.utils.parametrizations.spectral_norm(model.last)
    objective = fs.Objective(model.eval(), data(), criterion=F.cross_entropy)
    assert np.ptp(fs.slice1d(objective, count=1, points=3).losses) > 1e-3


# ---------------------------------------------------------------------- zeros


class LowRank(nn.Module):
    """A frozen layer beside a product B A whose B starts at zero."""

    def __init__(self):
        super().__init__()
        self.base, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(2, 8))
        self.b = nn.Parameter(torch.zeros(16, 2))

    def forward(self, x):
        return self.last((self.base(x) + x @ self.a.T @ self.b.T).tanh())


def zero_head():
    model = network("nowhere")
    for part in model.last.parameters():
        nn.init.zeros_(part)
    return model


@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
@pytest.mark.parametrize("precision", [None, "float64", "float32", "difference"])
@pytest.mark.parametrize(("make", "share"), [(LowRank, 16 / 48), (zero_head, 144 / 195)])
def test_directions_that_leave_out_what_moves_the_loss_are_not_trusted(make, share, precision):
    torch.manual_seed(0)
    objective = fs.Objective(make(), data(), criterion=F.cross_entropy)
    found = fs.responses(objective, fs.Directions(objective, 4), [1e-3, 1e-2], precision=precision)
    assert not found.even.any()
    assert not found.trusted.any()
    assert any(f"{share:.1%} of the parameters cannot move the loss" in note for note in found.notes)
    everywhere = fs.Directions(objective, 4, normalize="none", scale="unit")
    moving = fs.responses(objective, everywhere, [1e-2, 1e-1], precision="difference")
    assert moving.even.all()
    assert moving.trusted.all()


def test_the_words_of_a_probe_name_the_share():
    torch.manual_seed(0)
    objective = fs.Objective(LowRank(), data(), criterion=F.cross_entropy)
    found = fs.multifractal(objective, fs.ProbeSettings(count=4, banks=1))
    assert not found.analysis.valid
    flags = " ".join(found.flags)
    assert "33.3% of the parameters cannot move the loss at these weights (1 whole tensor: a)" in flags
    assert "the directions move only what cannot move it at these weights" in flags
    assert "does loss= use the model" not in flags


@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
def test_saturated_logits_are_not_trusted():
    """Margins of 40 to 300: the loss and its responses underflow, and the gradient does not."""
    torch.manual_seed(0)
    x = torch.randn(24, 8)
    model = nn.Linear(8, 3)
    with torch.no_grad():
        top = model(x).topk(2).values
        keep = top[:, 0] - top[:, 1] > 0.1
        x, y = x[keep], model(x[keep]).argmax(1)
        for part in model.parameters():
            part.mul_(400.0)
    objective = fs.Objective(model, [(x, y)], criterion=F.cross_entropy)
    for precision in ("float64", "float32"):
        found = fs.responses(objective, fs.Directions(objective, 4), [1e-6, 1e-5], precision=precision, method="loop")
        assert not found.even.any()
        assert not found.trusted.any()


@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
def test_zeros_of_linear_and_of_constant_losses_are_the_truth():
    torch.manual_seed(0)
    linear = fs.Objective(nn.Linear(4, 1), [(torch.randn(8, 4), torch.randn(8, 1) + 9)], criterion=nn.L1Loss())
    found = fs.responses(linear, fs.Directions(linear, 4), [1e-4, 1e-2], precision="difference")
    assert not found.even.any()
    assert found.odd.all()
    assert found.trusted.all()
    assert found.notes == ()
    constant = fs.Objective(nn.Linear(4, 1), [torch.randn(8, 4)], loss=lambda model, batch: 1.0 + 0.0 * model(batch).mean())
    for precision in ("difference", "float64"):
        flat = fs.responses(constant, fs.Directions(constant, 4), [1e-4, 1e-2], precision=precision)
        assert flat.trusted.all()
        assert any(note.startswith("100.0% of the parameters cannot move the loss") for note in flat.notes)


def test_single_numbers_without_influence_are_told_from_a_tenth_on():
    torch.manual_seed(0)
    x, y = data()[0]
    x[:, :3] = 0.0  # columns of the first layer that no sample reads: 48 of 195 numbers
    objective = fs.Objective(network("nowhere"), [(x, y)], criterion=F.cross_entropy)
    found = fs.responses(objective, fs.Directions(objective, 2), [1e-2])
    assert found.notes == (f"{48 / 195:.1%} of the parameters cannot move the loss at these weights",)
