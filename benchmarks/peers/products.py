"""Cost of a product per vector in gradients, all methods interleaved in one process."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from peers.measure import seconds
from peers.methods import methods
from peers.problems import Problem, Truth, signs
from peers.processes import Emit, Outcome, failures, reason, run

COUNTS = (1, 8)
WRONG = 1e-3  # relative error of a product in float32 above which it is no success
LEAST_SECONDS = 0.01  # of gradients in one reading of the clock


def work(job: dict[str, Any], emit: Emit) -> None:
    """Seconds of a block of products by every method in turn, checked first, and of a gradient between them."""
    problem = Problem.load(job["network"], job["folder"])
    vectors = signs(problem.size, job["count"])
    if job["count"] == 1:
        vectors = vectors.contiguous()
    checked = min(job["count"], 2)
    expected = Truth(problem).products(vectors[:, :checked])
    ready = {}
    for name, make in methods(job["count"]).items():
        if name in job["methods"]:
            emit("begin", method=name)
            try:
                found: dict[str, Any] = {}
                setup = seconds(lambda make=make, found=found: found.update(multiply=make(problem)))
                first = seconds(lambda found=found: found.update(result=found["multiply"](vectors)[:, :checked].double()))
            except Exception as error:
                emit("failed", method=name, why=reason(error))
                continue
            emit(
                "checked",
                method=name,
                error=float((found["result"] - expected).norm() / expected.norm()),
                setup=setup,
                first=first,
            )
            ready[name] = found["multiply"]
    emit("begin", method="gradient")
    calls = max(1, round(LEAST_SECONDS / min(seconds(problem.gradient) for _ in range(3))))
    names = list(ready)
    for turn in range(job["repeats"]):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            emit("begin", method=name)
            gradient = seconds(lambda: [problem.gradient() for _ in range(calls)]) / calls
            own = seconds(lambda name=name: [ready[name](vectors) for _ in range(calls)]) / calls
            emit("time", method=name, seconds=own, gradient=gradient)


def measure(network: str, settings: dict[str, Any], heard) -> dict[str, Any]:
    """Rows by number of vectors and method; a method that ends its process is left out of the next attempt."""
    return {str(count): _measured(network, count, settings, heard) for count in COUNTS}


def _measured(network: str, count: int, settings: dict[str, Any], heard) -> dict[str, Any]:
    wanted, rows = list(methods(count)), {}
    while wanted:
        job = {"package": "products", "network": network, "count": count, "methods": wanted} | settings["job"]
        outcome = run(job, limit=settings["limit"], heard=heard)
        rows |= failures(outcome)
        if outcome.died is None or outcome.method not in wanted:
            return _table(outcome, count) | rows
        rows[outcome.method] = {"failed": outcome.died}
        wanted = [name for name in wanted if name not in rows]
    return rows


def _table(outcome: Outcome, count: int) -> dict[str, Any]:
    times, gradients = defaultdict(list), []
    for event in outcome.of("time"):
        times[event["method"]].append(event["seconds"])
        gradients.append(event["gradient"])
    if not gradients:
        return {"all": {"failed": outcome.died or "nothing was measured"}}
    unit = statistics.median(gradients)
    rows: dict[str, Any] = {"gradient": {"seconds": unit}}
    for event in outcome.of("checked"):
        name = event["method"]
        if times[name]:
            seconds = statistics.median(times[name]) / count
            rows[name] = {"error": event["error"], "setup": event["setup"] / unit, "first": event["first"] / unit}
            # a time of a wrong product is kept under another name, so that no table takes it for a success
            rows[name] |= {"gradients" if event["error"] <= WRONG else "gradients_of_wrong": seconds / unit}
    return rows
