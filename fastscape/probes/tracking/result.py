"""Results of what runs along training: the points of a tracker, and optimisation difficulty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from fastscape.numerics.arrays import Array, Shapes
from fastscape.numerics.estimate import Estimate
from fastscape.probes.tracking.difficulty_sum import over_seeds
from fastscape.reports import batch_norm
from fastscape.reports.document import Document
from fastscape.reports.sections import section_of
from fastscape.runs.provenance import Provenance


@dataclass(frozen=True)
class TrackPoint:
    """Measurements of one training step.

    Attributes:
        step: training step whose weights were measured.
        fraction: of the planned steps; ``None`` where they are not known.
        learning_rate: of the optimizer then (its first group); ``None`` where unknown.
        values: numbers by name; NaN and inf are results.
        intervals: 95 % intervals, or residual bounds of eigenvalues, by name.
        left_out: what was to be measured and was not, and why.
        seconds: that it took.
        measured_at: training step at which the measurement ended; later than ``step`` where its time had to be earned first.
        notes: flags in words.
    """

    step: int
    fraction: float | None
    learning_rate: float | None
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    measured_at: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class SkippedPoint:
    """A step that was due and not measured, and why."""

    step: int
    reason: str


@dataclass(frozen=True)
class Series:
    """One number along training: ``steps``, ``values``, ``low``, ``high``, all ``[n]``; bounds are NaN where unknown."""

    steps: Array
    values: Array
    low: Array
    high: Array


@dataclass(frozen=True, repr=False)
class TrackResult(Document):
    """Measurements of a tracker along one training run.

    Attributes:
        name: of the run.
        step: the last training step.
        points: ascending in their steps.
        skipped: steps that were due and not measured.
        share: of the training time that was asked for.
        training_seconds, tracker_seconds: measured.
        planned: steps of the run; ``None`` where unknown.
        meta: settings, seed, versions, model, data.
        notes: flags in words.
    """

    kind: ClassVar[str] = "track"
    name: str
    step: int | None
    points: tuple[TrackPoint, ...]
    skipped: tuple[SkippedPoint, ...]
    share: float
    training_seconds: float
    tracker_seconds: float
    planned: int | None
    meta: Provenance
    notes: tuple[str, ...] = ()

    @property
    def measured_share(self) -> float:
        """Tracker's time over training time; NaN before any training."""
        return self.tracker_seconds / self.training_seconds if self.training_seconds > 0 else math.nan

    @property
    def names(self) -> tuple[str, ...]:
        """Everything that was measured at some point."""
        return tuple(dict.fromkeys(name for point in self.points for name in point.values))

    def series(self, name: str) -> Series:
        """A number along training, of the points that have it.

        Raises:
            KeyError: a name that no point has; lists those there are.
        """
        found = [point for point in self.points if name in point.values]
        if not found:
            raise KeyError(f"no point has {name!r}: there are {', '.join(self.names) or 'no values'}")
        unknown = (math.nan, math.nan)
        bounds = np.array([point.intervals.get(name, unknown) for point in found], dtype=np.float64)
        steps = np.array([point.step for point in found], dtype=np.float64)
        return Series(steps, np.array([point.values[name] for point in found], dtype=np.float64), bounds[:, 0], bounds[:, 1])

    @property
    def lead(self) -> str:
        """See :class:`Document`; of the point whose losses by the two kinds of statistics differ most."""
        both = [point for point in self.points if "loss_running" in point.values and "loss" in point.values]
        leads = [
            (f"step {point.step}", {"running": point.values["loss_running"], "batch": point.values["loss"]}) for point in both
        ]
        return batch_norm.lead_along([(name, self.meta | {"statistics": found}) for name, found in leads]) or super().lead

    def plot(self, ax: Any = None, name: str | None = None) -> Any:
        """One number along training: ``name``, else the largest eigenvalue with the edge of stability, or the first there is."""
        cover = section_of(self, plotted=name).cover
        assert cover is not None
        return cover.draw(ax)

    def early(self, limit: float = 0.1) -> tuple[TrackPoint, ...]:
        """Points within the first ``limit`` of the planned steps; none where the plan is not known."""
        return tuple(point for point in self.points if point.fraction is not None and point.fraction <= limit + 1e-12)


@dataclass(frozen=True, repr=False)
class DifficultyResult(Document):
    r"""Optimisation difficulty of one training run, :math:`O(w_0) = \sum_t \eta_t \|g_t\|^2 \|H_t\|_2`.

    Attributes:
        name: of the run.
        step: T, steps that were summed.
        value: O; NaN where a gradient or a norm is.
        coarse: O from every other spectral norm.
        discretisation: |O_k - O_2k|.
        dimensionless: sum of eta_t^2 ||g_t||^2 ||H_t|| / 2 over the descent L_0 - L_T; NaN where the loss has not fallen.
        cost: the numerator, in units of the loss.
        first_loss, last_loss: L_0 and L_T on the data of the objective.
        gradient: ``"minibatch"``, ``"full"`` or ``"given"``: whose norm was summed.
        steps, learning_rates, gradient_squares: t, eta_t, ||g_t||^2 ``[T]``.
        nodes: steps at which the norm was computed ``[n]``.
        sharpness, residuals: ||H||_2 there and the residual of its Ritz pair ``[n]``.
        products: Hessian-vector products of each ``[n]``.
        losses: L at the nodes ``[n]``.
        meta: settings, seed, versions, model, data.
        notes: flags in words.
    """

    kind: ClassVar[str] = "difficulty"
    shapes: ClassVar[Shapes] = {
        "steps": "t",
        "learning_rates": "t",
        "gradient_squares": "t",
        "nodes": "n",
        "sharpness": "n",
        "residuals": "n",
        "products": "n",
        "losses": "n",
    }
    name: str
    step: int | None
    value: float
    coarse: float
    discretisation: float
    dimensionless: float
    cost: float
    first_loss: float
    last_loss: float
    gradient: str
    steps: Array
    learning_rates: Array
    gradient_squares: Array
    nodes: Array
    sharpness: Array
    residuals: Array
    products: Array
    losses: Array
    meta: Provenance
    notes: tuple[str, ...] = ()

    @staticmethod
    def over_seeds(results: Sequence[DifficultyResult]) -> dict[str, Estimate]:
        """``"value"`` and ``"dimensionless"`` over runs that differ in their seed, with intervals."""
        return {name: over_seeds([getattr(result, name) for result in results]) for name in ("value", "dimensionless")}
