"""Losses along a path between two solutions, refined around its maximum, and the barriers they tell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from fastscape._checks import amount, flag, integer, real, shown
from fastscape._clock import now
from fastscape.evaluation.arithmetic import measured_in
from fastscape.evaluation.batch_statistics import BatchNorm, checked_mode, recalibrate
from fastscape.evaluation.losses import checked_dtype
from fastscape.evaluation.noise import rounding
from fastscape.evaluation.surface.surface import Surface
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate, unknown
from fastscape.numerics.positive import within
from fastscape.objective.objective import Objective, checked_objective
from fastscape.objective.replica import Replica
from fastscape.probes.barriers.end_points import EndPoint
from fastscape.probes.barriers.maxima import band, largest_of_lesser, maximum
from fastscape.probes.barriers.refinement import coarse_to_fine, refine
from fastscape.probes.barriers.result import BarrierResult
from fastscape.probes.barriers.weight_paths import Segment
from fastscape.runs.anytime import Anytime, Deadline
from fastscape.runs.evaluations import Evaluations
from fastscape.runs.provenance import Provenance, objective_meta
from fastscape.runs.run import Run

_LEAST = 3  # points that a budget must hold: the ends and the middle
_SINGLE = math.sqrt(6)  # the rounding model is of a second difference, one of whose losses carries a sixth of its variance
_FACTOR = 18 / 11  # width over value of an interval whose ends are a factor of 10 apart
_ROUNDINGS = 8  # times the rounding noise below which a maximum cannot be located


@dataclass(frozen=True)
class Goals:
    """Request of the user; see :func:`fastscape.barrier`."""

    points: int
    start: int
    tolerance: float
    batch_norm: str
    matched: bool
    precision: torch.dtype | None
    seed: int

    def settings(self) -> dict[str, Any]:
        """As JSON data."""
        return dataclasses.asdict(self) | {"precision": None if self.precision is None else str(self.precision)[6:]}


def checked_goals(
    objective: Objective, points: int, start: int, tolerance: float, bn: BatchNorm | None, match: bool, work: Run
) -> Goals:
    """Settings of a path, with the precision and the seed of ``work``.

    Raises:
        TypeError, ValueError: naming the argument, its value and what is allowed.
    """
    checked_objective(objective)
    if integer("start", start, 3) > amount("points", points, 3):
        raise ValueError(f"points must be at least start = {start}, got {points}; start is the first, even grid of a path")
    if not (real(tolerance) and 0 <= tolerance < math.inf):
        raise ValueError(f"tolerance must be finite and not negative, got {shown(tolerance)}; 0 refines until points are used up")
    mode = checked_mode(objective, bn, "batch" if objective.batch_norm_asked == "batch" else "recalibrate")
    dtype = None if work.precision is None else checked_dtype(work.precision)
    return Goals(points, start, float(tolerance), mode, flag("match", match), dtype, integer("seed", work.seed, 0, 2**64))


@dataclass(frozen=True)
class Point:
    """One point of a path: its loss, and what batches and samples contribute."""

    loss: float
    stderr: float
    accuracy: float | None
    parts: Array  # [samples], or [batches] where samples are not known
    hits: Array | None


@dataclass
class Line:
    """The points of one path so far, and why no more came."""

    points: dict[float, Point] = field(default_factory=dict)
    resolution: float = math.inf
    reason: str = "complete"

    @property
    def alphas(self) -> list[float]:
        """Ascending."""
        return sorted(self.points)

    def table(self, name: str) -> Array:
        """An attribute of all points, by ascending alpha."""
        return np.array([getattr(self.points[alpha], name) for alpha in self.alphas], dtype=np.float64)

    @property
    def whole(self) -> bool:
        """Whether both ends are known."""
        return {0.0, 1.0} <= self.points.keys()


def chord(values: Array, alphas: Array) -> Array:
    """The straight line between the first and last row of ``values`` ``[A, ...]``; exact at both, and where they are equal."""
    share = alphas.reshape(-1, *[1] * (values.ndim - 1))
    with np.errstate(invalid="ignore", over="ignore"):
        step = values[-1:] - values[:1]
        line: Array = np.where(share < 0.5, values[:1] + share * step, values[-1:] - (1 - share) * step)
    return line


class PathLosses:
    """Losses along segments or curves of one objective, in one prepared evaluation.

    Args:
        objective: the function; all of its parameters are moved.
        first: an end, whose weights pass the determinism gate.
        goals: settings.
        report: called with the number of points after every point.
        evaluations: those of a journal.
    """

    def __init__(
        self,
        objective: Objective,
        first: EndPoint,
        goals: Goals,
        report: Callable[[int], None] | None = None,
        evaluations: Evaluations | None = None,
    ) -> None:
        self.goals, self._report, self.kept = goals, report, evaluations or Evaluations()
        normal = objective if goals.batch_norm == "none" else objective.normalised(_mode(goals.batch_norm))
        self.objective = normal.at(first.state).whole()

    @contextmanager
    def along(self, path: Segment) -> Iterator[PathLosses]:
        """Prepare the evaluation of a path, whose ends may be turned to others within the block."""

        def prepare(replica: Replica, coordinates: Sequence[float]) -> None:
            path.write_buffers(replica, coordinates)
            if self.goals.batch_norm == "recalibrate":
                recalibrate(replica)

        with Surface(
            self.objective,
            path,
            dtype=self.goals.precision,
            method="loop",
            keep_samples=True,
            prepare=prepare,
            evaluations=self.kept,
        ) as surface:
            self.surface, self.unit = surface, 0.0
            self.noise = rounding(surface.replica) / _SINGLE
            yield self

    def walk(self, line: Line, run: Anytime, reserve: float = 0.0) -> Line:
        """Fill a line: the even grid coarse to fine, then the intervals that may hide the most; what ends the run keeps points.

        Raises:
            Deadline: with fewer than three points.
        """
        with run.ends(lambda: line.whole, errors=lambda _: line.whole):
            for alpha in self._wanted(line):
                if len(line.points) >= _LEAST:
                    run.need(self.unit, reserve)
                line.points[alpha] = self.at(alpha)
                if self._report is not None:
                    self._report(len(line.points))
        if run.reason == "deadline" and len(line.points) < _LEAST:
            raise Deadline
        line.reason, line.resolution = run.reason, self._open(line)[1]
        return line

    def _wanted(self, line: Line) -> Iterator[float]:
        """The points that a line lacks, each chosen when those before it are known."""
        goals = self.goals
        yield from (alpha for alpha in coarse_to_fine(goals.start) if alpha not in line.points)
        while True:
            alpha, resolution = self._open(line)
            fine = max(goals.tolerance * _range(line.table("loss"), 0.0), _ROUNDINGS * self.noise)
            if resolution <= fine or len(line.points) >= goals.points:
                return
            yield alpha

    def _open(self, line: Line) -> tuple[float, float]:
        """Where the largest loss, or the largest rise above the chord, may hide, and by how much it may exceed what is known."""
        alphas, losses = np.array(line.alphas), line.table("loss")
        with np.errstate(invalid="ignore"):
            return refine(alphas, (losses - chord(losses, alphas), losses))

    def at(self, alpha: float) -> Point:
        """One point."""
        began = now() + self.kept.seconds
        found = self.surface.at([alpha])
        self.unit = now() + self.kept.seconds - began
        return Point(
            loss=float(found.losses[0]),
            stderr=float(found.stderr[0]),
            accuracy=None if found.accuracy is None else float(found.accuracy[0]),
            parts=found.batches[0] if found.samples is None else found.samples[0],
            hits=None if found.hits is None else found.hits[0],
        )


def _mode(batch_norm: str) -> Literal["running", "batch"]:
    return "batch" if batch_norm == "batch" else "running"


def barrier_result(
    losses: PathLosses,
    line: Line,
    path: Segment,
    ends: tuple[EndPoint, EndPoint],
    run: Anytime,
    *,
    name: str,
    step: int | None,
    meta: Provenance,
) -> BarrierResult:
    """The barriers of a line, with intervals from the samples' own differences; ``run`` keeps what their analysis raises."""
    alphas, values, terms = np.array(line.alphas), line.table("loss"), losses.surface.terms
    accuracy = line.table("accuracy") if terms.targets else None
    lost = unknown(len(terms.weights))
    found = run.analysed(
        lambda: _maxima(losses, line), _Maxima(lost, lost, lost, None if accuracy is None else lost, math.nan, math.nan)
    )
    return BarrierResult(
        name=name,
        step=step,
        a=ends[0].label,
        b=ends[1].label,
        path="line" if type(path) is Segment else "curve",
        alphas=alphas,
        losses=values,
        stderr=line.table("stderr"),
        accuracy=accuracy,
        linear=found.linear,
        end=found.end,
        max=found.max,
        argmax=found.place,
        argmax_loss=found.top,
        accuracy_barrier=found.drop,
        distance=Segment.distance(path),
        length=path.length(),
        resolution=line.resolution,
        noise=losses.noise,
        nonfinite=int((~np.isfinite(values)).sum()),
        batch_norm=losses.goals.batch_norm,
        matched=losses.goals.matched,
        meta=meta | {"unit": terms.unit, "stop_reason": line.reason if run.error is None else run.reason},
        notes=(*measured_in(losses.objective, losses.surface.dtype).notes, *losses.kept.notes),
    )


