"""Units of work under a budget: what a deadline, Ctrl-C or an error leaves is a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fastscape._checks import first_line
from fastscape._clock import now
from fastscape._deadline import Deadline as Deadline
from fastscape.runs.budget import Budget, BudgetError, time_text
from fastscape.runs.evaluations import Evaluations

Unit = TypeVar("Unit")
Made = TypeVar("Made")


class PartialResultError(RuntimeError):
    """The model raised midway. ``partial`` is the result of what had been measured before."""

    def __init__(self, message: str, partial: Any) -> None:
        super().__init__(message)
        self.partial = partial

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self.args, self.partial), self.__dict__


class Anytime:
    """Work in units that ends with what is known: done, at the deadline, by Ctrl-C or by an error.

    The work asks :meth:`fits` or :meth:`need`, or takes its units from :meth:`stream`, within :meth:`ends`, and its set-up is in
    :meth:`Budget.opening`: in both every forward and product asks whether time is over, so that it is overrun by one at most.

    Args:
        budget: the deadline; ``None`` for none.
        margin: how much longer than foreseen a unit may take.
        reserve: seconds to be left after every unit.
        evaluations: of the work; those that a journal has always fit, and a unit of them counts with the seconds that it took
            when it was evaluated.

    Attributes:
        reason: ``"complete"``, ``"deadline"``, ``"interrupted"`` or ``"failed: ..."``; work may give its own.
        error: what ended the work.
        done: units of the stream that are done.
        unit: seconds that the next unit is expected to take.
    """

    def __init__(
        self,
        budget: Budget | None = None,
        *,
        margin: float = 1.0,
        reserve: float = 0.0,
        evaluations: Evaluations | None = None,
    ) -> None:
        self.budget, self.margin, self.reserve = budget or Budget(None), margin, reserve
        self.evaluations = evaluations or Evaluations()
        self.reason, self.done, self.unit = "complete", 0, 0.0
        self.error: Exception | None = None

    def fits(self, seconds: float | None = None, reserve: float = 0.0) -> bool:
        """Whether ``seconds`` of work, by default a unit, and both reserves after it end before the deadline."""
        return self.evaluations.replaying or self.budget.admits(
            self.margin * (self.unit if seconds is None else seconds), self.reserve + reserve
        )

    def need(self, seconds: float | None = None, reserve: float = 0.0) -> None:
        """Raise :class:`Deadline` unless it fits."""
        if not self.fits(seconds, reserve):
            raise Deadline

    def stream(self, units: Iterable[Unit], expected: float = 0.0, noun: str = "") -> Iterator[Unit]:
        """The units while they fit, each taken to need as long as the one before it.

        Args:
            units: made one at a time, which counts as part of them.
            expected: seconds of the first.
            noun: of a unit that is refused where the first does not fit.

        Raises:
            Deadline: the next does not fit.
            BudgetError: nor does the first, which has a noun.
        """
        waiting, self.unit = iter(units), expected
        while True:
            began = self.worked()
            try:
                unit = next(waiting)
            except StopIteration:
                return
            if noun and not self.done and not self.fits():
                least = self.budget.least(self.margin * expected, self.reserve)
                raise BudgetError(
                    f"budget must hold one {noun}, {expected:.2g} s here, got {self.budget.seconds:g} s; "
                    f"use {time_text(least)} or more",
                    least,
                )
            self.need()
            yield unit
            self.done += 1
            took = self.worked() - began
            self.unit = min(took, 2 * expected) if noun and self.done == 1 else took  # the first may have tried paths as well

    @contextmanager
    def slowest(self) -> Iterator[None]:
        """A unit of work; the next is taken to need as long as the slowest so far."""
        began = self.budget.elapsed + self.evaluations.seconds
        yield
        self.unit = max(self.unit, self.budget.elapsed + self.evaluations.seconds - began)

    def worked(self) -> float:
        """A clock that what is taken from a journal moves as its evaluation did."""
        return now() + self.evaluations.seconds

    @contextmanager
    def ends(
        self, known: Callable[[], object] = lambda: True, *, errors: Callable[[Exception], object] = lambda _: False
    ) -> Iterator[None]:
        """A block that a deadline or Ctrl-C ends where something is ``known``; then :attr:`reason` says so.

        ``errors``: which exceptions end it too, and the first is kept in :attr:`error`; a budget too small for the next part of
        the work is a deadline.
        """
        try:
            with self.budget.limiting(lambda: not self.evaluations.replaying):
                yield
        except (Deadline, KeyboardInterrupt) as end:
            if not known():
                raise
            self._end("deadline" if isinstance(end, Deadline) else "interrupted")
        except Exception as error:
            if not errors(error):
                raise
            if isinstance(error, BudgetError):
                self._end("deadline")
            else:
                self._end(f"failed: {type(error).__name__}")
                self.error = self.error or error
        self.budget.known = True

    def _end(self, reason: str) -> None:
        if self.error is None:
            self.reason = reason

    def analysed(self, make: Callable[[], Made], otherwise: Made) -> Made:
        """What ``make`` tells of what was measured; ``otherwise`` where it raises, which is kept in :attr:`error`."""
        with self.ends(errors=lambda _: True):
            return make()
        return otherwise

    def whole(self, result: Made, what: str, kind: type[PartialResultError] = PartialResultError) -> Made:
        """The result, or where an error ended the work the exception that holds it."""
        if self.error is None:
            return result
        raise kind(f"{what}: {type(self.error).__name__}: {first_line(self.error)}", result) from self.error
