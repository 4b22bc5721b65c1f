"""Tables and pages of multifractal results: rows, figures, cost and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from fastscape._checks import counted
from fastscape.probes.multifractal import figures, leads, words
from fastscape.probes.multifractal.result import MultifractalResult, TrajectoryResult
from fastscape.reports.document import Document, checkpoints
from fastscape.reports.numbers import cell, number, p_text, wall_time
from fastscape.reports.sections import Figure, Grid, Quantity, Section, section_of

FOOTER = (
    "Intervals are 95 % over directions, the hull of the percentile and the studentised bootstrap; [n/a] where none is shown, "
    "for the reason that flags or tables give. p is of c2 = 0, by Student's t over directions. Radii are relative to the norm of "
    "the probed weights. Grey scales are not trusted: losses that are not finite, rounding noise, or zero responses."
)
_LEADING = 8  # rows that are read first
_FIRST_TO_GO = ("decades", "||w||", "accuracy", "loss", leads.M_TAU, leads.SPREAD, leads.CHANGE)
_READING = (2, 1, 0, 5, 3, 4)  # panels along training as a page has them: exponents, c2, M_tau, tau, loss, norm


@section_of.register
def of_one(result: MultifractalResult, spectrum: Document | None = None) -> Section:
    """One checkpoint: what is read first, of its spectrum too, then every value with its meaning, and the figures."""
    beside = _companion(spectrum)
    sharp = beside.leads if beside is not None and beside.leads is not None else Grid("", ())
    first = next(iter(sharp.rows), {})
    rows = [Quantity(name, value, sharp.definitions[name]) for name, value in first.items() if name != "checkpoint"]
    return Section(
        f"Multifractal probe: {result.name}",
        words.verdict(result),
        (*rows, *_quantities(result)),
        tuple(_figure(draw, result) for draw in figures.CHECKPOINT_FIGURES),
        flags=result.flags,
        settings=_settings(result),
        leads=_leads([result], beside),
        children=() if beside is None else (beside,),
        brief=words.brief(result),
        footer=FOOTER,
    )


@section_of.register
def of_several(result: TrajectoryResult, spectrum: Document | None = None) -> Section:
    """A row per checkpoint, the panels along training, the checkpoints themselves, and their spectra."""
    beside = _companion(spectrum)
    first = _leads(result.points, beside)
    rows = tuple({**row, **_state(point)} for row, point in zip(first.rows, result.points, strict=True))
    details = Grid("", tuple(map(_details, result.points)), leads.DETAILS)
    cost = Section("Cost", "", _run(result.meta), grids=(Grid("", tuple(map(_cost, result.points))),), folded=True)
    children = (
        Section("Along training", "", figures=(_panels(result),), grids=(details,), folded=True),
        checkpoints(result.points),
        cost,
        *(() if beside is None else (beside,)),
    )
    return Section(
        "Multifractal probe along training",
        words.trajectory_verdict(result),
        grids=(Grid("Multifractal probe along training", rows, first.definitions, _FIRST_TO_GO),),
        flags=tuple(words.trajectory_flags(result)),
        settings=_settings(result.points[0]) if result.points else (),
        children=children,
        leads=first,
        cover=Figure("Along training", partial(figures.trajectory_panels, result), ""),
        footer=FOOTER,
    )


def _companion(spectrum: Document | None) -> Section | None:
    return None if spectrum is None else spectrum.part()


def _leads(points: Sequence[MultifractalResult], beside: Section | None) -> Grid:
    """Rows that are read first, one per checkpoint, behind that of the spectra where they are there."""
    other = beside.leads if beside is not None and beside.leads is not None else Grid("", ())
    names = [name for name in other.definitions if any(row.get(name, "n/a") != "n/a" for row in other.rows)]
    found = {row["checkpoint"]: row for row in other.rows}
    rows = []
    for row in leads.lead_rows(points):
        sharp = {name: found.get(row["checkpoint"], {}).get(name, "n/a") for name in names}
        rows.append({"checkpoint": row["checkpoint"], **sharp, **row})
    return Grid("", tuple(rows), {**{name: other.definitions[name] for name in names}, **leads.DEFINITIONS})


def _quantities(point: MultifractalResult) -> list[Quantity]:
    meta, analysis, measured = point.meta, point.analysis, point.measured
    rows = [
        Quantity(*row, last=index + 1 in (_LEADING, len(words.QUANTITIES) + 2))
        for index, row in enumerate(words.multifractal_rows(point))
    ]
    if analysis.valid:
        scalars, banks = analysis.pooled[0][0].scalars, analysis.bank_statistics["m_tau"]
        over = f"{number(banks.mean)} ± {number(banks.std)}"
        rows += [
            Quantity(
                "M_tau of the mean tau of banks", number(analysis.m_tau_of_mean_tau), "less biased by noise than their mean"
            ),
            Quantity("M_tau over banks", over, f"mean and standard deviation of {counted(len(analysis.banks), 'bank')}"),
            Quantity("M_tau, q carried", number(scalars["m_tau_valid"]), "on orders carried by at least 10 directions"),
            Quantity("negative", f"{scalars['neg_frac']:.0%}", "share of the responses, the largest over the window", last=True),
        ]
    rows.append(Quantity("loss", number(point.loss, 6), words.loss_terms(point)))
    if point.accuracy is not None:
        rows.append(Quantity("accuracy", f"{point.accuracy:.2%}", "of the same data"))
    method = f"method {meta['path']['name']}: {meta['path']['reason']}"
    return [
        *rows,
        Quantity("||w||", number(measured.weight_norm, 5), f"{meta['parameters']:,} parameters"),
        Quantity("scales", words.scale_range(point), "analysed window; decades: log10 of its largest over its smallest radius"),
        Quantity("directions", f"{point.directions} in {counted(len(measured.counts), 'bank')}", meta["stop_reason"]),
        Quantity("precision", meta["precision"], method),
        Quantity("wall time", wall_time(meta.get("run_seconds"), meta.get("budget"))),
    ]


def _figure(draw: Callable[..., Any], result: MultifractalResult) -> Figure:
    return Figure("", partial(draw, result), figures.CAPTIONS[draw.__name__], measured=False)


def _panels(result: TrajectoryResult) -> Figure:
    def draw(axes: Sequence[Any]) -> object:
        return figures.trajectory_panels(result, [axes[_READING.index(index)] for index in range(len(_READING))])

    captions = tuple(figures.TRAJECTORY_CAPTIONS[index] for index in _READING)
    return Figure("Along training", draw, "", panels=(2, 3), captions=captions)


def _state(point: MultifractalResult) -> dict[str, str]:
    return {
        "p": p_text(leads.shown_p(point.analysis)),
        "loss": number(point.loss, 4),
        "accuracy": "n/a" if point.accuracy is None else f"{point.accuracy:.1%}",
        "||w||": number(point.measured.weight_norm, 4),
        "decades": number(point.decades, 2),
        "N": str(point.directions),
    }


def _details(point: MultifractalResult) -> dict[str, str]:
    return {
        "checkpoint": point.name,
        "p (c2 = 0)": p_text(leads.shown_p(point.analysis)),
        "spread ratio": cell(point.analysis.estimates.get("spread_ratio")),
        "moved mass": number(point.analysis.moved_mass, 2),
        "window (decades)": number(point.decades, 2),
    }


def _settings(point: MultifractalResult) -> tuple[tuple[str, str], ...]:
    probe, analysis = point.probe, point.analysis.settings
    radii = point.measured.radii
    moved = f"{probe.law}, normalised per {probe.normalize}, {counted(probe.banks, 'bank')}, seed {probe.seed}"
    return (
        ("radii", f"{len(radii)} from {radii[0]:.2e} to {radii[-1]:.2e} in units of ||d|| (scale: {probe.scale})"),
        ("directions", moved),
        ("orders q", ", ".join(f"{order:g}" for order in analysis.q)),
        ("response", f"{analysis.variant}, gamma = {analysis.gamma:g}"),
        ("bootstrap, permutations", f"{analysis.bootstrap}, {analysis.permutations}"),
    )


def _run(meta: Mapping[str, Any]) -> tuple[Quantity, ...]:
    time = wall_time(meta["run_seconds"], meta.get("budget"))
    return Quantity("stopped by", str(meta["stop_reason"])), Quantity("wall time", time)


def _cost(point: MultifractalResult) -> dict[str, str]:
    return {
        "checkpoint": point.name,
        "directions": str(point.directions),
        "loss evaluations": f"{point.meta['evaluations']:,}",
        "seconds evaluating": number(point.meta["seconds"]),
        "method": point.meta["path"]["name"],
        "why": point.meta["path"]["reason"],
    }
