"""Tables and pages of a diagonal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np

from fastscape._checks import counted
from fastscape.numerics.arrays import Array
from fastscape.probes.diagonal.figures import elements, layer_order, layer_sums
from fastscape.probes.diagonal.result import DiagonalResult
from fastscape.reports.numbers import cell, interval, number, wall_time
from fastscape.reports.sections import Figure, Grid, Quantity, Section, section_of
from fastscape.runs.provenance import remarks_and_notes

_ROWS = 20  # parameters that a table lists
_MATRIX = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}
_ESTIMATORS = {"exact": "all columns", "xdiag": "XDiag", "hutchinson": "Hutchinson's estimator"}
_COLUMNS = {
    "parameter": "a tensor of the model",
    "sum": "of the diagonal over it, with its 95 % interval: the trace of its block",
    "mean": "of its elements",
    "largest": "element of the largest size",
    "negative": "share of its elements below -2 standard errors",
    "error": "norm of the standard errors over that of the elements without them",
}


@section_of.register
def diagonal_section(result: DiagonalResult) -> Section:
    """The diagonal as a whole, and by parameter."""
    return Section(
        f"Diagonal of the {_MATRIX[result.operator]}: {result.name}",
        _verdict(result),
        tuple(_quantities(result)),
        (
            Figure("", partial(layer_sums, result), "Sums of the diagonal by parameter, with 95 % intervals over probes."),
            Figure("", partial(elements, result), "Sizes of the elements by rank, those of either sign apart, and their errors."),
        ),
        grids=(Grid("By parameter", tuple(_rows(result)), _COLUMNS, first_to_go=("negative", "largest", "mean")),),
        flags=(*remarks_and_notes(result.meta, result.notes), *_flags(result)),
        brief=f"{result.values.size} elements, error {number(result.relative_error)} of the norm",
    )


def _verdict(result: DiagonalResult) -> str:
    how = _ESTIMATORS.get(result.estimator, "")
    if math.isnan(result.norm):
        return "Not finished: " + ("one probe has no error." if result.probes == 1 else "the diagonal is not known everywhere.")
    if not result.values.any():
        return f"The diagonal is zero, by {how}."
    if not result.norm:
        return f"The elements are within their errors, by {how}; their sum is {interval(result.trace)}."
    return (
        f"The diagonal has the norm {number(result.norm)} and is known to {result.relative_error:.2g} of it by {how}; its "
        f"sum is {interval(result.trace)}."
    )


def _quantities(result: DiagonalResult) -> Iterator[Quantity]:
    yield Quantity("trace", interval(result.trace), "sum of the diagonal, 95 % interval")
    yield Quantity("||d||", number(result.norm), f"norm of {result.values.size:,} elements, without what their errors add to it")
    yield Quantity("error", number(result.error), "norm of the standard errors: root mean square of ||d - diag||")
    known = result.values[np.isfinite(result.values)]
    if len(known):
        yield Quantity("elements", f"{number(known.min())} .. {number(known.max())}", "smallest and largest")
    yield Quantity("negative", _negative(result.values, result.stderr), "share of elements below -2 standard errors")
    how = _ESTIMATORS.get(result.estimator, "n/a")
    basis = f"; a basis of {result.dimension}" if result.dimension else ""
    yield Quantity("estimator", how, f"{counted(result.probes, 'probe')}{basis}" if result.probes else "")
    cost = result.meta.get("gradients_per_product")
    yield Quantity("products", f"{result.products:,}", f"{number(cost)} gradients each" if cost else "")
    yield Quantity("wall time", wall_time(result.meta.get("seconds"), result.meta.get("budget")))


def _rows(result: DiagonalResult) -> Iterator[Mapping[str, str]]:
    starts = np.cumsum([0, *(math.prod(shape) for shape in result.parameters.values())])
    parts = {name: slice(start, end) for name, start, end in zip(result.parameters, starts, starts[1:], strict=False)}
    for name, found in layer_order(result)[:_ROWS]:
        values, errors = result.values[parts[name]], result.stderr[parts[name]]
        error = float(np.linalg.norm(errors))
        norm = math.sqrt(max(float(np.sum(values**2)) - error**2, 0.0)) if math.isfinite(error) else math.nan
        yield {
            "parameter": name,
            "sum": cell(found),
            "mean": number(found.value / max(values.size, 1)),
            "largest": number(float(values[np.argmax(np.abs(values))]) if values.size else math.nan),
            "negative": _negative(values, errors),
            "error": number(error / norm if norm else math.inf),
        }


def _negative(values: Array, errors: Array) -> str:
    sure = values < -2 * errors
    return f"{sure.mean():.1%}" if sure.size and np.isfinite(errors).all() else "n/a"


def _flags(result: DiagonalResult) -> Iterator[str]:
    reason = result.meta.get("stop_reason")
    if reason not in (None, "complete"):
        yield f"ended early ({reason})"
    if result.relative_error > 1:
        yield "the error is larger than the diagonal: sums may be known, elements are not; multiply more"
    if len(result.layers) > _ROWS:
        yield f"the table has the {_ROWS} parameters with the largest sums of {len(result.layers)}; .layers has all"
