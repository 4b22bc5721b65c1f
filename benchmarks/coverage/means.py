"""Coverage of the intervals of positive numbers: means of few skewed values, traces, variances, gradient noise, sharpness.

Every interval is made by the function that publishes it. ``reported`` counts the samples in which it is shown; a number
whose interval is withheld (too few values, or ends a factor of 10 apart) is not counted among the covered or the missed. The
intervals before that are cells of their own, ``mean of positive values, before any is withheld``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import fastscape as fs
from fastscape.numerics.estimate import Estimate
from fastscape.numerics.positive import skewed_mean, useful
from fastscape.probes.temperature.gradient_noise import Units, mean_square, noise_scale, noise_trace

from .cells import NOMINAL, Cell, Job, run

Array = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Array]
SIZES = (4, 8, 16, 32)
SIZE = 150  # parameters of a quadratic
POOL = 1000  # directions of a network whose roughness is the population


def cells(repetitions: int, seed: int) -> Iterator[Cell]:
    """All cells, one after the other."""
    return run(jobs(repetitions, seed))


def jobs(repetitions: int, seed: int) -> Iterator[Job]:
    """Name and computation of a few cells each."""
    for name, (truth, draw) in populations().items():
        yield f"means of {name}", partial(_means, name, truth, draw, repetitions, seed)
    for name in NETWORKS:
        yield f"roughness of {name}", partial(_roughness, name, repetitions, seed)
    for name in spectra():
        yield f"spectrum, {name}", partial(_spectrum, name, repetitions, seed)
        yield f"random sharpness, {name}", partial(_random_sharpness, name, repetitions, seed)
    for name in _NOISES:
        yield f"gradient noise, {name}", partial(_gradient_noise, name, repetitions, seed)


def count(quantity: str, problem: str, n: int, truth: float, found: list[Estimate]) -> Cell:
    """The cell of published estimates: those whose interval is shown."""
    ends = [estimate.interval for estimate in found if not estimate.withheld and not math.isnan(estimate.interval[0])]
    room = 1e-9 * abs(truth)  # of a run whose basis became the whole space: its numbers are exact but for rounding
    covered = sum(low - room <= truth <= high + room for low, high in ends)
    return Cell(quantity, problem, n, NOMINAL, len(found), len(ends), covered)


# ---------------------------------------------------------------------- means of known populations


def spectra() -> dict[str, Array]:
    """Eigenvalues of quadratic losses."""
    rng = np.random.default_rng(0)
    return {
        "flat": 1 + 0.3 * rng.standard_normal(SIZE),
        "power law": 1 / np.arange(1, SIZE + 1),
        "spiked": np.concatenate([[10.0, 6.0], np.abs(0.1 * rng.standard_normal(SIZE - 2))]),
        "indefinite": np.concatenate([[4.0, -3.0], 0.2 * rng.standard_normal(SIZE - 2)]),
    }


def populations() -> dict[str, tuple[float, Draw]]:
    """Mean and draws of the skewed populations; ||Hv||^2 is of normal probes v."""
    found: dict[str, tuple[float, Draw]] = {}
    for sigma in (0.5, 1.0):
        found[f"log-normal {sigma:g}"] = (math.exp(sigma**2 / 2), lambda rng, n, s=sigma: np.exp(s * rng.standard_normal(n)))
    for degrees in (1, 2, 4, 10):
        found[f"chi-square {degrees}"] = (float(degrees), lambda rng, n, k=degrees: rng.chisquare(k, n))
    for degrees in (2, 4):
        mean = float(degrees * (degrees + 2))
        found[f"square of chi-square {degrees}"] = (mean, lambda rng, n, k=degrees: rng.chisquare(k, n) ** 2)
    for name, eigenvalues in list(spectra().items())[:3]:
        squares = eigenvalues**2

        def draw(rng: np.random.Generator, n: int, squares: Array = squares) -> Array:
            return np.asarray(rng.standard_normal((n, SIZE)) ** 2 @ squares)

        found[f"||Hv||^2, {name}"] = (float(squares.sum()), draw)
    return found


def _means(name: str, truth: float, draw: Draw, repetitions: int, seed: int) -> list[Cell]:
    rng, table = np.random.default_rng(seed), []
    for n in SIZES:
        found = [skewed_mean(draw(rng, n)) for _ in range(repetitions)]
        table.append(count("mean of positive values, before any is withheld", name, n, truth, found))
        if n > min(SIZES):
            table.append(count("mean of positive values", name, n, truth, [useful(estimate) for estimate in found]))
    return table


# ---------------------------------------------------------------------- roughness of networks


NETWORKS = ("MLP at initialisation", "MLP, trained", "MLP, trained, radius 2")


@cache
def _pool(name: str) -> tuple[Array, Array]:
    """Variances and detrended variances of the losses along 1000 lines through a small network."""
    from fastscape.probes.slices.roughness import Trend

    torch.manual_seed(0)
    inputs = torch.randn(64, 8)
    targets = (inputs[:, 0] * inputs[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(0 if "initialisation" in name else 150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    objective = fs.Objective(model, [(inputs, targets)], criterion=nn.functional.cross_entropy)
    lines = fs.slice1d(objective, count=POOL, points=21, radius=2.0 if "radius 2" in name else 1.0)
    return Trend([lines.alphas], 0).variance(lines.losses), Trend([lines.alphas], 2).variance(lines.losses)


def _roughness(name: str, repetitions: int, seed: int) -> list[Cell]:
    rng, table = np.random.default_rng(seed), []
    for quantity, pool in zip(("roughness R", "R, detrended"), _pool(name), strict=True):
        for n in (8, 16, 32):
            found = [useful(skewed_mean(rng.choice(pool, n)), "direction") for _ in range(repetitions)]
            table.append(count(quantity, name, n, float(pool.mean()), found))
    return table


# ---------------------------------------------------------------------- spectra


class _Point(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))


def quadratic(eigenvalues: Array) -> tuple[fs.Objective, Array]:
    """W'Hw / 2 in a random orthogonal basis, and H."""
    size = len(eigenvalues)
    basis, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((size, size)))
    matrix = (basis * eigenvalues) @ basis.T
    hessian = torch.from_numpy((matrix + matrix.T) / 2)
    slope = torch.ones(size, dtype=torch.float64)

    def loss(model: nn.Module, _batch: torch.Tensor) -> torch.Tensor:
        w: torch.Tensor = model.w  # type: ignore[assignment]
        return slope @ w + w @ hessian @ w / 2

    return fs.Objective(_Point(size), [torch.zeros(1)], loss=loss), hessian.numpy()


