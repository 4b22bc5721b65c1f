"""Tables and verdicts for the terminal (rich)."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from fastscape._checks import counted
from fastscape.estimators import Analysis
from fastscape.estimators.flags import SIGN_MIXING
from fastscape.estimators.scalars import MIN_DIRECTIONS
from fastscape.reports.leads import (
    CHANGE,
    DEFINITIONS,
    M_TAU,
    SPREAD,
    change_word,
    lead_rows,
    m_tau_text,
    movements,
    reasons,
    spectrum_leads,
)
from fastscape.reports.numbers import SIGNIFICANT as SIGNIFICANT
from fastscape.reports.numbers import cell as cell
from fastscape.reports.numbers import interval as interval
from fastscape.reports.numbers import number as number
from fastscape.reports.numbers import p_text as p_text
from fastscape.reports.numbers import p_words
from fastscape.reports.numbers import shown_p as shown_p

if TYPE_CHECKING:
    from fastscape.reports.result import MultifractalResult, TrajectoryResult
    from fastscape.reports.spectrum import SpectrumResult, SpectrumTrajectory

QUANTITIES = {
    "h_mean": ("mean h", "over directions d, |L(w + e d) - 2 L(w) + L(w - e d)| ~ e^h; 2 = smooth bowl"),
    "h_std": ("std h", "spread of h over directions"),
    "c2": ("c2", "slope of var ln r over directions against ln e; < 0: they differ more at small radii"),
    "spread_ratio": ("spread ratio", "standard deviation of ln r at the finest over that at the coarsest scale"),
    "moved_mass": ("moved mass", "share of the measure that changes direction over the window"),
    "m_tau_supported": ("M_tau", "deviation of tau(q) from a line (Török & Bartha), on the orders that the directions support"),
    "c1": ("c1", "slope of the mean of ln r; mean h where no response is 0"),
    "m_tau": ("M_tau, all q", "on all orders"),
    "m_tau_pos": ("M_tau, q > 0", "without negative moments"),
    "lambda_tau": ("M_tau / kappa", "free of the q grid"),
    "alpha_width": ("alpha width", "alpha(q min) - alpha(q max)"),
    "h_median": ("median h", "of the directions"),
    "h_iqr": ("IQR of h", "of the directions"),
}

_FULL_WIDTH = 120  # columns from which a trajectory's table is whole, its cells wrapped if need be
_PROSE = 40  # characters of a cell that is no number
_FIRST_TO_GO = ("decades", "||w||", "accuracy", "loss", M_TAU, SPREAD, CHANGE)
_VALUE = r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?(?:e[+-]?\d+)?"
_MORE = r"-?\d+(?:\.\d+)?"
_VALUES = re.compile(rf"{_VALUE}(?:\.\.{_MORE}|(?:, {_MORE})+)?(?!\w)")  # a number, a span of orders such as -1..2, or a list
_PLACE = "\0"
_LEADING = 8  # rows of a table that are read first
_NAMED = 2  # checkpoints that a flag names; of more it says how many they are


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
    found += f", {p_words(analysis.p_value)}"
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


def multifractal_rows(result: MultifractalResult) -> list[tuple[str, str, str]]:
    """Label, value and meaning of every number in the order of reading: exponents, the change of their spread, M_tau, others."""
    analysis, rows = result.analysis, []
    for name, (label, meaning) in QUANTITIES.items():
        value = interval(analysis.estimates.get(name))
        if name == "m_tau_supported":
            value = m_tau_text(analysis)
        elif name == "moved_mass" and math.isfinite(analysis.moved_mass):
            value = f"{100 * analysis.moved_mass:.2g} %"
        rows.append((label, value, meaning))
        if name == "h_std":
            half = analysis.split_half
            words = "of slopes in the fine and in the coarse half; 1: exponents belong to directions, 0: they do not"
            rows.append(("split-half r", f"{number(half.r)}, {p_words(half.p)}", words))
        elif name == "c2":
            words = f"spread over directions: {change_word(analysis)}"
            rows.append(("p (c2 = 0)", p_text(shown_p(analysis)), words))
    return rows


def multifractal_table(result: MultifractalResult, spectrum: SpectrumResult | None = None) -> RenderableType:
    """One checkpoint: what is read first, of its spectrum too, then every value with its meaning, verdict and flags."""
    table = Table(title=f"Multifractal probe: {result.name}", title_justify="left", title_style="bold")
    for column in ("quantity", "value [95 %]", "meaning"):
        table.add_column(column)
    for name, value in spectrum_leads(spectrum).items():
        table.add_row(Text(name), Text(value), Text(DEFINITIONS[name]))
    for index, row in enumerate(multifractal_rows(result)):
        table.add_row(*map(Text, row), end_section=index + 1 == _LEADING)
    table.add_section()
    table.add_row("loss", number(result.loss, 6), _loss_terms(result))
    if result.accuracy is not None:
        table.add_row("accuracy", f"{result.accuracy:.2%}", "of the same data")
    table.add_row("||w||", number(result.measured.weight_norm, 5), f"{result.meta['parameters']:,} parameters")
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
    moves = f"; from {first.name} to {last.name} {movements(first, last)}" if len(usable) > 1 else ""
    mixed = sum(signs_mix(point.analysis) for point in usable)
    why = f"; responses change sign in {mixed}" if mixed else ""
    return f"{len(usable)} of {len(result.points)} checkpoints analysed: {counts}{moves}{why}."


class Flagged(Protocol):
    """A checkpoint with flags."""

    @property
    def name(self) -> str:
        """Name of the checkpoint."""

    @property
    def flags(self) -> tuple[str, ...]:
        """Flags in words."""


def shared_flags(points: Sequence[Flagged]) -> list[str]:
    """Every flag once, with the checkpoints that raise it; see :func:`merged`."""
    return merged([(point.name, flag) for point in points for flag in point.flags], len(points))


def merged(told: Sequence[tuple[str, str]], total: int) -> list[str]:
    """Messages of several checkpoints, each once: of those that differ in numbers alone, one with the numbers' range.

    Args:
        told: name of a checkpoint and what is said of it.
        total: checkpoints there are; one or two that share a message are named, more are counted.
    """
    groups: dict[str, list[tuple[str, list[str]]]] = {}
    for name, words in told:
        pattern, parts = _parted(words)
        groups.setdefault(pattern, []).append((name, parts))
    lines = []
    for pattern, owners in groups.items():
        pieces = pattern.split(_PLACE)
        columns = list(zip(*(parts for _, parts in owners), strict=True))
        text = pieces[0] + "".join(_together(column) + piece for column, piece in zip(columns, pieces[1:], strict=True))
        lines.append(f"{_owners(list(dict.fromkeys(name for name, _ in owners)), total)}: {text}")
    return lines


def _parted(words: str) -> tuple[str, list[str]]:
    """A message with a mark in place of every number, list of numbers and span of orders, and what stood there."""
    parts: list[str] = []

    def cut(match: re.Match[str]) -> str:
        parts.append(match[0])
        return _PLACE

    return _VALUES.sub(cut, words), parts


def _together(parts: Sequence[str]) -> str:
    """What stands at one place of several messages: the numbers' range, all numbers of lists, or every span of orders."""
    different = sorted(set(parts))
    if len(different) == 1:
        return different[0]
    if any(".." in part for part in parts):
        return " or ".join(different)
    if any(", " in part for part in parts):
        return ", ".join(sorted({item for part in parts for item in part.split(", ")}, key=_size))
    return f"{min(parts, key=_size)} .. {max(parts, key=_size)}"


