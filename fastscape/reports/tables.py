"""Tables and verdicts for the terminal (rich)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from fastscape._checks import counted
from fastscape.estimators import Analysis, Estimate
from fastscape.estimators.flags import SIGN_MIXING
from fastscape.estimators.positive import BY_MODEL
from fastscape.estimators.scalars import MIN_DIRECTIONS

if TYPE_CHECKING:
    from fastscape.reports.result import MultifractalResult, TrajectoryResult

SIGNIFICANT = 0.05

QUANTITIES = {
    "c2": ("c2", "slope of var ln r; < 0: heterogeneity grows toward small radii"),
    "h_std": ("std h", "spread of h over directions"),
    "spread_ratio": ("spread ratio", "standard deviation of ln r at the finest over that at the coarsest scale"),
    "moved_mass": ("moved mass", "share of the measure that changes direction over the window"),
    "m_tau_supported": ("M_tau, supported q", "deviation of tau(q) from a line, on the orders that the directions support"),
    "m_tau": ("M_tau", "on all orders"),
    "m_tau_pos": ("M_tau, q > 0", "without negative moments"),
    "lambda_tau": ("M_tau / kappa", "free of the q grid"),
    "alpha_width": ("alpha width", "alpha(q min) - alpha(q max)"),
    "h_mean": ("mean h", "exponent of |response| (2 = quadratic)"),
    "h_median": ("median h", "of the directions"),
    "h_iqr": ("IQR of h", "of the directions"),
}

_FULL_WIDTH = 120  # columns from which a trajectory's table is whole, its cells wrapped if need be
_PROSE = 40  # characters of a cell that is no number
_FIRST_TO_GO = ("decades", "||w||", "accuracy", "mean h", "M_tau [95 %]", "loss", "std h")


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: significant digits, words for what is missing."""
    if value is None or math.isnan(value):
        return "n/a"
    return f"{value:.{digits}g}"


def interval(estimate: Estimate | None, digits: int | None = None, unit: str = "") -> str:
    """An estimate for people, in one of three states; the same on a terminal, in JSON and on a page.

    ``value [low, high]``; ``value, interval n/a (reason; remedy)`` where the interval is withheld, ``n/a`` for the value too
    where there is none; and a bound, ``>= low`` or ``<= high``, where only one end is known. A positive number whose interval
    begins at zero is said not to be distinguishable from it.

    Args:
        estimate: what is shown.
        digits: significant ones of the value; ``None`` rounds all three numbers to two digits of the interval's width.
        unit: written behind the numbers.
    """
    if estimate is None:
        return "n/a"
    value, (low, high) = estimate.value, estimate.interval
    if math.isnan(value):
        return f"n/a ({estimate.withheld})" if estimate.withheld else "n/a"
    if estimate.withheld:
        return f"{number(value)}{unit}, interval n/a ({estimate.withheld})"
    if math.isnan(low) or math.isnan(high) or (math.isinf(low) and math.isinf(high) and low != high):
        return f"{number(value)}{unit}, interval n/a"
    if math.isinf(high) and low < high:
        return f">= {number(low)}{unit}"
    if estimate.method == BY_MODEL:
        return f">= {number(low)} (<= {number(high)} in the quadratic model)"
    if math.isinf(low):
        return f"<= {number(high)}{unit}"
    tail = f"{unit}: not distinguishable from 0" if low == 0 < value else unit
    if digits is not None:
        return f"{number(value, digits)} [{number(low)}, {number(high)}]{tail}"
    width = high - low
    if not width > 0:
        return f"{number(value)} [{number(low)}, {number(high)}]{unit}"
    decimals = max(0, 1 - math.floor(math.log10(width)))
    if decimals > 6:
        return f"{value:.2e} [{low:.2e}, {high:.2e}]{tail}"
    return f"{value:.{decimals}f} [{low:.{decimals}f}, {high:.{decimals}f}]{tail}"


def cell(estimate: Estimate | None) -> str:
    """As :func:`interval`, for a row of a table: the value alone where its interval is withheld, for which there is no room."""
    return number(estimate.value) if estimate is not None and estimate.withheld else interval(estimate)


def p_text(p: float) -> str:
    """A p-value for people."""
    return "n/a" if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def shown_p(analysis: Analysis) -> float:
    """P of c2; none where the measure hardly moves, which no p makes more of."""
    return math.nan if analysis.scaling == "common" else analysis.p_value


