"""The connectivity probes: barriers between solutions along straight lines, for all pairs, and along trained curves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import combinations
from typing import Any, Unpack

import numpy as np
import torch

from fastscape._checks import amount, counted, positive
from fastscape._clock import now
from fastscape._keeping import keeps_result
from fastscape.evaluation.batch_statistics import BatchNorm
from fastscape.numerics.arrays import Array
from fastscape.objective.objective import Objective
from fastscape.probes.barriers.curve_training import train_bend
from fastscape.probes.barriers.end_points import EndPoint, Solution, distinct, end_point, end_points
from fastscape.probes.barriers.matching import matched
from fastscape.probes.barriers.result import BarrierMatrix, BarrierResult, CurveResult
from fastscape.probes.barriers.run import (
    Goals,
    Line,
    PathLosses,
    Point,
    barrier_result,
    checked_goals,
    named,
    path_meta,
)
from fastscape.probes.barriers.weight_paths import Bezier, Segment
from fastscape.runs.anytime import Anytime
from fastscape.runs.budget import Budget
from fastscape.runs.evaluations import Evaluations, opened
from fastscape.runs.progress import Progress, reporter
from fastscape.runs.provenance import Provenance
from fastscape.runs.run import Resumed, Run, Work, settled

_LINE, _NEEDS = "line of three points", 30  # evaluations of it, with the preparation


class BarrierKeywords(Work, Resumed, total=False):
    """Keywords of all that follows a path between solutions."""

    precision: str | None
    progress: Callable[[Progress], None] | None


@keeps_result
def barrier(
    objective: Objective,
    a: Solution = None,
    b: Solution = None,
    *,
    points: int = 41,
    start: int = 11,
    tolerance: float = 1e-3,
    bn: BatchNorm | None = None,
    match: bool = False,
    **keywords: Unpack[BarrierKeywords],
) -> BarrierResult:
    r"""Loss barrier between two solutions along the straight line :math:`w(\alpha) = (1 - \alpha)\, a + \alpha\, b`.

    .. math::
        B_{lin} = \max_\alpha \bigl[L(w(\alpha)) - (1 - \alpha) L_a - \alpha L_b\bigr], \quad
        B_{end} = \max_\alpha L(w(\alpha)) - \max(L_a, L_b), \quad B_{max} = \max_\alpha L(w(\alpha))

    and the accuracy barrier, :math:`\max_\alpha [(1 - \alpha) A_a + \alpha A_b - A(w(\alpha))]`. All but :math:`B_{max}` are
    exactly 0 where a and b are the same solution, and never negative, because both ends belong to the line and are evaluated with
    the states a and b bit for bit. An even grid is refined where the second differences allow the most above the largest value.

    Intervals are over samples, of *paired* differences :math:`\ell_i(\alpha) - (1 - \alpha) \ell_i(a) - \alpha \ell_i(b)`, from a
    band that holds at all points at once: the maximum of its lower and upper ends bounds the true maximum over the points,
    wherever that is (:mod:`fastscape.probes.barriers.maxima`). What lies between the points is in ``resolution``.

    Everything in the state dicts is interpolated: all floating-point parameters, frozen and unselected ones included, and
    floating-point buffers; integer ones must agree (``num_batches_tracked`` may differ).

    Args:
        objective: the loss and data; its own weights take part only where ``a`` or ``b`` is ``None``.
        a, b: state dict, checkpoint file, module, :class:`Objective`, or ``None`` for the objective's own weights.
        points: evaluated at most; start: of the even grid, both at least 3.
        tolerance: the refinement ends when no maximum between the points may exceed the largest by more than this share of the
            range of losses along the line.
        bn: running statistics of batch norm. ``"recalibrate"`` (default but for ``batch_norm="batch"``): recomputed at every
            point, the ends included, from the objective's data, because interpolated statistics fit no network of the line;
            ``"running"``: interpolated, so that the ends are the checkpoints as they are; ``"batch"``: those of each batch.
        match: reorder b's hidden units to match a's first (:func:`fastscape.probes.barriers.matching.matched`).
        precision: ``"float32"`` or ``"float64"``; ``None`` for the model's. Autocasts and casts: see :func:`fastscape.slice1d`.
        seed: of the draws behind the intervals, and of the matching.
        budget: seconds, or ``"60s"``, which must hold three points; overrun is at most one evaluation.
        resume: a folder for the journal of the call. Every point is written there; the same call goes on with what it holds,
            whatever ended the process, and gives the same numbers.
        name, step: of the result.
        progress: called after every point with a :class:`fastscape.Progress`.
        run: precision, seed, budget, name, step, progress, or some of them, in a :class:`fastscape.Run`.

    Returns:
        A :class:`BarrierResult`. Infinite losses make a barrier infinite, NaN are left out of the maxima, and both are counted
        and flagged. Ctrl-C gives the partial result, ``meta["stop_reason"] == "interrupted"``.

    Raises:
        TypeError, ValueError: bad settings; states of another architecture (the first few keys are listed) or with NaN or inf
            (the tensor is named); integer buffers that differ.
        NondeterministicLossError: two evaluations at a differ.

    Cost: one forward per batch and point (two with recalibration), three to begin with; memory of the samples' losses at all
    points and four copies of the model.

    Source: Frankle, Dziugaite, Roy & Carbin, "Linear mode connectivity and the lottery ticket hypothesis" (2020); Garipov et al.
    (2018) for the recalibration; Entezari et al., "The role of permutation invariance in linear mode connectivity" (2022),
    definition 1, for B_lin.

    Example:
        >>> import torch, fastscape as fs
        >>> model = torch.nn.Linear(4, 3)
        >>> data = [(torch.ones(2, 4), torch.tensor([0, 2]))]
        >>> objective = fs.Objective(model, data, criterion=torch.nn.functional.cross_entropy)
        >>> fs.barrier(objective, model, model).linear.value
        0.0
    """
    work, began = settled(barrier, keywords), now()
    run = Anytime(work.clock())
    report = reporter(work.progress, ("words", "share"))
    with torch.inference_mode(False), ExitStack() as stack:
        goals, ends = _prepared(objective, a, b, points, start, tolerance, bn, match, work)
        run.evaluations = _begun(stack, "barrier", objective, ends, goals, run, work)
        losses = PathLosses(
            objective, ends[0], goals, report and _counting(report, run.budget, work.name, "point", points), run.evaluations
        )
        path = Segment(losses.objective, ends[0].state, ends[1].state)
        with losses.along(path):
            line = losses.walk(Line(), run)
            meta = path_meta(losses, ends, began, line.reason)
            found = barrier_result(losses, line, path, ends, run, name=work.name, step=work.step, meta=meta)
    return run.whole(found, f"the barrier of {work.name} failed after {counted(len(line.points), 'point')}")


@keeps_result
def barriers(
    objective: Objective,
    checkpoints: Mapping[str, Solution] | Sequence[Solution],
    *,
    points: int = 21,
    start: int = 11,
    tolerance: float = 1e-2,
    bn: BatchNorm | None = None,
    match: bool = False,
    **keywords: Unpack[BarrierKeywords],
) -> BarrierMatrix:
    """Barriers between every two of several solutions; see :func:`barrier` for definitions and arguments.

    Each solution is evaluated once, for all of its pairs, and each pair in one direction: the matrix is symmetric, with zeros on
    the diagonal.

    Args:
        checkpoints: at least two solutions, or a mapping from their names.
        progress: called after every pair with a :class:`fastscape.Progress`, whose ``stage`` names it.
        precision, seed, budget, resume, name, step, run: as there.

    Returns:
        A :class:`BarrierMatrix`; NaN for pairs that the budget or Ctrl-C left out.

    Raises:
        TypeError, ValueError: as :func:`barrier`, naming ``checkpoints[i]``.

    Cost: K + K (K - 1) / 2 times the inner points of a line. With ``match`` both ends of every pair are evaluated.
    """
    work, began = settled(barriers, keywords), now()
    report = reporter(work.progress, ("words", "share"))
    run = Anytime(work.clock())
    goals = checked_goals(objective, points, start, tolerance, bn, match, work)
    ends = end_points(objective, checkpoints, "checkpoints")
    with torch.inference_mode(False), ExitStack() as stack:
        run.evaluations = _begun(stack, "barriers", objective, ends, goals, run, work)
        losses = PathLosses(objective, ends[0], goals, evaluations=run.evaluations)
        path = Segment(losses.objective, ends[0].state, ends[1].state)
        for end in ends[2:]:
            path.turn(ends[0].state, end.state)  # refuses integers that differ before any pair is evaluated
        pairs, known = dict[tuple[int, int], BarrierResult](), dict[int, Point]()
        with losses.along(path):
            with run.ends(lambda: pairs, errors=lambda _: pairs):
                _fill(pairs, known, objective, losses, path, ends, run, work, report)
            meta = path_meta(losses, ends, began, run.reason)
    found = _matrix(ends, pairs, known, goals, work, meta)
    return run.whole(found, f"the barriers of {work.name} failed after {counted(len(pairs), 'pair')}")


def _fill(
    pairs: dict[tuple[int, int], BarrierResult],
    known: dict[int, Point],
    objective: Objective,
    losses: PathLosses,
    path: Segment,
    ends: Sequence[EndPoint],
    run: Anytime,
    work: Run,
    report: Callable[..., None] | None,
) -> None:
    """Evaluate pair after pair until something ends the run; ``known`` are the solutions' own points."""
    goals, order = losses.goals, list(combinations(range(len(ends)), 2))
    for done, (i, j) in enumerate(order):
        if done:
            run.need(3 * losses.unit)
        first, second = ends[i], _aligned(objective, ends[i], ends[j], goals)
        path.turn(first.state, second.state)
        line = Line()
        for alpha, index in ((0.0, i), (1.0, j)):
            own = known.get(index) if alpha == 0 or not goals.matched else None
            line.points[alpha] = own or losses.at(alpha)
            if alpha == 0 or not goals.matched:
                known[index] = line.points[alpha]
        losses.walk(line, run)
        of_pair, name = Provenance(settings=goals.settings()), work.name
        pairs[i, j] = barrier_result(losses, line, path, (first, second), run, name=name, step=work.step, meta=of_pair)
        if run.reason != "complete":
            return
        if report is not None:
            stage, share = f"{first.label} - {second.label}", (done + 1) / len(order)
            counts: dict[str, Any] = {"stage": stage, "unit": "pair", "done": done + 1, "total": len(order)}
            report(Progress.under(run.budget, work.name, share, **counts), stage, share)


