"""Time budgets: parse them, and decide whether one more unit of work fits."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from fastscape._clock import now
from fastscape._deadline import Deadline, limited

_LATE = ("torch._dynamo", "torch.fx.experimental.proxy_tensor", "torch._functorch.aot_autograd")
_NAMES = {
    1e-3: ("ms",),
    1.0: ("", "s", "sec", "second", "seconds"),
    60.0: ("m", "min", "minute", "minutes"),
    3600.0: ("h", "hour", "hours"),
}
_MARGIN = 1.25  # how much longer than foreseen a preparation may take
_UNITS = {name: seconds for seconds, names in _NAMES.items() for name in names}


class BudgetError(ValueError):
    """A budget that cannot hold one unit of work.

    Attributes:
        enough: seconds with which work could begin, where they are known.
    """

    def __init__(self, message: str, enough: float | None = None) -> None:
        super().__init__(message)
        self.enough = enough


def load_once() -> float:
    """Load what torch itself loads when a process first needs it, and return the seconds that this took.

    The first operation under a dispatch mode imports ``torch._dynamo``, in 1 to 4 seconds; the first trace, more.
    """
    start = now()
    for name in _LATE:
        importlib.import_module(name)
    return now() - start


def parse_seconds(budget: str | float) -> float:
    """Seconds of a budget: a number, or a string such as ``"60s"``, ``"5m"`` or ``"1.5h"``.

    Raises:
        ValueError: anything else, or not positive and finite.
    """
    match = re.fullmatch(r"\s*([0-9.eE+-]+)\s*([a-z]*)\s*", str(budget))
    try:
        seconds = float(match[1]) * _UNITS[match[2]] if match else math.nan
    except (KeyError, ValueError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"budget must be a positive time such as '60s', '5m' or '1h', got {budget!r}")
    return seconds


def time_text(seconds: float) -> str:
    """A budget of at least ``seconds``, as :func:`parse_seconds` reads it: ``"90s"``, ``"20m"``, ``"3h"``."""
    for size, unit in ((3600, "h"), (60, "m")):
        if seconds > 2 * size:
            return f"{math.ceil(seconds / size)}{unit}"
    return f"{max(1, math.ceil(seconds))}s"


class Budget:
    """A deadline that starts when it is made; without one, everything fits.

    What torch loads once in a process is loaded before the clock starts (:func:`load_once`).

    Units of work are admitted while they are expected to end before the deadline minus a reserve for what must
    follow, so a run overruns by at most the error of one unit's estimate.

    Args:
        budget: seconds or a string (see :func:`parse_seconds`); ``None`` for no deadline.
        spent: seconds used before (start-up).
        reserve: seconds needed at the very end (writing a report).
        clock: monotonic seconds; tests pass a simulated one.

    Attributes:
        known: whether work under it has something to return (see :meth:`opening`).
    """

    def __init__(
        self,
        budget: str | float | None,
        *,
        spent: float = 0.0,
        reserve: float = 0.0,
        clock: Callable[[], float] = now,
    ) -> None:
        self.seconds = math.inf if budget is None else parse_seconds(budget)
        self.reserve, self.known = reserve, False
        self._asked = 2  # times whether it is over, of which the first is let through
        self._clock = clock
        if self.limited:
            load_once()
        self._start = clock() - spent

    @property
    def limited(self) -> bool:
        """Whether there is a deadline."""
        return math.isfinite(self.seconds)

    @property
    def elapsed(self) -> float:
        """Seconds since the budget was made, and what was spent before."""
        return self._clock() - self._start

    @property
    def remaining(self) -> float:
        """Seconds of work left before the deadline and the final reserve; inf without a deadline."""
        return self.seconds - self.reserve - self.elapsed

    def least(self, unit: float, reserve: float = 0.0) -> float:
        """Seconds of a budget that would admit the unit at this point of a run."""
        return self.reserve + self.elapsed + unit + reserve

    def limiting(self, when: Callable[[], bool] = lambda: True) -> AbstractContextManager[None]:
        """A block in which every forward and product asks whether the time for work is over, ``when`` that is to end it."""
        return limited(lambda: when() and self._over()) if self.limited else nullcontext()

    def _over(self) -> bool:
        return self._asked > 1 and self.remaining < 0

    def part(self, reserve: float) -> Budget:
        """A budget of what is left but for ``reserve`` seconds, at least a millisecond."""
        left = max(self.remaining - reserve, 1e-3)
        return Budget(left, clock=self._clock) if self.limited else Budget(None)

    @contextmanager
    def opening(
        self, noun: str, needs: int, refused: Callable[[float], BudgetError] | None = None, *, begun: bool = False
    ) -> Iterator[None]:
        """A call with its set-up, which time may end until something is :attr:`known`; the first forward tells what one takes.

        Args:
            noun: what is known first.
            needs: forwards and products that it takes about, set-up included.
            refused: the refusal by the seconds of a forward, where the call has a better one.
            begun: whether something is known from an earlier run.

        Raises:
            BudgetError: time was over before.
        """
        began = 0.0
        self.known, self._asked = begun, 0

        def over() -> bool:
            nonlocal began
            self._asked += 1
            began = self.elapsed if self._asked == 1 else began
            return not self.known and self._over()

        with limited(over) if self.limited else nullcontext():
            try:
                yield
            except Deadline:
                forward = (self.elapsed - began) / max(1, self._asked - 1)
                raise (refused or (lambda seconds: self._too_short(noun, needs, seconds)))(forward) from None

    def _too_short(self, noun: str, needs: int, forward: float) -> BudgetError:
        enough = self.least(_MARGIN * max(0.0, needs * forward - self.elapsed))
        return BudgetError(
            f"budget must fit one {noun}, got {self.seconds:g} s; a forward takes about {forward:.2g} s, preparing it "
            f"several; a budget of {time_text(enough)} is enough to begin",
            enough,
        )

    def refusal(self, error: BudgetError, what: str, share: float, before: float) -> BudgetError:
        """The refusal of a part of this budget, such as a probe's, in terms of the whole; as it is where it names no budget.

        Args:
            error: of the part.
            what: the part, in words.
            share: of what is left after ``before`` seconds, which the part gets at least.
            before: seconds of this budget that are spent or reserved.
        """
        if error.enough is None:
            return error
        enough = before + error.enough / share
        return BudgetError(
            f"budget must leave {time_text(error.enough)} for {what}, which has {share:.0%} of what {before:.2g} s of start-up "
            f"and page leave, got {self.seconds:g} s; a budget of {time_text(enough)} is enough to begin",
            enough,
        )

    def admits(self, unit: float, reserve: float = 0.0) -> bool:
        """Whether a unit of ``unit`` seconds, and ``reserve`` seconds after it, end before the deadline."""
        return unit + reserve <= self.remaining
