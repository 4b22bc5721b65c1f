"""An append-only record of JSON lines that survives whatever ends the process."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT = 1  # of the records that are written; larger ones are a newer version's
_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Record:
    """Lines of JSON objects in a file, each written whole by one process, behind a first line that names what they are.

    The first line is ``{kind: {"format": 1, ...}}``; a file without it is another program's, and never written to. With
    ``checksums`` every later line is ``crc32hex SPACE json``, so that one changed on disk is known. What cannot be written stays
    in memory and is tried again with the next line. NaN and inf are the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``,
    so that every line is strict JSON.

    Args:
        path: the file, which is made where it is missing or empty and otherwise continued; ``None`` to keep nothing.
        kind: of the lines.
        head: what the first line of a new file says beside its format.
        checksums: whether lines begin with one.

    Attributes:
        continued: whether the file has a first line already; that of a new one is written with the next, or by :meth:`write`.
        head: what it says.
        lines: of the file as it was found, without its first and what is torn or changed.
        torn: lines that were left out for that.
        error: why the last write failed, or ``None``.

    Raises:
        ValueError: a path that is a directory, or a file that is no record of this kind or one of a newer version.
    """

    def __init__(self, path: str | Path | None, kind: str, head: Mapping[str, Any], *, checksums: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self.error: OSError | None = None
        self._checksums = checksums
        self._ended = True  # whether the file ends with a whole line
        found = Lines({}, [], 0)
        if self.path is not None and self.path.exists():
            found = read_record(self.path, kind, checksums=checksums)
            self._ended = found.ended
        self.continued, self.lines, self.torn = bool(found.head), found.lines, found.torn
        self.head = found.head or {"format": FORMAT, **head}
        self._pending = [] if self.continued else [_line({kind: self.head})]

    def append(self, line: Mapping[str, Any], *, sync: bool = True) -> None:
        """Write a line, and synchronise the file to disk; a failure is kept in :attr:`error` and raises nothing.

        A line that is not synchronised outlives the process, but not the machine; the next that is takes it to disk.
        """
        if self.path is not None:
            self._pending.append(_line(line, checksum=self._checksums))
            self.write(sync=sync)

    def write(self, *, sync: bool = True) -> None:
        """Write what is not written yet."""
        if self.path is None or not self._pending:
            return
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                while self._pending:
                    self._write(descriptor, self._pending[0])
                    del self._pending[0]
                if sync:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.error = error
        else:
            self.error = None

    def _write(self, descriptor: int, line: bytes) -> None:
        """Write a line in one call; of one that does not fit nothing stays, or it is ended before the next."""
        content = line if self._ended else b"\n" + line
        size = os.fstat(descriptor).st_size
        try:
            written = os.write(descriptor, content)
            while written < len(content):
                written += os.write(descriptor, content[written:])
        except BaseException:
            try:
                os.ftruncate(descriptor, size)
            except OSError:  # a device
                self._ended = False
            raise
        self._ended = True

    @property
    def unwritten(self) -> int:
        """Lines that are in memory only because they could not be written."""
        return len(self._pending) if self.error is not None else 0


class Lines(NamedTuple):
    """Content of a record.

    Attributes:
        head: what its first line says; empty where the file is.
        lines: the others.
        torn: lines that are left out: torn by a crash or a full disk, or changed.
        ended: whether the file ends with a whole line.
    """

    head: dict[str, Any]
    lines: list[dict[str, Any]]
    torn: int
    ended: bool = True


def read_record(path: str | Path, kind: str, *, checksums: bool = False) -> Lines:
    """The lines of a record; what is torn or changed is left out, and counted.

    Raises:
        ValueError: a file that is no record of this kind, or one of a newer version.
    """
    if Path(path).is_dir():
        raise ValueError(f"path must be a file of JSON lines, got the directory {str(path)!r}")
    if not Path(path).is_file():  # a device has no content to go on from
        return Lines({}, [], 0)
    content = Path(path).read_bytes()
    raw = [line for line in content.split(b"\n") if line.strip()]
    begin = json.dumps({kind: {"format": 0}})[: -len("0}}")].encode()
    torn = 0
    while raw and _object(raw[0]) is None and (begin.startswith(raw[0]) or raw[0].startswith(begin)):
        torn += 1  # a first line that was cut off; the next process wrote it again
        del raw[0]
    ended = not content or content.endswith(b"\n")
    if not raw:
        return Lines({}, [], torn, ended)
    head = _checked_head(path, kind, _object(raw[0]))
    found = [_object(line, checksum=checksums) for line in raw[1:]]
    lines = [decoded(line) for line in found if line is not None]
    return Lines(head, lines, torn + len(found) - len(lines), ended)


def _checked_head(path: str | Path, kind: str, first: dict[str, Any] | None) -> dict[str, Any]:
    head = (first or {}).get(kind)
    number = head.get("format") if isinstance(head, dict) else None
    if not isinstance(head, dict) or type(number) is not int or number < 1:
        raise ValueError(
            f'path must be a record of fastscape, whose first line begins with {{"{kind}": {{"format": ...}}}}, or a new file, '
            f"got {str(path)!r}, which is another; choose another path"
        )
    if number > FORMAT:
        raise ValueError(
            f"path {str(path)!r} was written by a newer fastscape: its format is {number}, this version reads up to {FORMAT}; "
            "upgrade with pip install --upgrade fastscape-probes, or choose another path"
        )
    content: dict[str, Any] = decoded(head)
    return content


def _line(value: Mapping[str, Any], *, checksum: bool = False) -> bytes:
    content = json.dumps(encoded(value), allow_nan=False).encode()
    return (b"%08x " % zlib.crc32(content) if checksum else b"") + content + b"\n"


def _object(line: bytes, *, checksum: bool = False) -> dict[str, Any] | None:
    """The JSON object of a line, or ``None`` for one that is torn, changed or of something else."""
    if checksum:
        mark, _, line = line.partition(b" ")
        if mark != b"%08x" % zlib.crc32(line):
            return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def encoded(value: Any) -> Any:
    """JSON data with NaN and inf as strings, and Python's numbers for NumPy's."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(key): encoded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encoded(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def decoded(value: Any) -> Any:
    """What :func:`encoded` was given."""
    if isinstance(value, dict):
        return {key: decoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decoded(item) for item in value]
    return _NUMBERS.get(value, value) if isinstance(value, str) else value
