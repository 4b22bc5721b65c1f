"""Directions of low rank: their law, norms without the product, and the same numbers as the product given as tensors."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape.directions import low_rank
from fastscape.directions.low_rank import Factors
from fastscape.directions.normalise import RULES, Normaliser
from fastscape.ops import tensor_ids
from fastscape.ops.direction import reference

BOTH = pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
RANK = 4


@pytest.fixture(scope="module")
def objective():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.GELU(), nn.Flatten(), nn.Linear(72, 20), nn.ReLU(), nn.Linear(20, 5))
    batch = torch.randn(6, 2, 5, 5), torch.randint(0, 5, (6,))
    return fs.Objective(net, [batch], criterion=F.cross_entropy, dtype=torch.float64)


def raw(objective, count=2, rank=RANK, **settings):
    return fs.Directions(objective, count, rank=rank, normalize="none", scale="none", **settings)


def noise(objective, side, index, rank, distribution, name="3.weight"):
    """A factor of a weight, from the specification of the generator."""
    weight = objective.base[name]
    length = len(weight) if side == "left" else weight[0].numel()
    word = tensor_ids([f"{name}\0{side}"])[f"{name}\0{side}"]
    return reference.draw(7, index, [word], [rank * length], distribution)[0].reshape(rank, length).double()


@BOTH
def test_matrices_are_products_of_noise_and_vectors_are_noise(objective, distribution):
    settings = {"seed": 7, "distribution": distribution, "normalize": "none", "scale": "none"}
    made, plain = fs.Directions(objective, 2, rank=RANK, **settings), fs.Directions(objective, 2, **settings)
    for index in range(2):
        for name in ("0.weight", "3.weight", "5.weight"):
            left, right = (noise(objective, side, index, RANK, distribution, name) for side in ("left", "right"))
            product = (left.T @ right / RANK**0.5).reshape(objective.base[name].shape)
            torch.testing.assert_close(made[index][name], product, rtol=1e-14, atol=1e-14)
        for name in ("0.bias", "3.bias", "5.bias"):
            assert torch.equal(made[index][name], plain[index][name])


def test_a_matrix_of_one_row_or_column_is_a_vector():
    net = nn.Sequential(nn.Linear(1, 6, bias=False), nn.Linear(6, 1, bias=False))
    small = fs.Objective(net, [(torch.ones(2, 1), torch.zeros(2, 1))], criterion=F.mse_loss)
    settings = {"normalize": "none", "scale": "none", "distribution": "rademacher"}
    one, other = fs.Directions(small, 1, rank=2, **settings)[0], fs.Directions(small, 1, **settings)[0]
    assert all(torch.equal(one[name], other[name]) for name in one)


@BOTH
def test_the_first_ranks_and_directions_are_the_same_whatever_follows(objective, distribution):
    few, many = (raw(objective, count, distribution=distribution) for count in (2, 9))
    assert all(torch.equal(few[1][name], many[1][name]) for name in few.names)
    columns = [raw(objective, rank=rank, distribution=distribution)[1]["3.weight"] * rank**0.5 for rank in (1, 2, 5)]
    assert np.linalg.matrix_rank((columns[1] - columns[0]).numpy()) == 1
    assert np.linalg.matrix_rank((columns[2] - columns[1]).numpy()) == 3


@BOTH
@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "element"])
def test_norms_from_gram_matrices_are_those_of_the_product(objective, distribution, rule):
    filters = {"filter_dim": {"3.weight": 1}} if rule == "filter" else {}
    made = fs.Directions(objective, 2, rank=RANK, distribution=distribution, normalize=rule, scale="none", **filters)
    product = raw(objective, distribution=distribution)
    for index in range(2):
        expected, length = Normaliser(objective.base, rule, dense=False, **filters)(
            list(product[index].values()), "none", torch.float64
        )
        assert made.length(index) == pytest.approx(length, rel=1e-13)
        for found, wanted in zip(made[index].values(), expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)


def test_the_engine_gets_factors_where_they_are_fewer_numbers(objective):
    made = fs.Directions(objective, 2, rank=RANK, seed=3, normalize="filter", one_d="same")
    parts = dict(zip(made.names, made.factored([1, 0], torch.float64), strict=True))
    assert [name for name, part in parts.items() if isinstance(part, Factors)] == ["0.weight", "3.weight"]
    for name, part in parts.items():
        found = part.dense() if isinstance(part, Factors) else part
        torch.testing.assert_close(found, torch.stack([made[1][name], made[0][name]]), rtol=1e-13, atol=1e-15)


@BOTH
def test_elements_are_uncorrelated_and_of_variance_one(distribution):
    """E[d d'] = I: all pairs of elements of a 3 x 2 matrix and a bias, over 1000 directions, within 5 standard errors."""
    small = fs.Objective(nn.Linear(2, 3), [(torch.ones(1, 2), torch.zeros(1, 3))], criterion=F.mse_loss)
    made = raw(small, 1000, rank=2, distribution=distribution)
    rows = torch.cat([part.reshape(1000, -1) for part in made.block(range(1000), torch.float64)], 1)
    products = rows[:, :, None] * rows[:, None, :]
    errors = products.std(0) / 1000**0.5
    assert ((products.mean(0) - torch.eye(9)).abs() <= 5 * errors + 1e-12).all()


@BOTH
def test_bits_are_those_of_every_implementation(objective, distribution, monkeypatch):
    pytest.importorskip("triton")
    from ops.interpreter import DEVICE

    from fastscape.ops.direction import triton

    found = fs.Directions(objective, 1, rank=RANK, distribution=distribution).tensors(0)

    def interpreted(ids, *rest):
        return [part.cpu() for part in triton.directions(ids.to(DEVICE), *rest)]

    for other in (reference.directions, interpreted):
        monkeypatch.setattr(low_rank, "direction", other)
        again = fs.Directions(objective, 1, rank=RANK, distribution=distribution).tensors(0)
        assert again[1] == found[1]
        assert all(torch.equal(one, two) for one, two in zip(found[0], again[0], strict=True))


@pytest.mark.parametrize("distribution", ["rademacher"])
def test_numbers_are_those_of_the_product_as_tensors(objective, distribution, untouched):
    made = fs.Directions(objective, 4, rank=2, seed=5, distribution=distribution)
    given = fs.Directions.given(objective, list(made), scale="none")
    with untouched(objective.model):
        for settings in ({"method": "loop"}, {"method": "vmap"}):
            found, wanted = (fs.losses(objective, each, [-0.1, 0.0, 0.1], **settings) for each in (made, given))
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)
        for settings in (
            {"precision": "float64"},
            {"precision": "difference"},
            {"precision": "difference", "method": "dispatch"},
        ):
            found, wanted = (fs.responses(objective, each, [1e-3, 1e-1], **settings) for each in (made, given))
            np.testing.assert_allclose(
                found.even, wanted.even, rtol=1e-5, atol=1e-5 * np.abs(wanted.even).max(1, keepdims=True).min()
            )
        found, wanted = (fs.quadratic_forms(objective, each, lanes=torch.float64) for each in (made, given))
        np.testing.assert_allclose(found.curvature, wanted.curvature, rtol=1e-11, atol=1e-12 * np.abs(wanted.curvature).max())
        np.testing.assert_allclose(found.slope, wanted.slope, rtol=1e-11, atol=1e-12 * np.abs(wanted.slope).max())
        means = [fs.mean_quadratic_form(objective, each, groups=2, lanes=torch.float64).value for each in (made, given)]
        assert means[0] == pytest.approx(means[1], rel=1e-11)
        forwards = fs.quadratic_forms(objective, made, method="forwards")
        assert (np.abs(forwards.curvature - wanted.curvature) <= 3 * forwards.error + 1e-6 * np.abs(wanted.curvature)).all()


