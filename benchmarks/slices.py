"""Planes of losses beside loss_landscapes and beside plain forwards; losses are compared before anything is timed.

Two tables, one thread, medians of runs that take turns:

* 41 x 41 points of the zoo MLP on all digits in one batch: ``fs.slice2d`` and ``loss_landscapes.random_plane`` with the same
  directions. The peer walks by steps in place, back and forth, and its rows are one step apart from each other; its losses are
  compared with ours at the points where it really is.
* 21 x 21 points of ResNet-18 (CIFAR stem) on a batch of 32: a row of ``fs.slice2d``, then as many plain forwards under
  ``torch.no_grad``, in turns, so that a busy machine disturbs both; everything that the slice does beside them counts (gate,
  choice of path, noise, result).

Run it with ``make slices``; figures go to benchmarks/results/slices.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import loss_landscapes
import loss_landscapes.main
import loss_landscapes.metrics
import numpy as np
import torch
from loss_landscapes.model_interface.model_parameters import ModelParameters
from report import machine
from torch import Tensor, nn
from torch.nn import functional as F

import fastscape as fs
from fastscape import zoo
from fastscape.evaluation.surface.families import Affine
from fastscape.evaluation.surface.surface import Surface

RESULTS = Path(__file__).parent / "results" / "slices.json"
REACH = 0.5  # random_plane with distance=1 goes from -1/2 to 1/2 of ||w||


def random_plane(model: nn.Module, inputs: Tensor, targets: Tensor, axes: fs.Axes, points: int) -> np.ndarray:
    """The peer's plane along given axes, on a copy of the model, under no_grad."""
    copied = copy.deepcopy(model).requires_grad_(requires_grad=False)
    rows = [ModelParameters([tensor.clone() for tensor in axis]) for axis in axes.tensors]
    metric = loss_landscapes.metrics.Loss(F.cross_entropy, inputs, targets)
    main = loss_landscapes.main
    with (
        torch.no_grad(),
        mock.patch.object(main, "rand_u_like", return_value=rows[0]),
        mock.patch.object(main, "orthogonal_to", return_value=rows[1]),
    ):
        return loss_landscapes.random_plane(copied, metric, distance=1, steps=points, normalization=None)


def visited(points: int) -> np.ndarray:
    """Coordinates, in units of ||w||, at which ``random_plane`` evaluates its cells ``[points, points, 2]``."""
    place = np.empty((points, points, 2))
    for row in range(points):
        first = (row - points / 2) / points
        for column in range(points):
            place[row, column] = first, (column + (row % 2 == 0) - points / 2) / points
    return place


def mlp_plane(points: int, repeats: int) -> dict:
    """Seconds per point of both on the digits, after their losses were found equal."""
    torch.manual_seed(0)
    model, (batch,) = zoo.mlp(), zoo.digits(batch_size=1437)
    objective = fs.Objective(model, [batch], criterion=F.cross_entropy)
    axes = fs.Axes.random(objective, 2, seed=0).orthogonal().to(torch.float32)
    peer = random_plane(model, *batch, axes, points)
    with Surface(objective, Affine(list(objective.base.values()), axes.tensors)) as surface:
        ours = surface.at(visited(points).reshape(-1, 2)).losses.reshape(points, points)
    np.testing.assert_allclose(peer, ours, rtol=1e-4)  # it drifts by its steps

    def slice2d() -> fs.PlaneResult:
        return fs.slice2d(objective, axes, radius=REACH, points=points)

    def plain() -> None:
        with torch.no_grad():
            for _ in range(points * points):
                F.cross_entropy(model(batch[0]), batch[1]).item()

    rivals = {
        "fs.slice2d": slice2d,
        "loss_landscapes.random_plane": lambda: random_plane(model, *batch, axes, points),
        "plain forwards": plain,
    }
    times, worked = taken(rivals, repeats)
    result = slice2d()
    return {
        "points": points,
        "seconds": times,
        "microseconds per point": {name: 1e6 * value / points**2 for name, value in times.items()},
        "ratio": times["loss_landscapes.random_plane"] / times["fs.slice2d"],
        "ratio of processor time": worked["loss_landscapes.random_plane"] / worked["fs.slice2d"],
        "largest relative difference": float(np.max(np.abs(peer / ours - 1))),
        "path": result.meta["path"],
        "reason": result.meta["path_reason"],
    }


