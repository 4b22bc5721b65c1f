"""The results of slices, from what was evaluated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from fastscape.directions.axes import Axes
from fastscape.evaluation.arithmetic import measured_in
from fastscape.evaluation.influence import STILL
from fastscape.evaluation.surface.surface import Surface, SurfaceLosses
from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate, unknown
from fastscape.numerics.positive import useful
from fastscape.objective.objective import Objective
from fastscape.probes.slices.axes import Line
from fastscape.probes.slices.norms import norm_notes
from fastscape.probes.slices.result import PlaneResult, SliceResult
from fastscape.probes.slices.roughness import Trend, mean_count, mean_estimate, minima, second_difference_energy
from fastscape.runs.anytime import Anytime
from fastscape.runs.provenance import Provenance, objective_meta
from fastscape.runs.run import Run

Sliced = TypeVar("Sliced", SliceResult, PlaneResult)
_DEPTH = 4.0  # times the rounding of one loss: two losses differ by less in 99.5 % of cases
_TRIED = 4  # checkpoints of a trajectory at which running statistics are compared: the farthest from w


@dataclass
class Lines:
    """Lines evaluated so far."""

    found: list[SurfaceLosses] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    def add(self, line: Line, losses: SurfaceLosses) -> None:
        """One line more."""
        self.found.append(losses)
        self.lines.append(dataclasses.replace(line, axis=[]))


class Plane:
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

    @property
    def rows(self) -> int:
        """That are evaluated."""
        return int(self.evaluated.sum())

    def fill(self, row: int, found: SurfaceLosses) -> None:
        """One row more."""
        self.losses[row], self.stderr[row], self.evaluated[row] = found.losses, found.stderr, True


def _nearest(alphas: Array, value: float) -> int:
    return int(np.abs(alphas - value).argmin())


def slice_meta(objective: Objective, surface: Surface, run: Anytime, settings: dict[str, Any], seed: int) -> Provenance:
    """What is known of how it was evaluated; measures the rounding, if there is time."""
    noise = run.analysed(lambda: surface.noise, math.nan)
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


def line_result(run: Anytime, work: Run, alphas: Array, found: Lines, meta: Provenance) -> SliceResult:
    """The result of lines; ``run`` keeps what its analysis raises."""
    losses = np.stack([line.losses for line in found.found])
    stderr = np.stack([line.stderr for line in found.found])
    noise = meta["noise"]
    depth = 0.0 if math.isnan(noise) else _DEPTH * noise
    notes = _notes(meta, losses, meta["settings"]["directions"], "direction", errors=bool(np.isfinite(stderr).any()))
    accuracies = [line.accuracy for line in found.found if line.accuracy is not None]

    def over_lines(values: Callable[[], Array], mean: Callable[[Array], Estimate] = _over_lines) -> Estimate:
        return run.analysed(lambda: mean(values()), unknown(len(losses)))

    result = SliceResult(
        name=work.name,
        step=work.step,
        loss=float(losses[0, len(alphas) // 2]),
        alphas=alphas,
        losses=losses,
        stderr=stderr,
        labels=tuple(line.label for line in found.lines),
        eps_relative=np.array([line.relative for line in found.lines]),
        roughness=over_lines(lambda: _variance([alphas], 0, losses)),
        detrended=over_lines(lambda: _variance([alphas], 2, losses)),
        detrended4=over_lines(lambda: _variance([alphas], 4, losses)),
        second_difference=over_lines(lambda: second_difference_energy(losses, alphas)),
        minima=over_lines(lambda: np.array([float(minima(line, depth)) for line in losses]), mean_count),
        noise_floor=noise**2,
        accuracy=np.stack(accuracies) if accuracies else None,
        meta=meta,
        notes=notes + norm_notes(meta),
    )
    return dataclasses.replace(result, meta=meta | {"stop_reason": run.reason})


def plane_result(
    run: Anytime, work: Run, plane: Plane, axes: Axes, projected: tuple[Array, Array] | None, meta: Provenance
) -> PlaneResult:
    """The result of a plane; ``run`` keeps what its analysis raises."""
    rows = plane.evaluated
    known, noise = plane.losses[rows], meta["noise"]
    grids = [plane.alpha_1[rows], plane.alpha_2]
    whole = known.reshape(1, -1)
    notes = _notes(meta, known, len(rows), "row", errors=bool(np.isfinite(plane.stderr).any())) + norm_notes(meta)

    def variance(order: int) -> float:
        return run.analysed(lambda: float(_variance(grids, order, whole)[0]), math.nan)

    result = PlaneResult(
        name=work.name,
        step=work.step,
        loss=float(plane.losses[len(plane.alpha_1) // 2, len(plane.alpha_2) // 2]),
        alpha_1=plane.alpha_1,
        alpha_2=plane.alpha_2,
        losses=plane.losses,
        stderr=plane.stderr,
        evaluated=rows,
        labels=axes.labels,
        eps_relative=axes.relative,
        cosine=float(axes.cosines[0, 1]),
        roughness=variance(0),
        detrended=variance(2),
        detrended4=variance(4),
        minima=run.analysed(lambda: minima(known, 0.0 if math.isnan(noise) else _DEPTH * noise), -1),
        noise_floor=noise**2,
        trajectory=None if projected is None else projected[0],
        residual=None if projected is None else projected[1],
        explained=axes.explained,
        meta=meta,
        notes=notes,
    )
    return dataclasses.replace(result, meta=meta | {"stop_reason": run.reason})


def _over_lines(values: Array) -> Estimate:
    return useful(mean_estimate(values), "direction")


def _variance(axes: Sequence[Array], order: int, losses: Array) -> Array:
    """Variance about a trend, NaN where the grid has too few points for it."""
    if any(len(axis) < max(2, order + 2) for axis in axes):
        return np.full(len(losses), np.nan)
    return Trend(axes, order).variance(losses)


def with_notes(result: Sliced, notes: Sequence[str]) -> Sliced:
    """The result with further flags."""
    return dataclasses.replace(result, notes=(*result.notes, *notes))
