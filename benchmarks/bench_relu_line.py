"""Maps behind a ReLU along a line, and the plane through a perceptron that they serve, against products at every point."""

import numpy as np
import pytest
import torch
from interleave import medians, record
from torch import Tensor
from torch.nn import functional as F

import fastscape as fs
from fastscape import ops, zoo
from fastscape.evaluation.surface.families import Affine
from fastscape.evaluation.surface.surface import Surface
from fastscape.ops.relu_line.reference import relu_line as products

POINTS = 41


def plane() -> tuple[fs.Objective, Affine, np.ndarray]:
    """All digits in one batch, the perceptron 64-128-64-10, two filter-normalised directions, 41 x 41 points."""
    torch.manual_seed(0)
    batches = zoo.digits()
    batch = tuple(torch.cat(part) for part in zip(*batches, strict=True))
    objective = fs.Objective(zoo.mlp(), [batch], criterion=F.cross_entropy)
    directions = fs.Directions(objective, count=2, seed=1, normalize="filter")
    family = Affine(list(objective.base.values()), [directions.tensors(index)[0] for index in range(2)])
    line = np.linspace(-1, 1, POINTS)
    return objective, family, np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)


def test_relu_line(benchmark):
    generator = torch.Generator().manual_seed(0)
    rows, units, outputs, classes = 1437, 128, 64, 10
    shapes = [(2, rows, units), (2, units, outputs), (2, outputs), (2, outputs, classes), (2, classes)]
    inputs, weight, bias, head, head_bias = (torch.randn(shape, generator=generator) / shape[1] ** 0.5 for shape in shapes)
    inputs *= rows**0.5
    points = torch.linspace(-1, 1, POINTS).tolist()
    arguments = (inputs, weight, bias, points, head, head_bias)
    wide: list[Tensor] = [tensor.double() for tensor in (inputs, weight, bias, head, head_bias)]
    exact = products(*wide[:3], points, *wide[3:])
    errors = [float((run(*arguments) - exact).square().mean().sqrt()) for run in (ops.relu_line, products)]
    assert errors[0] <= 3 * errors[1]

    rivals = {"fastscape.ops.relu_line": lambda: ops.relu_line(*arguments), "products": lambda: products(*arguments)}
    times = medians(rivals, repeats=7)
    title = "relu(relu(x) W) V at 41 points of a line, 1437 rows, 128-64-10"
    record(benchmark, title, times, baseline="products", per=POINTS, unit="us")
    benchmark.pedantic(rivals["fastscape.ops.relu_line"], rounds=3)


def test_plane_through_a_perceptron(benchmark):
    loss_landscapes = pytest.importorskip("loss_landscapes")
    objective, family, points = plane()
    inputs, targets = objective.batches[0]
    with Surface(objective, family, dtype=torch.float64, method="loop", accuracy=False) as surface:
        exact = surface.at(points[::40]).losses
    metric = loss_landscapes.metrics.Loss(F.cross_entropy, inputs, targets)
    with (
        Surface(objective, family, method="lines") as surface,
        Surface(objective, family, method="lines", accuracy=False) as plain,
    ):
        found = surface.at(points).losses[::40]
        assert float(np.abs(found / exact - 1).max()) < 5e-7
        rivals = {
            "fastscape, losses": lambda: plain.at(points),
            "fastscape, losses and accuracy": lambda: surface.at(points),
            "loss_landscapes.random_plane, losses": lambda: loss_landscapes.random_plane(
                objective.model, metric, 1.0, POINTS, "filter"
            ),
        }
        times = medians(rivals, repeats=5)
        benchmark.pedantic(rivals["fastscape, losses"], rounds=2)
    title = "losses on a 41 x 41 plane, perceptron 64-128-64-10, 1437 digits"
    record(benchmark, title, times, baseline="loss_landscapes.random_plane, losses", per=len(points), unit="us")
