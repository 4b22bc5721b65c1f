"""Results of the doctor: anything that could make results wrong or slow, and the remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastscape._checks import counted
from fastscape.reports.document import Document
from fastscape.runs.provenance import Provenance

Severity = Literal["ok", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "ok")


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        check: what was looked at.
        severity: ``"ok"``; ``"warning"``: numbers are right, but slower, fewer or of something else than may be expected;
            ``"error"``: numbers are unavailable, or would be wrong.
        found: in words.
        remedy: what to do; empty where nothing is to be done.
    """

    check: str
    severity: Severity
    found: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis(Document):
    """Findings of the doctor.

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
    meta: Provenance
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
        raise KeyError(f"unknown check {check!r}; expected one of {', '.join(finding.check for finding in self.findings)}")

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


def counts(findings: tuple[Finding, ...]) -> str:
    """``1 error, 2 warnings, 9 ok``."""
    number = {severity: sum(finding.severity == severity for finding in findings) for severity in SEVERITIES}
    return f"{counted(number['error'], 'error')}, {counted(number['warning'], 'warning')}, {number['ok']} ok"
