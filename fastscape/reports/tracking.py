"""Results of what runs along training: the points of a tracker, and optimisation difficulty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from fastscape._checks import counted
from fastscape.estimators.difficulty import RICHARDSON, over_seeds
from fastscape.estimators.intervals import Estimate
from fastscape.estimators.scaling import Array
from fastscape.reports import batch_norm, tracking_figures
from fastscape.reports.document import Document
from fastscape.reports.sections import Figure, Grid, Quantity, Section
from fastscape.runs.provenance import told

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEANINGS = {
    "loss": "L on the data of the objective, in evaluation mode; batch norm by the statistics of each batch, as in training",
    "loss_running": "the same with the running statistics of batch norm",
    "accuracy": "share of correct classifications",
    "gradient_norm_squared": "||g||^2 of the full data",
    "weight_norm": "||w|| of the probed parameters",
    "lambda_max": "largest eigenvalue of the Hessian; its interval is the residual's",
    "lambda_min": "smallest eigenvalue of the Hessian",
    "spectral_norm": "max(|lambda_max|, |lambda_min|)",
    "trace": "tr(H), 95 % interval over random probes",
    "mean_curvature": "tr(H) / D",
    "effective_rank": "tr(H)^2 / tr(H^2)",
    "gradient_curvature": "g'Hg / g'g",
    "critical": "curvature at which the optimizer's own step stops contracting: 2 / eta for gradient descent",
    "stability_ratio": "(preconditioned) sharpness over the critical curvature; 1 is the edge of stability",
    "batch_sharpness": "mean over batches of g_B' H_B g_B / ||g_B||^2",
    "roughness": "variance of L along a random direction, mean over directions",
    "roughness_detrended": "the same without its quadratic trend",
    "m_tau": "RMS distance of tau(q) from a line",
}


@dataclass(frozen=True)
class TrackPoint:
    """What was measured at one training step.

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


