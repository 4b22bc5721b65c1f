"""Rows, flags and verdicts of spectra, in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastscape._checks import counted
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate, apart
from fastscape.numerics.positive import scaled
from fastscape.numerics.spectra import Stability
from fastscape.reports.numbers import cell, interval, listed, number, with_error
from fastscape.runs.provenance import remarks_and_notes

if TYPE_CHECKING:
    from fastscape.probes.spectrum.result import SpectrumResult, SpectrumTrajectory

Row = tuple[str, str, str]

SHARPNESS, STABILITY = "lambda_max", "stability (1 = edge)"
DEFINITIONS: dict[str, str] = {
    SHARPNESS: "largest eigenvalue of the Hessian; ~ where it has not converged",
    STABILITY: "sharpness as the optimizer sees it over the one at which its step stops contracting; 1 is the edge of stability",
}
WORDS = {"hessian": "Hessian", "ggn": "GGN"}
_SHOWN = 5  # eigenvalues of an end, and layers, that a table lists
FIRST_TO_GO = ("accuracy", "products", "eta lambda", "negative % [95 %]", "lambda_min", "loss")


def settled(values: Array, converged: NDArray[np.bool_]) -> str:
    """Number of converged eigenvalues of an end, in words."""
    return f"{int(converged.sum())} of {len(values)} converged"


def gap_text(result: SpectrumResult) -> str:
    """The gap with its bound, or why there is none."""
    gap = result.gap
    if math.isnan(gap.value):
        return "n/a"
    return (
        with_error(gap.value, gap.bound) if gap.resolved else f"unresolved ({number(gap.value)} within ± {number(gap.bound, 2)})"
    )


def trace_errors(result: SpectrumResult) -> str:
    """Standard errors of the trace: over probes, and over batches of data."""
    data = result.trace_data_stderr
    over_data = "data error unknown: one batch" if data is None else f"data error {number(data, 2)}"
    return f"probe error {number(result.trace.stderr, 2)}, {over_data}"


def edge_text(stability: Stability) -> str:
    """Name of the edge, in words."""
    what = "lambda_max" if stability.preconditioned is None else "preconditioned lambda_max"
    return f"{what} at the edge of {stability.optimizer}, learning rate {stability.learning_rate:g}"


def stability_text(stability: Stability | None) -> str:
    """The ratio, a lower bound of it, or nothing; :attr:`Stability.reason` says why."""
    if stability is None:
        return "n/a"
    if math.isfinite(stability.at_least):
        return f">= {number(stability.at_least)}"
    return number(stability.ratio)


def lead_rows(points: Sequence[SpectrumResult]) -> tuple[dict[str, str], ...]:
    """A row per checkpoint of what is read first: sharpness and stability."""
    return tuple(
        {
            "checkpoint": point.name,
            SHARPNESS: _end(point.eigenvalues, point.converged),
            STABILITY: stability_text(point.stability),
        }
        for point in points
    )


def flags_of(result: SpectrumResult) -> tuple[str, ...]:
    """Every flag raised, of the evaluation and of the numbers."""
    return (*remarks_and_notes(result.meta, result.notes), *_raised(result))


def _raised(result: SpectrumResult) -> list[str]:
    flags = []
    for values, converged, end in (
        (result.eigenvalues, result.converged, "largest"),
        (result.smallest, result.smallest_converged, "smallest"),
    ):
        if not len(values):
            flags.append(f"no eigenvalue at the {end} end was found")
        elif len(converged) == 1 and not converged[0]:
            flags.append(f"the {end} eigenvalue has not converged; read it with its residual")
        elif not converged.all():
            count = int(converged.sum())
            flags.append(f"of the {end} eigenvalues only {count} of {len(values)} converged; read them with their residuals")
    gap = result.gap
    if math.isfinite(gap.value) and not gap.resolved:
        flags.append("the gap lambda_1 - lambda_2 is smaller than its error bound: the two may be one eigenvalue")
    if result.lambda_min < 0 and -result.lambda_min > result.lambda_max:
        flags.append("the most negative eigenvalue is the largest in size: lambda_max is not the spectral norm")
    data = result.trace_data_stderr
    if data is not None and data > result.trace.stderr:
        flags.append("the trace varies more over batches than over probes: more data narrow it, more products do not")
    if result.meta.get("nan_products"):
        flags.append(f"{counted(result.meta['nan_products'], 'product')} of H held NaN or inf and are left out")
    if result.stability is not None:  # of results that earlier versions saved: the ratio is that of another loss
        flags += [f"stability ratio: {note}" for note in result.stability.notes if note.startswith("batch norm")]
    return flags


def verdict(result: SpectrumResult) -> str:
    """Verdict in one sentence."""
    if math.isnan(result.lambda_max) and math.isnan(result.trace.value):
        return f"No spectrum of the {WORDS[result.operator]}: {result.meta.get('stop_reason', 'no product is finite')}."
    ends = " and ".join(
        f"{name} = {with_error(float(values[0]), float(residuals[0]))}"
        for name, values, residuals in (
            ("lambda_max", result.eigenvalues, result.residuals),
            ("lambda_min", result.smallest, result.smallest_residuals),
        )
        if len(values)
    )
    rank = f", effective rank {interval(result.effective_rank)}"
    found = (
        f"{WORDS[result.operator]} of {result.size:,} parameters: {ends or 'no eigenvalue'}, trace {interval(result.trace)}{rank}"
    )
    if result.density is not None and result.operator == "hessian" and not result.density.negative_mass.withheld:
        found += f", {share(result.density.negative_mass)} of the eigenvalues below zero"
    stability = result.stability
    if stability is None or not math.isfinite(stability.ratio):
        return f"{found}."
    return f"{found}; {number(stability.ratio)} of the edge of stability of {stability.optimizer}."


def share(estimate: Estimate) -> str:
    """A share as a percentage with its interval."""
    return interval(scaled(estimate, 100), unit=" %")


def brief(result: SpectrumResult) -> str:
    """Size, ends and flags, in a few words."""
    top, bottom = _end(result.eigenvalues, result.converged), _end(result.smallest, result.smallest_converged)
    ends = f"lambda_max = {top}, lambda_min = {bottom}"
    size = f"{WORDS[result.operator]} of {result.size:,} parameters"
    counts = f"{counted(result.products, 'product')}, {counted(len(flags_of(result)), 'flag')}"
    return f"{size}, {ends}, trace = {interval(result.trace)}, {counts}"


# ---------------------------------------------------------------------- one checkpoint


def _eigenvalue_rows(name: str, values: Array, residuals: Array, converged: NDArray[np.bool_], meaning: str) -> list[Row]:
    rows: list[Row] = []
    for index, (value, residual, done) in enumerate(zip(values[:_SHOWN], residuals, converged, strict=False)):
        label = f"{name}{'' if index == 0 else f' ({index + 1})'}"
        words = [meaning] if index == 0 else []
        rows.append((label, with_error(float(value), float(residual)), ", ".join(words + ([] if done else ["not converged"]))))
    if len(values) > _SHOWN:
        rows.append(("", f"and {len(values) - _SHOWN} more", settled(values, converged)))
    return rows


def eigenvalue_rows(result: SpectrumResult) -> list[Row]:
    """Both ends, spectral norm and gap."""
    rows = _eigenvalue_rows("lambda_max", result.eigenvalues, result.residuals, result.converged, "largest, ± residual")
    rows += _eigenvalue_rows(
        "lambda_min", result.smallest, result.smallest_residuals, result.smallest_converged, "smallest, ± residual"
    )
    settled_norm = all(each[:1].all() for each in (result.converged, result.smallest_converged))
    return [
        *rows,
        ("spectral norm", f"{'' if settled_norm else '~'}{number(result.spectral_norm, 5)}", "largest |eigenvalue|"),
        ("gap", gap_text(result), "lambda_1 - lambda_2 ± sum of residuals"),
    ]


def average_rows(result: SpectrumResult) -> list[Row]:
    """Trace and what comes of the same products."""
    rows: list[Row] = [
        ("trace", interval(result.trace), trace_errors(result)),
        ("tr(H^2)", interval(result.trace_square), "mean ||Hv||^2"),
        ("effective rank", interval(result.effective_rank), "tr(H)^2 / tr(H^2)"),
        ("tr(H) / D", interval(result.mean_curvature), "mean eigenvalue"),
        ("var v'Hv", interval(result.directional_variance), "over random signs v"),
    ]
    if result.density is not None:
        rows.append(("below zero", share(result.density.negative_mass), "of the eigenvalues"))
        rows.append(("outliers", str(result.density.outliers), "eigenvalues apart from the bulk"))
    return rows


def layer_order(result: SpectrumResult) -> list[tuple[str, Estimate]]:
    """Traces of the layers, the largest in size first; NaN last."""
    traces = result.layer_traces.items()
    return sorted(traces, key=lambda item: math.inf if math.isnan(item[1].value) else -abs(item[1].value))


def layer_rows(result: SpectrumResult) -> list[Row]:
    """The largest traces of layers."""
    ordered = layer_order(result)
    rows: list[Row] = [(f"trace of {name}", interval(trace), _part(trace, result.trace)) for name, trace in ordered[:_SHOWN]]
    if len(ordered) > _SHOWN:
        rest = sum(trace.value for _, trace in ordered[_SHOWN:])
        rows.append((f"and {len(ordered) - _SHOWN} more", number(rest), "their sum"))
    return rows


def _part(trace: Estimate, whole: Estimate) -> str:
    return f"{trace.value / whole.value:.0%} of the trace" if whole.value > 0 and math.isfinite(trace.value) else ""


def stability_rows(result: SpectrumResult) -> list[Row]:
    """Edge of stability, where an optimizer is known."""
    stability = result.stability
    if stability is None:
        return []
    meaning = "1 = edge; the full batch alone does not decide for minibatches"
    rows: list[Row] = [
        ("stability ratio", stability_text(stability), f"none: {stability.reason}" if stability.reason else meaning),
        ("critical value", number(stability.critical, 5), edge_text(stability)),
        ("eta lambda_max", number(stability.eta_lambda, 4), "2 = edge of plain gradient descent"),
    ]
    if stability.preconditioned is not None:
        known = math.isfinite(stability.preconditioned)
        value = with_error(stability.preconditioned, stability.residual) if known else "n/a"
        rows.append(("preconditioned lambda_max", value, "of P^-1 H"))
    if stability.batch_sharpness is not None:
        rows.append(("batch sharpness", interval(stability.batch_sharpness), "mean g_B'H_B g_B / g_B'g_B over batches"))
    return [*rows, *(("", "", note) for note in stability.notes if not (stability.reason and stability.reason in note))]


def cost_rows(result: SpectrumResult) -> list[Row]:
    """Products, how they were computed, and why not others."""
    meta = result.meta
    rows: list[Row] = [("products", f"{result.products:,}", str(meta.get("stop_reason", "")))]
    cost = meta.get("gradients_per_product")
    each = f"{number(cost)} gradients per product" if cost is not None else ""
    rows.append(("method", method_name(meta), each))
    rows += [("", f"not {method}", str(why)) for method, why in refused(meta).items()]
    return rows


def method_name(meta: Mapping[str, Any]) -> str:
    """Name of the way in which products were computed."""
    path = meta.get("path")
    return str(path["name"] if isinstance(path, Mapping) else path or "n/a")


def refused(meta: Mapping[str, Any]) -> dict[str, str]:
    """Ways to compute products that were not taken, and why."""
    return dict(meta.get("refused") or {})


def state_rows(result: SpectrumResult) -> list[Row]:
    """Loss, accuracy and gradient."""
    rows: list[Row] = [("loss", number(result.loss, 6), f"{result.size:,} parameters")]
    if result.accuracy is not None:
        rows.append(("accuracy", f"{result.accuracy:.2%}", "of the same data"))
    return [
        *rows,
        ("||g||", number(result.gradient_norm, 4), f"g'Hg / g'g = {number(result.gradient_curvature, 4)}"),
    ]


def checkpoint_rows(result: SpectrumResult) -> list[list[Row]]:
    """All numbers in the order of reading: sharpness, stability, averages, layers, the state."""
    ends, stability = eigenvalue_rows(result), stability_rows(result)
    first = [ends[:1] + stability[:1], ends[1:], stability[1:]]
    return [rows for rows in (*first, average_rows(result), layer_rows(result), state_rows(result)) if rows]


# ---------------------------------------------------------------------- along training


def series_rows(points: Sequence[SpectrumResult]) -> list[dict[str, str]]:
    """One row of named cells per checkpoint; columns that no checkpoint has are left out."""
    rows = [_row(point) for point in points]
    empty = {name for name in rows[0] if all(row[name] == "n/a" for row in rows)} if rows else set()
    return [{name: cell for name, cell in row.items() if name not in empty} for row in rows]


def _row(point: SpectrumResult) -> dict[str, str]:
    stability, density = point.stability, point.density
    return {
        "checkpoint": point.name,
        "lambda_max": _end(point.eigenvalues, point.converged),
        "stability": stability_text(stability),
        "loss": number(point.loss, 4),
        "accuracy": "n/a" if point.accuracy is None else f"{point.accuracy:.1%}",
        "lambda_min": _end(point.smallest, point.smallest_converged),
        "trace [95 %]": cell(point.trace),
        "eff. rank [95 %]": cell(point.effective_rank),
        "negative % [95 %]": "n/a" if density is None else cell(scaled(density.negative_mass, 100)),
        "eta lambda": "n/a" if stability is None else number(stability.eta_lambda),
        "products": str(point.products),
    }


def _end(values: Array, converged: NDArray[np.bool_]) -> str:
    """The eigenvalue at an end, with ``~`` where it has not converged."""
    if not len(values):
        return "n/a"
    return f"{'' if converged[0] else '~'}{number(float(values[0]), 4)}"


def trajectory_verdict(result: SpectrumTrajectory) -> str:
    """Verdict along the checkpoints, in one sentence; a movement is claimed only where the two intervals are apart."""
    known = [point for point in result.points if math.isfinite(point.lambda_max)]
    if not known:
        return "No checkpoint has a finite eigenvalue: see the flags."
    asked = len(result.meta.get("settings", {}).get("checkpoints", result.points))
    found = f"{len(known)} of {counted(asked, 'checkpoint')} {'has' if asked == 1 else 'have'} a spectrum"
    if asked > len(result.points):
        found += f" ({result.meta['stop_reason']} before the others)"
    if len(known) > 1:
        found += f": from {known[0].name} to {known[-1].name} {_movements(known[0], known[-1])}"
    ratios = [(point.stability.ratio, point.name) for point in known if point.stability is not None]
    ratios = [(ratio, name) for ratio, name in ratios if math.isfinite(ratio)]
    if ratios:
        top, where = max(ratios)
        found += f"; the stability ratio is {number(top)} at most ({where}; 1 = edge)"
    return f"{found}."


def _movements(first: SpectrumResult, last: SpectrumResult) -> str:
    """Those of sharpness, trace and effective rank that moved."""
    ends = [_within(point.lambda_max, float(point.residuals[0])) for point in (first, last)]
    pairs = {
        "lambda_max": (ends[0], ends[1], 4),
        "the trace": (first.trace, last.trace, 3),
        "the effective rank": (first.effective_rank, last.effective_rank, 3),
    }
    texts = {name: (number(a.value, n), number(b.value, n)) for name, (a, b, n) in pairs.items()}
    texts["lambda_max"] = _end(first.eigenvalues, first.converged), _end(last.eigenvalues, last.converged)
    moved = [f"{name} goes {before} -> {after}" for name, (before, after) in texts.items() if apart(*pairs[name][:2])]
    still = [name for name, (a, b, _) in pairs.items() if not apart(a, b)]
    words = [", ".join(moved)] if moved else []
    return "; ".join([*words, f"no change of {listed(still)} stands out"] if still else words)


def _within(value: float, error: float) -> Estimate:
    return Estimate(value, math.nan, (value - error, value + error), 1)
