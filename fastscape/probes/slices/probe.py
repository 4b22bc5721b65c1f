"""Slices of the loss: along lines and over planes through the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Unpack

import numpy as np
import torch

from fastscape._checks import amount, counted, flag, integer
from fastscape._keeping import keeps_result
from fastscape.directions.axes import Axes
from fastscape.directions.directions import Scale
from fastscape.evaluation.batch_statistics import BatchNorm
from fastscape.evaluation.losses import checked_dtype
from fastscape.evaluation.surface.families import Affine
from fastscape.evaluation.surface.surface import Surface
from fastscape.numerics.arrays import Array
from fastscape.objective.objective import Objective, checked_objective
from fastscape.probes.slices.assembly import Lines, Plane, line_result, plane_result, slice_meta, with_notes
from fastscape.probes.slices.axes import (
    COMPONENTS,
    LINES,
    AnyDirections,
    AnyState,
    axes_of,
    coarse_to_fine,
    grid,
    lines_of,
    plane_axes,
    states_of,
)
from fastscape.probes.slices.norms import Norms
from fastscape.probes.slices.result import PlaneResult, SliceResult
from fastscape.runs.anytime import Anytime, PartialResultError
from fastscape.runs.budget import Budget
from fastscape.runs.evaluations import Evaluations, opened
from fastscape.runs.progress import Progress, reporter
from fastscape.runs.run import Resumed, Run, Work, settled


class SliceKeywords(Work, Resumed, total=False):
    """Keywords of both slices."""

    precision: str | None
    method: str | None
    memory: int | None
    progress: Callable[[Progress], None] | None


_TRIAL = 0.05  # of the budget, for trying batched evaluation
_OPENING = 20  # evaluations beside those of the first line: gate, noise
_NOISE = 10  # evaluations that time is kept for, which tell the rounding
_MOST_POINTS = 2**24  # of a plane
_MARGIN = 1.2  # on the trajectory's reach, so that no checkpoint lies on the border


class SliceError(PartialResultError):
    """The model raised midway. ``partial`` is the :class:`SliceResult` or :class:`PlaneResult` of what had been evaluated."""

    partial: SliceResult | PlaneResult


@keeps_result
def slice1d(
    objective: Objective,
    directions: AnyDirections = None,
    *,
    radius: float = 1.0,
    points: int = 41,
    count: int | None = None,
    normalize: str = "filter",
    scale: Scale = "relative",
    trajectory: Sequence[AnyState] | None = None,
    symlog: bool | None = None,
    bn: BatchNorm | None = None,
    **keywords: Unpack[SliceKeywords],
) -> SliceResult:
    r"""Loss along lines :math:`f_i(\alpha) = L(w + \alpha v_i)`, with its roughness.

    All points see the same data, and a loss that is not the same number twice is refused, so that no roughness is noise of the
    evaluation. Weights are written fresh at every point; at alpha = 0 they are w, bit for bit.

    Args:
        objective: the loss.
        directions: ``None`` for ``count`` random ones, ``"gradient"``, ``"pca"`` of ``trajectory``, :class:`fastscape.Directions`
            or :class:`fastscape.Axes` (such as a difference of checkpoints), a spectrum with its eigenvectors or vectors
            ``[D, k]``, or tensors by parameter name.
        radius: A, the largest alpha; alpha is in units of ||v||, which is ||w|| with ``scale="relative"``.
        points: odd number of points in [-A, A].
        count: of random directions (``None`` for 32) or principal components (``None`` for 8). Roughness is skewed over
            directions: of 8 its interval is often a factor of 10 wide, and then withheld; of 32 about 3.
        normalize, seed: of random directions; ``normalize="filter"`` is that of Li et al., biases left alone.
        scale: length of the directions made here: ``"relative"`` ||w||, ``"unit"`` 1, ``"none"`` as they are.
        trajectory: checkpoints for ``"pca"``: files, state dicts or modules.
        symlog: show the loss on a symmetric-logarithmic scale; ``None`` where its range is wide.
        bn: running statistics of batch norm. ``"running"``: those of w at every point, which far from w fit no network: at the
            ends they are compared with recomputed ones, and a flag says both losses where they differ by more than 5 %.
            ``"recalibrate"``: recomputed at every point from the objective's data, as :func:`fastscape.barrier` does, so that
            another checkpoint on the line has its own loss up to its statistics. ``"batch"``: those of each batch. ``None``: as
            the objective has them.
        precision: ``"float64"``, ``"float32"``, or ``None`` for the model's dtype. An autocast that the model or the loss enters
            counts in float32 and narrower, and has no effect in float64; one around this call is taken off; other casts are part
            of the function, and their roundings of the noise floor. ``meta["arithmetic"]`` says what was measured.
        budget: seconds, or ``"60s"``, ``"5m"``: directions are evaluated one after the other while they fit.
        method: ``"loop"``, ``"vmap"``, or ``None`` to measure.
        memory: bytes that the call may take, private copies and trials included; too little is refused. Default half of what is
            available, for batched evaluation.
        resume: a folder for the journal of the call. Every direction is written there; the same call goes on with what it holds,
            whatever ended the process, and gives the same numbers.
        name, step: of the checkpoint.
        progress: called after every direction with a :class:`fastscape.Progress`.
        run: seed, precision, budget, method, memory, name, step, progress, or some of them, in a :class:`fastscape.Run`.

    Returns:
        A :class:`SliceResult`. Ctrl-C gives the directions evaluated so far, ``meta["stop_reason"] == "interrupted"``.

    Raises:
        ValueError, TypeError: naming the argument, before any work is done.
        BudgetError: a budget too small for one direction (names what is enough).
        NondeterministicLossError: two evaluations at w differ.
        SliceError: the model raised midway; its ``partial`` holds the directions before.

    Cost: points x directions + 7 evaluations; memory of one direction and a copy of the parameters.

    Source: Li et al., "Visualizing the loss landscape of neural nets" (2018), section 4; Goodfellow et al. (2015).
    """
    work = settled(slice1d, keywords)
    run = Anytime(work.clock())
    report = reporter(work.progress, ("directions", "total"))
    checked_objective(objective)
    alphas = grid(radius, points)
    random = directions is None or (isinstance(directions, str) and directions == "random")
    number = LINES if random else COMPONENTS
    count, seed = number if count is None else amount("count", count, 1), integer("seed", work.seed, 0, 2**64)
    dtype = None if work.precision is None else checked_dtype(work.precision)
    norms = Norms(objective, bn)
    states = None if trajectory is None else states_of(objective, trajectory)[0]
    needs = (points + _OPENING) * len(objective.batches)
    with (
        _resumed("slice1d", objective, work, bn) as run.evaluations,
        run.budget.opening("direction", needs, begun=run.evaluations.replaying),
    ):
        given = axes_of(objective, directions, count=count, normalize=normalize, scale=scale, seed=seed, trajectory=states)
        settings = _settings(directions, normalize, scale, radius, points, work.precision, symlog) | {
            "directions": len(given),
            "bn": bn,
        }
        base, found = list(objective.base.values()), Lines()
        watched = len(given) if isinstance(given, Axes) else 1
        family = Affine(base, [base])
        with Surface(norms.objective, family, prepare=norms.prepare, **_evaluation(work, run, dtype)) as surface:
            run.reserve = _NOISE * surface.seconds
            with run.ends(lambda: found.lines, errors=lambda _: found.lines):
                for line in run.stream(lines_of(given, surface.dtype), surface.seconds * points, "direction"):
                    surface.turn(Affine(base, [line.axis]))
                    found.add(line, surface.at(alphas))
                    if len(found.lines) <= watched:
                        norms.compare(surface, alphas[[0, -1]][:, None], found.found[-1].losses[[0, -1]], f"of {line.label}")
                    if report is not None:
                        state = _state(run.budget, work.name, "direction", len(found.lines), len(given))
                        report(state, len(found.lines), len(given))
            meta = slice_meta(norms.objective, surface, run, settings, seed) | norms.meta
            lacks = run.evaluations.notes
    result = with_notes(line_result(run, work, alphas, found, meta), lacks)
    return run.whole(result, f"the slice of {work.name} failed after {counted(len(found.lines), 'direction')}", SliceError)


@keeps_result
def slice2d(
    objective: Objective,
    directions: AnyDirections = None,
    *,
    radius: float | tuple[float, float] | None = None,
    points: int | tuple[int, int] = 21,
    normalize: str = "filter",
    scale: Scale = "relative",
    orthogonal: bool = True,
    trajectory: Sequence[AnyState] | None = None,
    symlog: bool | None = None,
    bn: BatchNorm | None = None,
    **keywords: Unpack[SliceKeywords],
) -> PlaneResult:
    r"""Loss over a plane :math:`f(\alpha_1, \alpha_2) = L(w + \alpha_1 v_1 + \alpha_2 v_2)`.

    As :func:`slice1d`, for two directions. Scaling by filters takes away their orthogonality: it is restored afterwards, each
    keeping its length.

    Args:
        objective: the loss.
        directions: two of what :func:`slice1d` takes; more than two random ones or eigenvectors are cut to the first two.
        radius: A, or (A_1, A_2); ``None`` for 1, and with a trajectory for the least that shows it.
        points: odd number along each axis, or (along alpha_1, along alpha_2).
        normalize, scale, seed, symlog, bn, precision, method, memory, resume, name, step, run: as for :func:`slice1d`.
        orthogonal: make v_2 orthogonal to v_1 (Gram-Schmidt after scaling); otherwise their cosine is reported as it is.
        trajectory: checkpoints to project onto the plane: files, state dicts or modules; ``directions="pca"`` takes their
            principal components.
        budget: rows of alpha_1 are evaluated from coarse to fine while they fit; the others are NaN.
        progress: called after every row with a :class:`fastscape.Progress`.

    Returns:
        A :class:`PlaneResult`. Ctrl-C gives the rows evaluated so far, ``meta["stop_reason"] == "interrupted"``.

    Raises:
        ValueError, TypeError: naming the argument, before any work is done; two directions that are parallel, with their cosine.
        BudgetError, NondeterministicLossError, SliceError: as for :func:`slice1d`.

    Cost: A1 x A2 + 7 evaluations; memory of four copies of the parameters.

    Source: Li et al., "Visualizing the loss landscape of neural nets" (2018), sections 4 and 7.
    """
    work = settled(slice2d, keywords)
    run = Anytime(work.clock())
    report = reporter(work.progress, ("rows", "total"))
    checked_objective(objective)
    seed = integer("seed", work.seed, 0, 2**64)
    dtype = None if work.precision is None else checked_dtype(work.precision)
    sizes = points if isinstance(points, tuple) else (points, points)
    if len(sizes) != 2:
        raise ValueError(f"points must be a number or a pair, got {points!r}")
    reaches = radius if isinstance(radius, tuple) else (radius, radius)
    if len(reaches) != 2:
        raise ValueError(f"radius must be a number or a pair, got {radius!r}")
    for size, reach in zip(sizes, reaches, strict=True):
        grid(1.0 if reach is None else reach, size)
    amount("points[0] * points[1]", math.prod(map(int, sizes)), 9, _MOST_POINTS)
    norms = Norms(objective, bn)
    states, names = (None, []) if trajectory is None else states_of(objective, trajectory)
    needs = (int(sizes[1]) + _OPENING) * len(objective.batches)
    with (
        _resumed("slice2d", objective, work, bn) as run.evaluations,
        run.budget.opening("row", needs, begun=run.evaluations.replaying),
    ):
        given = axes_of(objective, directions, count=2, normalize=normalize, scale=scale, seed=seed, trajectory=states)
        axes = plane_axes(given, dtype or objective.dtype, orthogonal=orthogonal)
        projected = None if states is None else axes.project(objective, states)
        radii = _radii(radius, projected)
        alphas = [grid(reach, size) for reach, size in zip(radii, sizes, strict=True)]
        settings = _settings(directions, normalize, scale, radii, sizes, work.precision, symlog) | {
            "orthogonal": orthogonal,
            "bn": bn,
        }
        plane = Plane(alphas[0], alphas[1])
        family = Affine(list(objective.base.values()), axes.tensors)
        common = _evaluation(work, run, dtype)
        with Surface(norms.objective, family, accuracy=False, prepare=norms.prepare, **common) as surface:
            run.reserve = _NOISE * surface.seconds
            with run.ends(lambda: plane.rows, errors=lambda _: plane.rows):
                for row in run.stream(coarse_to_fine(sizes[0]), surface.seconds * sizes[1], "row"):
                    plane.fill(row, surface.at(np.column_stack([np.full(sizes[1], alphas[0][row]), alphas[1]])))
                    if report is not None:
                        report(_state(run.budget, work.name, "row", plane.rows, sizes[0]), plane.rows, sizes[0])
            with run.ends(errors=lambda _: True):
                norms.compare(surface, *plane.ends(projected), run=run)
            meta = slice_meta(norms.objective, surface, run, settings, seed) | {"checkpoints": names} | norms.meta
            lacks = run.evaluations.notes
    result = with_notes(plane_result(run, work, plane, axes, projected, meta), lacks)
    return run.whole(result, f"the slice of {work.name} failed after {counted(plane.rows, 'row')}", SliceError)


def _evaluation(work: Run, run: Anytime, dtype: torch.dtype | None) -> dict[str, Any]:
    """Keywords of the surface of a line or plane."""
    trial = _TRIAL * run.budget.seconds
    return {"dtype": dtype, "method": work.method, "memory": work.memory, "trial": trial, "evaluations": run.evaluations}


def _resumed(kind: str, objective: Objective, work: Run, bn: BatchNorm | None) -> AbstractContextManager[Evaluations]:
    """The evaluations of the folder that a slice goes on with."""
    settings = {"seed": work.seed, "method": work.method, "precision": work.precision, "bn": bn}
    return opened(work.resume, kind, [lambda: objective], settings)


def _state(clock: Budget, name: str, unit: str, done: int, total: int) -> Progress:
    return Progress.under(clock, name, done / total, unit=unit, done=done, total=total)


def _radii(radius: float | tuple[float, float] | None, projected: tuple[Array, Array] | None) -> tuple[float, float]:
    """Reach of each axis: as asked for, 1, or what shows a trajectory."""
    if isinstance(radius, tuple):
        return radius
    if radius is not None:
        return radius, radius
    if projected is None:
        return 1.0, 1.0
    reach = _MARGIN * np.abs(projected[0]).max(axis=0)
    usable = np.isfinite(reach) & (reach > 0)
    first, second = np.where(usable, reach, np.max(reach[usable], initial=0.0) or 1.0)
    return float(first), float(second)


def _settings(
    directions: AnyDirections, normalize: str, scale: str, radius: Any, points: Any, precision: str | None, symlog: bool | None
) -> dict[str, Any]:
    random = directions is None or directions == "random" if isinstance(directions, (str, type(None))) else False
    kind = "random" if random else directions if isinstance(directions, str) else type(directions).__name__
    content: dict[str, Any] = {"kind": kind, "scale": scale, "radius": radius, "points": points}
    if symlog is not None:
        flag("symlog", symlog)
    content |= {"precision": precision, "symlog": symlog}
    return content | ({"normalize": normalize} if random else {})