def test_copies_and_pickles_are_the_same_directions(objective):
    made = fs.Directions(objective, 3, rank=2)
    for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert other.settings == made.settings
        assert all(torch.equal(one, two) for one, two in zip(made[2].values(), other[2].values(), strict=True))
    assert made.with_seed(9).rank == 2


def test_the_law_is_told_and_plain_directions_keep_their_settings(objective):
    made, plain = fs.Directions(objective, 2, rank=16, distribution="rademacher"), fs.Directions(objective, 2)
    assert (made.rank, made.law) == (16, "rademacher of rank 16")
    assert (plain.rank, plain.law) == (None, "gaussian")
    assert made.settings["rank"] == 16
    assert "rank" not in plain.settings  # journals of earlier versions go on
    assert fs.Directions.given(objective, objective.base).law == "given"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": True}, "rank must be an integer, got True"),
        ({"rank": 2.0}, "rank must be an integer"),
        ({"rank": 2, "normalize": "element"}, "rank must be None with normalize='element', .* got 2; use 'tensor'"),
    ],
)
def test_bad_ranks_are_named(objective, settings, message):
    with pytest.raises(ValueError, match=message):
        fs.Directions(objective, 2, **settings)


def test_a_rank_above_every_matrix_is_refused_before_anything_is_drawn():
    model = torch.nn.Linear(24, 20)
    objective = fs.Objective(model, [(torch.ones(2, 24), torch.tensor([0, 1]))], criterion=torch.nn.functional.cross_entropy)
    assert fs.Directions(objective, 1, rank=20).rank == 20
    for rank in (21, 10**9):
        with pytest.raises(ValueError, match=f"rank must be at most 20, the smaller side of the largest matrix, got {rank}"):
            fs.Directions(objective, 1, rank=rank)
