"""The result of a spectral run, from whatever it had multiplied when it ended."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fastscape.evaluation.arithmetic import measured_in
from fastscape.numerics.estimate import Estimate, widened
from fastscape.numerics.krylov import Eigenpairs
from fastscape.numerics.positive import scaled, skewed_mean, useful
from fastscape.numerics.spectra import Density
from fastscape.numerics.student import mean_estimate
from fastscape.numerics.trace import data_stderr, directional_variance, effective_rank
from fastscape.probes.spectrum.density import density
from fastscape.probes.spectrum.multiplied import Multiplied, certain
from fastscape.probes.spectrum.result import SpectrumResult
from fastscape.probes.spectrum.run import SpectralRun
from fastscape.runs.provenance import Provenance, objective_meta

_ORTHOGONALITY_PROBES = 4
_OPEN = 0.5  # of the range of a share, beyond which its interval says nothing


def spectrum_result(run: SpectralRun, reason: str, operator: str, step: int | None, extra: Mapping[str, Any]) -> SpectrumResult:
    """Everything that the products of a run tell; NaN where they do not."""
    of = run.known
    notes = [*getattr(of.operator, "notes", ()), *of.notes]
    trace = of.trace_estimate()
    square, rank = _squares(of, notes)
    largest, smallest = _ends(run)
    if of.basis is not None and of.basis.dimension and of.basis.norm == 0:
        notes.append("all products are zero: the loss is linear at these weights, or its curvature underflows")
    if of.basis is not None and of.basis.dimension:
        open_ = ~largest.converged & (largest.residuals <= run.goals.eigenvalues * of.basis.norm)
        if open_.any():
            first = int(np.argmax(open_))
            notes.append(
                f"eigenvalue {first} is repeated and may have further copies instead of those after it; give more budget or a "
                "larger block"
            )
    return SpectrumResult(
        name=run.name,
        step=step,
        loss=of.loss,
        accuracy=of.accuracy,
        size=of.size,
        operator=operator,
        eigenvalues=largest.values,
        residuals=largest.residuals,
        converged=largest.converged,
        smallest=smallest.values,
        smallest_residuals=smallest.residuals,
        smallest_converged=smallest.converged,
        trace=trace,
        trace_data_stderr=_data_stderr(of),
        trace_square=square,
        effective_rank=rank,
        mean_curvature=scaled(trace, 1 / of.size),
        directional_variance=_variance(of, square),
        layer_traces=_layers(of),
        density=_density(of, operator),
        gradient_norm=of.gradient_norm,
        gradient_curvature=math.nan if of.started is None else of.started.along_gradient,
        stability=None,
        products=of.count,
        meta=Provenance(_meta(run, reason) | dict(extra)),
        notes=(*measured_in(of.objective, of.operator.dtype).notes, *notes),
        vectors=largest.vectors,
    )


def _ends(run: SpectralRun) -> tuple[Eigenpairs, Eigenpairs]:
    """The k largest with vectors; of the smallest the first, and those after it that have converged, up to k."""
    if run.known.basis is None or not run.known.basis.dimension:
        none = Eigenpairs(np.empty(0), np.empty(0), np.empty(0, dtype=bool))
        return none, none
    smallest = run.pairs("smallest", run.k)
    count = max(1, int(np.argmin(np.append(smallest.converged, False))))
    low = Eigenpairs(smallest.values[:count], smallest.residuals[:count], smallest.converged[:count])
    return run.pairs("largest", run.k, vectors=True), low


def _squares(of: Multiplied, notes: list[str]) -> tuple[Estimate, Estimate]:
    """Tr(H^2) and the effective rank, deflated where the trace is."""
    exact, exact_square = (0.0, 0.0) if of.basis is None else of.basis.krylov.span_sums()
    share = of.rounding / math.sqrt(exact_square) if exact_square else 0.0  # of ||H||_F
    if of.complete:
        whole = exact**2 / exact_square if exact_square else math.nan
        return certain(exact_square, of.size, 2 * share * exact_square), certain(whole, of.size, _loose(whole, share))
    absolute = _absolute(of)
    if of.deflated:
        forms, squares = np.array(of.fresh.forms), np.array(of.fresh.squares)
        rank, flag = effective_rank(forms, squares, exact=exact, exact_square=exact_square, absolute=absolute)
        square = skewed_mean(squares, exact_square)
    else:
        forms, squares = of.plain()
        rank, flag = effective_rank(forms, squares, absolute=absolute)
        square = skewed_mean(squares)
    if flag:
        notes.append(flag)
    square, rank = widened(square, 2 * share * exact_square), widened(rank, _loose(rank.value, share))
    return useful(square, "probe"), rank if rank.withheld else useful(rank, "probe", 2)


def _loose(rank: float, share: float) -> float:
    """Uncertainty of (Tr H)^2 / Tr H^2 by rounding of a share of ||H||_F."""
    return 2 * share * (math.sqrt(rank) + rank) if rank > 0 else 0.0


def _variance(of: Multiplied, square: Estimate) -> Estimate:
    """Variance of v'Hv over all whole probes, with what the basis tells of their tail and of their size."""
    forms = np.concatenate([of.plain()[0], of.fresh.whole])
    found = directional_variance(forms, _kurtosis(of, square), square)
    low, high = found.interval
    if low >= 0:  # not NaN; deviations of forms are off by the rounding of a form
        low, high = max(0.0, math.sqrt(low) - of.rounding) ** 2, (math.sqrt(high) + of.rounding) ** 2
    return useful(dataclasses.replace(found, interval=(low, high)), "probe", 2)


