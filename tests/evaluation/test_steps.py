"""Steps inside a model - narrow casts, quantisations, hidden ones - set the noise; continuous losses are left alone."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape._state import exact_arithmetic
from fastscape.evaluation.arithmetic import arithmetic
from fastscape.evaluation.noise import step_noise
from fastscape.evaluation.steps import EVEN, step_errors, steps_found

RADII = np.logspace(-5, -1, 7)


def through_numpy(dtype):
    return lambda z: torch.from_numpy(z.detach().numpy().astype(dtype).astype(np.float64)).to(z.dtype)


def rounded(bits):
    return lambda z: torch.round(z * 2**bits) / 2**bits


STEPS = {
    "bfloat16": lambda z: z.bfloat16().to(z.dtype),
    "float16": lambda z: z.half().to(z.dtype),
    "float32": lambda z: z.float().to(z.dtype),
    "float8": lambda z: z.to(torch.float8_e4m3fn).to(z.dtype),
    "int8": lambda z: (z * 32).to(torch.int8).to(z.dtype) / 32,
    "round": rounded(6),
    "coarse": rounded(2),
    "fake quantise": lambda z: torch.fake_quantize_per_tensor_affine(z.float(), 0.03, 0, -128, 127).to(z.dtype),
    "float16 by NumPy": through_numpy(np.float16),
    "float32 by NumPy": through_numpy(np.float32),
}


class StraightThrough(torch.autograd.Function):
    """Rounds in the forward, and is the identity in the backward."""

    @staticmethod
    def forward(_context, z, kind):
        return STEPS[kind](z)

    @staticmethod
    def backward(_context, gradient):
        return gradient, None


class Stepped(nn.Module):
    """A perceptron of which one value is rounded; ``kind=None`` is the smooth function."""

    def __init__(self, kind, where, activation=torch.tanh):
        super().__init__()
        self.first, self.last = nn.Linear(8, 24), nn.Linear(24, 3)
        self.kind, self.where, self.activation = kind, where, activation

    def step(self, z, where):
        return StraightThrough.apply(z, self.kind) if self.kind and where == self.where else z

    def forward(self, x):
        hidden = F.linear(x, self.step(self.first.weight, "weights"), self.first.bias)
        return self.step(self.last(self.activation(self.step(hidden, "hidden"))), "outputs")


def case(kind, where, activation=torch.tanh):
    torch.manual_seed(0)
    model = Stepped(kind, where, activation)
    x, y = torch.randn(24, 8), torch.randint(0, 3, (24,))
    return fs.Objective(model, [(x, y)], criterion=F.cross_entropy)


def exceeding(found, truth):
    """Which of the trusted responses are wrong by more than the noise stated for them."""
    return (np.abs(found.even - truth) > found.noise[:, None])[found.trusted].ravel()


@pytest.fixture(scope="module")
def smooth():
    return {
        name: fs.responses(case(None, "", act), fs.Directions(case(None, "", act), 8), RADII, precision="float64").even
        for name, act in (("tanh", torch.tanh), ("relu", torch.relu))
    }


@pytest.mark.parametrize("where", ["hidden", "outputs", "weights"])
def test_trusted_responses_are_within_their_noise_whatever_rounds_inside(smooth, where):
    """The truth is the smooth function, by float64: its own rounding is below 1e-4 of it at the radii compared."""
    counts, wrong = 0, 0
    for kind in STEPS:
        for name, activation in (("tanh", torch.tanh), ("relu", torch.relu)):
            objective = case(kind, where, activation)
            found = fs.responses(objective, fs.Directions(objective, 8), RADII, precision="float64")
            beyond = exceeding(found, smooth[name])
            error = np.sqrt(np.mean((found.even - smooth[name]) ** 2, axis=1) / np.mean(smooth[name] ** 2, axis=1))
            assert (error[found.trusted] < 0.3).all(), (kind, name, error, found.trusted)
            counts, wrong = counts + beyond.size, wrong + int(beyond.sum())
            if "float32" not in kind:
                assert not found.trusted[:3].any(), (kind, name)
    assert counts > 0
    assert wrong <= 0.05 * counts


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32"])
def test_a_narrow_dtype_is_measured_at_its_own_scale(kind, smooth):
    objective = case(kind, "hidden")
    found = fs.responses(objective, fs.Directions(objective, 8), RADII, precision="float64")
    error = np.sqrt(np.mean((found.even - smooth["tanh"]) ** 2, axis=1))
    assert found.noise[0] >= error.max() / 2
    assert found.noise[0] <= 100 * error.max()
    assert found.narrow == f"{kind} in aten._to_copy.default"
    assert found.arithmetic == f"float64; narrowest {kind} in aten._to_copy.default"


@pytest.mark.parametrize("kind", ["round", "int8", "fake quantise", "float16 by NumPy"])
def test_quantisations_are_named(kind):
    found = arithmetic(case(kind, "hidden"), torch.float64)
    assert found.rounds
    assert "roundings in" in found.words
    assert not arithmetic(case(None, ""), torch.float64).rounds


def lines_of(function):
    """Losses ``[n, P]`` of a function of distance along lines with phases of their own."""
    phases = np.linspace(0.1, 2.9, 6)[:, None]
    return lambda distances: np.vectorize(function)(np.asarray(distances, dtype=np.float64)[None, :], phases)


CONTINUOUS = {
    "smooth": lambda r, p: np.sin(3 * r + p),
    "bent at w": lambda r, p: p * abs(r) + r,
    "bent nearby": lambda r, p: max(0.0, r - 1e-3 * p) + 0.1 * r,
    "bent often": lambda r, p: sum(abs(r - (k - 20) * 1e-3 * p) for k in range(40)) / 40,
    "odd": lambda r, p: p * r**3 + r,
    "flat": lambda _r, _p: 1.0,
    "flat and then bent": lambda r, p: max(0.0, r - 0.02 * p),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_losses_have_no_steps(name):
    assert not steps_found(lines_of(CONTINUOUS[name]), 1e-14)


@pytest.mark.parametrize("resolution", [1e-6, 1e-4, 1e-3, 1e-2])
def test_a_staircase_is_found_and_its_error_measured(resolution):
    """Of a loss that is rounded to 1/64 of its slope at every resolution: the error is uniform over a step."""
    generator = np.random.default_rng(0)
    shifts = generator.uniform(size=(6, 256))

    def losses(distances):
        points = np.asarray(distances, dtype=np.float64)[None, :, None] / resolution + shifts[:, None, :]
        return np.floor(points).mean(axis=2) * resolution + 0.5 * np.asarray(distances)[None, :]

    assert steps_found(losses, 1e-15)
    deviation = resolution / np.sqrt(12 * 256)
    level = EVEN * step_errors(losses, np.zeros(0), level=True)
    assert np.sqrt(6) * deviation < level < 8 * np.sqrt(6) * deviation


@pytest.mark.parametrize("kind", ["bfloat16", "round", "float16 by NumPy"])
def test_slices_of_a_stepped_loss_are_not_called_rough(kind):
    objective = case(kind, "hidden")
    found = fs.slice1d(objective, count=4, points=31, radius=0.02)
    truth = fs.slice1d(case(None, ""), count=4, points=31, radius=0.02, precision="float64")
    assert truth.detrended.value < 0.01 * found.detrended.value
    assert not found.resolved
    assert found.minima.value < 2
    assert found.meta["arithmetic"] != "float32"
    double = fs.slice1d(objective, count=4, points=31, radius=0.02, precision="float64")
    assert not double.resolved


def test_a_barrier_states_the_error_of_its_steps():
    plain, stepped = case(None, ""), case("bfloat16", "hidden")
    state = {name: tensor * 1.2 for name, tensor in plain.model.state_dict().items()}
    noises = [fs.barrier(objective, None, state, points=3, start=3).noise for objective in (plain, stepped)]
    assert noises[1] > 10 * noises[0]


@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
def test_a_cast_does_not_cancel_in_the_calibration_of_float32():
    """Float32 and float64 of one model round to bfloat16 alike; the error is that of the cast all the same."""
    objective = case("bfloat16", "hidden")
    directions = fs.Directions(objective, 8)
    found = fs.responses(objective, directions, RADII, precision="float32", method="loop")
    truth = fs.responses(case(None, ""), directions, RADII, precision="float64").even
    assert not found.trusted[:4].any()
    assert exceeding(found, truth).sum() <= 0.05 * max(1, found.trusted.sum() * 8)


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float8", "round", "int8"])
def test_difference_propagation_states_what_roundings_of_its_values_do(kind, smooth):
    objective = case(kind, "hidden")
    found = fs.responses(objective, fs.Directions(objective, 8), RADII, precision="difference")
    assert (np.abs(found.even - smooth["tanh"])[3:] <= found.noise[3:, None]).mean() >= 0.95
    if kind in ("round", "int8"):
        assert not found.trusted[:4].any()
    elif kind != "float8":
        assert (np.abs(found.even) > 10 * found.noise[:, None]).mean() > 0.7  # the mode stays of use
        forms = fs.quadratic_forms(objective, fs.Directions(objective, 8))
        exact = fs.quadratic_forms(case(None, ""), fs.Directions(objective, 8), lanes=torch.float64).curvature
        assert forms.error is not None
        assert (np.abs(forms.curvature - exact) <= forms.error).mean() >= 0.8


def kinked(seed):
    """A perceptron with ReLUs, a network with max-pooling, or an absolute error, of few samples: kinks far apart."""
    torch.manual_seed(seed)
    if seed % 3 == 0:
        net, x = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)), torch.randn(12, 6)
    elif seed % 3 == 1:
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 4))
        x = torch.randn(12, 3, 8, 8)
    else:
        net, x = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)), torch.randn(4, 6)
    if seed % 3 == 2:
        return fs.Objective(net, [(x, torch.randn(4, 1))], criterion=F.l1_loss)
    return fs.Objective(net, [(x, torch.randint(0, 4, (12,)))], criterion=F.cross_entropy)


def test_kinks_that_cancel_at_one_distance_are_no_steps():
    stepped = 0
    for seed in range(60):
        objective = kinked(seed)
        with exact_arithmetic(torch.float32):
            replica = objective.replica(torch.float32)
            stepped += step_noise(replica, replica.reset) > 0
    assert stepped == 0
