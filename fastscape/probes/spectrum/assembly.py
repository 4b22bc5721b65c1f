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
from fastscape.numerics.trace import data_stderr, directional_variance, effective_rank, mean_estimate
from fastscape.probes.spectrum.density import density
from fastscape.probes.spectrum.result import SpectrumResult
from fastscape.probes.spectrum.run import SpectralRun, known
from fastscape.runs.provenance import objective_meta

_ORTHOGONALITY_PROBES = 4
_OPEN = 0.5  # of the range of a share, beyond which its interval says nothing


def spectrum_result(run: SpectralRun, reason: str, operator: str, step: int | None, extra: Mapping[str, Any]) -> SpectrumResult:
    """Everything that the products of a run tell; NaN where they do not."""
    notes = [*getattr(run.operator, "notes", ()), *run.notes]
    trace = run.trace_estimate()
    square, rank = _squares(run, notes)
    largest, smallest = _ends(run)
    if run.basis is not None and run.basis.dimension and run.basis.norm == 0:
        notes.append("all products are zero: the loss is linear at these weights, or its curvature underflows")
    if run.basis is not None and run.basis.dimension:
        open_ = ~largest.converged & (largest.residuals <= run.goals.eigenvalues * run.basis.norm)
        if open_.any():
            first = int(np.argmax(open_))
            notes.append(
                f"eigenvalue {first} is repeated and may have further copies instead of those after it; give more budget or a "
                "larger block"
            )
    return SpectrumResult(
        name=run.name,
        step=step,
        loss=run.loss,
        accuracy=run.accuracy,
        size=run.size,
        operator=operator,
        eigenvalues=largest.values,
        residuals=largest.residuals,
        converged=largest.converged,
        smallest=smallest.values,
        smallest_residuals=smallest.residuals,
        smallest_converged=smallest.converged,
        trace=trace,
        trace_data_stderr=_data_stderr(run),
        trace_square=square,
        effective_rank=rank,
        mean_curvature=scaled(trace, 1 / run.size),
        directional_variance=_variance(run, square),
        layer_traces=_layers(run),
        density=_density(run, operator),
        gradient_norm=run.gradient_norm,
        gradient_curvature=math.nan if run.started is None else run.started.along_gradient,
        stability=None,
        products=run.multiplied,
        meta=_meta(run, reason) | dict(extra),
        notes=(*measured_in(run.objective, run.operator.dtype).notes, *notes),
        vectors=largest.vectors,
    )


def _ends(run: SpectralRun) -> tuple[Eigenpairs, Eigenpairs]:
    """The k largest with vectors; of the smallest the first, and those after it that have converged, up to k."""
    if run.basis is None or not run.basis.dimension:
        none = Eigenpairs(np.empty(0), np.empty(0), np.empty(0, dtype=bool))
        return none, none
    smallest = run.pairs("smallest", run.k)
    count = max(1, int(np.argmin(np.append(smallest.converged, False))))
    low = Eigenpairs(smallest.values[:count], smallest.residuals[:count], smallest.converged[:count])
    return run.pairs("largest", run.k, vectors=True), low


def _squares(run: SpectralRun, notes: list[str]) -> tuple[Estimate, Estimate]:
    """Tr(H^2) and the effective rank, deflated where the trace is."""
    exact, exact_square = (0.0, 0.0) if run.basis is None else run.basis.span_sums()
    share = run.rounding / math.sqrt(exact_square) if exact_square else 0.0  # of ||H||_F
    if run.complete:
        whole = exact**2 / exact_square if exact_square else math.nan
        return known(exact_square, run.size, 2 * share * exact_square), known(whole, run.size, _loose(whole, share))
    absolute = _absolute(run)
    if run.deflated:
        forms, squares = np.array(run.fresh.forms), np.array(run.fresh.squares)
        rank, flag = effective_rank(forms, squares, exact=exact, exact_square=exact_square, absolute=absolute)
        square = skewed_mean(squares, exact_square)
    else:
        forms, squares = run.plain()
        rank, flag = effective_rank(forms, squares, absolute=absolute)
        square = skewed_mean(squares)
    if flag:
        notes.append(flag)
    square, rank = widened(square, 2 * share * exact_square), widened(rank, _loose(rank.value, share))
    return useful(square, "probe"), rank if rank.withheld else useful(rank, "probe", 2)


def _loose(rank: float, share: float) -> float:
    """Uncertainty of (Tr H)^2 / Tr H^2 by rounding of a share of ||H||_F."""
    return 2 * share * (math.sqrt(rank) + rank) if rank > 0 else 0.0


def _variance(run: SpectralRun, square: Estimate) -> Estimate:
    """Variance of v'Hv over all whole probes, with what the basis tells of their tail and of their size."""
    forms = np.concatenate([run.plain()[0], run.fresh.whole])
    found = directional_variance(forms, _kurtosis(run, square), square)
    low, high = found.interval
    if low >= 0:  # not NaN; deviations of forms are off by the rounding of a form
        low, high = max(0.0, math.sqrt(low) - run.rounding) ** 2, (math.sqrt(high) + run.rounding) ** 2
    return useful(dataclasses.replace(found, interval=(low, high)), "probe", 2)


