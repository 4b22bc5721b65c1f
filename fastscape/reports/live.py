"""Live progress on stderr: silent when it is not a terminal."""

from __future__ import annotations

import math
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fastscape._checks import counted
from fastscape.numerics.estimate import Estimate
from fastscape.reports.numbers import interval, readable


class LiveProgress:
    """A progress line with checkpoint, directions, current M_tau and remaining time; a context manager.

    Args:
        quiet: show nothing even on a terminal.
        console: where to draw; default stderr.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        terminal = console or Console(stderr=True)
        self._bar = Progress(
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

    def show(self, checkpoint: str, directions: int, fraction: float, remaining: float, m_tau: Estimate | None) -> None:
        """Draw the state of a multifractal probe."""
        found = f" · M_tau {interval(m_tau)}" if m_tau is not None else ""
        self.draw(f"{checkpoint} · {counted(directions, 'direction')}{found}", fraction, remaining)

    def draw(self, description: str, fraction: float, remaining: float) -> None:
        """Draw what is being done, the share done, and the seconds that are left (inf: unknown)."""
        left = "" if math.isinf(remaining) else f"about {max(0.0, remaining):.0f} s left"
        self._bar.update(self._task, completed=fraction, description=readable(description), left=left)
