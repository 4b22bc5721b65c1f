"""The end of a budget, and Ctrl-C: asked before every forward and product of a thread, however deep in the work it lies."""

from __future__ import annotations

import threading
from collections.abc import Callable

from fastscape._interrupts import Restoring
from fastscape._keeping import patience


class Deadline(BaseException):
    """The time of a budget is over, or the next unit of work does not fit in it.

    No error of a model: as Ctrl-C, it passes through whatever goes on after those.
    """


class _Here(threading.local):
    """What tells this thread that its time is over, from the outermost block to the innermost."""

    limits: tuple[Callable[[], bool], ...] = ()
    shared = False


_here = _Here()


def check_deadline() -> None:
    """Raise :class:`Deadline` where the time of a block around this one is over, and what Ctrl-C raises where it has come.

    Called before what takes long and cannot be cut: one forward, one product. So a budget is overrun by at most that.
    """
    patience.ask()
    if not _here.shared and any(over() for over in _here.limits):
        raise Deadline


class limited(Restoring):  # noqa: N801 - a block, as contextlib's
    """A block in which :func:`check_deadline` raises once ``over`` is true."""

    def __init__(self, over: Callable[[], bool]) -> None:
        self._over = over

    def _begin(self, later: Callable[[Callable[[], object]], None]) -> bool:
        outer = _here.limits
        later(lambda: setattr(_here, "limits", outer))
        _here.limits = (*outer, self._over)
        return True


class shared_work(Restoring):  # noqa: N801 - a block, as contextlib's
    """A block of work that several processes share in step, of which none may leave the others: only its own loops ask."""

    def _begin(self, later: Callable[[Callable[[], object]], None]) -> bool:
        outer = _here.shared
        later(lambda: setattr(_here, "shared", outer))
        _here.shared = True
        return True
