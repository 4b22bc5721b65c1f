"""Rows of cells by the width of a terminal, and messages of several checkpoints gathered into one."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from fastscape.reports.numbers import readable

_FULL_WIDTH = 120  # columns from which a trajectory's table is whole, its cells wrapped if need be
_PROSE = 40  # characters of a cell that is no number
_VALUE = r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?"
_MORE = r"-?\d+(?:\.\d+)?"
_VALUES = re.compile(rf"{_VALUE}(?:\.\.{_MORE}|(?:, {_MORE})+)?(?!\w)")  # a number, a span of orders such as -1..2, or a list
_PLACE = "\0"
_NAMED = 2  # checkpoints that a flag names; of more it says how many they are


def shared_flags(points: Sequence[Any]) -> list[str]:
    """Every flag of results once, with the checkpoints that raise it; see :func:`merged`."""
    return merged([(point.name, flag) for point in points for flag in point.flags], len(points))


def merged(messages: Sequence[tuple[str, str]], total: int) -> list[str]:
    """Messages of several checkpoints, each once: of those that differ in numbers alone, one with the numbers' range.

    Args:
        messages: name of a checkpoint and what is said of it.
        total: checkpoints there are; one or two that share a message are named, more are counted.
    """
    groups: dict[str, list[tuple[str, list[str]]]] = {}
    for name, words in messages:
        pattern, parts = _parted(words)
        groups.setdefault(pattern, []).append((name, parts))
    lines = []
    for pattern, owners in groups.items():
        pieces = pattern.split(_PLACE)
        columns = list(zip(*(parts for _, parts in owners), strict=True))
        text = pieces[0] + "".join(_together(column) + piece for column, piece in zip(columns, pieces[1:], strict=True))
        lines.append(f"{_owners(list(dict.fromkeys(name for name, _ in owners)), total)}: {text}")
    return lines


def _parted(words: str) -> tuple[str, list[str]]:
    """A message with a mark in place of every number, list of numbers and span of orders, and what stood there."""
    parts: list[str] = []

    def cut(match: re.Match[str]) -> str:
        parts.append(match[0])
        return _PLACE

    return _VALUES.sub(cut, words), parts


def _together(parts: Sequence[str]) -> str:
    """Text at one place of several messages: the numbers' range, all numbers of lists, or every span of orders."""
    different = sorted(set(parts))
    if len(different) == 1:
        return different[0]
    if any(".." in part for part in parts):
        return " or ".join(different)
    if any(", " in part for part in parts):
        return ", ".join(sorted({item for part in parts for item in part.split(", ")}, key=_size))
    return f"{min(parts, key=_size)} .. {max(parts, key=_size)}"


def _size(text: str) -> float:
    return float(text.replace(",", ""))


def _owners(names: Sequence[str], total: int) -> str:
    if len(names) == total > 1:
        return "all checkpoints"
    return ", ".join(names) if len(names) <= _NAMED else f"in {len(names)} of {total} checkpoints"


def literally(text: str, style: str = "") -> Text:
    """Text that a terminal shows as it is: brackets are no markup, ``[n/a]`` is one, and control characters do nothing."""
    return Text(readable(text), style)


class RowsByWidth:
    """Rows of named cells; on less than 120 columns those of ``first_to_go`` that do not fit are left out, and named."""

    def __init__(self, title: str, rows: Sequence[dict[str, str]], first_to_go: Sequence[str]) -> None:
        self.title, self.rows, self.first_to_go = title, rows, first_to_go

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        out: list[str] = []
        if options.max_width < _FULL_WIDTH:
            roomy = options.update(width=10 * _FULL_WIDTH)
            while (
                len(out) < len(self.first_to_go) and console.measure(self._table(out), options=roomy).maximum > options.max_width
            ):
                out.append(self.first_to_go[len(out)])
        yield self._table(out)
        if out:
            yield literally(
                f"left out below {_FULL_WIDTH} columns: {', '.join(name for name in self.rows[0] if name in out)}", "dim"
            )

    def _table(self, left_out: Sequence[str]) -> Table:
        table = Table(title=literally(self.title), title_justify="left", title_style="bold")
        names = [name for name in self.rows[0] if name not in left_out]
        for index, name in enumerate(names):
            prose = any(len(row[name]) > _PROSE for row in self.rows)
            table.add_column(literally(name), justify="right" if index and not prose else "left", no_wrap=not index)
        for row in self.rows:
            table.add_row(*(literally(row[name]) for name in names))
        return table


def as_text(table: RenderableType, width: int = 140) -> str:
    """A table as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().rstrip()
