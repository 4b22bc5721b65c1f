"""Reorthogonalisation alone: Lanczos on a diagonal matrix, whose products cost next to nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peers.measure import extra_memory, seconds
from peers.problems import signs
from peers.processes import Emit, Heard, in_turns, reason

SIZES = {"4M": 4_000_000, "1M": 1_000_000}
STEPS, PAIRS = 30, 5


def diagonal(size: int) -> Tensor:
    """Thirty eigenvalues apart from a flat bulk."""
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(size, generator=generator)
    values[:30] = torch.linspace(10, 2, 30)
    return values


def eigenthings(entries: Tensor) -> np.ndarray:
    from hessian_eigenthings import LambdaOperator, lanczos

    operator = LambdaOperator(lambda vector: entries * vector, size=len(entries), dtype=torch.float32)
    return lanczos(operator, k=PAIRS, max_iter=STEPS, reorthogonalize=True, which="LA", seed=0).eigenvalues.numpy()


def fastscape(entries: Tensor, block: int) -> np.ndarray:
    from fastscape.numerics.lanczos import extreme_pairs

    found = extreme_pairs(
        lambda vectors: (vectors.T * entries).T,
        len(entries),
        PAIRS,
        block=block,
        tolerance=0.0,
        which="largest",
        max_products=STEPS,
        dtype=torch.float32,
        keep_vectors=True,
    )
    return found.largest.values


def eigenthings_kernel(entries: Tensor) -> np.ndarray:
    """The recurrence and reorthogonalisation alone, without Ritz vectors."""
    from hessian_eigenthings import LambdaOperator, lanczos_tridiagonal

    operator = LambdaOperator(lambda vector: entries * vector, size=len(entries), dtype=torch.float32)
    run = lanczos_tridiagonal(operator, signs(len(entries), 1)[:, 0], STEPS, reorthogonalize=True)
    small = torch.diag(run.alphas) + torch.diag(run.betas, 1) + torch.diag(run.betas, -1)
    return torch.linalg.eigvalsh(small.double()).flip(0).numpy()


def fastscape_kernel(entries: Tensor) -> np.ndarray:
    """The same of ours."""
    from fastscape.numerics.krylov import BlockLanczos

    start = signs(len(entries), 1)
    run = BlockLanczos(lambda vectors: (vectors.T * entries).T, start, wanted=PAIRS, which="largest", capacity=STEPS + 1)
    for _ in range(STEPS):
        run.step()
    return run.pairs(PAIRS, "largest").values


WAYS: dict[str, Callable[[Tensor], np.ndarray]] = {
    "hessian-eigenthings": eigenthings,
    "fastscape, one vector": lambda entries: fastscape(entries, 1),
    "hessian-eigenthings, recurrence alone": eigenthings_kernel,
    "fastscape, recurrence alone": fastscape_kernel,
    "fastscape, blocks of 5": lambda entries: fastscape(entries, 5),
}


def work(job: dict[str, Any], emit: Emit) -> None:
    """One run after a small one; the products' own time beside it."""
    name = job["method"]
    emit("begin", method=name)
    try:
        WAYS[name](diagonal(10_000))
        entries = diagonal(SIZES[job["network"]])
        vector = torch.ones_like(entries)
        products = STEPS * min(seconds(lambda: entries * vector) for _ in range(3))
        found: dict[str, np.ndarray] = {}
        whole, extra = extra_memory(lambda: seconds(lambda: found.update(values=WAYS[name](entries))))
    except Exception as error:
        emit("failed", method=name, why=reason(error))
        return
    values = {"seconds": whole, "products": products, "extra_mib": extra, "largest": float(found["values"][0])}
    emit("result", method=name, values=values)


def measure(size: str, settings: dict[str, Any], heard: Heard) -> dict[str, Any]:
    """Rows by tool: medians over rounds."""
    job = {"package": "orthogonalisation", "network": size} | settings["job"]
    results, rows = in_turns(job, WAYS, limit=settings["limit"], heard=heard, rounds=settings["repeats"])
    for name, events in results.items():
        if name not in rows:
            runs = [event["values"] for event in events]
            rows[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    return rows
