"""Every probe on models with an autocast inside and in bfloat16, against float64 of the same function written out."""

import copy

import numpy as np
import pytest
import torch
from mixed_precision import (
    CASES,
    autocast_in_loss,
    data,
    dense_hessian,
    displaced,
    exact_loss,
    moved,
    network,
    objective_of,
)
from torch.nn import functional as F
from torch.nn.utils import parametrize

import fastscape as fs
from fastscape._state import autocast_here, plain_arithmetic
from fastscape.probes.doctor.computing import COMPUTING
from fastscape.reports.html import write_html

UNIT = 2.0**-8  # of bfloat16
BFLOAT = pytest.mark.parametrize("name", CASES)


def as_trained(objective, weights):
    """The loss with the model's own casts, by loading the weights into a copy, without any evaluation of fastscape's."""
    model = copy.deepcopy(objective.model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
        if objective.user_loss is not None:
            return float(objective.user_loss(model, objective.batches[0]))
        x, y = objective.batches[0]
        return float(F.cross_entropy(model(x), y))


@BFLOAT
def test_slices_follow_the_weights(name):
    objective = CASES[name]()
    directions = fs.Directions(objective, 2)
    exact = list(fs.Directions(objective.cast(torch.float64), 2))
    found = fs.slice1d(objective, directions, radius=1.0, points=5)
    for row, direction in zip(found.losses, exact, strict=True):
        for alpha, loss in zip(found.alphas, row, strict=True):
            weights = moved(objective, direction, alpha)
            assert loss == pytest.approx(as_trained(objective, weights), abs=2 * UNIT)
            assert loss == pytest.approx(float(exact_loss(objective, weights)), abs=4 * UNIT)
    assert np.ptp(found.losses, axis=1).min() > 4 * UNIT
    wide = fs.slice1d(objective, directions, radius=1.0, points=5, precision="float64")
    truth = [[float(exact_loss(objective, moved(objective, d, alpha))) for alpha in wide.alphas] for d in exact]
    np.testing.assert_allclose(wide.losses, truth, rtol=1e-7)


@BFLOAT
def test_planes_and_barriers_follow_the_weights(name):
    objective = CASES[name]()
    plane = fs.slice2d(objective, points=3, radius=1.0)
    assert np.ptp(plane.losses) > 4 * UNIT
    state = displaced(objective.model)
    found = fs.barrier(objective, None, state, points=5, start=5)
    assert found.losses[-1] == pytest.approx(as_trained(objective, state), abs=UNIT / 2)
    ends = [{key: value.double() for key, value in of.items()} for of in (objective.model.state_dict(), state)]
    for alpha, loss in zip(found.alphas, found.losses, strict=True):
        weights = {key: (1 - alpha) * ends[0][key] + alpha * ends[1][key] for key in ends[0]}
        assert loss == pytest.approx(float(exact_loss(objective, weights)), abs=8 * UNIT)
    wide = fs.barrier(objective, None, state, points=5, start=5, precision="float64")
    assert wide.losses[-1] == pytest.approx(float(exact_loss(objective, ends[1])), rel=1e-12)


@BFLOAT
def test_sharpness_is_that_of_the_loss_without_casts(name):
    objective = CASES[name]()
    settings = {"restarts": 1, "steps": 4, "samples": 8, "products": 0}
    plain = network("nowhere").double()
    plain.load_state_dict({key: value.double() for key, value in objective.model.state_dict().items()})
    truth = fs.sharpness(fs.Objective(plain, data(torch.float64), criterion=F.cross_entropy), 0.2, **settings)
    assert np.isfinite(truth.worst)
    for precision in (None, "float32", "float64"):
        found = fs.sharpness(objective, 0.2, precision=precision, **settings)
        assert found.worst == pytest.approx(truth.worst, rel=0.1)
        if not np.isnan(found.random.value):  # withheld, with its reason
            assert found.random.value == pytest.approx(truth.random.value, rel=0.05, abs=1e-6)
        else:
            assert any("the average case is withheld" in note for note in found.notes)


@BFLOAT
@pytest.mark.parametrize("precision", [None, "float64", "difference"])
def test_responses_and_forms_are_those_of_the_hessian_without_casts(name, precision):
    objective = CASES[name]()
    directions = fs.Directions(objective, 3)
    hessian = dense_hessian(objective)
    flat = [
        torch.cat([direction[key].double().reshape(-1) for key in objective.names])
        for direction in fs.Directions(objective.cast(torch.float64), 3)
    ]
    forms = np.array([float(vector @ hessian @ vector) for vector in flat])
    found = fs.responses(objective, directions, [1e-4, 1e-3], precision=precision)
    np.testing.assert_allclose(found.even[0] / 1e-8, forms, rtol=1e-3, atol=1e-3 * np.abs(forms).max())
    assert found.trusted[1]
    if precision is None:
        exact = fs.quadratic_forms(objective, directions)
        np.testing.assert_allclose(exact.curvature, forms, rtol=1e-4, atol=1e-5 * np.abs(forms).max())


@pytest.mark.filterwarnings("ignore::fastscape.PrecisionWarning")
@pytest.mark.parametrize("name", [name for name in CASES if "autocast" in name])
def test_responses_of_float32_are_untrusted_where_autocast_drowns_them(name):
    objective = CASES[name]()
    directions = fs.Directions(objective, 4)
    radii = np.array([1e-3, 1e-2, 1.0])
    found = fs.responses(objective, directions, radii, precision="float32", method="loop")
    truth = fs.responses(objective, directions, radii, precision="float64").even
    assert not found.trusted[:2].any()
    assert (np.abs(found.even - truth)[found.trusted] <= 3 * found.noise[found.trusted, None]).all()
    assert found.arithmetic == "float32 with your autocast to bfloat16"


# ---------------------------------------------------------------------- caches


def test_a_callers_autocast_and_its_cache_change_nothing():
    """The cache of the caller's autocast holds casts of the user's weights, and one inside the model would join it."""
    objective = objective_of(network())
    expected = fs.slice1d(objective, count=1, points=3).losses
    with torch.autocast("cpu", torch.bfloat16):
        objective.model(objective.batches[0][0])
        found = fs.slice1d(objective, count=1, points=3)
        assert torch.is_autocast_cache_enabled()
        assert autocast_here() == {"cpu": torch.bfloat16}
    np.testing.assert_array_equal(found.losses, expected)
    assert "without the autocast to bfloat16 around the call" in found.meta["arithmetic"]
    assert any("an autocast counts where the model or loss= enters it" in note for note in found.notes)


def test_gradients_survive_a_forward_without_them():
    """A cast that was cached without a graph has no gradient: sharpness evaluates both kinds in turn."""
    objective = objective_of(network("attribute"))
    with plain_arithmetic(torch.float32):
        replica = objective.replica(torch.float32)
        replica.reset()
        replica.loss()
        gradient = replica.gradient()
    assert all(bool(part.any()) for part in gradient)


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def test_cached_parametrizations_follow_the_weights():
    model = network("nowhere")
    parametrize.register_parametrization(model.first, "weight", Doubled())
    objective = objective_of(model)
    expected = fs.slice1d(objective, count=1, points=3, radius=0.5).losses
    with parametrize.cached():
        model(objective.batches[0][0])
        found = fs.slice1d(objective, count=1, points=3, radius=0.5).losses
        assert parametrize._cache_enabled == 1
    np.testing.assert_array_equal(found, expected)
    assert np.ptp(found) > 1e-4


# ---------------------------------------------------------------------- what is said


def test_every_result_names_its_arithmetic(tmp_path):
    objective = objective_of(network())
    words = "float32 with your autocast to bfloat16"
    state = displaced(objective.model)
    results = [
        fs.slice1d(objective, count=1, points=3),
        fs.slice2d(objective, points=3),
        fs.barrier(objective, None, state, points=3, start=3),
        fs.barriers(objective, {"a": objective.model.state_dict(), "b": state}, points=3, start=3),
        fs.connect(objective, None, state, steps=1, points=3, start=3),
        fs.sharpness(objective, 0.3, restarts=1, steps=1, samples=4, products=0, precision="float32"),
        fs.temperature(objective, batch_size=4, learning_rate=0.1, products=0),
    ]
    for result in results:
        assert result.meta["arithmetic"] == words, type(result)
        page = tmp_path / "page.html"
        write_html(result, page)
        assert words in page.read_text()
    assert f"measured in {words}" in str(results[0])
    wide = fs.slice1d(objective, count=1, points=3, precision="float64")
    assert wide.meta["arithmetic"] == "float64, without your autocast to bfloat16"
    assert any("the network as it is trained rounds more" in note for note in wide.notes)
    again = fs.load(wide.save(tmp_path / "wide"))
    assert again.meta["arithmetic"] == wide.meta["arithmetic"]


def test_probes_of_responses_name_their_arithmetic(tmp_path):
    objective = objective_of(network())
    probe = fs.ProbeSettings(count=4, banks=1, precision="float64")
    found = fs.multifractal(objective, probe, fs.AnalysisSettings(bootstrap=20, permutations=19))
    assert found.meta["arithmetic"] == "float64, without your autocast to bfloat16"
    assert any("without your autocast to bfloat16" in flag for flag in found.flags)
    write_html(found, tmp_path / "page.html")
    assert "without your autocast to bfloat16" in (tmp_path / "page.html").read_text()
    spread = fs.responses(objective, fs.Directions(objective, 2), [1e-2], precision="difference")
    assert spread.meta["arithmetic"] == "difference propagation around values at w in float64, without your autocast to bfloat16"


def test_plain_models_are_said_to_be_plain():
    objective = objective_of(network("nowhere"))
    found = fs.slice1d(objective, count=1, points=3)
    assert found.meta["arithmetic"] == "float32"
    assert not any("measured in" in note for note in found.notes)
    half = objective_of(network("nowhere", torch.bfloat16))
    wide = fs.responses(half, fs.Directions(half, 2), [1e-2], precision="float64")
    assert wide.arithmetic == "float64, instead of the model's bfloat16"


def test_a_spectrum_and_a_tracker_name_their_arithmetic():
    objective = objective_of(network("nowhere", torch.bfloat16))
    spectrum = fs.spectrum(objective, k=1, nodes=10)
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(objective))
    assert spectrum.lambda_max == pytest.approx(float(eigenvalues[-1]), rel=2e-3)
    assert spectrum.meta["arithmetic"] == "float32, instead of the model's bfloat16"
    tracked = objective_of(network())
    tracker = fs.Tracker(tracked, every=1, share=1e6, what=("loss", "gradient"))
    tracker.step(0)
    tracker.finish()
    result = tracker.result
    assert result.meta["arithmetic"] == "float32 with your autocast to bfloat16"
    assert any("autocast to bfloat16" in note for note in result.notes)
    truth = float(exact_loss(tracked))
    assert result.points[0].values["loss"] == pytest.approx(truth, abs=4 * UNIT)
    weights = dict(tracked.model.named_parameters())
    leaves = {name: tensor.detach().double().requires_grad_() for name, tensor in weights.items()}
    gradient = torch.autograd.grad(exact_loss(tracked, leaves), list(leaves.values()))
    square = float(torch.cat([part.reshape(-1) for part in gradient]).square().sum())
    assert result.points[0].values["gradient_norm_squared"] == pytest.approx(square, rel=0.05)


def test_doctor_says_which_function_each_arithmetic_measures():
    words = COMPUTING["arithmetic of the loss"](objective_of(network())).found
    assert "float32 with your autocast to bfloat16" in words
    assert "float64, without your autocast" in words


def test_autocast_in_the_loss_is_seen_like_one_in_the_model():
    objective = objective_of(network("nowhere"), criterion=None, loss=autocast_in_loss)
    assert fs.slice1d(objective, count=1, points=3).meta["arithmetic"] == "float32 with your autocast to bfloat16"
