"""Results of the doctor: what may keep numbers from being right or fast, and the remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fastscape._checks import counted
from fastscape.reports.axes import BLUE, ORANGE, RED, nothing, single
from fastscape.reports.document import Document
from fastscape.reports.sections import Grid, Section
from fastscape.runs.provenance import told

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Severity = Literal["ok", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "ok")
_COLOURS = {"error": RED, "warning": ORANGE, "ok": BLUE}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what was looked at.
        severity: ``"ok"``; ``"warning"``: numbers are right, but slower, fewer or of something else than may be expected;
            ``"error"``: numbers cannot be had, or would be wrong.
        found: in words.
        remedy: what to do; empty where nothing is to be done.
    """

    check: str
    severity: Severity
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis(Document):
    """What the doctor found.

    Attributes:
        name, step: of the model; ``"machine"`` where there was none.
        machine: findings about this machine and installation.
        model: findings about the model, its loss and data; empty without one.
        meta: versions, threads, model, data, seconds.
        notes: of the run, in words.
    """

    kind: ClassVar[str] = "doctor"

    name: str
    step: int | None
    machine: tuple[Finding, ...]
    model: tuple[Finding, ...]
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Diagnosis {self.name!r}: {counts(self.findings)}>"

    def __getitem__(self, check: str) -> Finding:
        """The finding of a check.

        Raises:
            KeyError: no such check; the message lists the names.
        """
        for finding in self.findings:
            if finding.check == check:
                return finding
        raise KeyError(f"{check!r} is none of {', '.join(finding.check for finding in self.findings)}")

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of them."""
        return (*self.machine, *self.model)

    @property
    def worst(self) -> Severity:
        """The highest severity found."""
        found = {finding.severity for finding in self.findings}
        return next((severity for severity in SEVERITIES if severity in found), "ok")

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """The findings of a severity."""
        return tuple(finding for finding in self.findings if finding.severity == severity)

    def section(self) -> Section:
        """See :class:`Document`."""
        parts = (("This machine", self.machine), (f"The model: {self.name}", self.model))
        return Section(
            f"Doctor: {self.name}",
            _verdict(self),
            grids=tuple(Grid(caption, tuple(map(_row, found)), _MEANINGS) for caption, found in parts if found),
            flags=(
                *told(self.meta, self.notes),
                *(f"{f.severity}: {f.check}: {f.found}" for f in (*self.of("error"), *self.of("warning"))),
            ),
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """How many findings there are of each severity (needs matplotlib)."""
        ax = single(ax)
        if not self.findings:
            return nothing(ax, "Findings", "nothing was looked at")
        for place, severity in enumerate(reversed(SEVERITIES)):
            ax.barh(place, len(self.of(severity)), color=_COLOURS[severity])
        ax.set_yticks(range(len(SEVERITIES)), list(reversed(SEVERITIES)))
        ax.set(xlabel="findings", title=f"Doctor: {self.name}")
        return ax


_MEANINGS = {
    "check": "what was looked at",
    "severity": "ok; warning: right numbers, but slower, fewer, or of something else than expected; error: none, or wrong ones",
    "found": "what there is",
    "remedy": "what to do",
}


def _row(finding: Finding) -> Mapping[str, str]:
    return {"check": finding.check, "severity": finding.severity, "found": finding.found, "remedy": finding.remedy}


def counts(findings: tuple[Finding, ...]) -> str:
    """``1 error, 2 warnings, 9 ok``."""
    number = {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}
    return f"{counted(number['error'], 'error')}, {counted(number['warning'], 'warning')}, {number['ok']} ok"


def _verdict(result: Diagnosis) -> str:
    tail = f"({counts(result.findings)})"
    if result.worst == "error":
        where = result.of("error")
        return f"Something must be put right first: {', '.join(finding.check for finding in where)} {tail}."
    subject = f"{result.name} can be probed" if result.model else "Nothing is in the way on this machine"
    if result.worst == "warning":
        return f"{subject}; worth a look: {', '.join(finding.check for finding in result.of('warning'))} {tail}."
    return f"{subject} {tail}."
