"""One run of the multifractal probe: rounds of directions over checkpoints, under a budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastscape._checks import checked_settings, first_line
from fastscape.differences.evaluator import DifferenceEvaluator
from fastscape.differences.propagation import MissingRuleError
from fastscape.differences.refusals import UntraceableError
from fastscape.directions import Directions
from fastscape.evaluation.evaluator import Evaluator, PathChoice
from fastscape.evaluation.points import blocks
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate
from fastscape.objective.objective import Objective
from fastscape.probes.multifractal.analysis import AnalysisSettings
from fastscape.probes.multifractal.evaluated import Track
from fastscape.probes.multifractal.result import MultifractalResult, TrajectoryResult
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.probes.multifractal.trust import checked_windows
from fastscape.response.precision import AnyPath, PrecisionChoice, choose_precision, measure_noise, refused_precision, responder
from fastscape.runs.budget import Budget, time_text
from fastscape.runs.provenance import provenance

DEFAULT_COUNT = 64
FIRST_ROUND = 2
_ANALYSIS, _ANALYSIS_RATE = 0.1, 3e-4  # seconds to analyse a checkpoint with few directions, and per direction
USEFUL = 100  # directions that a run should have
_MARGIN = 1.25  # how much longer than one evaluation, timed once, predicts
_RESERVE = 1.5  # how much longer than foreseen an analysis may take
_SHARE = 0.05  # of the budget, for each of the trial of paths and analyses on the way
_CHOICE = 0.2  # of the budget, for trying arithmetics
_OPENING = 40  # evaluations on a first visit: gate, trial of the path, noise, steps, influence, loss and accuracy


@dataclass(frozen=True)
class Point:
    """A checkpoint to probe: its name, training step, and how to get its objective."""

    name: str
    step: int | None
    objective: Callable[[], Objective]


@dataclass(frozen=True)
class Progress:
    """State of a run after a block of directions.

    Attributes:
        checkpoint: being probed.
        directions: evaluated so far, over all checkpoints and banks.
        total: how many there will be; ``None`` under an open-ended budget.
        fraction: of the run, in [0, 1].
        elapsed, remaining: seconds; the latter is an estimate.
        m_tau: latest estimate on the supported orders at the first checkpoint, once a round is complete.
    """

    checkpoint: str
    directions: int
    total: int | None
    fraction: float
    elapsed: float
    remaining: float
    m_tau: Estimate | None


class ProbeError(RuntimeError):
    """The model raised midway. ``partial`` is the :class:`TrajectoryResult` of what had been evaluated."""

    def __init__(self, message: str, partial: TrajectoryResult) -> None:
        super().__init__(message)
        self.partial = partial


class _Deadline(Exception):  # noqa: N818 - a signal, not an error
    """The next unit of work does not fit in the budget."""


class Session:
    """Evaluate rounds of directions over points until the count, the target or the deadline; then analyse."""

    def __init__(
        self,
        probe: ProbeSettings | None,
        analysis: AnalysisSettings | None,
        budget: str | float | Budget | None,
        target: float | None,
        path: AnyPath | None,
        memory: int | None,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self.budget = budget if isinstance(budget, Budget) else Budget(budget)
        self.probe = checked_settings("probe", probe, ProbeSettings)
        self.analysis = checked_settings("analysis", analysis, AnalysisSettings)
        if target is not None and not (math.isfinite(target) and target > 0):
            raise ValueError(f"target must be a positive half-width of the M_tau interval, got {target!r}")
        if self.analysis.windows is not None:
            checked_windows(self.analysis.windows, len(self.probe.grid(1.0)))
        asked = self.probe.precision
        self.chosen = None if asked is None else PrecisionChoice(asked, "asked for")
        self.target, self.memory, self.progress = target, memory, progress
        self.path: AnyPath | PathChoice | None = path
        self.limit = self.probe.count or (None if self.budget.limited else DEFAULT_COUNT)
        self.estimate: Estimate | None = None
        self.unit = 0.0  # seconds of the slowest block so far
        self.evaluating, self.fresh = 0.0, 0  # seconds of all blocks, and the directions in them
        self.opening = 0.0  # seconds of the slowest first visit so far
        self.analysis_fixed, self.analysis_rate = _ANALYSIS, _ANALYSIS_RATE  # seconds, and seconds per direction
        self.analysis_seen: int | None = None  # directions of the first analysis that was timed
        self.tracks: list[Track] = []
        self._points: Sequence[Point] = ()
        self._where = "the start"

    def run(self, points: Sequence[Point], extend: Sequence[MultifractalResult] | None = None) -> TrajectoryResult:
        """Probe the points; see :func:`fastscape.multifractal` for what can be raised."""
        if extend is not None and not all(isinstance(earlier, MultifractalResult) for earlier in extend):
            raise TypeError(f"extend must be an earlier result (fs.load reads one from a file), got {type(extend[0]).__name__}")
        if extend is not None and len(extend) != len(points):
            raise ValueError(f"extend must hold one result per checkpoint, got {len(extend)} for {len(points)}")
        self.tracks = [Track(point.name, point.step, self.probe) for point in points]
        self._points = points
        if self.chosen is not None:
            self._settle(self.chosen)
        if self.chosen is not None:
            self._settle(self.chosen)
        for point, track, earlier in zip(points, self.tracks, extend or (), strict=False):
            if earlier.directions:
                before = PrecisionChoice(earlier.meta["precision"], "that of the result to extend")
                if self.chosen is None:
                    self._settle(before)
                elif self.probe.precision is None and before.name != self.chosen.name:
                    track.chosen = before  # a checkpoint that difference propagation refused
                track.restore(earlier, point.objective())
                if track.chosen is self.chosen:
                    self.path = self.path or PathChoice(**earlier.meta["path"])
        try:
            reason = self._rounds()
        except _Deadline:
            reason = "deadline"
        except KeyboardInterrupt:
            if not any(track.directions for track in self.tracks):
                raise
            reason = "interrupted"
        except Exception as error:
            if not any(track.directions for track in self.tracks):
                raise
            partial = self._finished(f"failed: {type(error).__name__}")
            raise ProbeError(f"the probe failed at {self._where}: {type(error).__name__}: {error}", partial) from error
        return self._finished(reason)

    # ------------------------------------------------------------------ rounds

    def _rounds(self) -> str:
        if self.budget.limited:  # one direction at every checkpoint first
            self._round([1] + [0] * (self.probe.banks - 1))
        goal = max(FIRST_ROUND, min(min(track.counts) for track in self.tracks))
        while True:
            goal = goal if self.limit is None else min(goal, self.limit)
            self._round([goal] * self.probe.banks)
            if self.limit is not None and goal >= self.limit:
                return "all directions done"
            if self._satisfied():
                return "target met"
            goal = self._next_goal(goal)

    def _round(self, goals: Sequence[int]) -> None:
        """Evaluate what every checkpoint lacks up to ``goals[bank]`` directions."""
        for point, track in zip(self._points, self.tracks, strict=True):
            self._where = point.name
            self._advance(point, track, goals)

    def _next_goal(self, goal: int) -> int:
        """Twice as many directions, or as many as every bank of every checkpoint can have before the deadline."""
        if not self.budget.limited:
            return 2 * goal
        streams = len(self.tracks) * self.probe.banks
        per_direction = 1.1 * self.evaluating / max(1, self.fresh) + _RESERVE * self.analysis_rate
        spare = self.budget.remaining - self._reserve()
        affordable = int(spare / (per_direction * streams)) if per_direction > 0 else goal
        chunk = self.path.chunk if isinstance(self.path, PathChoice) else 1
        extra = min(goal, affordable // chunk * chunk)
        if extra < 1:
            raise _Deadline
        return goal + extra

    def _satisfied(self) -> bool:
        """Whether every interval is narrow enough; analyses the first checkpoint anyway, to time it and for the progress."""
        if self.target is None and not self.budget.limited and self.progress is None:
            return False
        if self._reserve() > (_SHARE if self.target is None else 0.5) * self.budget.remaining:
            return False  # an analysis on the way is not worth its time
        met = self.target is not None
        for track in self.tracks if met else self.tracks[:1]:
            start = self.budget.elapsed
            estimate = track.measured().analyse(self.analysis).estimates.get("m_tau_supported")
            self._time_analysis(track.directions, self.budget.elapsed - start)
            if track is self.tracks[0]:
                self.estimate = estimate
            low, high = estimate.interval if estimate is not None else (-math.inf, math.inf)
            met = met and self.target is not None and (high - low) / 2 <= self.target
        return met

    def _reserve(self) -> float:
        """Seconds that the final analysis will take."""
        return _RESERVE * (len(self.tracks) * self.analysis_fixed + self.analysis_rate * self._directions())

    def _time_analysis(self, directions: int, seconds: float) -> None:
        """Split the cost of an analysis into a fixed part, seen at few directions, and a part per direction."""
        if self.analysis_seen is None:
            self.analysis_seen, self.analysis_fixed = directions, seconds
        elif directions > self.analysis_seen:
            rate = (seconds - self.analysis_fixed) / (directions - self.analysis_seen)
            self.analysis_rate = max(rate, _ANALYSIS_RATE)

    def _advance(self, point: Point, track: Track, goals: Sequence[int]) -> None:
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
            visit = self.unit if batch in track.opened else self.unit + self.opening
            if self._directions() and not self.budget.admits(visit, self._reserve()):
                raise _Deadline
            if self.chosen is None:
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
        start = self.budget.elapsed
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
            trial = _CHOICE * self.budget.seconds
            chosen = choose_precision(objective, directions, radii, path=path, memory=self.memory, trial=trial)
        track.evaluations += chosen.evaluations
        self.path = chosen.path or self.path
        self._settle(chosen)

    def _settle(self, chosen: PrecisionChoice) -> None:
        """Use one arithmetic for all checkpoints."""
        self.chosen = chosen
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
        if not self._directions():
            self._check_budget((self.budget.elapsed - start) / evaluator.replica.gate)
        choice = evaluator.choose(directions, radii.tolist())
        if track.chosen is self.chosen:
            self.path = choice
        if batch not in track.opened:
            noise = measure_noise(evaluator, directions, radii, zeros=True)
            track.evaluations += noise.evaluations
            track.open(batch, whole, directions, radii, noise, choice)
            self.opening = max(self.opening, self.budget.elapsed - start)

    def _evaluator(self, track: Track, objective: Objective, *, gate: bool) -> Evaluator | DifferenceEvaluator:
        assert track.chosen is not None
        trial = _SHARE * self.budget.seconds
        path = self.path if track.chosen is self.chosen else None  # measured for the arithmetic of the run
        return responder(objective, track.chosen.name, path, self.memory, gate=gate, trial=trial)

    def _check_budget(self, forward: float) -> None:
        """Refuse a budget that cannot hold one direction at every checkpoint, given the seconds of one evaluation."""
        scales, points = len(self.probe.grid(1.0)), len(self.tracks)
        assert self.chosen is not None
        measured = self.chosen.seconds.get(self.chosen.name)
        unit = forward * (1 + 2 * scales) if measured is None else measured * scales
        needed = points * (unit + _OPENING * forward)
        useful = needed + points * USEFUL * (unit + _RESERVE * self.analysis_rate)
        if not self.budget.admits(needed):
            each = f" for each of {points} checkpoints" if points > 1 else ""
            first, run = (time_text(self.budget.least(_MARGIN * seconds, self._reserve())) for seconds in (needed, useful))
            raise ValueError(
                f"budget must fit one direction at {scales} radii{each}, got {self.budget.seconds:g} s; one takes about "
                f"{unit:.2g} s; a budget of {first} is enough to begin, and {run} for {USEFUL} directions{each}"
            )

    def _bank(
        self, track: Track, evaluator: Evaluator | DifferenceEvaluator, directions: Directions, bank: int, goal: int
    ) -> None:
        assert evaluator.choice is not None
        radii = track.radii.tolist()
        first = track.counts[bank]
        for block in blocks(goal - first, evaluator.choice.chunk):
            indices = range(first + block[0], first + block[-1] + 1)
            if self._directions() and not self.budget.admits(self.unit, self._reserve()):
                raise _Deadline
            start = self.budget.elapsed
            track.add(bank, *evaluator.responses(directions, indices, radii))
            seconds = self.budget.elapsed - start
            self.unit = max(self.unit, seconds)
            self.evaluating, self.fresh = self.evaluating + seconds, self.fresh + len(indices)
            self._report(track.name)

    def _report(self, name: str) -> None:
        if self.progress is None:
            return
        done, elapsed = self._directions(), self.budget.elapsed
        total = None if self.limit is None else self.limit * self.probe.banks * len(self.tracks)
        by_count = done / total if total else 0.0
        fraction = min(1.0, max(by_count, elapsed / self.budget.seconds))
        remaining = elapsed * (1 - fraction) / fraction if fraction > 0 else math.inf
        self.progress(Progress(name, done, total, fraction, elapsed, min(remaining, self.budget.remaining), self.estimate))

    def _directions(self) -> int:
        return sum(track.directions for track in self.tracks)

    # ------------------------------------------------------------------ results

    def _finished(self, reason: str) -> TrajectoryResult:
        """The results. The first Ctrl-C of a run makes their analysis quicker, the second leaves it out."""
        quick = dataclasses.replace(
            self.analysis, bootstrap=min(100, self.analysis.bootstrap), permutations=min(99, self.analysis.permutations)
        )
        for settings in (self.analysis,) if reason == "interrupted" else (self.analysis, quick):
            try:
                return self._result(reason, settings)
            except KeyboardInterrupt:  # the evaluations are kept
                reason = "interrupted"
        return self._result(reason, self.analysis, analysed=False)

    def _result(self, reason: str, settings: AnalysisSettings, *, analysed: bool = True) -> TrajectoryResult:
        for point, track in zip(self._points, self.tracks, strict=True):
            if not track.opened:
                track.describe(point.objective())
        points = [track.result(settings, reason, analysed=analysed) for track in self.tracks]
        run: dict[str, Any] = {
            "stop_reason": reason,
            "run_seconds": self.budget.elapsed,
            "budget": self.budget.seconds if self.budget.limited else None,
            "target": self.target,
            **provenance(),
        }
        finished = tuple(dataclasses.replace(point, meta=point.meta | run) for point in points)
        return TrajectoryResult(finished, run)


def _direction_arguments(probe: ProbeSettings) -> dict[str, Any]:
    return {name: getattr(probe, name) for name in ("distribution", "normalize", "scale", "one_d", "zero_norm")}
