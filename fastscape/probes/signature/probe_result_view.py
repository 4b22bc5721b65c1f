"""Tables and pages of several probes of one checkpoint."""

from __future__ import annotations

from fastscape._checks import counted
from fastscape.probes.signature.probe_result import ProbeResult
from fastscape.reports.axes import nothing, single
from fastscape.reports.sections import Figure, Quantity, Section, section_of
from fastscape.runs.provenance import remarks_and_notes

_NOTHING = Figure("Probes", lambda ax: nothing(single(ax), "Probes", "no probe gave a result"), "")


@section_of.register
def probes_section(result: ProbeResult) -> Section:
    """A section for each probe, and why others are missing."""
    children = tuple(each.part() for each in result.results.values())
    rows = [Quantity(kind, "done", section.verdict) for kind, section in zip(result.results, children, strict=True)]
    rows += [Quantity(kind, "missing", reason) for kind, reason in result.missing.items()]
    reason = result.meta.get("stop_reason", "complete")
    ended = f"{result.meta.get('seconds', 0.0):.3g} s" + ("" if reason == "complete" else f", {reason}")
    return Section(
        f"Probes of {result.name}",
        f"{counted(len(result.results), 'probe')} of {len(rows)} gave a result in {ended}.",
        tuple(rows),
        flags=remarks_and_notes(result.meta, result.notes),
        children=children,
        cover=next((section.cover or section.figures[0] for section in children if section.cover or section.figures), _NOTHING),
    )
