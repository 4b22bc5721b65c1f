"""Projected ascent, and the maximum of a quadratic model, over balls."""

import math

import numpy as np
import pytest
import torch
from quadratics import GENERATOR, ball_maximum, normal, polynomial, symmetric

import fastscape as fs
from fastscape.probes.sharpness.ascent import ascend
from fastscape.probes.sharpness.balls import Balls
from fastscape.probes.sharpness.quadratic_model import maximise_model


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    GENERATOR.manual_seed(0)


def test_the_model_maximum_agrees_with_the_secular_equation():
    weights, matrix, gradient = normal(30), symmetric(30), normal(30)
    objective = polynomial([weights], gradient, matrix)
    balls = Balls(objective, "normalized", 0.0, torch.float64)
    scale = balls.scale.numpy()
    expected = ball_maximum(scale * gradient.numpy(), scale[:, None] * matrix.numpy() * scale)
    found = maximise_model(fs.hessian(objective), torch.from_numpy(scale) * gradient, balls, 1.0, 60, 0)
    assert found.value == pytest.approx(expected, rel=1e-4)
    assert found.bound >= expected
    assert found.eigenvalue == pytest.approx(np.linalg.eigvalsh(scale[:, None] * matrix.numpy() * scale)[-1], rel=1e-3)


def test_an_ascent_on_a_rugged_line_keeps_its_best_point():
    objective = polynomial([torch.ones(1, dtype=torch.float64)], torch.zeros(1, dtype=torch.float64), torch.zeros(1, 1).double())
    balls = Balls(objective, "sam", 0.0, torch.float64)

    def rugged(point):
        x = float(point[0])
        return math.cos(9 * x) - x * x, torch.tensor([-9 * math.sin(9 * x) - 2 * x], dtype=torch.float64)

    found = ascend(rugged, balls, torch.tensor([0.31], dtype=torch.float64), 40)
    assert found.best == np.nanmax(found.values)
    assert found.best == pytest.approx(rugged(found.point)[0])
    peak = float(found.point[0])
    assert abs(9 * math.sin(9 * peak) + 2 * peak) < 1, "the step is halved until a peak is reached"
