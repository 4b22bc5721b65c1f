"""Weights that are made a module at a time: the numbers of the loop in the memory of the largest module."""

import models
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.evaluation import streaming
from fastscape.evaluation.footprint import enough
from fastscape.evaluation.streaming import streamed_bytes
from fastscape.objective import examination
from fastscape.runs.peak import PeakMemory

MIB = 2**20
RADII = [1e-2, 0.1]


@pytest.fixture(scope="module")
def gpt():
    """The largest module has a ninth of the parameters."""
    return models.TiedGPT(width=64, layers=3)


def of(model, **options):
    return fs.Objective(model, [models.tokens()], criterion=F.cross_entropy, **options)


KINDS = {
    "gaussian": lambda o: fs.Directions(o, 2),
    "signs": lambda o: fs.Directions(o, 2, distribution="rademacher"),
    "filters": lambda o: fs.Directions(o, 2, normalize="filter"),
    "elements": lambda o: fs.Directions(o, 2, normalize="element"),
    "low rank": lambda o: fs.Directions(o, 2, rank=2),
    "given": lambda o: fs.Directions.gradient(o),
}


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("float64", torch.bfloat16)])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_have_the_bits_of_the_loop(kind, precision, dtype, untouched):
    model = models.TiedGPT(layers=1).to(dtype)
    objective = of(model)
    directions = KINDS[kind](objective)
    radii = [-0.1, 0.0, 0.3]
    with untouched(model):
        found = fs.losses(objective, directions, radii, precision=precision, method="stream")
    expected = fs.losses(objective, directions, radii, precision=precision, method="loop")
    assert torch.equal(found, expected)
    assert len(set(found.flatten().tolist())) > 2


def test_parameters_are_made_inside_of_transforms_too():
    class Forces(nn.Module):
        def __init__(self):
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))

        def forward(self, x):
            return torch.func.vmap(torch.func.grad(lambda row: self.energy(row).squeeze()))(x)

    torch.manual_seed(0)
    objective = fs.Objective(Forces(), [(torch.randn(6, 4), torch.arange(6) % 3)], criterion=F.cross_entropy)
    directions = fs.Directions(objective, 1)
    found, expected = (fs.losses(objective, directions, [0.1, 0.0], method=method) for method in ("stream", "loop"))
    assert torch.equal(found, expected)


