"""One run of the multifractal probe: rounds of directions over checkpoints, under a budget."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from fastscape._checks import check_memory, checked_settings, positive
from fastscape._heap import Heap
from fastscape._keeping import patience
from fastscape.evaluation.trial import PathChoice
from fastscape.numerics.estimate import Estimate
from fastscape.probes.multifractal.description import AnalysisSettings
from fastscape.probes.multifractal.result import MultifractalResult, TrajectoryResult
from fastscape.probes.multifractal.resumption import LACKS, save_state
from fastscape.probes.multifractal.settings import ProbeSettings
from fastscape.probes.multifractal.trust import checked_windows
from fastscape.probes.multifractal.units import Point
from fastscape.probes.multifractal.visits import Visits
from fastscape.response.precision import AnyPath
from fastscape.runs.anytime import Anytime, Deadline, PartialResultError
from fastscape.runs.budget import Budget
from fastscape.runs.journal import Journal
from fastscape.runs.plan import Plan
from fastscape.runs.progress import Progress
from fastscape.runs.provenance import provenance
from fastscape.runs.units import Evaluate, Workers

DEFAULT_COUNT = 64
FIRST_ROUND = 2
_SHARE = 0.05  # of the budget, for each of the analyses on the way


class ProbeError(PartialResultError):
    """The model or the analysis raised. ``partial`` is the :class:`TrajectoryResult` of what had been evaluated."""

    partial: TrajectoryResult


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
        self.work = Anytime(budget if isinstance(budget, Budget) else Budget(budget))
        self.budget = self.work.budget
        self.probe = checked_settings("probe", probe, ProbeSettings)
        self.analysis = checked_settings("analysis", analysis, AnalysisSettings)
        if target is not None:
            positive("target", target, "a positive half-width of the M_tau interval")
        check_memory(memory)
        if self.analysis.windows is not None:
            checked_windows(self.analysis.windows, len(self.probe.grid(1.0)))
        self.target, self.path, self.memory, self.progress = target, path, memory, progress
        self.limit = self.probe.count or (None if self.budget.limited else DEFAULT_COUNT)
        self.estimate: Estimate | None = None
        self._where = "the start"
        self.workers: Callable[[Visits, Evaluate], Workers] | None = None
        self.bitwise = True  # whether all processes compute the same bits

    def run(
        self,
        points: Sequence[Point],
        extend: Sequence[MultifractalResult] | None = None,
        plans: Sequence[Plan] | None = None,
        journal: Journal | None = None,
    ) -> TrajectoryResult:
        """Probe the points; see :func:`fastscape.multifractal` for what can be raised."""
        if extend is not None and not all(isinstance(earlier, MultifractalResult) for earlier in extend):
            raise TypeError(f"extend must be an earlier result (fs.load reads one from a file), got {type(extend[0]).__name__}")
        if extend is not None and len(extend) != len(points):
            raise ValueError(f"extend must hold one result per checkpoint, got {len(extend)} for {len(points)}")
        if extend is not None and plans is not None:
            raise ValueError("plan must be left out with extend=, whose result has its own")
        self.journal = journal
        with Heap(self.memory, kept=True), self.budget.opening("direction", 0, lambda forward: self.visits.refusal(forward)):
            found = self._evaluated(points, extend, plans, journal)
        error = self.work.error
        if error is not None:
            raise ProbeError(f"the probe failed at {self._where}: {type(error).__name__}: {error}", found) from error
        return found

    def _evaluated(
        self,
        points: Sequence[Point],
        extend: Sequence[MultifractalResult] | None,
        plans: Sequence[Plan] | None,
        journal: Journal | None,
    ) -> TrajectoryResult:
        """The results of what was evaluated, whatever ended it."""
        self.visits = Visits(
            points, self.probe, self.work, self.path, self.memory, self._report, self.limit, self._keep, self.workers
        )
        if extend is not None:
            self.visits.restore(extend)
        if plans is not None:
            self.visits.obey(plans)
        if journal is not None:
            self.visits.resume(journal)
            self._keep_all()
        with self.work.ends(self._known, errors=self._known):
            self.work.reason = patience.at_once(self._rounds)
        self._close()
        return self._finished(self.work.reason)

    def _keep(self, place: int) -> None:
        """Write what was found out about a checkpoint to the journal."""
        if self.journal is not None:
            track = self.visits.tracks[place]
            track.notes = [note for note in track.notes if not note.startswith(LACKS)]
            track.note(save_state(self.journal, place, track, self.analysis))

    def _keep_all(self) -> None:
        """Write it of all that were visited, with what was noted since."""
        for place, track in enumerate(self.visits.tracks):
            if track.plan is not None:
                self._keep(place)

    def _close(self) -> None:
        """Take the journal to disk."""
        if self.journal is not None:
            self._keep_all()
            self.journal.close()
            self.visits.tracks[0].note(self.journal.note)

    def _known(self, _error: Exception | None = None) -> bool:
        return self.visits.directions > 0

    # ------------------------------------------------------------------ rounds

    def _rounds(self) -> str:
        if self.budget.limited:  # one direction at every checkpoint first
            self._round([1] + [0] * (self.probe.banks - 1))
        goal = max(FIRST_ROUND, self.visits.least)
        while True:
            goal = goal if self.limit is None else min(goal, self.limit)
            self._round([goal] * self.probe.banks)
            goal = max(goal, self.visits.least)  # the last blocks are whole
            if self.limit is not None and goal >= self.limit:
                return "all directions done"
            if self._satisfied():
                return "target met"
            goal = self._next_goal(goal)

    def _round(self, goals: Sequence[int]) -> None:
        """Evaluate what every checkpoint lacks up to ``goals[bank]`` directions."""
        for place, point in enumerate(self.visits.points):
            self._where = point.name
            self.visits.advance(place, goals)

    def _next_goal(self, goal: int) -> int:
        """Twice as many directions, or as many as every bank of every checkpoint can have before the deadline."""
        if not self.budget.limited:
            return 2 * goal
        streams = len(self.visits.tracks) * self.probe.banks
        per_direction = 1.1 * self.visits.evaluating / max(1, self.visits.fresh) + self.visits.cost.each
        spare = self.budget.remaining - self.visits.reserve()
        affordable = int(spare / (per_direction * streams)) if per_direction > 0 else goal
        path = self.visits.path
        chunk = path.chunk if isinstance(path, PathChoice) else 1
        extra = min(goal, affordable // chunk * chunk)
        if extra < 1:
            raise Deadline
        return goal + extra

    def _satisfied(self) -> bool:
        """Whether every interval is narrow enough; analyses the first checkpoint anyway, to time it and for the progress."""
        if self.target is None and not self.budget.limited and self.progress is None:
            return False
        if self.visits.reserve() > (_SHARE if self.target is None else 0.5) * self.budget.remaining:
            return False  # an analysis on the way is not worth its time
        met = self.target is not None
        for track in self.visits.tracks if met else self.visits.tracks[:1]:
            start = self.budget.elapsed
            estimate = track.measured().analyse(self.analysis).estimates.get("m_tau_supported")
            self.visits.cost.time(track.directions, self.budget.elapsed - start)
            if track is self.visits.tracks[0]:
                self.estimate = estimate
            low, high = estimate.interval if estimate is not None else (-math.inf, math.inf)
            met = met and self.target is not None and (high - low) / 2 <= self.target
        return met

    def _report(self, name: str) -> None:
        if self.progress is None:
            return
        done = self.visits.directions
        total = None if self.limit is None else self.limit * self.probe.banks * len(self.visits.tracks)
        share = done / total if total else 0.0
        self.progress(Progress.under(self.budget, name, share, unit="direction", done=done, total=total, m_tau=self.estimate))

    # ------------------------------------------------------------------ results

    def _finished(self, reason: str) -> TrajectoryResult:
        """The results. The first Ctrl-C of a run makes their analysis quicker, the second leaves it out."""
        quick = dataclasses.replace(
            self.analysis, bootstrap=min(100, self.analysis.bootstrap), permutations=min(99, self.analysis.permutations)
        )
        for settings in (self.analysis,) if reason == "interrupted" else (self.analysis, quick):
            try:
                return patience.at_once(functools.partial(self._result, reason, settings))
            except KeyboardInterrupt:  # the evaluations are kept
                reason = "interrupted"
            except Exception as error:
                if self.work.error is None:
                    self.work.error, self._where = error, "the analysis, which partial.reanalyse() makes of its evaluations"
                reason = f"failed: {type(error).__name__}"
                break
        return self._result(reason, self.analysis, analysed=False)

    def _result(self, reason: str, settings: AnalysisSettings, *, analysed: bool = True) -> TrajectoryResult:
        for point, track in zip(self.visits.points, self.visits.tracks, strict=True):
            if not track.opened:
                track.describe(point.objective())
        points = [track.result(settings, reason, analysed=analysed) for track in self.visits.tracks]
        run = provenance() | {
            "stop_reason": reason,
            "run_seconds": self.budget.elapsed,
            "budget": self.budget.seconds if self.budget.limited else None,
            "target": self.target,
            **self._by(),
        }
        planned = [{} if track.plan is None else {"threads": track.plan.threads} for track in self.visits.tracks]
        finished = tuple(
            dataclasses.replace(point, meta=point.meta | run | threads) for point, threads in zip(points, planned, strict=True)
        )
        return TrajectoryResult(finished, run)

    def _by(self) -> dict[str, Any]:
        """Entries of ``meta`` on who evaluated, and whether every bit is as the plan says."""
        found = dict(self.visits.workers.meta)
        lanes = self.visits.evaluate.lanes
        short = {} if lanes is None else {"lanes": lanes}
        return found | short | ({"bitwise": False} if short or not self.bitwise or found.get("workers", {}).get("oom") else {})
