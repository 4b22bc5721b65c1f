"""Losses of families of weights: exact at the origin, the same on every path, with errors over samples."""

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.evaluation.surface import surface as surface_module
from fastscape.evaluation.surface.families import Affine
from fastscape.evaluation.surface.sample_losses import standard_errors
from fastscape.evaluation.surface.surface import Surface


def affine(objective, count=2, dtype=None):
    directions = fs.Directions(objective, count=count, seed=3)
    return Affine(list(objective.base.values()), [directions.tensors(index, dtype)[0] for index in range(count)])


def grid(size=5, reach=0.3, dims=2):
    line = np.arange(-(size // 2), size // 2 + 1) / (size // 2) * reach
    return np.stack(np.meshgrid(*[line] * dims, indexing="ij"), axis=-1).reshape(-1, dims)


@pytest.fixture
def ragged(tanh_net, digits):
    """Batches of 100, 100 and 56."""
    inputs, targets = digits[0]
    return fs.Objective(tanh_net, list(zip(inputs.split(100), targets.split(100), strict=True)), criterion=F.cross_entropy)


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize("path", ["loop", "vmap"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_origin_is_the_objectives_loss_to_the_bit(ragged, path, dtype):
    objective = fs.Objective(ragged.model, ragged.batches, criterion=F.cross_entropy, dtype=dtype)
    with Surface(objective, affine(objective), method=path) as surface:
        found = surface.at(np.concatenate([grid(), [[0.0, 0.0]]]))
    assert found.losses[12] == found.losses[-1] == objective.loss()
    assert found.accuracy[12] == objective.accuracy()


def test_a_plane_is_the_loss_at_the_sum_of_weights_and_axes(ragged):
    family, points = affine(ragged), grid(3)
    with Surface(ragged, family, dtype=torch.float64) as surface:
        found = surface.at(points).losses
    model = nn.Sequential(*ragged.model).double()
    for value, (first, second) in zip(found, points, strict=True):
        state = {
            name: w.double() + first * a.double() + second * b.double()
            for name, w, a, b in zip(ragged.names, family.base, *family.axes, strict=True)
        }
        batches = [
            len(y) * float(F.cross_entropy(torch.func.functional_call(model, state, x.double()), y)) for x, y in ragged.batches
        ]
        assert value == pytest.approx(sum(batches) / 256, rel=1e-13)


def test_vmap_and_loop_find_the_same(ragged):
    points = grid(3)
    with Surface(ragged, affine(ragged), method="loop", keep_samples=True) as loop:
        first = loop.at(points)
    with Surface(ragged, affine(ragged), method="vmap", keep_samples=True) as batched:
        second = batched.at(points)
    np.testing.assert_allclose(second.losses, first.losses, rtol=1e-6)
    np.testing.assert_allclose(second.samples, first.samples, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(second.stderr, first.stderr, rtol=1e-4)
    np.testing.assert_array_equal(second.accuracy, first.accuracy)


def test_points_do_not_depend_on_the_ones_before(ragged):
    """No zig-zag and no steps in place: any order, and any company, gives the same bits."""
    points = np.concatenate([grid(5), 1e3 * grid(3)])
    order = np.random.default_rng(0).permutation(len(points))
    with Surface(ragged, affine(ragged), method="loop") as surface:
        losses = surface.at(points).losses
        np.testing.assert_array_equal(surface.at(points[order]).losses, losses[order])
        np.testing.assert_array_equal(surface.at(points[7:8]).losses, losses[7:8])


@pytest.mark.parametrize(("dtype", "ulps"), [(torch.float32, 1.01), (torch.float64, 1.01), (torch.bfloat16, 0.51)])
def test_weights_are_rounded_at_most_once_per_axis(ragged, dtype, ulps):
    family = affine(ragged, dtype=torch.float32)
    out = [torch.empty_like(tensor, dtype=dtype) for tensor in family.base]
    family.write((0.3, -0.7), out)
    for slot, w, a, b in zip(out, family.base, *family.axes, strict=True):
        exact = w.double() + 0.3 * a.double() - 0.7 * b.double()
        parts = w.abs() + 0.3 * a.abs() + 0.7 * b.abs()
        size = exact.abs() if dtype == torch.bfloat16 else parts.double()
        assert ((slot.double() - exact).abs() <= ulps * torch.finfo(dtype).eps * size + 1e-6 * parts * (ulps < 1)).all()
    family.write((0.0, 0.0), out)
    assert all(torch.equal(slot, w.to(dtype)) for slot, w in zip(out, family.base, strict=True))


def test_losses_that_are_not_finite_are_results(ragged):
    with Surface(ragged, affine(ragged), method="loop") as surface:
        found = surface.at([[0.0, 0.0], [3e38, 3e38]])
    assert math.isfinite(found.losses[0])
    assert not math.isfinite(found.losses[1])
    assert math.isnan(found.stderr[1])


def test_a_turned_surface_evaluates_the_other_axis_on_the_same_path(ragged):
    family = affine(ragged, count=2)
    lines = [Affine(family.base, [axis]) for axis in family.axes]
    points = grid(17, dims=1)
    with Surface(ragged, lines[0], method="vmap") as surface:
        surface.at(points)
        surface.turn(lines[1])
        found = surface.at(points).losses
        assert surface.choice.name == "vmap"
        with pytest.raises(ValueError, match="1 dimensions"):
            surface.turn(family)
    with Surface(ragged, lines[1], method="vmap") as fresh:
        np.testing.assert_array_equal(fresh.at(points).losses, found)


def test_the_faster_path_is_chosen_and_said(ragged):
    with Surface(ragged, affine(ragged)) as surface:
        surface.at(grid(5))
        assert surface.choice.name == min(surface.choice.seconds, key=surface.choice.seconds.get)
        assert "faster" in surface.choice.reason
    with Surface(ragged, affine(ragged)) as surface:
        surface.at(grid(3))
        assert surface.choice.reason == "few points"
        surface.at(grid(3))
        assert surface.choice.seconds  # many short calls are many points


def test_a_path_that_gives_other_losses_is_not_taken(ragged, monkeypatch):
    class Wrong:
        name, chunk = "wrong", 1

        def __init__(self, replica, family, terms):
            self.loop = surface_module.PointLoop(replica, family, terms)

        def at(self, points):
            return self.loop.at(points * 0)

    monkeypatch.setitem(surface_module.CANDIDATES, "wrong", Wrong)
    with Surface(ragged, affine(ragged)) as surface:
        surface.at(grid(5))
        assert surface.choice.name != "wrong"
    with Surface(ragged, affine(ragged), method="wrong") as surface, pytest.raises(ValueError, match="other losses"):
        surface.at(grid(5))


# ---------------------------------------------------------------------- samples


def test_errors_are_those_of_a_mean_over_samples(ragged):
    with Surface(ragged, affine(ragged), method="loop", keep_samples=True) as surface:
        found = surface.at([[0.0, 0.0]])
    inputs, targets = torch.cat([x for x, _ in ragged.batches]), torch.cat([y for _, y in ragged.batches])
    with torch.no_grad():
        losses = F.cross_entropy(ragged.model(inputs), targets, reduction="none").double().numpy()
    np.testing.assert_allclose(found.samples[0], losses, rtol=1e-5)
    assert found.stderr[0] == pytest.approx(losses.std(ddof=1) / 16, rel=1e-5)


def test_standard_errors_cover_the_mean_as_often_as_they_say():
    """A ratio with weights: the truth lies within 1.96 standard errors in 93 to 96 % of 4000 draws."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0.2, 3.0, 60)
    parts = rng.normal(2.0, 1.5, (4000, 60))
    means = parts @ weights / weights.sum()
    assert 0.93 < np.mean(np.abs(means - 2.0) < 1.96 * standard_errors(parts, weights)) < 0.96
    assert np.isnan(standard_errors(parts[:1, :1], weights[:1])).all()


class Tokens(nn.Module):
    """Logits [B, 5, T] of tokens [B, T]."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 4), nn.Linear(4, 5)

    def forward(self, tokens):
        return self.head(self.embed(tokens).tanh()).movedim(-1, 1)


CRITERIA = {
    "class weights": nn.CrossEntropyLoss(weight=torch.tensor([0.2, 3.0, 1.0, 0.5, 2.0])),
    "smoothing": functools.partial(F.cross_entropy, label_smoothing=0.1),
    "ignored": functools.partial(F.cross_entropy, ignore_index=2, weight=torch.tensor([0.2, 3.0, 1.0, 0.5, 2.0])),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_samples_of_tokens_have_the_mean_of_the_criterion(name):
    """Terms are grouped by sample, with the weights of the criterion's mean; a sample may be ignored as a whole."""
    torch.manual_seed(0)
    tokens, targets = torch.randint(0, 5, (7, 6)), torch.randint(0, 5, (7, 6))
    targets[3] = 2
    data = [(tokens[:4], targets[:4]), (tokens[4:], targets[4:])]
    objective = fs.Objective(Tokens(), data, criterion=CRITERIA[name], dtype=torch.float64)
    with Surface(objective, affine(objective, 1), keep_samples=True) as surface:
        found = surface.at([0.0, 0.5])
        assert surface.terms.unit == "samples"
    assert found.samples.shape == (2, 7)
    np.testing.assert_allclose(found.samples @ found.weights / found.weights.sum(), found.losses, rtol=1e-13)
    assert found.losses[0] == objective.loss()
    whole = fs.Objective(objective.model, [(tokens, targets)], criterion=CRITERIA[name], dtype=torch.float64)
    with Surface(whole, affine(whole, 1), keep_samples=True) as surface:
        together = surface.at([0.0, 0.5])
    np.testing.assert_allclose(together.stderr, found.stderr, rtol=1e-12)
    if name == "ignored":
        assert found.weights[3] == 0


@pytest.mark.parametrize("criterion", [F.mse_loss, nn.HuberLoss(), functools.partial(F.smooth_l1_loss, beta=0.5)])
def test_regressions_are_split_over_their_outputs(criterion):
    torch.manual_seed(0)
    data = [(torch.randn(5, 3), torch.randn(5, 2)), (torch.randn(3, 3), torch.randn(3, 2))]
    objective = fs.Objective(nn.Linear(3, 2), data, criterion=criterion, dtype=torch.float64)
    with Surface(objective, affine(objective, 1), keep_samples=True) as surface:
        found = surface.at([0.1])
    assert found.samples.shape == (1, 8)
    assert found.accuracy is None
    np.testing.assert_allclose(found.samples @ found.weights / found.weights.sum(), found.losses, rtol=1e-13)


def test_batches_stand_in_where_samples_are_not_known(ragged):
    hidden = fs.Objective(ragged.model, ragged.batches, criterion=lambda outputs, targets: F.cross_entropy(outputs, targets))
    with Surface(hidden, affine(hidden), keep_samples=True) as surface:
        found = surface.at([[0.0, 0.0]])
        assert surface.terms.unit == "batches"
    with torch.no_grad():
        means = np.array([[float(F.cross_entropy(hidden.model(x), y)) for x, y in hidden.batches]])
    assert found.stderr[0] == pytest.approx(standard_errors(means, np.array([100.0, 100.0, 56.0]))[0], rel=1e-5)
    assert found.samples is None
    with Surface(hidden.on(0), affine(hidden)) as surface:
        assert np.isnan(surface.at([[0.0, 0.0]]).stderr).all()


def test_a_criterion_whose_terms_have_another_mean_is_not_split(ragged):
    def odd(outputs, targets, reduction="mean"):
        terms = F.cross_entropy(outputs, targets, reduction="none")
        return terms.median() if reduction == "mean" else terms

    objective = fs.Objective(ragged.model, ragged.batches, criterion=odd)
    with Surface(objective, affine(objective)) as surface:
        assert surface.terms.unit == "batches"
        assert surface.at([[0.0, 0.0]]).losses[0] == objective.loss()


# ---------------------------------------------------------------------- noise, costs, care


def test_noise_is_the_rounding_of_the_losses(ragged):
    points = grid(5)
    with Surface(ragged, affine(ragged)) as surface:
        losses = surface.at(points).losses
        noise = surface.noise
    with Surface(ragged, affine(ragged), dtype=torch.float64) as exact:
        error = np.sqrt(np.mean((exact.at(points).losses - losses) ** 2))
        assert 0 < exact.noise < 1e-15
    assert error / 5 < noise < 5 * error


class Casting(nn.Module):
    """Refuses float64 weights, as models do that fix a dtype."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x.float())


def test_a_model_that_cannot_run_in_float64_has_its_noise_from_nearby_points(ragged):
    fixed = fs.Objective(Casting(ragged.model), ragged.batches, criterion=F.cross_entropy)
    noises = []
    for objective in (ragged, fixed):
        with Surface(objective, affine(objective)) as surface:
            surface.at(grid(5))
            noises.append(surface.noise)
    assert noises[0] / 5 < noises[1] < 5 * noises[0]


class Counting(nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        type(self).calls += 1
        return self.layer(x.flatten(1))


def test_evaluations_are_counted(digits):
    objective = fs.Objective(Counting(), digits, criterion=F.cross_entropy)
    assert objective.remarks == ()  # after a first evaluation, which is no probe's
    Counting.calls = 0
    with Surface(objective, affine(objective), method="loop") as surface:
        surface.at(grid(3))
        assert surface.evaluations == Counting.calls == 5 + 9
        assert surface.noise > 0
        assert surface.evaluations == Counting.calls


def test_weights_are_prepared_after_they_are_written(ragged):
    seen = []

    def prepare(replica, coordinates):
        seen.append((tuple(coordinates), float(replica.scratch[0][0, 0])))

    family = affine(ragged, 1)
    with Surface(ragged, family, prepare=prepare) as surface:
        surface.at([0.0, 0.25])
        assert surface.choice.name == "loop"
    w, v = float(family.base[0][0, 0]), float(family.axes[0][0][0, 0])
    assert [point for point, _ in seen] == [(0.0,), (0.25,)]
    assert [value for _, value in seen] == pytest.approx([w, w + 0.25 * v], rel=1e-6)


def test_any_family_of_weights_is_evaluated(ragged):
    class Scaled:
        dims = 1

        def write(self, coordinates, out):
            for slot, tensor in zip(out, ragged.base.values(), strict=True):
                slot.copy_(tensor * math.exp(coordinates[0]))

    with Surface(ragged, Scaled()) as surface:
        found = surface.at([0.0, -1.0]).losses
    assert found[0] == ragged.loss()
    shrunk = ragged.at({name: tensor * math.exp(-1.0) for name, tensor in ragged.model.state_dict().items()})
    assert found[1] == pytest.approx(shrunk.loss(), rel=1e-6)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((2, 3)), r"points must have shape \[P, 2\]"),
        (np.zeros((0, 2)), "P >= 1"),
        ([[0.0, np.nan]], "points must be finite, got nan"),
    ],
)
def test_bad_points_are_refused(ragged, points, message):
    with Surface(ragged, affine(ragged)) as surface, pytest.raises(ValueError, match=message):
        surface.at(points)


def test_bad_settings_are_refused(ragged):
    family = affine(ragged)
    with pytest.raises(ValueError, match="method must be 'loop', 'vmap', 'lines' or None to measure them, got 'graph'"):
        Surface(ragged, family, method="graph")
    with pytest.raises(ValueError, match="memory must be a positive"):
        Surface(ragged, family, memory=-1)
    with pytest.raises(ValueError, match="method must be 'loop'"):
        Surface(ragged, family, method="vmap", prepare=lambda replica, coordinates: None)
    with pytest.raises(ValueError, match="axes must hold at least one"):
        Affine(family.base, [])
    with pytest.raises(ValueError, match=r"axes\[1\] must have the shapes of base"):
        Affine(family.base, [family.axes[0], family.axes[1][:2]])


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x):
        return F.dropout(self.layer(x.flatten(1)), training=True)


def test_a_loss_that_is_not_a_function_is_refused(digits):
    objective = fs.Objective(Noisy(), digits, criterion=F.cross_entropy)
    with pytest.raises(fs.NondeterministicLossError, match="random numbers"), Surface(objective, affine(objective)):
        pass


@pytest.mark.parametrize("path", ["loop", "vmap"])
def test_a_surface_leaves_no_trace(bn_objective, untouched, path):
    with untouched(bn_objective.model), Surface(bn_objective, affine(bn_objective), method=path) as surface:
        surface.at(grid(5))
        assert surface.noise > 0
    with (
        untouched(bn_objective.model),
        pytest.raises(ValueError, match="points"),
        Surface(bn_objective, affine(bn_objective)) as s,
    ):
        s.at(np.zeros((1, 7)))


def test_a_transformer_is_split_by_sequence():
    torch.manual_seed(0)
    objective = fs.Objective(
        zoo.tiny_transformer(context=16), zoo.pydoc_text(samples=4, batch_size=2, context=16), criterion=F.cross_entropy
    )
    with Surface(objective, affine(objective, 1), keep_samples=True) as surface:
        found = surface.at([0.0, 0.1])
    assert found.samples.shape == (2, 4)
    assert found.losses[0] == objective.loss()
    np.testing.assert_allclose(found.samples @ found.weights / found.weights.sum(), found.losses, rtol=1e-6)