def _kurtosis(of: Multiplied, square: Estimate) -> float | None:
    """Kurtosis of v'Hv by the Ritz values, of which the outer ones dominate a fourth power."""
    if of.basis is None or not of.basis.dimension or not square.value > 0:
        return None
    shares = of.basis.pairs(of.basis.dimension).values ** 2 / square.value
    return float(3 + 12 * np.clip(np.sum(shares**2), 0, 1))


def _absolute(of: Multiplied) -> float | None:
    """Tr |H| by the quadrature of the starting probes."""
    if of.basis is None or not of.basis.dimension:
        return None
    rule = of.basis.krylov.quadrature()
    return of.size * float((rule.weights[: of.probes] @ np.abs(rule.nodes)).mean())


def _density(of: Multiplied, operator: str) -> Density | None:
    if of.basis is None or not of.basis.dimension:
        return None
    rule = of.basis.krylov.quadrature()
    found = density(rule.nodes, rule.weights[: of.probes])
    if operator == "ggn":  # positive semidefinite, for criteria that are convex in the outputs
        return dataclasses.replace(found, negative_mass=certain(0.0, of.probes))
    low, high = found.negative_mass.interval
    if high - low <= _OPEN:
        return found
    words = f"between {100 * low:.0f} and {100 * high:.0f} %, most lie within a node of zero; more than {len(rule.nodes)} nodes"
    return dataclasses.replace(found, negative_mass=dataclasses.replace(found.negative_mass, withheld=words))


def _sums_hold(of: Multiplied) -> bool:
    """Whether the sums over the basis are those of the basis as it is."""
    return of.basis is not None and of.sums.dimension == of.basis.dimension > 0


def _layers(of: Multiplied) -> dict[str, Estimate]:
    names = list(of.operator.layers)
    if of.started is None:
        return {}
    if of.complete and _sums_hold(of):
        return {name: certain(float(value), of.size, of.rounding) for name, value in zip(names, of.sums.layers, strict=True)}
    if len(of.fresh) > 1 and _sums_hold(of):
        forms = np.array(of.fresh.layers).T
        found = (mean_estimate(row, float(sum_)) for row, sum_ in zip(forms, of.sums.layers, strict=True))
        return {name: widened(estimate, of.rounding) for name, estimate in zip(names, found, strict=True)}
    return {name: mean_estimate(row) for name, row in zip(names, of.started.layers, strict=True)}


def _data_stderr(of: Multiplied) -> float | None:
    weights = np.array(of.operator.batch_weights)
    if len(weights) < 2:
        return None
    exact = of.sums.batches[:, None]
    if of.complete and _sums_hold(of):
        return data_stderr(exact, weights)
    if len(of.fresh) > 1 and _sums_hold(of):
        return data_stderr(exact + np.array(of.fresh.batches).T, weights)
    return None


def _meta(run: SpectralRun, reason: str) -> dict[str, Any]:
    of, budget = run.known, run.work.budget
    basis, choice, objective = of.basis, of.operator.choice, of.objective
    krylov = None if basis is None or not basis.dimension else basis.krylov
    served = getattr(of.operator, "served", None)  # of several processes
    trials = max(0, of.operator.products - of.count - of.beside)
    return {
        "seed": of.seed,
        "settings": {"k": run.k, "block": of.block, "nodes": run.goals.nodes},
        "targets": {"eigenvalues": run.goals.eigenvalues, "trace": run.goals.trace},
        "stop_reason": reason,
        "seconds": budget.elapsed,
        "budget": budget.seconds if budget.limited else None,
        "path": None if choice is None else choice.name,
        "reason": None if choice is None else choice.reason,
        "refused": {} if choice is None else dict(choice.refused),
        "gradients_per_product": None if choice is None else choice.gradients,
        "product_error": None if choice is None else choice.error,
        "trial_products": trials,
        "nan_products": max(of.operator.nan_products, 0 if basis is None else basis.nan_products),
        "dimension": 0 if basis is None else basis.dimension,
        "restarts": 0 if basis is None else basis.restarts,
        "orthogonality_loss": None if krylov is None else krylov.orthogonality_loss(_ORTHOGONALITY_PROBES),
        "asymmetry": None if krylov is None else krylov.asymmetry,
        "trace_estimator": "exact" if of.complete else "deflated" if of.deflated else "plain",
        "probes": [of.probes, len(of.fresh)],
        "forms": [float(form) for form in (*of.plain()[0], *of.fresh.whole)],
        **objective_meta(objective),
        **measured_in(objective, of.operator.dtype).meta,
        "device": str(of.operator.device),
        "product_dtype": str(of.operator.dtype),
        **({} if served is None else {"workers": served.workers}),
    }


def with_note(result: SpectrumResult, note: str) -> SpectrumResult:
    """The result with one more flag."""
    return dataclasses.replace(result, notes=(*result.notes, note))