def _begun(
    stack: ExitStack, kind: str, objective: Objective, ends: Sequence[EndPoint], goals: Goals, run: Anytime, work: Run
) -> Evaluations:
    """The evaluations of the folder that a call goes on with, and its set-up under its budget, until the end of a stack."""
    settings = {"seed": goals.seed, "precision": work.precision, "bn": goals.batch_norm, "match": goals.matched}
    points = [partial(objective.at, end.state) for end in ends]
    found = stack.enter_context(opened(work.resume, kind, points, settings))
    stack.enter_context(run.budget.opening(_LINE, _NEEDS * len(objective.batches), begun=found.replaying))
    return found


def _matrix(
    ends: Sequence[EndPoint],
    pairs: Mapping[tuple[int, int], BarrierResult],
    known: Mapping[int, Point],
    goals: Goals,
    work: Run,
    meta: Provenance,
) -> BarrierMatrix:
    count = len(ends)
    losses, accuracy = np.full(count, np.nan), np.full(count, np.nan)
    for (i, j), pair in pairs.items():
        losses[[i, j]] = pair.losses[[0, -1]]
        if pair.accuracy is not None:
            accuracy[[i, j]] = pair.accuracy[[0, -1]]
    for index, point in known.items():
        losses[index] = point.loss
        accuracy[index] = math.nan if point.accuracy is None else point.accuracy

    def table(value: Callable[[BarrierResult], float], diagonal: float | Array = 0.0) -> Array:
        found = np.full((count, count), np.nan)
        np.fill_diagonal(found, diagonal)
        for (i, j), pair in pairs.items():
            found[i, j] = found[j, i] = value(pair)
        return found

    places = table(lambda pair: pair.argmax, math.nan)
    below = np.tril_indices(count, -1)
    places[below] = 1 - places[below]
    classes = any(pair.accuracy is not None for pair in pairs.values())
    return BarrierMatrix(
        name=work.name,
        step=work.step,
        labels=tuple(end.label for end in ends),
        losses=losses,
        accuracy=accuracy if classes else None,
        linear=table(lambda pair: pair.linear.value),
        low=table(lambda pair: pair.linear.interval[0]),
        high=table(lambda pair: pair.linear.interval[1]),
        end=table(lambda pair: pair.end.value),
        max=table(lambda pair: pair.max.value, losses),
        argmax=places,
        accuracy_barrier=table(_drop) if classes else None,
        distance=table(lambda pair: pair.distance),
        batch_norm=goals.batch_norm,
        matched=goals.matched,
        pairs=tuple(pairs.values()),
        meta=meta,
    )


