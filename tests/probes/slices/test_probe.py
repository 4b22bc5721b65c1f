"""Slices: exact at the origin, never transposed, roughness told from the bowl and from noise, anytime."""

import copy
import math

import numpy as np
import pytest
import torch
from timed import Timed
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.probes.slices import figures as slice_figures
from fastscape.probes.slices.axes import coarse_to_fine
from fastscape.runs.budget import BudgetError

DATA = [(torch.zeros(1), torch.zeros(1))]


class Bowl(nn.Module):
    """Two parameters; losses of them come from ``loss=``."""

    def __init__(self, first=3.0, second=-4.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([first, second], dtype=torch.float64))


def bowl(h1=10.0, h2=10.0, ripple=0.0):
    """(h1 x^2 + h2 y^2) / 2 about the weights, and a ripple along x."""
    model = Bowl()
    centre = model.w.detach().clone()

    def loss(model, batch):
        x, y = model.w - centre
        return (h1 * x**2 + h2 * y**2) / 2 + ripple * torch.cos(10 * math.pi * x)

    return fs.Objective(model, DATA, loss=loss)


ALONG = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 1.0])}]


# ---------------------------------------------------------------------- lines


@pytest.mark.parametrize(("h", "reach"), [(10.0, 1.0), (0.5, 3.0)])
def test_a_bowl_has_its_closed_form_roughness_and_none_detrended(h, reach):
    found = fs.slice1d(bowl(h, h), ALONG, radius=reach, scale="unit")
    assert found.roughness.value == pytest.approx(h**2 * reach**4 / 45, rel=1e-12)
    assert found.detrended.value < 1e-20
    assert found.detrended4.value < 1e-20
    assert found.second_difference.value == pytest.approx(h**2, rel=1e-9)
    assert found.minima.value == 1
    assert not found.resolved
    assert any("within the rounding" in flag for flag in found.flags)


def test_random_lines_are_as_many_as_a_factor_of_three_takes(tanh_objective):
    found = fs.slice1d(tanh_objective, points=5)
    assert len(found.losses) == 32
    low, high = found.roughness.interval
    assert 0 < low < found.roughness.value < high < 3 * found.roughness.value
    assert found.roughness.withheld == ""
    few = fs.slice1d(tanh_objective, points=5, count=5)
    assert few.roughness.withheld == "5 directions; at least 8"
    assert f"{few.roughness.value:.3g}, interval n/a (5 directions; at least 8)" in few.summary()


def test_a_budget_leaves_as_many_lines_as_fit(tanh_objective, monkeypatch):
    monkeypatch.setattr(fs.runs.budget.Budget, "admits", lambda budget, *_: True)
    assert len(fs.slice1d(tanh_objective, points=3, budget="60s").losses) == 32


def test_a_ripple_on_a_bowl_is_roughness():
    found = fs.slice1d(bowl(ripple=0.01), ALONG[:1], radius=1.0, scale="unit", points=81)
    assert found.detrended.value == pytest.approx(0.01**2 / 2, rel=0.05)
    assert found.resolved
    assert found.minima.value == 1  # h = 10 is steeper than the ripple but near the bottom
    deep = fs.slice1d(bowl(h1=0.1, ripple=0.01), ALONG[:1], radius=1.0, scale="unit", points=81)
    assert deep.minima.value == 10


def test_alpha_zero_is_a_point_with_the_objectives_loss(tanh_objective):
    for points in (3, 9, 41, 101):
        found = fs.slice1d(tanh_objective, points=points, count=2, radius=0.3)
        middle = points // 2
        assert found.alphas[middle] == 0.0
        assert (found.losses[:, middle] == tanh_objective.loss()).all()
        np.testing.assert_array_equal(found.alphas, -found.alphas[::-1])
        assert found.loss == tanh_objective.loss()


def test_losses_along_lines_are_those_of_the_engine(tanh_objective):
    directions = fs.Directions(tanh_objective, count=3, seed=2, normalize="filter")
    found = fs.slice1d(tanh_objective, directions, radius=0.5, points=5, precision="float64")
    expected = fs.losses(tanh_objective, directions, found.alphas).numpy()
    np.testing.assert_allclose(found.losses, expected, rtol=1e-6)
    own = fs.slice1d(tanh_objective, count=3, seed=2, radius=0.5, points=5, precision="float64")
    np.testing.assert_array_equal(found.losses, own.losses)


