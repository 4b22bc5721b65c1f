"""What every result of a landscape probe can do: be saved, read back, printed and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from rich.console import RenderableType

from fastscape.reports import batch_norm, storage
from fastscape.reports.sections import Section, led, section_table
from fastscape.reports.tables import as_text


class Document:
    """Base of frozen result dataclasses; a subclass sets ``kind`` and says in :meth:`section` what it shows.

    Attributes:
        kind: of its files; registers the class for :func:`fastscape.load`.
    """

    kind: ClassVar[str]
    name: str
    step: int | None
    meta: dict[str, Any]
    notes: tuple[str, ...]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in cls.__dict__:
            storage.KINDS[cls.kind] = cls

    def section(self) -> Section:
        """What tables and pages show of this result."""
        raise NotImplementedError

    def stored(self) -> Self:
        """What is saved of the result; subclasses drop what a file should not hold."""
        return self

    @property
    def flags(self) -> tuple[str, ...]:
        """Everything to beware of, in words."""
        return self.section().flags

    @property
    def lead(self) -> str:
        """What must be read before the numbers: of which function they are, where batch norm makes two of it."""
        return batch_norm.lead(self.meta)

    def verdict(self) -> str:
        """What was found, in one sentence, behind :attr:`lead`."""
        return batch_norm.before(self.lead, self.section().verdict)

    def table(self) -> RenderableType:
        """What a terminal shows."""
        return led(self.lead, section_table(self.section()))

    def summary(self) -> str:
        """The table a person wants, as text."""
        return as_text(self.table())

    def __str__(self) -> str:
        return self.summary()

    def save(self, path: str | Path) -> Path:
        """Write one npz file (plain arrays and a JSON string) and return its path."""
        return storage.save(path, self.stored(), self.kind)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON data, NaN and inf as ``None``."""
        content: dict[str, Any] = storage.plain(self.stored())
        section = self.section()
        return content | {"flags": list(section.flags), "verdict": self.verdict()}

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)
