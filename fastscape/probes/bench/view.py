"""Tables, figures and pages of the cost of probes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fastscape._checks import counted
from fastscape.probes.bench.result import FORWARD, GRADIENT, BenchResult, BenchUnit
from fastscape.reports.axes import BLUE, GREY, nothing, single, titled
from fastscape.reports.numbers import number
from fastscape.reports.sections import Figure, Grid, Quantity, Section, section_of
from fastscape.runs.provenance import remarks_and_notes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MEANINGS = {
    "unit": "what is done once",
    "time": "median of the rounds",
    "quartiles": "first and third, over the rounds",
    "forwards": "median over the rounds of the unit's seconds over one forward's in the same round",
    "gradients": "the same over one gradient (forward and backward)",
    "GB/s": "bytes read and written over seconds, for the units that only move weights",
    "peak MiB": "most bytes of tensors alive at once in the unit, beyond what was there before; kernels' workspace not counted",
    "deviation": "largest difference from the reference of the same numbers, relative to their size; checked before timing",
    "runs": "timed rounds, and calls in each",
}
_HOW = {"unit": "what is done once", "one is": "what was timed", "how": "the path that was taken, and why"}


@section_of.register
def bench_section(result: BenchResult) -> Section:
    """Cost of every unit."""
    missing = [unit for unit in result.units if not len(unit.seconds)]
    how = tuple({"unit": unit.name, "one is": unit.meaning, "how": unit.remark} for unit in result.timed)
    grids = [Grid("Cost of one", tuple(_bench_row(result, unit) for unit in result.timed), _MEANINGS), Grid("How", how, _HOW)]
    if missing:
        rows = tuple({"unit": unit.name, "why": unit.reason} for unit in missing)
        grids.append(Grid("Left out", rows, {"unit": "what is done once", "why": "why there are no timings"}))
    return Section(
        f"Cost of probes: {result.name}",
        _verdict(result),
        tuple(_quantities(result)),
        (
            Figure(
                "Cost in forwards",
                lambda ax: bars(result, ax),
                "Median over the rounds of each unit's seconds over those of one forward in the same round, quartiles as a "
                "line. Units of responses are one direction at one radius, of products one vector.",
            ),
        ),
        tuple(grids),
        remarks_and_notes(result.meta, result.notes),
    )


def _bench_row(result: BenchResult, unit: BenchUnit) -> dict[str, str]:
    low, high = unit.quartiles
    return {
        "unit": unit.name,
        "time": time_words(unit.median),
        "quartiles": f"{time_words(low)} .. {time_words(high)}",
        "forwards": number(result.ratio(unit.name)),
        "gradients": number(result.ratio(unit.name, GRADIENT)),
        "GB/s": number(unit.bandwidth / 1e9) if unit.moved else "",
        "peak MiB": "" if unit.peak is None else number(unit.peak / 2**20),
        "deviation": "" if math.isnan(unit.deviation) else f"{unit.deviation:.0e}",
        "runs": f"{len(unit.seconds)} x {unit.calls}" if unit.calls > 1 else str(len(unit.seconds)),
    }


def time_words(seconds: float) -> str:
    """``1.23 ms``: three digits in the unit that suits; ``n/a`` for NaN."""
    if not math.isfinite(seconds):
        return "n/a"
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _quantities(result: BenchResult) -> list[Quantity]:
    meta = result.meta
    versions = ", ".join(f"{name} {version}" for name, version in meta.get("versions", {}).items())
    rows = [
        Quantity("model", f"{meta.get('model')}, {meta.get('parameters'):,} parameters", f"{meta.get('dtype')}"),
        Quantity("data", f"{meta.get('samples'):g} terms", f"in {counted(meta.get('batches', 0), 'batch')}"),
        Quantity("loss", number(result.loss, 6), "L(w); every unit that computes it was checked against this value"),
        Quantity("device", str(meta.get("device")), str(meta.get("machine", ""))),
        Quantity("threads", str(meta.get("threads")), f"of {meta.get('cores')} cores"),
        Quantity("kernels", str(meta.get("kernels", "")), "what runs fastscape's own operations"),
        Quantity("versions", versions, ""),
    ]
    for name, meaning in ((FORWARD, "L(w) once, no gradient"), (GRADIENT, "its gradient, forward included")):
        if any(unit.name == name for unit in result.timed):
            unit = result[name]
            low, high = unit.quartiles
            rows.append(
                Quantity(
                    f"one {name}", f"{time_words(unit.median)} [{time_words(low)}, {time_words(high)}]", f"{meaning}; quartiles"
                )
            )
    return rows


def _verdict(result: BenchResult) -> str:
    timed = result.timed
    if not timed:
        return f"Nothing was timed ({result.meta.get('stop_reason')})."
    parts = []
    responses = [unit for unit in timed if unit.name.startswith("even response")]
    if responses:
        best = min(responses, key=lambda unit: unit.median)
        parts.append(f"an even response takes {number(result.ratio(best.name))} forwards ({best.name.partition(': ')[2]})")
    products = [unit for unit in timed if unit.name.startswith("Hessian product")]
    if products:
        best = min(products, key=lambda unit: unit.median)
        parts.append(f"a Hessian product {number(result.ratio(best.name, GRADIENT))} gradients ({best.name.partition(': ')[2]})")
    rounds = max(len(unit.seconds) for unit in timed)
    tail = f"{len(timed)} of {counted(len(result.units), 'unit')} timed, up to {counted(rounds, 'repeat')}."
    return ("At best " + " and ".join(parts) + "; " if parts else "") + tail


def bars(result: BenchResult, ax: Axes | None = None) -> Axes:
    """Cost in forwards on a logarithmic axis, quartiles as lines."""
    ax = single(ax)
    title = "Cost of one, in forwards"
    rows = [(unit, result.ratio(unit.name)) for unit in reversed(result.timed)]
    rows = [(unit, ratio) for unit, ratio in rows if math.isfinite(ratio) and ratio > 0]
    if not rows:
        return nothing(ax, title, "no unit was timed beside a forward")
    floor = min(ratio for _, ratio in rows) / 3
    for place, (unit, ratio) in enumerate(rows):
        ax.barh(
            place, ratio - floor, left=floor, color=GREY if unit.name in (FORWARD, GRADIENT) else BLUE, alpha=0.85, height=0.6
        )
        low, high = (ratio * bound / unit.median for bound in unit.quartiles)
        ax.plot([low, high], [place, place], color="k", lw=1.2)
        ax.annotate(number(ratio), (max(ratio, high), place), (4, 0), textcoords="offset points", va="center", fontsize=7)
    ax.set(xscale="log", xlim=(floor, 6 * max(ratio for _, ratio in rows)), xlabel="forwards")
    ax.set_yticks(range(len(rows)), [unit.name for unit, _ in rows], fontsize=7)
    return titled(ax, title)
