"""A file that keeps a second process off what one process writes."""

from __future__ import annotations

import json
import os
import platform
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class InUseError(OSError):
    """A file or folder that another process, or another object of this one, writes."""


class Lock:
    """A lock file with the process's id, made exclusively; one that a dead process has left is taken over.

    It lasts until it is released, dropped, or the process ends.

    Args:
        path: of the lock file.
        guarded: what it guards, for the message, such as ``"--out run"``.
        remedy: what to do where it is in use, for the message.
        strict: whether this process, and one of another machine, of which nothing can be known, keep it from being taken too.

    Raises:
        InUseError: a living process holds it, or one of another machine, of which nothing can be known.
        OSError: the file cannot be made.
    """

    def __init__(self, path: str | Path, guarded: str, remedy: str, *, strict: bool = True) -> None:
        self.path, self._strict = Path(path), strict
        while not self._taken(guarded, remedy):
            pass
        self._release = weakref.finalize(self, _remove, self.path, os.getpid())

    def _taken(self, guarded: str, remedy: str) -> bool:
        """Take the lock; false where its file was removed meanwhile."""
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            try:
                descriptor = os.open(self.path, os.O_RDWR)
            except FileNotFoundError:
                return False
        with _alone(descriptor):
            if not _is_at(descriptor, self.path):
                return False
            holder = _holder(os.read(descriptor, 4096))
            if holder is not None and _alive(holder) and (self._strict or _beside(holder)):
                raise InUseError(
                    f"{guarded} is in use by {_words(holder)} (lock file {self.path}); {remedy}{_elsewhere(holder, self.path)}"
                )
            try:
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.write(descriptor, json.dumps(_own()).encode())
            except OSError as error:
                error.filename = str(self.path)
                self.path.unlink(missing_ok=True)
                raise
        return True

    def release(self) -> None:
        """Remove the file."""
        self._release()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


@contextmanager
def _alone(descriptor: int) -> Iterator[None]:
    """No other process takes the same lock meanwhile; closes the file."""
    try:
        if fcntl is not None:
            with suppress(OSError):  # a network file system without it
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _own() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": platform.node(), "started": _started(os.getpid())}


def _started(pid: int) -> float | None:
    """When a process began, which tells two processes of one id apart; ``None`` where there is none."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return -1.0


def _holder(content: bytes) -> dict[str, Any] | None:
    """What the lock file says; ``None`` where its process died while it wrote it."""
    try:
        found = json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) and type(found.get("pid")) is int else None


def _alive(holder: dict[str, Any]) -> bool:
    if holder.get("host") != platform.node():
        return True
    started, known = _started(holder["pid"]), holder.get("started")
    if started is None:
        return False
    return not isinstance(known, float) or -1.0 in (started, known) or abs(started - known) < 1.0  # seconds, of a clock set anew


def _beside(holder: dict[str, Any]) -> bool:
    return holder.get("host") == platform.node() and holder["pid"] != os.getpid()


def _elsewhere(holder: dict[str, Any], path: Path) -> str:
    """What to do about a process of another machine, of which nobody here knows whether it lives."""
    here = holder.get("host") == platform.node()
    return "" if here else f"; where that process has ended (it ran on another machine), delete {path.name}"


def _words(holder: dict[str, Any]) -> str:
    if holder.get("host") != platform.node():
        return f"process {holder['pid']} of {holder.get('host')}"
    return "this process" if holder["pid"] == os.getpid() else f"process {holder['pid']}"


def _remove(path: Path, pid: int) -> None:
    """Remove the own lock file; a child process has copies of its parent's objects, whose locks are not its own."""
    if os.getpid() == pid:
        with suppress(OSError):
            holder = _holder(path.read_bytes())
            if holder is not None and holder["pid"] == pid:
                path.unlink()
