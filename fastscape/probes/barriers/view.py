"""Tables and pages of barriers, their matrix, and curves."""

from __future__ import annotations

import math

import numpy as np

from fastscape._checks import counted
from fastscape.probes.barriers import figures
from fastscape.probes.barriers.result import BarrierMatrix, BarrierResult, CurveResult
from fastscape.reports.numbers import interval, number
from fastscape.reports.sections import Figure, Grid, Quantity, Section, section_of
from fastscape.runs.provenance import remarks_and_notes

BATCH_NORM = {
    "none": "the model has no running statistics",
    "recalibrate": "running statistics recomputed at every point, ends included: weighted averages over the data's batches",
    "running": "running statistics interpolated between those of the ends",
    "batch": "statistics of each batch",
}
_BAND = "The interval is of a band that holds at all points at once, so it allows for the maximum being looked for."
_FEW = 10  # units below which an interval over them says little
_COLUMNS = {
    "B_lin [95 %]": f"max over alpha of L(w(alpha)) - (1 - alpha) L_a - alpha L_b. {_BAND[:-1]}",
    "at alpha": "where B_lin is reached, from 0 at the first of the pair to 1 at the second",
    "B_end [95 %]": "max over alpha of L(w(alpha)) - max(L_a, L_b)",
    "B_max": "largest loss along the line; not zero without a barrier",
    "accuracy barrier [95 %]": "max over alpha of (1 - alpha) A_a + alpha A_b - A(w(alpha)), a share of the targets",
    "distance": "||w_a - w_b|| over all parameters",
}


@section_of.register
def barrier_section(result: BarrierResult) -> Section:
    """The loss along a path with its barriers."""
    title = "Barrier along a curve" if result.path == "curve" else "Barrier"
    shown = [
        Figure(
            "Loss along the path",
            lambda ax: figures.loss_line(result, ax),
            "Mean loss at w(alpha), 95 % band over samples at each point; the chord joins the ends, and the arrow is the "
            f"barrier above it. Batch norm: {BATCH_NORM[result.batch_norm]}.",
        )
    ]
    if result.accuracy is not None:
        words = "Share of correct classifications at w(alpha), with the chord of the ends."
        shown.append(Figure("Accuracy along the path", lambda ax: figures.accuracy_line(result, ax), words))
    return Section(
        f"{title}: {result.a} to {result.b}",
        _verdict(result),
        tuple(_quantities(result)),
        tuple(shown),
        flags=(*remarks_and_notes(result.meta, result.notes), *_raised(result)),
    )


def _matrix_flags(result: BarrierMatrix) -> tuple[str, ...]:
    """Everything to beware of, in words."""
    total = len(result.labels) * (len(result.labels) - 1) // 2
    early = [f"{total - len(result.pairs)} of {counted(total, 'pair')} were not evaluated"] if len(result.pairs) < total else []
    single: dict[str, list[str]] = {}
    for pair in result.pairs:
        for flag in (flag for flag in pair.flags if flag not in result.meta.get("remarks", ())):
            single.setdefault(flag, []).append(f"{pair.a} - {pair.b}")
    grouped = [f"{flag} ({', '.join(where[:3])}{' ...' if len(where) > 3 else ''})" for flag, where in single.items()]
    return (*remarks_and_notes(result.meta, result.notes), *early, *grouped)


@section_of.register
def matrix_section(result: BarrierMatrix) -> Section:
    """Barriers between every two solutions, and each pair."""
    words = "max over alpha of L(w(alpha)) - (1 - alpha) L_row - alpha L_column along the straight line"
    if result.matched:
        words += ", the hidden units of the later solution reordered to match the earlier"
    shown = [Figure("Barriers between solutions", lambda ax: figures.heat_map(result, result.linear, "B_lin", ax), words + ".")]
    if result.accuracy_barrier is not None:
        drop = result.accuracy_barrier
        text = "max over alpha of (1 - alpha) A_row + alpha A_column - A(w(alpha))."
        shown.append(Figure("Accuracy barriers", lambda ax: figures.heat_map(result, drop, "accuracy barrier", ax), text))
    shown.append(
        Figure("Lines", lambda ax: figures.all_lines(result, ax), "Losses along every line, less the chord of its ends.")
    )
    return Section(
        f"Barriers between {counted(len(result.labels), 'solution')}",
        _matrix_verdict(result),
        (Quantity("batch norm", result.batch_norm, BATCH_NORM[result.batch_norm]),),
        tuple(shown),
        (Grid("Pairs", tuple(_pair_row(pair) for pair in result.pairs), _COLUMNS),),
        _matrix_flags(result),
    )


