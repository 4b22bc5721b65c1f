"""The reference answers: computed once per network, at length, and kept in results/peers-reference.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from peers.methods import Multiply, cached_graph
from peers.problems import Problem, Truth, signs
from peers.processes import Emit, Heard, run

REFERENCES = Path(__file__).parents[1] / "results" / "peers-reference.json"
EXACT = 20_000  # parameters up to which the trace is summed over the whole basis
PROBES = {"mlp": (64, 4), "wide-mlp": (800, 200), "gpt": (800, 200), "resnet18": (120, 60)}  # of the trace, and rank of its basis
RUNS = {"mlp": 16, "wide-mlp": 12, "gpt": 4, "resnet18": 2}
STEPS = 100
IN_DOUBLE = 2_000_000  # parameters up to which eigenvalues are those of float64 products
FORMS = 16


def load(network: str, settings: dict[str, Any], heard: Heard) -> dict[str, Any]:
    """The reference of a network; computed where it is missing."""
    known = json.loads(REFERENCES.read_text()) if REFERENCES.exists() else {}
    if network not in known:
        outcome = run({"package": "reference", "network": network} | settings["job"], limit=3600.0, heard=heard)
        if outcome.died:
            raise RuntimeError(f"the reference of {network} could not be computed: {outcome.died}")
        known[network] = {key: value for event in outcome.of("result") for key, value in event["values"].items()}
        REFERENCES.write_text(json.dumps(known, indent=None).replace('}, "', '},\n"') + "\n")
    return known[network]


def work(job: dict[str, Any], emit: Emit) -> None:
    """Eigenvalues, trace, density and quadratic forms of a network's Hessian."""
    problem = Problem.load(job["network"], job["folder"])
    truth = Truth(problem)
    fast = cached_graph(problem)
    emit("begin", method="forms")
    vectors = problem.probes(FORMS)[1]
    emit("result", values={"forms": (vectors.double() * truth.products(vectors)).sum(0).tolist()})
    emit("begin", method="eigenvalues")
    product = truth.product if problem.size <= IN_DOUBLE else lambda vector: fast(vector[:, None])[:, 0]
    emit("result", values=_ends(problem, product))
    emit("begin", method="density")
    emit("result", values=_density(problem, fast, RUNS[job["network"]]))
    emit("begin", method="trace")
    emit("result", values=_trace(problem, truth, fast, *PROBES[job["network"]]))


def _ends(problem: Problem, product: Multiply) -> dict[str, Any]:
    def matvec(vector: np.ndarray) -> np.ndarray:
        return product(torch.from_numpy(vector.ravel()).float()).double().numpy()

    operator = LinearOperator((problem.size, problem.size), matvec=matvec, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(problem.size)
    largest = eigsh(operator, 6, which="LA", tol=1e-5, ncv=30, v0=start, return_eigenvectors=False)
    smallest = eigsh(operator, 1, which="SA", tol=1e-2, v0=start, return_eigenvectors=False)
    return {"eigenvalues": sorted(largest.tolist(), reverse=True), "smallest": float(smallest[0])}


def _trace(problem: Problem, truth: Truth, fast: Multiply, probes: int, rank: int) -> dict[str, Any]:
    """The trace, its standard error (0 where exact) and the standard deviation of one Rademacher probe.

    Beyond the parameters whose basis is summed over: Hutch++ (Meyer, Musco, Musco & Woodruff 2021), the trace on a basis Q of H
    times ``rank`` vectors and probes of the rest, whose products with H serve for the plain deviation as well.
    """
    basis = torch.linalg.qr(fast(signs(problem.size, rank, seed=1)))[0]
    images = fast(basis)
    plain, rest = [], []
    for index in range(probes):
        vector = signs(problem.size, 1, seed=1000 + index)
        product, inside = fast(vector), basis.T @ vector
        outside, image = (vector - basis @ inside).double(), (product - images @ inside).double()
        plain.append(float((vector.double() * product.double()).sum()))
        rest.append(float((outside * image).sum()))
    spread = float(np.std(plain, ddof=1))
    if problem.size > EXACT:
        trace = float((basis.double() * images.double()).sum()) + float(np.mean(rest))
        return {"trace": trace, "trace_stderr": float(np.std(rest, ddof=1)) / probes**0.5, "probe_deviation": spread}
    unit, total = torch.zeros(problem.size, dtype=torch.float64), 0.0
    for index in range(problem.size):
        unit[index] = 1.0
        total += float(truth.product(unit)[index])
        unit[index] = 0.0
    return {"trace": total, "trace_stderr": 0.0, "probe_deviation": spread}


def _density(problem: Problem, fast: Multiply, runs: int) -> dict[str, Any]:
    """Gauss quadratures of ``runs`` Rademacher vectors after 100 Lanczos steps, orthogonalised twice against all earlier ones."""
    nodes, weights = [], []
    for index in range(runs):
        basis = torch.empty(STEPS, problem.size)
        alphas, betas = [], []
        vector = signs(problem.size, 1, seed=5000 + index)[:, 0].contiguous()
        for step in range(STEPS):
            basis[step] = vector / vector.norm()
            vector = fast(basis[step][:, None])[:, 0]
            alphas.append(float(vector.double() @ basis[step].double()))
            for _ in range(2):
                vector -= basis[: step + 1].T @ (basis[: step + 1] @ vector)
            betas.append(float(vector.double().norm()))
        values, rows = np.linalg.eigh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))
        nodes.append([float(f"{value:.7g}") for value in values])
        weights.append([float(f"{value:.7g}") for value in rows[0] ** 2])
    return {"nodes": nodes, "weights": weights}


def distance(points: Tensor | np.ndarray, masses: Tensor | np.ndarray, reference: dict[str, Any]) -> float:
    """Wasserstein distance of a spectral measure to the reference's, relative to the largest eigenvalue."""
    from scipy.stats import wasserstein_distance

    points, masses = (np.asarray(array, dtype=np.float64).ravel() for array in (points, masses))
    kept = np.isfinite(points) & (masses > 0)
    nodes, weights = (np.ravel(reference[key]) for key in ("nodes", "weights"))
    return float(wasserstein_distance(points[kept], nodes, masses[kept], weights) / reference["eigenvalues"][0])
