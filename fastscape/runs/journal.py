"""Journal of a long run: a folder with a manifest and every unit that is done, which outlives whatever ends the processes."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastscape._checks import counted
from fastscape._clock import now
from fastscape.runs.folder import RunFolder
from fastscape.runs.plan import Plan
from fastscape.runs.units import Evaluate, Unit, Value, decode

KIND = "fastscape units"


class Journal(RunFolder):
    """A folder that a run writes and a later one goes on from.

    ``manifest.json`` says what is measured; each process writes the units that it evaluates to a file of its own, one
    checksummed line each, before anybody hears of them. What is torn or changed is left out and evaluated again. A process that
    is killed loses the unit that it was at; a machine that fails, at most those of the last second too. Every line carries the
    label of the plan that its unit follows: two runs that chose otherwise, on machines that see no lock of each other, are
    never put together.

    Args:
        folder: made where it is missing.

    Attributes:
        manifest: as it was found; empty in a new folder.
        done: bytes of the units that were found.
        torn: lines that were left out.
        strange: results that follow another plan, found by :meth:`follow`.
        doubled: units of one plan that two machines rounded differently.
        damaged: files beside the manifest that cannot be read, counted by who reads them.
        seconds: that the units took which were found.

    Raises:
        TypeError: a folder that is no path.
        ValueError: a folder of something else, of a newer version, or with two results of one unit that do not say which plan
            they follow, as earlier versions wrote them.
    """

    kind, stem = KIND, "units"

    def __init__(self, folder: str | Path) -> None:
        self.done: dict[Unit, bytes] = {}
        self.strange = self.doubled = self.damaged = 0
        self.seconds = 0.0
        self._held: dict[int, list[tuple[Unit, bytes, float, int | None]]] = {}
        self._found: dict[Unit, dict[str, tuple[bytes, int | None]]] = {}  # by label
        self._plan: Callable[[Unit], Plan | None] = lambda _unit: None
        super().__init__(folder)
        self.done = {unit: next(iter(found.values()))[0] for unit, found in self._found.items()}

    def follow(self, plan: Callable[[Unit], Plan | None], fits: Callable[[Unit, Value], bool]) -> None:
        """Take the units that follow the plans of this run, and write their labels from now on.

        Those of other plans, and those that are no results or do not fit, are left to be evaluated again.

        Args:
            plan: of a unit's checkpoint; ``None`` where there is none yet.
            fits: whether a result is of the run.
        """
        self._plan, self.strange = plan, 0
        for unit, found in sorted(self._found.items()):
            self.done.pop(unit, None)
            label = self._label(unit)
            self.strange += sum(other not in ("", label) for other in found)
            data = next((found[name][0] for name in (label, "") if name in found), None)
            with suppress(ValueError):
                if data is not None and fits(unit, decode(data)):
                    self.done[unit] = data

    def _label(self, unit: Unit) -> str:
        plan = self._plan(unit)
        return "" if plan is None else plan.label(unit.group)

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
        label = self._label(unit)
        line = {"key": list(unit.key), "data": base64.b64encode(data).decode(), "seconds": seconds, "lanes": lanes}
        line |= {"way": label} if label else {}
        self._append(line, seconds)

    def hold(self, point: int) -> None:
        """Keep the units of a checkpoint in memory: without the plan that they follow nobody could go on with them."""
        self._held.setdefault(point, [])

    def release(self, point: int) -> None:
        """Write the units of a checkpoint after all, now that its plan is written."""
        for line in self._held.pop(point, []):
            self.append(*line)

    @property
    def left_out(self) -> list[str]:
        """What was found and not taken, in words."""
        return [
            f"left out of the journal: {counted(number, noun)}{words}"
            for number, noun, words in (
                (self.torn, "torn or changed line", ""),
                (self.strange, "result", " of another plan, such as that of a second machine that ran beside"),
                (self.doubled, "result", " of a machine that rounds otherwise than the one whose results were taken"),
                (self.damaged, "damaged file", " of what was chosen at a checkpoint"),
            )
            if number
        ]

    def _take(self, line: Mapping[str, Any]) -> None:
        """Add the unit of a line; of two under one label, the one that was evaluated more at a time."""
        try:
            unit, data, width = Unit(*line["key"]), base64.b64decode(line["data"], validate=True), line["lanes"]
            found, label = self._found.setdefault(unit, {}), str(line.get("way", ""))
        except (KeyError, TypeError, ValueError, binascii.Error):
            self.torn += 1
            return
        if label in found and width == found[label][1] and data != found[label][0]:
            if not label:
                raise ValueError(
                    f"resume: the journal in {str(self.folder)!r} has two results of unit {unit.key}, of two runs; "
                    "remove one of them"
                )
            self.doubled += 1
        if label not in found or _wider(width, found[label][1]):
            found[label] = data, width
            self.seconds += line.get("seconds", 0.0)


def _wider(width: int | None, than: int | None) -> bool:
    return than is not None and (width is None or width > than)