@dataclass(frozen=True)
class _Maxima:
    """Barriers of a line, and where they are reached."""

    linear: Estimate
    end: Estimate
    max: Estimate
    drop: Estimate | None
    place: float
    top: float


def _maxima(losses: PathLosses, line: Line) -> _Maxima:
    terms, seed = losses.surface.terms, losses.goals.seed
    alphas, values = np.array(line.alphas), line.table("loss")
    parts, weights = line.table("parts"), terms.weights
    with np.errstate(invalid="ignore", over="ignore"):
        rise = band(values - chord(values, alphas), parts - chord(parts, alphas), weights, seed=seed)
        ends_lost = np.concatenate([values - values[0], values - values[-1]])
        pairs = np.concatenate([parts - parts[0], parts - parts[-1]])
        above = band(ends_lost, pairs, weights, seed=seed)
    linear, place = maximum(rise, 0.0)
    largest, top = maximum(band(values, parts, weights, seed=seed))
    noun, span, drop = "batch" if terms.unit == "batches" else "sample", _range(values), None
    if terms.targets:
        accuracy, hits = line.table("accuracy"), line.table("hits")
        fall = band(chord(accuracy, alphas) - accuracy, chord(hits, alphas) - hits, terms.counts().astype(float), seed=seed)
        drop = within(maximum(fall, 0.0)[0], _range(accuracy), noun)
    return _Maxima(
        linear=within(linear, span, noun),
        end=within(largest_of_lesser(above), span, noun),
        max=within(largest, _FACTOR * largest.value, noun),
        drop=drop,
        place=float(alphas[place]),
        top=float(alphas[top]),
    )


def _range(values: Array, otherwise: float = math.nan) -> float:
    finite = values[np.isfinite(values)]
    return float(np.ptp(finite)) if len(finite) else otherwise


def path_meta(losses: PathLosses, ends: Sequence[EndPoint], began: float, reason: str, **more: Any) -> Provenance:
    """Entries that the meta of all results of paths have."""
    objective, goals = losses.objective, losses.goals
    meta = objective_meta(objective)
    others = {end.label: objective.at(end.state).weight_fingerprint() for end in ends[1:]}
    return meta | {
        **measured_in(objective, losses.surface.dtype).meta,
        "dtype": str(goals.precision or objective.dtype),
        "batch_norm": objective.batch_norm if goals.batch_norm == "none" else goals.batch_norm,
        "seed": goals.seed,
        "settings": goals.settings(),
        "weight_fingerprints": {ends[0].label: meta["weight_fingerprint"], **others},
        "evaluations": losses.surface.evaluations,
        "seconds": now() - began,
        "stop_reason": reason,
        **more,
    }


def named(names: Sequence[str], tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Tensors by parameter name, detached."""
    return {name: tensor.detach() for name, tensor in zip(names, tensors, strict=True)}
