"""Tables, figures and pages of signatures beside each other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from fastscape._checks import counted
from fastscape.numerics.estimate import Estimate
from fastscape.numerics.positive import shown_ends
from fastscape.probes.signature.comparison import Comparison
from fastscape.probes.signature.quantities import QUANTITIES, shown
from fastscape.probes.signature.rules import Verdict
from fastscape.probes.signature.view import RULE_COLUMNS, row_of
from fastscape.reports.axes import BLUE, GREY, grid, literal, nothing
from fastscape.reports.numbers import number
from fastscape.reports.sections import Figure, Grid, Quantity, Section, section_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = 3  # per row of the figure
_WIDE = 30.0  # ratio of values from which an axis is logarithmic
_DOTS = (
    "Value and interval of every signature, one panel per quantity; the axis is logarithmic where positive values differ by more "
    "than 30 times, and intervals that reach far beyond the values are cut. Intervals: residual bounds of eigenvalues, of NS "
    "from the rise found to the bound of the quadratic model only; 95 % otherwise. A value without interval is hollow."
)


@section_of.register
def comparison_section(result: Comparison) -> Section:
    """Every quantity of all signatures, and what the rules say."""
    keys, warnings = result.known(), result.warnings()
    fired = [f"{verdict.rule} ({label})" for label, row in warnings.items() for verdict in row if verdict.status == "fired"]
    height = max(1, math.ceil(len(keys) / _PANELS))
    return Section(
        f"Comparison of {counted(len(result.signatures), 'signature')}",
        f"{'; '.join(f'{verdict.rule}: {verdict.status}' for verdict in result.verdicts)}; "
        f"{'warnings: ' + ', '.join(fired) if fired else 'no warning fired on a single signature'}.",
        tuple(Quantity(QUANTITIES[key].label, _comparison_range(result, key), _meaning(key)) for key in keys),
        (Figure("Quantities with intervals", lambda axes: dots(result, axes), _DOTS, panels=(height, _PANELS)),),
        (
            Grid(
                "Signatures",
                tuple(_comparison_row(result, key) for key in keys),
                {"quantity": "its definition and range are in the list of quantities"},
            ),
            Grid("Comparison rules", tuple(map(row_of, result.verdicts)), RULE_COLUMNS),
            Grid("Early warnings", tuple(_statuses(warnings)), {"rule": "each signature has the others as reference"}),
            Grid("Fired or inconclusive", tuple(_told(warnings, ("fired", "inconclusive"))), RULE_COLUMNS),
        ),
        result.notes,
    )


def _comparison_row(result: Comparison, key: str) -> dict[str, str]:
    cells = (shown(getattr(signature, key)) for signature in result.signatures)
    return {"quantity": QUANTITIES[key].label, **dict(zip(result.labels, cells, strict=True))}


def _comparison_range(result: Comparison, key: str) -> str:
    values = [found.value for found in (getattr(each, key) for each in result.signatures) if found is not None]
    return f"{number(min(values))} .. {number(max(values))}" if len(values) > 1 else number(values[0])


def _statuses(warnings: Mapping[str, Sequence[Verdict]]) -> Iterable[dict[str, str]]:
    """A row per rule, a column per signature."""
    for verdicts in zip(*warnings.values(), strict=True):
        yield {"rule": verdicts[0].rule, **{label: each.status for label, each in zip(warnings, verdicts, strict=True)}}


def _told(warnings: Mapping[str, Sequence[Verdict]], statuses: Sequence[str]) -> Iterable[dict[str, str]]:
    """Rows of single outcomes."""
    for label, verdicts in warnings.items():
        for verdict in verdicts:
            if verdict.status in statuses:
                yield {"of": label, **row_of(verdict)}


def _meaning(key: str) -> str:
    quantity = QUANTITIES[key]
    return f"{quantity.formula} [{quantity.unit}]" if quantity.unit else quantity.formula


def dots(comparison: Comparison, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Interval dot plots, one panel per quantity."""
    keys = comparison.known()
    height = max(1, math.ceil(len(keys) / _PANELS))
    panels = grid(height, _PANELS, (4.0 * _PANELS, 2.4 * height)) if axes is None else list(axes)
    for key, ax in zip(keys, panels, strict=False):
        _dot_panel(ax, key, comparison)
    for ax in panels[len(keys) :]:
        ax.set_axis_off()
    if not keys:
        nothing(panels[0], "Quantities", "no signature has a quantity")
    return panels


def _dot_panel(ax: Axes, key: str, comparison: Comparison) -> None:
    found: list[Estimate | None] = [getattr(signature, key) for signature in comparison.signatures]
    values = [estimate.value for estimate in found if estimate is not None and math.isfinite(estimate.value)]
    unit = QUANTITIES[key].unit
    title = f"{QUANTITIES[key].label}{f' [{unit}]' if unit else ''}"
    if not values:
        nothing(ax, title, "no value is finite")
        return
    wide = min(values) > 0 and max(values) > _WIDE * min(values)
    reach = max(max(values) - min(values), max(map(abs, values)))
    floor, top = (min(values) / 100, max(values) * 100) if wide else (min(values) - reach, max(values) + reach)
    for place, estimate in enumerate(found):
        if estimate is None:
            continue
        low, high = (min(max(bound, floor), top) for bound in shown_ends(estimate))
        bounded = math.isfinite(low) and math.isfinite(high)
        if bounded:
            ax.plot([low, high], [place, place], color=BLUE, lw=1.5)
        ax.plot(estimate.value, place, "o", color=BLUE, ms=5, mfc=BLUE if bounded else "white")
    if wide:
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(lambda _value, _place: "")  # between powers of ten the labels overlap
    else:
        ax.locator_params(axis="x", nbins=4)
    if min(values) <= 0:
        ax.axvline(0, color=GREY, lw=0.8, zorder=0)
    ax.set(ylim=(len(found) - 0.5, -0.5))
    ax.set_yticks(range(len(found)), [literal(label, 24) for label in comparison.labels], fontsize=7)
    ax.tick_params(axis="x", labelsize=7)
    ax.set_title(title, fontsize=9)
