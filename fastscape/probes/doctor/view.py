"""Tables and pages of a diagnosis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fastscape.probes.doctor.result import SEVERITIES, Diagnosis, Finding, counts
from fastscape.reports.axes import BLUE, ORANGE, RED, literal, nothing, single
from fastscape.reports.sections import Figure, Grid, Section, section_of
from fastscape.runs.provenance import remarks_and_notes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = {"error": RED, "warning": ORANGE, "ok": BLUE}
_MEANINGS = {
    "check": "what was checked",
    "severity": "ok; warning: right numbers, but slower, fewer, or of something else than expected; error: none, or wrong ones",
    "found": "what there is",
    "remedy": "what to do",
}


@section_of.register
def doctor_section(result: Diagnosis) -> Section:
    """Findings about the machine and the model."""
    parts = (("This machine", result.machine), (f"The model: {result.name}", result.model))
    return Section(
        f"Doctor: {result.name}",
        _verdict(result),
        grids=tuple(Grid(caption, tuple(map(_row, found)), _MEANINGS) for caption, found in parts if found),
        flags=(
            *remarks_and_notes(result.meta, result.notes),
            *(f"{f.severity}: {f.check}: {f.found}" for f in (*result.of("error"), *result.of("warning"))),
        ),
        cover=Figure("Findings", lambda ax: severities(result, ax), "Number of findings of each severity."),
    )


def severities(result: Diagnosis, ax: Axes | None = None) -> Axes:
    """Number of findings of each severity."""
    ax = single(ax)
    if not result.findings:
        return nothing(ax, "Findings", "nothing was checked")
    for place, severity in enumerate(reversed(SEVERITIES)):
        ax.barh(place, len(result.of(severity)), color=_COLOURS[severity])
    ax.set_yticks(range(len(SEVERITIES)), list(reversed(SEVERITIES)))
    ax.set(xlabel="findings", title=f"Doctor: {literal(result.name)}")
    return ax


def _row(finding: Finding) -> Mapping[str, str]:
    return {"check": finding.check, "severity": finding.severity, "found": finding.found, "remedy": finding.remedy}


def _verdict(result: Diagnosis) -> str:
    tail = f"({counts(result.findings)})"
    if result.worst == "error":
        where = result.of("error")
        return f"Something must be put right first: {', '.join(finding.check for finding in where)} {tail}."
    subject = f"{result.name} can be probed" if result.model else "Nothing is in the way on this machine"
    if result.worst == "warning":
        return f"{subject}; worth a look: {', '.join(finding.check for finding in result.of('warning'))} {tail}."
    return f"{subject} {tail}."
