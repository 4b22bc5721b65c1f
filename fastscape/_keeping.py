"""Ctrl-C while a result is made: it ends the work at the next forward or product, and costs nothing that is known."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from fastscape._interrupts import HeldSignals

Arguments = ParamSpec("Arguments")
Found = TypeVar("Found")
_ENDING = tuple(getattr(signal, name) for name in ("SIGALRM", "SIGTERM", "SIGINT") if hasattr(signal, name))  # Ctrl-C last


class _Patience(HeldSignals):
    """A block in which the first Ctrl-C waits until it costs nothing, and a second one comes at once.

    It is delivered by :meth:`ask`, before what takes long, or within :meth:`at_once`; one that nobody asks for before the end of
    the outermost block, because the work is done, raises nothing: the result says that it came. What other signals do with the
    handler of Ctrl-C, such as SIGTERM under a launcher, is as Ctrl-C. Processes that torchrun started wait for each other, and
    none of them waits here.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen, self._raising = 0, False

    @property
    def waits(self) -> bool:
        """Whether a Ctrl-C has come that is not delivered yet."""
        return bool(self._came)

    def ask(self) -> None:
        """Deliver a Ctrl-C that has come."""
        if self._came and threading.get_ident() == threading.main_thread().ident:
            self._deliver()

    def at_once(self, work: Callable[[], Found]) -> Found:
        """What work gives in which Ctrl-C raises wherever it comes; its caller has what is known."""
        if not self._depth or threading.get_ident() != threading.main_thread().ident:
            return work()
        outer = self._raising
        try:
            self._raising = True
            self._deliver()
            return work()
        finally:
            self._raising = outer

    def _hold(self) -> None:
        own = signal.getsignal(signal.SIGINT)
        alike = (own, signal.default_int_handler)
        self._seen, self._raising, self._came = 0, False, []
        self._handlers = {}
        if not callable(own) or "TORCHELASTIC_RUN_ID" in os.environ:
            return
        self._handlers = {number: found for number in _ENDING if (found := signal.getsignal(number)) in alike}
        try:
            for number in reversed(self._handlers):
                signal.signal(number, self._receive)
        except BaseException:  # of a signal that arrives in between
            self._give_back(self._handlers)
            raise

    def _release(self) -> None:
        while self._came:
            with suppress(KeyboardInterrupt):
                self._deliver()
        self._give_back(self._handlers)

    def _receive(self, number: int, _frame: Any) -> None:
        self._seen += 1
        self._came.append(number)
        if self._raising or self._seen > 1:
            self._deliver()

    def _deliver(self) -> None:
        if self._came:
            number = self._came.pop(0)
            try:
                self._handlers[number](number, None)
            finally:
                self._deliver()


patience = _Patience()


def keeps_result(door: Callable[Arguments, Found]) -> Callable[Arguments, Found]:
    """Decorator of a function that ends with what is known: Ctrl-C while its result is made does not cost the result."""

    @functools.wraps(door)
    def keeping(*args: Arguments.args, **keywords: Arguments.kwargs) -> Found:
        with patience:
            found = door(*args, **keywords)
            return _interrupted(found) if patience.waits else found

    return keeping


def _interrupted(result: Any) -> Any:
    """The result of a run that Ctrl-C ended, which had nothing left to do."""
    if not dataclasses.is_dataclass(result) or isinstance(result, type):
        return result
    if hasattr(result, "stop_reason") and "stop_reason" in {field.name for field in dataclasses.fields(result)}:
        return dataclasses.replace(result, stop_reason="interrupted")
    meta = getattr(result, "meta", None)
    return result if meta is None else dataclasses.replace(result, meta=meta | {"stop_reason": "interrupted"})
