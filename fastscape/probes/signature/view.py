"""Tables, figures and pages of signatures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastscape.probes.signature.quantities import QUANTITIES, shown
from fastscape.probes.signature.result import Signature
from fastscape.probes.signature.rules import Verdict
from fastscape.reports.axes import BLUE, GREY, ORANGE, RED, nothing, single, titled
from fastscape.reports.numbers import number
from fastscape.reports.sections import Figure, Grid, Quantity, Section, section_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RULE_COLUMNS = {
    "rule": "name of the rule; all its conditions must hold",
    "status": "fired: the whole interval is beyond the threshold; inconclusive: it crosses it or is unknown",
    "evidence": "value [95 % interval], comparison and threshold, or what is missing",
    "advice": "what to do where it fires",
    "source": "of rule and threshold",
}
MARGINS = (
    "Every condition's value over its threshold with its interval, on a logarithmic axis; 1 is the threshold. Orange: the "
    "condition holds. A rule fires where all its conditions hold with their whole intervals."
)


@section_of.register
def signature_section(result: Signature) -> Section:
    """Every quantity with its meaning, and the early warnings."""
    verdicts = result.warnings()
    return Section(
        f"Signature: {result.name}",
        _verdict(result, verdicts),
        tuple(Quantity(quantity.label, shown(getattr(result, key)), result.meaning(key)) for key, quantity in QUANTITIES.items()),
        (Figure("Distance from the thresholds", lambda ax: margins(verdicts, ax), MARGINS),),
        (Grid("Early warnings", tuple(map(row_of, verdicts)), RULE_COLUMNS),),
        result.notes,
        tuple((kind, _settings(source)) for kind, source in result.meta.get("sources", {}).items()),
    )


def row_of(verdict: Verdict) -> dict[str, str]:
    """A rule's row in a table."""
    return {
        "rule": verdict.rule,
        "status": verdict.status,
        "evidence": verdict.evidence if verdict.status == "fired" else verdict.reason,
        "advice": verdict.advice if verdict.status == "fired" else "",
        "source": verdict.source,
    }


def margins(verdicts: Sequence[Verdict], ax: Axes | None = None) -> Axes:
    """Value over threshold of every condition."""
    ax = single(ax)
    title = "Distance from the thresholds"
    checks = [check for verdict in verdicts for check in verdict.checks]
    shown = [check for check in checks if check.measured and check.value > 0 and 0 < check.threshold < math.inf]
    if not shown:
        return nothing(ax, title, "no condition has a value and a threshold")
    for place, check in enumerate(shown):
        colour = {True: ORANGE, False: BLUE, None: GREY}[check.holds]
        low, high = (bound / check.threshold for bound in check.interval)
        ratio = check.value / check.threshold
        low = ratio if math.isnan(low) else max(low, ratio / 1e3)
        ends = [low, ratio if math.isnan(high) else min(high, ratio * 1e3)]
        ax.plot(ends, [place, place], color=colour, lw=1.6, solid_capstyle="butt")
        ax.plot(ratio, place, "o", color=colour, ms=5)
    ax.axvline(1, color=RED, lw=1)
    ax.set(xscale="log", xlabel="value / threshold", ylim=(len(shown) - 0.5, -0.5))
    labels = [f"{check.label} {check.operator} {number(check.threshold)}" for check in shown]
    ax.set_yticks(range(len(shown)), labels, fontsize=7)
    return titled(ax, title)


def _verdict(signature: Signature, verdicts: Sequence[Verdict]) -> str:
    headline = ("lambda_max", "mean_curvature", "roughness_detrended")
    known = [f"{QUANTITIES[key].label} = {shown(getattr(signature, key))}" for key in headline if getattr(signature, key)]
    fired = [verdict.rule for verdict in verdicts if verdict.status == "fired"]
    open_ = sum(verdict.status == "inconclusive" for verdict in verdicts)
    warned = f"warnings: {', '.join(fired)}" if fired else "no warning fired"
    left = f", {open_} inconclusive" if open_ else ""
    return f"{', '.join(known) or 'Nothing of the signature is known'}; {warned}{left}."


def _settings(source: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in source.items() if key != "created")
