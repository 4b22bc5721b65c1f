"""Measure the landscape while a network trains, within a share of the training time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch

from fastscape._checks import counted, first_line, integer
from fastscape._clock import now
from fastscape.evaluation.arithmetic import measured_in
from fastscape.objective.objective import Objective, checked_objective
from fastscape.probes.tracking.allowance import Allowance
from fastscape.probes.tracking.difficulty import Difficulty
from fastscape.probes.tracking.measures import GUESSES, TIMED, Carried, Custom, Visit, checked_measures
from fastscape.probes.tracking.pending import Pending, Rates, crowded, rate_of
from fastscape.probes.tracking.record import TrackRecord
from fastscape.probes.tracking.result import SkippedPoint, TrackPoint, TrackResult
from fastscape.probes.tracking.schedule import Schedule, checked_schedule
from fastscape.probes.tracking.warned import Warned
from fastscape.runs.budget import BudgetError, load_once
from fastscape.runs.optimizers import OptimizerState
from fastscape.runs.provenance import objective_meta

Logger = Callable[[dict[str, float], int], object]
DEFAULT = ("loss", "gradient", "spectrum")
_FAILURES = 3  # of a measurement in a row, after which it is given up
_LEAST = 0.25  # of what a measurement usually takes: with less it is not begun
_SHORTEST = 1e-3  # seconds of a budget
_UNKNOWN = 1.5  # gradients that a user's own measurement is taken to need before the first


class Tracker:
    r"""Measures of the loss landscape along one training run, which stays bit for bit what it is without them.

    Call :meth:`step` after every ``optimizer.step()`` (and with 0 before the first), and :meth:`finish` at the end or use it as
    a context manager. Training earns time: ``share`` times what passes between two calls. When a step is due, its weights
    are measured at once where the time is there, otherwise they are kept (in main memory, at most ``pending`` states), and
    measured when it has been earned, so that early points cost no more than late ones. What could not be afforded by the end is
    left out, and said so. Nothing is evaluated, copied or synchronised at other steps.

    Args:
        objective: the loss; it follows the weights of its model. Everything is of the function that is trained: batch norm takes
            the statistics of each batch unless others were asked for (:meth:`fastscape.Objective.trained`).
        when: :func:`fastscape.log_spaced`, :func:`fastscape.fractions`, or ascending steps.
        every: in its place, a number of steps.
        share: of the training time.
        path: file of JSON lines, appended to and synchronised at every point; an existing one of the same run is continued.
        what: names of ``"loss"``, ``"gradient"``, ``"spectrum"``, ``"slice"``, ``"multifractal"``, and functions
            ``f(objective, step) -> {name: number or Estimate}``, in the order of measuring; the weights are those of
            ``objective.base``, while ``objective.model`` has moved on where a point has waited.
        k: eigenvalues of the spectrum.
        loggers: functions ``f(values, step)`` called with every point (see :mod:`fastscape.integrations.loggers`).
        difficulty: a :class:`fastscape.Difficulty` that is fed at every step; its first spectral norm is computed at once,
            later ones where time has been earned.
        seed: of random directions and probes: the same at all steps, so that differences are paired.
        pending: states that may wait.
        name: of the run.
        clock: monotonic seconds.

    Raises:
        TypeError, ValueError: bad arguments, a path in no directory, or a record of another run (names what differs).

    Cost: ``share`` of the training time, with an error of one measurement; a microsecond or two at other steps.

    Example:
        >>> import torch, fastscape as fs
        >>> model = torch.nn.Linear(4, 3)
        >>> data = [(torch.ones(2, 4), torch.tensor([0, 2]))]
        >>> objective = fs.Objective(model, data, criterion=torch.nn.functional.cross_entropy)
        >>> with fs.Tracker(objective, when=fs.log_spaced(100, 8), share=0.1) as tracker:
        ...     tracker.step(0)
    """

    def __init__(
        self,
        objective: Objective,
        *,
        when: Schedule | Sequence[int] | None = None,
        every: int | None = None,
        share: float = 0.05,
        path: str | None = None,
        what: Sequence[str | Custom] = DEFAULT,
        k: int = 2,
        loggers: Sequence[Logger] = (),
        difficulty: Difficulty | None = None,
        seed: int = 0,
        pending: int = 8,
        name: str = "run",
        clock: Callable[[], float] = now,
    ) -> None:
        self.objective = checked_objective(objective).trained()
        if objective.state is not None:
            raise ValueError("objective must follow its model, got one at a fixed state; pass the objective before .at(...)")
        self.schedule = checked_schedule(when, every)
        load_once()  # or the first point is charged for it, and later ones are left out until training has made up for it
        self.allowance = Allowance(share, clock)
        self.measures = checked_measures(what)
        self.k, self.seed = integer("k", k, 1), integer("seed", seed, 0, 2**64)
        if self.k > objective.size:
            raise ValueError(f"k must be at most D = {objective.size}, got {k}")
        self.loggers = tuple(loggers)
        for index, logger in enumerate(self.loggers):
            if not callable(logger):
                raise TypeError(f"loggers[{index}] must be a function (values, step), got {type(logger).__name__}")
        if difficulty is not None and not isinstance(difficulty, Difficulty):
            raise TypeError(f"difficulty must be a fastscape.Difficulty, got {type(difficulty).__name__}")
        self.difficulty, self.name = difficulty, name
        self._most = integer("pending", pending, 1)
        settings = {"what": list(self.measures), "k": self.k, "seed": self.seed, "when": self.schedule.words()}
        self._meta = objective_meta(self.objective) | settings
        if self.objective.tracking:
            settings["batch_norm"] = self.objective.batch_norm
        self._record = TrackRecord(path, settings | {"data": self._meta["data_fingerprint"], "names": list(objective.names)})
        self.points: list[TrackPoint] = list(self._record.points)
        self.skipped: dict[int, SkippedPoint] = dict(self._record.skipped)
        self.allowance.restore(self._record.training, self._record.spent)
        self._order = {item: index for index, item in enumerate(self.measures)}
        self._done = {point.step for point in self.points}
        self._last, self._finished = -1, False
        self._queue: list[Pending] = []
        self._carried = Carried()
        self._costs: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._warned = Warned()
        self._rates = Rates()

    # ------------------------------------------------------------------ the training loop

    def step(
        self,
        step: int,
        *,
        lr: float | None = None,
        optimizer: torch.optim.Optimizer | Mapping[str, Any] | OptimizerState | None = None,
    ) -> None:
        """Tell that ``step`` optimizer steps are done; measures what is due or waits, if time has been earned.

        Args:
            step: optimizer steps done so far: 0 before training.
            lr: learning rate; ``None`` to read it from ``optimizer``.
            optimizer: for its stability.

        Raises:
            ValueError: a step that is no integer. What fails in a measurement is shown once, as a ``TrackerWarning``.
        """
        number = integer("step", step, 0)
        if self._finished:
            raise ValueError(f"step must not be called after finish(), got step {number}; make a new Tracker on the same path")
        self._rates.add(lr, optimizer)
        with self.allowance.visit():
            if self.difficulty is not None:
                self._feed(number, lr, optimizer)
            due = self._due(number)
            if due:
                self._enqueue(number, lr, optimizer)
            try:
                if self._queue and self._affordable(self._next()):
                    self._work(number)
            finally:  # also after Ctrl-C, which a loop may catch to go on
                if due and self._queue and self._queue[-1].state is None:
                    self._keep(self._queue[-1])
        self._warned.say(3)

    def finish(self, *, measure: bool = True) -> TrackResult:
        """Measure what waits and can be afforded, and close the record.

        Args:
            measure: false to leave out what waits.
        """
        if not self._finished:
            with self.allowance.visit():
                self._queue = [*self._queue[-1:], *self._queue[:-1]]  # the end of the run before what lies between
                while self._queue:
                    self._finish_one(self._next(), measure=measure)
            self._finished = True
            self._record.end(self._last, self.allowance)
            self._told_of_disk()
            self._warned.say(3)
        return self.result

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.finish(measure=kind is None)

    @property
    def result(self) -> TrackResult:
        """Measurements so far."""
        account = self.allowance
        return TrackResult(
            name=self.name,
            step=max(self._last, *(point.step for point in self.points), 0) if self.points else max(self._last, 0),
            points=tuple(sorted(self.points, key=lambda point: point.step)),
            skipped=tuple(sorted(self.skipped.values(), key=lambda point: point.step)),
            share=account.share,
            training_seconds=account.training,
            tracker_seconds=account.spent,
            planned=self.schedule.total,
            meta=self._meta | {"seconds": account.spent, "waiting": [point.step for point in self._queue]},
            notes=self._notes(),
        )

    # ------------------------------------------------------------------ what is due

    def _due(self, step: int) -> bool:
        after, self._last = self._last, step
        due = self.schedule.between(min(after, step - 1), step) if after >= 0 or self.schedule.steps is not None else ()
        if after < 0 and self.schedule.every is not None:
            due = (step,) if step % self.schedule.every == 0 else ()
        missed = [other for other in due if other < step and other not in self._done and other not in self.skipped]
        for other in missed:
            words = "the run had ended before it was measured" if self._record.resumed else f"step() was first called at {step}"
            self._skip(other, words if after < 0 else f"step() was not called between {after} and {step}")
        return step in due and step not in self._done

    def _enqueue(
        self, step: int, lr: float | None, optimizer: torch.optim.Optimizer | Mapping[str, Any] | OptimizerState | None
    ) -> None:
        self._wait_for_training()
        if len(self._queue) >= self._most and (self.allowance.balance < 0 or not self._make_room(step)):  # a copy costs too
            self._skip(step, f"{counted(len(self._queue), 'earlier point')} waited for their time")
            return
        state = None
        if optimizer is not None:
            try:
                state = OptimizerState.of(optimizer, self.objective.model)
            except (TypeError, ValueError) as error:
                self._warned.add("optimizer", f"no stability of the optimizer: {first_line(error)}")
        rate = lr if lr is not None or state is None else rate_of(state)
        point = Pending(step, self.schedule.fraction(step), rate, list(self.measures), state, warm_up=self._rates.warm_up)
        self._done.add(step)
        if self._queue:
            self._keep(point)
        self._queue.append(point)

    def _make_room(self, step: int) -> bool:
        given_up = crowded(self._queue, step, even=self.schedule.every is not None)
        if given_up is None:
            return False
        self._queue.remove(given_up)
        self._skip(given_up.step, f"too many points ({self._most}) waited for their time")
        return True

    def _keep(self, point: Pending) -> None:
        try:
            point.keep(self.objective)
        except (RuntimeError, MemoryError) as error:
            self._queue = [other for other in self._queue if other is not point]
            self._skip(point.step, f"its weights could not be kept: {type(error).__name__}: {first_line(error)}")

    def _wait_for_training(self) -> None:
        """Kernels of the training that still run are its own time."""
        if self.objective.device.type == "cuda":
            torch.cuda.synchronize(self.objective.device)
            self.allowance.waited()

    # ------------------------------------------------------------------ measuring

    def _next(self) -> Pending:
        """The waiting point whose next measurement comes first in the order asked for, the oldest of them."""
        return min(self._queue, key=lambda point: self._order[point.remaining[0]])

    def _affordable(self, point: Pending) -> bool:
        balance = self.allowance.balance
        return balance > 0 and balance >= self._need(point.remaining[0])

    def _usual(self, item: str) -> float:
        """Seconds that a measurement takes: as long as the last time, or so many gradients, each a training step per batch."""
        known = self._costs.get(item)
        if known is not None:
            return known
        gradient = self._costs.get("gradient", 2 * self._costs.get("loss", 0.0)) or (
            len(self.objective.batches) * self.allowance.step_seconds
        )
        return GUESSES.get(item, _UNKNOWN) * gradient

    def _need(self, item: str) -> float:
        """Seconds with which a measurement is begun: what it usually takes, or an even share of what the plan will earn."""
        usual, total, count = self._usual(item), self.schedule.total, self.schedule.count
        if item not in TIMED or not total or not count:
            return usual
        even = self.allowance.share * self.allowance.step_seconds * total / count
        return min(usual, max(even, _LEAST * usual))

    def _work(self, step: int) -> None:
        self._wait_for_training()
        while self._queue:
            point = self._next()
            self.allowance.settle()
            if not self._affordable(point):
                return
            self._measure(point, self._need(point.remaining[0]))
            if not point.remaining:
                self._complete(point, step)

    def _measure(self, point: Pending, seconds: float) -> None:
        item = point.remaining[0]
        if self._failures.get(item, 0) >= _FAILURES:
            point.left_out[item] = f"given up after {_FAILURES} failures"
            del point.remaining[0]
            return
        usual, limit = self._usual(item), None
        if item in TIMED:
            limit = max(seconds if seconds < usual else self.allowance.balance, _SHORTEST)
        at = point.at(self.objective)
        visit = Visit(at, point.step, point.optimizer, point.learning_rate, self.seed, self.k, limit, point.warm_up)
        began = self.allowance.clock()
        try:
            found = self.measures[item](visit, self._carried)
        except BudgetError as error:
            self._costs[item] = 2 * max(usual, seconds)
            point.refused += 1
            if point.refused < _FAILURES:
                return
            point.left_out[item] = first_line(error)
        except Exception as error:
            self._failed(point, item, error)
        else:
            self._failures[item] = 0
            if "arithmetic" not in self._meta:
                self._meta |= measured_in(at, at.dtype).meta
            self._costs[item] = self.allowance.clock() - began
            point.found.values |= found.values
            point.found.intervals |= found.intervals
            point.found.notes += found.notes
        finally:
            point.seconds += self.allowance.clock() - began
            self.allowance.settle()
        point.refused = 0
        del point.remaining[0]

    def _failed(self, point: Pending, item: str, error: Exception) -> None:
        words = f"{type(error).__name__}: {first_line(error)}"
        point.left_out[item] = words
        self._failures[item] = self._failures.get(item, 0) + 1
        self._warned.add(item, f"{item} failed at step {point.step}, training continues: {words}")

    def _finish_one(self, point: Pending, *, measure: bool) -> None:
        item = point.remaining[0]
        self.allowance.settle()
        balance = max(self.allowance.balance, 0.0)
        need = _LEAST * self._usual(item) if item in TIMED else self._need(item)
        if measure and 0 < need <= balance:
            self._measure(point, balance)
        else:
            words = f"it takes about {need:.2g} s, {balance:.2g} s were left of the share" if measure else "the run ended"
            point.left_out[item] = words
            del point.remaining[0]
        if not point.remaining:
            self._complete(point, self._last)

    def _complete(self, point: Pending, step: int) -> None:
        self._queue = [other for other in self._queue if other is not point]
        if not point.found.values:
            self._skip(point.step, "; ".join(f"{item}: {why}" for item, why in point.left_out.items()) or "nothing to measure")
            return
        found = point.point(step)
        self.points.append(found)
        self.skipped.pop(found.step, None)  # of an earlier process
        self._record.point(found, self.allowance)
        self._told_of_disk()
        bounds = {f"{name}_low": pair[0] for name, pair in found.intervals.items()}
        bounds |= {f"{name}_high": pair[1] for name, pair in found.intervals.items()}
        for index, logger in enumerate(self.loggers):
            try:
                logger(found.values | bounds, found.step)
            except Exception as error:
                words = (
                    f"loggers[{index}] raised {type(error).__name__}: {first_line(error)}; training continues, the record stays"
                )
                self._warned.add(f"logger {index}", words)

    def _skip(self, step: int, reason: str) -> None:
        self.skipped[step] = SkippedPoint(step, reason)
        self._record.skip(self.skipped[step])

    def _feed(self, step: int, lr: float | None, optimizer: Any) -> None:
        assert self.difficulty is not None
        seconds = self.difficulty.norm_seconds  # 0 before the first norm
        measure = None if not seconds or self.allowance.balance >= seconds else False  # the trapezoid takes unequal steps
        try:
            self.difficulty.step(step, lr=lr, optimizer=optimizer, measure=measure)
        except Exception as error:
            self.difficulty = None
            self._warned.add("difficulty", f"optimisation difficulty failed at step {step} and is given up: {first_line(error)}")

    # ------------------------------------------------------------------ what is said

    def _told_of_disk(self) -> None:
        if (error := self._record.error) is not None:
            self._warned.add("disk", f"the record cannot be written ({error}); training continues, the record is kept in memory")

    def _notes(self) -> tuple[str, ...]:
        notes: list[str] = []
        if "arithmetic" in self._meta:
            notes += measured_in(self.objective, self.objective.dtype).notes
        account = self.allowance
        if not self.points and account.training:
            item = next(iter(self.measures), "loss")
            notes.append(
                f"{account.training:.2g} s of training earned {account.earned:.2g} s at a share of {account.share:.1%}, and the "
                f"first measurement takes about {self._need(item):.2g} s: the run is too short for it, or the share too small"
            )
        if self._record.unwritten:
            notes.append(f"{counted(self._record.unwritten, 'line')} of the record could not be written: {self._record.error}")
        given_up = [item for item, count in self._failures.items() if count >= _FAILURES]
        notes += [f"{item} failed {_FAILURES} times and was given up" for item in given_up]
        return tuple(notes)