def taken(rivals: dict[str, Callable[[], object]], repeats: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds by the clock and of the processor, of rounds in which every rival runs once."""
    clock: dict[str, list[float]] = {name: [] for name in rivals}
    worked: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeats):
        for name, run in rivals.items():
            start, before = time.perf_counter(), time.process_time()
            run()
            clock[name].append(time.perf_counter() - start)
            worked[name].append(time.process_time() - before)
    both = [{name: statistics.median(values) for name, values in times.items()} for times in (clock, worked)]
    return both[0], both[1]


def resnet_plane(points: int, batch_size: int, width: int) -> dict:
    """Seconds of a plane of ResNet-18, and of as many plain forwards in between."""
    torch.manual_seed(0)
    model = zoo.resnet18(width=width).eval()
    inputs, targets = torch.randn(batch_size, 3, 32, 32), torch.randint(0, 10, (batch_size,))
    objective = fs.Objective(model, [(inputs, targets)], criterion=F.cross_entropy)
    plain: list[float] = []
    processor: list[float] = []

    def row(_state: fs.Progress) -> None:
        for _ in range(points):
            start, worked = time.perf_counter(), time.process_time()
            with torch.no_grad():
                F.cross_entropy(model(inputs), targets).item()
            plain.append(time.perf_counter() - start)
            processor.append(time.process_time() - worked)

    with torch.no_grad():
        for _ in range(3):
            expected = float(F.cross_entropy(model(inputs), targets))
    start, worked = time.perf_counter(), time.process_time()
    result = fs.slice2d(objective, radius=0.1, points=points, progress=row)
    whole = time.perf_counter() - start - sum(plain)
    own = time.process_time() - worked - sum(processor)
    assert abs(result.loss - expected) < 1e-5 * expected, (result.loss, expected)
    return {
        "points": points,
        "batch": batch_size,
        "width": width,
        "seconds": {"fs.slice2d": whole, "plain forwards": sum(plain)},
        "ratio": whole / sum(plain),
        "ratio of processor time": own / sum(processor),
        "median forward": statistics.median(plain),
        "path": result.meta["path"],
        "reason": result.meta["path_reason"],
    }


def markdown(mlp: dict, resnet: dict | None) -> str:
    """Both tables."""
    per = mlp["microseconds per point"]
    rows = [f"MLP on the digits, {mlp['points']} x {mlp['points']} points, one batch of 1437, one thread:", ""]
    rows += ["| | us per point | speed-up over loss_landscapes |", "|---|---|---|"]
    rows += [f"| {name} | {value:.0f} | {per['loss_landscapes.random_plane'] / value:.2f} |" for name, value in per.items()]
    if resnet is not None:
        took, points = resnet["seconds"], resnet["points"]
        rows += ["", f"ResNet-18, {points} x {points} points, a batch of {resnet['batch']}, one thread:", ""]
        rows += ["| | s | relative to plain forwards |", "|---|---|---|"]
        rows += [f"| {name} | {value:.1f} | {value / took['plain forwards']:.3f} |" for name, value in took.items()]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7, help="runs of the MLP's plane")
    parser.add_argument("--points", type=int, default=21, help="of each axis of the ResNet's plane; 0 leaves it out")
    parser.add_argument("--width", type=int, default=64, help="channels of the ResNet's first stage")
    options = parser.parse_args()
    mlp = mlp_plane(41, options.repeats)
    print(json.dumps(mlp, indent=1))
    resnet = resnet_plane(options.points, 32, options.width) if options.points else None
    print(json.dumps(resnet, indent=1))
    content = {"machine": machine(), "mlp": mlp, "resnet18": resnet, "markdown": markdown(mlp, resnet)}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    print(content["markdown"])


if __name__ == "__main__":
    main()
