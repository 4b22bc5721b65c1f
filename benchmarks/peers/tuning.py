"""The loosest setting of each peer whose five largest eigenvalues are right, kept beside the reference."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peers.methods import cached_graph
from peers.problems import Problem
from peers.processes import Emit, Heard, reason, run
from peers.reference import IN_DOUBLE, REFERENCES
from peers.tools import RESIDUAL, TOOLS, TRACE, probes_needed

TRACES = "trace estimators"
DEFLATED = (12, 24, 36, 60, 96, 150)  # products of Hutch++ and XTrace
SEEDS = (1, 2, 3)  # those of the runs that are timed


def settings(network: str, options: dict[str, Any], heard: Heard) -> dict[str, Any]:
    """``{tool: {"setting", "residual"}}``, with ``failed`` where a tool's first setting did not come to an end."""
    known = json.loads(REFERENCES.read_text())
    chosen = known[network].setdefault("settings", {})
    if "traces" not in chosen:
        job = {"package": "tuning", "network": network, "method": TRACES, "reference": known[network]}
        outcome = run(job | options["job"], limit=options["limit"], heard=heard)
        chosen["traces"] = {"hutchinson": probes_needed(known[network])}
        for event in outcome.of("result"):
            chosen["traces"] |= event["values"]
        REFERENCES.write_text(json.dumps(known, indent=None).replace('}, "', '},\n"') + "\n")
    for name in TOOLS:
        if name not in chosen:
            job = {"package": "tuning", "network": network, "method": name, "reference": known[network]["eigenvalues"]}
            outcome = run(job | options["job"], limit=options["limit"], heard=heard)
            steps = [event["values"] for event in outcome.of("result")]
            right = [step for step in steps if step["reached"]]
            failed = [event["why"] for event in outcome.of("failed")] or [outcome.died]
            chosen[name] = right[0] if right else steps[-1] if steps else {"failed": failed[0] or "no setting came to an end"}
            REFERENCES.write_text(json.dumps(known, indent=None).replace('}, "', '},\n"') + "\n")
    return chosen


def work(job: dict[str, Any], emit: Emit) -> None:
    """Go up a tool's ladder until residuals and eigenvalues are right."""
    from peers.spectrum import residual

    name, problem = job["method"], Problem.load(job["network"], job["folder"])
    if name == TRACES:
        return _traces(problem, job["reference"], emit)
    exact = np.array(job["reference"][:5])
    seeds = SEEDS if problem.size <= IN_DOUBLE else SEEDS[:1]
    for setting in TOOLS[name].ladder:
        emit("begin", method=name)
        try:
            runs = [TOOLS[name].pairs(problem, setting, seed) for seed in seeds]
            found = max(residual(*pairs, problem) for pairs in runs) / exact[0]
        except Exception as error:
            return emit("failed", method=name, why=reason(error))
        error = max(float(np.abs(values - exact).max()) for values, _ in runs) / exact[0]
        reached = bool(found <= RESIDUAL and error <= 2 * RESIDUAL)
        emit("result", method=name, values={"setting": setting, "residual": found, "eigenvalue_error": error, "reached": reached})
        if reached:
            break
    return None


def _traces(problem: Problem, reference: dict[str, Any], emit: Emit) -> None:
    """The fewest products of Hutch++ and XTrace whose root mean square error over three seeds fits a 95 % interval of 5 %."""
    from curvlinops import hutchpp_trace, xtrace
    from curvlinops._torch_base import PyTorchLinearOperator

    multiply = cached_graph(problem)

    class Products(PyTorchLinearOperator):
        SELF_ADJOINT = True
        device, dtype = torch.device("cpu"), torch.float32

        def _matmat(self, vectors: list[Tensor]) -> list[Tensor]:
            return [multiply(vectors[0])]

    operator = Products([(problem.size,)], [(problem.size,)])
    plain = probes_needed(reference)
    for name, estimate in (("hutch++", hutchpp_trace), ("xtrace", xtrace)):
        for products in (count for count in DEFLATED if count < plain):
            errors = []
            for seed in SEEDS:
                emit("begin", method=name)
                torch.manual_seed(seed)
                errors.append(float(estimate(operator, products)) / reference["trace"] - 1)
            if float(np.sqrt(np.mean(np.square(errors)))) <= TRACE / 1.96:
                emit("result", method=name, values={name: products})
                break
