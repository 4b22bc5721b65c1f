"""Sections of a result, for a terminal or a page: values with meanings, figures with definitions, tables, flags."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from fastscape.reports.tables import RowsByWidth, literally


@dataclass(frozen=True)
class Quantity:
    """One line of a table: a name, the value with its interval as text, and its definition in one line.

    Terminals draw a rule below the last of a group.
    """

    label: str
    value: str
    meaning: str = ""
    last: bool = False


@dataclass(frozen=True)
class Figure:
    """A panel.

    Attributes:
        title: short; also the panel's own where ``draw`` sets none.
        draw: draws on the axes that it is given.
        definition: what is shown, with its formula; the page has it as caption and on hover.
        projection: of the axes, ``"3d"`` for surfaces.
        panels: rows and columns; where there is more than one, ``draw`` is given the list of axes.
        captions: of the single panels, row by row; they then stand on their own.
        measured: whether a page lays it out around what was drawn, which takes twice as long.
    """

    title: str
    draw: Callable[[Any], object]
    definition: str
    projection: str | None = None
    panels: tuple[int, int] = (1, 1)
    captions: tuple[str, ...] = ()
    measured: bool = True


@dataclass(frozen=True)
class Grid:
    """A table of named cells.

    Attributes:
        caption: above it.
        rows: cells by the name of their column.
        definitions: what columns mean, by name.
        first_to_go: columns that a narrow terminal leaves out, in order.
    """

    caption: str
    rows: tuple[Mapping[str, str], ...]
    definitions: Mapping[str, str] = field(default_factory=dict)
    first_to_go: tuple[str, ...] = ()


@dataclass(frozen=True)
class Section:
    """Everything that a result shows, in the order of reading.

    Attributes:
        title: of the section.
        verdict: what was found, in one sentence.
        quantities, figures, grids: see their classes.
        flags: what to beware of, in words.
        settings: label and value of what the run was asked for; a result's own are those of its ``meta`` where it names none.
        children: sections of the parts of a compound result.
        folded: whether a page shows it closed where it stands inside another; terminals leave it out.
        leads: what is read first, a row per checkpoint; heads a page on which no other grid does.
        cover: what ``plot`` draws, where it is not the first figure.
        brief: size and headline in a few words.
        footer: how its numbers are to be read; stands at the end of a page.
    """

    title: str
    verdict: str
    quantities: tuple[Quantity, ...] = ()
    figures: tuple[Figure, ...] = ()
    grids: tuple[Grid, ...] = ()
    flags: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] | None = None
    children: tuple[Section, ...] = ()
    folded: bool = False
    leads: Grid | None = None
    cover: Figure | None = None
    brief: str = ""
    footer: str = ""


@singledispatch
def section_of(result: Any, **beside: Any) -> Section:
    """Section of a result, by a function that the module of its view registers.

    That is ``view`` beside the ``result`` that holds the class, and ``NAME_view`` beside another ``NAME``.
    """
    for cls in type(result).__mro__:  # also of a user's subclass
        package, _, name = cls.__module__.rpartition(".")
        view = f"{package}.view" if name == "result" else f"{package}.{name}_view"
        if package.startswith("fastscape.") and importlib.util.find_spec(view) is not None:
            importlib.import_module(view)
    found = section_of.dispatch(type(result))
    if found is section_of.dispatch(object):
        raise TypeError(f"there is no view of a {type(result).__name__}: no module registered one")
    shown: Section = found(result, **beside)
    return shown


def led(lead: str, table: RenderableType) -> RenderableType:
    """A table with what must be read before it."""
    return Group(literally(f"! {lead}", style="bold yellow"), table) if lead else table


def section_table(section: Section) -> RenderableType:
    """A section on a terminal: tables, then verdict and flags; children follow, but for those that a page folds away."""
    parts: list[RenderableType] = []
    if section.quantities:
        table = Table(title=literally(section.title), title_justify="left", title_style="bold")
        for column in ("quantity", "value [95 %]", "meaning"):
            table.add_column(column)
        for quantity in section.quantities:
            cells = map(literally, (quantity.label, quantity.value, quantity.meaning))
            table.add_row(*cells, end_section=quantity.last)
        parts.append(table)
    parts += [
        RowsByWidth(grid.caption, [dict(row) for row in grid.rows], grid.first_to_go) for grid in section.grids if grid.rows
    ]
    parts.append(literally(section.verdict, style="bold"))
    parts += [literally(f"! {flag}", style="yellow") for flag in section.flags]
    for child in section.children:
        if child.folded:
            continue
        parts += [literally(""), section_table(child)]
    return Group(*parts)
