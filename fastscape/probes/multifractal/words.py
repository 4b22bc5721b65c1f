"""Words of multifractal results: rows, verdicts and flags."""

from __future__ import annotations

import math

from fastscape._checks import counted
from fastscape.probes.multifractal.description import Analysis
from fastscape.probes.multifractal.flags import SIGN_MIXING
from fastscape.probes.multifractal.leads import change_word, m_tau_text, movements, reasons, shown_p
from fastscape.probes.multifractal.result import MultifractalResult, TrajectoryResult
from fastscape.probes.multifractal.scalars import MIN_DIRECTIONS
from fastscape.reports.numbers import SIGNIFICANT, interval, number, p_text, p_words
from fastscape.reports.tables import merged, shared_flags

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
    """Verdict on a checkpoint's analysis, in one sentence."""
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


def loss_terms(result: MultifractalResult) -> str:
    """Number of terms of the loss, and of batches."""
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


def trajectory_verdict(result: TrajectoryResult) -> str:
    """Verdict along the checkpoints, in one sentence."""
    usable = [point for point in result.points if point.analysis.valid]
    if not usable:
        return "No checkpoint has a trusted window: see the flags."
    analyses = [point.analysis for point in usable if point.directions >= MIN_DIRECTIONS]
    counts = (
        f"the measure changes with scale in {sum(shown_p(analysis) <= SIGNIFICANT for analysis in analyses)}, "
        f"the loss is quadratic in {sum(analysis.quadratic for analysis in analyses)}"
    )
    if len(analyses) < len(usable):
        few = f"{len(usable) - len(analyses)} with too few directions to tell"
        counts = f"{counts}, {few}" if analyses else few
    first, last = usable[0], usable[-1]
    moves = f"; from {first.name} to {last.name} {movements(first, last)}" if len(usable) > 1 else ""
    mixed = sum(signs_mix(point.analysis) for point in usable)
    why = f"; responses change sign in {mixed}" if mixed else ""
    return f"{len(usable)} of {len(result.points)} checkpoints analysed: {counts}{moves}{why}."


def trajectory_flags(result: TrajectoryResult) -> list[str]:
    """Every flag and every reason for an interval that is not there, once each."""
    return [*merged(reasons(result.points), len(result.points)), *shared_flags(result.points)]
