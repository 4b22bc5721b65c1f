"""Measuring the points of a tracker: what each measurement is expected to take, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastscape._checks import first_line
from fastscape.evaluation.arithmetic import measured_in
from fastscape.objective.objective import Objective
from fastscape.probes.tracking.allowance import Allowance
from fastscape.probes.tracking.measures import GUESSES, TIMED, Carried, Measure, Visit
from fastscape.probes.tracking.pending import Pending
from fastscape.probes.tracking.schedule import Schedule
from fastscape.probes.tracking.warnings_once import WarningsOnce
from fastscape.runs.budget import BudgetError

_FAILURES = 3  # of a measurement in a row, after which it is given up
_LEAST = 0.25  # of what a measurement usually takes: with less it is not begun
_SHORTEST = 1e-3  # seconds of a budget
_UNKNOWN = 1.5  # gradients that a user's own measurement is taken to need before the first


class Measurer:
    """Runs measures on points that wait, and learns what they take; whatever they raise is a reason, training goes on.

    Args:
        objective: the loss; it follows the weights of its model.
        measures: by name.
        k, seed: number of eigenvalues, and of random directions.
        allowance: account of the seconds.
        schedule: that tells an even share of what will be earned.
        warned: takes in what failed.

    Attributes:
        costs: seconds that each measurement took the last time.
        meta: of the arithmetic in which the first was made; empty before.
    """

    def __init__(
        self,
        objective: Objective,
        measures: Mapping[str, Measure],
        k: int,
        seed: int,
        allowance: Allowance,
        schedule: Schedule,
        warned: WarningsOnce,
    ) -> None:
        self.objective, self.measures, self.k, self.seed = objective, measures, k, seed
        self.allowance, self.schedule = allowance, schedule
        self.costs: dict[str, float] = {}
        self.meta: dict[str, Any] = {}
        self._carried = Carried()
        self._failures: dict[str, int] = {}
        self._warned = warned

    def usual(self, item: str) -> float:
        """Seconds that a measurement takes: as long as the last time, or so many gradients, each a training step per batch."""
        known = self.costs.get(item)
        if known is not None:
            return known
        gradient = self.costs.get("gradient", 2 * self.costs.get("loss", 0.0)) or (
            len(self.objective.batches) * self.allowance.step_seconds
        )
        return GUESSES.get(item, _UNKNOWN) * gradient

    def need(self, item: str) -> float:
        """Seconds with which a measurement is begun: what it usually takes, or an even share of what the plan will earn."""
        usual, total, count = self.usual(item), self.schedule.total, self.schedule.count
        if item not in TIMED or not total or not count:
            return usual
        even = self.allowance.share * self.allowance.step_seconds * total / count
        return min(usual, max(even, _LEAST * usual))

    def affordable(self, point: Pending) -> bool:
        """Whether the point's next measurement has been earned."""
        balance = self.allowance.balance
        return balance > 0 and balance >= self.need(point.remaining[0])

    def measure(self, point: Pending, seconds: float) -> None:
        """The point's next measurement, which is begun with so many seconds."""
        item = point.remaining[0]
        if self._failures.get(item, 0) >= _FAILURES:
            point.leave_out(f"given up after {_FAILURES} failures")
            return
        usual, limit = self.usual(item), None
        if item in TIMED:
            limit = max(seconds if seconds < usual else self.allowance.balance, _SHORTEST)
        at = point.at(self.objective)
        visit = Visit(at, point.step, point.optimizer, point.learning_rate, self.seed, self.k, limit, point.warm_up)
        began = self.allowance.clock()
        try:
            found = self.measures[item](visit, self._carried)
        except BudgetError as error:
            self.costs[item] = 2 * max(usual, seconds)
            point.refused += 1
            if point.refused < _FAILURES:
                return
            point.left_out[item] = first_line(error)
        except Exception as error:
            words = point.left_out[item] = f"{type(error).__name__}: {first_line(error)}"
            self._failures[item] = self._failures.get(item, 0) + 1
            self._warned.add(item, f"{item} failed at step {point.step}, training continues: {words}")
        else:
            self._failures[item] = 0
            self.meta = self.meta or measured_in(at, at.dtype).meta
            self.costs[item] = self.allowance.clock() - began
            point.found.values |= found.values
            point.found.intervals |= found.intervals
            point.found.notes += found.notes
        finally:
            point.seconds += self.allowance.clock() - began
            self.allowance.settle()
        point.refused = 0
        del point.remaining[0]

    def last(self, point: Pending, *, allowed: bool) -> None:
        """The point's next measurement, where it can still be afforded at the end of the run and is allowed; else why not."""
        item = point.remaining[0]
        self.allowance.settle()
        balance = max(self.allowance.balance, 0.0)
        need = _LEAST * self.usual(item) if item in TIMED else self.need(item)
        if allowed and 0 < need <= balance:
            self.measure(point, balance)
        else:
            left = f"it takes about {need:.2g} s, {balance:.2g} s were left of the share"
            point.leave_out(left if allowed else "the run ended")

    def notes(self, *, points: bool) -> list[str]:
        """For the result, which holds points or none."""
        notes = list(measured_in(self.objective, self.objective.dtype).notes) if self.meta else []
        account = self.allowance
        if not points and account.training:
            item = next(iter(self.measures), "loss")
            notes.append(
                f"{account.training:.2g} s of training earned {account.earned:.2g} s at a share of {account.share:.1%}, and the "
                f"first measurement takes about {self.need(item):.2g} s: the run is too short for it, or the share too small"
            )
        return notes

    @property
    def given_up(self) -> list[str]:
        """Notes on measurements that failed too often."""
        given_up = [item for item, count in self._failures.items() if count >= _FAILURES]
        return [f"{item} failed {_FAILURES} times and was given up" for item in given_up]
