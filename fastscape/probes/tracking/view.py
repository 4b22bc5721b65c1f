"""Tables and pages of a tracker and of optimisation difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from fastscape._checks import counted
from fastscape.probes.tracking import figures as tracking_figures
from fastscape.probes.tracking.difficulty_sum import RICHARDSON
from fastscape.probes.tracking.result import DifficultyResult, TrackPoint, TrackResult
from fastscape.reports.sections import Figure, Grid, Quantity, Section, section_of
from fastscape.runs.provenance import remarks_and_notes

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
    "lambda_c": "2 / eta_c, the critical sharpness along the optimizer's step; above 2 / lr the step raises the loss",
    "eta_c": "smallest rate at which the optimizer's step raises the loss, interval over samples",
    "roughness": "variance of L along a random direction, mean over directions",
    "roughness_detrended": "the same without its quadratic trend",
    "m_tau": "RMS distance of tau(q) from a line",
}


@section_of.register
def track_section(result: TrackResult, plotted: str | None = None) -> Section:
    """Every number along training."""
    panels = tracking_figures.panels(result)
    rows = tuple(_row(point, result.names) for point in result.points)
    shown = set().union(*rows) if rows else set()
    return Section(
        f"Along training: {result.name}",
        _track_verdict(result),
        _track_quantities(result),
        (Figure("Along training", partial(tracking_figures.draw, result), _track_words(result), panels=panels),)
        if result.points
        else (),
        (Grid("points", rows, {name: words for name, words in MEANINGS.items() if name in shown}),) if rows else (),
        _track_flags(result),
        (("when", str(result.meta.get("when", ""))), ("share", f"{result.share:.3g}")),
        cover=Figure("", lambda ax: tracking_figures.single_series(result, ax, plotted), ""),
    )


@section_of.register
def difficulty_section(result: DifficultyResult) -> Section:
    """The sum, what it is made of, and its error."""
    rows = (
        Quantity(
            "O(w0)",
            f"{result.value:.4g} ± {result.discretisation:.2g}",
            "sum of eta ||g||^2 ||H||_2 over steps; ± is |O_k - O_2k|, about "
            f"{RICHARDSON:.0f} times the error of the trapezoid rule where ||H|| is smooth",
        ),
        Quantity(
            "dimensionless",
            f"{result.dimensionless:.4g}",
            "sum of eta^2 ||g||^2 ||H||_2 / 2 over L_0 - L_T: what curvature takes from the descent, per descent",
        ),
        Quantity("descent", f"{result.first_loss:.4g} → {result.last_loss:.4g}", "L_0 and L_T on the data of the objective"),
        Quantity("products", f"{result.products.sum():.0f}", f"Hessian-vector products for {len(result.nodes)} spectral norms"),
    )
    words = (
        f"Spectral norm every {result.meta.get('every')} steps (warm-started), squared norm of the {result.gradient} gradient, "
        "and the sum of their product times the learning rate."
    )
    figure = Figure("Optimisation difficulty", partial(tracking_figures.difficulty, result), words, panels=(1, 3))
    return Section(
        f"Optimisation difficulty: {result.name}",
        f"O(w0) = {result.value:.4g} over {counted(len(result.steps), 'step')} "
        f"(discretisation {result.discretisation:.2g}), {result.dimensionless:.3g} of the descent.",
        rows,
        (figure,) if len(result.steps) else (),
        flags=remarks_and_notes(result.meta, result.notes),
        cover=Figure("", partial(tracking_figures.growth, result), ""),
    )


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
    flags = list(remarks_and_notes(result.meta, result.notes))
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