def _kurtosis(run: SpectralRun, square: Estimate) -> float | None:
    """Kurtosis of v'Hv by the Ritz values, of which the outer ones dominate a fourth power."""
    if run.basis is None or not run.basis.dimension or not square.value > 0:
        return None
    shares = run.basis.pairs(run.basis.dimension).values ** 2 / square.value
    return float(3 + 12 * np.clip(np.sum(shares**2), 0, 1))


def _absolute(run: SpectralRun) -> float | None:
    """Tr |H| by the quadrature of the starting probes."""
    if run.basis is None or not run.basis.dimension:
        return None
    rule = run.basis.quadrature()
    return run.size * float((rule.weights[: run.probes] @ np.abs(rule.nodes)).mean())


def _density(run: SpectralRun, operator: str) -> Density | None:
    if run.basis is None or not run.basis.dimension:
        return None
    rule = run.basis.quadrature()
    found = density(rule.nodes, rule.weights[: run.probes])
    if operator == "ggn":  # positive semidefinite, for criteria that are convex in the outputs
        return dataclasses.replace(found, negative_mass=known(0.0, run.probes))
    low, high = found.negative_mass.interval
    if high - low <= _OPEN:
        return found
    words = f"between {100 * low:.0f} and {100 * high:.0f} %, most lie within a node of zero; more than {len(rule.nodes)} nodes"
    return dataclasses.replace(found, negative_mass=dataclasses.replace(found.negative_mass, withheld=words))


def _sums_hold(run: SpectralRun) -> bool:
    """Whether the sums over the basis are those of the basis as it is."""
    return run.basis is not None and run.sums.dimension == run.basis.dimension > 0


def _layers(run: SpectralRun) -> dict[str, Estimate]:
    names = list(run.operator.layers)
    if run.started is None:
        return {}
    if run.complete and _sums_hold(run):
        return {name: known(float(value), run.size, run.rounding) for name, value in zip(names, run.sums.layers, strict=True)}
    if len(run.fresh) > 1 and _sums_hold(run):
        forms = np.array(run.fresh.layers).T
        found = (mean_estimate(row, float(sum_)) for row, sum_ in zip(forms, run.sums.layers, strict=True))
        return {name: widened(estimate, run.rounding) for name, estimate in zip(names, found, strict=True)}
    return {name: mean_estimate(row) for name, row in zip(names, run.started.layers, strict=True)}


def _data_stderr(run: SpectralRun) -> float | None:
    weights = np.array(run.operator.batch_weights)
    if len(weights) < 2:
        return None
    exact = run.sums.batches[:, None]
    if run.complete and _sums_hold(run):
        return data_stderr(exact, weights)
    if len(run.fresh) > 1 and _sums_hold(run):
        return data_stderr(exact + np.array(run.fresh.batches).T, weights)
    return None


def _meta(run: SpectralRun, reason: str) -> dict[str, Any]:
    basis, choice, objective = run.basis, run.operator.choice, run.objective
    trials = max(0, run.operator.products - run.multiplied - run.multiplied_beside)
    return {
        "seed": run.seed,
        "settings": {"k": run.k, "block": run.block, "nodes": run.goals.nodes},
        "targets": {"eigenvalues": run.goals.eigenvalues, "trace": run.goals.trace},
        "stop_reason": reason,
        "seconds": run.budget.elapsed,
        "budget": run.budget.seconds if run.budget.limited else None,
        "path": None if choice is None else choice.name,
        "reason": None if choice is None else choice.reason,
        "refused": {} if choice is None else dict(choice.refused),
        "gradients_per_product": None if choice is None else choice.gradients,
        "product_error": None if choice is None else choice.error,
        "trial_products": trials,
        "nan_products": max(run.operator.nan_products, 0 if basis is None else basis.nan_products),
        "dimension": 0 if basis is None else basis.dimension,
        "restarts": 0 if basis is None else basis.restarts,
        "orthogonality_loss": None if basis is None or not basis.dimension else basis.orthogonality_loss(_ORTHOGONALITY_PROBES),
        "asymmetry": None if basis is None or not basis.dimension else basis.asymmetry,
        "trace_estimator": "exact" if run.complete else "deflated" if run.deflated else "plain",
        "probes": [run.probes, len(run.fresh)],
        "forms": [float(form) for form in (*run.plain()[0], *run.fresh.whole)],
        **objective_meta(objective),
        **measured_in(objective, run.operator.dtype).meta,
        "device": str(run.operator.device),
        "product_dtype": str(run.operator.dtype),
    }


def with_note(result: SpectrumResult, note: str) -> SpectrumResult:
    """The result with one more flag."""
    return dataclasses.replace(result, notes=(*result.notes, note))
