"""The result of a diagonal from whatever had been multiplied."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fastscape.evaluation.arithmetic import measured_in
from fastscape.numerics.arrays import Array
from fastscape.numerics.diagonal import Means
from fastscape.numerics.estimate import Estimate, unknown
from fastscape.probes.diagonal.result import DiagonalResult
from fastscape.probes.diagonal.run import DiagonalRun
from fastscape.runs.provenance import Provenance, objective_meta

_ROUNDING = 4.0  # units in the last place of the norm of a row


def diagonal_result(run: DiagonalRun, name: str, step: int | None, settings: Mapping[str, Any]) -> DiagonalResult:
    """What is known."""
    found = run.means()
    share = _share(run)
    nothing = np.full(run.size, math.nan)
    values, stderr = (nothing, nothing) if found is None else (found.values, np.sqrt(found.variances))
    norms = _row_norms(run)
    stderr = np.hypot(stderr, share * norms / 2)
    sums = dict(zip(run.objective.names, run.layers, strict=True))
    layers = {
        key: _sum(found, index, share * float(np.linalg.norm(norms[part]))) for index, (key, part) in enumerate(sums.items())
    }
    probes = 0 if found is None or run.goals.estimator == "exact" else found.count
    return DiagonalResult(
        name=name,
        step=step,
        loss=run.loss,
        operator=run.goals.operator,
        estimator=_estimator(run) if found is not None else "",
        values=values,
        stderr=stderr,
        parameters={key: tuple(tensor.shape) for key, tensor in run.objective.base.items()},
        layers=layers,
        trace=_sum(found, len(layers), share * float(np.linalg.norm(norms))),
        error=float(np.linalg.norm(stderr)),
        products=run.products,
        probes=probes,
        dimension=run.dimension if run.products else 0,
        meta=Provenance(_meta(run, settings)),
        notes=(
            *measured_in(run.objective, run.operator.dtype).notes,
            *run.operator.notes,
            *run.notes,
            *run.evaluations.notes,
        ),
    )


def _estimator(run: DiagonalRun) -> str:
    return "hutchinson" if run.goals.estimator == "xdiag" and not run.dimension else run.goals.estimator


def _sum(found: Means | None, index: int, rounding: float) -> Estimate:
    return unknown(0) if found is None else found.estimate(index, rounding)


def _share(run: DiagonalRun) -> float:
    """Rounding of a product relative to the norm of a row, and what differences of gradients are off."""
    choice = run.operator.choice
    off = 0.0 if choice is None else choice.error or 0.0
    return _ROUNDING * torch.finfo(run.operator.dtype).eps + off


def _row_norms(run: DiagonalRun) -> Array:
    """Norms of the rows of A, by the probes."""
    if not run.products:
        return np.full(run.size, math.nan)
    count = 1 if run.goals.estimator == "exact" else max(run.drawn, 1)
    found: Array = np.sqrt(run.squares.cpu().numpy() / count)
    return found


def _meta(run: DiagonalRun, settings: Mapping[str, Any]) -> dict[str, Any]:
    operator, budget = run.operator, run.work.budget
    choice = operator.choice
    return {
        "settings": dict(settings),
        "seed": run.goals.seed,
        "stop_reason": run.work.reason,
        "seconds": budget.elapsed,
        "budget": budget.seconds if budget.limited else None,
        "path": None if choice is None else choice.name,
        "refused": {} if choice is None else dict(choice.refused),
        "gradients_per_product": None if choice is None else choice.gradients,
        "product_error": None if choice is None else choice.error,
        "trial_products": max(0, operator.products - run.products),
        "range": "complete" if run.captured else "open",
        **objective_meta(run.objective),
        **measured_in(run.objective, operator.dtype).meta,
        "product_dtype": str(operator.dtype),
    }
