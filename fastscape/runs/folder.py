"""Folder of a long run: a manifest of what is measured, and lines in a file of each process, which outlive what ends them."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from fastscape._checks import shown
from fastscape._clock import now
from fastscape._files import synchronise, write_text
from fastscape._lock import Lock
from fastscape.runs.plan import WORDS
from fastscape.runs.record import Record, decoded, encoded, read_record

FORMAT = 1  # of the manifests that are written; larger ones are a newer version's
MANIFEST = "manifest.json"
_SYNC = 1.0  # seconds between two synchronisations to disk where units take less than _LONG: it takes 4 to 12 ms
_LONG = 0.5


def check_folder(folder: object) -> None:
    """Raise unless ``folder`` is a path, or ``None``; whether there is a journal is found out when it is opened."""
    if folder is not None and not isinstance(folder, (str, Path)):
        raise TypeError(f"resume must be the path of a folder, got {type(folder).__name__} {shown(folder)}")


class RunFolder:
    """A folder that a run writes and a later one goes on from: what all kinds of journals share.

    ``manifest.json`` says what is measured; each process writes what it has done to a file of its own, in checksummed lines.
    What is torn or changed is left out.

    Args:
        folder: made where it is missing.

    Attributes:
        manifest: as it was found; empty in a new folder.
        torn: lines that were left out.

    Raises:
        TypeError: a folder that is no path.
        ValueError: a folder of something else, or of a newer version.
    """

    kind, stem = "", ""  # of the lines, of the names of their files

    def __init__(self, folder: str | Path) -> None:
        check_folder(folder)
        self.folder = Path(folder)
        self.manifest: dict[str, Any] = {}
        self.torn = 0
        self._record: Record | None = None
        self._lock: Lock | None = None
        self._synced, self._waiting = now(), False
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            what = "file" if self.folder.exists() else "link to nothing"
            raise ValueError(f"resume must be a folder, got the {what} {str(folder)!r}")
        if (self.folder / MANIFEST).exists():
            self._read()
        elif self.folder.is_dir() and any(map(_is_foreign, self.folder.iterdir())):
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
                self.refuse(*(["kind"] if "kind" in different else different))
            return
        write_text(self.folder / MANIFEST, json.dumps(fresh, indent=1, allow_nan=False))
        self.manifest = decoded(json.loads(json.dumps(fresh)))

    def refuse(self, *different: str) -> NoReturn:
        """Raise the ValueError that names what this run has otherwise."""
        words = ", ".join(dict.fromkeys(WORDS.get(name, name) for name in different))
        raise ValueError(f"resume: the journal in {str(self.folder)!r} is of other {words}; use another folder")

    def write(self, name: str, data: Mapping[str, Any]) -> None:
        """Write JSON data beside the manifest, unless it is there; :meth:`read` gives them back."""
        if self.read(name) is None:
            write_text(self.folder / f"{name}.json", json.dumps(encoded(data), indent=1, allow_nan=False))

    def read(self, name: str) -> Any:
        """What :meth:`write` wrote under a name; ``None`` without."""
        path = self.folder / f"{name}.json"
        return decoded(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def close(self) -> None:
        """Take everything to disk, and let another process go on."""
        if self._lock is not None:
            self._lock.release()
        if self._record is None or self._record.path is None:
            return
        self._record.write()
        if self._waiting and self._record.path.exists():
            settle(self._record.path)
        self._waiting = False

    @property
    def note(self) -> str:
        """What could not be written, in words; empty where all was."""
        lost = 0 if self._record is None else self._record.unwritten
        if not lost:
            return ""
        assert self._record is not None
        return f"the journal lacks what the disk refused: {lost} lines ({self._record.error})"

    # ------------------------------------------------------------------ for each kind

    def _take(self, line: Mapping[str, Any]) -> None:
        """Take a line that was found."""
        raise NotImplementedError

    def _due(self, seconds: float) -> bool:
        """Whether what took so long is to be synchronised to disk at once."""
        due = seconds >= _LONG or now() - self._synced >= _SYNC
        self._waiting = not due
        if due:
            self._synced = now()
        return due

    def _append(self, line: Mapping[str, Any], seconds: float) -> None:
        """Write a line of what took so long; what the disk refuses is tried again with the next, and :attr:`note` says so."""
        if self._record is None:
            name = f"{self.stem}.{socket.gethostname()}.{os.getpid()}.{os.urandom(6).hex()}.jsonl"
            head = {"host": socket.gethostname(), "process": os.getpid()}
            self._record = Record(self.folder / name, self.kind, head, checksums=True)
        self._record.append(line, sync=self._due(seconds))

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
        for file in sorted(self.folder.glob(f"{self.stem}.*.jsonl")):
            lines = read_record(file, self.kind, checksums=True)
            self.torn += lines.torn
            for line in lines.lines:
                self._take(line)


def _is_foreign(path: Path) -> bool:
    """Whether what is in a folder is neither hidden nor itself a folder for a journal, begun or not."""
    if path.name.startswith("."):
        return False
    return not path.is_dir() or not ((path / MANIFEST).is_file() or all(own.name.startswith(".") for own in path.iterdir()))


def settle(path: Path) -> None:
    """Take a file to disk; what the disk refuses stays in the cache."""
    with suppress(OSError):
        synchronise(path)


def _different(then: Any, found: Any, name: str = "") -> list[str]:
    """Names of the innermost entries that differ."""
    if isinstance(then, dict) and isinstance(found, dict):
        names = dict.fromkeys((*found, *then))
        return [word for key in names for word in _different(then.get(key), found.get(key), key)]
    if isinstance(then, list) and isinstance(found, list) and len(then) == len(found) and any(isinstance(x, dict) for x in then):
        return [word for a, b in zip(then, found, strict=True) for word in _different(a, b, name)]
    return [] if then == found else [name]
