"""Ctrl-C on the command line: quiet while torch loads; then it ends a run with what is known, and a second one at once.

Importing this module is the first thing the package does, and arms the quiet part where the process is the command.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

EXIT_INTERRUPTED = 130
_FINISHING = b"\nfinishing: analysing and saving what is known; Ctrl-C again stops at once\n"


class Interrupts:
    """SIGINT and SIGTERM of a run, as a context manager.

    The first says on stderr that the run is being finished. The first two raise KeyboardInterrupt while work is done, the
    second alone in :meth:`second_stops`; after :meth:`hold`, while files are written, they are only counted. A third does
    nothing, because what is then left takes milliseconds.

    Args:
        quiet: say nothing, where another process does.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._count, self._raising = 0, 1.0  # signals so far, and the number of the first that raises

    def __enter__(self) -> Interrupts:
        self._previous = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        """Let what follows end."""
        self._raising = math.inf

    @contextlib.contextmanager
    def second_stops(self) -> Iterator[None]:
        """A block that the second signal ends with KeyboardInterrupt, also when it came before."""
        self._raising = 2
        try:
            if self._count > 1:
                raise KeyboardInterrupt
            yield
        finally:
            self._raising = math.inf

    def _receive(self, _number: int, _frame: FrameType | None) -> None:
        self._count += 1
        if self._count == 1 and not self._quiet:
            with contextlib.suppress(OSError, ValueError, AttributeError):  # not print, which may be what was interrupted
                os.write(sys.stderr.fileno(), _FINISHING)
        if self._raising <= self._count < 3:
            raise KeyboardInterrupt


@contextlib.contextmanager
def termination() -> Iterator[None]:
    """A block in which SIGTERM is Ctrl-C, as launchers of many processes end them, where nobody else has a use for it."""
    try:
        taken = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if taken:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread
        taken = False
    try:
        yield
    finally:
        if taken:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(EXIT_INTERRUPTED)  # an exception would show a traceback, or become the ImportError of a half-loaded library


def _module(arguments: list[str]) -> str:
    """What ``python -m`` runs, after other options of Python; a later ``-m`` is of the module, such as torch.distributed.run."""
    waiting = iter(arguments)
    for argument in waiting:
        if argument.startswith("--"):
            continue
        if not argument.startswith("-"):
            return ""
        for place, letter in enumerate(argument[1:], start=1):
            if letter in "mcWX":  # which take what follows
                value = argument[place + 1 :] or next(waiting, "")
                if letter in "mc":
                    return value if letter == "m" else ""
                break
    return ""


def _is_command() -> bool:
    """Whether the process is ``fastscape`` or ``python -m fastscape``, whose imports take seconds."""
    started = sys.argv[0] if sys.argv else ""
    if started == "-m":  # as long as Python looks for the module
        return _module(sys.orig_argv[1:]).split(".")[0] == "fastscape"
    return Path(started).stem == "fastscape"


if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    with contextlib.suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGINT, _leave)
