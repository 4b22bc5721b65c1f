"""Results of several probes of one checkpoint, on one page."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self

from fastscape.probes.signature.quantities import PARTS
from fastscape.probes.signature.result import Signature
from fastscape.reports.document import Document
from fastscape.runs.provenance import Provenance


@dataclass(frozen=True)
class ProbeResult(Document):
    """Results of several probes of one checkpoint, by kind: ``result["spectrum"].trace``.

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
    results: dict[str, Annotated[Any, Document]]
    missing: dict[str, str]
    meta: Provenance
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<ProbeResult {self.name!r}: {', '.join(self.results) or 'nothing'}>"

    def __getitem__(self, kind: str) -> Document:
        """The result of a kind; a KeyError says why it is missing."""
        if kind not in self.results:
            there = f"there are {', '.join(self.results)}"
            raise KeyError(f"{kind}: {self.missing.get(kind, there)}")
        found: Document = self.results[kind]
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
        return dataclasses.replace(self, results={kind: result.stored() for kind, result in self.results.items()})
