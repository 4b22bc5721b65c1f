"""Sections of spectra and multifractal results, where they are parts of a larger page."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

from fastscape.reports import figures, spectrum_figures, tables
from fastscape.reports.document import Document
from fastscape.reports.leads import DEFINITIONS
from fastscape.reports.result import AnyResult, MultifractalResult, TrajectoryResult
from fastscape.reports.sections import Figure, Grid, Quantity, Section
from fastscape.reports.spectrum import SpectrumResult, SpectrumTrajectory
from fastscape.reports.spectrum_html import FOOTER
from fastscape.reports.spectrum_tables import (
    WORDS,
    checkpoint_rows,
    merged_flags,
    series_rows,
)

_SPECTRUM = (
    (spectrum_figures.density, "Density of eigenvalues by stochastic Lanczos quadrature, per unit of eigenvalue. " + FOOTER),
    (spectrum_figures.eigenvalues, "Ritz values of both ends, theta ± ||Hv - theta v||."),
    (spectrum_figures.layer_traces, "Traces of the diagonal blocks, by parameter."),
)
_MULTIFRACTAL = (
    (figures.log_response, "|L(w + e d) - 2 L(w) + L(w - e d)| over directions d, against the radius e, with the noise floor."),
    (figures.tau_curve, "Mass exponent tau(q), slope of ln Z_q against ln e; M_tau is its RMS deviation from a line."),
    (figures.spectrum, "Singularity spectrum f(alpha), Chhabra-Jensen."),
)


def section_of(result: AnyResult) -> Section:
    """What a result of any kind shows as part of a page."""
    match result:
        case Document():
            return dataclasses.replace(result.section(), verdict=result.verdict())
        case SpectrumResult():
            return Section(
                f"Spectrum of the {WORDS[result.operator]}: {result.name}",
                result.verdict(),
                tuple(Quantity(*row) for part in checkpoint_rows(result) for row in part),
                _figures(_SPECTRUM, result),
                flags=result.flags,
            )
        case MultifractalResult():
            return Section(
                f"Multifractal probe: {result.name}",
                result.verdict(),
                tuple(Quantity(*row) for row in tables.multifractal_rows(result)),
                _figures(_MULTIFRACTAL, result),
                flags=result.flags,
            )
        case SpectrumTrajectory():
            panels = Figure("Along training", partial(_panels, result), FOOTER, panels=(1, 4))
            rows_along = tuple(series_rows(result.points))
            flags = tuple(merged_flags(result.points))
            return Section("Spectrum along training", result.verdict(), (), (panels,), (Grid("", rows_along),), flags)
        case TrajectoryResult():
            words = "Multifractal numbers along training, 95 % bootstrap intervals over directions."
            panels = Figure("Along training", partial(_panels, result), words, panels=(2, 3))
            flags, rows_first = tuple(tables.trajectory_flags(result)), tuple(tables.trajectory_rows(result))
            grids = (Grid("", rows_first, DEFINITIONS),)
            return Section("Multifractal probe along training", result.verdict(), (), (panels,), grids, flags)


def _figures(drawers: tuple[tuple[Callable[..., Any], str], ...], result: Any) -> tuple[Figure, ...]:
    return tuple(Figure("", partial(draw, result), words) for draw, words in drawers)


def _panels(result: SpectrumTrajectory | TrajectoryResult, axes: Any) -> object:
    return result.plot(axes)
