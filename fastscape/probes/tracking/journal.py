"""An append-only record of JSON lines that survives whatever ends the process."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Record:
    """Lines of JSON objects in a file, each written whole; those that are flushed are synchronised to disk.

    What cannot be written stays in memory and is tried again with the next line. NaN and inf are the strings ``"NaN"``,
    ``"Infinity"`` and ``"-Infinity"``, so that every line is strict JSON.

    Args:
        path: the file, which is made where it is missing and otherwise continued; ``None`` to keep the lines in memory only.

    Attributes:
        lines: of the file as it was found, without a torn last one.
        error: why the last write failed, or ``None``.

    Raises:
        ValueError: a path that is a directory, or a file that holds something else.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.lines: list[dict[str, Any]] = []
        self.error: OSError | None = None
        self._pending: list[bytes] = []
        self._torn = False
        if self.path is None:
            return
        if self.path.is_dir():
            raise ValueError(f"path must be a file of JSON lines, got the directory {str(self.path)!r}")
        if self.path.is_file():
            self.lines = read_record(self.path)
            content = self.path.read_bytes()
            self._torn = bool(content) and not content.endswith(b"\n")

    def append(self, line: Mapping[str, Any], *, flush: bool = True) -> None:
        """Write a line, or keep it for the next one that is flushed; a failure is kept in :attr:`error` and raises nothing."""
        if self.path is None:
            return
        self._pending.append(json.dumps(_encoded(line), allow_nan=False).encode() + b"\n")
        if flush:
            self.flush()

    def flush(self) -> None:
        """Write what could not be written before."""
        if self.path is None or not self._pending:
            return
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                while self._pending:
                    content = (b"\n" if self._torn else b"") + self._pending[0]
                    self._torn = True  # until the whole line is there
                    _write(descriptor, content)
                    self._torn = False
                    del self._pending[0]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.error = error
        else:
            self.error = None

    @property
    def unwritten(self) -> int:
        """Lines that are in memory only because they could not be written."""
        return len(self._pending) if self.error is not None else 0


def read_record(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a record; what is torn by a crash or a full disk is left out.

    Raises:
        ValueError: a file of which no line is a JSON object.
    """
    content = Path(path).read_bytes()
    found: list[dict[str, Any]] = []
    torn = 0
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            torn += 1
            continue
        if isinstance(value, dict):
            found.append(_decoded(value))
        else:
            torn += 1
    if torn and not found and b"\n" in content:
        raise ValueError(f"path must be a record of JSON lines, got {str(path)!r}, of which no line is one; choose another file")
    return found


def _write(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def _encoded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _encoded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encoded(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _decoded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    return _NUMBERS.get(value, value) if isinstance(value, str) else value
