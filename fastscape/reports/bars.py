"""Bars of estimates by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastscape.numerics.estimate import Estimate
from fastscape.numerics.positive import shown_ends
from fastscape.reports.axes import BLUE, GREY, ORANGE, literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST = 12  # bars that can be read in a panel


def bars(ax: Axes, ordered: Sequence[tuple[str, Estimate]]) -> None:
    """Estimates as horizontal bars with 95 % intervals, the first at the top; the sum of what has no room is one more."""
    shown = [(name, trace.value, shown_ends(trace)) for name, trace in ordered[:_MOST]]
    rest = [trace.value for _, trace in ordered[_MOST:]]
    if rest:
        shown.append((f"{len(rest)} more", float(sum(rest)), (math.nan, math.nan)))
    names = [literal(name) for name, _, _ in shown]
    values = np.array([value for _, value, _ in shown])
    bounds = np.array([interval for _, _, interval in shown])
    y = np.arange(len(shown))
    colours = [GREY if index >= _MOST else BLUE if value >= 0 else ORANGE for index, value in enumerate(values)]
    ax.barh(y, values, color=colours, alpha=0.75, height=0.34)
    known = np.isfinite(bounds).all(axis=1)
    error = np.abs(bounds[known] - values[known, None]).T
    ax.errorbar(values[known], y[known], xerr=error, fmt="none", ecolor="k", elinewidth=1.0, capsize=2)
    ax.axvline(0, color=GREY, lw=0.8)
    ax.set_yticks([])
    for row, name in enumerate(names):  # above the bars: long names of parameters have no room beside the panel
        ax.text(0.015, row - 0.23, name, transform=ax.get_yaxis_transform(), fontsize=7, va="bottom")
    pad = 0.8 + max(0, 5 - len(shown)) / 2  # so that a single bar does not fill the panel
    ax.set_ylim(len(shown) - 1.3 + pad, -pad)
