"""Signatures beside each other: one table, one figure, warnings on all of them, and the rule on skip connections."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import stats

from fastscape._checks import counted
from fastscape.estimators.intervals import Estimate
from fastscape.estimators.positive import shown_ends
from fastscape.estimators.rules import DEFAULT_RULES, Check, Rule, Status, Verdict, beyond
from fastscape.estimators.scaling import Array
from fastscape.reports.axes import BLUE, GREY, grid, nothing
from fastscape.reports.document import Document
from fastscape.reports.sections import Figure, Grid, Quantity, Section
from fastscape.reports.signature import RULE_COLUMNS, Signature, row_of
from fastscape.reports.signature_parts import QUANTITIES, shown
from fastscape.reports.tables import number, shared_flags
from fastscape.runs.provenance import provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SKIP_RULE = "skip connections smooth the worst slice"
_ADVICE = "expect the architecture with skip connections to be easier to optimise"
_SOURCE = "Venkatasubramanian (2025), section 6.3: a comparison of architectures, not a statement on one model"
_PANELS = 3  # per row of the figure
_WIDE = 30.0  # ratio of values from which an axis is logarithmic


@dataclass(frozen=True)
class Comparison(Document):
    """Several signatures, of architectures, seeds or steps.

    Attributes:
        name, step: of the comparison; no step.
        signatures: in the order given.
        architectures: label of each signature.
        skip: architectures that have skip connections; ``None`` where that was not told.
        verdicts: of the comparison rules.
        meta: when and with what it was made.
        notes: flags, in words.
    """

    kind: ClassVar[str] = "comparison"

    name: str
    step: int | None
    signatures: tuple[Signature, ...]
    architectures: tuple[str, ...]
    skip: tuple[str, ...] | None
    verdicts: tuple[Verdict, ...]
    meta: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<Comparison of {counted(len(self.signatures), 'signature')}>"

    def warnings(self, rules: Sequence[Rule] = DEFAULT_RULES) -> dict[str, tuple[Verdict, ...]]:
        """What becomes of every rule on every signature, by the signatures' labels; each has the others as reference."""
        found = {}
        for index, (label, signature) in enumerate(zip(self.labels, self.signatures, strict=True)):
            others = (*self.signatures[:index], *self.signatures[index + 1 :])
            found[label] = signature.warnings(rules, others)
        return found

    @property
    def labels(self) -> tuple[str, ...]:
        """A distinct name of each signature."""
        names = [signature.name for signature in self.signatures]
        if len(set(names)) < len(names):
            names = [f"{architecture}: {name}" for architecture, name in zip(self.architectures, names, strict=True)]
        if len(set(names)) < len(names):
            names = [f"{index}: {name}" for index, name in enumerate(names)]
        return tuple(names)

    def known(self) -> list[str]:
        """Quantities that at least one signature has."""
        return [key for key in QUANTITIES if any(getattr(signature, key) is not None for signature in self.signatures)]

    def section(self) -> Section:
        """See :class:`Document`."""
        keys, warnings = self.known(), self.warnings()
        fired = [f"{verdict.rule} ({label})" for label, row in warnings.items() for verdict in row if verdict.status == "fired"]
        height = max(1, math.ceil(len(keys) / _PANELS))
        return Section(
            f"Comparison of {counted(len(self.signatures), 'signature')}",
            f"{'; '.join(f'{verdict.rule}: {verdict.status}' for verdict in self.verdicts)}; "
            f"{'warnings: ' + ', '.join(fired) if fired else 'no warning fired on a single signature'}.",
            tuple(Quantity(QUANTITIES[key].label, self._range(key), _meaning(key)) for key in keys),
            (Figure("Quantities with intervals", lambda axes: dots(self, axes), _DOTS, panels=(height, _PANELS)),),
            (
                Grid(
                    "Signatures",
                    tuple(map(self._row, keys)),
                    {"quantity": "its definition and range are in the list of quantities"},
                ),
                Grid("Comparison rules", tuple(map(row_of, self.verdicts)), RULE_COLUMNS),
                Grid("Early warnings", tuple(_statuses(warnings)), {"rule": "each signature has the others as reference"}),
                Grid("Fired or inconclusive", tuple(_told(warnings, ("fired", "inconclusive"))), RULE_COLUMNS),
            ),
            self.notes,
        )

    def _row(self, key: str) -> dict[str, str]:
        cells = (shown(getattr(signature, key)) for signature in self.signatures)
        return {"quantity": QUANTITIES[key].label, **dict(zip(self.labels, cells, strict=True))}

    def _range(self, key: str) -> str:
        values = [found.value for found in (getattr(each, key) for each in self.signatures) if found is not None]
        return f"{number(min(values))} .. {number(max(values))}" if len(values) > 1 else number(values[0])

    def plot(self, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
        """Every quantity of all signatures with its interval, one panel each (needs matplotlib)."""
        return dots(self, axes)


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


_DOTS = (
    "Value and interval of every signature, one panel per quantity; the axis is logarithmic where positive values differ by more "
    "than 30 times, and intervals that reach far beyond the values are cut. Intervals: residual bounds of eigenvalues, of NS "
    "from the rise found to the bound of the quadratic model only; 95 % otherwise. A value without interval is hollow."
)


def _meaning(key: str) -> str:
    quantity = QUANTITIES[key]
    return f"{quantity.formula} [{quantity.unit}]" if quantity.unit else quantity.formula


def compare(
    signatures: Sequence[Signature],
    *,
    architectures: Sequence[str] | None = None,
    skip: Sequence[str] | None = None,
    name: str = "comparison",
) -> Comparison:
    """Signatures beside each other, with the rule that needs more than one model.

    The rule: architectures with skip connections have a lower worst-case slice variance. It fires where the 95 % Welch interval
    of the ratio of geometric means over signatures (seeds) lies below 1.

    Args:
        signatures: two or more.
        architectures: label of each; default the class of its model.
        skip: the labels that have skip connections; ``None`` leaves the rule without an answer.
        name: for tables.

    Raises:
        TypeError: something that is no signature.
        ValueError: fewer than two, labels of another number, or ``skip`` that is no label.
    """
    given = tuple(signatures)
    wrong = next((item for item in given if not isinstance(item, Signature)), None)
    if wrong is not None:
        raise TypeError(f"signatures must be made by Signature.of or fs.signature, got {type(wrong).__name__}")
    if len(given) < 2:
        raise ValueError(f"signatures must be at least two, got {len(given)}")
    labels = tuple(architectures) if architectures is not None else tuple(str(each.meta.get("model", "?")) for each in given)
    if len(labels) != len(given):
        raise ValueError(f"architectures must have one label per signature, got {len(labels)} for {len(given)}")
    unknown = [label for label in skip or () if label not in labels]
    if unknown:
        raise ValueError(f"skip must be among the architectures {', '.join(sorted(set(labels)))}, got {unknown[0]!r}")
    return Comparison(
        name=name,
        step=None,
        signatures=given,
        architectures=labels,
        skip=None if skip is None else tuple(skip),
        verdicts=(_skip_verdict(given, labels, skip),),
        meta={"stop_reason": "complete", "seconds": 0.0, **provenance()},
        notes=(*_settings_differ(given), *shared_flags(given)),
    )


def _skip_verdict(signatures: Sequence[Signature], labels: Sequence[str], skip: Sequence[str] | None) -> Verdict:
    """Whether the worst slice variance is lower with skip connections than without."""
    label = "worst slice variance with skip connections over that without"

    def made(status: Status, check: Check, reason: str) -> Verdict:
        return Verdict(SKIP_RULE, status, check.value, check.interval, check.threshold, _ADVICE, _SOURCE, reason, (check,))

    def without_answer(reason: str) -> Verdict:
        return made("not applicable", Check(label, "<", None, False, math.nan, (math.nan, math.nan), 1.0, reason), reason)

    if skip is None:
        return without_answer("skip= does not tell which architectures have skip connections")
    values = [math.nan if each.roughness_worst is None else each.roughness_worst.value for each in signatures]
    sides = [_logarithms(values, [(one in skip) is side for one in labels]) for side in (True, False)]
    if not all(len(side) for side in sides):
        return without_answer("slices are needed of architectures with and without skip connections")
    ratio, bounds = _ratio(sides[0], sides[1])
    holds = beyond("<", bounds, 1.0)
    if holds is None:
        few = (
            "one signature of a kind has no spread; take several seeds" if min(map(len, sides)) < 2 else "the interval crosses 1"
        )
        return made("inconclusive", Check(label, "<", None, True, ratio, bounds, 1.0, few), f"{few}: ratio {ratio:.3g}")
    check = Check(label, "<", holds, True, ratio, bounds, 1.0)
    return made("fired" if holds else "not fired", check, "" if holds else str(check))


def _logarithms(values: Sequence[float], chosen: Sequence[bool]) -> Array:
    picked = np.array([value for value, take in zip(values, chosen, strict=True) if take], dtype=np.float64)
    return np.log(picked[np.isfinite(picked) & (picked > 0)])


def _ratio(first: Array, second: Array) -> tuple[float, tuple[float, float]]:
    """Ratio of geometric means from logarithms, with Welch's 95 % interval; NaN bounds where a side has one value."""
    ratio = math.exp(first.mean() - second.mean())
    if min(len(first), len(second)) < 2:
        return ratio, (math.nan, math.nan)
    if not (np.ptp(first) or np.ptp(second)):
        return ratio, (ratio, ratio)
    found = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.95)
    return ratio, (math.exp(min(found.low, 700.0)), math.exp(min(found.high, 700.0)))


def _settings_differ(signatures: Sequence[Signature]) -> list[str]:
    """Kinds of results that were not asked for the same thing; their numbers do not compare."""
    notes = []
    kinds = {kind for each in signatures for kind in each.meta.get("sources", {})}
    for kind in sorted(kinds):
        asked = {_asked(each.meta["sources"][kind]) for each in signatures if kind in each.meta.get("sources", {})}
        if len(asked) > 1:
            notes.append(f"the {kind} results have different settings and do not compare")
    return notes


def _asked(source: Mapping[str, Any]) -> str:
    """Settings that change what a number means: not how long it took, nor whose trace was taken."""
    return repr({key: value for key, value in (source.get("settings") or {}).items() if key not in ("budget", "spectrum")})


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
    ax.set_yticks(range(len(found)), comparison.labels, fontsize=7)
    ax.tick_params(axis="x", labelsize=7)
    ax.set_title(title, fontsize=9)
