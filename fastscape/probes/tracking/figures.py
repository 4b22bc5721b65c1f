"""Figures along training: every number of a tracker, its overhead, and the parts of optimisation difficulty."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastscape.reports import axes as shared
from fastscape.reports.axes import BLUE, GREY, ORANGE, RED, literal, nothing, single, step_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fastscape.probes.tracking.result import DifficultyResult, TrackResult

_COLUMNS = 3
_BESIDE = ("critical",)  # drawn as a line in the panel of lambda_max
_LOGARITHMIC = ("loss", "gradient_norm_squared", "lambda_c", "eta_c", "roughness", "roughness_detrended")
_FIRST = ("lambda_max", "lambda_c")  # shown where no name is given


def panels(result: TrackResult) -> tuple[int, int]:
    """Rows and columns of the figure."""
    count = len(_shown(result)) + 1
    return math.ceil(count / _COLUMNS), min(count, _COLUMNS)


def _shown(result: TrackResult) -> list[str]:
    return [name for name in result.names if name not in _BESIDE]


def draw(result: TrackResult, axes: list[Axes] | Axes) -> object:
    """A panel for every number, and one for the overhead."""
    frames = list(axes) if isinstance(axes, (list, tuple, np.ndarray)) else [axes]
    for ax, name in zip(frames, _shown(result), strict=False):
        single_series(result, ax, name)
    rest = frames[len(_shown(result)) :]
    if rest:
        overhead(result, rest[0])
    for ax in rest[1:]:
        ax.set_axis_off()
    return axes


def single_series(result: TrackResult, ax: Axes | None, name: str | None = None) -> Axes:
    """One number along training, with its intervals and, for eigenvalues, the edge of stability."""
    ax = single(ax)
    if name is None:
        name = next((each for each in (*_FIRST, *result.names) if each in result.names), None)
    if name is None:
        return nothing(ax, "along training", "nothing was measured")
    series = result.series(name)
    label = literal(name.replace("_", " "))
    finite = np.isfinite(series.values)
    if not finite.any():
        return nothing(ax, label, "no finite value")
    ax.plot(series.steps[finite], series.values[finite], "o-", ms=3, lw=1.2, color=BLUE, label=label)
    known = finite & np.isfinite(series.low)
    if known.any():
        ax.fill_between(series.steps[known], series.low[known], series.high[known], color=BLUE, alpha=0.2, lw=0)
    if name in ("lambda_max", "batch_sharpness") and "critical" in result.names:
        edge = result.series("critical")
        if np.isfinite(edge.values).any():
            ax.plot(edge.steps, edge.values, "--", lw=1, color=RED, label="edge of stability")
            ax.legend(fontsize=7, frameon=False)
    if name in ("lambda_c", "eta_c"):
        _rates(result, ax, name)
    if name == "stability_ratio":
        ax.axhline(1.0, ls="--", lw=1, color=RED)
    if name in _LOGARITHMIC and series.values[finite].min() > 0:
        ax.set_yscale("log")
    ax.set_title(label, fontsize=10)
    step_axis([point for point in result.points if name in point.values], series.steps, ax)
    return ax


def _rates(result: TrackResult, ax: Axes, name: str) -> None:
    """The learning rate beside eta_c, 2 / rate beside lambda_c."""
    known = [point for point in result.points if name in point.values and point.learning_rate]
    if known:
        rates = np.array([point.learning_rate for point in known], dtype=np.float64)
        shown, label = (2 / rates, "2 / learning rate") if name == "lambda_c" else (rates, "learning rate")
        ax.plot([point.step for point in known], shown, "--", lw=1, color=RED, label=label)
        ax.legend(fontsize=7, frameon=False)


def overhead(result: TrackResult, ax: Axes | None = None) -> Axes:
    """Seconds of every point, and the share of the training time asked for and taken."""
    ax = single(ax)
    steps = np.array([point.step for point in result.points], dtype=np.float64)
    ax.plot(steps, [point.seconds for point in result.points], "o", ms=4, color=ORANGE)
    ax.set_ylabel("seconds")
    taken = f"{result.measured_share:.2%} taken" if result.training_seconds else "no training yet"
    ax.set_title(f"time of points; {taken}, {result.share:.2%} asked", fontsize=10)
    ax.set_ylim(bottom=0)
    step_axis(list(result.points), steps, ax)
    return ax


def difficulty(result: DifficultyResult, axes: Any) -> object:
    """Spectral norm, squared gradient norm and their growing sum."""
    norm, gradient, total = axes
    norm.errorbar(result.nodes, result.sharpness, yerr=result.residuals, fmt="o-", ms=3, lw=1, color=BLUE)
    rates = result.learning_rates
    if np.any(rates > 0):
        edge = np.divide(2.0, rates, out=np.full_like(rates, np.nan), where=rates > 0)
        if np.nanmin(edge) < 3 * np.nanmax(result.sharpness, initial=0.0):
            norm.plot(result.steps, edge, "--", lw=1, color=RED, label="2 / eta")
            norm.legend(fontsize=7, frameon=False)
    norm.set_title("spectral norm of H", fontsize=10)
    gradient.plot(result.steps, result.gradient_squares, lw=0.7, color=GREY)
    if np.any(result.gradient_squares > 0):
        gradient.set_yscale("log")
    gradient.set_title(f"squared norm, {result.gradient} gradient", fontsize=10)
    growth(result, total)
    for ax in (norm, gradient):
        ax.set_xlabel("training step")
    return axes


def growth(result: DifficultyResult, ax: Axes | None = None) -> Axes:
    """The running sum of eta ||g||^2 ||H||."""
    ax = single(ax)
    if not len(result.steps) or not len(result.nodes):
        return nothing(ax, "O(w0)", "no step yet")
    norms = np.interp(np.arange(len(result.steps)), result.nodes - result.steps[0], result.sharpness)
    ax.plot(result.steps + 1, np.cumsum(result.learning_rates * result.gradient_squares * norms), lw=1.3, color=shared.BLUE)
    ax.set_title("sum of eta ||g||² ||H||", fontsize=10)
    ax.set_xlabel("training step")
    return ax
