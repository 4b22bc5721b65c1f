"""Leads of a multifractal result: whether a smooth bowl, and whether the spread over directions has a scale."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate, apart
from fastscape.probes.multifractal.changes import excludes_none, paired, shares, usable
from fastscape.probes.multifractal.description import Analysis
from fastscape.probes.multifractal.result import MultifractalResult
from fastscape.reports.numbers import SIGNIFICANT, cell, interval, listed, number

EXPONENT, SPREAD = "mean h (2 = smooth bowl)", "std h"
DETAILS: dict[str, str] = {
    "p (c2 = 0)": (
        "probability of a c2 at least as far from 0 where the spread of ln r is the same at every scale, by Student's t over "
        "directions; not printed where less than 1 % of the measure moves"
    ),
    "spread ratio": "standard deviation of ln r over directions at the finest over that at the coarsest scale of the window",
    "moved mass": "share of the measure p_i = r_i / sum r that changes direction between the ends of the window, 0 to 1",
    "window (decades)": "log10 of the largest over the smallest radius of the analysed window",
}
SAME, FEW = "does not change with scale", "too few directions"
C2, CHANGE, M_TAU = "c2 [95 %]", "spread over directions", "M_tau [95 %] (orders q)"

DEFINITIONS: dict[str, str] = {
    EXPONENT: (
        "mean over directions d of the exponent h in |L(w + e d) - 2 L(w) + L(w - e d)| ~ e^h, the slope of ln r against ln e, "
        "where r is that response and e the radius; a smooth bowl has 2"
    ),
    SPREAD: "standard deviation of h over directions; 0 where all respond alike",
    C2: (
        "slope against ln e of the variance of ln r over directions; negative: directions differ more at small radii, positive: "
        "more at large ones, 0: the spread is the same at every scale"
    ),
    CHANGE: "whether their spread changes with scale: whether c2 differs from 0, by p of Student's t over directions",
    M_TAU: (
        "root-mean-square deviation of the mass exponent tau(q) from a straight line over the orders q that so many directions "
        "determine, as Török & Bartha define it; tau(q) is the slope of ln sum_i p_i^q against ln e, p_i = r_i / sum r"
    ),
}


def shown_p(analysis: Analysis) -> float:
    """P of c2; none where the measure hardly moves, which no p makes more of."""
    return math.nan if analysis.scaling == "common" else analysis.p_value


def change_word(analysis: Analysis) -> str:
    """Whether the spread over directions changes with scale, in words that an interval of c2 supports."""
    if not analysis.valid:
        return "n/a"
    if analysis.scaling == "common":
        return SAME
    c2 = analysis.estimates["c2"]
    if math.isnan(analysis.p_value):
        return FEW if c2.withheld and "directions" in c2.withheld else "n/a"
    if shown_p(analysis) > SIGNIFICANT:
        return SAME
    return f"changes with scale: larger at {'small' if c2.value < 0 else 'large'} radii"


def orders_text(analysis: Analysis) -> str:
    """The grid of M_tau on supported orders: ``-1..2``; empty where none is supported."""
    orders = analysis.supported
    return f"{orders[0]:g}..{orders[-1]:g}" if orders else ""


def m_tau_text(analysis: Analysis, *, brief: bool = False) -> str:
    """M_tau on its supported orders with its grid, or why there is none."""
    found, grid = analysis.estimates.get("m_tau_supported"), orders_text(analysis)
    if found is None:
        return "n/a"
    if not grid:
        return "n/a" if brief else f"n/a ({found.withheld})" if found.withheld else "n/a"
    return f"{cell(found) if brief else interval(found)} on q {grid}"


def lead_rows(points: Sequence[MultifractalResult]) -> tuple[dict[str, str], ...]:
    """A row per checkpoint of what is read first: exponents, the change of their spread, and M_tau."""
    return tuple(
        {
            "checkpoint": point.name,
            EXPONENT: cell(point.analysis.estimates.get("h_mean")),
            SPREAD: cell(point.analysis.estimates.get("h_std")),
            C2: cell(point.analysis.estimates.get("c2")),
            CHANGE: change_word(point.analysis),
            M_TAU: m_tau_text(point.analysis, brief=True),
        }
        for point in points
    )


def reasons(points: Sequence[MultifractalResult]) -> list[tuple[str, str]]:
    """Checkpoint and words where c2, or M_tau alone, has no interval; :func:`fastscape.reports.tables.merged` gathers them.

    A flag tells of signs that mix already.
    """
    found = []
    for point in points:
        for name, label in (("c2", "c2"), ("m_tau_supported", "M_tau")):
            estimate = point.analysis.estimates.get(name)
            if estimate is None or not estimate.withheld:
                continue
            if "both signs" not in estimate.withheld:
                found.append((point.name, f"no interval of {label}: {estimate.withheld}"))
            break
    return found


# ---------------------------------------------------------------------- what changed


def changes(first: MultifractalResult, last: MultifractalResult) -> Mapping[str, Estimate]:
    """Paired changes of mean h, std h and c2 from one checkpoint to another along the same directions; none where they differ."""
    if not _same_directions(first, last):
        return {}
    counts = np.minimum(first.measured.counts, last.measured.counts).tolist()
    parts = [_window(point, counts) for point in (first, last)]
    kept = usable(*(log_r for log_r, _ in parts))
    before, after = (shares(log_r[:, kept], x) for log_r, x in parts)
    return {name: paired(before[name], after[name]) for name in before}


def movements(first: MultifractalResult, last: MultifractalResult) -> str:
    """Which leading numbers moved, with their ends.

    A movement is claimed only of two numbers with intervals, whose difference along common directions leaves out 0; without such
    directions where the two intervals have no value in common.
    """
    found, names = changes(first, last), {"c2": "c2", "h_mean": "mean h", "h_std": "std h"}
    moved, still = [], []
    for key, label in names.items():
        start, end = first.analysis.estimates[key], last.analysis.estimates[key]
        known = not (start.withheld or end.withheld)
        if known and (excludes_none(found[key]) if key in found and not found[key].withheld else apart(start, end)):
            moved.append(f"{label} goes {number(start.value)} -> {number(end.value)}")
        else:
            still.append(label)
    words = [", ".join(moved)] if moved else []
    if still:
        words.append(f"no change of {listed(still)} stands out")
    return "; ".join(words)


def _same_directions(first: MultifractalResult, last: MultifractalResult) -> bool:
    """Whether both were probed along the same directions, and analysed as one measure over one window."""
    probes = [dataclasses.replace(point.probe, radii=None, count=None, precision=None) for point in (first, last)]
    single = all(len(point.analysis.windows) == len(point.analysis.pooled) == 1 for point in (first, last))
    settings = [(point.analysis.settings.variant, point.analysis.settings.gamma) for point in (first, last)]
    return single and probes[0] == probes[1] and settings[0] == settings[1]


def _window(point: MultifractalResult, counts: Sequence[int]) -> tuple[Array, Array]:
    """Gamma ln |response| ``[K, N]`` of the first directions of every bank over the analysed window, and ln e ``[K]``."""
    start, stop = point.analysis.windows[0]
    settings, measured = point.analysis.settings, point.measured
    responses = measured.even if settings.variant == "even" else measured.odd
    signed = np.concatenate([responses[bank, start:stop, :count] for bank, count in enumerate(counts)], axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_r: Array = settings.gamma * np.log(np.abs(signed))
    return log_r, np.log(measured.radii[start:stop])
