"""One self-contained HTML page per result: verdict, figures, tables, cost, provenance."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fastscape._checks import counted
from fastscape.reports import figures, leads, tables
from fastscape.reports.document import Document
from fastscape.reports.document_html import document_page
from fastscape.reports.result import AnyResult, MultifractalResult, TrajectoryResult
from fastscape.reports.spectrum import SpectrumResult, SpectrumTrajectory
from fastscape.reports.spectrum_html import PROVENANCE, setting_rows, spectrum_context, spectrum_points
from fastscape.reports.spectrum_tables import WORDS
from fastscape.reports.svg import captioned, svgs

Spectrum = SpectrumResult | SpectrumTrajectory

_READING = (2, 1, 0, 5, 3, 4)  # panels along training: exponents, c2, M_tau, tau, loss, norm
_PROVENANCE = (
    ("model", "model"),
    ("weights (SHA-256)", "weight_fingerprint"),
    ("data (SHA-256)", "data_fingerprint"),
    ("loss terms", "samples"),
    ("batches", "batches"),
    ("parameters probed", "parameters"),
    ("share not moved", "skipped_fraction"),
    ("precision", "precision"),
    ("arithmetic", "arithmetic"),
    ("device", "device"),
    ("versions", "versions"),
    ("created", "created"),
)


def write_html(result: AnyResult, path: str | Path, *, spectrum: Spectrum | None = None) -> Path:
    """Write the report page of a result and return its path (needs matplotlib and jinja2).

    Args:
        result: what the page is about.
        path: of the page.
        spectrum: spectra of the same checkpoints, to show beside a multifractal result.

    Raises:
        ImportError: naming the extra to install.
        TypeError: a spectrum beside a spectrum.
    """
    try:
        import matplotlib as mpl
        from jinja2 import Environment, PackageLoader, select_autoescape
    except ImportError as error:
        raise ImportError("reports need matplotlib and jinja2: pip install 'fastscape-probes[report]'") from error
    if spectrum is not None and isinstance(result, Spectrum | Document):
        raise TypeError(f"spectrum belongs beside a multifractal result, got a {type(result).__name__} to show with it")
    environment = Environment(loader=PackageLoader("fastscape.reports"), autoescape=select_autoescape(["j2"]))
    with mpl.rc_context({"svg.hashsalt": "fastscape", "font.size": 9, "svg.fonttype": "none"}):
        if isinstance(result, Document):
            template, content = "document.html.j2", document_page(result)
        elif isinstance(result, Spectrum):
            template, content = "spectrum.html.j2", _spectrum_page(result)
        else:
            template, content = "report.html.j2", _multifractal_page(result, spectrum)
            content["spectrum"] = spectrum_context(spectrum) if spectrum is not None else None
            content["verdicts"] = [each.verdict() for each in (spectrum, result) if each is not None]
    target = Path(path)
    target.write_text(environment.get_template(template).render(content), encoding="utf-8")
    return target


def _multifractal_page(result: MultifractalResult | TrajectoryResult, spectrum: Spectrum | None) -> dict[str, Any]:
    points = result.points if isinstance(result, TrajectoryResult) else (result,)
    along = result if isinstance(result, TrajectoryResult) and len(points) > 1 else None
    return {
        "title": "Multifractal probe" + (" along training" if along else f": {points[0].name}"),
        "trajectory": _along(along) if along else None,
        "leads": leads.lead_rows(result, spectrum),
        "definitions_of": _defined(result, spectrum),
        "flags": tables.trajectory_flags(along) if along else [],
        "series": _trajectory_rows(points),
        "details": leads.DETAILS,
        "sections": [
            {
                "name": point.name,
                "verdict": point.verdict(),
                "rows": _rows(point),
                "flags": point.flags,
                "figures": _figures(point),
            }
            for point in points
        ],
        "settings": _settings(points[0]),
        "cost": _cost(points),
        "run": _run(result.meta),
        "provenance": _provenance(points, _PROVENANCE),
    }


def _spectrum_page(result: Spectrum) -> dict[str, Any]:
    points = spectrum_points(result)
    context = spectrum_context(result)
    known = [(label, key) for label, key in PROVENANCE if any(key in point.meta for point in points)]
    return {
        "title": f"Spectrum of the {WORDS[points[0].operator]}"
        + (" along training" if len(points) > 1 else f": {points[0].name}"),
        "verdict": context["verdict"],
        "spectrum": context,
        "settings": setting_rows(points[0]),
        "cost": context["cost"],
        "run": context["run"],
        "provenance": _provenance(points, known),
    }


def _figures(point: MultifractalResult) -> list[dict[str, str]]:
    def draw_all(axes: Sequence[Any]) -> None:
        for draw, ax in zip(figures.CHECKPOINT_FIGURES, axes, strict=True):
            draw(point, ax)

    captions = [figures.CAPTIONS[draw.__name__] for draw in figures.CHECKPOINT_FIGURES]
    return captioned(svgs(len(figures.CHECKPOINT_FIGURES), draw_all), captions)


def _defined(result: MultifractalResult | TrajectoryResult, spectrum: Spectrum | None) -> dict[str, str]:
    """What the columns of the leading table mean."""
    shown = leads.lead_rows(result, spectrum)[0]
    return {name: words for name, words in leads.DEFINITIONS.items() if name in shown}


def _along(result: TrajectoryResult) -> list[dict[str, str]]:
    """Panels in the order of reading: exponents and c2 before M_tau."""
    panels = captioned(svgs(6, partial(figures.trajectory_panels, result), measured=True), figures.TRAJECTORY_CAPTIONS)
    return [panels[index] for index in _READING]


def _rows(point: MultifractalResult) -> list[tuple[str, str, str]]:
    analysis = point.analysis
    rows = [*tables.multifractal_rows(point), ("loss", tables.number(point.loss, 6), "on the probed data")]
    if point.accuracy is not None:
        rows.append(("accuracy", f"{point.accuracy:.2%}", "of the same data"))
    rows += [
        ("||w||", tables.number(point.measured.weight_norm, 5), "of the probed weights"),
        ("scales", tables.scale_range(point), "analysed window; decades: log10 of its largest over its smallest radius"),
    ]
    if analysis.valid:
        first, banks = analysis.pooled[0][0].scalars, analysis.bank_statistics["m_tau"]
        over = f"{tables.number(banks.mean)} ± {tables.number(banks.std)}"
        rows += [
            ("M_tau of the mean tau of banks", tables.number(analysis.m_tau_of_mean_tau), "less biased by noise than their mean"),
            ("M_tau over banks", over, f"mean and standard deviation of {counted(len(analysis.banks), 'bank')}"),
            ("M_tau, q carried", tables.number(first["m_tau_valid"]), "on orders carried by at least 10 directions"),
            ("negative responses", f"{first['neg_frac']:.0%}", "largest share over the window"),
        ]
    return rows


def _trajectory_rows(points: Sequence[MultifractalResult]) -> list[dict[str, str]]:
    return [
        {
            "checkpoint": point.name,
            "loss": tables.number(point.loss, 4),
            "accuracy": "n/a" if point.accuracy is None else f"{point.accuracy:.1%}",
            "||w||": tables.number(point.measured.weight_norm, 4),
            "p (c2 = 0)": tables.p_text(tables.shown_p(point.analysis)),
            "spread ratio": tables.cell(point.analysis.estimates.get("spread_ratio")),
            "moved mass": tables.number(point.analysis.moved_mass, 2),
            "window (decades)": tables.number(point.decades, 2),
            "directions": str(point.directions),
        }
        for point in points
    ]


def _settings(point: MultifractalResult) -> list[tuple[str, str]]:
    probe, analysis = point.probe, point.analysis.settings
    radii = point.measured.radii
    return [
        ("radii", f"{len(radii)} from {radii[0]:.2e} to {radii[-1]:.2e} in units of ||d|| (scale: {probe.scale})"),
        (
            "directions",
            f"{probe.distribution}, normalised per {probe.normalize}, {counted(probe.banks, 'bank')}, seed {probe.seed}",
        ),
        ("orders q", ", ".join(f"{order:g}" for order in analysis.q)),
        ("response", f"{analysis.variant}, gamma = {analysis.gamma:g}"),
        ("bootstrap, permutations", f"{analysis.bootstrap}, {analysis.permutations}"),
    ]


def _cost(points: Sequence[MultifractalResult]) -> list[dict[str, str]]:
    return [
        {
            "checkpoint": point.name,
            "directions": str(point.directions),
            "loss evaluations": f"{point.meta['evaluations']:,}",
            "seconds evaluating": tables.number(point.meta["seconds"]),
            "path": point.meta["path"]["name"],
            "why": point.meta["path"]["reason"],
        }
        for point in points
    ]


def _run(meta: dict[str, Any]) -> list[tuple[str, str]]:
    budget = meta.get("budget")
    return [
        ("stopped by", str(meta["stop_reason"])),
        ("wall time", f"{meta['run_seconds']:.1f} s" + (f" of a budget of {budget:g} s" if budget else "")),
    ]


def _provenance(points: Sequence[MultifractalResult | SpectrumResult], shown: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    rows = []
    for label, key in shown:
        values = [point.meta.get(key) for point in points]
        if key == "weight_fingerprint" and len(points) > 1:
            rows += [(f"weights of {p.name} (SHA-256)", str(value)) for p, value in zip(points, values, strict=True)]
        elif isinstance(values[0], dict):
            rows.append((label, ", ".join(f"{name} {version}" for name, version in values[0].items())))
        else:
            rows.append((label, "n/a" if values[0] is None else str(values[0])))
    return rows
