"""Results of several probes of one checkpoint, on one page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from fastscape._checks import counted
from fastscape.reports.axes import nothing, single
from fastscape.reports.document import Document
from fastscape.reports.parts import section_of
from fastscape.reports.result import AnyResult
from fastscape.reports.sections import Quantity, Section
from fastscape.reports.signature import Signature
from fastscape.reports.signature_parts import PARTS
from fastscape.reports.spectrum import SpectrumResult
from fastscape.runs.provenance import told

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class ProbeResult(Document):
    """What several probes found at one checkpoint, by kind: ``result["spectrum"].trace``.

    Attributes:
        name, step: of the checkpoint.
        results: single results by kind, in the order of the probes.
        missing: why there is no result, by kind.
        meta: seed, settings, shares of the budget, fingerprints, seconds, stop reason.
        notes: flags, in words.
    """

    kind: ClassVar[str] = "probe"

    name: str
    step: int | None
    results: dict[str, Any]
    missing: dict[str, str]
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<ProbeResult {self.name!r}: {', '.join(self.results) or 'nothing'}>"

    def __getitem__(self, kind: str) -> AnyResult:
        """The result of a kind; a KeyError says why it is missing."""
        if kind not in self.results:
            there = f"there are {', '.join(self.results)}"
            raise KeyError(f"{kind}: {self.missing.get(kind, there)}")
        found: AnyResult = self.results[kind]
        return found

    def __contains__(self, kind: object) -> bool:
        return kind in self.results

    def __iter__(self) -> Iterator[str]:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)

    def signature(self) -> Signature:
        """The signature that these results amount to."""
        parts = [result for kind, result in self.results.items() if kind in PARTS]
        reasons = {kind: reason for kind, reason in self.missing.items() if kind in PARTS}
        found = Signature.of(*parts, name=self.name, step=self.step, missing=reasons)
        return dataclasses.replace(found, notes=tuple(dict.fromkeys((*self.notes, *found.notes))))

    def stored(self) -> Self:
        """See :class:`Document`; eigenvectors are not saved."""
        kept = {
            kind: dataclasses.replace(result, vectors=None) if isinstance(result, SpectrumResult) else result
            for kind, result in self.results.items()
        }
        return dataclasses.replace(self, results=kept)

    def section(self) -> Section:
        """See :class:`Document`."""
        children = tuple(section_of(result) for result in self.results.values())
        rows = [Quantity(kind, "done", section.verdict) for kind, section in zip(self.results, children, strict=True)]
        rows += [Quantity(kind, "missing", reason) for kind, reason in self.missing.items()]
        reason = self.meta.get("stop_reason", "complete")
        ended = f"{self.meta.get('seconds', 0.0):.3g} s" + ("" if reason == "complete" else f", {reason}")
        return Section(
            f"Probes of {self.name}",
            f"{counted(len(self.results), 'probe')} of {len(rows)} gave a result in {ended}.",
            tuple(rows),
            flags=told(self.meta, self.notes),
            settings=tuple((key, str(value)) for key, value in self.meta.get("settings", {}).items()),
            children=children,
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """Figure of the first result; the page has those of all (needs matplotlib)."""
        for result in self.results.values():
            drawn: Axes = result.plot(ax)
            return drawn
        return nothing(single(ax), "Probes", "no probe gave a result")
