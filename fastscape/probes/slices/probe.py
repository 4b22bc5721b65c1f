"""Slices of the loss: along lines and over planes through the weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, Unpack

import numpy as np

from fastscape._checks import amount, first_line, flag, integer
from fastscape.directions.axes import Axes
from fastscape.directions.directions import Scale
from fastscape.evaluation.arithmetic import measured_in
from fastscape.evaluation.batch_statistics import BatchNorm
from fastscape.evaluation.influence import STILL
from fastscape.evaluation.losses import checked_dtype
from fastscape.evaluation.surface.families import Affine
from fastscape.evaluation.surface.surface import Surface, SurfaceLosses
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate
from fastscape.numerics.positive import useful
from fastscape.objective.objective import Objective, checked_objective
from fastscape.probes.slices.axes import (
    COMPONENTS,
    LINES,
    AnyDirections,
    AnyState,
    Line,
    axes_of,
    coarse_to_fine,
    grid,
    lines_of,
    plane_axes,
    states_of,
)
from fastscape.probes.slices.norms import Norms, norm_notes
from fastscape.probes.slices.result import PlaneResult, SliceResult
from fastscape.probes.slices.roughness import Trend, mean_count, mean_estimate, minima, second_difference_energy
from fastscape.runs.anytime import Anytime, PartialResultError
from fastscape.runs.budget import Budget
from fastscape.runs.progress import Progress, reporter
from fastscape.runs.provenance import Provenance, objective_meta
from fastscape.runs.run import Work, settled

Sliced = TypeVar("Sliced", SliceResult, PlaneResult)


class SliceKeywords(Work, total=False):
    """Keywords of both slices."""

    precision: str | None
    method: str | None
    memory: int | None
    progress: Callable[[Progress], None] | None


_TRIAL = 0.05  # of the budget, for trying batched evaluation
_DEPTH = 4.0  # times the rounding of one loss: two losses differ by less in 99.5 % of cases
_MOST_POINTS = 2**24  # of a plane
_TRIED = 4  # checkpoints of a trajectory at which running statistics are compared: the farthest from w
_MARGIN = 1.2  # on the trajectory's reach, so that no checkpoint lies on the border


class SliceError(PartialResultError):
    """The model raised midway. ``partial`` is the :class:`SliceResult` or :class:`PlaneResult` of what had been evaluated."""

    partial: SliceResult | PlaneResult


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
    report = reporter(work.progress, ("directions", "total"))
    checked_objective(objective)
    alphas = grid(radius, points)
    random = directions is None or (isinstance(directions, str) and directions == "random")
    number = LINES if random else COMPONENTS
    count, seed = number if count is None else amount("count", count, 1), integer("seed", work.seed, 0, 2**64)
    dtype = None if work.precision is None else checked_dtype(work.precision)
    clock = work.clock()
    norms = Norms(objective, bn)
    states = None if trajectory is None else states_of(objective, trajectory)[0]
    given = axes_of(objective, directions, count=count, normalize=normalize, scale=scale, seed=seed, trajectory=states)
    settings = _settings(directions, normalize, scale, radius, points, work.precision, symlog) | {
        "directions": len(given),
        "bn": bn,
    }
    base, found = list(objective.base.values()), _Lines()
    run = Anytime(clock)
    watched = len(given) if isinstance(given, Axes) else 1
    common: dict[str, Any] = {"dtype": dtype, "method": work.method, "memory": work.memory, "trial": _TRIAL * clock.seconds}
    with Surface(norms.objective, Affine(base, [base]), prepare=norms.prepare, **common) as surface:
        with run.ends(lambda: run.done, errors=lambda _: run.done):
            for line in run.stream(lines_of(given, surface.dtype), surface.seconds * points, "direction"):
                surface.turn(Affine(base, [line.axis]))
                found.add(line, surface.at(alphas))
                if len(found.lines) <= watched:
                    norms.compare(surface, alphas[[0, -1]][:, None], found.found[-1].losses[[0, -1]], f"of {line.label}")
                if report is not None:
                    report(_state(clock, work.name, "direction", run.done + 1, len(given)), run.done + 1, len(given))
        meta = _meta(norms.objective, surface, run, settings, seed) | norms.meta
    return _whole(run, "direction", _line_result(work.name, work.step, alphas, found, meta))


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
        normalize, scale, seed, symlog, bn, precision, method, memory, name, step, run: as for :func:`slice1d`.
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
    report = reporter(work.progress, ("rows", "total"))
    checked_objective(objective)
    seed = integer("seed", work.seed, 0, 2**64)
    dtype = None if work.precision is None else checked_dtype(work.precision)
    clock = work.clock()
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
    given = axes_of(objective, directions, count=2, normalize=normalize, scale=scale, seed=seed, trajectory=states)
    axes = plane_axes(given, dtype or objective.dtype, orthogonal=orthogonal)
    projected = None if states is None else axes.project(objective, states)
    radii = _radii(radius, projected)
    alphas = [grid(reach, size) for reach, size in zip(radii, sizes, strict=True)]
    settings = _settings(directions, normalize, scale, radii, sizes, work.precision, symlog) | {
        "orthogonal": orthogonal,
        "bn": bn,
    }
    plane = _Plane(alphas[0], alphas[1])
    run = Anytime(clock)
    family = Affine(list(objective.base.values()), axes.tensors)
    common: dict[str, Any] = {"dtype": dtype, "method": work.method, "memory": work.memory, "trial": _TRIAL * clock.seconds}
    with Surface(norms.objective, family, accuracy=False, prepare=norms.prepare, **common) as surface:
        with run.ends(lambda: run.done, errors=lambda _: run.done):
            for row in run.stream(coarse_to_fine(sizes[0]), surface.seconds * sizes[1], "row"):
                plane.fill(row, surface.at(np.column_stack([np.full(sizes[1], alphas[0][row]), alphas[1]])))
                if report is not None:
                    report(_state(clock, work.name, "row", run.done + 1, sizes[0]), run.done + 1, sizes[0])
        with run.ends():
            norms.compare(surface, *plane.ends(projected), run=run)
        meta = _meta(norms.objective, surface, run, settings, seed) | {"checkpoints": names} | norms.meta
    return _whole(run, "row", _plane_result(work.name, work.step, plane, axes, projected, meta))


def _state(clock: Budget, name: str, unit: str, done: int, total: int) -> Progress:
    return Progress.under(clock, name, done / total, unit=unit, done=done, total=total)


# ---------------------------------------------------------------------- what is evaluated


@dataclass
class _Lines:
    """Lines evaluated so far."""

    found: list[SurfaceLosses] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def add(self, line: Line, losses: SurfaceLosses) -> None:
        self.found.append(losses)
        self.lines.append(dataclasses.replace(line, axis=[]))


class _Plane:
    """A grid, NaN where it is not evaluated yet."""

    def __init__(self, alpha_1: Array, alpha_2: Array) -> None:
        self.alpha_1, self.alpha_2 = alpha_1, alpha_2
        self.losses = np.full((len(alpha_1), len(alpha_2)), np.nan)
        self.stderr = self.losses.copy()
        self.evaluated = np.zeros(len(alpha_1), dtype=bool)

    def ends(self, projected: tuple[Array, Array] | None) -> tuple[Array, Array]:
        """Points at which running statistics are compared, and their losses: the axes' ends; NaN where not evaluated."""
        rows, columns = len(self.alpha_1), len(self.alpha_2)
        places = [(0, columns // 2), (rows - 1, columns // 2), (rows // 2, 0), (rows // 2, columns - 1)]
        if projected is not None:  # and the points of the grid nearest to the checkpoints
            near = np.where(np.isfinite(projected[0]), projected[0], 0.0)
            farthest = near[np.argsort(-np.linalg.norm(near, axis=1))][:_TRIED]
            places += [(_nearest(self.alpha_1, first), _nearest(self.alpha_2, second)) for first, second in farthest]
        known = [place for place in dict.fromkeys(places) if self.evaluated[place[0]]]
        points = np.array([[self.alpha_1[row], self.alpha_2[column]] for row, column in known])
        return points, np.array([self.losses[place] for place in known])

    def fill(self, row: int, found: SurfaceLosses) -> None:
        self.losses[row], self.stderr[row], self.evaluated[row] = found.losses, found.stderr, True


def _nearest(alphas: Array, value: float) -> int:
    return int(np.abs(alphas - value).argmin())


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


# ---------------------------------------------------------------------- results


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


def _meta(objective: Objective, surface: Surface, run: Anytime, settings: dict[str, Any], seed: int) -> Provenance:
    noise = math.nan
    with run.ends():
        noise = surface.noise
    choice, arithmetic = surface.choice, measured_in(objective, surface.dtype)
    return objective_meta(objective) | {
        **arithmetic.meta,
        "seed": seed,
        "settings": settings,
        "dtype": str(surface.dtype),
        "arithmetic_notes": list(arithmetic.notes),
        "noise": noise,
        "gate": "two evaluations at w agree bit for bit",
        "errors_over": surface.terms.unit,
        "path": None if choice is None else choice.name,
        "path_reason": None if choice is None else choice.reason,
        "evaluations": surface.evaluations,
        "seconds": run.budget.elapsed,
        "budget": run.budget.seconds if run.budget.limited else None,
        "stop_reason": run.reason,
    }


def _notes(meta: Provenance, losses: Array, wanted: int, noun: str, *, errors: bool) -> tuple[str, ...]:
    notes, done = list(meta["arithmetic_notes"]), len(losses)
    if losses.size > 1 and (losses == losses.flat[0]).all():
        notes.append(STILL)
    if done < wanted:
        notes.append(f"{done} of {wanted} {noun}s were evaluated ({meta['stop_reason']})")
    if not errors and meta["errors_over"] == "samples":
        notes.append("no standard errors: they need two samples with finite losses")
    elif not errors:
        notes.append("no standard errors: the criterion gives no loss per sample, and there is a single batch")
    elif meta["errors_over"] == "batches":
        notes.append(f"standard errors are over the {meta['batches']} batches: the criterion gives no loss per sample")
    return tuple(notes)


def _line_result(name: str, step: int | None, alphas: Array, found: _Lines, meta: Provenance) -> SliceResult:
    losses = np.stack([line.losses for line in found.found])
    stderr = np.stack([line.stderr for line in found.found])
    noise = meta["noise"]
    depth = 0.0 if math.isnan(noise) else _DEPTH * noise
    notes = _notes(meta, losses, meta["settings"]["directions"], "direction", errors=bool(np.isfinite(stderr).any()))
    accuracies = [line.accuracy for line in found.found if line.accuracy is not None]
    return SliceResult(
        name=name,
        step=step,
        loss=float(losses[0, len(alphas) // 2]),
        alphas=alphas,
        losses=losses,
        stderr=stderr,
        labels=tuple(line.label for line in found.lines),
        eps_relative=np.array([line.relative for line in found.lines]),
        roughness=_over_lines(_variance([alphas], 0, losses)),
        detrended=_over_lines(_variance([alphas], 2, losses)),
        detrended4=_over_lines(_variance([alphas], 4, losses)),
        second_difference=_over_lines(second_difference_energy(losses, alphas)),
        minima=mean_count(np.array([float(minima(line, depth)) for line in losses])),
        noise_floor=noise**2,
        accuracy=np.stack(accuracies) if accuracies else None,
        meta=meta,
        notes=notes + norm_notes(meta),
    )


def _plane_result(
    name: str, step: int | None, plane: _Plane, axes: Axes, projected: tuple[Array, Array] | None, meta: Provenance
) -> PlaneResult:
    rows = plane.evaluated
    known, noise = plane.losses[rows], meta["noise"]
    grids = [plane.alpha_1[rows], plane.alpha_2]
    whole = known.reshape(1, -1)
    notes = _notes(meta, known, len(rows), "row", errors=bool(np.isfinite(plane.stderr).any())) + norm_notes(meta)
    return PlaneResult(
        name=name,
        step=step,
        loss=float(plane.losses[len(plane.alpha_1) // 2, len(plane.alpha_2) // 2]),
        alpha_1=plane.alpha_1,
        alpha_2=plane.alpha_2,
        losses=plane.losses,
        stderr=plane.stderr,
        evaluated=rows,
        labels=axes.labels,
        eps_relative=axes.relative,
        cosine=float(axes.cosines[0, 1]),
        roughness=float(_variance(grids, 0, whole)[0]),
        detrended=float(_variance(grids, 2, whole)[0]),
        detrended4=float(_variance(grids, 4, whole)[0]),
        minima=minima(known, 0.0 if math.isnan(noise) else _DEPTH * noise),
        noise_floor=noise**2,
        trajectory=None if projected is None else projected[0],
        residual=None if projected is None else projected[1],
        explained=axes.explained,
        meta=meta,
        notes=notes,
    )


def _over_lines(values: Array) -> Estimate:
    return useful(mean_estimate(values), "direction")


def _variance(axes: Sequence[Array], order: int, losses: Array) -> Array:
    """Variance about a trend, NaN where the grid has too few points for it."""
    if any(len(axis) < max(2, order + 2) for axis in axes):
        return np.full(len(losses), np.nan)
    return Trend(axes, order).variance(losses)


def _whole(run: Anytime, noun: str, result: Sliced) -> Sliced:
    """The result, or the error that ended its run and holds it."""
    if run.error is None:
        return result
    why = f"{type(run.error).__name__}: {first_line(run.error)}"
    raise SliceError(f"the slice of {result.name} failed after {run.done} {noun}s: {why}", result) from run.error
