"""Journal of a long run: a folder with a manifest and every unit that is done, which outlives whatever ends the processes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastscape._clock import now
from fastscape.runs.folder import RunFolder
from fastscape.runs.units import Evaluate, Unit, Value, decode

KIND = "fastscape units"


class Journal(RunFolder):
    """A folder that a run writes and a later one goes on from.

    ``manifest.json`` says what is measured; each process writes the units that it evaluates to a file of its own, one
    checksummed line each, before anybody hears of them. What is torn or changed is left out and evaluated again. A process that
    is killed loses the unit that it was at; a machine that fails, at most those of the last second too.

    Args:
        folder: made where it is missing.

    Attributes:
        manifest: as it was found; empty in a new folder.
        done: bytes of the units that were found.
        torn: lines that were left out.
        seconds: that the units took which were found.

    Raises:
        TypeError: a folder that is no path.
        ValueError: a folder of something else, of a newer version, or with two results of one unit.
    """

    kind, stem = KIND, "units"

    def __init__(self, folder: str | Path) -> None:
        self.done: dict[Unit, bytes] = {}
        self.seconds = 0.0
        self._lanes: dict[Unit, int | None] = {}
        self._held: dict[int, list[tuple[Unit, bytes, float, int | None]]] = {}
        super().__init__(folder)

    def keep(self, fits: Callable[[Unit, Value], bool]) -> None:
        """Leave the units that are no results, or do not fit, to be evaluated again."""
        for unit, data in sorted(self.done.items()):
            try:
                kept = fits(unit, decode(data))
            except ValueError:
                kept = False
            if not kept:
                del self.done[unit]

    def recording(self, evaluate: Evaluate, lanes: Callable[[], int | None] = lambda: None) -> Evaluate:
        """The same evaluation, which writes a unit before it gives its bytes and takes what is done from the journal.

        ``lanes``: directions that were evaluated at a time, where fewer fitted than the plan says.
        """

        def recorded(unit: Unit) -> bytes:
            if unit in self.done:
                return self.done[unit]
            start = now()
            data = evaluate(unit)
            self.append(unit, data, now() - start, lanes())
            return data

        return recorded

    def append(self, unit: Unit, data: bytes, seconds: float, lanes: int | None = None) -> None:
        """Write a unit; what the disk refuses is tried again with the next, and :attr:`note` says so.

        Args:
            unit, data: with its bytes.
            seconds: that it took.
            lanes: directions that were evaluated at a time, where fewer fitted than the plan says.
        """
        self.done[unit] = data
        if unit.point in self._held:
            self._held[unit.point].append((unit, data, seconds, lanes))
            return
        line = {"key": list(unit.key), "data": base64.b64encode(data).decode(), "seconds": seconds, "lanes": lanes}
        self._append(line, seconds)

    def hold(self, point: int) -> None:
        """Keep the units of a checkpoint in memory: without the plan that they follow nobody could go on with them."""
        self._held.setdefault(point, [])

    def release(self, point: int) -> None:
        """Write the units of a checkpoint after all, now that its plan is written."""
        for line in self._held.pop(point, []):
            self.append(*line)

    def _take(self, line: Mapping[str, Any]) -> None:
        """Add the unit of a line; of two, the one that was evaluated more at a time."""
        try:
            unit, data, width = Unit(*line["key"]), base64.b64decode(line["data"], validate=True), line["lanes"]
        except (KeyError, TypeError, ValueError, binascii.Error):
            self.torn += 1
            return
        lanes = self._lanes
        if unit in self.done and width == lanes[unit] and data != self.done[unit]:
            raise ValueError(
                f"resume: the journal in {str(self.folder)!r} has two results of unit {unit.key}, of two runs; remove one of them"
            )
        if unit not in self.done or _wider(width, lanes[unit]):
            self.done[unit], lanes[unit] = data, width
            self.seconds += line.get("seconds", 0.0)


def _wider(width: int | None, than: int | None) -> bool:
    return than is not None and (width is None or width > than)