@dataclass(frozen=True)
class TrackResult(Document):
    """What a tracker measured along one training run.

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
    meta: dict[str, Any]
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
        told = [
            (f"step {point.step}", {"running": point.values["loss_running"], "batch": point.values["loss"]}) for point in both
        ]
        return batch_norm.lead_along([(name, self.meta | {"statistics": found}) for name, found in told]) or super().lead

    def early(self, limit: float = 0.1) -> tuple[TrackPoint, ...]:
        """Points within the first ``limit`` of the planned steps; none where the plan is not known."""
        return tuple(point for point in self.points if point.fraction is not None and point.fraction <= limit + 1e-12)

    def section(self) -> Section:
        """See :class:`Document`."""
        panels = tracking_figures.panels(self)
        rows = tuple(_row(point, self.names) for point in self.points)
        shown = set().union(*rows) if rows else set()
        return Section(
            f"Along training: {self.name}",
            _track_verdict(self),
            _track_quantities(self),
            (Figure("Along training", partial(tracking_figures.draw, self), _track_words(self), panels=panels),)
            if self.points
            else (),
            (Grid("points", rows, {name: words for name, words in MEANINGS.items() if name in shown}),) if rows else (),
            _track_flags(self),
            (("when", str(self.meta.get("when", ""))), ("share", f"{self.share:.3g}")),
        )

    def plot(self, ax: Axes | None = None, name: str | None = None) -> Axes:
        """One number along training: the largest eigenvalue with the edge of stability, or the first there is."""
        return tracking_figures.single_series(self, ax, name)


def _row(point: TrackPoint, names: Sequence[str]) -> dict[str, str]:
    cells = {name: f"{point.values[name]:.4g}" if name in point.values else "–" for name in names}
    return {"step": str(point.step)} | cells


def _track_quantities(result: TrackResult) -> tuple[Quantity, ...]:
    rows = []
    for name in result.names:
        series = result.series(name)
        last = f"{series.values[-1]:.4g}"
        if np.isfinite(series.low[-1]):
            last += f" [{series.low[-1]:.4g}, {series.high[-1]:.4g}]"
        first = f"{series.values[0]:.4g} → " if len(series.values) > 1 else ""
        rows.append(Quantity(name.replace("_", " "), first + last, MEANINGS.get(name, "")))
    share = f"{result.measured_share:.2%} (asked {result.share:.2%})" if result.training_seconds else "no training yet"
    rows.append(Quantity("share of training time", share, "time of the tracker over the time between its steps"))
    return tuple(rows)


def _track_verdict(result: TrackResult) -> str:
    done = counted(len(result.points), "point")
    left = f", {counted(len(result.skipped), 'point')} skipped" if result.skipped else ""
    if not result.points:
        return f"Nothing was measured{left}: {result.skipped[-1].reason if result.skipped else 'nothing was due yet'}."
    words = f"{done} up to step {result.points[-1].step}{left}"
    if "stability_ratio" in result.names:
        ratios = result.series("stability_ratio")
        words += f"; at step {ratios.steps[-1]:.0f} the sharpness is {ratios.values[-1]:.3g} of its critical value"
    elif "lambda_max" in result.names:
        values = result.series("lambda_max").values
        words += f"; lambda_max {values[0]:.3g} → {values[-1]:.3g}"
    if result.training_seconds:
        words += f"; the tracker took {result.measured_share:.1%} of the training time"
    return words + "."


def _track_flags(result: TrackResult) -> tuple[str, ...]:
    flags = list(told(result.meta, result.notes))
    if result.training_seconds and result.measured_share > 1.1 * result.share:
        flags.append(f"the tracker took {result.measured_share:.1%} of the training time, {result.share:.1%} was asked for")
    if result.skipped:
        steps = ", ".join(str(point.step) for point in result.skipped[:8])
        flags.append(f"not measured: steps {steps}{' ...' if len(result.skipped) > 8 else ''} ({result.skipped[-1].reason})")
    for item in dict.fromkeys(item for point in result.points for item in point.left_out):
        without = [point for point in result.points if item in point.left_out]
        steps = ", ".join(str(point.step) for point in without[:8])
        flags.append(
            f"no {item} at {counted(len(without), 'point')}, steps {steps}{' ...' if len(without) > 8 else ''} "
            f"({without[-1].left_out[item]})"
        )
    flags += list(dict.fromkeys(note for point in result.points for note in point.notes))
    return tuple(flags)


def _track_words(result: TrackResult) -> str:
    words = [f"{name.replace('_', ' ')}: {MEANINGS[name]}" for name in result.names if name in MEANINGS]
    return "; ".join(words) + ". Bars are intervals; the dashed line is the edge of stability."


@dataclass(frozen=True)
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
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()

    @staticmethod
    def over_seeds(results: Sequence[DifficultyResult]) -> dict[str, Estimate]:
        """``"value"`` and ``"dimensionless"`` over runs that differ in their seed, with intervals."""
        return {name: over_seeds([getattr(result, name) for result in results]) for name in ("value", "dimensionless")}

    def section(self) -> Section:
        """See :class:`Document`."""
        rows = (
            Quantity(
                "O(w0)",
                f"{self.value:.4g} ± {self.discretisation:.2g}",
                "sum of eta ||g||^2 ||H||_2 over steps; ± is |O_k - O_2k|, about "
                f"{RICHARDSON:.0f} times the error of the trapezoid rule where ||H|| is smooth",
            ),
            Quantity(
                "dimensionless",
                f"{self.dimensionless:.4g}",
                "sum of eta^2 ||g||^2 ||H||_2 / 2 over L_0 - L_T: what curvature takes from the descent, per descent",
            ),
            Quantity("descent", f"{self.first_loss:.4g} → {self.last_loss:.4g}", "L_0 and L_T on the data of the objective"),
            Quantity("products", f"{int(self.products.sum())}", f"Hessian-vector products for {len(self.nodes)} spectral norms"),
        )
        words = (
            f"Spectral norm every {self.meta.get('every')} steps (warm-started), squared norm of the {self.gradient} gradient, "
            "and the sum of their product times the learning rate."
        )
        figure = Figure("Optimisation difficulty", partial(tracking_figures.difficulty, self), words, panels=(1, 3))
        return Section(
            f"Optimisation difficulty: {self.name}",
            f"O(w0) = {self.value:.4g} over {counted(len(self.steps), 'step')} "
            f"(discretisation {self.discretisation:.2g}), {self.dimensionless:.3g} of the descent.",
            rows,
            (figure,) if len(self.steps) else (),
            flags=told(self.meta, self.notes),
        )

    def plot(self, ax: Axes | None = None) -> Axes:
        """The sum as it grows along training."""
        return tracking_figures.growth(self, ax)
