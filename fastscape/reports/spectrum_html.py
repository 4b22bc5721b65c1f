"""What pages show of spectra: figures, tables, cost, settings and provenance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fastscape.reports import spectrum_figures, tables
from fastscape.reports.spectrum import SpectrumResult, SpectrumTrajectory
from fastscape.reports.spectrum_tables import (
    checkpoint_rows,
    merged_flags,
    path_name,
    refused,
    series_rows,
)
from fastscape.reports.svg import captioned, svgs

FOOTER = (
    "Eigenvalues are Ritz values ± residual: some eigenvalue lies within. Hollow marks and ~ have not converged. "
    "Intervals of the trace and of what is averaged are 95 % over random probes."
)


def spectrum_context(result: SpectrumResult | SpectrumTrajectory) -> dict[str, Any]:
    """The template variable ``spectrum``; matplotlib must be there."""
    points = spectrum_points(result)
    along = result if isinstance(result, SpectrumTrajectory) and len(points) > 1 else None
    return {
        "verdict": result.verdict(),
        "trajectory": _captioned(spectrum_figures.TRAJECTORY_FIGURES, along, measured=True) if along else None,
        "series": series_rows(points),
        "flags": merged_flags(points) if along else [],
        "sections": {point.name: _section(point) for point in points},
        "cost": _cost(points),
        "run": run_rows(result.meta),
        "footer": FOOTER,
    }


def spectrum_points(result: SpectrumResult | SpectrumTrajectory) -> tuple[SpectrumResult, ...]:
    """The checkpoints of a result."""
    return result.points if isinstance(result, SpectrumTrajectory) else (result,)


def _section(point: SpectrumResult) -> dict[str, Any]:
    return {
        "verdict": point.verdict(),
        "figures": _captioned(spectrum_figures.CHECKPOINT_FIGURES, point),
        "rows": [row for part in checkpoint_rows(point) for row in part],
        "flags": point.flags,
    }


def _captioned(drawers: Sequence[Callable[..., Any]], result: Any, *, measured: bool = False) -> list[dict[str, str]]:
    def draw_all(axes: Sequence[Any]) -> None:
        for draw, ax in zip(drawers, axes, strict=True):
            draw(result, ax)

    return captioned(
        svgs(len(drawers), draw_all, measured=measured), [spectrum_figures.CAPTIONS[draw.__name__] for draw in drawers]
    )


def _cost(points: Sequence[SpectrumResult]) -> list[dict[str, str]]:
    return [
        {
            "checkpoint": point.name,
            "products": f"{point.products:,}",
            "gradients per product": tables.number(point.meta.get("gradients_per_product")),
            "seconds": tables.number(point.meta.get("seconds")),
            "stopped by": str(point.meta.get("stop_reason", "n/a")),
            "path": path_name(point.meta),
            "why not others": "; ".join(f"{path}: {why}" for path, why in refused(point.meta).items()),
        }
        for point in points
    ]


def run_rows(meta: dict[str, Any]) -> list[tuple[str, str]]:
    """Why a run ended, and its time."""
    budget, seconds = meta.get("budget"), meta.get("seconds")
    time = "n/a" if seconds is None else f"{seconds:.1f} s" + (f" of a budget of {budget:g} s" if budget else "")
    return [("stopped by", str(meta.get("stop_reason", "n/a"))), ("wall time", time)]


def setting_rows(point: SpectrumResult) -> list[tuple[str, str]]:
    """Settings of the run and its numerical checks."""
    meta = point.meta
    settings = {**(meta.get("settings") or {}), **{f"target {name}": goal for name, goal in (meta.get("targets") or {}).items()}}
    checks = [
        (label, tables.number(meta[key]))
        for label, key in (("orthogonality loss ||Q'Q - I||", "orthogonality_loss"), ("asymmetry of Q'HQ", "asymmetry"))
        if meta.get(key) is not None
    ]
    rows = [(name, "default" if value is None else str(value)) for name, value in settings.items()]
    return [("matrix", point.operator), ("seed", str(meta.get("seed", "n/a"))), *rows, *checks]


PROVENANCE = (
    ("model", "model"),
    ("weights (SHA-256)", "weight_fingerprint"),
    ("data (SHA-256)", "data_fingerprint"),
    ("batches", "batches"),
    ("device", "device"),
    ("dtype", "dtype"),
    ("arithmetic", "arithmetic"),
    ("versions", "versions"),
    ("created", "created"),
)
