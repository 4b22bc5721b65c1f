"""Live progress on stderr: silent when it is not a terminal."""

from __future__ import annotations

import math
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from fastscape._checks import counted
from fastscape.reports.numbers import interval, number, readable
from fastscape.runs.progress import Progress


class LiveProgress:
    """A progress line with checkpoint, units done, what is known and remaining time; a context manager.

    Args:
        quiet: show nothing even on a terminal.
        console: where to draw; default stderr.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        terminal = console or Console(stderr=True)
        self._bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=terminal,
            transient=True,
            disable=quiet or not terminal.is_terminal,
        )
        self._task = self._bar.add_task("preparing", total=1.0, left="")

    def __enter__(self) -> LiveProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, state: Progress) -> None:
        """Draw the state of any probe."""
        left = f"about {max(0.0, state.remaining):.0f} s left" if math.isfinite(state.remaining) else ""
        self._bar.update(self._task, completed=state.fraction, description=readable(described(state)), left=left)


def described(state: Progress) -> str:
    """``step10 · 12 of 64 directions · M_tau 0.11 [0.08, 0.14]``."""
    words = [state.name, state.stage]
    if state.unit:
        words.append(
            counted(state.done, state.unit) if state.total is None else f"{state.done} of {counted(state.total, state.unit)}"
        )
    if state.m_tau is not None:
        words.append(f"M_tau {interval(state.m_tau)}")
    if math.isfinite(state.lambda_max):
        words.append(f"lambda_max {number(state.lambda_max, 4)}")
    return " · ".join(filter(None, words))
