"""Figures of a diagonal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from fastscape.numerics.arrays import Array
from fastscape.numerics.estimate import Estimate
from fastscape.probes.diagonal.result import DiagonalResult
from fastscape.reports.axes import BLUE, GREY, ORANGE, nothing, single, titled
from fastscape.reports.bars import bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINTS = 400  # of a curve over up to D ranks


def layer_order(result: DiagonalResult) -> list[tuple[str, Estimate]]:
    """Sums of the parameters, the largest in size first; NaN last."""
    return sorted(result.layers.items(), key=lambda item: math.inf if math.isnan(item[1].value) else -abs(item[1].value))


def layer_sums(result: DiagonalResult, ax: Axes | None = None) -> Axes:
    """Sum of the diagonal over each parameter, with its interval."""
    ax = single(ax)
    title = "Sum of the diagonal by parameter, 95 % intervals"
    ordered = [(name, found) for name, found in layer_order(result) if math.isfinite(found.value)]
    if not ordered:
        return nothing(ax, title, "no finite sum")
    bars(ax, ordered)
    return titled(ax, title, "sum (loss per squared parameter)", "")


def elements(result: DiagonalResult, ax: Axes | None = None) -> Axes:
    """Sizes of the elements by rank, those of either sign apart, and their standard errors."""
    ax = single(ax)
    title = "Elements of the diagonal by size"
    drawn = [
        _ranked(ax, np.sort(part)[::-1], label, **style)
        for part, label, style in (
            (result.values[result.values > 0], "positive", {"color": BLUE}),
            (-result.values[result.values < 0], "negative", {"color": ORANGE}),
            (result.stderr[result.stderr > 0], "standard errors", {"color": GREY, "ls": "--"}),
        )
    ]
    if not any(drawn):
        return nothing(ax, title, "no finite element but zero")
    ax.set(xscale="log", yscale="log")
    ax.legend(fontsize=7)
    return titled(ax, title, "rank", "size (loss per squared parameter)")


def _ranked(ax: Axes, sizes: Array, label: str, **style: str) -> bool:
    sizes = sizes[np.isfinite(sizes)]
    if not len(sizes):
        return False
    ranks = np.unique(np.geomspace(1, len(sizes), _POINTS).astype(int))
    ax.plot(ranks, sizes[ranks - 1], label=label, lw=1.4, marker="o" if len(ranks) == 1 else None, **style)  # type: ignore[arg-type]
    return True
