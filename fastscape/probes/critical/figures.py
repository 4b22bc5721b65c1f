"""The loss along an update."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fastscape.probes.critical.result import CriticalSharpnessResult
from fastscape.probes.critical.search import SURE
from fastscape.reports.axes import BLUE, GREY, ORANGE, RED, nothing, single, titled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINEAR = 1e-3  # of the largest difference: below it the axis is linear


def along(result: CriticalSharpnessResult, ax: Axes | None = None) -> Axes:
    """Differences of the loss at every step tried, with bracket, root and learning rate."""
    ax = single(ax)
    title = "Loss along the update"
    known = np.isfinite(result.differences)
    if not known.any():
        return nothing(ax, title, "no step has a finite loss")
    steps, differences = result.steps[known], result.differences[known]
    errors = np.nan_to_num(SURE * result.stderr[known])
    for decided, face in ((True, BLUE), (False, "white")):
        shown = result.decided[known] == decided
        ax.errorbar(steps[shown], differences[shown], yerr=errors[shown], fmt="o", ms=5, color=BLUE, mfc=face, lw=1.0, zorder=3)
    low, high = result.bracket
    ax.axhline(0, color=GREY, lw=0.8)
    if low > 0 and math.isfinite(high):
        ax.axvspan(low, high, color=ORANGE, alpha=0.2, lw=0)
    if math.isfinite(result.eta_c.value):
        ax.axvline(result.eta_c.value, color=ORANGE, lw=1.4, label="eta_c")
    if result.rate:
        ax.axvline(result.rate, color=RED, lw=1.0, ls="--", label="learning rate")
    ax.set_xscale("log")
    largest = float(np.abs(differences).max())
    if largest > 0:
        ax.set_yscale("symlog", linthresh=_LINEAR * largest)
    if ax.get_legend_handles_labels()[1]:
        ax.legend(fontsize=7)
    return titled(ax, title, "eta", "L(w + eta u) - L(w)")
