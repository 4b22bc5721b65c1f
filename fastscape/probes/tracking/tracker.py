"""Measure the landscape while a network trains, within a share of the training time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Unpack

import torch

from fastscape._checks import amount, counted, first_line, integer, listed
from fastscape._clock import now
from fastscape.objective.objective import Objective, checked_objective
from fastscape.probes.tracking.allowance import Allowance
from fastscape.probes.tracking.difficulty import Difficulty
from fastscape.probes.tracking.measurer import Measurer
from fastscape.probes.tracking.measures import Custom, checked_measures
from fastscape.probes.tracking.pending import Pending, Queue, Rates, rate_of
from fastscape.probes.tracking.record import TrackRecord
from fastscape.probes.tracking.result import SkippedPoint, TrackPoint, TrackResult
from fastscape.probes.tracking.schedule import Schedule, checked_schedule
from fastscape.probes.tracking.warnings_once import WarningsOnce
from fastscape.runs.budget import load_once
from fastscape.runs.optimizers import AnyOptimizer, OptimizerState
from fastscape.runs.provenance import objective_meta
from fastscape.runs.run import Seeded, settled

Logger = Callable[[dict[str, float], int], object]
DEFAULT = ("loss", "gradient", "spectrum")


class TrackerKeywords(Seeded, total=False):
    """Keywords that probes have as well."""

    name: str


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
        path: file of JSON lines, appended to and synchronised at every point; an existing one of the same run is continued. Until
            the end it is this tracker's alone, by a file ``<path>.lock`` beside it.
        what: names of ``"loss"``, ``"gradient"``, ``"spectrum"``, ``"slice"``, ``"critical_sharpness"`` (a gradient and six
            forwards, from the last point's), ``"multifractal"``, and functions
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
        run: seed, name, or one of them, in a :class:`fastscape.Run`.

    Raises:
        TypeError, ValueError: bad arguments, a path in no directory, or a file that is no record of this run (says why).
        OSError: another tracker, of this process or another, writes the file.

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
        pending: int = 8,
        clock: Callable[[], float] = now,
        **keywords: Unpack[TrackerKeywords],
    ) -> None:
        work = settled(Tracker.__init__, keywords, name="run")
        self.objective = checked_objective(objective).trained()
        if objective.state is not None:
            raise ValueError("objective must follow its model, got one at a fixed state; pass the objective before .at(...)")
        self.schedule = checked_schedule(when, every)
        load_once()  # or the first point is charged for it, and later ones are left out until training has made up for it
        self.allowance = Allowance(share, clock)
        self.measures = checked_measures(what)
        self.k, self.seed = integer("k", k, 1), integer("seed", work.seed, 0, 2**64)
        if self.k > objective.size:
            raise ValueError(f"k must be at most D = {objective.size}, got {k}")
        self.loggers = _checked_loggers(loggers)
        if difficulty is not None and not isinstance(difficulty, Difficulty):
            raise TypeError(f"difficulty must be a fastscape.Difficulty, got {type(difficulty).__name__}")
        self.difficulty, self.name = difficulty, work.name
        self._most = amount("pending", pending, 1)
        settings = {"what": list(self.measures), "k": self.k, "seed": self.seed, "when": self.schedule.words()}
        self._meta = objective_meta(self.objective) | settings
        if self.objective.tracking:
            settings["batch_norm"] = self.objective.batch_norm
        self._record = TrackRecord(path, settings | {"data": self._meta["data_fingerprint"], "names": list(objective.names)})
        self.points, self.skipped = self._record.points, self._record.skipped
        self.allowance.restore(self._record.training, self._record.spent)
        self._done = {point.step for point in self.points}
        self._last, self._finished = -1, False
        self._queue = Queue(list(self.measures), even=self.schedule.every is not None)
        self._warned = WarningsOnce()
        self._measurer = Measurer(self.objective, self.measures, self.k, self.seed, self.allowance, self.schedule, self._warned)
        self._rates = Rates()

    # ------------------------------------------------------------------ the training loop

    def step(self, step: int, *, lr: float | None = None, optimizer: AnyOptimizer | None = None) -> None:
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
                if self._queue and self._measurer.affordable(self._queue.next()):
                    self._work(number)
            finally:  # also after Ctrl-C, which a loop may catch to go on
                if due and self._queue and self._queue.points[-1].state is None:
                    self._keep(self._queue.points[-1])
        self._warned.say(3)

    def finish(self, *, measure: bool = True) -> TrackResult:
        """Measure what waits and can be afforded, and close the record.

        Args:
            measure: false to leave out what waits.
        """
        if not self._finished:
            with self.allowance.visit():
                self._queue.last_first()
                while self._queue:
                    point = self._queue.next()
                    self._measurer.last(point, allowed=measure)
                    self._complete(point, self._last)
            self._finished = True
            self._record.end(self._last, self.allowance)
            self._record.warn(self._warned)
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
            meta=self._meta | self._measurer.meta | {"seconds": account.spent, "waiting": self._queue.steps},
            notes=tuple(self._measurer.notes(points=bool(self.points)) + self._record.notes() + self._measurer.given_up),
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

    def _enqueue(self, step: int, lr: float | None, optimizer: AnyOptimizer | None) -> None:
        _wait_for_training(self.objective.device, self.allowance)
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
        self._queue.points.append(point)

    def _make_room(self, step: int) -> bool:
        given_up = self._queue.crowded(step)
        if given_up is None:
            return False
        self._queue.drop(given_up)
        self._skip(given_up.step, f"too many points ({self._most}) waited for their time")
        return True

    def _keep(self, point: Pending) -> None:
        try:
            point.keep(self.objective)
        except (RuntimeError, MemoryError) as error:
            self._queue.drop(point)
            self._skip(point.step, f"its weights could not be kept: {type(error).__name__}: {first_line(error)}")

    # ------------------------------------------------------------------ measuring

    def _work(self, step: int) -> None:
        _wait_for_training(self.objective.device, self.allowance)
        while self._queue:
            point = self._queue.next()
            self.allowance.settle()
            if not self._measurer.affordable(point):
                return
            self._measurer.measure(point, self._measurer.need(point.remaining[0]))
            self._complete(point, step)

    def _complete(self, point: Pending, step: int) -> None:
        """Write a point of which nothing remains."""
        if point.remaining:
            return
        self._queue.drop(point)
        if not point.found.values:
            self._skip(point.step, "; ".join(f"{item}: {why}" for item, why in point.left_out.items()) or "nothing to measure")
            return
        found = point.point(step)
        self._record.point(found, self.allowance)
        self._record.warn(self._warned)
        _log(self.loggers, found, self._warned)

    def _skip(self, step: int, reason: str) -> None:
        self._record.skip(SkippedPoint(step, reason))

    def _feed(self, step: int, lr: float | None, optimizer: Any) -> None:
        assert self.difficulty is not None
        seconds = self.difficulty.norm_seconds  # 0 before the first norm
        measure = None if not seconds or self.allowance.balance >= seconds else False  # the trapezoid takes unequal steps
        try:
            self.difficulty.step(step, lr=lr, optimizer=optimizer, measure=measure)
        except Exception as error:
            self.difficulty = None
            self._warned.add("difficulty", f"optimisation difficulty failed at step {step} and is given up: {first_line(error)}")


def _wait_for_training(device: torch.device, allowance: Allowance) -> None:
    """Kernels of the training that still run are its own time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        allowance.waited()


def _checked_loggers(loggers: Sequence[Logger]) -> tuple[Logger, ...]:
    for index, logger in enumerate(listed("loggers", loggers, "functions (values, step)")):
        if not callable(logger):
            raise TypeError(f"loggers[{index}] must be a function (values, step), got {type(logger).__name__}")
    return tuple(loggers)


def _log(loggers: Sequence[Logger], point: TrackPoint, warned: WarningsOnce) -> None:
    bounds = {f"{name}_low": pair[0] for name, pair in point.intervals.items()}
    bounds |= {f"{name}_high": pair[1] for name, pair in point.intervals.items()}
    for index, logger in enumerate(loggers):
        try:
            logger(point.values | bounds, point.step)
        except Exception as error:
            words = f"loggers[{index}] raised {type(error).__name__}: {first_line(error)}; training continues, the record stays"
            warned.add(f"logger {index}", words)
