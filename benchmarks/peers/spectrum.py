"""The spectrum question: time, peak extra memory and what was achieved, each run in a process of its own."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from torch import Tensor

from peers import reference, tuning
from peers.measure import extra_memory, median_seconds, seconds
from peers.problems import Problem, Truth
from peers.processes import Emit, Heard, in_turns, reason
from peers.tools import RESIDUAL, TOOLS, TRACE, WHOLE, Answer, Tool

NAMES = (*TOOLS, *WHOLE)


def work(job: dict[str, Any], emit: Emit) -> None:
    """One tool on one network, after a gradient and after the tool has been run on a tiny network."""
    name, seed = job["method"], job["turn"] + 1
    emit("begin", method=name)
    try:
        answered(name, Problem.tiny(), job | {"trace": ["hutchinson", 2]}, seed, {})
        problem = Problem.load(job["network"], job["folder"])
        gradient = median_seconds(problem.gradient, 3)
        stages: dict[str, float] = {}
        found: dict[str, Answer] = {}
        whole, extra = extra_memory(
            lambda: seconds(lambda: found.update(answer=answered(name, problem, job, seed, stages, emit)))
        )
        emit("begin", method=name)
        values = {"seconds": whole, "gradient": gradient, "extra_mib": extra, "stages": stages}
        values |= accuracy(found["answer"], problem, job["reference"])
    except Exception as error:
        emit("failed", method=name, why=reason(error))
        return
    emit("result", method=name, values=values)


def answered(
    name: str, problem: Problem, job: dict[str, Any], seed: int, stages: dict[str, float], emit: Emit | None = None
) -> Answer:
    """The answer, and the seconds of its stages."""
    if name in WHOLE:
        return WHOLE[name](problem, job["trace"], seed)
    tool: Tool = TOOLS[name]
    found: dict[str, Any] = {}
    parts = {
        "pairs": lambda: tool.pairs(problem, job["setting"], seed),
        "trace": lambda: tool.trace(problem, job["trace"], seed),
        "density": lambda: tool.density(problem, float(found["pairs"][0][0]), seed),
    }
    for part, call in parts.items():
        if emit is not None:
            emit("begin", method=name, part=part)
        stages[part] = seconds(lambda part=part, call=call: found.update({part: call()}))
    return Answer(*found["pairs"], found["trace"], found["density"])


def accuracy(answer: Answer, problem: Problem, known: dict[str, Any]) -> dict[str, Any]:
    """True residuals in float64, and errors of eigenvalues, trace and density."""
    exact = np.array(known["eigenvalues"][: len(answer.values)])
    return {
        "residual": None if answer.vectors is None else residual(answer.values, answer.vectors, problem) / exact[0],
        "eigenvalue_error": float(np.abs(np.asarray(answer.values) - exact).max() / exact[0]),
        "trace_error": abs(answer.trace / known["trace"] - 1),
        "density_distance": reference.distance(*map(np.asarray, answer.density), known),
    }


def residual(values: np.ndarray, vectors: Tensor, problem: Problem) -> float:
    """Largest ||H v - theta v|| / ||v|| over the pairs, with products in float64."""
    product, vectors = Truth(problem).product, vectors.double()
    unit = vectors / vectors.norm(dim=0)
    return max(float((product(v) - float(theta) * v).norm()) for theta, v in zip(values, unit.T, strict=True))


def measure(network: str, settings: dict[str, Any], heard: Heard) -> dict[str, Any]:
    """Rows by tool: medians of seconds over rounds, and the worst accuracy of any."""
    known = reference.load(network, settings, heard)
    chosen = tuning.settings(network, settings, heard)
    rows: dict[str, Any] = {}
    for name in NAMES:
        if name in TOOLS and "failed" in chosen[name]:
            rows[name] = {"failed": "eigenvalues: " + chosen[name]["failed"]}
    kept = {key: known[key] for key in ("eigenvalues", "trace", "nodes", "weights")}
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES if name not in rows}
    for turn in range(min(settings["repeats"], 3)):
        for name in list(results):
            job = {"package": "spectrum", "network": network, "reference": kept} | settings["job"]
            job |= {"setting": chosen.get(name, {}).get("setting"), "trace": trace_setting(name, chosen["traces"])}
            found, failed = in_turns(job, [name], limit=settings["limit"], heard=heard, rounds=1, first=turn)
            results[name] += found[name]
            if failed:
                rows |= failed
                del results[name]
    for name, runs in results.items():
        rows[name] = _row([event["values"] for event in runs]) | {"setting": chosen.get(name, {}).get("setting")}
        rows[name]["trace_setting"] = trace_setting(name, chosen["traces"])
    return rows


def trace_setting(name: str, traces: dict[str, int]) -> tuple[str, int]:
    """The estimator with the fewest products among those that a tool has."""
    methods = TOOLS[name].traces if name in TOOLS else ("hutchinson", "hutch++")
    return min(((method, traces[method]) for method in methods if method in traces), key=lambda pair: pair[1])


def _row(runs: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {key: statistics.median(run[key] for run in runs) for key in ("seconds", "gradient", "extra_mib")}
    row["stages"] = {part: statistics.median(run["stages"][part] for run in runs) for part in runs[0]["stages"]}
    for key in ("residual", "eigenvalue_error", "trace_error", "density_distance"):
        values = [run[key] for run in runs]
        row[key] = None if None in values else max(values)
    middle = {key: statistics.median(run[key] or 0.0 for run in runs) for key in ("residual", "eigenvalue_error", "trace_error")}
    row["reached"] = bool(max(middle["residual"], middle["eigenvalue_error"] / 2) <= RESIDUAL and middle["trace_error"] <= TRACE)
    return row
