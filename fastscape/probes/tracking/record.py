"""The record of a tracker on disk: points as they are made, and where to go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastscape._checks import counted
from fastscape._lock import Lock
from fastscape.probes.tracking.allowance import Allowance
from fastscape.probes.tracking.result import SkippedPoint, TrackPoint
from fastscape.probes.tracking.warnings_once import WarningsOnce
from fastscape.runs.record import Record

_KIND = "track"  # of the first line


class TrackRecord:
    """Lines of a tracker's record, and what an earlier process has written.

    Args:
        path: the file, or ``None`` to keep nothing.
        settings: what two runs must share to be one.

    Attributes:
        points, skipped: of this process and those before.
        training, spent: its account in seconds.
        resumed: whether there was one.

    Raises:
        ValueError: a path in no directory, a file that is no record, or that of another run (names what differs).
        InUseError: another tracker, of this process or another, writes the file.
    """

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]) -> None:
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"path must be in an existing directory, got {str(path)!r}")
        self._lock = None
        if path is not None and (Path(path).is_file() or not Path(path).exists()):  # a device has no lock beside it
            self._lock = Lock(f"{path}.lock", f"path {str(path)!r}", "finish() the other tracker, or choose another path")
        self.points: list[TrackPoint] = []
        self.skipped: dict[int, SkippedPoint] = {}
        self.training = self.spent = 0.0
        try:
            self._file = Record(path, _KIND, settings)
            self._read(settings)
        except BaseException:
            self._unlock()
            raise
        self.resumed = self._file.continued
        self._file.write()

    def _read(self, settings: Mapping[str, Any]) -> None:
        earlier = {"batch_norm": "running"} | self._file.head  # before records said it
        different = [name for name, value in settings.items() if earlier.get(name) != value]
        if different:
            raise ValueError(
                f"path must be a record of the same run, got {str(self._file.path)!r} with other {', '.join(different)}; choose "
                "another file, or the same settings"
            )
        try:
            for line in self._file.lines:
                self._take(line)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"path must be a whole record, got {str(self._file.path)!r} with another line ({error!r}); choose another"
            ) from error

    def _take(self, line: Mapping[str, Any]) -> None:
        found = _point(line["point"]) if "point" in line else SkippedPoint(**line["skipped"]) if "skipped" in line else None
        if isinstance(found, TrackPoint):
            self._add(found)
        elif found is not None:
            self.skipped[found.step] = found
        account = line.get("account")
        if account is not None:
            self.training, self.spent = account["training"], account["spent"]

    def _add(self, point: TrackPoint) -> None:
        """A step that was left out may come again in a later process."""
        self.points.append(point)
        self.skipped.pop(point.step, None)

    def point(self, point: TrackPoint, account: Allowance) -> None:
        """Write a point."""
        self._add(point)
        self._file.append({"point": dataclasses.asdict(point), "account": _account(account)})

    def skip(self, point: SkippedPoint) -> None:
        """Write that a step was not measured, synchronised with the next point: that takes as long as many training steps."""
        self.skipped[point.step] = point
        self._file.append({"skipped": dataclasses.asdict(point)}, sync=False)

    def end(self, step: int, account: Allowance) -> None:
        """Write that the run has ended, and let others have the file."""
        self._file.append({"end": {"step": step}, "account": _account(account)})
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def warn(self, warned: WarningsOnce) -> None:
        """Tell why the last line could not be written, where it could not."""
        if (error := self._file.error) is not None:
            warned.add("disk", f"the record cannot be written ({error}); training continues, the record is kept in memory")

    def notes(self) -> list[str]:
        """For the result: lines that could not be written."""
        unwritten = self._file.unwritten
        return [f"{counted(unwritten, 'line')} of the record could not be written: {self._file.error}"] if unwritten else []


def _account(account: Allowance) -> dict[str, float]:
    return {"training": account.training, "spent": account.spent}


def _point(fields: dict[str, Any]) -> TrackPoint:
    pairs = {name: (float(pair[0]), float(pair[1])) for name, pair in fields["intervals"].items()}
    return TrackPoint(**(fields | {"intervals": pairs, "notes": tuple(fields["notes"])}))
