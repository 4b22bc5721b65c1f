r"""Does the measure change with the scale, and does an exponent belong to its direction: tests and effect sizes.

Scales share their directions, so that the unit of every test is the direction: no test here assumes that scales are independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from fastscape.numerics.arrays import Array
from fastscape.probes.multifractal.lines import slope
from fastscape.probes.multifractal.moments import log_measure

TRIVIAL = 0.01  # share of the measure below which a change with scale is none worth a test
COMMON = 1e-9  # share that rounding moves
_CHUNK = 2**20


@dataclass(frozen=True)
class SplitHalf:
    """Whether exponents belong to directions.

    Attributes:
        r: Spearman correlation over directions of the slope in the fine half of the window with that in the coarse half: near 1
            where each direction has an exponent of its own, near 0 for a walk, negative for scatter that is stationary.
        p: of r <= 0, one-sided, against directions permuted in one half.
    """

    r: float = math.nan
    p: float = math.nan


def moved_mass(log_r: Array) -> float:
    """Share of the measure that changes direction between the ends of a window: total variation of p, from ln r ``[K, N]``."""
    with np.errstate(invalid="ignore"):
        p = np.exp(log_measure(log_r[[0, -1]]))
    return float(np.sum(np.abs(p[0] - p[1])) / 2)


def mean_p(values: Sequence[float], influences: Sequence[Array]) -> float:
    """Two-sided p of the mean of independent statistics being 0, by Student's t over directions.

    Args:
        values: one per batch.
        influences: of the directions of each batch ``[N_b]``; degrees of freedom are Welch and Satterthwaite's.
    """
    sizes = np.array([len(influence) for influence in influences], dtype=np.float64)
    if (sizes < 2).any():
        return math.nan
    squares = np.array([np.sum((influence - influence.mean()) ** 2) for influence in influences]) / (sizes * (sizes - 1))
    total = float(np.sum(squares))
    if not (math.isfinite(total) and total > 0):
        return math.nan
    freedom = total**2 / float(np.sum(squares**2 / (sizes - 1)))
    return float(2 * stats.t.sf(abs(float(np.sum(values))) / math.sqrt(total), freedom))


def split_half(measures: Sequence[Sequence[Array]], x: Sequence[Array], permutations: int, rng: np.random.Generator) -> SplitHalf:
    """Split-half correlation of slopes, the mean over batches and windows.

    Args:
        measures: per batch, ln r ``[K, N]`` over each window; directions with a zero or NaN response are left out.
        x: ln eps ``[K]`` of each window.
        permutations: of the directions of a batch, the same for its windows.
        rng: of the permutations.
    """
    observed, drawn, count = 0.0, np.zeros(permutations), 0
    for windows in measures:
        usable = np.all([np.isfinite(log_r).all(axis=0) for log_r in windows], axis=0)
        if usable.sum() < 3:
            return SplitHalf()
        halves = [_half_ranks(log_r[:, usable], at) for log_r, at in zip(windows, x, strict=True)]
        observed += sum(float(fine @ coarse) for fine, coarse in halves)
        drawn += _permuted(halves, permutations, rng)
        count += len(halves)
    if not math.isfinite(observed):
        return SplitHalf()
    return SplitHalf(observed / count, float((1 + np.sum(drawn >= observed - 1e-12)) / (permutations + 1)))


def _half_ranks(log_r: Array, x: Array) -> tuple[Array, Array]:
    """Standardised ranks of the slopes in the two halves of a window, which share no scale; NaN where all are equal."""
    scales = len(x)
    parts = (slice(0, scales // 2), slice((scales + 1) // 2, scales))
    found = []
    for part in parts:
        ranks = stats.rankdata(slope(x[part], log_r[part]))
        centred = ranks - ranks.mean()
        size = math.sqrt(centred @ centred)
        found.append(centred / size if size > 0 else np.full_like(centred, np.nan))
    return found[0], found[1]


def _permuted(halves: Sequence[tuple[Array, Array]], permutations: int, rng: np.random.Generator) -> Array:
    size = len(halves[0][0])
    step = max(1, _CHUNK // size)
    found = []
    for start in range(0, permutations, step):
        rows = min(step, permutations - start)
        orders = rng.permuted(np.broadcast_to(np.arange(size), (rows, size)), axis=1)
        found.append(np.sum([coarse[orders] @ fine for fine, coarse in halves], axis=0))
    return np.concatenate(found)
