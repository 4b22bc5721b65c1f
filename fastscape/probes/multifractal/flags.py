"""Everything that limits a multifractal analysis, in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fastscape._checks import counted
from fastscape.numerics.arrays import Array
from fastscape.probes.multifractal.scalars import MIN_DIRECTIONS
from fastscape.probes.multifractal.trust import Trust, Window

if TYPE_CHECKING:
    from fastscape.probes.multifractal.description import WindowAnalysis

RECOMMENDED_DIRECTIONS = 256
RECOMMENDED_SCALES = 8
RECOMMENDED_DECADES = 1.5
SIGN_MIXING = 0.02


def analysis_flags(
    verdict: Trust,
    eps: Array,
    windows: Sequence[Window],
    analyses: Sequence[WindowAnalysis],
    directions: int,
    authors: NDArray[np.bool_] | None = None,
) -> tuple[str, ...]:
    """Flags of an analysis: untrusted scales, short windows, few directions, unreliable moments."""
    flags = []
    for count, what in (
        (int((~verdict.finite).sum()), "have losses that are not finite"),
        (int((verdict.finite & ~verdict.above_noise).sum()), "are rounding noise"),
        (int((verdict.finite & ~verdict.positive).sum()), "have zero responses for over 1 % of the directions"),
    ):
        if count:
            flags.append(f"{count} of {len(eps)} scales {what}")
    for start, stop in windows:
        untrusted = int((~verdict.mask[start:stop]).sum())
        if untrusted:
            flags.append(f"window ({start}, {stop}) includes {counted(untrusted, 'untrusted scale')}")
    if windows:
        scales = max(stop - start for start, stop in windows)
        decades = max(float(np.log10(eps[stop - 1] / eps[start])) for start, stop in windows)
        help_ = ["more radii within it"] if scales < RECOMMENDED_SCALES else []
        help_ += ["radii over a wider range"] if decades < RECOMMENDED_DECADES * (1 - 1e-9) else []
        if help_:
            flags.append(
                f"the analysed window has {scales} scales over {decades:.1f} decades, where {RECOMMENDED_SCALES} over "
                f"{RECOMMENDED_DECADES:g} are recommended; {' and '.join(help_)} would make its exponents steadier"
            )
    if directions < RECOMMENDED_DIRECTIONS:
        flags.append(f"few directions ({directions}; {RECOMMENDED_DIRECTIONS} are recommended)")
    return (*flags, *_moment_flags(analyses), *_author_flags(authors))


def _moment_flags(analyses: Sequence[WindowAnalysis]) -> list[str]:
    if not analyses:
        return []
    flags = []
    q = analyses[0].spectrum.q
    n_eff = np.min([analysis.spectrum.n_eff for analysis in analyses], axis=0)
    thin = q[(n_eff < MIN_DIRECTIONS) & (q != 0)]
    if len(thin):
        flags.append(f"moments q = {_listed(thin)} are carried by fewer than {MIN_DIRECTIONS:g} directions (biased)")
    undefined = q[np.isnan(np.sum([analysis.spectrum.tau for analysis in analyses], axis=0))]
    if len(undefined):
        flags.append(f"moments q = {_listed(undefined)} are not defined (zero or infinite responses)")
    mixing = max(analysis.scalars["sign_mixing"] for analysis in analyses)
    if mixing > SIGN_MIXING:
        flags.append(
            f"responses change sign (up to {100 * mixing:.0f} % have the rarer one): moments of |r| have no population value; "
            "read the median and IQR of h"
        )
    return flags


def _author_flags(authors: NDArray[np.bool_] | None) -> list[str]:
    if authors is None or authors.all():
        return []
    return [f"the authors' anisotropy test (mean/std >= 0.35) rejects {int((~authors).sum())} of {len(authors)} scales"]


def _listed(values: Array) -> str:
    return ", ".join(f"{value:g}" for value in values)
