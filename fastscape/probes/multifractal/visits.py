"""Directions of the multifractal probe at checkpoints: the arithmetic, the paths, and the blocks that a visit evaluates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastscape._checks import first_line
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.differences.propagation import MissingRuleError
from fastscape.differences.tracing_errors import UntraceableError
from fastscape.directions import Directions
from fastscape.evaluation.evaluator import Evaluator
from fastscape.evaluation.points import blocks
from fastscape.evaluation.trial import PathChoice
from fastscape.numerics.arrays import Array
from fastscape.objective.objective import Objective
from fastscape.probes.multifractal.evaluated import Track
from fastscape.probes.multifractal.result import MultifractalResult
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.response.precision import AnyPath, PrecisionChoice, choose_precision, measure_noise, refused_precision, responder
from fastscape.runs.anytime import Anytime
from fastscape.runs.budget import BudgetError, time_text

_ANALYSIS, _ANALYSIS_RATE = 0.1, 3e-4  # seconds to analyse a checkpoint with few directions, and per direction
USEFUL = 100  # directions that a run should have
_MARGIN = 1.25  # how much longer than one evaluation, timed once, predicts
_RESERVE = 1.5  # how much longer than foreseen an analysis may take
TRIAL = 0.05  # of the budget, for a trial of paths
_CHOICE = 0.2  # of the budget, for trying arithmetics
_OPENING = 40  # evaluations on a first visit: gate, trial of the path, noise, steps, influence, loss and accuracy


@dataclass(frozen=True)
class Point:
    """A checkpoint to probe: its name, training step, and how to get its objective."""

    name: str
    step: int | None
    objective: Callable[[], Objective]


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


class Visits:
    """Evaluate directions at checkpoints, in one arithmetic for all of them, while they fit.

    Args:
        points: the checkpoints.
        probe: settings.
        work: the time; a unit is the slowest block of directions so far.
        path, memory: of the evaluation.
        after: called with the checkpoint's name after every block.

    Attributes:
        tracks: what is known of each checkpoint.
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
    ) -> None:
        self.points, self.probe, self.work, self.memory, self._after = points, probe, work, memory, after
        self.path: AnyPath | PathChoice | None = path
        self.tracks = [Track(point.name, point.step, probe) for point in points]
        self.cost = AnalysisCost()
        self.evaluating, self.fresh = 0.0, 0
        self._opening = 0.0  # seconds of the slowest first visit so far
        self._chosen: PrecisionChoice | None = None
        if probe.precision is not None:
            self._settle(PrecisionChoice(probe.precision, "asked for"))

    @property
    def directions(self) -> int:
        """Evaluated so far, over all checkpoints and banks."""
        return sum(track.directions for track in self.tracks)

    def reserve(self) -> float:
        """Seconds that the final analysis will take."""
        return self.cost.of(len(self.tracks), self.directions)

    def restore(self, earlier: Sequence[MultifractalResult]) -> None:
        """Go on from earlier results, one per checkpoint."""
        for point, track, result in zip(self.points, self.tracks, earlier, strict=True):
            if result.directions:
                before = PrecisionChoice(result.meta["precision"], "that of the result to extend")
                if self._chosen is None:
                    self._settle(before)
                elif self.probe.precision is None and before.name != self._chosen.name:
                    track.chosen = before  # a checkpoint that difference propagation refused
                track.restore(result, point.objective())
                if track.chosen is self._chosen:
                    self.path = self.path or PathChoice(**result.meta["path"])

    def advance(self, point: Point, track: Track, goals: Sequence[int]) -> None:
        """Evaluate the directions that a point lacks up to ``goals[bank]``."""
        lacking = [bank for bank, count in enumerate(track.counts) if count < goals[bank]]
        if not lacking:
            return
        whole = point.objective()
        directions = Directions(whole, count=2**32, seed=self.probe.bank_seed(0), **_direction_arguments(self.probe))
        objectives = [whole] if self.probe.bank_batches == "all" else [whole.on(b) for b in range(len(whole.batches))]
        radii = self.probe.grid(directions.weight_norm)
        for batch, objective in enumerate(objectives):
            banks = [bank for bank in lacking if bank % len(objectives) == batch]
            if not banks:
                continue
            if self.directions:
                self.work.need(self.work.unit + (0.0 if batch in track.opened else self._opening), self.reserve())
            if self._chosen is None:
                self._choose(track, objective, directions, radii)
            visit_banks = {bank: goals[bank] for bank in banks}
            try:
                self._visit(track, whole, objective, directions, radii, batch, visit_banks)
            except (MissingRuleError, UntraceableError) as error:
                if self.probe.precision is not None or track.directions:
                    raise refused_precision(track.chosen.name if track.chosen else "difference", error) from error
                words = f"difference propagation refused this checkpoint: {first_line(error)[:300]}"
                track.chosen = PrecisionChoice("float64", words)
                self._visit(track, whole, objective, directions, radii, batch, visit_banks)

    def _visit(
        self,
        track: Track,
        whole: Objective,
        objective: Objective,
        directions: Directions,
        radii: Array,
        batch: int,
        goals: Mapping[int, int],
    ) -> None:
        """Evaluate what some banks of one batch of a checkpoint lack."""
        _ = objective.findings  # of the first evaluation, which no later one repeats
        start = self.work.budget.elapsed
        with self._evaluator(track, objective, gate=batch not in track.opened) as evaluator, track.timed():
            try:
                self._open(track, whole, evaluator, directions, radii, batch, start)
                for bank, goal in goals.items():
                    self._bank(track, evaluator, directions.with_seed(self.probe.bank_seed(bank)), bank, goal)
            finally:
                track.evaluations += evaluator.evaluations
                if isinstance(evaluator, DifferenceEvaluator):
                    track.handle(evaluator.handling)

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
        self._chosen = chosen
        for track in self.tracks:
            track.chosen = chosen

    def _open(
        self,
        track: Track,
        whole: Objective,
        evaluator: Evaluator | DifferenceEvaluator,
        directions: Directions,
        radii: Array,
        batch: int,
        start: float,
    ) -> None:
        """On the first visit: check the budget, choose the path, measure the noise."""
        if not self.directions:
            self._check_budget((self.work.budget.elapsed - start) / evaluator.replica.gate)
        choice = evaluator.choose(directions, radii.tolist())
        if track.chosen is self._chosen:
            self.path = choice
        if batch not in track.opened:
            noise = measure_noise(evaluator, directions, radii, zeros=True)
            track.evaluations += noise.evaluations
            track.open(batch, whole, directions, radii, noise, choice)
            self._opening = max(self._opening, self.work.budget.elapsed - start)

    def _evaluator(self, track: Track, objective: Objective, *, gate: bool) -> Evaluator | DifferenceEvaluator:
        assert track.chosen is not None
        trial = TRIAL * self.work.budget.seconds
        path = self.path if track.chosen is self._chosen else None  # measured for the arithmetic of the run
        return responder(objective, track.chosen.name, path, self.memory, gate=gate, trial=trial)

    def _check_budget(self, forward: float) -> None:
        """Refuse a budget that cannot hold one direction at every checkpoint, given the seconds of one evaluation."""
        scales, points = len(self.probe.grid(1.0)), len(self.tracks)
        assert self._chosen is not None
        measured = self._chosen.seconds.get(self._chosen.name)
        unit = forward * (1 + 2 * scales) if measured is None else measured * scales
        needed = points * (unit + _OPENING * forward)
        useful = needed + points * USEFUL * (unit + self.cost.each)
        if not self.work.budget.admits(needed):
            each = f" for each of {points} checkpoints" if points > 1 else ""
            enough, whole = (self.work.budget.least(_MARGIN * seconds, self.reserve()) for seconds in (needed, useful))
            raise BudgetError(
                f"budget must fit one direction at {scales} radii{each}, got {self.work.budget.seconds:g} s; one takes about "
                f"{unit:.2g} s; a budget of {time_text(enough)} is enough to begin, and {time_text(whole)} for {USEFUL} "
                f"directions{each}",
                enough,
            )

    def _bank(
        self, track: Track, evaluator: Evaluator | DifferenceEvaluator, directions: Directions, bank: int, goal: int
    ) -> None:
        assert evaluator.choice is not None
        radii = track.radii.tolist()
        first = track.counts[bank]
        for block in blocks(goal - first, evaluator.choice.chunk):
            indices = range(first + block[0], first + block[-1] + 1)
            if self.directions:
                self.work.need(reserve=self.reserve())
            start = self.work.budget.elapsed
            track.add(bank, *evaluator.responses(directions, indices, radii))
            seconds = self.work.budget.elapsed - start
            self.work.unit = max(self.work.unit, seconds)
            self.evaluating, self.fresh = self.evaluating + seconds, self.fresh + len(indices)
            self._after(track.name)


def _direction_arguments(probe: ProbeSettings) -> dict[str, Any]:
    return {name: getattr(probe, name) for name in ("distribution", "normalize", "scale", "one_d", "zero_norm")}