def test_directions_whose_noise_is_not_kept_have_the_bits_of_the_loop(gpt, monkeypatch):
    monkeypatch.setattr("fastscape.evaluation.displacement.STORED_BYTES", 0)
    objective = of(gpt)
    directions = fs.Directions(objective, 1)
    found, expected = (fs.losses(objective, directions, [0.1, -0.1], method=method) for method in ("stream", "loop"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_responses_take_the_memory_of_the_largest_module(gpt, precision, monkeypatch):
    monkeypatch.setattr(examination, "LARGE", 0)
    objective = of(gpt)
    directions = fs.Directions(objective, 2)
    bound = streamed_bytes(objective, torch.float64)  # of float64, in which float32 is calibrated
    with PeakMemory() as spent:
        found = fs.responses(objective, directions, RADII, precision=precision, method="stream")
    assert spent.peak <= bound < 8 * objective.size
    assert found.path.name == found.plan.ways[0].path == "stream"
    expected = fs.responses(objective, directions, RADII, precision=precision, method="loop")
    for name in ("even", "odd", "noise"):
        assert np.array_equal(getattr(found, name), getattr(expected, name))
    again = fs.responses(objective, directions, RADII, precision=precision, plan=found)
    assert again.path.name == "stream"
    assert np.array_equal(again.even, found.even)


def test_forms_by_forwards_take_the_memory_of_the_largest_module(gpt, monkeypatch):
    objective = of(gpt)
    directions = fs.Directions(objective, 2)
    expected = fs.quadratic_forms(objective, directions, method="forwards")
    monkeypatch.setattr(examination, "LARGE", 0)
    objective = of(gpt)
    bound = streamed_bytes(objective, torch.float32)
    with PeakMemory() as spent:
        found = fs.quadratic_forms(objective, directions, method="forwards")
    assert np.array_equal(found.curvature, expected.curvature)
    assert spent.peak <= bound < 4 * objective.size


def test_it_is_chosen_where_copies_do_not_fit(gpt, monkeypatch):
    monkeypatch.setattr(examination, "LARGE", 0)
    objective = of(gpt)
    directions = fs.Directions(objective, 1)
    expected = fs.responses(objective, directions, RADII, precision="float64", method="loop")
    assert fs.responses(objective, directions, RADII, precision="float64").path.name != "stream"
    cap = enough(3 * streamed_bytes(objective, torch.float64) // 2)
    with PeakMemory() as spent:
        found = fs.responses(objective, directions, RADII, precision="float64", memory=cap)
    assert spent.peak <= cap < 2 * 8 * objective.size
    assert "do not fit in memory=" in found.path.reason
    assert np.array_equal(found.even, expected.even)
    monkeypatch.setattr(streaming, "available_memory", lambda _: 10 * objective.size)
    found = fs.responses(objective, directions, RADII, precision="float64")
    assert "of free memory" in found.path.reason
    with pytest.raises(ValueError, match=r"memory must hold an evaluation of the loss, a module at a time, for which \d+ bytes"):
        fs.responses(objective, directions, RADII, precision="float64", memory=MIB // 4)


def test_frozen_parameters_are_not_copied_into_a_wider_dtype(gpt, monkeypatch):
    monkeypatch.setattr(examination, "LARGE", 0)
    objective = of(gpt, params="blocks.1.norms.0.weight")
    directions = fs.Directions(objective, 1)
    bound = streamed_bytes(objective, torch.float64)
    with PeakMemory() as spent:
        found = fs.losses(objective, directions, RADII)
    assert spent.peak <= bound < 8 * sum(parameter.numel() for parameter in gpt.parameters())
    assert torch.equal(found, fs.losses(objective, directions, RADII, method="loop"))


def test_a_model_of_seven_billion_parameters_is_streamed_by_its_shapes():
    """By arithmetic alone: nothing of it is ever there."""

    class Layer(nn.Module):
        def __init__(self, width, wide):
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in ((width, wide), (width, wide), (wide, width)))
            self.heads = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(4))

        def forward(self, x):
            for head in self.heads:
                x = x + head(x)
            return x + self.parts[2](F.silu(self.parts[0](x)) * self.parts[1](x))

    with torch.device("meta"):
        width, wide, vocabulary = 4096, 11008, 32000
        layers = [Layer(width, wide) for _ in range(32)]
        model = nn.Sequential(nn.Embedding(vocabulary, width), *layers, nn.Linear(width, vocabulary, bias=False))
    model = model.to(torch.bfloat16)
    largest = vocabulary * width
    size = sum(parameter.numel() for parameter in model.parameters())
    assert 6.5e9 < size < 7.5e9
    assert streaming.weights(model, torch.float32) == (4 * largest, 0, 4 * size)
    assert 2 * 4 * largest < 24 * 2**30 / 20 < 4 * size


def test_what_cannot_be_made_on_use_is_refused_by_name():
    class Writing(nn.Linear):
        def forward(self, inputs):
            with torch.no_grad():
                self.weight.clamp_(-0.1, 0.1)
            return super().forward(inputs)

    class Mapped(nn.Linear):
        def __init__(self):
            super().__init__(4, 3)
            self.__dict__["_parameters"] = type("Own", (dict,), {})(self._parameters)

    batch = torch.randn(6, 4), torch.arange(6) % 3
    for layer, words in ((Writing(4, 3), "its forward writes into the parameter '0.weight'"), (Mapped(), "0, a Mapped, holds")):
        objective = fs.Objective(nn.Sequential(layer), [batch], criterion=F.cross_entropy)
        with pytest.raises(ValueError, match=f"method must be 'loop' for this model, got 'stream', .* {words}"):
            fs.losses(objective, fs.Directions(objective, 1), [0.1], method="stream")


def test_a_loss_that_draws_or_keeps_weights_is_refused_as_by_the_loop(untouched):
    class Keeping(nn.Linear):
        product = None

        def forward(self, inputs):
            if self.product is None:
                self.product = (self.weight.detach() * 2,)
            return F.linear(inputs, self.product[0], self.bias)

    model = nn.Sequential(Keeping(4, 4), nn.Linear(4, 3))
    objective = fs.Objective(model, [(torch.randn(6, 4), torch.arange(6) % 3)], criterion=F.cross_entropy)
    with untouched(model), pytest.raises(fs.NondeterministicLossError, match="must be a function of the present weights"):
        fs.losses(objective, fs.Directions(objective, 1), [0.1], method="stream")


@pytest.mark.parametrize("failing", [2, 3, 5, 7, 11])
def test_an_error_anywhere_leaves_the_model_as_it_was(failing, untouched):
    class Failing(nn.Linear):
        calls = 0

        def forward(self, inputs):
            Failing.calls += 1
            if Failing.calls > failing:
                raise KeyboardInterrupt
            return super().forward(inputs)

    model = nn.Sequential(nn.Linear(4, 4), Failing(4, 4), nn.Linear(4, 3))
    objective = fs.Objective(model, [(torch.randn(6, 4), torch.arange(6) % 3)], criterion=F.cross_entropy)
    with untouched(model), pytest.raises(KeyboardInterrupt):
        fs.losses(objective, fs.Directions(objective, 9), RADII, method="stream")
