"""Tables and pages of slices."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from fastscape._checks import counted
from fastscape.numerics.arrays import Array
from fastscape.probes.slices import figures as slice_figures
from fastscape.probes.slices.result import PlaneResult, SliceResult
from fastscape.reports.numbers import interval, number
from fastscape.reports.sections import Figure, Quantity, Section, section_of
from fastscape.runs.provenance import remarks_and_notes

_MEANING = {
    "roughness": "R = Var L over alpha; h^2 A^4 / 45 for a bowl h alpha^2 / 2 on [-A, A]",
    "detrended": "Var L about the best polynomial of degree 2",
    "detrended4": "Var L about the best polynomial of degree 4",
    "second_difference": "mean square of d^2 L / d alpha^2",
    "minima": "local minima inside, deeper than 4 times the rounding",
    "noise_floor": "variance of L by rounding; what is not above it is no roughness",
}


@section_of.register
def lines_section(result: SliceResult) -> Section:
    """Losses along lines, and their roughness."""
    values = ("roughness", "detrended", "detrended4", "second_difference", "minima")
    labels = ("roughness R", "R, detrended", "R, order 4", "second differences", "local minima")
    rows = [Quantity("loss", number(result.loss, 4), "L(w), at alpha = 0")]
    rows += [Quantity(label, interval(getattr(result, name)), _MEANING[name]) for label, name in zip(labels, values, strict=True)]
    rows.append(Quantity("noise floor", number(result.noise_floor), _MEANING["noise_floor"]))
    words = (
        "L(w + alpha v) along each direction v, alpha in units of ||v||, which is "
        f"{number(float(np.median(result.eps_relative)))} ||w||; bands are 95 % intervals over samples at fixed weights."
    )
    return Section(
        f"Losses along lines: {result.name}",
        _verdict_1d(result),
        tuple(rows),
        (Figure("Losses along lines", partial(slice_figures.lines, result), words),),
        flags=(*remarks_and_notes(result.meta, result.notes), *_flags(result.losses, result.resolved, result.detrended.value)),
        brief=_verdict_1d(result),
    )


@section_of.register
def plane_section(result: PlaneResult) -> Section:
    """Losses over a plane, as contours and as a surface."""
    rows = [
        Quantity("loss", number(result.loss, 4), "L(w), at the origin"),
        Quantity("roughness R", number(result.roughness), "variance of L over the plane"),
        Quantity("R, detrended", number(result.detrended), "about the best polynomial of total degree 2"),
        Quantity("R, order 4", number(result.detrended4), "about the best polynomial of total degree 4"),
        Quantity("local minima", str(result.minima), _MEANING["minima"]),
        Quantity("noise floor", number(result.noise_floor), _MEANING["noise_floor"]),
        Quantity("cosine", number(result.cosine, 2), "between the directions as they were evaluated"),
    ]
    if result.residual is not None:
        share = f"{number(float(np.nanmax(result.residual)))} at most"
        rows.append(Quantity("outside the plane", share, "distance of the checkpoints from the plane / from w"))
    words = (
        f"L(w + alpha_1 v_1 + alpha_2 v_2); v_1 = {result.labels[0]}, v_2 = {result.labels[1]}, of lengths "
        f"{number(float(result.eps_relative[0]))} and {number(float(result.eps_relative[1]))} ||w||. The cross is w"
    )
    words += "; the line shows checkpoints projected onto the plane." if result.trajectory is not None else "."
    figures = (
        Figure("Losses over a plane", partial(slice_figures.contour, result), words),
        Figure("Losses over a plane", partial(slice_figures.surface, result), words, projection="3d"),
    )
    return Section(
        f"Losses over a plane: {result.name}",
        _verdict_2d(result),
        tuple(rows),
        figures,
        flags=(
            *remarks_and_notes(result.meta, result.notes),
            *_flags(result.losses[result.evaluated], result.resolved, result.detrended),
        ),
        brief=_verdict_2d(result),
    )


def _reach(losses: Array) -> tuple[float, float]:
    finite = losses[np.isfinite(losses)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (math.nan, math.nan)


def _left(resolved: bool, detrended: str) -> str:
    return f"of which a quadratic trend leaves {detrended if resolved else 'no more than rounding'}"


def _verdict_1d(result: SliceResult) -> str:
    low, high = _reach(result.losses)
    lines = counted(len(result.losses), "direction")
    if math.isnan(high):
        return f"No loss along {lines} is finite."
    reach = number(float(result.alphas[-1] * np.median(result.eps_relative)))
    found = f"Within {reach} ||w|| along {lines} the loss goes from {number(low)} to {number(high)}, {number(result.loss)} at w"
    return f"{found}; variance {interval(result.roughness)}, {_left(result.resolved, interval(result.detrended))}."


def _verdict_2d(result: PlaneResult) -> str:
    low, high = _reach(result.losses)
    if math.isnan(high):
        return "No loss over the plane is finite."
    found = f"Over the plane the loss goes from {number(low)} to {number(high)}, {number(result.loss)} at w"
    if math.isnan(result.roughness):
        return found + "."
    return f"{found}; variance {number(result.roughness)}, {_left(result.resolved, number(result.detrended))}."


def _flags(losses: Array, resolved: bool, detrended: float) -> list[str]:
    found = []
    bad = int((~np.isfinite(losses)).sum())
    if bad:
        words = "losses are" if bad > 1 else "loss is"
        found.append(f"{bad} of {losses.size} {words} NaN or inf: kept, and left out of averages with their line")
    if not resolved and math.isfinite(detrended):
        found.append("the detrended roughness is within the rounding of the losses: use precision='float64' to resolve it")
    return found
