"""Sixteen quadratic forms v'Hv: time from nothing, time again, peak extra memory and error."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fastscape as fs
from peers import reference
from peers.measure import ALLOCATOR, extra_memory, median_seconds, seconds
from peers.methods import METHODS, Multiply
from peers.problems import Problem
from peers.processes import Emit, Heard, in_turns, reason

Forms = Callable[[], Tensor]
WRONG = 1e-2  # error relative to the root mean square of the forms above which they are no success
CALLS, LONG = 3, 5.0  # calls, or one where it takes more seconds


def by_products(make: Callable[[Problem], Multiply]) -> Callable[[Problem, int], Forms]:
    """Forms from a block of products."""

    def prepare(problem: Problem, count: int) -> Forms:
        multiply, vectors = make(problem), problem.probes(count)[1]
        return lambda: torch.stack([row.double() @ out.double() for row, out in zip(vectors.T, multiply(vectors).T, strict=True)])

    return prepare


def two_jets(problem: Problem, count: int) -> Forms:
    """``fs.quadratic_forms``: the exact second derivative along every vector, forward only."""
    directions = problem.probes(count)[0]
    return lambda: torch.from_numpy(fs.quadratic_forms(problem.objective(), directions).curvature)


def two_forwards(problem: Problem, count: int) -> Forms:
    """``fs.quadratic_forms(method="forwards")``: L(w + h v) + L(w - h v) - 2 L(w), the step found from the losses."""
    directions = problem.probes(count)[0]
    return lambda: torch.from_numpy(fs.quadratic_forms(problem.objective(), directions, method="forwards").curvature)


WAYS = {
    name: by_products(make)
    for name, make in METHODS.items()
    if name not in ("fastscape, H @ v", "fastscape, H @ V, all paths tried")
}
WAYS["fastscape, 2-jets"] = two_jets
WAYS["fastscape, two forwards"] = two_forwards


def work(job: dict[str, Any], emit: Emit) -> None:
    """One method: either its times or, with the allocator that gives memory back, its peak."""
    name = job["method"]
    emit("begin", method=name)
    try:
        WAYS[name](Problem.tiny(), 2)()
        problem = Problem.load(job["network"], job["folder"])
        problem.gradient()
        values = _peak(problem, name) if job["memory"] else _times(problem, name)
    except Exception as error:
        emit("failed", method=name, why=reason(error))
        return
    emit("result", method=name, values=values)


def _times(problem: Problem, name: str) -> dict[str, Any]:
    gradient = median_seconds(problem.gradient, 5)
    _draw(problem)

    def everything() -> Tensor:
        problem.model.zero_grad()
        return WAYS[name](problem, reference.FORMS)()

    found: dict[str, Tensor] = {}
    fresh = seconds(lambda: found.update(forms=everything()))
    calls = 1 if fresh > LONG else CALLS
    if calls > 1:
        fresh = median_seconds(everything, calls)
    ready = WAYS[name](problem, reference.FORMS)
    return {"gradient": gradient, "fresh": fresh, "again": median_seconds(ready, calls), "forms": found["forms"].tolist()}


def _peak(problem: Problem, name: str) -> dict[str, Any]:
    gradient = extra_memory(problem.gradient)[1]
    _draw(problem)
    found, extra = extra_memory(lambda: WAYS[name](problem, reference.FORMS)())
    return {"gradient_mib": gradient, "extra_mib": extra, "forms": found.tolist()}


def _draw(problem: Problem) -> None:
    """Make the vectors before any clock runs or mark is set, for all alike."""
    kept = problem.probes(reference.FORMS)
    problem.probes = lambda _: kept


def measure(network: str, settings: dict[str, Any], heard: Heard) -> dict[str, Any]:
    """Rows by method: seconds, MiB and error."""
    truth = torch.tensor(reference.load(network, settings, heard)["forms"], dtype=torch.float64)
    job = {"package": "forms", "network": network} | settings["job"]
    options = {"limit": settings["limit"], "heard": heard}
    times, failed = in_turns(job | {"memory": False}, WAYS, rounds=min(settings["repeats"], 3), **options)
    alive = [name for name in WAYS if name not in failed]
    peaks, without = in_turns(job | {"memory": True}, alive, rounds=1, environment=ALLOCATOR, **options)
    rows: dict[str, Any] = failed | without
    for name in alive:
        if name not in rows:
            runs = [event["values"] for event in times[name]]
            forms = torch.tensor(runs[-1]["forms"], dtype=torch.float64)
            row = {key: statistics.median(run[key] for run in runs) for key in ("gradient", "fresh", "again")}
            row |= {key: peaks[name][0]["values"][key] for key in ("gradient_mib", "extra_mib")}
            row["error"] = float((forms - truth).abs().max() / truth.square().mean().sqrt())
            rows[name] = row if row["error"] <= WRONG else {"wrong": row}
    return rows
