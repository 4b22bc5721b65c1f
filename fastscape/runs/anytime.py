"""Units of work under a budget: what a deadline, Ctrl-C or an error leaves is a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from fastscape._clock import now
from fastscape.runs.budget import Budget, BudgetError, time_text

Unit = TypeVar("Unit")


class Anytime:
    """Does units one after the other while they fit, and remembers what ended it.

    Args:
        budget: the deadline.
        noun: of a unit, for messages.

    Attributes:
        reason: ``"complete"``, ``"deadline"``, ``"interrupted"`` or ``"failed: ..."``.
        error: what the last unit raised.
        done: number of units done.
    """

    def __init__(self, budget: Budget, noun: str) -> None:
        self.budget, self.noun = budget, noun
        self.reason, self.done = "complete", 0
        self.error: Exception | None = None

    def over(self, units: Iterable[Unit], work: Callable[[Unit], None], expected: float) -> None:
        """Do every unit, of ``expected`` seconds until one has been timed.

        Raises:
            BudgetError: no unit fits.
            Exception: the first unit's own; a later one's ends the work and is kept in ``error``.
        """
        waiting = iter(units)
        try:
            while True:
                start = now()
                if not self._admitted(expected):
                    return
                unit = next(waiting, None)
                if unit is None:
                    return
                work(unit)
                self.done += 1
                took = now() - start
                expected = min(took, 2 * expected) if self.done == 1 else took  # the first unit may have tried paths as well
        except KeyboardInterrupt:
            if not self.done:
                raise
            self.reason = "interrupted"
        except Exception as error:
            if not self.done or isinstance(error, BudgetError):
                raise
            self.reason, self.error = f"failed: {type(error).__name__}", error

    def _admitted(self, seconds: float) -> bool:
        if self.budget.admits(seconds):
            return True
        if not self.done:
            least = time_text(self.budget.least(seconds))
            raise BudgetError(
                f"budget must hold one {self.noun}, {seconds:.2g} s here, got {self.budget.seconds:g} s; use {least} or more"
            )
        self.reason = "deadline"
        return False
