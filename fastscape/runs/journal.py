"""Journal of a long run: a folder with a manifest and every unit that is done, which outlives whatever ends the processes."""

from __future__ import annotations

import base64
import binascii
import json
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastscape._checks import counted, shown
from fastscape._clock import now
from fastscape._files import write_text
from fastscape._lock import Lock
from fastscape.runs.plan import WORDS, Plan
from fastscape.runs.record import Record, decoded, encoded, read_record
from fastscape.runs.units import Evaluate, Unit, Value, decode

FORMAT = 1  # of the manifests that are written; larger ones are a newer version's
KIND = "fastscape units"
MANIFEST = "manifest.json"
_SYNC = 1.0  # seconds between two synchronisations to disk where units take less than _LONG: it takes 4 to 12 ms
_LONG = 0.5


def check_folder(folder: object) -> None:
    """Raise unless ``folder`` is a path, or ``None``; whether there is a journal is found out when it is opened."""
    if folder is not None and not isinstance(folder, (str, Path)):
        raise TypeError(f"resume must be the path of a folder, got {type(folder).__name__} {shown(folder)}")


class Journal:
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
        seconds: that the units took which were found.

    Raises:
        TypeError: a folder that is no path.
        ValueError: a folder of something else, of a newer version, or with two results of one unit that do not say which plan
            they follow, as earlier versions wrote them.
    """

    def __init__(self, folder: str | Path) -> None:
        check_folder(folder)
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = {}
        self.done: dict[Unit, bytes] = {}
        self.torn = self.strange = self.doubled = 0
        self.seconds = 0.0
        self._record: Record | None = None
        self._lock: Lock | None = None
        self._held: dict[int, list[tuple[Unit, bytes, float, int | None]]] = {}
        self._found: dict[Unit, dict[str, tuple[bytes, int | None]]] = {}  # by label
        self._plan: Callable[[Unit], Plan | None] = lambda _unit: None
        self._synced, self._waiting = now(), False
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"resume must be a folder, got the file {str(folder)!r}")
        if (self.folder / MANIFEST).exists():
            self._read()
        elif self.folder.is_dir() and any(not path.name.startswith(".") for path in self.folder.iterdir()):
            raise ValueError(f"resume must be a new folder or the journal of a run, got {str(folder)!r}, which holds other files")

    def begin(self, manifest: Mapping[str, Any], compared: Sequence[str]) -> None:
        """Write the manifest of a new run, or refuse to go on with that of another.

        Args:
            manifest: of this run, as JSON data.
            compared: entries that must be those of the manifest that was found.

        Raises:
            ValueError: naming what differs.
            InUseError: another process of this machine writes to it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = Lock(  # a job that was moved to another machine goes on
            self.folder / ".lock",
            f"resume {str(self.folder)!r}",
            "wait until it has ended, or use another folder",
            strict=False,
        )
        fresh = encoded({"format": FORMAT, **manifest})
        if self.manifest:
            then, found = encoded(self.manifest), json.loads(json.dumps(fresh))
            different = _different({name: then.get(name) for name in compared}, {name: found[name] for name in compared})
            if different:
                words = ", ".join(dict.fromkeys(WORDS.get(name, name) for name in different))
                raise ValueError(f"resume: the journal in {str(self.folder)!r} is of other {words}; use another folder")
            return
        write_text(self.folder / MANIFEST, json.dumps(fresh, indent=1, allow_nan=False))
        self.manifest = decoded(json.loads(json.dumps(fresh)))

    def write(self, name: str, data: Mapping[str, Any]) -> None:
        """Write JSON data beside the manifest, unless it is there; :meth:`read` gives them back."""
        if self.read(name) is None:
            write_text(self.folder / f"{name}.json", json.dumps(encoded(data), indent=1, allow_nan=False))

    def read(self, name: str) -> Any:
        """What :meth:`write` wrote under a name; ``None`` without."""
        path = self.folder / f"{name}.json"
        return decoded(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

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
        if self._record is None:
            name = f"units.{socket.gethostname()}.{os.getpid()}.{os.urandom(6).hex()}.jsonl"
            head = {"host": socket.gethostname(), "process": os.getpid()}
            self._record = Record(self.folder / name, KIND, head, checksums=True)
        sync = seconds >= _LONG or now() - self._synced >= _SYNC
        label = self._label(unit)
        line = {"key": list(unit.key), "data": base64.b64encode(data).decode(), "seconds": seconds, "lanes": lanes}
        line |= {"way": label} if label else {}
        self._record.append(line, sync=sync)
        self._waiting = not sync
        if sync:
            self._synced = now()

    def hold(self, point: int) -> None:
        """Keep the units of a checkpoint in memory: without the plan that they follow nobody could go on with them."""
        self._held.setdefault(point, [])

    def release(self, point: int) -> None:
        """Write the units of a checkpoint after all, now that its plan is written."""
        for line in self._held.pop(point, []):
            self.append(*line)

    def close(self) -> None:
        """Take everything to disk, and let another process go on."""
        if self._lock is not None:
            self._lock.release()
        if self._record is None or self._record.path is None:
            return
        self._record.write()
        if self._waiting and self._record.path.exists():
            synchronise(self._record.path)
        self._waiting = False

    @property
    def left_out(self) -> list[str]:
        """What was found and not taken, in words."""
        return [
            f"left out of the journal: {counted(number, noun)}{words}"
            for number, noun, words in (
                (self.torn, "torn or changed line", ""),
                (self.strange, "result", " of another plan, such as that of a second machine that ran beside"),
                (self.doubled, "result", " of a machine that rounds otherwise than the one whose results were taken"),
            )
            if number
        ]

    @property
    def note(self) -> str:
        """What could not be written, in words; empty where all was."""
        lost = 0 if self._record is None else self._record.unwritten
        if not lost:
            return ""
        assert self._record is not None
        return f"the journal lacks what the disk refused: {lost} lines ({self._record.error})"

    # ------------------------------------------------------------------ reading

    def _read(self) -> None:
        path = self.folder / MANIFEST
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"resume: {str(path)!r} is damaged ({error}); use another folder") from error
        number = found.get("format") if isinstance(found, dict) else None
        if type(number) is not int or number < 1:
            raise ValueError(
                f"resume must be the journal of a run, got {str(self.folder)!r}, whose {MANIFEST} is of something else"
            )
        if number > FORMAT:
            raise ValueError(
                f"resume: the journal in {str(self.folder)!r} was written by a newer fastscape: its format is {number}, this "
                f"version reads up to {FORMAT}; upgrade with pip install --upgrade fastscape-probes"
            )
        self.manifest = decoded(found)
        for file in sorted(self.folder.glob("units.*.jsonl")):
            lines = read_record(file, KIND, checksums=True)
            self.torn += lines.torn
            for line in lines.lines:
                self._take(line)
        self.done = {unit: next(iter(found.values()))[0] for unit, found in self._found.items()}

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


def synchronise(path: Path) -> None:
    """Take a file or folder to disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # a folder, where those cannot be opened
        return
    try:
        os.fsync(descriptor)
    except OSError:  # what the disk refuses stays in the cache
        pass
    finally:
        os.close(descriptor)


def _wider(width: int | None, than: int | None) -> bool:
    return than is not None and (width is None or width > than)


def _different(then: Any, found: Any, name: str = "") -> list[str]:
    """Names of the innermost entries that differ."""
    if isinstance(then, dict) and isinstance(found, dict):
        names = dict.fromkeys((*found, *then))
        return [word for key in names for word in _different(then.get(key), found.get(key), key)]
    if isinstance(then, list) and isinstance(found, list) and len(then) == len(found) and any(isinstance(x, dict) for x in then):
        return [word for a, b in zip(then, found, strict=True) for word in _different(a, b, name)]
    return [] if then == found else [name]