def test_alpha_is_the_relative_change_of_the_weights(tanh_objective):
    assert fs.slice1d(tanh_objective, count=2, points=3).eps_relative == pytest.approx([1.0, 1.0])
    unit = fs.slice1d(tanh_objective, count=2, points=3, scale="unit")
    assert unit.eps_relative == pytest.approx([1 / tanh_objective.norm] * 2)


def test_the_first_directions_do_not_depend_on_how_many_there_are(tanh_objective):
    few, many = (fs.slice1d(tanh_objective, count=count, points=3, method="loop") for count in (2, 4))
    np.testing.assert_array_equal(many.losses[:2], few.losses)


def test_rounding_is_not_called_roughness(tanh_objective):
    """Within 1e-6 ||w|| a float32 loss is rounding alone; in float64 it is a smooth line."""
    narrow = fs.slice1d(tanh_objective, radius=1e-6, count=4)
    assert not narrow.resolved
    assert narrow.detrended.value < 10 * narrow.noise_floor
    assert narrow.minima.value < 3
    exact = fs.slice1d(tanh_objective, radius=1e-6, count=4, precision="float64")
    assert exact.detrended.value < 1e-6 * narrow.detrended.value


def test_losses_that_are_not_finite_are_kept_and_counted():
    model = Bowl()

    def loss(model, batch):
        return torch.log(model.w[0] - 2.5)

    found = fs.slice1d(fs.Objective(model, DATA, loss=loss), ALONG, radius=1.0, points=9, scale="unit")
    assert np.isnan(found.losses[0]).any()
    assert np.isneginf(found.losses[0]).any()
    assert np.isfinite(found.losses[1]).all()
    assert found.roughness.n == 1
    assert any("NaN or inf" in flag for flag in found.flags)
    assert "NaN or inf" in str(found)


def test_random_gradient_eigenvectors_and_differences_are_directions(tanh_objective):
    spectrum = fs.spectrum(tanh_objective, 2, nodes=10, targets={"trace": None})
    top = fs.slice1d(tanh_objective, spectrum, radius=1e-3, points=5, scale="unit", precision="float64")
    h = np.diff(top.losses, 2, axis=1)[:, 1] / 5e-4**2
    np.testing.assert_allclose(h, spectrum.eigenvalues[:2], rtol=0.02)
    down = fs.slice1d(tanh_objective, "gradient", radius=1e-4, points=3, scale="unit", precision="float64")
    slope = (down.losses[0, 2] - down.losses[0, 0]) / 2e-4
    gradient = math.sqrt(sum(float(g.double().square().sum()) for g in tanh_objective.gradient().values()))
    assert slope == pytest.approx(gradient, rel=1e-3)
    other = copy.deepcopy(tanh_objective.model)
    with torch.no_grad():
        other[1].weight.mul_(1.5)
    axes = fs.Axes.difference(tanh_objective, tanh_objective.model.state_dict(), other.state_dict())
    between = fs.slice1d(tanh_objective, axes, points=3)
    assert between.losses[0, 2] == pytest.approx(tanh_objective.at(other.state_dict()).loss(), rel=1e-6)


# ---------------------------------------------------------------------- planes


def test_a_plane_is_not_transposed():
    """Of an anisotropic quadratic, alpha_1 is the steep axis: first dimension of the losses, x axis of the figure."""
    found = fs.slice2d(bowl(100.0, 1.0), ALONG, radius=(1.0, 2.0), points=(5, 9), scale="unit")
    assert found.losses.shape == (5, 9) == found.stderr.shape
    assert (found.alpha_1[-1], found.alpha_2[-1]) == (1.0, 2.0)
    expected = (100 * found.alpha_1[:, None] ** 2 + found.alpha_2[None, :] ** 2) / 2
    np.testing.assert_allclose(found.losses, expected, rtol=1e-12, atol=1e-14)
    ax = slice_figures.contour(found)
    assert ax.get_xlim() == (-1.0, 1.0)
    assert ax.get_ylim() == (-2.0, 2.0)
    drawn = ax.collections[0]
    assert drawn.get_array().max() > 40
    assert r"alpha_1" in ax.get_xlabel()
    assert r"alpha_2" in ax.get_ylabel()


def test_the_variance_of_a_bowl_over_a_plane_is_the_sum_of_both():
    found = fs.slice2d(bowl(10.0, 4.0), ALONG, radius=1.0, scale="unit", points=11)
    assert found.roughness == pytest.approx((10.0**2 + 4.0**2) / 45, rel=1e-12)
    assert found.detrended < 1e-20
    assert found.minima == 1