def _matrix_verdict(result: BarrierMatrix) -> str:
    found = [pair for pair in result.pairs if math.isfinite(pair.linear.value)]
    if not found:
        return "No pair with finite ends was evaluated."
    values = [pair.linear.value for pair in found]
    apart = sum(1 for pair in found if pair.linear.interval[0] > 0)
    return (
        f"B_lin is {number(min(values))} to {number(max(values))} over {counted(len(found), 'pair')}; "
        f"{apart} of them above zero by their 95 % intervals."
    )


def _curve_flags(result: CurveResult) -> tuple[str, ...]:
    """Everything to beware of, in words."""
    own = remarks_and_notes(result.meta, result.notes)
    lines = {flag: f"line: {flag}" for flag in result.line.flags if flag not in own}
    curves = {flag: f"curve: {flag}" for flag in result.curve.flags if flag not in own}
    both = [flag for flag in lines if flag in curves]
    single = [words for table in (lines, curves) for flag, words in table.items() if flag not in both]
    done, wanted, reason = len(result.training), result.meta["settings"]["steps"], result.meta["stop_reason"]
    short = [f"the bend was trained for {done} of {wanted} steps ({reason})"] if done < wanted and reason != "complete" else []
    return (*own, *short, *both, *single)


@section_of.register
def curve_section(result: CurveResult) -> Section:
    """Curve and straight line beside each other."""
    curve, line = result.curve, result.line
    rows = [
        Quantity("B_lin, curve", interval(curve.linear), f"above the chord of the ends, at t = {curve.argmax:.3g}. {_BAND}"),
        Quantity("B_lin, line", interval(line.linear), f"along the straight line, at alpha = {line.argmax:.3g}"),
        Quantity("max, curve", interval(curve.max), "largest loss along the curve"),
        Quantity("max, line", interval(line.max), "largest loss along the straight line"),
    ]
    if curve.accuracy_barrier is not None:
        rows.append(Quantity("accuracy barrier, curve", interval(curve.accuracy_barrier), "below the chord of the ends"))
        rows.append(Quantity("accuracy barrier, line", interval(line.accuracy_barrier), "along the straight line"))
    rows.append(Quantity("length", f"{number(result.length, 4)} ({number(result.distance, 4)})", "of the curve (of the line)"))
    shown = [
        Figure(
            "Loss along curve and line",
            lambda ax: figures.both_lines(result, ax),
            "Mean loss along (1 - t)^2 a + 2 t (1 - t) theta + t^2 b and along the straight line, 95 % bands over samples. "
            f"Batch norm: {BATCH_NORM[curve.batch_norm]}.",
        ),
        Figure(
            "Training of the bend",
            lambda ax: figures.training(result, ax),
            "Loss of a batch at a random t, one dot a step, and its running mean.",
        ),
    ]
    return Section(
        f"Bezier curve: {line.a} to {line.b}",
        _curve_verdict(result),
        tuple(rows),
        tuple(shown),
        flags=_curve_flags(result),
    )


def _curve_verdict(result: CurveResult) -> str:
    line, curve = result.line.linear.value, result.curve.linear.value
    if not (math.isfinite(line) and math.isfinite(curve)):
        return "No curve: a loss along the path is not finite."
    text = f"The curve has a barrier of {number(curve)}, the straight line one of {number(line)}"
    ratio = result.length / result.distance if result.distance else 1.0
    return f"{text}; it is {number(ratio)} times as long."