def _spectrum(name: str, repetitions: int, seed: int) -> list[Cell]:
    """The trace and what comes with it as runs publish them: for a target of the trace, and without one."""
    objective, hessian = quadratic(spectra()[name])
    square = float(np.sum(hessian**2))
    truths = {
        "trace": float(np.trace(hessian)),
        "trace_square": square,
        "effective_rank": float(np.trace(hessian)) ** 2 / square,
        "directional_variance": 2 * (square - float(np.sum(np.diag(hessian) ** 2))),
    }
    labels = {"trace": "trace", "trace_square": "tr(H^2)", "effective_rank": "effective rank", "directional_variance": "Var v'Hv"}
    table = []
    for words, target in (("no target", None), ("target 2 %", 0.02)):
        runs = [
            fs.spectrum(objective, 2, nodes=12, targets={"trace": target}, seed=1000 * seed + index, method="reverse")
            for index in range(repetitions)
        ]
        probes = int(np.median([result.trace.n for result in runs]))
        for key, truth in truths.items():
            found = [getattr(result, key) for result in runs]
            table.append(count(labels[key], f"{name}, {words}", probes, truth, found))
    return table


def _random_sharpness(name: str, repetitions: int, seed: int) -> list[Cell]:
    """Mean rise over random points of a sphere, u'Hu / 2 over pairs u and -u, as the sharpness probe publishes it."""
    rng, eigenvalues, table = np.random.default_rng(seed), spectra()[name], []
    for n in (8, 32):
        found = []
        for _ in range(repetitions):
            u = rng.standard_normal((n, SIZE))
            u /= np.linalg.norm(u, axis=1, keepdims=True)
            found.append(useful(skewed_mean(u**2 @ eigenvalues / 2), "pair"))
        table.append(count("random mean sharpness", name, n, float(eigenvalues.sum()) / SIZE / 2, found))
    return table


# ---------------------------------------------------------------------- gradient noise


_NOISES = {
    "isotropic": (np.ones(20), 0.0),
    "anisotropic": (1 / np.arange(1, 21), 0.0),
    "samples of unequal size": (np.ones(20), 0.6),
}


def _gradient_noise(name: str, repetitions: int, seed: int) -> list[Cell]:
    rng, (sizes, sigma), table = np.random.default_rng(seed), _NOISES[name], []
    mean = np.zeros(len(sizes))
    mean[:2] = 0.5
    trace, square = float(sizes @ sizes), float(mean @ mean)
    for n in (16, 64):
        found: dict[str, list[Estimate]] = {"gradient-noise trace": [], "squared gradient": [], "noise scale": []}
        for _ in range(repetitions):
            noise = rng.standard_normal((n, len(sizes))) * sizes * np.exp(sigma * rng.standard_normal((n, 1)) - sigma**2)
            gradients = mean + noise
            steps = gradients - gradients.mean(axis=0)
            squares, average = (steps**2).sum(axis=1), gradients.mean(axis=0)
            units = Units(squares, squares, steps @ average, float(average @ average), n)
            found["gradient-noise trace"].append(useful(noise_trace(units.spread), "unit"))
            found["squared gradient"].append(mean_square(units))
            found["noise scale"].append(useful(noise_scale(units), "unit"))
        for (quantity, estimates), truth in zip(found.items(), (trace, square, trace / square), strict=True):
            table.append(count(quantity, name, n, truth, estimates))
    return table