def test_the_axes_of_a_plane_are_orthogonal_unless_asked_otherwise(tanh_objective):
    rows = [{"1.weight": torch.ones(12, 64)}, {"1.weight": torch.ones(12, 64), "3.weight": torch.ones(10, 12)}]
    assert abs(fs.slice2d(tanh_objective, rows, points=3).cosine) < 1e-6
    cosine = math.sqrt(768 / 888)
    assert fs.slice2d(tanh_objective, rows, points=3, orthogonal=False).cosine == pytest.approx(cosine, rel=1e-5)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_parallel_directions_are_refused_with_their_cosine(tanh_objective, orthogonal):
    rows = [{"1.weight": torch.ones(12, 64)}, {"1.weight": -2 * torch.ones(12, 64)}]
    with pytest.raises(ValueError, match=r"'given 0' and 'given 1' with cosine -1\.0"):
        fs.slice2d(tanh_objective, rows, points=3, orthogonal=orthogonal)


def test_a_plane_through_a_trajectory_says_how_much_lies_outside(trained_mlp, digits, tmp_path):
    model, files, states = copy.deepcopy(trained_mlp), [], []
    for index in range(4):
        states.append(copy.deepcopy(model.state_dict()))
        files.append(tmp_path / f"step-{index}.pt")
        torch.save(states[-1], files[-1])
        with torch.no_grad():
            torch.manual_seed(index)
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    objective = fs.Objective(model, digits, criterion=F.cross_entropy)
    found = fs.slice2d(objective, "pca", trajectory=files, points=5)
    again = fs.slice2d(objective, "pca", trajectory=states, points=5)
    np.testing.assert_array_equal(found.losses, again.losses)
    assert found.trajectory.shape == (4, 2)
    assert (np.abs(found.trajectory) <= [found.alpha_1[-1], found.alpha_2[-1]]).all()
    whole = [
        math.sqrt(sum(float((state[n] - model.state_dict()[n]).double().square().sum()) for n in objective.names))
        for state in states
    ]
    inside = np.linalg.norm(found.trajectory * found.eps_relative * objective.norm, axis=1)
    np.testing.assert_allclose(np.hypot(inside, np.array(whole) * found.residual), whole, rtol=1e-5)
    explained = (inside**2).sum() / np.sum(np.square(whole))
    assert found.explained.sum() == pytest.approx(explained, rel=1e-5)
    assert "outside the plane" in str(found)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("radius", [0, 0.0, -1.0, math.inf, math.nan, 1e308, True, "1"])
@pytest.mark.parametrize("probe", [fs.slice1d, fs.slice2d])
def test_a_radius_that_is_not_positive_is_refused(tanh_objective, probe, radius):
    with pytest.raises(ValueError, match=r"radius must be positive and finite, got"):
        probe(tanh_objective, radius=radius)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": 40}, "points must be odd and at least 3, so that alpha = 0 is one of them, got 40"),
        ({"points": 1}, "points must be odd"),
        ({"count": 0}, "count must be at least 1"),
        ({"directions": "hessian"}, "directions must be 'random', 'gradient' or 'pca'"),
        ({"directions": "pca"}, "needs trajectory="),
        ({"directions": [{"nothing": torch.ones(1)}]}, "not a probed parameter"),
        ({"directions": []}, "at least one direction"),
        ({"precision": "half"}, "precision must be 'float64', 'float32' or None"),
        ({"normalize": "layerwise"}, "normalize must be one of"),
        ({"budget": "soon"}, "budget must be a positive time"),
        ({"trajectory": ["missing.pt"]}, "must be a file"),
    ],
)
def test_bad_settings_are_refused_by_name(tanh_objective, arguments, message):
    with pytest.raises(ValueError, match=message):
        fs.slice1d(tanh_objective, **arguments)


@pytest.mark.parametrize("radius", [(1.0,), (1.0, 1.0, 1.0)])
def test_a_plane_has_two_radii(tanh_objective, radius):
    with pytest.raises(ValueError, match=r"radius must be a number or a pair, got \("):
        fs.slice2d(tanh_objective, radius=radius)


def test_a_list_of_other_things_is_no_direction(tanh_objective):
    with pytest.raises(TypeError, match="directions must hold tensors by parameter name, got int"):
        fs.slice1d(tanh_objective, [3, 4])