def scale_range(result: MultifractalResult) -> str:
    """The analysed scales in words."""
    if not result.analysis.windows:
        return "none"
    start, stop = result.analysis.windows[0]
    radii = result.measured.eps_rel
    more = f" (first of {len(result.analysis.windows)} windows)" if len(result.analysis.windows) > 1 else ""
    return f"{radii[start]:.1e} .. {radii[stop - 1]:.1e} of ||w||, {result.decades:.1f} decades, {stop - start} scales{more}"


def signs_mix(analysis: Analysis) -> bool:
    """Whether responses of both signs come arbitrarily near to zero, so that moments of their magnitude say nothing."""
    mixing = max(window.scalars["sign_mixing"] for group in analysis.pooled for window in group)
    return mixing > SIGN_MIXING


def verdict(result: MultifractalResult) -> str:
    """What a checkpoint's analysis found, in one sentence."""
    analysis = result.analysis
    if not analysis.valid:
        return f"No multifractal numbers: {analysis.reason}."
    h, c2 = analysis.estimates["h_mean"], analysis.estimates["c2"]
    tail = f"over {result.decades:.1f} decades, {counted(result.directions, 'direction')}"
    found = f"c2 = {interval(c2)}"
    if result.directions < MIN_DIRECTIONS:
        return f"Too few directions to tell, {MIN_DIRECTIONS:g} are the least: mean h = {h.value:.2f}, {found}, {tail}."
    if analysis.quadratic:
        return (
            f"Common scaling: at least 95 % of the directions respond as eps^2.00 (mean h = {h.value:.3f}) {tail}; "
            "the loss is quadratic at these scales and the quadratic form d'Hd describes it."
        )
    if analysis.scaling == "common":
        return f"Common scaling: {analysis.moved_mass:.2%} of the measure moves {tail} (mean h = {h.value:.2f})."
    where = "; responses change sign: moments of |r| have no population value" if signs_mix(analysis) else ""
    if math.isnan(analysis.p_value):
        return f"{found}, {tail}; no p ({c2.withheld or 'not defined'})."
    found += f", p = {p_text(analysis.p_value)}"
    if analysis.p_value > SIGNIFICANT:
        return f"No change of the spread of ln r with scale that stands out: {found}, {tail}{where}."
    toward = "small radii (c2 < 0)" if c2.value < 0 else "large radii (c2 > 0)"
    return f"The measure changes with scale: {found}, {tail}; heterogeneity grows toward {toward}{where}."


def brief(result: MultifractalResult) -> str:
    """Size, headline number and flags, in a few words."""
    analysis = result.analysis
    found = f"c2 = {interval(analysis.estimates['c2'])}" if analysis.valid else f"no multifractal numbers ({analysis.reason})"
    size = f"{counted(result.directions, 'direction')} at {counted(len(result.measured.radii), 'scale')}"
    return f"{size}, {found}, {counted(len(result.flags), 'flag')}"


def _loss_terms(result: MultifractalResult) -> str:
    samples = result.meta["samples"]
    return f"{samples:g} {'term' if samples == 1 else 'terms'} in {counted(result.meta['batches'], 'batch')}"


def multifractal_table(result: MultifractalResult) -> RenderableType:
    """One checkpoint: every value with its interval and meaning, then verdict and flags."""
    table = Table(title=f"Multifractal probe: {result.name}", title_justify="left", title_style="bold")
    for column in ("quantity", "value [95 %]", "meaning"):
        table.add_column(column)
    table.add_row("loss", number(result.loss, 6), _loss_terms(result))
    if result.accuracy is not None:
        table.add_row("accuracy", f"{result.accuracy:.2%}", "of the same data")
    table.add_row("||w||", number(result.measured.weight_norm, 5), f"{result.meta['parameters']:,} parameters")
    for name, (label, meaning) in QUANTITIES.items():
        table.add_row(label, interval(result.analysis.estimates.get(name)), meaning)
    table.add_row("p (c2 = 0)", p_text(shown_p(result.analysis)), "Student's t over directions")
    half = result.analysis.split_half
    table.add_row("split-half r", f"{number(half.r)}, p = {p_text(half.p)}", "1: exponents belong to directions; 0: they do not")
    table.add_row("scales", scale_range(result), "analysed window")
    table.add_row(
        "directions", f"{result.directions} in {counted(len(result.measured.counts), 'bank')}", result.meta["stop_reason"]
    )
    table.add_row("precision", result.meta["precision"], f"path {result.meta['path']['name']}: {result.meta['path']['reason']}")
    flags = [Text(f"! {flag}", style="yellow") for flag in result.flags]
    return Group(table, Text(verdict(result), style="bold"), *flags)


