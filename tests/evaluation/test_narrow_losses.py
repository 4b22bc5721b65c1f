"""Losses that run in float32 alone: a second network in a closure, a cast, a kernel without a float64 form."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.evaluation.evaluator import Evaluator
from fastscape.evaluation.noise import neighbouring_noise


def network(outputs=3):
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, outputs))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Fixed(torch.autograd.Function):
    """A kernel of float32 alone."""

    @staticmethod
    def forward(ctx, x):
        if x.dtype != torch.float32:
            raise NotImplementedError(f'"kernel" not implemented for {x.dtype}')
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


LABELS = torch.tensor([0, 2, 1, 1, 0, 2, 2, 1, 0, 1, 2, 0])


def distilled(model, batch, teacher):
    student, fixed = F.log_softmax(model(batch[0]), 1), F.softmax(teacher(batch[0]), 1)
    return F.kl_div(student, fixed, reduction="batchmean") + F.cross_entropy(model(batch[0]), batch[1])


def problem(name):
    """An objective whose loss runs in float32 alone."""
    torch.manual_seed(0)
    data = [(drawn(7, 6), LABELS[:7]), (drawn(5, 6, seed=1), LABELS[7:])]
    if name == "teacher":
        teacher = network().requires_grad_(False)
        return fs.Objective(network(), data, loss=lambda m, b: distilled(m, b, teacher))
    if name == "discriminator":
        judge = nn.Linear(3, 1)
        return fs.Objective(network(), data, loss=lambda m, b: F.softplus(-judge(m(b[0]))).mean())
    if name == "kernel":
        return fs.Objective(network(), data, loss=lambda m, b: F.cross_entropy(Fixed.apply(m(b[0])), b[1]))
    prior = drawn(3, 3, seed=2)
    return fs.Objective(network(), data, criterion=lambda outputs, targets: F.cross_entropy(outputs @ prior, targets))


NAMES = ["teacher", "discriminator", "kernel", "constant"]


@pytest.mark.parametrize("name", NAMES)
def test_float32_probes_go_on_and_say_how_their_noise_was_measured(name, untouched):
    objective = problem(name)
    with untouched(objective.model):
        found = fs.responses(objective, fs.Directions(objective, count=4), [0.1, 0.3])
        assert found.precision == "float32"
        assert "does not run in float64" in found.reason
        assert "neighbouring weights" in found.reason
        assert (found.noise > 0).all()
        result = fs.multifractal(objective, fs.ProbeSettings(count=8))
        assert any("neighbouring weights" in note for note in result.notes)
        assert np.isfinite(fs.slice1d(objective, count=2, points=5).losses).all()
        fs.sharpness(objective, restarts=1, steps=2, samples=4, products=6)
        fs.temperature(objective, batch_size=4, learning_rate=0.1)
    directions = fs.Directions(objective, count=3)
    flat = torch.stack([torch.cat([part.reshape(-1) for part in directions[i].values()]) for i in range(3)], 1)
    expected = (flat * (fs.hessian(objective) @ flat)).sum(0).numpy()
    forms = fs.quadratic_forms(objective, directions)
    assert forms.path.name == "forwards"
    np.testing.assert_allclose(forms.curvature, expected, atol=2 * forms.error.max())


@pytest.mark.parametrize("name", NAMES)
def test_what_needs_float64_names_the_loss_and_the_cast(name, untouched):
    objective = problem(name)
    directions = fs.Directions(objective, count=2)
    words = "the loss must run in float64 .* runs in float32 alone, got .*; cast what .*precision='float32'"
    with untouched(objective.model):
        for precision in ("float64", "difference"):
            with pytest.raises(fs.NarrowLossError, match=words):
                fs.responses(objective, directions, [0.1], precision=precision)
        with pytest.raises(fs.NarrowLossError, match=words):
            fs.losses(objective, directions, [0.1])
        with pytest.raises(fs.NarrowLossError, match=words):
            fs.operators(objective)
        with pytest.raises(fs.NarrowLossError, match=words):
            fs.quadratic_forms(objective, directions, method="graph")
    assert fs.losses(objective, directions, [0.1], precision="float32").isfinite().all()


def test_radii_below_the_noise_are_named_with_a_remedy_that_is_to_be_had():
    objective = problem("teacher")
    with pytest.warns(fs.PrecisionWarning, match="rounding noise on this model; pass larger radii; .*does not run in float64"):
        found = fs.responses(objective, fs.Directions(objective, count=4), [1e-6, 0.3])
    assert found.trusted.tolist() == [False, True]


def test_doctor_tells_the_cast_and_no_error():
    findings = {finding.check: finding for finding in fs.doctor(problem("teacher")).model}
    assert findings["memory"].severity == "ok"
    assert findings["difference propagation"].severity == "warning"
    assert "cast" in findings["difference propagation"].remedy


def test_a_loss_that_fails_in_both_dtypes_raises_what_it_raises():
    def broken(model, batch):
        raise IndexError("no such column")

    objective = fs.Objective(network(), [(drawn(4, 6),)], loss=broken)
    with pytest.raises(IndexError, match="no such column"):
        fs.multifractal(objective, fs.ProbeSettings(count=8))


@pytest.mark.parametrize("gain", [1.0, 4.0])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
def test_noise_between_neighbours_covers_the_distance_from_float64(gain, activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), activation(), nn.Linear(16, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(gain)
    objective = fs.Objective(model, [(drawn(12, 6), LABELS)], criterion=F.cross_entropy)
    directions, radii = fs.Directions(objective, count=16), np.logspace(-4, -1, 4)
    with Evaluator(objective, torch.float32, method="loop") as evaluator:
        noise, narrow = neighbouring_noise(evaluator, directions, range(4), radii)
        found = evaluator.responses(directions, range(16), radii)[0]
    with Evaluator(objective, torch.float64, method="loop") as evaluator:
        exact = evaluator.responses(directions, range(16), radii)[0]
    ratio = noise / np.sqrt(np.mean((found - exact) ** 2, axis=1))
    assert narrow == ""
    assert ((ratio > 0.5) & (ratio < 20)).all()  # 8 draws of each: a factor of two either way, and the doubling


def test_an_operation_narrower_than_float32_counts_as_noise():
    """bfloat16 logits: weights 20 roundings of float32 apart give the same ones, and would look exact."""
    torch.manual_seed(0)
    teacher = network().requires_grad_(False)

    def loss(model, batch):
        return F.mse_loss(model(batch[0]).bfloat16().float(), teacher(batch[0]))

    objective = fs.Objective(network(), [(drawn(7, 6),)], loss=loss)
    with Evaluator(objective, torch.float32, method="loop") as evaluator:
        noise, narrow = neighbouring_noise(evaluator, fs.Directions(objective, count=4), range(4), [1e-3])
    assert "bfloat16" in narrow
    assert noise[0] > 1e-3 * objective.loss()
