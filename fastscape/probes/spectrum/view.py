"""Tables and pages of spectra: rows, figures, cost and settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from fastscape.probes.spectrum import figures, words
from fastscape.probes.spectrum.result import SpectrumResult, SpectrumTrajectory
from fastscape.reports.document import checkpoints
from fastscape.reports.numbers import number, wall_time
from fastscape.reports.sections import Figure, Grid, Quantity, Section, section_of
from fastscape.reports.tables import shared_flags

FOOTER = (
    "Eigenvalues are Ritz values ± residual: some eigenvalue lies within. Hollow marks and ~ have not converged. "
    "Intervals of the trace and of what is averaged are 95 % over random probes."
)


@section_of.register
def of_one(result: SpectrumResult) -> Section:
    """One checkpoint: every value with its error and meaning, the figures, and what the products cost."""
    run = [("wall time", wall_time(result.meta.get("seconds"), result.meta.get("budget")), "")]
    parts = (*words.checkpoint_rows(result), words.cost_rows(result) + run)
    quantities = [Quantity(*row, last=index + 1 == len(rows)) for rows in parts for index, row in enumerate(rows)]
    return Section(
        f"Spectrum of the {words.WORDS[result.operator]}: {result.name}",
        words.verdict(result),
        tuple(quantities),
        tuple(_figure(draw, result) for draw in figures.CHECKPOINT_FIGURES),
        flags=words.flags_of(result),
        settings=_settings(result),
        leads=Grid("", words.lead_rows([result]), words.DEFINITIONS),
        brief=words.brief(result),
        footer=FOOTER,
    )


@section_of.register
def of_several(result: SpectrumTrajectory) -> Section:
    """A row per checkpoint, the panels along training, and the checkpoints themselves."""
    captions = tuple(figures.CAPTIONS[draw.__name__] for draw in figures.TRAJECTORY_FIGURES)
    panels = Figure("Along training", partial(figures.trajectory_panels, result), FOOTER, panels=(2, 2), captions=captions)
    of = words.WORDS[result.points[0].operator] if result.points else "loss"
    children = (
        checkpoints(result.points),
        Section("Cost of the spectrum", "", _run(result.meta), grids=(Grid("", _costs(result.points)),), folded=True),
    )
    if len(result.points) == 1:  # nothing goes along: the checkpoint itself, with every residual
        alone = of_one(result.points[0])
        verdict = words.trajectory_verdict(result) if len(result.meta.get("settings", {}).get("checkpoints", ())) > 1 else ""
        return dataclasses.replace(alone, verdict=" ".join(filter(None, (verdict, alone.verdict))))
    return Section(
        f"Spectrum of the {of} along training",
        words.trajectory_verdict(result),
        figures=(panels,),
        grids=(Grid("Spectrum along training", tuple(words.series_rows(result.points)), first_to_go=words.FIRST_TO_GO),),
        flags=tuple(shared_flags(result.points)),
        settings=_settings(result.points[0]) if result.points else (),
        children=children,
        leads=Grid("", words.lead_rows(result.points), words.DEFINITIONS),
        footer=FOOTER,
    )


def _figure(draw: Callable[..., Any], result: SpectrumResult) -> Figure:
    return Figure("", partial(draw, result), figures.CAPTIONS[draw.__name__], measured=False)


def _run(meta: dict[str, Any]) -> tuple[Quantity, ...]:
    time = wall_time(meta.get("seconds"), meta.get("budget"))
    return Quantity("stopped by", str(meta.get("stop_reason", "n/a"))), Quantity("wall time", time)


def _costs(points: Sequence[SpectrumResult]) -> tuple[dict[str, str], ...]:
    return tuple(
        {
            "checkpoint": point.name,
            "products": f"{point.products:,}",
            "gradients per product": number(point.meta.get("gradients_per_product")),
            "seconds": number(point.meta.get("seconds")),
            "stopped by": str(point.meta.get("stop_reason", "n/a")),
            "method": words.method_name(point.meta),
            "why not others": "; ".join(f"{method}: {why}" for method, why in words.refused(point.meta).items()),
        }
        for point in points
    )


def _settings(point: SpectrumResult) -> tuple[tuple[str, str], ...]:
    """Settings of the run and its numerical checks."""
    meta = point.meta
    settings = {**(meta.get("settings") or {}), **{f"target {name}": goal for name, goal in (meta.get("targets") or {}).items()}}
    checks = [
        (label, number(meta[key]))
        for label, key in (("orthogonality loss ||Q'Q - I||", "orthogonality_loss"), ("asymmetry of Q'HQ", "asymmetry"))
        if meta.get(key) is not None
    ]
    rows = [(name, "default" if value is None else str(value)) for name, value in settings.items()]
    return (("matrix", point.operator), ("seed", str(meta.get("seed", "n/a"))), *rows, *checks)
