"""Base of all results of landscape probes: saved, read back, printed and shown."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from rich.console import RenderableType

from fastscape._checks import counted
from fastscape.reports import batch_norm, storage
from fastscape.reports.sections import Section, led, section_of, section_table
from fastscape.reports.tables import as_text


class Document:
    """Base of frozen result dataclasses, which hold data; what is shown of one is registered with :func:`section_of`.

    Attributes:
        kind: of its files; registers the class for :func:`fastscape.load`.
        companions: kinds of results of the same checkpoints that may be shown beside it.
    """

    kind: ClassVar[str]
    companions: ClassVar[frozenset[str]] = frozenset()
    name: str
    step: int | None
    meta: dict[str, Any]
    notes: tuple[str, ...]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in cls.__dict__:
            storage.KINDS[cls.kind] = cls

    def __repr__(self) -> str:
        section = self.section()
        return f"<{type(self).__name__} {self.name!r}: {section.brief or section.verdict}>"

    def section(self, spectrum: Document | None = None) -> Section:
        """Section that tables and pages show of this result, and of a ``spectrum`` beside it.

        Raises:
            TypeError: a spectrum beside a result that takes none, or something else than a spectrum.
        """
        if spectrum is not None:
            check_companion(self, spectrum)
        section = section_of(self) if spectrum is None else section_of(self, spectrum=spectrum)
        if section.settings is not None:
            return section
        asked = self.meta.get("settings") or {}
        settings = tuple((name, "not set" if value is None else str(value)) for name, value in asked.items())
        return dataclasses.replace(section, settings=settings)

    def part(self) -> Section:
        """The result where it is part of a larger page: its verdict holds what must be read first."""
        return dataclasses.replace(self.section(), verdict=self.verdict())

    def stored(self) -> Self:
        """The result as it is saved; subclasses drop what a file should not hold."""
        return self

    @property
    def probed(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        """Name and ``meta`` of every checkpoint that it is of."""
        return ((self.name, self.meta),)

    @property
    def flags(self) -> tuple[str, ...]:
        """Everything to beware of, in words."""
        return self.section().flags

    @property
    def lead(self) -> str:
        """Sentence to read before the numbers: of which function they are, where batch norm makes two of it."""
        return batch_norm.lead(self.meta)

    def verdict(self) -> str:
        """Verdict in one sentence, behind :attr:`lead`."""
        return batch_norm.before(self.lead, self.section().verdict)

    def table(self, spectrum: Document | None = None) -> RenderableType:
        """Table for a terminal; a ``spectrum`` of the same checkpoints follows, and its lead comes first."""
        return led(self.lead, section_table(self.section(spectrum)))

    def summary(self) -> str:
        """The table a person wants, as text."""
        return as_text(self.table())

    def __str__(self) -> str:
        return self.summary()

    def plot(self, ax: Any = None) -> Any:
        """The figure that says most, on ``ax``, on as many axes as it has panels, or on new ones; returns what it was drawn on.

        Needs matplotlib.

        Raises:
            ValueError: a result without figures.
        """
        section = self.section()
        figure = section.cover or next(iter(section.figures), None)
        if figure is None:
            raise ValueError(f"a {type(self).__name__} without figures cannot be plotted")
        return figure.draw(ax)

    def save(self, path: str | Path) -> Path:
        """Write one npz file (plain arrays and a JSON string) and return its path."""
        return storage.save(path, self.stored(), self.kind)

    def data(self) -> dict[str, Any]:
        """Fields as JSON data; subclasses leave out what only files should hold, or add what follows from fields."""
        content: dict[str, Any] = storage.plain(self.stored())
        return content

    def to_dict(self, spectrum: Document | None = None) -> dict[str, Any]:
        """Everything as JSON data, NaN and inf as ``None``; that of a ``spectrum`` beside it under its name."""
        content, section = self.data(), self.section(spectrum)
        if section.leads is not None:
            rows = [dict(row) for row in section.leads.rows]
            content["leads"] = rows if "points" in content else rows[0]
        if spectrum is not None:
            content["spectrum"] = spectrum.to_dict()
        return content | {"flags": list(self.flags), "verdict": self.verdict()}

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)


class Along(Document):
    """Base of results of several checkpoints, each a result of its own in ``points``, in the order given.

    Attributes:
        counted_by: what the work is counted by, in the singular; points have its number under the plural.
    """

    counted_by: ClassVar[str]
    points: tuple[Any, ...]

    def __repr__(self) -> str:
        names = " .. ".join(repr(point.name) for point in (self.points[:1] + self.points[1:][-1:]))
        work = sum(getattr(point, f"{self.counted_by}s") for point in self.points)
        return f"<{type(self).__name__} {names}: {counted(len(self.points), 'checkpoint')}, {counted(work, self.counted_by)}>"

    @property
    def steps(self) -> NDArray[np.float64]:
        """Training steps, or 0, 1, 2 ... where a checkpoint has none."""
        known = [point.step for point in self.points]
        return np.array(range(len(known)) if None in known else known, dtype=np.float64)

    def stored(self) -> Self:
        """See :class:`Document`."""
        return dataclasses.replace(self, points=tuple(point.stored() for point in self.points))  # type: ignore[type-var]

    @property
    def probed(self) -> tuple[tuple[str, Mapping[str, Any]], ...]:
        """See :class:`Document`."""
        return tuple((point.name, point.meta) for point in self.points)

    @property
    def lead(self) -> str:
        """See :class:`Document`; of the checkpoint whose losses by the two kinds of statistics differ most."""
        return batch_norm.lead_along(self.probed)

    def data(self) -> dict[str, Any]:
        """See :class:`Document`."""
        return {"points": [point.to_dict() for point in self.points], "meta": storage.plain(self.meta)}


def checkpoints(points: Sequence[Document]) -> Section:
    """The section of a page that has one for each checkpoint, the last of them open."""
    own: dict[str, Any] = {"leads": None, "settings": ()}  # the whole has those
    children = tuple(
        dataclasses.replace(point.part(), folded=index + 1 < len(points), **own) for index, point in enumerate(points)
    )
    return Section("Checkpoints", "", children=children, folded=True)


def check_companion(result: Document, spectrum: object) -> None:
    """Whether ``spectrum`` may be shown beside ``result``.

    Raises:
        TypeError: it may not.
    """
    if getattr(spectrum, "kind", None) not in result.companions:
        raise TypeError(
            f"spectrum belongs beside a multifractal result, got a {type(result).__name__} to show with it"
            if not result.companions
            else f"spectrum must be one to show beside a {type(result).__name__}, got a {type(spectrum).__name__}"
        )
