"""Tables, figures and pages of sharpness."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fastscape._checks import counted
from fastscape.numerics.positive import shown_ends
from fastscape.probes.sharpness.result import SharpnessResult
from fastscape.reports.axes import BLUE, GREY, ORANGE, RED, nothing, single, titled
from fastscape.reports.numbers import interval, number
from fastscape.reports.sections import Figure, Quantity, Section, section_of
from fastscape.runs.provenance import remarks_and_notes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LARGE = 1.0  # rise relative to the loss beyond which a radius is no neighbourhood
_SPREAD = 0.5  # of the best restart, below which most others show a rugged ascent
WORDS = {
    "normalized": "||u_l|| <= 1 per tensor, steps epsilon u_l |w_l|",
    "sam": "||u|| <= 1 over all tensors, steps epsilon u",
    "asam": "||u|| <= 1 over all tensors, steps epsilon u (|w| + eta)",
}


@section_of.register
def sharpness_section(result: SharpnessResult) -> Section:
    """Rises of the loss at the same radius."""
    groups = "" if result.m is None else f", mean over groups of {result.m} samples"
    return Section(
        f"Sharpness ({result.variant}): {result.name}",
        _verdict(result),
        tuple(_quantities(result)),
        (
            Figure(
                "Rises at the same radius",
                lambda ax: bars(result, ax),
                f"L(w + step) - L(w) with {WORDS[result.variant]}, epsilon = {result.epsilon:g}{groups}. Random: mean over "
                "points uniform on the spheres in pairs u and -u, 95 % interval. Worst: best point of all ascents, a lower "
                "bound. First order: epsilon sum ||s_l g_l||. Quadratic: maximum of the second-order model, with the bound "
                "of its largest eigenvalue as a tick. Values that are zero or negative have no bar.",
            ),
            Figure(
                "Ascents",
                lambda ax: ascents(result, ax),
                "Rise at every point of the projected ascents, by start; the best of all of them is the lower bound. The "
                "band is the rounding noise.",
            ),
        ),
        flags=(*remarks_and_notes(result.meta, result.notes), *_raised(result)),
    )


def _quantities(result: SharpnessResult) -> list[Quantity]:
    worst = "largest rise found in the ball: a lower bound of the maximum"
    best = int(np.nanargmax(result.restarts)) if np.isfinite(result.restarts).any() else None
    found = "" if best is None else f"; best start: {result.starts[best]}"
    rows = [
        Quantity("loss", number(result.loss, 5), "L(w)"),
        Quantity("epsilon", f"{result.epsilon:g}", WORDS[result.variant]),
        Quantity("worst case", f">= {number(result.worst, 4)}", worst + found),
        Quantity(
            "random mean",
            interval(result.random),
            f"average over {counted(2 * result.random.n, 'point')} on the spheres, in pairs u, -u",
        ),
        Quantity("first order", number(result.first_order, 4), "epsilon sum_l ||s_l g_l||, exact for a linear loss"),
        Quantity(
            "quadratic model",
            number(result.quadratic, 4),
            f"its maximum in the ball, by ascent; at most {number(result.quadratic_bound, 4)} by its largest eigenvalue",
        ),
    ]
    if result.m is not None and len(result.group_worst):
        low, high = np.nanmin(result.group_worst), np.nanmax(result.group_worst)
        words = f"{counted(len(result.group_worst), 'group')} of {counted(result.m, 'sample')}"
        rows.append(Quantity("over groups", f"{number(low)} .. {number(high)}", f"worst cases of {words}"))
    return rows


def _verdict(result: SharpnessResult) -> str:
    if math.isnan(result.worst):
        return "No sharpness: the loss is NaN."
    text = f"Within epsilon = {result.epsilon:g} the loss rises by at least {number(result.worst)}"
    if result.loss > 0:
        text += f" from {number(result.loss)}"
    mean = result.random.value
    if mean > 0 and math.isfinite(result.worst):
        ratio = result.worst / mean
        text += f", {number(ratio)} times the mean of random points" if ratio < 1e6 else "; random points see nothing of it"
    elif mean <= 0:
        text += "; random points fall on average"
    return text + "."


def _raised(result: SharpnessResult) -> list[str]:
    flags = []
    if result.nonfinite:
        flags.append(f"{counted(result.nonfinite, 'point')} with a NaN or infinite loss")
    if result.worst < 10 * result.noise and max(result.worst, result.first_order) > 0:
        flags.append(f"the worst case is within 10 times the rounding noise ({result.noise:.1e})")
    if result.loss > 0 and result.worst > _LARGE * result.loss and result.worst > 10 * result.first_order:
        flags.append("the rise is far beyond first order and larger than the loss: this radius is no small neighbourhood")
    finite = result.restarts[np.isfinite(result.restarts)]
    if len(finite) > 2 and np.median(finite) < _SPREAD * np.max(finite):
        flags.append("most ascents end below half of the best: the lower bound may be loose; raise restarts or steps")
    reason = result.meta.get("stop_reason")
    if reason in ("deadline", "interrupted"):
        flags.append(f"ended early ({reason}): a lower bound of the rise")
    return flags


def bars(result: SharpnessResult, ax: Axes | None = None) -> Axes:
    """The companions side by side on a logarithmic axis."""
    ax = single(ax)
    title = f"Rise of the loss, epsilon = {result.epsilon:g}"
    rows = [
        ("random mean", result.random.value, GREY),
        ("first order", result.first_order, ORANGE),
        ("quadratic model", result.quadratic, ORANGE),
        ("worst found", result.worst, BLUE),
    ]
    positive = [value for _, value, _ in rows if math.isfinite(value) and value > 0]
    if not positive:
        return nothing(ax, title, "no rise is positive and finite")
    floor, top = min(positive) / 5, max(positive)
    for place, (_, value, colour) in enumerate(rows):
        shown = math.isfinite(value) and value > 0
        if shown:
            ax.barh(place, value - floor, left=floor, color=colour, alpha=0.85, height=0.6)
        beyond = {0: shown_ends(result.random)[1], 2: result.quadratic_bound}.get(place, value)  # of interval and bound
        end = max(value, beyond) if shown and math.isfinite(beyond) else value
        text = number(value) if shown or math.isnan(value) else f"{number(value)} (no bar)"
        ax.annotate(text, (end if shown else floor, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
        top = max(top, end) if shown else top
    low, high = (max(bound, floor) for bound in shown_ends(result.random))
    if result.random.value > 0 and math.isfinite(low) and math.isfinite(high):
        ax.plot([low, high], [0, 0], color="k", lw=1.2)
    if math.isfinite(result.quadratic_bound) and result.quadratic_bound > 0:
        ax.plot([result.quadratic_bound] * 2, [1.7, 2.3], color=RED, lw=1.2)
    ax.set(xscale="log", xlim=(floor, 6 * top), xlabel="L(w + step) - L(w)")
    ax.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=8)
    return titled(ax, title)


def ascents(result: SharpnessResult, ax: Axes | None = None) -> Axes:
    """Rise along every ascent."""
    ax = single(ax)
    title = "Projected ascents, by start"
    curves = np.atleast_2d(result.curves)
    if not curves.size or not np.isfinite(curves).any():
        return nothing(ax, title, "no ascent has a finite value")
    colours = {"first order": ORANGE, "quadratic model": RED, "random": BLUE}
    seen = set[str]()
    for start, curve in zip(result.starts, curves, strict=True):
        ax.plot(np.arange(len(curve)), curve, color=colours[start], lw=1.2, label=None if start in seen else start)
        seen.add(start)
    if math.isfinite(result.noise):
        ax.axhspan(-result.noise, result.noise, color=GREY, alpha=0.25, lw=0)
    ax.locator_params(axis="x", integer=True)
    ax.legend(fontsize=7)
    return titled(ax, title, "gradient step", "L(w + step) - L(w)")
