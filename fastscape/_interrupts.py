"""Ctrl-C: it leaves nothing switched that a block switches, and ends a run on the command line with what is known.

Importing this module is the first thing the package does; where the process is the command, Ctrl-C is quiet while torch loads.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

EXIT_INTERRUPTED = 130
_FINISHING = b"\nfinishing: analysing and saving what is known; Ctrl-C again stops at once\n"
_RAISING = ("SIGALRM", "SIGUSR1", "SIGUSR2", "SIGHUP", "SIGTERM", "SIGINT")  # handlers of which raise exceptions; Ctrl-C last
_WAITING = tuple(getattr(signal, name) for name in _RAISING if hasattr(signal, name))


class HeldSignals:
    """Signals that arrive in the main thread inside the block are delivered at its end, those of inner blocks at the outermost.

    Handlers run in the main thread alone: in another one the block does nothing. What is inside must be short.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._handlers: dict[int, Any] = {}
        self._came: list[int] = []

    def __enter__(self) -> None:
        if threading.get_ident() == threading.main_thread().ident:
            if not self._depth:
                self._hold()
            self._depth += 1

    def __exit__(self, *_error: object) -> None:
        if threading.get_ident() == threading.main_thread().ident:
            self._depth -= 1
            if not self._depth:
                self._release()

    def _hold(self) -> None:
        handlers = {number: handler for number in _WAITING if callable(handler := signal.getsignal(number))}
        try:
            for number in reversed(handlers):
                signal.signal(number, self._receive)
        except BaseException:  # of a signal that arrives in between
            self._give_back(handlers)
            raise
        self._handlers = handlers

    def _release(self) -> None:
        handlers, self._handlers = self._handlers, {}
        try:
            self._give_back(handlers)
        finally:
            self._deliver()

    def _give_back(self, handlers: dict[int, Any]) -> None:
        try:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        except BaseException:  # of a signal whose handler is back
            for number, handler in handlers.items():
                signal.signal(number, handler)
            raise

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        self._came.append(number)

    def _deliver(self) -> None:
        if self._came:
            try:
                signal.raise_signal(self._came.pop(0))
            finally:
                self._deliver()


held_signals = HeldSignals()


class Restoring:
    """A block that switches something outside of itself, and back whatever interrupts its beginning, inside or end.

    Signals wait while it switches. One that comes between the two is an exception of the block; one in the instant before
    ``__exit__`` begins is beyond the reach of Python, and switched back as the block is destroyed.
    """

    _steps: list[Callable[[], object]] | None = None

    def __enter__(self) -> None:
        self._steps = []
        try:
            begun = False
            while not begun:
                self._wait()
                with held_signals:
                    begun = self._begin(self._steps.append)
        except BaseException:
            self._end()
            raise

    def __exit__(
        self, _kind: type[BaseException] | None = None, _error: BaseException | None = None, trace: TracebackType | None = None
    ) -> None:
        try:
            with held_signals:
                close_suspended(trace)
            self._end()
        except BaseException:
            self._end()
            raise

    def __del__(self) -> None:
        if self._steps:
            self._end()

    def _wait(self) -> None:
        """Wait for what :meth:`_begin` needs, while signals are delivered."""

    def _begin(self, later: Callable[[Callable[[], object]], None]) -> bool:
        """Switch, and hand each step that switches back to ``later`` before; ``False`` to be asked again after a wait."""
        raise NotImplementedError

    def _end(self) -> None:
        with held_signals:
            undo(self._steps or [])


class left_on_failure:  # noqa: N801 - a block, as contextlib's
    """Enter another block, and leave it only where what is inside fails: for a class that is a block around its own."""

    def __init__(self, block: Restoring) -> None:
        self._block = block

    def __enter__(self) -> None:
        self._block.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self._block.__exit__(kind, error, trace)


def close_suspended(trace: TracebackType | None) -> None:
    """End the blocks that Ctrl-C cut off in their entry or exit below a frame, the innermost first.

    Those of torch by ``contextlib`` (of function modes, of ``torch.func``), and our own, would end only as the traceback is
    destroyed, after the blocks around them.
    """
    frames = []
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
        frames.append(trace.tb_frame)
    for frame in reversed(frames):
        block: Any = frame.f_locals.get("self")
        if isinstance(block, Restoring):
            block._end()
        elif frame.f_code.co_filename == contextlib.__file__ and getattr(getattr(block, "gen", None), "gi_suspended", False):
            block.gen.close()


def undo(steps: list[Callable[[], object]]) -> None:
    """Take steps off a list and run them, the last one first, each also where another raises."""
    while steps:
        try:
            steps.pop()()
        finally:
            undo(steps)


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
        self._previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for number in self._previous:
                signal.signal(number, self._receive)
        except BaseException:
            self.__exit__()
            raise
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