def _quantities(result: BarrierResult) -> list[Quantity]:
    where, top = f"at alpha = {result.argmax:.3g}", f"at alpha = {result.argmax_loss:.3g}"
    rows = [
        Quantity("B_lin", interval(result.linear), f"max of L(w(alpha)) - (1 - alpha) L_a - alpha L_b, {where}. {_BAND}"),
        Quantity("B_end", interval(result.end), "max of L(w(alpha)) - max(L_a, L_b)"),
        Quantity("B_max", interval(result.max), f"max of L(w(alpha)), {top}; not zero without a barrier"),
    ]
    if result.accuracy_barrier is not None:
        words = "max of (1 - alpha) A_a + alpha A_b - A(w(alpha)), a share of the targets"
        rows.append(Quantity("accuracy barrier", interval(result.accuracy_barrier), words))
    ends = f"{number(float(result.losses[0]), 4)} and {number(float(result.losses[-1]), 4)}"
    rows.append(Quantity("L_a and L_b", ends, "losses at the ends, treated as every other point"))
    if result.accuracy is not None:
        ends = f"{float(result.accuracy[0]):.2%} and {float(result.accuracy[-1]):.2%}"
        rows.append(Quantity("A_a and A_b", ends, "accuracies at the ends"))
    words = "after reordering the hidden units of b" if result.matched else "over all parameters"
    rows.append(Quantity("distance", number(result.distance, 4), f"||w_a - w_b|| {words}"))
    if result.path == "curve":
        rows.append(Quantity("length", number(result.length, 4), "of the curve"))
    rows.append(Quantity("resolution", number(result.resolution), f"what {counted(len(result.alphas), 'point')} may have missed"))
    return rows


def _verdict(result: BarrierResult) -> str:
    value = result.linear.value
    along = "curve" if result.path == "curve" else "line"
    if math.isnan(value):
        return "No barrier: the loss at an end is not finite."
    if value <= max(0.0, 2 * result.noise):
        return f"No barrier: along the {along} from {result.a} to {result.b} the loss stays on or below the chord of its ends."
    text = f"Along the {along} from {result.a} to {result.b} the loss rises {number(value)} above the chord of its ends"
    text += f" ({number(float(result.losses[0]))} and {number(float(result.losses[-1]))}) at alpha = {result.argmax:.2g}"
    low = result.linear.interval[0]
    if low <= 0:
        text += ", which this many samples cannot tell from none"
    drop = result.accuracy_barrier
    if drop is not None and drop.value > 0:
        text += f"; the accuracy falls {100 * drop.value:.1f} points below theirs"
    return text + "."


def _raised(result: BarrierResult) -> list[str]:
    flags = []
    if result.nonfinite:
        flags.append(f"{counted(result.nonfinite, 'point')} with a NaN or infinite loss; NaN is left out of the maxima")
    size = float(np.nanmax(result.losses) - np.nanmin(result.losses)) if np.isfinite(result.losses).any() else math.nan
    asked = result.meta.get("settings", {}).get("tolerance", math.inf)
    if result.resolution > max(asked * size, 8 * result.noise):
        flags.append(f"a maximum between the points may be {number(result.resolution)} higher; raise points")
    if 0 < result.linear.value < 10 * result.noise:
        flags.append(
            f"the barrier is within 10 times the rounding noise ({result.noise:.1e}); measure again with precision='float64'"
        )
    if result.batch_norm == "running":
        flags.append("interpolated running statistics fit no network inside the path; bn='recalibrate' recomputes them")
    if math.isnan(result.linear.stderr) and math.isfinite(result.linear.value):
        flags.append("no intervals: the losses of samples are not known, and there is one batch")
    elif result.meta.get("unit") == "batches" and result.linear.n < _FEW:
        flags.append(f"intervals over {counted(result.linear.n, 'batch')} only: the losses of samples are not known")
    reason = result.meta.get("stop_reason")
    if reason in ("deadline", "interrupted"):
        flags.append(f"ended early ({reason}) after {counted(len(result.alphas), 'point')}")
    return flags


def _pair_row(pair: BarrierResult) -> dict[str, str]:
    row = {
        "pair": f"{pair.a} - {pair.b}",
        "B_lin [95 %]": interval(pair.linear),
        "at alpha": f"{pair.argmax:.2f}",
        "B_end [95 %]": interval(pair.end),
        "B_max": number(pair.max.value),
    }
    if pair.accuracy_barrier is not None:
        row["accuracy barrier [95 %]"] = interval(pair.accuracy_barrier)
    return row | {"distance": number(pair.distance)}