def _size(text: str) -> float:
    return float(text.replace(",", ""))


def _owners(names: Sequence[str], total: int) -> str:
    if len(names) == total > 1:
        return "all checkpoints"
    return ", ".join(names) if len(names) <= _NAMED else f"in {len(names)} of {total} checkpoints"


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
            table.add_row(*(Text(row[name]) for name in names))  # no markup: [n/a] is one
        return table


def trajectory_rows(
    result: TrajectoryResult, spectrum: SpectrumResult | SpectrumTrajectory | None = None
) -> list[dict[str, str]]:
    """A row per checkpoint: what is read first, of the spectrum too where it is there, then the state and the directions."""
    return [
        row
        | {
            "p": p_text(shown_p(point.analysis)),
            "loss": number(point.loss, 4),
            "accuracy": "n/a" if point.accuracy is None else f"{point.accuracy:.1%}",
            "||w||": number(point.measured.weight_norm, 4),
            "decades": number(point.decades, 2),
            "N": str(point.directions),
        }
        for row, point in zip(lead_rows(result, spectrum), result.points, strict=True)
    ]


def trajectory_flags(result: TrajectoryResult) -> list[str]:
    """Every flag and every reason for an interval that is not there, once each."""
    return [*merged(reasons(result.points), len(result.points)), *shared_flags(result.points)]


def trajectory_table(result: TrajectoryResult, spectrum: SpectrumResult | SpectrumTrajectory | None = None) -> RenderableType:
    """One row per checkpoint, then verdict and flags, each flag on one line."""
    rows = RowsByWidth("Multifractal probe along training", trajectory_rows(result, spectrum), _FIRST_TO_GO)
    flags = [Text(f"! {flag}", style="yellow") for flag in trajectory_flags(result)]
    return Group(rows, Text(trajectory_verdict(result), style="bold"), *flags)


def as_text(table: RenderableType, width: int = 140) -> str:
    """A table as plain text."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue().rstrip()
