"""Small radii of a smooth network share their work; what is not an even analytic function of the radius does not."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.differences.sharing import bends, interpolated, shareable

RADII = np.logspace(-5, -1, 9)


def table(functions, radii=RADII):
    """D at zero and at all radii, ``[K, 2, 1 + S]``: the same for both parts."""
    points = np.concatenate(([0.0], radii))
    return np.stack([np.stack([function(points)] * 2) for function in functions])


EVEN = {
    "cosine": lambda e: np.cos(e),
    "steep": lambda e: 5 * np.cos(30 * e),
    "rational": lambda e: -1 / (1 + 100 * e**2),
    "flat": lambda e: np.full_like(e, 3.0),
    "zero": lambda e: np.zeros_like(e),
    "exponential": lambda e: np.exp(50 * e**2),
}


@pytest.mark.parametrize("name", EVEN)
def test_even_analytic_functions_are_reproduced_at_the_radii_that_are_shared(name):
    values = table([EVEN[name], lambda e: 2 * EVEN[name](0.7 * e)])
    count = shareable(values, RADII)
    assert count >= 4
    found = interpolated(values[:, :, :1], values[:, :, count : count + 1], RADII[:count])
    np.testing.assert_allclose(found, values[:, :, 1 : 1 + count], rtol=2e-6, atol=1e-300)
    if name in ("flat", "zero"):
        assert count == len(RADII)


OTHERS = {
    "kink": lambda e: 1 + np.maximum(e - 1e-4, 0),
    "odd": lambda e: 1 + 1e-3 * e,
    "noise": lambda e: 1 + 1e-4 * np.sin(1e9 * e),
    "step within": lambda e: 1 + 1e-5 * ((e > 2e-5) & (e < 5e-2)),
    "nan at one": lambda e: np.where(e == RADII[2], np.nan, 1.0),
    "inf at zero": lambda e: np.where(e == 0, np.inf, 1.0),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_functions_are_not_shared_beyond_what_they_are_reproduced_to(name):
    values = table([np.cos, OTHERS[name]])
    count = shareable(values, RADII)
    if not np.isfinite(values).all() or name in ("noise", "step within"):
        assert count == 0
    else:
        found = interpolated(values[:, :, :1], values[:, :, count : count + 1], RADII[:count])
        np.testing.assert_allclose(found, values[:, :, 1 : 1 + count], rtol=2e-6)
        assert RADII[count - 1] < 1e-2


def test_one_direction_that_bends_bends_the_block():
    straight, bent = table([np.cos] * 7)[:, :, :2], table([lambda e: 1 + 1e6 * e**2])[:, :, :4]
    assert not bends(straight)
    assert bends(np.concatenate((straight, bent[:, :, [0, 3]])))
    assert bends(np.concatenate((straight, np.full((1, 2, 2), np.nan))))


def test_a_direction_whose_curvature_cancels_is_judged_by_the_typical_one():
    """Its own D(0) is next to nothing; an error that is small beside the others' does not stop the sharing of all."""
    values = table([np.cos, lambda e: 1e-9 + 1e-6 * e**2])
    assert shareable(values, RADII[:4]) == 4


def test_too_few_radii_are_not_worth_it():
    assert shareable(table([np.cos], RADII[:2]), RADII[:2]) == 0


@pytest.fixture(scope="module")
def text():
    torch.manual_seed(0)
    return fs.Objective(
        zoo.tiny_transformer(width=16, layers=1, heads=2, context=16),
        zoo.pydoc_text(samples=4, context=16),
        criterion=F.cross_entropy,
    )


def both(case, count, radii, monkeypatch):
    """Responses with and without sharing, and how many radii were carried through the network in all."""
    directions = fs.Directions(case, count)
    carried, found = [], []
    for shared in (True, False):
        with monkeypatch.context() as patch, DifferenceEvaluator(case) as evaluator:
            if not shared:
                patch.setattr("fastscape.differences.evaluator.shareable", lambda *_: 0)
            evaluator.choose(directions, radii)
            lanes = evaluator._lanes.at
            patch.setattr(evaluator._lanes, "at", lambda moved, part, at=lanes: carried.append(len(part)) or at(moved, part))
            carried.clear()
            found.append((evaluator.responses(directions, range(count), radii), sum(carried), evaluator.choice.reason))
    return found


def test_shared_and_unshared_responses_of_a_transformer_agree(text, monkeypatch):
    (shared, few, reason), (plain, many, _) = both(text, 4, RADII, monkeypatch)
    assert few < many == len(RADII)
    assert "smallest follow from two of them, the network is smooth" in reason
    for part in (0, 1):
        size = np.sqrt(np.mean(plain[part] ** 2, axis=1, keepdims=True))
        assert (np.abs(shared[part] - plain[part]) < 2e-6 * size).all()
        np.testing.assert_array_equal(shared[part][-1], plain[part][-1])


def test_a_bad_direction_in_a_later_block_is_carried_at_every_radius(monkeypatch):
    """The first two directions, which decide, hardly bend; the third does."""

    class Point(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.5, 0.5, 0.5]))

        def forward(self, x):
            return torch.cos(self.w * x).sum()

    case = fs.Objective(Point(), [torch.tensor([1.0, 2.0, 300.0])], loss=lambda model, batch: model(batch))
    basis = torch.eye(3)
    directions = [fs.Directions.given(case, {"w": basis[i]}, scale="none") for i in range(3)]
    radii = np.logspace(-4, -1.5, 6)
    with DifferenceEvaluator(case) as evaluator:
        evaluator.choose(directions[0], radii)
        assert len(evaluator._shared) > 3
        for direction, speed in zip(directions, (1.0, 2.0, 300.0), strict=True):
            even = evaluator.responses(direction, (0,), radii)[0][:, 0]
            expected = -4 * np.cos(0.5 * speed) * np.sin(speed * radii / 2) ** 2
            np.testing.assert_allclose(even, expected, rtol=1e-5)


def test_networks_with_kinks_do_not_share(monkeypatch):
    torch.manual_seed(0)
    case = fs.Objective(zoo.mlp(hidden=(8,)), zoo.digits(samples=16), criterion=F.cross_entropy)
    (_, few, reason), (_, many, _) = both(case, 3, RADII, monkeypatch)
    assert few == many == len(RADII)
    assert "smooth" not in reason