def trajectory_verdict(result: TrajectoryResult) -> str:
    """What happened along the checkpoints, in one sentence."""
    usable = [point for point in result.points if point.analysis.valid]
    if not usable:
        return "No checkpoint has a trusted window: see the flags."
    told = [point.analysis for point in usable if point.directions >= MIN_DIRECTIONS]
    counts = (
        f"the measure changes with scale in {sum(shown_p(analysis) <= SIGNIFICANT for analysis in told)}, "
        f"the loss is quadratic in {sum(analysis.quadratic for analysis in told)}"
    )
    if len(told) < len(usable):
        few = f"{len(usable) - len(told)} with too few directions to tell"
        counts = f"{counts}, {few}" if told else few
    first, last = usable[0], usable[-1]
    ends = " and ".join(
        f"{word} {number(first.analysis.estimates[key].value)} -> {number(last.analysis.estimates[key].value)}"
        for word, key in (("c2 goes", "c2"), ("std h", "h_std"))
    )
    mixed = sum(signs_mix(point.analysis) for point in usable)
    why = f"; responses change sign in {mixed}" if mixed else ""
    return f"{len(usable)} of {len(result.points)} checkpoints analysed: {counts}; from {first.name} to {last.name} {ends}{why}."


class Flagged(Protocol):
    """A checkpoint with flags."""

    @property
    def name(self) -> str:
        """Name of the checkpoint."""

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags in words."""


def shared_flags(points: Sequence[Flagged]) -> list[str]:
    """Every flag with the checkpoints that raise it."""
    owners: dict[str, list[str]] = {}
    for point in points:
        for flag in point.flags:
            owners.setdefault(flag, []).append(point.name)
    total = len(points)
    return [
        f"{'all checkpoints' if len(names) == total and total > 1 else ', '.join(names)}: {flag}"
        for flag, names in owners.items()
    ]


class RowsByWidth:
    """Rows of named cells; on less than 120 columns those of ``first_to_go`` that do not fit are left out, and named."""

    def __init__(self, title: str, rows: Sequence[dict[str, str]], first_to_go: Sequence[str]) -> None:
        self.title, self.rows, self.first_to_go = title, rows, first_to_go

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        out: list[str] = []
        if options.max_width < _FULL_WIDTH:
            roomy = options.update(width=10 * _FULL_WIDTH)
            while (
                len(out) < len(self.first_to_go) and console.measure(self._table(out), options=roomy).maximum > options.max_width
            ):
                out.append(self.first_to_go[len(out)])
        yield self._table(out)
        if out:
            yield Text(f"left out below {_FULL_WIDTH} columns: {', '.join(name for name in self.rows[0] if name in out)}", "dim")

    def _table(self, left_out: Sequence[str]) -> Table:
        table = Table(title=self.title, title_justify="left", title_style="bold")
        names = [name for name in self.rows[0] if name not in left_out]
        for index, name in enumerate(names):
            prose = any(len(row[name]) > _PROSE for row in self.rows)
            table.add_column(name, justify="right" if index and not prose else "left", no_wrap=not index)
        for row in self.rows:
            table.add_row(*(row[name] for name in names))
        return table


def _trajectory_row(point: MultifractalResult) -> dict[str, str]:
    estimates = point.analysis.estimates
    return {
        "checkpoint": point.name,
        "loss": number(point.loss, 4),
        "accuracy": "n/a" if point.accuracy is None else f"{point.accuracy:.1%}",
        "||w||": number(point.measured.weight_norm, 4),
        "c2 [95 %]": cell(estimates.get("c2")),
        "p": p_text(shown_p(point.analysis)),
        "M_tau [95 %]": cell(estimates.get("m_tau_supported")),
        "mean h": number(estimates["h_mean"].value if estimates else None),
        "std h": number(estimates["h_std"].value if estimates else None),
        "decades": number(point.decades, 2),
        "N": str(point.directions),
    }


def trajectory_table(result: TrajectoryResult) -> RenderableType:
    """One row per checkpoint, then verdict and flags (checkpoints that share a flag on one line)."""
    rows = RowsByWidth("Multifractal probe along training", [_trajectory_row(point) for point in result.points], _FIRST_TO_GO)
    flags = [Text(f"! {flag}", style="yellow") for flag in shared_flags(result.points)]
    return Group(rows, Text(trajectory_verdict(result), style="bold"), *flags)


def as_text(table: RenderableType, width: int = 140) -> str:
    """A table as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().rstrip()