def test_one_direction_makes_no_plane(tanh_objective):
    with pytest.raises(ValueError, match="directions must be two for a plane, got 1"):
        fs.slice2d(tanh_objective, "gradient")
    with pytest.raises(TypeError, match="objective must be a fastscape.Objective"):
        fs.slice2d(tanh_objective.model)
    with pytest.raises(TypeError, match=r"trajectory\[0\] must be a file, a state dict or a module, got int"):
        fs.slice2d(tanh_objective, "pca", trajectory=[3])


class Noisy(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + 0.1 * torch.rand(10)


@pytest.mark.parametrize("probe", [fs.slice1d, fs.slice2d])
def test_a_loss_with_noise_is_refused_before_it_looks_rugged(digits, probe):
    objective = fs.Objective(Noisy(nn.Flatten(), nn.Linear(64, 10)), digits, criterion=F.cross_entropy)
    with pytest.raises(fs.NondeterministicLossError, match="draws random numbers"):
        probe(objective, points=3)


# ---------------------------------------------------------------------- anytime


class Slow(nn.Linear):
    """Raises what it is told to at call ``at``."""

    calls, at, error = 0, math.inf, KeyboardInterrupt

    def forward(self, x):
        type(self).calls += 1
        if type(self).calls == type(self).at:
            raise type(self).error
        return super().forward(x.flatten(1))


@pytest.fixture
def interrupted(digits):
    """An objective whose evaluation raises at a call."""

    def make(at, error):
        Slow.calls, Slow.at, Slow.error = 0, at, error
        torch.manual_seed(0)
        return fs.Objective(Slow(64, 10), digits, criterion=F.cross_entropy)

    return make


def test_ctrl_c_leaves_the_directions_before_it(interrupted):
    found = fs.slice1d(interrupted(5 + 5 + 5 + 2, KeyboardInterrupt), count=4, points=5, method="loop")
    assert found.meta["stop_reason"] == "interrupted"
    assert found.losses.shape == (2, 5)
    assert any("2 of 4 directions were evaluated (interrupted)" in flag for flag in found.flags)
    with pytest.raises(KeyboardInterrupt):
        fs.slice1d(interrupted(5 + 2, KeyboardInterrupt), count=4, points=5, method="loop")


def test_ctrl_c_leaves_the_rows_before_it(interrupted, untouched):
    objective = interrupted(5 + 3 * 5 + 2, KeyboardInterrupt)
    with untouched(objective.model):
        found = fs.slice2d(objective, points=5, method="loop", radius=0.5)
    assert found.meta["stop_reason"] == "interrupted"
    assert found.evaluated.tolist() == [True, False, True, False, True]
    assert np.isnan(found.losses[~found.evaluated]).all()
    assert np.isfinite(found.losses[found.evaluated]).all()
    slice_figures.contour(found)


def test_an_error_of_the_model_keeps_what_was_evaluated(interrupted):
    with pytest.raises(fs.SliceError, match="failed after 2 directions: RuntimeError") as caught:
        fs.slice1d(interrupted(5 + 5 + 5 + 2, RuntimeError), count=4, points=5, method="loop")
    assert caught.value.partial.losses.shape == (2, 5)
    with pytest.raises(RuntimeError):
        fs.slice1d(interrupted(5 + 2, RuntimeError), count=4, points=5, method="loop")


def test_a_single_sample_has_no_standard_errors_for_the_right_reason():
    objective = fs.Objective(nn.Linear(4, 3), [(torch.ones(1, 4), torch.tensor([1]))], criterion=F.cross_entropy)
    assert fs.slice1d(objective, points=5, count=1).notes == ("no standard errors: they need two samples with finite losses",)


def test_a_budget_ends_a_plane_from_coarse_to_fine(tanh_net, digits):
    objective = fs.Objective(Timed(tanh_net), digits, criterion=F.cross_entropy)
    found = fs.slice2d(objective, points=9, budget=70, radius=0.5)
    assert found.meta["stop_reason"] == "deadline"
    done = np.flatnonzero(found.evaluated)
    assert sorted(coarse_to_fine(9)[: len(done)]) == done.tolist()
    assert 3 <= len(done) < 9
    assert math.isfinite(found.roughness)
    with pytest.raises(BudgetError, match="budget must hold one row"):
        fs.slice2d(objective, points=9, budget=20)


def test_rows_go_from_coarse_to_fine():
    assert coarse_to_fine(9) == [4, 0, 8, 2, 6, 1, 3, 5, 7]
    for count in (3, 5, 21, 42):
        assert sorted(coarse_to_fine(count)) == list(range(count))


# ---------------------------------------------------------------------- results


@pytest.mark.parametrize("probe", [fs.slice1d, fs.slice2d])
def test_a_slice_leaves_no_trace(bn_objective, untouched, probe):
    with untouched(bn_objective.model):
        probe(bn_objective, points=3, radius=0.1)
    with untouched(bn_objective.model), pytest.raises(ValueError, match="radius"):
        probe(bn_objective, radius=0)


def test_results_are_saved_and_read_back(tanh_objective, tmp_path):
    line = fs.slice1d(tanh_objective, points=7, count=2, name="digits", step=3)
    plane = fs.slice2d(tanh_objective, points=5)
    for result, kind in ((line, fs.SliceResult), (plane, fs.PlaneResult)):
        again = fs.load(result.save(tmp_path / result.kind))
        assert isinstance(again, kind)
        np.testing.assert_array_equal(again.losses, result.losses)
        assert str(again) == str(result)
        assert again.to_json() == result.to_json()
    assert line.accuracy.shape == (2, 7)
    assert line.accuracy[0, 3] == tanh_objective.accuracy()
    needed = {
        "seed",
        "settings",
        "dtype",
        "device",
        "model",
        "samples",
        "batches",
        "batch_norm",
        "weight_fingerprint",
        "data_fingerprint",
        "evaluations",
        "seconds",
        "stop_reason",
        "versions",
        "gate",
    }
    assert needed <= line.meta.keys()
    assert needed <= plane.meta.keys()


def test_a_wide_range_is_shown_on_a_symmetric_logarithmic_scale(tanh_objective):
    wide = fs.slice1d(tanh_objective, count=2, radius=1.0)
    assert slice_figures.lines(wide).get_yscale() == "linear"
    steep = fs.slice1d(bowl(1e6, 1e6), ALONG, scale="unit", points=5)
    assert slice_figures.lines(steep).get_yscale() == "symlog"
    asked = fs.slice1d(tanh_objective, count=2, radius=1.0, symlog=True)
    assert slice_figures.lines(asked).get_yscale() == "symlog"
    assert fs.slice2d(bowl(1e6, 1.0), ALONG, scale="unit", points=5).plot() is not None


def test_pages_show_lines_contours_and_surfaces(tanh_objective, tmp_path):
    from fastscape.reports.html import write_html

    for result, figures in ((fs.slice1d(tanh_objective, points=5, count=2), 1), (fs.slice2d(tanh_objective, points=5), 2)):
        page = write_html(result, tmp_path / f"{result.kind}.html")
        text = (tmp_path / f"{result.kind}.html").read_text() if page is None else page.read_text()
        assert text.count("<svg") >= figures
        assert "http://" not in text.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
            "http://creativecommons.org", ""
        )


