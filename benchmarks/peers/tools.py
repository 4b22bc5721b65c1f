"""The spectrum question by every tool: the five largest eigenvalues, the trace and the spectral density.

Each peer is used as its documentation says, with the loosest setting of its ladder that reaches the accuracy asked for
(``tuning.py``), and with the estimator of the trace and the number of products that the truth calls for: more than its user
would know.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastscape as fs
from peers.methods import curvlinops_operator, eigenthings_operator, flat
from peers.problems import Problem, signs

PAIRS, RESIDUAL, TRACE, NODES = 5, 1e-3, 0.05, 80
Pairs = tuple[np.ndarray, Tensor | None]  # values, vectors [D, 5]
Measure = tuple[Any, Any]  # points and masses


@dataclass
class Answer:
    """What a tool says.

    Attributes:
        values: eigenvalues, descending.
        vectors: ``[D, 5]``, or ``None`` where the tool keeps them to itself.
        trace: its estimate.
        density: points and masses.
    """

    values: np.ndarray
    vectors: Tensor | None
    trace: float
    density: Measure


@dataclass(frozen=True)
class Tool:
    """Three calls of a peer.

    Attributes:
        ladder: settings of the eigenvalues, the cheapest first.
        pairs: eigenvalues and vectors for a setting and seed.
        traces: the estimators of the trace that it has.
        trace: by an estimator and its products.
        density: of 80 nodes; the largest eigenvalue is known by then.
        use: what RESULTS.md says of it.
    """

    ladder: tuple[Any, ...]
    traces: tuple[str, ...]
    pairs: Callable[[Problem, Any, int], Pairs]
    trace: Callable[[Problem, tuple[str, int], int], float]
    density: Callable[[Problem, float, int], Measure]
    use: str


def probes_needed(reference: dict[str, Any]) -> int:
    """Rademacher probes after which the 95 % interval of a trace is within 5 % of it."""
    return max(2, math.ceil((1.96 * reference["probe_deviation"] / (TRACE * abs(reference["trace"]))) ** 2))


# --------------------------------------------------------------------- curvlinops


def _curvlinops_pairs(problem: Problem, setting: tuple[float, int], seed: int) -> Pairs:
    from scipy.sparse.linalg import eigsh

    (tolerance, basis), operator = setting, curvlinops_operator(problem).to_scipy(np.float32)
    start = np.random.default_rng(seed).standard_normal(problem.size).astype(np.float32)
    values, vectors = eigsh(operator, PAIRS, which="LA", tol=tolerance, ncv=basis, v0=start)
    return values[::-1], torch.from_numpy(vectors[:, ::-1].copy())


def _curvlinops_trace(problem: Problem, setting: tuple[str, int], seed: int) -> float:
    """Hutchinson in blocks of eight, or the memory grows with the number of probes."""
    from curvlinops import hutchinson_trace, hutchpp_trace, xtrace

    torch.manual_seed(seed)
    (method, probes), operator = setting, curvlinops_operator(problem)
    if method != "hutchinson":
        return float({"hutch++": hutchpp_trace, "xtrace": xtrace}[method](operator, probes))
    parts = [min(8, probes - at) for at in range(0, probes, 8)]
    return sum(float(hutchinson_trace(operator, part)) * part for part in parts) / probes


def _curvlinops_density(problem: Problem, largest: float, seed: int) -> Measure:
    from curvlinops.papyan2020traces.spectrum import lanczos_approximate_spectrum

    torch.manual_seed(seed)
    grid, density = lanczos_approximate_spectrum(curvlinops_operator(problem), NODES, boundaries=(None, largest))
    return grid, density


# --------------------------------------------------------------------- hessian-eigenthings


def _eigenthings_pairs(problem: Problem, steps: int, seed: int) -> Pairs:
    from hessian_eigenthings import lanczos

    found = lanczos(eigenthings_operator(problem), k=PAIRS, max_iter=steps, tol=RESIDUAL, which="LA", seed=seed)
    return found.eigenvalues.numpy(), found.eigenvectors.T


def _eigenthings_trace(problem: Problem, setting: tuple[str, int], seed: int) -> float:
    from hessian_eigenthings import trace

    method, products = setting
    return float(trace(eigenthings_operator(problem), num_matvecs=products, method=method, seed=seed).estimate)


def _eigenthings_density(problem: Problem, largest: float, seed: int) -> Measure:
    from hessian_eigenthings import spectral_density

    found = spectral_density(eigenthings_operator(problem), num_runs=1, lanczos_steps=NODES, seed=seed)
    return found.raw_eigenvalues, found.raw_weights


def eigenthings_by_hand(problem: Problem, setting: tuple[str, int], seed: int) -> Answer:
    """One run of its public Lanczos kernel for eigenvalues and density, one more call for the trace."""
    from hessian_eigenthings import lanczos_tridiagonal

    operator = eigenthings_operator(problem)
    start = signs(problem.size, 1, seed)[:, 0].contiguous()
    run = lanczos_tridiagonal(operator, start, NODES, reorthogonalize=True)
    small = torch.diag(run.alphas) + torch.diag(run.betas, 1) + torch.diag(run.betas, -1)
    values, rows = torch.linalg.eigh(small.double())
    top = rows[:, -PAIRS:].flip(1).float()
    vectors = torch.zeros(problem.size, PAIRS)
    for vector, coefficients in zip(run.basis, top, strict=True):
        vectors.addr_(vector, coefficients)
    first = float(run.alphas[0]) * problem.size  # v'Hv of the probe that started the run
    trace = _eigenthings_trace(problem, setting, seed)
    if setting[0] == "hutchinson":
        trace += (first - trace) / (setting[1] + 1)
    return Answer(values[-PAIRS:].flip(0).numpy(), vectors, trace, (values, rows[0].square()))


# --------------------------------------------------------------------- PyHessian


def _pyhessian(problem: Problem, seed: int):
    from pyhessian import hessian

    torch.manual_seed(seed)
    problem.model.zero_grad()
    return hessian(problem.model, problem.criterion, data=problem.batch, cuda=False)


def _pyhessian_pairs(problem: Problem, setting: tuple[float, int], seed: int) -> Pairs:
    tolerance, iterations = setting
    values, vectors = _pyhessian(problem, seed).eigenvalues(maxIter=iterations, tol=tolerance, top_n=PAIRS)
    order = np.argsort(values)[::-1]
    return np.array(values)[order], torch.stack([flat(vectors[index]) for index in order], dim=1)


def _pyhessian_trace(problem: Problem, setting: tuple[str, int], seed: int) -> float:
    return float(np.mean(_pyhessian(problem, seed).trace(maxIter=setting[1], tol=0.0)))


def _pyhessian_density(problem: Problem, largest: float, seed: int) -> Measure:
    """With ``torch.eig``, which torch has removed, put back for its call."""

    def eig(matrix: Tensor, **_: bool) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        return values[:, None], vectors

    torch.eig = eig
    try:
        nodes, weights = _pyhessian(problem, seed).density(iter=NODES, n_v=1)
    finally:
        del torch.eig
    return nodes, weights


# --------------------------------------------------------------------- fastscape


def fastscape(problem: Problem, setting: tuple[str, int], seed: int) -> Answer:
    """It receives the accuracy alone: the number of probes is its own business."""
    targets = {"eigenvalues": RESIDUAL, "trace": TRACE}
    found = fs.spectrum(problem.objective(), k=PAIRS, targets=targets, nodes=NODES, seed=seed)
    vectors = getattr(found, "vectors", None)
    if vectors is not None:
        vectors = (vectors if vectors.shape[0] == problem.size else vectors.T)[:, :PAIRS].float()
    density = found.density
    return Answer(np.asarray(found.eigenvalues), vectors, found.trace.value, (density.nodes, density.weights))


TOOLS = {
    "curvlinops + SciPy": Tool(
        ((1e-1, 12), (1e-2, 12), (1e-1, 20), (1e-2, 20), (1e-3, 20)),
        ("hutchinson", "hutch++", "xtrace"),
        _curvlinops_pairs,
        _curvlinops_trace,
        _curvlinops_density,
        "`eigsh(H.to_scipy(float32), 5, which='LA', tol=..., ncv=...)`, `hutchinson_trace` in eights, `hutchpp_trace`, `xtrace`, "
        "`lanczos_approximate_spectrum(ncv=80, boundaries=(None, largest))`",
    ),
    "hessian-eigenthings": Tool(
        (10, 15, 20, 25, 30, 40, 50, 65, 80, 100),
        ("hutchinson", "hutch++"),
        _eigenthings_pairs,
        _eigenthings_trace,
        _eigenthings_density,
        "`lanczos(k=5, max_iter=..., which='LA')`, `trace`, `spectral_density(num_runs=1, lanczos_steps=80)`",
    ),
    "PyHessian": Tool(
        ((1e-3, 100), (1e-4, 200), (1e-5, 400), (1e-6, 1000)),
        ("hutchinson",),
        _pyhessian_pairs,
        _pyhessian_trace,
        _pyhessian_density,
        "`eigenvalues(maxIter, tol, top_n=5)`, `trace(maxIter=probes, tol=0)`, `density(iter=80)` with `torch.eig` put back",
    ),
}
WHOLE = {"hessian-eigenthings, one Lanczos run by hand": eigenthings_by_hand, "fastscape": fastscape}
