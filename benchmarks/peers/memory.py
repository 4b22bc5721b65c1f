"""Peak extra memory of 32 trace probes; fastscape under a cap of two gradients' worth."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

import fastscape as fs
from peers.measure import ALLOCATOR, extra_memory, seconds
from peers.methods import cached_graph, curvlinops_operator, eigenthings_operator
from peers.problems import Problem, signs
from peers.processes import Emit, Heard, in_turns, reason

PROBES = 32


def gradient(problem: Problem, probes: int, cap: int) -> float:
    return float(problem.gradient()[0].sum())


def curvlinops(problem: Problem, probes: int, cap: int) -> float:
    from curvlinops import hutchinson_trace

    return float(hutchinson_trace(curvlinops_operator(problem), probes))


def eigenthings(problem: Problem, probes: int, cap: int) -> float:
    from hessian_eigenthings import hutchinson

    return float(hutchinson(eigenthings_operator(problem), num_samples=probes, seed=0).estimate)


def pyhessian(problem: Problem, probes: int, cap: int) -> float:
    from pyhessian import hessian

    found = hessian(problem.model, problem.criterion, data=problem.batch, cuda=False).trace(maxIter=probes, tol=0.0)
    return sum(found) / len(found)


def graph(problem: Problem, probes: int, cap: int) -> float:
    """Plain torch, the graph kept, one vector after the other."""
    multiply, total = cached_graph(problem), 0.0
    for index in range(probes):
        vector = signs(problem.size, 1, seed=index)
        total += float((vector * multiply(vector)).sum())
    return total / probes


def fastscape(problem: Problem, probes: int, cap: int) -> float:
    """Blocks of the operator's choice where a quarter of the cap holds their vectors, else one after the other."""
    operator = fs.hessian(problem.objective(), memory=cap)
    block = operator.preferred_block if 8 * problem.size * 4 <= cap // 4 else 1
    total = 0.0
    for done in range(0, probes, block):
        vectors = signs(problem.size, min(block, probes - done), seed=done)
        total += float(operator.quadratic_forms(vectors).sum())
    return total / probes


def two_jets(problem: Problem, probes: int, cap: int) -> float:
    """Forward only, which keeps no graph."""
    return float(np.mean(fs.quadratic_forms(problem.objective(), problem.directions(probes), memory=cap).curvature))


def two_forwards(problem: Problem, probes: int, cap: int) -> float:
    """Two losses a direction; neither a gradient nor a direction is kept."""
    directions = problem.directions(probes)
    return float(np.mean(fs.quadratic_forms(problem.objective(), directions, method="forwards", memory=cap).curvature))


WAYS: dict[str, Callable[[Problem, int, int], float]] = {
    "gradient": gradient,
    "curvlinops": curvlinops,
    "hessian-eigenthings": eigenthings,
    "PyHessian": pyhessian,
    "torch, cached graph": graph,
    "fastscape, products": fastscape,
    "fastscape, products under twice the cap": lambda problem, probes, cap: fastscape(problem, probes, 2 * cap),
    "fastscape, 2-jets": two_jets,
    "fastscape, two forwards": two_forwards,
}


def work(job: dict[str, Any], emit: Emit) -> None:
    """One way in a fresh process, after a gradient and after the way on a tiny network."""
    name = job["method"]
    emit("begin", method=name)
    try:
        WAYS[name](Problem.tiny(), 2, 1 << 26)
        problem = Problem.load(job["network"], job["folder"])
        problem.gradient()
        found: dict[str, float] = {}
        whole, extra = extra_memory(lambda: seconds(lambda: found.update(trace=WAYS[name](problem, PROBES, job["cap"]))))
    except Exception as error:
        emit("failed", method=name, why=reason(error))
        return
    emit("result", method=name, values={"extra_mib": extra, "seconds": whole, "trace": found["trace"]})


def measure(network: str, settings: dict[str, Any], heard: Heard) -> dict[str, Any]:
    """Rows by way; the cap is twice what a gradient was found to take."""
    job = {"package": "memory", "network": network, "cap": 0} | settings["job"]
    options = {"limit": settings["limit"], "heard": heard, "rounds": min(settings["repeats"], 3), "environment": ALLOCATOR}
    results, rows = in_turns(job, ["gradient"], **options)
    if rows:
        return rows
    unit = statistics.median(event["values"]["extra_mib"] for event in results["gradient"])
    job["cap"] = int(2 * unit * 2**20)
    others, rows = in_turns(job, [name for name in WAYS if name != "gradient"], **options)
    for name, events in (results | others).items():
        if name not in rows:
            runs = [event["values"] for event in events]
            rows[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            rows[name]["gradients"] = rows[name]["extra_mib"] / unit
    return {"cap_mib": 2 * unit, "ways": rows}