def test_a_network_with_batch_norm_is_smooth_in_evaluation_mode():
    torch.manual_seed(0)
    objective = fs.Objective(zoo.cnn(), zoo.digits(samples=64), criterion=F.cross_entropy)
    found = fs.slice1d(objective, count=2, points=9, radius=0.1, precision="float64")
    assert found.minima.value <= 1
    assert np.isfinite(found.losses).all()


class LowRank(nn.Module):
    """A frozen layer beside a product of which one factor starts at zero."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(6, 4).requires_grad_(False)
        self.first, self.second = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.zeros(4, 2))

    def forward(self, x):
        return self.base(x) + x @ self.first.T @ self.second.T


def test_a_loss_that_nothing_has_moved_is_told_and_no_flat_one():
    torch.manual_seed(0)
    objective = fs.Objective(LowRank(), [(torch.randn(8, 6), torch.randint(0, 4, (8,)))], criterion=F.cross_entropy)
    for found in (fs.slice1d(objective, count=2, points=5), fs.slice2d(objective, points=5), fs.sharpness(objective, restarts=2)):
        assert any("the loss did not change at any point" in flag for flag in found.flags), type(found)
    moved = fs.slice1d(objective, count=2, points=5, normalize="global"), fs.sharpness(objective, restarts=2, variant="sam")
    for found in moved:
        assert not any("did not change" in flag for flag in found.flags), type(found)
