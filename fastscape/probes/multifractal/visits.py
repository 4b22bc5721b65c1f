"""Directions of the multifractal probe at checkpoints: the arithmetic, the paths, and the blocks that a visit evaluates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, get_args

from fastscape._checks import first_line
from fastscape._state import torch_threads
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.differences.propagation import MissingRuleError
from fastscape.differences.tracing_errors import UntraceableError
from fastscape.directions import Directions
from fastscape.evaluation.evaluator import Evaluator, PathName
from fastscape.evaluation.trial import PathChoice
from fastscape.numerics.arrays import Array
from fastscape.objective.objective import Objective
from fastscape.probes.multifractal.evaluated import Track
from fastscape.probes.multifractal.result import MultifractalResult
from fastscape.probes.multifractal.resumption import fill, states
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.probes.multifractal.units import Point, UnitEvaluator, directions_of, groups_of, settings_of
from fastscape.response.blocks import in_units
from fastscape.response.precision import (
    AnyPath,
    Noise,
    PrecisionChoice,
    choose_precision,
    chosen_by,
    measure_noise,
    planned,
    refused_precision,
    responder,
)
from fastscape.runs.anytime import Anytime, Deadline
from fastscape.runs.budget import BudgetError, time_text
from fastscape.runs.journal import Journal
from fastscape.runs.plan import Plan, same_as_planned
from fastscape.runs.units import Evaluate, Here, Unit, Workers, decode

_ANALYSIS, _ANALYSIS_RATE = 0.1, 3e-4  # seconds to analyse a checkpoint with few directions, and per direction
USEFUL = 100  # directions that a run should have
_MARGIN = 1.25  # how much longer than one evaluation, timed once, predicts
_RESERVE = 1.5  # how much longer than foreseen an analysis may take
TRIAL = 0.05  # of the budget, for a trial of paths
_CHOICE = 0.2  # of the budget, for trying arithmetics
_CHOOSING = 80  # evaluations, to try the arithmetics
_OPENING = 40  # evaluations on a first visit: gate, trial of the path, noise, steps, influence, loss and accuracy


class AnalysisCost:
    """Seconds that analyses take: a fixed part, seen at few directions, and a part per direction."""

    def __init__(self) -> None:
        self.fixed, self.rate = _ANALYSIS, _ANALYSIS_RATE
        self._seen: int | None = None  # directions of the first analysis that was timed

    def time(self, directions: int, seconds: float) -> None:
        """Learn from one analysis."""
        if self._seen is None:
            self._seen, self.fixed = directions, seconds
        elif directions > self._seen:
            self.rate = max((seconds - self.fixed) / (directions - self._seen), _ANALYSIS_RATE)

    def of(self, checkpoints: int, directions: int) -> float:
        """Seconds to be kept for the analysis of all checkpoints, with so many directions in all."""
        return _RESERVE * (checkpoints * self.fixed + self.rate * directions)

    @property
    def each(self) -> float:
        """Seconds to be kept for a direction."""
        return _RESERVE * self.rate


@dataclass(frozen=True)
class Visit:
    """One group of batches of a checkpoint, and how many directions its banks are to have."""

    place: int
    batch: int
    whole: Objective
    objective: Objective
    directions: Directions
    radii: Array
    goals: Mapping[int, int]


class Visits:
    """Evaluate directions at checkpoints, in one arithmetic for all of them, while they fit.

    Args:
        points: the checkpoints.
        probe: settings.
        work: the time; a unit is the slowest block of directions so far.
        path, memory: of the evaluation.
        after: called with the checkpoint's name after every block.
        limit: directions per bank that a result has at most.
        opened: called with the checkpoint's index after a first visit, before directions are evaluated.
        workers: who evaluates the units, made of these visits and what evaluates a unit; by default this process.

    Attributes:
        tracks: what is known of each checkpoint.
        chosen: the arithmetic of all; ``None`` before it is tried.
        cost: of the analysis, for which time is kept.
        evaluating, fresh: seconds of all blocks, and the directions in them.
    """

    def __init__(
        self,
        points: Sequence[Point],
        probe: ProbeSettings,
        work: Anytime,
        path: AnyPath | None,
        memory: int | None,
        after: Callable[[str], None],
        limit: int | None,
        opened: Callable[[int], None],
        workers: Callable[[Visits, Evaluate], Workers] | None = None,
    ) -> None:
        self.points, self.probe, self.work, self.memory, self._after = points, probe, work, memory, after
        self._opened = opened
        self.path: AnyPath | PathChoice | None = path
        self.tracks = [Track(point.name, point.step, probe, limit) for point in points]
        self.evaluate = UnitEvaluator(points, probe, {}, memory)
        self._made = workers or (lambda _visits, evaluate: Here(evaluate))
        self.workers = self._made(self, self.evaluate)
        self.cost = AnalysisCost()
        self.evaluating, self.fresh = 0.0, 0
        self._opening = 0.0  # seconds of the slowest first visit so far
        self.chosen: PrecisionChoice | None = None
        if probe.precision is not None:
            self._settle(PrecisionChoice(probe.precision, "asked for"))

    @property
    def directions(self) -> int:
        """Evaluated so far, over all checkpoints and banks."""
        return sum(track.directions for track in self.tracks)

    @property
    def least(self) -> int:
        """Directions that every bank of every checkpoint has, beyond what was asked for too."""
        return min(track.least for track in self.tracks)

    def reserve(self) -> float:
        """Seconds that the final analysis will take."""
        return self.cost.of(len(self.tracks), self.directions)

    def restore(self, earlier: Sequence[MultifractalResult]) -> None:
        """Go on from earlier results, one per checkpoint."""
        for point, track, result in zip(self.points, self.tracks, earlier, strict=True):
            if result.directions:
                before = PrecisionChoice(result.meta["precision"], "that of the result to extend")
                self._continue(point, track, result, before, "extend must be a result")

    def _continue(self, point: Point, track: Track, result: MultifractalResult, before: PrecisionChoice, what: str) -> None:
        if self.chosen is None:
            self._settle(before)
        elif self.probe.precision is None and before.name != self.chosen.name:
            track.chosen = before  # a checkpoint that difference propagation refused
        track.check(result, point.objective(), what)
        track.adopt(result)
        if track.chosen is self.chosen and not isinstance(self.path, PathChoice):
            self.path = self.path or PathChoice.of(result.meta["path"])

    def resume(self, journal: Journal) -> None:
        """Go on with what a journal holds, and write what is evaluated to it."""
        for place, state in states(journal).items():
            if state.meta.get("plan"):
                way = Plan.of(state).ways[0]
                same_as_planned("method", self.path if isinstance(self.path, str) else None, way.path)
                words = f"resume must be the journal {str(journal.folder)!r}"
                self._continue(self.points[place], self.tracks[place], state, chosen_by(way), words)
        fill(journal, dict(enumerate(self.tracks)))
        for words in journal.left_out:
            self.tracks[0].note(words)
        self.workers = self._made(self, journal.recording(self.evaluate, lambda: self.evaluate.lanes))

    def obey(self, plans: Sequence[Plan]) -> None:
        """Repeat what was chosen for earlier runs, one plan per checkpoint.

        Raises:
            ValueError: a plan of something else.
        """
        for point, track, plan in zip(self.points, self.tracks, plans, strict=True):
            objective = point.objective()
            plan.check(objective, settings_of(self.probe))
            plan.check_loss(objective.loss())
            for way in plan.ways[:1]:
                same_as_planned("precision", self.probe.precision, way.precision)
                same_as_planned("method", self.path, way.path)
                track.chosen = chosen_by(way)
                self.chosen = self.chosen or track.chosen
            track.plan = plan

    def advance(self, place: int, goals: Sequence[int]) -> None:
        """Evaluate the directions that a checkpoint lacks up to ``goals[bank]``."""
        point, track = self.points[place], self.tracks[place]
        lacking = [bank for bank, columns in enumerate(track.columns) if columns.count < goals[bank]]
        if not lacking:
            return
        whole = point.objective()
        directions = directions_of(self.probe, whole)
        objectives = groups_of(self.probe, whole)
        radii = self.probe.grid(directions.weight_norm)
        for batch, objective in enumerate(objectives):
            banks = [bank for bank in lacking if bank % len(objectives) == batch]
            if not banks:
                continue
            if self.directions:
                self.work.need(self.work.unit + (0.0 if batch in track.opened else self._opening), self.reserve())
            if self.chosen is None:
                self._choose(track, objective, directions, radii)
            visit = Visit(place, batch, whole, objective, directions, radii, {bank: goals[bank] for bank in banks})
            try:
                self._visit(track, visit)
            except (MissingRuleError, UntraceableError) as error:
                if self.probe.precision is not None or track.directions:
                    raise refused_precision(track.chosen.name if track.chosen else "difference", error) from error
                words = f"difference propagation refused this checkpoint: {first_line(error)[:300]}"
                track.chosen = PrecisionChoice("float64", words)
                self._visit(track, visit)

    def _visit(self, track: Track, visit: Visit) -> None:
        """Evaluate what some banks of one batch of a checkpoint lack."""
        _ = visit.objective.findings  # of the first evaluation, which no later one repeats
        start, before = self.work.budget.elapsed, self._elsewhere
        threads = torch_threads(None if track.plan is None else track.plan.threads)
        with threads, self._evaluator(track, visit) as evaluator, track.timed():
            try:
                self._open(track, visit, evaluator, start)
                here = self.evaluate.holding(visit.place, visit.batch, evaluator, visit.directions, visit.radii)
                with here:
                    self._units(track, visit)
            finally:
                track.evaluations += evaluator.evaluations + self._elsewhere - before
                if isinstance(evaluator, DifferenceEvaluator):
                    track.handle(evaluator.handling)

    @property
    def _elsewhere(self) -> int:
        """Evaluations of the loss by other processes."""
        return getattr(self.workers, "evaluations", 0)

    def _choose(self, track: Track, objective: Objective, directions: Directions, radii: Array) -> None:
        """Try the arithmetics on the first objective of the run."""
        path = None if isinstance(self.path, PathChoice) else self.path
        with track.timed():
            trial = _CHOICE * self.work.budget.seconds
            chosen = choose_precision(objective, directions, radii, method=path, memory=self.memory, trial=trial)
        track.evaluations += chosen.evaluations
        self.path = chosen.path or self.path
        self._settle(chosen)

    def _settle(self, chosen: PrecisionChoice) -> None:
        """Use one arithmetic for all checkpoints."""
        self.chosen = chosen
        for track in self.tracks:
            track.chosen = chosen

    def _open(self, track: Track, visit: Visit, evaluator: Evaluator | DifferenceEvaluator, start: float) -> None:
        """On the first visit: check the budget, choose the path, measure the noise."""
        if not self.directions:
            forward = (self.work.budget.elapsed - start) / evaluator.replica.gate
            if not self.work.budget.admits(_least(self, forward)[1]):
                raise self.refusal(forward, 0)
        way = None if track.plan is None else track.plan.way(visit.batch)
        choice = evaluator.choose(visit.directions, visit.radii.tolist())
        evaluator.choice = choice = choice if way is not None else in_units(choice)
        if track.chosen is self.chosen:
            self.path = choice
        for bank in visit.goals:
            track.columns[bank].unit = choice.chunk
        if visit.batch not in track.opened:
            if way is not None:
                noise = Noise.of(way.noise)
            else:
                noise = measure_noise(evaluator, visit.directions, visit.radii, zeros=True)
            track.evaluations += noise.evaluations
            track.open(visit.batch, visit.whole, visit.directions, visit.radii, noise, choice)
            self._opened(visit.place)
            self._opening = max(self._opening, self.work.budget.elapsed - start)

    def _evaluator(self, track: Track, visit: Visit) -> Evaluator | DifferenceEvaluator:
        assert track.chosen is not None
        trial = TRIAL * self.work.budget.seconds
        way = None if track.plan is None else track.plan.way(visit.batch)
        path = self.path if track.chosen is self.chosen else None  # measured for the arithmetic of the run
        if isinstance(path, PathChoice) and path.name not in get_args(PathName):
            path = cast("AnyPath", path.name)  # other weights and batches have other shared radii and sizes
        path = path if way is None else planned(way)
        gate = visit.batch not in track.opened
        return responder(visit.objective, track.chosen.name, path, self.memory, gate=gate, trial=trial)

    def refusal(self, forward: float, before: int = _CHOOSING) -> BudgetError:
        """The refusal of a budget in which no direction fits, with ``before`` it, in forwards, and one in which it does."""
        scales, points = len(self.probe.grid(1.0)), len(self.tracks)
        unit, least = _least(self, forward)
        needed = least + before * forward
        useful = needed + points * USEFUL * (unit + self.cost.each)
        each = f" for each of {points} checkpoints" if points > 1 else ""
        enough, whole = (self.work.budget.least(_MARGIN * seconds, self.reserve()) for seconds in (needed, useful))
        return BudgetError(
            f"budget must fit one direction at {scales} radii{each}, got {self.work.budget.seconds:g} s; one takes about "
            f"{unit:.2g} s; a budget of {time_text(enough)} is enough to begin, and {time_text(whole)} for {USEFUL} "
            f"directions{each}",
            enough,
        )

    def _units(self, track: Track, visit: Visit) -> None:
        """Evaluate the blocks that the banks of a visit lack."""
        lacking = {
            Unit(visit.place, visit.batch, bank, block)
            for bank, goal in visit.goals.items()
            for block in track.columns[bank].lacking(goal)
        }
        seconds = self.work.budget.remaining - self.reserve() if self.directions else math.inf
        start = self.work.budget.elapsed
        found = self.workers.map(sorted(lacking), seconds)
        try:
            for unit, data in found:
                value = decode(data)
                track.columns[unit.bank].add(unit.block, value)
                seconds = self.work.budget.elapsed - start
                self.work.unit = max(self.work.unit, seconds)
                self.evaluating, self.fresh = self.evaluating + seconds, self.fresh + value.even.shape[1]
                self._after(track.name)
                lacking.remove(unit)
                if lacking:
                    self.work.need(reserve=self.reserve())
                start = self.work.budget.elapsed
        finally:
            getattr(found, "close", bool)()  # what other processes have not begun is dropped
        if lacking:
            raise Deadline


def _least(visits: Visits, forward: float) -> tuple[float, float]:
    """Seconds of a direction, and of the least that is useful, given those of one evaluation."""
    chosen, scales, together = visits.chosen, len(visits.probe.grid(1.0)), 1
    unit = forward * (1 + 2 * scales)
    if chosen is not None:
        unit = chosen.seconds[chosen.name] * scales if chosen.name in chosen.seconds else unit
        together = 1 if chosen.path is None else in_units(chosen.path).chunk
    return unit, len(visits.tracks) * (unit * together + _OPENING * forward)