def _counting(report: Callable[..., None], clock: Budget, name: str, unit: str, total: int) -> Callable[[int], None]:
    """Reports a count of units."""

    def count(done: int) -> None:
        share = done / total
        former = counted(done, unit) if unit == "point" else f"{unit} {done}"
        report(Progress.under(clock, name, share, unit=unit, done=done, total=total), former, share)

    return count


def _drop(pair: BarrierResult) -> float:
    return math.nan if pair.accuracy_barrier is None else pair.accuracy_barrier.value


@keeps_result
def connect(
    objective: Objective,
    a: Solution = None,
    b: Solution = None,
    *,
    steps: int = 300,
    learning_rate: float = 1e-2,
    points: int = 41,
    start: int = 11,
    tolerance: float = 1e-3,
    bn: BatchNorm | None = None,
    match: bool = False,
    **keywords: Unpack[BarrierKeywords],
) -> CurveResult:
    r"""A curve of low loss between two solutions: a quadratic Bezier curve with a trained bend.

    .. math:: \phi(t) = (1 - t)^2 a + 2 t (1 - t)\, \theta + t^2 b, \qquad \min_\theta E_{t \sim U(0, 1)} L(\phi(t))

    :math:`\theta` starts on the straight line and is trained by Adam, one random t and one of the objective's batches a step
    (drawn by weight), with a learning rate that falls linearly to 0. Then the losses along the curve are evaluated and refined as
    those of :func:`barrier`. Only the objective's own parameters bend; the others stay on the line.

    Args:
        objective, a, b, points, start, tolerance, bn, match, precision, seed, resume, run: see :func:`barrier`. The seed also
            draws t and the batches. With ``bn="recalibrate"`` the training uses the statistics of each batch.
        steps: of Adam.
        learning_rate: its first.
        budget: seconds; the line comes first, then the training, and the curve's points are kept time for.
        name, step: of the result.
        progress: called after every step of the training with a :class:`fastscape.Progress`.

    Returns:
        A :class:`CurveResult` with the straight ``line`` and the ``curve``. Training ends at the first gradient that is not
        finite, which is flagged. Ctrl-C gives the curve of the bend so far on the even grid.

    Raises:
        TypeError, ValueError, NondeterministicLossError: as :func:`barrier`.

    Cost: two lines, and a forward and backward of one batch per step; memory of six copies of the model.

    Source: Garipov, Izmailov, Podoprikhin, Vetrov & Wilson, "Loss surfaces, mode connectivity, and fast ensembling of DNNs"
    (2018).
    """
    work, began = settled(connect, keywords), now()
    report = reporter(work.progress, ("words", "share"))
    positive("learning_rate", learning_rate)
    amount("steps", steps, 0)
    run = Anytime(work.clock())
    with torch.inference_mode(False), ExitStack() as stack:
        goals, ends = _prepared(objective, a, b, points, start, tolerance, bn, match, work)
        run.evaluations = _begun(stack, "connect", objective, ends, goals, run, work)
        losses = PathLosses(objective, ends[0], goals, evaluations=run.evaluations)
        straight = Segment(losses.objective, ends[0].state, ends[1].state)
        with losses.along(straight):
            prepared = run.budget.elapsed  # as long takes the preparation of the curve
            line = losses.walk(Line(), run, reserve=4 * losses.unit + prepared)
            meta = path_meta(losses, ends, began, line.reason)
            along_line = barrier_result(losses, line, straight, ends, run, name=work.name, step=work.step, meta=meta)
        run.whole(along_line, f"the line of {work.name} failed after {counted(len(line.points), 'point')}")
        again = 2.0 * start * losses.unit + prepared  # the curve's points must still fit
        wide = torch.promote_types(goals.precision or objective.dtype, torch.float32)
        path = Bezier(losses.objective, ends[0].state, ends[1].state, wide)
        wanted = 0 if line.reason == "interrupted" else steps
        told = report and _counting(report, run.budget, work.name, "step", steps)
        trained = train_bend(
            losses.objective, path, objective.names, goals, wanted, learning_rate, run.budget, again, told, run.evaluations
        )
        reason = line.reason if line.reason != "complete" else trained.reason
        if reason == "interrupted":
            losses.goals = dataclasses.replace(goals, points=start)
        bent, last = Line({alpha: line.points[alpha] for alpha in (0.0, 1.0)}), Anytime(run.budget, evaluations=run.evaluations)
        last.error = trained.error
        with last.ends(errors=lambda _: True), losses.along(path):  # the line, and the ends of the curve, are known
            losses.walk(bent, last)
        bent.reason = last.reason
        reason = reason if reason != "complete" else bent.reason
        asked = goals.settings() | {"steps": steps, "learning_rate": learning_rate}
        counts = {"steps": len(trained.losses), "training_evaluations": trained.evaluations}
        meta = path_meta(losses, ends, began, reason, settings=asked, learning_rate=learning_rate, **counts)
        meta |= {"evaluations": meta["evaluations"] + along_line.meta["evaluations"]}
        along_curve = barrier_result(losses, bent, path, ends, last, name=work.name, step=work.step, meta=meta)
    found = CurveResult(
        name=work.name,
        step=work.step,
        line=along_line,
        curve=along_curve,
        length=along_curve.length,
        distance=along_curve.distance,
        training=np.array(trained.losses, dtype=np.float64),
        meta=meta,
        notes=trained.notes,
        bend=named(losses.objective.names, path.theta),
    )
    return last.whole(found, f"the curve of {work.name} failed after {counted(len(trained.losses), 'step')}")


def _prepared(
    objective: Objective,
    a: Solution,
    b: Solution,
    points: int,
    start: int,
    tolerance: float,
    bn: BatchNorm | None,
    match: bool,
    work: Run,
) -> tuple[Goals, tuple[EndPoint, EndPoint]]:
    goals = checked_goals(objective, points, start, tolerance, bn, match, work)
    first, second = end_point(objective, a, "a"), end_point(objective, b, "b")
    labels = distinct([a, b], [first.label, second.label])
    first, second = EndPoint(labels[0], first.state), EndPoint(labels[1], second.state)
    return goals, (first, _aligned(objective, first, second, goals))


def _aligned(objective: Objective, first: EndPoint, second: EndPoint, goals: Goals) -> EndPoint:
    """The second end, its hidden units reordered where matching was asked for."""
    if not goals.matched:
        return second
    return EndPoint(second.label, matched(first.state, second.state, objective.model, seed=goals.seed))
